"""Kill or stop runs and commands at awkward moments, restart them, and compare with undisturbed runs.

    python benchmarks/faults/kill_bench.py [--only kill,save] [--trials 10] [--seed N] [--json rows.json]

kill      SIGKILL of a run, or of one of its two ranks, at random moments
save      SIGKILL before each file operation of a save
signal    SIGTERM or SIGINT while loading, in a step, an evaluation, a save and the export
failure   an exception in one of two ranks
command   SIGKILL of data preparation and evaluation commands at random moments

A trial survives when the same command, started again, ends with the same bits as an undisturbed run. Prints a
Markdown table; exits 1 if a trial failed. The seed is printed, and --seed repeats a run.
"""
from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from forked_runs import ForkedRun, import_training
from tiny_world import make_world, pretrain

from benchmarks.faults.hooks import before_file_operations, call_before, last_step, outcome, saved_step
from benchmarks.timing import print_head, print_row
from mmed.utils.errors import Parser

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 5
STOPPED = 75


@dataclass
class Row:
    """What was done, how often, and how often the promise held."""

    fault: str
    trials: int = 0
    survived: int = 0

    def add(self, survived: bool, what: str) -> None:
        self.trials += 1
        self.survived += survived
        if not survived:
            print(f"FAILED: {self.fault}: {what}", file=sys.stderr, flush=True)


class Bench:
    """A tiny world, runs in it, and the outcome of undisturbed runs to compare with."""

    def __init__(self, folder: Path, trials: int, rng: random.Random):
        self.folder, self.trials, self.rng = folder, trials, rng
        self.world = make_world(folder / "world", width=64)
        self.undisturbed: dict[int, tuple[dict, float]] = {}
        self.number = 0

    def new(self) -> Path:
        self.number += 1
        return self.folder / f"run{self.number}"

    def start(self, out: Path, ranks: int = 1, before=None) -> ForkedRun:
        arguments = pretrain(self.world, out, "--resume=auto", "--max_steps=60", "--sequence_length=64",
                             f"--save_every={SAVE_EVERY}", "--eval_every=10", "--rank_timeout_seconds=20",
                             f"--validation={self.world}/ja")
        return ForkedRun(arguments, ranks, before, log=out.with_suffix(".log"))

    def expected(self, ranks: int) -> tuple[dict, float]:
        """Outcome and duration in seconds of an undisturbed run."""
        if ranks not in self.undisturbed:
            out, begun = self.new(), time.monotonic()
            run = self.start(out, ranks)
            codes = run.wait(300)
            assert codes == [0] * ranks, run.text()[-3000:]
            self.undisturbed[ranks] = outcome(out), time.monotonic() - begun
        return self.undisturbed[ranks]

    def completes(self, out: Path, ranks: int) -> bool:
        """Start the command again: does it end with the bits of an undisturbed run?"""
        expected, _ = self.expected(ranks)
        return self.start(out, ranks).wait(300) == [0] * ranks and outcome(out) == expected


# ----------------------------------------------------------------------------------------------------- kill

def kill_at_random(bench: Bench):
    for ranks in (1, 2):
        row = Row(f"SIGKILL of {'a run' if ranks == 1 else 'one of two ranks'} at a random moment")
        _, duration = bench.expected(ranks)
        for _ in range(bench.trials):
            out = bench.new()
            run = bench.start(out, ranks)
            time.sleep(bench.rng.uniform(0, duration))
            run.kill(bench.rng.randrange(ranks) if ranks > 1 else None)
            ended = run.wait(60) is not None
            run.kill()
            repeated = last_step(out) - saved_step(out)  # the save before the last one may still be under way
            survived = ended and repeated <= 2 * SAVE_EVERY and bench.completes(out, ranks)
            row.add(survived, f"{out}: codes {run.codes}, {repeated} steps repeated")
        yield row


# ----------------------------------------------------------------------------------------------------- save

def save_twice(run: Path, stop_at: int, counter: Path) -> ForkedRun:
    """Save steps 1 and 2; die before file operation `stop_at` of step 2 (0: count the operations)."""
    def main() -> int:
        import torch
        import torch.distributed.checkpoint as dcp

        from mmed.checkpoints import training_state

        seen = 0

        def act() -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

        for step in (1, 2):
            if step == 2:
                before_file_operations(str(run), act)
            tensors = {f"model.w{index}": torch.full((50, 7), float(step)) for index in range(3)}
            writer = training_state.Writer(run, tensors, step, {"optimizer_step": step}, 1)
            dcp.save(tensors, storage_writer=writer)
        counter.write_text(str(seen))
        return 0

    return ForkedRun([], 1, log=run.with_suffix(".log"), main=main)


def kill_in_save(bench: Bench):
    from mmed.checkpoints import training_state

    row = Row("SIGKILL before each open, half write, fsync, rename and removal of a save")
    counter, out = bench.folder / "operations", bench.new()
    assert save_twice(out, 0, counter).wait(60) == [0]
    operations = int(counter.read_text())
    for number in range(1, operations + 1):
        shutil.rmtree(out)
        save_twice(out, number, counter).wait(60)
        state = training_state.latest_state(out)
        complete = state is not None and training_state.damage(state)[0] is not None
        if not complete:
            shutil.rmtree(out)
        again = save_twice(out, 0, counter).wait(60) == [0]
        latest = training_state.latest_state(out)
        row.add(complete and again and latest.name == "step-2", f"operation {number} of {operations}")
    yield row


