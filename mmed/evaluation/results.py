"""What an evaluation leaves behind: one result folder.

In: what a model wrote for each exam item. Out, in this order: rows scored one by one; the files of the result folder, with the summary
of mmed/evaluation/summary.py; `load_results`, which reads such a folder back. (While it runs there is a journal: mmed/utils/journal.py.)

    predictions.jsonl                  one line per (item, mode): text, parse, gold, scores, and the item itself
    results.json                       the shape lm-evaluation-harness writes (mmed/evaluation/lm_eval_files.py); ours under "mmed": settings, facts, summary
    samples_mmedbench_LANGUAGE.jsonl   the same answers as that harness keeps them, with the prompts
    multi_choice_results.csv           Language, ModelInput, ModelOutput, GT_Answer of the answer-only run  (MMedBench submission)
    rationale_results.csv              the same of the run with rationale, human-checked items only; GT_Answer is the reference rationale
    accuracy_metric.csv                exact match in %, a column a language
    rationale_similarity_metric.csv    BLEU-1..4, ROUGE-1/2/L in %: the metric, then a column a language

Modes: "answer" and "rationale" are texts that the model wrote, "loglikelihood" is which answer string it finds likeliest.
"""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.lm_eval_files import results_value, samples, task_name
from mmed.evaluation.summary import headline_metrics, summarise
from mmed.evaluation.summary import table as table
from mmed.languages import get_language
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, read_jsonl, write_json
from mmed.utils.journal import json_line

RESULTS_VERSION = 2  # of the files below; raise it when a key changes its meaning
FILE_LIMITS = {"results.json": 2 ** 26, "predictions.jsonl": 2 ** 32}  # bytes


# ---------------------------------------------------------------------------------------------------------------- rows

def words_label(language: str, words: str) -> str:
    """The name of the tokenisation in signatures."""
    known = get_language(language)
    if words == "official":
        return known.official_package
    return "mmed-words" if known.spaced else "mmed-characters"


def text_scores(candidate: str, item: ExamItem, words: str) -> dict[str, float]:
    """BLEU and ROUGE of a rationale against the item's own, each under its signature."""
    language = get_language(item.language)
    split = language.official_words if words == "official" else language.split_words
    # MMedLM: raw text to the `rouge` package where words are spaced, else the tokens joined by spaces
    texts = (candidate, item.rationale) if language.spaced else (None, None)
    return metrics.pair_scores(split(candidate), split(item.rationale), words_label(item.language, words), *texts)


def text_row(item: ExamItem, mode: str, prompt_hash: str, text: str, words: str) -> dict:
    """One row of predictions.jsonl for a text that a model wrote."""
    parsed = parse_answer(text, item.options, rationale_expected=mode == "rationale", language=item.language)
    row = _row(item, mode, prompt_hash) | {"text": text, "parsed": ",".join(parsed.letters), "status": parsed.status,
                                           "correct": metrics.exact_match(parsed.letters, item.answer)}
    if mode == "answer":
        row["official_match"] = official_match(text, item)
    else:
        row["rationale"] = parsed.rationale
        row["scores"] = text_scores(parsed.rationale, item, words) if item.rationale.strip() else {}
    return row


def loglikelihood_row(item: ExamItem, prompt_hash: str, candidates: Sequence[str], sums: Sequence[float], tokens: Sequence[int]) -> dict:
    """One row for scored answer strings; of equal ones the first wins."""
    best = candidates[max(range(len(sums)), key=lambda i: (sums[i], -i))]
    best_norm = candidates[max(range(len(sums)), key=lambda i: (sums[i] / tokens[i], -i))]
    return _row(item, "loglikelihood", prompt_hash) | {
        "parsed": best, "parsed_norm": best_norm, "status": "scored",
        "correct": metrics.exact_match(best, item.answer), "correct_norm": metrics.exact_match(best_norm, item.answer),
        "logprobs": dict(zip(candidates, sums)), "tokens": dict(zip(candidates, tokens))}


def _row(item: ExamItem, mode: str, prompt_hash: str) -> dict:
    doc = {"question": item.question, "options": item.options, "rationale": item.rationale, "human_check_passed": item.human_check_passed}
    return {"key": item.key, "language": item.language, "mode": mode, "prompt_hash": prompt_hash, "gold": ",".join(item.answer),
            "doc": doc | {"extra": item.extra}}


# --------------------------------------------------------------------------------------------------------------- files

def write_results(folder: Path, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], facts: Mapping[str, Any],
                  settings: Mapping[str, Any]) -> dict:
    """All files of a result folder, results.json last: where it stands the folder is whole. `prompts`: (key, mode) -> ModelInput."""
    summary = summarise(rows)
    if settings.get("bos", "auto") != "auto":
        for column in summary["micro"]["accuracy"]:
            summary["signatures"][column] += f"|bos:{settings['bos']}"
    columns = list(summary["languages"])
    remove_leftovers(folder)
    with atomic_write(folder / "predictions.jsonl") as file:
        for row in rows:
            file.write(json_line(row))
    for name in columns:
        with atomic_write(folder / f"samples_{task_name(name)}.jsonl") as file:
            for sample in samples([row for row in rows if row["language"] == name], prompts):
                file.write(json_line(sample))
    # MMedLM: the leaderboard takes answers of all items, but rationales of those that passed the human check only (SubmissionTutorial.md).
    checked = summary["text_items"] == "human_check_passed"
    for name, mode in (("multi_choice_results.csv", "answer"), ("rationale_results.csv", "rationale")):
        chosen = [row for row in rows if row["mode"] == mode and (mode == "answer" or not checked or row["doc"]["human_check_passed"] is True)]
        if chosen:
            _write_csv(folder / name, ["Language", "ModelInput", "ModelOutput", "GT_Answer"], (
                [row["language"], prompts[row["key"], mode], row["text"], row["gold"] if mode == "answer" else row["doc"]["rationale"]]
                for row in chosen))
    headline = next((column for column in ("answer", "rationale", "loglikelihood") if column in summary["micro"]["accuracy"]), None)
    _write_csv(folder / "accuracy_metric.csv", columns, [
        [_percent(summary["languages"][name]["accuracy"][headline]["value"]) for name in columns]])
    if summary["micro"]["text"]:
        _write_csv(folder / "rationale_similarity_metric.csv", ["Metric", *columns], [
            [metric.split("|")[0], *(_percent(summary["languages"][name]["text"].get(metric, {}).get("value")) for name in columns)]
            for metric in headline_metrics(settings["words"])])
    write_json(folder / "results.json", results_value(summary, facts, settings, headline, RESULTS_VERSION))
    return summary


