"""Documents to token streams against the official form, and two processes against one.

    python benchmarks/data_prep/bench_streams.py [--megabytes 4] [--rounds 3]

peer     the official script: a Hugging Face tokenizer, document by document, cut into windows of 2,048 with
         stride 1,536, one .npy a
         window. Ours: data_prep.tokenize_corpus, with packing and counting. The ids are compared first. CPU
         time of one thread, in turn.
workers  wall time of data_prep.tokenize_corpus on 8 shards with 1 and with 2 processes (a quiet machine is
         needed for this one).

The texts are made (bench_tokenizer's words), half English and half Chinese letters.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tokenization"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from bench_tokenizer import llama_json, made_texts

from data_prep.tokenize_corpus import tokenize_corpus
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import main_guard

WINDOW, STRIDE = 2048, 1536


def write_shards(folder: Path, megabytes: float, shards: int) -> list[str]:
    """Files of JSONL with `megabytes` of text in all; returns the texts."""
    folder.mkdir(parents=True)
    texts = [
        text for pair in zip(made_texts("en", int(megabytes * 5e5)), made_texts("zh", int(megabytes * 5e5)))
        for text in pair
    ]
    for shard in range(shards):
        with open(folder / f"{shard}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"text": text, "id": f"{shard}-{i}"}, ensure_ascii=False) + "\n"
                for i, text in enumerate(texts[shard::shards]))
    return texts


def official(texts: list[str], tokenizer, out: Path) -> list[list[int]]:
    """A .npy of each window, the last one right-aligned, as the official tokenize.py leaves them."""
    out.mkdir()
    ids, number = [], 0
    for text in texts:
        tokens = tokenizer.encode(text).ids
        ids.append(tokens)
        starts = [*range(0, max(1, len(tokens) - WINDOW), STRIDE)]
        for start in starts:
            np.save(out / f"{number}.npy", np.array(tokens[start:start + WINDOW]))
            number += 1
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        texts = write_shards(root / "raw", options.megabytes, 1)
        size = sum(len(text.encode()) for text in texts) / 1e6
        train_sentencepiece(texts[:200], root / "tokenizer", 8000)
        peer = llama_json(root / "tokenizer" / "tokenizer.model")
        times: dict[str, list[float]] = {"ours": [], "official form": []}
        for number in range(options.rounds):
            start = time.process_time()
            tokenize_corpus([root / "raw"], root / "tokenizer", root / f"stream{number}")
            times["ours"].append(time.process_time() - start)
            start = time.process_time()
            ids = official(texts, peer, root / f"windows{number}")
            times["official form"].append(time.process_time() - start)
        stream = TokenStream(root / "stream0")
        ends, flat = stream.ends.astype(int), stream.ids
        for document, (begin, end) in enumerate(zip([0, *ends[:-1]], ends)):
            got = flat[begin:end].tolist()
            if got[1:-1] != ids[document] and got[:-1] != ids[document]:
                raise SystemExit(f"document {document}: ids differ")
        for name, seconds in times.items():
            print(f"{name:14} {size / statistics.median(seconds):6.1f} MB/s")
        ratios = [b / a for a, b in zip(times["ours"], times["official form"])]
        print(
            f"ratio {statistics.median(ratios):.1f}x ({min(ratios):.1f}-{max(ratios):.1f}), {len(texts):,} "
            f"documents, ids equal"
        )

        write_shards(root / "shards", 4 * options.megabytes, 8)
        wall: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for workers in wall:
                start = time.perf_counter()
                tokenize_corpus([root / "shards"],
                                root / "tokenizer",
                                root / f"workers{workers}-{number}",
                                workers=workers)
                wall[workers].append(time.perf_counter() - start)
        ratios = [one / two for one, two in zip(wall[1], wall[2])]
        print(
            f"2 processes against 1: {statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}) "
            f"by wall time"
        )


if __name__ == "__main__":
    main_guard(main)
