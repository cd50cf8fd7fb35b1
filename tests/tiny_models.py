"""Small random models of transformers in every family, and the same weights in ours."""
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import WORDS

from mmed.checkpoints.families import read_config
from mmed.checkpoints.pretrained import save_pretrained
from mmed.model import ModelConfig, Transformer, published_name
from mmed.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

transformers = pytest.importorskip("transformers")
CLASSES = {"llama": "Llama", "mistral": "Mistral", "bloom": "Bloom", "qwen2": "Qwen2", "qwen3": "Qwen3",
           "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text", "internlm3": "InternLM3",
           "olmo2": "Olmo2", "apertus": "Apertus"}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
QWEN_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
DEEPSEEK_YARN = QWEN_YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "mscale": 0.707, "mscale_all_dim": 0.4}


def family_settings(family: str, seed: int, rng: random.Random) -> dict:
    """What the family's config has beyond the common sizes; odd and even seeds differ."""
    odd, window, scalar = seed % 2 == 1, rng.randint(3, 9), rng.randint(5, 300)
    yarn = {"rope_parameters": QWEN_YARN if seed % 4 == 1 else DEEPSEEK_YARN} if odd else {}
    windows = {"use_sliding_window": odd, "sliding_window": window, "max_window_layers": 1}
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    return {
        "llama": {"rope_parameters": LLAMA3_ROPE if odd else linear, "attention_bias": odd, "mlp_bias": odd},
        "mistral": {"sliding_window": None if odd else window},
        "qwen2": windows | yarn, "qwen3": windows | yarn | {"attention_bias": odd},
        "internlm3": {"attention_bias": odd, "mlp_bias": odd},  # transformers has one setting for both biases
        "apertus": {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 1.2e7}},
        "olmo2": {"attention_bias": odd},
        "gemma2": {"sliding_window": window, "query_pre_attn_scalar": scalar,
                   "attn_logit_softcapping": None if odd else 3.0,
                   "final_logit_softcapping": 5.0 if odd else None},
        "gemma3_text": {"sliding_window": window, "query_pre_attn_scalar": scalar,
                        "sliding_window_pattern": 2 + odd, "final_logit_softcapping": 4.0 if odd else None,
                        "rope_parameters": {
                            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    }.get(family, {})


def theirs_of(family: str, seed: int):
    """A random small model of transformers with eager attention (which applies soft caps)."""
    rng = random.Random(f"{family} {seed}")
    heads, layers = rng.choice([2, 3, 4, 6]), rng.randint(2, 4)
    shape = {"vocab_size": rng.randint(50, 200), "hidden_size": heads * rng.choice([8, 10]),
             "tie_word_embeddings": rng.random() < 0.5}
    if family == "bloom":
        shape |= {"n_layer": layers, "n_head": heads}
    else:
        shape |= {"intermediate_size": rng.randint(17, 60), "num_hidden_layers": layers,
                  "num_attention_heads": heads, "max_position_embeddings": 64,
                  "num_key_value_heads": rng.choice([k for k in (1, 2, 3) if heads % k == 0]),
                  "rms_norm_eps": rng.choice([1e-5, 1e-6]),
                  "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([10000.0, 5e5])}}
        if family not in ("qwen2", "olmo2", "apertus"):
            shape["head_dim"] = rng.choice([6, 8, 10])
    config = getattr(transformers, CLASSES[family] + "Config")(
        **shape | family_settings(family, seed, rng), initializer_range=0.1, pad_token_id=None)
    name = "Llama" if family == "internlm3" else CLASSES[family].removesuffix("Text")
    return random_model(name + "ForCausalLM", config, seed)


def random_model(name: str, config, seed: int):
    torch.manual_seed(seed)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases begin as constants
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_medgemma():
    """A random small Gemma 3 with images of transformers."""
    text = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 7,
            "sliding_window_pattern": 2, "max_position_embeddings": 64, "initializer_range": 0.1}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       image_token_index=96, boi_token_index=94, eoi_token_index=95)
    return random_model("Gemma3ForConditionalGeneration", config, 5)


