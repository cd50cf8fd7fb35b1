"""What `python -m mmed.checkpoints` does with model folders.

    inspect FOLDER               family, parameters, weights, context length, tokenizer, chat template, memory
                                 to decode
    export RUN FOLDER            a run's weights (or any model folder) as a published folder: weights,
                                 tokenizer, generation
                                 config, model card; --layout llama unpacks InternLM 1 or 2 so that
                                 transformers opens it
    merge FOLDER ADAPTER OUT     a LoRA adapter merged into its model
    extend FOLDER OUT            more vocabulary for a new language (mmed/checkpoints/extend_vocabulary.py)
"""
from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.extend_vocabulary import (
    check_extensible,
    count_words,
    first_characters,
    grow,
    learn,
    tokens_per_character,
    write_tokenizer,
)
from mmed.checkpoints.families import FAMILIES, write_config
from mmed.checkpoints.import_gguf import import_gguf
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
from mmed.lora import apply_lora, merge_lora
from mmed.model import Transformer
from mmed.tokenization.chat_template import template_name
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.utils.errors import Parser, UsageError, UserError
from mmed.utils.files import read_json

# ------------------------------------------------------------------------------------------------------------
# inspect


def inspect(options: argparse.Namespace) -> None:
    """Print what a model folder is."""
    path = Path(options.folder)
    config = load_config(path)
    with torch.device("meta"):
        model = Transformer(config)
    stored = [tensor for _, tensor in match_weights(model, path)]
    parameters = sum(p.numel() for p in model.parameters())
    outer = sum(p.numel() for name, p in model.named_parameters()
                if name.startswith(("embed_tokens", "lm_head")))
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored})
    scaling = f", {config.rope_scaling['rope_type']} scaling" if config.rope_scaling else ""
    alibi = config.position_embedding == "alibi"
    positions = "ALiBi" if alibi else f"rotary, base {config.rope_theta:g}{scaling}"
    sliding = sum(config.slides(layer) for layer in range(config.num_hidden_layers))
    window = f"; {sliding} of the layers see {config.sliding_window:,} tokens" if sliding else ""
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    lines = {
        "family": f"{config.family} ({FAMILIES[config.family].architecture})",
        "parameters": f"{parameters:,} ({outer:,} of them "
                      f"embedding{'' if config.tie_word_embeddings else ' and head'})",
        "shape": f"{config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} "
                 f"heads and "
        f"{config.num_key_value_heads} key/value heads of {config.head_dim}, MLP {config.intermediate_size}",
        "weights": f"{', '.join(dtypes)}, {sum(tensor.nbytes for tensor in stored) / 1e9:.2f} GB in "
        f"{len({tensor.path for tensor in stored})} files",
        "context": f"{config.max_position_embeddings:,} positions ({positions}){window}", **_tokenizer_lines(
            path, config), "to decode": f"{2 * parameters / 1e9:.2f} GB of bf16 weights, {cache / 1e3:,.1f} "
                                        f"kB of key/value cache per token",
        "to train": "python mmed/train.py RECIPE --model=FOLDER ... --dry_run",
    }
    for name, text in lines.items():
        print(f"{name:15}{text}")


def _tokenizer_lines(path: Path, config) -> dict[str, str]:
    if not has_tokenizer(path):
        return {"tokenizer": "none in this folder"}
    tokenizer = load_tokenizer(path)
    spare = config.vocab_size - tokenizer.vocab_size
    fits = f"{spare:,} rows of padding" if spare >= 0 else "TOO MANY: this folder cannot be loaded"
    try:
        template = template_name(tokenizer, config.family) or "none (a base model)"
    except UserError as error:
        template = str(error)
    return {
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids ({fits}), bos {tokenizer.bos_id}, eos "
                     f"{tokenizer.eos_id}, "
        f"a text ends at {list(tokenizer.end_ids)}", "chat template": template
    }


# ------------------------------------------------------------------------------------------------------------
# merge, export, extend


def _dtype(name: str, otherwise: torch.dtype) -> torch.dtype:
    return otherwise if name == "auto" else getattr(torch, name)


def merge(options: argparse.Namespace) -> None:
    """Merge an adapter into its model: W + scale B A, formed in fp32 and rounded once."""
    folder, out = Path(options.folder), Path(options.out)
    dtype = _dtype(options.dtype, stored_dtype(folder))
    model, tokenizer = load_pretrained(folder, dtype=dtype)
    count = load_adapter(model, options.adapter)
    merge_lora(model)
    recipe = {"adapter": Path(options.adapter).name, "adapted layers": count}
    save_pretrained(model,
                    tokenizer,
                    out,
                    more={"README.md": model_card(model, title=out.name, base=folder.name, recipe=recipe)})
    print(f"{count} adapted layers merged; {dtype} weights in {out}")


