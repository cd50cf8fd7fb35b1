"""Maps the records of an exam file to items: which keys hold the question, the options and the answer.

In: (place, record) pairs. Out: `Raw` items; data_prep/mmedbench.py judges and drops. docs/exams.md has the
keys of a mapping, `question=stem,options=a+b+c,answer=key`, and the forms of their values.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.benchmark import options as forms
from data_prep.benchmark.exam_files import Records, split_of
from data_prep.filters.language_codes import language_code
from mmed.languages import all_languages
from mmed.prompts import ExamItem
from mmed.utils.errors import UsageError, UserError

MAP_KEYS = ("question", "options", "answer", "kind", "id", "group", "rationale", "context", "subject",
            "topic", "year", "split", "language", "source", "image", "filter", "keep")
MISSING: Any = object()
NO_IMAGE = ("", "false", "0", "no", "none", "nan", "null", "n/a")
NUMBER = re.compile("[0-9]{1,3}")  # that may be an option's position
OPTIONS_TITLE = re.compile(r"\s*(?:answer )?(?:choices|options)\s*:?\s*\Z", re.IGNORECASE)


@dataclass
class Raw(ExamItem):
    """An item, and where it comes from. Whatever in `answer` is not a letter stays as it was, and the checks
    drop the item; an empty `key` is made from source, question and options."""

    split: str | None = None  # Train, Val, Test; None: its file belongs to no split
    where: str = ""  # file:line, for messages
    source: str = ""
    group: str = ""  # items with the same group stay on one side of a random split; empty: the key
    exam: str = ""  # the name given to --source
    stated: str | None = None  # the split that its file states
    reason: str | None = None  # why it is dropped
    line: dict[str, Any] = field(default_factory=dict)  # what is written

    def __post_init__(self) -> None:
        self.key = self.key or f"{self.source}-{fingerprint(self.question, self.options)}"
        self.group = self.group or self.key


def fingerprint(question: str, options: dict[str, str]) -> str:
    """Twelve hex digits that identify a question by its content, without regard to white space."""
    text = json.dumps([" ".join(question.split()), [" ".join(option.split()) for option in options.values()]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse_mapping(text: str) -> dict[str, str]:
    """The last value of each key of --map, "" for those left out."""
    given: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        key, _, value = map(str.strip, part.partition("="))
        if key not in MAP_KEYS or not value:
            raise UsageError(f"--map {part}: expected KEY=VALUE, with one of the keys {', '.join(MAP_KEYS)}")
        if key == "filter" and "=" not in value:
            raise UsageError(f"--map {part}: expected filter=KEY=VALUE")
        given[key] = value
    if missing := [key for key in MAP_KEYS[:3] if key not in given]:
        raise UsageError(f"--map {text}: {missing[0]!r} is missing (question=..., options=... and "
                         "answer=... are required)")
    if given.get("kind", "0") not in ("letter", "text", "0", "1"):
        raise UsageError(f"--map kind={given['kind']}: expected letter, text, 0 or 1 (a number counted from "
                         "0 or 1)")
    return dict.fromkeys(MAP_KEYS, "") | given


@dataclass
class Record:
    """One record of a file; its methods take the paths of a mapping, such as `question|data.stem`."""

    values: dict[str, Any]
    where: str

    def find(self, path: str) -> Any:
        """The value of the first key that exists, else MISSING, or None if the path is empty or optional."""
        for name in path.removesuffix("?").split("|") if path else ():  # "" may be a column, pandas' index
            value: Any = self.values
            for part in [name] if name in value else name.split("."):
                value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
            if value is not MISSING:
                return value
        return MISSING if path and not path.endswith("?") else None

    def value(self, path: str) -> Any:
        """The value at a path; an error if it is missing."""
        value = self.find(path)
        if value is MISSING:
            raise UserError(f"{self.where}: no key {path!r}, which the mapping names; it has "
                            f"{', '.join(self.values)}")
        return value

    def text(self, path: str) -> str:
        """A string or number as text, and a list of them as lines."""
        value = self.value(path)
        lines = value if isinstance(value, list) else [value]
        if not all(isinstance(line, forms.SCALAR) for line in lines):
            raise UserError(f"{self.where}: {path!r} is a {type(value).__name__}, expected a text")
        return "\n".join(str(line) for line in lines if line is not None)

    def id(self, paths: str) -> str:
        """The values of the keys of an id, with "-" between them; a long hash is shortened."""
        text = "-".join(filter(None, (self.text(path).strip() for path in paths.split("+"))))
        return text[:16] if re.fullmatch("[0-9a-f]{40,}", text) else text


def read_options(record: Record, paths: str) -> tuple[dict[str, str], dict[str, str]]:
    """Options and their published names, as the mapping's `options` says."""
    if "/" in paths:
        return forms.option_texts(paths.split("/"))
    for alternative in paths.split("|"):
        columns = alternative.split("+")
        if all(record.find(column) is not MISSING for column in columns):
            break
    values = [record.value(column) for column in columns]
    if len(columns) == 1:
        return forms.option_texts(values[0])
    options = forms.lettered(values)
    names = (forms.plain(column.removesuffix("?")) for column in columns)
    return options, dict(zip(names, options))


