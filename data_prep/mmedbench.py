"""The benchmark from its public sources, in MMedBench's layout, with every count held against the paper's.

In: exam files as their authors publish them (`data_prep.benchmark.mmedbench_sources` and `other_exams` read each form), the released MMedBench
(`data_prep.benchmark.release`), or any CSV or JSONL of multiple-choice questions through `--map`. Out, in the folder --out:

    Train/English.jsonl ... Test/Spanish.jsonl   one item a line: question, options {"A": ...}, answer_idx "A,C", rationale,
                                                 human_checked, human_check_passed, id, source, and what the source has besides
    Val/...                                      where a source has one; NOT part of the MMedBench release
    dropped.jsonl                                every item that could not be used, with its reason and file:line
    counts.json                                  the table printed at the end, reasons, notes, options, seed, sha256 of the files

Order: read -> check (drop with a reason) -> ids made unique, repeats found -> splits (official; by chance for IgakuQA and --holdout)
-> written to a temporary folder, which takes the name --out when all is there. Nothing depends on the order of the disk.
The paper's own reference: Qiu et al. 2024, section "MMedBench"; its counts are in `data_prep.benchmark.counts`.

Launch:  python -m data_prep.mmedbench --source medqa=MedQA --source igakuqa=IgakuQA/data --source headqa=HEAD-QA --out MMedBench
         python -m data_prep.mmedbench --source mmedbench=MMedBench.zip --out MMedBench
         python -m data_prep.mmedbench --source custom=exam.csv --language es --map question=q,options=a+b+c+d,answer=key --out exam
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
from data_prep.benchmark.release import MAX_ARCHIVE_GB, read_mmedbench
from mmed.languages import get_language
from mmed.metrics import same_options
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

MAP_KEYS = ("question", "options", "answer", "kind", "id", "rationale", "context", "subject", "year")


@dataclass
class Source:
    read: Callable[[Path, list[str]], Iterator[Raw]]
    about: str
    licence: str | None = None
    in_paper: bool = False  # one of MMedBench's six sets


def known_sources(language: str | None = None, mapping: dict[str, str] | None = None, encoding: str = "utf-8-sig",
                  max_gb: float = MAX_ARCHIVE_GB) -> dict[str, Source]:
    """Every name that --source takes."""
    jmmlu = {"question": "question", "options": "optionA+optionB+optionC+optionD", "answer": "answer", "subject": "tag"}
    head = "MIT (HEAD-QA); exams: Spanish Ministry of Health, updated 14 January 2019"
    return {
        "medqa": Source(partial(read.read_medqa, source="medqa", language="English", folder="US"), "MedQA US, 4 options", "MIT", True),
        "mcmle": Source(partial(read.read_medqa, source="mcmle", language="Chinese", folder="Mainland"),
                        "MedQA Mainland, simplified, 4 options", "MIT", True),
        "igakuqa": Source(read.read_igakuqa, "IgakuQA, a folder a year", "no licence file; exams: Japanese Ministry of Health", True),
        "frenchmedmcqa": Source(read.read_frenchmedmcqa, "FrenchMedMCQA, JSON arrays", "Apache-2.0", True),
        "rumeddanet": Source(read.read_rumeddanet, "RuMedDaNet, JSONL", None, True),
        "headqa": Source(partial(read.read_headqa, code="es", language="Spanish"), "HEAD-QA, Spanish", head, True),
        "headqa-en": Source(partial(read.read_headqa, code="en", language="English"), "HEAD-QA, its English translation", head),
        "medmcqa": Source(other.read_medmcqa, "MedMCQA", "MIT"),
        "pubmedqa": Source(other.read_pubmedqa, "PubMedQA, labelled part (ori_pqal.json)", "MIT"),
        "mmlu": Source(other.read_mmlu, "MMLU, the paper's six medical subjects", "MIT"),
        "jmmlu-med": Source(partial(other.read_custom, source="jmmlu-med", language="Japanese", mapping=jmmlu,
                                    encodings=("utf-8-sig", "cp932")), "JMMLU-Med, CSV", "CC BY-SA 4.0"),
        "apollo": Source(partial(other.read_apollo, language=language), "CMB, CMExam, CMMLU, MedQA ... in Apollo's form"),
        "rumedtest": Source(read.read_rumedtest, "RuMedTest: refused, it has no answers"),
        "mmedbench": Source(partial(read_mmedbench, max_gb=max_gb), "the released MMedBench, zip or folder", None, True),
        "custom": Source(partial(other.read_custom, source=None, language=language or "", mapping=mapping or {},
                                 encodings=(encoding,)), "any CSV, JSONL or JSON array, with --map and --language"),
    }


def problem_with(raw: Raw) -> str | None:
    """Why an item cannot be used, or None."""
    if not raw.question.strip():
        return "empty question"
    if len(raw.options) < 2:
        return "no options"
    if list(raw.options) != list(LETTERS[:len(raw.options)]):
        return "option letters skip or exceed Z"
    if not raw.answer:
        return "no answer"
    if any(letter not in raw.options for letter in raw.answer):
        return "answer outside the options"
    if not any(text.strip() for text in raw.options.values()):
        return "no option has a text"
    try:  # a lone surrogate (half a character, as "\\ud83d" in JSON) cannot be written as UTF-8, nor NaN as JSON
        json.dumps(as_item(raw, None), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "broken Unicode"
    except (ValueError, RecursionError):
        return "NaN, Infinity or endless nesting in a field"
    return None


def as_item(raw: Raw, licence: str | None) -> dict[str, Any]:
    """One line of MMedBench, its own keys first."""
    item = {"question": raw.question, "options": raw.options, "answer_idx": ",".join(sorted(set(raw.answer))), "rationale": raw.rationale,
            "human_checked": False, "human_check_passed": False, "id": raw.id, "source": raw.source}
    if licence:
        item["licence"] = licence
    if blank := [letter for letter, text in raw.options.items() if not text.strip()]:  # the question shows them, as a rule
        item["blank_options"] = blank
    same = same_options(raw.options)
    equal = [letter for letter in same if list(same.values()).count(same[letter]) > 1]
    if equal:  # the key names one of them; `mmed.eval --equal_options either` accepts all
        item["equal_options"] = equal
    return item | {key: value for key, value in raw.extra.items() if value is not None}


def fraction_of(seed: int, key: str) -> float:
    """A number in [0, 1) fixed by seed and key: the same on any machine, whatever else is in the data.

    >>> fraction_of(0, "a") == fraction_of(0, "a") != fraction_of(1, "a")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:6]) / 2**48


