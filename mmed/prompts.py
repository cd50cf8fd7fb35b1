"""Exam items and the prompts made of them; conversations for instruction tuning.

In: MMedBench JSONL files (one language a file), files of conversations or instructions.
Out: `ExamItem`s, prompt and target strings, chat messages.
Training, evaluation and API runs all build their strings here, so that no two numbers of a table come from
different prompts. `mmed/evaluation/answer_parser.py` reads answers back out of what a model wrote.
References: finetune/train.py and inference/inference.py of the MMedLM repository.
"""
from __future__ import annotations

import gzip
import hashlib
import json
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mmed.tokenization.chat_template import Message, check_messages
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import check_file, read_jsonl

# ------------------------------------------------------------------------------------------------------ items

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


# Key of a line -> its type; one with None may be missing or null
KEYS = {"question": str, "options": dict, "answer_idx": str | list, "rationale": str | None,
        "id": str | int | None, "human_checked": bool | None, "human_check_passed": bool | None}


def item_key(language: str, question: str, options: Mapping[str, str]) -> str:
    """A name for an item that has none: 16 hex digits from what a candidate sees.

    >>> item_key("English", "Why?", {"A": "this", "B": "that"})
    'c9fab05566471d3d'
    """
    return _digest([language, question, *(f"{letter}. {text}" for letter, text in options.items())])[:16]


def _digest(parts: Iterable[object]) -> str:
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
    """One line as an item; ValueError says what is wrong with it."""
    for name, kind in KEYS.items():
        if not isinstance(row.get(name), kind):
            expected = getattr(kind, "__name__", str(kind))
            raise ValueError(f"{name!r} must be {expected}, got {row[name]!r:.60}" if name in row else
                             f"{name!r} is missing (it has {', '.join(row) or 'no key'}); an item needs "
                             "question, options and answer_idx")
    question, options = row["question"], row["options"]
    if not question.strip():
        raise ValueError("'question' must be a text that is not empty")
    if not 2 <= len(options) <= 26 or list(options) != list(string.ascii_uppercase[:len(options)]):
        raise ValueError("option letters must be A, B, C, ... in order, at least two and none skipped, got "
                         f"{', '.join(options):.80}")
    for letter, text in options.items():
        if not isinstance(text, str):
            raise ValueError(f"option {letter} must be a text, got {text!r:.60}")
    # some blank ones are published: IgakuQA 114C11 shows them in its question
    if not any(map(str.strip, options.values())):
        raise ValueError("no option has a text; leave out items whose options are pictures")
    answer = _answer_letters(row["answer_idx"], options)
    key = item_key(language, question, options) if row.get("id") is None else str(row["id"])
    extra = {name: value for name, value in row.items() if name not in KEYS}
    return ExamItem(question, dict(options), answer, row.get("rationale") or "", language, key,
                    bool(row.get("human_checked")), row.get("human_check_passed"), extra)


def _answer_letters(value: str | list, options: Mapping[str, str]) -> tuple[str, ...]:
    """`answer_idx` as sorted letters: "A,C", "A, C" and ["A", "C"] are the same answer."""
    # MMedLM: train.py takes a string or a list.
    # DIFFERS: there any other type silently reuses the previous item's answer (D20), and "A, C" stays a
    # different string from "A,C" (D24); here the first is an error and the second is normalised.
    letters = [str(letter).strip() for letter in (value.split(",") if isinstance(value, str) else value)]
    if not any(letters):
        raise ValueError("no answer: 'answer_idx' is empty; leave items without an answer out of the file")
    if wrong := [letter for letter in letters if letter not in options]:
        raise ValueError(f"answer {wrong[0]!r} is not among the options {', '.join(options)}")
    if len(set(letters)) < len(letters):
        raise ValueError(f"'answer_idx' names an option twice: {value!r:.60}")
    return tuple(sorted(letters))


