"""Training runs forked from one process that has imported torch already: they start in a tenth of a second.

    warm_run(arguments, ranks=2)            what the command line does, to its end, from any test
    run = ForkedRun(arguments, ranks=2)     all ranks are running
    run.wait(seconds)                       exit codes, or None while one still runs
    run.kill()                              SIGKILL to all ranks; run.kill(1) to rank 1

The forking process must not compute with autograd itself, because a fork inherits its dead threads:
`warm_run` asks a server process. Each rank is what `python mmed/train.py ARGUMENTS` is under torchrun.
"""
from __future__ import annotations

import atexit
import functools
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@functools.cache
def server() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    atexit.register(process.terminate)
    return process


def warm_run(arguments: list[str], ranks: int = 1, check: bool = True,
             module: str = "mmed.train") -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENTS`, with several ranks as under torchrun; stderr holds all output."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        request = [list(map(str, arguments)), ranks, log.name, module]
        print(json.dumps(request), file=server().stdin, flush=True)
        answer = server().stdout.readline()
        assert answer, f"the server ended with exit code {server().wait(10)}"
        code = next((code for code in json.loads(answer) if code), 0)
        done = subprocess.CompletedProcess(arguments, code, "", log.read())
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def serve() -> None:
    import_training()
    for line in sys.stdin:
        arguments, ranks, log, module = json.loads(line)
        started = ForkedRun(arguments, ranks, log=Path(log), main=importlib.import_module(module).main)
        codes = started.wait(900)
        if codes is None:
            started.kill()
        print(json.dumps(codes or started.codes), flush=True)


def import_training() -> None:
    """Import everything a run imports, once."""
    import torch.distributed.checkpoint.hf_storage
    import torch.distributed.fsdp
    import torch.distributed.tensor

    import mmed.train  # noqa: F401

    torch.set_num_threads(1)


class ForkedRun:
    """One start of a run, with all its ranks.

    before(rank, signal_parent) runs in each rank ahead of main; calling signal_parent() makes `reached`
    return.
    """

    def __init__(self, arguments: list[str], ranks: int = 1, before: Callable | None = None,
                 log: Path = Path(os.devnull), main: Callable[[], int] | None = None):
        self.log, self.mark = log, Path(f"{log}.reached")
        self.codes: list[int | None] = [None] * ranks
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                self._run_rank(arguments, rank, environment if ranks > 1 else {}, before, main)
            self.pids.append(pid)

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
                before(rank, self.mark.touch)
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
        while not self.mark.exists() and time.monotonic() < deadline and self.wait(0) is None:
            time.sleep(0.005)
        return self.mark.exists()

    def wait(self, seconds: float) -> list[int] | None:
        deadline = time.monotonic() + seconds
        while None in self.codes:
            for rank, pid in enumerate(self.pids):
                if self.codes[rank] is None:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    self.codes[rank] = os.waitstatus_to_exitcode(status) if done else None
            if None in self.codes and time.monotonic() > deadline:
                return None
            time.sleep(0.005)
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


if __name__ == "__main__":
    serve()
