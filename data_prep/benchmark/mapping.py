"""Maps the records of an exam file to items: which keys hold the question, the options and the answer.

In: (place, record) pairs. Out: `Raw` items; data_prep/mmedbench.py judges and drops. A mapping is written as
on the command line, `question=stem,options=a+b+c,answer=key`; `Mapping` has its keys. Their values:

    a.b        key b of the object under a        a|b    a, or b where a record has no a
    a+b+c      several keys: options, or an id    a?     may be missing
    !a         the opposite, of an image flag     x/y/z  fixed texts, as options
"""
from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.benchmark.exam_files import Records, split_of
from data_prep.benchmark.options import (
    SCALAR,
    lettered,
    marked_options,
    option_texts,
    plain,
    read_answer,
    without_letters,
)
from data_prep.filters.language_codes import language_code
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError

MISSING: Any = object()
OPTIONS_TITLE = re.compile(r"\s*(?:answer )?(?:choices|options)\s*:?\s*\Z", re.IGNORECASE)


@dataclass
class Raw:
    """One question as stored in its file."""

    source: str
    language: str  # English name, as in MMedBench's file names
    split: str | None  # Train, Val, Test; None: its file belongs to no split
    where: str  # file:line or "file: item N", for messages
    question: str
    options: dict[str, str]  # letter -> text
    answer: list[str]  # letters; anything else stays as it was, and the checks drop the item
    id: str = ""  # empty: made from source, question and options
    rationale: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    group: str = ""  # items with the same group stay on one side of a random split; empty: the id
    # What data_prep/mmedbench.py finds out:
    exam: str = ""  # the name given to --source
    stated: str | None = None  # the split that its file states
    reason: str | None = None  # why it is dropped
    line: dict[str, Any] = field(default_factory=dict)  # what is written

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.source}-{fingerprint(self.question, self.options)}"
        self.group = self.group or self.id


