"""Token streams: the tokens of a corpus in files that are mapped into memory, never read whole.

    NAME.bin   every token of every document, one after the other: little-endian uint16 or uint32
    NAME.idx   where each document ends in NAME.bin, counted in tokens: little-endian uint64
    NAME.json  dtype, counts by language and source, tokenizer fingerprint, sha256 of both files

A corpus of several input files has no NAME.bin: NAME.json lists `parts`, files that hold its tokens in order.
"""
from __future__ import annotations

import bisect
import functools
import glob
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, temporary_name, write_json
from mmed.utils.fingerprints import file_hash

FORMAT = 1          # version of the files
MAPPED_PARTS = 128  # maximum number of a stream's files open at once

Counts = dict[str, dict[str, dict[str, int]]]  # language -> source -> {"tokens": ..., "documents": ...}


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id of the vocabulary."""
    return np.dtype("<u2") if vocab_size <= 2 ** 16 else np.dtype("<u4")


def add_count(counts: Counts, language: str, source: str, tokens: int, documents: int) -> None:
    count = counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
    count["tokens"] += tokens
    count["documents"] += documents


class StreamWriter:
    """Write one stream; `close` renames its files, the .json last: a stream with a .json is complete."""

    def __init__(self, prefix: str | Path, vocab_size: int, fingerprint: str, bos_id: int | None = None):
        """`bos_id`: the token that every document begins with, None if they begin without one."""
        self.prefix, self.dtype = str(prefix), token_dtype(vocab_size)
        self.meta: dict[str, Any] = {
            "format": FORMAT, "dtype": self.dtype.name, "vocab_size": vocab_size, "tokens": 0,
            "documents": 0, "counts": {}, "tokenizer": fingerprint, "bos_id": bos_id}
        self.open_files = ExitStack()
        self.files = {name: self.open_files.enter_context(atomic_write(f"{prefix}.{name}", "wb"))
                      for name in ("bin", "idx")}
        self.hashes = {name: hashlib.sha256() for name in self.files}

    def add(self, ids: Sequence[int], language: str = "", source: str = "") -> None:
        """Append one document's ids (with its BOS and EOS)."""
        array = np.asarray(ids, dtype=np.int64)
        if not len(array) or not 0 <= array.min() <= array.max() < self.meta["vocab_size"]:
            raise ValueError(f"document {self.meta['documents']} of {self.prefix}: expected ids in "
                             f"[0, {self.meta['vocab_size']}), got {array}")
        self.meta["tokens"] += len(array)
        self.meta["documents"] += 1
        add_count(self.meta["counts"], language, source, len(array), 1)
        end = np.array(self.meta["tokens"], dtype="<u8")
        for name, data in (("bin", array.astype(self.dtype).tobytes()), ("idx", end.tobytes())):
            self.files[name].write(data)
            self.hashes[name].update(data)

    def close(self, **extra: object) -> dict:
        """Give the files their names; returns the content of NAME.json. `extra` keys are stored with it."""
        Path(f"{self.prefix}.json").unlink(missing_ok=True)  # never an old .json beside a new .bin
        self.open_files.close()
        self.meta["sha256"] = {name: digest.hexdigest() for name, digest in self.hashes.items()}
        write_json(f"{self.prefix}.json", self.meta | extra)
        return self.meta | extra


def write_manifest(prefix: str | Path, parts: Iterable[str | Path], **extra: object) -> dict:
    """Join complete streams (same tokenizer, below the folder of `prefix`) without copying tokens; a single
    .bin file becomes NAME.bin. Returns the content of NAME.json, which includes `extra`."""
    tokens, listed, meta, digest = 0, [], {}, hashlib.sha256()
    counts: Counts = {}
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
            for language, sources in meta["counts"].items():
                for source, count in sources.items():
                    add_count(counts, language, source, **count)
        documents = file.tell() // 8
    meta |= {"tokens": tokens, "documents": documents, "counts": counts, **extra}
    meta["sha256"] = {"idx": digest.hexdigest()}
    if len(listed) == 1:
        link_or_copy(Path(prefix).parent / listed[0]["file"], Path(f"{prefix}.bin"))
        meta["sha256"]["bin"] = listed[0]["sha256"]
    else:
        meta["parts"] = listed
    write_json(f"{prefix}.json", meta)
    return meta


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    name = temporary_name(target)
    try:
        try:
            os.link(source, name)
        except OSError:
            shutil.copyfile(source, name)
        os.replace(name, target)
    finally:  # also after success: renaming a file to its own second name does nothing
        name.unlink(missing_ok=True)


