"""What makes training quick and lean changes nothing else: lean AdamW, sharding, saves."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm_start import run as warm_run

from mmed.config import SHAPES, TrainConfig
from mmed.model import ModelConfig, Transformer
from mmed.training import memory_estimate
from mmed.training.optimizer import LeanAdamW, make_optimizer, stochastic_bf16, update

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# ---------------------------------------------------------------------------------------------------------- optimizer

def train_small(steps: int, **changes) -> list[float]:
    config = TrainConfig(learning_rate=3e-3, beta2=0.999, weight_decay=0.1, **changes)
    model = Transformer(ModelConfig(vocab_size=64, **{**SHAPES["tiny"], "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}))
    model.init_weights(0).train()
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 8, (4, 33), generator=generator).cumsum(1) % 64  # sums: something to learn
        loss = model(ids[:, :-1], ids[:, 1:])
        (loss / 128).backward()
        update(model, optimizer, 1.0, loss.detach())
        losses.append(float(loss) / 128)
    return losses


def test_lean_adamw_is_adamw_in_fp32_and_close_to_it_in_bf16_and_inside_the_backward_pass():
    plain = train_small(60)
    assert plain[-1] < 0.75 * plain[0]
    inside = train_small(60, step_in_backward=True)
    bf16 = train_small(60, moments="bf16")
    for name, losses, tolerance in (("in backward", inside, 0.05), ("bf16", bf16, 0.02)):
        worst = max(abs(a - b) / a for a, b in zip(plain, losses))
        assert worst < tolerance, (name, worst)
    assert train_small(60, moments="bf16") == bf16  # rounded at random, and the same every time


def test_one_step_of_lean_adamw_equals_torch(monkeypatch):
    monkeypatch.setattr("mmed.training.optimizer.PIECE", 13)
    torch.manual_seed(5)
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.1)
    pair = [torch.nn.Linear(7, 9) for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    groups = lambda m: [{"params": list(m.parameters()), "weight_decay": 0.1}]  # noqa: E731
    lean, plain = LeanAdamW(groups(pair[0]), config), torch.optim.AdamW(groups(pair[1]), lr=1e-2, betas=(0.9, config.beta2), fused=True)
    for _ in range(5):
        x = torch.randn(11, 7)
        for model, optimizer in zip(pair, (lean, plain)):
            model(x).pow(2).sum().backward()
            update(model, optimizer, 0.5, torch.zeros(()))
    for a, b in zip(pair[0].parameters(), pair[1].parameters()):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("lean", [False, True])
def test_an_update_is_adamw_behind_a_clipped_norm_with_decay_on_matrices_alone(lean):
    """Gradients far below and far above the limit: only those above are scaled, which AdamW notices in the steps after."""
    torch.manual_seed(2)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, TrainConfig(learning_rate=1e-2, weight_decay=0.5))
    if lean:
        optimizer = LeanAdamW([{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups],
                              TrainConfig(learning_rate=1e-2, weight_decay=0.5))
    matrices, vectors = ([p for p in theirs.parameters() if (p.dim() >= 2) == wide] for wide in (True, False))
    plain = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, TrainConfig().beta2))
    for size in (0.01, 50.0, 0.3, 3.0, 0.001):
        for p, q in zip(ours.parameters(), theirs.parameters()):
            p.grad = torch.randn_like(p) * size
            q.grad = p.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        plain.step()
        assert torch.allclose(update(ours, optimizer, 1.0, torch.zeros(())), norm)
        assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ours.parameters(), theirs.parameters())), size


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_changes_nothing(moments):
    model = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(model, TrainConfig(moments=moments))
    model(torch.ones(1, 3)).sum().backward()
    update(model, optimizer, 1.0, torch.zeros(()))
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.full((1, 3), torch.inf)).sum().backward()
    norm = update(model, optimizer, 1.0, torch.zeros(()))
    assert not torch.isfinite(norm) and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    model(torch.ones(1, 3)).sum().backward()
    update(model, optimizer, 1.0, torch.tensor(float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_random_rounding_keeps_the_mean():
    x = torch.full((200_000,), 1.0 + 1 / 1024)
    noise = torch.randint(0, 65536, x.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    rounded = stochastic_bf16(x, noise).float()
    assert set(rounded.tolist()) == {1.0, 1.0078125} and abs(float(rounded.mean() - x.mean())) < 5e-5
    assert torch.equal(stochastic_bf16(torch.tensor([0.5, -3.0, 0.0]), torch.tensor([65535] * 3, dtype=torch.int32)), torch.tensor([0.5, -3, 0]).bfloat16())


# ------------------------------------------------------------------------------------------------------------- whole runs

def run(out: Path, *flags: str, ranks: int = 1) -> subprocess.CompletedProcess:
    return warm_run(["tiny", f"--out={out}", "--max_steps=4", "--sequence_length=32", "--global_batch_size=8", "--micro_batch_size=2", *flags], ranks)


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in open(out / "metrics.jsonl")]


def test_a_profile_leaves_a_trace_and_the_log_says_how_long_it_takes(tmp_path):
    done = run(tmp_path / "run", "--profile=1")
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"] and "trace.json" in done.stderr
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert line["seconds_left"] > 0 and line["tokens_per_second"] > 0 and line["memory_bytes"] > 0


@pytest.mark.slow
def test_lean_training_resumes_to_the_same_bits(tmp_path):
    for flags in (["--moments=bf16"], ["--moments=bf16", "--step_in_backward=true", "--micro_batch_size=8"]):
        run(tmp_path / "whole", *flags, "--resume=never", "--save_every=2")
        (tmp_path / "half").mkdir()
        run(tmp_path / "half", *flags, "--resume=auto", "--save_every=2")
        checkpoints = tmp_path / "half" / "checkpoints"
        (tmp_path / "half" / "done.json").unlink()
        (checkpoints / "latest").write_text("step-2\n")
        run(tmp_path / "half", *flags, "--resume=auto", "--save_every=2")
        assert losses_of(tmp_path / "half") == losses_of(tmp_path / "whole")
        name = "model/model.safetensors"
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        for name in ("half", "whole"):
            subprocess.run(["rm", "-r", str(tmp_path / name)], check=True)


@pytest.mark.slow
def test_four_ranks_in_two_groups_give_the_losses_of_one(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "four", "--shard_size=2", "--micro_batch_size=1", ranks=4)
    assert all(abs(a - b) <= 1e-5 * a for a, b in zip(losses_of(tmp_path / "one"), losses_of(tmp_path / "four"), strict=True))


BYTES = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from mmed.training import distributed
from mmed.training.loader import micro_batches
from mmed.config import SHAPES, TrainConfig
from mmed.data import Example, pack
from mmed.model import ModelConfig, Transformer
from mmed.train import forward_backward
from mmed.training.loader import Batch
distributed.start()
class Count(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for kind, name, place in (("gather", "_allgather_base_", 0), ("reduce", "_reduce_scatter_base_", 1)):
            if name in str(func):
                seen[kind] += args[place].numel() * args[place].element_size()
        return func(*args, **(kwargs or {}))
seen = {}
model = Transformer(ModelConfig(vocab_size=128, **SHAPES["tiny"]))
block = sum(p.numel() for p in model.layers[0].parameters())
total = sum(p.numel() for p in model.parameters())
distributed.shard(model, "fp32")
model.init_weights(0)
for micros in (1, 3):
    seen.update(gather=0, reduce=0)
    ids = torch.randint(0, 128, (1, 16))
    with Count():
        forward_backward(model.train(), Batch([{"input_ids": ids, "labels": ids}] * micros, 16, 16), 1.0, __import__("contextlib").nullcontext)
    if distributed.is_main():
        print(micros, seen["gather"], seen["reduce"], block, total, len(model.layers))
distributed.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_gathered_and_reduced_are_those_of_the_formula(tmp_path, ranks):
    """Gathered, per micro-batch: every block twice (forward, backward) and the rest once; reduced, per step: the gradients once."""
    (tmp_path / "count.py").write_text(BYTES)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone", str(tmp_path / "count.py")],
                          env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.strip().splitlines():
        micros, gathered, reduced, block, total, layers = map(int, line.split())
        rest = total - layers * block
        assert reduced == 4 * total, line
        assert gathered == 4 * (2 * layers * block * micros + rest * micros), line


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_on_its_way_the_one_before_is_whole(tmp_path):
    """The thread is slowed down, so that the kill comes in the middle of its writing."""
    out = tmp_path / "run"
    slow = ("import mmed.checkpoints.training_state as c, time, sys; write = c.write_json\n"
            "def late(path, value):\n    if value['step'] > 2: print('writing', flush=True); time.sleep(30)\n    write(path, value)\n"
            "c.write_json = late\nfrom mmed.train import train; from mmed.config import parse_command_line as p; train(*p(sys.argv[1:]))")
    flags = ["tiny", f"--out={out}", "--max_steps=8", "--sequence_length=32", "--global_batch_size=8", "--save_every=2", "--resume=auto"]
    process = subprocess.Popen([sys.executable, "-c", slow, *flags], env=ENV, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "checkpoints" / "latest").read_text() == "step-2\n" and (out / "checkpoints" / "step-4.tmp").is_dir()
    warm_run(flags)
    run_whole = tmp_path / "whole"
    warm_run([*flags, f"--out={run_whole}"])
    assert losses_of(out) == losses_of(run_whole)


def test_compile_is_left_out_of_short_runs_and_the_flops_are_those_of_the_formula():
    cpu = torch.device("cpu")
    demo = ModelConfig(vocab_size=1800, **SHAPES["micro"])
    assert not memory_estimate.worth_compiling(TrainConfig(sequence_length=256, global_batch_size=32, precision="fp32"), demo, 1000, cpu)
    large = ModelConfig(vocab_size=8192, **SHAPES["25m"])
    config = TrainConfig(sequence_length=512, global_batch_size=8)
    assert memory_estimate.worth_compiling(config, large, 100_000, cpu) and not memory_estimate.worth_compiling(config, large, 10, cpu)
    weights = 8 * (4 * 384 * 384 + 3 * 384 * 1536) + 8192 * 384
    assert memory_estimate.flops_per_token(large, config) == 6 * weights + 6 * 8 * 384 * 512


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    [], ["--activation_checkpointing=all"], ["--model=shape:10m", "--sequence_length=512", "--micro_batch_size=8"],
    ["--model=shape:25m", "--sequence_length=256", "--micro_batch_size=8", "--precision=bf16", "--lora_rank=16"],
    ["--model=shape:25m", "--sequence_length=256", "--micro_batch_size=8", "--moments=bf16", "--step_in_backward=true"]])
def test_a_dry_run_foretells_the_memory_within_a_tenth(tmp_path, flags):
    common = [sys.executable, "-m", "mmed.train", "tiny", "--compile=no", "--save_every=1000", "--async_save=false", f"--out={tmp_path / 'run'}",
              *(flags + ["--global_batch_size=8"] if len(flags) > 1 else flags)]
    estimate = subprocess.run([*common, "--dry-run"], env=ENV, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert not (tmp_path / "run" / "run.json").exists() and "time" in estimate
    gigabytes = float(estimate.split("memory a rank")[1].split()[0])
    subprocess.run([*common, "--max_steps=2"], env=ENV, cwd=ROOT, capture_output=True, check=True, timeout=300)
    used = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["memory_bytes"] / 1e9
    assert abs(gigabytes - used) <= 0.1 * used, f"foretold {gigabytes} GB, used {used:.3f} GB\n{estimate}"
