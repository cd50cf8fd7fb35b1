"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, ours or PEFT's.

Read: LoRA with rank and alpha patterns, DoRA (merged at once), and what is saved whole beside them: modules
(`modules_to_save`), rows of embedding and head (`trainable_token_indices`), a resized vocabulary. DoRA:
Liu et al., arXiv 2402.09353.
"""
from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmed.checkpoints.pretrained import has_tokenizer, text_name
from mmed.checkpoints.weights import read_tensors
from mmed.lora import LoRALinear, adapted_layers, target_names
from mmed.model import Transformer, published_name
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json

PREFIX = "base_model.model."
ENDS = ("embed_tokens", "lm_head")
# Keys of adapter_config.json that are read here, or that have no effect. Every other key must be unset.
KNOWN = set("""
    peft_type r lora_alpha lora_dropout target_modules use_rslora init_lora_weights rank_pattern alpha_pattern
    layers_to_transform layers_pattern exclude_modules task_type auto_mapping peft_version
    base_model_name_or_path revision inference_mode megatron_core qalora_group_size ensure_weight_tying
    use_dora modules_to_save trainable_token_indices eva_config corda_config lora_ga_config loftq_config
    """.split())
# Initialisations that leave the base as it is.
PLAIN_INITS = (True, "gaussian", "orthogonal", "eva")
# The others move a part of the base's weights into the adapter, which then fits the changed base only.
CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")
CONVERT = ("save it in PEFT as plain LoRA: model.save_pretrained(FOLDER, "
           "path_initial_model_for_weight_conversion=the adapter as it was before training)")
MERGE = "merge it in PEFT into the base it was trained on (merge_and_unload), and open that model"
MAGNITUDE, ROWS = ".lora_magnitude_vector", ".token_adapter.trainable_tokens_delta"
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
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        how = CONVERT if str(init).lower().startswith(CONVERTIBLE) else MERGE
        raise UserError(f"{path}: init_lora_weights={str(init)[:80]!r}: this adapter fits a changed base; "
                        f"{how}")
    config = {"lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": [],
              "trainable_token_indices": []} | config
    targets, numbers = config.get("target_modules"), (int, float)
    indices = config["trainable_token_indices"]
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    names = targets if isinstance(targets, list) else [targets]
    valid = {"r": type(config.get("r")) is int and config["r"] >= 1,
             "lora_alpha": type(config.get("lora_alpha")) in numbers,
             "lora_dropout": type(config["lora_dropout"]) in numbers and 0 <= config["lora_dropout"] < 1,
             "target_modules": all(isinstance(name, str) for name in names),
             "modules_to_save": isinstance(config["modules_to_save"], list),
             "trainable_token_indices": all(isinstance(each, list) and all(type(i) is int for i in each)
                                            for each in lists)}
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
    legacy, safe = folder / "adapter_model.bin", folder / "adapter_model.safetensors"
    found = read_tensors(legacy if legacy.is_file() and not safe.is_file() else safe)
    found = {PREFIX + text_name(model.config, key.removeprefix(PREFIX)): value
             for key, value in found.items()}
    whole, rows = _whole_tensors(model, found, config["modules_to_save"])
    _rows_into_whole(model, folder, whole, rows, config["trainable_token_indices"])
    _check_vocabulary(model, folder, whole)

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
        if "use_dora" in config:
            wanted[PREFIX + name + MAGNITUDE] = (linear.out_features,)
    unexpected, missing = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
    if unexpected or missing or not wanted:
        raise UserError(f"{folder}: not an adapter of this model: {len(missing)} tensors missing "
                        f"({', '.join(missing[:2])}), {len(unexpected)} unexpected "
                        f"({', '.join(unexpected[:2])})")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise UserError(f"{folder}: {name} has shape {tuple(found[name].shape)}; this model with "
                            f"its r or rank_pattern needs {shape}")
    if whole:
        _replace_whole(model, folder, whole)
    model.requires_grad_(False)
    for name, (rank, alpha) in settings.items():
        layer = LoRALinear(model.get_submodule(names[name]), rank, alpha, config["lora_dropout"],
                           "use_rslora" in config)
        with torch.no_grad():
            layer.lora_A.copy_(found[f"{PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(found[f"{PREFIX}{name}.lora_B.weight"])
        magnitude = found.get(PREFIX + name + MAGNITUDE)
        model.set_submodule(names[name], layer if magnitude is None else layer.merged(magnitude))
    return len(layers)


def _whole_tensors(model: Transformer, found: dict[str, Tensor],
                   modules: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take out of `found` what is not LoRA: ({our name: tensor}, {"embed_tokens" or "lm_head": rows})."""
    names = {f"{end}.weight" for end in ENDS} | {name for name, _ in model.named_parameters()}
    published = {published_name(model.config, name): name for name in names}
    saved = {name for name in published for module in modules if f"{module}." in name}  # ends of module names
    ends = {name for name, ours in published.items() if ours.removesuffix(".weight") in ENDS}
    whole, rows = {}, {}
    for key in list(found):
        name = key.removeprefix(PREFIX).replace(".token_adapter.base_layer", "")
        if name in saved | ends:  # embedding and head are also saved if the vocabulary was resized
            whole[published[name]] = found.pop(key)
    if missing := sorted(name for name in saved if published[name] not in whole):
        raise UserError(f"the adapter's modules_to_save = {modules}, but its file lacks {missing[0]}")
    for end in ENDS:
        key = PREFIX + published_name(model.config, end) + ROWS
        if key in found:
            rows[end] = found.pop(key)
    return whole, rows


