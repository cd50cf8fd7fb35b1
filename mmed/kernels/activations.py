"""The activations of an MLP, by their names in `ModelConfig`."""
from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class XIELU(nn.Module):
    """Apertus (arXiv 2411.13010): a x^2 + x / 2 for x > 0, b (e^x - 1 - x) + x / 2 otherwise, with learned
    a = softplus(alpha_p) and b = 1 / 2 + softplus(alpha_n)."""

    BETA, EPS = 0.5, -1e-6  # constants that the published files hold as tensors
    INITIAL = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3))}  # a = b = 0.8

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = (nn.Parameter(torch.full((1,), self.INITIAL[name]))
                                      for name in ("alpha_p", "alpha_n"))

    def forward(self, x: Tensor) -> Tensor:
        above = F.softplus(self.alpha_p.float()).to(x.dtype)
        below = (self.BETA + F.softplus(self.alpha_n.float())).to(x.dtype)
        curved = torch.where(x > 0, above * x * x, below * (torch.expm1(x.clamp(max=self.EPS)) - x))
        return curved + self.BETA * x


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU, "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"), "xielu": XIELU}
