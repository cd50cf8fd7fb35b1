"""Training against transformers and PEFT: the same weights, batches and precision, in turn.

    python benchmarks/training/bench_train.py                                     random weights, a CPU
    python benchmarks/training/bench_train.py --rows full-fp32 --rounds 7
    python benchmarks/training/bench_train.py --model FOLDER --rows exam-lora --items MMedBench/Train \\
        --precision fp32 --forms ours,padded,flat
    python benchmarks/training/bench_train.py --model FOLDER --rows full-fp32 --data streams/en
    python benchmarks/training/bench_train.py --device cuda                       the published shapes

Rows (ROWS below: each is a configuration of mmed/train.py)
    full-bf16, full-fp32, lora   8 rows of 512 tokens of a 25 M Llama: random ones, or those of --data STREAM,
                                 whose documents are masked in every form
    exam-full, exam-lora         8 exam items a step, of --items or as long as MMedBench's; tokens of padding
                                 do not count
    memory-full, memory-lora     peak memory of two steps of 2,048 tokens with 92,544 words; memory-half with
                                 every second block recomputed, memory-state with the optimizer state in bf16
    internlm2-1.8b, ...          GPU, rows of 2,048; -documents: rows of packed documents
Forms
    ours     the loop's own functions; compiled on a GPU, as --compile=auto does
    plain    transformers' model (with PEFT's LoRA) in the loop that HF Trainer runs: autocast, sdpa,
             clipping, fused AdamW
    padded   the same on exam items, padded to the longest of the batch
    flat     the same on exam items without padding: DataCollatorWithFlattening
    NAME-compiled   the same with torch.compile

All forms train on the same batches first; one whose losses differ from ours is not timed. --apart (default on
a GPU and for memory) gives each form a process of its own: peak memory and MFU instead of ratios per round.
"""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import random
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from benchmarks.timing import chosen, clock, in_turn, machine, print_rates, seconds
from mmed import train
from mmed.checkpoints.pretrained import has_tokenizer
from mmed.config import SHAPES, TrainConfig
from mmed.data import Example, ExamRows, PretrainRows, Row, TokenStream, pack, stack
from mmed.model import ModelConfig
from mmed.prompts import read_benchmark
from mmed.tokenizer import load_tokenizer
from mmed.training.loader import Batch, make_batch, micro_batches, rank_share
from mmed.training.logging import peak_memory
from mmed.training.memory_estimate import flops_per_token, peak_flops
from mmed.training.optimizer import make_optimizer, update
from mmed.utils.errors import Parser

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}  # of losses, relative: products in another order
PAPER = 92544  # words of InternLM 2

CPU = TrainConfig(model="shape:25m", sequence_length=512, global_batch_size=8, learning_rate=1e-3,
                  weight_decay=0.0)
LORA = {"lora_rank": 16, "lora_dropout": 0.0, "lora_targets": "q_proj,v_proj"}
EXAM = {"task": "finetune", "sequence_length": 1024}
MEMORY = replace(CPU, global_batch_size=4, compile="no")
LEAN = {"optimizer_state_dtype": "bf16", "activation_checkpointing": "all"}
GPU = replace(CPU, sequence_length=2048, learning_rate=1e-4)
ROWS = {
    "full-bf16": CPU,
    "full-fp32": replace(CPU, precision="fp32"),
    "lora": replace(CPU, **LORA),
    "exam-full": replace(CPU, **EXAM),
    "exam-lora": replace(CPU, **EXAM, **LORA),
    "memory-full": MEMORY,
    "memory-half": replace(MEMORY, activation_checkpointing="half"),
    "memory-state": replace(MEMORY, optimizer_state_dtype="bf16"),
    "memory-lora": replace(MEMORY, **LORA),
    "internlm2-1.8b": replace(GPU, model="shape:internlm2-1.8b"),
    "internlm2-1.8b-documents": replace(GPU, model="shape:internlm2-1.8b", data="documents"),
    "internlm2-7b": replace(GPU, model="shape:internlm2-7b", **LEAN),
    "llama3-8b": replace(GPU, model="shape:llama3-8b", **LEAN),
    "llama3-8b-lora": replace(GPU, model="shape:llama3-8b", global_batch_size=4, **LORA),
}
CPU_ROWS = [name for name, config in ROWS.items() if config.sequence_length != GPU.sequence_length]
GPU_ROWS = [name for name in ROWS if name not in CPU_ROWS]


# ---------------------------------------------------------------------------------------------------- batches

@dataclasses.dataclass
class Work:
    """One row of the table: what is trained, and its batches in each form."""

    config: TrainConfig
    shape: ModelConfig
    device: torch.device
    ours: list[Batch]
    theirs: dict[str, list[dict]]  # name of the form -> arguments of transformers' forward pass
    counted: list[int]             # tokens of each batch that count
    note: str = ""


