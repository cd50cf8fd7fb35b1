"""Exercise 8: a LoRA layer and its merged weight. (Tour, section 9; Hu et al., arXiv 2106.09685.)

W (out, in) is frozen. Two thin matrices A (R, in) and B (out, R) are trained beside it:

    y = x W^T + (alpha / R) x A^T B^T

Afterwards the update can be folded into one matrix, which gives the same y at no extra cost:

    W' = W + (alpha / R) B A
"""
from torch import Tensor


def lora_forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """x (..., in) -> (..., out), without forming B A."""
    ...


def lora_merge(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """W' (out, in); W itself stays as it is."""
    ...
