"""One file a language: all that is particular to it. `mmed/languages/<code>.py` with a constant `LANGUAGE` is
found by itself; nothing is registered anywhere.

    get_language("ja") == get_language("Japanese") == get_language("日本語")
    [language.code for language in all_languages()]   the paper's order first, then by code

**How medical words are written.** `medical_words` holds dictionary forms in lower case. A bar marks where the
ending begins: "печен|ь" stands for every word that begins with "печен" (печень, печени, печенью), and in the
published rule, which knows no stems, for the word "печень". A word without a bar stands for itself alone
("virus" is not "viruses"). A bar in front, too, lets it stand inside a compound: "|entzündung|" is also in
"Lungenentzündungen". In languages with spaces at least 3 letters, 4 before a bar, and 5 behind one; in the
others at least two characters and no bar. A slash separates spellings of one term ("tumor|/tumour|",
"医院/醫院"), which count as one word; the published rule takes the first. 200 terms a language, as in the
paper.

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

from mmed.utils.errors import UserError, require_extra

PAPER_ORDER = ("en", "zh", "ja", "fr", "ru", "es")  # MMedLM: the columns of every table in the paper

# One letter with several spellings in the Arabic script, by writer and keyboard: the same for the filter and
# the answer parser.
SAME_LETTER = str.maketrans("أإآٱىیةک", "اااا" "يي" "هك")

Splitter = Callable[[str], list[str]]


@dataclass(frozen=True)
class AnswerWords:
    """How an answer is stated in a language: alternatives of regular expressions, parted by "|", in lower
    case, blanks as they stand.

    `mmed/evaluation/answer_words.py` joins them over languages. In languages with spaces each must end where
    a word ends. Every repeat must be bounded (`{0,3}`, never `*`), so that reading stays linear. All may be
    left out; then only what needs no word is read.
    """

    cue: str = ""  # before a letter, with or without a link: "the answer", "correct option"
    decide: str = ""  # verbs, revisions and conclusions that need no link: "I choose", "wait", "therefore"
    weak: str = ""  # heeded where nothing else speaks: "I think", "probably"
    negation: str = ""  # takes the letter after it back: "not", "rather than"
    negation_before: str = ""  # the last word before a verb of `decide` that turns it round: "not" (choose)
    negation_after: str = ""  # right behind the letter, as in Japanese "Aではな"
    either: str = ""  # before the first of two that "or" parts
    or_: str = ""
    # those with a blank in them stand for a comma, the others also behind one; capitals must be given too
    and_: str = ""
    and_attached: str = ""  # joined to the letter behind it, as the Arabic "و"
    but: str = ""  # after "not A": "but", "rather"
    copula: str = ""  # links a cue to its letter, also over a distance: "is"
    link: str = ""  # links them only where nothing but fillers stands between: "was"
    filler: str = ""  # carries nothing between cue and letter: "the", "probably"
    goes_on: str = ""  # may follow a letter that by itself is a word: "because", "and"
    because: str = ""  # after a label that begins a line: "C because ..."
    is_answer: str = ""  # behind a letter: "is the correct answer", "seems right"
    right_link: str = ""  # between a letter and a verdict, with its blank: "is a "
    right: str = ""  # verdicts: "correct", "true"
    wrong_link: str = ""  # the same before `wrong`, without the blank
    wrong: str = ""  # "false", "ruled out"
    name_before: str = ""  # makes a letter the name of something: "vitamin", "hepatitis"
    named: str = ""  # the same behind a letter: "cells", "virus"
    item_prefix: str = ""  # may stand before each letter of a list: "option"
    line_prefix: str = ""  # may stand before a letter that is all of a line
    bare_tail: str = ""  # may stand behind it: "and not D"
    # heading of a question, after which a text has run on into another item; in its own case
    question: str = ""
    avoid: str = ""  # beside an option's text: the text is named, not chosen: "contraindicated"
    letters: str = ""  # of the script, in the place of A, B, C, ...: "أبجده"
    # sentences for the tests: each states {} as the answer, "The right answer is {}."
    stated: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()  # and these do not: "{} is wrong."


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
    official_package: str = "nltk"  # what `official_words` cuts with, as signatures of scores name it
    answers: AnswerWords = AnswerWords()
    # written to the word behind them without a space ("ال"): medical words are found behind them, too
    prefixes: tuple[str, ...] = ()
    right_to_left: bool = False
    language_id: tuple[str, ...] = ()  # codes under which language identification knows it; () is its own
    phone_words: str = ""  # announce a telephone number; alternatives parted by "|"
    # Shown before a chat on the terminal
    disclaimer: str = "This is a research model. What it says is no medical advice; ask a doctor."


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


# Letters with their marks: Latin and Cyrillic accents, Arabic vowels, the signs of the scripts of India
# (without the danda).
_LETTER = r"[\w\u0300-\u036f\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff]"
_CLITIC = r"['’](?:s|m|d|ll|re|ve)\b"
_SPACED = re.compile(
    rf"\w+?(?=n['’]t\b)|n['’]t\b|{_CLITIC}|{_LETTER}+(?:[-/.&+@]{_LETTER}+|[,:]\d+|"
    rf"(?!{_CLITIC})['’]{_LETTER}+)*"
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

    DIFFERS: the official code calls `nltk.word_tokenize`, whose sentence splitter needs a downloaded English
    model. We give the same word rules (NLTKWordTokenizer) the sentences of Punkt without a model: no
    download, and nothing English in Spanish; only full stops after abbreviations ("Dr. Li") can become tokens
    of their own.
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
        if module.name.startswith("_"):
            continue  # the command
        language = getattr(importlib.import_module(f"{__name__}.{module.name}"), "LANGUAGE", None)
        if not isinstance(language, Language) or language.code != module.name:
            raise UserError(
                f"mmed/languages/{module.name}.py: expected a constant LANGUAGE = "
                f"Language(code={module.name!r}, ...)"
            )
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
    raise UserError(
        f"unknown language {name!r}: {hint}known are {known}; a new one is a file mmed/languages/<code>.py")
