r"""BERTScore with an encoder of our own: how alike two texts are when each piece is matched with the most similar one of the other.

    scores = bert_score(candidates, references, "models/bert-base-multilingual-cased", layer=9)
    scores.f1[0], scores.signature

    python -m mmed.encoder --model models/bert-base-multilingual-cased --results results/base results/adapted

In: pairs of texts and an encoder's folder (BERT or XLM-R: config.json, *.safetensors, its tokenizer). Out: precision, recall and
F1 per pair; the command adds them to the files of result folders (mmed/results.py), under a signature like any other metric.

    reference   [CLS] le cœur bat [SEP]          sim[i, j] = cosine of the hidden states of candidate piece i and reference piece j
    candidate   [CLS] le  foie    [SEP]          P = mean over candidate pieces i of max over j of sim[i, j];  R = the other way round
                      ^^ ^^^^ weighed            F1 = 2PR / (P + R);  [CLS] and [SEP] can be matched, but weigh nothing

Order: config -> encoder -> weights -> hidden states -> matching -> `bert_score` -> the command. The encoder is BERT's
post-norm transformer up to the layer asked for; no more layers are read from disk. Hidden states equal those of transformers,
scores those of the bert-score package (tests/test_encoder.py), which the official script uses.

MMedLM: multilingual BERT (cased), F1, no idf, no rescaling with a baseline; the layer is bert-score's choice for the model.

Legend: B texts, T pieces, D hidden, H heads, E head size. References: Devlin et al. 2019; Conneau et al. 2020 (XLM-R); Zhang et al. 2020 (BERTScore).
"""
from __future__ import annotations

import argparse
import csv
import hashlib
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmed import metrics
from mmed.errors import Parser, UsageError, UserError, main_guard
from mmed.families import IGNORED, NEUTRAL
from mmed.files import read_json
from mmed.safe import StoredTensor, TensorReader, fitted, stored_tensors

if TYPE_CHECKING:  # torch takes seconds to import, and --help needs none of it
    import torch
    from torch import Tensor, nn

    from mmed.wordpiece import Unigram, WordPiece

BATCH_PIECES = {"cpu": 1024, "cuda": 16384}  # in one forward pass, padding included; on a processor few, for its caches
CHUNK_PAIRS = 512    # pairs whose hidden states are in memory together: it does not grow with their number
MAX_CONFIG_BYTES = 4 << 20
# (model_type, layers, vocabulary) -> the layer that bert-score chose on WMT16 (its utils.py, model2layers)
BEST_LAYER = {("bert", 12, 119547): 9, ("bert", 12, 105879): 9, ("xlm-roberta", 12, 250002): 9, ("xlm-roberta", 24, 250002): 17}


# --------------------------------------------------------------------------------------------------------------- config

@dataclass(frozen=True)
class EncoderConfig:
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str
    pad_token_id: int

    @property
    def first_position(self) -> int:
        """XLM-R counts positions from the one after its padding's, as fairseq does."""
        return self.pad_token_id + 1 if self.model_type == "xlm-roberta" else 0

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.first_position


SIZES = {"vocab_size": 2 ** 24, "hidden_size": 2 ** 16, "num_hidden_layers": 1000, "num_attention_heads": 2 ** 10, "intermediate_size": 2 ** 18,
         "max_position_embeddings": 2 ** 20, "type_vocab_size": 2 ** 10}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# of training, of the pooler and of heads: nothing of it reaches a hidden state
WITHOUT_EFFECT = IGNORED | set("""hidden_dropout_prob attention_probs_dropout_prob classifier_dropout initializer_range bos_token_id eos_token_id
    tie_word_embeddings directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    output_past gradient_checkpointing""".split())


