"""Health sites: turns saved web pages into documents that hold their main text.

In:  HTML files or folders of them, WARC files (as data_prep/fetch_site.py writes them), ARC or CommonCrawl's
     WET, which has plain text, zipped sites. Files without a suffix are pages if they begin as HTML does.
Out: documents of source "site". Their `meta` has url, title, date, licence, file and fetched as far as known.
     OUT/kept, OUT/dropped, OUT/shards and OUT/funnel.json as for every step (data_prep/pipeline/shards.py).

    python -m data_prep.web_pages saved_site/ crawl/*.warc.gz --language fr --out pages_fr --workers 8

trafilatura (Barbaresi, ACL 2021 demo) finds the main text of a page, its title, date and licence. What pages
state about their language is often wrong and not read. Damage ends a WARC: the rest is one dropped document.
"""
from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data_prep.documents import Document, Funnel, find_inputs, has_suffix, normalise_text, write_list
from data_prep.filters.language_codes import find_language
from data_prep.pipeline.shards import add_shard_arguments, run_step, shard_names
from data_prep.record_files import DAMAGE, DAMAGED, PACKED, open_packed
from data_prep.sources.worker import Unreadable, Worker, keep_readable
from mmed.utils.errors import Parser, main_guard, require_extra
from mmed.utils.files import read_jsonl

VERSION = 4  # raise it when the same page gives another document: finished shards are then redone
MAX_PAGE_BYTES = 10 << 20
PAGE_SECONDS = 60
PAGES_PER_LIST = 500  # loose pages in one unit of work, about 15 seconds
HTML_SUFFIXES = (".html", ".htm", ".xhtml", ".shtml", ".php", ".asp", ".aspx", ".jsp")
ARCHIVE_SUFFIXES = (".zip", *(kind + end for kind in (".warc", ".arc", ".wet") for end in ("", *PACKED)))
SUFFIXES = (*HTML_SUFFIXES, *ARCHIVE_SUFFIXES, "")  # "": no suffix at all
HTML_TYPES = ("text/html", "application/xhtml+xml")
OTHER = "records that are not HTML pages"
# Below its MIN_EXTRACTED_SIZE of 250 characters trafilatura distrusts the main text and takes every paragraph
# of the page, menus included. In Chinese or Japanese 250 characters are a long text (docs/corpus.md).
SHORTEST_TEXT = 50


@dataclass
class SavedPage:
    body: bytes = b""
    meta: dict[str, str] = field(default_factory=dict)  # as far as known: url; file (path within IN); fetched
    headers: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    plain: bool = False  # the body is its text


def find_archives(inputs: list[str], out: Path) -> list[Path]:
    """The units of work: archives as given, and loose HTML files in lists below OUT/lists."""
    archives: list[Path] = []
    folders: dict[Path, list[Path]] = defaultdict(list)  # folder given -> its pages
    for given in (Path(name).absolute() for name in inputs):
        for path in find_inputs([given], SUFFIXES, out):
            if has_suffix(path.name, ARCHIVE_SUFFIXES) and not has_suffix(path.name, HTML_SUFFIXES):
                archives.append(path)
            else:
                folders[given if given.is_dir() else given.parent].append(path)
    for name, (folder, pages) in zip(shard_names(list(folders)), folders.items()):
        for start in range(0, len(pages), PAGES_PER_LIST):
            target = out / "lists" / f"{name}-{start // PAGES_PER_LIST:05}.jsonl"
            archives.append(write_list(target, pages[start:start + PAGES_PER_LIST], folder))
    return archives


