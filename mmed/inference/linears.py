"""Matrix products for a few rows at a time: the forms in which a decoder lays out linear layers, each a plain callable x -> y.

    joined([q_proj, k_proj, v_proj], kind)     one callable for layers that read the same input, outputs side by side

    kind       weight kept as                                     for
    packed     blocks of oneDNN, fused (a copy)                   CPU, fp32, 2 rows and more: 1.2 to 2.4 times F.linear up to 64 rows
    one row    W^T in rows where the output is wide, fused        CPU, fp32, one row: memory is read in order, at twice the speed
    int8       8 bits and a scale a row, fused (mmed/inference/quantize.py)
    in place   fused, the parameters becoming parts of it         GPU: no more memory
    plain      the parameters as they are                         no room for a copy, bf16 on a CPU, gathered shards
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmed.inference.quantize import Int8Linear
from mmed.lora import LoRALinear
from mmed.model import RMSNorm

Linear = Callable[[Tensor], Tensor]


class PackedLinear:
    """y = x W^T + b with W in the blocked layout of oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias
        self.linear = torch.ops.mkldnn._linear_pointwise

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias, "none", [], "")


class TransposedLinear:
    """y = x W^T + b with W^T stored in rows: for one row of x and a wide output nothing reads memory faster."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight.t().contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


class PlainLinear:
    """F.linear; several matrices give their outputs side by side."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor | None]]):
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        out = [F.linear(x, weight, bias) for weight, bias in self.parts]
        return out[0] if len(out) == 1 else torch.cat(out, -1)


def fused(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Matrices that read the same input as one, outputs side by side."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([weight for weight, _ in parts]), None if parts[0][1] is None else torch.cat([bias for _, bias in parts])


@torch.no_grad()
def fuse_in_place(modules: Sequence[torch.nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The same without more memory: the parameters become parts of the fused matrix."""
    weight, bias = fused([(module.weight.detach(), None if module.bias is None else module.bias.detach()) for module in modules])
    start = 0
    for module in modules:
        rows = slice(start, start + module.weight.shape[0])
        module.weight.data = weight[rows]
        if bias is not None:
            module.bias.data = bias[rows]
        start = rows.stop
    return weight, bias


def joined(modules: Sequence[torch.nn.Linear], kind: str) -> Linear:
    """One callable for linear layers that read the same input. kind: "one row", "packed", "int8", "in place" or "plain"."""
    if any(isinstance(module, LoRALinear) for module in modules):
        return modules[0] if len(modules) == 1 else lambda x: torch.cat([module(x) for module in modules], -1)
    if kind == "in place":
        return PlainLinear([fuse_in_place(modules) if len(modules) > 1 else (modules[0].weight.detach(), modules[0].bias)])
    parts = [(module.weight.detach(), None if module.bias is None else module.bias.detach()) for module in modules]
    return PlainLinear(parts) if kind == "plain" else of_kind(*fused(parts), kind)


def of_kind(weight: Tensor, bias: Tensor | None, kind: str) -> Linear:
    if kind == "int8":
        return Int8Linear(weight, bias)
    if kind == "packed":
        return PackedLinear(weight, bias)
    if kind == "one row" and weight.shape[0] > weight.shape[1]:
        return TransposedLinear(weight, bias)
    return PlainLinear([(weight, bias)])


def norm_of(norm: torch.nn.Module | None, kind: str) -> Linear | None:
    """The norm as a plain callable; the fused kernel where it rounds no differently (fp32)."""
    if norm is None or not isinstance(norm, RMSNorm) or kind == "plain" or norm.weight.dtype != torch.float32:
        return norm
    weight = norm.weight.detach() + 1 if norm.plus_one else norm.weight.detach()
    shape, eps = list(weight.shape), norm.eps
    if weight.device.type != "cpu":
        return lambda x: torch.rms_norm(x, shape, weight, eps)
    start = torch.full((1,), eps)

    def on_cpu(x: Tensor) -> Tensor:  # torch's own is many passes there: 2 to 10 times as long over a thousand rows
        return (x * torch.add(start, (x * x).sum(-1, keepdim=True), alpha=1 / x.shape[-1]).rsqrt_()).mul_(weight)

    return on_cpu
