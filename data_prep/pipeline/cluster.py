"""The steps of a corpus on many machines: the same commands, their shards spread over the tasks of a datatrove executor.

    python -m data_prep.pipeline.cluster corpus RECIPE.toml --out mmedc --executor slurm --tasks 500 --partition cpu --time 04:00:00
    python -m data_prep.pipeline.cluster run --executor ray --tasks 64 -- data_prep.filter_medical culturax/ja --language ja --out corpus/ja

A task runs the command on its share of the shards (shards r, r + tasks, ... of task r) up to the end of the command's first phase, which
is where the time goes: judging, cleaning, reading books, signatures, token ids. When all tasks are done the command is run once more
here; it finds the shards done and does what needs all of them (the funnel, which documents are duplicates, joining streams). So a
cluster writes the bytes that one machine writes, and a stopped job is started again with the same command: finished tasks and shards
are passed over, Slurm's jobs of an earlier start that are still in the queue are waited for instead of sent again. Folders must lie
on a file system that all nodes see.

executor: local (processes of this machine), slurm (an array of jobs; waits for them), ray (the cluster that RAY_ADDRESS names, else one of
this machine). Scheduling, retries and logs are datatrove's (extra `cluster`); its logs are in OUT/cluster/STEP. Two things would spoil
a shard, two tasks on it at once and two starts at once: a start holds OUT/cluster/STEP/start.lock and a task (shared) tasks.lock.
"""
from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.pipeline.corpus_card import finish
from data_prep.pipeline.plan import end_with_parent, run_plan
from data_prep.pipeline.recipe import read_recipe, steps
from data_prep.pipeline.shards import ShareDone, only_share
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, require_extra
from mmed.utils.files import atomic_write

EXECUTORS = ("local", "slurm", "ray")
STEPS = ("filter_medical", "books", "web_pages", "clean", "dedup", "decontaminate", "tokenize_corpus")
OPTIONS = ("executor", "tasks", "workers", "memory", "partition", "time", "qos", "here", "poll")
PATIENCE = 60  # times that squeue is asked before its failing is an error


def run_share(command: list[str], rank: int, world_size: int, logs: Path, child_of: int) -> None:
    """One task: the first phase of `command` on the shards rank, rank + world_size, ...; `child_of`: the process to end with, or 0."""
    if child_of and os.getpid() != child_of:
        end_with_parent(signal.SIGKILL)  # a process of a pool: a killed start leaves none behind
    with locked(logs.parent / "tasks.lock", fcntl.LOCK_SH), only_share(rank, world_size):
        try:
            with contextlib.suppress(ShareDone):
                importlib.import_module(command[0]).main(command[1:])
        except Exception as error:
            with atomic_write(logs / "failed" / f"{rank:05d}") as file:
                file.write(str(error))
            raise


def make_pipeline(command: list[str], logs: Path, child_of: int) -> list[Any]:
    """The command as a datatrove pipeline of one step."""
    class Share(require_extra("datatrove.pipeline.base", "cluster").PipelineStep):
        name = command[0]
        type = "mmed"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
            from data_prep.pipeline.cluster import run_share

            run_share(command, rank, world_size, logs, child_of)
            return
            yield  # datatrove asks for a generator

    return [Share()]


@contextlib.contextmanager
def locked(path: Path, kind: int, message: str = "", seconds: float = 0) -> Iterator[None]:
    """Hold a lock of flock's `kind`; it goes with the process. With a `message`: raise it when others hold the lock for `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        until = time.time() + seconds
        while True:
            try:
                fcntl.flock(file, kind | (fcntl.LOCK_NB if message else 0))
                break
            except BlockingIOError:
                if time.time() > until:
                    raise UserError(message) from None
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise
                break  # a file system without locks: two starts at once are then the user's care
        yield


def run_on(given: argparse.Namespace, command: list[str], place: Path) -> None:
    """Run the command's shards on the executor and wait; raises UserError when a task failed. place: for logs and locks."""
    # the tasks of one wish must not count as done for another
    logs = place / hashlib.sha256(repr((command, given.tasks)).encode()).hexdigest()[:12]
    with locked(place / "start.lock", fcntl.LOCK_EX, f"{place}: another start of this step is at work; wait for it or stop it"):
        shutil.rmtree(logs / "failed", ignore_errors=True)
        reason = {"local": run_local, "ray": run_ray, "slurm": run_slurm}[given.executor](given, command, logs)
    missing = sorted(set(range(given.tasks)) - completed(logs))
    if missing:
        told = logs / "failed" / f"{missing[0]:05d}"
        reason = told.read_text(encoding="utf-8") if told.is_file() else reason or "no word of it: killed, or out of time or memory?"
        raise UserError(f"{command[0]}: {len(missing)} of {given.tasks} tasks failed, first task {missing[0]}: {reason}; logs are in {logs}; "
                        "the same command starts them again")


