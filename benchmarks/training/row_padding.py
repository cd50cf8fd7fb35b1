"""How token streams fill the rows of continued pre-training: padding, tokens left out, documents that are
split.

    python benchmarks/training/row_padding.py streams/en streams/zh --sequence_length 512 2048 4096
"""
from __future__ import annotations

import argparse

import numpy as np

from mmed.data import PretrainRows, TokenStream


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
    return 1 - used / (rows.rows_per_epoch * rows.T), wrong, split


def main() -> None:
    parser = argparse.ArgumentParser(description="Padding of training rows, and tokens left out.")
    parser.add_argument("streams", nargs="+", help="names of token streams")
    parser.add_argument("--sequence_length", nargs="+", type=int, default=[512, 2048, 4096])
    options = parser.parse_args()
    streams = [TokenStream(name) for name in options.streams]
    print(f"{sum(s.documents for s in streams):,} documents of {sum(s.tokens for s in streams):,} tokens")
    for length in options.sequence_length:
        rows = PretrainRows(streams, length, seed=1)
        padding, wrong, split = measure(rows)
        print(
            f"rows of {length:5}: {rows.rows_per_epoch:6,} rows, {padding:.2%} padding, {wrong} tokens "
            f"cropped or repeated, {split:,} documents split"
        )


if __name__ == "__main__":
    main()
