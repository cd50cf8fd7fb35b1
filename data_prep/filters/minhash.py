"""MinHash signatures of documents in numpy: near-duplicates share most of theirs.

In: a list of texts. Out: a `Signatures` of three arrays, a row a document: 16 bits for each of BINS minima (the share of
equal ones estimates the Jaccard similarity of two documents' shingle sets, standard error sqrt(J(1-J)/BINS)), a 64-bit hash
of the normalised text, the number of tokens. In order:

    text -> UTF-16 units of the block -> (class, random value) of each unit, by table -> hash of each token
         -> hash of each shingle -> bin (top bits) and value (low bits) -> the least value of each bin

* Normal form: NFKC (but "…" stays itself: it is so common that writing three stops would cost), lower-case, runs of
  whitespace as one space, format characters (zero-width, soft hyphen, direction marks) left out. It is never built as text:
  the tables hold it for each UTF-16 unit, and only the few characters whose NFKC depends on a neighbour, or is several
  characters long, are rewritten before. So folding costs one table look-up a unit.
* A token is a run of letters, marks and digits, or, in scripts that write no spaces between words (Chinese characters,
  kana, Thai, Lao, Khmer, Burmese), a single character. Punctuation separates tokens and is not one. The script decides,
  not the document's `language`: the label of a crawled page is often wrong, and copies under two labels must still meet.
* A shingle is SHINGLE_WORDS words, or SHINGLE_CHARACTERS characters if it begins with a character token: a Chinese word has
  about 1.6 characters, so this is the same length of speech, and one edited word costs the same share of the shingles in
  each script. A text shorter than its first shingle is one shingle.
* One-permutation hashing (Li, Owen, Zhang 2012): one hash a shingle, its top bits choose the bin. A bin that no shingle
  chose is filled by hashing all of them again, and again, until each bin has one; the round stands above the value, so a
  bin's content is the first round's and does not depend on how many rounds a longer document needed. Unlike densification by
  copying a neighbour (Shrivastava 2017) this leaves each bin an unbiased and independent MinHash, however short the text;
  a document costs max(shingles, about BINS * ln BINS) hashes.

Memory: the units of one block (BLOCK_UNITS), whatever the corpus; a longer text is hashed in pieces of PIECE_CHARACTERS cut
at a space, leaving out the few shingles that would cross a cut.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

VERSION = 1  # raise it when a text's signature changes
BINS = 128
SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 8
BLOCK_UNITS = 1 << 17  # the tables and arrays of a block stay in a core's cache
PIECE_CHARACTERS = 1 << 20

_BIN_SHIFT = np.uint64(64 - (BINS - 1).bit_length())
_ROUND_SHIFT = np.uint64(48)  # value: 48 bits of hash below 16 bits of round
_EMPTY = np.uint64((1 << 64) - 1)
_R = 0x9E3779B97F4A7C15 | 5  # base of the polynomial hashes: odd, so that it has an inverse modulo 2**64

# Classes of UTF-16 units; REWRITE is added where NFKC has to be worked out before the tables can be used.
# A character beyond the first 65,536 is two units, CHARACTER and SECOND, and counts as a script without spaces.
PUNCTUATION, SPACE, WORD, CHARACTER, SECOND, DROPPED, REWRITE = 0, 1, 2, 3, 4, 5, 8
_PAD = "\uffff"  # between documents; its value is 0, so a window that runs into it is as if it ended there
_BETWEEN = _PAD * (SHINGLE_CHARACTERS - 1) + " "  # the space: every text begins with exactly one, whatever it began with
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
                       "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00010000-\U0010ffff]")


class Signatures(NamedTuple):
    bins: np.ndarray  # (documents, BINS) uint16; a row of zeros where there are no tokens
    exact: np.ndarray  # (documents,) uint64, hash of the normalised text
    tokens: np.ndarray  # (documents,) int64


def _mix(h: np.ndarray) -> np.ndarray:
    """Scramble 64-bit hashes in place (the finaliser of splitmix64): each input bit flips half of the output bits."""
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


def _fold(char: str) -> str:
    """Lower case of one character as one character ("ς" as "σ", "İ" as "i")."""
    folded = char.casefold()
    return folded if len(folded) == 1 else char.lower()[0]


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, re.Pattern[str]]:
    """(class of each UTF-16 unit, random value of its normal form, pattern of what must be rewritten first)."""
    # Characters that can join the one before (é from e and a mark): the second ones of all canonical pairs, Hangul jamo, marks.
    joining = {chr(c) for c in range(0x1161, 0x1176)} | {chr(c) for c in range(0x11A8, 0x11C3)}
    for code in range(0x110000):
        pair = unicodedata.decomposition(chr(code)).split()
        if len(pair) == 2 and not pair[0].startswith("<"):
            joining.add(chr(int(pair[1], 16)))
    classes = np.zeros(1 << 16, np.uint8)
    form = np.arange(1 << 16)
    for code in range(1 << 16):
        char = chr(code)
        if 0xD800 <= code < 0xE000:
            classes[code] = (CHARACTER if code < 0xDC00 else SECOND) | REWRITE
            continue
        normal = unicodedata.normalize("NFKC", char)
        rewrite = (char != "…" and len(normal) != 1) or any(c in joining or unicodedata.combining(c) or ord(c) > 0xFFFF for c in normal)
        folded = _fold(normal if len(normal) == 1 and not rewrite else char)
        form[code] = ord(folded)
        category = unicodedata.category(folded)
        if folded.isspace():
            classes[code], form[code] = SPACE, ord(" ")
        elif category == "Cf" or 0xFE00 <= code <= 0xFE0F:
            classes[code] = DROPPED
        elif _UNSPACED.match(folded):
            classes[code] = CHARACTER
        elif category[0] in "LMN":
            classes[code] = WORD
        classes[code] |= REWRITE * rewrite
    values = _mix(np.arange(1, (1 << 16) + 1, dtype=np.uint64) * np.uint64(_R))[form]
    classes[0xFFFF], values[0xFFFF] = CHARACTER, 0
    rewritten = "".join(f"\\u{code:04x}" for code in np.flatnonzero(classes & REWRITE) if not 0xD800 <= code < 0xE000)
    # One plain character before them as well: it is what they join.
    return classes, values, re.compile(f"[^…]?[{rewritten}\U00010000-\U0010ffff]+")


def normalise(text: str) -> str:
    """The normal form as text, slow and plain: what the tables stand for (and what tests compare them with).

    >>> normalise("  Ｔhe\\u00a0 \\u200bCafe\\u0301\\n")
    'the café'
    """
    text = "…".join(unicodedata.normalize("NFKC", part) for part in text.split("…"))
    text = "".join(map(_fold, text))
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f").split())


def tokens(text: str) -> list[str]:
    """The tokens of a text, slow and plain.

    >>> tokens("Aspirin (100 mg) 治療")
    ['aspirin', '100', 'mg', '治', '療']
    """
    found: list[str] = []
    open_word = False
    for char in normalise(text):
        unspaced = _UNSPACED.match(char)
        word = unicodedata.category(char)[0] in "LMN"
        if word and open_word and not unspaced:
            found[-1] += char
        elif word or unspaced:
            found.append(char)
        open_word = word and not unspaced
    return found


def shingles(text: str) -> set[tuple[str, ...]]:
    """The shingles of a text, slow and plain.

    >>> sorted(shingles("a b c d e f"))
    [('a', 'b', 'c', 'd', 'e'), ('b', 'c', 'd', 'e', 'f')]
    >>> shingles("a b")
    {('a', 'b')}
    """
    words = tokens(text)
    sizes = [SHINGLE_CHARACTERS if _UNSPACED.match(word) else SHINGLE_WORDS for word in words]
    found = {tuple(words[i:i + size]) for i, size in enumerate(sizes) if i + size <= len(words)}
    return found or ({tuple(words)} if words else set())


@cache
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """R**i and R**-i modulo 2**64 for i < length, a power of 2 (so that few are ever made)."""
    inverse = pow(_R, -1, 1 << 64)
    return tuple(np.cumprod(np.concatenate([[np.uint64(1)], np.full(length - 1, base, np.uint64)]), dtype=np.uint64)
                 for base in (_R, inverse))


class Tokens(NamedTuple):
    """The tokens of some texts, one text after the other, with SHINGLE_CHARACTERS - 1 pads around each."""

    hashes: np.ndarray  # (tokens,) uint64; 0 for a pad
    unspaced: np.ndarray  # (tokens,) bool: a character of a script without spaces (and the pads)
    first: np.ndarray  # (texts,) place of each text's first token
    last: np.ndarray  # (texts,) one past its last
    exact: np.ndarray  # (texts,) uint64, hash of the normalised text; 0 if that is empty


def token_hashes(texts: Sequence[str]) -> Tokens:
    """Hash the tokens of some texts at once."""
    classes, values, rewritten = _tables()
    texts = [text.replace(_PAD, "\ufffe") for text in texts]
    unit, kind = _units(texts, classes)
    if kind.max() >= REWRITE:
        borders = np.flatnonzero(unit == ord(_PAD))[::SHINGLE_CHARACTERS - 1]
        for row in np.unique(np.searchsorted(borders, np.flatnonzero(kind >= REWRITE)) - 1):  # few texts hold such characters
            texts[row] = rewritten.sub(lambda match: unicodedata.normalize("NFKC", match[0]), texts[row])
        unit, kind = _units(texts, classes)
        kind &= REWRITE - 1
    kind, unit = _drop_spaces(kind, unit)
    pads = np.flatnonzero(unit == ord(_PAD)).reshape(-1, SHINGLE_CHARACTERS - 1)

    # A polynomial hash of any run of units is a difference of one running sum, shifted back to power 0.
    power, inverse = _powers(1 << len(unit).bit_length())
    sums = np.zeros(len(unit) + 1, np.uint64)
    value = values.take(unit)
    value *= power[:len(unit)]
    np.cumsum(value, out=sums[1:])
    first, last = pads[:-1, -1] + 1, pads[1:, 0]
    exact = _mix((sums[last] - sums[first]) * inverse[first])
    exact[exact == 0] = 1
    exact[last - first <= 1] = 0  # the one space that every text begins with

    word, single, second = kind == WORD, kind == CHARACTER, kind == SECOND
    begins, ends = word.copy(), word | single
    begins[1:] &= ~word[:-1]
    begins |= single
    ends[:-1] &= ~(word[:-1] & word[1:] | second[1:])
    ends |= second
    start, end = np.flatnonzero(begins), np.flatnonzero(ends)
    token = _mix((sums[end + 1] - sums[start]) * inverse[start])
    is_pad = unit[start] == ord(_PAD)
    token[is_pad] = 0
    pads = np.flatnonzero(is_pad).reshape(-1, SHINGLE_CHARACTERS - 1)
    return Tokens(token, single[start], pads[:-1, -1] + 1, pads[1:, 0], exact)


def window_hashes(token: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Hash of the window of each size from each token on; those that reach over the end are as if pads followed.

    A window of 5 is one of 4 and one of 1 behind it, a window of 4 is two of 2: so many tokens cost few products.
    """
    power = {1: token}  # windows of 1, 2, 4, ... tokens
    while 2 * max(power) <= max(sizes):
        size = max(power)
        power[2 * size] = _joined(power[size], size, power[size])
    found = []
    for size in sizes:
        length, window = 0, None
        for part in sorted(power, reverse=True):
            if size & part:
                window = power[part] if window is None else _joined(window, length, power[part])
                length += part
        found.append(_mix(window.copy()))
    return found


