"""How token streams fill the rows of continued pre-training, ours and the official windows.

    python benchmarks/training/row_padding.py streams/en streams/zh --sequence_length 512 2048 4096

For each length: rows, padding, tokens that are a target in no row or in two, documents that are split, and
trained positions per token, of which the official windows have more because they overlap.
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import functools

import numpy as np

from benchmarks.timing import print_head, print_row
from mmed.data import PretrainRows, TokenStream
from mmed.training.loader import OfficialWindows
from mmed.utils.errors import Parser


def measure(rows: PretrainRows) -> tuple[float, int, int]:
    """(share of padding, targets that are in no row or in two, documents that are in several pieces)."""
    used, wrong, split = 0, 0, 0
    for stream, layout in zip(rows.streams, rows.layouts, strict=True):
        seen = np.zeros(stream.tokens, dtype=np.int64)
        pieces = np.zeros(stream.documents, dtype=np.int64)
        for block in range(layout.blocks):
            for row in layout.rows(block):
                for piece in row:
                    seen[piece.start + 1:piece.end + 1] += 1
                    pieces[piece.document] += 1
                    used += piece.size()
        targets = np.ones(stream.tokens, dtype=np.int64)
        targets[np.concatenate(([0], np.asarray(stream.ends[:-1], dtype=np.int64)))] = 0
        wrong += int((seen != targets).sum())
        split += int((pieces > 1).sum())
    return 1 - used / (rows.size * rows.T), wrong, split


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("streams", nargs="+", help="names of token streams")
    parser.add_argument("--sequence_length", nargs="+", type=int, default=[512, 2048, 4096])
    options = parser.parse_args()
    streams = [TokenStream(name) for name in options.streams]
    tokens = sum(stream.tokens for stream in streams)
    print(f"{sum(stream.documents for stream in streams):,} documents of {tokens:,} tokens")
    print_head("row length", "rows", "padding", "cropped or repeated", "documents split", "positions a token",
               "official windows")
    for length in options.sequence_length:
        rows = PretrainRows(streams, length, seed=1)
        official = PretrainRows(streams, length, seed=1, layout=functools.partial(OfficialWindows, eos_id=0))
        padding, wrong, split = measure(rows)
        print_row(f"{length:,}", f"{rows.size:,}", f"{padding:.2%}", wrong, f"{split:,}",
                  f"{rows.size * length / tokens:.3f}",
                  f"{official.size * length / tokens:.2f}")


if __name__ == "__main__":
    main()
