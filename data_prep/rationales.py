"""Rationales and topics by a strong model, and their checking by people.

    python -m data_prep.rationales generate --data MMedBench/Test --api MODEL_NAME --out with_rationales
    [--estimate --price-in 2.5 --price-out 10]
    python -m data_prep.rationales topics   --data with_rationales --api MODEL_NAME --out with_topics
    python -m data_prep.rationales sheet    --data with_topics --language Japanese --out check_japanese.html
    python -m data_prep.rationales merge    saved_1.json saved_2.json --data with_topics --out checked

In:  exam items (MMedBench's JSONL). `generate` and `topics` call a model (mmed/evaluation/api_client.py
     stores each reply under the hash of its request); `sheet` and `merge` are in
     data_prep/benchmark/rationale_checks.py.
Out: a new folder of the same files with `rationale`, `topic`, or `human_checked` and `human_check_passed`; a
     page for checkers.

Only `generate` and `topics` use the network. Stopped and started again by the same command they continue; a
second run of a finished command costs nothing.
"""
from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.benchmark import rationale_checks
from mmed.evaluation import api_client
from mmed.evaluation.answer_parser import remove_thoughts
from mmed.evaluation.api_client import add_api_options
from mmed.evaluation.summary import aligned
from mmed.languages import get_language
from mmed.prompts import ExamItem, read_benchmark
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, read_jsonl, temporary_name, write_json
from mmed.utils.fingerprints import file_hash
from mmed.utils.journal import facts_that_differ, json_line

PROMPT_VERSION = 1  # of the two prompts below
WORDS = 100  # asked for of a rationale
# What a text has on average (a rationale in the paper's test set) or at most (a topic); only estimates depend
# on it.
EXPECTED_TOKENS = {"generate": 200, "topics": 6}
MESSAGE_TOKENS = 8  # that a chat template adds to a message
REPORTS = {"generate": "rationales.json", "topics": "topics.json", "merge": "checks.json"}
# MMedLM: the 21 labels of the paper's figure of topics; 11 % of its items carry none, which is OTHER here.
TOPICS = ("Internal Medicine", "Biochemistry", "Pharmacology", "Psychiatry", "Pediatrics", "Microbiology",
          "Physiology", "Pathology", "Immunology",
          "Obstetrics and Gynecology", "Public Health", "Hematology", "Surgery", "Emergency Medicine",
          "Orthopedics", "Neurology", "Anatomy",
          "Medical Genetics", "Radiology", "Dermatology", "Endocrinology")
OTHER = "Other"


# ---- items ---------------------------------------------------------------------------------------

@dataclass
class Entry:
    """One line of an exam file: as it is, and as an item."""

    file: str
    row: dict[str, Any]
    item: ExamItem


def read_entries(data: str | Path) -> list[Entry]:
    """Every item of a folder of JSONL files, or of one file, with its line as it is in the file."""
    path = Path(data)
    items = read_benchmark(path)
    rows = [(file.name, row) for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
            for _, row in read_jsonl(file)]
    assert len(rows) == len(items), f"expected {len(items)} lines, got {len(rows)}"
    return [Entry(name, row, item) for (name, row), item in zip(rows, items)]


def write_folder(out: Path, entries: Sequence[Entry], reports: dict[str, Any]) -> None:
    """The entries' lines under the old file names, and the reports, in a new folder that is complete or
    absent."""
    if out.exists():
        raise UserError(f"{out}: already there; give another --out")
    out = out.resolve()
    temporary = temporary_name(out)
    try:
        for name in dict.fromkeys(entry.file for entry in entries):
            with atomic_write(temporary / name) as file:
                file.writelines(json_line(entry.row) for entry in entries if entry.file == name)
        for name, report in reports.items():
            write_json(temporary / name, report)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def earlier_reports(data: str | Path) -> dict[str, Any]:
    """The reports of earlier steps, which are copied along."""
    path = Path(data)
    return {name: read_json(path / name) for name in REPORTS.values() if path.is_dir()
            and (path / name).is_file()}


