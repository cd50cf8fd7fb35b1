r"""BERTScore with an encoder of our own: how alike two texts are when each piece is matched with the most similar one of the other.

    scores = bert_score(candidates, references, "models/bert-base-multilingual-cased", layer=9)
    scores.f1[0], scores.signature

    python -m mmed.evaluation.bertscore --model models/bert-base-multilingual-cased --results results/base results/adapted

In: pairs of texts and an encoder's folder (BERT or XLM-R: config.json, *.safetensors, its tokenizer). Out: precision, recall and
F1 per pair; the command adds them to the files of result folders (mmed/evaluation/results.py), under a signature like any other metric.

    reference   [CLS] le cœur bat [SEP]          sim[i, j] = cosine of the hidden states of candidate piece i and reference piece j
    candidate   [CLS] le  foie    [SEP]          P = mean over candidate pieces i of max over j of sim[i, j];  R = the other way round
                      ^^ ^^^^ weighed            F1 = 2PR / (P + R);  [CLS] and [SEP] can be matched, but weigh nothing

Order: encoder (mmed/evaluation/encoder_model.py) -> hidden states -> matching -> `bert_score` -> the command. Scores equal those of the
bert-score package (tests/evaluation/test_bertscore.py), which the official script uses.

MMedLM: multilingual BERT (cased), F1, no idf, no rescaling with a baseline; the layer is bert-score's choice for the model.

Legend: T pieces, D hidden. Reference: Zhang et al. 2020 (BERTScore).
"""
from __future__ import annotations

import argparse
import csv
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmed import metrics
from mmed.evaluation.encoder_model import load_encoder
from mmed.evaluation.results import load_prompts, load_results, write_results
from mmed.training.distributed import device_called
from mmed.utils.errors import Parser, UserError, main_guard

BATCH_PIECES = {"cpu": 1024, "cuda": 16384}  # in one forward pass, padding included; on a processor few, for its caches
CHUNK_PAIRS = 512    # pairs whose hidden states are in memory together: it does not grow with their number


# -------------------------------------------------------------------------------------------------------- hidden states

