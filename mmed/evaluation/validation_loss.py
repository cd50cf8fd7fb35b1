"""Validation loss of a model on documents, without training: per language, nats per token and bits per byte.

    python -m mmed.evaluation.validation_loss --model FOLDER --data streams/en-held-out streams/ja-held-out
    python -m mmed.evaluation.validation_loss --model FOLDER --data held_out.jsonl --json

In:  documents as JSONL (`text`, `language`) or token streams; a model folder.
Out: a table, or with --json one object per language on a line: language, documents, tokens, nats_per_token, bits_per_byte.
     What is scored, and how long documents are read, is in mmed/training/validation.py.
"""
from __future__ import annotations

import contextlib
import json
from pathlib import Path

from mmed.generate import load_model
from mmed.training.validation import document_sets, validation_loss
from mmed.utils.errors import Parser, UsageError, UserError, main_guard


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.validation_loss", description="Validation loss of a model on documents, per language.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="model folder (config.json, *.safetensors, tokenizer)")
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter to merge into it")
    parser.add_argument("--data", required=True, nargs="+", metavar="NAME", help="JSONL files (.jsonl, .jsonl.gz) or token streams, "
                        "separated by spaces or commas")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N documents of each language of each file; default all")
    parser.add_argument("--context", type=int, default=0, metavar="TOKENS", help="tokens of a window; default: the model's context length")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto", help="begin documents with BOS; auto: as the tokenizer's files say")
    parser.add_argument("--batch_tokens", type=int, default=4096, metavar="N", help="tokens of a forward pass (default 4096)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--json", action="store_true", help="print one JSON object per language instead of a table")
    options = parser.parse_args(arguments)
    if options.limit < 0 or options.context < 0 or options.context == 1 or options.batch_tokens < 1:
        raise UsageError("expected --limit of 0 or more, --context of 2 or more, --batch_tokens of 1 or more")
    names = [name for given in options.data for name in given.split(",") if name]
    for name in names:
        if name.endswith((".jsonl", ".jsonl.gz", ".txt")) and not Path(name).is_file():
            raise UserError(f"{name}: no such file")
    model, tokenizer = load_model(options.model, options.adapter, options.dtype, options.device, bos=options.bos)
    context = model.config.max_position_embeddings
    if options.context > context:
        raise UsageError(f"--context={options.context}: the model's context length is {context:,}")
    sets = document_sets(names, tokenizer, options.context or context, options.limit)
    device = next(model.parameters()).device
    losses = validation_loss(model, sets, options.batch_tokens, device, contextlib.nullcontext) or {}
    if not options.json:
        print(f"{'language':12}{'documents':>10}{'tokens':>12}{'nats/token':>12}{'bits/byte':>12}")
    for language, loss in losses.items():
        if options.json:
            print(json.dumps({"language": language} | vars(loss)))
        else:
            print(f"{language:12}{loss.documents:>10,}{loss.tokens:>12,}{loss.nats_per_token:>12.4f}{loss.bits_per_byte:>12.4f}")
    return 0


if __name__ == "__main__":
    main_guard(main)
