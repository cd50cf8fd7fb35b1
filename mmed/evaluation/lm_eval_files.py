"""A result in the shape that lm-evaluation-harness (0.4.13) writes and its viewers read.

A task is a language and the group is the whole benchmark (macro average). A filter is the mode of a row, so
each "metric,filter" is one column of ours.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmed import metrics
from mmed.evaluation.summary import COLUMNS
from mmed.prompts import digest, scored_string

GROUP = "mmedbench"
# Column -> metric. The harness's own acc_norm divides by bytes, so ours, by tokens, has another name.
METRICS = {"answer": "acc", "official": "acc_official", "rationale": "acc", "loglikelihood": "acc",
           "loglikelihood_norm": "acc_per_token", "option_text": "acc_per_token",
           "option_text_pmi": "acc_pmi"}


def task_name(language: str) -> str:
    return f"{GROUP}_{language.lower()}"


def results_value(
    summary: dict, facts: Mapping[str, Any], settings: Mapping[str, Any], headline: str, version: int
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
        "versions": dict.fromkeys(results, version),
        "n-shot": dict.fromkeys(results, shots),
        "higher_is_better": {task: dict.fromkeys(measured, True) for task in results},
        "n-samples": {task: {"original": part["n"], "effective": part["n"]} for task, part in tasks.items()},
        "config": {"model": "mmed", "model_args": settings.get("model"),
                   "limit": settings.get("limit") or None},
        "mmed": {"version": version, "settings": dict(settings), "facts": dict(facts), "headline": headline,
                 "summary": summary},
    }


def _metrics(task: str, part: dict) -> dict:
    """"metric,filter" -> value, and its standard error: about a quarter of the width of a 95 % interval."""
    entry: dict[str, Any] = {"name": task, "alias": task, "sample_len": part["n"]}
    scores = {(METRICS[column], COLUMNS[column][0]): score for column, score in part["accuracy"].items()}
    scores |= {(metric.lower(), "rationale"): score for metric, score in part["text"].items()}
    for (metric, mode), score in scores.items():
        entry[f"{metric},{mode}"] = score["value"]
        entry[f"{metric}_stderr,{mode}"] = (score["high"] - score["low"]) / (2 * metrics.Z_95)
    return entry


def samples(rows: Sequence[dict], prompts: Mapping[tuple[str, str], str]) -> Iterator[dict]:
    """The samples of one language, one per item and filter. `prompts`: (key, mode) -> text."""
    numbers: dict[str, int] = {}
    for row in rows:
        mode, prompt = row["mode"], prompts[row["key"], row["mode"]]
        doc = {"id": row["key"]} | row["doc"]
        arguments: list[tuple[str, Any]] = [(prompt, {})]
        filtered: list[Any] = [row["parsed"]]
        responses, target = [[row.get("text")]], row["gold"]
        if "logprobs" in row:
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
