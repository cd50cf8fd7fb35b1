"""Simulated ranks and the dry run, against FSDP's formulas and the memory of runs on a CPU."""
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from forked_runs import warm_run
from repository import ENV, ROOT
from tiny_world import pretrain

from mmed.config import RECIPES, SHAPES, TrainConfig, parse_command_line
from mmed.data import Example, ExamRows
from mmed.model import ModelConfig
from mmed.tokenizer import load_tokenizer
from mmed.train import model_config, simulated_step, skeleton
from mmed.training.loader import BatchSizes
from mmed.training.memory_estimate import (
    flops_per_step,
    flops_per_token,
    look_at_batches,
    peak_flops,
    worth_compiling,
)
from mmed.utils.errors import UsageError, UserError

FULL = dataclasses.replace(
    RECIPES["pretrain_mmedlm2"][1], model="shape:tiny", sequence_length=256, simulate_ranks=8,
    global_batch_size=32, micro_batch_size=4)
SEVEN_B = ModelConfig(vocab_size=92544, **SHAPES["internlm2-7b"])


def run(sizes=None, **changes):
    config = dataclasses.replace(FULL, **changes)
    return simulated_step(config, model_config(config, None), sizes)


def near(value):
    return pytest.approx(value, rel=0.02)


def test_traffic_and_states_are_those_of_fsdp():
    model = skeleton(FULL, model_config(FULL, None))
    parameters = sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.layers.parameters())
    memory, traffic = run()
    # the blocks are gathered for the forward and for the backward pass
    assert traffic["gathered"] == near(7 / 8 * 2 * (parameters + blocks))
    assert traffic["reduced"] == near(7 / 8 * 4 * parameters)
    assert memory["weights"] == near(4 * parameters / 8) and memory["optimizer state"] == near(parameters)
    _, three = run(global_batch_size=96)  # three micro-batches
    assert three["gathered"] == 3 * traffic["gathered"] and three["reduced"] == 3 * traffic["reduced"]
    memory, hybrid = run(global_batch_size=96, shard_size=4)  # between copies once a step
    assert hybrid["between copies"] == near(2 * 1 / 2 * 4 * parameters / 4)
    assert hybrid["reduced"] == near(3 * 3 / 4 * 4 * parameters)
    assert memory["weights"] == near(4 * parameters / 4)


@pytest.mark.parametrize("ranks", [1, 8])
def test_memory_follows_the_settings_of_the_run(ranks):
    def held(kind, sizes=None, **changes):
        settings = {"simulate_ranks": ranks, "activation_checkpointing": "no"} | changes
        return run(sizes, **settings)[0].get(kind, 0)

    half, none = (held("activations", activation_checkpointing=which) for which in ("half", "all"))
    assert held("activations") > 1.5 * half > 2 * none
    assert held("activations", BatchSizes(4, 128, 128, 1)) < 0.6 * held("activations")
    parameters = held("weights") / 4
    assert held("optimizer state", compile="yes", optimizer_state_dtype="bf16") == near(4 * parameters)
    assert held("gradients", lora_rank=16) < 0.2 * held("weights")
    assert held("weights", lora_rank=16) == pytest.approx(2 * parameters, rel=0.1)


def test_a_host_wait_is_reported_with_its_place_and_wrong_ranks_are_rejected(monkeypatch):
    def waits(model, batch, *_, **__):
        return model(**batch.micro[0]).item()

    with pytest.raises(UsageError, match="shard_size=3: must divide the number of ranks, 8"):
        run(shard_size=3)
    monkeypatch.setattr("mmed.train.forward_backward", waits)
    with pytest.raises(UserError, match=r"the host waits for the device at .*test_simulate.py:\d+: .*item"):
        run()


# ---------------------------------------------------------------------------------------------------- dry run

