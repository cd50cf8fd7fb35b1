"""The released MMedBench (zip or folder) as it is: Train/ and Test/, a JSONL file a language.

A zip is a stranger's file, so nothing of it is unpacked on disk: its directory is checked first (names that would leave a folder,
links, devices, duplicate names, sizes, ratios: FAULTS.md D14) and the six-language JSONL files are then read from within, each no
further than its stated size. An archive with one bad member is refused whole, since its maker cannot be trusted with the rest.
"""
from __future__ import annotations

import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from data_prep.benchmark.mmedbench_sources import Raw, letters_in, need, option_texts
from mmed.utils.errors import UserError
from mmed.utils.files import read_jsonl

MAX_ENTRIES, MAX_RATIO, MAX_ARCHIVE_GB, MAX_LINE = 200_000, 200, 4.0, 10_000_000
EXAM_FILE = re.compile(r"(?:[^/]+/)?(Train|Val|Test)/([A-Z][a-z]+)\.jsonl")


def checked_members(path: Path, max_gb: float = MAX_ARCHIVE_GB) -> list[zipfile.ZipInfo]:
    """The archive's members, after every name, type and size has been looked at; a bad one is a `UserError` that names it."""
    def refuse(why: str) -> UserError:
        return UserError(f"{path}: archive refused: {why}")

    # The directory's size stands at the end of the file: a million entries are refused before memory is taken for them.
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 65_557))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise UserError(f"{path}: not a zip archive, or cut short; MMedBench comes as .zip or as a folder with Train/ and Test/")
    if tail[max(0, end - 20):end].startswith(b"PK\x06\x07"):
        raise refuse("it is in the ZIP64 form, made for archives larger than this tool reads")
    if struct.unpack("<I", tail[end + 12:end + 16])[0] > MAX_ENTRIES * 46:  # 46 bytes is the least an entry takes
        raise refuse(f"more than {MAX_ENTRIES:,} entries")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:  # the last: a version of the format to come
        raise UserError(f"{path}: not a readable zip archive ({error})") from None
    if len(members) > MAX_ENTRIES:
        raise refuse(f"more than {MAX_ENTRIES:,} entries")
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename.replace("\\", "/")  # `filename` is cut at NUL already
        mode = stat.S_IFMT(member.external_attr >> 16)
        if re.search(r"[\x00-\x1f\x7f]", name):
            raise refuse(f"a name with control characters: {name!r}")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
            raise refuse(f"a name that leaves the folder: {name!r}")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(f"a link or device: {name!r}")
        if name.casefold() in seen:
            raise refuse(f"the name stands there twice, or in two cases: {name!r}")
        seen.add(name.casefold())
        if member.flag_bits & 1:
            raise refuse(f"encrypted: {name!r}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(f"compression method {member.compress_type} of {name!r} (only stored and deflated are read)")
        if member.file_size > max(1_000_000, MAX_RATIO * member.compress_size):
            raise refuse(f"{name!r} grows more than {MAX_RATIO} times")
    total = sum(member.file_size for member in members)
    if total > max_gb * 1e9:
        raise refuse(f"{total / 1e9:.1f} GB unpacked, more than {max_gb:g} GB (--max-archive-gb)")
    return members


def lines_of(file: IO[bytes], where: str) -> Iterator[tuple[int, dict]]:
    """As `mmed.utils.files.read_jsonl`, from an open member of an archive."""
    number, text = 0, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
    try:
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{where}:{number}: a line of more than {MAX_LINE:,} characters is no exam item")
            if line.strip():
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise UserError(f"{where}:{number}: expected one JSON object a line, got {type(value).__name__}")
                yield number, value
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{where}:{number + 1}: the archive is damaged here ({error})") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        raise UserError(f"{where}:{number + isinstance(error, UnicodeDecodeError)}: not valid JSON in UTF-8 ({error})") from None


def read_mmedbench(path: Path, notes: list[str], *, max_gb: float = MAX_ARCHIVE_GB) -> Iterator[Raw]:
    """MMedBench.zip, or the folder it was unpacked to; all keys are kept, `answer_idx` may be a string or a list."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in path.rglob("*.jsonl") if p.is_file()}
        chosen = sorted(name for name in files if EXAM_FILE.fullmatch(name))
        check_names(path, chosen, files)
        for name in chosen:
            yield from release_items(name, str(files[name]), read_jsonl(files[name]))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    members = {member.orig_filename.replace("\\", "/"): member for member in checked_members(path, max_gb) if not member.is_dir()}
    chosen = sorted(name for name in members if EXAM_FILE.fullmatch(name))
    check_names(path, chosen, members)
    others = sorted(set(members) - set(chosen))
    if others:
        notes.append(f"passed over, not Train/LANGUAGE.jsonl or Test/LANGUAGE.jsonl: {', '.join(others[:5])}"
                     + (f" and {len(others) - 5} more" if len(others) > 5 else ""))
    with zipfile.ZipFile(path) as archive:
        for name in chosen:
            try:
                file = archive.open(members[name])
            except (zipfile.BadZipFile, OSError, RuntimeError) as error:
                raise UserError(f"{path}: {name}: the archive is damaged here ({error})") from None
            with file:
                yield from release_items(name, f"{path}!{name}", lines_of(file, f"{path}!{name}"))


def check_names(path: Path, chosen: list[str], found: dict) -> None:
    targets = [EXAM_FILE.fullmatch(name).groups() for name in chosen]
    if not chosen:
        raise UserError(f"{path}: no Train/English.jsonl, Test/English.jsonl ... among its {len(found)} files; is this MMedBench?")
    if len(set(targets)) != len(targets):
        raise UserError(f"{path}: holds two benchmarks ({chosen[0].split('/')[0]}, {chosen[-1].split('/')[0]}); give the folder of one")


def release_items(name: str, where: str, records: Iterator[tuple[int, dict]]) -> Iterator[Raw]:
    split, language = EXAM_FILE.fullmatch(name).groups()
    for number, record in records:
        at = f"{where}:{number}"
        question = need(record, "question", at, str, "MMedBench")
        options = option_texts(need(record, "options", at, (dict, list), "MMedBench"), at, "MMedBench")
        extra = {key: value for key, value in record.items() if key not in ("question", "options", "answer_idx", "rationale", "id", "source")}
        yield Raw(str(record.get("source") or f"mmedbench-{language.lower()}"), language, split, name, at, question, options,
                  # MMedLM: both forms are met (METHOD.md 2.4); the official code takes either.
                  letters_in(need(record, "answer_idx", at, (str, list, type(None)), "MMedBench")),
                  id=str(record.get("id") or ""), rationale=record["rationale"] if isinstance(record.get("rationale"), str) else "", extra=extra)
