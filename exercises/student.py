"""A student's file: its functions, called so that whatever goes wrong in them is explained in words."""
from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


class Wrong(Exception):
    """What is not right yet, in words."""


def load(path: Path) -> ModuleType:
    """The functions of a file; what stops Python from reading it is said with its line."""
    spec = importlib.util.spec_from_file_location(f"exercise_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a student's file may do anything
        raise Wrong(f"Python cannot read {path.name}: {in_words(error, path)}") from None
    return module


def in_words(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line} of {path.name})" if line else "")


class Student:
    """The functions of a file, called so that whatever goes wrong in them is explained in words."""

    def __init__(self, module: ModuleType):
        self.module, self.path = module, Path(module.__file__)

    def call(self, name: str, *arguments: Any, shown: str = "") -> Any:
        """The result of a function of the file; `shown`: how long arguments are shown."""
        call = f"{name}({shown or ', '.join(map(show, arguments))})"
        if not callable(function := getattr(self.module, name, None)):
            raise Wrong(f"{self.path.name} has no function {name} any more; `git checkout "
                        f"exercises/{self.path.name}` brings it back")
        try:
            result = function(*arguments)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"{call} stopped with {in_words(error, self.path)}") from None
        if result is None:
            raise Wrong(f"{call} gives nothing back yet: write the body of {name} in "
                        f"{self.path.parent.name}/{self.path.name}, and return the result")
        return result

    def expect(self, wanted: Any, name: str, *arguments: Any, shown: str = "",
               tolerance: float = 1e-5) -> Any:
        """The result, if it is what was wanted."""
        got = self.call(name, *arguments, shown=shown)
        compare(got, wanted, f"your {name}({shown or ', '.join(map(show, arguments))})", tolerance)
        return got


def show(value: Any, most: int = 160) -> str:
    if hasattr(value, "shape"):
        text = f"tensor of shape {tuple(value.shape)}"
        if value.numel() <= 6:
            text += f" {[round(x, 4) for x in value.flatten().tolist()]}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def compare_tensors(got: Any, wanted: Any, what: str, tolerance: float) -> None:
    """Raise Wrong where two tensors differ by more than `tolerance` times the largest value."""
    if not hasattr(got, "shape"):
        raise Wrong(f"{what} is {show(got)}, expected a tensor of shape {tuple(wanted.shape)}")
    if tuple(got.shape) != tuple(wanted.shape):
        raise Wrong(f"{what} has the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    largest = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    gap = (got.double() - wanted.double()).abs()
    if not bool((gap <= tolerance * largest).all()):
        gap = gap.nan_to_num(float("inf"))
        at = tuple(int(index) for index in (gap == gap.max()).nonzero()[0])
        place = f" at {list(at)}" if at else ""
        raise Wrong(f"{what} is {float(got[at]):.6g}{place}, expected {float(wanted[at]):.6g}")


def compare(got: Any, wanted: Any, what: str, tolerance: float) -> None:
    """Raise Wrong where `got` is not `wanted`; numbers may differ by `tolerance` times the largest."""
    if hasattr(wanted, "shape"):
        compare_tensors(got, wanted, what, tolerance)
    elif isinstance(wanted, dict) and isinstance(got, dict):
        if got.keys() != wanted.keys():
            raise Wrong(f"{what} has the keys {sorted(got)}, expected {sorted(wanted)}")
        for key in wanted:
            compare(got[key], wanted[key], f"{what}, {key!r},", tolerance)
    elif isinstance(wanted, tuple) and isinstance(got, tuple) and len(got) == len(wanted):
        for number, (a, b) in enumerate(zip(got, wanted), 1):
            compare(a, b, f"result {number} of {what}", tolerance)
    elif isinstance(wanted, float) and (isinstance(got, int | float)
                                        or getattr(got, "numel", lambda: 0)() == 1):
        if not abs(float(got) - wanted) <= tolerance * max(1.0, abs(wanted)):
            raise Wrong(f"{what} is {show(float(got))}, expected {show(wanted)}")
    elif got != wanted:
        raise Wrong(f"{what} is {show(got)}, expected {show(wanted)}")
