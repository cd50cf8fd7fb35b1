"""All settings of a training run: one flat dataclass, the paper's runs as recipes, and the command line.

    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b \
        --data=streams/en,streams/zh --out=runs/mmedlm2

The recipe comes first, then options named after their fields. References in brackets are sections
of docs/method.md.
"""
from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mmed.utils.errors import Parser, UsageError, require_extra

POSITIVE, NATURAL = "more than 0", "0 or more"
SHARE, PART, SEED = "a share from 0 to 1", "a share from 0 to below 1", "a number from 0 to 4294967295"
HIGHEST = {SHARE: 1, PART: math.nextafter(1, 0), SEED: 2 ** 32 - 1}


def option(default: Any, help: str, *choices: str, bounds: str = "") -> Any:
    """A field of `TrainConfig`: its default, meaning, and the values it may have (none given: any)."""
    return field(default=default, metadata={"help": help, "choices": choices, "bounds": bounds})


@dataclass(frozen=True)
class TrainConfig:
    # Data and model
    task: str = option("pretrain", "train on token streams (pretrain), exam items (finetune), conversations",
                       "pretrain", "finetune", "instruct")
    model: str = option("", "model folder, or shape:NAME for random weights of a named shape")
    tokenizer: str = option("", "tokenizer folder (default: the model folder)")
    data: str = option("", "token streams NAME[=WEIGHT],... or a file or folder of items or conversations")
    validation: str = option("", "streams, JSONL documents or exam items whose loss is measured per language")
    bos: str = option("auto", "begin documents and prompts with BOS; auto: as set in the tokenizer's files",
                      "auto", "yes", "no")
    out: str = option("runs/run", "run folder")
    resume: str = option("never", "auto: continue from the last checkpoint, if any; step-N: from that one; "
                                  "never: the folder must be new")
    # Rows
    sequence_length: int = option(2048, "tokens per row", bounds=POSITIVE)
    windows: str = option("packed", "pretrain: rows of whole documents (packed), or the paper's windows",
                          "packed", "official")
    mix_temperature: float = option(1.0, "for streams without weights; 1: every row once an epoch; else a "
                                         "stream's share ~ tokens ** (1 / temperature)", bounds=POSITIVE)
    rationales: str = option("both", "finetune: train on items with their rationale, without it, or both",
                             "both", "with", "without")
    prompt_style: str = option("clean", "finetune: official adds the stray sentence of the paper's code",
                               "clean", "official")
    # Steps
    global_batch_size: int = option(512, "rows or exam items per step, over all ranks", bounds=POSITIVE)
    micro_batch_size: int = option(8, "rows per rank and forward pass", bounds=POSITIVE)
    max_steps: int = option(0, "optimizer steps; 0: as many as `epochs` needs", bounds=NATURAL)
    epochs: float = option(1.0, "passes over the data, if max_steps is 0", bounds=POSITIVE)
    # Optimizer
    learning_rate: float = option(2e-5, "peak learning rate", bounds=POSITIVE)
    schedule: str = option("cosine", "learning rate after warm-up", "cosine", "constant")
    warmup_ratio: float = option(0.01, "warm-up, as a fraction of the steps", bounds=SHARE)
    min_lr_ratio: float = option(0.0, "cosine: final learning rate, as a fraction of the peak", bounds=SHARE)
    weight_decay: float = option(0.01, "applied to matrices only, not to norms and biases", bounds=NATURAL)
    beta2: float = option(0.999, "of AdamW (beta1 is 0.9, epsilon 1e-8)", bounds=PART)
    max_grad_norm: float = option(1.0, "clip gradients to this norm", bounds=POSITIVE)
    skip_nonfinite: int = option(0, "batches with a non-finite loss or gradient to skip before failing",
                                 bounds=NATURAL)
    # LoRA
    lora_rank: int = option(0, "rank of the LoRA update; 0: train all weights", bounds=NATURAL)
    lora_alpha: float = option(16.0, "the update is scaled by alpha / rank", bounds=POSITIVE)
    lora_dropout: float = option(0.05, "dropout on the adapters' input", bounds=PART)
    lora_targets: str = option("paper", "layer names, comma-separated, or all-linear; paper: q_proj,v_proj, "
                                        "or the family's packed query/key/value matrix")
    # Machine
    precision: str = option("bf16", "bf16 keeps fp32 weights and reduces gradients in fp32", "bf16", "fp32")
    compile: str = option("auto", "torch.compile the blocks; auto: on a GPU, unless the model is tiny",
                          "auto", "yes", "no")
    activation_checkpointing: str = option("no", "recompute all or every second block in the backward pass: "
                                                 "less memory, up to a third more time", "no", "half", "all")
    optimizer_state_dtype: str = option("fp32", "bf16: rounded stochastically, 4 bytes less per parameter",
                                        "fp32", "bf16")
    shard_size: int = option(0, "ranks that share one copy of the weights, such as a node's GPUs; 0: all",
                             bounds=NATURAL)
    rank_timeout_seconds: int = option(600, "end the run if a rank waits this long for another",
                                       bounds=POSITIVE)
    deterministic: bool = option(False, "make GPU results bit-identical, but slower (CPU results always are)")
    seed: int = option(42, "random seed for data order, initial weights and dropout", bounds=SEED)
    # Reports and checkpoints
    log_every: int = option(1, "log every N steps", bounds=POSITIVE)
    log: str = option("none", "also write the numbers of metrics.jsonl to TensorBoard or Weights & Biases",
                      "none", "tensorboard", "wandb")
    eval_every: int = option(0, "validate every N steps; 0: only before the first and after the last",
                             bounds=NATURAL)
    save_every: int = option(200, "save every N steps, at the end, and on a stop signal; 0: only these two",
                             bounds=NATURAL)
    keep_last: int = option(2, "number of checkpoints to keep", bounds=POSITIVE)
    async_save: bool = option(True, "write checkpoints in the background, from a copy in host memory")
    dry_run: bool = option(False, "print parameters, tokens per step, memory per rank and time, and stop")
    simulate_ranks: int = option(0, "simulate one step on this many ranks without data, and print memory and "
                                    "traffic; with dry_run: estimate for this many ranks", bounds=NATURAL)


