"""sentencepiece models (Llama 2, InternLM, Mistral, and those trained here) through the sentencepiece
library.

In: a `SentencePieceModel`. Out: `SentencePieceBackend`, and `hub_tokenizer`: the same BPE as a
`tokenizer.json`, which transformers and vLLM open. Reference: Kudo and Richardson 2018.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

import sentencepiece

from mmed.tokenization.fast_sentencepiece import FastBPE
from mmed.tokenization.sentencepiece_model import (
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
)
from mmed.utils.errors import UserError


class SentencePieceBackend:
    """Ordinary text <-> ids through the sentencepiece library."""

    kind = "sentencepiece"

    def __init__(self, model: SentencePieceModel, name: str, special_ids: Iterable[int] = ()):
        # The library finds a user-defined symbol inside any text. One that is a special token must not be
        # found: as a
        # control symbol it keeps its id (InternLM 2's [UNUSED_TOKEN_145], Gemma's <start_of_turn>).
        for index in special_ids:
            if index < len(model.pieces) and model.pieces[index][2] == USER_DEFINED:
                model.pieces[index] = (*model.pieces[index][:2], CONTROL)
        self.model, self.size = model, len(model.pieces)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model.proto())
            # without the space before the first word, for text that continues after other tokens
            self.bare = sentencepiece.SentencePieceProcessor(model_proto=model.proto(dummy_prefix=False))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{name}: the sentencepiece library rejects it: {' '.join(str(error).split())[-300:]}"
            ) from None
        self.fast = FastBPE(model) if FastBPE.fits(model) else None

    def encode(self, text: str, continued: bool = False) -> list[int]:
        if self.fast is not None and self.fast.pays(text):
            return self.fast.encode(" " + text if self.model.rules[3] and not continued else text)
        return (self.bare if continued else self.processor).encode(text)

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return (self.bare if continued else self.processor).decode(
            [index for index in ids if index < self.size])

    def piece(self, index: int) -> str:
        return self.model.pieces[index][0] if index < self.size else ""

    def facts(self) -> list:
        """What determines the ids, for the fingerprint."""
        return [self.model.proto().hex()]


def hub_tokenizer(model: SentencePieceModel) -> dict:
    """A `tokenizer.json` with the ids of a plain BPE model; every split of a piece into two pieces is a
    merge.

    A space goes before the first word even where the text begins with one, as sentencepiece does it. Symbols
    that the user defined are looked for after that, so the rule leaves out texts that are such a symbol: it
    is applied to them, too.
    """
    scores = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += sorted((vocabulary[left], vocabulary[right], left, right) for left, right in splits
                         if left in scores and right in scores)
    symbols = [piece for piece, _, kind in model.pieces if kind == USER_DEFINED]
    special = {
        piece: index
        for index, (piece, _, kind) in enumerate(model.pieces) if kind in (CONTROL, UNKNOWN)
    }
    added = [{"id": vocabulary[text], "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": text in symbols, "special": text in special} for text in [*special, *symbols]]
    normalizers: list[dict] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if model.rules[3]:
        whole = "".join(rf"|{re.escape(symbol)}\z" for symbol in symbols)
        normalizers.append({"type": "Replace", "pattern": {"Regex": rf"\A(?!\z{whole})"}, "content": SPACE})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None,
        "post_processor": None, "decoder": {
            "type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE},
                 "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.rules[3] else [])
            ]
        }, "model": {
            "type": "BPE", "dropout": None, "unk_token": next(
                t for t, _, kind in model.pieces if kind == UNKNOWN), "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": [[left, right] for _, _, left, right in merges]
        },
    }
