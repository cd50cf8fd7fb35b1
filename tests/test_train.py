"""The training loop: one process against two, resumed against uninterrupted, errors in one line."""
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import finetune, lines, make_world, pretrain
from warm_start import run as warm_run

from mmed.config import RECIPES, parse_command_line
from mmed.data import StreamWriter
from mmed.train import learning_rate
from mmed.utils.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def run(arguments, ranks=1):
    """As a user starts it; `warm_run` is quicker, where the start itself is not what is tested."""
    command = [sys.executable, str(ROOT / "mmed" / "train.py")] if ranks == 1 else \
        [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone", str(ROOT / "mmed" / "train.py")]
    done = subprocess.run(command + arguments, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def tensors(out):
    folder = out / "checkpoints" / (out / "checkpoints" / "latest").read_text().strip()
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def same(a, b, tolerance=0.0):
    return a.keys() == b.keys() and all((a[k] - b[k]).abs().max() <= tolerance * (1 + b[k].abs().max()) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    run(pretrain(world, out))
    return out


def test_a_run_leaves_its_facts_its_log_its_checkpoint_and_a_model_that_opens(world, uninterrupted):
    facts = json.loads((uninterrupted / "run.json").read_text())
    assert facts["steps"] == 10 and facts["config"]["learning_rate"] == 1e-3 and facts["world_size"] == 1 and facts["versions"]["torch"]
    log = lines(uninterrupted)
    assert [line["step"] for line in log] == list(range(1, 11)) and log[-1]["loss"] < log[0]["loss"]
    from transformers import AutoModelForCausalLM

    from mmed.checkpoints.pretrained import load_pretrained
    ours, tokenizer = load_pretrained(uninterrupted / "model")
    ids = torch.tensor([tokenizer.encode("heart and lung", bos=True)])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(uninterrupted / "model")(ids).logits
        assert torch.allclose(ours(ids), theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("extra, command", [([], pretrain), ([], finetune), (["--data=DATA/en=0.7,DATA/ja=0.3"], pretrain)])
def test_two_ranks_give_the_losses_of_one_process_with_twice_the_accumulation(world, tmp_path, extra, command):
    extra = [e.replace("DATA", str(world)) for e in extra] + ["--lora_dropout=0"]
    warm_run(command(world, tmp_path / "one", *extra))
    (warm_run if len(extra) > 1 or command is finetune else run)(command(world, tmp_path / "two", *extra), ranks=2)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-5 * a["loss"] and abs(a["grad_norm"] - b["grad_norm"]) <= 1e-4 * a["grad_norm"]
        assert a["tokens"] == b["tokens"]


def test_micro_batch_size_changes_nothing_but_the_rounding(world, tmp_path, uninterrupted):
    warm_run(pretrain(world, tmp_path / "big", "--micro_batch_size=8"))
    assert all(abs(a["loss"] - b["loss"]) <= 1e-5 * a["loss"] for a, b in zip(lines(uninterrupted), lines(tmp_path / "big"), strict=True))


@pytest.mark.parametrize("command", [pretrain, finetune])
def test_stopping_by_sigterm_saves_exits_75_and_resumes_to_the_same_bits(world, tmp_path, command):
    warm_run(command(world, tmp_path / "plain", "--max_steps=30"))
    out = tmp_path / "stopped"
    arguments = command(world, out, "--max_steps=30", "--resume=auto", "--save_every=1000")
    process = subprocess.Popen([sys.executable, str(ROOT / "mmed" / "train.py"), *arguments], env=ENV, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").is_file() or len((out / "metrics.jsonl").read_text().splitlines()) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "--resume=auto" in err
    warm_run(arguments)
    assert same(tensors(out), tensors(tmp_path / "plain"))
    assert [line["step"] for line in lines(out)] == list(range(1, 31))


@pytest.mark.slow
def test_a_run_saved_on_two_ranks_goes_on_on_one_with_the_same_data(world, tmp_path, uninterrupted):
    out = tmp_path / "moved"
    first = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(ROOT / "mmed" / "train.py"),
                              *pretrain(world, out, "--resume=auto", "--save_every=2")], env=ENV, cwd=ROOT, stderr=subprocess.DEVNULL,
                             start_new_session=True)
    while not (out / "checkpoints" / "latest").is_file():
        time.sleep(0.02)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert len(list((out / "checkpoints").glob("step-*/shard-0000*"))) >= 2
    deadline = time.time() + 60
    while "another run is writing" in (done := warm_run(pretrain(world, out, "--resume=auto", "--save_every=2"), check=False)).stderr:
        assert time.time() < deadline  # ranks that lost torchrun end by themselves
        time.sleep(0.1)
    assert done.returncode == 0, done.stderr
    for a, b in zip(lines(out), lines(uninterrupted), strict=True):
        assert a["step"] == b["step"] and a["tokens"] == b["tokens"] and abs(a["loss"] - b["loss"]) <= 1e-5 * b["loss"]


def test_the_same_command_gives_the_same_bits(world, tmp_path, uninterrupted):
    warm_run(pretrain(world, tmp_path / "again"))
    assert same(tensors(tmp_path / "again"), tensors(uninterrupted))
    timing = {"tokens_per_second", "targets_per_second", "memory_bytes", "mfu", "seconds_left"}
    assert [{k: v for k, v in line.items() if k not in timing} for line in lines(tmp_path / "again")] == \
        [{k: v for k, v in line.items() if k not in timing} for line in lines(uninterrupted)]


def test_lora_saves_only_the_adapter_and_peft_opens_it(world, tmp_path):
    warm_run(finetune(world, tmp_path / "lora", f"--validation={world}/Train"))
    assert not (tmp_path / "lora" / "model").exists() and "English" in lines(tmp_path / "lora")[-1]["validation_loss"]
    assert all("lora_" in name for name in tensors(tmp_path / "lora"))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mmed.checkpoints.adapters import load_adapter
    from mmed.checkpoints.pretrained import load_pretrained
    ours, tokenizer = load_pretrained(world / "model")
    assert load_adapter(ours, tmp_path / "lora" / "adapter") == 4
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "model"), str(tmp_path / "lora" / "adapter")).eval()
    ids = torch.tensor([tokenizer.encode("fever dose", bos=True)])
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids), theirs(ids).logits, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input

