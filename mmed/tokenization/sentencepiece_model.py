"""A sentencepiece model file, read and written: protobuf by hand, checked before the library sees a byte of it.

In: bytes of a `tokenizer.model`. Out: `SentencePieceModel`: pieces (text, score, type) and the rules that steer encoding; `proto()` writes
it again. Used by mmed/tokenization/bpe.py, evaluation/wordpiece.py and checkpoints/extend_vocabulary.py.

Reference: Kudo and Richardson 2018, sentencepiece_model.proto.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from mmed.utils.errors import UserError

MAX_PIECES = 1 << 22
LONGEST_REPLACEMENT = 256  # bytes that a normaliser may write for one match; NFKC needs 33 at most
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


# --------------------------------------------------------------------------------------------------------------------
# Protobuf wire format: each field is a varint key = number << 3 | type; type 0 varint, 1 eight bytes, 2 length + bytes,
# 5 four bytes. Reading it by hand spares a dependency, and checks a crafted file before any C++ sees it.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number too long")


def parse_message(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of one protobuf message; ValueError when it is cut short or not protobuf."""
    at, end = 0, len(data)
    try:
        while at < end:
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                value, at = _varint(data, at)
            elif kind in (1, 2, 5):
                length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
                if at + length > end:
                    raise ValueError("cut short")
                value, at = data[at : at + length], at + length
            else:
                raise ValueError(f"wire type {kind}")
            yield key >> 3, value
    except IndexError:
        raise ValueError("cut short") from None


def _field(fields: dict[int, Any], number: int, default: Any) -> Any:
    """The value of a field; ValueError when it is a number where bytes belong, or the other way round."""
    value = fields.get(number, default)
    if type(value) is not type(default):
        raise ValueError(f"field {number} is of the wrong type")
    return value


def build_message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """Write one protobuf message; the inverse of `_fields` (int: varint, float: four bytes, bytes: length-delimited)."""
    out = bytearray()

    def varint(value: int) -> None:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)

    for number, value in fields:
        if isinstance(value, bytes):
            varint(number << 3 | 2)
            varint(len(value))
            out.extend(value)
        elif isinstance(value, float):
            varint(number << 3 | 5)
            out.extend(struct.pack("<f", value))
        else:
            varint(number << 3)
            varint(value)
    return bytes(out)


# --------------------------------------------------------------------------------------------------------------------
# The model

# NormalizerSpec: its fields that steer encoding (character map, space before the first word, extra spaces removed, spaces
# written as U+2581) and their values where the file is silent
RULES = {2: b"", 3: 1, 4: 1, 5: 1}


class SentencePieceModel:
    """The parsed `ModelProto`: pieces (text, score, type), trainer fields that steer encoding, normaliser."""

    def __init__(self, data: bytes, name: str):
        self.pieces: list[tuple[str, float, int]] = []
        self.trainer = self.normalizer = self.denormalizer = b""
        try:
            for number, value in parse_message(data):
                if number == 1:
                    fields = dict(parse_message(value))
                    score = struct.unpack("<f", _field(fields, 2, bytes(4)))[0]
                    self.pieces.append((_field(fields, 1, b"").decode(), score, _field(fields, 3, NORMAL)))
                elif number == 2:
                    self.trainer = value
                elif number == 3:
                    self.normalizer = value
                elif number == 5:
                    self.denormalizer = value
            trainer, rules = dict(parse_message(self.trainer)), dict(parse_message(self.normalizer))
            self.model_type = _field(trainer, 3, UNIGRAM)
            self.byte_fallback, self.suffix_space = bool(_field(trainer, 35, 0)), bool(_field(trainer, 24, 0))
            self.unk_surface = _field(trainer, 44, " \u2047 ".encode()).decode(errors="replace")
            self.rules = {number: _field(rules, number, default) for number, default in RULES.items()}
            # BPE that sees the text as it is: no piece depends on text at a distance
            charsmap, rewrite = self.rules[2], _field(rules, 6, b"")
            self.plain = (self.model_type == BPE and self.byte_fallback and not self.suffix_space and not charsmap and not rewrite
                          and not self.rules[4] and bool(self.rules[5]))
        except (ValueError, TypeError, struct.error) as error:
            raise UserError(f"{name}: not a sentencepiece model, or damaged ({error}); get the file again") from None
        self._check(name)

    def _check(self, name: str) -> None:
        if not 0 < len(self.pieces) <= MAX_PIECES:
            raise UserError(f"{name}: {len(self.pieces):,} pieces; expected 1 to {MAX_PIECES:,}")
        seen: dict[str, int] = {}
        for index, (piece, score, kind) in enumerate(self.pieces):
            if not piece or seen.setdefault(piece, index) != index:
                what = f"repeats piece {seen[piece]}" if piece else "is empty"
                raise UserError(f"{name}: piece {index} {piece!r} {what}; a vocabulary must not have duplicate pieces")
            if not NORMAL <= kind <= BYTE:
                raise UserError(f"{name}: piece {index} {piece!r} is of the unknown type {kind}")
            if not math.isfinite(score):
                raise UserError(f"{name}: piece {index} {piece!r} has the score {score}")
            if kind == BYTE and (len(piece) != 6 or piece != f"<0x{byte_value(piece):02X}>"):
                raise UserError(f"{name}: byte piece {index} {piece!r} is not of the form <0x41>")
        unknown = sum(kind == UNKNOWN for _, _, kind in self.pieces)
        if unknown != 1:
            raise UserError(f"{name}: {unknown} unknown pieces (<unk>); expected exactly one")
        # 4 bytes: length of a trie | the trie, whose bounds the library checks from 0.2.1 on | what it writes for a match, ended by NUL
        charsmap = self.rules[2]
        longest = max(map(len, charsmap[4 + int.from_bytes(charsmap[:4], "little"):].split(b"\0")))
        if longest > LONGEST_REPLACEMENT:
            raise UserError(f"{name}: its normaliser writes {longest:,} bytes for one character (limit {LONGEST_REPLACEMENT}); such a text would fill the memory")
        if self.byte_fallback and sum(kind == BYTE for _, _, kind in self.pieces) != 256:
            raise UserError(f"{name}: byte fallback is on, but the 256 byte pieces are not all there")

    def proto(self, dummy_prefix: bool | None = None) -> bytes:
        """The model again, without its self test; `dummy_prefix` sets whether a space goes before the first word."""
        normalizer = self.rules | {3: self.rules[3] if dummy_prefix is None else int(dummy_prefix)}
        pieces = [(1, build_message((1, piece.encode()), (2, score), (3, kind))) for piece, score, kind in self.pieces]
        more = [(5, self.denormalizer)] if self.denormalizer else []
        return build_message(*pieces, (2, self.trainer), (3, build_message(*normalizer.items())), *more)


def byte_value(piece: str) -> int:
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return 256
