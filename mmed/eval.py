"""Evaluates a model on an exam: MMedBench items in, a result folder out.

    python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME
    python -m mmed.eval --model FOLDER --adapter FOLDER --data MMedBench/Test --out results/NAME \\
        --setting finetuned --scoring generate,loglikelihood,option_text
    python -m mmed.eval --api MODEL_NAME [--base_url URL] --data MMedBench/Test --out results/NAME

    items -> prompts (mmed/prompts.py) -> rounds of items: decode texts, score letters -> rows
          -> answers read from the texts (mmed/evaluation/answer_parser.py)
          -> tables and files (mmed/evaluation/results.py)

Each item is answered twice, as in the paper: directly (accuracy) and after a rationale (BLEU and ROUGE). An
answer is read from its text: the published form if it is the whole text ("###Answer: OPTION B IS CORRECT.",
after a rationale or not), else leniently: a statement ("the answer is B", the last one counts), a line of
letters, verdicts on the options, or an option's own text; else it is unparsed, and wrong. Both count.
`--scoring` adds the likeliest letter and the likeliest option text, in columns of their own. After a
crash, the same command continues with the interrupted round, and the files come out identical to the byte.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.evaluation.api_exam import evaluate_api
from mmed.evaluation.option_text import UNCONDITIONAL
from mmed.evaluation.options import SCORINGS, EvalConfig, parse_options
from mmed.evaluation.permutations import permutation_table, permuted
from mmed.evaluation.questions import (
    COMPLETE,
    STOP_WINDOW,
    Question,
    answer_end,
    build_questions,
    encoder_of,
    modes_of,
    prompts_of,
    scored_text,
    token_limit,
)
from mmed.evaluation.results import RESULTS_VERSION, load_results, loglikelihood_row, write_results
from mmed.evaluation.summary import MODES, table
from mmed.evaluation.thoughts import begun_thought, think_and_answer
from mmed.generate import encode_prompt, generate, load_model, progress_bar
from mmed.inference.option_scores import int8_difference, score_many
from mmed.inference.work_sharing import round_size, run_rounds
from mmed.languages import get_language
from mmed.metrics import METRICS_VERSION
from mmed.prompts import ExamItem, read_benchmark
from mmed.utils.errors import UserError, main_guard
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
        config.model, config.adapter, config.dtype, config.device, config.bos)
    encode, length = encoder_of(model, tokenizer, config), model.config.max_position_embeddings
    columns = [build_questions(items, mode, config, train, encode, length, tokenizer.bos_id, tokenizer)
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
            force=config.force, on_skip=lambda start: bar.update(len(rounds[start])))
    if journal is None:  # under torchrun, rank 0 has all rounds and writes
        return {}
    prompts = prompts_of([question for column in columns for question in column])
    summary = write_results(out, list(journal.rows()), prompts, facts, settings)
    journal.discard()
    return summary


# ---- command -----------------------------------------------------------------------------------------------

def evaluate(config: EvalConfig) -> dict:
    """Run, score and write; return the summary. A finished result with the same settings is only shown."""
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
    settings |= {"model": server.model if server else config.model, "adapter": config.adapter or None,
                 "data": config.data, "train": config.train or None}
    if config.train:
        settings["examples"] = facts["train"][:12]
    if server:
        settings |= {"endpoint": server.endpoint, "server_options": server.options}
    out = Path(config.out)
    if (out / "results.json").exists() and not config.force:
        before, _ = load_results(out)
        differs = facts_that_differ(before["facts"], facts)
        if differs:
            raise UserError(f"{out}: contains the results of another run: {differs}; give another --out, or "
                            "--force to replace them")
        (out / "predictions.jsonl.partial").unlink(missing_ok=True)  # killed after its last file
        print(f"{out} is complete; nothing to do (--force runs it again)", file=sys.stderr)
        return before["summary"]
    return (evaluate_api if server else evaluate_model)(items, config, settings, facts)


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
