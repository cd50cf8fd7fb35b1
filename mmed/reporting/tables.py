"""The tables of a report, shown in the terminal (`summary_table`) and on the page.

In: `Result`s (read_results.py). Out: `Table`s, one metric of one definition each: rows are models under their
setting, columns are languages and their macro average. Results whose signatures differ go into different
tables, and so do the paper's numbers unless they were computed in the same way.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmed.evaluation.published import ENGLISH_SOURCES, PublishedRow, published, published_english
from mmed.evaluation.summary import COLUMNS, aligned, shown_metrics
from mmed.reporting.read_results import SETTINGS, Result

ACCURACY = {  # column of the summary: (title, what is counted)
    "answer": ("Accuracy, answer only", "The model writes an answer; its letters must be exactly the "
                                        "right ones."),
    "rationale": ("Accuracy, rationale before the answer",
                  "The model writes a rationale, then an answer; its letters "
                  "must be exactly the right ones."),
    "loglikelihood": ("Accuracy by log-likelihood of the options",
                      "The model writes nothing: its answer is the "
                      "likeliest option letter, or set of letters."),
    "loglikelihood_norm": ("Accuracy by log-likelihood per token of the options",
                           "As by log-likelihood, with the sum "
                           "of log-probabilities divided by the number of tokens."),
    "official": ("Accuracy, official scorer", "The answer-only text, scored by the published script's string "
                 "comparison, as the paper's numbers were."),
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
    unit: str  # "%" or "x 100"
    columns: list[str]
    sizes: list[int | None]  # items behind each column
    groups: list[tuple[str, list[Row]]]  # (heading, rows)
    decimals: int
    main: bool  # shown in the terminal and unfolded on the page


def by_definition(results: Sequence[Result], column: str) -> list[list[Result]]:
    """Groups results whose numbers in `column` are comparable: same signature in each language, same choice
    of items.
    """
    groups: list[list[Result]] = []
    for result in results:
        group = next((group for group in groups if _comparable(group[0], result, column)), None)
        if group is None:
            groups.append([result])
        else:
            group.append(result)
    return groups


def _comparable(a: Result, b: Result, column: str) -> bool:
    signatures = [result.summary["signatures"].get(column, "") for result in (a, b)]
    if column in COLUMNS:
        return signatures[0] == signatures[1]
    same = all(signatures[1].get(language, signature) == signature for language,
               signature in signatures[0].items())
    return same and a.summary["text_items"] == b.summary["text_items"]


def tables(results: Sequence[Result], with_published: bool = False) -> list[Table]:
    """All tables, the main ones first within each kind."""
    found = []
    for column in COLUMNS:
        having = [result for result in results if column in result.summary["micro"]["accuracy"]]
        for group in by_definition(having, column):
            found.append(_accuracy_table(group, column, with_published))
    if with_published and not any("official" in result.summary["micro"]["accuracy"] for result in results):
        found.append(_published_table("accuracy", "the official scorer"))
    return found + _source_tables(results, with_published) + _text_tables(results, with_published)


def _accuracy_table(results: Sequence[Result], column: str, with_published: bool) -> Table:
    title, note = ACCURACY[column]
    table = _table(title, note, results, lambda part: part["accuracy"].get(column), with_chance=True)
    joined = with_published and column == "official"
    table.main = column in ("answer", "loglikelihood", "rationale") or joined
    if joined:
        _add_published(table, "accuracy")
    summary = results[0].summary
    levels = [Cell(100 * part["chance"]) for part in (*summary["languages"].values(), summary["macro"])]
    table.groups.append(("", [Row("Chance level", levels, "chance")]))
    return table


def _source_tables(results: Sequence[Result], with_published: bool) -> list[Table]:
    """Accuracy by source, where a language has several, such as the paper's English benchmarks."""
    found = []
    names = list(dict.fromkeys(name for result in results
                               for name in result.summary["micro"]["by"].get("source", {})))
    if len(names) <= len(results[0].summary["languages"]):
        return []
    names.sort(key=lambda name: ENGLISH_SOURCES.index(name) if name in ENGLISH_SOURCES else len(names))
    for column in COLUMNS:
        having = [result for result in results if column in result.summary["source_mean"]]
        for group in by_definition(having, column):
            def scores(result: Result, column: str = column) -> list[Cell | None]:
                sources = result.summary["micro"]["by"]["source"]
                parts = [sources.get(name, {}).get(column) for name in names]
                return [_cell(score) for score in (*parts, result.summary["source_mean"][column])]

            title, note = ACCURACY[column]
            first = group[0].summary["micro"]["by"]["source"]
            sizes = [first.get(name, {}).get(column, {}).get("n") for name in names]
            found.append(Table(f"{title}, by source",
                               note + " The last column is the plain mean of the sources.", "%",
                               [*names, "Mean of sources"], [*sizes, None], _by_setting(group, scores), 1,
                               column == "answer"))
    if with_published and len(set(names) & set(ENGLISH_SOURCES)) > 2:
        found.append(_published_english())
    return found


