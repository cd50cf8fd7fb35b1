"""LoRA: train two thin matrices beside each frozen weight.

             x (…, in)
             │───────────────┐
             ▼               ▼
      W (out, in) frozen   A (R, in)   random        y = x Wᵀ + (α / R) · dropout(x) Aᵀ Bᵀ
             │               ▼
             │             B (out, R)  zero          so training starts from the unchanged model,
             ▼               │                       and W + (α / R) B A is the merged weight
             + ◄─────────────┘

In: a `Transformer` and the names of the layers to adapt. Out: the same model with `LoRALinear` in their place; PEFT's files are read
and written by mmed/checkpoints/adapters.py. Reference: Hu et al., arXiv 2106.09685.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.checkpoints.families import published_name
from mmed.model import Transformer, local_rows
from mmed.utils.errors import UserError

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
