"""Summarize an evaluation: accuracy by language and by kind of question, parse shares, BLEU and ROUGE.

`summarise` makes the summary in results.json from the rows of predictions.jsonl; `table` shows it.
Accuracies carry Wilson intervals, their macro averages MOVER intervals, text scores bootstrap intervals.
"""
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from mmed import metrics
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.languages import PAPER_ORDER, get_language
from mmed.prompts import AFTER_LETTERS, BEFORE_LETTERS, CLOZE, CLOZE_ALONE
from mmed.utils.errors import printable

Item = TypeVar("Item")
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
    "option_text": f"accuracy|argmax logP(the option's text after {CLOZE!r}), divided by the number of "
                   "tokens|several right: every set of two or more, texts joined by commas",
    "option_text_pmi": f"accuracy|as option_text, but the sum minus that after {CLOZE_ALONE!r} alone",
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
KINDS = ("answers", "image", "options", "topic", "source")  # breakdowns of the items
STATUSES = ("strict", "lenient", "unparsed")  # for answers parsed from a text
ALL = "all languages"  # a group of --permutations
BINS = 15  # of a calibration, equally wide; a bin includes its upper bound, not its lower one


def utf8(text: str) -> str:
    """Text that a request or a file can carry: lone surrogates become "?"."""
    return text.encode("utf-8", "replace").decode()


def language_order(names: Iterable[str]) -> list[str]:
    """The paper's six first, then by name."""
    place = {code: i for i, code in enumerate(PAPER_ORDER)}
    return sorted(set(names), key=lambda name: (place.get(get_language(name).code, len(place)), name))


def metric_name(signature: str) -> str:
    """Such as "ROUGE-L|rouge-f1": languages that agree in metric and definition may share a table row."""
    return "|".join(signature.split("|")[:2])


def checked_languages(rows: Iterable[dict]) -> set[str]:
    """The languages in which people checked rationales; only there does the check decide which are scored."""
    return {row["language"] for row in rows if row["doc"]["human_check_passed"]}


def passed_check(rows: Sequence[dict]) -> list[dict]:
    """The rows whose rationale people did not reject."""
    # MMedLM: only rationales that passed the human check
    checked = checked_languages(rows)
    return [row for row in rows if row["language"] not in checked or row["doc"]["human_check_passed"] is True]


def kind_of(row: dict, kind: str) -> str:
    """The group of a row in one of KINDS; "" if its item does not say."""
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


def group_by(rows: Iterable[Item], name_of: Callable[[Item], str]) -> dict[str, list[Item]]:
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for row in rows:
        groups[name_of(row)].append(row)
    return dict(groups)


def summarise(rows: Sequence[dict], settings: Mapping[str, Any] | None = None) -> dict:
    by_language = group_by(rows, lambda row: row["language"])
    settings = settings or {}
    rule = settings.get("equal_options", "keyed")
    languages = {name: _summarise_part(by_language[name], rule) for name in language_order(by_language)}
    micro, checked = _summarise_part(rows, rule), checked_languages(rows)
    texts = [row for row in passed_check(rows) if row.get("scores")]
    columns, by_source = list(micro["accuracy"]), micro["by"].get("source", {})
    macro = {
        "n": micro["n"],
        "chance": metrics.mean(part["chance"] for part in languages.values()),
        "official_chance": metrics.mean(part["official_chance"] for part in languages.values()),
        "accuracy": _mean_accuracies([part["accuracy"] for part in languages.values()], columns),
        "text": _text_scores(texts, macro=True),
    }
    signatures: dict[str, Any] = {column: accuracy_signature(column, settings) for column in columns}
    prompt = setting_parts("rationale", settings)
    for row in texts:
        for name in row["scores"]:
            signatures.setdefault(metric_name(name), {})[row["language"]] = "|".join([name, *prompt])
    passed, others = (language_order(row["language"] for row in texts if (row["language"] in checked) == kind)
                      for kind in (True, False))
    text_items = "human_check_passed" if passed else "all with a reference rationale"
    if passed and others:
        text_items += f" in {', '.join(passed)}; all with a reference rationale in {', '.join(others)}"
    return {"languages": languages, "macro": macro, "micro": micro,
            "source_mean": _mean_accuracies(list(by_source.values()), columns) if by_source else {},
            "signatures": signatures, "text_items": text_items}


