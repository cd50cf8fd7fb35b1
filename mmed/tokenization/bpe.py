"""From ordinary text to token ids by byte-pair encoding, through sentencepiece and tiktoken: what `mmed/tokenizer.py` stands on.

In: the parsed content of a tokenizer file. Out: a core with `encode(text, continued)`, `decode(ids, continued)`,
`cut(text, start)` (a place where the text may be cut without a change of ids) and `facts()` (all that determines the ids).
Order: merges as ranks, sentencepiece models (mmed/tokenization/sentencepiece_model.py) and their twin in tiktoken, sentencepiece-style
`tokenizer.json`, byte-level BPE.

References: Sennrich et al. 2016 (BPE); Kudo and Richardson 2018 (sentencepiece); Radford et al. 2019 (byte level).
"""
from __future__ import annotations

import itertools
import re
import struct
import unicodedata
from collections.abc import Iterable

import regex  # tiktoken depends on it
import sentencepiece
import tiktoken

from mmed.tokenization.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    build_message,
    byte_value,
)
from mmed.utils.errors import UserError

SPACE = "▁"  # U+2581, how sentencepiece writes a space


# --------------------------------------------------------------------------------------------------------------------
# Merges as ranks
#
# Hugging Face's BPE joins the neighbours (x, y) that stand first in a list of merges; tiktoken and sentencepiece join the
# neighbours whose concatenation x + y is the best piece. Both take the best pair of a word, the leftmost if it occurs twice.
# When is it the same? Let R be the rank of a piece. While the borders of a stretch of text t stand, only joins inside t
# change it, in the order in which t alone would be joined. So if some pair with x + y = t is ever joined, it is the pair
# that t alone comes down to: one pair for each piece. Hence both ways agree on every text exactly when for each piece t
# that comes down to two parts, these parts are one of the listed merges, and these merges stand in the order of R.


def merge_ranks(vocabulary: dict[str, int], merges: list[tuple[str, str]], name: str, whole_words: bool = False) -> dict[str, int]:
    """Rank of each piece such that joining by rank is joining by `merges`, or a `UserError` that names the piece.

    A piece that no merge can make is left out, unless `whole_words` (Llama 3's `ignore_merges`: a word that is a piece is
    taken as it is); its rank comes last then, and is never used for joining.

    >>> merge_ranks({"a": 0, "b": 1, "ab": 2, "aba": 3, "bb": 4}, [("a", "b"), ("ab", "a")], "example")
    {'ab': 0, 'aba': 1}
    """
    order: dict[tuple[str, str], int] = {}
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise UserError(f"{name}: merge {index} ({left!r}, {right!r}) uses or makes a piece that is not in the vocabulary")
        if order.setdefault((left, right), index) != index:
            raise UserError(f"{name}: merge {index} ({left!r}, {right!r}) is there twice")
        rank.setdefault(left + right, index)
    if whole_words:
        for token in sorted((token for token in vocabulary if len(token) > 1 and token not in rank), key=vocabulary.get):
            rank[token] = len(merges) + len(rank)
    last, unreachable = -1, []
    for token in sorted(rank, key=rank.get):
        parts = _last_two_parts(token, rank)
        if len(parts) > 2:
            unreachable.append(token)
            continue
        used = order.get(parts)
        if used is None or used <= last:
            raise UserError(f"{name}: the merges cannot be written as ranks: {token!r} is joined from {parts!r}, which is "
                            + ("not among the merges" if used is None else "listed before the merges of earlier pieces"))
        last = used
    if not whole_words:
        for token in unreachable:
            del rank[token]
    return rank


def _last_two_parts(token: str, rank: dict[str, int]) -> tuple[str, ...]:
    """The two parts that `token` alone comes down to when its characters are joined by rank; more where no join is left."""
    parts = list(token)
    while len(parts) > 2:
        best, at = None, -1
        for index in range(len(parts) - 1):
            value = rank.get(parts[index] + parts[index + 1])
            if value is not None and (best is None or value < best):
                best, at = value, index
        if best is None:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


# --------------------------------------------------------------------------------------------------------------------
# sentencepiece


CHUNK = 1 << 18  # characters encoded at a time, so that a huge text needs no more memory than its ids
TWIN_AFTER = 200_000  # making the twin takes a fifth of a second: not for a few prompts


