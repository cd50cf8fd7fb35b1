"""Sequences during decoding, and the choice of their next tokens. Both engines use these classes.

What a sequence gets depends on its prompt and, when sampling, on (seed, its number), not on its batch. But
sums are rounded differently in batches of different size: in bf16 two nearly equal tokens can change places.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmed.model import ModelConfig
from mmed.utils.errors import UsageError, UserError

STOP_EVERY = 8  # new tokens per sequence between two calls of `stop`


@dataclass
class Sequence:
    """A prompt and its new tokens so far."""

    index: int            # position in the list of prompts
    prompt: list[int]
    limit: int            # maximum number of new tokens
    random: random.Random
    new_ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.new_ids)


@dataclass
class Decoding:
    """How to decode: the arguments of `generate` except model and prompts."""

    max_new_tokens: int | list[int]  # for all prompts or for each; a sequence also ends at the last position
    end_ids: Collection[int] = ()    # tokens that end a sequence and are not part of it
    temperature: float = 0.0         # 0: greedy; otherwise sample each token
    top_k: int = 0                   # ... from the `top_k` likeliest tokens (0: all)
    top_p: float = 1.0               # ... from the likeliest with this total probability
    seed: int = 0
    numbers: list[int] | None = None  # what draws depend on besides `seed`; default: the prompts' places
    max_batch_size: int = 32
    vocab_size: int | None = None    # of the tokenizer; further rows of the embedding are never chosen
    stop: Callable[[list[int]], bool] | None = None  # whether new ids are enough, asked every STOP_EVERY
    on_token: Callable[[int, int], None] | None = None       # (place of the prompt, new token)
    on_done: Callable[[int, list[int]], None] | None = None  # (place of the prompt, its new ids)

    def __post_init__(self) -> None:
        usable = 0 <= self.temperature < float("inf") and 0 < self.top_p <= 1
        if not usable or self.top_k < 0 or self.max_batch_size < 1:
            raise UsageError(f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}, "
                             f"batch size {self.max_batch_size}: expected temperature >= 0, "
                             "0 < top_p <= 1, top_k >= 0 and batch size >= 1")

    def sequences(self, config: ModelConfig, prompts: list[list[int]]) -> list[Sequence]:
        """One sequence per prompt; a prompt that leaves no position for an answer is an error."""
        limits, longest = self.max_new_tokens, config.max_position_embeddings
        limits = [limits] * len(prompts) if isinstance(limits, int) else limits
        numbers = range(len(prompts)) if self.numbers is None else self.numbers
        result = []
        for i, (prompt, limit, number) in enumerate(zip(prompts, limits, numbers, strict=True)):
            check_prompt(prompt, config, f"prompt {i}")
            draws = random.Random(f"{self.seed} {number}")
            result.append(Sequence(i, list(prompt), min(limit, longest - len(prompt)), draws))
        return result

    def choose(self, logits: Tensor, sequences: list[Sequence]) -> list[int]:
        """The next token of each sequence, from its row of logits (n, V)."""
        logits = logits[:, :self.vocab_size]
        if not self.temperature:
            return logits.argmax(-1).tolist()
        uniform = torch.tensor([sequence.random.random() for sequence in sequences], dtype=torch.float64)
        return sample(logits, self.temperature, self.top_k, self.top_p, uniform.to(logits.device)).tolist()

    def append(self, sequence: Sequence, token: int) -> bool:
        """Add a token to a sequence; returns whether it has ended."""
        ids = sequence.new_ids
        if token not in self.end_ids:
            ids.append(token)
            if self.on_token is not None:
                self.on_token(sequence.index, token)
            enough = self.stop is not None and len(ids) % STOP_EVERY == 0 and self.stop(ids)
            if len(ids) < sequence.limit and not enough:
                return False
        if self.on_done is not None:
            self.on_done(sequence.index, ids)
        return True


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, uniform: Tensor) -> Tensor:
    """One token per row (B,) of logits (B, V), drawn with the numbers `uniform` (B,) in [0, 1)."""
    below_top = logits.double() - logits.max(-1, keepdim=True).values  # cannot overflow when divided
    p, order = (below_top / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k:
        p[:, top_k:] = 0
        p /= p.sum(-1, keepdim=True)  # top_p is a share of these, as in transformers and vLLM
    p[p.cumsum(-1) - p >= top_p] = 0  # the token that crosses top_p stays, so the first always does
    total = p.cumsum(-1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    last = (p > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, place.minimum(last)).squeeze(1)


def check_prompt(prompt: list[int], config: ModelConfig, where: str) -> None:
    """A prompt must have a token and leave a position for an answer; `where` names it in the error."""
    longest = config.max_position_embeddings
    if not prompt:
        raise UserError(f"{where} is empty, and gets no BOS; write a text")
    if len(prompt) >= longest:
        raise UserError(f"{where} has {len(prompt):,} tokens and the model a context length of {longest:,}, "
                        "which is too short for an answer; shorten the prompt")


def check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the logits are not finite: the weights are damaged, or values overflow the dtype")