def make_work(name: str, options: argparse.Namespace) -> Work:
    config, device = ROWS[name], torch.device(options.device)
    given = {"model": options.model, "global_batch_size": options.batch, "precision": options.precision,
             "sequence_length": options.length, "data": options.data if config.task == "pretrain" else None}
    config = replace(config, **{field: value for field, value in given.items() if value})
    if options.model:
        config = replace(config, learning_rate=1e-5)
    shape = train.model_config(config, None)
    if name.startswith("memory") and not options.model:
        shape = replace(shape, vocab_size=PAPER)
    if config.task == "finetune":
        ours, theirs, counted, note = exam_batches(config, shape, options, device)
    else:
        ours, theirs, counted, note = token_batches(config, shape, options.batches, device)
    return Work(config, shape, device, ours, theirs, counted, note)


def token_batches(config: TrainConfig, shape: ModelConfig, count: int, device: torch.device):
    """Batches of `global_batch_size` rows of a stream, or random ones."""
    B, T = config.global_batch_size, config.sequence_length
    if config.data in ("", "documents"):
        batches = [random_rows(shape.vocab_size, B, T, bool(config.data), seed) for seed in range(count)]
    else:
        fingerprint = load_tokenizer(config.model).fingerprint if has_tokenizer(config.model) else None
        rows = PretrainRows([TokenStream(config.data, fingerprint)], T, seed=1)
        batches = [rows.rows(rows.batch(step, B)) for step in range(count)]
    theirs = []
    for rows in batches:
        arguments = {"input_ids": rows.input_ids, "labels": rows.labels, "shift_labels": rows.labels}
        if rows.document_ids.any():  # transformers masks by document where positions begin anew
            arguments["position_ids"] = rows.positions
        theirs.append({key: torch.from_numpy(array).to(device) for key, array in arguments.items()})
    counted = [int((rows.document_ids >= 0).sum()) for rows in batches]
    return [make_batch([rows], device) for rows in batches], {"plain": theirs}, counted, ""


def random_rows(vocabulary: int, B: int, T: int, documents: bool, seed: int) -> Row:
    """(B, T) tokens of a Zipf-like distribution, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.zipf(1.3, (B, T + 1)), vocabulary - 1).astype(np.int64)
    number = np.zeros((B, T), np.int64)
    if documents:  # of about 400 tokens
        number = np.cumsum(rng.random((B, T)) < 1 / 400, axis=1)
        number -= number[:, :1]
    positions = np.arange(T) - np.array([[np.argmax(row == k) for k in row] for row in number])
    return Row(ids[:, :-1].copy(), ids[:, 1:].copy(), number, positions)


def exam_batches(config: TrainConfig, shape: ModelConfig, options: argparse.Namespace,
                 device: torch.device):
    """Batches of `global_batch_size` exam items, with and without rationale."""
    B, T = config.global_batch_size, config.sequence_length
    if options.items:
        exam = ExamRows(read_benchmark(options.items), load_tokenizer(options.model), T, seed=1)
    else:
        exam = ExamRows.__new__(ExamRows)
        exam.T, exam.seed, exam.examples = T, 1, random_examples(B * options.batches, T, shape.vocab_size)
    groups = [exam.batch(step, B) for step in range(options.batches)]
    ours = [micro_batches(rows, rank_share(len(rows), 0, 1, B), device, flat=True)
            for rows in map(exam.rows, groups)]
    theirs = {"padded": [padded(group, device) for group in groups],
              "flat": [flattened(group, device) for group in groups]}
    counted = [sum(len(example.ids) - 1 for example in group) for group in groups]
    lengths = [len(example.ids) for group in groups for example in group]
    shares = [sum(counted) / sum(batch.positions for batch in ours)]
    shares += [sum(counted) / sum(batch["input_ids"].numel() for batch in form) for form in theirs.values()]
    return ours, theirs, counted, (
        f"{len(lengths)} items of {min(lengths)}-{max(lengths)} tokens; of the positions computed are no "
        f"padding: ours {shares[0]:.0%}, padded {shares[1]:.0%}, flat {shares[2]:.0%}")


def random_examples(count: int, longest: int, vocabulary: int) -> list[Example]:
    """As long as MMedBench's (docs/method.md, 2): question 76 tokens, options 40, instruction about 60, and
    in every second item a rationale of 210."""
    rng, zipf, examples = random.Random(5), np.random.default_rng(1), []
    for number in range(count):
        prompt = 60 + int(rng.lognormvariate(4.55, 0.6))
        target = 12 + (int(rng.lognormvariate(5.2, 0.55)) if number % 2 else 0)
        ids = np.minimum(zipf.zipf(1.3, min(prompt + target, longest)), vocabulary - 1)
        examples.append(Example(str(number), ids.tolist(), min(prompt, longest - 2)))
    return examples


def padded(examples: list[Example], device: torch.device) -> dict:
    """A row for each item, as long as the longest."""
    rows = stack([pack([example]) for example in examples], len(examples),
                 max(len(example.ids) for example in examples) - 1)
    arguments = {"input_ids": rows.input_ids, "attention_mask": (rows.document_ids >= 0).astype(np.int64),
                 "labels": rows.labels, "shift_labels": rows.labels}
    return {key: torch.from_numpy(array).to(device) for key, array in arguments.items()}


def flattened(examples: list[Example], device: torch.device) -> dict:
    """One row of all items, as transformers' padding-free collator makes it."""
    from transformers import DataCollatorWithFlattening

    features = [{"input_ids": list(example.ids),
                 "labels": [-100] * example.prompt_length + list(example.ids[example.prompt_length:])}
                for example in examples]
    return {key: value.to(device) for key, value in DataCollatorWithFlattening()(features).items()}


