"""Folded text, and the option letters that stand in it: the lowest layer of the answer parser.

In: raw text and a place in it. Out: the letters or option texts that stand there, where they end, and how
they stand: "hard" (a letter by itself), "soft" (before a word, so it may be a word too), "or" (a list that
leaves it open), "" (a part of something else). In order: folding, the text with its options, one letter, one
item, a list of items.
"""
from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from mmed.evaluation.answer_words import (
    AFTER_OK,
    CJK,
    CJK_AFTER,
    CYRILLIC_UNLIKE,
    LOOKALIKES,
    PUBLISHED,
    SPECIES,
    Patterns,
)
from mmed.languages import SAME_LETTER


class _Fold(dict):
    """str.translate table, filled on demand: compatibility forms, no marks, no controls, every blank a space.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char == "\n":
            folded = char
        elif category in ("Zs", "Zl", "Zp") or char in "\t\r\v\f\x1c\x1d\x1e\x1f\x85":
            folded = " "
        elif category.startswith(
                "C") or 0x300 <= code <= 0x36F or 0xFE00 <= code <= 0xFE0F or 0x20D0 <= code <= 0x20FF:
            folded = ""
        elif 0x1F150 <= code <= 0x1F169 or 0x1F170 <= code <= 0x1F189:  # negative circled and squared letters
            folded = chr(ord("A") + (code - 0x1F150) % 32)
        elif char in LOOKALIKES:  # some have compatibility forms of their own
            folded = char
        elif char == "İ":  # the only character whose lower case is longer than itself
            folded = "I"
        else:
            folded = {"’": "'", "‘": "'", "‐": "-", "‑": "-", "℃": "°"}.get(char) or unicodedata.normalize(
                "NFKC", char)
        self[code] = folded
        return folded


class _FurtherFold(_Fold):
    """The same for languages beyond the paper's six: marks and spellings of other scripts, their digits and
    punctuation.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char in "،؛؟٪۔।॥":
            folded = dict(zip("،؛؟٪۔।॥", ",;?%..."))[char]
        elif unicodedata.category(char) == "Nd":
            folded = str(unicodedata.digit(char))
        elif (char == "ـ" or 0x591 <= code <= 0x5C7 or 0x610 <= code <= 0x61A or 0x64B <= code <= 0x65F
              or code == 0x670):
            folded = ""  # the stroke that lengthens an Arabic word; vowel marks, which may be left out
        else:
            folded = super().__missing__(code).translate(SAME_LETTER)
        self[code] = folded
        return folded


_FOLD, _FURTHER_FOLD = _Fold(), _FurtherFold()


def fold(text: str, w: Patterns) -> str:
    folded = text.translate(_FURTHER_FOLD if w.own else _FOLD)
    return re.sub(" +", " ", re.sub(r"~~[^~\n]{1,200}~~", "", folded))


def fold_option(text: str, w: Patterns) -> str:
    return fold(text, w).strip(' \n"').rstrip(".。").lower()


@dataclass
class FoldedText:
    """A folded text, in both cases, with the option letters and folded option texts to look for in it."""

    text: str
    low: str
    letters: str
    # (lower-case folded option text, letter), longest first, without those of one letter
    texts: list[tuple[str, str]]
    own: dict[str, str]  # letter -> lower-case folded text
    cyrillic: bool  # the text labels options with Cyrillic letters
    w: Patterns  # the words to read it with


def letter_at(t: FoldedText, at: int) -> str:
    """The Latin capital that stands here, "?" for a letter that is a label but none of ours, "" for anything
    else.
    """
    char = t.text[at:at + 1]
    if char in t.w.letters:  # a letter of the script, if it is no part of a word
        return t.w.letters[char] if not t.w.alphabetic.match(t.text, at + 1) else ""
    if char in CYRILLIC_UNLIKE or (t.cyrillic and char in {"В", "С", "Е"}):
        return "?"
    char = LOOKALIKES.get(char, char)
    if "A" <= char <= "Z":
        return char
    return char.upper() if "a" <= char <= "z" and char.upper() in t.letters else ""


def is_capital(t: FoldedText, at: int) -> bool:
    """Whether this is a letter that can be no small word: a capital, or an option letter of a script without
    capitals.
    """
    return t.text[at:at + 1].isupper() or (t.text[at:at + 1] in t.w.letters and bool(letter_at(t, at)))


def _goes_on(t: FoldedText, end: int) -> bool:
    return bool(t.w.goes_on.match(t.low, end)) or bool(t.w.capital_after.match(t.text[end:end + 3]))


def how_it_stands(t: FoldedText, at: int, end: int, letter: str) -> str:
    """How the letter text[at:end] stands: "hard" before an end or a stop, "soft" before a word, "" inside
    something.
    """
    after = t.text[end:end + 1]
    if after in ("", "\n"):
        return "hard"
    if after == " ":
        return _before_a_space(t, at, end, letter)
    if after in "'-" and t.w.alphabetic.match(t.text[end + 1:end + 2]):
        return ""
    if after == "." and SPECIES.match(t.low, end):
        return ""
    if after == "/" and t.text[end + 1:end + 2] in ("A", "a") and t.text[at] in "Nn":
        return ""
    if after in AFTER_OK or after in CJK_AFTER or (CJK.match(after) and t.w.and_.match(t.text, end)):
        return "hard"
    if own_text_end(t, end, letter) > end:
        return "hard"
    return "" if t.w.in_word.match(after) or CJK.match(after) else "hard"


