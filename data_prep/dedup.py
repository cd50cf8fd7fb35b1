"""Remove exact and near duplicates from the corpus: MinHash LSH, then a check on the texts.

    python -m data_prep.dedup IN... --out DIR [--threshold 0.8] [--workers N]

In:  documents (data_prep/documents.py), any number of files. Out: OUT/kept; OUT/dropped with `reason` ("exact
     duplicate" or "near duplicate"), `duplicate_of` (the id of a kept document) and `jaccard` (checked on the
     texts) or `estimated_jaccard` (from the signatures); OUT/funnel.json; OUT/signatures, which may be
     deleted afterwards.

    sign    each shard: signatures (data_prep/filters/minhash.py), hash of the normal form, length
    decide  over all shards: pairs that agree on a whole band of the signature are candidates; an estimate
            clearly above the threshold is a duplicate, clearly below is not; in between, the true similarity
    of the texts decides write   each shard: kept and dropped documents

On a cluster, sign and write are run by many tasks (`--stage sign --shard i/n`), decide by one.

The longest of similar documents stays; ties are broken by hashes of the content, so neither file order nor
the number of workers matters. A document is dropped only if it is like a document that stays: unlike
connected components (datatrove), a chain of small edits cannot remove a document that is dissimilar to the
one kept.

Memory while deciding: about 100 bytes a document, and the hashed shingles of the pairs to be checked;
signatures are read from one file on disk (256 bytes a document).

DIFFERS: the official code removes no duplicates (CulturaX was deduplicated before). We do, as an optional
step, since books, sites and web pages repeat each other.
"""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.filters import minhash
from data_prep.pipeline.shards import (
    READING,
    ShardWriter,
    Share,
    add_shard_arguments,
    fingerprint,
    gather_funnel,
    one_run,
    print_funnel,
    process_shard,
    read_shard,
    refuse_strangers,
    run_jobs,
    shard_names,
    shard_options,
)
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

THRESHOLD = 0.8
CANDIDATE_RECALL = 0.99  # share of the pairs at the threshold that the bands must find
BATCH = 1000  # documents signed together
CHUNK = 1 << 16  # documents or pairs looked at together
STAGES = ("all", "sign", "decide", "write")
FACTS = [("exact", "<u8"), ("tokens", "<i8"), ("characters", "<i8"), ("record", "<u8")]


