"""Ranks that do not exist, and the bytes of tensors while they live: for dry runs and simulations.

    with fake_ranks(64): ...        with StorageWatch(model.parameters()) as watch: ...; watch.peak
"""
from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmed.loss import ChunkedCrossEntropy
from mmed.training import distributed
from mmed.training.loader import Batch


@contextlib.contextmanager
def fake_ranks(count: int, shard_size: int) -> Iterator[None]:
    """This process is rank 0 of `count`, on a CPU whatever the machine has, with a GPU's chunks of logits."""
    settings = {"RANK": "0", "WORLD_SIZE": str(count), "CUDA_VISIBLE_DEVICES": ""}
    rows = {"cpu": ChunkedCrossEntropy.ROWS["cuda"]}
    with mock.patch.dict(os.environ, settings), mock.patch.dict(ChunkedCrossEntropy.ROWS, rows):
        dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
        try:
            mesh = distributed.make_mesh(shard_size, timeout_seconds=600)  # holds real tensors
            with mock.patch.object(distributed, "make_mesh", lambda *_: mesh), FakeTensorMode():
                yield
        finally:
            dist.destroy_process_group()


def fake_batch(rows: int, length: int, count: int) -> Batch:
    """`count` micro-batches of full rows."""
    ids = torch.zeros(rows, length, dtype=torch.long)
    micro = {"input_ids": ids, "labels": ids, "positions": torch.arange(length).repeat(rows, 1),
             "loss_positions": torch.arange(ids.numel())}
    return Batch([micro] * count, ids.numel() * count, ids.numel() * count)


class StorageWatch(TorchDispatchMode):
    """Every storage that an operator allocates inside the `with` is counted under `kind()` until it is freed.
    `weights` are known, but not counted."""

    def __init__(self, weights: Iterable[torch.Tensor]):
        super().__init__()
        self.storages: dict[int, tuple[str, int, weakref.ref]] = {}  # address -> kind, bytes, whose end frees
        self.held: Counter[str] = Counter()
        self.peak: dict[str, int] = {}  # `held` when its sum was largest
        for weight in weights:
            self.hold(weight, "weights")
        self.held.clear()

    def kind(self) -> str:
        return "all"

    def total(self) -> int:
        return sum(self.held.values())

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

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """`storage` was given `size` bytes, which no operator shows."""
        if storage._cdata in self.storages:
            kind, old, reference = self.storages[storage._cdata]
            self.storages[storage._cdata] = kind, size, reference
            self.held[kind] += size - old
            self.note_peak()

    def note_peak(self) -> None:
        if self.total() > sum(self.peak.values()):
            self.peak = {kind: size for kind, size in self.held.items() if size}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # DTensor makes it an operation on local tensors
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.storages:
                self.hold(tensor, self.kind())
        self.note_peak()
        return out
