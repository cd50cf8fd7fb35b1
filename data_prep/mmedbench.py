"""The benchmark from its public sources, in MMedBench's layout, with every count compared with the paper's.

    python -m data_prep.mmedbench --source medqa=MedQA --source igakuqa=IgakuQA/data --source headqa=HEAD-QA
    --out MMedBench
    python -m data_prep.mmedbench --source mmedbench=MMedBench.zip --out MMedBench
    python -m data_prep.mmedbench --source custom=exam.parquet --language es --map
    question=q,options=a+b+c,answer=key --out exam

In:  exam files as their authors publish them (data_prep/benchmark/mmedbench_sources.py and other_exams.py
     read each form), or any CSV, JSON or parquet file of multiple-choice questions through --map.
Out: Train/English.jsonl ... Test/Spanish.jsonl    one item a line: question, options {"A": ...}, answer_idx
                                 "A,C", rationale, human_checked, human_check_passed, id, source, and what the
     source has besides Val/...                     where a source has one; not part of the MMedBench release
     dropped.jsonl               every item that could not be used, with its reason and file:line
     counts.json                 the table printed at the end, reasons, notes, options

Items are read, checked (unusable ones are dropped with a reason), and put into their official split, or a
random one for IgakuQA and --holdout. The paper: Qiu et al. 2024, section "MMedBench"; its counts are in
data_prep/benchmark/counts.py.
"""
from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.benchmark import mmedbench_sources as read
from data_prep.benchmark import other_exams as other
from data_prep.benchmark.counts import PAPER, SPLITS, Tally, format_table, table_row
from data_prep.benchmark.mmedbench_sources import LETTERS, Raw
from data_prep.documents import json_line
from data_prep.filters.language_codes import language_code
from mmed.languages import get_language
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, temporary_name, write_json

MAP_KEYS = ("question", "options", "answer", "kind", *other.ROLES)
KINDS = ("letter", "text", "0", "1")


@dataclass
class Source:
    read: Callable[[Path, list[str]], Iterator[Raw]]
    about: str
    licence: str | None = None
    in_paper: bool = False  # one of MMedBench's six sets


def known_sources(language: str | None = None, mapping: dict[str, str] | None = None) -> dict[str, Source]:
    """Every name that --source takes; language and mapping are those of custom files."""
    medqa, headqa, custom = read.read_medqa, read.read_headqa, other.read_custom
    jmmlu = {"question": "question", "options": "optionA+optionB+optionC+optionD", "answer": "answer",
             "subject": "tag"}
    spanish_exams = "MIT (HEAD-QA); exams: Spanish Ministry of Health, updated 14 January 2019"
    return {
        "medqa": Source(partial(medqa, source="medqa", language="English", folder="US"),
                        "MedQA US, 4 options", "MIT", True),
        "mcmle": Source(partial(medqa, source="mcmle", language="Chinese", folder="Mainland"),
                        "MedQA Mainland, simplified, 4 options", "MIT", True),
        "igakuqa": Source(read.read_igakuqa, "IgakuQA, a folder a year",
                          "no licence file; exams: Japanese Ministry of Health", True),
        "frenchmedmcqa": Source(read.read_frenchmedmcqa, "FrenchMedMCQA, JSON arrays", "Apache-2.0", True),
        "rumeddanet": Source(read.read_rumeddanet, "RuMedDaNet, JSONL", None, True),
        "headqa": Source(partial(headqa, code="es", language="Spanish"), "HEAD-QA, Spanish", spanish_exams,
                         True),
        "headqa-en": Source(partial(headqa, code="en", language="English"), "HEAD-QA in English",
                            spanish_exams),
        "medmcqa": Source(other.read_medmcqa, "MedMCQA", "MIT"),
        "pubmedqa": Source(other.read_pubmedqa, "PubMedQA, labelled part (ori_pqal.json)", "MIT"),
        "mmlu": Source(other.read_mmlu, "MMLU, the paper's six medical subjects", "MIT"),
        "jmmlu-med": Source(partial(custom, source="jmmlu-med", language="Japanese", mapping=jmmlu,
                                    encodings=("utf-8-sig", "cp932")), "JMMLU-Med, CSV", "CC BY-SA 4.0"),
        "apollo": Source(partial(other.read_apollo, language=language),
                         "CMB, CMExam, CMMLU, MedQA ... in Apollo's form"),
        "mmedbench": Source(other.read_mmedbench, "the released MMedBench, zip or folder", None, True),
        "custom": Source(partial(custom, source=None, language=language or "", mapping=mapping or {}),
                         "any CSV, JSON or parquet file, with --map and --language"),
    }


# ---- checks --------------------------------------------------------------------------------------


def problem_with(raw: Raw) -> str | None:
    """Why an item cannot be used, or None."""
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
        json.dumps(as_item(raw, None), ensure_ascii=False, allow_nan=False).encode()
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


