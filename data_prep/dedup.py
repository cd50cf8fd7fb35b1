"""Remove exact and near duplicates from the corpus: MinHash LSH, then a check on the texts.

    python -m data_prep.dedup IN... --out DIR [--threshold 0.8] [--workers N]

In:  documents (data_prep/documents.py), any number of files.
Out: OUT/kept; OUT/dropped with `reason` ("exact duplicate" or "near duplicate"), `duplicate_of` (the id of a
     kept document) and `jaccard` (of the texts) or `estimated_jaccard` (of the signatures); OUT/signatures,
     which may be deleted afterwards; OUT/funnel.json.

    sign     each shard: signatures (data_prep/filters/minhash.py), hash of the normal form, length
    pair     all signatures: pairs that agree on a whole band of the signature are candidates
    compare  each shard: the shingles of the documents in pairs whose estimate is near the threshold
    decide   all pairs, the better documents first: which are duplicates, by the shingles where there are some
    write    each shard: kept and dropped documents

On a cluster, many tasks sign, compare and write (`--stage sign --shard i/n`); one pairs and decides, with
about 100 bytes of memory a document. The longest of similar documents stays; ties are broken by hashes of the
content, so neither file order nor the number of workers matters. A document is dropped only if it is like one
that stays: in connected components (datatrove), a chain of small edits can remove a dissimilar one.

DIFFERS: the official code removes no duplicates (CulturaX was deduplicated before). We do, as an optional
step, since books, sites and web pages repeat each other.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, pairwise, repeat
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.filters import minhash
from data_prep.pipeline import shards
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json, writing

STAGES = ("sign", "pair", "compare", "decide", "write")
SHARED = ("sign", "compare", "write")  # by many tasks
THRESHOLD = 0.8
CANDIDATE_RECALL = 0.99  # share of the pairs at the threshold that the bands must find
CHUNK = 1 << 16  # pairs looked at together
COLUMNS = 16  # of the signatures in memory at once while pairs are compared
DOCUMENT = [("exact", "<u8"), ("characters", "<i8"), ("record", "<u8")]  # exact, record: hashes
PAIR = [("better", "<i8"), ("worse", "<i8"), ("similarity", "<f8"),
        ("checked", "?")]  # near the threshold: the similarity is that of the texts


class Run:
    """Inputs and options of a run, and where its stages leave their results, most of them by input."""

    def __init__(self, inputs: list[str | Path], out: Path, threshold: float, options: dict[str, Any]):
        paths = find_inputs(inputs, out=out)
        # The order in which the files are given does not matter.
        self.names, self.paths = map(list, zip(*sorted(zip(shards.shard_names(paths), paths))))
        self.out, self.threshold, self.options = out, threshold, options
        reading = {"version": minhash.VERSION, **{key: options.get(key) for key in shards.READING}}
        prints = [shards.fingerprint(path, reading)[:16] for path in self.paths]
        state = hashlib.sha256(json.dumps([threshold, self.names, prints]).encode()).hexdigest()[:16]
        self.signed = [out / "signatures" / f"{name}-{each}.npz" for name, each in zip(self.names, prints)]
        self.folder = out / "signatures" / state
        self.wanted, self.shingles, self.verdicts = (
            [self.folder / f"{name}.{ending}" for name in self.names]
            for ending in ("wanted.json", "hashes.npz", "verdicts.json"))
        self.documents, self.pairs, self.decided = (
            self.folder / name for name in ("documents.npz", "pairs.bin", "decided.json"))


def sign_shard(path: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the signatures of one input file to `file` unless they are there."""
    if file.exists():
        return
    documents, minima, ids = [], [np.zeros((0, minhash.PERMUTATIONS), np.uint16)], []
    for document in shards.read_shard(path, Funnel(), options):
        signed = minhash.signatures([document.text])
        record = json.dumps(document.to_dict(), sort_keys=True)  # distinguishes records with the same text
        record_hash = int.from_bytes(hashlib.blake2b(record.encode(), digest_size=8).digest(), "little")
        documents.append((signed.exact[0], len(document.text), record_hash))
        minima.append(signed.minima)
        ids.append(document.id)
    with atomic_write(file, "wb") as opened:
        np.savez(opened, documents=np.array(documents, DOCUMENT), minima=np.concatenate(minima),
                 ids=np.frombuffer(json.dumps(ids).encode(), np.uint8))


def best_first(documents: np.ndarray) -> np.ndarray:
    """The numbers of the documents, the longest first."""
    return np.lexsort((documents["record"], documents["exact"], -documents["characters"]))


