"""The config.json of every family as published; the InternLMs, which transformers lacks, against Llamas."""
import dataclasses

import pytest
import torch
from tiny_models import CLASSES, close, equivalent, ours_of, random_model, transformers

from mmed.checkpoints.families import FAMILIES, NEEDED, read_config, write_config
from mmed.model import Transformer
from mmed.utils.errors import UserError


@torch.no_grad()
def same_logits(ours: Transformer, theirs) -> bool:
    ids = torch.randint(0, 97, (2, 19))
    return close(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize("family, kv_heads, bias", [
    ("internlm2", 6, False), ("internlm2", 2, False), ("internlm2", 1, True), ("internlm2", 3, True),
    ("internlm", 6, False), ("internlm", 6, True)])
def test_internlm_equals_the_llama_that_its_weights_stand_for(family, kv_heads, bias):
    llama, config, tensors = equivalent(family, kv_heads, kv_heads, bias)
    ours = ours_of(config, tensors)
    assert same_logits(ours, llama)
    written = write_config(ours.config, "float32")
    assert all(written[key] == config[key] for key in ("bias", "rope_scaling", "rotary") if key in config)
    assert "head_dim" not in written
    with pytest.raises(ValueError, match="64 positions"):  # beyond, the rotation depends on the length
        ours(torch.zeros(1, 65, dtype=torch.long))
    silent = {key: value for key, value in config.items() if key not in ("rotary", "bias")}
    assert read_config(silent).attention_bias  # as its own code has it


def test_internlm3_may_have_biases_on_q_k_v_alone_as_qwen2_has():
    """transformers has one setting for all its biases."""
    shape = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 33, "num_hidden_layers": 2,
             "num_attention_heads": 6, "num_key_value_heads": 2, "initializer_range": 0.1}
    theirs = random_model("Qwen2ForCausalLM", transformers.Qwen2Config(**shape), 3)
    ours = ours_of(INTERNLM3 | shape | {"head_dim": 8, "qkv_bias": True, "rope_theta": 1e4},
                   theirs.state_dict())
    assert same_logits(ours, theirs)
    written = write_config(ours.config, "float32")
    assert (written["qkv_bias"], written["bias"]) == (True, False)


# ----------------------------------------------------------------------------------------- published configs

LLAMA1 = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 2048, "max_sequence_length": 2048, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.28.0", "use_cache": True, "vocab_size": 32000,
    "_name_or_path": "x"}
