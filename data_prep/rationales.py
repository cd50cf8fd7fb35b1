"""Generates rationales and topics with a strong model, and manages their checks by people.

    python -m data_prep.rationales generate --data MMedBench/Test --api MODEL_NAME --out with_rationales
    python -m data_prep.rationales topics   --data with_rationales --api MODEL_NAME --out with_topics
    python -m data_prep.rationales sheet    --data with_topics --language Japanese --out japanese.csv
    python -m data_prep.rationales merge    ann.csv bo.csv --data with_topics --out checked

In:  exam items (MMedBench's JSONL). Only `generate` and `topics` use the network; OUT.calls.jsonl keeps each
     reply: the same command continues a stopped run, and --calls uses those of a finished one again.
Out: a new folder of the same files with `rationale`, `topic`, or `human_checked` and `human_check_passed`; a
     table for checkers (data_prep/benchmark/rationale_checks.py).
"""
from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.benchmark.exam_files import write_folder
from data_prep.benchmark.rationale_checks import CRITERIA, check, summary, write_sheet
from mmed.evaluation import api_client
from mmed.evaluation.answer_parser import parse_answer, remove_thoughts
from mmed.languages import get_language
from mmed.prompts import ANSWER_FORM, ExamItem, read_benchmark
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import finite, read_jsonl
from mmed.utils.fingerprints import file_hash

PROMPT_VERSION = 1  # of the prompts below
WORDS = 100  # asked for of a rationale
TEMPERATURE = 0.8  # of every sample but the first
# MMedLM: the 21 labels of the paper's figure of topics; 11 % of its items carry none, which is OTHER here.
TOPICS = ("Internal Medicine", "Biochemistry", "Pharmacology", "Psychiatry", "Pediatrics", "Microbiology",
          "Physiology", "Pathology", "Immunology", "Obstetrics and Gynecology", "Public Health",
          "Hematology", "Surgery", "Emergency Medicine", "Orthopedics", "Neurology", "Anatomy",
          "Medical Genetics", "Radiology", "Dermatology", "Endocrinology")
OTHER = "Other"
TRUNCATED = {"length": "at --max_new_tokens", "content_filter": "by a content filter"}


@dataclass
class Entry:
    """One line of an exam file: as it is, and as an item."""

    file: str
    row: dict[str, Any]
    item: ExamItem
    sample: int = 0  # the one that was taken; 0: none
    problem: str = ""  # why the last reply could not be used


def read_entries(data: str | Path) -> list[Entry]:
    """Every item of a folder of JSONL files, or of one file, with its line as it is in the file."""
    path = Path(data)
    rows = [(file.name, row) for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
            for _, row in read_jsonl(file)]
    return [Entry(name, row, item) for (name, row), item in zip(rows, read_benchmark(path), strict=True)]


def write_entries(out: Path, entries: Sequence[Entry], name: str, report: Any) -> None:
    """Write the entries to a new folder under the old file names, with the report."""
    files: dict[str, list[dict]] = defaultdict(list)
    for entry in entries:
        files[entry.file].append(finite(entry.row))
    write_folder(out, files, name, report)


def exam_text(item: ExamItem) -> str:
    """Question and options, as in all prompts."""
    options = "\n".join(f"{letter}. {text}" for letter, text in item.options.items())
    return f"###Question: {item.question}\n###Options:\n{options}"


def solved_text(item: ExamItem) -> str:
    """Question, options and right answer."""
    right = "; ".join(f"{letter}. {item.options[letter]}" for letter in item.answer)
    return f"{exam_text(item)}\n###Right answer{'s' if len(item.answer) > 1 else ''}: {right}"


def rationale_prompt(item: ExamItem) -> str:
    # MMedLM: question, options and right answer are given. DIFFERS: the words of the paper's prompt were not
    # published; these are ours.
    these = "these options are" if len(item.answer) > 1 else "this option is"
    return (f"You're a {item.language} doctor. Below are a question of a medical exam, its options and the "
            f"right answer.\n\n{solved_text(item)}\n\n"
            f"Explain in {item.language}, in about {WORDS} words, why {these} right and the others are not. "
            "Begin with the reasoning at once: no heading, no list, no repetition of the question. Write "
            "nothing but the explanation.")


def sampled_prompt(item: ExamItem) -> str:
    # DIFFERS: ours, not the paper's, whose model saw the right answer: this one must find it, and a
    # rationale is kept only if it does.
    several = len(item.answer) > 1
    return (f"You're a {item.language} doctor. Below are a question of a medical exam and its options; "
            f"{'several options are' if several else 'one option is'} right.\n\n{exam_text(item)}\n\n"
            f"Explain in {item.language}, in about {WORDS} words, what is right and why the rest is not. "
            'Begin with "###Rationale:", and end with a line of this form, with the right '
            f"{'letters' if several else 'letter'}:\n"
            f"{ANSWER_FORM.format(letters='X,Y' if several else 'X')}")