def linked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key the places of the first equal one, and of the last equal one before it (none: its own).

    >>> [places.tolist() for places in linked(np.array([7, 5, 7, 7]))]
    [[0, 1, 0, 0], [0, 1, 0, 2]]
    """
    by_key = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[1:] = keys[by_key[1:]] == keys[by_key[:-1]]
    begins, first, previous = np.arange(len(keys)), np.empty_like(by_key), np.arange(len(keys))
    begins[again] = 0
    first[by_key] = by_key[np.maximum.accumulate(begins, out=begins)]
    at = np.flatnonzero(again)
    previous[by_key[at]] = by_key[at - 1]
    return first, previous


def exact_copies(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(documents with the normal form of a better one, the best one of each)."""
    order = best_first(documents)
    order = order[documents["exact"][order] > 0]
    first, _ = linked(documents["exact"][order])
    copies = np.flatnonzero(first < np.arange(len(first)))
    return order[copies], order[first[copies]]


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


def read_column(columns: IO[bytes], number: int, total: int) -> np.ndarray:
    """One of the PERMUTATIONS minima of all documents."""
    columns.seek(2 * number * total)
    return np.fromfile(columns, np.uint16, total)


def read_pairs(file: IO[bytes]) -> Iterator[np.ndarray]:
    """The PAIRs of a file, CHUNK at a time."""
    with file:
        file.seek(0)
        while len(part := np.fromfile(file, PAIR, CHUNK)):
            yield part


