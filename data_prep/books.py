"""Books: PDFs -> documents, the second source of MMedC (5.9 of its 25.5 billion tokens).

    python -m data_prep.books shelf/ more/book.pdf --language ru --out books_ru --workers 8

In:  PDF files, or folders looked through for them.
Out: OUT/kept/BOOK.jsonl.gz, OUT/dropped/BOOK.jsonl.gz with `reason`, OUT/shards/BOOK.json, OUT/funnel.json, as every step
     (`data_prep.pipeline.shards`); below OUT also work/BOOK.jsonl, what OCR has read so far. One file a book.
Order, a book: `Pages` reads every page in a process of its own (`data_prep.sources.pdf_pages`) -> `is_scanned` -> `text_pages` leaves
     out front and back matter -> `ocr_pages` reads pages without text -> paragraphs (`data_prep.sources.book_layout`) -> `parts_of`.

A book becomes documents of some PART characters, cut between paragraphs, about a chapter each: what comes after judges whole
documents, so one exam question or one copied chapter costs a part and not a book, and a document is still many times a training
window long. `--part-characters 0` keeps a book whole. `meta` has the file's name and sha256, its number of pages, which part
this is, and which of its pages were read how.

OCR is the work of days, so each page is kept as soon as it is read: killed at any moment and started again, a run goes on with
the next page and writes the same bytes. A book that cannot be read is dropped with the reason and the others go on.

MMedLM: a book is scanned if letters and digits are less than half of its characters or fewer than 200 a page; from 100 pages on
only those with 0.018 N + 3 < p < N - 5 are kept (pdf_ocr).
DIFFERS: in a scanned book pages that pass the rule alone keep their own text, and in a text book pages without text are read by
OCR too; there the whole book goes one way.
DIFFERS: front and back matter are left out of scanned books as well, as the paper says; the official code does so for text alone.
DIFFERS: Tesseract instead of PaddleOCR: a Debian package with its models, no GPU; lines it hardly believes in are left out.
DIFFERS: running titles, page numbers, hyphens and line ends are repaired; the official code keeps them all.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.documents import Document, Funnel, json_line
from data_prep.pipeline.shards import (
    ShardWriter,
    gather_funnel,
    one_run,
    print_funnel,
    process_shard,
    refuse_strangers,
    run_jobs,
)
from data_prep.sources.book_layout import Paragraph, clean, join_fragments, join_lines
from data_prep.sources.book_margins import Line, split_margins
from data_prep.sources.pdf_pages import BOOK_CHARACTERS, BookError, Limits, Pages, check_tesseract
from mmed.languages import get_language
from mmed.utils.errors import Parser, UserError, main_guard, require_extra
from mmed.utils.files import write_json

STEP = "books"
VERSION = 1  # raise it when the same book gives other text: finished books are then done again
MIN_LETTER_SHARE, MIN_LETTERS = 0.5, 200  # of a text book: of all characters, and a page
PAGE_LETTERS = 20  # a page of a text book with fewer, and with pictures, is read by OCR
WHOLE_PAGES = 100  # shorter books keep all their pages
PART = 50_000  # characters, about a chapter
OCR_FAILURES = 10  # so many pages that OCR fails on, and the book is given up
NAME_LETTERS = 80  # of a file's name in OUT; file systems take 255 bytes


# ---- the paper's rules ------------------------------------------------------------------------------------------------


def is_scanned(pages: list[dict[str, Any]]) -> bool:
    """The paper's rule, over a whole book.

    >>> is_scanned([{"characters": 1500, "letters": 1200}, {"characters": 0, "letters": 0}])
    False
    >>> is_scanned([{"characters": 300, "letters": 190}]), is_scanned([{"characters": 3000, "letters": 1400}]), is_scanned([])
    (True, True, True)
    """
    characters, letters = (sum(page[key] for page in pages) for key in ("characters", "letters"))
    return letters < MIN_LETTER_SHARE * characters or letters < MIN_LETTERS * len(pages) or not letters


def text_pages(count: int) -> range:
    """The paper's rule: the pages, from 0, that are neither front nor back matter.

    >>> text_pages(99), text_pages(1000)
    (range(0, 99), range(22, 995))
    """
    if count < WHOLE_PAGES:
        return range(count)
    return range(int(0.018 * count + 3) + 1, count - 5)


def needs_ocr(page: dict[str, Any], scanned: bool) -> bool:
    """Whether a page has something to read that is not text."""
    return page["drawn"] and (is_scanned([page]) if scanned else page["letters"] < PAGE_LETTERS)


# ---- one book ---------------------------------------------------------------------------------------------------------


def read_book(path: Path, funnel: Funnel, options: dict[str, Any], journal: Path, bar: bool = False) -> Iterator[Document]:
    """The documents of one book; those with a `reason` in meta are for the dropped. The reader of `process_shard`."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    language = get_language(options["language"])
    about = {"file": path.name, "sha256": sha256, **({"licence": options["licence"]} if options["licence"] else {})}
    new = functools.partial(Document, language=language.code, source="book")
    name = journal.name.removesuffix(".jsonl")
    funnel.add("books")
    try:
        with Pages(path, Limits(**options["limits"])) as reader:
            pages = read_pages(reader, options["limits"]["book_seconds"])
            inner = text_pages(len(pages))
            scanned = is_scanned(pages)
            wanted = [number for number in inner if needs_ocr(pages[number], scanned)]
            recognised = ocr_pages(reader, wanted, journal, sha256, options, bar) if options["ocr"] else {}
    except BookError as error:
        say_dropped(path, error.reason)
        yield new("", id=name, meta={**about, "reason": error.reason, **error.more})
        return
    lines, how = choose_lines(pages, inner, set(wanted), recognised)
    for kind in how.values():
        funnel.add(f"pages: {kind}")
    about["pages"] = len(pages)
    texts, margins = split_margins(lines)
    funnel.add("characters of running titles and page numbers", sum(len(line.text) for page in margins for line in page))
    join = functools.partial(join_lines, spaced=language.spaced, hyphenated=language.spaced and not language.right_to_left)
    read = [number for number in how if how[number] in ("text", "ocr")]
    parts = parts_of(join([(number, texts[number]) for number in read]), options["part_characters"])
    if not parts:
        reason = "no text" if options["ocr"] or not wanted else "scanned, and OCR is off"
        say_dropped(path, reason)
        yield new("", id=name, meta={**about, "read": page_ranges(how), "reason": reason})
    for number, part in enumerate(parts):
        until = max(part[-1].page, parts[number + 1][0].page - 1) if number + 1 < len(parts) else len(pages) - 1
        here = {page: kind for page, kind in how.items() if page in inner and (part[0].page if number else 0) <= page <= until}
        meta = {**about, "part": number + 1, "parts": len(parts), "read": page_ranges(here)}
        yield new(text_of(part), id=f"{name}:{number + 1}", meta=meta)
    if matter := text_of(join([(number, texts[number]) for number in how if number not in inner])):
        yield new(matter, id=f"{name}:matter", meta={**about, "reason": "front or back matter"})