class WordTwin:
    """The same BPE in tiktoken, several times as fast on text with spaces: `WordTwin.of(model)`, None where it is not sure.

    BPE joins neighbours only into a piece, so where no piece has a space after another character no join reaches over the
    front of a space, and a text may be cut there into words (`merge_ranks` says why ranks give the same joins). tiktoken
    starts from bytes, sentencepiece from characters; so the first ranks put characters together:

        é = C3 A9     ranks:  C3 A9 | ... all other known characters and the beginnings of longer ones | pieces by score

    A character that is no piece stays in such beginnings and bytes, which `spell` turns into byte pieces.
    """

    def __init__(self, encoding, id_of: list[int], spell: dict[int, list[int]]):
        self.encoding, self.id_of, self.spell = encoding, id_of, spell

    @classmethod
    def of(cls, model: SentencePieceModel) -> WordTwin | None:
        if not model.plain or any(kind in (USER_DEFINED, UNUSED) for _, _, kind in model.pieces):
            return None
        id_of_text = {piece: index for index, (piece, _, kind) in enumerate(model.pieces) if kind == NORMAL}
        joined = sorted((piece for piece in id_of_text if len(piece) > 1), key=lambda piece: -model.pieces[id_of_text[piece]][1])
        if len({model.pieces[id_of_text[piece]][1] for piece in joined}) < len(joined):
            return None  # of two pieces with one score, the leftmost in the text would win
        if any(" " in piece or SPACE in piece.lstrip(SPACE) for piece in id_of_text):
            return None
        rank = {piece: place for place, piece in enumerate(joined)}
        joined = [piece for piece in joined if len(_last_two_parts(piece, rank)) == 2]  # others are never made
        byte_id = {int(piece[3:5], 16): index for index, (piece, _, kind) in enumerate(model.pieces) if kind == BYTE}
        spell: dict[int, list[int]] = {}
        ranks: dict[bytes, int] = {}
        id_of: list[int] = []

        def add(token: bytes, index: int) -> None:
            ranks[token] = len(ranks)
            id_of.append(index)

        characters = {piece.replace(SPACE, " ").encode(): index for piece, index in id_of_text.items() if len(piece) == 1}
        for beginning in sorted({token[:end] for token in characters for end in range(2, len(token))}):
            spell[len(ranks)] = [byte_id[byte] for byte in beginning]
            add(beginning, -1)
        for byte in range(256):
            add(bytes([byte]), characters.get(bytes([byte]), byte_id[byte]))
        for token, index in characters.items():
            if len(token) > 1:
                add(token, index)
        for piece in joined:
            add(piece.replace(SPACE, " ").encode(), id_of_text[piece])

        return cls(tiktoken.Encoding("words", pat_str=" *[^ ]+| +", mergeable_ranks=ranks, special_tokens={}), id_of, spell)

    def encode(self, text: str) -> list[int]:
        ranks = self.encoding.encode_ordinary(text.replace(SPACE, " "))
        ids = list(map(self.id_of.__getitem__, ranks))
        if -1 in ids:
            ids = list(itertools.chain.from_iterable(self.spell.get(rank) or (self.id_of[rank],) for rank in ranks))
        return ids


def joints(pieces: list[tuple[str, float, int]]) -> set[str]:
    """All pairs of characters that stand side by side in some piece, spaces written as spaces."""
    found = (piece for piece, _, kind in pieces if kind in (NORMAL, USER_DEFINED, UNUSED))
    return {pair for piece in found for pair in map("".join, itertools.pairwise(piece.replace(SPACE, " ")))}


def cut_between_pieces(text: str, start: int, joints: set[str]) -> int:
    """First place at or after `start` where a BPE text may be cut: no piece, so no join, has these two characters together.

    >>> cut_between_pieces("banana, apple", 3, {"ba", "an", "na", " a"})
    6
    """
    for place in range(start, len(text)):
        if text[place - 1 : place + 1].replace(SPACE, " ") not in joints:
            return place
    return len(text)


