"""The tables of a report, shown in the terminal (`summary_table`) and on the page.

Each table has one metric of one definition: rows are models under their setting, columns are languages and
their macro average. Results whose signatures differ go into different tables, and so do the paper's numbers
unless they were computed in the same way.
"""
from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmed.evaluation.published import ENGLISH_SOURCES, PublishedRow, published, published_english
from mmed.evaluation.summary import COLUMNS, aligned, shown_metrics
from mmed.reporting.read_results import SETTINGS, Result

ACCURACY = {  # column of the summary: (title, what is counted)
    "answer": ("Accuracy, answer only",
               "The model writes an answer; its letters must be exactly the right ones."),
    "rationale": ("Accuracy, rationale before the answer",
                  "The model writes a rationale, then an answer; its letters must be exactly right."),
    "loglikelihood": ("Accuracy by log-likelihood of the options",
                      "The model writes nothing: its answer is the letter (or set of letters) that is "
                      "likeliest in the answer, by the sum over its tokens."),
    "loglikelihood_norm": ("Accuracy by log-likelihood per token of the options",
                           "As by log-likelihood, with the sum divided by the number of tokens."),
    "option_text": ("Accuracy by log-likelihood per token of the options' texts",
                    "The options are not listed: the answer is the text that is likeliest after "
                    "“Question: … Answer:”, by the mean over its tokens."),
    "option_text_pmi": ("Accuracy by PMI of the options' texts",
                        "As by the options' texts, by the sum minus that of the text after “Answer:” alone."),
    "official": ("Accuracy, official scorer",
                 "The answer-only text, scored by the published script's string comparison, as the paper's "
                 "numbers were."),
}


@dataclass
class Cell:
    value: float
    low: float | None = None
    high: float | None = None
    best: bool = False  # of our rows in its column
    at_chance: bool = False  # the interval contains the chance level


@dataclass
class Row:
    name: str
    cells: list[Cell | None]
    kind: str = "ours"  # ours, published, chance


@dataclass
class Table:
    title: str
    note: str
    columns: list[str]
    groups: dict[str, list[Row]]  # heading -> rows
    sizes: list[int | None]  # items behind each column
    unit: str = "%"
    decimals: int = 1
    main: bool = False  # shown in the terminal and unfolded on the page


def by_definition(results: Sequence[Result], column: str) -> list[list[Result]]:
    """Groups of results whose numbers in `column` are comparable: same signatures, same choice of items."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        summary = result.summary
        if column in summary["micro"]["accuracy"] or column in summary["micro"]["text"]:
            items = "" if column in COLUMNS else summary["text_items"]
            definition = json.dumps([summary["signatures"].get(column), items], sort_keys=True)
            groups.setdefault(definition, []).append(result)
    return list(groups.values())


def tables(results: Sequence[Result], with_published: bool = False) -> list[Table]:
    """All tables: accuracies, accuracies by source, scores of rationales."""
    found = [_accuracy_table(group, column, with_published)
             for column in COLUMNS for group in by_definition(results, column)]
    if with_published and not by_definition(results, "official"):
        found.append(_published_table("accuracy", "the official scorer"))
    return found + _source_tables(results, with_published) + _text_tables(results, with_published)


def _accuracy_table(results: Sequence[Result], column: str, with_published: bool) -> Table:
    summary = results[0].summary
    chance = [part["chance"] for part in (*summary["languages"].values(), summary["macro"])]
    table = _language_table(*ACCURACY[column], results, lambda part: part["accuracy"].get(column), chance)
    table.main = column not in ("loglikelihood_norm", "official")
    if with_published and column == "official":
        table.main = True
        _add_published(table, "accuracy")
    table.groups[""] = [Row("Chance level", [Cell(100 * level) for level in chance], "chance")]
    return table


def _source_tables(results: Sequence[Result], with_published: bool) -> list[Table]:
    """Accuracy by source, where a language has several, such as the paper's English benchmarks."""
    by_source = [result.summary["micro"]["by"].get("source", {}) for result in results]
    names = list(dict.fromkeys(name for sources in by_source for name in sources))
    if len(names) <= len(results[0].summary["languages"]):
        return []
    names.sort(key=lambda name: ENGLISH_SOURCES.index(name) if name in ENGLISH_SOURCES else len(names))

    def scores(result: Result, column: str) -> list[dict | None]:
        sources = result.summary["micro"]["by"]["source"]
        return [*(sources.get(name, {}).get(column) for name in names), result.summary["source_mean"][column]]

    found = []
    for column in COLUMNS:
        for group in by_definition(results, column):
            title, note = ACCURACY[column]
            table = _table(f"{title}, by source", f"{note} The last column is the plain mean of the sources.",
                           [*names, "Mean of sources"], group, [scores(result, column) for result in group])
            table.main = column == "answer"
            found.append(table)
    if with_published and len(set(names) & set(ENGLISH_SOURCES)) > 2:
        note = ("The paper's numbers. It does not say how each model was prompted and scored, so they are "
                "apart from ours.")
        rows = [_published_row(row, ENGLISH_SOURCES) for row in published_english()]
        found.append(Table("Published accuracy on the English benchmarks", note,
                           [*ENGLISH_SOURCES, "Mean of sources"], {"Setting not stated": rows}, [None] * 10,
                           decimals=2, main=True))
    return found


