"""The check of rationales by people: a page that a checker fills in, and what the saved files come to.

In: exam items with rationales; then the JSON files that checkers saved. Out: one HTML file without remote
assets (data_prep/benchmark/check_sheet.html is its frame); then for each checked item whether it passed, and
how far checkers agree.

In order: the sheet, reading saved files, the verdict, agreement, the summary. Used by
data_prep/rationales.py.

    saved file: {"format": FORMAT, "version": 1, "sheet": hash, "checker": name, "items": {key: hash of the
                 rationale}, "entries": {key: {"consistent": true, "accurate": true, "sound": false, "note":
                 ""}}}
"""
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mmed.languages import get_language
from mmed.metrics import wilson_interval
from mmed.prompts import ExamItem
from mmed.reporting.page import fill_page
from mmed.utils.errors import UserError, printable
from mmed.utils.files import atomic_write, read_json

FORMAT, VERSION = "mmed-rationale-check", 1
# MMedLM: the paper's three criteria; a rationale passes that meets all of them.
CRITERIA = {
    "consistent": ("Consistent",
                   "It argues for the given answer, and each step follows from the one before."),
    "accurate": ("Accurate", "Every medical statement in it is true."),
    "sound": ("Well-founded", "The reasons it gives are the ones that decide this question."),
}
LONGEST_NAME, LONGEST_NOTE = 80, 2000


# ---- sheet ---------------------------------------------------------------------------------------

def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def draw(items: Sequence[ExamItem], count: int, seed: int) -> list[ExamItem]:
    """`count` items of each language (0: all), in the order of the file; by hashes, so that adding items
    changes little."""
    chosen: set[str] = set()
    for language in {item.language for item in items}:
        keys = sorted((hashlib.sha256(f"{seed}\x1f{item.key}".encode("utf-8", "surrogatepass")).digest(),
                       item.key)
                      for item in items if item.language == language)
        chosen |= {key for _, key in (keys[:count] if count else keys)}
    return [item for item in items if item.key in chosen]


def write_sheet(items: Sequence[ExamItem], out: Path, languages: Sequence[str] | None, count: int, seed: int,
                title: str) -> tuple[int, str]:
    """Write the page; returns how many rationales are on it, and in which languages."""
    with_rationale = [item for item in items if item.rationale.strip()]
    if languages:
        names = {get_language(name).code for name in languages}
        with_rationale = [item for item in with_rationale if get_language(item.language).code in names]
    chosen = draw(with_rationale, count, seed)
    if not chosen:
        raise UserError(f"no item{' in ' + ', '.join(languages) if languages else ''} has a rationale to "
                        f"check; write some with "
                        "`python -m data_prep.rationales generate`")
    with atomic_write(out) as file:
        file.write(page(chosen, title))
    return len(chosen), ", ".join(dict.fromkeys(item.language for item in chosen))


def page(items: Sequence[ExamItem], title: str) -> str:
    """The page as text. What comes from items can only ever be text: it is JSON here, and text nodes
    there."""
    rows = [{"key": item.key, "hash": text_hash(item.rationale), "language": item.language,
             "code": get_language(item.language).code,
             "question": _utf8(item.question), "options": [[letter, _utf8(text), letter in item.answer]
                                                           for letter, text in item.options.items()],
             "rationale": _utf8(item.rationale), "image": item.extra.get("image_dependent") is True}
            for item in items]
    sheet = text_hash(json.dumps([[row["key"], row["hash"]] for row in rows]))
    data = {"format": FORMAT, "version": VERSION, "sheet": sheet, "title": title,
            "longest_name": LONGEST_NAME, "longest_note": LONGEST_NOTE,
            "criteria": [[name, *words] for name, words in CRITERIA.items()], "items": rows}
    return fill_page(Path(__file__).with_name("check_sheet.html"), title=title, data=data)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# ---- saved files ---------------------------------------------------------------------------------

Verdicts = dict[str, dict[str, bool]]  # of one checker: item key -> criterion -> met


