"""The run folder (DESIGN section 3): what a run says of itself, its log, its lock, and the signal that ends it in good order.

    RUN/run.json         before step 0: resolved config, commit, versions, world size
    RUN/metrics.jsonl    one line a step
    RUN/checkpoints/     mmed/checkpoint.py
    RUN/model/ or adapter/, done.json at the end
"""
from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from mmed.config import TrainConfig
from mmed.errors import UserError
from mmed.files import atomic_write, read_jsonl


def run_facts(recipe: str, config: TrainConfig, tokenizer, steps: int) -> dict:
    """What run.json says: enough to repeat the run and to notice that something changed."""
    import platform
    import subprocess

    import torch

    from mmed import __file__ as package
    from mmed import distributed

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(package).parent, capture_output=True, text=True, check=False).stdout.strip()
    return {"recipe": recipe, "config": dataclasses.asdict(config), "steps": steps, "tokenizer": tokenizer.fingerprint if tokenizer else None,
            "commit": commit or None, "world_size": distributed.world_size(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"}


# Fields that may differ when a run is resumed: they change neither the data nor the mathematics.
FREE_ON_RESUME = {"out", "resume", "micro_batch_size", "compile", "activation_checkpointing", "log_every", "eval_every", "save_every", "keep_last",
                  "validation", "async_save", "profile", "dry_run", "shard_size"}


def check_resume(old: dict, new: dict) -> None:
    for key, value in old["config"].items():
        if key not in FREE_ON_RESUME and new["config"].get(key) != value:
            raise UserError(f"{new['config']['out']}: was started with --{key}={value}, now it is {new['config'].get(key)}; "
                            "give the old value, or another --out")
    if old.get("tokenizer") != new["tokenizer"]:
        raise UserError(f"{new['config']['out']}: was started with another tokenizer; give the old one, or another --out")


def keep_lines(path: Path, step: int) -> int:
    """Drop the lines of metrics.jsonl beyond `step` (they will be written again); returns the tokens seen by then."""
    tokens = 0
    lines = []
    if path.is_file():
        for _, line in _whole_lines(path):
            if line["step"] <= step:
                lines.append(line)
                tokens = max(tokens, line.get("tokens", 0))
    with atomic_write(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return tokens


def _whole_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The lines of a log whose last one may have been cut by a kill."""
    try:
        yield from read_jsonl(path)
    except UserError:
        return


class StopSignal:
    """SIGTERM and SIGINT ask for a checkpoint and an end after the current step; a second one ends at once."""

    def __init__(self) -> None:
        self.requested, self.name = False, "a signal"
        signal.signal(signal.SIGTERM, self)
        signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: object) -> None:
        if self.requested:
            os._exit(128 + number)
        self.requested, self.name = True, signal.Signals(number).name


def lock_folder(out: Path):
    """Hold RUN/lock while this process lives; a second run on the same folder is refused."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    file = open(out / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{out}: another run is writing to this folder; wait for it or give another --out") from None
    return file