# ------------------------------------------------------------------------------------------------------ forms

def fill(model: torch.nn.Module, only: str = "") -> None:
    """The same random weights in every form: from generators seeded by the parameters' names, without what
    PEFT and transformers add to them. `only`: of the parameters with this in their names."""
    for name, p in model.named_parameters():
        for addition in ("base_model.model.", "model.", ".base_layer", ".default.weight"):
            name = name.replace(addition, "")
        if only not in name:
            continue
        generator = torch.Generator(p.device).manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            if "lora_B" in name:
                p.zero_()
            elif p.dim() == 1:
                p.fill_(1.0)
            else:
                p.copy_(torch.randn(p.shape, generator=generator, device=p.device) * 0.02)


def our_step(work: Work, form: str, compiled: bool) -> Callable[[], float]:
    config, device = work.config, work.device
    config = replace(config, compile="yes" if compiled or device.type == "cuda" else "no")
    model = train.build_model(config, work.shape, device)
    fill(model, "" if config.model.startswith("shape:") else "lora_")
    optimizer, batches = make_optimizer(model, config), itertools.cycle(work.ours)

    def autocast() -> contextlib.AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, config.precision == "bf16", cache_enabled=False)

    def step() -> float:
        batch = next(batches)
        loss = train.forward_backward(model, batch, 1 / batch.targets, autocast)
        update(model, optimizer, config.max_grad_norm, loss.double())
        return float(loss) / batch.targets

    return step


def their_model(work: Work) -> torch.nn.Module:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = work.config
    frozen = torch.bfloat16 if config.lora_rank and config.precision == "bf16" else torch.float32
    if config.model.startswith("shape:"):
        fields = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
        fields |= SHAPES[config.model.removeprefix("shape:")] | {"vocab_size": work.shape.vocab_size}
        with torch.device(work.device):
            model = transformers.LlamaForCausalLM._from_config(
                transformers.LlamaConfig(attn_implementation="sdpa", **fields), dtype=frozen)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            config.model, dtype=frozen, attn_implementation="sdpa").to(work.device)
    model.config.use_cache = False
    if config.activation_checkpointing == "all":
        model.gradient_checkpointing_enable()
    if config.lora_rank:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0,
            target_modules=config.lora_targets.split(",")))
    fill(model, "" if config.model.startswith("shape:") else "lora_")
    return model.train()


