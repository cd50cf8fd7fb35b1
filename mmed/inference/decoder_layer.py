"""The parts of a decoder (`mmed/inference/decoder.py`): the cache, one block between whose products cache and attention stand, and both ends.

    x (N, D) -> heads -> q, k, v -> [into the cache, attend_one or attend_many] -> rest -> x (N, D)

Legend: N tokens of a pass, n slots in use, S places seen, D hidden size, H query heads, K key/value heads, G = H / K, E head size.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmed.inference.linears import Linear, PlainLinear, joined, norm_of, of_kind
from mmed.model import Block, ModelConfig, Transformer


class KVCache:
    """Keys and values of `slots` sequences, allocated once; every sequence has its own length, so none needs padding.

    A token at position p of a slot stands at index p. What stands beyond a slot's length is never attended to, because
    a query sees only keys at its own position or before.
    """

    def __init__(self, config: ModelConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device | str):
        shape = (config.num_hidden_layers, slots, config.num_key_value_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = length


class DecoderLayer:
    """One block: what `Block.forward` computes, between which the decoder puts rotation, cache and attention."""

    def __init__(self, block: Block, config: ModelConfig, kind: str):
        attention, mlp = block.self_attn, block.mlp
        self.scale, self.slides = attention.scale, attention.slides
        self.grouped = config.packed_qkv
        self.qkv = joined([attention.qkv_proj] if config.packed_qkv else [attention.q_proj, attention.k_proj, attention.v_proj], kind)
        self.q_norm = norm_of(attention.q_norm, kind) if config.qk_norm else None
        self.k_norm = norm_of(attention.k_norm, kind) if config.qk_norm else None
        self.o = joined([attention.o_proj], kind)
        self.before = norm_of(block.input_layernorm, kind)
        self.post_norms = config.post_norms
        self.middle = norm_of(block.post_attention_layernorm, kind)
        if config.post_norms:
            self.before_mlp, self.after_mlp = norm_of(block.pre_feedforward_layernorm, kind), norm_of(block.post_feedforward_layernorm, kind)
        self.up = joined([mlp.gate_proj, mlp.up_proj] if config.gated_mlp else [mlp.up_proj], kind)
        self.down = joined([mlp.down_proj], kind)
        self.gated, self.gelu = config.gated_mlp, config.activation == "gelu_tanh"
        self.H, self.K, self.E = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) -> q (N, H, E), k and v (N, K, E), normed and rotated."""
        H, K, E, N = self.H, self.K, self.E, x.shape[0]
        y = self.qkv(self.before(x))
        if self.grouped:  # rows in groups of (G queries, key, value)
            y = y.view(N, K, H // K + 2, E)
            q, k, v = y[:, :, :-2].reshape(N, H, E), y[:, :, -2], y[:, :, -1]
        else:
            y = y.view(N, H + 2 * K, E)
            v = y[:, H + K:]
            if self.q_norm is None and rope is not None:
                rotate_(y[:, :H + K], rope)
                return y[:, :H], y[:, H:H + K], v
            q, k = y[:, :H], y[:, H:H + K]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rope is None else (rotate_(q, rope), rotate_(k, rope), v)

    # In place where that is possible: on a CPU a fresh tensor of a long pass costs more than what is computed into it.

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream behind attention (N, H * E) and MLP."""
        if self.post_norms:
            x = x + self.middle(self.o(attended))
            return x + self.after_mlp(self.mlp(self.before_mlp(x)))
        x = self.o(attended).add_(x)
        return self.mlp(self.middle(x)).add_(x)

    def mlp(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if not self.gated:
            return self.down(F.gelu(y, approximate="tanh") if self.gelu else F.silu(y))
        gate, up = y.chunk(2, -1)
        return self.down((F.gelu(gate, approximate="tanh") if self.gelu else F.silu(gate)).mul_(up))


def rotate_(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """`model.rotate` in place and in three operations: the sign of the second product stands in the table. x (N, heads, E), rope (N, 1, E)."""
    cos, sin = rope
    half = x.shape[-1] // 2
    other = torch.cat((x[..., half:], x[..., :half]), -1)
    return x.mul_(cos).addcmul_(other, sin)


def attend_many(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """q (1, H, t, E), k and v (1, K, S, E) -> (1, H, t, E); without a bias causal, the queries being the last t of S."""
    groups = q.shape[1] // k.shape[1]
    if softcap is None:
        if groups > 1 and bias is not None and q.is_cuda:  # the kernels that take a bias know no groups; repeating costs little here
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None and q.shape[2] > 1, scale=scale,
                                              enable_gqa=q.shape[1] != k.shape[1])
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap
    if bias is not None:
        scores = scores + bias
    elif q.shape[2] > 1:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    return scores.float().softmax(-1).to(q.dtype) @ v


def attend_one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """One new token a row: q (n, K, G, E), whose G queries see the same keys, k and v (n, K, S, E) -> (n, K, G, E)."""
    if softcap is None and not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    # On a GPU as products: the fused kernels give one query's S keys to one processor, these spread them.
    scores = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores if bias is None else scores + bias).float().softmax(-1).to(q.dtype) @ v


def end_weights(model: Transformer, kind: str) -> tuple[Linear, Linear, Linear]:
    """(embedding, last norm, head)."""
    config = model.config
    weight = model.embed_tokens.weight.detach()
    embedding_norm = norm_of(model.embed_norm, kind) if config.embedding_norm else None
    scale = torch.tensor(config.hidden_size ** 0.5, dtype=weight.dtype, device=weight.device) if config.scale_embedding else None

    def embed(ids: Tensor) -> Tensor:
        x = F.embedding(ids, weight)
        x = x if scale is None else x * scale
        return x if embedding_norm is None else embedding_norm(x)

    head = weight if config.tie_word_embeddings else model.lm_head.weight.detach()
    return embed, norm_of(model.norm, kind), PlainLinear([(head, None)]) if kind in ("plain", "in place") else of_kind(head, None, kind)
