"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, ours or PEFT's.

Supported: LoRA with rank and alpha patterns, DoRA (merged on loading), and parts saved in full: modules
(`modules_to_save`), rows of embedding and head (`trainable_token_indices`), a resized vocabulary. DoRA:
Liu et al., arXiv 2402.09353.
"""
from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmed.checkpoints.pretrained import has_tokenizer, text_name
from mmed.checkpoints.weights import check_tensors, read_tensors
from mmed.lora import LoRALinear, adapted_layers, target_names
from mmed.model import Transformer, own_name, published_name
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json
from mmed.utils.untrusted import reading

PREFIX = "base_model.model."
EMBEDDING, HEAD = ENDS = ("embed_tokens.weight", "lm_head.weight")
ROWS = ".token_adapter.trainable_tokens_delta"
# Keys read from adapter_config.json -> types. Any key not listed here or in IGNORED must be unset.
KINDS: dict[str, tuple[type, ...]] = {
    "r": (int,), "lora_alpha": (int, float), "target_modules": (list, str), "lora_dropout": (int, float),
    "rank_pattern": (dict,), "alpha_pattern": (dict,), "modules_to_save": (list,),
    "trainable_token_indices": (list, dict), "use_rslora": (bool,), "use_dora": (bool,)}
DEFAULTS = {"lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": [],
            "trainable_token_indices": [], "use_rslora": False, "use_dora": False}
SOME_LAYERS = {"layers_to_transform", "layers_pattern", "exclude_modules"}  # then fewer layers than targets
IGNORED = SOME_LAYERS | set("""
    peft_type init_lora_weights task_type auto_mapping peft_version base_model_name_or_path revision
    inference_mode megatron_core qalora_group_size ensure_weight_tying eva_config corda_config lora_ga_config
    loftq_config""".split())
# Initialisations that leave the base as it is.
PLAIN_INITS = (True, "gaussian", "orthogonal", "eva")
# The others move a part of the base's weights into the adapter, which then fits the changed base only.
CONVERT = ("save it in PEFT as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), "
           "or merge it there into the base it was trained on (merge_and_unload)")


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
    # not all layers of that name: PEFT needs full names
    if set(target_names(model.config, targets)) != set(layers):
        targets = sorted(published.values())
    ranks = {published[name]: layer.rank for name, layer in layers.items() if layer.rank != first.rank}
    alphas = {published[name]: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha}
    write_json(Path(folder) / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
        "inference_mode": True, "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout,
        "rank_pattern": ranks, "alpha_pattern": alphas, "bias": "none", "fan_in_fan_out": False,
        "modules_to_save": None, "use_dora": False,
        "use_rslora": not math.isclose(first.scale, first.alpha / first.rank), "target_modules": targets})
    with atomic_write(Path(folder) / "adapter_model.safetensors", "wb") as file:
        file.write(save(values, metadata={"format": "pt"}))


def read_adapter_config(path: Path) -> dict:
    """Read adapter_config.json with defaults for empty keys; unsupported or invalid values are errors."""
    config = read_json(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {kind!r}; only LORA adapters can be loaded")
    config = {key: value for key, value in config.items()
              if value is not False and value not in (None, {}, [], "", "none")}
    for key, value in config.items():
        if key not in KINDS.keys() | IGNORED:
            raise UserError(f"{path}: {key}={str(value)[:80]!r} is not supported")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise UserError(f"{path}: init_lora_weights={str(init)[:80]!r}: it needs a modified base model; "
                        f"{CONVERT}")
    config = DEFAULTS | config
    for key, kinds in KINDS.items():
        if type(config.get(key)) not in kinds or not _in_range(key, config[key]):
            raise UserError(f"{path}: {key}={str(config.get(key))[:80]!r} is not valid")
    return config


def _in_range(key: str, value: Any) -> bool:
    if key.endswith("_pattern"):
        return all(type(number) in (int, float) for number in value.values())
    return value >= 1 if key == "r" else 0 <= value < 1 if key == "lora_dropout" else True


def load_adapter(model: Transformer, folder: str | Path) -> int:
    """Apply the whole adapter in `folder` (ours or PEFT's); return the number of adapted layers."""
    folder = Path(folder)
    config = read_adapter_config(folder / "adapter_config.json")
    legacy, safe = folder / "adapter_model.bin", folder / "adapter_model.safetensors"
    found = read_tensors(legacy if legacy.is_file() and not safe.is_file() else safe)
    names = {key: text_name(model.config, key.removeprefix(PREFIX)) for key in found}
    found = {own_name(model.config, names[key]): value for key, value in found.items()}
    with reading(folder / "adapter_config.json"):
        whole = _whole_tensors(model, found, config)
        settings = _adapted_layers(model, found, config)
    wanted: dict[str, tuple[int, ...]] = {}
    for name, (rank, _) in settings.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        wanted[f"{name}.lora_A.weight"] = (rank, linear.in_features)
        wanted[f"{name}.lora_B.weight"] = (linear.out_features, rank)
        if config["use_dora"]:
            wanted[f"{name}.lora_magnitude_vector"] = (linear.out_features,)
    check_tensors(found, wanted, f"{folder}: not an adapter of this model")
    if not settings:
        raise UserError(f"{folder}: not an adapter for this model: it adapts none of its layers")
    # PEFT saves the tokenizer beside an adapter
    ids = load_tokenizer(folder).vocab_size if has_tokenizer(folder) else 0
    if ids > len(whole.get(EMBEDDING, model.embed_tokens.weight)):
        raise UserError(f"{folder}: trained with a tokenizer of {ids} ids, more than this model has; apply "
                        "it to the base model with the extended vocabulary")
    if whole:
        _replace_whole(model, folder, whole)
    model.requires_grad_(False)
    for name, (rank, alpha) in settings.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        layer = LoRALinear(linear, rank, alpha, config["lora_dropout"], config["use_rslora"])
        with torch.no_grad():
            layer.lora_A.copy_(found[f"{name}.lora_A.weight"])
            layer.lora_B.copy_(found[f"{name}.lora_B.weight"])
        magnitude = found.get(f"{name}.lora_magnitude_vector")
        model.set_submodule(name, layer if magnitude is None else layer.merged(magnitude))
    return len(settings)


def _adapted_layers(model: Transformer, found: dict[str, Tensor], config: dict) -> dict[str, tuple]:
    """Layer -> (rank, alpha). The tensors tell which layers are adapted; `target_modules` may be a pattern,
    and must agree where it is a list of all layers."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {key.partition(".lora_")[0] for key in found} & linear
    if isinstance(config["target_modules"], list) and not SOME_LAYERS & config.keys():
        layers |= set(target_names(model.config, config["target_modules"]))

    def by_pattern(key: str, name: str, otherwise: float) -> float:
        """The value of the first pattern that matches the end of a layer's name, as in PEFT."""
        for pattern, value in config[key].items():
            if re.match(rf"(.*\.)?({pattern})$", published_name(model.config, name)):
                return value
        return otherwise

    try:
        return {name: (by_pattern("rank_pattern", name, config["r"]),
                       by_pattern("alpha_pattern", name, config["lora_alpha"])) for name in sorted(layers)}
    except re.error as error:
        raise UserError(f"rank_pattern or alpha_pattern: {error}") from None


def _whole_tensors(model: Transformer, found: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Remove from `found` what is not LoRA: whole parameters, and embedding and head with trained rows."""
    tied, indices = model.config.tie_word_embeddings, config["trainable_token_indices"]
    modules = config["modules_to_save"]
    published = {name: published_name(model.config, name)
                 for name in {*ENDS} | {name for name, _ in model.named_parameters()}}
    # the ends of module names, as in PEFT
    saved = {name for name, other in published.items() for module in modules if f"{module}." in other}
    rows = {end: found.pop(end.removesuffix(".weight") + ROWS)
            for end in ENDS if end.removesuffix(".weight") + ROWS in found}
    whole = {}
    for key in list(found):
        name = key.replace(".token_adapter.base_layer", "")
        if name in saved.union(ENDS):  # embedding and head are also saved if the vocabulary was resized
            whole[name] = found.pop(key)
    if missing := sorted(saved - whole.keys()):
        raise UserError(f"the adapter's modules_to_save = {modules}, but its file lacks {missing[0]}")

    places = dict.fromkeys(rows or ENDS[:1], indices)
    if isinstance(indices, dict):
        places = {end: at for key, at in indices.items() for end in ENDS
                  if published[end].endswith(f"{key}.weight")}
    if indices and not (rows if tied else places.keys() == rows.keys()):
        raise UserError(f"trainable_token_indices is for {sorted(places)}, but the adapter's file holds rows "
                        f"of {sorted(rows) or 'neither'}")
    weights = {EMBEDDING: model.embed_tokens.weight, HEAD: model.head_weight} | whole
    for end, values in rows.items():
        at, weight = places.get(end, []), weights[end].detach().clone()
        if values.shape != (len(at), weight.shape[1]) or not set(at) <= set(range(len(weight))):
            raise UserError(f"the adapter has {tuple(values.shape)} values for the rows {str(at)[:80]} of "
                            f"{end}, which has the shape {tuple(weight.shape)}")
        weight[at] = values.to(weight)
        whole |= dict.fromkeys(ENDS if tied and len(rows) == 1 else [end], weight)
    return whole


@torch.no_grad()
def _replace_whole(model: Transformer, folder: Path, whole: dict[str, Tensor]) -> None:
    """Put whole tensors into the model. Its vocabulary may grow, and a tied head may become one of its own,
    because PEFT trains a saved embedding without the head."""
    config, old = model.config, model.embed_tokens.weight
    embedding, head = whole.pop(EMBEDDING, old), whole.pop(HEAD, model.head_weight)
    if len({embedding.shape, head.shape, (len(head), config.hidden_size)}) > 1:
        raise UserError(f"{folder}: its embedding {tuple(embedding.shape)} and head {tuple(head.shape)} do "
                        f"not fit each other or a model with {config.hidden_size} columns")
    tied = config.tie_word_embeddings and torch.equal(embedding.to(old), head.to(old))
    model.config = dataclasses.replace(config, vocab_size=len(embedding), tie_word_embeddings=tied)
    model.embed_tokens = nn.Embedding(len(embedding), config.hidden_size, device="meta")
    model.embed_tokens.weight = nn.Parameter(embedding.to(old), requires_grad=False)
    if not tied:
        model.lm_head = nn.Linear(config.hidden_size, len(head), bias=False, device="meta")
        model.lm_head.weight = nn.Parameter(head.to(old, copy=head is old))
    check_tensors(whole, {name: tuple(model.get_parameter(name).shape) for name in whole}, str(folder))
    for name, value in whole.items():
        model.get_parameter(name).copy_(value)
