"""Training runs that start in a tenth of a second, to be killed by the hundred.

This process imports torch and the package once, and forks every rank of every run from itself. It must not compute with autograd
itself: what forks after that has dead threads. A rank is what `python mmed/train.py ARGUMENTS` is under torchrun's variables.

    life = Life(arguments, ranks=2)      ranks are running
    life.wait(seconds)                   exit codes, or None while one still runs
    life.kill()                          SIGKILL to all; life.kill(1) to rank 1
"""
from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def warm() -> None:
    """Import what a run imports."""
    import torch
    import torch.distributed.checkpoint.hf_storage
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import mmed.checkpoints.async_save
    import mmed.checkpoints.pretrained
    import mmed.lora
    import mmed.tokenizer
    import mmed.train
    import mmed.training.memory_estimate
    import mmed.training.optimizer
    import mmed.training.validation  # noqa: F401

    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Life:
    """One start of a run, with all its ranks."""

    def __init__(self, arguments: list[str], ranks: int = 1, before: Callable[[int, Callable[[], None]], None] | None = None,
                 log: Path | None = None, main: Callable[[], int] | None = None):
        self.log = log or Path(os.devnull)
        self.begun, self.codes = time.monotonic(), [None] * ranks
        self.marks, mark = os.pipe()
        os.set_blocking(self.marks, False)
        port = free_port()
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                self._child(arguments, rank, ranks, port, before, mark, main)
            self.pids.append(pid)
        os.close(mark)

    def _child(self, arguments, rank, ranks, port, before, mark, main) -> None:
        code = 70
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0, closefd=False), write_through=True) for n in (1, 2))
            sys.argv = ["train.py", *arguments]
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name, None)
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                               "MASTER_PORT": str(port)}
            from mmed import train
            from mmed.utils.errors import main_guard
            if before is not None:
                before(rank, lambda: os.write(mark, b"x"))
            main_guard(main or train.main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            import threading
            threading._shutdown()  # as the interpreter does at its end: a checkpoint on its way becomes whole
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)

    def marked(self, seconds: float) -> bool:
        """Whether a rank has called the `mark` that `before` was given."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if os.read(self.marks, 1):
                    return True
                return False  # every rank has ended
            except BlockingIOError:
                time.sleep(0.005)
        return False

    def poll(self) -> bool:
        """Collect ranks that have ended; True when none is left."""
        for rank, pid in enumerate(self.pids):
            if self.codes[rank] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return None not in self.codes

    def wait(self, seconds: float) -> list[int] | None:
        deadline = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
        self.close()
        return self.codes

    def send(self, number: int, rank: int | None = None) -> None:
        for r, pid in enumerate(self.pids):
            if self.codes[r] is None and rank in (None, r):
                os.kill(pid, number)

    def kill(self, rank: int | None = None) -> None:
        self.send(signal.SIGKILL, rank)
        if rank is None:
            self.wait(30)

    def close(self) -> None:
        if self.marks >= 0:
            os.close(self.marks)
            self.marks = -1

    def text(self) -> str:
        """What the ranks have said, without the bars."""
        text = self.log.read_text(errors="replace").replace("\r", "\n") if self.log.is_file() else ""
        return "\n".join(line for line in text.splitlines() if "step/s" not in line)


def patched(module: str, name: str, hook: Callable) -> None:
    """Replace module.name by one that calls `hook` first; in a child only."""
    import importlib

    holder = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        holder = getattr(holder, part)
    inner = getattr(holder, name.split(".")[-1])

    def outer(*arguments, **keywords):
        hook(*arguments, **keywords)
        return inner(*arguments, **keywords)

    setattr(holder, name.split(".")[-1], outer)


def file_operations(under: str, act: Callable[[str, str], None]) -> None:
    """Call act(what, path) before every open for writing, write, fsync, rename and removal below `under`; a write is first
    done by half. In a child only."""
    import builtins

    def ours(path) -> bool:
        return under in str(path)

    class Halved:
        """A file whose writes come in two halves, with the hook between them."""

        def __init__(self, file, path):
            self.__dict__.update(file=file, path=path)

        def write(self, data):
            size = len(data)
            self.file.write(data[:size // 2])
            self.file.flush()
            act("write", self.path)
            self.file.write(data[size // 2:])
            return size

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __iter__(self):
            return iter(self.file)

    def opened(original):
        def open_(path, mode="r", *arguments, **keywords):
            writing = ours(path) and set(mode) & set("wa+x")
            if writing:
                act("open", str(path))
            file = original(path, mode, *arguments, **keywords)
            return Halved(file, str(path)) if writing else file
        return open_

    builtins.open = opened(builtins.open)
    io.open = opened(io.open)
    for name in ("replace", "rename", "mkdir", "unlink", "remove", "rmdir"):
        original = getattr(os, name)

        def call(path, *arguments, original=original, name=name, **keywords):
            if ours(path) or keywords.get("dir_fd") is not None:
                act(name, str(path))
            return original(path, *arguments, **keywords)

        setattr(os, name, call)
    fsync = os.fsync

    def synced(number):
        act("fsync", "")
        fsync(number)

    os.fsync = synced


# ------------------------------------------------------------------------------------------------- what a run has left behind

TIMING = {"tokens_per_second", "targets_per_second", "memory_bytes", "mfu", "seconds_left"}


def outcome(out: Path) -> dict[str, object]:
    """Everything that must be equal to the bit: weights, both moments, the checkpoint's facts, exported model, log without its clock."""
    import hashlib

    folder = out / "checkpoints" / (out / "checkpoints" / "latest").read_text().strip()
    state = json.loads((folder / "state.json").read_text())  # "owed": an evaluation that came only after this was saved
    result: dict[str, object] = {"state": {key: value for key, value in state.items() if key not in ("sha256", "seal", "owed")}}
    for path in [*sorted(folder.glob("*.safetensors")), *sorted((out / "model").glob("*.safetensors")), *sorted((out / "adapter").glob("*.safetensors"))]:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:8 + length]).items():  # its "__metadata__" is written in no fixed order
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                result[f"{path.parent.name}/{path.name}: {name}"] = entry["dtype"], entry["shape"], hashlib.sha256(data[begin:end]).hexdigest()
    result["log"] = [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in open(out / "metrics.jsonl")]
    result["left over"] = sorted(str(path.relative_to(out)) for path in out.rglob("*.tmp"))
    return result


def differing(now: dict, expected: dict) -> str:
    """The first few differences of two outcomes."""
    keys = [k for k in {**expected, **now} if now.get(k) != expected.get(k)]
    if "log" in keys:
        pairs = [(a, b) for a, b in zip(now["log"], expected["log"]) if a != b]
        keys.insert(0, f"log of {len(now['log'])} and {len(expected['log'])} lines, first difference {pairs[:1]}")
    return ", ".join(keys[:8])


def last_step(out: Path) -> int:
    """The last step in metrics.jsonl; 0 without one."""
    try:
        lines = (out / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):  # cut by the kill
            continue
    return 0


def saved_step(out: Path) -> int:
    """The step `latest` names; 0 without one."""
    try:
        return int((out / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        return 0
