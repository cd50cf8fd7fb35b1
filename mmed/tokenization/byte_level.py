"""Byte-level BPE (Llama 3, Qwen, BLOOM, GPT-2) through tiktoken, several times as fast as the reference
library.

In: a parsed `tokenizer.json`, or the lines of tiktoken's own file. Out: a `ByteLevelBackend`, or None for a
file whose ids tiktoken cannot reproduce exactly; mmed/tokenization/hub.py opens such a file.

References: Radford et al. 2019 (byte-level BPE); Sennrich et al. 2016 (BPE).
"""
from __future__ import annotations

import base64
import itertools
import re
import unicodedata

import regex  # a dependency of tiktoken
import tiktoken

from mmed.utils.errors import UserError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# BLOOM's words leave these out; the reference makes words of them, too
_BLOOM_GAPS = r"()|.,!?…。，、।۔،" + _SPACES
# Published pattern -> the pattern that finds the same words in tiktoken. Others go through the reference
# library, because
# two regular-expression libraries need not agree on them.
PATTERNS = {
    GPT2: GPT2, LLAMA3: LLAMA3, QWEN2: QWEN2,
    BLOOM: rf" ?[^{_BLOOM_GAPS}]+|[{_BLOOM_GAPS}]+(?<! "
           rf")(?=[^{_BLOOM_GAPS}])|[{_BLOOM_GAPS}]+(?![^{_BLOOM_GAPS}])",
}
LONG_RUN = 100_000  # tiktoken's regular expressions overflow their stack at about a million spaces in a row
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, as `tokenizer.json` writes them.

    >>> [byte_alphabet()[c] for c in "aĠĊ"]
    [97, 32, 10]
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


ALPHABET = byte_alphabet()


# ------------------------------------------------------------------------------------------------------------
# Merges as ranks
#
# Hugging Face's BPE joins the neighbours (x, y) that come first in a list of merges; tiktoken joins the
# neighbours whose
# concatenation x + y is the best-ranked piece. Both take the best pair of a word, the leftmost if it occurs
# twice. While
# the borders of a stretch of text t stay, only joins inside t change it, in the order in which t alone would
# be joined. So
# if a pair with x + y = t is ever joined, it is the last pair that t alone comes down to. Hence both ways
# agree on every
# text if, for each piece, that last pair is one of the merges, and these merges come in the order of the
# ranks.


def merge_ranks(vocabulary: dict[str, int],
                merges: list[tuple[str, str]],
                whole_words: bool = False) -> dict[str, int] | None:
    """Rank of each piece such that joining by rank equals joining by `merges`; None if there is no such
    ranking.

    Pieces that no merge can produce are left out, unless `whole_words` (Llama 3's `ignore_merges`: a word
    that is a piece is taken as it is); they rank last then.

    >>> merge_ranks({"a": 0, "b": 1, "ab": 2, "aba": 3, "bb": 4}, [("a", "b"), ("ab", "a")])
    {'ab': 0, 'aba': 1}
    """
    order = {pair: index for index, pair in enumerate(merges)}
    if len(order) < len(merges) or not all({left, right, left + right} <= vocabulary.keys()
                                           for left, right in merges):
        return None
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    if whole_words:
        for piece in sorted((piece for piece in vocabulary if len(piece) > 1 and piece not in rank),
                            key=vocabulary.get):
            rank[piece] = len(merges) + len(rank)
    last, unreachable = -1, []
    for piece in sorted(rank, key=rank.get):
        parts = joined_alone(piece, rank)
        if len(parts) > 2:
            unreachable.append(piece)
        elif order.get(parts, -1) <= last:
            return None
        else:
            last = order[parts]
    return rank if whole_words else {
        piece: index
        for piece, index in rank.items() if piece not in set(unreachable)
    }


def joined_alone(piece: str, rank: dict[str, int]) -> tuple[str, ...]:
    """The last two parts of `piece` when its characters are joined by rank; more than two if joining stops
    earlier.
    """
    parts = list(piece)
    while len(parts) > 2:
        pairs = [(rank[left + right], i) for i, (left, right) in enumerate(itertools.pairwise(parts))
                 if left + right in rank]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


# ------------------------------------------------------------------------------------------------------------
# The backend


class ByteLevelBackend:
    """A pattern cuts the text into words, and the bytes of each word are joined by rank."""

    kind = "byte-level BPE"

    def __init__(self, ranks: dict[bytes, int], ids: dict[bytes, int], pattern: str, *,
                 prefix_space: bool = False, unicode_form: str | None = None):
        self.ranks, self.ids, self.pattern = ranks, ids, pattern
        self.prefix_space, self.unicode_form = prefix_space, unicode_form
        self.bytes_of = {index: token for token, index in ids.items()}
        self.size = max(ids.values()) + 1
        self.id_of = {rank: ids[token] for token, rank in ranks.items()}
        self.ranks_are_ids = all(rank == index for rank, index in self.id_of.items())
        # tiktoken needs all 256 bytes. Those without a piece (SmolLM2 lacks eight) come last; as in the
        # reference they
        # are dropped from the text. Bytes that UTF-8 never has do not occur.
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        self.dropped = bytes(byte for byte in missing if byte not in (0xC0, 0xC1) and byte < 0xF5)
        fill = max(ranks.values()) + 1
        table = ranks | {bytes([byte]): fill + place for place, byte in enumerate(missing)}
        self.words = regex.compile(PATTERNS[pattern])
        self.encoding = tiktoken.Encoding("byte level",
                                          pat_str=PATTERNS[pattern],
                                          mergeable_ranks=table,
                                          special_tokens={})
        self.long_run = re.compile(rf"[{_BLOOM_GAPS}]{{{LONG_RUN}}}")

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.unicode_form:
            text = unicodedata.normalize(self.unicode_form, text)
        if self.prefix_space and not continued and text and not text.startswith(" "):
            text = " " + text
        drops = self.dropped and any(byte in self.dropped for byte in text.encode())
        if drops or (len(text) >= LONG_RUN and self.long_run.search(text)):
            ranks = self._encode_by_word(text)
        else:
            ranks = self.encoding.encode_ordinary(text)
        return ranks if self.ranks_are_ids else [self.id_of[rank] for rank in ranks]

    def _encode_by_word(self, text: str) -> list[int]:
        """The slower way: words are found in the whole text, then bytes without a piece are removed from
        each.
        """
        words = (word[0].encode().translate(None, self.dropped) for word in self.words.finditer(text))
        return [rank for word in words if word for rank in self.encoding._encode_single_piece(word)]

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return b"".join(self.bytes_of.get(index, b"") for index in ids).decode("utf-8", "replace")

    def piece(self, index: int) -> str:
        return self.bytes_of.get(index, b"").decode("utf-8", "backslashreplace")

    def facts(self) -> list:
        """What determines the ids, for the fingerprint."""
        ranks = [[token.hex(), self.ids[token]] for token in sorted(self.ranks, key=self.ranks.get)]
        return [self.pattern, self.prefix_space, self.unicode_form, ranks]


