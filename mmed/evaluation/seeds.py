"""How much does a result depend on the seed? Mean and spread of results that differ only in it.

    python -m mmed.evaluation.seeds results/seed0 results/seed1 results/seed2

Models may differ if they come from training runs that differ only in `seed`: then run.json must be beside
the model folder.
"""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMN_TITLES, aligned
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import read_json
from mmed.utils.journal import facts_that_differ
from mmed.utils.untrusted import reading


def seeds_and_facts(own: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """([seed of the evaluation, of the training], the facts that must be equal)."""
    facts, settings = own["facts"], own["settings"]
    path = Path(settings.get("adapter") or settings.get("model") or "").resolve().parent / "run.json"
    equal = {name: value for name, value in facts.items() if name not in ("seed", "model")}
    if not path.is_file():
        return [facts["seed"]], equal | {"model (no run.json beside it)": facts["model"]}
    with reading(path):
        run = read_json(path)
        equal |= {f"training: {name}": value for name, value in run["config"].items()
                  if name not in ("seed", "out", "resume")}
        equal |= {"training data": run.get("data"), "base model": run.get("model")}
        return [facts["seed"], run["config"].get("seed")], equal


def values_of(summary: dict[str, Any]) -> dict[tuple[str, str], float]:
    """(column, group) -> mean, as a share; groups: languages and averages."""
    parts = summary["languages"] | {f"{name} average": summary[name] for name in ("macro", "micro")}
    values = {(COLUMN_TITLES.get(column, column), group): score["value"] for group, part in parts.items()
              for kind in ("accuracy", "text") for column, score in part[kind].items()}
    return values | {(f"{COLUMN_TITLES[column]}, options in all orders", group): own["accuracy"]["value"]
                     for group, columns in summary.get("permutations", {}).items()
                     for column, own in columns.items()}


def spread(summaries: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Column -> group -> mean, standard deviation, lowest and highest; {} for a column that not all have."""
    found: dict[str, dict[str, list[float]]] = {}
    sides = list(map(values_of, summaries))
    for column, group in dict.fromkeys(chain.from_iterable(sides)):
        values = [side[column, group] for side in sides if (column, group) in side]
        groups = found.setdefault(column, {})
        if len(values) == len(sides):
            groups[group] = [statistics.fmean(values), statistics.stdev(values), min(values), max(values)]
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
    drawn, facts = zip(*map(seeds_and_facts, results))
    for number, folder in enumerate(folders):
        differs = facts_that_differ(facts[0], facts[number])
        if drawn[number] in drawn[:number]:
            differs = differs or "nothing, not even the seed"
        if differs:
            raise UserError(f"{folder}: differs from {folders[0]} in {differs}; "
                            "give results that differ only in the seed")
    print(f"{len(results)} seeds: mean, standard deviation (n - 1) and range")
    for column, groups in spread([own["summary"] for own in results]).items():
        rows = [[f"{column}, x 100", "mean", "sd", "low", "high"]]
        rows += [[group, *(f"{100 * value:.2f}" for value in values)] for group, values in groups.items()]
        print(f"\n{aligned(rows) if groups else f'left out: {column}: only some of the results have it'}")
    return 0


if __name__ == "__main__":
    main_guard(main)
