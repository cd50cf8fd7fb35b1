"""Rows of predictions -> what a result says: accuracy by language, by kind of question and of parse, BLEU and ROUGE, as numbers and table.

In: the rows of predictions.jsonl (mmed/evaluation/results.py). Out, in this order: `summarise`, the summary that results.json holds under "mmed";
`table`, the same for the terminal. Accuracy carries Wilson's interval, its macro average one from those of the languages, the rest
bootstrap intervals; each number stands under its signature, and numbers that came about in different ways never share a column.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmed import metrics
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.languages import PAPER_ORDER, get_language
from mmed.prompts import ANSWER_FORM
from mmed.utils.errors import printable

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
            for name, value in row["scores"].items():
                if metric_name(name) == metric:
                    values.append(value)
                    groups.append(row["language"])
        score = metrics.summarize(values, metric, seed=0, groups=groups)
        macro["text"][metric] = {"value": float(score), "low": score.low, "high": score.high, "n": score.n}
    by_source = micro["by"].get("source", {})
    source_mean = {}
    for column in micro["accuracy"] if by_source else ():
        counts = {name: (part[column]["right"], part[column]["n"]) for name, part in by_source.items() if column in part}
        low, high = metrics.macro_interval(counts)
        source_mean[column] = {"value": metrics.mean(k / n for k, n in counts.values()), "low": low, "high": high}
    signatures = {column: SIGNATURES[column] for column in micro["accuracy"]}
    for row in texts:
        for name in row["scores"]:
            signatures.setdefault(metric_name(name), {})[row["language"]] = name
    return {"languages": languages, "macro": macro, "micro": micro, "source_mean": source_mean, "signatures": signatures,
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


def kind_of(row: dict, kind: str) -> str:
    """Where a row stands in a breakdown by "options" (their number), "topic" or "source"; "" if its item does not say.

    >>> kind_of({"doc": {"options": {"A": "x", "B": "y"}, "extra": {"source": "mmlu", "subject": "anatomy"}}}, "source")
    'mmlu anatomy'
    """
    doc = row["doc"]
    if kind == "options":
        return str(len(doc["options"]))
    name = doc["extra"].get(kind)
    if not isinstance(name, str):
        return ""
    # MMLU's subjects are benchmarks of their own in the paper's English table
    name = f"mmlu {doc['extra'].get('subject')}" if kind == "source" and name == "mmlu" else name
    return name.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written


def _accuracies(rows: Sequence[dict]) -> dict[str, dict]:
    """Every accuracy that these rows have, by column."""
    return {column: accuracy_of(hits) for column, (mode, key) in COLUMNS.items() if (hits := [row[key] for row in rows if row["mode"] == mode])}


def _language_summary(rows: Sequence[dict], checked: bool) -> dict:
    by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in MODES}
    items = next(part for part in by_mode.values() if part)
    result: dict[str, Any] = {
        "n": len(items), "chance": metrics.chance_level([{"options": row["doc"]["options"], "answer_idx": row["gold"]} for row in items]),
        "accuracy": _accuracies(rows),
        "parse": {mode: {status: sum(row["status"] == status for row in by_mode[mode]) / len(by_mode[mode])
                         for status in ("strict", "lenient", "unparsed")} for mode in ("answer", "rationale") if by_mode[mode]},
        "text": {}}
    for part, belongs in (("single", lambda row: "," not in row["gold"]), ("multiple", lambda row: "," in row["gold"]),
                          ("image_dependent", lambda row: row["doc"]["extra"].get("image_dependent") is True),
                          ("text_only", lambda row: row["doc"]["extra"].get("image_dependent") is False)):
        chosen = [row for row in rows if belongs(row)]
        if chosen and len(chosen) < len(rows):
            result[part] = _accuracies(chosen)
    result["by"] = {}
    for kind in ("options", "topic", "source"):
        groups: dict[str, list[dict]] = {}
        for row in rows:
            if name := kind_of(row, kind):
                groups.setdefault(name, []).append(row)
        if len(groups) > 1:
            result["by"][kind] = {name: _accuracies(groups[name]) for name in sorted(groups)}
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


def shown_metrics(summary: dict, words: str) -> list[str]:
    """Those of `headline_metrics` that a summary has, and every other metric of rationales, such as BERTScore."""
    found = summary["micro"]["text"]
    return [metric for metric in headline_metrics(words) if metric in found] + [metric for metric in found if not metric.startswith(("BLEU-", "ROUGE-"))]


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
    blocks = [aligned(rows)]
    labels = {"options": "by number of options", "topic": "by topic", "source": "by source"}
    for kind, parts in summary["micro"]["by"].items():
        if kind == "source" and len(parts) <= len(summary["languages"]):
            continue  # a source a language, as in MMedBench: the table above has it
        rows = [[f"{labels[kind]}, %", "n", *(names[column] for column in shown)]]
        for name, part in parts.items():
            rows.append([name, f"{next(iter(part.values()))['n']:,}", *(cell(part.get(column)) for column in shown)])
        if kind == "source":
            rows.append(["mean of sources", "", *(cell(summary["source_mean"].get(column, {"n": 0}) | {"n": 1}) for column in shown)])
        blocks.append(aligned(rows))
    modes = list(summary["micro"]["parse"])
    if modes:
        rows = [["answers read, %", *(f"{mode}: {status}" for mode in modes for status in ("strict", "lenient", "unparsed"))]]
        for name, part in groups:
            if "parse" in part:
                rows.append([name, *(f"{100 * share:.1f}" for mode in modes for share in part["parse"][mode].values())])
        blocks.append(aligned(rows))
    text = shown_metrics(summary, words)
    if text:
        rows = [["rationale, x 100", "n", *(metric.split("|")[0] for metric in text)]]
        for name, part in groups:
            if part["text"]:
                scores = [part["text"].get(metric) for metric in text]
                rows.append([name, f"{max(score['n'] for score in scores if score):,}", *(f"{100 * score['value']:.2f}" if score else "-" for score in scores)])
        blocks.append(aligned(rows) + f"\n({', '.join(sorted({m.split('|')[1] for m in text}))}; items: {summary['text_items']})")
    return "\n\n".join(blocks)


def aligned(rows: list[list[str]]) -> str:
    """A table for the terminal; names in it come from files."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in rows)


