"""The decoder, top to bottom: token ids in, logits (or the summed loss) out. Every model of the paper is one `ModelConfig`.

    ids (B, T) -> embed_tokens -> N x [norm -> attention -> +, norm -> MLP -> +] -> norm -> lm_head -> logits (B, T, V)

What differs between Llama, Mistral, InternLM, InternLM 2, BLOOM, Qwen and Gemma is a handful of fields below, not a class
each; the names of their tensors on disk are a table in `mmed/checkpoints/families.py`. Parameter and field names are those of the
published Llama weights and `config.json`.

Legend: B batch, T new tokens, S tokens seen, D hidden size, H query heads, K key/value heads, G = H / K, E head size,
F MLP width, V vocabulary. References: Llama (arXiv 2302.13971), RoPE (2104.09864), GQA (2305.13245), ALiBi (2108.12409),
Gemma 3 (2503.19786).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mmed.kernels.attention import Tiles, block_mask, document_attention, document_tiles, flex
from mmed.loss import summed_cross_entropy

NARROW = 0.9  # supervised share of a batch up to which the last MLP computes these tokens only: of the others nobody reads the result


@dataclass
class ModelConfig:
    """The mathematics of one decoder. Field names follow transformers' `config.json` where it has them."""

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
    family: str = "llama"                 # whose tensor names and config.json to write: a key of checkpoint.FAMILIES
    # positions
    position_embedding: str = "rope"      # "rope" | "alibi"
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None      # {"rope_type": "llama3" | "linear" | "dynamic", ...}
    rope_local_theta: float | None = None  # Gemma 3: base of the sliding layers, which are never scaled
    sliding_window: int | None = None     # a query sees itself and the window - 1 keys before it
    sliding_layers: tuple[bool, ...] = ()  # per layer; empty: all layers slide if sliding_window is set
    # attention and MLP
    attention_bias: bool = False          # on q, k, v
    attention_out_bias: bool = False      # on o
    packed_qkv: bool = False              # one matrix, rows in groups of (G queries, key, value) per key/value head
    qk_norm: bool = False                 # RMSNorm over each head of q and k before the rotation
    attention_scale: float | None = None  # default 1 / sqrt(E)
    attention_softcap: float | None = None
    gated_mlp: bool = True                # down(act(gate(x)) * up(x)); else down(act(up(x)))
    mlp_bias: bool = False
    activation: str = "silu"              # "silu" | "gelu_tanh"
    # norms, embeddings, head
    norm: str = "rms"                     # "rms" | "rms_plus_one" (Gemma: weight is stored minus one) | "layer"
    post_norms: bool = False              # Gemma: also normalise what attention and MLP add
    embedding_norm: bool = False          # BLOOM
    scale_embedding: bool = False         # Gemma: times sqrt(D)
    final_softcap: float | None = None
    initializer_range: float = 0.02
    extra: dict = field(default_factory=dict, compare=False)  # keys of config.json carried through unchanged (token ids, names)

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                             f"num_key_value_heads {self.num_key_value_heads}")

    @property
    def by_document(self) -> bool:
        """Whether attention's work grows with the length of documents, not of rows (and rows may be of any length)."""
        return self.position_embedding == "rope" and self.attention_softcap is None and (self.rope_scaling or {}).get("rope_type") != "dynamic"

    def slides(self, layer: int) -> bool:
        """Whether this layer attends within `sliding_window` only."""
        return self.sliding_window is not None and (not self.sliding_layers or self.sliding_layers[layer])