def none_left(logs: Path) -> contextlib.AbstractContextManager[None]:
    """Passes when no task of an earlier start is alive."""
    return locked(logs.parent / "tasks.lock", fcntl.LOCK_EX,
                  f"{logs.parent}: tasks of an earlier start are still at work; wait for them or end them", 30)


def run_local(given: argparse.Namespace, command: list[str], logs: Path) -> str:
    # datatrove's manager process is a fork of this one and would outlive it
    os.register_at_fork(after_in_child=lambda: end_with_parent(signal.SIGKILL))
    with none_left(logs):
        pass
    executors, workers = require_extra("datatrove.executor", "cluster"), given.workers or min(given.tasks, os.cpu_count() or 1)
    try:
        executors.LocalPipelineExecutor(make_pipeline(command, logs, os.getpid()), given.tasks, workers, str(logs)).run()
    except Exception as error:  # of any kind, as the task raised it; run_on says which task
        return f"{type(error).__name__}: {error}"
    return ""


def run_ray(given: argparse.Namespace, command: list[str], logs: Path) -> str:
    ray, executors = require_extra("ray", "cluster"), require_extra("datatrove.executor", "cluster")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to the outside
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address or "local", include_dashboard=None if address else False, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": python_path()}})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--executor ray: no connection to {address or 'a new Ray on this machine'}: {error}") from error
    try:
        with none_left(logs):
            pass
        executors.RayPipelineExecutor(make_pipeline(command, logs, -1), given.tasks, given.workers or -1, logging_dir=str(logs), cpus_per_task=1,
                                      mem_per_cpu_gb=given.memory).run()
    finally:
        ray.shutdown()
    return ""


def python_path() -> str:
    return os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))


def run_slurm(given: argparse.Namespace, command: list[str], logs: Path) -> str:
    # The name says which step of which folder, then which wish; it survives this process, so the next start finds the jobs.
    step = f"{command[0].rpartition('.')[2]}-{hashlib.sha256(str(logs.parent).encode()).hexdigest()[:8]}"
    name = f"{step}-{logs.name[:8]}"
    others = sorted({job for job in queued_jobs(given.poll) if job.startswith(f"{step}-") and job != name})
    if others:
        raise UserError(f"jobs of an earlier start with other options are in the queue: wait for them, or scancel --name={','.join(others)}")
    while True:
        found = name in queued_jobs(given.poll)
        if not found:
            send(given, command, logs, name)
        while name in queued_jobs(given.poll) and len(completed(logs)) < given.tasks:
            print(f"\r{len(completed(logs))} of {given.tasks} tasks", end="", file=sys.stderr, flush=True)
            time.sleep(given.poll)
        if len(completed(logs)) < given.tasks:
            time.sleep(given.poll)  # the last marks may come late over a shared file system
        if not found or len(completed(logs)) == given.tasks:
            break  # jobs of an earlier start may have been cancelled: what they left undone is sent once
    return f"Slurm's own logs are in {logs}/slurm_logs"


def send(given: argparse.Namespace, command: list[str], logs: Path, name: str) -> None:
    """Hand Slurm an array of jobs for the tasks that are not completed."""
    with none_left(logs):
        pass
    executor = require_extra("datatrove.executor", "cluster").SlurmPipelineExecutor(
        make_pipeline(command, logs, 0), given.tasks, given.time, given.partition, workers=given.workers or -1, logging_dir=str(logs),
        job_name=name, qos=given.qos, with_srun=False, requeue_signals=None, sbatch_args={"mem-per-cpu": f"{round(given.memory * 1024)}M"},
        env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(python_path())}\n"
                    f"cd {shlex.quote(os.getcwd())}")
    # It would wait in the queue for ever when a task fails, and nobody reads what it sums up.
    executor.launch_merge_stats = lambda: None
    try:
        executor.launch_job()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UserError(f"--executor slurm: sbatch did not take the job: {error}; what it said stands above") from error