LLAMA31 = LLAMA1 | {
    "vocab_size": 128256, "num_key_value_heads": 8, "rope_theta": 500000.0,
    "eos_token_id": [128001, 128008, 128009], "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}}
MISTRAL = LLAMA1 | {"model_type": "mistral", "num_key_value_heads": 8}
SMOLLM2 = LLAMA1 | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {
    "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}
QWEN25 = LLAMA1 | {"model_type": "qwen2", "num_key_value_heads": 4, "max_window_layers": 28,
                   "sliding_window": 131072, "use_mrope": False, "use_sliding_window": False}
GEMMA2 = LLAMA1 | {
    "model_type": "gemma2", "num_key_value_heads": 8, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "sliding_window": 4096, "sliding_window_size": 4096, "query_pre_attn_scalar": 256}
BLOOMZ = {
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 4096,
    "n_inner": None, "n_layer": 30, "num_attention_heads": 32, "offset_alibi": 100, "pretraining_tp": 4,
    "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False, "use_cache": True,
    "vocab_size": 250880}
GEMMA3 = LLAMA1 | {
    "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 256, "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "attention_bias": False,
    "final_logit_softcapping": None, "cache_implementation": "hybrid", "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6}
INTERNLM3 = LLAMA1 | {
    "model_type": "internlm3", "num_key_value_heads": 2, "bias": False, "qkv_bias": False, "head_dim": 128,
    "rope_theta": 50000000, "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}}
OLMO2 = LLAMA1 | {"model_type": "olmo2", "attention_bias": False, "rope_theta": 500000, "vocab_size": 100352}
APERTUS = LLAMA1 | {
    "model_type": "apertus", "hidden_act": "xielu", "mlp_bias": False, "post_norm": False, "qk_norm": True,
    "num_key_value_heads": 8, "rope_theta": 12000000, "attention_bias": False, "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3", "type": "llama3"}}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
# the wrapper says nothing that is the default of its text model
MEDGEMMA = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02,
    "mm_tokens_per_image": 256, "model_type": "gemma3", "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024}}
PUBLISHED = {
    "internlm 3": (INTERNLM3, {"num_key_value_heads": 2, "mlp_bias": False, "rope_theta": 5e7}),
    "olmo 2": (OLMO2, {"pre_norms": False, "qk_norm_wide": True, "rope_theta": 5e5}),
    "apertus": (APERTUS, {"activation": "xielu", "gated_mlp": False, "qk_norm": True, "rope_theta": 1.2e7}),
    "qwen 2.5 long": (QWEN25 | {"rope_scaling": YARN}, {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),
    "medgemma": (MEDGEMMA, {
        "family": "gemma3_text", "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131072, "rope_theta": 1e6, "tie_word_embeddings": True,
        "sliding_layers": tuple((layer + 1) % 6 != 0 for layer in range(34))}),
    "llama 1": (LLAMA1, {"num_key_value_heads": 32, "head_dim": 128, "rope_scaling": None}),
    "llama 3.1": (LLAMA31, {"num_key_value_heads": 8, "rope_theta": 5e5}),
    "llama from GGUF": (LLAMA1 | {"quantization_config": {"quant_method": "gguf"}}, {"rope_theta": 1e4}),
    "smollm 2": (SMOLLM2, {"rope_theta": 1e4}),
    "falcon 3": (LLAMA1 | {"activation": "swiglu", "head_dim": 256}, {"activation": "silu"}),
    "mistral 0.1": (MISTRAL | {"sliding_window": 4096}, {"sliding_window": 4096}),
    "mistral 0.3": (MISTRAL | {"sliding_window": None}, {"sliding_window": None}),
    "bloomz": (BLOOMZ, {"hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 32,
                        "num_hidden_layers": 30, "tie_word_embeddings": True}),
    "qwen 2 with windows": (
        {key: value for key, value in QWEN25.items() if key != "max_window_layers"} | {
            "use_sliding_window": True}, {"sliding_layers": (False,) * 28 + (True,) * 4}),
    "qwen 2.5": (QWEN25, {"attention_bias": True, "attention_out_bias": False, "sliding_window": None}),
    "gemma 2": (GEMMA2, {"sliding_window": 4096, "attention_softcap": 50.0, "tie_word_embeddings": False}),
    "gemma 3 1b": (GEMMA3, {"rope_local_theta": 1e4, "rope_theta": 1e6, "sliding_window": 512,
                            "attention_scale": 1 / 16}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written_back(name):
    source, expected = PUBLISHED[name]
    config = read_config(source)
    assert {key: getattr(config, key) for key in expected} == expected
    written = write_config(config, source.get("torch_dtype", "bfloat16"))
    assert read_config(written) == config
    unused = {"architectures", *(["model_type"] if name == "medgemma" else [])}
    unused |= {key for key in written if "window" in key and config.sliding_window is None}
    different = {key for key in written.keys() & source.keys() if source[key] not in (None, written[key])}
    assert different <= unused and "rope_parameters" not in written  # as transformers 4 writes it


@pytest.mark.parametrize("family", CLASSES)
def test_a_key_that_is_left_out_means_what_transformers_takes_it_for(family):
    """Published folders leave out what is the family's default: Gemma says nothing of its tied head."""
    config_class = getattr(transformers, CLASSES[family] + "Config")
    whole = config_class().to_dict()
    for key, default in FAMILIES[family].keys.items():
        if default is not NEEDED and key in whole:
            silent = {name: value for name, value in whole.items() if name != key}
            assert read_config(silent) == read_config(config_class(**silent).to_dict()), key


@pytest.mark.parametrize("source, change, words", [
    (LLAMA1, {"model_type": "mamba"}, "model_type 'mamba'"),
    (LLAMA1, {"hidden_size": None}, "hidden_size"),
    (LLAMA1, {"hidden_size": 0}, "hidden_size = 0"),
    (LLAMA1, {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
    (LLAMA1, {"num_attention_heads": 33}, "do not fit"),
    (LLAMA1, {"num_key_value_heads": 5}, "num_key_value_heads = 5"),
    (LLAMA1, {"vocab_size": True}, "vocab_size"),
    (LLAMA1, {"rope_theta": float("nan")}, "rope_theta"),
    (LLAMA1, {"rms_norm_eps": -1}, "rms_norm_eps"),
    (LLAMA1, {"rope_scaling": {"type": "longrope", "factor": 2}}, "longrope"),
    (LLAMA1, {"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
    (QWEN25, {"rope_scaling": YARN | {"beta_fats": 32}}, "beta_fats"),
    (APERTUS, {"rope_theta": None}, "rope_theta"), (APERTUS, {"rope_scaling": None}, "rope_scaling"),
    (QWEN25, {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}}, "contradict each other"),
    (QWEN25, {"use_mrope": True}, "use_mrope"), (SMOLLM2, {"rope_interleaved": True}, "rope_interleaved"),
    (GEMMA2, {"sliding_window_size": 512}, "sliding_window_size"),
    (APERTUS, {"hidden_act": "silu"}, "hidden_act"), (APERTUS, {"qk_norm": False}, "qk_norm"),
    (LLAMA1, {"model_type": "olmo2", "clip_qkv": 8.0}, "clip_qkv"),
    (MEDGEMMA, {"text_config": None}, "text_config"), (MEDGEMMA, {"audio_config": {}}, "audio_config"),
    (MEDGEMMA, {"text_config": {"model_type": "llama"}}, "model_type = 'llama'"),
    (LLAMA1, {"rope_scaling": 3}, "rope_scaling"),
    (LLAMA1, {"rope_scaling": {"type": "linear", "factor": 2, "beta": 3}}, "beta"),
    (LLAMA1, {"hidden_act": "gelu"}, "hidden_act"),
    (LLAMA1, {"head_dim": 7}, "head_dim = 7 do not fit"),
    (LLAMA1, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    (LLAMA1, {"logit_scale": 0.5}, "logit_scale"),
    (LLAMA1, {"attention_dropout": 0.1}, "attention_dropout"),
    (LLAMA1, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (LLAMA1, {"model_type": "internlm", "rotary": {"base": 10000, "type": "yarn"}}, "rotary"),
    (BLOOMZ, {"n_head": 16}, "num_attention_heads = '32'"),
    (BLOOMZ, {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    (GEMMA3, {"layer_types": ["full_attention"]}, "layer_types"),
    (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    (QWEN25, {"layer_types": ["sliding_attention"] * 32}, "use_sliding_window is off"),
])
def test_a_config_of_other_mathematics_or_nonsense_is_rejected_by_name(source, change, words):
    config = {key: value for key, value in (source | change).items() if value is not None}
    with pytest.raises(UserError, match=words) as error:
        read_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"sliding_window": 8}, {"attention_out_bias": True},
                                    {"norm": "layer"}, {"rope_local_theta": 1e4}])
def test_a_model_that_its_family_cannot_express_is_not_written(change):
    with pytest.raises(UserError, match=next(iter(change))):
        write_config(dataclasses.replace(read_config(LLAMA1), **change), "float32")
