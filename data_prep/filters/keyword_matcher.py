"""Many words looked for in one pass: characters folded to letter classes, and a table of the words' first bytes.

In:  characters (`fold_character`, `unfold_rare`), and words as bytes, one or two a letter. Out: where each word stands (`Table.find`).

How one pass can do for any number of words. A block of documents becomes an array of letter classes (0 between words), one
table look-up a character. Where a match can begin (word starts; every position in Chinese and Japanese; for the official
rule's "anywhere" words every few positions, since a long word cannot avoid them all) the next 4 bytes are hashed into a
table of 65,536 flags; the few that pass are compared with the whole word, all at once in numpy.
"""
from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmed.languages import SAME_LETTER

HASH_BITS = 16

# ---- folding ----------------------------------------------------------------------------------------------------------

# What is rare and needs more than a look at one character: combining marks, Hangul parts, half-width kana that may take a
# sound mark, f-ligatures of PDFs; and what is invisible or a vowel sign and falls out.
_INVISIBLE = ("\xad\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0600-\u0605\u0610-\u061a\u061c\u0640\u064b-\u065f\u0670"
              "\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff")
RARE = re.compile(f"[{_INVISIBLE}\u1100-\u11ff\u3099\u309a\uff9e\uff9f\ufb00-\ufb06]")
_DELETED = re.compile(f"[{_INVISIBLE}]+")
_COMPATIBLE = re.compile("[\ufb00-\ufb06]|[\uff66-\uff9f]+")


def unfold_rare(text: str) -> str:
    """Put a text with rare characters into the form in which every character can be folded by itself.

    >>> unfold_rare("\ufb01brosis, can\xadcer, e\u0301, \uff76\uff9e\uff9d")
    'fibrosis, cancer, é, ガン'
    """
    text = _COMPATIBLE.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    return _DELETED.sub("", unicodedata.normalize("NFC", text))


def fold_character(character: str) -> str:
    """Case, width and accents folded, for one character; in the Arabic script, spellings of one letter.

    >>> "".join(map(fold_character, "ÉＨＩＶｱёЙßİأة"))
    'ehivアейßiاه'
    """
    single = unicodedata.normalize("NFKC", character)
    if len(single) != 1:
        single = character
    if single in "ёЁ" or (single > "\x7f" and unicodedata.name(single, "").startswith(("LATIN", "GREEK"))):
        single = unicodedata.normalize("NFD", single)[0]
    lower = single.lower().translate(SAME_LETTER)
    return lower if len(lower) == 1 else single


def is_word_character(folded: str) -> bool:
    """Letters, digits and the marks that some scripts write vowels with."""
    return folded.isalnum() or unicodedata.category(folded)[0] == "M"


@functools.cache
def folded_plane() -> tuple[list[str], list[bool]]:
    """For each of the 65,536 UTF-16 units: its folded form, and whether that belongs to a word. Surrogates do not."""
    folded = [fold_character(chr(unit)) for unit in range(0x10000)]
    return folded, [is_word_character(character) for character in folded]


# ---- finding ----------------------------------------------------------------------------------------------------------


class Table:
    """Patterns by their first 4 bytes: at which of many places does one of them stand?"""

    def __init__(self, entries: list[tuple[bytes, bytes, int, tuple[int, int, int]]], size: int):
        """entries: (4 key bytes, all bytes, letters before the key, FACTS); size: bytes a letter."""
        entries = sorted(entries, key=lambda entry: entry[0])
        keys = np.array([int.from_bytes(entry[0], "little") for entry in entries], np.uint32)
        order = np.argsort(keys, kind="stable")
        self.keys, self.first, self.count = np.unique(keys[order], return_index=True, return_counts=True)
        entries = [entries[place] for place in order]
        width = max(-(-len(entry[1]) // 8) for entry in entries)
        body = b"".join(entry[1].ljust(8 * width, b"\0") for entry in entries)
        mask = b"".join((b"\xff" * len(entry[1])).ljust(8 * width, b"\0") for entry in entries)
        self.body = np.frombuffer(body, "<u8").reshape(-1, width).T.copy()  # (width, entries)
        self.mask = np.frombuffer(mask, "<u8").reshape(-1, width).T.copy()
        self.shift, self.facts = (np.array(column, np.int32) for column in list(zip(*entries))[2:])
        self.step = 8 // size  # step: letters in 8 bytes
        # What must be true of the bytes around a place before words are compared: its 4 bytes are a key, and either the key
        # belongs to a word too short for more, or the 8 bytes from here, or from 4 bytes before, are a word's too.
        self.flags, self.short, self.ahead, self.behind = (np.zeros(1 << HASH_BITS, bool) for _ in range(4))
        for key, body, shift, _ in entries:
            here = shift * size
            hashed = self._hash(np.frombuffer(key, "<u4"))
            self.flags[hashed] = True
            if here + 8 <= len(body):
                self.ahead[self._hash(np.frombuffer(body[here:here + 8], "<u8"))] = True
            elif here >= 4:
                self.behind[self._hash(np.frombuffer(body[here - 4:here + 4], "<u8"))] = True
            else:
                self.short[hashed] = True
        self.looks_back = bool(self.behind.any())

    @staticmethod
    def _hash(keys: Any) -> Any:
        factor, bits = (2654435761, 32) if keys.dtype.itemsize == 4 else (0x9E3779B97F4A7C15, 64)
        return (keys * keys.dtype.type(factor)) >> keys.dtype.type(bits - HASH_BITS)

    def near(self, keys: Any) -> Any:
        """Which of the keys may be ours: all that are, and a few others."""
        return np.flatnonzero(self.flags.take(self._hash(keys)))

    def find(self, keys: Any, places: Any, eights: Any) -> Iterator[tuple[Any, Any]]:
        """keys: the 4 bytes at each place that is `near`; eights[p]: the 8 bytes from p on. Yields (beginnings, entries)."""
        likely = self.short.take(self._hash(keys)) | self.ahead.take(self._hash(eights[places]))
        if self.looks_back:
            likely |= self.behind.take(self._hash(eights[places - self.step // 2]))
        keys, places = keys[likely], places[likely]
        slots = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        exact = np.flatnonzero(self.keys[slots] == keys)
        places, slots = places[exact], slots[exact]
        entries, left = self.first[slots], self.count[slots]
        while len(places):  # the words that share these 4 bytes, one after the other
            starts = places - self.shift[entries]
            good = (eights[starts] & self.mask[0][entries]) == self.body[0][entries]
            for row in range(1, len(self.body)):
                live = np.flatnonzero(good)
                tail, which = eights[starts[live] + row * self.step], entries[live]
                good[live] = (tail & self.mask[row][which]) == self.body[row][which]
            yield starts[good], entries[good]
            more = np.flatnonzero(left > 1)
            places, entries, left = places[more], entries[more] + 1, left[more] - 1
