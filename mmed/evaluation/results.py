"""The result folder of an evaluation: what it contains, how it is written, how it is read back.

    predictions.jsonl                  one line per item and mode: text, parse, scores, and the item itself
    results.json                       lm-evaluation-harness's shape; settings, facts and summary under "mmed"
    samples_mmedbench_LANGUAGE.jsonl   the same answers, with their prompts, as the harness logs samples
    multi_choice_results.csv           leaderboard: Language, ModelInput, ModelOutput, GT_Answer (answer only)
    rationale_results.csv              leaderboard: the same of rationales, human-checked ones where any are
    accuracy_metric.csv                leaderboard: accuracy of the answer-only texts in %, by language
    rationale_similarity_metric.csv    leaderboard: BLEU-1..4 and ROUGE-1/2/L in %, with official words only

A leaderboard file has a fixed meaning, so it exists only if this run measured that quantity. Modes: "answer"
and "rationale" are texts that the model wrote, "loglikelihood" is the answer string it finds likeliest.
results.json is written last: a folder that has it is complete.
"""
from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.lm_eval_files import results_value, samples, task_name
from mmed.evaluation.summary import checked_languages, headline_metrics, summarise
from mmed.evaluation.summary import table as table
from mmed.languages import get_language
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, read_jsonl, write_json
from mmed.utils.journal import json_line
from mmed.utils.untrusted import is_finite

RESULTS_VERSION = 3  # of these files; raise it when a key changes its meaning
FILE_LIMITS = {"results.json": 2 ** 26, "predictions.jsonl": 2 ** 32}  # bytes
SUBMISSION_COLUMNS = ["Language", "ModelInput", "ModelOutput", "GT_Answer"]  # MMedLM: SubmissionTutorial.md


# ---- rows --------------------------------------------------------------------------------------------------

def words_label(language: str, words: str) -> str:
    """The name of the tokenization in signatures."""
    known = get_language(language)
    if words == "official":
        return known.official_package
    return "mmed-words" if known.spaced else "mmed-characters"


def text_scores(candidate: str, item: ExamItem, words: str) -> dict[str, float]:
    """BLEU and ROUGE of a rationale against the reference, by signature."""
    language = get_language(item.language)
    split = language.official_words if words == "official" else language.split_words
    # MMedLM: raw text to the `rouge` package where spaces separate words, else the tokens joined by spaces
    texts = (candidate, item.rationale) if language.spaced else (None, None)
    label = words_label(item.language, words)
    return metrics.pair_scores(split(candidate), split(item.rationale), label, *texts)


def text_row(
    item: ExamItem, mode: str, prompt_hash: str, text: str, words: str, equal_options: str = "either"
) -> dict:
    """Score a text that a model wrote. equal_options="either": both letters of equal options are right."""
    rationale_expected = mode == "rationale"
    parsed = parse_answer(text, item.options, rationale_expected=rationale_expected, language=item.language)
    row = _row(item, mode, prompt_hash) | {
        "text": text, "parsed": ",".join(parsed.letters), "status": parsed.status,
        "correct": _is_correct(parsed.letters, item, equal_options)}
    if mode == "answer":
        row["official_match"] = official_match(text, item)
    else:
        row["rationale"] = parsed.rationale
        row["scores"] = text_scores(parsed.rationale, item, words) if item.rationale.strip() else {}
    return row


def loglikelihood_row(
    item: ExamItem,
    prompt_hash: str,
    candidates: Sequence[str],
    sums: Sequence[float],
    tokens: Sequence[int],
    equal_options: str = "either",
) -> dict:
    """Score answer strings by log-probability: `sums` over their `tokens`; of equal ones the first wins."""
    per_token = [total / count for total, count in zip(sums, tokens)]
    best = candidates[sums.index(max(sums))]
    best_norm = candidates[per_token.index(max(per_token))]
    return _row(item, "loglikelihood", prompt_hash) | {
        "parsed": best, "parsed_norm": best_norm, "status": "scored",
        "correct": _is_correct(best, item, equal_options),
        "correct_norm": _is_correct(best_norm, item, equal_options),
        "logprobs": dict(zip(candidates, sums)), "tokens": dict(zip(candidates, tokens))}


