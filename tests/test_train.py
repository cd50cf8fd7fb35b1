"""The training loop: one process against two, resumed against uninterrupted, errors in one line."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from tiny_world import finetune, lines, make_world, pretrain, write_stream
from warm_start import run as warm_run

from mmed.config import RECIPES, make_parser, parse_command_line
from mmed.tokenization.token_streams import StreamWriter
from mmed.tokenizer import load_tokenizer
from mmed.train import learning_rate
from mmed.utils.errors import UsageError

ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
TRAIN = [sys.executable, str(ROOT / "mmed" / "train.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", TRAIN[1]]
CLOCK = {"tokens_per_second", "targets_per_second", "memory_bytes", "mfu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def run(command, arguments):
    """A run as a user starts it; `warm_run` is faster where the start itself is not what is tested."""
    done = subprocess.run([*command, *arguments], env=ENV, cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def start(command, arguments, **more):
    return subprocess.Popen([*command, *arguments], env=ENV, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                            **more)


def tensors(out):
    folder = out / "checkpoints" / (out / "checkpoints" / "latest").read_text().strip()
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same_bits(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_losses(a, b, tolerance=1e-5):
    return all(x["tokens"] == y["tokens"] and abs(x["loss"] - y["loss"]) <= tolerance * x["loss"]
               for x, y in zip(lines(a), lines(b), strict=True))


def one_line(done, code, *words):
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and "error: " in message and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in message, message


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    run(TRAIN, pretrain(world, out))
    return out


def test_a_run_leaves_facts_log_checkpoint_and_a_model_that_opens(world, uninterrupted):
    from transformers import AutoModelForCausalLM

    from mmed.checkpoints.pretrained import load_pretrained

    facts = json.loads((uninterrupted / "run.json").read_text())
    assert facts["steps"] == 10 and facts["config"]["learning_rate"] == 1e-3 and facts["world_size"] == 1
    log = lines(uninterrupted)
    assert [line["step"] for line in log] == list(range(1, 11)) and log[-1]["loss"] < log[0]["loss"]
    ours, tokenizer = load_pretrained(uninterrupted / "model")
    ids = torch.tensor([tokenizer.encode("heart and lung", bos=True)])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(uninterrupted / "model")(ids).logits
        assert torch.allclose(ours(ids), theirs, atol=1e-5)


# ---------------------------------------------------------------------------------------------- several ranks


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one_process_on_a_mixture(world, tmp_path):
    mixture = f"--data={world}/en=0.7,{world}/ja=0.3"
    warm_run(pretrain(world, tmp_path / "one", mixture))
    warm_run(pretrain(world, tmp_path / "two", mixture), ranks=2)
    assert same_losses(tmp_path / "one", tmp_path / "two")
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert abs(a["grad_norm"] - b["grad_norm"]) <= 1e-4 * a["grad_norm"]


@pytest.mark.slow
def test_four_ranks_in_two_groups_give_the_losses_of_one(world, tmp_path, uninterrupted):
    warm_run(pretrain(world, tmp_path / "four", "--shard_size=2", "--micro_batch_size=1"), ranks=4)
    assert same_losses(uninterrupted, tmp_path / "four")


def test_micro_batch_size_changes_nothing_but_the_rounding(world, tmp_path, uninterrupted):
    warm_run(pretrain(world, tmp_path / "big", "--micro_batch_size=8"))
    assert same_losses(uninterrupted, tmp_path / "big")


@pytest.mark.slow
def test_ranks_wait_for_a_long_check_of_the_data(world, tmp_path):
    """Rank 0 verifies for longer than the time-out of hung ranks."""
    slow = ("import os, sys, time; from mmed.train import main\n"
            "from mmed.tokenization.token_streams import TokenStream\n"
            "verify = TokenStream.verify\n"
            "def late(*given):\n    time.sleep(10 * (os.environ['RANK'] == '0'))\n    verify(*given)\n"
            "TokenStream.verify = late; sys.exit(main())")
    (tmp_path / "slow.py").write_text(slow)
    arguments = pretrain(world, tmp_path / "out", "--max_steps=1", "--rank_timeout_seconds=5")
    run([*TORCHRUN[:-1], str(tmp_path / "slow.py")], arguments)
    assert (tmp_path / "out" / "done.json").is_file()


# -------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("command, extra", [(pretrain, ["--optimizer_state_dtype=bf16"]), (finetune, [])])
def test_stopping_by_sigterm_exits_75_and_resumes_to_the_same_bits(world, tmp_path, command, extra):
    warm_run(command(world, tmp_path / "plain", "--max_steps=30", *extra))
    out = tmp_path / "stopped"
    arguments = command(world, out, "--max_steps=30", "--resume=auto", "--save_every=1000", *extra)
    process = start(TRAIN, arguments)
    while not (out / "metrics.jsonl").is_file() or len((out / "metrics.jsonl").read_text().splitlines()) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "--resume=auto" in err and (out / "stopped").is_file()
    warm_run(arguments)
    assert same_bits(out, tmp_path / "plain") and not (out / "stopped").exists()
    assert [line["step"] for line in lines(out)] == list(range(1, 31))


def test_sigterm_before_the_first_step_exits_75(world, tmp_path):
    process = start(TRAIN, pretrain(world, tmp_path / "out"))
    time.sleep(0.5)  # while torch is imported
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75


@pytest.mark.slow
def test_a_run_saved_on_two_ranks_continues_on_one_with_the_same_data(world, tmp_path, uninterrupted):
    out = tmp_path / "moved"
    arguments = pretrain(world, out, "--resume=auto", "--save_every=2")
    first = start(TORCHRUN, arguments, start_new_session=True)
    while not (out / "checkpoints" / "latest").is_file():
        time.sleep(0.02)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    deadline = time.time() + 60
    while "another run is writing" in (done := warm_run(arguments, check=False)).stderr:
        assert time.time() < deadline  # ranks that lost torchrun end by themselves
        time.sleep(0.1)
    assert done.returncode == 0, done.stderr
    assert "ranks 2 -> 1" in done.stderr and same_losses(out, uninterrupted)


def test_a_finished_run_is_left_alone_before_its_data_is_opened(world, tmp_path, uninterrupted):
    again = warm_run(pretrain(world, uninterrupted, "--resume=never"), check=False)
    one_line(again, 1, "holds a run already")
    done = warm_run(pretrain(world, uninterrupted, "--resume=auto", f"--data={tmp_path}/gone"))
    assert "already done" in done.stderr
    changed = pretrain(world, uninterrupted, "--resume=auto", "--max_steps=12")
    one_line(warm_run(changed, check=False), 1, "max_steps=10", "now it is 12")
    kept = tmp_path / "kept"  # without its checkpoints
    shutil.copytree(uninterrupted, kept, ignore=shutil.ignore_patterns("checkpoints"))
    changed = pretrain(world, kept, "--resume=auto", "--seed=2")
    one_line(warm_run(changed, check=False), 1, "seed=1, now it is 2")


def test_a_run_that_went_back_and_was_killed_at_once_continues_from_there(world, tmp_path, uninterrupted):
    out = tmp_path / "back"
    shutil.copytree(uninterrupted, out)
    killed = "import os; from mmed import train; train.run_to_end = lambda run: os._exit(9); train.main()"
    arguments = pretrain(world, out, "--resume=step-8")
    assert subprocess.run([sys.executable, "-c", killed, *arguments], env=ENV, cwd=ROOT).returncode == 9
    assert [line["step"] for line in lines(out)] == list(range(1, 9))
    warm_run(pretrain(world, out, "--resume=auto"))
    assert same_bits(out, uninterrupted) and same_losses(out, uninterrupted, tolerance=0)


def test_a_damaged_checkpoint_is_rejected_by_name(world, tmp_path):
    out = tmp_path / "out"
    warm_run(pretrain(world, out))
    (out / "done.json").unlink()
    path = next((out / "checkpoints" / "step-10").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    one_line(warm_run(pretrain(world, out, "--resume=auto"), check=False), 1, path.name, "step-8")


def test_lora_saves_only_the_adapter_and_peft_opens_it(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mmed.checkpoints.adapters import load_adapter
    from mmed.checkpoints.pretrained import load_pretrained

    out = tmp_path / "lora"
    warm_run(finetune(world, out, f"--validation={world}/Train"))
    assert not (out / "model").exists() and "English" in lines(out)[-1]["validation_loss"]
    assert all("lora_" in name for name in tensors(out))
    ours, tokenizer = load_pretrained(world / "model")
    assert load_adapter(ours, out / "adapter") == 4
    base = AutoModelForCausalLM.from_pretrained(world / "model")
    theirs = PeftModel.from_pretrained(base, str(out / "adapter"))
    ids = torch.tensor([tokenizer.encode("fever dose", bos=True)])
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids), theirs.eval()(ids).logits, atol=1e-5)


def test_a_run_on_conversations_trains_the_answers_in_the_models_own_turns(world, tmp_path):
    with open(tmp_path / "a.json", "w") as file:
        json.dump([{"instruction": "heart", "input": "lung", "output": "bone cell"},
                   {"instruction": "heart", "output": "plum"}] * 8, file)
    arguments = [a for a in finetune(world, tmp_path / "run", "--task=instruct", "--max_steps=2",
                                     f"--validation={tmp_path}/a.json") if not a.startswith("--data")]
    warm_run([*arguments, f"--data={tmp_path}/a.json"])
    found = lines(tmp_path / "run")
    tokenizer = load_tokenizer(world / "model")
    targets = [len(tokenizer.encode(f" {text} ", continued=True)) + 1 for text in ("bone cell", "plum")]
    assert json.loads((tmp_path / "run" / "done.json").read_text())["tokens"] == 8 * sum(targets)
    assert found[-1]["validation_loss"]["conversations"] < found[0]["validation_loss"]["conversations"]


# -------------------------------------------------------------------------------------- options and bad input


@pytest.mark.parametrize("extra, code, words", [
    (["--model=/no/such"], 1, ["/no/such/config.json"]),
    (["--data=/no/such/stream"], 1, ["/no/such/stream.json", "tokenize"]),
    (["--lr=1"], 2, ["--lr", "did you mean"]),
    (["--precision=fp16"], 2, ["--precision", "bf16"]),
    (["--max_steps=ten"], 2, ["--max_steps", "a whole number"]),
    (["--max_steps=-1"], 2, ["--max_steps=-1", "0 or more"]),
    (["--data=,"], 2, ["--data=,", "each named once"]),
    (["--data=a,a"], 2, ["--data=a,a", "each named once"]),
    (["--data={world}/en=nan,{world}/ja=1"], 2, ["weights must be positive"]),
    (["--data={world}/en=1,{world}/ja=1e-9"], 2, ["less than a millionth of the rows"]),
    (["--data={world}/en=1,{world}/ja=1", "--mix_temperature=2"], 2, ["weights", "--mix_temperature"]),
    (["--lora_rank=2", "--lora_targets=query"], 1, ["'query' matches no layer", "q_proj"]),
    (["--learning_rate=1e30", "--max_grad_norm=1e30"], 1, ["not finite", "step "])])
def test_bad_options_end_in_one_line(world, tmp_path, extra, code, words):
    extra = [word.format(world=world) for word in extra]
    one_line(warm_run(pretrain(world, tmp_path / "out", *extra), check=False), code, *words)


def test_options_take_both_spellings_and_unknown_recipes_list_all():
    recipe, config = parse_command_line(["tiny", "--dry-run", "--max_steps", "3", "--async-save=false"])
    assert (recipe, config.dry_run, config.max_steps, config.async_save) == ("tiny", True, 3, False)
    help_text = make_parser("tiny").format_help()
    assert "--max_steps" in help_text and "(default: 150)" in help_text
    with pytest.raises(UsageError, match="finetune_lora"):
        parse_command_line(["finetune_lroa"])


@pytest.mark.parametrize("words, message", [
    ("pretrain_mmedlm2 --epochs=1", "--epochs=1.0: does nothing without --max_steps=0"),
    ("finetune_full --lora-targets q_proj", "--lora_targets=q_proj: does nothing without --lora_rank"),
    ("finetune_lora --windows=packed", "--windows=packed: does nothing without --task=pretrain"),
    ("pretrain_mmedlm --eval_every=9", "--eval_every=9: does nothing without --validation"),
    ("demo_full --prompt_style=clean --task=instruct", "--prompt_style=clean: does nothing"),
    ("tiny --epochs=inf", "expected a number, got 'inf'"), ("tiny --seed=4294967296", "expected a number"),
    ("tiny --out=", "--out is missing")])
def test_options_without_effect_or_meaning_are_rejected(words, message, capsys):
    with pytest.raises((UsageError, SystemExit)) as error:
        parse_command_line([*words.split(), "--model=m", "--data=d"])
    assert message in str(error.value) + capsys.readouterr().err


def test_a_model_without_tokenizer_trains_on_streams_that_fit_it(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    model = [f"--model={tmp_path}/model", "--max_steps=1", "--resume=never"]
    official = warm_run(pretrain(world, tmp_path / "a", *model, "--windows=official"), check=False)
    one_line(official, 2, "--windows=official", "--tokenizer")
    write_stream(tmp_path / "big", [[5, 900]] * 9)
    big = warm_run(pretrain(world, tmp_path / "a", *model, f"--data={tmp_path}/big"), check=False)
    one_line(big, 1, "big: has ids up to 999", "340 rows")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": 16}
    path.write_text(json.dumps(config))
    done = warm_run(pretrain(world, tmp_path / "a", *model))
    assert "--sequence_length=32 exceeds the model's 16 positions" in done.stderr
    path.write_text(json.dumps(config | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}))
    dynamic = warm_run(pretrain(world, tmp_path / "b", *model), check=False)
    one_line(dynamic, 1, "--sequence_length=32", "up to 16 tokens")


def test_bad_files_end_in_one_line_and_leave_no_run_folder(world, tmp_path):
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "English.jsonl").write_text('{"question": "x"}\n')
    done = warm_run(finetune(world, tmp_path / "out", f"--data={tmp_path / 'exam'}"), check=False)
    one_line(done, 1, "English.jsonl:1", "options")
    writer = StreamWriter(tmp_path / "wrong", 340, "another tokenizer")
    writer.add([1, 5, 6, 2])
    writer.close()
    done = warm_run(pretrain(world, tmp_path / "out", f"--data={tmp_path}/wrong"), check=False)
    one_line(done, 1, "wrong", "tokenizer")
    for suffix in (".bin", ".idx", ".json"):
        (tmp_path / f"flipped{suffix}").write_bytes((world / f"en{suffix}").read_bytes())
    data = bytearray((world / "en.bin").read_bytes())
    data[9] ^= 1
    (tmp_path / "flipped.bin").write_bytes(data)
    arguments = pretrain(world, tmp_path / "out", f"--data={tmp_path}/flipped")
    one_line(warm_run(arguments, check=False), 1, "flipped.bin", "damaged")
    assert not (tmp_path / "out").exists()
    dry = warm_run([*arguments, "--dry_run"]).stderr  # which reads no data
    assert "memory per rank" in dry and "checkpoint copy" in dry


@pytest.mark.parametrize("script", ["train_1node.sbatch", "train_nnodes.sbatch"])
@pytest.mark.parametrize("out", [["--out=RUN"], ["--out", "RUN"]])
def test_a_stopped_job_is_requeued_however_out_is_written(tmp_path, script, out):
    tools = {"srun": 'echo "srun $*" >> "$CALLS"; exit 1',
             "scontrol": '[ "$1" = show ] && echo node1 || echo "scontrol $*" >> "$CALLS"'}
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stopped").touch()
    env = ENV | {"PATH": f"{tmp_path}:{ENV['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "7",
                 "RANKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n", "PYTHON": sys.executable}
    arguments = [word.replace("RUN", str(tmp_path / "run")) for word in out]
    subprocess.run(["bash", f"slurm/{script}", "tiny", *arguments, "--shard_size", "4"], cwd=ROOT, env=env)
    calls = (tmp_path / "calls").read_text()
    assert "scontrol requeue 7" in calls and "--shard_size 4" in calls.splitlines()[0].split("train.py")[1]


def test_the_learning_rate_warms_up_and_follows_the_cosine():
    config = RECIPES["pretrain_mmedlm2"][1]
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates[9] == config.learning_rate == max(rates) and rates[0] == config.learning_rate / 10
    assert abs(rates[505] - config.learning_rate / 2) < 1e-7 and rates[-1] < 1e-3 * config.learning_rate
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    floor = dataclasses.replace(config, min_lr_ratio=0.1)
    floored = [learning_rate(floor, step, 1000) for step in range(1000)]
    assert floored[:10] == rates[:10] and abs(floored[505] - 0.55 * config.learning_rate) < 1e-7
    assert abs(floored[-1] - 0.1 * config.learning_rate) < 1e-5 * config.learning_rate
    constant = dataclasses.replace(config, schedule="constant")
    assert {learning_rate(constant, step, 1000) for step in range(9, 1000)} == {config.learning_rate}
