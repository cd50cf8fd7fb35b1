"""Reads what a report is made of: result folders, run folders and the counts of corpus steps.

Out, in this order: `Result`; the questions and tallies of one pass over all predictions; paired differences;
`Run`; `Corpus`. A file that does not fit gives one `UserError` that names it.
"""
from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS, language_order
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json
from mmed.utils.fingerprints import file_hash
from mmed.utils.untrusted import as_name, is_finite, plain, split_argument

SETTINGS = {"zero-shot": "Zero-shot", "few-shot": "Few-shot", "lora": "LoRA fine-tuning",
            "full": "Full fine-tuning"}
DAMAGED = (KeyError, TypeError, ValueError, AttributeError,
           IndexError)  # what reading a damaged JSON value raises


def number(value: Any) -> float:
    if not is_finite(value):
        raise ValueError(f"expected a number, got {value!r:.40}")
    return value


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
    # (language, key) -> right, by the headline
    hits: dict[tuple[str, str], bool] = field(default_factory=dict)
    letters: Counter = field(default_factory=Counter)  # (right letter, answered letter, "several" or "none")
    kinds: Counter = field(default_factory=Counter)  # (heading, kind of question, right) -> items

    @property
    def full_name(self) -> str:
        return f"{self.name} · {SETTINGS[self.setting]}"


def read_result(argument: str) -> Result:
    """Reads FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER."""
    setting, name, given = split_argument(argument, SETTINGS)
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    own, _ = load_results(folder)
    settings, facts, summary = own["settings"], own["facts"], own["summary"]
    try:
        check_scores(summary)
        summary["languages"] = {name: summary["languages"][name]
                                for name in language_order(summary["languages"])}
        for part in (*summary["languages"].values(), summary["micro"], summary["macro"]):
            part["accuracy"][own["headline"]]  # a KeyError here names what is missing
    except DAMAGED as error:
        raise UserError(f"{folder / 'results.json'}: damaged ({type(error).__name__}: {error}); "
                        f"evaluate again") from None
    setting = setting or settings.get("setting")
    if setting == "finetuned":
        setting = "lora" if settings.get("adapter") else "full"
    if setting not in SETTINGS:
        raise UserError(f"{folder}: unknown setting {setting!r}; give it as SETTING:NAME=FOLDER")
    hashes = {file: file_hash(folder / file) for file in ("results.json", "predictions.jsonl")}
    name = as_name(name or settings.get("name") or folder.resolve().name)
    return Result(name, setting, folder, settings, facts, own["headline"], summary, hashes)


def check_scores(value: Any) -> None:
    """Every score in a summary is a finite number of any sign and size; its interval may be missing."""
    if isinstance(value, dict):
        if "value" in value:
            number(value["value"])
            for end in ("low", "high"):
                if value[end] is not None:
                    number(value[end])
        for part in value.values():
            check_scores(part)


def check_together(results: Sequence[Result]) -> None:
    """Rows of one table must have the same items, and names that tell them apart."""
    seen = set()
    for result in results:
        if (result.setting, result.name) in seen:
            raise UsageError(f"{result.folder}: a second row {result.name!r} under "
                             f"{SETTINGS[result.setting]}; "
                             "give it a name: NAME=FOLDER")
        seen.add((result.setting, result.name))
        ours, theirs = (({name: part["n"] for name, part in one.summary["languages"].items()},
                         one.facts.get("data"))
                        for one in (result, results[0]))
        if ours != theirs:
            raise UserError(f"{result.folder}: other exam items than {results[0].folder} "
                            f"({sum(ours[0].values()):,} of data "
                            f"{str(ours[1])[:12]} against {sum(theirs[0].values()):,} of "
                            f"{str(theirs[1])[:12]}); "
                            "make a separate report for each exam")


def read_predictions(results: Sequence[Result], per_language: int) -> list[dict[str, Any]]:
    """Fills each result's tallies in one pass and returns the first questions of each language with all
    answers.
    """
    questions: dict[tuple[str, str], dict] = {}
    shown: Counter = Counter()
    for index, result in enumerate(results):
        mode, key = COLUMNS[result.headline]
        for row in load_results(result.folder)[1]:
            place = row["language"], row["key"]
            if row["mode"] == mode:
                _count(result, row, row[key])
            if index == 0 and place not in questions and shown[row["language"]] < per_language:
                shown[row["language"]] += 1
                questions[place] = _question(row, len(results))
            if place in questions:
                questions[place]["answers"][index].append(_answer(row))
        if result.hits.keys() != results[0].hits.keys():
            raise UserError(f"{result.folder}: predictions.jsonl holds other items than that of "
                            f"{results[0].folder}")
    for place, question in questions.items():
        question["right"] = [result.hits[place] for result in results]
    return list(questions.values())


def _count(result: Result, row: dict, right: bool) -> None:
    doc = row["doc"]
    result.hits[row["language"], row["key"]] = right
    if "," not in row["gold"]:
        answered = [letter for letter in row["parsed"].split(",") if letter]
        result.letters[row["gold"], "none" if not answered else answered[0] if len(answered) == 1
                       else "several"] += 1
    kinds = {"Right answers": "several" if "," in row["gold"] else "one",
             "Number of options": len(doc["options"])}
    if isinstance(image := doc["extra"].get("image_dependent"), bool):
        kinds["Image"] = "needed" if image else "not needed"
    if isinstance(topic := doc["extra"].get("topic"), str):
        kinds["Topic"] = as_name(topic)
    for heading, kind in kinds.items():
        result.kinds[heading, kind, right] += 1