def as_item(raw: Raw, licence: str | None) -> dict[str, Any]:
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
    data.

    >>> fraction_of(0, "a") == fraction_of(0, "a") != fraction_of(1, "a")
    True
    """
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
                     f"set")
    else:
        if holdout is not None:
            notes.append("--holdout not used: the files have a test set")
        elif None in found:
            notes.append("the files state no split: all is Test (--holdout FRACTION makes a train part)")
        for raw in items:
            raw.split = raw.split or "Test"


def group_repeats(items: list[Raw]) -> list[str]:
    """Make ids unique and return each item's fingerprint; copies of a question share it, and its group.

    So a random split never puts one question on both sides.
    """
    prints = [read.fingerprint(raw.question, raw.options) for raw in items]
    groups: dict[str, str] = {}
    ids: set[str] = set()
    for raw, mark in zip(items, prints):
        raw.group = groups.setdefault(mark, raw.group)
        base, number = raw.id, 1
        while raw.id in ids:
            number += 1
            raw.id = f"{base}-{number}"
        ids.add(raw.id)
    return prints


def first_copies(items: list[Raw], prints: list[str]) -> dict[int, Raw]:
    """{position of a repeated question: its first copy}; one in Test comes first, then Val, then Train."""
    first: dict[str, int] = {}
    for position in sorted(range(len(items)), key=lambda i: (-SPLITS.index(items[i].split), i)):
        first.setdefault(prints[position], position)
    return {position: items[first[mark]] for position, mark in enumerate(prints) if first[mark] != position}


# ---- conversion ----------------------------------------------------------------------------------


class Conversion:
    """Reads, checks and splits the items of some sources; holds what is written and what is reported."""

    def __init__(self, entries: list[tuple[str, Path]], sources: dict[str, Source], seed: int = 0,
                 holdout: float | None = None, mix: bool = False):
        self.entries, self.sources, self.seed, self.holdout, self.mix = entries, sources, seed, holdout, mix
        self.tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)  # (language, source)
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.dropped: list[dict[str, Any]] = []
        self.items: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)  # (split, language)
        usable: dict[str, list[tuple[str, Raw]]] = defaultdict(list)
        for name, path in entries:
            for raw in self._usable(name, path):
                usable[raw.language].append((name, raw))
        for language, pairs in usable.items():
            self._place(language, pairs)

    def _usable(self, name: str, path: Path) -> Iterator[Raw]:
        """The usable items of a source; the others are recorded."""
        reasons: Counter[str] = Counter()
        total = 0
        for raw in self.sources[name].read(path, self.notes[name]):
            total += 1
            tally, reason = self.tallies[raw.language, name], problem_with(raw)
            tally.read[raw.split] += 1
            if reason is None:
                yield raw
                continue
            tally.dropped[raw.split, reason] += 1
            reasons[reason] += 1
            lost = {"source": name, "language": raw.language, "split": raw.split, "id": raw.id,
                    "reason": reason,
                    "where": raw.where, "question": raw.question[:200]}
            self.dropped.append(lost)
        if total == reasons.total():
            why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            first = f" ({why}; first {self.dropped[-total]['where']})" if total else ""
            raise UserError(f"{path}: none of the {total} items read as {name} can be used{first}")

    def _place(self, language: str, pairs: list[tuple[str, Raw]]) -> None:
        """Put the items of one language into their splits."""
        names = list(dict.fromkeys(name for name, _ in pairs))
        if len(names) > 1 and not self.mix:
            raise UsageError(f"{' and '.join(names)} would all be written to {language}.jsonl, and scores "
                             f"on a mixture compare "
                             "with nothing: give each its own --out, or add --mix")
        items = [raw for _, raw in pairs]
        prints, stated = group_repeats(items), [raw.split for raw in items]
        for name in names:
            assign_splits(name, [raw for owner, raw in pairs if owner == name], self.seed, self.holdout,
                          self.notes[name])
        copies = first_copies(items, prints)
        for position, (name, raw) in enumerate(pairs):
            tally, first = self.tallies[language, name], copies.get(position)
            if stated[position] != raw.split:
                tally.moved[stated[position], raw.split] += 1
            item = as_item(raw, self.sources[name].licence)
            if first:
                item["duplicate_of"] = first.id
                tally.flags[raw.split, "leaks"] += first.split != raw.split
            for key in ("duplicate_of", "image_dependent", "blank_options", "equal_options"):
                tally.flags[raw.split, key] += bool(item.get(key))
            tally.written[raw.split] += 1
            self.items[raw.split, language].append(item)

    def report(self) -> dict[str, Any]:
        """What counts.json has."""
        rows = [table_row(language, name, split, tally, self.sources[name].in_paper)
                for (language, name), tally in self.tallies.items() for split in SPLITS]
        languages = [*PAPER, *sorted({row["language"] for row in rows} - set(PAPER))]
        rows.sort(key=lambda row: languages.index(row["language"]))
        return {"format": 2, "seed": self.seed, "holdout": self.holdout,
                "sources": [{"name": name, "path": path.name} for name, path in self.entries],
                "table": [row for row in rows if row["items"] or row["paper"]],
                "notes": {name: list(dict.fromkeys(notes)) for name, notes in self.notes.items()},
                "dropped": dict(Counter(line["reason"] for line in self.dropped).most_common())}

    def write(self, out: Path) -> None:
        """Write all files to a temporary folder, which then takes the name `out`: the benchmark is complete
        or absent."""
        out = out.resolve()
        temporary = temporary_name(out)
        files = {f"{split}/{language}.jsonl": items
                 for (split, language), items in sorted(self.items.items())}
        try:
            for name, lines in {**files, "dropped.jsonl": self.dropped}.items():
                with atomic_write(temporary / name, "wb") as file:
                    file.writelines(map(json_line, lines))
            write_json(temporary / "counts.json", self.report())
            if out.exists():
                shutil.rmtree(out)
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


# ---- the command ---------------------------------------------------------------------------------


def parse_entry(text: str) -> tuple[str, Path]:
    """The option --source."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--source {text}: expected NAME=PATH")
    if name not in known_sources():
        raise UsageError(f"--source {text}: no source {name!r}{_nearest(name, known_sources())}")
    return name, Path(path).expanduser()


