"""How much two token lists have in common: BLEU, ROUGE and the longest common subsequence, on bit masks.

In: lists of tokens (or raw text for the variants of the `rouge` package); splitting a text into tokens is the work of
`mmed/languages`. Out: plain numbers. In order: n-grams and subsequences, BLEU, ROUGE. `mmed/metrics.py` gives them their signatures.
BLEU: Papineni et al. 2002; smoothing: Chen & Cherry 2014. ROUGE: Lin 2004. Bit-parallel LCS: Hyyrö 2004.
Every score equals the package that people know to 1e-12, and tests/test_metrics.py holds that: nltk (`bleu`), sacrebleu
(`corpus_bleu`), rouge-score and rouge (`rouge_n`, `rouge_l`).
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# ---- n-grams and common subsequences as bit masks --------------------------------------------------------------------
#
# A Python integer is a set of positions: bit p of masks[token] says that the token stands at position p. For the reference
# "the cat the dog":  masks = {the: 0b0101, cat: 0b0010, dog: 0b1000}.  If E holds the positions where an n-gram of the
# candidate ends, (E << 1) & masks[next token] holds the ends of the (n+1)-gram. One shift, no tuple is ever built.

_BITS = [1 << position for position in range(1024)]  # sharing the powers of two makes a third of the speed for short texts


def _positions(tokens: Sequence[str]) -> dict[str, int]:
    """token -> bit mask of the positions at which it stands."""
    bits = _BITS if len(tokens) <= len(_BITS) else [1 << position for position in range(len(tokens))]
    masks = dict.fromkeys(tokens, 0)
    for token, bit in zip(tokens, bits):
        masks[token] |= bit
    return masks


def ngram_matches(candidate: Sequence[str], reference: Sequence[str], max_order: int) -> list[int]:
    """Clipped matches of order 1..max_order: sum over distinct n-grams of min(count in candidate, count in reference).

    >>> ngram_matches("the the the cat".split(), "the cat the dog".split(), 3)
    [3, 1, 0]
    """
    _check_tokens(candidate, reference)
    if max_order > 4:
        counts = [[Counter(zip(*(text[i:] for i in range(n)))) for text in (candidate, reference)] for n in range(1, max_order + 1)]
        return [(ours & theirs).total() for ours, theirs in counts]
    masks = _positions(reference)
    unused = masks.copy()  # occurrences in the reference that no token of the candidate has used up yet
    unigrams, bigrams, trigrams, fourgrams = 0, [], [], []  # each n-gram found, known by the set of its ends
    ends1 = ends2 = ends3 = 0  # of the 1-, 2- and 3-gram that stop at the token before
    for token in candidate:
        if token in masks:
            here = masks[token]
            if free := unused[token]:
                unigrams += 1
                unused[token] = free & free - 1  # one bit less
            if ends1 and (two := ends1 << 1 & here):
                bigrams.append(two)
                if ends2 and (three := ends2 << 1 & here):
                    trigrams.append(three)
                    if ends3 and (four := ends3 << 1 & here):
                        fourgrams.append(four)
                    ends3 = three
                else:
                    ends3 = 0
                ends2 = two
            else:
                ends2 = 0  # and ends3 is not read before a trigram has set it
            ends1 = here
        else:
            ends1 = 0
    return [unigrams, _clip(bigrams), _clip(trigrams), _clip(fourgrams)][:max_order]


def _clip(found: list[int]) -> int:
    """How many of the n-grams found remain if each counts no more often than it has ends in the reference."""
    hits = len(found)
    if len(set(found)) < hits:  # different n-grams of one order end at different places, so equal masks are repeats
        unused: dict[int, int] = {}
        for ends in found:
            free = unused.get(ends, ends)
            unused[ends] = free & free - 1
            hits -= not free
    return hits


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit j of `row` is 0 where the table of the textbook steps up from column j to j + 1; an addition moves all steps of
    a row at once, for its carry runs from a match to the next step.

    >>> lcs_length("a b c d".split(), "b a c d x".split())
    3
    """
    _check_tokens(a, b)
    masks = _positions(a)
    full = row = (1 << len(a)) - 1
    for token in b:
        if token in masks:
            matches = row & masks[token]
            row = (row + matches) | (row - matches)  # bits above `full` are carry and never come back down
    return len(a) - (row & full).bit_count()


