"""The commands of the demo, and how they are run; examples/demo/ablations.py takes most of them over.

In: the folder and the seed. Out: `steps`, a plan (data_prep/pipeline/plan.py), which `run_demo` carries out.
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from data_prep.pipeline.plan import Step, run_plan
from mmed.utils.errors import Parser

LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
REPLAY = 0.3  # share of base text among the corpus, so that the base model's skills are kept
NOTICE = (
    "This is the demo: its diseases, drugs, organs and symptoms are fictional, made of syllables. Nothing "
    "here is medicine. "
    "The models have 0.3 million parameters.")


def parse_options(command: str, description: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=f"python -m {command}", description=description)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        help="folder for everything; steps that are done there are not done again (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of all training (default: 0)")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    return parser.parse_args(arguments)


def training(out: str, seed: int, recipe: str, run: str, *flags: str) -> list[str]:
    """One training command; a flag given twice counts as it was given last."""
    return ["mmed.train", recipe, f"--out={out}/runs/{run}", f"--seed={seed}", *flags]


def exam(out: str, name: str, model: str, setting: str, *flags: str) -> list[str]:
    """The exam of the test diseases, sat by the model of a run; the result's name is `name`."""
    return [
        "mmed.eval", "--model", f"{out}/runs/{model}/model", "--data", f"{out}/world/MMedBench/Test", "--out",
        f"{out}/results/{name}", "--setting", setting, "--max_new_tokens", "64", "--batch_size", "64", *flags
    ]


def corpus_training(out: str, seed: int, run: str, medical: list[str], *flags: str) -> list[str]:
    """Continued pre-training of the base model on medical streams, mixed with base text so that its skills
    are kept.
    """
    base = [f"{out}/streams/base-{code}" for code in LANGUAGES]
    shares = [(name, (1 - REPLAY) * len(LANGUAGES) / len(medical)) for name in medical] + [(name, REPLAY)
                                                                                           for name in base]
    held_out = ",".join(f"{out}/streams/medical-{code}-held-out" for code in LANGUAGES)
    return training(out, seed, "demo_corpus", run, f"--model={out}/runs/base/model",
                    f"--data={','.join(f'{name}={share:g}' for name, share in shares)}",
                    f"--validation={held_out}", *flags)


