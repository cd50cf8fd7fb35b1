"""Token streams and exam items -> the rows of batch k, equal for any number of ranks, workers and restarts.

A stream NAME is three files, written by `StreamWriter` and read by `TokenStream`:

    NAME.bin   every token of every document, one after the other: little-endian uint16 or uint32
    NAME.idx   where each document ends in NAME.bin, counted in tokens: little-endian uint64
    NAME.json  dtype, counts by language and source, tokenizer fingerprint, sha256 of both files

Rows of continued pre-training are whole documents, packed best-fit, each attending to itself only:

    NAME.bin   <s> b o n e </s> <s> l u n g s </s> <s> h e a r t </s>         rows of T = 8 tokens
    row 0      <s> b o n e | <s> h e      a document that fits nowhere whole is split;
    row 1      <s> l u n g s |            its continuation begins with a BOS that is not a target and predicts
    row 2      <s> a r t |                nothing: every token of a document is a target exactly once an epoch

No position is stored: row i of a run is a function of (seed, i) alone (`PretrainRows`, `ExamRows.batch`), so
a run resumes from its step number and may continue on another number of ranks. To see what a step trained on:

    python -m mmed.training.inspect_batch show RUN STEP

Legend: B rows, T tokens per row.
"""
from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.tokenizer import Tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json
from mmed.utils.fingerprints import file_hash

IGNORE = -100       # label of a position that carries no loss
FORMAT = 1          # version of the stream files
CHUNK = 1 << 22     # bytes copied at a time
BLOCK_ROWS = 64     # rows whose documents are packed together
GROUP_BLOCKS = 256  # blocks whose rows are shuffled together
SLACK = 0.01        # share of a block's positions that packing may leave empty
WIDTH = 64          # widths of exam batches are multiples of this: few different shapes


# ---------------------------------------------------------------------------------------------------- streams

