"""What `python -m mmed.checkpoints` does: inspect, export, merge, extend.

    inspect FOLDER               family, parameters, tokenizer, and the memory to train and to decode, with its formula
    export RUN FOLDER            a run's weights (or any model folder) as a published folder: weights, tokenizer, generation
                                 config, model card; --layout llama unpacks InternLM 2 so that transformers opens it by itself
    merge FOLDER ADAPTER OUT     a LoRA adapter folded into its model
    extend FOLDER OUT            more vocabulary for a new language (mmed/checkpoints/extend_vocabulary.py)

Weights are read and written by mmed/checkpoints/pretrained.py; nothing is imported from a folder.
"""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.extend_vocabulary import extend
from mmed.checkpoints.families import FAMILIES, write_config
from mmed.checkpoints.model_card import model_card, run_data, run_recipe
from mmed.checkpoints.pretrained import (
    has_tokenizer,
    load_config,
    load_pretrained,
    match_weights,
    save_pretrained,
    stored_dtype,
)
from mmed.checkpoints.training_state import latest_state, load_trained
from mmed.config import RECIPES
from mmed.lora import apply_lora, merge_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.chat_template import template_name
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import Parser, UsageError, UserError
from mmed.utils.files import read_json

DTYPES = ("auto", "float32", "bfloat16", "float16")


# --------------------------------------------------------------------------------------------------------------- inspect

def kept_values(config: ModelConfig, one_gpu: bool) -> int:
    """Numbers of 2 bytes that a token leaves behind in a block for the backward pass: c D + (2 H + 2 K) E + 4 F.

    c is 8 in bf16 (FSDP), and 13 on one GPU, where autocast keeps the stream between blocks in fp32. Counted, not guessed: a
    test holds it against what autograd keeps of a Llama.
    """
    attention = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return (13 if one_gpu else 8) * config.hidden_size + attention + 4 * config.intermediate_size