def choose_lines(pages: list[dict[str, Any]], inner: range, wanted: set[int],
                 recognised: dict[int, dict[str, Any]]) -> tuple[list[list[Line]], dict[int, str]]:
    """(the lines of each page, how each page was read): by OCR where that was wanted and gave something, else its own text."""
    lines: list[list[Line]] = []
    how: dict[int, str] = {}
    for number, page in enumerate(pages):
        by_ocr = recognised.get(number, {})
        if by_ocr.get("lines"):
            found, kind = by_ocr["lines"], "ocr"
        elif page["letters"] < MIN_LETTER_SHARE * page["characters"] and number in wanted:
            found, kind = [], "unread"  # letters that an old OCR, or a font of unknown signs, has spoilt
        else:
            found, kind = page["lines"], "text"
        lines.append(join_fragments(Line(letters, *place) for text, *place in found if (letters := clean(text))))
        if not lines[-1]:
            failed = "failed" in page or "failed" in by_ocr or (number in wanted and not by_ocr)
            kind = "unread" if failed or kind == "unread" else "blank"
        how[number] = kind if number in inner else "front or back matter"
    return lines, how


def say_dropped(path: Path, reason: str) -> None:
    """One line for a person; a name with control characters is quoted."""
    name = str(path)
    print(f"{name if name.isprintable() else repr(name)}: dropped: {reason}", file=sys.stderr)


def read_pages(reader: Pages, seconds: float) -> list[dict[str, Any]]:
    """Every page's own text; time and characters of all of them are limited as well as those of each."""
    pages, characters = [], 0
    for number in range(reader.count):
        pages.append(reader.read(number))
        characters += pages[-1]["characters"]
        if pages[-1]["seconds"] > seconds:
            raise BookError("took too long", at=f"read page {number + 1}")
        if characters > BOOK_CHARACTERS:
            raise BookError("too much text", at=f"read page {number + 1}")
    return pages


