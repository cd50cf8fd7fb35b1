"""Documents to token streams against the official form, by CPU time, in turn.

    python benchmarks/data_prep/bench_streams.py [--megabytes 4] [--rounds 3]

Theirs: a Hugging Face tokenizer, document by document, cut into windows of 2,048 with stride 1,536, one .npy
a window. Ours: data_prep.tokenize_corpus, with packing and counting. The texts are made, half English and
half Chinese letters; the ids are compared first.
"""
from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.timing import in_turn, machine, print_rates
from benchmarks.tokenization.bench_tokenizer import llama_json, made_texts
from data_prep.tokenize_corpus import tokenize_corpus
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import Parser

WINDOW, STRIDE = 2048, 1536


def official(texts: list[str], tokenizer, out: Path) -> None:
    """A .npy of each window."""
    out.mkdir()
    number = 0
    for text in texts:
        ids = tokenizer.encode(text).ids
        for start in range(0, max(1, len(ids) - WINDOW), STRIDE):
            np.save(out / f"{number}.npy", np.array(ids[start:start + WINDOW]))
            number += 1


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    half = int(options.megabytes * 5e5)
    texts = [*made_texts("en", half), *made_texts("zh", half)]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        lines = [json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n"
                 for number, text in enumerate(texts)]
        (root / "raw.jsonl").write_text("".join(lines), encoding="utf-8")
        train_sentencepiece(texts[::10], root / "tokenizer", 8000)
        peer = llama_json(root / "tokenizer" / "tokenizer.model")
        tokenize_corpus([root / "raw.jsonl"], root / "tokenizer", root / "stream")
        stream = TokenStream(root / "stream")
        ends, ids = stream.ends.astype(int), stream.ids
        for text, begin, end in zip(texts, [0, *ends[:-1]], ends, strict=True):
            assert peer.encode(text).ids in (ids[begin + 1:end - 1].tolist(), ids[begin:end - 1].tolist())
        folders = (root / f"round{number}" for number in itertools.count())
        times = in_turn({"ours": lambda: tokenize_corpus([root / "raw.jsonl"], root / "tokenizer",
                                                         next(folders)),
                         "official form": lambda: official(texts, peer, next(folders))}, options.rounds)
        print(machine())
        print_rates("documents to streams", sum(map(len, map(str.encode, texts))) / 1e6, "MB/s", times)


if __name__ == "__main__":
    main()
