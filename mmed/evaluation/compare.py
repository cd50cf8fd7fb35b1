"""Does one model beat another? Paired tests between two result folders on the same items.

    python -m mmed.evaluation.compare results/a results/b [--out comparison.json]

Input:  two result folders of `mmed.eval`.
Output: for every accuracy and every rationale metric that both have, by language and overall: both values,
        A - B in points with its 95 % interval, p, and the test it comes from; and what cannot be compared.

Right and wrong answers are tested by McNemar's exact test, text scores and macro averages by sign flips. No p
is corrected for the number of rows: out of twenty, one falls below 0.05 by chance.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmed.evaluation.results import load_results
from mmed.evaluation.significance import mcnemar, paired_bootstrap
from mmed.evaluation.summary import (
    COLUMNS,
    aligned,
    checked_languages,
    counts_for_text,
    language_order,
    metric_name,
)
from mmed.metrics import macro_mean, mean
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import write_json
from mmed.utils.journal import facts_that_differ

AVERAGES = ("macro average", "micro average")
Rows = dict[tuple[str, str, str], dict]  # (mode, language, key) -> row
Pairs = dict[tuple[str, str], tuple[float, float]]  # (language, key) -> scores of A and B


@dataclass
class Line:
    """One comparison of a column in a group."""

    column: str  # "answer", ..., or a metric of rationales such as "BLEU-1|nltk-method1"
    group: str  # a language, "macro average" or "micro average"
    n: int
    a: float
    b: float
    difference: float  # a - b
    low: float  # nan where there are too few or only equal differences
    high: float
    p: float
    test: str


def read(folder: str | Path) -> tuple[dict, Rows]:
    """A result folder: (the "mmed" part of results.json, its rows)."""
    own, rows = load_results(folder)
    return own, {(row["mode"], row["language"], row["key"]): row for row in rows}


def check_same_items(names: Sequence[str], rows: Sequence[Rows]) -> None:
    """Both folders must hold the same questions with the same options and answers."""
    first, second = ({place[1:]: (row["gold"], row["doc"]["question"], row["doc"]["options"])
                      for place, row in side.items()} for side in rows)
    other = [place for place in first | second if first.get(place) != second.get(place)]
    if other:
        raise UserError(f"{names[1]}: has other exam items than {names[0]}: {len(other):,} differ or are in "
                        f"only one, such as {other[0]!r:.80}; compare results on the same data and --limit")


def scores_of(row: dict, checked: set[str]) -> dict[str, tuple[str, float]]:
    """Column -> (signature, score), for every score of a row that the tables count."""
    scores = {column: (column, float(row[key])) for column, (mode, key) in COLUMNS.items()
              if mode == row["mode"]}
    if counts_for_text(row, row["language"] in checked):
        scores |= {metric_name(name): (name, value) for name, value in row["scores"].items()}
    return scores


def compare(a: Rows, b: Rows) -> tuple[list[Line], list[str]]:
    """(lines, column by column; what was left out and why): only equal signatures are compared."""
    checked = checked_languages([*a.values(), *b.values()])
    columns: dict[str, Pairs] = {column: {} for column in COLUMNS}
    left_out: dict[str, list[tuple[str, str]]] = {}  # reason -> (column, language)
    for place in a | b:
        mine, theirs = (scores_of(side[place], checked) if place in side else {} for side in (a, b))
        for column in mine | theirs:
            one, other = mine.get(column), theirs.get(column)
            if one and other and one[0] == other[0]:
                columns.setdefault(column, {})[place[1:]] = one[1], other[1]
                continue
            why = "only in A" if one else "only in B"
            if one and other:
                why = " and ".join(f"{name} is {score[0].split('|', 2)[2]}"
                                   for name, score in (("A", one), ("B", other)))
            left_out.setdefault(why, []).append((column, place[1]))
    lines = [line for column, pairs in columns.items() if pairs for line in compare_column(column, pairs)]
    return lines, [f"{', '.join(sorted({column for column, _ in found}))} in "
                   f"{', '.join(language_order(language for _, language in found))}: {why}"
                   for why, found in left_out.items()]


def compare_column(column: str, pairs: Pairs) -> list[Line]:
    """One line per language, then the macro and micro averages."""
    lines = []
    for group in [*language_order(language for language, _ in pairs), *AVERAGES]:
        chosen = {place: pair for place, pair in pairs.items() if group in AVERAGES or group == place[0]}
        a, b = map(list, zip(*chosen.values()))
        macro = [language for language, _ in chosen] if group == "macro average" else None
        mean_a, mean_b = (macro_mean(side, macro) if macro else mean(side) for side in (a, b))
        line = Line(column, group, len(a), mean_a, mean_b, *paired_bootstrap(a, b, seed=0, groups=macro))
        if column in COLUMNS and not macro:
            line.p, line.test = mcnemar([x > 0 for x in a], [x > 0 for x in b]), "McNemar, exact"
        lines.append(line)
    return lines


def table(lines: Sequence[Line]) -> str:
    """The lines as text, one block per column, in % or times 100."""
    blocks: dict[str, list[list[str]]] = {}
    for line in lines:
        unit = "%" if line.column in COLUMNS else "x 100"
        head = [f"{line.column}, {unit}", "n", "A", "B", "A - B [95 %]", "p", "test"]
        interval = f"[{100 * line.low:+.2f} to {100 * line.high:+.2f}]" if line.low == line.low else "[-]"
        blocks.setdefault(line.column, [head]).append([
            line.group, f"{line.n:,}", f"{100 * line.a:.2f}", f"{100 * line.b:.2f}",
            f"{100 * line.difference:+.2f} {interval}", "< 0.001" if line.p < 0.001 else f"{line.p:.3f}",
            line.test])
    return "\n\n".join(map(aligned, blocks.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.compare",
                    description="Paired tests between two results on the same items.")
    parser.add_argument("results", nargs=2, metavar="RESULT", help="result folders of mmed.eval, A and B")
    parser.add_argument("--out", metavar="FILE.json", help="also write the numbers as JSON")
    options = parser.parse_args(arguments)
    (own_a, a), (own_b, b) = map(read, options.results)
    check_same_items(options.results, [a, b])
    lines, left_out = compare(a, b)
    if not lines:
        raise UserError(f"{options.results[1]}: no mode in common with {options.results[0]}; "
                        f"nothing can be compared ({'; '.join(left_out)})")
    differs = facts_that_differ(own_b["facts"], own_a["facts"]).replace("(now ", "(A: ")
    print(f"A: {options.results[0]}\nB: {options.results[1]}")
    print(f"B has {differs or 'the same model and settings'}\n\n{table(lines)}")
    print("\n[-]: no interval, because too few items differ or all differ equally")
    for reason in left_out:
        print(f"left out: {reason}")
    if options.out:
        write_json(options.out, {"a": options.results[0], "b": options.results[1],
                                 "lines": [asdict(line) for line in lines], "left_out": left_out})
        print(f"wrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main_guard(main)
