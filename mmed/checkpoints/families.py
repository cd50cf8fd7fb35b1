"""The table of model families: how each spells its `config.json` and names its tensors.

    config.json  --read_config-->  ModelConfig  --write_config-->  config.json       (transformers 4 and 5 spelling in, 4 out)
    published tensor or layer name  <--mmed.model.published_name--  name in `mmed.model.Transformer`

A family is one entry of FAMILIES: the keys it has, what they are when absent, and the fields that all its models share. No tensor is reshaped: InternLM 2's `wqkv` and BLOOM's `query_key_value` are one
packed matrix in the same grouped layout (ModelConfig.packed_qkv), so a round trip is bit-equal.

Strict: a key that is in neither the family's list nor the one of keys without effect is refused by name, because it may
change the mathematics; numbers are checked against their range before any memory is taken.
References: the published configs and transformers' `configuration_*.py` of each family.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmed.model import ModelConfig, published_name  # noqa: F401  also imported from here
from mmed.utils.errors import UserError

NEEDED = object()  # "default" of a key that must be there

# key of config.json -> (field of ModelConfig, type, lowest, highest)
KEYS: dict[str, tuple[str, type, float, float]] = {
    "vocab_size": ("vocab_size", int, 1, 2 ** 24),
    "hidden_size": ("hidden_size", int, 1, 2 ** 18),
    "intermediate_size": ("intermediate_size", int, 1, 2 ** 20),
    "num_hidden_layers": ("num_hidden_layers", int, 1, 1000), "n_layer": ("num_hidden_layers", int, 1, 1000),
    "num_attention_heads": ("num_attention_heads", int, 1, 2 ** 12), "n_head": ("num_attention_heads", int, 1, 2 ** 12),
    "num_key_value_heads": ("num_key_value_heads", int, 1, 2 ** 12),
    "head_dim": ("head_dim", int, 1, 2 ** 14),
    "max_position_embeddings": ("max_position_embeddings", int, 1, 2 ** 28),
    "seq_length": ("max_position_embeddings", int, 1, 2 ** 28),
    "rms_norm_eps": ("rms_norm_eps", float, 0, 1), "layer_norm_epsilon": ("rms_norm_eps", float, 0, 1),
    "initializer_range": ("initializer_range", float, 0, 100),
    "tie_word_embeddings": ("tie_word_embeddings", bool, 0, 1),
    "attention_bias": ("attention_bias", bool, 0, 1), "bias": ("attention_bias", bool, 0, 1),
    "mlp_bias": ("mlp_bias", bool, 0, 1),
    "query_pre_attn_scalar": ("attention_scale", float, 1e-6, 2 ** 20),  # its square root divides the scores
    "attn_logit_softcapping": ("attention_softcap", float, 1e-6, 1e6),
    "final_logit_softcapping": ("final_softcap", float, 1e-6, 1e6),
    "sliding_window": ("sliding_window", int, 1, 2 ** 28),
    "rope_theta": ("rope_theta", float, 1, 1e12), "rope_local_base_freq": ("rope_local_theta", float, 1, 1e12),
}
NULLABLE = {"num_key_value_heads", "head_dim", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")

# Keys of any config.json that change nothing here: bookkeeping, and settings of generation that transformers 4 wrote there.
IGNORED = set("""architectures model_type torch_dtype dtype transformers_version use_cache auto_map attn_implementation pretraining_tp
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript use_bfloat16 tf_legacy_loss
    id2label label2id problem_type finetuning_task task_specific_params prefix tokenizer_class chunk_size_feed_forward is_decoder
    cross_attention_hidden_size tie_encoder_decoder decoder_start_token_id sep_token_id forced_bos_token_id forced_eos_token_id
    suppress_tokens begin_suppress_tokens bad_words_ids cache_implementation do_sample early_stopping length_penalty max_length
    max_new_tokens min_length no_repeat_ngram_size encoder_no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    diversity_penalty repetition_penalty temperature top_k top_p typical_p remove_invalid_values exponential_decay_length_penalty
    max_sequence_length unsloth_fixed unsloth_version rope_theta rope_scaling rope_parameters""".split())
# Keys of any config.json that would change the mathematics, and the values that do not.
NEUTRAL = {"attention_dropout": (0,), "hidden_dropout": (0,), "quantization_config": (), "is_encoder_decoder": (False,), "pruned_heads": ({},),
           "add_cross_attention": (False,), "partial_rotary_factor": (1,), "use_bidirectional_attention": (False,), "bias": (False,),
           "attention_bias": (False,), "mlp_bias": (False,)}


@dataclass(frozen=True)
class Family:
    architecture: str                      # class name in config.json, by which vLLM and llama.cpp know the family
    keys: dict[str, Any]                   # key of config.json -> its value when absent, or NEEDED
    fixed: dict[str, Any] = field(default_factory=dict)         # fields of ModelConfig that all its models share
    only: dict[str, tuple] = field(default_factory=dict)        # key -> the values that this reader computes; the first is written
    windows: str | int = "none"            # sliding layers: "none", "all", "late" (Qwen), or every layer but each n-th (Gemma)
    aliases: dict[str, str] = field(default_factory=dict)       # other spelling of a key -> the one in `keys`
    local_rope: bool = False               # sliding layers rotate with a base of their own


_BASE = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                       "num_key_value_heads", "max_position_embeddings"), NEEDED) | \
    {"head_dim": None, "rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
_SILU = {"hidden_act": ("silu", "swish")}
_TANH = {"hidden_act": ("gelu_pytorch_tanh", "gelu"), "hidden_activation": ("gelu_pytorch_tanh", None)}
_GEMMA = {"norm": "rms_plus_one", "scale_embedding": True, "activation": "gelu_tanh"}
_GEMMA_KEYS = _BASE | {"head_dim": 256, "tie_word_embeddings": True, "attention_bias": False}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _BASE | {"num_key_value_heads": None, "max_position_embeddings": 2048, "attention_bias": False,
                                                 "mlp_bias": False}, only=_SILU),
    "mistral": Family("MistralForCausalLM", _BASE, only=_SILU, windows="all"),
    "internlm": Family("InternLMForCausalLM", _BASE | {"num_key_value_heads": None, "bias": True}, only=_SILU),
    "internlm2": Family("InternLM2ForCausalLM", _BASE | {"num_key_value_heads": None, "bias": True}, {"packed_qkv": True}, _SILU),
    "bloom": Family(
        "BloomForCausalLM",
        {"vocab_size": NEEDED, "hidden_size": NEEDED, "n_layer": NEEDED, "n_head": NEEDED, "seq_length": 2048, "layer_norm_epsilon": 1e-5,
         "initializer_range": 0.02, "tie_word_embeddings": True},
        {"packed_qkv": True, "position_embedding": "alibi", "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
         "gated_mlp": False, "activation": "gelu_tanh", "norm": "layer", "embedding_norm": True},
        {"apply_residual_connection_post_layernorm": (False,)},
        aliases={"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}),
    "qwen2": Family("Qwen2ForCausalLM", _BASE, {"attention_bias": True, "attention_out_bias": False}, _SILU, windows="late"),
    "qwen3": Family("Qwen3ForCausalLM", _BASE | {"head_dim": 128, "attention_bias": False}, {"qk_norm": True}, _SILU, windows="late"),
    "gemma": Family("GemmaForCausalLM", _GEMMA_KEYS, _GEMMA, _TANH),
    "gemma2": Family("Gemma2ForCausalLM", _GEMMA_KEYS | {"query_pre_attn_scalar": 256.0, "attn_logit_softcapping": 50.0,
                                                         "final_logit_softcapping": 30.0},
                     _GEMMA | {"post_norms": True}, _TANH, windows=2),
    # a cap of Gemma 3's scores is refused: its paper has none, and the implementations that carry the key do not apply it
    "gemma3_text": Family("Gemma3ForCausalLM", _GEMMA_KEYS | {"query_pre_attn_scalar": 256.0, "final_logit_softcapping": None,
                                                              "rope_local_base_freq": 10000.0},
                          _GEMMA | {"post_norms": True, "qk_norm": True}, _TANH | {"attn_logit_softcapping": (None,)}, windows=6,
                          local_rope=True),
}
# BLOOM's configs name fused kernels of its first trainer; n_inner is always 4 x hidden_size, the shapes of the weights hold it.
IGNORED_BLOOM = {"attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add",
                 "skip_bias_add_qkv", "slow_but_exact", "n_inner"}
WINDOW_KEYS = {"none": set(), "all": {"sliding_window"},
               "late": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}}
PATTERN_KEYS = {"sliding_window", "sliding_window_pattern", "layer_types"}


def _value(config: dict, key: str, default: Any = NEEDED, kind: type | None = None, low: float = 0, high: float = 2 ** 31) -> Any:
    """The value of a key, of the right type and in its range; `kind` and range are those of KEYS where it is there."""
    if key in KEYS:
        _, kind, low, high = KEYS[key]
    value = config.get(key, default)
    if value is NEEDED:
        raise UserError(f"config.json: no {key!r}")
    if value is None and (default is None or key in NULLABLE):
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10 ** 300 else float("inf")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"config.json: {key} = {value!r}, expected {kind.__name__}")
    if kind in (int, float) and not low <= value <= high:
        raise UserError(f"config.json: {key} = {value!r}, expected a value from {low:g} to {high:g}")
    return value


# ------------------------------------------------------------------------------------------------------------- rotation

SCALINGS = {"linear": ("factor",), "dynamic": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}


def _scaling(scaling: dict) -> dict | None:
    """`rope_scaling` of any spelling as {"rope_type": ..., its numbers}, None where nothing is scaled."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if not isinstance(kind, str) or (kind != "default" and kind not in SCALINGS):
        raise UserError(f"config.json: rotary scaling {kind!r} is not supported (known: default, {', '.join(SCALINGS)})")
    wanted = SCALINGS.get(kind, ())
    for key, value in scaling.items():
        if key not in (*wanted, "rope_type", "type", "rope_theta") and not (key == "partial_rotary_factor" and value == 1) and value is not None:
            raise UserError(f"config.json: {key} = {value!r} of the rotary scaling {kind!r} is not supported")
    numbers = {key: _value(scaling, key, kind=int if key.startswith("original") else float, low=1e-6, high=2 ** 28) for key in wanted}
    return {"rope_type": kind} | numbers if wanted else None