def _text_tables(results: Sequence[Result], with_published: bool) -> list[Table]:
    """BLEU, ROUGE and other scores of rationales."""
    found, missing = [], {"BLEU-1", "ROUGE-1"} if with_published else set()
    words_of = {result.full_name: result.settings.get("words") or "default" for result in results}
    shown = [shown_metrics(result.summary, words_of[result.full_name]) for result in results]
    for metric in dict.fromkeys(metric for part in shown for metric in part):
        name, _, definition = metric.partition("|")
        for group in by_definition(results, metric):
            summary, words = group[0].summary, words_of[group[0].full_name]
            absent = [language for language, part in summary["languages"].items()
                      if metric not in part["text"]]
            items = summary["text_items"].replace("human_check_passed", "those that passed the human check")
            note = f"Definition: {definition}; word splitting: {words}; rationales scored: {items}."
            if absent:
                note += f" No rationale was scored in {', '.join(absent)}; the macro average omits it."
            table = _language_table(f"{name} of rationales", note, group,
                                    lambda part, metric=metric: part["text"].get(metric))
            table.unit, table.decimals, table.main = "× 100", 2, name in ("BLEU-1", "ROUGE-1")
            if name in missing and words == "official":
                _add_published(table, name)
                missing.discard(name)
            found.append(table)
    return found + [_published_table(name, "the official word splitting (--words official)")
                    for name in sorted(missing)]


def _language_table(title: str, note: str, results: Sequence[Result], pick: Callable[[dict], dict | None],
                    chance: Sequence[float] | None = None) -> Table:
    """`pick`: the score of a part of a summary."""
    scores = [[pick(part) for part in (*result.summary["languages"].values(), result.summary["macro"])]
              for result in results]
    return _table(title, note, [*results[0].summary["languages"], "Macro average"], results, scores, chance)


def _table(title: str, note: str, columns: list[str], results: Sequence[Result],
           scores: Sequence[Sequence[dict | None]], chance: Sequence[float] | None = None) -> Table:
    """scores: of each result in each column; chance: levels of the columns."""
    cells = [[_cell(score, level) for score, level in zip(row, chance or itertools.repeat(None))]
             for row in scores]
    for column in zip(*cells) if len(results) > 1 else ():
        top = max((cell.value for cell in column if cell), default=0.0)
        for cell in column:
            if cell:
                cell.best = cell.value == top
    rows = [(SETTINGS[result.setting], Row(result.name, own)) for result, own in zip(results, cells)]
    groups = {heading: [row for own, row in rows if own == heading] for heading in SETTINGS.values()}
    sizes = [*((score or {}).get("n") for score in scores[0][:-1]), None]
    return Table(title, note, columns, {heading: rows for heading, rows in groups.items() if rows}, sizes)


def _cell(score: dict | None, chance: float | None = None) -> Cell | None:
    if score is None:
        return None
    value, low, high = percent(score)
    has_interval = chance is not None and low is not None and high is not None
    return Cell(value, low, high, at_chance=has_interval and low <= 100 * chance <= high)


def percent(score: dict) -> list[float | None]:
    """[value, low, high] of a score, times 100."""
    return [None if score[end] is None else 100 * score[end] for end in ("value", "low", "high")]


# ---- the paper's numbers -----------------------------------------------------------------------------------

def _published_row(row: PublishedRow, columns: Sequence[str]) -> Row:
    """The paper's average is shown only beside the languages (or sources) that it averages."""
    cells = [Cell(row.cells[name]) if name in row.cells else None for name in columns]
    complete = set(row.cells) == set(columns) and row.average == row.average
    return Row(row.name, [*cells, Cell(row.average) if complete else None], "published")


def _add_published(table: Table, metric: str) -> None:
    """Adds the paper's rows under the headings of their settings, after ours."""
    rows = published(metric)
    ours, table.groups = table.groups, {}
    for setting, heading in SETTINGS.items():
        theirs = [_published_row(row, table.columns[:-1]) for row in rows if row.setting == setting]
        if heading in ours or theirs:
            table.groups[heading] = [*ours.get(heading, []), *theirs]


def _published_table(metric: str, definition: str) -> Table:
    """The paper's numbers alone, because ours are defined differently."""
    languages = list(published(metric)[0].cells)
    note = f"The paper's numbers, computed with {definition}. They are not comparable with the numbers above."
    table = Table(f"Published {metric}", note, [*languages, "Macro average"], {}, [None] * 7, decimals=2)
    _add_published(table, metric)
    return table


# ---- terminal ----------------------------------------------------------------------------------------------

def summary_table(results: Sequence[Result], with_published: bool = False) -> str:
    """The main tables as aligned text."""
    blocks = []
    for table in tables(results, with_published):
        if table.main:
            lines = [[f"{table.title}, {table.unit}", *table.columns]]
            for heading, rows in table.groups.items():
                lines += [[heading, *[""] * len(table.columns)]] if heading else []
                for row in rows:
                    name = f"  {row.name} (published)" if row.kind == "published" else f"  {row.name}"
                    lines.append([name, *(cell_text(cell, table.decimals, row.kind) for cell in row.cells)])
            blocks.append(aligned(lines))
    key = "* best of its column   ~ interval contains the chance level   [95 % interval]"
    return "\n\n".join([*blocks, key])


def cell_text(cell: Cell | None, decimals: int, kind: str = "ours") -> str:
    """
    >>> cell_text(Cell(51.26, 47.9, 54.6, best=True), 1), cell_text(Cell(24.0, 20.1, 28.4, at_chance=True), 1)
    ('51.3 [48-55]* ', '24.0 [20-28] ~')
    """
    if cell is None:
        return "-  "
    if kind == "published":
        return f"{cell.value:.2f}  "
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.0f}-{cell.high:.0f}]"
    return f"{cell.value:.{decimals}f}{interval}{'*' if cell.best else ' '}{'~' if cell.at_chance else ' '}"
