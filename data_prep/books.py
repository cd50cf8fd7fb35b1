"""Books: turns PDF files, or the output of an OCR engine, into documents. The second source of MMedC.

In:  PDF files and folders of them; .hocr, ALTO .xml and .txt files; folders of such page files, a book each.
Out: as of every step (data_prep/pipeline/shards.py): documents of source "book", each of about PART
     characters, because later steps keep or drop whole documents. OUT/work: what OCR has read.

    python -m data_prep.books shelf/ more/book.pdf --language ru --out books_ru --workers 8

PDFium reads the text of a PDF. OCRmyPDF, which drives Tesseract, reads pages that are pictures, OCR_PAGES at
a time: after a kill, the next start continues with the next group of pages.

MMedLM: a book is scanned if letters and digits are less than half of its characters or fewer than 200 a page;
of books with 100 pages or more only the pages 0.018 N + 3 < p < N - 5 are kept (pdf_ocr in their code).
DIFFERS: OCR is decided page by page, and front and back matter are left out of scanned books too, as in the
paper; in the official code the whole book goes one way, and only text books lose front and back matter.
DIFFERS: OCRmyPDF with Tesseract instead of PaddleOCR: Debian packages, no GPU. For large collections give the
output of a faster engine instead.
DIFFERS: running heads, page numbers, hyphens and line ends are repaired; the official code keeps them.
"""
from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.documents import Document, Funnel, find_inputs, has_suffix, normalise_text, write_list
from data_prep.filters.language_codes import find_language
from data_prep.pipeline.shards import add_shard_arguments, fingerprint, run_step, shard_names
from data_prep.sources.book_layout import Line, join_lines, remove_running_heads, tidy_lines
from data_prep.sources.book_pages import OCR_SUFFIXES, Page, read_ocr_text, read_pdf, save_pages
from data_prep.sources.worker import Unreadable, Worker, keep_readable
from mmed.languages import get_language
from mmed.utils.errors import Parser, UserError, main_guard, require_extra
from mmed.utils.files import read_jsonl, temporary_name

VERSION = 5  # raise it when the same book gives other text: finished books are then redone
SUFFIXES = (".pdf", *OCR_SUFFIXES)
LIST = ".jsonl"  # the page files of a book that is a folder
OCR_PAGES = 20  # about a minute
OCR_SECONDS = 180  # per page
BOOK_SECONDS = 900  # for all else
MISSING_DEPENDENCY = 3  # exit code of OCRmyPDF
OCR_OPTIONS = ("--quiet --jobs 1 --force-ocr --deskew --rotate-pages --rotate-pages-threshold 2 "
               f"--oversample 300 --output-type pdf --optimize 0 --tesseract-timeout {OCR_SECONDS}").split()
WHOLE_PAGES = 100  # shorter books keep all their pages
PART = 50_000  # characters


def is_scanned(pages: list[Page]) -> bool:
    """Whether a book has so little text that it must be a scan."""
    letters, characters = sum(page.letters for page in pages), sum(len(page.text) for page in pages)
    return letters < max(0.5 * characters, 200 * len(pages))


def text_pages(count: int) -> range:
    """The pages, counted from 0, that are neither front nor back matter.

    >>> text_pages(99), text_pages(1000)
    (range(0, 99), range(22, 995))
    """
    return range(count) if count < WHOLE_PAGES else range(int(0.018 * count + 3) + 1, count - 5)


def needs_ocr(page: Page, scanned: bool) -> bool:
    """Whether a page holds pictures and too little text: in a text book, fewer than 20 letters."""
    return page.drawn and (is_scanned([page]) if scanned else page.letters < 20)


def find_books(inputs: list[str], out: Path) -> list[Path]:
    """Given files, and from folders every PDF; a folder of page files becomes a list in OUT/lists."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    books = find_inputs(name for name in inputs if not Path(name).is_dir())
    for given in (name for name in inputs if Path(name).is_dir()):
        found = find_inputs([given], SUFFIXES, out)
        # Files that differ in the suffix only are copies; the first of SUFFIXES counts.
        best_last = (path for suffix in SUFFIXES[::-1] for path in found if has_suffix(path.name, (suffix,)))
        for path in {path.with_suffix(""): path for path in best_last}.values():
            if has_suffix(path.name, SUFFIXES[:1]):
                books.append(path)
            else:
                folders[path.parent].append(path)
    for name, (folder, pages) in zip(shard_names(list(folders)), folders.items()):
        books.append(write_list(out / "lists" / f"{name}{LIST}", sorted(pages, key=page_order), folder))
    return sorted(books)


def page_order(path: Path) -> str:
    """Sort key that puts page2 before page10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(12), path.name)


