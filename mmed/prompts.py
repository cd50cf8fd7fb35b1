"""Exam items and the prompts made of them.

In: MMedBench JSONL files (one language a file). Out: `ExamItem`s, prompt and target strings, chat messages.
In order: reading items, prompts and targets, few-shot and chat forms. Answers are read back out of what a
model wrote by `mmed/evaluation/answer_parser.py`.

Training, evaluation and API runs all build their strings here, so that no two numbers of a table come from
different prompts. References: finetune/train.py and inference/inference.py of the MMedLM repository.
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError
from mmed.utils.files import read_jsonl

# ------------------------------------------------------------------------------------------------------------
# Items


@dataclass
class ExamItem:
    """One multiple-choice question; `answer` holds the sorted letters of all right options."""

    question: str
    options: dict[str, str]  # letter -> text, A, B, C, ... without a gap
    answer: tuple[str, ...]
    rationale: str  # "" where the data has none
    language: str  # English name, as the prompt says it: "Japanese"
    key: str  # the given `id`, else a hash of language, question and options
    human_checked: bool = False
    human_check_passed: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # all other keys of the line


_OWN_KEYS = {"question", "options", "answer_idx", "rationale", "id", "human_checked", "human_check_passed"}


def item_key(language: str, question: str, options: Mapping[str, str]) -> str:
    """A name for an item that has none: 16 hex digits from what a candidate sees.

    >>> item_key("English", "Why?", {"A": "this", "B": "that"})
    'c9fab05566471d3d'
    """
    parts = [language, question, *(f"{letter}. {text}" for letter, text in options.items())]
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_items(path: str | Path, language: str | None = None) -> list[ExamItem]:
    """Read one MMedBench JSONL file; the language is the file's name (`Japanese.jsonl`) unless given."""
    path = Path(path)
    language = language or path.stem
    items: list[ExamItem] = []
    first_line: dict[str, int] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        item = _item_from_row(row, language, where)
        if "id" in row and row["id"] is not None:
            if item.key in first_line:
                raise UserError(f"{where}: id {item.key!r} is already used on line {first_line[item.key]}"
                                "; give every item its own id")
        elif item.key in first_line:  # the same question twice, without ids: both count, as published
            copy = 2
            while f"{item.key}-{copy}" in first_line:
                copy += 1
            item.key = f"{item.key}-{copy}"
        first_line[item.key] = number
        items.append(item)
    if not items:
        raise UserError(f"{path}: no items in this file; expected one JSON object a line")
    return items


def _item_from_row(row: dict, language: str, where: str) -> ExamItem:
    for name in ("question", "options", "answer_idx"):
        if name not in row:
            near = f" (it has {', '.join(sorted(map(str, row))) or 'none'})"
            raise UserError(
                f"{where}: key {name!r} is missing{near}; an item needs question, options and answer_idx")
    question, options, rationale = row["question"], row["options"], row.get("rationale")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: 'question' must be a text that is not empty, got {question!r:.60}")
    _check_options(options, where)
    answer = _answer_letters(row["answer_idx"], options, where)
    if rationale is not None and not isinstance(rationale, str):
        raise UserError(f"{where}: 'rationale' must be a text, got {type(rationale).__name__}")
    checked, passed = row.get("human_checked"), row.get("human_check_passed")
    for name, value in (("human_checked", checked), ("human_check_passed", passed)):
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{where}: {name!r} must be true, false or null, got {value!r:.60}")
    given = row.get("id")
    if given is not None and (not isinstance(given, str | int) or isinstance(given, bool) or given == ""):
        raise UserError(f"{where}: 'id' must be a text or a whole number, got {given!r:.60}")
    key = str(given) if given is not None else item_key(language, question, options)
    extra = {name: value for name, value in row.items() if name not in _OWN_KEYS}
    return ExamItem(question, dict(options), answer, rationale or "", language, key, bool(checked), passed,
                    extra)


def _check_options(options: Any, where: str) -> None:
    if not isinstance(options, dict) or not options:
        raise UserError(
            f"{where}: 'options' must be an object letter -> text with at least two, got {options!r:.60}")
    expected = [chr(ord("A") + i) for i in range(len(options))]
    if len(options) < 2 or len(options) > 26 or list(options) != expected:
        raise UserError(
            f"{where}: option letters must be A, B, C, ... in order, at least two and none skipped, "
            f"got {', '.join(options):.80}")
    for letter, text in options.items():
        if not isinstance(text, str):
            raise UserError(f"{where}: option {letter} must be a text, got {text!r:.60}")
    # some blank ones are published: IgakuQA 114C11 shows them in its question
    if not any(text.strip() for text in options.values()):
        raise UserError(f"{where}: no option has a text; leave out items whose options are pictures")


