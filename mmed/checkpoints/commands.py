"""What `python -m mmed.checkpoints` does with model folders.

    inspect FOLDER               family, shape, weights, context length, tokenizer, memory to decode
    export RUN FOLDER            a run's weights (or a model folder) as a published folder with its card;
                                 --layout llama unpacks InternLM 1 or 2 so that transformers opens it
    merge FOLDER ADAPTER OUT     a LoRA adapter merged into its model
    extend FOLDER OUT            more vocabulary for a new language (mmed/checkpoints/extend_vocabulary.py)
    import-gguf FILE FOLDER      a GGUF file as a model folder (mmed/checkpoints/import_gguf.py)
"""
from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from mmed.checkpoints import extend_vocabulary
from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.families import FAMILIES, write_config
from mmed.checkpoints.import_gguf import import_gguf
from mmed.checkpoints.model_card import model_card, run_data, run_recipe
from mmed.checkpoints.pretrained import (
    has_tokenizer,
    load_config,
    load_pretrained,
    match_weights,
    model_of,
    save_pretrained,
    stored_dtype,
)
from mmed.checkpoints.training_state import folder_of, latest_state, load_trained
from mmed.lora import apply_lora, merge_lora
from mmed.model import Transformer
from mmed.tokenization.chat_template import template_name
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.utils.errors import Parser, UsageError, UserError
from mmed.utils.files import read_json


def inspect(options: argparse.Namespace) -> None:
    """Print the key facts of a model folder."""
    path = Path(options.folder)
    config = load_config(path)
    with torch.device("meta"):
        model = Transformer(config)
    stored = [tensor for _, tensor in match_weights(model, path)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored}))
    scaling = f", {config.rope_scaling['rope_type']} scaling" if config.rope_scaling else ""
    rotary = f"rotary, base {config.rope_theta:g}{scaling}"
    positions = "ALiBi" if config.position_embedding == "alibi" else rotary
    sliding = sum(config.slides(layer) for layer in range(config.num_hidden_layers))
    window = f"; {sliding} of the layers see {config.sliding_window:,} tokens" if sliding else ""
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    lines = {
        "family": f"{config.family} ({FAMILIES[config.family].architecture})",
        "parameters": f"{parameters:,}{' (head tied to the embedding)' * config.tie_word_embeddings}",
        "shape": f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} "
                 f"heads and {config.num_key_value_heads} key/value heads of {config.head_dim}, MLP "
                 f"{config.intermediate_size}",
        "weights": f"{dtypes}, {sum(tensor.nbytes for tensor in stored) / 1e9:.2f} GB",
        "context": f"{config.max_position_embeddings:,} positions ({positions}){window}",
        "to decode": f"{2 * parameters / 1e9:.2f} GB of bf16 weights, {cache / 1e3:,.1f} kB of cache per "
                     "token",
        "tokenizer": "none in this folder"}
    if has_tokenizer(path):
        tokenizer = load_tokenizer(path)
        spare = config.vocab_size - tokenizer.vocab_size
        fits = f"{spare:,} rows of padding" if spare >= 0 else "TOO MANY: this folder cannot be loaded"
        lines["tokenizer"] = (f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids ({fits}), bos "
                              f"{tokenizer.bos_id}, eos {tokenizer.eos_id}, a text ends at "
                              f"{list(tokenizer.end_ids)}")
        lines["chat template"] = ("of this folder" if tokenizer.chat_template else
                                  template_name(tokenizer, config.family) or "none (a base model)")
    for name, text in lines.items():
        print(f"{name:<15}{text}")


def _dtype(name: str, otherwise: torch.dtype) -> torch.dtype:
    return otherwise if name == "auto" else getattr(torch, name)


def merge(options: argparse.Namespace) -> None:
    """Merge an adapter into its model: W + scale B A, formed in fp32 and rounded once."""
    folder, out = Path(options.folder), Path(options.out)
    dtype = _dtype(options.dtype, stored_dtype(folder))
    model, tokenizer = load_pretrained(folder, dtype=dtype)
    count = load_adapter(model, options.adapter)
    if has_tokenizer(options.adapter):  # it may have tokens that the base lacks
        tokenizer = load_tokenizer(options.adapter)
    merge_lora(model)
    recipe = {"adapter": Path(options.adapter).name, "adapted layers": count}
    card = model_card(model, title=out.name, base=folder.name, recipe=recipe)
    save_pretrained(model, tokenizer, out, more={"README.md": card})
    print(f"{count} adapted layers merged; {dtype} weights in {out}")