# --------------------------------------------------------------------------------------------------- signal

# In words -> module, function, which call of it
PHASES = {
    "loading the data": ("mmed.training.loader", "make_rows", 1),
    "loading the model": ("mmed.checkpoints.pretrained", "copy_weights", 1),
    "a step": ("mmed.training.optimizer", "update", 13),
    "an evaluation": ("mmed.training.validation", "validation_loss", 2),
    "a save": ("mmed.checkpoints.training_state", "file_hash", 3),
    "the export": ("mmed.checkpoints.pretrained", "save_pretrained", 1),
}


def call_in(phase: str, act: Callable[[], object]) -> None:
    """Call `act` once, in the given phase of this (forked) process."""
    (module, name, count), calls = PHASES[phase], itertools.count(1)
    call_before(module, name, lambda *_, **__: act() if next(calls) == count else None)


def wait_until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)


def stop_by_signal(bench: Bench):
    row = Row("SIGTERM or SIGINT while loading, in a step, an evaluation, a save, the export")
    cases = [(phase, 1) for phase in PHASES] + [(phase, 2) for phase in ("a step", "an evaluation", "a save")]
    for phase, ranks in cases:
        out = bench.new()
        sent = out.with_suffix(".sent")

        def before(rank: int, signal_parent, phase=phase, sent=sent) -> None:
            call_in(phase, lambda: (signal_parent(), wait_until(sent.exists)))

        run = bench.start(out, ranks, before)
        reached = run.reached(120)
        run.send(bench.rng.choice((signal.SIGTERM, signal.SIGINT)))
        sent.touch()
        codes = run.wait(30)
        run.kill()
        stopped = reached and codes == [STOPPED] * ranks and "Traceback" not in run.text()
        row.add(stopped and bench.completes(out, ranks), f"{phase}, {ranks} ranks: {run.codes}")
    yield row


# -------------------------------------------------------------------------------------------------- failure

def fail_one_rank(bench: Bench):
    row = Row("an exception in one of two ranks: the other ends, its error is the only traceback")
    for phase in PHASES:
        failing = bench.rng.randrange(2) if phase != "the export" else 0

        def fail() -> None:
            raise RuntimeError("the true reason")

        def before(rank: int, signal_parent, phase=phase, failing=failing) -> None:
            if rank == failing:
                call_in(phase, fail)

        out = bench.new()
        run = bench.start(out, 2, before)
        codes, text = run.wait(90), run.text()
        run.kill()
        named = text.count("Traceback") == 1 and "the true reason" in text
        ended = codes is not None and all(codes)
        row.add(ended and named and bench.completes(out, 2), f"{phase}, rank {failing}: {run.codes}")
    yield row


# -------------------------------------------------------------------------------------------------- command

def commands(bench: Bench) -> dict[str, list[str]]:
    """Arguments of python -m without --out."""
    texts, rng = bench.folder / "texts.jsonl", random.Random(1)
    words = "the heart disease pain treatment clinical symptoms of patients with dose fever".split()
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=300)), "id": str(number)}) + "\n"
             for number in range(4000)]
    texts.write_text("".join(lines), encoding="utf-8")
    data = [str(texts), "--workers", "1"]
    english = [*data, "--language", "en"]
    return {"filter_medical": ["data_prep.filter_medical", *english], "clean": ["data_prep.clean", *english],
            "dedup": ["data_prep.dedup", *data],
            "eval": ["mmed.eval", "--model", f"{bench.world}/model", "--data", f"{bench.world}/Train",
                     "--mode", "answer", "--device", "cpu"]}


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents of the results in a folder; logs and times may differ."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.suffix in (".jsonl", ".gz", ".zst", ".csv") and not path.name.startswith(".")}


def kill_commands(bench: Bench):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(arguments: list[str], out: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", *arguments, "--out", str(out)], env=environment,
                                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                start_new_session=True)

    for name, arguments in commands(bench).items():
        row = Row(f"SIGKILL of {name} at a random moment")
        plain, begun = bench.new(), time.monotonic()
        assert start(arguments, plain).wait(300) == 0, name
        duration = time.monotonic() - begun
        for _ in range(bench.trials):
            out = bench.new()
            process = start(arguments, out)
            time.sleep(bench.rng.uniform(0, duration))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            completed = start(arguments, out).wait(300) == 0
            row.add(completed and files_of(out) == files_of(plain), str(out))
        yield row


AREAS = {"kill": kill_at_random, "save": kill_in_save, "signal": stop_by_signal, "failure": fail_one_rank,
         "command": kill_commands}


def main() -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(AREAS), help="comma-separated: " + ", ".join(AREAS))
    parser.add_argument("--trials", type=int, default=10, help="random moments per kind (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    print(f"--seed {options.seed}", file=sys.stderr)
    import_training()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.trials, random.Random(options.seed))
        for area in options.only.split(","):
            for row in AREAS[area](bench):
                print(f"{row.survived} of {row.trials}: {row.fault}", file=sys.stderr, flush=True)
                rows.append(row)
    print_head("fault", "trials", "survived")
    for row in rows:
        print_row(row.fault, row.trials, row.survived)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.survived == row.trials for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