def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id of the vocabulary.

    >>> token_dtype(65536).name, token_dtype(65537).name
    ('uint16', 'uint32')
    """
    return np.dtype("<u2") if vocab_size <= 2 ** 16 else np.dtype("<u4")


class StreamWriter:
    """Write one stream. `close` gives the files their names, the .json last: a stream with a .json is
    complete."""

    def __init__(self, prefix: str | Path, vocab_size: int, fingerprint: str, bos_id: int | None = None):
        """`bos_id`: the token that every document begins with, None if they begin without one."""
        self.prefix, self.vocab_size = str(prefix), vocab_size
        self.fingerprint, self.bos_id = fingerprint, bos_id
        self.dtype = token_dtype(vocab_size)
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self.files = {name: open(f"{prefix}.{name}.tmp", "wb") for name in ("bin", "idx")}
        self.hashes = {name: hashlib.sha256() for name in self.files}
        self.tokens = self.documents = 0
        self.counts: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, ids: Sequence[int], language: str = "", source: str = "") -> None:
        """Append one document's ids (with its BOS and EOS)."""
        self.add_parts([ids], language, source)

    def add_parts(self, parts: Iterable[Sequence[int]], language: str = "", source: str = "") -> None:
        """Append one document whose ids come in parts, so that a whole book need not be in memory."""
        before = self.tokens
        for ids in parts:
            array = np.asarray(ids, dtype=np.int64)
            if len(array) and not 0 <= array.min() <= array.max() < self.vocab_size:
                raise ValueError(f"document {self.documents} of {self.prefix}: expected ids in "
                                 f"[0, {self.vocab_size}), got {array.min()}..{array.max()}")
            self.tokens += len(array)
            self._write("bin", array.astype(self.dtype).tobytes())
        if self.tokens == before:
            raise ValueError(f"document {self.documents} of {self.prefix}: no ids")
        self.documents += 1
        self._write("idx", np.array([self.tokens], dtype="<u8").tobytes())
        self._count(language, source, self.tokens - before, 1)

    def add_stream(self, prefix: str | Path) -> None:
        """Append all documents of a complete stream of the same tokenizer; memory: its document ends."""
        meta = read_json(f"{prefix}.json")
        ends = np.fromfile(f"{prefix}.idx", dtype="<u8") + np.uint64(self.tokens)
        with open(f"{prefix}.bin", "rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                self._write("bin", chunk)
        self._write("idx", ends.astype("<u8").tobytes())
        self.tokens += meta["tokens"]
        self.documents += meta["documents"]
        for language, sources in meta["counts"].items():
            for source, count in sources.items():
                self._count(language, source, **count)

    def _write(self, name: str, data: bytes) -> None:
        self.files[name].write(data)
        self.hashes[name].update(data)

    def _count(self, language: str, source: str, tokens: int, documents: int) -> None:
        count = self.counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
        count["tokens"] += tokens
        count["documents"] += documents

    def close(self, **extra: object) -> dict:
        """Give the files their names; returns the content of NAME.json. `extra` keys are stored with it."""
        meta = {"format": FORMAT, "dtype": self.dtype.name, "vocab_size": self.vocab_size,
                "tokens": self.tokens, "documents": self.documents, "counts": self.counts,
                "tokenizer": self.fingerprint, "bos_id": self.bos_id,
                "sha256": {name: digest.hexdigest() for name, digest in self.hashes.items()}, **extra}
        Path(f"{self.prefix}.json").unlink(missing_ok=True)  # never an old .json beside a new .bin
        for name, file in self.files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(f"{self.prefix}.{name}.tmp", f"{self.prefix}.{name}")
        write_json(f"{self.prefix}.json", meta)
        return meta


class TokenStream:
    """A stream on disk, memory-mapped. Opening it checks sizes and tokenizer; `verify` reads it all."""

    def __init__(self, prefix: str | Path, fingerprint: str | None = None, verify: bool = False):
        self.prefix = str(prefix).removesuffix(".json").removesuffix(".bin")
        if not Path(f"{self.prefix}.json").is_file():
            raise UserError(f"{self.prefix}.json: no such token stream; make one with "
                            "python -m data_prep.tokenize_corpus")
        self.meta = meta = read_json(f"{self.prefix}.json")
        try:
            self.tokens, self.documents, self.bos_id = meta["tokens"], meta["documents"], meta.get("bos_id")
            self.vocab_size, self.fingerprint = meta["vocab_size"], meta["tokenizer"]
            self.hashes = {name: meta["sha256"][name] for name in ("bin", "idx")}
            dtype = token_dtype(self.vocab_size)
            if type(self.tokens) is not int or type(self.documents) is not int:
                raise TypeError("counts must be integers")
            if meta["format"] != FORMAT or meta["dtype"] != dtype.name or self.tokens < 1:
                raise ValueError(f"format {meta['format']}, {meta['dtype']}, {self.tokens} tokens")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.prefix}.json: does not describe a token stream ({error!r})") from None
        if fingerprint is not None and self.fingerprint != fingerprint:
            bos = "without BOS" if self.bos_id is None else f"with BOS {self.bos_id}"
            raise UserError(f"{self.prefix}: made with tokenizer {self.fingerprint[:12]} (documents begin "
                            f"{bos}), but the model has {fingerprint[:12]}; tokenize the corpus again with "
                            "the model's tokenizer and the same --bos")
        self.ids = self._map("bin", dtype, self.tokens)
        self.ends = self._map("idx", np.dtype("<u8"), self.documents)
        if int(self.ends[-1]) != self.tokens:
            raise UserError(f"{self.prefix}.idx: does not belong to {self.prefix}.json; tokenize again")
        if verify:
            self.verify()

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        path = Path(f"{self.prefix}.{name}")
        size = path.stat().st_size if path.is_file() else 0
        if size != count * dtype.itemsize:
            raise UserError(f"{path}: {size} bytes, expected {count * dtype.itemsize}; the file is damaged, "
                            "tokenize again")
        return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    def verify(self) -> None:
        """Compare the sha256 of both files with NAME.json (hundreds of MB/s)."""
        for name, expected in self.hashes.items():
            if file_hash(f"{self.prefix}.{name}") != expected:
                raise UserError(f"{self.prefix}.{name}: its sha256 is not the one in {self.prefix}.json; the "
                                "file is damaged, tokenize again")

    @property
    def language(self) -> str:
        """The stream's only language, or its name."""
        languages = list(self.meta.get("counts", {}))
        return languages[0] if len(languages) == 1 and languages[0] else Path(self.prefix).name