def memory_needs(config: ModelConfig, parameters: int, *, gpus: int, tokens: int, slots: int, rank: int = 16) -> list[tuple[str, float, str]]:
    """(what, bytes on each of `gpus` GPUs, formula) for mmed/train.py with its recipes and mmed/generate.py, as they are.

    N parameters, G GPUs, n LoRA parameters, b rows of T tokens in a forward pass, L layers, D hidden, V vocabulary, K E width of
    keys, U the largest unit that FSDP gathers (a block, or embedding and head), A `kept_values`.
    """
    L, D, V = config.num_hidden_layers, config.hidden_size, config.vocab_size
    H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    outer = V * D * (1 if config.tie_word_embeddings else 2)
    unit = max((parameters - outer) // L, outer)
    kept = kept_values(config, gpus == 1)
    needs = []
    for what, recipe in (("train all weights", "finetune_full"), ("train LoRA", "finetune_lora")):
        run = RECIPES[recipe][1]
        b, T, checkpointing = run.micro_batch_size, run.sequence_length, run.activation_checkpointing != "no"
        width = D + (H + 2 * K) * E if config.packed_qkv else 2 * D + (H + K) * E
        adapter = L * rank * width if recipe == "finetune_lora" else 0
        state, said = (4 * parameters + 16 * adapter, f"(4 N + 16 n) / G, n = {adapter / 1e6:.1f} M") if adapter else (16 * parameters, "16 N / G")
        copies = 4 * unit if gpus > 1 else 2 * parameters
        activations = 2 * b * T * (L * D + kept if checkpointing else L * kept)
        needs.append((what, state / gpus + copies + activations + 10 * 1024 * V,
                      f"{said} (fp32 weights; gradient and two moments of what trains) + {'4 U' if gpus > 1 else '2 N'} (bf16 copies) + "
                      f"2 b T {'(L D + A)' if checkpointing else 'L A'} (activations) + 10 x 1,024 V (loss); recipe {recipe}: b {b}, T {T:,}"
                      f"{', checkpointing' if checkpointing else f', rank {rank}'}"))
    needs.append(("decode", 2 * parameters + slots * tokens * 4 * L * K * E,
                  f"2 N (bf16) + {slots} slots x {tokens:,} tokens x 4 L K E (keys and values); each GPU holds the model, prompts are divided"))
    return needs


def inspect(folder: str, gpus: int, tokens: int, slots: int) -> None:
    """Print what a model folder is and what it needs."""
    path = Path(folder)
    config = load_config(path)
    with torch.device("meta"):
        model = Transformer(config)
    parameters = sum(p.numel() for p in model.parameters())
    stored = [tensor for _, tensor in match_weights(model, path)]
    outer = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("embed_tokens", "lm_head")))
    size = sum(tensor.nbytes for tensor in stored)
    files = {tensor.path for tensor in stored}
    scaling = f", {config.rope_scaling['rope_type']} scaling" if config.rope_scaling else ""
    positions = "ALiBi" if config.position_embedding == "alibi" else f"rotary, base {config.rope_theta:g}{scaling}"
    sliding = sum(config.slides(layer) for layer in range(config.num_hidden_layers))
    window = f"; {sliding} of the layers see {config.sliding_window:,} tokens" if sliding else ""
    lines = {
        "family": f"{config.family} ({FAMILIES[config.family].architecture})",
        "parameters": f"{parameters:,} ({outer:,} of them embedding{'' if config.tie_word_embeddings else ' and head'})",
        "shape": f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads and {config.num_key_value_heads} "
                 f"key/value heads of {config.head_dim}, MLP {config.intermediate_size}",
        "weights": f"{', '.join(sorted({tensor.dtype for tensor in stored}))}, {size / 1e9:.2f} GB in {len(files)} file{'s' * (len(files) > 1)}",
        "context": f"{config.max_position_embeddings:,} positions ({positions}){window}",
    }
    if has_tokenizer(path):
        tokenizer = load_tokenizer(path)
        spare = config.vocab_size - tokenizer.vocab_size
        lines["tokenizer"] = (f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids for {config.vocab_size:,} rows"
                              + (f" ({spare:,} spare)" if spare > 0 else " (TOO MANY: this folder cannot be loaded)" if spare < 0 else "")
                              + f", bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, a text ends at {list(tokenizer.end_ids)}")
        lines["turns"] = template_name(tokenizer, config.family) or "none (a base model)"
    else:
        lines["tokenizer"] = "none in this folder"
    for name, text in lines.items():
        print(f"{name:12}{text}")
    print(f"\nmemory on each of {gpus} GPU{'s' * (gpus > 1)}; N = {parameters / 1e9:.3f} G parameters, G = {gpus}, L = {config.num_hidden_layers}, "
          f"D = {config.hidden_size}, V = {config.vocab_size}, K E = {config.num_key_value_heads * config.head_dim}, A = {kept_values(config, gpus == 1):,} "
          f"values a token leaves in a block{', U = the largest block' if gpus > 1 else ''}")
    for what, need, formula in memory_needs(config, parameters, gpus=gpus, tokens=tokens, slots=slots):
        print(f"  {what:18}{need / 2 ** 30:9.2f} GiB = {formula}")


# ----------------------------------------------------------------------------------------------------------- merge, export

def _dtype(name: str, otherwise: torch.dtype) -> torch.dtype:
    return otherwise if name == "auto" else getattr(torch, name)


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; give another folder, or --force to replace it")


def merge(folder: str, adapter: str, out: str, dtype: str) -> None:
    """Fold an adapter into its model: W + scale B A, formed in fp32 and rounded once."""
    kept = _dtype(dtype, stored_dtype(Path(folder)))
    model, tokenizer = load_pretrained(folder, dtype=kept)
    count = load_adapter(model, adapter)
    merge_lora(model)
    card = model_card(model, title=Path(out).name, base=Path(folder).name, recipe={"adapter": Path(adapter).name, "adapted layers": count})
    save_pretrained(model, tokenizer, out, more={"README.md": card})
    print(f"{count} adapted layers merged; {kept} weights in {out}")


