"""The paper's rows of MMedBench, as published, to be shown beside our own numbers.

Source: Qiu et al., Nature Communications 15, 8384 (2024): the result tables; for the last three accuracy
rows, the README of the official repository. They are in published.txt, uncorrected; `NOTES` says what does
not add up (docs/method.md, discrepancies D1-D4, D26).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("English", "Chinese", "Japanese", "French", "Russian", "Spanish")  # MMedLM: the paper's columns
# The columns of the English benchmarks, as `data_prep.mmedbench` names the sources
ENGLISH_SOURCES = (
    "medqa", "medmcqa", "pubmedqa", "mmlu clinical_knowledge", "mmlu medical_genetics", "mmlu anatomy",
    "mmlu professional_medicine", "mmlu college_biology", "mmlu college_medicine",
)
ABLATION_MODELS = ("InternLM 7B", "InternLM 2 7B", "Llama 3 8B")


@dataclass(frozen=True)
class PublishedRow:
    setting: str  # zero-shot, few-shot, lora, full
    name: str
    cells: dict[str, float]  # by language (or source), in %
    average: float  # as printed


@functools.cache
def _lines(section: str) -> list[list[str]]:
    """The rows of a section of published.txt, split at "|"."""
    text = (Path(__file__).parent / "published.txt").read_text(encoding="utf-8")
    body = text.split(f"[{section}]\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")] for line in body.splitlines()]


NOTES = tuple(line[0] for line in _lines("notes"))


def published(metric: str) -> list[PublishedRow]:
    """The rows of "accuracy", "BLEU-1" or "ROUGE-1"."""
    part = 1 if metric == "ROUGE-1" else 0
    rows = []
    for setting, name, numbers in _lines("accuracy" if metric == "accuracy" else "rationale"):
        *cells, average = [float(number.split("/")[part]) for number in numbers.split()]
        rows.append(PublishedRow(setting, name, dict(zip(LANGUAGES, cells, strict=True)), average))
    return rows


def published_english() -> list[PublishedRow]:
    """The rows of the English benchmarks by source; a missing number has no cell."""
    rows = []
    for name, numbers in _lines("english"):
        *cells, average = numbers.split()
        found = {source: float(cell) for source, cell in zip(ENGLISH_SOURCES, cells, strict=True)
                 if cell != "-"}
        rows.append(PublishedRow("", name, found, float(average.replace("-", "nan"))))
    return rows


def published_ablation() -> dict[tuple[str, str], dict[str, tuple[float, ...]]]:
    """(corpus, fine-tuning data) -> model -> accuracy, and with rationales BLEU-1 and ROUGE-1, in %."""
    return {(corpus, data): {model: tuple(map(float, cell.split("/")))
                             for model, cell in zip(ABLATION_MODELS, cells, strict=True)}
            for corpus, data, *cells in _lines("ablation")}
