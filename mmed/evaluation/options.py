"""Parses the command line of `mmed.eval` into a complete and checked `EvalConfig`."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
    setting: str = option("", "row of the paper's tables (default: zero-shot; few-shot with --shots)",
                          "zero-shot", "few-shot", "finetuned")
    shots: int = option(0, "solved examples before each question; needs --train")
    train: str = option("", "folder with the items to take examples from")
    cot: bool = option(False, "few-shot chain of thought: examples with their rationales, and only "
                              "rationales are written; the signature names it as our own prompt")
    seed: int = option(0, "random seed for the choice of examples and the order of options")
    style: str = option("clean", "official: the published prompt with its stray sentence",
                        "clean", "official")
    chat_template: str = option("none", "for instruct models; auto: the tokenizer's own; none: the published "
                                        "prompt as it is", "none", "auto", *CHAT_TEMPLATES)
    bos: str = option("auto", "begin prompts with BOS; auto: as set in the tokenizer's files",
                      "auto", "yes", "no")
    too_long: str = option("error", "what to do with prompts beyond the context length", "error", "truncate")
    # Scoring
    scoring: str = option("generate", "comma-separated: generate, loglikelihood (of each letter), "
                                      "option_text (of the options' own texts); both: the first two")
    permutations: int = option(1, "ask each item this often with reordered options; reports mean accuracy, "
                                  "consistency and letter bias")
    mode: str = option("both", "generate the answer only, an answer after a rationale, or both (the paper)",
                       "both", "answer", "rationale")
    stop: str = option("", "stop at the first complete answer (default), or only at the end token (default "
                           "with --style official)", "answer", "end")
    words: str = option("default", "words of BLEU and ROUGE; official: nltk, jieba and janome",
                        "default", "official")
    equal_options: str = option("", "of two equal options, accept either letter (default), or only the one "
                                    "in the key (default with --style official)", "either", "keyed")
    # Local decoding
    batch_size: int = option(32, "texts per batch")
    max_new_tokens: int = option(0, "maximum length of a text; 0: 512, or 1000 with --style official")
    thinking_budget: int = option(0, "tokens that a thought may take before --max_new_tokens begin to count; "
                                     "a longer one is closed (local models); 0: a thought counts as text")
    dtype: str = option("auto", "auto: bfloat16 on a GPU, otherwise float32; int8: quantized weights",
                        "auto", "float32", "bfloat16", "int8")
    device: str = option("auto", "cpu, cuda, cuda:1, ...")
    server: api_client.Server | None = None  # with --api


GROUPS = {"model": "model and data", "setting": "prompt", "scoring": "scoring",
          "batch_size": "local decoding"}


def parse_options(arguments: list[str] | None = None) -> EvalConfig:
    """Parse the options, fill in defaults that depend on others, and check everything once."""
    parser = Parser(
        prog="python -m mmed.eval",
        description="Evaluate a model on MMedBench. Only --api uses the network.",
        example="python -m mmed.eval --model FOLDER --data MMedBench/Test --out results/NAME")
    add_options(parser, EvalConfig(), GROUPS)
    api_client.add_api_options(parser)
    options = parser.parse_args(arguments)
    official = options.style == "official"
    chosen = options.scoring.replace("both", "generate,loglikelihood").split(",")
    options.scoring = ",".join(name for name in SCORINGS if name in chosen)
    options.setting = options.setting or ("few-shot" if options.shots else "zero-shot")
    options.stop = options.stop or ("end" if official else "answer")
    options.equal_options = options.equal_options or ("keyed" if official else "either")
    options.max_new_tokens = options.max_new_tokens or (1000 if official else 512)
    for wrong, message in rules(options, chosen):
        if wrong:
            raise UsageError(message)
    if options.cot:
        options.mode = "rationale"
    options.server = api_client.server_from(options, options.seed) if options.api else None
    return EvalConfig(**{field.name: getattr(options, field.name) for field in fields(EvalConfig)})


def rules(options: Any, chosen: list[str]) -> list[tuple[Any, str]]:
    """(whether the options break a rule, the rule); `chosen`: the names in --scoring."""
    unknown = ", ".join(repr(name) for name in chosen if name not in SCORINGS)
    few_shot = {bool(options.shots), bool(options.train), options.setting == "few-shot"}
    no_rationales = not options.shots or "generate" not in chosen or options.mode == "answer"
    local = "option_text" in chosen or options.adapter or options.chat_template != "none"
    return [
        (not options.data or not options.out, "give --data and --out"),
        (bool(options.model) == bool(options.api), "give either --model FOLDER or --api MODEL_NAME"),
        (unknown, f"--scoring: {unknown} is none of {', '.join(SCORINGS)}, both"),
        (min(options.batch_size, options.max_new_tokens, options.permutations) < 1
         or min(options.limit, options.shots, options.thinking_budget) < 0,
         "--batch_size, --max_new_tokens and --permutations must be 1 or more, --limit, --shots and "
         "--thinking_budget 0 or more"),
        (options.permutations > 1 and "option_text" in chosen,
         "--permutations must be 1 with --scoring option_text, whose prompt does not list the options"),
        (len(few_shot) > 1, "few-shot needs both --shots K and --train FOLDER; other settings take neither"),
        (options.cot and no_rationales, "--cot needs --shots K and texts with rationales"),
        (options.api and local, "--scoring option_text, --adapter and --chat_template need --model FOLDER"),
        (options.api and "loglikelihood" in chosen and not options.completions,
         "--scoring loglikelihood behind a server needs --completions: chat servers cannot score given text"),
    ]
