"""Faults of training runs and checkpoints, rows R1 to R16 of the fault bench (benchmarks/faults.py says how to run it).

A run here is 2 layers of width 64, 60 steps with a checkpoint every 5 and a held-out loss every 10; what it must be equal to, to
the bit, is `warm_runs.outcome`. A trial counts as survived when the run that was disturbed ends as one that was not.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_table import Row, median, trials
from warm_runs import ROOT, Life, differing, file_operations, last_step, outcome, patched, saved_step, warm

SAVE_EVERY = 5
SOAK_SECONDS = 3600  # R2 with --soak goes on at least so long, and until there are as many kills as it says


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


# --------------------------------------------------------------------------------------------------------------- R1, R2: killed

def killed(bench: Bench, rng: random.Random, ranks: int, count: int, seconds: float = 0.0) -> Iterator[tuple[bool, float]]:
    """(survived, seconds to recover) of each kill; a run is killed up to six times at random moments and then goes to its end."""
    expected, whole = bench.undisturbed(ranks=ranks)
    begun, kills = time.monotonic(), 0
    while kills < count or time.monotonic() - begun < seconds:
        out, planned, lives, recover, ok = bench.new(), rng.randint(1, 6), 0, [], True
        while True:
            before, start = saved_step(out), time.monotonic()
            life = Life(bench.arguments(out), ranks, log=out.with_suffix(".log"))
            moment = start + rng.uniform(0, whole) if lives < planned else float("inf")
            seen = False
            kept = (out / "metrics.jsonl").stat().st_ino if (out / "metrics.jsonl").is_file() else 0
            while not life.poll() and time.monotonic() < moment:
                if lives and not seen and (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_ino != kept and last_step(out) > before:
                    recover.append(time.monotonic() - start)
                    seen = True
                time.sleep(0.004)
            if None not in life.codes:
                life.close()
                break
            victim = rng.randrange(ranks) if ranks > 1 else None
            life.kill(victim)
            if life.wait(60) is None:
                tell(f"{out}: the other rank is still there 60 s after rank {victim} was killed")
                life.kill()
                ok = False
            lives += 1
            repeated = last_step(out) - saved_step(out)
            if repeated > 2 * SAVE_EVERY:  # the save before the last may still be on its way when the last is due
                tell(f"{out}: {repeated} steps to repeat")
                ok = False
        ok = ok and life.codes == [0] * ranks and outcome(out) == expected
        if not ok:
            tell(f"{out}: seed {bench.seed}, {lives} kills, exit codes {life.codes}, differs in {differing(outcome(out), expected)}\n{life.text()[-2000:]}")
        else:
            shutil.rmtree(out)
            out.with_suffix(".log").unlink(missing_ok=True)
        for i in range(lives):
            kills += 1
            yield ok, recover[i] if i < len(recover) else -1.0


def row_killed(bench: Bench, ranks: int) -> Row:
    rng = random.Random(f"{bench.seed} {ranks}")
    count = 200 if bench.soak else (10 if ranks == 1 else 5)
    survived, seconds, made = 0, [], 0
    begun = time.monotonic()
    bar = iter(trials(count, f"R{ranks}"))
    for ok, recover in killed(bench, rng, ranks, count, SOAK_SECONDS if bench.soak and ranks == 2 else 0):
        next(bar, None)
        made += 1
        survived += ok
        if recover >= 0:
            seconds.append(recover)
    took = f"{(time.monotonic() - begun) / 60:.0f} minutes; " if bench.soak else ""
    if ranks == 1:
        return Row("R1", "kill -9 of a run at a random moment", made, survived, median(seconds), took + "same bits as undisturbed")
    return Row("R2", "kill -9 of one rank of two (gloo, FSDP2)", made, survived, median(seconds), took + "the other leaves by itself; same bits")


# --------------------------------------------------------------------------------------------------- R3, R12: between file operations

def saving_child(run: Path, steps: list[int], ranks: int, stop_at: int, victim: int, keep_last: int, counter: Path) -> Life:
    """Ranks that only save: small states after `steps`; the victim dies before its `stop_at`-th file operation (0: never, count)."""
    def body() -> int:
        import torch

        from mmed import checkpoint, distributed

        distributed.start(20)
        for step in steps:
            tensors = {f"model.w{i}": torch.full((50, 7), float(step * 10 + i)) for i in range(3)}
            checkpoint.write_state(run, tensors, step, {"optimizer_step": step}, keep_last)
        distributed.stop()
        return 0

    def before(rank: int, mark: Callable[[], None]) -> None:
        seen = [0]

        def act(what: str, path: str) -> None:
            seen[0] += 1
            if seen[0] == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

        if rank == victim:
            file_operations(str(run), act)
            inner = body

            def counted() -> int:
                code = inner()
                number = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(number, str(seen[0]).encode())
                os.close(number)
                return code
            bodies[0] = counted

    bodies = [body]
    return Life([], ranks, before=before, log=run.with_suffix(".log"), main=lambda: bodies[0]())


def row_between_operations(bench: Bench) -> Iterator[Row]:
    from mmed import checkpoint
    from mmed.run_folder import FolderLock

    cases = [("R3", ranks, victim, 2) for ranks, victim in ((1, 0), (2, 0), (2, 1))] + [("R12", 1, 0, keep) for keep in ((1, 2, 3) if bench.soak else (1,))]
    totals = {"R3": [0, 0], "R12": [0, 0]}
    for name, ranks, victim, keep_last in cases:
        base, counter = bench.new(), bench.folder / "count"
        first, second = ([1], [2]) if name == "R3" else ([1, 2, 3], [4])
        assert saving_child(base, first, ranks, 0, victim, keep_last, counter).wait(60) == [0] * ranks
        trial = bench.new()
        shutil.copytree(base, trial)
        assert saving_child(trial, second, ranks, 0, victim, keep_last, counter).wait(60) == [0] * ranks
        points = int(counter.read_text())
        assert points >= 3, points
        for point in trials(points, f"{name}, {ranks} ranks"):
            shutil.rmtree(trial)
            shutil.copytree(base, trial)
            life = saving_child(trial, second, ranks, point + 1, victim, keep_last, counter)
            codes = life.wait(60)
            if codes is None:
                life.kill()
            now = checkpoint.latest_state(trial)
            good = codes is not None and now is not None and now.name in (f"step-{first[-1]}", f"step-{second[-1]}") \
                and checkpoint.damage(now)[0] is not None and all(checkpoint.damage(p)[0] is not None for p in checkpoint.checkpoints(trial))
            FolderLock(trial).release()
            good = good and not list(trial.rglob("*.tmp"))
            again = saving_child(trial, second, ranks, 0, -1, keep_last, counter).wait(60)
            good = good and again == [0] * ranks and checkpoint.latest_state(trial).name == f"step-{second[-1]}" \
                and checkpoint.damage(trial / "checkpoints" / f"step-{second[-1]}")[0] is not None and len(checkpoint.checkpoints(trial)) <= keep_last
            if not good:
                tell(f"{name}: {ranks} ranks, rank {victim} killed before operation {point + 1} of {points}: {codes}, {now}")
            totals[name][0] += 1
            totals[name][1] += good
    yield Row("R3", "killed before each open, write (by half), fsync, rename, removal of a save, 1 and 2 ranks", *totals["R3"], None,
              "the old or the new checkpoint is whole; no temporary file is left after the next start")
    yield Row("R12", "the same while old checkpoints are removed" + (", keep_last 1 to 3" if bench.soak else ""), *totals["R12"], None, "every folder with a name is whole")


# -------------------------------------------------------------------------------------------------------------------- R4: signals

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


def nth_micro(n: int, training: bool) -> Callable[..., bool]:
    calls = [0]

    def when(model, *_, **__) -> bool:
        calls[0] += model.training == training
        return model.training == training and calls[0] == n
    return when


# phase -> (module, function that is hooked, when); forward: 4 micro-batches a step with one rank, 2 with two
PHASES: dict[str, tuple[str, str, Callable[[int], Callable[..., bool]]]] = {
    "data load": ("mmed.batches", "make_rows", lambda ranks: counting(1)),
    "model load": ("mmed.checkpoint", "load_weights", lambda ranks: counting(1)),
    "compile (first forward)": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(1, True)),
    "step": ("mmed.optim", "update", lambda ranks: counting(13)),
    "accumulation": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(4 // ranks * 13 + 2, True)),
    "evaluation": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(2, False)),
    "evaluation at the end": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(-1, False)),
    "save": ("mmed.checkpoint", "write_state", lambda ranks: counting(3)),
    "last save": ("mmed.checkpoint", "write_state", lambda ranks: lambda run, tensors, step, *_, **__: step == 60),
    "export": ("mmed.checkpoint", "save_pretrained", lambda ranks: counting(1)),
}


def row_signals(bench: Bench) -> Iterator[Row]:
    made, survived, seconds = 0, 0, []
    cases = [(phase, ranks, number) for phase in PHASES for ranks in (1, 2) for number in (signal.SIGTERM, signal.SIGINT)]
    if not bench.soak:  # every phase with one rank, and the collective ones with two
        cases = [(p, r, n) for i, (p, r, n) in enumerate(cases) if (r == 1 and n == (signal.SIGTERM, signal.SIGINT)[list(PHASES).index(p) % 2])
                 or (r == 2 and n == signal.SIGTERM and p in ("accumulation", "evaluation", "save"))]
    for phase, ranks, number in trials(cases, "R4"):
        module, name, when = PHASES[phase]

        def before(rank: int, mark: Callable[[], None], module=module, name=name, when=when, ranks=ranks, phase=phase) -> None:
            condition = when(ranks)
            if phase == "evaluation at the end":
                patched("mmed.held_out", "held_out_loss", count_evaluations)
                inner = nth_of_last(ranks)
                condition = inner
            patched(module, name, slowly(mark, condition))
        evaluations[0] = 0
        out = bench.new()
        life = Life(bench.arguments(out), ranks, before=before, log=out.with_suffix(".log"))
        good = life.marked(120)
        sent = time.monotonic()
        life.send(number)
        codes = life.wait(30)
        took = time.monotonic() - sent
        if codes is None:
            life.kill()
        good = good and codes == [75] * ranks and "Traceback" not in life.text()
        if not good:
            tell(f"{signal.Signals(number).name} in {phase}, {ranks} ranks: {life.codes} after {took:.1f} s\n{life.text()[-2000:]}")
        elif phase not in ("data load", "model load", "compile (first forward)"):
            good = saved_step(out) == last_step(out) or phase.startswith("evaluation")
        good = good and bench.goes_on(out, ranks=ranks)[0]
        made, survived, seconds = made + 1, survived + good, [*seconds, took]
    rng = random.Random(bench.seed)
    for _ in trials(10 if bench.soak else 2, "R4, start-up"):  # a new interpreter: imports, then the same
        out = bench.new()
        process = subprocess.Popen([sys.executable, str(ROOT / "mmed" / "train.py"), *bench.arguments(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while "mmed" not in maps(process.pid) and process.poll() is None:  # until Python has come to the program
            time.sleep(0.01)
        time.sleep(rng.uniform(0.3, 2.5))
        sent = time.monotonic()
        process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
        _, err = process.communicate(timeout=60)
        took = time.monotonic() - sent
        good = process.returncode == 75 and took < 30 and "Traceback" not in err
        if not good:
            tell(f"signal at start-up: {process.returncode} after {took:.1f} s\n{err[-1500:]}")
        good = good and bench.goes_on(out)[0]
        made, survived, seconds = made + 1, survived + good, [*seconds, took]
    yield Row("R4", "SIGTERM or SIGINT in each phase: start-up, data and model load, compile, step, accumulation, evaluation, save, export", made,
              survived, median(seconds), "exit code 75 within 30 s (the time shown), same bits after it")
    made = survived = 0
    seconds = []
    for ranks in trials([1, 2] * (5 if bench.soak else 1), "R4, second SIGINT"):
        def before(rank: int, mark: Callable[[], None]) -> None:
            def stuck(*_, **__) -> None:
                if calls() == 12:
                    mark()
                    end = time.monotonic() + 60
                    while time.monotonic() < end:
                        time.sleep(0.01)
            calls = iter(range(1, 10 ** 6)).__next__
            patched("mmed.optim", "update", stuck)
        out = bench.new()
        life = Life(bench.arguments(out), ranks, before=before, log=out.with_suffix(".log"))
        good = life.marked(120)
        life.send(signal.SIGINT)
        time.sleep(0.7)
        sent = time.monotonic()
        life.send(signal.SIGINT)
        codes = life.wait(10)
        took = time.monotonic() - sent
        if codes is None:
            life.kill()
        good = good and codes is not None and set(codes) <= {130, 75} and 130 in codes and took < 2 and bench.goes_on(out, ranks=ranks)[0]
        if not good:
            tell(f"second SIGINT, {ranks} ranks: {life.codes} after {took:.1f} s\n{life.text()[-1500:]}")
        made, survived, seconds = made + 1, survived + good, [*seconds, took]
    yield Row("R4", "a second SIGINT while a step hangs", made, survived, median(seconds), "ends at once, exit code 130")


evaluations = [0]


def count_evaluations(*_, **__) -> None:
    evaluations[0] += 1


def nth_of_last(ranks: int) -> Callable[..., bool]:
    """The second forward pass of the sixth evaluation, which is that of the last step."""
    calls = [0]

    def when(model, *_, **__) -> bool:
        calls[0] += not model.training and evaluations[0] == 6
        return calls[0] == 2 and not model.training
    return when


def maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() if Path(f"/proc/{pid}/maps").read_text().count("python") else ""
    except OSError:
        return ""


# --------------------------------------------------------------------------------------------------- R5, R6: disks and folders

def limited(size: int) -> Callable:
    def before(rank: int, mark: Callable[[], None]) -> None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return before


def begun_run(bench: Bench, steps: int = 12) -> Path:
    """A run that was stopped after some steps, with checkpoints behind it."""
    out = bench.new()

    def before(rank: int, mark: Callable[[], None]) -> None:
        count = iter(range(1, 10 ** 6)).__next__
        patched("mmed.optim", "update", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) if count() == steps else None)
    life = bench.run(out, before=before)
    assert life.codes == [75] and saved_step(out) == steps, life.text()[-2000:]
    out.with_suffix(".log").unlink()
    return out


def row_disk(bench: Bench) -> Iterator[Row]:
    from mmed import checkpoint

    made, survived = 0, 0

    def judge(out: Path, life: Life, *words: str) -> None:
        nonlocal made, survived
        good = one_line(life, *words)
        now = checkpoint.latest_state(out)
        good = good and now is not None and checkpoint.damage(now)[0] is not None and not list((out / "checkpoints").glob("*.tmp"))
        out.with_suffix(".log").unlink()
        made, survived = made + 1, survived + (good and bench.goes_on(out)[0])

    for kind in trials(["checkpoint", "metrics", "no room", "full disk", "model"], "R5"):
        out = begun_run(bench)
        if kind == "checkpoint":
            judge(out, bench.run(out, before=limited(100_000)), "step-15", "bytes needed", "ulimit -f")
        elif kind == "metrics":
            judge(out, bench.run(out, before=limited((out / "metrics.jsonl").stat().st_size + 300)), "metrics.jsonl", "bytes needed")
        elif kind == "no room":
            def tight(rank: int, mark: Callable[[], None]) -> None:
                from collections import namedtuple
                shutil.disk_usage = lambda _: namedtuple("usage", "total used free")(10, 9, 1000)
            judge(out, bench.run(out, before=tight), "step-15", "bytes", "1,000 are free", "make room")
        elif kind == "full disk":
            small = bench.folder / "small"
            small.mkdir(exist_ok=True)
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)], capture_output=True, check=False).returncode:
                continue  # not allowed here; the limit on a file's size is the same error from the same call
            try:
                moved = small / "run"
                shutil.copytree(out, moved)

                def blind(rank: int, mark: Callable[[], None], small=small) -> None:  # as if another had filled the disk after the look at it
                    from collections import namedtuple
                    shutil.disk_usage = lambda _: namedtuple("usage", "total used free")(10, 9, 10 ** 12)
                    room = os.statvfs(small)
                    (small / "other").write_bytes(b"x" * max(0, room.f_bavail * room.f_bsize - 300_000))
                life = Life(bench.arguments(moved), before=blind, log=out.with_suffix(".log"))
                life.wait(120)
                (small / "other").unlink()
                shutil.rmtree(out)
                shutil.copytree(moved, out)
            finally:
                subprocess.run(["umount", "-l", str(small)], check=True)
            judge(out, life, "step-15", "bytes needed", "no space left")
        else:
            def at_export(rank: int, mark: Callable[[], None]) -> None:
                patched("mmed.checkpoint", "save_pretrained", lambda *_, **__: limited(100_000)(0, mark))
            judge(out, bench.run(out, before=at_export), "model.tmp", "bytes needed")
    yield Row("R5", "full disk, quota or file limit at a checkpoint, at the log, at the export", made, survived, None,
              "one line with path and bytes; the checkpoint before is whole; same bits once there is room")


def row_folders(bench: Bench) -> Iterator[Row]:
    made = survived = 0

    def nobody(rank: int, mark: Callable[[], None]) -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)

    bench.folder.chmod(0o755)
    for kind in trials(["read-only", "removed", "renamed", "two runs"], "R6"):
        if kind == "read-only":
            out = bench.folder / "locked" / "run"
            out.parent.mkdir()
            out.parent.chmod(0o555)
            log = bench.folder / "locked.log"
            log.touch()
            log.chmod(0o666)
            life = Life(bench.arguments(out), before=nobody, log=log)
            life.wait(60)
            good = one_line(life, "locked/run", "permission denied") and not out.exists()
        elif kind in ("removed", "renamed"):
            out, away = begun_run(bench), bench.new()

            def before(rank: int, mark: Callable[[], None], out=out, away=away, kind=kind) -> None:
                count = iter(range(1, 10 ** 6)).__next__
                act = (lambda: shutil.rmtree(out)) if kind == "removed" else (lambda: out.rename(away))
                patched("mmed.optim", "update", lambda *_, **__: act() if count() == 2 else None)
            life = bench.run(out, before=before)
            good = one_line(life, str(out), "removed or renamed", "step 15") and saved_step(out) == 15
            expected = bench.undisturbed()[0]
            again = bench.run(out)
            now = outcome(out)
            good = good and again.codes == [0] and all(now[k] == v for k, v in expected.items() if k != "log") \
                and now["log"] == [line for line in expected["log"] if line["step"] > 15]
        else:
            out = bench.new()

            def before(rank: int, mark: Callable[[], None]) -> None:
                patched("mmed.optim", "update", slowly(mark, counting(3)))
            first = Life(bench.arguments(out), before=before, log=out.with_suffix(".log"))
            first.marked(60)
            second = Life(bench.arguments(out), log=bench.folder / "second.log")
            second.wait(60)
            good = one_line(second, str(out), "another run", f"process {first.pids[0]}")
            good = good and first.wait(120) == [0] and outcome(out) == bench.undisturbed()[0]
        if not good:
            tell(f"R6 {kind}")
        made, survived = made + 1, survived + good
    yield Row("R6", "read-only folder, folder removed or renamed while running, two runs on one folder", made, survived, None,
              "one line; what was in memory is saved into a new folder")


# ------------------------------------------------------------------------------------------------ R7, R8, R9: other ranks, other settings

def row_ranks(bench: Bench) -> Iterator[Row]:
    expected = bench.undisturbed()[0]["log"]
    made = survived = 0
    for before, after in trials([(1, 2), (2, 1)] + [(4, 2)] * bench.soak, "R7"):
        out = bench.new()

        def stop(rank: int, mark: Callable[[], None]) -> None:
            count = iter(range(1, 10 ** 6)).__next__
            patched("mmed.optim", "update", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) if count() == 22 else None)
        life = bench.run(out, "--micro_batch_size=1", ranks=before, before=stop)
        good = life.codes == [75] * before and 20 <= saved_step(out) <= 24
        life = bench.run(out, "--micro_batch_size=1", ranks=after)
        log = outcome(out)["log"] if life.codes == [0] * after else []
        good = good and len(log) == len(expected) and all(
            a["step"] == b["step"] and a["tokens"] == b["tokens"] and abs(a["loss"] - b["loss"]) <= 1e-5 * b["loss"] for a, b in zip(log, expected, strict=True))
        good = good and f"ranks {before} -> {after}" in life.text() and "not to the bit" in life.text()
        if not good:
            tell(f"{before} -> {after} ranks: {life.codes}\n{life.text()[-1500:]}")
        made, survived = made + 1, survived + good
    yield Row("R7", "resume on another number of ranks: 1 to 2, 2 to 1" + (", 4 to 2" if bench.soak else ""), made, survived, None,
              "same rows (token counts), losses within 1e-5, a line that says what is not identical")


def row_changed(bench: Bench) -> Iterator[Row]:
    base = begun_run(bench, 7)
    made = survived = 0
    other = bench.folder / "other"
    if not other.exists():
        shutil.copytree(bench.world, other)
        data = bytearray((other / "model" / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (other / "model" / "model.safetensors").write_bytes(data)
        from mmed.data import StreamWriter
        from mmed.tokenizer import load_tokenizer, train_sentencepiece
        tokenizer = load_tokenizer(bench.world / "tokenizer")
        writer = StreamWriter(other / "en", tokenizer.vocab_size, tokenizer.fingerprint)
        writer.add(list(range(3, 300)), "en", "web")
        writer.close()
        shutil.rmtree(other / "tokenizer")
        third = train_sentencepiece(["bone cell rain stone river " * 20] * 30, other / "tokenizer", 290)
        for name in ("en2", "ja2"):
            writer = StreamWriter(other / name, third.vocab_size, third.fingerprint)
            writer.add(list(range(3, 280)) * 20, name[:2], "web")
            writer.close()
    same = f"--data={bench.world}/en,{bench.world}/ja"
    cases = {"global_batch_size": ["--global_batch_size=4"], "sequence_length": ["--sequence_length=32"], "seed": ["--seed=2"],
             "learning_rate": ["--learning_rate=2e-3"], "max_steps": ["--max_steps=70"], "model": [f"--model={other}/model", same],
             "data": [f"--data={other}/en,{bench.world}/ja"], "data order": [f"--data={bench.world}/ja,{bench.world}/en"],
             "data shares": [f"--data={bench.world}/en=1,{bench.world}/ja=2"],
             "tokenizer": [f"--tokenizer={other}/tokenizer", f"--data={other}/en2,{other}/ja2", "--validation="]}
    values = {"seed": ("=1", "now it is 2"), "global_batch_size": ("=8", "now it is 4"), "sequence_length": ("=64", "now it is 32"),
              "learning_rate": ("0.001", "0.002"), "max_steps": ("60", "70"), "tokenizer": ("fingerprint",)}
    for key, flags in trials(cases.items(), "R8"):
        out = bench.new()
        shutil.copytree(base, out)
        name = key.split()[0]
        good = one_line(bench.run(out, *flags), f"--{name}=", f"--allow_changed={name}", *values.get(name, ()))
        if name in ("seed", "learning_rate"):
            life = bench.run(out, *flags, f"--allow_changed={name}")
            facts = json.loads((out / "run.json").read_text())
            good = good and life.codes == [0] and list(facts["resumed"][0]["allowed"]) == [name] and facts["resumed"][0]["step"] == 7
        if not good:
            tell(f"R8 {key}")
        made, survived = made + 1, survived + good
    moved, out = bench.folder / "elsewhere", bench.new()
    shutil.copytree(bench.world, moved, dirs_exist_ok=True)
    shutil.copytree(base, out)
    life = bench.run(out, f"--model={moved}/model", f"--data={moved}/en,{moved}/ja")
    good = life.codes == [0] and outcome(out)["log"] == bench.undisturbed()[0]["log"]
    if not good:
        tell(f"the same files elsewhere: {life.codes} {life.text()[-1500:]}")
    yield Row("R8", "resume with another batch, length, seed, rate, steps, model, data, order, shares, tokenizer; with the same files elsewhere",
              made + 1, survived + good, None, "refused with both values; allowed by name and then noted in run.json; moved files are no change")


def row_accumulation(bench: Bench) -> Iterator[Row]:
    import numpy as np
    from safetensors.numpy import load_file

    made = survived = 0
    gradients = []
    for micro, ranks in trials([(8, 1), (4, 1), (2, 1), (2, 2), (1, 2)], "R9"):
        out = bench.new()
        life = bench.run(out, f"--micro_batch_size={micro}", "--max_steps=1", "--sequence_length=256", "--validation=", ranks=ranks, task="finetune")
        assert life.codes == [0] * ranks, life.text()[-2000:]
        parts: dict[str, list] = {}
        for path in sorted((out / "checkpoints" / "step-1").glob("*.safetensors")):
            for name, value in load_file(path).items():
                if ".exp_avg." in name:
                    parts.setdefault(name, []).append(value)
        gradients.append({name: np.concatenate(value).astype(np.float64) for name, value in parts.items()})
    for other in gradients[1:]:
        distance = max(np.linalg.norm(gradients[0][n] - other[n]) / np.linalg.norm(gradients[0][n]) for n in gradients[0])
        made, survived = made + 1, survived + (distance <= 1e-6)
        if distance > 1e-6:
            tell(f"R9: gradients differ by {distance:.2e}")
    yield Row("R9", "8 examples of unequal length as 1, 2, 4 micro-batches and on 2 ranks", made, survived, None, "gradients within 1e-6 of each other")


# ------------------------------------------------------------------------------------------------------------- R10: not finite

def row_nonfinite(bench: Bench) -> Iterator[Row]:
    import math

    from mmed import checkpoint

    def poison(kind: str) -> Callable:
        def before(rank: int, mark: Callable[[], None]) -> None:
            import torch

            from mmed.model import Transformer
            forward, calls = Transformer.forward, iter(range(1, 10 ** 6)).__next__

            def bad(model, *arguments, **keywords):
                micro = calls() if model.training else 0
                if micro == 4 * 11 + 1 and "weight" in kind:
                    with torch.no_grad():
                        (model.embed_tokens.weight[unseen] if kind == "unseen weight" else model.layers[0].mlp.gate_proj.weight[0])[:] = math.nan
                value = forward(model, *arguments, **keywords)
                if kind == "loss" and 4 * 11 < micro <= 4 * 12:   # all of step 12
                    return value * math.nan
                return value * math.inf if kind == "loss once" and micro == 4 * 11 + 2 else value
            Transformer.forward = bad
        return before

    import numpy as np
    seen = set(np.fromfile(bench.world / "en.bin", "<u2")) | set(np.fromfile(bench.world / "ja.bin", "<u2"))
    unseen = next(i for i in range(300, 3, -1) if i not in seen)
    cases = [("loss", 0, 0), ("loss once", 0, 0), ("weight", 0, 0), ("weight", 3, 0), ("loss", 1, 1), ("loss once", 1, 1), ("unseen weight", 0, 0)]
    made = survived = 0
    for kind, skip, left_out in trials(cases, "R10"):
        out = bench.new()
        life = bench.run(out, f"--skip_nonfinite={skip}", before=poison(kind))
        log = [json.loads(line) for line in open(out / "metrics.jsonl")]
        if kind == "unseen weight":  # an embedding that no batch uses: the loss stays finite, the checkpoint is refused
            good = one_line(life, "step-15", "embed_tokens", "not finite") and saved_step(out) == 10
        elif left_out:
            good = life.codes == [0] and [line["step"] for line in log if line.get("nonfinite")] == [12] and len(log) == 60 and len(log[11]["batch"]) == 8
        else:
            bad = 12 if not skip else 15
            good = one_line(life, f"step {bad}", "not finite", f"Rows {(bad - 1) * 8} to {bad * 8 - 1}", "python -m mmed.data show") \
                and saved_step(out) == 10 and log[-1]["step"] == bad and log[-1]["batch"]
        good = good and checkpoint.damage(out / "checkpoints" / f"step-{saved_step(out)}")[0] is not None
        if good and not left_out:
            good = bench.goes_on(out)[0]
        if not good:
            tell(f"R10 {kind}, skip {skip}: {life.codes} {life.text()[-1500:]}")
        made, survived = made + 1, survived + good
    yield Row("R10", "loss or weight not finite from a step on, for one micro-batch, in a weight that no batch uses", made, survived, None,
              "stops at that step and names the batch, or leaves as many out as allowed; such a state is never saved")


# ------------------------------------------------------------------------------------------------------------ R11: damaged

def row_damage(bench: Bench) -> Iterator[Row]:
    from mmed import checkpoint
    from mmed.errors import UserError

    rng = random.Random(bench.seed)
    base = begun_run(bench)
    step = checkpoint.latest_state(base)
    files = [*sorted(step.iterdir()), base / "checkpoints" / "latest"]
    made = survived = 0
    cuts, flips = (200, 2000) if bench.soak else (20, 50)
    whole = {path: path.read_bytes() for path in files}
    for kind in trials(["cut"] * cuts + ["flip"] * flips + ["header"] * 10 + ["gone"] * len(files) + ["strange"], "R11"):
        path = rng.choice(files[:-1] if kind == "header" else files)
        data = bytearray(whole[path])
        if kind == "gone":
            path = files[made % len(files)]
            path.unlink()
        elif kind == "strange":
            path = step / "shard-00009-model-00001-of-00001.safetensors"
            path.write_bytes(whole[files[0]])
        elif kind == "cut":
            path.write_bytes(data[:rng.randrange(len(data))])
        else:
            data[rng.randrange(min(200, len(data)) if kind == "header" else len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(data))
        try:
            now = checkpoint.latest_state(base)
            # a `latest` that lost its end or is gone still leads to a whole checkpoint, or to nothing: never to half of one
            good = (checkpoint.damage(now)[0] is None) == (path != files[-1]) if now is not None else False
            if path != files[-1]:
                good = good and checkpoint.newest_good(base, but=step).name == "step-10"
        except UserError as error:
            good = path == files[-1] and "--resume=step-" in str(error)
        for p, content in whole.items():
            p.write_bytes(content)
        if kind == "strange":
            path.unlink()
        made, survived = made + 1, survived + good
        if not good:
            tell(f"R11 {kind} of {path}")
    path = rng.choice(files[:-1])
    path.write_bytes(whole[path][:-3])
    good = one_line(bench.run(base), path.name, "--resume=step-10")
    base.with_suffix(".log").unlink()
    life = bench.run(base, "--resume=step-10")
    good = good and life.codes == [0] and outcome(base) == bench.undisturbed()[0]
    if not good:
        tell(f"R11: the command: {life.codes} {life.text()[-1000:]}")
    yield Row("R11", f"a checkpoint's file or `latest` cut ({cuts}), one bit flipped ({flips + 10}), gone, a strange one added", made + 1, survived + good, None,
              "refused by name; the one before it is offered, and goes on to the same bits")


# ------------------------------------------------------------------------------------------------- R13, R14: the same again, clocks

def row_again(bench: Bench) -> Iterator[Row]:
    made = survived = 0
    for task, extra in trials([("pretrain", ()), ("pretrain", ()), ("finetune", ("--sequence_length=256",)),
                               ("finetune", ("--sequence_length=256", "--lora_rank=4", "--deterministic=true"))] * (3 if bench.soak else 1), "R13"):
        out = bench.new()
        life = bench.run(out, *extra, task=task)
        good = life.codes == [0] and outcome(out) == bench.undisturbed(*extra, task=task)[0]
        made, survived = made + 1, survived + good
        if not good:
            tell(f"R13 {task} {extra} {life.codes} {life.text()[-1000:]}")
    yield Row("R13", "the same command again in a fresh process: pre-training, full and LoRA fine-tuning", made, survived, None,
              "same bits of weights, moments and log")


def row_clocks(bench: Bench) -> Iterator[Row]:
    import threading

    from mmed import checkpoint
    from mmed.errors import UserError

    rng = random.Random(bench.seed)
    base = begun_run(bench)
    made = survived = 0
    for kind in trials(["mtimes"] * 10 + ["clock", "no latest", "late file", "never"], "R14"):
        good = True
        if kind == "mtimes":
            for path in base.rglob("*"):
                os.utime(path, (rng.uniform(0, 4e9),) * 2)
            good = checkpoint.latest_state(base).name == "step-12"
        elif kind == "clock":
            out = bench.new()
            shutil.copytree(base, out)

            def before(rank: int, mark: Callable[[], None]) -> None:
                real = time.time
                time.time = lambda: real() + random.uniform(-1e9, 1e9)
            life = bench.run(out, before=before)
            good = life.codes == [0] and outcome(out) == bench.undisturbed()[0]
        elif kind == "no latest":
            out = bench.new()
            shutil.copytree(base, out)
            (out / "checkpoints" / "latest").unlink()
            good = checkpoint.latest_state(out).name == "step-12" and bench.goes_on(out)[0]
        elif kind == "late file":
            folder = bench.new()
            folder.mkdir()
            threading.Timer(0.7, lambda folder=folder: (folder / "a").touch()).start()
            begun = time.monotonic()
            checkpoint.wait_for_files(folder, ["a"], 10)
            good = time.monotonic() - begun >= 0.5
        else:
            try:
                checkpoint.wait_for_files(base, ["a"], 0.3)
                good = False
            except UserError as error:
                good = "share" in str(error)
        if not good:
            tell(f"R14 {kind}")
        made, survived = made + 1, survived + good
    yield Row("R14", "random times on all files, jumping clock, `latest` lost, files that show late", made, survived, None, "steps are told by their number")


# ------------------------------------------------------------------------------------------------------------------ R15: memory

def row_memory(bench: Bench) -> Iterator[Row]:
    """Peak of each rank while it saves, from /proc, against the bytes of its shard; and growth over steps."""
    import torch

    made = survived = 0
    notes = []
    for ranks in trials([1, 2], "R15"):
        report = bench.folder / f"memory{ranks}"

        def body(report=report, ranks=ranks) -> int:
            from mmed import checkpoint, distributed
            distributed.start(60)
            shard = 400 << 20  # bytes of each rank's part, in 12 tensors
            tensors = {}
            for i in range(12):
                value = torch.zeros(shard // 4 // 12 // 512, 512)
                if ranks > 1:
                    from torch.distributed.device_mesh import init_device_mesh
                    from torch.distributed.tensor import DTensor, Shard
                    mesh = init_device_mesh("cpu", (ranks,))
                    value = DTensor.from_local(value, mesh, [Shard(0)])
                tensors[f"model.w{i}"] = value
            run = bench.folder / f"memory-run{ranks}"
            peak, base = status("VmHWM"), status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            copy = {name: value.clone() for name, value in tensors.items()}  # what Saver does
            checkpoint.write_state(run, copy, 1, {}, 1)
            peak = status("VmHWM")
            Path(f"{report}.{distributed.rank()}").write_text(f"{peak} {base} {shard}")
            distributed.stop()
            return 0
        life = Life([], ranks, log=bench.folder / "memory.log", main=body)
        assert life.wait(300) == [0] * ranks, life.text()[-2000:]
        for rank in range(ranks):
            peak, base, shard = map(int, Path(f"{report}.{rank}").read_text().split())
            above = peak - (base - shard)  # without what this process holds besides
            made, survived = made + 1, survived + (above <= 2 * shard + (200 << 20))
            notes.append(f"{above / shard:.2f}")
        shutil.rmtree(bench.folder / f"memory-run{ranks}")
    out = bench.new()

    def watch(rank: int, mark: Callable[[], None]) -> None:
        count, seen = iter(range(1, 10 ** 6)).__next__, open(out.with_suffix(".rss"), "w")
        patched("mmed.optim", "update", lambda *_, **__: seen.write(f"{count()} {status('VmRSS')}\n") and seen.flush())
    steps = 2000 if bench.soak else 700
    life = bench.run(out, f"--max_steps={steps}", "--save_every=50", "--eval_every=100", before=watch)
    sizes = [int(line.split()[1]) for line in open(out.with_suffix(".rss"))]
    growth = max(sizes[-100:]) / max(sizes[100:200]) - 1
    good = life.codes == [0] and growth < 0.01
    if not good:
        tell(f"R15: growth {growth:.2%} over {steps} steps, {life.codes}")
    yield Row("R15", "a save of 400 MiB a rank, 1 and 2 ranks; long runs", made + 1, survived + good, None,
              f"peak {', '.join(notes)} x the shard (at most 2, + 200 MB); {steps - 200} steps: {growth:+.2%} (at most 1 %)")


def status(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


# --------------------------------------------------------------------------------------------------- R16: one rank fails, others end

def row_hang(bench: Bench) -> Iterator[Row]:
    made, survived, seconds = 0, 0, []
    places = {"evaluation": ("mmed.model", "Transformer.forward", lambda: nth_micro(2, False)), "save": ("mmed.checkpoint", "write_state", lambda: counting(2)),
              "step": ("mmed.optim", "update", lambda: counting(13)), "start-up": ("mmed.batches", "make_rows", lambda: counting(1)),
              "load": ("mmed.checkpoint", "load_weights", lambda: counting(1))}
    cases = [(place, rank, kind) for place in places for rank in (0, 1) for kind in ("error", "message", "hang")]
    if not bench.soak:
        cases = [("evaluation", 0, "error"), ("save", 1, "message"), ("step", 1, "error"), ("start-up", 0, "message")]
    for place, failing, kind in trials(cases, "R16"):
        module, name, when = places[place]

        def before(rank: int, mark: Callable[[], None], module=module, name=name, when=when, kind=kind, failing=failing) -> None:
            if rank != failing:
                return
            condition = when()

            def fail(*arguments, **keywords) -> None:
                if condition(*arguments, **keywords):
                    from mmed.errors import UserError
                    mark()
                    if kind == "hang":
                        time.sleep(10 ** 6)
                    raise (UserError if kind == "message" else RuntimeError)("the true reason")
            patched(module, name, fail)
        out = bench.new()
        life = Life(bench.arguments(out), 2, before=before, log=out.with_suffix(".log"))
        good = life.marked(120)
        begun = time.monotonic()
        if kind == "hang":  # a rank that hangs: the other gives up after --rank_timeout_seconds
            while life.codes[1 - failing] is None and time.monotonic() - begun < 60:
                life.poll()
                time.sleep(0.01)
            took = time.monotonic() - begun
            good = good and life.codes[1 - failing] not in (None, 0) and took <= 60
            life.kill()
        else:
            codes = life.wait(60)
            took = time.monotonic() - begun
            good = good and codes is not None and all(codes) and took <= 20 and "the true reason" in life.text()
            good = good and life.text().count("Traceback") == (kind == "error")
        if life.wait(1) is None:
            life.kill()
        good = good and (place in ("start-up", "load") or bench.goes_on(out, ranks=2)[0])
        if not good:
            tell(f"R16 {kind} of rank {failing} in {place}: {life.codes} after {took:.1f} s\n{life.text()[-2500:]}")
        made, survived, seconds = made + 1, survived + good, [*seconds, took]
    for kind in trials(["error", "message"] if bench.soak else ["message"], "R16, torchrun"):
        out = bench.new()
        script = bench.folder / "fail.py"
        script.write_text("import sys\nfrom mmed import train, optim, distributed\nfrom mmed.errors import UserError, main_guard\n"
                          "inner, calls = optim.update, []\ndef update(*a):\n    calls.append(1)\n    if len(calls) == 7 and distributed.rank() == 1:\n"
                          f"        raise {'UserError' if kind == 'message' else 'RuntimeError'}('the true reason')\n    return inner(*a)\n"
                          "optim.update = update\nmain_guard(train.main)\n")
        begun = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script), *bench.arguments(out)],
                              cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=180)
        took = time.monotonic() - begun
        tail = done.stderr.rstrip().splitlines()[-12:]
        good = done.returncode == 1 and any("the true reason" in line for line in tail)
        if not good:
            tell(f"R16 torchrun, {kind}: {done.returncode}\n{done.stderr[-3000:]}")
        made, survived = made + 1, survived + good
    yield Row("R16", "one rank of two fails" + (" or hangs" if bench.soak else "") + " at start, in a step, an evaluation, a save", made, survived, median(seconds),
              "the other has ended by itself (the time shown); its error is the only traceback, and in torchrun's last lines")


# ------------------------------------------------------------------------------------------------------------------------- rows

MAKERS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "R1": lambda bench: iter([row_killed(bench, 1)]), "R2": lambda bench: iter([row_killed(bench, 2)]), "R3": row_between_operations,
    "R4": row_signals, "R5": row_disk, "R6": row_folders, "R7": row_ranks, "R8": row_changed, "R9": row_accumulation, "R10": row_nonfinite,
    "R11": row_damage, "R13": row_again, "R14": row_clocks, "R15": row_memory, "R16": row_hang}


def rows(soak: bool, seed: int, only: set[str]) -> Iterator[Row]:
    """The rows of this area whose id is in `only` (all when empty)."""
    wanted = [name for name in MAKERS if not only or name in only or (name == "R3" and "R12" in only)]
    if not wanted:
        return
    warm()
    with tempfile.TemporaryDirectory(prefix="mmed-faults-") as folder:
        bench = Bench(Path(folder), soak, seed)
        for name in wanted:
            yield from MAKERS[name](bench)
