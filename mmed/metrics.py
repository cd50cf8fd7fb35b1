"""How good an answer or a rationale is, how sure we are of it, and whether one model beats another.

In: token lists, answer letters, or a score per item. Out: plain numbers, or a `Score`, a number that carries its interval and its
signature. In this order: signatures, accuracy, intervals, paired tests, agreement with people, all scores of one rationale. BLEU and
ROUGE themselves are computed in `mmed/overlap.py`. tests/test_metrics.py holds every number to the package that people know: scipy
(`kendall_tau`, `wilson_interval`, `mcnemar`) and those named there.

DIFFERS: the official scripts print one "BLEU" and one "ROUGE" a run, chosen by editing a constant; the paper's columns say
BLEU-1 and ROUGE-1 where the script's defaults are BLEU-4 and the ROUGE-L of `rouge`. We compute all variants side by side,
each under its signature, because the same two texts score 0.45 under one and 0.15 under another.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Scores are asked for here, wherever they are computed.
from mmed.overlap import (  # noqa: F401
    Rouge,
    bleu,
    bleu_from_matches,
    bleu_orders,
    corpus_bleu,
    lcs_length,
    ngram_matches,
    overlap_f1,
    rouge_l,
    rouge_n,
    rouge_package,
)

METRICS_VERSION = 1  # raise it when any number below can change; it ends every signature
Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
RESAMPLES = 2000


# ---- scores that say how they came about -----------------------------------------------------------------------------

def signature(metric: str, variant: str, tokens: str | None = None, average: str = "mean-of-items") -> str:
    """What has to be equal for two numbers to be comparable: metric, definition, tokenisation, how averaged, version.

    >>> signature("BLEU-1", "nltk-method1", tokens="char")
    'BLEU-1|nltk-method1|tok:char|avg:mean-of-items|v1'
    """
    parts = [metric, variant, tokens and f"tok:{tokens}", f"avg:{average}", f"v{METRICS_VERSION}"]
    return "|".join(part for part in parts if part)


class Score(float):
    """A float with its 95 % interval `low`..`high`, its number of items `n` and its `signature`."""

    low: float
    high: float
    n: int
    signature: str

    def __new__(cls, value: float, interval: tuple[float, float] = (math.nan, math.nan), n: int = 0, signature: str = ""):
        score = super().__new__(cls, value)
        score.low, score.high, score.n, score.signature = *interval, n, signature
        return score


def mean(values: Iterable[float]) -> float:
    """The mean, exactly rounded, so that it does not depend on the order of the items; nan for no items."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def macro_mean(values: Sequence[float], groups: Sequence[str]) -> float:
    """The unweighted mean of the groups' means (MMedLM: the paper's Avg. column, groups = languages)."""
    return mean(mean(group) for group in _split(values, groups))


def summarize(values: Sequence[float], signature: str, seed: int, groups: Sequence[str] | None = None) -> Score:
    """One number for a column of item scores: their mean (macro mean over `groups`) with its bootstrap interval."""
    value = mean(values) if groups is None else macro_mean(values, groups)
    return Score(value, bootstrap_interval(values, seed, groups), len(values), signature)


# ---- accuracy and chance ---------------------------------------------------------------------------------------------

def answer_set(answer: str | Iterable[str] | None) -> frozenset[str]:
    """The letters of an answer as MMedBench writes it ("A,C" or ["A", "C"]) or as a parser found it (None: nothing).

    >>> sorted(answer_set("C, A")) == sorted(answer_set(["A", "C"])), answer_set(None)
    (True, frozenset())
    """
    letters = answer.split(",") if isinstance(answer, str) else answer or ()
    return frozenset(letter.strip() for letter in letters if letter.strip())


def exact_match(prediction: str | Iterable[str] | None, answer: str | Iterable[str]) -> bool:
    """Whether exactly the right letters were named, in any order; no partial credit, and no answer is wrong.

    MMedLM: the official scorer compares single answers as strings and several as sets. DIFFERS: spaces around letters do not count
    ("A, B" is "A,B"), which there makes a right answer wrong.
    """
    right = answer_set(answer)
    if not right:
        raise ValueError("an item without a right answer cannot be scored")
    return answer_set(prediction) == right


