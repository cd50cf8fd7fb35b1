"""LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`, ours or PEFT's.

Supported: LoRA with rank and alpha patterns, DoRA (arXiv 2402.09353) and LoRA on the head, both merged on
loading, and parts saved in full: modules (`modules_to_save`), rows of embedding and head
(`trainable_token_indices`), a resized vocabulary.
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

from mmed.checkpoints.pretrained import check_tensors, config_in, has_tokenizer, read_tensors, text_name
from mmed.lora import LoRALinear, adapted_layers, target_names
from mmed.model import ModelConfig, Transformer, own_name, published_name
from mmed.tokenizer import load_tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json
from mmed.utils.untrusted import reading

PREFIX = "base_model.model."
EMBEDDING, HEAD = ENDS = ("embed_tokens.weight", "lm_head.weight")
# Keys read from adapter_config.json -> (types, default). A key that is not here or in IGNORED must be unset.
SETTINGS: dict[str, tuple[tuple[type, ...], Any]] = {
    "r": ((int,), None), "lora_alpha": ((int, float), None), "target_modules": ((list, str), None),
    "lora_dropout": ((int, float), 0.0), "rank_pattern": ((dict,), {}), "alpha_pattern": ((dict,), {}),
    "modules_to_save": ((list,), []), "trainable_token_indices": ((list, dict), []),
    "use_rslora": ((bool,), False), "use_dora": ((bool,), False)}
SOME_LAYERS = {"layers_to_transform", "layers_pattern", "exclude_modules"}  # then fewer layers than targets
IGNORED = SOME_LAYERS | set("""
    peft_type init_lora_weights task_type auto_mapping peft_version base_model_name_or_path revision
    inference_mode megatron_core qalora_group_size ensure_weight_tying eva_config corda_config lora_ga_config
    loftq_config""".split())
# Initialisations that leave the base as it is. The others move a part of its weights into the adapter, which
# then fits the changed base only.
PLAIN_INITS = (True, "gaussian", "orthogonal", "eva")


def peft_names(config: ModelConfig, name: str) -> list[str]:
    """The names that a layer may have in PEFT: those of a Gemma 3 with images differ by version."""
    published = published_name(config, name)
    with_images = [published.replace("model.", "model.language_model.", 1), f"language_model.{published}"]
    return [published, *with_images] if config.family == "gemma3_text" else [published]


def save_adapter(model: Transformer, folder: str | Path, base_model: str = "") -> None:
    """Write the adapter as PEFT does; every rank calls."""
    layers = adapted_layers(model)
    first = next(iter(layers.values()))
    images = bool(model.config.extra.get("config", {}).get("_images"))  # PEFT adapts the whole model
    published = {name: peft_names(model.config, name)[images] for name in layers}
    values = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            value = distributed.whole(getattr(layer, part).detach())
            values[f"{PREFIX}{published[name]}.{part}.weight"] = value.float().cpu().contiguous()
    if not distributed.is_main():
        return
    targets = sorted({name.rpartition(".")[2] for name in published.values()})
    # not all layers of that name: PEFT needs full names
    if images or set(target_names(model.config, targets)) != set(layers):
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
    if unknown := sorted(config.keys() - SETTINGS.keys() - IGNORED):
        raise UserError(f"{path}: {unknown[0]}={str(config[unknown[0]])[:80]!r} is not supported")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise UserError(f"{path}: init_lora_weights={str(init)[:80]!r}: it needs a modified base model; save "
                        "it in PEFT as plain LoRA (save_pretrained with path_initial_model_for_weight_"
                        "conversion), or merge it there into its base (merge_and_unload)")
    for key, (kinds, default) in SETTINGS.items():
        value = config.setdefault(key, default)
        numbers = value.values() if key.endswith("_pattern") and type(value) is dict else ()
        if type(value) not in kinds or not all(type(number) in (int, float) for number in numbers):
            raise UserError(f"{path}: {key}={str(value)[:80]!r} is not valid")
    return config


def load_adapter(model: Transformer, folder: str | Path) -> int:
    """Apply the whole adapter in `folder` (ours or PEFT's); return the number of adapted layers."""
    folder = Path(folder)
    config = read_adapter_config(config_in(folder, "adapter_config.json"))
    legacy, safe = folder / "adapter_model.bin", folder / "adapter_model.safetensors"
    found = {}
    for key, value in read_tensors(legacy if legacy.is_file() and not safe.is_file() else safe).items():
        name = own_name(model.config, text_name(model.config, key.removeprefix(PREFIX)))
        if ".original_module." not in name:  # PEFT saves it, and the wrappers' names, of a resized embedding
            found[re.sub(r"\.(token_adapter|base_layer|modules_to_save)(?=\.)", "", name)] = value
    parameters = {**dict(model.named_parameters()), EMBEDDING: model.embed_tokens.weight,
                  HEAD: model.head_weight}
    with reading(folder / "adapter_config.json"):
        # the ends of module names, as in PEFT
        saved = {name for name in parameters for module in config["modules_to_save"]
                 if f"{module}." in published_name(model.config, name)}
        ends = _embedding_and_head(model, found, config["trainable_token_indices"])
        settings = _adapted_layers(model, found, config)
    wanted = {name: tuple(parameters[name].shape) for name in saved - ends.keys()}
    for name, (rank, _) in settings.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        wanted[f"{name}.lora_A.weight"] = (rank, linear.in_features)
        wanted[f"{name}.lora_B.weight"] = (linear.out_features, rank)
        if config["use_dora"]:
            wanted[f"{name}.lora_magnitude_vector"] = (linear.out_features,)
    check_tensors(found, wanted, f"{folder}: not an adapter of this model")
    if not settings:
        raise UserError(f"{folder}: not an adapter of this model: it adapts none of its layers")
    # PEFT saves the tokenizer beside an adapter
    ids = load_tokenizer(folder).rows if has_tokenizer(folder) else 0
    if ids > len(ends.get(EMBEDDING, model.embed_tokens.weight)):
        raise UserError(f"{folder}: trained with a tokenizer of {ids} ids, more than this model has; apply "
                        "it to the base model with the extended vocabulary")
    if ends:
        _replace_ends(model, folder, ends)
    model.requires_grad_(False)
    for name in saved - ends.keys():
        parameters[name].copy_(found[name])
    for name, (rank, alpha) in settings.items():
        linear = cast(nn.Linear, model.get_submodule(name))
        layer = LoRALinear(linear, rank, alpha, config["lora_dropout"], config["use_rslora"])
        layer.lora_A.data.copy_(found[f"{name}.lora_A.weight"])
        layer.lora_B.data.copy_(found[f"{name}.lora_B.weight"])
        magnitude = found.get(f"{name}.lora_magnitude_vector")
        merged = magnitude is not None or name == "lm_head"  # the model reads the head's weight alone
        model.set_submodule(name, layer.merged(magnitude) if merged else layer)
    return len(settings)


def _adapted_layers(model: Transformer, found: dict[str, Tensor], config: dict) -> dict[str, tuple]:
    """Layer -> (rank, alpha). The tensors tell which layers are adapted; `target_modules` may be a pattern,
    and must agree where it is a list of all layers."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = {key.partition(".lora_")[0] for key in found} & linear
    if isinstance(config["target_modules"], list) and not SOME_LAYERS & config.keys():
        head = published_name(model.config, "lm_head")
        targets = [text_name(model.config, target) for target in config["target_modules"]]
        layers |= set(target_names(model.config, [target for target in targets if target != head]))
        layers |= linear & {"lm_head"} if head in targets else set()

    def by_pattern(key: str, name: str, otherwise: float) -> float:
        """The value of the first pattern that matches the end of a layer's name, as in PEFT."""
        names = peft_names(model.config, name)
        return next((value for pattern, value in config[key].items()
                     if any(re.match(rf"(.*\.)?({pattern})$", other) for other in names)), otherwise)

    try:
        return {name: (by_pattern("rank_pattern", name, config["r"]),
                       by_pattern("alpha_pattern", name, config["lora_alpha"])) for name in sorted(layers)}
    except re.error as error:
        raise UserError(f"rank_pattern or alpha_pattern: {error}") from None


def _embedding_and_head(model: Transformer, found: dict[str, Tensor], indices: list | dict
                        ) -> dict[str, Tensor]:
    """Take embedding and head from `found`, which has them if they were trained or resized, and apply rows
    that were trained alone."""
    tied = model.config.tie_word_embeddings
    ends = {end: found.pop(end) for end in ENDS if end in found}
    rows = {end: found.pop(key) for end in ENDS
            if (key := end.replace("weight", "trainable_tokens_delta")) in found}
    places: dict[str, Any] = dict.fromkeys(rows or ENDS[:1], indices) if indices else {}
    if isinstance(indices, dict):
        places = {end: at for key, at in indices.items() for end in ENDS
                  if published_name(model.config, end).endswith(f"{key}.weight")}
    weights = {EMBEDDING: model.embed_tokens.weight, HEAD: model.head_weight} | ends
    for end in rows.keys() if rows and tied else rows.keys() | places.keys():
        at, weight, values = places.get(end, []), weights[end].detach().clone(), rows.get(end)
        if (values is None or values.shape != (len(at), weight.shape[1])
                or not set(at) <= set(range(len(weight)))):
            raise UserError(f"trainable_token_indices is {str(indices)[:80]}, but the adapter's file holds "
                            f"other rows of {end}, or this model has fewer")
        weight[at] = values.to(weight)
        ends |= dict.fromkeys(ENDS if tied and len(rows) == 1 else [end], weight)
    return ends


def _replace_ends(model: Transformer, folder: Path, ends: dict[str, Tensor]) -> None:
    """Put embedding and head into the model. The vocabulary may grow, and a tied head may become a separate
    one, because PEFT trains a saved embedding without the head."""
    config, old = model.config, model.embed_tokens.weight.detach()
    embedding, head = ends.get(EMBEDDING, old), ends.get(HEAD, model.head_weight.detach())
    if len({embedding.shape, head.shape, (len(head), config.hidden_size)}) > 1:
        raise UserError(f"{folder}: its embedding {tuple(embedding.shape)} and head {tuple(head.shape)} do "
                        f"not fit each other or a model with {config.hidden_size} columns")
    tied = config.tie_word_embeddings and torch.equal(embedding.to(old), head.to(old))
    model.config = dataclasses.replace(config, vocab_size=len(embedding), tie_word_embeddings=tied)
    model.embed_tokens = nn.Embedding(len(embedding), config.hidden_size, device="meta")
    model.embed_tokens.weight = nn.Parameter(embedding.to(old), requires_grad=False)
    if not tied:
        model.lm_head = nn.Linear(config.hidden_size, len(head), bias=False, device="meta")
        model.lm_head.weight = nn.Parameter(head.to(old), requires_grad=False)
