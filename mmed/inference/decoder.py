"""A second layout of a `Transformer`'s weights, for decoding: fused matrices, one KV cache, no padding.

    decoder = decoder_for(model)                         kept with the model until its weights change
    cache = decoder.make_cache(batch, length)            keys and values of `batch` sequences, allocated once
    list(decoder.prefill(cache, [Segment(row, 0, ids)])) many tokens of many sequences in one flat pass
    decoder.decode_step(cache, tokens, lengths)          a token of each of the first n rows -> logits (n, V)

    one pass of prefill    [ prompt of row 3 ..... | prompt of row 0 ... | rest of the prompt of row 5 ... ]
                           matrices see N tokens at once; attention computes segment by segment

It computes what `Transformer.forward` computes, and its tests compare the two. On a GPU decode steps are
compiled and replayed as CUDA graphs. Legend: that of mmed/model.py, N tokens of a pass, n rows in use.
"""
from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmed.inference.cuda_graphs import StepGraphs
from mmed.inference.linears import fused, matrix
from mmed.model import Block, KVCache, ModelConfig, Transformer, attend, dense_mask, rope, rotate, soft_cap
from mmed.utils.errors import UserError

PASS_TOKENS = {"cpu": 1024, "cuda": 8192}  # tokens of a flat pass
ROWS_STEP = 16  # oneDNN keeps a program for every number of rows it meets, so passes are padded to a multiple
LENGTH_STEP = 64  # the length of a cache is a multiple of this


@dataclass
class Segment:
    """Tokens that continue a row: they see what is stored before `start`, and each other causally."""

    row: int
    start: int
    ids: Sequence[int]
    logits: int = 1  # how many of the last tokens to return logits for

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


class DecoderLayer:
    """One block in two halves, before and after attention. x (N, D) is flat: it has no batch dimension."""

    def __init__(self, block: Block, config: ModelConfig, layout: str):
        attention, mlp = block.self_attn, block.mlp
        self.block, self.attention = block, attention
        self.qkv = fused([attention.qkv_proj] if config.packed_qkv else
                         [attention.q_proj, attention.k_proj, attention.v_proj], layout)
        self.o = fused([attention.o_proj], layout)
        self.up = fused([mlp.gate_proj, mlp.up_proj] if config.gated_mlp else [mlp.up_proj], layout)
        self.down = fused([mlp.down_proj], layout)

    def heads(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, D) -> q (N, H, E), k and v (N, K, E), normed and rotated; angles: cos and sin (N, 1, E)."""
        q, k, v = self.attention.split(self.qkv(self.block.input_layernorm(x)))
        q, k = self.attention.norm_heads(q, k)
        return (q, k, v) if angles is None else (rotate(q, *angles), rotate(k, *angles), v)

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream after attention's output (N, H, E) and the MLP."""
        return self.block.add(x, self.o(attended.flatten(1)), self.mlp)

    def mlp(self, x: Tensor) -> Tensor:
        if not self.block.mlp.gated:
            return self.down(self.block.mlp.act_fn(self.up(x)))
        gate, up = self.up(x).chunk(2, -1)
        return self.down(self.block.mlp.act_fn(gate) * up)


