"""Kills a command at any of its writes: the next start must leave what an uninterrupted run leaves.

    check_restarts(command, tmp_path, rng)   of command(folder), which puts all its output below `folder`
    run_forked(command, folder)              its number of writes
    run_forked(command, folder, kill_at=3)   SIGKILL to it and its children in place of the third write
"""
import mmap
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATHS = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.symlink": 1, "os.chmod": 1,
         "os.rename": 2, "os.link": 2}  # audit events: how many of their arguments are paths
NOISE = {r"[0-9a-f]{12,}": "N",  # random names; fingerprints, which depend on times
         r'"(seconds|changed|fetched)": [^,\n]+': "T"}


def changed_paths(event: str, arguments: tuple) -> list[str]:
    """The files and folders that an audit event is about to change."""
    paths = arguments[:PATHS.get(event, 0)]
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITING:
        paths = arguments[:1]
    found = []
    for path in map(os.fsdecode, paths):
        if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] >= 0:  # within an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), path)
        found.append(os.path.realpath(path))
    return [path for path in found if path != os.devnull]


def run_forked(command: Callable[[], object], folder: Path, kill_at: int = 0) -> int:
    """Call `command` in a fork, which dies instead of its `kill_at`-th write below `folder`, if it makes so
    many; returns how many it made. AssertionError with its output if it fails."""
    writes, below, log = mmap.mmap(-1, 8), f"{os.path.realpath(folder)}/", folder.with_name("log.txt")

    def count(event: str, arguments: tuple) -> None:
        if any(f"{path}/".startswith(below) for path in changed_paths(event, arguments)):
            number = int.from_bytes(writes[:], "big") + 1
            if number == kill_at:
                os.killpg(0, signal.SIGKILL)
            writes[:] = number.to_bytes(8, "big")

    if not (pid := os.fork()):
        try:
            os.setsid()
            sys.stdout = sys.stderr = open(log, "w", buffering=1)
            for number in (1, 2):
                os.dup2(sys.stdout.fileno(), number)
            os.fsync = lambda number: None  # a kill, unlike a power failure, loses nothing that was written
            sys.addaudithook(count)
            command()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0 or (kill_at and code == -signal.SIGKILL), f"exit code {code}\n{log.read_text()}"
    return int.from_bytes(writes[:], "big")


def found_files(folder: Path) -> list[tuple[str, bytes]]:
    """All that is in a folder; what differs between any two runs is replaced, nothing is left out."""
    found = []
    for path in folder.rglob("*"):
        name, data = str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"a folder"
        for pattern, letter in NOISE.items():
            name = re.sub(pattern, letter, name)
            if path.suffix in (".json", ".jsonl"):
                data = re.sub(pattern.encode(), letter.encode(), data)
        found.append((name, data))
    return sorted(found)


def check_restarts(command: Callable[[Path], object], tmp_path: Path, rng: random.Random,
                   most: int = 60) -> None:
    """Kill the command at `most` of its writes, once or twice, or in a start after one that finished; start
    it again, and compare the folder with that of an uninterrupted run."""
    folder = tmp_path / "out"

    def run(kill_at: int = 0) -> int:
        return run_forked(lambda: command(folder), folder, kill_at)

    command(folder)  # in this process: the forks have all that it imported and compiled
    expected, again = found_files(folder), run()
    shutil.rmtree(folder)
    first = run()
    histories = [[number] for number in range(1, first + 1)] + [[0, number] for number in range(1, again + 1)]
    histories += [[number, rng.randint(1, first - number + 4)] for number in range(1, first + 1)]
    for history in rng.sample(histories, min(len(histories), most)):
        shutil.rmtree(folder)
        for kill_at in (*history, 0):
            run(kill_at)
        found = found_files(folder)
        other = sorted({name for name, _ in set(found) ^ set(expected)})
        assert found == expected, f"killed at {history} (0: not at all) of {first} writes: other {other}"
