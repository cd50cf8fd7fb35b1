"""Writes results, training logs and corpus counts as one self-contained HTML page; prints the main tables.

    python -m mmed.reporting results/base results/adapted --runs runs/base --corpus corpus --out report.html

In: result folders of `mmed.eval`, run folders of `mmed/train.py`, folders of `data_prep`, an agreement study
of `mmed.human_eval.rating`. Out: a page that loads nothing; the same input gives the same page, byte for
byte. Order: read (read_results.py), tables (tables.py), plots (plots.py), then report.html.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.calibration import BINS
from mmed.evaluation.published import NOTES
from mmed.evaluation.summary import PART_TITLES
from mmed.reporting import plots, read_results
from mmed.reporting.agreement import read_agreement, study_values
from mmed.reporting.page import fill_page
from mmed.reporting.read_results import SETTINGS, Corpus, Result, Run
from mmed.reporting.tables import ACCURACY, by_definition, percent, summary_table, tables
from mmed.utils.errors import Parser, UsageError
from mmed.utils.files import atomic_write
from mmed.utils.untrusted import reading


def accuracy_plots(results: Sequence[Result], colours: dict[str, str]) -> list[dict[str, Any]]:
    """Bars by language of results that may share a plot."""
    found = []
    for setting, column in ((setting, column) for setting in SETTINGS for column in ACCURACY):
        rows = [result for result in results if (result.setting, result.headline) == (setting, column)]
        for group in by_definition(rows, column):
            parts = {result.name: [*result.summary["languages"].values(), result.summary["macro"]]
                     for result in group}
            bars = [(name, 100 * parts[group[0].name][i]["chance"],
                     [(colours[model], *percent(own[i]["accuracy"][column])) for model, own in parts.items()])
                    for i, name in enumerate([*group[0].summary["languages"], "Macro average"])]
            found.append({"setting": SETTINGS[setting], "caption": ACCURACY[column][0],
                          "bars": plots.bars(bars, f"{SETTINGS[setting]}: accuracy by language")})
    return found


def comparisons(results: Sequence[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """In each setting every model against the first; and those whose accuracy is defined differently."""
    found, skipped = [], []
    for setting, heading in SETTINGS.items():
        rows = [result for result in results if result.setting == setting]
        for other in rows[1:]:
            first = rows[0]
            if first.headline == other.headline and len(by_definition([first, other], first.headline)) == 1:
                found.append({"setting": heading, "first": first.name, "other": other.name,
                              "lines": read_results.differences(first, other)})
            else:
                skipped.append(f"{other.full_name} against {first.name}")
    return found, skipped


def forgetting(exams: Sequence[Result], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Accuracy on a general exam and loss on general text: the base model's, then the others' with the change.

    exams: of one general exam, the base model's first. The loss is the mean over a run's validation streams
    that are called general, at its end. A run belongs to the result of its name; the base model's loss is
    that before training in the first run, unless a run has its name.
    """
    base, losses = exams[0].name if exams else "base model", {}
    for run in runs:
        curves = [curve for name, curve in run.validation.items() if name.startswith("general ")]
        if curves:
            losses.setdefault(base, metrics.mean(curve[0][1] for curve in curves))
            losses[run.name] = metrics.mean(curve[-1][1] for curve in curves)
    named = [(result.name, result) for result in exams]
    named += [(name, None) for name in losses if name not in dict(named)]
    rows = []
    for name, result in named:
        # the macro average, or the only language
        gap = read_results.differences(exams[0], result)[-2:][0]["gap"] if result else None
        change = losses[name] - losses[base] if name in losses else None
        rows.append({"name": name, "result": result, "gap": gap, "loss": losses.get(name), "change": change})
    return rows if len(rows) > 1 else []


def confusion(result: Result) -> dict[str, Any]:
    """How often each letter was answered (columns) where another one is right (rows)."""
    columns = sorted({answer for _, answer in result.letters}, key=lambda answer: (len(answer) > 1, answer))
    rows = {right: [result.letters[right, answer] for answer in columns]
            for right in sorted({right for right, _ in result.letters})}
    return {"name": result.full_name, "columns": columns, "rows": rows}


