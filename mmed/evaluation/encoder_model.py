"""BERT and XLM-R as BERTScore needs them (mmed/evaluation/bertscore.py): config.json -> the post-norm transformer up to one layer -> its weights.

No more layers are read from disk than are asked for. Hidden states equal those of transformers (tests/evaluation/test_bertscore.py).

Legend: B texts, T pieces, D hidden, H heads, E head size. References: Devlin et al. 2019; Conneau et al. 2020 (XLM-R).
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.checkpoints.families import IGNORED, NEUTRAL
from mmed.checkpoints.weights import StoredTensor, copy_weights, fit, stored_tensors
from mmed.evaluation.wordpiece import Unigram, WordPiece, load_encoder_tokenizer
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json

MAX_CONFIG_BYTES = 4 << 20
# (model_type, layers, vocabulary) -> the layer that bert-score chose on WMT16 (its utils.py, model2layers)
BEST_LAYER = {("bert", 12, 119547): 9, ("bert", 12, 105879): 9, ("xlm-roberta", 12, 250002): 9, ("xlm-roberta", 24, 250002): 17}


# --------------------------------------------------------------------------------------------------------------- config

@dataclass(frozen=True)
class EncoderConfig:
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    pad_token_id: int

    @property
    def first_position(self) -> int:
        """XLM-R counts positions from the one after its padding's, as fairseq does."""
        return self.pad_token_id + 1 if self.model_type == "xlm-roberta" else 0

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.first_position


SIZES = {"vocab_size": 2 ** 24, "hidden_size": 2 ** 16, "num_hidden_layers": 1000, "num_attention_heads": 2 ** 10, "intermediate_size": 2 ** 18,
         "max_position_embeddings": 2 ** 20, "type_vocab_size": 2 ** 10}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# of training, of the pooler and of heads: nothing of it reaches a hidden state
WITHOUT_EFFECT = IGNORED | set("""hidden_dropout_prob attention_probs_dropout_prob classifier_dropout initializer_range bos_token_id eos_token_id
    tie_word_embeddings directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    output_past gradient_checkpointing""".split())


