"""Token streams and exam items -> the rows of batch k, the same for any number of ranks, workers and restarts.

A stream NAME is three files, written by `StreamWriter` and read by `TokenStream`:

    NAME.bin   every token of every document, one after the other: little-endian uint16 or uint32, readable by np.memmap
    NAME.idx   where each document ends in NAME.bin, counted in tokens: little-endian uint64
    NAME.json  dtype, token and document counts by language and source, the tokenizer's fingerprint, sha256 of both files

Rows of continued pre-training are whole documents, packed best-fit, each attending to itself only:

    NAME.bin   <s> b o n e </s> <s> l u n g s </s> <s> h e a r t </s>         rows of T = 8 tokens
    row 0      <s> b o n e | <s> h e      a document that fits nowhere whole is split;
    row 1      <s> l u n g s |            its continuation begins with a BOS that is no target and predicts nothing,
    row 2      <s> a r t |                so every token of a document is a target exactly once an epoch

Nothing here keeps a position: row i of a run is a function of (seed, i) alone (`PretrainRows.row`, `ExamRows.batch`), so a
run is resumed by its step number and may go on with another number of ranks.

    python -m mmed.training.inspect_batch show RUN STEP    prints what a step trained on

Legend: B rows, T tokens of a row.
"""
from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

IGNORE = -100  # label of a position that carries no loss
FORMAT = 1
CHECKED = 1 << 22  # values looked at together
BLOCK_ROWS = 64    # rows whose documents are packed together
GROUP_BLOCKS = 256  # blocks whose rows are shuffled together
SLACK = 0.01       # share of a block's positions that packing may leave empty
WIDTH = 64     # rows of exam items laid end to end are a multiple of this wide, so that there are few different widths


# ------------------------------------------------------------------------------------------------------------- streams