def _summarise_part(rows: Sequence[dict], equal_options: str) -> dict:
    by_mode = group_by(rows, lambda row: row["mode"])
    items = next(by_mode[mode] for mode in MODES if mode in by_mode)
    docs = [{"options": row["doc"]["options"], "answer_idx": row["gold"]} for row in items]
    parse = {}
    for mode in sorted(by_mode.keys() & {"answer", "rationale"}):
        found = Counter(row["status"] for row in by_mode[mode])
        parse[mode] = {status: found[status] / found.total() for status in STATUSES}
    result: dict[str, Any] = {
        "n": len(items), "chance": metrics.chance_level(docs, equal_options),
        "official_chance": metrics.chance_level(docs),  # the official scorer accepts only the key
        "accuracy": _accuracies(rows), "parse": parse, "text": _text_scores(passed_check(rows)), "by": {}}
    if scored := [row for row in by_mode.get("loglikelihood", ()) if row["logprobs"]]:
        result["calibration"] = calibration(scored)
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
    """By column."""
    result = {}
    for column, (mode, key) in COLUMNS.items():
        hits = [row[key] for row in rows if row["mode"] == mode]
        if hits:
            low, high = metrics.wilson_interval(sum(hits), len(hits))
            result[column] = {"value": sum(hits) / len(hits), "low": low, "high": high,
                              "right": sum(hits), "n": len(hits)}
    return result


def _mean_accuracies(parts: Sequence[dict], columns: Iterable[str]) -> dict[str, dict]:
    """The unweighted mean over languages (or sources), by column."""
    result = {}
    for column in columns:
        counts = [(part[column]["right"], part[column]["n"]) for part in parts if column in part]
        low, high = metrics.macro_interval(counts)
        result[column] = {"value": metrics.mean(k / n for k, n in counts), "low": low, "high": high}
    return result


def _text_scores(rows: Sequence[dict], macro: bool = False) -> dict[str, dict]:
    """By metric; with too few items, the interval is 0..1."""
    columns = defaultdict(list)
    for row in rows:
        for name, value in row.get("scores", {}).items():
            columns[metric_name(name)].append((row["language"], value))
    result = {}
    for metric, pairs in columns.items():
        languages, values = zip(*pairs)
        low, high = metrics.bootstrap_interval(values, seed=0, groups=languages if macro else None)
        if low != low:  # nan: nothing is known
            low, high = min(0.0, *values), 1.0
        value = metrics.macro_mean(values, languages) if macro else metrics.mean(values)
        result[metric] = {"value": value, "low": low, "high": high, "n": len(values)}
    return result


def calibration(rows: Sequence[dict]) -> dict[str, Any]:
    """Expected calibration error (ECE) and the bins that are not empty (Guo et al., arXiv 1706.04599)."""
    bins = defaultdict(list)
    for row in rows:
        sums = row["logprobs"].values()
        sure = 1 / sum(math.exp(value - max(sums)) for value in sums)  # confidence: the highest softmax
        bins[math.ceil(sure * BINS) - 1].append((sure, row["correct"]))
    curve = [{"bin": place, "n": len(part), "confidence": metrics.mean(sure for sure, _ in part),
              "accuracy": metrics.mean(right for _, right in part)} for place, part in sorted(bins.items())]
    gaps = sum(part["n"] * abs(part["confidence"] - part["accuracy"]) for part in curve)
    return {"n": len(rows), "ece": gaps / len(rows), "bins": curve,
            "confidence": sum(part["n"] * part["confidence"] for part in curve) / len(rows)}


