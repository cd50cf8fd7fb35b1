import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    E = x.shape[-1]
    speed = theta ** (-torch.arange(0, E, 2, dtype=torch.float32) / E)   # (E / 2,)
    angle = positions[:, None] * speed                                   # (T, E / 2)
    first, second = x[:, :E // 2], x[:, E // 2:]
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()),
                     -1)
