"""The command line of `mmed.eval`, as an `EvalConfig` that is complete and checked."""
from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from mmed.evaluation import api_client
from mmed.tokenization.chat_template import CHAT_TEMPLATES
from mmed.utils.errors import Parser, UsageError

SCORINGS = ("generate", "loglikelihood", "option_text")


@dataclass(frozen=True)
class EvalConfig:
    """The options of `mmed.eval`, with the defaults that depend on each other filled in."""

    data: str
    out: str
    model: str  # folder of a local model; with `server` ""
    adapter: str | None
    server: api_client.Server | None
    force: bool
    limit: int
    setting: str
    # prompt
    shots: int
    train: str | None
    cot: bool
    seed: int
    style: str
    chat_template: str
    bos: str
    too_long: str
    # scoring
    scoring: str
    permutations: int
    mode: str
    stop: str
    words: str
    equal_options: str
    # decoding
    max_new_tokens: int
    batch_size: int
    dtype: str
    device: str


def parse_scoring(given: str) -> str:
    """The value of --scoring in one order; "both" are the first two.

    >>> parse_scoring("option_text,both")
    'generate,loglikelihood,option_text'
    """
    names = given.replace("both", "generate,loglikelihood").split(",")
    for name in names:
        if name not in SCORINGS:
            raise UsageError(f"--scoring {given}: {name!r} is none of {', '.join(SCORINGS)}, both")
    return ",".join(name for name in SCORINGS if name in names)


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
        help="comma-separated: generate (default), loglikelihood (of each letter in the answer), "
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
    add("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto",
        help="auto: bfloat16 on a GPU, else float32; int8: quantized weights, with their effect printed")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
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
    if options.batch_size < 1 or options.max_new_tokens < 1 or options.limit < 0 or options.shots < 0:
        raise UsageError("--batch_size and --max_new_tokens must be 1 or more, --limit and --shots 0 or more")
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
