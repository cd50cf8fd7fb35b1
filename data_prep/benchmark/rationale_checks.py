"""The check of rationales by people: a page that a checker fills in, and what the saved files come to.

In: exam items with rationales; then the JSON files that checkers saved. Out: one HTML file without remote
assets (check_sheet.html is its frame); then for each item whether it passed, and how far checkers agree.

    saved file: {"format": FORMAT, "version": 1, "sheet": hash, "checker": name,
                 "items": {key: hash of the rationale},
                 "entries": {key: {"consistent": true, "accurate": true, "sound": false, "note": ""}}}
"""
from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mmed.human_eval.agreement import krippendorff_alpha
from mmed.languages import get_language
from mmed.metrics import mean, wilson_interval
from mmed.prompts import ExamItem
from mmed.reporting.page import fill_page
from mmed.utils.errors import UserError, printable
from mmed.utils.files import atomic_write, read_json
from mmed.utils.untrusted import as_name

FORMAT, VERSION, TITLE = "mmed-rationale-check", 1, "Check of rationales"
# MMedLM: the paper's three criteria; a rationale passes that meets all of them.
CRITERIA = {
    "consistent": ("Consistent",
                   "It argues for the given answer, and each step follows from the one before."),
    "accurate": ("Accurate", "Every medical statement in it is true."),
    "sound": ("Well-founded", "The reasons it gives are the ones that decide this question."),
}
LONGEST_NAME, LONGEST_NOTE = 80, 2000
Verdicts = dict[str, dict[str, bool]]  # of one checker: item key -> criterion -> met


# ---- sheet ---------------------------------------------------------------------------------------

def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_sheet(items: Sequence[ExamItem], out: Path, languages: Sequence[str] | None,
                count: int) -> tuple[int, str]:
    """Write the page with `count` rationales of each language (0: all); returns how many, in which languages.

    They are drawn by hashes, so that adding items changes little, and stand in the order of the file. What
    items hold can only ever be text: it is JSON here, and text nodes there.
    """
    codes = {get_language(name).code for name in languages or ()}
    by_language: dict[str, list[ExamItem]] = {}
    for item in items:
        if item.rationale.strip() and (not codes or get_language(item.language).code in codes):
            by_language.setdefault(item.language, []).append(item)
    drawn = {item.key for part in by_language.values()
             for item in sorted(part, key=lambda item: text_hash(item.key))[:count or None]}
    if not drawn:
        where = f" in {', '.join(languages)}" if languages else ""
        raise UserError(f"no item{where} has a rationale to check; write some with "
                        "`python -m data_prep.rationales generate`")
    rows = [{"key": item.key, "hash": text_hash(item.rationale), "language": item.language,
             "code": get_language(item.language).code, "question": item.question, "rationale": item.rationale,
             "options": [[letter, text, letter in item.answer] for letter, text in item.options.items()],
             "image": item.extra.get("image_dependent") is True} for item in items if item.key in drawn]
    data = {"format": FORMAT, "version": VERSION, "title": TITLE, "longest_name": LONGEST_NAME,
            "longest_note": LONGEST_NOTE, "items": rows,
            "sheet": text_hash(json.dumps([[row["key"], row["hash"]] for row in rows])),
            "criteria": [[name, *words] for name, words in CRITERIA.items()]}
    with atomic_write(out) as file:
        file.write(fill_page(Path(__file__).with_name("check_sheet.html"), title=TITLE, data=data))
    return len(drawn), ", ".join(by_language)


# ---- saved files ---------------------------------------------------------------------------------

def read_sheet(path: str) -> dict[str, Any]:
    """A file that a checker saved, with its outer form checked."""
    value = read_json(path)
    known = isinstance(value, dict) and (value.get("format"), value.get("version")) == (FORMAT, VERSION) \
        and all(isinstance(value.get(name), dict) for name in ("items", "entries"))
    if not known or not all(isinstance(entry, dict) for entry in value["entries"].values()):
        raise UserError(f"{path}: not a file that a checker saved from a sheet of "
                        "`python -m data_prep.rationales sheet`")
    if not isinstance(value.get("checker"), str) or not value["checker"].strip():
        raise UserError(f"{path}: no name of a checker in it; open the sheet, load this file, give a name "
                        "and save again")
    return value