def read_pages(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    if has_suffix(path.name, ARCHIVE_SUFFIXES[1:]):
        yield from read_warc(path, funnel)
        return
    for page in read_files(path) if path.suffix == ".jsonl" else read_zip(path, funnel):
        begins = page.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if begins == b"<" or page.problem or has_suffix(page.meta["file"], HTML_SUFFIXES):
            yield page
        else:
            funnel.details[OTHER] += 1


def read_files(path: Path) -> Iterator[SavedPage]:
    for _, entry in read_jsonl(path):
        with open(entry["path"], "rb") as file:
            yield page_of(file, {"file": entry["file"]})


def read_zip(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        yield SavedPage(problem=DAMAGED)
        return
    with archive:
        for entry in (entry for entry in archive.infolist() if not entry.is_dir()):
            meta, name = {"file": entry.filename}, Path(entry.filename).name
            if name.startswith(".") or not has_suffix(name, (*HTML_SUFFIXES, "")):
                funnel.details[OTHER] += 1
                continue
            try:
                with archive.open(entry) as file:
                    yield page_of(file, meta)
            except (zipfile.BadZipFile, RuntimeError, *DAMAGE):  # RuntimeError: encrypted
                yield SavedPage(meta=meta, problem="archive entry damaged or encrypted")


def read_warc(path: Path, funnel: Funnel) -> Iterator[SavedPage]:
    iterate = require_extra("warcio.archiveiterator", "web").ArchiveIterator
    failed = require_extra("warcio.exceptions", "web").ArchiveLoadFailed
    # warcio 1.8 crashes with brotli 1.2; trafilatura unpacks such pages
    require_extra("warcio.bufferedreaders", "web").BufferedReader.DECOMPRESSORS.pop("br", None)
    with open_packed(path) as file:
        try:
            if not file.peek(1):
                raise EOFError  # a download that did not begin
            stream = SimpleNamespace(read=file.read1, tell=file.tell)  # read1: all that comes before damage
            for record in iterate(stream, arc2warc=True):
                if not is_page(record):
                    funnel.details[OTHER] += 1
                    continue
                meta = {key: record.rec_headers.get_header(name)
                        for key, name in (("url", "WARC-Target-URI"), ("fetched", "WARC-Date"))}
                headers = record.http_headers.headers if record.http_headers else ()
                page = page_of(record.content_stream(), meta, dict(headers))
                page.plain = record.rec_type == "conversion"
                if record.raw_stream.limit > 0 and not page.problem:  # the file ends within this record
                    page.problem = DAMAGED
                yield page
        except (failed, ValueError, *DAMAGE):
            yield SavedPage(problem=DAMAGED)


def is_page(record: Any) -> bool:
    if record.rec_type == "conversion":
        return True
    headers = record.http_headers  # none in the record of a DNS look-up
    if record.rec_type != "response" or headers is None or headers.get_statuscode() != "200":
        return False
    return (headers.get_header("Content-Type") or "text/html").lower().startswith(HTML_TYPES)


def page_of(stream: Any, meta: dict[str, str], headers: dict[str, str] | None = None) -> SavedPage:
    """The page in a stream, whose `read` may return fewer bytes than asked for."""
    body = bytearray()
    while len(body) <= MAX_PAGE_BYTES and (part := stream.read(1 << 18)):
        body += part
    problem = "page too large" if len(body) > MAX_PAGE_BYTES else ""
    return SavedPage(bytes(body), meta, headers or {}, problem)


def extract(body: bytes, url: str = "", plain: bool = False) -> dict[str, str]:
    """`text` of a page; `title`, `date`, `licence`, `url` if known. `Unreadable` if it has no main text."""
    if plain and (text := normalise_text(body.decode("utf-8", "replace")).strip()):
        return {"text": text}
    settings = require_extra("trafilatura.settings", "web").use_config()
    settings.set("DEFAULT", "MIN_EXTRACTED_SIZE", str(SHORTEST_TEXT))
    found = require_extra("trafilatura", "web").bare_extraction(
        body, url=url or None, include_comments=False, with_metadata=True, config=settings,
        date_extraction_params={"original_date": True, "extensive_search": False})  # as stated, not guessed
    text = normalise_text(found.text or "").strip() if found else ""
    if not text:
        raise Unreadable("no main text")
    facts = {"title": found.title, "date": found.date, "licence": found.license, "url": url or found.url}
    return {"text": text, **{key: normalise_text(value) for key, value in facts.items() if value}}


def read_web(path: Path, funnel: Funnel, options: dict[str, Any]) -> Iterator[tuple[Document, str]]:
    """The documents of the pages in an archive or list, or without text and the reason for it."""
    with Worker(PAGE_SECONDS) as worker:
        for number, page in enumerate(read_pages(path, funnel), 1):
            facts = {**page.meta, "licence": options["licence"]}
            meta = {key: value for key, value in facts.items() if value}
            name = f"{options['name']}:{number}"
            document = Document("", options["language"], options["source"], name, meta)
            try:
                if page.problem:
                    raise Unreadable(page.problem)
                found = worker.call(extract, page.body, meta.get("url", ""), page.plain)
            except Unreadable as error:
                yield document, str(error)
            else:
                document.text = found.pop("text")
                document.meta |= found
                yield document, ""


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.web_pages",
                    description="Extract the main text of saved web pages.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="site")
    parser.add_argument("--language", required=True, help="language of all these pages: code or name")
    given = parser.parse_args(arguments)
    require_extra("trafilatura", "web")
    require_extra("warcio", "web")
    options = {"language": find_language(given.language).code, "version": VERSION,
               "trafilatura": version("trafilatura")}
    given.inputs = find_archives(given.inputs, Path(given.out))
    return run_step(keep_readable, "web_pages", options, given, suffixes=SUFFIXES, read=read_web)


if __name__ == "__main__":
    main_guard(main)
