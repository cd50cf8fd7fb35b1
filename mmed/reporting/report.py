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
from mmed.evaluation.compare import Line, compare_column
from mmed.evaluation.published import NOTES
from mmed.evaluation.summary import BINS
from mmed.reporting import plots, read_results
from mmed.reporting.agreement import read_study
from mmed.reporting.page import fill_page
from mmed.reporting.read_results import SETTINGS, Corpus, Result, Run
from mmed.reporting.tables import ACCURACY, Table, by_definition, percent, summary_table, tables
from mmed.utils.errors import Parser, UsageError, UserError
from mmed.utils.files import atomic_write


def accuracy_plots(results: Sequence[Result], colours: dict[str, str]) -> list[dict[str, Any]]:
    """Bars by language of results that may share a plot."""
    found = []
    for setting, column in ((setting, column) for setting in SETTINGS for column in ACCURACY):
        rows = [result for result in results if (result.setting, result.headline) == (setting, column)]
        for group in by_definition(rows, column):
            bars = [(name, 100 * part["chance"],
                     [(colours[result.name], *percent(result.parts[name]["accuracy"][column]))
                      for result in group])
                    for name, part in group[0].parts.items()]
            found.append({"setting": SETTINGS[setting], "caption": ACCURACY[column][0],
                          "bars": plots.bars(bars, f"{SETTINGS[setting]}: accuracy by language")})
    return found


def differences(first: Result, other: Result) -> list[Line]:
    """`other` minus `first` by language and over all; nothing if their accuracies are defined differently."""
    if first.headline != other.headline or len(by_definition([first, other], first.headline)) > 1:
        return []
    pairs = {place: (float(other.hits[place]), float(hit)) for place, hit in first.hits.items()}
    return compare_column(other.headline, pairs)


