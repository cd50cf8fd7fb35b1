"""What the rows R1 to R16 share: a little world, runs in it, what an undisturbed one leaves, and how a trial is judged.

A run here is 2 layers of width 64, 60 steps with a checkpoint every 5 and a held-out loss every 10; what it must be equal to, to
the bit, is `warm_runs.outcome`. A trial counts as survived when the run that was disturbed ends as one that was not.
"""
from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from warm_runs import Life, differing, last_step, outcome, patched, saved_step

SAVE_EVERY = 5


class Bench:
    """A place to work in, the little world, and undisturbed runs to compare with."""

    def __init__(self, folder: Path, soak: bool, seed: int):
        from tiny_world import make_world

        self.folder, self.soak, self.seed = folder, soak, seed
        self.world = make_world(folder / "world", width=64)
        self.plain: dict[str, tuple[dict, float]] = {}
        self.number = 0

    def new(self) -> Path:
        self.number += 1
        return self.folder / f"run{self.number}"

    def arguments(self, out: Path, *extra: str, task: str = "pretrain") -> list[str]:
        recipe, data = ("pretrain_mmedlm2", f"{self.world}/en,{self.world}/ja") if task == "pretrain" else ("finetune_full", f"{self.world}/Train")
        return [recipe, f"--model={self.world}/model", f"--data={data}", f"--out={out}", "--resume=auto", "--max_steps=60", "--sequence_length=64",
                "--global_batch_size=8", "--micro_batch_size=2", "--learning_rate=1e-3", "--precision=fp32", f"--save_every={SAVE_EVERY}",
                "--eval_every=10", f"--validation={self.world}/ja" if task == "pretrain" else f"--validation={self.world}/Train", "--compile=no",
                "--activation_checkpointing=no", "--seed=1", "--rank_timeout_seconds=20", *extra]

    def run(self, out: Path, *extra: str, ranks: int = 1, task: str = "pretrain", **more) -> Life:
        life = Life(self.arguments(out, *extra, task=task), ranks, log=out.with_suffix(".log"), **more)
        life.wait(300)
        return life

    def undisturbed(self, *extra: str, ranks: int = 1, task: str = "pretrain") -> tuple[dict, float]:
        """(what it leaves, its seconds) of a run that nothing happens to."""
        key = f"{extra} {ranks} {task}"
        if key not in self.plain:
            out = self.new()
            begun = time.monotonic()
            life = self.run(out, *extra, ranks=ranks, task=task)
            seconds = time.monotonic() - begun
            assert life.codes == [0] * ranks, life.text()[-3000:]
            self.plain[key] = outcome(out), seconds
            shutil.rmtree(out)
        return self.plain[key]

    def goes_on(self, out: Path, *extra: str, ranks: int = 1, task: str = "pretrain") -> tuple[bool, float]:
        """(does the run go on to the undisturbed outcome, seconds until its first new step)."""
        expected, _ = self.undisturbed(*extra, ranks=ranks, task=task)
        begun, before = time.monotonic(), saved_step(out)
        life = Life(self.arguments(out, *extra, task=task), ranks, log=out.with_suffix(".log"))
        seconds = first_step(life, out, before, begun)
        life.wait(300)
        same = life.codes == [0] * ranks and outcome(out) == expected
        if not same:
            tell(f"{out}: exit codes {life.codes}; differs in {differing(outcome(out), expected)}\n{life.text()[-1500:]}")
        return same, seconds


def tell(text: str) -> None:
    print(f"\nFAILED: {text}", file=sys.stderr, flush=True)


def first_step(life: Life, out: Path, before: int, begun: float) -> float:
    """Seconds until the run has written a line of a step that `before` (its checkpoint) did not hold."""
    kept = (out / "metrics.jsonl").stat().st_ino if (out / "metrics.jsonl").is_file() else 0
    while not life.poll():
        try:
            if (out / "metrics.jsonl").stat().st_ino != kept and last_step(out) > before:
                break
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    return time.monotonic() - begun


def error_lines(text: str) -> list[str]:
    return [line for line in text.replace("\r", "\n").splitlines() if "error: " in line]


def one_line(life: Life, *words: str, code: int = 1) -> bool:
    """Whether a run of one process ended with `code`, one error line that holds all words, and no traceback."""
    found = error_lines(life.text())
    good = life.codes == [code] and len(found) == 1 and all(word in found[0] for word in words) and "Traceback" not in life.text()
    if not good:
        tell(f"exit codes {life.codes}, expected {code} and {words} in one line:\n{life.text()[-1500:]}")
    return good


def begun_run(bench: Bench, steps: int = 12) -> Path:
    """A run that was stopped after some steps, with checkpoints behind it."""
    out = bench.new()

    def before(rank: int, mark: Callable[[], None]) -> None:
        count = iter(range(1, 10 ** 6)).__next__
        patched("mmed.training.optimizer", "update", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) if count() == steps else None)
    life = bench.run(out, before=before)
    assert life.codes == [75] and saved_step(out) == steps, life.text()[-2000:]
    out.with_suffix(".log").unlink()
    return out


def slowly(mark: Callable[[], None], when: Callable[..., bool]) -> Callable:
    """A hook that marks its first true `when` and stays there for a second, as long work would."""
    seen = [False]

    def hook(*arguments, **keywords):
        if not seen[0] and when(*arguments, **keywords):
            seen[0] = True
            mark()
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                time.sleep(0.01)
    return hook


def counting(n: int) -> Callable[..., bool]:
    calls = [0]

    def when(*_, **__) -> bool:
        calls[0] += 1
        return calls[0] == n
    return when
