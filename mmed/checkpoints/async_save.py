"""Checkpoints written beside the training: the state is copied to host memory, and a thread writes the copy.

    save(step 200)   copy (seconds) -> training goes on
                     thread: shards -> fsync -> sha256 -> step-200.tmp becomes step-200 -> `latest` names it
    killed before the last of these: `latest` names the checkpoint before, which is untouched

The order of file operations is `mmed.checkpoints.training_state.write_state`'s. Several ranks meet in a group of their own, so that the
thread's collectives never come between the training's.
"""
from __future__ import annotations

import threading
from pathlib import Path

from torch import nn, optim

from mmed.checkpoints import training_state
from mmed.config import TrainConfig
from mmed.training import distributed
from mmed.training.logging import Log
from mmed.training.run_folder import FolderLock
from mmed.utils.errors import UserError
from mmed.utils.files import write_json


class Saver:
    """One checkpoint on its way at most: a second waits for the first."""

    def __init__(self, run: Path, facts: dict, lock: FolderLock | None, config: TrainConfig, saved: int):
        self.run, self.facts, self.lock, self.config, self.saved = run, facts, lock, config, saved
        self.group = distributed.host_group(config.rank_timeout_seconds) if config.async_save else None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, model: nn.Module, optimizer: optim.Optimizer, step: int, log: Log) -> None:
        """Write the state after `step`, unless that is what was loaded or saved last."""
        self.wait()
        if step == self.saved:
            return
        self.saved = step
        tensors = training_state.state_tensors(model, optimizer)
        # optimizer_step: steps that changed something; a batch that was left out did not
        facts = {"world_size": distributed.world_size(), "optimizer_step": int(next(iter(optimizer.state.values()))["step"]), **log.state_dict()}
        log.sync()
        if not self.config.async_save:
            self._write(tensors, step, facts)
            self.check()
            return
        copy = {name: tensor.cpu() if tensor.is_cuda else tensor.clone() for name, tensor in tensors.items()}
        self.thread = threading.Thread(target=self._write, args=(copy, step, facts), name="checkpoint")
        self.thread.start()

    def _write(self, tensors: dict, step: int, facts: dict) -> None:
        try:
            gone = self.lock is not None and not self.lock.there()
            if gone:  # somebody removed or renamed the folder: what is in memory may be all that is left
                write_json(self.run / "run.json", self.facts)
            training_state.write_state(self.run, tensors, step, facts, self.config.keep_last, self.group)
            if gone:
                raise UserError(f"{self.run}: the folder was removed or renamed while the run was writing to it. A new one holds the state after step "
                                f"{step}; put back what else is needed (metrics.jsonl, older checkpoints) and go on with --resume=auto")
        except BaseException as error:  # raised again by `wait` or `check`, in the training's own thread
            self.error = error

    def wait(self) -> None:
        """Until the checkpoint on its way is whole; its failure, if any, is raised here."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong with the checkpoint on its way, if anything did."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