# ------------------------------------------------------------------------------------------------------------
# Opening


def steps_of(step: dict | None, key: str) -> list[dict]:
    """The steps of a normaliser, pre-tokeniser or post-processor of tokenizer.json: those of a Sequence, or
    the only one.
    """
    if not isinstance(step, dict):
        return []
    inside = step.get(key)
    if step.get("type") == "Sequence" and isinstance(inside, list):
        return [one for entry in inside for one in steps_of(entry, key)]
    return [step]


def _word_pattern(file: dict) -> tuple[str | None, bool]:
    """(published pattern or None, whether a space goes before the first word) of the file's pre-tokeniser."""
    steps = steps_of(file.get("pre_tokenizer"), "pretokenizers")
    types, last = [step.get("type") for step in steps], steps[-1] if steps else {}
    if types == ["ByteLevel"] and last.get("use_regex", True):
        return GPT2, last.get("add_prefix_space", True)
    if types != ["Split", "ByteLevel"] or last.get("use_regex", True) or last.get("add_prefix_space"):
        return None, False
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    removed = steps[0].get("behavior") == "Removed" and steps[0].get("invert") and pattern != BLOOM
    return (pattern if pattern in PATTERNS and (isolated or removed) else None), False


def open_byte_level(file: dict, added_tokens: dict[str, dict]) -> ByteLevelBackend | None:
    """A backend for a plain byte-level `tokenizer.json`, else None. `added_tokens`: text -> its entry."""
    model = file["model"]
    pattern, prefix_space = _word_pattern(file)
    forms = [step.get("type") for step in steps_of(file.get("normalizer"), "normalizers")]
    odd_model = any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    odd_added = any(entry.get(rule) for entry in added_tokens.values() if not entry.get("special")
                    for rule in ("lstrip", "rstrip", "single_word", *(["normalized"] if forms else [])))
    if model.get("type", "BPE") != "BPE" or pattern is None or odd_model or odd_added \
            or len(forms) > 1 or not set(forms) <= set(UNICODE_FORMS):
        return None
    vocabulary = model["vocab"]
    plain = {
        token: index
        for token, index in vocabulary.items() if token not in added_tokens and ALPHABET.keys() >= set(token)
    }
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    rank = merge_ranks(plain, merges, bool(model.get("ignore_merges")))
    if rank is None:
        return None
    order = [token for token in plain if len(token) == 1] + sorted(rank, key=rank.get)
    spell = {token: bytes(ALPHABET[character] for character in token) for token in order}
    ids = {spell[token]: plain[token] for token in order}
    if [plain[token] for token in rank] == sorted(plain[token] for token in rank):  # ids may serve as ranks
        ranks = ids
    else:
        ranks = {spell[token]: place for place, token in enumerate(order)}
    backend = ByteLevelBackend(ranks,
                               ids,
                               pattern,
                               prefix_space=prefix_space,
                               unicode_form=forms[0] if forms else None)
    for token, index in vocabulary.items():  # never made from text, but a model may still write them
        known = ALPHABET.keys() >= set(token)
        backend.bytes_of.setdefault(index, bytes(ALPHABET[c] for c in token) if known else token.encode())
        backend.size = max(backend.size, index + 1)
    return backend


def open_tiktoken(data: bytes, name: str) -> ByteLevelBackend:
    """Llama 3's own `tokenizer.model`: a line per piece, its bytes in base64 and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True)
            if int(rank) != len(ranks) or token in ranks:
                raise ValueError("ranks must count up without gaps, each piece once")
        except ValueError as error:
            raise UserError(
                f"{name}:{number}: expected a piece in base64 and its rank ({error}); download the file again"
            ) from None
        ranks[token] = len(ranks)
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise UserError(f"{name}: not all 256 bytes have a piece; download the file again")
    return ByteLevelBackend(ranks, ranks, LLAMA3)


def llama3_special_tokens(first: int) -> dict[str, int]:
    """The 256 special tokens of Llama 3's own code, which come after the ordinary pieces."""
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    names = [
        "<|begin_of_text|>", "<|end_of_text|>", *reserved[:4], "<|start_header_id|>", "<|end_header_id|>",
        reserved[4], "<|eot_id|>", *reserved[5:]
    ]
    return {text: first + place for place, text in enumerate(names)}