def _object(config: dict, key: str) -> dict:
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"config.json: {key} = {value!r}, expected an object")
    return dict(value or {})


def _read_rope(config: dict, family: str) -> dict:
    """Fields of the rotation from `rope_parameters` (transformers 5; by kind of layer in Gemma 3), or `rope_theta` and `rope_scaling` (4)."""
    if FAMILIES[family].fixed.get("position_embedding") == "alibi":
        return {}
    if family == "internlm":  # its code has {"base": ..., "type": "dynamic" or "origin"}, dynamic with the factor 1 when absent
        rotary = _object(config, "rotary") or {"base": 10000, "type": "dynamic"}
        if rotary.get("type") not in ("dynamic", "origin") or set(rotary) - {"base", "type", "scaling_factor"}:
            raise UserError(f"config.json: rotary = {rotary!r} is not supported (known types: dynamic, origin)")
        scaling = {"rope_type": "dynamic", "factor": _value(rotary, "scaling_factor", 1.0, float, 1e-6)} if rotary["type"] == "dynamic" else None
        return {"rope_theta": _value(rotary, "base", 10000.0, float, 1, 1e12), "rope_scaling": scaling}
    local, base = FAMILIES[family].local_rope, 1e6 if FAMILIES[family].local_rope else 10000.0
    parameters = _object(config, "rope_parameters")
    if not parameters:
        return {"rope_theta": _value(config, "rope_theta", base), "rope_scaling": _scaling(_object(config, "rope_scaling"))}
    if not local:
        return {"rope_theta": _value(parameters, "rope_theta", _value(config, "rope_theta", base)), "rope_scaling": _scaling(parameters)}
    if set(parameters) != {FULL, SLIDING}:
        raise UserError(f"config.json: rope_parameters has {', '.join(sorted(parameters))}, expected {FULL} and {SLIDING}")
    full, sliding = _object(parameters, FULL), _object(parameters, SLIDING)
    if _scaling(sliding):
        raise UserError("config.json: rotary scaling of the sliding layers is not supported")
    return {"rope_theta": _value(full, "rope_theta", base), "rope_scaling": _scaling(full),
            "rope_local_theta": _value(sliding, "rope_theta", 10000.0)}


