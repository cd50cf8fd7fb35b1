"""Weights in and out: published model folders, and the state of a training run.

    load_pretrained(folder)  <-  config.json, safetensors files (or legacy .bin, unpickled as tensors only), tokenizer
    save_pretrained(model)   ->  the same, in the layout of the model's family: opens in transformers, PEFT, vLLM
    save_state / load_state  <-> RUN/checkpoints/step-N/: torch.distributed.checkpoint over safetensors, resharding

    python -m mmed.checkpoints inspect FOLDER                      what it is, and the memory to train and to decode it
    python -m mmed.checkpoints export RUN FOLDER                   a run's weights as a model folder with its card
    python -m mmed.checkpoints merge FOLDER ADAPTER OUT            a LoRA adapter folded into its model
    python -m mmed.checkpoints extend FOLDER OUT --texts FILES     more vocabulary for a new language

Nothing here runs anything from a folder (DESIGN invariant 6; mmed/checkpoints/safe.py reads the tensors). Every output gets its name when
it is whole. A tensor that is missing, not expected or of another shape is an error that lists it, before memory is taken.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmed.checkpoints.families import FAMILIES, published_name, read_config, write_config
from mmed.checkpoints.safe import StoredTensor, TensorReader, fitted, header_bytes, stored_tensors
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, sync_folder, write_error, write_json, writing

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    import torch
    from torch import nn

    from mmed.model import ModelConfig, Transformer

SHARD_BYTES = 5 * 10 ** 9       # files of about this size, as the published ones are
FILE_BYTES = 32 << 20            # a rank's part of a checkpoint is cut into files of about this size, but into no more
FILES = 32                       # than so many: each is laid out in memory (3 times) before it is written
MAX_CONFIG_BYTES = 4 << 20


# --------------------------------------------------------------------------------------------------- published folders

def read_settings(path: Path) -> dict:
    """The object in a small JSON file of a model folder."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a config (limit {MAX_CONFIG_BYTES:,})")
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def load_config(folder: str | Path) -> ModelConfig:
    """The folder's `config.json`; its `generation_config.json` goes along in `extra`, to be written back on export."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a model folder holds config.json, *.safetensors and a tokenizer")
    try:
        config = read_config(read_settings(path))
    except UserError as error:
        raise UserError(f"{path.parent}/{error}" if str(error).startswith("config.json") else str(error)) from None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        config.extra["generation_config"] = read_settings(generation)
    return config


def match_weights(model: Transformer, folder: str | Path) -> list[tuple[torch.Tensor, StoredTensor]]:
    """(own parameter, where it is stored) for all but the LoRA matrices; an error that lists what does not fit."""
    folder, config = Path(folder), model.config
    stored = stored_tensors(folder)
    wanted = {published_name(config, name): parameter for name, parameter in model.named_parameters() if ".lora_" not in name}
    prefix = FAMILIES[config.family].prefix
    if not any(name.startswith(prefix) for name in stored):  # saved from the model without its head, as the published BLOOMs are
        stored = {name if name == published_name(config, "lm_head.weight") else prefix + name: tensor for name, tensor in stored.items()}
    needless = {published_name(config, "lm_head.weight")} if config.tie_word_embeddings else set()
    stray = [name for name in stored if name not in wanted and name not in needless and not name.endswith(".inv_freq")]
    return fitted(folder, wanted, stored, stray)


def load_weights(model: Transformer, folder: str | Path) -> None:
    """Fill `model`'s own parameters (not its LoRA matrices) from `folder`; a sharded model reads only its own rows.

    Tensors go from the file into the parameter itself, so the peak of host memory is the model and one small buffer.
    """
    import torch

    from mmed.model import local_rows

    reader = TensorReader()
    with torch.no_grad():
        for parameter, stored in sorted(match_weights(model, folder), key=lambda pair: (pair[1].path, pair[1].begin or 0)):
            local, rows = local_rows(parameter)
            if local.numel():
                reader.copy(stored, rows, local.detach())
    reader.close()


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of a folder's weights."""
    import torch

    counts: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.nbytes
    return getattr(torch, max(counts, key=counts.get))


