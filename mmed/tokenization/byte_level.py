"""Byte-level BPE (Llama 3, Qwen, GPT-2) through tiktoken, several times as fast as the reference.

In: a parsed `tokenizer.json`, or the lines of tiktoken's own file. Out: a `ByteLevelBackend`, or None for a
file whose ids tiktoken cannot reproduce exactly; mmed/tokenization/hub.py opens such a file.
References: Radford et al. 2019 (byte-level BPE); Sennrich et al. 2016 (BPE).
"""
from __future__ import annotations

import base64
import itertools
import re
import unicodedata
from typing import Any

import regex  # a dependency of tiktoken
import tiktoken

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Files with another pattern go through the reference library: regular-expression libraries need not agree.
PATTERNS = (GPT2, LLAMA3, QWEN2)
LONG_RUN = 100_000  # tiktoken's regular expressions overflow their stack at about a million spaces in a row


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, as `tokenizer.json` writes them.

    >>> [byte_alphabet()[c] for c in "aĠĊ"]
    [97, 32, 10]
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


class ByteLevelBackend:
    """A pattern splits the text into words, and the bytes of each word are joined by rank. `pieces`: (bytes,
    id) by rank; `unreachable`: ids never made from text, but a model may still write them."""

    kind = "byte-level BPE"

    def __init__(self, pieces: list[tuple[bytes, int]], pattern: str, unicode_form: Any = None,
                 unreachable: dict[int, bytes] | None = None):
        self.pieces, self.pattern, self.unicode_form = pieces, pattern, unicode_form
        self.id_of = [index for _, index in pieces]
        self.bytes_of = (unreachable or {}) | {index: token for token, index in pieces}
        self.size = max(self.bytes_of) + 1
        ranks = {token: rank for rank, (token, _) in enumerate(pieces)}
        self.words, self.long_run = regex.compile(pattern), re.compile(rf"\s{{{LONG_RUN}}}")
        self.encoding = tiktoken.Encoding("byte level", pat_str=pattern, mergeable_ranks=ranks,
                                          special_tokens={})

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.unicode_form:
            text = unicodedata.normalize(self.unicode_form, text)
        if len(text) >= LONG_RUN and self.long_run.search(text):
            words = (word[0].encode() for word in self.words.finditer(text))
            ranks = [rank for word in words for rank in self.encoding._encode_single_piece(word)]
        else:
            ranks = self.encoding.encode_ordinary(text)
        return [self.id_of[rank] for rank in ranks]

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return b"".join(self.bytes_of.get(index, b"") for index in ids).decode("utf-8", "replace")

    def piece(self, index: int) -> str:
        return self.bytes_of.get(index, b"").decode("utf-8", "backslashreplace")

    def facts(self) -> list:
        return [self.pattern, self.unicode_form, [[token.hex(), index] for token, index in self.pieces]]


# ------------------------------------------------------------------------------------------- tiktoken's file

def open_tiktoken(data: bytes) -> ByteLevelBackend:
    """Llama 3's own `tokenizer.model`: a line per piece, its bytes in base64 and its rank, or ValueError."""
    lines = [line.split() for line in data.splitlines()]
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    if list(ranks.values()) != list(range(len(lines))) or not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError("expected each piece once, all bytes among them, and ranks without gaps")
    return ByteLevelBackend(list(ranks.items()), LLAMA3)


def llama3_special_tokens(first: int) -> dict[str, int]:
    """The 256 special tokens of Llama 3's own code, which come after the ordinary pieces."""
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    names = ["<|begin_of_text|>", "<|end_of_text|>", *reserved[:4], "<|start_header_id|>",
             "<|end_header_id|>", reserved[4], "<|eot_id|>", *reserved[5:]]
    return {text: first + place for place, text in enumerate(names)}


# --------------------------------------------------------------------------------------------- tokenizer.json

