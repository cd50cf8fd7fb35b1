"""The result folder of an evaluation: its contents, writing and reading.

    predictions.jsonl                  one line per item and mode: text, parse, scores, and the item itself
    permutations.jsonl                 with --permutations: the same lines of the reordered copies of items
    results.json                       lm-evaluation-harness's shape; settings, facts and summary under "mmed"
    samples_mmedbench_LANGUAGE.jsonl   the same answers, with their prompts, as the harness logs samples
    multi_choice_results.csv           leaderboard: Language, ModelInput, ModelOutput, GT_Answer (answer only)
    rationale_results.csv              leaderboard: the same of rationales, human-checked ones where any are
    accuracy_metric.csv                leaderboard: accuracy of the answer-only texts in %, by language
    rationale_similarity_metric.csv    leaderboard: BLEU-1..4 and ROUGE-1/2/L in %, with official words only

A leaderboard file has a fixed meaning, so it exists only if this run measured that quantity. Modes: "answer"
and "rationale" are texts that the model wrote, "loglikelihood" is the letter that it finds likeliest,
"option_text" the text of an option. results.json is written last: a folder that has it is complete.
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
from mmed.evaluation.permutations import ORDER, summarise_permutations
from mmed.evaluation.summary import MODES, checked_languages, headline_metrics, summarise, utf8
from mmed.languages import get_language
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, check_file, read_json, read_jsonl, write_json
from mmed.utils.journal import json_line
from mmed.utils.untrusted import is_finite

RESULTS_VERSION = 4  # version of these files; raise it when a key changes its meaning
PERMUTATIONS = "permutations.jsonl"
SUBMISSION_COLUMNS = ["Language", "ModelInput", "ModelOutput", "GT_Answer"]  # MMedLM: SubmissionTutorial.md


# ---- rows --------------------------------------------------------------------------------------------------

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
    """Score candidates by log-probability: `sums` over their `tokens`; of equal ones the first wins.

    unconditional  sums of the same texts after "Answer:" alone: the mode is option_text, else loglikelihood
    """
    if not all(map(is_finite, [*sums, *unconditional])):
        raise UserError(f"item {item.key} ({item.language}): a log-probability is not finite: the weights "
                        "are damaged, or values overflow the dtype")
    row = _row(item, "option_text" if unconditional else "loglikelihood", prompt_hash) | {
        "status": "scored", "logprobs": dict(zip(candidates, sums)), "tokens": dict(zip(candidates, tokens))}
    rankings = {"": sums, "_norm": [total / count for total, count in zip(sums, tokens)]}
    if unconditional:
        row["unconditional"] = dict(zip(candidates, unconditional))
        pmi = [total - prior for total, prior in zip(sums, unconditional)]
        rankings = {"": rankings["_norm"], "_pmi": pmi}
    for name, values in rankings.items():
        letters = candidates[values.index(max(values))]
        row |= {f"parsed{name}": letters, f"correct{name}": _is_correct(letters, item, equal_options)}
    return row


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
    everything, copies = rows, [row for row in rows if ORDER in row["doc"]["extra"]]
    rows = [row for row in rows if ORDER not in row["doc"]["extra"]]
    summary = summarise(rows, settings)
    if copies:
        summary["permutations"] = summarise_permutations(everything)
    files = {"predictions.jsonl": map(json_line, rows), PERMUTATIONS: map(json_line, copies)}
    for language in summary["languages"]:
        chosen = [row for row in rows if row["language"] == language]
        files[f"samples_{task_name(language)}.jsonl"] = map(json_line, samples(chosen, prompts))
    for name, table in _leaderboard_tables(summary, rows, prompts, settings["words"]).items():
        files[name] = map(_csv_line, table)
    for name, content in files.items():
        lines = list(content)
        if lines:
            with atomic_write(folder / name) as file:
                file.writelines(lines)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier run in this folder
    headline = next(column for column in MODES if column in summary["micro"]["accuracy"])
    write_json(folder / "results.json", results_value(summary, facts, settings, headline, RESULTS_VERSION))
    for name in (*files, "results.json"):
        for leftover in folder.glob(f"{name}.*.tmp"):  # of a run that was killed while writing
            leftover.unlink(missing_ok=True)
    return summary


def _leaderboard_tables(
    summary: dict, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], words: str
) -> dict[str, list[list[str]]]:
    """File name -> table with header; empty if this run did not measure what the file reports."""
    languages, checked = summary["languages"], checked_languages(rows)
    tables: dict[str, list[list[str]]] = {"accuracy_metric.csv": [], "rationale_similarity_metric.csv": []}
    # MMedLM: the leaderboard wants answers to all items, rationales only of those that passed the human check
    for name, mode in (("multi_choice_results.csv", "answer"), ("rationale_results.csv", "rationale")):
        chosen = [row for row in rows if row["mode"] == mode and (
            mode == "answer" or row["language"] not in checked or row["doc"]["human_check_passed"])]
        lines = [[row["language"], prompts[row["key"], mode], row["text"],
                  row["gold"] if mode == "answer" else row["doc"]["rationale"]] for row in chosen]
        tables[name] = [SUBMISSION_COLUMNS, *lines] if lines else []
    if "answer" in summary["micro"]["accuracy"]:
        shares = [part["accuracy"]["answer"]["value"] for part in languages.values()]
        tables["accuracy_metric.csv"] = [list(languages), [f"{100 * share:.2f}" for share in shares]]
    if words == "official" and summary["micro"]["text"]:
        tables["rationale_similarity_metric.csv"] = similarity = [["Metric", *languages]]
        for metric in headline_metrics(words):
            scores = [part["text"].get(metric) for part in languages.values()]
            cells = [f"{100 * score['value']:.2f}" if score else "" for score in scores]
            similarity.append([metric.split("|")[0], *cells])
    return tables


def _csv_line(cells: Iterable[str]) -> str:
    r"""A line of a CSV file, ending in \n; lone surrogates become "?".

    >>> _csv_line(["plain", "c\rd"])
    'plain,"c\rd"\n'
    """
    line = io.StringIO()
    # the default \r\n makes Python before 3.13 quote a cell with a lone \r
    csv.writer(line).writerow(map(utf8, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


# ---- reading -----------------------------------------------------------------------------------------------

# Fields of a row: of every row, and of those in a mode
FIELDS = {"key", "language", "mode", "gold", "status", "parsed", "correct", "doc"}
MODE_FIELDS = {"answer": {"text", "official_match"}, "rationale": {"text", "rationale", "scores"},
               "loglikelihood": {"parsed_norm", "correct_norm", "logprobs", "tokens"},
               "option_text": {"parsed_pmi", "correct_pmi", "logprobs", "tokens", "unconditional"}}
DOC = {"question", "options", "rationale", "human_check_passed", "extra"}  # of its item


def load_results(folder: str | Path) -> tuple[dict, Iterator[dict]]:
    """(the "mmed" part of results.json, iterator over the rows of predictions.jsonl) of a result folder."""
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
    """The rows of permutations.jsonl, if there are any."""
    path = Path(folder) / PERMUTATIONS
    return list(_checked_rows(path)) if path.exists() else []


def _checked_rows(path: Path) -> Iterator[dict]:
    """Rows of predictions.jsonl, whose fields are checked once, here."""
    for number, row in read_jsonl(path):
        missing = (FIELDS | MODE_FIELDS.get(str(row.get("mode")), set())) - row.keys()
        missing = missing or DOC - row["doc"].keys()
        if missing or row["mode"] not in MODES or not all(map(is_finite, row.get("scores", {}).values())):
            raise UserError(f"{path}:{number}: not a row of `python -m mmed.eval` ("
                            f"{', '.join(sorted(missing)) or 'mode or scores'}); evaluate again")
        yield row


def load_prompts(folder: str | Path) -> dict[tuple[str, str], str]:
    """(key, mode) -> prompt of a result folder, from its samples."""
    prompts = {}
    for path in Path(folder).glob(f"samples_{task_name('*')}.jsonl"):
        for _, sample in read_jsonl(path):
            prompts[sample["doc"]["id"], sample["filter"]] = sample["arguments"]["gen_args_0"]["arg_0"]
    return prompts
