"""Health sites: saved web pages -> documents with their main text.

In:  .html files, WARC, zip or tar archives of pages, folders of them (data_prep/sources/page_files.py); data_prep/fetch_site.py makes WARCs.
Out: documents of source "site" with `meta` = url, title, date, licence and html_language as far as the page states them, file
     (its path in the folder or archive) and fetched; OUT/kept, OUT/dropped with `reason`, OUT/shards, OUT/funnel.json as of
     every step (data_prep/pipeline/shards.py); OUT/extracted, which may be deleted after.

    python -m data_prep.web_pages saved_site/ crawl/*.warc.gz --language fr --out pages_fr --workers 8

1. Extract: a process an input file (loose pages: PAGES_A_SHARD together), and beside it one that parses (data_prep/sources/page_text.py),
   which may crash or hang on a page: that page is dropped and the rest goes on.
2. Decide which pages are exact duplicates, over all inputs: equal text, whatever the address. Sites repeat their pages under
   print views, session ids and http beside https. The first stays, in the order of the shards' names and of the pages in them,
   so neither the order of the inputs nor the number of workers matters. Near duplicates are left to data_prep/dedup.py.
3. Write kept and dropped documents.

Memory: one page a worker (and `--page-memory-mib` in the process that parses it); about 60 bytes a page while deciding.
Characters in the funnel are those of the main text; `details` holds the bytes of HTML they were found in, and what was no page.
Of a page that gives no text, dropped/ has the place and the reason, not the HTML.

The language is what is given, for a site or folder of one language; `html_language` is what the page says, often wrongly.
Boilerplate by trafilatura (Barbaresi, ACL 2021 demo), as in datatrove; one version gives one text, so its version is part of
what makes a finished shard be done again.
"""
from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.documents import Document, Funnel, read_documents
from data_prep.pipeline.shards import (
    ShardWriter,
    add_shard_arguments,
    gather_funnel,
    one_run,
    print_funnel,
    process_shard,
    refuse_strangers,
    run_jobs,
    shard_names,
    shard_options,
)
from data_prep.sources import page_files, page_text
from mmed.languages import get_language
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

VERSION = 1  # raise it when the same page gives another document
PAGES_A_SHARD = 500  # loose files that are one shard: some 15 seconds of work
SUFFIXES = (*page_files.LOOSE, *page_files.ARCHIVES)
DUPLICATE = "exact duplicate"


# ---- inputs -----------------------------------------------------------------------------------------------------------


