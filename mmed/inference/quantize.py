"""int8 weights for decoding: a quarter of fp32's bytes to read a token, half of bf16's.

    y = (x W8^T) * scale        W8 = round(W / scale), scale = max |row of W| / 127: one fp32 number an output row

Weights only, no calibration: inputs stay as they are. Symmetric, so zero stays zero; the largest weight of a row is exact, and no
weight is off by more than half a scale. The embedding and the norms keep their precision, the head is quantised.
`mmed.inference.decoder` lays the model out with these; `mmed.inference.option_scores.int8_difference` says what it costs on given prompts.
"""
from __future__ import annotations

import torch
from torch import Tensor

FEW = 16  # rows; for more of them the cast costs less than the slower product


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 (out, in), scale (out,)) of a matrix.

    >>> w8, scale = quantized(torch.tensor([[1.27, -0.01], [0.0, 0.0]]))
    >>> w8.tolist(), [round(s, 4) for s in scale.tolist()]
    ([[127, -1], [0, 0]], [0.01, 0.0])
    """
    scale = weight.float().abs().amax(1) / 127
    return (weight.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scale


class Int8Linear:
    """y = x W^T + b with W in int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        w8, scale = quantized(weight)
        self.weight, self.scale, self.bias = w8.contiguous(), scale.to(weight.dtype), bias
        self.ones = torch.ones(len(scale), dtype=torch.bfloat16, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[0] <= FEW:  # reads int8 only, inputs rounded to bf16: 3 to 8 times fp32's speed for one row
            y = torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.ones).to(x.dtype) * self.scale
        else:
            y = torch.nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias
