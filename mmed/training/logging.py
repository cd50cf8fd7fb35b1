"""What a run says while it goes: its log, the bar, a profile. The host reads of the device only what is one step old.

    step k given to the device  ->  Late(facts of k)  ->  step k + 1 given to the device  ->  Late.read(): facts of k
"""
from __future__ import annotations

import json
import math
import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

from mmed.config import TrainConfig
from mmed.training.inspect_batch import in_short
from mmed.utils.errors import UserError
from mmed.utils.files import writing

WINDOW, FEWEST = 100, 32   # steps whose losses a step is held against, and how many there must be
SPIKE = 8.0                # robust deviations (1.4826 x median distance from the median) above the median


class Late:
    """A few numbers on their way from the device to the host, and when they were there (`clock`)."""

    def __init__(self, values: torch.Tensor):
        self.host, self.event, self.clock = values, None, time.perf_counter()
        if values.is_cuda:
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
            self.clock = time.perf_counter()
        return self.host.tolist()


def memory(device: torch.device) -> int:
    """Peak bytes held: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss may be that of the process which started this one
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Log:
    """metrics.jsonl and the bar's text. What it carries from step to step (`carried`) goes into checkpoints, so that the log of
    a resumed run is that of an undisturbed one."""

    def __init__(self, path: Path | None, bar, config: TrainConfig, device: torch.device, steps: int, first: int, state: dict, flops: float,
                 peak: float | None, world: int, names: Callable[[int], list[str]]):
        self.path, self.bar, self.config, self.device, self.steps, self.world = path, bar, config, device, steps, world
        self.file = open(path, "a", encoding="utf-8") if path else None
        self.flops, self.peak, self.positions, self.names = flops, peak, 0, names  # names: step -> what its batch holds
        self.tokens, self.skipped, self.recent = state.get("tokens", 0), state.get("skipped", 0), deque(state.get("recent", []), WINDOW)
        self.loss, self.norm = state.get("loss"), state.get("grad_norm", 0.0)
        self.before, self.after = state.get("validation_before", {}), {}  # validation loss before step 1, and the newest
        self.clock = time.perf_counter()
        self.last = {"step": first, "tokens": self.tokens, "clock": self.clock}

    def carried(self) -> dict:
        return {"tokens": self.tokens, "skipped": self.skipped, "recent": list(self.recent), "loss": self.loss, "grad_norm": self.norm,
                "validation_before": self.before}

    def read(self, step: int, lr: float, positions: int, late: Late) -> dict:
        """A step's line, once the device has got there."""
        targets, loss_sum, norm = late.read()
        self.clock = late.clock
        loss = loss_sum / max(targets, 1)
        self.positions += positions
        line = {"step": step, "tokens": self.tokens, "loss": loss, "lr": lr, "grad_norm": norm}
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self.not_finite(line)
        self.tokens += int(targets)
        self.loss, self.norm = loss, norm
        line["tokens"] = self.tokens
        if len(self.recent) >= FEWEST:
            middle = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(x - middle) for x in self.recent)
            height = (loss - middle) / max(spread, 0.01 * abs(middle), 1e-9)
            if height > SPIKE:
                line |= {"spike": round(height, 1), "batch": self.names(step)}
        self.recent.append(loss)
        return line

    def not_finite(self, line: dict) -> dict:
        """The line of a batch that was left out, or the end of the run."""
        names, step = self.names(line["step"]), line["step"]
        what = f"step {step}: loss {line['loss']}, gradient norm {line['grad_norm']}: not finite"
        line |= {"loss": None, "grad_norm": None, "nonfinite": True, "batch": names}
        self.skipped += 1
        if self.skipped <= self.config.skip_nonfinite:
            print(f"warning: {what}; batch left out ({self.skipped} of {self.config.skip_nonfinite}): {in_short(names)}", file=sys.stderr)
            return line
        self.write(line)
        error = UserError(f"{what}; {'' if self.config.step_in_backward else 'nothing was updated, '}the last checkpoint is whole. Rows {(step - 1) * self.config.global_batch_size} to "
                          f"{step * self.config.global_batch_size - 1}: {in_short(names)} (python -m mmed.training.inspect_batch show {self.config.out} {step} prints them). "
                          "Look at them, lower --learning_rate, try --precision=fp32, or leave such batches out with --skip_nonfinite=N")
        error.everywhere = True
        raise error

    def append(self, line: dict) -> None:
        if self.file:
            text = json.dumps(line) + "\n"
            with writing(self.path, len(text)):
                self.file.write(text)
                self.file.flush()

    def sync(self) -> None:
        """To the disk: a checkpoint must not be more durable than the lines that lead to it."""
        if self.file:
            with writing(self.path):
                os.fsync(self.file.fileno())

    def validated(self, line: dict, losses: dict) -> None:
        """Write a line with the validation loss of each language, and how far it is from that before step 1."""
        self.after = {name: loss.nats_per_token for name, loss in losses.items()}
        line = {**line, "validation_loss": self.after}
        bits = {name: loss.bits_per_byte for name, loss in losses.items() if loss.bits_per_byte is not None}
        line |= {"bits_per_byte": bits} if bits else {}
        if not line["step"]:
            self.before = self.after
            self.append(line)
            return
        line |= {"validation_change": {name: value - self.before[name] for name, value in self.after.items() if name in self.before}}
        self.write(line)

    def write(self, line: dict) -> None:
        step = line["step"]
        if step % self.config.log_every and step != self.steps and not line.keys() & {"validation_loss", "spike", "nonfinite"}:
            return
        seconds = max(self.clock - self.last["clock"], 1e-6)
        rate = self.positions * self.world / seconds
        line = {**line, "tokens_per_second": round(rate, 1), "targets_per_second": round((self.tokens - self.last["tokens"]) / seconds, 1),
                "mfu": round(rate / self.world * self.flops / self.peak, 4) if self.peak else None, "memory_bytes": memory(self.device),
                "seconds_left": round((self.steps - step) * seconds / max(1, step - self.last["step"]), 1)}
        self.append(line)
        if self.file and self.loss is not None:
            held = " validation " + " ".join(f"{k} {v:.2f}" for k, v in line["validation_loss"].items()) if "validation_loss" in line else ""
            self.bar.set_postfix_str(f"loss {self.loss:.3f} lr {line['lr']:.1e} {rate:,.0f} tok/s" + (f" mfu {line['mfu']:.1%}" if self.peak else "")
                                     + f" {line['memory_bytes'] / 1e9:.1f} GB{held}")
        self.last = {"step": step, "tokens": self.tokens, "clock": self.clock}
        self.positions = 0

    def pause(self) -> None:
        """What was not training (an evaluation, a checkpoint) does not count."""
        self.last["clock"] = time.perf_counter()


class Profile:
    """Record `steps` steps after WARM_UP, then write trace.json and print where the time went."""

    WARM_UP = 3

    def __init__(self, steps: int, folder: Path, device: torch.device):
        self.steps, self.path, self.seen, self.profiler, self.device = steps, folder / "trace.json", 0, None, device

    def step(self) -> None:
        """A step has been given to the device."""
        if not self.steps:
            return
        self.seen += 1
        if self.seen == self.WARM_UP:
            kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self.profiler = torch.profiler.profile(activities=kinds)
            self.profiler.start()
        elif self.seen == self.WARM_UP + self.steps:
            self.stop()

    def stop(self) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.path))
        order = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        print(self.profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=48), file=sys.stderr)
        print(f"profile: {self.path} (open it in ui.perfetto.dev)", file=sys.stderr)
        self.profiler, self.steps = None, 0
