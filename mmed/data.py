"""Token streams and exam items -> the rows of batch k, equal for any number of ranks, workers and restarts.

A stream NAME is three files:

    NAME.bin   every token of every document, one after the other: little-endian uint16 or uint32
    NAME.idx   where each document ends in NAME.bin, counted in tokens: little-endian uint64
    NAME.json  dtype, counts by language and source, tokenizer fingerprint, sha256 of both files

A corpus made by many tasks has no NAME.bin: NAME.json lists `parts`, files that hold its tokens in order.

Rows of continued pre-training are whole documents, packed best-fit, each attending to itself only:

    NAME.bin   <s> b o n e </s> <s> l u n g s </s> <s> h e a r t </s>         rows of T = 8 tokens
    row 0      <s> b o n e | <s> h e      a document that fits nowhere whole is split;
    row 1      <s> l u n g s |            its continuation begins with a BOS that is not a target and predicts
    row 2      <s> a r t |                nothing: every token of a document is a target exactly once an epoch

Row i of a run follows from (seed, i) alone, so a run resumes from its step number, on any number of ranks.
`python -m mmed.training.inspect_batch show RUN STEP` shows what a step trained on. B rows, T tokens per row.
"""
from __future__ import annotations

import bisect
import functools
import glob
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmed.prompts import ExamItem, build_prompt, build_target, read_conversations
from mmed.tokenization.chat_template import Message, encode_conversation
from mmed.tokenizer import Tokenizer
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, temporary_name, write_json
from mmed.utils.fingerprints import file_hash

IGNORE = -100       # label of a position that carries no loss
FORMAT = 1          # version of the stream files
BLOCK_ROWS = 64     # rows whose documents are packed together
GROUP_BLOCKS = 256  # blocks whose rows are shuffled together
SLACK = 0.01        # share of a block's positions that packing may leave empty
WIDTH = 64          # widths of exam batches are multiples of this: few different shapes
MAPPED_PARTS = 128  # files of a stream that are open at once


# ---------------------------------------------------------------------------------------------------- streams

def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 2 ** 16 else np.dtype("<u4")


class StreamWriter:
    """Write one stream; `close` renames its files, the .json last: a stream with a .json is complete."""

    def __init__(self, prefix: str | Path, vocab_size: int, fingerprint: str, bos_id: int | None = None):
        """`bos_id`: the token that every document begins with, None if they begin without one."""
        self.prefix, self.vocab_size = str(prefix), vocab_size
        self.fingerprint, self.bos_id = fingerprint, bos_id
        self.dtype = token_dtype(vocab_size)
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        self.files = {name: open(temporary_name(Path(f"{prefix}.{name}")), "wb") for name in ("bin", "idx")}
        self.hashes = {name: hashlib.sha256() for name in self.files}
        self.tokens = self.documents = 0
        self.counts: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, ids: Sequence[int], language: str = "", source: str = "") -> None:
        """Append one document's ids (with its BOS and EOS)."""
        array = np.asarray(ids, dtype=np.int64)
        if not len(array) or not 0 <= array.min() <= array.max() < self.vocab_size:
            raise ValueError(f"document {self.documents} of {self.prefix}: expected ids in "
                             f"[0, {self.vocab_size}), got {array}")
        end = np.array(self.tokens + len(array), dtype="<u8")
        for name, data in (("bin", array.astype(self.dtype).tobytes()), ("idx", end.tobytes())):
            self.files[name].write(data)
            self.hashes[name].update(data)
        self._count(language, source, len(array), 1)

    def _count(self, language: str, source: str, tokens: int, documents: int) -> None:
        count = self.counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
        count["tokens"] += tokens
        count["documents"] += documents
        self.tokens += tokens
        self.documents += documents

    def close(self, **extra: object) -> dict:
        """Give the files their names; returns the content of NAME.json. `extra` keys are stored with it."""
        Path(f"{self.prefix}.json").unlink(missing_ok=True)  # never an old .json beside a new .bin
        for name, file in self.files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(file.name, f"{self.prefix}.{name}")
        meta = {"format": FORMAT, "dtype": self.dtype.name, "vocab_size": self.vocab_size,
                "tokens": self.tokens, "documents": self.documents, "counts": self.counts,
                "tokenizer": self.fingerprint, "bos_id": self.bos_id,
                "sha256": {name: digest.hexdigest() for name, digest in self.hashes.items()}, **extra}
        write_json(f"{self.prefix}.json", meta)
        return meta


