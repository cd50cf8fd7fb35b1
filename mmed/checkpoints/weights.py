"""The weight files of a model folder: safetensors, or legacy .bin files read as tensors only.

    stored_tensors(folder)     name -> StoredTensor (file, dtype, shape), of one file or several with an index
    copy_weights(pairs)        rows of tensors from disk straight into parameters, converted to their dtype

A sharded model reads only its own rows; the peak of host memory is the model and one tensor.
"""
from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmed.model import local_rows
from mmed.utils.errors import UserError
from mmed.utils.files import check_file, read_json

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    name: str
    dtype: torch.dtype | str  # the file's own name for a dtype that is not floating point
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 1)


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder; safetensors rather than .bin. Two sets of one kind are an error."""
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if index.is_file():
            files = _indexed_files(index)
            if single.is_file() and set(files.values()) != {name}:
                raise UserError(f"{folder}: holds two sets of weights, {name} and {index.name} with its "
                                "files; remove one of them")
            tensors: dict[str, StoredTensor] = {}
            for file in sorted(set(files.values())):
                tensors |= {key: value for key, value in read_header(folder / file).items()
                            if files.get(key) == file}
            if missing := sorted(set(files) - set(tensors)):
                raise UserError(f"{folder / files[missing[0]]}: lacks {missing[0]}, which {index.name} "
                                f"places there ({len(missing)} missing)")
            return tensors
        if single.is_file():
            return read_header(single)
    raise UserError(f"{folder}: no model.safetensors, pytorch_model.bin or index of either")


def _indexed_files(index: Path) -> dict[str, str]:
    """Tensor -> file in the same folder."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index}: no weight_map")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{index}: {str(file)[:100]!r} is not the name of a file in this folder")
    return files


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    check_file(path)
    if path.suffix == ".bin":
        state = _read_bin(path).items()
        return {name: StoredTensor(path, name, value.dtype if value.is_floating_point() else str(value.dtype),
                                   tuple(value.shape)) for name, value in state}
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                dtype = DTYPES.get(part.get_dtype(), part.get_dtype())
                tensors[name] = StoredTensor(path, name, dtype, tuple(part.get_shape()))
    except SafetensorError as error:
        raise UserError(f"{path}: damaged safetensors file ({error}); download it again") from None
    return tensors


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    """A legacy state dict: tensors and nothing else; what a pickle would execute is not executed."""
    try:
        zipped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds more than tensors")
    except Exception as error:  # the unpickler meets arbitrary bytes and may raise anything
        reason = (str(error).splitlines() or [""])[0][:100]
        raise UserError(f"{path}: not readable as tensors alone ({reason}); take the model's safetensors "
                        "files instead") from None
    return state


@contextmanager
def open_weights(path: Path) -> Iterator[Callable[[str], Any]]:
    """A function from a tensor's name to something that is indexed by rows."""
    if path.suffix == ".bin":
        yield _read_bin(path).__getitem__
    else:
        with safe_open(path, framework="pt") as file:
            yield file.get_slice


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one small file (an adapter)."""
    names = list(read_header(path))
    with open_weights(path) as rows_of:
        return {name: rows_of(name)[:] for name in names}


@torch.no_grad()
def copy_weights(pairs: list[tuple[torch.Tensor, StoredTensor]]) -> None:
    """Fill each parameter (its own rows, if it is sharded) from disk."""
    pairs = sorted(pairs, key=lambda pair: pair[1].path)
    for path, group in itertools.groupby(pairs, key=lambda pair: pair[1].path):
        with open_weights(path) as rows_of:
            for parameter, stored in group:
                target, rows = local_rows(parameter)
                if len(target):
                    target.copy_(rows_of(stored.name)[rows])


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of one folder hold the same numbers."""
    with open_weights(one.path) as rows_of_one, open_weights(other.path) as rows_of_other:
        return torch.equal(rows_of_one(one.name)[:], rows_of_other(other.name)[:])


def has_value(stored: StoredTensor, value: float) -> bool:
    """Whether a stored number is `value`, to the three digits of bf16."""
    with open_weights(stored.path) as rows_of:
        found = rows_of(stored.name)[...]
    return found.numel() == 1 and math.isclose(float(found), value, rel_tol=0.01)
