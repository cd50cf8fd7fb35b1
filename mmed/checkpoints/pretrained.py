"""Loads and saves published model folders.

    load_pretrained(folder)  <-  config.json, weights, tokenizer
    save_pretrained(model)   ->  the same, in the layout of the model's family: opens in transformers, PEFT
                             and vLLM

Nothing in a folder is executed; a chat template is rendered in a sandbox. A tensor that is missing,
unexpected or of another shape is an error, before memory is taken. A folder gets its final name only once it
is complete.
"""
from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmed.checkpoints.families import read_config, write_config
from mmed.checkpoints.weights import check_tensors, stored_tensors
from mmed.model import XIELU, ModelConfig, Transformer, local_rows, published_name, published_prefix
from mmed.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, sync_folder, write_json, writing

Pairs = list[tuple[torch.nn.Parameter, torch.Tensor]]  # own parameter, what is stored for it

# Parts of the multimodal Gemma 3 (MedGemma) that its language model does not need.
IMAGE_PARTS = ("vision_tower.", "multi_modal_projector.")
# Constants that Apertus' files hold as tensors.
CONSTANTS = {"act_fn.beta": XIELU.BETA, "act_fn.eps": XIELU.EPS}
SHARD_BYTES = 5 * 10 ** 9       # approximate file size, as in published models


def load_config(folder: str | Path) -> ModelConfig:
    """The folder's `config.json`; `extra` carries its `generation_config.json`, to be written on export."""
    path = Path(folder) / "config.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    try:
        config = read_config(content)
    except UserError as error:
        raise UserError(f"{path.parent}/{error}") from None
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        config.extra["generation_config"] = read_json(generation)
    return config


def text_name(config: ModelConfig, name: str) -> str:
    """Strip the prefix that a multimodal Gemma 3 (MedGemma) puts before its language model's tensors."""
    if config.family != "gemma3_text":
        return name
    name = re.sub(r"^(language_model\.model|model\.language_model)\.", "model.", name)
    return name.removeprefix("language_model.")


