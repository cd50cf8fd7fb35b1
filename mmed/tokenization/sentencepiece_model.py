"""The file of a sentencepiece model, read and written.

In: the bytes of a `tokenizer.model`. Out: `SentencePieceModel`, its pieces and the rules that steer encoding.
Reference: sentencepiece_model.proto.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from mmed.utils.errors import UserError

SPACE = "▁"  # U+2581, how sentencepiece writes a space
MAX_PIECES = 1 << 22
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
# Fields of NormalizerSpec and their defaults: character map, space before the first word, extra spaces
# removed, spaces
# written as U+2581
RULES = {2: b"", 3: 1, 4: 1, 5: 1}


# ------------------------------------------------------------------------------------------------------------
# Protobuf wire format: each field is a varint key = number << 3 | type; type 0 is a varint, 1 eight bytes, 2
# a length and
# bytes, 5 four bytes. These 50 lines spare a dependency.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift <= 63:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("number too long")


def parse_message(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of one protobuf message; ValueError or IndexError when it is truncated or
    not protobuf.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at:at + length], at + length
            if at > len(data):
                raise ValueError("truncated")
        yield key >> 3, value


def build_message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """One protobuf message of these fields (int: varint, float: four bytes, bytes: length-delimited)."""
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


def build_piece(text: str, score: float, kind: int) -> tuple[int, bytes]:
    """One piece, as a field of the model."""
    return 1, build_message((1, text.encode()), (2, score), (3, kind))


class SentencePieceModel:
    """The parsed `ModelProto`: pieces (text, score, type), trainer fields that steer encoding, normaliser."""

    def __init__(self, data: bytes, name: str):
        self.pieces: list[tuple[str, float, int]] = []
        self.trainer = self.normalizer = self.denormalizer = b""
        try:
            self._parse(data)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise UserError(
                f"{name}: not a sentencepiece model, or damaged ({error}); download it again") from None
        if not 0 < len(self.pieces) <= MAX_PIECES:
            raise UserError(f"{name}: {len(self.pieces):,} pieces; expected 1 to {MAX_PIECES:,}")

    def _parse(self, data: bytes) -> None:
        for number, value in parse_message(data):
            if number == 1:
                fields = dict(parse_message(value))
                score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
                self.pieces.append((fields.get(1, b"").decode(), score, fields.get(3, NORMAL)))
            elif number == 2:
                self.trainer = value
            elif number == 3:
                self.normalizer = value
            elif number == 5:
                self.denormalizer = value
        trainer, rules = dict(parse_message(self.trainer)), dict(parse_message(self.normalizer))
        self.is_bpe = trainer.get(3, 1) == BPE
        self.byte_fallback, suffix_space = bool(trainer.get(35, 0)), bool(trainer.get(24, 0))
        self.rules = {number: rules.get(number, default) for number, default in RULES.items()}
        # plain: BPE on the text as it is; nothing is normalised, and no byte is unknown
        self.plain = (self.is_bpe and self.byte_fallback and not suffix_space and not self.rules[2]
                      and not rules.get(6) and not self.rules[4] and bool(self.rules[5]))

    def proto(self, dummy_prefix: bool | None = None) -> bytes:
        """The model as bytes; `dummy_prefix` sets whether a space goes before the first word."""
        normalizer = self.rules | {3: self.rules[3] if dummy_prefix is None else int(dummy_prefix)}
        more = [(5, self.denormalizer)] if self.denormalizer else []
        return build_message(*(build_piece(*piece) for piece in self.pieces), (2, self.trainer),
                             (3, build_message(*normalizer.items())), *more)
