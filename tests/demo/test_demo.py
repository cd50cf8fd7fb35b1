"""The plans of the demo and the ablations, and their runner on a small plan: order, resume, failure."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo import __main__ as demo
from examples.demo import ablations, demo_steps
from mmed.config import parse_command_line
from mmed.evaluation.options import parse_options as eval_options

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("make_plan", [demo_steps.steps, ablations.steps])
def test_every_step_needs_earlier_steps_and_every_command_is_understood(make_plan):
    done = set()
    for step in make_plan("demo", 0):
        assert step.name not in done and set(step.needs) <= done, step.name
        done.add(step.name)
        for module, *arguments in step.commands:
            if module == "mmed.train":
                _, config = parse_command_line(arguments)
                assert config.resume == "auto" and config.precision == "fp32"
            elif module == "mmed.eval":
                eval_options(arguments)
            else:
                name = "mmed.reporting.report" if module == "mmed.reporting" else module
                files = (name.replace(".", "/") + ".py", "data_prep/pipeline/shards.py")
                source = "".join((ROOT / file).read_text() for file in files)
                unknown = [word for word in arguments if word.startswith("--") and f'"{word}"' not in source]
                assert not unknown, (module, unknown)


def test_train_and_test_rows_differ_in_the_corpus_alone():
    by_name = {step.name: step.commands[0] for step in demo_steps.steps("demo", 0)}
    for method in ("full", "lora"):
        one, other = by_name[f"{method}_base"], by_name[f"{method}_corpus"]
        assert [a for a, b in zip(one, other, strict=True)
                if a != b] == [f"--out=demo/runs/{method}_base", "--model=demo/runs/base/model"]


PLAN = '''
import sys
from pathlib import Path
from examples.demo.demo_steps import run_demo
from data_prep.pipeline.plan import Step
from mmed.utils.errors import main_guard
out = Path(sys.argv[1])
def steps(seed):
    world = ["examples.demo.micro_world", "--out", str(out / "world"), "--seed", str(seed)]
    bad = ["data_prep.filter_medical", str(out / sys.argv[2]), "--language", "en", "--out", str(out / "f")]
    return [Step("world", "a world", [world]), Step("filter", "a filter", [bad], ("world",))]
main_guard(lambda: int(run_demo(out, steps(int(sys.argv[3]))) < 0))
'''


def run(*arguments):
    return subprocess.run([sys.executable, "-c", PLAN, *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT)


def test_a_failed_step_is_named_with_its_log_and_the_next_start_goes_on_from_there(tmp_path):
    first = run(tmp_path, "nowhere.jsonl", 0)
    assert first.returncode == 1
    assert "error: step filter failed" in first.stderr and "logs/filter.log" in first.stderr
    assert "Traceback" not in first.stderr and (tmp_path / "done" / "world.json").is_file()
    second = run(tmp_path, "world/raw/web/en.jsonl", 0)
    assert second.returncode == 0 and "1 done already" in second.stderr, second.stderr
    assert json.loads((tmp_path / "f" / "funnel.json").read_text())["shards"] == 1
    other = run(tmp_path, "world/raw/web/en.jsonl", 1)
    assert other.returncode == 1 and "0 then, 1 now" in other.stderr


def test_list_prints_every_command(capsys):
    assert demo.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("python -m mmed.train") == 8 and printed.count("python -m mmed.eval") == 6
