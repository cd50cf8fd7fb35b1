"""Check an exercise: the functions that you wrote against the project's own and other oracles, on fresh random inputs.

    make exercise                    lists the exercises
    make exercise N=3                checks exercises/03_*.py          (python exercises/check.py 3)
    make exercise N=3 SOLUTION=1     checks the reference solution     (python exercises/check.py 3 --solution)
    make exercise N=3 SEED=7         the same inputs again             (python exercises/check.py 3 --seed 7)

You write into exercises/NN_name.py itself; `git diff exercises` shows your work and `git checkout exercises/NN_name.py` begins anew.
What is wrong is said in words: the call, what it gave, what was expected. Exit code 0: right, 1: not yet, 2: wrong use.
The checks themselves are in checks_text.py and checks_model.py.
"""
from __future__ import annotations

import argparse
import importlib.util
import random
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mmed.utils.errors import UsageError, main_guard

HERE = Path(__file__).resolve().parent
# What to read when an exercise is done: the same thing as the project does it, and why it is done so there.
NEXT = {
    1: "mmed/tokenization/bpe.py (WordTwin: how the same merges are done by tiktoken, several times as fast)",
    2: "data_prep/filter_medical.py (Matcher: the same for 200 terms at once in one pass over the text)",
    3: "mmed/overlap.py (ngram_matches: n-grams as bit masks, without building a tuple)",
    4: "mmed/overlap.py (lcs_length: a row of your table as one addition)",
    5: "mmed/model.py (RMSNorm, rope_frequencies, rotate)",
    6: "mmed/kernels/attention.py (document_attention: work that grows with documents and not with rows)",
    7: "mmed/data.py (ExamRows.rows: which examples share a row)",
    8: "mmed/lora.py (LoRALinear; checkpoints/adapters.py writes the files that PEFT opens)",
    9: "mmed/loss.py (ChunkedCrossEntropy: the same as an autograd function)",
    10: "mmed/training/optimizer.py (update, LeanAdamW: moments of two bytes)",
    11: "mmed/inference/engine.py (generate: the same with a cache, and with beginnings computed once)",
    12: "mmed/training/distributed.py (shard: the whole model by torch's fully_shard)",
}


class Wrong(Exception):
    """What is not right yet, in words."""


def files(solutions: bool = False) -> dict[int, Path]:
    """Number -> file."""
    folder = HERE / "solutions" if solutions else HERE
    return {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}


def title(path: Path) -> str:
    """The first sentence of the task."""
    first = path.read_text(encoding="utf-8").partition('"""')[2].partition("\n")[0]
    return re.sub(r"^Exercise \d+: ", "", first).partition(". (")[0].rstrip(".")


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
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {line} of {path.name})" if line else "")


class Student:
    """The functions of a file, called so that whatever goes wrong in them is told in words."""

    def __init__(self, module: ModuleType):
        self.module, self.path = module, Path(module.__file__)

    def call(self, name: str, *arguments: Any, shown: str | None = None) -> Any:
        """The result of a function of the file; `shown`: how the call is told, when its arguments are long."""
        told = f"{name}({shown if shown is not None else ', '.join(map(show, arguments))})"
        if not callable(function := getattr(self.module, name, None)):
            raise Wrong(f"{self.path.name} has no function {name} any more; `git checkout exercises/{self.path.name}` brings it back")
        try:
            result = function(*arguments)
        except Wrong:
            raise
        except Exception as error:
            raise Wrong(f"{told} stopped with {in_words(error, self.path)}") from None
        if result is None:
            raise Wrong(f"{told} gives nothing back yet: write the body of {name} in {self.path.parent.name}/{self.path.name}, and return the result")
        return result

    def expect(self, wanted: Any, name: str, *arguments: Any, shown: str | None = None, tolerance: float = 1e-5) -> Any:
        """The result, if it is what was wanted."""
        got = self.call(name, *arguments, shown=shown)
        told = f"{name}({shown if shown is not None else ', '.join(map(show, arguments))})"
        compare(got, wanted, f"your {told}", tolerance)
        return got


