"""MMedBench's sources as their authors publish them, each in its own form, read into one: a small function a source.

In: the files of a source (a folder or one file). Out: `Raw` items in a stable order (paths sorted by name, items in file order),
nothing judged and nothing dropped: `data_prep.mmedbench` checks, counts, splits and writes them. The shape of a file (a key missing,
not JSON) is a `UserError` with file:line; the content of an item (no answer, empty question) is left for the checks.
Every reader is `read_X(path, notes)`; it appends to `notes` what a person should know about these files. In order: what all readers
share, then MedQA (Jin et al. 2021), IgakuQA (Kasai et al. 2023), FrenchMedMCQA (Labrak et al. 2022), RuMedBench (Blinov et al. 2022),
HEAD-QA (Vilares and Gómez-Rodríguez 2019). Other exams: `data_prep/benchmark/other_exams.py`.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError
from mmed.utils.files import read_json, read_jsonl

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Raw:
    """One question as its file has it."""

    source: str
    language: str  # English name, as in MMedBench's file names
    split: str | None  # Train, Val, Test; None: its file belongs to no split
    file: str
    where: str  # file:line or "file: item N", for messages
    question: str
    options: dict[str, str]  # letter -> text
    answer: list[str]  # letters; what could not be read as a letter stands as it was, and the checks drop it
    id: str = ""  # empty: made from source, question and options
    rationale: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    group: str = ""  # items with the same group stay on one side of a random split; empty: the id

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.source}-{fingerprint(self.question, self.options)}"
        self.group = self.group or self.id


def fingerprint(question: str, options: dict[str, str]) -> str:
    """Twelve hex digits that name a question by what it says: the same in any file order and after a file is cut.

    >>> fingerprint("Why?", {"A": "x"}) == fingerprint(" Why? ", {"A": "x"}) != fingerprint("Why?", {"A": "y"})
    True
    """
    text = json.dumps([" ".join(question.split()), [" ".join(option.split()) for option in options.values()]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def lettered(texts: list[str]) -> dict[str, str]:
    """Name option texts A, B, C ... in their order.

    >>> lettered(["Да", "Нет"])
    {'A': 'Да', 'B': 'Нет'}
    """
    return {LETTERS[i] if i < len(LETTERS) else f"#{i + 1}": text for i, text in enumerate(texts)}


def split_of(name: str) -> str | None:
    """The split that a file name states.

    >>> [split_of(n) for n in ("phrases_no_exclude_train.jsonl", "dev_HEAD.json", "test.part1.jsonl", "ori_pqal.json")]
    ['Train', 'Val', 'Test', None]
    """
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in ("train", "test"):
            return word.capitalize()
        if word in ("dev", "val", "valid", "validation"):
            return "Val"
    return None


def files_under(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The file itself, or the files below a folder with one of these endings, sorted by path (never in the order of the disk)."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = sorted((p for p in path.rglob("*") if p.name.endswith(endings) and p.is_file()), key=lambda p: p.as_posix())
    if not found:
        raise UserError(f"{path}: no file ending in {' or '.join(endings)} below this folder")
    return found


def split_files(path: Path, endings: tuple[str, ...], notes: list[str]) -> list[Path]:
    """The files below a folder whose names state a split, the others noted; a file that was named itself is always taken."""
    files = files_under(path, endings)
    if path.is_file():
        return files
    others = [p.name for p in files if split_of(p.name) is None]
    if others:
        notes.append(f"passed over, no train, dev or test in the name: {', '.join(others[:5])}"
                     + (f" and {len(others) - 5} more" if len(others) > 5 else ""))
    if len(others) == len(files):
        raise UserError(f"{path}: no file with train, dev or test in its name below this folder ({', '.join(others[:5])}); name a file itself "
                        "to have it read anyway")
    return [p for p in files if split_of(p.name) is not None]


def need(record: Any, key: str, where: str, kind: type | tuple[type, ...], form: str) -> Any:
    """`record[key]`, or one line that says which file is not in the form it should have."""
    if not isinstance(record, dict) or key not in record:
        has = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where}: no key {key!r}; this is not the {form} form (it has {has})")
    if not isinstance(record[key], kind) or (isinstance(record[key], bool) and kind is not bool):
        raise UserError(f"{where}: {key!r} is a {type(record[key]).__name__}, which is not the {form} form")
    return record[key]


def letters_in(value: Any) -> list[str]:
    """Answer letters from the ways they are written: "A", "a,c", "ACE", "(AC)", ["a", "c"]; anything else stays as it is.

    >>> letters_in("(ACE)"), letters_in("a, c"), letters_in(["d"]), letters_in("a or d"), letters_in(None), letters_in("")
    (['A', 'C', 'E'], ['A', 'C'], ['D'], ['a or d'], [], [])
    """
    if isinstance(value, list):
        return [letter for part in value for letter in letters_in(part)]
    text = "" if value is None else str(value).strip()
    bare = re.sub(r"\s*[,;、，]\s*", ",", text.strip("()（）[] "))
    if re.fullmatch(r"[A-Za-z](,[A-Za-z])*", bare):
        return bare.upper().split(",")
    if re.fullmatch(r"[A-Z]+", bare) and list(bare) == sorted(set(bare)):  # "ACE"; in order, so that a word is hardly ever taken for one
        return list(bare)
    return [text] if text else []


def option_texts(value: Any, where: str, form: str) -> dict[str, str]:
    """Options as a dict {letter: text}, a list of texts, or Apollo's one string "(A) ...\\n(B) ..."; letters become capitals.

    >>> option_texts("(A) 2小时.\\n(B) 4小时内.", "", "")
    {'A': '2小时.', 'B': '4小时内.'}
    >>> option_texts({"b": "y", "a": 1.5}, "", "")
    {'A': '1.5', 'B': 'y'}
    """
    if isinstance(value, str):
        parts = re.split(r"(?:^|\n)\s*\(([A-Z])\)", value)
        if parts[0].strip():
            raise UserError(f"{where}: the options are one string that does not begin with (A); this is not the {form} form")
        if len(set(parts[1::2])) != len(parts[1::2]):
            raise UserError(f"{where}: two options have the same letter ({', '.join(parts[1::2])})")
        value = dict(zip(parts[1::2], (text.strip() for text in parts[2::2])))
    elif isinstance(value, list):
        value = lettered(value)
    if not isinstance(value, dict) or any(not isinstance(text, str | int | float) for text in value.values()):
        raise UserError(f"{where}: the options are neither texts by letter, a list of texts, nor one string '(A) ... (B) ...'")
    texts = {letter.strip().upper(): str(text) for letter, text in sorted(value.items())}
    if len(texts) != len(value):
        raise UserError(f"{where}: two options have the same letter ({', '.join(value)})")
    return texts


def json_items(path: Path, form: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, item) of a JSON array."""
    value = read_json(path)
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a JSON array of items ({form} form), got {type(value).__name__}")
    for number, item in enumerate(value, 1):
        yield f"{path}: item {number}", item


