"""Human checks of rationales: writes a table for checkers to fill in, and summarises the completed tables.

In: exam items with rationales; then the tables that checkers saved, each under a name of its own. Out: a CSV
file with a column for each criterion (yes, no, or empty); then which items passed, and how checkers agree.
"""
from __future__ import annotations

import csv
import hashlib
import math
import sys
from collections import Counter, defaultdict
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
Verdicts = dict[str, dict[str, dict[str, bool]]]  # item key -> checker -> criterion, or "passed" -> met


def item_code(item: ExamItem) -> str:
    """Identifies an item and its rationale in a sheet; no spreadsheet parses it as a number."""
    text = f"{item.key}\x1f{item.rationale}"
    return "item-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_sheet(items: Sequence[ExamItem], out: Path, languages: Sequence[str], count: int) -> Counter[str]:
    """Write the table with `count` rationales (0: all) of each of these languages (none: of each), chosen by
    hash, and return how many of each. No cell begins with text of an item, which could be a formula."""
    codes = {get_language(name).code for name in languages}
    by_language = defaultdict(list)
    for item in items:
        if item.rationale.strip() and (not codes or get_language(item.language).code in codes):
            by_language[item.language].append(item)
    if not by_language:
        where = f" in {', '.join(languages)}" if languages else ""
        raise UserError(f"no item{where} has a rationale to check; write some with `python -m "
                        "data_prep.rationales generate`")
    drawn = {item.key: item.language for part in by_language.values()
             for item in sorted(part, key=item_code)[:count or None]}
    with atomic_write(out) as file:
        file.write("\ufeff")  # Excel needs the mark to read UTF-8
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for item in items:
            if item.key in drawn:
                options = [f"{letter}{' (right)' if letter in item.answer else ''}. {text}"
                           for letter, text in item.options.items()]
                writer.writerow({"item": item_code(item), "language": item.language,
                                 "question": "\n".join([f"Question: {item.question}", *options]),
                                 "rationale": f"Rationale: {item.rationale}"})
    return Counter(drawn.values())


def read_sheets(paths: Sequence[str],
                items: Sequence[ExamItem]) -> tuple[Verdicts, list[dict[str, str]], int]:
    """(verdicts, notes, number of rows left out for a verdict on some criteria only) of saved files, whose
    names are their checkers'. Each unusable row is reported; if there are any, nothing is merged."""
    key_of = {item_code(item): item.key for item in items}
    verdicts: Verdicts = defaultdict(dict)
    notes, problems, incomplete = [], [], 0
    if len({Path(path).stem for path in paths}) < len(paths):
        raise UserError(f"{', '.join(paths)}: two have the same name, which is the checker's; rename one")
    for path in map(Path, paths):
        for where, row in records(path):
            if not row.keys() >= set(COLUMNS):
                raise UserError(f"{path}: expected a sheet of `python -m data_prep.rationales sheet`, saved "
                                f"as CSV in UTF-8, with the columns {', '.join(COLUMNS)}")
            cells = {name: row[name].strip().casefold() for name in CRITERIA}
            unknown = [cell for cell in cells.values() if cell and cell not in WORDS]
            if unknown:
                problems.append(f"{where}: {unknown[0]!r:.40} is neither yes nor no")
            elif row["item"] not in key_of:
                problems.append(f"{where}: not an item of --data, or its rationale has changed")
            elif all(cells.values()):
                key, met = key_of[row["item"]], {name: WORDS[cell] for name, cell in cells.items()}
                verdicts[key][path.stem] = met | {"passed": all(met.values())}
                if row["note"].strip():
                    notes.append({"key": key, "checker": path.stem, "note": row["note"].strip()})
            else:
                incomplete += any(cells.values())
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems):,} of the sheets' rows cannot be used (listed above); nothing was "
                        "written")
    if not verdicts:
        raise UserError(f"{', '.join(paths)}: no item has a verdict")
    return verdicts, notes, incomplete


def check(paths: Sequence[str], items: Sequence[ExamItem]) -> dict[str, Any]:
    """Summarise the saved files: which rationales passed, counts by language, agreement, notes."""
    verdicts, notes, incomplete = read_sheets(paths, items)
    checkers = Counter(checker for own in verdicts.values() for checker in own)
    passed: dict[str, bool] = {}
    languages: dict[str, list[bool]] = defaultdict(list)
    for item in items:
        if item.key in verdicts:
            passed[item.key] = all(met["passed"] for met in verdicts[item.key].values())
            languages[item.language].append(passed[item.key])
    return {"checkers": dict(sorted(checkers.items())), "all": share([*passed.values()]),
            "languages": {name: share(part) for name, part in languages.items()},
            "agreement": agreement(verdicts), "notes": notes, "incomplete": incomplete, "passed": passed}


def share(values: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(values), len(values))
    return {"checked": len(values), "passed": sum(values), "share": mean(values), "low": low, "high": high}


def agreement(verdicts: Verdicts) -> dict[str, Any]:
    """For each criterion and for passing: how often two checkers of an item agree; Krippendorff's alpha."""
    shared = [own.values() for own in verdicts.values() if len(own) > 1]
    result: dict[str, Any] = {"items": len(shared)}
    for what in (*CRITERIA, "passed") if shared else ():
        units = [[float(met[what]) for met in own] for own in shared]
        agree = [mean([a == b for a, b in combinations(unit, 2)]) for unit in units]
        alpha = krippendorff_alpha(units)  # of two values the ordinal alpha is the nominal one
        result[what] = {"percent": 100 * mean(agree), "alpha": None if math.isnan(alpha) else alpha}
    return result


def summary(report: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    found = dict(report["agreement"])
    lines = [f"{name}: {part['passed']:,} of {part['checked']:,} rationales passed, "
             f"{100 * part['share']:.1f} % [{100 * part['low']:.1f}-{100 * part['high']:.1f}]"
             for name, part in [*report["languages"].items(), ("all", report["all"])]]
    lines.append("passed: every checker of an item found all three criteria met; checkers: "
                 + ", ".join(f"{name} ({count:,})" for name, count in report["checkers"].items()))
    if report["incomplete"]:
        lines.append(f"{report['incomplete']:,} rows left out, which lack a verdict on some criterion")
    lines.append(f"agreement on {found.pop('items'):,} items with several checkers")
    for what, part in found.items():
        alpha = "not defined" if part["alpha"] is None else f"{part['alpha']:.3f}"
        lines.append(f"  {what} {part['percent']:.1f} %, alpha {alpha}")
    return "\n".join(lines)
