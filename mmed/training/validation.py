"""Validation loss: the mean loss of a model on documents or exam items it is not trained on, per language.

In:  documents as JSONL (`text`, `language`) or token streams, or exam items; a model.
Out: per language the number of documents and tokens, nats per token and bits per byte.
     `python -m mmed.evaluation.validation_loss` prints them without training.

A document is scored alone, after its BOS, every token of its text, but not the EOS: the result does not
depend on the rows of training (docs/training_rows.md). One longer than the model's context is read in windows
that overlap by a quarter and begin with BOS. Bits per byte compare different tokenizers.
"""
from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mmed.config import TrainConfig
from mmed.data import IGNORE, ExamRows, Row
from mmed.languages import get_language
from mmed.model import Transformer
from mmed.prompts import read_benchmark
from mmed.tokenization.texts import SUFFIXES, clean_text, read_texts
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import Tokenizer
from mmed.training import distributed, loader
from mmed.utils.errors import UserError

DOCUMENTS = 64  # of each validation stream, and exam items of each language, that a training run scores
OVERLAP = 0.25  # share of a window that only gives context: the end of the window before it


@dataclass
class ValidationSet:
    """The documents (or exam items) of one language as rows to score."""

    rows: list[Row] = field(default_factory=list)
    documents: int = 0
    bytes: int = 0  # of the documents' text; 0 for exam items


@dataclass
class Loss:
    documents: int
    tokens: int
    nats_per_token: float
    bits_per_byte: float | None  # None for exam items


def windows(ids: Sequence[int], bos_id: int | None, context: int) -> Iterator[Row]:
    """A document's tokens as rows of at most `context` tokens, in which each token is a label once.

        context 8, BOS b      b 1 2 3 4 5 6 7       b 6 7 8 9
        labels                1 2 3 4 5 6 7 8       . . . 9 10
    """
    bos = [] if bos_id is None else [bos_id]
    body = context - len(bos)  # tokens of the text that go into a window
    start = 0               # first token of the window
    scored = 1 - len(bos)   # tokens scored; without BOS the first one never is
    while scored < len(ids):
        inputs = np.array([*bos, *ids[start:start + body]], dtype=np.int64)
        end = min(start + body + 1, len(ids))
        first = start + 1 - len(bos)  # the token that is the first label
        labels = np.array(ids[first:end], dtype=np.int64)
        labels[:scored - first] = IGNORE
        yield Row(inputs[:len(labels)], labels, np.zeros(len(labels), np.int64), np.arange(len(labels)))
        scored, start = end, max(start + 1, end - 1 - int(OVERLAP * context))


def read_documents(source: str | TokenStream, tokenizer: Tokenizer,
                   limit: int) -> Iterator[tuple[str, list[int], int]]:
    """(language, ids without BOS and EOS, bytes of the text) of the first `limit` documents of each language
    of a file, or of a token stream (0: all)."""
    if isinstance(source, str):
        counts: Counter[str] = Counter()
        for text, language in read_texts(source):
            with contextlib.suppress(UserError):  # a language that mmed does not know keeps its name
                language = get_language(language.partition("-")[0]).code
            counts[language] += 1
            if not limit or counts[language] <= limit:
                yield language, tokenizer.encode(text), len(clean_text(text).encode())
        return
    if len(source.counts) > 1 and distributed.is_main():
        print(f"warning: {source.prefix} mixes {', '.join(source.counts)} and is validated as one language; "
              "tokenize each language into a stream of its own", file=sys.stderr)
    ends = source.ends[:limit or None].tolist()
    for begin, end in itertools.pairwise([0, *ends]):
        ids = source.ids[begin:end].tolist()
        ids = ids[1:] if source.bos_id is not None and ids[0] == source.bos_id else ids
        ids = ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids
        yield source.language, ids, len(tokenizer.decode(ids).encode())


