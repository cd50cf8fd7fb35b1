"""The run folder: what a run records about itself, its lock, and whether it may be resumed as it was started.

    RUN/run.json         before step 0: resolved config, commit, versions, fingerprints of data and model
    RUN/metrics.jsonl    one line per step
    RUN/checkpoints/     mmed/checkpoints/training_state.py
    RUN/lock             held while a run writes here
    RUN/model/ or adapter/, done.json at the end
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from mmed import __file__ as package
from mmed.config import TrainConfig
from mmed.data import ExamRows, PretrainRows
from mmed.tokenizer import Tokenizer
from mmed.training import distributed
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, try_lock, write_json, writing
from mmed.utils.fingerprints import file_hash

# What a run that was stopped or killed may leave in its folder.
UNFINISHED = ("stopped", "run.json.*.tmp", "metrics.jsonl.*.tmp", "done.json.*.tmp", "model.tmp",
              "model.old.tmp", "checkpoints/*.tmp", "adapter/*.tmp")
SAMPLE_BYTES, SAMPLES = 1 << 16, 64  # read of each weight file for its fingerprint

# Settings that may differ when a run is resumed: they change neither the data nor the mathematics.
FREE_ON_RESUME = {
    "out", "resume", "micro_batch_size", "compile", "activation_checkpointing", "log", "log_every",
    "eval_every", "save_every", "keep_last", "validation", "async_save", "dry_run", "shard_size",
    "rank_timeout_seconds", "deterministic", "skip_nonfinite", "tokenizer", "simulate_ranks"}
ROUNDING = ("micro_batch_size", "shard_size", "compile", "activation_checkpointing")


def run_facts(recipe: str, config: TrainConfig, tokenizer: Tokenizer | None, rows: PretrainRows | ExamRows,
              steps: int) -> dict:
    """The content of run.json: enough to repeat the run and to notice that something changed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    commit = None
    if git := shutil.which("git"):
        done = subprocess.run([git, "rev-parse", "HEAD"], cwd=Path(package).parent, capture_output=True,
                              text=True)
        commit = done.stdout.strip() or None
    template = {"chat template": tokenizer.chat_template} if tokenizer and config.task == "instruct" else {}
    return {"recipe": recipe, "config": dataclasses.asdict(config), "steps": steps,
            "tokenizer": tokenizer.fingerprint if tokenizer else None, "data": data_facts(config, rows),
            "model": model_facts(config.model), **template, "commit": commit,
            "world_size": distributed.world_size(), "device": device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__}}


def data_facts(config: TrainConfig, rows: PretrainRows | ExamRows) -> dict[str, str]:
    """Name -> sha256 of each stream (from its .json) or file of exam items, in the order of use."""
    if isinstance(rows, PretrainRows):
        return {f"{number} {Path(stream.prefix).name}": stream.digest
                for number, stream in enumerate(rows.streams)}
    path = Path(config.data)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return {file.name: file_hash(file) for file in files}


def model_facts(model: str) -> dict[str, str]:
    """Name -> fingerprint of config and weight files, from samples: different weights differ everywhere."""
    facts, folder = {}, Path(model)
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
        facts[path.name] = digest.hexdigest()
    return facts


def settings(facts: dict) -> dict[str, object]:
    """All that identifies a run, as name -> value. Data and model count by content rather than by path."""
    config = facts["config"]
    found = {key: value for key, value in config.items() if key not in {*FREE_ON_RESUME, "model", "data"}}
    found["data weights"] = [part.partition("=")[2].strip() for part in config["data"].split(",")]
    found |= {name: facts[name] for name in ("tokenizer", "chat template", "steps") if name in facts}
    for kind in ("data", "model"):
        found |= {f"{kind} {name}": value for name, value in facts.get(kind, {}).items()}
    return found | ({"model": config["model"]} if facts.get("model") == {} else {})  # of a named shape


def check_resume(old: dict, new: dict) -> None:
    """A `UserError` names a setting, or a file of data or model, that is not as it was when the run began.
    `new` may lack what is known only once data and model are open."""
    out = new["config"]["out"]
    try:
        then, now = settings({name: old[name] for name in new}), settings(new)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{out}/run.json: not a valid run file ({error!r}); give another --out") from None
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            before, after = (str(value)[:60] for value in (then.get(name), now.get(name)))
            raise UserError(f"{out}: was started with {name}={before}, now it is {after}; use the old "
                            "value or another --out")


def rounding_differences(old: dict, new: dict) -> list[str]:
    """What makes a resumed run equal to an uninterrupted one within rounding only, not to the last bit."""
    values = [("ranks", old["world_size"], new["world_size"]), ("device", old["device"], new["device"]),
              ("torch", old["versions"]["torch"], new["versions"]["torch"])]
    values += [(name, old["config"].get(name), new["config"][name]) for name in ROUNDING]
    return [f"{name} {then} -> {now}" for name, then, now in values if then != now]


def start(out: Path, facts: dict, old: dict | None, first: int) -> None:
    """Write run.json, or print how this continuation differs; drop the lines of metrics.jsonl after step
    `first`, which will be written again, and a torn last one."""
    if old is None:
        write_json(out / "run.json", facts)
    elif rounding := rounding_differences(old, facts):
        print(f"resumed after step {first}: {', '.join(rounding)}: the data is the same, but sums round "
              "differently, so the run is no longer bit-identical to an uninterrupted one", file=sys.stderr)
    path, last = out / "metrics.jsonl", first or -1
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    with atomic_write(path) as file:
        file.writelines(line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= last)


class FolderLock:
    """Holds RUN/lock while this process lives or the `with` block runs; removes what earlier runs left."""

    def __init__(self, out: Path):
        self.out, self.created = out, not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        self.file = open(out / "lock", "a+")
        if not try_lock(self.file):
            self.file.seek(0)
            raise UserError(f"{out}: another run is writing to this folder ({self.file.read(200).strip()}); "
                            "wait for it, or give another --out")
        with writing(out / "lock"):
            self.file.truncate(0)
            self.file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            self.file.flush()
        for path in [path for pattern in UNFINISHED for path in out.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def there(self) -> bool:
        """Whether RUN is still the folder that was locked: neither removed nor renamed nor replaced."""
        try:
            return os.path.samestat(os.stat(self.out / "lock"), os.fstat(self.file.fileno()))
        except OSError:
            return False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.created and self.there() and os.listdir(self.out) == ["lock"]:  # no run ever began
            shutil.rmtree(self.out)
        self.file.close()
