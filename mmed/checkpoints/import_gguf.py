"""A GGUF file -> a model folder (config.json, model.safetensors, tokenizer) that mmed and transformers open.

    python -m mmed.checkpoints import-gguf gemma-3-270m-q4_k_m.gguf gemma3-270m

Llama, Qwen 2, Qwen 3 and Gemma 3. Weights are dequantised to bf16: a 4-bit file gives a slightly damaged
model, not the original. Needs the extra `gguf` (that library's reader, names and dequantiser).
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mmed.checkpoints.families import read_config
from mmed.checkpoints.pretrained import check_tensors, save_pretrained
from mmed.model import Transformer, published_name
from mmed.tokenization.byte_level import GPT2, LLAMA3, QWEN2
from mmed.tokenization.hub import added_token
from mmed.tokenization.sentencepiece_model import CONTROL, SPACE, USER_DEFINED, build_message, build_piece
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import write_json
from mmed.utils.untrusted import reading

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # GGUF's names
# Splitting rules of byte-level BPE, by tokenizer.ggml.pre. Old files lack it: any rule may be theirs.
SPLITS = {"gpt-2": GPT2, "smollm": GPT2, "llama-bpe": LLAMA3, "qwen2": QWEN2}


def import_gguf(file: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model folder. UserError: not a GGUF file, or something in it is not supported."""
    gguf = require_extra("gguf", "gguf")
    try:
        with reading("metadata"):
            reader = gguf.GGUFReader(str(file))
            fields = {name: field.contents() for name, field in reader.fields.items()}
            stored = {tensor.name: tensor for tensor in reader.tensors}
            with torch.device("meta"):
                model = Transformer(read_config(config_json(fields, set(stored))))
            weights = dequantised(gguf, model, stored, fields["general.architecture"], dtype)
            model.load_state_dict(weights, assign=True)
            # where the file does not say, as llama.cpp decides
            llama = "llama" in (fields["tokenizer.ggml.model"],
                                str(fields.get("tokenizer.ggml.pre")).removesuffix("-bpe"))
            adds_bos = fields.get("tokenizer.ggml.add_bos_token",
                                  llama and "tokenizer.ggml.bos_token_id" in fields)
            with tempfile.TemporaryDirectory() as name:
                write_tokenizer(fields, Path(name))
                save_pretrained(model, load_tokenizer(name, "yes" if adds_bos else "no"), folder)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def config_json(fields: dict[str, Any], tensors: set[str]) -> dict:
    """config.json from the metadata."""
    architecture = fields["general.architecture"]
    if architecture not in FAMILIES:
        raise UserError(f"architecture {architecture!r} is not supported (known: {', '.join(FAMILIES)})")
    value = {key.removeprefix(f"{architecture}."): content for key, content in fields.items()}
    if value.get("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in tensors:
        raise UserError("RoPE scaling in GGUF files is not supported")
    heads = value["attention.head_count"]
    config = {
        "model_type": FAMILIES[architecture], "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": value["embedding_length"], "num_hidden_layers": value["block_count"],
        "intermediate_size": value["feed_forward_length"], "num_attention_heads": heads,
        "num_key_value_heads": value.get("attention.head_count_kv", heads),
        "head_dim": value.get("attention.key_length") or value["embedding_length"] // heads,
        "max_position_embeddings": value["context_length"],
        "rms_norm_eps": round(value["attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": value.get("rope.freq_base", 1e4), "tie_word_embeddings": "output.weight" not in tensors}
    if architecture == "gemma3":  # the period of its windows and the local base are constants of the family
        config |= {"query_pre_attn_scalar": config["head_dim"],
                   "sliding_window": value.get("attention.sliding_window")}
    return config | {f"{name}_token_id": fields.get(f"tokenizer.ggml.{name}_token_id")
                     for name in ("bos", "eos")}


def dequantised(gguf: ModuleType, model: Transformer, stored: dict[str, Any], architecture: str,
                dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of the file by name of the model's parameters."""
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sources = {name: names.get_name(published_name(config, name), (".weight", ".bias")) for name in shapes}
    found = {name: stored.pop(source) for name, source in sources.items() if source in stored}
    for name, tensor in found.items():
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values -= 1  # GGUF stores 1 + w
        if architecture == "llama" and name.split(".")[-2] in heads:
            # undo llama.cpp's order of query and key rows (rows, ...): neighbouring pairs -> two halves
            pairs = values.reshape(heads[name.split(".")[-2]], -1, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    check_tensors(found | stored, shapes, "its tensors do not fit its metadata")
    return found


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """tokenizer.json or tokenizer.model, and tokenizer_config.json."""
    tokens, kind = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        write_json(folder / "tokenizer.json", byte_level_tokenizer(fields))
        name = "PreTrainedTokenizerFast"
    elif kind == "llama":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(fields))
        name = "GemmaTokenizer" if fields["general.architecture"] == "gemma3" else "LlamaTokenizer"
    else:
        raise UserError(f"tokenizer {kind!r} is not supported; supported are gpt2 and llama")
    settings = {"tokenizer_class": name}
    for role, theirs in ROLES.items():
        if f"tokenizer.ggml.{theirs}_token_id" in fields:
            settings[f"{role}_token"] = tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]]
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
    return {"version": "1.0", "added_tokens": added,
            "normalizer": {"type": "NFC"} if split == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*digits, words, byte_level]},
            "decoder": byte_level,
            "model": {"type": "BPE", "ignore_merges": split == "llama-bpe",
                      "vocab": {token: number for number, token in enumerate(tokens)},
                      "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]}}


def sentencepiece_model(fields: dict[str, Any]) -> bytes:
    """tokenizer.model: a BPE with byte fallback, in sentencepiece's format (sentencepiece_model.proto)."""
    columns = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    # GGUF files write the spaces of user-defined pieces plainly
    pieces = [build_piece(token.replace(" ", SPACE) if kind == USER_DEFINED else token, float(score), kind)
              for token, score, kind in zip(*columns)]
    trainer = [(3, 2), (4, len(pieces)), (35, 1)]  # BPE, vocabulary size, byte fallback
    trainer += [(number, fields[f"tokenizer.ggml.{ROLES[role]}_token_id"])
                for number, role in ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad"))
                if f"tokenizer.ggml.{ROLES[role]}_token_id" in fields]
    prefix = int(fields.get("tokenizer.ggml.add_space_prefix", True))
    normaliser = build_message((1, b"identity"), (3, prefix), (4, 0), (5, 1))
    return build_message(*pieces, (2, build_message(*trainer)), (3, normaliser))
