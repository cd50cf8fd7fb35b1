"""Model families: how each spells its `config.json` (the names of their tensors are in mmed/model.py).

    config.json of transformers 4 or 5  --read_config-->  ModelConfig  --write_config-->  of transformers 4

`FAMILIES` is one table, read in both directions: a `Key` is a key of config.json and the fields it sets.
No tensor is reshaped: InternLM 2's `wqkv` and BLOOM's `query_key_value` are one packed matrix, so a round
trip is bit-equal.

Strict: a key that is not in the table and may change the mathematics is rejected by name, and so is a number
out of range. References: the published configs and transformers' `configuration_*.py` of each family.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmed.model import ModelConfig
from mmed.utils.errors import UserError

NEEDED = object()  # "default" of a key that must be there
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
SLIDING, FULL = "sliding_attention", "full_attention"

# Keys that change nothing here: bookkeeping, generation settings that transformers 4 wrote there, and the
# fused kernels of BLOOM's first trainer.
IGNORED = set("""
    architectures model_type torch_dtype dtype transformers_version use_cache auto_map attn_implementation
    pretraining_tp output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    torchscript use_bfloat16 tf_legacy_loss id2label label2id problem_type finetuning_task
    task_specific_params prefix tokenizer_class chunk_size_feed_forward is_decoder
    cross_attention_hidden_size tie_encoder_decoder decoder_start_token_id sep_token_id forced_bos_token_id
    forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids cache_implementation do_sample
    early_stopping length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_beam_groups num_beams num_return_sequences diversity_penalty
    repetition_penalty temperature top_k top_p typical_p remove_invalid_values
    exponential_decay_length_penalty max_sequence_length unsloth_fixed unsloth_version
    neftune_noise_alpha transformers.js_config
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion n_inner offset_alibi skip_bias_add
    skip_bias_add_qkv slow_but_exact
    """.split())
# Keys of the multimodal Gemma 3 that only concern images.
IMAGE_KEYS = set("""vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
    initializer_range""".split())
# Keys that would change the mathematics, and the values that do not.
NEUTRAL = {"attention_dropout": (0,), "hidden_dropout": (0,), "is_encoder_decoder": (False,),
           "pruned_heads": ({},), "add_cross_attention": (False,), "partial_rotary_factor": (1,),
           "use_bidirectional_attention": (False,), "bias": (False,), "attention_bias": (False,),
           "mlp_bias": (False,), "use_mrope": (False,), "rope_interleaved": (False,),
           "is_llama_config": (True,), "activation": ("swiglu",)}


@dataclass(frozen=True)
class Key:
    """A key of config.json; `fields`: those of ModelConfig that it sets, if not the one of its own name; ""
    if several keys decide together (`combine`)."""

    name: str
    kind: type = int
    default: Any = NEEDED
    fields: str | None = None
    nullable: bool = False  # null is a value with a meaning: none
    low: float = 1e-12
    high: float = 1e12

    @property
    def field_names(self) -> list[str]:
        return [self.name] if self.fields is None else self.fields.split()

    def read(self, config: dict) -> Any:
        """The value in `config`, checked for type and range."""
        value = config.get(self.name, self.default)
        if value is NEEDED:
            raise UserError(f"config.json: no {self.name!r}")
        if value is None and (self.nullable or self.default is None):
            return None
        kinds = (int, float) if self.kind is float else (self.kind,)
        number = self.kind in (int, float)
        if type(value) not in kinds or (number and not self.low <= value <= self.high):
            expected = f"expected a {'number in range' if number else self.kind.__name__}"
            raise UserError(f"config.json: {self.name} = {str(value)[:80]}, {expected}")
        return self.kind(value)


def reject_unknown(config: dict, known: set[str], what: str) -> None:
    for key, value in config.items():
        if value is not None and key not in known and not key.startswith("_"):
            raise UserError(f"config.json: {key} = {str(value)[:80]!r} is not a known key of {what}; it may "
                            "change the mathematics, so the model is rejected")


def require_value(config: dict, key: str, allowed: tuple) -> None:
    value = config.get(key)
    if value is not None and value not in allowed:
        known = ", ".join(map(str, allowed))
        raise UserError(f"config.json: {key} = {str(value)[:80]!r} is not supported (known: {known})")


# --------------------------------------------------------------------------------------------------- families

SILU: dict[str, tuple] = {"hidden_act": ("silu", "swish")}
GELU = {"hidden_act": ("gelu_pytorch_tanh", "gelu"), "hidden_activation": ("gelu_pytorch_tanh",)}


@dataclass(frozen=True)
class Family:
    architecture: str                   # class name in config.json, by which vLLM and llama.cpp know it
    keys: tuple[Key, ...]
    fields: dict[str, Any] = field(default_factory=dict)          # what all its models have
    only: dict[str, tuple] = field(default_factory=lambda: SILU)  # key -> values; the first is written
    aliases: dict[str, str] = field(default_factory=dict)         # other name of a key -> key


def changed(keys: tuple[Key, ...], *others: Key) -> tuple[Key, ...]:
    """`keys` with those of the same name replaced, and the rest of `others` added."""
    return tuple({key.name: key for key in (*keys, *others)}.values())


SHARED = (Key("vocab_size"), Key("hidden_size"), Key("initializer_range", float, 0.02))
CONTEXT, HEAD_DIM = Key("max_position_embeddings"), Key("head_dim", default=None)
THETA, SCALING = Key("rope_theta", float, 1e4), Key("rope_scaling", dict, None)
SIZES = (*SHARED, Key("intermediate_size"), Key("num_hidden_layers", high=1000), Key("num_attention_heads"),
         Key("num_key_value_heads", default=None), Key("rms_norm_eps", float, 1e-6), CONTEXT, THETA, SCALING)
TIED, UNTIED = (Key("tie_word_embeddings", bool, tied) for tied in (True, False))
BIAS = Key("attention_bias", bool, False, "attention_bias attention_out_bias")
PLAIN = (*SIZES, UNTIED)
LLAMA = changed((*PLAIN, HEAD_DIM, BIAS, Key("mlp_bias", bool, False)),
                Key("max_position_embeddings", default=2048))
INTERNLM2 = (*PLAIN, Key("bias", bool, True, "attention_bias attention_out_bias"))
INTERNLM = (*(key for key in INTERNLM2 if key not in (THETA, SCALING)), Key("rotary", dict, None, ""))
INTERNLM3 = changed(PLAIN, Key("rms_norm_eps", float, 1e-5), Key("num_key_value_heads", default=2),
                    Key("head_dim", default=128), Key("qkv_bias", bool, False, "attention_bias"),
                    Key("bias", bool, False, "mlp_bias attention_out_bias"))
WINDOW, LAYER_TYPES = Key("sliding_window", default=4096, nullable=True), Key("layer_types", list, None, "")
MISTRAL = changed((*PLAIN, HEAD_DIM, WINDOW), Key("num_key_value_heads", default=8))
QWEN = (*PLAIN, WINDOW, LAYER_TYPES, Key("use_sliding_window", bool, False, ""),
        Key("max_window_layers", default=1000, fields="", low=0))
OLMO = changed((*PLAIN, BIAS), Key("rms_norm_eps", float, 1e-5))
# What a missing or empty key means depends on the version of transformers.
APERTUS = changed(OLMO, Key("rope_theta", float), Key("rope_scaling", dict))
GEMMA = (*SIZES, TIED, Key("head_dim", default=256), BIAS)
GEMMA_WINDOWS = (Key("sliding_window", default=4096), LAYER_TYPES,
                 Key("query_pre_attn_scalar", float, 256, ""))
GEMMA2 = changed((*GEMMA, *GEMMA_WINDOWS), Key("num_key_value_heads", default=4),
                 Key("sliding_window_pattern", default=2, fields=""),
                 Key("attn_logit_softcapping", float, 50.0, "attention_softcap", nullable=True),
                 Key("final_logit_softcapping", float, 30.0, "final_softcap", nullable=True))
# with the defaults that the text_config of a Gemma 3 with images leaves out
GEMMA3 = changed((*GEMMA, *GEMMA_WINDOWS), Key("vocab_size", default=262208),
                 Key("num_attention_heads", default=8), Key("num_key_value_heads", default=4),
                 Key("max_position_embeddings", default=131072), Key("rope_theta", float, 1e6),
                 Key("rope_local_base_freq", float, 1e4, "rope_local_theta"),
                 Key("sliding_window_pattern", default=6, fields=""),
                 Key("final_logit_softcapping", float, None, "final_softcap"))
GEMMA_FIELDS = {"norm": "rms_plus_one", "scale_embedding": True, "activation": "gelu_tanh"}
BLOOM = (*SHARED, TIED, Key("n_layer", fields="num_hidden_layers", high=1000),
         Key("n_head", fields="num_attention_heads"), Key("layer_norm_epsilon", float, 1e-5, "rms_norm_eps"),
         Key("seq_length", default=2048, fields="max_position_embeddings"))
BLOOM_FIELDS = {"packed_qkv": True, "position_embedding": "alibi", "attention_bias": True,
                "attention_out_bias": True, "mlp_bias": True, "gated_mlp": False, "activation": "gelu_tanh",
                "norm": "layer", "embedding_norm": True}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", LLAMA),
    "mistral": Family("MistralForCausalLM", MISTRAL),
    "internlm": Family("InternLMForCausalLM", INTERNLM),
    "internlm2": Family("InternLM2ForCausalLM", INTERNLM2, {"packed_qkv": True}),
    "internlm3": Family("InternLM3ForCausalLM", INTERNLM3,
                        aliases={"attention_bias": "qkv_bias", "mlp_bias": "bias"}),
    "bloom": Family("BloomForCausalLM", BLOOM, BLOOM_FIELDS,
                    {"apply_residual_connection_post_layernorm": (False,)},
                    {"n_embed": "hidden_size", "num_hidden_layers": "n_layer",
                     "num_attention_heads": "n_head"}),
    "qwen2": Family("Qwen2ForCausalLM", (*QWEN, HEAD_DIM), {"attention_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", (*QWEN, Key("head_dim", default=128), BIAS), {"qk_norm": True}),
    "gemma": Family("GemmaForCausalLM", GEMMA, GEMMA_FIELDS, GELU),
    "gemma2": Family("Gemma2ForCausalLM", GEMMA2, GEMMA_FIELDS | {"post_norms": True}, GELU,
                     aliases={"sliding_window_size": "sliding_window"}),
    # A cap of Gemma 3's scores is rejected: the paper has none, and the implementations that carry the key do
    # not apply it.
    "gemma3_text": Family(
        "Gemma3ForCausalLM", GEMMA3, GEMMA_FIELDS | {"post_norms": True, "qk_norm": True},
        GELU | {"attn_logit_softcapping": (None,)}),
    "olmo2": Family("Olmo2ForCausalLM", OLMO, {"pre_norms": False, "post_norms": True, "qk_norm": True,
                                               "qk_norm_wide": True}),
    "apertus": Family("ApertusForCausalLM", APERTUS,
                      {"qk_norm": True, "gated_mlp": False, "activation": "xielu"},
                      {"hidden_act": ("xielu",), "qk_norm": (True,), "post_norm": (False,)}),
}


# ------------------------------------------------------------------------- keys that several versions spell

FACTOR, OLD_CONTEXT = Key("factor", float), Key("original_max_position_embeddings")
SCALINGS = {"default": (), "linear": (FACTOR,), "dynamic": (FACTOR,),
            "llama3": (FACTOR, OLD_CONTEXT, Key("low_freq_factor", float), Key("high_freq_factor", float)),
            "yarn": (FACTOR, OLD_CONTEXT, Key("truncate", bool, None),
                     *(Key(name, float, None) for name in ("attention_factor", "beta_fast", "beta_slow",
                                                           "mscale", "mscale_all_dim")))}


def read_scaling(values: dict) -> dict | None:
    """Rotary scaling as {"rope_type": ..., its numbers}, or None."""
    kind = str(values.get("rope_type") or values.get("type") or "default")
    if kind not in SCALINGS:
        raise UserError(f"config.json: rotary scaling {kind[:80]!r} is not supported (known: "
                        f"{', '.join(SCALINGS)})")
    numbers = {key.name: key.read(values) for key in SCALINGS[kind]}
    require_value(values, "partial_rotary_factor", (1,))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *numbers}
    reject_unknown(values, known, f"the rotary scaling {kind!r}")
    given = {name: value for name, value in numbers.items() if value is not None}
    return {"rope_type": kind} | given if given else None


def read_rotary(rotary: dict | None) -> dict:
    """InternLM: {"base": ..., "type": "dynamic" or "origin"}; dynamic with factor 1 when absent."""
    rotary = rotary or {"type": "dynamic"}
    reject_unknown(rotary, {"base", "type", "scaling_factor"}, "rotary")
    scaling = {"type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    if rotary.get("type") not in ("dynamic", "origin"):
        raise UserError(f"config.json: rotary = {str(rotary)[:80]} is not supported (types: dynamic, origin)")
    return {"rope_theta": Key("base", float, 1e4).read(rotary),
            "rope_scaling": read_scaling(scaling if rotary["type"] == "dynamic" else {})}


def flat_rotation(config: dict) -> dict:
    """`config` with the `rope_parameters` of transformers 5 spelled as in version 4. Gemma 3 has two sets:
    its sliding layers rotate with a base of their own, and are never scaled."""
    scaling = Key("rope_parameters", dict, None).read(config) or SCALING.read(config) or {}
    local = config.get("rope_local_base_freq")
    if FULL in scaling:
        reject_unknown(scaling, {FULL, SLIDING}, "rope_parameters")
        sliding, scaling = Key(SLIDING, dict).read(scaling), Key(FULL, dict).read(scaling)
        if read_scaling(sliding):
            raise UserError("config.json: rotary scaling of the sliding layers is not supported")
        local = sliding.get("rope_theta")
    flat = {"rope_theta": scaling.get("rope_theta", config.get("rope_theta")),
            "rope_scaling": scaling or None, "rope_local_base_freq": local}
    rest = {key: value for key, value in config.items() if key not in {"rope_parameters", *flat}}
    return rest | {key: value for key, value in flat.items() if value is not None}


def read_windows(values: dict) -> dict:
    """Which layers slide: `layer_types`, or by default all but every n-th (Gemma), or from one on (Qwen)."""
    layers, period = range(values["num_hidden_layers"]), values.get("sliding_window_pattern")
    window, types = values["sliding_window"], values["layer_types"]
    used = values.get("use_sliding_window", True) and window is not None
    if types is None and period:
        slides = [(layer + 1) % period != 0 for layer in layers]
    elif types is None:
        slides = [used and layer >= values["max_window_layers"] for layer in layers]
    elif len(types) == len(layers) and all(kind in (SLIDING, FULL) for kind in types):
        slides = [kind == SLIDING for kind in types]
    else:
        raise UserError(f"config.json: layer_types = {str(types)[:100]}, expected {len(layers)} times "
                        f"{SLIDING!r} or {FULL!r}")
    if any(slides) and not used:
        raise UserError("config.json: layer_types has sliding layers, but use_sliding_window is off")
    if not any(slides) and not period:
        return {"sliding_window": None}
    return {"sliding_window": window, "sliding_layers": tuple(slides)}


def combine(values: dict) -> dict:
    """Compute fields that depend on several keys or on another unit; inconsistent sizes are errors."""
    fields: dict[str, Any] = {}
    if "rotary" in values:
        fields |= read_rotary(values["rotary"])
    if "rope_scaling" in values:
        fields["rope_scaling"] = read_scaling(values["rope_scaling"] or {})
    if "layer_types" in values:
        fields |= read_windows(values)
    if "query_pre_attn_scalar" in values:
        fields["attention_scale"] = values["query_pre_attn_scalar"] ** -0.5
    if "n_head" in values:
        fields["intermediate_size"] = 4 * values["hidden_size"]
    hidden, heads = values["hidden_size"], values.get("num_attention_heads") or values["n_head"]
    if values.get("head_dim") is None and hidden % heads:
        raise UserError(f"config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = "
                        f"{heads}")
    head_dim = values.get("head_dim") or hidden // heads
    kv_heads = values.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(f"config.json: num_attention_heads = {heads} is not a multiple of "
                        f"num_key_value_heads = {kv_heads}")
    if head_dim % 2 and "n_head" not in values:
        raise UserError(f"config.json: a head size of {head_dim} is odd; it cannot be rotated in pairs")
    return fields | {"head_dim": head_dim, "num_key_value_heads": kv_heads}


def separate(config: ModelConfig) -> dict:
    """The opposite of `combine`: values of the keys that are not simply a field."""
    slides = [config.slides(layer) for layer in range(config.num_hidden_layers)]
    scalar = round((config.attention_scale or config.head_dim ** -0.5) ** -2, 9)
    scaling = config.rope_scaling
    rotary: dict[str, Any] = {"base": config.rope_theta, "type": "dynamic" if scaling else "origin"}
    if scaling and scaling.get("factor") != 1:
        rotary["scaling_factor"] = scaling.get("factor")
    if scaling and scaling["rope_type"] in ("linear", "dynamic") and config.family != "gemma3_text":
        # what transformers 4 and InternLM 2's code read
        scaling = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    if scaling is None and config.family == "apertus":  # without it, transformers takes llama3's
        scaling = {"rope_type": "default"}
    return {"rotary": rotary, "rope_scaling": scaling,
            "query_pre_attn_scalar": int(scalar) if scalar % 1 == 0 else scalar,
            "layer_types": [SLIDING if slide else FULL for slide in slides],
            "use_sliding_window": any(slides), "max_window_layers": (*slides, True).index(True)}


# ------------------------------------------------------------------------------------------------ config.json

def text_part(config: dict) -> dict:
    """Extract the language model's config from a multimodal Gemma 3 (MedGemma); return others unchanged."""
    if config.get("model_type") != "gemma3":
        return config
    shared = {*TOKEN_IDS, "tie_word_embeddings", "quantization_config"}
    reject_unknown(config, IGNORED | IMAGE_KEYS | shared | {"text_config"}, "gemma3")
    text = Key("text_config", dict).read(config)
    require_value(text, "model_type", ("gemma3_text",))
    given = {key: config[key] for key in shared if config.get(key) is not None}
    return text | {"model_type": "gemma3_text"} | given


