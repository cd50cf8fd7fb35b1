"""Builds the benchmark from its public sources, in MMedBench's layout, with all counts beside the paper's.

    python -m data_prep.mmedbench --source medqa=MedQA --source igakuqa=IgakuQA/data --out MMedBench
    python -m data_prep.mmedbench --source mmedbench=MMedBench.zip --out MMedBench
    python -m data_prep.mmedbench --source custom=exam.parquet --language es --out exam \
        --map question=q,options=a+b+c,answer=key

In:  exam files as published (data_prep/benchmark/sources.py lists them), or any others through --map.
Out: Train/English.jsonl ... Test/Spanish.jsonl, and Val/ where a source has one; an item a line: question,
     options {"A": ...}, answer_idx "A,C", rationale, human_checked, human_check_passed, id, source, `leaks`,
     and what the source has besides. dropped.jsonl has every item that could not be used, with its reason
     and file:line; counts.json has the table printed at the end, reasons, notes and options.
"""
from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from data_prep.benchmark.exam_files import write_folder
from data_prep.benchmark.leaks import find_leaks
from data_prep.benchmark.mapping import MAP_KEYS, Raw, fingerprint
from data_prep.benchmark.sources import SOURCES, read_source
from data_prep.filters.language_codes import language_code
from mmed.metrics import option_texts
from mmed.prompts import read_benchmark
from mmed.utils.errors import Parser, UsageError, UserError, main_guard

SPLITS = ("Train", "Val", "Test")
# MMedLM: items per language; train and test sum to the paper's 45,048 and 8,518. Val is not part of the
# release.
PAPER = {
    "English": {"Train": 10_178, "Val": 1_272, "Test": 1_273},
    "Chinese": {"Train": 27_400, "Val": 3_425, "Test": 3_426},
    "Japanese": {"Train": 1_590, "Val": 199, "Test": 199},
    "French": {"Train": 2_171, "Val": 312, "Test": 622},
    "Russian": {"Train": 1_052, "Val": 256, "Test": 256},
    "Spanish": {"Train": 2_657, "Val": 1_366, "Test": 2_742},
}
IN_PAPER = ("medqa", "mcmle", "igakuqa", "frenchmedmcqa", "rumeddanet", "headqa", "mmedbench")
FLAGS = ("duplicate_of", "leaks", "image_dependent", "blank_options", "equal_options")  # of items, counted


def problem_with(raw: Raw) -> str | None:
    """Why an item cannot be used, or None."""
    if not raw.question.strip():
        return "empty question"
    if len(raw.options) < 2:
        return "no readable options"
    if list(raw.options) != list(ascii_uppercase[:len(raw.options)]):
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


def as_item(raw: Raw, licence: str | None = None) -> dict[str, Any]:
    """One line of MMedBench, its own keys first. Blank and equal options are flagged."""
    texts = option_texts(raw.options)
    uses = Counter(texts.values())
    item = {"question": raw.question, "options": raw.options, "answer_idx": ",".join(sorted(set(raw.answer))),
            "rationale": raw.rationale, "human_checked": False, "human_check_passed": False, "id": raw.key,
            "source": raw.source, "licence": licence,
            "blank_options": [letter for letter, text in raw.options.items() if not text.strip()] or None,
            "equal_options": [letter for letter, text in texts.items() if uses[text] > 1] or None,
            **raw.extra}
    return {key: value for key, value in item.items() if value is not None}


def read_items(name: str, path: Path, options: argparse.Namespace, notes: list[str]) -> list[Raw]:
    """Read the items of a source, with the reason where one is unusable; an error if all are."""
    items = read_source(name, path, options.language, options.map, notes)
    for raw in items:
        raw.exam, raw.stated, raw.reason = name, raw.split, problem_with(raw)
    if all(raw.reason for raw in items):
        why = [f"{raw.where}: {raw.reason}" for raw in items[:1]] or notes or ["the files are empty"]
        raise UserError(f"{path}: none of the {len(items)} items read as {name} can be used "
                        f"({', '.join(why)})")
    return items


