"""The tables of a report, shown in the terminal (`summary_table`) and on the page.

Each table has one metric of one definition: rows are models under their setting, columns are languages and
their macro average. The paper's numbers are in a table only where they were computed in the same way.
"""
from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmed.evaluation.published import ENGLISH_SOURCES, LANGUAGES, PublishedRow, published, published_english
from mmed.evaluation.summary import COLUMN_TITLES, COLUMNS, aligned, group_by, setting_parts, shown_metrics
from mmed.reporting.read_results import MACRO, SETTINGS, Result
from mmed.utils.errors import printable

SOURCE_MEAN = "Mean of sources"
# How the paper's models were asked; our default style differs
PAPER_SETTINGS = {"style": "official", "shots": 0, "chat_template": "none", "stop": "end",
                  "max_new_tokens": 1000}
PUBLISHED = {"accuracy": "Accuracy, official scorer", "BLEU-1": "BLEU-1 of rationales",
             "ROUGE-1": "ROUGE-1 of rationales"}
# Items of MMedBench's test split, on which the paper's numbers were computed
TEST_ITEMS = dict(zip(LANGUAGES, (1273, 3426, 199, 622, 256, 2742)))

Score = dict[str, float | None]  # value, low, high, times 100; at_chance: the interval contains that level


@dataclass
class Row:
    name: str
    heading: str  # its setting
    scores: list[Score | None]
    kind: str = "ours"  # ours, published, chance


@dataclass
class Table:
    title: str
    note: str
    columns: list[str]
    rows: list[Row]  # by heading
    sizes: list[int | None]  # items behind each column
    definition: Sequence[str] = ()  # parts of the signature
    unit: str = "%"
    decimals: int = 1
    main: bool = False  # shown in the terminal and unfolded on the page
    published: str = ""  # the paper's metric of the same definition, prompt and items


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
    """All tables: accuracies, accuracies by source, scores of rationales, the paper's."""
    columns = [(group, column) for column in COLUMNS for group in by_definition(results, column)]
    found = [_accuracy_table(group, column) for group, column in columns]
    sources = list(dict.fromkeys(name for result in results
                                 for name in result.summary["micro"]["by"].get("source", {})))
    if len(sources) > len(results[0].summary["languages"]):  # as in the paper's English benchmarks
        order = {name: place for place, name in enumerate(ENGLISH_SOURCES)}
        sources.sort(key=lambda name: order.get(name, len(order)))
        found += [_source_table(group, column, sources) for group, column in columns]
    metrics = dict.fromkeys(metric for result in results
                            for metric in shown_metrics(result.summary, result.settings["words"]))
    found += [_text_table(group, metric) for metric in metrics for group in by_definition(results, metric)]
    if with_published:
        found = _with_published(found)
        if len(set(sources) & set(ENGLISH_SOURCES)) > 2:
            found.append(_english_table())
    for same in group_by(found, lambda table: table.title).values():  # tell them apart
        shared = set.intersection(*(set(table.definition) for table in same))
        for table in same:
            own = [part for part in table.definition if part not in shared]
            table.title += f" ({', '.join(own)})" if own else ""
    return found


def _accuracy_table(results: Sequence[Result], column: str) -> Table:
    scores = [{name: part["accuracy"].get(column) for name, part in result.parts.items()}
              for result in results]
    signature = results[0].summary["signatures"][column]
    table = _table(f"Accuracy, {COLUMN_TITLES[column]}", signature.split("|"), "", results, scores)
    table.main = column not in ("loglikelihood_norm", "official")
    table.published = "accuracy" if column == "official" and _asked_as_in_the_paper(results[0]) else ""
    name = "official_chance" if column == "official" else "chance"
    chance = [100 * part.get(name, part["chance"]) for part in results[0].parts.values()]
    for score, level in ((score, level) for row in table.rows for score, level in zip(row.scores, chance)):
        if score and score["low"] is not None and score["high"] is not None:
            score["at_chance"] = score["low"] <= level <= score["high"]
    table.rows.append(Row("Chance level", "", list(map(_exact, chance)), "chance"))
    return table


def _source_table(results: Sequence[Result], column: str, names: Sequence[str]) -> Table:
    scores = []
    for result in results:
        own = result.summary["micro"]["by"]["source"]
        scores.append({name: own.get(name, {}).get(column) for name in names}
                      | {SOURCE_MEAN: result.summary["source_mean"][column]})
    signature = results[0].summary["signatures"][column]
    table = _table(f"Accuracy, {COLUMN_TITLES[column]}, by source", signature.split("|"),
                   " The last column is the mean of the sources.", results, scores)
    table.main = column == "answer"
    return table


