"""Which rank this process is, how ranks start, meet and stop, and how a model is sharded over them.

One process without torchrun is rank 0 of 1 and has no process group. Under torchrun (which sets RANK,
WORLD_SIZE and LOCAL_RANK) there is one: nccl on GPUs, gloo on CPUs.

    checkpoint_blocks(model)  ->  compile_blocks(model)  ->  shard(model)      in this order, each optional

Sharding is FSDP2 (`fully_shard`, Zhao et al. 2023): each rank keeps 1 / world of every matrix, gathers a
block's weights just before it computes the block, and reduces gradients straight to the ranks that own them.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from mmed.model import Transformer
from mmed.utils.errors import UsageError

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# ------------------------------------------------------------------------------------------ starting, meeting

def start(timeout_seconds: int = 600, deterministic: bool = False) -> torch.device:
    """Join the other ranks, if there are any; returns the device of this rank. `deterministic`: only kernels
    that give the same bits every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # for code that reads what it never wrote
        torch.backends.cudnn.benchmark = False
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), gpu_count()
    if gpus and local_rank >= gpus:
        raise UsageError(f"--nproc_per_node starts more processes than there are GPUs ({gpus})")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 in products of fp32
    if world_size() > 1 and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
            # SIGTERM for this process when torchrun is killed, which notifies no rank
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout_seconds),
                                device_id=device if gpus else None)
    return device


def device_called(name: str) -> str:
    """The device of this name ("auto": the GPU, if there is one), or an error."""
    if name == "auto":
        return "cuda" if gpu_count() else "cpu"
    try:
        return str(torch.empty(1, device=name).device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"--device {name}: no such device; there are cpu and {gpu_count()} GPUs") from None


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def host_group(timeout_seconds: int) -> dist.ProcessGroup | None:
    """A second group of all ranks, over gloo, for what runs beside the training. None for one process."""
    timeout = timedelta(seconds=timeout_seconds)
    return dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None


def gather(value: Any) -> list[Any]:
    """The value of every rank, on every rank."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def device_sum(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed over all ranks in place; on a GPU the host does not wait for it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def autocast(precision: str, kind: str) -> Callable[[], AbstractContextManager]:
    """The context of forward passes; among several ranks FSDP casts by itself."""
    if precision == "bf16" and world_size() == 1:
        return functools.partial(torch.autocast, kind, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext


# ----------------------------------------------------------------------------------------------------- blocks

def checkpoint_blocks(model: Transformer, which: str = "all") -> None:
    """Recompute all, half or no blocks in the backward pass instead of keeping what they computed."""
    def checkpointed(forward: Callable) -> Callable:
        def recompute(*inputs: object) -> torch.Tensor:  # not a partial: torch.compile sees functions only
            return checkpoint(forward, *inputs, use_reentrant=False)
        return recompute

    for block in [] if which == "no" else model.layers[::{"all": 1, "half": 2}[which]]:
        block.forward = checkpointed(block.forward)


def compile_blocks(model: Transformer) -> None:
    """torch.compile of each block's forward pass; FSDP's hooks stay outside. The blocks share code for the
    first and any other width, and both again for validation and LoRA's first block (no gradient of x)."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in model.layers:
        block.forward = torch.compile(block.forward)


def shard(model: Transformer, precision: str, shard_size: int = 0, timeout_seconds: int = 600) -> None:
    """Shard `model` over the ranks: one FSDP unit per block, one for the rest (embedding, last norm, head).

    Weights keep their dtype (fp32 master weights); with precision "bf16" they are gathered and used in bf16,
    and gradients are reduced in fp32. With a `shard_size` each group of that size (a node) holds a copy:
    weights are gathered within a group, and only gradients, already cut by shard_size, cross between groups.
    # MMedLM: FSDP full_shard auto_wrap on the decoder layer, bf16
    """
    used = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    mesh = make_mesh(shard_size, timeout_seconds)
    for unit in (*model.layers, model):
        fully_shard(unit, mesh=mesh, mp_policy=MixedPrecisionPolicy(**used))


def make_mesh(shard_size: int, timeout_seconds: int) -> DeviceMesh:
    """All ranks, or (copies, shards) for hybrid sharding, whose groups need the run's time-out, too."""
    kind, world = "cuda" if gpu_count() else "cpu", world_size()
    if world % (shard_size or 1):
        raise UsageError(f"--shard_size={shard_size}: must divide the number of ranks, {world}")
    if not shard_size or shard_size == world:
        return init_device_mesh(kind, (world,))
    ranks = torch.arange(world).view(-1, shard_size)
    timeout = timedelta(seconds=timeout_seconds)
    copies, _ = dist.new_subgroups_by_enumeration(ranks.t().tolist(), timeout=timeout)
    shards, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)
    return DeviceMesh.from_group([copies, shards], kind, mesh=ranks, mesh_dim_names=("copies", "shards"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on every rank (a collective when it is sharded)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
