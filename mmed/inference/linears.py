"""Linear layers laid out for a few rows at a time: each form is a plain callable x (N, in) -> y (N, out).

    fused([q_proj, k_proj, v_proj], layout)     one callable for layers that read the same input

    layout     weights                                              for
    packed     a copy in oneDNN's blocked order, fused              CPU, fp32: twice the speed of F.linear
    int8       8 bits and a scale per row, fused                    a quarter of fp32's bytes per token
    in place   fused, the parameters become parts of it             GPU: needs no more memory
    plain      the parameters as they are                           bf16 on a CPU, or no memory for a copy
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmed.lora import LoRALinear

FEW = 16  # rows; beyond this, converting int8 weights is cheaper than the slower product
ALIGNED = 16  # the int8 product reads inputs in blocks of this size, also beyond the end
Linear = Callable[[Tensor], Tensor]


class PackedLinear:
    """y = x W^T + b with W in the blocked order of oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Int8Linear:
    """y = (x W8^T) * scale + b, W8 = round(W / scale), with a fp32 scale = max |row of W| / 127 for each row.
    No weight is off by more than half a scale. On a CPU the inputs of a few rows are rounded to bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.scale = weight.float().abs().amax(1) / 127  # (out,)
        divisor = self.scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # a row of zeros stays zero
        self.weight, self.bias = (weight.float() / divisor).round().to(torch.int8), bias
        self.ones = torch.ones(len(weight), dtype=torch.bfloat16, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and len(x) <= FEW and x.shape[1] % ALIGNED == 0:  # 3 to 8 times as fast
            y = torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.ones)
        else:
            y = F.linear(x, self.weight.to(x.dtype))
        y = (y * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias


def matrix(weight: Tensor, bias: Tensor | None, layout: str) -> Linear:
    if layout in ("packed", "int8"):
        return {"packed": PackedLinear, "int8": Int8Linear}[layout](weight, bias)
    return lambda x: F.linear(x, weight, bias)


def fused(modules: list[nn.Linear], layout: str) -> Linear:
    """One callable for linear layers that read the same input; their outputs are concatenated."""
    if layout == "plain" or any(isinstance(module, LoRALinear) for module in modules):
        return modules[0] if len(modules) == 1 else lambda x: torch.cat([module(x) for module in modules], -1)
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = None if modules[0].bias is None else torch.cat([module.bias.detach() for module in modules])
    if layout == "in place":
        for module, rows in zip(modules, weight.split([len(module.weight) for module in modules])):
            module.weight.data = rows
    return matrix(weight, bias, layout)
