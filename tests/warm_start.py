"""Start training runs from tests in a tenth of a second each.

`run` does what the command line does, in processes forked from a server that has imported torch
(forked_runs.py). The server is a process of its own because a process that has computed cannot be forked
safely.
"""
import atexit
import functools
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path


@functools.cache
def server() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    atexit.register(process.terminate)
    return process


def run(arguments: list[str], ranks: int = 1, check: bool = True,
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
    from forked_runs import ForkedRun, import_training

    import_training()
    for line in sys.stdin:
        arguments, ranks, log, module = json.loads(line)
        started = ForkedRun(arguments, ranks, log=Path(log), main=importlib.import_module(module).main)
        codes = started.wait(300)
        if codes is None:
            started.kill()
        print(json.dumps(codes or started.codes), flush=True)


if __name__ == "__main__":
    serve()
