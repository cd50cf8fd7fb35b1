"""Finds the files of a published exam, with their splits, and reads their records.

In: a file, or a folder of CSV, JSON lines, JSON (an array, or an object by id) and parquet files.
Out: (place, record) in a stable order; the place is file:line, file:item or "file: id".
"""
from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.documents import find_inputs, json_line
from data_prep.record_files import read_records
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, atomic_write, check_file, finite, temporary_name, write_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# What a model hub, git or macOS ("._train.json") puts beside the exams
NOT_EXAMS = re.compile(r"(^|/)(\.|dataset_infos?\.json$)")
SPLITS = {"train": "Train", "test": "Test", **dict.fromkeys(("dev", "val", "valid", "validation"), "Val")}
ID = "$id"  # the key under which a record of a JSON object by id gets its id
UTF8, UTF16 = ("utf-8-sig",), (b"\xff\xfe", b"\xfe\xff")  # names of an encoding; first bytes of a file
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
    """The file itself, or the files below a folder whose path matches `pattern`, each with its split; with
    `official` only those that state one; only those with `prefer` in their path, if any have."""
    if path.is_file():
        return {path: stated_split(path, path)}
    found = {p: stated_split(p, path) for p in find_inputs([path], SUFFIXES)
             if re.search(pattern, p.absolute().as_posix())
             and not NOT_EXAMS.search(p.relative_to(path).as_posix())}
    chosen = {p: split for p, split in found.items() if split or not official}
    if not chosen:
        raise UserError(f"{path}: no file below this folder matches {pattern or SUFFIXES}, or none has train "
                        "or test in its name; give the file's own path to read it anyway")
    return {p: split for p, split in chosen.items() if prefer in p.absolute().as_posix()} or chosen


def parse_json(data: str | bytes) -> Any:
    """A JSON value, from bytes in any Unicode encoding; NaN, a data frame's missing value, becomes null."""
    return json.loads(data, parse_constant=lambda name: None)


def records(path: Path, encodings: tuple[str, ...] = UTF8) -> Records:
    """The records of one file; `encodings` are those of a table."""
    def bad(reason: str, number: int, size: int) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from csv_records(path, encodings)
        return
    found = read_records(path, suffix, bad)
    if suffix == ".json" and path.read_bytes()[:2] in UTF16:
        found = enumerate(parse_json(path.read_bytes()), 1)
    for number, record in found:
        if suffix == ".json" and all(isinstance(value, dict) for value in record.values()):  # an object by id
            yield from ((f"{path}: {key}", {ID: key, **value}) for key, value in record.items())
        else:
            yield f"{path}:{number}", record


def csv_records(path: Path, encodings: tuple[str, ...] = UTF8,
                header: Sequence[str] | None = None) -> Records:
    """The records of a table, in the first encoding that fits; `header`: the columns of one without a header.

    Spreadsheets also write semicolons, tabs and UTF-16.
    """
    check_file(path, MAX_JSON_BYTES)
    data = path.read_bytes()
    if data[:2] in UTF16:
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


def write_folder(out: Path, files: Mapping[str, Iterable[dict]], report_name: str, report: Any) -> None:
    """Write JSONL files and a report; the folder is complete or absent, and replaces an earlier one."""
    out = out.resolve()
    temporary = temporary_name(out)
    try:
        for name, rows in files.items():
            with atomic_write(temporary / name, "wb") as file:
                file.writelines(json_line(finite(row)) for row in rows)
        write_json(temporary / report_name, report)
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
