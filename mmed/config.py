"""All knobs of a training run: one flat dataclass, the paper's runs as named recipes, and dataclass <-> command line.

    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b --data=streams/en,streams/zh --out=runs/mmedlm2

Recipe first, then flags; flag names are field names. Sources in brackets are sections of docs/method.md.
"""
from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from dataclasses import dataclass

from mmed.utils.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    # what to train, on what, where to
    task: str = "pretrain"            # "pretrain": token streams | "finetune": exam items
    model: str = ""                   # model folder to start from, or shape:NAME for random weights of a named shape
    tokenizer: str = ""               # tokenizer folder; empty: the model folder's own
    data: str = ""                    # pretrain: stream names, comma-separated, each with =WEIGHT or none; finetune: JSONL file or folder
    validation: str = ""              # pretrain: token streams or JSONL files of documents; finetune: exam items. Loss on it, per language, before step 1, every eval_every steps and at the end
    bos: str = "auto"                 # begin documents and prompts with BOS: "yes" | "no" | "auto": as the tokenizer's files say
    out: str = "runs/run"             # run folder (DESIGN section 3)
    resume: str = "never"             # "auto": go on from the run folder's last checkpoint if there is one | step-N: from that one | "never": the folder must be new
    allow_changed: str = ""           # on resume: what may differ from what the run was started with, comma-separated; noted in run.json
    # rows
    sequence_length: int = 2048       # tokens of a row
    windows: str = "packed"           # pretrain: "packed": whole documents, each seeing itself only | "official": 2048 with stride 1536, padding trained on
    mix_temperature: float = 1.0      # pretrain: share of a stream ~ tokens ** (1 / temperature); 1: every token once an epoch
    rationales: str = "both"          # finetune: "both" (each item twice) | "with" | "without"
    prompt_style: str = "clean"       # finetune: "clean" | "official" (with the stray sentence)
    # steps
    global_batch_size: int = 512      # rows (pretrain) or exam examples (finetune) per optimizer step, over all ranks
    micro_batch_size: int = 8         # rows per rank per forward pass
    max_steps: int = 0                # optimizer steps; 0: as `epochs` says
    epochs: float = 1.0               # passes over the data when max_steps is 0
    # optimizer
    learning_rate: float = 2e-5       # peak
    schedule: str = "cosine"          # "cosine" to min_lr_ratio | "constant" after warm-up
    warmup_ratio: float = 0.01        # share of the steps
    min_lr_ratio: float = 0.0         # of the peak, at the end
    weight_decay: float = 0.01        # on matrices; norms and biases have none
    beta2: float = 0.999              # AdamW; beta1 is 0.9, epsilon 1e-8
    max_grad_norm: float = 1.0        # gradient norm beyond which it is scaled down
    # LoRA
    lora_rank: int = 0                # 0: train all weights
    lora_alpha: float = 16.0          # the update is scaled by alpha / rank
    lora_dropout: float = 0.05
    lora_targets: str = "paper"       # layer names, comma-separated, or all-linear; paper: q_proj,v_proj, or the packed qkv of the family
    # machine
    precision: str = "bf16"           # "bf16": compute, with fp32 master weights and reduction | "fp32"
    compile: str = "auto"             # torch.compile of the blocks: "yes" | "no" | "auto": if the run is long enough to win its minute back
    activation_checkpointing: str = "no"  # "all": compute each block again in the backward pass, less memory, a third more time | "half" of them | "no"
    moments: str = "fp32"             # AdamW's: "fp32" | "bf16", rounded at random so that small changes add up: 4 bytes a parameter less
    step_in_backward: bool = False    # update each weight as soon as its gradient is whole: no gradients kept; one process, one micro-batch a step
    shard_size: int = 0               # ranks that share one copy of the weights (hybrid sharding), e.g. the GPUs of a node; 0: all ranks
    rank_timeout_seconds: int = 600   # a rank that waits for another so long ends the run
    deterministic: bool = False       # GPU: the same bits every time, slower (on a CPU they are the same anyway)
    seed: int = 42
    # what goes wrong
    skip_nonfinite: int = 0           # batches a run may leave out because loss or gradient was not finite; one more ends it
    # reports and saves
    log_every: int = 1                # steps
    eval_every: int = 0               # steps; 0: only at the end
    save_every: int = 200             # steps; a checkpoint is written at the end and at a stop signal anyway
    keep_last: int = 2                # checkpoints kept
    async_save: bool = True           # write checkpoints beside the training, from a copy in host memory
    profile: int = 0                  # steps to record, after a few to warm up, in OUT/trace.json (chrome://tracing, ui.perfetto.dev)
    dry_run: bool = False             # print parameters, tokens a step, memory by part and rank and the time it will take, and stop