@torch.no_grad()
def _replace_whole(model: Transformer, folder: Path, whole: dict[str, Tensor]) -> None:
    """Put whole tensors into the model. Its vocabulary may grow, and a tied head may become one of its own,
    because PEFT trains a saved embedding without the head."""
    config, old = model.config, model.embed_tokens.weight
    embedding, head = (whole.pop(f"{end}.weight", weight)
                       for end, weight in zip(ENDS, (old, model.head_weight), strict=True))
    if len({embedding.shape, head.shape, (len(head), config.hidden_size)}) > 1:
        raise UserError(f"{folder}: its embedding {tuple(embedding.shape)} and head {tuple(head.shape)} do "
                        f"not fit each other or a model with {config.hidden_size} columns")
    tied = config.tie_word_embeddings and torch.equal(embedding.to(old), head.to(old))
    model.config = dataclasses.replace(config, vocab_size=len(embedding), tie_word_embeddings=tied)
    model.embed_tokens = nn.Embedding(*embedding.shape, device="meta")
    model.embed_tokens.weight = nn.Parameter(embedding.to(old), requires_grad=False)
    if not tied:
        model.lm_head = nn.Linear(config.hidden_size, len(head), bias=False, device="meta")
        model.lm_head.weight = nn.Parameter(head.to(old, copy=head is old))
    for name, value in whole.items():
        parameter = model.get_parameter(name)
        if parameter.shape != value.shape:
            raise UserError(f"{folder}: {name} has shape {tuple(value.shape)}; this model needs "
                            f"{tuple(parameter.shape)}")
        parameter.copy_(value)


def _rows_into_whole(model: Transformer, folder: Path, whole: dict[str, Tensor], rows: dict[str, Tensor],
                     indices: list[int] | dict[str, list[int]]) -> None:
    """Add to `whole` the embedding and head with the rows of `trainable_token_indices`."""
    places = dict.fromkeys(rows or ENDS[:1], indices)
    if isinstance(indices, dict):
        names = {end: published_name(model.config, end) for end in ENDS}
        places = {end: at for key, at in indices.items() for end in ENDS if names[end].endswith(key)}
    tied = model.config.tie_word_embeddings
    if indices and not (rows if tied else places.keys() == rows.keys()):
        raise UserError(f"{folder}: trainable_token_indices is for {sorted(places)}, but its file holds rows "
                        f"of {sorted(rows) or 'neither'}")
    weights = dict(zip(ENDS, (model.embed_tokens.weight, model.head_weight), strict=True))
    for end, values in rows.items():
        at, weight = places.get(end, []), whole.get(f"{end}.weight", weights[end]).detach().clone()
        if values.shape != (len(at), weight.shape[1]) or not set(at) <= set(range(len(weight))):
            raise UserError(f"{folder}: {tuple(values.shape)} values for the rows {str(at)[:80]} of {end}, "
                            f"which has the shape {tuple(weight.shape)}")
        weight[at] = values.to(weight)
        for changed in ENDS if tied and len(rows) == 1 else (end,):
            whole[f"{changed}.weight"] = weight


def _by_pattern(patterns: dict[str, Any], name: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of a layer's name, as in PEFT."""
    try:
        return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)),
                    otherwise)
    except re.error as error:
        raise UserError(f"rank_pattern or alpha_pattern: {error}") from None


def _check_vocabulary(model: Transformer, folder: Path, whole: dict[str, Tensor]) -> None:
    """PEFT saves the tokenizer beside an adapter; one with more ids than rows belongs to an extended base."""
    ids = load_tokenizer(folder).vocab_size if has_tokenizer(folder) else 0
    rows = len(whole.get("embed_tokens.weight", model.embed_tokens.weight))
    if ids > rows:
        raise UserError(f"{folder}: trained with a tokenizer of {ids} ids, but this model has "
                        f"{rows} rows; apply it to the base whose vocabulary was extended")
