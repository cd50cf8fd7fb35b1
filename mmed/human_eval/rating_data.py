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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import language_order
from mmed.reporting.read_results import check_together, read_result
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json
from mmed.utils.untrusted import plain

FORMAT, VERSION = "mmed ratings", 1
ITEMS = 50  # MMedLM: 50 random test items of each language
LONGEST_TEXT = 20_000  # characters of a text that are shown; no rationale is longer

Texts = dict[tuple[str, str], dict[str, dict]]  # (language, key) -> model -> row of predictions.jsonl
Ratings = dict[str, dict[str, dict]]  # language -> key -> {"digest": ..., "scores": {model: points}}


@dataclass(frozen=True)
class Case:
    """An item and what each model wrote for it."""

    key: str
    language: str
    question: str
    options: dict[str, str]
    gold: str
    reference: str
    texts: dict[str, str]  # model -> its rationale

    @property
    def digest(self) -> str:
        """sha256 of everything that a rater sees, which ties ratings to these texts."""
        whole = [self.key, self.language, self.question, list(self.options.items()), self.gold,
                 self.reference, sorted(self.texts.items())]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def letters(self, seed: int) -> dict[str, str]:
        """letter -> model; each case has an order of its own."""
        models = sorted(self.texts)
        random.Random(f"order {seed} {self.language} {self.key}").shuffle(models)
        return dict(zip(string.ascii_uppercase, models))


def case_of(rows: Mapping[str, dict]) -> Case:
    row = next(iter(rows.values()))
    doc = row["doc"]
    return Case(row["key"], row["language"], doc["question"], dict(doc["options"]), row["gold"],
                doc["rationale"], {model: one["rationale"] for model, one in rows.items()})


def shown(text: str) -> str:
    """Text for people and judges: without control characters, of bounded length."""
    return plain(text, LONGEST_TEXT)


def read_texts(arguments: Sequence[str]) -> tuple[list[str], Texts]:
    """(models, their rows with a scored rationale) of result folders, FOLDER or NAME=FOLDER."""
    results = [read_result(argument) for argument in arguments]
    check_together(results)
    models = [result.name for result in results]
    found: Texts = {}
    if len(set(models)) < len(models):
        raise UsageError(f"two results are called {max(models, key=models.count)!r}; give NAME=FOLDER")
    for result in results:
        for row in load_results(result.folder)[1]:
            if row["mode"] == "rationale" and row["scores"]:
                found.setdefault((row["language"], row["key"]), {})[result.name] = row
    return models, found


def read_cases(arguments: Sequence[str], items: int = ITEMS, seed: int = 0) -> tuple[list[str], list[Case]]:
    """(models, cases): `items` of each language that every model answered, drawn by `seed` (0: all).

    In a language where people checked the references, only items whose reference passed are rated.
    """
    models, found = read_texts(arguments)
    if not 2 <= len(models) <= 26:
        raise UsageError(f"{len(models)} results; a ranking needs 2 to 26")
    complete = {place: rows for place, rows in found.items() if len(rows) == len(models)}
    if not complete:
        raise UserError(f"{arguments[0]}: no rationale with a reference is common to all results")
    passed = [place for place, rows in complete.items()
              if next(iter(rows.values()))["doc"]["human_check_passed"]]
    cases = []
    for language in language_order(language for language, _ in complete):
        keys = sorted([key for name, key in passed if name == language]
                      or [key for name, key in complete if name == language])
        if len(keys) < items:
            print(f"note: {language} has {len(keys)} of the {items} items asked for", file=sys.stderr)
        chosen = random.Random(f"items {seed} {language}").sample(keys, min(items or len(keys), len(keys)))
        cases += [case_of(complete[language, key]) for key in chosen]
    return models, cases


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