def topic_prompt(item: ExamItem) -> str:
    listed = "\n".join((*TOPICS, OTHER))
    return (f"Below are a question of a medical exam in {item.language}, its options and the right "
            f"answer.\n\n{solved_text(item)}\n\n"
            f"Which of these subjects does the question belong to?\n\n{listed}\n\nAnswer with one line of "
            f"this list and nothing else; with {OTHER} only if none fits.")


def read_rationale(text: str) -> str | None:
    """The rationale in a reply, None if there is none, without the marker that fine-tuning texts carry."""
    marker = r"\A\s*(?:#{0,3}\s*\**Rationale\**\s*[:：]\**)?\s*"
    return re.sub(marker, "", text, count=1, flags=re.IGNORECASE).strip() or None


def read_topic(text: str) -> str | None:
    """The one label that a reply names; None if it names none, or several."""
    folded = " ".join(re.findall(r"\w+", text.replace("&", " and ").casefold()))
    named = [label for label in TOPICS if re.search(rf"\b{label.casefold()}\b", folded)]
    if len(named) == 1:
        return named[0]
    return OTHER if not named and folded == OTHER.casefold() else None


@dataclass(frozen=True)
class Task:
    """What to ask about each item, and where to store the answer."""

    about: str
    prompt: Callable[[ExamItem], str]
    read: Callable[[str], str | None]
    key: str
    max_new_tokens: int


TASKS = {"generate": Task("Write rationales from question, options and right answer", rationale_prompt,
                          read_rationale, "rationale", 1024),
         "topics": Task(f"Give each item one of {len(TOPICS)} topics, or {OTHER}", topic_prompt, read_topic,
                        "topic", 64)}


def take(task: Task, entry: Entry, reply: dict, hidden: bool) -> str:
    """Store a reply in the item's line; return why it is unusable, or "". `hidden`: the key was not shown."""
    if "error" in reply:
        return reply["error"]
    if ended := next((word for word in TRUNCATED if word in str(reply["finish_reason"])), ""):
        return f"truncated {TRUNCATED[ended]}"
    text, item = remove_thoughts(reply["text"]), entry.item
    if hidden:
        parsed = parse_answer(text, item.options, rationale_expected=True, language=item.language)
        if parsed.letters != item.answer:
            return f"answered {','.join(parsed.letters) or 'nothing'}; the key is {','.join(item.answer)}"
        text = parsed.rationale
    value = task.read(text)
    if value is None:
        return f"no {task.key} in the reply: {reply['text']!r:.80} (ended with {reply['finish_reason']})"
    entry.row[task.key] = value
    if task.key == "rationale":  # an earlier check was of another text
        entry.row |= {"human_checked": False, "human_check_passed": False}
    return ""


def ask_all(task: Task, server: api_client.Server, store: api_client.CallStore, entries: Sequence[Entry],
            longest: int, samples: int) -> list[dict]:
    """Ask about each entry, with `samples` up to that often until the answer is the key; put the reply into
    its line. Returns the replies."""
    replies: list[dict] = []
    prompt = sampled_prompt if samples else task.prompt
    for sample in range(1, max(samples, 1) + 1):
        left = [entry for entry in entries if not entry.sample]
        if sample > 1:
            changed = {"temperature": server.options["temperature"] or TEMPERATURE, "seed": sample}
            server = dataclasses.replace(server, options=server.options | changed)
        requests = [api_client.request(server, prompt(entry.item), longest) for entry in left]
        labels = [f"item {entry.item.key} ({entry.item.language})" for entry in left]
        found = api_client.ask(server, requests, store, labels=labels)
        for entry, reply in zip(left, found):
            entry.problem = take(task, entry, reply, samples > 0)
            entry.sample = 0 if entry.problem else sample
        replies += found
    return replies


def accepted(entries: Sequence[Entry]) -> dict[str, Any]:
    """How many items of a language got a rationale whose letter is the key, and from which sample."""
    counts = Counter(entry.sample for entry in entries)
    found = len(entries) - counts[0]
    return {"items": len(entries), "accepted": found, "rate": found / len(entries),
            "by_sample": [counts[sample] for sample in range(1, max(counts) + 1)]}


