"""Everything specific to one language: a file `mmed/languages/<code>.py` with a constant `LANGUAGE`.

A file is found by its name, an ISO 639-1 code; nothing is registered. docs/add_a_language.md explains the
fields.

`medical_words` holds 200 terms, as in the paper: dictionary forms in lower case. "печен|ь" stands for every
word that begins with "печен"; in the published rule, which knows no stems, for "печень". A term without a bar
stands for itself alone ("virus" is not "viruses"). "|entzündung|" also matches inside a compound:
"Lungenentzündungen". "tumor|/tumour|" is one term in two spellings; the published rule takes the first.

DIFFERS: the official code says "jp" for Japanese; we say "ja", as CulturaX does.
"""
from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass

from mmed.utils.errors import UserError, require_extra

PAPER_ORDER = ("en", "zh", "ja", "fr", "ru", "es")  # MMedLM: the columns of every table in the paper

# One letter with several spellings in the Arabic script, by writer and keyboard
SAME_LETTER = str.maketrans("أإآٱىیةک", "اااا" "يي" "هك")
# Letters with diacritics: Latin and Cyrillic accents, Arabic vowels, signs of Indian scripts (no danda)
_LETTER = r"[\w\u0300-\u036f\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff]"
_CLITIC = r"['’](?:s|m|d|ll|re|ve)\b"
_SPACED = re.compile(
    rf"\w+?(?=n['’]t\b)|n['’]t\b|{_CLITIC}|\.\.\.|--+|[^\w\s]|"
    rf"{_LETTER}+(?:[-/.&+@]{_LETTER}+|[,:]\d+|(?!{_CLITIC})['’]{_LETTER}+)*", re.IGNORECASE)
_RUN = "[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"
_CHARACTERS = re.compile(rf"{_RUN}+(?:[-.]{_RUN}+)*|\S[\u0300-\u036f\u3099\u309a]*")


def split_spaced(text: str) -> list[str]:
    """Words and punctuation, close to the Treebank rules that NLTK follows.

    >>> split_spaced("The patient's BP (120/80) didn't fall, 3.5 mg.")
    ['The', 'patient', "'s", 'BP', '(', '120/80', ')', 'did', "n't", 'fall', ',', '3.5', 'mg', '.']
    >>> split_spaced("l'hôpital, 37,2 °C")
    ["l'hôpital", ',', '37,2', '°', 'C']
    """
    return _SPACED.findall(text)


def split_characters(text: str) -> list[str]:
    """One token a character, Latin and digit runs whole: for languages without spaces.

    >>> split_characters("患者有HIV，体温37.5 ℃。")
    ['患', '者', '有', 'HIV', '，', '体', '温', '37.5', '℃', '。']
    """
    return _CHARACTERS.findall(text)


def nltk_words(text: str) -> list[str]:
    """NLTK's words, the tokens of the official scores in languages with spaces.

    DIFFERS: the official `nltk.word_tokenize` splits sentences with a downloaded English model. Punkt without
    a model needs none; only full stops after abbreviations ("Dr. Li") can become tokens of their own.
    """
    sentences = require_extra("nltk.tokenize.punkt", "words").PunktSentenceTokenizer()
    words = require_extra("nltk.tokenize.destructive", "words").NLTKWordTokenizer()
    return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


@dataclass(frozen=True)
class AnswerWords:
    """Words that state an answer, separated by commas, for `mmed/evaluation/answer_parser.py`.

    Lower case; phrases of several words are allowed. A bar stands for any ending, as in `medical_words`:
    "correct|e" is "correct", "correcte", "correctes". All lists may be empty.
    """

    answer: str = ""  # what a letter answers: answer, option, diagnosis, treatment, cause
    is_: str = ""  # is, are, would be, seems
    choose: str = ""  # come before a letter without "is": choose, think, therefore, actually, correction
    correct: str = ""  # correct, right, best, most likely
    wrong: str = ""  # wrong, false, ruled out, contraindicated
    not_: str = ""  # exclude the letter after them: not, neither, rather than
    because_if: str = ""  # begin a clause: "because, since / if, unless"; after a slash, about another case
    and_or: str = ""  # join letters; those that leave the answer open after a slash: "and, as well as / or"
    question: str = ""  # headings of a question, as written; the text after one belongs to another item
    letters: str = ""  # letters of the script used instead of A, B, C: "أبجده"
    stated: tuple[str, ...] = ()  # sentences for the tests that state {} as the answer: "I choose {}."
    denied: tuple[str, ...] = ()  # sentences that do not: "{} is wrong."


@dataclass(frozen=True)
class Language:
    code: str  # ISO 639-1
    name: str  # in English; also the file name in MMedBench
    native_name: str
    spaced: bool  # spaces separate words
    medical_words: tuple[str, ...]  # see the module docstring
    min_hits: int  # distinct medical words that a document needs (MKC)
    min_density: float  # share of its letters and digits that lie in medical words (DENS)
    official_min_hits: int  # MMedLM: the published thresholds
    official_min_density: float  # share of all characters, nested words counted twice
    ocr_code: str  # Tesseract's name of the language
    medical_sentence: str
    ordinary_sentence: str
    split_words: Callable[[str], list[str]] = split_spaced  # words and punctuation, no extra package
    official_words: Callable[[str], list[str]] = nltk_words  # as in the official scores; needs mmed[words]
    official_package: str = "nltk"  # what `official_words` uses, as signatures of scores name it
    answers: AnswerWords = AnswerWords()
    prefixes: tuple[str, ...] = ()  # written to the next word without a space ("ال"), which is still found
    right_to_left: bool = False
    language_id: tuple[str, ...] = ()  # codes under which language identification knows it; () is its own
    phone_words: str = ""  # announce a telephone number; alternatives separated by "|"
    disclaimer: str = "This is a research model. What it says is not medical advice; ask a doctor."  # chat


def words(listed: str) -> tuple[str, ...]:
    """Split a comma-separated list of terms, which may span several lines."""
    return tuple(" ".join(term.split()) for term in listed.split(",") if term.strip())


@functools.cache
def all_languages() -> tuple[Language, ...]:
    """Every language that has a file here, the paper's six first."""
    codes = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    ordered = [*PAPER_ORDER, *sorted(codes - set(PAPER_ORDER))]
    return tuple(importlib.import_module(f"{__name__}.{code}").LANGUAGE for code in ordered)


def get_language(name: str) -> Language:
    """Find a language by code or by English or native name, ignoring case."""
    wanted = name.strip().lower()
    for language in all_languages():
        if wanted in (language.code, language.name.lower(), language.native_name.lower()):
            return language
    known = ", ".join(f"{language.code} ({language.name})" for language in all_languages())
    raise UserError(f"unknown language {name!r}: known are {known}; a new one is a file "
                    "mmed/languages/<code>.py. Exam files are named after their language: English.jsonl")
