"""Speed of the MinHash signatures against datasketch: MB/s of one core by CPU time, in turn.

    python benchmarks/data_prep/bench_dedup.py [--megabytes 2] [--rounds 5]

From text to signature of 5-word shingles (8 characters in Chinese) with 128 hashes. Texts are made (Zipf-like
words, no punctuation), so that both sides sign the same sets; the peer gets the cheapest preparation that
finds them, `text.lower().split()`, while ours also folds NFKC and hashes the text for exact copies. Equal
results first: on pairs of known Jaccard similarity each must estimate it within its standard error.
"""
from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.timing import in_turn, machine, print_rates
from data_prep.filters import minhash
from mmed.utils.errors import Parser

HASHES = 128
LETTERS = {"en": "etaoinshrdlucmfw", "ru": "оеаинтсрвлкмдпуя"}
Signer = Callable[[list[str], bool], np.ndarray]  # texts, spaced -> (texts, HASHES)


def shingles(text: str, spaced: bool) -> list[str]:
    if spaced:
        words = text.lower().split()
        return [" ".join(words[i:i + 5]) for i in range(len(words) - 4)]
    text = text.lower()
    return [text[i:i + 8] for i in range(len(text) - 7)]


def ours(texts: list[str], spaced: bool) -> np.ndarray:
    return minhash.signatures(texts).minima


def datasketch(texts: list[str], spaced: bool) -> np.ndarray:
    from datasketch import MinHash

    found = []
    for text in texts:
        signature = MinHash(num_perm=HASHES)
        signature.update_batch([shingle.encode() for shingle in shingles(text, spaced)])
        found.append(signature.hashvalues)
    return np.array(found)


SIGNERS: dict[str, Signer] = {"ours": ours, "datasketch": datasketch}


def make_texts(rng: random.Random, language: str, count: int, words_a_text: int) -> list[list[str]]:
    """Texts as lists of words, in Chinese of characters."""
    if language in LETTERS:
        vocabulary = ["".join(rng.choices(LETTERS[language], k=rng.randint(2, 9))) for _ in range(20_000)]
    else:
        vocabulary = [chr(code) for code in range(0x4E00, 0x5A00)]
    weights = np.cumsum(1 / np.arange(10, len(vocabulary) + 10)).tolist()
    sizes = [max(10, int(rng.lognormvariate(0, 0.6) * words_a_text)) for _ in range(count)]
    return [rng.choices(vocabulary, cum_weights=weights, k=size) for size in sizes]


def check_estimates(language: str, rng: random.Random) -> None:
    """Errors on 300 pairs in standard errors of a MinHash: mean near 0, deviation about 1."""
    space = "" if language == "zh" else " "
    texts, truth = [], []
    for words in make_texts(rng, language, 300, 300):
        other = list(words)
        for _ in range(1 + int(rng.uniform(0, 0.08) * len(words))):
            other[rng.randrange(len(other))] = rng.choice(words)
        texts += [space.join(words), space.join(other)]
        one, two = (set(shingles(text, bool(space))) for text in texts[-2:])
        truth.append(len(one & two) / len(one | two))
    expected = np.array(truth)
    between = (expected > 0) & (expected < 1)
    for name, sign in SIGNERS.items():
        hashes = sign(texts, bool(space))
        errors = (hashes[::2] == hashes[1::2]).mean(axis=1) - expected
        standard = errors[between] / np.sqrt(expected * (1 - expected) / HASHES)[between]
        print(f"{language}, {name}: mean absolute error {np.abs(errors).mean():.4f}, in standard errors "
              f"{standard.mean():+.2f} +- {standard.std():.2f}")
        if abs(standard.mean()) > 0.4 or standard.std() > 1.4:
            raise SystemExit(f"{name}: these are no estimates of a MinHash of these shingles")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=2, help="text per language and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine())
    for language in ("en", "zh"):
        check_estimates(language, random.Random(options.seed))
    for language, words_a_text in (("en", 500), ("en", 100), ("ru", 500), ("zh", 1000)):
        space = "" if language == "zh" else " "
        rng = random.Random(options.seed)
        texts = [space.join(words) for words in make_texts(rng, language, 400, words_a_text)]
        texts *= int(options.megabytes * 1e6 / sum(len(text.encode()) for text in texts)) + 1
        size = sum(len(text.encode()) for text in texts)
        forms = {name: partial(sign, texts, bool(space)) for name, sign in SIGNERS.items()}
        print_rates(f"{language}, {size / len(texts):,.0f} bytes a text", size / 1e6, "MB/s",
                    in_turn(forms, options.rounds))


if __name__ == "__main__":
    main()