class Decoder:
    """A `Transformer` laid out for decoding."""

    embed = Transformer.embed  # of attributes with the same names

    def __init__(self, model: Transformer, layout: str):
        self.config, self.layout = model.config, layout  # not the model itself, which keeps this decoder
        self.device, self.dtype = model.embed_tokens.weight.device, model.embed_tokens.weight.dtype
        self.layers = [DecoderLayer(block, model.config, layout) for block in model.layers]
        self.head = matrix(model.head_weight.detach(), None, layout)
        self.embed_tokens, self.embed_norm, self.norm = model.embed_tokens, model.embed_norm, model.norm
        self.kinds = {layer.attention.slides for layer in self.layers}
        self.cache: KVCache | None = None
        self.graphs: StepGraphs | None = None

    def logits(self, x: Tensor) -> Tensor:
        return soft_cap(self.head(self.norm(x)), self.config.final_softcap)

    def angles(self, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor] | None]:
        """cos and sin (N, 1, E) at positions (N,), for sliding and for full layers; None without RoPE."""
        if self.config.position_embedding != "rope":
            return dict.fromkeys(self.kinds)
        found = {slides: rope(self.config, positions[:, None], slides, self.dtype) for slides in self.kinds}
        return {slides: (cos[:, 0], sin[:, 0]) for slides, (cos, sin) in found.items()}

    def mask(self, queries: Tensor, used: int, slides: bool) -> Tensor:
        """Mask of the first `used` keys for queries at places (B, T): (B, 1, T, S); ALiBi: (B, H, T, S)."""
        window = self.config.sliding_window if slides else None
        return dense_mask(self.config, queries, torch.arange(used, device=self.device), window, self.dtype)

    def make_cache(self, batch: int, length: int) -> KVCache:
        """A cache for `batch` sequences of `length` tokens: the last one if it is large enough."""
        kept = self.cache
        if kept is None or kept.keys.shape[1] < batch or kept.keys.shape[3] < length:
            self.cache = self.graphs = None  # frees the memory first
            length = -(-length // LENGTH_STEP) * LENGTH_STEP
            self.cache = KVCache(self.config, batch, length, self.dtype, self.device)
        return self.cache

    def prefill(self, cache: KVCache, segments: Sequence[Segment]) -> Iterator[Tensor]:
        """Compute the segments in order and store their keys and values; logits (segment.logits, V) of each.
        A segment may overwrite an earlier one of its row: each attends before the next one is stored.
        A pass is computed when its first logits are asked for, so those of one pass exist at a time."""
        for part in passes(segments, PASS_TOKENS.get(self.device.type, 1024)):
            yield from self.flat_pass(cache, part)

    def flat_pass(self, cache: KVCache, segments: list[Segment]) -> list[Tensor]:
        ids = [token for segment in segments for token in segment.ids]
        at = [place for segment in segments for place in range(segment.start, segment.end)]
        padding = [0] * (-len(ids) % ROWS_STEP)
        x = self.embed(torch.tensor(ids + padding, device=self.device))  # (N, D)
        positions = torch.tensor(at + padding, device=self.device)
        angles = self.angles(positions)
        ends = itertools.accumulate(len(segment.ids) for segment in segments)
        spans = [slice(end - len(segment.ids), end) for segment, end in zip(segments, ends)]
        masks = {slides: [self.segment_mask(segment, positions[span], slides)
                          for segment, span in zip(segments, spans)] for slides in self.kinds}
        for layer in self.layers:
            q, k, v = layer.heads(x, angles[layer.attention.slides])
            attended = torch.zeros_like(q)  # padding stays zero
            for segment, span, mask in zip(segments, spans, masks[layer.attention.slides]):
                attended[span] = self.attend_segment(layer, cache, segment, q[span], k[span], v[span], mask)
            x = layer.rest(x, attended)
        hidden = torch.cat([x[span][len(segment.ids) - segment.logits:]
                            for segment, span in zip(segments, spans)])
        logits = self.logits(hidden) if len(hidden) else hidden.new_empty(0, self.config.vocab_size)
        return list(logits.split([segment.logits for segment in segments]))

    def segment_mask(self, segment: Segment, positions: Tensor, slides: bool) -> Tensor | None:
        """None where every query sees all keys up to its own."""
        in_window = not slides or self.config.sliding_window >= segment.end
        if self.config.by_document and in_window and (segment.start == 0 or len(segment.ids) == 1):
            return None
        return self.mask(positions[None], segment.end, slides)

    def attend_segment(self, layer: DecoderLayer, cache: KVCache, segment: Segment, q: Tensor, k: Tensor,
                       v: Tensor, mask: Tensor | None) -> Tensor:
        """Store k and v (t, K, E) and attend with q (t, H, E) to all of the segment's row: (t, H, E)."""
        number, start, end = layer.attention.layer, segment.start, segment.end
        keys, values = cache.keys[number, segment.row], cache.values[number, segment.row]
        keys[:, start:end], values[:, start:end] = k.transpose(0, 1), v.transpose(0, 1)
        return attend(q.transpose(0, 1)[None], keys[None, :, :end], values[None, :, :end], mask,
                      layer.attention.scale, self.config.attention_softcap)[0]

    def decode_step(self, cache: KVCache, tokens: list[int], lengths: list[int]) -> Tensor:
        """Logits (n, V) after one more token in each of the first n rows, which hold `lengths` tokens."""
        if self.device.type == "cuda":
            self.graphs = self.graphs or StepGraphs(self.one_token, cache)
            return self.graphs.step(tokens, lengths)
        return self.one_token(cache, torch.tensor(tokens), torch.tensor(lengths), max(lengths) + 1)

    def one_token(self, cache: KVCache, tokens: Tensor, positions: Tensor, used: int) -> Tensor:
        """`decode_step` on tensors (n,): each row attends to its part of the first `used` places."""
        n, K, E = len(tokens), self.config.num_key_value_heads, self.config.head_dim
        x = self.embed(tokens)  # (n, D)
        angles = self.angles(positions)
        rows = torch.arange(n, device=self.device)
        # The G queries of a key head take the place of a prompt's tokens, so keys need not be repeated.
        masks = {slides: self.mask(positions[:, None], used, slides) for slides in self.kinds}
        if self.config.position_embedding == "alibi":
            masks = {slides: mask.view(n, K, -1, used) for slides, mask in masks.items()}
        for number, layer in enumerate(self.layers):
            q, k, v = layer.heads(x, angles[layer.attention.slides])
            keys, values = cache.keys[number], cache.values[number]
            keys[rows, :, positions], values[rows, :, positions] = k, v
            out = attend(q.reshape(n, K, -1, E), keys[:n, :, :used], values[:n, :, :used],
                         masks[layer.attention.slides], layer.attention.scale, self.config.attention_softcap)
            x = layer.rest(x, out.transpose(1, 2))
        return self.logits(x)


def passes(segments: Sequence[Segment], limit: int) -> list[list[Segment]]:
    """The segments in order, in passes of at most `limit` tokens; a longer segment is a pass of its own.

    >>> [len(part) for part in passes([Segment(0, 0, [1] * n) for n in (3, 5, 6, 20, 1)], 8)]
    [2, 1, 1, 1]
    """
    parts: list[list[Segment]] = []
    tokens = 0
    for segment in segments:
        if not parts or tokens + len(segment.ids) > limit:
            parts.append([])
            tokens = 0
        parts[-1].append(segment)
        tokens += len(segment.ids)
    return parts


# ------------------------------------------------------------------------------------- which layout, and when

def decoder_for(model: Transformer) -> Decoder:
    """The model's decoder: built once, and rebuilt when a parameter has changed."""
    def state() -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]

    layout = layout_of(model)
    before, decoder = model.__dict__.get("decoder", (None, None))
    if decoder is None or decoder.layout != layout or before != state():
        model.__dict__.pop("decoder", None)  # one layout at a time: it is a copy of the weights
        del decoder
        with torch.inference_mode(False), torch.no_grad():
            decoder = Decoder(model, layout)
        model.__dict__["decoder"] = state(), decoder  # after "in place" has moved the parameters
    return decoder


