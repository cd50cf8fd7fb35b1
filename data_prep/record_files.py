"""Records from corpus files as they are published: JSON lines, a JSON array, parquet, text; also packed.

In:  a path. The content decides how a file is unpacked (gzip, bzip2, xz, zstandard) and what it is: parquet,
     JSON lines if it begins with "{", a JSON array if it begins with "[". The name decides for the rest.
Out: (line or row number, record), one record in memory at a time. What cannot be read is reported to
     `bad(reason, number, size)`, and reading continues. data_prep/documents.py turns records into documents.
"""
from __future__ import annotations

import bz2
import io
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import check_file

MAX_LINE_BYTES = 1 << 29  # bounds memory; longer lines are skipped
BATCH_BYTES = 1 << 26  # of a parquet row group, about so much is in memory
MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` needs, as published dumps do
DAMAGED = "file truncated or damaged"
JSON_LINES = (".jsonl", ".jsonlines", ".jl", ".ndjson")

Bad = Callable[[str, int, int], None]  # (reason, line or row number, size)
Records = Iterator[tuple[int, dict[str, Any]]]


class BadRecord(ValueError):
    """A record that cannot be used; the message is the reason it is counted under."""


def _zstandard() -> Any:
    decompressor = require_extra("zstandard", "zstd").ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    return decompressor.decompressobj()


UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31), b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor, b"\x28\xb5\x2f\xfd": _zstandard,
    **{bytes([0x50 + i, 0x2A, 0x4D, 0x18]): _zstandard for i in range(16)}}  # a frame that zstd skips


class _Unpacked(io.RawIOBase):
    """The content of a compressed file, frame after frame, up to its end or to where it is `damaged`."""

    def __init__(self, raw: IO[bytes], new_frame: Callable[[], Any]):
        self.damaged = False
        self._raw, self._new_frame = raw, new_frame
        self._frame, self._packed, self._data = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data and not self.damaged:
            self._packed = self._packed or self._raw.read(1 << 14)
            if not self._packed:
                self.damaged = self._frame is not None
                break
            if self._frame is None:
                self._packed = self._packed.lstrip(b"\0")  # padding between frames
                if not self._packed:
                    continue
                self._frame = self._new_frame()
            try:
                self._data = self._frame.decompress(self._packed)
            except Exception:  # each of the four libraries has its own
                self.damaged = True
                break
            self._packed, ended = self._frame.unused_data, self._frame.eof
            self._frame = None if ended else self._frame
        part, self._data = self._data[:len(buffer)], self._data[len(buffer):]
        buffer[:len(part)] = part
        return len(part)


def read_records(path: Path, kind: str, bad: Bad, paragraphs: bool = False) -> Records:
    """The records of a file; kind is its suffix without that of the packing, "" if there is none."""
    check_file(path)
    with open(path, "rb") as raw:
        start = raw.peek(8)
        unpack = next((UNPACKERS[magic] for magic in UNPACKERS if start.startswith(magic)), None)
        unpacked = _Unpacked(raw, unpack) if unpack else None
        file = io.BufferedReader(unpacked, 1 << 20) if unpacked else raw
        start = file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
        if kind == ".parquet" or start.startswith(b"PAR1"):
            records = _read_parquet(path, bad)
        elif start.startswith(b"[") and kind not in (".txt", *JSON_LINES):
            records = _read_array(file, bad)
        elif kind != ".txt" and (start.startswith(b"{") or kind in (".json", *JSON_LINES)):
            records = _read_lines(file, unpacked, bad)
        elif kind in (".txt", "") or not start:
            records = _read_text(file, paragraphs)
        else:
            raise UserError(f"{path}: neither JSON nor parquet, and not named .txt")
        try:
            yield from records
        except BadRecord as error:  # the whole file is one record
            bad(str(error), 1, 0)
        if unpacked and unpacked.damaged:
            bad(DAMAGED, 0, 0)


def _read_lines(file: IO[bytes], unpacked: _Unpacked | None, bad: Bad) -> Records:
    number = 0
    while line := file.readline(MAX_LINE_BYTES):  # bytes: U+2028 and a lone \r do not end a line
        number += 1
        if unpacked and unpacked.damaged and not line.endswith(b"\n"):
            return
        if len(line) == MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            bad(f"line longer than {MAX_LINE_BYTES >> 20} MiB", number, 0)
        elif line.strip():
            try:
                record = _parse(line, dict)
            except BadRecord as error:
                bad(str(error), number, len(line))
                continue
            del line  # as large as the text
            yield number, record


def _parse(data: bytes, kind: type) -> Any:
    """JSON of one kind; NaN, by which data frames write a missing value, and infinity become null."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=lambda name: None, parse_float=_finite)
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None
    except RecursionError:
        raise BadRecord("nested too deeply") from None
    except ValueError:
        raise BadRecord("not JSON") from None
    if not isinstance(value, kind):
        raise BadRecord("not an object")
    return value


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _read_whole(file: IO[bytes]) -> bytes:
    data = file.read(MAX_LINE_BYTES)
    if len(data) == MAX_LINE_BYTES:
        raise BadRecord(f"longer than {MAX_LINE_BYTES >> 20} MiB; convert it to JSON lines")
    return data


def _read_array(file: IO[bytes], bad: Bad) -> Records:
    for number, record in enumerate(_parse(_read_whole(file), list), 1):
        if isinstance(record, dict):
            yield number, record
        else:
            bad("not an object", number, 0)


def _read_text(file: IO[bytes], paragraphs: bool) -> Records:
    """The whole file is one document, or with `paragraphs` each part between blank lines is one."""
    try:
        text = _read_whole(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None
    if not paragraphs:
        yield 1, {"text": text}
        return
    for blank, lines in groupby(enumerate(text.split("\n"), 1), lambda line: not line[1].strip()):
        numbers, parts = zip(*lines)
        if not blank:
            yield numbers[0], {"text": "\n".join(parts)}


def _read_parquet(path: Path, bad: Bad) -> Records:
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
            number = first - 1
            try:
                batches = file.iter_batches(batch_size=rows, row_groups=[group])
                for number, record in enumerate(chain.from_iterable(map(_rows, batches)), first):
                    if record is None:
                        bad("not UTF-8", number, 0)
                    else:
                        yield number, record
            except pyarrow.ArrowNotImplementedError as error:
                raise UserError(f"{path}: pyarrow cannot read this file: {error}") from None
            except damage:
                bad(DAMAGED, number + 1, 0)
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
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str | bool | int) else str(value)
