import math

from torch import Tensor


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float) -> float:
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def adamw_step(p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta2: float,
               decay: float) -> tuple[Tensor, Tensor, Tensor]:
    m = 0.9 * m + 0.1 * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr * decay * p
    return p - lr * (m / (1 - 0.9 ** t)) / ((v / (1 - beta2 ** t)).sqrt() + 1e-8), m, v
