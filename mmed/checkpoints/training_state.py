"""The state of a training run: RUN/checkpoints/step-N/, written and read by any number of ranks.

    step-N.tmp/  every rank: its shards -> fsync -> sha256      rank 0: state.json with every sha256
    step-N       rank 0 renames it      latest  names it        older ones are removed

Killed between any two of these, `latest` names a complete checkpoint. The shards are safetensors files,
written and read by torch.distributed.checkpoint, which reshards them.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from mmed.checkpoints.pretrained import replace_folder
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, write_error, write_json, writing

FILE_BYTES = 32 << 20   # a rank's part of a checkpoint is split into files of about this size, but into
MAX_FILES = 32          # no more than these: each is laid out in memory (3 times) before it is written
# one process
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


# ------------------------------------------------------------------------------------------------------------
# Writing


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of the run by name: trained parameters and both of AdamW's averages (zeros before the
    first step).
    """
    distributed.reshard(model)
    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((),
                                        dtype=torch.float32,
                                        device=parameter.device if parameter.is_cuda else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{key}.{name}"] = state[key]
    return tensors



def write_state(run: str | Path,
                tensors: dict[str, torch.Tensor],
                step: int,
                facts: dict,
                keep_last: int = 2) -> Path:
    """Write RUN/checkpoints/step-N and point `latest` at it; every rank calls. Of the older ones,
    keep_last - 1 stay.
    """
    writer = prepare(run, tensors, step)
    with unfinished_removed(run, step):
        dcp.save(tensors, storage_writer=writer)
        return publish(run, step, facts, keep_last)


def folder_of(run: str | Path, step: int) -> Path:
    return Path(run) / "checkpoints" / f"step-{step}"


def _building(run: str | Path, step: int) -> Path:
    return Path(run) / "checkpoints" / f"step-{step}.tmp"


@contextmanager
def unfinished_removed(run: str | Path, step: int) -> Iterator[None]:
    """If writing a checkpoint fails, remove the unfinished folder, and say in one line what went wrong."""
    building = _building(run, step)
    try:
        yield
    except (CheckpointException, UserError) as error:
        if distributed.is_main():
            shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        cause = next(iter(error.failures.values()))[0]
        raise write_error(cause, building) if isinstance(cause, OSError) else RuntimeError(
            str(error)) from error


def prepare(run: str | Path, tensors: dict[str, torch.Tensor], step: int) -> HuggingFaceStorageWriter:
    """Check values and free space, make the folder, and return the writer of this rank's shards; every rank
    calls.
    """
    final, building = folder_of(run, step), _building(run, step)
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    for name, tensor in tensors.items():
        if not torch.isfinite(distributed.local(tensor)).all():
            raise UserError(
                f"{final}: not written, {name} holds values that are not finite; the previous checkpoint is "
                f"complete"
            )
    if distributed.is_main():
        with writing(final.parent, need):
            final.parent.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(final.parent).free) < need * 1.05:
                raise UserError(
                    f"{final}: a checkpoint needs {need:,} bytes, but only {free:,} are free; make space and "
                    "continue with --resume=auto")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
    distributed.barrier()
    return HuggingFaceStorageWriter(str(building), _file_numbers(tensors, need), save_distributed=True)


