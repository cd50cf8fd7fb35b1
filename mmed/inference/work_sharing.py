"""Rounds of work over ranks: each is computed once, by one rank, and a killed run goes on with what is missing.

    run_rounds(path, facts, costs, compute)     -> the complete journal on rank 0, None on the others

    rank 0   predictions.jsonl.partial            <- its own rounds, then all others'
    rank 1   predictions.jsonl.rank-1.partial     ┐ read into rank 0's when all are done, or by the next start,
    rank 2   predictions.jsonl.rank-2.partial     ┘ on any number of ranks

A round is a fixed set of items, whatever the number of ranks, so the files of a run do not depend on it. The costliest rounds are
given out first, each to the rank that has the least to do. One process without torchrun is rank 0 of 1.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmed.inference.decoder import decoder_for, is_sharded
from mmed.model import Transformer
from mmed.training import distributed
from mmed.utils.journal import Journal


def round_size(slots: int) -> int:
    """Items decoded together. A round is computed whole or not at all, so what stands beside an item in a batch, and with it
    the last digits of its scores, is the same in a run that was stopped and in one that was not."""
    return 8 * slots


def assign(costs: Mapping[int, float], ranks: int) -> list[list[int]]:
    """The rounds of each rank, longest first.

    >>> assign({0: 5, 1: 3, 2: 3, 3: 1}, 2)
    [[0, 3], [1, 2]]
    """
    load = [0.0] * ranks
    rounds: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(costs, key=lambda number: (-costs[number], number)):
        rank = load.index(min(load))
        load[rank] += costs[number]
        rounds[rank].append(number)
    return rounds


def run_rounds(path: Path, facts: Mapping[str, Any], costs: Mapping[int, float], compute: Callable[[int], list[dict]], *, force: bool = False,
               on_skip: Callable[[int], None] = lambda number: None, model: Transformer | None = None) -> Journal | None:
    """Compute every round of `costs` that no journal has. `model`: the sharded one, whose ranks must pass in step to the end."""
    rank, ranks = distributed.rank(), distributed.world_size()
    journal = None
    if rank == 0:
        journal = Journal(path, facts, force)
        absorb(journal, path, facts, force)
    distributed.barrier()  # a refusal above ends rank 0, and with it the others
    done = journal.done if journal is not None else finished(path)
    for number in sorted(set(costs) & done):
        on_skip(number)
    mine = assign({number: cost for number, cost in costs.items() if number not in done}, ranks)[rank]
    own = journal if journal is not None else Journal(part_path(path, rank), facts, force)
    for number in sorted(mine) if ranks == 1 else mine:
        own.add(number, compute(number))
    if model is not None:
        if is_sharded(model):
            decoder_for(model, 1).lockstep.finish()
    if journal is None:
        own.file.close()
    distributed.barrier()
    if journal is not None:
        absorb(journal, path, facts, force=False)
        assert not set(costs) - journal.done, f"rounds {sorted(set(costs) - journal.done)} are in no journal"
    distributed.barrier()
    distributed.stop()
    return journal


def part_path(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank-{rank}")


def absorb(journal: Journal, path: Path, facts: Mapping[str, Any], force: bool) -> None:
    """Move what other ranks' journals hold into this one."""
    for partial in sorted(path.parent.glob(f"{path.name}.rank-*.partial")):
        part = Journal(partial.with_suffix(""), facts, force)
        for number, rows in part.rounds():
            if not journal.has(number):
                journal.add(number, rows)
        part.discard()


def finished(path: Path) -> set[int]:
    """The rounds in rank 0's journal, read by another rank."""
    with open(f"{path}.partial", "rb") as file:
        next(file)
        return {json.loads(line)["round"] for line in file}