def _published_tensors(config: ModelConfig, folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder by published name; Gemma 3's image tensors are skipped and reported."""
    stored = {text_name(config, name): tensor for name, tensor in stored_tensors(folder).items()}
    images = {name for name in stored if name.removeprefix("model.").startswith(IMAGE_PARTS)
              and config.family == "gemma3_text"}
    if images and distributed.is_main():
        print(f"{folder}: only the language model is opened; {len(images)} tensors of "
              "vision_tower and multi_modal_projector are not", file=sys.stderr)
    prefix, head = published_prefix(config), published_name(config, "lm_head.weight")
    # saved from the model without its head, as the published BLOOMs are
    if not any(name.startswith(prefix) for name in stored):
        stored = {name if name == head else prefix + name: tensor for name, tensor in stored.items()}
    return {name: tensor for name, tensor in stored.items() if name not in images}


def match_weights(model: Transformer, folder: str | Path) -> Pairs:
    """Pair (parameter, stored tensor) for all but the LoRA matrices; an error lists mismatches."""
    config = model.config
    stored = _published_tensors(config, folder)
    wanted = {published_name(config, name): parameter
              for name, parameter in model.named_parameters() if ".lora_" not in name}
    head, embedding = (published_name(config, f"{part}.weight") for part in ("lm_head", "embed_tokens"))
    tied_head = stored.pop(head, None) if config.tie_word_embeddings else None
    for name in [name for name in stored if name.endswith((".inv_freq", *CONSTANTS))]:
        expected = [value for constant, value in CONSTANTS.items() if name.endswith(constant)]
        found = stored.pop(name)
        if expected and not math.isclose(float(found.sum()), expected[0], rel_tol=0.01):  # digits of bf16
            raise UserError(f"{folder}: {name} is not {expected[0]:g}")
    check_tensors(stored, {name: tuple(parameter.shape) for name, parameter in wanted.items()},
                  f"{folder}: its weights do not fit its config.json")
    if tied_head is not None and not torch.equal(tied_head, stored[embedding]):
        raise UserError(f"{folder}: config.json has tie_word_embeddings = true, but {head} differs from "
                        f"{embedding}; set it to false, or remove the head")
    return [(parameter, stored[name]) for name, parameter in wanted.items()]


@torch.no_grad()
def copy_weights(pairs: Pairs) -> None:
    """Fill each parameter; of a sharded one only its own rows are read."""
    for parameter, stored in pairs:
        target, rows = local_rows(parameter)
        if len(target):
            target.copy_(stored[rows])


def stored_dtype(folder: Path) -> torch.dtype:
    """The most common dtype of a folder's weights."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored_tensors(folder).values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def has_tokenizer(path: str | Path) -> bool:
    """Whether this is a tokenizer file, or a folder with one."""
    path = Path(path)
    return path.is_file() or any((path / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def model_of(config: ModelConfig, state: dict[str, torch.Tensor]) -> Transformer:
    """A model that owns these tensors."""
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_pretrained(folder: str | Path, dtype: torch.dtype | None = None,
                    device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
    """(model in eval mode, tokenizer or None if the folder has none) of a model folder; dtype: fp32."""
    config = load_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    stored = [tensor for _, tensor in match_weights(model, folder)]  # before memory is taken
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only "
                        f"{config.vocab_size} rows")
    model = model.to(dtype or torch.float32).to_empty(device=device)
    copy_weights(list(zip(model.parameters(), stored, strict=True)))
    return model.eval(), tokenizer


def save_pretrained(model: Transformer, tokenizer: Tokenizer | None, folder: str | Path,
                    dtype: torch.dtype | None = None, more: dict[str, str] | None = None) -> None:
    """Write `model` (sharded or not; every rank calls) as its family's folder, one file after the other;
    `more`: further text files by name (the model card).
    """
    folder, main = Path(folder), distributed.is_main()
    dtype = dtype or next(model.parameters()).dtype
    config = write_config(model.config, str(dtype).removeprefix("torch."))  # it may be rejected
    building = folder.with_name(folder.name + ".tmp")
    files = _files(model, dtype)
    if main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    for name, parameters in files.items():
        _write_file(building / name, parameters, dtype)
    if main:
        if len(files) > 1:
            places = {tensor: file for file, parameters in files.items() for tensor in parameters}
            total = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
            write_json(building / "model.safetensors.index.json",
                       {"metadata": {"total_size": total}, "weight_map": places})
        write_json(building / "config.json", config)
        ids = {key: value for key, value in model.config.extra.items()
               if key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(building / "generation_config.json", model.config.extra.get("generation_config") or ids)
        if tokenizer is not None:
            save_tokenizer(tokenizer, building)
        for name, text in (more or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        replace_folder(building, folder)
    distributed.barrier()


def _files(model: Transformer, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """File name -> published name -> parameter, in files of about SHARD_BYTES."""
    shards: dict[int, dict[str, torch.Tensor]] = {}
    done = 0
    for name, parameter in model.named_parameters():
        shard = shards.setdefault(done // SHARD_BYTES, {})
        shard[published_name(model.config, name)] = parameter
        if name.endswith("act_fn.alpha_n"):
            layer = published_name(model.config, name.removesuffix("act_fn.alpha_n"))
            shard |= {layer + constant: torch.tensor(value) for constant, value in CONSTANTS.items()}
        done += parameter.numel() * dtype.itemsize
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
            for number, shard in enumerate(shards.values(), 1)}


def _write_file(path: Path, parameters: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """One safetensors file; gathering a tensor is a collective, so every rank takes part."""
    tensors = {}
    for name, parameter in parameters.items():
        whole = distributed.whole(parameter.detach())
        if distributed.is_main():
            tensors[name] = whole.to(dtype=dtype, device="cpu").contiguous()
    if distributed.is_main():
        try:
            save_file(tensors, path, metadata={"format": "pt"})
            sync_file(path)  # now, file by file: the other ranks wait in the next collective
        except SafetensorError as error:
            need = sum(tensor.nbytes for tensor in tensors.values())
            raise UserError(f"{path}: could not be written ({need:,} bytes needed): {error}") from None


def sync_file(path: Path) -> None:
    with writing(path), open(path, "rb") as file:
        os.fsync(file.fileno())


def replace_folder(building: Path, folder: Path) -> None:
    """Give a finished folder its name; the folder that had it before is removed after that."""
    for path in building.rglob("*"):
        if path.is_file():
            sync_file(path)
    sync_folder(building)
    old = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(building, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
