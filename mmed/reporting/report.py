"""Results, training logs and corpus counts -> one self-contained HTML page, and the main tables in the terminal.

    python -m mmed.reporting results/base results/adapted --runs runs/base runs/adapted --corpus corpus --out report.html
    python -m mmed.reporting zero-shot:base=results/a lora:base=results/b full:"base + corpus"=results/c --published --out report.html

In: result folders of `mmed.eval`, run folders of `mmed/train.py`, folders with the funnels and token streams of `data_prep`, a study of
`mmed.human_eval.rating`.
Out: a page that needs nothing but itself. Order: read and check (mmed/reporting/read_results.py) -> tables (mmed/reporting/tables.py) and plots
(mmed/reporting/plots.py) -> sections (mmed/reporting/sections.py) -> mmed/reporting/report.html, the frame with style and script.

What comes from a file can only ever be text: it is escaped, or goes as JSON to a script that writes text nodes (mmed/reporting/page.py). The same
input gives the same page to the byte.
"""
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmed.reporting.agreement_section import agreement_section, read_agreement
from mmed.reporting.page import fill_page
from mmed.reporting.plots import escape
from mmed.reporting.read_results import (
    SETTINGS,
    Corpus,
    Questions,
    Result,
    Run,
    check_together,
    read_corpus,
    read_predictions,
    read_result,
    read_run,
)
from mmed.reporting.sections import (
    answers_section,
    bars_section,
    corpus_section,
    difference_section,
    full_name,
    kinds_section,
    questions_data,
    questions_section,
    results_section,
    runs_section,
    sources_section,
)
from mmed.reporting.tables import summary_table
from mmed.utils.errors import Parser, UsageError
from mmed.utils.files import atomic_write
from mmed.utils.untrusted import as_name, plain

MEDICAL_LINE = ("A research report on language models. It is not medical advice: questions, answers and rationales may be wrong, and nothing here "
                "may be used for the care of a person.")


# --------------------------------------------------------------------------------------------------------------- header

def header(title: str, notices: Sequence[str], results: Sequence[Result], sections: Sequence[tuple[str, str]]) -> str:
    banner = "".join(f'<p class="notice"><strong>Note.</strong> {escape(plain(words, 2000))}</p>' for words in notices)
    links = "".join(f'<li><a href="#{name}">{escape(words)}</a></li>' for name, words in sections)
    lead = f'<p class="lead">{escape(lead_line(results))}</p>' if results else ""
    return (f'<header><h1>{escape(title)}</h1>{lead}{banner}<p class="muted">{escape(MEDICAL_LINE)}</p>'
            f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n')


def lead_line(results: Sequence[Result]) -> str:
    """How much was asked, and the best answer to it, in a sentence or two."""
    first = results[0].summary
    languages = list(first["languages"])
    listed = languages[0] if len(languages) == 1 else ", ".join(languages[:-1]) + " and " + languages[-1]
    total = sum(part["n"] for part in first["languages"].values())
    lead = f"{len(results)} {'result' if len(results) == 1 else 'results'} on {total:,} exam questions in {listed}."
    best = max((result for result in results if result.headline == results[0].headline),
               key=lambda result: result.summary["macro"]["accuracy"][result.headline]["value"])
    score, chance = best.summary["macro"]["accuracy"][best.headline], best.summary["macro"]["chance"]
    return f"{lead} Highest macro average: {100 * score['value']:.1f} %, {full_name(best)}; guessing gives {100 * chance:.1f} %."


# ------------------------------------------------------------------------------------------------------------------ page

def page(results: Sequence[Result], runs: Sequence[Run], corpus: Corpus, questions: Questions, title: str, notices: Sequence[str],
         with_published: bool, study: dict | None = None) -> str:
    """The whole page as text."""
    of_results = [results_section(results, with_published), bars_section(results), difference_section(results), answers_section(results),
                  kinds_section(results)] if results else []
    found = [*of_results, agreement_section(study), runs_section(runs), corpus_section(corpus),
             *([questions_section(results, questions), sources_section(results, runs)] if results else [])]
    found = [part for part in found if part]
    sections = [(match[1], match[2]) for match in (re.match(r'<section id="(\w+)">\n<h2>([^<]*)</h2>', part) for part in found)]
    body = header(title, notices, results, sections) + "<main>\n" + "".join(found) + "</main>\n<footer>Made by mmed.reporting. "
    body += "This page is complete in itself and loads nothing.</footer>"
    return fill_page(Path(__file__).with_name("report.html"), title=title, body=body, data=questions_data(results, questions))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.reporting", description="Results and logs as one HTML page.")
    parser.add_argument("results", nargs="*", metavar="RESULT", help="result folder of mmed.eval: FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER, where "
                        f"SETTING is {', '.join(SETTINGS)} (default: from the result)")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="run folders of mmed/train.py: FOLDER or NAME=FOLDER")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="FOLDER", help="folders with funnel.json files and token streams, at any depth")
    parser.add_argument("--agreement", metavar="FILE", help="agreement.json of `python -m mmed.human_eval.rating agreement`, or its folder")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the page to write")
    parser.add_argument("--title", default="MMedBench results")
    parser.add_argument("--notice", action="append", default=[], metavar="TEXT", help="a line at the top, e.g. that the data is synthetic; may be repeated")
    parser.add_argument("--published", action="store_true", help="show the paper's rows beside ours")
    parser.add_argument("--questions", type=int, default=50, metavar="N", help="questions of each language to browse (default 50; 0: none)")
    options = parser.parse_args(arguments)
    if options.questions < 0:
        raise UsageError("--questions must be 0 or more")
    if not (options.results or options.runs or options.corpus or options.agreement):
        raise UsageError("nothing to report on; give result folders, --runs, --corpus or --agreement")
    if Path(options.out).is_dir():
        raise UsageError(f"--out {options.out}: is a folder; give the name of the page, such as {Path(options.out) / 'report.html'}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    results = [read_result(argument) for argument in options.results]
    check_together(results)
    runs = [read_run(argument) for argument in options.runs]
    corpus = read_corpus(options.corpus)
    questions = read_predictions(results, options.questions)
    text = page(results, runs, corpus, questions, as_name(options.title, 200), options.notice, options.published,
                read_agreement(options.agreement) if options.agreement else None)
    with atomic_write(options.out) as file:
        file.write(text)
    if results:
        print(summary_table(results, options.published))
    print(f"\n{options.out}: {len(text.encode()):,} bytes", file=sys.stderr)
    return 0
