"""Exams beside MMedBench: the paper's English benchmarks, Chinese exams in Apollo's form, and any CSV or JSONL through a mapping.

In and out as in `data_prep/benchmark/mmedbench_sources.py`, whose helpers these readers share. In order: MedMCQA (Pal et al. 2022), PubMedQA (Jin et
al. 2019), MMLU (Hendrycks et al. 2021), Apollo (Wang et al. 2024), custom files.
"""
from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.benchmark.mmedbench_sources import (
    LETTERS,
    Raw,
    files_under,
    json_items,
    lettered,
    letters_in,
    need,
    note_part,
    option_texts,
    read_lettered,
    split_of,
    text_or_empty,
)
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, read_json, read_jsonl


def read_medmcqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """MedMCQA: JSONL with opa..opd and cop (a number), exp, subject_name; or handed on in MedQA's form."""
    form = "MedMCQA"
    for file in files_under(path, (".json", ".jsonl")):
        records = list(read_jsonl(file))
        if records and "options" in records[0][1]:
            yield from read_lettered([file], notes, source="medmcqa", language="English", form=form)
            continue
        numbers = {r.get("cop") for _, r in records if isinstance(r.get("cop"), int) and r["cop"] >= 0}
        # The authors count options from 1, the copy on model hubs from 0: guessing wrong would shift every answer by one.
        if numbers and (0 in numbers) == (4 in numbers):
            raise UserError(f"{file}: cop takes the values {sorted(numbers)}, so it cannot be told whether options are counted from 0 "
                            "or from 1; use --source custom with --map ...,kind=0 or kind=1")
        base = 0 if 0 in numbers else 1
        note_part(file, notes)
        for number, record in records:
            where = f"{file}:{number}"
            options = lettered([str(need(record, f"op{letter}", where, (str, int, float), form)) for letter in "abcd"])
            cop = record.get("cop")
            answer = [] if cop is None or cop == -1 else [lettered_at(cop, base)]
            extra = {key: record[name] for key, name in (("subject", "subject_name"), ("topic", "topic_name")) if record.get(name)}
            yield Raw("medmcqa", "English", split_of(file.name), file.name, where, need(record, "question", where, str, form), options,
                      answer, id=f"medmcqa-{record['id']}" if record.get("id") else "", rationale=text_or_empty(record.get("exp")),
                      extra=extra)


def lettered_at(number: Any, base: int) -> str:
    """The letter of an option named by number; what is no number or out of range stays as it is.

    >>> lettered_at(1, 1), lettered_at("0", 0), lettered_at("x", 0), lettered_at(-1, 0)
    ('A', 'A', 'x', '-1')
    """
    text = str(number).strip()
    position = int(text) - base if re.fullmatch(r"\d{1,3}", text) else -1
    return LETTERS[position] if 0 <= position < len(LETTERS) else text


def read_pubmedqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """PubMedQA's labelled part: a JSON object by PMID; the test half is named by test_ground_truth.json where that is beside it."""
    form = "PubMedQA"
    files = files_under(path, ("ori_pqal.json",)) if path.is_dir() else [path]
    for file in files:
        value, truth = read_json(file), file.with_name("test_ground_truth.json")
        if not isinstance(value, dict):
            raise UserError(f"{file}: expected a JSON object keyed by PMID (ori_pqal.json), got {type(value).__name__}")
        tests = set(read_json(truth)) if truth.exists() else None
        if tests is None:
            notes.append("test_ground_truth.json, which names the 500 test items, is not beside the file: no split is known")
        for pmid, item in value.items():
            where = f"{file}: {pmid}"
            question, said = need(item, "QUESTION", where, str, form), text_or_empty(item.get("final_decision"))
            context = "\n".join(map(str, need(item, "CONTEXTS", where, list, form)))
            answer = {"yes": ["A"], "no": ["B"], "maybe": ["C"]}.get(said, [said] if said else [])
            # MMedLM: the paper reports PubMedQA among its English benchmarks.
            # DIFFERS: its wording is not published; the abstract without its conclusion comes first, then the question, as the
            # authors of PubMedQA set the task.
            yield Raw("pubmedqa", "English", None if tests is None else "Test" if pmid in tests else "Train", file.name, where,
                      f"{context}\n{question.strip()}" if question.strip() else "", {"A": "yes", "B": "no", "C": "maybe"}, answer,
                      id=f"pubmedqa-{pmid}", rationale=text_or_empty(item.get("LONG_ANSWER")), extra={"year": item.get("YEAR")})


MMLU_MEDICAL = ("clinical_knowledge", "medical_genetics", "anatomy", "professional_medicine", "college_biology", "college_medicine")


def read_mmlu(path: Path, notes: list[str]) -> Iterator[Raw]:
    """MMLU's six medical subjects: CSV without header, SUBJECT_SPLIT.csv (question, A, B, C, D, answer), or JSONL with `subject`."""
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
        rows = csv_rows(file)
        if subject not in MMLU_MEDICAL:
            others[subject or file.stem] += len(rows)
            continue
        for line, row in rows:
            where = f"{file}:{line}"
            if len(row) != 6:
                raise UserError(f"{where}: {len(row)} columns; MMLU has 6 (question, four options, answer)")
            yield Raw("mmlu", "English", split_of(split), file.name, where, row[0], lettered(row[1:5]), letters_in(row[5]),
                      extra={"subject": subject})
    if others:
        notes.append(f"passed over, not a medical subject of the paper: {sum(others.values())} items ({', '.join(sorted(others))})")