def fraction_of(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key only, whatever else is in the data."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "replace")).digest()[:6]) / 2**48


def assign_splits(name: str, items: list[Raw], seed: int, holdout: float | None, notes: list[str]) -> None:
    """Set `split` of one source's items in one language where its files or --holdout leave it open."""
    if name == "igakuqa":
        # MMedLM: 1,590/199/199 at random of the 1,988 questions with choices, those that need an image
        # included. DIFFERS: which ones the paper drew is not published; ours go by a hash of seed and id, in
        # the same proportion when years are missing.
        paper = PAPER["Japanese"]
        test, val = (round(len(items) * paper[split] / sum(paper.values())) for split in ("Test", "Val"))
        chosen: dict[str, str] = {}
        for rank, raw in enumerate(sorted(items, key=lambda raw: (fraction_of(seed, raw.group), raw.key))):
            part = "Test" if rank < test else "Val" if rank < test + val else "Train"
            raw.split = chosen.setdefault(raw.group, part)
        return
    found = {raw.split for raw in items}
    if holdout is not None and (None in found or ("Train" in found and "Test" not in found)):
        movable = None if None in found else "Train"
        for raw in items:
            if raw.split == movable:
                raw.split = "Test" if fraction_of(seed, raw.group) < holdout else "Train"
        notes.append(f"Test is held out by --holdout {holdout:g}, seed {seed}; it is not the official test "
                     "set")
        return
    if holdout is not None:
        notes.append("--holdout not used: the files have a test set")
    elif None in found:
        notes.append("the files state no split: all is Test (--holdout FRACTION makes a train part)")
    for raw in items:
        raw.split = raw.split or "Test"


def mark_repeats(items: list[Raw]) -> list[list[Raw]]:
    """Make ids unique; return the copies of each question, which share a group: one side of a split."""
    copies: dict[tuple[str, str], list[Raw]] = defaultdict(list)
    uses: Counter[str] = Counter()
    for raw in items:
        same = copies[raw.language, fingerprint(raw.question, raw.options)]
        same.append(raw)
        raw.group = same[0].group
        base = raw.key
        while uses[raw.key]:
            uses[base] += 1
            raw.key = f"{base}-{uses[base]}"
        uses[raw.key] += 1
    return list(copies.values())


def place(language: str, items: list[Raw], options: argparse.Namespace, notes: dict[str, list[str]]) -> None:
    """Sort the usable items of one language into their splits, and build their lines."""
    names = list(dict.fromkeys(raw.exam for raw in items))
    if len(names) > 1 and not options.mix:
        raise UsageError(f"{' and '.join(names)} would all be written to {language}.jsonl, and scores on a "
                         "mixture are comparable with nothing else; give each its own --out, or add --mix")
    for name in names:
        own = [raw for raw in items if raw.exam == name]
        assign_splits(name, own, options.seed, options.holdout, notes[name])
    for raw in items:
        raw.line = as_item(raw, SOURCES[raw.exam].licence)


def counts_of(items: list[Raw]) -> dict[str, Any]:
    """Rows by language, source and split, with the paper's counts; leaks and what was dropped."""
    groups: dict[tuple[str, str], list[Raw]] = defaultdict(list)
    for raw in items:
        groups[raw.language, raw.exam].append(raw)
    languages = [*PAPER, *sorted({language for language, _ in groups} - set(PAPER))]
    table = []
    for language, name in sorted(groups, key=lambda pair: languages.index(pair[0])):
        for split in SPLITS:
            read = [raw for raw in groups[language, name] if (raw.stated or raw.split or "Test") == split]
            written = [raw for raw in groups[language, name] if not raw.reason and raw.split == split]
            comparable = name in IN_PAPER and (name, split) != ("mmedbench", "Val")  # not in the release
            paper = PAPER.get(language, {}).get(split) if comparable else None
            if written or paper:
                table.append({"language": language, "source": name, "split": split, "read": len(read),
                              "items": len(written), "paper": paper,
                              "dropped": dict(Counter(raw.reason for raw in read if raw.reason)),
                              **{flag: sum(bool(raw.line.get(flag)) for raw in written) for flag in FLAGS}})
    leaks = Counter(raw.line["leaks"]["rule"] for raw in items if "leaks" in raw.line)
    dropped = Counter(raw.reason for raw in items if raw.reason)
    return {"table": table, "leaks": dict(leaks.most_common()), "dropped": dict(dropped.most_common())}


def format_table(report: dict[str, Any]) -> str:
    """Format the counts as text, with the totals that the paper prints."""
    lines = [f"{'language':10} {'source':14} {'split':6} {'in files':>8} {'items':>7} {'paper':>7}"]
    for row in report["table"]:
        paper = "-" if row["paper"] is None else f"{row['paper']:,}"
        notes = [f"-{count:,} {reason}" for reason, count in row["dropped"].items()]
        notes += [f"{flag} {row[flag]:,}" for flag in FLAGS if row[flag]]
        lines.append(f"{row['language']:10} {row['source']:14} {row['split']:6} {row['read']:>8,} "
                     f"{row['items']:>7,} {paper:>7}  {'; '.join(notes)}".rstrip())
    compared = [row for row in report["table"] if row["paper"] is not None]
    missing = [language for language in PAPER if language not in {row["language"] for row in compared}]
    for split in ("Train", "Test") if compared else ():
        items = sum(row["items"] for row in compared if row["split"] == split)
        paper = sum(counts[split] for counts in PAPER.values())
        lines.append(f"{'MMedBench':25} {split:15} {items:>7,} {paper:>7,}"
                     + (f"  no source given for {', '.join(missing)}" if missing else ""))
    lines += [f"{name}: {note}" for name, notes in report["notes"].items() for note in notes]
    for key, title in (("leaks", "train items that leak a test item, by rule"),
                       ("dropped", "dropped (listed in dropped.jsonl)")):
        if counts := report[key]:
            lines.append(f"{title}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    return "\n".join(lines)


def convert(options: argparse.Namespace) -> tuple[list[Raw], dict[str, Any]]:
    """Read all items, mark or drop those that leak test items; return them and counts.json's content."""
    notes: dict[str, list[str]] = {name: [] for name, _ in options.entries}
    items = [raw for name, path in options.entries for raw in read_items(name, path, options, notes[name])]
    usable = [raw for raw in items if not raw.reason]
    copies = mark_repeats(usable)
    for language in dict.fromkeys(raw.language for raw in usable):
        place(language, [raw for raw in usable if raw.language == language], options, notes)
    for same in copies:
        first, *others = sorted(same, key=lambda raw: -SPLITS.index(raw.split))  # one in Test comes first
        for raw in others:
            raw.line["duplicate_of"] = first.key
    train, test = ([raw for raw in usable if raw.split == split] for split in ("Train", "Test"))
    test += read_benchmark(options.benchmark) if options.benchmark else []
    for position, leak in find_leaks(train, test).items() if test else ():
        train[position].line["leaks"] = leak
        if options.drop_leaks:
            train[position].reason = f"leaks a test item ({leak['rule']})"
    return items, {
        "format": 2, "seed": options.seed, "holdout": options.holdout,
        "sources": [{"name": name, "path": path.name} for name, path in options.entries],
        "notes": {name: list(dict.fromkeys(part)) for name, part in notes.items()}, **counts_of(items)}


def files_of(items: list[Raw]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each file that is written."""
    files: dict[str, list[dict[str, Any]]] = {"dropped.jsonl": []}
    for raw in items:
        if raw.reason:
            files["dropped.jsonl"].append({
                "source": raw.exam, "language": raw.language, "split": raw.split, "id": raw.key,
                "reason": raw.reason, "leaks": raw.line.get("leaks"), "where": raw.where,
                "question": raw.question[:200]})
        else:
            files.setdefault(f"{raw.split}/{raw.language}.jsonl", []).append(raw.line)
    return files


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
    add("--language", type=language_code, default="",
        help="a code (es) or a name (Spanish), for custom and other sources whose files do not state one")
    given = parser.parse_args(argv)
    given.entries = []
    for text in given.source:
        name, _, path = text.partition("=")
        if name not in SOURCES or not path:
            raise UsageError(f"--source {text}: expected NAME=PATH, and a name of {', '.join(SOURCES)}")
        given.entries.append((name, Path(path).expanduser()))
    if given.holdout is not None and not 0 < given.holdout < 1:
        raise UsageError(f"--holdout={given.holdout:g}: expected a fraction between 0 and 1, such as 0.2")
    if (given.out.is_file() or any(given.out.glob("*"))) and not (given.out / "counts.json").is_file():
        raise UserError(f"{given.out}: not a folder that this command wrote; give another --out")
    return given


def main(argv: list[str] | None = None) -> int:
    given = parse_options(argv)
    items, report = convert(given)
    write_folder(given.out, files_of(items), "counts.json", report)
    print(format_table(report))
    print(f"wrote {sum(not raw.reason for raw in items):,} items to {given.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