def calibrations(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The reliability curve of each result in each language that has option likelihoods."""
    parts = [(result, language, part["calibration"]) for result in results
             for language, part in result.summary["languages"].items() if "calibration" in part]
    return [{"name": f"{result.full_name}, {language}", "ece": part["ece"], "n": part["n"],
             "svg": plots.reliability(part["bins"], BINS, f"{result.full_name}: reliability in {language}")}
            for result, language, part in parts]


def kinds_of_questions(results: Sequence[Result]) -> dict[str, dict[str, list[dict]]]:
    """heading -> kind of question -> headline accuracy of each result."""
    found: dict[str, dict[str, list[dict]]] = {}
    for result in results:
        micro = result.summary["micro"]
        kinds = {"Kind": {title: micro[part] for part, title in PART_TITLES.items() if part in micro},
                 "Number of options": micro["by"].get("options", {}), "Topic": micro["by"].get("topic", {})}
        for heading, parts in kinds.items():
            for kind, scores in parts.items():
                found.setdefault(heading, {}).setdefault(kind, []).append(scores[result.headline])
    return found


def run_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run with its plot, and (language, validation loss before training, at the end)."""
    languages = dict.fromkeys(name for run in runs for name in run.validation)
    colours = {name: plots.colour(index) for index, name in enumerate(languages)}
    found = []
    for run in runs:
        changes = [(name, points[0][1], points[-1][1]) for name, points in run.validation.items()
                   if len(points) > 1 and points[0][0] == 0]
        rose = {name for name, before, after in changes if after > before}
        curves = [(colours[name], points, name in rose) for name, points in run.validation.items()]
        svg = plots.curves(run.loss, curves, f"loss of {run.name}") if run.loss or curves else ""
        found.append({"run": run, "changes": changes, "svg": svg,
                      "legend": [(plots.GREY, "training"),
                                 *((colours[name], name) for name in run.validation)]})
    return found


def entries(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:600])
            for part in parts for key, value in part.items()]


def page(results: Sequence[Result], runs: Sequence[Run], corpus: Corpus, questions: Sequence[dict],
         title: str, notices: Sequence[str] = (), with_published: bool = False,
         study: dict[str, Any] | None = None, general: Sequence[Result] = ()) -> str:
    """The whole page as text."""
    colours = {name: plots.colour(index)
               for index, name in enumerate(dict.fromkeys(result.name for result in results))}
    pairs, skipped = comparisons(results)
    sources = [(result.full_name, entries({"folder": str(result.folder)}, result.hashes, result.settings,
                                          result.facts, result.summary["signatures"])) for result in results]
    sources += [(f"Run {run.name}", entries(run.facts | {"config": ""}, run.facts["config"]))
                for run in runs]
    return fill_page(
        Path(__file__).with_name("report.html"), title=title, notices=notices, results=results,
        settings=SETTINGS, accuracy_titles=ACCURACY,
        tables=tables(results, with_published) if results else [],
        published_notes=NOTES if with_published else (), plots=accuracy_plots(results, colours),
        forgetting=forgetting(general, runs), legend_entries=[(shade, name) for name, shade in colours.items()], pairs=pairs, skipped=skipped,
        confusions=[confusion(result) for result in results if result.letters],
        calibrations=calibrations(results), kinds=kinds_of_questions(results), study=study,
        runs=run_values(runs), corpus=corpus, questions=questions, sources=sources)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    command = "python -m mmed.reporting"
    parser = Parser(prog=command, description="Writes results and logs as one HTML page.",
                    example=f"{command} zero-shot:base=results/a lora:base=results/b --out report.html")
    parser.add_argument("results", nargs="*", metavar="RESULT",
                        help="result folder of mmed.eval: FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER, where "
                             f"SETTING is {', '.join(SETTINGS)} (default: as in the result)")
    add = parser.add_argument_group("other inputs").add_argument
    add("--general", nargs="+", default=[], metavar="RESULT",
        help="results on a general exam, the base model's first: what did training make it forget?")
    add("--runs", nargs="+", default=[], metavar="RUN", help="run folders: FOLDER or NAME=FOLDER")
    add("--corpus", nargs="+", default=[], metavar="FOLDER", help="folders with funnel.json and streams")
    add("--agreement", metavar="FILE", help="agreement.json of `mmed.human_eval.rating`, or its folder")
    add = parser.add_argument_group("page").add_argument
    add("--out", required=True, metavar="FILE.html", help="the page to write")
    add("--title", default="MMedBench results")
    add("--notice", action="append", default=[], metavar="TEXT", help="a line at the top; may be repeated")
    add("--published", action="store_true", help="add the paper's numbers")
    add("--questions", type=int, default=50, metavar="N",
        help="questions of each language to show with all answers (default 50; 0: none)")
    options = parser.parse_args(arguments)
    if not any([options.results, options.general, options.runs, options.corpus, options.agreement]):
        raise UsageError("nothing to report on; give result folders, --runs, --corpus or --agreement")
    if Path(options.out).is_dir():
        raise UsageError(f"--out {options.out}: is a folder; give a file name such as report.html")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    results = [read_results.read_result(argument) for argument in options.results]
    read_results.check_together(results)
    questions = read_results.read_predictions(results, options.questions)
    general = [read_results.read_result(argument) for argument in options.general]
    read_results.check_together(general)
    read_results.read_predictions(general, 0)
    runs = [read_results.read_run(argument) for argument in options.runs]
    corpus = read_results.read_corpus(options.corpus)
    study = None
    if options.agreement:
        with reading(options.agreement):
            study = study_values(read_agreement(options.agreement))
    text = page(results, runs, corpus, questions, options.title, options.notice, options.published, study,
                general)
    with atomic_write(options.out) as file:
        file.write(text)
    if results:
        print(summary_table(results, options.published))
    print(f"\n{options.out}: {len(text.encode()):,} bytes", file=sys.stderr)
    return 0
