"""Exam items, and the prompts built from them.

In: MMedBench JSONL files (one language a file). Out: `ExamItem`s, prompt and target strings, chat messages.
Training, evaluation and API runs all build their strings here, so that no two numbers of a table come from
different prompts. References: finetune/train.py and inference/inference.py of the MMedLM repository.
"""
from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError
from mmed.utils.files import read_jsonl

# ------------------------------------------------------------------------------------------------------ items

@dataclass
class ExamItem:
    question: str
    options: dict[str, str]  # letter -> text, A, B, C, ... without a gap
    answer: tuple[str, ...]  # sorted letters of all correct options
    rationale: str  # "" where the data has none
    language: str  # English name, as in the prompt: "Japanese"
    key: str  # the given `id`, else a hash of language, question and options
    human_check_passed: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # all other keys of the line


CONVERT = "python -m data_prep.mmedbench converts an exam as published"
ORDER = "option_order"  # in the `extra` of a copy with reordered options: its number

# Key of a line -> its type; one with None may be missing or null
KEYS = {"question": str, "options": dict, "answer_idx": str | list, "rationale": str | None,
        "id": str | int | None, "human_checked": bool | None, "human_check_passed": bool | None}


def item_key(language: str, question: str, options: Mapping[str, str]) -> str:
    """An id for an item without one: 16 hex digits, hashed from what a candidate sees."""
    return digest([language, question, *(f"{letter}. {text}" for letter, text in options.items())])[:16]


def digest(parts: Iterable[object]) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def read_items(path: str | Path, language: str | None = None) -> list[ExamItem]:
    """Read one MMedBench JSONL file; the language is the file's name (`Japanese.jsonl`) unless given."""
    path = Path(path)
    items: dict[str, ExamItem] = {}
    for number, row in read_jsonl(path):
        try:
            item = _item_from_row(row, language or path.stem)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        key, copy = item.key, 2
        while item.key in items:
            if row.get("id") is not None:
                raise UserError(f"{path}:{number}: id {key!r} is already used; give every item its own id")
            item.key = f"{key}-{copy}"  # the same question twice, without ids: both count, as published
            copy += 1
        items[item.key] = item
    if not items:
        raise UserError(f"{path}: no items in this file; expected one JSON object a line")
    return list(items.values())


def _item_from_row(row: dict, language: str) -> ExamItem:
    for name, kind in KEYS.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name!r} must be {getattr(kind, '__name__', kind)}, "
                             f"got {row.get(name)!r:.60}; {CONVERT}")
    question, options = row["question"], row["options"]
    if not 2 <= len(options) <= 26 or list(options) != list(string.ascii_uppercase[:len(options)]):
        raise ValueError("option letters must be A, B, C, ... in order, at least two and none skipped, got "
                         f"{', '.join(options):.80}")
    if not all(isinstance(text, str) for text in options.values()):
        raise ValueError(f"all options must be texts, got {list(options.values())!r:.80}")
    # some published options are blank: IgakuQA 114C11 shows its options in the question
    if not question.strip() or not any(map(str.strip, options.values())):
        raise ValueError("the question, and at least one option, must have a text")
    answer = _answer_letters(row["answer_idx"], options)
    key = item_key(language, question, options) if row.get("id") is None else str(row["id"])
    extra = {name: value for name, value in row.items() if name not in KEYS}
    return ExamItem(question, dict(options), answer, row.get("rationale") or "", language, key,
                    row.get("human_check_passed"), extra)


def _answer_letters(value: str | list, options: Mapping[str, str]) -> tuple[str, ...]:
    # MMedLM: train.py takes a string or a list.
    # DIFFERS: there any other type silently reuses the previous item's answer (D20), and "A, C" stays a
    # different string from "A,C" (D24); here the first is an error and the second is normalised.
    letters = [str(letter).strip() for letter in (value.split(",") if isinstance(value, str) else value)]
    if not letters or not set(letters) <= options.keys() or len(set(letters)) < len(letters):
        raise ValueError(f"the answer {value!r:.60} must be one or more of the options {', '.join(options)}, "
                         "each once")
    return tuple(sorted(letters))