def write_manifest(prefix: str | Path, parts: Iterable[str | Path], **extra: object) -> dict:
    """Make one stream of complete streams of one tokenizer, below the folder of `prefix`, without copying
    tokens: NAME.idx has all document ends, NAME.json lists the .bin files. Returns the content of NAME.json,
    which `extra` goes into. Memory: the document ends of one part.
    """
    tokens, listed, meta, digest = 0, [], {}, hashlib.sha256()
    counts: dict[str, dict[str, dict[str, int]]] = {}
    Path(f"{prefix}.json").unlink(missing_ok=True)  # never an old .json beside a new .idx
    with atomic_write(f"{prefix}.idx", "wb") as file:
        for part in parts:
            meta = read_json(f"{part}.json")
            ends = (np.fromfile(f"{part}.idx", dtype="<u8") + np.uint64(tokens)).astype("<u8").tobytes()
            file.write(ends)
            digest.update(ends)
            tokens += meta["tokens"]
            if meta["tokens"]:
                listed.append({"file": os.path.relpath(f"{part}.bin", Path(prefix).parent),
                               "tokens": meta["tokens"], "sha256": meta["sha256"]["bin"]})
            for language, source in ((a, b) for a, sources in meta["counts"].items() for b in sources):
                total = counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
                for name, count in meta["counts"][language][source].items():
                    total[name] += count
        documents = file.tell() // 8
    meta |= {"tokens": tokens, "documents": documents, "counts": counts, "parts": listed,
             "sha256": {"idx": digest.hexdigest()}, **extra}
    write_json(f"{prefix}.json", meta)
    return meta


class PartedTokens:
    """The tokens of several files as one array; the files read last stay memory-mapped."""

    def __init__(self, files: Sequence[Path], tokens: Sequence[int], dtype: np.dtype):
        self.files, self.dtype = files, dtype
        self.starts = [0, *itertools.accumulate(tokens)]
        self.map = functools.lru_cache(MAPPED_PARTS)(self._map)

    def _map(self, number: int) -> np.ndarray:
        try:
            ids = np.memmap(self.files[number], self.dtype, "r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.files[number]}: part of a stream: {error}; tokenize again") from None
        if len(ids) != self.starts[number + 1] - self.starts[number]:
            raise UserError(f"{self.files[number]}: not as long as its stream's .json says; tokenize again")
        return ids

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, wanted: slice) -> np.ndarray:
        begin, end, _ = wanted.indices(len(self))
        number, found = bisect.bisect_right(self.starts, begin) - 1, [np.zeros(0, self.dtype)]
        while begin < end:
            start, number = self.starts[number], number + 1
            found.append(self.map(number - 1)[begin - start:end - start])
            begin = self.starts[number]
        return found[1] if len(found) == 2 else np.concatenate(found)


