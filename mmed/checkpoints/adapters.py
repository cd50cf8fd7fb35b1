"""LoRA adapters in PEFT's files.

In: a model with LoRA layers, or a folder with `adapter_config.json` and `adapter_model.safetensors` of ours or PEFT's. Out: such a
folder, which PEFT opens, or the model with the adapter's layers.
"""
from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmed.checkpoints.safe import open_bin, read_tensors
from mmed.lora import adapted_layers, apply_lora, target_names
from mmed.model import Transformer, published_name
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json


def save_adapter(model: Transformer, folder: str | Path, base_model: str = "",
                 tensors: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as PEFT does. `tensors`: the whole LoRA matrices by name, when the model itself is sharded."""
    layers = adapted_layers(model)
    if not layers:
        raise UserError("the model has no LoRA layers to save")
    first = next(iter(layers.values()))
    values = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            value = tensors[f"{name}.{part}"] if tensors else getattr(layer, part)
            values[f"base_model.model.{published_name(model.config, name)}.{part}.weight"] = value.detach().float().cpu().contiguous()
    published = {name: published_name(model.config, name) for name in layers}
    targets = sorted({name.rpartition(".")[2] for name in published.values()})
    if set(target_names(model.config, targets)) != set(layers):  # not every layer of that name: PEFT needs the whole names
        targets = sorted(published.values())
    folder = Path(folder)
    write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True,
        "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout, "bias": "none", "fan_in_fan_out": False,
        "use_rslora": not math.isclose(first.scale, first.alpha / first.rank), "modules_to_save": None, "use_dora": False,
        "target_modules": targets,
    })
    with atomic_write(folder / "adapter_model.safetensors", "wb") as file:
        file.write(save(values, metadata={"format": "pt"}))


# Keys of adapter_config.json that change the mathematics, and their values that do not.
NEUTRAL_VALUES = {"bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []),
                  "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "lora_bias": (False, None),
                  "trainable_token_indices": (None,), "target_parameters": (None, []), "use_qalora": (False, None),
                  "alora_invocation_tokens": (None,), "layer_replication": (None,)}
SOME_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")  # then target_modules names more than is adapted


def _adapter_tensors(folder: Path) -> dict[str, Tensor]:
    path, legacy = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if path.is_file():
        return read_tensors(path)
    if legacy.is_file():
        return open_bin(legacy)
    raise UserError(f"{path}: no such file; an adapter folder holds adapter_config.json and adapter_model.safetensors")


def load_adapter(model: Transformer, folder: str | Path) -> int:
    """Apply the adapter in `folder` (ours or PEFT's) to `model`; every key must fit. Returns the number of adapted layers."""
    folder = Path(folder)
    where = folder / "adapter_config.json"
    config = read_json(where)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{where}: peft_type is {kind!r}; only LORA adapters can be loaded")
    for key, allowed in NEUTRAL_VALUES.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"{where}: {key}={config[key]!r} is not supported")
    for key, kinds in (("r", int), ("lora_alpha", (int, float)), ("target_modules", (list, str))):
        if key not in config:
            raise UserError(f"{where}: no {key!r}")
        if not isinstance(config[key], kinds) or isinstance(config[key], bool) or (kinds is int and config[key] < 1):
            raise UserError(f"{where}: {key}={config[key]!r} makes no sense")
    if not all(isinstance(target, str) for target in config["target_modules"]):
        raise UserError(f"{where}: target_modules={config['target_modules']!r:.200} must be names of layers")
    dropout, rank = config.get("lora_dropout") or 0.0, config["r"]
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1 or not abs(config["lora_alpha"]) < 1e30:
        raise UserError(f"{where}: lora_dropout={dropout!r} or lora_alpha={config['lora_alpha']!r} makes no sense")

    # Which layers are adapted is what the tensors say; target_modules may be a pattern, and must agree where it is a list.
    found = _adapter_tensors(folder)
    names = {published_name(model.config, name): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {name for key in found if (name := names.get(key.removeprefix("base_model.model.").partition(".lora_")[0]))}
    if isinstance(config["target_modules"], list) and not any(config.get(key) for key in SOME_LAYERS):
        layers |= set(target_names(model.config, config["target_modules"]))
    wanted: dict[str, tuple[str, str, tuple[int, int]]] = {}
    for name in sorted(layers):
        module = model.get_submodule(name)
        for part, shape in (("lora_A", (rank, module.in_features)), ("lora_B", (module.out_features, rank))):
            wanted[f"base_model.model.{published_name(model.config, name)}.{part}.weight"] = (name, part, shape)
    stray, absent = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if stray or absent or not wanted:
        raise UserError(f"{folder}: not an adapter of this model: {len(absent)} tensors missing ({', '.join(absent[:2])}), "
                        f"{len(stray)} unexpected ({', '.join(stray[:2])})")
    for key, (_, _, shape) in wanted.items():
        if tuple(found[key].shape) != shape:
            raise UserError(f"{folder}: {key} has shape {tuple(found[key].shape)}, this model and r={rank} need {shape}")
    count = apply_lora(model, rank, config["lora_alpha"], dropout, [published_name(model.config, name) for name in layers],
                       rslora=bool(config.get("use_rslora")))
    assert count == len(layers), f"expected {len(layers)} adapted layers, got {count}"
    with torch.no_grad():
        for key, (name, part, _) in wanted.items():
            getattr(model.get_submodule(name), part).copy_(found[key])
    return count
