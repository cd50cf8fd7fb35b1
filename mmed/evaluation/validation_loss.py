"""Validation loss of a model on documents, without training: per language, nats per token and bits per byte.

    python -m mmed.evaluation.validation_loss --model FOLDER --data streams/en-held-out streams/ja-held-out

What is scored: mmed/training/validation.py.
"""
from __future__ import annotations

import contextlib
import json

from mmed.evaluation.summary import aligned
from mmed.generate import load_model
from mmed.training.validation import document_sets, validation_loss
from mmed.utils.errors import Parser, main_guard
from mmed.utils.files import write_json


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.validation_loss",
                    description="Validation loss of a model on documents, per language.",
                    example="python -m mmed.evaluation.validation_loss --model DIR --data x.jsonl")
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="model folder (config, weights, tokenizer)")
    add("--adapter", metavar="FOLDER", help="LoRA adapter to merge into the model")
    add("--data", required=True, nargs="+", metavar="NAME",
        help="JSONL files (.jsonl, .jsonl.gz) or token streams, separated by spaces or commas")
    add("--bos", choices=("auto", "yes", "no"), default="auto",
        help="begin documents with BOS; auto: as set in the tokenizer's files")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    add("--json", action="store_true", help="print one JSON object per language instead of a table")
    add("--out", metavar="FILE.json", help="also write these objects as a JSON list")
    options = parser.parse_args(arguments)
    model, tokenizer = load_model(options.model, options.adapter, options.dtype, options.device, options.bos)
    names = [name for given in options.data for name in given.split(",") if name]
    sets = document_sets(names, tokenizer, model.config.max_position_embeddings, limit=0)
    device = next(model.parameters()).device
    losses = validation_loss(model, sets, 4096, device, contextlib.nullcontext)  # tokens of a forward pass
    found = [{"language": language} | vars(loss) for language, loss in losses.items()]
    if options.out:
        write_json(options.out, found)
    rows = [["language", "documents", "tokens", "nats/token", "bits/byte"]]
    rows += [[language, f"{loss.documents:,}", f"{loss.tokens:,}", f"{loss.nats_per_token:.4f}",
              f"{loss.bits_per_byte:.4f}"] for language, loss in losses.items()]
    print("\n".join(map(json.dumps, found)) if options.json else aligned(rows))
    return 0


if __name__ == "__main__":
    main_guard(main)
