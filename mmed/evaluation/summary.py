"""Summarize an evaluation: accuracy by language and by kind of question, parse shares, BLEU and ROUGE.

Input:  the rows of predictions.jsonl (mmed/evaluation/results.py).
Output: `summarise`, the summary stored in results.json under "mmed"; `table`, the same for the terminal.

Accuracies carry Wilson intervals, their macro averages MOVER intervals, text scores bootstrap intervals.
Every number has a signature, and numbers with different definitions never share a column.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mmed import metrics
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.evaluation.calibration import calibration
from mmed.evaluation.option_text import AFTER_LETTERS, BEFORE_LETTERS, PROMPT, UNCONDITIONAL
from mmed.languages import PAPER_ORDER, get_language
from mmed.utils.errors import printable

MODES = ("answer", "rationale", "loglikelihood", "option_text")
TEXT_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")
# Column of the accuracy table -> (mode, key of the row that says whether the answer is right)
COLUMNS = {
    "answer": ("answer", "correct"),
    "rationale": ("rationale", "correct"),
    "loglikelihood": ("loglikelihood", "correct"),
    "loglikelihood_norm": ("loglikelihood", "correct_norm"),
    "option_text": ("option_text", "correct"),
    "option_text_pmi": ("option_text", "correct_pmi"),
    "official": ("answer", "official_match"),
}
COLUMN_TITLES = {
    "answer": "answer only", "rationale": "with rationale", "loglikelihood": "logP",
    "loglikelihood_norm": "logP/token", "option_text": "option text/token",
    "option_text_pmi": "option text PMI", "official": "official scorer",
}
SIGNATURES = {
    "answer": f"accuracy|exact-set|text:answer-only|parser:v{PARSER_VERSION}",
    "rationale": f"accuracy|exact-set|text:rationale-then-answer|parser:v{PARSER_VERSION}",
    "loglikelihood": f"accuracy|argmax logP(X after the answer-only prompt and {BEFORE_LETTERS!r}), sum over "
                     "the tokens of X|X: single letters; where several are right every set of two or more, "
                     f"with {AFTER_LETTERS!r}",
    "loglikelihood_norm": "accuracy|as loglikelihood, divided by the number of tokens",
    "option_text": f"accuracy|argmax logP(the option's text after {PROMPT!r}), divided by the number of "
                   "tokens|several right: every set of two or more, texts joined by commas",
    "option_text_pmi": f"accuracy|as option_text, but the sum minus that after {UNCONDITIONAL!r} alone",
    "official": "accuracy|official scorer|text:answer-only",
}
# Settings that change an accuracy: of every column, and of those whose text the model writes
PROMPT_SETTINGS = ("style", "shots", "chat_template", "bos", "too_long", "dtype", "endpoint",
                   "server_options")
SHOT_SETTINGS = ("seed", "examples")  # with --shots
COT = "few-shot chain of thought: rationales of train items; our prompt, no published number's"
WRITING_SETTINGS = ("stop", "max_new_tokens", "thinking_budget")
PART_TITLES = {
    "single": "one right answer", "multiple": "several right", "text_only": "no image needed",
    "image_dependent": "needs an image",
}
KINDS = ("answers", "image", "options", "topic", "source")  # by which the items are broken down
STATUSES = ("strict", "lenient", "unparsed")  # for answers parsed from a text


# ---- summary -----------------------------------------------------------------------------------------------

def utf8(text: str) -> str:
    """Text that a request or a file can carry: lone surrogates become "?"."""
    return text.encode("utf-8", "replace").decode()


def language_order(names: Iterable[str]) -> list[str]:
    """The paper's six first, then by name."""
    place = {code: i for i, code in enumerate(PAPER_ORDER)}
    return sorted(set(names), key=lambda name: (place.get(get_language(name).code, len(place)), name))


def metric_name(signature: str) -> str:
    """Metric and definition without the tokenization; languages that agree in these may share a table row.

    >>> metric_name("ROUGE-L|rouge-f1|tok:space|avg:mean-of-items|v1")
    'ROUGE-L|rouge-f1'
    """
    return "|".join(signature.split("|")[:2])


def checked_languages(rows: Iterable[dict]) -> set[str]:
    """The languages in which people checked rationales; only there does the check decide which are scored."""
    return {row["language"] for row in rows if row["doc"]["human_check_passed"]}


def counts_for_text(row: dict, checked: bool) -> bool:
    """Whether BLEU and ROUGE count a row. `checked`: whether people checked rationales of its language."""
    # MMedLM: only rationales that passed the human check
    return bool(row.get("scores")) and (not checked or row["doc"]["human_check_passed"] is True)


