"""The questions of an evaluation: prompts within the context length, candidates, and where an answer ends.

Input:  exam items and the options of `mmed.eval`.
Output: `Question`s, one per item and mode; `cut_at_answer`, a text up to its first complete answer.
"""
from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from mmed.generate import encode_prompt
from mmed.prompts import ExamItem, build_few_shot, build_messages, pick_examples
from mmed.tokenization.chat_template import encode_chat, render_chat, template_name
from mmed.utils.errors import UserError

# MMedLM: inference.py allows 1,000 new tokens in both runs. DIFFERS: an answer alone takes about ten
# tokens, so the clean style stops an answer-only run at this many: a model that has not answered by then
# rambles, and 1,000 tokens of that would be most of an evaluation's cost.
ANSWER_TOKENS = 64
# With --stop answer, a text ends with its first complete answer, or before the headings of the prompt,
# where a base model goes on with an exercise of its own.
COMPLETE = re.compile(r"###Answer: OPTION [A-Z](?:, ?[A-Z])* IS CORRECT\."
                      r"|(?=\s*(?:### ?(?:Instruction|Input|Response):|Below is an instruction))")
# Reasoning, which may quote an answer: before the closing tag, or before the final channel (gpt-oss)
REASONING_START = re.compile(r"<think>|<\|channel\|>")
REASONING_END = re.compile(r".*(?:</think>|<\|channel\|>final\b[^<]*<\|message\|>)", re.S)
STOP_WINDOW = 48  # newest tokens in which a complete answer is looked for


@dataclass(frozen=True)
class Question:
    """One item as the model gets it in one mode; `ids` for local decoding, `body` for an API."""

    item: ExamItem
    mode: str
    prompt: str
    ids: list[int]
    body: dict = field(default_factory=dict)

    @property
    def prompt_hash(self) -> str:
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# (item, solved examples, whether a rationale is asked for) -> (prompt, ids)
Encoder = Callable[[ExamItem, Sequence[ExamItem], bool], tuple[str, list[int]]]


def limit_items(items: list[ExamItem], limit: int) -> list[ExamItem]:
    """The first `limit` items of each language (0: all)."""
    seen: dict[str, int] = {}
    kept = []
    for item in items:
        seen[item.language] = seen.get(item.language, 0) + 1
        if not limit or seen[item.language] <= limit:
            kept.append(item)
    return kept


def modes_of(options: argparse.Namespace) -> list[str]:
    """What is run for each item, the longest texts first."""
    modes = []
    if options.scoring != "loglikelihood":
        modes += ["rationale", "answer"] if options.mode == "both" else [options.mode]
    return modes + (["loglikelihood"] if options.scoring != "generate" else [])


def token_limit(mode: str, options: argparse.Namespace) -> int:
    """The most new tokens of a text; chat models end by themselves, and may reason first."""
    plain = options.chat_template == "none" and (not options.api or options.completions)
    if mode != "rationale" and options.style == "clean" and plain:
        return min(options.max_new_tokens, ANSWER_TOKENS)
    return options.max_new_tokens


def examples_for(
    train: Sequence[ExamItem], item: ExamItem, mode: str, options: argparse.Namespace
) -> list[ExamItem]:
    """The solved examples before an item."""
    if not options.shots:
        return []
    return pick_examples(train, item, options.shots, options.seed, mode == "rationale")


def build_questions(
    items: Sequence[ExamItem],
    mode: str,
    options: argparse.Namespace,
    train: Sequence[ExamItem],
    encode: Encoder,
    context_length: int,
    bos_id: int | None = None,
) -> list[Question]:
    """The prompts of a mode; one that is too long to be answered is an error, or loses its beginning."""
    questions = []
    reserved = min(token_limit(mode, options), context_length // 4)
    for item in items:
        prompt, ids = encode(item, examples_for(train, item, mode, options), mode == "rationale")
        if len(ids) + reserved > context_length:
            if options.too_long == "error":
                raise UserError(
                    f"item {item.key} ({item.language}): the prompt ({len(ids):,} tokens) plus {reserved:,} "
                    f"reserved for the answer exceeds the context length of {context_length:,}; use fewer "
                    "--shots, or --too_long truncate to drop tokens from the left, as training does")
            start = ids[:1] if ids[0] == bos_id else []
            ids = start + ids[len(ids) - (context_length - reserved - len(start)):]
        questions.append(Question(item, mode, prompt, ids))
    return questions


def encoder_of(model, tokenizer, options: argparse.Namespace) -> Encoder:
    """How an item becomes a prompt: as published, or (--chat_template) as messages of an instruct model."""
    name = options.chat_template
    if name == "auto":
        name = template_name(tokenizer, model.config.family)
    if name is None:
        raise UserError(f"{options.model}: its tokenizer has no chat template (a base model); leave out "
                        "--chat_template")

    def encode(item: ExamItem, shots: Sequence[ExamItem], rationale: bool) -> tuple[str, list[int]]:
        if name == "none":
            prompt = build_few_shot(item, shots, rationale, options.style)
            return prompt, encode_prompt(tokenizer, prompt)
        messages = build_messages(item, rationale, options.style, shots)
        return render_chat(tokenizer, messages, name=name), encode_chat(tokenizer, messages, name=name)

    return encode


def candidates(item: ExamItem) -> list[str]:
    """The answers that log-likelihood scoring chooses among, as `metrics.chance_level` counts them.

    >>> candidates(ExamItem("?", dict.fromkeys("ABC", "x"), ("A",), "", "English", "1"))
    ['A', 'B', 'C']
    >>> candidates(ExamItem("?", dict.fromkeys("ABC", "x"), ("A", "B"), "", "English", "1"))
    ['A,B', 'A,C', 'B,C', 'A,B,C']
    """
    sizes = range(2, len(item.options) + 1) if len(item.answer) > 1 else (1,)
    return [",".join(letters) for size in sizes for letters in combinations(item.options, size)]


def cut_at_answer(text: str) -> str:
    """Truncate a text after its first complete answer; what a model quotes while it reasons is no answer.

    >>> cut_at_answer("###Answer: OPTION A IS CORRECT. And now")
    '###Answer: OPTION A IS CORRECT.'
    >>> cut_at_answer("<think>###Answer: OPTION B IS CORRECT. No.</think>###Answer: OPTION A IS CORRECT. And")
    '<think>###Answer: OPTION B IS CORRECT. No.</think>###Answer: OPTION A IS CORRECT.'
    """
    return text[:answer_end(text)]


def answer_end(text: str) -> int | None:
    """Where the first complete answer of a text ends; None if there is none yet."""
    reasoning = REASONING_END.match(text)
    if not reasoning and REASONING_START.search(text):
        return None
    match = COMPLETE.search(text, reasoning.end() if reasoning else 0)
    return match.end() if match else None
