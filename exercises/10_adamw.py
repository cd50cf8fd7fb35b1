"""Exercise 10: the learning rate of a step, and one step of AdamW. (Tour, section 8; Loshchilov and Hutter,
arXiv 1711.05101.)

Learning rate: with w = ceil(warmup_ratio * steps), step s (from 0)

    s < w     peak * (s + 1) / w
    else      peak * (1 + cos(pi * (s - w) / max(1, steps - w))) / 2

AdamW: t counts steps from 1. g is the gradient, m and v are running means of it and of its square:

    m = 0.9 m + 0.1 g                 v = beta2 v + (1 - beta2) g^2
    p = p - lr * decay * p            (before the rest)
    p = p - lr * (m / (1 - 0.9^t)) / (sqrt(v / (1 - beta2^t)) + 1e-8)
"""
from torch import Tensor


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    ...


def adamw_step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta2: float,
               decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """(p, m, v) after the step; the arguments stay as they are."""
    ...
