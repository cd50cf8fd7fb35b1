"""Builds the benchmark from its public sources, in MMedBench's layout, with all counts beside the paper's.

    python -m data_prep.mmedbench --source medqa=MedQA --source igakuqa=IgakuQA/data --source headqa=HEAD-QA \
        --out MMedBench
    python -m data_prep.mmedbench --source mmedbench=MMedBench.zip --out MMedBench
    python -m data_prep.mmedbench --source custom=exam.parquet --language es --out exam \
        --map question=q,options=a+b+c,answer=key
    python -m data_prep.mmedbench --source medmcqa=MedMCQA --benchmark exam/Test --drop_leaks --out train

In:  exam files as their authors publish them (data_prep/benchmark/sources.py lists them), or any CSV, JSON or
     parquet file of multiple-choice questions through --map (data_prep/benchmark/mapping.py).
Out: Train/English.jsonl ... Test/Spanish.jsonl    one item a line: question, options {"A": ...}, answer_idx
                                 "A,C", rationale, human_checked, human_check_passed, id, source, and what the
                                 source has besides; `leaks` in a train item that a test item is like
                                 (data_prep/benchmark/leaks.py)
     Val/...                     where a source has one; not part of the MMedBench release
     dropped.jsonl               every item that could not be used, with its reason and file:line
     counts.json                 the table printed at the end, reasons, notes, options

The paper: Qiu et al. 2024, section "MMedBench"; its counts are in data_prep/benchmark/counts.py.
"""
from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.benchmark.counts import PAPER, SPLITS, format_table, table_row
from data_prep.benchmark.exam_files import whole_folder
from data_prep.benchmark.leaks import find_leaks
from data_prep.benchmark.mapping import MAP_KEYS, Raw, fingerprint, nearest, parse_mapping
from data_prep.benchmark.options import LETTERS
from data_prep.benchmark.sources import SOURCES, read_source
from data_prep.documents import json_line
from data_prep.filters.language_codes import language_code
from mmed.prompts import read_benchmark
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, write_json

# ---- checks --------------------------------------------------------------------------------------


