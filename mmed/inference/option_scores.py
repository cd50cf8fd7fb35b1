"""The likelihood of given continuations: log P(option | prompt).

    score_many(model, prompts, options)     one list of sums per prompt

An option's score is the sum over its tokens of log P(token | prompt, tokens before it), natural logarithm,
in fp32. A prompt's options follow it in one flat pass; shared prefixes are computed once, as in decoding.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mmed.inference.decoder import Decoder, Segment, decoder_for, fitting_batch, layout_of
from mmed.inference.engine import PrefixCache
from mmed.inference.sampling import check_finite
from mmed.model import Transformer
from mmed.utils.errors import UserError

GROUP = 32     # prompts in the cache at a time
COMPARED = 16  # prompts at most that `int8_difference` computes


@torch.inference_mode()
def score_many(model: Transformer, prompts: Sequence[Sequence[int]],
               options: Sequence[Sequence[Sequence[int]]], *,
               on_done: Callable[[int], None] = lambda place: None) -> list[list[float]]:
    """log P(option | prompt) of each option of each prompt; `on_done` is called with each prompt's place."""
    limit = model.config.max_position_embeddings
    for i, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
        if len(prompt) + max(map(len, choices), default=0) - 1 > limit:
            raise UserError(f"prompt {i} ({len(prompt):,} tokens) with its longest option exceeds the "
                            f"context length of {limit:,}; shorten it or give fewer examples")
    scores: list[list[float]] = [[] for _ in prompts]
    places = [i for i in range(len(prompts)) if options[i]]
    if not places:
        return scores
    longest = max(len(prompts[i]) + max(map(len, options[i])) for i in places)
    decoder = decoder_for(model)
    batch = fitting_batch(decoder, min(GROUP, len(places)), longest)
    cache = decoder.make_cache(batch, longest)
    prefixes = PrefixCache(decoder, [list(prompts[i]) for i in places])
    for first in range(0, len(places), batch):
        group = places[first:first + batch]
        segments = []
        for row, i in enumerate(group):
            segments.append(prefixes.load(cache, row, first + row))
            rests = [option[:-1] for option in options[i] if len(option) > 1]
            segments += [Segment(row, len(prompts[i]), rest, logits=len(rest)) for rest in rests]
        logits = decoder.prefill(cache, segments)
        for i in group:
            before = next(logits)
            for option in options[i]:
                part = torch.cat((before, next(logits))) if len(option) > 1 else before
                check_finite(part)
                ids = torch.tensor(list(option), device=part.device)[:, None]
                scores[i].append(float(part.float().log_softmax(-1).gather(1, ids).double().sum()))
            on_done(i)
    return scores


@torch.inference_mode()
def int8_difference(model: Transformer, prompts: Sequence[Sequence[int]]) -> str:
    """Describe what int8 changes on these prompts: the likeliest next tokens, and the log-probabilities."""
    if not prompts:
        return "int8 weights: no prompts to compare with"
    prompts = prompts[::-(-len(prompts) // COMPARED)]
    same = total = moved = 0.0
    with torch.inference_mode(False), torch.no_grad():
        model.int8 = False
        decoders = Decoder(model, layout_of(model)), Decoder(model, "int8")
        model.int8 = True
    for prompt in prompts:
        segment = Segment(0, 0, prompt, logits=len(prompt))
        logits = [next(each.prefill(each.make_cache(1, len(prompt)), [segment])) for each in decoders]
        exact, int8 = (part.float().log_softmax(-1) for part in logits)
        top = exact.argmax(-1)
        same += float((int8.argmax(-1) == top).sum())
        moved += float((exact - int8).gather(1, top[:, None]).abs().sum())
        total += len(top)
    return (f"int8 weights: the likeliest next token is the same at {same / total:.1%} of "
            f"{total:,.0f} positions of {len(prompts)} prompts; "
            f"its log-probability moves by {moved / total:.4f} on average")