def read_sheets(paths: Sequence[str],
                items: Mapping[str, ExamItem]) -> tuple[dict[str, Verdicts], list[dict[str, str]]]:
    """(checker -> verdicts, notes) of saved files; entries without a verdict on every criterion are left out.

    Every entry that cannot be used gets a line of its own; if there is one, nothing is merged.
    """
    checkers: dict[str, Verdicts] = {}
    notes, problems = [], []
    for path in paths:
        sheet = read_sheet(path)
        name = as_name(sheet["checker"])
        own = checkers.setdefault(name, {})
        for key, entry in sheet["entries"].items():
            verdict = {criterion: entry.get(criterion) for criterion in CRITERIA}
            if not all(isinstance(met, bool) for met in verdict.values()):
                continue
            if key not in items:
                problems.append(f"{path}: item {key!r:.60}: is not among the items of --data")
            elif sheet["items"].get(key) != text_hash(items[key].rationale):
                problems.append(f"{path}: item {key!r:.60}: its rationale has changed since it was judged")
            elif own.setdefault(key, verdict) != verdict:
                problems.append(f"{path}: item {key!r:.60}: {name!r} judged it differently before")
            elif note := str(entry.get("note", "")).strip():
                notes.append({"key": key, "checker": name, "note": note[:LONGEST_NOTE]})
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems):,} of the sheets' entries cannot be used (listed above); nothing "
                        "was written")
    return {name: own for name, own in checkers.items() if own}, notes


# ---- verdict and agreement -----------------------------------------------------------------------

def check(paths: Sequence[str], items: Sequence[ExamItem]) -> dict[str, Any]:
    """What the saved files come to: which items passed, counts by language, agreement, notes."""
    checkers, notes = read_sheets(paths, {item.key: item for item in items})
    if not checkers:
        raise UserError(f"{', '.join(paths)}: no item is judged there")
    passed: dict[str, bool] = {}
    languages: dict[str, list[bool]] = {}
    for item in items:
        votes = [all(own[item.key].values()) for own in checkers.values() if item.key in own]
        if votes:
            passed[item.key] = all(votes)
            languages.setdefault(item.language, []).append(passed[item.key])
    return {"checkers": {name: len(own) for name, own in sorted(checkers.items())},
            "all": share(list(passed.values())),
            "languages": {name: share(part) for name, part in languages.items()},
            "agreement": agreement(checkers), "notes": notes, "passed": passed}


def share(values: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(values), len(values))
    return {"checked": len(values), "passed": sum(values), "share": sum(values) / len(values), "low": low,
            "high": high}


def agreement(checkers: Mapping[str, Verdicts]) -> dict[str, Any]:
    """For each criterion and for passing: how often two checkers of an item agree, and Krippendorff's alpha,
    which corrects that for chance; over all items with at least two checkers."""
    found = [[own[key] for own in checkers.values() if key in own]
             for key in dict.fromkeys(key for own in checkers.values() for key in own)]
    shared = [verdicts for verdicts in found if len(verdicts) > 1]
    result: dict[str, Any] = {"items": len(shared)}
    for what in (*CRITERIA, "passed") if shared else ():
        units = [[float(all(own.values()) if what == "passed" else own[what]) for own in verdicts]
                 for verdicts in shared]
        agree = [mean([a == b for a, b in combinations(unit, 2)]) for unit in units]
        alpha = krippendorff_alpha(units)  # of two values the ordinal alpha is the nominal one
        result[what] = {"percent": 100 * mean(agree), "alpha": None if math.isnan(alpha) else alpha}
    return result


def summary(report: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    lines = [f"{name}: {part['passed']:,} of {part['checked']:,} rationales passed, "
             f"{100 * part['share']:.1f} % [{100 * part['low']:.1f}-{100 * part['high']:.1f}]"
             for name, part in [*report["languages"].items(), ("all", report["all"])]]
    lines.append("passed: every checker of an item found all three criteria met; checkers: "
                 + ", ".join(f"{name} ({n:,})" for name, n in report["checkers"].items()))
    found = report["agreement"]
    parts = [f"{what} {part['percent']:.1f} %, alpha "
             + ("not defined" if part["alpha"] is None else f"{part['alpha']:.3f}")
             for what, part in found.items() if what != "items"]
    lines.append(": ".join([f"agreement on {found['items']:,} items with several checkers",
                            *filter(None, ["; ".join(parts)])]))
    return "\n".join(lines)