def note_part(path: Path, notes: list[str]) -> None:
    if ".part" in path.name:
        notes.append(f"{path.name} is a part of the published file, by its name")


def read_medqa(path: Path, notes: list[str], *, source: str, language: str, folder: str) -> Iterator[Raw]:
    """MedQA (US or Mainland): JSONL with question, options {letter: text}, answer, answer_idx, meta_info, metamap_phrases."""
    files = split_files(path, (".jsonl",), notes)
    if path.is_dir():  # the release holds US, Mainland and Taiwan, each with 4 and 5 options
        here = [p for p in files if folder in p.relative_to(path).parts] or \
               [p for p in files if not {"US", "Mainland", "Taiwan"} & set(p.relative_to(path).parts)]
        # MMedLM: the 4-option versions (METHOD.md 2.1); the 5-option files hold the same questions.
        files = [p for p in here if "4_options" in p.parts] or here
    if not files:
        raise UserError(f"{path}: no {folder} files of MedQA (train, dev, test .jsonl) below this folder")
    items = list(read_lettered(files, notes, source=source, language=language, form="MedQA"))
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", raw.question)) for raw in items)
    if items and (chinese * 2 > len(items)) != (language == "Chinese"):
        raise UserError(f"{path}: {chinese} of {len(items)} questions have Chinese characters, so this is not MedQA's {language} part "
                        "(medqa: US, mcmle: Mainland)")
    yield from items


