"""The decoding loop: prompts of any lengths in, new tokens out; a sequence that ends gives its slot to the next prompt at once.

    generate(model, prompts, max_new_tokens)     -> new ids of each prompt, greedy or sampled

    slots   ┌──────────────┐          Every slot is a row of one cache, allocated once, with its own length: nothing is padded.
      0     │ prompt 7 ▒▒▒▒│          A step feeds the newest token of all slots (▒). When the queue is empty the slots that
      1     │ prompt 2 ▒▒  │ ──step─> still work are moved to the front, and a step costs what they cost.
      2     │ prompt 9 ▒▒▒ │
                                      What many prompts begin with (instruction, examples) is computed once and copied.

What a sequence gets depends on its prompt, and when sampling on (seed, its number), never on slots, order or neighbours. Sums are
rounded differently in batches of different size: in fp32 the tokens are the same all the same; in bf16 two nearly equal tokens can
change places, so the rule there is that every token is one whose logit is within bf16's rounding of the largest.

Order: sampling, shared beginnings, prefill, the loop. Continuous batching: Orca (Yu et al. 2022).
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmed.inference.decoder import Decoder, Segment, decoder_for, fit_slots
from mmed.inference.decoder_layer import KVCache
from mmed.model import Transformer
from mmed.utils.errors import UsageError, UserError

STOP_EVERY = 8      # tokens between two questions to `stop`, counted in each sequence from its own beginning
SHARED_STEP = 8     # beginnings are shared in multiples of so many tokens
MAX_SHARED = 4096   # and looked at so far


# ------------------------------------------------------------------------------------------------------------ sampling

def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, uniform: Tensor) -> Tensor:
    """One token a row (B,) of logits (B, V), by numbers `uniform` (B,) in [0, 1)."""
    probabilities, order = (logits.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k:
        probabilities[:, top_k:] = 0
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0  # the token that crosses top_p stays, so the first always does
    total = probabilities.cumsum(-1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(1, place.minimum((probabilities > 0).sum(-1, keepdim=True) - 1)).squeeze(1)


def likeliest(logits: Tensor) -> list[int]:
    """The place of each row's largest number; of equals the first."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:  # 7 times as fast as torch's
        return logits.numpy().argmax(-1).tolist()
    return logits.argmax(-1).tolist()


def _mix(seed: int, number: int) -> int:
    """One seed of two numbers, well spread (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + number + 1) & (2 ** 64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ value >> shift) * factor) & (2 ** 64 - 1)
    return (value ^ value >> 31) >> 1


# --------------------------------------------------------------------------------------------------- shared beginnings

def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts share at the beginning, one token less than the shorter has, in steps of SHARED_STEP.

    >>> common_length([7] * 20, [7] * 18 + [1]), common_length([7] * 16, [7] * 16)
    (16, 8)
    """
    length = min(len(one), len(other), MAX_SHARED + 1) - 1
    low, high = 0, length - length % SHARED_STEP
    while low < high:
        middle = (low + high + SHARED_STEP) // 2 // SHARED_STEP * SHARED_STEP
        if list(one[:middle]) == list(other[:middle]):
            low = middle
        else:
            high = middle - SHARED_STEP
    return low