def read_benchmark(folder_or_file: str | Path) -> list[ExamItem]:
    """Read every `*.jsonl` of a folder in sorted order (or one file); keys are unique over all of it."""
    # DIFFERS: os.listdir there (D20) makes the order, and so the "seeded" shuffle, depend on the machine;
    # here it is sorted.
    path = Path(folder_or_file)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path}: no *.jsonl file in this folder; expected MMedBench files such as English.jsonl")
    items: dict[str, ExamItem] = {}
    for file in files:
        own = {item.key: item for item in read_items(file)}
        if twice := own.keys() & items.keys():
            raise UserError(f"{file}: id {min(twice)!r} is also used in another file; ids must be unique in "
                            "the whole benchmark")
        items |= own
    return list(items.values())


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
    prompt and target are encoded apart and joined, in training and in generation alike (D19).
    """
    return ALPACA.format(instruction=_instruction(item, rationale), input=build_input(item, style))


def _instruction(item: ExamItem, rationale: bool) -> str:
    return (INSTRUCTION_RATIONALE if rationale else INSTRUCTION_ANSWER).replace("{language}", item.language)


def build_input(item: ExamItem, style: str = "clean") -> str:
    """The question and its options on one line.

    >>> print(build_input(ExamItem("Why?", {"A": "this", "B": "that"}, ("A",), "", "English", "1")))
    ###Question: Why? ###Options: A. this B. that
    """
    if style not in STYLES:
        raise UserError(f"prompt style {style!r} is unknown; choose one of {', '.join(STYLES)}")
    options = "".join(f"{letter}. {text} " for letter, text in item.options.items())
    if style == "official":  # MMedLM: stray sentence, and a space at the end
        return f"###Question: {item.question} {STRAY_SENTENCE} ###Options: {options}"
    # DIFFERS: without the stray sentence, which asks about a treatment where the question asks something
    # else, and without the space at the end, which many tokenizers turn into a token of its own.
    return f"###Question: {item.question} ###Options: {options[:-1]}"


def build_target(item: ExamItem, rationale: bool, style: str = "clean") -> str:
    """What the model is to write, the same in both styles; the end-of-text token is added on encoding.

    >>> item = ExamItem("Why?", {"A": "this", "B": "that"}, ("A", "B"), "Because.", "English", "1")
    >>> build_target(item, rationale=True)
    '###Rationale: Because.\\n###Answer: OPTION A,B IS CORRECT.'
    """
    # MMedLM: letters joined by "," without a space
    answer = ANSWER_FORM.format(letters=",".join(item.answer))
    if not rationale:
        return answer
    if not item.rationale.strip():
        raise UserError(f"item {item.key!r} ({item.language}) has no rationale to train on"
                        "; train answers only, or add rationales first")
    return f"###Rationale: {item.rationale}\n{answer}"


def build_few_shot(item: ExamItem, examples: Sequence[ExamItem], rationale: bool,
                   style: str = "clean") -> str:
    """Solved examples, then the item's own prompt, with blank lines between."""
    solved = [build_prompt(shot, rationale, style) + build_target(shot, rationale) for shot in examples]
    return "\n\n".join([*solved, build_prompt(item, rationale, style)])


def pick_examples(train: Sequence[ExamItem], item: ExamItem, k: int, seed: int = 0,
                  rationale: bool = False) -> list[ExamItem]:
    """k train items of the item's language, which follow from train order, seed and item key; never the same
    question. With `rationale` only items that have one.
    """
    pool = [shot for shot in train if shot.language == item.language and shot.question != item.question
            and (shot.rationale.strip() or not rationale)]
    if len(pool) < k:
        raise UserError(f"{k} examples asked for, but the train items hold only {len(pool)} usable ones in "
                        f"{item.language}; ask for fewer or give another train folder")
    picked: dict[int, ExamItem] = {}
    draw = 0
    while len(picked) < k:  # by hashing and not by `random`, whose draws may change with Python
        index = int(_digest([seed, item.key, draw])[:16], 16) % len(pool)
        picked.setdefault(index, pool[index])
        draw += 1
    return list(picked.values())


