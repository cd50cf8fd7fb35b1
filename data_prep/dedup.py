"""Remove exact and near duplicates from the corpus: MinHash LSH, then a check on the texts.

    python -m data_prep.dedup IN... --out DIR [--threshold 0.8] [--workers N]

In:  documents (data_prep/documents.py), any number of files.
Out: OUT/kept; OUT/dropped with `reason` ("exact duplicate" or "near duplicate"), `duplicate_of` (the id of a
     kept document) and `jaccard` (of the texts) or `estimated_jaccard` (of the signatures); OUT/signatures,
     which may be deleted afterwards; OUT/funnel.json.

    sign     each shard: signatures (data_prep/filters/minhash.py), hash of the normal form, length
    pair     all signatures: pairs that agree on a whole band of the signature are candidates
    compare  each shard: the shingles of the documents in pairs whose estimate is near the threshold
    decide   all pairs: which documents are duplicates, by the shingles where there are some
    write    each shard: kept and dropped documents

On a cluster, many tasks sign, compare and write (`--stage sign --shard i/n`), one pairs and decides, which
reads no text. The longest of similar documents stays; ties are broken by hashes of the content, so neither
file order nor the number of workers matters. A document is dropped only if it is like a document that stays:
unlike connected components (datatrove), a chain of small edits cannot remove a document that is dissimilar to
the one kept. Memory while pairing: about 350 bytes a document; while deciding, 100 and the hashed shingles of
the pairs to be checked.

DIFFERS: the official code removes no duplicates (CulturaX was deduplicated before). We do, as an optional
step, since books, sites and web pages repeat each other.
"""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.filters import minhash
from data_prep.pipeline import shards
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

STAGES = ("sign", "pair", "compare", "decide", "write")
SHARED = ("sign", "compare", "write")  # by many tasks
THRESHOLD = 0.8
CANDIDATE_RECALL = 0.99  # share of the pairs at the threshold that the bands must find
CHUNK = 1 << 16  # pairs looked at together
DOCUMENT = [("exact", "<u8"), ("characters", "<i8"), ("record", "<u8")]  # exact, record: hashes
PAIR = [("better", "<i8"), ("worse", "<i8"), ("similarity", "<f8"),
        ("checked", "?")]  # near the threshold: the similarity is that of the texts


class Run:
    """Inputs and options of a run, and where its stages leave their results, most of them by input."""

    def __init__(self, inputs: list[str | Path], out: Path, threshold: float, options: dict[str, Any]):
        paths = find_inputs(inputs)
        # The order in which the files are given does not matter.
        self.names, self.paths = map(list, zip(*sorted(zip(shards.shard_names(paths), paths))))
        self.out, self.threshold, self.options = out, threshold, options
        reading = {"version": minhash.VERSION, **{key: options.get(key) for key in shards.READING}}
        marks = [shards.fingerprint(path, reading)[:16] for path in self.paths]
        state = hashlib.sha256(json.dumps([threshold, self.names, marks]).encode()).hexdigest()[:16]
        self.signed = [out / "signatures" / f"{name}-{mark}.npz" for name, mark in zip(self.names, marks)]
        self.folder = out / "signatures" / state
        self.wanted, self.shingles, self.verdicts = (
            [self.folder / f"{name}.{ending}" for name in self.names]
            for ending in ("wanted.json", "shingles.npz", "verdicts.json"))
        self.pairs, self.decided = self.folder / "pairs.npz", self.folder / "decided.json"