def read_benchmark(folder_or_file: str | Path) -> list[ExamItem]:
    """Read every `*.jsonl` of a folder in sorted order (or one file); keys are unique over all of it."""
    # DIFFERS: os.listdir there (D20) makes the order, and so the "seeded" shuffle, depend on the machine;
    # here it is sorted.
    path = Path(folder_or_file)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    files = [file for file in files if file.name != "dropped.jsonl"]  # of data_prep.mmedbench
    if not files:
        split = f"give one of its splits, such as {path / 'Test'}" if (path / "Test").is_dir() else CONVERT
        raise UserError(f"{path}: no *.jsonl file in this folder, such as English.jsonl; {split}")
    items: dict[str, ExamItem] = {}
    for file in files:
        try:
            own = {item.key: item for item in read_items(file)}
        except UserError as error:
            if file.suffix == ".jsonl" or not file.exists() or CONVERT in str(error):
                raise
            raise UserError(f"{error}; {CONVERT}") from None
        if twice := own.keys() & items.keys():
            raise UserError(f"{file}: id {min(twice)!r} is also used in another file of the benchmark")
        items |= own
    return list(items.values())


def permuted(item: ExamItem, count: int, seed: int) -> list[ExamItem]:
    """The item and copies with rotated options and answer keys, which show whether a model chooses options
    or letters."""
    letters, copies = list(item.options), [item]
    # by hashing: the draws of `random` may change with Python
    shifts = sorted(range(1, len(letters)), key=lambda shift: digest([repr((seed, item.key, 0, shift))]))
    for number, shift in enumerate(shifts[:count - 1], 1):
        old = letters[shift:] + letters[:shift]
        options = {new: item.options[letter] for new, letter in zip(letters, old)}
        answer = tuple(sorted(letters[old.index(letter)] for letter in item.answer))
        copies.append(replace(item, options=options, answer=answer, extra=item.extra | {ORDER: number}))
    return copies


# ---------------------------------------------------------------------------------------- prompts and targets

# MMedLM: the Alpaca "with input" template, PROMPT_DICT["prompt_input"] of finetune/train.py.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
# MMedLM: both instructions, with the curly apostrophe of the first.
# DIFFERS: inference.py there has two spaces before "You should first" and train.py one (D25); training and
# evaluation share one here.
INSTRUCTION_RATIONALE = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account in "
    "{language}. Let’s solve this step-by-step. You should first give the reason in {language} for your "
    "choice. Then you should give the right answer index of the question.")
INSTRUCTION_ANSWER = (
    "You're a {language} doctor, kindly address the medical queries according to the patient's account. "
    "Answer with the best option directly."
)
# MMedLM: this sentence is appended to every question in every language (D18), so the published numbers
# include it.
STRAY_SENTENCE = "Which of the following is the best treatment for this patient?"
ANSWER_FORM = "###Answer: OPTION {letters} IS CORRECT."
BEFORE_LETTERS, AFTER_LETTERS = ANSWER_FORM.split("{letters}")
# For the likelihood of an option's own text: base models rarely answer with a letter. The options are not
# listed ("cloze formulation", OLMES, arXiv 2406.08446).
CLOZE = "Question: {question}\nAnswer:"
CLOZE_ALONE = "Answer:"  # before an option's text without the question: its prior (PMI, arXiv 2104.08315)


def build_prompt(item: ExamItem, rationale: bool, style: str = "clean") -> str:
    """What the model reads, up to and including the colon of `### Response:`, where the target begins.

    ":" and "###" could merge into one token, so prompt and target are always encoded apart and joined (D19).
    """
    return ALPACA.format(instruction=_instruction(item, rationale), input=build_input(item, style))


def _instruction(item: ExamItem, rationale: bool) -> str:
    return (INSTRUCTION_RATIONALE if rationale else INSTRUCTION_ANSWER).replace("{language}", item.language)


def build_input(item: ExamItem, style: str = "clean") -> str:
    """The question and its options on one line."""
    options = "".join(f"{letter}. {text} " for letter, text in item.options.items())
    if style == "official":  # MMedLM: stray sentence, and a space at the end
        return f"###Question: {item.question} {STRAY_SENTENCE} ###Options: {options}"
    # DIFFERS: without the stray sentence, which asks about a treatment where the question asks something
    # else, and without the space at the end, which many tokenizers turn into a token of its own.
    return f"###Question: {item.question} ###Options: {options[:-1]}"