def _lcs_tokens(reference: Sequence[str], masks: Mapping[str, int], width: int) -> set[str]:
    """The tokens of the one LCS that the `rouge` package finds; `masks`, `width`: positions and length of the candidate.

    Many subsequences can be the longest; the package walks back from the last cell (i, j) of table T by this rule: if the
    tokens match, take them; else go up if T[i-1, j] > T[i, j-1], else left. Without a match the larger of these two is
    T[i, j] itself, so "up" means that row i steps up at column j: the walk runs left to the nearest column that matches or steps.
    It may as well run on to the nearest column c that steps. Had it taken a match at j before that, T[i-1, j-1] is
    T[i, c] - 1, so T[i-1, c] is less than T[i, c]: then c is a match too, the same token is taken, and in row i-1 the next
    step lies left of c either way. So the steps alone lead the way, and rows without a match (they repeat the row above) can go.
    """
    full = row = (1 << width) - 1
    rows = []
    for token in reference:
        if token in masks:
            mask = masks[token]
            matches = row & mask
            row = (row + matches | row - matches) & full
            rows.append((token, mask, row ^ full))
    found, below = set(), full  # below: the columns that are left
    for token, mask, steps in reversed(rows):
        steps &= below
        if not steps:
            break
        column = 1 << steps.bit_length() - 1  # the highest bit: the nearest step
        if mask & column:
            found.add(token)
            below = column - 1
    return found


def _check_tokens(*texts: Sequence[str]) -> None:
    if any(isinstance(text, str) for text in texts):
        raise TypeError("expected lists of tokens, got a str: split it into words or characters first (mmed.languages)")


# ---- BLEU ------------------------------------------------------------------------------------------------------------

def bleu(candidate: Sequence[str], reference: Sequence[str], max_order: int = 4, smoothing: str = "method1") -> float:
    """BLEU-`max_order` of one pair, 0..1, as nltk's `sentence_bleu` with uniform weights.

    brevity penalty x exp(mean over n of log(matches_n / n-grams_n)). Smoothing "method1" counts 0.1 match where there is none
    (MMedLM: rationale_similarity.py), "none" makes the score 0. No common token, or an empty side: 0.
    A candidate too short for an n-gram counts as one n-gram without a match, so BLEU-4 of three equal tokens is below 1.

    >>> round(bleu("the cat sat".split(), "the cat sat down".split(), max_order=1), 6)
    0.716531
    """
    return bleu_orders(candidate, reference, max_order, smoothing)[-1]


def bleu_orders(
    candidate: Sequence[str], reference: Sequence[str], max_order: int = 4, smoothing: str = "method1"
) -> list[float]:
    """BLEU-1, BLEU-2, ... BLEU-`max_order` of one pair, from one count of n-grams."""
    if smoothing not in ("method1", "none"):
        raise ValueError(f"smoothing {smoothing!r}: expected 'method1' or 'none' (corpus_bleu has 'exp' and 'none')")
    if max_order < 1:
        raise ValueError(f"max_order: expected 1 or more, got {max_order}")
    matches = ngram_matches(candidate, reference, max_order)
    return bleu_from_matches(matches, len(candidate), len(reference), 0.1 if smoothing == "method1" else 0.0)


def bleu_from_matches(matches: list[int], length: int, reference_length: int, floor: float) -> list[float]:
    scores = [0.0] * len(matches)
    if not matches[0]:
        return scores
    penalty = 1.0 if length > reference_length else math.exp(1 - reference_length / length)
    logs = 0.0
    for n, count in enumerate(matches):
        count = count or floor
        if not count:
            break  # nltk's "none" goes on with the smallest float, which is 0 to 70 digits
        logs += math.log(count / max(1, length - n))
        scores[n] = penalty * math.exp(logs / (n + 1))
    return scores


def corpus_bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[str]], max_order: int = 4, smoothing: str = "exp"
) -> float:
    """BLEU of a whole corpus, 0..100, as sacrebleu's `corpus_bleu` with tokenize="none": counts are added up before dividing.

    Smoothing "exp" (sacrebleu's default) counts 1/2, 1/4, ... match for the first, second, ... order without one; "none" makes
    the score 0. It is not the mean of `bleu`, and not on its scale: sacrebleu's readers expect 0..100.

    >>> round(corpus_bleu(["a b c d e".split()], ["a b c d f".split()]), 4)
    66.874
    """
    if smoothing not in ("exp", "none"):
        raise ValueError(f"smoothing {smoothing!r}: expected 'exp' or 'none'")
    if len(candidates) != len(references):
        raise ValueError(f"corpus_bleu: {len(candidates)} candidates but {len(references)} references")
    matches, totals = [0] * max_order, [0] * max_order
    for candidate, reference in zip(candidates, references):
        for n, count in enumerate(ngram_matches(candidate, reference, max_order)):
            matches[n] += count
            totals[n] += max(0, len(candidate) - n)
    if not matches[0] or not totals[-1]:
        return 0.0
    logs, share = 0.0, 1.0
    for count, total in zip(matches, totals):
        if not count:
            if smoothing == "none":
                return 0.0
            share /= 2
        logs += math.log(100 * (count or share) / total)
    candidate_length, reference_length = sum(map(len, candidates)), sum(map(len, references))
    penalty = 1.0 if candidate_length >= reference_length else math.exp(1 - reference_length / candidate_length)
    return penalty * math.exp(logs / max_order)


