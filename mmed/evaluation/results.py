"""The result folder of an evaluation, written and read. docs/evaluation.md lists its files.

A leaderboard file has a fixed meaning, so it exists only if this run measured that quantity. results.json is
written last: a folder that has it is complete. It and the samples have the shape that lm-evaluation-harness
(0.4.13) writes and its viewers read: a task is a language, the group is the whole benchmark (macro average),
a filter is the mode of a row, so each "metric,filter" is one column of ours.
"""
from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.summary import (
    COLUMNS,
    MODES,
    headline_metrics,
    passed_check,
    summarise,
    summarise_permutations,
    utf8,
)
from mmed.languages import get_language
from mmed.prompts import ORDER, ExamItem, digest, scored_string
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, check_file, leftovers, read_json, read_jsonl, write_json
from mmed.utils.journal import json_line
from mmed.utils.untrusted import is_finite

RESULTS_VERSION = 5  # version of these files; raise it when a key changes its meaning
PERMUTATIONS = "permutations.jsonl"
DOC = ("question", "options", "rationale", "human_check_passed", "extra")  # of the item, in its rows
GROUP = "mmedbench"
# Column -> metric. The harness's own acc_norm divides by bytes, so ours, by tokens, has another name.
METRICS = {"answer": "acc", "official": "acc_official", "rationale": "acc", "loglikelihood": "acc",
           "loglikelihood_norm": "acc_per_token", "option_text": "acc_per_token",
           "option_text_pmi": "acc_pmi"}
SUBMISSION_COLUMNS = ["Language", "ModelInput", "ModelOutput", "GT_Answer"]  # MMedLM: SubmissionTutorial.md


def text_scores(candidate: str, item: ExamItem, words: str) -> dict[str, float]:
    """BLEU and ROUGE of a rationale against the reference, by signature."""
    language = get_language(item.language)
    split, label = language.split_words, "mmed-words" if language.spaced else "mmed-characters"
    if words == "official":
        split, label = language.official_words, language.official_package
    # MMedLM: raw text to the `rouge` package where spaces separate words, else the tokens joined by spaces
    texts = (candidate, item.rationale) if language.spaced else (None, None)
    return metrics.pair_scores(split(candidate), split(item.rationale), label, *texts)


def text_row(
    item: ExamItem, mode: str, prompt_hash: str, text: str, words: str, equal_options: str = "either"
) -> dict:
    """Score a text that a model wrote. equal_options="either": both letters of equal options are right."""
    parsed = parse_answer(text, item.options, rationale_expected=mode == "rationale", language=item.language)
    row = _row(item, mode, prompt_hash) | {
        "text": text, "parsed": ",".join(parsed.letters), "status": parsed.status,
        "correct": _is_correct(parsed.letters, item, equal_options)}
    if mode == "answer":
        return row | {"official_match": official_match(text, item)}
    scores = text_scores(parsed.rationale, item, words) if item.rationale.strip() else {}
    return row | {"rationale": parsed.rationale, "scores": scores}


def loglikelihood_row(
    item: ExamItem, prompt_hash: str, candidates: Sequence[str], sums: Sequence[float],
    tokens: Sequence[int], equal_options: str = "either", unconditional: Sequence[float] = (),
) -> dict:
    """Score candidates (none: rejected) by log-probability, `sums` over `tokens`; of equals the first wins.

    With `unconditional` sums of the same texts after "Answer:" alone, the mode is option_text.
    """
    if not all(map(is_finite, [*sums, *unconditional])):
        raise UserError(f"item {item.key} ({item.language}): a log-probability is not finite: the weights "
                        "are damaged, or values overflow the dtype")
    row = _row(item, "option_text" if unconditional else "loglikelihood", prompt_hash) | {
        "status": "scored", "logprobs": dict(zip(candidates, sums)), "tokens": dict(zip(candidates, tokens))}
    by_token = [total / count for total, count in zip(sums, tokens)]
    rankings = {"": sums, "_norm": by_token}
    if unconditional:
        row["unconditional"] = dict(zip(candidates, unconditional))
        rankings = {"": by_token, "_pmi": [total - prior for total, prior in zip(sums, unconditional)]}
    for name, values in rankings.items():
        letters = candidates[values.index(max(values))] if values else ""
        row |= {f"parsed{name}": letters, f"correct{name}": _is_correct(letters, item, equal_options)}
    return row


def _is_correct(letters: str | Iterable[str], item: ExamItem, equal_options: str) -> bool:
    return metrics.exact_match(letters, item.answer, item.options if equal_options == "either" else None)


def _row(item: ExamItem, mode: str, prompt_hash: str) -> dict:
    doc = {name: getattr(item, name) for name in DOC}
    return {"key": item.key, "language": item.language, "mode": mode, "prompt_hash": prompt_hash,
            "gold": ",".join(item.answer), "doc": doc}


