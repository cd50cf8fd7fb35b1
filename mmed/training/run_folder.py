"""The run folder: what a run records about itself, its lock, and whether it may be resumed as it was started.

    RUN/run.json         before step 0: resolved config, commit, versions, fingerprints of data and model
    RUN/metrics.jsonl    one line per step
    RUN/checkpoints/     mmed/checkpoints/training_state.py
    RUN/lock             held while a run writes here
    RUN/model/ or adapter/, done.json at the end
"""
from __future__ import annotations

import dataclasses
import fcntl
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
from mmed.utils.files import atomic_write
from mmed.utils.fingerprints import file_hash

SAMPLE_BYTES, SAMPLES = 1 << 16, 64  # read of each weight file for its fingerprint


# ------------------------------------------------------------------------------------------------------ facts

def run_facts(recipe: str, config: TrainConfig, tokenizer: Tokenizer | None, rows: PretrainRows | ExamRows,
              steps: int) -> dict:
    """The content of run.json: enough to repeat the run and to notice that something changed."""
    command = ["git", "rev-parse", "HEAD"]
    git = subprocess.run(command, cwd=Path(package).parent, capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {"recipe": recipe, "config": dataclasses.asdict(config), "steps": steps,
            "tokenizer": tokenizer.fingerprint if tokenizer else None, "data": data_facts(config, rows),
            "model": model_facts(config.model), "commit": git.stdout.strip() or None,
            "world_size": distributed.world_size(), "device": device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__}}


def data_facts(config: TrainConfig, rows: PretrainRows | ExamRows) -> dict[str, str]:
    """Name -> sha256 of each stream (from its .json) or file of exam items, in the order of use."""
    if isinstance(rows, PretrainRows):
        return {f"{number} {Path(stream.prefix).name}": f"{stream.hashes['bin']} {stream.hashes['idx']}"
                for number, stream in enumerate(rows.streams)}
    path = Path(config.data)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return {file.name: file_hash(file) for file in files}


def model_facts(model: str) -> dict[str, str]:
    """Name -> fingerprint of config and weight files, from samples spread over each file, which takes no
    minutes.

    Other weights differ nearly everywhere; a change of a few bytes elsewhere in a large file goes unnoticed.
    """
    facts = {}
    folder = Path(model)
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
        facts[path.name] = digest.hexdigest()
    return facts


# ----------------------------------------------------------------------------------------------------- resume

# Settings that may differ when a run is resumed: they change neither the data nor the mathematics.
FREE_ON_RESUME = {
    "out", "resume", "micro_batch_size", "compile", "activation_checkpointing", "log_every", "eval_every",
    "save_every", "keep_last", "validation", "async_save", "profile", "dry_run", "shard_size",
    "rank_timeout_seconds", "deterministic", "skip_nonfinite", "allow_changed", "tokenizer"}
# Of these, not the path counts but the content, if it was recorded.
BY_CONTENT = {"model", "data"}


def settings(facts: dict) -> dict[str, object]:
    """All that makes another run of it, as name -> value."""
    config = {key: value for key, value in facts["config"].items() if key not in FREE_ON_RESUME | BY_CONTENT}
    weights = [part.partition("=")[2].strip() for part in facts["config"]["data"].split(",")]
    content = {f"{kind} {name}": value for kind in BY_CONTENT for name, value in facts.get(kind, {}).items()}
    if not facts.get("model"):
        content["model"] = facts["config"]["model"]
    rest = {"data weights": weights, "tokenizer": facts.get("tokenizer"), "steps": facts.get("steps")}
    return config | content | rest


def check_resume(old: dict, new: dict) -> dict[str, tuple[object, object]]:
    """Name -> (then, now) of what differs and is allowed to; a `UserError` names anything else that differs.

    `new` may lack what is not known yet (data, model, tokenizer, steps): then only the rest is compared.
    """
    config, changed = new["config"], {}
    allowed = {name.strip() for name in config["allow_changed"].split(",")}
    try:
        then, now = settings(old), settings(new)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config['out']}/run.json: not what a run writes ({error!r}); give another --out") \
            from None
    known = {"tokenizer", "data", "model", "steps"} & new.keys()
    for name in dict.fromkeys([*then, *now]):
        kind = name.split()[0]
        if then.get(name) == now.get(name) or kind in {"tokenizer", "data", "model", "steps"} - known:
            continue
        if kind == "steps" and changed:  # follows from what was allowed to differ
            continue
        changed[name] = (then.get(name), now.get(name))
        if kind not in allowed and name not in allowed:
            before, after = (str(value)[:60] for value in changed[name])
            names = ",".join(sorted(allowed - {""} | {kind}))
            raise UserError(f"{config['out']}: was started with {name}={before}, now it is {after}; give the "
                            f"old one or another --out, or continue with --allow_changed={names}")
    return changed


def rounding_differences(old: dict, new: dict) -> list[str]:
    """What makes a resumed run equal to an uninterrupted one within rounding only, not to the last bit."""
    values = [("ranks", old["world_size"], new["world_size"]), ("device", old["device"], new["device"]),
              ("torch", old["versions"]["torch"], new["versions"]["torch"])]
    values += [(name, old["config"].get(name), new["config"][name])
               for name in ("micro_batch_size", "shard_size", "compile", "activation_checkpointing")]
    return [f"{name} {then} -> {now}" for name, then, now in values if then != now]


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, which will be written again, and a last one that a kill
    cut short."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    with atomic_write(path) as file:
        file.writelines(line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step)


# ------------------------------------------------------------------------------------------------------- lock

class FolderLock:
    """Hold RUN/lock while this process lives; a second run in the folder is rejected.

    What earlier runs left unfinished (*.tmp) is removed, now that nobody can be writing it.
    """

    def __init__(self, out: Path):
        self.out, self.created = out, not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        self.file = open(out / "lock", "a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read(200).strip() or "unknown process"
            raise UserError(f"{out}: another run is writing to this folder ({holder}); wait for it, or give "
                            "another --out") from None
        except OSError as error:
            print(f"warning: {out}: no locks on this file system ({error.strerror}); start only one run here",
                  file=sys.stderr)
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        self.file.flush()
        for path in [*out.glob("*.tmp"), *out.glob("checkpoints/*.tmp"), *out.glob("adapter/*.tmp")]:
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

    def release(self) -> None:
        """Let go. A folder that was created for a run that never began is removed again."""
        if self.created and self.there() and os.listdir(self.out) == ["lock"]:
            shutil.rmtree(self.out)
        self.file.close()
