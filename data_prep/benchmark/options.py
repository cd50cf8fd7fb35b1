"""Options and answers in the forms in which exams are published.

In: values of a record. Out: options by letter with the names that the file gives them, and the letters of the
right ones. What has no known form comes out as it is or empty; data_prep/mmedbench.py drops such items.
"""
from __future__ import annotations

import ast
import contextlib
import re
import unicodedata
from collections.abc import Iterable
from itertools import product
from typing import Any

from data_prep.benchmark.exam_files import parse_json

SCALAR = str | int | float | None
NAMES = ("key", "label", "letter", "id", "aid", "option")
TEXTS = ("value", "text", "content", "atext", "option")
# An option inside a text: a line that begins with "A.", "(A)" or "a "; or "(A)" after any blank. Letters and
# punctuation may be full-width.
LETTER, DOTS = "[(（]?([A-Za-zＡ-Ｚａ-ｚ])", r").:．）：、"
OPTION_START = re.compile(rf"\s*{LETTER}[{DOTS}]\s*")
OPTION_LINE = re.compile(rf"(?:^|\n)\s*{LETTER}(?:[{DOTS}]|(?<![(（].)[\u3000 ])\s*")  # not "(a case"
OPTION_INLINE = re.compile(r"(?:^|\s|(?=（))[(（]([A-ZＡ-Ｚ])[)）]\s*")
BETWEEN = re.compile(r"(?:[,;、，；。&+和与\s]|\b(?:and|et|und|и)\b)+", re.IGNORECASE)  # answers
NO_TEXT = ("", "n/a")  # of an option that fills a column only
# A string, bracket or other word of what Python and numpy write into a CSV cell
TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[][(){}:,]|[^][\s'"(){}:,]+""")


def plain(text: Any) -> str:
    """A letter, number or name in half-width capitals, without the punctuation around it: B of "(ｂ)．"."""
    return unicodedata.normalize("NFKC", str(text)).strip("().:[] ").upper().removesuffix(".0")


def folded(text: str) -> str:
    """A text without regard to case and white space, by which options are compared."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def parse_repr(text: str) -> Any:
    """What Python writes, or numpy, which puts blanks for commas and array([...], dtype=object) around."""
    parts = [""]
    for token in TOKEN.findall(text):
        if token.startswith("dtype="):
            parts.pop()  # the comma before it
        elif not re.fullmatch(r"array|np\.\w+", token):
            if parts[-1] not in ("", "[", "(", "{", ":", ",") and token not in ("]", ")", "}", ":", ","):
                parts.append(",")
            parts.append("None" if token == "nan" else token)
    return ast.literal_eval("".join(parts))


def unpacked(value: Any) -> Any:
    """The list or object that a CSV cell holds as JSON or a repr; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        for parse in (parse_json, parse_repr):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(value.strip())
    return value


def marked_options(text: str) -> tuple[str, dict[str, str]]:
    """Split a text that ends with its options into (text before them, options by letter)."""
    for pattern in (OPTION_LINE, OPTION_INLINE):
        starts = [mark.start() for mark in pattern.finditer(text) if plain(mark[1]) == "A"]
        if starts:  # letters before the last "A" belong to the question
            _, *parts = pattern.split(text[starts[-1]:])
            options = dict(zip(map(plain, parts[::2]), map(str.strip, parts[1::2])))
            if 1 < len(options) == len(parts) // 2:
                return text[:starts[-1]].rstrip(), options
    return text, {}


def after_letter(text: str, letter: str) -> str | None:
    """What follows the letter that a text begins with; None if it begins otherwise."""
    start = OPTION_START.match(text)
    return text[start.end():] if start and plain(start[1]) == letter else None


def lettered(texts: Iterable[Any]) -> dict[str, str]:
    """Name option texts A, B, C ... in their order; null, empty or "n/a" ones at the end are none."""
    texts = ["" if text is None else str(text) for text in texts]
    while texts and folded(texts[-1]) in NO_TEXT:
        texts.pop()
    return {chr(ord("A") + place): text for place, text in enumerate(texts)}


def named_options(value: Any) -> list[tuple[Any, Any]]:
    """[(name, text)] of options that have names of their own: {name: text}, [{"key": "A", "value": ...}],
    [[name, text]], {"label": [...], "text": [...]} or one string "(A) ... (B) ..."; else []."""
    if isinstance(value, str):
        before, marked = marked_options(value)
        value = {} if before else marked
    if isinstance(value, dict) and not all(isinstance(part, list) for part in value.values()):
        return list(value.items())
    if isinstance(value, dict):  # columns
        value = [dict(zip(value, row)) for row in zip(*value.values())]
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return [tuple(pair) for pair in value]  # parquet's maps
    if not isinstance(value, list) or not all(isinstance(option, dict) for option in value):
        return []
    return [tuple(next((option[key] for key in keys if key in option), None) for keys in (NAMES, TEXTS))
            for option in value]


def option_texts(value: Any) -> tuple[dict[str, str], dict[str, str]]:
    """(options by letter, {published name: letter}) of a list of texts or of options with names, else
    ({}, {})."""
    value = unpacked(value)
    if isinstance(value, list) and all(isinstance(text, SCALAR) for text in value):
        return lettered(value), {}
    pairs = named_options(value)
    by_name = {plain(name): text for name, text in pairs}
    if len(by_name) < len(pairs) or not all(isinstance(text, SCALAR) for text in by_name.values()):
        return {}, {}
    latin = all(re.fullmatch("[A-Z]", name) for name in by_name)
    if latin or all(map(str.isdecimal, by_name)):
        by_name = dict(sorted(by_name.items(), key=lambda pair: (len(pair[0]), pair[0])))
    options = lettered(by_name.values())
    if latin:  # keep the file's letters, even "A, C", which is dropped later
        options = dict(zip(by_name, options.values()))
    return options, dict(zip(by_name, options))


def without_letters(options: dict[str, str]) -> dict[str, str]:
    """Options without the letter in each text, if every text begins with its own letter."""
    bare = {letter: after_letter(text, letter) for letter, text in options.items()}
    return options if None in bare.values() else bare


def read_answer(value: Any, options: dict[str, str], names: dict[str, str], kind: str = "") -> list[str]:
    """The letters of the right options, from the ways answers are written: letters, the options' published
    names, or the text of an option, which alone counts if `kind` is "text". -1 means none; a number, and
    text that names no option, is returned as it is."""
    value = unpacked(value)
    if isinstance(value, list):
        return [letter for part in value for letter in read_answer(part, options, names, kind)]
    text = "" if value is None else str(value).strip()
    if not text or (kind != "text" and re.fullmatch(r"-\d+", plain(text))):
        return []
    words = list(filter(None, map(plain, BETWEEN.split(text))))
    letter = letter_of_text(text, options)
    if kind == "text" or (len(words) > 1 and letter != text):  # "1, 2" may be the text of one option
        return [letter]
    if all(word in names for word in words):
        return [names[word] for word in words]
    if all(map(str.isdecimal, words)) and any(map(str.isdecimal, names)):  # the file numbers its options
        return [f"no option {text}"]
    if all(word in options or word.isdecimal() for word in words):
        return words
    if letter == text and text.isupper() and set(plain(text)) <= set(options):
        return list(plain(text))  # "CA", but not if it is an option's text, as a blood group
    return [letter]


def letter_of_text(part: str, options: dict[str, str]) -> str:
    """The letter of the option with this text (with or without a letter before it); else the text itself."""
    for form, (letter, text) in product((str.strip, folded), options.items()):  # GG and gg are two genotypes
        if text.strip() and form(text) in map(form, (part, after_letter(part, letter) or "")):
            return letter
    return part