def band_shape(threshold: float, permutations: int = minhash.PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows) of the LSH: the most rows a band with which the bands still find pairs at the threshold.

    A pair of similarity J agrees on all rows of a band with probability J**rows.

    >>> band_shape(0.8, 128)
    (21, 6)
    """
    for rows in range(permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= CANDIDATE_RECALL:
            return permutations // rows, rows
    return permutations, 1


# ---- sign ----------------------------------------------------------------------------------------


def sign_shard(path: Path, name: str, folder: Path, options: dict[str, Any]) -> int:
    """Write the signatures of one input file unless they are there; returns the number of documents."""
    reading = {key: options[key] for key in READING if key in options}
    mark = fingerprint(path, {"step": "sign", "version": minhash.VERSION, **reading})
    done = folder / f"{name}.json"
    if done.exists() and (record := read_json(done)).get("fingerprint") == mark:
        return record["documents"]
    done.unlink(missing_ok=True)
    minima, facts, ids = [], [], []
    for batch in _batches(read_shard(path, Funnel(), options)):
        signed = minhash.signatures([document.text for document in batch])
        minima.append(signed.minima)
        for document, exact, tokens in zip(batch, signed.exact, signed.tokens):
            facts.append((exact, tokens, len(document.text), _record_hash(document)))
            ids.append(document.id)
    with atomic_write(folder / f"{name}.npz", "wb") as file:
        np.savez(file, facts=np.array(facts, FACTS),
                 minima=np.concatenate([np.zeros((0, minhash.PERMUTATIONS), np.uint16), *minima]))
    write_json(folder / f"{name}.ids.json", ids)
    write_json(done, {"fingerprint": mark, "documents": len(ids)})
    return len(ids)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH or size >= minhash.PIECE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record_hash(document: Document) -> int:
    """Tells records of one text apart, whatever file they are in."""
    rest = json.dumps([document.id, document.language, document.source, document.meta], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(f"{rest}\0{document.text}".encode(), digest_size=8).digest(),
                          "little")


# ---- decide --------------------------------------------------------------------------------------
#
#   index   position of a document among all, in the order of the shards and of their rows
#   rank    position from the best (longest) to the worst; everything below speaks of ranks


class Signed:
    """The signatures of all shards, in one file: one file handle, however many shards there are."""

    def __init__(self, folder: Path, names: list[str]):
        facts, sizes = [], []
        with atomic_write(folder / "all.minima", "wb") as file:
            for name in names:
                with np.load(folder / f"{name}.npz") as arrays:
                    facts.append(arrays["facts"])
                    file.write(arrays["minima"].astype("<u2").tobytes())
                sizes.append(len(facts[-1]))
        table = np.concatenate(facts)
        self.first = np.cumsum([0, *sizes])  # index of each shard's first document
        # The order of the shards breaks ties between records that are equal in everything.
        self.order = np.lexsort((table["record"], table["exact"], -table["characters"]))
        self.exact, self.tokens = table["exact"][self.order], table["tokens"][self.order]
        shape = (len(table), minhash.PERMUTATIONS)
        self.minima = np.memmap(folder / "all.minima", "<u2", "r",
                                shape=shape) if len(table) else np.zeros(shape, "<u2")

    def place(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row) of documents."""
        index = self.order[ranks]
        shard = np.searchsorted(self.first, index, side="right") - 1
        return shard, index - self.first[shard]

    def estimate(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The estimated similarity of pairs."""
        found = [np.zeros(0)]
        for begin in range(0, len(one), CHUNK):
            left, right = (self.minima[self.order[ranks[begin:begin + CHUNK]]] for ranks in (one, other))
            found.append(minhash.estimated_jaccard(left, right))
        return np.concatenate(found)

    def band_keys(self, begin: int, end: int) -> np.ndarray:
        """A hash of the columns begin..end of every signature, by rank."""
        keys = np.zeros(len(self.order), np.uint64)
        for start in range(0, len(keys), CHUNK):
            columns = np.asarray(self.minima[start:start + CHUNK, begin:end], np.uint64)
            for column in columns.T:
                part = keys[start:start + CHUNK]
                part *= minhash.BASE
                part += column + np.uint64(1)
                part ^= part >> np.uint64(29)
        return keys[self.order]


@dataclass
class Verdict:
    """By rank: the kept document that each is a duplicate of, or -1; their similarity (2: exact copies); was
    it checked on the texts?"""

    duplicate_of: np.ndarray
    similarity: np.ndarray
    checked: np.ndarray


def _linked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each item that is not the first with its key: (item, the first one, the one before it).

    >>> import numpy as np
    >>> [part.tolist() for part in _linked(np.array([7, 5, 7, 7]))]
    [[2, 3], [0, 0], [0, 2]]
    """
    by_key = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[1:] = keys[by_key[1:]] == keys[by_key[:-1]]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(keys))))
    at = np.flatnonzero(again)
    return by_key[at], by_key[first[at]], by_key[at - 1]