def open_byte_level(file: dict) -> ByteLevelBackend | None:
    """A backend for a plain byte-level `tokenizer.json`, else None."""
    model, vocabulary = file["model"], file["model"]["vocab"]
    pattern = _word_pattern(file.get("pre_tokenizer"))
    forms = [step["type"] for step in steps_of(file.get("normalizer"), "normalizers")]
    odd_keys = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    odd_rules = ("lstrip", "rstrip", "single_word", *(["normalized"] if forms else []))
    found_in_text = [entry for entry in file["added_tokens"] if not entry["special"]]
    if (model.get("type", "BPE") != "BPE" or pattern is None or forms not in ([], ["NFC"])
            or any(model.get(key) for key in odd_keys)
            or any(entry[rule] for entry in found_in_text for rule in odd_rules)):
        return None
    alphabet = byte_alphabet()
    spelling = {token: bytes(alphabet[c] for c in token) for token in vocabulary
                if alphabet.keys() >= set(token)}
    added = {entry["content"] for entry in file["added_tokens"]}
    plain = {token: vocabulary[token] for token in spelling if token not in added}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    rank = merge_ranks(plain, list(map(tuple, merges)), bool(model.get("ignore_merges")))
    if rank is None or not alphabet.keys() <= plain.keys():  # SmolLM2 has no piece for eight bytes
        return None
    order = [token for token in plain if len(token) == 1] + sorted(rank, key=rank.__getitem__)
    pieces = [(spelling[token], plain[token]) for token in order]
    unreachable = {index: spelling.get(token) or token.encode() for token, index in vocabulary.items()}
    return ByteLevelBackend(pieces, pattern, forms[0] if forms else None, unreachable)


def steps_of(step: dict | None, key: str) -> list[dict]:
    """The steps of a normaliser, pre-tokeniser or post-processor: those of a Sequence, or the only one."""
    if step and step["type"] == "Sequence":
        return [one for inside in step[key] for one in steps_of(inside, key)]
    return [step] if step else []


def _word_pattern(pre_tokenizer: dict | None) -> str | None:
    """The published pattern with which a pre-tokeniser finds words; None if it works in another way."""
    match steps_of(pre_tokenizer, "pretokenizers"):
        case [{"type": "ByteLevel", "add_prefix_space": False, **more}] if more.get("use_regex", True):
            return GPT2
        case [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] if pattern in PATTERNS:
            return pattern
    return None


# Hugging Face's BPE joins the neighbours that come first in a list of merges, tiktoken those whose
# concatenation is the best-ranked piece. Joins outside a stretch of text do not change how it is joined, so
# both agree on every text if the last pair that each piece alone comes down to is a merge, and these merges
# come in the order of the ranks.

def merge_ranks(vocabulary: dict[str, int], merges: list[tuple[str, str]],
                whole_words: bool = False) -> dict[str, int] | None:
    """Rank of each piece such that joining by rank equals joining by `merges`; None if there is none.

    Pieces that no merge can produce are left out, unless `whole_words` (Llama 3's `ignore_merges`: a word
    that is a piece is taken as it is); they rank last then.

    >>> merge_ranks({"a": 0, "b": 1, "ab": 2, "aba": 3, "bb": 4}, [("a", "b"), ("ab", "a")])
    {'ab': 0, 'aba': 1}
    """
    order: dict[tuple[str, ...], int] = {pair: index for index, pair in enumerate(merges)}
    known = all({left, right, left + right} <= vocabulary.keys() for left, right in merges)
    if len(order) < len(merges) or not known:
        return None
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    for piece in sorted(vocabulary, key=vocabulary.__getitem__) if whole_words else ():
        if len(piece) > 1:
            rank.setdefault(piece, len(merges) + len(rank))
    last, reachable = -1, {}
    for piece in sorted(rank, key=rank.__getitem__):
        parts = joined_alone(piece, rank)
        if len(parts) > 2:
            continue
        if order.get(parts, -1) <= last:
            return None
        last, reachable[piece] = order[parts], rank[piece]
    return rank if whole_words else reachable


def joined_alone(piece: str, rank: dict[str, int]) -> tuple[str, ...]:
    """The last two parts of `piece` when its characters are joined by rank; more if joining stops earlier."""
    parts = list(piece)
    while len(parts) > 2:
        pairs = [(rank[left + right], i) for i, (left, right) in enumerate(itertools.pairwise(parts))
                 if left + right in rank]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)
