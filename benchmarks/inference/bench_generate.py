"""Decoding and scoring against transformers: the same weights, prompts and new tokens, in turn, on one
machine.

    python benchmarks/inference/bench_generate.py                         all rows (minutes)
    python benchmarks/inference/bench_generate.py --rows equal --rounds 5
    python benchmarks/inference/bench_generate.py --rows ragged --data MMedBench/Test     real exam prompts
    python benchmarks/inference/bench_generate.py --device cuda           8 B shape in bf16 (needs the
    checkout, torch and transformers only)

Rows
    equal     25 M Llama, 64 prompt + 128 new tokens, batch 1, 8 and 32, against the plain loop and `generate`
              with both caches
    ragged    exam prompts of mixed lengths, answers of mixed lengths, against batches of 16 and the official
              loop (batch 1)
    scoring   log P of five answer strings a question, against lm-evaluation-harness's HF model on the same
              ids, batches of 16
    int8      int8 weights against fp32, batch 1: tokens/s and what changes
    where     where the time of a step and of a prompt goes: products, attention, all else (by torch's
              profiler, which costs a little itself)
    memory    peak resident memory over --prompts short prompts (10,000 by default), printed every tenth of
              them
    GPU       with --device cuda: `one` batch 1 against the bandwidth roof, `many` mixed prompts by batch size
              against generate at
              its best batch and, where transformers has it, generate_batch (its continuous batching). On a
              CPU: --device cpu --rows one,many

Every row checks first that the fp32 tokens (or scores) are the same; a row where they are not is printed as
such and not timed (`ragged` compares what the timed runs wrote; in bf16 the share of equal rows is printed).
Rounds alternate ours and theirs; on a CPU what is compared is CPU time of this process, which another job on
the machine disturbs less than the clock, and the median of the paired ratios. The prompts that are not real
are random.
"""
from __future__ import annotations

import argparse
import logging
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from mmed.config import SHAPES
from mmed.generate import generate
from mmed.inference.decoder import Segment, decoder_for
from mmed.inference.option_scores import int8_difference, score_many
from mmed.model import ModelConfig, Transformer
from mmed.prompts import build_prompt, read_benchmark

VOCAB = 8192


def pair(shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """(ours, theirs) with the same random weights; on a GPU in the same memory."""
    import transformers

    torch.manual_seed(0)
    fields = dict(vocab_size=VOCAB) | SHAPES[shape] | dict(max_position_embeddings=4096)
    with torch.device(device):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(dtype=dtype,
                                                                        **fields)).to(dtype).eval()
        theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id = None, 0
    with torch.device("meta"):
        ours = Transformer(ModelConfig(**fields)).eval()
    ours.load_state_dict({name.removeprefix("model."): value
                          for name, value in theirs.state_dict().items()},
                         assign=True)
    return ours, theirs


