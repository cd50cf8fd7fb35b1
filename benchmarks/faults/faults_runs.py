"""Faults of training runs and checkpoints, rows R1 to R16 of the fault bench (benchmarks/faults/faults.py says how to run it).

Killed, stopped or without a rank: faults_stops.py. Here: disks, folders, changed settings, damaged files, clocks, memory.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_bench import Bench, begun_run, counting, one_line, slowly, tell
from fault_table import Row, trials
from faults_stops import row_between_operations, row_hang, row_killed, row_signals
from warm_runs import Life, outcome, patched, saved_step, warm

# --------------------------------------------------------------------------------------------------- R5, R6: disks and folders

def limited(size: int) -> Callable:
    def before(rank: int, mark: Callable[[], None]) -> None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return before


def row_disk(bench: Bench) -> Iterator[Row]:
    from mmed.checkpoints import training_state

    made, survived = 0, 0

    def judge(out: Path, life: Life, *words: str) -> None:
        nonlocal made, survived
        good = one_line(life, *words)
        now = training_state.latest_state(out)
        good = good and now is not None and training_state.damage(now)[0] is not None and not list((out / "checkpoints").glob("*.tmp"))
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
                patched("mmed.checkpoints.pretrained", "save_pretrained", lambda *_, **__: limited(100_000)(0, mark))
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
                patched("mmed.training.optimizer", "update", lambda *_, **__: act() if count() == 2 else None)
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
                patched("mmed.training.optimizer", "update", slowly(mark, counting(3)))
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
            patched("mmed.training.optimizer", "update", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) if count() == 22 else None)
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

    from mmed.checkpoints import training_state

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
            good = one_line(life, f"step {bad}", "not finite", f"Rows {(bad - 1) * 8} to {bad * 8 - 1}", "python -m mmed.training.inspect_batch show") \
                and saved_step(out) == 10 and log[-1]["step"] == bad and log[-1]["batch"]
        good = good and training_state.damage(out / "checkpoints" / f"step-{saved_step(out)}")[0] is not None
        if good and not left_out:
            good = bench.goes_on(out)[0]
        if not good:
            tell(f"R10 {kind}, skip {skip}: {life.codes} {life.text()[-1500:]}")
        made, survived = made + 1, survived + good
    yield Row("R10", "loss or weight not finite from a step on, for one micro-batch, in a weight that no batch uses", made, survived, None,
              "stops at that step and names the batch, or leaves as many out as allowed; such a state is never saved")


# ------------------------------------------------------------------------------------------------------------ R11: damaged

def row_damage(bench: Bench) -> Iterator[Row]:
    from mmed.checkpoints import training_state
    from mmed.utils.errors import UserError

    rng = random.Random(bench.seed)
    base = begun_run(bench)
    step = training_state.latest_state(base)
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
            now = training_state.latest_state(base)
            # a `latest` that lost its end or is gone still leads to a whole checkpoint, or to nothing: never to half of one
            good = (training_state.damage(now)[0] is None) == (path != files[-1]) if now is not None else False
            if path != files[-1]:
                good = good and training_state.newest_good(base, but=step).name == "step-10"
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

    from mmed.checkpoints import training_state
    from mmed.utils.errors import UserError

    rng = random.Random(bench.seed)
    base = begun_run(bench)
    made = survived = 0
    for kind in trials(["mtimes"] * 10 + ["clock", "no latest", "late file", "never"], "R14"):
        good = True
        if kind == "mtimes":
            for path in base.rglob("*"):
                os.utime(path, (rng.uniform(0, 4e9),) * 2)
            good = training_state.latest_state(base).name == "step-12"
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
            good = training_state.latest_state(out).name == "step-12" and bench.goes_on(out)[0]
        elif kind == "late file":
            folder = bench.new()
            folder.mkdir()
            threading.Timer(0.7, lambda folder=folder: (folder / "a").touch()).start()
            begun = time.monotonic()
            training_state.wait_for_files(folder, ["a"], 10)
            good = time.monotonic() - begun >= 0.5
        else:
            try:
                training_state.wait_for_files(base, ["a"], 0.3)
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
            from mmed.checkpoints import training_state
            from mmed.training import distributed
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
            training_state.write_state(run, copy, 1, {}, 1)
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
        patched("mmed.training.optimizer", "update", lambda *_, **__: seen.write(f"{count()} {status('VmRSS')}\n") and seen.flush())
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
