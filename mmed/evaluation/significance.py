"""Do two models differ on the same items? Exact and randomization tests, and intervals of the difference."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from mmed.metrics import bootstrap_interval, macro_mean, mean

FLIPS = 2000  # random sign flips of a test
EXACT_FLIPS = 12  # with at most this many differing items, enumerate all 2^n sign flips


class Difference(NamedTuple):
    difference: float  # mean of a minus mean of b
    low: float  # 95 % interval of it; nan where resampling says nothing
    high: float
    p: float  # two-sided
    test: str  # which test p comes from


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of "a and b are right equally often": right or wrong per item, in the same order.

    Only items where exactly one model is right tell them apart; if neither is better, each is a coin flip.
    """
    pairs = Counter((bool(x), bool(y)) for x, y in zip(a, b, strict=True))
    only_a, only_b = pairs[True, False], pairs[False, True]
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** (only_a + only_b))


def sign_flip_test(
    gaps: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> tuple[float, str]:
    """(two-sided p, name of the test) of "a and b score alike", from a - b per item (Fisher's randomization).

    If the models score alike, each difference is as likely to have the other sign. p is the share of sign
    flips whose mean (macro mean over `groups`) is as far from 0 as the one found: of all flips if few items
    differ, else of FLIPS random ones, with the one found among them, so p is never 0.
    """
    names = groups or [""] * len(gaps)
    sizes = Counter(names)
    # a gap of 0 has no sign
    parts = np.array([gap / (len(sizes) * sizes[name]) for gap, name in zip(gaps, names) if gap])
    found = abs(parts.sum()) - 1e-12  # rounding must not decide what is as far
    if len(parts) <= EXACT_FLIPS:
        signs = np.array(list(product([1, -1], repeat=len(parts))))  # (2^n, n)
        return float(np.mean(np.abs(signs @ parts) >= found)), "sign flips, exact"
    rng = np.random.default_rng(seed)
    sums = np.array([parts @ (2 * rng.integers(0, 2, len(parts)) - 1) for _ in range(FLIPS)])
    as_far = int(np.count_nonzero(np.abs(sums) >= found))
    return (as_far + 1) / (FLIPS + 1), f"sign flips, {FLIPS:,} draws"


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> Difference:
    """Mean (macro mean over `groups`) of a - b on the same items, its bootstrap interval, its sign-flip p."""
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    difference = mean(gaps) if groups is None else macro_mean(gaps, groups)
    low, high = bootstrap_interval(gaps, seed, groups)
    return Difference(difference, low, high, *sign_flip_test(gaps, seed, groups))