# --------------------------------------------------------------------------------------------------------------- recipes
# MMedLM: every number of the paper's recipes is from its scripts or model cards (METHOD 3.1 and 3.2).

_PRETRAIN = TrainConfig(task="pretrain", sequence_length=2048, global_batch_size=512, micro_batch_size=8, learning_rate=2e-5,
                        warmup_ratio=0.01, weight_decay=0.01, max_grad_norm=1.0, precision="bf16", activation_checkpointing="all",
                        save_every=200, keep_last=2, eval_every=200, seed=42, resume="auto")
_FINETUNE = TrainConfig(task="finetune", sequence_length=2048, global_batch_size=128, micro_batch_size=4, learning_rate=1e-6, epochs=5,
                        warmup_ratio=0.03, weight_decay=0.0, max_grad_norm=1.0, precision="bf16", activation_checkpointing="all",
                        save_every=200, eval_every=200, seed=42, resume="auto", rationales="both")

# The demo's stages (docs/demo.md says how each number was found).
_DEMO = TrainConfig(precision="fp32", beta2=0.99, resume="auto", log_every=10)
_DEMO_EXERCISES = dataclasses.replace(_DEMO, task="finetune", sequence_length=256, global_batch_size=32, micro_batch_size=16, max_steps=700,
                                      learning_rate=5e-3, schedule="constant", warmup_ratio=0.02, weight_decay=0.0, rationales="with", save_every=200)
_DEMO_TEXT = dataclasses.replace(_DEMO, task="pretrain", sequence_length=256, global_batch_size=4, micro_batch_size=4, max_steps=250,
                                 learning_rate=2e-3, warmup_ratio=0.02, weight_decay=0.01, save_every=400, eval_every=300)
_DEMO_EXAM = dataclasses.replace(_DEMO_EXERCISES, global_batch_size=16, max_steps=300, learning_rate=2e-3, schedule="cosine", warmup_ratio=0.05)

