"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, ours or PEFT's."""
from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmed.checkpoints.weights import read_tensors
from mmed.lora import adapted_layers, apply_lora, target_names
from mmed.model import Transformer, published_name
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json

PREFIX = "base_model.model."
# Keys of adapter_config.json that are read here, or say nothing about the mathematics. Every other key must
# be unset.
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights",
    "bias", "layers_to_transform", "layers_pattern", "exclude_modules"
}
NO_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_core", "qalora_group_size", "ensure_weight_tying"
}
# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga) move a part
# of the base's
# weights into the adapter, which then fits the changed base only.
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
# then target_modules names more than is adapted
SOME_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")


def save_adapter(model: Transformer,
                 folder: str | Path,
                 base_model: str = "",
                 tensors: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as PEFT does. `tensors`: the whole LoRA matrices by name, when the model itself is
    sharded.
    """
    layers = adapted_layers(model)
    if not layers:
        raise UserError("the model has no LoRA layers to save")
    first = next(iter(layers.values()))
    published = {name: published_name(model.config, name) for name in layers}
    values = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            value = tensors[f"{name}.{part}"] if tensors else getattr(layer, part)
            values[f"{PREFIX}{published[name]}.{part}.weight"] = value.detach().float().cpu().contiguous()
    targets = sorted({name.rpartition(".")[2] for name in published.values()})
    # not every layer of that name: PEFT needs the whole names
    if set(target_names(model.config, targets)) != set(layers):
        targets = sorted(published.values())
    folder = Path(folder)
    write_json(
        folder / "adapter_config.json", {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
            "inference_mode": True, "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout,
            "bias": "none", "fan_in_fan_out": False,
            "use_rslora": not math.isclose(first.scale, first.alpha / first.rank), "modules_to_save": None,
            "use_dora": False, "target_modules": targets,
        })
    with atomic_write(folder / "adapter_model.safetensors", "wb") as file:
        file.write(save(values, metadata={"format": "pt"}))


def read_adapter_config(path: Path) -> dict:
    """adapter_config.json, checked: a setting that changes the computation and is not supported is an error.
    """
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{path}: peft_type is {kind!r}; only LORA adapters can be loaded")
    for key, value in config.items():
        if key not in READ | NO_EFFECT and value not in (None, False, {}, [], ""):
            raise UserError(f"{path}: {key}={str(value)[:80]!r} is not supported")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path}: bias={config['bias']!r} is not supported")
    if config.get("init_lora_weights") not in PLAIN_INITS:
        raise UserError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r}: this adapter fits a changed base; "
            f"convert it in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)")
    for key, kinds in (("r", int), ("lora_alpha", int | float), ("target_modules", list | str)):
        if not isinstance(config.get(key), kinds) or isinstance(config[key], bool):
            raise UserError(f"{path}: {key}={config.get(key)!r} is not valid")
    targets = config["target_modules"]
    if isinstance(targets, list) and not all(isinstance(name, str) for name in targets):
        raise UserError(f"{path}: target_modules must be names")
    if not isinstance(config.get("lora_dropout") or 0, int | float):
        raise UserError(f"{path}: lora_dropout={config['lora_dropout']!r} is not a number")
    if config["r"] < 1 or not 0 <= (config.get("lora_dropout") or 0) < 1:
        raise UserError(
            f"{path}: r={config['r']} or lora_dropout={config.get('lora_dropout')!r} is out of range")
    return config


def load_adapter(model: Transformer, folder: str | Path) -> int:
    """Apply the adapter in `folder` (ours or PEFT's) to `model`; every tensor must fit. Returns the number of
    adapted layers.
    """
    folder = Path(folder)
    config = read_adapter_config(folder / "adapter_config.json")
    _check_vocabulary(model, folder)
    legacy = folder / "adapter_model.bin"
    safe = folder / "adapter_model.safetensors"
    found = read_tensors(legacy if legacy.is_file() and not safe.is_file() else safe)

    # The tensors tell which layers are adapted; target_modules may be a pattern, and must agree where it is a
    # list.
    names = {
        published_name(model.config, name): name
        for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    layers = {names.get(key.removeprefix(PREFIX).partition(".lora_")[0]) for key in found} - {None}
    if isinstance(config["target_modules"], list) and not any(config.get(key) for key in SOME_LAYERS):
        layers |= set(target_names(model.config, config["target_modules"]))
    published = [published_name(model.config, name) for name in layers]
    wanted = {f"{PREFIX}{name}.{part}.weight" for name in published for part in ("lora_A", "lora_B")}
    unexpected, missing = sorted(set(found) - wanted), sorted(wanted - set(found))
    if unexpected or missing or not wanted:
        raise UserError(
            f"{folder}: not an adapter of this model: {len(missing)} tensors missing "
            f"({', '.join(missing[:2])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:2])})")
    _check_shapes(model, folder, config["r"], layers, found)
    count = apply_lora(model, config["r"], config["lora_alpha"], config.get("lora_dropout") or 0.0, published,
                       rslora=bool(config.get("use_rslora")))
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            for part in ("lora_A", "lora_B"):
                getattr(layer,
                        part).copy_(found[f"{PREFIX}{published_name(model.config, name)}.{part}.weight"])
    return count


def _check_shapes(model: Transformer, folder: Path, rank: int, layers: set[str], found: dict[str,
                                                                                             Tensor]) -> None:
    for name in layers:
        linear = model.get_submodule(name)
        for part, shape in (("lora_A", (rank, linear.in_features)), ("lora_B", (linear.out_features, rank))):
            key = f"{PREFIX}{published_name(model.config, name)}.{part}.weight"
            if tuple(found[key].shape) != shape:
                raise UserError(
                    f"{folder}: {key} has shape {tuple(found[key].shape)}; this model with r={rank} needs "
                    f"{shape}"
                )


def _check_vocabulary(model: Transformer, folder: Path) -> None:
    """PEFT saves the tokenizer beside an adapter; one with more ids than the model has rows belongs to an
    extended base.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return
    ids = load_tokenizer(folder).vocab_size
    if ids > model.config.vocab_size:
        raise UserError(
            f"{folder}: trained with a tokenizer of {ids} ids, but this model has {model.config.vocab_size} "
            f"rows; "
            "apply it to the base whose vocabulary was extended")
