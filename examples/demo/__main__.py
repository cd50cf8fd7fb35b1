"""The paper in miniature: `make demo` goes from raw pages to the benchmark table, on a laptop, in minutes.

    python -m examples.demo [--seed 0] [--out demo]

The world is synthetic and fictional (examples/demo/micro_world.py). Every step below is a command that a
reader can repeat by itself; examples/demo/demo_steps.py says which, in which order; two run at a time where
they do not wait for each other:

    world -> filter -> deduplicate -> tokenizer -> token streams -> exercises, base model -> corpus -> LoRA
    and full fine-tuning -> exams -> report

A step that is done is not done again (OUT/done/STEP.json holds its commands); one that was killed goes on
where it was, because each command is resumable. Each step's output is in OUT/logs/STEP.log.
"""
from __future__ import annotations

from pathlib import Path

from examples.demo.demo_steps import command, steps
from mmed.utils.errors import main_guard


def report(out: Path) -> str:
    """What the last step printed: the tables, and where the report is."""
    log = (out / "logs" / "report.log").read_text(encoding="utf-8")
    return log.rpartition("$ python")[2].partition("\n")[2].strip()


def main(arguments: list[str] | None = None) -> int:
    return command("examples.demo", "The paper in miniature: from raw pages to the benchmark table.", steps,
                   report, arguments)


if __name__ == "__main__":
    main_guard(main)