RECIPES: dict[str, tuple[str, TrainConfig]] = {
    "pretrain_mmedlm": ("InternLM 7B -> MMedLM: pretrain/*.sh, its 3 epochs",
                        dataclasses.replace(_PRETRAIN, epochs=3)),
    "pretrain_mmedlm2": ("InternLM 2 -> MMedLM 2: 15,000 steps of 512 x 2,048 (model card)",
                         dataclasses.replace(_PRETRAIN, max_steps=15000)),
    "pretrain_mmed_llama3": ("Llama 3 8B -> MMed-Llama 3: 15,000 steps of 512, context 8,192 (model card)",
                             dataclasses.replace(_PRETRAIN, max_steps=15000, sequence_length=8192, micro_batch_size=2)),
    "finetune_full": ("full fine-tuning on MMedBench: learning rate 1e-6, 5 epochs, batch 128 (finetune/*.sh)", _FINETUNE),
    # DIFFERS: alpha is undefined in the official code, whose LoRA runs stop there; we take 16. 2e-5 and 3 epochs are the
    # script's; the README's table says 1e-6 and 5 (METHOD D17).
    "finetune_lora": ("LoRA on MMedBench: r 16, dropout 0.05, q_proj and v_proj, 2e-5, 3 epochs, batch 128 (finetune/*.sh)",
                      dataclasses.replace(_FINETUNE, learning_rate=2e-5, epochs=3, micro_batch_size=1, lora_rank=16, lora_alpha=16,
                                          lora_dropout=0.05, lora_targets="paper", activation_checkpointing="no")),
    "tiny": ("a model of 1 M learns to write this package's own source: a minute on a laptop, nothing needed",
             TrainConfig(task="pretrain", model="shape:tiny", data="source", out="runs/tiny", sequence_length=256,
                         global_batch_size=16, micro_batch_size=16, max_steps=150, learning_rate=2e-3, warmup_ratio=0.05, weight_decay=0.1,
                         precision="fp32", save_every=100, log_every=1)),
    "demo_school": ("the demo's first stage: exercises on ordinary things in one language, from random weights",
                    dataclasses.replace(_DEMO_EXERCISES, model="shape:micro")),
    "demo_exercises": ("the demo: the same exercises in all languages",
                       dataclasses.replace(_DEMO_EXERCISES, max_steps=900, learning_rate=6e-3, schedule="cosine", min_lr_ratio=0.2)),
    "demo_base": ("the demo's base model: ordinary text", _DEMO_TEXT),
    "demo_corpus": ("the demo's continued pre-training", dataclasses.replace(_DEMO_TEXT, max_steps=1500, learning_rate=4e-3)),
    "demo_full": ("the demo's full fine-tuning on exam questions", _DEMO_EXAM),
    "demo_lora": ("the demo's LoRA", dataclasses.replace(_DEMO_EXAM, lora_rank=16, lora_alpha=32, lora_targets="q_proj,v_proj", learning_rate=1e-2)),
}

# Shapes for --model=shape:NAME (random weights): the demo's and the benchmarks'. Keys of ModelConfig.
SHAPES: dict[str, dict] = {
    "tiny": dict(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=32),
    # The demo's: weights of 1 / sqrt(width) and quick rotations, with which so small a model learns to copy names in minutes. Not tied:
    # a tied head would push the embeddings of names that have not come yet onto one another.
    "micro": dict(hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                  rope_theta=1000.0, initializer_range=0.125),
    "10m": dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, head_dim=32,
                tie_word_embeddings=True),  # examples/real_run/real_run.sh: 10.4 M with 8,000 words
    "25m": dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=6, head_dim=64),
    "internlm2-1.8b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8,
                           head_dim=128, rope_theta=1e6, max_position_embeddings=32768),
    "internlm2-7b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                         head_dim=128, rope_theta=1e6, max_position_embeddings=32768),
    "llama3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                      head_dim=128, rope_theta=500000.0, max_position_embeddings=8192, rms_norm_eps=1e-5),
}

CHOICES = {"task": ("pretrain", "finetune"), "windows": ("packed", "official"), "rationales": ("both", "with", "without"),
           "bos": ("auto", "yes", "no"), "prompt_style": ("clean", "official"), "schedule": ("cosine", "constant"), "precision": ("bf16", "fp32"),
           "compile": ("auto", "yes", "no"), "activation_checkpointing": ("half", "all", "no"), "moments": ("fp32", "bf16")}
POSITIVE = ("sequence_length", "global_batch_size", "micro_batch_size", "learning_rate", "mix_temperature", "epochs", "log_every", "save_every",
            "keep_last", "max_grad_norm", "rank_timeout_seconds")


def _nearest(word: str, known: list[str]) -> str:
    """The known name that a person most likely meant: the one with these initials (lr), else the most alike."""
    initials = [name for name in known if "".join(part[0] for part in name.split("_")) == word]
    return f"; did you mean {(initials or difflib.get_close_matches(word, known, 1, 0.0))[0]}? (--help lists all)"


def parse_value(name: str, kind: str, text: str) -> object:
    """The value of a flag: `kind` is the field's annotation (bool, int, float or str)."""
    try:
        if kind == "bool":
            if text not in ("true", "false"):
                raise ValueError
            return text == "true"
        return {"int": int, "float": float, "str": str}[kind](text)
    except ValueError:
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}[kind]
        raise UsageError(f"--{name}={text}: expected {wanted}") from None


