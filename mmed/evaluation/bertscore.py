"""BERTScore: similarity of two texts, matching each token with the most similar token of the other text.

    python -m mmed.evaluation.bertscore --model models/bert-base-multilingual-cased \\
        --results results/a results/b

    reference   [CLS] le cœur bat [SEP]    sim[i, j] = cosine of candidate token i and reference token j
    candidate   [CLS] le  foie    [SEP]    P = mean over i of max over j of sim[i, j]; R = the other way round
                                           F1 = 2PR / (P + R); [CLS] and [SEP] are matched with weight 0

The scores equal those of the bert-score package, which the official script uses (Zhang et al. 2020).
MMedLM: multilingual BERT (cased), F1, no idf, no rescaling; the layer is bert-score's choice for that model.
"""
from __future__ import annotations

import csv
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmed import metrics
from mmed.evaluation.results import load_permutations, load_prompts, load_results, write_results
from mmed.evaluation.summary import table
from mmed.prompts import digest
from mmed.training.distributed import device_called
from mmed.utils.errors import Parser, UserError, main_guard, require_extra
from mmed.utils.files import check_file
from mmed.utils.fingerprints import file_hash

# bert_score.utils.model2layers 0.3.13: the layer that agreed best with people on WMT16, by the model's name
BEST_LAYER = {"bert-base-multilingual-cased": 9, "xlm-roberta-base": 9, "xlm-roberta-large": 17}
BATCH_PAIRS = 16


def match(
    candidate: Tensor, reference: Tensor, candidate_weights: Tensor, reference_weights: Tensor
) -> list[float]:
    """P, R and F1 from unit vectors (T, D) of two texts and token weights (T,); 0 if all weights are 0."""
    if not candidate_weights.any() or not reference_weights.any():
        return [0.0, 0.0, 0.0]
    similarity = candidate @ reference.T  # (T, T')
    precision = float(similarity.amax(1).double() @ candidate_weights / candidate_weights.sum())
    recall = float(similarity.amax(0).double() @ reference_weights / reference_weights.sum())
    both = precision + recall
    return [precision, recall, 2 * precision * recall / both if both else 0.0]