# ---- ROUGE -----------------------------------------------------------------------------------------------------------

class Rouge(NamedTuple):
    precision: float
    recall: float
    f1: float


def rouge_n(
    candidate: Sequence[str] | str, reference: Sequence[str] | str, n: int, counts: str = "clipped"
) -> Rouge:
    """ROUGE-`n` of one pair: shared n-grams over those of the candidate (precision) and of the reference (recall).

    counts="clipped": every occurrence counts, as in Google's rouge-score; takes tokens.
    counts="set": each distinct n-gram counts once, as in the `rouge` package; takes its raw text, or tokens, which are
    joined by spaces first (MMedLM: so the official script does for zh and ja). No n-gram on a side: 0.

    >>> rouge_n("a a b".split(), "a b b".split(), 1).recall, rouge_n("a a b", "a b b", 1, counts="set").recall
    (0.6666666666666666, 1.0)
    """
    if n < 1:
        raise ValueError(f"n: expected 1 or more, got {n}")
    if counts == "clipped":
        shared = ngram_matches(candidate, reference, n)[-1]
        return overlap_f1(shared, len(candidate) - n + 1, len(reference) - n + 1)
    if counts == "set":
        return _rouge_n_set(_rouge_sentences(candidate), _rouge_sentences(reference), n)
    raise ValueError(f"counts {counts!r}: expected 'clipped' or 'set'")


def rouge_l(
    candidate: Sequence[str] | str, reference: Sequence[str] | str, variant: str = "rouge-score"
) -> Rouge:
    """ROUGE-L of one pair, from the longest common subsequence.

    variant="rouge-score": its length over the two lengths (Google's rougeL); takes tokens.
    variant="rouge": the `rouge` package's summary level: both texts are cut at every ".", an LCS is found for each pair
    of sentences, and the *distinct* tokens of all of them are counted over the distinct tokens of each side. Takes text or
    tokens as `rouge_n` does. (MMedLM: this f1 is what the official script returns.)

    >>> round(rouge_l("the cat sat", "the black cat sat", variant="rouge").f1, 6)
    0.857143
    """
    if variant == "rouge-score":
        return overlap_f1(lcs_length(candidate, reference), len(candidate), len(reference))
    if variant == "rouge":
        return _rouge_l_union(_rouge_sentences(candidate), _rouge_sentences(reference))
    raise ValueError(f"variant {variant!r}: expected 'rouge-score' or 'rouge'")


def rouge_package(candidate: Sequence[str] | str, reference: Sequence[str] | str) -> dict[str, Rouge]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of the `rouge` package, the texts split once."""
    candidate, reference = _rouge_sentences(candidate), _rouge_sentences(reference)
    scores = {f"ROUGE-{n}": _rouge_n_set(candidate, reference, n) for n in (1, 2)}
    return scores | {"ROUGE-L": _rouge_l_union(candidate, reference)}


def _rouge_sentences(text: Sequence[str] | str) -> list[list[str]]:
    """Cut at every "." and at spaces, as `rouge` does: "3.5 mg" is two sentences, and a blank sentence holds one empty word."""
    if not isinstance(text, str):
        text = " ".join(text)
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _rouge_n_set(candidate: list[list[str]], reference: list[list[str]], n: int) -> Rouge:
    grams = []
    for sentences in (candidate, reference):
        words = [word for sentence in sentences for word in sentence]
        grams.append(set(words) if n == 1 else set(zip(*(words[start:] for start in range(n)))))
    return overlap_f1(len(grams[0] & grams[1]), len(grams[0]), len(grams[1]), slack=1e-8)


def _rouge_l_union(candidate: list[list[str]], reference: list[list[str]]) -> Rouge:
    candidate_words, reference_words = set().union(*candidate), set().union(*reference)
    common = candidate_words & reference_words
    masks = [(_positions(sentence), len(sentence)) for sentence in candidate]
    union: set[str] = set()
    for sentence in reference:
        missing = common.intersection(sentence) - union
        for positions, width in masks:
            if not missing:
                break  # nothing that this sentence could add
            if not missing.isdisjoint(positions):
                found = _lcs_tokens(sentence, positions, width)
                union |= found
                missing -= found
    return overlap_f1(len(union), len(candidate_words), len(reference_words), slack=1e-8)


def overlap_f1(shared: int, candidate_total: int, reference_total: int, slack: float = 0.0) -> Rouge:
    """Precision, recall and 2PR / (P + R + slack); `rouge` has a slack of 1e-8, so its best f1 is 0.999999995."""
    if not shared:
        return Rouge(0.0, 0.0, 0.0)
    precision, recall = shared / candidate_total, shared / reference_total
    return Rouge(precision, recall, 2 * precision * recall / (precision + recall + slack))
