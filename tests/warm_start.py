"""Training runs of a tenth of a second, for tests that start many: `run` does what the command line does, in processes forked from one
that has imported torch already (benchmarks/faults/warm_runs.py). That one is a process of its own, since whoever has computed can't fork."""
import atexit
import functools
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def server() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.terminate)
    return process


def run(arguments: list[str], ranks: int = 1, check: bool = True, module: str = "mmed.train") -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENTS`, with more ranks as under torchrun; `stderr` holds what it has said there and on stdout."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        print(json.dumps([list(map(str, arguments)), ranks, log.name, module]), file=server().stdin, flush=True)
        answer = server().stdout.readline()
        assert answer, f"the process that starts runs has ended with {server().wait(10)}"
        codes = json.loads(answer)
        done = subprocess.CompletedProcess(arguments, next((code for code in codes if code), 0), "", log.read())
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def serve() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks" / "faults"))
    from warm_runs import Life, warm

    warm()
    for line in sys.stdin:
        arguments, ranks, log, module = json.loads(line)
        life = Life(arguments, ranks, log=Path(log), main=importlib.import_module(module).main)
        codes = life.wait(300)
        if codes is None:
            life.kill()
        print(json.dumps(codes or life.codes), flush=True)


if __name__ == "__main__":
    serve()
