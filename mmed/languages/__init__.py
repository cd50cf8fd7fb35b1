"""One file a language: all that is particular to it. `mmed/languages/<code>.py` with a constant `LANGUAGE` is found by
itself; nothing is registered anywhere.

    get_language("ja") == get_language("Japanese") == get_language("日本語")
    [language.code for language in all_languages()]   the paper's order first, then by code

**How medical words are written.** `medical_words` holds dictionary forms in lower case. A bar marks where the ending
begins: "печен|ь" stands for every word that begins with "печен" (печень, печени, печенью), and in the
published rule, which knows no stems, for the word "печень". A word without a bar stands for itself alone ("virus" is not
"viruses"). At most one bar a spelling; in languages with spaces at least 3 letters, and 4 before a bar; in the others at
least two characters and no bar. A slash parts spellings of one term ("tumor|/tumour|", "医院/醫院"), which count as one
word; the published rule takes the first. 200 terms a language, as in the paper.

Codes are ISO 639-1. DIFFERS: the official code says "jp" for Japanese; we say "ja", as CulturaX does.
"""
from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmed.errors import UserError, require_extra

PAPER_ORDER = ("en", "zh", "ja", "fr", "ru", "es")  # MMedLM: the columns of every table in the paper

Splitter = Callable[[str], list[str]]


@dataclass(frozen=True)
class Language:
    code: str  # ISO 639-1
    name: str  # in English; also the file name in MMedBench
    native_name: str
    spaced: bool  # words are separated by spaces
    medical_words: tuple[str, ...]  # see the module's head
    min_hits: int  # distinct medical words a document needs (MKC)
    min_density: float  # share of its letters and digits that lie in medical words (DENS)
    official_min_hits: int  # MMedLM: the published thresholds
    official_min_density: float  # share of all characters, nested words counted twice
    ocr_code: str  # Tesseract's name of the language
    medical_sentence: str
    ordinary_sentence: str
    split_words: Splitter  # words and punctuation without any extra package
    official_words: Splitter  # as in the official scores; needs mmed[words]
    right_to_left: bool = False
    # Shown before a chat on the terminal
    disclaimer: str = "This is a research model. What it says is no medical advice; ask a doctor."
    demo: Any = None  # the words of the demo world


def words(listed: str) -> tuple[str, ...]:
    r"""Terms written with commas between them, over as many lines as they need.

    >>> words("patient|, blood pressure,\n   insulin")
    ('patient|', 'blood pressure', 'insulin')
    """
    return tuple(" ".join(term.split()) for term in listed.split(",") if term.strip())


def split_spaced(text: str) -> list[str]:
    """Words and punctuation, close to the Treebank rules that NLTK follows.

    >>> split_spaced("The patient's BP (120/80) didn't fall, 3.5 mg.")
    ['The', 'patient', "'s", 'BP', '(', '120/80', ')', 'did', "n't", 'fall', ',', '3.5', 'mg', '.']
    >>> split_spaced("l'hôpital, 37,2 °C")
    ["l'hôpital", ',', '37,2', '°', 'C']
    """
    return _SPACED.findall(text)


# Letters with their marks: Latin and Cyrillic accents, Arabic vowels, the signs of the scripts of India (without the danda).
_LETTER = r"[\w\u0300-\u036f\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff]"
_CLITIC = r"['’](?:s|m|d|ll|re|ve)\b"
_SPACED = re.compile(
    rf"\w+?(?=n['’]t\b)|n['’]t\b|{_CLITIC}|{_LETTER}+(?:[-/.&+@]{_LETTER}+|[,:]\d+|(?!{_CLITIC})['’]{_LETTER}+)*"
    r"|\.\.\.|--+|[^\w\s]", re.IGNORECASE)


def split_characters(text: str) -> list[str]:
    """One token a character, Latin and digit runs whole: for languages without spaces.

    >>> split_characters("患者有HIV，体温37.5 ℃。")
    ['患', '者', '有', 'HIV', '，', '体', '温', '37.5', '℃', '。']
    """
    return _CHARACTERS.findall(text)


_RUN = "[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"
_CHARACTERS = re.compile(rf"{_RUN}+(?:[-.]{_RUN}+)*|\S[\u0300-\u036f\u3099\u309a]*")


def nltk_words(text: str) -> list[str]:
    """NLTK's words, the tokens of the official scores in languages with spaces.

    DIFFERS: the official code calls `nltk.word_tokenize`, whose sentence splitter needs a downloaded English model. We give
    the same word rules (NLTKWordTokenizer) the sentences of Punkt without a model: no download, and nothing English in
    Spanish; only full stops after abbreviations ("Dr. Li") can become tokens of their own.
    """
    sentences, words = _nltk()
    return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


@functools.cache
def _nltk() -> tuple[Any, Any]:
    require_extra("nltk", "words")
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


@functools.cache
def all_languages() -> tuple[Language, ...]:
    """Every language that has a file here, the paper's six first."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        language = getattr(importlib.import_module(f"{__name__}.{module.name}"), "LANGUAGE", None)
        if not isinstance(language, Language) or language.code != module.name:
            raise UserError(f"mmed/languages/{module.name}.py: expected a constant LANGUAGE = Language(code={module.name!r}, ...)")
        found.append(language)
    order = {code: place for place, code in enumerate(PAPER_ORDER)}
    return tuple(sorted(found, key=lambda language: (order.get(language.code, len(order)), language.code)))


def get_language(name: str) -> Language:
    """The language of a code or a name, English or native, in any case.

    >>> get_language("ja").name, get_language("Japanese").code, get_language("ENGLISH").code
    ('Japanese', 'ja', 'en')
    """
    wanted = name.strip().lower()
    names = {}
    for language in all_languages():
        if wanted in (language.code, language.name.lower(), language.native_name.lower()):
            return language
        names.update({language.code: language.code, language.name.lower(): language.name})
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {names[near[0]]!r}? " if near else ""
    known = ", ".join(f"{language.code} ({language.name})" for language in all_languages())
    raise UserError(f"unknown language {name!r}: {hint}known are {known}; a new one is a file mmed/languages/<code>.py")