def _question(row: dict, results: int) -> dict[str, Any]:
    doc = row["doc"]
    return {"language": row["language"], "code": get_language(row["language"]).code,
            "key": as_name(row["key"]),
            "gold": row["gold"].split(","), "topic": as_name(doc["extra"].get("topic") or ""),
            "question": plain(doc["question"]).strip(), "rationale": plain(doc["rationale"]),
            "options": [(letter, plain(text)) for letter, text in doc["options"].items()],
            "answers": [[] for _ in range(results)]}


def _answer(row: dict) -> dict[str, Any]:
    shows_text = row["mode"] == "rationale" or row["status"] != "strict"
    return {"mode": row["mode"], "letters": row["parsed"], "right": row["correct"], "status": row["status"],
            "text": plain(row.get("text", "")) if shows_text else ""}


@dataclass
class Difference:
    """One model against another on some of the questions; `p` tests exactly this difference."""

    group: str  # a language, "Macro average" or "All questions"
    n: int
    difference: float
    low: float
    high: float
    p: float
    test: str


def differences(first: Result, other: Result) -> list[Difference]:
    """`other` minus `first`: McNemar's exact test of a language and of all questions, bootstrap of the macro
    average.
    """
    keys = list(first.hits)
    found = []
    languages = list(first.summary["languages"])
    for group in [*languages, *(["Macro average", "All questions"] if len(languages) > 1 else [])]:
        chosen = [key for key in keys if group not in languages or key[0] == group]
        a, b = ([result.hits[key] for key in chosen] for result in (other, first))
        macro = group == "Macro average"
        gap = metrics.paired_bootstrap(a, b, seed=0, groups=[language for language, _ in chosen] if macro
                                       else None)
        p, test = (gap.p, "bootstrap") if macro else (metrics.mcnemar(a, b), "McNemar")
        found.append(Difference(group, len(chosen), gap.difference, gap.low, gap.high, p, test))
    return found


@dataclass
class Run:
    """A run folder of `mmed/train.py`: its facts, and its log as far as it is complete."""

    name: str
    facts: dict[str, Any]
    finished: bool
    loss: list[tuple[float, float]] = field(default_factory=list)  # (target tokens, training loss)
    # language -> [(tokens, loss)]
    validation: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    tokens_per_second: float = 0.0  # median over the log
    notes: list[str] = field(default_factory=list)


def read_run(argument: str) -> Run:
    _, name, given = split_argument(argument)
    folder = Path(given)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    facts, log = read_json(folder / "run.json"), folder / "metrics.jsonl"
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(f"{folder / 'run.json'}: not the run.json of a training run")
    run = Run(as_name(name or folder.resolve().name), facts, (folder / "done.json").is_file())
    rates, losses = [], 0
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for number_of_line, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            tokens = number(line["tokens"])
            values = [(name, value) for name, value in line.get("validation_loss", {}).items()]
            if line["step"]:  # step 0 is the validation before training
                rates.append(number(line["tokens_per_second"]))
                values.append((None, line.get("loss")))
        except DAMAGED as error:
            if number_of_line == len(lines):  # the run was killed while it wrote, or is writing now
                run.notes.append(f"the log is complete up to line {number_of_line - 1}")
                break
            raise UserError(f"{log}:{number_of_line}: not a line of a training log ({error})") from None
        for language, value in values:
            if isinstance(value, int | float) and math.isfinite(value):
                (run.loss if language is None
                 else run.validation.setdefault(language, [])).append((tokens, value))
            else:
                losses += 1
    if losses:
        run.notes.append(f"{losses:,} losses that are not finite numbers are not drawn")
    if not run.loss:
        run.notes.append("no step is logged yet")
    run.tokens_per_second = sorted(rates)[len(rates) // 2] if rates else 0.0
    return run


@dataclass
class Corpus:
    """Counts of corpus steps, in the order in which they follow one another, and of token streams: [(place,
    counts)].
    """

    steps: dict[str, list[tuple[str, dict]]]
    streams: list[tuple[str, dict]]


def read_corpus(folders: Sequence[str]) -> Corpus:
    """Reads every funnel.json and every side file of a token stream under the folders."""
    steps: dict[str, list[tuple[str, dict]]] = {}
    streams = []
    for folder in map(Path, folders):
        paths = [path for path in sorted(folder.rglob("*.json"))
                 if path.name == "funnel.json" or path.with_suffix(".bin").is_file()]
        if not paths:
            raise UserError(f"{folder}: no funnel.json and no token stream in it; give the output "
                            f"folder of data_prep's steps")
        for path in paths:
            value, is_funnel = read_json(path), path.name == "funnel.json"
            place = (path.parent if is_funnel else path.with_suffix("")).relative_to(folder.parent).as_posix()
            try:
                if is_funnel:
                    dropped = Counter({reason: entry["documents"] for reason,
                                       entry in value["dropped"].items()})
                    counts = {"in": value["documents"]["in"], "out": value["documents"]["out"],
                              "dropped": dropped}
                    steps.setdefault(str(value["step"]), []).append((place, counts))
                else:
                    counts = {language: {source: entry["tokens"] for source, entry in part.items()}
                              for language, part in value["counts"].items()}
                    streams.append((place, {"tokens": value["tokens"], "documents": value["documents"],
                                            "tokenizer": value["tokenizer"], "counts": counts}))
            except DAMAGED as error:
                raise UserError(f"{path}: not counts that data_prep wrote ({type(error).__name__}: "
                                f"{error})") from None
    # A later step reads what an earlier one kept: the more documents come in, the earlier the step.
    order = sorted(steps, key=lambda step: -sum(counts["in"] for _, counts in steps[step]))
    return Corpus({step: steps[step] for step in order}, streams)
