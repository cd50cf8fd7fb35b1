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

from mmed.evaluation.compare import Line, compare_column
from mmed.evaluation.published import NOTES
from mmed.evaluation.summary import COLUMN_TITLES, PROMPT_SETTINGS, SHOT_SETTINGS, WRITING_SETTINGS
from mmed.metrics import mean
from mmed.reporting import plots, read_results
from mmed.reporting.page import fill_page
from mmed.reporting.read_results import SETTINGS, Result, Run
from mmed.reporting.tables import by_definition, percent, summary_table, tables
from mmed.utils.errors import Parser, UsageError, UserError
from mmed.utils.files import atomic_write, read_json
from mmed.utils.journal import facts_that_differ
from mmed.utils.untrusted import reading

# Options that decide which accuracy represents a model, and how it is defined
OPTIONS = ("scoring", "mode", "cot", "equal_options", *PROMPT_SETTINGS, *SHOT_SETTINGS, *WRITING_SETTINGS)


def accuracy_plots(results: Sequence[Result], colours: dict[str, str]) -> list[dict[str, Any]]:
    """Bars by language of results that may share a plot."""
    found = []
    for setting, column in ((setting, column) for setting in SETTINGS for column in COLUMN_TITLES):
        rows = [result for result in results if (result.setting, result.headline) == (setting, column)]
        for group in by_definition(rows, column):
            bars = [(name, 100 * part["chance"],
                     [(colours[result.name], *percent(result.parts[name]["accuracy"][column]).values())
                      for result in group])
                    for name, part in group[0].parts.items()]
            found.append({"setting": SETTINGS[setting], "caption": f"Accuracy, {COLUMN_TITLES[column]}",
                          "bars": plots.bars(bars, f"{SETTINGS[setting]}: accuracy by language")})
    return found


def differences(first: Result, other: Result) -> list[Line]:
    """`other` minus `first` by language and over all; nothing if their accuracies are defined differently."""
    if first.headline != other.headline or len(by_definition([first, other], first.headline)) > 1:
        return []
    pairs = {place: (float(other.hits[place]), float(hit)) for place, hit in first.hits.items()}
    return compare_column(other.headline, pairs)


def comparisons(results: Sequence[Result]) -> list[dict[str, Any]]:
    """In each setting every model against the first; no lines if their accuracies are defined differently."""
    found = []
    for setting, heading in SETTINGS.items():
        group = [result for result in results if result.setting == setting]
        found += [{"setting": heading, "first": group[0].name, "other": other.name,
                   "lines": differences(group[0], other)} for other in group[1:]]
    return found


def general_losses(runs: Sequence[Run], base: str) -> dict[str, float]:
    """Loss on general text: of each run at its end, the mean over its general validation streams; of the base
    model, unless a run has its name, before training in the first run that was validated then."""
    losses: dict[str, float] = {}
    streams = None  # of the first run: only losses on the same text are compared
    for run in runs:
        curves = {name: curve for name, curve in run.validation.items() if name.startswith("general ")}
        streams = streams or curves.keys()
        if curves and curves.keys() != streams:
            raise UserError(f"run {run.name}: validated on {', '.join(curves)}, an earlier run on "
                            f"{', '.join(streams)}; report on them separately")
        if curves:
            before = [loss for (targets, loss), *_ in curves.values() if targets == 0]
            if len(before) == len(curves):
                losses.setdefault(base, mean(before))
            losses[run.name] = mean(curve[-1][1] for curve in curves.values())
    return losses