def build_messages(item: ExamItem, rationale: bool, style: str = "clean",
                   examples: Sequence[ExamItem] = ()) -> list[dict[str, str]]:
    """The item as chat messages: one user message, before it a user and an assistant message per example.

    No system message: not every server and template takes one.
    """
    # DIFFERS: the zero-shot prompts of the paper's API runs were never published. `official` therefore is its
    # fine-tuning instruction and input, followed by the output format, which a model that was not fine-tuned
    # cannot know.
    messages = []
    for shot in examples:
        messages.append({"role": "user", "content": _chat_question(shot, rationale, style)})
        messages.append({"role": "assistant", "content": build_target(shot, rationale)})
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


# ---------------------------------------------------------------------------------------------- conversations

# Name of the list of turns -> names of a turn's role and text: OpenAI's form and ShareGPT's
TURNS = {"messages": ("role", "content"), "conversations": ("from", "value")}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def read_conversations(path: str | Path) -> Iterator[tuple[str, list[Message]]]:
    """Yield ("FILE:RECORD", messages) of a file or of every *.jsonl of a folder; a question at the end that
    nobody answers is left out, so a conversation without an answer has no messages.
    """
    path = Path(path)
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, row in _read_records(file):
            try:
                yield f"{file.name}:{number}", _messages(row)
            except ValueError as error:
                raise UserError(f"{file}:{number}: {error}") from None


def _messages(row: Any) -> list[Message]:
    """The messages of one record; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    form = next((name for name in TURNS if row.get(name) is not None), None)
    messages = _turns(row[form], *TURNS[form]) if form else _instruction_and_answer(row)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if messages:
        check_messages(messages, "assistant")
    return messages


def _turns(turns: Any, role: str, text: str) -> list[Message]:
    if not isinstance(turns, list):
        raise ValueError(f"expected a list of turns, got {turns!r:.60}")
    messages = []
    for place, turn in enumerate(turns, 1):
        name, content = (turn.get(role), turn.get(text)) if isinstance(turn, dict) else (None, None)
        if not isinstance(name, str) or name not in ROLES:
            raise ValueError(f"turn {place}: {role!r} must be one of {', '.join(ROLES)}, got {name!r:.60}")
        if not isinstance(content, str) or not (content.strip() or ROLES[name] == "system"):
            raise ValueError(f"turn {place} ({name}): {text!r} must be a text that is not empty, got "
                             f"{content!r:.60}; leave this record out")
        messages.append({"role": ROLES[name], "content": content})
    return [message for message in messages if message["content"].strip()]


def _instruction_and_answer(row: dict) -> list[Message]:
    """Alpaca's fields, as in PMC-LLaMA's release.json, which has `source` and `sample_id` besides."""
    for name, kind in (("instruction", str), ("input", str | None), ("output", str)):
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name!r} must be a text, got {row.get(name)!r:.60}; a record needs messages, "
                             f"conversations, or instruction and output (it has {', '.join(row)})")
    if not row["output"].strip():
        raise ValueError("'output' is empty; leave this record out")
    # MMedLM: MMed-Llama 3-EnIns has the instruction as system message and the input as user message.
    texts = [text for text in (row["instruction"], row.get("input") or "") if text.strip()]
    if not texts:
        raise ValueError("'instruction' is empty; leave this record out")
    roles = ("system", "user")[-len(texts):]
    messages = [*zip(roles, texts), ("assistant", row["output"])]
    return [{"role": role, "content": text} for role, text in messages]


def _read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, record) of JSON lines or a JSON array, each also .gz, or of a parquet file."""
    check_file(path)
    if path.suffix == ".parquet":
        arrow, parquet = require_extra("pyarrow", "parquet"), require_extra("pyarrow.parquet", "parquet")
        try:
            batches = parquet.ParquetFile(path).iter_batches(1024)
            yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1)
        except arrow.ArrowException as error:
            raise UserError(f"{path}: not a parquet file, or damaged ({error})") from None
        return
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            is_array = file.read(1 << 12).lstrip().startswith("[")
            file.seek(0)
            records = json.load(file) if is_array else []
    except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not JSON lines, a JSON array or parquet, or damaged ({error})") from None
    yield from enumerate(records, 1) if is_array else read_jsonl(path)
