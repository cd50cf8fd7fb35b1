"""The paper in miniature: `make demo` goes from raw pages to the benchmark table, on a laptop, in minutes.

    python -m examples.demo [--seed 0] [--out demo]

The world is synthetic and fictional (examples/demo/micro_world.py). Every step below is a command that a
reader can repeat separately; examples/demo/demo_steps.py lists them in order. Independent steps run two at a
time:

    world -> filter -> deduplicate -> tokenizer -> token streams -> exercises, base model -> corpus -> LoRA
    and full fine-tuning -> exams -> report

Finished steps are skipped (OUT/done/STEP.json holds their commands); a killed step resumes where it was,
because each command is resumable. Each step's output is in OUT/logs/STEP.log.
"""
from __future__ import annotations

from pathlib import Path

from examples.demo.demo_steps import command, steps
from mmed.utils.errors import main_guard


def report(out: Path) -> str:
    """The last step's output: the tables and the path of the report."""
    log = (out / "logs" / "report.log").read_text(encoding="utf-8")
    return log.rpartition("$ python")[2].partition("\n")[2].strip()


def main(arguments: list[str] | None = None) -> int:
    return command("examples.demo", "The paper in miniature: from raw pages to the benchmark table.", steps,
                   report, arguments)


if __name__ == "__main__":
    main_guard(main)
