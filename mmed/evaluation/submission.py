"""Check the files of an MMedBench submission against the exam before they are sent.

    python -m mmed.evaluation.submission results/NAME --data MMedBench/Test

Input:  a folder with the four CSV files (`mmed.eval --words official` writes them), and the test set.
Output: what each file contains, or every fault with file and row, and exit code 1.

The check covers columns and languages, one row per item in the order of the test files, the question in the
input, the right answer (or reference rationale), and the accuracies, which are counted again from the
outputs.
"""
from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.results import SUBMISSION_COLUMNS
from mmed.evaluation.summary import TEXT_METRICS, language_order, utf8
from mmed.metrics import exact_match, mean
from mmed.prompts import ExamItem, read_benchmark
from mmed.utils.errors import EXIT_FAILED, Parser, UserError, main_guard, printable

SHOWN = 20  # faults printed per file
PERCENTAGE = re.compile(r"\d\d?(\.\d*)?|100(\.0*)?")


def read_csv(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows below the header, which must name these columns."""
    csv.field_size_limit(2 ** 24)
    if not path.is_file():
        raise UserError(f"{path}: no such file; `mmed.eval --words official --mode both` writes all four")
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if header != list(columns):
        found = ", ".join(header)
        raise UserError(f"{path}: its columns are {found:.120}; expected {', '.join(columns)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise UserError(f"{path}: row {number}: {len(row)} cells, expected {len(columns)}")
    return rows


def check_answers(path: Path, items: Sequence[ExamItem], mode: str) -> tuple[list[str], dict[str, list]]:
    """(faults, language -> (right by the parser, without equal options, by the published scorer) a row).

    `path` is multi_choice_results.csv or rationale_results.csv, `items` what it must contain, in order.
    """
    rows = read_csv(path, SUBMISSION_COLUMNS)
    faults = [f"{len(rows):,} rows, expected {len(items):,}"] if len(rows) != len(items) else []
    hits: dict[str, list[tuple[bool, bool, bool]]] = {}
    for number, (row, item) in enumerate(zip(rows, items), 2):
        question, gold = utf8(item.question), ",".join(item.answer) if mode == "answer" else item.rationale
        wrong = []
        if row[0] != item.language:
            wrong.append(f"language {row[0]!r:.40}, expected {item.language}")
        if question not in row[1] and json.dumps(question, ensure_ascii=False)[1:-1] not in row[1]:
            wrong.append(f"its input does not contain the question of {item.key}; rows must be in the order "
                         "of the test files")
        if row[3] != utf8(gold):
            wrong.append(f"GT_Answer {row[3]!r:.40} is not the test set's {gold!r:.40}")
        faults += [f"row {number}: {fault}" for fault in wrong]
        letters = parse_answer(row[2], item.options, rationale_expected=mode == "rationale",
                               language=item.language).letters
        hits.setdefault(item.language, []).append((
            exact_match(letters, item.answer, item.options), exact_match(letters, item.answer),
            official_match(row[2], item)))
    return [f"{path.name}: {fault}" for fault in faults], hits


def check(folder: Path, items: Sequence[ExamItem]) -> tuple[list[str], list[str]]:
    """(faults, what the files contain)."""
    with_check = {item.language for item in items if item.human_check_passed}
    checked = [item for item in items if item.human_check_passed or item.language not in with_check]
    languages = language_order(item.language for item in items)
    faults, notes = [], []
    for name, mode, part in (("rationale_results.csv", "rationale", checked),
                             ("multi_choice_results.csv", "answer", items)):
        found, hits = check_answers(folder / name, part, mode)
        faults += found[:SHOWN]
        if len(found) > SHOWN:
            faults.append(f"{name}: {len(found) - SHOWN:,} more faults")
        shares = {language: [f"{100 * mean(column):.2f}" for column in zip(*hits[language])]
                  for language in languages if hits.get(language)}
        each = ", ".join(f"{language} {values[0]} ({values[2]})" for language, values in shares.items())
        notes.append(f"{name}: {len(part):,} rows; accuracy by the parser (by the published scorer): {each}")
    path = folder / "accuracy_metric.csv"
    rows, expected = read_csv(path, languages), list(map(list, zip(*shares.values())))
    if len(rows) != 1 or rows[0] not in expected:
        faults.append(f"{path.name}: expected one row, {' or '.join(', '.join(row) for row in expected)}: "
                      "that is what the outputs give by the parser or the published scorer")
    path = folder / "rationale_similarity_metric.csv"
    rows = read_csv(path, ["Metric", *languages])
    faults += [f"{path.name}: row {number}: expected a number from 0 to 100 for each language"
               for number, row in enumerate(rows, 2) if not all(map(PERCENTAGE.fullmatch, row[1:]))]
    if [row[0] for row in rows] != list(TEXT_METRICS):
        faults.append(f"{path.name}: expected one row for each of {', '.join(TEXT_METRICS)}, in this order")
    return faults, notes


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.submission",
                    description="Check the four files of an MMedBench submission against the test set.")
    parser.add_argument("folder", metavar="FOLDER", help="result folder with the four CSV files")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="test set: a folder of JSONL files")
    options = parser.parse_args(arguments)
    faults, notes = check(Path(options.folder), read_benchmark(options.data))
    print("\n".join(notes))
    for fault in faults:
        print(f"error: {options.folder}: {printable(fault)}", file=sys.stderr)
    if not faults:
        print(f"{options.folder}: fits {options.data}")
    return EXIT_FAILED if faults else 0


if __name__ == "__main__":
    main_guard(main)
