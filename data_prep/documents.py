"""The document: reading it from any corpus file, writing it as JSON lines, counting what was dropped and why.

In:  .jsonl, .json, .ndjson (each also .gz, .bz2, .xz, .zst) and .parquet, one document a record; .txt, one
     document a file, or with `paragraphs` one between blank lines. The text is in one of TEXT_FIELDS or where
     --text_field says (`a.b` is field b of the nested field a, or of each item of a list: CORD-19's
     `body_text.text`); of several texts, each is a line. `language` (or `lang`) may be written in any
     standard. `source`, `id` and `meta` are read; every other field goes into `meta`.
Out: `Document`s one by one (`read_documents`), JSON lines (`line_writer`), counts by reason (`Funnel`).
"""
from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.filters.language_codes import language_code
from data_prep.record_files import JSON_LINES, PACKED, BadRecord, read_records
from mmed.utils.errors import UserError, printable
from mmed.utils.files import atomic_write

FORMAT_VERSION = 5  # raise it when the same input gives other output: finished shards are then redone
EXAMPLES = 5  # places shown for each reason
FORMS = ".jsonl, .json, .ndjson, .txt, each also .gz, .bz2, .xz or .zst; .parquet"
KINDS = (*JSON_LINES, ".txt", ".parquet")
SUFFIXES = tuple(kind + packed for kind in KINDS for packed in ("", *PACKED))
TEXT_FIELDS = ("text", "content", "raw_content")  # the usual name, OSCAR's, RedPajama's
FIELD_NAMES = {"lang": "language", "document_lang": "language", "license": "licence"}
NO_TEXT = "no text"
_NAME = re.compile(r"(.+?)(?:({0})(?:{1})?(?:[?@].*)?|(?:{1})?)".format(  # name, kind
    *("|".join(map(re.escape, ends)) for ends in (KINDS, PACKED))), re.IGNORECASE | re.DOTALL)
_WIKIEXTRACTOR = re.compile(rf"wiki_\d+(?:{'|'.join(map(re.escape, PACKED))})?\Z")  # its files have no suffix
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Document:
    text: str
    language: str = ""
    source: str = ""
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def normalise_text(text: str) -> str:
    r"""NFC; NUL and a leading byte order mark removed; lone surrogates become U+FFFD; CRLF and CR become LF.

    >>> normalise_text("\ufeffe\u0301te\x00 \ud800\r\nb\rc")
    'éte \ufffd\nb\nc'
    """
    text = text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    return text if text.isascii() else unicodedata.normalize("NFC", _SURROGATE.sub("\ufffd", text))


@dataclass
class Funnel:
    """Documents and characters in and out of one step, and why the others were dropped."""

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)  # by reason: the parameters of _drop
    details: Counter[str] = field(default_factory=Counter)  # any other sums of a step

    def keep(self, characters: int, characters_in: int | None = None) -> None:
        """A step that shortens texts passes the original length."""
        self.documents_in += 1
        self.characters_in += characters if characters_in is None else characters_in
        self.documents_out += 1
        self.characters_out += characters

    def drop(self, reason: str, characters: int, where: str) -> None:
        self.documents_in += 1
        self.characters_in += characters
        self._drop(reason, 1, characters, [where])

    def _drop(self, reason: str, documents: int, characters: int, examples: list[str]) -> None:
        entry = self.dropped.setdefault(reason, {"documents": 0, "characters": 0, "examples": []})
        entry["documents"] += documents
        entry["characters"] += characters
        entry["examples"] += examples[:EXAMPLES - len(entry["examples"])]

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts of another funnel, given in `to_dict`'s form."""
        self.documents_in += other["documents"]["in"]
        self.documents_out += other["documents"]["out"]
        self.characters_in += other["characters"]["in"]
        self.characters_out += other["characters"]["out"]
        for reason, entry in other["dropped"].items():
            self._drop(reason, **entry)
        self.details.update(other["details"])

    def to_dict(self) -> dict[str, Any]:
        return {"documents": {"in": self.documents_in, "out": self.documents_out},
                "characters": {"in": self.characters_in, "out": self.characters_out},
                "dropped": dict(sorted(self.dropped.items())), "details": dict(sorted(self.details.items()))}


def find_inputs(paths: Iterable[str | Path], suffixes: tuple[str, ...] = SUFFIXES,
                out: str | Path = "") -> list[Path]:
    """Expand folders into their sorted corpus files: of another step's output kept/, of `out` none."""
    found: list[Path] = []
    own = os.path.realpath(out) if out else ""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        real = os.path.realpath(path)
        if own and (real == own or f"{real}/".startswith((f"{own}/kept/", f"{own}/dropped/"))):
            raise UserError(f"{path}: the output of this step cannot be its input; give another --out")
        inside = [path] if path.is_file() else sorted(_files_below(path, suffixes, own))
        if not inside:
            raise UserError(f"{path}: no corpus file in this folder (looked for {list_suffixes(suffixes)})")
        found += inside
    return found


def _files_below(folder: Path, suffixes: tuple[str, ...], out: str) -> Iterator[Path]:
    """The files with these suffixes, also below linked folders; OSError for a folder that cannot be read."""
    def fail(error: OSError) -> None:
        raise error

    seen = {out}
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # the step's output, linked twice, or a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        if "kept" in folders and ("shards" in folders or "funnel.json" in files):
            folders[:], files = ["kept"], []  # a step's output folder: skip what it dropped
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(root, name) for name in files if not name.startswith(".")):  # "._a.jsonl" of macOS
            if has_suffix(path.name, suffixes) or (suffixes == SUFFIXES and _WIKIEXTRACTOR.match(path.name)):
                yield path