def read_encoder_config(path: Path) -> EncoderConfig:
    """config.json, checked; a key that may change the mathematics and is not known is refused by name."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; an encoder's folder holds config.json, *.safetensors and a tokenizer")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a config (limit {MAX_CONFIG_BYTES:,})")
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("bert", "xlm-roberta"):
        raise UserError(f"{path}: model_type {str(kind)[:40]!r}; the encoders for BERTScore are bert and xlm-roberta")
    values: dict[str, Any] = {"model_type": kind}
    usual = {"type_vocab_size": 2 if kind == "bert" else 1, "pad_token_id": 0 if kind == "bert" else 1}
    for key, most in {**SIZES, "pad_token_id": 2 ** 24}.items():
        value = config.get(key, usual.get(key))
        if not isinstance(value, int) or isinstance(value, bool) or not (key != "pad_token_id") <= value <= most:
            raise UserError(f"{path}: {key} = {str(value)[:40]}, expected a whole number up to {most:,}")
        values[key] = value
    epsilon, activation = config.get("layer_norm_eps", 1e-12), config.get("hidden_act", "gelu")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise UserError(f"{path}: layer_norm_eps = {str(epsilon)[:40]}, expected a number from 0 to 1")
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act = {str(activation)[:40]!r} is not supported (known: {', '.join(ACTIVATIONS)})")
    for key, value in config.items():
        neutral = {"position_embedding_type": ("absolute",), **NEUTRAL}.get(key)
        known = key in values or key in ("layer_norm_eps", "hidden_act") or (neutral is None and key in WITHOUT_EFFECT) or key.startswith("_")
        if value is not None and not known and (neutral is None or value not in neutral):
            raise UserError(f"{path}: {key} = {str(value)[:80]!r} is nothing that this reader knows; it may change the mathematics, so the model is refused")
    result = EncoderConfig(**values, layer_norm_eps=epsilon, hidden_act=activation)
    if result.hidden_size % result.num_attention_heads:
        raise UserError(f"{path}: hidden_size = {result.hidden_size} is not a multiple of num_attention_heads = {result.num_attention_heads}")
    if result.pad_token_id >= result.vocab_size or result.max_length < 3:
        raise UserError(f"{path}: pad_token_id = {result.pad_token_id} leaves no room in {result.vocab_size:,} pieces or "
                        f"{result.max_position_embeddings} positions")
    return result


# -------------------------------------------------------------------------------------------------------------- encoder

def build_encoder(config: EncoderConfig, layers: int) -> nn.Module:
    """The encoder up to layer `layers`; parameters carry the names of the published weights."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    D = config.hidden_size
    activation = {"gelu": F.gelu, "relu": F.relu}.get(config.hidden_act, lambda x: F.gelu(x, approximate="tanh"))

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(D, eps=config.layer_norm_eps)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.ModuleDict({
                "self": nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(D, D), "LayerNorm": norm()})})
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(D, config.intermediate_size)})
            self.output = nn.ModuleDict({"dense": nn.Linear(config.intermediate_size, D), "LayerNorm": norm()})

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            own, out = self.attention["self"], self.attention["output"]
            B, T, _ = x.shape
            query, key, value = (own[name](x).view(B, T, config.num_attention_heads, -1).transpose(1, 2) for name in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, T, E)
            x = out["LayerNorm"](x + out["dense"](mixed.transpose(1, 2).reshape(B, T, D)))
            return self.output["LayerNorm"](x + self.output["dense"](activation(self.intermediate["dense"](x))))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.ModuleDict({
                "word_embeddings": nn.Embedding(config.vocab_size, D), "position_embeddings": nn.Embedding(config.max_position_embeddings, D),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, D), "LayerNorm": norm()})
            self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(layers))})
            self.config = config

        def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
            """(B, T) ids, padded at their ends, and (B,) numbers of real ones -> (B, T, D) hidden states; those of padding mean nothing."""
            T = input_ids.shape[1]
            if not 0 < T <= config.max_length:
                raise ValueError(f"expected 1 to {config.max_length} pieces, got {T}")
            places = torch.arange(T, device=input_ids.device)
            names = self.embeddings
            x = names["word_embeddings"](input_ids) + names["token_type_embeddings"].weight[0]
            x = names["LayerNorm"](x + names["position_embeddings"](places + config.first_position))
            mask = None if bool((lengths == T).all()) else (places < lengths[:, None])[:, None, None]  # (B, 1, 1, T): who may be looked at
            for layer in self.encoder["layer"]:
                x = layer(x, mask)
            return x

    return Encoder()


