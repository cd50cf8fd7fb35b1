"""Drop documents that hold a benchmark question.

In:  documents (data_prep/documents.py) and --benchmark: exam items in JSONL (`question`), a file or a folder of them.
Out: OUT/kept, OUT/dropped with `reason` "benchmark question" and `items` (FILE:LINE of the questions found, at most MOST_ITEMS),
     OUT/funnel.json; OUT/benchmark_runs.json, what was looked for.

    python -m data_prep.decontaminate IN... --out DIR --benchmark MMedBench/Test [--workers N]

1. Each question gives the hashes of its runs of WORDS words, or CHARACTERS characters where a run begins in a script without
   spaces (about the same length of speech); a shorter question is one run, if it has SHORTEST_WORDS or SHORTEST_CHARACTERS. Tokens are
   those of data_prep/filters/minhash.py, so case, spacing, width and punctuation do not matter.
2. A run that more than COMMON questions share ("which of the following is the most likely diagnosis ...") tells no question
   from another and is not looked for, unless a question has no other.
3. A document falls if it holds one run. A hash of 64 bits stands for a run: of 10**5 runs and a corpus of 10**10 tokens,
   one document in 2*10**4 corpora falls by chance.

DIFFERS: the official code does not look for benchmark questions in the corpus; n-grams of 13 words as in GPT-3 (Brown et al.
2020, appendix C). Questions too short to be told from ordinary sentences are counted and named, not looked for.
"""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.documents import Document
from data_prep.filters import minhash
from data_prep.pipeline.shards import (
    ShardWriter,
    add_shard_arguments,
    one_run,
    print_funnel,
    process_shards,
    shard_options,
)
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import read_json, read_jsonl, write_json

WORDS, CHARACTERS = 13, 20
SHORTEST_WORDS, SHORTEST_CHARACTERS = 6, 10
COMMON = 3
MOST_ITEMS = 5
BATCH_CHARACTERS = 1 << 20
OVERLAP = 4000  # characters: 13 words, unless they have 150 letters each


class Runs(NamedTuple):
    sizes: list[int]  # lengths that occur, in tokens
    hashes: np.ndarray  # (runs,) sorted, distinct
    items: list[list[str]]  # of each run some of the questions that hold it
    filter: np.ndarray  # (2**20,) bool: does any hash begin with these bits? Nearly all windows of a document end here


def read_items(path: Path) -> list[tuple[str, str]]:
    """(FILE:LINE, question) of every exam item under a path."""
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    items: list[tuple[str, str]] = []
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        for number, record in read_jsonl(file):
            if not isinstance(record.get("question"), str) or not record["question"].strip():
                raise UserError(f"{file}:{number}: expected an exam item with a question")
            items.append((f"{name}:{number}", record["question"]))
    if not items:
        raise UserError(f"--benchmark {path}: no exam items (*.jsonl) there")
    return items


def question_runs(question: str) -> list[tuple[int, int]]:
    """(length in tokens, hash) of each run of a question; none if it is too short.

    >>> [size for size, _ in question_runs("one two three four five six seven eight nine ten eleven twelve thirteen fourteen")]
    [13, 13]
    >>> [size for size, _ in question_runs("Which vitamin is missing in scurvy?")], question_runs("Why is that?")
    ([6], [])
    """
    token = minhash.token_hashes([question[:minhash.PIECE_CHARACTERS]])
    begin, end = int(token.first[0]), int(token.last[0])
    if begin == end:
        return []
    runs = []
    for size, unspaced in ((WORDS, False), (CHARACTERS, True)):
        hashes, = window_hashes(token, (size,))
        runs += [(size, int(hashes[i])) for i in range(begin, end - size + 1) if token.unspaced[i] == unspaced]
    if not runs and end - begin >= (SHORTEST_CHARACTERS if token.unspaced[begin] else SHORTEST_WORDS):
        runs = [(end - begin, int(window_hashes(token, (end - begin,))[0][begin]))]
    return runs


def window_hashes(token: minhash.Tokens, sizes: Sequence[int]) -> list[np.ndarray]:
    """Hashes of the windows of some texts, the length being part of the hash: so one that runs out of its text equals none."""
    return [hashes ^ np.uint64(size) for size, hashes in zip(sizes, minhash.window_hashes(token.hashes, sizes))]


