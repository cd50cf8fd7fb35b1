"""Builds a whole corpus with one command from web pages, books, health sites and existing corpora.

    python -m data_prep.corpus examples/corpus.toml --out mmedc --workers 16

In:  a recipe (TOML; `examples/corpus.toml` explains every key). Its paths are relative to the recipe file.
Out: OUT/sources/LANGUAGE-N      documents of each source: filtered (web), read (book, site) or as they are
                                 (corpus)
     OUT/clean, unique, uncontaminated/LANGUAGE    after language identification and masking,
                                 deduplication and decontamination, which the paper lacks
     OUT/streams/LANGUAGE        token streams, and LANGUAGE-held-out
     OUT/corpus.json, OUT/README.md, OUT/report.html    all counts, a dataset card, a page with pictures

Each step is a separate command (`--list` prints them) and runs once. After an interruption, the same command
continues where it stopped (data_prep/pipeline/plan.py).
"""
from __future__ import annotations

from pathlib import Path

from data_prep.pipeline.corpus_card import finish
from data_prep.pipeline.plan import print_commands, run_plan
from data_prep.pipeline.recipe import read_recipe, steps
from mmed.utils.errors import Parser, main_guard


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m data_prep.corpus",
                    description="Build token streams from raw pages, books, sites and corpora.")
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE.toml", help="TOML file; see examples/corpus.toml for its keys")
    add("--out", type=Path, required=True, help="folder for all output")
    add("--workers", type=int, default=1, help="processes; each handles one file at a time (default: 1)")
    add("--list", action="store_true", help="print the commands without running them")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.recipe)
    plan = steps(recipe, str(given.out), given.workers)
    if given.list:
        print_commands(plan)
    else:
        run_plan(plan, given.out)
        finish(recipe, given.out)


if __name__ == "__main__":
    main_guard(main)
