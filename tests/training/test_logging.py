"""metrics.jsonl, and its numbers in TensorBoard and Weights & Biases."""
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from json_lines import read_lines

from mmed.config import TrainConfig, check
from mmed.data import Example, ExamRows
from mmed.reporting.read_results import read_run
from mmed.training.logging import Log
from mmed.training.validation import Loss
from mmed.utils.errors import UsageError, UserError


def make_log(out, first=0, state=None, **settings):
    config = TrainConfig(global_batch_size=2, out=str(out), **settings)
    rows = ExamRows.__new__(ExamRows)
    rows.seed, rows.examples = 0, [Example(f"en:{n}", [], 0) for n in range(40)]
    return Log(config, torch.device("cpu"), first, 99, state or {}, 1.0, None, rows)


def add(log, step, loss):
    log.add(step, 1e-3, torch.tensor([4.0, 6.0, 4 * loss, 1.0], dtype=torch.float64))


def two_steps(log):
    """The lines of two steps, the second with a validation loss."""
    add(log, 1, 3.0)
    add(log, 2, 2.0)
    log.validated(log.take(), {"en": Loss(1, 9, 1.5, 0.5)})
    return read_lines(log.path)


def test_a_non_finite_batch_is_skipped_or_ends_the_run_and_is_named(tmp_path):
    log = make_log(tmp_path, log_every=1000, skip_nonfinite=1)
    first, second = (log.rows.names(log.rows.batch(number, 2)) for number in (6, 8))
    add(log, 7, math.nan)
    add(log, 9, math.nan)
    with pytest.raises(UserError, match=r"step 9: loss nan, gradient norm 1.0: not finite.* 16 to 17: "
                                        f"{', '.join(second)} "):
        log.flush()
    written = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"], line["nonfinite"], line["batch"]) for line in written] == [
        (7, None, True, first), (9, None, True, second)]
    assert log.state_dict()["skipped"] == 2 and log.tokens == log.targets == 0
    (tmp_path / "run.json").write_text(json.dumps({"config": vars(log.config)}))
    run = read_run(str(tmp_path))
    assert (run.loss, run.not_finite) == ([], 2)


def test_a_loss_that_was_not_finite_before_a_resume_does_not_end_the_run(tmp_path):
    state = {"validation_on": "v", "validation_before": {"en": None}}  # as state.json has NaN
    lines = two_steps(make_log(tmp_path, state=state, validation="v"))
    assert math.isnan(lines[-1]["validation_change"]["en"])


@pytest.mark.parametrize("key, mode, expected", [
    (True, None, "online"), (False, None, "offline"), (True, "offline", "offline")])
def test_wandb_gets_the_numbers_of_metrics_jsonl_and_is_offline_without_a_key(
        tmp_path, monkeypatch, key, mode, expected):
    sent, given = {}, {}
    stub = SimpleNamespace(
        init=lambda **settings: given.update(settings) or SimpleNamespace(
            log=lambda numbers, step: sent.update({step: numbers})),
        login=lambda prompt, verify: key)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    lines = {line["step"]: line for line in two_steps(make_log(tmp_path, log="wandb"))}
    assert given["mode"] == expected and given["dir"] == str(tmp_path)
    assert sent.keys() == lines.keys() == {1, 2}
    assert sent[2]["validation_loss/en"] == lines[2]["validation_loss"]["en"] == 1.5
    for step, numbers in sent.items():
        assert all(numbers[name] == lines[step][name] for name in ("loss", "lr", "tokens", "grad_norm"))
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
