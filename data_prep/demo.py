"""The paper in miniature: `make demo` goes from raw pages to the benchmark table, on a laptop, in minutes.

    python -m data_prep.demo [--seed 0] [--out demo]

The world is synthetic and fictional (data_prep/micro_world.py). Every step below is a command that a reader can repeat by
itself; this file only says which, in which order, and runs two at a time where they do not wait for each other:

    world -> filter -> deduplicate -> tokenizer -> token streams -> exercises, base model -> corpus -> LoRA and full fine-tuning -> exams -> report

A step that is done is not done again (OUT/done/STEP.json holds its commands); one that was killed goes on where it was,
because each command is resumable. Each step's output is in OUT/logs/STEP.log.
"""
from __future__ import annotations

import os
import time
from pathlib import Path

from data_prep.plan import Step, as_typed, run_plan
from mmed.errors import Parser, main_guard

LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
REPLAY = 0.3  # share of base text among the corpus, so that the base model's skills are kept
NOTICE = ("This is the demo: its diseases, drugs, organs and symptoms are fictional, made of syllables. Nothing here is medicine. "
          "The models have 0.3 million parameters.")


def steps(out: str, seed: int) -> list[Step]:
    """The demo as a list of commands."""
    world, corpus, streams, runs, results = (f"{out}/{part}" for part in ("world", "corpus", "streams", "runs", "results"))
    tokenizer = f"{out}/tokenizer"
    base = [f"{streams}/base-{code}" for code in LANGUAGES]
    medical = [f"{streams}/medical-{code}" for code in LANGUAGES]
    mixture = [f"{name}={1 - REPLAY:g}" for name in medical] + [f"{name}={REPLAY:g}" for name in base]
    held_out = ",".join(f"{name}-held-out" for name in medical)

    def train(recipe: str, run: str, *flags: str) -> list[str]:
        return ["mmed.train", recipe, f"--out={runs}/{run}", f"--seed={seed}", *flags]

    def exam(name: str, setting: str, model: str, *flags: str) -> list[str]:
        return ["mmed.eval", "--model", f"{runs}/{model}/model", "--data", f"{world}/MMedBench/Test", "--out", f"{results}/{name}",
                "--setting", setting, "--mode", "rationale", "--scoring", "both", "--max_new_tokens", "64", "--slots", "64", *flags]

    plan = [
        Step("world", "a fictional medical world in six languages", [["data_prep.micro_world", "--out", world, "--seed", str(seed)]]),
        Step("filter", "medical pages out of raw web pages, by keywords",
             [["data_prep.filter_medical", f"{world}/raw/web/{code}.jsonl", "--language", code, "--out", f"{corpus}/filtered/{code}"]
              for code in LANGUAGES], ("world",)),
        Step("dedup", "exact and near duplicates out",
             [["data_prep.dedup", f"{corpus}/filtered/{code}/kept/{code}.jsonl.gz", f"{world}/raw/books/{code}.jsonl",
               "--out", f"{corpus}/deduplicated/{code}"] for code in LANGUAGES], ("filter",)),
        Step("tokenizer", "one tokenizer for the six languages",
             [["mmed.tokenizer", "train", *(f"{world}/base/{code}.jsonl" for code in LANGUAGES), *(f"{corpus}/deduplicated/{code}/kept" for code in LANGUAGES),
               "--out", tokenizer, "--vocab_size", "1800", "--symbols", f"{world}/symbols.json"]], ("dedup",)),
        Step("streams", "documents to token streams",
             [["data_prep.tokenize_corpus", source, "--tokenizer", tokenizer, "--held-out", "0.02", "--out", stream]
              for code, plain, page in zip(LANGUAGES, base, medical)
              for source, stream in ((f"{world}/base/{code}.jsonl", plain), (f"{corpus}/deduplicated/{code}/kept", page))], ("tokenizer",)),
        Step("school", "a first model: exercises on ordinary things, in English",
             [train("demo_school", "school", f"--tokenizer={tokenizer}", f"--data={world}/school")], ("tokenizer",)),
        Step("exercises", "the same exercises in six languages",
             [train("demo_exercises", "exercises", f"--model={runs}/school/model", f"--data={world}/exercises")], ("school",)),
        Step("base", "the base model: ordinary text",
             [train("demo_base", "base", f"--model={runs}/exercises/model", f"--data={','.join(base)}", f"--validation={held_out}")],
             ("exercises", "streams")),
        Step("corpus", "continued pre-training on the medical corpus",
             [train("demo_corpus", "corpus", f"--model={runs}/base/model", f"--data={','.join(mixture)}", f"--validation={held_out}")], ("base",)),
    ]
    for model, title in (("base", "base"), ("corpus", "base + corpus")):
        for method, setting in (("full", "full"), ("lora", "LoRA")):
            run = f"{method}_{model}"
            trained = (f"{run}", "finetuned") if method == "full" else (model, "finetuned", "--adapter", f"{runs}/{run}/adapter")
            plan.append(Step(run, f"{setting} fine-tuning of {title} on exam questions",
                             [train(f"demo_{method}", run, f"--model={runs}/{model}/model", f"--data={world}/MMedBench/Train")], (model,)))
            plan.append(Step(f"exam_{run}", f"{title} after {setting} fine-tuning sits the exam",
                             [exam(run, trained[1], trained[0], *trained[2:])], (run,)))
        plan.append(Step(f"exam_zero_{model}", f"{title} sits the exam untaught", [exam(f"zero_{model}", "zero-shot", model)], (model,)))
    rows = [f"{setting}:{title}={results}/{method}_{model}" for setting, method in (("zero-shot", "zero"), ("lora", "lora"), ("full", "full"))
            for model, title in (("base", "base"), ("corpus", "base + corpus"))]
    plan.append(Step("report", "tables and plots", [["mmed.report", *rows, "--runs", *(f"{title}={runs}/{run}" for run, title in (
        ("base", "base"), ("corpus", "corpus"), ("full_base", "full, base"), ("full_corpus", "full, base + corpus"))),
        "--corpus", corpus, streams, "--out", f"{out}/report.html", "--title", "mmed: the paper in miniature", "--notice", NOTICE]],
        tuple(step.name for step in plan if step.name.startswith("exam_"))))
    # Whoever is on the longest way goes first.
    order = ["world", "filter", "dedup", "tokenizer", "school", "exercises", "streams", "base", "corpus", "full_corpus", "lora_corpus"]
    return sorted(plan, key=lambda step: order.index(step.name) if step.name in order else len(order))


def prepare() -> None:
    import torch

    torch.set_num_threads(1)  # models this small gain nothing from a second, and two that share a busy core crawl


def run_demo(out: Path, seed: int) -> float:
    import torch
    import torch.distributed.checkpoint.hf_storage  # noqa: F401  imported once, for all steps

    return run_plan(steps(str(out), seed), out, min(2, os.cpu_count() or 1), prepare)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.demo", description="The paper in miniature: from raw pages to the benchmark table.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of all training (default: 0)")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for step in steps(str(options.out), options.seed):
            print(f"# {step.name}: {step.title}", *map(as_typed, step.commands), sep="\n")
        return 0
    begun = time.time()
    seconds = run_demo(options.out, options.seed)
    print((options.out / "logs" / "report.log").read_text(encoding="utf-8").rpartition("$ python")[2].partition("\n")[2].strip())
    print(f"\n{NOTICE}\nfinished in {time.time() - begun:.0f} s ({seconds:.0f} s of steps); the report is {options.out}/report.html")
    return 0


if __name__ == "__main__":
    main_guard(main)