APOLLO_LANGUAGES = {"cmb-single": "Chinese", "cmexam": "Chinese", "cmmlu-medical": "Chinese", "medqa-mcmle": "Chinese",
                    "medqa-usmle": "English", "medmcqa": "English", "mmlu-medical": "English", "headqa": "Spanish",
                    "frenchmedmcqa": "French"}


def read_apollo(path: Path, notes: list[str], *, language: str | None) -> Iterator[Raw]:
    """Apollo's form of CMB, CMExam, CMMLU, MedQA ...: `option` one string "(A) ...\\n(B) ...", the answer under "anwer" (so spelt)."""
    for file in files_under(path, (".jsonl",)):
        note_part(file, notes)
        for number, record in read_jsonl(file):
            where = f"{file}:{number}"
            name = need(record, "source", where, str, "Apollo")
            spoken = language or APOLLO_LANGUAGES.get(name)
            if spoken is None:
                raise UserError(f"{where}: the language of the source {name!r} is not known; give it with --language")
            yield Raw(f"apollo-{name}", spoken, split_of(file.name), file.name, where, need(record, "question", where, str, "Apollo"),
                      option_texts(need(record, "option", where, str, "Apollo"), where, "Apollo"),
                      letters_in(record.get("anwer", record.get("answer"))))


def csv_rows(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> list[tuple[int, list[str]]]:
    """(line number, cells) of a CSV file in the first encoding that fits; quoted cells may hold line breaks."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are too many for a CSV file of questions (limit {MAX_JSON_BYTES:,})")
    data = path.read_bytes()
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise UserError(f"{path}: not in {' or '.join(encodings)}; convert the file to UTF-8")
    csv.field_size_limit(10_000_000)  # the module's own 131,072 is less than a long case with its tables
    reader, rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not valid CSV ({error})") from None
    return rows


def read_custom(path: Path, notes: list[str], *, source: str | None, language: str, mapping: dict[str, str],
                encodings: tuple[str, ...] = ("utf-8-sig",)) -> Iterator[Raw]:
    """Any CSV (with a header), JSONL or JSON array, by a mapping such as question=stem,options=a+b+c+d,answer=key,kind=letter.

    `options` is one key (texts by letter, a list, or one "(A) ..." string) or columns joined by "+". `kind` says what the answer is:
    letter (default), text (the option's own words), 0 or 1 (a number counted from there). Also: id, rationale, context (put before
    the question), subject, year.
    """
    for file in files_under(path, (".csv", ".jsonl", ".json")):
        name = source or re.sub(r"[^\w-]+", "-", file.name.split(".")[0]).lower()
        for where, record in custom_records(file, encodings):
            for role in ("question", "answer", "id", "rationale", "context", "subject", "year"):
                if role in mapping and mapping[role] not in record:
                    raise UserError(f"{where}: no key {mapping[role]!r} (--map {role}={mapping[role]}); it has {', '.join(record)}")
            keys = mapping["options"].split("+")
            missing = [key for key in keys if key not in record]
            if missing:
                raise UserError(f"{where}: no key {missing[0]!r} (--map options=...); it has {', '.join(record)}")
            if len(keys) == 1:
                options = option_texts(record[keys[0]], where, "--map options")
            else:
                texts = ["" if record[key] is None else str(record[key]) for key in keys]
                while texts and not texts[-1].strip():  # questions with fewer options leave the last columns empty
                    texts.pop()
                options = lettered(texts)
            value, kind = record[mapping["answer"]], mapping.get("kind", "letter")
            values = [v for v in (value if isinstance(value, list) else [value]) if v is not None and str(v).strip()]
            if kind == "letter":
                answer = letters_in(value)
            elif kind == "text":
                by_text = {text.strip(): letter for letter, text in options.items()}
                answer = [by_text.get(str(v).strip(), str(v)) for v in values]
            else:
                answer = [lettered_at(part, int(kind)) for v in values for part in str(v).split(",")]
            get = {role: str(record[mapping[role]]) for role in ("id", "rationale", "context", "subject", "year")
                   if role in mapping and record[mapping[role]] is not None}
            question = "" if record[mapping["question"]] is None else str(record[mapping["question"]])
            if get.get("context", "").strip() and question.strip():
                question = f"{get['context'].strip()}\n{question}"
            yield Raw(name, language, split_of(file.name), file.name, where, question, options, answer,
                      id=f"{name}-{get['id']}" if get.get("id") else "", rationale=get.get("rationale", "").strip(),
                      extra={key: get[key] for key in ("subject", "year") if key in get})


def custom_records(file: Path, encodings: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    if file.suffix == ".jsonl":
        yield from ((f"{file}:{number}", record) for number, record in read_jsonl(file))
    elif file.suffix == ".json":
        for where, record in json_items(file, "--map"):
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected an object, got {type(record).__name__}")
            yield where, record
    else:
        rows = csv_rows(file, encodings)
        header = rows[0][1] if rows else []
        for line, row in rows[1:]:
            if len(row) != len(header):
                raise UserError(f"{file}:{line}: {len(row)} columns, the header has {len(header)}")
            yield f"{file}:{line}", dict(zip(header, row))