# ---- prompts -------------------------------------------------------------------------------------

def exam_text(item: ExamItem) -> str:
    """Question, options and right answer, as both prompts show them.

    >>> print(exam_text(ExamItem("Why?", {"A": "this", "B": "that"}, ("B",), "", "English", "1")))
    ###Question: Why?
    ###Options:
    A. this
    B. that
    ###Right answer: B. that
    """
    options = "\n".join(f"{letter}. {text}" for letter, text in item.options.items())
    right = "; ".join(f"{letter}. {item.options[letter]}" for letter in item.answer)
    plural = "s" if len(item.answer) > 1 else ""
    return f"###Question: {item.question}\n###Options:\n{options}\n###Right answer{plural}: {right}"


def rationale_prompt(item: ExamItem) -> str:
    """What a strong model is asked for a rationale."""
    # MMedLM: question, options and right answer are given. DIFFERS: the words of the paper's prompt were not
    # published; these are ours.
    these = "these options are" if len(item.answer) > 1 else "this option is"
    return (f"You're a {item.language} doctor. Below are a question of a medical exam, its options and the "
            f"right answer.\n\n{exam_text(item)}\n\n"
            f"Explain in {item.language}, in about {WORDS} words, why {these} right and the others are not. "
            f"Begin with the reasoning at once: no heading, "
            "no list, no repetition of the question. Write nothing but the explanation.")


def topic_prompt(item: ExamItem) -> str:
    listed = "\n".join((*TOPICS, OTHER))
    return (f"Below are a question of a medical exam in {item.language}, its options and the right "
            f"answer.\n\n{exam_text(item)}\n\n"
            f"Which of these subjects does the question belong to?\n\n{listed}\n\nAnswer with one line of "
            f"this list and nothing else; with {OTHER} only if "
            "none fits.")


# ---- replies -------------------------------------------------------------------------------------

def read_rationale(text: str) -> str | None:
    """The rationale in a reply, None if there is none; the marker that fine-tuning texts carry is taken off.

    >>> read_rationale("###Rationale: Because.\\n")
    'Because.'
    """
    text = re.sub(r"\A\s*(?:#{0,3}\s*\**Rationale\**\s*:\**)?\s*", "", text, count=1,
                  flags=re.IGNORECASE).strip()
    return text or None


def read_topic(text: str) -> str | None:
    """The one label that a reply names; None if it names none, or several.

    >>> read_topic("**Pathology**."), read_topic("obstetrics & gynecology")
    ('Pathology', 'Obstetrics and Gynecology')
    >>> read_topic("Surgery or Anatomy"), read_topic("It is pathophysiology.")
    (None, None)
    """
    folded = " ".join(re.findall(r"\w+", text.replace("&", " and ").casefold()))
    named = [label for label in TOPICS if re.search(rf"\b{label.casefold()}\b", folded)]
    if len(named) == 1:
        return named[0]
    return OTHER if not named and folded == OTHER.casefold() else None


@dataclass(frozen=True)
class Task:
    """What is asked of each item and where its answer goes."""

    name: str
    prompt: Callable[[ExamItem], str]
    read: Callable[[str], str | None]
    key: str
    max_new_tokens: int


TASKS = {"generate": Task("generate", rationale_prompt, read_rationale, "rationale", 1024),
         "topics": Task("topics", topic_prompt, read_topic, "topic", 64)}


def take(task: Task, entry: Entry, reply: dict) -> str | None:
    """Put a reply into the item's line; returns why it cannot be used, if it cannot."""
    if reply["finish_reason"] == "length":
        return "truncated at --max_new_tokens"
    value = task.read(remove_thoughts(reply["text"]))
    if value is None:
        start = " ".join(reply["text"].split())[:80]
        return f"no {task.key} in the reply: {start!r} (ended with {reply['finish_reason']})"
    entry.row[task.key] = value
    if task.key == "rationale":  # an earlier check was of another text
        entry.row |= {"human_checked": False, "human_check_passed": False}
    return None


