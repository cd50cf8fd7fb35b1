"""Put a model through an exam: MMedBench items in, a result folder out.

    python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME
    python -m mmed.eval --model FOLDER --adapter FOLDER --data MMedBench/Test --out results/NAME --setting finetuned --scoring both
    python -m mmed.eval --api MODEL_NAME [--base-url URL] --data MMedBench/Test --out results/NAME       (mmed/evaluation/api_client.py; the only use of the network)

    items -> prompts (mmed/prompts.py) -> rounds of items: decode, score answer strings -> rows -> tables and files (mmed/evaluation/results.py)

Each item is answered twice, as in the paper: directly (accuracy) and after a rationale (BLEU and ROUGE). `--scoring` adds
the likeliest answer string, in columns of its own. Killed at any moment and started again by the same command it goes on with
the round it was in, and the files come out the same to the byte.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from mmed.evaluation import api_client
from mmed.evaluation.answer_parser import PARSER_VERSION
from mmed.evaluation.api_client import add_api_options, server_from
from mmed.evaluation.results import RESULTS_VERSION, load_results, loglikelihood_row, table, text_row, write_results
from mmed.generate import encode_prompt, generate, load_model, progress_bar, score_many
from mmed.inference.option_scores import int8_difference
from mmed.inference.work_sharing import round_size, run_rounds
from mmed.languages import get_language
from mmed.metrics import METRICS_VERSION
from mmed.prompts import ANSWER_FORM, build_few_shot, build_messages, pick_examples, read_benchmark
from mmed.tokenization.chat_template import CHAT_TEMPLATES, encode_chat, render_chat, template_name
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.fingerprints import file_hash, model_fingerprint
from mmed.utils.journal import facts_that_differ

# MMedLM: inference.py allows 1,000 new tokens in both runs. DIFFERS: an answer alone is some ten tokens, so the clean style stops an
# answer-only run at this many: a model that has not answered by then rambles, and 1,000 tokens of it cost most of an evaluation.
ANSWER_TOKENS = 64
# Where a text is over, with --stop answer: behind a complete answer, or before the prompt's own headings if a base model goes on with
# an exercise of its own.
COMPLETE = re.compile(r"###Answer: OPTION [A-Z](?:, ?[A-Z])* IS CORRECT\.|(?=\s*(?:### ?(?:Instruction|Input|Response):|Below is an instruction))")


@dataclass(frozen=True)
class Question:
    """One item as the model gets it, for one mode."""

    item: object  # ExamItem
    mode: str
    prompt: str
    ids: list[int]

    @property
    def prompt_hash(self) -> str:
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def limit_items(items: list, limit: int) -> list:
    """The first `limit` items of each language (0: all)."""
    taken: dict[str, int] = {}
    kept = []
    for item in items:
        taken[item.language] = taken.get(item.language, 0) + 1
        if not limit or taken[item.language] <= limit:
            kept.append(item)
    return kept


def modes_of(options: argparse.Namespace) -> list[str]:
    """What is run for each item, the longest texts first."""
    modes = []
    if options.scoring != "loglikelihood":
        modes += ["rationale", "answer"] if options.mode == "both" else [options.mode]
    return modes + (["loglikelihood"] if options.scoring != "generate" else [])


def build_questions(items: Sequence, mode: str, options: argparse.Namespace, train: Sequence, encode, room: int) -> list[Question]:
    """The prompts of a mode; one that leaves too little room for an answer is an error, or with --too_long cut loses its beginning.

    `encode`: (item, examples, whether a rationale is asked for) -> (prompt, ids), see `encoder_of`.
    """
    questions = []
    need = min(token_limit(mode, options), room // 4)
    for item in items:
        rationale = mode == "rationale"
        shots = pick_examples(train, item, options.shots, options.seed, rationale) if options.shots else []
        prompt, ids = encode(item, shots, rationale)
        if len(ids) + need > room:
            if options.too_long == "error":
                raise UserError(f"item {item.key} ({item.language}): its prompt has {len(ids):,} tokens and needs {need:,} more for the answer, the model has "
                                f"{room:,} positions; use fewer --shots, or --too_long cut, which takes away its beginning as training does")
            ids = ids[:1] + ids[len(ids) - (room - need) + 1:]
        questions.append(Question(item, mode, prompt, ids))
    return questions


def encoder_of(model, tokenizer, options: argparse.Namespace):
    """How an item becomes prompt and ids: the published prompt for base and fine-tuned models, or with --turns the messages of an instruct model."""
    def plain(item, shots: Sequence, rationale: bool) -> tuple[str, list[int]]:
        prompt = build_few_shot(item, shots, rationale, options.style)
        return prompt, encode_prompt(tokenizer, prompt)

    def turns(item, shots: Sequence, rationale: bool) -> tuple[str, list[int]]:
        messages = build_messages(item, rationale, options.style, shots)
        return render_chat(tokenizer, messages, name=name), encode_chat(tokenizer, messages, name=name)

    if options.turns == "none":
        return plain
    name = template_name(tokenizer, model.config.family) if options.turns == "auto" else options.turns
    if name is None:
        raise UserError(f"{options.model}: its tokenizer has no turns (a base model); leave --turns out")
    return turns


def token_limit(mode: str, options: argparse.Namespace) -> int:
    if mode != "rationale" and options.style == "clean" and options.turns == "none":
        return min(options.max_new_tokens, ANSWER_TOKENS)
    return options.max_new_tokens


def candidates(item) -> list[str]:
    """What log-likelihood scoring chooses among, as `metrics.chance_level` counts it: the letters, or where several answers are
    right (and the item says so) every set of letters.

    >>> from mmed.prompts import ExamItem
    >>> candidates(ExamItem("?", {"A": "a", "B": "b"}, ("A",), "", "English", "1"))
    ['A', 'B']
    >>> candidates(ExamItem("?", {"A": "a", "B": "b"}, ("A", "B"), "", "English", "1"))
    ['A', 'B', 'A,B']
    """
    sizes = range(1, len(item.options) + 1) if len(item.answer) > 1 else (1,)
    return [",".join(letters) for size in sizes for letters in combinations(item.options, size)]


def answer_end(text: str) -> int | None:
    """Where the first complete answer ends; None without one. Nothing inside a reasoning model's thought counts.

    >>> answer_end("###Answer: OPTION A IS CORRECT. And now"), answer_end("<think>###Answer: OPTION A IS CORRECT.")
    (31, None)
    """
    thought = text.rfind("</think>")
    if "<think>" in text[max(thought, 0):]:
        return None
    match = COMPLETE.search(text, thought + len("</think>") if thought >= 0 else 0)
    return match.end() if match else None


def cut_at_answer(text: str) -> str:
    """The text up to the end of its first complete answer.

    >>> cut_at_answer("###Answer: OPTION A IS CORRECT. And now")
    '###Answer: OPTION A IS CORRECT.'
    """
    return text[:answer_end(text)]


def run_round(model, tokenizer, questions: dict[str, list[Question]], options: argparse.Namespace, bar) -> list[dict]:
    """Decode and score some items; rows in the order item by item, mode by mode."""
    stops = options.stop == "answer"
    rows: dict[tuple[str, str], dict] = {}
    asked = [question for mode, part in questions.items() if mode != "loglikelihood" for question in part]
    if asked:
        texts = generate(model, [question.ids for question in asked], [token_limit(question.mode, options) for question in asked],
                         end_ids=tokenizer.end_ids, vocab_size=tokenizer.vocab_size, max_batch_size=options.slots,
                         on_done=lambda *_: bar.update(),
                         stop=(lambda ids: answer_end(tokenizer.decode(ids, continued=True)) is not None) if stops else None)
        for question, ids in zip(asked, texts):
            text = tokenizer.decode(ids, continued=True)
            row = text_row(question.item, question.mode, question.prompt_hash, cut_at_answer(text) if stops else text, options.words)
            rows[question.item.key, question.mode] = row | {"new_tokens": len(ids)}
    scored = questions.get("loglikelihood", [])
    if scored:
        choices = [candidates(question.item) for question in scored]
        strings = [[tokenizer.encode(ANSWER_FORM.format(letters=letters), continued=True) for letters in part] for part in choices]
        for question, part, ids, sums in zip(scored, choices, strings, score_many(model, [question.ids for question in scored], strings,
                                                                                   on_done=lambda _: bar.update())):
            rows[question.item.key, "loglikelihood"] = loglikelihood_row(question.item, question.prompt_hash, part, sums, [len(i) for i in ids])
    items = next(iter(questions.values()))
    return [rows[question.item.key, mode] for question in items for mode in ("answer", "rationale", "loglikelihood")
            if (question.item.key, mode) in rows]


def evaluate(options: argparse.Namespace) -> dict:
    """Run, score and write; returns the summary. A finished folder of the same model, data and settings is only shown."""
    items = limit_items(read_benchmark(options.data), options.limit)
    if not options.api and not Path(options.model).is_dir():
        raise UserError(f"{options.model}: no such model folder")
    for name in {item.language for item in items}:  # a language or a package that is missing is said before hours of decoding
        language = get_language(name)
        if options.words == "official":
            language.official_words("x")
    settings = {name: getattr(options, name) for name in ("setting", "style", "mode", "scoring", "shots", "seed", "max_new_tokens", "stop", "words",
                                                          "limit", "slots", "too_long", "dtype", "turns", "bos")}
    if options.api:  # nothing is decoded here
        settings = {name: value for name, value in settings.items() if name not in ("slots", "too_long", "dtype", "turns", "bos")}
    facts = settings | {"model": options.server.facts() if options.api else model_fingerprint(options.model, options.adapter), "data": file_hash(options.data),
                        "train": file_hash(options.train) if options.shots else None,
                        "versions": f"results {RESULTS_VERSION}, parser {PARSER_VERSION}, metrics {METRICS_VERSION}"}
    settings |= {"model": options.api or str(options.model), "adapter": options.adapter, "data": str(options.data), "train": options.train}
    out = Path(options.out)
    if (out / "results.json").exists() and not options.force:
        before, _ = load_results(out)
        if differs := facts_that_differ(before["facts"], facts):
            raise UserError(f"{out}: holds the results of another run: {differs}; give another --out, or --force to replace them")
        (out / "predictions.jsonl.partial").unlink(missing_ok=True)  # killed after its last file
        print(f"{out} is complete; nothing to do (--force runs it again)", file=sys.stderr)
        return before["summary"]
    return (_evaluate_api if options.api else _evaluate)(items, options, settings, facts, out)


def _evaluate(items: list, options: argparse.Namespace, settings: dict, facts: dict, out: Path) -> dict:
    train = read_benchmark(options.train) if options.shots else []
    model, tokenizer = load_model(options.model, options.adapter, options.dtype, options.device, options.shard, options.bos)
    encode = encoder_of(model, tokenizer, options)
    questions = {mode: build_questions(items, mode, options, train, encode, model.config.max_position_embeddings) for mode in modes_of(options)}
    if options.dtype == "int8":
        print(int8_difference(model, [question.ids for question in next(iter(questions.values()))]), file=sys.stderr)
    (out / "results.json").unlink(missing_ok=True)  # with --force: what it says is no longer so
    bar = progress_bar(len(items) * len(questions), options.progress, "answer")
    size = round_size(options.slots)
    rounds = {start: {mode: column[start:start + size] for mode, column in questions.items()} for start in range(0, len(items), size)}
    costs = {start: sum(len(question.ids) + token_limit(mode, options) for mode, column in part.items() for question in column)
             for start, part in rounds.items()}
    journal = run_rounds(out / "predictions.jsonl", facts, costs, lambda start: run_round(model, tokenizer, rounds[start], options, bar),
                         force=options.force, on_skip=lambda start: bar.update(sum(map(len, rounds[start].values()))), model=model)
    bar.close()
    if journal is None:  # under torchrun rank 0 has all rounds and writes
        return {}
    prompts = {(question.item.key, question.mode): question.prompt for column in questions.values() for question in column}
    summary = write_results(out, list(journal.rows()), prompts, facts, settings)
    journal.discard()
    return summary


def _evaluate_api(items: list, options: argparse.Namespace, settings: dict, facts: dict, out: Path) -> dict:
    """The same over an API. api_calls.jsonl keeps every answer by its request, so none is asked for twice, whatever is scored anew."""
    train = read_benchmark(options.train) if options.shots else []
    questions, requests = [], []
    for item in items:
        for mode in sorted(modes_of(options)):
            rationale = mode == "rationale"
            shots = pick_examples(train, item, options.shots, options.seed, rationale) if options.shots else []
            if options.completions:
                prompt = build_few_shot(item, shots, rationale, options.style)
                requests.append(api_client.request(options.server, prompt, token_limit(mode, options)))
            else:  # without the short limit of answers: a chat model ends by itself, and one that thinks first needs the room
                messages = build_messages(item, rationale, options.style, shots)
                prompt = json.dumps(messages, ensure_ascii=False) if shots else messages[0]["content"]
                requests.append(api_client.request(options.server, messages, options.max_new_tokens))
            questions.append(Question(item, mode, prompt, []))
    store = api_client.CallStore(out / "api_calls.jsonl")
    (out / "results.json").unlink(missing_ok=True)
    with tqdm(total=len(requests), disable=not options.progress, unit=" answer", dynamic_ncols=True, mininterval=0.5) as bar:
        replies = api_client.ask(options.server, requests, store, on_done=lambda _: bar.update(),
                          labels=[f"item {question.item.key} ({question.item.language})" for question in questions])
    rows = []
    for question, reply in zip(questions, replies):
        text = cut_at_answer(reply["text"]) if options.stop == "answer" else reply["text"]
        row = text_row(question.item, question.mode, question.prompt_hash, text, options.words)
        rows.append(row | {"new_tokens": reply["completion_tokens"], "finish_reason": reply["finish_reason"]})
    counts = api_client.usage(replies)
    print(f"{counts['calls']:,} answers, {len(store.new):,} of them asked for now; tokens in {counts['prompt_tokens']:,}, out {counts['completion_tokens']:,}; "
          f"texts ended with {', '.join(f'{reason}: {n:,}' for reason, n in counts['finish_reasons'].items())}", file=sys.stderr)
    prompts = {(question.item.key, question.mode): question.prompt for question in questions}
    summary = write_results(out, rows, prompts, facts, settings | {"api": options.server.facts() | counts})
    store.close([api_client.request_key(options.server, body) for body in requests])
    return summary


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.eval", description="Put a model through MMedBench. "
                                     "The network is used only with --api.")
    parser.add_argument("--model", metavar="FOLDER", help="model folder (config.json, *.safetensors, tokenizer)")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to merge into it")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="exam items: a folder of JSONL files, or one file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="result folder")
    parser.add_argument("--setting", choices=("zero-shot", "few-shot", "finetuned"), help="row of the paper's tables that this is (default: zero-shot, "
                        "few-shot with --shots)")
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="solved examples before each question; needs --train")
    parser.add_argument("--train", metavar="FOLDER", help="where the examples come from")
    parser.add_argument("--scoring", choices=("generate", "loglikelihood", "both"), default="generate")
    parser.add_argument("--mode", choices=("both", "answer", "rationale"), default="both", help="texts to write: answer only, after a rationale, or both "
                        "in two passes as in the paper (default)")
    parser.add_argument("--style", choices=("clean", "official"), default="clean", help="official: the published prompt with its stray sentence")
    parser.add_argument("--turns", default="none", metavar="FORMAT", help="chat template of an instruct model: auto (from its tokenizer), or "
                        "llama2, llama3, mistral, mistral3, internlm2, qwen2, qwen3, gemma; default none: the published prompt as it is")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto", help="begin prompts with BOS; auto: as the tokenizer's files say")
    parser.add_argument("--words", choices=("default", "official"), default="default", help="official: nltk, jieba, janome for BLEU and ROUGE")
    parser.add_argument("--stop", choices=("answer", "end"), help="a text ends with its first complete answer (default), or only with the end token "
                        "(default with --style official)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N items of each language")
    parser.add_argument("--slots", type=int, default=32, metavar="N", help="items decoded side by side (default 32)")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="of a text (default 512; official 1000)")
    parser.add_argument("--too_long", choices=("error", "cut"), default="error", help="prompts longer than the model's positions")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="auto: bfloat16 on a GPU, else float32; "
                        "int8: weights of 8 bits for decoding, with what that changes printed")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--shard", action="store_true", help="under torchrun: cut the weights over all ranks, for a model larger than one GPU")
    parser.add_argument("--force", action="store_true", help="replace results of another model, data or settings")
    add_api_options(parser)
    options = parser.parse_args(arguments)
    options.setting = options.setting or ("few-shot" if options.shots else "zero-shot")
    options.stop = options.stop or ("end" if options.style == "official" else "answer")
    if options.max_new_tokens is None:
        options.max_new_tokens = 1000 if options.style == "official" else 512
    if options.slots < 1 or options.max_new_tokens < 1 or options.limit < 0 or options.shots < 0:
        raise UsageError("--slots and --max_new_tokens must be 1 or more, --limit and --shots 0 or more")
    if bool(options.shots) != bool(options.train) or (options.setting == "few-shot") != bool(options.shots):
        raise UsageError("few-shot needs both --shots K and --train FOLDER, the other settings neither")

    if options.turns not in ("none", "auto", *CHAT_TEMPLATES):
        raise UsageError(f"--turns {options.turns}: expected none, auto or one of {', '.join(CHAT_TEMPLATES)}")
    if options.api and options.turns != "none":
        raise UsageError("--turns: goes with --model; a server has its model's own")
    if bool(options.model) == bool(options.api):
        raise UsageError("give either --model FOLDER or --api MODEL_NAME")
    if options.api:
        if options.scoring != "generate":
            raise UsageError(f"--scoring {options.scoring}: an API does not tell how likely a given text is; score by generation, or use --model FOLDER")
        if options.adapter:
            raise UsageError("--adapter: goes with --model; a server has its own way to load one")
        options.server = server_from(options, options.seed)
    options.progress = sys.stderr.isatty()
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    summary = evaluate(options)
    if not summary:
        return 0

    print(table(summary, options.words))
    print(f"\n{options.setting}, prompt style {options.style} -> {options.out}")
    return 0


if __name__ == "__main__":
    main_guard(main)
