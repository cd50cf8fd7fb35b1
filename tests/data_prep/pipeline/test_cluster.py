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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.pipeline import cluster
from examples.demo import micro_world
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UsageError, UserError

SEED = random.SystemRandom().randrange(10**6)
ROOT = Path(__file__).resolve().parents[3]


def small_slice(root: Path, more: str = "") -> Path:
    """Four French files with copies among them and a line that is no JSON, and a recipe of two or three steps; returns the recipe."""
    rng, world = random.Random(SEED), micro_world.make_world(SEED)
    texts = [" ".join(micro_world.medical_page(world, "fr", (number + shift) % micro_world.DISEASES, 4, rng) for shift in range(3)) for number in range(40)]
    (root / "web").mkdir(parents=True)
    for shard in range(4):
        lines = [json.dumps({"text": text, "id": f"{shard}-{i}"}) for i, text in enumerate(texts[shard * 10:shard * 10 + 10] + texts[:shard])]
        (root / "web" / f"{shard}.jsonl").write_text("\n".join([*lines, '{"text": "cut']), encoding="utf-8")
    train_sentencepiece(texts, root / "tokenizer", 500)
    recipe = root / "recipe.toml"
    recipe.write_text(more + 'tokenizer = "tokenizer"\nheld_out = 0.1\n[[source]]\nlanguage = "fr"\nkind = "web"\ninputs = ["web"]\n', encoding="utf-8")
    return recipe


def command(recipe: Path, out: Path, *options: str, module: str = "data_prep.pipeline.cluster") -> list[str]:
    return [sys.executable, "-m", module, *(["corpus"] if options else []), str(recipe), "--out", str(out), *options]


def made(out: Path) -> dict[str, bytes]:
    """What training reads, and the counts of every step."""
    return {str(path.relative_to(out)): path.read_bytes() for folder in ("streams", "unique/fr/kept", "sources/fr-1/kept", "corpus.json")
            for path in sorted([out / folder] if (out / folder).is_file() else (out / folder).rglob("*")) if path.is_file() and ".parts" not in str(path)}


def check_killed_and_whole(tmp_path: Path, options: list[str], moments: list[Callable[[Path], bool]], after_kill: Callable[[], object] = lambda: None,
                           more: str = "") -> None:
    """At each moment the coordinator is killed; started once more with other options of scheduling it writes what data_prep.corpus writes."""
    recipe, out = small_slice(tmp_path / "raw", more), tmp_path / "corpus"
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
    assert len(one) > 5 and one.keys() == other.keys()
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


@pytest.mark.slow
def test_a_ray_killed_in_the_middle_writes_the_bytes_of_one_machine(tmp_path):
    pytest.importorskip("datatrove")
    pytest.importorskip("ray")
    # each step starts a Ray of its own, some fifteen seconds: two steps are enough
    check_killed_and_whole(tmp_path, ["--executor", "ray", "--tasks", "2", "--memory", "0.5"], [marks("source-fr-1", 1)],
                           lambda: within(20, lambda: locks_are_free(tmp_path / "corpus")), "deduplicate = false\n")


@pytest.fixture
def one_node_slurm(monkeypatch):
    """A Slurm of this machine, ended after the test."""
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid():
        pytest.skip("one_node_slurm.sh needs root")
    script, folder = str(ROOT / "slurm" / "one_node_slurm.sh"), tempfile.mkdtemp(prefix="slurm-")
    begun = subprocess.run([script, "start", folder], stdout=subprocess.PIPE, text=True)
    assert begun.returncode == 0, "it says why above"
    monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
    yield
    subprocess.run(["scancel", "--me"])
    subprocess.run([script, "stop", folder], check=True)
    time.sleep(1)  # the daemons write a last time
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_slurm_jobs_left_running_and_jobs_cancelled_both_end_in_the_bytes_of_one_machine(tmp_path, one_node_slurm):
    pytest.importorskip("datatrove")
    kills = []

    def cancel_the_second_time() -> None:
        kills.append(queue := cluster.queued_jobs(1))
        if len(kills) == 2:
            assert any(name.startswith("dedup-") for name in queue), "the jobs outlive the coordinator"
            subprocess.run(["scancel", "--me"], check=True)

    check_killed_and_whole(tmp_path, ["--executor", "slurm", "--partition", "all", "--tasks", "2", "--poll", "0.5"],
                           [lambda out: (out / "cluster" / "source-fr-1").is_dir() and bool(cluster.queued_jobs(1)),
                            lambda out: bool(list((out / "cluster" / "unique-fr").glob("*/logs/*.log")))], cancel_the_second_time)
    scripts = list((tmp_path / "corpus" / "cluster" / "source-fr-1").glob("*/slurm_logs/*.out"))
    assert len(scripts) == 2, "the jobs of the first start were waited for, not sent again"


