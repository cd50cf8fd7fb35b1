"""Does one model beat another? Paired tests between two result folders on the same items.

    python -m mmed.evaluation.compare results/a results/b [--out comparison.json]

In: two result folders of `mmed.eval`. Out: for every accuracy and every rationale metric that both have, by language and over all: both
values, A - B in points with its 95 % interval and p (paired bootstrap; of the macro average each language is drawn from in itself), and
for accuracy McNemar's exact p with the two counts it comes from. Both models must have answered the same questions; what else differs
between the two runs is said first. No p is corrected for the number of rows: who looks at twenty finds one below 0.05 by chance.
Order: read -> check that the items are the same -> one block of lines a column -> table.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS, aligned, counts_for_text, language_order, metric_name
from mmed.metrics import macro_mean, mcnemar, mean, paired_bootstrap
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import write_json
from mmed.utils.journal import facts_that_differ

Rows = dict[tuple[str, str, str], dict]  # (mode, language, key) -> row


@dataclass
class Line:
    """One comparison: a column of the tables for a language, or over all of them."""

    column: str  # "answer", ..., or a metric of rationales such as "BLEU-1|nltk-method1"
    group: str  # a language, "macro average" or "micro average"
    n: int
    a: float
    b: float
    difference: float  # a - b
    low: float
    high: float
    p_bootstrap: float
    p_mcnemar: float | None = None
    only_a: int | None = None  # items that only A has right
    only_b: int | None = None


def read(folder: str | Path) -> tuple[dict, Rows]:
    """A result folder: (the "mmed" part of results.json, its rows)."""
    own, rows = load_results(folder)
    try:
        found = {(row["mode"], row["language"], row["key"]): row | {"doc": {"checked": row["doc"]["human_check_passed"]}, "item": _item(row)} for row in rows}
    except (KeyError, TypeError) as error:
        raise UserError(f"{Path(folder) / 'predictions.jsonl'}: not the rows of `python -m mmed.eval` ({type(error).__name__}: {error}); evaluate again") from None
    if not found:
        raise UserError(f"{Path(folder) / 'predictions.jsonl'}: no rows; evaluate again")
    return own, found


def _item(row: dict) -> int:
    """What was asked, in short."""
    return hash((row["gold"], row["doc"]["question"], *row["doc"]["options"].items()))


def check_same_items(names: Sequence[str], rows: Sequence[Rows]) -> None:
    """Both folders hold the same questions with the same options and answers, or it is said which they do not share."""
    items = [{(language, key): row["item"] for (_, language, key), row in one.items()} for one in rows]
    if alone := items[0].keys() ^ items[1].keys():
        language, key = min(alone)
        raise UserError(f"{names[1]}: of other exam items than {names[0]}: {len(alone):,} are in one of them only, such as {key!r:.80} ({language}); "
                        "compare results on the same data and --limit")
    if changed := [place for place, item in items[0].items() if items[1][place] != item]:
        language, key = changed[0]
        raise UserError(f"{names[1]}: {len(changed):,} of its items have another question, options or answer than those of {names[0]} under the same key, "
                        f"such as {key!r:.80} ({language}); compare results on the same data")


def compare(rows: Sequence[Rows]) -> Iterator[Line]:
    """Every line, column by column; languages in the order of the tables, then the averages."""
    for column, (mode, key) in COLUMNS.items():
        keys = [place for place in rows[0] if place[0] == mode and place in rows[1]]
        if keys:
            yield from _column(column, keys, [[float(one[place][key]) for place in keys] for one in rows], binary=True)
    # Rationales: the same metric under the same signature, on the items that the tables take.
    checked = any(row["doc"]["checked"] for row in rows[0].values())
    keys = [place for place in rows[0] if place[0] == "rationale" and place in rows[1]
            and all(counts_for_text({"scores": one[place]["scores"], "doc": {"human_check_passed": one[place]["doc"]["checked"]}}, checked) for one in rows)]
    signatures = {name: metric_name(name) for place in keys for name in rows[0][place]["scores"] if name in rows[1][place]["scores"]}
    for metric in dict.fromkeys(signatures.values()):
        names = [name for name, of in signatures.items() if of == metric]
        having = [place for place in keys if any(name in rows[0][place]["scores"] and name in rows[1][place]["scores"] for name in names)]
        values = [[next(one[place]["scores"][name] for name in names if name in rows[0][place]["scores"] and name in rows[1][place]["scores"])
                   for place in having] for one in rows]
        yield from _column(metric, having, values, binary=False)


def _column(column: str, keys: Sequence[tuple[str, str, str]], values: Sequence[Sequence[float]], binary: bool) -> Iterator[Line]:
    languages = [language for _, language, _ in keys]
    parts = [(name, [i for i, language in enumerate(languages) if language == name]) for name in language_order(languages)]
    for group, chosen in [*parts, ("macro average", range(len(keys))), ("micro average", range(len(keys)))]:
        a, b = ([side[i] for i in chosen] for side in values)
        macro = languages if group == "macro average" else None
        means = [mean(side) if macro is None else macro_mean(side, macro) for side in (a, b)]
        gap = paired_bootstrap(a, b, seed=0, groups=macro)
        line = Line(column, group, len(a), *means, gap.difference, gap.low, gap.high, gap.p)
        if binary and macro is None:
            hits = [[value > 0 for value in side] for side in (a, b)]
            line.p_mcnemar, line.only_a = mcnemar(*hits), sum(x and not y for x, y in zip(*hits))
            line.only_b = sum(y and not x for x, y in zip(*hits))
        yield line


def table(lines: Sequence[Line]) -> str:
    """The lines as text, a block a column, in % or times 100."""
    blocks = []
    for column in dict.fromkeys(line.column for line in lines):
        part = [line for line in lines if line.column == column]
        accuracy = any(line.p_mcnemar is not None for line in part)
        rows = [[f"{column}, {'%' if accuracy else 'x 100'}", "n", "A", "B", "A - B [95 %]", "p bootstrap", *(["p McNemar", "only A", "only B"] if accuracy else [])]]
        for line in part:
            cells = [line.group, f"{line.n:,}", f"{100 * line.a:.2f}", f"{100 * line.b:.2f}",
                     f"{100 * line.difference:+.2f} [{100 * line.low:+.2f} to {100 * line.high:+.2f}]", _p(line.p_bootstrap)]
            if accuracy:
                cells += ["", "", ""] if line.p_mcnemar is None else [_p(line.p_mcnemar), f"{line.only_a:,}", f"{line.only_b:,}"]
            rows.append(cells)
        blocks.append(aligned(rows))
    return "\n\n".join(blocks)


def _p(value: float) -> str:
    """
    >>> _p(0.0004), _p(0.25)
    ('< 0.001', '0.250')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.evaluation.compare", description="Paired tests between two results on the same items.")
    parser.add_argument("results", nargs=2, metavar="RESULT", help="result folders of mmed.eval, A and B")
    parser.add_argument("--out", metavar="FILE.json", help="the numbers as JSON, too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)

    (own_a, rows_a), (own_b, rows_b) = map(read, options.results)
    check_same_items(options.results, [rows_a, rows_b])
    lines = list(compare([rows_a, rows_b]))
    if not lines:
        raise UserError(f"{options.results[1]}: has no mode in common with {options.results[0]} (--mode, --scoring); nothing can be compared")
    differs = facts_that_differ(own_b["facts"], own_a["facts"]).replace("(now ", "(A: ")
    print(f"A: {options.results[0]}\nB: {options.results[1]}\nB has {differs or 'the same model and settings'}\n\n{table(lines)}")
    if options.out:
        write_json(options.out, {"a": str(options.results[0]), "b": str(options.results[1]), "lines": [asdict(line) for line in lines]})
        print(f"wrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main_guard(main)