def build_target(item: ExamItem, rationale: bool) -> str:
    """The text the model should write, in both styles; the end-of-text token is added on encoding."""
    # MMedLM: letters joined by "," without a space
    answer = ANSWER_FORM.format(letters=",".join(item.answer))
    if not rationale:
        return answer
    if not item.rationale.strip():
        raise UserError(f"item {item.key!r} ({item.language}) has no rationale to train on; train answers "
                        "only, or add rationales first")
    return f"###Rationale: {item.rationale}\n{answer}"


def build_few_shot(item: ExamItem, examples: Sequence[ExamItem], rationale: bool,
                   style: str = "clean") -> str:
    """Solved examples, then the item's own prompt, with blank lines between."""
    solved = [build_prompt(shot, rationale, style) + build_target(shot, rationale) for shot in examples]
    return "\n\n".join([*solved, build_prompt(item, rationale, style)])


def pick_examples(train: Sequence[ExamItem], item: ExamItem, k: int, seed: int = 0,
                  rationale: bool = False) -> list[ExamItem]:
    """k train items in the item's language, except its own question; with `rationale`, only with one."""
    pool = [shot for shot in train if shot.language == item.language and shot.question != item.question
            and (shot.rationale.strip() or not rationale)]
    if len(pool) < k:
        which = " with a rationale (--mode answer needs none)" if rationale else ""
        raise UserError(f"{k} examples requested, but the train items have only {len(pool)} usable ones in "
                        f"{item.language}{which}; ask for fewer or give another train folder")
    picked: dict[int, ExamItem] = {}
    for draw in count():  # by hashing and not by `random`, whose draws may change with Python
        if len(picked) == k:
            break
        index = int(digest([seed, item.key, draw])[:16], 16) % len(pool)
        picked.setdefault(index, pool[index])
    return list(picked.values())


def build_messages(item: ExamItem, rationale: bool, style: str = "clean",
                   examples: Sequence[ExamItem] = ()) -> list[dict[str, str]]:
    """The item as a user message after its examples; not every server and template takes a system message."""
    # DIFFERS: the zero-shot prompts of the paper's API runs were never published. `official` therefore is its
    # fine-tuning instruction and input, followed by the output format, which a model that was not fine-tuned
    # cannot know.
    messages = []
    for shot in examples:
        messages += [{"role": "user", "content": _chat_question(shot, rationale, style)},
                     {"role": "assistant", "content": build_target(shot, rationale)}]
    return [*messages, {"role": "user", "content": _chat_question(item, rationale, style)}]


def _chat_question(item: ExamItem, rationale: bool, style: str) -> str:
    body = build_input(item, style)
    if style == "clean":
        options = [f"{letter}. {text}" for letter, text in item.options.items()]
        body = "\n".join([f"###Question: {item.question}", "###Options:", *options])
    form = "Write nothing else. Write"
    if rationale:
        form = f"Write the reason in {item.language} first, beginning with \"###Rationale: \". End with"
    return (
        f"{_instruction(item, rationale)}\n\n{body}\n\n{form} exactly one line of this form, where X is the "
        "letter of the right option (several right options: their letters joined by commas, as in A,C):\n"
        + ANSWER_FORM.format(letters="X"))


def build_cloze(item: ExamItem, examples: Sequence[ExamItem] = ()) -> str:
    """The question after solved examples, with blank lines between; it ends before the answer's space."""
    solved = [CLOZE.format(question=shot.question)
              + scored_string("option_text", ",".join(shot.answer), shot.options) for shot in examples]
    return "\n\n".join([*solved, CLOZE.format(question=item.question)])


def scored_string(mode: str, letters: str, options: Mapping[str, str]) -> str:
    """The string whose likelihood scores a candidate; a blank option is represented by its letter.

    >>> scored_string("option_text", "A,B", {"A": "salt", "B": "iron "})
    ' salt, iron'
    """
    if mode == "loglikelihood":
        return ANSWER_FORM.format(letters=letters)
    return " " + ", ".join(options[letter].strip() or letter for letter in letters.split(","))
