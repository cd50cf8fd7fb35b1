"""Reads records from published corpus files: JSON lines, parquet or text, compressed or not.

In:  a path. The content decides how a file is unpacked (gzip, bzip2, xz, zstandard) and what it is: parquet,
     or JSON (lines, an array, or one object over several lines). The name decides for the rest.
Out: (line or row number, record), one record in memory at a time. What cannot be read is reported to
     `bad(reason, number, size)`, and reading continues. data_prep/documents.py turns records into documents.
"""
from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import check_file

MAX_LINE_BYTES = 1 << 29  # bounds memory; longer lines are skipped
BATCH_BYTES = 1 << 26  # about this much of a parquet row group is in memory
MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` needs, as published dumps do
DAMAGED = "file truncated or damaged"
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson", ".json")
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by a file's first bytes
WHOLE_JSON = re.compile(rb"\[|\{\s*\n")  # an array, or an object over several lines
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or one to skip

Bad = Callable[[str, int, int], None]  # (reason, line or row number, size)
Records = Iterator[tuple[int, dict[str, Any]]]


class BadRecord(ValueError):
    """A record that cannot be used; the message is the reason it is counted under."""


class _Zstandard(io.RawIOBase):
    """Read a zstandard file frame by frame; a truncated frame raises EOFError, which stream_reader hides."""

    def __init__(self, path: Path):
        decompressor = require_extra("zstandard", "zstd").ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._new_frame, self._frame = decompressor.decompressobj, decompressor.decompressobj()
        self._file, self._data, self._inside = open(path, "rb"), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = self._new_frame(), False
            packed = packed or self._file.read(1 << 16)
            if not packed:
                if self._inside:
                    raise EOFError
                return 0
            self._data, self._inside = self._frame.decompress(packed), True
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_packed(path: Path) -> tuple[Any, tuple[type[Exception], ...]]:
    """Open a file, decompressing it if needed; also return the exceptions that indicate damage."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, unpack in UNPACKERS.items():
        if start.startswith(magic):
            return unpack(path), (EOFError, OSError, zlib.error, lzma.LZMAError)
    if not ZSTD.match(start):
        return open(path, "rb"), ()
    damage = (EOFError, require_extra("zstandard", "zstd").ZstdError)
    return io.BufferedReader(_Zstandard(path), 1 << 16), damage


def read_records(path: Path, kind: str, bad: Bad, paragraphs: bool = False) -> Records:
    """Yield the records of a file; kind is its suffix without the compression suffix, or ""."""
    check_file(path)
    file, damage = open_packed(path)
    with file:
        try:
            start = file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
            if kind == ".parquet" or start.startswith(b"PAR1"):
                yield from _read_parquet(path, bad)
            elif kind == ".txt" and paragraphs:
                yield from _read_paragraphs(file, bad)
            elif kind == ".txt":
                yield 1, {"text": _decode(_read_all(file, path))}
            elif WHOLE_JSON.match(start):
                yield from _read_json(_parse(_read_all(file, path)), bad)
            elif kind in JSON_LINES or start[:1] in (b"{", b""):
                yield from _read_lines(file, bad)
            else:
                raise UserError(f"{path}: neither JSON lines nor parquet, and not named .txt; unpack "
                                "archives, and give wikiextractor --json")
        except BadRecord as error:  # the whole file is one record
            bad(str(error), 1, 0)
        except damage:
            bad(DAMAGED, 0, 0)


def _read_lines(file: IO[bytes], bad: Bad) -> Records:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):  # bytes: U+2028 and a lone \r do not end a line
        number += 1
        if len(line) == MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            bad(f"line longer than {MAX_LINE_BYTES >> 20} MiB", number, 0)
        elif line.strip():
            try:
                yield number, _object(_parse(line))
            except BadRecord as error:
                bad(str(error), number, len(line))


def _read_json(value: Any, bad: Bad) -> Records:
    """The objects or texts of an array, or a single object."""
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        try:
            yield number, {"text": item} if isinstance(item, str) else _object(item)
        except BadRecord as error:
            bad(str(error), number, 0)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRecord("not an object")
    return value


def _parse(data: bytes) -> Any:
    """A JSON value; NaN, by which data frames write a missing value, and infinity become null."""
    text = _decode(data)
    try:
        return json.loads(text, parse_constant=lambda name: None,
                          parse_float=lambda digits: _finite(float(digits)))
    except RecursionError:
        raise BadRecord("nested too deeply") from None
    except ValueError:
        raise BadRecord("not JSON") from None


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read_all(file: IO[bytes], path: Path) -> bytes:
    data = file.read(MAX_LINE_BYTES)
    if len(data) == MAX_LINE_BYTES:
        raise UserError(f"{path}: longer than {MAX_LINE_BYTES >> 20} MiB; convert it to JSON lines, or read "
                        "a .txt file with --paragraphs")
    return data


def _read_paragraphs(file: IO[bytes], bad: Bad) -> Records:
    """Each part between blank lines is a document."""
    def is_blank(line: tuple[int, bytes]) -> bool:
        return not line[1].decode("utf-8", "replace").strip()

    for blank, lines in groupby(enumerate(file, 1), is_blank):
        numbers, parts = zip(*lines)
        try:
            if not blank:
                yield numbers[0], {"text": _decode(b"".join(parts)).rstrip("\r\n")}
        except BadRecord as error:
            bad(str(error), numbers[0], 0)


def _read_parquet(path: Path, bad: Bad) -> Records:
    """Rows in batches; the rest of a damaged row group is counted, and the next one is read."""
    pyarrow = require_extra("pyarrow", "parquet")
    damage, first = (pyarrow.ArrowException, OSError), 1
    try:
        file = require_extra("pyarrow.parquet", "parquet").ParquetFile(path)
    except damage:
        bad(DAMAGED, first, 0)
        return
    with file:
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            size = max(1, min(256, facts.num_rows * BATCH_BYTES // max(1, facts.total_byte_size)))
            number = first
            try:
                for record in chain.from_iterable(map(_rows, file.iter_batches(size, [group]))):
                    if record is None:
                        bad("not UTF-8", number, 0)
                    else:
                        yield number, record
                    number += 1
            except pyarrow.ArrowNotImplementedError as error:
                raise UserError(f"{path}: pyarrow cannot read this file: {error}") from None
            except damage:
                bad(DAMAGED, number, 0)
            first += facts.num_rows


def _rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Rows as JSON values; None for a row that is not UTF-8."""
    try:
        yield from map(_plain, batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1))


def _plain(value: Any) -> Any:
    """Nested columns as they are; bytes as text, NaN as null, dates and decimals as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str | bool | int) else str(value)
