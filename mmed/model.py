"""The decoder, top to bottom: token ids in, logits or the summed loss out. `ModelConfig` says which model.

    ids (B, T) -> embed -> N x [norm -> attention -> +, norm -> MLP -> +] -> norm -> lm_head -> (B, T, V)

Llama, Mistral, InternLM, BLOOM, Qwen, Gemma, OLMo 2 and Apertus share one class and differ in a few fields
below. A new family is an entry in FAMILIES of mmed/checkpoints/families.py (its `config.json`), new fields
here if its mathematics differs, PUBLISHED_PARTS and `published_prefix` below if its tensors have other names,
and a model in tests/tiny_models.py. Parameters and fields have the names of the published Llama weights.

Legend: B batch, T new tokens, S keys (cached and new), D hidden size, H query heads, K key/value heads,
G = H / K, E head size, F MLP width, V vocabulary. References: Llama (arXiv 2302.13971), RoPE (2104.09864),
GQA (2305.13245), ALiBi (2108.12409), Gemma 3 (2503.19786), OLMo 2 (2501.00656).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.kernels.activations import ACTIVATIONS, XIELU
from mmed.kernels.attention import FastMask, fast_mask
from mmed.kernels.positions import alibi_slopes, check_length, magnitude, scaled_frequencies
from mmed.kernels.sharded import local_rows
from mmed.loss import summed_cross_entropy


@dataclass
class ModelConfig:
    """The architecture of one decoder. Field names follow transformers' `config.json` where it has them."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    family: str = "llama"                  # names of tensors and keys on disk: a key of families.FAMILIES
    # positions
    position_embedding: str = "rope"       # "rope" | "alibi"
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None       # {"rope_type": "llama3" | "linear" | "dynamic" | "yarn", ...}
    rope_local_theta: float | None = None  # Gemma 3: base of the sliding layers, which are never scaled
    sliding_window: int | None = None      # a query sees itself and the window - 1 keys before it
    sliding_layers: tuple[bool, ...] = ()  # per layer; empty: all layers slide if sliding_window is set
    # attention and MLP
    attention_bias: bool = False           # on q, k, v
    attention_out_bias: bool = False       # on o
    packed_qkv: bool = False  # one matrix; per key/value head: G queries, one key, one value
    qk_norm: bool = False                  # RMSNorm over each head of q and k before the rotation
    qk_norm_wide: bool = False             # OLMo 2: that norm is over all heads together
    attention_scale: float | None = None   # default 1 / sqrt(E)
    attention_softcap: float | None = None
    gated_mlp: bool = True                 # down(act(gate(x)) * up(x)); else down(act(up(x)))
    mlp_bias: bool = False
    activation: str = "silu"               # "silu" | "gelu_tanh" | "xielu"
    # norms, embeddings, head
    norm: str = "rms"  # "rms" | "rms_plus_one" (Gemma: weight is stored minus one) | "layer"
    pre_norms: bool = True                 # normalise the inputs of attention and MLP (not in OLMo 2)
    post_norms: bool = False               # Gemma, OLMo 2: normalise the outputs of attention and MLP
    embedding_norm: bool = False           # BLOOM
    scale_embedding: bool = False          # Gemma: times sqrt(D)
    final_softcap: float | None = None
    initializer_range: float = 0.02
    extra: dict = field(default_factory=dict, compare=False)  # keys of config.json carried through unchanged

    @property
    def by_document(self) -> bool:
        """Whether the fast kernels can be used, which skip pairs of tokens from different documents."""
        return self.position_embedding == "rope" and self.attention_softcap is None

    def slides(self, layer: int) -> bool:
        return self.sliding_window is not None and (not self.sliding_layers or self.sliding_layers[layer])


# ---------------------------------------------------------------------------------------- norms and positions

class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, plus_one: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        if self.plus_one:  # in fp32: 1 + weight would lose the weight's digits in bf16
            return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(size, eps=config.rms_norm_eps)
    return RMSNorm(size, config.rms_norm_eps, plus_one=config.norm == "rms_plus_one")


