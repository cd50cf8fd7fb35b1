"""The exams that --source knows by name: a table of presets, plus functions where a mapping is not enough.

A preset's mapping uses the keys of the exam's own card, loading script or evaluation code; its `rows` makes
flat records where a file has none. Papers: MedQA (Jin et al. 2021), IgakuQA (Kasai et al. 2023),
FrenchMedMCQA (Labrak et al. 2022), RuMedBench (Blinov et al. 2022), HEAD-QA (Vilares and Gómez-Rodríguez
2019), MedMCQA (Pal et al. 2022), PubMedQA (Jin et al. 2019), MMLU (Hendrycks et al. 2021), Apollo (Wang et
al. 2024).
"""
from __future__ import annotations

import functools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.benchmark.exam_files import ID, Records, csv_rows, exam_files, parse_json, records
from data_prep.benchmark.mapping import Raw, language_name, parse_mapping, read_mapped
from data_prep.benchmark.options import option_texts, read_answer
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import MAX_JSON_BYTES, read_json

APOLLO_LANGUAGES = {"cmb-single": "zh", "cmexam": "zh", "cmmlu-medical": "zh", "medqa-mcmle": "zh",
                    "medqa-usmle": "en", "medmcqa": "en", "mmlu-medical": "en", "headqa": "es",
                    "frenchmedmcqa": "fr"}
RELEASE_FILE = re.compile(r"(?:.+/)?(Train|Val|Test)/([A-Z][a-z]+)\.jsonl")
MMLU_MEDICAL = ("clinical_knowledge|medical_genetics|anatomy|professional_medicine|college_biology|"
                "college_medicine")


@dataclass(frozen=True)
class Source:
    about: str
    licence: str | None
    language: str  # code; "": as the records say, or --language
    mapping: str = ""
    files: str = ""  # regular expression that file paths below a folder must match
    prefer: str = ""  # where a folder has files that match this, only these
    official: bool = False  # only files that state a split
    rows: Callable[[Path], Records] = records
    prefix: str = ""  # of ids, in place of the source's name
    in_paper: bool = False  # one of MMedBench's six sets
    read: Callable[[Path], Iterator[Raw]] | None = None  # in place of a mapping


# ---- files that are not lists of records ---------------------------------------------------------


def igakuqa_rows(path: Path) -> Records:
    """IgakuQA: data/<year>/<exam>-<part>.jsonl; the subject is in the *_metadata file beside it."""
    metadata = path.with_name(f"{path.stem}_metadata.jsonl")
    about = records(metadata) if metadata.exists() else ()
    subjects = {record.get("problem_id"): record.get("category") for _, record in about}
    for where, record in records(path):
        record |= {"year": path.parent.name, "subject": subjects.get(record.get("problem_id"))}
        either = re.fullmatch(r"([a-z]) or ([a-z])", str((record.get("answer") or [""])[0]))
        if either:
            # DIFFERS: what the paper made of "a or d" is not known. An answer_idx "A,D" would ask for both,
            # so the first accepted letter is the answer, and the key answer_alternatives has them all.
            record |= {"answer": either[1], "answer_alternatives": [either[1].upper(), either[2].upper()]}
        yield where, record


def headqa_rows(path: Path) -> Records:
    """HEAD-QA: {"language", "exams": {name: {"year", "category", "data": []}}}; flat rows on model hubs."""
    if path.suffix != ".json":
        yield from records(path)
        return
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("exams"), dict):
        raise UserError(f"{path}: expected HEAD-QA's object with the keys language and exams")
    for name, exam in value["exams"].items():
        shared = {"language": value.get("language"), "name": name, "year": exam.get("year"),
                  "category": exam.get("category")}
        yield from ((f"{path}: {name} question {item.get('qid')}", shared | item) for item in exam["data"])