def run(options: argparse.Namespace) -> None:
    """Run `generate` or `topics`."""
    task, out, server = TASKS[options.command], options.out, api_client.server_from(options)
    longest = options.max_new_tokens or task.max_new_tokens
    entries = read_entries(options.data)
    by_language: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        own = by_language[entry.item.language]
        has_one = str(entry.row.get(task.key) or "").strip() and not options.replace
        if len(own) < (options.limit or math.inf) and not has_one:
            own.append(entry)
    for language in by_language:
        get_language(language)
    chosen = [entry for own in by_language.values() for entry in own]
    if not chosen:
        raise UserError(f"{options.data}: every item has a {task.key} already; use --replace to redo them")
    store = api_client.CallStore(options.calls or f"{out}.calls.jsonl")
    replies = ask_all(task, server, store, chosen, longest, options.samples)
    store.close()  # before OUT is there: with it, there is nothing left to do
    problems = [{"key": entry.item.key, "language": entry.item.language, "reason": entry.problem}
                for entry in chosen if entry.problem]
    report = {"data": file_hash(options.data), "server": server.facts(), "prompt_version": PROMPT_VERSION,
              "max_new_tokens": longest, "replace": options.replace, "limit": options.limit,
              "samples": options.samples, "items": len(entries), "asked": len(chosen), "problems": problems,
              "usage": api_client.usage(replies)}
    if options.samples:
        report["accepted"] = {language: accepted(own) for language, own in by_language.items() if own}
    if options.command == "topics":
        counts = Counter(entry.row.get("topic") for entry in entries)
        report["topics"] = {label: counts[label] for label in (*TOPICS, OTHER)}
    write_entries(out, entries, f"{task.key}s.json", report)
    print(f"{len(chosen) - len(problems):,} of {len(chosen):,} items have a {task.key} now; "
          f"{len(problems):,} could not be used (listed in {out}/{task.key}s.json)")
    for language, part in report.get("accepted", {}).items():
        print(f"{language}: {part['accepted']:,} of {part['items']:,} accepted ({100 * part['rate']:.1f} %), "
              f"by sample: {', '.join(map(str, part['by_sample']))}")
    # What this run asked depends on where an earlier one stopped, so it is printed but not stored.
    spent = api_client.usage(store.new)
    print(f"this run: {spent['calls']:,} of {len(replies):,} calls, tokens in {spent['prompt_tokens']:,}, "
          f"out {spent['completion_tokens']:,}")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m data_prep.rationales", description="Rationales and topics by a strong "
                    "model behind an API, and their checking by people. Only `generate` and `topics` use the "
                    "network.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, task in TASKS.items():
        asking = commands.add_parser(name, help=task.about, description=task.about)
        add = asking.add_argument
        add("--calls", metavar="FILE.jsonl", help="reuse the calls stored in this file (OUT.calls.jsonl)")
        add("--replace", action="store_true", help=f"ask again for items that have a {task.key}")
        add("--limit", type=int, default=0, metavar="N", help="ask about the first N items of each language")
        add("--max_new_tokens", type=int, default=0, metavar="N",
            help=f"maximum tokens per reply (default {task.max_new_tokens})")
        asking.set_defaults(samples=0)
        if name == "generate":
            add("--samples", type=int, default=0, metavar="K", help="not the paper's way: hide the right "
                "answer, ask up to K times, keep the first rationale whose letter is the key")
        api_client.add_api_options(asking, required=True)
    sheet = commands.add_parser("sheet", help="write a table in which people check rationales",
                                description="yes or no for each criterion:\n" + "\n".join(
                                    f"  {name}: {words}" for name, words in CRITERIA.items()))
    sheet.add_argument("--language", action="append", default=[], metavar="NAME",
                       help="only this language (repeatable; default: all)")
    sheet.add_argument("--items", type=int, default=200, metavar="N",
                       help="rationales per language (default 200, as in the paper; 0: all)")
    merge = commands.add_parser("merge", help="add the finished checks to the items")
    merge.add_argument("sheets", nargs="+", metavar="NAME.csv", help="one table per checker, named so")
    for command in commands.choices.values():
        command.add_argument("--data", required=True, help="exam items: a folder of JSONL files, or one")
        command.add_argument("--out", required=True, type=Path,
                             help="new folder: the same files with what was added; of `sheet`, a CSV file")
    options = parser.parse_args(arguments)
    if options.out.exists():  # it may hold replies that were paid for, or the work of checkers
        raise UserError(f"{options.out}: already there; give another --out")
    for name in ("items", "limit", "max_new_tokens", "samples"):
        if vars(options).get(name, 0) < 0:
            raise UsageError(f"--{name}: expected 0 or more")
    if options.command in TASKS:
        if options.completions:
            raise UsageError("--completions: not supported, because these prompts need a chat model")
        if options.samples and {"seed=none", "temperature=none"} & {*options.server_option}:
            raise UsageError("--samples needs a temperature and a seed, or all samples would be the same")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.command in TASKS:
        run(options)
        return 0
    entries = read_entries(options.data)
    items = [entry.item for entry in entries]
    if options.command == "sheet":
        drawn = write_sheet(items, options.out, options.language, options.items)
        print(f"{drawn.total():,} rationales ({', '.join(drawn)}) -> {options.out}; send it to each checker, "
              "and merge the files that they save under their names")
        return 0
    report = check(options.sheets, items)
    for entry in entries:
        if entry.item.key in report["passed"]:
            entry.row |= {"human_checked": True, "human_check_passed": report["passed"][entry.item.key]}
    write_entries(options.out, entries, "checks.json", report)
    print(summary(report))
    return 0


if __name__ == "__main__":
    main_guard(main)