def shared_beginnings(prompts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Groups of prompts (their places) with what each group shares, so that the most tokens are saved.

    Sorted, prompts that share a beginning are neighbours. A range of neighbours can share what all of it has in common, or fall
    apart where it has least in common, and each part shares more.

    >>> a, b = [1] * 40, [1] * 16 + [2] * 40
    >>> shared_beginnings([a + [5], b + [5], a + [6], [9], b + [6]])
    [(40, [0, 2]), (56, [1, 4])]
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    common = [0] + [common_length(prompts[a], prompts[b]) for a, b in pairwise(order)]  # with the one before

    def best(low: int, high: int) -> tuple[int, list[tuple[int, list[int]]]]:
        """(tokens saved, groups) of order[low:high]."""
        if high - low < 2:
            return 0, []
        least = min(common[low + 1:high])
        cuts = [low, *(j for j in range(low + 1, high) if common[j] == least), high]
        saved, groups = 0, []
        if len(cuts) - 2 < high - low - 1:  # not all neighbours share the same
            for a, b in pairwise(cuts):
                more, found = best(a, b)
                saved += more
                groups += found
        together = least * (high - low - 1)
        return (together, [(least, sorted(order[low:high]))] if least else []) if together >= saved else (saved, groups)

    return best(0, len(order))[1]


class Beginnings:
    """Keys and values of shared beginnings, computed when the first prompt comes that has one, kept until the last has come."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], places: Iterable[int]):
        self.decoder, self.prompts = decoder, prompts
        places = list(places)
        self.length = dict.fromkeys(places, 0)
        self.group: dict[int, int] = {}
        self.waiting: dict[int, int] = {}
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        for number, (length, members) in enumerate(shared_beginnings([prompts[i] for i in places])):
            self.waiting[number] = len(members)
            for member in members:
                self.length[places[member]], self.group[places[member]] = length, number

    def into(self, cache: KVCache, slots: Sequence[int], places: Sequence[int]) -> list[Segment]:
        """Write the beginnings of some prompts into slots; what is left of each prompt to compute."""
        first: dict[int, int] = {}
        for row, i in enumerate(places):
            if i in self.group and self.group[i] not in self.kept:
                first.setdefault(self.group[i], row)
        if first:
            self.decoder.extend(cache, [Segment(slots[row], 0, self.prompts[places[row]][:self.length[places[row]]]) for row in first.values()],
                                [()] * len(first))
            for number, row in first.items():
                length = self.length[places[row]]
                self.kept[number] = (cache.keys[:, slots[row], :, :length].clone(), cache.values[:, slots[row], :, :length].clone())
        segments = []
        for row, (slot, i) in enumerate(zip(slots, places)):
            length = self.length[i]
            if length:
                number = self.group[i]
                if first.get(number) != row:
                    cache.keys[:, slot, :, :length], cache.values[:, slot, :, :length] = self.kept[number]
                self.waiting[number] -= 1
                if not self.waiting[number]:
                    del self.kept[number]
            segments.append(Segment(slot, length, self.prompts[i][length:]))
        return segments


def prefill(decoder: Decoder, cache: KVCache, slots: Sequence[int], places: Sequence[int], beginnings: Beginnings) -> Tensor:
    """Write each prompt into its slot; logits behind its last token (B, V)."""
    segments = beginnings.into(cache, slots, places)
    logits = torch.cat(decoder.extend(cache, segments, [(len(segment.ids) - 1,) for segment in segments]))
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model's logits are not finite (NaN or infinity): its weights are damaged, or too large for this precision")
    return logits


# ------------------------------------------------------------------------------------------------------------- the loop

def generate(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], *, end_ids: Sequence[int] = (),
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, numbers: Sequence[int] | None = None,
             slots: int = 32, stop: Callable[[list[int]], bool] | None = None, on_done: Callable[[int, list[int]], None] | None = None,
             on_token: Callable[[int, int], None] | None = None) -> list[list[int]]:
    """The new tokens of each prompt, without the end token.

    max_new_tokens  one limit for all or one for each; a sequence also ends where the model's positions end
    temperature     0 is greedy; else one draw per token from the `top_k` likeliest (0: all) that hold `top_p` of the probability
    numbers         what a prompt's draws depend on besides `seed`; default its place in `prompts`
    stop            asked every STOP_EVERY tokens of a sequence whether the new ids so far are enough
    on_done         called with (place in `prompts`, new ids) in the order in which sequences end; on_token with each new token
    """
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise UsageError(f"temperature {temperature}, top_p {top_p}, top_k {top_k}: expected >= 0, over 0 to 1, and >= 0")
    if slots < 1:
        raise UsageError(f"slots {slots}: expected 1 or more")
    limits = token_limits(model, prompts, max_new_tokens)
    results: list[list[int]] = [[] for _ in prompts]
    # Long work first: at the end, when no prompt waits any more, slots stand empty for a short time only.
    queue = deque(sorted((i for i in range(len(prompts)) if limits[i]), key=lambda i: (-limits[i], -len(prompts[i]), i)))
    if not queue:
        return results
    ends = frozenset(end_ids)
    need = max(len(prompts[i]) + limits[i] for i in queue)
    draws: dict[int, Tensor] = {}

    def choose(logits: Tensor, sequences: list[int]) -> list[int]:
        if not temperature:
            return likeliest(logits)
        for i in sequences:
            if i not in draws:
                number = i if numbers is None else numbers[i]
                draws[i] = torch.rand(limits[i], generator=torch.Generator().manual_seed(_mix(seed, number)), dtype=torch.float64)
        uniform = torch.stack([draws[i][len(results[i])] for i in sequences]).to(logits.device)
        return sample(logits, temperature, top_k, top_p, uniform).tolist()

    def ended(i: int, token: int) -> bool:
        """Take the token into sequence i; whether that was its last."""
        ids = results[i]
        if token not in ends:
            ids.append(token)
            if on_token is not None:
                on_token(i, token)
            if len(ids) < limits[i] and not (stop is not None and len(ids) % STOP_EVERY == 0 and stop(ids)):
                return False
        draws.pop(i, None)
        if on_done is not None:
            on_done(i, ids)
        return True

    with torch.inference_mode():
        decoder = decoder_for(model, min(slots, len(queue)))
        slots = fit_slots(decoder, min(slots, len(queue)), need)
        cache = decoder.make_cache(slots, need)
        beginnings = Beginnings(decoder, prompts, queue)
        running: list[int] = []        # the sequence in each slot; slots in use come first
        lengths: list[int] = []        # tokens of it in the cache
        newest: list[int] = []         # its last token, not in the cache yet
        while True:
            free = list(range(len(running), slots))
            while queue and free:  # one that ends with its first token leaves its slot to the next
                batch = [queue.popleft() for _ in free[:len(queue)]]
                first = choose(prefill(decoder, cache, free[:len(batch)], batch, beginnings), batch)
                for slot, i, token in zip(list(free), batch, first):
                    if ended(i, token):
                        continue
                    if slot != len(running):
                        move(cache, slot, len(running), len(prompts[i]))
                    running.append(i)
                    lengths.append(len(prompts[i]))
                    newest.append(token)
                free = list(range(len(running), slots))
            if not running:
                break
            tokens = choose(decoder.step(cache, newest, lengths), running)
            for slot in range(len(running) - 1, -1, -1):  # from the back: what moves into a gap has had its turn
                lengths[slot] += 1
                newest[slot] = tokens[slot]
                if ended(running[slot], tokens[slot]):
                    last = len(running) - 1
                    if slot != last:
                        move(cache, last, slot, lengths[last])
                    for column in (running, lengths, newest):
                        column[slot] = column[last]
                        column.pop()
    return results


def token_limits(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]) -> list[int]:
    """How many tokens each sequence may get; a prompt that leaves no room for one is an error."""
    wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    assert len(wanted) == len(prompts), f"expected a limit for each of {len(prompts)} prompts, got {len(wanted)}"
    room = model.config.max_position_embeddings
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {i} is empty; a model needs at least one token to go on from")
        if wanted[i] < 0:
            raise UsageError(f"max_new_tokens {wanted[i]}: expected 0 or more")
        if len(prompt) >= room:
            raise UserError(f"prompt {i} has {len(prompt):,} tokens, this model has {room:,} positions (max_position_embeddings) for prompt and "
                            "answer; shorten it or give fewer examples")
    return [min(limit, room - len(prompt)) for limit, prompt in zip(wanted, prompts)]


def move(cache: KVCache, source: int, target: int, length: int) -> None:
    for store in (cache.keys, cache.values):
        store[:, target, :, :length] = store[:, source, :, :length]