def as_llama(model: Transformer) -> Transformer:
    """The same model in Llama's layout: InternLM 2's packed matrices split into q, k and v."""
    old = model.config
    config = dataclasses.replace(old, family="llama", packed_qkv=False)
    write_config(config, "float32")  # rejects what a Llama cannot express
    H, K, E = old.num_attention_heads, old.num_key_value_heads, old.head_dim
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if ".qkv_proj." not in name:
            state[name] = value
            continue
        groups = value.view(K, H // K + 2, E, *value.shape[1:])  # (K, G + 2, E, D) or (K, G + 2, E)
        for part, rows in (("q_proj", groups[:, :-2]), ("k_proj", groups[:, -2]), ("v_proj", groups[:, -1])):
            state[name.replace("qkv_proj", part)] = rows.reshape(-1, *value.shape[1:])
    return model_of(config, state)


def load_run(run: Path, step: int | None,
             base: str | None) -> tuple[Transformer, Tokenizer | None, dict, torch.dtype]:
    """Load (model, tokenizer, facts for the card, output dtype) from a run's final model or a checkpoint."""
    facts = read_json(run / "run.json")
    settings = facts["config"]
    source, lora = base or settings["model"], bool(settings["lora_rank"])
    there = (Path(source) / "config.json").is_file()
    finished = step is None and (run / "done.json").is_file()
    if not there and (lora or not finished):
        raise UsageError(f"{source}: the model that this run started from is missing; give its folder with "
                         "--base")
    model, tokenizer = load_pretrained(source if lora or not finished else run / "model")
    if not finished:
        folder = latest_state(run) if step is None else folder_of(run, step)
        if folder is None or not folder.is_dir():
            raise UserError(f"{folder or run}: contains neither a final model nor a checkpoint")
        if lora:
            apply_lora(model, settings["lora_rank"], settings["lora_alpha"], settings["lora_dropout"],
                       settings["lora_targets"])
        state = load_trained(folder, model)
    else:
        state = read_json(run / "done.json")
        if lora:
            load_adapter(model, run / "adapter")
    merge_lora(model)
    if settings.get("tokenizer") and has_tokenizer(settings["tokenizer"]):
        tokenizer = load_tokenizer(settings["tokenizer"], settings["bos"])
    reached = ("step", "steps", "tokens", "targets", "loss")
    facts["reached"] = {key: state[key] for key in reached if key in state}
    return model, tokenizer, facts, stored_dtype(Path(source)) if there else torch.float32


def export(options: argparse.Namespace) -> None:
    path, out = Path(options.run), Path(options.out)
    recipe, data, source = {}, [], path.name
    if (path / "run.json").is_file():
        model, tokenizer, facts, dtype = load_run(path, options.step, options.base)
        recipe, data = run_recipe(facts), run_data(facts)
        source = Path(facts["config"]["model"]).name.removeprefix("shape:")
    elif (path / "config.json").is_file():
        if options.step is not None:
            raise UsageError(f"{path}: --step works only with a run folder, and this is a model folder")
        dtype = stored_dtype(path)
        model, tokenizer = load_pretrained(path, dtype=dtype)
    else:
        raise UserError(f"{path}: neither a run folder (run.json) nor a model folder (config.json)")
    dtype = _dtype(options.dtype, dtype)
    if options.layout == "llama":
        recipe["layout"] = f"llama (from {model.config.family}; the same numbers in other matrices)"
        model = as_llama(model)
    card = model_card(model, title=out.name, base=source, recipe=recipe, data=data,
                      licence=options.license)
    save_pretrained(model, tokenizer, out, dtype=dtype, more={"README.md": card})
    print(f"{model.config.family} model, {str(dtype).removeprefix('torch.')}, in {out}")


def extend(options: argparse.Namespace) -> None:
    """Learn pieces from documents, write the grown model folder, print tokens per character."""
    if options.pieces < 0 or not (options.texts or options.special):
        raise UsageError("extend: give --texts FILES (and --pieces 0 or more) or --special TEXT")
    folder, out, special = Path(options.folder), Path(options.out), options.special
    dtype = _dtype(options.dtype, stored_dtype(folder))
    model, old = load_pretrained(folder, dtype=dtype)
    if old is None:
        raise UserError(f"{folder}: no tokenizer to extend")
    if known := {"", *old.special, *old.added} & set(special):
        raise UserError(f"--special {min(known)!r}: is empty or already a token")
    new = extend_vocabulary.learn(old, options.texts, options.pieces, str(folder))
    parts = [new.parts[piece] for piece in new.pieces]
    parts += [old.encode(text, continued=True) for text in special]
    grown = extend_vocabulary.grow(model, dict(enumerate(parts, old.vocab_size)))
    card = model_card(grown, title=out.name, base=folder.name, recipe={"new pieces": len(new.pieces)})
    with tempfile.TemporaryDirectory() as name:
        extend_vocabulary.write_tokenizer(old, new, special, Path(name))
        larger = load_tokenizer(name)
        save_pretrained(grown, larger, out, dtype=dtype, more={"README.md": card})
    print(f"{len(new.pieces):,} pieces and {len(special)} special tokens added: {larger.vocab_size:,} ids, "
          f"{grown.config.vocab_size:,} rows, in {out}")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, language in extend_vocabulary.first_documents(options.texts):
        counts[language].update(characters=len(text), before=len(old.encode(text)),
                                now=len(larger.encode(text)))
    for language, count in sorted(counts.items()):
        characters, before, now = max(1, count["characters"]), max(1, count["before"]), count["now"]
        print(f"{language}: {characters:,} characters, {before / characters:.3f} tokens per character, now "
              f"{now / characters:.3f} ({1 - now / before:.1%} fewer)")


def import_file(options: argparse.Namespace) -> None:
    import_gguf(Path(options.file), Path(options.out), _dtype(options.dtype, torch.bfloat16))
    print(f"{options.out}: done; the weights are dequantised, which is not the original model")


def _parser() -> Parser:
    parser = Parser(prog="python -m mmed.checkpoints", description="Inspect and convert model folders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, text: str, *arguments: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run_command=run)
        for argument in arguments:
            sub.add_argument(argument)
        if "out" in arguments:
            sub.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                             help="dtype of the weights; auto: the base model's, or bfloat16 for GGUF")
            sub.add_argument("--force", action="store_true", help="replace the contents of the output folder")
        return sub

    add("inspect", inspect, "what a model folder is", "folder")
    add("import-gguf", import_file, "a GGUF file as a model folder (extra gguf)", "file", "out")
    add("merge", merge, "merge a LoRA adapter into its model", "folder", "adapter", "out")
    sub = add("export", export, "a run, or a model folder, as a published folder with its card", "run", "out")
    sub.add_argument("--step", type=int, help="checkpoint to use (default: the final model, else the latest)")
    sub.add_argument("--base", metavar="FOLDER", help="current folder of the model that the run started from")
    sub.add_argument("--layout", choices=("own", "llama"), default="own", help="llama: unpack InternLM's QKV")
    sub.add_argument("--license", metavar="NAME", help="for the model card; must suit the base model's")
    sub = add("extend", extend, "more vocabulary for a new language", "folder", "out")
    sub.add_argument("--texts", nargs="+", default=[], metavar="PATH",
                     help="documents to learn new pieces from (.jsonl, .jsonl.gz, .txt)")
    sub.add_argument("--pieces", type=int, default=4000, metavar="N",
                     help="new pieces to learn (default 4000)")
    sub.add_argument("--special", action="append", default=[], metavar="TEXT",
                     help="special token to add (repeatable)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = Path(options.out) if "out" in options else None
    if out and out.name in ("", ".."):
        raise UsageError(f"{out}: name the output folder itself; it is replaced as a whole")
    if out and out.exists() and not options.force and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already exists; give another folder, or --force to replace it")
    inputs = [vars(options).get(name) for name in ("folder", "adapter", "file", "run", "base")]
    for path in filter(None, [*inputs, *vars(options).get("texts", ())]):
        if out and Path(path).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{out}: contains the input {path} and would replace it; give another folder")
    options.run_command(options)
    return 0