def _file_numbers(tensors: dict[str, torch.Tensor], need: int) -> dict[str, int]:
    """Which of a rank's files (from 1, without gaps) each tensor goes to."""
    world = distributed.world_size()
    file_bytes = max(FILE_BYTES * world, need // MAX_FILES)
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        if size >= file_bytes:
            number, size = number + 1, 0
        numbers[name] = number
        size += tensor.numel() * tensor.element_size()
    return numbers


def publish(run: str | Path,
            step: int,
            facts: dict,
            keep_last: int,
            group: dist.ProcessGroup | None = None) -> Path:
    """Checksum the shards, give the folder its name, point `latest` at it, remove old ones; every rank calls.
    """
    final, building = folder_of(run, step), _building(run, step)
    own = {
        path.name: sha256_of(path)
        for path in building.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors")
    }
    hashes = {name: value for part in distributed.gather(own, group) for name, value in part.items()}
    if distributed.is_main():
        wait_for_files(building, hashes)
        with writing(final):
            write_json(building / "state.json", checksummed({"step": step, **facts, "sha256": hashes}))
            replace_folder(building, final)
            with atomic_write(final.parent / "latest") as file:
                file.write(final.name + "\n")
            _remove_old(run, step, keep_last)
    distributed.barrier(group)
    return final


def _remove_old(run: str | Path, step: int, keep_last: int) -> None:
    """Keep the newest `keep_last`; later steps than this one belong to a future that --resume=step-N gave up.
    """
    steps = {path: int(path.name[5:]) for path in checkpoints(run)}
    older = [path for path, number in steps.items() if number < step]
    for path in older[keep_last - 1:] + [path for path, number in steps.items() if number > step]:
        # renamed first, so that no incomplete folder has a checkpoint's name
        doomed = path.with_name(path.name + ".old.tmp")
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def wait_for_files(folder: Path, names: Iterable[str], seconds: float = 60.0) -> None:
    """Wait until all files are visible: a network file system may show late what another node has written."""
    deadline = time.monotonic() + seconds
    while missing := [name for name in names if not (folder / name).is_file()]:
        if time.monotonic() > deadline:
            raise UserError(
                f"{folder / missing[0]}: still missing after {seconds:g} s, although its rank wrote it; "
                f"is {folder.parent} on a file system that all nodes share?")
        time.sleep(0.2)
        os.listdir(folder)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksummed(state: dict) -> dict:
    """`state` with a sha256 of itself, so that damage to state.json is found like damage to a shard."""
    bare = {key: value for key, value in state.items() if key != "checksum"}
    return bare | {"checksum": hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


# ------------------------------------------------------------------------------------------------------------
# Reading


def checkpoints(run: str | Path) -> list[Path]:
    """All finished checkpoints of a run, the highest step first."""
    folder = Path(run) / "checkpoints"
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()),
                  key=lambda p: -int(p.name[5:]))


def latest_state(run: str | Path, name: str = "") -> Path | None:
    """The checkpoint called `name`, else the one that `latest` names; None for a run without one."""
    pointer = Path(run) / "checkpoints" / "latest"
    every = checkpoints(run)
    if not name and not pointer.is_file():  # killed between the first checkpoint's rename and `latest`
        return every[0] if every else None
    name = name or pointer.read_text(errors="replace").strip()
    if name not in [path.name for path in every]:
        good = newest_good(run)
        advice = (f"--resume={good.name} continues from there"
                  if good else "no checkpoint is complete; start again")
        raise UserError(f"{pointer.parent}: no checkpoint {name[:40]!r} there; {advice}")
    return pointer.parent / name


def damage(folder: Path, rank: int = 0, world: int = 1) -> tuple[dict | None, str]:
    """(state.json, "") of a complete checkpoint, else (None, what is wrong). Each of several ranks checks its
    share of files.
    """
    path = folder / "state.json"
    try:
        state = json.loads(path.read_bytes())
        hashes = state["sha256"]
        if checksummed(state)["checksum"] != state["checksum"]:
            return None, f"{path}: damaged (its checksum does not match)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return None, f"{path}: damaged ({type(error).__name__})"
    present = {p.name for p in folder.glob("*.safetensors")}
    if different := sorted(present ^ set(hashes)):
        return None, f"{folder / different[0]}: " + ("not part of this checkpoint"
                                                     if different[0] in present else "missing")
    for name in sorted(hashes)[rank::world]:
        if sha256_of(folder / name) != hashes[name]:
            return None, f"{folder / name}: damaged (its sha256 is not the one in state.json)"
    return state, ""


def newest_good(run: str | Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint that is intact."""
    return next((path for path in checkpoints(run) if path != but and damage(path)[0] is not None), None)


def _load(folder: Path, tensors: dict[str, torch.Tensor]) -> dict:
    """Fill `tensors` from a checkpoint whose files are intact; returns its state.json."""
    state, wrong = damage(folder, distributed.rank(), distributed.world_size())
    if state is None:
        good = newest_good(folder.parents[1], but=folder)
        advice = (f"--resume={good.name} continues from the one before, which is intact"
                  if good else "no other is intact; start again")
        raise UserError(f"{wrong}; {advice}")
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    return state


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Fill model and optimizer from a checkpoint, on any number of ranks; returns its state.json."""
    state = _load(folder, state_tensors(model, optimizer))
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(state["optimizer_step"])
    return state


def load_trained(folder: Path, model: nn.Module) -> dict:
    """Fill what trains in `model` from a checkpoint, without the optimizer's state (for export); returns its
    state.json.
    """
    return _load(folder,
                 {f"model.{name}": p.detach()
                  for name, p in model.named_parameters() if p.requires_grad})
