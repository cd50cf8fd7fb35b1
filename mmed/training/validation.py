"""Validation loss: the mean loss of a model on documents or exam items that it is not trained on, per language.

In:  documents as JSONL (`text`, `language`) or token streams, or exam items; a model.
Out: per language the number of documents and tokens, nats per token and bits per byte.
     `python -m mmed.evaluation.validation_loss` prints them without training.

A document is scored as the model meets it in use: alone, after its BOS, every token of its text, and not the EOS behind it.
A document longer than the model's context is read in windows that overlap by a quarter; each begins with BOS and scores only
what the window before it has not. Without a BOS the first token of a document has no context and is not scored. The result
does not depend on the rows of training (a row that begins inside a document without BOS costs a model like Gemma 1.5 nats
a token, docs/method.md). Bits per byte (of the text in UTF-8) can be compared between models of different tokenizers.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mmed.config import TrainConfig
from mmed.data import IGNORE, WIDTH, ExamRows, Row, TokenStream, end_to_end, stack
from mmed.prompts import read_benchmark
from mmed.tokenizer import Tokenizer, clean_text, read_texts
from mmed.training import distributed
from mmed.training.loader import Batch, add_micro_batch
from mmed.utils.errors import UserError

DOCUMENTS = 64  # documents of each validation stream, and exam items of each language, that a training run scores
OVERLAP = 0.25  # share of a window that only gives context: the end of the window before it


@dataclass
class ValidationSet:
    """The documents (or exam items) of one language as rows to score."""

    rows: list[Row] = field(default_factory=list)
    documents: int = 0
    bytes: int = 0  # of the documents' text; 0 where there is none (exam items)


@dataclass
class Loss:
    documents: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float | None  # None for exam items


# ------------------------------------------------------------------------------------------------------------- documents

def windows(ids: Sequence[int], bos_id: int | None, context: int) -> Iterator[Row]:
    """The tokens of a document's text as rows of at most `context` tokens whose labels are each token once.

        context 8, BOS b      b 1 2 3 4 5 6 7       b 6 7 8 9
        labels                1 2 3 4 5 6 7 8       . . . 9 10
    """
    head = [] if bos_id is None else [bos_id]
    sequence = [*head, *ids]
    start, scored = 0, 0  # first token of the window; last one that has been scored
    while scored < len(sequence) - 1:
        first = sequence[start:start + context + 1] if start == 0 else [*head, *sequence[start:start + context + 1 - len(head)]]
        inputs, labels = np.array(first[:-1], dtype=np.int64), np.array(first[1:], dtype=np.int64)
        places = np.arange(len(labels)) + 1 + start - (len(head) if start else 0)  # of the labels in the sequence
        labels[places <= scored] = IGNORE
        yield Row(inputs, labels, np.zeros(len(inputs), np.int64), np.arange(len(inputs)))
        scored = int(places[-1])
        start = max(1, scored - int(OVERLAP * context))


def read_documents(name: str, tokenizer: Tokenizer, limit: int) -> Iterator[tuple[str, list[int], int]]:
    """(language, ids of the text without BOS and EOS, bytes of the text) of the first `limit` documents of each language of a
    file, or of a token stream (0: all)."""
    counts: dict[str, int] = {}
    if name.endswith((".jsonl", ".jsonl.gz", ".txt")):
        for text, language in read_texts(name):
            counts[language] = counts.get(language, 0) + 1
            if not limit or counts[language] <= limit:
                yield language, tokenizer.encode(text), len(clean_text(text).encode())
        return
    stream = TokenStream(name, tokenizer.fingerprint)
    begin = 0
    for end in stream.ends[:limit or None].tolist():
        ids = stream.ids[begin:end].tolist()
        begin = end
        if stream.bos_id is not None and ids[0] == stream.bos_id:
            ids = ids[1:]
        if ids and ids[-1] == tokenizer.eos_id:
            ids = ids[:-1]
        yield stream.language, ids, len(tokenizer.decode(ids).encode())


def document_sets(names: Sequence[str], tokenizer: Tokenizer, context: int, limit: int) -> dict[str, ValidationSet]:
    """language -> its documents in all the files and streams named."""
    sets: dict[str, ValidationSet] = {}
    for name in names:
        for language, ids, size in read_documents(name, tokenizer, limit):
            rows = list(windows(ids, tokenizer.bos_id, context))
            if rows:
                found = sets.setdefault(language, ValidationSet())
                found.rows += rows
                found.documents += 1
                found.bytes += size
    if not sets:
        raise UserError(f"{', '.join(names)}: no document with a token to score")
    return sets


def exam_sets(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, ValidationSet]:
    """language -> its exam items, rationale and answer as targets."""
    items = read_benchmark(config.validation)
    sets = {}
    for language in dict.fromkeys(item.language for item in items):
        exam = ExamRows([i for i in items if i.language == language][:DOCUMENTS], tokenizer, config.sequence_length, config.seed,
                        modes=(config.rationales != "without",), style=config.prompt_style)
        sets[language] = ValidationSet(exam.rows(exam.examples), len(exam.examples))
    return sets


def validation_sets(config: TrainConfig, tokenizer: Tokenizer | None, context: int) -> dict[str, ValidationSet]:
    """What a training run is validated on, by language; empty without --validation."""
    if not config.validation:
        return {}
    if tokenizer is None:
        raise UserError(f"{config.model}: --validation needs the model's tokenizer; give --tokenizer=FOLDER")
    if config.task == "finetune":
        return exam_sets(config, tokenizer)
    names = [part.partition("=")[0].strip() for part in config.validation.split(",") if part.strip()]
    return document_sets(names, tokenizer, context, DOCUMENTS)


# ------------------------------------------------------------------------------------------------------------------ loss

def micro_batches(rows: Sequence[Row], tokens: int, device, flat: bool) -> Iterator[dict]:
    """This rank's share of rows as arguments of forward passes of about `tokens` tokens; every rank gets equally many."""

    rank, world, at = distributed.rank(), distributed.world_size(), 0
    ordered = sorted(rows, key=len, reverse=True)  # rows of about one width go together
    while at < len(ordered):
        width = -(-len(ordered[at]) // WIDTH) * WIDTH
        count = max(1, min(tokens // width, -(-(len(ordered) - at) // world)))
        own = ordered[at + rank * count:at + (rank + 1) * count]
        batch = Batch([], 0, 0)
        add_micro_batch(batch, end_to_end(own) if flat and own and device.type == "cpu" else stack(own, count, width), device)
        yield batch.micro[0]
        at += count * world


def validation_loss(model, sets: dict[str, ValidationSet], tokens: int, device, autocast,
                    stop: Callable[[], bool] = lambda: False) -> dict[str, Loss] | None:
    """language -> loss; every rank computes a share, `tokens` tokens at a time. None if `stop` says so meanwhile."""
    training = model.training
    model.eval()
    losses = {}
    with torch.no_grad():
        for name, one in sets.items():
            total = 0.0
            for micro in micro_batches(one.rows, tokens, device, model.config.by_document):
                if stop():
                    model.train(training)
                    return None
                with autocast():
                    total += float(model(**micro))
            total = distributed.all_sum([total], device)[0]
            count = sum(int((row.labels != IGNORE).sum()) for row in one.rows)
            losses[name] = Loss(one.documents, count, total / count, total / math.log(2) / one.bytes if one.bytes else None)
    model.train(training)
    return losses


def compare(before: dict[str, float], after: dict[str, float]) -> str:
    """The validation loss of a run's end beside that of its beginning, in words.

    >>> compare({"en": 3.1, "fr": 2.0}, {"en": 3.25, "fr": 1.5})
    'validation loss en 3.100 -> 3.250 (ROSE), fr 2.000 -> 1.500, mean 2.550 -> 2.375'
    """
    def change(name: str, low: float, high: float) -> str:
        return f"{name} {low:.3f} -> {high:.3f}" + (" (ROSE)" if high > low else "")

    both = {name: (before[name], after[name]) for name in after if name in before}
    parts = [change(name, *pair) for name, pair in both.items()]
    if len(both) > 1:
        parts.append(change("mean", *(sum(pair[i] for pair in both.values()) / len(both) for i in (0, 1))))
    return "validation loss " + ", ".join(parts)
