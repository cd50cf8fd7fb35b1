"""Writes results, training logs and corpus counts as one self-contained HTML page, and prints the main
tables.

    python -m mmed.reporting results/base results/adapted --runs runs/base runs/adapted --corpus corpus \
        --out report.html
    python -m mmed.reporting zero-shot:base=results/a lora:base=results/b full:corpus=results/c \
        --published --out r.html

In: result folders of `mmed.eval`, run folders of `mmed/train.py`, folders of `data_prep`, an agreement study
of `mmed.human_eval.rating`. Out: a page that loads nothing; the same input gives the same page, byte for
byte. Order: read (read_results.py), tables (tables.py), plots (plots.py), then report.html puts them
together.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed.evaluation.published import NOTES
from mmed.metrics import wilson_interval
from mmed.reporting import plots
from mmed.reporting.agreement import read_agreement, study_values
from mmed.reporting.page import fill_page
from mmed.reporting.read_results import (
    SETTINGS,
    Corpus,
    Result,
    Run,
    check_together,
    differences,
    read_corpus,
    read_predictions,
    read_result,
    read_run,
)
from mmed.reporting.tables import ACCURACY, by_definition, summary_table, tables
from mmed.utils.errors import Parser, UsageError
from mmed.utils.files import atomic_write

LETTERS = 8  # rows and columns of a confusion matrix


def lead(results: Sequence[Result]) -> str:
    """How much was asked, and the best score, in two sentences."""
    summary, headline = results[0].summary, results[0].headline
    total = sum(part["n"] for part in summary["languages"].values())
    count = f"{len(results)} {'result' if len(results) == 1 else 'results'}"
    group = by_definition([result for result in results if result.headline == headline], headline)[0]
    best = max(group, key=lambda result: result.summary["macro"]["accuracy"][headline]["value"])
    score, chance = best.summary["macro"]["accuracy"][headline]["value"], best.summary["macro"]["chance"]
    return (f"{count} on {total:,} exam questions in {', '.join(summary['languages'])}. Highest macro "
            f"average "
            f"({ACCURACY[headline][0].lower()}): {100 * score:.1f} %, {best.full_name}; guessing gives "
            f"{100 * chance:.1f} %.")


def headline_groups(results: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """(setting, headline, results) whose headline accuracies may share a plot or a test."""
    return [(setting, headline, group) for setting in SETTINGS for headline in ACCURACY
            for group in by_definition([r for r in results if (r.setting, r.headline) == (setting, headline)],
                                       headline)]


def accuracy_plots(results: Sequence[Result], colours: dict[str, str]) -> dict[str,
                                                                               list[tuple[str, str, Any]]]:
    """Bars, and radar plots where there are at least three languages: [(setting, definition, svg)]."""
    drawn: dict[str, list] = {"bars": [], "profiles": []}
    for setting, headline, group in headline_groups(results):
        summary = group[0].summary
        parts = [*summary["languages"], "Macro average"]
        chance = [100 * part["chance"] for part in (*summary["languages"].values(), summary["macro"])]
        scores = [[part["accuracy"][headline]
                   for part in (*r.summary["languages"].values(), r.summary["macro"])]
                  for r in group]
        rows = [(name, chance[place], [
            (colours[result.name], *(None if own[place][end] is None else 100 * own[place][end]
                                     for end in ("value", "low", "high"))) for result,
                                     own in zip(group, scores)])
            for place, name in enumerate(parts)]
        caption = SETTINGS[setting], ACCURACY[headline][0]
        drawn["bars"].append((*caption, plots.bars(rows, f"{caption[0]}: accuracy by language")))
        if len(parts) > 3:
            series = [(colours[result.name], [100 * score["value"] for score in own[:-1]])
                      for result, own in zip(group, scores)]
            drawing = plots.profile(parts[:-1], series, chance[:-1],
                                    f"{caption[0]}: profile over the languages")
            drawn["profiles"].append((*caption, drawing))
    return drawn


def comparisons(results: Sequence[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """In each setting every model against the first; and the names of those whose accuracy is defined
    differently.
    """
    found, skipped = [], []
    for setting, heading in SETTINGS.items():
        rows = [result for result in results if result.setting == setting]
        for other in rows[1:]:
            if (other.headline == rows[0].headline
                    and len(by_definition([rows[0], other], other.headline)) == 1):
                found.append({"setting": heading, "first": rows[0].name, "other": other.name,
                              "lines": differences(rows[0], other)})
            else:
                skipped.append(f"{other.full_name} against {rows[0].name}")
    return found, skipped


def confusion(result: Result) -> dict[str, Any]:
    """Right letters against answered ones, and the share of each cell in its row."""
    rights = sorted({right for right, _ in result.letters})[:LETTERS]
    answered = {answer for _, answer in result.letters}
    columns = sorted({*rights, *sorted(answered - {"several", "none"})[:LETTERS]})
    columns += [kind for kind in ("several", "none") if kind in answered]
    rows = []
    for right in rights:
        counts = [result.letters[right, answer] for answer in columns]
        total = sum(n for (own, _), n in result.letters.items() if own == right)
        rows.append((right, [(answer == right, n, n / total) for answer, n in zip(columns, counts)]))
    return {"name": result.full_name, "columns": columns, "rows": rows}


def kinds_of_questions(results: Sequence[Result]) -> dict[str, list[tuple[Any, int, list[tuple]]]]:
    """heading -> [(kind, n, [(accuracy, low, high) of each result])], where there is more than one kind."""
    found: dict[str, list] = {}
    for heading in dict.fromkeys(heading for result in results for heading, _, _ in result.kinds):
        kinds = sorted({kind for own, kind, _ in results[0].kinds if own == heading}, key=str)
        for kind in kinds if len(kinds) > 1 else ():
            cells, n = [], 0
            for result in results:
                right = result.kinds[heading, kind, True]
                n = right + result.kinds[heading, kind, False]
                cells.append((100 * right / n, *(100 * end for end in wilson_interval(right, n))))
            found.setdefault(heading, []).append((kind, n, cells))
    return found


def run_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    languages = dict.fromkeys(name for run in runs for name in run.validation)
    colours = {name: plots.colour(index) for index, name in enumerate(languages)}
    found = []
    for run in runs:
        changes = [(name, points[0][1], points[-1][1]) for name, points in run.validation.items()
                   if len(points) > 1 and points[0][0] == 0]
        rose = {name for name, before, after in changes if after > before}
        curves = [(colours[name], points, name in rose) for name, points in run.validation.items()]
        config = run.facts["config"]
        facts = [run.facts.get("recipe") or config.get("task") or "",
                 f"{run.facts.get('steps')} steps planned",
                 f"{run.loss[-1][0]:,.0f} target tokens, last loss {run.loss[-1][1]:.3f}" if run.loss else "",
                 f"{run.tokens_per_second:,.0f} tokens/s" if run.tokens_per_second else "",
                 f"{run.facts.get('world_size')} × {run.facts.get('device')}",
                 "" if run.finished else "not finished", *run.notes]
        svg = plots.curves(run.loss, curves, f"loss of {run.name}") if run.loss or curves else ""
        found.append({"name": run.name, "svg": svg, "facts": " · ".join(filter(None, map(str, facts))),
                      "changes": changes, "legend": [(plots.GREY, "training"),
                                                     *((colours[name], name) for name in run.validation)],
                      "entries": _entries(run.facts | {"config": None}, config)})
    return found


def corpus_values(corpus: Corpus) -> list[dict[str, Any]]:
    """The steps with their reasons; the reasons beyond the first eight are summed up."""
    found = []
    for step, places in corpus.steps.items():
        reasons = sum((counts["dropped"] for _, counts in places), Counter()).most_common()
        rest = sum(n for _, n in reasons[8:])
        found.append({"step": step, "places": places, "in": sum(counts["in"] for _, counts in places),
                      "out": sum(counts["out"] for _, counts in places),
                      "reasons": reasons[:8] + ([(f"{len(reasons) - 8} other reasons", rest)] if rest
                                                else [])})
    return found


def _entries(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:600])
            for part in parts for key, value in part.items()]


def page(results: Sequence[Result], runs: Sequence[Run], corpus: Corpus, questions: Sequence[dict],
         title: str,
         notices: Sequence[str] = (), with_published: bool = False,
         study: dict[str, Any] | None = None) -> str:
    """The whole page as text."""
    names = dict.fromkeys(result.name for result in results)
    colours = {name: plots.colour(index) for index, name in enumerate(names)}
    pairs, skipped = comparisons(results)
    sources = [(result.full_name, _entries({"folder": str(result.folder)}, result.hashes, result.settings,
                                           result.facts,
                                           result.summary["signatures"])) for result in results]
    return fill_page(
        Path(__file__).with_name("report.html"), title=title, notices=notices, results=results,
        settings=SETTINGS,
        lead=lead(results) if results else "", tables=tables(results, with_published) if results else [],
        published_notes=NOTES if with_published else (), accuracy=accuracy_plots(results, colours),
        legend_entries=[(shade, name) for name, shade in colours.items()], pairs=pairs, skipped=skipped,
        confusions=[confusion(result) for result in results if result.letters],
        kinds=kinds_of_questions(results),
        study=study_values(study) if study else None, runs=run_values(runs), steps=corpus_values(corpus),
        streams=corpus.streams, questions=questions, asked=len(results[0].hits) if results else 0,
        sources=sources)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.reporting", description="Writes results and logs as one HTML page.")
    parser.add_argument("results", nargs="*", metavar="RESULT",
                        help="result folder of mmed.eval: FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER, "
                             "where SETTING is "
                             f"{', '.join(SETTINGS)} (default: as in the result)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN",
                        help="run folders: FOLDER or NAME=FOLDER")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="FOLDER",
                        help="folders with funnel.json files and token streams, at any depth")
    parser.add_argument("--agreement", metavar="FILE",
                        help="agreement.json of `mmed.human_eval.rating`, or its folder")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--title", default="MMedBench results")
    parser.add_argument("--notice", action="append", default=[], metavar="TEXT",
                        help="a line at the top, such as that the data is synthetic; may be repeated")
    parser.add_argument("--published", action="store_true", help="add the paper's numbers")
    parser.add_argument("--questions", type=int, default=50, metavar="N",
                        help="questions of each language to show with all answers (default 50; 0: none)")
    options = parser.parse_args(arguments)
    if options.questions < 0:
        raise UsageError("--questions must be 0 or more")
    if not (options.results or options.runs or options.corpus or options.agreement):
        raise UsageError("nothing to report on; give result folders, --runs, --corpus or --agreement")
    if Path(options.out).is_dir():
        raise UsageError(f"--out {options.out}: is a folder; give a file name such as "
                         f"{Path(options.out) / 'report.html'}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    results = [read_result(argument) for argument in options.results]
    check_together(results)
    questions = read_predictions(results, options.questions)
    runs = [read_run(argument) for argument in options.runs]
    study = read_agreement(options.agreement) if options.agreement else None
    text = page(results, runs, read_corpus(options.corpus), questions, options.title, options.notice,
                options.published, study)
    with atomic_write(options.out) as file:
        file.write(text)
    if results:
        print(summary_table(results, options.published))
    print(f"\n{options.out}: {len(text.encode()):,} bytes", file=sys.stderr)
    return 0
