"""Does a model choose an option or a letter? Repeats the exam with its options in different orders.

The first order is the published one, and only its answers enter the other tables and files of a result. The
others rotate the options, in a sequence set by the seed.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmed.evaluation.summary import COLUMNS, aligned, cell, group_by, language_order
from mmed.metrics import bootstrap_interval, mean
from mmed.prompts import ExamItem, digest

ORDER = "option_order"  # in an item's `extra`: the number of a copy's order; the original has none
ALL = "all languages"


def permuted(item: ExamItem, count: int, seed: int) -> list[ExamItem]:
    """The item and its copies in other orders; the answer key follows the options."""
    letters, copies = list(item.options), [item]
    # by hashing: the draws of `random` may change with Python
    shifts = sorted(range(1, len(letters)), key=lambda shift: digest([repr((seed, item.key, 0, shift))]))
    for number, shift in enumerate(shifts[:count - 1], 1):
        old = letters[shift:] + letters[:shift]
        options = {new: item.options[letter] for new, letter in zip(letters, old)}
        answer = tuple(sorted(letters[old.index(letter)] for letter in item.answer))
        copies.append(replace(item, options=options, answer=answer, extra=item.extra | {ORDER: number}))
    return copies


def summarise_permutations(rows: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """Language (and ALL) -> column -> numbers."""
    groups = group_by(rows, lambda row: row["language"])
    found: dict[str, dict[str, Any]] = {}
    for name in [*language_order(groups), ALL]:
        for column, (mode, key) in COLUMNS.items():
            chosen = [row for row in groups.get(name, rows) if row["mode"] == mode]
            if chosen and key.startswith("correct"):
                found.setdefault(name, {})[column] = _measure(chosen, key)
    return found


def _measure(rows: Sequence[dict], key: str) -> dict[str, Any]:
    """Mean accuracy over all orders (bootstrap over items), consistency, and shares of letters.

    consistency  share of items for which the same option texts are chosen in every order
    letters      letter -> [share of answers that choose it, share in which it is right], where one is right
    """
    parsed = key.replace("correct", "parsed")

    def texts(row: dict) -> tuple[str, ...]:
        chosen = [row["doc"]["options"][letter] for letter in row[parsed].split(",") if letter]
        return tuple(sorted(" ".join(text.split()).lower() for text in chosen))

    items = list(group_by(rows, lambda row: f"{row['language']}\n{row['key']}").values())
    shares = [mean(float(row[key]) for row in copies) for copies in items]
    low, high = (None if end != end else end for end in bootstrap_interval(shares, seed=0))
    chosen = [set(map(texts, copies)) for copies in items]
    single = [row for row in rows if "," not in row["gold"]]
    letters = sorted({letter for row in single for letter in row["doc"]["options"]})
    return {"accuracy": {"value": mean(shares), "low": low, "high": high}, "n": len(items),
            "consistency": mean(len(found) == 1 and () not in found for found in chosen),
            "letters": {letter: [mean(letter in row[name].split(",") for row in single)
                                 for name in (parsed, "gold")] for letter in letters}}


def permutation_table(summary: dict[str, dict[str, Any]]) -> str:
    blocks = []
    for column in summary[ALL]:
        rows = [[f"{column}, options in all orders, %", "n", "mean [95 %]", "same text in all orders",
                 "letters: chosen / right"]]
        for name, part in summary.items():
            if column in part:
                own = part[column]
                letters = "  ".join(f"{letter} {100 * chosen:.0f} / {100 * right:.0f}"
                                    for letter, (chosen, right) in own["letters"].items())
                rows.append([name, f"{own['n']:,}", cell(own["accuracy"]), f"{100 * own['consistency']:.1f}",
                             letters])
        blocks.append(aligned(rows))
    return "\n\n".join(blocks)
