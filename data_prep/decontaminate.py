"""Drop documents that contain a benchmark question.

    python -m data_prep.decontaminate IN... --benchmark MMedBench/Test --out DIR [--workers N]

In:  documents (data_prep/documents.py) and exam items (`question`): .jsonl or .jsonl.gz, a file or a folder.
Out: OUT/kept; OUT/dropped with `items` (FILE:LINE of the questions found); OUT/funnel.json.

1. Each question yields its n-grams of WORDS words, or of CHARACTERS characters where one begins in a script
   without spaces (about the same length of speech); a shorter question is one n-gram if it has SHORTEST_WORDS
   or SHORTEST_CHARACTERS. Tokens are minhash.py's: case, width and punctuation do not matter.
2. An n-gram that more than COMMON questions share ("which of the following is the most likely diagnosis ...")
   identifies none of them and is skipped, unless a question has no other.
3. A document is dropped if it contains one n-gram. N-grams are compared by 64-bit hashes.

DIFFERS: the official code does not look for benchmark questions in the corpus. N-grams of 13 words are
GPT-3's (Brown et al. 2020, appendix C). Questions too short to differ from ordinary sentences are counted
and named, not looked for.
"""
from __future__ import annotations

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.documents import Document, find_inputs
from data_prep.filters import minhash
from data_prep.pipeline.shards import ShardWriter, add_shard_arguments, run_step
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import read_jsonl

WORDS, CHARACTERS = 13, 20
SHORTEST_WORDS, SHORTEST_CHARACTERS = 6, 10
COMMON = 3
MOST_ITEMS = 5  # named for each document

NGrams = dict[int, dict[int, list[str]]]  # size -> hash -> the questions that contain it


def read_items(path: Path) -> list[tuple[str, str]]:
    """(FILE:LINE, question) of every exam item below a path."""
    folder = path if path.is_dir() else path.parent
    items: list[tuple[str, str]] = []
    for file in find_inputs([path], (".jsonl", ".jsonl.gz")):
        for number, record in read_jsonl(file):
            question = record.get("question")
            if isinstance(question, str) and question.strip():
                items.append((f"{file.relative_to(folder).as_posix()}:{number}", question))
            elif "reason" not in record:  # dropped.jsonl of data_prep.mmedbench lists unusable questions
                raise UserError(f"{file}:{number}: expected an exam item with a question")
    return items


def question_ngrams(question: str) -> list[tuple[int, int]]:
    """(size in tokens, hash) of each n-gram of a question; none if it is too short.

    >>> [size for size, _ in question_ngrams("Which vitamin is missing in scurvy?")]
    [6]
    """
    words = minhash.token_hashes(question)
    count = len(words.hashes)
    found: list[tuple[int, int]] = []
    for size, unspaced in ((WORDS, False), (CHARACTERS, True)):
        hashes = minhash.window_hashes(words.hashes, size)
        found += [(size, value) for value in hashes[words.unspaced[:len(hashes)] == unspaced].tolist()]
    if not found and count and count >= (SHORTEST_CHARACTERS if words.unspaced[0] else SHORTEST_WORDS):
        found = [(count, int(minhash.window_hashes(words.hashes, count)[0]))]
    return list(dict.fromkeys(found))


def benchmark_ngrams(items: list[tuple[str, str]]) -> tuple[NGrams, list[str]]:
    """Return (n-grams to look for, items that are too short)."""
    names_of: dict[tuple, list[str]] = {}  # n-grams of a question -> the items that ask it
    for name, question in items:
        names_of.setdefault(tuple(question_ngrams(question)), []).append(name)
    short = names_of.pop((), [])
    questions_with = Counter(ngram for ngrams in names_of for ngram in ngrams)
    wanted: NGrams = {}
    for ngrams, names in names_of.items():
        for size, value in [ngram for ngram in ngrams if questions_with[ngram] <= COMMON] or ngrams:
            wanted.setdefault(size, {}).setdefault(value, []).extend(names)
    return wanted, short


@functools.cache
def _wanted(benchmark: Path, digest: str) -> NGrams:
    """`digest` changes when the benchmark's content does."""
    return benchmark_ngrams(read_items(benchmark))[0]


def contained_items(text: str, wanted: NGrams) -> Counter[str]:
    """The questions that a text contains, with the number of their n-grams."""
    words = minhash.token_hashes(text).hashes
    found: Counter[str] = Counter()
    for size, names in wanted.items():
        for value in names.keys() & minhash.window_hashes(words, size).tolist():
            found.update(names[value])
    return found


def decontaminate_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    wanted = _wanted(options["benchmark"], options["digest"])
    for document in documents:
        if items := contained_items(document.text, wanted):
            shard.drop(document, "benchmark question", items=sorted(items)[:MOST_ITEMS])
        else:
            shard.keep(document)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.decontaminate",
                    description="Drop documents that contain a benchmark question.")
    add_shard_arguments(parser)
    parser.add_argument("--benchmark", required=True, type=Path,
                        help="exam items (JSONL with `question`): a file or a folder")
    given = parser.parse_args(argv)
    items = read_items(given.benchmark)
    ngrams, short = benchmark_ngrams(items)
    if not ngrams:
        raise UserError(f"--benchmark={given.benchmark}: of {len(items)} questions (in *.jsonl) none is long "
                        "enough to look for")
    if short:
        print(f"{len(short)} of {len(items)} questions are too short to look for: "
              f"{', '.join(short[:MOST_ITEMS])}", file=sys.stderr)
    options = {"benchmark": given.benchmark, "version": minhash.VERSION,
               "digest": hashlib.sha256(repr(items).encode()).hexdigest()}
    return run_step(decontaminate_shard, "decontaminate", options, given,
                    f"decontaminate ({len(items) - len(short)} questions)")


if __name__ == "__main__":
    main_guard(main)