def queued_jobs(poll: float) -> set[str]:
    """Names of this user's jobs; a controller that does not answer is asked again for some minutes before that is an error."""
    for attempt in range(1, PATIENCE + 1):
        try:
            queue = subprocess.run(["squeue", "-h", "--me", "-o", "%j"], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("--executor slurm: no program squeue here; start this on a machine that can send jobs") from None
        if queue.returncode == 0:
            return set(queue.stdout.split("\n")) - {""}
        if attempt < PATIENCE:
            time.sleep(max(poll, 1))
    raise UserError(f"--executor slurm: squeue fails: {queue.stderr.strip()}; jobs that were sent run on, the same command goes on with them")


def completed(logs: Path) -> set[int]:
    return {int(path.name) for path in (logs / "completions").glob("*") if path.name.isdigit()}


def is_step(command: list[str]) -> bool:
    return bool(command) and command[0] in [f"data_prep.{name}" for name in STEPS]


def run_command(given: argparse.Namespace, command: list[str], place: Path) -> int:
    """Spread over tasks, then once more here."""
    if not is_step(command):
        raise UsageError(f"after -- comes a step of data_prep ({', '.join(STEPS)}) and its arguments, such as: -- data_prep.clean IN --out OUT")
    run_on(given, command, place)
    return importlib.import_module(command[0]).main([*command[1:], "--workers", str(given.here)]) or 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=EXECUTORS, required=True)
    parser.add_argument("--tasks", type=int, default=8, help="shares that a step's shards are dealt to (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="tasks at a time (default: as many as the executor has room for)")
    parser.add_argument("--memory", type=float, default=2, help="GiB a task (slurm, ray; default: %(default)s)")
    parser.add_argument("--partition", default="", help="slurm: where to")
    parser.add_argument("--time", default="04:00:00", help="slurm: limit of a task (default: %(default)s)")
    parser.add_argument("--qos", default="", help="slurm: quality of service")
    parser.add_argument("--here", type=int, default=1, help="processes of this machine for what needs all shards (default: %(default)s)")
    parser.add_argument("--poll", type=float, default=5, help="slurm: seconds between looks at the queue (default: %(default)s)")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.pipeline.cluster", fromfile_prefix_chars="@",
                                     description="Corpus steps on datatrove's executors: local, Slurm, Ray (these two over the network, "
                                                 "to the cluster alone). @FILE: options from a file, one a line.")
    commands = parser.add_subparsers(dest="what", required=True)
    corpus = commands.add_parser("corpus", help="a whole corpus, as data_prep.corpus makes it")
    corpus.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    corpus.add_argument("--out", type=Path, required=True, help="folder for everything; all nodes must see it")
    single = commands.add_parser("run", help="one step: run --executor slurm --tasks 100 -- data_prep.clean IN --out OUT ...")
    single.add_argument("--logs", type=Path, help="folder for datatrove's logs (default: OUT/cluster)")
    add_arguments(corpus)
    add_arguments(single)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = parser.parse_args(arguments[:cut]), arguments[cut + 1:]
    if given.tasks < 1:
        raise UsageError(f"--tasks={given.tasks}: at least 1")
    if given.memory <= 0 or given.here < 1 or given.workers < 0:
        raise UsageError(f"--memory={given.memory:g} --here={given.here} --workers={given.workers}: above 0, at least 1, at least 0")
    if given.executor == "slurm" and not given.partition:
        raise UsageError("--executor slurm: --partition is needed (sinfo lists them)")
    if given.what == "run":
        logs = given.logs or (Path(command[command.index("--out") + 1]) / "cluster" if "--out" in command[:-1] else Path("cluster"))
        return run_command(given, command, logs.absolute())
    recipe = read_recipe(given.recipe)
    plan = steps(recipe, str(given.out), 1)
    # The options are in a file, so that a corpus half done goes on with other --tasks, --time or --memory.
    options = given.out / "cluster" / "options"
    with atomic_write(options) as file:
        file.writelines(f"--{name}={getattr(given, name)}\n" for name in OPTIONS)
    for step in plan:
        spread = ["data_prep.pipeline.cluster", "run", f"@{options}", "--logs", str(given.out / "cluster" / step.name), "--"]
        step.commands = [[*spread, *command] if is_step(command) else command for command in step.commands]
    begun = time.time()
    run_plan(plan, given.out)
    finish(recipe, given.out, begun)
    return 0


if __name__ == "__main__":
    main_guard(main)
