"""Which rows of a parameter are on this rank."""
from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_rows(parameter: Any) -> tuple[Tensor, slice]:
    """(the part of `parameter` on this rank, which rows of the whole it is)."""
    if not hasattr(parameter, "to_local"):
        return parameter, slice(0, parameter.shape[0])
    where = parameter.device_mesh, parameter.placements
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, *where)
    return parameter.to_local(), slice(offset[0], offset[0] + shape[0])
