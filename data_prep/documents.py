"""The document: reading it from any corpus file, writing it as JSON lines, counting what fell on the way.

In:  .jsonl .jsonl.gz .jsonl.zst (extra zstd) with one object a line: text, language, source, id, meta (free); only text must
     be there, `lang` stands for language, unknown keys go into meta. .parquet (extra parquet) with a column `text`.
     .txt: one document a file. Wikiextractor's form (<doc id= url= title=>) in .txt or without suffix.
Out: `Document`s one after the other (`read_documents`), JSON lines (`LineWriter`), counts by reason (`Funnel`).

Memory holds one document or batch, whatever the size of the corpus. A line that cannot be used is counted under its reason
with file:line and the rest goes on; with strict it stops the run. Steps over many files are in data_prep/steps.py.

Text is normalised on the way in (`normalise_text`), once for all steps, and normalising twice changes nothing.
"""
from __future__ import annotations

import contextlib
import gzip
import html
import io
import json
import math
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mmed.errors import UserError, require_extra
from mmed.files import atomic_write

FORMAT_VERSION = 1  # raise it when the same input gives other output: finished shards are then redone
MAX_LINE_BYTES = 1 << 29  # a longer line is refused, so that no bomb fills the memory
EXAMPLES = 5  # places shown for each reason
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
DAMAGED = "file truncated or damaged"


@dataclass(slots=True)
class Document:
    text: str
    language: str = ""
    source: str = ""
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "language": self.language, "source": self.source, "id": self.id, "meta": self.meta}


def normalise_text(text: str) -> str:
    r"""NFC; NUL and a byte order mark at the head removed; lone surrogates become U+FFFD; CRLF and CR become LF.

    >>> normalise_text("\ufeffe\u0301te\x00 \ud800\r\nb\rc")
    'éte \ufffd\nb\nc'
    """
    if "\x00" in text:
        text = text.replace("\x00", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.lstrip("\ufeff")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = _SURROGATE.sub("\ufffd", text)
    return unicodedata.normalize("NFC", text)  # returns at once when the text already is


_SURROGATE = re.compile("[\ud800-\udfff]")


# ---- counting ---------------------------------------------------------------------------------------------------------


@dataclass
class Funnel:
    """Documents and characters in and out of one step, and why the others fell."""

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)  # reason -> documents, characters, examples (file:line or id)
    details: dict[str, float] = field(default_factory=dict)  # whatever else a step wants to add up

    def keep(self, characters: int, characters_in: int | None = None) -> None:
        """Count one document that goes on; a step that shortens text says how long it was before."""
        self.documents_in += 1
        self.characters_in += characters if characters_in is None else characters_in
        self.documents_out += 1
        self.characters_out += characters

    def drop(self, reason: str, characters: int, where: str = "") -> None:
        self.documents_in += 1
        self.characters_in += characters
        entry = self.dropped.setdefault(reason, {"documents": 0, "characters": 0, "examples": []})
        entry["documents"] += 1
        entry["characters"] += characters
        if where and len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(where)

    def add(self, key: str, amount: float = 1) -> None:
        self.details[key] = self.details.get(key, 0) + amount

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts of another funnel, given in `to_dict`'s form."""
        for key in ("documents", "characters"):
            for side in ("in", "out"):
                setattr(self, f"{key}_{side}", getattr(self, f"{key}_{side}") + other[key][side])
        for reason, theirs in other["dropped"].items():
            entry = self.dropped.setdefault(reason, {"documents": 0, "characters": 0, "examples": []})
            entry["documents"] += theirs["documents"]
            entry["characters"] += theirs["characters"]
            entry["examples"] = (entry["examples"] + theirs["examples"])[:EXAMPLES]
        for key, amount in other.get("details", {}).items():
            self.add(key, amount)

    def to_dict(self) -> dict[str, Any]:
        return {"documents": {"in": self.documents_in, "out": self.documents_out},
                "characters": {"in": self.characters_in, "out": self.characters_out},
                "dropped": dict(sorted(self.dropped.items())), "details": dict(sorted(self.details.items()))}


# ---- reading ----------------------------------------------------------------------------------------------------------


class _BadLine(ValueError):
    """A line that cannot be used; the message is the reason it is counted under."""


