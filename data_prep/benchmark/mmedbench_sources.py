"""MMedBench's sources as their authors publish them, each in its own form, read into one.

In: the files of a source, a folder or one file. Out: `Raw` items in a stable order, nothing judged and
nothing dropped: data_prep/mmedbench.py checks, counts, splits and writes them. A file of another shape is a
UserError with file:line. Every reader is `read_X(path, notes)` and appends to `notes` what a person should
know about the files. Readers: MedQA (Jin et al. 2021), IgakuQA (Kasai et al. 2023), FrenchMedMCQA (Labrak et
al. 2022), RuMedBench (Blinov et al. 2022), HEAD-QA (Vilares and Gómez-Rodríguez 2019). Other exams:
data_prep/benchmark/other_exams.py.
"""
from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.record_files import read_records
from mmed.utils.errors import UserError
from mmed.utils.files import MAX_JSON_BYTES, read_json, read_jsonl

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Raw:
    """One question as its file has it."""

    source: str
    language: str  # English name, as in MMedBench's file names
    split: str | None  # Train, Val, Test; None: its file belongs to no split
    where: str  # file:line or "file: item N", for messages
    question: str
    options: dict[str, str]  # letter -> text
    answer: list[str]  # letters; what is no letter stays as it was, and the checks drop the item
    id: str = ""  # empty: made from source, question and options
    rationale: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    group: str = ""  # items with the same group stay on one side of a random split; empty: the id

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.source}-{fingerprint(self.question, self.options)}"
        self.group = self.group or self.id


