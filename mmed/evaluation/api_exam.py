"""An exam for a model behind an OpenAI-compatible API (--api): prompts -> calls -> rows -> result folder."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mmed.evaluation import api_client
from mmed.evaluation.option_text import scored_string
from mmed.evaluation.questions import (
    EvalConfig,
    Question,
    candidates,
    letter_tokens,
    modes_of,
    prompts_of,
    scored_text,
    token_limit,
)
from mmed.evaluation.results import loglikelihood_row, write_results
from mmed.generate import progress_bar
from mmed.prompts import ExamItem, build_few_shot, build_messages, pick_examples, read_benchmark
from mmed.utils.errors import UserError


def api_questions(items: Sequence[ExamItem], config: EvalConfig) -> list[Question]:
    """The prompts of all items and modes, with the bodies of their calls."""
    server = config.server
    train = read_benchmark(config.train) if config.train else []
    questions = []
    for item in items:
        for mode in sorted(modes_of(config)):
            rationale = mode == "rationale"
            shots = pick_examples(train, item, config.shots, config.seed, rationale)
            prompt: str | list[dict[str, str]]
            if server.completions:
                prompt = text = build_few_shot(item, shots, rationale, config.style)
            else:
                prompt = messages = build_messages(item, rationale, config.style, shots)
                text = json.dumps(messages, ensure_ascii=False) if shots else messages[0]["content"]
            choices: dict[str, str] = {}
            if mode == "loglikelihood":
                choices = {letters: scored_string(mode, letters, item.options)
                           for letters in candidates(item)}
                bodies = [api_client.scoring_request(server, text, string) for string in choices.values()]
            else:
                bodies = [api_client.request(server, prompt, token_limit(mode, config))]
            questions.append(Question(item, mode, text, bodies=bodies, choices=choices))
    return questions


def api_rows(questions: Sequence[Question], replies: Sequence[dict], config: EvalConfig) -> list[dict]:
    """One row per item and mode."""
    rows, left = [], iter(replies)
    for question in questions:
        own = list(islice(left, len(question.bodies)))
        if question.mode == "loglikelihood":
            rows.append(likelihood_row(question, own, config))
            continue
        reply, = own
        row = scored_text(question, reply["text"], config)
        row |= {"new_tokens": reply["completion_tokens"], "finish_reason": reply["finish_reason"]}
        rows.append(row | {name: reply[name] for name in ("error", "reasoning") if name in reply})
    return rows


def likelihood_row(question: Question, replies: Sequence[dict], config: EvalConfig) -> dict:
    """The row of an option likelihood, from one reply per candidate."""
    item, tokens, logprobs = question.item, {}, {}
    for (letters, string), reply in zip(question.choices.items(), replies):
        if "error" in reply:
            raise UserError(f"item {item.key} ({item.language}), answer {letters}: {reply['error']}; earlier "
                            "replies are kept; run the command again")
        tokens[letters], logprobs[letters] = api_client.answer_tokens(reply, string)
    start, scored = letter_tokens(tokens)
    counts = list(map(len, scored.values()))
    sums = [sum(logprobs[letters][len(start):len(start) + count]) for letters, count in zip(scored, counts)]
    return loglikelihood_row(item, question.prompt_hash, list(scored), sums, counts, config.equal_options)


def evaluate_api(items: list[ExamItem], config: EvalConfig, settings: dict, facts: dict) -> dict:
    """Ask an API; api_calls.jsonl keeps every reply, so scoring again costs nothing. Returns the summary."""
    out, server = Path(config.out), config.server
    questions = api_questions(items, config)
    requests = [body for question in questions for body in question.bodies]
    labels = [f"item {question.item.key} ({question.item.language})"
              for question in questions for _ in question.bodies]
    store = api_client.CallStore(out / "api_calls.jsonl")
    (out / "results.json").unlink(missing_ok=True)
    with progress_bar(len(requests), sys.stderr.isatty(), "answer") as bar:
        replies = api_client.ask(server, requests, store, labels=labels, on_done=lambda _: bar.update())
    rows = api_rows(questions, replies, config)
    counts = api_client.usage(replies)
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in counts["finish_reasons"].items())
    print(f"{counts['calls']:,} answers, {len(store.new):,} of them asked for now; tokens in "
          f"{counts['prompt_tokens']:,}, out {counts['completion_tokens']:,}; finish reasons {reasons}",
          file=sys.stderr)
    errors = [f"{label}: {reply['error']}" for label, reply in zip(labels, replies) if "error" in reply]
    if errors:
        print(f"warning: {len(errors):,} questions have no answer and count as wrong; the first is "
              f"{errors[0]}", file=sys.stderr)
    prompts = prompts_of(questions)
    summary = write_results(out, rows, prompts, facts, settings | {"api": server.facts() | counts})
    store.close([api_client.request_key(server, body) for body in requests])
    return summary