def show(value: Any, most: int = 160) -> str:
    if hasattr(value, "shape"):
        text = f"tensor of shape {tuple(value.shape)}" + (f" {[round(x, 4) for x in value.flatten().tolist()]}" if value.numel() <= 6 else "")
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def compare(got: Any, wanted: Any, what: str, tolerance: float) -> None:
    """Nothing, if `got` is `wanted` (numbers within a share `tolerance` of the largest); else Wrong, saying where they part."""
    if hasattr(wanted, "shape"):
        if not hasattr(got, "shape"):
            raise Wrong(f"{what} is {show(got)}, expected a tensor of shape {tuple(wanted.shape)}")
        if tuple(got.shape) != tuple(wanted.shape):
            raise Wrong(f"{what} has the shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
        gap = (got.double() - wanted.double()).abs()
        if not bool((gap <= tolerance * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)).all()):
            at = tuple(int(i) for i in (gap.nan_to_num(float("inf")) == gap.nan_to_num(float("inf")).max()).nonzero()[0])
            place = f" at {list(at)}" if at else ""
            raise Wrong(f"{what} is {float(got[at]):.6g}{place}, expected {float(wanted[at]):.6g}")
    elif isinstance(wanted, dict) and isinstance(got, dict):
        if got.keys() != wanted.keys():
            raise Wrong(f"{what} has the keys {sorted(got)}, expected {sorted(wanted)}")
        for key in wanted:
            compare(got[key], wanted[key], f"{what}, {key!r},", tolerance)
    elif isinstance(wanted, tuple) and isinstance(got, tuple) and len(got) == len(wanted):
        for number, (a, b) in enumerate(zip(got, wanted), 1):
            compare(a, b, f"result {number} of {what}", tolerance)
    elif isinstance(wanted, float) and (isinstance(got, int | float) or getattr(got, "numel", lambda: 0)() == 1):
        if not abs(float(got) - wanted) <= tolerance * max(1.0, abs(wanted)):
            raise Wrong(f"{what} is {show(float(got))}, expected {show(wanted)}")
    elif got != wanted:
        raise Wrong(f"{what} is {show(got)}, expected {show(wanted)}")


def checks() -> dict[int, Callable[[Student, random.Random], None]]:
    import checks_model
    import checks_text

    return checks_text.CHECKS | checks_model.CHECKS


def check(number: int, path: Path, seed: int) -> None:
    """Nothing, if the functions in `path` do what exercise `number` asks; else Wrong."""
    import torch

    torch.manual_seed(seed)
    checks()[number](Student(load(path)), random.Random(seed))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python exercises/check.py", description="List the exercises, or check one.", allow_abbrev=False)
    parser.add_argument("number", nargs="?", type=int, help="which exercise (none: list them)")
    parser.add_argument("--solution", action="store_true", help="check the reference solution instead of yours")
    parser.add_argument("--seed", type=int, help="of the random inputs (default: fresh ones)")
    options = parser.parse_args(arguments)
    if options.number is None:
        for number, path in files().items():
            print(f"{number:>3}  {title(path)}\n     exercises/{path.name}")
        print("\nWrite into the file, then: make exercise N=number")
        return 0
    path = files(options.solution).get(options.number)
    if path is None:
        raise UsageError(f"there is no exercise {options.number}; they are {', '.join(map(str, files()))}")
    seed = random.SystemRandom().randrange(10_000) if options.seed is None else options.seed
    try:
        check(options.number, path, seed)
    except Wrong as wrong:
        again = f"make exercise N={options.number}" + (" SOLUTION=1" if options.solution else "") + f" SEED={seed}"
        print(f"Not yet: {wrong}\n(the same inputs again: {again})")
        return 1
    print(f"Right: {title(files()[options.number])}.\nRead next: {NEXT[options.number]}"
          + ("" if options.solution else f"; another way to write it: exercises/solutions/{path.name}"))
    return 0


if __name__ == "__main__":
    sys.modules["check"] = sys.modules["__main__"]  # the checks import Wrong from here
    main_guard(main)
