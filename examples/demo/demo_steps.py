"""The commands of the demo, and how they are run; examples/demo/ablations.py takes most of them over.

In: the folder and the seed. Out: `steps`, a plan (data_prep/pipeline/plan.py), which `run_demo` carries out.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.pipeline.plan import Step, print_commands, run_plan
from mmed.utils.errors import Parser

LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
REPLAY = 0.3  # share of base text among the corpus, so that the base model's skills are kept
NOTICE = ("This is the demo: its diseases, drugs, organs and symptoms are fictional, made of syllables. "
          "Nothing here is medicine. The models have 0.3 million parameters.")
MODELS = {"base": "base", "corpus": "base + corpus"}
FIRST = ("full_corpus", "lora_corpus")  # of the exams: schedule the critical path first


def training(out: str, seed: int, recipe: str, run: str, *flags: str) -> list[str]:
    """One training command; a flag given twice counts as it was given last."""
    return ["mmed.train", recipe, f"--out={out}/runs/{run}", f"--seed={seed}", *flags]


def tokenizing(out: str, source: str, stream: str) -> list[str]:
    return ["data_prep.tokenize_corpus", f"{out}/{source}", "--tokenizer", f"{out}/tokenizer",
            "--held_out", "0.02", "--out", f"{out}/streams/{stream}"]


def exam(out: str, name: str, model: str, setting: str, *flags: str) -> list[str]:
    """The exam of the test diseases, sat by the model of a run; the result's name is `name`."""
    return ["mmed.eval", "--model", f"{out}/runs/{model}/model", "--data", f"{out}/world/MMedBench/Test",
            "--out", f"{out}/results/{name}", "--setting", setting, "--max_new_tokens", "64",
            "--batch_size", "64", *flags]


def streams(out: str, kind: str, suffix: str = "") -> list[str]:
    return [f"{out}/streams/{kind}-{code}{suffix}" for code in LANGUAGES]


def corpus_training(out: str, seed: int, run: str, medical: list[str], *flags: str) -> list[str]:
    """Continued pre-training of the base model on medical streams, mixed with base text."""
    shares = [(name, (1 - REPLAY) * len(LANGUAGES) / len(medical)) for name in medical]
    shares += [(name, REPLAY) for name in streams(out, "base")]
    return training(out, seed, "demo_corpus", run, f"--model={out}/runs/base/model",
                    f"--data={','.join(f'{name}={share:g}' for name, share in shares)}",
                    f"--validation={','.join(streams(out, 'medical', '-held-out'))}", *flags)


def corpus_steps(out: str, seed: int) -> list[Step]:
    """From the world to the model that read the corpus."""
    world, corpus, runs = f"{out}/world", f"{out}/corpus", f"{out}/runs"
    documents = [f"{world}/base/{code}.jsonl" for code in LANGUAGES]
    documents += [f"{corpus}/deduplicated/{code}/kept" for code in LANGUAGES]
    return [
        Step("world", "a fictional medical world in six languages",
             [["examples.demo.micro_world", "--out", world, "--seed", str(seed)]]),
        Step("filter", "medical pages out of raw web pages, by keywords",
             [["data_prep.filter_medical", f"{world}/raw/web/{code}.jsonl", "--language", code,
               "--out", f"{corpus}/filtered/{code}"] for code in LANGUAGES], ("world",)),
        Step("dedup", "exact and near duplicates out",
             [["data_prep.dedup", f"{corpus}/filtered/{code}/kept/{code}.jsonl.gz",
               f"{world}/raw/books/{code}.jsonl", "--out", f"{corpus}/deduplicated/{code}"]
              for code in LANGUAGES], ("filter",)),
        Step("tokenizer", "one tokenizer for the six languages",
             [["mmed.tokenizer", "train", *documents, "--out", f"{out}/tokenizer", "--vocab_size", "1800",
               "--symbols", f"{world}/symbols.json"]], ("dedup",)),
        Step("school", "a first model: exercises on ordinary things, in English",
             [training(out, seed, "demo_school", "school", f"--tokenizer={out}/tokenizer",
                       f"--data={world}/school")], ("tokenizer",)),
        Step("exercises", "the same exercises in six languages",
             [training(out, seed, "demo_exercises", "exercises", f"--model={runs}/school/model",
                       f"--data={world}/exercises")], ("school",)),
        Step("streams", "documents to token streams",
             [tokenizing(out, source, f"{kind}-{code}") for code in LANGUAGES
              for kind, source in (("base", f"world/base/{code}.jsonl"),
                                   ("medical", f"corpus/deduplicated/{code}/kept"))], ("tokenizer",)),
        Step("base", "the base model: ordinary text",
             [training(out, seed, "demo_base", "base", f"--model={runs}/exercises/model",
                       f"--data={','.join(streams(out, 'base'))}",
                       f"--validation={','.join(streams(out, 'medical', '-held-out'))}")],
             ("exercises", "streams")),
        Step("corpus", "continued pre-training on the medical corpus",
             [corpus_training(out, seed, "corpus", streams(out, "medical"))], ("base",)),
    ]


