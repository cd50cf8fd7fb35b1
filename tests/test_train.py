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
from forked_runs import warm_run
from repository import ENV, ROOT
from tiny_models import same_bits, tensors_of
from tiny_world import finetune, lines, pretrain, write_stream

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.pretrained import load_pretrained
from mmed.config import RECIPES, make_parser, parse_command_line
from mmed.tokenizer import load_tokenizer
from mmed.train import learning_rate
from mmed.training.inspect_batch import load_run
from mmed.utils.errors import UsageError

TRAIN = [sys.executable, str(ROOT / "mmed" / "train.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """A run as a user starts it; `warm_run` is faster where the start itself is not what is tested."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    run(*TRAIN, *pretrain(world, out))
    return out


def run(*command):
    done = subprocess.run(command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def start_until(path, count, *command):
    """A process of a run that is held (HOLD), once it has written `count` lines to a file."""
    process = subprocess.Popen(command, env=ENV, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        time.sleep(0.02)
        assert process.poll() is None
    return process


def tensors(out):
    return tensors_of(out / "checkpoints" / (out / "checkpoints" / "latest").read_text().strip())


def same_losses(a, b, tolerance=1e-5):
    return all(x["tokens"] == y["tokens"] and x["targets"] == y["targets"]
               and abs(x["loss"] - y["loss"]) <= tolerance * x["loss"]
               and abs(x["grad_norm"] - y["grad_norm"]) <= 10 * tolerance * x["grad_norm"]
               for x, y in zip(lines(a), lines(b), strict=True))


def fails(arguments, code, *words):
    """The run ends with this exit code, and its last line is an error that contains the words."""
    done = warm_run(arguments, check=False)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and "error: " in message and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in message, message


def test_a_run_leaves_facts_log_checkpoint_and_a_model_that_opens(uninterrupted):
    from transformers import AutoModelForCausalLM

    facts = json.loads((uninterrupted / "run.json").read_text())
    assert facts["steps"] == 10 and facts["config"]["learning_rate"] == 1e-3 and facts["world_size"] == 1
    log = lines(uninterrupted)
    assert [line["step"] for line in log] == list(range(1, 11)) and log[-1]["loss"] < log[0]["loss"]
    model, tokenizer = load_pretrained(uninterrupted / "model")
    saved = tensors(uninterrupted)
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in model.named_parameters())
    ids = torch.tensor([tokenizer.encode("heart and lung", bos=True)])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(uninterrupted / "model")(ids).logits
        assert torch.allclose(model(ids), theirs, atol=1e-5)


# ---------------------------------------------------------------------------------------------- several ranks

@pytest.mark.parametrize("ranks, extra", [
    (1, ["--micro_batch_size=8"]),
    pytest.param(2, [], marks=pytest.mark.slow),
    pytest.param(4, ["--shard_size=2", "--micro_batch_size=1"], marks=pytest.mark.slow)])
def test_ranks_and_micro_batches_only_change_the_rounding(world, tmp_path, uninterrupted, ranks, extra):
    warm_run(pretrain(world, tmp_path / "run", *extra), ranks=ranks)
    assert same_losses(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_are_all_text_that_was_read_and_targets_its_labels(world, tmp_path, ranks):
    out = tmp_path / "run"
    warm_run(finetune(world, out, "--max_steps=3"), ranks=ranks)
    _, rows, _ = load_run(out)
    steps, log = [rows.batch(step, 8) for step in range(3)], lines(out)
    tokens = [sum(len(example.ids) - 1 for example in batch) for batch in steps]
    targets = [sum(len(example.ids) - example.prompt_length for example in batch) for batch in steps]
    assert [line["tokens"] for line in log] == list(itertools.accumulate(tokens))
    assert [line["targets"] for line in log] == list(itertools.accumulate(targets))
    for line, all_of_step, labels in zip(log, tokens, targets, strict=True):
        assert line["tokens_per_second"] / line["targets_per_second"] == pytest.approx(
            all_of_step / labels, rel=1e-2)
    done = json.loads((out / "done.json").read_text())
    assert (done["tokens"], done["targets"]) == (sum(tokens), sum(targets))


def test_a_batch_without_a_target_changes_and_counts_nothing(world, tmp_path):
    """One document that fills a row of two: the second, which was reserved for continuations, is empty."""
    tokenizer, out = load_tokenizer(world / "model"), tmp_path / "run"
    write_stream(tmp_path / "s", [[1, *[5, 6, 7, 8] * 8]], tokenizer.vocab_size, 1, tokenizer.fingerprint)
    warm_run(pretrain(world, out, f"--data={tmp_path}/s", "--global_batch_size=1", "--max_steps=4"))
    log = lines(out)
    gains = [after - before for before, after in itertools.pairwise([0, *(line["targets"] for line in log)])]
    assert sorted(gains) == [0, 0, 32, 32]
    assert [line["loss"] is not None for line in log] == [gain > 0 for gain in gains]
    state = json.loads((out / "checkpoints" / "step-4" / "state.json").read_text())
    assert state["optimizer_step"] == 2 and state["skipped"] == 0


def patched(tmp_path, patch):
    """A train.py with `patch` done first, which may `leave` a result in tmp_path/RANK."""
    (tmp_path / "patched.py").write_text(
        "import os, sys, time, torch\nfrom mmed import train\n"
        "def leave(value):\n    torch.save(value, os.path.join(sys.path[0], os.environ['RANK']))\n"
        f"{patch}\nsys.exit(train.main())")
    return str(tmp_path / "patched.py")


def run_patched(tmp_path, patch, arguments):
    """Run it on two ranks; returns what they left."""
    run(*TORCHRUN, patched(tmp_path, patch), *arguments)
    return [torch.load(path) for path in map(tmp_path.joinpath, "01") if path.exists()]


COUNT_GRAPHS = """
from torch._dynamo.utils import counters
stop = train.distributed.stop
train.distributed.stop = lambda: (leave(counters["stats"]["unique_graphs"]), stop())"""
KEEP_WEIGHTS = """
finish, local = train.Run.finish, train.distributed.local
train.Run.finish = lambda run: (leave([local(p.detach()) for p in run.model.parameters()]), finish(run))"""
VERIFY_SLOWLY = """
from mmed.tokenization.token_streams import TokenStream
verify = TokenStream.verify
TokenStream.verify = lambda *given: (time.sleep(10 * (os.environ["RANK"] == "0")), verify(*given))"""
HOLD = """
train_step = train.Run.train_step
def hold(run, batch):  # a run that ends before the signal comes shows nothing
    while run.step == 5 and not run.stop.requested:
        time.sleep(0.01)
    train_step(run, batch)
train.Run.train_step = hold"""
RAGGED = ["--sequence_length=640"]  # micro-batches of 720 to 1,010 tokens


@pytest.mark.slow
@pytest.mark.parametrize("command, extra, most", [
    pytest.param(pretrain, [], 1, id="pretrain"),                                # all rows are full
    pytest.param(finetune, ["--lora_rank=0", *RAGGED], 2, id="finetune"),        # the first width, any width
    # also without a gradient of the input, in the first block
    pytest.param(finetune, [*RAGGED, "--lora_dropout=0"], 4, id="lora")])
def test_checkpointed_compiled_sharded_blocks_give_the_same_losses_and_compile_seldom(
        world, tmp_path, command, extra, most):
    extra = [*extra, "--max_steps=6"]
    warm_run(command(world, tmp_path / "one", *extra))
    arguments = command(world, tmp_path / "two", *extra, "--compile=yes", "--activation_checkpointing=all")
    compiled = run_patched(tmp_path, COUNT_GRAPHS, arguments)
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one["targets"] == two["targets"] and two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert 1 <= compiled[0] == compiled[1] <= most


@pytest.mark.slow
def test_copies_of_a_shard_stay_equal_with_bf16_moments(world, tmp_path):
    one, two = run_patched(tmp_path, KEEP_WEIGHTS, pretrain(
        world, tmp_path / "out", "--shard_size=1", "--optimizer_state_dtype=bf16"))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_ranks_wait_for_a_long_check_of_the_data(world, tmp_path):
    """Rank 0 verifies for longer than the time-out of hung ranks."""
    run_patched(tmp_path, VERIFY_SLOWLY,
                pretrain(world, tmp_path / "out", "--max_steps=1", "--rank_timeout_seconds=5"))
    assert (tmp_path / "out" / "done.json").is_file()


# -------------------------------------------------------------------------------------------- stop and resume

@pytest.mark.parametrize("command, extra", [(pretrain, ["--optimizer_state_dtype=bf16"]), (finetune, [])])
def test_stopping_by_sigterm_exits_75_and_resumes_to_the_same_bits(world, tmp_path, command, extra):
    warm_run(command(world, tmp_path / "plain", "--max_steps=30", *extra))
    out = tmp_path / "stopped"
    arguments = command(world, out, "--max_steps=30", "--resume=auto", "--save_every=0", *extra)
    process = start_until(out / "metrics.jsonl", 3, sys.executable, patched(tmp_path, HOLD), *arguments)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "--resume=auto" in err and (out / "stopped").is_file()
    warm_run(arguments)
    assert same_bits(tensors(out), tensors(tmp_path / "plain")) and not (out / "stopped").exists()
    assert [line["step"] for line in lines(out)] == list(range(1, 31))


def test_sigterm_before_the_first_step_exits_75(world, tmp_path):
    command = [sys.executable, "-X", "importtime", TRAIN[1], *pretrain(world, tmp_path / "out")]
    process = subprocess.Popen(command, env=ENV, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert any("torch." in line for line in process.stderr)  # a first part of it is imported
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.slow
def test_a_run_saved_on_two_ranks_continues_on_one(world, tmp_path, uninterrupted):
    out = tmp_path / "moved"
    arguments = pretrain(world, out, "--resume=auto", "--save_every=2")
    first = start_until(out / "checkpoints" / "latest", 1, *TORCHRUN, patched(tmp_path, HOLD), *arguments)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    deadline = time.time() + 60
    while "another run is writing" in (done := warm_run(arguments, check=False)).stderr:
        assert time.time() < deadline  # ranks that lost torchrun end by themselves
        time.sleep(0.1)
    assert done.returncode == 0, done.stderr
    assert "ranks 2 -> 1" in done.stderr and same_losses(out, uninterrupted)


def test_a_finished_run_is_left_alone_before_its_data_is_opened(world, tmp_path, uninterrupted):
    finished = pretrain(world, uninterrupted)
    fails([*finished, "--resume=never"], 1, "holds a run already")
    fails([*finished, "--max_steps=12"], 1, "max_steps=10", "now it is 12")
    gone = f"--data={tmp_path}/gone=0.7,{tmp_path}/too=0.3"
    assert "already done" in warm_run([*finished, gone]).stderr
    kept = tmp_path / "kept"  # without its checkpoints
    shutil.copytree(uninterrupted, kept, ignore=shutil.ignore_patterns("checkpoints"))
    fails(pretrain(world, kept, "--seed=2"), 1, "seed=1, now it is 2")


@pytest.mark.parametrize("place, steps", [("run_folder.start", 10), ("Run.to_end", 8)])
def test_a_run_that_went_back_and_was_killed_at_once_continues(world, tmp_path, uninterrupted, place, steps):
    out = tmp_path / "back"
    shutil.copytree(uninterrupted, out)
    killed = f"import os; from mmed import train; train.{place} = lambda *_: os._exit(9); train.main()"
    arguments = pretrain(world, out, "--resume=step-8")
    assert subprocess.run([sys.executable, "-c", killed, *arguments], env=ENV, cwd=ROOT).returncode == 9
    assert [line["step"] for line in lines(out)] == list(range(1, steps + 1))
    warm_run(pretrain(world, out, "--resume=auto"))
    assert same_bits(tensors(out), tensors(uninterrupted)) and same_losses(out, uninterrupted, tolerance=0)
    assert (out / "checkpoints" / "latest").read_text() == "step-10\n"


def test_a_run_killed_after_its_last_save_ends_without_older_checkpoints(world, tmp_path, uninterrupted):
    out = shutil.copytree(uninterrupted, tmp_path / "killed")
    (out / "done.json").unlink()
    shutil.copytree(out / "checkpoints" / "step-8", out / "checkpoints" / "step-4")
    warm_run(pretrain(world, out, "--resume=auto"))
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"latest", "step-8", "step-10"}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_rejected_by_name(world, tmp_path, uninterrupted):
    out = shutil.copytree(uninterrupted, tmp_path / "out")
    (out / "done.json").unlink()
    path = next((out / "checkpoints" / "step-10").glob("*.safetensors"))
    flip(path, -5)
    fails(pretrain(world, out, "--resume=auto"), 1, path.name, "step-8")


def test_lora_saves_only_the_adapter_and_peft_opens_it(world, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "lora"
    warm_run(finetune(world, out, f"--validation={world}/Train"))
    assert not (out / "model").exists() and "English" in lines(out)[-1]["validation_loss"]
    assert all("lora_" in name for name in tensors(out))
    model, tokenizer = load_pretrained(world / "model")
    assert load_adapter(model, out / "adapter") == 4
    adapted, saved = dict(model.named_parameters()), tensors(out)
    assert all(torch.equal(value, adapted[name.removeprefix("model.")])
               for name, value in saved.items() if name.startswith("model."))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "model"), out / "adapter")
    ids = torch.tensor([tokenizer.encode("fever dose", bos=True)])
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids), theirs.eval()(ids).logits, atol=1e-5)


def test_a_run_on_conversations_trains_the_answers_in_the_models_own_turns(world, tmp_path):
    with open(tmp_path / "a.json", "w") as file:
        json.dump([{"instruction": "heart", "input": "lung", "output": "bone cell"},
                   {"instruction": "heart", "output": "plum"}] * 8, file)
    warm_run(finetune(world, tmp_path / "run", "--task=instruct", "--max_steps=2",
                      f"--data={tmp_path}/a.json", f"--validation={tmp_path}/a.json"))
    found = lines(tmp_path / "run")
    tokenizer = load_tokenizer(world / "model")
    targets = [len(tokenizer.encode(f" {text} ", continued=True)) + 1 for text in ("bone cell", "plum")]
    assert json.loads((tmp_path / "run" / "done.json").read_text())["targets"] == 8 * sum(targets)
    assert found[-1]["validation_loss"]["conversations"] < found[0]["validation_loss"]["conversations"]


# -------------------------------------------------------------------------------------- options and bad input

@pytest.mark.parametrize("extra, code, words", [
    (["--model=/no/such"], 1, ["/no/such: no such folder"]),
    (["--tokenizer=/no/such"], 1, ["/no/such: no such folder"]),
    (["--data=/no/such/stream"], 1, ["/no/such/stream.json", "tokenize"]),
    (["--lr=1"], 2, ["--lr", "did you mean"]), (["--precision=fp16"], 2, ["--precision", "bf16"]),
    (["--data=,"], 2, ["--data=,", "each named once"]),
    (["--data=a,a"], 2, ["--data=a,a", "each named once"]),
    (["--data=a=x,b=1"], 2, ["a weight must be a number"]),
    (["--data={world}/en=nan,{world}/ja=1"], 2, ["weights must be positive"]),
    (["--data={world}/en=1,{world}/ja=1e-9"], 2, ["less than a millionth of the rows"]),
    (["--data={world}/en=1,{world}/ja=1", "--mix_temperature=2"], 2, ["weights", "--mix_temperature"]),
    (["--lora_rank=2", "--lora_targets=query"], 1, ["'query' matches no layer", "q_proj"]),
    (["--shard_size=3"], 2, ["--shard_size=3: must divide the number of ranks, 1"]),
    (["--learning_rate=1e30", "--max_grad_norm=1e30"], 1, ["not finite", "step "])])
def test_bad_options_end_in_one_line(world, tmp_path, extra, code, words):
    fails(pretrain(world, tmp_path / "out", *(word.format(world=world) for word in extra)), code, *words)


def test_options_take_both_spellings_and_unknown_recipes_list_all():
    recipe, config = parse_command_line(["tiny", "--dry-run", "--max_steps", "3", "--async-save=false"])
    assert (recipe, config.dry_run, config.max_steps, config.async_save) == ("tiny", True, 3, False)
    assert parse_command_line(["--data", "d", "--out", "epochs", "--model=m", "pretrain_mmedlm2"]) == (
        parse_command_line(["pretrain_mmedlm2", "--data=d", "--out=epochs", "--model=m"]))
    help_text = make_parser("tiny").format_help()
    assert "--max_steps" in help_text and "(default: 150)" in help_text
    with pytest.raises(UsageError, match="finetune_lora"):
        parse_command_line(["finetune_lroa"])
    with pytest.raises(UsageError, match="--tokenizer=t: --data=source trains a tokenizer of its own"):
        parse_command_line(["tiny", "--tokenizer=t"])


@pytest.mark.parametrize("words, message", [
    ("pretrain_mmedlm2 --epochs=1", "--epochs=1.0: does nothing without --max_steps=0"),
    ("finetune_full --lora-targets q_proj", "--lora_targets=q_proj: does nothing without --lora_rank"),
    ("finetune_lora --windows=packed", "--windows=packed: does nothing without --task=pretrain"),
    ("pretrain_mmedlm --eval_every=9", "--eval_every=9: does nothing without --validation"),
    ("demo_full --prompt_style=clean --task=instruct", "--prompt_style=clean: does nothing"),
    ("tiny --epochs=inf", "expected a number, got 'inf'"), ("tiny --seed=4294967296", "expected a number"),
    ("tiny --max_steps=ten", "--max_steps: expected a whole"), ("tiny --max_steps=-1", "=-1: expected 0 or"),
    ("tiny --out=", "--out is missing"), ("tiny --beta2=1", "--beta2=1.0: expected a share from 0 to below")])
def test_options_without_effect_or_meaning_are_rejected(words, message, capsys):
    with pytest.raises((UsageError, SystemExit)) as error:
        parse_command_line([*words.split(), "--model=m", "--data=d"])
    assert message in str(error.value) + capsys.readouterr().err


def test_a_model_without_tokenizer_trains_on_streams_that_fit_it(world, tmp_path):
    def arguments(*extra):
        return pretrain(world, tmp_path / "a", f"--model={tmp_path}/model", "--max_steps=1", *extra)

    shutil.copytree(world / "model", tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    fails(arguments("--windows=official"), 2, "--windows=official", "--tokenizer")
    fails(arguments("--bos=no"), 1, "model: no tokenizer.model or tokenizer.json there; give --tokenizer")
    fails(arguments("--bos=no", f"--model={tmp_path}"), 1, f"its model is {tmp_path}/model")
    write_stream(tmp_path / "big", [[5, 900]] * 9)
    fails(arguments(f"--data={tmp_path}/big"), 1, "big: has ids up to 999", "340 rows")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": 16}
    dynamic = config | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    path.write_text(json.dumps(dynamic))
    fails(arguments(), 1, "32 tokens in a row: dynamic RoPE scaling, which begins beyond 16")
    path.write_text(json.dumps(config))
    done = warm_run(arguments())
    assert "--sequence_length=32 exceeds the model's context of 16" in done.stderr


def test_bad_files_end_in_one_line_and_leave_no_run_folder(world, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "English.jsonl").write_text('{"question": "x"}\n')
    fails(finetune(world, out, f"--data={tmp_path / 'exam'}"), 1, "English.jsonl:1", "options")
    write_stream(tmp_path / "wrong", [[1, 5, 6, 2]])
    fails(pretrain(world, out, f"--data={tmp_path}/wrong"), 1, "wrong", "tokenizer")
    for suffix in (".bin", ".idx", ".json"):
        shutil.copy(world / f"en{suffix}", tmp_path / f"flipped{suffix}")
    flip(tmp_path / "flipped.bin", 9)
    arguments = pretrain(world, out, f"--data={tmp_path}/flipped")
    fails(arguments, 1, "flipped.bin", "damaged")
    fails([*arguments, "--lora_rank=2", "--lora_targets=query"], 1, "matches no layer")  # before all is read
    flip(tmp_path / "flipped.idx", 3)  # its documents have no tokens any more
    fails(pretrain(world, out, f"--validation={tmp_path}/flipped"), 1, "flipped.idx", "damaged")
    assert not out.exists()
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
    def rates(**changes):
        config = dataclasses.replace(RECIPES["pretrain_mmedlm2"][1], learning_rate=1.0, **changes)
        return [learning_rate(config, step, 1000) for step in range(1000)]

    cosine, floored = rates(), rates(min_lr_ratio=0.1)
    assert cosine[0] == 0.1 and cosine[9] == 1 == max(cosine) and floored[:10] == cosine[:10]
    assert cosine[505] == pytest.approx(0.5, abs=5e-3) and cosine[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(cosine[9:]))
    assert floored[505] == pytest.approx(0.55, abs=5e-3) and floored[-1] == pytest.approx(0.1, abs=1e-5)
    assert set(rates(schedule="constant")[9:]) == {1}
