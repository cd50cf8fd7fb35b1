"""The items that people and judges rate, and the file of their ratings.

In: result folders of `mmed.eval`, one per model. Out: `Case`s, drawn by a seed so that people and judges see
the same ones, with a blind order of the models. The ratings file of people and judges alike:

    {"format": "mmed ratings", "version": 1, "by": {"kind": "people" or "judge", ...}, "models": [...],
     "cases": {"French": {"item key": {"digest": sha256 of the case, "scores": {"model": points}}}}, ...}

MMedLM: the best of m texts gets m points (6 in the paper, which rated six models), the worst 1.
"""
from __future__ import annotations

import hashlib
import json
import random
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import group_by, language_order
from mmed.reporting.read_results import check_together, read_result
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json
from mmed.utils.untrusted import plain

FORMAT, VERSION = "mmed ratings", 1

Ratings = dict[str, dict[str, dict]]  # language -> key -> {"digest": ..., "scores": {model: points}}

shown = partial(plain, limit=20_000)  # a text for people and judges; no rationale is longer


@dataclass(frozen=True)
class Case:
    """An item and what each model wrote for it."""

    key: str
    language: str
    question: str
    options: dict[str, str]
    gold: str
    reference: str
    checked: bool  # whether people approved the reference
    texts: dict[str, str]  # model -> its rationale
    scores: dict[str, dict[str, float]]  # model -> signature -> score of its rationale

    @property
    def digest(self) -> str:
        """sha256 of everything that a rater sees, which ties ratings to these texts."""
        whole = [self.key, self.language, self.question, list(self.options.items()), self.gold,
                 self.reference, sorted(self.texts.items())]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def letters(self, seed: int) -> dict[str, str]:
        """Letter -> model, in an order shuffled anew for each case."""
        models = sorted(self.texts)
        random.Random(f"order {seed} {self.language} {self.key}").shuffle(models)
        return dict(zip(string.ascii_uppercase, models))


def read_cases(arguments: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], Case]]:
    """(models, (language, key) -> case) of result folders, FOLDER or NAME=FOLDER: the items for which every
    model has a rationale, scored by a reference."""
    results = [read_result(argument) for argument in arguments]
    check_together(results)
    models = [result.name for result in results]
    if len(set(models)) < len(models) or not 2 <= len(models) <= 26:
        raise UsageError(f"{', '.join(models)}: a ranking needs 2 to 26 results with different names; give "
                         "NAME=FOLDER")
    cases: dict[tuple[str, str], Case] = {}
    for result in results:
        for row in load_results(result.folder)[1]:
            if row["mode"] == "rationale" and row["scores"]:
                doc, place = row["doc"], (row["language"], row["key"])
                case = cases.setdefault(place, Case(
                    row["key"], row["language"], doc["question"], doc["options"], row["gold"],
                    doc["rationale"], bool(doc["human_check_passed"]), {}, {}))
                case.texts[result.name] = row["rationale"]
                case.scores[result.name] = row["scores"]
    cases = {place: case for place, case in cases.items() if len(case.texts) == len(models)}
    if not cases:
        raise UserError(f"{arguments[0]}: no rationale with a reference is common to all results")
    return models, cases


def draw_cases(cases: Iterable[Case], items: int, seed: int) -> list[Case]:
    """`items` cases of each language (0: all), drawn by `seed`: those whose reference passed, if any."""
    by_language = group_by(sorted(cases, key=lambda case: case.key), lambda case: case.language)
    drawn = []
    for language in language_order(by_language):
        own = [case for case in by_language[language] if case.checked] or by_language[language]
        if len(own) < items:
            print(f"note: {language} has {len(own)} of the {items} items asked for", file=sys.stderr)
        count = min(items or len(own), len(own))
        drawn += random.Random(f"items {seed} {language}").sample(own, count)
    return drawn


def write_ratings(path: str | Path, by: Mapping[str, Any], models: Sequence[str], cases: Ratings,
                  **more: Any) -> dict:
    """Write a ratings file and return its content; `more` is stored beside the ratings."""
    averages = {}  # model -> language -> mean points, and "macro", the mean of the languages
    for model in models:
        row = {language: metrics.mean(case["scores"][model] for case in part.values())
               for language, part in cases.items() if part}
        averages[model] = row | {"macro": metrics.mean(row.values())}
    value = {"format": FORMAT, "version": VERSION, "by": dict(by), "models": list(models),
             "points": f"{len(models)} best to 1 worst", "average": averages, **more, "cases": cases}
    write_json(path, value)
    return value


def read_object(path: str | Path, form: str = FORMAT) -> dict:
    """A JSON file whose "format" is `form`; ratings by default."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != form or value.get("version") != VERSION:
        raise UserError(f"{path}: not a file of format {form!r}, version {VERSION}")
    return value
