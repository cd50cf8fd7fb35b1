"""The run folder (DESIGN section 3): what a run says of itself, its log, its lock, and whether it may go on as it was started.

    RUN/run.json         before step 0: resolved config, commit, versions, world size, fingerprints of data and model
    RUN/metrics.jsonl    one line a step
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
from collections.abc import Iterator
from pathlib import Path

from mmed import __file__ as package
from mmed.config import TrainConfig
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_jsonl

BLOCK, BLOCKS = 1 << 16, 64  # of each weight file so many blocks of so many bytes are read for its fingerprint


# ------------------------------------------------------------------------------------------------------------------ facts

def run_facts(recipe: str, config: TrainConfig, tokenizer, rows, steps: int) -> dict:
    """What run.json says: enough to repeat the run and to notice that something changed."""
    import torch  # here, because train.py sets its signal handlers before torch is imported

    from mmed.training import distributed

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(package).parent, capture_output=True, text=True, check=False).stdout.strip()
    return {"recipe": recipe, "config": dataclasses.asdict(config), "steps": steps, "tokenizer": tokenizer.fingerprint if tokenizer else None,
            "data": data_facts(config, rows), "model": model_facts(config.model),
            "commit": commit or None, "world_size": distributed.world_size(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"}


def data_facts(config: TrainConfig, rows) -> dict[str, str]:
    """name -> sha256 of each stream (as its .json has it) or file of exam items, in the order in which they are used."""
    if config.task == "pretrain":
        return {f"{i} {Path(s.prefix).name}": f"{s.meta['sha256']['bin']} {s.meta['sha256']['idx']}" for i, s in enumerate(rows.streams)}
    path = Path(config.data)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])}


def model_facts(model: str) -> dict[str, str]:
    """name -> fingerprint of config and weight files: blocks spread over each file, so that it takes no minutes. Other weights
    differ nearly everywhere; a change of a few bytes elsewhere in a large file is not seen."""
    if model.startswith("shape:"):
        return {}
    facts = {}
    for path in sorted(p for pattern in ("config.json", "*.safetensors", "*.bin") for p in Path(model).glob(pattern)):
        size = path.stat().st_size
        places = range(0, size, BLOCK) if size <= BLOCK * BLOCKS else [i * (size - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            for place in places:
                file.seek(place)
                digest.update(file.read(BLOCK))
        facts[path.name] = digest.hexdigest()
    return facts


# ----------------------------------------------------------------------------------------------------------------- resume

# Fields that may differ when a run is resumed: they change neither the data nor the mathematics. Paths may: what lies there is compared.
FREE_ON_RESUME = {"out", "resume", "micro_batch_size", "compile", "activation_checkpointing", "log_every", "eval_every", "save_every", "keep_last",
                  "validation", "async_save", "profile", "dry_run", "shard_size", "rank_timeout_seconds", "deterministic", "skip_nonfinite",
                  "allow_changed", "tokenizer"}
BY_CONTENT = {"model", "data"}


def shares(spec: str) -> str:
    """The weights of "NAME=WEIGHT,..." alone, which is what the names do not say."""
    return ",".join(part.partition("=")[2].strip() for part in spec.split(",") if part.strip())


def differences(old: dict, new: dict) -> dict[str, tuple[object, object]]:
    """name -> (then, now) of all that makes another run of it."""
    found: dict[str, tuple[object, object]] = {}
    for key, value in old["config"].items():
        now = new["config"].get(key)
        if key == "data" and new["config"]["task"] == "pretrain":
            value, now = (shares(str(v)) for v in (value, now))
        elif key == "model" and old.get("model"):
            continue
        elif key in BY_CONTENT and not str(value).startswith("shape:") and value != "source":
            continue
        if key not in FREE_ON_RESUME and now != value:
            found[key] = (value, now)
    if old.get("tokenizer") != new["tokenizer"]:
        found["tokenizer"] = (f"fingerprint {str(old.get('tokenizer'))[:12]}", f"fingerprint {str(new['tokenizer'])[:12]}")
    for kind in BY_CONTENT:
        then, now = old.get(kind) or {}, new[kind]
        for name in list(dict.fromkeys([*then, *now])):
            if then.get(name) != now.get(name) and kind not in found:
                found[kind] = tuple(f"{name} {facts[name][:12]}" if name in facts else f"no {name}" for facts in (then, now))
    if old["steps"] != new["steps"] and not found:
        found["steps"] = (old["steps"], new["steps"])
    return found


def check_resume(old: dict, new: dict) -> dict[str, tuple[object, object]]:
    """What differs and is allowed to (`allow_changed`); anything else that differs is refused with both values."""
    config = new["config"]
    try:
        found = differences(old, new)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config['out']}/run.json: not what a run writes ({error!r}); give another --out") from None
    allowed = {word.strip() for word in config["allow_changed"].split(",") if word.strip()}
    for key, (then, now) in found.items():
        if key not in allowed:
            raise UserError(f"{config['out']}: was started with --{key}={then}, now it is {now}; give the old one, or another --out, "
                            f"or go on all the same with --allow_changed={','.join([*sorted(allowed), key])}")
    return found


def not_identical(old: dict, new: dict) -> str:
    """Why a resumed run is equal to an uninterrupted one within rounding only; "" when it is equal to the last bit."""
    changed = [f"{name} {then} -> {now}" for name, then, now in (
        ("ranks", old["world_size"], new["world_size"]),
        *((key, old["config"].get(key), new["config"][key]) for key in ("micro_batch_size", "shard_size", "compile", "activation_checkpointing")),
        ("torch", old["versions"]["torch"], new["versions"]["torch"]), ("device", old["device"], new["device"])) if then != now]
    if not changed:
        return ""
    dropout = " and LoRA's dropout draws other numbers" if new["config"]["lora_rank"] and new["config"]["lora_dropout"] else ""
    return (f"{', '.join(changed)}: the order of data is the same; sums are rounded in another order{dropout}, so from here on the run equals "
            "an undisturbed one within rounding, not to the bit")


# -------------------------------------------------------------------------------------------------------------------- log

def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl beyond `step`: they will be written again."""
    lines = [line for _, line in _whole_lines(path) if isinstance(line.get("step"), int) and line["step"] <= step] if path.is_file() else []
    with atomic_write(path) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _whole_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The lines of a log whose last one may have been cut by a kill."""
    try:
        yield from read_jsonl(path)
    except UserError:
        return


# ------------------------------------------------------------------------------------------------------------------- lock

class FolderLock:
    """Hold RUN/lock while this process lives, before anything there is read or written; a second run there is refused.

    What earlier runs left half-written (*.tmp) goes, now that nobody can be writing it.
    """

    def __init__(self, out: Path):
        self.out, self.made = out, not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        while True:
            self.file = open(out / "lock", "a+")
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.file.seek(0)
                raise UserError(f"{out}: another run is writing to this folder ({self.file.read(200).strip() or 'unknown process'}); "
                                "wait for it, or give another --out") from None
            if self.there():
                break
            self.file.close()  # removed by its holder between our open and our lock
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        self.file.flush()
        for path in [*out.glob("*.tmp"), *(out / "checkpoints").glob("*.tmp"), *(out / "adapter").glob("*.tmp")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def there(self) -> bool:
        """Whether RUN is still the folder that was locked: not removed, renamed or made anew."""
        try:
            return os.path.samestat(os.stat(self.out / "lock"), os.fstat(self.file.fileno()))
        except OSError:
            return False

    def release(self) -> None:
        """Let go; a folder that was made for a run which then never began is removed again."""
        if self.made and self.there() and os.listdir(self.out) == ["lock"]:
            (self.out / "lock").unlink()
            self.out.rmdir()
        self.file.close()
