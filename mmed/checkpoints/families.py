"""Model families: how each spells its `config.json` (the names of their tensors are in mmed/model.py).

    config.json of transformers 4 or 5  --read_config-->  ModelConfig  --write_config-->  of transformers 4

`FAMILIES` is one table of keys and their defaults. Strict: a key that is not in it and may change the
mathematics is rejected by name, and so is a number out of range. References: the published configs and
transformers' `configuration_*.py` of each family.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmed.model import ModelConfig
from mmed.utils.errors import UserError

NEEDED = object()  # "default" of a key that must be there
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
CHANGED = {"auto_map", "dtype", "quantization_config"}  # by opening and saving a model
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
# Types of the values that are not integers.
FLOATS = """initializer_range rms_norm_eps layer_norm_epsilon rope_theta base rope_local_base_freq
    query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping factor low_freq_factor
    high_freq_factor attention_factor beta_fast beta_slow mscale mscale_all_dim"""
BOOLS = "tie_word_embeddings attention_bias mlp_bias qkv_bias bias truncate use_sliding_window"
DICTS = f"rope_scaling rope_parameters rotary text_config quantization_config {SLIDING} {FULL}"
KINDS: dict[str, type] = {"layer_types": list, **dict.fromkeys(FLOATS.split(), float),
                          **dict.fromkeys(BOOLS.split(), bool), **dict.fromkeys(DICTS.split(), dict)}
NULLABLE = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}  # null: there is none
# Keys that decide together with others (`combine`), and fields of ModelConfig that a key of another name sets
COMBINED = {"rotary", "rope_scaling", "query_pre_attn_scalar", "sliding_window_pattern", "layer_types",
            "use_sliding_window", "max_window_layers"}
FIELDS = {"attention_bias": "attention_bias attention_out_bias", "bias": "attention_bias attention_out_bias",
          "qkv_bias": "attention_bias", "rope_local_base_freq": "rope_local_theta",
          "attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "final_softcap",
          "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
          "layer_norm_epsilon": "rms_norm_eps", "seq_length": "max_position_embeddings"}


def read_value(config: dict, name: str, default: Any = NEEDED) -> Any:
    """The value of a key in `config`, checked for type and range."""
    value = config.get(name, default)
    if value is NEEDED:
        raise UserError(f"config.json: no {name!r}")
    if value is None and (default is None or name in NULLABLE):
        return None
    kind = KINDS.get(name, int)
    kinds = (int, float) if kind is float else (kind,)
    lowest = 0 if name == "max_window_layers" else 1e-12
    highest = 1000 if name == "num_hidden_layers" else 1e12
    if type(value) not in kinds or (kind in (int, float) and not lowest <= value <= highest):
        expected = "number in range" if kind in (int, float) else kind.__name__
        raise UserError(f"config.json: {name} = {str(value)[:80]}, expected a {expected}")
    return kind(value)


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
    architecture: str                   # class name in config.json, which vLLM and llama.cpp read
    keys: dict[str, Any]                # key -> its default
    fields: dict[str, Any] = field(default_factory=dict)          # what all its models have
    only: dict[str, tuple] = field(default_factory=lambda: SILU)  # key -> values; the first is written
    aliases: dict[str, str] = field(default_factory=dict)         # other name of a key -> key
    names: dict[str, str] = field(default_factory=dict)           # what differs from FIELDS

    def fields_of(self) -> dict[str, list[str]]:
        """Key -> fields that it sets."""
        names = FIELDS | self.names
        return {key: names.get(key, key).split() for key in self.keys if key not in COMBINED}


SHARED = {"vocab_size": NEEDED, "hidden_size": NEEDED, "initializer_range": 0.02}
SIZES = SHARED | {"intermediate_size": NEEDED, "num_hidden_layers": NEEDED, "num_attention_heads": NEEDED,
                  "num_key_value_heads": None, "rms_norm_eps": 1e-6, "max_position_embeddings": NEEDED,
                  "rope_theta": 1e4, "rope_scaling": None}
PLAIN = SIZES | {"tie_word_embeddings": False}
LLAMA = PLAIN | {"head_dim": None, "attention_bias": False, "mlp_bias": False,
                 "max_position_embeddings": 2048}
INTERNLM2 = PLAIN | {"bias": True}
INTERNLM = {key: default for key, default in INTERNLM2.items() if not key.startswith("rope_")}
INTERNLM3 = PLAIN | {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "head_dim": 128, "qkv_bias": False,
                     "bias": False}
MISTRAL = PLAIN | {"head_dim": None, "sliding_window": 4096, "num_key_value_heads": 8}
QWEN = PLAIN | {"sliding_window": 4096, "layer_types": None, "use_sliding_window": False,
                "max_window_layers": 28}
OLMO = PLAIN | {"attention_bias": False, "rms_norm_eps": 1e-5}
# What a missing or empty key means depends on the version of transformers.
APERTUS = OLMO | {"rope_theta": NEEDED, "rope_scaling": NEEDED}
GEMMA = SIZES | {"tie_word_embeddings": True, "head_dim": 256, "attention_bias": False}
GEMMA2 = GEMMA | {"sliding_window": 4096, "layer_types": None, "query_pre_attn_scalar": 256,
                  "num_key_value_heads": 4, "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
                  "final_logit_softcapping": 30.0}
# with the defaults that the text_config of a Gemma 3 with images leaves out
GEMMA3 = GEMMA | {"sliding_window": 4096, "layer_types": None, "query_pre_attn_scalar": 256,
                  "num_key_value_heads": 4, "sliding_window_pattern": 6, "final_logit_softcapping": None,
                  "vocab_size": 262208, "num_attention_heads": 8, "max_position_embeddings": 131072,
                  "rope_theta": 1e6, "rope_local_base_freq": 1e4}
GEMMA_FIELDS = {"norm": "rms_plus_one", "scale_embedding": True, "activation": "gelu_tanh"}
BLOOM = SHARED | {"tie_word_embeddings": True, "n_layer": NEEDED, "n_head": NEEDED,
                  "layer_norm_epsilon": 1e-5, "seq_length": 2048}
BLOOM_FIELDS = {"packed_qkv": True, "position_embedding": "alibi", "attention_bias": True,
                "attention_out_bias": True, "mlp_bias": True, "gated_mlp": False, "activation": "gelu_tanh",
                "norm": "layer", "embedding_norm": True}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", LLAMA),
    "mistral": Family("MistralForCausalLM", MISTRAL),
    "internlm": Family("InternLMForCausalLM", INTERNLM | {"rotary": None}),
    "internlm2": Family("InternLM2ForCausalLM", INTERNLM2, {"packed_qkv": True}),
    "internlm3": Family("InternLM3ForCausalLM", INTERNLM3,
                        aliases={"attention_bias": "qkv_bias", "mlp_bias": "bias"},
                        names={"bias": "mlp_bias attention_out_bias"}),
    "bloom": Family("BloomForCausalLM", BLOOM, BLOOM_FIELDS,
                    {"apply_residual_connection_post_layernorm": (False,)},
                    {"n_embed": "hidden_size", "num_hidden_layers": "n_layer",
                     "num_attention_heads": "n_head"}),
    "qwen2": Family("Qwen2ForCausalLM", QWEN | {"head_dim": None}, {"attention_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", QWEN | {"head_dim": 128, "attention_bias": False}, {"qk_norm": True}),
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

# Kind of rotary scaling -> its numbers and their defaults
FACTOR = {"factor": NEEDED}
STRETCHED = FACTOR | {"original_max_position_embeddings": NEEDED}
SCALINGS: dict[str, dict] = {
    "default": {}, "linear": FACTOR, "dynamic": FACTOR,
    "llama3": STRETCHED | {"low_freq_factor": NEEDED, "high_freq_factor": NEEDED},
    "yarn": STRETCHED | dict.fromkeys(("truncate", "attention_factor", "beta_fast", "beta_slow", "mscale",
                                       "mscale_all_dim"))}


def read_scaling(values: dict) -> dict | None:
    """Rotary scaling as {"rope_type": ..., its numbers}, or None."""
    kind = str(values.get("rope_type") or values.get("type") or "default")
    if kind not in SCALINGS:
        raise UserError(f"config.json: rotary scaling {kind[:80]!r} is not supported (known: "
                        f"{', '.join(SCALINGS)})")
    numbers = {name: read_value(values, name, default) for name, default in SCALINGS[kind].items()}
    require_value(values, "partial_rotary_factor", (1,))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *numbers}
    reject_unknown(values, known, f"the rotary scaling {kind!r}")
    given = {name: value for name, value in numbers.items() if value is not None}
    return {"rope_type": kind} | given if given else None


def read_rotary(rotary: dict | None) -> dict:
    """InternLM: {"base": ..., "type": "dynamic" or "origin"}; dynamic with factor 1 when absent."""
    rotary = rotary or {"type": "dynamic"}
    reject_unknown(rotary, {"base", "type", "scaling_factor"}, "rotary")
    if rotary.get("type") not in ("dynamic", "origin"):
        raise UserError(f"config.json: rotary = {str(rotary)[:80]} is not supported (types: dynamic, origin)")
    scaling = {"type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    return {"rope_theta": read_value(rotary, "base", 1e4),
            "rope_scaling": read_scaling(scaling if rotary.get("type") == "dynamic" else {})}


def flat_rotation(config: dict) -> dict:
    """`config` with the `rope_parameters` of transformers 5 spelled as in version 4. Gemma 3 has two sets:
    its sliding layers rotate with a base of their own, and are never scaled."""
    new, old = (read_value(config, key, None) for key in ("rope_parameters", "rope_scaling"))
    scaling = new or old or {}
    local = config.get("rope_local_base_freq")
    if FULL in scaling:
        reject_unknown(scaling, {FULL, SLIDING}, "rope_parameters")
        sliding, scaling = read_value(scaling, SLIDING), read_value(scaling, FULL)
        if read_scaling(sliding):
            raise UserError("config.json: rotary scaling of the sliding layers is not supported")
        local = sliding.get("rope_theta")
    if new and old and read_scaling(scaling) != read_scaling(old):
        raise UserError("config.json: rope_parameters and rope_scaling contradict each other; remove one")
    flat = {"rope_theta": scaling.get("rope_theta", config.get("rope_theta")),
            "rope_scaling": {key: value for key, value in scaling.items() if key != "rope_theta"} or None,
            "rope_local_base_freq": local}
    rest = {key: value for key, value in config.items() if key not in {"rope_parameters", *flat}}
    return rest | {key: value for key, value in flat.items() if value is not None}


def read_windows(values: dict) -> dict:
    """Which layers slide: `layer_types`, or by default all but every n-th (Gemma), or from one on (Qwen)."""
    layers, period = range(values["num_hidden_layers"]), values.get("sliding_window_pattern")
    window, types = values["sliding_window"], values["layer_types"]
    used = values.get("use_sliding_window", True) and window is not None
    if types is None and period:
        types = [SLIDING if (layer + 1) % period else FULL for layer in layers]
    elif types is None:
        types = [SLIDING if used and layer >= values["max_window_layers"] else FULL for layer in layers]
    if len(types) != len(layers) or not all(kind in (SLIDING, FULL) for kind in types):
        raise UserError(f"config.json: layer_types = {str(types)[:100]}, expected {len(layers)} times "
                        f"{SLIDING!r} or {FULL!r}")
    if SLIDING in types and not used:
        raise UserError("config.json: layer_types has sliding layers, but use_sliding_window is off")
    if SLIDING not in types and not period:
        return {"sliding_window": None}
    return {"sliding_window": window, "sliding_layers": tuple(kind == SLIDING for kind in types)}


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
    head_dim, kv_heads = values.get("head_dim"), values.get("num_key_value_heads") or heads
    odd = (head_dim or hidden // heads) % 2 and "n_head" not in values  # it could not be rotated in pairs
    if heads % kv_heads or odd or (head_dim is None and hidden % heads):
        raise UserError(f"config.json: hidden_size = {hidden}, num_attention_heads = {heads}, "
                        f"num_key_value_heads = {kv_heads} and head_dim = {head_dim} do not fit each other")
    return fields | {"head_dim": head_dim or hidden // heads, "num_key_value_heads": kv_heads}


# ------------------------------------------------------------------------------------------------ config.json

def text_part(config: dict) -> dict:
    """Extract the language model's config from a multimodal Gemma 3 (MedGemma); return others unchanged."""
    if config.get("model_type") != "gemma3":
        return config
    shared = {*TOKEN_IDS, "tie_word_embeddings", "quantization_config"}
    reject_unknown(config, IGNORED | IMAGE_KEYS | shared | {"text_config"}, "gemma3")
    text = read_value(config, "text_config")
    require_value(text, "model_type", ("gemma3_text",))
    given = {key: config[key] for key in shared if config.get(key) is not None}
    return text | {"model_type": "gemma3_text", "_images": True} | given  # a key with _ is not written