def fingerprint(question: str, options: dict[str, str]) -> str:
    """Twelve hex digits that identify a question by its content.

    >>> fingerprint("Why?", {"A": "x"}) == fingerprint(" Why? ", {"A": "x"})
    True
    """
    text = json.dumps([" ".join(question.split()), [" ".join(option.split()) for option in options.values()]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---- files ---------------------------------------------------------------------------------------


def split_of(name: str) -> str | None:
    """The split that a file name states.

    >>> [split_of(n) for n in ("phrases_train.jsonl", "dev_HEAD.json", "test.part1.jsonl", "ori_pqal.json")]
    ['Train', 'Val', 'Test', None]
    """
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in ("train", "test"):
            return word.capitalize()
        if word in ("dev", "val", "valid", "validation"):
            return "Val"
    return None


def files_under(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The file itself, or the files below a folder with one of these endings, sorted by path."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = sorted((p for p in path.rglob("*") if p.name.endswith(endings) and p.is_file()),
                   key=Path.as_posix)
    if not found:
        raise UserError(f"{path}: no file ending in {' or '.join(endings)} below this folder")
    return found


def split_files(path: Path, endings: tuple[str, ...], notes: list[str]) -> list[Path]:
    """The files below a folder whose names state a split; a file that was named itself is always taken."""
    files = files_under(path, endings)
    if path.is_file():
        return files
    others = [p.name for p in files if split_of(p.name) is None]
    if others:
        notes.append(f"skipped, no train, dev or test in the name: {', '.join(others[:5])}")
    if len(others) == len(files):
        raise UserError(f"{path}: no file with train, dev or test in its name below this folder "
                        f"({', '.join(others[:5])}); name a file itself to have it read anyway")
    return [p for p in files if split_of(p.name) is not None]


def records(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of JSON lines, a JSON array, CSV with a header, or parquet."""
    if path.suffix == ".parquet":
        def bad(reason: str, number: int, size: int) -> None:
            raise UserError(f"{path}: row {number}: {reason}")

        yield from ((f"{path}: row {number}", record)
                    for number, record in read_records(path, ".parquet", bad))
    elif path.suffix == ".csv":
        rows = csv_rows(path, encodings)
        header = rows[0][1] if rows else []
        for line, row in rows[1:]:
            if len(row) != len(header):
                raise UserError(f"{path}:{line}: {len(row)} columns, the header has {len(header)}")
            yield f"{path}:{line}", dict(zip(header, row))
    elif path.suffix == ".json" and _starts_with_bracket(path):
        for number, item in enumerate(read_json(path), 1):
            if not isinstance(item, dict):
                raise UserError(f"{path}: item {number}: expected an object, got {type(item).__name__}")
            yield f"{path}: item {number}", item
    else:
        yield from ((f"{path}:{number}", record) for number, record in read_jsonl(path))


def _starts_with_bracket(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def csv_rows(path: Path, encodings: tuple[str, ...] = ("utf-8-sig",)) -> list[tuple[int, list[str]]]:
    """(line number, cells) of a CSV file in the first encoding that fits; quoted cells may contain line
    breaks."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path}: {size:,} bytes are too many for a CSV file of questions (limit "
                        f"{MAX_JSON_BYTES:,})")
    text = None
    for encoding in encodings:
        try:
            text = text or path.read_bytes().decode(encoding)
        except UnicodeDecodeError:
            continue
    if text is None:
        raise UserError(f"{path}: not in {' or '.join(encodings)}; convert the file to UTF-8")
    csv.field_size_limit(10_000_000)  # the default of 131,072 is less than a long case with its tables
    reader, rows, line = csv.reader(io.StringIO(text, newline=""), strict=True), [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not valid CSV ({error})") from None
    return rows


def need(record: Any, key: str, where: str, kind: type | tuple[type, ...], form: str) -> Any:
    """`record[key]`, or an error that says that the file is not in the expected form."""
    if not isinstance(record, dict) or key not in record:
        has = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where}: no key {key!r}; this is not the {form} form (it has {has})")
    if not isinstance(record[key], kind):
        raise UserError(f"{where}: {key!r} is a {type(record[key]).__name__}, which is not the {form} form")
    return record[key]


# ---- options and answers -------------------------------------------------------------------------


def lettered(texts: list[Any]) -> dict[str, str]:
    """Name option texts A, B, C ... in their order; null or empty ones at the end mean fewer options.

    >>> lettered(["Да", "Нет", None, " "])
    {'A': 'Да', 'B': 'Нет'}
    """
    texts = ["" if text is None else str(text) for text in texts]
    while texts and not texts[-1].strip():
        texts.pop()
    return {LETTERS[i] if i < len(LETTERS) else f"#{i + 1}": text for i, text in enumerate(texts)}


def option_texts(value: Any) -> dict[str, str]:
    """Options by letter from the forms in which exams are published; {} if it is none of them.

    Texts by letter, a list of texts, [{"key": "A", "value": ...}] and {"label": [...], "text": [...]} as on
    model hubs, or one string "(A) ...\\n(B) ...".

    >>> option_texts({"b": "y", "a": 1.5, "c": None}), option_texts("(A) 2小时.\\n(B) 4小时内.")
    ({'A': '1.5', 'B': 'y'}, {'A': '2小时.', 'B': '4小时内.'})
    >>> option_texts([{"key": "A", "value": "x"}]), option_texts({"label": ["A"], "text": ["x"]})
    ({'A': 'x'}, {'A': 'x'})
    """
    if isinstance(value, str):
        parts = re.split(r"(?:^|\n)\s*\(([A-Z])\)", value)
        pairs = [] if parts[0].strip() else list(zip(parts[1::2], (text.strip() for text in parts[2::2])))
    elif isinstance(value, list) and value and all(isinstance(option, dict) for option in value):
        pairs = [(_first(option, "key", "label", "letter", "id"), _first(option, "value", "text", "content"))
                 for option in value]
    elif isinstance(value, list):
        return lettered(value) if all(isinstance(text, str | int | float | None) for text in value) else {}
    elif isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        labels, texts = _first(value, "label", "key"), _first(value, "text", "value")
        pairs = list(zip(labels, texts)) if labels and texts and len(labels) == len(texts) else []
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        return {}
    kinds = str | int | float | None
    if not all(isinstance(letter, str) and isinstance(text, kinds) for letter, text in pairs):
        return {}
    pairs = sorted(pairs, key=lambda pair: pair[0])
    named = {letter.strip().upper(): "" if text is None else str(text) for letter, text in pairs}
    while named and not list(named.values())[-1].strip():
        named.popitem()
    return named if len({letter.strip().upper() for letter, _ in pairs}) == len(pairs) else {}


def _first(record: dict[str, Any], *keys: str) -> Any:
    return next((record[key] for key in keys if key in record), None)


def letters_in(value: Any) -> list[str]:
    """Answer letters from the ways they are written: "A", "a,c", "ACE", "(AC)", ["a", "c"]; anything else as
    it is.

    >>> letters_in("(ACE)"), letters_in("a, c"), letters_in(["d"]), letters_in("a or d"), letters_in(None)
    (['A', 'C', 'E'], ['A', 'C'], ['D'], ['a or d'], [])
    """
    if isinstance(value, list):
        return [letter for part in value for letter in letters_in(part)]
    text = "" if value is None else str(value).strip()
    bare = re.sub(r"\s*[,;、，]\s*", ",", text.strip("()（）[] "))
    if re.fullmatch(r"[A-Za-z](,[A-Za-z])*", bare):
        return bare.upper().split(",")
    if re.fullmatch(r"[A-Z]+", bare) and list(bare) == sorted(set(bare)):  # "ACE": in order, so hardly a word
        return list(bare)
    return [text] if text else []


def text_or_empty(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


# ---- the readers ---------------------------------------------------------------------------------


def read_lettered(files: list[Path], notes: list[str], *, source: str, language: str,
                  form: str) -> Iterator[Raw]:
    """Records with question, options and answer_idx: MedQA's form, in which others are passed on too."""
    sizes: Counter[int] = Counter()
    disagree = 0
    for path in files:
        for where, record in records(path):
            options = option_texts(need(record, "options", where, (dict, list), form))
            answer = letters_in(record.get("answer_idx"))
            # MMedLM: the release keeps MedQA's own keys answer, meta_info and metamap_phrases.
            keys = ("answer", "meta_info", "metamap_phrases", "subject", "realidx")
            if len(answer) == 1 and "answer" in record:
                disagree += options.get(answer[0]) != str(record["answer"])
            sizes[len(options)] += 1
            yield Raw(source, language, split_of(path.name), where,
                      need(record, "question", where, str, form), options,
                      answer, id=f"{source}-{record['realidx']}" if record.get("realidx") else "",
                      rationale=text_or_empty(record.get("exp")),
                      extra={key: record[key] for key in keys if key in record})
    if form == "MedQA" and sizes[5]:
        notes.append(f"{sizes[5]} items have 5 options; the paper uses the 4-option files")
    if disagree:
        notes.append(f"{disagree} items whose answer text is not the text of their answer letter; the "
                     f"letter is taken")


def read_medqa(path: Path, notes: list[str], *, source: str, language: str, folder: str) -> Iterator[Raw]:
    """MedQA (US or Mainland): JSONL with question, options, answer, answer_idx, meta_info,
    metamap_phrases."""
    files = split_files(path, (".jsonl", ".parquet"), notes)
    if path.is_dir():  # the release has US, Mainland and Taiwan, each with 4 and 5 options
        parts = {p: set(p.relative_to(path).parts) for p in files}
        here = [p for p in files if folder in parts[p]] or \
               [p for p in files if not {"US", "Mainland", "Taiwan"} & parts[p]]
        # MMedLM: the 4-option versions; the 5-option files have the same questions.
        files = [p for p in here if "4_options" in p.parts] or here
    items = list(read_lettered(files, notes, source=source, language=language, form="MedQA"))
    if not items:
        raise UserError(f"{path}: no {folder} files of MedQA (train, dev, test .jsonl) below this folder")
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", raw.question)) for raw in items)
    if (chinese * 2 > len(items)) != (language == "Chinese"):
        raise UserError(f"{path}: {chinese} of {len(items)} questions have Chinese characters, so this is "
                        f"not MedQA's "
                        f"{language} part (medqa: US, mcmle: Mainland)")
    yield from items


def read_igakuqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """IgakuQA: data/<year>/<exam>-<part>.jsonl; the subject is in the *_metadata file beside it."""
    form = "IgakuQA"
    files = [p for p in files_under(path, (".jsonl",)) if re.fullmatch(r"\d+-[A-Z]\.jsonl", p.name)]
    if not files:
        raise UserError(f"{path}: no IgakuQA exam files (such as 2018/112-A.jsonl) below this folder")
    notes.append(f"years {', '.join(sorted({p.parent.name for p in files}))}; the paper's are 2018 to 2022")
    for exam in files:
        metadata = exam.with_name(f"{exam.stem}_metadata.jsonl")
        about = [record for _, record in read_jsonl(metadata)] if metadata.exists() else []
        subjects = {record.get("problem_id"): record.get("category") for record in about}
        for where, record in records(exam):
            problem = need(record, "problem_id", where, str, form)
            answer = letters_in(need(record, "answer", where, list, form))
            extra = {"year": exam.parent.name,
                     "image_dependent": not need(record, "text_only", where, bool, form),
                     "points": record.get("points"), "subject": subjects.get(problem)}
            if len(answer) == 1 and (either := re.fullmatch(r"([a-z]) or ([a-z])", answer[0])):
                # DIFFERS: what the paper made of "a or d" is not known. An answer_idx "A,D" would ask for
                # both, so the first accepted letter is the answer, and the key answer_alternatives has them
                # all.
                extra["answer_alternatives"] = [letter.upper() for letter in either.groups()]
                answer = extra["answer_alternatives"][:1]
                notes.append(f"{problem}: either of {', '.join(extra['answer_alternatives'])} was accepted; "
                             f"{answer[0]} is taken")
            yield Raw("igakuqa", "Japanese", None, where, need(record, "problem_text", where, str, form),
                      option_texts(need(record, "choices", where, list, form)), answer,
                      id=f"igakuqa-{problem}", extra=extra)


def read_frenchmedmcqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """FrenchMedMCQA: JSON arrays; answers {a..e}, correct_answers a list of one to five letters."""
    form = "FrenchMedMCQA"
    for file in split_files(path, (".json",), notes):
        for where, item in records(file):
            yield Raw("frenchmedmcqa", "French", split_of(file.name), where,
                      need(item, "question", where, str, form),
                      option_texts(need(item, "answers", where, dict, form)),
                      letters_in(item.get("correct_answers")),
                      id=f"frenchmedmcqa-{need(item, 'id', where, str, form)[:16]}",
                      extra={"subject": item.get("subject_name") or None})


def read_rumeddanet(path: Path, notes: list[str]) -> Iterator[Raw]:
    """RuMedDaNet: JSONL with context, question and да or нет."""
    form = "RuMedDaNet"
    for file in split_files(path, (".jsonl",), notes):
        for where, record in records(file):
            context, question = (need(record, key, where, str, form) for key in ("context", "question"))
            said = text_or_empty(record.get("answer"))
            answer = {"да": ["A"], "нет": ["B"]}.get(said.casefold(), [said] if said else [])
            # MMedLM: yes/no made a two-choice question.
            # DIFFERS: whether the paper kept the context is not known; without it the questions cannot be
            # answered, so it comes first, on a line of its own. An empty question stays empty, to be dropped.
            yield Raw("rumeddanet", "Russian", split_of(file.name), where,
                      f"{context.strip()}\n{question.strip()}" if question.strip() else "",
                      {"A": "Да", "B": "Нет"}, answer,
                      id=f"rumeddanet-{record['pairID']}" if record.get("pairID") else "")


def read_headqa(path: Path, notes: list[str], *, code: str, language: str) -> Iterator[Raw]:
    """HEAD-QA: JSON {"language", "exams": {name: {"year", "category", "data": [...]}}}; ra names the right
    aid."""
    form, source, used = "HEAD-QA", "headqa" if code == "es" else f"headqa-{code}", 0
    for file in split_files(path, (".json",), notes):  # HEAD.json, all splits in one, is skipped
        exams = read_json(file)
        if need(exams, "language", str(file), str, form) != code:
            notes.append(f"skipped, its language is {exams['language']!r}: {file.name}")
            continue
        used += 1
        for name, exam in need(exams, "exams", str(file), dict, form).items():
            for item in need(exam, "data", f"{file}: {name}", list, form):
                qid = need(item, "qid", f"{file}: {name}", (str, int), form)
                where = f"{file}: {name} question {qid}"
                texts = {str(need(a, "aid", where, (int, str), form)): need(a, "atext", where, str, form)
                         for a in need(item, "answers", where, list, form)}
                letter_of = dict(zip(texts, LETTERS))
                right = "" if item.get("ra") is None else str(item["ra"]).strip()
                extra = {"year": exam.get("year"), "subject": exam.get("category"),
                         "image_dependent": bool(item.get("image"))}
                # A question has the same group in Spanish and in its English translation, so that a random
                # split never puts one into train and the other into test.
                yield Raw(source, language, split_of(file.name), where, need(item, "qtext", where, str, form),
                          lettered(list(texts.values())), [letter_of.get(right, right)] if right else [],
                          id=f"headqa-{code}-{name}-{qid}", extra=extra, group=f"headqa-{name}-{qid}")
    if not used:
        raise UserError(f"{path}: no HEAD-QA file in the language {code!r} (train_HEAD.json, dev_HEAD.json, "
                        f"test_HEAD.json)")
