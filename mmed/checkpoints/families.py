"""Model families: how each spells its `config.json`. What differs in their tensors' names is in
mmed/model.py.

    config.json  --read_config-->  ModelConfig  --write_config-->  config.json     (reads transformers 4 and
                 5, writes 4)

Each family is a function that reads its keys. No tensor is reshaped: InternLM 2's `wqkv` and BLOOM's
`query_key_value` are one packed matrix in the same grouped layout (ModelConfig.packed_qkv), so a round trip
is bit-equal.

Strict: a key that the family's function did not read and that is not known to have no effect is rejected by
name, because it may change the mathematics. Numbers are checked against their range before any memory is
taken. References: the published configs and transformers' `configuration_*.py` of each family.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmed.model import ModelConfig
from mmed.utils.errors import UserError

NEEDED = object()  # "default" of a key that must be there
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
SLIDING, FULL = "sliding_attention", "full_attention"

# Keys that change nothing here: bookkeeping, and generation settings that transformers 4 wrote there.
IGNORED = set(
    """architectures model_type torch_dtype dtype transformers_version use_cache auto_map
    attn_implementation pretraining_tp output_attentions output_hidden_states output_scores
    return_dict return_dict_in_generate torchscript use_bfloat16 tf_legacy_loss id2label label2id
    problem_type finetuning_task task_specific_params prefix tokenizer_class chunk_size_feed_forward
    is_decoder cross_attention_hidden_size tie_encoder_decoder decoder_start_token_id sep_token_id
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids
    cache_implementation do_sample early_stopping length_penalty max_length max_new_tokens
    min_length no_repeat_ngram_size encoder_no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences diversity_penalty repetition_penalty temperature top_k top_p typical_p
    remove_invalid_values exponential_decay_length_penalty max_sequence_length unsloth_fixed
    unsloth_version""".split())
# Keys that would change the mathematics, and the values that do not.
NEUTRAL = {
    "attention_dropout": (0, ), "hidden_dropout": (0, ), "is_encoder_decoder": (False, ),
    "pruned_heads": ({}, ), "add_cross_attention": (False, ), "partial_rotary_factor": (1, ),
    "use_bidirectional_attention": (False, ), "bias": (False, ), "attention_bias": (False, ),
    "mlp_bias": (False, )
}


class Keys:
    """A config.json that is read key by key; `rest()` are the keys that nobody read."""

    def __init__(self, config: dict):
        self.config, self.seen = config, set()

    def get(self, key: str, default: Any = NEEDED, kind: type = int, low: float = 1, high: float = 2 ** 28,
            nullable: bool = False) -> Any:
        """The value of a key, of the right type and within its range. null is accepted where it is the
        default, too.
        """
        self.seen.add(key)
        value = self.config.get(key, default)
        if value is NEEDED:
            raise UserError(f"config.json: no {key!r}")
        if value is None and (nullable or default is None):
            return None
        if kind is float and type(value) is int and abs(value) < 10 ** 300:
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"config.json: {key} = {str(value)[:80]!r}, expected {kind.__name__}")
        if kind in (int, float) and not low <= value <= high:
            raise UserError(f"config.json: {key} = {value!r}, expected a value from {low:g} to {high:g}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        return self.get(key, default, bool)

    def number(self, key: str, default: Any = NEEDED, low: float = 1e-6, high: float = 1e12) -> Any:
        return self.get(key, default, float, low, high)

    def object(self, key: str) -> dict:
        return self.get(key, None, dict) or {}

    def only(self, key: str, *allowed: Any) -> None:
        """A key whose other values would mean another model."""
        self.seen.add(key)
        value = self.config.get(key)
        if value is not None and value not in allowed:
            known = ", ".join(str(one) for one in allowed if one is not None)
            raise UserError(f"config.json: {key} = {str(value)[:80]!r} is not supported" +
                            (f" (known: {known})" if known else ""))

    def rest(self) -> list[str]:
        return [key for key, value in self.config.items()
                if value is not None and key not in self.seen and not key.startswith("_")]


# ------------------------------------------------------------------------------------------------------------
# Parts that several families share


def _sizes(keys: Keys,
           *,
           kv_heads: Any = NEEDED,
           context: Any = NEEDED,
           head_dim: int | None = None,
           tied: bool = False) -> dict:
    """Fields of every family with the key names of Llama; the arguments are the family's defaults."""
    return dict(
        vocab_size=keys.get("vocab_size", high=2 ** 24), hidden_size=keys.get("hidden_size", high=2 ** 18),
        intermediate_size=keys.get("intermediate_size", high=2 ** 20),
        num_hidden_layers=keys.get("num_hidden_layers", high=1000),
        num_attention_heads=keys.get("num_attention_heads", high=2 ** 12),
        num_key_value_heads=keys.get("num_key_value_heads", kv_heads, high=2 ** 12, nullable=True),
        head_dim=keys.get("head_dim", head_dim, high=2 ** 14, nullable=True),
        max_position_embeddings=keys.get("max_position_embeddings", context),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6, 0, 1),
        initializer_range=keys.number("initializer_range", 0.02, 0, 100),
        tie_word_embeddings=keys.flag("tie_word_embeddings", tied))


