"""Reads the inputs of a report: result folders, run folders, and the counts of corpus steps."""
from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS, group_by
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json
from mmed.utils.untrusted import as_name, is_finite, reading, split_argument

SETTINGS = {"zero-shot": "Zero-shot", "few-shot": "Few-shot", "lora": "LoRA fine-tuning",
            "full": "Full fine-tuning"}
MACRO = "Macro average"


@dataclass
class Result:
    """One row of the tables: a result folder under a name and a setting."""

    name: str
    setting: str  # a key of SETTINGS
    folder: Path
    settings: dict[str, Any]
    facts: dict[str, Any]
    headline: str  # the accuracy that represents the model: a key of COLUMNS
    summary: dict[str, Any]
    hits: dict[tuple[str, str], bool]  # (language, key) -> right, by the headline accuracy

    @property
    def full_name(self) -> str:
        return f"{self.name} · {SETTINGS[self.setting]}"

    @property
    def parts(self) -> dict[str, dict]:
        """The columns of a table: the summary of each language, and their average."""
        return {**self.summary["languages"], MACRO: self.summary["macro"]}


def read_result(argument: str) -> Result:
    """Reads FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER."""
    setting, name, given = split_argument(argument, SETTINGS)
    folder = Path(given)
    own, rows = load_results(folder)
    settings = own["settings"]
    setting = setting or settings.get("setting")
    if setting == "finetuned":
        setting = "lora" if settings.get("adapter") else "full"
    if setting not in SETTINGS:
        raise UserError(f"{folder}: unknown setting {setting!r}; give it as SETTING:NAME=FOLDER")
    mode, key = COLUMNS[own["headline"]]
    hits = {(row["language"], row["key"]): row[key] for row in rows if row["mode"] == mode}
    name = as_name(name or folder.resolve().name)
    return Result(name, setting, folder, settings, own["facts"], own["headline"], own["summary"], hits)


def check_together(results: Sequence[Result]) -> None:
    """Rows of one table must have the same items and distinct names."""
    for place, result in enumerate(results):
        if result.full_name in [other.full_name for other in results[:place]]:
            raise UsageError(f"{result.folder}: duplicate row {result.full_name!r}; give it as NAME=FOLDER")
        ours, theirs = ((one.facts.get("data"), one.hits.keys()) for one in (result, results[0]))
        if ours != theirs:
            raise UserError(f"{result.folder}: its exam items differ from those of {results[0].folder}; "
                            "make a separate report for each exam")


def read_questions(results: Sequence[Result], per_language: int) -> list[dict[str, Any]]:
    """The first questions of each language with the rows of all results."""
    answers: dict[tuple[str, str], list[list[dict]]] = {}
    for places in group_by(results[0].hits if results else (), lambda place: place[0]).values():
        answers |= {place: [[] for _ in results] for place in places[:per_language]}
    for index, result in enumerate(results):
        for row in load_results(result.folder)[1]:
            if (row["language"], row["key"]) in answers:
                answers[row["language"], row["key"]][index].append(row)
    return [{**rows[0][0], "code": get_language(place[0]).code, "answers": rows,
             "right": [result.hits[place] for result in results]} for place, rows in answers.items()]


@dataclass
class Run:
    """A run folder of `mmed/train.py`. A curve is [(target tokens, loss)], of finite losses only."""

    name: str
    facts: dict[str, Any]
    finished: bool
    loss: list[tuple[float, float]]
    validation: dict[str, list[tuple[float, float]]]  # by language
    tokens_per_second: float  # median over the log
    not_finite: int  # losses that are in no curve


def read_run(argument: str) -> Run:
    _, name, given = split_argument(argument)
    folder = Path(given)
    facts, log = read_json(folder / "run.json"), folder / "metrics.jsonl"
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(f"{folder / 'run.json'}: not the run.json of a training run")
    curves, rates, not_finite = defaultdict(list), [], 0  # the training loss has the name None
    *lines, _ = log.read_text(encoding="utf-8", errors="replace").split("\n")  # the last may be incomplete
    for number, text in enumerate(lines, 1):
        with reading(f"{log}:{number}"):
            line = json.loads(text)
            losses = dict(line.get("validation_loss", {}))
            if line["step"]:  # step 0 is the validation before training
                losses[None] = line["loss"]
                rates.append(line["tokens_per_second"])
            for curve, loss in losses.items():
                if is_finite(loss):
                    curves[curve].append((line["targets"], loss))
                else:
                    not_finite += 1
    return Run(as_name(name or folder.resolve().name), facts, (folder / "done.json").is_file(),
               curves.pop(None, []), dict(curves), statistics.median(rates or [0.0]), not_finite)


def read_corpus(folders: Sequence[str]) -> dict[str, list]:
    """The counts of every step and of every token stream (name, side file) under the folders."""
    steps: dict[str, dict] = {}  # name -> name, dropped by reason, places: (folder, documents in, kept)
    streams = []
    places: dict[Path, str] = {}  # each file once, also where one folder contains another
    for folder in map(Path, folders):
        paths = [path for path in sorted(folder.rglob("*.json"))
                 if path.name == "funnel.json" or path.with_suffix(".idx").is_file()]
        if not paths:
            raise UserError(f"{folder}: no funnel.json or token stream in it; give the output folder of "
                            "data_prep's steps")
        for path in paths:
            places.setdefault(path.resolve(), path.relative_to(folder.parent).as_posix())
    for path, place in places.items():
        value = read_json(path)
        if path.name != "funnel.json":
            streams.append((place.removesuffix(".json"), value))
            continue
        with reading(path):
            name, documents = value["step"], value["documents"]
            step = steps.setdefault(name, {"name": name, "places": [], "dropped": Counter()})
            step["places"].append((place.removesuffix("/funnel.json"), documents["in"], documents["out"]))
            for reason, entry in value["dropped"].items():
                step["dropped"][reason] += entry["documents"]
    # A later step reads what an earlier one kept: the more documents come in, the earlier the step
    order = sorted(steps.values(), key=lambda step: -sum(read for _, read, _ in step["places"]))
    return {"steps": order, "streams": streams}
