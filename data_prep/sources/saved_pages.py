"""Reads saved web pages as undecoded bytes out of WARC files, zip archives and lists of HTML files.

In:  .warc, .warc.gz; .zip; .jsonl, a list of loose HTML files that web_pages.py has written.
Out: `SavedPage`s in the order of the file; those that cannot be read have a `problem`. The funnel counts
     records that are not pages.

Nothing is unpacked to disk, and a page larger than `max_bytes` is not read to its end. Damage ends a WARC
where it is found: the pages before it are kept, and the rest of the file is counted as one dropped document.
"""
from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.documents import Funnel
from data_prep.record_files import DAMAGED
from mmed.utils.errors import require_extra
from mmed.utils.files import atomic_write

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".zip")
HTML_NAME = re.compile(r"\.x?html?(?:[?@].*)?$", re.IGNORECASE)  # wget writes the query into the file's name
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass
class SavedPage:
    body: bytes = b""
    file: str = ""  # path within the folder or archive
    url: str = ""
    fetched: str = ""  # ISO date and time, as the WARC states it
    problem: str = ""


def read_pages(path: Path, max_bytes: int, funnel: Funnel) -> Iterator[SavedPage]:
    name = path.name.lower()
    try:
        if name.endswith(".zip"):
            yield from read_zip(path, max_bytes, funnel)
        elif name.endswith(ARCHIVE_SUFFIXES):
            yield from read_warc(path, max_bytes, funnel)
        else:
            for entry in read_list(path):
                with open(entry["path"], "rb") as file:
                    yield page_of(file, max_bytes, file=entry["file"])
    except (zipfile.BadZipFile, zlib.error, EOFError):
        yield SavedPage(problem=DAMAGED)


def write_list(target: Path, files: list[Path], folder: Path) -> Path:
    """A list of files with their sizes and times of change; one that is still right is not written again."""
    text = ""
    for path in files:
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        entry = {"path": os.path.abspath(path), "file": shown.as_posix(),
                 "bytes": path.stat().st_size, "changed": path.stat().st_mtime_ns}
        text += json.dumps(entry) + "\n"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        with atomic_write(target) as file:
            file.write(text)
    return target


def read_list(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_zip(path: Path, max_bytes: int, funnel: Funnel) -> Iterator[SavedPage]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not HTML_NAME.search(info.filename):
                funnel.add("archive entries that are not HTML")
                continue
            try:
                with archive.open(info) as file:
                    yield page_of(file, max_bytes, file=info.filename)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # RuntimeError: encrypted
                yield SavedPage(file=info.filename, problem="archive entry damaged or encrypted")


def read_warc(path: Path, max_bytes: int, funnel: Funnel) -> Iterator[SavedPage]:
    archiveiterator = require_extra("warcio.archiveiterator", "web")
    exceptions = require_extra("warcio.exceptions", "web")
    with open(path, "rb") as file:
        try:
            for record in archiveiterator.ArchiveIterator(file):
                if not is_html_page(record):
                    funnel.add(f"WARC records that are not HTML pages: {record.rec_type}")
                    continue
                header = record.rec_headers.get_header
                page = page_of(record.content_stream(), max_bytes,
                               url=header("WARC-Target-URI") or "", fetched=header("WARC-Date") or "")
                if record.raw_stream.limit > 0 and not page.problem:  # the file ends within this record
                    page = SavedPage(url=page.url, problem=DAMAGED)
                yield page
        except (exceptions.ArchiveLoadFailed, ValueError):
            yield SavedPage(problem=DAMAGED)


def is_html_page(record: Any) -> bool:
    headers = {"resource": record.rec_headers, "response": record.http_headers}.get(record.rec_type)
    if headers is None or (record.rec_type == "response" and headers.get_statuscode() != "200"):
        return False
    return (headers.get_header("Content-Type") or "text/html").lower().startswith(HTML_TYPES)


def page_of(stream: Any, max_bytes: int, **origin: str) -> SavedPage:
    """The page in a stream, whose `read` may return fewer bytes than asked for."""
    body = bytearray()
    while len(body) <= max_bytes and (part := stream.read(min(1 << 18, max_bytes + 1 - len(body)))):
        body += part
    if len(body) > max_bytes:
        return SavedPage(**origin, problem="page too large")
    return SavedPage(bytes(body), **origin)
