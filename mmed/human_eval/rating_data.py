"""What is rated, and what comes of it: the same items from several result folders, and files of ratings.

In: result folders of `mmed.eval`, one per model. Out: `Case`s, drawn by a seed so that people and judge see
the same ones, a blind order of the models for each case, and the ratings file of people and judges alike:

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
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json
from mmed.utils.untrusted import as_name, number, plain, split_argument

FORMAT, VERSION = "mmed ratings", 1
ITEMS = 50  # MMedLM: 50 random test items of each language
LONGEST_TEXT = 20_000  # characters of a text that are shown; no rationale is longer


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
                 self.reference,
                 sorted(self.texts.items())]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=True).encode()).hexdigest()

    def letters(self, seed: int) -> dict[str, str]:
        """letter -> model; each case has its own order, so nobody can infer from one item who wrote A in the
        next.
        """
        models = sorted(self.texts)
        random.Random(f"order {seed} {self.language} {self.key}").shuffle(models)
        return dict(zip(string.ascii_uppercase, models))


Texts = dict[tuple[str, str], dict[str, dict]]  # (language, key) -> model -> row of predictions.jsonl


def read_texts(arguments: Sequence[str]) -> tuple[list[str], Texts]:
    """(models in the order given, their rows that have a scored rationale) of FOLDER or NAME=FOLDER
    arguments.
    """
    models: list[str] = []
    found: Texts = {}
    data = None
    for argument in arguments:
        _, name, given = split_argument(argument)
        name = as_name(name or Path(given).resolve().name)
        if name in models:
            raise UsageError(f"{argument}: a second result called {name!r}; give NAME=FOLDER")
        own, rows = load_results(given)
        data = data or (given, own["facts"].get("data"))
        if own["facts"].get("data") != data[1]:
            raise UserError(f"{given}: results on other data than {data[0]}; only models that answered "
                            f"the same items "
                            "can be compared")
        rationales = [row for row in rows if row["mode"] == "rationale" and row["scores"]]
        if not rationales:
            raise UserError(f"{given}: no rationale with a reference (was it run with --mode answer?)")
        for row in rationales:
            found.setdefault((row["language"], row["key"]), {})[name] = row
        models.append(name)
    return models, found


def case_of(rows: Mapping[str, dict]) -> Case:
    row = next(iter(rows.values()))
    doc = row["doc"]
    return Case(row["key"], row["language"], doc["question"], dict(doc["options"]), row["gold"],
                doc["rationale"],
                {model: one["rationale"] for model, one in rows.items()})


def read_cases(arguments: Sequence[str], items: int = ITEMS, seed: int = 0,
               languages: Sequence[str] = ()) -> tuple[list[str], list[Case]]:
    """(models, cases): `items` of each language that every model answered, drawn by `seed` (0 items: all of
    them).

    In a language where people checked the references, only items whose reference passed are rated.
    """
    models, found = read_texts(arguments)
    if not 2 <= len(models) <= 26:
        raise UsageError(f"{len(models)} results; a ranking needs 2 to 26")
    complete = {place: rows for place, rows in found.items() if len(rows) == len(models)}
    if len(complete) < len(found):
        print(f"note: {len(found) - len(complete):,} items are left out: not every result has them",
              file=sys.stderr)
    names = language_order(language for language, _ in complete)
    for name in languages:
        if name not in names:
            raise UsageError(f"--language {name}: the results have {', '.join(names) or 'no item in common'}")
    cases = []
    for language in languages or names:
        rows_of = {key: rows for (own, key), rows in complete.items() if own == language}
        keys = sorted(_checked(rows_of))
        if items and len(keys) < items:
            print(f"note: {language} has {len(keys)} of the {items} items asked for", file=sys.stderr)
        rng = random.Random(f"items {seed} {language}")
        cases += [case_of(rows_of[key]) for key in rng.sample(keys, min(items or len(keys), len(keys)))]
    if not cases:
        raise UserError(f"{arguments[0]}: no item to rate: none that all results answered has a "
                        f"reference rationale")
    return models, cases


def _checked(rows_of: Mapping[str, Mapping[str, dict]]) -> list[str]:
    """Keys of one language's items that passed the human check, or all keys where nobody checked any."""
    passed = [key for key, rows in rows_of.items()
              if next(iter(rows.values()))["doc"]["human_check_passed"] is True]
    return passed or list(rows_of)


def averages(models: Sequence[str], cases: Mapping[str, Mapping[str, Mapping]]) -> dict[str,
                                                                                        dict[str, float]]:
    """model -> language -> mean points, and "macro", the mean of the languages."""
    table = {}
    for model in models:
        row = {language: metrics.mean(case["scores"][model] for case in part.values())
               for language, part in cases.items() if part}
        table[model] = row | {"macro": metrics.mean(row.values())}
    return table


def write_ratings(path: str | Path, by: Mapping[str, Any], models: Sequence[str],
                  cases: Mapping[str, Mapping[str, Mapping]], **more: Any) -> dict:
    """Writes a ratings file; `more` is stored beside the ratings."""
    value = {"format": FORMAT, "version": VERSION, "by": dict(by), "models": list(models),
             "points": f"{len(models)} best to 1 worst", "average": averages(models, cases), **more,
             "cases": cases}
    write_json(path, value)
    return value


def read_object(path: str | Path, form: str) -> dict:
    """A JSON file whose "format" is `form`."""
    value = read_json(Path(path))
    if not isinstance(value, dict) or value.get("format") != form or value.get("version") != VERSION:
        raise UserError(f"{path}: not a file of format {form!r}, version {VERSION}")
    return value


def read_ratings(path: str | Path) -> dict:
    """A ratings file with a score between 1 and m for each of the m models in each case, by each rater."""
    value = read_object(path, FORMAT)
    try:
        where, models = "by and models", value["models"]
        value["by"]["kind"]
        for language, part in value["cases"].items():
            for key, case in part.items():
                where = f"{language}, item {key}"
                for scores in (case["scores"], *case.get("raters", {}).values()):
                    if set(scores) != set(models):
                        raise ValueError(f"expected a score for each of {', '.join(models)}")
                    for score in scores.values():
                        number(score, 1, len(models))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {where}: {type(error).__name__}: {error}") from None
    return value


def shown(text: str) -> str:
    """Text for people and judges: without control characters and direction overrides, of bounded length."""
    return plain(text, LONGEST_TEXT)
