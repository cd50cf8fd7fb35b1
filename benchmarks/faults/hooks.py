"""Hooks into file operations and functions of a forked run, and what two equal runs must share."""
from __future__ import annotations

import builtins
import importlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

CLOCK = {"tokens_per_second", "targets_per_second", "memory_bytes", "mfu"}


def call_before(module: str, name: str, hook: Callable) -> None:
    """Make module.name call `hook` with its arguments first. Use it in a forked process only."""
    holder = importlib.import_module(module)
    original = getattr(holder, name)

    def hooked(*arguments, **keywords):
        hook(*arguments, **keywords)
        return original(*arguments, **keywords)

    setattr(holder, name, hooked)


class HalvedFile:
    """A file whose every write is done in two halves, with `act` between them."""

    def __init__(self, file, act: Callable[[], None]):
        self.__dict__.update(file=file, act=act)

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.act()
        self.file.write(data[half:])
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __iter__(self):
        return iter(self.file)


def before_file_operations(folder: str, act: Callable[[], None]) -> None:
    """Call `act` before each open for writing, second half of a write, fsync, rename, removal in `folder`."""
    def wrap_open(original):
        def opened(path, mode="r", *arguments, **keywords):
            writing = folder in str(path) and set(mode) & set("wa+x")
            if writing:
                act()
            file = original(path, mode, *arguments, **keywords)
            return HalvedFile(file, act) if writing else file
        return opened

    def wrap(original):
        def called(path, *arguments, **keywords):
            if folder in str(path) or keywords.get("dir_fd") is not None or isinstance(path, int):
                act()
            return original(path, *arguments, **keywords)
        return called

    builtins.open, io.open = wrap_open(builtins.open), wrap_open(io.open)
    for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir", "fsync"):
        setattr(os, name, wrap(getattr(os, name)))


def outcome(run: Path) -> dict[str, object]:
    """Everything two equal runs must share to the bit: checkpoint, exported model, log without its clock."""
    folder = run / "checkpoints" / f"step-{saved_step(run)}"
    state = json.loads((folder / "state.json").read_text())
    result: dict[str, object] = {"state": {key: state[key] for key in state.keys() - {"sha256", "checksum"}}}
    for saved in (folder, run / "model", run / "adapter"):
        for path in sorted(saved.glob("*.safetensors")):
            for name, tensor in load_file(path).items():  # the file's own metadata has no fixed order
                bits = tensor.flatten().view(torch.uint8).numpy().tobytes()
                result[f"{path.parent.name}/{path.name}: {name}"] = tensor.dtype, tensor.shape, bits
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    result["log"] = [{key: line[key] for key in line if key not in CLOCK} for line in lines]
    result["files"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    return result


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, whose last line may be incomplete; 0 without one."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved_step(run: Path) -> int:
    """The step of the latest checkpoint, 0 without one."""
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.is_file() else 0
