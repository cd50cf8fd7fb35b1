"""The exams that --source knows by name: a table of presets, plus functions where a mapping is not enough.

A preset's mapping uses the exam's own keys; its `rows` makes flat records where a file has none. Papers:
MedQA (Jin et al. 2021), IgakuQA (Kasai et al. 2023), FrenchMedMCQA (Labrak et al. 2022), RuMedBench (Blinov
et al. 2022), HEAD-QA (Vilares and Gómez-Rodríguez 2019), MedMCQA (Pal et al. 2022), PubMedQA (Jin et al.
2019), MMLU (Hendrycks et al. 2021), Apollo (Wang et al. 2024).
"""
from __future__ import annotations

import functools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.benchmark.exam_files import ID, Records, csv_records, exam_files, parse_json, records
from data_prep.benchmark.mapping import Raw, Record, language_name, parse_mapping, read_mapped
from data_prep.benchmark.options import option_texts, read_answer
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import MAX_JSON_BYTES, read_json

APOLLO_LANGUAGES = {"cmb-single": "zh", "cmexam": "zh", "cmmlu-medical": "zh", "medqa-mcmle": "zh",
                    "medqa-usmle": "en", "medmcqa": "en", "mmlu-medical": "en", "headqa": "es",
                    "frenchmedmcqa": "fr"}
FOUND_ANEW = ("duplicate_of", "leaks", "blank_options", "equal_options")  # in our own output
RELEASE_FILE = re.compile(r"(?:^|/)(Train|Val|Test)/([A-Z][a-z]+)\.jsonl$")


@dataclass(frozen=True)
class Source:
    about: str
    licence: str | None
    language: str  # code; "": as the records say, or --language
    mapping: str = ""  # where it is not DEFAULTS
    files: str = ""  # regular expression that file paths below a folder must match
    prefer: str = ""  # where a folder has files whose path matches this, too, only these
    official: bool = False  # only files that state a split
    rows: Callable[[Path], Records] = records
    prefix: str = ""  # of ids, in place of the source's name


def igakuqa_rows(path: Path) -> Records:
    """IgakuQA: data/<year>/<exam>-<part>.jsonl; the subject is in the *_metadata file beside it."""
    metadata = path.with_name(f"{path.stem}_metadata.jsonl")
    about = records(metadata) if metadata.exists() else ()
    subjects = {record.get("problem_id"): record.get("category") for _, record in about}
    for where, record in records(path):
        record |= {"year": path.parent.name, "subject": subjects.get(record.get("problem_id"))}
        if either := re.fullmatch(r"([a-z]) or ([a-z])", str((record.get("answer") or [""])[0])):
            # DIFFERS: what the paper made of "a or d" is not known. An answer_idx "A,D" would ask for both,
            # so the first accepted letter is the answer, and the key answer_alternatives has them all.
            record |= {"answer": either[1], "answer_alternatives": [either[1].upper(), either[2].upper()]}
        yield where, record


def headqa_rows(path: Path) -> Records:
    """HEAD-QA: {"language", "exams": {name: {"year", "category", "data": []}}}; flat rows on model hubs."""
    for where, record in records(path):
        if "exams" not in record:
            yield where, record
        for name, exam in record.get("exams", {}).items():
            shared = {**exam, "name": name, "language": record.get("language")}
            yield from ((f"{path}: {name} {item.get('qid')}", shared | item) for item in exam["data"])


def pubmedqa_rows(path: Path) -> Records:
    """PubMedQA's labelled part; test_ground_truth.json in the same folder lists the test items."""
    truth = path.with_name("test_ground_truth.json")
    tests = read_json(truth) if truth.exists() else None
    for where, record in records(path):
        if tests is not None:
            record["split"] = "test" if str(record.get(ID, record.get("pubid"))) in tests else "train"
        elif "pqa_labeled" in path.as_posix():  # model hubs have only its "train" split
            record["split"] = ""
        yield where, record


def mmlu_rows(path: Path) -> Records:
    """MMLU and JMMLU: SUBJECT_SPLIT.csv or SUBJECT.csv without a header; records on model hubs."""
    if path.suffix != ".csv":
        yield from records(path)
        return
    for where, row in csv_records(path, header=("question", *"ABCD", "answer")):
        yield where, row | {"subject": re.sub("_(dev|val|test)$", "", path.stem)}


def apollo_rows(path: Path) -> Records:
    """Apollo's version of CMB, CMExam, MedQA ...; the exam's name determines the language."""
    for where, record in records(path):
        yield where, record | {"language": APOLLO_LANGUAGES.get(str(record.get("source")))}


