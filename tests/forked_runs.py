"""Training runs forked from one process that has imported torch already: they start in a tenth of a second.

    run = ForkedRun(arguments, ranks=2)     all ranks are running
    run.wait(seconds)                       exit codes, or None while one still runs
    run.kill()                              SIGKILL to all ranks; run.kill(1) to rank 1

The forking process must not compute with autograd itself, because a fork inherits its dead threads. Each rank
is what `python mmed/train.py ARGUMENTS` is under torchrun.
"""
from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def import_training() -> None:
    """Import everything a run imports, once."""
    import torch.distributed.checkpoint.hf_storage
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import mmed.train  # noqa: F401

    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class ForkedRun:
    """One start of a run, with all its ranks.

    before(rank, signal_parent) runs in each rank ahead of main; calling signal_parent() makes `reached`
    return.
    """

    def __init__(self, arguments: list[str], ranks: int = 1, before: Callable | None = None,
                 log: Path = Path(os.devnull), main: Callable[[], int] | None = None):
        self.log = log
        self.codes: list[int | None] = [None] * ranks
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        port = str(free_port())
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                self._run_rank(arguments, rank, environment if ranks > 1 else {}, before, main)
            self.pids.append(pid)
        os.close(self.writer)

    def _run_rank(self, arguments: list[str], rank: int, environment: dict, before, main) -> None:
        code = 1
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb", 0, closefd=False),
                                                       write_through=True) for number in (1, 2))
            sys.argv = ["train.py", *arguments]
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name, None)
            os.environ |= environment
            from mmed import train
            from mmed.utils.errors import main_guard

            if before is not None:
                before(rank, lambda: os.write(self.writer, b"x"))
            main_guard(main or train.main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            threading._shutdown()  # as the interpreter does: an asynchronous checkpoint is completed
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def reached(self, seconds: float) -> bool:
        """Whether a rank called signal_parent within the time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                return bool(os.read(self.reader, 1))  # empty: every rank has ended
            except BlockingIOError:
                time.sleep(0.005)
        return False

    def poll(self) -> bool:
        """Collect the exit codes of ranks that ended; True when all have."""
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
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1
        return self.codes

    def send(self, number: int, rank: int | None = None) -> None:
        for index, pid in enumerate(self.pids):
            if self.codes[index] is None and rank in (None, index):
                os.kill(pid, number)

    def kill(self, rank: int | None = None) -> None:
        self.send(signal.SIGKILL, rank)
        if rank is None:
            self.wait(30)

    def text(self) -> str:
        """Output of the ranks, without progress bars."""
        text = self.log.read_text(errors="replace").replace("\r", "\n") if self.log.is_file() else ""
        return "\n".join(line for line in text.splitlines() if "step/s" not in line)
