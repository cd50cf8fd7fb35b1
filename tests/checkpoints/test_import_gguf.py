"""A GGUF file becomes a folder with the weights, the tokenizer and the configuration it was made from."""
import numpy as np
import pytest
import torch
from tiny_models import close, make_tokenizer, transformers

from mmed.checkpoints.families import read_config
from mmed.checkpoints.import_gguf import import_gguf
from mmed.checkpoints.pretrained import load_pretrained
from mmed.model import Transformer, published_name
from mmed.tokenization.byte_level import byte_alphabet
from mmed.utils.errors import UserError

gguf = pytest.importorskip("gguf")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
         "max_position_embeddings": 64}
FAMILIES = {name: {"model_type": name} for name in ("llama", "qwen2", "qwen3")} | {
            "gemma3": {"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 8}}
LETTERS = sorted(byte_alphabet(), key=byte_alphabet().get)
TOKENS = ["<|end|>", *LETTERS, "th", "the"]


def random_model(architecture: str, vocab_size: int = len(TOKENS)) -> Transformer:
    config = read_config(SIZES | {"vocab_size": vocab_size} | FAMILIES[architecture])
    model = Transformer(config).init_weights(1).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases begin as constants; eighths survive the + 1 of Gemma
                parameter.copy_(torch.randint(-8, 8, parameter.shape) / 8)
    return model


def to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, architecture: str, model: Transformer, tokenizer: dict) -> None:
    """A file with the sizes of SIZES; `tokenizer`: values of the writer's methods. The tensors are named and
    changed as llama.cpp's converter does."""
    writer = gguf.GGUFWriter(str(path), architecture)
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 48,
             "head_count": 4, "head_count_kv": 2, "key_length": 8, "layer_norm_rms_eps": 1e-5,
             "sliding_window": 16}
    for key, value in (sizes | tokenizer).items():
        getattr(writer, f"add_{key}")(value)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name in FAMILIES}
    names = gguf.get_tensor_name_map(kinds.get(architecture, gguf.MODEL_ARCH.LLAMA), 2)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = to_pairs(values, 4 if "q_proj" in name else 2)
        published = published_name(model.config, name)
        writer.add_tensor(names.get_name(published, (".weight", ".bias")), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BYTE_LEVEL = {"tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2", "token_list": TOKENS,
              "token_types": [3, *[1] * (len(TOKENS) - 1)], "token_merges": ["t h", "th e"],
              "bos_token_id": 0, "eos_token_id": 0}


@pytest.mark.parametrize("architecture, split, bos", [
    *((architecture, "gpt-2", None) for architecture in FAMILIES),
    ("llama", "llama-bpe", 0), ("qwen2", "qwen2", None)])
def test_weights_and_tokenizer_are_those_of_the_file(tmp_path, architecture, split, bos):
    model = random_model(architecture)
    write_gguf(tmp_path / "model.gguf", architecture, model, BYTE_LEVEL | {"tokenizer_pre": split})
    import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    imported, tokenizer = load_pretrained(tmp_path / "folder")
    assert all(torch.equal(value, imported.get_parameter(name)) for name, value in model.named_parameters())
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert len(tokenizer.encode("the")) == 1 and tokenizer.eos_id == 0 and tokenizer.bos_id == bos
    assert (tokenizer.encode("e\u0301") == tokenizer.encode("\xe9")) == (split == "qwen2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        assert close(imported(ids), theirs(ids).logits, 1e-4)


def test_a_sentencepiece_tokenizer_gives_the_same_ids(tmp_path):
    old = make_tokenizer(tmp_path / "tokenizer", "sentencepiece")
    tokens, scores, kinds = zip(*old.core.model.pieces)
    write_gguf(tmp_path / "model.gguf", "llama", random_model("llama", len(tokens)), {
        "tokenizer_model": "llama", "token_list": tokens, "token_scores": scores, "token_types": kinds,
        "bos_token_id": old.bos_id, "eos_token_id": old.eos_id, "unk_token_id": old.core.processor.unk_id(),
        "add_space_prefix": bool(old.core.model.rules[3])})
    import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    new = load_pretrained(tmp_path / "folder")[1]
    for text in ("heart lung 5 mg", "  größer हृदय\n"):
        assert new.encode(text) == old.encode(text) and new.decode(new.encode(text)) == text
    assert (new.bos_id, new.eos_id) == (old.bos_id, old.eos_id)


@pytest.mark.parametrize("architecture, tokenizer, words", [
    ("mamba", BYTE_LEVEL, "architecture 'mamba' is not supported"),
    ("llama", BYTE_LEVEL | {"tokenizer_pre": "tekken"}, r"tokenizer\.ggml\.pre = 'tekken' is not supported"),
    ("llama", {key: value for key, value in BYTE_LEVEL.items() if key != "tokenizer_pre"},
     r"tokenizer\.ggml\.pre = None is not supported"),
    ("llama", {}, r"damaged \(KeyError: 'tokenizer.ggml.tokens'\)"), (None, {}, "damaged")])
def test_other_files_are_rejected_by_name(tmp_path, architecture, tokenizer, words):
    if architecture is None:
        (tmp_path / "model.gguf").write_bytes(b"nothing")
    else:
        write_gguf(tmp_path / "model.gguf", architecture, random_model("llama"), tokenizer)
    with pytest.raises(UserError, match=rf"model\.gguf: .*{words}"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "folder")
