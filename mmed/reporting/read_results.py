"""Reads the inputs of a report: result folders, run folders, and the counts of corpus steps."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json
from mmed.utils.untrusted import as_name, is_finite, reading, split_argument

SETTINGS = {"zero-shot": "Zero-shot", "few-shot": "Few-shot", "lora": "LoRA fine-tuning",
            "full": "Full fine-tuning"}
MACRO = "Macro average"


# ---- results -----------------------------------------------------------------------------------------------

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
    hits: dict[tuple[str, str], bool] = field(default_factory=dict)  # (language, key) -> right

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
    own, _ = load_results(folder)
    settings = own["settings"]
    setting = setting or settings.get("setting")
    if setting == "finetuned":
        setting = "lora" if settings.get("adapter") else "full"
    if setting not in SETTINGS:
        raise UserError(f"{folder}: unknown setting {setting!r}; give it as SETTING:NAME=FOLDER")
    name = as_name(name or folder.resolve().name)
    return Result(name, setting, folder, settings, own["facts"], own["headline"], own["summary"])


def check_together(results: Sequence[Result]) -> None:
    """Rows of one table must have the same items and distinct names."""
    for place, result in enumerate(results):
        if result.full_name in [other.full_name for other in results[:place]]:
            raise UsageError(f"{result.folder}: duplicate row {result.full_name!r}; give it as NAME=FOLDER")
        ours, theirs = ([one.facts.get("data"), {name: part["n"] for name, part in one.parts.items()}]
                        for one in (result, results[0]))
        if ours != theirs:
            raise UserError(f"{result.folder}: its exam items differ from those of {results[0].folder}; "
                            "make a separate report for each exam")


def read_predictions(results: Sequence[Result], per_language: int) -> list[dict[str, Any]]:
    """The first questions of each language with the rows of all results; fills `hits`, too."""
    questions: dict[tuple[str, str], list[list[dict]]] = {}
    shown: Counter = Counter()
    for index, result in enumerate(results):
        mode, key = COLUMNS[result.headline]
        for row in load_results(result.folder)[1]:
            place = row["language"], row["key"]
            if row["mode"] == mode:
                result.hits[place] = row[key]
            if index == 0 and place not in questions and shown[row["language"]] < per_language:
                shown[row["language"]] += 1
                questions[place] = [[] for _ in results]
            if place in questions:
                questions[place][index].append(row)
        if result.hits.keys() != results[0].hits.keys():
            raise UserError(f"{result.folder}: predictions.jsonl has other items than the one in "
                            f"{results[0].folder}")
    return [{**answers[0][0], "code": get_language(place[0]).code, "answers": answers,
             "right": [result.hits[place] for result in results]} for place, answers in questions.items()]


# ---- runs --------------------------------------------------------------------------------------------------

Curve = list[tuple[float, float]]  # (target tokens, loss)


@dataclass
class Run:
    """A run folder of `mmed/train.py`: its facts, and its log as far as it is complete."""

    name: str
    facts: dict[str, Any]
    finished: bool
    loss: Curve = field(default_factory=list)
    validation: dict[str, Curve] = field(default_factory=dict)  # by language
    tokens_per_second: float = 0.0  # median over the log
    notes: list[str] = field(default_factory=list)


def read_run(argument: str) -> Run:
    _, name, given = split_argument(argument)
    folder = Path(given)
    facts, log = read_json(folder / "run.json"), folder / "metrics.jsonl"
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(f"{folder / 'run.json'}: not the run.json of a training run")
    run = Run(as_name(name or folder.resolve().name), facts, (folder / "done.json").is_file())
    rates, not_finite = [], 0
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for count, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if count < len(lines):
                raise UserError(f"{log}:{count}: not a line of a training log ({error})") from None
            run.notes.append(f"the log is complete up to line {count - 1}")  # it is being written, or was cut
            break
        with reading(f"{log}:{count}"):
            losses = [(run.validation.setdefault(language, []), loss)
                      for language, loss in line.get("validation_loss", {}).items()]
            if line["step"]:  # step 0 is the validation before training
                losses.append((run.loss, line["loss"]))
                rates.append(line["tokens_per_second"])
            for curve, loss in losses:
                curve.extend([(line["targets"], loss)] if is_finite(loss) else [])
                not_finite += not is_finite(loss)
    run.validation = {language: curve for language, curve in run.validation.items() if curve}
    if not_finite:
        run.notes.append(f"{not_finite:,} losses that are not finite numbers are not drawn")
    run.tokens_per_second = sorted(rates)[len(rates) // 2] if rates else 0.0
    return run


# ---- corpus ------------------------------------------------------------------------------------------------

@dataclass
class Corpus:
    steps: list[dict] = field(default_factory=list)  # name, places: (folder, documents in, kept), dropped
    streams: list[tuple[str, dict]] = field(default_factory=list)  # (name, side file) of token streams


def read_corpus(folders: Sequence[str]) -> Corpus:
    """The counts of every step and of every token stream under the folders."""
    steps: dict[str, dict] = {}
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
        with reading(path):
            value = read_json(path)
            if path.name != "funnel.json":
                streams.append((place.removesuffix(".json"), value))
                continue
            name, documents = value["step"], value["documents"]
            step = steps.setdefault(name, {"name": name, "places": [], "dropped": Counter()})
            step["places"].append((place.removesuffix("/funnel.json"), documents["in"], documents["out"]))
            for reason, entry in value["dropped"].items():
                step["dropped"][reason] += entry["documents"]
    # A later step reads what an earlier one kept: the more documents come in, the earlier the step
    order = sorted(steps.values(), key=lambda step: -sum(read for _, read, _ in step["places"]))
    return Corpus(order, streams)