def _answer_letters(value: Any, options: Mapping[str, str], where: str) -> tuple[str, ...]:
    """`answer_idx` as sorted letters: "A,C", "A, C" and ["A", "C"] are the same answer."""
    # MMedLM: train.py takes a string or a list. DIFFERS: there any other type silently reuses the previous
    # item's
    # answer (D20), and "A, C" stays a different string from "A,C" (D24); here the first is an error and the
    # second is
    # normalised.
    letters = value.split(",") if isinstance(value, str) else value
    if not isinstance(letters, list) or not all(isinstance(letter, str) for letter in letters):
        raise UserError(
            f"{where}: 'answer_idx' must be letters, as in \"A,C\" or [\"A\", \"C\"], got {value!r:.60}")
    letters = [letter.strip() for letter in letters]
    if not any(letters):
        raise UserError(
            f"{where}: no answer: 'answer_idx' is empty; leave items without an answer out of the file")
    for letter in letters:
        if letter not in options:
            raise UserError(f"{where}: answer {letter!r} is not among the options {', '.join(options)}")
    if len(set(letters)) < len(letters):
        raise UserError(f"{where}: 'answer_idx' names an option twice: {value!r:.60}")
    return tuple(sorted(letters))


def read_benchmark(folder_or_file: str | Path) -> list[ExamItem]:
    """Read every `*.jsonl` of a folder in sorted order (or one file); keys are unique over all of it."""
    # DIFFERS: os.listdir there (D20) makes the order, and so the "seeded" shuffle, depend on the machine;
    # here it is
    # sorted.
    path = Path(folder_or_file)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path}: no *.jsonl file in this folder; expected MMedBench files such as English.jsonl")
    items: list[ExamItem] = []
    owner: dict[str, Path] = {}
    for file in files:
        for item in read_items(file):
            if item.key in owner:
                raise UserError(f"{file}: id {item.key!r} is also used in {owner[item.key]}"
                                "; ids must be unique over the whole benchmark")
            items.append(item)
        owner.update((item.key, file) for item in items[len(owner):])
    return items


# ------------------------------------------------------------------------------------------------------------
# Prompts and targets

# MMedLM: the Alpaca "with input" template, PROMPT_DICT["prompt_input"] of finetune/train.py.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
# MMedLM: both instructions, with the curly apostrophe of the first.
# DIFFERS: inference.py there has two spaces before "You should first" and train.py one (D25); training and
# evaluation
# share one here.
INSTRUCTION_RATIONALE = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account in "
    "{language}. "
    "Let’s solve this step-by-step. You should first give the reason in {language} for your choice. "
    "Then you should give the right answer index of the question.")
INSTRUCTION_ANSWER = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account. "
    "Answer with the best option directly."
)
# MMedLM: this sentence is appended to every question in every language (D18), so the published numbers
# include it.
STRAY_SENTENCE = "Which of the following is the best treatment for this patient?"
ANSWER_FORM = "###Answer: OPTION {letters} IS CORRECT."
STYLES = ("clean", "official")


def build_prompt(item: ExamItem, rationale: bool, style: str = "clean") -> str:
    """What the model reads, up to and including the colon of `### Response:`.

    The target begins right after that colon, without a space. ":" and "###" could merge into one token, so
    prompt and target are encoded apart and joined: the boundary is a token boundary in training and in
    generation alike (D19).
    """
    instruction = (INSTRUCTION_RATIONALE if rationale else INSTRUCTION_ANSWER).replace(
        "{language}", item.language)
    return ALPACA.format(instruction=instruction, input=build_input(item, style))


def build_input(item: ExamItem, style: str = "clean") -> str:
    """The question and its options on one line.

    >>> print(build_input(ExamItem("Why?", {"A": "this", "B": "that"}, ("A",), "", "English", "1")))
    ###Question: Why? ###Options: A. this B. that
    """
    _check_style(style)
    options = "".join(f"{letter}. {text} " for letter, text in item.options.items())
    if style == "official":  # MMedLM: stray sentence, and a space at the end
        return f"###Question: {item.question} {STRAY_SENTENCE} ###Options: {options}"
    # DIFFERS: without the stray sentence, which asks about a treatment where the question asks something
    # else, and
    # without the space at the end, which many tokenizers turn into a token of its own.
    return f"###Question: {item.question} ###Options: {options[:-1]}"


