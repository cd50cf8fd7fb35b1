"""Faults of training runs: the fast form of the fault bench (benchmarks/faults/faults_runs.py), and what it does not reach."""
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_world import finetune, make_world, pretrain

from mmed.checkpoints import training_state
from mmed.config import TrainConfig, parse_command_line
from mmed.reporting.read_results import read_run
from mmed.tokenizer import load_tokenizer
from mmed.training import run_folder
from mmed.training.inspect_batch import batch_names, load_run, main
from mmed.training.logging import FEWEST, Late, Log
from mmed.utils.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def bench(only: str, out: Path) -> dict[str, list[dict]]:
    """Rows by id; a failing trial has been explained on stderr."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/faults/faults.py"), "--area", "runs", "--only", only, "--out", str(out)], env=ENV,
                          cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    rows: dict[str, list[dict]] = {}
    for row in json.loads(out.read_text())["rows"]:
        rows.setdefault(row["id"], []).append(row)
    return rows


@pytest.mark.slow
def test_killed_stopped_or_damaged_a_run_ends_with_the_same_bits(tmp_path):
    """R1 kill -9, R2 of one rank, R3 at each step of a save, R11 damaged checkpoints, R12 while old ones go; `make faults` has the rest, which
    takes minutes. Each trial starts in a forked process: see benchmarks/faults/faults_runs.py."""
    rows = bench("R1,R2,R3,R11,R12", tmp_path / "rows.json")
    assert set(rows) == {"R1", "R2", "R3", "R11", "R12"} and rows["R1"][0]["trials"] >= 10 and rows["R11"][0]["trials"] >= 80


# ------------------------------------------------------------------------------------------------------------- in this process

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        training_state.write_state(tmp_path, {"model.w": torch.full((9, 5), float(step))}, step, {"optimizer_step": step})
    return tmp_path


def test_a_state_that_is_not_finite_is_never_saved(saved):
    with pytest.raises(UserError, match=r"step-3: not written, model\.v holds values that are not finite"):
        training_state.write_state(saved, {"model.w": torch.zeros(3), "model.v": torch.tensor([1.0, math.inf])}, 3, {"optimizer_step": 3})
    assert training_state.latest_state(saved).name == "step-2" and not list(saved.rglob("*.tmp"))


def test_checkpoints_of_a_given_up_future_go_when_the_run_has_gone_on(saved):
    training_state.write_state(saved, {"model.w": torch.zeros(3)}, 7, {"optimizer_step": 7}, keep_last=3)
    training_state.write_state(saved, {"model.w": torch.zeros(3)}, 3, {"optimizer_step": 3}, keep_last=3)
    assert [path.name for path in training_state.checkpoints(saved)] == ["step-3", "step-2", "step-1"]
    assert training_state.latest_state(saved, "step-1").name == "step-1"
    with pytest.raises(UserError, match="'step-7' is not a checkpoint there; --resume=step-3"):
        training_state.latest_state(saved, "step-7")


def test_a_file_that_another_node_wrote_is_waited_for_and_named(tmp_path):
    with pytest.raises(UserError, match=r"shard-1: not to be seen after 0\.1 s"):
        training_state.wait_for_files(tmp_path, ["shard-1"], 0.1)


def test_a_lock_names_its_holder_clears_what_was_left_and_removes_a_folder_that_never_became_a_run(tmp_path):
    out = tmp_path / "run"
    first = run_folder.FolderLock(out)
    with pytest.raises(UserError, match=f"process {os.getpid()} on "):
        run_folder.FolderLock(out)
    first.release()
    assert not out.exists()
    (out / "checkpoints" / "step-3.tmp").mkdir(parents=True)
    (out / "run.json.12.tmp").touch()
    lock = run_folder.FolderLock(out)
    assert not list(out.rglob("*.tmp")) and lock.there()
    out.rename(tmp_path / "away")
    assert not lock.there()
    lock.release()
    assert (tmp_path / "away").is_dir()


def facts(**changes) -> dict:
    settings = {key: changes.pop(key) for key in list(changes) if key in {f.name for f in dataclasses.fields(TrainConfig)} - {"data", "model", "tokenizer"}}
    config = dataclasses.asdict(TrainConfig(model="m", data="a,b", **settings))
    return {"config": config, "steps": 9, "tokenizer": "t" * 64, "data": {"0 a": "x" * 64, "1 b": "y" * 64}, "model": {"model.safetensors": "z" * 64},
            "world_size": 1, "versions": {"torch": "2"}, "device": "cpu"} | changes


@pytest.mark.parametrize("change, words", [
    ({"seed": 7}, ["--seed=42", "now it is 7", "--allow_changed=seed"]),
    ({"tokenizer": "u" * 64}, ["--tokenizer=fingerprint ttt", "uuu"]),
    ({"data": {"0 a": "x" * 64, "1 b": "w" * 64}}, ["--data=1 b yyy", "1 b www"]),
    ({"data": {"0 a": "x" * 64}}, ["--data=1 b", "now it is no 1 b"]),
    ({"model": {"model.safetensors": "q" * 64}}, ["--model=model.safetensors zzz", "qqq"]),
    ({"steps": 10}, ["--steps=9", "now it is 10"])])
def test_what_changed_is_named_with_both_values_and_can_be_allowed_by_name(change, words):
    with pytest.raises(UserError) as caught:
        run_folder.check_resume(facts(), facts(**change))
    assert all(word in str(caught.value) for word in words), caught.value
    name = str(caught.value).split("--allow_changed=")[1]
    assert list(run_folder.check_resume(facts(), facts(**change, allow_changed=name))) == [name]


def test_what_changes_no_mathematics_may_change_and_what_changes_bits_is_said():
    assert not run_folder.check_resume(facts(), facts(log_every=7, save_every=3))
    assert run_folder.not_identical(facts(), facts()) == ""
    assert "ranks 1 -> 8" in run_folder.not_identical(facts(), facts(world_size=8))


class Bar:
    def set_postfix_str(self, text: str) -> None:
        self.text = text


def test_a_spike_is_logged_with_its_batch_also_right_after_a_resume(tmp_path):
    def log_of(state: dict) -> Log:
        return Log(tmp_path / "metrics.jsonl", Bar(), TrainConfig(log_every=1000), torch.device("cpu"), 10 ** 6, 0, state, 1.0, None, 1,
                   lambda step: [f"batch of {step}"])

    def step(log: Log, number: int, loss: float) -> None:
        log.write(log.read(number, 1e-3, 8, Late(torch.tensor([4.0, 4 * loss, 1.0], dtype=torch.float64))))

    log = log_of({})
    for number in range(1, FEWEST + 1):
        step(log, number, 2 + 0.01 * (number % 3))
    again = log_of(json.loads(json.dumps(log.carried())))
    step(again, FEWEST + 1, 2.02)
    step(again, FEWEST + 2, 3.0)
    spikes = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [(line["step"], line["batch"]) for line in spikes] == [(FEWEST + 2, [f"batch of {FEWEST + 2}"])] and spikes[0]["spike"] > 8


def test_a_batch_that_is_not_finite_is_left_out_or_ends_the_run_and_its_line_can_be_drawn(tmp_path):
    config = TrainConfig(log_every=1000, skip_nonfinite=1, global_batch_size=8, out="RUN")
    log = Log(tmp_path / "metrics.jsonl", Bar(), config, torch.device("cpu"), 99, 0, {}, 1.0, None, 1, lambda step: [f"en:{step}"])
    bad = Late(torch.tensor([4.0, math.nan, 1.0], dtype=torch.float64))
    log.write(log.read(7, 1e-3, 8, bad))
    with pytest.raises(UserError, match=r"step 9: loss nan, gradient norm 1\.0: not finite.* Rows 64 to 71: en:9 \(python -m mmed\.training\.inspect_batch show RUN 9"):
        log.read(9, 1e-3, 8, bad)
    written = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [(line["step"], line["loss"], line["nonfinite"], line["batch"], line["tokens"]) for line in written] == \
        [(7, None, True, ["en:7"], 0), (9, None, True, ["en:9"], 0)] and log.carried()["skipped"] == 2
    (tmp_path / "run.json").write_text(json.dumps({"config": vars(config)}))
    assert "2 losses that are not finite" in " ".join(read_run(str(tmp_path)).notes)


def test_the_batch_of_a_step_is_shown_as_text(world, tmp_path, capsys, monkeypatch):
    def show(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["data", "show", *map(str, arguments)])
        assert main() == 0
        return capsys.readouterr().out

    for name, arguments in (("pre", pretrain(world, tmp_path / "pre")), ("fine", finetune(world, tmp_path / "fine"))):
        (tmp_path / name).mkdir()
        config = parse_command_line(arguments)[1]
        (tmp_path / name / "run.json").write_text(json.dumps({"config": vars(config)}))
    config, rows, tokenizer = load_run(tmp_path / "pre")
    numbers = list(rows.batch(2, 8))
    text = show(tmp_path / "pre", 3, "--rows", "1-2")
    assert f"row 1 (row {numbers[1]} of the run)" in text and "row 3" not in text
    row = rows.row(numbers[1])
    first = [int(i) for i, d in zip(row.input_ids, row.documents) if d == 0]
    shown = "".join(line[6:] for line in text.splitlines() if line.startswith(("    |", "    .")))
    assert tokenizer.decode(first)[:20].replace(" ", "") in shown.replace(" ", "")
    assert len(batch_names(rows, config, 3)) == 8
    text = show(tmp_path / "fine", 1, "--rows", "0")
    config, rows, _ = load_run(tmp_path / "fine")
    example = rows.batch(0, 8)[0]
    assert example.key in text
    target = load_tokenizer(world / "model").decode(example.ids[example.prompt_length:-1]).strip()
    trained = "\n".join(line[6:] for line in text.splitlines() if line.startswith("    |"))
    assert target.splitlines()[-1] in trained and "### Instruction" not in trained and "### Instruction" in text
    with pytest.raises(UsageError, match="rows 0 to 7"):
        show(tmp_path / "pre", 3, "--rows", "9")
    with pytest.raises(UserError, match=r"run\.json"):
        show(tmp_path / "none", 3)