def _joined(left: np.ndarray, length: int, right: np.ndarray) -> np.ndarray:
    """Polynomial hash of a window of `length` tokens followed by another window."""
    whole = left.copy()
    whole[:max(0, len(left) - length)] += right[length:] * np.uint64(pow(_R, length, 1 << 64))
    return whole


def _block_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hash the shingles of some texts at once.

    (hash of each shingle, row of its text, or len(texts) where a window is no shingle; then for each text: its exact hash,
    0 if its normal form is empty, and its number of tokens)
    """
    token, unspaced, first, last, exact = token_hashes(texts)
    count = last - first
    if unspaced.sum() > (SHINGLE_CHARACTERS - 1) * (len(texts) + 1):
        hashes, longer = window_hashes(token, (SHINGLE_WORDS, SHINGLE_CHARACTERS))
        np.copyto(hashes, longer, where=unspaced)
    else:
        hashes, = window_hashes(token, (SHINGLE_WORDS,))
    row = np.full(len(token), len(texts))
    places = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    row[places] = np.repeat(np.arange(len(texts)), count)
    shingle_count = count.copy()
    for distance in range(1, SHINGLE_CHARACTERS):  # windows beginning so near the end that they do not fit
        begin = (last - distance)[count >= distance]
        begin = begin[(np.where(unspaced[begin], SHINGLE_CHARACTERS, SHINGLE_WORDS) > distance)]
        shingle_count -= np.bincount(row[begin], minlength=len(texts))
        row[begin] = len(texts)
    short = np.flatnonzero((shingle_count == 0) & (count > 0))
    row[first[short]] = short  # the window from the first token holds the whole text
    return hashes, row, exact, count


def _units(texts: Sequence[str], classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-16 units of some texts with _BETWEEN around each, and their classes."""
    joined = _BETWEEN + _BETWEEN.join(texts) + _BETWEEN
    unit = np.frombuffer(joined.encode("utf-16-le", "replace"), "<u2").astype(np.intp)
    return unit, classes.take(unit)


