"""Training against transformers and PEFT: the same weights, batches, precision and machine, in one process,
in turn.

    python benchmarks/training/bench_train.py                              all rows (some minutes)
    python benchmarks/training/bench_train.py --rows full-bf16 --rounds 7 --threads 1
    python benchmarks/training/bench_train.py --rows exam-full,exam-lora --data MMedBench/Train

Rows
    full-bf16, full-fp32   25 M Llama, 8 rows of 512; against transformers (sdpa, fused AdamW, clipping),
                           eager and torch.compile
    lora                   q and v, rank 16, bf16, the same rows; against PEFT, eager and compiled
    exam-full, exam-lora   exam items of mixed length, 8 a step; against what HF Trainer does: padded to the
                           batch's longest, head on
                           all positions. Counted are useful (not padding) tokens
    reading                windows/s of 2,048 tokens, in batches as tensors, against one .npy file a window;
                           memory for a stream ten times as long
    positions              trained positions per unique token of our rows and of the official windows, by
                           document length
    memory                 peak of a step with 92,544 words and 2,048 tokens, full and LoRA, in processes of
                           their own; full also with
                           every second block recomputed, and with the optimizer state in bf16
    where                  of our step, bf16, full and LoRA: how much of it are products of matrices,
                           attention, elementwise parts (profiler)

Every row trains all forms on the same batches first and shows that the losses agree; a row where they do not
is not timed. What is compared is CPU time of this process (wall time is printed beside it), medians over
rounds and the median paired ratio.
"""
from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mmed.config import SHAPES, TrainConfig
from mmed.data import Example, ExamRows, PretrainRows, rank_share
from mmed.lora import apply_lora, init_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.token_streams import StreamWriter, TokenStream
from mmed.train import forward_backward
from mmed.training.distributed import checkpoint_blocks, compile_blocks
from mmed.training.loader import make_batch, micro_batches
from mmed.training.logging import peak_memory as memory
from mmed.training.official_windows import OfficialWindows
from mmed.training.optimizer import make_optimizer, update

CPU = torch.device("cpu")
CHECKED = 3  # steps whose losses are compared
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}


# ------------------------------------------------------------------------------------------------------------

def our_model(shape: str, vocabulary: int, lora: bool, precision: str, state: dict | None) -> Transformer:
    model = Transformer(
        ModelConfig(vocab_size=vocabulary, max_position_embeddings=4096, rms_norm_eps=1e-6, **SHAPES[shape]))
    if state is not None:
        model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    else:
        model.init_weights(0)
    if lora:
        apply_lora(model, 16, 16, 0.0, "q_proj,v_proj")
        if precision == "bf16":
            for p in model.parameters():
                if not p.requires_grad:
                    p.data = p.data.bfloat16()
        init_lora(model, 0)
    return model.train()


class Ours:
    """The loop's own functions on rows of `batch`."""

    def __init__(self, model: Transformer, precision: str, compiled: bool, **lean):
        self.model, self.precision, self.flat = model, precision, False  # flat: exam rows end to end
        config = TrainConfig(learning_rate=1e-3, weight_decay=0.0, **lean)
        self.optimizer = make_optimizer(model, config)
        checkpoint_blocks(model, config.activation_checkpointing)
        if compiled:
            compile_blocks(model)

    def step(self, rows: list) -> float:
        batch = micro_batches(rows, rank_share(len(rows), 0, 1, 64), CPU, self.flat)
        autocast = (lambda: torch.autocast("cpu", torch.bfloat16)
                    ) if self.precision == "bf16" else contextlib.nullcontext
        loss = forward_backward(self.model, batch, 1 / batch.targets, autocast)
        update(self.model, self.optimizer, 1.0, loss.double())
        return float(loss) / batch.targets


# ------------------------------------------------------------------------------------------------------------

def their_model(shape: str, vocabulary: int):
    import transformers

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=vocabulary,
                                 max_position_embeddings=4096,
                                 attn_implementation="sdpa",
                                 rms_norm_eps=1e-6,
                                 use_cache=False,
                                 **SHAPES[shape])).train()