def forgetting(exams: Sequence[Result], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Accuracy on a general exam (`exams`, the base model's first) and loss on general text, with the change
    against the base model. A run belongs to the result of its name."""
    base = exams[0].name if exams else "base model"
    losses = general_losses(runs, base)
    named: list[tuple[str, Result | None]] = [(exam.name, exam) for exam in exams] or [(base, None)]
    named += [(name, None) for name in losses if name not in dict(named)]
    rows = []
    for name, exam in named:
        lines = {line.group: line for line in differences(exams[0], exam)} if exam else {}
        if exam and not lines:
            ours, theirs = ({"versions": one.facts["versions"]} | {name: one.settings.get(name)
                            for name in OPTIONS} for one in (exam, exams[0]))
            raise UserError(f"{exam.folder}: its accuracy is defined differently from that of "
                            f"{exams[0].folder}: {facts_that_differ(ours, theirs, 'there')}; evaluate both "
                            "with the same options")
        change = losses[name] - losses[base] if {name, base} <= losses.keys() else None
        rows.append({"name": name, "result": exam, "gap": lines.get("macro average"),
                     "loss": losses.get(name), "change": change})
    return rows if len(rows) > 1 else []


def calibrations(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The reliability curve of each result in each language that has option likelihoods."""
    parts = [(result, language, part["calibration"]) for result in results
             for language, part in result.summary["languages"].items() if "calibration" in part]
    return [{"name": f"{result.full_name}, {language}", "ece": part["ece"], "n": part["n"],
             "svg": plots.reliability(part["bins"], f"{result.full_name}: reliability in {language}")}
            for result, language, part in parts]


def run_values(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run with its plot, and (language, validation loss before training, at the end)."""
    colours = plots.colours(name for run in runs for name in run.validation)
    found = []
    for run in runs:
        changes = [(name, points[0][1], points[-1][1]) for name, points in run.validation.items()
                   if len(points) > 1 and points[0][0] == 0]
        curves = [(colours[name], points) for name, points in run.validation.items()]
        legend = {"training": plots.GREY} | {name: colours[name] for name in run.validation}
        found.append({"run": run, "changes": changes, "legend": legend,
                      "svg": plots.curves(run.loss, curves, f"loss of {run.name}")})
    return found


def read_study(given: str) -> dict[str, Any]:
    """agreement.json (or its folder), with a plot for each measure, and each model's mean points."""
    path = Path(given, "agreement.json") if Path(given).is_dir() else Path(given)
    study = read_json(path)
    if not isinstance(study, dict) or study.get("format") != "mmed agreement":
        raise UserError(f"{path}: not a study of `python -m mmed.human_eval.rating agreement`")
    with reading(path):
        points, colours = study["points"], plots.colours(study["models"])
        labels = ["People", *(f"{row['name']} ({row['definition']})" for row in study["measures"])]
        columns = [[point["people"] for point in points], *zip(*(point["values"] for point in points))]
        shades = [colours[point["model"]] for point in points]
        panels = [(label, row, plots.scatter(list(zip(shades, columns[0], column)), row["slope"],
                                             len(colours), f"{label} against people"))
                  for label, row, column in zip(labels[1:], study["measures"], columns[1:])]
        averages = [(label, [mean(value for point, value in zip(points, column) if point["model"] == model)
                             for model in colours]) for label, column in zip(labels, columns)]
    return {**study, "panels": panels, "averages": averages, "model_legend": colours}


def entries(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:600])
            for part in parts for key, value in part.items()]


def page(results: Sequence[Result], runs: Sequence[Run], general: Sequence[Result], **values: Any) -> str:
    """The whole page as text. values: title, tables, questions, corpus, study, notices, published_notes."""
    colours = plots.colours(result.name for result in results)
    sources = [(result.full_name, entries({"folder": str(result.folder)}, result.settings, result.facts,
                                          result.summary["signatures"])) for result in results]
    sources += [(f"Run {run.name}", entries(run.facts | {"config": ""}, run.facts["config"]))
                for run in runs]
    return fill_page(
        Path(__file__).with_name("report.html"), results=results, settings=SETTINGS, legend_entries=colours,
        column_titles=COLUMN_TITLES, plots=accuracy_plots(results, colours), pairs=comparisons(results),
        forgetting=forgetting(general, runs), calibrations=calibrations(results), runs=run_values(runs),
        sources=sources, **values)


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
    runs = [read_results.read_run(argument) for argument in options.runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UsageError(f"--runs: two runs have one name ({', '.join(names)}); give each as NAME=FOLDER")
    found = tables(results, options.published) if results else []
    text = page(results, runs, general, tables=found, title=options.title, notices=options.notice,
                published_notes=NOTES if options.published else (),
                questions=read_results.read_questions(results, options.questions),
                corpus=read_results.read_corpus(options.corpus),
                study=read_study(options.agreement) if options.agreement else None)
    with atomic_write(options.out) as file:
        file.write(text)
    if results:
        print(summary_table(found))
    print(f"\n{options.out}: {len(text.encode()):,} bytes", file=sys.stderr)
    return 0