def problem_with(raw: Raw) -> str | None:
    """Return why an item cannot be used, or None."""
    if not raw.question.strip():
        return "empty question"
    if len(raw.options) < 2:
        return "no readable options"
    if list(raw.options) != list(LETTERS[:len(raw.options)]):
        return "option letters skip or exceed Z"
    if not raw.answer:
        return "no answer"
    if any(letter not in raw.options for letter in raw.answer):
        return "answer outside the options"
    try:  # a lone surrogate cannot be written as UTF-8, nor NaN as JSON
        json.dumps(as_item(raw), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return "broken Unicode, NaN or endless nesting"
    return None


def equal_options(options: dict[str, str]) -> list[str]:
    """Letters whose text differs from another option's only in white space and case: no unique answer.

    >>> equal_options({"A": "aspirin", "B": "Heparin", "C": " heparin "})
    ['B', 'C']
    """
    folded = {letter: " ".join(text.casefold().split()) for letter, text in options.items()}
    counts = Counter(folded.values())
    return [letter for letter, text in folded.items() if text and counts[text] > 1]


def as_item(raw: Raw, licence: str | None = None) -> dict[str, Any]:
    """One line of MMedBench, its own keys first; blank and equal options are flagged."""
    item = {"question": raw.question, "options": raw.options, "answer_idx": ",".join(sorted(set(raw.answer))),
            "rationale": raw.rationale, "human_checked": False, "human_check_passed": False, "id": raw.id,
            "source": raw.source, "licence": licence,
            "blank_options": [letter for letter, text in raw.options.items() if not text.strip()] or None,
            "equal_options": equal_options(raw.options) or None, **raw.extra}
    return {key: value for key, value in item.items() if value is not None}


# ---- splits --------------------------------------------------------------------------------------


def fraction_of(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key only: the same on any machine, whatever else is in the
    data."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:6]) / 2**48


def assign_splits(name: str, items: list[Raw], seed: int, holdout: float | None, notes: list[str]) -> None:
    """Set `split` of one source's items in one language where its files state none, or --holdout asks for a
    test part."""
    found = {raw.split for raw in items}
    if name == "igakuqa":
        # MMedLM: 1,590/199/199 at random of the 1,988 questions with choices, those that need an image
        # included. DIFFERS: which ones the paper drew is not published; ours go by a hash of seed and id, in
        # the same proportion when years are missing.
        paper = PAPER["Japanese"]
        test, val = (round(len(items) * paper[split] / sum(paper.values())) for split in ("Test", "Val"))
        for rank, raw in enumerate(sorted(items, key=lambda raw: (fraction_of(seed, raw.group), raw.id))):
            raw.split = "Test" if rank < test else "Val" if rank < test + val else "Train"
    elif holdout is not None and (None in found or ("Train" in found and "Test" not in found)):
        movable = None if None in found else "Train"
        for raw in items:
            if raw.split == movable:
                raw.split = "Test" if fraction_of(seed, raw.group) < holdout else "Train"
        notes.append(f"Test is held out by --holdout {holdout:g}, seed {seed}; it is not the official test "
                     "set")
    else:
        if holdout is not None:
            notes.append("--holdout not used: the files have a test set")
        elif None in found:
            notes.append("the files state no split: all is Test (--holdout FRACTION makes a train part)")
        for raw in items:
            raw.split = raw.split or "Test"


def mark_repeats(items: list[Raw]) -> dict[str, list[Raw]]:
    """Make ids unique and return the items by fingerprint. Copies of a question share their group, so that a
    random split never puts one question on both sides."""
    copies: dict[str, list[Raw]] = {}
    ids: set[str] = set()
    for raw in items:
        same = copies.setdefault(fingerprint(raw.question, raw.options), [])
        same.append(raw)
        raw.group = same[0].group
        base, number = raw.id, 1
        while raw.id in ids:
            number += 1
            raw.id = f"{base}-{number}"
        ids.add(raw.id)
    return copies


# ---- conversion ----------------------------------------------------------------------------------


def read_items(name: str, path: Path, options: argparse.Namespace, notes: list[str]) -> list[Raw]:
    """Read the items of a source, flagging unusable ones with the reason; error if all are unusable."""
    items = list(read_source(name, path, options.language, options.map, notes))
    for raw in items:
        raw.exam, raw.stated, raw.reason = name, raw.split, problem_with(raw)
    if all(raw.reason for raw in items):
        counts = Counter(raw.reason for raw in items).most_common()
        why = [f"{reason} {count}" for reason, count in counts] or notes or ["the files are empty"]
        first = f"; first {items[0].where}" if items else ""
        raise UserError(f"{path}: none of the {len(items)} items read as {name} can be used "
                        f"({', '.join(why)}{first})")
    return items


def place(language: str, items: list[Raw], options: argparse.Namespace, notes: dict[str, list[str]]) -> None:
    """Sort the usable items of one language into their splits, and build their lines."""
    names = list(dict.fromkeys(raw.exam for raw in items))
    if len(names) > 1 and not options.mix:
        raise UsageError(f"{' and '.join(names)} would all be written to {language}.jsonl, and scores on a "
                         "mixture are comparable with nothing else; give each its own --out, or add --mix")
    copies = mark_repeats(items)
    for name in names:
        own = [raw for raw in items if raw.exam == name]
        assign_splits(name, own, options.seed, options.holdout, notes[name])
    for raw in items:
        raw.line = as_item(raw, SOURCES[raw.exam].licence)
    for same in copies.values():
        first, *others = sorted(same, key=lambda raw: -SPLITS.index(raw.split))  # one in Test comes first
        for raw in others:
            raw.line["duplicate_of"] = first.id


def mark_leaks(items: list[Raw], benchmark: Path | None, drop: bool) -> None:
    """Mark or drop the train items that leak a test item, of these items or of `benchmark`."""
    train, test = ([raw for raw in items if raw.split == split] for split in ("Train", "Test"))
    if benchmark:
        test += [Raw("", item.language, "Test", "", item.question, item.options, list(item.answer),
                     id=item.key) for item in read_benchmark(benchmark)]
    for position, leak in find_leaks(train, test).items() if test else ():
        train[position].line["leaks"] = leak
        if drop:
            train[position].reason = f"leaks a test item ({leak['rule']})"


def convert(options: argparse.Namespace) -> tuple[list[Raw], dict[str, Any]]:
    """Read all items; return them with the content of counts.json."""
    notes: dict[str, list[str]] = {name: [] for name, _ in options.entries}
    items = [raw for name, path in options.entries for raw in read_items(name, path, options, notes[name])]
    usable = [raw for raw in items if not raw.reason]
    for language in dict.fromkeys(raw.language for raw in usable):
        place(language, [raw for raw in usable if raw.language == language], options, notes)
    mark_leaks(usable, options.benchmark, options.drop_leaks)
    groups: dict[tuple[str, str], list[Raw]] = {}
    for raw in items:
        groups.setdefault((raw.language, raw.exam), []).append(raw)
    languages = [*PAPER, *sorted({language for language, _ in groups} - set(PAPER))]
    rows = [table_row(language, name, split, groups[language, name], SOURCES[name].in_paper)
            for language, name in sorted(groups, key=lambda pair: languages.index(pair[0]))
            for split in SPLITS]
    leaks = Counter(raw.line["leaks"]["rule"] for raw in usable if "leaks" in raw.line)
    return items, {
        "format": 2, "seed": options.seed, "holdout": options.holdout,
        "sources": [{"name": name, "path": path.name} for name, path in options.entries],
        "table": [row for row in rows if row["items"] or row["paper"]],
        "notes": {name: list(dict.fromkeys(part)) for name, part in notes.items()},
        "leaks": dict(leaks.most_common()),
        "dropped": dict(Counter(raw.reason for raw in items if raw.reason).most_common())}


def write(out: Path, items: list[Raw], report: dict[str, Any]) -> None:
    """Write all files; the folder is complete or absent."""
    files: dict[str, list[dict[str, Any]]] = {"dropped.jsonl": []}
    for raw in items:
        if raw.reason:
            files["dropped.jsonl"].append({
                "source": raw.exam, "language": raw.language, "split": raw.split, "id": raw.id,
                "reason": raw.reason, "leaks": raw.line.get("leaks"), "where": raw.where,
                "question": raw.question[:200]})
        else:
            files.setdefault(f"{raw.split}/{raw.language}.jsonl", []).append(raw.line)
    with whole_folder(out) as temporary:
        for name, lines in files.items():
            with atomic_write(temporary / name, "wb") as file:
                file.writelines(map(json_line, lines))
        write_json(temporary / "counts.json", report)


# ---- the command ---------------------------------------------------------------------------------


def parse_entry(text: str) -> tuple[str, Path]:
    """Parse the value of --source."""
    name, _, path = text.partition("=")
    if not path:
        raise UsageError(f"--source {text}: expected NAME=PATH")
    if name not in SOURCES:
        raise UsageError(f"--source {text}: no source {name!r}{nearest(name, SOURCES)}")
    return name, Path(path).expanduser()


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    known = "\n".join(f"  {name:14}{source.about}" for name, source in SOURCES.items())
    parser = Parser(prog="python -m data_prep.mmedbench",
                    example="python -m data_prep.mmedbench --source medqa=MedQA --out exam",
                    description=f"Convert published exam files into MMedBench's layout.\n\nsources:\n{known}")
    add = parser.add_argument
    add("--source", action="append", required=True, metavar="NAME=PATH",
        help="a source and its folder or file (repeatable)")
    add("--out", required=True, type=Path, help="output folder; an earlier result there is replaced")
    add("--seed", type=int, default=0, help="random seed for IgakuQA's split and --holdout (default 0)")
    add("--holdout", type=float, metavar="FRACTION",
        help="fraction of a source that becomes Test if it has no test file")
    add("--mix", action="store_true", help="allow a language's file to mix several sources")
    add("--map", default="", metavar="question=..,options=..,answer=..",
        help=f"keys for --source custom, or overrides of a source's own mapping: {', '.join(MAP_KEYS)}")
    add("--benchmark", type=Path, metavar="FOLDER",
        help="further test items that must not leak into the train items")
    add("--drop_leaks", action="store_true",
        help="drop train items that leak a test item (default: flag them)")
    add("--language", default="", help="a code (es) or a name (Spanish), for custom and other sources whose "
                                       "files do not state one")
    given = parser.parse_args(argv)
    given.entries = [parse_entry(text) for text in given.source]
    given.language = language_code(given.language)
    if given.holdout is not None and not 0 < given.holdout < 1:
        raise UsageError(f"--holdout={given.holdout:g}: expected a fraction between 0 and 1, such as 0.2")
    for name, _ in given.entries:
        if name == "custom" and not (given.map and given.language):
            raise UsageError("--source custom needs --map question=...,options=...,answer=... and --language")
        if not SOURCES[name].read:
            parse_mapping(given.map, SOURCES[name].mapping)
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())) \
            and not (given.out / "counts.json").is_file():
        raise UserError(f"{given.out}: exists, and is not a folder that this command wrote; give another "
                        "--out")
    return given


def main(argv: list[str] | None = None) -> int:
    given = parse_options(argv)
    items, report = convert(given)
    write(given.out, items, report)
    print(format_table(report))
    print(f"wrote {sum(not raw.reason for raw in items):,} items to {given.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
