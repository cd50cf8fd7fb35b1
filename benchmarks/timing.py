"""What the benchmarks share: work timed in turn, rates and ratios, texts, and the machine in words.

The forms of one piece of work (ours, then the peers) take turns, so that other load on the machine meets all
of them. A ratio is the median of the rounds' ratios, with their range. On a CPU the clock is the CPU time of
this process, which other jobs disturb less than the time on the wall.
"""
from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

Form = Callable[[], object]
Clock = Callable[[], float]


def clock(wall: bool) -> Clock:
    """The time on the wall, or the CPU time of this process."""
    return time.perf_counter if wall else time.process_time


def machine() -> str:
    """Processor, cores, load, torch and date: what a table has to say about where it was made."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return (f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
            f"{platform.python_version()}, torch {importlib.metadata.version('torch')}, "
            f"{time.strftime('%Y-%m-%d')}")


def seconds(run: Form, now: Clock = time.process_time) -> float:
    begun = now()
    run()
    return now() - begun


def in_turn(forms: dict[str, Form], rounds: int, now: Clock = time.process_time) -> dict[str, list[float]]:
    """Seconds of each form in each round."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form, run in forms.items():
            times[form].append(seconds(run, now))
    return times


def ratio(times: dict[str, list[float]], form: str, peer: str) -> str:
    """How many times as fast `form` is as `peer`: median and range of the rounds."""
    ratios = [slow / fast for slow, fast in zip(times[peer], times[form], strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def print_rates(title: str, work: float, unit: str, times: dict[str, list[float]]) -> None:
    """A line for each form: work per second, and how many times as fast the first form is."""
    first = next(iter(times))
    print(title)
    for form, spent in times.items():
        beside = "" if form == first else f"   {first} is {ratio(times, first, form)}"
        print(f"  {form:36} {work / statistics.median(spent):12,.1f} {unit}{beside}", flush=True)


def print_row(*cells: object) -> None:
    """A row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*cells: str) -> None:
    print_row(*cells)
    print("|---" * len(cells) + "|")


def chosen(names: str | None, known: dict, default: list[str]) -> list[str]:
    """The rows that `--rows` names."""
    wanted = names.split(",") if names else default
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"error: no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    return wanted
