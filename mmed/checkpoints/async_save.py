"""Checkpoints written beside the training, by torch.distributed.checkpoint.async_save.

    save(step 200)   copy to host memory (seconds) -> training goes on
                     a thread: shards -> sha256 -> step-200.tmp becomes step-200 -> `latest` names it

Ranks meet in a group of their own, so that the thread's collectives never mix with those of the training.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import nn, optim

from mmed.checkpoints import training_state
from mmed.config import TrainConfig
from mmed.training import distributed
from mmed.training.logging import Log
from mmed.training.run_folder import FolderLock
from mmed.utils.errors import UserError
from mmed.utils.files import write_json


class AsyncCheckpointer:
    """Writes one checkpoint at a time: a second one waits for the first."""

    def __init__(self, run: Path, facts: dict, lock: FolderLock | None, config: TrainConfig, saved: int):
        self.run, self.facts, self.lock, self.config, self.saved = run, facts, lock, config, saved
        self.group = distributed.host_group(config.rank_timeout_seconds) if config.async_save else None
        self.pool = ThreadPoolExecutor(1, "checkpoints")
        self.pending: Future | None = None

    def save(self, model: nn.Module, optimizer: optim.Optimizer, step: int, log: Log) -> None:
        """Write the state after `step`, unless it is the one that was loaded or saved last."""
        self.wait()
        if step == self.saved:
            return
        self.saved = step
        tensors = training_state.state_tensors(model, optimizer)
        done = int(next(iter(optimizer.state.values()))["step"])  # without the batches that were skipped
        facts = {"world_size": distributed.world_size(), "optimizer_step": done, **log.state_dict()}
        log.sync()
        writer = training_state.prepare(self.run, tensors, step)
        if self.config.async_save:
            written = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
            self.pending = self.pool.submit(self._finish, written.result, step, facts)
        else:
            self._finish(functools.partial(dcp.save, tensors, storage_writer=writer), step, facts)

    def _finish(self, write: Callable[[], object], step: int, facts: dict) -> None:
        """Write (or wait until it is written), then publish."""
        with training_state.unfinished_removed(self.run, step):
            write()
            removed = self.lock is not None and not self.lock.there()
            if removed:  # the state in memory may be all that is left
                write_json(self.run / "run.json", self.facts)
            training_state.publish(self.run, step, facts, self.config.keep_last, self.group)
        if removed:
            raise UserError(f"{self.run}: the folder was removed or renamed while the run was writing to it. "
                            f"A new one holds the state after step {step}; restore metrics.jsonl and older "
                            "checkpoints if you need them, and continue with --resume=auto")

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete; raises its error, if any."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Raise what went wrong with the checkpoint that is being written, if anything did; does not wait."""
        if self.pending is not None and self.pending.done():
            self.wait()
