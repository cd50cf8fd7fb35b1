"""Remove exact and near duplicates from the corpus.

In:  documents (data_prep/documents.py), any number of files. Out: OUT/kept, OUT/dropped with `reason` ("exact duplicate" or
     "near duplicate"), `duplicate_of` (the id of a kept document) and `jaccard` (checked on the texts) or `estimated_jaccard`
     (from the signatures, standard error below sqrt(J(1-J)/BINS)); OUT/funnel.json; OUT/signatures, which may be deleted.

    python -m data_prep.dedup IN... --out DIR [--threshold 0.8] [--workers N]

1. Sign each shard (data_prep/filters/minhash.py). The files tell a finished shard, so adding shards later signs only the new ones.
2. Decide, over all shards at once. Exact: equal hash of the normalised text (NFKC, lower-case, whitespace collapsed,
   format characters left out) and equal signature. Near: documents that agree on all rows of one band of the signature are
   candidates (with the band's best document, and with the next better one); a candidate pair whose estimate lies clearly
   above the threshold is a duplicate, clearly below is not, and in between the texts are read again and the true Jaccard
   similarity of their shingles decides.
3. Write each shard's kept and dropped documents.

Which one stays: the longest text, then by hashes of content; so neither file order nor the number of workers matters.
Documents are visited in that order, and one falls if it is a duplicate of a document that stays. Other than a union of all
linked documents (datatrove), chains of small edits do not pull in documents that are unlike the one kept.

Memory: signatures lie in files (2 * BINS bytes a document) and are read through memmap; what is resident is about 100 bytes
a document while deciding, the pairs found, and in steps 1 and 3 one batch of texts or one shard's verdicts per worker. A
text too short for a shingle counts as one; a text without any letter or digit can only be an exact duplicate; a text whose
normal form is empty is nobody's duplicate.

DIFFERS: the official code removes no duplicates (CulturaX had been deduplicated before); we do, as an optional step, since
books, sites and web pages repeat each other.
"""
from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.filters import minhash
from data_prep.pipeline.shards import (
    READING,
    ShardWriter,
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
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

THRESHOLD = 0.8
CANDIDATE_RECALL = 0.99  # share of the pairs at the threshold that the bands must find
BATCH_CHARACTERS = 1 << 20
CHUNK = 1 << 16  # documents or pairs looked at at once


def band_shape(threshold: float, bins: int) -> tuple[int, int]:
    """(bands, rows): the most rows a band with which a pair at the threshold still agrees on some band as often as it must.

    A pair of similarity J agrees on all rows of a band with probability J**rows.

    >>> band_shape(0.8, 128)
    (21, 6)
    """
    for rows in range(bins, 1, -1):
        if 1 - (1 - threshold**rows) ** (bins // rows) >= CANDIDATE_RECALL:
            return bins // rows, rows
    return bins, 1


# ---- 1. sign ----------------------------------------------------------------------------------------------------------


def sign_shard(path: Path, name: str, folder: Path, options: dict[str, Any]) -> int:
    """Write the signatures of one input file unless they are there; returns the number of documents."""
    reading = {key: options[key] for key in READING if key in options}
    mark = fingerprint(path, {"step": "sign", "version": minhash.VERSION, "unicode": unicodedata.unidata_version, **reading})
    done = folder / f"{name}.json"
    if done.exists() and (record := read_json(done)).get("fingerprint") == mark:
        return record["documents"]
    done.unlink(missing_ok=True)
    parts: list[minhash.Signatures] = []
    facts: list[tuple[int, int]] = []  # characters and hash of the whole record
    ids: list[str] = []
    for batch in _batches(read_shard(path, Funnel(), options)):
        parts.append(minhash.signatures([document.text for document in batch]))
        facts += [(len(document.text), _record_hash(document)) for document in batch]
        ids += [document.id for document in batch]
    columns = [np.concatenate(column) for column in zip(*(parts or [minhash.signatures([])]))]
    table = np.zeros(len(ids), FACTS)
    table["exact"], table["tokens"] = columns[1], columns[2]
    if facts:
        table["characters"], table["record"] = zip(*facts)
    for suffix, array in ((".bins.npy", columns[0]), (".facts.npy", table)):
        with atomic_write(folder / (name + suffix), "wb") as file:
            np.save(file, array)
    write_json(folder / f"{name}.ids.json", ids)
    write_json(done, {"fingerprint": mark, "documents": len(ids)})
    return len(ids)


FACTS = [("exact", "<u8"), ("tokens", "<i8"), ("characters", "<i8"), ("record", "<u8")]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _record_hash(document: Document) -> int:
    """Tells records of one text apart, whatever file they lie in."""
    rest = json.dumps([document.id, document.language, document.source, document.meta], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(f"{rest}\0{document.text}".encode(), digest_size=8).digest(), "little")


# ---- 2. decide --------------------------------------------------------------------------------------------------------


class Signed:
    """The signatures of all shards; a document is its place when all are sorted from the best to the worst."""

    def __init__(self, folder: Path, names: list[str]):
        facts = [np.load(folder / f"{name}.facts.npy") for name in names]
        self.first = np.cumsum([0] + [len(part) for part in facts])  # of each shard, counted in input order
        table = np.concatenate(facts)
        # Longest first; the names of the shards, in order, break ties between records equal in everything.
        self.order = np.lexsort((table["record"], table["exact"], -table["characters"]))
        self.exact, self.tokens = table["exact"][self.order], table["tokens"][self.order]
        self.bins = [np.load(folder / f"{name}.bins.npy", mmap_mode="r") for name in names]

    def __len__(self) -> int:
        return len(self.order)

    def where(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row) of documents."""
        index = self.order[places]
        shard = np.searchsorted(self.first, index, side="right") - 1
        return shard, index - self.first[shard]

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Signatures of some documents, (documents, BINS)."""
        shard, row = self.where(places)
        found = np.empty((len(places), self.bins[0].shape[1]), np.uint16)
        for number in np.unique(shard):
            chosen = np.flatnonzero(shard == number)
            found[chosen] = self.bins[number][row[chosen]]
        return found

    def agreement(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Share of equal bins of pairs of documents."""
        parts = [minhash.estimated_jaccard(self.rows(one[i:i + CHUNK]), self.rows(other[i:i + CHUNK])) for i in range(0, len(one), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def band_keys(self, begin: int, end: int) -> np.ndarray:
        """A hash of bins begin..end of every document, by place."""
        odd = np.random.default_rng(0).integers(1, 1 << 63, end - begin, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        keys = np.zeros(len(self), np.uint64)
        for shard, bins in enumerate(self.bins):
            for i in range(0, len(bins), CHUNK):
                part = np.asarray(bins[i:i + CHUNK, begin:end], np.uint64) + np.uint64(1)
                for column in range(end - begin):  # a sum of products of odd numbers, scrambled in between
                    out = keys[self.first[shard] + i:self.first[shard] + i + len(part)]
                    out += part[:, column]
                    out *= odd[column]
                    out ^= out >> np.uint64(29)
        return keys[self.order]


def _linked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of equal key: (item, the first with its key, the one before it with its key), for all that are not the first.

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


def exact_duplicates(signed: Signed) -> np.ndarray:
    """For each document the better one that it is an exact copy of, or -1."""
    copy_of = np.full(len(signed), -1)
    there = np.flatnonzero(signed.exact)  # 0: an empty text
    item, first, _ = _linked(signed.exact[there])
    item, first = there[item], there[first]
    sure = signed.agreement(item, first) == 1
    copy_of[item[sure]] = first[sure]
    return copy_of


def candidate_pairs(signed: Signed, among: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (better, worse) of documents that agree on some band."""
    pairs = np.zeros(0, np.uint64)
    bands, rows = band_shape(threshold, signed.bins[0].shape[1])
    for band in range(bands):
        item, first, previous = _linked(signed.band_keys(band * rows, (band + 1) * rows)[among])
        item, first, previous = (among[part].astype(np.uint64) for part in (item, first, previous))
        pairs = np.unique(np.concatenate([pairs, first << np.uint64(32) | item, previous << np.uint64(32) | item]))
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def shingle_shard(path: Path, rows: list[int], target: Path, options: dict[str, Any]) -> list[int]:
    """Write the shingle hashes of some documents of one input file, one after the other; returns how many each has."""
    wanted, sizes = set(rows), []
    with atomic_write(target, "wb") as file:
        for row, document in enumerate(read_shard(path, Funnel(), options)):
            if row in wanted:
                hashes = minhash.shingle_hashes(document.text)
                file.write(hashes.astype("<u4").tobytes())
                sizes.append(len(hashes))
    assert len(sizes) == len(rows), f"{path}: expected {len(rows)} documents again, got {len(sizes)}"
    return sizes


def true_similarities(signed: Signed, one: np.ndarray, other: np.ndarray, paths: list[Path], names: list[str], folder: Path,
                      options: dict[str, Any], workers: int) -> np.ndarray:
    """The Jaccard similarity of pairs, from their texts: those are read again, their shingles lie on disk meanwhile."""
    places = np.unique(np.concatenate([one, other]))
    shard, row = signed.where(places)
    by_row = np.lexsort((row, shard))  # as the texts will come
    numbers = np.unique(shard).tolist()
    jobs = [(paths[n], row[by_row][shard[by_row] == n].tolist(), folder / f"{names[n]}.shingles", options) for n in numbers]
    sizes = run_jobs(shingle_shard, jobs, workers, "compare", [str(job[0]) for job in jobs])
    found: dict[int, Any] = {}
    for job, part in zip(jobs, sizes):
        data = np.memmap(job[2], "<u4", "r") if sum(part) else np.zeros(0, "<u4")
        ends = np.cumsum(part)
        for place, end, size in zip(by_row[len(found):len(found) + len(part)].tolist(), ends.tolist(), part):
            found[int(places[place])] = data[end - size:end]
    values = np.array([minhash.jaccard(found[a], found[b]) for a, b in zip(one.tolist(), other.tolist())])
    found.clear()
    for job in jobs:
        job[2].unlink()
    return values


Verdict = tuple[np.ndarray, np.ndarray, np.ndarray]


def decide(signed: Signed, threshold: float, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """(the kept document that each is a duplicate of, or -1; the Jaccard similarity, 2 for exact copies; was it checked)."""
    duplicate_of = exact_duplicates(signed)
    similarity, checked = np.full(len(signed), 2.0), np.zeros(len(signed), bool)
    copies = np.flatnonzero(duplicate_of >= 0)
    one, other = candidate_pairs(signed, np.flatnonzero((duplicate_of < 0) & (signed.tokens > 0)), threshold)
    value = signed.agreement(one, other)
    # Three standard errors on either side are checked; at a threshold of 1 that is every pair whose signatures are equal.
    margin = 3 * math.sqrt(threshold * (1 - threshold) / signed.bins[0].shape[1])
    unsure = np.flatnonzero((value >= threshold - margin) & (value <= threshold + margin))
    if len(unsure):
        value[unsure] = compare(one[unsure], other[unsure])
    was_checked = np.zeros(len(value), bool)
    was_checked[unsure] = True
    pair = np.flatnonzero(value >= threshold)
    pair = pair[np.lexsort((one[pair], other[pair]))]
    for a, b, number in zip(one[pair].tolist(), other[pair].tolist(), pair.tolist()):
        if duplicate_of[a] < 0 and duplicate_of[b] < 0:  # a stands before b: its fate is settled
            duplicate_of[b], similarity[b], checked[b] = a, value[number], was_checked[number]
    # The copy of a document that falls falls for the same reason, so that every `duplicate_of` is a kept document.
    original = duplicate_of[copies]
    fallen = copies[duplicate_of[original] >= 0]
    original = duplicate_of[fallen]
    duplicate_of[fallen], similarity[fallen], checked[fallen] = duplicate_of[original], similarity[original], checked[original]
    return duplicate_of, similarity, checked


def write_verdicts(signed: Signed, verdict: Verdict, names: list[str], folder: Path) -> list[str]:
    """For each shard a JSON list of [row, reason, id of the kept document, key, similarity]; returns the hashes of the files."""
    duplicate_of, similarity, checked = verdict
    fallen = np.flatnonzero(duplicate_of >= 0)
    kept = np.unique(duplicate_of[fallen])
    ids: dict[int, str] = {}
    shard, row = signed.where(kept)
    for number in np.unique(shard).tolist():
        of_shard = read_json(folder / f"{names[number]}.ids.json")
        ids.update((int(place), of_shard[r]) for place, r in zip(kept[shard == number], row[shard == number]))
    shard, row = signed.where(fallen)
    digests = []
    for number, name in enumerate(names):
        lines = []
        chosen = np.flatnonzero(shard == number)
        for i in chosen[np.argsort(row[chosen])]:
            place = fallen[i]
            exact = similarity[place] > 1
            lines.append([int(row[i]), "exact duplicate" if exact else "near duplicate", ids[int(duplicate_of[place])],
                          None if exact else "jaccard" if checked[place] else "estimated_jaccard",
                          None if exact else round(float(similarity[place]), 4)])
        write_json(folder / f"{name}.verdicts.json", {"documents": int(signed.first[number + 1] - signed.first[number]), "dropped": lines})
        digests.append(hashlib.sha256(json.dumps(lines).encode()).hexdigest())
    return digests


# ---- 3. write ---------------------------------------------------------------------------------------------------------


def write_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard as decided."""
    verdicts = read_json(options["verdicts"])
    dropped = {row: rest for row, *rest in verdicts["dropped"]}
    count = 0
    for row, document in enumerate(documents):
        count += 1
        if row in dropped:
            reason, duplicate_of, key, value = dropped[row]
            shard.drop(document, reason, duplicate_of=duplicate_of, **({key: value} if key else {}))
        else:
            shard.keep(document)
    if count != verdicts["documents"]:
        raise UserError(f"{options['verdicts']}: {verdicts['documents']} documents were signed and {count} are there now: "
                        "the input changed while it was read; start again")


def deduplicate(inputs: list[str | Path], out: str | Path, threshold: float = THRESHOLD, workers: int = 1,
                options: dict[str, Any] | None = None) -> Funnel:
    """Sign, decide, write; finished shards of an earlier start are passed over. `options` as in `process_shard`."""
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold}: must be above 0 and at most 1")
    out, options = Path(out), dict(options or {})
    paths = find_inputs(inputs)
    # Sorted by name: where two records are equal in everything, the one that stays does not depend on the order given.
    names, paths = map(list, zip(*sorted(zip(shard_names(paths), paths))))
    folder = out / "signatures"
    told = [str(path) for path in paths]
    with one_run(out):
        refuse_strangers(out, names)
        run_jobs(sign_shard, [(path, name, folder, options) for path, name in zip(paths, names)], workers, "sign", told)
        signed = Signed(folder, names)
        verdict = decide(signed, threshold, lambda one, other: true_similarities(
            signed, one, other, paths, names, folder, options, workers))
        digests = write_verdicts(signed, verdict, names, folder)
        jobs = [(write_shard, path, name, out, {**options, "verdicts": str(folder / f"{name}.verdicts.json"), "digest": digest}, "dedup")
                for path, name, digest in zip(paths, names, digests)]
        run_jobs(process_shard, jobs, workers, "write", told)
        return gather_funnel(out, names, "dedup", threshold=threshold)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.dedup", description="Remove exact and near duplicates from the corpus.")
    add_shard_arguments(parser)
    parser.add_argument("--threshold", type=float, default=THRESHOLD,
                        help="Jaccard similarity of shingles from which two texts are duplicates (default: %(default)s)")
    arguments = parser.parse_args(argv)
    funnel = deduplicate(arguments.inputs, arguments.out, arguments.threshold, arguments.workers, shard_options(arguments))
    print_funnel(funnel, "dedup")
    return 0


if __name__ == "__main__":
    main_guard(main)