# ------------------------------------------------------------------------------------------------------- rows

@dataclass
class Row:
    """One training row of at most T tokens, or several as arrays (B, T)."""

    input_ids: np.ndarray     # (T,) int64
    labels: np.ndarray        # (T,) int64: the next token, or IGNORE
    document_ids: np.ndarray  # (T,) int64: number of the document within the row; -1 is padding
    positions: np.ndarray     # (T,) int64: place in the document

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Row:
        """Padding alone, which carries no loss."""
        positions = np.tile(np.arange(shape[-1]), (*shape[:-1], 1)).reshape(shape)
        return cls(np.zeros(shape, np.int64), np.full(shape, IGNORE), np.full(shape, -1), positions)

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.input_ids, self.labels, self.document_ids, self.positions

    def part(self, index: int | slice | tuple) -> Row:
        """A view of some rows or positions."""
        return Row(*(array[index] for array in self.arrays()))

    def copy_from(self, other: Row) -> None:
        for own, values in zip(self.arrays(), other.arrays()):
            own[...] = values

    def __len__(self) -> int:
        return len(self.input_ids)


def stack(rows: Sequence[Row], count: int, T: int) -> Row:
    """Rows of at most T tokens as arrays (count, T), padded."""
    result = Row.empty((count, T))
    for i, row in enumerate(rows):
        result.part((i, slice(len(row)))).copy_from(row)
    return result