def read_baseline(path: str | Path, layer: int) -> list[float]:
    """P, R and F1 of unrelated texts at a layer, from a baseline file of bert-score (LAYER,P,R,F a line)."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = {row[0].strip(): row[1:] for row in csv.reader(file) if row}
    try:
        precision, recall, f1 = map(float, rows[str(layer)])
    except (KeyError, ValueError):
        raise UserError(f"{path}: expected a line LAYER,P,R,F for layer {layer}") from None
    return [precision, recall, f1]


class Scorer:
    """An encoder, whose hidden states of `layer` are compared (0: the embeddings).

    With a `baseline` file of bert-score, scores become (score - baseline) / (1 - baseline).
    """

    def __init__(self, folder: str | Path, layer: int | None = None, *, baseline: str | Path | None = None,
                 device: str = "cpu"):
        transformers = require_extra("transformers", "bertscore")
        layer = BEST_LAYER.get(Path(folder).resolve().name) if layer is None else layer
        if layer is None:
            raise UserError(f"{folder}: give --layer; bert-score has a default only for folders named "
                            f"{', '.join(BEST_LAYER)}")
        check_file(Path(folder, "config.json"))
        try:  # safetensors only: no pickle, and no code from the folder
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if type(self.tokenizer).__name__ in ("RobertaTokenizer", "GPT2Tokenizer"):  # as bert-score does
                self.tokenizer = type(self.tokenizer).from_pretrained(
                    folder, local_files_only=True, add_prefix_space=True)
            self.model = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32).to(device).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: transformers cannot open this encoder ({error})") from None
        config = self.model.config
        if not 0 <= layer <= config.num_hidden_layers:
            raise UserError(f"--layer {layer}: the encoder has layers 0 to {config.num_hidden_layers}")
        positions = config.max_position_embeddings
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # numbered from the padding id on
            positions -= config.pad_token_id + 1
        self.layer, self.max_length = layer, min(self.tokenizer.model_max_length, positions)
        self.baseline = read_baseline(baseline, layer) if baseline else [0.0, 0.0, 0.0]
        files = [f"{path.name} {file_hash(path)}" for path in sorted(Path(folder).iterdir())
                 if path.suffix in (".json", ".txt", ".model", ".safetensors")]
        fingerprint = digest(["\n".join(files)])[:8]
        self.name = f"{config.model_type}-{config.num_hidden_layers}x{config.hidden_size}-{fingerprint}"

    def encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of each text with the special tokens around it; text that looks like one is plain text."""
        ids, truncated = {}, 0
        for text in dict.fromkeys(texts):
            ids[text] = self.tokenizer(text.strip(), split_special_tokens=True, verbose=False)["input_ids"]
            if len(ids[text]) > self.max_length:
                ids[text] = [*ids[text][:self.max_length - 1], ids[text][-1]]
                truncated += 1
        if truncated:
            print(f"note: {truncated:,} texts exceed the encoder's {self.max_length} tokens and were "
                  "truncated", file=sys.stderr)
        return ids

    @torch.inference_mode()
    def directions(self, texts: Sequence[list[int]]) -> list[Tensor]:
        """The (T, D) hidden states of each text's ids, scaled to length 1."""
        padded = self.tokenizer.pad({"input_ids": list(texts)}, return_tensors="pt")
        output = self.model(**padded.to(self.model.device), output_hidden_states=True)
        hidden = torch.nn.functional.normalize(output.hidden_states[self.layer], dim=-1)
        return [row[:len(ids)] for row, ids in zip(hidden, texts)]

    def signature(self, references: Sequence[str] | None = None) -> str:
        """Encoder (shape, fingerprint), layer, token weights (for idf: from which references), rescaling."""
        weights = "no-idf" if references is None else f"idf-{digest([repr(sorted(references))])[:8]}"
        rescaled = "".join(f"-{value:.6g}" for value in self.baseline)
        rescaled = f"-rescaled{rescaled}" if any(self.baseline) else ""
        return metrics.signature("BERTScore", f"f1-{self.name}-L{self.layer}-{weights}{rescaled}",
                                 tokens=type(self.tokenizer).__name__)

    def __call__(self, candidates: Sequence[str], references: Sequence[str], *,
                 idf: bool = False) -> np.ndarray:
        """(n, 3): P, R and F1 of pairs; `idf` weights tokens by their rarity in the references."""
        ids = self.encode([*candidates, *references])
        occurs = Counter(token for text in references for token in set(ids[text]))
        ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id

        def weights(text: str) -> Tensor:
            rarity = [math.log((len(references) + 1) / (occurs[token] + 1)) if idf else 1.0
                      for token in ids[text]]
            kept = [0.0 if token in ends else weight for token, weight in zip(ids[text], rarity)]
            return torch.tensor(kept, dtype=torch.float64, device=self.model.device)

        pairs = list(zip(candidates, references, strict=True))
        order = sorted(range(len(pairs)), key=lambda i: max(len(ids[text]) for text in pairs[i]))
        scores = np.zeros((len(pairs), 3))  # an empty text scores 0
        for start in tqdm(range(0, len(pairs), BATCH_PAIRS), disable=not sys.stderr.isatty()):
            batch = order[start:start + BATCH_PAIRS]
            hidden = iter(self.directions([ids[text] for i in batch for text in pairs[i]]))
            for i in batch:
                vectors = next(hidden), next(hidden)
                if min(len(ids[text]) for text in pairs[i]) > 2:  # neither is empty
                    scores[i] = match(*vectors, *map(weights, pairs[i]))
        low = np.array(self.baseline)
        return (scores - low) / (1 - low)


def add_to_results(scorer: Scorer, folder: str, idf: bool) -> str:
    """Score the rationales of a result folder and write them back; returns the new tables."""
    own, loaded = load_results(folder)
    rows = list(loaded)
    texts = [row for row in rows if row.get("scores")]
    if not texts:
        raise UserError(f"{folder}: no rationale with a reference to score (was it run with --mode answer?)")
    references = [row["doc"]["rationale"] for row in texts]
    signature = scorer.signature(references if idf else None)
    scores = scorer([row["rationale"] for row in texts], references, idf=idf)
    for row, f1 in zip(texts, scores[:, 2].tolist()):
        row["scores"][signature] = f1
    rows += load_permutations(folder)
    summary = write_results(Path(folder), rows, load_prompts(folder), own["facts"], own["settings"])
    return f"{table(summary, own['settings']['words'])}\n{signature}"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.evaluation.bertscore",
                    description="Add BERTScore to result folders of mmed.eval.")
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="encoder, such as bert-base-multilingual-cased")
    add("--results", required=True, nargs="+", metavar="FOLDER", help="result folders to extend")
    add("--layer", type=int, metavar="N", help="encoder layer (default: bert-score's choice for the name)")
    add("--idf", action="store_true", help="weight tokens by inverse document frequency in the references")
    add("--baseline", metavar="FILE", help="rescale with one of bert-score's baseline files (LAYER,P,R,F)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    options = parser.parse_args(arguments)
    scorer = Scorer(options.model, options.layer, baseline=options.baseline,
                    device=device_called(options.device))
    for folder in options.results:
        print(f"{folder}\n{add_to_results(scorer, folder, options.idf)}\n")
    return 0


if __name__ == "__main__":
    main_guard(main)
