"""Check an exercise: the functions that you wrote against the project's own and other oracles, on fresh
random inputs.

    make exercise                    lists the exercises
    make exercise N=3                checks exercises/03_*.py       (python exercises/check.py 3)
    make exercise N=3 SOLUTION=1     checks the reference solution  (python exercises/check.py 3 --solution)
    make exercise N=3 SEED=7         the same inputs again          (python exercises/check.py 3 --seed 7)

You write into exercises/NN_name.py itself; `git diff exercises` shows your work and `git checkout
exercises/NN_name.py` begins anew. What is wrong is said in words: the call, what it gave, what was expected.
Exit code 0: right, 1: not yet, 2: wrong use. The checks themselves are in checks_text.py and checks_model.py.
"""
from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import checks_model
import checks_text
import torch
from student import Student, Wrong, load

from mmed.utils.errors import Parser, UsageError, main_guard

HERE = Path(__file__).resolve().parent
# What to read when an exercise is done: the same thing as the project does it, and why it is done so there.
NEXT = {
    1: "mmed/tokenization/byte_level.py (ByteLevelBackend: the same merges by tiktoken, much faster)",
    2: "data_prep/filters/keyword_matcher.py (Matcher: 200 terms at once in one pass over the text)",
    3: "mmed/metrics.py (bleu_orders: all orders at once, with smoothing)",
    4: "mmed/metrics.py (lcs_length: a row of your table as one addition)",
    5: "mmed/model.py (RMSNorm, rope_frequencies, rotate)",
    6: "mmed/kernels/attention.py (document_attention: work that grows with documents and not with rows)",
    7: "mmed/data.py (ExamRows.rows: which examples share a row)",
    8: "mmed/lora.py (LoRALinear: PEFT's files are written by mmed/checkpoints/adapters.py)",
    9: "mmed/loss.py (ChunkedCrossEntropy: the same as an autograd function)",
    10: "mmed/training/optimizer.py (update, AdamWBf16: optimizer state in bf16)",
    11: "mmed/inference/engine.py (generate: the same with a cache, and with a prefix cache)",
    12: "mmed/training/distributed.py (shard: the whole model by torch's fully_shard)",
}


def files(solutions: bool = False) -> dict[int, Path]:
    """Number -> file."""
    folder = HERE / "solutions" if solutions else HERE
    return {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}


def title(path: Path) -> str:
    """The first sentence of the task."""
    first = path.read_text(encoding="utf-8").partition('"""')[2].partition("\n")[0]
    return re.sub(r"^Exercise \d+: ", "", first).partition(". (")[0].rstrip(".")


def checks() -> dict[int, Callable[[Student, random.Random], None]]:
    return checks_text.CHECKS | checks_model.CHECKS


def check(number: int, path: Path, seed: int) -> None:
    """Nothing, if the functions in `path` do what exercise `number` asks; else Wrong."""
    torch.manual_seed(seed)
    checks()[number](Student(load(path)), random.Random(seed))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python exercises/check.py", description="List the exercises, or check one.")
    parser.add_argument("number", nargs="?", type=int, help="which exercise (none: list them)")
    parser.add_argument("--solution", action="store_true", help="check the reference solution instead")
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
        solution = " SOLUTION=1" if options.solution else ""
        print(f"Not yet: {wrong}\n(the same inputs again: make exercise N={options.number}{solution} "
              f"SEED={seed})")
        return 1
    print(f"Right: {title(files()[options.number])}.\nRead next: {NEXT[options.number]}; another way to "
          f"write it: exercises/solutions/{path.name}")
    return 0


if __name__ == "__main__":
    main_guard(main)