SCALINGS = {"linear": ("factor",), "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}


def _scaling(values: dict) -> dict | None:
    """`rope_scaling` of any spelling as {"rope_type": ..., its numbers}; None where nothing is scaled."""
    keys = Keys(values)
    kind = values.get("rope_type") or values.get("type") or "default"
    keys.seen |= {"rope_type", "type", "rope_theta"}
    if not isinstance(kind, str) or kind not in ("default", *SCALINGS):
        raise UserError(
            f"config.json: rotary scaling {kind!r} is not supported (known: default, {', '.join(SCALINGS)})")
    keys.only("partial_rotary_factor", 1)
    numbers = {
        key: keys.get(key) if key.startswith("original") else keys.number(key, high=2**28)
        for key in SCALINGS.get(kind, ())
    }
    if rest := keys.rest():
        raise UserError(
            f"config.json: {rest[0]} = {values[rest[0]]!r} of the rotary scaling {kind!r} is not supported")
    return {"rope_type": kind} | numbers if numbers else None


def _rope(keys: Keys) -> dict:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4)."""
    theta = keys.number("rope_theta", 10000.0, 1)
    scaling, parameters = keys.object("rope_scaling"), keys.object("rope_parameters")
    return {
        "rope_theta": Keys(parameters).number("rope_theta", theta, 1), "rope_scaling": _scaling(parameters
                                                                                                or scaling)
    }


def _local_rope(keys: Keys) -> dict:
    """Gemma 3: the sliding layers rotate with a base of their own, and are never scaled."""
    theta, local = keys.number("rope_theta", 1e6, 1), keys.number("rope_local_base_freq", 10000.0, 1)
    scaling, parameters = keys.object("rope_scaling"), keys.object("rope_parameters")
    if not parameters:
        return {"rope_theta": theta, "rope_scaling": _scaling(scaling), "rope_local_theta": local}
    if set(parameters) != {FULL, SLIDING}:
        raise UserError(
            f"config.json: rope_parameters has {', '.join(sorted(parameters))}, expected {FULL} and {SLIDING}"
        )
    full, sliding = (Keys(parameters).object(kind) for kind in (FULL, SLIDING))
    if _scaling(sliding):
        raise UserError("config.json: rotary scaling of the sliding layers is not supported")
    return {"rope_theta": Keys(full).number("rope_theta", theta, 1), "rope_scaling": _scaling(full),
            "rope_local_theta": Keys(sliding).number("rope_theta", local, 1)}


def _layer_types(keys: Keys, slides: list[bool]) -> tuple[bool, ...]:
    """Which layers slide: as `layer_types` says, else `slides`."""
    types = keys.get("layer_types", None, list)
    if types is None:
        return tuple(slides)
    if len(types) != len(slides) or not all(kind in (SLIDING, FULL) for kind in types):
        raise UserError(
            f"config.json: layer_types must be {len(slides)} times {SLIDING!r} or {FULL!r}, got "
            f"{str(types)[:100]}"
        )
    return tuple(kind == SLIDING for kind in types)


def _late_windows(keys: Keys, layers: int) -> dict:
    """Qwen: the layers from `max_window_layers` on slide, if `use_sliding_window`."""
    window, used = keys.get("sliding_window", 4096, nullable=True), keys.flag("use_sliding_window")
    first = keys.get("max_window_layers", layers, low=0)
    on = window is not None and used
    slides = _layer_types(keys, [on and layer >= first for layer in range(layers)])
    if any(slides) and not on:
        raise UserError("config.json: layer_types has sliding layers, but use_sliding_window is off")
    return {"sliding_window": window, "sliding_layers": slides} if any(slides) else {}


def _alternating_windows(keys: Keys, layers: int, period: int) -> dict:
    """Gemma: every layer slides but each `period`-th."""
    period = keys.get("sliding_window_pattern", keys.get("_sliding_window_pattern", period))
    slides = _layer_types(keys, [(layer + 1) % period != 0 for layer in range(layers)])
    return {"sliding_window": keys.get("sliding_window", 4096), "sliding_layers": slides}


# ------------------------------------------------------------------------------------------------------------
# One function per family: the fields of its ModelConfig


def llama(keys: Keys) -> dict:
    keys.only("hidden_act", "silu", "swish")
    return _sizes(keys, kv_heads=None, context=2048) | _rope(keys) | dict(
        attention_bias=keys.flag("attention_bias"), mlp_bias=keys.flag("mlp_bias"))


def mistral(keys: Keys) -> dict:
    keys.only("hidden_act", "silu", "swish")
    return _sizes(keys) | _rope(keys) | dict(sliding_window=keys.get("sliding_window", 4096, nullable=True))


def internlm(keys: Keys) -> dict:
    """Its code has rotary = {"base": ..., "type": "dynamic" or "origin"}; dynamic with factor 1 when absent.
    """
    keys.only("hidden_act", "silu", "swish")
    rotary = Keys(keys.object("rotary") or {"base": 10000, "type": "dynamic"})
    kind = rotary.get("type", None, str)
    if kind not in ("dynamic", "origin"):
        raise UserError(
            f"config.json: rotary = {rotary.config!r} is not supported (known types: dynamic, origin)")
    factor, theta = rotary.number("scaling_factor", 1.0), rotary.number("base", 10000.0, 1)
    if rest := rotary.rest():
        raise UserError(f"config.json: {rest[0]} of rotary is not supported")
    return _sizes(keys, kv_heads=None) | dict(
        attention_bias=keys.flag("bias", True), rope_theta=theta,
        rope_scaling={"rope_type": "dynamic", "factor": factor} if kind == "dynamic" else None)


def internlm2(keys: Keys) -> dict:
    keys.only("hidden_act", "silu", "swish")
    return _sizes(keys, kv_heads=None) | _rope(keys) | dict(attention_bias=keys.flag("bias", True),
                                                            packed_qkv=True)


def bloom(keys: Keys) -> dict:
    """Its configs name fused kernels of its first trainer; n_inner is always 4 x hidden_size."""
    keys.only("apply_residual_connection_post_layernorm", False)
    keys.seen |= {
        "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi",
        "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "n_inner"
    }
    for other, key in (("n_embed", "hidden_size"), ("num_hidden_layers", "n_layer"), ("num_attention_heads",
                                                                                      "n_head")):
        keys.seen.add(other)
        if (value := keys.config.get(other)) is not None:
            if keys.config.get(key) not in (None, value):
                raise UserError(f"config.json: {other} = {value!r}, but {key} = {keys.config[key]!r}")
            keys.config = keys.config | {key: value}
    hidden, heads = keys.get("hidden_size", high=2 ** 18), keys.get("n_head", high=2 ** 12)
    return dict(vocab_size=keys.get("vocab_size", high=2**24),
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=keys.get("n_layer", high=1000),
                num_attention_heads=heads,
                max_position_embeddings=keys.get("seq_length", 2048),
                rms_norm_eps=keys.number("layer_norm_epsilon", 1e-5, 0, 1),
                initializer_range=keys.number("initializer_range", 0.02, 0, 100),
                tie_word_embeddings=keys.flag("tie_word_embeddings", True),
                packed_qkv=True,
                position_embedding="alibi",
                attention_bias=True,
                attention_out_bias=True,
                mlp_bias=True,
                gated_mlp=False,
                activation="gelu_tanh",
                norm="layer",
                embedding_norm=True)


def qwen2(keys: Keys) -> dict:
    keys.only("hidden_act", "silu", "swish")
    sizes = _sizes(keys)
    return sizes | _rope(keys) | _late_windows(keys, sizes["num_hidden_layers"]) | dict(
        attention_bias=True, attention_out_bias=False)


def qwen3(keys: Keys) -> dict:
    keys.only("hidden_act", "silu", "swish")
    sizes = _sizes(keys, head_dim=128)
    return sizes | _rope(keys) | _late_windows(keys, sizes["num_hidden_layers"]) | dict(
        attention_bias=keys.flag("attention_bias"), qk_norm=True)


def _any_gemma(keys: Keys) -> dict:
    keys.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    keys.only("hidden_activation", "gelu_pytorch_tanh", None)
    return _sizes(keys, head_dim=256, tied=True) | dict(attention_bias=keys.flag("attention_bias"),
                                                        norm="rms_plus_one",
                                                        scale_embedding=True,
                                                        activation="gelu_tanh")


def gemma(keys: Keys) -> dict:
    return _any_gemma(keys) | _rope(keys)


def gemma2(keys: Keys) -> dict:
    fields = _any_gemma(keys)
    return fields | _rope(keys) | _alternating_windows(keys, fields["num_hidden_layers"], 2) | dict(
        post_norms=True, attention_scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=keys.get("attn_logit_softcapping", 50.0, float, 1e-6, 1e6, nullable=True),
        final_softcap=keys.get("final_logit_softcapping", 30.0, float, 1e-6, 1e6, nullable=True))


def gemma3_text(keys: Keys) -> dict:
    """A cap of the scores is rejected: the paper has none, and the implementations that carry the key do not
    apply it.
    """
    keys.only("attn_logit_softcapping", None)
    fields = _any_gemma(keys)
    return fields | _local_rope(keys) | _alternating_windows(keys, fields["num_hidden_layers"], 6) | dict(
        post_norms=True, qk_norm=True, attention_scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        final_softcap=keys.get("final_logit_softcapping", None, float, 1e-6, 1e6))


@dataclass(frozen=True)
class Family:
    # class name in config.json, by which vLLM and llama.cpp know the family
    architecture: str
    fields: Callable[[Keys], dict]
    writes: str = ""                    # keys beyond the common ones that its config.json has


FAMILIES = {
    "llama": Family("LlamaForCausalLM", llama, "head_dim hidden_act attention_bias mlp_bias"),
    "mistral": Family("MistralForCausalLM", mistral, "head_dim hidden_act sliding_window"),
    "internlm": Family("InternLMForCausalLM", internlm, "hidden_act bias"), "internlm2": Family(
        "InternLM2ForCausalLM", internlm2, "hidden_act bias"), "bloom": Family("BloomForCausalLM", bloom),
    "qwen2": Family("Qwen2ForCausalLM", qwen2, "head_dim hidden_act"), "qwen3": Family(
        "Qwen3ForCausalLM", qwen3, "head_dim hidden_act attention_bias"), "gemma": Family(
            "GemmaForCausalLM", gemma,
            "head_dim hidden_act hidden_activation attention_bias"), "gemma2": Family(
                "Gemma2ForCausalLM", gemma2,
                "head_dim hidden_act hidden_activation attention_bias query_pre_attn_scalar "
                "attn_logit_softcapping final_logit_softcapping sliding_window"), "gemma3_text": Family(
                    "Gemma3ForCausalLM", gemma3_text,
                    "head_dim hidden_act hidden_activation attention_bias query_pre_attn_scalar "
                    "final_logit_softcapping sliding_window rope_local_base_freq"),
}


# ------------------------------------------------------------------------------------------------------------
# config.json


def read_config(config: dict) -> ModelConfig:
    """The `ModelConfig` that a published `config.json` means; an unknown key that may change the mathematics
    is an error.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"config.json: model_type {name!r} is not supported (known: {', '.join(FAMILIES)})")
    keys = Keys(config)
    keys.seen |= {*IGNORED, *TOKEN_IDS}
    fields = FAMILIES[name].fields(keys)
    for key, allowed in NEUTRAL.items():
        if key not in keys.seen:
            keys.only(key, *allowed)
    # a GGUF file that transformers has unpacked: the weights beside it are plain
    quantization = keys.object("quantization_config")
    if quantization and quantization.get("quant_method") != "gguf":
        raise UserError(f"config.json: quantization_config = {str(quantization)[:80]} is not supported")
    if rest := keys.rest():
        raise UserError(
            f"config.json: {rest[0]} = {str(config[rest[0]])[:80]!r} is not a known key of {name}; it may "
            f"change the "
            "mathematics, so the model is rejected")
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if fields.get("head_dim") is None:
        if hidden % heads:
            raise UserError(
                f"config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}")
        fields["head_dim"] = hidden // heads
    if fields["head_dim"] % 2 and fields.get("position_embedding") != "alibi":
        raise UserError(
            f"config.json: a head size of {fields['head_dim']} is odd; it cannot be rotated in pairs")
    kv_heads = fields.get("num_key_value_heads")
    fields["num_key_value_heads"] = heads if kv_heads is None else kv_heads
    if heads % fields["num_key_value_heads"]:
        raise UserError(
            f"config.json: num_attention_heads = {heads} is not a multiple of num_key_value_heads = "
            f"{kv_heads}"
        )
    fields.setdefault("attention_out_bias", fields.get("attention_bias", False))
    ids = {
        key: _token_id(config, key, fields["vocab_size"])
        for key in TOKEN_IDS if config.get(key) is not None
    }
    return ModelConfig(**fields, family=name, extra=ids)