def ocr_pages(reader: Pages, wanted: list[int], journal: Path, sha256: str, options: dict[str, Any], bar: bool) -> dict[int, dict[str, Any]]:
    """What OCR reads on the wanted pages; each page goes into the journal at once, and what is there is not read again."""
    if not wanted:
        return {}

    language = get_language(options["language"]).ocr_code
    head = {"sha256": sha256, "language": language, "dpi": options["dpi"], "version": VERSION}
    found = read_journal(journal, head)
    failures = 0
    with open(journal, "ab") as file:
        for number in tqdm([number for number in wanted if number not in found], desc=f"OCR {journal.stem[:30]}", unit="page",
                           initial=len(found), total=len(wanted), leave=False, disable=None if bar else True):
            found[number] = reader.ocr(number, language, options["dpi"])
            failures += "failed" in found[number]
            if failures >= OCR_FAILURES:
                raise BookError("OCR fails on many pages", at=f"ocr page {number + 1}", first=found[number]["failed"])
            if "failed" not in found[number]:  # a page that failed is tried again if this run does not reach the book's end
                file.write(json_line({"page": number, **found[number]}))
                file.flush()
                os.fsync(file.fileno())
    return {number: found[number] for number in wanted}


def read_journal(journal: Path, head: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Pages of an earlier start; a line cut by a kill goes. A journal of another file or with other settings begins anew."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[str, Any]] = {}
    whole = 0
    first = json_line(head)
    with open(journal, "a+b") as file:
        file.seek(0)
        for place, line in enumerate(file):
            if (not place and line != first) or not line.endswith(b"\n"):
                break
            if place:
                try:
                    record = json.loads(line)
                    found[record.pop("page")] = record
                except ValueError:
                    break
            whole += len(line)
        file.truncate(whole)
        if not whole:
            file.write(first)
    return found


def parts_of(paragraphs: list[Paragraph], characters: int) -> list[list[Paragraph]]:
    """A book in parts of about so many characters (0: in one), cut where a paragraph begins.

    >>> [len(part) for part in parts_of([Paragraph(0, "x" * 10, True)] * 10, 40)]
    [5, 5]
    """
    total = sum(len(paragraph.text) for paragraph in paragraphs)
    count = max(1, round(total / characters)) if characters else 1
    parts: list[list[Paragraph]] = [[]]
    done = 0
    for paragraph in paragraphs:
        if paragraph.apart and parts[-1] and done * count >= total * len(parts):
            parts.append([])
        parts[-1].append(paragraph)
        done += len(paragraph.text)
    return [part for part in parts if part]


def text_of(paragraphs: list[Paragraph]) -> str:
    """An empty line between paragraphs, a line end where only the line was ended."""
    return "".join(("\n\n" if paragraph.apart else "\n") + paragraph.text for paragraph in paragraphs).strip("\n")


def page_ranges(how: dict[int, str]) -> dict[str, str]:
    """Pages by how they were read, counted from 1 as a viewer shows them.

    >>> page_ranges({0: "text", 1: "text", 2: "ocr", 3: "text"})
    {'ocr': '3', 'text': '1-2,4'}
    """
    ranges: dict[str, list[list[int]]] = {}
    for page, kind in how.items():
        spans = ranges.setdefault(kind, [])
        if spans and spans[-1][1] == page:
            spans[-1][1] = page + 1
        else:
            spans.append([page + 1, page + 1])
    return {kind: ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges[kind]) for kind in sorted(ranges)}


def keep_or_drop(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """`read_book` has decided; here its decisions are written and counted."""
    for document in documents:
        if reason := document.meta.pop("reason", None):
            shard.drop(document, reason)
        else:
            shard.keep(document)


# ---- a shelf ----------------------------------------------------------------------------------------------------------


def find_books(inputs: Iterable[str | Path]) -> list[Path]:
    """Files as given, folders by their PDFs in sorted order; a book reached twice (by a link) is read once."""
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(".pdf") and not p.is_dir())
            if not inside:
                raise UserError(f"{path}: no .pdf file in this folder")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    books = {os.path.realpath(path): path for path in reversed(found)}
    if len(books) < len(found):
        print(f"{len(found) - len(books)} of {len(found)} files are others of them once more and are read once", file=sys.stderr)
    return [path for path in found if books[os.path.realpath(path)] is path]


