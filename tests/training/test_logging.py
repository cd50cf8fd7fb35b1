"""metrics.jsonl, and its numbers in TensorBoard and Weights & Biases."""

import json
import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from json_lines import read_lines

from mmed.config import TrainConfig, check
from mmed.reporting.read_results import read_run
from mmed.training.logging import Log, Values
from mmed.training.validation import Loss
from mmed.utils.errors import UsageError, UserError


def make_log(out, first=0, **settings) -> Log:
    config = TrainConfig(global_batch_size=8, out=str(out), **settings)
    return Log(config, torch.device("cpu"), first, 99, {}, 1.0, None, lambda step: [f"en:{step}"])


def add(log: Log, step: int, loss: float) -> None:
    log.add(step, 1e-3, 8, Values(torch.tensor([4.0, 4 * loss, 1.0], dtype=torch.float64)))


def test_a_non_finite_batch_is_skipped_or_ends_the_run_and_is_named(tmp_path):
    log = make_log(tmp_path, log_every=1000, skip_nonfinite=1)
    add(log, 7, math.nan)
    add(log, 9, math.nan)
    with pytest.raises(UserError, match=r"step 9: loss nan, gradient norm 1.0: not finite.* 64 to 71: en:9 "):
        log.flush()
    written = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"], line["nonfinite"], line["batch"]) for line in written] == [
        (7, None, True, ["en:7"]), (9, None, True, ["en:9"])]
    assert log.state_dict()["skipped"] == 2 and log.tokens == 0
    (tmp_path / "run.json").write_text(json.dumps({"config": vars(log.config)}))
    run = read_run(str(tmp_path))
    assert (run.loss, run.not_finite) == ([], 2)


def test_a_loss_that_was_not_finite_before_a_resume_does_not_end_the_run(tmp_path):
    state = {"validation_on": "v", "validation_before": {"en": None}}  # as state.json has NaN
    config = TrainConfig(out=str(tmp_path), validation="v")
    log = Log(config, torch.device("cpu"), 0, 99, state, 1.0, None, lambda step: [])
    two_steps(log)
    assert math.isnan(read_lines(tmp_path / "metrics.jsonl")[-1]["validation_change"]["en"])


def two_steps(log: Log) -> None:
    add(log, 1, 3.0)
    add(log, 2, 2.0)
    log.validated(log.take(), {"en": Loss(1, 9, 1.5, 0.5)})


@pytest.mark.parametrize("key, mode, expected", [
    (True, None, "online"), (False, None, "offline"), (True, "offline", "offline")])
def test_wandb_gets_the_numbers_of_metrics_jsonl_and_is_offline_without_a_key(
        tmp_path, monkeypatch, key, mode, expected):
    sent, settings = {}, {}

    def init(**given):
        settings.update(given)
        return SimpleNamespace(log=lambda numbers, step: sent.update({step: numbers}))

    stub = SimpleNamespace(init=init, login=lambda prompt, verify: key)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr(os, "environ", {name: os.environ[name] for name in os.environ.keys() - {"WANDB_MODE"}}
                        | ({"WANDB_MODE": mode} if mode else {}))
    two_steps(make_log(tmp_path, log="wandb"))
    assert settings["mode"] == expected and settings["dir"] == str(tmp_path)
    lines = {line["step"]: line for line in map(json.loads, open(tmp_path / "metrics.jsonl"))}
    assert sent.keys() == lines.keys() == {1, 2}
    assert sent[2]["validation_loss/en"] == lines[2]["validation_loss"]["en"] == 1.5
    for step, numbers in sent.items():
        assert {name: numbers.get(name) for name in ("loss", "lr", "tokens", "grad_norm")} == {
            name: lines[step][name] for name in ("loss", "lr", "tokens", "grad_norm")}
    assert "mfu" not in sent[1] and "step" not in sent[1]


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    two_steps(make_log(tmp_path, log="tensorboard"))
    resumed = make_log(tmp_path, first=1, log="tensorboard")
    add(resumed, 2, 1.0)
    resumed.flush()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 3.0), (2, 1.0)]


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_package_names_its_extra_before_the_run_begins(monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(UsageError, match=rf"mmed\[{extra}\]"):
        check(TrainConfig(model="m", data="d", log=extra))
