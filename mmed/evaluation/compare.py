"""Does one model beat another? Paired tests between two result folders on the same items.

    python -m mmed.evaluation.compare results/a results/b [--out comparison.json]

For every accuracy and every rationale metric that both have, by language and overall: both values, A - B in
points with its 95 % interval, p, and its test. No p is corrected for the number of rows: out of twenty, one
falls below 0.05 by chance.
"""
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import numpy as np

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import (
    COLUMN_TITLES,
    COLUMNS,
    aligned,
    language_order,
    metric_name,
    passed_check,
    setting_parts,
)
from mmed.metrics import bootstrap_interval, macro_mean, mean
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import write_json
from mmed.utils.journal import facts_that_differ

FLIPS = 2000  # random sign flips of a test
EXACT_FLIPS = 12  # with at most this many differing items, enumerate all 2^n sign flips
AVERAGES = ("macro average", "micro average")
Rows = dict[tuple[str, str, str], dict]  # (mode, language, key) -> row
Side = tuple[dict, Rows]  # a result: the "mmed" part of results.json, its rows
Pairs = dict[tuple[str, str], tuple[float, float]]  # (language, key) -> scores of A and B


@dataclass
class Difference:
    difference: float  # mean of a minus mean of b
    low: float  # 95 % interval of it; nan where there are too few or only equal differences
    high: float
    p: float  # two-sided
    test: str  # which test p comes from


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of "a and b are right equally often": what only one has right is a coin flip."""
    pairs = Counter((bool(x), bool(y)) for x, y in zip(a, b, strict=True))
    only_a, only_b = pairs[True, False], pairs[False, True]
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** (only_a + only_b))


def sign_flip_test(
    gaps: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> tuple[float, str]:
    """(two-sided p, name of the test) of "a and b score alike", from a - b per item (Fisher's randomization).

    p is the share of sign flips whose mean (macro mean over `groups`) is as far from 0 as the one found: of
    all flips if few items differ, else of FLIPS random ones, with the one found among them.
    """
    names = groups or [""] * len(gaps)
    sizes = Counter(names)
    # a gap of 0 has no sign
    parts = np.array([gap / (len(sizes) * sizes[name]) for gap, name in zip(gaps, names) if gap])
    found = abs(parts.sum()) - 1e-12  # rounding must not decide what is as far
    if len(parts) <= EXACT_FLIPS:
        signs = np.array(list(product([1, -1], repeat=len(parts))))  # (2^n, n)
        return float(np.mean(np.abs(signs @ parts) >= found)), "sign flips, exact"
    rng = np.random.default_rng(seed)
    sums = np.array([parts @ (2 * rng.integers(0, 2, len(parts)) - 1) for _ in range(FLIPS)])
    as_far = int(np.count_nonzero(np.abs(sums) >= found))
    return (as_far + 1) / (FLIPS + 1), f"sign flips, {FLIPS:,} draws"


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> Difference:
    """Mean (macro mean over `groups`) of a - b on the same items, its bootstrap interval, its sign-flip p."""
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    difference = mean(gaps) if groups is None else macro_mean(gaps, groups)
    low, high = bootstrap_interval(gaps, seed, groups)
    return Difference(difference, low, high, *sign_flip_test(gaps, seed, groups))


@dataclass
class Line(Difference):
    column: str  # "answer", ..., or a metric of rationales such as "BLEU-1|nltk-method1"
    group: str  # a language, "macro average" or "micro average"
    n: int
    a: float
    b: float


def read(folder: str | Path) -> Side:
    own, rows = load_results(folder)
    return own, {(row["mode"], row["language"], row["key"]): row for row in rows}


def check_same_items(names: Sequence[str], sides: Sequence[Side]) -> None:
    first, second = ({place[1:]: (row["gold"], row["doc"]["question"], row["doc"]["options"])
                      for place, row in rows.items()} for _, rows in sides)
    other = [place for place in first | second if first.get(place) != second.get(place)]
    if other:
        raise UserError(f"{names[1]}: has other exam items than {names[0]}: {len(other):,} differ or are in "
                        f"only one, such as {other[0]!r:.80}; compare results on the same data and --limit")


def scores_of(side: Side) -> dict[tuple[str, str, str], dict[str, tuple[str, str, float]]]:
    """Place -> column -> (definition, reference text, score), for every score that the tables count."""
    own, rows = side
    rules = {}  # the definition of an accuracy, without the settings that change what a model answers
    for column, (mode, _) in COLUMNS.items():
        asked = "|".join(setting_parts(mode, own["settings"])).split("|")  # a value may contain "|"
        parts = own["summary"]["signatures"].get(column, "").split("|")
        rules[column] = "|".join(part for part in parts if part not in asked)
    scores = {place: {column: (rules[column], "", float(row[key])) for column, (mode, key) in COLUMNS.items()
                      if mode == row["mode"]} for place, row in rows.items()}
    for row in passed_check(list(rows.values())):
        scores[row["mode"], row["language"], row["key"]] |= {
            metric_name(name): (name, row["doc"]["rationale"], value)
            for name, value in row.get("scores", {}).items()}
    return scores


def compare(a: Side, b: Side) -> tuple[list[Line], list[str]]:
    """(lines, column by column; what was left out and why): only equal definitions are compared."""
    scores = scores_of(a), scores_of(b)
    columns: dict[str, Pairs] = {column: {} for column in COLUMNS}
    left_out = defaultdict(list)  # reason -> (column, language)
    for place in scores[0] | scores[1]:
        mine, theirs = (side.get(place, {}) for side in scores)
        for column in mine | theirs:
            one, other = mine.get(column), theirs.get(column)
            if not one or not other:
                why = "only in A" if one else "only in B"
            elif one[0] != other[0]:
                why = " and ".join(f"{name} is {'|'.join(score[0].split('|')[2:])}"
                                   for name, score in (("A", one), ("B", other)))
            elif one[1] != other[1]:
                why = "their reference rationales differ"
            else:
                columns.setdefault(column, {})[place[1:]] = one[2], other[2]
                continue
            left_out[why].append((column, place[1]))
    lines = [line for column, pairs in columns.items() if pairs for line in compare_column(column, pairs)]
    return lines, [f"{', '.join(sorted({COLUMN_TITLES.get(column, column) for column, _ in found}))} in "
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
        line = Line(**vars(paired_bootstrap(a, b, seed=0, groups=macro)), column=column, group=group,
                    n=len(a), a=mean_a, b=mean_b)
        if column in COLUMNS and not macro:
            line.p, line.test = mcnemar([x > 0 for x in a], [x > 0 for x in b]), "McNemar, exact"
        lines.append(line)
    return lines


def table(lines: Sequence[Line]) -> str:
    """The lines as text, one block per column, in % or times 100."""
    blocks = []
    for column, part in groupby(lines, lambda line: line.column):
        unit = "%" if column in COLUMNS else "x 100"
        rows = [[f"{COLUMN_TITLES.get(column, column)}, {unit}", "n", "A", "B", "A - B [95 %]", "p", "test"]]
        for line in part:
            known = line.low == line.low
            interval = f"[{100 * line.low:+.2f} to {100 * line.high:+.2f}]" if known else "[-]"
            rows.append([line.group, f"{line.n:,}", f"{100 * line.a:.2f}", f"{100 * line.b:.2f}",
                         f"{100 * line.difference:+.2f} {interval}",
                         "< 0.001" if line.p < 0.001 else f"{line.p:.3f}", line.test])
        blocks.append(aligned(rows))
    return "\n\n".join(blocks)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.compare",
                    description="Paired tests between two results on the same items.")
    parser.add_argument("results", nargs=2, metavar="RESULT", help="result folders of mmed.eval, A and B")
    parser.add_argument("--out", metavar="FILE.json", help="also write the numbers as JSON")
    options = parser.parse_args(arguments)
    folders = options.results
    a, b = map(read, folders)
    check_same_items(folders, [a, b])
    lines, left_out = compare(a, b)
    if not lines:
        raise UserError(f"{folders[1]}: no mode in common with {folders[0]}; nothing can be compared "
                        f"({'; '.join(left_out)})")
    differs = facts_that_differ(b[0]["facts"], a[0]["facts"], "A:")
    print(f"A: {folders[0]}\nB: {folders[1]}")
    print(f"B has {differs or 'the same model and settings'}\n\n{table(lines)}")
    print("\n[-]: no interval, because too few items differ or all differ equally")
    for reason in left_out:
        print(f"left out: {reason}")
    if options.out:
        write_json(options.out, {"a": folders[0], "b": folders[1], "lines": list(map(vars, lines)),
                                 "left_out": left_out})
    return 0


if __name__ == "__main__":
    main_guard(main)