def summarise_permutations(rows: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """Language (and ALL) -> column -> numbers."""
    groups = group_by(rows, lambda row: row["language"])
    found: dict[str, dict[str, Any]] = {}
    for name in [*language_order(groups), ALL]:
        for column, (mode, key) in COLUMNS.items():
            chosen = [row for row in groups.get(name, rows) if row["mode"] == mode]
            if chosen and key.startswith("correct"):
                found.setdefault(name, {})[column] = _measure(chosen, key)
    return found


def _measure(rows: Sequence[dict], key: str) -> dict[str, Any]:
    """Mean accuracy over all orders (bootstrap over items), consistency, and shares of letters.

    consistency  share of items for which the same option texts are chosen in every order
    letters      letter -> [share of answers that choose it, share in which it is right], where one is right
    """
    parsed = key.replace("correct", "parsed")

    def texts(row: dict) -> tuple[str, ...]:
        same = metrics.option_texts(row["doc"]["options"])
        return tuple(sorted(same[letter] for letter in row[parsed].split(",") if letter))

    items = list(group_by(rows, lambda row: f"{row['language']}\n{row['key']}").values())
    shares = [metrics.mean(float(row[key]) for row in copies) for copies in items]
    low, high = (None if end != end else end for end in metrics.bootstrap_interval(shares, seed=0))
    chosen = [set(map(texts, copies)) for copies in items]
    single = [row for row in rows if "," not in row["gold"]]
    letters = sorted({letter for row in single for letter in row["doc"]["options"]})
    return {"accuracy": {"value": metrics.mean(shares), "low": low, "high": high}, "n": len(items),
            "consistency": metrics.mean(len(found) == 1 and () not in found for found in chosen),
            "letters": {letter: [metrics.mean(letter in row[name].split(",") for row in single)
                                 for name in (parsed, "gold")] for letter in letters}}


def setting_parts(mode: str, settings: Mapping[str, Any]) -> list[str]:
    """Of a signature: the settings that change what a model answers in a mode."""
    names = [*PROMPT_SETTINGS, *(SHOT_SETTINGS if settings.get("shots") else ())]
    if mode in ("answer", "rationale"):
        names += WRITING_SETTINGS
    elif mode == "option_text":  # its own prompt: neither changes it
        names = [name for name in names if name not in ("style", "chat_template")]
    parts = [f"{name}:{settings[name]}" for name in names if name in settings]
    return [*parts, COT] if mode == "rationale" and settings.get("cot") else parts


def accuracy_signature(column: str, settings: Mapping[str, Any]) -> str:
    """The definition of a column, with the settings that change the number."""
    parts = [SIGNATURES[column], *setting_parts(COLUMNS[column][0], settings)]
    if column != "official" and "equal_options" in settings:
        parts.append(f"equal_options:{settings['equal_options']}")
    return "|".join(parts)


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
    micro, shown = summary["micro"], shown_metrics(summary, words)
    groups = {**summary["languages"], "macro average": summary["macro"], "micro average": micro}
    columns = [column for column in COLUMN_TITLES if column in micro["accuracy"]]
    rows = [["accuracy, % [95 %]", "n", "chance", *(COLUMN_TITLES[column] for column in columns)]]
    rows += [[name, f"{part['n']:,}", f"{100 * part['chance']:.1f}",
              *(cell(part["accuracy"].get(column)) for column in columns)] for name, part in groups.items()]
    for part, title in PART_TITLES.items():
        if part in micro:
            n = max(score["n"] for score in micro[part].values())
            rows.append([title, f"{n:,}", "", *(cell(micro[part].get(column)) for column in columns)])
    blocks = [aligned(rows)]
    if micro["parse"]:
        shares = [(mode, status) for mode in micro["parse"] for status in STATUSES]
        rows = [["answers read, %", *(f"{COLUMN_TITLES[mode]}: {status}" for mode, status in shares)]]
        rows += [[name, *(f"{100 * part['parse'][mode][status]:.1f}" for mode, status in shares)]
                 for name, part in groups.items() if part.get("parse")]
        blocks.append(aligned(rows))
    if shown:
        names = [metric.split("|")[0] for metric in shown]
        titles = [metric if names.count(name) > 1 else name for metric, name in zip(shown, names)]
        rows = [["rationale, x 100", "n", *titles]]
        for name, part in groups.items():
            scores = [part["text"].get(metric) for metric in shown]
            n = max((score["n"] for score in scores if score), default=0)
            values = [f"{100 * score['value']:.2f}" if score else "-" for score in scores]
            rows.append([name, f"{n:,}", *values])
        definitions = ", ".join(sorted({metric.split("|")[1] for metric in shown}))
        block = f"{aligned(rows)}\n({definitions}; items: {summary['text_items']})"
        if without := [name for name, part in summary["languages"].items() if not part["text"]]:
            block += f"\n(the averages leave out {', '.join(without)}: no reference rationales to score)"
        blocks.append(block)
    return "\n\n".join([*blocks, *permutation_blocks(summary.get("permutations", {}))])


def permutation_blocks(summary: dict[str, dict[str, Any]]) -> list[str]:
    blocks = []
    for column in summary.get(ALL, ()):
        rows = [[f"{COLUMN_TITLES[column]}, options in all orders, %", "n", "mean [95 %]",
                 "same text in all orders", "letters: chosen / right"]]
        for name, part in summary.items():
            if column in part:
                own = part[column]
                letters = "  ".join(f"{letter} {100 * chosen:.0f} / {100 * right:.0f}"
                                    for letter, (chosen, right) in own["letters"].items())
                rows.append([name, f"{own['n']:,}", cell(own["accuracy"]), f"{100 * own['consistency']:.1f}",
                             letters])
        blocks.append(aligned(rows))
    return blocks


def cell(score: dict | None) -> str:
    """A share and its interval in %; None: not measured."""
    if score is None:
        return "-"
    known = score["low"] is not None
    interval = f"{100 * score['low']:.0f}-{100 * score['high']:.0f}" if known else "-"
    return f"{100 * score['value']:.1f} [{interval}]"


def aligned(rows: list[list[str]]) -> str:
    """A table for the terminal; control characters, which names from files may contain, are removed."""
    rows = [[printable(text).replace("\n", " ") for text in row] for row in rows]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]
    return "\n".join(map(str.rstrip, lines))
