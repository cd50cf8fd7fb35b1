"""The weight files of a model folder: safetensors, or legacy .bin files read as tensors only.

Files are mapped: a number is read when it is used, so a sharded model reads only its own rows, and the peak
of host memory is the model and one tensor.
"""
from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from mmed.utils.errors import UserError
from mmed.utils.files import check_file, read_json

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def stored_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder; safetensors rather than .bin. Two sets of one kind are an error."""
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if index.is_file():
            files = _indexed_files(index)
            if single.is_file() and set(files.values()) != {name}:
                raise UserError(f"{folder}: contains two sets of weights, {name} and {index.name} with its "
                                "files; remove one of them")
            parts = {file: read_tensors(folder / file) for file in sorted(set(files.values()))}
            if missing := [tensor for tensor, file in files.items() if tensor not in parts[file]]:
                raise UserError(f"{folder / files[missing[0]]}: lacks {missing[0]}, which {index.name} "
                                f"places there ({len(missing)} missing)")
            return {tensor: parts[file][tensor] for tensor, file in files.items()}
        if single.is_file():
            return read_tensors(single)
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


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file by name; what a pickle would execute is not executed."""
    check_file(path)
    try:
        if path.suffix != ".bin":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it contains more than tensors")
        return state
    except Exception as error:  # the unpickler meets arbitrary bytes and may raise anything
        reason = (str(error).splitlines() or [""])[0][:100]
        raise UserError(f"{path}: damaged, or not only tensors ({reason}); download it again, as safetensors"
                        ) from None


def check_tensors(found: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    """An error that lists what differs unless `found` has just the names of `wanted`, in those shapes."""
    both = [name for name in wanted if name in found]
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [f"{name} has shape {tuple(found[name].shape)}, expected {tuple(wanted[name])}"
                             for name in both if tuple(found[name].shape) != tuple(wanted[name])],
        "not floating-point": [f"{name} is {found[name].dtype}"
                               for name in both if found[name].dtype not in FLOATS]}
    listed = [f"{len(names)} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
              for fault, names in faults.items() if names]
    if listed:
        raise UserError(f"{what}: {'; '.join(listed)}")