def layout_of(model: Transformer) -> str:
    """Which of the layouts in mmed/inference/linears.py; "plain" where a copy of the weights is of no use."""
    weight = model.embed_tokens.weight
    if model.int8:
        return "int8"
    if weight.device.type == "cuda":
        return "in place"
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    usable = weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return "packed" if usable and size < free_bytes(weight.device) // 4 else "plain"


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes; half of all memory if the system does not report it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    memory = Path("/proc/meminfo")
    if memory.is_file():  # counts what Linux can free, such as cached pages of a weight file
        return int(memory.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def fitting_batch(decoder: Decoder, batch: int, length: int) -> int:
    """At most `batch` sequences of `length` tokens: what fits into four fifths of the free memory."""
    config, kept = decoder.config, decoder.cache
    width = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    each = 2 * width * decoder.dtype.itemsize * (length + LENGTH_STEP)
    reusable = 0 if kept is None else 2 * kept.keys.numel() * decoder.dtype.itemsize
    free = free_bytes(decoder.device) + reusable
    if each > 0.8 * free:
        raise UserError(f"the KV cache of one sequence of {length:,} tokens needs {each / 1e9:.2f} GB, "
                        f"{free / 1e9:.2f} GB are free; lower --max_new_tokens")
    return min(batch, int(0.8 * free) // each)
