"""The tables of a report, made once and shown twice: in the terminal (`summary_table`) and on the page (mmed/reporting/report.py).

In: `Result`s of mmed/reporting/read_results.py. Out: `Table`s, rows under the paper's settings, columns languages and the macro average. A
table holds one metric of one definition: numbers that came about in different ways are never in one column.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mmed.evaluation.published import ENGLISH_SOURCES, PUBLISHED_WORDS, published, published_english
from mmed.evaluation.summary import COLUMNS, shown_metrics
from mmed.reporting.read_results import SETTINGS, Result
from mmed.utils.untrusted import as_name


@dataclass
class Cell:
    """One number of a table, in %."""

    value: float
    low: float | None = None
    high: float | None = None
    best: bool = False
    at_chance: bool = False  # the chance level lies in its interval


@dataclass
class Row:
    name: str
    cells: list[Cell | None]
    kind: str = "ours"  # ours, published, chance


@dataclass
class Table:
    """Rows under headings; columns are languages and the macro average."""

    title: str
    note: str
    columns: list[str]
    groups: list[tuple[str, list[Row]]]
    decimals: int
    main: bool  # stands in the terminal and on top of the page
    sizes: list[int | None]  # items behind a column

    def ours(self) -> Table:
        """The same without the published rows."""
        groups = [(heading, [row for row in rows if row.kind != "published"]) for heading, rows in self.groups]
        return replace(self, groups=[(heading, rows) for heading, rows in groups if rows])


ACCURACY_TITLES = {"answer": "Accuracy, answer only", "rationale": "Accuracy, rationale before the answer",
                   "loglikelihood": "Accuracy by log-likelihood of the options",
                   "loglikelihood_norm": "Accuracy by log-likelihood per token of the options", "official": "Accuracy, official scorer"}
ACCURACY_NOTES = {"answer": "The model writes an answer; the letters read from it must be exactly the right ones.",
                  "rationale": "The model writes a rationale and then an answer; the letters must be exactly the right ones.",
                  "loglikelihood": "No text is written: the answer is the option letter (or set of letters) the model finds likeliest.",
                  "loglikelihood_norm": "As above, the sum of log-probabilities divided by the number of tokens.",
                  "official": "The answer-only text judged by the published script's string comparison."}


def tables(results: Sequence[Result], with_published: bool = False) -> list[Table]:
    """Every table of the report: a metric each, one definition each; bold is the best of ours in its column."""
    languages = list(results[0].summary["languages"])
    found = []
    for column in COLUMNS:
        rows = [result for result in results if column in result.summary["micro"]["accuracy"]]
        if rows:
            table = _table(rows, lambda part, column=column: part["accuracy"].get(column), languages, by_chance=True)
            table.title, table.note = ACCURACY_TITLES[column], ACCURACY_NOTES[column]
            table.main = column in ("answer", "loglikelihood") or (column == "rationale" and not found)
            if with_published and column == "answer":
                _add_published(table, "accuracy", languages)
            first = rows[0].summary
            table.groups.append(("", [Row("chance", [Cell(100 * part["chance"]) for part in (*first["languages"].values(), first["macro"])], "chance")]))
            found.append(table)
    return found + _source_tables(results, languages, with_published) + _text_tables(results, languages, with_published)


def _source_tables(results: Sequence[Result], languages: list[str], with_published: bool) -> list[Table]:
    """Accuracy by source, where a language has several: the paper's English benchmarks, exams mixed by `--mix`."""
    sources = list(results[0].summary["micro"]["sources"])
    if len(sources) <= len(languages) or any(list(result.summary["micro"]["sources"]) != sources for result in results):
        return []
    english = [name for name in ENGLISH_SOURCES if name in sources]
    sources = english + [name for name in sources if name not in english]
    found = []
    for column in COLUMNS:
        rows = [result for result in results if column in result.summary["source_mean"]]
        if not rows:
            continue
        groups = []
        for setting, heading in SETTINGS.items():
            part = [Row(result.name, [*(_cell(result.summary["micro"]["sources"][name].get(column), None) for name in sources),
                                      _cell(result.summary["source_mean"][column], None)]) for result in rows if result.setting == setting]
            groups += [(heading, part)] if part else []
        if with_published and len(english) > 2 and column == "answer":
            shown = [Row(row.name, [*(Cell(row.cells[name]) if name in row.cells else None for name in sources),
                                    Cell(row.average) if set(sources) == set(row.cells) and len(row.cells) == len(ENGLISH_SOURCES) else None], "published")
                     for row in published_english()]
            groups.append(("As published, setting not stated", [row for row in shown if any(row.cells)]))
        _mark_best(groups)
        first = rows[0].summary["micro"]["sources"]
        found.append(Table(f"{ACCURACY_TITLES[column]}, by source", ACCURACY_NOTES[column] + " The last column is the plain mean of the sources.",
                           [*sources, "Mean of sources"], groups, 1, column == "answer", [*(first[name].get(column, {}).get("n") for name in sources), None]))
    return found


