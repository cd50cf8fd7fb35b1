"""The weight files of a model folder: safetensors, or legacy .bin files read as tensors only.

    stored_tensors(folder)     name -> StoredTensor (file, dtype, shape), of one file or of several with an
                               index
    copy_weights(pairs)        rows of tensors from disk straight into parameters, converted to their dtype

A sharded model reads only its own rows, a piece at a time, so the peak of host memory is the model and one
small piece.
"""
from __future__ import annotations

import itertools
import json
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

READ_BYTES = 64 << 20  # read and converted at a time
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
    """Every tensor of a model folder; safetensors rather than .bin. Two sets of weights of one kind are an
    error.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if index.is_file():
            files = _indexed_files(index)
            if single.is_file() and set(files.values()) != {name}:
                raise UserError(
                    f"{folder}: holds two sets of weights, {name} and {index.name} with its files; remove "
                    f"one of them"
                )
            return _read_indexed(folder, index.name, files)
        if single.is_file():
            return read_header(single)
    raise UserError(f"{folder}: no model.safetensors, pytorch_model.bin or index of either")


def _indexed_files(index: Path) -> dict[str, str]:
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index}: no weight_map")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{index}: {str(file)[:100]!r} is not the name of a file in this folder")
    return files


def _read_indexed(folder: Path, index: str, files: dict[str, str]) -> dict[str, StoredTensor]:
    tensors = {
        name: tensor
        for file in sorted(set(files.values()))
        for name, tensor in read_header(folder / file).items() if files.get(name) == file
    }
    if missing := sorted(set(files) - set(tensors)):
        raise UserError(
            f"{folder / files[missing[0]]}: lacks {missing[0]}, which {index} places there ({len(missing)} "
            f"missing)"
        )
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    check_file(path)
    if path.suffix == ".bin":
        return {
            name: StoredTensor(path, name, tensor.dtype if tensor.is_floating_point() else str(tensor.dtype),
                               tuple(tensor.shape))
            for name, tensor in _read_bin(path).items()
        }
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
        assert all(isinstance(value, torch.Tensor) for value in state.values()), "it holds more than tensors"
    except Exception as error:  # the unpickler meets arbitrary bytes and may raise anything
        reason = (str(error).splitlines() or [""])[0][:100]
        raise UserError(
            f"{path}: not readable as tensors alone ({reason}); take the model's safetensors files instead"
        ) from None
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


def fit(folder: str | Path, wanted: dict[str, torch.nn.Parameter], stored: dict[str, StoredTensor],
        unexpected: list[str]) -> list[tuple[torch.nn.Parameter, StoredTensor]]:
    """(parameter, where it is stored) for all `wanted`; one error lists whatever does not fit."""
    missing = [name for name in wanted if name not in stored]
    shapes = [
        f"{name} has shape {stored[name].shape}, expected {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if name in stored and stored[name].shape != tuple(parameter.shape)
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise UserError(f"{folder}: its weights do not fit its config.json: {'; '.join(faults)}")
    for name in wanted:
        if not isinstance(stored[name].dtype, torch.dtype):
            raise UserError(
                f"{stored[name].path}: {name} is {stored[name].dtype}; only floating-point weights are "
                f"supported"
            )
    return [(parameter, stored[name]) for name, parameter in wanted.items()]


@torch.no_grad()
def copy_weights(pairs: list[tuple[torch.Tensor, StoredTensor]]) -> None:
    """Fill each parameter (its own rows, if it is sharded) from disk."""
    pairs = sorted(pairs, key=lambda pair: pair[1].path)
    for path, group in itertools.groupby(pairs, key=lambda pair: pair[1].path):
        with open_weights(path) as rows_of:
            for parameter, stored in group:
                target, rows = local_rows(parameter)
                for start, stop in _pieces(stored, rows, len(target)):
                    piece = rows_of(stored.name)[start:stop]
                    target[start - rows.start:stop - rows.start].copy_(piece)


def _pieces(stored: StoredTensor, rows: slice, count: int) -> Iterator[tuple[int, int]]:
    """(first row, last row + 1) of pieces of at most READ_BYTES."""
    step = max(1, READ_BYTES * stored.shape[0] // max(1, stored.nbytes))
    for start in range(rows.start, rows.start + count, step):
        yield start, min(start + step, rows.start + count)


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of one folder hold the same numbers."""
    if one.shape != other.shape:
        return False
    with open_weights(one.path) as rows_of_one, open_weights(other.path) as rows_of_other:
        a, b = rows_of_one(one.name), rows_of_other(other.name)
        return all(
            torch.equal(a[start:stop], b[start:stop])
            for start, stop in _pieces(one, slice(0, None), one.shape[0]))


def header_bytes(tensors: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """The start of a safetensors file whose tensors (name, dtype, shape) follow in this order.

    The library writes whole dictionaries; with the header written first, tensors can be gathered and written
    one at a time.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
