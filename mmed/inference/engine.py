"""Continuous batching: a sequence that ends gives its row of the cache to the next prompt at once.

    generate(model, prompts, max_new_tokens)     -> new ids of each prompt, greedy or sampled

    rows  ┌──────────────┐            Every row of the cache has its own length: nothing is padded. A decode
      0   │ prompt 7 ▒▒▒▒│            step computes the last token of all rows in use (▒), which are the first
      1   │ prompt 2 ▒▒  │ ── step ─> ones. When no prompt waits any more, the remaining sequences move to
      2   │ prompt 9 ▒▒▒ │            the front, so a step costs only what they cost.

Shared prefixes (instruction, examples) are computed once and copied. Reference: Orca (OSDI 2022).
"""
from __future__ import annotations

from collections import Counter, deque

import torch
from torch import Tensor

from mmed.inference.decoder import Decoder, Segment, decoder_for, fitting_batch
from mmed.inference.sampling import Decoding, Sequence, check_finite
from mmed.model import KVCache, Transformer

PREFIX_BLOCK = 16  # prefixes are shared in multiples of this many tokens


class PrefixCache:
    """Keys and values of prefixes that several prompts share, from the first such prompt to the last."""

    def __init__(self, decoder: Decoder, prompts: list[list[int]]):
        self.decoder, self.prompts = decoder, prompts
        self.prefixes = shared_prefixes(prompts)
        self.waiting = Counter(prefix for prefix, _ in self.prefixes)
        self.kept: dict[int, tuple[Tensor, ...]] = {}

    def load(self, cache: KVCache, row: int, index: int) -> Segment:
        """Write the prefix of a prompt into a row of a cache; returns the rest, which is left to compute."""
        prefix, length = self.prefixes[index]
        if length:
            if prefix not in self.kept:
                list(self.decoder.prefill(cache, [Segment(row, 0, self.prompts[index][:length], logits=0)]))
                self.kept[prefix] = tuple(x[:, row, :, :length].clone() for x in (cache.keys, cache.values))
            cache.keys[:, row, :, :length], cache.values[:, row, :, :length] = self.kept[prefix]
            self.waiting[prefix] -= 1
            if not self.waiting[prefix]:
                del self.kept[prefix]
        return Segment(row, length, self.prompts[index][length:])


def shared_prefixes(prompts: list[list[int]]) -> list[tuple[int, int]]:
    """(number of the prefix, its length) of each prompt, (0, 0) if it shares none.

    Of all prefixes in multiples of PREFIX_BLOCK tokens it is the one with the most length x other users. At
    least one token of a prompt is left to compute.

    >>> a, b = [1] * 40, [1] * 16 + [2] * 50
    >>> [length for _, length in shared_prefixes([a, b, a, [9], b])]
    [16, 64, 16, 0, 64]
    """
    nodes: dict[tuple[int, tuple[int, ...]], int] = {}  # a trie of blocks: (parent, block) -> number
    paths = []
    for prompt in prompts:
        path = [0]
        for start in range(0, len(prompt) - PREFIX_BLOCK, PREFIX_BLOCK):
            block = tuple(prompt[start:start + PREFIX_BLOCK])
            path.append(nodes.setdefault((path[-1], block), len(nodes) + 1))
        paths.append(path)
    users = Counter(node for path in paths for node in path)
    found = []
    for path in paths:
        depth = max(range(len(path)), key=lambda depth: depth * (users[path[depth]] - 1))
        found.append((path[depth], depth * PREFIX_BLOCK))
    return found


class Scheduler:
    """Sequences in the rows of a cache, those in use first, and a queue of sequences that wait for a row."""

    def __init__(self, decoder: Decoder, decoding: Decoding, sequences: list[Sequence]):
        self.decoder, self.decoding = decoder, decoding
        waiting = [sequence for sequence in sequences if sequence.limit]
        # Longest first, so that few rows stay empty at the end, when no prompt is waiting.
        waiting.sort(key=lambda sequence: (-sequence.limit, -len(sequence.prompt), sequence.index))
        self.waiting, self.running = deque(waiting), []
        longest = max((len(sequence.prompt) + sequence.limit for sequence in waiting), default=0)
        self.batch = fitting_batch(decoder, min(decoding.max_batch_size, len(waiting)), longest)
        self.cache = decoder.make_cache(self.batch, longest)
        self.prefixes = PrefixCache(decoder, [sequence.prompt for sequence in sequences])

    def run(self) -> None:
        while self.waiting or self.running:
            while self.waiting and len(self.running) < self.batch:  # a first token may end a sequence
                self.admit()
            if self.running:
                self.step()

    def admit(self) -> None:
        """Prefill as many waiting prompts as there are free rows, and choose their first tokens."""
        first = len(self.running)
        while self.waiting and len(self.running) < self.batch:
            self.running.append(self.waiting.popleft())
        segments = [self.prefixes.load(self.cache, row, self.running[row].index)
                    for row in range(first, len(self.running))]
        logits = torch.cat(list(self.decoder.prefill(self.cache, segments)))
        check_finite(logits)
        self.extend(logits, first)

    def step(self) -> None:
        """One more token for every running sequence."""
        tokens = [sequence.new_ids[-1] for sequence in self.running]
        lengths = [sequence.length - 1 for sequence in self.running]  # the last token is not in the cache yet
        self.extend(self.decoder.decode_step(self.cache, tokens, lengths), 0)

    def extend(self, logits: Tensor, first: int) -> None:
        """Append the next token to the running sequences from row `first` on; retire those that end."""
        tokens = self.decoding.choose(logits, self.running[first:])
        for row in reversed(range(first, len(self.running))):  # a sequence that moves here has had its turn
            if self.decoding.append(self.running[row], tokens[row - first]):
                self.retire(row)

    def retire(self, row: int) -> None:
        """Free a row: the last running sequence moves there."""
        last = self.running.pop()
        if row < len(self.running):
            self.running[row] = last
            for store in (self.cache.keys, self.cache.values):
                store[:, row, :, :last.length] = store[:, len(self.running), :, :last.length]


@torch.inference_mode()
def generate(model: Transformer, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
    """The new tokens of each prompt, without the end token."""
    sequences = decoding.sequences(model.config, prompts)
    Scheduler(decoder_for(model), decoding, sequences).run()
    return [sequence.new_ids for sequence in sequences]