def write_results(
    folder: Path, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], facts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict:
    """Write all files and return the summary. `prompts`: (key, mode) -> ModelInput."""
    everything, copies = rows, [row for row in rows if ORDER in row["doc"]["extra"]]
    rows = [row for row in rows if ORDER not in row["doc"]["extra"]]
    summary = summarise(rows, settings)
    if copies:
        summary["permutations"] = summarise_permutations(everything)
    files = {"predictions.jsonl": map(json_line, rows), PERMUTATIONS: map(json_line, copies)}
    for language in summary["languages"]:
        chosen = [row for row in rows if row["language"] == language]
        files[f"samples_{task_name(language)}.jsonl"] = map(json_line, _samples(chosen, prompts))
    for name, table in _leaderboard_tables(summary, rows, prompts, settings["words"]).items():
        files[name] = map(_csv_line, table)
    for name in (*files, "results.json"):
        for leftover in leftovers(folder / name):  # of a run that was killed while writing
            leftover.unlink(missing_ok=True)
    for name, content in files.items():
        lines = list(content)
        if lines:
            with atomic_write(folder / name) as file:
                file.writelines(lines)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
    headline = next(column for column in MODES if column in summary["micro"]["accuracy"])
    write_json(folder / "results.json", _results_value(summary, facts, settings, headline))
    return summary


def _leaderboard_tables(
    summary: dict, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], words: str
) -> dict[str, list[list[str]]]:
    """File name -> table with header, or nothing."""
    languages, accuracy, similarity = summary["languages"], [], []
    answers = [[row["language"], prompts[row["key"], "answer"], row["text"], row["gold"]]
               for row in rows if row["mode"] == "answer"]
    # MMedLM: the leaderboard wants answers to all items, but only rationales that passed the human check
    rationales = [[row["language"], prompts[row["key"], "rationale"], row["text"], row["doc"]["rationale"]]
                  for row in passed_check(rows) if row["mode"] == "rationale"]
    if answers:
        # MMedLM: as metrics/accuracy.py counts, which the leaderboard asks for
        shares = [part["accuracy"]["official"]["value"] for part in languages.values()]
        accuracy = [list(languages), [f"{100 * share:.2f}" for share in shares]]
    if words == "official" and summary["micro"]["text"]:
        similarity = [["Metric", *languages]]
        for metric in headline_metrics(words):
            scores = [part["text"].get(metric) for part in languages.values()]
            cells = [f"{100 * score['value']:.2f}" if score else "" for score in scores]
            similarity.append([metric.split("|")[0], *cells])
    return {"multi_choice_results.csv": [SUBMISSION_COLUMNS, *answers] if answers else [],
            "rationale_results.csv": [SUBMISSION_COLUMNS, *rationales] if rationales else [],
            "accuracy_metric.csv": accuracy, "rationale_similarity_metric.csv": similarity}


def task_name(language: str) -> str:
    return f"{GROUP}_{language.lower()}"


def _results_value(
    summary: dict, facts: Mapping[str, Any], settings: Mapping[str, Any], headline: str
) -> dict:
    """The content of results.json; ours in full under "mmed"."""
    tasks = {task_name(name): part for name, part in summary["languages"].items()}
    results = {task: _metrics(task, part) for task, part in (tasks | {GROUP: summary["macro"]}).items()}
    shots = settings.get("shots", 0)
    measured = sorted({METRICS[column] for column in summary["macro"]["accuracy"]}
                      | set(map(str.lower, summary["macro"]["text"])))
    return {
        "results": results,
        "groups": {GROUP: results[GROUP]},
        "group_subtasks": {GROUP: list(tasks)} | {task: [] for task in tasks},
        "configs": {task: {"task": task, "num_fewshot": shots, "metadata": dict(settings)} for task in tasks},
        "versions": dict.fromkeys(results, RESULTS_VERSION),
        "n-shot": dict.fromkeys(results, shots),
        "higher_is_better": {task: dict.fromkeys(measured, True) for task in results},
        "n-samples": {task: {"original": part["n"], "effective": part["n"]} for task, part in tasks.items()},
        "config": {"model": "mmed", "model_args": settings.get("model"),
                   "limit": settings.get("limit") or None},
        "mmed": {"version": RESULTS_VERSION, "settings": dict(settings), "facts": dict(facts),
                 "headline": headline, "summary": summary},
    }


