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
VERDICT = [("original", "<i8"),  # -1: none, it is kept
           ("similarity", "<f8"),  # 2: an exact copy
           ("checked", "?")]  # on the texts, not by the signatures
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


def sign_shard(path: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the signatures of one input file to `file` unless they are there."""
    if file.exists():
        return
    minima, facts, ids = [np.zeros((0, minhash.PERMUTATIONS), np.uint16)], [], []
    for document in shards.read_shard(path, Funnel(), options):
        signed = minhash.signatures([document.text])
        record = json.dumps(document.to_dict(), sort_keys=True)  # tells records of one text apart
        record_hash = int.from_bytes(hashlib.blake2b(record.encode(), digest_size=8).digest(), "little")
        minima.append(signed.minima)
        facts.append((signed.exact[0], signed.tokens[0], len(document.text), record_hash))
        ids.append(document.id)
    with atomic_write(file, "wb") as opened:
        np.savez(opened, facts=np.array(facts, FACTS), minima=np.concatenate(minima),
                 ids=np.frombuffer(json.dumps(ids).encode(), np.uint8))


class Signed:
    """The facts of all shards. Documents are numbered by rank, from the best (longest) to the worst."""

    def __init__(self, table: np.ndarray, sizes: np.ndarray, minima: np.ndarray | None = None):
        """`table`: FACTS of all documents in the order of the shards; `sizes`: documents of each shard;
        `minima`: their signatures, (documents, PERMUTATIONS)."""
        self.table, self.sizes, self.minima = table, sizes, minima
        # The order of the shards breaks ties between records that are equal in everything.
        self.order = np.lexsort((table["record"], table["exact"], -table["characters"]))
        self.exact, self.has_tokens = table["exact"][self.order], (table["tokens"] > 0)[self.order]
        self.shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[self.order]
        self.row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])[self.order]

    @classmethod
    def read(cls, files: list[Path]) -> Signed:
        """From the signatures of all shards, each read once."""
        facts, minima = [], bytearray()
        for file in files:  # one open file, however many shards
            with np.load(file) as arrays:
                facts.append(arrays["facts"])
                minima += arrays["minima"].tobytes()
        return cls(np.concatenate(facts), np.array([len(part) for part in facts]),
                   np.frombuffer(minima, np.uint16).reshape(-1, minhash.PERMUTATIONS))

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """(documents with the normal form of a better one, the best one of each)."""
        with_text = np.flatnonzero(self.exact)
        copies, first, _ = _linked(self.exact[with_text])
        return with_text[copies], with_text[first]

    def estimate(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The estimated similarity of pairs."""
        found = np.zeros(len(one))
        for begin in range(0, len(one), CHUNK):
            part = slice(begin, begin + CHUNK)
            left, right = (self.minima[self.order[ranks[part]]] for ranks in (one, other))
            found[part] = (left == right).mean(axis=1)
        return found

    def band_keys(self, begin: int, end: int) -> np.ndarray:
        """A hash of the columns begin..end of every signature, by rank."""
        keys = np.zeros(len(self.order), np.uint64)
        for column in self.minima[:, begin:end].T:
            keys *= minhash.BASE
            keys += column
            keys += np.uint64(1)
            keys ^= keys >> np.uint64(29)
        return keys[self.order]

    def by_shard(self, ranks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, its documents among `ranks` in the order of their rows)."""
        ranks = ranks[np.lexsort((self.row[ranks], self.shard[ranks]))]
        for part in np.split(ranks, np.flatnonzero(np.diff(self.shard[ranks])) + 1):
            if len(part):
                yield int(self.shard[part[0]]), part


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
    """Pairs (better, worse) that agree on a band: each document with the band's best and the next better."""
    pairs = np.zeros(0, np.uint64)
    bands, rows = band_shape(threshold)
    for band in range(bands):
        keys = signed.band_keys(band * rows, (band + 1) * rows)[among]
        item, first, previous = (among[part].astype(np.uint64) for part in _linked(keys))
        new = [better << np.uint64(32) | item for better in (first, previous)]
        pairs = np.unique(np.concatenate([pairs, *new]))
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def find_pairs(signed: Signed, threshold: float) -> dict[str, np.ndarray]:
    """Pairs (`better`, `worse`) that may be similar, the estimated `value`, and whether the texts must be
    compared (`unsure`)."""
    among = signed.has_tokens.copy()
    among[signed.copies()[0]] = False
    better, worse = candidate_pairs(signed, np.flatnonzero(among), threshold)
    value = signed.estimate(better, worse)
    margin = 3 * math.sqrt(threshold * (1 - threshold) / minhash.PERMUTATIONS)  # three standard errors
    likely = value >= threshold - margin - 1e-9
    unsure = likely & (value <= threshold + margin + 1e-9)
    found = {"better": better, "worse": worse, "value": value, "unsure": unsure}
    return {name: array[likely] for name, array in found.items()}


def write_pairs(signed: Signed, pairs: dict[str, np.ndarray], path: Path, wanted: list[Path]) -> None:
    """For each shard the documents to be compared, as rows of it; then all pairs."""
    ranks = np.concatenate([pairs[name][pairs["unsure"]] for name in ("better", "worse")])
    by_shard = dict(signed.by_shard(np.unique(ranks)))
    for shard, file in enumerate(wanted):
        write_json(file, signed.row[by_shard.get(shard, [])].tolist())
    with atomic_write(path, "wb") as opened:
        np.savez(opened, facts=signed.table, sizes=signed.sizes, **pairs)


def compare_shard(path: Path, wanted: Path, file: Path, options: dict[str, Any]) -> None:
    """Write the shingle hashes of the wanted documents of one input file unless they are there."""
    if file.exists():
        return
    rows = set(read_json(wanted))
    documents = enumerate(shards.read_shard(path, Funnel(), options) if rows else ())
    found = {str(row): minhash.shingle_hashes(document.text) for row, document in documents if row in rows}
    with atomic_write(file, "wb") as opened:
        np.savez(opened, **found)


def true_similarities(signed: Signed, one: np.ndarray, other: np.ndarray, files: list[Path]) -> np.ndarray:
    """The Jaccard similarity of pairs, from the shingles of their texts."""
    shingles: dict[int, np.ndarray] = {}
    for shard, ranks in signed.by_shard(np.unique(np.concatenate([one, other]))):
        with np.load(files[shard]) as arrays:
            shingles.update((rank, arrays[str(signed.row[rank])]) for rank in ranks.tolist())
    return np.array([minhash.jaccard(shingles[a], shingles[b]) for a, b in zip(one.tolist(), other.tolist())])


def decide(signed: Signed, threshold: float, pairs: dict[str, np.ndarray],
           shingles: list[Path]) -> np.ndarray:
    """By rank, the kept document that each is a duplicate of, as an array of the type VERDICT."""
    verdict = np.full(len(signed.order), np.array((-1, 2, False), VERDICT))
    original = verdict["original"]
    copies, first = signed.copies()
    original[copies] = first
    better, worse, value, unsure = (pairs[name] for name in ("better", "worse", "value", "unsure"))
    value[unsure] = true_similarities(signed, better[unsure], worse[unsure], shingles)
    alike = np.flatnonzero(value >= threshold)
    for pair in alike[np.lexsort((better[alike], worse[alike]))]:
        one, other = better[pair], worse[pair]
        if original[one] < 0 and original[other] < 0:  # the better one is decided
            verdict[other] = one, value[pair], unsure[pair]
    # A copy of a dropped document is a near duplicate of what that one was dropped for.
    moved = copies[original[first] >= 0]
    verdict[moved] = verdict[original[moved]]
    return verdict


def write_verdicts(signed: Signed, verdict: np.ndarray, files: list[Path], verdicts: list[Path]) -> None:
    """For each shard a file: row -> what dropped/ says of that document."""
    dropped = np.flatnonzero(verdict["original"] >= 0)
    ids: dict[int, str] = {}
    for shard, ranks in signed.by_shard(np.unique(verdict["original"][dropped])):
        with np.load(files[shard]) as arrays:
            of_shard = json.loads(arrays["ids"].tobytes())
        ids.update((rank, of_shard[signed.row[rank]]) for rank in ranks.tolist())
    by_shard = dict(signed.by_shard(dropped))
    for shard, path in enumerate(verdicts):
        reasons: dict[str, dict[str, Any]] = {}
        for rank in by_shard.get(shard, ()):
            original, similarity, checked = verdict[rank].item()
            reason: dict[str, Any] = {"reason": "exact duplicate", "duplicate_of": ids[original]}
            if similarity <= 1:
                reason["reason"] = "near duplicate"
                reason["jaccard" if checked else "estimated_jaccard"] = round(similarity, 4)
            reasons[str(signed.row[rank])] = reason
        write_json(path, reasons)


def write_shard(documents: Iterator[Document], shard: shards.ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard as decided."""
    dropped = read_json(options["verdicts"])
    for row, document in enumerate(documents):
        if verdict := dropped.get(str(row)):
            shard.drop(document, **verdict)
        else:
            shard.keep(document)


class Files:
    """Where the stages of one run leave their results, in the order of `paths`."""

    def __init__(self, inputs: list[str | Path], out: Path, threshold: float, options: dict[str, Any]):
        paths = find_inputs(inputs)
        # The order in which the files are given does not matter.
        self.names, self.paths = map(list, zip(*sorted(zip(shards.shard_names(paths), paths))))
        reading = {"version": minhash.VERSION, **{key: options.get(key) for key in shards.READING}}
        prints = [shards.fingerprint(path, reading) for path in self.paths]
        run = hashlib.sha256(json.dumps([threshold, self.names, prints]).encode()).hexdigest()[:16]
        self.folder = out / "signatures"
        self.signed = [self.folder / f"{name}-{mark[:16]}.npz" for name, mark in zip(self.names, prints)]
        self.pairs = self.folder / f"pairs-{run}.npz"
        self.wanted, self.shingles, self.verdicts = (
            [self.folder / f"{kind}-{run}" / f"{name}{ending}" for name in self.names]
            for kind, ending in (("wanted", ".json"), ("shingles", ".npz"), ("verdicts", ".json")))
        self.decided = self.folder / f"verdicts-{run}.json"


def run_stage(stage: str, files: Files, threshold: float, options: dict[str, Any], workers: int,
              share: shards.Share | None) -> None:
    """One stage before the last, unless it is done."""
    if stage == "sign":
        jobs = [(path, file, options) for path, file in zip(files.paths, files.signed)]
        shards.run_jobs(sign_shard, jobs, workers, stage, files.paths, share)
    elif stage == "pair" and not files.pairs.exists():
        _need(files.signed, "sign", files)
        signed = Signed.read(files.signed)
        write_pairs(signed, find_pairs(signed, threshold), files.pairs, files.wanted)
    elif stage == "compare":
        _need([files.pairs], "pair", files)
        jobs = [(*job, options) for job in zip(files.paths, files.wanted, files.shingles)]
        shards.run_jobs(compare_shard, jobs, workers, stage, files.paths, share)
    elif stage == "decide" and not files.decided.exists():
        _need([files.pairs, *files.shingles], "compare", files)
        with np.load(files.pairs) as arrays:
            pairs = dict(arrays)
        signed = Signed(pairs["facts"], pairs["sizes"])
        write_verdicts(signed, decide(signed, threshold, pairs, files.shingles), files.signed, files.verdicts)
        write_json(files.decided, True)


def _need(made: list[Path], stage: str, files: Files) -> None:
    if not all(file.exists() for file in made):
        raise UserError(f"{files.folder}: --stage {stage} is not done for these inputs; run it first")


def deduplicate(inputs: list[str | Path], out: str | Path, threshold: float = THRESHOLD, workers: int = 1,
                options: dict[str, Any] | None = None, stage: str = "all",
                share: shards.Share | None = None) -> Funnel | None:
    """All STAGES or one of them; finished work is skipped. options: as of a step."""
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold={threshold}: must be above 0 and at most 1")
    if share and stage not in SHARED:
        raise UsageError(f"--shard: needs --stage {', '.join(SHARED)}; the other stages are one task")
    out, options = Path(out), dict(options or {})
    files = Files(inputs, out, threshold, options)
    with shards.one_run(out, share, files.names):
        for each in STAGES[:-1] if stage == "all" and not files.decided.exists() else (stage, ):
            run_stage(each, files, threshold, options, workers, share)
        if stage not in ("all", "write"):
            return None
        _need([files.decided], "decide", files)
        jobs = [(write_shard, path, name, out, {**options, "verdicts": str(found)}, "dedup")
                for path, name, found in zip(files.paths, files.names, files.verdicts)]
        records = shards.run_jobs(shards.process_shard, jobs, workers, "write", files.paths, share)
        return None if share else shards.write_funnel(out, records, "dedup", threshold=threshold)


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