def read_encoder_config(path: Path) -> EncoderConfig:
    """config.json, checked; a key that may change the mathematics and is not known is refused by name."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; an encoder's folder holds config.json, *.safetensors and a tokenizer")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a config (limit {MAX_CONFIG_BYTES:,})")
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("bert", "xlm-roberta"):
        raise UserError(f"{path}: model_type {str(kind)[:40]!r}; the encoders for BERTScore are bert and xlm-roberta")
    values: dict[str, Any] = {"model_type": kind}
    usual = {"type_vocab_size": 2 if kind == "bert" else 1, "pad_token_id": 0 if kind == "bert" else 1}
    for key, most in {**SIZES, "pad_token_id": 2 ** 24}.items():
        value = config.get(key, usual.get(key))
        if not isinstance(value, int) or isinstance(value, bool) or not (key != "pad_token_id") <= value <= most:
            raise UserError(f"{path}: {key} = {str(value)[:40]}, expected a whole number up to {most:,}")
        values[key] = value
    epsilon, activation = config.get("layer_norm_eps", 1e-12), config.get("hidden_act", "gelu")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise UserError(f"{path}: layer_norm_eps = {str(epsilon)[:40]}, expected a number from 0 to 1")
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act = {str(activation)[:40]!r} is not supported (known: {', '.join(ACTIVATIONS)})")
    for key, value in config.items():
        neutral = {"position_embedding_type": ("absolute",), **NEUTRAL}.get(key)
        known = key in values or key in ("layer_norm_eps", "hidden_act") or (neutral is None and key in WITHOUT_EFFECT) or key.startswith("_")
        if value is not None and not known and (neutral is None or value not in neutral):
            raise UserError(f"{path}: {key} = {str(value)[:80]!r} is nothing that this reader knows; it may change the mathematics, so the model is refused")
    result = EncoderConfig(**values, layer_norm_eps=epsilon, hidden_act=activation)
    if result.hidden_size % result.num_attention_heads:
        raise UserError(f"{path}: hidden_size = {result.hidden_size} is not a multiple of num_attention_heads = {result.num_attention_heads}")
    if result.pad_token_id >= result.vocab_size or result.max_length < 3:
        raise UserError(f"{path}: pad_token_id = {result.pad_token_id} leaves no room in {result.vocab_size:,} pieces or "
                        f"{result.max_position_embeddings} positions")
    return result


# -------------------------------------------------------------------------------------------------------------- encoder

def build_encoder(config: EncoderConfig, layers: int) -> nn.Module:
    """The encoder up to layer `layers`; parameters carry the names of the published weights."""
    D = config.hidden_size
    activation = {"gelu": F.gelu, "relu": F.relu}.get(config.hidden_act, lambda x: F.gelu(x, approximate="tanh"))

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(D, eps=config.layer_norm_eps)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.ModuleDict({
                "self": nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(D, D), "LayerNorm": norm()})})
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(D, config.intermediate_size)})
            self.output = nn.ModuleDict({"dense": nn.Linear(config.intermediate_size, D), "LayerNorm": norm()})

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            own, out = self.attention["self"], self.attention["output"]
            B, T, _ = x.shape
            query, key, value = (own[name](x).view(B, T, config.num_attention_heads, -1).transpose(1, 2) for name in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, T, E)
            x = out["LayerNorm"](x + out["dense"](mixed.transpose(1, 2).reshape(B, T, D)))
            return self.output["LayerNorm"](x + self.output["dense"](activation(self.intermediate["dense"](x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.ModuleDict({
                "word_embeddings": nn.Embedding(config.vocab_size, D), "position_embeddings": nn.Embedding(config.max_position_embeddings, D),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, D), "LayerNorm": norm()})
            self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(layers))})
            self.config = config

        def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
            """(B, T) ids, padded at their ends, and (B,) numbers of real ones -> (B, T, D) hidden states; those of padding mean nothing."""
            T = input_ids.shape[1]
            if not 0 < T <= config.max_length:
                raise ValueError(f"expected 1 to {config.max_length} pieces, got {T}")
            places = torch.arange(T, device=input_ids.device)
            names = self.embeddings
            x = names["word_embeddings"](input_ids) + names["token_type_embeddings"].weight[0]
            x = names["LayerNorm"](x + names["position_embeddings"](places + config.first_position))
            mask = None if bool((lengths == T).all()) else (places < lengths[:, None])[:, None, None]  # (B, 1, 1, T): who may be looked at
            for layer in self.encoder["layer"]:
                x = layer(x, mask)
            return x

    return Encoder()


# -------------------------------------------------------------------------------------------------------------- weights

# beside the encoder in a published folder; the hidden states do not depend on them
HEADS = re.compile(r"(pooler|cls|lm_head|classifier|qa_outputs)\.|embeddings\.(position_ids|token_type_ids)$")
PREFIXES = ("bert.", "roberta.")
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # as converted from TensorFlow


def _own_name(name: str) -> str:
    """
    >>> _own_name("bert.embeddings.LayerNorm.gamma")
    'embeddings.LayerNorm.weight'
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def match_encoder_weights(model: nn.Module, folder: Path) -> list[tuple[torch.Tensor, StoredTensor]]:
    """(parameter, where it is stored); an error that lists what is missing, unexpected or of another shape."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in stored_tensors(folder).items():
        if stored.setdefault(_own_name(name), tensor) is not tensor:
            raise UserError(f"{tensor.path}: {name} and {stored[_own_name(name)].name} are the same weight")
    wanted = dict(model.named_parameters())
    above = {f"encoder.layer.{n}." for n in range(len(model.encoder["layer"]), model.config.num_hidden_layers)}
    stray = [name for name in stored if name not in wanted and not HEADS.match(name) and not any(map(name.startswith, above))]
    return fit(folder, wanted, stored, stray)


def load_encoder(folder: str | Path, layer: int | None = None, dtype: torch.dtype | None = None,
                 device: str | torch.device = "cpu") -> tuple[nn.Module, WordPiece | Unigram]:
    """(encoder up to `layer`, tokenizer) of a published folder; without `layer`, the one bert-score chose for this model."""
    folder = Path(folder)
    config = read_encoder_config(folder / "config.json")
    if layer is None:
        layer = BEST_LAYER.get((config.model_type, config.num_hidden_layers, config.vocab_size))
        if layer is None:
            raise UsageError(f"{folder}: bert-score names no best layer for this encoder; give one, 0 (embeddings) to {config.num_hidden_layers}")
    if not 0 <= layer <= config.num_hidden_layers:
        raise UsageError(f"layer {layer}: this encoder has the layers 0 (embeddings) to {config.num_hidden_layers}")
    tokenizer = load_encoder_tokenizer(folder)
    if tokenizer.size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.size:,} ids, the embedding only {config.vocab_size:,} rows")
    tokenizer.max_length = min(tokenizer.max_length or config.max_length, config.max_length)
    with torch.device("meta"):
        model = build_encoder(config, layer)
    pairs = match_encoder_weights(model, folder)  # before memory is taken
    model = model.to(dtype or torch.float32).to_empty(device=device)
    copy_weights([(parameter, stored) for parameter, (_, stored) in zip(model.parameters(), pairs, strict=True)])
    return model.eval().requires_grad_(False), tokenizer