def comparisons(results: Sequence[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """In each setting every model against the first; and those whose accuracy is defined differently."""
    found, skipped = [], []
    for setting, heading in SETTINGS.items():
        rows = [result for result in results if result.setting == setting]
        for other in rows[1:]:
            first = rows[0]
            if lines := differences(first, other):
                found.append({"setting": heading, "first": first.name, "other": other.name, "lines": lines})
            else:
                skipped.append(f"{other.full_name} against {first.name}")
    return found, skipped


def forgetting(exams: Sequence[Result], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Accuracy on a general exam and loss on general text: the base model's, then the others' and the change.

    exams: of one general exam, the base model's first. The loss is the mean over a run's general validation
    streams at its end. A run belongs to the result of its name; the base model's loss is that before training
    in the first run, unless a run has its name.
    """
    base = exams[0].name if exams else "base model"
    losses: dict[str, float] = {}
    streams = None  # of the first run: only losses on the same text are compared
    for run in runs:
        curves = {name: curve for name, curve in run.validation.items() if name.startswith("general ")}
        streams = streams or curves.keys()
        if curves and curves.keys() != streams:
            raise UserError(f"run {run.name}: validated on {', '.join(curves)}, an earlier run on "
                            f"{', '.join(streams)}; report on them separately")
        if curves:
            losses.setdefault(base, metrics.mean(curve[0][1] for curve in curves.values()))
            losses[run.name] = metrics.mean(curve[-1][1] for curve in curves.values())
    named: list[tuple[str, Result | None]] = [(result.name, result) for result in exams]
    named += [(name, None) for name in losses if name not in dict(named)]
    rows = []
    for name, result in named:
        lines = differences(exams[0], result) if result else []
        if result and not lines:
            raise UserError(f"{result.folder}: its accuracy is defined differently from that of "
                            f"{exams[0].folder}; evaluate both with the same options")
        gap = next((line for line in lines if line.group == "macro average"), None)
        change = losses[name] - losses[base] if name in losses else None
        rows.append({"name": name, "result": result, "gap": gap, "loss": losses.get(name), "change": change})
    return rows if len(rows) > 1 else []


def calibrations(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The reliability curve of each result in each language that has option likelihoods."""
    parts = [(result, language, part["calibration"]) for result in results
             for language, part in result.summary["languages"].items() if "calibration" in part]
    return [{"name": f"{result.full_name}, {language}", "ece": part["ece"], "n": part["n"],
             "svg": plots.reliability(part["bins"], BINS, f"{result.full_name}: reliability in {language}")}
            for result, language, part in parts]


def run_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run with its plot, and (language, validation loss before training, at the end)."""
    languages = dict.fromkeys(name for run in runs for name in run.validation)
    colours = {name: plots.colour(index) for index, name in enumerate(languages)}
    found = []
    for run in runs:
        changes = [(name, points[0][1], points[-1][1]) for name, points in run.validation.items()
                   if len(points) > 1 and points[0][0] == 0]
        curves = [(colours[name], points) for name, points in run.validation.items()]
        legend = [(plots.GREY, "training"), *((colours[name], name) for name in run.validation)]
        found.append({"run": run, "changes": changes, "legend": legend,
                      "svg": plots.curves(run.loss, curves, f"loss of {run.name}")})
    return found


def entries(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:600])
            for part in parts for key, value in part.items()]


def page(results: Sequence[Result] = (), runs: Sequence[Run] = (), corpus: Corpus | None = None,
         questions: Sequence[dict] = (), general: Sequence[Result] = (), found: Sequence[Table] = (),
         with_published: bool = False, **values: Any) -> str:
    """The whole page as text. found: the tables of the results; values: title, notices, study."""
    names = list(dict.fromkeys(result.name for result in results))
    colours = {name: plots.colour(index) for index, name in enumerate(names)}
    pairs, skipped = comparisons(results)
    sources = [(result.full_name, entries({"folder": str(result.folder)}, result.settings, result.facts,
                                          result.summary["signatures"])) for result in results]
    sources += [(f"Run {run.name}", entries(run.facts | {"config": ""}, run.facts["config"]))
                for run in runs]
    return fill_page(
        Path(__file__).with_name("report.html"), results=results, settings=SETTINGS, accuracy_titles=ACCURACY,
        tables=found, published_notes=NOTES if with_published else (), plots=accuracy_plots(results, colours),
        pairs=pairs, skipped=skipped, forgetting=forgetting(general, runs),
        legend_entries=[(shade, name) for name, shade in colours.items()], calibrations=calibrations(results),
        runs=run_values(runs), corpus=corpus or Corpus(), questions=questions, sources=sources,
        **{"notices": (), "study": None} | values)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    command = "python -m mmed.reporting"
    parser = Parser(prog=command, description="Write an HTML report on results and training logs.",
                    example=f"{command} zero-shot:base=results/a lora:base=results/b --out report.html")
    parser.add_argument("results", nargs="*", metavar="RESULT",
                        help="result folder of mmed.eval: FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER, where "
                             f"SETTING is {', '.join(SETTINGS)} (default: as in the result)")
    add = parser.add_argument_group("other inputs").add_argument
    add("--general", nargs="+", default=[], metavar="RESULT",
        help="results on a general exam, base model first, to show what training made it forget")
    add("--runs", nargs="+", default=[], metavar="RUN", help="run folders: FOLDER or NAME=FOLDER")
    add("--corpus", nargs="+", default=[], metavar="FOLDER", help="folders with funnel.json or token streams")
    add("--agreement", metavar="FILE", help="agreement.json of `mmed.human_eval.rating`, or its folder")
    add = parser.add_argument_group("page").add_argument
    add("--out", required=True, metavar="FILE.html", help="output page")
    add("--title", default="MMedBench results")
    add("--notice", action="append", default=[], metavar="TEXT", help="line to show at the top (repeatable)")
    add("--published", action="store_true", help="add the paper's numbers")
    add("--questions", type=int, default=50, metavar="N",
        help="questions per language to show with all answers (default 50; 0: none)")
    options = parser.parse_args(arguments)
    if not any([options.results, options.general, options.runs, options.corpus, options.agreement]):
        raise UsageError("nothing to report on; give result folders, --runs, --corpus or --agreement")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    results, general = ([read_results.read_result(argument) for argument in given]
                        for given in (options.results, options.general))
    for group in (results, general):
        read_results.check_together(group)
    questions = read_results.read_predictions(results, options.questions)
    read_results.read_predictions(general, 0)
    runs = [read_results.read_run(argument) for argument in options.runs]
    found = tables(results, options.published) if results else []
    text = page(results, runs, read_results.read_corpus(options.corpus), questions, general, found,
                options.published, title=options.title, notices=options.notice,
                study=read_study(options.agreement) if options.agreement else None)
    with atomic_write(options.out) as file:
        file.write(text)
    if results:
        print(summary_table(found))
    print(f"\n{options.out}: {len(text.encode()):,} bytes", file=sys.stderr)
    return 0
