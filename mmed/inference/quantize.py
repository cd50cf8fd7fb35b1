"""int8 weights for decoding: a quarter of fp32's bytes to read per token, half of bf16's.

    y = (x W8^T) * scale        W8 = round(W / scale), scale = max |row of W| / 127, one fp32 number per row

Weights only, no calibration. Symmetric, so zero stays zero; no weight is off by more than half a scale. On a
CPU the inputs of a few rows are rounded to bf16. Embedding and norms keep their precision, the head is
quantised.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 16  # rows; for more of them converting the weights costs less than the slower product


class Int8Linear:
    """y = x W^T + b with W (out, in) in int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.scale = weight.float().abs().amax(1) / 127  # (out,)
        divisor = self.scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # a row of zeros stays zero
        self.weight, self.bias = (weight.float() / divisor).round().to(torch.int8), bias
        self.ones = torch.ones(len(weight), dtype=torch.bfloat16, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[0] <= FEW:  # 3 to 8 times fp32's speed for one row
            y = torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.ones)
        else:
            y = F.linear(x, self.weight.to(x.dtype))
        y = (y * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias
