"""Decoding: continue a prompt on the terminal, chat, or complete a file of prompts.

    python -m mmed.generate --model FOLDER --prompt "Fever and cough"
    python -m mmed.generate --model FOLDER --chat --language fr
    python -m mmed.generate --model FOLDER --input prompts.jsonl --out texts.jsonl    lines of {"prompt": ...}
    torchrun --nproc_per_node=8 -m mmed.generate --model FOLDER --input ... --out ... the same file by 8 GPUs

`generate_plain` is decoding as a textbook has it, over the modules of mmed/model.py. The fast engine in
mmed/inference/ does the same, and is tested against it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.pretrained import has_tokenizer, load_pretrained
from mmed.inference import engine
from mmed.inference.option_scores import int8_difference
from mmed.inference.sampling import Decoding, Sequence, check_finite, check_prompt
from mmed.inference.work_sharing import ROUND_BATCHES, run_rounds
from mmed.languages import get_language
from mmed.lora import merge_lora
from mmed.model import KVCache, Transformer
from mmed.prompts import ALPACA
from mmed.tokenization.chat_template import CHAT_TEMPLATES, encode_chat
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.training import distributed
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, printable
from mmed.utils.files import read_jsonl
from mmed.utils.fingerprints import file_hash, model_fingerprint

WAIT_SECONDS = 14 * 24 * 3600  # finished ranks wait for the others
DRAWING = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")  # options that are fields of Decoding


# ------------------------------------------------------------------------------------------- the plain engine

@torch.inference_mode()
def generate_plain(model: Transformer, prompts: list[list[int]], decoding: Decoding) -> list[list[int]]:
    """The new tokens of each prompt, without the end token: batch after batch, with a KV cache."""
    sequences = decoding.sequences(model.config, prompts)
    waiting = [sequence for sequence in sequences if sequence.limit]
    for start in range(0, len(waiting), decoding.max_batch_size):
        decode_batch(model, waiting[start:start + decoding.max_batch_size], decoding)
    return [sequence.new_ids for sequence in sequences]


def decode_batch(model: Transformer, batch: list[Sequence], decoding: Decoding) -> None:
    """Decode until every sequence of the batch has ended."""
    running = [True] * len(batch)
    weight = model.embed_tokens.weight
    longest = max(len(sequence.prompt) + sequence.limit for sequence in batch)
    cache = KVCache(model.config, len(batch), longest, weight.dtype, weight.device)
    prompts = [torch.tensor(sequence.prompt, device=weight.device) for sequence in batch]
    ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # (B, T), padded on the right
    positions = torch.arange(ids.shape[1], device=weight.device).expand_as(ids)
    last = torch.tensor([len(sequence.prompt) - 1 for sequence in batch], device=weight.device)
    while any(running):
        logits = model(ids, positions=positions, cache=cache, logits_at=last - positions[:, 0])  # (B, V)
        check_finite(logits)
        tokens = decoding.choose(logits, batch)
        for i, sequence in enumerate(batch):
            running[i] = running[i] and not decoding.append(sequence, tokens[i])
        last = last + torch.tensor(running, device=weight.device)  # an ended sequence repeats its position
        ids, positions = torch.tensor(tokens, device=weight.device)[:, None], last[:, None]


def generate(model: Transformer, prompts: list[list[int]], max_new_tokens: int | list[int], *,
             engine_name: str = "fast", **decoding: Any) -> list[list[int]]:
    """The new tokens of each prompt, by either engine. `decoding`: further fields of `Decoding`."""
    run = generate_plain if engine_name == "plain" else engine.generate
    return run(model, prompts, Decoding(max_new_tokens, **decoding))


# ---------------------------------------------------------------------------------------- loading and prompts

def load_model(folder: str, adapter: str | None = None, dtype: str = "auto", device: str = "auto",
               bos: str = "auto") -> tuple[Transformer, Tokenizer]:
    """(model ready to decode, its tokenizer); an adapter is merged. Joins the other ranks under torchrun.
    `dtype`: "int8" decodes with 8-bit weights; `bos`: see `load_tokenizer`."""
    several, int8 = distributed.world_size() > 1, dtype == "int8"
    device = str(distributed.start(WAIT_SECONDS)) if several else distributed.device_called(device)
    if dtype in ("auto", "int8"):
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    model, tokenizer = load_pretrained(folder, dtype=getattr(torch, dtype), device=device)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer.model or tokenizer.json there; add the model's tokenizer")
    if bos != "auto":
        tokenizer = load_tokenizer(folder, bos)
    if adapter:
        load_adapter(model, adapter)
        merge_lora(model)
        if has_tokenizer(adapter):  # it may have tokens that the base lacks
            tokenizer = load_tokenizer(adapter, bos)
    model.int8 = int8
    return model.eval(), tokenizer


def progress_bar(total: int, shown: bool, unit: str = "text") -> tqdm:
    return tqdm(total=total, disable=not shown, unit=f" {unit}", dynamic_ncols=True, mininterval=0.5)


def encode_prompt(tokenizer, text: str) -> list[int]:
    """The ids of a prompt as training encodes it: with BOS where the tokenizer adds one."""
    return tokenizer.encode(text, bos=tokenizer.bos_id is not None)


def prompt_ids(model: Transformer, tokenizer, text: str, chat_template: str) -> list[int]:
    """Ids of a prompt: the text itself ("none"), or a user's message in a chat template ("auto": its own)."""
    if chat_template == "none":
        return encode_prompt(tokenizer, text)
    name = None if chat_template == "auto" else chat_template
    return encode_chat(tokenizer, [{"role": "user", "content": text}], model.config.family, name)[1]


# ------------------------------------------------------------------------------------------- the command line

def stream_text(model: Transformer, tokenizer, prompt: list[int], **options: Any) -> None:
    """Print the continuation of a prompt's ids as it is decoded."""
    ids: list[int] = []
    shown = ""

    def show(_: int, token: int) -> None:
        nonlocal shown
        ids.append(token)
        text = tokenizer.decode(ids, continued=True)
        if not text.endswith("\ufffd"):  # the rest of this character is still to come
            print(printable(text[len(shown):]), end="", flush=True)
            shown = text

    generate(model, [prompt], on_token=show, **options)
    print(printable(tokenizer.decode(ids, continued=True)[len(shown):]), flush=True)


def chat(model: Transformer, tokenizer, language: str, chat_template: str, options: dict) -> None:
    """Questions from stdin, answers streamed; each question is independent, as in the fine-tuning data."""
    spoken = get_language(language)
    print(spoken.disclaimer)
    # MMedLM: the first sentence of its fine-tuning instruction, without the part on options
    instruction = (f"You're a {spoken.name} doctor, kindly address the medical queries according to the "
                   f"patient's account in {spoken.name}.")
    form = ALPACA if chat_template == "none" else "{instruction}\n\n{input}"
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return
        if question:
            text = form.format(instruction=instruction, input=question)
            stream_text(model, tokenizer, prompt_ids(model, tokenizer, text, chat_template), **options)


def read_prompts(model: Transformer, tokenizer: Tokenizer, path: str,
                 chat_template: str) -> tuple[list[dict], list[list[int]]]:
    """(objects, ids of their prompts) of a JSONL file."""
    rows, prompts = [], []
    for number, row in read_jsonl(path):
        if not isinstance(row.get("prompt"), str):
            found = f"{row['prompt']!r:.60}" if "prompt" in row else f"keys {', '.join(row) or 'none'}"
            raise UserError(f"{path}:{number}: expected an object with a text 'prompt', got {found}")
        ids = prompt_ids(model, tokenizer, row["prompt"], chat_template)
        check_prompt(ids, model.config, f"{path}:{number}: the prompt")
        rows.append(row)
        prompts.append(ids)
    return rows, prompts


