"""A GGUF file becomes a folder with the weights, the tokenizer and the configuration it was made from."""
import json

import numpy as np
import pytest
import torch

from mmed.checkpoints.families import read_config
from mmed.checkpoints.import_gguf import import_gguf, to_half_rotation
from mmed.checkpoints.pretrained import load_pretrained
from mmed.model import Transformer
from mmed.tokenization.byte_level import byte_alphabet
from mmed.utils.errors import UserError

gguf, transformers = pytest.importorskip("gguf"), pytest.importorskip("transformers")
HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
BLOCK_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GEMMA_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}
TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
SETTINGS = {"vocab_size": 259, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "max_position_embeddings": 64}
CONFIGS = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma3": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 16,
               "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh",
               "layer_types": ["sliding_attention"] * LAYERS, "rope_local_base_freq": 10_000.0},
}


def to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_tensor(name: str, values: np.ndarray, architecture: str) -> tuple[str, np.ndarray]:
    """A tensor as llama.cpp's converter names and changes it."""
    if architecture == "gemma3" and name.endswith("norm.weight"):
        values = values + 1
    path, kind = name.rsplit(".", 1)
    parts = path.split(".", 2)
    if parts[0] != "layers":
        return f"{TOP_NAMES[parts[0]]}.{kind}", values
    if architecture == "llama" and parts[2] in ("self_attn.q_proj", "self_attn.k_proj"):
        values = to_pairs(values, HEADS if "q_proj" in name else KV_HEADS)
    names = BLOCK_NAMES | (GEMMA_NAMES if architecture == "gemma3" else {})
    return f"blk.{parts[1]}.{names[parts[2]]}.{kind}", values


def write_gguf(path, model: Transformer, architecture: str) -> None:
    letters = sorted(byte_alphabet(), key=byte_alphabet().get)
    tokens = ["<|end|>", *letters, "th", "the"]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        name, values = gguf_tensor(name, tensor.float().numpy(), architecture)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_model(architecture: str) -> Transformer:
    model = Transformer(read_config(SETTINGS | CONFIGS[architecture])).init_weights(1).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases begin as constants; eighths survive the + 1 of Gemma
                parameter.copy_(torch.randint(-8, 8, parameter.shape) / 8)
    return model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_weights_and_tokenizer_are_those_of_the_file(architecture, tmp_path):
    model = random_model(architecture)
    write_gguf(tmp_path / "model.gguf", model, architecture)
    import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    imported, tokenizer = load_pretrained(tmp_path / "folder")
    expected = model.state_dict()
    assert imported.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in imported.state_dict().items())
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert len(tokenizer.encode("the")) == 1 and tokenizer.eos_id == 0
    settings = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert settings["architectures"] == CONFIGS[architecture]["architectures"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        ours = imported.float()(ids)
        assert torch.allclose(ours, theirs(ids).logits, atol=1e-3)


def test_rotation_order_is_inverted():
    weight = np.arange(64.0).reshape(32, 2)
    assert np.array_equal(to_half_rotation(to_pairs(weight, 4), 4), weight)


def test_other_architectures_are_rejected_by_name(tmp_path):
    write_gguf(tmp_path / "model.gguf", random_model("llama"), "mamba")
    with pytest.raises(UserError, match="architecture 'mamba' is not supported"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable GGUF file"):
        import_gguf(tmp_path / "broken.gguf", tmp_path / "folder")