def find_inputs(paths: Iterable[str | Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files as given, folders by their corpus files in sorted order; a path that gives nothing is an error."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            if not inside:
                raise UserError(f"{path}: no corpus file in this folder (looked for {', '.join(suffixes)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return found


def shard_name(path: Path) -> str:
    """The file's name without its corpus suffixes.

    >>> shard_name(Path("a/en_part_00000.jsonl.gz"))
    'en_part_00000'
    """
    name = path.name
    for suffix in (".gz", ".zst", ".jsonl", ".parquet", ".txt"):
        name = name.removesuffix(suffix)
    return name or path.name


def read_documents(path: str | Path, funnel: Funnel | None = None, *, language: str = "", source: str = "",
                   strict: bool = False) -> Iterator[Document]:
    """Yield the documents of one file with constant memory; `language` and `source` fill in where the file says nothing.

    Lines that cannot be used are counted in `funnel` (without one, a summary goes to stderr) or, with strict, raise.
    """
    path = Path(path)
    counts = funnel if funnel is not None else Funnel()
    before = {reason: entry["documents"] for reason, entry in counts.dropped.items()}

    def bad(reason: str, number: int, size: int) -> None:
        where = f"{path}:{number}" if number else str(path)
        if strict:
            raise UserError(f"{where}: {reason}; mend the file or leave out --strict to drop and count such lines")
        counts.drop(reason, size, where)

    if path.name.endswith(".parquet"):
        records = _read_parquet(path, bad)
    elif path.name.endswith((".txt", ".txt.gz")) or "." not in path.name:
        records = _read_text(path, bad)
    elif ".jsonl" in path.suffixes[-2:]:
        records = _read_jsonl(path, bad)
    else:
        raise UserError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    name = shard_name(path)
    for number, record in records:
        try:
            yield _document(record, f"{name}:{number}", language, source)
        except _BadLine as error:
            bad(str(error), number, len(record["text"]) if isinstance(record.get("text"), str) else 0)
    if funnel is None:
        for reason, entry in counts.dropped.items():
            if entry["documents"] > before.get(reason, 0):
                print(f"{path}: {entry['documents']} dropped: {reason} (first: {entry['examples'][0]})", file=sys.stderr)


def _document(record: dict[str, Any], default_id: str, language: str, source: str) -> Document:
    text = record.get("text")
    if not isinstance(text, str):
        raise _BadLine("no text" if text is None else "text is not a string")
    text = normalise_text(text)
    if not text.strip():
        raise _BadLine("empty text")
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise _BadLine("meta is not an object")
    meta = dict(meta or {})
    values = {"language": language, "source": source, "id": default_id}
    for key, value in record.items():
        if key in ("text", "meta") or value is None:
            continue
        known = "language" if key == "lang" else key
        if known not in values:
            meta.setdefault(key, value)
        elif isinstance(value, str) or (known == "id" and type(value) is int):
            values[known] = normalise_text(str(value)) or values[known]
        else:
            raise _BadLine(f"{known} is not a string")
    return Document(text, values["language"], values["source"], values["id"], meta)


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
def _open_bytes(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], bool]]]:
    """The unpacked bytes, and a question to ask at their end: was the file damaged?"""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "rb"))
        if path.name.endswith(".gz"):
            unpacked = _Unpacked(stack.enter_context(gzip.GzipFile(fileobj=raw)), (EOFError, gzip.BadGzipFile, zlib.error))
        elif path.name.endswith(".zst"):
            zstandard = require_extra("zstandard", "zstd")
            unpacked = _Unpacked(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), (zstandard.ZstdError,))
        else:
            yield raw, lambda: False
            return
        yield io.BufferedReader(unpacked, 1 << 20), lambda: unpacked.damaged


def _read_jsonl(path: Path, bad: Callable[[str, int, int], None]) -> Iterator[tuple[int, dict]]:
    number = 0
    with _open_bytes(path) as (file, damaged):
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
            if not line.strip():
                continue
            try:
                record = _parse(line)
            except _BadLine as error:
                bad(str(error), number, len(line))
            else:
                yield number, record
        if damaged():
            bad(DAMAGED, max(number, 1), 0)


def _parse(line: bytes) -> dict:
    try:
        record = _DECODER.decode(line.decode("utf-8").strip())
    except UnicodeDecodeError:
        raise _BadLine("not UTF-8") from None
    except RecursionError:
        raise _BadLine("nested too deeply") from None
    except _BadLine:
        raise
    except ValueError:
        raise _BadLine("not JSON") from None
    if not isinstance(record, dict):
        raise _BadLine("not an object")
    return record


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise _BadLine("duplicate key")
    return record