def list_suffixes(suffixes: tuple[str, ...]) -> str:
    return FORMS if suffixes == SUFFIXES else ", ".join(filter(None, suffixes))


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends so ("": has no suffix); wget writes the query of an address behind it."""
    ends = tuple(filter(None, suffixes))
    return any(part.lower().endswith(ends) or ("" in suffixes and "." not in part)
               for part in {name, re.split("[?@]", name)[0]})


def write_list(target: Path, files: list[Path], folder: Path) -> Path:
    """Make files one input of a step: a list with sizes and modification times."""
    lines = b""
    for path in files:
        facts = path.stat()
        entry = {"path": os.path.abspath(path), "file": os.path.relpath(path, folder),
                 "bytes": facts.st_size, "changed": facts.st_mtime_ns}
        lines += json.dumps(entry).encode() + b"\n"  # escapes keep names that are not UTF-8
    with atomic_write(target, "wb") as file:
        file.write(lines)
        file.flush()
        # The same list has the same time in every task and at every start: by it a shard is up to date.
        os.utime(file.fileno(), (zlib.crc32(lines),) * 2)
    return target


def shard_name(path: Path) -> str:
    """The file name without corpus suffixes: a/en_00000.jsonl.gz gives en_00000."""
    return _NAME.fullmatch(path.name)[1]


def read_documents(path: str | Path, funnel: Funnel | None = None, *, language: str = "", source: str = "",
                   licence: str = "", text_field: str = "", paragraphs: bool = False,
                   strict: bool = False, name: str = "") -> Iterator[Document]:
    """Yield the documents of one file.

    `language`, `licence` and an id of `name` (else the file's) and the number fill in where a record has
    none; `source` wins, and another one of the record goes into meta. Records that cannot be used are counted
    in `funnel` (without one, named on stderr) or, with `strict`, raise UserError.
    """
    def bad(reason: str, number: int, size: int) -> None:
        where = f"{path}:{number}" if number else str(path)
        if strict:
            raise UserError(f"{where}: {reason}; fix the file, or omit --strict to drop and count it")
        if funnel is None:
            print(printable(f"{where}: dropped: {reason}"), file=sys.stderr)
        else:
            funnel.drop(reason, size, where)

    own_name, kind = _NAME.fullmatch(Path(path).name).groups("")
    fields = (text_field,) if text_field else TEXT_FIELDS
    found, other_keys = 0, []
    for number, record in read_records(Path(path), kind.lower(), bad, paragraphs):
        texts = next(filter(None, (_take_texts(record, key) for key in fields)), [])
        found += bool(texts)
        other_keys = other_keys if texts else list(record)
        try:
            yield _document(texts, record, f"{name or own_name}:{number}", language, source, licence)
        except BadRecord as error:
            bad(str(error), number, sum(len(text) for text in texts if isinstance(text, str)))
    if other_keys and not found:
        raise UserError(f"{path}: no field {' or '.join(fields)} in its records, which have: "
                        f"{', '.join(other_keys)}; name the text field with --text_field")


def _document(texts: list[Any], record: dict[str, Any], default_id: str, language: str, source: str,
              licence: str) -> Document:
    texts = [text for text in texts if text is not None]
    if not texts:
        raise BadRecord(NO_TEXT)
    if not all(isinstance(text, str) for text in texts):
        raise BadRecord("text is not a string")
    text = normalise_text("\n".join(texts))
    if not text.strip():
        raise BadRecord("empty text")
    meta = dict(record.pop("meta")) if isinstance(record.get("meta"), dict) else {}
    values = {"language": "", "source": "", "id": ""}
    for key, value in record.items():
        key = FIELD_NAMES.get(key, key)
        if key == "language" and isinstance(value, list) and value:
            value = value[0]  # HPLT lists the most probable one first
        if key in values and not values[key] and isinstance(value, str | int):
            values[key] = normalise_text(str(value))
        elif value is not None:
            meta.setdefault(key, value)
    if source and values["source"] not in ("", source):
        meta.setdefault("source", values["source"])
    if licence:
        meta.setdefault("licence", licence)
    stated = (values["language"], meta.get("language"), language)  # RedPajama's Wikipedia has it in `meta`
    codes = filter(None, (language_code(name) for name in stated if isinstance(name, str)))
    return Document(text, next(codes, ""), source or values["source"], values["id"] or default_id, meta)


def _take_texts(record: Any, key: str) -> list[Any]:
    """Remove and return what a field holds, in each item of a list; nothing where it is not there."""
    if isinstance(record, list):
        return [text for item in record for text in _take_texts(item, key)]
    outer, _, inner = key.partition(".")
    if not isinstance(record, dict):
        return []
    if key in record:
        value = record.pop(key)
        return value if isinstance(value, list) else [value]
    return _take_texts(record.get(outer), inner) if inner else []


@contextlib.contextmanager
def line_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A function that writes records to a .jsonl.gz file, which gets its name only when it is complete."""
    # Omit time stamp and file name, so that equal documents give equal bytes.
    with (atomic_write(path, "wb") as file,
          gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0, compresslevel=4) as packer,
          io.BufferedWriter(packer, 1 << 20) as lines):
        yield lambda record: lines.write(json_line(record))


def json_line(record: Any) -> bytes:
    """One line of JSON; U+2028, U+2029 and NEL, which some readers take for line ends, are escaped."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    if not line.isascii():
        line = line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
        line = _SURROGATE.sub("\ufffd", line)
    return line.encode("utf-8") + b"\n"
