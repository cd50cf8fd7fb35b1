"""The steps of a corpus on many machines: the same commands, their shards spread over the tasks of a datatrove executor.

    python -m data_prep.cluster corpus RECIPE.toml --out mmedc --executor slurm --tasks 500 --partition cpu --time 04:00:00
    python -m data_prep.cluster run --executor ray --tasks 64 -- data_prep.filter_medical culturax/ja --language ja --out corpus/ja

A task runs the command on its share of the shards (shards r, r + tasks, ... of task r) up to the end of the command's first phase, which
is where the time goes: judging, cleaning, reading books, signatures, token ids. When all tasks are done the command is run once more
here; it finds the shards done and does what needs all of them (the funnel, which documents are duplicates, joining streams). So a
cluster writes the bytes that one machine writes, and a stopped job is started again with the same command: finished tasks and shards
are passed over. Folders must lie on a file system that all nodes see.

executor: local (processes of this machine), slurm (an array of jobs; waits for them), ray (the cluster that RAY_ADDRESS names, else one of
this machine). Scheduling, retries and logs are datatrove's (extra `cluster`); its logs are in OUT/cluster/STEP.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.corpus import finish, read_recipe, steps
from data_prep.plan import run_plan
from mmed.errors import EXIT_STOPPED, UsageError, UserError, main_guard, require_extra

EXECUTORS = ("local", "slurm", "ray")
STEPS = ("filter_medical", "pdf_text", "web_pages", "clean", "dedup", "decontaminate", "tokenize_corpus")


def run_share(command: list[str], rank: int, world_size: int) -> None:
    """One task: the first phase of `command` on the shards rank, rank + world_size, ..."""
    from data_prep.steps import ShareDone, only_share

    with only_share(rank, world_size):
        with contextlib.suppress(ShareDone):
            importlib.import_module(command[0]).main(command[1:])


def make_pipeline(command: list[str]) -> list[Any]:
    """The command as a datatrove pipeline of one step."""
    from datatrove.pipeline.base import PipelineStep

    class Share(PipelineStep):
        name = command[0]
        type = "mmed"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
            from data_prep.cluster import run_share

            run_share(command, rank, world_size)
            return
            yield  # datatrove asks for a generator

    return [Share()]


def run_on(given: argparse.Namespace, command: list[str], logs: Path) -> None:
    """Run the command's shards on the executor and wait; raises UserError when a task failed."""
    require_extra("datatrove", "cluster")
    # the tasks of one wish must not count as done for another
    logs = logs / hashlib.sha256(repr((command, given.tasks)).encode()).hexdigest()[:12]
    pipeline = make_pipeline(command)
    if given.executor == "local":
        from datatrove.executor import LocalPipelineExecutor

        try:
            LocalPipelineExecutor(pipeline, given.tasks, given.workers or min(given.tasks, os.cpu_count() or 1), str(logs)).run()
        except Exception as error:
            raise UserError(f"{command[0]}: a task failed: {error}; its log is in {logs}/logs") from error
    elif given.executor == "ray":
        ray = require_extra("ray", "cluster")
        from datatrove.executor import RayPipelineExecutor

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to the outside
        where = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        ray.init(os.environ.get("RAY_ADDRESS") or "local", include_dashboard=None if os.environ.get("RAY_ADDRESS") else False, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": where}})
        RayPipelineExecutor(pipeline, given.tasks, given.workers or -1, logging_dir=str(logs), cpus_per_task=1, mem_per_cpu_gb=given.memory).run()
        ray.shutdown()
    else:
        from datatrove.executor import SlurmPipelineExecutor

        executor = SlurmPipelineExecutor(
            pipeline, given.tasks, given.time, given.partition, mem_per_cpu_gb=given.memory, workers=given.workers or -1, logging_dir=str(logs),
            job_name=command[0], qos=given.qos, with_srun=False, requeue_signals=None,
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={os.getcwd()}:${{PYTHONPATH:-}}\ncd {os.getcwd()}")
        try:
            executor.run()
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise UserError(f"--executor slurm: sbatch did not take the job: {getattr(error, 'stderr', None) or error}") from error
        wait_for_slurm(executor, logs, given.poll)
    missing = set(range(given.tasks)) - completed(logs)
    if missing:
        raise UserError(f"{command[0]}: {len(missing)} of {given.tasks} tasks failed (first {min(missing)}); their logs are in {logs}; "
                        "the same command starts them again")


def completed(logs: Path) -> set[int]:
    return {int(path.name) for path in (logs / "completions").glob("*") if path.name.isdigit()}


def wait_for_slurm(executor: Any, logs: Path, poll: float) -> None:
    """Until all tasks are completed or the job has left the queue; stopped by a signal it leaves the job running."""
    while len(completed(logs)) < executor.tasks:
        queue = subprocess.run(["squeue", "-h", "-j", str(executor.job_id)], capture_output=True, text=True)
        if not queue.stdout.strip():
            time.sleep(poll)  # the last marks may come late over a shared file system
            return
        print(f"\r{len(completed(logs))} of {executor.tasks} tasks", end="", file=sys.stderr, flush=True)
        time.sleep(poll)


def run_command(given: argparse.Namespace, command: list[str], logs: Path) -> int:
    """Spread over tasks, then once more here."""
    if not command or command[0].rpartition(".")[2] not in STEPS or command[0].rpartition(".")[0] != "data_prep":
        raise UsageError(f"after -- comes a step of data_prep ({', '.join(STEPS)}) and its arguments, such as: -- data_prep.clean IN --out OUT")
    run_on(given, command, logs)
    return importlib.import_module(command[0]).main(command[1:]) or 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", choices=EXECUTORS, required=True)
    parser.add_argument("--tasks", type=int, default=8, help="shares that a step's shards are dealt to (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="tasks at a time (default: as many as the executor has room for)")
    parser.add_argument("--memory", type=float, default=2, help="GiB a task (slurm, ray; default: %(default)s)")
    parser.add_argument("--partition", default="", help="slurm: where to")
    parser.add_argument("--time", default="04:00:00", help="slurm: limit of a task (default: %(default)s)")
    parser.add_argument("--qos", default="", help="slurm: quality of service")
    parser.add_argument("--poll", type=float, default=5, help="slurm: seconds between looks at the queue (default: %(default)s)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.cluster", description="Corpus steps on datatrove's executors: local, Slurm, Ray.")
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
    if given.executor == "slurm" and not given.partition:
        raise UsageError("--executor slurm: --partition is needed (sinfo lists them)")
    if given.what == "run":
        logs = given.logs or (Path(command[command.index("--out") + 1]) / "cluster" if "--out" in command[:-1] else Path("cluster"))
        return run_command(given, command, logs.absolute())
    recipe = read_recipe(given.recipe)
    flags = [word for name in ("executor", "tasks", "workers", "memory", "partition", "time", "qos", "poll")
             for word in (f"--{name}", str(getattr(given, name)))]
    plan = steps(recipe, str(given.out), 1)
    for step in plan:
        step.commands = [["data_prep.cluster", "run", *flags, "--logs", str(given.out / "cluster" / step.name), "--", *command] for command in step.commands]
    begun = time.time()
    try:
        run_plan(plan, given.out)
    except KeyboardInterrupt:
        print("\nstopped; start again with the same command to go on", file=sys.stderr)
        return EXIT_STOPPED
    finish(recipe, given.out, begun)
    return 0


if __name__ == "__main__":
    main_guard(main)
