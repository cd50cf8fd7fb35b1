"""Divide exam items and documents of the real run into parts that never overlap.

    python -m examples.real_run.prepare exams BENCHMARK --out EXAMS --items 24 [--development 50]
    python -m examples.real_run.prepare documents FOLDER ... --language fr --documents 6 --out NAME

exams      BENCHMARK/Train -> EXAMS/Dev (settings are chosen on these items) and EXAMS/Train (fine-tuning);
           BENCHMARK/Test -> EXAMS/Test. Items that need a picture are left out, and items with several
           keys: five options have 31 possible sets of letters, each with a likelihood of its own.
documents  -> NAME.train.jsonl and NAME.validation.jsonl. Validation documents have 200 to 4,000 characters.

Both choose by the hash of the text, so a larger part contains the smaller one.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from data_prep.documents import find_inputs, read_documents
from data_prep.rationales import read_entries
from mmed.evaluation.summary import group_by
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import atomic_write
from mmed.utils.journal import json_line

SHORTEST, LONGEST = 200, 4000  # characters of a validation document


def by_hash(rows: Iterable[dict], key: str) -> list[dict]:
    """Rows in the order of the SHA-256 of one of their texts: a shuffle that never changes."""
    return sorted(rows, key=lambda row: hashlib.sha256(row[key].encode()).digest())


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    with atomic_write(path) as file:
        file.writelines(map(json_line, rows))


def usable_items(folder: Path) -> dict[str, list[dict]]:
    """The items with one key and no picture of each file, in the order of their hash."""
    usable = [entry for entry in read_entries(folder)
              if len(entry.item.answer) == 1 and not entry.row.get("image_dependent")]
    return {name: by_hash((entry.row for entry in entries), "question")
            for name, entries in group_by(usable, lambda entry: entry.file).items()}


def divide_exams(benchmark: Path, out: Path, items: int, development: int) -> None:
    for name, rows in usable_items(benchmark / "Train").items():
        # keep equal questions with different options on one side
        border = min(development, len(rows) // 2)
        while border < len(rows) and rows[border]["question"] == rows[border - 1]["question"]:
            border += 1
        write_rows(out / "Dev" / name, rows[:border])
        write_rows(out / "Train" / name, rows[border:border + items] if items else rows[border:])
    for name, rows in usable_items(benchmark / "Test").items():
        write_rows(out / "Test" / name, rows)


def divide_documents(sources: list[Path], language: str, documents: int, name: str) -> None:
    found = (document for path in find_inputs(sources) for document in read_documents(path))
    rows = by_hash(({"text": document.text, "language": language, "source": "corpus", "id": document.id}
                    for document in found), "text")
    validation = [row for row in rows if SHORTEST <= len(row["text"]) <= LONGEST][:documents]
    if len(validation) < documents:
        raise UserError(f"{sources[0]}: only {len(validation)} documents of {SHORTEST} to {LONGEST} "
                        f"characters in {language}; the validation loss needs {documents}")
    chosen = {row["text"] for row in validation}
    write_rows(Path(f"{name}.validation.jsonl"), validation)
    write_rows(Path(f"{name}.train.jsonl"), (row for row in rows if row["text"] not in chosen))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.real_run.prepare", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    exams = commands.add_parser("exams", help="divide a benchmark into Dev, Train and Test")
    exams.add_argument("benchmark", type=Path)
    exams.add_argument("--out", type=Path, required=True)
    exams.add_argument("--items", type=int, default=0, help="train items per language (default: all)")
    exams.add_argument("--development", type=int, default=50, help="development items per language")
    documents = commands.add_parser("documents", help="divide documents into train and validation")
    documents.add_argument("sources", type=Path, nargs="+")
    documents.add_argument("--language", required=True)
    documents.add_argument("--documents", type=int, required=True, help="number of validation documents")
    documents.add_argument("--out", required=True, metavar="NAME")
    options = parser.parse_args(arguments)
    if options.command == "exams":
        divide_exams(options.benchmark, options.out, options.items, options.development)
    else:
        divide_documents(options.sources, options.language, options.documents, options.out)
    return 0


if __name__ == "__main__":
    main_guard(main)
