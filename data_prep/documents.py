"""The document: reading it from any corpus file, writing it as JSON lines, counting what fell on the way.

In:  .jsonl, one object a line: text, language, source, id, meta (free); only text must be there, `lang` stands for language,
     `license` for licence, unknown keys go into meta. .parquet (extra parquet) with a column `text` and the same others.
     .txt: one document a file, or with `paragraphs` one document between blank lines.
     All but parquet also as .gz, .bz2 or .zst (extra zstd).
Out: `Document`s one after the other (`read_documents`), JSON lines (`LineWriter`), counts by reason (`Funnel`).

Memory holds one document or batch, whatever the size of the corpus. A line that cannot be used is counted under its reason
with file:line and the rest goes on; with strict it stops the run. Steps over many files are in data_prep/pipeline/shards.py.

Text is normalised on the way in (`normalise_text`), once for all steps, and normalising twice changes nothing.
"""
from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data_prep.record_files import BadLine, read_jsonl, read_parquet, read_text
from mmed.utils.errors import UserError, printable, require_extra
from mmed.utils.files import atomic_write

FORMAT_VERSION = 1  # raise it when the same input gives other output: finished shards are then redone
EXAMPLES = 5  # places shown for each reason
PACKED = (".gz", ".bz2", ".zst")
SUFFIXES = (".parquet", *(kind + packed for kind in (".jsonl", ".txt") for packed in ("", *PACKED)))
FORMS = ".jsonl, .txt, each also .gz, .bz2 or .zst; .parquet"  # SUFFIXES as a person reads them


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
    if len(text) < PIECE_CHARACTERS:
        return _composed(text)
    if all(_composed(piece) == piece for piece in safe_pieces(text)):  # NFC of a whole book takes ten times its memory
        return text
    return "".join(map(_composed, safe_pieces(text)))


def _composed(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = _SURROGATE.sub("\ufffd", text)
    return unicodedata.normalize("NFC", text)  # returns at once when the text already is


PIECE_CHARACTERS = 1 << 20  # of a longer text, what is looked at together
# A text can be cut before one of these, and each piece composed (NFC, NFKC) by itself: none is put together with what stands
# before it. Lower case of "Σ" looks further: up to a white space, or a character that has no case.
COMPOSING_BORDER = re.compile("[\x00-\x7f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]")
LOWERING_BORDER = re.compile("[\t\n \u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]")


def safe_pieces(text: str, border: re.Pattern[str] = COMPOSING_BORDER) -> Iterator[str]:
    """The text in pieces of PIECE_CHARACTERS or a little more, each but the first beginning with a border."""
    start = 0
    while start < len(text):
        found = border.search(text, start + PIECE_CHARACTERS)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


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


def find_inputs(paths: Iterable[str | Path], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files as given, folders by their corpus files in sorted order; a path that gives nothing is an error."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            if not inside:
                raise UserError(f"{path}: no corpus file in this folder (looked for {FORMS if suffixes == SUFFIXES else ', '.join(suffixes)})")
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
    for suffix in (*PACKED, ".jsonl", ".parquet", ".txt"):
        name = name.removesuffix(suffix)
    return name or path.name


def read_documents(path: str | Path, funnel: Funnel | None = None, *, language: str = "", source: str = "", licence: str = "",
                   paragraphs: bool = False, strict: bool = False) -> Iterator[Document]:
    """Yield the documents of one file with constant memory; `language`, `source` and `licence` (in meta) fill in where the
    file says nothing. `paragraphs`: what stands between blank lines of a text file is a document, not the whole file.

    Lines that cannot be used are counted in `funnel` (without one, a summary goes to stderr) or, with strict, raise.
    """
    path = Path(path)
    counts = funnel if funnel is not None else Funnel()
    before = {reason: entry["documents"] for reason, entry in counts.dropped.items()}

    def skip(reason: str, number: int, size: int) -> None:
        counts.drop(reason, size, f"{path}:{number}" if number else str(path))

    def bad(reason: str, number: int, size: int) -> None:
        if strict:
            where = f"{path}:{number}" if number else str(path)
            raise UserError(f"{where}: {reason}; mend the file or leave out --strict to drop and count such lines")
        skip(reason, number, size)

    kind = path.name
    for packed in PACKED:
        kind = kind.removesuffix(packed)
    if path.name.endswith(".parquet"):
        records = read_parquet(path, bad)
    elif kind.endswith(".jsonl"):
        records = read_jsonl(path, bad)
    elif kind.endswith(".txt"):
        records = read_text(path, bad, paragraphs)
    else:
        raise UserError(f"{path}: unknown kind of file; known are {FORMS}")
    name = shard_name(path)
    for number, record in records:
        text = record.pop("text", None)  # out of the record, so that a long text lies in memory once
        size = len(text) if isinstance(text, str) else 0
        try:
            document = _document(text, record, f"{name}:{number}", language, source, licence)
        except BadLine as error:
            bad(str(error), number, size)
        else:
            del text, record
            yield document
            del document
    if funnel is None:
        for reason, entry in counts.dropped.items():
            if entry["documents"] > before.get(reason, 0):
                print(printable(f"{path}: {entry['documents']} dropped: {reason} (first: {entry['examples'][0]})"), file=sys.stderr)


def _document(text: Any, record: dict[str, Any], default_id: str, language: str, source: str, licence: str) -> Document:
    if not isinstance(text, str):
        raise BadLine("no text" if text is None else "text is not a string")
    text = normalise_text(text)
    if not text.strip():
        raise BadLine("empty text")
    meta = record.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise BadLine("meta is not an object")
    meta = dict(meta or {})
    values = {"language": language, "source": source, "id": default_id}
    for key, value in record.items():
        if key == "meta" or value is None:
            continue
        known = {"lang": "language", "license": "licence"}.get(key, key)
        if known not in values:
            meta.setdefault(known, value)
        elif isinstance(value, str) or (known == "id" and type(value) is int):
            values[known] = normalise_text(str(value)) or values[known]
        else:
            raise BadLine(f"{known} is not a string")
    if licence:
        meta.setdefault("licence", licence)
    return Document(text, values["language"], values["source"], values["id"], meta)


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
        text = record.get("text")
        if next(iter(record), "") != "text" or not isinstance(text, str) or len(text) < PIECE_CHARACTERS:
            self._file.write(json_line(record))
            return
        self._file.write(b'{"text": "')  # the same bytes, without another copy of a long text or two
        for start in range(0, len(text), PIECE_CHARACTERS):
            self._file.write(json_line(text[start:start + PIECE_CHARACTERS])[1:-2])
        rest = json_line({key: value for key, value in record.items() if key != "text"})
        self._file.write(b'", ' + rest[1:] if len(record) > 1 else b'"}\n')

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


def json_line(record: Any) -> bytes:
    """One line of JSON that every reader takes as one line: U+2028, U+2029 and NEL are written as escapes."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    if not line.isascii():
        line = line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    try:
        return line.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # in meta; text is clean
        return _SURROGATE.sub("\ufffd", line).encode("utf-8") + b"\n"
