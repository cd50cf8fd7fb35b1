"""The paper's keyword rule in its plainest form: is a text medical, judging by its words?

In:  a text; the words and thresholds of one language (`mmed/languages/<code>.py`).
Out: a `Decision`.      MKC  = number of different medical words in the text
                        DENS = characters inside medical words / characters of the text
                        medical if and only if  MKC >= min_hits  and  DENS >= min_density

Two readings of "a word in the text": `judge_official`, the published code, and `judge_default`, ours.
keyword_matcher.py makes the same decisions for many texts at once; tests compare the two.
"""
from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

from mmed.languages import SAME_LETTER, Language

LATIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


class Decision(NamedTuple):
    medical: bool
    hits: int  # MKC
    density: float  # DENS


def decide(hits: int, covered: int, length: int, min_hits: int, min_density: float) -> Decision:
    density = covered / length if length else 0.0
    return Decision(hits >= min_hits and density >= min_density, hits, density)


def dictionary_form(term: str) -> str:
    """The first spelling of a term of a language file, without the bars that mark its stem.

    >>> dictionary_form("tumor|/tumour|"), dictionary_form("infectio|n"), dictionary_form("|krebs|")
    ('tumor', 'infection', 'krebs')
    """
    return term.partition("/")[0].replace("|", "")


def official_words(language: Language) -> list[str]:
    """The distinct dictionary forms in lower case: the word list that the published code would have."""
    return list(dict.fromkeys(dictionary_form(term).lower() for term in language.medical_words))


def is_long(word: str, language: Language) -> bool:
    """MMedLM: long words match anywhere, the others only as whole pieces between white space."""
    return not language.spaced or len(word) > 10 or (len(word) > 5 and " " in word)


def judge_official(text: str, language: Language) -> Decision:
    """MMedLM: word counts in the lower-cased text; nested words count twice; the unit is the document.

    DIFFERS: the official branch for Chinese and Japanese cannot run (it loops over a pair of lists, splits at
    white space and does not lower the case of the text); here every word counts anywhere, which is what it
    evidently means.
    """
    text = text.lower()
    pieces = text.split()
    hits = covered = 0
    for word in official_words(language):
        count = text.count(word) if is_long(word, language) else pieces.count(word)
        hits += count > 0
        covered += count * len(word)
    return decide(hits, covered, len(text), language.official_min_hits, language.official_min_density)


# DIFFERS: the official rule misses short words before punctuation ("cancer,") and inflected forms, and counts
# nested words twice. The default rule
#   - compares words at letter borders, and stems (a bar shows where the ending begins) where a word begins,
#   - folds case, width, Latin and Greek accents, ё and Arabic spellings, and ignores soft hyphens,
#   - takes the longest of nested words only,
#   - requires Latin terms in Chinese and Japanese to stand alone ("rna" is not in "journal"),
#   - and counts only letters and digits in DENS, so that white space and punctuation do not thin a text.

# What needs more than a look at one character: invisible characters, which are removed, ligatures (of Arabic
# in PDF files, too) and half-width kana, which are taken apart, and letters that NFC joins with a mark.
_INVISIBLE = ("\xad\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0600-\u0605\u0610-\u061a\u061c\u0640\u064b-\u065f"
              "\u0670\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff")
_LIGATURES = "\ufb00-\ufb06\ufbea-\ufdf9\ufef5-\ufefc"
_RARE = re.compile(f"[{_INVISIBLE}{_LIGATURES}\u1100-\u11ff\u3099\u309a\uff9e\uff9f]")
_REMOVED = re.compile(f"[{_INVISIBLE}]+")
_COMPATIBLE = re.compile(f"[{_LIGATURES}]|[\uff66-\uff9f]+")


def unfold_rare(text: str) -> str:
    """Normalise a text so that every character can be folded on its own; spaces become single ones."""
    while "  " in text:
        text = text.replace("  ", " ")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    if _RARE.search(text):
        text = _COMPATIBLE.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
        text = _REMOVED.sub("", unicodedata.normalize("NFC", text))
    return text


@functools.lru_cache(1 << 12)
def fold_character(character: str) -> str:
    """The folded form of a letter, digit or vowel mark; a blank for all else, also beyond the first plane.

    >>> "".join(map(fold_character, "ÉＨＩＶｱёЙßİأة,"))
    'ehivアейßiاه '
    """
    if character > "\uffff":
        return " "
    single = unicodedata.normalize("NFKC", character)
    if len(single) != 1:
        single = character
    if single in "ёЁ" or (single > "\x7f" and unicodedata.name(single, "").startswith(("LATIN", "GREEK"))):
        single = unicodedata.normalize("NFD", single)[0]
    lower = single.lower().translate(SAME_LETTER)
    folded = lower if len(lower) == 1 else single
    return folded if folded.isalnum() or unicodedata.category(folded)[0] == "M" else " "


class Pattern(NamedTuple):
    """One spelling to look for, already folded; a blank in it stands for any one character between words."""

    letters: str
    word: int  # its term's place in the language's list
    anywhere: bool = False  # else it begins where a word begins
    stem: bool = False  # else it also ends where a word ends


@functools.lru_cache(8)
def default_patterns(language: Language) -> tuple[Pattern, ...]:
    """The spellings of each term, also after each prefix of the language; œ, æ and ß are also two letters."""
    patterns: dict[Pattern, None] = {}
    for number, term in enumerate(language.medical_words):
        for spelling in term.split("/"):
            anywhere = not language.spaced or spelling.startswith("|")
            stem, bar, _ = spelling.removeprefix("|").partition("|")
            for letters in (stem, stem.replace("œ", "oe").replace("æ", "ae").replace("ß", "ss")):
                for prefix in ("", *language.prefixes):
                    folded = "".join(map(fold_character, unfold_rare(prefix + letters)))
                    patterns[Pattern(folded, number, anywhere, stem=bool(bar))] = None
    return tuple(patterns)


def fits(pattern: Pattern, before: str, after: str, spaced: bool) -> bool:
    """Whether the characters around its letters allow a pattern; all folded, a blank between words."""
    if not spaced:
        return not ((pattern.letters[0] in LATIN and before in LATIN)
                    or (pattern.letters[-1] in LATIN and after in LATIN))
    return pattern.anywhere or (before == " " and (pattern.stem or after == " "))


def judge_default(text: str, language: Language) -> Decision:
    """Scan left to right: at each position the longest term counts, and the search continues after it."""
    text = " " + "".join(map(fold_character, unfold_rare(text))) + " "
    beginning: dict[str, list[Pattern]] = {}  # first letter -> patterns, the longest first
    for pattern in sorted(default_patterns(language), key=lambda pattern: -len(pattern.letters)):
        beginning.setdefault(pattern.letters[0], []).append(pattern)
    found: set[int] = set()
    place = 1
    covered = 0
    while place < len(text):
        for pattern in beginning.get(text[place], ()):
            end = place + len(pattern.letters)
            if text.startswith(pattern.letters, place) and \
                    fits(pattern, text[place - 1], text[end:end + 1] or " ", language.spaced):
                found.add(pattern.word)
                covered += len(pattern.letters.replace(" ", ""))
                place = end
                break
        else:
            place += 1
    length = len(text) - text.count(" ")
    return decide(len(found), covered, length, language.min_hits, language.min_density)