def sign_shard(path: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the signatures of one input file to `file` unless they are there."""
    if file.exists():
        return
    documents, minima, ids = [], [np.zeros((0, minhash.PERMUTATIONS), np.uint16)], []
    for document in shards.read_shard(path, Funnel(), options):
        signed = minhash.signatures([document.text])
        record = json.dumps(document.to_dict(), sort_keys=True)  # tells records of one text apart
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


def linked(keys: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the documents in `order`, those with the key of an earlier one: (document, the first with this key,
    the last one before it).

    >>> [part.tolist() for part in linked(np.array([7, 5, 7, 7]), np.array([3, 2, 1, 0]))]
    [[2, 0], [3, 3], [3, 2]]
    """
    by_key = order[np.argsort(keys[order], kind="stable")]
    again = np.zeros(len(order), bool)
    again[1:] = keys[by_key[1:]] == keys[by_key[:-1]]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
    at = np.flatnonzero(again)
    return by_key[at], by_key[first[at]], by_key[at - 1]


def exact_copies(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(documents with the normal form of a better one, the best one of each)."""
    order = best_first(documents)
    copies, first, _ = linked(documents["exact"], order[documents["exact"][order] > 0])
    return copies, first


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


def find_pairs(documents: np.ndarray, minima: np.ndarray, threshold: float) -> np.ndarray:
    """PAIRs that may be similar, with the estimated similarity, and whether the texts must be compared.

    Candidates agree on a band: each document with the best one in the band and the next better one.
    """
    single = minima.any(axis=1)  # zeros: a text without words
    single[exact_copies(documents)[0]] = False
    order = best_first(documents)
    order, found = order[single[order]], np.zeros(0, np.int64)
    bands, rows = band_shape(threshold)
    for band in range(bands):
        keys = np.zeros(len(minima), np.uint64)
        for column in minima[:, band * rows:(band + 1) * rows].T:
            keys = (keys + column) * minhash.BASE
        worse, first, previous = linked(keys, order)
        new = [better * len(minima) + worse for better in (first, previous)]
        found = np.unique(np.concatenate([found, *new]))
    pairs = np.zeros(len(found), PAIR)
    pairs["better"], pairs["worse"] = np.divmod(found, len(minima))
    for part in np.split(pairs, range(CHUNK, len(pairs), CHUNK)):
        part["similarity"] = (minima[part["better"]] == minima[part["worse"]]).mean(axis=1)
    margin = 3 * math.sqrt(threshold * (1 - threshold) / minhash.PERMUTATIONS) + 1e-9  # standard errors
    pairs["checked"] = pairs["similarity"] <= threshold + margin
    return pairs[pairs["similarity"] >= threshold - margin]


def pair(run: Run) -> None:
    """Write all pairs, and for each shard the rows of the documents to be compared."""
    parts, minima = [], bytearray()
    for file in run.signed:  # one open file, however many shards
        with np.load(file) as arrays:
            parts.append(arrays["documents"])
            minima += arrays["minima"].tobytes()
    documents, ends = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    pairs = find_pairs(documents, np.frombuffer(minima, np.uint16).reshape(-1, minhash.PERMUTATIONS),
                       run.threshold)
    checked, unsure = pairs[pairs["checked"]], np.zeros(len(documents), bool)
    unsure[checked["better"]] = unsure[checked["worse"]] = True
    for file, (begin, end) in zip(run.wanted, pairwise(ends)):
        write_json(file, np.flatnonzero(unsure[begin:end]).tolist())
    with atomic_write(run.pairs, "wb") as opened:
        np.savez(opened, documents=documents, ends=ends, pairs=pairs)


def compare_shard(path: Path, wanted: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the shingle hashes of the wanted documents of one input file unless they are there."""
    if file.exists():
        return
    rows = set(read_json(wanted))
    documents = enumerate(shards.read_shard(path, Funnel(), options) if rows else ())
    found = {str(row): minhash.shingle_hashes(document.text) for row, document in documents if row in rows}
    with atomic_write(file, "wb") as opened:
        np.savez(opened, **found)


def find_originals(documents: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each document: the kept one that it is a duplicate of (-1: none, it is kept), and the place of the
    pair that says so (-1: an exact copy)."""
    original, pair_of = np.full((2, len(documents)), -1)
    copies, first = exact_copies(documents)
    original[copies] = first
    rank, better, worse = np.argsort(best_first(documents)), pairs["better"], pairs["worse"]
    for place in np.lexsort((rank[better], rank[worse])):  # better documents are decided first
        if original[better[place]] < 0 and original[worse[place]] < 0:
            original[worse[place]], pair_of[worse[place]] = better[place], place
    # A copy of a dropped document is a near duplicate of what that one was dropped for.
    moved = copies[original[first] >= 0]
    original[moved], pair_of[moved] = original[original[moved]], pair_of[original[moved]]
    return original, pair_of


def read_ids(run: Run, ends: list[int], wanted: np.ndarray) -> dict[int, str]:
    """Document -> its id; `wanted`: (documents,) bool."""
    ids: dict[int, str] = {}
    for file, (begin, end) in zip(run.signed, pairwise(ends)):
        if wanted[begin:end].any():
            with np.load(file) as arrays:
                of_shard = json.loads(arrays["ids"].tobytes())
            ids.update((begin + row, of_shard[row]) for row in np.flatnonzero(wanted[begin:end]).tolist())
    return ids


def decide(run: Run) -> None:
    """For each shard a file: row -> what dropped/ says of that document."""
    with np.load(run.pairs) as arrays:
        documents, ends, pairs = arrays["documents"], arrays["ends"].tolist(), arrays["pairs"]
    shingles: dict[int, np.ndarray] = {}
    for file, begin in zip(run.shingles, ends):
        with np.load(file) as arrays:
            shingles.update((begin + int(row), arrays[row]) for row in arrays)
    checked = pairs["checked"]
    pairs["similarity"][checked] = [minhash.jaccard(shingles[better], shingles[worse])
                                    for better, worse in pairs[["better", "worse"]][checked].tolist()]
    pairs = pairs[pairs["similarity"] >= run.threshold]
    original, pair_of = find_originals(documents, pairs)
    is_original = np.zeros(len(documents), bool)
    is_original[original[original >= 0]] = True
    ids = read_ids(run, ends, is_original)
    for file, (begin, end) in zip(run.verdicts, pairwise(ends)):
        verdicts: dict[str, dict[str, Any]] = {}
        for number in begin + np.flatnonzero(original[begin:end] >= 0):
            verdict: dict[str, Any] = {"reason": "exact duplicate", "duplicate_of": ids[original[number]]}
            if pair_of[number] >= 0:
                _, _, similarity, checked = pairs[pair_of[number]].item()
                verdict["reason"] = "near duplicate"
                verdict["jaccard" if checked else "estimated_jaccard"] = round(similarity, 4)
            verdicts[str(number - begin)] = verdict
        write_json(file, verdicts)
    write_json(run.decided, True)


def write_shard(documents: Iterator[Document], shard: shards.ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard as decided."""
    dropped = read_json(options["verdicts"])
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
        jobs = list(zip(run.paths, run.signed, repeat(run.options)))
        shards.run_jobs(sign_shard, jobs, workers, stage, run.paths, share)
    elif stage == "pair" and not run.pairs.exists():
        pair(run)
    elif stage == "compare":
        jobs = list(zip(run.paths, run.wanted, run.shingles, repeat(run.options)))
        shards.run_jobs(compare_shard, jobs, workers, stage, run.paths, share)
    elif stage == "decide" and not run.decided.exists():
        decide(run)
    elif stage == "write":
        jobs = [(write_shard, path, name, run.out, {**run.options, "verdicts": str(file)}, "dedup")
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