def _write_rope(config: ModelConfig, family: str) -> dict:
    if config.position_embedding == "alibi":
        return {}
    scaling = dict(config.rope_scaling or {})
    if family == "internlm":
        factor = {"scaling_factor": scaling["factor"]} if scaling.get("factor", 1) != 1 else {}
        return {"rotary": {"base": config.rope_theta, "type": "dynamic" if scaling else "origin"} | factor}
    local = FAMILIES[family].local_rope
    if scaling and scaling["rope_type"] != "llama3" and not local:  # the two keys that every transformers 4 and InternLM 2's own code read
        scaling = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}


# ------------------------------------------------------------------------------------------------------- sliding windows

SLIDING, FULL = "sliding_attention", "full_attention"


def _read_windows(config: dict, kind: str | int, layers: int) -> dict:
    """`sliding_window` and `sliding_layers`; a window that no layer uses is none."""
    if kind == "none":
        return {}
    window = _value(config, "sliding_window", 4096)
    if kind == "all":
        return {"sliding_window": window}
    if kind == "late":
        if not _value(config, "use_sliding_window", False, bool):
            window = None
        first = _value(config, "max_window_layers", layers, int)
        slides = [window is not None and layer >= first for layer in range(layers)]
    else:
        if window is None:
            raise UserError("config.json: sliding_window = None, expected int")
        pattern = _value(config, "sliding_window_pattern", _value(config, "_sliding_window_pattern", kind, int, 1), int, 1)
        slides = [(layer + 1) % pattern != 0 for layer in range(layers)]
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or not all(t in (SLIDING, FULL) for t in types):
            raise UserError(f"config.json: layer_types must be {layers} times {SLIDING!r} or {FULL!r}, got {str(types)[:100]}")
        slides = [t == SLIDING for t in types]
        if window is None and any(slides):
            raise UserError("config.json: layer_types has sliding layers, but use_sliding_window is off")
    if kind == "late" and not any(slides):
        return {}
    return {"sliding_window": window, "sliding_layers": tuple(slides)}