def run_file(model: Transformer, tokenizer, options: argparse.Namespace, decoding: dict) -> None:
    """Complete every {"prompt": ...} of a JSONL file, adding "text" to the objects; resumes a killed run."""
    rows, prompts = read_prompts(model, tokenizer, options.input, options.chat_template)
    names = (*DRAWING, "batch_size", "chat_template", "dtype", "bos", "engine")
    facts = {name: getattr(options, name) for name in names}
    facts |= {"model": model_fingerprint(options.model, options.adapter), "input": file_hash(options.input)}
    if options.dtype == "int8":
        print(int8_difference(model, prompts), file=sys.stderr)
    size = ROUND_BATCHES * options.batch_size
    rounds = {start: range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)}
    costs = {start: sum(len(prompts[i]) for i in places) for start, places in rounds.items()}
    with progress_bar(len(rows), sys.stderr.isatty()) as bar:
        def compute(start: int) -> list[dict]:
            places = rounds[start]
            new = generate(model, [prompts[i] for i in places], numbers=list(places),
                           on_done=lambda *_: bar.update(), **decoding)
            return [rows[i] | {"text": tokenizer.decode(ids, continued=True)} for i, ids in zip(places, new)]

        journal = run_rounds(Path(options.out), facts, costs, compute, force=options.force,
                             on_skip=lambda start: bar.update(len(rounds[start])))
    if journal is not None:  # under torchrun rank 0 writes
        journal.finish()
        print(f"{len(rows)} texts -> {options.out}")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.generate", description="Continue prompts with a model.",
                    epilog='Example: python -m mmed.generate --model FOLDER --prompt "Fever and cough"')
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, metavar="FOLDER", help="model folder (config.json, weights, tokenizer)")
    add("--adapter", metavar="FOLDER", help="LoRA adapter to merge into the model")
    add("--dtype", choices=("auto", "float32", "bfloat16", "int8"), default="auto",
        help="auto: bfloat16 on a GPU, otherwise float32; int8: 8-bit weights")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--engine", choices=("fast", "plain"), default="fast", help="plain: the simple decoding loop")
    data = parser.add_argument_group("prompts")
    what = data.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="continue this text")
    what.add_argument("--chat", action="store_true", help="answer typed questions (not medical advice)")
    what.add_argument("--input", metavar="FILE.jsonl", help='JSONL file of {"prompt": ...}')
    add = data.add_argument
    add("--out", metavar="FILE.jsonl", help="output of --input: the same lines with 'text' added")
    add("--force", action="store_true", help="replace existing results of another model or input")
    add("--language", default="en", help="language of the chat (default en)")
    add("--chat_template", default="none", choices=("none", "auto", *CHAT_TEMPLATES), metavar="NAME",
        help=f"none: plain text (default); auto: the tokenizer's own; or one of {', '.join(CHAT_TEMPLATES)}")
    add("--bos", choices=("auto", "yes", "no"), default="auto",
        help="begin prompts with BOS; auto: as set in the tokenizer's files")
    add = parser.add_argument_group("decoding").add_argument
    add("--max_new_tokens", type=int, default=256, metavar="N", help="maximum length (default 256)")
    add("--temperature", type=float, default=0.0, help="0 (default): greedy decoding")
    add("--top_k", type=int, default=0, metavar="K", help="sample from the K most likely tokens (0: all)")
    add("--top_p", type=float, default=1.0, metavar="P",
        help="nucleus sampling: smallest set of tokens with total probability P")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=32, metavar="N", help="sequences decoded together (default 32)")
    options = parser.parse_args(arguments)
    if bool(options.input) != bool(options.out):
        raise UsageError("--input and --out go together")
    if options.max_new_tokens < 1 or options.batch_size < 1:
        raise UsageError("--max_new_tokens and --batch_size must be 1 or more")
    if not options.input and distributed.world_size() > 1:
        raise UsageError("use --input when running several processes")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    decoding = {name: getattr(options, name) for name in DRAWING}
    Decoding(**decoding)  # rejects wrong values before the model is loaded
    model, tokenizer = load_model(options.model, options.adapter, options.dtype, options.device, options.bos)
    decoding |= {"engine_name": options.engine, "max_batch_size": options.batch_size,
                 "end_ids": tokenizer.end_ids, "vocab_size": tokenizer.vocab_size}
    if options.input:
        run_file(model, tokenizer, options, decoding)
    elif options.chat:
        chat(model, tokenizer, options.language, options.chat_template, decoding)
    else:
        print(printable(options.prompt), end="")
        ids = prompt_ids(model, tokenizer, options.prompt, options.chat_template)
        stream_text(model, tokenizer, ids, **decoding)
    return 0


if __name__ == "__main__":
    main_guard(main)
