"""The fault bench: faults injected, trials, survived, time to recover.   make faults   make faults ARGS='--area runs --soak'

    python benchmarks/faults/faults.py [--area runs,files,evals] [--soak] [--seed N] [--only R1,D3] [--out faults.json]

An area is a file beside this one, faults_AREA.py, with `rows(soak, seed, only)`, which yields its rows one by one:
runs (training and checkpoints), files (data, models, what strangers made), evals (evaluation and APIs). The table goes to stdout,
and after each row to the JSON file of --out. Exit code 1 when a row is below 100 %.
"""
from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

AREAS = ("runs", "files", "evals")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the package of this checkout, whatever is installed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--area", default=",".join(AREAS), help="comma-separated: runs, files, evals (default: all)")
    parser.add_argument("--soak", action="store_true", help="the long form: hours instead of minutes")
    parser.add_argument("--seed", type=int, help="of every random choice; default: the time, printed")
    parser.add_argument("--only", default="", help="comma-separated ids of rows, e.g. R1,R3")
    parser.add_argument("--out", default="", help="JSON file to keep the rows in")
    arguments = parser.parse_args()
    areas = [area.strip() for area in arguments.area.split(",") if area.strip()]
    if unknown := [area for area in areas if area not in AREAS]:
        parser.error(f"--area: unknown {unknown[0]!r}; known: {', '.join(AREAS)}")
    only = {word.strip() for word in arguments.only.split(",") if word.strip()}
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", file=sys.stderr)

    from fault_table import as_json, markdown

    rows = []
    for area in areas:
        if not (HERE / f"faults_{area}.py").is_file():
            print(f"{area}: no such file yet", file=sys.stderr)
            continue
        for row in importlib.import_module(f"faults_{area}").rows(arguments.soak, seed, only):
            rows.append(row)
            print(f"{row.id}: {row.survived} of {row.trials}: {row.fault}", file=sys.stderr, flush=True)
            if arguments.out:
                Path(arguments.out).write_text(json.dumps({"seed": seed, "soak": arguments.soak, "rows": as_json(rows)}, indent=1, default=int) + "\n")  # int: counts of numpy
    print(markdown(rows))
    missing = only - {row.id for row in rows}
    if missing or not rows:
        print(f"error: no row was made for {', '.join(sorted(missing)) or 'this choice'}", file=sys.stderr)
        return 1
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
