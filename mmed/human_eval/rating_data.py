"""What is rated and what comes of it: the same items of several result folders, and files of ratings.

In: result folders of `mmed.eval`, one a model. Out: `Case`s (an item with the rationale of every model), drawn by a seed so that people
and judge see the same ones; a blind order of the models for each; and the file in which ratings of people and of a judge alike are kept:

    {"format": "mmed ratings", "version": 1, "by": {"kind": "people" or "judge", ...}, "models": [...],
     "cases": {"French": {"item key": {"digest": sha256 of the case, "scores": {"model": points}}}}, ...}

MMedLM: of m texts the best gets m points (6 in the paper, which rated six models), the worst 1.
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
from mmed.evaluation.summary import counts_for_text, language_order
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json
from mmed.utils.untrusted import as_name, number, plain, split_argument

FORMAT, VERSION = "mmed ratings", 1
ITEMS = 50  # MMedLM: 50 random test items of each language
MAX_FILE_BYTES = 1 << 28
LONGEST_TEXT = 20_000  # characters of a text that are shown; more than any rationale has


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
        """sha256 of all of it: ratings of other texts are told by it."""
        whole = [self.key, self.language, self.question, list(self.options.items()), self.gold, self.reference, sorted(self.texts.items())]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=True).encode()).hexdigest()

    def letters(self, seed: int) -> dict[str, str]:
        """letter -> model, in an order of its own for each case: who wrote A cannot be guessed from another item."""
        models = sorted(self.texts)
        random.Random(f"order {seed} {self.language} {self.key}").shuffle(models)
        return dict(zip(string.ascii_uppercase, models))


# -------------------------------------------------------------------------------------------------------- result folders

def read_texts(arguments: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], dict[str, dict]]]:
    """(models in the order given, (language, key) -> model -> row with a rationale) of FOLDER or NAME=FOLDER arguments."""
    models: list[str] = []
    found: dict[tuple[str, str], dict[str, dict]] = {}
    data = None
    for argument in arguments:
        _, name, given = split_argument(argument)
        name = as_name(name or Path(given).resolve().name)
        if name in models:
            raise UsageError(f"{as_name(argument)}: a second result called {name!r}; give NAME=FOLDER")
        own, rows = load_results(given)
        data = data or (given, own["facts"].get("data"))
        if own["facts"].get("data") != data[1]:
            raise UserError(f"{given}: results on other data than {data[0]}; only models that answered the same items can be compared")
        models.append(name)
        seen = False
        for row in rows:
            if row.get("mode") == "rationale" and row.get("scores"):
                found.setdefault((row["language"], row["key"]), {})[name] = row
                seen = True
        if not seen:
            raise UserError(f"{given}: no rationale with a reference (was it run with --mode answer?)")
    return models, found


def case_of(rows: Mapping[str, dict]) -> Case:
    row = next(iter(rows.values()))
    doc = row["doc"]
    return Case(row["key"], row["language"], doc["question"], dict(doc["options"]), row["gold"], doc["rationale"],
                {model: one["rationale"] for model, one in rows.items()})


def read_cases(arguments: Sequence[str], items: int = ITEMS, seed: int = 0, languages: Sequence[str] = ()) -> tuple[list[str], list[Case]]:
    """(models, cases): `items` of each language that every model answered, drawn by `seed` (0 items: all of them).

    Only items that count for the text metrics (mmed/evaluation/summary.py): those whose reference people found good, where any was checked.
    """
    models, found = read_texts(arguments)
    if not 2 <= len(models) <= 26:
        raise UsageError(f"{len(models)} results; a ranking is made of 2 to 26")
    whole = {place: rows for place, rows in found.items() if len(rows) == len(models)}
    if len(whole) < len(found):
        print(f"note: {len(found) - len(whole):,} items left out: not every result has them", file=sys.stderr)
    checked = any(row["doc"].get("human_check_passed") for rows in whole.values() for row in rows.values())
    names = language_order(language for language, _ in whole)
    for name in languages:
        if name not in names:
            raise UsageError(f"--language {as_name(name)}: the results have {', '.join(names) or 'no item in common'}")
    cases = []
    for language in languages or names:
        keys = sorted(key for (name, key), rows in whole.items() if name == language and all(counts_for_text(row, checked) for row in rows.values()))
        if items and len(keys) < items:
            print(f"note: {language} has {len(keys)} items to rate, {items} were asked for", file=sys.stderr)
        rng = random.Random(f"items {seed} {language}")
        cases += [case_of(whole[language, key]) for key in rng.sample(keys, min(items, len(keys)) if items else len(keys))]
    if not cases:
        raise UserError(f"{arguments[0]}: no item to rate: none that all results answered has a reference rationale")
    return models, cases


# -------------------------------------------------------------------------------------------------------- files of ratings

def averages(models: Sequence[str], cases: Mapping[str, Mapping[str, Mapping]]) -> dict[str, dict[str, float]]:
    """model -> language -> mean points, and "macro", the mean of the languages."""
    table: dict[str, dict[str, float]] = {}
    for model in models:
        row = {language: metrics.mean(case["scores"][model] for case in part.values()) for language, part in cases.items() if part}
        table[model] = row | {"macro": metrics.mean(row.values())}
    return table


def write_ratings(path: str | Path, by: Mapping[str, Any], models: Sequence[str], cases: Mapping[str, Mapping[str, Mapping]], **more: Any) -> dict:
    """Write a file of ratings; `more` stands beside the ratings."""
    value = {"format": FORMAT, "version": VERSION, "by": dict(by), "models": list(models), "points": f"{len(models)} best to 1 worst",
             "average": averages(models, cases), **more, "cases": cases}
    write_json(path, value)
    return value


def read_object(path: str | Path, form: str) -> dict:
    """A JSON file of ours that says of itself what it is."""
    path = Path(path)
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many (limit {MAX_FILE_BYTES:,})")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != form:
        raise UserError(f"{path}: no file of {form!r}")
    if value.get("version") != VERSION:
        raise UserError(f"{path}: of version {str(value.get('version'))[:20]}, this reads version {VERSION}")
    return value


def read_ratings(path: str | Path) -> dict:
    """A file of ratings, every number checked."""
    value = read_object(path, FORMAT)
    models, cases = value.get("models"), value.get("cases")
    if not isinstance(models, list) or len(models) < 2 or not all(isinstance(name, str) for name in models) or not isinstance(cases, dict) \
            or not isinstance(value.get("by"), dict):
        raise UserError(f"{path}: expected 'by', 'models' and 'cases'")
    for language, part in cases.items():
        for key, case in part.items() if isinstance(part, dict) else [("?", None)]:
            where = f"{path}: {as_name(language)}, item {as_name(key)}"
            raters = case.get("raters", {}) if isinstance(case, dict) else {}
            if not isinstance(raters, dict):
                raise UserError(f"{where}: 'raters' must map names to scores")
            for scores in (case.get("scores") if isinstance(case, dict) else None, *raters.values()):
                _check_scores(scores, models, where)
    return value


def _check_scores(scores: Any, models: Sequence[str], where: str) -> None:
    if not isinstance(scores, dict) or set(scores) != set(models):
        raise UserError(f"{where}: expected a score for each of {', '.join(map(as_name, models))}")
    for model, score in scores.items():
        try:
            number(score, 1, len(models))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: score of {as_name(model)}: {error}; expected 1 to {len(models)}") from None


def shown(text: str) -> str:
    """Text for people and judges: no control characters, no marks that turn its direction, not endless."""
    return plain(text, LONGEST_TEXT)
