"""The paper's rows of MMedBench, as published: what our own numbers are read beside.

Source: Qiu et al., Towards building multilingual language model for medicine, Nature Communications 15, 8384 (2024): the result
tables (accuracy; BLEU-1 / ROUGE-1 of rationales; ablations; English benchmarks) and, for the last three accuracy rows, the README of the
official repository. Columns: English, Chinese, Japanese, French, Russian, Spanish, average, in %. Nothing is corrected here: `NOTES` says what does
not add up (docs/method.md, discrepancies D1-D4, D26). Model sizes are named in full, where the paper's second half omits them.
"""
from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("English", "Chinese", "Japanese", "French", "Russian", "Spanish")  # MMedLM: the order of the paper's columns

ACCURACY = """
few-shot  | GPT-4 (5-shot, CoT)  | 90.20 81.00 76.38 55.14 85.10 88.80 79.43
zero-shot | GPT-3.5              | 56.88 52.29 34.63 32.48 66.36 66.06 51.47
zero-shot | GPT-4                | 78.00 75.07 72.91 56.59 83.62 85.67 74.27
zero-shot | Gemini-1.0 pro       | 53.73 60.19 44.22 29.90 73.44 69.69 55.20
lora      | BLOOMZ 7B            | 38.88 48.86 17.59 18.65 53.91 44.78 37.11
lora      | InternLM 7B          | 40.93 52.19 27.14 18.81 46.88 40.34 37.71
lora      | Llama 2 7B           | 37.00 37.13 24.12 19.13 63.67 42.89 37.32
lora      | ChatDoctor 7B        | 36.68 34.06 28.14 11.58 60.55 39.86 35.15
lora      | MedAlpaca 7B         | 43.28 36.81 27.14 16.40 51.95 41.72 36.22
lora      | PMC-LLaMA 7B         | 33.62 31.76 20.60 10.13 57.81 37.89 31.97
lora      | Mistral 7B           | 55.38 50.23 37.69 40.19 71.88 61.60 52.83
lora      | MEDITRON 7B          | 34.88 33.22 21.11  9.65 57.42 40.74 32.84
lora      | InternLM 2 7B        | 52.40 68.18 39.20 28.78 63.67 55.25 51.25
lora      | BioMistral 7B        | 49.41 44.51 29.15 33.60 67.97 54.45 46.51
lora      | Llama 3 8B           | 62.84 70.11 41.21 39.55 64.84 61.52 56.68
lora      | MMedLM 7B            | 41.16 52.22 27.14 18.49 47.66 40.34 37.83
lora      | MMedLM 2 7B          | 58.13 70.43 54.27 38.26 71.88 64.95 59.65
lora      | MMed-Llama 3 8B      | 63.08 69.41 55.78 41.64 71.48 66.96 61.39
full      | BLOOMZ 7B            | 43.28 58.06 32.66 26.37 62.89 47.34 45.10
full      | InternLM 7B          | 44.07 64.62 37.19 24.92 58.20 44.97 45.67
full      | Llama 2 7B           | 43.36 50.29 25.13 20.90 66.80 47.10 42.26
full      | MedAlpaca 7B         | 46.74 44.80 29.64 21.06 59.38 45.00 41.11
full      | ChatDoctor 7B        | 43.52 43.26 25.63 18.81 62.50 43.44 39.53
full      | PMC-LLaMA 7B         | 47.53 42.44 24.12 20.74 62.11 43.29 40.04
full      | Mistral 7B           | 61.74 71.10 44.72 48.71 74.22 63.86 60.73
full      | MEDITRON 7B          | 55.46 61.88 40.20 35.05 67.58 53.28 52.24
full      | InternLM 2 7B        | 57.27 77.55 47.74 41.00 68.36 59.59 58.59
full      | BioMistral 7B        | 57.82 71.54 37.19 47.27 69.92 60.98 57.45
full      | Llama 3 8B           | 63.86 78.23 48.24 50.80 71.48 64.15 62.79
full      | MMedLM 7B            | 49.88 70.49 46.23 36.66 72.27 54.52 55.01
full      | MMedLM 2 7B          | 61.74 80.01 61.81 52.09 80.47 67.65 67.30
full      | MMed-Llama 3 8B      | 66.06 79.25 61.81 55.63 75.39 68.38 67.75
full      | InternLM 2 1.8B      | 38.49 64.10 32.16 18.01 53.91 36.83 40.58
full      | MMedLM 2 1.8B        | 45.40 66.78 42.21 25.56 69.14 43.40 48.75
full      | MMed-Llama 3.1 70B   | 80.60 87.71 76.88 73.47 82.03 82.35 80.51
"""