def read_config(config: dict) -> ModelConfig:
    """The `ModelConfig` of a published `config.json`; a key that may change the mathematics is an error."""
    if not isinstance(config, dict):
        raise UserError("config.json: expected a JSON object")
    config = text_part(config)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"config.json: model_type {name!r} is not supported (known: {', '.join(FAMILIES)})")
    family = FAMILIES[name]
    config = flat_rotation(config)
    for other, key in family.aliases.items():
        if other in config and config.get(key, config[other]) == config[other]:
            config[key] = config.pop(other)
    values = {key: read_value(config, key, default) for key, default in family.keys.items()}
    neutral = {key: allowed for key, allowed in NEUTRAL.items() if key not in values} | family.only
    for key, allowed in neutral.items():
        require_value(config, key, allowed)
    # a GGUF file that transformers has unpacked: the weights beside it are plain
    quantization = read_value(config, "quantization_config", None)
    if quantization and quantization.get("quant_method") != "gguf":
        raise UserError(f"config.json: quantization_config = {str(quantization)[:80]} is not supported")
    reject_unknown(config, IGNORED | values.keys() | neutral.keys() | {*TOKEN_IDS, "quantization_config"},
                   name)
    fields = family.fields | {field: values[key] for key, names in family.fields_of().items()
                              for field in names}
    return ModelConfig(**fields | combine(values), family=name, extra={"config": config})


def write_config(config: ModelConfig, dtype: str) -> dict:
    """The config.json that was read, with what has changed since, or that of a model made here; what the
    family cannot express is an error."""
    family, extra = FAMILIES[config.family], config.extra
    made_here = {"rope_scaling": config.rope_scaling} | {key: extra[key] for key in TOKEN_IDS if key in extra}
    result = {key: allowed[0] for key, allowed in family.only.items() if allowed[0] is not None}
    result |= {key: value for key, value in extra.get("config", made_here).items()
               if key not in CHANGED and value is not None and not key.startswith("_")}
    result |= {key: getattr(config, names[0]) for key, names in family.fields_of().items()}
    result |= {"architectures": [family.architecture], "model_type": config.family, "torch_dtype": dtype}
    back = read_config(result)
    for name, value in vars(config).items():
        if name != "extra" and getattr(back, name) != value:
            raise UserError(f"a {config.family} model cannot have {name} = {value!r} (its config.json would "
                            f"mean {getattr(back, name)!r})")
    return result
