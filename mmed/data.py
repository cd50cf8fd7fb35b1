"""Token streams and exam items -> the rows of batch k, the same for any number of ranks, workers and restarts.

A stream NAME is three files, written by `StreamWriter` and read by `TokenStream`:

    NAME.bin   every token of every document, one after the other: little-endian uint16 or uint32, readable by np.memmap
    NAME.idx   where each document ends in NAME.bin, counted in tokens: little-endian uint64
    NAME.json  dtype, token and document counts by language and source, the tokenizer's fingerprint, sha256 of both files

    NAME.bin   b o n e · </s> l u n g · </s> h e a r t · </s>        packed rows of T = 8 tokens, each token trained once:
               └───── row 0 ─────┘└───── row 1 ─────┘└ last row, aligned right ┘

Nothing here keeps a position: row i of a run is a function of (seed, i) alone (`PretrainRows.row`, `ExamRows.rows`), so a
run is resumed by its step number and may go on with another number of ranks. No permutation of the corpus is ever held:
`shuffled` (mmed/order.py) computes where place i of a shuffled order points, and the rows of a batch are read with one gather.

    python -m mmed.training.inspect_batch show RUN STEP    prints what a step trained on (mmed/training/inspect_batch.py)

Legend: B rows, T tokens of a row.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmed.order import Mixture, mix, shuffled
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

IGNORE = -100  # label of a position that carries no loss
FORMAT = 1
CHECKED = 1 << 22  # values looked at together
AHEAD = 1024   # rows whose places in the streams are worked out together
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

    def __init__(self, prefix: str | Path, vocab_size: int, fingerprint: str):
        self.prefix, self.vocab_size, self.fingerprint = str(prefix), vocab_size, fingerprint
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
                "documents": self.documents, "counts": self.counts, "tokenizer": self.fingerprint,
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
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.prefix}.json: not the side file of a token stream (no usable {error})") from None
        if fmt != FORMAT or dtype not in ("uint16", "uint32"):
            raise UserError(f"{self.prefix}.json: format {fmt!r}, dtype {dtype!r}; this version reads format {FORMAT}, uint16 or uint32")
        if self.tokens < 2 or self.documents < 1:
            raise UserError(f"{self.prefix}: an empty token stream; check the documents it was made from")
        if fingerprint is not None and self.fingerprint != fingerprint:
            raise UserError(f"{self.prefix}: made with tokenizer {str(self.fingerprint)[:12]}…, but the model has {fingerprint[:12]}…; "
                            "tokenize the corpus again with the model's tokenizer")
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


def joined(parts: Sequence[Row]) -> Row:
    """Arrays (N, T) one below the other."""
    return Row(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))


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


class PretrainRows:
    """Rows of a mixture of streams. `row(i)` is a pure function of the streams, the weights, the seed and i.

    windows     "packed": T new tokens a row, documents one after the other, every token trained once an epoch.
                "official": METHOD 3.1, for audit: each document by itself in windows of T with a stride of 3T/4, the
                last one aligned to its end, short documents padded with EOS, and the padding trained on (METHOD D14).
    apart       tokens see their own document only, and the jump from one document to the next carries no loss
    weights     shares of the rows; None: every stream's windows once an epoch, in one shuffled order
    """

    def __init__(self, streams: Sequence[TokenStream], sequence_length: int, seed: int, *, weights: Sequence[float] | None = None,
                 windows: str = "packed", apart: bool = True, eos_id: int | None = None):
        self.streams, self.T, self.seed, self.windows, self.apart, self.eos_id = streams, sequence_length, seed, windows, apart, eos_id
        self.stride = max(1, sequence_length * 3 // 4)  # MMedLM: 2048 and 1536 (prepare_tokenized_dataset.py)
        self.official_ends = [np.cumsum(self._official_counts(s)) for s in streams] if windows == "official" else []
        self.sizes = [self._size(s) for s in range(len(streams))]
        self.mixture = Mixture(weights, seed) if weights is not None and len(streams) > 1 else None
        self.bounds = np.cumsum(self.sizes)  # where each stream's windows end, counted through all streams
        self.rows_per_epoch = sum(self.sizes)
        self.block: tuple[int, np.ndarray] = (-1, np.zeros((2, 0), np.int64))  # number of the last AHEAD rows located, and where they are

    def _official_counts(self, stream: TokenStream) -> np.ndarray:
        lengths = np.diff(np.asarray(stream.ends, dtype=np.int64), prepend=0)
        return np.where(lengths <= self.T, 1, 1 + -(-(lengths - self.T) // self.stride))

    def _size(self, s: int) -> int:
        if self.windows == "official":
            return int(self.official_ends[s][-1])
        return max(1, -(-(self.streams[s].tokens - 1) // self.T))

    def locate(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(streams, windows), each (N,), of rows of the run; epochs follow one another, each in an order of its own."""
        rows = np.asarray(numbers, dtype=np.int64)
        found = np.empty((2, len(rows)), np.int64)
        for block in np.unique(rows // AHEAD).tolist():
            if block != self.block[0]:  # one batch after the other: most find their block here
                self.block = block, self._locate(np.arange(block * AHEAD, (block + 1) * AHEAD))
            here = rows // AHEAD == block
            found[:, here] = self.block[1][:, rows[here] % AHEAD]
        return found[0], found[1]

    def _locate(self, rows: np.ndarray) -> np.ndarray:
        """(2, N): stream and window of each row."""
        if self.mixture is None:
            epochs, places = rows // self.rows_per_epoch, rows % self.rows_per_epoch
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                places[now] = shuffled(places[now], self.rows_per_epoch, mix(self.seed, epoch))
            streams = np.searchsorted(self.bounds, places, side="right")
            return np.stack((streams, places - np.concatenate(([0], self.bounds))[streams]))
        streams, counts = np.array([self.mixture(i) for i in rows.tolist()], dtype=np.int64).T
        windows = np.empty_like(counts)
        for s in np.unique(streams).tolist():
            epochs, places = counts // self.sizes[s], counts % self.sizes[s]
            for epoch in np.unique(epochs[streams == s]).tolist():
                now = (streams == s) & (epochs == epoch)
                windows[now] = shuffled(places[now], self.sizes[s], mix(self.seed, s, epoch))
        return np.stack((streams, windows))

    def row(self, i: int) -> Row:
        return self.rows([i]).part(0)

    def rows(self, numbers: Sequence[int]) -> Row:
        """Rows of the run as one, its arrays (N, T)."""
        if not len(numbers):
            return Row.empty((0, self.T))
        streams, windows = self.locate(numbers)
        if self.windows == "official":
            return stack([self._official(s, w) for s, w in zip(streams.tolist(), windows.tolist())], len(windows), self.T)
        if (streams == streams[0]).all():
            return self.packed(int(streams[0]), windows)
        parts, order = [], []
        for s in np.unique(streams).tolist():
            order.append(np.flatnonzero(streams == s))
            parts.append(self.packed(s, windows[order[-1]]))
        back = np.argsort(np.concatenate(order))
        return joined(parts).part(back)

    def packed(self, s: int, windows: Sequence[int]) -> Row:
        """Windows (N,) of stream s: T tokens and the one after each; the last window ends with the stream. Arrays (N, T)."""
        stream, T, N = self.streams[s], self.T, len(windows)
        n = min(T, stream.tokens - 1)  # less than T: the stream is shorter than a row
        starts = np.clip(np.asarray(windows, dtype=np.int64) * T, 0, max(0, stream.tokens - 1 - T))
        ids = np.lib.stride_tricks.sliding_window_view(stream.ids, n + 1)[starts].astype(np.int64)
        row = Row(ids[:, :-1], ids[:, 1:].copy(), np.zeros((N, n), np.int64), np.broadcast_to(np.arange(n), (N, n)))
        if not self.apart:
            return row if n == T else stack([row.part(i) for i in range(N)], N, T)
        # Documents that begin in these rows: ends[d] is also where document d + 1 begins. (uint64: else the whole file is converted.)
        first = np.searchsorted(stream.ends, starts.astype(np.uint64), side="right")
        count = np.searchsorted(stream.ends, (starts + n).astype(np.uint64), side="right") - first
        where = np.repeat(np.arange(N), count)                                             # the row of each border
        number = np.arange(len(where)) - np.repeat(np.cumsum(count) - count, count)        # 0, 1, ... in its row
        begins = stream.ends[first[where] + number].astype(np.int64) - starts[where]       # places in 1..n
        row.labels[where, begins - 1] = IGNORE  # EOS does not foretell the next document
        # The pieces of documents in these rows, one after the other: each row begins one, and so does each border.
        at_row, at_border = np.arange(N) + np.cumsum(count) - count, np.arange(len(where)) + where + 1
        edges, numbers = np.empty(N + len(where) + 1, np.int64), np.zeros(N + len(where), np.int64)
        edges[at_row], edges[at_border], edges[-1] = np.arange(N) * n, where * n + begins, N * n
        numbers[at_border] = number + 1
        lengths = np.diff(edges)
        row.documents = np.repeat(numbers, lengths).reshape(N, n)
        row.positions = (np.arange(N * n) - np.repeat(edges[:-1], lengths)).reshape(N, n)
        return row if n == T else stack([row.part(i) for i in range(N)], N, T)

    def _official(self, s: int, window: int) -> Row:
        stream, T = self.streams[s], self.T
        document = int(np.searchsorted(self.official_ends[s], window, side="right"))
        number = window - (int(self.official_ends[s][document - 1]) if document else 0)
        begin, end = (int(stream.ends[document - 1]) if document else 0), int(stream.ends[document])
        start = max(begin, min(begin + number * self.stride, end - T))
        ids = stream.ids[start:min(start + T, end)].astype(np.int64)
        ids = np.concatenate((ids, np.full(T - len(ids), self.eos_id or 0)))        # MMedLM: pads are trained on
        labels = np.concatenate((ids[1:], [IGNORE]))
        return Row(ids, labels, np.zeros(T, np.int64), np.arange(T))

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
        n, numbers = len(self.examples), np.arange(step * size, (step + 1) * size)
        return [self.examples[place] for epoch in np.unique(numbers // n).tolist()
                for place in shuffled(numbers[numbers // n == epoch] % n, n, mix(self.seed, epoch)).tolist()]

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