def _token_id(config: dict, key: str, vocab_size: int) -> int | list[int]:
    value = config[key]
    for index in value if isinstance(value, list) and key == "eos_token_id" else [value]:
        if type(index) is not int or not -1 <= index < vocab_size:  # -1: none, in Llama 1's
            raise UserError(f"config.json: {key} = {value!r}, expected an id below vocab_size = {vocab_size}")
    return value


def write_config(config: ModelConfig, dtype: str) -> dict:
    """The family's `config.json` in transformers 4 spelling; what the family cannot express is an error."""
    family = FAMILIES[config.family]
    result: dict[str, Any] = {
        "architectures": [family.architecture], "model_type": config.family, "torch_dtype": dtype
    }
    result |= _written_bloom(config) if config.family == "bloom" else _written(config, family.writes.split())
    result |= {key: value for key, value in config.extra.items() if key in TOKEN_IDS}
    back = read_config(result)
    for key, value in vars(config).items():
        if key == "sliding_layers":
            same = all(
                back.slides(layer) == config.slides(layer) for layer in range(config.num_hidden_layers))
        elif key == "attention_scale":
            same = abs((back.attention_scale or back.head_dim**-0.5) -
                       (value or config.head_dim**-0.5)) < 1e-6
        else:
            same = key == "extra" or getattr(back, key) == value
        if not same:
            raise UserError(
                f"a {config.family} model cannot have {key} = {value!r} (its config.json would mean "
                f"{getattr(back, key)!r})"
            )
    return result