def in_turn(name: str, work: float, unit: str, ours: Callable[[], object],
            others: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time ours and each other in turn, `rounds` times; print medians and the median ratio to each."""
    times: dict[str, list[float]] = {label: [] for label in ("ours", *others)}
    for _ in range(rounds):
        for label, run in (("ours", ours), *others.items()):
            times[label].append(seconds(run))
    print(f"{name:28} ours {work / statistics.median(times['ours']):9.1f} {unit}")
    for label in others:
        ratios = sorted(theirs / mine for theirs, mine in zip(times[label], times["ours"]))
        print(
            f"  {label:26} {work / statistics.median(times[label]):14.1f} {unit}   ours is "
            f"{statistics.median(ratios):.2f}x "
            f"({ratios[0]:.2f}-{ratios[-1]:.2f})")


def seconds(run: Callable[[], object]) -> float:
    """CPU time of this process, or with a GPU the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def hf_generate(model, prompts: list[list[int]], new: int, **more) -> list[list[int]]:
    """transformers' generate on a left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts],
                        device=model.device)
    with torch.inference_mode():
        out = model.generate(ids,
                             attention_mask=mask,
                             max_new_tokens=new,
                             min_new_tokens=new,
                             do_sample=False,
                             **more)
    return out[:, longest:].tolist()


def equal_row(ours, theirs, options: argparse.Namespace) -> None:
    rng, new = random.Random(1), options.new_tokens
    for batch in options.batches:
        prompts = [[rng.randrange(1, VOCAB) for _ in range(64)] for _ in range(batch)]
        if generate(ours, prompts, new, max_batch_size=batch) != hf_generate(theirs, prompts, new):
            print(f"batch {batch}: tokens differ from transformers': not timed")
            continue
        in_turn(f"equal, batch {batch}",
                batch * new,
                "tokens/s",
                lambda p=prompts, b=batch: generate(ours, p, new, max_batch_size=b), {
                    "the plain loop": lambda p=prompts, b=batch: generate(
                        ours, p, new, max_batch_size=b, engine_name="plain"),
                    "transformers, dynamic cache": lambda p=prompts: hf_generate(theirs, p, new),
                    "transformers, static cache": lambda p=prompts: hf_generate(
                        theirs, p, new, cache_implementation="static")
                },
                options.rounds)


def exam_prompts(options: argparse.Namespace, rng: random.Random) -> list[list[int]]:
    """Real prompts where a benchmark is given (bytes in blocks stand in for a tokenizer), else random ones of
    exam-like length.
    """
    if options.data:
        items = read_benchmark(options.data)
        return [[1 + hash_block(text[i:i + 4]) for i in range(0, len(text), 4)]
                for text in (build_prompt(item, True)
                             for item in rng.sample(items, min(options.prompts, len(items))))]
    return [[rng.randrange(1, VOCAB) for _ in range(min(700, int(rng.lognormvariate(5.2, 0.4))))]
            for _ in range(options.prompts)]


def hash_block(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % (VOCAB - 1)


def ragged_row(ours, theirs, options: argparse.Namespace) -> None:
    rng = random.Random(2)
    prompts = exam_prompts(options, rng)
    lengths = [min(200, max(4, int(rng.lognormvariate(3.6, 0.6)))) for _ in prompts]
    useful = sum(lengths)

    def batches(size: int) -> list[list[int]]:
        """A batch runs until its longest answer is done, which is what padding to a batch means."""
        rows = []
        for start in range(0, len(prompts), size):
            part = lengths[start:start + size]
            rows += [
                row[:n] for row, n in zip(hf_generate(theirs, prompts[start:start + size], max(part)), part)
            ]
        return rows

    # what the timed runs wrote: 200 prompts one by one are not run once more to compare
    kept: dict[str, list[list[int]]] = {}

    def keep(name: str, rows: list[list[int]]) -> None:
        kept[name] = rows

    print(
        f"ragged: {len(prompts)} prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, "
        f"{useful:,} new tokens",
        flush=True)
    generate(ours, prompts[:32], 2)  # laid out
    in_turn(
        "ragged", useful, "tokens/s", lambda: keep("ours", generate(ours, prompts, lengths)), {
            "transformers, batches of 16": lambda: keep("16", batches(16)),
            "transformers, one by one": lambda: keep("1", batches(1))
        }, options.rounds)
    for name in ("1", "16"):
        print(
            f"ragged: equal to transformers' in batches of {name}: "
            f"{sum(a == b for a, b in zip(kept['ours'], kept[name]))} of {len(prompts)}"
        )


def scoring_row(ours, theirs, options: argparse.Namespace) -> None:
    import tokenizers
    import transformers
    from lm_eval.models.huggingface import HFLM

    logging.disable(logging.WARNING)
    rng = random.Random(3)
    prompts = exam_prompts(options, rng)
    head, tail = [rng.randrange(1, VOCAB) for _ in range(5)], [rng.randrange(1, VOCAB) for _ in range(4)]
    strings = [[*head, letter, *tail] for letter in range(65, 70)]  # as "###Answer: OPTION " A " IS CORRECT."
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i
                                                              for i in range(VOCAB)}, unk_token="0"))
    harness = HFLM(pretrained=theirs,
                   tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words,
                                                                  unk_token="0",
                                                                  eos_token="0"),
                   backend="causal",
                   batch_size=16,
                   max_length=4096)

    def peer() -> list[list[float]]:
        requests = [((str(i), str(j)), prompt, string) for i, prompt in enumerate(prompts)
                    for j, string in enumerate(strings)]
        flat = [float(score) for score, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]
        return [flat[i:i + len(strings)] for i in range(0, len(flat), len(strings))]

    mine, other = score_many(ours, prompts, [strings] * len(prompts)), peer()
    worst = max(abs(a - b) for x, y in zip(mine, other) for a, b in zip(x, y))
    print(
        f"scoring: {len(prompts)} prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, "
        f"{len(strings)} strings each; largest "
        f"difference of a score: {worst:.1e}")
    if worst < 1e-2:
        in_turn("scoring", len(prompts), "items/s",
                lambda: score_many(ours, prompts, [strings] * len(prompts)),
                {"lm-evaluation-harness, HF": peer}, options.rounds)


def int8_row(ours, theirs, options: argparse.Namespace) -> None:
    prompts = exam_prompts(options, random.Random(4))[:24]
    print(int8_difference(ours, prompts))
    strings = [[1, letter, 2] for letter in range(65, 70)]
    best = []
    for int8 in (False, True):
        ours.int8 = int8
        best.append([
            max(range(5), key=row.__getitem__) for row in score_many(ours, prompts, [strings] * len(prompts))
        ])
    print(
        f"int8: the likeliest of five options is the same for {sum(a == b for a, b in zip(*best))} of "
        f"{len(prompts)} items"
    )
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.rounds):
        for int8 in times:
            ours.int8 = int8
            generate(ours, [prompts[0]], 2, max_batch_size=1)  # laid out
            times[int8].append(
                seconds(lambda: generate(ours, [prompts[0]], options.new_tokens, max_batch_size=1)))
    ours.int8 = False
    print(
        f"int8, batch 1: {options.new_tokens / statistics.median(times[True]):.1f} tokens/s, "
        f"{statistics.median(a / b for a, b in zip(times[False], times[True])):.2f}x the weights as they are")


def where_row(ours, theirs, options: argparse.Namespace) -> None:
    prompt = [random.Random(6).randrange(1, VOCAB) for _ in range(320)]
    for batch in options.batches:
        with torch.inference_mode():
            decoder = decoder_for(ours)
            cache = decoder.make_cache(batch, 512)
            step, fill = partial(decoder.decode_step, cache, [5] * batch,
                                 [128] * batch), partial(decoder.prefill, cache, [Segment(0, 0, prompt)])
            shares(f"step of batch {batch}", lambda step=step: step().argmax(-1))
            shares(f"prompt of 320 tokens, laid out for {batch}", fill)


def shares(name: str, work: Callable[[], object]) -> None:
    work()
    times = [seconds(work) for _ in range(10)]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(10):
            work()
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    products, attention = (sum(spent.get(key, 0) for key in keys) / sum(spent.values())
                           for keys in (("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
                                        ("aten::_scaled_dot_product_flash_attention_for_cpu", )))
    print(
        f"{name}: {statistics.median(times) * 1e3:.1f} ms; products {products:.0%}, attention {attention:.0%}"
    )


def memory_row(ours, theirs, options: argparse.Namespace) -> None:
    """Rounds as an evaluation makes them; what grows with the number of prompts would show."""
    rng, count = random.Random(5), options.prompts if options.prompts != 200 else 10_000
    small = Transformer(ModelConfig(vocab_size=VOCAB, max_position_embeddings=4096,
                                    **SHAPES["micro"])).init_weights(0).eval()
    peaks, done = [], 0
    while done < count:
        part = [[rng.randrange(1, VOCAB) for _ in range(rng.randint(8, 64))]
                for _ in range(min(256, count - done))]
        generate(small, part, [rng.randint(1, 8) for _ in part], max_batch_size=32)
        score_many(small, part[:32], [[[1, 2], [1, 3]]] * len(part[:32]))
        done += len(part)
        if done * 10 // count > len(peaks):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            print(f"memory: {done:6,} prompts, peak resident {peaks[-1]:.0f} MiB", flush=True)
    print(f"memory: {peaks[-1] / peaks[0]:.3f} times the first tenth's peak")


# ------------------------------------------------------------------------------------------------------------

def one_row(ours, theirs, options: argparse.Namespace) -> None:
    prompts, new = [[random.Random(1).randrange(1, VOCAB) for _ in range(64)]], options.new_tokens
    generate(ours, prompts, 8, max_batch_size=1)  # compiles and captures
    agree(generate(ours, prompts, new, max_batch_size=1), hf_generate(theirs, prompts, new))
    in_turn("batch 1", new, "tokens/s", lambda: generate(ours, prompts, new, max_batch_size=1),
            {"transformers, dynamic cache": lambda: hf_generate(theirs, prompts, new)}, options.rounds)
    weights = sum(p.numel() * p.element_size() for name, p in ours.named_parameters()
                  if name != "embed_tokens.weight")
    took = statistics.median(
        seconds(lambda: generate(ours, prompts, new, max_batch_size=1)) -
        seconds(lambda: generate(ours, prompts, 1, max_batch_size=1))
        for _ in range(options.rounds)) / (new - 1)
    print(
        f"batch 1: a step {took * 1e3:.2f} ms = {weights / took / 1e12:.2f} TB/s of weights; "
        f"{weights / took / 1e12 / options.roof:.0%} of "
        f"{options.roof} TB/s (--roof)")


def many_row(ours, theirs, options: argparse.Namespace) -> None:
    rng = random.Random(2)
    prompts = exam_prompts(options, rng)
    lengths = [min(400, max(4, int(rng.lognormvariate(4.2, 0.6)))) for _ in prompts]
    useful = sum(lengths)

    def batches(size: int) -> list[list[int]]:
        rows = []
        for start in range(0, len(prompts), size):
            part = lengths[start:start + size]
            rows += [
                row[:n] for row, n in zip(hf_generate(theirs, prompts[start:start + size], max(part)), part)
            ]
        return rows

    peers: dict[str, Callable[[], object]] = {
        f"transformers, batches of {size}": lambda size=size: batches(size)
        for size in options.peer_batches
    }
    if hasattr(theirs, "generate_batch") and ours.embed_tokens.weight.is_cuda:
        import transformers

        def continuous() -> object:  # it takes one limit for all, so it stops where the longest answer does
            config = transformers.GenerationConfig(max_new_tokens=max(lengths),
                                                   do_sample=False,
                                                   pad_token_id=0,
                                                   eos_token_id=-1)
            return theirs.generate_batch(inputs=prompts, generation_config=config)
        peers["transformers, generate_batch"] = continuous
    for size in options.batch_sizes:
        mine = generate(ours, prompts, lengths, max_batch_size=size)  # compiles and captures
        print(
            f"many: {len(prompts)} prompts of {min(map(len, prompts))}-{max(map(len, prompts))} tokens, "
            f"{useful:,} new, batch size {size}"
        )
        if size == options.batch_sizes[0]:
            agree(mine, batches(options.peer_batches[0]))
        in_turn(f"many, batch size {size}",
                useful,
                "tokens/s",
                lambda s=size: generate(ours, prompts, lengths, max_batch_size=s),
                peers if size == options.batch_sizes[-1] else {},
                options.rounds)


def agree(mine: list[list[int]], other: list[list[int]]) -> None:
    print(f"equal rows: {sum(a == b for a, b in zip(mine, other))} of {len(mine)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows",
                        help="default: equal,ragged,scoring,int8,where,memory; with --device cuda: one,many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default 25m; with --device cuda llama3-8b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32])
    parser.add_argument("--batch_sizes", type=numbers, default=[64, 128, 256], help="of the row `many`")
    parser.add_argument("--peer_batches", type=numbers, default=[16, 64, 128], help="of the row `many`")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--roof",
                        type=float,
                        default=4.3,
                        metavar="TB/s",
                        help="memory bandwidth that a copy reaches (H200: 4.3)")
    parser.add_argument("--data", help="exam files for real prompts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")
    ours, theirs = pair(options.shape or ("llama3-8b" if on_gpu else "25m"), options.device,
                        torch.bfloat16 if on_gpu else torch.float32)
    rows = {
        "equal": equal_row, "ragged": ragged_row, "scoring": scoring_row, "int8": int8_row,
        "where": where_row, "memory": memory_row, "one": one_row, "many": many_row
    }
    for name in (options.rows
                 or ("one,many" if on_gpu else "equal,ragged,scoring,int8,where,memory")).split(","):
        if name not in rows:
            sys.exit(f"--rows {name}: expected some of {', '.join(rows)}")
        rows[name](ours, theirs, options)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
