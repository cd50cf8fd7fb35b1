"""Parses the command line of `mmed.eval` into a complete and checked `EvalConfig`."""
from __future__ import annotations

from dataclasses import dataclass, fields

from mmed.config import add_options, option
from mmed.evaluation import api_client
from mmed.tokenization.chat_template import CHAT_TEMPLATES
from mmed.utils.errors import Parser, UsageError

SCORINGS = ("generate", "loglikelihood", "option_text")


@dataclass(frozen=True)
class EvalConfig:
    """The options of `mmed.eval`; an empty one has no value, or a default that depends on others."""

    model: str = option("", "model folder (config.json, *.safetensors, tokenizer)")
    adapter: str = option("", "folder of a LoRA adapter to merge into it")
    data: str = option("", "exam items: a folder of JSONL files, or one file")
    out: str = option("", "result folder")
    force: bool = option(False, "replace results of another model, data or settings")
    limit: int = option(0, "the first N items of each language; 0: all")
    # Prompt
    setting: str = option("", "row of the paper's tables for this result (default: zero-shot; few-shot "
                              "with --shots)", "zero-shot", "few-shot", "finetuned")
    shots: int = option(0, "solved examples before each question; needs --train")
    train: str = option("", "folder with the items to take examples from")
    cot: bool = option(False, "few-shot chain of thought: the examples show their rationales, and only "
                              "rationales are written; the signature names it as our own prompt")
    seed: int = option(0, "random seed for the choice of examples and the order of options")
    style: str = option("clean", "official: the published prompt with its stray sentence",
                        "clean", "official")
    chat_template: str = option("none", "for instruct models; auto: the tokenizer's own; none: the "
                                        "published prompt as it is", "none", "auto", *CHAT_TEMPLATES)
    bos: str = option("auto", "begin prompts with BOS; auto: as set in the tokenizer's files",
                      "auto", "yes", "no")
    too_long: str = option("error", "what to do with prompts beyond the context length", "error", "truncate")
    # Scoring
    scoring: str = option("generate", "comma-separated: generate, loglikelihood (of each letter in the "
                                      "answer), option_text (likelihood of the options' own texts); both: "
                                      "the first two")
    permutations: int = option(1, "ask each item this often with reordered options; reports mean "
                                  "accuracy, consistency and letter bias")
    mode: str = option("both", "generate the answer only, an answer after a rationale, or both (the paper)",
                       "both", "answer", "rationale")
    stop: str = option("", "stop at the first complete answer (default), or only at the end token "
                           "(default with --style official)", "answer", "end")
    words: str = option("default", "tokenization for BLEU and ROUGE; official: nltk, jieba and janome, as "
                                   "on the leaderboard", "default", "official")
    equal_options: str = option("", "if two options of an item are equal, accept either letter "
                                    "(default), or only the one in the answer key (default with --style "
                                    "official)", "either", "keyed")
    # Local decoding
    batch_size: int = option(32, "texts per batch")
    max_new_tokens: int = option(0, "maximum length of a text; 0: 512, or 1000 with --style official")
    thinking_budget: int = option(0, "tokens that a thought may take before --max_new_tokens begin to count; "
                                     "a longer one is closed (local models), and the answer follows; 0: a "
                                     "thought counts as text")
    dtype: str = option("auto", "auto: bfloat16 on a GPU, otherwise float32; int8: quantized weights; "
                                "prints their effect", "auto", "float32", "bfloat16", "int8")
    device: str = option("auto", "cpu, cuda, cuda:1, ...")
    server: api_client.Server | None = None  # with --api


GROUPS = {"model": "model and data", "setting": "prompt", "scoring": "scoring",
          "batch_size": "local decoding"}


def parse_scoring(given: str) -> str:
    """Parse --scoring into a fixed order; "both" means the first two.

    >>> parse_scoring("option_text,both")
    'generate,loglikelihood,option_text'
    """
    names = given.replace("both", "generate,loglikelihood").split(",")
    for name in names:
        if name not in SCORINGS:
            raise UsageError(f"--scoring {given}: {name!r} is none of {', '.join(SCORINGS)}, both")
    return ",".join(name for name in SCORINGS if name in names)


def parse_options(arguments: list[str] | None = None) -> EvalConfig:
    """Parse the options, fill in defaults that depend on others, and check everything once."""
    parser = Parser(
        prog="python -m mmed.eval",
        description="Evaluate a model on MMedBench. Only --api uses the network.",
        epilog="example: python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME")
    add_options(parser, EvalConfig(), GROUPS)
    api_client.add_api_options(parser)
    options = parser.parse_args(arguments)
    if not options.data or not options.out:
        raise UsageError("give --data and --out")
    official = options.style == "official"
    options.scoring = parse_scoring(options.scoring)
    options.setting = options.setting or ("few-shot" if options.shots else "zero-shot")
    options.stop = options.stop or ("end" if official else "answer")
    options.equal_options = options.equal_options or ("keyed" if official else "either")
    options.max_new_tokens = options.max_new_tokens or (1000 if official else 512)
    at_least_0 = options.limit, options.shots, options.thinking_budget
    if options.batch_size < 1 or options.max_new_tokens < 1 or min(at_least_0) < 0:
        raise UsageError("--batch_size and --max_new_tokens must be 1 or more, --limit, --shots and "
                         "--thinking_budget 0 or more")
    if options.permutations < 1 or (options.permutations > 1 and "option_text" in options.scoring):
        raise UsageError("--permutations must be 1 or more, without --scoring option_text, whose prompt does "
                         "not list the options")
    if bool(options.shots) != bool(options.train) or (options.setting == "few-shot") != bool(options.shots):
        raise UsageError("few-shot needs both --shots K and --train FOLDER; other settings take neither")
    if options.cot:
        if not options.shots or "generate" not in options.scoring or options.mode == "answer":
            raise UsageError("--cot needs --shots K and texts with rationales (no --mode answer)")
        options.mode = "rationale"
    if bool(options.model) == bool(options.api):
        raise UsageError("give either --model FOLDER or --api MODEL_NAME")
    options.server = None
    if options.api:
        if "option_text" in options.scoring:
            raise UsageError("--scoring option_text needs --model FOLDER")
        if "loglikelihood" in options.scoring and not options.completions:
            raise UsageError("--scoring loglikelihood behind a server needs --completions: chat servers do "
                             "not score a given text")
        if options.adapter or options.chat_template != "none":
            raise UsageError("--adapter and --chat_template need --model; a server applies its own")
        options.server = api_client.server_from(options, options.seed)
    return EvalConfig(**{field.name: getattr(options, field.name) for field in fields(EvalConfig)})