def _before_a_space(t: FoldedText, at: int, end: int, letter: str) -> str:
    """`how_it_stands` for a letter with a space behind it."""
    if t.text[end + 1:end + 2] in ("", "\n"):
        return "hard"
    char = t.text[at]
    # "C difficile", as without a full stop
    if SPECIES.match(t.low, end) and own_text_end(t, end, letter) == end:
        return ""
    if t.w.named.match(t.low, end):
        return ""
    if t.w.and_.match(t.text, end).end() > end + 1 or not t.w.alphabetic.match(t.text[end + 1]):
        return "hard"
    if char in "AАΑВСОУИ" or char.islower() or letter not in t.letters:  # a word by itself, or no option
        return "soft" if _goes_on(t, end) or own_text_end(t, end, letter) > end else ""
    return "soft"


_OWN = re.compile(r"[)\]*_`\"'»”]{0,4} ?[.):：,、\-–—(\[]{0,2} ?[*_(\[\"'«]{0,3} ?")


def own_text_end(t: FoldedText, end: int, letter: str) -> int:
    """The place after the option's own text, if it follows the letter that ends at `end`; else `end`."""
    at = _OWN.match(t.text, end).end()
    text = t.own.get(letter, "")
    if not text or at == end or not t.low.startswith(text, at):
        return end if not text or t.w.alphabetic.match(text) or not t.low.startswith(text,
                                                                                     at) else at + len(text)
    stop = at + len(text)
    return end if len(text) == 1 and t.w.alphabetic.match(t.text, stop) else stop


def option_text_at(t: FoldedText, at: int) -> tuple[str, int]:
    """(letter, end) of an option's text that stands at this place by itself; ("", at) if none."""
    for text, letter in t.texts:
        if t.low.startswith(text, at):
            end = at + len(text)
            after = t.text[end:end + 1]
            joined = after == " " and (_goes_on(t, end) or t.w.and_.match(t.text, end).end() > end + 1)
            if after == " " and not joined and t.text[end + 1:end + 2] not in AFTER_OK | {"", "\n"}:
                continue
            if (CJK.match(after) and after not in CJK_AFTER) or t.w.alphabetic.match(after):
                continue
            return letter, end
    return "", at


_CLOSERS = re.compile(r"[*_`\"'»”」』)\]】.]{0,4}")


def _item(t: FoldedText, at: int) -> tuple[str, int, str]:
    """One letter or option text at this place: (letter, end, how it stands); ("", at, "") if there is none.
    """
    letter, end = option_text_at(t, at)
    if letter:
        return letter, end, "hard"
    letter = letter_at(t, at)
    if not letter:
        return "", at, ""
    if letter == "?":
        start = _OWN.match(t.text, at + 1).end()
        owner, end = option_text_at(t, start)
        if owner:
            return owner, end, "hard"
    elif t.text[at] in "ВСЕ" and t.texts:  # a Cyrillic label beside another option's text: the text decides
        start = _OWN.match(t.text, at + 1).end()
        owner, end = option_text_at(t, start)
        if owner and start > at + 1:
            return owner, end, "hard"
    stands = how_it_stands(t, at, at + 1, letter)
    return (letter, own_text_end(t, at + 1, letter), stands) if stands else ("", at, "")


def _run(t: FoldedText, at: int) -> tuple[str, int]:
    """Letters run together, as in "ABD": ascending, all of them options, and not part of a word."""
    end = at
    while end - at <= len(t.letters) and letter_at(t, end) and t.text[end].isupper():
        end += 1
    letters = "".join(letter_at(t, i) for i in range(at, end))
    ascending = list(letters) == sorted(set(letters))
    if len(letters) < 2 or letters[0] not in t.letters or not ascending or not _ends_run(t, end):
        return "", at
    return letters, end


def _ends_run(t: FoldedText, end: int) -> bool:
    after = t.text[end:end + 1]
    if after == " ":
        return bool(_goes_on(t, end)) or t.text[end + 1:end + 2] in AFTER_OK | {"", "\n"}
    hyphen = t.w.hyphenated.match(t.text[end:end + 2])
    return after in CJK_AFTER or (after in AFTER_OK | {"", "\n"} and not hyphen)


def letters_at(t: FoldedText, at: int) -> tuple[str, int, str]:
    """A list of letters or option texts: (letters, end, stands). `stands` is "or" if the list leaves it open.
    """
    letters, end = ("", at) if option_text_at(t, at)[0] else _run(t, at)  # "HIV" may be an option
    if letters:
        stands = "hard"
    else:
        letters, end, stands = _item(t, at)
        if not letters:
            return "", at, ""
    for _ in range(26):
        closed = _CLOSERS.match(t.text, end).end()
        joined = t.w.or_.match(t.text, closed)
        if joined:
            after, stop, _how = _item(t, t.w.item_prefix.match(t.text, joined.end()).end())
            if after:
                return letters + after, stop, "or"
        joined = t.w.and_.match(t.text, closed) or (t.w.and_.match(t.text, end) if closed > end else None)
        if not joined or (joined[0] == " " and "." in t.text[end:joined.start()]):
            break
        start = t.w.item_prefix.match(t.text, joined.end()).end()
        letter, stop, how = _item(t, start)
        if not letter or letter in letters or t.w.wrong.match(t.low, stop):
            break
        # after a comma, "C is ..." is the next sentence, unless it says that the whole list is right
        capital = t.w.capital_after.match(t.text[stop:stop + 3])
        right = PUBLISHED.match(t.low, stop) or t.w.is_answer.match(t.low, stop)
        if how == "soft" and not right and ("," in joined[0] or (joined[0] == " " and not capital)):
            break
        if "\n" in joined[0] and t.text[_CLOSERS.match(t.text, stop).end():][:1] not in ("", "\n"):
            break
        if joined[0] == " " and (not is_capital(t, start) or t.text[stop:stop + 1] in (":", ")")):
            break
        letters, end, stands = letters + letter, stop, how
    return letters, end, stands