def pubmedqa_rows(path: Path) -> Records:
    """PubMedQA's labelled part; test_ground_truth.json in the same folder lists the test items."""
    truth = path.with_name("test_ground_truth.json")
    tests = read_json(truth) if truth.exists() else None
    for where, record in records(path):
        if tests is not None:
            record["split"] = "test" if str(record.get(ID, record.get("pubid"))) in tests else "train"
        elif "pqa_labeled" in path.as_posix():  # of which model hubs have "train" alone
            record["split"] = ""
        yield where, record


def mmlu_rows(path: Path) -> Records:
    """MMLU: SUBJECT_SPLIT.csv without header (question, A, B, C, D, answer); records on model hubs."""
    if path.suffix != ".csv":
        yield from records(path)
        return
    for line, row in csv_rows(path, delimiter=","):
        if len(row) != 6:
            raise UserError(f"{path}:{line}: {len(row)} columns; MMLU has 6 (question, four options, answer)")
        question, *options, answer = row
        yield f"{path}:{line}", {"subject": path.stem.rpartition("_")[0], "question": question,
                                 "choices": options, "answer": answer}


def apollo_rows(path: Path) -> Records:
    """Apollo's version of CMB, CMExam, MedQA ...; the exam's name determines the language."""
    for where, record in records(path):
        yield where, record | {"language": APOLLO_LANGUAGES.get(str(record.get("source")))}


# ---- the released MMedBench ----------------------------------------------------------------------


