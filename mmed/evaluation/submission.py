"""The files of an MMedBench submission, checked against the exam before they are sent.

    python -m mmed.evaluation.submission results/NAME --data MMedBench/Test

In: a folder with the four CSV files (`mmed.eval` writes them; anyone's will do) and the test set. Out: what each file holds, or every
fault in it with file and row, and exit code 1. Checked: columns and languages by name, one row for each item in the order of the test
files, the question in the input, the right answer (or reference rationale) as the test set has it, and that the two tables of scores
have a share for each language; the accuracies are counted anew from the outputs, by the parser and by the published scorer.
"""
from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.summary import TEXT_METRICS, language_order
from mmed.metrics import exact_match
from mmed.prompts import ExamItem, read_benchmark
from mmed.utils.errors import EXIT_FAILED, Parser, UserError, main_guard, printable
from mmed.utils.untrusted import as_name

COLUMNS = ["Language", "ModelInput", "ModelOutput", "GT_Answer"]  # MMedLM: files and columns of SubmissionTutorial.md
MAX_BYTES, MAX_CELL = 2 ** 31, 2 ** 24  # of a file; characters of a cell
SHOWN = 20  # faults of a file that are told


def utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # lone surrogates, which no file can carry


def read_csv(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file; what is no CSV in UTF-8 is one line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a submission has it")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many (limit {MAX_BYTES:,})")
    csv.field_size_limit(MAX_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            yield from rows
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: no CSV ({error})") from None


def check_answers(path: Path, items: Sequence[ExamItem], mode: str) -> tuple[list[str], dict[str, list[tuple[bool, bool]]]]:
    """(faults, language -> right by the parser and by the published scorer, an item each) of multi_choice_ or rationale_results.csv."""
    wanted: dict[str, list[ExamItem]] = {}
    for item in items:
        wanted.setdefault(item.language, []).append(item)
    rows, faults = read_csv(path), []
    header = next(rows, [])
    if header != COLUMNS:
        raise UserError(f"{path}: its columns are {as_name(', '.join(header), 120) or 'missing'}; expected {', '.join(COLUMNS)}")
    seen = dict.fromkeys(wanted, 0)
    right: dict[str, list[tuple[bool, bool]]] = {name: [] for name in wanted}
    for number, row in enumerate(rows, 2):
        where = f"{path.name}: row {number}"
        if len(row) != len(COLUMNS):
            faults.append(f"{where}: {len(row)} cells, expected {len(COLUMNS)}")
            continue
        language, asked, text, gold = row
        if language not in wanted:
            faults.append(f"{where}: language {as_name(language)!r}; the test set has {', '.join(wanted)}")
            continue
        place = seen[language]
        seen[language] += 1
        if place >= len(wanted[language]):
            continue  # counted below
        item = wanted[language][place]
        question = utf8(item.question)
        if question not in asked and json.dumps(question, ensure_ascii=False)[1:-1] not in asked:  # as text, or in messages as JSON
            faults.append(f"{where}: its input does not hold question {place + 1} of {language}; rows stand in the order of the test files")
        expected = ",".join(item.answer) if mode == "answer" else utf8(item.rationale)
        if gold != expected:
            faults.append(f"{where}: GT_Answer {as_name(gold, 40)!r} is not the test set's {as_name(expected, 40)!r}")
        parsed = parse_answer(text, item.options, rationale_expected=mode == "rationale", language=language)
        right[language].append((exact_match(parsed.letters, item.answer), official_match(text, item)))
    faults += [f"{path.name}: {seen[name]:,} rows in {name}, expected {len(part):,}" for name, part in wanted.items() if seen[name] != len(part)]
    return faults, right


def check_table(path: Path, languages: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[float]]]:
    """(faults, row -> shares in %) of a table of scores: a column a language, `names` in a first column if there are any."""
    rows = read_csv(path)
    header = next(rows, [])
    expected = (["Metric"] if names else []) + list(languages)
    if header != expected:
        raise UserError(f"{path}: its columns are {as_name(', '.join(header), 120) or 'missing'}; expected {', '.join(expected)}")
    faults, found = [], {}
    for number, row in enumerate(rows, 2):
        name, cells = (row[0], row[1:]) if names and row else ("", row)
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            values = []
        if len(values) != len(languages) or not all(0 <= value <= 100 for value in values):
            faults.append(f"{path.name}: row {number}: expected a number from 0 to 100 for each of {', '.join(languages)}")
        elif name in found or (names and name not in names):
            faults.append(f"{path.name}: row {number}: {as_name(name)!r} stands there twice or is none of {', '.join(names)}")
        else:
            found[name] = values
    missing = [name for name in names or ("",) if name not in found]
    if missing and not faults:
        faults.append(f"{path.name}: no row {', '.join(missing)}".rstrip())
    return faults, found


def check(folder: Path, items: Sequence[ExamItem]) -> tuple[list[str], list[str]]:
    """(faults, what the files hold)."""
    languages = language_order(item.language for item in items)
    items = [item for name in languages for item in items if item.language == name]
    checked = [item for item in items if item.human_check_passed is True] or items
    faults, told = [], []
    for name, mode, part in (("multi_choice_results.csv", "answer", items), ("rationale_results.csv", "rationale", checked)):
        found, right = check_answers(folder / name, part, mode)
        faults += found[:SHOWN] + ([f"{name}: {len(found) - SHOWN:,} more faults"] if len(found) > SHOWN else [])
        told.append(f"{name}: {len(part):,} rows; right by the parser, by the published scorer: "
                    + ", ".join(f"{language} {_percent(pairs, 0)}, {_percent(pairs, 1)}" for language, pairs in right.items()))
        if mode == "answer":
            counted = [[_percent(right[language], which) for language in languages] for which in (0, 1)]
    found, shares = check_table(folder / "accuracy_metric.csv", languages, ())
    faults += found
    if shares and [f"{value:.2f}" for value in shares[""]] not in counted:
        faults.append(f"accuracy_metric.csv: {', '.join(f'{value:.2f}' for value in shares[''])}, but the outputs give {', '.join(counted[0])} "
                      f"(by the published scorer {', '.join(counted[1])})")
    faults += check_table(folder / "rationale_similarity_metric.csv", languages, TEXT_METRICS)[0]
    return faults, told


def _percent(pairs: Sequence[tuple[bool, bool]], which: int) -> str:
    return f"{100 * sum(pair[which] for pair in pairs) / max(1, len(pairs)):.2f}"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.submission",
                                     description="Check the four files of an MMedBench submission against the test set.")
    parser.add_argument("folder", metavar="FOLDER", help="with multi_choice_results.csv, rationale_results.csv, accuracy_metric.csv and "
                        "rationale_similarity_metric.csv")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the test set: a folder of JSONL files")
    options = parser.parse_args(arguments)
    faults, told = check(Path(options.folder), read_benchmark(options.data))
    print("\n".join(told))
    if faults:
        for fault in faults:
            print(f"error: {options.folder}: {printable(fault)}", file=sys.stderr)
        return EXIT_FAILED
    print(f"{options.folder}: fits {options.data}")
    return 0


if __name__ == "__main__":
    main_guard(main)