# Families whose weight files name the parts of a model differently: our part of a name -> theirs.
PUBLISHED_PARTS = {
    "internlm2": {"embed_tokens": "tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
                  "post_attention_layernorm": "ffn_norm", "self_attn": "attention", "qkv_proj": "wqkv", "o_proj": "wo",
                  "mlp": "feed_forward", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "bloom": {"embed_tokens": "word_embeddings", "embed_norm": "word_embeddings_layernorm", "layers": "h",
              "self_attn": "self_attention", "qkv_proj": "query_key_value", "o_proj": "dense",
              "up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h", "norm": "ln_f"},
}


def published_prefix(config: ModelConfig) -> str:
    """What precedes every published name except the head's."""
    return "transformer." if config.family == "bloom" else "model."


def published_name(config: ModelConfig, name: str) -> str:
    """The family's published name of the tensor or layer that `Transformer` calls `name`."""
    renamed = PUBLISHED_PARTS.get(config.family, {})
    parts = ".".join(renamed.get(part, part) for part in name.split("."))
    return parts if name.startswith("lm_head") else published_prefix(config) + parts


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 and rounded before the weight is applied, as the published models do."""

    def __init__(self, size: int, eps: float, plus_one: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if plus_one else torch.ones(size))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.plus_one:  # Gemma multiplies before it rounds
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(size, eps=config.rms_norm_eps)
    return RMSNorm(size, config.rms_norm_eps, plus_one=config.norm == "rms_plus_one")


@torch.library.custom_op("mmed::onednn_linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in fp32 by oneDNN: 12 to 20 % quicker on an AMD processor than MKL, which `F.linear` asks; W's gradient is not."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@onednn_linear.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _linear_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    rows = grad.flatten(0, -2)
    return (onednn_linear(grad, weight.t(), None) if ctx.needs_input_grad[0] else None,
            rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None, rows.sum(0) if ctx.needs_input_grad[2] else None)


onednn_linear.register_autograd(_linear_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]))


class Linear(nn.Linear):
    """`nn.Linear`, by the quicker of a CPU's two libraries where it is large enough to matter."""

    ONEDNN_FROM = 256  # in and out features

    def forward(self, x: Tensor) -> Tensor:
        if (x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and min(self.weight.shape) >= self.ONEDNN_FROM
                and not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.is_available()):
            return onednn_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


# ---------------------------------------------------------------------------------------------------------- positions

def rope_frequencies(config: ModelConfig, theta: float, scaled: bool, device: torch.device) -> Tensor:
    """Angular speed of each rotated pair, fp32 (E / 2): theta^(-2i/E), stretched as `rope_scaling` says."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    speed = 1.0 / theta ** exponent
    scaling = config.rope_scaling if scaled else None
    if not scaling or scaling["rope_type"] == "dynamic":  # dynamic: unscaled up to max_position_embeddings, longer is refused
        return speed
    if scaling["rope_type"] == "linear":
        return speed / scaling["factor"]
    # Llama 3.1: wavelengths beyond the old context are stretched by `factor`, short ones kept, those between blended.
    old, low, high = scaling["original_max_position_embeddings"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / speed
    blend = ((old / wavelength - low) / (high - low)).clamp(0, 1)
    return speed / scaling["factor"] * (1 - blend) + speed * blend


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of each head. x (B, heads, T, E), cos and sin (B or 1, 1, T, E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def alibi_slopes(heads: int) -> Tensor:
    """One slope a head: a geometric series; beyond a power of two the odd members of the next series (ALiBi, appendix)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)


# ---------------------------------------------------------------------------------------------------------- attention

