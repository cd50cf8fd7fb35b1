"""A plan of commands: run them in order, two at a time where they do not wait for each other, and go on after a stop.

In:  a list of `Step`s, each some commands of this package (module, then arguments) and the steps it needs.
Out: OUT/done/STEP.json, written when the step is done (its commands and seconds), and OUT/logs/STEP.log, all that it printed.

A step that is done is not done again; one that was killed is started again, and goes on where it was because each command is
resumable. A plan whose finished steps had other commands is refused, naming what changed. Used by `make demo`, `make ablations` and data_prep/corpus.py.
"""
from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmed.utils.errors import EXIT_STOPPED, UserError, main_guard
from mmed.utils.files import read_json, write_json


@dataclass
class Step:
    name: str
    title: str
    commands: list[list[str]]  # each: module, then its arguments
    needs: tuple[str, ...] = ()


def as_typed(command: list[str]) -> str:
    return "python -m " + " ".join(shlex.quote(word) for word in command)


def print_commands(plan: list[Step]) -> None:
    """All commands of a plan, as a reader can type them."""
    for step in plan:
        print(f"# {step.name}: {step.title}", *map(as_typed, step.commands), sep="\n")


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """This process gets the signal when its parent ends, however that comes about. Linux only; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG


def main_of(module: str) -> Callable[..., int]:
    """The `main` of a command: its module's, or that of its package's `__main__`."""
    found = importlib.import_module(module)
    return (importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found).main


def run_child(step: Step, log: Path, prepare: Callable[[], None] | None) -> int:
    """Fork a process that runs the step's commands with its output in `log`; returns its process id.

    A fork has all that its parent imported, which for torch saves some three seconds a command.
    """
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setpgrp()
    end_with_parent(signal.SIGKILL)  # so that a second start does not meet it
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        if prepare:
            prepare()
        for command in step.commands:
            print(f"\n$ {as_typed(command)}", flush=True)
            sys.argv = [command[0], *command[1:]]
            try:
                main_guard(main_of(command[0]))
            except SystemExit as done:
                code = done.code or 0
            if code:
                break
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def last_words(log: Path) -> str:
    """What a step last said (of a progress bar, the last state)."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 400))
        return file.read().decode("utf-8", "replace").replace("\r", "\n").strip().split("\n")[-1].strip()


def changed(old: list[list[str]], new: list[list[str]]) -> str:
    """The first words in which two lists of commands differ, for a message."""
    for before, after in zip(old, new):
        for one, other in zip(before, after):
            if one != other:
                return f"{one} then, {other} now"
        if len(before) != len(after):
            longer, word = (before, "then") if len(before) > len(after) else (after, "now")
            return f"{longer[min(len(before), len(after))]} only {word}"
    return f"{len(old)} commands then, {len(new)} now"


def run_plan(plan: list[Step], out: Path, at_once: int = 1, prepare: Callable[[], None] | None = None) -> float:
    """Run all steps of `plan` that are not done, `at_once` at a time, each prepared by `prepare` in its process; returns the seconds of all steps.

    Raises UserError when a step fails (its log is named) or when OUT holds finished steps with other commands. Ctrl-C ends the process.
    """
    (out / "done").mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir(exist_ok=True)
    records = {step.name: read_json(out / "done" / f"{step.name}.json") for step in plan if (out / "done" / f"{step.name}.json").is_file()}
    for step in plan:
        if step.name in records and records[step.name]["commands"] != step.commands:
            raise UserError(f"{out}: its step {step.name} was made another way ({changed(records[step.name]['commands'], step.commands)}); "
                            "give another --out or remove the folder")
    finished = set(records)
    running: dict[int, tuple[Step, float]] = {}
    begun, live, shown = time.time(), sys.stderr.isatty(), 0.0
    print(f"{len(plan)} steps in {out}/, {len(finished)} done already; each step's commands and output: {out}/logs/STEP.log", file=sys.stderr)
    try:
        while len(finished) < len(plan):
            busy = {step.name for step, _ in running.values()}
            ready = [step for step in plan if step.name not in finished | busy and set(step.needs) <= finished]
            slots = at_once - len(running)
            for step in ready[:slots]:
                running[run_child(step, out / "logs" / f"{step.name}.log", prepare)] = (step, time.time())
            child, status = os.waitpid(-1, os.WNOHANG)
            if child in running:
                step, start = running.pop(child)
                code = os.waitstatus_to_exitcode(status)
                if live:
                    print("\r\x1b[J", end="", file=sys.stderr)
                if code:
                    raise UserError(f"step {step.name} failed ({code}): {last_words(out / 'logs' / f'{step.name}.log')}; "
                                    f"its log is {out}/logs/{step.name}.log; start again with the same command to go on")
                finished.add(step.name)
                seconds = time.time() - start
                write_json(out / "done" / f"{step.name}.json", {"commands": step.commands, "seconds": round(seconds, 1)})
                print(f"[{len(finished):2}/{len(plan)}] {time.time() - begun:4.0f} s  {step.title} ({seconds:.0f} s)", file=sys.stderr)
            elif live and time.time() - shown > 0.5:
                shown = time.time()
                width = os.get_terminal_size(sys.stderr.fileno()).columns
                texts = [f"  {step.name}: {last_words(out / 'logs' / f'{step.name}.log')}"[:width - 1] for step, _ in running.values()]
                print("\r\x1b[J" + "\n".join(texts) + (f"\x1b[{len(texts) - 1}A" if len(texts) > 1 else ""), end="", file=sys.stderr, flush=True)
            time.sleep(0.05)
    except KeyboardInterrupt:
        print("\nstopped; start again with the same command to go on", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    finally:
        for child in running:
            os.killpg(child, signal.SIGTERM)
        for child in running:
            os.waitpid(child, 0)
    return sum(read_json(out / "done" / f"{step.name}.json")["seconds"] for step in plan)
