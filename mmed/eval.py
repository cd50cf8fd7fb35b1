"""Evaluates a model on an exam: MMedBench items in, a result folder out.

    python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME
    python -m mmed.eval --model FOLDER --adapter FOLDER --data MMedBench/Test --out results/NAME \\
        --setting finetuned --scoring generate,loglikelihood,option_text
    python -m mmed.eval --api MODEL_NAME [--base_url URL] --data MMedBench/Test --out results/NAME

    items -> prompts (mmed/prompts.py) -> rounds of items: decode texts, score letters -> rows -> answers read
          from the texts (mmed/evaluation/answer_parser.py) -> tables and files (mmed/evaluation/results.py)

Each item is answered twice, as in the paper: directly (accuracy) and after a rationale (BLEU and ROUGE).
After a crash, the same command continues, and the files come out identical to the byte.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from mmed.evaluation import api_client
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.evaluation.options import SCORINGS, EvalConfig, parse_options
from mmed.evaluation.questions import (
    Question,
    build_questions,
    candidates,
    encoder_of,
    letter_tokens,
    modes_of,
    scored_text,
    stop_at_answer,
    token_limit,
)
from mmed.evaluation.results import RESULTS_VERSION, load_results, loglikelihood_row, write_results
from mmed.evaluation.summary import MODES, table
from mmed.evaluation.thoughts import begun_thought, think_and_answer
from mmed.generate import encode_prompt, generate, load_model, progress_bar
from mmed.inference.option_scores import int8_difference, score_many
from mmed.inference.work_sharing import ROUND_BATCHES, run_rounds
from mmed.languages import get_language
from mmed.metrics import METRICS_VERSION
from mmed.prompts import (
    CLOZE_ALONE,
    ORDER,
    ExamItem,
    build_few_shot,
    build_messages,
    permuted,
    pick_examples,
    read_benchmark,
    scored_string,
)
from mmed.training.distributed import device_called
from mmed.utils.errors import UserError, main_guard
from mmed.utils.fingerprints import file_hash, model_fingerprint
from mmed.utils.journal import facts_that_differ

# Options that are recorded with a result: of every run, and of one on a local model
SETTINGS = ("setting", "style", "mode", "scoring", "permutations", "shots", "cot", "seed", "max_new_tokens",
            "stop", "words", "limit", "equal_options")
LOCAL_SETTINGS = ("batch_size", "too_long", "dtype", "chat_template", "bos")
OWN_FILES = ("results.json", "predictions.jsonl", "predictions.jsonl.partial", "api_calls.jsonl")
LOGS = (".log", ".txt", ".out", ".err")  # may be in the folder before a result is


# ---- local models ------------------------------------------------------------------------------------------

def generate_answers(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """Decode the texts of some questions of one mode, and read and score them."""
    decode = partial(generate, model, end_ids=tokenizer.end_ids, vocab_size=tokenizer.vocab_size,
                     max_batch_size=config.batch_size)
    begun = begun_thought(questions[0].prompt)
    texts = think_and_answer(
        decode, tokenizer, [question.ids for question in questions], token_limit(questions[0].mode, config),
        config.thinking_budget, begun, model.config.max_position_embeddings, on_done=on_done,
        stop=stop_at_answer(tokenizer) if config.stop == "answer" else None)
    return [scored_text(question, begun + tokenizer.decode(ids, continued=True), config)
            | {"new_tokens": len(ids)} for question, ids in zip(questions, texts)]


def score_options(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """Compute the log-probabilities of every possible answer to some questions of one mode."""
    strings = [list(question.choices.values()) for question in questions]
    sums = score_many(model, [question.ids for question in questions], strings, on_done=on_done)
    alone: list[list[float]] = [[]] * len(questions)
    if questions[0].mode == "option_text":
        alone = score_many(model, [encode_prompt(tokenizer, CLOZE_ALONE)] * len(questions), strings)
    return [loglikelihood_row(question.item, question.prompt_hash, list(question.choices), scores,
                              list(map(len, ids)), config.equal_options, prior)
            for question, ids, scores, prior in zip(questions, strings, sums, alone)]


def run_round(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """One row per question of a mode, in their order."""
    run = score_options if questions[0].mode in SCORINGS else generate_answers
    return run(model, tokenizer, questions, config, on_done)


def evaluate_model(items: list[ExamItem], config: EvalConfig, settings: dict, facts: dict) -> dict:
    """Run a local model in rounds of items in one mode, which a journal keeps; returns the summary."""
    out, size = Path(config.out), ROUND_BATCHES * config.batch_size
    train = read_benchmark(config.train) if config.train else []
    model, tokenizer = load_model(config.model, config.adapter, config.dtype, config.device, config.bos)
    encode, length = encoder_of(model, tokenizer, config), model.config.max_position_embeddings
    columns = [build_questions(items, mode, config, train, encode, length, tokenizer.bos_id, tokenizer)
               for mode in modes_of(config)]
    if config.dtype == "int8":
        print(int8_difference(model, [question.ids for question in columns[0]]), file=sys.stderr)
    rounds = [column[start:start + size] for column in columns for start in range(0, len(items), size)]
    costs = {number: sum(len(question.ids) + token_limit(question.mode, config) for question in part)
             for number, part in enumerate(rounds)}
    (out / "results.json").unlink(missing_ok=True)  # with --force, the old one is no longer valid
    with progress_bar(sum(map(len, columns)), sys.stderr.isatty(), "answer") as bar:
        journal = run_rounds(
            out / "predictions.jsonl", facts, costs,
            lambda number: run_round(model, tokenizer, rounds[number], config, lambda *_: bar.update()),
            force=config.force, on_skip=lambda number: bar.update(len(rounds[number])))
    if journal is None:  # under torchrun, rank 0 has all rounds and writes
        return {}
    order = {item.key: place for place, item in enumerate(items)}
    rows = sorted(journal.rows(), key=lambda row: (order[row["key"]], MODES.index(row["mode"])))
    prompts = prompts_of([question for column in columns for question in column])
    summary = write_results(out, rows, prompts, facts, settings)
    journal.discard()
    return summary


def prompts_of(questions: Sequence[Question]) -> dict[tuple[str, str], str]:
    """(key, mode) -> prompt, of the options in their published order."""
    return {(question.item.key, question.mode): question.prompt for question in questions
            if ORDER not in question.item.extra}


# ---- models behind an API ----------------------------------------------------------------------------------

def api_questions(items: Sequence[ExamItem], config: EvalConfig, server: api_client.Server) -> list[Question]:
    """The prompts of all items and modes, with the bodies of their calls."""
    questions = []
    train = read_benchmark(config.train) if config.train else []
    for item in items:
        for mode in sorted(modes_of(config)):
            rationale = mode == "rationale"
            shots = pick_examples(train, item, config.shots, config.seed, rationale)
            asked: str | list[dict[str, str]]
            if server.completions:
                asked = text = build_few_shot(item, shots, rationale, config.style)
            else:
                asked = messages = build_messages(item, rationale, config.style, shots)
                text = json.dumps(messages, ensure_ascii=False) if shots else messages[0]["content"]
            choices, bodies = {}, [api_client.request(server, asked, token_limit(mode, config))]
            if mode == "loglikelihood":
                choices = {letters: scored_string(mode, letters, item.options)
                           for letters in candidates(item)}
                bodies = [api_client.request(server, text + string, 1) | {"echo": True, "logprobs": 1}
                          for string in choices.values()]  # servers reject max_tokens=0
            questions.append(Question(item, mode, text, bodies=bodies, choices=choices))
    return questions


def api_row(question: Question, replies: Sequence[dict], config: EvalConfig) -> dict:
    """The row of a question, from its reply, or from one per candidate."""
    item, tokens, logprobs = question.item, {}, {}
    if question.mode != "loglikelihood":
        reply, = replies
        return scored_text(question, reply["text"], config) | {
            "new_tokens": reply["completion_tokens"], "finish_reason": reply["finish_reason"],
            **{name: reply[name] for name in ("error", "reasoning") if name in reply}}
    for (letters, string), reply in zip(question.choices.items(), replies):
        if "error" in reply:
            return loglikelihood_row(item, question.prompt_hash, [], [], [], config.equal_options) | {
                "status": "unparsed", "error": reply["error"]}
        tokens[letters], logprobs[letters] = api_client.answer_tokens(reply, string)
    start, scored = letter_tokens(tokens)
    counts = list(map(len, scored.values()))
    sums = [sum(logprobs[letters][len(start):len(start) + count]) for letters, count in zip(scored, counts)]
    return loglikelihood_row(item, question.prompt_hash, list(scored), sums, counts, config.equal_options)


def evaluate_api(
    items: list[ExamItem], config: EvalConfig, server: api_client.Server, settings: dict, facts: dict
) -> dict:
    """Ask an API; api_calls.jsonl keeps every reply, so scoring again costs nothing. Returns the summary."""
    out, questions = Path(config.out), api_questions(items, config, server)
    calls = [(f"item {question.item.key} ({question.item.language})", body)
             for question in questions for body in question.bodies]
    labels, requests = zip(*calls)
    store = api_client.CallStore(out / "api_calls.jsonl")
    replies = api_client.ask(server, requests, store, labels=labels)
    left = iter(replies)
    rows = [api_row(question, list(islice(left, len(question.bodies))), config) for question in questions]
    counts = api_client.usage(replies)
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in counts["finish_reasons"].items())
    print(f"{counts['calls']:,} answers, {len(store.new):,} of them new; tokens in "
          f"{counts['prompt_tokens']:,}, out {counts['completion_tokens']:,}; finish reasons {reasons}",
          file=sys.stderr)
    if errors := [row for row in rows if "error" in row]:
        print(f"warning: {len(errors):,} questions have no answer and count as wrong; the first is item "
              f"{errors[0]['key']} ({errors[0]['language']}): {errors[0]['error']}", file=sys.stderr)
    settings = settings | {"api": server.facts() | counts}
    store.close()
    (out / "results.json").unlink(missing_ok=True)  # not before: a failed call must not cost earlier results
    return write_results(out, rows, prompts_of(questions), facts, settings)


# ---- command -----------------------------------------------------------------------------------------------

def read_exam(config: EvalConfig) -> list[ExamItem]:
    """The items with their reordered copies; a missing language or package ends the run here."""
    items = []
    for name, part in groupby(read_benchmark(config.data), key=lambda item: item.language):
        language = get_language(name)
        if config.words == "official":
            language.official_words("x")
        for item in islice(part, config.limit or None):
            items += permuted(item, config.permutations, config.seed)
    return items


def evaluate(config: EvalConfig) -> dict:
    """Run, score and write; return the summary. A finished result with the same settings is only shown."""
    items, server, out = read_exam(config), config.server, Path(config.out)
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others = [name for name in found if not name.endswith(LOGS) and not name.startswith(".")]
    if others and found.isdisjoint(OWN_FILES):
        raise UserError(f"{out}: contains {min(others)}, but no result of this command; give another --out")
    settings = {name: getattr(config, name) for name in (*SETTINGS, *(() if server else LOCAL_SETTINGS))}
    if settings.get("dtype") == "auto":  # recorded as what it is on this machine
        settings["dtype"] = "bfloat16" if device_called(config.device).startswith("cuda") else "float32"
    if config.thinking_budget:
        settings["thinking_budget"] = config.thinking_budget
    facts = settings | {
        "model": server.facts() if server else model_fingerprint(config.model, config.adapter),
        "data": file_hash(config.data), "train": file_hash(config.train) if config.train else None,
        "versions": f"results {RESULTS_VERSION}, parser {PARSER_VERSION}, metrics {METRICS_VERSION}"}
    settings |= {"model": server.model if server else config.model, "adapter": config.adapter or None,
                 "data": config.data, "train": config.train or None}
    if config.train:
        settings["examples"] = facts["train"][:12]
    if server:
        settings |= {"endpoint": server.endpoint, "server_options": server.options}
    if config.force or not (out / "results.json").exists():
        if server:
            return evaluate_api(items, config, server, settings, facts)
        return evaluate_model(items, config, settings, facts)
    before, _ = load_results(out)
    if differs := facts_that_differ(before["facts"], facts):
        raise UserError(f"{out}: contains the results of another run: {differs}; give another --out, or "
                        "--force to replace them")
    if server and before["settings"]["api"]["failed"]:  # only what failed is asked again
        return evaluate_api(items, config, server, settings, facts)
    (out / "predictions.jsonl.partial").unlink(missing_ok=True)  # killed after its last file
    print(f"{out} is complete; nothing to do (--force runs it again)", file=sys.stderr)
    return before["summary"]


def main(arguments: list[str] | None = None) -> int:
    config = parse_options(arguments)
    summary = evaluate(config)
    if summary:
        print(table(summary, config.words))
        print(f"\n{config.setting}, prompt style {config.style} -> {config.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