def benchmark_runs(items: list[tuple[str, str]]) -> tuple[dict[str, Any], list[str]]:
    """({"sizes", "hashes", "items"} to look for, the items that are too short)."""
    holders: dict[tuple[int, int], list[int]] = {}
    of_item = [question_runs(question) for _, question in items]
    questions: dict[tuple, list[int]] = {}  # an item that stands twice counts once
    for number, runs in enumerate(of_item):
        questions.setdefault(tuple(runs), []).append(number)
    for runs, numbers in questions.items():
        for run in dict.fromkeys(runs):
            holders.setdefault(run, []).append(numbers[0])
    wanted: dict[tuple[int, int], list[str]] = {}
    for runs, numbers in questions.items():
        own = [run for run in runs if len(holders[run]) <= COMMON] or runs
        for run in dict.fromkeys(own):
            wanted.setdefault(run, []).extend(items[number][0] for number in numbers)
    found = sorted((run_hash, size, names[:MOST_ITEMS]) for (size, run_hash), names in wanted.items())
    short = [name for (name, _), runs in zip(items, of_item) if not runs]
    return {"sizes": sorted({size for _, size, _ in found}), "hashes": [h for h, _, _ in found], "items": [names for *_, names in found]}, short


@cache
def _load(path: str, digest: str) -> Runs:
    """The runs that `main` wrote; kept for all shards of a process."""
    if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
        raise UserError(f"{path}: changed while this run reads it: is another run with another benchmark writing there? Give it another --out")
    told = read_json(path)
    hashes = np.array(told["hashes"], np.uint64)
    begins = np.zeros(1 << 20, bool)
    begins[hashes >> np.uint64(44)] = True
    return Runs(told["sizes"], hashes, told["items"], begins)


def held_items(texts: Sequence[str], runs: Runs) -> list[list[str]]:
    """For each text the questions that it holds."""
    found: list[list[str]] = [[] for _ in texts]
    begin = 0
    for block in minhash.blocks(texts):
        long = len(block[0]) > minhash.PIECE_CHARACTERS
        for part in ([piece] for piece in _overlapping(block[0])) if long else [block]:
            token = minhash.token_hashes(part)
            for hashes in window_hashes(token, runs.sizes):
                at = np.flatnonzero(runs.filter[hashes >> np.uint64(44)])
                place = np.searchsorted(runs.hashes, hashes[at])
                hit = runs.hashes[np.minimum(place, len(runs.hashes) - 1)] == hashes[at]
                for row, run in zip(np.searchsorted(token.first, at[hit], side="right") - 1, place[hit]):
                    found[begin + int(row)] += runs.items[run]
        begin += len(block)
    return [sorted(set(names)) for names in found]


def _overlapping(text: str) -> Iterator[str]:
    """The pieces of a long text, each with the end of the one before it, so that no run is cut."""
    tail = ""
    for piece in minhash.pieces(text):
        yield tail + piece
        tail = (tail + piece)[-OVERLAP:]
        space = tail.find(" ", 0, OVERLAP // 2)
        tail = tail[space + 1:]  # not half a word


def decontaminate_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep the documents that hold no question."""
    runs = _load(options["runs"], options["digest"])
    batch: list[Document] = []
    size = 0

    def settle() -> None:
        for document, items in zip(batch, held_items([document.text for document in batch], runs)):
            if items:
                shard.drop(document, "benchmark question", items=items[:MOST_ITEMS])
            else:
                shard.keep(document)
        batch.clear()

    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(batch) >= 1000:
            settle()
            size = 0
    settle()


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.decontaminate", description="Drop documents that hold a benchmark question.")
    add_shard_arguments(parser)
    parser.add_argument("--benchmark", required=True, help="exam items (JSONL with `question`): a file or a folder")
    given = parser.parse_args(argv)
    items = read_items(Path(given.benchmark))
    runs, short = benchmark_runs(items)
    if not runs["hashes"]:
        raise UserError(f"--benchmark {given.benchmark}: all {len(items)} questions are too short to look for")
    if short:
        print(f"{len(short)} of {len(items)} questions are too short to look for: {', '.join(short[:MOST_ITEMS])} ...", file=sys.stderr)
    path = Path(given.out) / "benchmark_runs.json"
    with one_run(Path(given.out)):  # not under the feet of a run that reads it
        write_json(path, runs)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    options = {**shard_options(given), "runs": str(path), "digest": digest, "version": minhash.VERSION}
    funnel = process_shards(decontaminate_shard, given.inputs, given.out, options, given.workers, step="decontaminate")
    print_funnel(funnel, f"decontaminate ({len(items) - len(short)} questions)")
    return 0


if __name__ == "__main__":
    main_guard(main)
