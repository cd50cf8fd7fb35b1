"""Instruction tuning (--task=instruct): files of conversations or instructions -> packed rows.

In: JSON lines (also .gz) or a JSON array of OpenAI's `messages`, ShareGPT's `conversations`, or Alpaca's
fields. Out: rows of the chat template's text in which every answer of the assistant carries loss.
"""
from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmed.data import TRUNCATED, Example, ExamRows, truncate_prompt
from mmed.tokenization.chat_template import Message, check_messages, encode_conversation
from mmed.tokenizer import Tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import check_file, read_json, read_jsonl

TURNS = ("messages", "conversations")  # lists of turns: OpenAI's {role, content}, ShareGPT's {from, value}
# Fields of records and turns that change what is trained elsewhere, and are not read here.
UNREAD = ("system", "history", "tools", "functions", "tool_calls", "function_call", "reasoning_content",
          "thinking", "reasoning")
# With 0 or false in one of these an answer carries no loss (OpenAI; AgentInstruct, ms-swift; Axolotl).
UNTRAINED = ("weight", "loss", "train", "training")
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class InstructRows(ExamRows):
    """Conversations as packed rows, in the order and by the packing of exam items; loss on all answers."""

    def __init__(self, path: str, tokenizer: Tokenizer, sequence_length: int, seed: int, family: str = ""):
        self.T, self.seed = sequence_length, seed
        self.collect(encode_dialogue(key, messages, tokenizer, sequence_length, family)
                     for key, messages in read_conversations(path))
        if not self.examples:
            raise UserError(f"{path}: no conversation to train on; {', '.join(self.warnings)}")


def encode_dialogue(key: str, messages: Sequence[Message], tokenizer: Tokenizer, max_length: int,
                    family: str = "") -> tuple[Example | None, str]:
    """(example of at most max_length + 1 tokens or None, what happened to it: "" if it is whole).

    If too long, the oldest questions and answers are dropped, then the beginning of the last prompt; a last
    answer that leaves it less than 1/4 of max_length goes with it instead. No answer is trained in part.
    """
    if not messages:
        return None, "conversations without an answer are left out"
    system, turns = list(messages[:len(messages) % 2]), list(messages[len(messages) % 2:])

    def without(first: int) -> tuple[list[int], list[tuple[int, int]]]:  # that many questions and answers
        try:
            return encode_conversation(tokenizer, system + turns[2 * first:], family)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    (ids, answers), outcome = without(0), ""
    if len(ids) > max_length + 1:
        all_but_last = range(len(turns) // 2 - 1)
        dropped = bisect.bisect_left(all_but_last, -max_length - 1, key=lambda first: -len(without(first)[0]))
        (ids, answers), outcome = without(dropped), TRUNCATED
    if len(ids) > max_length + 1:
        answer = ids[answers[-1][0]:]
        if len(answer) > max_length * 3 // 4:
            if len(turns) == 2:
                return None, "conversations with a last answer longer than 3/4 of a row are left out"
            example, outcome = encode_dialogue(key, messages[:-2], tokenizer, max_length, family)
            return example, outcome or "last answers longer than 3/4 of a row went with their questions"
        prompt = truncate_prompt(ids[:-len(answer)], max_length + 1 - len(answer), tokenizer.named_bos_id)
        ids, answers = prompt + answer, [(len(prompt), max_length + 1)]
    later = [(end, first) for (_, end), (first, _) in itertools.pairwise(answers)]
    return Example(key, ids, answers[0][0], later), outcome


# -------------------------------------------------------------------------------------------------- reading

def read_conversations(path: str | Path) -> Iterator[tuple[str, list[Message]]]:
    """Yield ("FILE:RECORD", messages) of a file or of every *.jsonl of a folder; a question at the end that
    nobody answers is left out, so a conversation without an answer has no messages."""
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no *.jsonl file in this folder; name the file itself")
    for file in files:
        check_file(file)
        with open(file, encoding="utf-8-sig", errors="replace") as opened:
            is_array = opened.read(1 << 12).lstrip().startswith("[")
        for number, row in enumerate(read_json(file, math.inf), 1) if is_array else read_jsonl(file):
            try:
                yield f"{file.name}:{number}", _messages(row)
            except ValueError as error:
                raise UserError(f"{file}:{number}: {error}") from None


def _messages(row: Any) -> list[Message]:
    """The messages of one record; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    form = next((name for name in TURNS if row.get(name) is not None), "")
    turns = row[form] if form else _turns_of_instruction(row)
    if not isinstance(turns, list):
        raise ValueError(f"expected a list of turns, got {turns!r:.60}")
    reject_unread(row)
    messages: list[Message] = []
    for place, turn in enumerate(turns, 1):
        turn = turn if isinstance(turn, dict) else {}
        name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        speaker = ROLES.get(name) if isinstance(name, str) else None
        if not speaker:
            raise ValueError(f"turn {place}: 'role' must be one of {', '.join(ROLES)}, got {name!r:.60}")
        if not isinstance(content, str) or not (content.strip() or speaker == "system"):
            raise ValueError(f"turn {place} ({name}): 'content' must be a text that is not empty, got "
                             f"{content!r:.60}; leave this record out")
        reject_unread(turn)
        if off := [name for name in UNTRAINED if speaker == "assistant" and turn.get(name, 1) in (0, "0")]:
            raise ValueError(f"turn {place}: its {off[0]!r} is {turn[off[0]]}, but all answers are trained; "
                             "leave it out")
        if content.strip():
            messages.append({"role": speaker, "content": content})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if messages:
        check_messages(messages, "assistant")
    return messages


def reject_unread(part: dict) -> None:
    for name in UNREAD:
        if part.get(name):
            raise ValueError(f"{name!r} is not read; write it into the messages, or leave this record out")


def _turns_of_instruction(row: dict) -> list[dict]:
    """Alpaca's fields, as in PMC-LLaMA's release.json, which has `source` and `sample_id` besides."""
    for name, kind in (("instruction", str), ("input", str | None), ("output", str)):
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name!r} must be a text, got {row.get(name)!r:.60}; a record needs messages, "
                             f"conversations, or instruction and output (it has {', '.join(row)})")
    # MMedLM: MMed-Llama 3-EnIns has the instruction as system message and the input as user message.
    system, question = row["instruction"], row.get("input") or ""
    if not question.strip():
        system, question = "", system
    texts = {"system": system, "user": question, "assistant": row["output"]}
    return [{"role": role, "content": text} for role, text in texts.items()]