def one_line(done, code, *words):
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and message.startswith("error: ") and "Traceback" not in done.stderr, done.stderr[-2000:]
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("extra, code, words", [
    (["--model=/no/such"], 1, ["/no/such/config.json"]),
    (["--data=/no/such/stream"], 1, ["/no/such/stream.json", "tokenize"]),
    (["--lr=1"], 2, ["--lr", "did you mean"]),
    (["--precision=fp16"], 2, ["bf16, fp32"]),
    (["--max_steps=ten"], 2, ["a whole number"]),
    (["--lora_rank=2", "--lora_targets=query"], 1, ["'query' matches no layer", "q_proj"]),
    (["--learning_rate=1e30", "--max_grad_norm=1e30"], 1, ["not finite", "step "]),
])
def test_bad_options_end_in_one_line(world, tmp_path, extra, code, words):
    one_line(warm_run(pretrain(world, tmp_path / "out", *extra), check=False), code, *words)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean finetune_lora"):
        parse_command_line(["finetune_lroa"])


def test_bad_files_end_in_one_line_and_leave_no_run_folder(world, tmp_path):
    for name, text, words in (("cut", '{"question": "x', ["English.jsonl:1", "JSON"]),
                              ("keys", '{"question": "x"}', ["English.jsonl:1", "options"]),
                              ("answer", '{"question": "x", "options": {"A": "a", "B": "b"}, "answer_idx": "C", "rationale": ""}', ["English.jsonl:1", "C"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "English.jsonl").write_text(text + "\n")
        one_line(warm_run(finetune(world, tmp_path / "out", f"--data={tmp_path / name}"), check=False), 1, *words)
    writer = StreamWriter(tmp_path / "wrong", 340, "another tokenizer")
    writer.add([1, 5, 6, 2])
    writer.close()
    one_line(warm_run(pretrain(world, tmp_path / "out", f"--data={tmp_path}/wrong"), check=False), 1, "wrong", "tokenizer")
    for suffix in (".bin", ".idx", ".json"):
        (tmp_path / f"short{suffix}").write_bytes((world / f"en{suffix}").read_bytes())
    (tmp_path / "short.bin").write_bytes((world / "en.bin").read_bytes()[:-100])
    one_line(warm_run(pretrain(world, tmp_path / "out", f"--data={tmp_path}/short"), check=False), 1, "short.bin", "damaged")
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_overwritten_and_a_changed_one_is_not_resumed(world, uninterrupted):
    one_line(warm_run(pretrain(world, uninterrupted, "--resume=never"), check=False), 1, "holds a run already")
    (uninterrupted / "done.json").rename(uninterrupted / "done.away")
    try:
        one_line(warm_run(pretrain(world, uninterrupted, "--resume=auto", "--seed=2"), check=False), 1, "--seed=1", "now it is 2")
    finally:
        (uninterrupted / "done.away").rename(uninterrupted / "done.json")


def test_a_damaged_checkpoint_is_refused_by_name(world, tmp_path):
    out = tmp_path / "out"
    warm_run(pretrain(world, out))
    (out / "done.json").unlink()
    path = next((out / "checkpoints" / "step-10").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    one_line(warm_run(pretrain(world, out, "--resume=auto"), check=False), 1, path.name, "step-8")


def test_the_learning_rate_warms_up_and_follows_the_cosine():
    config = RECIPES["pretrain_mmedlm2"][1]
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert rates[9] == config.learning_rate == max(rates) and rates[0] == config.learning_rate / 10
    assert abs(rates[505] - config.learning_rate / 2) < 1e-7 and rates[-1] < 1e-3 * config.learning_rate
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    floored = [learning_rate(dataclasses.replace(config, min_lr_ratio=0.1), step, 1000) for step in range(1000)]
    assert floored[:10] == rates[:10] and abs(floored[505] - 0.55 * config.learning_rate) < 1e-7
    assert floored[-1] == min(floored[9:]) and abs(floored[-1] - 0.1 * config.learning_rate) < 1e-5 * config.learning_rate
    assert {learning_rate(dataclasses.replace(config, schedule="constant"), step, 1000) for step in range(9, 1000)} == {config.learning_rate}


def test_help_is_quick_and_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, mmed.train, mmed.config; print(mmed.config.help_text()); assert 'torch' not in sys.modules"],
                          capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 0 and "finetune_lora" in done.stdout and "--learning_rate" in done.stdout, done.stderr