def test_flops_follow_the_formula_and_only_large_models_on_gpus_are_compiled():
    large = ModelConfig(vocab_size=8192, **SHAPES["25m"])
    config = TrainConfig(sequence_length=512, global_batch_size=8)
    weights = 8 * (4 * 384 * 384 + 3 * 384 * 1536) + 8192 * 384
    assert flops_per_token(large, config) == 6 * weights + 6 * 8 * 384 * 512
    sliding = dataclasses.replace(large, sliding_window=128, sliding_layers=(True, False) * 4)
    seen = 4 * 256 + 4 * (128 - 128 ** 2 / 1024)  # keys, on average, in all layers
    assert flops_per_token(sliding, config) == 6 * weights + 12 * 384 * seen
    assert not peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb")  # a part of a GPU has no MFU
    assert worth_compiling(config, SEVEN_B, torch.device("cuda"))
    assert not worth_compiling(config, large, torch.device("cuda"))
    assert not worth_compiling(config, SEVEN_B, torch.device("cpu"))
    assert worth_compiling(dataclasses.replace(config, compile="yes"), large, torch.device("cpu"))


def test_exam_items_count_with_their_real_lengths_and_recomputed_blocks_with_their_time():
    rows = ExamRows.__new__(ExamRows)
    rows.T, rows.seed = 2048, 0
    rows.examples = [Example(str(i), list(range(101)), prompt_length=91) for i in range(8)]
    config = TrainConfig(task="finetune", global_batch_size=8, micro_batch_size=1, lora_rank=16)
    sizes = look_at_batches(rows, config, 1, 2, True)
    assert sizes.targets == 80 and sizes.loss_positions == 80 and sizes.context == 101
    assert 800 <= sizes.positions < 1000 and sizes.length < 1000  # one row of eight items, not 2048
    three = look_at_batches(rows, config, 3, 2, False)  # one row: two ranks compute padding
    assert (three.micro_batches, three.rows, three.targets, three.positions) == (1, 1, 80, 3 * three.length)
    dense = flops_per_token(SEVEN_B, dataclasses.replace(config, sequence_length=101)) * sizes.positions
    head = SEVEN_B.vocab_size * SEVEN_B.hidden_size
    assert flops_per_step(SEVEN_B, config, sizes) == dense - 4 * head * (sizes.positions - 80)
    sizes = dataclasses.replace(sizes, positions=10, targets=10, context=512)
    none, half, every = (flops_per_step(SEVEN_B, TrainConfig(activation_checkpointing=which), sizes)
                         for which in ("no", "half", "all"))
    assert every - none == pytest.approx(2 * (half - none)) == pytest.approx(none / 3 - 2 * head * 10)


def test_a_checkpoint_is_copied_by_shards_and_a_tokenizer_gives_the_vocabulary(world):
    arguments = pretrain(world, "out", "--model=shape:25m", f"--tokenizer={world}/tokenizer",
                         "--simulate_ranks=8", "--shard_size=4")
    config = parse_command_line(arguments)[1]
    model = skeleton(config, model_config(config, load_tokenizer(config.tokenizer)))
    shard = sum(p.nbytes for p in model.parameters()) / 4 / 1e9
    for extra in ([], ["--dry_run"]):
        text = warm_run([*arguments, *extra]).stderr
        assert float(text.split("weights")[1].split()[0]) == near(shard)
    assert float(text.split("host memory")[1].split()[0]) == near(3 * shard)  # and AdamW's two averages


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    [],
    ["--activation_checkpointing=all"],
    ["--model=shape:10m", "--sequence_length=512", "--micro_batch_size=8"],
    ["--model=shape:25m", "--micro_batch_size=8", "--precision=bf16", "--lora_rank=16"],
    ["--model=shape:25m", "--micro_batch_size=8", "--optimizer_state_dtype=bf16"]])
def test_a_dry_run_predicts_the_memory_of_the_run(tmp_path, flags):
    flags = [*flags, "--global_batch_size=8"] if len(flags) > 1 else flags
    command = [sys.executable, "-m", "mmed.train", "tiny", "--compile=no", "--save_every=0",
               "--async_save=false", f"--out={tmp_path / 'run'}", *flags]
    dry = [*command, "--dry_run"]
    done = subprocess.run(dry, env=ENV, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not (tmp_path / "run" / "run.json").exists() and "time" in done.stdout
    predicted = float(done.stdout.split("memory per rank")[1].split()[0])
    subprocess.run([*command, "--max_steps=2"], env=ENV, cwd=ROOT, capture_output=True, check=True)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert predicted == pytest.approx(last["memory_bytes"] / 1e9, rel=0.12), done.stdout
