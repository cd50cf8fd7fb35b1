"""What an evaluation leaves behind: a journal while it runs, then one result folder.

In: what a model wrote for each exam item. Out, in this order: a journal that survives being killed; rows scored one by one;
the summary by language; the files of the result folder; `load_results`, which reads such a folder back.

    predictions.jsonl                one line per (item, mode): text, parse, gold, scores, and the item itself
    results.json                     the shape lm-evaluation-harness writes; ours under "mmed": settings, fingerprints, summary
    multi_choice_results.csv         Language, ModelInput, ModelOutput, GT_Answer of the answer-only run  (MMedBench submission)
    rationale_results.csv            the same of the run with rationale; GT_Answer is the reference rationale
    accuracy_metric.csv              exact match in %, a column a language
    rationale_similarity_metric.csv  BLEU-1..4, ROUGE-1/2/L in %, a column a language

Modes: "answer" and "rationale" are texts that the model wrote, "loglikelihood" is which answer string it finds likeliest.
"""
from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.answers import PARSER_VERSION, official_match, parse_answer
from mmed.errors import UserError
from mmed.files import atomic_write, read_json, read_jsonl, write_json
from mmed.languages import PAPER_ORDER, get_language
from mmed.prompts import ANSWER_FORM, ExamItem

RESULTS_VERSION = 1  # of the files below; raise it when a key changes its meaning
MODES = ("answer", "rationale", "loglikelihood")
TEXT_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")
# What counts as a hit, per column of the accuracy table: mode, key of the row.
COLUMNS = {"answer": ("answer", "correct"), "rationale": ("rationale", "correct"), "loglikelihood": ("loglikelihood", "correct"),
           "loglikelihood_norm": ("loglikelihood", "correct_norm"), "official": ("answer", "official_match")}
SIGNATURES = {
    "answer": f"accuracy|exact-set|text:answer-only|parser:v{PARSER_VERSION}",
    "rationale": f"accuracy|exact-set|text:rationale-then-answer|parser:v{PARSER_VERSION}",
    "loglikelihood": f"accuracy|argmax logP({ANSWER_FORM.format(letters='X')!r} after the answer-only prompt), sum over tokens"
                     "|X: single letters, or every set of letters where several are right",
    "loglikelihood_norm": "accuracy|as loglikelihood, divided by the number of tokens",
    "official": "accuracy|official scorer|text:answer-only",
}


# ------------------------------------------------------------------------------------------------------------- journal

def round_size(slots: int) -> int:
    """Items decoded together. A round is computed whole or not at all, so what stands beside an item in a batch, and with it
    the last digits of its scores, is the same in a run that was stopped and in one that was not."""
    return 8 * slots


class Journal:
    """Rounds of rows in PATH.partial, one line a round, after a line with the facts that all of them depend on.

    Opening one that another run left goes on with it: a last line that was cut is dropped, other facts are refused by name.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], force: bool = False):
        self.path, self.partial = Path(path), Path(f"{path}.partial")
        if self.path.exists() and not force and not self.partial.exists():
            raise UserError(f"{self.path}: already there; give another --out, or --force to make it anew")
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.facts = json.loads(json.dumps(facts))
        self.done: set[int] = set()
        self.file = open(self.partial, "a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.partial}: another process is writing it; wait for it, or give another --out") from None
        self._read(force)

    def _read(self, force: bool) -> None:
        self.file.seek(0)
        good = 0
        for number, line in enumerate(self.file, 1):
            try:
                value = json.loads(line)
                if not line.endswith(b"\n"):
                    raise ValueError
                if number == 1:
                    found = value["facts"]
                else:
                    self.done.add(value["round"])
            except (ValueError, KeyError, TypeError):
                if self.file.read(1) and not force:
                    raise UserError(f"{self.partial}:{number}: damaged; delete this file to begin anew, or use --force") from None
                break
            if number == 1 and (differs := facts_that_differ(found, self.facts)):
                if not force:
                    raise UserError(f"{self.partial}: begun with {differs}; give another --out, or --force to begin anew")
                break
            good += len(line)
        self.file.truncate(good)
        if not good:
            self.done.clear()
            self._append({"facts": self.facts})

    def _append(self, value: Any) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(json_line(value).encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def has(self, number: int) -> bool:
        return number in self.done

    def add(self, number: int, rows: list[dict]) -> None:
        self._append({"round": number, "rows": rows})
        self.done.add(number)

    def rows(self) -> Iterator[dict]:
        self.file.seek(0)
        self.file.readline()
        for line in self.file:
            yield from json.loads(line)["rows"]

    def finish(self) -> None:
        """All rows into PATH, one a line; the journal goes away."""
        with atomic_write(self.path) as file:
            for row in self.rows():
                file.write(json_line(row))
        self.discard()

    def discard(self) -> None:
        self.partial.unlink()
        self.file.close()


def json_line(value: Any) -> str:
    """One line of JSON; lone surrogates, which UTF-8 cannot carry, become U+FFFD."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode() + "\n"