def ours_of(config: dict, state: dict) -> Transformer:
    model = Transformer(read_config(config)).eval()
    model.load_state_dict({name: state[published_name(model.config, name)] for name in model.state_dict()})
    return model


def close(a, b, relative=1e-5) -> bool:
    return bool((a - b).abs().max() <= relative * b.abs().max())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------- InternLM, from an equivalent Llama

INTERNLM = {"bias": False, "hidden_act": "silu", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 33,
            "num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6, "initializer_range": 0.1, "tie_word_embeddings": False, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "bfloat16", "use_cache": True}
INTERNLM2_NAMES = {"embed_tokens": "tok_embeddings", "lm_head": "output", "self_attn.o_proj": "attention.wo",
                   "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
                   "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
                   "mlp.down_proj": "feed_forward.w2"}


def equivalent(family: str, seed: int, kv_heads: int = 6, bias: bool = False):
    """A random Llama of transformers; config.json and tensors of the InternLM 1 or 2 that is equal."""
    llama_config = transformers.LlamaConfig(
        **{key: INTERNLM[key] for key in INTERNLM if key not in ("bias", "pad_token_id", "torch_dtype")},
        num_key_value_heads=kv_heads, head_dim=8, attention_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    llama = random_model("LlamaForCausalLM", llama_config, seed)
    if family == "internlm":  # its names are Llama's
        rotary = {"base": 1000000, "type": "dynamic"}
        return llama, INTERNLM | {"model_type": family, "bias": bias, "rotary": rotary}, llama.state_dict()
    config = INTERNLM | {"model_type": family, "bias": bias, "num_key_value_heads": kv_heads,
                         "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
                         "attn_implementation": "eager", "rope_theta": 1000000,
                         "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    tensors, state = {}, llama.state_dict()
    for name, value in state.items():
        if "q_proj" in name:  # for each key/value head the rows of its queries, its key, its value
            parts = [state[name.replace("q_proj", f"{n}_proj")].unflatten(0, (kv_heads, -1)) for n in "qkv"]
            tensors[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(parts, 1).flatten(0, 1)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in INTERNLM2_NAMES.items():
                name = name.replace(old, new)
            tensors[name] = value
    return llama, config, tensors


# -------------------------------------------------------------------------------- folders with a tokenizer

def text_of(words: list[str], rng: random.Random, n: int = 40) -> str:
    return " ".join(rng.choices(words, k=n)) + f" {rng.randint(0, 99)} mg."


def byte_level_bpe(texts: list[str], size: int, special: list[str] | None = None, words=None):
    """A tokenizer of Hugging Face tokenizers, trained on these texts; `words`: another pre-tokeniser."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special or [], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return model


def make_tokenizer(folder: Path, kind: str) -> Tokenizer:
    """A small English tokenizer: sentencepiece, or byte-level BPE with special tokens after its pieces."""
    rng = random.Random(5)
    texts = [text_of(WORDS, rng) for _ in range(60)]
    if kind == "sentencepiece":
        return train_sentencepiece(texts, folder, 320)
    model = byte_level_bpe(texts, 300)
    model.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return load_tokenizer(folder)


def make_folder(folder: Path, kind: str = "sentencepiece") -> Path:
    """A bf16 Llama with a tokenizer and five rows of padding."""
    tokenizer = make_tokenizer(folder.parent / f"{folder.name}-tokenizer", kind)
    config = ModelConfig(vocab_size=tokenizer.vocab_size + 5, hidden_size=32, intermediate_size=48,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                         initializer_range=0.1, max_position_embeddings=64,
                         extra={"generation_config": {"eos_token_id": [2, 3], "temperature": 0.6}})
    save_pretrained(Transformer(config).init_weights(3), tokenizer, folder, dtype=torch.bfloat16)
    return folder
