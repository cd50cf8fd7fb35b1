"""Does a model choose an option or a letter? Repeats the exam with its options in different orders.

    python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME --permutations 4

Order 0 is the published one, and only its answers enter the other tables and files of a result. The others
rotate the options, in a sequence set by the seed. There are at most as many orders as options; with
that many, each text appears under each letter once.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmed.evaluation.summary import COLUMNS, aligned, group_by, language_order
from mmed.metrics import bootstrap_interval, mean
from mmed.prompts import ExamItem

ORDER = "option_order"  # in an item's `extra`: the number of a copy's order; the original has none
ALL = "all languages"


def permuted(item: ExamItem, count: int, seed: int) -> list[ExamItem]:
    """The item and its copies in the orders 1 .. count - 1; the answer key follows the options.

    >>> item = ExamItem("?", {"A": "x", "B": "y", "C": "z"}, ("A",), "", "English", "1")
    >>> [(copy.options, copy.answer) for copy in permuted(item, 2, seed=0)[1:]]
    [({'A': 'z', 'B': 'x', 'C': 'y'}, ('B',))]
    """
    def draw(shift: int) -> str:  # by hashing: the draws of `random` may change with Python
        return hashlib.sha256(repr((seed, item.key, 0, shift)).encode("utf-8", "surrogatepass")).hexdigest()

    letters, copies = list(item.options), [item]
    for number, shift in enumerate(sorted(range(1, len(letters)), key=draw)[:count - 1], 1):
        old = letters[shift:] + letters[:shift]
        options = {new: item.options[letter] for new, letter in zip(letters, old)}
        answer = tuple(sorted(letters[old.index(letter)] for letter in item.answer))
        copies.append(replace(item, options=options, answer=answer, extra=item.extra | {ORDER: number}))
    return copies


def summarise_permutations(rows: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """Language (and ALL) -> column -> the numbers of `_measure`."""
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
    items = list(group_by(rows, lambda row: f"{row['language']}\n{row['key']}").values())
    shares = [mean(float(row[key]) for row in copies) for copies in items]
    low, high = (None if end != end else end for end in bootstrap_interval(shares, seed=0))
    parsed = key.replace("correct", "parsed")
    texts = [{_texts(row, parsed) for row in copies} for copies in items]
    single = [row for row in rows if "," not in row["gold"]]
    letters = sorted({letter for row in single for letter in row["doc"]["options"]})
    return {"accuracy": {"value": mean(shares), "low": low, "high": high}, "n": len(items),
            "consistency": mean(len(chosen) == 1 and () not in chosen for chosen in texts),
            "letters": {letter: [mean(letter in row[name].split(",") for row in single)
                                 for name in (parsed, "gold")] for letter in letters}}


def _texts(row: dict, parsed: str) -> tuple[str, ...]:
    """The texts of the chosen options, independent of their order; () without an answer."""
    letters = [letter for letter in row[parsed].split(",") if letter]
    return tuple(sorted(" ".join(row["doc"]["options"][letter].split()).lower() for letter in letters))


def permutation_table(summary: dict[str, dict[str, Any]]) -> str:
    """One block per column for the terminal."""
    blocks = []
    for column in summary[ALL]:
        rows = [[f"{column}, options in all orders, %", "n", "mean [95 %]", "same text in all orders",
                 "letters: chosen / right"]]
        for name, part in summary.items():
            if column in part:
                own, score = part[column], part[column]["accuracy"]
                known = score["low"] is not None
                interval = f"[{100 * score['low']:.0f}-{100 * score['high']:.0f}]" if known else "[-]"
                letters = "  ".join(f"{letter} {100 * chosen:.0f} / {100 * right:.0f}"
                                    for letter, (chosen, right) in own["letters"].items())
                rows.append([name, f"{own['n']:,}", f"{100 * score['value']:.1f} {interval}",
                             f"{100 * own['consistency']:.1f}", letters])
        blocks.append(aligned(rows))
    return "\n\n".join(blocks)
