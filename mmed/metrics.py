"""Accuracy, BLEU and ROUGE, and their intervals.

tests/test_metrics.py compares every number with the package that defines it in practice: NLTK, rouge-score,
rouge and SciPy.

DIFFERS: the official scripts print one "BLEU" and one "ROUGE" per run, chosen by editing a constant; the
paper's columns say BLEU-1 and ROUGE-1, the script's defaults are BLEU-4 and the ROUGE-L of `rouge`. Here all
are reported, each under its signature: the same two texts can score 0.45 under one and 0.15 under another.
"""
from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

METRICS_VERSION = 1  # the end of every signature; raise it when the value of a score changes
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000  # of a bootstrap
FEWEST_ITEMS = 6  # for an interval: with fewer items, no two-sided sign-flip test reaches p < 0.05

Tokens = Sequence[str]
Answer = str | Iterable[str]  # letters: "A,C" as MMedBench writes it, or ["A", "C"]
# A word whose case says nothing: not C and c (antigens), nor pairs as in GG, Gg, gg and AaBb (genotypes). Of
# two letters, the one that begins a phrase in sentence case ("As needed"), unless it may be a gamete ("Ab").
CASELESS = re.compile(r"\b(?!(?:(\w)(?i:\1))+\b)(?:\w{3,}|^[A-ZА-Я][ae-zа-я](?= [a-zа-я]))")


def signature(metric: str, variant: str, tokens: str) -> str:
    """Everything that two scores must share to be comparable."""
    return f"{metric}|{variant}|tok:{tokens}|avg:mean-of-items|v{METRICS_VERSION}"


# ---- accuracy and chance -----------------------------------------------------------------------------------

def answer_set(answer: Answer) -> frozenset[str]:
    letters = answer.split(",") if isinstance(answer, str) else answer
    return frozenset(letter.strip() for letter in letters if letter.strip())


def exact_match(prediction: Answer, answer: Answer, options: Mapping[str, str] | None = None) -> bool:
    """Whether exactly the right letters were named; with `options`, those with the same text are one."""
    # MMedLM: the official scorer compares single answers as strings and several as sets.
    # DIFFERS: spaces around letters do not count ("A, B" is "A,B"); there they make a right answer wrong.
    same = option_texts(options or {})
    named, right = (sorted(same.get(x, x) for x in answer_set(letters)) for letters in (prediction, answer))
    return named == right


def option_texts(options: Mapping[str, str]) -> dict[str, str]:
    """Letter -> text, the same for equal options: spacing and the case of words do not count. A blank
    option, which may be a picture, is its letter."""
    return {letter: CASELESS.sub(lambda word: word[0].casefold(), " ".join(text.split())) or letter
            for letter, text in options.items()}


def chance_level(items: Iterable[Mapping], equal_options: str = "keyed") -> float:
    """Expected accuracy of guessing, averaged over items with `options` and `answer_idx`.

    The guesser knows whether one or several answers are right: one of n options, or any set of two or more.
    With equal_options="either", each set that `exact_match` accepts with the options is right.
    """
    chances = []
    for item in items:
        options, right = item["options"], answer_set(item["answer_idx"])
        n, same = len(options), option_texts(options) if equal_options == "either" else {}
        equal, wanted = (Counter(same.get(x, x) for x in letters) for letters in (options, right))
        accepted = math.prod(math.comb(equal[text], count) for text, count in wanted.items())
        chances.append(accepted / (2**n - 1 - n if len(right) > 1 else n))
    return mean(chances)


# ---- BLEU (Papineni et al. 2002; smoothing: Chen & Cherry 2014) --------------------------------------------

def ngrams(tokens: Tokens, n: int) -> Counter:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[start:] for start in range(n))))


def ngram_matches(candidate: Tokens, reference: Tokens, n: int) -> int:
    """Clipped matches: an n-gram counts at most as often as it occurs in the reference."""
    return (ngrams(candidate, n) & ngrams(reference, n)).total()  # & takes the smaller count


