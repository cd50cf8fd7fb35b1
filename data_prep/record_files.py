"""The forms of corpus files: (line or row number, record) of each, as they stand there.

In:  a path. JSON lines, parquet, plain text; all but parquet also packed.
Out: records with at least `text`, one in memory at a time. What cannot be read is told to `bad(reason, line, size)`, and the
     next one follows. data_prep/documents.py makes `Document`s of the records.
"""
from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError, require_extra

Count = Callable[[str, int, int], None]  # (reason, line, size)

MAX_LINE_BYTES = 1 << 29  # a longer line is refused, so that no bomb fills the memory
DAMAGED = "file truncated or damaged"


class BadLine(ValueError):
    """A line that cannot be used; the message is the reason it is counted under."""


class _Unpacked(io.RawIOBase):
    """A compressed file that ends where it is damaged, and says so: all that could be unpacked before is still given."""

    def __init__(self, file: Any, kinds: tuple[type[BaseException], ...]):
        self._under, self._kinds, self.damaged = file, kinds, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = b"" if self.damaged else self._under.read1(len(buffer))
        except self._kinds:
            self.damaged, data = True, b""
        buffer[:len(data)] = data
        return len(data)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], bool]]]:
    """The unpacked bytes, and a question to ask at their end: was the file damaged?"""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        if path.suffix == ".gz":
            unpacked = _Unpacked(stack.enter_context(gzip.GzipFile(fileobj=raw)), (EOFError, gzip.BadGzipFile, zlib.error))
        elif path.suffix == ".bz2":
            unpacked = _Unpacked(stack.enter_context(bz2.BZ2File(raw)), (EOFError, OSError))
        elif path.suffix == ".zst":
            zstandard = require_extra("zstandard", "zstd")
            unpacked = _Unpacked(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), (zstandard.ZstdError,))
        else:
            yield raw, lambda: False
            return
        yield io.BufferedReader(unpacked, 1 << 20), lambda: unpacked.damaged


def read_jsonl(path: Path, bad: Count) -> Iterator[tuple[int, dict]]:
    number = 0
    with open_bytes(path) as (file, damaged):
        while line := file.readline(MAX_LINE_BYTES):  # bytes end at \n only: U+2028 and \r split nothing
            number += 1
            if not line.endswith(b"\n") and damaged():  # the line that the damage cut
                break
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                bad(f"line longer than {MAX_LINE_BYTES >> 20} MiB", number, 0)
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.strip()
            if not line:
                continue
            try:
                record = _parse(line)
            except BadLine as error:
                bad(str(error), number, len(line))
            else:
                line = b""  # as long as the text
                yield number, record
        if damaged():
            bad(DAMAGED, max(number, 1), 0)


def _parse(line: bytes) -> dict:
    try:
        record = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except RecursionError:
        raise BadLine("nested too deeply") from None
    except BadLine:
        raise
    except ValueError:
        raise BadLine("not JSON") from None
    if not isinstance(record, dict):
        raise BadLine("not an object")
    return record


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise BadLine("duplicate key")
    return record


def _constant(name: str) -> float:
    raise BadLine("NaN or infinity")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise BadLine("NaN or infinity")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def read_parquet(path: Path, bad: Count) -> Iterator[tuple[int, dict]]:
    """Rows, a batch of about BATCH_BYTES in memory; a row group that cannot be read is counted, and the next one follows."""
    pyarrow = require_extra("pyarrow", "parquet")
    parquet = require_extra("pyarrow.parquet", "parquet")
    damage = (pyarrow.ArrowException, OSError)
    try:
        file = parquet.ParquetFile(path)
    except damage:
        bad(DAMAGED, 1, 0)
        return
    with file:
        if "text" not in file.schema_arrow.names:
            raise UserError(f"{path}: no column 'text' (there are: {', '.join(file.schema_arrow.names)})")
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
            except damage:
                bad(DAMAGED, number, 0)
            first += facts.num_rows


BATCH_BYTES = 1 << 26


def _rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Rows as JSON values: dates, decimals and bytes of free columns become text. None for one that is not UTF-8."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield None
            return
        for row in range(batch.num_rows):
            yield from _rows(batch.slice(row, 1))
        return
    plain = (str, int, bool, type(None))
    for row in rows:
        yield {key: value if isinstance(value, plain) or (isinstance(value, float) and math.isfinite(value)) else _plain(value)
               for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None  # NaN is how parquet files from data frames say "missing"
    if isinstance(value, list | dict):
        return json.loads(json.dumps(value, default=str, allow_nan=True), parse_constant=lambda name: None)
    return str(value)


def read_text(path: Path, bad: Count, paragraphs: bool) -> Iterator[tuple[int, dict]]:
    """A plain file is one document, or with `paragraphs` one document between blank lines."""
    with open_bytes(path) as (file, damaged):
        first = file.readline(MAX_LINE_BYTES)
        start, number, body, size, line = 1, 0, bytearray(), 0, first
        while line or size:
            number += 1
            if line and (line.strip() or not paragraphs):
                start = start if size else number
                size += len(line)
                if size <= MAX_LINE_BYTES:
                    body += line
            elif size and (line or not damaged()):
                if size > MAX_LINE_BYTES:
                    bad(f"text longer than {MAX_LINE_BYTES >> 20} MiB", start, 0)
                else:
                    try:
                        yield start, {"text": body.decode("utf-8-sig")}
                    except UnicodeDecodeError as error:
                        bad("not UTF-8", start + body.count(b"\n", 0, error.start), size)
                body, size = bytearray(), 0
            elif size:  # what the damage cut
                break
            line = file.readline(MAX_LINE_BYTES) if line else b""
        if damaged():
            bad(DAMAGED, 0, size)