@dataclass
class AttentionInputs:
    """What all layers share in one forward pass."""

    rope: dict[bool, tuple[Tensor, Tensor]]  # slides? -> cos, sin (B or 1, 1, T, E)
    masks: dict[bool, object]                # slides? -> what each query sees: see `Transformer.mask`


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.slides = config, config.slides(layer)
        D, H, K, E = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if config.packed_qkv:
            self.qkv_proj = Linear(D, (H + 2 * K) * E, bias=config.attention_bias)
        else:
            self.q_proj = Linear(D, H * E, bias=config.attention_bias)
            self.k_proj = Linear(D, K * E, bias=config.attention_bias)
            self.v_proj = Linear(D, K * E, bias=config.attention_bias)
        self.o_proj = Linear(H * E, D, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = make_norm(config, E), make_norm(config, E)
        self.scale = config.attention_scale or E ** -0.5

    def forward(self, x: Tensor, shared: AttentionInputs) -> Tensor:
        config, (B, T, _) = self.config, x.shape
        H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if config.packed_qkv:
            qkv = self.qkv_proj(x).view(B, T, K, H // K + 2, E)            # each group: G queries, one key, one value
            q, k, v = qkv[..., :-2, :].reshape(B, T, H, E), qkv[..., -2, :], qkv[..., -1, :]
        else:
            q, k, v = self.q_proj(x).view(B, T, H, E), self.k_proj(x).view(B, T, K, E), self.v_proj(x).view(B, T, K, E)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, E)
        if config.position_embedding == "rope":
            cos, sin = shared.rope[self.slides]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = attend(q, k, v, shared.masks[self.slides], self.scale, config.attention_softcap)
        return self.o_proj(out.reshape(B, T, H * E))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: object, scale: float, softcap: float | None) -> Tensor:
    """softmax(q k^T * scale + mask) v. q (B, H, T, E), k and v (B, K, S, E) -> (B, T, H, E); mask None is causal with T == S."""
    if isinstance(mask, Tiles):
        return document_attention(q, k, v, mask, scale)
    if mask is not None and not isinstance(mask, Tensor):
        return flex(q, k, v, mask, scale)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, scale=scale,
                                              enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.float().softmax(-1).to(q.dtype) @ v).transpose(1, 2)


# --------------------------------------------------------------------------------------------------- MLP, block, model

