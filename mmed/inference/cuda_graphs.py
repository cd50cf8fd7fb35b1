"""Decode steps on a GPU: compiled once, then replayed as CUDA graphs, so Python and launches cost nothing.

A graph has fixed shapes, so there is one for each batch size in BATCHES and for each number of cache places
that doubles from USED on. The rows between are computed and dropped: what they write to the cache, at place
0 of rows that hold no sequence, is overwritten by the next prompt. All graphs share one pool of memory.

Reference: gpt-fast (static cache, compiled step); the capture follows torch.cuda.graph's documentation.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmed.model import KVCache

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
USED = 256


def graph_shape(n: int, used: int, batch: int, length: int) -> tuple[int, int]:
    """(rows, places) of the graph for n rows and `used` places of a cache.

    >>> graph_shape(5, 300, 40, 2048), graph_shape(39, 2000, 40, 1040)
    ((8, 512), (40, 1040))
    """
    places = USED
    while places < used:
        places *= 2
    return min(next((size for size in BATCHES if size >= n), batch), batch), min(places, length)


class StepGraphs:
    """The graphs of one function `one_token(cache, tokens, positions, used) -> logits` over one cache."""

    def __init__(self, one_token: Callable[..., Tensor], cache: KVCache):
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one per shape
        self.one_token, self.cache = torch.compile(one_token, fullgraph=True), cache
        batch, device = cache.keys.shape[1], cache.keys.device
        self.inputs = torch.zeros(2, batch, dtype=torch.int64, device=device)  # tokens, positions
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = None

    def step(self, tokens: list[int], lengths: list[int]) -> Tensor:
        """Logits (n, V) after one more token in each of the first n rows; valid until the next step."""
        _, batch, _, length, _ = self.cache.keys.shape
        rows, used = graph_shape(len(tokens), max(lengths) + 1, batch, length)
        padding = [0] * (rows - len(tokens))
        values = torch.tensor([[*tokens, *padding], [*lengths, *padding]])
        self.inputs[:, :rows].copy_(values.pin_memory(), non_blocking=True)
        if (rows, used) not in self.graphs:
            self.graphs[rows, used] = self.capture(rows, used)
        graph, logits = self.graphs[rows, used]
        graph.replay()
        return logits[:len(tokens)]

    def capture(self, rows: int, used: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        inputs = self.cache, self.inputs[0, :rows], self.inputs[1, :rows], used
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles, tunes and allocates; writes the same keys each time
                self.one_token(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.one_token(*inputs)
        self.pool = self.pool or graph.pool()
        return graph, logits
