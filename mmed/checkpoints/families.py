"""Model families: how each spells its `config.json` (the names of their tensors are in mmed/model.py).

    config.json of transformers 4 or 5  --read_config-->  ModelConfig  --write_config-->  of transformers 4

`FAMILIES` is one table, read in both directions: a `Key` is a key of config.json and the field it sets; a
`Part` is a group of keys that belong together (rotation, sliding windows). No tensor is reshaped: InternLM
2's `wqkv` and BLOOM's `query_key_value` are one packed matrix, so a round trip is bit-equal.

Strict: a key that is not in the table and may change the mathematics is rejected by name, and so is a number
out of range. References: the published configs and transformers' `configuration_*.py` of each family.
"""
from __future__ import annotations

from collections.abc import Callable
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
    attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion n_inner offset_alibi skip_bias_add
    skip_bias_add_qkv slow_but_exact
    """.split())
# Keys of Gemma 3 with images that concern its images only.
IMAGE_KEYS = set("""vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
    initializer_range""".split())
# Keys that would change the mathematics, and the values that do not.
NEUTRAL = {"attention_dropout": (0,), "hidden_dropout": (0,), "is_encoder_decoder": (False,),
           "pruned_heads": ({},), "add_cross_attention": (False,), "partial_rotary_factor": (1,),
           "use_bidirectional_attention": (False,), "bias": (False,), "attention_bias": (False,),
           "mlp_bias": (False,)}


@dataclass(frozen=True)
class Key:
    """A key of config.json; `field` is the ModelConfig field it sets, if that is called differently."""

    name: str
    kind: type = int
    default: Any = NEEDED
    field: str = ""
    nullable: bool = False  # null is a value of its own: none of it
    low: float = 1e-12
    high: float = 1e12

    def read(self, config: dict) -> Any:
        """The value in `config`, of the right type and within its range."""
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


@dataclass(frozen=True)
class Part:
    """Keys that belong together: (config.json, number of layers) -> fields, and fields -> keys."""

    keys: str
    read: Callable[[dict, int], dict]
    write: Callable[[ModelConfig], dict]


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


# --------------------------------------------------------------------------------------------------- rotation

FACTOR, OLD_CONTEXT = Key("factor", float), Key("original_max_position_embeddings")
SCALINGS = {"default": (), "linear": (FACTOR,), "dynamic": (FACTOR,),
            "llama3": (FACTOR, OLD_CONTEXT, Key("low_freq_factor", float), Key("high_freq_factor", float)),
            "yarn": (FACTOR, OLD_CONTEXT, Key("truncate", bool, None),
                     *(Key(name, float, None) for name in ("attention_factor", "beta_fast", "beta_slow",
                                                           "mscale", "mscale_all_dim")))}


def read_rotation(values: dict, theta: float) -> dict:
    """`rope_theta` (default: `theta`), and `rope_scaling` as {"rope_type": ..., its numbers} or None."""
    kind = str(values.get("rope_type") or values.get("type") or "default")
    if kind not in SCALINGS:
        raise UserError(f"config.json: rotary scaling {kind[:80]!r} is not supported (known: "
                        f"{', '.join(SCALINGS)})")
    numbers = {key.name: key.read(values) for key in SCALINGS[kind]}
    require_value(values, "partial_rotary_factor", (1,))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *numbers}
    reject_unknown(values, known, f"the rotary scaling {kind!r}")
    given = {name: value for name, value in numbers.items() if value is not None}
    return {"rope_theta": Key("rope_theta", float, None).read(values) or theta,
            "rope_scaling": {"rope_type": kind} | given if given else None}


def read_rope(config: dict, layers: int) -> dict:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4)."""
    new, old = (Key(name, dict, None).read(config) for name in ("rope_parameters", "rope_scaling"))
    return read_rotation({"rope_theta": config.get("rope_theta")} | (new or old or {}), 1e4)


def read_given_rope(config: dict, layers: int) -> dict:
    """Apertus, whose classes disagree on the default, and every published config has it."""
    if config.get("rope_parameters") is None and config.get("rope_theta") is None:
        raise UserError("config.json: no 'rope_theta' and no 'rope_parameters'")
    return read_rope(config, layers)