def bleu_orders(candidate: Tokens, reference: Tokens) -> list[float]:
    """BLEU-1 .. BLEU-4 of one pair in 0..1: brevity penalty times the geometric mean of the n-gram
    precisions, as NLTK's `sentence_bleu` with uniform weights.

    MMedLM: as in rationale_similarity.py, an order without a match counts as 0.1 match (NLTK's "method1"). A
    candidate too short for an n-gram counts as one n-gram without a match; one without any match scores 0.
    """
    scores: list[float] = []
    log_sum = 0.0
    for n in range(1, 5):
        matches = ngram_matches(candidate, reference, n)
        if not matches and n == 1:
            return [0.0] * 4
        log_sum += math.log((matches or 0.1) / max(1, len(candidate) - n + 1))
        brevity_penalty = min(1.0, math.exp(1 - len(reference) / len(candidate)))
        scores.append(brevity_penalty * math.exp(log_sum / n))
    return scores


# ---- ROUGE (Lin 2004) --------------------------------------------------------------------------------------

class Rouge(NamedTuple):
    precision: float
    recall: float
    f1: float


def rouge_n(
    candidate: Tokens | str, reference: Tokens | str, n: int, counts: Literal["clipped", "set"] = "clipped"
) -> Rouge:
    """ROUGE-`n`: shared n-grams over those of the candidate (precision) and of the reference (recall).

    "clipped": every occurrence of tokens counts (Google's rouge-score). "set": each distinct n-gram counts
    once; takes the raw text, or tokens, which are joined by spaces (the `rouge` package. MMedLM: the official
    script gives it joined tokens for zh and ja).
    """
    if counts == "clipped":
        shared = ngram_matches(candidate, reference, n)
        return overlap_f1(shared, len(candidate) - n + 1, len(reference) - n + 1)
    mine, theirs = (set(ngrams(list(chain(*rouge_sentences(text))), n)) for text in (candidate, reference))
    return overlap_f1(len(mine & theirs), len(mine), len(theirs), slack=1e-8)


def rouge_l(
    candidate: Tokens | str, reference: Tokens | str, variant: Literal["rouge-score", "rouge"] = "rouge-score"
) -> Rouge:
    """ROUGE-L, from the longest common subsequence (LCS).

    "rouge-score": length of the LCS of tokens over both lengths (Google's rougeL). "rouge" (the package
    of that name): both texts are split at every "."; the number of distinct words in the LCS of any pair of
    sentences, over that in each text. (MMedLM: this f1 is what the official script returns.)
    """
    if variant == "rouge-score":
        return overlap_f1(lcs_length(candidate, reference), len(candidate), len(reference))
    mine, theirs = rouge_sentences(candidate), rouge_sentences(reference)
    shared = set().union(*(lcs_words(x, y) for x in theirs for y in mine))
    return overlap_f1(len(shared), len(set().union(*mine)), len(set().union(*theirs)), slack=1e-8)


def overlap_f1(shared: int, candidate_total: int, reference_total: int, slack: float = 0.0) -> Rouge:
    """Precision, recall, 2PR / (P + R + slack). The slack of `rouge` is 1e-8: its best f1 is 0.999999995."""
    if not shared:
        return Rouge(0.0, 0.0, 0.0)
    precision, recall = shared / candidate_total, shared / reference_total
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall + slack))