def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id of the vocabulary.

    >>> token_dtype(65536).name, token_dtype(65537).name
    ('uint16', 'uint32')
    """
    return np.dtype("<u2") if vocab_size <= 2 ** 16 else np.dtype("<u4")


class StreamWriter:
    """Write one stream; its files get their names only in `close`, the .json last, so a stream that has one is whole."""

    def __init__(self, prefix: str | Path, vocab_size: int, fingerprint: str, bos_id: int | None = None):
        """`bos_id`: the token that every document begins with, None if they begin without one."""
        self.prefix, self.vocab_size, self.fingerprint, self.bos_id = str(prefix), vocab_size, fingerprint, bos_id
        self.dtype = token_dtype(vocab_size)
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self.bin, self.idx = open(self.prefix + ".bin.tmp", "wb"), open(self.prefix + ".idx.tmp", "wb")
        self.hashes = {"bin": hashlib.sha256(), "idx": hashlib.sha256()}
        self.tokens = self.documents = 0
        self.counts: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, ids: Sequence[int], language: str = "", source: str = "") -> None:
        """Append one document's ids (with its BOS and EOS)."""
        self.add_parts([ids], language, source)

    def add_parts(self, parts: Iterable[Sequence[int]], language: str = "", source: str = "") -> None:
        """Append one document whose ids come in parts, so that those of a whole book need not lie in memory."""
        before = self.tokens
        for ids in parts:
            array = np.asarray(ids, dtype=np.int64)
            if len(array) and (array.min() < 0 or array.max() >= self.vocab_size):
                raise ValueError(f"document {self.documents} of {self.prefix}: expected ids in [0, {self.vocab_size}), got {array.min()}..{array.max()}")
            self.tokens += len(array)
            self.write("bin", array.astype(self.dtype).tobytes())
        if self.tokens == before:
            raise ValueError(f"document {self.documents} of {self.prefix}: expected ids in [0, {self.vocab_size}), got none")
        self.documents += 1
        self.write("idx", np.array([self.tokens], dtype="<u8").tobytes())
        self.count(language, source, tokens=self.tokens - before, documents=1)

    def write(self, name: str, data: bytes) -> None:
        """Append raw bytes to the .bin or .idx file (for who joins streams)."""
        (self.bin if name == "bin" else self.idx).write(data)
        self.hashes[name].update(data)

    def count(self, language: str, source: str, tokens: int, documents: int) -> None:
        count = self.counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
        count["tokens"] += tokens
        count["documents"] += documents

    def close(self, **extra: object) -> dict:
        """Give the files their names; returns what NAME.json holds. `extra` keys are stored with it."""
        meta = {"format": FORMAT, "dtype": self.dtype.name, "vocab_size": self.vocab_size, "tokens": self.tokens,
                "documents": self.documents, "counts": self.counts, "tokenizer": self.fingerprint, "bos_id": self.bos_id,
                "sha256": {name: value.hexdigest() for name, value in self.hashes.items()}, **extra}
        Path(self.prefix + ".json").unlink(missing_ok=True)  # never an old .json beside a new .bin
        for name, file in (("bin", self.bin), ("idx", self.idx)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(f"{self.prefix}.{name}.tmp", f"{self.prefix}.{name}")
        write_json(self.prefix + ".json", meta)
        return meta


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2 ** 48:
        raise ValueError(f"count: {str(value)[:40]}")
    return value


class TokenStream:
    """A stream on disk, memory-mapped; whatever is wrong with its three files is found here, before the first step."""

    def __init__(self, prefix: str | Path, fingerprint: str | None = None, verify: bool = False):
        self.prefix = str(prefix).removesuffix(".json").removesuffix(".bin")
        if not Path(self.prefix + ".json").is_file():
            raise UserError(f"{self.prefix}.json: no such token stream; make one with python -m data_prep.tokenize_corpus")
        self.meta = meta = read_json(self.prefix + ".json")
        try:
            self.tokens, self.documents, self.vocab_size = (_count(meta[key]) for key in ("tokens", "documents", "vocab_size"))
            dtype, fmt, self.fingerprint = meta["dtype"], meta["format"], meta["tokenizer"]
            self.hashes = {name: meta["sha256"][name] for name in ("bin", "idx")}
            self.bos_id = None if meta.get("bos_id") is None else _count(meta["bos_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.prefix}.json: not the side file of a token stream (no usable {error})") from None
        if fmt != FORMAT or dtype not in ("uint16", "uint32"):
            raise UserError(f"{self.prefix}.json: format {fmt!r}, dtype {dtype!r}; this version reads format {FORMAT}, uint16 or uint32")
        if self.tokens < 2 or self.documents < 1:
            raise UserError(f"{self.prefix}: an empty token stream; check the documents it was made from")
        if fingerprint is not None and self.fingerprint != fingerprint:
            raise UserError(f"{self.prefix}: made with tokenizer {str(self.fingerprint)[:12]}… (documents begin "
                            f"{'without BOS' if self.bos_id is None else f'with BOS {self.bos_id}'}), but the model has {fingerprint[:12]}…; "
                            "tokenize the corpus again with the model's tokenizer and the same --bos")
        for name, size in (("bin", self.tokens * np.dtype(dtype).itemsize), ("idx", self.documents * 8)):
            path = Path(f"{self.prefix}.{name}")
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise UserError(f"{path}: " + ("missing" if found is None else f"{found} bytes") + f", expected {size} as "
                                f"{self.prefix}.json says; the file is damaged or another stream's, tokenize again")
        self.ids = np.memmap(self.prefix + ".bin", dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
        self.ends = np.memmap(self.prefix + ".idx", dtype="<u8", mode="r")
        if int(self.ends[-1]) != self.tokens:
            raise UserError(f"{self.prefix}.idx: last document ends at {self.ends[-1]}, expected {self.tokens}; another stream's side file?")
        if verify:
            self.verify()

    def verify(self) -> None:
        """Read both files once: their sha256, every id within the vocabulary, document ends that only rise (hundreds of MB/s)."""
        for name, values in (("bin", self.ids), ("idx", self.ends)):
            path, hashed, last = f"{self.prefix}.{name}", hashlib.sha256(), 0
            for start in range(0, len(values), CHECKED):
                part = np.array(values[start:start + CHECKED])  # a copy, read once
                hashed.update(part.tobytes())
                if name == "bin" and int(part.max()) >= self.vocab_size:
                    place = start + int(np.argmax(part >= self.vocab_size))
                    raise UserError(f"{path}: token {place} has the id {int(values[place])}, but {self.prefix}.json says that there are "
                                    f"{self.vocab_size}; the file is damaged or another stream's, tokenize again")
                if name == "idx":
                    if int(part[0]) <= last or int(part.max()) > self.tokens or (np.diff(part.astype(np.int64)) <= 0).any():
                        raise UserError(f"{path}: a document ends before it begins (documents {start} to {start + len(part) - 1}); "
                                        "the file is damaged, tokenize again")
                    last = int(part[-1])
            if hashed.hexdigest() != self.hashes[name]:
                raise UserError(f"{path}: its sha256 is not the one in {self.prefix}.json; the file is damaged, tokenize again")

    @property
    def language(self) -> str:
        """The stream's only language, or its name."""
        languages = list(counts) if isinstance(counts := self.meta.get("counts"), dict) else []
        return languages[0] if len(languages) == 1 and languages[0] else Path(self.prefix).name


# ---------------------------------------------------------------------------------------------------------------- rows

FIELDS = ("input_ids", "labels", "documents", "positions")


@dataclass
class Row:
    """One training row of at most T tokens, or several as arrays (N, T): what goes in, what should come out, whose document it is."""

    input_ids: np.ndarray   # (T,) int64
    labels: np.ndarray      # (T,) int64: the next token, or IGNORE
    documents: np.ndarray   # (T,) int64: number of the document within the row; -1 is padding
    positions: np.ndarray   # (T,) int64: place in the document (in the row when documents are not kept apart)

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Row:
        """Padding alone, which carries no loss."""
        positions = np.broadcast_to(np.arange(shape[-1]), shape).copy()
        return cls(np.zeros(shape, np.int64), np.full(shape, IGNORE), np.full(shape, -1), positions)

    def part(self, i: int | slice | np.ndarray) -> Row:
        return Row(*(getattr(self, name)[i] for name in FIELDS))

    def __len__(self) -> int:
        return len(self.input_ids)


def stack(rows: Sequence[Row], count: int, T: int) -> Row:
    """Rows of at most T tokens as one, its arrays (count, T); what is not filled is padding."""
    result = Row.empty((count, T))
    for i, row in enumerate(rows):
        for name in FIELDS:
            getattr(result, name)[i, :len(row)] = getattr(row, name)
    return result


def end_to_end(rows: Sequence[Row]) -> Row:
    """Rows of any width as one long row, its arrays (1, T), T a multiple of WIDTH: for models that attend by document."""
    total = sum(len(row) for row in rows)
    result, at, documents = Row.empty((1, max(1, -(-total // WIDTH)) * WIDTH)), 0, 0
    for row in rows:
        here = slice(at, at + len(row))
        for name in FIELDS:
            getattr(result, name)[0, here] = getattr(row, name)
        result.documents[0, here] += documents
        at, documents = here.stop, documents + 1 + int(row.documents.max())
    return result


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one, in a row: tokens `start`..`end` - 1 of the stream go in, `start` + 1..`end` are their labels."""

    document: int
    start: int
    end: int
    continues: bool  # begins inside its document: it is put behind a BOS where the stream has one

    def split(self, targets: int) -> tuple[Piece, Piece]:
        """The first `targets` targets, and the rest, whose first input is the last label of the first part."""
        middle = self.start + targets
        return Piece(self.document, self.start, middle, self.continues), Piece(self.document, middle, self.end, True)


class PackedBlocks:
    """The rows of one stream: blocks of BLOCK_ROWS rows, each packed by itself.

    A block is a fixed number of consecutive targets of the stream (every token but the first of each document), so how many
    blocks and rows there are follows from the counts in NAME.json, and a block is found by binary search in the index.
    A block's rows have at most SLACK of their positions to spare, or what the BOS of continuations may need.
    """

    def __init__(self, stream: TokenStream, T: int):
        self.stream, self.T = stream, T
        self.cost = 0 if stream.bos_id is None else 1  # positions that a continuation needs beside its targets
        if T <= self.cost:
            raise UserError(f"--sequence_length={T}: too short for a BOS and a token")
        self.targets = stream.tokens - stream.documents
        if self.targets < 1:
            raise UserError(f"{stream.prefix}: no document has two tokens, so there is nothing to predict")
        # A document that goes on from the block before costs one BOS, and so does every row but one that is filled by splitting.
        fits = BLOCK_ROWS * (T - self.cost)
        self.per_block = max(1, min(fits, int(BLOCK_ROWS * T * (1 - SLACK))))
        self.blocks = -(-self.targets // self.per_block)
        rest = self.targets - (self.blocks - 1) * self.per_block
        self.last_rows = min(BLOCK_ROWS, -(-rest // (T - self.cost)))
        self.packed: dict[int, list[list[Piece]]] = {}

    def counts(self) -> np.ndarray:
        """Rows of each block, (blocks,)."""
        counts = np.full(self.blocks, BLOCK_ROWS)
        counts[-1] = self.last_rows
        return counts

    def block_pieces(self, block: int) -> list[Piece]:
        """The documents of a block, those that cross its edges cut there."""
        ends = self.stream.ends
        low, high = block * self.per_block, min((block + 1) * self.per_block, self.targets)
        # Target number of document d's end: its end less the d + 1 first tokens that are no targets.
        document = bisect.bisect_right(range(self.stream.documents), low, key=lambda d: int(ends[d]) - d - 1)
        begin = int(ends[document - 1]) if document else 0
        pieces = []
        while low < high:
            end = int(ends[document])
            stop = min(high, end - document - 1)
            if stop > low:
                pieces.append(Piece(document, low + document, stop + document, low + document > begin))
            low, begin, document = stop, end, document + 1
        return pieces

    def rows(self, block: int) -> list[list[Piece]]:
        """The pieces of each row of a block."""
        found = self.packed.get(block)
        if found is None:
            if len(self.packed) > 2 * GROUP_BLOCKS:
                self.packed.clear()
            count = BLOCK_ROWS if block < self.blocks - 1 else self.last_rows
            found = self.packed[block] = best_fit(self.block_pieces(block), count, self.T, self.cost)
        return found

    def row(self, block: int, number: int) -> Row:
        ids, row, at = self.stream.ids, Row.empty((self.T,)), 0
        for place, piece in enumerate(self.rows(block)[number]):
            tokens = ids[piece.start:piece.end + 1].astype(np.int64)
            inputs, labels = tokens[:-1], tokens[1:]
            if piece.continues and self.cost:
                inputs, labels = np.insert(inputs, 0, self.stream.bos_id), np.insert(labels, 0, IGNORE)
            here = slice(at, at + len(inputs))
            row.input_ids[here], row.labels[here] = inputs, labels
            row.documents[here], row.positions[here] = place, np.arange(len(inputs))
            at = here.stop
        return row

    def documents(self, block: int, number: int) -> list[int]:
        """The documents in a row, in its order."""
        return [piece.document for piece in self.rows(block)[number]]


def best_fit(pieces: Sequence[Piece], rows: int, T: int, cost: int) -> list[list[Piece]]:
    """Lay pieces into `rows` rows of T positions: the longest first, each into the fullest row that still takes it whole.

    What is longer than a row fills rows of its own but for the rest; what fits nowhere is split over the largest gaps. A
    continuation takes `cost` positions beside its targets; the caller leaves rows x cost positions for that.
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
    homeless = []
    for piece in sorted(whole, key=size, reverse=True):
        gap = bisect.bisect_left(gaps, (size(piece), -1))
        if gap < len(gaps):
            place(piece, gap)
        else:
            homeless.append(piece)
    for piece in homeless:
        while size(piece) > gaps[-1][0]:
            piece = split(piece)
        place(piece, bisect.bisect_left(gaps, (size(piece), -1)))
    return [sorted(row, key=lambda piece: piece.start) for row in result]


class OfficialWindows:
    """The rows of the paper's code, for audit: each document by itself in windows of T with a stride of 3T/4, the last one
    aligned to its end, short documents padded with EOS, and the padding trained on (docs/method.md, D14)."""

    def __init__(self, stream: TokenStream, T: int, eos_id: int | None):
        self.stream, self.T, self.eos_id = stream, T, eos_id
        self.stride = max(1, T * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        lengths = np.diff(np.asarray(stream.ends, dtype=np.int64), prepend=0)
        self.ends = np.cumsum(np.where(lengths <= T, 1, 1 + -(-(lengths - T) // self.stride)))  # windows up to each document

    def counts(self) -> np.ndarray:
        windows = int(self.ends[-1])
        return np.minimum(BLOCK_ROWS, windows - np.arange(0, windows, BLOCK_ROWS))

    def documents(self, block: int, number: int) -> list[int]:
        return [int(np.searchsorted(self.ends, block * BLOCK_ROWS + number, side="right"))]

    def row(self, block: int, number: int) -> Row:
        stream, T = self.stream, self.T
        document = self.documents(block, number)[0]
        window = block * BLOCK_ROWS + number - (int(self.ends[document - 1]) if document else 0)
        begin, end = (int(stream.ends[document - 1]) if document else 0), int(stream.ends[document])
        start = max(begin, min(begin + window * self.stride, end - T))
        ids = stream.ids[start:min(start + T, end)].astype(np.int64)
        ids = np.concatenate((ids, np.full(T - len(ids), self.eos_id or 0)))        # MMedLM: pads are trained on
        labels = np.concatenate((ids[1:], [IGNORE]))
        return Row(ids, labels, np.zeros(T, np.int64), np.arange(T))


def permutation(n: int, *key: int) -> np.ndarray:
    """A shuffled range(n), (n,) int64, that follows from the key; numpy keeps RandomState's numbers the same for good."""
    return np.random.RandomState([part & 0xFFFFFFFF for part in key]).permutation(n)


class ShuffledBlocks:
    """The order of rows that lie in blocks: blocks shuffled anew each epoch, the rows of GROUP_BLOCKS of them shuffled together.

    Neighbouring documents often come from one site, so rows of one block must not follow one another in training.
    """

    def __init__(self, counts: np.ndarray, *key: int):
        self.counts, self.key, self.size = counts, key, int(counts.sum())
        self.epoch: tuple[int, np.ndarray, np.ndarray] | None = None         # number, blocks in order, rows up to each group
        self.group: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None  # (epoch, group), block and row of each place

    def locate(self, i: int) -> tuple[int, int]:
        """(block, row within it) of row i; epochs follow one another."""
        number, place = divmod(i, self.size)
        epoch = self.epoch
        if epoch is None or epoch[0] != number:
            blocks = permutation(len(self.counts), *self.key, number)
            sizes = np.add.reduceat(self.counts[blocks], np.arange(0, len(blocks), GROUP_BLOCKS))
            epoch = self.epoch = number, blocks, np.concatenate(([0], np.cumsum(sizes)))
        which = int(np.searchsorted(epoch[2], place, side="right")) - 1
        group = self.group
        if group is None or group[0] != (number, which):
            blocks = epoch[1][which * GROUP_BLOCKS:(which + 1) * GROUP_BLOCKS]
            counts = self.counts[blocks]
            rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            order = permutation(len(rows), *self.key, number, which)
            group = self.group = (number, which), np.repeat(blocks, counts)[order], rows[order]
        at = place - int(epoch[2][which])
        return int(group[1][at]), int(group[2][at])


class Mixture:
    """Maps global row i to (stream, index within that stream), with exact quotas and no state.

    In every cycle of `length` rows stream s has floor differences of its cumulative weight, so after any number of cycles its
    count is within one of weight x rows; the order within a cycle is shuffled by (seed, cycle).
    """

    def __init__(self, weights: Sequence[float], seed: int):
        if min(weights) <= 0:
            raise UserError(f"stream weights must be positive, got {list(weights)}")
        total = sum(weights)
        self.seed, self.bits = seed, 40
        edges = np.cumsum([w / total for w in weights])
        self.edges = [0] + [round(float(e) * 2 ** self.bits) for e in edges[:-1]] + [2 ** self.bits]
        self.length = max(1024, int(np.ceil(2 * total / min(weights))))
        self.cycle = -1

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows` (a multiple of the cycle length)."""
        floors = [rows * edge >> self.bits for edge in self.edges]
        return [b - a for a, b in itertools.pairwise(floors)]

    def __call__(self, i: int) -> tuple[int, int]:
        cycle, place = divmod(i, self.length)
        if cycle != self.cycle:
            self.before = self.counts(cycle * self.length)
            quota = np.subtract(self.counts((cycle + 1) * self.length), self.before)
            self.order = np.repeat(np.arange(len(quota)), quota)[permutation(self.length, self.seed, cycle)]
            self.rank = np.zeros(self.length, dtype=np.int64)  # rows of the same stream before this one, in this cycle
            for s, count in enumerate(quota):
                self.rank[self.order == s] = np.arange(count)
            self.cycle = cycle
        stream = int(self.order[place])
        return stream, self.before[stream] + int(self.rank[place])


class PretrainRows:
    """Rows of a mixture of streams. `row(i)` is a pure function of the streams, the weights, the seed and i.

    windows     "packed": whole documents (`PackedBlocks`); "official": the paper's windows, for audit (`OfficialWindows`)
    weights     shares of the rows; None: every row of every stream once an epoch, in one shuffled order
    """

    def __init__(self, streams: Sequence[TokenStream], sequence_length: int, seed: int, *, weights: Sequence[float] | None = None,
                 windows: str = "packed", eos_id: int | None = None):
        self.streams, self.T, self.windows = streams, sequence_length, windows
        self.layouts = [OfficialWindows(stream, sequence_length, eos_id) if windows == "official" else PackedBlocks(stream, sequence_length)
                        for stream in streams]
        counts = [layout.counts() for layout in self.layouts]
        self.rows_per_epoch = sum(int(count.sum()) for count in counts)
        self.mixture = Mixture(weights, seed) if weights is not None and len(streams) > 1 else None
        self.bounds = np.cumsum([len(count) for count in counts])  # where each stream's blocks end, counted through all streams
        self.orders = [ShuffledBlocks(count, seed, s) for s, count in enumerate(counts)] if self.mixture else \
            [ShuffledBlocks(np.concatenate(counts), seed)]

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within the block) of row i of the run."""
        if self.mixture:
            s, number = self.mixture(i)
            return (s, *self.orders[s].locate(number))
        block, row = self.orders[0].locate(i)
        s = int(np.searchsorted(self.bounds, block, side="right"))
        return s, block - (int(self.bounds[s - 1]) if s else 0), row

    def row(self, i: int) -> Row:
        s, block, row = self.locate(i)
        return self.layouts[s].row(block, row)

    def rows(self, numbers: Sequence[int]) -> Row:
        """Rows of the run as one, its arrays (N, T)."""
        return stack([self.row(i) for i in numbers], len(numbers), self.T)

    def documents(self, i: int) -> tuple[TokenStream, list[int]]:
        """The stream of row i and its documents, counted from 0 in the stream, in the order of the row."""
        s, block, row = self.locate(i)
        return self.streams[s], self.layouts[s].documents(block, row)

    def batch(self, step: int, rows: int) -> range:
        """Row numbers of global batch `step`."""
        return range(step * rows, (step + 1) * rows)


@dataclass
class Example:
    """One exam item as tokens: the prompt carries no loss, the target and its EOS do."""

    key: str
    ids: list[int]
    prompt_length: int


def encode_example(item: ExamItem, tokenizer, max_length: int, *, rationale: bool, style: str) -> tuple[Example, bool]:
    """(example, was it cut). Prompt and target are encoded by themselves, in training and in generation alike, so the

    mask ends where the prompt's own tokens end, whatever the tokenizer would merge across the border (METHOD D19).
    Too long: the prompt loses its beginning, then the target its beginning; the answer stands last and always stays.
    # DIFFERS: the official code truncates on the right, which removes the answer (METHOD D19).
    """
    prompt = tokenizer.encode(build_prompt(item, rationale, style), bos=tokenizer.bos_id is not None)
    target = tokenizer.encode(build_target(item, rationale, style), eos=True, continued=True)
    cut = len(prompt) + len(target) > max_length + 1  # the last token is only ever a label
    if cut:
        target = target[-(max_length * 3 // 4):]
        room = max_length + 1 - len(target)
        head = 1 if tokenizer.bos_id is not None else 0
        prompt = prompt[:head] + prompt[len(prompt) - (room - head):]
    return Example(item.key, prompt + target, len(prompt)), cut


class ExamRows:
    """Exam items as packed rows: batch k is `global_batch_size` examples of a shuffled order, laid into rows of T tokens.

    `modes` (True, False) gives every item twice, with and without its rationale.  # MMedLM: finetune/train.py
    """

    def __init__(self, items: Sequence[ExamItem], tokenizer, sequence_length: int, seed: int, *, modes: Sequence[bool] = (True, False),
                 style: str = "clean"):
        self.T, self.seed = sequence_length, seed
        encoded = [encode_example(item, tokenizer, sequence_length, rationale=mode, style=style)
                   for mode in modes for item in items if item.rationale or not mode]
        if not encoded:
            raise UserError("no exam item has a rationale; fine-tune with --rationales=without, or add rationales first")
        self.examples = [example for example, _ in encoded]
        self.truncated = sum(cut for _, cut in encoded)

    def batch(self, step: int, size: int) -> list[Example]:
        """The examples of global batch `step`; an epoch's last batch runs over into the next epoch's order."""
        n, examples = len(self.examples), []
        for epoch in range(step * size // n, ((step + 1) * size - 1) // n + 1):
            order = permutation(n, self.seed, epoch)
            examples += [self.examples[place] for place in order[max(0, step * size - epoch * n):(step + 1) * size - epoch * n]]
        return examples

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Lay examples into as few rows of at most T as first-fit-decreasing finds, all as narrow as that number allows.

        Documents are kept apart, positions are from 0 in each, and a row is as wide as what it holds.
        """
        ordered = sorted(examples, key=lambda e: -len(e.ids))  # a stable sort: equal lengths keep their order
        needs = [len(example.ids) - 1 for example in ordered]
        count = -(-sum(needs) // self.T)
        while True:
            narrowest = max(needs[0], -(-sum(needs) // count))
            for width in (*range(-(-narrowest // WIDTH) * WIDTH, self.T, WIDTH), self.T):
                places = first_fit(needs, width, count)
                if places is not None:
                    return [pack([e for e, place in zip(ordered, places) if place == row]) for row in range(max(places) + 1)]
            count += 1


def first_fit(needs: Sequence[int], width: int, count: int) -> list[int] | None:
    """The row of each example, every one in the first of `count` rows with room for it; None if they do not fit.

    >>> first_fit([5, 4, 3, 2], 7, 2), first_fit([5, 4, 3, 3], 7, 2)
    ([0, 1, 1, 0], None)
    """
    rooms, places = [width] * count, []
    for need in needs:
        place = next((r for r, room in enumerate(rooms) if room >= need), None)
        if place is None:
            return None
        rooms[place] -= need
        places.append(place)
    return places


def pack(examples: Sequence[Example]) -> Row:
    """One row of several examples.

        ids        <s> Q Q Q R R </s>  <s> Q R R </s>
        input      <s> Q Q Q R R       <s> Q R R
        labels      ·  · · R R </s>     ·  R R </s>      (· = IGNORE)
        documents   0  0 0 0 0 0        1  1 1 1
        positions   0  1 2 3 4 5        0  1 2 3
    """
    row = Row.empty((sum(len(example.ids) - 1 for example in examples),))
    at = 0
    for number, example in enumerate(examples):
        ids = np.asarray(example.ids, dtype=np.int64)
        n, first = len(ids) - 1, max(0, example.prompt_length - 1)
        row.input_ids[at:at + n] = ids[:-1]
        row.labels[at + first:at + n] = ids[first + 1:]
        row.documents[at:at + n] = number
        row.positions[at:at + n] = np.arange(n)
        at += n
    return row


def rank_share(count: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """Which of `count` rows this rank computes, as micro-batches; every rank gets equally many, None is an empty row.

    >>> rank_share(5, rank=0, world_size=2, micro_batch_size=2)
    [[0, 1], [2, 3]]
    >>> rank_share(5, rank=1, world_size=2, micro_batch_size=2)
    [[4, None], [None, None]]
    """
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))  # a small batch is not filled up with empty rows
    per_rank = -(-count // (world_size * micro_batch_size)) * micro_batch_size
    own = [i if i < count else None for i in range(rank * per_rank, (rank + 1) * per_rank)]
    return [own[i:i + micro_batch_size] for i in range(0, per_rank, micro_batch_size)]