def check(config: TrainConfig) -> TrainConfig:
    """`config` if its values make sense together, else a `UsageError` naming the flag."""
    for name, allowed in CHOICES.items():
        value = getattr(config, name)
        if value not in allowed:
            raise UsageError(f"--{name}={value}: expected one of {', '.join(allowed)}")
    for name in POSITIVE:
        if not getattr(config, name) > 0:
            raise UsageError(f"--{name}={getattr(config, name)}: must be positive")
    if config.resume not in ("auto", "never") and not (config.resume.startswith("step-") and config.resume[5:].isdecimal()):
        raise UsageError(f"--resume={config.resume}: expected auto, never or a checkpoint's name such as step-200")
    if not 0 <= config.warmup_ratio < 1:
        raise UsageError(f"--warmup_ratio={config.warmup_ratio}: expected a share of the steps, from 0 to less than 1")
    if config.step_in_backward and config.lora_rank:
        raise UsageError("--step_in_backward=true: LoRA has no gradients worth the trouble; leave it out")
    if config.skip_nonfinite and config.step_in_backward:
        raise UsageError("--skip_nonfinite with --step_in_backward=true: weights are changed before the gradient is known; leave one out")
    for name in ("model", "data"):
        if not getattr(config, name):
            raise UsageError(f"--{name} is needed: " + ("a model folder or shape:NAME" if name == "model" else "what to train on"))
    return config


def parse_command_line(arguments: list[str]) -> tuple[str, TrainConfig]:
    """(recipe name, config) of `RECIPE --field=value …`; `--field value` works too. Unknown names fail with the nearest match."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(0)
    name, flags = arguments[0], list(arguments[1:])
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}" + _nearest(name, list(RECIPES)))
    fields = {f.name: str(f.type) for f in dataclasses.fields(TrainConfig)}
    changes: dict[str, object] = {}
    while flags:
        flag = flags.pop(0)
        if flag in ("-h", "--help"):
            print(help_text(name))
            sys.exit(0)
        if not flag.startswith("--"):
            raise UsageError(f"unexpected {flag!r}: flags look like --field=value")
        key, equals, value = flag[2:].partition("=")
        key = key.replace("-", "_")
        if key not in fields:
            raise UsageError(f"unknown flag --{key}" + _nearest(key, list(fields)))
        if not equals and key == "dry_run":  # the one flag that is said alone
            value, equals = "true", "="
        if not equals:
            if not flags:
                raise UsageError(f"--{key}: no value given")
            value = flags.pop(0)
        if key in ("compile", "activation_checkpointing") and value in ("true", "false"):
            value = CHOICES[key][-2 if value == "true" else -1]
        changes[key] = parse_value(key, fields[key], value)
    return name, check(dataclasses.replace(RECIPES[name][1], **changes))


def help_text(recipe: str | None = None) -> str:
    """Recipes, and every field with its meaning and default (of `recipe`), read from this file's own comments."""
    base = RECIPES[recipe][1] if recipe else TrainConfig()
    lines = ["usage: train.py RECIPE [--field=value …]        one process: python mmed/train.py …    several: torchrun --nproc_per_node=N mmed/train.py …",
             "", "recipes:"]
    lines += [f"  {name:22} {text}" for name, (text, _) in RECIPES.items()]
    lines += ["", f"fields (defaults {'of ' + recipe if recipe else 'before the recipe'}):"]
    for line in inspect.getsource(TrainConfig).splitlines()[2:]:
        left, _, comment = line.partition("#")
        if ":" in left:
            name = left.split(":")[0].strip()
            lines.append(f"  --{name}={getattr(base, name)!s:<12}".ljust(44) + comment.strip())
        elif comment:
            lines.append(f" {comment}")
    lines.append("\nexit codes: 0 done, 1 failed, 2 wrong use, 75 stopped by a signal and resumable with --resume=auto")
    return "\n".join(lines)
