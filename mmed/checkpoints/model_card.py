"""The README.md of an exported model folder: what the model is made of, how it was trained, and its scores.

In: the model, the facts of its run (run.json), result folders of `mmed.eval`. Out: Markdown. Paths of this
machine stay out.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmed.model import Transformer
from mmed.utils.errors import UserError, printable
from mmed.utils.files import read_json


def run_recipe(facts: dict) -> dict[str, Any]:
    """The lines of run.json that a reader of the card wants."""
    config = facts["config"]
    names = [
        "task", "max_steps", "epochs", "global_batch_size", "sequence_length", "learning_rate", "schedule",
        "warmup_ratio", "weight_decay", "max_grad_norm", "precision", "seed"
    ]
    names += ["lora_rank", "lora_alpha", "lora_dropout", "lora_targets"] if config.get("lora_rank") else []
    names += ["rationales", "prompt_style"
              ] if config.get("task") == "finetune" else ["windows", "mix_temperature"]
    lines = {"recipe": facts.get("recipe"), "steps planned": facts.get("steps")
             } | {name: config.get(name)
                  for name in names}
    lines |= facts.get(
        "reached", {}) | {"processes": facts.get("world_size"), "code": str(facts.get("commit") or "?")[:12]}
    return {name: value for name, value in lines.items() if value is not None}


def run_data(facts: dict) -> list[str]:
    """One line for each stream or file the run was trained on; counts by language where the stream is still
    there.
    """
    lines = []
    for part in str(facts.get("config", {}).get("data", "")).split(","):
        name, _, weight = part.strip().partition("=")
        if not name:
            continue
        line = Path(name).name + (f", weight {weight}" if weight else "")
        if Path(name + ".json").is_file():
            meta = read_json(name + ".json")
            counts = meta.get("counts") if isinstance(meta, dict) else None
            if isinstance(counts, dict):  # language -> source -> {"tokens": ...}
                by_language = {
                    language: sum(source["tokens"] for source in sources.values())
                    for language, sources in counts.items()
                }
                line += f": {meta['tokens']:,} tokens (" + ", ".join(
                    f"{k} {v:,}" for k, v in sorted(by_language.items())) + ")"
        lines.append(line)
    return lines


def model_card(model: Transformer,
               *,
               title: str,
               base: str,
               recipe: dict,
               data: list[str] | None = None,
               results: list[Path] | None = None,
               licence: str | None = None) -> str:
    """README.md of an exported folder. Paths of this machine stay out: names only."""
    parameters = sum(p.numel() for p in model.parameters())
    head = ["---", "library_name: transformers", "tags: [medical, "
                                                 "multilingual, mmed]", f"base_model: {json.dumps(base)}"] + \
        ([f"license: {json.dumps(licence)}"] if licence else []) + ["pipeline_tag: text-generation", "---"]
    lines = [
        *head, f"# {title}", "",
        f"A {model.config.family} model of {parameters:,} parameters, made from `{base}` with mmed, the "
        f"method of MMedLM "
        "(Qiu et al., Nature Communications 15, 8384, 2024).", ""
    ]
    if model.config.family.startswith("internlm"):
        lines += [
            "vLLM and llama.cpp know this layout. transformers needs the family's own code; `python -m "
            "mmed.checkpoints export THIS OUT "
            "--layout llama` writes the same model so that transformers opens it by itself.", ""
        ]
    lines += [
        "## Disclaimer", "",
        "A research model. What it says is no medical advice: it can be wrong, outdated or biased in any "
        "language, and "
        "has not been tested on patients. It must not be used for diagnosis or treatment without a "
        "qualified clinician's judgement.",
        ""
    ]
    if data:
        lines += ["## Data", "", *(f"- {line}" for line in data), ""]
    if recipe:
        lines += [
            "## Recipe", "", "| setting | value |", "|---|---|",
            *(f"| {name} | {str(value).replace('|', '/')} |" for name, value in recipe.items()), ""
        ]
    for folder in results or []:
        lines += [f"## Scores: {folder.name}", "", *scores_table(folder), ""]
    return "\n".join(line.replace("\r", " ") for line in lines) + "\n"


def scores_table(folder: Path) -> list[str]:
    """Accuracies (with 95 % intervals) and text scores of a result folder by language, as a Markdown table;
    from its results.json alone.
    """
    path = folder / "results.json"
    try:
        summary = read_json(path)["mmed"]["summary"]
        accuracies, scores = list(summary["micro"]["accuracy"]), list(summary["micro"]["text"])
        lines = [["language", "items", *(f"accuracy: {name}" for name in accuracies), *scores]]
        for name, part in [
                *summary["languages"].items(), ("macro average", summary["macro"]),
            ("micro average", summary["micro"])
        ]:
            row = [name, f"{part['n']:,}"]
            row += [accuracy_cell(part["accuracy"].get(column)) for column in accuracies]
            row += [
                f"{100 * part['text'][score]['value']:.2f}" if score in part["text"] else "-"
                for score in scores
            ]
            lines.append(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: not a result of `python -m mmed.eval`, or damaged ({type(error).__name__}: "
            f"{printable(str(error))})"
        ) from None
    lines.insert(1, ["---"] * len(lines[0]))
    return [
        "| " + " | ".join(printable(cell).replace("|", "/").replace("\n", " ") for cell in line) + " |"
        for line in lines
    ]


def accuracy_cell(value: dict | None) -> str:
    if not value:
        return "-"
    return f"{100 * value['value']:.1f} [{100 * value['low']:.0f}-{100 * value['high']:.0f}]"
