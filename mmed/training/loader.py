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
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmed import data
from mmed.config import TrainConfig
from mmed.data import BLOCK_ROWS, IGNORE, ExamRows, PackedBlocks, PretrainRows, Row
from mmed.prompts import read_benchmark
from mmed.tokenization.token_streams import StreamWriter, TokenStream
from mmed.tokenizer import Tokenizer, train_sentencepiece
from mmed.training import distributed
from mmed.training.conversations import InstructRows
from mmed.utils.errors import UsageError
from mmed.utils.files import read_json

WIDTH = 64  # widths of exam batches are multiples of this: few different shapes
HEARTBEAT_SECONDS = 0.5  # between two collectives while some rank works alone
SMALLEST_SHARE = 1e-6  # of a stream in a mixture, whose cycle has two rows of each stream


# ------------------------------------------------------------------------------------------------------- data

def read_streams(config: TrainConfig,
                 fingerprint: str | None) -> tuple[list[TokenStream], list[float] | None]:
    """Streams and weights (None: every row once an epoch) of "NAME[=WEIGHT],NAME..."."""
    parts = [part.strip().partition("=") for part in config.data.split(",") if part.strip()]
    names = [name for name, _, _ in parts]
    try:
        weights = [float(weight) for _, equals, weight in parts if equals]
    except ValueError:
        raise UsageError(f"--data={config.data}: a weight must be a number") from None
    if not names or len(set(names)) < len(names) or len(weights) not in (0, len(names)):
        raise UsageError(f"--data={config.data}: expected token streams NAME[=WEIGHT],..., each named once, "
                         "all with a weight or none")
    streams = [TokenStream(name, fingerprint) for name in names]
    if config.mix_temperature != 1.0:
        if weights:
            raise UsageError("--data has weights; remove them or --mix_temperature")
        most = max(stream.tokens for stream in streams)
        weights = [(stream.tokens / most) ** (1 / config.mix_temperature) for stream in streams]
    if weights and not 0 < SMALLEST_SHARE * sum(weights) <= min(weights) < math.inf:
        raise UsageError(f"--data={config.data}: weights must be positive, and no stream may be less than a "
                         "millionth of the rows")
    return streams, weights or None


def verify_streams(streams: Sequence[TokenStream]) -> None:
    """Verify the checksums before training: minutes, against weeks on damaged files. Ranks share the work;
    one may take longer than the time-out of hung ranks, so they meet in short collectives meanwhile."""
    ranks = distributed.world_size()

    def verify_share() -> None:
        files = 0  # of the streams before
        for stream in streams:
            stream.verify((distributed.rank() - files) % ranks, ranks)
            files += len(stream.hashes)

    with ThreadPoolExecutor(1) as pool:
        share, unfinished = pool.submit(verify_share), True
        while unfinished:
            running = wait([share], HEARTBEAT_SECONDS if ranks > 1 else None).not_done
            if not running:
                share.result()
            unfinished = any(distributed.gather(bool(running)))


def write_source_data(folder: Path) -> None:
    """The `tiny` recipe's data: a tokenizer trained on this package's source, and the source as a stream."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("*.py"))]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer", 1024)
    writer = StreamWriter(folder / "source", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for text in texts:
        writer.add(tokenizer.encode(text, bos=True, eos=True), "python", "source")
    writer.close()


def with_source_data(config: TrainConfig) -> TrainConfig:
    """`config` with the paths of `write_source_data`'s files, if it trains on them."""
    if config.data != "source":
        return config
    return dataclasses.replace(config, data=f"{config.out}/source", tokenizer=f"{config.out}/tokenizer")


def make_rows(config: TrainConfig, tokenizer: Tokenizer | None) -> PretrainRows | ExamRows:
    """Where batches come from."""
    T, seed = config.sequence_length, config.seed
    if config.task == "pretrain":
        streams, weights = read_streams(config, tokenizer.fingerprint if tokenizer else None)
        layout: Callable = PackedBlocks
        if config.windows == "official":
            if tokenizer is None or tokenizer.eos_id is None:
                raise UsageError("--windows=official pads with EOS; give a --tokenizer that has one")
            layout = functools.partial(OfficialWindows, eos_id=tokenizer.eos_id)
        return PretrainRows(streams, T, seed, weights=weights, layout=layout)
    if config.task == "instruct":
        path = Path(config.model, "config.json")
        family = read_json(path).get("model_type", "") if path.is_file() else ""
        return InstructRows(config.data, tokenizer, T, seed, family)
    modes = {"both": (True, False), "with": (True,), "without": (False,)}[config.rationales]
    items = read_benchmark(config.data)
    return ExamRows(items, tokenizer, T, seed, modes=modes, style=config.prompt_style)


