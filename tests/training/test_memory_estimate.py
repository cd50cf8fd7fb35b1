"""The dry run: FLOPs, the decision to compile, and memory against what runs on a CPU really use."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from repository import ENV, ROOT

from mmed.config import SHAPES, TrainConfig
from mmed.data import Example, ExamRows
from mmed.model import ModelConfig
from mmed.training.memory_estimate import (
    Work,
    flops_per_step,
    flops_per_token,
    look_at_batches,
    peak_flops,
    worth_compiling,
)

SEVEN_B = ModelConfig(vocab_size=92544, **SHAPES["internlm2-7b"])


def test_flops_follow_the_formula_and_only_large_models_on_gpus_are_compiled():
    large = ModelConfig(vocab_size=8192, **SHAPES["25m"])
    config = TrainConfig(sequence_length=512, global_batch_size=8)
    weights = 8 * (4 * 384 * 384 + 3 * 384 * 1536) + 8192 * 384
    assert flops_per_token(large, config) == 6 * weights + 6 * 8 * 384 * 512
    assert not peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb")  # a part of a GPU has no MFU
    assert worth_compiling(config, SEVEN_B, torch.device("cuda"))
    assert not worth_compiling(config, large, torch.device("cuda"))
    assert not worth_compiling(config, SEVEN_B, torch.device("cpu"))
    assert worth_compiling(dataclasses.replace(config, compile="yes"), large, torch.device("cpu"))


def test_exam_items_count_with_their_real_lengths():
    rows = ExamRows.__new__(ExamRows)
    rows.T, rows.seed = 2048, 0
    rows.examples = [Example(str(i), list(range(101)), prompt_length=91) for i in range(8)]
    config = TrainConfig(task="finetune", global_batch_size=8, micro_batch_size=1, lora_rank=16)
    work, sizes = look_at_batches(rows, config, world_size=1, steps=2, end_to_end=True)
    assert work.targets == 80 and sizes.targets == 80 and work.context == 101
    assert 800 <= work.positions < 1000 and sizes.length < 1000  # one row of eight items, not 2048
    dense = flops_per_token(SEVEN_B, dataclasses.replace(config, sequence_length=101)) * work.positions
    head = 4 * SEVEN_B.vocab_size * SEVEN_B.hidden_size
    assert flops_per_step(SEVEN_B, config, work) == dense - head * (work.positions - 80)


def test_the_time_counts_what_checkpointing_computes_again():
    work = Work(positions=10, targets=10, context=512)
    none, half, every = (flops_per_step(SEVEN_B, TrainConfig(activation_checkpointing=which), work)
                         for which in ("no", "half", "all"))
    head = 2 * SEVEN_B.vocab_size * SEVEN_B.hidden_size * 10
    assert every - none == pytest.approx(2 * (half - none)) == pytest.approx(none / 3 - head)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    [],
    ["--activation_checkpointing=all"],
    ["--model=shape:10m", "--sequence_length=512", "--micro_batch_size=8"],
    ["--model=shape:25m", "--micro_batch_size=8", "--precision=bf16", "--lora_rank=16"],
    ["--model=shape:25m", "--micro_batch_size=8", "--optimizer_state_dtype=bf16"]])
def test_a_dry_run_predicts_the_memory_of_the_run(tmp_path, flags):
    flags = [*flags, "--global_batch_size=8"] if len(flags) > 1 else flags
    command = [sys.executable, "-m", "mmed.train", "tiny", "--compile=no", "--save_every=1000",
               "--async_save=false", f"--out={tmp_path / 'run'}", *flags]
    dry = [*command, "--dry_run"]
    done = subprocess.run(dry, env=ENV, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not (tmp_path / "run" / "run.json").exists() and "time" in done.stdout
    predicted = float(done.stdout.split("memory per rank")[1].split()[0])
    subprocess.run([*command, "--max_steps=2"], env=ENV, cwd=ROOT, capture_output=True, check=True)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert predicted == pytest.approx(last["memory_bytes"] / 1e9, rel=0.12), done.stdout