def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of texts that share a forward pass: neighbours by length, `most` pieces with their padding.

    >>> list(batches([3, 9, 2, 8], most=18))
    [[1, 3], [0, 2]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def directions(model: nn.Module, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T, D) hidden states of each text's ids, each scaled to length 1."""
    device = next(model.parameters()).device
    result: list[Any] = [None] * len(texts)
    with torch.inference_mode():
        for batch in batches([len(ids) for ids in texts], BATCH_PIECES["cpu" if device.type == "cpu" else "cuda"]):
            lengths = torch.tensor([len(texts[place]) for place in batch])
            padded = torch.full((len(batch), int(lengths.max())), model.config.pad_token_id)
            for row, place in enumerate(batch):
                padded[row, :len(texts[place])] = torch.tensor(texts[place])
            hidden = model(padded.to(device), lengths.to(device)).float()
            hidden = hidden / hidden.norm(dim=-1, keepdim=True)
            for row, place in enumerate(batch):
                result[place] = hidden[row, :len(texts[place])]
    return result


# ------------------------------------------------------------------------------------------------------------- matching

class BertScores(NamedTuple):
    """A column each; `cut`: texts that were longer than the encoder's positions and lost their end."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    signature: str
    cut: int


def inverse_document_frequency(references: Sequence[Sequence[int]]) -> dict[int, float]:
    """log((N + 1) / (n + 1)) of each id that stands in n of N references; an id that stands in none has n = 0.

    >>> {i: round(w, 3) for i, w in inverse_document_frequency([[1, 5, 5, 2], [1, 6, 2]]).items()}
    {1: 0.0, 2: 0.0, 5: 0.405, 6: 0.405}
    """
    count = Counter(index for ids in references for index in set(ids))
    return {index: math.log((len(references) + 1) / (n + 1)) for index, n in sorted(count.items())}


def match(candidate: Tensor, reference: Tensor, candidate_weights: Tensor, reference_weights: Tensor) -> tuple[float, float, float]:
    """P, R and F1 from two texts' directions; nothing that weighs on a side: 0."""
    if not bool(candidate_weights.any()) or not bool(reference_weights.any()):
        return 0.0, 0.0, 0.0
    similar = candidate @ reference.T
    precision = float(similar.amax(1).double() @ candidate_weights / candidate_weights.sum())
    recall = float(similar.amax(0).double() @ reference_weights / reference_weights.sum())
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def encoder_fingerprint(folder: str | Path) -> str:
    """sha256 of what decides the hidden states: config, weights, tokenizer."""
    names = ("config.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json", "pytorch_model.bin")
    digests = []
    for path in sorted(Path(folder).iterdir()):
        if path.name in names or path.suffix == ".safetensors" or path.name.endswith(".index.json"):
            with open(path, "rb") as file:
                digests.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_baseline(path: str | Path, layer: int) -> tuple[float, float, float]:
    """P, R and F1 of unrelated texts at a layer, from bert-score's baseline files (LAYER,P,R,F a line)."""
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if row and row[0].strip() == str(layer):
                try:
                    values = tuple(float(cell) for cell in row[1:])
                except ValueError:
                    values = ()
                if len(values) != 3 or not all(-1 <= value < 1 for value in values):
                    raise UserError(f"{path}:{number}: expected LAYER,P,R,F with numbers below 1")
                return values
    raise UserError(f"{path}: no line for layer {layer}")


class Scorer:
    """An encoder at hand for several calls; `bert_score` is the same for one."""

    def __init__(self, folder: str | Path, layer: int | None = None, *, baseline: str | Path | None = None, device: str = "cpu"):
        self.model, self.tokenizer = load_encoder(folder, layer, device=device)
        self.layer = len(self.model.encoder["layer"])
        self.baseline = read_baseline(baseline, self.layer) if baseline else None
        self.fingerprint = encoder_fingerprint(folder)

    def signature(self, idf: bool) -> str:
        """Model (its shape and the first digits of its fingerprint), layer, weights of pieces, and whether rescaled."""
        config = self.model.config
        name = f"{config.model_type}-{config.num_hidden_layers}x{config.hidden_size}-{self.fingerprint[:8]}"
        how = f"f1-{name}-L{self.layer}-{'idf' if idf else 'no-idf'}" + ("-rescaled" if self.baseline else "")
        return metrics.signature("BERTScore", how, tokens=self.tokenizer.kind)

    def __call__(self, candidates: Sequence[str], references: Sequence[str], *, idf: bool = False, on_pair=None) -> BertScores:
        """Scores of pairs; `idf` weighs rare pieces of the references more; `on_pair` is called after each."""
        if len(candidates) != len(references):
            raise ValueError(f"bert_score: {len(candidates)} candidates but {len(references)} references")
        tokenizer, device = self.tokenizer, next(self.model.parameters()).device
        ids: dict[str, list[int]] = {}
        cut = set()
        for text in (*candidates, *references):
            if text not in ids:
                pieces = tokenizer.pieces(text.strip())
                room = tokenizer.max_length - 2
                ids[text] = [tokenizer.cls_id, *pieces[:room], tokenizer.sep_id]
                if len(pieces) > room:
                    cut.add(text)
        marks = dict.fromkeys((tokenizer.cls_id, tokenizer.sep_id), 0.0)
        known = inverse_document_frequency([ids[text] for text in references]) if idf else marks
        rare = math.log(len(references) + 1) if idf else 1.0

        def weights(text: str) -> Tensor:
            return torch.tensor([known.get(index, rare) for index in ids[text]], dtype=torch.float64, device=device)

        scores: list[Any] = [None] * len(candidates)
        # by length, so that little is padded, and by reference, so that one that several models answered is computed once
        order = sorted(range(len(candidates)), key=lambda i: (-len(ids[references[i]]), references[i], i))
        for start in range(0, len(order), CHUNK_PAIRS):
            part = order[start:start + CHUNK_PAIRS]
            texts = sorted({text for i in part for text in (candidates[i], references[i]) if len(ids[text]) > 2})
            hidden = dict(zip(texts, directions(self.model, [ids[text] for text in texts])))
            with torch.inference_mode():
                for i in part:
                    sides = (candidates[i], references[i])
                    score = match(*(hidden[text] for text in sides), *map(weights, sides)) if all(text in hidden for text in sides) else (0.0, 0.0, 0.0)
                    scores[i] = tuple((value - low) / (1 - low) for value, low in zip(score, self.baseline)) if self.baseline else score
                    if on_pair:
                        on_pair()
        columns = ([score[side] for score in scores] for side in range(3))
        return BertScores(*columns, self.signature(idf), len(cut))


def bert_score(candidates: Sequence[str], references: Sequence[str], folder: str | Path, layer: int | None = None, *, idf: bool = False,
               baseline: str | Path | None = None, device: str = "cpu") -> BertScores:
    """BERTScore of each candidate against its reference, by the encoder in `folder`.

    layer     whose hidden states are compared, 0: the embeddings; None: bert-score's choice, for encoders that it knows
    idf       pieces that few references hold weigh more; else all weigh the same
    baseline  a file of bert-score's (LAYER,P,R,F): scores become (score - baseline) / (1 - baseline)

    An empty text scores 0 (rescaled like any other), as in bert-score. Text that looks like a mark ("[SEP]") is text.
    """
    return Scorer(folder, layer, baseline=baseline, device=device)(candidates, references, idf=idf)


# ---------------------------------------------------------------------------------------------------------- the command

def add_to_results(scorer: Scorer, folders: Sequence[str | Path], *, idf: bool = False, on_pair=None) -> dict[str, dict]:
    """Score the rationales of result folders and write them back, results.json last; folder -> its new summary.

    With `idf` the pieces are counted over the references of all folders given, so only folders scored together compare.
    """
    loaded = []
    for folder in map(Path, folders):
        own, rows = load_results(folder)
        rows = list(rows)
        texts = [row for row in rows if row["mode"] == "rationale" and row["scores"]]
        if not texts:
            raise UserError(f"{folder}: no rationale with a reference to score (was it run with --mode answer?)")
        loaded.append((folder, own, rows, texts, load_prompts(folder)))
    pairs = [row for _, _, _, texts, _ in loaded for row in texts]
    scores = scorer([row["rationale"] for row in pairs], [row["doc"]["rationale"] for row in pairs], idf=idf, on_pair=on_pair)
    if scores.cut:
        print(f"note: {scores.cut:,} texts are longer than the encoder's {scorer.tokenizer.max_length} pieces and were compared up to there", file=sys.stderr)
    for row, value in zip(pairs, scores.f1):
        row["scores"][scores.signature] = value
    return {str(folder): write_results(folder, rows, prompts, own["facts"], own["settings"]) for folder, own, rows, _, prompts in loaded}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.evaluation.bertscore", description="Add BERTScore to result folders of mmed.eval.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="encoder: multilingual BERT or XLM-R (config.json, *.safetensors, tokenizer)")
    parser.add_argument("--results", required=True, nargs="+", metavar="FOLDER", help="result folders; their files get the new column")
    parser.add_argument("--layer", type=int, metavar="N", help="whose hidden states are compared (default: bert-score's choice, for the encoders it knows)")
    parser.add_argument("--idf", action="store_true", help="pieces that few references hold weigh more (counted over all folders given)")
    parser.add_argument("--baseline", metavar="FILE", help="rescale with this file of bert-score's (LAYER,P,R,F a line)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)

    scorer = Scorer(options.model, options.layer, baseline=options.baseline, device=device_called(options.device))
    with tqdm(unit=" pairs", disable=not sys.stderr.isatty()) as bar:
        summaries = add_to_results(scorer, options.results, idf=options.idf, on_pair=bar.update)
    name = "|".join(scorer.signature(options.idf).split("|")[:2])
    for folder, summary in summaries.items():
        parts = {**summary["languages"], "macro average": summary["macro"]}
        print(f"{folder}: " + ", ".join(f"{language} {100 * part['text'][name]['value']:.2f}" for language, part in parts.items() if name in part["text"]))
    print(f"({scorer.signature(options.idf)}; x 100; items: {next(iter(summaries.values()))['text_items']})")
    return 0


if __name__ == "__main__":
    main_guard(main)