def ocr_pages(path: Path, numbers: list[int], work: Path, language: str, worker: Worker) -> dict[int, Page]:
    """Run OCR on these pages. `work` holds page groups finished by earlier starts."""
    folder = work / f"{shard_names([path])[0]}-{fingerprint(path, {'language': language})[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, Page] = {}
    for size in (OCR_PAGES, 1):  # a page that fails spoils its group, so that its neighbours are tried alone
        missing = [number for number in numbers if number not in found]
        starts = range(0, len(missing), size)
        for start in tqdm(starts, f"OCR {path.name}", unit=f"{size} pages", leave=False, disable=None):
            group = missing[start:start + size]
            done = folder / f"{group[0] + 1:05}-{len(group)}.ocr"  # not .pdf: OUT may lie within the inputs
            if done.exists() or run_ocrmypdf(path, group, done, language, worker):
                found.update(zip(group, worker.call(read_pdf, done)))
    return found


def run_ocrmypdf(path: Path, numbers: list[int], done: Path, language: str, worker: Worker) -> bool:
    """Writes `done`, a PDF of these pages with the text that OCR reads; False if this fails."""
    pictures, unfinished = temporary_name(done), temporary_name(done)  # a task may be started twice
    if not worker.call(save_pages, path, numbers, pictures):
        return False
    command = [sys.executable, "-m", "ocrmypdf", *OCR_OPTIONS, "--language", language, pictures, unfinished]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True,
                       timeout=2 * OCR_SECONDS * len(numbers), env={**os.environ, "OMP_THREAD_LIMIT": "1"})
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        if getattr(error, "returncode", 0) == MISSING_DEPENDENCY:
            raise UserError(f"OCR needs Tesseract and its data for {language}; --no_ocr skips pages without "
                            f"text. OCRmyPDF says: {' '.join(error.stderr.split())}") from None
        return False
    os.replace(unfinished, done)
    pictures.unlink()
    return True


def read_lines(path: Path, options: dict[str, Any]) -> tuple[list[list[Line]], Counter[str]]:
    """Return the lines of each inner page, and how many pages were read in which way."""
    with Worker(BOOK_SECONDS) as worker:
        if has_suffix(path.name, SUFFIXES[:1]):
            pages = worker.call(read_pdf, path)
        else:
            listed = [Path(entry["path"]) for _, entry in read_jsonl(path)] if path.suffix == LIST else [path]
            pages = worker.call(read_ocr_text, listed)
        inner, scanned = text_pages(len(pages)), is_scanned(pages)
        wanted = [number for number in inner if needs_ocr(pages[number], scanned)]
        recognised: dict[int, Page] = {}
        if wanted and options["ocr"]:
            recognised = ocr_pages(path, wanted, options["work"], options["ocr"], worker)
    how = Counter({"front or back matter": len(pages) - len(inner)})
    lines = []
    for number in inner:
        page, failed = recognised.get(number, pages[number]), number in wanted and number not in recognised
        useless = failed and page.letters < 0.5 * len(page.text)  # a bad OCR layer
        lines.append([] if useless else tidy_lines(page.lines))
        read, unread = ("ocr" if number in recognised else "text"), ("not read" if failed else "blank")
        how[read if lines[-1] else unread] += 1
    return lines, +how


def split_parts(paragraphs: list[str]) -> list[list[str]]:
    """Divide paragraphs into parts of about equal length, near PART characters."""
    *starts, total = itertools.accumulate(map(len, paragraphs), initial=0)
    count = max(1, round(total / PART))
    parts: dict[int, list[str]] = defaultdict(list)
    for paragraph, start in zip(paragraphs, starts):
        parts[start * count // total].append(paragraph)
    return list(parts.values())


def read_book(path: Path, funnel: Funnel, options: dict[str, Any]) -> Iterator[tuple[Document, str]]:
    """The parts of a book, or a document without text and the reason why the book cannot be used."""
    language = get_language(options["language"])
    name, meta = options["name"], {"file": path.name.removesuffix(LIST)}
    meta |= {"licence": options["licence"]} if options["licence"] else {}
    try:
        pages, how = read_lines(path, options)
        funnel.details.update({f"pages: {kind}": count for kind, count in how.items()})
        meta |= {"pages": sum(how.values()), "read": dict(how)}
        parts = split_parts(join_lines(remove_running_heads(pages), language.spaced))
        if not parts:
            raise Unreadable("no text")
    except Unreadable as error:
        yield Document("", language.code, options["source"], name, meta), str(error)
        return
    for number, part in enumerate(parts, 1):
        yield Document(normalise_text("\n".join(part)), language.code, options["source"], f"{name}:{number}",
                       {**meta, "part": number, "parts": len(parts)}), ""


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.books",
                    description="Turn PDF books, or the output of an OCR engine, into documents.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="book")
    parser.add_argument("--language", required=True, help="language of the books: code or name")
    parser.add_argument("--no_ocr", dest="ocr", action="store_false",
                        help="do not run OCR; skip pages without a text layer")
    given = parser.parse_args(arguments)
    require_extra("pypdfium2", "books")
    require_extra("ocrmypdf", "books")
    language = find_language(given.language)
    out = Path(given.out)
    options = {"language": language.code, "ocr": given.ocr and language.ocr_code, "work": out / "work",
               "version": VERSION}
    given.inputs = find_books(given.inputs, out)
    return run_step(keep_readable, "books", options, given, suffixes=SUFFIXES, read=read_book)


if __name__ == "__main__":
    main_guard(main)