def _is_correct(letters: str | Iterable[str], item: ExamItem, equal_options: str) -> bool:
    return metrics.exact_match(letters, item.answer, item.options if equal_options == "either" else None)


def _row(item: ExamItem, mode: str, prompt_hash: str) -> dict:
    doc = {"question": item.question, "options": item.options, "rationale": item.rationale,
           "human_check_passed": item.human_check_passed, "extra": item.extra}
    return {"key": item.key, "language": item.language, "mode": mode, "prompt_hash": prompt_hash,
            "gold": ",".join(item.answer), "doc": doc}


# ---- writing -----------------------------------------------------------------------------------------------

def write_results(
    folder: Path, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], facts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict:
    """Write all files of a result folder and return the summary. `prompts`: (key, mode) -> ModelInput."""
    summary = summarise(rows, settings)
    languages = list(summary["languages"])
    sample_files = {f"samples_{task_name(name)}.jsonl": name for name in languages}
    tables = _leaderboard_tables(summary, rows, prompts, settings["words"])
    for name in ("predictions.jsonl", "results.json", *sample_files, *tables):
        for leftover in folder.glob(f"{name}.*.tmp"):  # of a run that was killed while writing
            leftover.unlink(missing_ok=True)
    with atomic_write(folder / "predictions.jsonl") as file:
        file.writelines(json_line(row) for row in rows)
    for name, language in sample_files.items():
        with atomic_write(folder / name) as file:
            chosen = [row for row in rows if row["language"] == language]
            file.writelines(map(json_line, samples(chosen, prompts)))
    for name, lines in tables.items():
        if lines:
            _write_csv(folder / name, lines)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
    measured = summary["micro"]["accuracy"]
    headline = next(column for column in ("answer", "rationale", "loglikelihood") if column in measured)
    write_json(folder / "results.json", results_value(summary, facts, settings, headline, RESULTS_VERSION))
    return summary


def _leaderboard_tables(
    summary: dict, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], words: str
) -> dict[str, list[list[str]]]:
    """File name -> table with its header; empty where this run did not measure what the file is for."""
    languages, checked = summary["languages"], checked_languages(rows)

    def submission(mode: str, answer_of) -> list[list[str]]:
        lines = [[row["language"], prompts[row["key"], mode], row["text"], answer_of(row)] for row in rows
                 if row["mode"] == mode and (mode == "answer" or row["language"] not in checked
                                             or row["doc"]["human_check_passed"])]
        return [SUBMISSION_COLUMNS, *lines] if lines else []

    accuracy, similarity = [], []
    if "answer" in summary["micro"]["accuracy"]:
        shares = [part["accuracy"]["answer"]["value"] for part in languages.values()]
        accuracy = [list(languages), [f"{100 * share:.2f}" for share in shares]]
    if words == "official" and summary["micro"]["text"]:
        similarity = [["Metric", *languages]]
        for metric in headline_metrics(words):
            scores = [part["text"].get(metric) for part in languages.values()]
            cells = [f"{100 * score['value']:.2f}" if score else "" for score in scores]
            similarity.append([metric.split("|")[0], *cells])
    # MMedLM: the leaderboard wants answers to all items, rationales only of those that passed the human check
    return {"multi_choice_results.csv": submission("answer", lambda row: row["gold"]),
            "rationale_results.csv": submission("rationale", lambda row: row["doc"]["rationale"]),
            "accuracy_metric.csv": accuracy, "rationale_similarity_metric.csv": similarity}


def _write_csv(path: Path, lines: Iterable[list[str]]) -> None:
    """Write a CSV file with lines ending in \\n."""
    with atomic_write(path) as file:
        for line in lines:
            row = io.StringIO()
            # the default \r\n makes Python before 3.13 quote a cell with a lone \r
            csv.writer(row).writerow([cell.encode("utf-8", "replace").decode() for cell in line])
            file.write(row.getvalue().removesuffix("\r\n") + "\n")