def _text_tables(results: Sequence[Result], with_published: bool) -> list[Table]:
    """BLEU, ROUGE and other scores of rationales; another definition, tokenization or choice of items:
    another table.
    """
    found, missing = [], {"BLEU-1", "ROUGE-1"} if with_published else set()
    metrics = dict.fromkeys(metric for result in results
                            for metric in shown_metrics(result.summary, result.settings.get("words")
                                                        or "default"))
    for metric in metrics:
        name, _, definition = metric.partition("|")
        for group in by_definition([r for r in results if metric in r.summary["micro"]["text"]], metric):
            summary, words = group[0].summary, group[0].settings.get("words") or "default"
            absent = [language for language, part in summary["languages"].items()
                      if metric not in part["text"]]
            note = (f"Times 100; {definition}; word splitting: {words}; rationales scored: "
                    f"{summary['text_items']}.")
            if absent:
                note += (f" No rationale was scored in {', '.join(absent)}; the macro average is of the "
                         f"others.")
            table = _table(f"{name} of rationales", note, group, lambda part,
                           metric=metric: part["text"].get(metric))
            table.unit, table.decimals, table.main = "x 100", 2, name in ("BLEU-1", "ROUGE-1")
            if name in missing and words == "official":
                _add_published(table, name)
                missing.discard(name)
            found.append(table)
    return found + [_published_table(name, "the official word splitting (--words official)")
                    for name in sorted(missing)]


def _table(title: str, note: str, results: Sequence[Result], pick: Callable[[dict], dict | None],
           with_chance: bool = False) -> Table:
    first = results[0].summary["languages"]

    def cells(result: Result) -> list[Cell | None]:
        parts = [*(result.summary["languages"][name] for name in first), result.summary["macro"]]
        return [_cell(pick(part), part["chance"] if with_chance else None) for part in parts]

    sizes = [(pick(part) or {}).get("n") for part in first.values()]
    return Table(title, note, "%", [*first, "Macro average"], [*sizes, None], _by_setting(results, cells), 1,
                 False)


def _by_setting(results: Sequence[Result], cells: Callable[[Result], list[Cell | None]]) -> list[tuple[str,
                                                                                                       list[Row]]]:
    rows = [(result.setting, Row(result.name, cells(result))) for result in results]
    if len(rows) > 1:
        for column in zip(*(row.cells for _, row in rows)):
            top = max((cell.value for cell in column if cell), default=0.0)
            for cell in column:
                if cell:
                    cell.best = cell.value == top
    groups = [(heading, [row for own, row in rows if own == setting]) for setting,
              heading in SETTINGS.items()]
    return [(heading, part) for heading, part in groups if part]


def _cell(score: dict | None, chance: float | None = None) -> Cell | None:
    if score is None:
        return None
    low, high = (None if score[end] is None else 100 * score[end] for end in ("low", "high"))
    inside = chance is not None and low is not None and high is not None and low <= 100 * chance <= high
    return Cell(100 * score["value"], low, high, at_chance=inside)


def _published_row(row: PublishedRow, columns: Sequence[str]) -> Row:
    """The paper's average is shown only beside the languages (or sources) that it averages."""
    cells = [Cell(row.cells[name]) if name in row.cells else None for name in columns]
    complete = set(row.cells) == set(columns) and row.average == row.average
    return Row(row.name, [*cells, Cell(row.average) if complete else None], "published")


def _add_published(table: Table, metric: str) -> None:
    """Adds the paper's rows under the headings of their settings, after ours."""
    groups = dict(table.groups)
    for row in published(metric):
        groups.setdefault(SETTINGS[row.setting], []).append(_published_row(row, table.columns[:-1]))
    table.groups[:] = [(heading, groups[heading]) for heading in SETTINGS.values() if heading in groups]


def _published_table(metric: str, definition: str) -> Table:
    """The paper's numbers alone, because ours are defined differently."""
    languages = list(published(metric)[0].cells)
    note = f"The paper's numbers, computed with {definition}. They are not comparable with the numbers above."
    table = Table(f"Published {metric}", note, "%", [*languages, "Macro average"], [None] * 7, [], 2, False)
    _add_published(table, metric)
    return table


def _published_english() -> Table:
    rows = [_published_row(row, ENGLISH_SOURCES) for row in published_english()]
    note = ("The paper's numbers. It does not say how each model was prompted and scored, so they stand "
            "apart from ours.")
    return Table("Published accuracy on the English benchmarks", note, "%",
                 [*ENGLISH_SOURCES, "Mean of sources"],
                 [None] * 10, [("Setting not stated", rows)], 2, True)


def summary_table(results: Sequence[Result], with_published: bool = False) -> str:
    """The main tables as aligned text."""
    blocks = []
    for table in tables(results, with_published):
        if table.main:
            lines = [[f"{table.title}, {table.unit}", *table.columns]]
            for heading, rows in table.groups:
                lines += [[heading, *[""] * len(table.columns)]] if heading else []
                for row in rows:
                    name = row.name + (" (published)" if row.kind == "published" else "")
                    lines.append(["  " + name,
                                  *(cell_text(cell, table.decimals, row.kind) for cell in row.cells)])
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