def _metrics(task: str, part: dict) -> dict:
    """By "metric,filter": the value, and its standard error, about a quarter of a 95 % interval's width."""
    entry: dict[str, Any] = {"name": task, "alias": task, "sample_len": part["n"]}
    scores = {(METRICS[column], COLUMNS[column][0]): score for column, score in part["accuracy"].items()}
    scores |= {(metric.lower(), "rationale"): score for metric, score in part["text"].items()}
    for (metric, mode), score in scores.items():
        entry[f"{metric},{mode}"] = score["value"]
        entry[f"{metric}_stderr,{mode}"] = (score["high"] - score["low"]) / (2 * metrics.Z_95)
    return entry


def _samples(rows: Sequence[dict], prompts: Mapping[tuple[str, str], str]) -> Iterator[dict]:
    """The samples of one language, one per item and filter. `prompts`: (key, mode) -> text."""
    numbers: dict[str, int] = {}
    for row in rows:
        mode, prompt = row["mode"], prompts[row["key"], row["mode"]]
        doc = {"id": row["key"]} | row["doc"]
        arguments: list[tuple[str, Any]] = [(prompt, {})]
        filtered: list[Any] = [row["parsed"]]
        responses, target = [[row.get("text")]], row["gold"]
        if row.get("logprobs"):
            options = row["doc"]["options"]
            arguments = [(prompt, scored_string(mode, letters, options)) for letters in row["logprobs"]]
            # "None": whether greedy decoding would give the string is not computed
            filtered = [[str(value), "None"] for value in row["logprobs"].values()]
            responses, target = [[pair] for pair in filtered], scored_string(mode, row["gold"], options)
        values = {METRICS[column]: float(row[key]) for column, (of, key) in COLUMNS.items() if of == mode}
        values |= {metric.lower(): value for metric, value in row.get("scores", {}).items()}
        yield {
            "doc_id": numbers.setdefault(row["key"], len(numbers)), "doc": doc, "target": target,
            "arguments": {f"gen_args_{i}": {"arg_0": text, "arg_1": more}
                          for i, (text, more) in enumerate(arguments)},
            "resps": responses, "filtered_resps": filtered, "filter": mode, "metrics": list(values),
            "doc_hash": digest([json.dumps(doc, indent=2, ensure_ascii=False)]),
            "prompt_hash": digest([prompt]), "target_hash": digest([target]),
        } | values


def _csv_line(cells: Iterable[str]) -> str:
    r"""
    >>> _csv_line(["plain", "c\rd"])
    'plain,"c\rd"\n'
    """
    line = io.StringIO()
    # the default \r\n makes Python before 3.13 quote a cell with a lone \r
    csv.writer(line).writerow(map(utf8, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


# Fields of a row: of every row, and of those in a mode
FIELDS = {"key", "language", "mode", "gold", "status", "parsed", "correct", "doc"}
MODE_FIELDS = {"answer": {"text", "official_match"}, "rationale": {"text", "rationale", "scores"},
               "loglikelihood": {"parsed_norm", "correct_norm", "logprobs", "tokens"},
               "option_text": {"parsed_pmi", "correct_pmi", "logprobs", "tokens", "unconditional"}}


def load_results(folder: str | Path) -> tuple[dict, Iterator[dict]]:
    """(the "mmed" part of results.json, the rows of predictions.jsonl)."""
    path = Path(folder) / "results.json"
    value = read_json(path)
    own = value.get("mmed") if isinstance(value, dict) else None
    if not isinstance(own, dict) or own.get("version") != RESULTS_VERSION:
        raise UserError(f"{path}: not a result of this version of `python -m mmed.eval`; evaluate again")
    if not own.keys() >= {"settings", "facts", "summary"}:
        raise UserError(f"{path}: damaged: settings, facts or summary are missing; evaluate again")
    check_file(Path(folder) / "predictions.jsonl")
    return own, _checked_rows(Path(folder) / "predictions.jsonl")


def load_permutations(folder: str | Path) -> list[dict]:
    path = Path(folder) / PERMUTATIONS
    return list(_checked_rows(path)) if path.exists() else []


def _checked_rows(path: Path) -> Iterator[dict]:
    for number, row in read_jsonl(path):
        missing = (FIELDS | MODE_FIELDS.get(str(row.get("mode")), set())) - row.keys()
        missing = missing or set(DOC) - row["doc"].keys()
        if missing or row["mode"] not in MODES or not all(map(is_finite, row.get("scores", {}).values())):
            raise UserError(f"{path}:{number}: not a row of `python -m mmed.eval` ("
                            f"{', '.join(sorted(missing)) or 'mode or scores'}); evaluate again")
        yield row


def load_prompts(folder: str | Path) -> dict[tuple[str, str], str]:
    """(key, mode) -> prompt, from the samples."""
    prompts = {}
    for path in Path(folder).glob(f"samples_{task_name('*')}.jsonl"):
        for _, sample in read_jsonl(path):
            prompts[sample["doc"]["id"], sample["filter"]] = sample["arguments"]["gen_args_0"]["arg_0"]
    return prompts
