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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.documents import find_inputs, json_line
from data_prep.record_files import read_records
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, atomic_write, check_file, leftovers, temporary_name, write_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# What a model hub, git or macOS ("._train.json") puts beside the exams
NOT_EXAMS = re.compile(r"(^|/)(\.|dataset_infos?\.json$)")
SPLITS = {"train": "Train", "training": "Train", "test": "Test", "testing": "Test",
          **dict.fromkeys(("dev", "val", "valid", "validation"), "Val")}
WRAPPERS = ("rows", "data", "questions", "items", "examples")  # names of an array in an object around it
ID = "$id"  # the key under which a record of a JSON object by id gets its id
UTF8 = ("utf-8-sig",)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # a file's first bytes
Records = Iterator[tuple[str, dict[str, Any]]]


def split_of(name: str) -> str | None:
    """The split named in a file name, such as phrases_train.jsonl, or None."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)


def stated_split(path: Path, given: Path) -> str | None:
    """The split that a file's name states, or else a folder between it and the given path."""
    names = path.relative_to(given).parts if given.is_dir() else path.parts[-1:]
    if not re.search("[a-z]", path.stem):  # a model hub calls its files test/0000.parquet
        names = path.parts[-2:]
    return next(filter(None, map(split_of, reversed(names))), None)


def exam_files(path: Path, pattern: str, prefer: str, official: bool,
               notes: list[str]) -> dict[Path, str | None]:
    """The file itself, or the files below a folder whose path matches `pattern`, each with its split; with
    `official` only those that state one; only those whose path matches `prefer`, if any does."""
    if path.is_file():
        return {path: stated_split(path, path)}
    found = {p: stated_split(p, path) for p in find_inputs([path], SUFFIXES)
             if not NOT_EXAMS.search(p.relative_to(path).as_posix())}
    matching = {p: split for p, split in found.items() if re.search(pattern, p.absolute().as_posix())}
    chosen = {p: split for p, split in matching.items() if split or not official}
    if not chosen:
        named = ", with train, dev or test in its name" * official
        has = ", ".join(p.relative_to(path).as_posix() for p in [*found][:5]) or "none"
        raise UserError(f"{path}: no file below this folder matches {pattern or SUFFIXES}{named} (it has "
                        f"{has}); give the file's own path to read it anyway")
    if others := [p.name for p in matching if p not in chosen]:
        notes.append(f"skipped, no train, dev or test in the name: {', '.join(others[:5])}")
    return {p: split for p, split in chosen.items() if re.search(prefer, p.absolute().as_posix())} or chosen


def parse_json(data: str | bytes) -> Any:
    """A JSON value, from bytes in any Unicode encoding; NaN, a data frame's missing value, becomes null."""
    return json.loads(data, parse_constant=lambda name: None)


def records(path: Path, encodings: tuple[str, ...] = UTF8) -> Records:
    """The records of one file; `encodings` are those of a table."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from csv_records(path, encodings)
    elif suffix == ".json":
        yield from json_records(path)
    else:
        yield from line_records(path, suffix)


def line_records(path: Path, suffix: str) -> Records:
    """The records of JSON lines or of a parquet file."""
    def bad(reason: str, number: int, size: int) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    yield from ((f"{path}:{number}", record) for number, record in read_records(path, suffix, bad))


def json_records(path: Path) -> Records:
    """The records of one JSON value, or of JSON lines that are named .json."""
    check_file(path, MAX_JSON_BYTES)
    try:
        value = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        if "Extra data" not in str(error):
            raise UserError(f"{path}: not valid JSON ({error})") from None
        yield from line_records(path, ".jsonl")
        return
    for name, item in named_records(value).items():
        if not isinstance(item, dict):
            raise UserError(f"{path}: {name}: expected an object, got {type(item).__name__}")
        if item.get("truncated_cells"):
            raise UserError(f"{path}: {name}: the dataset viewer shortened {item['truncated_cells']}; "
                            "download the dataset's own file")
        yield f"{path}: {name}", item["row"] if "row_idx" in item else item


def named_records(value: Any) -> dict[str, Any]:
    """{place: record} of an array, or of an object that holds records by id, one array of them (WRAPPERS), or
    columns as data frames write them, {name: {"0": cell}} or {name: [cell]}."""
    if isinstance(value, dict):
        parts = list(value.values())
        if all(isinstance(part, dict) for part in parts):
            if not all(name.isdecimal() for part in parts for name in part):
                return {key: {ID: key, **item} for key, item in value.items()}
            parts = [list(part.values()) for part in parts]
        if arrays := [value[name] for name in WRAPPERS if isinstance(value.get(name), list)]:
            value = arrays[0]
        elif all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
            value = [dict(zip(value, row)) for row in zip(*parts)]
    return {f"item {n}": item for n, item in enumerate(value if isinstance(value, list) else [value], 1)}


def csv_records(path: Path, encodings: tuple[str, ...] = UTF8,
                header: Sequence[str] | None = None) -> Records:
    """The records of a table, in the first encoding that fits; `header`: the columns of one without a header.
    Spreadsheets also write semicolons, tabs, UTF-16 and blank rows."""
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
    delimiter = "," if header else max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        for row in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [name.strip() for name in row]
            elif len(row) < len(header) or any(row[len(header):]):  # published rows may end in empty cells
                raise UserError(f"{place}: {len(row)} columns, expected {len(header)}")
            else:
                yield place, dict(zip(header, row))
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not valid CSV ({error})") from None


def write_folder(out: Path, files: Mapping[str, Iterable[dict]], report_name: str, report: Any) -> None:
    """Write JSONL files and a report; the folder is complete or absent, and replaces an earlier one."""
    out = out.resolve()
    temporary, old = temporary_name(out), temporary_name(out)
    try:
        for name, rows in files.items():
            with atomic_write(temporary / name, "wb") as file:
                file.writelines(json_line(row) for row in rows)
        write_json(temporary / report_name, report)
        for path in leftovers(out):  # of killed runs; not earlier, for one may be the only complete folder
            if path != temporary:
                shutil.rmtree(path, ignore_errors=True)
        if out.exists():  # not removed here, where a kill would leave a part of it
            os.replace(out, old)
        os.replace(temporary, out)
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