def as_llama(model: Transformer) -> Transformer:
    """The same model in Llama's layout, for readers that know only Llama: InternLM 2's packed matrices split
    into q, k and v.
    """
    old = model.config
    config = dataclasses.replace(old, family="llama", packed_qkv=False)
    write_config(config, "float32")  # rejects what a Llama cannot express
    H, K, E = old.num_attention_heads, old.num_key_value_heads, old.head_dim
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if ".qkv_proj." not in name:
            state[name] = value
            continue
        # (K, G + 2, E, D) or (K, G + 2, E)
        groups = value.view(K, H // K + 2, E, *value.shape[1:])
        for part, rows in (("q_proj", groups[:, :-2]), ("k_proj", groups[:, -2]), ("v_proj", groups[:, -1])):
            state[name.replace("qkv_proj", part)] = rows.reshape(-1, *value.shape[1:])
    with torch.device("meta"):
        result = Transformer(config)
    result.load_state_dict(state, assign=True)
    return result.eval()


def load_run(run: Path, step: int | None,
             base: str | None) -> tuple[Transformer, Tokenizer | None, dict, torch.dtype]:
    """(model, tokenizer, facts for the card, dtype to write) of a run folder: its result, or one of its
    checkpoints.
    """
    facts = read_json(run / "run.json")
    settings = facts["config"]
    source = base or settings["model"]
    lora, random_start = bool(settings["lora_rank"]), source.startswith("shape:")
    result = run / ("adapter" if lora else "model")
    finished = step is None and result.is_dir()
    if finished and not lora:
        model, tokenizer = load_pretrained(result)
    else:
        if random_start:
            raise UsageError(f"{run}: a run from random weights can be exported once it has finished")
        if not (Path(source) / "config.json").is_file():
            raise UsageError(
                f"{source}: the model that this run started from is not there; give its folder with --base")
        model, tokenizer = load_pretrained(source)
    if finished:
        state = read_json(run / "done.json") if (run / "done.json").is_file() else {}
    if finished and lora:
        load_adapter(model, result)
    if not finished:
        folder = run / "checkpoints" / f"step-{step}" if step is not None else latest_state(run)
        if folder is None or not (folder / "state.json").is_file():
            raise UserError(
                f"{run}: neither a result nor a checkpoint{f' of step {step}' if step is not None else ''}")
        if lora:
            apply_lora(model, settings["lora_rank"], settings["lora_alpha"], settings["lora_dropout"],
                       settings["lora_targets"])
        state = load_trained(folder, model)
    merge_lora(model)
    if settings.get("tokenizer") and has_tokenizer(settings["tokenizer"]):
        tokenizer = load_tokenizer(settings["tokenizer"], settings.get("bos", "auto"))
    facts["reached"] = {
        key: state[key]
        for key in ("step", "steps", "tokens", "loss") if state.get(key) is not None
    }
    return model, tokenizer, facts, torch.float32 if random_start or not Path(
        source).is_dir() else stored_dtype(Path(source))


def export(options: argparse.Namespace) -> None:
    path, out = Path(options.run), Path(options.out)
    if (path / "run.json").is_file():
        model, tokenizer, facts, dtype = load_run(path, options.step, options.base)
        source, recipe = str(facts["config"]["model"]), run_recipe(facts)
    elif (path / "config.json").is_file():
        if options.step is not None:
            raise UsageError(f"{path}: a model folder has no steps")
        dtype = stored_dtype(path)
        model, tokenizer = load_pretrained(path, dtype=dtype)
        source, recipe, facts = str(path), {}, {}
    else:
        raise UserError(f"{path}: neither a run folder (run.json) nor a model folder (config.json)")
    dtype = _dtype(options.dtype, dtype)
    if options.layout == "llama":
        recipe["layout"] = f"llama (from {model.config.family}; the same numbers in other matrices)"
        model = as_llama(model)
    card = model_card(model,
                      title=out.name,
                      base=Path(source).name.removeprefix("shape:"),
                      recipe=recipe,
                      data=run_data(facts),
                      results=[Path(folder) for folder in options.results],
                      licence=options.license)
    save_pretrained(model, tokenizer, out, dtype=dtype, more={"README.md": card})
    print(f"{model.config.family} model, {str(dtype).removeprefix('torch.')}, in {out}")


def extend(options: argparse.Namespace) -> None:
    """Learn pieces from documents, write the grown model folder, print tokens per character before and after.
    """
    folder, out, special = Path(options.folder), Path(options.out), options.special
    dtype = _dtype(options.dtype, stored_dtype(folder))
    model, old = load_pretrained(folder, dtype=dtype)
    if old is None:
        raise UserError(f"{folder}: no tokenizer to extend")
    check_extensible(old, str(folder))
    if known := [text for text in special if not text or text in old.special or text in old.added]:
        raise UserError(f"--special {known[0]!r}: is empty, or already a token")
    words = count_words(first_characters(options.texts, options.max_characters),
                        getattr(old.core, "pattern", None))
    new = learn(old, words, options.pieces if options.texts else 0)
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(old, new, special, Path(name))
        larger = load_tokenizer(name)
        added = [new.parts[piece]
                 for piece in new.pieces] + [old.encode(text, continued=True) for text in special]
        grown = grow(model, dict(enumerate(added, old.vocab_size)))
        assert larger.vocab_size == old.vocab_size + len(
            added), f"expected {old.vocab_size + len(added)} ids, got {larger.vocab_size}"
        recipe = {"new pieces": len(new.pieces), "new special tokens": len(special)}
        card = model_card(grown, title=out.name, base=folder.name, recipe=recipe)
        save_pretrained(grown, larger, out, dtype=dtype, more={"README.md": card})
    print(f"{len(new.pieces):,} pieces and {len(special)} special tokens added: {larger.vocab_size:,} ids, "
          f"{grown.config.vocab_size:,} rows, in {out}")
    if options.texts and len(new.pieces) < options.pieces:
        print(f"note: no more pieces occur twice in these texts; --pieces was {options.pieces:,}")
    files = options.report or options.texts
    before, after = (tokens_per_character(tokenizer, files, options.max_characters)
                     for tokenizer in (old, larger))
    for language, (characters, tokens) in before.items():
        now = after[language][1]
        print(
            f"{language}: {characters:,} characters, {tokens / max(1, characters):.3f} tokens per "
            f"character, now "
            f"{now / max(1, characters):.3f} ({1 - now / max(1, tokens):.1%} fewer)")


# ------------------------------------------------------------------------------------------------------------
# Command line


def _parser() -> Parser:
    parser = Parser(prog="python -m mmed.checkpoints",
                    description="Model folders: inspect, export, merge, extend.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sub = commands.add_parser("inspect", help="what a model folder is")
    sub.add_argument("folder")

    sub = commands.add_parser("import-gguf", help="a GGUF file as a model folder (extra gguf)")
    sub.add_argument("file", metavar="FILE.gguf")
    sub.add_argument("out", metavar="FOLDER")

    sub = commands.add_parser("export", help="a run, or a model folder, as a published folder with its card")
    sub.add_argument("run", metavar="RUN", help="run folder, or model folder")
    sub.add_argument("out", metavar="FOLDER")
    sub.add_argument("--step", type=int,
                     help="export this checkpoint of a run (default: the result, else the latest checkpoint)")
    sub.add_argument("--base", metavar="FOLDER", help="where the model that the run started from is now")
    sub.add_argument("--layout", choices=("own", "llama"), default="own",
                     help="llama: unpack InternLM 1 or 2 into Llama's layout")
    sub.add_argument("--results", nargs="+", default=[], metavar="FOLDER",
                     help="result folders of mmed.eval, for the card")
    sub.add_argument("--license", metavar="NAME",
                     help="licence named in the card; must be compatible with the base model's")
    _add_writing(sub)

    sub = commands.add_parser("merge", help="merge a LoRA adapter into its model")
    sub.add_argument("folder")
    sub.add_argument("adapter")
    sub.add_argument("out")
    _add_writing(sub)

    sub = commands.add_parser("extend", help="more vocabulary for a new language")
    sub.add_argument("folder")
    sub.add_argument("out")
    sub.add_argument("--texts", nargs="+", default=[], metavar="FILE",
                     help="documents of the new language: .jsonl, .jsonl.gz or .txt")
    sub.add_argument("--pieces", type=int, default=4000, metavar="N",
                     help="pieces to learn from them (default 4000)")
    sub.add_argument("--special", action="append", default=[], metavar="TEXT",
                     help="a special token to add; may be repeated")
    sub.add_argument("--report", nargs="+", default=[], metavar="FILE",
                     help="documents for tokens per character by language")
    sub.add_argument("--max_characters", type=int, default=20_000_000, metavar="N",
                     help="read at most this many (default 20,000,000)")
    _add_writing(sub)
    return parser


def _add_writing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                     help="of the written weights; auto: that of the (base) model")
    sub.add_argument("--force", action="store_true", help="replace what is in the output folder")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "inspect":
        inspect(options)
        return 0
    out = Path(options.out)
    if options.command == "import-gguf":
        import_gguf(Path(options.file), out)
        print(f"{out}: done; the weights are dequantised, which is not the original model")
        return 0
    if out.exists() and not options.force and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already exists; give another folder, or --force to replace it")
    if options.command == "extend" and (options.pieces < 0 or (not options.texts and not options.special)):
        raise UsageError(
            "extend: give --texts FILES to learn pieces from (--pieces 0 or more), or --special TEXT")
    {"export": export, "merge": merge, "extend": extend}[options.command](options)
    return 0
