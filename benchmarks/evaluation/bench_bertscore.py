"""Speed of BERTScore against the bert-score package on the same pairs: seconds of CPU time (on a GPU: of wall
time), in turn, medians and ratio.

    python benchmarks/evaluation/bench_bertscore.py [--model FOLDER --layer 9] [--results FOLDER] [--pairs
    192] [--rounds 3] [--threads 1]

Without --model an encoder with random weights is made (multilingual BERT's shape made smaller: speed depends
on shapes, not on values); without --results the pairs are made: rationales of some 200 pieces, of very
different lengths, spaced and unspaced. F1 is compared first (1e-5): any difference ends the run. Both get one
call for all pairs, model at hand; each round times both once, so a load on the machine meets both. bert-score
pads a batch of 64 texts, sorted by their spaces; ours sorts by pieces and fills small batches.
"""
from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mmed.evaluation.bertscore import Scorer
from mmed.evaluation.results import load_results
from mmed.utils.errors import UserError, main_guard, require_extra

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def made_pairs(count: int) -> tuple[list[str], list[str]]:
    """Candidate and reference share half of their words; one in three is written without spaces."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(3, 9))) for _ in range(2000)]
    ideographs = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    candidates, references = [], []
    for number in range(count):
        size = min(450, max(8, int(rng.lognormvariate(5.0, 0.6))))
        unspaced = number % 3 == 0
        stock = ideographs if unspaced else words
        reference = rng.choices(stock, k=size if unspaced else max(4, size // 3))
        candidate = [
            word if rng.random() < 0.5 else rng.choice(stock)
            for word in reference[:rng.randint(len(reference) // 2, len(reference))]
        ]
        candidates.append(("" if unspaced else " ").join(candidate))
        references.append(("" if unspaced else " ").join(reference))
    return candidates, references


def stored_pairs(folder: str, count: int) -> tuple[list[str], list[str]]:
    _, rows = load_results(folder)
    pairs = [(row["rationale"], row["doc"]["rationale"]) for row in rows
             if row["mode"] == "rationale" and row["scores"] and row["rationale"].strip()]
    if not pairs:
        raise UserError(f"{folder}: no rationales in it")
    return [list(side) for side in zip(*pairs[:count])]


def made_model(folder: str, texts: list[str]) -> int:
    """A random encoder with a vocabulary of pieces of these texts, in transformers' files; returns the layer
    to compare.
    """
    transformers = require_extra("transformers", "test")
    characters = sorted({c for text in texts for c in text if c != " "})
    syllables = sorted({
        word[i:i + 3]
        for text in texts
        for word in text.split() if len(word) < 12 for i in range(0, len(word), 3)
    })
    pieces = list(
        dict.fromkeys([
            *MARKS, *characters, *("##" + c for c in characters), *syllables, *("##" + s for s in syllables)
        ]))
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(pieces),
                                     hidden_size=384,
                                     num_hidden_layers=6,
                                     num_attention_heads=6,
                                     intermediate_size=1536)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab={piece: i
                                      for i, piece in enumerate(pieces)},
                               do_lower_case=False,
                               model_max_length=512).save_pretrained(folder)
    return 5


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    require_extra("bert_score", "test")
    from bert_score import BERTScorer

    candidates, references = stored_pairs(options.results, options.pairs) if options.results else made_pairs(
        options.pairs)
    with tempfile.TemporaryDirectory() as made:
        folder, layer = options.model or made, options.layer
        if not options.model:
            layer = made_model(made, candidates + references)
        ours = Scorer(folder, layer, device=options.device)
        theirs = BERTScorer(model_type=str(folder), num_layers=ours.layer, device=options.device)
        scorers = {
            "bert-score": lambda: theirs.score(candidates, references)[2].tolist(),
            "ours": lambda: ours(candidates, references).f1
        }
        lengths = [len(ours.tokenizer.encode(text)) for text in candidates + references]
        a, b = (score() for score in scorers.values())
        worst = max(abs(x - y) for x, y in zip(a, b))
        print(
            f"{len(candidates)} pairs ({'given' if options.results else 'made'}), {min(lengths)} to "
            f"{max(lengths)} pieces a text, mean "
            f"{statistics.mean(lengths):.0f}; {options.threads} threads on {options.device}; largest "
            f"difference of F1: {worst:.1e}"
        )
        if worst > 1e-5:
            raise SystemExit("F1 differs by more than 1e-5")
        clock = time.process_time if options.device == "cpu" else time.perf_counter
        seconds: dict[str, list[float]] = {name: [] for name in scorers}
        for _ in range(options.rounds):
            for name, score in scorers.items():
                start = clock()
                score()
                seconds[name].append(clock() - start)
    for name, times in seconds.items():
        print(
            f"{name:12}{statistics.median(times):8.2f} s   "
            f"{len(candidates) / statistics.median(times):8.1f} pairs/s   (best {min(times):.2f}, worst "
            f"{max(times):.2f})"
        )
    ratio = statistics.median(x / y for x, y in zip(seconds["bert-score"], seconds["ours"]))
    print(f"ours is {ratio:.2f} times as fast (median of the rounds' ratios)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="encoder (default: a made one)")
    parser.add_argument("--layer", type=int, help="of --model (default: bert-score's choice)")
    parser.add_argument("--results",
                        metavar="FOLDER",
                        help="result folder with rationales (default: made pairs)")
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    run(options)


if __name__ == "__main__":
    main_guard(main)