def rope_frequencies(config: ModelConfig, theta: float, scaled: bool, device: torch.device) -> Tensor:
    """Angular speed of each rotated pair, fp32 (E / 2): theta^(-2i/E), stretched as `rope_scaling` says."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    speed = 1.0 / theta ** exponent
    return scaled_frequencies(speed, theta, config.rope_scaling) if scaled and config.rope_scaling else speed


def rope(config: ModelConfig, positions: Tensor, slides: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, E) of the rotation at `positions` (B, T), for sliding or for full layers."""
    check_length(config.rope_scaling, positions.shape[1], config.max_position_embeddings)
    local = config.rope_local_theta if slides else None
    speed = rope_frequencies(config, local or config.rope_theta, local is None, positions.device)
    angles = positions[:, None, :, None].float() * torch.cat((speed, speed))  # (B, 1, T, E)
    size = magnitude(config.rope_scaling) if config.rope_scaling and local is None else 1.0
    return (angles.cos() * size).to(dtype), (angles.sin() * size).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of each head. x (B, heads, T, E), cos and sin (B or 1, 1, T, E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# -------------------------------------------------------------------------------------------------- attention

class KVCache:
    """`keys` and `values` (layers, B, K, S, E); the token at position p of a sequence is at index p.
    Nothing beyond a sequence's own length is ever attended to, so prompts are padded on the right."""

    def __init__(self, config: ModelConfig, batch: int, length: int, dtype: torch.dtype,
                 device: torch.device | str = "cpu"):
        shape = (2, config.num_hidden_layers, batch, config.num_key_value_heads, length, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Store k and v (B, K, T, E) at `positions` (B, T); return the first `used` keys and values."""
        rows = torch.arange(len(k), device=k.device)[:, None]
        self.keys[layer][rows, :, positions] = k.transpose(1, 2)
        self.values[layer][rows, :, positions] = v.transpose(1, 2)
        return self.keys[layer, :len(k), :, :used], self.values[layer, :len(v), :, :used]


@dataclass
class AttentionInputs:
    """Shared by all layers of a forward pass; `rope[True]` and `masks[True]` are for sliding layers."""

    rope: dict[bool, tuple[Tensor, Tensor]]      # cos, sin (B or 1, 1, T, E)
    masks: dict[bool, Tensor | FastMask | None]  # what each query sees; None: all keys up to its own
    cache: KVCache | None
    positions: Tensor                            # (B, T)
    used: int                                    # keys in use: those in the cache and the new tokens


def dense_mask(config: ModelConfig, queries: Tensor, keys: Tensor, window: int | None, dtype: torch.dtype,
               same: Tensor | None = None) -> Tensor:
    """Which keys at positions `keys` (S) the queries at `queries` (B or 1, T) see: bool (B or 1, 1, T, S), or
    with ALiBi a bias (B or 1, H, T, S), -inf for unseen keys. `same`: whether a pair shares a document."""
    distance = queries[:, None, :, None] - keys
    visible = distance >= 0 if same is None else (distance >= 0) & same
    if window is not None:
        visible = visible & (distance < window)
    if config.position_embedding != "alibi":
        return visible
    slopes = alibi_slopes(config.num_attention_heads).to(queries.device)[None, :, None, None]
    return (-slopes * distance).masked_fill(~visible, -torch.inf).to(dtype)


def row_mask(config: ModelConfig, x: Tensor, document_ids: Tensor | None, window: int | None,
             dtype: torch.dtype) -> Tensor | FastMask | None:
    """The mask of whole rows x (B, T, D); tokens see their own document only. None: plain causal."""
    B, T, _ = x.shape
    if config.by_document:
        fast = fast_mask(document_ids, B, T, window, x.device)
        if fast is not None or (document_ids is None and window is None):
            return fast
    index = torch.arange(T, device=x.device)
    same = None if document_ids is None else document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return dense_mask(config, index[None], index, window, dtype, same)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else torch.tanh(x / cap) * cap


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | FastMask | None, scale: float,
           softcap: float | None = None) -> Tensor:
    """softmax(q kT * scale + mask) v. q (B, H, T, E), k and v (B, K, S, E) -> (B, T, H, E)."""
    if isinstance(mask, FastMask):
        return mask.attend(q, k, v, scale)
    if softcap is None:
        causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale,
                                              enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)
    assert mask is not None, "a soft cap needs a mask"
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = soft_cap(q @ k.transpose(2, 3) * scale, softcap)
    return (scores.masked_fill(~mask, -torch.inf).float().softmax(-1).to(q.dtype) @ v).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer, self.slides = config, layer, config.slides(layer)
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        if config.packed_qkv:
            self.qkv_proj = nn.Linear(D, (H + 2 * K) * E, bias=config.attention_bias)
        else:
            self.q_proj = nn.Linear(D, H * E, bias=config.attention_bias)
            self.k_proj = nn.Linear(D, K * E, bias=config.attention_bias)
            self.v_proj = nn.Linear(D, K * E, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * E, D, bias=config.attention_out_bias)
        if config.qk_norm:
            heads = (H, K) if config.qk_norm_wide else (1, 1)
            self.q_norm, self.k_norm = (make_norm(config, n * E) for n in heads)
        self.scale = config.attention_scale or E ** -0.5

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """All heads side by side (..., (H + 2 K) E) -> q (..., H, E), k and v (..., K, E)."""
        H, K, E = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        if not self.config.packed_qkv:
            return qkv.unflatten(-1, (-1, E)).split((H, K, K), -2)
        q, k, v = qkv.unflatten(-1, (K, -1, E)).split((H // K, 1, 1), -2)
        return q.flatten(-3, -2), k.squeeze(-2), v.squeeze(-2)

    def norm_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (..., H, E) and k (..., K, E), normed if the model does so."""
        if not self.config.qk_norm:
            return q, k
        if not self.config.qk_norm_wide:
            return self.q_norm(q), self.k_norm(k)
        return self.q_norm(q.flatten(-2)).view(q.shape), self.k_norm(k.flatten(-2)).view(k.shape)

    def forward(self, x: Tensor, shared: AttentionInputs) -> Tensor:
        config = self.config
        if config.packed_qkv:
            q, k, v = self.split(self.qkv_proj(x))
        else:
            q, k, v = (project(x).unflatten(-1, (-1, config.head_dim))
                       for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.norm_heads(q, k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, E)
        if config.position_embedding == "rope":
            q, k = rotate(q, *shared.rope[self.slides]), rotate(k, *shared.rope[self.slides])
        if shared.cache is not None:
            k, v = shared.cache.update(self.layer, k, v, shared.positions, shared.used)  # (B, K, S, E)
        out = attend(q, k, v, shared.masks[self.slides], self.scale, config.attention_softcap)
        return self.o_proj(out.flatten(2))


# ------------------------------------------------------------------------------------------ MLP, block, model

class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, width, self.gated = config.hidden_size, config.intermediate_size, config.gated_mlp
        if self.gated:
            self.gate_proj = nn.Linear(D, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, D, bias=config.mlp_bias)
        self.act_fn = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act_fn(self.gate_proj(x) if self.gated else self.up_proj(x))
        return self.down_proj(inner * self.up_proj(x) if self.gated else inner)


class Block(nn.Module):
    """`post_attention_layernorm` is, despite its name, the norm before the MLP, except with `post_norms`."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        unnormed = None if config.pre_norms else nn.Identity()
        self.input_layernorm = unnormed or make_norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.pre_feedforward_layernorm = unnormed or make_norm(config, config.hidden_size)
            self.post_feedforward_layernorm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor, shared: AttentionInputs) -> Tensor:
        return self.add(x, self.self_attn(self.input_layernorm(x), shared), self.mlp)

    def add(self, x: Tensor, attended: Tensor, mlp: Callable[[Tensor], Tensor]) -> Tensor:
        """The residual stream x (..., D) with the outputs of attention and MLP."""
        if self.post_norms:  # Gemma: four norms, two of them on what is added; OLMo 2: those two
            x = x + self.post_attention_layernorm(attended)
            return x + self.post_feedforward_layernorm(mlp(self.pre_feedforward_layernorm(x)))
        x = x + attended
        return x + mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    int8 = False  # decode with 8-bit weights (mmed/inference)

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_norm = make_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = make_norm(config, config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        if self.config.scale_embedding:
            x = x * torch.tensor(self.config.hidden_size ** 0.5, dtype=x.dtype)
        return self.embed_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        return soft_cap(F.linear(x, self.head_weight), self.config.final_softcap)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *, positions: Tensor | None = None,
                document_ids: Tensor | None = None, loss_positions: Tensor | None = None,
                cache: KVCache | None = None, logits_at: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `input_ids` (B, T); with `labels` (B, T) the summed cross-entropy, in fp32.

        labels          the token that each position should predict (already shifted), or IGNORE
        positions       (B, T) position of each token in its document, or in its piece of one; default 0..T-1
        document_ids    (B, T) number of a token's document: tokens see their own document only
        loss_positions  indices of the labels that are not IGNORE in the flat batch, if known
        cache           the keys and values of the tokens before these; those of these tokens are added
        logits_at       (B,) index of one token in each row: only its logits are returned, (B, V)
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.embed(input_ids)
        shared = self.attention_inputs(x, positions, document_ids, cache)
        for block in self.layers:
            x = block(x, shared)
        if logits_at is not None:
            x = x[torch.arange(len(x), device=x.device), logits_at]
        x = self.norm(x)
        if labels is None:
            return self.logits(x)
        return summed_cross_entropy(x, self.head_weight, labels, self.config.final_softcap, loss_positions)

    def attention_inputs(self, x: Tensor, positions: Tensor, document_ids: Tensor | None = None,
                         cache: KVCache | None = None) -> AttentionInputs:
        """Rotation angles and masks, once for all layers. x (B, T, D), positions (B or 1, T)."""
        config, device = self.config, x.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
        used = x.shape[1] if cache is None else int(positions.max()) + 1
        shared = AttentionInputs({}, {}, cache, positions.expand(len(x), -1), used)
        for slides in {config.slides(layer) for layer in range(config.num_hidden_layers)}:
            if config.position_embedding == "rope":
                shared.rope[slides] = rope(config, positions, slides, dtype)
            window = config.sliding_window if slides else None
            window = window if window and window < used else None
            if cache is None:
                shared.masks[slides] = row_mask(config, x, document_ids, window, dtype)
            else:
                keys = torch.arange(used, device=device)
                shared.masks[slides] = dense_mask(config, positions, keys, window, dtype)
        return shared

    @torch.no_grad()
    def init_weights(self, seed: int) -> Transformer:
        """Normal weights of `initializer_range`, zero biases, unit norms; the same on any number of ranks."""
        generator = torch.Generator().manual_seed(seed)
        residual = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)  # as GPT-2
        for name, parameter in self.named_parameters():
            local, rows = local_rows(parameter)
            if name.endswith("bias"):
                local.zero_()
            elif ".act_fn." in name:
                local.fill_(XIELU.INITIAL[name.rpartition(".")[2]])
            elif parameter.dim() == 1:
                local.fill_(0.0 if self.config.norm == "rms_plus_one" else 1.0)
            elif ".lora_" not in name:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))  # to the residual stream
                std = residual if added else self.config.initializer_range
                local.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator)[rows])
        return self


# -------------------------------------------------------------------------------------------- published names

# Families whose weight files name the parts of a model differently: our part of a name -> theirs.
PUBLISHED_PARTS = {
    "internlm2": {"embed_tokens": "tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
                  "post_attention_layernorm": "ffn_norm", "self_attn": "attention", "qkv_proj": "wqkv",
                  "o_proj": "wo", "mlp": "feed_forward", "gate_proj": "w1", "up_proj": "w3",
                  "down_proj": "w2"},
    "bloom": {"embed_tokens": "word_embeddings", "embed_norm": "word_embeddings_layernorm", "layers": "h",
              "self_attn": "self_attention", "qkv_proj": "query_key_value", "o_proj": "dense",
              "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h", "norm": "ln_f"},
    "apertus": {"input_layernorm": "attention_layernorm",
                "post_attention_layernorm": "feedforward_layernorm"},
}


def published_prefix(config: ModelConfig) -> str:
    """What precedes every published name except the head's."""
    return "transformer." if config.family == "bloom" else "model."


def published_name(config: ModelConfig, name: str) -> str:
    """The family's published name of the tensor or layer that `Transformer` calls `name`."""
    renamed = PUBLISHED_PARTS.get(config.family, {})
    parts = ".".join(renamed.get(part, part) for part in name.split("."))
    return parts if name.startswith("lm_head") else published_prefix(config) + parts


def own_name(config: ModelConfig, name: str) -> str:
    renamed = {theirs: ours for ours, theirs in PUBLISHED_PARTS.get(config.family, {}).items()}
    parts = name.removeprefix(published_prefix(config)).split(".")
    return ".".join(renamed.get(part, part) for part in parts)