def _written_bloom(config: ModelConfig) -> dict:
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads,
        "seq_length": config.max_position_embeddings, "layer_norm_epsilon": config.rms_norm_eps,
        "initializer_range": config.initializer_range, "tie_word_embeddings": config.tie_word_embeddings,
        "apply_residual_connection_post_layernorm": False
    }


def _written(config: ModelConfig, keys: list[str]) -> dict:
    common = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range",
              "tie_word_embeddings")
    scalar = (config.attention_scale or config.head_dim ** -0.5) ** -2
    values = vars(config) | {
        "hidden_act": "gelu_pytorch_tanh" if config.family.startswith("gemma") else "silu",
        "hidden_activation": "gelu_pytorch_tanh", "bias": config.attention_bias,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "attn_logit_softcapping": config.attention_softcap, "final_logit_softcapping": config.final_softcap,
        "rope_local_base_freq": config.rope_local_theta}
    return {key: values[key] for key in (*common, *keys)} | _written_rope(config) | _written_windows(config)


def _written_rope(config: ModelConfig) -> dict:
    scaling = dict(config.rope_scaling or {})
    if config.family == "internlm":
        factor = {"scaling_factor": scaling["factor"]} if scaling.get("factor", 1) != 1 else {}
        return {"rotary": {"base": config.rope_theta, "type": "dynamic" if scaling else "origin"} | factor}
    if scaling.get("rope_type") in ("linear", "dynamic") and config.rope_local_theta is None:
        # what transformers 4 and InternLM 2's code read
        scaling = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}


def _written_windows(config: ModelConfig) -> dict:
    layers = config.num_hidden_layers
    slides = [config.slides(layer) for layer in range(layers)]
    types = {"layer_types": [SLIDING if slide else FULL for slide in slides]}
    if config.family in ("qwen2", "qwen3"):
        first = slides.index(True) if any(slides) else layers
        window = {"use_sliding_window": any(slides), "sliding_window": config.sliding_window,
                  "max_window_layers": first}
        return window | (types if any(slides) else {})
    if config.family not in ("gemma2", "gemma3_text"):
        return {}
    usual = 2 if config.family == "gemma2" else 6
    periods = [
        n for n in (usual, *range(1, layers + 2))
        if slides == [(layer + 1) % n != 0 for layer in range(layers)]
    ]
    return types | ({"sliding_window_pattern": periods[0]} if periods else {})
