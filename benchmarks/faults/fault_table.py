"""A row of the fault table, and the table as text and as JSON.

    for trial in trials(20, "R1"):     a bar on the terminal, silent in a file
        ...
    yield Row("R1", "kill -9 of a run at a random moment", 20, survived, median(seconds))
"""
from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One kind of fault, how often it was injected and how often what was promised held afterwards."""

    id: str                              # of the list of faults: R1, D3, M6, E2 ...
    fault: str                           # what was done to it
    trials: int
    survived: int
    recover_seconds: float | None = None  # median time from the fault until the work goes on or is refused; None: nothing to wait for
    note: str = ""

    @property
    def held(self) -> bool:
        return self.trials > 0 and self.survived == self.trials


def trials(cases: int | Iterable[T], text: str) -> Iterator[T]:
    """The cases (or 0..cases-1) with a bar on stderr; none is drawn when stderr is a file."""
    yield from tqdm(range(cases) if isinstance(cases, int) else list(cases), desc=text, unit="trial", leave=False, disable=None)


def median(seconds: Sequence[float]) -> float | None:
    return round(statistics.median(seconds), 2) if seconds else None


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/benchmarks.md keeps it.

    >>> print(markdown([Row("R1", "kill -9", 10, 10, 1.5)]))
    | id | fault | trials | survived | time to recover | note |
    |---|---|---|---|---|---|
    | R1 | kill -9 | 10 | 10 (100 %) | 1.5 s |  |
    """
    lines = ["| id | fault | trials | survived | time to recover | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        share = f"{row.survived:,} ({100 * row.survived / row.trials:.4g} %)" if row.trials else "none made"
        seconds = "" if row.recover_seconds is None else f"{row.recover_seconds:g} s"
        lines.append(f"| {row.id} | {row.fault} | {row.trials:,} | {share} | {seconds} | {row.note} |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict]:
    return [dataclasses.asdict(row) for row in rows]
