"""A corpus on datatrove's executors: the bytes of one machine, also after kills; a local one quickly, Ray and Slurm for real where they are."""
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import cluster, micro_world
from mmed.errors import UsageError, UserError
from mmed.tokenizer import train_sentencepiece

SEED = random.SystemRandom().randrange(10**6)
ROOT = Path(__file__).resolve().parents[1]


def small_slice(root: Path) -> Path:
    """Four French files with copies among them and a line that is no JSON, and a recipe of three steps; returns the recipe."""
    rng, world = random.Random(SEED), micro_world.make_world(SEED)
    texts = [" ".join(micro_world.medical_page(world, "fr", (number + shift) % micro_world.DISEASES, 4, rng) for shift in range(3)) for number in range(40)]
    (root / "web").mkdir(parents=True)
    for shard in range(4):
        lines = [json.dumps({"text": text, "id": f"{shard}-{i}"}) for i, text in enumerate(texts[shard * 10:shard * 10 + 10] + texts[:shard])]
        (root / "web" / f"{shard}.jsonl").write_text("\n".join([*lines, '{"text": "cut']), encoding="utf-8")
    train_sentencepiece(texts, root / "tokenizer", 500)
    recipe = root / "recipe.toml"
    recipe.write_text('tokenizer = "tokenizer"\nheld_out = 0.1\n[[source]]\nlanguage = "fr"\nkind = "web"\ninputs = ["web"]\n', encoding="utf-8")
    return recipe


def command(recipe: Path, out: Path, *options: str, module: str = "data_prep.cluster") -> list[str]:
    return [sys.executable, "-m", module, *(["corpus"] if options else []), str(recipe), "--out", str(out), *options]


def made(out: Path) -> dict[str, bytes]:
    """What training reads, and the counts of every step."""
    return {str(path.relative_to(out)): path.read_bytes() for folder in ("streams", "unique/fr/kept", "sources/fr-1/kept", "corpus.json")
            for path in sorted([out / folder] if (out / folder).is_file() else (out / folder).rglob("*")) if path.is_file() and ".parts" not in str(path)}


def check_killed_and_whole(tmp_path: Path, options: list[str], moments: list[Callable[[Path], bool]], after_kill: Callable[[], object] = lambda: None) -> None:
    """At each moment the coordinator is killed; started once more with other options of scheduling it writes what data_prep.corpus writes."""
    recipe, out = small_slice(tmp_path / "raw"), tmp_path / "corpus"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(recipe, tmp_path / "whole", module="data_prep.corpus"), check=True, capture_output=True, cwd=ROOT, env=environment)
    for moment in moments:
        child = subprocess.Popen(command(recipe, out, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)
        while child.poll() is None and not moment(out):
            time.sleep(0.02)
        assert child.poll() is None, f"seed {SEED}: was to be killed, had ended"
        child.send_signal(signal.SIGKILL)
        child.wait()
        after_kill()
    last = subprocess.run(command(recipe, out, *options, "--memory", "0.9"), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert last.returncode == 0, (SEED, last.stderr[-3000:])
    one, other = made(tmp_path / "whole"), made(out)
    assert len(one) > 10 and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == [], f"seed {SEED}"
    assert list((out / "cluster").glob("*/*/completions/*")), "the tasks of datatrove did the work"


def locks_are_free(out: Path) -> bool:
    """No process of a killed start holds a lock (each process of it, datatrove's own too, has one open)."""
    for path in (out / "cluster").glob("*/*.lock"):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def within(seconds: float, wanted: Callable[[], bool]) -> bool:
    until = time.time() + seconds
    while not wanted():
        if time.time() > until:
            return False
        time.sleep(0.1)
    return True


def marks(step: str, count: int) -> Callable[[Path], bool]:
    """The moment at which so many of a step's tasks are completed."""
    return lambda out: len(list((out / "cluster" / step).glob("*/completions/*"))) >= count


def test_local_tasks_killed_twice_write_the_bytes_of_one_machine_and_leave_no_process(tmp_path):
    pytest.importorskip("datatrove")

    def nobody_left() -> None:
        assert within(5, lambda: locks_are_free(tmp_path / "corpus"))

    check_killed_and_whole(tmp_path, ["--executor", "local", "--tasks", "3", "--workers", "2"],
                           [marks("source-fr-1", 1), marks("unique-fr", 1)], nobody_left)
