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
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import check_file, finite

MAX_LINE_BYTES = 1 << 29  # bounds memory; longer lines are skipped
MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` needs, as published dumps do
BATCH_BYTES = 1 << 26  # about this much of a parquet file is in memory
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson", ".json")
WHOLE_JSON = re.compile(rb"\[|\{\s*\n")  # an array, or an object over several lines
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by a file's first bytes
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or one to skip
DAMAGED = "file truncated or damaged"
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what reading such a file raises


class BadRecord(ValueError):
    """A record that cannot be used; the message is the reason it is counted under."""


def read_records(path: Path, kind: str, bad: Callable[[str, int, int], None],
                 paragraphs: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the records of a file; kind is its suffix without the compression suffix, or ""."""
    check_file(path)
    with open_packed(path) as file:
        try:
            if path.suffix.lower() in PACKED and not path.stat().st_size:
                raise EOFError  # a download that did not begin
            for number, item in _numbered_items(file, path, kind, paragraphs):
                try:
                    record = _to_record(item, kind)
                except BadRecord as error:
                    bad(str(error), number, len(item) if isinstance(item, bytes) else 0)
                else:
                    yield number, record
        except BadRecord as error:  # a file that is one JSON value
            bad(str(error), 1, 0)
        except DAMAGE as error:
            if getattr(error, "errno", None):  # the disk or the network has failed, not the file
                raise
            bad(DAMAGED, 0, 0)


def open_packed(path: Path) -> Any:
    """Open a file, and unpack what is read from it if its first bytes say that it is packed."""
    with open(path, "rb") as file:
        start = file.read(6)
    if ZSTD.match(start):
        return io.BufferedReader(_Chunks(_unpack_zstd(path)), 1 << 16)
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if start.startswith(magic)), open)
    return unpack(path, "rb")


def _unpack_zstd(path: Path) -> Iterator[bytes]:
    """Unpack frame by frame, because zstandard's own `stream_reader` hides that a file is truncated."""
    zstandard = require_extra("zstandard", "zstd")
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    frame = decompressor.decompressobj()
    with open(path, "rb") as file:
        try:
            while packed := frame.unused_data or file.read(1 << 16):
                frame = decompressor.decompressobj() if frame.eof else frame
                yield frame.decompress(packed)
        except zstandard.ZstdError:
            raise EOFError from None
    if not frame.eof:
        raise EOFError


class _Chunks(io.RawIOBase):
    """A file made of the chunks that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._data = filter(None, chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._data = self._data or next(self._chunks, b"")
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size


def _numbered_items(file: Any, path: Path, kind: str, paragraphs: bool) -> Iterable[tuple[int, Any]]:
    """Numbered items: texts of a .txt file or JSON lines as bytes, otherwise parsed values."""
    start = file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind == ".parquet" or start.startswith(b"PAR1"):
        return _parquet_rows(path)
    if kind == ".txt":
        return _paragraphs(file) if paragraphs else [(1, _read_all(file, path))]
    if WHOLE_JSON.match(start):
        value = _parse(_read_all(file, path))
        return enumerate(value if isinstance(value, list) else [value], 1)
    if kind in JSON_LINES or start[:1] in (b"{", b""):
        return _lines(file)
    raise UserError(f"{path}: neither JSON lines nor parquet, and not named .txt; unpack archives, and give "
                    "wikiextractor --json")


def _read_all(file: Any, path: Path) -> bytes:
    data = file.read(MAX_LINE_BYTES)
    if len(data) == MAX_LINE_BYTES:
        raise UserError(f"{path}: longer than {MAX_LINE_BYTES >> 20} MiB; convert it to JSON lines, or read "
                        "a .txt file with --paragraphs")
    return data


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank; of longer lines the first MAX_LINE_BYTES."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):  # bytes: U+2028 and a lone \r do not end a line
        number += 1
        if line.strip():
            yield number, line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)


def _paragraphs(file: Any) -> Iterator[tuple[int, bytes]]:
    """The parts between blank lines, numbered by their first line; of a longer one about MAX_LINE_BYTES."""
    begin, text = 0, bytearray()
    for number in count(1):
        line = file.readline(MAX_LINE_BYTES)
        if line.decode("utf-8", "replace").strip():
            begin = begin or number
            text += line if len(text) < MAX_LINE_BYTES else b""
        elif text:
            yield begin, bytes(text).rstrip(b"\r\n")
            begin, text = 0, bytearray()
        if not line:
            return


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows; the rest of a damaged row group is one `BadRecord`, and the next group is read."""
    pyarrow, first = require_extra("pyarrow", "parquet"), 1
    damage = (pyarrow.ArrowException, OSError)
    try:
        file = require_extra("pyarrow.parquet", "parquet").ParquetFile(path)
    except damage:
        raise EOFError from None
    with file:
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            size = max(1, min(256, facts.num_rows * BATCH_BYTES // max(1, facts.total_byte_size)))
            number = first
            try:
                for row in chain.from_iterable(map(_batch_rows, file.iter_batches(size, [group]))):
                    yield number, row
                    number += 1
            except pyarrow.ArrowNotImplementedError as error:
                raise UserError(f"{path}: pyarrow cannot read this file: {error}") from None
            except damage:
                yield number, BadRecord(DAMAGED)
            first += facts.num_rows


def _batch_rows(batch: Any) -> Iterator[Any]:
    """Rows as JSON would hold them; a `BadRecord` in place of one that is not UTF-8."""
    try:
        yield from map(_plain, batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield BadRecord("not UTF-8")
        else:
            for row in range(batch.num_rows):
                yield from _batch_rows(batch.slice(row, 1))


def _plain(value: Any) -> Any:
    """Nested columns as they are; NaN as null; bytes, dates and decimals as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return finite(value) if value is None or isinstance(value, str | bool | int | float) else str(value)


def _to_record(item: Any, kind: str) -> dict[str, Any]:
    if isinstance(item, BadRecord):
        raise item
    if isinstance(item, bytes):
        if kind == ".txt" and 20 * item.count(0) > len(item):  # UTF-16: a zero byte in each ASCII character
            raise BadRecord("not UTF-8")
        item = {"text": _decode(item)} if kind == ".txt" else _parse(item)
    elif isinstance(item, str):  # in an array, as in Apollo's corpus
        item = {"text": item}
    if not isinstance(item, dict):
        raise BadRecord("not an object")
    return item


def _parse(data: bytes) -> Any:
    """A JSON value; NaN (how data frames write a missing value) and infinity become null."""
    text = _decode(data)
    try:
        return finite(json.loads(text))
    except (ValueError, RecursionError):
        raise BadRecord("not JSON") from None


def _decode(data: bytes) -> str:
    if len(data) >= MAX_LINE_BYTES:
        raise BadRecord(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None
