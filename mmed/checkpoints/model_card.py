"""The README.md of an exported model folder: what the model is made of, and how it was trained.

In: the model and the facts of run.json. Out: Markdown, with names and without paths.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmed.model import Transformer
from mmed.utils.errors import one_line, printable
from mmed.utils.files import read_json

SETTINGS = """task max_steps epochs global_batch_size sequence_length learning_rate schedule warmup_ratio
    weight_decay max_grad_norm precision seed lora_rank lora_alpha lora_dropout lora_targets rationales
    prompt_style windows mix_temperature""".split()
CARD = """---
library_name: transformers
tags: [medical, multilingual, mmed]
base_model: {base_model}
{licence}pipeline_tag: text-generation
---
# {title}

A {family} model of {parameters:,} parameters, made from `{base}` with mmed, the method of MMedLM
(Qiu et al., Nature Communications 15, 8384, 2024).
{layout}
## Disclaimer

A research model. What it says is not medical advice: it can be wrong, outdated or biased in any language, and
has not been tested on patients. It must not be used for diagnosis or treatment without a qualified
clinician's judgement.
"""
INTERNLM = """
vLLM and llama.cpp know this layout. transformers needs the family's own code; `python -m mmed.checkpoints
export THIS OUT --layout llama` writes the same model so that transformers opens it by itself.
"""


def run_recipe(facts: dict) -> dict[str, Any]:
    """The lines of run.json that a reader of the card wants."""
    config = facts["config"]
    names = [name for name in SETTINGS if config["lora_rank"] or not name.startswith("lora")]
    lines = {"recipe": facts["recipe"], "steps planned": facts["steps"]}
    lines |= {name: config[name] for name in names} | facts["reached"]
    lines |= {"processes": facts["world_size"], "code": str(facts["commit"])[:12]}
    return {name: value for name, value in lines.items() if value is not None}


def run_data(facts: dict) -> list[str]:
    """A line per stream or file of the run; counts by language where the stream is still there."""
    lines = []
    for part in facts["config"]["data"].split(","):
        path, _, weight = part.strip().partition("=")
        line = Path(path).name + (f", weight {weight}" if weight else "")
        if Path(path + ".json").is_file():
            meta = read_json(path + ".json")
            counts = {language: sum(source["tokens"] for source in sources.values())
                      for language, sources in sorted(meta["counts"].items())}
            listed = ", ".join(f"{language} {number:,}" for language, number in counts.items())
            line += f": {meta['tokens']:,} tokens ({listed})"
        lines.append(line)
    return lines


def model_card(model: Transformer, *, title: str, base: str, recipe: dict, data: list[str] | None = None,
               licence: str | None = None) -> str:
    """README.md of an exported folder."""
    family = model.config.family
    lines = [CARD.format(
        title=title, base=base, base_model=json.dumps(base), family=family,
        licence=f"license: {json.dumps(licence)}\n" if licence else "",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layout=INTERNLM if family in ("internlm", "internlm2") else "")]
    if data:
        lines += ["## Data", "", *(f"- {line}" for line in data), ""]
    if recipe:
        lines += ["## Recipe", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {name} | {one_line(printable(str(value)))} |" for name, value in recipe.items()]
    return "\n".join([*lines, ""])