def read_lettered(files: list[Path], notes: list[str], *, source: str, language: str, form: str) -> Iterator[Raw]:
    """JSONL with question, options by letter and answer_idx: MedQA's form, in which others are passed on too."""
    sizes: Counter[int] = Counter()
    disagree = 0
    for path in files:
        note_part(path, notes)
        for number, record in read_jsonl(path):
            where = f"{path}:{number}"
            options = option_texts(need(record, "options", where, (dict, list), form), where, form)
            answer = letters_in(record.get("answer_idx"))
            # MMedLM: the release keeps MedQA's own keys answer, meta_info and metamap_phrases.
            extra = {key: record[key] for key in ("answer", "meta_info", "metamap_phrases", "subject", "realidx") if key in record}
            disagree += len(answer) == 1 and "answer" in record and options.get(answer[0]) != str(record["answer"])
            sizes[len(options)] += 1
            yield Raw(source, language, split_of(path.name), path.name, where, need(record, "question", where, str, form), options,
                      answer, id=f"{source}-{record['realidx']}" if isinstance(record.get("realidx"), str) else "",
                      rationale=text_or_empty(record.get("exp")), extra=extra)
    if form == "MedQA" and sizes[5]:
        notes.append(f"{sizes[5]} items have 5 options; the paper uses the 4-option files")
    if disagree:
        notes.append(f"{disagree} items whose answer text is not the text of their answer letter; the letter is taken")