# -------------------------------------------------------------------------------------------------------------- weights

# beside the encoder in a published folder; the hidden states do not depend on them
HEADS = re.compile(r"(pooler|cls|lm_head|classifier|qa_outputs)\.|embeddings\.(position_ids|token_type_ids)$")
PREFIXES = ("bert.", "roberta.")
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # as converted from TensorFlow


def _own_name(name: str) -> str:
    """
    >>> _own_name("bert.embeddings.LayerNorm.gamma")
    'embeddings.LayerNorm.weight'
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def match_encoder_weights(model: nn.Module, folder: Path) -> list[tuple[torch.Tensor, StoredTensor]]:
    """(parameter, where it is stored); an error that lists what is missing, unexpected or of another shape."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in stored_tensors(folder).items():
        if stored.setdefault(_own_name(name), tensor) is not tensor:
            raise UserError(f"{tensor.path}: {name} and {stored[_own_name(name)].name} are the same weight")
    wanted = dict(model.named_parameters())
    above = {f"encoder.layer.{n}." for n in range(len(model.encoder["layer"]), model.config.num_hidden_layers)}
    stray = [name for name in stored if name not in wanted and not HEADS.match(name) and not any(map(name.startswith, above))]
    return fitted(folder, wanted, stored, stray)


def load_encoder(folder: str | Path, layer: int | None = None, dtype: torch.dtype | None = None,
                 device: str | torch.device = "cpu") -> tuple[nn.Module, WordPiece | Unigram]:
    """(encoder up to `layer`, tokenizer) of a published folder; without `layer`, the one bert-score chose for this model."""
    import torch

    from mmed.wordpiece import load_encoder_tokenizer

    folder = Path(folder)
    config = read_encoder_config(folder / "config.json")
    if layer is None:
        layer = BEST_LAYER.get((config.model_type, config.num_hidden_layers, config.vocab_size))
        if layer is None:
            raise UsageError(f"{folder}: bert-score names no best layer for this encoder; give one, 0 (embeddings) to {config.num_hidden_layers}")
    if not 0 <= layer <= config.num_hidden_layers:
        raise UsageError(f"layer {layer}: this encoder has the layers 0 (embeddings) to {config.num_hidden_layers}")
    tokenizer = load_encoder_tokenizer(folder)
    if tokenizer.size > config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tokenizer.size:,} ids, the embedding only {config.vocab_size:,} rows")
    tokenizer.max_length = min(tokenizer.max_length or config.max_length, config.max_length)
    with torch.device("meta"):
        model = build_encoder(config, layer)
    pairs = match_encoder_weights(model, folder)  # before memory is taken
    model = model.to(dtype or torch.float32).to_empty(device=device)
    reader = TensorReader()
    with torch.no_grad():
        for parameter, (_, stored) in zip(model.parameters(), pairs, strict=True):  # in the same order
            reader.copy(stored, slice(0, stored.shape[0]), parameter.detach())
    reader.close()
    return model.eval().requires_grad_(False), tokenizer


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
    import torch

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
        import torch

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
    from mmed.results import load_prompts, load_results, write_results

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
    parser = Parser(prog="python -m mmed.encoder", description="Add BERTScore to result folders of mmed.eval.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="encoder: multilingual BERT or XLM-R (config.json, *.safetensors, tokenizer)")
    parser.add_argument("--results", required=True, nargs="+", metavar="FOLDER", help="result folders; their files get the new column")
    parser.add_argument("--layer", type=int, metavar="N", help="whose hidden states are compared (default: bert-score's choice, for the encoders it knows)")
    parser.add_argument("--idf", action="store_true", help="pieces that few references hold weigh more (counted over all folders given)")
    parser.add_argument("--baseline", metavar="FILE", help="rescale with this file of bert-score's (LAYER,P,R,F a line)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    from tqdm import tqdm

    from mmed.distributed import device_called

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
