"""Published model folders in and out.

    load_pretrained(folder)  <-  config.json, weights, tokenizer
    save_pretrained(model)   ->  the same, in the layout of the model's family: opens in transformers, PEFT
                             and vLLM

Nothing in a folder is executed. A tensor that is missing, unexpected or of another shape is an error, before
memory is taken. A folder gets its final name only once it is complete.
"""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from mmed.checkpoints.families import read_config, write_config
from mmed.checkpoints.weights import (
    StoredTensor,
    copy_weights,
    fit,
    header_bytes,
    same_values,
    stored_tensors,
)
from mmed.model import ModelConfig, Transformer, published_name, published_prefix
from mmed.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, sync_folder, write_json, writing

SHARD_BYTES = 5 * 10 ** 9       # files of about this size, as the published ones are


# ------------------------------------------------------------------------------------------------------------
# Loading


def load_config(folder: str | Path) -> ModelConfig:
    """The folder's `config.json`; its `generation_config.json` goes along in `extra`, to be written back on
    export.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; a model folder holds config.json, *.safetensors and a tokenizer")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    try:
        config = read_config(content)
    except UserError as error:
        raise UserError(f"{path.parent}/{error}") from None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        config.extra["generation_config"] = read_json(generation)
    return config


def match_weights(model: Transformer, folder: str | Path) -> list[tuple[torch.nn.Parameter, StoredTensor]]:
    """(own parameter, where it is stored) for all but the LoRA matrices; an error lists what does not fit."""
    config, stored = model.config, stored_tensors(folder)
    wanted = {
        published_name(config, name): parameter
        for name, parameter in model.named_parameters() if ".lora_" not in name
    }
    prefix, head = published_prefix(config), published_name(config, "lm_head.weight")
    # saved from the model without its head, as the published BLOOMs are
    if not any(name.startswith(prefix) for name in stored):
        stored = {name if name == head else prefix + name: tensor for name, tensor in stored.items()}
    tied_head = stored.get(head) if config.tie_word_embeddings else None
    unexpected = [
        name for name in stored
        if name not in wanted and not name.endswith(".inv_freq") and stored[name] is not tied_head
    ]
    pairs = fit(folder, wanted, stored, unexpected)
    embedding = stored[published_name(config, "embed_tokens.weight")]
    if tied_head and not same_values(tied_head, embedding):
        raise UserError(
            f"{folder}: config.json has tie_word_embeddings = true, but {head} differs from "
            f"{embedding.name}; "
            "set it to false, or remove the head")
    return pairs


def load_weights(model: Transformer, folder: str | Path) -> None:
    """Fill `model`'s own parameters (not its LoRA matrices) from `folder`; a sharded model reads only its own
    rows.
    """
    copy_weights(match_weights(model, folder))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of a folder's weights."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in stored_tensors(folder).values():
        if isinstance(tensor.dtype, torch.dtype):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=sizes.get, default=torch.float32)


def has_tokenizer(path: str | Path) -> bool:
    """Whether this is a tokenizer file, or a folder with one."""
    path = Path(path)
    return path.is_file() or any((path / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def load_pretrained(folder: str | Path, dtype: torch.dtype | None = None,
                    device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """(model in eval mode, tokenizer or None if the folder has none) of a published model folder; dtype:
    fp32.
    """
    folder = Path(folder)
    config = load_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    pairs = match_weights(model, folder)  # before memory is taken
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only "
            f"{config.vocab_size} rows"
        )
    model = model.to(dtype or torch.float32).to_empty(device=device)
    copy_weights([(parameter, stored)
                  for parameter, (_, stored) in zip(model.parameters(), pairs, strict=True)])
    return model.eval(), tokenizer


# ------------------------------------------------------------------------------------------------------------
# Saving


def save_pretrained(model: Transformer,
                    tokenizer: Tokenizer | None,
                    folder: str | Path,
                    dtype: torch.dtype | None = None,
                    shard_bytes: int = SHARD_BYTES,
                    more: dict[str, str] | None = None) -> None:
    """Write `model` (sharded or not; every rank calls) as its family's folder.

    `more`: further text files by name (the model card). Tensors are gathered and written one at a time.
    """
    folder, main = Path(folder), distributed.is_main()
    dtype = dtype or next(model.parameters()).dtype
    # before anything is written: it may be rejected
    config = write_config(model.config, str(dtype).removeprefix("torch."))
    building = folder.with_name(folder.name + ".tmp")
    files = _files(model, dtype, shard_bytes)
    total = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        if (free := shutil.disk_usage(building).free) < total * 1.02:
            raise UserError(f"{folder}: the weights need {total:,} bytes, but only {free:,} are free")
    for name, tensors in files.items():
        _write_file(building / name, tensors, dtype)
    if main:
        if len(files) > 1:
            places = {tensor: file for file, tensors in files.items() for tensor in tensors}
            write_json(building / "model.safetensors.index.json",
                       {"metadata": {"total_size": total}, "weight_map": places})
        write_json(building / "config.json", config)
        ids = {
            key: model.config.extra[key]
            for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model.config.extra
        }
        write_json(building / "generation_config.json", model.config.extra.get("generation_config") or ids)
        if tokenizer is not None:
            save_tokenizer(tokenizer, building)
        for name, text in (more or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        replace_folder(building, folder)
    distributed.barrier()


def _files(model: Transformer, dtype: torch.dtype, shard_bytes: int) -> dict[str, dict[str, torch.Tensor]]:
    """File name -> published name -> parameter, in files of about `shard_bytes`."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        nbytes = parameter.numel() * dtype.itemsize
        if size and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][published_name(model.config, name)] = parameter
        size += nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write_file(path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """One safetensors file; gathering a tensor is a collective, so every rank takes part and rank 0 writes.
    """
    main = distributed.is_main()
    with writing(path), open(path if main else os.devnull, "wb") as file:
        file.write(header_bytes([(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]))
        for tensor in tensors.values():
            value = distributed.whole(tensor.detach())
            if main:
                value = value.to(dtype=dtype, device="cpu").contiguous()
                file.write(memoryview(value.view(torch.uint8).numpy()).cast("B"))


def replace_folder(building: Path, folder: Path) -> None:
    """Give a finished folder its name; what had the name before is removed only once the new folder is
    complete.
    """
    for path in building.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(building)
    old = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(building, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