def write_rope(config: ModelConfig) -> dict:
    scaling = config.rope_scaling
    if scaling and scaling["rope_type"] in ("linear", "dynamic"):
        # what transformers 4 and InternLM 2's code read
        scaling = {"type": scaling["rope_type"], "factor": scaling["factor"]}
    if scaling is None and config.family == "apertus":  # without it, transformers takes llama3's
        scaling = {"rope_type": "default"}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def read_local_rope(config: dict, layers: int) -> dict:
    """Gemma 3: the sliding layers rotate with a base of their own, and are never scaled."""
    new, old = (Key(name, dict, None).read(config) for name in ("rope_parameters", "rope_scaling"))
    full = {"rope_theta": config.get("rope_theta")} | (old or {})
    sliding = {"rope_theta": config.get("rope_local_base_freq")}
    if new:
        reject_unknown(new, {FULL, SLIDING}, "rope_parameters")
        full, sliding = Key(FULL, dict).read(new), Key(SLIDING, dict).read(new)
    local = read_rotation(sliding, 1e4)
    if local["rope_scaling"]:
        raise UserError("config.json: rotary scaling of the sliding layers is not supported")
    return read_rotation(full, 1e6) | {"rope_local_theta": local["rope_theta"]}


def write_local_rope(config: ModelConfig) -> dict:
    return {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling,
            "rope_local_base_freq": config.rope_local_theta}