def fingerprint(question: str, options: dict[str, str]) -> str:
    """Twelve hex digits that identify a question by its content, without regard to white space."""
    text = json.dumps([" ".join(question.split()), [" ".join(option.split()) for option in options.values()]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Mapping:
    """The keys of --map."""

    question: str
    options: str  # the same as `question` if the options are inside the question's text
    answer: str  # letters, the options' own keys, or numbers; several as a list or "A,C"
    kind: str = ""  # letter; text: an option's own words; 0 or 1: the first number; "": inferred
    id: str = ""
    group: str = ""  # form of an id: items that share it stay on one side of a random split
    rationale: str = ""
    context: str = ""  # put before the question
    subject: str = ""
    topic: str = ""
    year: str = ""
    split: str = ""  # else the file's name says it
    language: str = ""
    source: str = ""  # added to the source's name
    image: str = ""  # true or not empty: the question needs an image
    filter: str = ""  # KEY=VALUE or KEY=VALUE|VALUE: only these records
    keep: str = ""  # keys to pass on, joined by +


MAP_KEYS = tuple(key.name for key in dataclasses.fields(Mapping))


def parse_mapping(text: str, preset: str = "") -> Mapping:
    """Parse the text of --map; `preset` supplies whatever it leaves out."""
    given: dict[str, str] = {}
    for part in filter(str.strip, [*preset.split(","), *text.split(",")]):
        key, value = (piece.strip() for piece in [*part.split("=", 1), ""][:2])
        if key not in MAP_KEYS:
            raise UsageError(f"--map {part}: no key {key!r}{nearest(key, MAP_KEYS)}")
        if not value or (key == "filter" and "=" not in value):
            raise UsageError(f"--map {part}: expected {key}={'KEY=VALUE' if key == 'filter' else 'NAME'}")
        given[key] = value
    if missing := [key for key in MAP_KEYS[:3] if key not in given]:
        raise UsageError(f"--map {text}: {missing[0]!r} is missing (question=..., options=... and "
                         "answer=... are required)")
    if given.get("kind", "0") not in ("letter", "text", "0", "1"):
        raise UsageError(f"--map kind={given['kind']}: expected letter, text, 0 or 1 (a number counted from "
                         "0 or 1)")
    return Mapping(**given)


def nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(words)}"


# ---- values --------------------------------------------------------------------------------------


@dataclass
class Record:
    """One record of a file; its methods take the paths of a mapping.

    >>> Record({"data": {"stem": "Why?"}, "n": [1, 2]}, "file:1").text("question|data.stem")
    'Why?'
    """

    values: dict[str, Any]
    where: str

    def find(self, path: str) -> Any:
        """The value of the first key that exists, or MISSING."""
        for name in path.removesuffix("?").split("|"):
            value: Any = self.values
            for part in [name] if name in value else name.split("."):
                value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
            if value is not MISSING:
                return value
        return MISSING

    def value(self, path: str) -> Any:
        """The value at a path, or an error; None for an empty path or a missing optional key."""
        value = self.find(path) if path else None
        if value is MISSING and not path.endswith("?"):
            raise UserError(f"{self.where}: no key {path!r}, which the mapping names; it has "
                            f"{', '.join(self.values)}")
        return None if value is MISSING else value

    def text(self, path: str) -> str:
        """Return a string or number as text, and a list of them as lines."""
        value = self.value(path)
        lines = value if isinstance(value, list) else [value]
        if not all(isinstance(line, SCALAR) for line in lines):
            raise UserError(f"{self.where}: {path!r} is a {type(value).__name__}, expected a text")
        return "\n".join(str(line) for line in lines if line is not None)

    def id(self, paths: str) -> str:
        """The values of the keys of an id, with "-" between them; a long hash is shortened."""
        text = "-".join(filter(None, (self.text(path).strip() for path in paths.split("+"))))
        return text[:16] if re.fullmatch("[0-9a-f]{40,}", text) else text


# ---- items ---------------------------------------------------------------------------------------


def read_options(record: Record, paths: str) -> tuple[dict[str, str], dict[str, str]]:
    """Read options and their published names, as the mapping's `options` says."""
    if "/" in paths:
        return lettered(paths.split("/")), {}
    for alternative in paths.split("|"):
        columns = alternative.split("+")
        if all(record.find(column) is not MISSING for column in columns):
            break
    values = [record.value(column) for column in columns]
    if len(columns) == 1:
        return option_texts(values[0])
    options = lettered(values)
    return options, {plain(column.removesuffix("?")): letter for column, letter in zip(columns, options)}


def resolve_numbers(items: list[Raw], kind: str, path: Path) -> None:
    """Replace answers that are an option's number by its letter.

    Unless `kind` says so, the numbers themselves show whether they count from 0 or 1: either a 0 or the
    number of options occurs. A wrong guess would shift every answer, so anything else is an error.
    """
    found = {(int(part), len(raw.options)) for raw in items for part in raw.answer
             if raw.options and re.fullmatch("[0-9]{1,3}", part)}
    if kind in ("letter", "text") or not found:
        return
    from_0 = any(number == 0 for number, _ in found)
    if not kind and from_0 == any(number == size for number, size in found):
        numbers = ", ".join(map(str, sorted({number for number, _ in found})[:9]))
        raise UserError(f"{path}: the answers are {numbers}, so it is unclear whether options are "
                        "counted from 0 or from 1; add --map kind=0 or kind=1")
    base = int(kind or not from_0)
    for raw in items:
        letter_of = {str(place + base): letter for place, letter in enumerate(raw.options)}
        raw.answer = [letter_of.get(part, part) for part in raw.answer]


@functools.cache
def language_name(tag: str) -> str:
    """English name of a language in any spelling, "" if it has no file in mmed/languages."""
    try:
        return get_language(language_code(tag)).name
    except UserError:
        return ""


def why_skipped(record: Record, mapping: Mapping, language: str) -> str:
    """Return why a record is not part of the exam, or "" if it is."""
    key, _, values = mapping.filter.partition("=")
    if key and (value := record.text(key)) not in values.split("|"):
        return f"{key} {value}"
    tag = record.text(mapping.language)
    if tag and language:
        return "" if language_name(tag) == language else f"language {tag}"
    return f"no language file for {tag}" if tag and not language_name(tag) else ""


def read_question(raw: Raw, record: Record, mapping: Mapping) -> None:
    """Fill in question, options and answer."""
    raw.question = record.text(mapping.question)
    before, marked = marked_options(raw.question)
    names: dict[str, str] = {}
    if mapping.options == mapping.question:
        raw.question, raw.options = before, dict(marked)
    else:
        options, names = read_options(record, mapping.options)
        raw.options = without_letters(options)
        if marked and dict(marked) == raw.options:  # the question repeats its options
            raw.question = OPTIONS_TITLE.sub("", before)
    raw.answer = read_answer(record.value(mapping.answer), raw.options, names, mapping.kind)
    context = record.text(mapping.context).strip()
    if context and raw.question.strip():
        raw.question = f"{context}\n{raw.question.strip()}"


def further_keys(record: Record, mapping: Mapping) -> dict[str, Any]:
    """Collect the fields other than question, options, answer, rationale and id."""
    paths = {"subject": mapping.subject, "topic": mapping.topic, "year": mapping.year}
    extra: dict[str, Any] = {key: record.text(path) or None for key, path in paths.items() if path}
    if mapping.image:
        value = record.value(mapping.image.removeprefix("!"))
        if isinstance(value, dict):  # {"bytes": ..., "path": ...} of model hubs
            value = any(value.values())
        flag = bool(value) and str(value).lower() not in ("false", "0", "no")
        extra["image_dependent"] = flag != mapping.image.startswith("!")
    kept = {key: record.find(key) for key in mapping.keep.split("+")}
    return extra | {key: value for key, value in kept.items() if value is not MISSING}


def read_item(raw: Raw, record: Record, mapping: Mapping, prefix: str) -> None:
    """Fill in an item whose source, language and split are known."""
    read_question(raw, record, mapping)
    raw.rationale = record.text(mapping.rationale).strip()
    raw.extra = further_keys(record, mapping)
    raw.source += f"-{record.text(mapping.source)}" if mapping.source else ""
    stated = record.find(mapping.split) if mapping.split else MISSING
    raw.split = raw.split if stated is MISSING else split_of(str(stated))
    own = record.id(mapping.id) if mapping.id else ""
    raw.id = f"{prefix or raw.source}-{own or fingerprint(raw.question, raw.options)}"
    raw.group = raw.id
    if mapping.group:  # the same prefix in all languages of an exam
        raw.group = f"{prefix.partition('-')[0] or raw.source}-{record.id(mapping.group)}"


def read_mapped(files: dict[Path, str | None], rows: Callable[[Path], Records], mapping: Mapping,
                name: str | None, language: str, notes: list[str], prefix: str = "") -> list[Raw]:
    """Read the items of these files, each with the split that it states. `name` None: use the file names;
    `language` "": use the records'."""
    items: list[Raw] = []
    skipped: Counter[str] = Counter()
    for path, split in files.items():
        source = name or re.sub(r"[^\w-]+", "-", path.name.split(".")[0]).lower()
        for where, values in rows(path):
            record = Record(values, where)
            if reason := why_skipped(record, mapping, language):
                skipped[reason] += 1
                continue
            spoken = language or language_name(record.text(mapping.language))
            items.append(Raw(source, spoken, split, where, "", {}, []))
            read_item(items[-1], record, mapping, prefix)
    if skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common(8))
        notes.append(f"skipped {skipped.total():,} records: {reasons}{', ...' if len(skipped) > 8 else ''}")
    resolve_numbers(items, mapping.kind, path)
    return items