class TokenStream:
    """A stream on disk, memory-mapped. Opening it checks sizes and tokenizer; `verify` reads it all."""

    def __init__(self, prefix: str | Path, fingerprint: str | None = None, verify: bool = False):
        self.prefix = str(prefix).removesuffix(".json").removesuffix(".bin")
        if not Path(f"{self.prefix}.json").is_file():
            raise UserError(f"{self.prefix}.json: no such token stream; make one with "
                            "python -m data_prep.tokenize_corpus")
        self.meta = meta = read_json(f"{self.prefix}.json")
        try:
            self.tokens, self.documents, self.bos_id = meta["tokens"], meta["documents"], meta["bos_id"]
            self.vocab_size, self.fingerprint = meta["vocab_size"], meta["tokenizer"]
            self.counts = dict(meta["counts"])  # language -> source -> tokens
            dtype = token_dtype(self.vocab_size)
            if (meta["format"], meta["dtype"]) != (FORMAT, dtype.name):
                raise ValueError(f"format {meta['format']}, {meta['dtype']}")
            self.hashes = {Path(f"{self.prefix}.idx"): meta["sha256"]["idx"]}
            if "parts" in meta:
                files = {Path(self.prefix).parent / part["file"]: part for part in meta["parts"]}
                self.hashes |= {file: part["sha256"] for file, part in files.items()}
                counts = [part["tokens"] for part in files.values()]
                self.ids: PartedTokens | np.ndarray = PartedTokens([*files], counts, dtype)
            else:
                self.hashes[Path(f"{self.prefix}.bin")] = meta["sha256"]["bin"]
                self.ids = np.memmap(f"{self.prefix}.bin", dtype, "r").view(np.ndarray)
            self.ends = np.memmap(f"{self.prefix}.idx", "<u8", "r").view(np.ndarray)
            if not len(self.ids) == self.tokens == self.ends[-1] or len(self.ends) != self.documents:
                raise ValueError(f"{len(self.ids)} tokens in {len(self.ends)} documents")
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise UserError(f"{self.prefix}.json does not describe a token stream, or not the files beside "
                            f"it ({error!r}); tokenize again") from None
        if fingerprint is not None and self.fingerprint != fingerprint:
            bos = "without BOS" if self.bos_id is None else f"with BOS {self.bos_id}"
            raise UserError(f"{self.prefix}: made with tokenizer {self.fingerprint:.12} (documents begin "
                            f"{bos}), but the model has {fingerprint:.12}; tokenize the corpus again with "
                            "the model's tokenizer and the same --bos")
        if verify:
            self.verify()

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Compare the sha256 of this rank's share of the files with NAME.json (hundreds of MB/s).

        NAME.verified-*.json remember size and modification time of the files found intact, so that the next
        run reads none of them.
        """
        name = Path(self.prefix).name
        known: dict[str, list] = {}
        for path in Path(self.prefix).parent.glob(f"{glob.escape(name)}.verified-*.json"):
            known |= read_json(path)
        found = {}
        for file in list(self.hashes)[rank::ranks]:
            try:
                facts = [os.stat(file).st_size, os.stat(file).st_mtime_ns, self.hashes[file]]
                if known.get(str(file.name)) != facts and file_hash(file) != self.hashes[file]:
                    raise UserError(f"{file}: its sha256 is not the one in {self.prefix}.json; the file is "
                                    "damaged, tokenize again")
            except OSError as error:
                raise UserError(f"{file}: {error.strerror}; tokenize again") from None
            found[file.name] = facts
        if not found.items() <= known.items():
            with suppress(OSError):  # a folder that cannot be written: read all again next time
                write_json(f"{self.prefix}.verified-{rank}-of-{ranks}.json", found)

    @property
    def digest(self) -> str:
        """Of the contents: the sha256 of the checksums of all files."""
        return hashlib.sha256(" ".join(self.hashes.values()).encode()).hexdigest()

    @property
    def language(self) -> str:
        """The stream's only language, or its name."""
        languages = list(self.counts)
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
    def of_document(cls, input_ids: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Row:
        ids, labels = np.asarray(input_ids, np.int64), np.asarray(labels, np.int64)
        return cls(ids, labels, np.zeros(len(ids), np.int64), np.arange(len(ids)))

    def __len__(self) -> int:
        return len(self.input_ids)


def join(rows: Sequence[Row]) -> Row:
    """Rows one after the other as one row, whose documents keep apart."""
    parts, documents = [Row.of_document([], [])], 0
    for row in rows:
        parts.append(replace(row, document_ids=row.document_ids + documents))
        documents += int(row.document_ids.max()) + 1
    return Row(*map(np.concatenate, zip(*(vars(part).values() for part in parts))))


def stack(rows: Sequence[Row], count: int, T: int) -> Row:
    """Rows of at most T tokens as arrays (count, T); padding carries no loss."""
    result = Row(np.zeros((count, T), np.int64), np.full((count, T), IGNORE), np.full((count, T), -1),
                 np.tile(np.arange(T), (count, 1)))
    for i, row in enumerate(rows):
        for name, array in vars(result).items():
            array[i, :len(row)] = getattr(row, name)
    return result


def end_to_end(rows: Sequence[Row]) -> Row:
    """Rows of any width as one long row (1, T), T a multiple of WIDTH: for models that attend by document."""
    row = join(rows)
    return stack([row], 1, max(1, -(-len(row) // WIDTH)) * WIDTH)


class Piece(NamedTuple):
    """A document, or part of one: tokens `start`..`end` - 1 are its inputs, `start` + 1..`end` its labels."""

    start: int
    end: int
    document: int
    cost: int  # 1: begins inside its document, and a BOS is put before it; else 0

    def size(self) -> int:
        return self.end - self.start + self.cost


class PackedBlocks:
    """The rows of one stream: blocks of BLOCK_ROWS rows, each packed by itself.

    A block is a fixed number of consecutive targets (every token but the first of each document), so the
    numbers of blocks and rows follow from NAME.json, and binary search in the index finds a block. Its rows
    have at most SLACK of their positions to spare, or what the BOS of continuations may need.
    """

    def __init__(self, stream: TokenStream, T: int):
        self.stream, self.T = stream, T
        self.cost = 0 if stream.bos_id is None else 1  # extra positions of a continuation: its BOS
        if T <= self.cost:
            raise UserError(f"--sequence_length={T}: too short for a BOS and a token")
        self.targets = stream.tokens - stream.documents
        if self.targets < 1:
            raise UserError(f"{stream.prefix}: no document has two tokens, so there is nothing to predict")
        # A document continued from the block before costs one BOS, and so does a row that splitting fills.
        self.per_block = max(1, min(BLOCK_ROWS * (T - self.cost), int(BLOCK_ROWS * T * (1 - SLACK))))
        self.blocks = -(-self.targets // self.per_block)
        rest = self.targets - (self.blocks - 1) * self.per_block
        self.last_rows = min(BLOCK_ROWS, -(-rest // (T - self.cost)))
        self.packed: dict[int, list[list[Piece]]] = {}  # of the blocks that the present rows come from

    def counts(self) -> np.ndarray:
        return np.array([BLOCK_ROWS] * (self.blocks - 1) + [self.last_rows])

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
                cost = self.cost if low + document > begin else 0
                pieces.append(Piece(low + document, stop + document, document, cost))
            low, begin, document = stop, end, document + 1
        return pieces

    def rows(self, block: int) -> list[list[Piece]]:
        """The pieces of each row of a block."""
        if block not in self.packed:
            if len(self.packed) > 2 * GROUP_BLOCKS:
                self.packed.clear()
            rows = BLOCK_ROWS if block < self.blocks - 1 else self.last_rows
            self.packed[block] = best_fit(self.block_pieces(block), rows, self.T, self.cost)
        return self.packed[block]

    def row(self, block: int, number: int) -> Row:
        """Row `number` of a block, without padding."""
        documents = []
        for piece in self.rows(block)[number]:
            ids = self.stream.ids[piece.start:piece.end + 1].astype(np.int64)
            inputs, labels = ids[:-1], ids[1:]
            if piece.cost:
                inputs, labels = np.append(self.stream.bos_id, inputs), np.append(IGNORE, labels)
            documents.append(Row.of_document(inputs, labels))
        return join(documents)

    def documents(self, block: int, number: int) -> list[int]:
        """The documents in a row, in its order."""
        return [piece.document for piece in self.rows(block)[number]]


def best_fit(pieces: Sequence[Piece], rows: int, T: int, cost: int) -> list[list[Piece]]:
    """Lay pieces into `rows` rows of T positions: the longest first, each into the fullest row that takes it.

    A piece longer than a row first fills whole rows; a piece that fits nowhere is split over the largest
    gaps. A continuation takes `cost` more positions; the caller leaves rows x cost positions for that.
    """
    result: list[list[Piece]] = [[] for _ in range(rows)]
    gaps = [(T, row) for row in range(rows)]  # free positions and row, ascending

    def place(piece: Piece, gap: int) -> None:
        free, row = gaps.pop(gap)
        result[row].append(piece)
        bisect.insort(gaps, (free - piece.size(), row))

    def split_until_it_fits(piece: Piece, longest: int | None = None) -> Piece:
        """Fill the largest gaps with the beginning of a piece; returns what fits into `longest` or a gap."""
        while piece.size() > (longest or gaps[-1][0]):
            middle = piece.start + gaps[-1][0] - piece.cost
            place(piece._replace(end=middle), len(gaps) - 1)
            piece = piece._replace(start=middle, cost=cost)
        return piece

    whole = [split_until_it_fits(piece, T) for piece in pieces]
    left_over = []
    for piece in sorted(whole, key=Piece.size, reverse=True):
        gap = bisect.bisect_left(gaps, (piece.size(), -1))
        if gap == len(gaps):
            left_over.append(piece)
        else:
            place(piece, gap)
    for piece in map(split_until_it_fits, left_over):
        place(piece, bisect.bisect_left(gaps, (piece.size(), -1)))
    return [sorted(row) for row in result]


class OfficialWindows:
    """The rows of the paper's code, for audit [docs/method.md, D14]: each document in windows of T with a
    stride of 3T/4, the last one aligned to its end; short documents padded with EOS, the padding trained on.
    """

    def __init__(self, stream: TokenStream, T: int, eos_id: int | None):
        self.stream, self.T, self.eos_id = stream, T, eos_id
        self.stride = max(1, T * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        lengths = np.diff(stream.ends.astype(np.int64), prepend=0)
        windows = np.where(lengths <= T, 1, 1 + -(-(lengths - T) // self.stride))
        self.ends = np.cumsum(windows)  # windows up to the end of each document

    def counts(self) -> np.ndarray:
        """Rows of each block, (blocks,)."""
        windows = int(self.ends[-1])
        return np.minimum(BLOCK_ROWS, windows - np.arange(0, windows, BLOCK_ROWS))

    def documents(self, block: int, number: int) -> list[int]:
        return [int(np.searchsorted(self.ends, block * BLOCK_ROWS + number, side="right"))]

    def row(self, block: int, number: int) -> Row:
        (document,) = self.documents(block, number)
        window = block * BLOCK_ROWS + number - (int(self.ends[document - 1]) if document else 0)
        begin, end = int(self.stream.ends[document - 1]) if document else 0, int(self.stream.ends[document])
        start = max(begin, min(begin + window * self.stride, end - self.T))
        ids = np.full(self.T, self.eos_id or 0)  # MMedLM: pads are trained on
        ids[:end - start] = self.stream.ids[start:min(start + self.T, end)]
        return Row.of_document(ids, np.append(ids[1:], IGNORE))


# ------------------------------------------------------------------------------------------------------ order

def permutation(n: int, *key: int) -> np.ndarray:
    """A shuffled range(n), (n,) int64, that follows from the key; RandomState's numbers never change."""
    return np.random.RandomState([part & 0xFFFFFFFF for part in key]).permutation(n)


class ShuffledBlocks:
    """The order of rows: each epoch shuffles the blocks, then the rows of GROUP_BLOCKS blocks together, since
    the neighbouring documents of a block often come from one site.
    """

    def __init__(self, blocks: Sequence[tuple[int, int, int]], *key: int):
        """`blocks`: (stream, block, its rows)."""
        self.all_blocks, self.key, self.size = blocks, key, sum(rows for _, _, rows in blocks)
        self.epoch = self.group = -1

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within it) of row i; epochs follow one another."""
        epoch, place = divmod(i, self.size)
        if epoch != self.epoch:
            self.epoch, self.group = epoch, -1
            self.blocks = [self.all_blocks[k] for k in permutation(len(self.all_blocks), *self.key, epoch)]
            self.ends = list(itertools.accumulate(rows for _, _, rows in self.blocks))
        group = bisect.bisect_right(self.ends, place) // GROUP_BLOCKS
        if group != self.group:
            self.group, first = group, group * GROUP_BLOCKS
            places = [(stream, block, row) for stream, block, rows in self.blocks[first:first + GROUP_BLOCKS]
                      for row in range(rows)]
            self.order = [places[k] for k in permutation(len(places), *self.key, epoch, group)]
            self.begin = self.ends[first - 1] if first else 0
        return self.order[place - self.begin]


class Mixture:
    """Maps global row i to (stream, index within that stream), with exact quotas and no state.

    A cycle is `length` rows. A stream's rows up to the end of a cycle are floor differences of the cumulative
    weights, so its count stays within one of weight x rows; (seed, cycle) shuffles the order within a cycle.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        if min(weights) <= 0:
            raise UserError(f"stream weights must be positive, got {list(weights)}")
        total = sum(weights)
        self.edges = [0.0, *(edge / total for edge in itertools.accumulate(weights[:-1])), 1.0]
        self.length = max(1024, int(np.ceil(2 * total / min(weights))))
        self.seed, self.cycle = seed, -1

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows` (a multiple of the cycle length)."""
        floors = [int(rows * edge) for edge in self.edges]
        return [b - a for a, b in itertools.pairwise(floors)]

    def __call__(self, i: int) -> tuple[int, int]:
        cycle, place = divmod(i, self.length)
        if cycle != self.cycle:
            self.cycle, self.before = cycle, self.counts(cycle * self.length)
            quota = np.subtract(self.counts((cycle + 1) * self.length), self.before)
            self.order = np.repeat(np.arange(len(quota)), quota)[permutation(self.length, self.seed, cycle)]
        stream = int(self.order[place])
        return stream, self.before[stream] + int(np.count_nonzero(self.order[:place] == stream))


class PretrainRows:
    """Rows of a mixture of streams, each a pure function of the streams, weights, seed and its number.

    `windows`: "packed", whole documents; or "official", the paper's windows, for audit.
    `weights`: shares of the rows; None: every row of every stream once an epoch, in one shuffled order.
    """

    def __init__(self, streams: Sequence[TokenStream], sequence_length: int, seed: int, *,
                 weights: Sequence[float] | None = None, windows: str = "packed", eos_id: int | None = None):
        self.streams, self.T = streams, sequence_length
        self.layouts: list[PackedBlocks | OfficialWindows] = [
            OfficialWindows(stream, sequence_length, eos_id) if windows == "official"
            else PackedBlocks(stream, sequence_length) for stream in streams]
        blocks = [[(stream, block, int(rows)) for block, rows in enumerate(layout.counts())]
                  for stream, layout in enumerate(self.layouts)]
        self.rows_per_epoch = sum(int(layout.counts().sum()) for layout in self.layouts)
        self.mixture = Mixture(weights, seed) if weights is not None and len(streams) > 1 else None
        if self.mixture:
            self.orders = [ShuffledBlocks(own, seed, number) for number, own in enumerate(blocks)]
        else:
            self.orders = [ShuffledBlocks(list(itertools.chain(*blocks)), seed)]

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within the block) of row i of the run."""
        stream, index = self.mixture(i) if self.mixture else (0, i)
        return self.orders[stream].locate(index)

    def rows(self, numbers: Sequence[int | None]) -> Row:
        """Rows of the run as arrays (B, T); None is a row of padding."""
        rows = [Row.of_document([], []) if number is None else self._row(number) for number in numbers]
        return stack(rows, len(numbers), self.T)

    def _row(self, i: int) -> Row:
        stream, block, row = self.locate(i)
        return self.layouts[stream].row(block, row)

    def row(self, i: int) -> Row:
        """Row i of the run, padded to T."""
        return Row(*(array[0] for array in vars(self.rows([i])).values()))

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
    """One exam item or conversation as tokens: a prompt carries no loss, a target and its EOS do."""

    key: str
    ids: Sequence[int] | np.ndarray
    prompt_length: int
    later_prompts: Sequence[tuple[int, int]] = ()  # [first, end) of further prompts of a conversation


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
    """(example, whether it was truncated) of at most max_length + 1 tokens, the last of them only a label.

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
    """Exam items as packed rows: batch k is `global_batch_size` examples of a shuffled order.

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

    def warnings(self) -> list[str]:
        return [f"{n} examples were too long and were truncated on the left" for n in [self.truncated] if n]

    def batch(self, step: int, size: int) -> list[Example]:
        """The examples of global batch `step`; an epoch's last batch runs over into the next epoch."""
        n, examples = len(self.examples), []
        for epoch in range(step * size // n, ((step + 1) * size - 1) // n + 1):
            first, last = max(0, step * size - epoch * n), (step + 1) * size - epoch * n
            examples += [self.examples[place] for place in permutation(n, self.seed, epoch)[first:last]]
        return examples

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Lay examples into rows of at most T tokens: longest first, each into the first row with space."""
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
    rows = []
    for example in examples:
        ids = np.asarray(example.ids, np.int64)
        labels = ids[1:].copy()
        for first, end in ((1, example.prompt_length), *example.later_prompts):
            # the prompt's last token predicts the target's first
            labels[first - 1:max(first, end) - 1] = IGNORE
        rows.append(Row.of_document(ids[:-1], labels))
    return join(rows)


# ---------------------------------------------------------------------------------------------- conversations

def encode_dialogue(key: str, messages: Sequence[Message], tokenizer: Tokenizer, max_length: int,
                    family: str = "") -> tuple[Example | None, str]:
    """(example of at most max_length + 1 tokens, "" or "truncated"), or (None, why it is left out).

    Too long: the oldest question and answer go first, then the beginning of the last prompt. The last answer
    stays whole; one that needs more than 3/4 of max_length has no place for its question.
    """
    if not messages:
        return None, "without an answer"
    system, turns, outcome = list(messages[:len(messages) % 2]), list(messages[len(messages) % 2:]), ""
    ids, answers = encode_conversation(tokenizer, messages, family)
    while len(ids) > max_length + 1 and len(turns) > 2:
        turns, outcome = turns[2:], "truncated"
        ids, answers = encode_conversation(tokenizer, system + turns, family)
    if len(ids) > max_length + 1:
        answer = ids[answers[-1][0]:]
        if len(answer) > max_length * 3 // 4:
            return None, "with a last answer longer than 3/4 of a row"
        prompt = truncate_prompt(ids[:-len(answer)], max_length + 1 - len(answer), tokenizer.named_bos_id)
        ids, answers, outcome = prompt + answer, [(len(prompt), max_length + 1)], "truncated"
    later = [(end, first) for (_, end), (first, _) in itertools.pairwise(answers)]
    return Example(key, np.array(ids, np.uint32), answers[0][0], later), outcome


class InstructRows(ExamRows):
    """Conversations as packed rows, in the order and by the packing of exam items; loss on all answers."""

    def __init__(self, path: str, tokenizer: Tokenizer, sequence_length: int, seed: int, family: str = ""):
        self.T, self.seed, self.examples = sequence_length, seed, []
        self.outcomes: Counter[str] = Counter()
        for key, messages in read_conversations(path):
            try:
                example, outcome = encode_dialogue(key, messages, tokenizer, sequence_length, family)
            except UserError as error:
                raise UserError(f"{key}: {error}") from None
            self.outcomes[outcome] += 1
            if example:
                self.examples.append(example)
        if not self.examples:
            raise UserError(f"{path}: no conversation to train on; left out: {dict(self.outcomes)}")
        self.truncated = self.outcomes.pop("truncated", 0)
        del self.outcomes[""]

    def warnings(self) -> list[str]:
        return super().warnings() + [f"{count} conversations {why} are left out"
                                     for why, count in self.outcomes.items()]


def rank_share(count: int, rank: int, world_size: int, micro_batch_size: int) -> list[list[int | None]]:
    """Which of `count` rows this rank computes, as micro-batches, as many as other ranks; None: an empty row.

    >>> rank_share(5, rank=0, world_size=2, micro_batch_size=2)
    [[0, 1], [2, 3]]
    >>> rank_share(5, rank=1, world_size=2, micro_batch_size=2)
    [[4, None], [None, None]]
    """
    micro_batch_size = max(1, min(micro_batch_size, -(-count // world_size)))  # small batch: no empty rows
    per_rank = -(-count // (world_size * micro_batch_size)) * micro_batch_size
    own = [i if i < count else None for i in range(rank * per_rank, (rank + 1) * per_rank)]
    return [own[i:i + micro_batch_size] for i in range(0, per_rank, micro_batch_size)]
