"""The paper's rows of MMedBench, as published, to be shown beside our own numbers.

Source: Qiu et al., Towards building multilingual language model for medicine, Nature Communications 15,
8384 (2024): the result tables (accuracy; BLEU-1 / ROUGE-1 of rationales; ablations; English benchmarks)
and, for the last three accuracy rows, the README of the official repository. The numbers are in
published.txt. Nothing is corrected; `NOTES` says what does not add up (docs/method.md, discrepancies D1-D4,
D26).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("English", "Chinese", "Japanese", "French", "Russian", "Spanish")  # MMedLM: the paper's columns
# Words whose BLEU and ROUGE may share a column with the paper's (`--words`): other splitters give other
# scores.
PUBLISHED_WORDS = "official"
# The columns of the English benchmarks, as `data_prep.mmedbench` names the sources
ENGLISH_SOURCES = (
    "medqa", "medmcqa", "pubmedqa", "mmlu clinical_knowledge", "mmlu medical_genetics", "mmlu anatomy",
    "mmlu professional_medicine", "mmlu college_biology", "mmlu college_medicine",
)
ABLATION_MODELS = ("InternLM 7B", "InternLM 2 7B", "Llama 3 8B")

NOTES = (
    "Numbers are the paper's own, from full-size models on the released MMedBench test split (8,518 "
    "items); they were not measured here. All of them include the stray sentence that the official prompt"
    " appends to every question.",
    "GPT-4, zero-shot: the listed average 74.27 is not the mean of its six cells, which is 75.31; "
    "GPT-3.5: the table says 51.47, a figure 51.82, the cells give 51.45 (D1).",
    "GPT-3.5 and GPT-4: the Japanese and Russian cells are no whole number of right answers out of 199 "
    "and 256 items, so they were scored on other items than the rest (D2).",
    "GPT-4 (5-shot, CoT): looks like values from the literature rather than a run on this test set (D3).",
    "The overview figure labels BioMistral with MEDITRON's 52.24; the table's 57.45 is shown (D4).",
    "InternLM 2 1.8B, MMedLM 2 1.8B and MMed-Llama 3.1 70B appear only in the README of the official "
    "repository.",
    "BLEU-1 and ROUGE-1: it is not known which variant of the official scripts gave the table (their "
    "defaults are BLEU-4 and ROUGE-L), so compare with our columns with care (D26). They are shown only "
    "beside scores with the official words. GPT-4 wrote the reference rationales and has no row.",
    "English benchmarks: the paper does not say how each model was asked; Mistral's listed average 62.97 "
    "is not the mean of its cells, which is 62.86 (D1).",
)


@dataclass(frozen=True)
class PublishedRow:
    """One row: cells by language (or source), and the average as printed."""

    setting: str  # zero-shot, few-shot, lora, full
    name: str
    cells: dict[str, float]
    average: float


@functools.cache
def _lines(section: str) -> list[list[str]]:
    """The rows of a section of published.txt, split at "|"."""
    text = (Path(__file__).parent / "published.txt").read_text(encoding="utf-8")
    body = text.split(f"[{section}]\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")] for line in body.splitlines()]


def published(metric: str) -> list[PublishedRow]:
    """The rows of "accuracy", "BLEU-1" or "ROUGE-1", in %.

    >>> [row.average for row in published("ROUGE-1") if row.name == "MMedLM 2 7B"]
    [41.97, 45.29]
    """
    part = 1 if metric == "ROUGE-1" else 0
    rows = []
    for setting, name, numbers in _lines("accuracy" if metric == "accuracy" else "rationale"):
        *cells, average = [float(number.split("/")[part]) for number in numbers.split()]
        rows.append(PublishedRow(setting, name, dict(zip(LANGUAGES, cells, strict=True)), average))
    return rows


def published_english() -> list[PublishedRow]:
    """The rows of the English benchmarks by source, in %; what has no number has no cell.

    >>> row = published_english()[-1]
    >>> row.name, row.cells["mmlu anatomy"], row.average
    ('MMed-Llama 3 8B (EnIns)', 69.6, 72.59)
    """
    rows = []
    for name, numbers in _lines("english"):
        *cells, average = [float(number.replace("-", "nan")) for number in numbers.split()]
        found = {source: cell for source, cell in zip(ENGLISH_SOURCES, cells, strict=True) if cell == cell}
        rows.append(PublishedRow("", name, found, average))
    return rows


def published_ablation() -> dict[tuple[str, str], dict[str, tuple[float, ...]]]:
    """(corpus, fine-tuning data) -> model -> accuracy and, if rationales are written, BLEU-1, ROUGE-1, in %.

    Corpus: none, english (the English part), quality (books and websites), all (with the filtered web).

    >>> published_ablation()["quality", "both"]["InternLM 2 7B"]
    (64.43, 47.95, 44.57)
    """
    rows = {}
    for corpus, data, *cells in _lines("ablation"):
        numbers = [tuple(map(float, cell.split("/"))) for cell in cells]
        rows[corpus, data] = dict(zip(ABLATION_MODELS, numbers, strict=True))
    return rows
