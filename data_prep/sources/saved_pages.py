"""Reads saved web pages as undecoded bytes out of WARC files, zip archives and lists of HTML files.

In:  .warc and .arc, also .gz; .zip; .jsonl, a list of loose files that web_pages.py or books.py has written.
Out: `SavedPage`s in the order of the file; those that cannot be read have a `problem`. The funnel counts
     records that are not pages.

Nothing is unpacked to disk, and a page larger than MAX_PAGE_BYTES is not read to its end. Damage ends a WARC
where it is found: the pages before it are kept, and the rest of the file is counted as one dropped document.
"""
from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data_prep.documents import Funnel, shard_name
from data_prep.record_files import DAMAGED, open_packed
from mmed.utils.errors import require_extra
from mmed.utils.files import atomic_write

MAX_PAGE_BYTES = 10 << 20
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".arc", ".arc.gz", ".zip")
HTML_NAME = re.compile(r"\.x?html?(?:[?@].*)?$", re.IGNORECASE)  # wget writes the query into the file's name
HTML_TYPES = ("text/html", "application/xhtml+xml")
OTHER = "records that are not HTML pages"


@dataclass
class SavedPage:
    body: bytes = b""
    id: str = ""  # name of the file it is in, and its number there
    file: str = ""  # path within the folder or archive
    url: str = ""
    fetched: str = ""  # ISO date and time, as the WARC states it
    headers: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def read_pages(path: Path, funnel: Funnel, options: Any = None) -> Iterator[SavedPage]:
    name = path.name.lower()
    read = read_zip if name.endswith(".zip") else read_warc if name.endswith(ARCHIVE_SUFFIXES) else read_files
    for number, page in enumerate(read(path, funnel), 1):
        page.id = f"{shard_name(path)}:{number}"
        yield page


def read_files(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    for entry in read_list(path):
        with open(entry["path"], "rb") as file:
            yield page_of(file, file=entry["file"])


def read_zip(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        yield SavedPage(problem=DAMAGED)
        return
    with archive:
        for info in archive.infolist():
            if not HTML_NAME.search(info.filename):
                funnel.add(OTHER)
                continue
            try:
                with archive.open(info) as file:
                    yield page_of(file, file=info.filename)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # RuntimeError: encrypted
                yield SavedPage(file=info.filename, problem="archive entry damaged or encrypted")


def read_warc(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    iterate = require_extra("warcio.archiveiterator", "web").ArchiveIterator
    failed = require_extra("warcio.exceptions", "web").ArchiveLoadFailed
    # warcio 1.8 crashes with brotli 1.2; trafilatura unpacks such pages
    require_extra("warcio.bufferedreaders", "web").BufferedReader.DECOMPRESSORS.pop("br", None)
    file, damage = open_packed(path)
    with file:
        try:
            stream = SimpleNamespace(read=file.read1, tell=file.tell)  # read1: all that comes before damage
            for record in iterate(stream, arc2warc=True):
                if not is_html_page(record):
                    funnel.add(OTHER)
                    continue
                about, headers = record.rec_headers, dict(record.http_headers.headers)
                page = page_of(record.content_stream(), url=about.get_header("WARC-Target-URI") or "",
                               fetched=about.get_header("WARC-Date") or "", headers=headers)
                if record.raw_stream.limit > 0 and not page.problem:  # the file ends within this record
                    page.problem = DAMAGED
                yield page
        except (failed, *damage, zlib.error, EOFError, ValueError):
            yield SavedPage(problem=DAMAGED)


def is_html_page(record: Any) -> bool:
    headers = record.http_headers  # none in the record of a DNS look-up
    if record.rec_type != "response" or headers is None or headers.get_statuscode() != "200":
        return False
    return (headers.get_header("Content-Type") or "text/html").lower().startswith(HTML_TYPES)


def page_of(stream: Any, **origin: Any) -> SavedPage:
    """The page in a stream, whose `read` may return fewer bytes than asked for."""
    body = bytearray()
    while len(body) <= MAX_PAGE_BYTES and (part := stream.read(1 << 18)):
        body += part
    if len(body) > MAX_PAGE_BYTES:
        return SavedPage(**origin, problem="page too large")
    return SavedPage(bytes(body), **origin)


def write_list(target: Path, files: list[Path], folder: Path) -> Path:
    """Write a list of files with sizes and modification times, unless it is up to date."""
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