def facts_that_differ(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two sets of facts, in words; "" if nothing did.

    >>> facts_that_differ({"slots": 8, "style": "clean"}, {"slots": 16, "style": "clean"})
    'slots = 8 (now 16)'
    """
    changes = []
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        if old != new:
            show = [value[:12] + "…" if isinstance(value, str) and len(value) == 64 else value for value in (old, new)]
            changes.append(f"{name} = {show[0]} (now {show[1]})")
    return ", ".join(changes)


def file_hash(path: str | Path) -> str:
    """sha256 of a file, or of the *.jsonl files of a folder with their names."""
    path = Path(path)
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return _hash_of_files(sorted(path.glob("*.jsonl")))


def _hash_of_files(paths: Iterable[Path]) -> str:
    return hashlib.sha256("\n".join(f"{path.name} {file_hash(path)}" for path in paths).encode()).hexdigest()


def model_fingerprint(folder: str | Path, adapter: str | Path | None = None) -> str:
    """sha256 of what decides a model's output: config, weights and tokenizer, and the adapter's two files."""
    files = [path for path in sorted(Path(folder).iterdir()) if path.name in ("config.json", "tokenizer.model", "tokenizer.json",
             "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
             or path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")]
    if adapter:
        files += [Path(adapter) / "adapter_config.json", Path(adapter) / "adapter_model.safetensors"]
    return _hash_of_files(files)


# ---------------------------------------------------------------------------------------------------------------- rows

def words_label(language: str, words: str) -> str:
    """The name of the tokenisation in signatures."""
    known = get_language(language)
    if words == "official":
        return {"zh": "jieba", "ja": "janome"}.get(known.code, "nltk")
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
    parsed = parse_answer(text, item.options, rationale_expected=mode == "rationale")
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


# ------------------------------------------------------------------------------------------------------------- summary

def language_order(names: Iterable[str]) -> list[str]:
    """The paper's six first, then by name."""
    place = {code: i for i, code in enumerate(PAPER_ORDER)}
    return sorted(set(names), key=lambda name: (place.get(get_language(name).code, len(place)), name))


def accuracy_of(hits: Sequence[bool]) -> dict:
    right, n = sum(hits), len(hits)
    low, high = metrics.wilson_interval(right, n)
    return {"value": right / n, "low": low, "high": high, "right": right, "n": n}


def summarise(rows: Sequence[dict]) -> dict:
    """Accuracy, parse shares and text metrics by language, and macro (mean of languages) and micro (mean of items) averages."""
    by_language: dict[str, list[dict]] = {}
    for row in rows:
        by_language.setdefault(row["language"], []).append(row)
    checked = any(row["doc"]["human_check_passed"] for row in rows)
    languages = {name: _language_summary(by_language[name], checked) for name in language_order(by_language)}
    micro = _language_summary(rows, checked)
    macro: dict[str, Any] = {"n": micro["n"], "chance": metrics.mean(part["chance"] for part in languages.values()), "accuracy": {}, "text": {}}
    for column in micro["accuracy"]:
        counts = {name: (part["accuracy"][column]["right"], part["accuracy"][column]["n"]) for name, part in languages.items()}
        low, high = metrics.macro_interval(counts)
        macro["accuracy"][column] = {"value": metrics.mean(k / n for k, n in counts.values()), "low": low, "high": high}
    texts = [row for row in rows if row["mode"] == "rationale" and counts_for_text(row, checked)]
    for metric in micro["text"]:
        values, groups = [], []
        for row in texts:
            values += [value for name, value in row["scores"].items() if metric_name(name) == metric]
            groups.append(row["language"])
        score = metrics.summarize(values, metric, seed=0, groups=groups)
        macro["text"][metric] = {"value": float(score), "low": score.low, "high": score.high, "n": score.n}
    signatures = {column: SIGNATURES[column] for column in micro["accuracy"]}
    for row in texts:
        for name in row["scores"]:
            signatures.setdefault(metric_name(name), {})[row["language"]] = name
    return {"languages": languages, "macro": macro, "micro": micro, "signatures": signatures,
            "text_items": "human_check_passed" if checked else "all with a reference rationale"}


def metric_name(signature: str) -> str:
    """Metric and definition without the tokenisation: what can share a row of a table over languages.

    >>> metric_name("ROUGE-L|rouge-f1|tok:space|avg:mean-of-items|v1")
    'ROUGE-L|rouge-f1'
    """
    return "|".join(signature.split("|")[:2])


def counts_for_text(row: dict, checked: bool) -> bool:
    """Whether a row takes part in BLEU and ROUGE.  # MMedLM: only rationales that passed the human check, where any did."""
    return bool(row["scores"]) and (not checked or row["doc"]["human_check_passed"] is True)


def _language_summary(rows: Sequence[dict], checked: bool) -> dict:
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in MODES}
    items = next(part for part in by_mode.values() if part)
    result: dict[str, Any] = {
        "n": len(items), "chance": metrics.chance_level([{"options": row["doc"]["options"], "answer_idx": row["gold"]} for row in items]),
        "accuracy": {column: accuracy_of([row[key] for row in by_mode[mode]]) for column, (mode, key) in COLUMNS.items() if by_mode[mode]},
        "parse": {mode: {status: sum(row["status"] == status for row in by_mode[mode]) / len(by_mode[mode])
                         for status in ("strict", "lenient", "unparsed")} for mode in ("answer", "rationale") if by_mode[mode]},
        "text": {}}
    for part, belongs in (("single", lambda row: "," not in row["gold"]), ("multiple", lambda row: "," in row["gold"]),
                          ("image_dependent", lambda row: row["doc"]["extra"].get("image_dependent") is True),
                          ("text_only", lambda row: row["doc"]["extra"].get("image_dependent") is False)):
        chosen = [row for row in rows if belongs(row)]
        if chosen and len(chosen) < len(rows):
            result[part] = {column: accuracy_of([row[key] for row in chosen if row["mode"] == mode]) for column, (mode, key) in COLUMNS.items()
                            if any(row["mode"] == mode for row in chosen)}
    values: dict[str, list[float]] = {}
    for row in by_mode["rationale"]:
        if counts_for_text(row, checked):
            for name, value in row["scores"].items():
                values.setdefault(metric_name(name), []).append(value)
    for metric, column in values.items():
        score = metrics.summarize(column, metric, seed=0)
        result["text"][metric] = {"value": float(score), "low": score.low, "high": score.high, "n": score.n}
    return result


