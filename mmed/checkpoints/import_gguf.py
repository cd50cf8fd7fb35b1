"""A GGUF file -> a model folder (config.json, model.safetensors, tokenizer) that mmed and transformers open.

    python -m mmed.checkpoints import-gguf gemma-3-270m-q4_k_m.gguf gemma3-270m

Llama, Qwen 2, Qwen 3 and Gemma 3. Weights are dequantised to bf16: a 4-bit file gives a slightly damaged
model, not the original. Needs the extra `gguf` (that library's reader, names and dequantiser).
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmed.checkpoints.families import read_config
from mmed.checkpoints.pretrained import save_pretrained
from mmed.model import Transformer, published_name
from mmed.tokenization.byte_level import GPT2, LLAMA3, QWEN2
from mmed.tokenization.hub import added_token
from mmed.tokenization.sentencepiece_model import CONTROL, USER_DEFINED, build_message, build_piece
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import write_json
from mmed.utils.untrusted import reading

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
# Splitting rules of byte-level BPE, by tokenizer.ggml.pre. Old files lack it: any rule may be theirs.
SPLITS = {"gpt-2": GPT2, "smollm": GPT2, "llama-bpe": LLAMA3, "qwen2": QWEN2}


def import_gguf(file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model folder. UserError: not a GGUF file, or something in it is not supported."""
    gguf = require_extra("gguf", "gguf")
    try:
        reader = gguf.GGUFReader(str(file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file}: not a readable GGUF file: {error}") from None
    try:
        with reading("metadata"):
            stored = {tensor.name: tensor for tensor in reader.tensors}
            with torch.device("meta"):
                model = Transformer(read_config(config_json(fields, set(stored))))
            model.to(dtype).to_empty(device="cpu")
            copy_tensors(model, stored, fields["general.architecture"])
            with tempfile.TemporaryDirectory() as name:
                write_tokenizer(fields, Path(name))
                tokenizer = load_tokenizer(name, "yes" if adds_bos(fields) else "no")
                save_pretrained(model, tokenizer, folder)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def adds_bos(fields: dict[str, Any]) -> bool:
    """Whether a text begins with BOS; where the file does not say, as llama.cpp decides."""
    by_kind = fields["tokenizer.ggml.model"] == "llama" or fields.get("tokenizer.ggml.pre") == "llama-bpe"
    return fields.get("tokenizer.ggml.add_bos_token", by_kind and "tokenizer.ggml.bos_token_id" in fields)


def config_json(fields: dict[str, Any], tensors: set[str]) -> dict:
    """config.json from the metadata."""
    architecture = fields["general.architecture"]
    if architecture not in FAMILIES:
        raise UserError(f"architecture {architecture!r} is not supported (known: {', '.join(FAMILIES)})")
    value = {key.removeprefix(f"{architecture}."): content for key, content in fields.items()}
    if value.get("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in tensors:
        raise UserError("RoPE scaling in GGUF files is not supported")
    heads = value.get("attention.head_count")
    config = {
        "model_type": FAMILIES[architecture], "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": value.get("embedding_length"), "num_hidden_layers": value.get("block_count"),
        "intermediate_size": value.get("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": value.get("attention.head_count_kv", heads),
        "head_dim": value.get("attention.key_length") or value["embedding_length"] // heads,
        "max_position_embeddings": value.get("context_length"),
        "rms_norm_eps": round(value["attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": value.get("rope.freq_base", 1e4), "tie_word_embeddings": "output.weight" not in tensors}
    if architecture == "gemma3":  # the period of its windows and the local base are constants of the family
        config |= {"query_pre_attn_scalar": config["head_dim"],
                   "sliding_window": value.get("attention.sliding_window")}
    return config | {f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id")
                     for name in ("bos", "eos")}


@torch.no_grad()
def copy_tensors(model: Transformer, stored: dict[str, Any], architecture: str) -> None:
    """Dequantise every tensor of the file into the model."""
    gguf = require_extra("gguf", "gguf")
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    sources = {names.get_name(published_name(config, name), (".weight", ".bias")): name
               for name, _ in model.named_parameters()}
    if different := sorted(sources.keys() ^ stored.keys()):
        raise UserError(f"{different[0]}: no such tensor in the file, or none that the model needs")
    for source, name in sources.items():
        values = np.array(gguf.dequantize(stored[source].data, stored[source].tensor_type), dtype=np.float32)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values -= 1  # GGUF stores 1 + w
        if architecture == "llama" and name.split(".")[-2] in heads:
            values = to_half_rotation(values, heads[name.split(".")[-2]])
        parameter = model.get_parameter(name)
        if values.shape != tuple(parameter.shape):
            raise UserError(f"{source} has shape {values.shape}, expected {tuple(parameter.shape)}")
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def to_half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of query and key rows (rows, ...): neighbouring pairs -> two halves."""
    rows, *columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *columns).swapaxes(1, 2).reshape(rows, *columns)


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """tokenizer.json or tokenizer.model, and tokenizer_config.json."""
    tokens, kind = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        write_json(folder / "tokenizer.json", byte_level_tokenizer(fields))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    elif kind == "llama":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(fields))
        gemma = fields["general.architecture"] == "gemma3"
        settings = {"tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer"}
    else:
        raise UserError(f"tokenizer {kind!r} is not supported; supported are gpt2 and llama")
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            settings[f"{key}_token"] = tokens[number]
    if "tokenizer.chat_template" in fields:
        settings["chat_template"] = fields["tokenizer.chat_template"]
    write_json(folder / "tokenizer_config.json", settings)


def byte_level_tokenizer(fields: dict[str, Any]) -> dict:
    """tokenizer.json of a byte-level BPE."""
    split, tokens = fields.get("tokenizer.ggml.pre"), fields["tokenizer.ggml.tokens"]
    if split not in SPLITS:
        raise UserError(f"tokenizer.ggml.pre = {split!r} is not supported; supported are {', '.join(SPLITS)}")
    added = [added_token(number, token, kind == CONTROL)
             for number, (token, kind) in enumerate(zip(tokens, fields["tokenizer.ggml.token_type"]))
             if kind in (CONTROL, USER_DEFINED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": SPLITS[split]}, "behavior": "Isolated", "invert": False}
    digits = [{"type": "Digits", "individual_digits": True}] if split == "smollm" else []
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": split == "llama-bpe",
             "vocab": {token: number for number, token in enumerate(tokens)},
             "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "NFC"} if split == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*digits, words, byte_level]},
            "post_processor": None, "decoder": byte_level, "model": model}


def sentencepiece_model(fields: dict[str, Any]) -> bytes:
    """tokenizer.model: a BPE with byte fallback, in sentencepiece's format (sentencepiece_model.proto)."""
    columns = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    # GGUF files write the spaces of user-defined pieces plainly
    pieces = [build_piece(token.replace(" ", "\u2581") if kind == USER_DEFINED else token, float(score), kind)
              for token, score, kind in zip(*columns)]
    trainer = [(3, 2), (4, len(pieces)), (35, 1)]  # BPE, vocabulary size, byte fallback
    for number, name in ((40, "unknown"), (41, "bos"), (42, "eos"), (43, "padding")):
        if f"tokenizer.ggml.{name}_token_id" in fields:
            trainer.append((number, fields[f"tokenizer.ggml.{name}_token_id"]))
    prefix = int(fields.get("tokenizer.ggml.add_space_prefix", True))
    normaliser = build_message((1, b"identity"), (3, prefix), (4, 0), (5, 1))
    return build_message(*pieces, (2, build_message(*trainer)), (3, normaliser))
