"""The checks of exercises 1 to 4 and 7 (texts, scores, rows), given the student's functions and an rng."""
from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import random
import tempfile
from collections.abc import Callable

from student import Student, Wrong, show

from data_prep.filter_medical import Matcher
from mmed import metrics
from mmed.data import Example, pack
from mmed.languages import get_language
from mmed.tokenizer import train_sentencepiece


def bpe_merges(student: Student, rng: random.Random) -> None:
    """Oracle: sentencepiece itself, on a vocabulary trained on random words."""
    student.expect(["s", "low"], "encode", "slow", {"lo": 0, "ow": 1, "low": 2})
    student.expect(["aa", "a"], "encode", "aaa", {"aa": 0})
    student.expect(["x"], "encode", "x", {"aa": 0})
    student.expect([], "encode", "", {"aa": 0})
    syllables = ["an", "em", "ia", "it", "is", "car", "di", "o", "nephr", "hep", "at", "gastr", "pa", "thy"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 5))) for _ in range(300)]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_sentencepiece([" ".join(words)], folder, 340)
    rank = {piece: int(-score) for piece, score, kind in tokenizer.core.model.pieces
            if kind == 1 and len(piece) > 1}
    for word in rng.sample(words, 40):
        pieces = [tokenizer.piece(i) for i in tokenizer.encode(word)]
        student.expect(pieces, "encode", "▁" + word, rank,
                       shown=f"{'▁' + word!r}, the {len(rank)} ranks of a trained vocabulary")


def medical_filter(student: Student, rng: random.Random) -> None:
    """Oracle: the project's Matcher, on a language made of the terms at hand."""
    student.expect((2, 13 / 18), "medical_numbers", "Infections, and fever!", ["infectio|", "fever", "cough"])
    student.expect((0, 0.0), "medical_numbers", "...", ["fever"])
    student.expect((0, 0.0), "medical_numbers", "feverish", ["fever"])
    stock = ["infectio|", "fever", "cough", "anemi|", "insulin", "hepat|", "surg|", "serum", "tumor|",
             "glucose"]
    stems = [term.removesuffix("|") for term in stock]
    words = [*(stem + end for stem in stems for end in ("", "s", "al")), *("re" + stem for stem in stems),
             "the", "a", "train", "sea", "B12", "of"]

    def written(word: str) -> str:
        return rng.choice([str, str.upper, str.capitalize])(word) + rng.choice([" ", ", ", ". ", "-", "\n"])

    for _ in range(6):
        terms = rng.sample(stock, rng.randint(3, 8))
        texts = ["".join(map(written, rng.choices(words, k=rng.randint(1, 15)))) for _ in range(12)]
        matcher = Matcher(dataclasses.replace(get_language("en"), medical_words=tuple(terms)))
        for text, decision in zip(texts, matcher.judge(texts)):
            student.expect((decision.hits, decision.density), "medical_numbers", text, terms)


def pairs(rng: random.Random, count: int) -> list[tuple[list[str], list[str]]]:
    """Sentences with some words in common, short ones among them."""
    words = "the patient has fever and a cough since two days".split()
    made = []
    for _ in range(count):
        reference = rng.choices(words, k=rng.randint(1, 12))
        candidate = [rng.choice(words) if rng.random() < 0.3 else word
                     for word in reference][:rng.randint(1, 12)]
        made.append((candidate + rng.choices(words, k=rng.randint(0, 3)), reference))
    return made


def bleu(student: Student, rng: random.Random) -> None:
    """Oracles: the project's bleu, and nltk's where it is installed."""
    student.expect(0.402942, "bleu4", "the cat sat".split(), "the cat sat down".split())
    student.expect(0.0, "bleu4", ["yes"], ["no"])
    student.expect(1.0, "bleu4", list("abcdef"), list("abcdef"))
    for candidate, reference in pairs(rng, 60):
        wanted = metrics.bleu_orders(candidate, reference)[-1]
        student.expect(wanted, "bleu4", candidate, reference)
    if importlib.util.find_spec("nltk"):
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

        for candidate, reference in pairs(rng, 20):
            wanted = sentence_bleu([reference], candidate, smoothing_function=SmoothingFunction().method1)
            student.expect(wanted, "bleu4", candidate, reference)


def subsequences(tokens: list[str]) -> set[tuple[str, ...]]:
    return {kept for n in range(len(tokens) + 1) for kept in itertools.combinations(tokens, n)}


def rouge_l(student: Student, rng: random.Random) -> None:
    """Oracles: the project's bit-parallel LCS, and for short pairs every subsequence there is."""
    student.expect((0.75, 0.6, 2 / 3), "rouge_l", "a b c d".split(), "b a c d x".split())
    student.expect((0.0, 0.0, 0.0), "rouge_l", ["yes"], ["no"])
    for candidate, reference in pairs(rng, 80):
        wanted = tuple(metrics.rouge_l(candidate, reference))
        if len(candidate) <= 7 and len(reference) <= 7:
            longest = max(map(len, subsequences(candidate) & subsequences(reference)))
            assert abs(wanted[0] - longest / len(candidate)) < 1e-12, (candidate, reference)
        student.expect(wanted, "rouge_l", candidate, reference)


def label_mask(student: Student, rng: random.Random) -> None:
    """Oracle: the project's pack; and no prompt token may ever be a label."""
    free = {"input_ids": 0, "labels": -100, "document_ids": -1, "positions": 0}

    def wanted(examples: list[tuple[list[int], int]], T: int) -> dict[str, list[int]]:
        row = pack([Example("", ids, prompt) for ids, prompt in examples])
        return {name: getattr(row, name).tolist() + [value] * (T - len(row)) for name, value in free.items()}

    simple = [([1, 11, 12, 21, 22, 2], 3), ([1, 13, 23, 2], 2)]
    student.expect(wanted(simple, 10), "pack", simple, 10)
    for _ in range(40):
        examples = []
        for _ in range(rng.randint(1, 4)):
            n = rng.randint(2, 9)
            examples.append(([rng.randrange(10, 99) for _ in range(n)], rng.randint(1, n - 1)))
        T = sum(len(ids) - 1 for ids, _ in examples) + rng.randint(0, 4)
        got = student.expect(wanted(examples, T), "pack", examples, T)
        targets = sum(len(ids) - prompt for ids, prompt in examples)
        if (supervised := sum(label != -100 for label in got["labels"])) != targets:
            raise Wrong(f"your pack({show(examples)}, {T}) trains {supervised} tokens, but the targets have "
                        f"{targets}")


CHECKS: dict[int, Callable[[Student, random.Random], None]] = {
    1: bpe_merges, 2: medical_filter, 3: bleu, 4: rouge_l, 7: label_mask}
