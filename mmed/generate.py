"""Let a model write: on the terminal, as a chat, or for a file of prompts; and the way in to decoding for everyone else.

    from mmed.generate import generate, score_many, score_options     (mmed/inference/engine.py, mmed/inference/option_scores.py)

    python -m mmed.generate --model FOLDER --prompt "Fever and cough"
    python -m mmed.generate --model FOLDER --chat --language fr
    python -m mmed.generate --model FOLDER --input prompts.jsonl --out texts.jsonl     one {"prompt": ...} a line; resumable
    torchrun --nproc_per_node=8 -m mmed.generate --model FOLDER --input ... --out ...  the same over GPUs; the same file
    ... --shard                                                                        a model larger than one GPU, cut over all

Order: loading a model, prompts to ids, the terminal, files of prompts, the command.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.pretrained import load_config, load_pretrained, load_weights
from mmed.inference.engine import generate
from mmed.inference.option_scores import int8_difference, score_many, score_options  # noqa: F401  also from here
from mmed.inference.work_sharing import round_size, run_rounds
from mmed.languages import get_language
from mmed.lora import merge_lora
from mmed.model import Transformer
from mmed.prompts import ALPACA
from mmed.tokenization.chat_template import CHAT_TEMPLATES, encode_chat
from mmed.tokenizer import load_tokenizer
from mmed.training import distributed
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, printable
from mmed.utils.files import read_jsonl
from mmed.utils.fingerprints import file_hash, model_fingerprint

WAIT_SECONDS = 14 * 24 * 3600  # ranks that are done wait for those that are not


def load_model(folder: str, adapter: str | None = None, dtype: str = "auto", device: str = "auto", shard: bool = False,
               bos: str = "auto"):
    """(model ready to decode, its tokenizer); an adapter is merged into the weights. Joins the other ranks under torchrun.

    dtype "int8": weights of 8 bits while decoding (mmed/inference/quantize.py). shard: each rank keeps its part of every matrix.
    bos: whether prompts begin with BOS, see `load_tokenizer`.
    """
    if distributed.world_size() > 1:
        device = str(distributed.start(WAIT_SECONDS))
    else:
        device = distributed.device_called(device)
    if shard and (distributed.world_size() == 1 or adapter or dtype == "int8"):
        raise UsageError("--shard: goes with torchrun and several processes, without --adapter (merge it first: python -m mmed.checkpoints merge) "
                         "and without int8")
    int8 = dtype == "int8"
    if dtype in ("auto", "int8"):
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model, tokenizer = load_sharded(folder, getattr(torch, dtype), device) if shard else \
        load_pretrained(folder, dtype=getattr(torch, dtype), device=device)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer.model or tokenizer.json in this folder; put the model's tokenizer there")
    if bos != "auto":
        tokenizer = load_tokenizer(folder, bos)
    if adapter:
        load_adapter(model, adapter)
        merge_lora(model)
    model.int8 = int8
    return model.eval(), tokenizer


def load_sharded(folder: str, dtype, device: str):
    """`load_pretrained`, each rank reading and keeping its own rows."""
    with torch.device("meta"):
        model = Transformer(load_config(folder)).to(dtype)
    model = distributed.shard(model, "fp32").to_empty(device=device)  # "fp32": gathered in the dtype it has
    load_weights(model, folder)
    return model, load_tokenizer(folder)


def progress_bar(total: int, shown: bool, unit: str = "text"):
    return tqdm(total=total, disable=not shown, unit=f" {unit}", dynamic_ncols=True, mininterval=0.5)


def encode_prompt(tokenizer, text: str) -> list[int]:
    """The ids of a prompt as training encodes it: with BOS where the tokenizer adds one."""
    return tokenizer.encode(text, bos=tokenizer.bos_id is not None)


def prompt_ids(model: Transformer, tokenizer, text: str, turns: str) -> list[int]:
    """Ids of a prompt: the text as it is, or (turns: a key of `mmed.tokenization.chat_template.CHAT_TEMPLATES`, or "auto") as a user's turn of an instruct model."""
    if turns == "none":
        return encode_prompt(tokenizer, text)
    return encode_chat(tokenizer, [{"role": "user", "content": text}], model.config.family, None if turns == "auto" else turns)


def stream_text(model: Transformer, tokenizer, prompt: Sequence[int], **options) -> str:
    """Write the continuation of a prompt's ids to stdout as it comes; returns it."""
    ids: list[int] = []
    shown = ""

    def show(_: int, token: int) -> None:
        nonlocal shown
        ids.append(token)
        text = tokenizer.decode(ids, continued=True)
        if not text.endswith("\ufffd"):  # the rest of a character is still to come
            print(printable(text[len(shown):]), end="", flush=True)
            shown = text

    new = generate(model, [prompt], end_ids=tokenizer.end_ids, on_token=show, slots=1, **options)[0]
    text = tokenizer.decode(new, continued=True)
    print(printable(text[len(shown):]), flush=True)
    return text


