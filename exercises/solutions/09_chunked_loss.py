import torch
from torch import Tensor


def loss_and_gradients(hidden: Tensor, weight: Tensor, labels: Tensor,
                       rows: int) -> tuple[float, Tensor, Tensor]:
    total, grad_hidden, grad_weight = 0.0, torch.zeros_like(hidden), torch.zeros_like(weight)
    for begin in range(0, len(labels), rows):
        part, target = hidden[begin:begin + rows], labels[begin:begin + rows]
        counts = target >= 0
        place, target = torch.arange(len(target)), target.clamp(min=0)
        logs = (part @ weight.T).log_softmax(-1)                          # (rows, V)
        total -= float(logs[place, target][counts].sum())
        g = logs.exp()
        g[place, target] -= 1
        g[~counts] = 0
        grad_hidden[begin:begin + rows] = g @ weight
        grad_weight += g.T @ part
    return total, grad_hidden, grad_weight