class PartedTokens:
    """The tokens of several files as one array to slice; the files read last stay memory-mapped."""

    def __init__(self, files: Sequence[Path], tokens: Sequence[int], dtype: np.dtype):
        self.files, self.dtype = files, dtype
        self.starts = [0, *itertools.accumulate(tokens)]
        self.map = functools.lru_cache(MAPPED_PARTS)(self._map)

    def _map(self, number: int) -> np.ndarray:
        try:
            return np.memmap(self.files[number], self.dtype, "r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.files[number]}: part of a stream: {error}; tokenize again") from None

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
    """A stream on disk: `ids`, to be sliced, and `ends` (documents,), where each document ends in them.
    Opening it checks sizes and tokenizer; `verify` reads it all."""

    def __init__(self, prefix: str | Path, fingerprint: str | None = None, verify: bool = False):
        self.prefix = str(prefix).removesuffix(".json").removesuffix(".bin")
        if not Path(f"{self.prefix}.json").is_file():
            raise UserError(f"{self.prefix}.json: no such token stream; make one with "
                            "python -m data_prep.tokenize_corpus")
        self.meta = read_json(f"{self.prefix}.json")
        try:
            self._open(self.meta)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise UserError(f"{self.prefix}.json does not describe a token stream, or does not match its "
                            f"files ({error!r}); tokenize again") from None
        if fingerprint is not None and self.fingerprint != fingerprint:
            bos = "without BOS" if self.bos_id is None else f"with BOS {self.bos_id}"
            raise UserError(f"{self.prefix}: made with tokenizer {self.fingerprint:.12} (documents begin "
                            f"{bos}), but the model has {fingerprint:.12}; tokenize the corpus again with "
                            "the model's tokenizer and the same --bos")
        if verify:
            self.verify()

    def _open(self, meta: dict) -> None:
        self.tokens, self.documents, self.bos_id = meta["tokens"], meta["documents"], meta["bos_id"]
        self.vocab_size, self.fingerprint = meta["vocab_size"], meta["tokenizer"]
        self.counts: Counts = dict(meta["counts"])
        dtype = token_dtype(self.vocab_size)
        if (meta["format"], meta["dtype"]) != (FORMAT, dtype.name):
            raise ValueError(f"format {meta['format']}, {meta['dtype']}")
        index = Path(f"{self.prefix}.idx")
        parts = meta.get("parts")
        if parts is None:
            parts = [{"file": f"{index.stem}.bin", "tokens": self.tokens, "sha256": meta["sha256"]["bin"]}]
        files = {index.parent / part["file"]: part for part in parts}
        for file, part in files.items():
            if file.stat().st_size != part["tokens"] * dtype.itemsize:
                raise ValueError(f"{file} does not contain {part['tokens']} tokens")
        self.hashes = {index: meta["sha256"]["idx"]} | {file: part["sha256"] for file, part in files.items()}
        self.ids = PartedTokens([*files], [part["tokens"] for part in files.values()], dtype)
        self.ends = np.memmap(index, "<u8", "r").view(np.ndarray)
        if not len(self.ids) == self.tokens == self.ends[-1] or len(self.ends) != self.documents:
            raise ValueError(f"{len(self.ids)} tokens in {len(self.ends)} documents")

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Compare the sha256 of this rank's share of the files with NAME.json (hundreds of MB/s). A file with
        the size and modification time that a NAME.verified-*.json has recorded is not read again."""
        folder, name = Path(self.prefix).parent, Path(self.prefix).name
        known: dict[str, list] = {}
        for path in folder.glob(f"{glob.escape(name)}.verified-*.json"):
            known |= read_json(path)
        found = {}
        for file, expected in itertools.islice(self.hashes.items(), rank, None, ranks):
            try:
                facts = [file.stat().st_size, file.stat().st_mtime_ns, expected]
                intact = known.get(file.name) == facts or file_hash(file) == expected
            except OSError as error:
                raise UserError(f"{file}: {error.strerror}; tokenize again") from None
            if not intact:
                raise UserError(f"{file}: its sha256 is not the one in {self.prefix}.json; the file is "
                                "damaged, tokenize again")
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