# Option -> the option without which it does nothing, and its value (none: any but 0 or empty)
NEEDS = {"windows": "task=pretrain", "mix_temperature": "task=pretrain", "rationales": "task=finetune",
         "prompt_style": "task=finetune", "epochs": "max_steps=0", "min_lr_ratio": "schedule=cosine",
         "lora_alpha": "lora_rank", "lora_dropout": "lora_rank", "lora_targets": "lora_rank",
         "eval_every": "validation"}

# The first field of each group of --help.
GROUPS = {"task": "data and model", "sequence_length": "rows", "global_batch_size": "steps",
          "learning_rate": "optimizer", "lora_rank": "LoRA", "precision": "machine",
          "log_every": "reports and checkpoints"}

# ---------------------------------------------------------------------------------------------------- recipes
# MMedLM: every number of the paper's recipes is from its scripts or model cards [3.1 and 3.2].

_PRETRAIN = TrainConfig(
    task="pretrain", sequence_length=2048, global_batch_size=512, micro_batch_size=8, learning_rate=2e-5,
    warmup_ratio=0.01, weight_decay=0.01, max_grad_norm=1.0, precision="bf16", activation_checkpointing="all",
    save_every=200, keep_last=2, eval_every=200, resume="auto")
_FINETUNE = replace(
    _PRETRAIN, task="finetune", global_batch_size=128, micro_batch_size=4, learning_rate=1e-6, epochs=5,
    warmup_ratio=0.03, weight_decay=0.0, rationales="both")

# The stages of the demo (docs/demo.md explains the numbers).
_DEMO = TrainConfig(precision="fp32", beta2=0.99, resume="auto", log_every=10)
_DEMO_EXERCISES = replace(
    _DEMO, task="finetune", sequence_length=256, global_batch_size=32, micro_batch_size=16, max_steps=700,
    learning_rate=5e-3, schedule="constant", warmup_ratio=0.02, weight_decay=0.0, rationales="with")
_DEMO_TEXT = replace(
    _DEMO, task="pretrain", sequence_length=256, global_batch_size=4, micro_batch_size=4, max_steps=250,
    learning_rate=2e-3, warmup_ratio=0.02, weight_decay=0.01, save_every=400, eval_every=300)
_DEMO_EXAM = replace(_DEMO_EXERCISES, global_batch_size=16, max_steps=300, learning_rate=2e-3,
                     schedule="cosine", warmup_ratio=0.05)


def recipe(description: str, base: TrainConfig, **changes: Any) -> tuple[str, TrainConfig]:
    return description, replace(base, **changes)