def exam_steps(out: str, seed: int) -> list[Step]:
    """Fine-tuning of the two models and their exams."""
    plan = []
    for model, title in MODELS.items():
        how = ("--mode", "rationale", "--scoring", "both")
        for method, setting in (("full", "full"), ("lora", "LoRA")):
            run = f"{method}_{model}"
            plan.append(Step(run, f"{setting} fine-tuning of {title} on exam questions",
                             [training(out, seed, f"demo_{method}", run, f"--model={out}/runs/{model}/model",
                                       f"--data={out}/world/MMedBench/Train")], (model,)))
            adapter = ("--adapter", f"{out}/runs/{run}/adapter") if method == "lora" else ()
            sat = exam(out, run, model if adapter else run, "finetuned", *how, *adapter)
            plan.append(Step(f"exam_{run}", f"{title} after {setting} fine-tuning sits the exam", [sat],
                             (run,)))
        plan.append(Step(f"exam_zero_{model}", f"{title} sits the exam untaught",
                         [exam(out, f"zero_{model}", model, "zero-shot", *how)], (model,)))
    return sorted(plan, key=lambda step: step.name not in FIRST)


def steps(out: str, seed: int) -> list[Step]:
    """The demo as a list of commands."""
    exams = exam_steps(out, seed)
    rows = [f"{setting}:{title}={out}/results/{method}_{model}"
            for setting, method in (("zero-shot", "zero"), ("lora", "lora"), ("full", "full"))
            for model, title in MODELS.items()]
    titles = {"base": "base", "corpus": "corpus", "full_base": "full, base",
              "full_corpus": "full, base + corpus"}
    runs = [f"{title}={out}/runs/{run}" for run, title in titles.items()]
    report = ["mmed.reporting", *rows, "--runs", *runs, "--corpus", f"{out}/corpus", f"{out}/streams",
              "--out", f"{out}/report.html", "--title", "mmed: the paper in miniature", "--notice", NOTICE]
    needs = tuple(step.name for step in exams if step.name.startswith("exam_"))
    return [*corpus_steps(out, seed), *exams, Step("report", "tables and plots", [report], needs)]


def run_demo(out: Path, plan: list[Step]) -> float:
    """Do the plan, two steps at a time where this process may use two cores; return the steps' seconds."""
    import torch
    import torch.distributed.checkpoint.hf_storage  # imported once, for all steps

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # models this small gain nothing from a second thread, and sharing a busy core is very slow
    return run_plan(plan, out, min(2, cores), lambda: torch.set_num_threads(1))


def command(name: str, description: str, make_plan: Callable[[str, int], list[Step]],
            result: Callable[[Path], str], arguments: list[str] | None) -> int:
    """A command that carries a plan out and prints what `result` finds in the folder."""
    parser = Parser(prog=f"python -m {name}", description=description)
    parser.add_argument("--out", type=Path, default=Path("demo"),
                        help="folder for all output; steps already done there are skipped (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="for the world and all training (default: 0)")
    parser.add_argument("--list", action="store_true", help="print the commands without running them")
    options = parser.parse_args(arguments)
    plan = make_plan(str(options.out), options.seed)
    if options.list:
        print_commands(plan)
        return 0
    begun = time.time()
    seconds = run_demo(options.out, plan)
    print(f"{result(options.out)}\n\n{NOTICE}\nfinished in {time.time() - begun:.0f} s ({seconds:.0f} s of "
          f"steps) in {options.out}/")
    return 0