# --------------------------------------------------------------------------------------------------------------- table

def headline_metrics(words: str) -> list[str]:
    """The seven text metrics of the table: ROUGE of rouge-score, or with the official words that of the `rouge` package."""
    rouge = "rouge-f1" if words == "official" else "rouge-score-f1"
    return [f"{name}|{'nltk-method1' if name.startswith('BLEU') else rouge}" for name in TEXT_METRICS]


def table(summary: dict, words: str) -> str:
    """The per-language tables of the terminal."""
    def cell(part: dict | None) -> str:
        return "-" if not part or not part["n"] else f"{100 * part['value']:.1f} [{100 * part['low']:.0f}-{100 * part['high']:.0f}]"

    accuracy = summary["micro"]["accuracy"]
    names = {"answer": "answer only", "rationale": "with rationale", "loglikelihood": "logP", "loglikelihood_norm": "logP/token",
             "official": "official scorer"}
    shown = [column for column in names if column in accuracy]
    groups = [*summary["languages"].items(), ("macro average", summary["macro"]), ("micro average", summary["micro"])]
    rows = [["accuracy, % [95 %]", "n", "chance", *(names[column] for column in shown)]]
    for name, part in groups:
        rows.append([name, f"{part['n']:,}", f"{100 * part['chance']:.1f}", *(cell(part["accuracy"][column] | {"n": 1}) for column in shown)])
    for part in ("single", "multiple", "text_only", "image_dependent"):
        if part in summary["micro"]:
            chosen = summary["micro"][part]
            label = {"single": "one right answer", "multiple": "several right", "text_only": "no image needed", "image_dependent": "needs an image"}
            rows.append([label[part], f"{next(iter(chosen.values()))['n']:,}", "", *(cell(chosen.get(column)) for column in shown)])
    blocks = [_aligned(rows)]
    modes = list(summary["micro"]["parse"])
    if modes:
        rows = [["answers read, %", *(f"{mode}: {status}" for mode in modes for status in ("strict", "lenient", "unparsed"))]]
        for name, part in groups:
            if "parse" in part:
                rows.append([name, *(f"{100 * share:.1f}" for mode in modes for share in part["parse"][mode].values())])
        blocks.append(_aligned(rows))
    text = [metric for metric in headline_metrics(words) if metric in summary["micro"]["text"]]
    if text:
        rows = [["rationale, x 100", "n", *(metric.split("|")[0] for metric in text)]]
        for name, part in groups:
            if part["text"]:
                rows.append([name, f"{part['text'][text[0]]['n']:,}", *(f"{100 * part['text'][metric]['value']:.2f}" for metric in text)])
        blocks.append(_aligned(rows) + f"\n({', '.join(sorted({m.split('|')[1] for m in text}))}; items: {summary['text_items']})")
    return "\n\n".join(blocks)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