RECIPES: dict[str, tuple[str, TrainConfig]] = {
    "pretrain_mmedlm": recipe("InternLM 7B -> MMedLM: pretrain/*.sh, its 3 epochs", _PRETRAIN, epochs=3),
    "pretrain_mmedlm2": recipe("InternLM 2 -> MMedLM 2: 15,000 steps of 512 x 2,048 (model card)", _PRETRAIN,
                               max_steps=15000),
    "pretrain_mmed_llama3": recipe(
        "Llama 3 8B -> MMed-Llama 3: 15,000 steps of 512, context 8,192 (model card)", _PRETRAIN,
        max_steps=15000, sequence_length=8192, micro_batch_size=2),
    # Assumed: the settings of the 70B model are not published. 64 GPUs of 80 GB (docs/scale.md).
    "pretrain_mmed_llama3_70b": recipe(
        "Llama 3.1 70B -> MMed-Llama 3.1 70B: settings unpublished, those of the 8B model", _PRETRAIN,
        max_steps=15000, sequence_length=8192, micro_batch_size=1),
    "finetune_full": recipe(
        "full fine-tuning on MMedBench: learning rate 1e-6, 5 epochs, batch 128 (finetune/*.sh)", _FINETUNE),
    # DIFFERS: alpha is undefined in the official code, whose LoRA runs stop there; we take 16. 2e-5 and 3
    # epochs are the script's; the README's table says 1e-6 and 5 [D17].
    "finetune_lora": recipe(
        "LoRA on MMedBench: r 16, dropout 0.05, q_proj and v_proj, 2e-5, 3 epochs, batch 128 (finetune/*.sh)",
        _FINETUNE, learning_rate=2e-5, epochs=3, micro_batch_size=1, lora_rank=16, lora_alpha=16,
        lora_dropout=0.05, lora_targets="paper", activation_checkpointing="no"),
    # DIFFERS: the settings of MMed-Llama 3-EnIns were never published; these are those of the paper's full
    # fine-tuning, but 3 epochs, as the data has 11 times the items.
    "instruct_enins": recipe(
        "MMed-Llama 3 -> MMed-Llama 3-EnIns: English instructions (docs/instruct.md says what is assumed)",
        _FINETUNE, task="instruct", epochs=3),
    "tiny": recipe(
        "a model of 1 M learns to write this package's own source: a minute on a laptop, no data needed",
        TrainConfig(), task="pretrain", model="shape:tiny", data="source", out="runs/tiny",
        sequence_length=256, global_batch_size=16, micro_batch_size=16, max_steps=150, learning_rate=2e-3,
        warmup_ratio=0.05, weight_decay=0.1, precision="fp32", save_every=100),
    "demo_school": recipe(
        "the demo's first stage: exercises about everyday things in one language, from random weights",
        _DEMO_EXERCISES, model="shape:micro"),
    "demo_exercises": recipe("the demo: the same exercises in all languages", _DEMO_EXERCISES, max_steps=900,
                             learning_rate=6e-3, schedule="cosine", min_lr_ratio=0.2),
    "demo_base": recipe("the demo's base model: ordinary text", _DEMO_TEXT),
    "demo_corpus": recipe("the demo's continued pre-training", _DEMO_TEXT, max_steps=1500,
                          learning_rate=4e-3),
    "demo_full": recipe("the demo's full fine-tuning on exam questions", _DEMO_EXAM),
    "demo_lora": recipe("the demo's LoRA", _DEMO_EXAM, lora_rank=16, lora_alpha=32,
                        lora_targets="q_proj,v_proj", learning_rate=1e-2),
}