def read_sheets(paths: Sequence[str], items: Mapping[str, ExamItem],
                partial: bool) -> tuple[dict[str, Verdicts], list[dict[str, str]]]:
    """(checker -> verdicts, notes) of saved files; every entry that cannot be used is said in a line of its
    own, then nothing is merged."""
    checkers: dict[str, Verdicts] = {}
    notes: list[dict[str, str]] = []
    problems: list[str] = []
    for path in paths:
        value = read_json(path)
        known = isinstance(value, dict) and value.get("format") == FORMAT and value.get("version") == VERSION
        if not known or not all(isinstance(value.get(name), dict) for name in ("items", "entries")):
            raise UserError(f"{path}: not a file that a checker saved from a sheet of "
                            "`python -m data_prep.rationales sheet`")
        checker = value.get("checker")
        named = isinstance(checker, str) and checker.strip() and checker.isprintable()
        if not named or len(checker) > LONGEST_NAME:
            raise UserError(f"{path}: no name of a checker in it; open the sheet, load this file, give a "
                            "name and save again")
        own = checkers.setdefault(checker.strip(), {})
        for key, entry in value["entries"].items():
            verdict, problem = _verdict(key, entry, value["items"].get(key), items, partial)
            if not problem and verdict and own.setdefault(key, verdict) != verdict:
                problem = f"{checker.strip()!r} judged this item differently before; omit one file"
            if problem:
                problems.append(f"{path}: item {_shown(key)}: {problem}")
            elif entry.get("note", "").strip():
                notes.append({"key": key, "checker": checker.strip(), "note": entry["note"].strip()})
        if not partial:
            problems += [f"{path}: item {_shown(key)}: not judged; finish the sheet, or take it as it is "
                         f"with --partial"
                         for key in value["items"] if key not in value["entries"]]
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems):,} {'entry' if len(problems) == 1 else 'entries'} of the sheets "
                        f"cannot be used (listed above); nothing was written")
    return {name: own for name, own in checkers.items() if own}, notes


def _verdict(key: str, entry: Any, rationale: Any, items: Mapping[str, ExamItem],
             partial: bool) -> tuple[dict[str, bool] | None, str]:
    """(the three answers, "") of one entry, (None, "") for an unfinished one that may be so, or (None, what
    is wrong)."""
    if key not in items:
        return None, "is not among the items of --data"
    if rationale is None:
        return None, "is not on the sheet that this file names"
    if rationale != text_hash(items[key].rationale):
        return None, "its rationale has changed since it was judged; check it again"
    if not isinstance(entry, dict):
        return None, f"expected an object with {', '.join(CRITERIA)}, got {entry!r:.40}"
    if unknown := sorted(set(entry) - set(CRITERIA) - {"note"}):
        return None, f"no criterion is called {_shown(unknown[0])} (they are {', '.join(CRITERIA)})"
    if not isinstance(entry.get("note", ""), str) or len(entry.get("note", "")) > LONGEST_NOTE:
        return None, f"'note' must be a text of at most {LONGEST_NOTE:,} characters"
    for name in CRITERIA:
        if entry.get(name) is not None and not isinstance(entry[name], bool):
            return None, f"{name!r} must be true or false, got {entry[name]!r:.40}"
    missing = [name for name in CRITERIA if entry.get(name) is None]
    if missing:
        hint = "finish the sheet, or take it as it is with --partial"
        return None, "" if partial else f"{missing[0]!r} is missing; {hint}"
    return {name: entry[name] for name in CRITERIA}, ""


def _shown(key: str) -> str:
    return repr(key)[:60]


# ---- verdict -------------------------------------------------------------------------------------

def check(paths: Sequence[str], items: Sequence[ExamItem], rule: str, partial: bool) -> dict[str, Any]:
    """What the saved files come to: which items passed, counts by language, agreement, notes."""
    by_key = {item.key: item for item in items}
    checkers, notes = read_sheets(paths, by_key, partial)
    if not checkers:
        raise UserError(f"{paths[0]}: no item is judged in {'it' if len(paths) == 1 else 'these files'}")
    passed: dict[str, bool] = {}
    for item in items:
        votes = [all(own[item.key].values()) for own in checkers.values() if item.key in own]
        if votes:
            passed[item.key] = all(votes) if rule == "all" else 2 * sum(votes) > len(votes)
    languages: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(by_key[key].language for key in passed):
        languages[name] = share([value for key, value in passed.items() if by_key[key].language == name])
    return {"rule": rule, "checkers": {name: len(own) for name, own in sorted(checkers.items())},
            "all": share(list(passed.values())),
            "languages": languages, "agreement": agreement(checkers), "notes": notes, "passed": passed}


def share(values: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(values), len(values))
    return {"checked": len(values), "passed": sum(values), "share": sum(values) / len(values), "low": low,
            "high": high}