def read_mmedbench(path: Path) -> Iterator[Raw]:
    """MMedBench.zip, which is not unpacked, or its folder: Train/LANGUAGE.jsonl, Test/LANGUAGE.jsonl."""
    try:
        archive = zipfile.ZipFile(path) if path.is_file() else None
        names = archive.namelist() if archive else (str(p.relative_to(path)) for p in path.rglob("*.jsonl"))
        found = {match.groups(): name for name in sorted(names) if (match := RELEASE_FILE.search(name))}
        if not found:
            raise UserError(f"{path}: no Train/English.jsonl, Test/English.jsonl ... among its files; is "
                            "this MMedBench?")
        for (split, language), name in found.items():
            with archive.open(name) if archive else open(path / name, "rb") as file:
                lines = iter(functools.partial(file.readline, MAX_JSON_BYTES), b"")
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield released_item(line, split, language, f"{path / name}:{number}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable zip archive ({error}); MMedBench comes as .zip or as a "
                        "folder with Train/ and Test/") from None


def released_item(line: bytes, split: str, language: str, where: str) -> Raw:
    try:
        record = Record(dict(parse_json(line)), where)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: not MMedBench's form, an object a line ({error})") from None
    ours = ("question", "options", "answer_idx", "rationale", "id", "source", *FOUND_ANEW)
    options = option_texts(record.value("options?"))[0]
    # MMedLM: `answer_idx` is a string or a list in the release; the official code takes either.
    answer = read_answer(record.value("answer_idx?"), options, {})
    extra = {key: value for key, value in record.values.items() if key not in ours}
    return Raw(record.text("question"), options, tuple(answer), record.text("rationale?"), language,
               record.text("id?"), extra=extra, split=split, where=where,
               source=record.text("source?") or f"mmedbench-{language.lower()}")


# ---- the table -----------------------------------------------------------------------------------

SPANISH_EXAMS = "MIT (HEAD-QA); exams: Spanish Ministry of Health, updated 14 January 2019"
JAPANESE_EXAMS = "no licence file; exams: Japanese Ministry of Health"
DEFAULTS = "question=question,options=options,answer=answer,subject=subject?,year=year?"
# MMedLM: the release keeps MedQA's own keys answer, meta_info and metamap_phrases.
KEEP = "keep=answer+meta_info+metamap_phrases+realidx"
MEDQA = ("question=question|data.Question|sent1,options=options|data.Options|ending0+ending1+ending2+ending3,"
         f"answer=answer_idx|data.Correct Option|label,kind=0,id=realidx?,rationale=exp?,{KEEP}")
MEDMCQA = ("options=options|opa+opb+opc+opd,answer=answer_idx|cop?,id=id|realidx?,rationale=exp?,"
           f"subject=subject_name|subject?,topic=topic_name?,{KEEP}")
# MMedLM: yes/no made a two-choice question.
# DIFFERS: whether the paper kept the context is not known; without it the questions cannot be answered, so it
# comes first, on a line of its own.
RUMEDDANET = "context=context,options=Да/Нет,answer=answer?,kind=text,id=pairID?"
# MMedLM: the paper reports PubMedQA among its English benchmarks.
# DIFFERS: its wording is not published; the abstract without its conclusion comes first, then the question,
# as the authors of PubMedQA set the task.
PUBMEDQA = ("question=QUESTION|question,context=CONTEXTS|context.contexts,options=yes/no/maybe,kind=text,"
            "answer=final_decision,id=$id|pubid,rationale=LONG_ANSWER|long_answer?,year=YEAR?,split=split?")
MMLU_MEDICAL = ("filter=subject=clinical_knowledge|medical_genetics|anatomy|professional_medicine|"
                "college_biology|college_medicine")
MMLU = f"options=options|choices|A+B+C+D,answer=answer_idx|answer,kind=0,id=realidx?,{KEEP},{MMLU_MEDICAL}"
HEADQA = ("question=qtext,options=answers,answer=ra,kind=letter,id=name+qid,group=name+qid,subject=category?,"
          "image=image?,language=language?")
IGAKUQA = ("question=problem_text,options=choices,kind=letter,id=problem_id,image=!text_only,"
           "keep=points+answer_alternatives")
CAREQA = "options=op1+op2+op3+op4,answer=cop,kind=1,id=unique_id?,subject=category?"

