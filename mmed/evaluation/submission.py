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
import sys
from collections.abc import Sequence
from pathlib import Path

from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.results import SUBMISSION_COLUMNS
from mmed.evaluation.summary import TEXT_METRICS, language_order
from mmed.metrics import exact_match
from mmed.prompts import ExamItem, read_benchmark
from mmed.utils.errors import EXIT_FAILED, Parser, UserError, main_guard, printable

MAX_CELL = 2 ** 24  # characters
SHOWN = 20  # faults printed per file


def utf8(text: str) -> str:
    """Text as a file can hold it: lone surrogates become "?"."""
    return text.encode("utf-8", "replace").decode()


def read_csv(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows below the header, which must name these columns."""
    csv.field_size_limit(MAX_CELL)
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
    return rows


def check_answers(path: Path, items: Sequence[ExamItem], mode: str) -> tuple[list[str], dict[str, list[str]]]:
    """(faults, language -> accuracies in %, one for each of `_hits`) of a file of model outputs.

    `path` is multi_choice_results.csv or rationale_results.csv, `items` what it must contain, in order.
    """
    wanted: dict[str, list[ExamItem]] = {}
    for item in items:
        wanted.setdefault(item.language, []).append(item)
    rows: dict[str, list[tuple[str, list[str]]]] = {language: [] for language in wanted}
    faults = []
    for number, row in enumerate(read_csv(path, SUBMISSION_COLUMNS), 2):
        where = f"{path.name}: row {number}"
        if len(row) != len(SUBMISSION_COLUMNS):
            faults.append(f"{where}: {len(row)} cells, expected {len(SUBMISSION_COLUMNS)}")
        elif row[0] not in wanted:
            faults.append(f"{where}: language {row[0]!r:.40}; the test set has {', '.join(wanted)}")
        else:
            rows[row[0]].append((where, row))
    shares = {}
    for language, part in wanted.items():
        if len(rows[language]) != len(part):
            faults.append(f"{path.name}: {len(rows[language]):,} rows in {language}, expected {len(part):,}")
        hits = []
        for item, (where, row) in zip(part, rows[language]):
            faults += _check_row(where, row, item, mode)
            hits.append(_hits(row[2], item, mode))
        shares[language] = [f"{100 * sum(column) / len(part):.2f}" for column in zip(*hits)]
    return faults, shares


def _check_row(where: str, row: list[str], item: ExamItem, mode: str) -> list[str]:
    faults = []
    question = utf8(item.question)
    as_json = json.dumps(question, ensure_ascii=False)[1:-1]  # chat messages are written as JSON
    if question not in row[1] and as_json not in row[1]:
        faults.append(f"{where}: its input does not contain the question of {item.key}; rows must be in the "
                      "order of the test files")
    expected = ",".join(item.answer) if mode == "answer" else utf8(item.rationale)
    if row[3] != expected:
        faults.append(f"{where}: GT_Answer {row[3]!r:.40} is not the test set's {expected!r:.40}")
    return faults


def _hits(text: str, item: ExamItem, mode: str) -> tuple[bool, bool, bool]:
    """Whether an output is right: by our parser, the same without equal options, by the published scorer."""
    rationale_expected = mode == "rationale"
    parsed = parse_answer(text, item.options, rationale_expected=rationale_expected, language=item.language)
    return (exact_match(parsed.letters, item.answer, item.options), exact_match(parsed.letters, item.answer),
            official_match(text, item))


def check_scores(path: Path, languages: Sequence[str]) -> list[str]:
    """The faults of rationale_similarity_metric.csv."""
    faults, found = [], []
    for number, (name, *cells) in enumerate(read_csv(path, ["Metric", *languages]), 2):
        found.append(name)
        if len(cells) != len(languages) or not all(_is_percentage(cell) for cell in cells):
            faults.append(f"{path.name}: row {number}: expected a number from 0 to 100 for each language")
    if found != list(TEXT_METRICS):
        rows = ", ".join(found)
        faults.append(f"{path.name}: its rows are {rows:.120}; expected {', '.join(TEXT_METRICS)}")
    return faults


def _is_percentage(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 100
    except ValueError:
        return False


def check(folder: Path, items: Sequence[ExamItem]) -> tuple[list[str], list[str]]:
    """(faults, what the files contain)."""
    languages = language_order(item.language for item in items)
    ordered = [item for name in languages for item in items if item.language == name]
    with_check = {item.language for item in items if item.human_check_passed}
    checked = [item for item in ordered if item.human_check_passed or item.language not in with_check]
    faults, notes, counted = [], [], {}
    for name, mode, part in (("multi_choice_results.csv", "answer", ordered),
                             ("rationale_results.csv", "rationale", checked)):
        found, counted[mode] = check_answers(folder / name, part, mode)
        more = [f"{name}: {len(found) - SHOWN:,} more faults"] if len(found) > SHOWN else []
        faults += found[:SHOWN] + more
        shares = [f"{name} {values[0]} ({values[2]})" for name, values in counted[mode].items() if values]
        notes.append(f"{name}: {len(part):,} rows; accuracy by the parser (by the published scorer): "
                     f"{', '.join(shares)}")
    path = folder / "accuracy_metric.csv"
    rows = read_csv(path, languages)
    expected = [list(column) for column in zip(*counted["answer"].values())]
    if len(rows) != 1 or rows[0] not in expected:
        faults.append(f"{path.name}: expected one row, {' or '.join(', '.join(row) for row in expected)}: "
                      "that is what the outputs give by the parser or the published scorer")
    return faults + check_scores(folder / "rationale_similarity_metric.csv", languages), notes


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
