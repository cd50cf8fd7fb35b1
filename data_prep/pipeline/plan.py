"""Runs a plan of commands in order, some in parallel, and resumes after an interruption.

In:  a list of `Step`s. Out: OUT/done/STEP.json of each finished step (commands, seconds), OUT/logs/STEP.log.

Finished steps are skipped unless their inputs have changed; an interrupted one resumes, because each command
is resumable. A plan is rejected if its finished steps were run with other commands. Used by
data_prep/corpus.py and examples/demo.
"""
from __future__ import annotations

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from data_prep.pipeline.shards import end_with_parent
from mmed.utils.errors import EXIT_STOPPED, UserError, main_guard
from mmed.utils.files import read_json, write_json

STOPS = (signal.SIGINT, signal.SIGTERM)
REPORT_SECONDS = 30  # between two lines of progress


@dataclass
class Step:
    name: str
    title: str
    commands: list[list[str]]  # each: module, then its arguments
    needs: tuple[str, ...] = ()
    minutes: float = 1.0  # expected, for the time left; only the proportions between steps matter
    inputs: tuple[str, ...] = ()  # files and folders; the step and those that need it run again on a change


def print_commands(plan: list[Step]) -> None:
    """All commands of a plan, as a reader can type them."""
    for step in plan:
        commands = ("python -m " + shlex.join(command) for command in step.commands)
        print(f"# {step.name}: {step.title}", *commands, sep="\n")


@contextlib.contextmanager
def stops_held_back() -> Iterator[list[int]]:
    """SIGINT and SIGTERM act after this block: callbacks of fork() swallow exceptions. Signals that are only
    blocked go to another thread, such as tqdm's, and act at once. Yields those that came."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in STOPS
                if signal.getsignal(number) != signal.SIG_IGN}  # as of SIGINT in a script's background job
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _run_commands(step: Step, log: Path, prepare: Callable[[], None] | None, came: list[int]) -> None:
    """Run the step's commands one after the other in a child process, with their output in `log`."""
    end_with_parent()
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if came:
        sys.exit(EXIT_STOPPED)
    tqdm.set_lock(threading.RLock())  # the inherited one is shared: a step killed with it would stop the plan
    sys.stdout = sys.stderr = open(log, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    if prepare:
        prepare()
    for command in step.commands:
        print(f"\n$ python -m {shlex.join(command)}", flush=True)
        sys.argv = list(command)
        module = importlib.import_module(command[0])
        if hasattr(module, "__path__"):  # a package
            module = importlib.import_module(f"{command[0]}.__main__")
        try:
            main_guard(module.main)
        except SystemExit as done:
            if done.code:
                raise


def _last_line(log: Path) -> str:
    """The last line of a log; of a progress bar, its last state."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 4000))
        return file.read().decode("utf-8", "replace").replace("\r", "\n").strip().split("\n")[-1].strip()


def run_plan(plan: list[Step], out: Path, at_once: int = 1,
             prepare: Callable[[], None] | None = None) -> float:
    """Run all unfinished steps, `at_once` at a time; return the seconds that all steps took.

    Each runs in a fork, which has all that this process imported; `prepare` is called there first. UserError
    if a step fails (naming its log) or if OUT has finished steps with other commands.
    """
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    states = {step.name: _state(step.inputs) for step in plan}
    seconds = _finished_steps(plan, out, states)
    print(f"{len(plan)} steps in {out}/, {len(seconds)} done already; output is in {logs}/", file=sys.stderr)
    work = {step.name: step.minutes for step in plan}
    bar = tqdm(total=sum(work.values()), initial=sum(work[name] for name in seconds), miniters=0,
               mininterval=1 if sys.stderr.isatty() else REPORT_SECONDS, leave=False,
               bar_format="{elapsed}, {remaining} left{postfix}",
               smoothing=0)  # the mean rate: between two finished steps nothing is counted
    running: dict[str, tuple[Step, BaseProcess, float]] = {}
    try:
        while len(seconds) < len(plan):
            ready = [step for step in plan if step.name not in {*seconds, *running}
                     and set(step.needs) <= seconds.keys()]
            for step in ready[:at_once - len(running)]:
                log = logs / f"{step.name}.log"
                log.touch()
                with stops_held_back() as came:
                    process: BaseProcess = multiprocessing.get_context("fork").Process(
                        target=_run_commands, args=(step, log, prepare, came))
                    process.start()
                    running[step.name] = (step, process, time.time())
            wait([process.sentinel for _, process, _ in running.values()], timeout=1)
            for name, (step, process, start) in list(running.items()):
                if not process.is_alive():
                    del running[name]
                    seconds[name] = _finish(step, process, out, time.time() - start, states[name])
                    bar.update(step.minutes)
                    bar.write(f"[{len(seconds):2}/{len(plan)}] {step.title} ({seconds[name]:.0f} s)",
                              sys.stderr)
            last = [f"{name}: {_last_line(logs / f'{name}.log')[:100]}" for name in running]
            bar.set_postfix_str("; ".join(last), refresh=False)
            bar.update(0)
    except KeyboardInterrupt:
        print("stopped; start again with the same command to go on", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    finally:
        bar.close()
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()
    return sum(seconds.values())


def _state(inputs: tuple[str, ...]) -> str:
    """A hash of the names, sizes and modification times of all files there."""
    paths = sorted(path for given in inputs for path in (Path(given), *Path(given).rglob("*")))
    facts = [(str(path), path.stat()) for path in paths if path.is_file()]
    files = [(name, found.st_size, found.st_mtime_ns) for name, found in facts]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _finished_steps(plan: list[Step], out: Path, states: dict[str, str]) -> dict[str, float]:
    """The seconds that each finished step took; those to be run again, also later, are not finished."""
    seconds: dict[str, float] = {}
    for step in plan:
        path = out / "done" / f"{step.name}.json"
        if path.is_file():
            done = read_json(path)
            then, now = _words(done["commands"]), _words(step.commands)
            if then != now:
                pairs = (f" ({one} then, {other} now)" for one, other in zip(then, now) if one != other)
                raise UserError(f"{out}: its step {step.name} had other commands{next(pairs, '')}; give "
                                "another --out or remove the folder")
            state = states[step.name]
            if done.get("inputs", state) == state and set(step.needs) <= seconds.keys():
                seconds[step.name] = done["seconds"]
            else:  # now, so that the steps after it run again even if this start is interrupted
                path.unlink()
    return seconds


def _words(commands: list[list[str]]) -> list[str]:
    """The words of all commands without --workers, which changes no output."""
    words = list(chain(*commands))
    return [word for before, word in zip(["", *words], words) if "--workers" not in (before, word)]


def _finish(step: Step, process: BaseProcess, out: Path, seconds: float, state: str) -> float:
    log = out / "logs" / f"{step.name}.log"
    if process.exitcode == EXIT_STOPPED:
        raise KeyboardInterrupt
    if process.exitcode:
        raise UserError(f"step {step.name} failed ({process.exitcode}): {_last_line(log)}; see {log}; "
                        "run the same command again to continue")
    done = {"commands": step.commands, "seconds": round(seconds, 1), "inputs": state}
    write_json(out / "done" / f"{step.name}.json", done)
    return seconds
