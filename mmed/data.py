"""Token streams and exam items -> the rows of batch k, equal for any number of ranks, workers and restarts.

Rows of continued pre-training are whole documents of a token stream, packed best-fit, each attending to
itself only:

    stream     <s> b o n e </s> <s> l u n g </s> <s> e y e </s>     inputs of the rows, T = 8 tokens
    row 0      <s> b o n e | <s> e      a document that fits nowhere whole is split: its continuation (row 0)
    row 1      <s> l u n g | <s> e y    begins with a BOS that predicts nothing, at position 0; each token
                                        but a document's first is a target exactly once an epoch

Rows of fine-tuning are exam items, prompt and target, several in a row; only targets carry loss.

Batch k is items k B .. (k + 1) B - 1 of an order shuffled by the seed: rows when pre-training, exam items
(then packed into rows) when fine-tuning. So a run resumes from its step number, on any number of
ranks. `python -m mmed.training.inspect_batch show RUN STEP` shows batch STEP - 1.
"""
from __future__ import annotations

import bisect
import functools
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmed.loss import IGNORE
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import Tokenizer
from mmed.utils.errors import UserError

BLOCK_ROWS = 64     # rows whose documents are packed together
GROUP_BLOCKS = 256  # blocks whose rows are shuffled together
SLACK = 0.01        # share of a block's positions that packing may leave empty
TRUNCATED = "examples were too long and were truncated on the left"
NO_RATIONALE = "items without a rationale are not trained with one"


# ------------------------------------------------------------------------------------------------------- rows

