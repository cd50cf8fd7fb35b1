"""Runs one real step on simulated ranks: memory and traffic of rank 0, and where the host would wait.

    python mmed/train.py pretrain_mmedlm2 --model=shape:internlm2-7b --simulate_ranks=64 --shard_size=8

The model, FSDP2, the loss and the optimizer are those of a run, but its tensors are fake (shapes without
memory) and its process group answers at once: no data and no GPU are needed. Blocks are not compiled.
"""
from __future__ import annotations

import contextlib
import os
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmed.config import TrainConfig
from mmed.loss import ChunkedCrossEntropy
from mmed.model import Transformer
from mmed.training import distributed, optimizer
from mmed.training.loader import Batch, BatchSizes, full_rows
from mmed.utils.errors import UserError

# What FSDP does in these methods -> the kind of the memory that they allocate.
FSDP_WORK = {"unshard": "gathered weights", "wait_for_unshard": "gathered weights",
             "post_backward": "gradients"}
TRAFFIC = {"c10d::_allgather_base_": "gathered", "c10d::_reduce_scatter_base_": "reduced"}


@contextlib.contextmanager
def fake_ranks(count: int, shard_size: int, kind: str) -> Iterator[None]:
    """Act as rank 0 of `count` on a CPU, even if there is a GPU; logit chunks are those of device `kind`."""
    with (mock.patch.dict(os.environ, RANK="0", WORLD_SIZE=str(count), CUDA_VISIBLE_DEVICES=""),
          mock.patch.dict(ChunkedCrossEntropy.ROWS, cpu=ChunkedCrossEntropy.ROWS[kind]),
          mock.patch.object(distributed, "gpu_count", lambda: 0), contextlib.ExitStack() as stack):
        if count > 1:
            distributed.stop()  # a dry run under torchrun
            dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
            stack.callback(dist.destroy_process_group)
            mesh = distributed.make_mesh(shard_size, timeout_seconds=600)  # holds real tensors
            stack.enter_context(mock.patch.object(distributed, "make_mesh", lambda *_: mesh))
        stack.enter_context(FakeTensorMode())
        yield


class Watch(TorchDispatchMode):
    """Counts the bytes of every storage until it is freed, by what the step was doing when an operator made
    it (`held`; at the largest sum: `peak`), and what collectives bring to this rank (`traffic`)."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model
        self.storages: dict[int, tuple[str, int, weakref.ref]] = {}  # address -> kind, bytes, whose end frees
        self.held: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.work: list[str] = []  # what the step is doing, innermost last
        self.traffic: Counter[str] = Counter()
        model.norm.register_forward_hook(lambda *_: self.work.append("loss"))  # up to the end of `forward`
        model.register_forward_hook(lambda *_: self.work.clear())
        for parameter in model.parameters():
            self.hold(parameter, "weights")
            if parameter.requires_grad:  # of one rank; FSDP's gradients are seen in `fsdp_noted`
                parameter.register_post_accumulate_grad_hook(lambda p: self.hold(p.grad, "gradients"))

    def kind(self) -> str:
        if self.work:
            return self.work[-1]
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        return "temporaries" if in_backward else "activations"  # also those that a block computes again

    def hold(self, tensor: torch.Tensor, kind: str) -> None:
        """Count the storage of `tensor` under `kind` from now on."""
        storage = distributed.local(tensor).untyped_storage()
        address = storage._cdata
        self.free(address)
        self.storages[address] = kind, storage.nbytes(), weakref.ref(storage, lambda _: self.free(address))
        self.held[kind] += storage.nbytes()

    def free(self, address: int) -> None:
        kind, size, _ = self.storages.pop(address, ("", 0, None))
        self.held[kind] -= size

    def note_peak(self) -> None:
        if self.held.total() > sum(self.peak.values()):
            self.peak = {kind: size for kind, size in self.held.items() if size}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # DTensor makes it an operation on local tensors
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.storages:
                self.hold(tensor, self.kind())
        self.note_peak()
        if func.namespace == "c10d":  # what a ring brings to each member of the group
            ranks = next(dist.ProcessGroup.unbox(x).size() for x in args if isinstance(x, torch.ScriptObject))
            whole = max(x.nbytes for x in tree_leaves(args) if isinstance(x, torch.Tensor))
            passes = 1 if func.name() in TRAFFIC else 2  # an all-reduce scatters, then gathers
            self.traffic[TRAFFIC.get(func.name(), "between copies")] += passes * whole * (ranks - 1) // ranks
        return out

    @contextlib.contextmanager
    def fsdp_noted(self) -> Iterator[None]:
        """Within: FSDP's allocations have their kinds; its resizing of storages, no operator, is counted."""
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage._cdata in self.storages:
                kind, old, reference = self.storages[storage._cdata]
                self.storages[storage._cdata] = kind, size, reference
                self.held[kind] += size - old
                self.note_peak()

        def noted(method: Callable, kind: str) -> Callable:
            def run(group: FSDPParamGroup, *inputs: Any) -> None:
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        self.hold(parameter.grad, "gradients")
                self.work.append(kind)
                method(group, *inputs)
                self.work.pop()
            return run

        methods = {name: noted(getattr(FSDPParamGroup, name), kind) for name, kind in FSDP_WORK.items()}
        with mock.patch.object(torch.UntypedStorage, "resize_", resized), \
                mock.patch.multiple(FSDPParamGroup, **methods):
            yield


def simulate(config: TrainConfig, build: Callable[[], Transformer], forward_backward: Callable,
             sizes: BatchSizes | None = None, kind: str = "cuda") -> tuple[dict[str, int], dict[str, int]]:
    """Run one step; return (kind -> peak bytes on rank 0, kind -> bytes that rank 0 receives).

    `build` returns the sharded model, `forward_backward` comes from train.py, and `sizes` are those of the
    micro-batches (None: full rows). Two represent all: only the last one reduces gradients between copies.
    """
    ranks = config.simulate_ranks or distributed.world_size()
    sizes = sizes or full_rows(config, ranks)
    before: list[Counter] = []  # traffic before each micro-batch
    with fake_ranks(ranks, config.shard_size, kind):
        model = build().train()
        adamw = optimizer.make_optimizer(model, config)
        watch = Watch(model)
        ids = torch.zeros(sizes.rows, sizes.length, dtype=torch.long)
        micro = {"input_ids": ids, "labels": ids, "positions": torch.arange(sizes.length).expand_as(ids),
                 "loss_positions": torch.arange(sizes.loss_positions)}
        batch = Batch([micro] * min(sizes.micro_batches, 2), 0, 0, 0)
        try:
            with watch, watch.fsdp_noted():
                loss = forward_backward(model, batch, 1.0, distributed.autocast(config.precision, "cpu"),
                                        check_stop=lambda: before.append(watch.traffic.copy()))
                memory = dict(watch.peak)
                optimizer.update(model, adamw, config.max_grad_norm, loss.double())
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.filename
                     and frame.name != "__torch_dispatch__"][-1]
            where = f"{place.filename}:{place.lineno}: {place.line}"
            raise UserError(f"the host waits for the device at {where}") from error
        states = [x for state in adamw.state.values() for x in state.values()]
        memory["optimizer state"] = sum(distributed.local(x).nbytes for x in states)
    for name, size in before[-1].items():  # of the first of two
        watch.traffic[name] += size * (sizes.micro_batches - 2)
    return memory, watch.traffic