def _text_tables(results: Sequence[Result], languages: list[str], with_published: bool) -> list[Table]:
    """BLEU and ROUGE; other definitions, tokenisations or choices of items are other tables."""
    kinds = {}
    for result in results:
        kinds.setdefault((as_name(result.settings.get("words") or "default"), result.summary["text_items"]), []).append(result)
    found = []
    for (words, items), rows in kinds.items():
        metrics = dict.fromkeys(metric for result in rows for metric in shown_metrics(result.summary, words))
        for metric in metrics:
            name, _, definition = metric.partition("|")
            having = [result for result in rows if metric in result.summary["micro"]["text"]]
            if having:
                table = _table(having, lambda part, metric=metric: part["text"].get(metric), languages)
                table.title, table.main, table.decimals = f"{name} of rationales", name in ("BLEU-1", "ROUGE-1"), 2
                table.note = f"Times 100; {definition}, words: {words}, items: {items}."
                if with_published and table.main and words == PUBLISHED_WORDS:
                    _add_published(table, name, languages)
                found.append(table)
    return found


def _table(results: Sequence[Result], pick: Callable[[dict], dict | None], languages: list[str], by_chance: bool = False) -> Table:
    groups = []
    for setting, heading in SETTINGS.items():
        rows = []
        for result in results:
            if result.setting == setting:
                parts = [*(result.summary["languages"][name] for name in languages), result.summary["macro"]]
                rows.append(Row(result.name, [_cell(pick(part), part["chance"] if by_chance else None) for part in parts]))
        if rows:
            groups.append((heading, rows))
    _mark_best(groups)
    parts = [results[0].summary["languages"][name] for name in languages]
    sizes = [None if pick(part) is None else pick(part).get("n", part["n"]) for part in parts]
    return Table("", "", [*languages, "Macro average"], groups, 1, False, [*sizes, None])


def _mark_best(groups: list[tuple[str, list[Row]]]) -> None:
    ours = [row for _, rows in groups for row in rows if row.kind == "ours"]
    for cells in zip(*(row.cells for row in ours)) if len(ours) > 1 else ():
        top = max((cell.value for cell in cells if cell), default=0.0)
        for cell in cells:
            if cell:
                cell.best = cell.value == top


def _cell(score: dict | None, chance: float | None) -> Cell | None:
    if score is None:
        return None
    low, high = (None if score[end] is None else 100 * score[end] for end in ("low", "high"))
    return Cell(100 * score["value"], low, high, at_chance=chance is not None and low is not None and high is not None and low <= 100 * chance <= high)


def _add_published(table: Table, metric: str, languages: list[str]) -> None:
    """The paper's rows under the headings of their settings, behind ours."""
    ours = dict(table.groups)
    for row in published(metric):
        complete = set(row.cells) == set(languages)  # else the paper's average is of other languages than ours
        cells = [Cell(row.cells[name]) if name in row.cells else None for name in languages]
        ours.setdefault(SETTINGS[row.setting], []).append(Row(row.name, [*cells, Cell(row.average) if complete else None], "published"))
    table.groups[:] = [(heading, ours[heading]) for heading in SETTINGS.values() if heading in ours]


def summary_table(results: Sequence[Result], with_published: bool = False) -> str:
    """The main tables as aligned text for the terminal."""
    blocks = []
    for table in tables(results, with_published):
        if table.main:
            lines = [["", *(name + "  " for name in table.columns)]]
            for heading, rows in table.groups:
                lines += [[heading]] if heading else []
                lines += [[("  " if heading else "") + row.name + (" (published)" if row.kind == "published" else ""),
                           *(cell_text(cell, table.decimals, row.kind) for cell in row.cells)] for row in rows]
            blocks.append(f"{table.title}, %\n{_aligned(lines)}")
    blocks.append("* best of its column   ~ the interval holds the chance level   [95 % interval]")
    return "\n\n".join(blocks)


def cell_text(cell: Cell | None, decimals: int, kind: str = "ours") -> str:
    """
    >>> cell_text(Cell(51.26, 47.9, 54.6, best=True), 1), cell_text(Cell(24.0, 20.1, 28.4, at_chance=True), 1), cell_text(None, 1)
    ('51.3 [48-55]* ', '24.0 [20-28] ~', '-  ')
    """
    if cell is None:
        return "-  "
    if kind != "ours":
        return f"{cell.value:.{decimals if kind == 'chance' else 2}f}  "
    interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.0f}-{cell.high:.0f}]"
    return f"{cell.value:.{decimals}f}{interval}{'*' if cell.best else ' '}{'~' if cell.at_chance else ' '}"


def _aligned(lines: list[list[str]]) -> str:
    columns = max(len(line) for line in lines)
    widths = [max((len(line[i]) for line in lines if i < len(line) and len(line) > 1), default=0) for i in range(columns)]
    return "\n".join("  ".join(cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines)