RATIONALE = """
zero-shot | GPT-3.5              | 36.21/38.25 27.33/37.34 21.30/31.87 33.95/45.51 12.65/20.70 24.62/36.20 26.01/34.98
zero-shot | Gemini-1.0 pro       | 11.85/28.20  6.26/27.23  6.54/24.28  8.42/33.11  3.39/15.38  7.22/27.98  7.28/26.03
lora      | BLOOMZ 7B            | 41.45/36.81 43.09/45.17 28.79/38.09 38.89/37.49 22.25/15.28 42.36/39.22 36.14/35.34
lora      | InternLM 7B          | 41.29/38.05 43.47/44.71 22.80/37.57 30.35/32.14 18.24/16.79 36.32/34.56 32.08/33.97
lora      | Llama 2 7B           | 44.72/39.34 42.69/43.71 45.58/49.53 42.93/39.29 31.75/22.66 44.22/39.64 41.98/39.03
lora      | MedAlpaca 7B         | 43.59/39.52 40.71/42.50 37.27/44.69 39.82/39.57 30.11/22.83 42.80/39.64 39.05/38.12
lora      | ChatDoctor 7B        | 44.65/40.26 40.88/42.80 39.54/45.00 40.12/39.06 30.95/22.84 42.88/40.23 39.84/38.37
lora      | PMC-LLaMA 7B         | 44.98/40.90 40.09/42.95 38.15/43.67 38.89/38.64 30.08/22.45 43.00/39.80 39.20/38.07
lora      | MEDITRON 7B          | 44.26/40.42 39.26/42.06 36.31/43.34 38.73/37.88 28.34/21.64 42.02/39.06 38.15/37.40
lora      | Mistral 7B           | 48.13/42.80 45.61/46.31 43.82/48.19 44.73/41.07 33.62/24.75 47.37/42.83 43.88/40.99
lora      | InternLM 2 7B        | 46.87/41.66 47.64/49.28 42.22/46.91 41.81/38.46 26.78/21.71 44.51/40.13 41.64/39.69
lora      | BioMistral 7B        | 45.85/41.34 43.12/44.75 38.76/44.46 41.82/39.41 27.73/18.80 45.52/41.07 40.46/38.31
lora      | Llama 3 8B           | 46.33/41.73 47.09/47.44 46.24/50.43 43.13/40.69 30.89/22.22 47.14/42.70 43.47/40.87
lora      | MMedLM 7B            | 41.63/38.83 44.30/46.38 38.61/46.90 37.54/37.78 19.99/21.28 40.79/38.77 37.14/38.32
lora      | MMedLM 2 7B          | 47.07/41.51 47.15/48.36 47.90/52.24 43.22/41.36 27.81/25.70 46.17/42.64 43.22/41.97
lora      | MMed-Llama 3 8B      | 46.56/41.57 47.12/47.71 48.10/53.18 43.62/40.97 33.92/24.87 47.67/43.32 44.50/41.94
full      | BLOOMZ 7B            | 45.94/40.51 48.37/48.26 44.71/48.61 44.47/41.05 29.95/21.50 45.91/40.77 43.22/40.12
full      | InternLM 7B          | 46.53/41.86 48.24/48.64 44.89/49.83 41.80/37.95 27.87/21.20 43.42/38.59 42.12/39.68
full      | Llama 2 7B           | 46.87/41.39 46.62/46.57 48.53/51.21 44.43/40.38 33.05/23.24 45.96/40.37 44.24/40.53
full      | MedAlpaca 7B         | 47.33/42.31 45.72/46.49 45.35/49.12 43.78/40.41 32.80/23.15 45.99/40.57 43.49/40.34
full      | ChatDoctor 7B        | 47.22/41.97 44.66/45.81 38.87/47.95 44.64/40.25 32.19/23.37 45.68/40.71 42.21/40.01
full      | PMC-LLaMA 7B         | 47.33/42.87 45.87/46.18 44.52/48.44 43.80/40.23 31.14/22.28 46.30/40.68 43.16/40.12
full      | MEDITRON 7B          | 47.40/42.85 47.93/48.61 49.13/52.03 45.93/41.37 33.65/24.10 46.42/41.11 45.08/41.68
full      | Mistral 7B           | 47.16/41.82 48.34/47.91 48.80/50.60 45.83/40.88 34.52/24.68 47.55/41.41 45.37/41.22
full      | InternLM 2 7B        | 49.48/44.12 51.38/51.58 50.64/53.46 46.73/42.00 32.93/24.05 47.94/41.96 46.52/42.86
full      | BioMistral 7B        | 47.96/42.16 49.76/49.33 49.73/52.12 46.34/41.64 34.20/24.27 47.57/41.11 45.93/41.77
full      | Llama 3 8B           | 48.74/43.66 49.44/49.426 51.97/53.98 47.11/42.49 34.73/25.07 48.59/42.44 46.76/42.84
full      | MMedLM 7B            | 47.37/41.98 48.68/49.28 48.95/52.34 45.39/41.41 33.24/24.67 46.68/41.35 45.05/41.84
full      | MMedLM 2 7B          | 50.02/44.77 51.39/51.78 54.79/57.10 49.04/45.30 37.49/28.18 50.14/44.59 48.81/45.29
full      | MMed-Llama 3 8B      | 47.61/42.47 49.96/49.36 52.89/55.06 47.92/42.85 36.31/26.67 48.61/43.41 47.21/43.29
"""

