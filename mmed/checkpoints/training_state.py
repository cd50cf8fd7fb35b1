"""The state of a training run: RUN/checkpoints/step-N/, written and read by any number of ranks.

    step-N.tmp/  every rank: its shards -> fsync -> sha256      rank 0: state.json with every sha256
    step-N       rank 0 renames it      latest  names it        older ones are removed

Killed between any two of these, `latest` names a complete checkpoint. The shards are safetensors files,
written and read by torch.distributed.checkpoint, which reshards them; `AsyncCheckpointer` writes them beside
the training, from a copy in host memory.
"""
from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.fsdp import FSDPModule

from mmed.checkpoints.pretrained import replace_folder
from mmed.config import TrainConfig
from mmed.training import distributed
from mmed.training.logging import Log
from mmed.training.run_folder import FolderLock
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, finite, write_error, write_json, writing
from mmed.utils.fingerprints import file_hash

FILE_BYTES = 32 << 20   # a rank's part of a checkpoint is split into files of about this size, but into
MAX_FILES = 32          # no more than these: each is laid out in memory (3 times) before it is written
WAIT_SECONDS = 60.0     # for files that another node has written
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


# ---------------------------------------------------------------------------------------------------- writing

def state_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of the run by name: trained parameters and AdamW's averages (zeros before step 1)."""
    for unit in model.modules():  # after a forward pass alone the root still holds gathered parameters, which
        if isinstance(unit, FSDPModule):  # are not the optimizer's
            unit.reshard()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {f"model.{name}": parameter.detach() for name, parameter in trained.items()}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors |= {f"optimizer.{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    return tensors


class Writer(HuggingFaceStorageWriter):
    """Every rank writes its shards to step-N.tmp and checksums them; rank 0 then publishes the folder."""

    def __init__(self, run: Path, tensors: dict[str, torch.Tensor], step: int, facts: dict, keep_last: int):
        self.final = run / "checkpoints" / f"step-{step}"
        self.building = self.final.with_name(self.final.name + ".tmp")
        self.state, self.keep_last = {"step": step, **facts}, keep_last
        for name, tensor in tensors.items():
            if not torch.isfinite(distributed.local(tensor)).all():
                raise UserError(f"{self.final}: not written, {name} holds values that are not finite; the "
                                "previous checkpoint is complete")
        ends = list(itertools.accumulate(tensor.nbytes for tensor in tensors.values()))
        self.need = ends[-1]
        if distributed.is_main():
            with writing(self.final.parent, self.need):
                shutil.rmtree(self.building, ignore_errors=True)
                self.building.mkdir(parents=True)
        distributed.barrier()
        file_bytes = max(FILE_BYTES * distributed.world_size(), self.need // MAX_FILES)
        places = {name: 1 + start // file_bytes for name, start in zip(tensors, [0, *ends])}
        super().__init__(str(self.building), places, save_distributed=True)

    def write_data(self, *arguments: Any) -> Any:
        """Write this rank's shards; the result, which rank 0 gets in `finish`, is their checksums."""
        super().write_data(*arguments).wait()
        shards = self.building.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors")
        checksums: torch.futures.Future = torch.futures.Future()
        checksums.set_result({path.name: file_hash(path) for path in shards})
        return checksums

    def finish(self, metadata: object, results: Any) -> None:
        """Name the finished folder, point `latest` at it, remove old ones."""
        hashes = {name: value for part in results for name, value in part.items()}
        wait_for_files(self.building, hashes)
        with writing(self.final):
            state = {**self.state, "sha256": hashes}
            write_json(self.building / "state.json", state | {"checksum": _checksum(state)})
            replace_folder(self.building, self.final)
            set_latest(self.final)
            remove_others(self.final, self.keep_last)


def set_latest(folder: Path) -> None:
    """Make this checkpoint the one that --resume=auto continues from."""
    with atomic_write(folder.parent / "latest") as file:
        file.write(folder.name + "\n")


def remove_others(folder: Path, keep_last: int) -> None:
    """Keep this checkpoint and `keep_last` - 1 older ones; later ones are what --resume=step-N gave up."""
    every = checkpoints(folder.parents[1])
    older = [path for path in every if _step(path) < _step(folder)][:keep_last - 1]
    for path in {*every} - {folder, *older}:
        # renamed first, so that no incomplete folder has a checkpoint's name
        doomed = path.with_name(path.name + ".old.tmp")
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def wait_for_files(folder: Path, names: Iterable[str]) -> None:
    """Wait until all files are visible: a network file system may show late what another node has written."""
    deadline = time.monotonic() + WAIT_SECONDS
    while missing := [name for name in names if not (folder / name).is_file()]:
        if time.monotonic() > deadline:
            raise UserError(f"{folder / missing[0]}: still missing after {WAIT_SECONDS:g} s, although its "
                            f"rank wrote it; is {folder.parent} on a file system that all nodes share?")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(folder)


def _checksum(state: dict) -> str:
    """sha256 of state.json's content, so that damage to it is found like damage to a shard."""
    return hashlib.sha256(json.dumps(finite(state), sort_keys=True).encode()).hexdigest()


class AsyncCheckpointer:
    """Writes one checkpoint at a time, in a thread: a second one waits for the first. Ranks meet in a group
    of their own, so that the thread's collectives never mix with those of the training."""

    def __init__(self, run: Path, facts: dict, lock: FolderLock | None, config: TrainConfig, saved: int):
        self.run, self.facts, self.lock, self.config, self.saved = run, facts, lock, config, saved
        self.group = distributed.host_group(config.rank_timeout_seconds) if config.async_save else None
        self.pending: tuple[Writer, Future] | None = None

    def save(self, model: nn.Module, optimizer: optim.Optimizer, step: int, log: Log) -> None:
        """Write the state after `step`, unless that state was just loaded or saved."""
        self.wait()
        if step == self.saved:
            return
        self.saved = step
        tensors = state_tensors(model, optimizer)
        done = int(next(iter(optimizer.state.values()))["step"])  # without the batches that were skipped
        facts = {"world_size": distributed.world_size(), "optimizer_step": done, **log.state_dict()}
        log.sync()
        writer = Writer(self.run, tensors, step, facts, self.config.keep_last)
        if self.config.async_save:
            future = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
            self.pending = writer, cast(Future, future)
        else:  # in this thread, without a copy
            with self._completed(writer):
                dcp.save(tensors, storage_writer=writer)

    def check(self) -> None:
        """Raise the error of the checkpoint being written, if it has failed; do not wait."""
        if self.pending is not None and self.pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint being written is complete; raises its error, if any."""
        if self.pending is not None:
            (writer, future), self.pending = self.pending, None
            with self._completed(writer):
                future.result()

    @contextlib.contextmanager
    def _completed(self, writer: Writer) -> Iterator[None]:
        """If a checkpoint cannot be written, remove it; the rank that failed reports why."""
        try:
            yield
        except CheckpointException as error:
            if distributed.is_main():
                shutil.rmtree(writer.building, ignore_errors=True)
            if distributed.rank() not in error.failures:
                raise dist.DistError(f"{writer.final}: not written by another rank") from None
            cause, stack = error.failures[distributed.rank()]
            if isinstance(cause, OSError):
                cause = write_error(cause, writer.building, writer.need)
            cause.add_note("".join(stack.format()))  # traceback in the writer thread
            raise cause from None
        if self.lock is not None and not self.lock.there():  # the state in memory may be the only copy left
            write_json(self.run / "run.json", self.facts)
            raise UserError(f"{self.run}: the folder was removed or renamed while the run was writing to it. "
                            f"A new one holds the state after step {self.saved}; restore metrics.jsonl and "
                            "older checkpoints if you need them, and continue with --resume=auto")


# ---------------------------------------------------------------------------------------------------- reading

def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def checkpoints(run: str | Path) -> list[Path]:
    """All finished checkpoints of a run, the highest step first."""
    folders = [path for path in (Path(run) / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(folders, key=_step, reverse=True)


def latest_state(run: str | Path, name: str = "") -> Path | None:
    """The checkpoint called `name`, else the one that `latest` names; None for a run without one."""
    pointer, every = Path(run) / "checkpoints" / "latest", checkpoints(run)
    if not name and not pointer.is_file():  # killed between the first checkpoint's rename and `latest`
        return every[0] if every else None
    name = name or pointer.read_text(errors="replace").strip()
    if name not in [path.name for path in every]:
        raise UserError(f"{pointer.parent}: no checkpoint {name[:40]!r} there; {_advice(run)}")
    return pointer.parent / name


def _advice(run: Path | str, but: Path | None = None) -> str:
    """Advice for a missing checkpoint: the newest complete one. Its files are not read, because the other
    ranks wait in a collective."""
    good = next((path for path in checkpoints(run) if path != but and damage(path, world=0)[0]), None)
    if good is None:
        return "no other is complete; start again"
    return f"--resume={good.name} continues from a complete one"


def damage(folder: Path, rank: int = 0, world: int = 1) -> tuple[dict | None, str]:
    """Return (state.json, "") of a complete checkpoint, else (None, fault); each rank reads its share of the
    files (world 0: none)."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_bytes())
        hashes, present = state["sha256"], {path.name for path in folder.glob("*.safetensors")}
        if _checksum({key: value for key, value in state.items() if key != "checksum"}) != state["checksum"]:
            raise ValueError("its checksum does not match")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{path}: damaged ({type(error).__name__}: {error})"
    if different := sorted(present ^ set(hashes)):
        return None, f"{folder / different[0]}: missing, or not part of this checkpoint"
    for name in sorted(hashes)[rank::world] if world else ():
        if file_hash(folder / name) != hashes[name]:
            return None, f"{folder / name}: damaged (its sha256 is not the one in state.json)"
    return state, ""


def load_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> dict:
    """Fill `tensors` from a checkpoint whose files are intact; returns its state.json."""
    state, wrong = damage(folder, distributed.rank(), distributed.world_size())
    if state is None:
        raise UserError(f"{wrong}; {_advice(folder.parents[1], but=folder)}")
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return state


def load_state(folder: Path, model: nn.Module, optimizer: optim.Optimizer) -> dict:
    """Fill model and optimizer from a checkpoint, on any number of ranks; returns its state.json."""
    state = load_tensors(folder, state_tensors(model, optimizer))
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(state["optimizer_step"])
    return state
