"""Runs that are killed, stopped by a signal or lose a rank: rows R1 to R4, R12 and R16 of the fault bench (faults_runs.py lists all)."""
from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_bench import SAVE_EVERY, Bench, counting, slowly, tell
from fault_table import Row, median, trials
from warm_runs import ROOT, Life, differing, file_operations, last_step, outcome, patched, saved_step

SOAK_SECONDS = 3600  # R2 with --soak goes on at least so long, and until there are as many kills as it says


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

        from mmed.checkpoints import training_state
        from mmed.training import distributed

        distributed.start(20)
        for step in steps:
            tensors = {f"model.w{i}": torch.full((50, 7), float(step * 10 + i)) for i in range(3)}
            training_state.write_state(run, tensors, step, {"optimizer_step": step}, keep_last)
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
    from mmed.checkpoints import training_state
    from mmed.training.run_folder import FolderLock

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
            now = training_state.latest_state(trial)
            good = codes is not None and now is not None and now.name in (f"step-{first[-1]}", f"step-{second[-1]}") \
                and training_state.damage(now)[0] is not None and all(training_state.damage(p)[0] is not None for p in training_state.checkpoints(trial))
            FolderLock(trial).release()
            good = good and not list(trial.rglob("*.tmp"))
            again = saving_child(trial, second, ranks, 0, -1, keep_last, counter).wait(60)
            good = good and again == [0] * ranks and training_state.latest_state(trial).name == f"step-{second[-1]}" \
                and training_state.damage(trial / "checkpoints" / f"step-{second[-1]}")[0] is not None and len(training_state.checkpoints(trial)) <= keep_last
            if not good:
                tell(f"{name}: {ranks} ranks, rank {victim} killed before operation {point + 1} of {points}: {codes}, {now}")
            totals[name][0] += 1
            totals[name][1] += good
    yield Row("R3", "killed before each open, write (by half), fsync, rename, removal of a save, 1 and 2 ranks", *totals["R3"], None,
              "the old or the new checkpoint is whole; no temporary file is left after the next start")
    yield Row("R12", "the same while old checkpoints are removed" + (", keep_last 1 to 3" if bench.soak else ""), *totals["R12"], None, "every folder with a name is whole")


# -------------------------------------------------------------------------------------------------------------------- R4: signals

def nth_micro(n: int, training: bool) -> Callable[..., bool]:
    calls = [0]

    def when(model, *_, **__) -> bool:
        calls[0] += model.training == training
        return model.training == training and calls[0] == n
    return when


# phase -> (module, function that is hooked, when); forward: 4 micro-batches a step with one rank, 2 with two
PHASES: dict[str, tuple[str, str, Callable[[int], Callable[..., bool]]]] = {
    "data load": ("mmed.training.loader", "make_rows", lambda ranks: counting(1)),
    "model load": ("mmed.checkpoints.pretrained", "load_weights", lambda ranks: counting(1)),
    "compile (first forward)": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(1, True)),
    "step": ("mmed.training.optimizer", "update", lambda ranks: counting(13)),
    "accumulation": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(4 // ranks * 13 + 2, True)),
    "evaluation": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(2, False)),
    "evaluation at the end": ("mmed.model", "Transformer.forward", lambda ranks: nth_micro(-1, False)),
    "save": ("mmed.checkpoints.training_state", "write_state", lambda ranks: counting(3)),
    "last save": ("mmed.checkpoints.training_state", "write_state", lambda ranks: lambda run, tensors, step, *_, **__: step == 60),
    "export": ("mmed.checkpoints.pretrained", "save_pretrained", lambda ranks: counting(1)),
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
                patched("mmed.training.validation", "validation_loss", count_evaluations)
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
            patched("mmed.training.optimizer", "update", stuck)
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


# --------------------------------------------------------------------------------------------------- R16: one rank fails, others end

def row_hang(bench: Bench) -> Iterator[Row]:
    made, survived, seconds = 0, 0, []
    places = {"evaluation": ("mmed.model", "Transformer.forward", lambda: nth_micro(2, False)), "save": ("mmed.checkpoints.training_state", "write_state", lambda: counting(2)),
              "step": ("mmed.training.optimizer", "update", lambda: counting(13)), "start-up": ("mmed.training.loader", "make_rows", lambda: counting(1)),
              "load": ("mmed.checkpoints.pretrained", "load_weights", lambda: counting(1))}
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
                    from mmed.utils.errors import UserError
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
        script.write_text("import sys\nfrom mmed import train, optim, distributed\nfrom mmed.utils.errors import UserError, main_guard\n"
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
