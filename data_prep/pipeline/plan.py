"""A plan of commands: run them in order, some side by side, and go on after a stop.

In:  a list of `Step`s, each some commands of this package (module, then arguments) and the steps it needs.
Out: OUT/done/STEP.json, written when the step is done (its commands and seconds), and OUT/logs/STEP.log, its
     output.

A finished step is not run again; a stopped one is started again and goes on where it was, because each
command is resumable. A plan whose finished steps had other commands is rejected. Used by data_prep/corpus.py
and examples/demo.
"""
from __future__ import annotations

import importlib
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from mmed.utils.errors import EXIT_STOPPED, UserError, main_guard
from mmed.utils.files import read_json, write_json

REPORT_SECONDS = 30  # between two lines on what is running


@dataclass
class Step:
    name: str
    title: str
    commands: list[list[str]]  # each: module, then its arguments
    needs: tuple[str, ...] = ()


def as_typed(command: list[str]) -> str:
    return "python -m " + shlex.join(command)


def print_commands(plan: list[Step]) -> None:
    """All commands of a plan, as a reader can type them."""
    for step in plan:
        print(f"# {step.name}: {step.title}", *map(as_typed, step.commands), sep="\n")


def _main_of(module: str) -> Callable[[], int | None]:
    """The `main` of a command: its module's, or that of its package's `__main__`."""
    found = importlib.import_module(module)
    return (importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found).main


def _run_commands(step: Step, log: Path, prepare: Callable[[], None] | None) -> None:
    """In a process of its own: the step's commands one after the other, their output in `log`."""
    sys.stdout = sys.stderr = open(log, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    if prepare:
        prepare()
    for command in step.commands:
        print(f"\n$ {as_typed(command)}", flush=True)
        sys.argv = list(command)
        try:
            main_guard(_main_of(command[0]))
        except SystemExit as done:
            if done.code:
                raise


def last_line(log: Path) -> str:
    """The last line of a log; of a progress bar, its last state."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 400))
        return file.read().decode("utf-8", "replace").replace("\r", "\n").strip().split("\n")[-1].strip()


def _difference(old: list[list[str]], new: list[list[str]]) -> str:
    """The first words in which two lists of commands differ."""
    before, after = ([word for command in commands for word in command] for commands in (old, new))
    for one, other in zip(before, after):
        if one != other:
            return f"{one} then, {other} now"
    return f"{len(before)} words then, {len(after)} now"


def run_plan(plan: list[Step], out: Path, at_once: int = 1, prepare: Callable[[], None]
             | None = None) -> float:
    """Run all steps that are not done, `at_once` at a time; returns the seconds of all steps.

    Each step runs in a fork, which has all that this process imported; `prepare` is called there first.
    Raises UserError when a step fails (naming its log) or when OUT has finished steps with other commands.
    Ctrl-C ends all.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    seconds = _finished_steps(plan, out)
    running: dict[str, tuple[BaseProcess, float]] = {}
    begin = report = time.time()
    print(f"{len(plan)} steps in {out}/, {len(seconds)} done already; output is in {out}/logs/",
          file=sys.stderr)
    try:
        while len(seconds) < len(plan):
            for step in plan:
                idle = step.name not in {*seconds, *running}
                if idle and set(step.needs) <= set(seconds) and len(running) < at_once:
                    arguments = (step, out / "logs" / f"{step.name}.log", prepare)
                    process = multiprocessing.get_context("fork").Process(target=_run_commands,
                                                                          args=arguments)
                    process.start()
                    running[step.name] = (process, time.time())
            wait([process.sentinel for process, _ in running.values()], timeout=1)
            for step in plan:
                if step.name in running and not running[step.name][0].is_alive():
                    process, start = running.pop(step.name)
                    _finish(step, process, out, time.time() - start)
                    seconds[step.name] = time.time() - start
                    print(f"[{len(seconds):2}/{len(plan)}] {time.time() - begin:4.0f} s  {step.title} "
                          f"({seconds[step.name]:.0f} s)", file=sys.stderr)
            if time.time() - report > REPORT_SECONDS:
                report = time.time()
                for name in running:
                    print(f"  {name}: {last_line(out / 'logs' / f'{name}.log')}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; start again with the same command to go on", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
    return sum(seconds.values())


def _finished_steps(plan: list[Step], out: Path) -> dict[str, float]:
    """The seconds of the steps that are done."""
    seconds = {}
    for step in plan:
        record = out / "done" / f"{step.name}.json"
        if not record.is_file():
            continue
        done = read_json(record)
        if done["commands"] != step.commands:
            raise UserError(f"{out}: its step {step.name} had other commands "
                            f"({_difference(done['commands'], step.commands)})"
                            "; give another --out or remove the folder")
        seconds[step.name] = done["seconds"]
    return seconds


def _finish(step: Step, process: BaseProcess, out: Path, seconds: float) -> None:
    process.join()
    log = out / "logs" / f"{step.name}.log"
    if process.exitcode == EXIT_STOPPED:
        raise KeyboardInterrupt
    if process.exitcode:
        raise UserError(f"step {step.name} failed ({process.exitcode}): {last_line(log)}; its log is {log}; "
                        "start again with the same command to go on")
    write_json(out / "done" / f"{step.name}.json", {"commands": step.commands, "seconds": round(seconds, 1)})
