"""Health sites: turns saved web pages into documents that hold their main text.

In:  HTML files or folders of them, WARC files (as data_prep/fetch_site.py writes them) or ARC, zipped sites.
Out: documents of source "site". Their `meta` has url, title, date, licence, file and fetched as far as known.
     OUT/kept, OUT/dropped, OUT/shards and OUT/funnel.json as for every step (data_prep/pipeline/shards.py).

    python -m data_prep.web_pages saved_site/ crawl/*.warc.gz --language fr --out pages_fr --workers 8

trafilatura (Barbaresi, ACL 2021 demo) decodes a page, removes menus, comments and other boilerplate, and
finds its title, date and licence. A unit of work is one archive, or one list of PAGES_PER_LIST loose pages.
Copies of a page under several addresses are left to data_prep/dedup.py.

The language is the one given on the command line: what pages state about their language is often wrong.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.documents import Document, find_inputs, normalise_text
from data_prep.pipeline.shards import ShardWriter, add_shard_arguments, run_step, shard_names
from data_prep.sources.saved_pages import ARCHIVE_SUFFIXES, HTML_SUFFIXES, SavedPage, read_pages, write_list
from data_prep.sources.worker import Unreadable, Worker
from mmed.languages import get_language
from mmed.utils.errors import Parser, main_guard, require_extra

VERSION = 3  # raise it when the same page gives another document: finished shards are then redone
PAGE_SECONDS = 60
PAGES_PER_LIST = 500  # loose pages in one unit of work, about 15 seconds
SUFFIXES = (*HTML_SUFFIXES, *ARCHIVE_SUFFIXES)
# Below its MIN_EXTRACTED_SIZE of 250 characters trafilatura distrusts the main text and takes every paragraph
# of the page, menus included. In Chinese or Japanese 250 characters are a long text (docs/corpus.md).
SHORTEST_TEXT = 50


def find_archives(inputs: list[str], out: Path) -> list[Path]:
    """The units of work: archives as given, and loose HTML files in lists below OUT/lists."""
    archives: list[Path] = []
    folders: dict[Path, list[Path]] = defaultdict(list)  # folder given -> its pages
    for given in map(Path, inputs):
        for path in find_inputs([given], SUFFIXES):
            if path.name.lower().endswith(ARCHIVE_SUFFIXES):
                archives.append(path)
            else:
                folders[given if given.is_dir() else Path("pages")].append(path)
    for name, (folder, pages) in zip(shard_names(list(folders)), folders.items()):
        for start in range(0, len(pages), PAGES_PER_LIST):
            target = out / "lists" / f"{name}-{start // PAGES_PER_LIST:05}.jsonl"
            archives.append(write_list(target, pages[start:start + PAGES_PER_LIST], folder))
    return archives


def extract(body: bytes, url: str = "") -> dict[str, str]:
    """`text` of a page; `title`, `date`, `licence`, `url` if known. `Unreadable` if it has no main text."""
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


def read_web(pages: Iterator[SavedPage], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep the document of each page, or drop a page that has no text."""
    with Worker(PAGE_SECONDS) as worker:
        for page in pages:
            found = {"url": page.url, "file": page.file, "fetched": page.fetched,
                     "licence": options["licence"]}
            problem = page.problem or ("" if page.body.strip() else "empty page")
            if not problem:
                try:
                    found |= worker.call(extract, page.body, page.url)
                except Unreadable as error:
                    problem = str(error)
            text = found.pop("text", "")
            meta = {key: value for key, value in sorted(found.items()) if value}
            document = Document(text, options["language"], options["source"], page.id, meta)
            if problem:
                shard.reject(document, problem, page.file or page.url)
            else:
                shard.keep(document)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.web_pages",
                    description="Extract the main text of saved web pages.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="site")
    parser.add_argument("--language", required=True, help="language of all these pages: code or name")
    given = parser.parse_args(arguments)
    require_extra("trafilatura", "web")
    require_extra("warcio", "web")
    options = {"language": get_language(given.language).code, "version": VERSION,
               "trafilatura": version("trafilatura")}
    given.inputs = find_archives(given.inputs, Path(given.out))
    return run_step(read_web, "web_pages", options, given, read=read_pages, suffixes=SUFFIXES)


if __name__ == "__main__":
    main_guard(main)