# ---- estimate ------------------------------------------------------------------------------------

def estimated_tokens(text: str) -> int:
    """A rough count of a text's tokens, from its letters: 4 of ASCII, 2.5 of other alphabets, one of Chinese
    or Japanese to a token.

    >>> estimated_tokens("The patient has a fever."), estimated_tokens("患者发热")
    (6, 4)
    """
    plain = sum(c < "\u0080" for c in text)
    wide = sum(c >= "\u2e80" for c in text)
    return math.ceil(plain / 4 + (len(text) - plain - wide) / 2.5 + wide)


def estimate(task: Task, entries: Sequence[Entry], prompts: Sequence[str], stored: Sequence[bool],
             count: Callable[[str], int], longest: int,
             prices: tuple[float, float] | None) -> list[list[str]]:
    """A table by language: calls that are still to be made, their tokens, and at these prices what they
    cost."""
    rows = [["language", "items", "answered", "to ask", "tokens in", "tokens out", "at most"]
            + (["USD", "at most"] if prices else [])]
    parts: dict[str, list[int]] = {}
    for entry, prompt, known in zip(entries, prompts, stored):
        part = parts.setdefault(entry.item.language, [0, 0, 0])
        part[0] += 1
        part[1] += known
        part[2] += 0 if known else count(prompt) + MESSAGE_TOKENS
    parts["all"] = [sum(column) for column in zip(*parts.values())] or [0, 0, 0]
    for language, (items, known, tokens) in parts.items():
        asked = items - known
        out, most = asked * min(EXPECTED_TOKENS[task.name], longest), asked * longest
        row = [language, items, known, asked, tokens, out, most]
        costs = [f"{(tokens * prices[0] + produced * prices[1]) / 1e6:,.2f}"
                 for produced in (out, most)] if prices else []
        rows.append([row[0], *(f"{number:,}" for number in row[1:]), *costs])
    return rows


# ---- run -----------------------------------------------------------------------------------------

def wanted(task: Task, entries: Sequence[Entry], replace: bool, limit: int) -> list[Entry]:
    """The items to ask about: those without a rationale or topic, or with `replace` all; the first `limit` of
    each language."""
    chosen, counts = [], {}
    for entry in entries:
        value = entry.row.get(task.key)
        if replace or not (isinstance(value, str) and value.strip()):
            counts[entry.item.language] = counts.get(entry.item.language, 0) + 1
            if not limit or counts[entry.item.language] <= limit:
                chosen.append(entry)
    return chosen


def is_done(out: Path, name: str, facts: dict[str, Any]) -> bool:
    """Is `out` the result of this very command? Another result there is an error that names the
    difference."""
    if not out.exists():
        return False
    before = read_json(out / name) if (out / name).is_file() else {}
    if before.get("facts") == facts:
        print(f"{out} is complete; nothing to do", file=sys.stderr)
        return True
    differs = facts_that_differ(before["facts"], facts) if before.get("facts") else ""
    raise UserError(f"{out}: already there{', made with ' if differs else ''}{differs}; give another --out, "
                    f"and "
                    "--calls to use its calls again")