class Theirs:
    """transformers' model (with PEFT's LoRA) in the loop that Trainer runs: autocast, backward, clip, fused
    AdamW.
    """

    def __init__(self, model, lora: bool, precision: str, compiled: bool):
        if lora:
            import peft

            model = peft.get_peft_model(
                model,
                peft.LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]))
            if precision == "bf16":
                for p in model.parameters():
                    if not p.requires_grad:
                        p.data = p.data.bfloat16()
        self.model, self.precision = model, precision
        self.call = torch.compile(model) if compiled else model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained,
                                           lr=1e-3,
                                           weight_decay=0.0,
                                           fused=True,
                                           betas=(0.9, 0.999))

    def step(self, batch: dict) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.call(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def same_adapters(ours: Transformer, theirs) -> None:
    """Give PEFT's A matrices our values (B is zero in both)."""
    own = dict(ours.named_parameters())
    with torch.no_grad():
        for name, p in theirs.model.named_parameters():
            if "lora_" in name:
                p.copy_(own[name.removeprefix("base_model.model.model.").replace(".default.weight", "")])


# ------------------------------------------------------------------------------------------------------------

def in_turn(name: str, tokens: list[int], forms: dict, rounds: int) -> None:
    """`forms`: label -> one step on batch number i. First form is ours."""
    cpu: dict[str, list[float]] = {label: [] for label in forms}
    wall: dict[str, list[float]] = {label: [] for label in forms}
    for i in range(rounds):
        for label, step in forms.items():
            begin, clock = time.process_time(), time.perf_counter()
            step(i % len(tokens))
            cpu[label].append(time.process_time() - begin)
            wall[label].append(time.perf_counter() - clock)
    mean = statistics.mean(tokens)
    first = next(iter(forms))
    for label in forms:
        ratios = sorted(b / a for a, b in zip(cpu[first], cpu[label]))
        walls = statistics.median(b / a for a, b in zip(wall[first], wall[label]))
        print(
            f"  {label:34} {mean / statistics.median(cpu[label]):9.0f} tokens/s of CPU time, "
            f"{mean / statistics.median(wall[label]):9.0f} by the clock"
            +
            ("" if label == first else
             f"   ours is {statistics.median(ratios):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f}), clock "
             f"{walls:.2f}x"
             ),
            flush=True)


def losses_agree(name: str, forms: dict, batches: int, tolerance: float) -> bool:
    """Train every form on the first batches, from the same weights; print the losses."""
    losses = {label: [step(i % batches) for i in range(CHECKED)] for label, step in forms.items()}
    worst = max(abs(a - b) / b for label in forms for a, b in zip(losses[label], next(iter(losses.values()))))
    shown = "; ".join(f"{label} {' '.join(f'{x:.5f}' for x in values)}" for label, values in losses.items())
    print(f"{name}: losses of the first {CHECKED} steps: {shown}; largest difference {worst:.1e}", flush=True)
    if worst > tolerance:
        print(f"  more than {tolerance}: not timed")
    return worst <= tolerance


def plain_rows(vocabulary: int, B: int, T: int, batches: int) -> list[np.ndarray]:
    """Tokens of a Zipf-like distribution, so that there is something to learn: (B, T + 1) each."""
    rng = np.random.default_rng(0)
    return [np.minimum(rng.zipf(1.3, (B, T + 1)), vocabulary - 1).astype(np.int64) for _ in range(batches)]


def step_row(name: str, precision: str, lora: bool, options: argparse.Namespace) -> None:
    from mmed.data import Row

    T, B, vocabulary = options.context, options.batch, options.vocabulary
    data = plain_rows(vocabulary, B, T, 4)
    ours_in = [[Row(ids[:-1], ids[1:], np.zeros(T, np.int64), np.arange(T)) for ids in batch]
               for batch in data]
    theirs_in = [{
        "input_ids": torch.from_numpy(ids[:, :-1]), "shift_labels": torch.from_numpy(ids[:, 1:].copy()),
        "labels": torch.from_numpy(ids[:, 1:].copy())
    } for ids in data]
    peers = {f"{'PEFT' if lora else 'transformers'}, eager": False}
    if options.compiled:
        peers[f"{'PEFT' if lora else 'transformers'}, torch.compile"] = True
    state = their_model(options.shape, vocabulary).state_dict()
    ours = Ours(our_model(options.shape, vocabulary, lora, precision, state), precision, options.compiled)
    forms = {"ours": lambda i: ours.step(ours_in[i])}
    for label, compiled in peers.items():
        peer = Theirs(their_model(options.shape, vocabulary), lora, precision, compiled)
        if lora:
            same_adapters(our_model(options.shape, vocabulary, True, precision, state), peer)
        forms[label] = lambda i, peer=peer: peer.step(theirs_in[i])
    if losses_agree(name, forms, len(data), TOLERANCE[precision]):
        in_turn(name, [B * T] * len(data), forms, options.rounds)


def where_row(options: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity, profile

    from mmed.data import Row

    T, B = options.context, options.batch
    data = [[Row(ids[:-1], ids[1:], np.zeros(T, np.int64), np.arange(T)) for ids in batch]
            for batch in plain_rows(options.vocabulary, B, T, 2)]
    for lora in (False, True):
        ours = Ours(our_model(options.shape, options.vocabulary, lora, "bf16", None), "bf16",
                    options.compiled)
        for batch in data * 2:  # the first compiles
            ours.step(batch)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            ours.step(data[0])
        events = profiler.key_averages()
        whole = sum(event.self_cpu_time_total for event in events) / 1e6
        parts = {
            "products": sum(event.self_cpu_time_total for event in events
                            if event.key in ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")) / 1e6,
            "attention": sum(event.cpu_time_total
                             for event in events if event.key.startswith("mmed::document_attention")) / 1e6,
            "compiled elementwise": sum(event.self_cpu_time_total
                                        for event in events if "CompiledFxGraph" in event.key) / 1e6
        }
        print(f"where, {'LoRA' if lora else 'full'}: a step of {whole:.2f} s: " +
              ", ".join(f"{name} {s:.2f} s ({s / whole:.0%})" for name, s in parts.items()),
              flush=True)


def exam_examples(options: argparse.Namespace, count: int) -> list[Example]:
    """Prompts and targets as long as the benchmark's: from its files where given, else drawn (both settings
    of an item in turn).
    """
    rng = random.Random(5)
    if options.data:
        from mmed.prompts import build_prompt, build_target, read_benchmark

        pieces = []
        for item in rng.sample(list(read_benchmark(options.data)), count):
            mode = bool(item.rationale) and rng.random() < 0.5
            pieces.append((len(build_prompt(item, mode, "clean")) // 4,
                           max(2,
                               len(build_target(item, mode, "clean")) // 4)))
    else:  # METHOD 2: question 76 tokens, options 40, instruction about 60, rationale 210 on average
        pieces = [(60 + int(rng.lognormvariate(4.55, 0.6)),
                   12 + (int(rng.lognormvariate(5.2, 0.55)) if n % 2 else 0)) for n in range(count)]
        rng.shuffle(pieces)
    zipf = np.random.default_rng(1)
    return [
        Example(str(n),
                np.minimum(zipf.zipf(1.3, min(p + t, options.longest)), options.vocabulary - 1).tolist(),
                min(p, options.longest - 2)) for n, (p, t) in enumerate(pieces)
    ]


def exam_row(name: str, lora: bool, options: argparse.Namespace) -> None:
    examples = exam_examples(options, options.batch * 4)
    batches = [examples[i:i + options.batch] for i in range(0, len(examples), options.batch)]
    exam = ExamRows.__new__(ExamRows)
    exam.T = options.longest
    ours_in = [exam.rows(batch) for batch in batches]
    theirs_in = []
    for batch in batches:  # padded to the batch's longest, as DataCollatorForSeq2Seq does
        longest = max(len(e.ids) for e in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, e in enumerate(batch):
            ids[row, :len(e.ids)] = torch.tensor(e.ids)
            labels[row, e.prompt_length:len(e.ids)] = ids[row, e.prompt_length:len(e.ids)]
            mask[row, :len(e.ids)] = 1
        theirs_in.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    useful = [sum(len(e.ids) - 1 for e in batch) for batch in batches]
    computed = sum(micro_batches(rows, [[*range(len(rows))]], CPU, True).positions for rows in ours_in)
    print(
        f"{name}: {len(examples)} examples of "
        f"{min(len(e.ids) for e in examples)}-{max(len(e.ids) for e in examples)} tokens; of the positions "
        f"computed are useful: ours {sum(useful) / computed:.0%}, padded "
        f"{sum(useful) / sum(b['input_ids'].numel() for b in theirs_in):.0%}")
    state = their_model(options.shape, options.vocabulary).state_dict()
    ours = Ours(our_model(options.shape, options.vocabulary, lora, "bf16", state), "bf16", options.compiled)
    ours.flat = True
    peer = Theirs(their_model(options.shape, options.vocabulary), lora, "bf16", False)
    if lora:
        same_adapters(our_model(options.shape, options.vocabulary, True, "bf16", state), peer)
    forms = {"ours": lambda i: ours.step(ours_in[i]),
             f"HF Trainer's loop{' with PEFT' if lora else ''}, padded": lambda i: peer.step(theirs_in[i])}
    if losses_agree(name, forms, len(batches), TOLERANCE["bf16"]):
        for i in range(len(batches)):  # every shape once, so that nothing is compiled while the clock runs
            forms["ours"](i)
        in_turn(name, useful, forms, max(options.rounds, len(batches)))


def make_stream(folder: Path, documents: int, length: int) -> TokenStream:
    rng = np.random.default_rng(2)
    writer = StreamWriter(folder / f"s{documents}", 60000, "bench")
    for _ in range(documents):
        writer.add(rng.integers(3, 60000, max(8, int(rng.lognormal(np.log(length), 0.6)))))
    writer.close()
    return TokenStream(folder / f"s{documents}", "bench")


def reading_row(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = make_stream(folder, 2000, 1500)
        rows = PretrainRows([stream], 2048, seed=1)
        for i in range(1000):  # the official tokenizer step: a window a file, int64
            np.save(folder / f"w{i}.npy", rows.row(i).input_ids)
        files = sorted(folder.glob("w*.npy"))
        order = random.Random(0).sample(files, len(files))
        B = options.batch

        def theirs() -> None:  # labels are a copy (dataset.py), and a DataLoader stacks the batch
            for i in range(0, len(order), B):
                windows = [torch.from_numpy(np.load(path)) for path in order[i:i + B]]
                {
                    "input_ids": torch.stack(windows),
                    "labels": torch.stack([window.clone() for window in windows])
                }

        def ours() -> None:  # with documents, positions and where there is a loss, which theirs have not
            for i in range(0, len(order), B):
                make_batch([rows.rows(range(i, i + B))], CPU)

        ratios, rate = [], []
        for _ in range(max(options.rounds, 5)):
            times = []
            for run in (ours, theirs):
                begin = time.process_time()
                run()
                times.append(time.process_time() - begin)
            ratios.append(times[1] / times[0])
            rate.append(len(order) / times[0])
        print(
            f"reading: batches of {B}, {statistics.median(rate):,.0f} windows/s of CPU time, "
            f"{statistics.median(ratios):.1f}x "
            f"({min(ratios):.1f}-{max(ratios):.1f}) one file a window (files in the page cache)",
            flush=True)
        peaks = []
        for factor in (1, 10):
            make_stream(folder, 2000 * factor, 1500)
            code = (
                f"from mmed.data import *; s = TokenStream({str(folder / f's{2000 * factor}')!r}, 'bench')\n"
                "r = PretrainRows([s], 2048, seed=1)\nfor i in range(300): r.row(i)\n"
                "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])")
            peaks.append(
                int(
                    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                   check=True).stdout) / 1024)
        print(
            f"  peak memory of 300 windows of a stream, and of one ten times as long: {peaks[0]:.0f} and "
            f"{peaks[1]:.0f} MB"
        )


def positions_row(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        for length in (500, 1000, 2000, 5000, 20000):
            stream = make_stream(Path(name), max(400, 2_000_000 // length), length)
            ours = PretrainRows([stream], 2048, 1)
            official = PretrainRows([stream], 2048, 1, layout=OfficialWindows)
            print(
                f"positions: documents of about {length:6,} tokens: ours "
                f"{ours.rows_per_epoch * 2048 / stream.tokens:.5f} trained positions per "
                f"unique token, official windows {official.rows_per_epoch * 2048 / stream.tokens:.2f}")


# forms of the memory row: options of their own
LEAN = {
    "ours": {}, "half-again": {"activation_checkpointing": "half"},
    "bf16-state": {"optimizer_state_dtype": "bf16"}
}


def memory_step(form: str, lora: bool, options: argparse.Namespace) -> None:
    """Two steps with the large vocabulary; prints the peak in MB. Runs in a process of its own."""
    from mmed.data import Row

    vocabulary, T = 92544, options.context
    B = 2048 // T
    data = plain_rows(vocabulary, B, T, 2)
    if form != "theirs":
        model = Ours(our_model(options.shape, vocabulary, lora, "bf16", None), "bf16", False, **LEAN[form])
        inputs = [[Row(ids[:-1], ids[1:], np.zeros(T, np.int64), np.arange(T)) for ids in batch]
                  for batch in data]
    else:
        model = Theirs(their_model(options.shape, vocabulary), lora, "bf16", False)
        inputs = [{
            "input_ids": torch.from_numpy(ids[:, :-1]), "shift_labels": torch.from_numpy(ids[:, 1:].copy()),
            "labels": torch.from_numpy(ids[:, 1:].copy())
        } for ids in data]
    own = {
        name.removeprefix("base_model.model.").removeprefix("model.").replace(".base_layer", ""): p
        for name, p in model.model.named_parameters()
    }
    with torch.no_grad():
        for name in own:  # the same weights in both
            if own[name].dim() > 1 and "lora_" not in name:
                own[name].normal_(0, 0.02, generator=torch.Generator().manual_seed(sum(name.encode())))
    begin = memory(CPU) // 2 ** 20
    losses = [model.step(batch) for batch in inputs]
    print(begin, memory(CPU) // 2 ** 20, losses[0])


def memory_row(options: argparse.Namespace) -> None:
    for lora in (False, True):
        peaks = {}
        for form in ("theirs", "ours") if lora else ("theirs", *LEAN):
            command = [
                sys.executable, __file__, "--shape", options.shape, "--context",
                str(options.context), "--memory_step", f"{form}{'+lora' if lora else ''}"
            ]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            peaks[form] = (int(out[0]), int(out[1]))
            less = ""
            if form != "theirs":
                above, their_above = (peaks[name][1] - peaks[name][0] for name in (form, "theirs"))
                less = (f"; {peaks['theirs'][1] / peaks[form][1]:.2f}x less at the peak, "
                        f"{their_above / max(1, above):.2f}x above what was there before")
            print(
                f"memory, {'LoRA' if lora else 'full'}, {form:16} peak {out[1]} MB ({out[0]} before the "
                f"first step), first loss {float(out[2]):.4f}{less}",
                flush=True)


ROWS = ("full-bf16", "full-fp32", "lora", "exam-full", "exam-lora", "reading", "positions", "memory", "where")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--shape", default="25m", choices=sorted(SHAPES))
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--longest", type=int, default=1024, help="exam rows: tokens of a row at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no_compile",
                        dest="compiled",
                        action="store_false",
                        help="without torch.compile on either side")
    parser.add_argument("--data", help="exam files, for the lengths of real items")
    parser.add_argument("--memory_step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_step:
        form, _, lora = options.memory_step.partition("+")
        memory_step(form, bool(lora), options)
        return
    for name in options.rows.split(","):
        if name not in ROWS:
            sys.exit(f"--rows {name}: expected some of {', '.join(ROWS)}")
        if name.startswith(("full", "lora")):
            step_row(name, "fp32" if name == "full-fp32" else "bf16", name == "lora", options)
        elif name.startswith("exam"):
            exam_row(name, name == "exam-lora", options)
        else:
            {"reading": reading_row, "positions": positions_row, "memory": memory_row,
             "where": where_row}[name](options)
        torch.compiler.reset()


if __name__ == "__main__":
    main()
