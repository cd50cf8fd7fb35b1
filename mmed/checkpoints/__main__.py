"""Inspect and convert model folders.

    python -m mmed.checkpoints COMMAND --help     (inspect, export, merge, extend, import-gguf)
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from mmed.checkpoints import extend_vocabulary, pretrained
from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.families import FAMILIES, TOKEN_IDS, write_config
from mmed.checkpoints.import_gguf import import_gguf
from mmed.checkpoints.training_state import latest_state, load_tensors
from mmed.lora import apply_lora, merge_lora
from mmed.model import Transformer
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.training.run_folder import FREE_ON_RESUME
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, one_line
from mmed.utils.files import read_json

CARD = """---
library_name: transformers
tags: [medical, multilingual, mmed]
base_model: {quoted_base}
pipeline_tag: text-generation
---
# {title}

A {family} model of {parameters:,} parameters, made from `{base}` with mmed, the method of MMedLM
(Qiu et al., Nature Communications 15, 8384, 2024){how}.

## Disclaimer

A research model. What it says is not medical advice: it can be wrong, outdated or biased in any language, and
has not been tested on patients. It must not be used for diagnosis or treatment without a qualified
clinician's judgement.
"""
# of a run's settings: paths, and what does not change the weights
NOT_ON_CARD = {"model", "data"} | FREE_ON_RESUME
INTERNLM = """
transformers needs the family's own code to open this layout; `python -m mmed.checkpoints export THIS OUT
--layout llama` writes the same model so that transformers opens it by itself.
"""


def inspect(options: argparse.Namespace) -> None:
    """Print the key facts of a model folder."""
    path = Path(options.folder)
    config = pretrained.load_config(path)
    with torch.device("meta"):
        model = Transformer(config)
    stored = pretrained.match_weights(model, path).values()
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tied = " (head tied to the embedding)" if config.tie_word_embeddings else ""
    scaling = f", {config.rope_scaling['rope_type']} scaling" if config.rope_scaling else ""
    rotary = f"rotary, base {config.rope_theta:g}{scaling}"
    sliding = sum(config.slides(layer) for layer in range(config.num_hidden_layers))
    window = f"; {sliding} of the layers see {config.sliding_window:,} tokens" if sliding else ""
    tokens = "none in this folder"
    if pretrained.has_tokenizer(path):
        tokenizer = load_tokenizer(path)
        fits = f"{max(config.vocab_size - tokenizer.vocab_size, 0):,} rows of padding"
        if tokenizer.rows > config.vocab_size:
            fits = "TOO MANY: this folder cannot be loaded"
        tokens = (f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids ({fits}), bos {tokenizer.bos_id}, "
                  f"eos {tokenizer.eos_id}, a text ends at {list(tokenizer.end_ids)}")
    print(f"family         {config.family} ({FAMILIES[config.family].architecture})\n"
          f"parameters     {parameters:,}{tied}\n"
          f"shape          {config.num_hidden_layers} layers of {config.hidden_size}, "
          f"{config.num_attention_heads} heads and {config.num_key_value_heads} key/value heads of "
          f"{config.head_dim}, MLP {config.intermediate_size}\n"
          f"weights        {', '.join(dtypes)}, {sum(tensor.nbytes for tensor in stored) / 1e9:.2f} GB\n"
          f"context        {config.max_position_embeddings:,} positions "
          f"({'ALiBi' if config.position_embedding == 'alibi' else rotary}){window}\n"
          f"tokenizer      {tokens}")


def chosen_dtype(options: argparse.Namespace) -> torch.dtype:
    if options.dtype == "auto":
        if not (Path(options.folder) / "config.json").is_file():  # a run may have started from a shape
            return torch.float32
        stored = pretrained.stored_tensors(options.folder).values()
        return max(stored, key=lambda tensor: tensor.nbytes).dtype
    return getattr(torch, options.dtype)


def save_with_card(options: argparse.Namespace, model: Transformer, tokenizer: Tokenizer | None,
                   how: str, facts: dict | None = None) -> None:
    """Write the output folder; its README.md names (without paths) what the model is made of. `facts`:
    run.json, if a run made it."""
    family, base = model.config.family, Path(options.folder).resolve().name
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = CARD.format(title=Path(options.out).name, base=base, quoted_base=json.dumps(base), family=family,
                       parameters=parameters, how=how)
    card += INTERNLM if family in ("internlm", "internlm2") else ""
    card += recipe_table(facts) if facts else ""
    pretrained.save_pretrained(model, tokenizer, options.out, card=card)
    print(f"{options.out}: {family} model of {parameters:,} parameters{how}")


def merge(options: argparse.Namespace) -> None:
    """W + scale B A, formed in fp32 and rounded once."""
    model, tokenizer = pretrained.load_pretrained(options.folder, dtype=chosen_dtype(options))
    count = load_adapter(model, options.adapter)
    merge_lora(model)
    if pretrained.has_tokenizer(options.adapter):  # it may have tokens that the base lacks
        tokenizer = load_tokenizer(options.adapter)
    save_with_card(options, model, tokenizer, f"; {count} adapted layers merged")


def recipe_table(facts: dict) -> str:
    """The settings of a run, with the names of its data."""
    config = facts["config"]
    data = ", ".join(Path(part.strip()).name for part in config["data"].split(","))
    lines = {"recipe": facts["recipe"], "data": data, "steps": facts["steps"], "code": facts["commit"]}
    lines |= {name: value for name, value in config.items() if name not in NOT_ON_CARD}
    return "\n## Recipe\n\n| setting | value |\n| --- | --- |\n" + "".join(
        f"| {name} | {one_line(str(value))} |\n" for name, value in lines.items())


def export(options: argparse.Namespace) -> None:
    run, how, facts = Path(options.folder), "", None
    if (run / "run.json").is_file():
        facts = read_json(run / "run.json")
        model, tokenizer = load_run(run, options.step, facts["config"])
        options.folder = facts["config"]["model"].removeprefix("shape:")  # what the run started from
        how = f"; step {options.step} of a run" if options.step else ""
        model = model.to(chosen_dtype(options))
    elif options.step is not None:
        raise UsageError(f"{run}: --step works only with a run folder (run.json)")
    else:
        model, tokenizer = pretrained.load_pretrained(run, dtype=chosen_dtype(options))
    if options.layout == "llama":
        how += f"; Llama's layout, from {model.config.family}: the same numbers in other matrices"
        model = as_llama(model)
    save_with_card(options, model, tokenizer, how, facts)


def load_run(run: Path, step: int | None, settings: dict) -> tuple[Transformer, Tokenizer | None]:
    """The result of a run, or the model after a step, with its adapter merged."""
    if step is None and not settings["lora_rank"]:
        return pretrained.load_pretrained(run / "model")
    if not Path(settings["model"]).is_dir():
        raise UserError(f"{settings['model']}: the model that the run started from is missing")
    model, tokenizer = pretrained.load_pretrained(settings["model"])
    if step is None:
        load_adapter(model, run / "adapter")
    else:
        if settings["lora_rank"]:
            apply_lora(model, settings["lora_rank"], settings["lora_alpha"], settings["lora_dropout"],
                       settings["lora_targets"])
        folder = cast(Path, latest_state(run, f"step-{step}"))
        load_tensors(folder, {f"model.{name}": parameter.detach()
                              for name, parameter in model.named_parameters() if parameter.requires_grad})
    merge_lora(model)
    if settings.get("tokenizer") and pretrained.has_tokenizer(settings["tokenizer"]):
        tokenizer = load_tokenizer(settings["tokenizer"], settings["bos"])
    return model, tokenizer


def as_llama(model: Transformer) -> Transformer:
    """The same model in Llama's layout: InternLM 2's packed matrices split into q, k and v."""
    old = model.config
    kept = {key: value for key, value in (old.extra | old.extra.get("config", {})).items()
            if key in (*TOKEN_IDS, "generation_config")}
    config = dataclasses.replace(old, family="llama", packed_qkv=False, extra=kept)
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
    return pretrained.model_of(config, state)


def extend(options: argparse.Namespace) -> None:
    model, old = pretrained.load_pretrained(options.folder, dtype=chosen_dtype(options))
    if old is None:
        raise UserError(f"{options.folder}: no tokenizer to extend")
    new, merges = extend_vocabulary.learn(old, options.texts, options.pieces)
    grown = extend_vocabulary.grow(model, old.vocab_size, new)
    with tempfile.TemporaryDirectory() as name:
        extend_vocabulary.write_tokenizer(old, new, merges, Path(name))
        save_with_card(options, grown, load_tokenizer(name), f"; {len(new):,} pieces added")


def import_file(options: argparse.Namespace) -> None:
    dtype = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    import_gguf(Path(options.file), Path(options.out), dtype)
    print(f"{options.out}: done; the weights are dequantised, which is not the original model")


def _parser() -> Parser:
    parser = Parser(prog="python -m mmed.checkpoints", description="Inspect and convert model folders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run: Callable, name: str, text: str, *arguments: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run_command=run)
        for argument in arguments:
            sub.add_argument(argument)
        if "out" in arguments:
            sub.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                             help="dtype of the weights; auto: the base model's, or bfloat16 for GGUF")
        return sub

    add(inspect, "inspect", "what a model folder is", "folder")
    add(import_file, "import-gguf", "a GGUF file as a model folder (extra gguf)", "file", "out")
    add(merge, "merge", "merge a LoRA adapter into its model", "folder", "adapter", "out")
    sub = add(export, "export", "a model folder, or the result of a run, with a model card", "folder", "out")
    sub.add_argument("--step", type=int, help="of a run: its checkpoint after this step")
    sub.add_argument("--layout", choices=("own", "llama"), default="own", help="llama: unpack InternLM's QKV")
    sub = add(extend, "extend", "more vocabulary for a new language (extra hub)", "folder", "out")
    sub.add_argument("--texts", nargs="+", required=True, metavar="PATH",
                     help="documents to learn new pieces from (.jsonl, .jsonl.gz, .txt)")
    sub.add_argument("--pieces", type=int, default=4000, metavar="N",
                     help="new pieces to learn (default 4000)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = Path(options.out) if "out" in options else None
    if out and out.name in ("", ".."):
        raise UsageError(f"{out}: name the output folder itself; it is renamed as a whole")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already exists; remove it, or name another folder")
    options.run_command(options)
    return 0


if __name__ == "__main__":
    main_guard(main)
