"""What a run trains on: data by name -> rows -> this rank's micro-batches of batch k, made ahead of time.

    --data=NAME[=WEIGHT],...  ->  PretrainRows | ExamRows  ->  Batches: tensors of this rank's rows

Batch k is the same on any number of ranks (mmed/data.py); here each rank takes its share of the rows. A
thread reads, packs and (for a GPU) copies the next batch while the present one is computed.
"""
from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmed import data
from mmed.config import TrainConfig
from mmed.data import ExamRows, PackedBlocks, PretrainRows, Row
from mmed.prompts import read_benchmark
from mmed.tokenization.token_streams import StreamWriter, TokenStream
from mmed.tokenizer import Tokenizer, train_sentencepiece
from mmed.training import distributed
from mmed.training.conversations import InstructRows
from mmed.training.official_windows import OfficialWindows
from mmed.utils.errors import UsageError
from mmed.utils.files import read_json

WIDTH = 64  # widths of exam batches are multiples of this: few different shapes
SMALLEST_SHARE = 1e-6  # of a stream in a mixture, whose cycle has two rows of each stream


def read_streams(config: TrainConfig,
                 fingerprint: str | None) -> tuple[list[TokenStream], list[float] | None]:
    """Streams and weights (None: every row once an epoch) of "NAME[=WEIGHT],NAME..."."""
    parts = [part.strip().partition("=") for part in config.data.split(",") if part.strip()]
    names = [name for name, _, _ in parts]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--data={config.data}: expected token streams NAME[=WEIGHT],..., each named once")
    try:
        weights = [float(weight) for _, equals, weight in parts if equals]
    except ValueError:
        raise UsageError(f"--data={config.data}: a weight must be a number") from None
    if weights and len(weights) < len(parts):
        raise UsageError("--data: give a weight to every stream or to none")
    streams = [TokenStream(name, fingerprint) for name in names]
    if config.mix_temperature != 1.0:
        if weights:
            raise UsageError("--data gives weights: leave them out, or --mix_temperature")
        most = max(stream.tokens for stream in streams)
        weights = [(stream.tokens / most) ** (1 / config.mix_temperature) for stream in streams]
    if weights and not all(0 < weight < math.inf for weight in weights):
        raise UsageError(f"--data={config.data}: weights must be positive")
    if weights and min(weights) < SMALLEST_SHARE * sum(weights):
        raise UsageError(f"--data={config.data}: no stream may be less than a millionth of the rows")
    return streams, weights or None


def verify_streams(streams: Sequence[TokenStream], device: torch.device) -> None:
    """Verify the checksums before training: minutes, against weeks on damaged files. Ranks share them."""
    def verify_share() -> None:
        files, ranks = 0, distributed.world_size()  # files of the streams before
        for stream in streams:
            stream.verify((distributed.rank() - files) % ranks, ranks)
            files += len(stream.hashes)

    distributed.run_unequal_work(verify_share, device)


def write_source_data(folder: Path) -> None:
    """The `tiny` recipe's data: a tokenizer trained on this package's source, and the source as a stream."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("*.py"))]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer", 1024)
    writer = StreamWriter(folder / "source", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for text in texts:
        writer.add(tokenizer.encode(text, bos=True, eos=True), "python", "source")
    writer.close()


def with_source_data(config: TrainConfig) -> TrainConfig:
    """`config` with the places of the data of `write_source_data`, if that is what it trains on."""
    if config.data != "source":
        return config
    return dataclasses.replace(config, data=f"{config.out}/source", tokenizer=f"{config.out}/tokenizer")


def make_rows(config: TrainConfig, tokenizer: Tokenizer | None) -> PretrainRows | ExamRows:
    """Where batches come from."""
    if config.task == "pretrain":
        streams, weights = read_streams(config, tokenizer.fingerprint if tokenizer else None)
        layout: Callable = PackedBlocks
        if config.windows == "official":
            if tokenizer is None or tokenizer.eos_id is None:
                raise UsageError("--windows=official pads with EOS; give a --tokenizer that has one")
            layout = functools.partial(OfficialWindows, eos_id=tokenizer.eos_id)
        return PretrainRows(streams, config.sequence_length, config.seed, weights=weights, layout=layout)
    if config.task == "instruct":
        path = Path(config.model, "config.json")
        family = read_json(path).get("model_type", "") if path.is_file() else ""
        return InstructRows(config.data, tokenizer, config.sequence_length, config.seed, family)
    modes = {"both": (True, False), "with": (True,), "without": (False,)}[config.rationales]
    return ExamRows(read_benchmark(config.data), tokenizer, config.sequence_length, config.seed, modes=modes,
                    style=config.prompt_style)


def rank_share(count: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """This rank's share of `count` rows, as micro-batches (equally many on all ranks); None: an empty row.

    >>> rank_share(5, rank=0, world_size=2, micro_batch_size=2)
    [[0, 1], [2, 3]]
    >>> rank_share(5, rank=1, world_size=2, micro_batch_size=2)
    [[4, None], [None, None]]
    """
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))  # small batch: no empty rows
    per_rank = -(-count // (world_size * micro_batch_size)) * micro_batch_size
    own = [i if i < count else None for i in range(rank * per_rank, (rank + 1) * per_rank)]
    return [own[i:i + micro_batch_size] for i in range(0, per_rank, micro_batch_size)]


@dataclass
class BatchSizes:
    """The largest micro-batch of a rank."""

    rows: int
    length: int         # tokens per row
    targets: int        # tokens that carry loss
    micro_batches: int  # of a step, on each rank


def full_rows(config: TrainConfig, world_size: int) -> BatchSizes:
    """Whether rows have no padding, and every token carries loss."""
    share = rank_share(config.global_batch_size, 0, world_size, config.micro_batch_size)
    tokens = len(share[0]) * config.sequence_length
    return BatchSizes(len(share[0]), config.sequence_length, tokens, len(share))


@dataclass
class Batch:
    """This rank's part of a global batch."""

    micro: list[dict]  # arguments of one forward pass each
    targets: int       # tokens that carry loss
    positions: int     # positions computed, padding included