# The English benchmarks; ENGLISH_SOURCES names the columns as `data_prep.mmedbench` names the sources (MMLU's subjects one by one).
ENGLISH_SOURCES = ("medqa", "medmcqa", "pubmedqa", "mmlu clinical_knowledge", "mmlu medical_genetics", "mmlu anatomy",
                   "mmlu professional_medicine", "mmlu college_biology", "mmlu college_medicine")
ENGLISH = """
GPT-3.5                    | 57.7 72.7 53.8 74.7 74.0 65.9 72.8 72.9 64.7 67.69
GPT-4                      | 85.8 72.3 70.0 90.2 94.0 84.4 94.5 93.8 83.2 85.36
Flan-PaLM 540B             | 67.6 57.6 79.0 80.4 75.0 63.7 83.8 88.9 76.3 74.70
MedPaLM 2                  | 86.5 72.3 81.8 88.7 92.0 84.4 95.2 95.8 83.2 86.66
MedAlpaca 7B               | 41.7 37.5 72.8 57.4 69.0 57.0 67.3 65.3 54.3 58.03
PMC-LLaMA 13B              | 56.4 56.0 77.9 - - - - - - -
MEDITRON 7B                | 57.2 59.2 74.4 64.6 59.9 49.3 55.4 53.8 44.8 57.62
Mistral 7B                 | 50.8 48.2 75.4 68.7 71.0 55.6 68.4 68.1 59.5 62.97
Gemma 7B                   | 47.2 49.0 76.2 69.8 70.0 59.3 66.2 79.9 60.1 64.19
BioMistral 7B              | 50.6 48.1 77.5 59.9 64.0 56.5 60.4 59.0 54.7 58.97
Llama 3 8B                 | 60.9 50.7 73.0 72.1 76.0 63.0 77.2 79.9 64.2 68.56
MMed-Llama 3 8B (EnIns)    | 65.4 63.5 80.1 71.3 85.0 69.6 77.6 74.3 66.5 72.59
"""

# The ablations: accuracy / BLEU-1 / ROUGE-1 after full fine-tuning, averages of the six languages, of the three families.
ABLATION_MODELS = ("InternLM 7B", "InternLM 2 7B", "Llama 3 8B")
ABLATION = """
none    | answers | 43.33             | 56.17             | 58.72
none    | both    | 45.66/42.12/39.68 | 58.59/46.52/42.86 | 62.79/46.76/42.84
english | both    | 47.38/42.12/39.83 | 58.28/46.46/42.99 | 61.39/46.45/42.59
quality | both    | 51.33/44.46/41.37 | 64.43/47.95/44.57 | 64.40/46.93/43.13
all     | both    | 55.01/45.05/41.84 | 67.30/48.81/45.29 | 67.75/47.22/43.29
"""

