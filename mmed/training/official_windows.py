"""Training rows as the paper's code cuts them, for audit (--windows=official) [docs/method.md, D14]."""
from __future__ import annotations

import numpy as np

from mmed.data import BLOCK_ROWS, IGNORE, Row
from mmed.tokenization.token_streams import TokenStream


class OfficialWindows:
    """Each document in windows of T with a stride of 3T/4, the last one aligned to its end; short documents
    are padded with EOS, and the padding is trained on. The interface is that of `data.PackedBlocks`.
    """

    def __init__(self, stream: TokenStream, T: int, eos_id: int):
        self.stream, self.T, self.eos_id = stream, T, eos_id
        self.stride = max(1, T * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        lengths = np.diff(stream.ends.astype(np.int64), prepend=0)
        windows = np.where(lengths <= T, 1, 1 + -(-(lengths - T) // self.stride))
        self.ends = np.cumsum(windows)  # windows up to the end of each document

    def counts(self) -> list[int]:
        """Rows of each block."""
        windows = int(self.ends[-1])
        return [min(BLOCK_ROWS, windows - first) for first in range(0, windows, BLOCK_ROWS)]

    def documents(self, block: int, number: int) -> list[int]:
        return [int(np.searchsorted(self.ends, block * BLOCK_ROWS + number, side="right"))]

    def row(self, block: int, number: int) -> Row:
        (document,) = self.documents(block, number)
        window = block * BLOCK_ROWS + number - (int(self.ends[document - 1]) if document else 0)
        begin, end = int(self.stream.ends[document - 1]) if document else 0, int(self.stream.ends[document])
        start = max(begin, min(begin + window * self.stride, end - self.T))
        ids = np.full(self.T, self.eos_id)  # MMedLM: pads are trained on
        ids[:end - start] = self.stream.ids[start:min(start + self.T, end)]
        return Row.of_document(ids, np.append(ids[1:], IGNORE))
