"""BLEU and ROUGE against the packages they equal: the same pairs, in turn, on one thread by CPU time.

    python benchmarks/evaluation/bench_metrics.py [--pairs 200] [--rounds 7]

Pairs are made, the same on every machine: 40 to 120 words of a Zipf-like vocabulary, the candidate of spans
copied from the reference among words of its own. "rationale" pairs share about as much as a fine-tuned
model's rationale shares with its reference (BLEU-1 about 0.45 in the paper), "near copy" pairs nearly
everything, "unrelated" only common words. All scores are compared first (1e-12).
"""
from __future__ import annotations

import random
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janome.tokenizer import Tokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge import Rouge

from benchmarks.timing import in_turn, machine, print_head, print_row, ratio
from mmed import metrics
from mmed.languages import get_language
from mmed.utils.errors import Parser

COPIED = {"rationale": 0.45, "near copy": 0.95, "unrelated": 0.0}  # share of spans taken from the reference
METHOD1 = SmoothingFunction().method1
ROUGE_L, ROUGE_ALL = Rouge(metrics=["rouge-l"]), Rouge()


def make_pairs(kind: str, count: int) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(f"{kind} 1")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(3000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]

    def words(size: int) -> list[str]:
        """A sentence has about 18 words."""
        drawn = rng.choices(vocabulary, weights, k=size)
        return " ".join(word + " ." if rng.random() < 1 / 18 else word for word in drawn).split()

    pairs = []
    for _ in range(count):
        reference = words(rng.randint(40, 120))
        candidate, size = [], rng.randint(40, 120)
        while len(candidate) < size:
            span = rng.randint(2, 8)
            if rng.random() < COPIED[kind]:
                start = len(candidate) if kind == "near copy" else rng.randrange(len(reference))
                start %= len(reference)
                candidate += reference[start : start + span]
            else:
                candidate += words(span)
        pairs.append((candidate[:size], reference))
    return pairs


def close(ours, theirs) -> bool:
    if isinstance(ours, str):
        return ours == theirs
    if isinstance(ours, (int, float)):
        return abs(ours - theirs) <= 1e-12 * max(1.0, abs(theirs))
    return len(ours) == len(theirs) and all(map(close, ours, theirs))


def compare(label: str, peer: str, ours: Callable, theirs: Callable, items: Sequence, rounds: int) -> None:
    """A row of the table, once every score is equal."""
    for item in items:
        assert close(ours(*item), theirs(*item)), f"{label}: {ours(*item)}, {peer} {theirs(*item)} on {item}"
    times = in_turn({"ours": lambda: [ours(*item) for item in items],
                     "peer": lambda: [theirs(*item) for item in items]}, rounds)
    microseconds = (f"{1e6 * statistics.median(spent) / len(items):.1f}" for spent in times.values())
    print_row(label, peer, *microseconds, ratio(times, "ours", "peer"))


# ------------------------------------------------------------------------------------ calls of both sides

def nltk_bleu(candidate: list[str], reference: list[str]) -> float:
    return sentence_bleu([reference], candidate, smoothing_function=METHOD1)


def rouge_package(scorer: Rouge, candidate: str, reference: str) -> list[tuple[float, float, float]]:
    scores = scorer.get_scores(candidate, reference)[0]
    return [(part["p"], part["r"], part["f"]) for part in scores.values()]


def our_bleu(candidate: list[str], reference: list[str]) -> float:
    return metrics.bleu_orders(candidate, reference)[-1]


def our_rouge(candidate: str, reference: str) -> list:
    return [*(metrics.rouge_n(candidate, reference, n, "set") for n in (1, 2)),
            metrics.rouge_l(candidate, reference, "rouge")]


def japanese_texts() -> list[tuple[str]]:
    language, rng = get_language("ja"), random.Random(1)
    sentences = [language.medical_sentence, language.ordinary_sentence,
                 "患者は発熱と咳を訴えた。", "治療には薬を使う。"]
    return [("".join(rng.sample(sentences, 3)),) for _ in range(8)]


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine())
    print_head("score, pairs", "peer", "ours, microseconds a pair", "peer", "ratio")
    for kind in COPIED:
        pairs = make_pairs(kind, options.pairs)
        texts = [(" ".join(candidate), " ".join(reference)) for candidate, reference in pairs]
        compare(f"BLEU-4, {kind}", "NLTK", our_bleu, nltk_bleu, pairs, options.rounds)
        # milliseconds a pair: a third of the pairs
        texts = texts[:max(1, len(texts) // 3)]
        compare(f"ROUGE-L, {kind}", "rouge", lambda *pair: [metrics.rouge_l(*pair, variant="rouge")],
                lambda *pair: rouge_package(ROUGE_L, *pair), texts, options.rounds)
        compare(f"ROUGE-1/2/L, {kind}", "rouge", our_rouge,
                lambda *pair: rouge_package(ROUGE_ALL, *pair), texts, options.rounds)
    # ours keeps one tokenizer, the official script makes one for every text
    compare("Japanese words", "janome per text", get_language("ja").official_words,
            lambda text: list(Tokenizer(wakati=True).tokenize(text)), japanese_texts(), options.rounds)


if __name__ == "__main__":
    main()
