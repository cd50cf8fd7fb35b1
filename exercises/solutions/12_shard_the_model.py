from collections.abc import Callable

from torch import Tensor

Collective = Callable[[Tensor], Tensor]


def forward(x: Tensor, own: Tensor, all_gather: Collective) -> tuple[Tensor, tuple[Tensor, ...]]:
    return x @ all_gather(own).T, (x, own)


def backward(grad_y: Tensor, kept: tuple[Tensor, ...], all_gather: Collective,
             reduce_scatter: Collective) -> tuple[Tensor, Tensor]:
    x, own = kept
    return grad_y @ all_gather(own), reduce_scatter(grad_y.T @ x)