# ---- agreement -----------------------------------------------------------------------------------

def percent_agreement(ratings: Sequence[Sequence[Any]]) -> float:
    """Mean over items of the share of pairs of raters who agree. `ratings`: for each item what each rater
    said.

    >>> percent_agreement([(True, True), (True, False)]), percent_agreement([(1, 1, 2)])
    (0.5, 0.3333333333333333)
    """
    shares = [sum(a == b for a, b in combinations(item, 2)) / (len(item) * (len(item) - 1) / 2)
              for item in ratings]
    return sum(shares) / len(shares)


def cohen_kappa(first: Sequence[Any], second: Sequence[Any]) -> float | None:
    """(p_o - p_e) / (1 - p_e) of two raters; None where chance alone agrees always (both said one thing
    only).

    >>> round(cohen_kappa("yyyynnyy", "yynnnnyy"), 4)   # p_o = 6/8, p_e = (6 * 4 + 2 * 4) / 64 = 1/2
    0.5
    """
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(list(first).count(value) * list(second).count(value) for value in set(first)) / n ** 2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def fleiss_kappa(ratings: Sequence[Sequence[Any]]) -> float | None:
    """Agreement beyond chance of as many raters for each item; None where all said one thing only.

    >>> round(fleiss_kappa(["aab", "aaa", "abb", "bbb"]), 4)   # P = 2/3, P_e = 1/4 + 1/4
    0.3333
    """
    raters = len(ratings[0])
    assert raters > 1 and all(len(item) == raters for item in ratings), "expected equally many raters"
    said = [value for item in ratings for value in item]
    chance = sum((said.count(value) / len(said)) ** 2 for value in set(said))
    return None if chance == 1 else (percent_agreement(ratings) - chance) / (1 - chance)


def agreement(checkers: Mapping[str, Verdicts]) -> dict[str, Any]:
    """For each criterion and for passing: every pair of checkers on the items that both judged, and all on
    those that all judged."""
    names = sorted(checkers)
    result: dict[str, Any] = {"pairs": [], "all_checkers": None}
    for group in [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]:
        keys = [key for key in checkers[group[0]] if all(key in checkers[name] for name in group)]
        entry: dict[str, Any] = {"checkers": list(group), "items": len(keys)}
        for what in (*CRITERIA, "passed") if keys else ():
            ratings = [[all(own.values()) if what == "passed" else own[what]
                        for own in (checkers[name][key] for name in group)] for key in keys]
            kappa = cohen_kappa(*zip(*ratings)) if len(group) == 2 else fleiss_kappa(ratings)
            entry[what] = {"percent": 100 * percent_agreement(ratings), "kappa": kappa}
        entry["kappa_is"] = "Cohen" if len(group) == 2 else "Fleiss"
        if len(group) == 2:
            result["pairs"].append(entry)
        if group == tuple(names):
            result["all_checkers"] = entry
    return result


# ---- summary -------------------------------------------------------------------------------------

def summary(report: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    lines = [f"{name}: {part['passed']:,} of {part['checked']:,} rationales passed, "
             f"{100 * part['share']:.1f} % "
             f"[{100 * part['low']:.1f}-{100 * part['high']:.1f}]"
             for name, part in [*report["languages"].items(), ("all", report["all"])]]
    who = "every checker of an item" if report["rule"] == "all" else "more than half of an item's checkers"
    lines.append(f"passed: {who} found all three criteria met; checkers: "
                 + ", ".join(f"{name} ({n:,})" for name, n in report["checkers"].items()))
    found = report["agreement"]
    for entry in [*found["pairs"], *([found["all_checkers"]] if found["all_checkers"]
                                     and found["all_checkers"]["kappa_is"] == "Fleiss" else [])]:
        if not entry["items"]:
            lines.append(f"{' and '.join(entry['checkers'])}: no item judged by "
                         f"{'both' if len(entry['checkers']) == 2 else 'all'}")
            continue
        parts = [f"{what} {entry[what]['percent']:.1f} %, kappa "
                 + ("not defined" if entry[what]["kappa"] is None else f"{entry[what]['kappa']:.3f}")
                for what in (*CRITERIA, "passed")]
        lines.append(f"agreement of {', '.join(entry['checkers'])} on {entry['items']:,} items "
                     f"({entry['kappa_is']}): " + "; ".join(parts))
    return "\n".join(lines)