def _text_table(results: Sequence[Result], metric: str) -> Table:
    """BLEU, ROUGE or another score of rationales."""
    summary, words = results[0].summary, results[0].settings["words"]
    name, *definition = metric.split("|")
    definition += [f"words:{words}", *setting_parts("rationale", results[0].settings)]
    items = summary["text_items"].replace("human_check_passed", "those that passed the human check")
    note = f" Rationales scored: {items}."
    absent = [language for language, part in summary["languages"].items() if metric not in part["text"]]
    if absent:
        note += f" No rationale was scored in {', '.join(absent)}; the macro average omits it."
    scores = [{part: value["text"].get(metric) for part, value in result.parts.items()} for result in results]
    table = _table(f"{name} of rationales", definition, note, results, scores)
    table.unit, table.decimals, table.main = "× 100", 2, name in ("BLEU-1", "ROUGE-1")
    as_published = words == "official" and summary["text_items"] == "human_check_passed"
    table.published = name if table.main and as_published and _asked_as_in_the_paper(results[0]) else ""
    return table


def _table(title: str, definition: Sequence[str], note: str, results: Sequence[Result],
           scores: Sequence[Mapping[str, dict | None]]) -> Table:
    """definition: parts of the signature; scores: of each result, column -> score of the summary."""
    rows = [Row(result.name, SETTINGS[result.setting],
                [percent(score) if score else None for score in own.values()])
            for result, own in zip(results, scores)]
    sizes = [score.get("n") if score else None for score in scores[0].values()]
    note = f"Definition: {'|'.join(definition)}.{note}"
    return Table(title, note, list(scores[0]), sorted(rows, key=_place), sizes, definition)


def _asked_as_in_the_paper(result: Result) -> bool:
    """Whether these are the items of the paper's test split, in the paper's prompt."""
    sizes = {name: part["n"] for name, part in result.summary["languages"].items() if name in TEST_ITEMS}
    english = result.summary["languages"].get("English", {"chance": 1 / 4})
    return (bool(sizes) and sizes.items() <= TEST_ITEMS.items()
            and abs(english["chance"] - 1 / 4) < 0.01  # MedQA is also published with 5 options
            and all(result.settings.get(name, value) == value for name, value in PAPER_SETTINGS.items()))


def _place(row: Row) -> int:
    """The settings in their order, then the chance level."""
    return [*SETTINGS.values(), ""].index(row.heading)


def percent(score: dict) -> Score:
    return {end: None if score[end] is None else 100 * score[end] for end in ("value", "low", "high")}


def _exact(value: float) -> Score:
    """A number without an interval."""
    return {"value": value, "low": None, "high": None}


def _with_published(found: Sequence[Table]) -> list[Table]:
    """The paper's rows under the headings of their settings: in ours of the same metric, or in own tables."""
    note = ("The paper's numbers, on MMedBench's whole test split with the official prompt; ours differ in "
            "items, prompt or definition.")
    columns, found = [*LANGUAGES, MACRO], list(found)
    for metric, title in PUBLISHED.items():
        if metric not in [table.published for table in found]:
            found.append(Table(f"{title}, published", note, columns, [], [None] * len(columns),
                               published=metric))
        for table in (table for table in found if table.published == metric):
            theirs = [_published_row(row, SETTINGS[row.setting], table.columns) for row in published(metric)]
            table.rows = sorted([*table.rows, *theirs], key=_place)
            table.main = True
    return found


def _english_table() -> Table:
    note = ("The paper's numbers. It does not say how each model was prompted and scored, so they are apart "
            "from ours.")
    columns = [*ENGLISH_SOURCES, SOURCE_MEAN]
    rows = [_published_row(row, "Setting not stated", columns) for row in published_english()]
    return Table("Published accuracy on the English benchmarks", note, columns, rows, [None] * len(columns),
                 main=True)


def _published_row(row: PublishedRow, heading: str, columns: Sequence[str]) -> Row:
    """The paper's average is shown only beside the languages (or sources) that it averages."""
    scores = [_exact(row.cells[name]) if name in row.cells else None for name in columns[:-1]]
    complete = set(row.cells) == set(columns[:-1]) and row.average == row.average
    return Row(row.name, heading, [*scores, _exact(row.average) if complete else None], "published")


def summary_table(found: Sequence[Table]) -> str:
    """The main tables as aligned text."""
    blocks = []
    for table in (table for table in found if table.main):
        lines = [["", *table.columns]]
        for heading, rows in itertools.groupby(table.rows, lambda row: row.heading):
            lines += [[heading, *[""] * len(table.columns)]] if heading else []
            for row in rows:
                published = row.kind == "published"
                name = f"  {row.name} (published)" if published else f"  {row.name}"
                decimals = 2 if published else table.decimals
                lines.append([name, *(score_text(score, decimals) for score in row.scores)])
        blocks.append(f"{printable(table.title)}, {table.unit}\n{aligned(lines)}")
    return "\n\n".join([*blocks, "[95 % interval]   ~ it contains the chance level"])


def score_text(score: Score | None, decimals: int = 1) -> str:
    """
    >>> score = {"value": 24.04, "low": 20.1, "high": 28.4}
    >>> score_text(score), score_text(score | {"at_chance": True}), score_text(None)
    ('24.0 [20-28]', '24.0 [20-28] ~', '-')
    """
    if score is None:
        return "-"
    text = f"{score['value']:.{decimals}f}"
    if score["low"] is not None and score["high"] is not None:
        text += f" [{score['low']:.0f}-{score['high']:.0f}]"
    return text + (" ~" if score.get("at_chance") else "  " if "at_chance" in score else "")
