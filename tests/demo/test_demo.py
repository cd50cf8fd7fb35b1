"""The plans of the demo and the ablations: their steps come in order and their commands are understood."""

import pytest
from repository import ROOT

from examples.demo import __main__ as demo
from examples.demo import ablations, demo_steps
from mmed.config import parse_command_line
from mmed.evaluation.options import parse_options as eval_options


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


def test_list_prints_every_command(capsys):
    assert demo.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("python -m mmed.train") == 8 and printed.count("python -m mmed.eval") == 6
