"""metrics.jsonl and the progress bar. The host reads from the device only what is one step old.

    step k is queued -> its numbers are copied in the background -> step k + 1 is queued -> line of step k

`tokens` counts the input tokens of all global batches so far, over all ranks and without padding; `targets`
counts those whose label carries loss. Skipped batches count in neither. With --log the numbers of each line
also go to TensorBoard or Weights & Biases.
"""
from __future__ import annotations

import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from mmed.config import TrainConfig
from mmed.data import ExamRows, PretrainRows
from mmed.training import distributed
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import writing

Report = Callable[[int, dict[str, float]], object]  # given a step and its numbers


def peak_memory(device: torch.device) -> int:
    """Peak bytes held: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss may be inherited from the parent process
    found = re.search(r"VmHWM:\s*(\d+)", status.read_text() if status.is_file() else "")
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def to_tensorboard(config: TrainConfig, first: int) -> Report:
    """Write to OUT/tensorboard; steps after `first` from an earlier start are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(f"{config.out}/tensorboard", purge_step=first + 1)

    def report(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()
    return report


def to_wandb(config: TrainConfig, first: int) -> Report:
    """Write to OUT/wandb; it is also sent if WANDB_MODE says so or, without WANDB_MODE, if there is a key."""
    wandb = require_extra("wandb", "wandb")
    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    run = wandb.init(project="mmed", name=Path(config.out).name, dir=config.out, config=vars(config),
                     mode=mode)
    return lambda step, numbers: run.log(numbers, step=step)


class Log:
    """metrics.jsonl and the bar's text; ranks other than 0 count, but write nothing. `flops` per token and
    the device's `peak` (or None) give the MFU; `state` is what `state_dict` gave to the checkpoint."""

    def __init__(self, config: TrainConfig, device: torch.device, first: int, steps: int, state: dict,
                 flops: float, peak: float | None, rows: PretrainRows | ExamRows):
        self.config, self.device, self.steps, self.rows = config, device, steps, rows
        self.flops, self.peak = flops, peak
        self.tokens, self.targets = state.get("tokens", 0), state.get("targets", 0)
        self.skipped = state.get("skipped", 0)
        self.loss: float | None = state.get("loss")
        # loss by language before step 1 and latest, if measured on the same documents
        self.validation_on = config.validation
        known = state if state.get("validation_on") == config.validation else {}
        self.validation_before, self.validation_after = (
            {language: math.nan if loss is None else loss for language, loss in known.get(name, {}).items()}
            for name in ("validation_before", "validation_after"))
        # line and numbers of a step given to the device, the end of their copy, when they were given
        self.pending: tuple[dict, torch.Tensor, torch.cuda.Event | None, float] | None = None
        self.clock = time.perf_counter()
        self.last = self.tokens, self.targets, self.clock  # of the last line
        self.path = Path(config.out) / "metrics.jsonl"
        self.file = open(self.path, "a", encoding="utf-8") if distributed.is_main() else None
        self.report: Report | None = None
        if self.file and config.log != "none":
            self.report = (to_wandb if config.log == "wandb" else to_tensorboard)(config, first)
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=self.file is None, file=sys.stderr,
                        mininterval=0.5, dynamic_ncols=True)

    def state_dict(self) -> dict:
        """For checkpoints: the log of a resumed run is that of an uninterrupted one."""
        names = ("tokens", "targets", "skipped", "loss", "validation_on", "validation_before",
                 "validation_after")
        return {name: getattr(self, name) for name in names}

    def add(self, step: int, lr: float, values: torch.Tensor) -> None:
        """Record a step queued on the device, and write the line of the step before. `values`, over all
        ranks: target tokens, tokens of text, summed loss, gradient norm."""
        host = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event() if values.is_cuda else None
        if event:
            event.record()
        self.flush()
        self.pending = {"step": step, "lr": lr}, host, event, time.perf_counter()
        self.bar.update()

    def flush(self) -> None:
        """Write the line of the last step; waits for the device."""
        if line := self.take():
            self.write(line)

    def take(self) -> dict:
        """The line of the last step, not yet written; empty if there is none."""
        if self.pending is None:
            return {}
        (line, host, event, self.clock), self.pending = self.pending, None
        if event:
            event.synchronize()
            self.clock = time.perf_counter()
        targets, tokens, loss_sum, norm = host.tolist()
        if not targets:  # nothing was learnt
            return line | {"tokens": self.tokens, "targets": self.targets, "loss": None, "grad_norm": None}
        loss = loss_sum / targets
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self.not_finite(line, loss, norm)
        self.tokens += int(tokens)
        self.targets += int(targets)
        self.loss = loss
        return line | {"tokens": self.tokens, "targets": self.targets, "loss": loss, "grad_norm": norm}

    def not_finite(self, line: dict, loss: float, norm: float) -> dict:
        """The line of a batch that was skipped, or the end of the run."""
        step, size = line["step"], self.config.global_batch_size
        names = self.rows.names(self.rows.batch(step - 1, size))
        what = f"step {step}: loss {loss}, gradient norm {norm}: not finite"
        line |= {"tokens": self.tokens, "targets": self.targets, "loss": None, "grad_norm": None,
                 "nonfinite": True, "batch": names}
        self.skipped += 1
        if self.skipped <= self.config.skip_nonfinite:
            if distributed.is_main():
                print(f"warning: {what}; batch skipped ({self.skipped} of {self.config.skip_nonfinite}), "
                      f"{self.path} names its documents", file=sys.stderr)
            return line
        self.write(line)
        error = UserError(
            f"{what}; nothing was updated, and the last checkpoint is complete. Rows {(step - 1) * size} to "
            f"{step * size - 1}: {', '.join(names)} (to print them: python -m mmed.training.inspect_batch "
            f"show {self.config.out} {step}). Check them, lower --learning_rate, try --precision=fp32, or "
            "skip such batches with --skip_nonfinite=N")
        error.everywhere = True
        raise error

    def validated(self, line: dict, losses: dict) -> None:
        """Write a step's line (empty: before step 1) with each language's validation loss and its change."""
        self.validation_after = {name: loss.nats_per_token for name, loss in losses.items()}
        bits = {name: loss.bits_per_byte for name, loss in losses.items() if loss.bits_per_byte is not None}
        line = {"step": 0, "tokens": 0, "targets": 0} | line | {"validation_loss": self.validation_after}
        line |= {"bits_per_byte": bits} if bits else {}
        if line["step"]:
            line["validation_change"] = {name: value - self.validation_before[name]
                                         for name, value in self.validation_after.items()
                                         if name in self.validation_before}
            self.write(line)
        else:
            self.validation_before = self.validation_after
            self.append(line)
        self.pause()

    def write(self, line: dict) -> None:
        step = line["step"]
        due = step % self.config.log_every == 0 or step == self.steps
        if not due and not line.keys() & {"validation_loss", "nonfinite"}:
            return
        last_tokens, last_targets, last_clock = self.last
        seconds = max(self.clock - last_clock, 1e-6)
        rate, peak = (self.tokens - last_tokens) / seconds, (self.peak or 0) * distributed.world_size()
        line |= {"tokens_per_second": round(rate, 1),
                 "targets_per_second": round((self.targets - last_targets) / seconds, 1),
                 "mfu": round(rate * self.flops / peak, 4) if peak else None,
                 "memory_bytes": peak_memory(self.device)}
        self.append(line)
        self.last = self.tokens, self.targets, self.clock
        if self.loss is not None:
            shown = [f"loss {self.loss:.3f} lr {line['lr']:.1e} {line['tokens_per_second']:,.0f} tok/s"]
            shown += [f"mfu {line['mfu']:.1%}"] if line["mfu"] else []
            shown += [f"{line['memory_bytes'] / 1e9:.1f} GB"]
            shown += [f"{name} {value:.2f}" for name, value in line.get("validation_loss", {}).items()]
            self.bar.set_postfix_str(" ".join(shown))

    def append(self, line: dict) -> None:
        if self.file:
            text = json.dumps(line) + "\n"
            with writing(self.path, len(text)):
                self.file.write(text)
                self.file.flush()
            if self.report:
                numbers = {}
                for name, value in line.items():
                    if isinstance(value, dict):
                        numbers |= {f"{name}/{language}": number for language, number in value.items()}
                    elif isinstance(value, int | float) and name != "step":
                        numbers[name] = value
                self.report(line["step"], numbers)

    def sync(self) -> None:
        """Force lines to the disk: a checkpoint must not be more durable than the lines before it."""
        if self.file:
            with writing(self.path):
                os.fsync(self.file.fileno())

    def pause(self) -> None:
        """Do not count the time since the last line: it was an evaluation or a checkpoint."""
        self.last = *self.last[:2], time.perf_counter()
