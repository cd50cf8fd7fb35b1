"""Records from corpus files as they are published: JSON lines, a JSON array, parquet, plain text; packed or
not.

In:  a path. The content decides how a file is unpacked (gzip, bzip2, xz, zstandard) and what it is: parquet,
     JSON lines if it begins with "{", a JSON array if it begins with "[". The name decides only for the rest:
     .txt, or none.
Out: (line or row number, record), one record in memory at a time. What cannot be read is reported to
     `bad(reason, number, size)`, and reading continues. data_prep/documents.py turns records into documents.
"""
from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError, require_extra

MAX_LINE_BYTES = 1 << 29  # bounds memory; longer lines are skipped
BATCH_BYTES = 1 << 26  # of a parquet row group, about so much is in memory
MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` needs, as published dumps do
DAMAGED = "file truncated or damaged"
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson")
LFS_POINTER = b"version https://git-lfs"

Bad = Callable[[str, int, int], None]  # (reason, line or row number, size)


class BadRecord(ValueError):
    """A record that cannot be used; the message is the reason it is counted under."""


class _Unpacked(io.RawIOBase):
    """A compressed file that ends where it is damaged and remembers that; everything before the damage is
    read."""

    def __init__(self, file: Any, errors: tuple[type[BaseException], ...]):
        self._file, self._errors, self.damaged = file, errors, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = b"" if self.damaged else self._file.read(len(buffer))
        except self._errors:
            self.damaged, data = True, b""
        buffer[:len(data)] = data
        return len(data)


class _Zstandard:
    """The frames of a .zst file; its own stream reader takes a truncated file for a complete one."""

    def __init__(self, raw: IO[bytes], zstandard: Any):
        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._frame, self._packed, self._data = None, b"", b""

    def read(self, size: int) -> bytes:
        while not self._data:
            self._packed = self._packed or self._raw.read(1 << 16)
            if not self._packed:
                if self._frame:
                    raise EOFError("truncated")
                return b""
            self._frame = self._frame or self._decompressor.decompressobj()
            self._data = self._frame.decompress(self._packed)
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        data, self._data = self._data[:size], self._data[size:]
        return data


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], bool]]]:
    """The unpacked bytes of a file, and a function that says (at their end) whether the file was damaged."""
    with open(path, "rb") as raw:
        start = raw.peek(len(LFS_POINTER))[:len(LFS_POINTER)]
        if start == LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` or "
                            f"download it")
        unpacked = _unpack(raw, start)
        if unpacked is None:
            yield raw, lambda: False
        else:
            yield io.BufferedReader(unpacked, 1 << 20), lambda: unpacked.damaged


def _unpack(raw: IO[bytes], start: bytes) -> _Unpacked | None:
    if start.startswith(b"\x1f\x8b"):
        return _Unpacked(gzip.GzipFile(fileobj=raw), (EOFError, gzip.BadGzipFile, zlib.error))
    if start.startswith(b"BZh"):
        return _Unpacked(bz2.BZ2File(raw), (EOFError, OSError))
    if start.startswith(b"\xfd7zXZ\0"):
        return _Unpacked(lzma.LZMAFile(raw), (EOFError, lzma.LZMAError))
    if start.startswith(b"\x28\xb5\x2f\xfd") or start[1:4] == b"\x2a\x4d\x18":  # or a frame to skip
        zstandard = require_extra("zstandard", "zstd")
        return _Unpacked(_Zstandard(raw, zstandard), (EOFError, zstandard.ZstdError))
    return None


def read_records(path: Path, kind: str, bad: Bad,
                 paragraphs: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file; kind is its suffix without that of the packing, "" if there is none."""
    with open_bytes(path) as (file, damaged):
        start = file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
        if kind == ".parquet" or start.startswith(b"PAR1"):
            yield from _read_parquet(path, bad)
        elif kind == ".txt":
            yield from _read_text(file, bad, paragraphs)
        elif start.startswith(b"[") and kind not in JSON_LINES:
            yield from _read_array(file, bad)
        elif start.startswith(b"{") or kind in JSON_LINES or kind == ".json":
            yield from _read_lines(file, damaged, bad)
        elif kind == "":
            yield from _read_text(file, bad, paragraphs)
        elif start:
            raise UserError(f"{path}: neither JSON nor parquet, and not named .txt")
        if damaged():
            bad(DAMAGED, 0, 0)


def _read_lines(file: IO[bytes], damaged: Callable[[], bool],
                bad: Bad) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):  # bytes: U+2028 and a lone \r do not end a line
        number += 1
        if not line.endswith(b"\n") and damaged():
            return
        if len(line) == MAX_LINE_BYTES:
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            bad(f"line longer than {MAX_LINE_BYTES >> 20} MiB", number, 0)
        elif line.strip():
            try:
                record = _parse(line)
            except BadRecord as error:
                bad(str(error), number, len(line))
            else:
                del line  # as large as the text
                yield number, record


def _parse(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None
    except RecursionError:
        raise BadRecord("nested too deeply") from None
    except BadRecord:
        raise
    except ValueError:
        raise BadRecord("not JSON") from None
    if not isinstance(record, dict):
        raise BadRecord("not an object")
    return record


def _no_number(name: str) -> None:
    """NaN is how data frames write a missing value."""


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _read_array(file: IO[bytes], bad: Bad) -> Iterator[tuple[int, dict[str, Any]]]:
    data = file.read(MAX_LINE_BYTES)
    if len(data) == MAX_LINE_BYTES:
        bad(f"JSON array longer than {MAX_LINE_BYTES >> 20} MiB; convert it to JSON lines", 1, 0)
        return
    try:
        records = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        bad("not JSON", 1, len(data))
        return
    for number, record in enumerate(records, 1):
        if isinstance(record, dict):
            yield number, record
        else:
            bad("not an object", number, 0)


def _read_text(file: IO[bytes], bad: Bad, paragraphs: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole file is one document, or with `paragraphs` each part between blank lines is one."""
    data = file.read(MAX_LINE_BYTES)
    if len(data) == MAX_LINE_BYTES:
        bad(f"text longer than {MAX_LINE_BYTES >> 20} MiB", 1, 0)
        return
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        bad("not UTF-8", 1 + data.count(b"\n", 0, error.start), len(data))
        return
    if not paragraphs:
        yield 1, {"text": text}
        return
    start, lines = 1, []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield start, {"text": "\n".join(lines)}
            lines = []


def _read_parquet(path: Path, bad: Bad) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows in batches; an unreadable row group is counted, and the next one is read."""
    pyarrow = require_extra("pyarrow", "parquet")
    parquet = require_extra("pyarrow.parquet", "parquet")
    damage = (pyarrow.ArrowException, OSError)
    try:
        file = parquet.ParquetFile(path)
    except damage:
        bad(DAMAGED, 1, 0)
        return
    with file:
        first = 1
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            rows = max(1, min(256, facts.num_rows * BATCH_BYTES // max(1, facts.total_byte_size)))
            number = first
            try:
                for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                    for record in _rows(batch):
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
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
        else:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1))
        return
    for row in rows:
        yield {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """Nested columns as they are; bytes as text, NaN as null, dates and decimals as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
