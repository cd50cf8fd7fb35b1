"""The shards of one step as tasks of a cluster: a thin adapter to datatrove's executors (local, Slurm, Ray).

    python -m data_prep.pipeline.cluster --executor slurm --tasks 500 --partition cpu -- \\
        data_prep.filter_medical culturax/ja --language ja --source web --out corpus/ja

Task i of n runs the command with `--shard i/n`. When all tasks are done, run the command itself once: it
finds its shards done and adds up the counts. Scheduling, retries and logs are datatrove's (extra `cluster`;
logs are in --logs), which does not run completed tasks again. Folders must be on a file system that all
machines see. Without datatrove, slurm/corpus_step.sh does the same with `sbatch --array`.
"""
from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from mmed.utils.errors import Parser, UsageError, UserError, main_guard, require_extra


def make_executor(given: argparse.Namespace, command: list[str]) -> Any:
    """A datatrove executor, whose pipeline has one step: the command on its task's share of the shards."""
    base = require_extra("datatrove.pipeline.base", "cluster").PipelineStep
    executors = require_extra("datatrove.executor", "cluster")

    class ShareOfStep(base):
        name, type = command[0], "mmed"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
            main = importlib.import_module(command[0]).main
            if code := main([*command[1:], "--shard", f"{rank}/{world_size}"]):
                raise UserError(f"{command[0]}: exit code {code}")
            yield from ()

    settings = {"pipeline": [ShareOfStep()], "tasks": given.tasks, "workers": given.workers or -1,
                "logging_dir": str(given.logs)}
    if given.executor == "local":
        return executors.LocalPipelineExecutor(**settings | {"workers": given.workers or os.cpu_count() or 1})
    if given.executor == "ray":
        return executors.RayPipelineExecutor(**settings, cpus_per_task=1, mem_per_cpu_gb=given.memory)
    here, path = os.getcwd(), os.environ.get("PYTHONPATH", "")
    environment = (f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
                   f"PYTHONPATH={shlex.quote(f'{here}:{path}')}\ncd {shlex.quote(here)}")
    return executors.SlurmPipelineExecutor(
        **settings, time=given.time, partition=given.partition, qos=given.qos, job_name=command[0],
        mem_per_cpu_gb=given.memory, env_command=environment)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.pipeline.cluster",
                    description="One corpus step on datatrove's executors.",
                    usage="%(prog)s --executor NAME --tasks N [options] -- data_prep.STEP ARGUMENTS")
    add = parser.add_argument
    add("--executor", choices=("local", "slurm", "ray"), required=True)
    add("--tasks", type=int, default=8, help="shares of the step's shards (default: %(default)s)")
    add("--workers", type=int, default=0, help="tasks at a time (default: as many as fit)")
    add("--memory", type=int, default=2, help="GiB a task, for slurm and ray (default: %(default)s)")
    add("--partition", default="", help="Slurm partition")
    add("--time", default="04:00:00", help="Slurm time limit of a task (default: %(default)s)")
    add("--qos", default="", help="Slurm quality of service")
    add("--logs", type=Path, default=Path("logs"), help="folder of datatrove's logs (default: %(default)s)")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = parser.parse_args(arguments[:end]), arguments[end + 1:]
    if not command or not command[0].startswith("data_prep."):
        raise UsageError("after -- comes a step and its arguments, such as: -- data_prep.clean IN "
                         "--language en --out OUT")
    if given.executor == "slurm" and not given.partition:
        raise UsageError("--executor slurm: --partition is needed (sinfo lists them)")
    make_executor(given, command).run()
    return 0


if __name__ == "__main__":
    main_guard(main)
