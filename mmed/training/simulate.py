"""One real step on ranks that do not exist: memory and traffic of rank 0, and where the host would wait.

    python mmed/train.py pretrain_mmedlm2 --model=shape:internlm2-7b --simulate_ranks=64 --shard_size=8

The model, FSDP2, the loss and the optimizer are those of a run, but its tensors are fake (shapes without
memory) and its process group answers at once: no data and no GPU are needed. `--dry_run` computes the same
memory by a formula. What fake tensors cannot show is in memory_estimate.reserve; blocks are not compiled,
rows are full.
"""
from __future__ import annotations

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.utils._pytree import tree_leaves

from mmed.config import TrainConfig
from mmed.model import ModelConfig, Transformer
from mmed.training import distributed, memory_estimate, optimizer
from mmed.training.fake import StorageWatch, fake_batch, fake_ranks
from mmed.utils.errors import UsageError, UserError

# What FSDP does in these methods -> the kind of the memory that they allocate.
FSDP_WORK = {"unshard": "gathered weights", "wait_for_unshard": "gathered weights",
             "post_backward": "gradients"}
TRAFFIC = {"c10d::_allgather_base_": "gathered", "c10d::_reduce_scatter_base_": "reduced"}


class Watch(StorageWatch):
    """Also knows what a step is doing when it allocates, and what collectives bring to this rank."""

    def __init__(self, model: Transformer):
        super().__init__(())
        self.model = model
        self.work: list[str] = []  # what the step is doing, innermost last
        self.traffic: Counter[str] = Counter()
        model.norm.register_forward_hook(lambda *_: self.work.append("loss"))  # up to the end of `forward`
        model.register_forward_hook(lambda *_: self.work.clear())
        for parameter in model.parameters():
            self.hold(parameter, "weights")

    def kind(self) -> str:
        if self.work:
            return self.work[-1]
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()
        return "temporaries" if in_backward else "activations"  # also those that a block computes again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "c10d" and out is not NotImplemented:
            self.count_traffic(func.name(), args)
        return out

    def count_traffic(self, name: str, args: Any) -> None:
        """Add what a ring brings to each member of a group."""
        size = next(dist.ProcessGroup.unbox(x).size() for x in args if isinstance(x, torch.ScriptObject))
        whole = max(x.nbytes for x in tree_leaves(args) if isinstance(x, torch.Tensor))
        passes = 1 if name in TRAFFIC else 2  # an all-reduce scatters, then gathers
        self.traffic[TRAFFIC.get(name, "between copies")] += passes * whole * (size - 1) // size

    @contextlib.contextmanager
    def fsdp_noted(self) -> Iterator[None]:
        """Within: FSDP's allocations have their kinds, and its resizing of storages is seen."""
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            self.resized(storage, size)

        def noted(method: Callable, kind: str) -> Callable:
            def run(group: FSDPParamGroup, *inputs: Any) -> Any:
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        self.hold(parameter.grad, "gradients")
                self.work.append(kind)
                try:
                    return method(group, *inputs)
                finally:
                    self.work.pop()
            return run

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(torch.UntypedStorage, "resize_", resized))
            for name, kind in FSDP_WORK.items():
                stack.enter_context(
                    mock.patch.object(FSDPParamGroup, name, noted(getattr(FSDPParamGroup, name), kind)))
            yield


def simulate(config: TrainConfig, build: Callable[[], Transformer],
             forward_backward: Callable) -> tuple[dict[str, int], dict[str, int]]:
    """Run one step; returns (kind -> bytes that rank 0 holds at the peak, kind -> bytes that it receives).

    `build` gives the sharded model without memory, `forward_backward` is that of train.py. Two micro-batches
    stand for all: the last one reduces between copies, the others do not.
    """
    if config.simulate_ranks < 2:
        raise UsageError(f"--simulate_ranks={config.simulate_ranks}: expected at least 2")
    sizes = memory_estimate.full_rows(config, config.simulate_ranks)
    before: list[Counter] = []  # traffic before each micro-batch
    with fake_ranks(config.simulate_ranks, config.shard_size):
        model = build().to_empty(device="cpu").train()
        adamw = optimizer.make_optimizer(model, config)
        watch = Watch(model)
        batch = fake_batch(sizes.rows, sizes.length, min(sizes.micro_batches, 2))
        try:
            with watch, watch.fsdp_noted():
                loss = forward_backward(model, batch, 1.0, contextlib.nullcontext,
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
    for kind, size in before[-1].items():  # of the first of two
        watch.traffic[kind] += size * (sizes.micro_batches - 2)
    return memory, watch.traffic


def show(config: TrainConfig, shape: ModelConfig, memory: dict[str, int], traffic: dict[str, int]) -> None:
    """Print a simulation beside what `--dry_run` computes."""
    predicted = memory_estimate.training_memory(shape, config, config.simulate_ranks)
    total, expected = sum(memory.values()), sum(predicted.values())
    print(f"{'memory per rank, GB':24}{'simulated':>10}{'dry run':>10}")
    for kind in sorted(memory.keys() | predicted.keys()):
        print(f"  {kind:22}{memory.get(kind, 0) / 1e9:10.3f}{predicted.get(kind, 0) / 1e9:10.3f}")
    print(f"  {'sum':22}{total / 1e9:10.3f}{expected / 1e9:10.3f}   dry run / simulated "
          f"{expected / total:.3f}")
    print(f"  {'with the reserve':22}{(total + memory_estimate.reserve(total)) / 1e9:10.3f}"
          f"{(expected + memory_estimate.reserve(expected)) / 1e9:10.3f}")
    print("received per rank and optimizer step, GB")
    print(*(f"  {kind:22}{size / 1e9:10.3f}" for kind, size in traffic.items()), sep="\n")
    print("host waits                none", flush=True)