def steps(out: str, seed: int) -> list[Step]:
    """The demo as a list of commands."""
    world, corpus, streams, runs, results = (f"{out}/{part}"
                                             for part in ("world", "corpus", "streams", "runs", "results"))
    tokenizer = f"{out}/tokenizer"
    base = [f"{streams}/base-{code}" for code in LANGUAGES]
    medical = [f"{streams}/medical-{code}" for code in LANGUAGES]
    held_out = ",".join(f"{name}-held-out" for name in medical)

    def train(recipe: str, run: str, *flags: str) -> list[str]:
        return training(out, seed, recipe, run, *flags)

    def demo_exam(name: str, setting: str, model: str, *flags: str) -> list[str]:
        return exam(out, name, model, setting, "--mode", "rationale", "--scoring", "both", *flags)

    plan = [
        Step("world", "a fictional medical world in six languages",
             [["examples.demo.micro_world", "--out", world, "--seed",
               str(seed)]]),
        Step("filter", "medical pages out of raw web pages, by keywords", [[
            "data_prep.filter_medical", f"{world}/raw/web/{code}.jsonl", "--language", code, "--out",
            f"{corpus}/filtered/{code}"
        ] for code in LANGUAGES], ("world", )),
        Step("dedup", "exact and near duplicates out", [[
            "data_prep.dedup", f"{corpus}/filtered/{code}/kept/{code}.jsonl.gz",
            f"{world}/raw/books/{code}.jsonl", "--out", f"{corpus}/deduplicated/{code}"
        ] for code in LANGUAGES], ("filter", )),
        Step("tokenizer", "one tokenizer for the six languages", [[
            "mmed.tokenizer", "train", *(f"{world}/base/{code}.jsonl"
                                         for code in LANGUAGES), *(f"{corpus}/deduplicated/{code}/kept"
                                                                   for code in LANGUAGES), "--out", tokenizer,
            "--vocab_size", "1800", "--symbols", f"{world}/symbols.json"
        ]], ("dedup", )),
        Step("streams", "documents to token streams",
             [[
                 "data_prep.tokenize_corpus", source, "--tokenizer", tokenizer, "--held_out", "0.02", "--out",
                 stream
             ] for code, plain, page in zip(LANGUAGES, base, medical)
              for source, stream in ((f"{world}/base/{code}.jsonl", plain),
                                     (f"{corpus}/deduplicated/{code}/kept", page))], ("tokenizer", )),
        Step("school", "a first model: exercises on ordinary things, in English",
             [train("demo_school", "school", f"--tokenizer={tokenizer}", f"--data={world}/school")],
             ("tokenizer", )),
        Step("exercises", "the same exercises in six languages", [
            train("demo_exercises", "exercises", f"--model={runs}/school/model", f"--data={world}/exercises")
        ], ("school", )),
        Step("base", "the base model: ordinary text", [
            train("demo_base", "base", f"--model={runs}/exercises/model", f"--data={','.join(base)}",
                  f"--validation={held_out}")
        ], ("exercises", "streams")),
        Step("corpus", "continued pre-training on the medical corpus",
             [corpus_training(out, seed, "corpus", medical)], ("base", )),
    ]
    for model, title in (("base", "base"), ("corpus", "base + corpus")):
        for method, setting in (("full", "full"), ("lora", "LoRA")):
            run = f"{method}_{model}"
            trained = (f"{run}", "finetuned") if method == "full" else (model, "finetuned", "--adapter",
                                                                        f"{runs}/{run}/adapter")
            plan.append(
                Step(run, f"{setting} fine-tuning of {title} on exam questions", [
                    train(f"demo_{method}", run, f"--model={runs}/{model}/model",
                          f"--data={world}/MMedBench/Train")
                ], (model, )))
            plan.append(Step(f"exam_{run}", f"{title} after {setting} fine-tuning sits the exam",
                             [demo_exam(run, trained[1], trained[0], *trained[2:])], (run,)))
        plan.append(
            Step(f"exam_zero_{model}", f"{title} sits the exam untaught",
                 [demo_exam(f"zero_{model}", "zero-shot", model)], (model, )))
    rows = [
        f"{setting}:{title}={results}/{method}_{model}"
        for setting, method in (("zero-shot", "zero"), ("lora", "lora"), ("full", "full"))
        for model, title in (("base", "base"), ("corpus", "base + corpus"))
    ]
    plan.append(
        Step("report", "tables and plots", [[
            "mmed.reporting", *rows, "--runs",
            *(f"{title}={runs}/{run}"
              for run, title in (("base", "base"), ("corpus", "corpus"), ("full_base", "full, base"),
                                 ("full_corpus", "full, base + corpus"))), "--corpus", corpus, streams,
            "--out", f"{out}/report.html", "--title", "mmed: the paper in miniature", "--notice", NOTICE
        ]], tuple(step.name for step in plan if step.name.startswith("exam_"))))
    # Schedule the critical path first.
    order = [
        "world", "filter", "dedup", "tokenizer", "school", "exercises", "streams", "base", "corpus",
        "full_corpus", "lora_corpus"
    ]
    return sorted(plan, key=lambda step: order.index(step.name) if step.name in order else len(order))


def prepare() -> None:
    import torch

    # models this small gain nothing from a second, and two that share a busy core crawl
    torch.set_num_threads(1)


def run_demo(out: Path, plan: list[Step]) -> float:
    """Do the plan, two steps at a time where this process may use two cores; returns the seconds of all its
    steps.
    """
    import torch
    import torch.distributed.checkpoint.hf_storage  # noqa: F401  imported once, for all steps

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return run_plan(plan, out, min(2, cores), prepare)
