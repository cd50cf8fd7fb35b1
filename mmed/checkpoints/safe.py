"""Tensors on disk, read with distrust: safetensors files checked to the last byte, legacy .bin files without running a pickle.

    stored_tensors(folder)                  name -> StoredTensor (file, dtype, shape, place), of one file or many with an index
    copy_tensor(stored, rows, target)       rows of a tensor from disk straight into `target`, converted to its dtype

A safetensors file is  | 8 bytes: length n of the header | n bytes: JSON {name: {dtype, shape, data_offsets}} | the tensors |.
The safetensors package lets duplicate names and names that look like paths pass, so the header is read and checked here; as
the place of every byte is then known, tensors are read by plain file reads into the memory they belong to. So the peak of
host memory is the model itself, and one piece of READ_BYTES while a dtype is converted.

References: the safetensors format description; CVE-2025-32434 and CVE-2026-24747 (why weights_only is not enough by itself:
the torch that this package asks for has both mended, and .bin files are read only where a folder has no safetensors).
"""
from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmed.utils.errors import UserError

MAX_HEADER_BYTES = 8 << 20   # about 80,000 tensors; a 405B model has 1,138
MAX_INDEX_BYTES = 64 << 20
READ_BYTES = 16 << 20        # read and converted at a time
# dtype in the header -> (name in torch, bytes of an element)
DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("int64", 8),
          "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1), "BOOL": ("bool", 1)}
TENSOR_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
FILE_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,254}")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `begin` counts from the start of the file; in a .bin file it has no place, the unpickler finds it."""

    path: Path
    name: str
    dtype: str               # name in torch
    shape: tuple[int, ...]
    begin: int | None
    nbytes: int


def _strict_json(text: bytes, where: str) -> Any:
    """JSON in which no name stands twice."""
    def pairs(items: list[tuple[str, Any]]) -> dict:
        result = dict(items)
        if len(result) != len(items):
            names = [name for name, _ in items]
            raise UserError(f"{where}: {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return result

    try:
        return json.loads(text.decode(), object_pairs_hook=pairs)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({str(error)[:100]})") from None


def read_header(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; its header is checked whole: every byte of the file belongs to exactly one tensor."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 2 <= length <= size - 8:
            raise UserError(f"{path}: damaged safetensors file (its header should have {length:,} bytes, the file has {size:,}); download it again")
        if length > MAX_HEADER_BYTES:
            raise UserError(f"{path}: a safetensors header of {length:,} bytes is too large (limit {MAX_HEADER_BYTES:,})")
        header = _strict_json(file.read(length), f"{path} (header)")
    if not isinstance(header, dict):
        raise UserError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: __metadata__ must map names to texts")
    tensors = {}
    for name, entry in header.items():
        if not TENSOR_NAME.fullmatch(name) or len(name) > 512:
            raise UserError(f"{path}: {name[:100]!r} is not a tensor name")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise UserError(f"{path}: {name}: expected dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name}: dtype {str(entry['dtype'])[:40]!r} is not known (known: {', '.join(DTYPES)})")
        dtype, width = DTYPES[entry["dtype"]]
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(shape) > 8 or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise UserError(f"{path}: {name}: shape {str(shape)[:80]} or data_offsets {str(offsets)[:80]} make no sense")
        if math.prod(shape) * width != offsets[1] - offsets[0]:
            raise UserError(f"{path}: {name}: {entry['dtype']} of shape {shape} does not fill its {offsets[1] - offsets[0]:,} bytes")
        tensors[name] = StoredTensor(path, name, dtype, tuple(shape), 8 + length + offsets[0], offsets[1] - offsets[0])
    at = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.nbytes)):
        if tensor.begin != at:
            fault = "overlaps the tensor before it" if tensor.begin < at else f"leaves {tensor.begin - at:,} bytes before it to no tensor"
            raise UserError(f"{path}: {tensor.name} {fault}")
        at += tensor.nbytes
        if at > size:
            raise UserError(f"{path}: {tensor.name} runs past the end of the file; download it again")
    if at != size:
        raise UserError(f"{path}: {size - at:,} bytes at the end belong to no tensor")
    return tensors


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2 ** 48 for n in value)


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of a model folder; safetensors before .bin, one file before many with an index."""
    folder = Path(folder)
    for name, read in (("model.safetensors", read_header), ("pytorch_model.bin", _bin_tensors)):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return read(single)
        if index.is_file():
            return _sharded(folder, index, read)
    raise UserError(f"{folder}: no model.safetensors, pytorch_model.bin or index of either; a model folder holds its weights in one of them")


def fitted(folder: str | Path, wanted: dict[str, torch.nn.Parameter], stored: dict[str, StoredTensor],
           stray: list[str]) -> list[tuple[torch.nn.Parameter, StoredTensor]]:
    """(parameter, where it is stored) of all `wanted`; one line that lists what is missing, unexpected (`stray`), misshapen or no number."""
    absent = [name for name in wanted if name not in stored]
    misshapen = [f"{name} has shape {stored[name].shape}, config.json asks for {tuple(parameter.shape)}" for name, parameter in wanted.items()
                 if name in stored and stored[name].shape != tuple(parameter.shape)]
    if absent or stray or misshapen:
        faults = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for what, names in
                  (("missing", absent), ("unexpected", stray), ("misshapen", misshapen)) if names]
        raise UserError(f"{folder}: its weights do not fit its config.json: {'; '.join(faults)}")
    for name in wanted:
        if stored[name].dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise UserError(f"{stored[name].path}: {name} is {stored[name].dtype}; only floating-point weights are supported")
    return [(parameter, stored[name]) for name, parameter in wanted.items()]


def _sharded(folder: Path, index: Path, read) -> dict[str, StoredTensor]:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(f"{index}: {index.stat().st_size:,} bytes are too many for an index (limit {MAX_INDEX_BYTES:,})")
    content = _strict_json(index.read_bytes(), str(index))
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: no weight_map")
    for file in dict.fromkeys(map(str, names.values())):
        if not FILE_NAME.fullmatch(file):
            raise UserError(f"{index}: {file[:100]!r} is not the name of a file in this folder")
        if not (folder / file).is_file():
            raise UserError(f"{index}: names the file {file!r}, which is not in {folder}; download it")
    tensors: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(names.values()):
        for name, tensor in read(folder / file).items():
            if names.get(name) != file:
                raise UserError(f"{folder / file}: holds {name}, which {index.name} places in {names.get(name)!r}")
            tensors[name] = tensor
    absent = [name for name in names if name not in tensors]
    if absent:
        raise UserError(f"{folder / names[absent[0]]}: lacks {absent[0]}, which {index.name} places there ({len(absent)} such)")
    return tensors


# ---------------------------------------------------------------------------------------------------------- legacy .bin

def open_bin(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a legacy file: tensors and nothing else; what a pickle would run does not run."""
    try:
        try:  # memory-mapped: only what is read is in memory
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors, and none of it was run; take the model's safetensors files instead") from None
    except Exception as error:  # the unpickler meets arbitrary bytes: whatever it raises, the file is no state dict
        raise UserError(f"{path}: not a readable state dict ({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''})") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f"{path}: expected tensors by name, got {type(state).__name__}")
    return state


