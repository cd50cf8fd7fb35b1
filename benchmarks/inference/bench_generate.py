"""Decoding and scoring against transformers: the same weights, prompts and new tokens, in turn.

    python benchmarks/inference/bench_generate.py                                all rows, random weights
    python benchmarks/inference/bench_generate.py --rows batch --rounds 5
    python benchmarks/inference/bench_generate.py --model FOLDER --threads 2     real weights and sentences
    python benchmarks/inference/bench_generate.py --model FOLDER --rows prompts --items MMedBench/Test
    python benchmarks/inference/bench_generate.py --device cuda                  8 B shape in bf16

Rows
    batch     as many prompts as a batch has, 1, 8 and 32, against the plain loop and `generate`
    prompts   --count prompts of mixed lengths, answers of mixed lengths, against batches and, on a CPU, one
              by one; on a GPU also against generate_batch, transformers' continuous batching
    scoring   log P of five strings a prompt, against lm-evaluation-harness's HF model on the same ids
    int8      int8 weights against the weights as they are, batch 1: tokens/s and what changes

Prompts are exam items (--items), lines of {"prompt": ...} (--prompts), medical sentences of six languages
(--model alone), or random ids of exam-like lengths (random weights). Both sides write the same number of
tokens, whatever they are: no token ends an answer.

Tokens or scores are compared first. A row is not timed if more than a tenth of the answers differ; the share
is printed, for in bf16, and rarely in fp32, two tokens are equally likely within rounding.
"""
from __future__ import annotations

import argparse
import copy
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.timing import chosen, clock, in_turn, machine, print_rates
from mmed.checkpoints.pretrained import load_pretrained
from mmed.config import SHAPES
from mmed.generate import encode_prompt, generate
from mmed.inference.option_scores import int8_difference, score_many
from mmed.languages import all_languages
from mmed.model import ModelConfig, Transformer
from mmed.prompts import build_prompt, read_benchmark
from mmed.utils.errors import Parser
from mmed.utils.files import read_jsonl

VOCABULARY = 8192  # of random weights
LONGEST = 700      # tokens of a random prompt
Rows = list[list[int]]


