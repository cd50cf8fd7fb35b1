"""Human checks of rationales: writes a table for checkers to fill in, and summarises the completed tables.

In: exam items with rationales; then the tables that checkers saved, each under a name of its own. Out: one
CSV file for every spreadsheet program, with a column for each criterion (yes or no; an empty cell is not
judged); then for each item whether it passed, and how far checkers agree.
"""
from __future__ import annotations

import csv
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from data_prep.benchmark.exam_files import records
from mmed.human_eval.agreement import krippendorff_alpha
from mmed.languages import get_language
from mmed.metrics import mean, wilson_interval
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError, printable
from mmed.utils.files import atomic_write

# MMedLM: the paper's three criteria; a rationale passes that meets all of them.
CRITERIA = {"consistent": "it argues for the given answer, and each step follows from the one before",
            "accurate": "every medical statement in it is true",
            "sound": "the reasons it gives are the ones that decide this question"}
COLUMNS = ("item", "language", "question", "rationale", *CRITERIA, "note")
WORDS = {"yes": True, "y": True, "1": True, "true": True, "no": False, "n": False, "0": False, "false": False}
Verdicts = dict[str, dict[str, bool]]  # of one checker: item key -> criterion -> met


# ---- sheet ---------------------------------------------------------------------------------------

def item_code(item: ExamItem) -> str:
    """Identifies an item and its rationale in a sheet; no spreadsheet parses it as a number."""
    text = f"{item.key}\x1f{item.rationale}"
    return "item-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_sheet(items: Sequence[ExamItem], out: Path, languages: Sequence[str] | None,
                count: int) -> tuple[int, str]:
    """Write the table with `count` rationales of each language (0: all); returns how many, and the languages.

    Hashes select them, so adding items changes little; they keep the order of the file. No cell
    begins with text of an item, which a spreadsheet program could take for a formula.
    """
    codes = {get_language(name).code for name in languages or ()}
    by_language: dict[str, list[ExamItem]] = {}
    for item in items:
        if item.rationale.strip() and (not codes or get_language(item.language).code in codes):
            by_language.setdefault(item.language, []).append(item)
    drawn = {item.key for part in by_language.values()
             for item in sorted(part, key=item_code)[:count or None]}
    if not drawn:
        where = f" in {', '.join(languages)}" if languages else ""
        raise UserError(f"no item{where} has a rationale to check; write some with "
                        "`python -m data_prep.rationales generate`")
    with atomic_write(out) as file:
        file.write("\ufeff")  # Excel needs the mark to read UTF-8
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for item in items:
            if item.key in drawn:
                options = [f"{letter}{' (right)' if letter in item.answer else ''}. {text}"
                           for letter, text in item.options.items()]
                question = "\n".join([f"Question: {item.question}", *options])
                writer.writerow([item_code(item), item.language, question, f"Rationale: {item.rationale}",
                                 *[""] * (len(CRITERIA) + 1)])
    return len(drawn), ", ".join(by_language)


# ---- saved files ---------------------------------------------------------------------------------

def read_sheets(paths: Sequence[str],
                items: Sequence[ExamItem]) -> tuple[dict[str, Verdicts], list[dict[str, str]], int]:
    """(checker -> verdicts, notes, incomplete rows) of saved files; an incomplete row, which has a verdict on
    some criteria only, is left out.

    Each unusable row is reported on its own line; if there are any, nothing is merged.
    """
    key_of = {item_code(item): item.key for item in items}
    checkers: dict[str, Verdicts] = {}
    notes, problems, incomplete = [], [], 0
    for path in paths:
        if Path(path).stem in checkers:
            raise UserError(f"{path}: another sheet has the same name, which is the checker's; rename one")
        own = checkers[Path(path).stem] = {}
        for where, row in records(Path(path)):
            if missing := [name for name in COLUMNS if name not in row]:
                raise UserError(f"{path}: no column {missing[0]!r}; expected a sheet of `python -m "
                                "data_prep.rationales sheet`, saved as CSV in UTF-8")
            cells = {name: row[name].strip().casefold() for name in CRITERIA}
            unknown = [cell for cell in cells.values() if cell and cell not in WORDS]
            if unknown:
                problems.append(f"{where}: {unknown[0]!r:.40} is neither yes nor no")
            elif row["item"] not in key_of:
                problems.append(f"{where}: not an item of --data, or its rationale has changed")
            elif all(cells.values()):
                key = key_of[row["item"]]
                own[key] = {name: WORDS[cell] for name, cell in cells.items()}
                if row["note"].strip():
                    notes.append({"key": key, "checker": Path(path).stem, "note": row["note"].strip()})
            else:
                incomplete += any(cells.values())
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems):,} of the sheets' rows cannot be used (listed above); nothing was "
                        "written")
    return {name: own for name, own in checkers.items() if own}, notes, incomplete


# ---- verdict and agreement -----------------------------------------------------------------------

def check(paths: Sequence[str], items: Sequence[ExamItem]) -> dict[str, Any]:
    """Summarise the saved files: which items passed, counts by language, agreement, notes."""
    checkers, notes, incomplete = read_sheets(paths, items)
    if not checkers:
        raise UserError(f"{', '.join(paths)}: no item has a verdict")
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
            "agreement": agreement(checkers), "notes": notes, "incomplete": incomplete, "passed": passed}


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
    if report["incomplete"]:
        lines.append(f"{report['incomplete']:,} rows left out, which lack a verdict on some criterion")
    found = report["agreement"]
    parts = [f"{what} {part['percent']:.1f} %, alpha "
             + ("not defined" if part["alpha"] is None else f"{part['alpha']:.3f}")
             for what, part in found.items() if what != "items"]
    lines.append(": ".join([f"agreement on {found['items']:,} items with several checkers",
                            *filter(None, ["; ".join(parts)])]))
    return "\n".join(lines)
