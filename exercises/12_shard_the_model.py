"""Exercise 12: a linear layer whose weight is cut over the ranks, as FSDP does it.
(mmed/training/distributed.py: shard.)

Each of `world` ranks keeps out / world rows of the weight (out, in), and computes its own batch. Two
collectives do the rest:

    all_gather(part)        the parts of all ranks one below the other, the same on every rank       (rows,
                            ...) -> (world * rows, ...)
    reduce_scatter(whole)   the sum over the ranks, of which each gets its own rows only             (world *
                            rows, ...) -> (rows, ...)

    forward     gather the weight, y = x W^T, let the gathered weight go
    backward    gather the weight again; gradient of x = gradient of y times W; gradient of W = (gradient of
                y)^T x, summed up over all
                ranks and cut: each rank gets the rows that it keeps

The mean over ranks is taken elsewhere. Nothing whole may be kept between forward and backward: return what
you keep, and the check looks at it.
"""
from collections.abc import Callable

from torch import Tensor

Collective = Callable[[Tensor], Tensor]


def forward(x: Tensor, own: Tensor, all_gather: Collective) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x (B, in), own (out / world, in) -> (y (B, out), what backward needs)"""
    ...


def backward(grad_y: Tensor, kept: tuple[Tensor, ...], all_gather: Collective,
             reduce_scatter: Collective) -> tuple[Tensor, Tensor]:
    """grad_y (B, out) -> (gradient of x (B, in), gradient of own (out / world, in))"""
    ...
