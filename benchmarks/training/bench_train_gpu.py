"""Training on one GPU: models of the published shapes with random weights on random tokens; ours and
transformers in turn.

    python benchmarks/training/bench_train_gpu.py                                   all cases (about 10
    minutes on an H200)
    python benchmarks/training/bench_train_gpu.py --cases internlm2-1.8b --forms ours,eager,compiled
    python benchmarks/training/bench_train_gpu.py --device cpu --cases tiny         the smallest case, to see
    that it works

Cases
    internlm2-1.8b, internlm2-7b, llama3-8b   full training, rows of 2,048, bf16 with fp32 weights; the 7 B
    ones with the optimizer state
                                              in bf16 and the blocks recomputed
    llama3-8b-lora                            q and v, rank 16, bf16 base
Forms
    ours       this package's training step (mmed/train.py's own functions), compiled blocks
    documents  ours on rows of packed documents (masked), to be within a few percent of `ours`
    eager, compiled   transformers' model in the loop that Trainer runs (autocast, clipping, fused AdamW),
                      with PEFT for LoRA

MFU = (6 x matmul weights + 6 x layers x width x context) x tokens/s / 989e12, LoRA with 4 for the first 6;
beside it the share of this GPU's measured matmul peak. Each case and form runs in a process of its own, from
the same weights on the same rows (`documents` apart); the first losses are printed, and a peer whose losses
differ from ours is not compared. Peers that do not fit in memory are said so. Needs this checkout and a
python with torch, transformers and peft.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
import zlib

import numpy as np
import torch

from mmed.config import SHAPES, TrainConfig
from mmed.data import Row, stack
from mmed.model import ModelConfig
from mmed.train import forward_backward, skeleton
from mmed.training import memory_estimate
from mmed.training.distributed import checkpoint_blocks, compile_blocks
from mmed.training.loader import make_batch
from mmed.training.optimizer import make_optimizer, update

TOLERANCE = 5e-3  # of losses, relative: bf16 products in another order
LEAN = dict(optimizer_state_dtype="bf16", activation_checkpointing="all")
# case -> shape, vocabulary, rows a step, config
CASES = {
    "tiny": ("tiny", 1000, 2, {}),
    "tiny-lean": ("tiny", 1000, 2, LEAN),
    "tiny-lora": ("tiny", 1000, 2, dict(lora_rank=16, lora_dropout=0.0)),
    "internlm2-1.8b": ("internlm2-1.8b", 92544, 8, {}),
    "internlm2-7b": ("internlm2-7b", 92544, 8, LEAN),
    "llama3-8b": ("llama3-8b", 128256, 8, LEAN),
    "llama3-8b-lora": ("llama3-8b", 128256, 4, dict(lora_rank=16, lora_dropout=0.0)),
}


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of the best of a few large bf16 products on random data."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        settle(device)
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        settle(device)
        best = max(best, 10 * 2 * size ** 3 / (time.perf_counter() - begin))
    return best


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def fill(model: torch.nn.Module) -> None:
    """The same random weights for every form: each parameter's from a generator that is seeded by its name,
    without what wrappers add.
    """
    for name, p in model.named_parameters():
        name = name.removeprefix("base_model.model.").removeprefix("model.").replace(
            ".base_layer", "").replace(".default.weight", "")
        generator = torch.Generator(p.device).manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            if "lora_B" in name:
                p.zero_()
            elif p.dim() == 1:
                p.fill_(1.0)
            else:
                p.copy_(torch.randn(p.shape, generator=generator, device=p.device) * 0.02)


def rows(vocabulary: int, B: int, T: int, documents: bool) -> list:
    """B rows of random tokens; packed documents of a few hundred tokens, or none."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(B):
        ids = rng.integers(0, vocabulary, T + 1)
        number, place = np.zeros(T, np.int64), np.arange(T)
        if documents:
            borders = np.sort(rng.choice(np.arange(1, T), max(1, T // 400), replace=False))
            number = np.searchsorted(borders, np.arange(T), side="right")
            place = np.arange(T) - np.concatenate(([0], borders))[number]
        result.append(Row(ids[:-1], ids[1:], number, place))
    return result


def ours(case: str, device: torch.device, T: int, B: int, documents: bool):
    shape, vocabulary, _, changes = CASES[case]
    config = TrainConfig(sequence_length=T,
                         micro_batch_size=B,
                         global_batch_size=B,
                         precision="bf16",
                         learning_rate=1e-4,
                         **changes)
    model = skeleton(config, ModelConfig(vocab_size=vocabulary, **{"rms_norm_eps": 1e-5,
                                                                   **SHAPES[shape]})).to_empty(device=device)
    fill(model)
    checkpoint_blocks(model, config.activation_checkpointing)
    if device.type == "cuda":
        compile_blocks(model)
    optimizer = make_optimizer(model.train(), config)
    batch = make_batch([stack(rows(vocabulary, B, T, documents), B, T)], device, documents)

    def step() -> torch.Tensor:
        loss = forward_backward(model, batch, 1 / batch.targets,
                                lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=False))
        update(model, optimizer, 1.0, loss.double())
        return loss / batch.targets

    return step, memory_estimate.flops_per_token(model.config, config)


def theirs(case: str, device: torch.device, T: int, B: int, compiled: bool):
    import transformers

    shape, vocabulary, _, changes = CASES[case]
    lora = bool(changes.get("lora_rank"))
    with torch.device(device):
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            attn_implementation="sdpa",
            use_cache=False,
            **{"rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **SHAPES[shape]})
        model = transformers.LlamaForCausalLM._from_config(
            config, dtype=torch.bfloat16 if lora else torch.float32).train()
    if changes.get("activation_checkpointing") == "all":
        model.gradient_checkpointing_enable()
    if lora:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj",
                                                                                          "v_proj"]))
    fill(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    call = torch.compile(model) if compiled else model
    data = rows(vocabulary, B, T, False)
    ids, labels = (torch.stack([torch.from_numpy(getattr(r, name)) for r in data]).to(device)
                   for name in ("input_ids", "labels"))

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = call(input_ids=ids, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, None


def measure(case: str, form: str, options: argparse.Namespace) -> None:
    """One case and form; prints a JSON line."""
    device = torch.device(options.device)
    B, T = options.batch or CASES[case][2], options.context
    build = {
        "ours": lambda: ours(case, device, T, B, False), "documents": lambda: ours(case, device, T, B, True),
        "eager": lambda: theirs(case, device, T, B, False),
        "compiled": lambda: theirs(case, device, T, B, True)
    }
    step, flops = build[form]()
    losses = [float(step()) for _ in range(3)]  # the first compiles
    settle(device)
    times = []
    for _ in range(options.steps):
        begin = time.perf_counter()
        step()
        settle(device)
        times.append(time.perf_counter() - begin)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(
        json.dumps({
            "tokens_per_second": B * T / statistics.median(times), "flops": flops, "memory": memory,
            "losses": losses
        }))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases")
    parser.add_argument("--forms", default="ours,documents,eager,compiled")
    parser.add_argument("--context", type=int, help="tokens of a row (2,048; tiny: 128)")
    parser.add_argument("--batch", type=int, default=0, help="rows a step (0: the case's own)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and not options.cases:
        options.cases = "tiny,tiny-lean,tiny-lora"  # what a machine without a GPU can do in a minute
    cases = (options.cases or "internlm2-1.8b,internlm2-7b,llama3-8b,llama3-8b-lora").split(",")
    if options.one:
        case, _, form = options.one.partition("/")
        measure(case, form, options)
        return
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = matmul_peak(device)
    print(
        f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; bf16 matmul {peak / 1e12:.1f} "
        f"TFLOP/s",
        flush=True)
    for case in cases:
        if case not in CASES:
            sys.exit(f"--cases {case}: expected some of {', '.join(CASES)}")
        context = options.context or (128 if case.startswith("tiny") else 2048)
        found: dict[str, dict] = {}
        for form in options.forms.split(","):
            with contextlib.suppress(KeyboardInterrupt):
                done = subprocess.run([
                    sys.executable, __file__, "--one", f"{case}/{form}", "--device", options.device,
                    "--context",
                    str(context), "--batch",
                    str(options.batch), "--steps",
                    str(options.steps)
                ],
                                      capture_output=True,
                                      text=True,
                                      check=False)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1][:160] if done.stderr.strip() else ""
                print(
                    f"{case:16} {form:10} "
                    f"{'out of memory' if 'OutOfMemory' in done.stderr else 'failed: ' + last}",
                    flush=True)
                continue
            found[form] = result = json.loads(done.stdout.strip().splitlines()[-1])
            first = found.get("ours", result)
            apart = 0.0 if form == "documents" else max(
                abs(a / b - 1) for a, b in zip(result["losses"], first["losses"]))
            ratio = f"  ours is {first['tokens_per_second'] / result['tokens_per_second']:.2f}x"
            flops = (first["flops"] or 0) * result["tokens_per_second"]
            top = memory_estimate.peak_flops(name)
            print(
                f"{case:16} {form:10} {result['tokens_per_second']:10,.0f} tokens/s" +
                (f"  MFU {flops / top:.1%}" if top else "") +
                f"  {flops / peak:.1%} of the matmul peak  {result['memory'] / 2 ** 30:.1f} GiB  losses "
                f"{' '.join(f'{x:.4f}' for x in result['losses'])}"
                + ("" if form == "ours" else
                   ratio if apart <= TOLERANCE else f"  losses differ by {apart:.1e}: not compared"),
                flush=True)


if __name__ == "__main__":
    main()