def assign_splits(name: str, items: list[Raw], seed: int, holdout: float | None, notes: list[str]) -> None:
    """Set `split` of one source's items in one language where its files do not state it, or where --holdout asks for a test part."""
    found = {raw.split for raw in items}
    if name == "igakuqa":
        # MMedLM: 1,590/199/199 at random of the 1,988 questions with choices, those that need an image among them.
        # DIFFERS: which ones the paper drew is not published; ours go by a hash of seed and id, in the same proportion when years
        # are missing.
        paper, total = PAPER["Japanese"], sum(PAPER["Japanese"].values())
        test, val = (round(len(items) * paper[split] / total) for split in ("Test", "Val"))
        for rank, raw in enumerate(sorted(items, key=lambda raw: (fraction_of(seed, raw.group), raw.id))):
            raw.split = "Test" if rank < test else "Val" if rank < test + val else "Train"
        if holdout is not None:
            notes.append("--holdout not used: this source is drawn in the paper's proportion")
    elif holdout is None:
        if None in found:
            notes.append("the files state no split: all of it is Test (--holdout FRACTION makes a train part)")
        for raw in items:
            raw.split = raw.split or "Test"
    elif None in found or ("Train" in found and "Test" not in found):
        movable = None if None in found else "Train"
        for raw in items:
            if raw.split == movable:
                raw.split = "Test" if fraction_of(seed, raw.group) < holdout else "Train"
        notes.append(f"Test is a part held out of {'the files without a split' if movable is None else 'train'} (--holdout {holdout:g}, seed {seed}), "
                     "not the official test set")
    elif "Train" not in found:
        notes.append("--holdout not used: the files are an official test set, which is no training data")
    else:
        notes.append("--holdout not used: train and test files are both there")