def _constant(name: str) -> float:
    raise _BadLine("NaN or infinity")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _BadLine("NaN or infinity")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def _read_parquet(path: Path, bad: Callable[[str, int, int], None]) -> Iterator[tuple[int, dict]]:
    pyarrow = require_extra("pyarrow", "parquet")
    parquet = require_extra("pyarrow.parquet", "parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(f"{path}: no column 'text' (there are: {', '.join(file.schema_arrow.names)})")
            for batch in file.iter_batches(batch_size=256):
                for record in _json_rows(batch):
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
        bad(DAMAGED, number + 1, 0)


def _json_rows(batch: Any) -> list[dict]:
    """Rows as JSON values: dates, decimals and bytes of free columns become text."""
    rows = batch.to_pylist()
    plain = (str, int, bool, type(None))
    return [{key: value if isinstance(value, plain) or (isinstance(value, float) and math.isfinite(value))
             else _plain(value) for key, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None  # NaN is how parquet files from data frames say "missing"
    if isinstance(value, list | dict):
        return json.loads(json.dumps(value, default=str, allow_nan=True), parse_constant=lambda name: None)
    return str(value)


_WIKI_DOC = re.compile(rb'<doc\s+id="(?P<id>[^"]*)"\s+url="(?P<url>[^"]*)"\s+title="(?P<title>[^"]*)"[^>]*>\s*$')


def _read_text(path: Path, bad: Callable[[str, int, int], None]) -> Iterator[tuple[int, dict]]:
    """A plain file is one document; a file that begins with <doc id= is Wikiextractor's, one document a <doc>."""
    with _open_bytes(path) as (file, damaged):
        first = file.readline(MAX_LINE_BYTES)
        if head := _WIKI_DOC.match(first):
            yield from _read_wiki(file, head, bad)
            if damaged():
                bad(DAMAGED, 0, 0)
            return
        body = first + file.read(MAX_LINE_BYTES)
        if file.read(1):
            bad(f"text longer than {MAX_LINE_BYTES >> 20} MiB", 0, 0)
        elif damaged():
            bad(DAMAGED, 0, len(body))
        else:
            try:
                yield 1, {"text": body.decode("utf-8-sig")}
            except UnicodeDecodeError as error:
                bad("not UTF-8", body.count(b"\n", 0, error.start) + 1, len(body))


def _read_wiki(file: IO[bytes], first: re.Match[bytes], bad: Callable[[str, int, int], None]) -> Iterator[tuple[int, dict]]:
    head: re.Match[bytes] | None = first
    start, lines = 1, []
    for number, line in enumerate(file, 2):
        if opened := _WIKI_DOC.match(line):
            if head:
                bad("<doc> is not closed", start, sum(map(len, lines)))
            start, head, lines = number, opened, []
        elif line.strip() == b"</doc>" and head:
            yield from _wiki_document(head, lines, start, bad)
            head = None
        elif head:
            lines.append(line)
        elif line.strip():
            bad("text outside <doc>", number, len(line))
    if head:
        bad("<doc> is not closed", start, sum(map(len, lines)))


def _wiki_document(head: re.Match[bytes], lines: list[bytes], number: int, bad: Callable) -> Iterator[tuple[int, dict]]:
    try:
        attributes = {key: html.unescape(value.decode("utf-8")) for key, value in head.groupdict().items()}
        text = b"".join(lines).decode("utf-8").strip()
    except UnicodeDecodeError:
        bad("not UTF-8", number, sum(map(len, lines)))
    else:
        yield number, {"text": text, "id": attributes.pop("id"), "meta": attributes}


# ---- writing ----------------------------------------------------------------------------------------------------------


class LineWriter:
    """JSON lines into a .jsonl, .jsonl.gz or .jsonl.zst file that appears under its name only when complete."""

    def __init__(self, path: Path):
        self._stack = contextlib.ExitStack()
        raw = self._stack.enter_context(atomic_write(path, "wb"))
        if path.name.endswith(".gz"):  # no time stamp and no name inside: equal documents give equal bytes
            raw = self._stack.enter_context(gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=4))
        elif path.name.endswith(".zst"):
            raw = self._stack.enter_context(require_extra("zstandard", "zstd").ZstdCompressor().stream_writer(raw, closefd=False))
        self._file = self._stack.enter_context(contextlib.closing(io.BufferedWriter(_KeepOpen(raw), 1 << 20)))

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json_line(record))

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stack.__exit__(*error)


class _KeepOpen(io.RawIOBase):
    """Lets a buffer be closed without closing what lies under it."""

    def __init__(self, file: IO[bytes]):
        self._under = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._under.write(data)
        return len(data)


def json_line(record: dict[str, Any]) -> bytes:
    """One line of JSON that every reader takes as one line: U+2028, U+2029 and NEL are written as escapes."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    if not line.isascii():
        line = line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    try:
        return line.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # in meta; text is clean
        return _SURROGATE.sub("\ufffd", line).encode("utf-8") + b"\n"
