"""What a run says while it goes: its log, the bar, a profile. The host reads of the device only what is one step old.

    step k given to the device  ->  Late(facts of k)  ->  step k + 1 given to the device  ->  Late.read(): facts of k
"""
from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path

import torch

from mmed.config import TrainConfig
from mmed.errors import UserError


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
    """metrics.jsonl and the bar's text."""

    def __init__(self, file, bar, config: TrainConfig, device: torch.device, steps: int, first: int, tokens: int, flops: float,
                 peak: float | None, world: int):
        self.file, self.bar, self.config, self.device, self.steps, self.world = file, bar, config, device, steps, world
        self.flops, self.peak, self.tokens, self.positions = flops, peak, tokens, 0
        self.loss = self.norm = None
        self.last = {"step": first, "tokens": tokens, "clock": time.perf_counter()}

    def read(self, step: int, lr: float, positions: int, late: Late) -> tuple[dict, bool]:
        """(a step's line, do all ranks stop after it), once the device has got there."""
        targets, stopping, loss_sum, self.norm = late.read()
        self.clock = late.clock
        self.loss = loss_sum / max(targets, 1)
        self.tokens += int(targets)
        self.positions += positions
        if not (math.isfinite(self.loss) and math.isfinite(self.norm)):
            raise UserError(f"step {step}: loss {self.loss}, gradient norm {self.norm}: not finite; nothing was updated. The last checkpoint is "
                            f"whole; look at the batch, lower --learning_rate, or try --precision=fp32")
        return {"step": step, "tokens": self.tokens, "loss": self.loss, "lr": lr, "grad_norm": self.norm}, stopping > 0

    def write(self, line: dict) -> None:
        step = line["step"]
        if step % self.config.log_every and step != self.steps and "held_out" not in line:
            return
        seconds = max(self.clock - self.last["clock"], 1e-6)
        rate = self.positions * self.world / seconds
        line = {**line, "tokens_per_second": round(rate, 1), "targets_per_second": round((self.tokens - self.last["tokens"]) / seconds, 1),
                "mfu": round(rate / self.world * self.flops / self.peak, 4) if self.peak else None, "memory_bytes": memory(self.device),
                "seconds_left": round((self.steps - step) * seconds / max(1, step - self.last["step"]), 1)}
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            held = " held-out " + " ".join(f"{k} {v:.2f}" for k, v in line["held_out"].items()) if "held_out" in line else ""
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