# ---- reading -----------------------------------------------------------------------------------------------

def load_results(folder: str | Path) -> tuple[dict, Iterator[dict]]:
    """(the "mmed" part of results.json, iterator over the rows of predictions.jsonl) of a result folder."""
    folder = Path(folder)
    path, predictions = folder / "results.json", folder / "predictions.jsonl"
    for file in (path, predictions):
        if file.is_file() and file.stat().st_size > FILE_LIMITS[file.name]:
            raise UserError(f"{file}: larger than the limit of {FILE_LIMITS[file.name]:,} bytes")
    value = read_json(path)
    own = value.get("mmed") if isinstance(value, dict) else None
    if not isinstance(own, dict) or own.get("version") != RESULTS_VERSION:
        raise UserError(f"{path}: not a result of this version of `python -m mmed.eval`; evaluate again")
    for name in ("settings", "facts", "summary"):
        if not isinstance(own.get(name), dict):
            raise UserError(f"{path}: damaged, {name!r} is missing; evaluate again")
    if not predictions.is_file():
        raise UserError(f"{predictions}: no such file; a result folder has it beside results.json")
    return own, _checked_rows(predictions)


ROW_TYPES = {"key": str, "language": str, "mode": str, "prompt_hash": str, "gold": str, "status": str,
             "parsed": str, "correct": bool, "doc": dict}
MODE_TYPES = {
    "answer": {"text": str, "official_match": bool},
    "rationale": {"text": str, "rationale": str, "scores": dict},
    "loglikelihood": {"parsed_norm": str, "correct_norm": bool, "logprobs": dict, "tokens": dict},
}
DOC_TYPES = {"question": str, "options": dict, "rationale": str, "human_check_passed": bool | None,
             "extra": dict}


def _checked_rows(path: Path) -> Iterator[dict]:
    """Rows of predictions.jsonl, with the type of every field checked once, here."""
    seen = set()
    for number, row in read_jsonl(path):
        types = ROW_TYPES | MODE_TYPES.get(str(row.get("mode")), {})
        wrong = [name for name, kind in types.items() if not isinstance(row.get(name), kind)]
        if not wrong:
            doc = row["doc"]
            wrong = [f"doc.{name}" for name, kind in DOC_TYPES.items() if not isinstance(doc.get(name), kind)]
        if not wrong:
            wrong = _wrong_values(row)
        if wrong:
            raise UserError(f"{path}:{number}: not a row of `python -m mmed.eval`: {wrong[0]} is missing or "
                            "has another type; evaluate again")
        place = row["mode"], row["language"], row["key"]
        if place in seen:
            raise UserError(f"{path}:{number}: item {row['key']!r:.80} occurs twice in mode {row['mode']}; "
                            "evaluate again")
        seen.add(place)
        yield row


def _wrong_values(row: dict) -> list[str]:
    """Fields of a row whose content is impossible."""
    options = row["doc"]["options"].values()
    numbers = [*row.get("scores", {}).values(), *row.get("logprobs", {}).values()]
    checks = {"mode": row["mode"] in MODE_TYPES, "gold": bool(row["gold"]),
              "doc.options": bool(options) and all(isinstance(text, str) for text in options),
              "scores": all(map(is_finite, numbers))}
    return [name for name, right in checks.items() if not right]


def load_prompts(folder: str | Path) -> dict[tuple[str, str], str]:
    """(key, mode) -> prompt of a result folder, from its samples."""
    prompts = {}
    for name in dict.fromkeys(row["language"] for row in load_results(folder)[1]):
        path = Path(folder) / f"samples_{task_name(name)}.jsonl"
        for number, sample in read_jsonl(path):
            try:
                place = sample["doc"]["id"], sample["filter"]
                prompts[place] = sample["arguments"]["gen_args_0"]["arg_0"]
            except (KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a sample of `mmed.eval`; evaluate again") from None
    return prompts