def group_repeats(items: list[Raw]) -> list[str]:
    """Within one language: make ids unique and return each item's fingerprint; items that share one are copies of a question.

    Copies get the first one's group, so that a split by chance never sends one question to both sides.
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
    """{position of a repeated question: its first copy}; the one in Test comes first, then Val, then Train, then by position."""
    first: dict[str, int] = {}
    for position in sorted(range(len(items)), key=lambda position: (-SPLITS.index(items[position].split), position)):
        first.setdefault(prints[position], position)
    return {position: items[first[mark]] for position, mark in enumerate(prints) if first[mark] != position}


def lost_item(name: str, raw: Raw, reason: str) -> dict:
    """A line of dropped.jsonl."""
    line = {"source": name, "language": raw.language, "split": raw.split, "id": raw.id, "reason": reason, "where": raw.where,
            "question": raw.question[:200]}
    return {key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for key, value in line.items()}


def read_all(entries: list[tuple[str, Path]], sources: dict[str, Source], strict: bool, tallies: dict[tuple[str, str], Tally],
             notes: dict[str, list[str]], dropped: list[dict]) -> dict[str, list[tuple[str, Raw]]]:
    """Every usable item of every source by language, as (name of its source, item) in the order given."""
    kept: dict[str, list[tuple[str, Raw]]] = defaultdict(list)
    for name, path in entries:
        lost: Counter[str] = Counter()
        total, example = 0, ""
        for raw in sources[name].read(path, notes.setdefault(name, [])):
            tally = tallies.setdefault((raw.language, name), Tally())
            tally.read[raw.split] += 1
            tally.files[raw.split][raw.file] = None
            total += 1
            reason = problem_with(raw)
            if reason is None:
                kept[raw.language].append((name, raw))
                continue
            if strict:
                raise UserError(f"{raw.where}: {reason} (answer {','.join(raw.answer) or '-'}, options {','.join(raw.options) or '-'}); mend "
                                "the item, or leave --strict out and it goes to dropped.jsonl")
            example = example or raw.where
            lost[reason] += 1
            tally.dropped[raw.split][reason] += 1
            dropped.append(lost_item(name, raw, reason))
        if total == lost.total():
            why = ", ".join(f"{reason} {count}" for reason, count in lost.most_common())
            raise UserError(f"{path}: none of the {total} items read as {name} can be used" + (f" ({why}; first {example})" if total else ""))
    return kept


def convert(entries: list[tuple[str, Path]], sources: dict[str, Source], *, seed: int = 0, holdout: float | None = None,
            duplicates: str = "keep", mix: bool = False, strict: bool = False) -> tuple[dict, list[dict], dict]:
    """Read, check and split: returns ({(split, language): items}, dropped, the report that counts.json holds)."""
    tallies: dict[tuple[str, str], Tally] = {}
    notes: dict[str, list[str]] = {}
    dropped: list[dict] = []
    out: dict[tuple[str, str], list[dict]] = {}
    for language, pairs in read_all(entries, sources, strict, tallies, notes, dropped).items():
        names = list(dict.fromkeys(name for name, _ in pairs))
        if len(names) > 1 and not mix:
            raise UsageError(f"{' and '.join(names)} would all be written to {language}.jsonl, and scores on a mixture compare with "
                             "nothing: give each its own --out, or add --mix")
        items = [raw for _, raw in pairs]
        prints, official = group_repeats(items), [raw.split for raw in items]
        for name in names:
            assign_splits(name, [raw for owner, raw in pairs if owner == name], seed, holdout, notes[name])
        copies = first_copies(items, prints)
        for position, (name, raw) in enumerate(pairs):
            tally, split, first = tallies[language, name], raw.split, copies.get(position)
            if official[position] != split:
                tally.moved_out[official[position]] += 1
                tally.moved_in[split] += 1
            if first and duplicates == "drop":
                tally.dropped[split]["repeated question"] += 1
                dropped.append(lost_item(name, raw, "repeated question") | {"duplicate_of": first.id, "first_in": first.split})
                continue
            item = as_item(raw, sources[name].licence)
            if first:
                item["duplicate_of"] = first.id
                tally.repeats[split] += 1
                tally.leaks[split] += first.split != split
            tally.written[split] += 1
            tally.images[split] += item.get("image_dependent") is True
            tally.multiple[split] += "," in item["answer_idx"]
            tally.blank_options[split] += "blank_options" in item
            tally.equal_options[split] += "equal_options" in item
            tally.options[split][len(raw.options)] += 1
            out.setdefault((split, language), []).append(item)
    rows = [table_row(language, name, split, tally, sources[name].in_paper, seed, holdout)
            for (language, name), tally in tallies.items() for split in SPLITS]
    languages = [*PAPER, *sorted({row["language"] for row in rows} - set(PAPER))]
    rows.sort(key=lambda row: languages.index(row["language"]))
    report = {"format": 1, "seed": seed, "holdout": holdout, "duplicates": duplicates,
              "sources": [{"name": name, "path": path.name} for name, path in entries],
              "table": [row for row in rows if row["items"] or row["paper"]],
              "notes": {name: list(dict.fromkeys(said)) for name, said in notes.items()},
              "dropped": dict(Counter(line["reason"] for line in dropped).most_common())}
    return out, dropped, report


def refuse_to_overwrite(out: Path) -> None:
    """An earlier result may be replaced only while it is as it was written: rationales merged into it may have cost money."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; --out names a folder")
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    if not there:
        return
    written = read_json(out / "counts.json") if "counts.json" in there else None
    hashes = written.get("files") if isinstance(written, dict) else None
    if not isinstance(hashes, dict):
        raise UserError(f"{out}: not empty, and not a folder that this command wrote; give another --out")
    changed = sorted((there - {"counts.json"}) ^ set(hashes)) or \
        sorted(name for name, about in hashes.items() if sha256_of(out / name) != about["sha256"])
    if changed:
        raise UserError(f"{out}: {changed[0]} was changed, added or removed since this folder was written; give another --out, or "
                        "--overwrite to lose that")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(record: dict) -> str:
    """JSON on one line for every reader: also for those that take U+2028, U+2029 (there is one in PubMedQA) or U+0085 for an end.

    >>> one_line({"a": "é\\u2028"})
    '{"a": "é\\\\u2028"}'
    """
    text = json.dumps(record, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def write_benchmark(out: Path, items: dict[tuple[str, str], list[dict]], dropped: list[dict], report: dict) -> None:
    """Write all files to a temporary folder beside `out`, then give it the name: the benchmark is whole or not there."""
    out = out.resolve()
    temporary, old = (out.parent / f".{out.name}.{os.getpid()}.{word}.tmp" for word in ("new", "old"))
    files = {f"{split}/{language}.jsonl": items[split, language] for split, language in sorted(items)} | {"dropped.jsonl": dropped}
    try:
        for name, records in files.items():
            with atomic_write(temporary / name) as file:
                for record in records:
                    file.write(one_line(record) + "\n")
        about = {name: {"items": len(records), "sha256": sha256_of(temporary / name)} for name, records in files.items()}
        write_json(temporary / "counts.json", report | {"files": about})
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
    finally:
        if old.exists() and not out.exists():
            os.replace(old, out)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def nearest(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(words)}"


def parse_entry(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--source {text}: expected NAME=PATH")
    if name not in known_sources():
        raise UsageError(f"--source {text}: no source {name!r}{nearest(name, known_sources())}")
    return name, Path(path).expanduser()


def parse_map(text: str) -> dict[str, str]:
    """The --map option.

    >>> parse_map("question=stem,options=a+b,answer=key")
    {'question': 'stem', 'options': 'a+b', 'answer': 'key'}
    """
    mapping = {}
    for part in text.split(","):
        key, equals, column = (piece.strip() for piece in part.partition("="))
        if key not in MAP_KEYS:
            raise UsageError(f"--map {part}: no key {key!r}{nearest(key, MAP_KEYS)}")
        if not equals or not column:
            raise UsageError(f"--map {part}: expected {key}=NAME")
        mapping[key] = column
    if missing := [key for key in MAP_KEYS[:3] if key not in mapping]:
        raise UsageError(f"--map {text}: {missing[0]!r} is missing (question=..., options=..., answer=... are needed)")
    if mapping.get("kind", "letter") not in ("letter", "text", "0", "1"):
        raise UsageError(f"--map kind={mapping['kind']}: expected letter, text, 0 or 1 (a number counted from 0 or 1)")
    return mapping


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.mmedbench", description="Exam files as published -> MMedBench's layout.",
                                     epilog="sources: " + "; ".join(f"{name} ({s.about})" for name, s in known_sources().items()))
    parser.add_argument("--source", action="append", required=True, metavar="NAME=PATH", help="a source and its folder or file; repeatable")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="for IgakuQA's split and --holdout (default 0)")
    parser.add_argument("--holdout", type=float, metavar="FRACTION", help="where a source has no test file: this part of it becomes Test")
    parser.add_argument("--duplicates", choices=("keep", "drop"), default="keep",
                        help="repeated questions: keep them, as the paper's counts do, with the key duplicate_of (default), or drop them")
    parser.add_argument("--mix", action="store_true", help="allow several sources in one language's file")
    parser.add_argument("--strict", action="store_true", help="stop at the first item that cannot be used")
    parser.add_argument("--map", metavar="question=..,options=..,answer=..", help=f"keys of --source custom: {', '.join(MAP_KEYS)}")
    parser.add_argument("--language", help="language of --source custom and apollo: a code (es) or a name (Spanish)")
    parser.add_argument("--encoding", default="utf-8-sig", help="of --source custom's CSV files (default UTF-8)")
    parser.add_argument("--max-archive-gb", type=float, default=MAX_ARCHIVE_GB, help="refuse a zip that unpacks to more")
    parser.add_argument("--overwrite", action="store_true", help="replace --out even if it was changed since it was written")
    args = parser.parse_args(argv)

    entries = [parse_entry(text) for text in args.source]
    if len({(name, path.resolve()) for name, path in entries}) < len(entries):
        raise UsageError("--source: the same source and path twice")
    for name, path in entries:
        if args.out.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--out {args.out} lies inside --source {name}={path}, where the next run would read it as the source's own file")
    names = {name for name, _ in entries}
    if args.holdout is not None and not 0 < args.holdout < 1:
        raise UsageError(f"--holdout {args.holdout:g}: expected a fraction between 0 and 1, such as 0.2")
    try:
        language = get_language(args.language).name if args.language else None
    except UserError as error:
        raise UsageError(f"--language: {error}") from None
    if "custom" in names and (args.map is None or language is None):
        raise UsageError("--source custom needs --map question=...,options=...,answer=... and --language")
    if args.map is not None and "custom" not in names:
        raise UsageError("--map belongs to --source custom, which is not given")
    try:
        "".encode(args.encoding)
    except LookupError:
        raise UsageError(f"--encoding {args.encoding}: no such encoding") from None
    if not args.overwrite:
        refuse_to_overwrite(args.out)
    sources = known_sources(language, parse_map(args.map) if args.map else None, args.encoding, args.max_archive_gb)
    items, dropped, report = convert(entries, sources, seed=args.seed, holdout=args.holdout, duplicates=args.duplicates, mix=args.mix,
                                     strict=args.strict)
    write_benchmark(args.out, items, dropped, report)
    print(format_table(report))
    print(f"wrote {sum(map(len, items.values())):,} items to {args.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
