"""Data-parallel evaluation: rounds of work over ranks; a killed run continues with the missing rounds.

    run_rounds(path, facts, costs, compute)     -> the complete journal on rank 0, None on the others

Rank 0 writes PATH.partial, rank n PATH.rank-n.partial; they are joined at the end, or by the next start on
any number of ranks. A round is a fixed set of items, so the files of a run do not depend on that number.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmed.training import distributed
from mmed.utils.journal import Journal

ROUND_BATCHES = 8  # a round is computed whole or not at all, so scores of a killed run have the same digits


def run_rounds(path: Path, facts: Mapping[str, Any], costs: Mapping[int, float],
               compute: Callable[[int], list[dict]], *, force: bool = False,
               on_skip: Callable[[int], None] = lambda number: None) -> Journal | None:
    """Compute every round of `costs` that is in no journal; ranks share them by cost."""
    rank, ranks = distributed.rank(), distributed.world_size()
    main = Journal(path, facts, force) if rank == 0 else None
    if main is not None:
        absorb(main, path, facts, force)
    # If rank 0 rejects the journal, all ranks end here.
    done = set(distributed.gather({"done": sorted(main.done) if main is not None else []})[0]["done"])
    for number in sorted(set(costs) & done):
        on_skip(number)
    missing = sorted(set(costs) - done, key=lambda number: (-costs[number], number))
    own = main or Journal(path.with_name(f"{path.name}.rank-{rank}"), facts, force)
    distributed.barrier()  # all have read what is done
    for number in sorted(missing[rank::ranks]):
        own.add(number, compute(number))
    if main is None:
        own.file.close()
    distributed.barrier()
    if main is not None:
        absorb(main, path, facts, force=False)
        assert set(costs) <= main.done, f"rounds {sorted(set(costs) - main.done)} are in no journal"
    distributed.barrier()
    distributed.stop()
    return main


def absorb(journal: Journal, path: Path, facts: Mapping[str, Any], force: bool) -> None:
    """Move the rounds of other ranks' journals into this one."""
    for partial in sorted(path.parent.glob(f"{path.name}.rank-*.partial")):
        part = Journal(partial.with_suffix(""), facts, force)
        for number, rows in part.rounds():
            if number not in journal.done:
                journal.add(number, rows)
        part.discard()