def accuracy(predictions: Sequence[str | Iterable[str] | None], answers: Sequence[str | Iterable[str]]) -> Score:
    """The share of exact matches among all items (unanswered ones included), with its Wilson interval.

    >>> score = accuracy(["A", "C,A", None, "B"], ["A", ["A", "C"], "D", "A,B"])
    >>> float(score), score.n, score.signature
    (0.5, 4, 'accuracy|exact-set|avg:mean-of-items|v1')
    """
    if len(predictions) != len(answers):
        raise ValueError(f"accuracy: {len(predictions)} predictions but {len(answers)} answers")
    right = sum(map(exact_match, predictions, answers))
    n = len(answers)
    return Score(right / n if n else math.nan, wilson_interval(right, n), n, signature("accuracy", "exact-set"))


def chance_level(items: Iterable[Mapping]) -> float:
    """Expected accuracy of guessing: the mean over items of one over the number of answers a guesser chooses among.

    An item with one right answer and n options has n possible answers. An item with several right answers does not say how many,
    so any set of letters but the empty one may be right: 2^n - 1 answers. The guesser is thus told single or several, as
    the wording of exams tells people; one who is not told would do worse, so this is the higher bar to clear.

    >>> chance_level([{"options": dict.fromkeys("ABCD"), "answer_idx": "A"}, {"options": dict.fromkeys("AB"), "answer_idx": "A,B"}])
    0.29166666666666663
    """
    chances = []
    for item in items:
        options, several = len(item["options"]), len(answer_set(item["answer_idx"])) > 1
        if not options:
            raise ValueError(f"an item without options has no chance level: {item}")
        chances.append(1 / (2**options - 1) if several else 1 / options)
    return mean(chances)


# ---- intervals -------------------------------------------------------------------------------------------------------

