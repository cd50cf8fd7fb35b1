"""Put a model through an exam: MMedBench items in, a result folder out.

    python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME
    python -m mmed.eval --model FOLDER --adapter FOLDER --data MMedBench/Test --out results/NAME \\
        --setting finetuned --scoring generate,loglikelihood,option_text
    python -m mmed.eval --api MODEL_NAME [--base_url URL] --data MMedBench/Test --out results/NAME

    items -> prompts (mmed/prompts.py) -> rounds of items: decode texts, score answer strings -> rows
          -> tables and files (mmed/evaluation/results.py)

Each item is answered twice, as in the paper: directly (accuracy) and after a rationale (BLEU and ROUGE).
`--scoring` adds the likeliest answer string and the likeliest option text, in columns of their own. After a
crash, the same command continues with the interrupted round, and the files come out identical to the byte.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from mmed.evaluation import api_client
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.evaluation.option_text import UNCONDITIONAL, scored_string
from mmed.evaluation.permutations import ORDER, permutation_table, permuted
from mmed.evaluation.questions import (
    COMPLETE,
    SCORINGS,
    STOP_WINDOW,
    EvalConfig,
    Question,
    answer_end,
    build_questions,
    candidates,
    cut_at_answer,
    encoder_of,
    modes_of,
    parse_scoring,
    token_limit,
)
from mmed.evaluation.results import RESULTS_VERSION, load_results, loglikelihood_row, text_row, write_results
from mmed.evaluation.summary import MODES, table
from mmed.evaluation.thoughts import begun_thought, think_and_answer
from mmed.generate import encode_prompt, generate, load_model, progress_bar, score_many
from mmed.inference.option_scores import int8_difference
from mmed.inference.work_sharing import round_size, run_rounds
from mmed.languages import get_language
from mmed.metrics import METRICS_VERSION
from mmed.prompts import ExamItem, build_few_shot, build_messages, pick_examples, read_benchmark
from mmed.tokenization.chat_template import CHAT_TEMPLATES
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.fingerprints import file_hash, model_fingerprint
from mmed.utils.journal import facts_that_differ

# Options that are recorded with a result: of every run, and of one on a local model
SETTINGS = ("setting", "style", "mode", "scoring", "permutations", "shots", "cot", "seed", "max_new_tokens",
            "stop", "words", "limit", "equal_options")
LOCAL_SETTINGS = ("batch_size", "too_long", "dtype", "chat_template", "bos")


# ---- local models ------------------------------------------------------------------------------------------

def generate_answers(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """Decode the texts of some questions and score them, one row per question."""
    def stop(ids: Sequence[int]) -> bool:
        newest = tokenizer.decode(ids[-STOP_WINDOW:], continued=True)  # cheaper than the whole text
        return bool(COMPLETE.search(newest)) and answer_end(tokenizer.decode(ids, continued=True)) is not None

    decode = partial(generate, model, end_ids=tokenizer.end_ids, vocab_size=tokenizer.vocab_size,
                     max_batch_size=config.batch_size)
    begun = begun_thought(questions[0].prompt)
    texts = think_and_answer(
        decode, tokenizer, [question.ids for question in questions],
        [token_limit(question.mode, config) for question in questions], config.thinking_budget, begun,
        model.config.max_position_embeddings, on_done=on_done, stop=stop if config.stop == "answer" else None)
    return [scored_text(question, begun + tokenizer.decode(ids, continued=True), config)
            | {"new_tokens": len(ids)} for question, ids in zip(questions, texts)]


def scored_text(question: Question, text: str, config: EvalConfig) -> dict:
    """The row of a text, ended where --stop says."""
    text = cut_at_answer(text) if config.stop == "answer" else text
    return text_row(question.item, question.mode, question.prompt_hash, text, config.words,
                    config.equal_options)


def score_options(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """Log-probabilities of every possible answer to some questions of one mode, one row per question."""
    strings = [list(question.choices.values()) for question in questions]
    sums = score_many(model, [question.ids for question in questions], strings, on_done=on_done)
    alone: list[list[float]] = [[]] * len(questions)
    if questions[0].mode == "option_text":
        alone = score_many(model, [encode_prompt(tokenizer, UNCONDITIONAL)] * len(questions), strings)
    return [loglikelihood_row(question.item, question.prompt_hash, list(question.choices), scores,
                           list(map(len, ids)), config.equal_options, prior)
            for question, ids, scores, prior in zip(questions, strings, sums, alone)]


def run_round(
    model, tokenizer, questions: Sequence[Question], config: EvalConfig, on_done: Callable
) -> list[dict]:
    """Decode and score some items; rows in the order of the items, and of the modes within an item."""
    texts = [question for question in questions if question.mode not in SCORINGS]
    rows = generate_answers(model, tokenizer, texts, config, on_done) if texts else []
    for mode in SCORINGS:
        chosen = [question for question in questions if question.mode == mode]
        rows += score_options(model, tokenizer, chosen, config, on_done) if chosen else []
    order = [question.item.key for question in questions]
    return sorted(rows, key=lambda row: (order.index(row["key"]), MODES.index(row["mode"])))


def evaluate_model(items: list[ExamItem], config: EvalConfig, settings: dict, facts: dict) -> dict:
    """Run a local model in rounds of items, which are kept in a journal; returns the summary."""
    out, size = Path(config.out), round_size(config.batch_size)
    train = read_benchmark(config.train) if config.train else []
    model, tokenizer = load_model(
        config.model, config.adapter, config.dtype, config.device, config.shard, config.bos)
    encode, length = encoder_of(model, tokenizer, config), model.config.max_position_embeddings
    columns = [build_questions(items, mode, config, train, encode, length, tokenizer.bos_id)
               for mode in modes_of(config)]
    if config.dtype == "int8":
        print(int8_difference(model, [question.ids for question in columns[0]]), file=sys.stderr)
    rounds = {start: [question for column in columns for question in column[start:start + size]]
              for start in range(0, len(items), size)}
    costs = {start: sum(len(question.ids) + token_limit(question.mode, config) for question in part)
             for start, part in rounds.items()}
    (out / "results.json").unlink(missing_ok=True)  # with --force, it no longer holds
    with progress_bar(sum(map(len, columns)), sys.stderr.isatty(), "answer") as bar:
        journal = run_rounds(
            out / "predictions.jsonl", facts, costs,
            lambda start: run_round(model, tokenizer, rounds[start], config, lambda *_: bar.update()),
            force=config.force, on_skip=lambda start: bar.update(len(rounds[start])), model=model)
    if journal is None:  # under torchrun, rank 0 has all rounds and writes
        return {}
    prompts = prompts_of([question for column in columns for question in column])
    summary = write_results(out, list(journal.rows()), prompts, facts, settings)
    journal.discard()
    return summary


def prompts_of(questions: Sequence[Question]) -> dict[tuple[str, str], str]:
    """(key, mode) -> prompt, of the options in their published order."""
    return {(question.item.key, question.mode): question.prompt for question in questions
            if ORDER not in question.item.extra}


# ---- models behind an API ----------------------------------------------------------------------------------

def api_questions(items: Sequence[ExamItem], config: EvalConfig) -> list[Question]:
    """The prompts of all items and modes, with the bodies of their calls; option likelihoods need several."""
    server = config.server
    assert server is not None
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
        found = {}
        for part, answer in [(question, reply), *more]:
            letters, string = part.answer
            if "error" in answer:
                raise UserError(f"item {part.item.key} ({part.item.language}), answer {letters}: "
                                f"{answer['error']}; the replies so far are kept, start again to ask again")
            found[letters] = api_client.answer_logprob(answer, string)
        sums, tokens = map(list, zip(*found.values()))
        rows.append(loglikelihood_row(question.item, question.prompt_hash, list(found), sums, tokens,
                                      config.equal_options))
    return rows


def evaluate_api(items: list[ExamItem], config: EvalConfig, settings: dict, facts: dict) -> dict:
    """Ask an API; api_calls.jsonl keeps every reply, so scoring again costs nothing. Returns the summary."""
    out, server = Path(config.out), config.server
    assert server is not None
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


# ---- command -----------------------------------------------------------------------------------------------

def evaluate(config: EvalConfig) -> dict:
    """Run, score and write; returns the summary. A finished folder with the same facts is only shown."""
    if config.model and not Path(config.model).is_dir():
        raise UserError(f"{config.model}: no such model folder")
    items = []
    for name, part in groupby(read_benchmark(config.data), key=lambda item: item.language):
        language = get_language(name)  # a missing language or package ends the run here
        if config.words == "official":
            language.official_words("x")
        items += [copy for item in islice(part, config.limit or None)
                  for copy in permuted(item, config.permutations, config.seed)]
    server = config.server
    settings = {name: getattr(config, name) for name in (*SETTINGS, *(() if server else LOCAL_SETTINGS))}
    if config.thinking_budget:
        settings["thinking_budget"] = config.thinking_budget
    facts = settings | {
        "model": server.facts() if server else model_fingerprint(config.model, config.adapter),
        "data": file_hash(config.data), "train": file_hash(config.train) if config.train else None,
        "versions": f"results {RESULTS_VERSION}, parser {PARSER_VERSION}, metrics {METRICS_VERSION}"}
    settings |= {"model": server.model if server else config.model, "adapter": config.adapter,
                 "data": config.data, "train": config.train}
    if config.train:
        settings["examples"] = facts["train"][:12]
    if server:
        settings |= {"endpoint": server.endpoint, "server_options": server.options}
    out = Path(config.out)
    if (out / "results.json").exists() and not config.force:
        before, _ = load_results(out)
        differs = facts_that_differ(before["facts"], facts)
        if differs:
            raise UserError(f"{out}: holds the results of another run: {differs}; give another --out, or "
                            "--force to replace them")
        (out / "predictions.jsonl.partial").unlink(missing_ok=True)  # killed after its last file
        print(f"{out} is complete; nothing to do (--force runs it again)", file=sys.stderr)
        return before["summary"]
    return (evaluate_api if server else evaluate_model)(items, config, settings, facts)


def parser_of_options() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mmed.eval",
        description="Put a model through MMedBench. The network is used only with --api.",
        epilog="example: python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME")
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="model folder (config.json, *.safetensors, tokenizer)")
    add("--adapter", metavar="FOLDER", help="LoRA adapter to merge into it")
    add("--data", required=True, metavar="FOLDER", help="exam items: a folder of JSONL files, or one file")
    add("--out", required=True, metavar="FOLDER", help="result folder")
    add("--force", action="store_true", help="replace results of another model, data or settings")
    add("--limit", type=int, default=0, metavar="N", help="the first N items of each language")

    add = parser.add_argument_group("prompt").add_argument
    add("--setting", choices=("zero-shot", "few-shot", "finetuned"),
        help="row of the paper's tables that this is (default: zero-shot, few-shot with --shots)")
    add("--shots", type=int, default=0, metavar="K", help="solved examples before a question; needs --train")
    add("--train", metavar="FOLDER", help="where the examples come from")
    add("--cot", action="store_true", help="few-shot chain of thought: only the rationale run, where the "
        "examples show their rationales; marked in the signature as our prompt")
    add("--seed", type=int, default=0, help="of the choice of examples and of the orders of options")
    add("--style", choices=("clean", "official"), default="clean",
        help="official: the published prompt with its stray sentence")
    add("--chat_template", choices=("none", "auto", *CHAT_TEMPLATES), default="none", metavar="FORMAT",
        help=f"of an instruct model: auto (from its tokenizer), or {', '.join(CHAT_TEMPLATES)}; default "
        "none: the published prompt as it is")
    add("--bos", choices=("auto", "yes", "no"), default="auto",
        help="begin prompts with BOS; auto: as the tokenizer's files say")
    add("--too_long", choices=("error", "truncate"), default="error",
        help="prompts that exceed the context length")

    add = parser.add_argument_group("scoring").add_argument
    add("--scoring", default="generate", metavar="WAYS",
        help="comma-separated: generate (default), loglikelihood (of the answer string with each letter), "
        "option_text (likelihood of the options' own texts); both: the first two")
    add("--permutations", type=int, default=1, metavar="K",
        help="ask each item K times, options in other orders: mean accuracy, consistency, letter bias")
    add("--mode", choices=("both", "answer", "rationale"), default="both",
        help="texts to write: answer only, after a rationale, or both as in the paper (default)")
    add("--stop", choices=("answer", "end"), help="a text ends with its first complete answer (default), or "
        "only with the end token (default with --style official)")
    add("--words", choices=("default", "official"), default="default",
        help="official: nltk, jieba and janome for BLEU and ROUGE, as on the leaderboard")
    add("--equal_options", choices=("either", "keyed"), help="where two options of an item are equal, either "
        "letter is right (default), or only the one in the answer key (default with --style official)")

    add = parser.add_argument_group("local decoding").add_argument
    add("--batch_size", type=int, default=32, metavar="N", help="texts per batch (default 32)")
    add("--max_new_tokens", type=int, metavar="N", help="of a text (default 512; official 1000)")
    add("--thinking_budget", type=int, default=0, metavar="N",
        help="tokens of a thought before --max_new_tokens begin to count; then a local model's thought is "
        "closed, and it answers (default 0: a thought counts as text)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto",
        help="auto: bfloat16 on a GPU, else float32; int8: quantized weights, with their effect printed")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--shard", action="store_true", help="under torchrun: shard the weights of models larger than a GPU")
    api_client.add_api_options(parser)
    return parser


def parse_options(arguments: list[str] | None = None) -> EvalConfig:
    """The options, with defaults that depend on each other filled in, checked once."""
    options = parser_of_options().parse_args(arguments)
    official = options.style == "official"
    options.scoring = parse_scoring(options.scoring)
    options.setting = options.setting or ("few-shot" if options.shots else "zero-shot")
    options.stop = options.stop or ("end" if official else "answer")
    options.equal_options = options.equal_options or ("keyed" if official else "either")
    if options.max_new_tokens is None:
        options.max_new_tokens = 1000 if official else 512
    at_least_0 = options.limit, options.shots, options.thinking_budget
    if options.batch_size < 1 or options.max_new_tokens < 1 or min(at_least_0) < 0:
        raise UsageError("--batch_size and --max_new_tokens must be 1 or more, --limit, --shots and "
                         "--thinking_budget 0 or more")
    if options.permutations < 1 or (options.permutations > 1 and "option_text" in options.scoring):
        raise UsageError("--permutations must be 1 or more, without --scoring option_text, whose prompt does "
                         "not list the options")
    if bool(options.shots) != bool(options.train) or (options.setting == "few-shot") != bool(options.shots):
        raise UsageError("few-shot needs both --shots K and --train FOLDER, the other settings neither")
    if options.cot:
        if not options.shots or "generate" not in options.scoring or options.mode == "answer":
            raise UsageError("--cot needs --shots K and texts with rationales (no --mode answer)")
        options.mode = "rationale"
    if bool(options.model) == bool(options.api):
        raise UsageError("give either --model FOLDER or --api MODEL_NAME")
    options.server = None
    if options.api:
        if "option_text" in options.scoring:
            raise UsageError("--scoring option_text goes with --model FOLDER")
        if "loglikelihood" in options.scoring and not options.completions:
            raise UsageError("--scoring loglikelihood behind a server needs --completions: chat gives no "
                             "probability of a given text")
        if options.adapter or options.chat_template != "none":
            raise UsageError("--adapter and --chat_template go with --model; a server has its own")
        options.server = api_client.server_from(options, options.seed)
    options.model = options.model or ""
    return EvalConfig(**{field.name: getattr(options, field.name) for field in fields(EvalConfig)})


def main(arguments: list[str] | None = None) -> int:
    config = parse_options(arguments)
    summary = evaluate(config)
    if summary:
        print(table(summary, config.words))
        if "permutations" in summary:
            print(f"\n{permutation_table(summary['permutations'])}")
        print(f"\n{config.setting}, prompt style {config.style} -> {config.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