def their_step(work: Work, form: str, compiled: bool) -> Callable[[], float]:
    config, model = work.config, their_model(work)
    call = torch.compile(model) if compiled else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, betas=(0.9, config.beta2),
                                  weight_decay=config.weight_decay, fused=True)
    batches = itertools.cycle(work.theirs[form])

    def step() -> float:
        with torch.autocast(work.device.type, torch.bfloat16, config.precision == "bf16"):
            loss = call(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


FORMS = {"ours": our_step, "plain": their_step, "padded": their_step, "flat": their_step}


def make_step(work: Work, form: str) -> Callable[[], float]:
    name = form.removesuffix("-compiled")
    return FORMS[name](work, name, form != name)


def forms_of(work: Work, options: argparse.Namespace) -> list[str]:
    known = ["ours", *work.theirs]
    if not options.no_compile and work.config.compile != "no":  # on a GPU ours is compiled already
        known += [f"{form}-compiled" for form in known if form != "ours" or options.device == "cpu"]
    forms = [form for form in options.forms.split(",") if form in known] if options.forms else known
    if not forms:
        raise SystemExit(f"error: --forms {options.forms}: this row has {', '.join(known)}")
    return forms


# ------------------------------------------------------------------------------------------------- two tables

def apart(losses: list[float], reference: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(losses, reference, strict=True))


def row_in_turn(name: str, work: Work, options: argparse.Namespace) -> None:
    """All forms in this process. The first pass over the batches compares losses, and compiles."""
    steps = {form: make_step(work, form) for form in forms_of(work, options)}
    losses = {form: [step() for _ in work.counted] for form, step in steps.items()}
    reference = next(iter(losses.values()))
    for form, found in losses.items():
        different = apart(found, reference)
        print(f"  {form:16} losses {' '.join(f'{x:.5f}' for x in found)}, apart by {different:.1e}")
        if different > TOLERANCE[work.config.precision]:
            print("  not timed")
            del steps[form]
    times = in_turn(steps, max(options.rounds, len(work.counted)), clock(options.wall))
    print_rates(name, statistics.mean(work.counted), "tokens/s", times)


def measure(work: Work, form: str, rounds: int, wall: bool) -> dict:
    """One form in this process: losses, tokens per second and peak memory."""
    step, before = make_step(work, form), peak_memory(work.device)
    losses = [step() for _ in work.counted]
    times = [seconds(step, clock(wall)) for _ in range(rounds)]
    rate = statistics.mean(work.counted) / statistics.median(times) if times else 0.0
    return {"losses": losses, "rate": rate, "before": before, "peak": peak_memory(work.device)}


def row_apart(name: str, work: Work, options: argparse.Namespace) -> None:
    """Each form in a process of its own."""
    forms, found = forms_of(work, options), {}
    flops = flops_per_token(work.shape, work.config)
    top = peak_flops(torch.cuda.get_device_name()) if work.device.type == "cuda" else None
    for form in forms:
        command = [sys.executable, __file__, *sys.argv[1:], "--rows", name, "--forms", form, "--child"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [""])[-1][:160]
            print(f"  {form:16} {'out of memory' if 'OutOfMemory' in done.stderr else reason}", flush=True)
            continue
        found[form] = result = json.loads(done.stdout.splitlines()[-1])
        first = next(iter(found.values()))
        peak, before = result["peak"] / 2**20, result["before"] / 2**20
        cells = [f"peak {peak:,.0f} MiB", f"before the first step {before:,.0f}"]
        if top:
            cells.insert(0, f"MFU {flops * result['rate'] / top:.1%}")
        if result["rate"]:
            cells.insert(0, f"{result['rate']:12,.0f} tokens/s")
        if result is not first:
            cells.append(beside(next(iter(found)), first, result, TOLERANCE[work.config.precision]))
        print(f"  {form:16} {', '.join(cells)}", flush=True)


def beside(form: str, first: dict, result: dict, tolerance: float) -> str:
    """How the first form compares with another."""
    different = apart(result["losses"], first["losses"])
    if different > tolerance:
        return f"losses differ by {different:.1e}: not compared"
    above, below = (each["peak"] - each["before"] for each in (result, first))
    faster = f", is {first['rate'] / result['rate']:.2f}x as fast" if first["rate"] else ""
    return (f"{form} needs {result['peak'] / first['peak']:.2f}x less, and above what was there before "
            f"{above / max(1, below):.2f}x less{faster}")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", help="comma-separated; default: all for a CPU, or all for a GPU")
    parser.add_argument("--forms", help="comma-separated; default: all, the first is compared with the rest")
    parser.add_argument("--no_compile", action="store_true", help="leave the compiled forms out")
    parser.add_argument("--apart", action="store_true", help="each form in a process of its own")
    parser.add_argument("--model", help="model folder; default: random weights of the row's shape")
    parser.add_argument("--items", help="exam items in MMedBench's JSONL, a file or a folder; needs --model")
    parser.add_argument("--data", help="token stream for the rows that train on tokens")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: the row's")
    parser.add_argument("--batch", type=int, help="rows or exam items a step; default: the row's")
    parser.add_argument("--length", type=int, help="tokens of a row or an item at most; default: the row's")
    parser.add_argument("--batches", type=int, default=4, help="different batches, each used in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="by the clock, for an idle machine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.wall |= options.device != "cpu"
    if options.items and not options.model:
        parser.error("--items needs --model, whose tokenizer encodes them")
    torch.set_num_threads(options.threads)
    names = chosen(options.rows, ROWS, CPU_ROWS if options.device == "cpu" else GPU_ROWS)
    if options.child:
        rounds = 0 if names[0].startswith("memory") else options.rounds
        print(json.dumps(measure(make_work(names[0], options), options.forms, rounds, options.wall)))
        return
    print(f"{options.model or 'random weights'}, {options.threads} threads; {machine()}", flush=True)
    for name in names:
        work = make_work(name, options)
        print(f"{name}: {work.note}" if work.note else name, flush=True)
        separate = options.apart or options.device != "cpu" or name.startswith("memory")
        (row_apart if separate else row_in_turn)(name, work, options)
        torch.compiler.reset()


if __name__ == "__main__":
    main()