# --------------------------------------------------------------------------------------------------------------- files

def write_results(folder: Path, rows: Sequence[dict], prompts: Mapping[tuple[str, str], str], facts: Mapping[str, Any],
                  settings: Mapping[str, Any]) -> dict:
    """All files of a result folder, results.json last: where it stands the folder is whole. `prompts`: (key, mode) -> ModelInput."""
    summary = summarise(rows)
    with atomic_write(folder / "predictions.jsonl") as file:
        for row in rows:
            file.write(json_line(row))
    columns = list(summary["languages"])
    for name, mode in (("multi_choice_results.csv", "answer"), ("rationale_results.csv", "rationale")):
        chosen = [row for row in rows if row["mode"] == mode]
        if chosen:
            _write_csv(folder / name, ["Language", "ModelInput", "ModelOutput", "GT_Answer"], (
                [row["language"], prompts[row["key"], mode], row["text"], row["gold"] if mode == "answer" else row["doc"]["rationale"]]
                for row in chosen))
    headline = next((column for column in ("answer", "rationale", "loglikelihood") if column in summary["micro"]["accuracy"]), None)
    _write_csv(folder / "accuracy_metric.csv", ["Metric", *columns], [
        ["Accuracy", *(_percent(summary["languages"][name]["accuracy"][headline]["value"]) for name in columns)]])
    if summary["micro"]["text"]:
        _write_csv(folder / "rationale_similarity_metric.csv", ["Metric", *columns], [
            [metric.split("|")[0], *(_percent(summary["languages"][name]["text"].get(metric, {}).get("value")) for name in columns)]
            for metric in headline_metrics(settings["words"])])
    write_json(folder / "results.json", _harness_shape(summary, facts, settings, headline))
    return summary


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _write_csv(path: Path, header: list[str], lines: Iterable[list[str]]) -> None:
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for line in lines:
            writer.writerow([cell.encode("utf-8", "replace").decode() for cell in line])


def _harness_shape(summary: dict, facts: Mapping[str, Any], settings: Mapping[str, Any], headline: str) -> dict:
    """lm-evaluation-harness's results.json: a task a language and one for the whole, metrics as "name,filter"."""
    groups = {f"mmedbench_{name.lower()}": part for name, part in summary["languages"].items()} | {"mmedbench": summary["macro"]}
    results = {}
    for task, part in groups.items():
        entry: dict[str, Any] = {"alias": task}
        for column, score in part["accuracy"].items():
            entry[f"acc,{column}"] = score["value"]
            entry[f"acc_stderr,{column}"] = (score["high"] - score["low"]) / (2 * metrics.Z_95)
        for metric, score in part["text"].items():
            name, definition = metric.split("|")
            entry[f"{name.lower()},{definition}"] = score["value"]
            entry[f"{name.lower()}_stderr,{definition}"] = (score["high"] - score["low"]) / (2 * metrics.Z_95)
        results[task] = entry
    return {
        "results": results,
        "configs": {task: {"task": task, "num_fewshot": settings["shots"], "metadata": dict(settings)} for task in groups},
        "versions": dict.fromkeys(groups, RESULTS_VERSION),
        "n-shot": dict.fromkeys(groups, settings["shots"]),
        "n-samples": {task: {"original": part["n"], "effective": part["n"]} for task, part in groups.items()},
        "higher_is_better": {task: {"acc": True} for task in groups},
        "config": {"model": "mmed", "model_args": settings["model"], "limit": settings["limit"]},
        "mmed": {"version": RESULTS_VERSION, "settings": dict(settings), "facts": dict(facts), "headline": headline, "summary": summary},
    }


def load_results(folder: str | Path) -> tuple[dict, Iterator[dict]]:
    """(the "mmed" part of results.json: settings, facts, headline, summary; an iterator over the rows of predictions.jsonl)."""
    folder = Path(folder)
    value = read_json(folder / "results.json")
    own = value.get("mmed") if isinstance(value, dict) else None
    if not isinstance(own, dict) or own.get("version") != RESULTS_VERSION:
        raise UserError(f"{folder / 'results.json'}: not a result of this version of `python -m mmed.eval`; run it again with another --out")
    if not (folder / "predictions.jsonl").is_file():
        raise UserError(f"{folder / 'predictions.jsonl'}: no such file; a result folder holds it beside results.json")
    return own, (row for _, row in read_jsonl(folder / "predictions.jsonl"))
