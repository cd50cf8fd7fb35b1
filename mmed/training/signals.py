"""How a run ends when it is asked to stop, and when one of its ranks fails.

    SIGTERM, SIGINT   nothing to save (start-up, first step, export)  ->  exit 75 at once; else `check` raises
                      Stopped between two micro-batches  ->  checkpoint of the last step, exit 75
    a second SIGINT   exit at once; the last checkpoint stays
    a rank fails      its error is printed and handed to torchrun, which ends the others and shows it last

All ranks must leave the loop at the same place, so they tell one another whether one was asked to stop.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from mmed.training import distributed
from mmed.utils.errors import EXIT_FAILED, EXIT_STOPPED, UserError

REPEAT_SECONDS = 0.5  # the same Ctrl-C arrives twice, from the terminal and from torchrun
ECHO_SECONDS = 10.0   # a rank that lost another waits for torchrun to end it: the cause is shown first
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting",
        "NCCL error")  # what errors that only say that another rank is gone contain


class Stopped(Exception):
    """All ranks agreed to save and stop."""


class StopSignal:
    """SIGTERM and SIGINT ask for a checkpoint and an end; a second SIGINT ends at once. A second SIGTERM
    changes nothing: Slurm sends it to torchrun and to its ranks, and torchrun passes it on."""

    def __init__(self) -> None:
        self.requested, self.name, self.when = False, "a signal", 0.0
        self.nothing_to_save = True   # no step of this process is newer than the last checkpoint
        self.out: Path | None = None  # the run folder, once this process has locked it
        self.group: dist.ProcessGroup | None = None
        self.answer: tuple[torch.Tensor, dist.Work] | None = None
        signal.signal(signal.SIGTERM, self)
        signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self.requested and number == signal.SIGINT and time.monotonic() - self.when > REPEAT_SECONDS:
            leave(128 + number, f"ended by a second {name}; the last checkpoint is complete")
        if not self.requested:
            self.requested, self.name, self.when = True, name, time.monotonic()
        if self.nothing_to_save:
            # Among several ranks a SIGTERM may only mean that another one failed: no reason to requeue.
            if self.out is not None and distributed.world_size() == 1:
                (self.out / "stopped").touch()
            message = f"stopped by {self.name}; nothing is lost, continue with --resume=auto"
            leave(EXIT_STOPPED, message if distributed.is_main() else "")

    def check(self) -> None:
        """Raise `Stopped` if all ranks stop here; every rank calls this at the same places. With several
        ranks it acts on what the previous call gathered, so that none waits for the others."""
        stop = self.requested
        if self.group is not None:
            before, request = self.answer, torch.tensor([int(self.requested)])
            self.answer = request, dist.all_reduce(request, dist.ReduceOp.MAX, self.group, async_op=True)
            if before is None:
                return
            before[1].wait()
            stop = bool(before[0].item())
        if stop:
            raise Stopped


def leave(code: int, message: str = "") -> None:
    """End this process now, without waiting for its threads: they may wait for a rank that is gone."""
    sys.stderr.flush()
    if message:
        os.write(2, f"\n{message}\n".encode())
    os._exit(code)


def end_failed_rank(error: BaseException, stop: StopSignal) -> None:
    """Report a rank's failure and end its process. A single process just lets the error propagate."""
    if distributed.world_size() == 1:
        return
    rank, known = distributed.rank(), isinstance(error, UserError)
    if not known and (isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)):
        deadline = time.monotonic() + ECHO_SECONDS
        while not stop.requested and time.monotonic() < deadline and "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(0.05)
        if stop.requested:
            leave(EXIT_STOPPED)
        line = " ".join(str(error).split())[:200]
        leave(EXIT_FAILED, f"rank {rank}: another rank is gone or does not answer ({line}); see its error")
    text = f"error: {error}" if known else "".join(traceback.format_exception(error)).rstrip()
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun shows it last
        details = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": details}))
    if rank:
        text = "" if known and error.everywhere else f"rank {rank}: {text}"
    leave(error.exit_code if known else EXIT_FAILED, text)