def kind_of(row: dict, kind: str) -> str:
    """The group of a row in one of KINDS; "" if its item does not say.

    >>> extra = {"source": "mmlu", "subject": "anatomy"}
    >>> kind_of({"doc": {"options": {"A": "x", "B": "y"}, "extra": extra}}, "source")
    'mmlu anatomy'
    """
    extra = row["doc"]["extra"]
    if kind == "answers":
        return "multiple" if "," in row["gold"] else "single"
    if kind == "image":
        needed = extra.get("image_dependent")
        return "image_dependent" if needed is True else "text_only" if needed is False else ""
    name = str(len(row["doc"]["options"])) if kind == "options" else extra.get(kind)
    if kind == "source" and name == "mmlu":  # the paper's English table has a column per subject
        name = f"mmlu {extra.get('subject')}"
    return utf8(name) if isinstance(name, str) else ""


def group_by(rows: Iterable[dict], name_of: Callable[[dict], str]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    return groups


def summarise(rows: Sequence[dict], settings: Mapping[str, Any] | None = None) -> dict:
    """Accuracy, parse shares and text scores by language, and their macro and micro averages."""
    checked = checked_languages(rows)
    by_language = group_by(rows, lambda row: row["language"])
    languages = {name: _summarise_part(by_language[name], checked) for name in language_order(by_language)}
    micro = _summarise_part(rows, checked)
    texts = [row for row in rows if counts_for_text(row, row["language"] in checked)]
    columns, by_source = list(micro["accuracy"]), micro["by"].get("source", {})
    macro = {
        "n": micro["n"],
        "chance": metrics.mean(part["chance"] for part in languages.values()),
        "accuracy": _mean_accuracies([part["accuracy"] for part in languages.values()], columns),
        "text": _text_scores(texts, macro=True),
    }
    signatures = accuracy_signatures(columns, settings or {})
    for row in texts:
        for name in row["scores"]:
            signatures.setdefault(metric_name(name), {})[row["language"]] = name
    return {"languages": languages, "macro": macro, "micro": micro,
            "source_mean": _mean_accuracies(list(by_source.values()), columns) if by_source else {},
            "signatures": signatures, "text_items": _text_items(texts, checked)}


def _summarise_part(rows: Sequence[dict], checked: set[str]) -> dict:
    by_mode = group_by(rows, lambda row: row["mode"])
    items = next(by_mode[mode] for mode in MODES if mode in by_mode)
    docs = [{"options": row["doc"]["options"], "answer_idx": row["gold"]} for row in items]
    parse = {}
    for mode in sorted(by_mode.keys() & {"answer", "rationale"}):
        found = Counter(row["status"] for row in by_mode[mode])
        parse[mode] = {status: found[status] / found.total() for status in STATUSES}
    texts = [row for row in rows if counts_for_text(row, row["language"] in checked)]
    result: dict[str, Any] = {
        "n": len(items), "chance": metrics.chance_level(docs), "accuracy": _accuracies(rows),
        "parse": parse, "text": _text_scores(texts), "by": {}}
    if "loglikelihood" in by_mode:
        result["calibration"] = calibration(by_mode["loglikelihood"])
    for kind in KINDS:
        groups = group_by(rows, partial(kind_of, kind=kind))
        groups.pop("", None)
        if all(len(group) == len(rows) for group in groups.values()):
            continue  # it divides nothing
        scores = {name: _accuracies(groups[name]) for name in sorted(groups)}
        if kind in ("answers", "image"):
            result |= scores
        else:
            result["by"][kind] = scores
    return result


def _accuracies(rows: Sequence[dict]) -> dict[str, dict]:
    """Every accuracy that these rows have, by column."""
    result = {}
    for column, (mode, key) in COLUMNS.items():
        hits = [row[key] for row in rows if row["mode"] == mode]
        if hits:
            low, high = metrics.wilson_interval(sum(hits), len(hits))
            result[column] = {"value": sum(hits) / len(hits), "low": low, "high": high,
                              "right": sum(hits), "n": len(hits)}
    return result


def _mean_accuracies(parts: Sequence[dict], columns: Iterable[str]) -> dict[str, dict]:
    """The unweighted mean of the accuracies of languages (or sources), by column."""
    result = {}
    for column in columns:
        counts = {str(i): (part[column]["right"], part[column]["n"])
                  for i, part in enumerate(parts) if column in part}
        low, high = metrics.macro_interval(counts)
        result[column] = {"value": metrics.mean(k / n for k, n in counts.values()), "low": low, "high": high}
    return result


def _text_scores(rows: Sequence[dict], macro: bool = False) -> dict[str, dict]:
    """Mean (macro mean over languages) of every text score; with too few items, its interval is 0..1."""
    columns: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        for name, value in row["scores"].items():
            columns.setdefault(metric_name(name), []).append((row["language"], value))
    result = {}
    for metric, pairs in columns.items():
        languages, values = [language for language, _ in pairs], [value for _, value in pairs]
        low, high = metrics.bootstrap_interval(values, seed=0, groups=languages if macro else None)
        if low != low:  # nan: nothing is known
            low, high = min(0.0, *values), 1.0
        value = metrics.macro_mean(values, languages) if macro else metrics.mean(values)
        result[metric] = {"value": value, "low": low, "high": high, "n": len(values)}
    return result


def accuracy_signatures(columns: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Column -> definition, with the settings that change the number."""
    result = {}
    for column in columns:
        names = [*PROMPT_SETTINGS, *(SHOT_SETTINGS if settings.get("shots") else ())]
        if COLUMNS[column][0] in ("answer", "rationale"):
            names += WRITING_SETTINGS
        elif COLUMNS[column][0] == "option_text":  # it has a prompt of its own
            names = [name for name in names if name not in ("style", "chat_template")]
        if column != "official":
            names.append("equal_options")
        parts = [f"{name}:{settings[name]}" for name in names if name in settings]
        if column == "rationale" and settings.get("cot"):
            parts.append(COT)
        result[column] = "|".join([SIGNATURES[column], *parts])
    return result


def _text_items(texts: Sequence[dict], checked: set[str]) -> str:
    """Say which items the text scores cover."""
    languages = language_order(row["language"] for row in texts)
    passed, others = ([name for name in languages if (name in checked) == kind] for kind in (True, False))
    if passed and others:
        return (f"human_check_passed in {', '.join(passed)}; "
                f"all with a reference rationale in {', '.join(others)}")
    return "human_check_passed" if passed else "all with a reference rationale"


# ---- table -------------------------------------------------------------------------------------------------

def shown_metrics(summary: dict, words: str) -> list[str]:
    """The `headline_metrics` that a summary has, then every other metric of rationales, such as BERTScore."""
    found = summary["micro"]["text"]
    others = [metric for metric in found if not metric.startswith(("BLEU-", "ROUGE-"))]
    return [metric for metric in headline_metrics(words) if metric in found] + others


def headline_metrics(words: str) -> list[str]:
    """The seven text scores of the table: with the official words, ROUGE is that of the `rouge` package."""
    rouge = "rouge-f1" if words == "official" else "rouge-score-f1"
    return [f"{name}|{'nltk-method1' if name.startswith('BLEU') else rouge}" for name in TEXT_METRICS]


def table(summary: dict, words: str) -> str:
    """The tables of the terminal, one block per topic; the report has more."""
    micro = summary["micro"]
    groups = {**summary["languages"], "macro average": summary["macro"], "micro average": micro}
    columns = [column for column in COLUMN_TITLES if column in micro["accuracy"]]
    titles = [COLUMN_TITLES[column] for column in columns]
    rows = [["accuracy, % [95 %]", "n", "chance", *titles]]
    rows += [[name, f"{part['n']:,}", f"{100 * part['chance']:.1f}", *_cells(part["accuracy"], columns)]
             for name, part in groups.items()]
    for part, title in PART_TITLES.items():
        if part in micro:
            n = max(score["n"] for score in micro[part].values())
            rows.append([title, f"{n:,}", "", *_cells(micro[part], columns)])
    blocks = [aligned(rows)]
    if micro["parse"]:
        shares = [(mode, status) for mode in micro["parse"] for status in STATUSES]
        rows = [["answers read, %", *(f"{mode}: {status}" for mode, status in shares)]]
        rows += [[name, *(f"{100 * part['parse'][mode][status]:.1f}" for mode, status in shares)]
                 for name, part in groups.items() if part.get("parse")]
        blocks.append(aligned(rows))
    if "calibration" in micro:
        rows = [["calibration of logP, %", "n", "ECE", "mean confidence"]]
        for name, part in groups.items():
            if own := part.get("calibration"):
                sure, gap = 100 * own["confidence"], 100 * own["ece"]
                rows.append([name, f"{own['n']:,}", f"{gap:.1f}", f"{sure:.1f}"])
        blocks.append(aligned(rows))
    return "\n\n".join([*blocks, *_text_block(summary, groups, words)])


def _cells(scores: dict, columns: Sequence[str]) -> list[str]:
    return [f"{100 * scores[column]['value']:.1f} "
            f"[{100 * scores[column]['low']:.0f}-{100 * scores[column]['high']:.0f}]"
            if column in scores else "-" for column in columns]


def _text_block(summary: dict, groups: dict[str, dict], words: str) -> list[str]:
    """The table of text scores; none if there are none."""
    shown = shown_metrics(summary, words)
    if not shown:
        return []
    rows = [["rationale, x 100", "n", *(metric.split("|")[0] for metric in shown)]]
    for name, part in groups.items():
        scores = [part["text"].get(metric) for metric in shown]
        n = max((score["n"] for score in scores if score), default=0)
        rows.append([name, f"{n:,}", *(f"{100 * score['value']:.2f}" if score else "-" for score in scores)])
    definitions = ", ".join(sorted({metric.split("|")[1] for metric in shown}))
    note = f"({definitions}; items: {summary['text_items']})"
    without = [name for name, part in summary["languages"].items() if not part["text"]]
    if without:
        note += f"\n(the averages leave out {', '.join(without)}: no reference rationales to score)"
    return [f"{aligned(rows)}\n{note}"]


def aligned(rows: list[list[str]]) -> str:
    """A table for the terminal; control characters, which names from files may contain, are removed."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
