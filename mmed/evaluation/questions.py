"""Builds the questions of an evaluation: prompts within the context length, and candidate answers."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from typing import Any

from mmed.data import truncate_prompt
from mmed.evaluation.options import SCORINGS, EvalConfig
from mmed.evaluation.results import text_row
from mmed.evaluation.thoughts import remove_thoughts
from mmed.generate import encode_prompt
from mmed.prompts import (
    ExamItem,
    build_cloze,
    build_few_shot,
    build_messages,
    digest,
    pick_examples,
    scored_string,
)
from mmed.tokenization.chat_template import encode_chat
from mmed.utils.errors import UserError

# MMedLM: inference.py allows 1,000 new tokens in both runs. DIFFERS: an answer alone takes about ten
# tokens, so the clean style stops an answer-only run at this many: a model that has not answered by then
# rambles, and 1,000 tokens of that would be most of an evaluation's cost.
ANSWER_TOKENS = 64
# With --stop answer, a text ends with its first complete answer, or before the headings of the prompt,
# where a base model continues with an exercise of its own.
COMPLETE = re.compile(r"###Answer: OPTION [A-Z](?:, ?[A-Z])* IS CORRECT\."
                      r"|(?=\s*(?:### ?(?:Instruction|Input|Response):|Below is an instruction))")
STOP_WINDOW = 48  # how many of the newest tokens to search for a complete answer


@dataclass(frozen=True)
class Question:
    """One item as given to the model in one mode; `ids` for local decoding, `bodies` for an API."""

    item: ExamItem
    mode: str
    prompt: str
    ids: list[int] = field(default_factory=list)  # letter likelihood: with the answer up to the letter
    bodies: list[dict[str, Any]] = field(default_factory=list)  # one call; likelihood: one per candidate
    choices: dict[str, Any] = field(default_factory=dict)  # likelihood: letters -> ids (API: string)

    @property
    def prompt_hash(self) -> str:
        return digest([self.prompt])[:16]


def modes_of(config: EvalConfig) -> list[str]:
    """The modes to run for each item, longest texts first."""
    texts = ["rationale", "answer"] if config.mode == "both" else [config.mode]
    return [mode for scoring in config.scoring.split(",")
            for mode in (texts if scoring == "generate" else [scoring])]


def token_limit(mode: str, config: EvalConfig) -> int:
    """The maximum number of new tokens of a text, including its thought; chat models stop by themselves."""
    is_chat = not config.server.completions if config.server else config.chat_template != "none"
    long = mode == "rationale" or config.style == "official" or is_chat
    longest = config.max_new_tokens if long else min(config.max_new_tokens, ANSWER_TOKENS)
    return config.thinking_budget + longest


def build_questions(
    items: Sequence[ExamItem], mode: str, config: EvalConfig, train: Sequence[ExamItem], encode: Callable,
    context_length: int, bos_id: int | None = None, tokenizer=None,
) -> list[Question]:
    """The prompts of a mode; a prompt too long to be answered is an error, or truncated on the left."""
    questions = []
    for item in items:
        shots = pick_examples(train, item, config.shots, config.seed, mode == "rationale")
        prompt, ids = encode(item, shots, mode)
        start, choices = scored_choices(tokenizer, item, mode) if mode in SCORINGS else ([], {})
        ids = ids + start
        longest = max(map(len, choices.values()), default=0)
        reserved = min(max(token_limit(mode, config), longest), context_length // 4)
        if len(ids) + reserved > context_length:
            if config.too_long == "error":
                raise UserError(
                    f"item {item.key} ({item.language}): the prompt ({len(ids):,} tokens) plus {reserved:,} "
                    f"reserved for the answer exceeds the context length of {context_length:,}; use fewer "
                    "--shots, or --too_long truncate to drop tokens from the left, as training does")
            ids = truncate_prompt(ids, context_length - reserved, bos_id)
        questions.append(Question(item, mode, prompt, ids, choices=choices))
    return questions


def encoder_of(model, tokenizer, config: EvalConfig) -> Callable:
    """(item, solved examples, mode) -> (prompt, ids): as published, or as messages of an instruct model."""
    name, family = None if config.chat_template == "auto" else config.chat_template, model.config.family

    def encode(item: ExamItem, shots: Sequence[ExamItem], mode: str) -> tuple[str, list[int]]:
        if mode == "option_text":
            prompt = build_cloze(item, shots)
        elif name == "none":
            prompt = build_few_shot(item, shots, mode == "rationale", config.style)
        else:
            chat = build_messages(item, mode == "rationale", config.style, shots)
            return encode_chat(tokenizer, chat, family, name, config.thinking_budget > 0)
        return prompt, encode_prompt(tokenizer, prompt)

    return encode


def candidates(item: ExamItem) -> list[str]:
    """The answers that log-likelihood scoring chooses among, as `metrics.chance_level` counts them.

    >>> candidates(ExamItem("?", dict.fromkeys("ABC", "x"), ("A", "B"), "", "English", "1"))
    ['A,B', 'A,C', 'B,C', 'A,B,C']
    """
    sizes = range(2, len(item.options) + 1) if len(item.answer) > 1 else (1,)
    return [",".join(letters) for size in sizes for letters in combinations(item.options, size)]


def scored_choices(tokenizer, item: ExamItem, mode: str) -> tuple[list[int], dict[str, list[int]]]:
    """(ids that extend the prompt, scored ids of each candidate)."""
    choices = {letters: tokenizer.encode(scored_string(mode, letters, item.options), continued=True)
               for letters in candidates(item)}
    return letter_tokens(choices) if mode == "loglikelihood" else ([], choices)


def letter_tokens(answers: Mapping[str, Sequence[Any]]) -> tuple[list, dict[str, list]]:
    """(the tokens that all answers begin with, those of each that count).

    What all answers end with does not count either, except after several letters: A,B begins A,B,C.
    """
    def shared(sequences: Iterable[Sequence]) -> int:
        return len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences))))

    encoded = list(map(list, answers.values()))
    before = min(shared(encoded), min(map(len, encoded)) - 1)
    several = any("," in letters for letters in answers)
    after = 0 if several else shared([ids[::-1] for ids in encoded])
    return encoded[0][:before], {letters: ids[before:len(ids) - after]
                                 for letters, ids in zip(answers, encoded)}


def cut_at_answer(text: str) -> str:
    """Truncate a text after its first complete answer; quotes in its reasoning do not count."""
    visible = remove_thoughts(text)
    found = COMPLETE.search(visible)
    if found is None:
        return text
    if not text.endswith(visible) and text.startswith(visible[:found.end()]):  # a thought after the answer
        return text[:found.end()]
    return text[:len(text) - len(visible) + found.end()]


def stop_at_answer(tokenizer) -> Callable[[Sequence[int]], bool]:
    """Whether new tokens contain a complete answer; the newest alone are cheaper to search than the whole."""
    def stop(ids: Sequence[int]) -> bool:
        newest = tokenizer.decode(ids[-STOP_WINDOW:], continued=True)
        return bool(COMPLETE.search(newest) and COMPLETE.search(
            remove_thoughts(tokenizer.decode(ids, continued=True))))

    return stop


def scored_text(question: Question, text: str, config: EvalConfig) -> dict:
    """The row of a text, truncated as --stop says."""
    text = cut_at_answer(text) if config.stop == "answer" else text
    return text_row(question.item, question.mode, question.prompt_hash, text, config.words,
                    config.equal_options)
