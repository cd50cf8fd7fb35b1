"""The shards of one step as tasks of a Ray cluster.

    python -m data_prep.pipeline.cluster --tasks 500 -- \\
        data_prep.filter_medical culturax/ja --language ja --source web --out corpus/ja

Task i of n runs the command with `--shard i/n` on one core; Ray repeats tasks whose machine is lost. At last
the command itself runs once and adds up the counts. Without a running cluster (RAY_ADDRESS) Ray uses the
cores of this machine. All machines must see the folders. slurm/corpus_step.sh does the same on Slurm.
"""
from __future__ import annotations

import importlib
import sys

from mmed.utils.errors import Parser, UsageError, main_guard, require_extra


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m data_prep.pipeline.cluster",
                    description="Run one corpus step on a Ray cluster (uses the cluster's network).",
                    usage="%(prog)s --tasks N -- data_prep.STEP ARGUMENTS")
    parser.add_argument("--tasks", type=int, default=8, help="number of Ray tasks (default: %(default)s)")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, command = parser.parse_args(arguments[:end]), arguments[end + 1:]
    if not command or not command[0].startswith("data_prep."):
        raise UsageError("after -- comes a step and its arguments, such as: -- data_prep.clean IN "
                         "--language en --out OUT")

    def run(*share: str) -> None:
        importlib.import_module(command[0]).main([*command[1:], *share])

    ray = require_extra("ray", "cluster")
    ray.init()
    task = ray.remote(num_cpus=1)(run)
    ray.get([task.remote("--shard", f"{number}/{given.tasks}") for number in range(given.tasks)])
    run()


if __name__ == "__main__":
    main_guard(main)
