"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, ours or PEFT's."""
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmed.checkpoints.pretrained import has_tokenizer
from mmed.checkpoints.weights import read_tensors
from mmed.lora import LoRALinear, adapted_layers, target_names
from mmed.model import Transformer, published_name
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json

PREFIX = "base_model.model."
# Keys of adapter_config.json that are read here, or that have no effect. Every other key must be unset.
KNOWN = set("""
    peft_type r lora_alpha lora_dropout target_modules use_rslora init_lora_weights rank_pattern alpha_pattern
    layers_to_transform layers_pattern exclude_modules task_type auto_mapping peft_version
    base_model_name_or_path revision inference_mode megatron_core qalora_group_size ensure_weight_tying
    """.split())
# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga) move a part
# of the base's weights into the adapter, which then fits the changed base only.
PLAIN_INITS = (True, "gaussian", "orthogonal", "eva")
SOME_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")  # then fewer layers than targets


def save_adapter(model: Transformer, folder: str | Path, base_model: str = "",
                 tensors: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as PEFT does. `tensors`: the whole LoRA matrices by name, if the model is sharded."""
    layers = adapted_layers(model)
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
    write_json(Path(folder) / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
        "inference_mode": True, "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout,
        "rank_pattern": {published[name]: layer.rank for name, layer in layers.items()
                         if layer.rank != first.rank},
        "alpha_pattern": {published[name]: layer.alpha for name, layer in layers.items()
                          if layer.alpha != first.alpha},
        "bias": "none", "fan_in_fan_out": False, "modules_to_save": None, "use_dora": False,
        "use_rslora": not math.isclose(first.scale, first.alpha / first.rank), "target_modules": targets})
    with atomic_write(Path(folder) / "adapter_model.safetensors", "wb") as file:
        file.write(save(values, metadata={"format": "pt"}))


def read_adapter_config(path: Path) -> dict:
    """adapter_config.json without its empty keys; a setting that is not supported or valid is an error."""
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {kind!r}; only LORA adapters can be loaded")
    config = {key: value for key, value in config.items()
              if value is not False and value not in (None, {}, [], "", "none")}
    for key, value in config.items():
        if key not in KNOWN:
            raise UserError(f"{path}: {key}={str(value)[:80]!r} is not supported")
    if config.get("init_lora_weights", True) not in PLAIN_INITS:
        raise UserError(f"{path}: init_lora_weights={config['init_lora_weights']!r}: this adapter fits a "
                        "changed base; convert it in PEFT (save_pretrained with "
                        "path_initial_model_for_weight_conversion)")
    config = {"lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}} | config
    targets, numbers = config.get("target_modules"), (int, float)
    names = targets if isinstance(targets, list) else [targets]
    valid = {"r": type(config.get("r")) is int and config["r"] >= 1,
             "lora_alpha": type(config.get("lora_alpha")) in numbers,
             "lora_dropout": type(config["lora_dropout"]) in numbers and 0 <= config["lora_dropout"] < 1,
             "target_modules": all(isinstance(name, str) for name in names)}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config[key]
        valid[key] = isinstance(patterns, dict) and all(type(value) in numbers for value in patterns.values())
    for key, good in valid.items():
        if not good:
            raise UserError(f"{path}: {key}={config.get(key)!r} is not valid")
    return config


def load_adapter(model: Transformer, folder: str | Path) -> int:
    """Apply the adapter in `folder` (ours or PEFT's), all of it; returns the number of adapted layers."""
    folder = Path(folder)
    config = read_adapter_config(folder / "adapter_config.json")
    _check_vocabulary(model, folder)
    legacy, safe = folder / "adapter_model.bin", folder / "adapter_model.safetensors"
    found = read_tensors(legacy if legacy.is_file() and not safe.is_file() else safe)

    # The tensors tell which layers are adapted; target_modules may be a pattern, and must agree where it is a
    # list of all layers.
    names = {published_name(model.config, name): name
             for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in found} & names.keys()
    if isinstance(config["target_modules"], list) and not any(key in config for key in SOME_LAYERS):
        layers |= {published_name(model.config, name)
                   for name in target_names(model.config, config["target_modules"])}
    settings = {name: (_by_pattern(config["rank_pattern"], name, config["r"]),
                       _by_pattern(config["alpha_pattern"], name, config["lora_alpha"])) for name in layers}
    wanted: dict[str, tuple[int, int]] = {}  # tensor -> shape
    for name, (rank, _) in settings.items():
        linear = model.get_submodule(names[name])
        wanted[f"{PREFIX}{name}.lora_A.weight"] = (rank, linear.in_features)
        wanted[f"{PREFIX}{name}.lora_B.weight"] = (linear.out_features, rank)
    unexpected, missing = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
    if unexpected or missing or not wanted:
        raise UserError(f"{folder}: not an adapter of this model: {len(missing)} tensors missing "
                        f"({', '.join(missing[:2])}), {len(unexpected)} unexpected "
                        f"({', '.join(unexpected[:2])})")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise UserError(f"{folder}: {name} has shape {tuple(found[name].shape)}; this model with "
                            f"its r or rank_pattern needs {shape}")
    model.requires_grad_(False)
    for name, (rank, alpha) in settings.items():
        layer = LoRALinear(model.get_submodule(names[name]), rank, alpha, config["lora_dropout"],
                           "use_rslora" in config)
        with torch.no_grad():
            layer.lora_A.copy_(found[f"{PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(found[f"{PREFIX}{name}.lora_B.weight"])
        model.set_submodule(names[name], layer)
    return len(layers)


def _by_pattern(patterns: dict[str, Any], name: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a layer's name, as in PEFT."""
    try:
        return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)),
                    otherwise)
    except re.error as error:
        raise UserError(f"rank_pattern or alpha_pattern: {error}") from None


def _check_vocabulary(model: Transformer, folder: Path) -> None:
    """PEFT saves the tokenizer beside an adapter; one with more ids than rows belongs to an extended base."""
    ids = load_tokenizer(folder).vocab_size if has_tokenizer(folder) else 0
    if ids > model.config.vocab_size:
        raise UserError(f"{folder}: trained with a tokenizer of {ids} ids, but this model has "
                        f"{model.config.vocab_size} rows; apply it to the base whose vocabulary was extended")