def candidates(columns: IO[bytes], ranked: np.ndarray, total: int, threshold: float,
               folder: Path) -> Iterator[np.ndarray]:
    """PAIRs that agree on a band: each document with the best one in the band and the next better one.

    In the order of `ranked`, which is from the best to the worst: of the worse ones, then of the better ones.
    """
    (bands, rows), count = band_shape(threshold), len(ranked)
    with tempfile.TemporaryFile(dir=folder) as file:
        for band in range(bands):
            keys = np.zeros(count, np.uint64)
            for number in range(band * rows, (band + 1) * rows):
                keys += read_column(columns, number, total)[ranked]
                keys *= minhash.BASE
            for places in linked(keys):
                file.write(places)
        step = max(1, CHUNK // (2 * bands))
        for begin in range(0, count, step):
            worse = np.arange(begin, min(begin + step, count))
            found = np.zeros((2 * bands, len(worse)), np.int64)
            for number, better in enumerate(found):
                file.seek(8 * (number * count + begin))
                better[:] = np.fromfile(file, np.int64, len(worse))
            found = np.unique((worse * count + found)[found < worse])
            pairs = np.zeros(len(found), PAIR)
            pairs["worse"], pairs["better"] = (ranked[places] for places in np.divmod(found, count))
            yield pairs


def find_pairs(columns: IO[bytes], ranked: np.ndarray, total: int, threshold: float,
               folder: Path) -> Iterator[np.ndarray]:
    """PAIRs that may be similar, with the estimated similarity, and whether the texts must be compared."""
    margin = 3 * math.sqrt(threshold * (1 - threshold) / minhash.PERMUTATIONS) + 1e-9  # standard errors
    parts = candidates(columns, ranked, total, threshold, folder)
    ends = [*range(0, minhash.PERMUTATIONS, COLUMNS), minhash.PERMUTATIONS]
    for begin, end in pairwise([0, *ends]):  # the first pass compares no column: it writes all candidates
        group = [read_column(columns, number, total) for number in range(begin, end)]
        possible = (threshold - margin) * minhash.PERMUTATIONS - (minhash.PERMUTATIONS - end)
        file = tempfile.TemporaryFile(dir=folder)
        for part in parts:
            better, worse = part["better"].copy(), part["worse"].copy()
            part["similarity"] += sum(column[better] == column[worse] for column in group)
            file.write(part[part["similarity"] >= possible])
        parts = read_pairs(file)
    for part in parts:
        part["similarity"] /= minhash.PERMUTATIONS
        part["checked"] = part["similarity"] <= threshold + margin
        yield part


def read_signatures(run: Run, columns: IO[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write all minima to `columns`; returns the documents, which have words, and where shards end."""
    parts, words = [], []
    with tempfile.TemporaryFile(dir=run.folder) as rows:
        for file in run.signed:  # one open file, however many shards
            with np.load(file) as arrays:
                documents, minima = arrays["documents"], arrays["minima"]
            parts.append(documents)
            words.append(minima.any(axis=1))
            rows.write(minima)
        ends = np.cumsum([0, *map(len, parts)])
        rows.seek(0)
        for begin in range(0, ends[-1], CHUNK):
            minima = np.fromfile(rows, (np.uint16, minhash.PERMUTATIONS), CHUNK)
            for number, column in enumerate(minima.T):
                columns.seek(2 * (number * ends[-1] + begin))
                columns.write(column.tobytes())
    return np.concatenate(parts), np.concatenate(words), ends


def pair(run: Run) -> None:
    """Write all pairs, and for each shard the rows of the documents to be compared."""
    with atomic_write(run.pairs, "wb") as opened, tempfile.TemporaryFile(dir=run.folder) as columns:
        documents, single, ends = read_signatures(run, columns)
        single[exact_copies(documents)[0]] = False
        order, unsure = best_first(documents), np.zeros(len(documents), bool)
        for pairs in find_pairs(columns, order[single[order]], len(documents), run.threshold, run.folder):
            checked = pairs[pairs["checked"]]
            unsure[checked["better"]] = unsure[checked["worse"]] = True
            opened.write(pairs)
        with atomic_write(run.documents, "wb") as file:
            np.savez(file, documents=documents, ends=ends, bytes_of_pairs=opened.tell())
        for path, (begin, end) in zip(run.wanted, pairwise(ends)):
            write_json(path, np.flatnonzero(unsure[begin:end]).tolist())


def compare_shard(path: Path, wanted: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the shingle hashes of the wanted documents of one input file unless they are there."""
    if file.exists():
        return
    rows = set(read_json(wanted, math.inf))
    documents = enumerate(shards.read_shard(path, Funnel(), options) if rows else ())
    found = {row: minhash.shingle_hashes(document.text) for row, document in documents if row in rows}
    sizes = [hashes.nbytes for hashes in found.values()]
    with atomic_write(file, "wb") as opened:
        np.savez(opened, rows=np.array([*found], np.int64), sizes=np.array(sizes, np.int64),
                 hashes=np.concatenate([np.zeros(0, np.uint32), *found.values()]))


class Rows:
    """Bytes of each document, written to a file; in memory, where they end."""

    def __init__(self, file: IO[bytes], rows: Iterable[bytes]):
        self.file, self.ends = file, np.fromiter(accumulate(map(file.write, rows), initial=0), np.int64)
        file.flush()

    def __getitem__(self, number: int) -> bytes:
        begin, end = self.ends[number:number + 2].tolist()
        return os.pread(self.file.fileno(), end - begin, begin)


def read_shingles(run: Run, ends: list[int]) -> Iterator[bytes]:
    """The hashed shingles of each document, none of those that are in no pair to be checked."""
    for file, (begin, end) in zip(run.shingles, pairwise(ends)):
        sizes = np.zeros(end - begin, np.int64)
        with np.load(file) as arrays:
            sizes[arrays["rows"]], data = arrays["sizes"], arrays["hashes"].tobytes()
        for first, last in pairwise(accumulate(sizes.tolist(), initial=0)):
            yield data[first:last]


def read_ids(run: Run) -> Iterator[bytes]:
    """The id of each document as JSON."""
    for file in run.signed:
        with np.load(file) as arrays:
            ids = json.loads(arrays["ids"].tobytes())
        yield from (json.dumps(each).encode() for each in ids)


def find_originals(documents: np.ndarray, parts: Iterable[np.ndarray], shingles: Rows,
                   threshold: float) -> np.ndarray:
    """For each document its PAIR with the kept one that it is a duplicate of (similarity 0: an exact copy;
    better -1: there is none, it is kept). parts: the pairs, those of better documents first.
    """
    found, (copies, first) = np.zeros(len(documents), PAIR), exact_copies(documents)
    original = found["better"]
    original[:] = -1
    original[copies] = first
    for better, worse, similarity, checked in chain.from_iterable(part.tolist() for part in parts):
        if original[better] < 0 and original[worse] < 0:
            if checked:
                one, other = (np.frombuffer(shingles[number], np.uint32) for number in (better, worse))
                similarity = minhash.jaccard(one, other)
            if similarity >= threshold:
                found[worse] = better, worse, similarity, checked
    # An exact copy of a dropped near duplicate is a near duplicate of the same kept document.
    moved = copies[original[first] >= 0]
    found[moved] = found[original[moved]]
    return found


def decide(run: Run) -> None:
    """For each shard a file: row -> what dropped/ says of that document."""
    with np.load(run.documents) as arrays:
        documents, ends, size = arrays["documents"], arrays["ends"].tolist(), arrays["bytes_of_pairs"]
    if run.pairs.stat().st_size != size:
        raise UserError(f"{run.pairs}: not the whole file; delete {run.folder} and run again")
    with writing(run.folder), tempfile.TemporaryFile(dir=run.folder) as file:
        shingles = Rows(file, read_shingles(run, ends))
        found = find_originals(documents, read_pairs(open(run.pairs, "rb")), shingles, run.threshold)
    with writing(run.folder), tempfile.TemporaryFile(dir=run.folder) as file:
        ids = Rows(file, read_ids(run))
        for path, (begin, end) in zip(run.verdicts, pairwise(ends)):
            verdicts: dict[str, dict[str, Any]] = {}
            for row, (original, _, similarity, checked) in enumerate(found[begin:end].tolist()):
                if original >= 0:
                    verdict = {"reason": "exact duplicate", "duplicate_of": json.loads(ids[original])}
                    if similarity:
                        verdict["reason"] = "near duplicate"
                        verdict["jaccard" if checked else "estimated_jaccard"] = round(similarity, 4)
                    verdicts[str(row)] = verdict
            write_json(path, verdicts)
    write_json(run.decided, True)


def write_shard(documents: Iterator[Document], shard: shards.ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard as decided."""
    dropped = read_json(options["verdicts"], math.inf)
    for row, document in enumerate(documents):
        if verdict := dropped.get(str(row)):
            shard.drop(document, **verdict)
        else:
            shard.keep(document)


def run_stage(stage: str, run: Run, workers: int, share: shards.Share | None) -> Funnel | None:
    """One stage, or a share of it; finished work is skipped. The last one returns the counts."""
    needs = {"pair": run.signed, "compare": [run.pairs], "decide": run.shingles, "write": [run.decided]}
    if not all(file.exists() for file in needs.get(stage, ())):
        before = STAGES[STAGES.index(stage) - 1]
        raise UserError(f"{run.folder}: --stage {before} is not done for these inputs; run it first")
    if stage == "sign":
        jobs = list(zip(run.paths, run.signed, ({**run.options, "name": name} for name in run.names)))
        shards.run_jobs(sign_shard, jobs, workers, stage, run.paths, share)
    elif stage == "pair" and not run.pairs.exists():
        pair(run)
    elif stage == "compare":
        jobs = list(zip(run.paths, run.wanted, run.shingles, repeat(run.options)))
        shards.run_jobs(compare_shard, jobs, workers, stage, run.paths, share)
    elif stage == "decide" and not run.decided.exists():
        decide(run)
    elif stage == "write":
        options = {**run.options, "state": run.folder.name}
        jobs = [(write_shard, path, name, run.out, {**options, "verdicts": file}, "dedup")
                for path, name, file in zip(run.paths, run.names, run.verdicts)]
        records = shards.run_jobs(shards.process_shard, jobs, workers, stage, run.paths, share)
        if not share:
            return shards.write_funnel(run.out, records, "dedup", threshold=run.threshold)
    return None


def deduplicate(inputs: list[str | Path], out: str | Path, threshold: float = THRESHOLD, workers: int = 1,
                options: dict[str, Any] | None = None, stage: str = "all",
                share: shards.Share | None = None) -> Funnel | None:
    """All STAGES or one of them; returns the counts after the last. options: as of a step."""
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold={threshold}: must be above 0 and at most 1")
    if share and stage not in SHARED:
        raise UsageError(f"--shard: needs --stage {', '.join(SHARED)}; the other stages are one task")
    run = Run(inputs, Path(out), threshold, options or {})
    with shards.one_run(run.out, share, run.names):
        stages = STAGES[-1:] if run.decided.exists() else STAGES
        for each in stages if stage == "all" else (stage,):
            funnel = run_stage(each, run, workers, share)
    return funnel


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.dedup", description="Remove exact and near duplicates.")
    shards.add_shard_arguments(parser)
    parser.add_argument("--threshold", type=float, default=THRESHOLD,
                        help="Jaccard similarity of shingles of duplicates (default: %(default)s)")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all",
                        help="one stage, for jobs on a cluster")
    given = parser.parse_args(argv)
    funnel = deduplicate(given.inputs, given.out, given.threshold, given.workers,
                         shards.shard_options(given), given.stage, given.shard)
    if funnel:
        shards.print_funnel(funnel, "dedup")
    return 0


if __name__ == "__main__":
    main_guard(main)