def read_rotary(config: dict, layers: int) -> dict:
    """InternLM: {"base": ..., "type": "dynamic" or "origin"}; dynamic with factor 1 when absent."""
    rotary = Key("rotary", dict, None).read(config) or {"type": "dynamic"}
    reject_unknown(rotary, {"base", "type", "scaling_factor"}, "rotary")
    values = {"rope_theta": rotary.get("base")}
    if rotary.get("type") == "dynamic":
        values |= {"type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    elif rotary.get("type") != "origin":
        raise UserError(f"config.json: rotary = {str(rotary)[:80]} is not supported (types: dynamic, origin)")
    return read_rotation(values, 1e4)


def write_rotary(config: ModelConfig) -> dict:
    if not config.rope_scaling:
        return {"rotary": {"base": config.rope_theta, "type": "origin"}}
    factor = config.rope_scaling["factor"]
    scaling = {"scaling_factor": factor} if factor != 1 else {}
    return {"rotary": {"base": config.rope_theta, "type": "dynamic"} | scaling}


ROPE = Part("rope_theta rope_scaling rope_parameters", read_rope, write_rope)
LOCAL_ROPE = Part(ROPE.keys + " rope_local_base_freq", read_local_rope, write_local_rope)
ROTARY = Part("rotary", read_rotary, write_rotary)
GIVEN_ROPE = Part(ROPE.keys, read_given_rope, write_rope)
# InternLM 3: `qkv_bias` is on q, k and v, `bias` on all other matrices
BIASES = Part("bias", lambda config, layers: dict.fromkeys(
    ("attention_out_bias", "mlp_bias"), Key("bias", bool, False).read(config)),
    lambda config: {"bias": config.mlp_bias})


# ------------------------------------------------------------------------------- sliding windows, score scale

WINDOW = Key("sliding_window", default=4096, nullable=True)


def read_layer_types(config: dict, slides: list[bool]) -> tuple[bool, ...]:
    """Which layers slide: as `layer_types` says, else `slides`."""
    types = Key("layer_types", list, None).read(config)
    if types is None:
        return tuple(slides)
    if len(types) != len(slides) or any(kind not in (SLIDING, FULL) for kind in types):
        raise UserError(f"config.json: layer_types = {str(types)[:100]}, expected {len(slides)} times "
                        f"{SLIDING!r} or {FULL!r}")
    return tuple(kind == SLIDING for kind in types)


def write_windows(config: ModelConfig) -> dict:
    slides = (config.slides(layer) for layer in range(config.num_hidden_layers))
    types = [SLIDING if slide else FULL for slide in slides]
    return {"sliding_window": config.sliding_window, "layer_types": types}


def read_qwen_windows(config: dict, layers: int) -> dict:
    """The layers from `max_window_layers` on slide, if `use_sliding_window`."""
    window, used = WINDOW.read(config), Key("use_sliding_window", bool, False).read(config)
    first = Key("max_window_layers", default=layers, low=0).read(config)
    used = used and window is not None
    slides = read_layer_types(config, [used and layer >= first for layer in range(layers)])
    if any(slides) and not used:
        raise UserError("config.json: layer_types has sliding layers, but use_sliding_window is off")
    return {"sliding_window": window, "sliding_layers": slides} if any(slides) else {}


def write_qwen_windows(config: ModelConfig) -> dict:
    slides = config.sliding_layers or (False,) * config.num_hidden_layers
    return write_windows(config) | {"use_sliding_window": any(slides),
                                    "max_window_layers": (*slides, True).index(True)}


def gemma_attention(period: int) -> Part:
    """Every layer slides but each `period`-th; the scores have a scale of their own."""
    def read(config: dict, layers: int) -> dict:
        other = Key("_sliding_window_pattern", default=period).read(config)  # of transformers 5
        each = Key("sliding_window_pattern", default=other).read(config)
        slides = read_layer_types(config, [(layer + 1) % each != 0 for layer in range(layers)])
        return {"sliding_window": Key("sliding_window", default=4096).read(config), "sliding_layers": slides,
                "attention_scale": Key("query_pre_attn_scalar", float, 256).read(config) ** -0.5}

    def write(config: ModelConfig) -> dict:
        scalar = round((config.attention_scale or config.head_dim ** -0.5) ** -2, 9)
        return write_windows(config) | {"query_pre_attn_scalar": int(scalar) if scalar % 1 == 0 else scalar}

    return Part("sliding_window sliding_window_pattern layer_types query_pre_attn_scalar", read, write)


QWEN_WINDOWS = Part("sliding_window use_sliding_window max_window_layers layer_types", read_qwen_windows,
                    write_qwen_windows)


# --------------------------------------------------------------------------------------------------- families

@dataclass(frozen=True)
class Family:
    architecture: str                   # class name in config.json, by which vLLM and llama.cpp know it
    keys: tuple[Key, ...]
    parts: tuple[Part, ...] = (ROPE,)
    fields: dict[str, Any] = field(default_factory=dict)          # what all its models have
    only: dict[str, tuple] = field(default_factory=lambda: SILU)  # key -> values; the first is written
    aliases: dict[str, str] = field(default_factory=dict)         # other name of a key -> key


def changed(keys: tuple[Key, ...], *others: Key) -> tuple[Key, ...]:
    """`keys` with those of the same name replaced, and the rest of `others` added."""
    return tuple({key.name: key for key in (*keys, *others)}.values())


SILU = {"hidden_act": ("silu", "swish")}
GELU = {"hidden_act": ("gelu_pytorch_tanh", "gelu"), "hidden_activation": ("gelu_pytorch_tanh",)}
SHARED = (Key("vocab_size"), Key("hidden_size"), Key("initializer_range", float, 0.02))
SIZES = (*SHARED, Key("intermediate_size"), Key("num_hidden_layers", high=1000), Key("num_attention_heads"),
         Key("num_key_value_heads", default=None), Key("rms_norm_eps", float, 1e-6))
CONTEXT, HEAD_DIM = Key("max_position_embeddings"), Key("head_dim", default=None)
TIED, UNTIED = (Key("tie_word_embeddings", bool, tied) for tied in (True, False))
BIAS = Key("attention_bias", bool, False)
INTERNLM = (*SIZES, CONTEXT, UNTIED, Key("bias", bool, True, "attention_bias"))
QWEN = (*SIZES, CONTEXT, UNTIED)
OLMO = changed((*QWEN, BIAS), Key("rms_norm_eps", float, 1e-5))
OLMO_FIELDS = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_wide": True}
INTERNLM3 = changed(QWEN, Key("rms_norm_eps", float, 1e-5), Key("num_key_value_heads", default=2),
                    Key("head_dim", default=128), Key("qkv_bias", bool, False, "attention_bias"))
GEMMA = (*SIZES, CONTEXT, TIED, Key("head_dim", default=256), BIAS)
# with the defaults that the text_config of a Gemma 3 with images leaves out
GEMMA3 = changed(GEMMA, Key("vocab_size", default=262208), Key("num_attention_heads", default=8),
                 Key("num_key_value_heads", default=4), Key("max_position_embeddings", default=131072),
                 Key("final_logit_softcapping", float, None, "final_softcap"))
GEMMA_FIELDS = {"norm": "rms_plus_one", "scale_embedding": True, "activation": "gelu_tanh"}
SOFTCAPS = (Key("attn_logit_softcapping", float, 50.0, "attention_softcap", nullable=True),
            Key("final_logit_softcapping", float, 30.0, "final_softcap", nullable=True))
BLOOM = (*SHARED, TIED, Key("n_layer", field="num_hidden_layers", high=1000),
         Key("n_head", field="num_attention_heads"), Key("layer_norm_epsilon", float, 1e-5, "rms_norm_eps"),
         Key("seq_length", default=2048, field="max_position_embeddings"))
BLOOM_FIELDS = {"packed_qkv": True, "position_embedding": "alibi", "attention_bias": True, "mlp_bias": True,
                "gated_mlp": False, "activation": "gelu_tanh", "norm": "layer", "embedding_norm": True}
BLOOM_ALIASES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", (*SIZES, Key("max_position_embeddings", default=2048), UNTIED,
                                         HEAD_DIM, BIAS, Key("mlp_bias", bool, False))),
    "mistral": Family("MistralForCausalLM", (*SIZES, CONTEXT, UNTIED, HEAD_DIM, WINDOW)),
    "internlm": Family("InternLMForCausalLM", INTERNLM, (ROTARY,)),
    "internlm2": Family("InternLM2ForCausalLM", INTERNLM, fields={"packed_qkv": True}),
    "internlm3": Family("InternLM3ForCausalLM", INTERNLM3, (ROPE, BIASES),
                        aliases={"attention_bias": "qkv_bias", "mlp_bias": "bias"}),
    "bloom": Family("BloomForCausalLM", BLOOM, (), BLOOM_FIELDS,
                    {"apply_residual_connection_post_layernorm": (False,)}, BLOOM_ALIASES),
    "qwen2": Family("Qwen2ForCausalLM", (*QWEN, HEAD_DIM), (ROPE, QWEN_WINDOWS),
                    {"attention_bias": True, "attention_out_bias": False}),
    "qwen3": Family("Qwen3ForCausalLM", (*QWEN, Key("head_dim", default=128), BIAS), (ROPE, QWEN_WINDOWS),
                    {"qk_norm": True}),
    "gemma": Family("GemmaForCausalLM", GEMMA, fields=GEMMA_FIELDS, only=GELU),
    "gemma2": Family("Gemma2ForCausalLM", (*GEMMA, *SOFTCAPS), (ROPE, gemma_attention(2)),
                     GEMMA_FIELDS | {"post_norms": True}, GELU),
    "olmo2": Family("Olmo2ForCausalLM", OLMO, fields=OLMO_FIELDS),
    "apertus": Family("ApertusForCausalLM", OLMO, (GIVEN_ROPE,),
                      {"qk_norm": True, "gated_mlp": False, "activation": "xielu"},
                      {"hidden_act": ("xielu",), "qk_norm": (True,), "post_norm": (False,)}),
    # A cap of Gemma 3's scores is rejected: the paper has none, and the implementations that carry the key do
    # not apply it.
    "gemma3_text": Family(
        "Gemma3ForCausalLM", GEMMA3, (LOCAL_ROPE, gemma_attention(6)),
        GEMMA_FIELDS | {"post_norms": True, "qk_norm": True}, GELU | {"attn_logit_softcapping": (None,)}),
}