def remove_leftovers(folder: Path) -> None:
    """Half-written files that a killed run left: only one process at a time writes a result folder (the journal's lock)."""
    for path in folder.glob("*.tmp"):
        if re.fullmatch(r"(?:predictions\.jsonl|results\.json|samples_\w+\.jsonl|(?:multi_choice_results|rationale_results|accuracy_metric|"
                        r"rationale_similarity_metric)\.csv)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def load_prompts(folder: str | Path) -> dict[tuple[str, str], str]:
    """(key, mode) -> ModelInput of a result folder, from its samples."""
    prompts = {}
    for name in dict.fromkeys(row["language"] for row in load_results(folder)[1]):
        path = Path(folder) / f"samples_{task_name(name)}.jsonl"
        for number, sample in read_jsonl(path):
            try:
                prompts[str(sample["doc"]["id"]), str(sample["filter"])] = str(sample["arguments"]["gen_args_0"]["arg_0"])
            except (KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a sample of `python -m mmed.eval`; evaluate again") from None
    return prompts


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _write_csv(path: Path, header: list[str], lines: Iterable[list[str]]) -> None:
    row = io.StringIO()
    writer = csv.writer(row)  # ends lines with \r\n: only then does Python before 3.13 quote a cell for a lone \r in it
    with atomic_write(path) as file:
        for line in (header, *lines):
            row.seek(0)
            row.truncate()
            writer.writerow([cell.encode("utf-8", "replace").decode() for cell in line])
            file.write(row.getvalue().removesuffix("\r\n") + "\n")


def load_results(folder: str | Path) -> tuple[dict, Iterator[dict]]:
    """(the "mmed" part of results.json: settings, facts, headline, summary; an iterator over the rows of predictions.jsonl)."""
    folder = Path(folder)
    path, predictions = folder / "results.json", folder / "predictions.jsonl"
    for file in (path, predictions):
        if file.is_file() and file.stat().st_size > FILE_LIMITS[file.name]:
            raise UserError(f"{file}: {file.stat().st_size:,} bytes; a file of this kind has at most {FILE_LIMITS[file.name]:,}")
    value = read_json(path)
    own = value.get("mmed") if isinstance(value, dict) else None
    if not isinstance(own, dict) or own.get("version") != RESULTS_VERSION:
        raise UserError(f"{path}: not a result of this version of `python -m mmed.eval`; run it again with another --out")
    for name in ("settings", "facts", "summary"):
        if not isinstance(own.get(name), dict):
            raise UserError(f"{path}: damaged: no {name!r} in it; evaluate again")
    if not predictions.is_file():
        raise UserError(f"{predictions}: no such file; a result folder holds it beside results.json")
    return own, _checked_rows(predictions)


def _checked_rows(path: Path) -> Iterator[dict]:
    seen = set()
    for number, row in read_jsonl(path):
        place = checked_row(row, f"{path}:{number}")["mode"], row["language"], row["key"]
        if place in seen:
            raise UserError(f"{path}:{number}: item {row['key']!r:.80} ({row['language']!r:.40}) stands there twice in mode {row['mode']}; evaluate again")
        seen.add(place)
        yield row


_OF_ALL = {"key": str, "language": str, "mode": str, "prompt_hash": str, "gold": str, "status": str, "parsed": str, "correct": bool, "doc": dict}
_OF_MODE = {"answer": {"text": str, "official_match": bool}, "rationale": {"text": str, "rationale": str, "scores": dict},
            "loglikelihood": {"parsed_norm": str, "correct_norm": bool, "logprobs": dict, "tokens": dict}}
_OF_DOC = {"question": str, "options": dict, "rationale": str, "human_check_passed": (bool, type(None)), "extra": dict}


def checked_row(row: dict, where: str) -> dict:
    """A row of predictions.jsonl as it came, once each of its fields is of the kind that it must be; the file may be anyone's."""
    mode = row.get("mode")
    wrong = [name for name, kind in (_OF_ALL | (_OF_MODE.get(mode, {"mode": int}) if isinstance(mode, str) else {})).items() if not isinstance(row.get(name), kind)]
    if not wrong:
        doc = row["doc"]
        wrong = [f"doc.{name}" for name, kind in _OF_DOC.items() if name not in doc or not isinstance(doc[name], kind)]
    if not wrong:
        wrong = [name for name in ("scores", "logprobs", "tokens") for value in row.get(name, {}).values()
                 if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300][:1]
        if not all(isinstance(text, str) for text in doc["options"].values()) or not doc["options"] or not row["gold"]:
            wrong.append("doc.options or gold")
    if wrong:
        raise UserError(f"{where}: not a row of `python -m mmed.eval` ({wrong[0]} is missing or of another kind); evaluate again")
    return row