NOTES = (
    "Numbers are the paper's own, from full-size models on the released MMedBench test split (8,518 items); they were not measured "
    "here. All of them include the stray sentence that the official prompt appends to every question.",
    "GPT-4, zero-shot: the listed average 74.27 is not the mean of its six cells, which is 75.31; GPT-3.5: the table says 51.47, "
    "a figure 51.82, the cells give 51.45 (D1).",
    "GPT-3.5 and GPT-4: the Japanese and Russian cells are no whole number of right answers out of 199 and 256 items, so they were "
    "scored on other items than the rest (D2).",
    "GPT-4 (5-shot, CoT): looks like values from the literature and not like a run on this test set (D3).",
    "The overview figure labels BioMistral with MEDITRON's 52.24; the table's 57.45 is shown (D4).",
    "InternLM 2 1.8B, MMedLM 2 1.8B and MMed-Llama 3.1 70B stand only in the README of the official repository.",
    "BLEU-1 and ROUGE-1: which variant of the official scripts gave the table is not known (their defaults are BLEU-4 and ROUGE-L), "
    "so compare with our columns with care (D26). GPT-4 wrote the reference rationales and has no row.",
    "English benchmarks: the paper does not say how each model was asked; Mistral's listed average 62.97 is not the mean of its cells, which is "
    "62.86 (D1).",
)


@dataclass(frozen=True)
class PublishedRow:
    """One row: cells by language, and the average as printed."""

    setting: str  # zero-shot, few-shot, lora, full
    name: str
    cells: dict[str, float]
    average: float


def published(metric: str) -> list[PublishedRow]:
    """The rows of "accuracy", "BLEU-1" or "ROUGE-1", in %.

    >>> row = published("accuracy")[-2]
    >>> row.setting, row.name, row.cells["Japanese"], row.average
    ('full', 'MMedLM 2 1.8B', 42.21, 48.75)
    >>> [row.average for row in published("ROUGE-1") if row.name == "MMedLM 2 7B"]
    [41.97, 45.29]
    """
    text, part = {"accuracy": (ACCURACY, 0), "BLEU-1": (RATIONALE, 0), "ROUGE-1": (RATIONALE, 1)}[metric]
    rows = []
    for line in text.strip().splitlines():
        setting, name, numbers = (cell.strip() for cell in line.split("|"))
        *cells, average = [float(number.split("/")[part]) for number in numbers.split()]
        rows.append(PublishedRow(setting, name, dict(zip(LANGUAGES, cells, strict=True)), average))
    return rows


def published_english() -> list[PublishedRow]:
    """The rows of the English benchmarks by source, in %; the setting is not stated, and what has no number has no cell.

    >>> row = published_english()[-1]
    >>> row.name, row.cells["mmlu anatomy"], row.average
    ('MMed-Llama 3 8B (EnIns)', 69.6, 72.59)
    """
    rows = []
    for line in ENGLISH.strip().splitlines():
        name, numbers = (cell.strip() for cell in line.split("|"))
        *cells, average = numbers.split()
        found = {source: float(cell) for source, cell in zip(ENGLISH_SOURCES, cells, strict=True) if cell != "-"}
        rows.append(PublishedRow("", name, found, float("nan") if average == "-" else float(average)))
    return rows


def published_ablation() -> dict[tuple[str, str], dict[str, tuple[float, ...]]]:
    """(corpus, fine-tuning data) -> model -> accuracy and, where rationales are written, BLEU-1 and ROUGE-1, in %.

    Corpus: none, english (the English part), quality (books and websites, all languages), all (with the filtered web).

    >>> published_ablation()["quality", "both"]["InternLM 2 7B"], published_ablation()["none", "answers"]["Llama 3 8B"]
    ((64.43, 47.95, 44.57), (58.72,))
    """
    rows = {}
    for line in ABLATION.strip().splitlines():
        corpus, data, *cells = (cell.strip() for cell in line.split("|"))
        rows[corpus, data] = {model: tuple(map(float, cell.split("/"))) for model, cell in zip(ABLATION_MODELS, cells, strict=True)}
    return rows
