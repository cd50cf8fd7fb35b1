"""MinHash signatures of documents: near duplicates agree in most of theirs.

In:  texts. Out: for each the PERMUTATIONS minima of its hashed shingles (the share of equal minima estimates
     the Jaccard similarity of two shingle sets, with standard error sqrt(J (1 - J) / PERMUTATIONS)), a hash
     of its normal form for exact copies, and its number of tokens.

Normal form: NFKC, case folded, without white space and invisible characters. A token is a run of letters and
digits, or a single character in scripts without spaces (Chinese, kana, Thai, Lao, Khmer, Burmese): the script
decides, not the document's label, which is often wrong. A shingle is SHINGLE_WORDS words in a row, or
SHINGLE_CHARACTERS characters if it begins with one (about the same length of speech); a shorter text is one
shingle.
"""
from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

VERSION = 2  # raise it when a text's signature changes
PERMUTATIONS = 128
SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 8
PIECE_CHARACTERS = 1 << 20  # a longer text is tokenized in pieces, which bounds memory
CHUNK = 1 << 11  # shingles permuted together: their (128, CHUNK) array stays in the cache
MAX_CACHE = 1 << 20  # token hashes remembered
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash of a window of tokens

_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
             "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_INVISIBLE = re.compile("[\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")
# x -> a * x modulo 2**32 with odd a permutes 32-bit hashes.
_FACTORS = np.random.default_rng(0).integers(0, 1 << 31, PERMUTATIONS,
                                             np.uint32) * np.uint32(2) + np.uint32(1)


class Signatures(NamedTuple):
    minima: np.ndarray  # (texts, PERMUTATIONS) uint16: low bits of each minimum; zeros if no tokens
    exact: np.ndarray  # (texts,) uint64: hash of the normal form; 0 if that is empty
    tokens: np.ndarray  # (texts,) int64


class Tokens(NamedTuple):
    """The tokens of one text."""

    hashes: np.ndarray  # (tokens,) uint64
    unspaced: np.ndarray  # (tokens,) bool: a character of a script without spaces


def normalise(text: str) -> str:
    """NFKC, case folded, without invisible characters; white space stays, as it separates tokens.

    >>> normalise("Ｔhe Cafe\\u0301 \\xad")
    'the café '
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)))
    return text.casefold()


def tokens(text: str) -> list[str]:
    """
    >>> tokens("Aspirin (100 mg) 治療")
    ['aspirin', '100', 'mg', '治', '療']
    """
    return _TOKEN.findall(normalise(text))


def shingles(text: str) -> set[tuple[str, ...]]:
    """The shingles of a text: what `shingle_hashes` hashes.

    >>> sorted(shingles("a b c d e f")), shingles("a b")
    ([('a', 'b', 'c', 'd', 'e'), ('b', 'c', 'd', 'e', 'f')], {('a', 'b')})
    """
    words = tokens(text)
    sizes = [SHINGLE_CHARACTERS if _IS_UNSPACED.match(word) else SHINGLE_WORDS for word in words]
    found = {tuple(words[i:i + size]) for i, size in enumerate(sizes) if i + size <= len(words)}
    return found or ({tuple(words)} if words else set())


class _TokenHashes(dict):
    """token -> 64-bit hash, remembered. The lowest bit says whether the token is of a script without
    spaces."""

    def __missing__(self, token: str) -> int:
        if len(self) > MAX_CACHE:
            self.clear()
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "little") & ~1 | bool(_IS_UNSPACED.match(token))
        self[token] = value
        return value


_hash_of = _TokenHashes()


def pieces(text: str) -> Iterator[str]:
    """A long text in pieces that end at white space where there is some."""
    begin = 0
    while len(text) - begin > PIECE_CHARACTERS:
        space = re.compile(r"\s").search(text, begin + PIECE_CHARACTERS, begin + PIECE_CHARACTERS + 10_000)
        end = space.start() if space else begin + PIECE_CHARACTERS
        yield text[begin:end]
        begin = end
    yield text[begin:]


def token_hashes(text: str) -> Tokens:
    return _hash_text(text)[0]


def _hash_text(text: str) -> tuple[Tokens, int]:
    """Its tokens, and the hash of its normal form."""
    parts = []
    normal_form = hashlib.blake2b(digest_size=8)
    for piece in pieces(text):
        normal = normalise(piece)
        normal_form.update("".join(normal.split()).encode("utf-8", "surrogatepass"))
        words = _TOKEN.findall(normal)
        parts.append(np.fromiter(map(_hash_of.__getitem__, words), np.uint64, len(words)))
    hashes = np.concatenate(parts)
    empty = not len(hashes) and not normalise(text).strip()
    exact = 0 if empty else int.from_bytes(normal_form.digest(), "little") | 1
    return Tokens(hashes, (hashes & np.uint64(1)).astype(bool)), exact


def window_hashes(hashes: np.ndarray, size: int) -> np.ndarray:
    """The hash of each window of `size` tokens, (tokens - size + 1,) uint64."""
    count = max(0, len(hashes) - size + 1)
    found = np.zeros(count, np.uint64)
    for offset in range(size):
        found = found * BASE + hashes[offset:offset + count]
    return _mixed(found)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit hashes (the finaliser of splitmix64), so that each input bit changes half of the output
    bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingle_hashes(text: str) -> np.ndarray:
    """The distinct shingles of a text as sorted 32-bit hashes."""
    return _shingle_hashes(token_hashes(text))


def _shingle_hashes(words: Tokens) -> np.ndarray:
    parts = []
    for size, unspaced in ((SHINGLE_WORDS, False), (SHINGLE_CHARACTERS, True)):
        windows = window_hashes(words.hashes, size)
        parts.append(windows[words.unspaced[:len(windows)] == unspaced])
    found = np.concatenate(parts)
    if not len(found) and len(words.hashes):
        found = window_hashes(words.hashes, len(words.hashes))
    return np.unique((found >> np.uint64(32)).astype(np.uint32))


def signature(hashes: np.ndarray) -> np.ndarray:
    """The minimum of each permutation over the shingle hashes, (PERMUTATIONS,) uint16."""
    least = np.full(PERMUTATIONS, 0xFFFFFFFF, np.uint32)
    for begin in range(0, len(hashes), CHUNK):
        permuted = _FACTORS[:, None] * hashes[None, begin:begin + CHUNK]
        np.minimum(least, permuted.min(axis=1), out=least)
    return least.astype(np.uint16)


def signatures(texts: Sequence[str]) -> Signatures:
    """Sign texts; each row depends on its text only."""
    minima = np.zeros((len(texts), PERMUTATIONS), np.uint16)
    exact = np.zeros(len(texts), np.uint64)
    counts = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        words, exact[row] = _hash_text(text)
        counts[row] = len(words.hashes)
        if counts[row]:
            minima[row] = signature(_shingle_hashes(words))
    return Signatures(minima, exact, counts)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared over all elements of two sorted sets.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def estimated_jaccard(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of equal minima, row by row of two arrays of signatures."""
    return (one == other).mean(axis=-1)
