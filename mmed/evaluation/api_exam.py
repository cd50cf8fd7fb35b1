"""An exam for a model behind an OpenAI-compatible API (--api): prompts -> calls -> rows -> result folder."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
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
    """The prompts of all items and modes, with the bodies of their calls; option likelihoods need several."""
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
            if mode == "loglikelihood":
                for letters in candidates(item):
                    string = scored_string(mode, letters, item.options)
                    body = api_client.scoring_request(server, text, string)
                    questions.append(Question(item, mode, text, body=body, answer=(letters, string)))
            else:
                body = api_client.request(server, prompt, token_limit(mode, config))
                questions.append(Question(item, mode, text, body=body))
    return questions


def api_rows(questions: Sequence[Question], replies: Sequence[dict], config: EvalConfig) -> list[dict]:
    """One row per item and mode."""
    rows = []
    for (_, mode), group in groupby(zip(questions, replies), lambda pair: (id(pair[0].item), pair[0].mode)):
        (question, reply), *more = group
        if mode != "loglikelihood":
            row = scored_text(question, reply["text"], config)
            row |= {"new_tokens": reply["completion_tokens"], "finish_reason": reply["finish_reason"]}
            rows.append(row | {name: reply[name] for name in ("error", "reasoning") if name in reply})
            continue
        tokens, logprobs = {}, {}
        for part, answer in [(question, reply), *more]:
            letters, string = part.answer
            if "error" in answer:
                raise UserError(f"item {part.item.key} ({part.item.language}), answer {letters}: "
                                f"{answer['error']}; earlier replies are kept; run the command again")
            tokens[letters], logprobs[letters] = api_client.answer_tokens(answer, string)
        start, scored = letter_tokens(tokens)
        counts = list(map(len, scored.values()))
        sums = [sum(logprobs[letters][len(start):len(start) + count])
                for letters, count in zip(scored, counts)]
        rows.append(loglikelihood_row(question.item, question.prompt_hash, list(scored), sums, counts,
                                      config.equal_options))
    return rows


def evaluate_api(items: list[ExamItem], config: EvalConfig, settings: dict, facts: dict) -> dict:
    """Ask an API; api_calls.jsonl keeps every reply, so scoring again costs nothing. Returns the summary."""
    out, server = Path(config.out), config.server
    questions = api_questions(items, config)
    requests = [question.body for question in questions]
    labels = [f"item {question.item.key} ({question.item.language})" for question in questions]
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
