"""The decoding step on a GPU: compiled once, then replayed as CUDA graphs, so that Python and launches cost nothing.

A graph has fixed shapes. So there is one for each number of slots in SLOTS (the slots between are computed and forgotten: their
rows of the cache belong to nobody until the next prompt is written there, and what they write, at place 0, is overwritten by it)
and for each number of places in a row that doubles from SEEN on. All graphs share one pool of memory. Each is captured when it is
first needed, after the warm-up on a side stream that capturing asks for.

Reference: gpt-fast (static cache, compiled step); the capture follows torch.cuda.graph's documentation.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmed.inference.decoder_layer import KVCache

SLOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SEEN = 256


def bucket(n: int, slots: int, seen: int, length: int) -> tuple[int, int]:
    """(slots, places) of the graph for n slots in use of `slots`, and `seen` places needed of `length`.

    >>> bucket(5, 40, 300, 2048), bucket(39, 40, 2000, 1040)
    ((8, 512), (40, 1040))
    """
    places = SEEN
    while places < seen:
        places *= 2
    return min(next((size for size in SLOTS if size >= n), slots), slots), min(places, length)


class StepGraphs:
    """Steps of one `mmed.inference.decoder.Decoder` (which imports this module) over one cache."""

    def __init__(self, decoder: Any, cache: KVCache, compiled: bool = True, captured: bool = True):
        self.decoder, self.cache, self.captured = decoder, cache, captured
        slots, device = cache.keys.shape[1], decoder.device
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self.positions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = None
        self.compute = one_token_compiled() if compiled else one_token

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Logits (n, V); valid until the next step."""
        n = len(tokens)
        rows, seen = bucket(n, self.cache.keys.shape[1], max(lengths) + 1, self.cache.length)
        padding = [0] * (rows - n)
        both = torch.tensor([[*tokens, *padding], [*lengths, *padding]])
        if self.captured:
            both = both.pin_memory()
        self.tokens[:rows].copy_(both[0], non_blocking=True)
        self.positions[:rows].copy_(both[1], non_blocking=True)
        if not self.captured:
            return self.run(rows, seen)[:n]
        if (rows, seen) not in self.graphs:
            self.graphs[rows, seen] = self.capture(rows, seen)
        graph, logits = self.graphs[rows, seen]
        graph.replay()
        return logits[:n]

    def run(self, rows: int, seen: int) -> Tensor:
        return self.compute(self.decoder, self.cache, self.tokens[:rows], self.positions[:rows], seen)

    def capture(self, rows: int, seen: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, tunes, and takes what memory libraries want; writes the same keys each time
                self.run(rows, seen)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.run(rows, seen)
        self.pool = self.pool or graph.pool()
        return graph, logits


def one_token(decoder: Any, cache: KVCache, tokens: Tensor, positions: Tensor, seen: int) -> Tensor:
    return decoder.one_token(cache, tokens, positions, None, seen)


_COMPILED = None


def one_token_compiled():
    """`one_token` compiled, once a process: shapes that come later are compiled as dynamic ones, one row apart."""
    global _COMPILED
    if _COMPILED is None:
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one, two, then any number of slots and places
        _COMPILED = torch.compile(one_token, fullgraph=True)
    return _COMPILED