# ------------------------------------------------------------------------------------------------ config.json

def text_part(config: dict) -> dict:
    """The config of the language model in that of Gemma 3 with images (MedGemma); others stay as they are."""
    if config.get("model_type") != "gemma3":
        return config
    known = IGNORED | {*TOKEN_IDS, *IMAGE_KEYS, "text_config", "tie_word_embeddings", "quantization_config"}
    reject_unknown(config, known, "gemma3")
    text = Key("text_config", dict).read(config)
    require_value(text, "model_type", ("gemma3_text",))
    shared = {key: config.get(key) for key in (*TOKEN_IDS, "tie_word_embeddings", "quantization_config")}
    given = {key: value for key, value in shared.items() if value is not None}
    return text | {"model_type": "gemma3_text"} | given


def read_config(config: dict) -> ModelConfig:
    """The `ModelConfig` of a published `config.json`; a key that may change the mathematics is an error."""
    config = text_part(config)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"config.json: model_type {name!r} is not supported (known: {', '.join(FAMILIES)})")
    family = FAMILIES[name]
    config = _without_aliases(config, family.aliases)
    values = {key.name: key.read(config) for key in family.keys}
    fields = family.fields | {key.field or key.name: values[key.name] for key in family.keys}
    for part in family.parts:
        fields |= part.read(config, fields["num_hidden_layers"])
    read = values.keys() | {key for part in family.parts for key in part.keys.split()}
    neutral = {key: allowed for key, allowed in NEUTRAL.items() if key not in read} | family.only
    for key, allowed in neutral.items():
        require_value(config, key, allowed)
    # a GGUF file that transformers has unpacked: the weights beside it are plain
    quantization = Key("quantization_config", dict, None).read(config)
    if quantization and quantization.get("quant_method") != "gguf":
        raise UserError(f"config.json: quantization_config = {str(quantization)[:80]} is not supported")
    reject_unknown(config, IGNORED | read | neutral.keys() | {*TOKEN_IDS, "quantization_config"}, name)
    ids = {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    return ModelConfig(**_with_defaults(fields), family=name, extra=ids)


def _without_aliases(config: dict, aliases: dict[str, str]) -> dict:
    result = {key: value for key, value in config.items() if key not in aliases}
    for other, key in aliases.items():
        value = config.get(other)
        if value is not None and result.setdefault(key, value) != value:
            raise UserError(f"config.json: {other} = {value!r}, but {key} = {result[key]!r}")
    return result


def _with_defaults(fields: dict) -> dict:
    """`fields` with those that follow from others; sizes that do not fit each other are errors."""
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if fields.get("head_dim") is None and hidden % heads:
        raise UserError(f"config.json: hidden_size = {hidden} is not a multiple of num_attention_heads = "
                        f"{heads}")
    head_dim = fields.get("head_dim") or hidden // heads
    kv_heads = fields.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(f"config.json: num_attention_heads = {heads} is not a multiple of "
                        f"num_key_value_heads = {kv_heads}")
    if head_dim % 2 and fields.get("position_embedding") != "alibi":
        raise UserError(f"config.json: a head size of {head_dim} is odd; it cannot be rotated in pairs")
    computed = {"intermediate_size": 4 * hidden,  # BLOOM
                "attention_out_bias": fields.get("attention_bias", False)}
    return computed | fields | {"head_dim": head_dim, "num_key_value_heads": kv_heads}


def write_config(config: ModelConfig, dtype: str) -> dict:
    """The family's `config.json` in transformers 4 spelling; what the family cannot express is an error."""
    family = FAMILIES[config.family]
    result: dict[str, Any] = {"architectures": [family.architecture], "model_type": config.family,
                              "torch_dtype": dtype}
    result |= {key.name: getattr(config, key.field or key.name) for key in family.keys}
    for part in family.parts:
        result |= part.write(config)
    result |= {key: allowed[0] for key, allowed in family.only.items() if allowed[0] is not None}
    result |= {key: value for key, value in config.extra.items() if key in TOKEN_IDS}
    back = read_config(result)
    for key, value in vars(config).items():
        if key != "extra" and getattr(back, key) != value:
            raise UserError(f"a {config.family} model cannot have {key} = {value!r} (its config.json would "
                            f"mean {getattr(back, key)!r})")
    return result