def lcs_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004).

    The textbook's table has a row for each token of b, in which the length rises by 0 or 1 along a. One
    integer holds a row: bit j is 0 where it rises at a[j]. The next token moves each rise down to the lowest
    match after the previous rise, if any: adding that match to the run of 1 bits carries into the old rise.
    """
    places: defaultdict[str, int] = defaultdict(int)  # token -> bit mask of its places in a
    for place, token in enumerate(a):
        places[token] |= 1 << place
    full = row = (1 << len(a)) - 1
    for token in b:
        matches = row & places[token]
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def lcs_words(x: Tokens, y: Tokens) -> set[str]:
    """The words of the LCS that the `rouge` package picks: walking back, up only if strictly longer."""
    table = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i, word in enumerate(x):
        for j, other in enumerate(y):
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def rouge_sentences(text: Tokens | str) -> list[list[str]]:
    """Split at every "." and at spaces, as `rouge` does: "3.5" is two sentences, a blank one is [""]."""
    text = text if isinstance(text, str) else " ".join(text)
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def pair_scores(candidate: Tokens, reference: Tokens, tokens: str, candidate_text: str | None = None,
                reference_text: str | None = None) -> dict[str, float]:
    """BLEU-1..4 and both definitions of ROUGE-1/2/L f1 by signature; `tokens` names the tokenization.

    MMedLM: the official scores give `rouge` the raw text in en, es, fr and ru (pass the two texts), and
    tokens joined by spaces in zh and ja (leave them out).
    """
    scores = {signature(f"BLEU-{n}", "nltk-method1", tokens): value
              for n, value in enumerate(bleu_orders(candidate, reference), 1)}
    rouge = [*(rouge_n(candidate, reference, n) for n in (1, 2)), rouge_l(candidate, reference)]
    for n, score in zip("12L", rouge):
        scores[signature(f"ROUGE-{n}", "rouge-score-f1", tokens)] = score.f1
    if candidate_text is not None and reference_text is not None:
        candidate, reference, tokens = candidate_text, reference_text, "space"
    rouge = [*(rouge_n(candidate, reference, n, "set") for n in (1, 2)),
             rouge_l(candidate, reference, "rouge")]
    for n, score in zip("12L", rouge):
        scores[signature(f"ROUGE-{n}", "rouge-f1", tokens)] = score.f1
    return scores


# ---- means and intervals -----------------------------------------------------------------------------------

def mean(values: Iterable[float]) -> float:
    """The mean, exactly rounded, so it does not depend on the order of the items; nan for no items."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def macro_mean(values: Sequence[float], groups: Sequence[str]) -> float:
    """The unweighted mean of the groups' means (MMedLM: the paper's Avg. column, groups = languages)."""
    return mean(mean(group) for group in split_by_group(values, groups))


def split_by_group(values: Sequence[float], groups: Sequence[str]) -> list[list[float]]:
    parts = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        parts[group].append(value)
    return [parts[group] for group in sorted(parts)]


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """Interval of a share k of n (Wilson 1927): good for small n, and not empty at k = 0 and k = n."""
    share, square = k / n, Z_95 * Z_95 / n
    centre = (share + square / 2) / (1 + square)
    half = Z_95 / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def macro_interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Interval of the unweighted mean of several accuracies, each given as (right, items).

    The squared distances from each share to its Wilson bounds add up (MOVER, Zou & Donner 2008).
    """
    shares, bounds = [k / n for k, n in counts], [wilson_interval(k, n) for k, n in counts]
    down = [share - low for share, (low, _) in zip(shares, bounds)]
    up = [high - share for share, (_, high) in zip(shares, bounds)]
    average = mean(shares)
    return average - math.hypot(*down) / len(counts), average + math.hypot(*up) / len(counts)


def bootstrap_interval(
    values: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean; with `groups`, of the macro mean, resampled within each.

    (nan, nan) where resampling says nothing: a group of fewer than FEWEST_ITEMS items, or all values equal.
    """
    # sorted, so that the interval does not depend on the order of the items
    parts = [np.sort(part) for part in ([values] if groups is None else split_by_group(values, groups))]
    if min(map(len, parts)) < FEWEST_ITEMS or max(part[-1] - part[0] for part in parts) < 1e-12:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for part in parts:
        for i in range(RESAMPLES):
            means[i] += part[rng.integers(0, len(part), len(part))].mean() / len(parts)
    return tuple(np.quantile(means, [0.025, 0.975]).tolist())