def _write_windows(config: ModelConfig, kind: str | int) -> dict:
    layers = config.num_hidden_layers
    slides = [config.slides(layer) for layer in range(layers)]
    types = {"layer_types": [SLIDING if s else FULL for s in slides]}
    if kind == "none":
        return {}
    if kind == "all":
        return {"sliding_window": config.sliding_window}
    if kind == "late":
        first = slides.index(True) if any(slides) else layers
        return {"use_sliding_window": any(slides), "sliding_window": config.sliding_window, "max_window_layers": first} | (types if any(slides) else {})
    patterns = [p for p in (kind, *range(1, layers + 2)) if slides == [(layer + 1) % p != 0 for layer in range(layers)]]
    return {"sliding_window": config.sliding_window} | types | ({"sliding_window_pattern": patterns[0]} if patterns else {})


# ------------------------------------------------------------------------------------------------------- config.json

def read_config(config: dict) -> ModelConfig:
    """The `ModelConfig` that a published `config.json` means; a key that changes the mathematics and is not known is refused."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"config.json: model_type {name!r} is not supported (known: {', '.join(FAMILIES)})")
    family = FAMILIES[name]
    for other, key in family.aliases.items():
        if config.get(other) is not None:
            if config.get(key) not in (None, config[other]):
                raise UserError(f"config.json: {other} = {config[other]!r}, but {key} = {config[key]!r}")
            config = config | {key: config[other]}
    known = {*family.keys, *IGNORED, *TOKEN_IDS, *family.aliases, *WINDOW_KEYS.get(family.windows, PATTERN_KEYS)}
    known |= IGNORED_BLOOM if name == "bloom" else {"rotary"} if name == "internlm" else set()
    for key, allowed in (*NEUTRAL.items(), *family.only.items()):
        if config.get(key) is not None and config[key] not in allowed and key not in family.keys:
            raise UserError(f"config.json: {key} = {config[key]!r} is not supported for {name}"
                            + (f" (known: {', '.join(map(str, filter(None, allowed)))})" if any(allowed) else ""))
    for key, value in config.items():
        if value is not None and key not in known and key not in NEUTRAL and key not in family.only and not key.startswith("_"):
            raise UserError(f"config.json: {key} = {str(value)[:80]!r} is not a key of {name} that this reader knows; it may change the "
                            "mathematics, so the model is refused")
    values = {KEYS[key][0]: _value(config, key, default) for key, default in family.keys.items()}
    if values.get("attention_scale"):
        values["attention_scale"] **= -0.5
    values |= family.fixed | _read_rope(config, name) | _read_windows(config, family.windows, values["num_hidden_layers"])
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if values.get("head_dim") is None:
        if hidden % heads:
            raise UserError(f"config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}, and there is no head_dim")
        values["head_dim"] = hidden // heads
    if values["head_dim"] % 2 and values.get("position_embedding") != "alibi":
        raise UserError(f"config.json: a head size of {values['head_dim']} cannot be rotated in pairs; it must be even")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if heads % values["num_key_value_heads"]:
        raise UserError(f"config.json: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {values['num_key_value_heads']}")
    values.setdefault("intermediate_size", 4 * hidden)
    values.setdefault("attention_out_bias", values.get("attention_bias", False))
    return ModelConfig(**values, family=name, extra={key: _token_id(config, key, values["vocab_size"]) for key in TOKEN_IDS
                                                     if config.get(key) is not None})


def _token_id(config: dict, key: str, vocab_size: int) -> int | list[int]:
    value = config[key]
    for index in value if isinstance(value, list) and key == "eos_token_id" else [value]:
        if not isinstance(index, int) or isinstance(index, bool) or not -1 <= index < vocab_size:  # -1: none, in Llama 1's
            raise UserError(f"config.json: {key} = {value!r}, expected an id below vocab_size = {vocab_size}")
    return value


def write_config(config: ModelConfig, dtype: str) -> dict:
    """The family's `config.json` in transformers 4 spelling; what the family cannot say is refused."""
    name = config.family
    family = FAMILIES[name]
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": name, "torch_dtype": dtype}
    for key in family.keys:
        value = getattr(config, KEYS[key][0])
        if key == "query_pre_attn_scalar":
            value = (value or config.head_dim ** -0.5) ** -2
            value = round(value) if abs(value - round(value)) < 1e-6 * value else value
        result[key] = value
    if name in ("internlm", "internlm2", "bloom"):  # their own code derives it
        result.pop("head_dim", None)
    result |= {key: allowed[0] for key, allowed in family.only.items()} | _write_rope(config, name) | _write_windows(config, family.windows)
    result |= {key: value for key, value in config.extra.items() if key in TOKEN_IDS}
    back = read_config(result)
    for key, value in vars(config).items():
        if key == "sliding_layers":
            same = all(back.slides(layer) == config.slides(layer) for layer in range(config.num_hidden_layers))
        elif key == "attention_scale":
            same = abs((back.attention_scale or back.head_dim ** -0.5) - (value or config.head_dim ** -0.5)) < 1e-6
        else:
            same = getattr(back, key) == value or key == "extra"
        if not same:
            raise UserError(f"a {name} model cannot have {key} = {value!r} (its config.json would read {getattr(back, key)!r})")
    return result
