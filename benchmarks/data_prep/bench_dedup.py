"""Speed of the MinHash signatures against datasketch, datatrove and rensa: MB/s per core by CPU time, in
turn, one thread.

    python benchmarks/data_prep/bench_dedup.py [--megabytes 2] [--rounds 5]     (peers: pip install datasketch
    rensa datatrove xxhash
                                                                      regex nltk tokenizers)

From text to signature of 5-word shingles (8 characters in Chinese), 128 hashes for all (datatrove: its
default 112). Texts are made (no punctuation, Zipf-like words) so that every peer's shingles are the same
sets; each peer gets the cheapest preparation that finds them: `text.lower().split()`, its own hashing and
bulk update. Of datatrove's pipeline the word tokenizer (spaCy) is left out, which would cost more than all
the rest; ours folds NFKC as well, and hashes the text for exact copies. Equal results first: on pairs of
known Jaccard similarity each must estimate it within its standard error. A peer that is not installed is
named, and the others are measured.
"""
from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data_prep.filters import minhash

Signer = Callable[[list[str], bool], np.ndarray]  # texts, spaced -> (texts, hashes)
AIMS = {"datasketch": 5.0, "datatrove": 4.0, "rensa": 1.0}


def shingle_texts(text: str, spaced: bool) -> list[str]:
    if spaced:
        words = text.lower().split()
        return [" ".join(words[i:i + 5]) for i in range(len(words) - 4)]
    text = text.lower()
    return [text[i:i + 8] for i in range(len(text) - 7)]


def ours() -> Signer:
    return lambda texts, spaced: minhash.signatures(texts).minima


def datasketch() -> Signer:
    from datasketch import MinHash

    def sign(texts: list[str], spaced: bool) -> np.ndarray:
        found = []
        for text in texts:
            signature = MinHash(num_perm=128)
            signature.update_batch([shingle.encode() for shingle in shingle_texts(text, spaced)])
            found.append(signature.hashvalues)
        return np.array(found)

    return sign


def datatrove() -> Signer:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import create_hash_func

    kernel = MinhashDedupSignature.__new__(MinhashDedupSignature)  # without its word tokenizer
    kernel.config = MinhashConfig()
    kernel.num_hashes = kernel.config.num_buckets * kernel.config.hashes_per_bucket
    kernel._parameters = None
    hash_shingle = create_hash_func(kernel.config.hash_config)

    def sign(texts: list[str], spaced: bool) -> np.ndarray:
        found = []
        for text in texts:
            shingles = np.fromiter(
                [hash_shingle(shingle.encode()) for shingle in shingle_texts(text, spaced)], np.uint64)
            found.append(np.concatenate(kernel.get_signature(shingles.reshape(-1, 1))))
        return np.array(found)

    return sign


def rensa() -> Signer:
    from rensa import RMinHash

    def sign(texts: list[str], spaced: bool) -> np.ndarray:
        found = []
        for text in texts:
            signature = RMinHash(num_perm=128, seed=1)
            signature.update(shingle_texts(text, spaced))
            found.append(signature.digest())
        return np.array(found)

    return sign


def make_texts(rng: random.Random, kind: str, count: int, words_a_text: int) -> list[list[str]]:
    letters = {"en": "etaoinshrdlucmfw", "ru": "оеаинтсрвлкмдпуя"}.get(kind)
    if letters:
        vocabulary = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 9))) for _ in range(20_000)]
    else:
        vocabulary = [chr(code) for code in range(0x4E00, 0x5A00)]
    weights = np.cumsum(1 / np.arange(10, len(vocabulary) + 10))
    return [
        rng.choices(vocabulary,
                    cum_weights=weights.tolist(),
                    k=max(10, int(rng.lognormvariate(0, 0.6) * words_a_text))) for _ in range(count)
    ]


def check_estimates(signers: dict[str, Signer], rng: random.Random) -> None:
    """Each signer's errors on pairs of known similarity, in standard errors of a MinHash of its size: mean
    near 0, deviation at most 1.
    """
    for kind, space in (("en", " "), ("zh", "")):
        texts, truth = [], []
        for words in make_texts(rng, kind, 300, 300):
            other = list(words)
            for _ in range(1 + int(rng.uniform(0, 0.08) * len(words))):
                other[rng.randrange(len(other))] = rng.choice(words)
            texts += [space.join(words), space.join(other)]
            one, two = (set(shingle_texts(text, bool(space))) for text in texts[-2:])
            truth.append(len(one & two) / len(one | two))
        truth = np.array(truth)
        for name, sign in signers.items():
            hashes = sign(texts, bool(space))
            estimate = (hashes[::2] == hashes[1::2]).mean(axis=1)
            score = ((estimate - truth) / np.sqrt(truth * (1 - truth) / hashes.shape[1]))[(truth > 0)
                                                                                          & (truth < 1)]
            print(f"  {kind}  {name:<11} mean absolute error {np.abs(estimate - truth).mean():.4f}, "
                  f"standardised {score.mean():+.2f} +- {score.std():.2f}")
            if abs(score.mean()) > 0.4 or score.std() > 1.4:
                raise SystemExit(
                    f"{name}: the estimates are not those of a MinHash of these shingles; the timing would "
                    f"compare nothing"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes",
                        type=float,
                        default=2,
                        help="text a language and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signers: dict[str, Signer] = {}
    for make in (ours, datasketch, datatrove, rensa):
        try:
            signers[make.__name__] = make()
        except ImportError as error:
            print(f"{make.__name__} is left out: {error}")
    print("Estimates against the true Jaccard similarity, 300 pairs:")
    check_estimates(signers, random.Random(given.seed))
    print(
        f"\nMB/s per core, from text to signature: median of {given.rounds} rounds of CPU time, the signers "
        f"in turn; "
        "times ours / peer in brackets, median and range of the rounds")
    for kind, words_a_text in (("en", 500), ("en", 100), ("ru", 500), ("zh", 1000)):
        space = "" if kind == "zh" else " "
        texts = [
            space.join(words) for words in make_texts(random.Random(given.seed), kind, 400, words_a_text)
        ]
        size = sum(len(text.encode()) for text in texts)
        texts = (texts * (int(given.megabytes * 1e6 / size) + 1))
        size = sum(len(text.encode()) for text in texts)
        seconds: dict[str, list[float]] = {name: [] for name in signers}
        for _ in range(given.rounds):
            for name, sign in signers.items():
                start = time.process_time()
                sign(texts, bool(space))
                seconds[name].append(time.process_time() - start)
        cells = []
        for name, spent in seconds.items():
            ratios = sorted(peer / mine for peer, mine in zip(spent, seconds["ours"]))
            ratio = ""
            if name in AIMS:
                ratio = f" ({np.median(ratios):.1f}x, {ratios[0]:.1f}-{ratios[-1]:.1f})"
            cells.append(f"{name} {size / 1e6 / np.median(spent):.1f}{ratio}")
        print(f"  {kind}, {size / len(texts):,.0f} bytes a text: " + "   ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
