"""Faults of training runs; benchmarks/faults/kill_bench.py has the long form."""
import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from repository import ENV, ROOT
from tiny_world import finetune, pretrain

from mmed.checkpoints import training_state
from mmed.config import TrainConfig, parse_command_line
from mmed.training import run_folder
from mmed.training.inspect_batch import load_run, main
from mmed.utils.errors import UsageError, UserError


@pytest.mark.slow
def test_killed_or_stopped_runs_end_with_the_same_bits(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/faults/kill_bench.py"), "--only", "kill,save,signal",
               "--trials", "5", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["trials"] for row in rows][:2] == [5, 5] and len(rows) == 4


# ------------------------------------------------------------------------------------------------ checkpoints

def write(run, step, keep_last=2, **tensors):
    state = {f"model.{name}": tensor for name, tensor in ({"w": torch.full((9, 5), 1.0)} | tensors).items()}
    facts = {"optimizer_step": step, "validation_after": {"en": math.nan}}  # the weights may be finite
    dcp.save(state, storage_writer=training_state.Writer(run, state, step, facts, keep_last))


def test_no_state_that_is_not_finite_is_saved_and_a_given_up_future_goes(tmp_path):
    for step in (1, 2, 7):
        write(tmp_path, step, keep_last=3)
    with pytest.raises(UserError, match=r"step-9: not written, model\.v holds values that are not finite"):
        write(tmp_path, 9, v=torch.tensor([1.0, math.inf]))
    assert training_state.latest_state(tmp_path).name == "step-7" and not list(tmp_path.rglob("*.tmp"))
    write(tmp_path, 3, keep_last=3)
    assert [path.name for path in training_state.checkpoints(tmp_path)] == ["step-3", "step-2", "step-1"]
    assert training_state.latest_state(tmp_path, "step-1").name == "step-1"
    with pytest.raises(UserError, match="no checkpoint 'step-7' there; --resume=step-3"):
        training_state.latest_state(tmp_path, "step-7")
    assert training_state.damage(tmp_path / "checkpoints" / "step-3")[1] == ""
    (tmp_path / "checkpoints" / "step-3" / "state.json").unlink()
    with pytest.raises(UserError, match="--resume=step-2 continues from a complete one"):
        training_state.latest_state(tmp_path, "step-7")


def test_a_file_that_another_node_wrote_is_waited_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "WAIT_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"shard-1: still missing after 0\.1 s"):
        training_state.wait_for_files(tmp_path, ["shard-1"])


# ------------------------------------------------------------------------------------------------- run folder

def test_a_lock_names_its_holder_and_clears_what_was_left(tmp_path):
    out = tmp_path / "run"
    with run_folder.FolderLock(out), pytest.raises(UserError, match=f"process {os.getpid()} on "):
        run_folder.FolderLock(out)
    assert not out.exists()  # no run ever began there
    (out / "checkpoints" / "step-3.tmp").mkdir(parents=True)
    for name in ("run.json.12.tmp", "notes.tmp", "stopped"):  # the latter would requeue a job that fails now
        (out / name).touch()
    with run_folder.FolderLock(out) as lock:
        assert {path.name for path in out.rglob("*")} == {"checkpoints", "lock", "notes.tmp"} and lock.there()
        out.rename(tmp_path / "away")
        assert not lock.there()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "lock").symlink_to("/dev/full")
    with pytest.raises(UserError, match="full/lock: could not be written"):
        run_folder.FolderLock(tmp_path / "full")


def facts(**changes):
    config = TrainConfig(**{"model": "m", "data": "a,b"} | changes.pop("config", {}))
    return {"config": dataclasses.asdict(config), "steps": 9, "tokenizer": "t", "chat template": "t",
            "model": {"weights": "z"}, "data": {"0 a": "x", "1 b": "y"}, "world_size": 1,
            "versions": {"torch": "2"}, "device": "cpu"} | changes


@pytest.mark.parametrize("change, words", [
    ({"config": {"seed": 7}}, "seed=42, now it is 7"),
    ({"config": {"data": "a=1,b=2"}}, r"data weights=\['', ''\]"),
    ({"tokenizer": "u"}, "tokenizer=t, now it is u"),
    ({"chat template": "u"}, "chat template=t, now it is u"),
    ({"data": {"0 a": "x", "1 b": "w"}}, "data 1 b=y, now it is w"),
    ({"data": {"0 a": "x"}}, "data 1 b=y, now it is None"),
    ({"model": {"weights": "q"}}, "model weights=z, now it is q"),
    ({"steps": 10}, "steps=9, now it is 10")])
def test_a_change_is_named_with_both_values(change, words):
    with pytest.raises(UserError, match=words):
        run_folder.check_resume(facts(), facts(**change))


def test_other_places_and_reports_may_change_and_rounding_is_reported():
    moved = {"model": "elsewhere/m", "data": "elsewhere/a,elsewhere/b", "log_every": 7, "save_every": 3}
    run_folder.check_resume(facts(), facts(config=moved))
    run_folder.check_resume(facts(), {"config": facts(config=moved)["config"]})  # before the data is open
    assert run_folder.rounding_differences(facts(), facts()) == []
    assert run_folder.rounding_differences(facts(), facts(world_size=8)) == ["ranks 1 -> 8"]


# ------------------------------------------------------------------------------------------------- inspection

def test_the_batch_of_a_step_is_shown_as_text(world, tmp_path, capsys):
    def show(name, step, *arguments):
        """All that is printed, and the text of the tokens with loss."""
        assert main(["show", str(tmp_path / name), str(step), *arguments]) == 0
        text = capsys.readouterr().out
        return text, "\n".join(line[6:] for line in text.splitlines() if line.startswith("    |"))

    for name, arguments in (("pre", pretrain), ("fine", finetune)):
        config = parse_command_line(arguments(world, tmp_path / name))[1]
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"config": vars(config)}))
    config, rows, tokenizer = load_run(tmp_path / "pre")
    text, _ = show("pre", 3, "--rows", "1", "2")
    assert f"row 1: {rows.names(rows.batch(2, 8))[1]}\n" in text and "row 3" not in text
    row = rows.row(rows.batch(2, 8)[1])
    first = tokenizer.decode(row.input_ids[row.document_ids == 0].tolist())
    shown = "".join(line[6:] for line in text.splitlines() if line.startswith(("    |", "    .")))
    assert first[:20].replace(" ", "") in shown.replace(" ", "")
    text, trained = show("fine", 1, "--rows", "0")
    example = load_run(tmp_path / "fine")[1].batch(0, 8)[0]
    target = tokenizer.decode(example.ids[example.prompt_length : -1]).strip()
    assert example.key in text and target.splitlines()[-1] in trained
    assert "### Instruction" not in trained and "### Instruction" in text
    with pytest.raises(UsageError, match="rows 0 to 7"):
        show("pre", 3, "--rows", "9")
    with pytest.raises(UserError, match=r"run\.json"):
        show("none", 3)
    (tmp_path / "pre" / "run.json").write_text(json.dumps({"config": vars(config), "data": {"0 en": "x"}}))
    with pytest.raises(UserError, match=r"not the data that .*pre was trained on"):
        show("pre", 3)
