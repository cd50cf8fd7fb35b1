"""Exams beside MMedBench's sources: the paper's English benchmarks, Chinese exams in Apollo's form, the
released MMedBench, and any CSV, JSON or parquet file through a mapping.

In and out as in data_prep/benchmark/mmedbench_sources.py: MedMCQA (Pal et al. 2022), PubMedQA (Jin et al.
2019), MMLU (Hendrycks et al. 2021), Apollo (Wang et al. 2024), MMedBench (Qiu et al. 2024), custom files.
"""
from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.benchmark.mmedbench_sources import (
    LETTERS,
    Raw,
    csv_rows,
    files_under,
    lettered,
    letters_in,
    need,
    option_texts,
    read_lettered,
    records,
    split_of,
    text_or_empty,
)
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, read_json, read_jsonl

MMLU_MEDICAL = ("clinical_knowledge", "medical_genetics", "anatomy", "professional_medicine",
                "college_biology",
                "college_medicine")
APOLLO_LANGUAGES = {"cmb-single": "Chinese", "cmexam": "Chinese", "cmmlu-medical": "Chinese",
                    "medqa-mcmle": "Chinese",
                    "medqa-usmle": "English", "medmcqa": "English", "mmlu-medical": "English",
                    "headqa": "Spanish",
                    "frenchmedmcqa": "French"}
RELEASE_FILE = re.compile(r"(?:[^/]+/)?(Train|Val|Test)/([A-Z][a-z]+)\.jsonl")
ROLES = ("id", "rationale", "context", "subject", "year")


def lettered_at(number: Any, base: int) -> str:
    """The letter of an option given by number; anything else stays as it is.

    >>> lettered_at(1, 1), lettered_at("0", 0), lettered_at("x", 0), lettered_at(-1, 0)
    ('A', 'A', 'x', '-1')
    """
    text = str(number).strip()
    position = int(text) - base if re.fullmatch(r"\d{1,3}", text) else -1
    return LETTERS[position] if 0 <= position < len(LETTERS) else text


def read_medmcqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """MedMCQA: records with opa..opd and cop (a number), exp, subject_name; or passed on in MedQA's form."""
    form = "MedMCQA"
    for file in files_under(path, (".json", ".jsonl", ".parquet")):
        found = list(records(file))
        if found and "options" in found[0][1]:
            yield from read_lettered([file], notes, source="medmcqa", language="English", form=form)
            continue
        # The authors count options from 1, the copy on model hubs from 0: a wrong guess would shift every
        # answer.
        numbers = {r.get("cop") for _, r in found if isinstance(r.get("cop"), int) and r["cop"] >= 0}
        if numbers and (0 in numbers) == (4 in numbers):
            raise UserError(f"{file}: cop has the values {sorted(numbers)}, which does not tell whether "
                            f"options are "
                            "counted from 0 or from 1; use --source custom with --map ...,kind=0 or kind=1")
        base = 0 if 0 in numbers else 1
        for where, record in found:
            options = lettered([need(record, f"op{letter}", where, (str, int, float), form)
                                for letter in "abcd"])
            answer = [] if record.get("cop") in (None, -1) else [lettered_at(record["cop"], base)]
            extra = {"subject": record.get("subject_name") or None, "topic": record.get("topic_name") or None}
            yield Raw("medmcqa", "English", split_of(file.name), where,
                      need(record, "question", where, str, form), options,
                      answer, id=f"medmcqa-{record['id']}" if record.get("id") else "",
                      rationale=text_or_empty(record.get("exp")), extra=extra)


