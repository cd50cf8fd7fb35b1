"""Checkpoints written beside the training: the state is copied to host memory, and a thread writes the copy.

    save(step 200)   copy (seconds) -> training goes on
                     thread: shards -> fsync -> sha256 -> step-200.tmp becomes step-200 -> `latest` names it
    killed before the last of these: `latest` names the checkpoint before, which is untouched

The order of file operations is `mmed.checkpoint.write_state`'s. Several ranks meet in a group of their own, so that the
thread's collectives never come between the training's.
"""
from __future__ import annotations

import threading
from pathlib import Path

from torch import nn, optim

from mmed import checkpoint, distributed


class Saver:
    """One checkpoint on its way at most: a second waits for the first."""

    def __init__(self, run: Path, keep_last: int, background: bool):
        self.run, self.keep_last, self.background = run, keep_last, background
        self.group = distributed.host_group() if background else None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, model: nn.Module, optimizer: optim.Optimizer, step: int, facts: dict) -> None:
        self.wait()
        tensors = checkpoint.state_tensors(model, optimizer)
        if not self.background:
            checkpoint.write_state(self.run, tensors, step, facts, self.keep_last)
            return
        copy = {name: tensor.cpu() if tensor.is_cuda else tensor.clone() for name, tensor in tensors.items()}
        self.thread = threading.Thread(target=self._write, args=(copy, step, facts))
        self.thread.start()

    def _write(self, tensors: dict, step: int, facts: dict) -> None:
        try:
            checkpoint.write_state(self.run, tensors, step, facts, self.keep_last, self.group)
        except BaseException as error:  # raised again by `wait`, in the training's own thread
            self.error = error

    def wait(self) -> None:
        """Until the checkpoint on its way is whole; its failure, if any, is raised here."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error