def read_config(config: dict) -> ModelConfig:
    """The `ModelConfig` of a published `config.json`; a key that may change the mathematics is an error."""
    config = text_part(config)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"config.json: model_type {name!r} is not supported (known: {', '.join(FAMILIES)})")
    family = FAMILIES[name]
    config = flat_rotation(config)
    for other, key in family.aliases.items():
        if other in config and config.get(key, config[other]) == config[other]:
            config[key] = config.pop(other)
    values = {key.name: key.read(config) for key in family.keys}
    neutral = {key: allowed for key, allowed in NEUTRAL.items() if key not in values} | family.only
    for key, allowed in neutral.items():
        require_value(config, key, allowed)
    # a GGUF file that transformers has unpacked: the weights beside it are plain
    quantization = Key("quantization_config", dict, None).read(config)
    if quantization and quantization.get("quant_method") != "gguf":
        raise UserError(f"config.json: quantization_config = {str(quantization)[:80]} is not supported")
    reject_unknown(config, IGNORED | values.keys() | neutral.keys() | {*TOKEN_IDS, "quantization_config"},
                   name)
    fields = family.fields | {field: values[key.name] for key in family.keys for field in key.field_names}
    ids = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    return ModelConfig(**fields | combine(values), family=name, extra=ids)


def write_config(config: ModelConfig, dtype: str) -> dict:
    """The family's `config.json` in transformers 4 spelling; what the family cannot express is an error."""
    family, values = FAMILIES[config.family], separate(config)
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family,
                              "torch_dtype": dtype}
    for key in family.keys:
        if key.name in values:
            result[key.name] = values[key.name]
        elif key.field_names:
            result[key.name] = getattr(config, key.field_names[0])
    result |= {key: allowed[0] for key, allowed in family.only.items() if allowed[0] is not None}
    result |= {key: value for key, value in config.extra.items() if key in TOKEN_IDS}
    back = read_config(result)
    for name, value in vars(config).items():
        if name != "extra" and getattr(back, name) != value:
            raise UserError(f"a {config.family} model cannot have {name} = {value!r} (its config.json would "
                            f"mean {getattr(back, name)!r})")
    return result