def make_batch(micro_batches: Sequence[Row], device: torch.device, by_document: bool = True) -> Batch:
    """Rows (B, T) as the arguments of one forward pass each; `by_document`: tokens see their own document
    only. All ranks and steps of a run get the same arguments, so that all compile the same."""
    batch = Batch([], 0, 0)
    for rows in micro_batches:
        arrays = {"input_ids": rows.input_ids, "labels": rows.labels, "positions": rows.positions,
                  # computed here, on the host, to avoid waiting for a GPU
                  "loss_positions": np.flatnonzero(rows.labels != data.IGNORE)}
        if by_document:
            arrays["document_ids"] = rows.document_ids
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if device.type == "cuda":
            tensors = {name: t.pin_memory().to(device, non_blocking=True) for name, t in tensors.items()}
        batch.micro.append(tensors)
        batch.targets += len(arrays["loss_positions"])
        batch.positions += rows.labels.size
    return batch


def end_to_end(rows: Sequence[Row]) -> Row:
    """Rows of any width as one long row (1, T), T a multiple of WIDTH: for models that attend by document."""
    row = data.join(rows)
    return data.stack([row], 1, max(1, -(-len(row) // WIDTH)) * WIDTH)


def micro_batches(rows: Sequence[Row], shares: list[list[int | None]], device: torch.device,
                  flat: bool = False) -> Batch:
    """This rank's share of `rows`: micro-batches of shape (B, T), or `flat`, end to end (1, T), without
    padding; not on a GPU, whose mask grows with the square of a row's length. None in `shares` is a row of
    padding, which a rank computes while others have rows left."""
    T = max((len(row) for row in rows), default=1)
    if any(len(row) < T for row in rows):
        T = -(-T // WIDTH) * WIDTH
    groups = []
    for share in shares:
        members = [rows[i] for i in share if i is not None]
        laid_flat = flat and device.type == "cpu"
        groups.append(end_to_end(members) if laid_flat else data.stack(members, len(share), T))
    return make_batch(groups, device)


class Batches:
    """Batch k of the run for a rank. `flat`: exam rows end to end, if the model attends by document."""

    def __init__(self, config: TrainConfig, rows: PretrainRows | ExamRows, device: torch.device,
                 flat: bool = False):
        self.config, self.rows, self.device, self.flat = config, rows, device, flat

    def __call__(self, step: int) -> Batch:
        return self.of_rank(step, distributed.rank(), distributed.world_size())

    def of_rank(self, step: int, rank: int, world_size: int) -> Batch:
        config, batch = self.config, self.rows.batch(step, self.config.global_batch_size)
        rows = self.rows.rows(batch) if isinstance(self.rows, ExamRows) else batch
        shares = rank_share(len(rows), rank, world_size, config.micro_batch_size)
        if isinstance(self.rows, ExamRows):
            return micro_batches(rows, shares, self.device, self.flat)
        groups = [[None if i is None else rows[i] for i in share] for share in shares]
        by_document = config.windows == "packed"  # a row of the official windows is one document
        return make_batch([self.rows.rows(group) for group in groups], self.device, by_document)

    def ahead(self, first: int, last: int) -> Iterator[Batch]:
        """Batches first..last-1, each made while the one before it is computed."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self, first)
            for step in range(first, last):
                batch = future.result()
                if step + 1 < last:
                    future = pool.submit(self, step + 1)
                yield batch
