"""LoRA: train two thin matrices beside each frozen weight, and read and write them in PEFT's files.

             x (…, in)
             │───────────────┐
             ▼               ▼
      W (out, in) frozen   A (R, in)   random        y = x Wᵀ + (α / R) · dropout(x) Aᵀ Bᵀ
             │               ▼
             │             B (out, R)  zero          so training starts from the unchanged model,
             ▼               │                       and W + (α / R) B A is the merged weight
             + ◄─────────────┘

In: a `Transformer` and the names of the layers to adapt. Out: the same model with `LoRALinear` in their place, or a folder
with `adapter_config.json` and `adapter_model.safetensors` that PEFT opens. Reference: Hu et al., arXiv 2106.09685.
"""
from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.checkpoints.families import published_name
from mmed.model import Transformer, local_rows
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json

# MMedLM: q_proj and v_proj; BLOOMZ query_key_value, InternLM 2 wqkv, which hold them packed (finetune/*.sh)
PAPER = "paper"


class LoRALinear(nn.Linear):
    """An `nn.Linear` whose own weight keeps its name and is frozen, with the two matrices beside it."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool = False):
        nn.Module.__init__(self)  # not nn.Linear's: the weight exists already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)  # rsLoRA: arXiv 2312.03732
        # fp32 whatever the base: an update of 1e-5 would round away in bf16
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=self.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=self.weight.device))
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.merged:
            return y
        low = F.linear(F.dropout(x, self.dropout, self.training).to(x.dtype), self.lora_A.to(x.dtype))  # (…, in) -> (…, R)
        return y + F.linear(low, self.lora_B.to(x.dtype)) * self.scale                                   # (…, R) -> (…, out)

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """Add (or with sign -1 take away) the update to the weight; the sum is formed in fp32 and rounded once."""
        if self.merged == (sign > 0):
            return
        update = self.scale * (self.lora_B.float() @ self.lora_A.float())
        self.weight.copy_((self.weight.float() + sign * update).to(self.weight.dtype))
        self.merged = sign > 0


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def target_names(model: Transformer, targets: str | list[str]) -> list[str]:
    """Full names of the linear layers that `targets` means; none or a stray one is an error.

    A target is the end of a layer's name, here or in the family's published weights ("q_proj", "wqkv", "mlp.up_proj"), or its
    whole published name; "all-linear" is every linear layer but the head, "paper" what the paper adapts in this family.
    """
    linears = {name: published_name(model.config, name) for name, module in model.named_modules()
               if isinstance(module, nn.Linear) and name != "lm_head"}
    wanted = [t.strip() for t in (targets.split(",") if isinstance(targets, str) else targets) if t.strip()]
    if wanted == ["all-linear"]:
        return list(linears)
    if wanted == [PAPER]:
        wanted = ["qkv_proj"] if model.config.packed_qkv else ["q_proj", "v_proj"]
    known = ", ".join(dict.fromkeys(published.rpartition(".")[2] for published in linears.values()))
    chosen: set[str] = set()
    for target in wanted:
        hits = [name for name, published in linears.items() if f".{name}".endswith("." + target) or f".{published}".endswith("." + target)]
        if not hits:
            raise UserError(f"LoRA target {target!r} matches no layer; this model has {known} (or all-linear, or {PAPER})")
        chosen.update(hits)
    if not chosen:
        raise UserError(f"no LoRA targets given; this model has {known} (or all-linear, or {PAPER})")
    return [name for name in linears if name in chosen]


def apply_lora(model: Transformer, rank: int = 16, alpha: float = 16, dropout: float = 0.05,
               targets: str | list[str] = "q_proj,v_proj", *, rslora: bool = False, seed: int = 0) -> int:
    """Freeze `model`, put a `LoRALinear` in place of each target, and return how many there are.

    # MMedLM: rank 16, dropout 0.05, no bias (finetune/*.sh)
    # DIFFERS: alpha is undefined in the official code, whose every LoRA run stops there (METHOD D17); here it is 16 unless set.
    """
    if rank < 1:
        raise UserError(f"LoRA rank must be at least 1, got {rank}")
    names = target_names(model, targets)
    model.requires_grad_(False)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(model.get_submodule(name), rank, alpha, dropout, rslora))
    if not next(model.parameters()).is_meta:
        init_lora(model, seed)
    return len(names)


@torch.no_grad()
def init_lora(model: nn.Module, seed: int) -> None:
    """A uniform in 1 / sqrt(in) (kaiming_uniform(a=sqrt(5)), as in the paper's code and PEFT), B zero; same on any number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        bound = 1 / math.sqrt(layer.in_features)
        values = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        local, rows = local_rows(layer.lora_A)
        local.copy_(values[rows])
        local_rows(layer.lora_B)[0].zero_()


def merge_lora(model: nn.Module) -> int:
    """Fold every adapter into its weight and leave plain linear layers; returns how many there were."""
    layers = adapted_layers(model)
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        plain = nn.Linear(1, 1, bias=False)
        plain.in_features, plain.out_features = layer.in_features, layer.out_features
        plain.weight, plain.bias = layer.weight, layer.bias
        setattr(model.get_submodule(parent), child, plain)
    return len(layers)


# --------------------------------------------------------------------------------------------------------- PEFT's files

def save_adapter(model: Transformer, folder: str | Path, base_model: str = "",
                 tensors: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as PEFT does. `tensors`: the whole LoRA matrices by name, when the model itself is sharded."""
    from safetensors.torch import save

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
    if set(target_names(model, targets)) != set(layers):  # not every layer of that name: PEFT needs the whole names
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
    from mmed.checkpoints.safe import open_bin, read_tensors

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
        layers |= set(target_names(model, config["target_modules"]))
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