def resolve_numbers(items: list[Raw], kind: str) -> None:
    """Replace answers that are an option's number by its letter. Unless `kind` says so, the numbers show
    whether they count from 0 or 1: either a 0 or the number of options occurs. A wrong guess would shift all
    answers, so anything else is an error. Where half of all answers are no numbers, some may be texts."""
    if kind in ("letter", "text"):
        return
    parts = [(raw, part) for raw in items if raw.options for part in raw.answer]
    texts = [part for raw, part in parts if part in raw.options or (
        NUMBER.fullmatch(part) and int(part) > len(raw.options)
        and forms.letter_of_text(part, raw.options) != part)]
    mixed = not kind and 2 * len(texts) >= len(parts)
    for raw in items if mixed else ():
        raw.answer = tuple(forms.letter_of_text(part, raw.options) if NUMBER.fullmatch(part) else part
                           for part in raw.answer)
    found = {(int(part), len(raw.options)) for raw in items for part in raw.answer
             if raw.options and NUMBER.fullmatch(part)}
    numbers = sorted({number for number, _ in found})
    unclear = not kind and (0 in numbers) == any(number == size for number, size in found)
    if unclear and found and not mixed:
        raise UserError(f"{items[0].where}: the answers are {', '.join(map(str, numbers[:9]))}, so it is "
                        "unclear whether options are counted from 0 or from 1; add --map kind=0 or kind=1")
    if unclear or not found:
        return
    first = int(kind or 0 not in numbers)
    for raw in items:
        letters = {str(number): letter for number, letter in enumerate(raw.options, first)}
        raw.answer = tuple(letters.get(part, part) for part in raw.answer)


def language_name(tag: str) -> str:
    """English name of a language in any spelling, "" if it has no file in mmed/languages."""
    code = language_code(tag)
    return next((language.name for language in all_languages() if language.code == code), "")


def read_question(record: Record, mapping: Mapping[str, str]) -> tuple[str, dict[str, str], list[str]]:
    """Question, options and answer."""
    question, names = record.text(mapping["question"]), {}
    before, marked = forms.marked_options(question)
    if mapping["options"] == mapping["question"]:
        question, options = before, marked
    else:
        options, names = read_options(record, mapping["options"])
        options = forms.without_letters(options)
        inside, own = ([*map(forms.folded, texts.values())] for texts in (marked, options))
        if marked and inside == own:  # the question repeats its options
            question = OPTIONS_TITLE.sub("", before)
    context = record.text(mapping["context"]).strip()
    if context and question.strip():
        question = f"{context}\n{question.strip()}"
    value = record.value(mapping["answer"])
    return question, options, forms.read_answer(value, options, names, mapping["kind"])


def read_item(record: Record, mapping: Mapping[str, str], name: str, prefix: str, language: str,
              split: str | None) -> Raw:
    """The item of a record; a split in the record overrides that of its file."""
    question, options, answer = read_question(record, mapping)
    extra: dict[str, Any] = {key: record.text(mapping[key]) or None for key in ("subject", "topic", "year")
                             if mapping[key]}
    if mapping["image"]:
        value = forms.unpacked(record.value(mapping["image"].removeprefix("!")))
        if isinstance(value, dict | list):  # {"bytes": ..., "path": ...} of model hubs
            value = any(value.values() if isinstance(value, dict) else value)
        flag = bool(value) and str(value).strip().lower() not in NO_IMAGE
        extra["image_dependent"] = flag != mapping["image"].startswith("!")
    extra |= {key: value for key in mapping["keep"].split("+") if (value := record.find(key)) is not MISSING}
    if (stated := record.value(mapping["split"])) is not None:
        split = split_of(str(stated))
    source = "-".join(filter(None, (name, record.text(mapping["source"]))))
    own = record.id(mapping["id"])
    group = f"{prefix.partition('-')[0] or source}-{record.id(mapping['group'])}" if mapping["group"] else ""
    return Raw(question, options, tuple(answer), record.text(mapping["rationale"]).strip(), language,
               f"{prefix or source}-{own}" if own else "", extra=extra, split=split, where=record.where,
               source=source, group=group)


def read_mapped(files: dict[Path, str | None], rows: Callable[[Path], Records], mapping: Mapping[str, str],
                name: str, prefix: str, language: str, notes: list[str]) -> list[Raw]:
    """The items of these files, each with the split that it states. `name` "": use the file names; `language`
    "": use the records'."""
    items: list[Raw] = []
    skipped: Counter[str] = Counter()
    key, _, wanted = mapping["filter"].partition("=")
    for path, split in files.items():
        source = name or re.sub(r"[^\w-]+", "-", path.name.split(".")[0]).lower()
        for where, values in rows(path):
            record = Record(values, where)
            tag = record.text(mapping["language"]) or language
            spoken = language_name(tag)
            if key and (value := record.text(key)) not in wanted.split("|"):
                skipped[f"{key} {value}"] += 1
            elif not tag:
                raise UserError(f"{where}: the language of {source!r} is unknown; give it with --language")
            elif not spoken:
                skipped[f"no language file for {tag}"] += 1
            elif language and spoken != language:
                skipped[f"language {tag}"] += 1
            else:
                items.append(read_item(record, mapping, source, prefix, spoken, split))
    if skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in skipped.most_common(8))
        notes.append(f"skipped {skipped.total():,} records, the most frequent reasons: {reasons}")
    resolve_numbers(items, mapping["kind"])
    return items