def read_pubmedqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """PubMedQA's labelled part: a JSON object by PMID; test_ground_truth.json beside it names the test
    half."""
    form = "PubMedQA"
    for file in files_under(path, ("ori_pqal.json",)):
        value, truth = read_json(file), file.with_name("test_ground_truth.json")
        if not isinstance(value, dict):
            raise UserError(f"{file}: expected a JSON object keyed by PMID (ori_pqal.json), got "
                            f"{type(value).__name__}")
        tests = set(read_json(truth)) if truth.exists() else None
        if tests is None:
            notes.append("test_ground_truth.json, which names the 500 test items, is not beside the file: "
                         "no split is known")
        for pmid, item in value.items():
            where = f"{file}: {pmid}"
            question = need(item, "QUESTION", where, str, form).strip()
            said = text_or_empty(item.get("final_decision"))
            context = "\n".join(map(str, need(item, "CONTEXTS", where, list, form)))
            answer = {"yes": ["A"], "no": ["B"], "maybe": ["C"]}.get(said, [said] if said else [])
            split = None if tests is None else "Test" if pmid in tests else "Train"
            # MMedLM: the paper reports PubMedQA among its English benchmarks.
            # DIFFERS: its wording is not published; the abstract without its conclusion comes first, then the
            # question, as the authors of PubMedQA set the task.
            yield Raw("pubmedqa", "English", split, where, f"{context}\n{question}" if question else "",
                      {"A": "yes", "B": "no", "C": "maybe"}, answer, id=f"pubmedqa-{pmid}",
                      rationale=text_or_empty(item.get("LONG_ANSWER")), extra={"year": item.get("YEAR")})


def read_mmlu(path: Path, notes: list[str]) -> Iterator[Raw]:
    """MMLU's six medical subjects: SUBJECT_SPLIT.csv without header (question, A, B, C, D, answer), or
    JSONL."""
    others: Counter[str] = Counter()
    for file in files_under(path, (".csv", ".jsonl")):
        if file.suffix == ".jsonl":
            for raw in read_lettered([file], notes, source="mmlu", language="English", form="MMLU"):
                if raw.extra.get("subject") in MMLU_MEDICAL:
                    yield raw
                else:
                    others[str(raw.extra.get("subject"))] += 1
            continue
        subject, _, split = file.stem.rpartition("_")
        for line, row in csv_rows(file):
            if subject not in MMLU_MEDICAL:
                others[subject or file.stem] += 1
            elif len(row) != 6:
                raise UserError(f"{file}:{line}: {len(row)} columns; MMLU has 6 (question, four options, "
                                f"answer)")
            else:
                yield Raw("mmlu", "English", split_of(split), f"{file}:{line}", row[0], lettered(row[1:5]),
                          letters_in(row[5]), extra={"subject": subject})
    if others:
        notes.append(f"skipped, not a medical subject of the paper: {others.total()} items "
                     f"({', '.join(sorted(others))})")


def read_apollo(path: Path, notes: list[str], *, language: str | None) -> Iterator[Raw]:
    """Apollo's form of CMB, CMExam, MedQA ...: `option` is "(A) ...\\n(B) ...", the answer is under "anwer"
    (sic)."""
    for file in files_under(path, (".jsonl",)):
        for where, record in records(file):
            name = need(record, "source", where, str, "Apollo")
            spoken = language or APOLLO_LANGUAGES.get(name)
            if spoken is None:
                raise UserError(f"{where}: the language of the source {name!r} is not known; give it with "
                                f"--language")
            yield Raw(f"apollo-{name}", spoken, split_of(file.name), where,
                      need(record, "question", where, str, "Apollo"),
                      option_texts(need(record, "option", where, str, "Apollo")),
                      letters_in(record.get("anwer", record.get("answer"))))


# ---- the released MMedBench ----------------------------------------------------------------------


def read_mmedbench(path: Path, notes: list[str]) -> Iterator[Raw]:
    """MMedBench.zip, or its folder: Train/LANGUAGE.jsonl, Test/LANGUAGE.jsonl; all keys are kept.

    Nothing is unpacked on disk: the JSONL files are read from within the archive, each up to MAX_JSON_BYTES.
    """
    if path.is_dir():
        names = {p.relative_to(path).as_posix(): p for p in path.rglob("*.jsonl")}
        for name in _release_names(path, names):
            yield from _release_items(name, ((f"{names[name]}:{n}", record)
                                             for n, record in read_jsonl(names[name])))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _release_names(path, archive.namelist()):
                if archive.getinfo(name).file_size > MAX_JSON_BYTES:
                    raise UserError(f"{path}: {name} is larger than {MAX_JSON_BYTES:,} bytes")
                with archive.open(name) as file:
                    yield from _release_items(name, _lines(file, f"{path}!{name}"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable zip archive ({error}); MMedBench comes as .zip or as a "
                        f"folder with Train/ "
                        "and Test/") from None


def _release_names(path: Path, names: Any) -> list[str]:
    chosen = sorted(name for name in names if RELEASE_FILE.fullmatch(name))
    if not chosen:
        raise UserError(f"{path}: no Train/English.jsonl, Test/English.jsonl ... among its files; is this "
                        f"MMedBench?")
    if len({RELEASE_FILE.fullmatch(name).groups() for name in chosen}) != len(chosen):
        raise UserError(f"{path}: has two benchmarks ({chosen[0]}, {chosen[-1]}); give the folder of one")
    return chosen


def _lines(file: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), 1):
        if line.strip():
            try:
                yield f"{where}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}:{number}: not valid JSON ({error})") from None


