"""Which rank am I, how do ranks start and stop, and how is a model cut over them.

One process without torchrun is rank 0 of 1 and touches no process group. Under torchrun (its environment variables RANK,
WORLD_SIZE, LOCAL_RANK) a group is started: nccl on GPUs, gloo on CPUs. Sharding is FSDP2 (`fully_shard`, Zhao et al. 2023):
each rank keeps 1 / world of every matrix, gathers a block's weights just before it computes the block, and reduces its
gradients straight to the ranks that own them.
"""
from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from mmed.model import Transformer
from mmed.utils.errors import UsageError

WATCH_SECONDS = 0.5   # between two looks whether the launcher is still there
GRACE_SECONDS = 30    # from SIGTERM to SIGKILL, as torchrun itself does it

def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    return rank() == 0


def start(timeout_seconds: int = 600) -> torch.device:
    """Join the other ranks, if there are any; returns the device of this rank."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        if local >= gpus:
            raise UsageError(f"--nproc_per_node starts more processes than there are GPUs: rank {rank()} wants GPU {local} of {gpus}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size() > 1 and not dist.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        dist.init_process_group("nccl" if gpus else "gloo", timeout=timedelta(seconds=timeout_seconds),
                                **({"device_id": device} if gpus else {}))
    return device


def end_with_launcher() -> None:
    """End soon after the process that started this one is gone: a torchrun that was killed outright (SIGKILL, out of memory) tells its
    ranks nothing, and they would go on and keep their files locked. First SIGTERM, which training takes as a wish to save; then SIGKILL."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def device_called(name: str) -> str:
    """The device of this name ("auto": the GPU, if there is one), or one line that says which there are."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = f"cpu, cuda, {', '.join(f'cuda:{number}' for number in range(gpus))}" if gpus else "cpu; this torch finds no GPU"
        raise UsageError(f"--device {name}: no such device here (there is {there})") from None
    return name


def same_bits() -> None:
    """Only kernels that give the same bits every time, on a GPU, too; before CUDA is first used."""
    import torch._inductor.config as inductor

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a safety net for programs that read what they never wrote
    torch.backends.cudnn.benchmark = False
    if hasattr(inductor, "deterministic"):  # compiled kernels are chosen by rule, not by timing
        inductor.deterministic = True


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier(group: dist.ProcessGroup | None = None) -> None:
    if dist.is_initialized():
        dist.barrier(group)


def host_group(timeout_seconds: int = 600) -> dist.ProcessGroup | None:
    """A second group of all ranks, over gloo: for what goes on beside the training. None for one process."""
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)) if dist.is_initialized() else None


def gather(value: dict, group: dist.ProcessGroup | None = None) -> list[dict]:
    """The value of every rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Sum of each value over all ranks, in fp64."""
    return device_sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist() if dist.is_initialized() else values


def device_sum(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed up over all ranks in place; on a GPU the host does not wait for it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def shard(model: Transformer, precision: str, shard_size: int = 0) -> Transformer:
    """Cut `model` over the ranks: one FSDP unit a block, one for the rest (embedding, last norm, head).

    Weights stay in the dtype they have (fp32 master weights); with precision "bf16" they are gathered and used in bf16 and
    gradients are reduced in fp32.  # MMedLM: FSDP full_shard auto_wrap on the decoder layer, bf16 (pretrain/*.sh)

    With a `shard_size` the ranks form groups of that many, each with a copy of the model cut among its members: gathering
    stays within a group (a node), and only gradients, already cut by shard_size, cross between them.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    world = world_size()
    if shard_size < 0 or world % (shard_size or 1):
        raise UsageError(f"--shard_size={shard_size}: must divide the number of ranks, {world}")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if precision == "bf16" else MixedPrecisionPolicy()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if shard_size and shard_size < world:
        mesh = init_device_mesh(kind, (world // shard_size, shard_size), mesh_dim_names=("copies", "shards"))
    else:
        mesh = init_device_mesh(kind, (world,))
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # The next block's weights travel while this one computes; FSDP2 does it by itself, but only once the host has come to the next
    # block, which is late when blocks are short. Backward it goes in reverse order, likewise one ahead.
    for now, after in itertools.pairwise(model.layers):
        now.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([now])
    return model


def reshard(model: torch.nn.Module) -> None:
    """Back to this rank's part of every weight. A forward pass leaves the last unit (embedding, norm, head) whole, under parameters
    that the optimizer has never seen: until a backward pass, or this."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on every rank (a collective when it is sharded)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