def book_names(paths: list[Path]) -> list[str]:
    """The name of each book in OUT: its file's, as every file system takes it and none twice.

    >>> book_names([Path("a/Heart.pdf"), Path("a/Лёгкие 2.pdf")])
    ['Heart', 'Лёгкие 2']
    """
    names = [re.sub(r"[^\w .,()+-]", "_", path.name[:-4] if path.name.lower().endswith(".pdf") else path.name).strip(" .") for path in paths]
    common = os.path.commonpath([path.absolute().parent for path in paths])
    times: dict[str, int] = {}
    for name in names:
        times[name.casefold()] = times.get(name.casefold(), 0) + 1
    return [name if name and times[name.casefold()] == 1 and len(name.encode()) <= NAME_LETTERS and name == path.name[:-4] else
            f"{name.encode()[:NAME_LETTERS].decode(errors='ignore')}-"
            + hashlib.sha256(os.fsencode(os.path.relpath(path.absolute(), common))).hexdigest()[:8]
            for name, path in zip(names, paths)]


def process_book(path: Path, name: str, out: Path, options: dict[str, Any], bar: bool = False) -> None:
    """One book unless it is done: the unit of work, here and on a cluster."""
    reason = "" if path.is_file() else "not a file" if path.exists() else "no such file"
    try:
        if not reason:
            open(path, "rb").close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    if not reason:
        process_shard(keep_or_drop, path, name, out, {**options, "version": VERSION}, STEP,
                      functools.partial(read_book, journal=out / "work" / f"{name}.jsonl", bar=bar))
        return
    say_dropped(path, reason)
    with ShardWriter(out, name) as shard:
        shard.funnel.add("books")
        shard.drop(Document("", get_language(options["language"]).code, "book", name, {"file": path.name}), reason)
    write_json(out / "shards" / f"{name}.json", {"fingerprint": None, "input": name, **shard.funnel.to_dict()})  # tried again


def read_books(inputs: Iterable[str | Path], out: str | Path, options: dict[str, Any], workers: int = 1) -> Funnel:
    """All books of a shelf; finished ones are passed over on the next start. The bytes do not depend on `workers`."""
    require_extra("pypdfium2", "books")
    if options["ocr"]:
        check_tesseract(get_language(options["language"]).ocr_code)
    out, paths = Path(out), find_books(inputs)
    names = book_names(paths)
    with one_run(out):
        refuse_strangers(out, names)
        jobs = [(path, name, out, options, workers == 1) for path, name in zip(paths, names)]
        run_jobs(process_book, jobs, workers, STEP, [str(path) for path in paths])
        return gather_funnel(out, names, STEP)


def book_options(language: str, ocr: bool = True, dpi: int = 300, part_characters: int = PART, limits: Limits | None = None,
                 licence: str = "") -> dict[str, Any]:
    """All that a book's text depends on."""
    if not 70 <= dpi <= 1200:
        raise UserError(f"--dpi {dpi}: must be between 70 and 1200")
    if part_characters < 0:
        raise UserError(f"--part-characters {part_characters}: must be 0 or more")
    limits = limits or Limits()
    for name, value in limits._asdict().items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    return {"language": get_language(language).code, "ocr": ocr, "dpi": dpi, "part_characters": part_characters,
            "limits": limits._asdict(), "licence": licence}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.books", description="Books in PDF -> documents.")
    parser.add_argument("books", nargs="+", metavar="BOOK", help="PDF files or folders of them")
    parser.add_argument("--language", required=True, help="code or name of the books' language")
    parser.add_argument("--out", required=True, help="folder for kept/, dropped/, shards/, work/ and funnel.json")
    parser.add_argument("--workers", type=int, default=1, help="processes, one book each at a time (default: %(default)s)")
    parser.add_argument("--dpi", type=int, default=300, help="dots an inch of pages drawn for OCR (default: %(default)s)")
    parser.add_argument("--no-ocr", action="store_true", help="leave out pages without text; Tesseract is then not needed")
    parser.add_argument("--part-characters", type=int, default=PART, help="length of the parts a book is cut into; 0: whole (default: %(default)s)")
    parser.add_argument("--licence", default="", help="licence of the books, to write (meta.licence)")
    for name, value in Limits()._asdict().items():
        parser.add_argument(f"--{'max-' if name == 'pages' else ''}{name.replace('_', '-')}", dest=name, type=int, default=value,
                            help=f"limit of one {'page' if name == 'page_seconds' else 'book'} (default: %(default)s)")
    given = parser.parse_args(arguments)
    limits = Limits(**{name: getattr(given, name) for name in Limits._fields})
    options = book_options(given.language, not given.no_ocr, given.dpi, given.part_characters, limits, given.licence)
    start = time.monotonic()
    funnel = read_books(given.books, given.out, options, given.workers)
    print_funnel(funnel, f"{STEP} {options['language']}")
    for key, amount in sorted(funnel.details.items()):
        print(f"  {amount:>10,.0f}  {key}")
    print(f"  {time.monotonic() - start:>10,.1f}  seconds")
    return 0


if __name__ == "__main__":
    main_guard(main)