def _release_items(name: str, found: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Raw]:
    split, language = RELEASE_FILE.fullmatch(name).groups()
    ours = ("question", "options", "answer_idx", "rationale", "id", "source")
    for where, record in found:
        question = need(record, "question", where, str, "MMedBench")
        options = option_texts(need(record, "options", where, (dict, list), "MMedBench"))
        # MMedLM: `answer_idx` is a string or a list in the release; the official code takes either.
        answer = letters_in(need(record, "answer_idx", where, (str, list, type(None)), "MMedBench"))
        rationale = record["rationale"] if isinstance(record.get("rationale"), str) else ""
        yield Raw(str(record.get("source") or f"mmedbench-{language.lower()}"), language, split, where,
                  question, options,
                  answer, id=str(record.get("id") or ""), rationale=rationale,
                  extra={key: value for key, value in record.items() if key not in ours})


# ---- any file, through a mapping -----------------------------------------------------------------


def read_custom(path: Path, notes: list[str], *, source: str | None, language: str, mapping: dict[str, str],
                encodings: tuple[str, ...] = ("utf-8-sig",)) -> Iterator[Raw]:
    """CSV with a header, JSONL, JSON array or parquet, by a mapping such as
    question=stem,options=a+b+c+d,answer=key.

    `options` is one key (any form of `option_texts`) or columns joined by "+". `kind` says what the answer
    is: letter (default), text (the option's own words), 0 or 1 (a number counted from there). Also: id,
    rationale, context (put before the question), subject, year.
    """
    for file in files_under(path, (".csv", ".jsonl", ".json", ".parquet")):
        name = source or re.sub(r"[^\w-]+", "-", file.name.split(".")[0]).lower()
        for where, record in records(file, encodings):
            columns = mapping["options"].split("+")
            wanted = [mapping[role] for role in ("question", "answer", *ROLES) if role in mapping]
            if missing := [column for column in [*wanted, *columns] if column not in record]:
                raise UserError(f"{where}: no key {missing[0]!r}, which --map names; it has "
                                f"{', '.join(record)}")
            options = option_texts(record[columns[0]]) if len(columns) == 1 else lettered([record[c]
                                                                                           for c in columns])
            given = {role: str(record[mapping[role]]).strip() for role in ROLES
                     if role in mapping and record[mapping[role]] is not None}
            question = "" if record[mapping["question"]] is None else str(record[mapping["question"]])
            if given.get("context") and question.strip():
                question = f"{given['context']}\n{question}"
            yield Raw(name, language, split_of(file.name), where, question, options,
                      _custom_answer(record[mapping["answer"]], mapping.get("kind", "letter"), options),
                      id=f"{name}-{given['id']}" if given.get("id") else "",
                      rationale=given.get("rationale", ""),
                      extra={key: given[key] for key in ("subject", "year") if key in given})


def _custom_answer(value: Any, kind: str, options: dict[str, str]) -> list[str]:
    if kind == "letter":
        return letters_in(value)
    values = [str(v).strip() for v in (value if isinstance(value, list) else [value]) if v is not None
              and str(v).strip()]
    if kind == "text":
        letter_of = {text.strip(): letter for letter, text in reversed(options.items())}
        return [letter_of.get(text, text) for text in values]
    return [lettered_at(part, int(kind)) for text in values for part in text.split(",")]