def read_mmedbench(path: Path) -> Iterator[Raw]:
    """MMedBench.zip, or its folder: Train/LANGUAGE.jsonl, Test/LANGUAGE.jsonl; all keys are kept.

    Nothing is unpacked on disk: the JSONL files are read from within the archive, each up to MAX_JSON_BYTES.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    try:
        archive = zipfile.ZipFile(path) if path.is_file() else None
        names = archive.namelist() if archive else [p.relative_to(path).as_posix() for p in path.rglob("*")]
        found = {match.groups(): match[0] for match in map(RELEASE_FILE.fullmatch, sorted(names)) if match}
        if not found:
            raise UserError(f"{path}: no Train/English.jsonl, Test/English.jsonl ... among its files; is "
                            "this MMedBench?")
        for (split, language), name in found.items():
            if archive and archive.getinfo(name).file_size > MAX_JSON_BYTES:
                raise UserError(f"{path}: {name} is larger than {MAX_JSON_BYTES:,} bytes")
            data = archive.read(name) if archive else (path / name).read_bytes()
            for number, line in enumerate(data.split(b"\n"), 1):
                if line.strip():
                    yield released_item(line, split, language, f"{path}!{name}:{number}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable zip archive ({error}); MMedBench comes as .zip or as a "
                        "folder with Train/ and Test/") from None


def released_item(line: bytes, split: str, language: str, where: str) -> Raw:
    try:
        record = parse_json(line)
        question = record["question"].strip() and record["question"]
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not MMedBench's form, an object with a text under 'question' "
                        f"({error!r:.80})") from None
    options = option_texts(record.get("options"))[0]
    rationale = record["rationale"] if isinstance(record.get("rationale"), str) else ""
    ours = ("question", "options", "answer_idx", "rationale", "id", "source")
    # MMedLM: `answer_idx` is a string or a list in the release; the official code takes either.
    return Raw(str(record.get("source") or f"mmedbench-{language.lower()}"), language, split, where, question,
               options, read_answer(record.get("answer_idx"), options, {}),
               id=str(record.get("id") or ""), rationale=rationale,
               extra={key: value for key, value in record.items() if key not in ours})


# ---- the table -----------------------------------------------------------------------------------

SPANISH_EXAMS = "MIT (HEAD-QA); exams: Spanish Ministry of Health, updated 14 January 2019"
JAPANESE_EXAMS = "no licence file; exams: Japanese Ministry of Health"
# MMedLM: the release keeps MedQA's own keys answer, meta_info and metamap_phrases.
KEEP = "subject=subject?,keep=answer+meta_info+metamap_phrases+realidx"
MEDQA = ("question=question|data.Question|sent1,options=options|data.Options|ending0+ending1+ending2+ending3,"
         f"answer=answer_idx|data.Correct Option|label,kind=0,id=realidx?,rationale=exp?,{KEEP}")
MEDMCQA = ("question=question,options=options|opa+opb+opc+opd,answer=answer_idx|cop?,id=id|realidx?,"
           f"rationale=exp?,{KEEP},subject=subject_name|subject?,topic=topic_name?")
# MMedLM: yes/no made a two-choice question.
# DIFFERS: whether the paper kept the context is not known; without it the questions cannot be answered, so it
# comes first, on a line of its own.
RUMEDDANET = "question=question,context=context,options=Да/Нет,answer=answer?,kind=text,id=pairID?"
# MMedLM: the paper reports PubMedQA among its English benchmarks.
# DIFFERS: its wording is not published; the abstract without its conclusion comes first, then the question,
# as the authors of PubMedQA set the task.
PUBMEDQA = ("question=QUESTION|question,context=CONTEXTS|context.contexts,options=yes/no/maybe,kind=text,"
            "answer=final_decision,id=$id|pubid,rationale=LONG_ANSWER|long_answer?,year=YEAR?,split=split?")
MMLU = ("question=question,options=options|choices,answer=answer_idx|answer,kind=0,id=realidx?,"
        f"{KEEP},filter=subject={MMLU_MEDICAL}")
HEADQA = ("question=qtext,options=answers,answer=ra,kind=letter,id=name+qid,group=name+qid,year=year?,"
          "subject=category?,image=image?,language=language?")
IGAKUQA = ("question=problem_text,options=choices,answer=answer,kind=letter,id=problem_id,image=!text_only,"
           "year=year,subject=subject,keep=points+answer_alternatives")
CAREQA = ("question=question,options=op1+op2+op3+op4,answer=cop,kind=1,id=unique_id?,subject=category?,"
          "year=year?")

SOURCES = {
    # MMedLM: the 4-option versions; the 5-option files have the same questions.
    "medqa": Source("MedQA US, 4 options", "MIT", "en", MEDQA, "^(?!.*/(Mainland|Taiwan|metamap_.*)/)",
                    "/4_options/", official=True, in_paper=True),
    "mcmle": Source("MedQA Mainland, simplified, 4 options", "MIT", "zh", MEDQA, "^(?!.*/(US|Taiwan)/)",
                    "/4_options/", official=True, in_paper=True),
    "igakuqa": Source("IgakuQA, a folder a year", JAPANESE_EXAMS, "ja", IGAKUQA, r"(^|/)\d+-[A-Z]\.jsonl$",
                      rows=igakuqa_rows, in_paper=True),
    "frenchmedmcqa": Source(
        "FrenchMedMCQA", "Apache-2.0", "fr", "question=question,answer=correct_answers,kind=0,id=id,"
        "options=answers|answer_a+answer_b+answer_c+answer_d+answer_e,subject=subject_name?", official=True,
        in_paper=True),
    "rumeddanet": Source("RuMedDaNet", None, "ru", RUMEDDANET, official=True, in_paper=True),
    "headqa": Source("HEAD-QA, Spanish", SPANISH_EXAMS, "es", HEADQA, official=True, rows=headqa_rows,
                     prefix="headqa-es", in_paper=True),
    "headqa-en": Source("HEAD-QA in English", SPANISH_EXAMS, "en", HEADQA, official=True, rows=headqa_rows,
                        prefix="headqa-en"),
    "medmcqa": Source("MedMCQA", "MIT", "en", MEDMCQA),
    "pubmedqa": Source("PubMedQA, labelled part", "MIT", "en", PUBMEDQA, r"ori_pqal\.json$|pqa_labeled",
                       rows=pubmedqa_rows),
    "mmlu": Source("MMLU, the paper's six medical subjects", "MIT", "en", MMLU,
                   "^(?!.*/auxiliary_train/)", "/all/", rows=mmlu_rows),
    "jmmlu-med": Source(
        "JMMLU-Med", "CC BY-SA 4.0", "ja", "question=question,options=optionA+optionB+optionC+optionD,"
        "answer=answer,subject=tag", rows=functools.partial(records, encodings=("utf-8-sig", "cp932"))),
    "careqa": Source("CareQA, Spanish", "Apache-2.0", "es", CAREQA, "CareQA_es"),
    "careqa-en": Source("CareQA in English", "Apache-2.0", "en", CAREQA, "CareQA_en(?!_open)"),
    "medxpertqa": Source(
        "MedXpertQA", "MIT", "en", "question=question,options=options,answer=label,id=id,image=images?,"
        "subject=body_system?,keep=medical_task+question_type", official=True),
    "global-mmlu": Source(
        "Global-MMLU, the same six subjects", "Apache-2.0", "", "question=question,answer=answer,"
        "options=option_a+option_b+option_c+option_d,id=sample_id?,subject=subject,"
        f"filter=subject={MMLU_MEDICAL}"),
    "mmlu-prox": Source(
        "MMLU-ProX, health", "MIT", "", "question=question,answer=answer,subject=category,"
        f"options={'+'.join(f'option_{i}' for i in range(10))},filter=category=health,id=question_id?"),
    "globalmedqa": Source(
        "GlobalMedQA", "CC BY-NC 4.0", "", "question=question,options=options,answer=answer,id=idx?,"
        "subject=label?,year=year?,language=language"),
    "kormedmcqa": Source(
        "KorMedMCQA", "CC BY-NC 2.0", "ko", "question=question,options=A+B+C+D+E,answer=answer,kind=1,"
        "subject=subject?,year=year?", official=True),
    "igakuqa120": Source(
        "IgakuQA120 (JMLE2026-Bench)", "CC BY 4.0", "ja", "question=question_text,options=question_text,"
        "answer=answer,kind=letter,context=serial_group.context_text?,id=question_id,image=requires_image",
        r"dataset\.json$"),
    "yakugakuqa": Source(
        "YakugakuQA", "CC BY-SA 4.0", "ja", "question=problem_text,options=choices,answer=answer,kind=1,"
        "id=problem_id,rationale=comment?,image=!text_only", r"(^|/)(data|\d+-[A-Z])\.jsonl$"),
    "apollo": Source(
        "CMB, CMExam, CMMLU, MedQA ... in Apollo's form", None, "", "question=question,options=option,"
        "answer=anwer|answer,language=language,source=source", rows=apollo_rows),
    "mmedbench": Source("the released MMedBench, zip or folder", None, "", in_paper=True,
                        read=read_mmedbench),
    "custom": Source("any CSV, JSON or parquet file, with --map and --language", None, ""),
}


def read_source(name: str, path: Path, language: str, given: str, notes: list[str]) -> Iterator[Raw]:
    """The items of a source; `language` (a code or "") and `given` are --language and --map."""
    source = SOURCES[name]
    if source.read:
        yield from source.read(path)
        return
    mapping = parse_mapping(given, source.mapping)
    code = source.language or language
    if not code and not mapping.language:
        raise UsageError(f"--source {name} needs --language")
    spoken = get_language(code).name if code else ""
    folder = language_folder(path, code, several=not (source.language or mapping.language))
    files = exam_files(folder, source.files, source.prefer, source.official, notes)
    items = read_mapped(files, source.rows, mapping, None if name == "custom" else name, spoken, notes,
                        source.prefix)
    if name == "pubmedqa" and any(raw.split is None for raw in items):
        notes.append("test_ground_truth.json, which names the 500 test items, is not beside the file: no "
                     "split is known")
    for raw in items:
        if not raw.language:
            raise UserError(f"{raw.where}: the language of {raw.source!r} is unknown; give it with "
                            "--language")
    yield from items


def language_folder(path: Path, code: str, several: bool) -> Path:
    """The folder of a language in a repository of many; else the path itself, unless with `several` it has
    folders of other languages alone."""
    if code and (path / code).is_dir():
        return path / code
    if several and path.is_dir():
        others = sorted(p.name for p in path.iterdir() if p.is_dir() and language_name(p.name))
        if others:
            raise UserError(f"{path}: no folder {code}/; it has {', '.join(others)}")
    return path