def parse_map(text: str) -> dict[str, str]:
    """The option --map.

    >>> parse_map("question=stem,options=a+b,answer=key")
    {'question': 'stem', 'options': 'a+b', 'answer': 'key'}
    """
    mapping = {}
    for part in text.split(","):
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if key not in MAP_KEYS:
            raise UsageError(f"--map {part}: no key {key!r}{_nearest(key, MAP_KEYS)}")
        if not equals or not column:
            raise UsageError(f"--map {part}: expected {key}=NAME")
        mapping[key] = column
    if missing := [key for key in MAP_KEYS[:3] if key not in mapping]:
        raise UsageError(f"--map {text}: {missing[0]!r} is missing (question=..., options=..., answer=... "
                         f"are needed)")
    if mapping.get("kind", "letter") not in KINDS:
        raise UsageError(f"--map kind={mapping['kind']}: expected letter, text, 0 or 1 (a number counted "
                         f"from 0 or 1)")
    return mapping


def _nearest(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(words)}"


def parse_options(argv: list[str] | None) -> Any:
    sources = "; ".join(f"{name} ({source.about})" for name, source in known_sources().items())
    parser = Parser(prog="python -m data_prep.mmedbench", description="Exam files as published -> "
                                                                      "MMedBench's layout.",
                    epilog=f"sources: {sources}")
    parser.add_argument("--source", action="append", required=True, metavar="NAME=PATH", type=str,
                        help="a source and its folder or file; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="folder to write; an earlier result there "
                                                                "is replaced")
    parser.add_argument("--seed", type=int, default=0, help="for IgakuQA's split and --holdout (default 0)")
    parser.add_argument("--holdout", type=float, metavar="FRACTION",
                        help="where a source has no test file: this part of it becomes Test")
    parser.add_argument("--mix", action="store_true", help="allow several sources in one language's file")
    parser.add_argument("--map", metavar="question=..,options=..,answer=..",
                        help=f"keys of --source custom: {', '.join(MAP_KEYS)}")
    parser.add_argument("--language", help="language of --source custom and apollo: a code (es) or a name "
                                           "(Spanish)")
    given = parser.parse_args(argv)
    given.entries = [parse_entry(text) for text in given.source]
    names = {name for name, _ in given.entries}
    if given.holdout is not None and not 0 < given.holdout < 1:
        raise UsageError(f"--holdout={given.holdout:g}: expected a fraction between 0 and 1, such as 0.2")
    if "custom" in names and not (given.map and given.language):
        raise UsageError("--source custom needs --map question=...,options=...,answer=... and --language")
    if given.map and "custom" not in names:
        raise UsageError("--map belongs to --source custom, which is not given")
    for name, path in given.entries:
        if given.out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--out {given.out} is inside --source {name}={path}, where the next run would "
                             f"read it")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())) \
            and not (given.out / "counts.json").is_file():
        raise UserError(f"{given.out}: exists, and is not a folder that this command wrote; give another "
                        f"--out")
    return given


def main(argv: list[str] | None = None) -> int:
    given = parse_options(argv)
    language = get_language(language_code(given.language)).name if given.language else None
    sources = known_sources(language, parse_map(given.map) if given.map else None)
    conversion = Conversion(given.entries, sources, given.seed, given.holdout, given.mix)
    conversion.write(given.out)
    print(format_table(conversion.report()))
    print(f"wrote {sum(map(len, conversion.items.values())):,} items to {given.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
