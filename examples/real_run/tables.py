"""The tables of the real run, as Markdown: accuracies with intervals, paired tests, validation losses.

    python -m examples.real_run.tables OUT [--rows base corpus control]

In:  OUT/results/METHOD_ROW (mmed.eval), OUT/loss/ROW-KIND.json (validation_loss).
Out: OUT/tables.md, which is also printed.
"""
from __future__ import annotations

import itertools
from pathlib import Path

from examples.real_run.steps import CORPUS_STEPS, KINDS, METHODS, TITLES
from mmed.evaluation.compare import check_same_items, compare, read
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMN_TITLES
from mmed.reporting.tables import percent, score_text
from mmed.utils.errors import Parser, main_guard
from mmed.utils.files import atomic_write, read_json

COLUMNS = ("answer", "loglikelihood", "option_text", "option_text_pmi")
PAIRS = (("corpus", "base"), ("replay", "base"), ("control", "base"), ("corpus", "control"),
         ("replay", "control"))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def accuracy_tables(out: Path, rows: list[str]) -> list[str]:
    """One table per score: rows x methods over all items, then by language."""
    groups = {}  # (row, method) -> group -> its part of the summary
    for row, method in itertools.product(rows, METHODS):
        summary = load_results(out / "results" / f"{method}_{row}")[0]["summary"]
        groups[row, method] = {"all languages": summary["micro"], **summary["languages"]}
    parts = []
    for column in COLUMNS:
        lines = []
        for group, row in itertools.product(groups[rows[0], "zero"], rows):
            own = [groups[row, method][group] for method in METHODS]
            lines.append([f"{group}: {TITLES[row]}", f"{own[0]['n']:,}", f"{100 * own[0]['chance']:.1f}",
                          *(score_text(percent(part["accuracy"][column])) for part in own)])
        title = f"Accuracy by {COLUMN_TITLES[column]}, % [95 % interval]"
        parts.append(f"### {title}\n\n{markdown(['', 'n', 'chance', *METHODS.values()], lines)}")
    return parts


def test_tables(out: Path, rows: list[str]) -> list[str]:
    """Paired tests between rows, per method and score, over all items."""
    lines = []
    pairs = [pair for pair in PAIRS if set(pair) <= set(rows)]
    for (method, title), (one, other) in itertools.product(METHODS.items(), pairs):
        folders = [str(out / "results" / f"{method}_{row}") for row in (one, other)]
        a, b = map(read, folders)
        check_same_items(folders, [a, b])
        found = {line.column: line for line in compare(a, b)[0] if line.group == "micro average"}
        for column in COLUMNS:
            line = found[column]
            interval = f"[{100 * line.low:+.1f} to {100 * line.high:+.1f}]" if line.low == line.low else "[-]"
            lines.append([f"{title}: {TITLES[one]} - {TITLES[other]}", COLUMN_TITLES[column],
                          f"{100 * line.difference:+.1f} {interval}", f"{line.p:.3f}"])
    header = ["comparison", "score", "difference in points [95 %]", "p (McNemar)"]
    return [f"### Paired tests over all items (p is not corrected for the number of rows)\n\n"
            f"{markdown(header, lines)}"]


def loss_tables(out: Path) -> list[str]:
    """Validation loss of each model, nats per token, and what the corpus step changed."""
    parts = []
    for kind in KINDS:
        losses = {row: {part["language"]: part for part in read_json(out / "loss" / f"{row}-{kind}.json")}
                  for row in ("base", *CORPUS_STEPS)}
        lines = []
        for language, part in losses["base"].items():
            base = part["nats_per_token"]
            moved = [losses[row][language]["nats_per_token"] for row in CORPUS_STEPS]
            name = language.removeprefix("general ")
            lines.append([name, f"{part['documents']:,}", f"{part['tokens']:,}", f"{base:.3f}",
                          *(f"{loss:.3f} ({loss - base:+.3f})" for loss in moved)])
        header = ["", "documents", "tokens", "base", *(TITLES[row] for row in CORPUS_STEPS)]
        parts.append(f"### Validation loss on {kind} text, nats per token\n\n{markdown(header, lines)}")
    return parts


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.real_run.tables", description="Print the real run's tables.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", choices=tuple(TITLES), default=["base", "corpus", "control"])
    options = parser.parse_args(arguments)
    parts = [*accuracy_tables(options.out, options.rows), *test_tables(options.out, options.rows),
             *loss_tables(options.out)]
    text = "\n\n".join(parts) + "\n"
    with atomic_write(options.out / "tables.md") as file:
        file.write(text)
    print(text)
    return 0


if __name__ == "__main__":
    main_guard(main)