def run(options: argparse.Namespace) -> int:
    """`generate` and `topics`."""
    task, out = TASKS[options.command], Path(options.out)
    longest = options.max_new_tokens or task.max_new_tokens
    prices = (options.price_in, options.price_out) if options.price_in is not None else None
    server = api_client.server_from(options, need_key=not options.estimate)
    facts = {"data": file_hash(options.data), "server": server.facts(), "prompt_version": PROMPT_VERSION,
             "max_new_tokens": longest, "replace": options.replace, "limit": options.limit}
    if is_done(out, REPORTS[task.name], facts):
        return 0
    entries = read_entries(options.data)
    for language in {entry.item.language for entry in entries}:
        get_language(language)
    asked = wanted(task, entries, options.replace, options.limit)
    prompts = [task.prompt(entry.item) for entry in asked]
    requests = [api_client.request(server, prompt, longest) for prompt in prompts]
    keys = [api_client.request_key(server, body) for body in requests]
    calls = Path(options.calls or f"{out}.calls.jsonl")
    if options.estimate:
        stored = set(api_client.CallStore(calls).replies) if calls.exists() else set()
        print(aligned(estimate(task, asked, prompts, [key in stored for key in keys],
                               token_counter(options.tokenizer), longest, prices)))
        if not prices:
            print("\nno cost: give --price-in and --price-out, in USD for a million tokens")
        return 0
    if not asked:
        raise UserError(f"{options.data}: every item has a {task.key} already; --replace regenerates them")

    store = api_client.CallStore(calls)
    with tqdm(total=len(asked), disable=not sys.stderr.isatty(), unit=f" {task.key}",
              dynamic_ncols=True) as bar:
        replies = api_client.ask(server, requests, store, on_done=lambda _: bar.update(),
                          labels=[f"item {entry.item.key} ({entry.item.language})" for entry in asked])
    reasons = [take(task, entry, reply) for entry, reply in zip(asked, replies)]
    problems = [{"key": entry.item.key, "language": entry.item.language, "reason": reason}
                for entry, reason in zip(asked, reasons) if reason]
    spent = api_client.usage(store.new)
    # What this run asked for depends on where an earlier one was stopped: it is printed, not stored.
    report = {"facts": facts, "items": len(entries), "asked": len(asked), "with": len(asked) - len(problems),
              "problems": problems,
              "usage": api_client.usage(replies)}
    if task.name == "topics":
        report["topics"] = {label: sum(entry.row.get("topic") == label for entry in entries)
                            for label in (*TOPICS, OTHER)}
    write_folder(out, entries, earlier_reports(options.data) | {REPORTS[task.name]: report})
    store.close(keys)
    print(f"{report['with']:,} of {len(asked):,} items have a {task.key} now; {len(problems):,} could not "
          f"be used"
          + (f" (listed in {out / REPORTS[task.name]})" if problems else ""))
    for name, part in (("all calls", report["usage"]), ("this run", spent)):
        print(f"{name}: {part['calls']:,} calls, tokens in {part['prompt_tokens']:,}, out "
              f"{part['completion_tokens']:,}" + cost(part, prices))
    return 0


def cost(part: dict[str, Any], prices: tuple[float, float] | None) -> str:
    """What tokens cost, in words; "" without prices.

    >>> cost({"prompt_tokens": 2_000_000, "completion_tokens": 500_000, "without_counts": 0}, (2.5, 10.0))
    ', 10.00 USD'
    """
    missing = f" ({part['without_counts']:,} replies came without a count)" if part["without_counts"] else ""
    if not prices:
        return missing
    dollars = (part["prompt_tokens"] * prices[0] + part["completion_tokens"] * prices[1]) / 1e6
    return f", {dollars:,.2f} USD{missing}"


def token_counter(tokenizer: str | None) -> Callable[[str], int]:
    if not tokenizer:
        return estimated_tokens

    known = load_tokenizer(tokenizer)
    return lambda text: len(known.encode(text))


# ---- command -------------------------------------------------------------------------------------

