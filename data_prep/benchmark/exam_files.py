"""Reads published exam files: finds the files in a folder, their splits and their records.

In: a file, or a folder of CSV, JSON lines, JSON (an array, or an object by id) and parquet files.
Out: (place, record) in a stable order; the place is file:line or "file: item N".
"""
from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.record_files import read_records
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, check_file, read_json, read_jsonl, temporary_name

SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
SPLITS = {"train": "Train", "test": "Test", **dict.fromkeys(("dev", "val", "valid", "validation"), "Val")}
ID = "$id"  # the key under which a record of a JSON object by id gets its id
Records = Iterator[tuple[str, dict[str, Any]]]


def split_of(name: str) -> str | None:
    """Return the split named in a file name.

    >>> [split_of(n) for n in ("phrases_train.jsonl", "dev_HEAD.json", "test.part1.jsonl", "ori_pqal.json")]
    ['Train', 'Val', 'Test', None]
    """
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)


def exam_files(path: Path, pattern: str, official: bool, notes: list[str]) -> list[Path]:
    """The file itself, or the files below a folder whose path matches `pattern`, sorted; with `official` only
    those whose names state a split."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = sorted((p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()), key=Path.as_posix)
    files = [p for p in found if re.search(pattern, p.relative_to(path).as_posix())]
    chosen = [p for p in files if not official or split_of(p.name)]
    if not chosen:
        named = ", with train, dev or test in its name" * official
        has = ", ".join(p.name for p in found[:5]) or "none"
        raise UserError(f"{path}: no file below this folder matches {pattern or SUFFIXES}{named} (it has "
                        f"{has}); give the file's own path to read it anyway")
    if others := [p.name for p in files if p not in chosen]:
        notes.append(f"skipped, no train, dev or test in the name: {', '.join(others[:5])}")
    return chosen


def records(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> Records:
    """The records of one file."""
    if path.suffix == ".parquet":
        def bad(reason: str, number: int, size: int) -> None:
            raise UserError(f"{path}: row {number}: {reason}")

        yield from ((f"{path}: row {number}", record)
                    for number, record in read_records(path, ".parquet", bad))
    elif path.suffix == ".csv":
        (_, header), *rows = csv_rows(path, encodings) or [(1, [])]
        for line, row in rows:
            if len(row) != len(header):
                raise UserError(f"{path}:{line}: {len(row)} columns, the header has {len(header)}")
            yield f"{path}:{line}", dict(zip(header, row))
    elif path.suffix == ".json":
        yield from json_records(path)
    else:
        yield from ((f"{path}:{number}", record) for number, record in read_jsonl(path))


def json_records(path: Path) -> Records:
    """The records of an array, of an object that has them by id, or of JSON lines that are named .json."""
    try:
        value = read_json(path)
    except UserError:
        value = None
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            if not isinstance(item, dict):
                raise UserError(f"{path}: item {number}: expected an object, got {type(item).__name__}")
            yield f"{path}: item {number}", item
    elif isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        yield from ((f"{path}: {key}", {ID: key, **item}) for key, item in value.items())
    elif isinstance(value, dict):
        yield f"{path}:1", value
    else:
        yield from ((f"{path}:{number}", record) for number, record in read_jsonl(path))


def csv_rows(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> list[tuple[int, list[str]]]:
    """Read (line number, cells) in the first encoding that fits; quoted cells may contain line breaks."""
    check_file(path, MAX_JSON_BYTES)
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_bytes().decode(encoding)
            break
    else:
        raise UserError(f"{path}: not in {' or '.join(encodings)}; convert the file to UTF-8")
    csv.field_size_limit(10_000_000)  # the default of 131,072 is less than a long case with its tables
    reader, rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not valid CSV ({error})") from None
    return rows


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `out` when the block ends."""
    out = out.resolve()
    temporary = temporary_name(out)
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
