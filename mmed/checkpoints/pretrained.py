"""Weights in and out: published model folders.

    load_pretrained(folder)  <-  config.json, safetensors files (or legacy .bin, unpickled as tensors only), tokenizer
    save_pretrained(model)   ->  the same, in the layout of the model's family: opens in transformers, PEFT, vLLM

    python -m mmed.checkpoints inspect FOLDER                      what it is, and the memory to train and to decode it
    python -m mmed.checkpoints export RUN FOLDER                   a run's weights as a model folder with its card
    python -m mmed.checkpoints merge FOLDER ADAPTER OUT            a LoRA adapter folded into its model
    python -m mmed.checkpoints extend FOLDER OUT --texts FILES     more vocabulary for a new language

Nothing here runs anything from a folder (DESIGN invariant 6; mmed/checkpoints/safe.py reads the tensors). Every output gets its name when
it is whole. A tensor that is missing, not expected or of another shape is an error that lists it, before memory is taken.
"""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from mmed.checkpoints.families import read_config, write_config
from mmed.checkpoints.safe import StoredTensor, TensorReader, fitted, header_bytes, stored_tensors
from mmed.model import ModelConfig, Transformer, local_rows, published_name, published_prefix
from mmed.tokenizer import load_tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, sync_folder, write_json, writing

SHARD_BYTES = 5 * 10 ** 9       # files of about this size, as the published ones are
MAX_CONFIG_BYTES = 4 << 20


# --------------------------------------------------------------------------------------------------- published folders

def read_settings(path: Path) -> dict:
    """The object in a small JSON file of a model folder."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a config (limit {MAX_CONFIG_BYTES:,})")
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def load_config(folder: str | Path) -> ModelConfig:
    """The folder's `config.json`; its `generation_config.json` goes along in `extra`, to be written back on export."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a model folder holds config.json, *.safetensors and a tokenizer")
    try:
        config = read_config(read_settings(path))
    except UserError as error:
        raise UserError(f"{path.parent}/{error}" if str(error).startswith("config.json") else str(error)) from None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        config.extra["generation_config"] = read_settings(generation)
    return config


def match_weights(model: Transformer, folder: str | Path) -> list[tuple[torch.Tensor, StoredTensor]]:
    """(own parameter, where it is stored) for all but the LoRA matrices; an error that lists what does not fit."""
    folder, config = Path(folder), model.config
    stored = stored_tensors(folder)
    wanted = {published_name(config, name): parameter for name, parameter in model.named_parameters() if ".lora_" not in name}
    prefix = published_prefix(config)
    if not any(name.startswith(prefix) for name in stored):  # saved from the model without its head, as the published BLOOMs are
        stored = {name if name == published_name(config, "lm_head.weight") else prefix + name: tensor for name, tensor in stored.items()}
    needless = {published_name(config, "lm_head.weight")} if config.tie_word_embeddings else set()
    stray = [name for name in stored if name not in wanted and name not in needless and not name.endswith(".inv_freq")]
    return fitted(folder, wanted, stored, stray)


def load_weights(model: Transformer, folder: str | Path) -> None:
    """Fill `model`'s own parameters (not its LoRA matrices) from `folder`; a sharded model reads only its own rows.

    Tensors go from the file into the parameter itself, so the peak of host memory is the model and one small buffer.
    """
    reader = TensorReader()
    with torch.no_grad():
        for parameter, stored in sorted(match_weights(model, folder), key=lambda pair: (pair[1].path, pair[1].begin or 0)):
            local, rows = local_rows(parameter)
            if local.numel():
                reader.copy(stored, rows, local.detach())
    reader.close()


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of a folder's weights."""
    counts: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.nbytes
    return getattr(torch, max(counts, key=counts.get))


def has_tokenizer(path: str | Path) -> bool:
    """Whether this is a tokenizer file, or a folder with one."""
    path = Path(path)
    return path.is_file() or any((path / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def load_pretrained(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"):
    """(`Transformer` in eval mode, tokenizer or None if the folder has none) of a published model folder; dtype: fp32."""
    folder = Path(folder)
    config = load_config(folder)
    if config.num_hidden_layers > (tensors := len(stored_tensors(folder))):  # a thousand layers take half a minute even without memory
        raise UserError(f"{folder}: its weights do not fit its config.json: {config.num_hidden_layers} layers, but {tensors} tensors")
    with torch.device("meta"):
        model = Transformer(config)
    match_weights(model, folder)  # before memory is taken
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only {config.vocab_size} rows")
    model = model.to(dtype or torch.float32).to_empty(device=device)
    load_weights(model, folder)
    return model.eval(), tokenizer


def save_pretrained(model: Transformer, tokenizer, folder: str | Path, dtype: torch.dtype | None = None,
                    shard_bytes: int = SHARD_BYTES, more: dict[str, str] | None = None) -> None:
    """Write `model` (sharded or not; every rank calls) as its family's folder; `tokenizer` brings its own files along.

    `more`: further text files by name (the model card). Tensors are gathered and written one at a time.
    """
    folder, main = Path(folder), distributed.is_main()
    stored = dtype or next(model.parameters()).dtype
    dtype_name = str(stored).removeprefix("torch.")
    config = write_config(model.config, dtype_name)  # before anything is written: it may be refused
    tensors = [(published_name(model.config, name), parameter) for name, parameter in model.named_parameters()]
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    size = 0
    for name, parameter in tensors:
        nbytes = parameter.numel() * stored.itemsize
        if size and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, parameter))
        size += nbytes
    building = folder.with_name(folder.name + ".tmp")
    files = ["model.safetensors"] if len(shards) == 1 else \
        [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    total = sum(parameter.numel() for _, parameter in tensors) * stored.itemsize
    if main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        free = shutil.disk_usage(building).free
        if free < total * 1.02:
            raise UserError(f"{folder}: the weights need {total:,} bytes, {free:,} are free; make room")
    for name, shard in zip(files, shards, strict=True):
        file = open(building / name, "wb") if main else None
        with writing(building / name, total):
            if main:
                file.write(header_bytes([(n, dtype_name, tuple(p.shape)) for n, p in shard]))
            for _, parameter in shard:
                value = distributed.whole(parameter.detach())  # a collective: every rank takes part
                if main:
                    file.write(memoryview(value.to(dtype=stored, device="cpu").contiguous().view(torch.uint8).numpy()).cast("B"))
            if main:
                file.close()
    if main:
        if len(files) > 1:
            names = {n: file for file, shard in zip(files, shards, strict=True) for n, _ in shard}
            write_json(building / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": names})
        write_json(building / "config.json", config)
        ids = {key: model.config.extra[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model.config.extra}
        write_json(building / "generation_config.json", model.config.extra.get("generation_config") or ids)
        for path in tokenizer.files if tokenizer is not None else []:
            shutil.copyfile(path, building / Path(path).name)
        for name, text in (more or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        replace_folder(building, folder)
    distributed.barrier()


def replace_folder(building: Path, folder: Path) -> None:
    """Give a finished folder its name; one that stood there before goes away only when the new one is whole."""
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