def add_run(commands: Any, name: str, what: str) -> None:
    task = TASKS[name]
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}. The network is "
                                                              f"used, except with --estimate.",
                                 allow_abbrev=False)
    parser.add_argument("--data", required=True, metavar="FOLDER",
                        help="exam items: a folder of JSONL files, or one file")
    parser.add_argument("--out", required=True, metavar="FOLDER",
                        help="new folder: the same files, with what was asked for added")
    parser.add_argument("--calls", metavar="FILE.jsonl", help="stored calls, which are not made again "
                                                              "(default OUT.calls.jsonl)")
    parser.add_argument("--replace", action="store_true", help=f"ask for every item, also where there is a "
                                                               f"{task.key}")
    parser.add_argument("--limit", type=int, default=0, metavar="N",
                        help="the first N items of each language that are to be asked about")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=0, metavar="N",
                        help=f"of a reply (default {task.max_new_tokens})")
    parser.add_argument("--estimate", action="store_true", help="only count calls, tokens and cost; sends "
                                                                "nothing and needs no key")
    parser.add_argument("--price_in", "--price-in", type=float, metavar="USD",
                        help="for a million tokens of prompts")
    parser.add_argument("--price_out", "--price-out", type=float, metavar="USD",
                        help="for a million tokens of replies")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="count prompt tokens for the estimate with "
                                                              "this one (default: by letters)")
    add_api_options(parser, required=True)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m data_prep.rationales", description="Rationales and topics by a strong "
                                                                       "model behind an API, and their "
                                     "checking by people. Only `generate` and `topics` use the network.")
    commands = parser.add_subparsers(dest="command", required=True)
    add_run(commands, "generate", "write rationales from question, options and right answer")
    add_run(commands, "topics", f"give each item one of {len(TOPICS)} topics, or {OTHER}")
    sheet = commands.add_parser("sheet", help="a page on which a person checks rationales",
                                allow_abbrev=False,
                                description="One HTML file that needs no network and saves its answers to a "
                                            "file.")
    sheet.add_argument("--data", required=True, metavar="FOLDER", help="exam items with rationales")
    sheet.add_argument("--out", required=True, metavar="FILE.html",
                       help="the page; the same one for every checker")
    sheet.add_argument("--language", action="append", metavar="NAME",
                       help="only this language; may be repeated (default: all)")
    sheet.add_argument("--items", type=int, default=200, metavar="N",
                       help="drawn from each language (default 200, as in the paper; 0: all)")
    sheet.add_argument("--seed", type=int, default=0, help="of the draw")
    sheet.add_argument("--title", default="Check of rationales")
    merge = commands.add_parser("merge", help="put checks into the items",
                                description="human_checked, human_check_passed and how checkers agree.",
                                allow_abbrev=False)
    merge.add_argument("sheets", nargs="+", metavar="FILE.json", help="what checkers saved")
    merge.add_argument("--data", required=True, metavar="FOLDER",
                       help="the exam items that the sheet was made of")
    merge.add_argument("--out", required=True, metavar="FOLDER",
                       help="new folder: the same files with the checks")
    merge.add_argument("--rule", choices=("all", "majority"), default="all",
                       help="who must find all three criteria met: every checker of an item "
                       "(default), or more than half of them")
    merge.add_argument("--partial", action="store_true", help="take unfinished sheets as far as they are")
    options = parser.parse_args(arguments)
    if options.command in TASKS:
        if (options.price_in is None) != (options.price_out is None) or min(options.price_in or 0,
                                                                            options.price_out or 0) < 0:
            raise UsageError("--price-in and --price-out go together, and are 0 or more")
        if options.limit < 0 or options.max_new_tokens < 0:
            raise UsageError("--limit and --max-new-tokens must be 1 or more")
        if options.completions:
            raise UsageError("--completions: an instruction like this one needs a chat model")
    if options.command == "sheet" and options.items < 0:
        raise UsageError("--items must be 0 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.command in TASKS:
        return run(options)

    entries = read_entries(options.data)
    if options.command == "sheet":
        items = [entry.item for entry in entries]
        count, languages = rationale_checks.write_sheet(items, Path(options.out), options.language,
                                                        options.items, options.seed, options.title)
        print(f"{count:,} rationales ({languages}) -> {options.out}; send it to each checker, and merge the "
              f"files that they save")
        return 0
    report = rationale_checks.check(options.sheets, [entry.item for entry in entries], options.rule,
                                    options.partial)
    for entry in entries:
        if entry.item.key in report["passed"]:
            entry.row |= {"human_checked": True, "human_check_passed": report["passed"][entry.item.key]}
    write_folder(Path(options.out), entries, earlier_reports(options.data) | {REPORTS["merge"]: report})
    print(rationale_checks.summary(report))
    return 0


if __name__ == "__main__":
    main_guard(main)