def wilson_interval(k: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share k of n (Wilson 1927): good for small n, never outside 0..1, of some width even at k = 0 and k = n.

    >>> [round(bound, 4) for bound in wilson_interval(123, 199)]
    [0.549, 0.6828]
    """
    if not 0 <= k <= n:
        raise ValueError(f"wilson_interval: expected 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0  # nothing is known
    share, square = k / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def macro_interval(counts: Mapping[str, tuple[int, int]], z: float = Z_95) -> tuple[float, float]:
    """Interval of the unweighted mean of several accuracies, {language: (right, items)}: 199 items weigh as much as 3,426.

    The distances from each share to its Wilson bounds add up as squares (MOVER, Zou & Donner 2008): no seed, and some width
    even where a language is all right or all wrong, where resampling would have none.
    """
    if not counts:
        return 0.0, 1.0
    shares, down, up = [], 0.0, 0.0
    for k, n in counts.values():
        low, high = wilson_interval(k, n, z)
        shares.append(k / n if n else math.nan)
        down += (shares[-1] - low) ** 2
        up += (high - shares[-1]) ** 2
    centre = mean(shares)
    return centre - math.sqrt(down) / len(shares), centre + math.sqrt(up) / len(shares)


def bootstrap_interval(
    values: Sequence[float],
    seed: int,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap of the mean; with `groups`, of the macro mean, each group resampled in itself.

    The values are sorted first: the interval depends on them and on the seed, not on the order of the items.
    """
    if not len(values):
        return math.nan, math.nan
    means = _resampled_means(values, seed, groups, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values: Sequence[float], seed: int, groups: Sequence[str] | None, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [values] if groups is None else _split(values, groups)
    total = np.zeros(resamples)
    for part in parts:
        part = np.sort(np.asarray(part, dtype=np.float64))
        block = max(1, 2**20 // len(part))  # rows at a time: memory stays at some MB for any number of items
        for start in range(0, resamples, block):
            stop = min(start + block, resamples)
            total[start:stop] += part[rng.integers(0, len(part), (stop - start, len(part)))].mean(axis=1)
    return total / len(parts)


def _split(values: Sequence[float], groups: Sequence[str]) -> list[list[float]]:
    """The values of each group, groups in the order of their names."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} group names")
    parts: dict[str, list[float]] = {}
    for value, group in zip(values, groups):
        parts.setdefault(group, []).append(value)
    return [parts[group] for group in sorted(parts)]


# ---- two models on the same items ------------------------------------------------------------------------------------

def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of "a and b are right equally often", from right or wrong per item, the items in the same order.

    Only items where exactly one model is right tell them apart; if neither is better each goes either way like a coin.

    >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
    0.03125
    """
    _check_paired("mcnemar", a, b)
    only_a = sum(bool(x) and not y for x, y in zip(a, b))
    only_b = sum(bool(y) and not x for x, y in zip(a, b))
    n, k = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    tail, ways = 0, 1  # ways = n over i, in whole numbers: exact for any n
    for i in range(k + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
    return 2 * tail / 2**n


class Difference(NamedTuple):
    difference: float  # mean of a minus mean of b
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    seed: int,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Difference:
    """Mean (macro mean over `groups`) of a - b on the same items, with its interval and a two-sided p.

    p is the share of resamples that lie as far from the difference as 0 does, one more counted in each (Davison & Hinkley
    1997; sacrebleu does the same), so it is never 0.
    """
    _check_paired("paired_bootstrap", a, b)
    if not len(a):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    gaps = [x - y for x, y in zip(a, b)]
    difference = mean(gaps) if groups is None else macro_mean(gaps, groups)
    means = _resampled_means(gaps, seed, groups, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # rounding in the last digits must not decide whether a resample is as far away as 0 is
    as_far = np.count_nonzero(np.abs(means - difference) >= abs(difference) - 1e-12)
    return Difference(difference, float(low), float(high), (as_far + 1) / (resamples + 1))


def _check_paired(name: str, a: Sequence, b: Sequence) -> None:
    if len(a) != len(b):
        raise ValueError(f"{name}: {len(a)} and {len(b)} items; both models need a result for each item, in the same order")


# ---- do metrics agree with people? -----------------------------------------------------------------------------------

def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b: pairs ordered alike minus pairs ordered oppositely, over the pairs not tied in x and in y.

    nan if one side is constant, holds a nan, or has fewer than two points. (MMedLM: metric against human rating, about 36 points.)

    >>> kendall_tau([1, 2, 3, 4], [1, 3, 2, 4])
    0.6666666666666666
    """
    _check_paired("kendall_tau", x, y)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    x, y = (np.unique(side, return_inverse=True)[1].ravel() for side in (x, y))  # ranks, so that infinities compare too
    balance = untied_x = untied_y = 0
    for i in range(len(x) - 1):
        sign_x, sign_y = np.sign(x[i + 1 :] - x[i]), np.sign(y[i + 1 :] - y[i])
        balance += int(sign_x @ sign_y)
        untied_x += int(np.count_nonzero(sign_x))
        untied_y += int(np.count_nonzero(sign_y))
    if not untied_x or not untied_y:
        return math.nan
    return balance / math.sqrt(untied_x * untied_y)


def regression_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line y = slope * x + intercept; nan if x is constant or has fewer than two points.

    >>> regression_slope([1, 2, 3], [2, 4, 6])
    2.0
    """
    _check_paired("regression_slope", x, y)
    if len(x) < 2 or min(x) == max(x):
        return math.nan
    centre_x, centre_y = mean(x), mean(y)
    return math.fsum((u - centre_x) * (v - centre_y) for u, v in zip(x, y)) / math.fsum((u - centre_x) ** 2 for u in x)


# ---- all scores of one rationale -------------------------------------------------------------------------------------

def pair_scores(
    candidate: Sequence[str],
    reference: Sequence[str],
    tokens: str,
    candidate_text: str | None = None,
    reference_text: str | None = None,
) -> dict[str, float]:
    """BLEU-1..4 and ROUGE-1/2/L (f1, both definitions) of one pair under their signatures; `tokens` names the tokenisation.

    The official scores give the `rouge` package raw text for en, es, fr and ru, and tokens joined by spaces for zh and ja:
    pass the texts for the first, leave them out for the second.

    >>> list(pair_scores(["a"], ["a"], tokens="char"))[4]
    'ROUGE-1|rouge-score-f1|tok:char|avg:mean-of-items|v1'
    """
    if (candidate_text is None) != (reference_text is None):
        raise ValueError("pair_scores: give both texts or neither")
    matches = ngram_matches(candidate, reference, 4)
    scores = {}
    for n, value in enumerate(bleu_from_matches(matches, len(candidate), len(reference), floor=0.1), 1):
        scores[signature(f"BLEU-{n}", "nltk-method1", tokens)] = value
    shared = {"ROUGE-1": (matches[0], 0), "ROUGE-2": (matches[1], 1), "ROUGE-L": (lcs_length(candidate, reference), 0)}
    for name, (count, fewer) in shared.items():
        rouge = overlap_f1(count, len(candidate) - fewer, len(reference) - fewer)
        scores[signature(name, "rouge-score-f1", tokens)] = rouge.f1
    sides = (candidate, reference) if candidate_text is None else (candidate_text, reference_text)
    for name, rouge in rouge_package(*sides).items():
        scores[signature(name, "rouge-f1", tokens if candidate_text is None else "space")] = rouge.f1
    return scores
