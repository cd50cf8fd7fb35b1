"""Loads and saves published model folders.

    load_pretrained(folder)  <-  config.json, weights, tokenizer
    save_pretrained(model)   ->  the same, in the layout of the model's family: opens in transformers, PEFT
                             and vLLM

Weights are safetensors, or legacy .bin files read as tensors only. They are memory-mapped: a sharded model
reads only its own rows, and the peak of host memory is the model and one tensor. A tensor that is missing,
unexpected or of another shape is an error, before memory is taken.
"""
from __future__ import annotations

import math
import os
import shutil
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmed.checkpoints.families import TOKEN_IDS, read_config, write_config
from mmed.model import XIELU, ModelConfig, Transformer, local_rows, published_name, published_prefix
from mmed.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import check_file, read_json, sync_folder, write_json, writing
from mmed.utils.untrusted import reading

# Parts of the multimodal Gemma 3 (MedGemma) that its language model does not need.
IMAGE_PARTS = ("vision_tower.", "multi_modal_projector.")
# Constants that Apertus' files hold as tensors.
CONSTANTS = {"act_fn.beta": XIELU.BETA, "act_fn.eps": XIELU.EPS}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHARD_BYTES = 5 * 10 ** 9  # approximate file size, as in published models


# -------------------------------------------------------------------------------------------------- files

def stored_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder; safetensors rather than .bin. Two sets of one kind are an error."""
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if not index.is_file():
            if single.is_file():
                return read_tensors(single)
            continue
        with reading(index):
            places = read_json(index)["weight_map"]
            files = sorted(set(places.values()))
            if not files or any(Path(file).name != file for file in files):
                raise UserError(f"{index}: weight_map does not name files in this folder")
        if single.is_file() and files != [name]:
            raise UserError(f"{folder}: contains two sets of weights, {name} and {index.name} with its "
                            "files; remove one of them")
        parts = {file: read_tensors(folder / file) for file in files}
        if stale := [name for name, file in places.items() if name not in parts[file]]:
            raise UserError(f"{folder / places[stale[0]]}: lacks {stale[0]}, which {index.name} places there "
                            f"({len(stale)} missing)")
        stored = {name: tensor for part in parts.values() for name, tensor in part.items()}
        return stored | {name: parts[file][name] for name, file in places.items()}
    raise UserError(f"{folder}: no model.safetensors, pytorch_model.bin or index of either")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file by name; what a pickle would execute is not executed."""
    check_file(path)
    try:
        if path.suffix != ".bin":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it contains more than tensors")
        return state
    except Exception as error:  # the unpickler meets arbitrary bytes and may raise anything
        reason = (str(error).splitlines() or [""])[0][:100]
        raise UserError(f"{path}: damaged, or not only tensors ({reason}); download it again, as safetensors"
                        ) from None


def check_tensors(found: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """Raise an error that lists the differences unless `found` has the names and shapes of `wanted`."""
    both = [(name, found[name]) for name in wanted if name in found]
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [f"{name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name])}"
                             for name, tensor in both if tuple(tensor.shape) != tuple(wanted[name])],
        "not floating-point": [name for name, tensor in both if tensor.dtype not in FLOATS]}
    listed = [f"{len(names)} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
              for fault, names in faults.items() if names]
    if listed:
        raise UserError(f"{what}: {'; '.join(listed)}")


# ------------------------------------------------------------------------------------------------ loading

def config_in(folder: str | Path, name: str = "config.json") -> Path:
    """The path of a config; an error says what to give instead of a run folder or of a name on the Hub."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; a model of the Hugging Face Hub becomes one with "
                        "`hf download NAME --local-dir FOLDER`")
    path, parts = folder / name, ["model", "adapter"]
    if name == "adapter_config.json":
        parts.reverse()
    for part in parts:
        if not path.exists() and (folder / part).is_dir():
            raise UserError(f"{folder}: a training run, without {name}; its {part} is {folder / part}")
    return path


def load_config(folder: str | Path) -> ModelConfig:
    """The folder's `config.json`; `extra` carries its `generation_config.json`, to be written on export."""
    path = config_in(folder)
    if path.with_name("adapter_config.json").is_file():
        raise UserError(f"{folder}: contains an adapter; give it with --adapter, in a folder of its own")
    content = read_json(path)
    try:
        config = read_config(content)
    except UserError as error:
        raise UserError(f"{path.parent}/{error}") from None
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        config.extra["generation_config"] = read_json(generation)
    return config


def text_name(config: ModelConfig, name: str) -> str:
    """Strip what a multimodal Gemma 3 (MedGemma) puts before its language model's tensors."""
    return name.replace("language_model.", "") if config.family == "gemma3_text" else name