def has_tokenizer(path: str | Path) -> bool:
    """Whether this is a tokenizer file, or a folder with one."""
    path = Path(path)
    return path.is_file() or any((path / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def load_pretrained(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"):
    """(`Transformer` in eval mode, tokenizer or None if the folder has none) of a published model folder; dtype: fp32."""
    import torch

    from mmed.model import Transformer
    from mmed.tokenizer import load_tokenizer

    folder = Path(folder)
    config = load_config(folder)
    if config.num_hidden_layers > (tensors := len(stored_tensors(folder))):  # a thousand layers take half a minute even without memory
        raise UserError(f"{folder}: its weights do not fit its config.json: {config.num_hidden_layers} layers, but {tensors} tensors")
    with torch.device("meta"):
        model = Transformer(config)
    match_weights(model, folder)  # before memory is taken
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only {config.vocab_size} rows")
    model = model.to(dtype or torch.float32).to_empty(device=device)
    load_weights(model, folder)
    return model.eval(), tokenizer


def save_pretrained(model: Transformer, tokenizer, folder: str | Path, dtype: torch.dtype | None = None,
                    shard_bytes: int = SHARD_BYTES, more: dict[str, str] | None = None) -> None:
    """Write `model` (sharded or not; every rank calls) as its family's folder; `tokenizer` brings its own files along.

    `more`: further text files by name (the model card). Tensors are gathered and written one at a time.
    """
    import torch

    from mmed.training import distributed

    folder, main = Path(folder), distributed.is_main()
    stored = dtype or next(model.parameters()).dtype
    dtype_name = str(stored).removeprefix("torch.")
    config = write_config(model.config, dtype_name)  # before anything is written: it may be refused
    tensors = [(published_name(model.config, name), parameter) for name, parameter in model.named_parameters()]
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    size = 0
    for name, parameter in tensors:
        nbytes = parameter.numel() * stored.itemsize
        if size and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, parameter))
        size += nbytes
    building = folder.with_name(folder.name + ".tmp")
    files = ["model.safetensors"] if len(shards) == 1 else \
        [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    total = sum(parameter.numel() for _, parameter in tensors) * stored.itemsize
    if main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        free = shutil.disk_usage(building).free
        if free < total * 1.02:
            raise UserError(f"{folder}: the weights need {total:,} bytes, {free:,} are free; make room")
    for name, shard in zip(files, shards, strict=True):
        file = open(building / name, "wb") if main else None
        with writing(building / name, total):
            if main:
                file.write(header_bytes([(n, dtype_name, tuple(p.shape)) for n, p in shard]))
            for _, parameter in shard:
                value = distributed.whole(parameter.detach())  # a collective: every rank takes part
                if main:
                    file.write(memoryview(value.to(dtype=stored, device="cpu").contiguous().view(torch.uint8).numpy()).cast("B"))
            if main:
                file.close()
    if main:
        if len(files) > 1:
            names = {n: file for file, shard in zip(files, shards, strict=True) for n, _ in shard}
            write_json(building / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": names})
        write_json(building / "config.json", config)
        ids = {key: model.config.extra[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model.config.extra}
        write_json(building / "generation_config.json", model.config.extra.get("generation_config") or ids)
        for path in tokenizer.files if tokenizer is not None else []:
            shutil.copyfile(path, building / Path(path).name)
        for name, text in (more or {}).items():
            (building / name).write_text(text, encoding="utf-8")
        replace_folder(building, folder)
    distributed.barrier()


def replace_folder(building: Path, folder: Path) -> None:
    """Give a finished folder its name; one that stood there before goes away only when the new one is whole."""
    for path in building.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(building)
    old = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(building, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ state of a training run

def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of the run by name: trained parameters, and both moments of each (made as zeros before the first step)."""
    import torch

    from mmed.training import distributed

    distributed.reshard(model)
    tensors, fresh = {}, not optimizer.state
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.detach()
        state = optimizer.state[parameter]
        assert state or fresh, f"{name}: the optimizer knows nothing of this parameter"
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if parameter.is_cuda else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{key}.{name}"] = state[key]
    return tensors


def save_state(run: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, facts: dict, keep_last: int = 2) -> Path:
    """Write RUN/checkpoints/step-N and point `latest` at it; every rank calls. Older ones beyond `keep_last` go afterwards."""
    return write_state(run, state_tensors(model, optimizer), step, facts, keep_last)


def write_state(run: str | Path, tensors: dict[str, torch.Tensor], step: int, facts: dict, keep_last: int = 2, group=None) -> Path:
    """`save_state` of tensors at hand (mmed/checkpoints/async_save.py: a copy); ranks meet in `group`.

        step-N.tmp/  every rank: its shards -> fsync -> sha256     rank 0: state.json with all sha256
        step-N       rank 0: renamed        latest  names it       older ones go: renamed first, so that no half one has a name

    Killed between any two of these, `latest` names a checkpoint that is whole (tests/training/test_faults.py).
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    from mmed.training import distributed

    folder = Path(run) / "checkpoints"
    building, final = folder / f"step-{step}.tmp", folder / f"step-{step}"
    for name, tensor in tensors.items():
        if not torch.isfinite(distributed.local(tensor)).all():
            raise UserError(f"{final}: not written, {name} holds values that are not finite; the checkpoint before is whole")
    need = sum(t.numel() * t.element_size() for t in tensors.values())
    world = distributed.world_size()
    try:
        if distributed.is_main():
            with writing(folder, need):
                folder.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(folder).free
                if free < need * 1.05:
                    raise UserError(f"{final}: a checkpoint needs {need:,} bytes, {free:,} are free; make room and go on with --resume=auto")
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
        distributed.barrier(group)
        files, size = {}, 0
        for name, tensor in tensors.items():
            files[name] = size // (max(FILE_BYTES, need // world // FILES) * world)
            size += tensor.numel() * tensor.element_size()
        files = {name: sorted(set(files.values())).index(number) + 1 for name, number in files.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "torch.distributed is uninitialized": so it is, in one process
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(building), files, save_distributed=True), process_group=group)
        own = {path.name: sha256_of(path) for path in sorted(building.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors"))}
        hashes = {name: value for part in distributed.gather(own, group) for name, value in part.items()}
        if distributed.is_main():
            wait_for_files(building, hashes)
            with writing(final):
                write_json(building / "state.json", sealed({"step": step, **facts, "sha256": hashes}))
                replace_folder(building, final)
                with atomic_write(folder / "latest") as file:
                    file.write(final.name + "\n")
                older = [path for path in checkpoints(run) if int(path.name[5:]) < step]
                newer = [path for path in checkpoints(run) if int(path.name[5:]) > step]  # of a future that --resume=step-N gave up
                for path in older[keep_last - 1:] + newer:
                    doomed = path.with_name(path.name + ".old.tmp")
                    os.replace(path, doomed)
                    shutil.rmtree(doomed, ignore_errors=True)
    except (CheckpointException, UserError) as error:
        if distributed.is_main():
            shutil.rmtree(building, ignore_errors=True)  # the half of it would only fill the disk
        if isinstance(error, CheckpointException):
            cause = next(iter(error.failures.values()))[0]
            raise write_error(cause, building, need) if isinstance(cause, OSError) else RuntimeError(str(error)) from error
        raise
    distributed.barrier(group)
    return final


def wait_for_files(folder: Path, names: Iterable[str], seconds: float = 60.0) -> None:
    """Until all files are to be seen here: on a network file system what another node has written may show late."""
    deadline = time.monotonic() + seconds
    while missing := [name for name in names if not (folder / name).is_file()]:
        if time.monotonic() > deadline:
            raise UserError(f"{folder / missing[0]}: not to be seen after {seconds:g} s, though its rank has written it; is {folder.parent} on a file "
                            "system that all nodes share?")
        time.sleep(0.2)
        os.listdir(folder)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(state: dict) -> dict:
    """`state` with the sha256 of itself, so that a flipped bit in state.json is found like one in a shard."""
    bare = {key: value for key, value in state.items() if key != "seal"}
    return bare | {"seal": hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def checkpoints(run: str | Path) -> list[Path]:
    """All finished checkpoints of a run, the newest step first (by number, not by the clock)."""
    folder = Path(run) / "checkpoints"
    return sorted((p for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()), key=lambda p: -int(p.name[5:]))


def latest_state(run: str | Path, name: str = "") -> Path | None:
    """The checkpoint called `name`, else the one that `latest` names, or None for a run without one."""
    pointer = Path(run) / "checkpoints" / "latest"
    every = checkpoints(run)
    if not name:
        if not pointer.is_file():  # a kill between a first checkpoint's own name and `latest`, or a file that got lost
            return every[0] if every else None
        name = pointer.read_text(errors="replace").strip()
    if name not in [path.name for path in every]:
        hint = f"--resume={good.name} goes on from there" if (good := newest_good(run)) else "there is no whole one, start anew"
        raise UserError(f"{pointer if pointer.is_file() else pointer.parent}: {name[:40]!r} is not a checkpoint there; {hint}")
    return pointer.parent / name


def damage(folder: Path, rank: int = 0, world: int = 1) -> tuple[dict | None, str]:
    """(state.json, "") of a whole checkpoint, else (None, what is wrong). Several ranks look at a part of the files each."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_bytes())
        if sealed(state)["seal"] != state["seal"]:
            return None, f"{path}: damaged (its seal does not fit)"
        hashes = state["sha256"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return None, f"{path}: damaged ({type(error).__name__})"
    there = {p.name for p in folder.glob("*.safetensors")}
    if strange := sorted(there ^ set(hashes)):
        return None, f"{folder / strange[0]}: " + ("not part of this checkpoint" if strange[0] in there else "missing")
    for name in sorted(hashes)[rank::world]:
        if sha256_of(folder / name) != hashes[name]:
            return None, f"{folder / name}: damaged (its sha256 is not the one in state.json)"
    return state, ""


def newest_good(run: str | Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint that is whole to the last bit."""
    return next((path for path in checkpoints(run) if path != but and damage(path)[0] is not None), None)


def _checked_state(folder: Path) -> dict:
    """A checkpoint's state.json, once every file of it has the sha256 written there."""
    from mmed.training import distributed

    state, wrong = damage(folder, distributed.rank(), distributed.world_size())
    if state is None:
        good = newest_good(folder.parents[1], but=folder)
        raise UserError(f"{wrong}; " + (f"--resume={good.name} goes on from the one before it, which is whole" if good else "no other is whole, start anew"))
    return state


def _fill(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Fill model and optimizer from a checkpoint, on any number of ranks; returns its state.json."""
    state = _checked_state(folder)
    _fill(state_tensors(model, optimizer), folder)
    for parameter_state in optimizer.state.values():
        parameter_state["step"].fill_(state["optimizer_step"])
    return state


def load_trained(folder: Path, model: nn.Module) -> dict:
    """Fill what trains in `model` from a checkpoint, without the optimizer's moments (for export); returns its state.json."""
    state = _checked_state(folder)
    _fill({f"model.{name}": parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}, folder)
    return state