def shape(width: int, mlp_width: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict:
    """Keys of `ModelConfig` for a Llama-like model."""
    return {"hidden_size": width, "intermediate_size": mlp_width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width // heads, **more}


# For --model=shape:NAME (random weights): the demo's and the benchmarks' models.
SHAPES: dict[str, dict] = {
    "tiny": shape(128, 352, 4, 4, 4),
    # The demo's: large initial weights (1 / sqrt(width)) and fast rotations let such a small model learn to
    # copy names in minutes. A tied head would pull together the embeddings of names not yet seen.
    "micro": shape(64, 192, 3, 2, 2, rope_theta=1000.0, initializer_range=0.125),
    "10m": shape(256, 1024, 8, 8, 8, tie_word_embeddings=True),  # examples/real_run: 10.4 M with 8,000 words
    "25m": shape(384, 1536, 8, 6, 6),
    "internlm2-1.8b": shape(2048, 8192, 24, 16, 8, rope_theta=1e6, max_position_embeddings=32768),
    "internlm2-7b": shape(4096, 14336, 32, 32, 8, rope_theta=1e6, max_position_embeddings=32768),
    "llama3-8b": shape(4096, 14336, 32, 32, 8, rope_theta=500000.0, max_position_embeddings=8192),
    "llama3-70b": shape(8192, 28672, 80, 64, 8, rope_theta=500000.0, max_position_embeddings=8192),
}
# Vocabulary sizes of published models, for shapes without a tokenizer (others: 8192).
VOCABULARIES = {"internlm2": 92544, "llama3": 128256}

# ----------------------------------------------------------------------------------------------- command line

def parse_value(kind: str, text: str) -> object:
    """Parse an option's value; `kind` is its field's annotation (bool, int, float or str)."""
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        value = {"int": int, "float": float, "str": str}[kind](text)
        if kind == "float" and not math.isfinite(value):
            raise ValueError
        return value
    except (KeyError, ValueError):
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}[kind]
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def check(config: TrainConfig) -> TrainConfig:
    """Return `config` if its values are in range; otherwise raise a `UsageError` that names the option."""
    reads_data = config.dry_run or not config.simulate_ranks
    required = {"model", "out", "data"} if reads_data else {"model", "out"}
    for one in fields(config):
        wanted, value = one.metadata["bounds"], getattr(config, one.name)
        if one.name in required and not value:
            raise UsageError(f"--{one.name} is missing: {one.metadata['help']}")
        if wanted and (value < 0 or (wanted == POSITIVE and not value) or value > HIGHEST.get(wanted, value)):
            raise UsageError(f"--{one.name}={value}: expected {wanted}")
    if not re.fullmatch(r"auto|never|step-\d+", config.resume):
        raise UsageError(f"--resume={config.resume}: expected auto, never or a checkpoint such as step-200")
    if config.data == "source" and config.tokenizer and reads_data:
        raise UsageError(f"--tokenizer={config.tokenizer}: --data=source trains a tokenizer of its own")
    if config.log != "none":
        require_extra(config.log, config.log)
    return config


def check_needs(config: TrainConfig, given: Collection[str]) -> None:
    """Raise a `UsageError` for an option of `given` that does nothing with the other settings."""
    for name, needed in NEEDS.items():
        other, _, wanted = needed.partition("=")
        value = getattr(config, other)
        fits = str(value) == wanted if wanted else bool(value)
        if name in given and not fits:
            raise UsageError(f"--{name}={getattr(config, name)}: does nothing without --{needed}; the run "
                             f"has {other}={value!r}")


def make_parser(recipe: str) -> Parser:
    """The parser of train.py; --help shows the defaults of `recipe`, if it is one."""
    about = "A recipe sets some of the defaults below: `train.py RECIPE --help` shows its own."
    if recipe in RECIPES:
        about = f"Defaults below are those of {recipe}."
    recipes = "\n".join(f"  {name:26}{text}" for name, (text, _) in RECIPES.items())
    parser = Parser(
        prog="train.py", usage="train.py RECIPE [--option=value ...]",
        description="Continued pre-training, full fine-tuning and LoRA, on one process or under torchrun.\n\n"
                    f"recipes:\n{recipes}\n\n{about}",
        epilog="example: python mmed/train.py tiny --out=runs/tiny\n"
               "exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped (continue with --resume=auto)")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe from the list above")
    add_options(parser, RECIPES[recipe][1] if recipe in RECIPES else TrainConfig(), GROUPS)
    return parser


def add_options(parser: Parser, defaults: Any, groups: dict[str, str]) -> None:
    """Add an option for each `option` field of a dataclass; `defaults` is an instance of it."""
    group: Any = parser
    for one in (one for one in fields(defaults) if one.metadata):
        if one.name in groups:
            group = parser.add_argument_group(groups[one.name])
        default, choices = getattr(defaults, one.name), one.metadata["choices"]
        flag: dict[str, Any] = {"nargs": "?", "const": True} if one.type == "bool" else {}
        group.add_argument(
            f"--{one.name}", default=default, type=functools.partial(parse_value, str(one.type)),
            choices=choices or None, metavar="|".join(choices) or str(one.type).upper(),
            help=one.metadata["help"] + (f" (default: {default!s})" if default != "" else ""), **flag)


def parse_command_line(arguments: list[str]) -> tuple[str, TrainConfig]:
    """(recipe name, config) of `RECIPE --field=value ...`; `--field value` and dashes in names work, too."""
    words = arguments or ["--help"]
    recipe = make_parser(words[0]).parse_args(words).recipe
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    options = make_parser(recipe).parse_args(words)  # wherever the recipe stands, its own defaults count
    config = check(TrainConfig(**{one.name: getattr(options, one.name) for one in fields(TrainConfig)}))
    check_needs(config, {word[2:].partition("=")[0].replace("-", "_") for word in words if word[:2] == "--"})
    return recipe, config