def _drop_spaces(kind: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out format characters, then all of a run of whitespace but its last, and all at the end of a text."""
    if kind.max() == DROPPED:
        kept = kind != DROPPED
        kind, unit = kind[kept], unit[kept]
    space = kind == SPACE
    extra = space[:-1] & (space[1:] | (unit[1:] == ord(_PAD)))
    if extra.any():
        kept = np.append(~extra, True)
        kind, unit = kind[kept], unit[kept]
    return kind, unit


def _least(hashes: np.ndarray, row: np.ndarray, texts: int, tokens: np.ndarray) -> np.ndarray:
    """The least value of each bin of each text, (texts, BINS) uint64, by one permutation and as many more as empty bins ask."""
    least = np.full((texts + 1) * BINS, _EMPTY)  # the last row takes what is no shingle
    _put(least, hashes.copy(), row, np.zeros(1, np.uint64))
    opened, done, step = tokens > 0, 1, 1  # opened: texts that have empty bins
    while True:
        at = np.flatnonzero(opened)
        opened[at] = (least.reshape(-1, BINS)[at] == _EMPTY).any(axis=1)
        chosen = np.append(opened, False)[row]
        hashes, row = hashes[chosen], row[chosen]
        if not len(hashes):
            return least.reshape(-1, BINS)[:texts]
        hashes, row = _without_repeats(hashes, row, texts, done)
        rounds = np.arange(done, done + step, dtype=np.uint64)
        # The hashes are well mixed already, so a product with another odd number mixes them anew in its upper bits.
        _put(least, hashes[:, None] * (_mix(rounds * np.uint64(_R)) | np.uint64(1)), row[:, None], rounds)
        done += step
        step = max(1, done // 2)  # a text of one word needs hundreds of rounds: in few steps


def _without_repeats(hashes: np.ndarray, row: np.ndarray, texts: int, done: int) -> tuple[np.ndarray, np.ndarray]:
    """Each shingle once in the texts that repeat themselves: hashing a million copies again fills no bin.

    That many distinct shingles would have filled all bins by now (but once in 10**4 texts), so nearly no other text is sorted.
    """
    repeating = (np.bincount(row, minlength=texts) * done >= 3 * BINS * np.log(BINS))[row]
    if not repeating.any():
        return hashes, row
    again, its_row = hashes[repeating], row[repeating]
    order = np.lexsort((again, its_row))
    again, its_row = again[order], its_row[order]
    new = np.append(True, (again[1:] != again[:-1]) | (its_row[1:] != its_row[:-1]))
    return np.concatenate([hashes[~repeating], again[new]]), np.concatenate([row[~repeating], its_row[new]])


def _put(least: np.ndarray, hashes: np.ndarray, row: np.ndarray, rounds: np.ndarray) -> None:
    """Lower the bins of each row by its hashes (shingles,) or (shingles, rounds): the upper bits are the bin, the next the value."""
    bins = (hashes >> _BIN_SHIFT).astype(np.intp)
    bins += row * BINS
    hashes <<= np.uint64(64) - _BIN_SHIFT
    hashes >>= np.uint64(64) - _ROUND_SHIFT
    hashes |= rounds << _ROUND_SHIFT
    np.minimum.at(least, bins.ravel(), hashes.ravel())


def signatures(texts: Sequence[str]) -> Signatures:
    """Sign texts; the row of a text depends on nothing but the text."""
    parts: list[Signatures] = []
    for block in blocks(texts):
        if len(block) == 1 and len(block[0]) > PIECE_CHARACTERS:
            parts.append(_long_signature(block[0]))
        else:
            hashes, row, exact, tokens = _block_hashes(block)
            parts.append(Signatures(_least(hashes, row, len(block), tokens), exact, tokens))
    if not parts:
        return Signatures(np.zeros((0, BINS), np.uint16), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    least, exact, tokens = (np.concatenate(column) for column in zip(*parts))
    bins = least.astype(np.uint16)  # the low bits: the high ones of a minimum are mostly zeros
    bins[tokens == 0] = 0
    return Signatures(bins, exact, tokens)


def blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in order, about BLOCK_UNITS characters at a time; a longer one comes alone."""
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > BLOCK_UNITS:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def _long_signature(text: str) -> Signatures:
    """A text of any length: the least of its pieces' least."""
    least, exact, tokens = np.full((1, BINS), _EMPTY), 0, 0
    for piece in pieces(text):
        hashes, row, piece_exact, count = _block_hashes([piece])
        hashes, row = hashes[row == 0], row[row == 0]
        exact = (exact * _R + int(piece_exact[0])) % (1 << 64)
        tokens += int(count[0])
        if count[0]:
            np.minimum(least, _least(hashes, row, 1, count), out=least)
    return Signatures(least, np.array([exact], np.uint64), np.array([tokens]))


def pieces(text: str) -> Iterator[str]:
    """Cut a long text at spaces of its normal form, so that copies in another case or spacing are cut alike."""
    rest = ""  # normalised and not yet given out, at most two pieces long
    for begin in range(0, len(text), PIECE_CHARACTERS):
        part = unicodedata.normalize("NFKC", text[begin:begin + PIECE_CHARACTERS])
        words = " ".join(part.split())
        part = " " * part[0].isspace() + words + " " * (part[-1].isspace() and bool(words))
        rest += part.removeprefix(" ") if not rest or rest.endswith(" ") else part
        while len(rest) > PIECE_CHARACTERS:
            space = rest.rfind(" ", PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
            end = space + 1 if space > 0 else PIECE_CHARACTERS
            yield rest[:end]
            rest = rest[end:]
    if rest.strip():
        yield rest


def shingle_hashes(text: str) -> np.ndarray:
    """The distinct shingles of a text as sorted 32-bit hashes, for an exact Jaccard similarity."""
    found = []
    for piece in [text] if len(text) <= PIECE_CHARACTERS else pieces(text):
        hashes, row, _, _ = _block_hashes([piece])
        found.append(np.unique((hashes[row == 0] >> np.uint64(32)).astype(np.uint32)))
    return found[0] if len(found) == 1 else np.unique(np.concatenate(found))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared over all elements of two sorted sets.

    >>> jaccard(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def estimated_jaccard(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of equal bins, row by row of two arrays of signatures."""
    return (one == other).mean(axis=-1)
