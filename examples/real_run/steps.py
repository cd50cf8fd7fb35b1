"""The commands of the real run, in order (`python -m examples.real_run --list` prints them).

    exams as published -> benchmark -> Dev, Train, Test
    medical and other text -> filter, deduplicate, decontaminate -> train and validation documents -> streams
    base model -> three corpus steps of equally many tokens: medical; 90 % medical, 10 % general; general only
    each model -> zero-shot exam; LoRA, exam; full fine-tuning, exam; validation loss -> tables, report
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from data_prep.pipeline.plan import Step

LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
KINDS = ("medical", "general")
# row of the table -> share of general text in its corpus step
CORPUS_STEPS = {"corpus": 0.0, "replay": 0.1, "control": 1.0}
TITLES = {"base": "base", "corpus": "base + medical text", "replay": "base + medical, 10 % general text",
          "control": "base + general text (control)"}
METHODS = {"zero": "zero-shot", "lora": "LoRA", "full": "full fine-tuning"}


# Chosen on development items, as the rates of the profiles are (docs/real_run.md)
SEQUENCE_LENGTH, CORPUS_RATE, LORA_RATE = 1024, 1e-5, 2e-4


@dataclass(frozen=True)
class Profile:
    """How much of the real run is done."""

    corpus_steps: int  # of continued pre-training
    corpus_rows: int  # of SEQUENCE_LENGTH tokens, in each of these steps
    items: int  # exam items of each language that fine-tuning sees; 0: all
    epochs: float
    batch: int  # items per step of fine-tuning
    full_rate: float
    test_items: int  # of each language, in the exam; 0: all
    documents: int  # of each language and kind, for the validation loss
    precision: str
    replay_row: bool  # fine-tune and examine the model of 90 % medical and 10 % general text as well
    minutes: float  # that the slow steps take on the machine the profile is made for


PROFILES = {
    "hour": Profile(
        corpus_steps=40, corpus_rows=1, items=64, epochs=1, batch=8, full_rate=2e-5, test_items=40,
        documents=4, precision="bf16", replay_row=False, minutes=60),
    "night": Profile(
        corpus_steps=300, corpus_rows=1, items=250, epochs=1, batch=16, full_rate=5e-6, test_items=0,
        documents=16, precision="fp32", replay_row=True, minutes=480),
    "gpu": Profile(
        corpus_steps=1000, corpus_rows=8, items=0, epochs=3, batch=32, full_rate=5e-6, test_items=0,
        documents=32, precision="bf16", replay_row=True, minutes=40)}


def exam_sources(data: Path) -> list[str]:
    """--source options for the published exam files that the data folder has."""
    folders = {"headqa-en": "headqa/HEAD_EN", "apollo": "apollo_zh", "igakuqa": "igakuqa",
               "frenchmedmcqa": "frenchmedmcqa", "rumeddanet": "rumedbench/RuMedDaNet",
               "headqa": "headqa/HEAD"}
    return [word for name, folder in folders.items() for word in ("--source", f"{name}={data / folder}")]


def corpus_steps(data: Path, out: Path, documents: int, model: str) -> list[Step]:
    """From text files to token streams, medical and general in the same way (only the filter differs)."""
    corpus, steps = out / "corpus", []
    for code in LANGUAGES:
        medical, other = (data / "text" / code / f"{name}.jsonl.gz" for name in ("medical", "nonmedical"))
        commands = [["data_prep.filter_medical", str(medical), str(other), "--language", code,
                     "--source", "corpus", "--out", f"{corpus}/filtered/medical-{code}"]]
        for kind, source in (("medical", f"{corpus}/filtered/medical-{code}/kept"), ("general", str(other))):
            name = f"{kind}-{code}"
            commands += [
                ["data_prep.dedup", source, "--out", f"{corpus}/deduplicated/{name}"],
                ["data_prep.decontaminate", f"{corpus}/deduplicated/{name}/kept",
                 "--benchmark", f"{out}/benchmark", "--out", f"{corpus}/clean/{name}"],
                ["examples.real_run.prepare", "documents", f"{corpus}/clean/{name}/kept", "--language", code,
                 "--documents", str(documents), "--out", f"{out}/documents/{name}"],
                ["data_prep.tokenize_corpus", f"{out}/documents/{name}.train.jsonl", "--tokenizer", model,
                 "--out", f"{out}/streams/{name}"]]
        steps.append(Step(f"text_{code}", f"{code}: filter, deduplicate, decontaminate, tokenize", commands,
                          ("exams",)))
    return steps


DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # precision of training -> dtype of exams and losses
# the name of a column of the reports for each method
SETTINGS = {"zero": "zero-shot", "lora": "lora", "full": "full"}


def training(recipe: str, out: Path, run: str, model: str, profile: Profile, *flags: str) -> list[str]:
    return ["mmed.train", recipe, f"--model={model}", f"--out={out}/runs/{run}", "--resume=auto",
            f"--precision={profile.precision}", "--compile=no", "--keep_last=1", "--save_every=25", *flags]


def corpus_training(out: Path, row: str, model: str, profile: Profile) -> list[str]:
    general = CORPUS_STEPS[row]
    shares = {"medical": 1 - general, "general": general}
    data = ",".join(f"{out}/streams/{kind}-{code}={share:g}" for kind, share in shares.items() if share
                    for code in LANGUAGES)
    return training("pretrain_mmedlm2", out, row, model, profile, f"--data={data}",
                    f"--sequence_length={SEQUENCE_LENGTH}",
                    f"--global_batch_size={profile.corpus_rows}", "--micro_batch_size=1",
                    f"--max_steps={profile.corpus_steps}", f"--learning_rate={CORPUS_RATE}",
                    "--warmup_ratio=0.2", "--schedule=constant")


def fine_tuning(out: Path, method: str, row: str, model: str, profile: Profile) -> list[str]:
    rate = LORA_RATE if method == "lora" else profile.full_rate
    return training(f"finetune_{method}", out, f"{method}_{row}", model, profile, f"--data={out}/exams/Train",
                    "--rationales=without", f"--sequence_length={SEQUENCE_LENGTH}",
                    f"--global_batch_size={profile.batch}",
                    f"--micro_batch_size={min(8, profile.batch)}", f"--epochs={profile.epochs:g}",
                    f"--learning_rate={rate}")


def exam(out: Path, split: str, name: str, model: str, setting: str, profile: Profile,
         *flags: str) -> list[str]:
    return ["mmed.eval", "--model", model, "--data", f"{out}/exams/{split}", "--out", f"{out}/results/{name}",
            "--setting", setting, "--mode", "answer", "--scoring", "generate,loglikelihood,option_text",
            "--limit", str(profile.test_items), "--max_new_tokens", "16", "--too_long", "truncate",
            "--dtype", DTYPES[profile.precision], *flags]


def real_run(data: Path, out: Path, model: str, profile: Profile, split: str = "Test") -> list[Step]:
    """The whole plan; `split` Dev is for choosing settings."""
    rows = [row for row in TITLES if row != "replay" or profile.replay_row]
    models = {"base": model} | {row: f"{out}/runs/{row}/model" for row in CORPUS_STEPS}
    texts = tuple(f"text_{code}" for code in LANGUAGES)
    slow = profile.minutes / (3 + 9)  # a corpus step and a cell of the table take about equally long
    plan = [Step("exams", "published exams to one benchmark", [
        ["data_prep.mmedbench", *exam_sources(data), "--language", "zh", "--holdout", "0.1", "--seed", "0",
         "--out", f"{out}/benchmark"],
        ["examples.real_run.prepare", "exams", f"{out}/benchmark", "--out", f"{out}/exams",
         "--items", str(profile.items)]])]
    plan += corpus_steps(data, out, profile.documents, model)
    for row in CORPUS_STEPS:
        plan.append(Step(row, f"continued pre-training: {TITLES[row]}",
                         [corpus_training(out, row, model, profile)], texts, slow))
    for row, folder in models.items():
        losses = [["mmed.evaluation.validation_loss", "--model", folder, "--data",
                   *(f"{out}/documents/{kind}-{code}.validation.jsonl" for code in LANGUAGES),
                   "--dtype", DTYPES[profile.precision], "--out", f"{out}/loss/{row}-{kind}.json"]
                  for kind in KINDS]
        plan.append(Step(f"loss_{row}", f"validation loss: {TITLES[row]}", losses,
                         texts if row == "base" else (row,), slow / 5))
    for row, (method, title) in itertools.product(rows, METHODS.items()):
        name, folder = f"{method}_{row}", models[row]
        commands = {
            "zero": [exam(out, split, name, folder, "zero-shot", profile)],
            "lora": [fine_tuning(out, method, row, folder, profile),
                     exam(out, split, name, folder, "finetuned", profile,
                          "--adapter", f"{out}/runs/{name}/adapter")],
            "full": [fine_tuning(out, method, row, folder, profile),
                     exam(out, split, name, f"{out}/runs/{name}/model", "finetuned", profile)]}
        plan.append(Step(name, f"{title}, exam: {TITLES[row]}", commands[method],
                         ("exams",) if row == "base" else (row,), slow))
    report = ["mmed.reporting", *(f"{setting}:{TITLES[row]}={out}/results/{method}_{row}"
                                  for row in rows for method, setting in SETTINGS.items()),
              "--runs", *(f"{TITLES[row]}={out}/runs/{row}" for row in CORPUS_STEPS),
              "--corpus", f"{out}/corpus", f"{out}/streams", "--out", f"{out}/report.html",
              "--title", "mmed: real weights, real text, real exams"]
    plan.append(Step("tables", "tables with intervals and paired tests",
                     [["examples.real_run.tables", str(out), "--rows", *rows], report],
                     tuple(step.name for step in plan)))
    return plan