def as_llama(model: Transformer) -> Transformer:
    """The same model in Llama's layout: InternLM 2's packed matrices cut into q, k and v. For readers that know only Llama."""
    old = model.config
    config = dataclasses.replace(old, family="llama", packed_qkv=False)
    write_config(config, "float32")  # refuses what a Llama cannot say
    H, K, E = old.num_attention_heads, old.num_key_value_heads, old.head_dim
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if ".qkv_proj." not in name:
            state[name] = value
            continue
        groups = value.view(K, H // K + 2, E, *value.shape[1:])                     # (K, G + 2, E, D) or (K, G + 2, E)
        for part, rows in (("q_proj", groups[:, :-2]), ("k_proj", groups[:, -2]), ("v_proj", groups[:, -1])):
            state[name.replace("qkv_proj", part)] = rows.reshape(-1, *value.shape[1:])
    with torch.device("meta"):
        result = Transformer(config)
    result.load_state_dict(state, assign=True)
    return result.eval()


def load_run(run: Path, step: int | None, base: str | None):
    """(model, tokenizer, facts for the card, dtype to write) of a run folder: its end result, or what a checkpoint holds."""
    facts = read_json(run / "run.json")
    settings = facts.get("config") if isinstance(facts, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{run / 'run.json'}: no run's facts")
    source = base or str(settings["model"])
    lora, from_shape = bool(settings["lora_rank"]), source.startswith("shape:")
    if not lora and step is None and (run / "model" / "config.json").is_file():
        model, tokenizer = load_pretrained(run / "model")
        state = read_json(run / "done.json") if (run / "done.json").is_file() else {}
    else:
        folder = run / "checkpoints" / f"step-{step}" if step is not None else latest_state(run)
        if from_shape:
            raise UsageError(f"{run}: a run from random weights can be exported when it has ended (no {run / 'model'} yet)")
        if not (Path(source) / "config.json").is_file():
            raise UsageError(f"{source}: the model that this run started from is not there; say where it is with --base FOLDER")
        model, tokenizer = load_pretrained(source)
        if lora and step is None and (run / "adapter" / "adapter_config.json").is_file():
            load_adapter(model, run / "adapter")
            state = read_json(run / "done.json") if (run / "done.json").is_file() else {}
        elif folder is None or not (folder / "state.json").is_file():
            raise UserError(f"{run}: no result yet and no checkpoint{f' of step {step}' if step is not None else ''}")
        else:
            if lora:
                apply_lora(model, settings["lora_rank"], settings["lora_alpha"], settings["lora_dropout"], settings["lora_targets"])
            state = load_trained(folder, model)
        merge_lora(model)
        own = settings.get("tokenizer")
        if own and has_tokenizer(own):
            tokenizer = load_tokenizer(own)
    facts["reached"] = {key: state[key] for key in ("step", "steps", "tokens", "loss") if state.get(key) is not None}
    dtype = torch.float32 if from_shape or not Path(source).is_dir() else stored_dtype(Path(source))
    return model, tokenizer, facts, dtype


def export(run: str, out: str, *, dtype: str, step: int | None, base: str | None, layout: str, results: list[str], licence: str | None) -> None:
    path = Path(run)
    if (path / "run.json").is_file():
        model, tokenizer, facts, kept = load_run(path, step, base)
        source, recipe = str(facts["config"]["model"]), run_recipe(facts)
    elif (path / "config.json").is_file():
        if step is not None:
            raise UsageError(f"{path}: a model folder has no steps")
        kept = stored_dtype(path)
        model, tokenizer = load_pretrained(path, dtype=kept)
        source, recipe, facts = str(path), {}, {}
    else:
        raise UserError(f"{path}: neither a run folder (run.json) nor a model folder (config.json)")
    kept = _dtype(dtype, kept)
    original = model.config.family
    if layout == "llama":
        model = as_llama(model)
        recipe["layout"] = f"llama (from {original}; the same numbers in other matrices)"
    card = model_card(model, title=Path(out).name, base=Path(source).name.removeprefix("shape:"), recipe=recipe, data=run_data(facts),
                      results=[Path(folder) for folder in results], licence=licence)
    save_pretrained(model, tokenizer, out, dtype=kept, more={"README.md": card})
    print(f"{model.config.family} model, {str(kept).removeprefix('torch.')}, in {out}" + ("" if dtype != "auto" else " (dtype as its base has it)"))


# ---------------------------------------------------------------------------------------------------------- command line

def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.checkpoints", description="Model folders: look into, export, merge, extend.",
                                     allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sub = commands.add_parser("inspect", help="what a model folder is, and the memory to train and to decode it", allow_abbrev=False)
    sub.add_argument("folder")
    sub.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs that share the work (default 1)")
    sub.add_argument("--tokens", type=int, default=2048, metavar="N", help="places of the KV cache for each sequence (default 2048)")
    sub.add_argument("--slots", type=int, default=32, metavar="N", help="sequences decoded side by side (default 32)")

    sub = commands.add_parser("export", help="a run, or a model folder, as a published folder with its card", allow_abbrev=False)
    sub.add_argument("run", metavar="RUN", help="run folder, or model folder")
    sub.add_argument("out", metavar="FOLDER")
    sub.add_argument("--step", type=int, help="of a run: its checkpoint of this step (default: the result, else the latest checkpoint)")
    sub.add_argument("--base", metavar="FOLDER", help="of a run: where the model it started from is now")
    sub.add_argument("--layout", choices=("own", "llama"), default="own", help="llama: unpack InternLM 1 or 2 into Llama's layout")
    sub.add_argument("--results", nargs="+", default=[], metavar="FOLDER", help="result folders of mmed.eval, for the card")
    sub.add_argument("--license", metavar="NAME", help="licence named in the card; it must allow what the base model's does")
    _common(sub)

    sub = commands.add_parser("merge", help="fold a LoRA adapter into its model", allow_abbrev=False)
    sub.add_argument("folder")
    sub.add_argument("adapter")
    sub.add_argument("out")
    _common(sub)

    sub = commands.add_parser("extend", help="more vocabulary for a new language", allow_abbrev=False)
    sub.add_argument("folder")
    sub.add_argument("out")
    sub.add_argument("--texts", nargs="+", default=[], metavar="FILE", help="documents of the new language: .jsonl, .jsonl.gz or .txt")
    sub.add_argument("--pieces", type=int, default=4000, metavar="N", help="pieces to learn from them (default 4000)")
    sub.add_argument("--special", action="append", default=[], metavar="TEXT", help="a special token to add, as <|im_start|>; may be repeated")
    sub.add_argument("--report", nargs="+", default=[], metavar="FILE", help="documents to count tokens per character of, by language")
    sub.add_argument("--max_characters", type=int, default=20_000_000, metavar="N", help="read at most so many characters (default 20,000,000)")
    _common(sub)
    options = parser.parse_args(arguments)

    for name in ("gpus", "tokens", "slots", "pieces", "max_characters"):
        if getattr(options, name, 1) < (0 if name == "pieces" else 1):
            raise UsageError(f"--{name}={getattr(options, name)}: expected a positive number")
    if options.command == "inspect":
        inspect(options.folder, options.gpus, options.tokens, options.slots)
        return 0
    _check_out(Path(options.out), options.force)
    if options.command == "export":
        export(options.run, options.out, dtype=options.dtype, step=options.step, base=options.base, layout=options.layout,
               results=options.results, licence=options.license)
    elif options.command == "merge":
        merge(options.folder, options.adapter, options.out, options.dtype)
    else:
        if not options.texts and not options.special:
            raise UsageError("extend: give --texts FILES to learn pieces from, or --special TEXT")
        extend(options.folder, options.out, texts=options.texts, pieces=options.pieces if options.texts else 0, special=options.special,
               report=options.report, max_characters=options.max_characters, dtype=options.dtype)
    return 0


def _common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dtype", choices=DTYPES, default="auto", help="of the written weights; auto: that of the (base) model")
    sub.add_argument("--force", action="store_true", help="replace what is in the output folder")