def text_or_empty(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def read_igakuqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """IgakuQA: data/<year>/<exam>-<part>.jsonl; subject from the *_metadata file beside it; machine translations are passed over."""
    files = [p for p in files_under(path, (".jsonl",)) if re.fullmatch(r"\d+-[A-Z]\.jsonl", p.name)]
    if not files:
        raise UserError(f"{path}: no IgakuQA exam files (such as 2018/112-A.jsonl) below this folder")
    years = sorted({p.parent.name for p in files})
    notes.append(f"years {', '.join(years)}; the paper's are 2018 to 2022")
    for exam in files:
        metadata = exam.with_name(f"{exam.stem}_metadata.jsonl")
        subjects = {m.get("problem_id"): m.get("category") for _, m in read_jsonl(metadata)} if metadata.exists() else {}
        for number, record in read_jsonl(exam):
            where = f"{exam}:{number}"
            problem = need(record, "problem_id", where, str, "IgakuQA")
            answer = letters_in(need(record, "answer", where, list, "IgakuQA"))
            extra = {"year": exam.parent.name, "image_dependent": not need(record, "text_only", where, bool, "IgakuQA"),
                     "points": record.get("points")}
            if subjects.get(problem):
                extra["subject"] = subjects[problem]
            either = re.fullmatch(r"([a-z]) or ([a-z])", answer[0]) if len(answer) == 1 else None
            if either:
                # DIFFERS: what the paper made of "a or d" is not known. An answer_idx "A,D" would ask for both, so the first
                # accepted letter is the answer and the key answer_alternatives has them all.
                extra["answer_alternatives"] = [letter.upper() for letter in either.groups()]
                answer = extra["answer_alternatives"][:1]
                notes.append(f"{problem}: either of {', '.join(extra['answer_alternatives'])} was accepted; {answer[0]} is taken")
            yield Raw("igakuqa", "Japanese", None, exam.name, where, need(record, "problem_text", where, str, "IgakuQA"),
                      option_texts(need(record, "choices", where, list, "IgakuQA"), where, "IgakuQA"), answer,
                      id=f"igakuqa-{problem}", extra=extra)


def read_frenchmedmcqa(path: Path, notes: list[str]) -> Iterator[Raw]:
    """FrenchMedMCQA: JSON arrays; answers {a..e}, correct_answers a list of one to five letters."""
    form = "FrenchMedMCQA"
    for file in split_files(path, (".json",), notes):
        for where, item in json_items(file, form):
            extra = {"subject": item.get("subject_name")} if isinstance(item, dict) and item.get("subject_name") else {}
            yield Raw("frenchmedmcqa", "French", split_of(file.name), file.name, where, need(item, "question", where, str, form),
                      option_texts(need(item, "answers", where, dict, form), where, form), letters_in(item.get("correct_answers")),
                      id=f"frenchmedmcqa-{need(item, 'id', where, str, form)[:16]}", extra=extra)


def read_rumeddanet(path: Path, notes: list[str]) -> Iterator[Raw]:
    """RuMedDaNet: JSONL with context, question and да or нет."""
    form = "RuMedDaNet"
    for file in split_files(path, (".jsonl",), notes):
        for number, record in read_jsonl(file):
            where = f"{file}:{number}"
            context, question = (need(record, key, where, str, form) for key in ("context", "question"))
            said = text_or_empty(record.get("answer"))
            answer = {"да": ["A"], "нет": ["B"]}.get(said.casefold(), [said] if said else [])
            # MMedLM: yes/no made a two-choice question (METHOD.md 2.1).
            # DIFFERS: whether the paper kept the context is not known; without it the questions cannot be answered, so it comes
            # first, on a line of its own. An empty question stays empty, to be dropped.
            yield Raw("rumeddanet", "Russian", split_of(file.name), file.name, where,
                      f"{context.strip()}\n{question.strip()}" if question.strip() else "", {"A": "Да", "B": "Нет"}, answer,
                      id=f"rumeddanet-{record['pairID']}" if record.get("pairID") else "")


def read_rumedtest(path: Path, notes: list[str]) -> Iterator[Raw]:
    """RuMedTest's test file is private: there is nothing to score against."""
    files_under(path, (".jsonl",))
    raise UserError(f"{path}: RuMedTest is published without answers, so it cannot be a benchmark here; leave --source rumedtest out")
    yield  # a generator like the others


def read_headqa(path: Path, notes: list[str], *, code: str, language: str) -> Iterator[Raw]:
    """HEAD-QA: JSON {"language", "exams": {name: {"year", "category", "data": [...]}}}; ra names the right aid."""
    form, source, used = "HEAD-QA", "headqa" if code == "es" else f"headqa-{code}", 0
    for file in split_files(path, (".json",), notes):  # HEAD.json, all splits in one, is passed over
        exams = read_json(file)
        if need(exams, "language", str(file), str, form) != code:
            notes.append(f"passed over, its language is {exams['language']!r}: {file.name}")
            continue
        used += 1
        for name, exam in need(exams, "exams", str(file), dict, form).items():
            for item in need(exam, "data", f"{file}: {name}", list, form):
                qid = need(item, "qid", f"{file}: {name}", (str, int), form)
                where = f"{file}: {name} question {qid}"
                answers = need(item, "answers", where, list, form)
                texts = {str(need(a, "aid", where, (int, str), form)): need(a, "atext", where, str, form) for a in answers}
                right = "" if item.get("ra") is None else str(item["ra"]).strip()
                letters = dict(zip(texts, lettered(list(texts))))  # aid -> letter
                answer = [letters.get(right, right)] if right else []
                extra = {"year": exam.get("year"), "subject": exam.get("category"), "image_dependent": bool(item.get("image"))}
                # One exam question has the same group in Spanish and in its English translation: a split by chance never puts
                # one in train and the other in test.
                yield Raw(source, language, split_of(file.name), file.name, where, need(item, "qtext", where, str, form),
                          lettered(list(texts.values())), answer, id=f"headqa-{code}-{name}-{qid}", extra=extra,
                          group=f"headqa-{name}-{qid}")
    if not used:
        raise UserError(f"{path}: no HEAD-QA file in the language {code!r} (train_HEAD.json, dev_HEAD.json, test_HEAD.json)")