def build_target(item: ExamItem, rationale: bool, style: str = "clean") -> str:
    """What the model is to write (the end-of-text token is added where it is encoded); the same string in
    both styles.

    >>> item = ExamItem("Why?", {"A": "this", "B": "that"}, ("A", "B"), "Because.", "English", "1")
    >>> build_target(item, rationale=True)
    '###Rationale: Because.\\n###Answer: OPTION A,B IS CORRECT.'
    """
    _check_style(style)
    # MMedLM: letters joined by "," without a space
    answer = ANSWER_FORM.format(letters=",".join(item.answer))
    if not rationale:
        return answer
    if not item.rationale.strip():
        raise UserError(f"item {item.key!r} ({item.language}) has no rationale to train on"
                        "; train answers only, or add rationales first")
    return f"###Rationale: {item.rationale}\n{answer}"


def _check_style(style: str) -> None:
    if style not in STYLES:
        raise UserError(f"prompt style {style!r} is unknown; choose one of {', '.join(STYLES)}")


def build_few_shot(item: ExamItem,
                   examples: Sequence[ExamItem],
                   rationale: bool,
                   style: str = "clean") -> str:
    """Solved examples, then the item's own prompt, blank lines between; without examples the same as
    `build_prompt`.
    """
    solved = [
        build_prompt(shot, rationale, style) + build_target(shot, rationale, style) for shot in examples
    ]
    return "\n\n".join([*solved, build_prompt(item, rationale, style)])


def pick_examples(train: Sequence[ExamItem], item: ExamItem, k: int, seed: int = 0,
                  rationale: bool = False) -> list[ExamItem]:
    """k train items of the item's language, a function of train order, seed and item key; never the same
    question.

    With `rationale` only items that have one. Drawn by hashing and not by `random`, whose draws may change
    with Python.
    """
    pool = [shot for shot in train if shot.language == item.language and shot.question != item.question
            and (shot.rationale.strip() or not rationale)]
    if len(pool) < k:
        raise UserError(f"{k} examples asked for, but the train items hold only {len(pool)} usable ones in "
                        f"{item.language}; ask for fewer or give another train folder")
    picked: list[int] = []
    draw = 0
    while len(picked) < k:
        digest = hashlib.sha256(f"{seed}\x1f{item.key}\x1f{draw}".encode("utf-8", "surrogatepass")).digest()
        index = int.from_bytes(digest[:8], "big") % len(pool)
        draw += 1
        if index not in picked:
            picked.append(index)
    return [pool[index] for index in picked]


def build_messages(item: ExamItem, rationale: bool, style: str = "clean",
                   examples: Sequence[ExamItem] = ()) -> list[dict[str, str]]:
    """The item as chat messages for API and chat models: one user message, before it a user/assistant pair
    per example.

    No system message: not every server and template takes one.
    """
    # DIFFERS: the zero-shot prompts of the paper's API runs were never published. `official` therefore is its
    # fine-tuning instruction and input, followed by the output format, which a model that was not fine-tuned
    # cannot
    # know.
    messages = []
    for shot in examples:
        messages.append({"role": "user", "content": _chat_question(shot, rationale, style)})
        messages.append({"role": "assistant", "content": build_target(shot, rationale, style)})
    return [*messages, {"role": "user", "content": _chat_question(item, rationale, style)}]


def _chat_question(item: ExamItem, rationale: bool, style: str) -> str:
    instruction = (INSTRUCTION_RATIONALE if rationale else INSTRUCTION_ANSWER).replace(
        "{language}", item.language)
    if style == "clean":
        options = [f"{letter}. {text}" for letter, text in item.options.items()]
        body = "\n".join([f"###Question: {item.question}", "###Options:", *options])
    else:
        body = build_input(item, style)
    form = "Write nothing else. "
    if rationale:
        form = f"Write the reason in {item.language} first, beginning with \"###Rationale: \". "
    last = "End with" if rationale else "Write"
    return (
        f"{instruction}\n\n{body}\n\n{form}{last} exactly one line of this form, where X is the letter "
        f"of the "
        "right option (several right options: their letters joined by commas, as in A,C):\n" +
        ANSWER_FORM.format(letters="X"))
