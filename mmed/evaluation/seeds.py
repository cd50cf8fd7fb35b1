"""How much does a result depend on the seed? Mean and spread of results that differ only in it.

    python -m mmed.evaluation.seeds results/seed0 results/seed1 results/seed2

Models may differ if they come from training runs that differ only in `seed`: then run.json must be beside
the model folder.
"""
from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import aligned
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import read_json
from mmed.utils.journal import facts_that_differ
from mmed.utils.untrusted import reading


def all_but_seed(own: dict[str, Any]) -> dict[str, Any]:
    """The facts that must be equal: evaluation settings, and the model's training options or its hash."""
    facts, settings = own["facts"], own["settings"]
    path = Path(settings.get("adapter") or settings.get("model") or "").resolve().parent / "run.json"
    equal = {name: value for name, value in facts.items() if name not in ("seed", "model")}
    if not path.is_file():
        return equal | {"model (no run.json beside it)": facts["model"]}
    with reading(path):
        config = read_json(path)["config"].items()
    return equal | {f"training: {name}": value for name, value in config
                    if name not in ("seed", "out", "resume")}


def spread(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Column -> group (language or average) -> mean, standard deviation, lowest and highest, as shares."""
    found = defaultdict(dict)
    parts = [summary["languages"] | {f"{name} average": summary[name] for name in ("macro", "micro")}
             for summary in summaries]
    for group, part in parts[0].items():
        for kind in ("accuracy", "text"):
            for column in part[kind]:
                values = [one[group][kind][column]["value"] for one in parts]
                found[column][group] = [statistics.fmean(values), statistics.stdev(values),
                                        min(values), max(values)]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.seeds",
                    description="Mean and spread of results that differ only in the seed.",
                    example="python -m mmed.evaluation.seeds results/seed0 results/seed1")
    parser.add_argument("results", nargs="+", metavar="RESULT_FOLDER",
                        help="two or more results of mmed.eval")
    folders = parser.parse_args(arguments).results
    if len(folders) < 2:
        raise UsageError("give two or more result folders")
    results = [load_results(folder)[0] for folder in folders]
    drawn = [(own["facts"]["seed"], own["facts"]["model"]) for own in results]
    for number, (folder, own) in enumerate(zip(folders, results)):
        differs = facts_that_differ(all_but_seed(results[0]), all_but_seed(own))
        if drawn[number] in drawn[:number]:
            differs = differs or "nothing, not even the seed"
        if differs:
            raise UserError(f"{folder}: differs from {folders[0]} in {differs}; "
                            "give results that differ only in the seed")
    print(f"{len(results)} seeds: mean, standard deviation (n - 1) and range")
    for column, groups in spread([own["summary"] for own in results]).items():
        rows = [[f"{column}, x 100", "mean", "sd", "low", "high"]]
        rows += [[group, *(f"{100 * value:.2f}" for value in values)] for group, values in groups.items()]
        print(f"\n{aligned(rows)}")
    return 0


if __name__ == "__main__":
    main_guard(main)
