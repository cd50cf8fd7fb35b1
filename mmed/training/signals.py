"""How a run ends when it is told to, and when one of its ranks fails.

    SIGTERM, SIGINT   nothing to lose (start-up, first step, export)  ->  exit 75 at once
                      else: noticed between two micro-batches         ->  checkpoint of the last whole step, exit 75
    a second SIGINT   exit at once; the last checkpoint stays
    a rank fails      its error is printed and handed to torchrun, which ends the others and shows it last

Handlers are set before torch is imported, so this file imports it only where it is needed. All ranks must leave the loop at the same place, or the rest waits for ever in a
collective; so at each place where a run may stop they tell one another whether somebody was asked to (`StopSignal.agreed`).
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from mmed.utils.errors import EXIT_FAILED, EXIT_STOPPED, UserError

AGAIN = 0.5          # seconds: the same Ctrl-C comes twice, from the terminal and from torchrun
ECHO_SECONDS = 10.0  # a rank that lost the others waits so long for torchrun to end it: the first failure should be the true one


class StopSignal:
    """SIGTERM and SIGINT ask for a checkpoint and an end; a second SIGINT ends at once. A second SIGTERM changes nothing:

    Slurm sends it to torchrun and to its ranks, and torchrun hands it on.
    """

    def __init__(self) -> None:
        self.requested, self.name, self.when = False, "a signal", 0.0
        self.nothing_to_lose = True          # no step of this process is newer than the last checkpoint
        self.out: Path | None = None         # the run folder, once it is this run's
        self.group = self.told = None
        self.several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        signal.signal(signal.SIGTERM, self)
        signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self.requested and number == signal.SIGINT and time.monotonic() - self.when > AGAIN:
            leave(128 + number, f"ended at once by a second {name}; the last checkpoint is whole")
        if not self.requested:
            self.requested, self.name, self.when = True, name, time.monotonic()
        if self.nothing_to_lose:
            # torchrun also sends SIGTERM to the ranks beside one that failed: that is no reason to queue the job again
            if self.out is not None and not self.several:
                (self.out / "stopped").touch()
            leave(EXIT_STOPPED, f"stopped by {self.name}; nothing is lost, go on with --resume=auto" if os.environ.get("RANK", "0") == "0" else "")

    def join(self) -> None:
        """Meet the other ranks, in a group of their own over host memory: the GPU is never waited for."""
        from mmed.training import distributed

        self.group = distributed.host_group()

    def agreed(self) -> bool:
        """Whether all ranks stop here; every rank calls at the same places. With several, what a rank was told by the call
        before this one counts, so that no rank waits for the others' answer."""
        if self.group is None:
            return self.requested
        import torch
        import torch.distributed as dist

        before, word = self.told, torch.tensor([int(self.requested)])
        self.told = word, dist.all_reduce(word, dist.ReduceOp.MAX, group=self.group, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())


def leave(code: int, message: str = "") -> None:
    """End this process now, without a word to its threads; they may wait for a rank that is gone."""
    sys.stderr.flush()
    if message:
        os.write(2, f"\n{message}\n".encode())
    os._exit(code)


def is_echo(error: BaseException) -> bool:
    """Whether this error only says that another rank is gone."""
    import torch.distributed as dist

    text = str(error)
    return not isinstance(error, UserError) and (isinstance(error, dist.DistError) or any(
        words in text for words in ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL error")))


def explain(error: BaseException, stop: StopSignal) -> None:
    """The end of a rank that failed, when there are others; of one process alone, nothing: the error takes its usual way."""
    if not stop.several:
        return
    rank = int(os.environ.get("RANK", 0))
    if is_echo(error):
        deadline = time.monotonic() + ECHO_SECONDS
        while not stop.requested and time.monotonic() < deadline and os.environ.get("TORCHELASTIC_RUN_ID"):
            time.sleep(0.05)
        line = " ".join(str(error).split())
        leave(EXIT_STOPPED if stop.requested else EXIT_FAILED,
              "" if stop.requested else f"rank {rank}: another rank is gone or does not answer ({line[:200]}); its own error says why")
    known = isinstance(error, UserError)
    text = f"error: {error}" if known else "".join(traceback.format_exception(error)).rstrip()
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's last lines then hold it
        Path(report).write_text(json.dumps({"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}))
    if known and error.everywhere and rank:
        text = ""
    leave(error.exit_code if known else EXIT_FAILED, text if rank == 0 or not text else f"rank {rank}: {text}")