class SentencePieceCore:
    """Ordinary text <-> ids through the sentencepiece library."""

    kind = "sentencepiece"
    prefix_once = False  # text after an added token begins like a text of its own
    late: frozenset[str] = frozenset()  # added tokens that are looked for in normalised text

    def __init__(self, model: SentencePieceModel, name: str, hidden: Iterable[int] = ()):
        # A user-defined symbol is found inside any text. One that is a special token must not be: as a control symbol
        # it keeps its id and is never found (InternLM 2's [UNUSED_TOKEN_145], Gemma's <start_of_turn>).
        for index in hidden:
            if index < len(model.pieces) and model.pieces[index][2] == USER_DEFINED:
                model.pieces[index] = (*model.pieces[index][:2], CONTROL)
        self.model = model
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model.proto())
            # the same without the space put before the first word: for text that goes on after other tokens
            self.bare = sentencepiece.SentencePieceProcessor(model_proto=model.proto(dummy_prefix=False))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{name}: sentencepiece refuses it: {reason(error)}") from None
        self.size = len(model.pieces)
        self.dummy_prefix = bool(model.rules[3])
        self.twin: WordTwin | None = None
        self.twin_after = TWIN_AFTER  # characters until the twin is made
        self.joints = joints(model.pieces) if model.plain else None

    def normalize(self, text: str) -> str:
        return text  # sentencepiece does it itself

    def cut(self, text: str, start: int) -> int:
        return len(text) if self.joints is None else cut_between_pieces(text, start, self.joints)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.twin_after > 0:
            self.twin_after -= len(text)
            if self.twin_after <= 0:
                self.twin = WordTwin.of(self.model)
        # Text without spaces is all one word, where sentencepiece has few joins to look at and is the faster one.
        if self.twin is not None and text.count(" ") * 16 > len(text):
            return self.twin.encode(" " + text if self.dummy_prefix and not continued else text)
        return (self.bare if continued else self.processor).encode(text)

    def decode(self, ids: list[int], continued: bool = False) -> str:
        # ids between the pieces and an added token further up are nobody's
        return (self.bare if continued else self.processor).decode([index for index in ids if index < self.size])

    def piece(self, index: int) -> str:
        return self.model.pieces[index][0] if index < self.size else ""

    def facts(self) -> list:
        """What determines the ids, for the fingerprint."""
        model = self.model
        rules = {str(key): value.hex() if isinstance(value, bytes) else value for key, value in model.rules.items()}
        return [model.model_type, model.byte_fallback, model.suffix_space, model.unk_surface, rules, model.denormalizer.hex(),
                [[piece, struct.pack("<f", score).hex(), kind] for piece, score, kind in model.pieces]]


class JsonPiecesCore:
    """Ordinary text <-> ids of a sentencepiece-style `tokenizer.json` (Llama 2, Gemma): its merges as the scores of a
    sentencepiece model made in memory, its normaliser and prefix rule here."""

    kind = "sentencepiece-style BPE"
    late: frozenset[str] = frozenset()

    def __init__(self, pieces: list[tuple[str, float, int]], name: str, *, spaces: bool, prefix: str, split: bool):
        self.pieces, self.spaces, self.prefix, self.size = pieces, spaces, prefix, len(pieces)
        self.prefix_once = prefix == "first"
        # words are given one by one where the file cuts at each space and some piece could reach over such a cut
        self.split = split and any(SPACE in piece[1:] for piece, _, kind in pieces if kind == NORMAL)
        proto = build_message(
            *((1, build_message((1, piece.encode()), (2, score), (3, kind))) for piece, score, kind in pieces),
            (2, build_message((3, BPE), (35, int(any(kind == BYTE for _, _, kind in pieces))))),
            (3, build_message((1, b"identity"), (3, 0), (4, 0), (5, 0))))
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{name}: sentencepiece refuses it: {reason(error)}") from None

        self.joints = joints(pieces) if any(kind == BYTE for _, _, kind in pieces) else None  # unknown ones fuse

    def normalize(self, text: str) -> str:
        return text  # added tokens are looked for in the text as it is

    def cut(self, text: str, start: int) -> int:
        return len(text) if self.joints is None else cut_between_pieces(text, start, self.joints)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.spaces:
            text = text.replace(" ", SPACE)
        if text and not continued and (self.prefix == "prepend" or (self.prefix and not text.startswith(SPACE))):
            text = SPACE + text
        if not self.split:
            return self.processor.encode(text)
        words = re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text)
        return list(itertools.chain.from_iterable(self.processor.encode(words)))

    def decode(self, ids: list[int], continued: bool = False) -> str:
        out = bytearray()
        for piece, _, kind in (self.pieces[index] for index in ids if index < self.size):
            out += bytes([byte_value(piece)]) if kind == BYTE else b" \xe2\x81\x87 " if kind == UNKNOWN else piece.encode()
        text = out.decode("utf-8", "replace")
        text = text.replace(SPACE, " ") if self.spaces else text
        return text[1:] if self.prefix and not continued and text.startswith(" ") else text

    def piece(self, index: int) -> str:
        return self.pieces[index][0] if index < self.size else ""

    def facts(self) -> list:
        return [self.pieces, self.spaces, self.prefix, self.split]


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can carry it: half a surrogate pair, which JSON can write, it cannot."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def reason(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]


# --------------------------------------------------------------------------------------------------------------------
# Byte-level BPE: Llama 3, Qwen, BLOOM, GPT-2

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of both regular expression libraries
_GAPS = r"()|.,!?…。，、।۔،" + SPACES  # what BLOOM's words leave between them: pieces too, in the reference
# Published pattern -> (pattern with the same pieces in tiktoken, characters of runs that it can't take in one go).
# Only these are accepted: two regular expression libraries do not agree on every pattern.
PATTERNS = {
    GPT2: (GPT2, SPACES),
    LLAMA3: (LLAMA3, SPACES),
    QWEN2: (QWEN2, SPACES),
    BLOOM: (rf" ?[^{_GAPS}]+|[{_GAPS}]+(?<! )(?=[^{_GAPS}])|[{_GAPS}]+(?![^{_GAPS}])", _GAPS),
}
LONG_RUN = 100_000  # tiktoken's regular expressions overflow their stack at about a million spaces in a row


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, as `tokenizer.json` writes them.

    >>> [byte_alphabet()[c] for c in "aĠĊ"]
    [97, 32, 10]
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(rest)}