class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        if config.gated_mlp:
            self.gate_proj = Linear(D, width, bias=bias)
        self.up_proj = Linear(D, width, bias=bias)
        self.down_proj = Linear(width, D, bias=bias)
        self.gated, self.gelu = config.gated_mlp, config.activation == "gelu_tanh"

    def forward(self, x: Tensor) -> Tensor:
        inner = self.gate_proj(x) if self.gated else self.up_proj(x)
        inner = F.gelu(inner, approximate="tanh") if self.gelu else F.silu(inner)
        return self.down_proj(inner * self.up_proj(x) if self.gated else inner)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = make_norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.pre_feedforward_layernorm = make_norm(config, config.hidden_size)
            self.post_feedforward_layernorm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor, shared: AttentionInputs, wanted: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D), or of the `wanted` places of the flat batch alone (1, N, D): after attention tokens are by themselves."""
        added = self.self_attn(self.input_layernorm(x), shared)
        x = x + (self.post_attention_layernorm(added) if self.post_norms else added)
        if wanted is not None:
            x = x.flatten(0, 1).index_select(0, wanted)[None]
        if self.post_norms:  # Gemma: four norms, two of them on what is added
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.embedding_norm:
            self.embed_norm = make_norm(config, config.hidden_size)
        self.layers = nn.ModuleList([Block(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = make_norm(config, config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.activation_checkpointing = 0  # n: every n-th block is computed again in the backward pass

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the output matrix, which is the embedding itself when the two are tied."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, *, positions: Tensor | None = None,
                documents: Tensor | None = None, supervised: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `input_ids` (B, T) int64; with `labels` (B, T) the summed cross-entropy, a fp32 scalar.

        labels     the token that each position should predict (already shifted), or IGNORE
        positions  (B, T) place of each token in its document; default 0..T-1
        documents  (B, T) number of the document a token belongs to: tokens see their own document only
        supervised places of the labels that are not IGNORE in the flat batch, if known

        For training, and for a text all at once; to go on from a text there is `mmed/inference/decoder.py`, which keeps keys and values.
        """
        config = self.config
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.embed_tokens(input_ids)
        if config.scale_embedding:
            x = x * torch.tensor(config.hidden_size ** 0.5, dtype=x.dtype)
        if config.embedding_norm:
            x = self.embed_norm(x)
        shared = self.attention_inputs(x, positions, documents)
        narrow = labels is not None and supervised is not None and 0 < len(supervised) <= NARROW * labels.numel()
        for layer, block in enumerate(self.layers):
            args = (x, shared, supervised) if narrow and layer == len(self.layers) - 1 else (x, shared)
            if self.activation_checkpointing and layer % self.activation_checkpointing == 0 and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
            else:
                x = block(*args)
        if narrow:
            labels, supervised = labels.flatten()[supervised], torch.arange(len(supervised), device=labels.device)
        x = self.norm(x)
        if labels is not None:
            return summed_cross_entropy(x, self.head_weight, labels, config.final_softcap, supervised)
        logits = F.linear(x, self.head_weight)
        return logits if config.final_softcap is None else torch.tanh(logits / config.final_softcap) * config.final_softcap

    def compile_blocks(self) -> None:
        """torch.compile of each block. Their code is one, in several forms, so that the limit of 8 would be reached:

        the first block of LoRA has no gradient for its input, the last computes what is wanted; each for one width, then for any.
        """
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for block in self.layers:
            block.compile()

    def attention_inputs(self, x: Tensor, positions: Tensor, documents: Tensor | None) -> AttentionInputs:
        """Rotation angles and masks, once for all layers."""
        config, device = self.config, x.device
        kinds = {config.slides(layer) for layer in range(config.num_hidden_layers)}
        if x.shape[1] > config.max_position_embeddings and (config.rope_scaling or {}).get("rope_type") == "dynamic":
            raise ValueError(f"{x.shape[1]} tokens in a row, but this model's rotation changes with the length beyond its "
                             f"{config.max_position_embeddings} positions (dynamic scaling), which is not supported")
        rope, masks = {}, {}
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
        tiles = document_tiles(documents, x.shape[1]) if device.type == "cpu" else None
        for slides in kinds:
            if config.position_embedding == "rope":
                local = slides and config.rope_local_theta is not None
                theta = config.rope_local_theta if local else config.rope_theta
                angles = positions[..., None].float() * rope_frequencies(config, theta, not local, device)  # (B, T, E/2)
                angles = torch.cat((angles, angles), -1)[:, None]                                            # (B, 1, T, E)
                rope[slides] = angles.cos().to(dtype), angles.sin().to(dtype)
            masks[slides] = self.mask(x.shape[1], device, documents, tiles, slides, dtype)
        return AttentionInputs(rope, masks)

    def mask(self, T: int, device: torch.device, documents: Tensor | None, tiles: Tiles | None, slides: bool, dtype: torch.dtype) -> object:
        """What each query sees: `Tiles` on a CPU; on a GPU None (plain causal) or FlexAttention's block mask.

        With ALiBi and soft-capped scores a tensor, bool or additive (B or 1, 1 or H, T, T), or None for plain causal.
        """
        config = self.config
        alibi = config.position_embedding == "alibi"
        window = config.sliding_window if slides else None
        if window is not None and window >= T:
            window = None
        if not alibi and config.attention_softcap is None:
            if tiles is not None:
                return replace(tiles, window=window)
            if device.type == "cuda" and (documents is not None or window is not None):
                return block_mask(documents, window, T, device)
        if documents is None and not alibi and window is None:
            return None
        index = torch.arange(T, device=device)
        distance = (index[:, None] - index)[None, None]                              # (1, 1, T, T)
        visible = distance >= 0
        if documents is not None:
            visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
        if window is not None:
            visible = visible & (distance < window)
        if not alibi:
            return visible
        slopes = alibi_slopes(config.num_attention_heads).to(device)[None, :, None, None]
        return (-slopes * distance).masked_fill(~visible, -torch.inf).to(dtype)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Transformer:
        """Normal weights of `initializer_range`, zero biases, unit norms; the same numbers on every device and rank count."""
        generator = torch.Generator().manual_seed(seed)
        residual = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)  # GPT-2: what adds to the stream
        for name, parameter in self.named_parameters():
            local, rows = local_rows(parameter)
            if name.endswith("bias"):
                local.zero_()
            elif parameter.dim() == 1:
                local.fill_(0.0 if self.config.norm == "rms_plus_one" else 1.0)
            elif ".lora_" not in name:
                std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else self.config.initializer_range
                local.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator)[rows])
        return self


def local_rows(parameter: Tensor) -> tuple[Tensor, slice]:
    """(the part of `parameter` on this rank, which rows of the whole it is): everything, when it is not sharded."""
    if not hasattr(parameter, "to_local"):
        return parameter, slice(0, parameter.shape[0])

    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local(), slice(offset[0], offset[0] + shape[0])
