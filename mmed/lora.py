"""LoRA: train two thin matrices beside each frozen weight.

             x (…, in)
             │───────────────┐
             ▼               ▼
      W (out, in) frozen   A (R, in)   random        y = x Wᵀ + (α / R) · dropout(x) Aᵀ Bᵀ
             │               ▼
             │             B (out, R)  zero          so training starts from the unchanged model,
             ▼               │                       and W + (α / R) B A is the merged weight
             + ◄─────────────┘

In: a `Transformer` and the names of the layers to adapt. Out: the same model with `LoRALinear`s there.
mmed/checkpoints/adapters.py reads and writes PEFT's files. Reference: Hu et al., arXiv 2106.09685.
"""
from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.model import ModelConfig, Transformer, local_rows, published_name
from mmed.utils.errors import UserError

# MMedLM: q_proj and v_proj, or the matrix that packs them: query_key_value, wqkv (finetune/*.sh)
PAPER = "paper"


class LoRALinear(nn.Linear):
    """An `nn.Linear` with two trained matrices; its own frozen weight keeps its name."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float, rslora: bool = False):
        nn.Module.__init__(self)  # not nn.Linear's: the weight exists already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)  # rsLoRA: arXiv 2312.03732
        # fp32 even with a bf16 base: an update of 1e-5 would be rounded away in bf16
        device = self.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        x = F.dropout(x, self.dropout, self.training).to(x.dtype)
        low = F.linear(x, self.lora_A.to(x.dtype))                      # (…, in) -> (…, R)
        return y + F.linear(low, self.lora_B.to(x.dtype)) * self.scale  # (…, R) -> (…, out)

    @torch.no_grad()
    def merged(self, magnitude: Tensor | None = None) -> nn.Linear:
        """A plain linear layer that owns the weight, with the update added in fp32 and rounded once; DoRA's
        `magnitude` (out,) is the length of each row of the sum."""
        total = self.weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())
        if magnitude is not None:
            total *= (magnitude.to(total) / total.norm(dim=1))[:, None]
        self.weight.copy_(total.to(self.weight.dtype))
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def target_names(config: ModelConfig, targets: str | list[str]) -> list[str]:
    """Full names of the linear layers that `targets` selects; an error if a target selects none. A target is
    a layer's name or the end of it ("mlp.up_proj"), ours or that of the published weights ("wqkv");
    "all-linear" is every linear layer but the head, "paper" what the paper adapts in this family."""
    with torch.device("meta"):
        modules = dict(Transformer(config).named_modules())
    published = {name: published_name(config, name) for name, module in modules.items()
                 if isinstance(module, nn.Linear) and name != "lm_head"}
    wanted = targets.split(",") if isinstance(targets, str) else targets
    wanted = [target.strip() for target in wanted]
    if wanted == ["all-linear"]:
        return list(published)
    if wanted == [PAPER]:
        wanted = ["qkv_proj"] if config.packed_qkv else ["q_proj", "v_proj"]
    chosen: set[str] = set()
    for target in wanted:
        matches = {name for name, other in published.items()
                   if f".{name}".endswith(f".{target}") or f".{other}".endswith(f".{target}")}
        if not matches:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in published.values()))
            raise UserError(f"LoRA target {target!r} matches no layer; this model has {known} "
                            f"(or all-linear, or {PAPER})")
        chosen |= matches
    return [name for name in published if name in chosen]


def apply_lora(model: Transformer, rank: int = 16, alpha: float = 16, dropout: float = 0.05,
               targets: str | list[str] = "q_proj,v_proj", *, seed: int = 0) -> int:
    """Freeze `model`, replace each target by a `LoRALinear`, and return the number of adapted layers.

    # MMedLM: rank 16, dropout 0.05, no bias (finetune/*.sh)
    # DIFFERS: alpha is undefined in the official code, whose LoRA runs all stop there (D17 in
    # docs/method.md); here it is 16 unless set.
    """
    names = target_names(model.config, targets)
    model.requires_grad_(False)
    for name in names:
        base = cast(nn.Linear, model.get_submodule(name))
        model.set_submodule(name, LoRALinear(base, rank, alpha, dropout))
    if not next(model.parameters()).is_meta:
        init_lora(model, seed)
    return len(names)


@torch.no_grad()
def init_lora(model: nn.Module, seed: int) -> None:
    """A uniform in +-1/sqrt(in), as in the paper's code and PEFT; B zero; equal on any number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapted_layers(model).values():
        bound = 1 / math.sqrt(layer.in_features)
        values = torch.empty(layer.lora_A.shape).uniform_(-bound, bound, generator=generator)
        local, rows = local_rows(layer.lora_A)
        local.copy_(values[rows])
        local_rows(layer.lora_B)[0].zero_()


def merge_lora(model: nn.Module) -> int:
    """Fold every adapter into its weight and restore plain linear layers; returns the number of adapters."""
    layers = adapted_layers(model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    return len(layers)
