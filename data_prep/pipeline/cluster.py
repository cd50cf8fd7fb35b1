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

EXECUTORS = ("local", "slurm", "ray")


def run_share(command: list[str], rank: int, world_size: int) -> None:
    """One task: the command on its share of the shards."""
    code = importlib.import_module(command[0]).main([*command[1:], "--shard", f"{rank}/{world_size}"])
    if code:
        raise UserError(f"{command[0]}: exit code {code}")


def make_pipeline(command: list[str]) -> list[Any]:
    """The command as a datatrove pipeline of one step."""
    base = require_extra("datatrove.pipeline.base", "cluster").PipelineStep

    class ShareOfStep(base):
        name = command[0]
        type = "mmed"

        def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
            run_share(command, rank, world_size)
            yield from ()

    return [ShareOfStep()]


def make_executor(given: argparse.Namespace, command: list[str]) -> Any:
    executors = require_extra("datatrove.executor", "cluster")
    settings = {"pipeline": make_pipeline(command), "tasks": given.tasks, "workers": given.workers or -1,
                "logging_dir": str(given.logs)}
    if given.executor == "local":
        return executors.LocalPipelineExecutor(**settings | {"workers": given.workers or os.cpu_count() or 1})
    if given.executor == "ray":
        return executors.RayPipelineExecutor(**settings, cpus_per_task=1, mem_per_cpu_gb=given.memory)
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = (f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
                   f"PYTHONPATH={shlex.quote(path)}\n"
                   f"cd {shlex.quote(os.getcwd())}")
    return executors.SlurmPipelineExecutor(**settings, time=given.time, partition=given.partition,
                                           qos=given.qos,
                                           job_name=command[0], mem_per_cpu_gb=given.memory,
                                           env_command=environment)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.pipeline.cluster",
                    description="One corpus step on datatrove's executors.",
                    usage="%(prog)s --executor NAME --tasks N [options] -- data_prep.STEP ARGUMENTS")
    parser.add_argument("--executor", choices=EXECUTORS, required=True)
    parser.add_argument("--tasks", type=int, default=8, help="shares of the step's shards (default: "
                                                             "%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="tasks at a time (default: as many as fit)")
    parser.add_argument("--memory", type=int, default=2, help="GiB a task, for slurm and ray (default: "
                                                              "%(default)s)")
    parser.add_argument("--partition", default="", help="Slurm partition")
    parser.add_argument("--time", default="04:00:00",
                        help="Slurm time limit of a task (default: %(default)s)")
    parser.add_argument("--qos", default="", help="Slurm quality of service")
    parser.add_argument("--logs", type=Path, default=Path("logs"),
                        help="folder of datatrove's logs (default: logs)")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = parser.parse_args(arguments[:end]), arguments[end + 1:]
    if not command or not command[0].startswith("data_prep."):
        raise UsageError("after -- comes a step and its arguments, such as: -- data_prep.clean IN "
                         "--language en --out OUT")
    if given.tasks < 1:
        raise UsageError(f"--tasks={given.tasks}: must be at least 1")
    if given.executor == "slurm" and not given.partition:
        raise UsageError("--executor slurm: --partition is needed (sinfo lists them)")
    make_executor(given, command).run()
    return 0


if __name__ == "__main__":
    main_guard(main)
