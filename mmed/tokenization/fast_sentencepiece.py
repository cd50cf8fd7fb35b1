"""A sentencepiece BPE model run by tiktoken: the same ids, several times as fast on text with spaces.

BPE joins neighbours only into a piece. Where no piece has a space after another character, no join crosses
the front of a space, so the text may be split there into words. tiktoken starts from bytes and sentencepiece
from characters, so the first ranks put the bytes of each character together:

    é = C3 A9     ranks:  C3 A9 | ... all other known characters and the beginnings of longer ones | pieces by
                  score

A character that is not a piece remains as such beginnings and bytes, which `spell` turns into byte pieces.
`SentencePieceBackend` is the plain version and the oracle of the test.
"""
from __future__ import annotations

import itertools

import tiktoken

from mmed.tokenization.byte_level import joined_alone
from mmed.tokenization.sentencepiece_model import (
    BYTE,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)

BUILD_AFTER = 200_000  # characters; building takes a fifth of a second, too long for a few prompts


class FastBPE:
    """tiktoken's form of a sentencepiece model, built once `BUILD_AFTER` characters have been encoded."""

    def __init__(self, model: SentencePieceModel):
        self.model = model
        self.until_build = BUILD_AFTER
        self.encoding: tiktoken.Encoding | None = None

    @staticmethod
    def fits(model: SentencePieceModel) -> bool:
        """Whether the ids are certain to be the same."""
        normal = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
        scores = [score for piece, score in normal.items() if len(piece) > 1]
        return (model.plain and not any(kind in (USER_DEFINED, UNUSED) for _, _, kind in model.pieces)
                # of two pieces with one score, the leftmost in the text would win
                and len(set(scores)) == len(scores)
                and not any(" " in piece or SPACE in piece.lstrip(SPACE) for piece in normal))

    def pays(self, text: str) -> bool:
        """Whether to encode this text here. Text without spaces is a single word, on which sentencepiece is
        faster.
        """
        if self.encoding is None:
            self.until_build -= len(text)
            if self.until_build <= 0:
                self._build()
        return self.encoding is not None and text.count(" ") * 16 > len(text)

    def _build(self) -> None:
        id_of_text = {
            piece: index
            for index, (piece, _, kind) in enumerate(self.model.pieces) if kind == NORMAL
        }
        byte_id = {
            int(piece[3:5], 16): index
            for index, (piece, _, kind) in enumerate(self.model.pieces) if kind == BYTE
        }
        joined = sorted((piece for piece in id_of_text if len(piece) > 1),
                        key=lambda piece: -self.model.pieces[id_of_text[piece]][1])
        rank = {piece: place for place, piece in enumerate(joined)}
        # the others are never made
        joined = [piece for piece in joined if len(joined_alone(piece, rank)) == 2]
        characters = {
            piece.replace(SPACE, " ").encode(): index
            for piece, index in id_of_text.items() if len(piece) == 1
        }
        beginnings = sorted({token[:end] for token in characters for end in range(2, len(token))})

        tokens = [(beginning, -1) for beginning in beginnings]
        tokens += [(bytes([byte]), characters.get(bytes([byte]), byte_id[byte])) for byte in range(256)]
        tokens += [(token, index) for token, index in characters.items() if len(token) > 1]
        tokens += [(piece.replace(SPACE, " ").encode(), id_of_text[piece]) for piece in joined]
        ranks = {token: place for place, (token, _) in enumerate(tokens)}
        self.id_of = [index for _, index in tokens]
        self.spell = {
            place: [byte_id[byte] for byte in beginning]
            for place, beginning in enumerate(beginnings)
        }
        self.encoding = tiktoken.Encoding("words",
                                          pat_str=" *[^ ]+| +",
                                          mergeable_ranks=ranks,
                                          special_tokens={})

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose first word has the space that the model puts before it."""
        ranks = self.encoding.encode_ordinary(text.replace(SPACE, " "))
        ids = [self.id_of[rank] for rank in ranks]
        if -1 not in ids:
            return ids
        return list(
            itertools.chain.from_iterable(self.spell.get(rank) or (self.id_of[rank], ) for rank in ranks))