def end_to_end(rows: Sequence[Row]) -> Row:
    """Rows of any width as one long row (1, T), T a multiple of WIDTH: for models that attend by document."""
    total = sum(len(row) for row in rows)
    result, begin, documents = Row.empty((1, max(1, -(-total // WIDTH)) * WIDTH)), 0, 0
    for row in rows:
        part = result.part((0, slice(begin, begin + len(row))))
        part.copy_from(row)
        part.document_ids += documents
        begin, documents = begin + len(row), documents + 1 + int(row.document_ids.max())
    return result


class Piece(NamedTuple):
    """A document, or part of one: tokens `start`..`end` - 1 are its inputs, `start` + 1..`end` its labels."""

    start: int
    end: int
    document: int
    continues: bool  # begins inside its document: a BOS is put before it where the stream has one

    def split(self, targets: int) -> tuple[Piece, Piece]:
        """The first `targets` targets, and the rest; its first input is the last label of the first part."""
        middle = self.start + targets
        return self._replace(end=middle), self._replace(start=middle, continues=True)


class PackedBlocks:
    """The rows of one stream: blocks of BLOCK_ROWS rows, each packed by itself.

    A block is a fixed number of consecutive targets of the stream (every token but the first of each
    document), so the numbers of blocks and rows follow from the counts in NAME.json, and binary search in the
    index finds a block. Its rows have at most SLACK of their positions to spare, or what the BOS of
    continuations may need.
    """

    def __init__(self, stream: TokenStream, T: int):
        self.stream, self.T, self.range = stream, T, np.arange(T)
        self.cost = 0 if stream.bos_id is None else 1  # extra positions of a continuation: its BOS
        if T <= self.cost:
            raise UserError(f"--sequence_length={T}: too short for a BOS and a token")
        self.targets = stream.tokens - stream.documents
        if self.targets < 1:
            raise UserError(f"{stream.prefix}: no document has two tokens, so there is nothing to predict")
        # A document continued from the block before costs one BOS, and so does every row that splitting
        # fills.
        self.per_block = max(1, min(BLOCK_ROWS * (T - self.cost), int(BLOCK_ROWS * T * (1 - SLACK))))
        self.blocks = -(-self.targets // self.per_block)
        rest = self.targets - (self.blocks - 1) * self.per_block
        self.last_rows = min(BLOCK_ROWS, -(-rest // (T - self.cost)))
        self.packed: dict[int, list[list[Piece]]] = {}  # of the blocks that the present rows come from

    def counts(self) -> np.ndarray:
        """Rows of each block, (blocks,)."""
        counts = np.full(self.blocks, BLOCK_ROWS)
        counts[-1] = self.last_rows
        return counts

    def block_pieces(self, block: int) -> list[Piece]:
        """The documents of a block; those that cross its edges are split there."""
        ends = self.stream.ends
        low, high = block * self.per_block, min((block + 1) * self.per_block, self.targets)
        # Targets up to the end of document d: its end less the d + 1 first tokens, which are no targets.
        document = bisect.bisect_right(range(self.stream.documents), low, key=lambda d: int(ends[d]) - d - 1)
        begin = int(ends[document - 1]) if document else 0
        pieces = []
        while low < high:
            end = int(ends[document])
            stop = min(high, end - document - 1)
            if stop > low:
                pieces.append(Piece(low + document, stop + document, document, low + document > begin))
            low, begin, document = stop, end, document + 1
        return pieces

    def pieces(self, block: int) -> list[list[Piece]]:
        """The pieces of each row of a block."""
        if block not in self.packed:
            if len(self.packed) > 2 * GROUP_BLOCKS:
                self.packed.clear()
            rows = BLOCK_ROWS if block < self.blocks - 1 else self.last_rows
            self.packed[block] = best_fit(self.block_pieces(block), rows, self.T, self.cost)
        return self.packed[block]

    def fill(self, out: Row, block: int, number: int) -> None:
        """Write row `number` of `block` into `out`, which is a row of T positions of padding."""
        ids, at = self.stream.ids, 0
        for place, piece in enumerate(self.pieces(block)[number]):
            begin = at
            if piece.continues and self.cost:
                out.input_ids[at] = self.stream.bos_id  # its label stays IGNORE
                at += 1
            end = at + piece.end - piece.start
            out.input_ids[at:end] = ids[piece.start:piece.end]
            out.labels[at:end] = ids[piece.start + 1:piece.end + 1]
            out.document_ids[begin:end] = place
            out.positions[begin:end] = self.range[:end - begin]
            at = end

    def documents(self, block: int, number: int) -> list[int]:
        """The documents in a row, in its order."""
        return [piece.document for piece in self.pieces(block)[number]]


def best_fit(pieces: Sequence[Piece], rows: int, T: int, cost: int) -> list[list[Piece]]:
    """Lay pieces into `rows` rows of T positions: the longest first, each into the fullest row that takes it
    whole.

    A piece longer than a row first fills whole rows; a piece that fits nowhere is split over the largest
    gaps. A continuation takes `cost` positions beside its targets; the caller leaves rows x cost positions
    for that.
    """
    result: list[list[Piece]] = [[] for _ in range(rows)]
    gaps = [(T, row) for row in range(rows)]  # free positions and row, ascending

    def size(piece: Piece) -> int:
        return piece.end - piece.start + cost * piece.continues

    def place(piece: Piece, gap: int) -> None:
        free, row = gaps.pop(gap)
        result[row].append(piece)
        bisect.insort(gaps, (free - size(piece), row))

    def split(piece: Piece) -> Piece:
        """Fill the largest gap with the beginning of a piece; returns the rest."""
        head, rest = piece.split(gaps[-1][0] - cost * piece.continues)
        place(head, len(gaps) - 1)
        return rest

    whole = []
    for piece in pieces:
        while size(piece) > T:
            piece = split(piece)
        whole.append(piece)
    left_over = []
    for piece in sorted(whole, key=size, reverse=True):
        gap = bisect.bisect_left(gaps, (size(piece), -1))
        if gap < len(gaps):
            place(piece, gap)
        else:
            left_over.append(piece)
    for piece in left_over:
        while size(piece) > gaps[-1][0]:
            piece = split(piece)
        place(piece, bisect.bisect_left(gaps, (size(piece), -1)))
    return [sorted(row) for row in result]


class OfficialWindows:
    """The rows of the paper's code, for audit: each document by itself in windows of T with a stride of 3T/4,
    the last one aligned to its end, short documents padded with EOS, the padding trained on [docs/method.md,
    D14]."""

    def __init__(self, stream: TokenStream, T: int, eos_id: int | None):
        self.stream, self.T, self.eos_id = stream, T, eos_id
        self.stride = max(1, T * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        lengths = np.diff(stream.ends.astype(np.int64), prepend=0)
        windows = np.where(lengths <= T, 1, 1 + -(-(lengths - T) // self.stride))
        self.ends = np.cumsum(windows)  # windows up to the end of each document

    def counts(self) -> np.ndarray:
        windows = int(self.ends[-1])
        return np.minimum(BLOCK_ROWS, windows - np.arange(0, windows, BLOCK_ROWS))

    def documents(self, block: int, number: int) -> list[int]:
        return [int(np.searchsorted(self.ends, block * BLOCK_ROWS + number, side="right"))]

    def fill(self, out: Row, block: int, number: int) -> None:
        (document,) = self.documents(block, number)
        window = block * BLOCK_ROWS + number - (int(self.ends[document - 1]) if document else 0)
        begin, end = int(self.stream.ends[document - 1]) if document else 0, int(self.stream.ends[document])
        start = max(begin, min(begin + window * self.stride, end - self.T))
        ids = self.stream.ids[start:min(start + self.T, end)]
        out.input_ids[:len(ids)] = ids
        out.input_ids[len(ids):] = self.eos_id or 0  # MMedLM: pads are trained on
        out.labels[:-1] = out.input_ids[1:]
        out.document_ids[:] = 0


def permutation(n: int, *key: int) -> np.ndarray:
    """A shuffled range(n), (n,) int64, that follows from the key; numpy never changes RandomState's
    numbers."""
    return np.random.RandomState([part & 0xFFFFFFFF for part in key]).permutation(n)


class ShuffledBlocks:
    """The order of rows: each epoch shuffles the blocks, then the rows of GROUP_BLOCKS blocks together.

    Neighbouring documents often come from one site: rows of one block must not follow one another in
    training.
    """

    def __init__(self, counts: np.ndarray, *key: int):
        self.counts, self.key, self.size = counts, key, int(counts.sum())
        self.epoch = self.group = -1

    def locate(self, i: int) -> tuple[int, int]:
        """(block, row within it) of row i; epochs follow one another."""
        epoch, place = divmod(i, self.size)
        if epoch != self.epoch:
            self.epoch, self.group = epoch, -1
            self.blocks = permutation(len(self.counts), *self.key, epoch)
            sizes = np.add.reduceat(self.counts[self.blocks], np.arange(0, len(self.blocks), GROUP_BLOCKS))
            self.bounds = np.concatenate(([0], np.cumsum(sizes)))  # rows before each group
        group = int(np.searchsorted(self.bounds, place, side="right")) - 1
        if group != self.group:
            self.group = group
            blocks = self.blocks[group * GROUP_BLOCKS:(group + 1) * GROUP_BLOCKS]
            rows = [(int(block), row) for block in blocks for row in range(self.counts[block])]
            self.order = [rows[k] for k in permutation(len(rows), *self.key, epoch, group)]
        return self.order[place - int(self.bounds[group])]


class Mixture:
    """Maps global row i to (stream, index within that stream), with exact quotas and no state.

    A cycle is `length` rows. A stream's rows up to the end of a cycle are floor differences of the cumulative
    weights, so its count stays within one of weight x rows; (seed, cycle) shuffles the order within a cycle.
    """

    BITS = 40  # of the cumulative weights

    def __init__(self, weights: Sequence[float], seed: int):
        if min(weights) <= 0:
            raise UserError(f"stream weights must be positive, got {list(weights)}")
        total = sum(weights)
        edges = [round(edge / total * 2 ** self.BITS) for edge in itertools.accumulate(weights)]
        self.edges = [0, *edges[:-1], 2 ** self.BITS]
        self.length = max(1024, int(np.ceil(2 * total / min(weights))))
        self.seed, self.cycle = seed, -1

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows` (a multiple of the cycle length)."""
        floors = [rows * edge >> self.BITS for edge in self.edges]
        return [b - a for a, b in itertools.pairwise(floors)]

    def __call__(self, i: int) -> tuple[int, int]:
        cycle, place = divmod(i, self.length)
        if cycle != self.cycle:
            self.cycle, self.before = cycle, self.counts(cycle * self.length)
            quota = np.subtract(self.counts((cycle + 1) * self.length), self.before)
            self.order = np.repeat(np.arange(len(quota)), quota)[permutation(self.length, self.seed, cycle)]
            self.index = np.zeros(self.length, dtype=np.int64)  # earlier rows of its stream in this cycle
            for stream, count in enumerate(quota):
                self.index[self.order == stream] = np.arange(count)
        stream = int(self.order[place])
        return stream, self.before[stream] + int(self.index[place])


class PretrainRows:
    """Rows of a mixture of streams, each a pure function of the streams, the weights, the seed and its
    number.

    windows     "packed": whole documents (`PackedBlocks`); "official": the paper's windows, for audit
    weights     shares of the rows; None: every row of every stream once an epoch, in one shuffled order
    """

    def __init__(self, streams: Sequence[TokenStream], sequence_length: int, seed: int, *,
                 weights: Sequence[float] | None = None, windows: str = "packed", eos_id: int | None = None):
        self.streams, self.T = streams, sequence_length
        self.layouts: Sequence[PackedBlocks | OfficialWindows]
        if windows == "official":
            self.layouts = [OfficialWindows(stream, sequence_length, eos_id) for stream in streams]
        else:
            self.layouts = [PackedBlocks(stream, sequence_length) for stream in streams]
        counts = [layout.counts() for layout in self.layouts]
        self.rows_per_epoch = sum(int(count.sum()) for count in counts)
        self.bounds = np.cumsum([len(count) for count in counts])  # where each stream's blocks end
        self.mixture = Mixture(weights, seed) if weights is not None and len(streams) > 1 else None
        self.orders = [ShuffledBlocks(np.concatenate(counts), seed)]
        if self.mixture:
            self.orders = [ShuffledBlocks(count, seed, number) for number, count in enumerate(counts)]

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within the block) of row i of the run."""
        if self.mixture:
            stream, index = self.mixture(i)
            return (stream, *self.orders[stream].locate(index))
        block, row = self.orders[0].locate(i)
        stream = int(np.searchsorted(self.bounds, block, side="right"))
        return stream, block - (int(self.bounds[stream - 1]) if stream else 0), row

    def rows(self, numbers: Sequence[int | None]) -> Row:
        """Rows of the run as arrays (B, T); None is a row of padding."""
        result = Row.empty((len(numbers), self.T))
        for n, number in enumerate(numbers):
            if number is not None:
                stream, block, row = self.locate(number)
                self.layouts[stream].fill(result.part(n), block, row)
        return result

    def row(self, i: int) -> Row:
        return self.rows([i]).part(0)

    def documents(self, i: int) -> tuple[TokenStream, list[int]]:
        """The stream of row i and its documents, counted from 0 in the stream, in the order of the row."""
        stream, block, row = self.locate(i)
        return self.streams[stream], self.layouts[stream].documents(block, row)

    def batch(self, step: int, size: int) -> range:
        """Row numbers of global batch `step`."""
        return range(step * size, (step + 1) * size)


# ------------------------------------------------------------------------------------------------- exam items

@dataclass
class Example:
    """One exam item as tokens: the prompt carries no loss, the target and its EOS do."""

    key: str
    ids: list[int]
    prompt_length: int


def truncate_prompt(ids: list[int], length: int, bos_id: int | None) -> list[int]:
    """The last `length` ids of a prompt; a BOS at its beginning stays.

    >>> truncate_prompt([1, 5, 6, 7, 8], 3, bos_id=1), truncate_prompt([5, 6, 7, 8], 3, bos_id=None)
    ([1, 7, 8], [6, 7, 8])
    """
    if len(ids) <= length:
        return ids
    bos = [bos_id] if bos_id is not None and ids[0] == bos_id else []
    return bos + ids[len(ids) - length + len(bos):]


def encode_example(item: ExamItem, tokenizer: Tokenizer, max_length: int, *, rationale: bool,
                   style: str) -> tuple[Example, bool]:
    """(example, whether it was truncated) of at most max_length + 1 tokens, the last of which is only a
    label.

    Prompt and target are encoded separately, in training and in generation alike, so the mask ends where the
    prompt's own tokens end, whatever the tokenizer would merge across the border [docs/method.md, D19]. Too
    long: the target loses its beginning down to 3/4 of max_length, then the prompt does; the answer comes
    last and stays.
    # DIFFERS: the official code truncates on the right, which removes the answer [D19].
    """
    prompt = tokenizer.encode(build_prompt(item, rationale, style), bos=tokenizer.bos_id is not None)
    target = tokenizer.encode(build_target(item, rationale, style), eos=True, continued=True)
    truncated = len(prompt) + len(target) > max_length + 1
    if truncated:
        target = target[-max(max_length * 3 // 4, max_length + 1 - len(prompt)):]
        prompt = truncate_prompt(prompt, max_length + 1 - len(target), tokenizer.bos_id)
    return Example(item.key, prompt + target, len(prompt)), truncated


class ExamRows:
    """Exam items as packed rows: batch k is `global_batch_size` examples of a shuffled order, laid into rows
    of T tokens.

    `modes` (True, False) gives every item twice, with and without its rationale.  # MMedLM: finetune/train.py
    """

    def __init__(self, items: Sequence[ExamItem], tokenizer: Tokenizer, sequence_length: int, seed: int, *,
                 modes: Sequence[bool] = (True, False), style: str = "clean"):
        self.T, self.seed = sequence_length, seed
        encoded = [encode_example(item, tokenizer, sequence_length, rationale=mode, style=style)
                   for mode in modes for item in items if item.rationale or not mode]
        if not encoded:
            raise UserError("no exam item has a rationale; use --rationales=without, or add rationales first")
        self.examples = [example for example, _ in encoded]
        self.truncated = sum(truncated for _, truncated in encoded)

    def batch(self, step: int, size: int) -> list[Example]:
        """The examples of global batch `step`; an epoch's last batch runs over into the next epoch's
        order."""
        n, examples = len(self.examples), []
        for epoch in range(step * size // n, ((step + 1) * size - 1) // n + 1):
            first, last = max(0, step * size - epoch * n), (step + 1) * size - epoch * n
            examples += [self.examples[place] for place in permutation(n, self.seed, epoch)[first:last]]
        return examples

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Lay examples into rows of at most T tokens: the longest first, each into the first row with enough
        space."""
        rows: list[list[Example]] = []
        free: list[int] = []
        for example in sorted(examples, key=lambda example: -len(example.ids)):
            need = len(example.ids) - 1
            place = next((row for row, space in enumerate(free) if space >= need), len(rows))
            if place == len(rows):
                rows.append([])
                free.append(self.T)
            rows[place].append(example)
            free[place] -= need
        return [pack(row) for row in rows]


def pack(examples: Sequence[Example]) -> Row:
    """One row of several examples.

        ids           <s> Q Q Q R R </s>  <s> Q R R </s>
        input         <s> Q Q Q R R       <s> Q R R
        labels         ·  · · R R </s>     ·  R R </s>      (· = IGNORE)
        document_ids   0  0 0 0 0 0        1  1 1 1
        positions      0  1 2 3 4 5        0  1 2 3
    """
    row = Row.empty((sum(len(example.ids) - 1 for example in examples),))
    begin = 0
    for number, example in enumerate(examples):
        n = len(example.ids) - 1
        out = row.part(slice(begin, begin + n))
        first = max(0, example.prompt_length - 1)  # the prompt's last token predicts the target's first
        out.input_ids[:] = example.ids[:-1]
        out.labels[first:] = example.ids[first + 1:]
        out.document_ids[:] = number
        out.positions[:] = np.arange(n)
        begin += n
    return row


def rank_share(count: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """Which of `count` rows this rank computes, as micro-batches; all ranks get equally many, None is an
    empty row.

    >>> rank_share(5, rank=0, world_size=2, micro_batch_size=2)
    [[0, 1], [2, 3]]
    >>> rank_share(5, rank=1, world_size=2, micro_batch_size=2)
    [[4, None], [None, None]]
    """
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))  # small batch: no empty rows
    per_rank = -(-count // (world_size * micro_batch_size)) * micro_batch_size
    own = [i if i < count else None for i in range(rank * per_rank, (rank + 1) * per_rank)]
    return [own[i:i + micro_batch_size] for i in range(0, per_rank, micro_batch_size)]
