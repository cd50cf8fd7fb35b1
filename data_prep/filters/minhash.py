"""MinHash signatures of documents: near duplicates agree in most numbers of their signatures.

In:  texts. Out: for each the PERMUTATIONS minima of its hashed shingles (the share of equal minima estimates
     the Jaccard similarity of two shingle sets, with standard error sqrt(J (1 - J) / PERMUTATIONS)), and a
     hash of its normal form for exact copies.

Normal form: NFKC, case folded, without white space and invisible characters. A token is a run of letters and
digits, or a single character in scripts without spaces (Chinese, kana, Thai, Lao, Khmer, Burmese), whatever
the document's label says. A shingle is SHINGLE_WORDS words in a row, or SHINGLE_CHARACTERS characters if it
begins with one (about the same length of speech); a shorter text is one shingle. `shingles` says this in
plain Python; `shingle_hashes` hashes the same on an array of code points.
"""
from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

VERSION = 4  # raise it when a text's signature or its file changes
PERMUTATIONS = 128
SHINGLE_WORDS, SHINGLE_CHARACTERS = 5, 8
PIECE_CHARACTERS, SPACE_WITHIN = 1 << 14, 1 << 12  # a long text is hashed in pieces, which end at white space
GROWTH = 18  # NFKC writes U+FDFA as 18 characters
CHUNK = 1 << 11  # shingles permuted together: their (128, CHUNK) array stays in the cache
BASE = np.uint64(0x9E3779B97F4A7C15)  # of polynomial hashes modulo 2**64

INVISIBLE, SPACE, PUNCTUATION, LETTER, CHARACTER = range(5)  # kinds of code points
_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
             "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff")
_INVISIBLE = "[\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+"
_PATTERNS = {SPACE: r"\s+", LETTER: r"[^\W_]+", CHARACTER: f"[{_UNSPACED}]+", INVISIBLE: _INVISIBLE}
# x -> a * x modulo 2**32 with odd a permutes 32-bit hashes.
_FACTORS = np.random.default_rng(0).integers(0, 1 << 32, PERMUTATIONS, np.uint32) | np.uint32(1)


class Signatures(NamedTuple):
    minima: np.ndarray  # (texts, PERMUTATIONS) uint16: low bits of each minimum; zeros if no tokens
    exact: np.ndarray  # (texts,) uint64: hash of the normal form; 0 if that is empty


class Tokens(NamedTuple):
    hashes: np.ndarray  # (tokens,) uint64
    unspaced: np.ndarray  # (tokens,) bool: a character of a script without spaces
    exact: int  # hash of the text's normal form; 0 if that is empty


def shingles(text: str) -> set[tuple[str, ...]]:
    """
    >>> sorted(shingles("Ａspirin (100 mg), cafe\\u0301"))
    [('aspirin', '100', 'mg', 'café')]
    """
    normal = unicodedata.normalize("NFKC", re.sub(_INVISIBLE, "", text)).casefold()
    words = re.findall(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+", normal)
    sizes = [SHINGLE_CHARACTERS if re.match(f"[{_UNSPACED}]", word) else SHINGLE_WORDS for word in words]
    found = {tuple(words[i:i + size]) for i, size in enumerate(sizes) if i + size <= len(words)}
    return found or ({tuple(words)} if words else set())


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(kind of each code point, powers of BASE, powers of its inverse)."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.full(len(every), PUNCTUATION, np.uint8)
    for kind, pattern in _PATTERNS.items():
        for run in re.finditer(pattern, every):
            kinds[run.start():run.end()] = kind
    inverse = np.uint64(pow(int(BASE), -1, 1 << 64))
    size = GROWTH * (PIECE_CHARACTERS + SPACE_WITHIN)
    return kinds, np.cumprod(np.full(size, BASE)), np.cumprod(np.full(size, inverse))


def _code_points(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The code points of a text's normal form, and the kind of each."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    codes = np.frombuffer(normal.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _tables()[0].take(codes)
    return (codes, kinds) if kinds.all() else _code_points(re.sub(_INVISIBLE, "", text))


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = begin + PIECE_CHARACTERS
        space = re.compile(r"\s").search(text, end, end + SPACE_WITHIN)
        end = space.start() if space else end
        yield text[begin:end]
        begin = end


def token_hashes(text: str) -> Tokens:
    """The hash of each token, and of the text's normal form: polynomials of the code points."""
    _, powers, inverses = _tables()
    hashes, unspaced = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
    exact, length = 0, 0
    for codes, kinds in map(_code_points, _pieces(text)):
        inside = kinds >= LETTER
        begins = inside.copy()
        begins[1:] &= (kinds[1:] == CHARACTER) | (kinds[:-1] != LETTER)
        starts = np.flatnonzero(begins)
        terms = codes * powers[:len(codes)] * inside
        hashes.append(_mixed(np.add.reduceat(terms, starts) * inverses[starts]))
        unspaced.append(kinds[starts] == CHARACTER)
        visible = codes[kinds != SPACE]
        exact += int((visible * powers[:len(visible)]).sum()) * pow(int(BASE), length, 1 << 64)
        length += len(visible)
    exact = int(_mixed(np.array([exact % (1 << 64)], np.uint64))[0]) | 1 if length else 0
    return Tokens(np.concatenate(hashes), np.concatenate(unspaced), exact)


def window_hashes(hashes: np.ndarray, size: int) -> np.ndarray:
    """The hash of each window of `size` tokens, (tokens - size + 1,) uint64."""
    count = max(0, len(hashes) - size + 1)
    found = hashes[:count].copy()
    for offset in range(1, size):
        found *= BASE
        found += hashes[offset:offset + count]
    return _mixed(found)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit hashes: the finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_shingles(words: Tokens) -> np.ndarray:
    """The 32-bit hash of each shingle, in no order, with repeats."""
    found = np.zeros(0, np.uint64)
    for size, unspaced in ((SHINGLE_WORDS, False), (SHINGLE_CHARACTERS, True)):
        begins = words.unspaced == unspaced
        if begins.any():
            windows = window_hashes(words.hashes, size)
            found = np.concatenate([found, windows[begins[:len(windows)]]])
    if not len(found) and len(words.hashes):
        found = window_hashes(words.hashes, len(words.hashes))
    return (found >> np.uint64(32)).astype(np.uint32)


def shingle_hashes(text: str) -> np.ndarray:
    """The distinct shingles of a text as sorted 32-bit hashes."""
    return np.unique(_hash_shingles(token_hashes(text)))


def signatures(texts: Sequence[str]) -> Signatures:
    """Sign texts; each row depends on its text only."""
    signed = Signatures(np.zeros((len(texts), PERMUTATIONS), np.uint16), np.zeros(len(texts), np.uint64))
    for row, words in enumerate(map(token_hashes, texts)):
        signed.exact[row] = words.exact
        hashes = _hash_shingles(words)
        least = np.full(PERMUTATIONS, 0xFFFFFFFF if len(hashes) else 0, np.uint32)
        for begin in range(0, len(hashes), CHUNK):
            permuted = _FACTORS[:, None] * hashes[None, begin:begin + CHUNK]
            np.minimum(least, permuted.min(axis=1), out=least)
        signed.minima[row] = least.astype(np.uint16)
    return signed


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared over all elements of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)
