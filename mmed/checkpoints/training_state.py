"""The state of a training run: RUN/checkpoints/step-N/, written and read by any number of ranks.

    save_state / load_state  <-> RUN/checkpoints/step-N/: torch.distributed.checkpoint over safetensors, resharding

A checkpoint gets its name when it is whole, and every file in it has its sha256 in state.json.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from mmed.checkpoints.pretrained import replace_folder
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, write_error, write_json, writing

FILE_BYTES = 32 << 20            # a rank's part of a checkpoint is cut into files of about this size, but into no more
FILES = 32                       # than so many: each is laid out in memory (3 times) before it is written


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of the run by name: trained parameters, and both moments of each (made as zeros before the first step)."""
    distributed.reshard(model)
    tensors, fresh = {}, not optimizer.state
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        assert state or fresh, f"{name}: the optimizer knows nothing of this parameter"
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if parameter.is_cuda else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{key}.{name}"] = state[key]
    return tensors


def save_state(run: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, facts: dict, keep_last: int = 2) -> Path:
    """Write RUN/checkpoints/step-N and point `latest` at it; every rank calls. Older ones beyond `keep_last` go afterwards."""
    return write_state(run, state_tensors(model, optimizer), step, facts, keep_last)


def write_state(run: str | Path, tensors: dict[str, torch.Tensor], step: int, facts: dict, keep_last: int = 2, group=None) -> Path:
    """`save_state` of tensors at hand (mmed/checkpoints/async_save.py: a copy); ranks meet in `group`.

        step-N.tmp/  every rank: its shards -> fsync -> sha256     rank 0: state.json with all sha256
        step-N       rank 0: renamed        latest  names it       older ones go: renamed first, so that no half one has a name

    Killed between any two of these, `latest` names a checkpoint that is whole (tests/training/test_faults.py).
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    folder = Path(run) / "checkpoints"
    building, final = folder / f"step-{step}.tmp", folder / f"step-{step}"
    for name, tensor in tensors.items():
        if not torch.isfinite(distributed.local(tensor)).all():
            raise UserError(f"{final}: not written, {name} holds values that are not finite; the checkpoint before is whole")
    need = sum(t.numel() * t.element_size() for t in tensors.values())
    world = distributed.world_size()
    try:
        if distributed.is_main():
            with writing(folder, need):
                folder.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(folder).free
                if free < need * 1.05:
                    raise UserError(f"{final}: a checkpoint needs {need:,} bytes, {free:,} are free; make room and go on with --resume=auto")
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
        distributed.barrier(group)
        files, size = {}, 0
        for name, tensor in tensors.items():
            files[name] = size // (max(FILE_BYTES, need // world // FILES) * world)
            size += tensor.numel() * tensor.element_size()
        files = {name: sorted(set(files.values())).index(number) + 1 for name, number in files.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "torch.distributed is uninitialized": so it is, in one process
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(building), files, save_distributed=True), process_group=group)
        own = {path.name: sha256_of(path) for path in sorted(building.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors"))}
        hashes = {name: value for part in distributed.gather(own, group) for name, value in part.items()}
        if distributed.is_main():
            wait_for_files(building, hashes)
            with writing(final):
                write_json(building / "state.json", sealed({"step": step, **facts, "sha256": hashes}))
                replace_folder(building, final)
                with atomic_write(folder / "latest") as file:
                    file.write(final.name + "\n")
                older = [path for path in checkpoints(run) if int(path.name[5:]) < step]
                newer = [path for path in checkpoints(run) if int(path.name[5:]) > step]  # of a future that --resume=step-N gave up
                for path in older[keep_last - 1:] + newer:
                    doomed = path.with_name(path.name + ".old.tmp")
                    os.replace(path, doomed)
                    shutil.rmtree(doomed, ignore_errors=True)
    except (CheckpointException, UserError) as error:
        if distributed.is_main():
            shutil.rmtree(building, ignore_errors=True)  # the half of it would only fill the disk
        if isinstance(error, CheckpointException):
            cause = next(iter(error.failures.values()))[0]
            raise write_error(cause, building, need) if isinstance(cause, OSError) else RuntimeError(str(error)) from error
        raise
    distributed.barrier(group)
    return final


def wait_for_files(folder: Path, names: Iterable[str], seconds: float = 60.0) -> None:
    """Until all files are to be seen here: on a network file system what another node has written may show late."""
    deadline = time.monotonic() + seconds
    while missing := [name for name in names if not (folder / name).is_file()]:
        if time.monotonic() > deadline:
            raise UserError(f"{folder / missing[0]}: not to be seen after {seconds:g} s, though its rank has written it; is {folder.parent} on a file "
                            "system that all nodes share?")
        time.sleep(0.2)
        os.listdir(folder)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(state: dict) -> dict:
    """`state` with the sha256 of itself, so that a flipped bit in state.json is found like one in a shard."""
    bare = {key: value for key, value in state.items() if key != "seal"}
    return bare | {"seal": hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def checkpoints(run: str | Path) -> list[Path]:
    """All finished checkpoints of a run, the newest step first (by number, not by the clock)."""
    folder = Path(run) / "checkpoints"
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()), key=lambda p: -int(p.name[5:]))


def latest_state(run: str | Path, name: str = "") -> Path | None:
    """The checkpoint called `name`, else the one that `latest` names, or None for a run without one."""
    pointer = Path(run) / "checkpoints" / "latest"
    every = checkpoints(run)
    if not name:
        if not pointer.is_file():  # a kill between a first checkpoint's own name and `latest`, or a file that got lost
            return every[0] if every else None
        name = pointer.read_text(errors="replace").strip()
    if name not in [path.name for path in every]:
        hint = f"--resume={good.name} goes on from there" if (good := newest_good(run)) else "there is no whole one, start anew"
        raise UserError(f"{pointer if pointer.is_file() else pointer.parent}: {name[:40]!r} is not a checkpoint there; {hint}")
    return pointer.parent / name


def damage(folder: Path, rank: int = 0, world: int = 1) -> tuple[dict | None, str]:
    """(state.json, "") of a whole checkpoint, else (None, what is wrong). Several ranks look at a part of the files each."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_bytes())
        if sealed(state)["seal"] != state["seal"]:
            return None, f"{path}: damaged (its seal does not fit)"
        hashes = state["sha256"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return None, f"{path}: damaged ({type(error).__name__})"
    there = {p.name for p in folder.glob("*.safetensors")}
    if strange := sorted(there ^ set(hashes)):
        return None, f"{folder / strange[0]}: " + ("not part of this checkpoint" if strange[0] in there else "missing")
    for name in sorted(hashes)[rank::world]:
        if sha256_of(folder / name) != hashes[name]:
            return None, f"{folder / name}: damaged (its sha256 is not the one in state.json)"
    return state, ""


def newest_good(run: str | Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint that is whole to the last bit."""
    return next((path for path in checkpoints(run) if path != but and damage(path)[0] is not None), None)


def _checked_state(folder: Path) -> dict:
    """A checkpoint's state.json, once every file of it has the sha256 written there."""
    state, wrong = damage(folder, distributed.rank(), distributed.world_size())
    if state is None:
        good = newest_good(folder.parents[1], but=folder)
        raise UserError(f"{wrong}; " + (f"--resume={good.name} goes on from the one before it, which is whole" if good else "no other is whole, start anew"))
    return state


def _fill(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Fill model and optimizer from a checkpoint, on any number of ranks; returns its state.json."""
    state = _checked_state(folder)
    _fill(state_tensors(model, optimizer), folder)
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(state["optimizer_step"])
    return state


def load_trained(folder: Path, model: nn.Module) -> dict:
    """Fill what trains in `model` from a checkpoint, without the optimizer's moments (for export); returns its state.json."""
    state = _checked_state(folder)
    _fill({f"model.{name}": parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}, folder)
    return state