def refused(*arguments: str, kind: type = UsageError) -> str:
    with pytest.raises(kind) as error:
        cluster.main(list(arguments))
    assert "\n" not in str(error.value) and error.value.exit_code == (2 if kind is UsageError else 1)
    return str(error.value)


def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "data_prep.clean IN --out OUT" in refused("run", "--executor", "local", "--", "data_prep.rationales", "x")
    assert "a step of data_prep" in refused("run", "--executor", "local")
    assert "a step of data_prep" in refused("run", "--executor", "local", "--", "os", "system")
    assert "--partition is needed" in refused("run", "--executor", "slurm", "--", "data_prep.clean", "x", "--out", "y")
    assert "--tasks=0" in refused("corpus", "recipe.toml", "--out", "y", "--executor", "local", "--tasks", "0")
    assert "--memory=0" in refused("corpus", "recipe.toml", "--out", "y", "--executor", "ray", "--memory", "0")
    assert "no such recipe" in refused("corpus", "recipe.toml", "--out", "y", "--executor", "local", kind=UserError)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_task_tells_its_reason_and_where_its_logs_are(tmp_path):
    pytest.importorskip("datatrove")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nno JSON\n')
    with pytest.raises(UserError, match=r"1 of 1 tasks failed, first task 0: .*a\.jsonl:2: .*; logs are in ") as error:
        cluster.main(["run", "--executor", "local", "--tasks", "1", "--", "data_prep.clean", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"),
                      "--language", "en", "--strict"])
    assert Path(re.search(r"logs are in (.*?);", str(error.value))[1]).is_dir()


def test_jobs_of_other_options_in_the_queue_and_a_second_start_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("datatrove")
    queue: set[str] = set()
    sent = []
    monkeypatch.setattr(cluster, "queued_jobs", lambda poll: queue)
    monkeypatch.setattr("datatrove.executor.SlurmPipelineExecutor.launch_job", lambda self: sent.append(self.job_name))
    call = ["run", "--executor", "slurm", "--partition", "p", "--poll", "0", "--logs", str(tmp_path / "logs"), "--tasks"]
    step = ["--", "data_prep.clean", str(tmp_path), "--out", str(tmp_path / "out"), "--language", "en"]
    assert "2 of 2 tasks failed" in refused(*call, "2", *step, kind=UserError)
    queue.add(sent[0])
    assert f"scancel --name={sent[0]}" in refused(*call, "3", *step, kind=UserError)
    queue.clear()
    refused(*call, "3", *step, kind=UserError)
    assert len(set(sent)) == 2 and len({name.rpartition("-")[0] for name in sent}) == 1
    with cluster.locked(tmp_path / "logs" / "start.lock", fcntl.LOCK_EX):
        assert "another start" in refused(*call, "2", *step, kind=UserError)


def test_a_slurm_controller_that_does_not_answer_is_not_taken_for_an_empty_queue(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n[ -e {tmp_path}/again ] && echo job && exit 0\ntouch {tmp_path}/again\necho no contact >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "PATIENCE", 2)
    assert cluster.queued_jobs(0) == {"job"}
    (tmp_path / "again").unlink()
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    with pytest.raises(UserError, match="no contact"):
        cluster.queued_jobs(0)