def candidate_pairs(signed: Signed, among: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (better, worse) that agree on some band: each document with the band's best and the next better
    one."""
    pairs = np.zeros(0, np.uint64)
    bands, rows = band_shape(threshold)
    for band in range(bands):
        keys = signed.band_keys(band * rows, (band + 1) * rows)[among]
        item, first, previous = (among[part].astype(np.uint64) for part in _linked(keys))
        new = [better << np.uint64(32) | item for better in (first, previous)]
        pairs = np.unique(np.concatenate([pairs, *new]))
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def decide(signed: Signed, threshold: float,
           compare: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Which documents are duplicates; `compare` gives the true similarity of pairs."""
    count = len(signed.order)
    verdict = Verdict(np.full(count, -1), np.full(count, 2.0), np.zeros(count, bool))
    with_text = np.flatnonzero(signed.exact)
    item, first, _ = (with_text[part] for part in _linked(signed.exact[with_text]))
    verdict.duplicate_of[item] = first
    among = np.flatnonzero((verdict.duplicate_of < 0) & (signed.tokens > 0))
    better, worse = candidate_pairs(signed, among, threshold)
    value = signed.estimate(better, worse)
    margin = 3 * math.sqrt(threshold * (1 - threshold) / minhash.PERMUTATIONS)  # three standard errors
    unsure = np.abs(value - threshold) <= margin + 1e-9
    if unsure.any():
        value[unsure] = compare(better[unsure], worse[unsure])
    alike = np.flatnonzero(value >= threshold)
    for pair in alike[np.lexsort((better[alike], worse[alike]))]:
        one, other = better[pair], worse[pair]
        if verdict.duplicate_of[one] < 0 and verdict.duplicate_of[other] < 0:  # the better one is decided
            verdict.duplicate_of[other], verdict.similarity[other] = one, value[pair]
            verdict.checked[other] = unsure[pair]
    # An exact copy of a dropped document is a near duplicate of what that one was dropped for.
    moved = item[verdict.duplicate_of[first] >= 0]
    original = verdict.duplicate_of[moved]
    for column in (verdict.similarity, verdict.checked, verdict.duplicate_of):
        column[moved] = column[original]
    return verdict


def shingle_shard(path: Path, rows: list[int], options: dict[str, Any]) -> list[np.ndarray]:
    """The shingle hashes of some documents of one input file."""
    wanted = set(rows)
    documents = enumerate(read_shard(path, Funnel(), options))
    found = [minhash.shingle_hashes(document.text) for row, document in documents if row in wanted]
    if len(found) != len(rows):
        raise UserError(f"{path}: changed while it was read; start again")
    return found


def true_similarities(signed: Signed, one: np.ndarray, other: np.ndarray, paths: list[Path],
                      options: dict[str, Any],
                      workers: int) -> np.ndarray:
    """The Jaccard similarity of pairs, from their texts, which are read again."""
    parts = list(_by_shard(signed, np.unique(np.concatenate([one, other]))))
    jobs = [(paths[number], rows.tolist(), options) for number, _, rows in parts]
    found = run_jobs(shingle_shard, jobs, workers, "compare", [str(job[0]) for job in jobs])
    shingles = {rank: hashes for (_, ranks, _), part in zip(parts, found)
                for rank, hashes in zip(ranks.tolist(), part)}
    return np.array([minhash.jaccard(shingles[a], shingles[b]) for a, b in zip(one.tolist(), other.tolist())])


def write_verdicts(signed: Signed, verdict: Verdict, names: list[str], folder: Path) -> None:
    """For each shard a file with [row, reason, id of the kept document, key, similarity] of what is
    dropped."""
    dropped = np.flatnonzero(verdict.duplicate_of >= 0)
    kept = np.unique(verdict.duplicate_of[dropped])
    ids: dict[int, str] = {}
    for number, ranks, rows in _by_shard(signed, kept):
        of_shard = read_json(folder / f"{names[number]}.ids.json")
        ids.update((rank, of_shard[row]) for rank, row in zip(ranks.tolist(), rows.tolist()))
    lines: dict[int, list[list[Any]]] = {}
    for number, ranks, rows in _by_shard(signed, dropped):
        for rank, row in zip(ranks.tolist(), rows.tolist()):
            similarity, kept_id = float(verdict.similarity[rank]), ids[int(verdict.duplicate_of[rank])]
            if similarity > 1:
                line = [row, "exact duplicate", kept_id, None, None]
            else:
                key = "jaccard" if verdict.checked[rank] else "estimated_jaccard"
                line = [row, "near duplicate", kept_id, key, round(similarity, 4)]
            lines.setdefault(number, []).append(line)
    for number, name in enumerate(names):
        documents = int(signed.first[number + 1] - signed.first[number])
        write_json(folder / f"{name}.verdicts.json",
                   {"documents": documents, "dropped": lines.get(number, [])})


def _by_shard(signed: Signed, ranks: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, ranks, rows) for each shard that has some of the documents, in the order of the rows."""
    shard, row = signed.place(ranks)
    order = np.lexsort((row, shard))
    borders = np.flatnonzero(np.diff(shard[order])) + 1
    for part in np.split(order, borders) if len(order) else ():
        yield int(shard[part[0]]), ranks[part], row[part]


# ---- write ---------------------------------------------------------------------------------------


def write_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard as decided."""
    verdicts = read_json(options["verdicts"])
    dropped = {row: rest for row, *rest in verdicts["dropped"]}
    count = 0
    for count, document in enumerate(documents, 1):
        if count - 1 in dropped:
            reason, duplicate_of, key, value = dropped[count - 1]
            shard.drop(document, reason, duplicate_of=duplicate_of, **({key: value} if key else {}))
        else:
            shard.keep(document)
    if count != verdicts["documents"]:
        raise UserError(f"{options['verdicts']}: {verdicts['documents']} documents were signed and {count} "
                        f"are there "
                        "now: the input changed; start again")


def deduplicate(inputs: list[str | Path], out: str | Path, threshold: float = THRESHOLD, workers: int = 1,
                options: dict[str, Any] | None = None, stage: str = "all", share: Share
                | None = None) -> Funnel | None:
    """Sign, decide, write, or one of these; finished shards are skipped. options: as in `process_shard`."""
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold={threshold}: must be above 0 and at most 1")
    if share and stage not in ("sign", "write"):
        raise UsageError("--shard: needs --stage sign or --stage write; all shards are decided together")
    out, options = Path(out), dict(options or {})
    paths = find_inputs(inputs)
    names, paths = map(list, zip(*sorted(zip(shard_names(paths), paths))))  # the order given does not matter
    folder, labels = out / "signatures", [str(path) for path in paths]
    with one_run(out, share):
        refuse_strangers(out, names)
        if stage in ("all", "sign"):
            jobs = [(path, name, folder, options) for path, name in zip(paths, names)]
            run_jobs(sign_shard, jobs, workers, "sign", labels, share)
        if stage in ("all", "decide"):
            _decide(names, paths, folder, threshold, options, workers)
        if stage not in ("all", "write"):
            return None
        jobs = []
        for path, name in zip(paths, names):
            verdicts = folder / f"{name}.verdicts.json"
            if not verdicts.is_file():
                raise UserError(f"{verdicts}: missing; run --stage decide first")
            digest = hashlib.sha256(verdicts.read_bytes()).hexdigest()
            jobs.append((write_shard, path, name, out,
                         {**options, "verdicts": str(verdicts), "digest": digest}, "dedup"))
        run_jobs(process_shard, jobs, workers, "write", labels, share)
        return None if share else gather_funnel(out, names, "dedup", threshold=threshold)


def _decide(names: list[str], paths: list[Path], folder: Path, threshold: float, options: dict[str, Any],
            workers: int) -> None:
    missing = [name for name in names if not (folder / f"{name}.json").is_file()]
    if missing:
        raise UserError(f"{folder}: {len(missing)} shards are not signed ({missing[0]}); run --stage sign "
                        f"first")
    signed = Signed(folder, names)
    verdict = decide(signed, threshold, lambda one, other: true_similarities(
        signed, one, other, paths, options, workers))
    write_verdicts(signed, verdict, names, folder)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.dedup", description="Remove exact and near duplicates from "
                                                                  "the corpus.")
    add_shard_arguments(parser)
    parser.add_argument("--threshold", type=float, default=THRESHOLD,
                        help="Jaccard similarity of shingles from which texts are duplicates (default: "
                             "%(default)s)")
    parser.add_argument("--stage", choices=STAGES, default="all",
                        help="one stage only, for jobs on a cluster")
    given = parser.parse_args(argv)
    funnel = deduplicate(given.inputs, given.out, given.threshold, given.workers, shard_options(given),
                         given.stage,
                         given.shard)
    if funnel:
        print_funnel(funnel, "dedup")
    return 0


if __name__ == "__main__":
    main_guard(main)
