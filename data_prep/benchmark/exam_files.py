"""Finds the files of a published exam, with their splits, and reads their records.

In: a file, or a folder of CSV, JSON lines, JSON (an array, or an object by id) and parquet files.
Out: (place, record) in a stable order; the place is file:line or "file: item N".
"""
from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.record_files import read_records
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, check_file, temporary_name

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# What a model hub, git or macOS ("._train.json") puts beside the exams
NOT_EXAMS = re.compile(r"(^|/)(\.|dataset_infos?\.json$)")
SPLITS = {"train": "Train", "test": "Test", **dict.fromkeys(("dev", "val", "valid", "validation"), "Val")}
ID = "$id"  # the key under which a record of a JSON object by id gets its id
UTF8 = ("utf-8-sig",)
Records = Iterator[tuple[str, dict[str, Any]]]


def split_of(name: str) -> str | None:
    """The split named in a file name.

    >>> [split_of(n) for n in ("phrases_train.jsonl", "dev_HEAD.json", "test.part1.jsonl", "ori_pqal.json")]
    ['Train', 'Val', 'Test', None]
    """
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)


def stated_split(path: Path, given: Path) -> str | None:
    """The split that a file's name states, or else a folder between it and the given path."""
    names = path.relative_to(given).parts if given.is_dir() else path.parts[-1:]
    if not re.search("[a-z]", path.stem):  # a model hub calls its files test/0000.parquet
        names = path.parts[-2:]
    return next(filter(None, map(split_of, reversed(names))), None)


def exam_files(path: Path, pattern: str, prefer: str, official: bool) -> dict[Path, str | None]:
    """The file itself, or the files below a folder whose path matches `pattern`, sorted, each with its split;
    with `official` only those that state one; only those that match `prefer`, if any do."""
    if path.is_file():
        return {path: stated_split(path, path)}
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = sorted((p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
                    and not NOT_EXAMS.search(p.relative_to(path).as_posix())), key=Path.as_posix)
    splits = {p: stated_split(p, path) for p in found if re.search(pattern, p.absolute().as_posix())}
    chosen = {p: split for p, split in splits.items() if split or not official}
    if not chosen:
        named = ", with train, dev or test in its name" * official
        has = ", ".join(p.relative_to(path).as_posix() for p in found[:5]) or "none"
        raise UserError(f"{path}: no file below this folder matches {pattern or SUFFIXES}{named} (it has "
                        f"{has}); give the file's own path to read it anyway")
    preferred = {p: split for p, split in chosen.items() if prefer and prefer in p.absolute().as_posix()}
    return preferred or chosen


def records(path: Path, encodings: tuple[str, ...] = UTF8) -> Records:
    """The records of one file."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return json_records(path)
    if suffix in (".csv", ".tsv"):
        return csv_records(path, encodings)
    return line_records(path, suffix if suffix == ".parquet" else ".jsonl")


def line_records(path: Path, kind: str) -> Records:
    """The records of JSON lines or of a parquet file."""
    def bad(reason: str, number: int, size: int) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    yield from ((f"{path}:{number}", record) for number, record in read_records(path, kind, bad))


def parse_json(data: str | bytes) -> Any:
    """A JSON value, from bytes in any Unicode encoding; NaN, a data frame's missing value, becomes null."""
    return json.loads(data, parse_constant=lambda name: None)


def json_records(path: Path) -> Records:
    """The records of an array, of an object that has them by id, or of JSON lines that are named .json."""
    check_file(path, MAX_JSON_BYTES)
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        if "Extra data" not in str(error):
            raise UserError(f"{path}: not valid JSON ({error})") from None
        yield from line_records(path, ".jsonl")
        return
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        yield from ((f"{path}: {key}", {ID: key, **item}) for key, item in value.items())
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: item {number}: expected an object, got {type(item).__name__}")
        yield f"{path}: item {number}", item


def csv_records(path: Path, encodings: tuple[str, ...] = UTF8,
                header: Sequence[str] | None = None) -> Records:
    """The records of a table, in the first encoding that fits; `header`: the columns of one without a header.

    Spreadsheets also write semicolons, tabs and UTF-16.
    """
    check_file(path, MAX_JSON_BYTES)
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ("utf-16",)
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            break
    else:
        raise UserError(f"{path}: not in {' or '.join(encodings)}; convert the file to UTF-8")
    csv.field_size_limit(10_000_000)  # the default of 131,072 is less than a long case with its tables
    delimiter = "," if header else max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), header, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if any(row.pop(None, ())) or None in row.values():  # published ones have empty cells at the end
                raise UserError(f"{path}:{rows.line_num}: expected {len(rows.fieldnames)} columns")
            yield f"{path}:{rows.line_num}", {name.strip(): cell for name, cell in row.items()}
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: not valid CSV ({error})") from None


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
