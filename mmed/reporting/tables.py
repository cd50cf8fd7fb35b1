"""The tables of a report, shown in the terminal (`summary_table`) and on the page.

Each table has one metric of one definition: rows are models under their setting, columns are languages and
their macro average. Results whose signatures differ go into different tables; the paper's numbers are in a
table only where they were computed in the same way, on as many items.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmed.evaluation.published import ENGLISH_SOURCES, LANGUAGES, PublishedRow, published, published_english
from mmed.evaluation.summary import COLUMNS, aligned, shown_metrics
from mmed.reporting.read_results import MACRO, SETTINGS, Result

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
SOURCE_MEAN = "Mean of sources"
# Items of MMedBench's test split, on which the paper's numbers were computed
TEST_ITEMS = dict(zip(LANGUAGES, (1273, 3426, 199, 622, 256, 2742)))


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
    published: str = ""  # the paper's metric that is defined in the same way


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
    found = [_accuracy_table(group, column) for column in COLUMNS for group in by_definition(results, column)]
    found += _source_tables(results, with_published)
    shown = [metric for result in results
             for metric in shown_metrics(result.summary, result.settings["words"])]
    found += [_text_table(group, metric) for metric in dict.fromkeys(shown)
              for group in by_definition(results, metric)]
    joined = [table for table in found if table.published] if with_published else []
    if any(part["n"] != TEST_ITEMS.get(name, part["n"]) for result in results[:1]
           for name, part in result.summary["languages"].items()):
        titles = {table.published: table.title for table in joined}
        note = "The paper's numbers, on MMedBench's whole test split; ours are of other items."
        columns = [*LANGUAGES, MACRO]
        joined = [Table(f"{title}, published", note, columns, {}, [None] * len(columns), published=metric)
                  for metric, title in titles.items()]
        found += joined
    for table in joined:
        _add_published(table)
    return found


def _accuracy_table(results: Sequence[Result], column: str) -> Table:
    chance = {name: part["chance"] for name, part in results[0].parts.items()}
    scores = [{name: part["accuracy"].get(column) for name, part in result.parts.items()}
              for result in results]
    table = _table(*ACCURACY[column], results, scores, chance)
    table.main = column not in ("loglikelihood_norm", "official")
    table.published = "accuracy" if column == "official" else ""
    table.groups[""] = [Row("Chance level", [Cell(100 * level) for level in chance.values()], "chance")]
    return table


def _source_tables(results: Sequence[Result], with_published: bool) -> list[Table]:
    """Accuracy by source, where a language has several, such as the paper's English benchmarks."""
    names = list(dict.fromkeys(name for result in results
                               for name in result.summary["micro"]["by"].get("source", {})))
    if not results or len(names) <= len(results[0].summary["languages"]):
        return []
    names.sort(key=lambda name: ENGLISH_SOURCES.index(name) if name in ENGLISH_SOURCES else len(names))
    found = []
    for column in COLUMNS:
        for group in by_definition(results, column):
            scores = []
            for result in group:
                sources = result.summary["micro"]["by"]["source"]
                scores.append({name: sources.get(name, {}).get(column) for name in names}
                              | {SOURCE_MEAN: result.summary["source_mean"][column]})
            title, note = ACCURACY[column]
            found.append(_table(f"{title}, by source", f"{note} The last column is the plain mean of the "
                                "sources.", group, scores))
            found[-1].main = column == "answer"
    if with_published and len(set(names) & set(ENGLISH_SOURCES)) > 2:
        note = ("The paper's numbers. It does not say how each model was prompted and scored, so they are "
                "apart from ours.")
        columns = [*ENGLISH_SOURCES, SOURCE_MEAN]
        rows = [_published_row(row, columns) for row in published_english()]
        found.append(Table("Published accuracy on the English benchmarks", note, columns,
                           {"Setting not stated": rows}, [None] * len(columns), main=True))
    return found


def _text_table(results: Sequence[Result], metric: str) -> Table:
    """BLEU, ROUGE or another score of rationales."""
    name, _, definition = metric.partition("|")
    summary, words = results[0].summary, results[0].settings["words"]
    items = summary["text_items"].replace("human_check_passed", "those that passed the human check")
    note = f"Definition: {definition}; word splitting: {words}; rationales scored: {items}."
    absent = [language for language, part in summary["languages"].items() if metric not in part["text"]]
    if absent:
        note += f" No rationale was scored in {', '.join(absent)}; the macro average omits it."
    scores = [{part: value["text"].get(metric) for part, value in result.parts.items()} for result in results]
    table = _table(f"{name} of rationales", note, results, scores)
    table.unit, table.decimals, table.main = "× 100", 2, name in ("BLEU-1", "ROUGE-1")
    as_published = words == "official" and summary["text_items"] == "human_check_passed"
    table.published = name if table.main and as_published else ""
    return table


def _table(title: str, note: str, results: Sequence[Result], scores: Sequence[Mapping[str, dict | None]],
           chance: Mapping[str, float] | None = None) -> Table:
    """scores: of each result, column -> score of the summary; chance: levels of the columns."""
    columns = list(scores[0])
    cells = [[_cell(row[name], (chance or {}).get(name)) for name in columns] for row in scores]
    for column in zip(*cells) if len(results) > 1 else ():
        top = max((cell.value for cell in column if cell), default=0.0)
        for cell in filter(None, column):
            cell.best = math.isclose(cell.value, top)  # the order of a sum decides the last digit
    groups: dict[str, list[Row]] = {}
    for setting, heading in SETTINGS.items():
        rows = [Row(result.name, own) for result, own in zip(results, cells) if result.setting == setting]
        groups |= {heading: rows} if rows else {}
    sizes = [(scores[0][name] or {}).get("n") for name in columns[:-1]]
    return Table(title, note, columns, groups, [*sizes, None])


def _cell(score: dict | None, chance: float | None = None) -> Cell | None:
    if score is None:
        return None
    value, low, high = percent(score)
    if chance is None or low is None or high is None:
        return Cell(value, low, high)
    return Cell(value, low, high, at_chance=low <= 100 * chance <= high)


def percent(score: dict) -> list[Any]:
    """[value, low, high] of a score, times 100."""
    return [None if score[end] is None else 100 * score[end] for end in ("value", "low", "high")]


# ---- the paper's numbers -----------------------------------------------------------------------------------

def _published_row(row: PublishedRow, columns: Sequence[str]) -> Row:
    """The paper's average is shown only beside the languages (or sources) that it averages."""
    cells = [Cell(row.cells[name]) if name in row.cells else None for name in columns[:-1]]
    complete = set(row.cells) == set(columns[:-1]) and row.average == row.average
    return Row(row.name, [*cells, Cell(row.average) if complete else None], "published")


def _add_published(table: Table) -> None:
    """Adds the paper's rows under the headings of their settings, after ours."""
    ours, table.groups, table.main = table.groups, {}, True
    for setting, heading in SETTINGS.items():
        theirs = [_published_row(row, table.columns) for row in published(table.published)
                  if row.setting == setting]
        if heading in ours or theirs:
            table.groups[heading] = [*ours.pop(heading, []), *theirs]
    table.groups |= ours  # the chance level


# ---- terminal ----------------------------------------------------------------------------------------------

def summary_table(found: Sequence[Table]) -> str:
    """The main tables as aligned text."""
    blocks = []
    for table in found:
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