@dataclass
class Row:
    """One training row of at most T tokens, or several as arrays (B, T)."""

    input_ids: np.ndarray     # (T,) int64
    labels: np.ndarray        # (T,) int64: the next token, or IGNORE
    document_ids: np.ndarray  # (T,) int64: number of the document within the row; -1 is padding
    positions: np.ndarray     # (T,) int64: position in the document, or in its piece if split

    @classmethod
    def of_document(cls, input_ids: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Row:
        ids, labels = np.asarray(input_ids, np.int64), np.asarray(labels, np.int64)
        return cls(ids, labels, np.zeros(len(ids), np.int64), np.arange(len(ids)))

    def __len__(self) -> int:
        return len(self.input_ids)


def join(rows: Sequence[Row]) -> Row:
    """Concatenate rows into one row whose documents stay separate."""
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
        for name, values in vars(result).items():
            values[i, :len(row)] = getattr(row, name)
    return result


# --------------------------------------------------------------------------------- packing of whole documents

class Piece(NamedTuple):
    """A document, or part of one: tokens `start`..`end` - 1 are its inputs, `start` + 1..`end` its labels."""

    start: int
    end: int
    document: int
    cost: int  # 1 if it begins inside its document, so that a BOS is added; otherwise 0

    def size(self) -> int:
        return self.end - self.start + self.cost


class PackedBlocks:
    """The rows of one stream: blocks of BLOCK_ROWS rows, each packed by itself.

    A block is a fixed number of consecutive targets (every token but the first of each document), so binary
    search in the index finds it. A full block leaves 1 % (SLACK) of its positions free, and at least one per
    row, for the BOS of continuations.
    """

    def __init__(self, stream: TokenStream, T: int):
        self.stream, self.T = stream, T
        self.cost = 0 if stream.bos_id is None else 1  # extra positions of a continuation: its BOS
        if T <= self.cost:
            raise UserError(f"--sequence_length={T}: too short to hold a BOS and one token")
        self.targets = stream.tokens - stream.documents
        if self.targets < 1:
            raise UserError(f"{stream.prefix}: no document has two tokens, so there is nothing to predict")
        # One BOS for a document continued from the previous block, and one for each row that a split fills.
        self.per_block = max(1, min(BLOCK_ROWS * (T - self.cost), int(BLOCK_ROWS * T * (1 - SLACK))))
        self.blocks = -(-self.targets // self.per_block)
        rest = self.targets - (self.blocks - 1) * self.per_block
        self.last_rows = min(BLOCK_ROWS, -(-rest // (T - self.cost)))
        self.rows = functools.lru_cache(2 * GROUP_BLOCKS)(self._rows)

    def counts(self) -> list[int]:
        """Rows of each block."""
        return [BLOCK_ROWS] * (self.blocks - 1) + [self.last_rows]

    def block_pieces(self, block: int) -> list[Piece]:
        """The documents of a block; those that cross its edges are split there."""
        ends = self.stream.ends
        low, high = block * self.per_block, min((block + 1) * self.per_block, self.targets)
        # Targets up to the end of document d: its end minus the d + 1 first tokens, which are not targets.
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

    def _rows(self, block: int) -> list[list[Piece]]:
        """The pieces of each row of a block; `rows` is the same with a cache."""
        rows = BLOCK_ROWS if block < self.blocks - 1 else self.last_rows
        return best_fit(self.block_pieces(block), rows, self.T, self.cost)

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
        """The documents in a row, in order."""
        return [piece.document for piece in self.rows(block)[number]]


def best_fit(pieces: Sequence[Piece], rows: int, T: int, cost: int) -> list[list[Piece]]:
    """Pack pieces into `rows` rows of T positions: longest first, each into the fullest row where it fits, or
    split over the largest gaps. The caller leaves rows x cost positions for continuations."""
    result: list[list[Piece]] = [[] for _ in range(rows)]
    gaps = [(T, row) for row in range(rows)]  # free positions and row, ascending

    def place(piece: Piece, gap: int) -> None:
        free, row = gaps.pop(gap)
        result[row].append(piece)
        bisect.insort(gaps, (free - piece.size(), row))

    def split_until_it_fits(piece: Piece, longest: int | None = None) -> Piece:
        """Fill the largest gaps with the start of a piece; returns the rest: it fits `longest` or a gap."""
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


# ------------------------------------------------------------------------------------------------------ order

def permutation(n: int, *key: int) -> np.ndarray:
    """range(n) shuffled by the key, (n,) int64; RandomState's output never changes between versions."""
    return np.random.RandomState([part & 0xFFFFFFFF for part in key]).permutation(n)


class ShuffledBlocks:
    """The order of rows: each epoch shuffles the blocks, (stream, block, its rows), then the rows of
    GROUP_BLOCKS blocks together, since neighbouring documents often come from one site."""

    def __init__(self, blocks: Sequence[tuple[int, int, int]], *key: int):
        self.blocks, self.key, self.size = blocks, key, sum(rows for _, _, rows in blocks)
        self.epoch = functools.lru_cache(2)(self._epoch)  # these caches may be shared by threads
        self.group = functools.lru_cache(2)(self._group)

    def _epoch(self, epoch: int) -> tuple[list[tuple[int, int, int]], list[int]]:
        """The blocks in the order of an epoch, and the rows up to the end of each."""
        blocks = [self.blocks[k] for k in permutation(len(self.blocks), *self.key, epoch)]
        return blocks, list(itertools.accumulate(rows for _, _, rows in blocks))

    def _group(self, epoch: int, group: int) -> tuple[int, list[tuple[int, int, int]]]:
        """The number of a group's first row in its epoch, and (stream, block, row) of its rows in order."""
        blocks, ends = self.epoch(epoch)
        first = group * GROUP_BLOCKS
        places = [(stream, block, row) for stream, block, rows in blocks[first:first + GROUP_BLOCKS]
                  for row in range(rows)]
        order = [places[k] for k in permutation(len(places), *self.key, epoch, group)]
        return ends[first - 1] if first else 0, order

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within it) of row i; epochs follow one another."""
        epoch, place = divmod(i, self.size)
        _, ends = self.epoch(epoch)
        begin, order = self.group(epoch, bisect.bisect_right(ends, place) // GROUP_BLOCKS)
        return order[place - begin]


class Mixture:
    """Maps global row i to (stream, index within that stream), with exact quotas and no state.

    A cycle is `length` rows. Up to the end of any cycle a stream has had weight x rows of them, to within one
    (differences of rounded-down cumulative weights); (seed, cycle) shuffles the rows of a cycle."""

    def __init__(self, weights: Sequence[float], seed: int):
        total = sum(weights)
        self.edges = [0.0, *(edge / total for edge in itertools.accumulate(weights[:-1])), 1.0]
        self.length, self.seed = max(1024, int(np.ceil(2 * total / min(weights)))), seed
        self.cycle = functools.lru_cache(2)(self._cycle)

    def _cycle(self, cycle: int) -> tuple[list[int], np.ndarray]:
        """Rows of each stream before a cycle, and the streams of its rows, (length,)."""
        before, after = (np.diff([int(number * self.length * edge) for edge in self.edges])
                         for number in (cycle, cycle + 1))
        streams = np.repeat(np.arange(len(before)), after - before)
        return before.tolist(), streams[permutation(self.length, self.seed, cycle)]

    def __call__(self, i: int) -> tuple[int, int]:
        cycle, place = divmod(i, self.length)
        before, order = self.cycle(cycle)
        stream = int(order[place])
        return stream, before[stream] + int(np.count_nonzero(order[:place] == stream))


class PretrainRows:
    """Rows of a mixture of streams, each a pure function of the streams, weights, seed and its number.

    `weights`: shares of the rows; None: every row of every stream once an epoch, in one shuffled order.
    `layout`: (stream, T) -> the rows of a stream: `PackedBlocks`, or a class with its methods.
    """

    def __init__(self, streams: Sequence[TokenStream], sequence_length: int, seed: int, *,
                 weights: Sequence[float] | None = None,
                 layout: Callable[[TokenStream, int], Any] = PackedBlocks):
        self.streams, self.T = streams, sequence_length
        self.warnings: list[str] = []
        self.layouts = [layout(stream, sequence_length) for stream in streams]
        blocks = [[(stream, block, rows) for block, rows in enumerate(layout.counts())]
                  for stream, layout in enumerate(self.layouts)]
        self.size = sum(rows for own in blocks for _, _, rows in own)  # of an epoch
        self.mixture = Mixture(weights, seed) if weights is not None and len(streams) > 1 else None
        if self.mixture:
            self.orders = [ShuffledBlocks(own, seed, number) for number, own in enumerate(blocks)]
        else:
            self.orders = [ShuffledBlocks(list(itertools.chain(*blocks)), seed)]

    def batch(self, step: int, size: int) -> range:
        """Row numbers of global batch `step`."""
        return range(step * size, (step + 1) * size)

    def locate(self, i: int) -> tuple[int, int, int]:
        """(stream, block, row within the block) of row i of the run."""
        stream, index = self.mixture(i) if self.mixture else (0, i)
        return self.orders[stream].locate(index)

    def rows(self, numbers: Sequence[int | None]) -> Row:
        """Rows of the run as arrays (B, T); each None at the end gives a row of padding."""
        places = [self.locate(number) for number in numbers if number is not None]
        rows = [self.layouts[stream].row(block, row) for stream, block, row in places]
        return stack(rows, len(numbers), self.T)

    def row(self, i: int) -> Row:
        """Row i of the run, padded to T."""
        return Row(*(array[0] for array in vars(self.rows([i])).values()))

    def names(self, batch: Sequence[int]) -> list[str]:
        """STREAM:DOCUMENT+DOCUMENT of each row; documents are numbered from 0 in their stream."""
        places = ((self.streams[stream].prefix, self.layouts[stream].documents(block, row))
                  for stream, block, row in map(self.locate, batch))
        return [f"{Path(prefix).name}:{'+'.join(map(str, documents))}" for prefix, documents in places]


# ------------------------------------------------------------------------------------------------- exam items

@dataclass
class Example:
    """One exam item or conversation as tokens: a prompt carries no loss, a target and its EOS do."""

    key: str
    ids: Sequence[int]
    prompt_length: int
    later_prompts: Sequence[tuple[int, int]] = ()  # [first, end) of further prompts of a conversation


def truncate_prompt(ids: list[int], length: int, bos_id: int | None) -> list[int]:
    """The last `length` ids of a prompt; a leading BOS is kept.

    >>> truncate_prompt([1, 5, 6, 7, 8], 3, bos_id=1), truncate_prompt([5, 6, 7, 8], 3, bos_id=1)
    ([1, 7, 8], [6, 7, 8])
    """
    if len(ids) <= length:
        return ids
    bos = [bos_id] if bos_id is not None and ids[0] == bos_id else []
    return bos + ids[len(ids) - length + len(bos):]


def encode_example(item: ExamItem, tokenizer: Tokenizer, max_length: int, *, rationale: bool,
                   style: str) -> tuple[Example, str]:
    """(example of at most max_length + 1 tokens, the last of them only a label; TRUNCATED, or "" if whole).

    Prompt and target are encoded separately, in training and in generation alike, so no token crosses the
    mask's border [docs/method.md, D19]. If too long, the target is truncated on the left to the space that
    the prompt leaves, but not below 3/4 of max_length; then the prompt on the left, after its BOS. The answer
    comes last and is kept.
    # DIFFERS: the official code truncates on the right, which removes the answer [D19].
    """
    prompt = tokenizer.encode(build_prompt(item, rationale, style), bos=tokenizer.bos_id is not None)
    target = tokenizer.encode(build_target(item, rationale), eos=True, continued=True)
    if len(prompt) + len(target) <= max_length + 1:
        return Example(item.key, prompt + target, len(prompt)), ""
    target = target[-max(1, max_length * 3 // 4, max_length + 1 - len(prompt)):]
    prompt = truncate_prompt(prompt, max_length + 1 - len(target), tokenizer.bos_id)
    return Example(item.key, prompt + target, len(prompt)), TRUNCATED


class ExamRows:
    """Exam items as packed rows: batch k is `global_batch_size` examples of a shuffled order.

    `modes` (True, False) gives every item twice, with and without its rationale.  # MMedLM: finetune/train.py
    """

    streams: Sequence[TokenStream] = ()  # as `PretrainRows` has them

    def __init__(self, items: Sequence[ExamItem], tokenizer: Tokenizer, sequence_length: int, seed: int, *,
                 modes: Sequence[bool] = (True, False), style: str = "clean"):
        self.T, self.seed = sequence_length, seed
        self.collect(encode_example(item, tokenizer, sequence_length, rationale=mode, style=style)
                     if item.rationale.strip() or not mode else (None, NO_RATIONALE)
                     for mode, item in itertools.product(modes, items))
        if not self.examples:
            raise UserError("no exam item has a rationale; use --rationales=without, or add rationales first")

    def collect(self, encoded: Iterable[tuple[Example | None, str]]) -> None:
        """Keep the examples, in 4 bytes a token, and count their outcomes ("" if whole) as warnings."""
        self.examples: list[Example] = []
        outcomes: Counter[str] = Counter()
        for example, outcome in encoded:
            outcomes[outcome] += 1
            if example:
                self.examples.append(replace(example, ids=array("I", example.ids)))
        self.size = len(self.examples)  # of an epoch
        self.warnings = [f"{count} {outcome}" for outcome, count in outcomes.items() if outcome]

    def batch(self, step: int, size: int) -> list[Example]:
        """The examples of global batch `step`; an epoch's last batch runs over into the next epoch."""
        n, examples = len(self.examples), []
        numbers = range(step * size, (step + 1) * size)
        for epoch, part in itertools.groupby(numbers, key=lambda number: number // n):
            order = permutation(n, self.seed, epoch)
            examples += [self.examples[order[number % n]] for number in part]
        return examples

    def names(self, batch: Sequence[Example]) -> list[str]:
        return [example.key for example in batch]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Pack examples into rows of at most T tokens: longest first, each into the first row with space."""
        rows: list[list[Example]] = [[] for _ in examples]
        free = [self.T] * len(rows)
        for example in sorted(examples, key=lambda example: -len(example.ids)):
            need = len(example.ids) - 1
            place = next(row for row, space in enumerate(free) if space >= need)
            rows[place].append(example)
            free[place] -= need
        return [pack(row) for row in rows if row]


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