class ByteLevelCore:
    """Ordinary text <-> ids through tiktoken: a pattern cuts the text into words, bytes are joined by rank inside each."""

    kind = "byte-level BPE"
    prefix_once = False
    late: frozenset[str] = frozenset()

    def __init__(self, ranks: dict[bytes, int], ids: dict[bytes, int], pattern: str, name: str, *,
                 prefix_space: bool = False, unicode_form: str | None = None):
        self.pattern, self.prefix_space, self.unicode_form = pattern, prefix_space, unicode_form
        fill = max(ranks.values()) + 1  # tiktoken wants all 256 bytes: those without a piece (SmolLM2 lacks eight) come last
        table = ranks | {bytes([byte]): fill + byte for byte in range(256) if bytes([byte]) not in ranks}
        # like the reference, bytes without a piece are dropped; bytes that UTF-8 never has are no loss
        self.dropped = bytes(byte for byte in (*range(0xC0), *range(0xC2, 0xF5)) if bytes([byte]) not in ranks)
        self.bytes_of = {index: token for token, index in ids.items()}
        if len(self.bytes_of) != len(ids):
            raise UserError(f"{name}: two pieces have the same id")
        # tiktoken's ranks are the ids where the order is the same; otherwise a table leads from rank to id
        self.id_of = None if all(ids[token] == rank for token, rank in ranks.items()) else \
            {rank: ids[token] for token, rank in ranks.items()}
        self.words, self.run_characters = PATTERNS[pattern]
        self.encoding = tiktoken.Encoding(name, pat_str=self.words, mergeable_ranks=table, special_tokens={})
        self.size = max(ids.values()) + 1
        self.ranks = ranks

    def cut(self, text: str, start: int) -> int:
        found = re.compile(r"(?<=[^\W_]) ").search(text, start)  # no pattern has a piece with a space after a letter or digit
        return found.start() if found else len(text)

    def normalize(self, text: str) -> str:
        return unicodedata.normalize(self.unicode_form, text) if self.unicode_form else text

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.prefix_space and not continued and text and not text.startswith(" "):
            text = " " + text
        if self.dropped and any(byte in self.dropped for byte in text.encode()):
            ids = self._encode_dropping(text)
        else:
            ids = self.encoding.encode_ordinary(text) if len(text) < LONG_RUN else self._encode_long(text)
        return ids if self.id_of is None else [self.id_of[rank] for rank in ids]

    def _encode_dropping(self, text: str) -> list[int]:
        """Words are found in the whole text, then bytes without a piece are removed, then the rest of each word is joined."""
        words = (word[0].encode().translate(None, self.dropped) for word in regex.finditer(self.words, text))
        return [rank for word in words if word for rank in self.encoding._encode_single_piece(word)]

    def _encode_long(self, text: str) -> list[int]:
        """The same ids where a text has very long runs of white space: these are cut out as the pattern would cut them."""
        ids: list[int] = []
        done = 0
        for run in re.finditer(f"[{self.run_characters}]+", text):
            start, stop = run.span()
            if stop - start < LONG_RUN:
                continue
            newlines, last = self.pattern in (LLAMA3, QWEN2), text[stop - 1]
            if newlines and start and unicodedata.category(text[start - 1])[0] not in "LN":
                start += len(run[0]) - len(run[0].lstrip("\r\n"))  # ` ?[^\s\p{L}\p{N}]+[\r\n]*` takes them along
            if stop < len(text) and not (last in "\r\n" if newlines else last != " " and self.pattern == BLOOM):
                stop -= 1  # the last one is looked at together with the next word
            cut = max(text.rfind("\n", start, stop), text.rfind("\r", start, stop)) + 1 if newlines else start
            ids += self.encoding.encode_ordinary(text[done:start])
            for piece in (text[start : max(cut, start)], text[max(cut, start) : stop]):
                if piece:
                    ids += self.encoding._encode_single_piece(piece)
            done = stop
        return ids + self.encoding.encode_ordinary(text[done:])

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return b"".join(self.bytes_of.get(index, b"") for index in ids).decode("utf-8", "replace")

    def piece(self, index: int) -> str:
        return self.bytes_of.get(index, b"").decode("utf-8", "backslashreplace")

    def facts(self) -> list:
        ranks = sorted(self.ranks.items(), key=lambda item: item[1])
        id_of = self.id_of or {}
        return [self.pattern, self.prefix_space, self.unicode_form, [[token.hex(), id_of.get(rank, rank)] for token, rank in ranks]]