class Bench:
    """Our model and theirs with the same weights, and the prompts."""

    def __init__(self, options: argparse.Namespace):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.options, self.tokenizer = options, None
        self.gpu = options.device.startswith("cuda")
        dtype = torch.bfloat16 if self.gpu else torch.float32
        if options.model:
            self.ours, self.tokenizer = load_pretrained(options.model, dtype, options.device)
            self.theirs = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
        else:
            torch.manual_seed(0)
            shape = options.shape or ("llama3-8b" if self.gpu else "25m")
            fields = {"vocab_size": VOCABULARY} | SHAPES[shape] | {"max_position_embeddings": 4096}
            with torch.device(options.device):
                config = transformers.LlamaConfig(dtype=dtype, **fields)
                self.theirs = transformers.LlamaForCausalLM(config).to(dtype)
            with torch.device("meta"):
                self.ours = Transformer(ModelConfig(**fields)).eval()
            weights = {name.removeprefix("model."): value for name, value in self.theirs.state_dict().items()}
            self.ours.load_state_dict(weights, assign=True)  # the same memory
        self.theirs = self.theirs.to(options.device).eval()
        self.theirs.generation_config.eos_token_id = None
        self.theirs.generation_config.pad_token_id = 0

    def prompts(self, count: int, length: int | None = None) -> Rows:
        """`count` prompts; random ids are `length` long, or of exam-like lengths."""
        rng = random.Random(1)
        if self.tokenizer is None:
            lengths = [length or min(LONGEST, int(rng.lognormvariate(5.2, 0.4))) for _ in range(count)]
            return [[rng.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]
        if self.options.items:
            texts = [build_prompt(item, True) for item in read_benchmark(self.options.items)]
        elif self.options.prompts:
            texts = [line["prompt"] for _, line in read_jsonl(self.options.prompts)]
        else:
            texts = [language.medical_sentence for language in all_languages()]
        rng.shuffle(texts)
        return [encode_prompt(self.tokenizer, texts[number % len(texts)]) for number in range(count)]

    def generate_theirs(self, prompts: Rows, new: int) -> Rows:
        """transformers' generate on a left-padded batch."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = self.theirs.generate(ids.to(self.theirs.device), max_new_tokens=new, do_sample=False,
                                       attention_mask=mask.to(self.theirs.device))
        return out[:, longest:].tolist()

    def time(self, title: str, work: float, unit: str, forms: dict[str, Callable[[], object]]) -> None:
        times = in_turn(forms, self.options.rounds, clock(self.gpu or self.options.wall))
        print_rates(title, work, unit, times)


def agree(title: str, ours: Rows, theirs: Rows) -> bool:
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{title}: {same} of {len(ours)} answers equal", flush=True)
    if same < 0.9 * len(ours):
        print("  not timed")
    return same >= 0.9 * len(ours)


# ------------------------------------------------------------------------------------------------------- rows

def batch_row(bench: Bench) -> None:
    new = bench.options.new_tokens
    for size in bench.options.batches:
        prompts, title = bench.prompts(size, 64), f"batch {size}"
        forms = {"ours": lambda p=prompts, n=size: generate(bench.ours, p, new, max_batch_size=n),
                 "the plain loop": lambda p=prompts, n=size: generate(bench.ours, p, new, max_batch_size=n,
                                                                      engine_name="plain"),
                 "transformers": lambda p=prompts: bench.generate_theirs(p, new)}
        if agree(title, forms["ours"](), forms["transformers"]()):
            bench.time(title, size * new, "tokens/s", forms)


def prompts_row(bench: Bench) -> None:
    options, rng = bench.options, random.Random(2)
    prompts = bench.prompts(options.count)
    # logarithm of the answers' mean length: 37 tokens on a CPU, 67 on a GPU, which has time for more
    lengths = [min(400, max(4, int(rng.lognormvariate(4.2 if bench.gpu else 3.6, 0.6)))) for _ in prompts]

    def batches(size: int) -> Rows:
        """A batch runs until its longest answer is done, which is what padding to a batch means."""
        rows = []
        for start in range(0, len(prompts), size):
            part = lengths[start:start + size]
            found = bench.generate_theirs(prompts[start:start + size], max(part))
            rows += [row[:length] for row, length in zip(found, part)]
        return rows

    def continuous() -> object:  # it takes one limit for all
        import transformers

        limits = transformers.GenerationConfig(max_new_tokens=max(lengths), do_sample=False, pad_token_id=0,
                                               eos_token_id=-1)
        return bench.theirs.generate_batch(inputs=prompts, generation_config=limits)

    more = {} if options.batch_size is None else {"max_batch_size": options.batch_size}
    forms = {"ours": lambda: generate(bench.ours, prompts, lengths, **more)}
    forms |= {f"transformers, batches of {size}": lambda size=size: batches(size)
              for size in options.peer_batches or ([16, 64, 128] if bench.gpu else [16, 1])}
    if bench.gpu and hasattr(bench.theirs, "generate_batch"):
        forms["transformers, generate_batch"] = continuous
    title = (f"{len(prompts)} prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, "
             f"{sum(lengths):,} new")
    first_peer = list(forms)[1]
    if agree(title, forms["ours"](), forms[first_peer]()):
        bench.time("prompts", sum(lengths), "tokens/s", forms)


def scoring_row(bench: Bench) -> None:
    import tokenizers
    import transformers
    from lm_eval.models.huggingface import HFLM

    logging.disable(logging.WARNING)
    prompts = bench.prompts(bench.options.count)
    # as "###Answer: OPTION " A " IS CORRECT.": strings with a common beginning and end
    strings = [[11, 12, 13, 14, 15, letter, 16, 17, 18] for letter in range(65, 70)]
    words = tokenizers.models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0")
    stand_in = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words),
                                                    unk_token="0", eos_token="0")
    harness = HFLM(pretrained=bench.theirs, tokenizer=stand_in, backend="causal", batch_size=16,
                   max_length=4096)

    def theirs() -> list[float]:
        requests = [((str(i), str(j)), prompt, string) for i, prompt in enumerate(prompts)
                    for j, string in enumerate(strings)]
        return [float(score) for score, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]

    def ours() -> list[float]:
        return [score for row in score_many(bench.ours, prompts, [strings] * len(prompts)) for score in row]

    worst = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    print(f"scoring: {len(prompts)} prompts, {len(strings)} strings each; largest difference {worst:.1e}")
    if worst < 1e-2:
        bench.time("scoring", len(prompts), "prompts/s", {"ours": ours, "lm-evaluation-harness": theirs})


def int8_row(bench: Bench) -> None:
    prompts, new = bench.prompts(24), bench.options.new_tokens
    exact, int8 = bench.ours, copy.copy(bench.ours)
    print(int8_difference(int8, prompts))  # sets int8
    strings = [[1, letter, 2] for letter in range(65, 70)]

    def best(model: Transformer) -> list[int]:
        scores = score_many(model, prompts, [strings] * len(prompts))
        return [max(range(len(strings)), key=row.__getitem__) for row in scores]

    same = sum(a == b for a, b in zip(best(exact), best(int8), strict=True))
    print(f"int8: the likeliest of five strings is the same for {same} of {len(prompts)} prompts")
    bench.time("batch 1", new, "tokens/s",
               {"int8": lambda: generate(int8, prompts[:1], new, max_batch_size=1),
                "the weights as they are": lambda: generate(exact, prompts[:1], new, max_batch_size=1)})


ROWS: dict[str, Callable[[Bench], None]] = {
    "batch": batch_row, "prompts": prompts_row, "scoring": scoring_row, "int8": int8_row}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", help="comma-separated; default: all, on a GPU batch,prompts")
    parser.add_argument("--model", help="model folder; default: random weights")
    parser.add_argument("--items", help="exam items in MMedBench's JSONL, a file or a folder; needs --model")
    parser.add_argument("--prompts", help='JSONL with lines of {"prompt": ...}; needs --model')
    parser.add_argument("--shape", choices=sorted(SHAPES), help="of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="by the clock, for an idle machine")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32], help="of the row batch")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--count", type=int, default=200, help="prompts of the rows prompts and scoring")
    parser.add_argument("--batch_size", type=int, help="of the row prompts; default: the engine's")
    parser.add_argument("--peer_batches", type=numbers, help="of transformers, row prompts")
    options = parser.parse_args()
    if (options.items or options.prompts) and not options.model:
        parser.error("--items and --prompts need --model, whose tokenizer encodes them")
    torch.set_num_threads(options.threads)
    default = ["batch", "prompts"] if options.device.startswith("cuda") else list(ROWS)
    rows = chosen(options.rows, ROWS, default)
    print(f"{options.model or 'random weights'}, {options.threads} threads; {machine()}", flush=True)
    bench = Bench(options)
    for name in rows:
        ROWS[name](bench)


if __name__ == "__main__":
    main()
