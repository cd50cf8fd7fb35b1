"""A GGUF file becomes a folder with the weights, the tokenizer and the configuration it was made from."""
import json

import numpy as np
import pytest
import torch

from mmed.checkpoints.import_gguf import import_gguf, to_half_rotation
from mmed.checkpoints.pretrained import load_pretrained
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.byte_level import byte_alphabet
from mmed.utils.errors import UserError

gguf = pytest.importorskip("gguf")
HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}

TOP_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model: Transformer, architecture: str = "llama") -> None:
    letters = sorted(byte_alphabet(), key=byte_alphabet().get)
    tokens = ["<|end|>", *letters, "th", "the"]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        parts = name.removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            if parts[2].startswith(("self_attn.q", "self_attn.k")):
                values = to_pairs(values, HEADS if "q_proj" in name else KV_HEADS)
            name = f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            name = TOP_NAMES[parts[0]] + ".weight"
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(vocab_size=259, hidden_size=WIDTH, intermediate_size=48,
                         num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         num_key_value_heads=KV_HEADS, head_dim=8, rms_norm_eps=1e-5)
    return Transformer(config).init_weights(1).to(torch.bfloat16)


def test_weights_and_tokenizer_are_those_of_the_file(model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model)
    import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    imported, tokenizer = load_pretrained(tmp_path / "folder")
    expected = model.state_dict()
    assert imported.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in imported.state_dict().items())
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert len(tokenizer.encode("the")) == 1 and tokenizer.eos_id == 0
    settings = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForCausalLM"] and settings["num_key_value_heads"] == KV_HEADS


def test_rotation_order_is_inverted():
    weight = np.arange(64.0).reshape(32, 2)
    assert np.array_equal(to_half_rotation(to_pairs(weight, 4), 4), weight)


def test_other_architectures_are_rejected_by_name(model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, "mamba")
    with pytest.raises(UserError, match="architecture 'mamba' is not supported"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable GGUF file"):
        import_gguf(tmp_path / "broken.gguf", tmp_path / "folder")