def _published_tensors(config: ModelConfig, folder: str | Path) -> dict[str, torch.Tensor]:
    """The parameters of a folder by published name. Left out: the image part of Gemma 3, which is reported,
    rotary frequencies, and the constants of Apertus, which are checked."""
    stored = {text_name(config, name): tensor for name, tensor in stored_tensors(folder).items()}
    prefix, head = published_prefix(config), published_name(config, "lm_head.weight")
    # saved from the model without its head, as the published BLOOMs are
    if not any(name.startswith(prefix) for name in stored):
        stored = {name if name == head else prefix + name: tensor for name, tensor in stored.items()}
    images = {name for name in stored if name.removeprefix("model.").startswith(IMAGE_PARTS)
              and config.family == "gemma3_text"}
    if images and distributed.is_main():
        print(f"{folder}: only the language model is opened; {len(images)} tensors of "
              "vision_tower and multi_modal_projector are not", file=sys.stderr)
    constants = {name: value for name in stored for end, value in CONSTANTS.items() if name.endswith(end)}
    for name, value in constants.items():
        if not math.isclose(float(stored[name].sum()), value, rel_tol=0.01):  # digits of bf16
            raise UserError(f"{folder}: {name} is not {value:g}")
    return {name: tensor for name, tensor in stored.items()
            if name not in images | constants.keys() and not name.endswith(".inv_freq")}


def match_weights(model: Transformer, folder: str | Path) -> dict[str, torch.Tensor]:
    """Parameter -> its stored tensor, for all but the LoRA matrices; an error lists mismatches."""
    config = model.config
    stored = _published_tensors(config, folder)
    published = {name: published_name(config, name) for name, _ in model.named_parameters()
                 if ".lora_" not in name}
    head, embedding = (published_name(config, f"{part}.weight") for part in ("lm_head", "embed_tokens"))
    tied_head = stored.pop(head, None) if config.tie_word_embeddings else None
    if tied_head is not None:  # of two names for one tensor, a file may have either
        stored.setdefault(embedding, tied_head)
    shapes = {other: tuple(model.get_parameter(name).shape) for name, other in published.items()}
    check_tensors(stored, shapes, f"{folder}: its weights do not fit its config.json")
    if tied_head is not None and not torch.equal(tied_head, stored[embedding]):
        raise UserError(f"{folder}: config.json has tie_word_embeddings = true, but {head} differs from "
                        f"{embedding}; set it to false, or remove the head")
    return {name: stored[other] for name, other in published.items()}


@torch.no_grad()
def copy_weights(model: Transformer, folder: str | Path) -> None:
    """Fill the model from a folder; of a sharded parameter only this rank's rows are read."""
    for name, tensor in match_weights(model, folder).items():
        target, rows = local_rows(model.get_parameter(name))
        if len(target):
            target.copy_(tensor[rows])


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
    stored = match_weights(model, folder)  # before memory is taken
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.rows > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.rows} ids, the embedding only "
                        f"{config.vocab_size} rows")
    return model_of(config, {name: tensor.to(device, dtype or torch.float32, copy=True)
                             for name, tensor in stored.items()}), tokenizer


# ------------------------------------------------------------------------------------------------- saving

def save_pretrained(model: Transformer, tokenizer: Tokenizer | None, folder: str | Path,
                    dtype: torch.dtype | None = None, card: str = "") -> None:
    """Write `model` (sharded or not; every rank calls) as its family's folder, one file after the other;
    `card`: its README.md."""
    folder, main = Path(folder), distributed.is_main()
    dtype = dtype or next(model.parameters()).dtype
    config = write_config(model.config, str(dtype).removeprefix("torch."))  # it may be rejected
    building = folder.with_name(folder.name + ".tmp")
    if main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    files = _files(model, dtype)
    for name, parameters in files.items():
        _write_file(building / name, parameters, dtype)
    if main:
        if len(files) > 1:
            places = {tensor: file for file, parameters in files.items() for tensor in parameters}
            total = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
            write_json(building / "model.safetensors.index.json",
                       {"metadata": {"total_size": total}, "weight_map": places})
        write_json(building / "config.json", config)
        ids = {key: config[key] for key in TOKEN_IDS if key in config}
        write_json(building / "generation_config.json", model.config.extra.get("generation_config") or ids)
        if tokenizer is not None:
            save_tokenizer(tokenizer, building)
        if card:
            (building / "README.md").write_text(card, encoding="utf-8")
        replace_folder(building, folder)
    distributed.barrier()


def _files(model: Transformer, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """File name -> published name -> tensor, in files of about SHARD_BYTES."""
    shards: defaultdict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    done = 0
    for name, parameter in model.named_parameters():
        shard, published = shards[done // SHARD_BYTES], published_name(model.config, name)
        shard[published] = parameter
        if name.endswith("act_fn.alpha_n"):
            shard |= {published.replace("act_fn.alpha_n", constant): torch.tensor(value)
                      for constant, value in CONSTANTS.items()}
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
        except SafetensorError as error:
            need = sum(tensor.nbytes for tensor in tensors.values())
            raise UserError(f"{path}: could not be written ({need:,} bytes needed): {error}") from None
        sync_file(path)  # now, file by file: the other ranks wait in the next collective


def sync_file(path: Path) -> None:
    with writing(path), open(path, "rb") as file:
        os.fsync(file.fileno())


def replace_folder(building: Path, folder: Path) -> None:
    """Give a finished folder its final name; a folder that had this name is removed afterwards."""
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