SOURCES = {
    # MMedLM: the 4-option versions; the 5-option files have the same questions.
    "medqa": Source("MedQA US, 4 options", "MIT", "en", MEDQA,
                    "^(?!.*/(Mainland|Taiwan|metamap_.*|med_qa_(zh|tw)_.*|.*_bigbio_qa)/)", "4_?options",
                    official=True),
    "mcmle": Source("MedQA Mainland, simplified, 4 options", "MIT", "zh", MEDQA,
                    "^(?!.*/(US|Taiwan|med_qa_(en|tw)_.*|.*_bigbio_qa)/)", "4_?options", official=True),
    "igakuqa": Source("IgakuQA, a folder a year", JAPANESE_EXAMS, "ja", IGAKUQA, r"(^|/)\d+-[A-Z]\.jsonl$",
                      rows=igakuqa_rows),
    "frenchmedmcqa": Source("FrenchMedMCQA", "Apache-2.0", "fr",
                            "options=answers|answer_a+answer_b+answer_c+answer_d+answer_e,"
                            "answer=correct_answers,kind=0,id=id,subject=subject_name?", official=True),
    "rumeddanet": Source("RuMedDaNet", None, "ru", RUMEDDANET, official=True),
    "headqa": Source("HEAD-QA, Spanish", SPANISH_EXAMS, "es", HEADQA, official=True, rows=headqa_rows,
                     prefix="headqa-es"),
    "headqa-en": Source("HEAD-QA in English", SPANISH_EXAMS, "en", HEADQA, official=True, rows=headqa_rows,
                        prefix="headqa-en"),
    "medmcqa": Source("MedMCQA", "MIT", "en", MEDMCQA),
    "pubmedqa": Source("PubMedQA, labelled part", "MIT", "en", PUBMEDQA, r"ori_pqal\.json$|pqa_labeled",
                       rows=pubmedqa_rows),
    "mmlu": Source("MMLU, the paper's six medical subjects", "MIT", "en", MMLU,
                   "^(?!.*/auxiliary_train/)", "/all/", rows=mmlu_rows),
    "jmmlu": Source("JMMLU, the same six subjects", "CC BY-SA 4.0", "ja", MMLU, rows=mmlu_rows),
    "jmmlu-med": Source("JMMLU-Med", "CC BY-SA 4.0", "ja",
                        "options=optionA+optionB+optionC+optionD,subject=tag",
                        rows=functools.partial(records, encodings=("utf-8-sig", "cp932"))),
    "careqa": Source("CareQA, Spanish", "Apache-2.0", "es", CAREQA, "CareQA_es"),
    "careqa-en": Source("CareQA in English", "Apache-2.0", "en", CAREQA, "CareQA_en(?!_open)"),
    "medxpertqa": Source("MedXpertQA", "MIT", "en", "answer=label,id=id,image=images?,subject=body_system?,"
                         "keep=medical_task+question_type", official=True),
    "global-mmlu": Source("Global-MMLU, the same six subjects", "Apache-2.0", "",
                          f"options=option_a+option_b+option_c+option_d,id=sample_id?,{MMLU_MEDICAL}"),
    "mmlu-prox": Source("MMLU-ProX, health", "MIT", "", "filter=category=health,id=question_id?,"
                        f"subject=category,options={'+'.join(f'option_{i}' for i in range(10))}"),
    "globalmedqa": Source("GlobalMedQA", "CC BY-NC 4.0", "", "id=idx?,subject=label?,language=language"),
    "kormedmcqa": Source("KorMedMCQA", "CC BY-NC 2.0", "ko", "options=A+B+C+D+E,kind=1", official=True),
    "igakuqa120": Source("IgakuQA120 (JMLE2026-Bench)", "CC BY 4.0", "ja",
                         "question=question_text,options=question_text,kind=letter,id=question_id,"
                         "context=serial_group.context_text?,image=requires_image", r"dataset\.json$"),
    "yakugakuqa": Source("YakugakuQA", "CC BY-SA 4.0", "ja", "question=problem_text,options=choices,kind=1,"
                         "id=problem_id,rationale=comment?,image=!text_only",
                         r"(^|/)(data|\d+-[A-Z])\.jsonl$"),
    "apollo": Source("CMB, CMExam, CMMLU, MedQA ... in Apollo's form", None, "",
                     "options=option,answer=anwer|answer,language=language,source=source", rows=apollo_rows),
    "mmedbench": Source("the released MMedBench, zip or folder", None, ""),
    "custom": Source("any CSV, JSON or parquet file, with --map and --language", None, ""),
}


def read_source(name: str, path: Path, language: str, given: str, notes: list[str]) -> list[Raw]:
    """The items of a source; `language` (a code or "") and `given` are --language and --map."""
    source = SOURCES[name]
    if name == "mmedbench":
        return list(read_mmedbench(path))
    mapping = parse_mapping(given if name == "custom" else f"{DEFAULTS},{source.mapping},{given}")
    code = source.language or language
    if not code and not mapping["language"]:
        raise UsageError(f"--source {name} needs --language")
    spoken = get_language(code).name if code else ""
    if code and (path / code).is_dir():
        path /= code
    elif not source.language and not mapping["language"] and path.is_dir():
        if others := sorted(p.name for p in path.iterdir() if p.is_dir() and language_name(p.name)):
            raise UserError(f"{path}: no folder {code}/; it has {', '.join(others)}")
    files = exam_files(path, source.files, source.prefer, source.official, notes)
    own_name = "" if name == "custom" else name
    items = read_mapped(files, source.rows, mapping, own_name, source.prefix, spoken, notes)
    if name == "pubmedqa" and any(raw.split is None for raw in items):
        notes.append("test_ground_truth.json, which names the 500 test items, is not beside the file: no "
                     "split is known")
    return items