class OfficialWindows:
    """Rows as the paper's code cuts them, for audit: each document in windows of T with a stride of 3T/4, the
    last one aligned to its end; short documents are padded with EOS, and the padding is trained on. The
    interface is that of `PackedBlocks`."""

    def __init__(self, stream: TokenStream, T: int, eos_id: int):
        self.stream, self.T, self.eos_id = stream, T, eos_id
        self.stride = max(1, T * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        lengths = np.diff(stream.ends.astype(np.int64), prepend=0)
        windows = np.where(lengths <= T, 1, 1 + -(-(lengths - T) // self.stride))
        self.ends = np.cumsum(windows)  # windows up to the end of each document

    def counts(self) -> list[int]:
        windows = int(self.ends[-1])
        return [min(BLOCK_ROWS, windows - first) for first in range(0, windows, BLOCK_ROWS)]

    def documents(self, block: int, number: int) -> list[int]:
        return [int(np.searchsorted(self.ends, block * BLOCK_ROWS + number, side="right"))]

    def row(self, block: int, number: int) -> Row:
        (document,) = self.documents(block, number)
        window = block * BLOCK_ROWS + number - (int(self.ends[document - 1]) if document else 0)
        begin, end = int(self.stream.ends[document - 1]) if document else 0, int(self.stream.ends[document])
        start = max(begin, min(begin + window * self.stride, end - self.T))
        ids = np.full(self.T, self.eos_id)  # MMedLM: pads are trained on
        ids[:end - start] = self.stream.ids[start:min(start + self.T, end)]
        return Row.of_document(ids, np.append(ids[1:], IGNORE))


# ---------------------------------------------------------------------------------------------------- batches

def rank_share(count: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """This rank's share of `count` rows, as micro-batches (equally many on all ranks); None: an empty row.

    >>> rank_share(5, rank=1, world_size=2, micro_batch_size=2)
    [[4, None], [None, None]]
    """
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))  # small batch: no empty rows
    per_rank = -(-count // (world_size * micro_batch_size)) * micro_batch_size
    own = [i if i < count else None for i in range(rank * per_rank, (rank + 1) * per_rank)]
    return [own[i:i + micro_batch_size] for i in range(0, per_rank, micro_batch_size)]


@dataclass
class BatchSizes:
    """The largest micro-batch of a rank, and what a step holds on average."""

    rows: int
    length: int           # tokens per row
    loss_positions: int   # tokens that carry loss
    micro_batches: int    # of a step, on each rank
    positions: float = 0  # tokens computed per step, by all ranks
    targets: float = 0    # of these, tokens that carry loss
    context: float = 0    # length of a document or exam item


def full_rows(config: TrainConfig, world_size: int) -> BatchSizes:
    """The sizes where rows have no padding, and every token carries loss."""
    B, T = config.global_batch_size, config.sequence_length
    share = rank_share(B, 0, world_size, config.micro_batch_size)
    return BatchSizes(len(share[0]), T, len(share[0]) * T, len(share), B * T, B * T, T)


@dataclass
class Batch:
    """This rank's part of a global batch."""

    micro: list[dict]  # arguments of one forward pass each
    targets: int       # tokens that carry loss
    tokens: int        # tokens of text, without padding
    positions: int     # positions computed, padding included


def make_batch(micro_batches: Sequence[Row], device: torch.device, by_document: bool = True) -> Batch:
    """Rows (B, T) as the arguments of one forward pass each; `by_document`: tokens see their own document
    only. All ranks and steps of a run get the same arguments, so that all compile the same."""
    batch = Batch([], 0, 0, 0)
    for rows in micro_batches:
        arrays = {"input_ids": rows.input_ids, "labels": rows.labels, "positions": rows.positions,
                  # computed here, on the host, to avoid waiting for a GPU
                  "loss_positions": np.flatnonzero(rows.labels != IGNORE)}
        if by_document:
            arrays["document_ids"] = rows.document_ids
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if device.type == "cuda":
            tensors = {name: t.pin_memory().to(device, non_blocking=True) for name, t in tensors.items()}
        batch.micro.append(tensors)
        batch.targets += len(arrays["loss_positions"])
        batch.tokens += int((rows.document_ids >= 0).sum())
        batch.positions += rows.labels.size
    return batch


def micro_batches(rows: Sequence[Row], shares: list[list[int | None]], device: torch.device,
                  flat: bool = False) -> Batch:
    """This rank's share of `rows`: micro-batches of shape (B, T), or `flat`, end to end (1, T), without
    padding; not on a GPU, whose mask grows with the square of a row's length. None in `shares` is a row of
    padding, which a rank computes while others have rows left."""
    T = max((len(row) for row in rows), default=1)
    if any(len(row) < T for row in rows):
        T = whole_width(T)
    groups = []
    for share in shares:
        members = [rows[i] for i in share if i is not None]
        if flat and device.type == "cpu":
            row = data.join(members)
            groups.append(data.stack([row], 1, whole_width(len(row))))
        else:
            groups.append(data.stack(members, len(share), T))
    return make_batch(groups, device)


def whole_width(tokens: int) -> int:
    return max(1, -(-tokens // WIDTH)) * WIDTH


@dataclass
class Batches:
    """Batch k of the run for this rank, or for several."""

    config: TrainConfig
    rows: PretrainRows | ExamRows
    device: torch.device
    flat: bool = False  # exam rows end to end, if the model attends by document

    def __call__(self, step: int) -> Batch:
        return self.of_ranks(step, [distributed.rank()], distributed.world_size())

    def of_ranks(self, step: int, ranks: Sequence[int], world_size: int) -> Batch:
        config, batch = self.config, self.rows.batch(step, self.config.global_batch_size)
        rows = self.rows.rows(batch) if isinstance(self.rows, ExamRows) else batch
        shares = [share for rank in ranks
                  for share in rank_share(len(rows), rank, world_size, config.micro_batch_size)]
        if isinstance(self.rows, ExamRows):
            return micro_batches(rows, shares, self.device, self.flat)
        groups = [self.rows.rows([None if i is None else rows[i] for i in share]) for share in shares]
        # a row of the official windows is one document
        return make_batch(groups, self.device, by_document=config.windows == "packed")

    def ahead(self, first: int, last: int) -> Iterator[Batch]:
        """Batches first..last-1, each made while the one before it is computed."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self, first)
            for step in range(first, last):
                batch = future.result()
                if step + 1 < last:
                    future = pool.submit(self, step + 1)
                yield batch