def document_sets(names: Sequence[str], tokenizer: Tokenizer, context: int,
                  limit: int) -> dict[str, ValidationSet]:
    """Language -> its documents in all that is named; "general en" where a name begins with "general".
    Without BOS a document's first token is not scored, and its bytes do not count."""
    sets: dict[str, ValidationSet] = {}
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{twice[0]}: named twice, so its documents would count double")
    sources = [name if name.endswith(SUFFIXES) else TokenStream(name, tokenizer.fingerprint)
               for name in names]
    loader.verify_streams([source for source in sources if isinstance(source, TokenStream)])
    for name, source in zip(names, sources):
        kind = "general " if Path(name).name.startswith("general") else ""  # to measure forgetting
        for language, ids, size in read_documents(source, tokenizer, limit):
            if rows := list(windows(ids, tokenizer.bos_id, context)):
                found = sets.setdefault(kind + language, ValidationSet())
                found.rows += rows
                found.documents += 1
                unscored = 0 if tokenizer.bos_id is not None else len(tokenizer.decode(ids[:1]).encode())
                found.bytes += size - unscored
    if not sets:
        raise UserError(f"{', '.join(names) or 'no name given'}: no document with a token to score")
    return sets


def validation_sets(config: TrainConfig, tokenizer: Tokenizer | None,
                    context: int) -> dict[str, ValidationSet]:
    """What a training run is validated on, by language; empty without --validation."""
    if not config.validation:
        return {}
    if tokenizer is None:
        raise UserError(f"{config.model}: --validation needs the model's tokenizer; give --tokenizer=FOLDER")
    if config.task == "pretrain":
        names = [part.partition("=")[0].strip() for part in config.validation.split(",") if part.strip()]
        return document_sets(names, tokenizer, context, DOCUMENTS)
    if config.task == "instruct":
        rows = loader.make_rows(replace(config, data=config.validation), tokenizer)
        examples = rows.examples[:DOCUMENTS]
        return {"conversations": ValidationSet(rows.rows(examples), len(examples))}
    items, sets = read_benchmark(config.validation), {}
    for language in dict.fromkeys(item.language for item in items):
        own = [item for item in items if item.language == language]
        explained = [item for item in own if item.rationale.strip() and config.rationales != "without"]
        exam = ExamRows((explained or own)[:DOCUMENTS], tokenizer, config.sequence_length, config.seed,
                        modes=(bool(explained),), style=config.prompt_style)
        sets[language] = ValidationSet(exam.rows(exam.examples), len(exam.examples))
    return sets


@torch.no_grad()
def validation_loss(model: Transformer, sets: dict[str, ValidationSet], tokens: int, device: torch.device,
                    autocast: Callable[[], AbstractContextManager]) -> dict[str, Loss]:
    """Language -> loss; every rank computes a share, about `tokens` tokens at a time."""
    rank, world, training = distributed.rank(), distributed.world_size(), model.training
    model.eval()
    losses = {}
    for language, one in sets.items():
        total = torch.zeros((), dtype=torch.float64, device=device)
        rows = sorted(one.rows, key=len, reverse=True)  # rows of about one width go together
        while rows:
            count = max(1, tokens // len(rows[0]))  # per rank
            together, rows = rows[:count * world], rows[count * world:]
            share = loader.rank_share(len(together), rank, world, count)
            for micro in loader.micro_batches(together, share, device, model.config.by_document).micro:
                with autocast():
                    total += model(**micro)
        nats = float(distributed.device_sum(total))
        count = sum(int((row.labels != IGNORE).sum()) for row in one.rows)
        bits_per_byte = nats / math.log(2) / one.bytes if one.bytes else None
        losses[language] = Loss(one.documents, count, nats / count, bits_per_byte)
    model.train(training)
    return losses


def compare(before: dict[str, float], after: dict[str, float]) -> str:
    """The validation loss at a run's end beside that at its beginning; "" if one of them is missing.

    >>> compare({"en": 3.1, "fr": 2.0}, {"en": 3.25, "fr": 1.5})
    'validation loss en 3.100 -> 3.250 (ROSE), fr 2.000 -> 1.500, mean 2.550 -> 2.375; '
    """
    pairs = [(name, before[name], after[name]) for name in after if name in before]
    if len(pairs) > 1:
        pairs.append(("mean", *(sum(pair[i] for pair in pairs) / len(pairs) for i in (1, 2))))
    parts = [f"{name} {first:.3f} -> {last:.3f}{'' if last <= first else ' (ROSE)'}"
             for name, first, last in pairs]
    return f"validation loss {', '.join(parts)}; " if parts else ""
