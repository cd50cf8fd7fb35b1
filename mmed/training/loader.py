"""What a run trains on: streams or exam items by name -> rows -> the micro-batches of batch k on this rank, made ahead of time.

    --data=NAME[=WEIGHT],...  ->  PretrainRows | ExamRows  ->  Batches(k): this rank's rows of global batch k as tensors

Batch k is the same whatever the number of ranks (mmed/data.py); here each rank takes its share of the rows. The next batch is
read, packed and (for a GPU) pinned and copied by a thread while the present one is computed.

Legend: B rows of a micro-batch, T tokens of a row.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmed.config import TrainConfig
from mmed.utils.errors import UsageError

if TYPE_CHECKING:
    from mmed.data import Row


def read_streams(spec: str, tokenizer, config: TrainConfig, fingerprint: str | None):
    """(streams, weights or None) of "NAME[=WEIGHT],NAME…"."""
    from mmed.data import TokenStream
    from mmed.training import distributed

    names, weights = [], []
    for part in (p.strip() for p in spec.split(",") if p.strip()):
        name, equals, weight = part.partition("=")
        names.append(name)
        try:
            weights.append(float(weight) if equals else None)
        except ValueError:
            raise UsageError(f"--data: {part!r}: the weight must be a number") from None
    # all that a run will read is read once before it: minutes, against weeks on a damaged file. Ranks share the streams.
    streams = [TokenStream(name, fingerprint, verify=number % distributed.world_size() == distributed.rank()) for number, name in enumerate(names)]
    if any(w is not None for w in weights):
        if any(w is None for w in weights):
            raise UsageError("--data: give a weight to every stream or to none")
        return streams, weights
    if config.mix_temperature != 1.0:
        return streams, [s.tokens ** (1 / config.mix_temperature) for s in streams]
    return streams, None


def source_data(folder: Path) -> None:
    """The `tiny` recipe's data: this package's own source, a tokenizer trained on it and a token stream, in the run folder."""
    from mmed.data import StreamWriter
    from mmed.tokenizer import train_sentencepiece

    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("*.py"))]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer", 1024)
    writer = StreamWriter(folder / "source", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for text in texts:
        writer.add(tokenizer.encode(text, bos=True, eos=True), "python", "source")
    writer.close()


def make_rows(config: TrainConfig, spec: str, tokenizer):
    """What batches come from: `PretrainRows` or `ExamRows`."""
    from mmed.data import ExamRows, PretrainRows
    from mmed.prompts import read_benchmark

    if config.task == "pretrain":
        streams, weights = read_streams(spec, tokenizer, config, tokenizer.fingerprint if tokenizer else None)
        return PretrainRows(streams, config.sequence_length, config.seed, weights=weights, windows=config.windows,
                            eos_id=tokenizer.eos_id if tokenizer else None)
    modes = {"both": (True, False), "with": (True,), "without": (False,)}[config.rationales]
    return ExamRows(read_benchmark(spec), tokenizer, config.sequence_length, config.seed, modes=modes, style=config.prompt_style)


@dataclass
class Batch:
    """This rank's part of a global batch."""

    micro: list[dict]   # arguments of a forward pass each: input_ids, labels, document_ids, positions, loss_positions
    targets: int        # supervised tokens
    positions: int      # tokens computed, padding included


def add_micro_batch(batch: Batch, rows: Row, device) -> None:
    """`rows` (N, T) as the arguments of one more forward pass."""
    import numpy as np
    import torch

    from mmed.data import FIELDS, IGNORE

    arrays = {name: getattr(rows, name) for name in FIELDS}
    # Which labels count is known here: a GPU would have to be waited for.
    arrays["loss_positions"] = np.flatnonzero(rows.labels != IGNORE)
    batch.targets += len(arrays["loss_positions"])
    batch.positions += rows.input_ids.size
    documents = arrays.pop("documents")
    arrays["document_ids"] = documents if documents.any() else None  # None: plain causal attention
    if (rows.positions == np.arange(rows.positions.shape[1])).all():
        arrays["positions"] = None
    tensors = {name: None if value is None else torch.from_numpy(value) for name, value in arrays.items()}
    if device.type == "cuda":
        tensors = {name: None if value is None else value.pin_memory().to(device, non_blocking=True) for name, value in tensors.items()}
    batch.micro.append(tensors)


def micro_batches(rows: Sequence[Row], own: list[list[int | None]], device, flat: bool = False) -> Batch:
    """This rank's share of `rows` as tensors, one dict a forward pass: (micro_batch_size, T), or `flat`, end to end (1, T).

    Flat rows have no padding. On a GPU they are not laid so: the mask grows with the square of a row's length while it is made.
    None in `own` is a row of padding: what a rank computes when the others still have rows left (collectives need all of them).
    """
    from mmed.data import WIDTH, end_to_end, stack

    widths = {len(row) for row in rows}
    T = widths.pop() if len(widths) == 1 else -(-max(widths, default=1) // WIDTH) * WIDTH
    batch = Batch([], 0, 0)
    for group in own:
        members = [rows[i] for i in group if i is not None]
        add_micro_batch(batch, end_to_end(members) if flat and device.type == "cpu" else stack(members, len(group), T), device)
    return batch


class Batches:
    """Batch k of the run for this rank."""

    def __init__(self, config: TrainConfig, rows, device, flat: bool = False):
        from mmed.training import distributed

        self.config, self.rows, self.device, self.flat = config, rows, device, flat  # flat: exam rows end to end
        self.rank, self.world = distributed.rank(), distributed.world_size()

    def __call__(self, step: int) -> Batch:
        from mmed.data import rank_share, stack

        config = self.config
        if config.task == "pretrain":
            numbers = self.rows.batch(step, config.global_batch_size)
            own = rank_share(len(numbers), self.rank, self.world, config.micro_batch_size)
            batch = Batch([], 0, 0)
            for group in own:
                rows = [self.rows.row(numbers[i]) for i in group if i is not None]
                add_micro_batch(batch, stack(rows, len(group), self.rows.T), self.device)
            return batch
        rows = self.rows.rows(self.rows.batch(step, config.global_batch_size))
        own = rank_share(len(rows), self.rank, self.world, config.micro_batch_size)
        return micro_batches(rows, own, self.device, self.flat)

    def ahead(self, first: int, last: int) -> Iterator[Batch]:
        """Batches first..last-1, each made while the one before it is being computed."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self, first) if first < last else None
            for step in range(first, last):
                batch = future.result()
                future = pool.submit(self, step + 1) if step + 1 < last else None
                yield batch
