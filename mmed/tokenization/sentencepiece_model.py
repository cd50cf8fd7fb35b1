"""sentencepiece models (Llama 2, InternLM, Mistral, and those trained here): their file, ids by the library.

In: the bytes of a `tokenizer.model`. Out: `SentencePieceModel` (pieces and rules), `SentencePieceBackend`,
and `hub_tokenizer`: the same BPE as a `tokenizer.json`, which transformers and vLLM open.
References: Kudo and Richardson 2018; sentencepiece_model.proto.
"""
from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from mmed.tokenization.hub import added_token
from mmed.utils.files import read_json

SPACE = "▁"  # U+2581, how sentencepiece writes a space
MAX_PIECES = 1 << 22
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
# Fields of NormalizerSpec and their defaults: character map, space before the first word, removal of extra
# spaces, spaces written as U+2581
DUMMY_PREFIX = 3
RULES = {2: b"", DUMMY_PREFIX: 1, 4: 1, 5: 1}


# Protobuf wire format: each field is a varint key = number << 3 | type; type 0 is a varint, 1 eight bytes,
# 2 a length and bytes, 5 four bytes.

def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while (byte := stream.read(1)[0]) > 127:
        value |= (byte & 127) << shift
        shift += 7
    return value | byte << shift


def parse_message(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value); ValueError, IndexError or KeyError when `data` is not protobuf."""
    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        key = _varint(stream)
        value: Any
        if key & 7 == 0:
            value = _varint(stream)
        else:
            length = _varint(stream) if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            value = stream.read(length)
            if len(value) < length:
                raise ValueError("truncated")
        yield key >> 3, value


def _encode_varint(value: int) -> bytes:
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def build_message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """One protobuf message of these fields (int: varint, float: four bytes, bytes: length-delimited)."""
    parts = []
    for number, value in fields:
        if isinstance(value, bytes):
            parts += [_encode_varint(number << 3 | 2), _encode_varint(len(value)), value]
        elif isinstance(value, float):
            parts += [_encode_varint(number << 3 | 5), struct.pack("<f", value)]
        else:
            parts += [_encode_varint(number << 3), _encode_varint(value)]
    return b"".join(parts)


def build_piece(text: str, score: float, kind: int) -> tuple[int, bytes]:
    """One piece, as a field of the model."""
    return 1, build_message((1, text.encode()), (2, score), (3, kind))


def parse_piece(data: bytes) -> tuple[str, float, int]:
    """(text, score, type)"""
    fields = dict(parse_message(data))
    score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
    return fields.get(1, b"").decode(), score, fields.get(3, NORMAL)


class SentencePieceModel:
    """The parsed `ModelProto`: pieces (text, score, type), trainer fields that steer encoding, normaliser.
    `prefix`: False if the settings overrule its space before the first word. Damage raises any error."""

    def __init__(self, data: bytes, prefix: bool = True):
        fields = list(parse_message(data))
        self.pieces = [parse_piece(value) for number, value in fields if number == 1]
        if not 0 < len(self.pieces) <= MAX_PIECES:
            raise ValueError(f"{len(self.pieces):,} pieces; expected 1 to {MAX_PIECES:,}")
        last = {2: b"", 3: b"", **dict(fields)}
        trainer, given = dict(parse_message(last[2])), dict(parse_message(last[3]))
        self.is_bpe, self.byte_fallback = trainer.get(3, 1) == BPE, bool(trainer.get(35, 0))
        self.rules = {number: given.get(number, default) for number, default in RULES.items()}
        self.rules[DUMMY_PREFIX] *= prefix
        denormalizer = [(5, last[5])] if last.get(5) else []
        self.rest = (2, last[2]), (3, build_message(*self.rules.items())), *denormalizer


class SentencePieceBackend:
    """Ordinary text <-> ids through the sentencepiece library; RuntimeError if that rejects the model.
    `roles`: id of the bos, eos, pad and unk token, None where the model has none."""

    kind = "sentencepiece"

    def __init__(self, model: SentencePieceModel, special_ids: Iterable[int] = ()):
        # The library finds a user-defined symbol inside any text. One that is a special token must not be
        # found: as a control symbol it keeps its id (InternLM 2's <|im_end|>, Gemma's <start_of_turn>).
        for index in special_ids:
            if index < len(model.pieces) and model.pieces[index][2] == USER_DEFINED:
                model.pieces[index] = (*model.pieces[index][:2], CONTROL)
        self.model, self.size = model, len(model.pieces)
        self.proto = build_message(*(build_piece(*piece) for piece in model.pieces), *model.rest)
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.proto)
        # without the space before the first word: in protobuf, what is appended replaces fields
        no_prefix = build_message((3, build_message((DUMMY_PREFIX, 0))))
        self.bare = sentencepiece.SentencePieceProcessor(model_proto=self.proto + no_prefix)
        ids = {role: getattr(self.processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
        self.roles = {role: index if index >= 0 else None for role, index in ids.items()}

    def encode(self, text: str, continued: bool = False) -> list[int]:
        return (self.bare if continued else self.processor).encode(text)

    def decode(self, ids: list[int], continued: bool = False) -> str:
        known = [index for index in ids if index < self.size]
        return (self.bare if continued else self.processor).decode(known)

    def piece(self, index: int) -> str:
        return self.model.pieces[index][0] if index < self.size else ""

    def facts(self) -> list:
        return [self.proto.hex()]


def other_pieces(path: Path, json_path: Path) -> bool:
    """Whether a tokenizer.json has other pieces than the tokenizer.model; bytes and added tokens aside."""
    file = read_json(json_path)
    try:
        library = sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = {index: library.id_to_piece(index) for index in range(len(library))}
        theirs = {index: piece for piece, index in file["model"]["vocab"].items()}
        skipped = {entry["id"] for entry in file["added_tokens"]}
    except Exception:  # tiktoken's file, Unigram, or a damaged file, which is reported when it is opened
        return False
    skipped |= {index for index in pieces if library.is_byte(index)}  # Gemma's \t is <0x09>
    return any(pieces.get(index) != theirs.get(index) for index in (pieces | theirs).keys() - skipped)


def hub_tokenizer(model: SentencePieceModel) -> dict:
    """A `tokenizer.json` with the ids of a plain BPE model: every split of a piece into two is a merge. As in
    sentencepiece, a text that begins with a space gets another one, but a user-defined symbol gets none."""
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    scores = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
    merges: list[list[str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        splits = [[piece[:i], piece[i:]] for i in range(1, len(piece))]
        merges += sorted((split for split in splits if scores.keys() >= set(split)),
                         key=lambda split: [vocabulary[part] for part in split])
    symbols = [piece for piece, _, kind in model.pieces if kind == USER_DEFINED]
    unknown = [piece for piece, _, kind in model.pieces if kind == UNKNOWN]
    added = [added_token(index, piece, True)
             for index, (piece, _, kind) in enumerate(model.pieces) if kind in (CONTROL, UNKNOWN)]
    added += [added_token(vocabulary[symbol], symbol, False, normalized=True) for symbol in symbols]
    normalizers: list[dict] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders: list[dict] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                            {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.rules[DUMMY_PREFIX]:
        whole = "".join(rf"|{re.escape(symbol)}\z" for symbol in symbols)
        normalizers.append({"type": "Replace", "pattern": {"Regex": rf"\A(?!\z{whole})"}, "content": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": unknown[0], "fuse_unk": True, "byte_fallback": True,
                  "vocab": vocabulary, "merges": merges},
    }