def chat(model: Transformer, tokenizer, language: str, turns: str, options: dict) -> None:
    """Questions from stdin, answers streamed; each question stands for itself, as in the fine-tuning data."""
    tongue = get_language(language)
    print(tongue.disclaimer)
    # MMedLM: the first sentence of its fine-tuning instruction, without the part on options
    instruction = f"You're a {tongue.name} doctor, kindly address the medical queries according to the patient's account in {tongue.name}."
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return
        if question:
            text = ALPACA.format(instruction=instruction, input=question) if turns == "none" else f"{instruction}\n\n{question}"
            stream_text(model, tokenizer, prompt_ids(model, tokenizer, text, turns), **options)


def run_file(model: Transformer, tokenizer, options: argparse.Namespace, decoding: dict) -> int:
    """Every {"prompt": ...} of a JSONL file -> the same objects with "text" added; goes on where it was stopped."""
    prompts, rows = [], []
    for number, row in read_jsonl(options.input):
        if not isinstance(row.get("prompt"), str):
            raise UserError(f"{options.input}:{number}: expected an object with a text 'prompt', got keys {', '.join(row) or 'none'}")
        ids = prompt_ids(model, tokenizer, row["prompt"], options.turns)
        if len(ids) >= model.config.max_position_embeddings:
            raise UserError(f"{options.input}:{number}: the prompt has {len(ids):,} tokens, the model {model.config.max_position_embeddings:,} "
                            "positions; shorten it")
        rows.append(row)
        prompts.append(ids)
    facts = {"model": model_fingerprint(options.model, options.adapter), "input": file_hash(options.input), "slots": options.slots,
             "turns": options.turns, "dtype": options.dtype, "bos": options.bos, **decoding}
    if options.dtype == "int8":
        print(int8_difference(model, prompts), file=sys.stderr)
    bar = progress_bar(len(rows), sys.stderr.isatty())
    size = round_size(options.slots)
    rounds = {start: range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)}

    def compute(start: int) -> list[dict]:
        places = rounds[start]
        new = generate(model, [prompts[i] for i in places], end_ids=tokenizer.end_ids, numbers=list(places), slots=options.slots,
                       on_done=lambda *_: bar.update(), **decoding)
        return [rows[i] | {"text": tokenizer.decode(ids, continued=True)} for i, ids in zip(places, new)]

    costs = {start: sum(len(prompts[i]) + options.max_new_tokens for i in places) for start, places in rounds.items()}
    journal = run_rounds(Path(options.out), facts, costs, compute, force=options.force, on_skip=lambda start: bar.update(len(rounds[start])), model=model)
    bar.close()
    if journal is None:  # under torchrun rank 0 writes
        return 0
    journal.finish()
    print(f"{len(rows)} texts -> {options.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.generate", description="Let a model write.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder (config.json, *.safetensors, tokenizer)")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to merge into it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="go on from this text")
    what.add_argument("--chat", action="store_true", help="questions from the keyboard (no medical advice)")
    what.add_argument("--input", metavar="FILE.jsonl", help='one {"prompt": ...} a line')
    parser.add_argument("--out", metavar="FILE.jsonl", help="with --input: the same lines with 'text' added")
    parser.add_argument("--language", default="en", help="of the chat (default en)")
    parser.add_argument("--turns", default="none", metavar="NAME", help="none: plain text (default); auto: the turns of an instruct model as its "
                        "tokenizer shows them; or llama2, llama3, mistral, mistral3, internlm2, qwen2, qwen3, gemma")
    parser.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="default 256")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (default)")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0: all")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens that hold P of the probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=32, metavar="N", help="sequences decoded side by side (default 32)")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto", help="begin prompts with BOS; auto: as the tokenizer's files say")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="auto: bfloat16 on a GPU; int8: "
                        "weights of 8 bits, with what that changes printed")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--shard", action="store_true", help="under torchrun, with --input: cut the weights over all ranks, for a model larger "
                        "than one GPU")
    parser.add_argument("--force", action="store_true", help="with --input: replace results of another model or input")
    options = parser.parse_args(arguments)
    if bool(options.input) != bool(options.out):
        raise UsageError("--input and --out go together")
    if options.max_new_tokens < 1 or options.slots < 1 or options.temperature < 0 or options.top_k < 0 or not 0 < options.top_p <= 1:
        raise UsageError("expected --max_new_tokens and --slots of 1 or more, --temperature and --top_k of 0 or more, --top_p over 0 to 1")

    if options.turns not in ("none", "auto", *CHAT_TEMPLATES):
        raise UsageError(f"--turns {options.turns}: expected none, auto or one of {', '.join(CHAT_TEMPLATES)}")
    decoding = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    if not options.input and (options.shard or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise UsageError("several processes go with --input only")
    model, tokenizer = load_model(options.model, options.adapter, options.dtype, options.device, options.shard, options.bos)
    if options.input:
        return run_file(model, tokenizer, options, decoding)
    if options.chat:
        chat(model, tokenizer, options.language, options.turns, decoding)
    else:
        print(printable(options.prompt), end="")
        stream_text(model, tokenizer, prompt_ids(model, tokenizer, options.prompt, options.turns), **decoding)
    return 0


if __name__ == "__main__":
    main_guard(main)
