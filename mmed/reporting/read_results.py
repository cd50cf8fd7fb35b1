"""Reads what a report is made of: result folders, run folders, and the counts of corpus steps."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed.evaluation import significance
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS, language_order
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json
from mmed.utils.fingerprints import file_hash
from mmed.utils.untrusted import as_name, is_finite, reading, split_argument

SETTINGS = {"zero-shot": "Zero-shot", "few-shot": "Few-shot", "lora": "LoRA fine-tuning",
            "full": "Full fine-tuning"}


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
    hashes: dict[str, str]
    hits: dict[tuple[str, str], bool] = field(default_factory=dict)  # (language, key) -> right
    letters: Counter = field(default_factory=Counter)  # (right letter, answered letter, "several" or "none")

    @property
    def full_name(self) -> str:
        return f"{self.name} · {SETTINGS[self.setting]}"


def read_result(argument: str) -> Result:
    """Reads FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER."""
    setting, name, given = split_argument(argument, SETTINGS)
    folder = Path(given)
    own, _ = load_results(folder)
    settings, summary = own["settings"], own["summary"]
    with reading(folder / "results.json"):
        check_scores(summary)
        order = language_order(summary["languages"])
        summary["languages"] = {language: summary["languages"][language] for language in order}
        for part in (*summary["languages"].values(), summary["micro"], summary["macro"]):
            part["accuracy"][own["headline"]]  # a KeyError here names what is missing
    setting = setting or settings.get("setting")
    if setting == "finetuned":
        setting = "lora" if settings.get("adapter") else "full"
    if setting not in SETTINGS:
        raise UserError(f"{folder}: unknown setting {setting!r}; give it as SETTING:NAME=FOLDER")
    hashes = {file: file_hash(folder / file) for file in ("results.json", "predictions.jsonl")}
    name = as_name(name or settings.get("name") or folder.resolve().name)
    return Result(name, setting, folder, settings, own["facts"], own["headline"], summary, hashes)


def check_scores(summary: dict[str, Any]) -> None:
    """Every score is a finite number of any sign and size; its interval may be missing."""
    for name, value in summary.items():
        if isinstance(value, dict):
            check_scores(value)
        elif name == "value" and not is_finite(value):
            raise ValueError(f"the score {value!r:.40} is not a number")


def check_together(results: Sequence[Result]) -> None:
    """Rows of one table must have the same items, and names that tell them apart."""
    for place, result in enumerate(results):
        if result.full_name in [other.full_name for other in results[:place]]:
            raise UsageError(f"{result.folder}: a second row {result.full_name!r}; give it as NAME=FOLDER")
        ours, theirs = ([one.facts.get("data"), {language: part["n"] for language, part
                                                 in one.summary["languages"].items()}]
                        for one in (result, results[0]))
        if ours != theirs:
            raise UserError(f"{result.folder}: other exam items than {results[0].folder}; make a separate "
                            "report for each exam")


def read_predictions(results: Sequence[Result], per_language: int) -> list[dict[str, Any]]:
    """The first questions of each language with the rows of all results; fills `hits` and `letters`, too."""
    questions: dict[tuple[str, str], list[list[dict]]] = {}
    shown: Counter = Counter()
    for index, result in enumerate(results):
        mode, key = COLUMNS[result.headline]
        for row in load_results(result.folder)[1]:
            place = row["language"], row["key"]
            if row["mode"] == mode:
                result.hits[place] = row[key]
                if "," not in row["gold"]:
                    letters = [letter for letter in row["parsed"].split(",") if letter]
                    answered = letters[0] if len(letters) == 1 else "several" if letters else "none"
                    result.letters[row["gold"], answered] += 1
            if index == 0 and place not in questions and shown[row["language"]] < per_language:
                shown[row["language"]] += 1
                questions[place] = [[] for _ in results]
            if place in questions:
                questions[place][index].append(row)
        if result.hits.keys() != results[0].hits.keys():
            raise UserError(f"{result.folder}: predictions.jsonl has other items than that of "
                            f"{results[0].folder}")
    return [{**answers[0][0], "code": get_language(place[0]).code, "answers": answers,
             "right": [result.hits[place] for result in results]} for place, answers in questions.items()]


def differences(first: Result, other: Result) -> list[dict[str, Any]]:
    """`other` minus `first` by language and over all: gap with interval, and p, which tests exactly this gap.

    McNemar's exact test for a language and for all questions, sign flips for the macro average.
    """
    languages = list(first.summary["languages"])
    found = []
    for group in [*languages, *(["Macro average", "All questions"] if len(languages) > 1 else [])]:
        keys = [key for key in first.hits if group not in languages or key[0] == group]
        a, b = ([result.hits[key] for key in keys] for result in (other, first))
        macro = group == "Macro average"
        gap = significance.paired_bootstrap(a, b, seed=0, groups=[key[0] for key in keys] if macro else None)
        p, test = (gap.p, "sign flips") if macro else (significance.mcnemar(a, b), "McNemar")
        found.append({"group": group, "n": len(keys), "gap": gap, "p": p, "test": test})
    return found


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
            losses = [(run.validation.setdefault(language, []), value)
                      for language, value in line.get("validation_loss", {}).items()]
            if line["step"]:  # step 0 is the validation before training
                losses.append((run.loss, line.get("loss")))
                rates.append(float(line["tokens_per_second"]))
            for curve, value in losses:
                curve.extend([(float(line["tokens"]), value)] if is_finite(value) else [])
                not_finite += not is_finite(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if count < len(lines):
                raise UserError(f"{log}:{count}: not a line of a training log ({error})") from None
            run.notes.append(f"the log is complete up to line {count - 1}")  # it is being written, or was cut
    run.validation = {language: curve for language, curve in run.validation.items() if curve}
    if not_finite:
        run.notes.append(f"{not_finite:,} losses that are not finite numbers are not drawn")
    if not run.loss:
        run.notes.append("no step is logged yet")
    run.tokens_per_second = sorted(rates)[len(rates) // 2] if rates else 0.0
    return run


# ---- corpus ------------------------------------------------------------------------------------------------

@dataclass
class CorpusStep:
    name: str
    places: list[tuple[str, int, int]] = field(default_factory=list)  # (folder, documents in, documents kept)
    dropped: Counter = field(default_factory=Counter)  # reason -> documents


@dataclass
class Corpus:
    steps: list[CorpusStep]
    streams: list[tuple[str, dict]]  # (name, side file) of token streams


def read_corpus(folders: Sequence[str]) -> Corpus:
    """The counts of every step and of every token stream under the folders."""
    steps: dict[str, CorpusStep] = {}
    streams = []
    for folder in map(Path, folders):
        paths = [path for path in sorted(folder.rglob("*.json"))
                 if path.name == "funnel.json" or path.with_suffix(".idx").is_file()]
        if not paths:
            raise UserError(f"{folder}: no funnel.json and no token stream in it; give the output folder of "
                            "data_prep's steps")
        for path in paths:
            value, place = read_json(path), path.relative_to(folder.parent)
            with reading(path):
                if path.name == "funnel.json":
                    step = steps.setdefault(value["step"], CorpusStep(value["step"]))
                    documents = value["documents"]
                    step.places.append((place.parent.as_posix(), documents["in"], documents["out"]))
                    for reason, entry in value["dropped"].items():
                        step.dropped[reason] += entry["documents"]
                else:
                    names = ("tokens", "documents", "tokenizer", "counts")
                    streams.append((place.with_suffix("").as_posix(), {name: value[name] for name in names}))
    # A later step reads what an earlier one kept: the more documents come in, the earlier the step
    return Corpus(sorted(steps.values(), key=lambda step: -sum(read for _, read, _ in step.places)), streams)
