"""Health sites: turns saved web pages into documents that hold their main text.

In:  HTML files or folders of them, WARC files (as data_prep/fetch_site.py writes them), zipped sites.
Out: documents of source "site". Their `meta` has url, title, date, licence, file and fetched as far as known.
     OUT/kept, OUT/dropped, OUT/shards and OUT/funnel.json as for every step (data_prep/pipeline/shards.py).

    python -m data_prep.web_pages saved_site/ crawl/*.warc.gz --language fr --out pages_fr --workers 8

trafilatura (Barbaresi, ACL 2021 demo) decodes a page, removes menus, comments and other boilerplate, and
finds its title, date and licence. A unit of work is one archive, or one list of PAGES_PER_LIST loose pages.
Copies of a page under several addresses are left to data_prep/dedup.py.

The language is the one given on the command line: what pages state about their language is often wrong.
"""
from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.documents import Document, Funnel, normalise_text, shard_name
from data_prep.pipeline.shards import (
    add_shard_arguments,
    print_funnel,
    process_shards,
    shard_names,
    shard_options,
)
from data_prep.sources.saved_pages import ARCHIVE_SUFFIXES, HTML_SUFFIXES, SavedPage, read_pages, write_list
from data_prep.sources.worker import Unreadable, Worker, keep_or_drop
from mmed.languages import get_language
from mmed.utils.errors import Parser, UserError, main_guard, require_extra

VERSION = 2  # raise it when the same page gives another document: finished shards are then redone
PAGES_PER_LIST = 500  # loose pages in one unit of work, about 15 seconds
SUFFIXES = (*HTML_SUFFIXES, *ARCHIVE_SUFFIXES)
# Below its MIN_EXTRACTED_SIZE of 250 characters trafilatura distrusts the main text and takes every paragraph
# of the page, menus included. In Chinese or Japanese 250 characters are a long text (docs/corpus.md).
SHORTEST_TEXT = 50


# ---- inputs ----


def find_archives(inputs: list[str], out: Path) -> list[Path]:
    """The units of work: archives as given, and loose HTML files in lists below OUT/lists."""
    archives: list[Path] = []
    folders: dict[Path, list[Path]] = {}  # folder given (Path("pages") for single files) -> its HTML files
    for given in map(Path, inputs):
        if not given.exists():
            raise UserError(f"{given}: no such file or folder; give HTML, WARC or zip files, or folders")
        files = sorted(given.rglob("*")) if given.is_dir() else [given]
        known = [path for path in files if path.name.lower().endswith(SUFFIXES) and path.is_file()]
        if not known:
            raise UserError(f"{given}: no saved page here; known are {', '.join(SUFFIXES)}")
        archives += [path for path in known if path.name.lower().endswith(ARCHIVE_SUFFIXES)]
        if pages := [path for path in known if not path.name.lower().endswith(ARCHIVE_SUFFIXES)]:
            folders.setdefault(given if given.is_dir() else Path("pages"), []).extend(pages)
    for name, (folder, pages) in zip(shard_names(list(folders)), folders.items()):
        for start in range(0, len(pages), PAGES_PER_LIST):
            target = out / "lists" / f"{name}-{start // PAGES_PER_LIST:05}.jsonl"
            archives.append(write_list(target, pages[start:start + PAGES_PER_LIST], folder))
    return archives


# ---- text ----


@functools.cache
def trafilatura_settings() -> Any:
    settings = require_extra("trafilatura.settings", "web").use_config()
    settings.set("DEFAULT", "MIN_EXTRACTED_SIZE", str(SHORTEST_TEXT))
    return settings


def extract(body: bytes, url: str = "") -> dict[str, str]:
    """`text` of a page; `title`, `date`, `licence`, `url` if known. `Unreadable` if it has no main text."""
    trafilatura = require_extra("trafilatura", "web")
    found = trafilatura.bare_extraction(
        body, url=url or None, include_comments=False, include_tables=True, with_metadata=True,
        config=trafilatura_settings(),
        date_extraction_params={"original_date": True, "extensive_search": False})  # as stated, not guessed
    text = normalise_text(found.text or "").strip() if found else ""
    if not text:
        raise Unreadable("no main text")
    facts = {"title": found.title, "date": found.date, "licence": found.license, "url": url or found.url}
    return {"text": text, **{key: normalise_text(value) for key, value in facts.items() if value}}


def read_web(path: Path, funnel: Funnel, options: dict[str, Any]) -> Iterator[Document]:
    """The document of each page; a page without text gives an empty one with `reason` in its meta."""
    name = shard_name(path)
    with Worker(options["page_seconds"]) as worker:
        for number, page in enumerate(read_pages(path, options["max_page_bytes"], funnel), 1):
            funnel.add("HTML bytes", len(page.body))
            try:
                found = read_page(page, worker)
            except Unreadable as error:
                if options["strict"]:
                    raise UserError(f"{path}: page {number} ({page.file or page.url}): {error}; "
                                    "leave out --strict to drop and count such pages") from None
                found = {"text": "", "reason": str(error)}
            known = {"url": page.url, "file": page.file, "fetched": page.fetched}
            meta = {"licence": options["licence"], **known, **found}
            text = meta.pop("text")
            meta = {key: value for key, value in sorted(meta.items()) if value}
            yield Document(text, options["language"], options["source"] or "site", f"{name}:{number}", meta)


def read_page(page: SavedPage, worker: Worker) -> dict[str, str]:
    if page.problem:
        raise Unreadable(page.problem)
    if not page.body.strip():
        raise Unreadable("empty page")
    return worker.call(extract, page.body, page.url)


# ---- command ----


def extract_pages(inputs: list[str], out: str | Path, options: dict[str, Any], workers: int = 1,
                  **share: Any) -> Funnel:
    """All pages of the inputs; archives and lists that an earlier start has finished are not read again."""
    require_extra("trafilatura", "web")
    require_extra("warcio", "web")
    options = {**options, "version": VERSION, "trafilatura": version("trafilatura")}
    units = find_archives(inputs, Path(out))
    return process_shards(keep_or_drop, units, out, options, workers, "web_pages", read_web, SUFFIXES,
                          **share)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.web_pages",
                    description="Extract the main text of saved web pages as documents.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="site")
    parser.add_argument("--language", required=True, help="code or name of the language of all these pages")
    parser.add_argument("--max_page_mib", type=float, default=10,
                        help="drop larger pages (default: %(default)s)")
    parser.add_argument("--page_seconds", type=float, default=60,
                        help="drop pages that take longer to parse (default: %(default)s)")
    given = parser.parse_args(arguments)
    for option in ("max_page_mib", "page_seconds"):
        if getattr(given, option) <= 0:
            raise UserError(f"--{option} {getattr(given, option)}: must be above 0")
    language = get_language(given.language)
    options = {"language": language.code, "max_page_bytes": int(given.max_page_mib * (1 << 20)),
               "page_seconds": given.page_seconds, **shard_options(given)}
    start = time.monotonic()
    share = {"share": given.shard} if getattr(given, "shard", None) else {}
    funnel = extract_pages(given.inputs, given.out, options, given.workers, **share)
    print_funnel(funnel, f"web_pages {language.code}, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    main_guard(main)