def _bin_tensors(path: str | Path) -> dict[str, StoredTensor]:
    path = Path(path)
    result = {}
    for name, value in open_bin(path).items():
        if not TENSOR_NAME.fullmatch(name) or value.layout.__str__() != "torch.strided" or value.is_quantized:
            raise UserError(f"{path}: {name[:100]!r} is not a plain tensor")
        result[name] = StoredTensor(path, name, str(value.dtype).removeprefix("torch."), tuple(value.shape), None, value.numel() * value.element_size())
    return result


# ----------------------------------------------------------------------------------------------------- reading, writing

class TensorReader:
    """Reads tensors of a folder; keeps the file it read from last open, and the buffer in which dtypes are converted."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.file: Any = None
        self.buffer: torch.Tensor | None = None

    def close(self) -> None:
        if hasattr(self.file, "close"):
            self.file.close()
        self.path = self.file = None

    def copy(self, stored: StoredTensor, rows: slice, target: torch.Tensor) -> None:
        """Fill `target` with `rows` of the stored tensor, READ_BYTES at a time, in `target`'s own dtype and on its device."""
        if self.path != stored.path:
            self.close()
            self.path = stored.path
            self.file = open(stored.path, "rb", buffering=0) if stored.begin is not None else open_bin(stored.path)
        if stored.begin is None:
            target.copy_(self.file[stored.name][rows] if stored.shape else self.file[stored.name])
            return
        assert target.is_contiguous(), "expected a contiguous target"
        dtype, flat = getattr(torch, stored.dtype), target.reshape(-1)
        first = rows.start * math.prod(stored.shape[1:]) if stored.shape else 0
        self.file.seek(stored.begin + first * dtype.itemsize)
        if target.dtype == dtype and target.device.type == "cpu":
            self._read(stored, flat)
            return
        if self.buffer is None:
            self.buffer = torch.empty(READ_BYTES, dtype=torch.uint8)
        buffer = self.buffer.view(dtype)
        for start in range(0, len(flat), len(buffer)):
            part = buffer[: len(flat) - start]
            self._read(stored, part)
            flat[start:start + len(part)].copy_(part)

    def _read(self, stored: StoredTensor, part: torch.Tensor) -> None:
        view = memoryview(part.view(torch.uint8).numpy())
        while len(view):
            n = self.file.readinto(view)
            if not n:
                raise UserError(f"{stored.path}: ended while {stored.name} was read")
            view = view[n:]


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of one small safetensors file (an adapter), checked as above."""
    reader, result = TensorReader(), {}
    for name, stored in read_header(path).items():
        result[name] = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        if stored.nbytes:
            reader.copy(stored, slice(0, stored.shape[0] if stored.shape else 1), result[name])
    reader.close()
    return result


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a safetensors file with these (name, dtype in torch, shape), one after the other in this order."""
    known = {name: (code, width) for code, (name, width) in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        code, width = known[dtype]
        end = at + math.prod(shape) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