def find_shards(inputs: list[str | Path], out: Path) -> tuple[list[tuple[str, Path]], Counter[str]]:
    """(name, file) of each shard, sorted by name, and how many files of which kind were passed over in folders.

    Archives are shards as they are; loose pages are listed, with the hashes of their contents, in files OUT/pages/NAME.pages.
    """
    archives: list[Path] = []
    loose: dict[Path | None, list[tuple[Path, str]]] = {}  # folder given (None: files given one by one) -> pages, their names
    passed_over: Counter[str] = Counter()
    for given in map(Path, inputs):
        if given.is_dir():
            found = 0
            for path in sorted(path for path in given.rglob("*") if path.is_file()):
                kind = path.name.lower()
                if kind.endswith(page_files.ARCHIVES):
                    archives.append(path)
                elif kind.endswith(page_files.LOOSE):
                    loose.setdefault(given, []).append((path, path.relative_to(given).as_posix()))
                else:
                    passed_over[path.suffix.lower() or "without a suffix"] += 1
                    continue
                found += 1
            if not found:
                raise UserError(f"{given}: no saved page in this folder (looked for {', '.join(SUFFIXES)})")
        elif not given.is_file():
            raise UserError(f"{given}: no such file or folder")
        elif given.name.lower().endswith(page_files.ARCHIVES):
            archives.append(given)
        elif given.name.lower().endswith(page_files.LOOSE):
            loose.setdefault(None, []).append((given, given.as_posix()))
        else:
            raise UserError(f"{given}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    everything = [path.resolve() for path in archives] + [path.resolve() for pages in loose.values() for path, _ in pages]
    if len(set(everything)) < len(everything):
        raise UserError(f"{Counter(everything).most_common(1)[0][0]}: given twice; name each input once")
    folders = [folder for folder in loose if folder is not None]
    shards = list(zip(shard_names([*archives, *folders]), [*archives, *folders]))
    listed: list[tuple[str, Path]] = []
    for name, path in [*shards, *([("pages", None)] if None in loose else [])]:
        if path in loose:
            listed += _list_pages(name, sorted(loose[path], key=lambda page: page[1]), out / "pages")
        else:
            listed.append((name, path))
    if len({name for name, _ in listed}) < len(listed):
        twice = Counter(name for name, _ in listed).most_common(1)[0][0]
        raise UserError(f"two inputs would write the same shard {twice!r}; rename one")
    return sorted(listed), passed_over


def _list_pages(name: str, pages: list[tuple[Path, str]], folder: Path) -> list[tuple[str, Path]]:
    shards = []
    for number, start in enumerate(range(0, len(pages), PAGES_A_SHARD)):
        shards.append((f"{name}-{number:05}", folder / f"{name}-{number:05}{page_files.LIST}"))
        with atomic_write(shards[-1][1]) as file:
            for path, told in pages[start:start + PAGES_A_SHARD]:
                with open(path, "rb") as page:
                    content = hashlib.file_digest(page, "sha256").hexdigest()
                file.write(json.dumps({"path": str(path.resolve()), "file": told, "sha256": content}) + "\n")
    return shards


# ---- 1. extract -------------------------------------------------------------------------------------------------------


def read_web(path: Path, funnel: Funnel, options: dict[str, Any]) -> Iterator[Document]:
    """A document for each page; of one that gives none, without text and with `reason` in its meta.

    options: name (of the shard), language, source, licence, archive_limits, page_limits, strict.
    """
    passed_over: Counter[str] = Counter()
    pages = page_files.read_pages(path, page_files.Limits(*options["archive_limits"]), passed_over)
    with page_text.Extractor(page_text.Limits(*options["page_limits"])) as extractor:
        for number, page in enumerate(pages, 1):
            answer = {"reason": page.reason} if page.reason else extractor.read(page)
            if "reason" in answer and options.get("strict"):
                raise UserError(f"{path}: page {number} ({page.file or page.url}): {answer['reason']}; "
                                "leave out --strict to drop and count such pages")
            funnel.add("HTML bytes", len(page.body))
            if answer.pop("replaced", False):
                funnel.add("pages with broken characters")
            text = answer.pop("text", "")
            meta = {**answer, "file": page.file, "fetched": page.fetched}
            meta["url"] = page.url or meta.get("url", "")
            if text:
                meta["licence"] = meta.get("licence") or options.get("licence", "")
            meta = {key: meta[key] for key in sorted(meta) if meta[key]}
            yield Document(text, options["language"], options.get("source") or "site", f"{options['name']}:{number}", meta)
    for kind, count in passed_over.items():
        funnel.add(kind, count)


def take_pages(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep what has a text, drop what has a reason."""
    for document in documents:
        if reason := document.meta.pop("reason", ""):
            shard.drop(document, reason)
        else:
            shard.keep(document)


# ---- 2. decide --------------------------------------------------------------------------------------------------------


def hash_shard(path: Path) -> tuple[bytes, bytes]:
    """Of each document of a shard: 16 bytes of its text's hash, and its page number (8 bytes, little-endian)."""
    digests, numbers = bytearray(), bytearray()
    for document in read_documents(path, Funnel(), strict=True):
        digests += hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        numbers += int(document.id.rpartition(":")[2]).to_bytes(8, "little")
    return bytes(digests), bytes(numbers)


def decide(names: list[str], hashed: list[tuple[bytes, bytes]]) -> list[list[tuple[int, str]]]:
    """For each shard (row, id of the document that stays) of those of its documents that are copies of an earlier one.

    >>> page = lambda number: number.to_bytes(8, "little")
    >>> decide(["a", "b"], [(b"A" * 16 + b"B" * 16, page(1) + page(7)), (b"B" * 16 + b"C" * 16 + b"B" * 16, page(1) + page(2) + page(3))])
    [[], [(0, 'a:7'), (2, 'a:7')]]
    """
    halves = np.frombuffer(b"".join(digests for digests, _ in hashed), "<u8").reshape(-1, 2)
    numbers = np.frombuffer(b"".join(numbers for _, numbers in hashed), "<u8")
    first = np.cumsum([0, *(len(numbers) // 8 for _, numbers in hashed)])  # each shard's first document
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: among equals the earlier comes first
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(1)
    original = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    copies: list[list[tuple[int, str]]] = [[] for _ in names]
    fallen = np.flatnonzero(~new)
    fallen = fallen[np.argsort(order[fallen])]
    for copy, stays in zip(order[fallen].tolist(), original[fallen].tolist()):
        shard, home = (int(np.searchsorted(first, place, "right")) - 1 for place in (copy, stays))
        copies[shard].append((copy - int(first[shard]), f"{names[home]}:{numbers[stays]}"))
    return copies


# ---- 3. write ---------------------------------------------------------------------------------------------------------


def write_shard(folder: Path, documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep the extracted documents of one shard that are no copies; take over what fell in step 1 (`folder`), and its counts.

    options: name, copies (the hash of FOLDER/copies/NAME.json, which holds rows and what each is a copy of).
    """
    name = options["name"]
    copies = dict(map(tuple, read_json(folder / "copies" / f"{name}.json")))
    for row, document in enumerate(documents):
        if row in copies:
            shard.drop(document, DUPLICATE, duplicate_of=copies[row])
        else:
            shard.keep(document)
    with gzip.open(folder / "dropped" / f"{name}.jsonl.gz", "rb") as file:
        for line in file:
            record = json.loads(line)
            shard.drop(Document(**{key: record[key] for key in ("text", "language", "source", "id", "meta")}), record["reason"])
    for key, amount in read_json(folder / "shards" / f"{name}.json")["details"].items():
        shard.funnel.add(key, amount)


# ---- all of it --------------------------------------------------------------------------------------------------------


def extract_options(language: str, archive_limits: page_files.Limits = page_files.Limits(),  # noqa: B008 (immutable)
                    page_limits: page_text.Limits = page_text.Limits(), **more: Any) -> dict[str, Any]:  # noqa: B008
    """All that the text of a page depends on."""
    return {"language": language, "archive_limits": list(archive_limits), "page_limits": list(page_limits), "version": VERSION,
            "trafilatura": version("trafilatura"), **more}


def extract_pages(inputs: list[str | Path], out: str | Path, options: dict[str, Any], workers: int = 1) -> Funnel:
    """Extract, decide, write; finished shards of an earlier start are passed over. `options` of `extract_options`."""
    out = Path(out)
    page_text.Extractor(page_text.Limits()).close()  # what is missing is said before the work begins
    with one_run(out):
        shards, passed_over = find_shards(inputs, out)
        names, paths = [name for name, _ in shards], [path for _, path in shards]
        refuse_strangers(out, names)
        folder, told = out / "extracted", [str(path) for path in paths]
        jobs = [(take_pages, path, name, folder, {**options, "name": name, "suffix": ".jsonl.gz"}, "extract", read_web)
                for name, path in shards]
        records = run_jobs(process_shard, jobs, workers, "extract", told)
        kept = [folder / "kept" / f"{name}.jsonl.gz" for name in names]
        copies = decide(names, run_jobs(hash_shard, [(path,) for path in kept], workers, "compare", told))
        jobs = []
        for name, path, rows, record in zip(names, kept, copies, records):
            write_json(folder / "copies" / f"{name}.json", rows)
            known = {"name": name, "copies": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "extracted": record["fingerprint"],
                     "suffix": options.get("suffix", ".jsonl.gz")}
            jobs.append((functools.partial(write_shard, folder), path, name, out, known, "web_pages"))
        run_jobs(process_shard, jobs, workers, "write", told)
        return gather_funnel(out, names, "web_pages", files_passed_over=dict(sorted(passed_over.items())))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.web_pages", description="Documents from saved web pages.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="site")
    parser.add_argument("--language", required=True, help="code or name of the language of all these pages")
    archive, page = page_files.Limits(), page_text.Limits()
    parser.add_argument("--max-page-mib", type=float, default=archive.page_bytes / (1 << 20), help="a larger page is dropped (default: %(default)g)")
    parser.add_argument("--max-ratio", type=int, default=archive.ratio, help="an archive may unpack to so many times its size (default: %(default)s)")
    parser.add_argument("--max-entries", type=int, default=archive.entries, help="entries of a zip or tar that are read (default: %(default)s)")
    parser.add_argument("--page-seconds", type=float, default=page.seconds, help="processor time a page may take (default: %(default)g)")
    parser.add_argument("--page-memory-mib", type=int, default=page.memory_mib, help="memory a page may take (default: %(default)s)")
    given = parser.parse_args(argv)
    for option in ("max_page_mib", "max_ratio", "max_entries", "page_seconds", "page_memory_mib"):
        if not getattr(given, option) > 0:
            raise UserError(f"--{option.replace('_', '-')} {getattr(given, option)}: must be above 0")

    language = get_language(given.language)
    options = extract_options(language.code, page_files.Limits(int(given.max_page_mib * (1 << 20)), given.max_ratio, given.max_entries),
                              page_text.Limits(given.page_seconds, given.page_memory_mib), **shard_options(given))
    funnel = extract_pages(given.inputs, given.out, options, given.workers)
    print_funnel(funnel, f"web_pages {language.code}")
    for kind, count in read_json(Path(given.out) / "funnel.json")["files_passed_over"].items():
        print(f"  {count:>10,}  files passed over: {kind}")
    return 0


if __name__ == "__main__":
    main_guard(main)
