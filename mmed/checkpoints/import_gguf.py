"""A GGUF file -> a model folder (config.json, model.safetensors, tokenizer) that mmed and transformers open.

    python -m mmed.checkpoints import-gguf gemma-3-270m-q4_k_m.gguf gemma3-270m

Llama, Qwen 2, Qwen 3 and Gemma 3. Weights are dequantised to bf16: a 4-bit file gives a slightly damaged
model, not the original. Needs the extra `gguf` (that library's reader and dequantiser).
"""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mmed.checkpoints.pretrained import replace_folder
from mmed.tokenization.byte_level import GPT2, LLAMA3, QWEN2
from mmed.tokenization.sentencepiece_model import build_message, build_piece
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import write_json

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GEMMA_LOCAL_THETA, GEMMA_PATTERN = 10_000.0, 6  # constants of the architecture that GGUF files leave out

# Splitting rules of byte-level BPE, by tokenizer.ggml.pre.
SPLITS = {"default": GPT2, "gpt-2": GPT2, "smollm": GPT2, "llama-bpe": LLAMA3, "qwen2": QWEN2}
CONTROL, USER_DEFINED = 3, 4  # token types, the same as sentencepiece's


def import_gguf(file: Path, folder: Path) -> None:
    """Write the model folder. UserError: not a GGUF file, or an architecture or tokenizer that is not
    supported.
    """
    require_extra("gguf", "gguf")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file}: not a readable GGUF file: {error}") from None
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise UserError(f"{file}: architecture {architecture!r} is not supported; supported are "
                        f"{', '.join(ARCHITECTURES)}")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    names = {tensor.name for tensor in reader.tensors}
    building = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        config = read_config(fields, architecture, names)
        save_file(read_tensors(reader, config), building / "model.safetensors", metadata={"format": "pt"})
        write_json(building / "config.json", config)
        write_tokenizer(fields, building)
    except UserError as error:
        shutil.rmtree(building)
        raise UserError(f"{file}: {error}") from None
    replace_folder(building, folder)


def read_config(fields: dict[str, Any], architecture: str, names: set[str]) -> dict:
    """config.json from the metadata."""
    def value(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    class_name, model_type = ARCHITECTURES[architecture]
    heads, width, layers = value("attention.head_count"), value("embedding_length"), value("block_count")
    config = {
        "architectures": [class_name], "model_type": model_type, "dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]), "hidden_size": width, "num_hidden_layers": layers,
        "intermediate_size": value("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", width // heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": round(value("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": value("rope.freq_base", 10_000.0), "tie_word_embeddings": "output.weight" not in names,
    }
    for key, name in (("bos_token_id", "bos"), ("eos_token_id", "eos")):
        config[key] = fields.get(f"tokenizer.ggml.{name}_token_id")
    if architecture == "gemma3":
        kinds = ["full_attention" if (layer + 1) % GEMMA_PATTERN == 0 else "sliding_attention"
                 for layer in range(layers)]
        config |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": config["head_dim"],
                   "sliding_window": value("attention.sliding_window"), "layer_types": kinds,
                   "rope_local_base_freq": GEMMA_LOCAL_THETA, "attention_bias": False}
    else:
        config |= {"hidden_act": "silu"}
    if value("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in names:
        raise UserError("RoPE scaling in GGUF files is not supported")
    return config


def read_tensors(reader: Any, config: dict) -> dict[str, torch.Tensor]:
    """Name in transformers -> bf16 tensor."""
    from gguf.quants import dequantize

    gemma = config["model_type"] == "gemma3_text"
    tensors = {}
    for stored in reader.tensors:
        values = np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        name = tensor_name(stored.name, gemma)
        if gemma and name.endswith("norm.weight"):
            values -= 1  # GGUF stores 1 + w
        if config["model_type"] == "llama" and ".attn_q." in stored.name:
            values = to_half_rotation(values, config["num_attention_heads"])
        if config["model_type"] == "llama" and ".attn_k." in stored.name:
            values = to_half_rotation(values, config["num_key_value_heads"])
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return tensors


def tensor_name(name: str, gemma: bool) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *parts, kind = name.split(".")
    if parts[0] == "blk":
        names = BLOCK_NAMES | (GEMMA_NAMES if gemma else {})
        known = names.get(parts[2])
        place = f"model.layers.{parts[1]}.{known}"
    else:
        known = place = TOP_NAMES.get(parts[0])
    if known is None:
        raise UserError(f"unknown tensor {name}")
    return f"{place}.{kind}"


def to_half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of query and key rows: neighbouring pairs -> two halves. (rows, columns).
    """
    rows, *columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *columns).swapaxes(1, 2).reshape(rows, *columns)


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    settings = {"add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
                "add_eos_token": bool(fields.get("tokenizer.ggml.add_eos_token", False))}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            settings[f"{key}_token"] = tokens[number]
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    kind = fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(folder / "tokenizer.json", byte_level_tokenizer(fields, tokens, types))
    elif kind == "llama":
        gemma = fields["general.architecture"] == "gemma3"
        settings["tokenizer_class"] = "GemmaTokenizer" if gemma else "LlamaTokenizer"
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(fields, tokens, types))
    else:
        raise UserError(f"tokenizer {kind!r} is not supported; supported are gpt2 and llama")
    write_json(folder / "tokenizer_config.json", settings)


def byte_level_tokenizer(fields: dict[str, Any], tokens: list[str], types: list[int]) -> dict:
    """tokenizer.json of a byte-level BPE."""
    split = fields.get("tokenizer.ggml.pre", "default")
    if split not in SPLITS:
        raise UserError(f"tokenizer.ggml.pre = {split!r} is not supported; supported are {', '.join(SPLITS)}")
    added = [{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind == CONTROL}
             for number, (token, kind) in enumerate(zip(tokens, types)) if kind in (CONTROL, USER_DEFINED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": SPLITS[split]}, "behavior": "Isolated", "invert": False}
    pieces = [words, byte_level]
    if split == "smollm":  # digits one by one
        pieces.insert(0, {"type": "Digits", "individual_digits": True})
    post = None
    if fields.get("tokenizer.ggml.add_bos_token"):
        bos = fields["tokenizer.ggml.bos_token_id"]
        token = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        post = {"type": "TemplateProcessing", "single": [token, sequence],
                "pair": [token, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}}}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": split == "llama-bpe", "vocab": {
            token: number
            for number, token in enumerate(tokens)
        }, "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]
    }
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pieces}, "post_processor": post,
            "decoder": byte_level, "model": model}


def sentencepiece_model(fields: dict[str, Any], tokens: list[str], types: list[int]) -> bytes:
    """tokenizer.model: a BPE with byte fallback, in sentencepiece's format (sentencepiece_model.proto)."""
    # GGUF files write the spaces of user-defined pieces plainly.
    tokens = [
        token.replace(" ", "\u2581") if kind == USER_DEFINED else token for token, kind in zip(tokens, types)
    ]
    pieces = [build_piece(token, float(score), kind)
              for token, score, kind in zip(tokens, fields["tokenizer.ggml.scores"], types)]
    trainer = [(3, 2), (4, len(tokens)), (35, 1)]  # BPE, vocabulary size, byte fallback
    for number, name in ((40, "unknown"), (41, "bos"), (42, "eos"), (43, "padding")):
        if f"tokenizer.ggml.{name}_token_id" in fields:
            trainer.append((number, fields[f"tokenizer.ggml.{name}_token_id"]))
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    normaliser = build_message((1, b"identity"), (3, int(prefix)), (4, 0), (5, 1))
    return build_message(*pieces, (2, build_message(*trainer)), (3, normaliser))
