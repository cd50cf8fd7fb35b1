"""The order of a run's rows without a table of it: which stream row i comes from, and where place i of a shuffled order points.

All is a function of integers, the same on every machine and for any number of ranks; nothing grows with the corpus (mmed/data.py).
"""
from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np

from mmed.utils.errors import UserError


def mix(*values: int) -> int:
    """A 64-bit hash of a few integers (splitmix64): the same on every machine, unlike Python's own."""
    state = 0
    for value in values:
        state = (state ^ value) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


_GOLDEN, _MIX1, _MIX2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix_all(*values: int | np.ndarray) -> np.ndarray:
    """`mix` of many values at once; integers and arrays (N,) uint64 -> (N,) uint64."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            state = (state ^ (np.uint64(value & 0xFFFFFFFFFFFFFFFF) if isinstance(value, int) else value)) + _GOLDEN
            state = (state ^ state >> np.uint64(30)) * _MIX1
            state = (state ^ state >> np.uint64(27)) * _MIX2
            state ^= state >> np.uint64(31)
    return state


def shuffled(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where places (N,) of a shuffled order of range(n) point, (N,) int64, without the order: a keyed bijection of range(n).

    A four-round Feistel network permutes the next power of four; results beyond n are fed back until one fits.

    >>> sorted(shuffled(np.arange(10), 10, key=7).tolist()) == list(range(10))
    True
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result, beyond = places.astype(np.uint64), np.arange(len(places))
    while len(beyond):
        left, right = result[beyond] >> half, result[beyond] & mask
        for turn in range(4):
            left, right = right, left ^ (mix_all(key, turn, right) & mask)
        result[beyond] = left << half | right
        beyond = beyond[result[beyond] >= n]
    return result.astype(np.int64)


class Mixture:
    """Which stream row i comes from, and the how-manieth row of that stream it is: exact quotas, closed form, no state.

    In every cycle of `length` rows stream s has floor differences of its cumulative weight, so that after any number of
    cycles its count is within one of weight x rows; the order within a cycle is shuffled by (seed, cycle).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        if min(weights) <= 0:
            raise UserError(f"stream weights must be positive, got {list(weights)}")
        total = sum(weights)
        self.seed, self.bits = seed, 40
        edges = np.cumsum([w / total for w in weights])
        self.edges = [0] + [round(float(e) * 2 ** self.bits) for e in edges[:-1]] + [2 ** self.bits]
        self.length = max(1024, int(np.ceil(2 * total / min(weights))))
        self.cycle, self.order, self.rank = -1, np.zeros(0), np.zeros(0)

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows` (a multiple of the cycle length)."""
        floors = [rows * edge >> self.bits for edge in self.edges]
        return [b - a for a, b in itertools.pairwise(floors)]

    def __call__(self, i: int) -> tuple[int, int]:
        cycle, place = divmod(i, self.length)
        if cycle != self.cycle:
            self.before = self.counts(cycle * self.length)
            quota = [b - a for a, b in zip(self.before, self.counts((cycle + 1) * self.length))]
            order = [s for s, n in enumerate(quota) for _ in range(n)]
            random.Random(mix(self.seed, cycle, 1)).shuffle(order)
            self.order = np.array(order)
            self.rank = np.zeros(self.length, dtype=np.int64)  # rows of the same stream before this one, in this cycle
            for s in range(len(quota)):
                self.rank[self.order == s] = np.arange(quota[s])
            self.cycle = cycle
        stream = int(self.order[place])
        return stream, self.before[stream] + int(self.rank[place])
