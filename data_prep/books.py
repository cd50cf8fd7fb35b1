"""Books: turns PDF files, or the output of an OCR engine, into documents. The second source of MMedC.

In:  PDF files and folders of them; .hocr, ALTO .xml and .txt files; folders of such page files, a book each.
Out: a document of source "book" for each part of a book; OUT/kept, OUT/dropped, OUT/shards, OUT/funnel.json
     as for every step (data_prep/pipeline/shards.py). OUT/work holds the pages that OCR has read.

    python -m data_prep.books shelf/ more/book.pdf --language ru --out books_ru --workers 8

PDFium reads the text of a PDF. OCRmyPDF, which drives Tesseract, reads pages that are pictures, OCR_PAGES at
a time: after a kill, the next start continues with the next group of pages. book_layout.py removes running
heads and rejoins broken words and lines. A book becomes documents of about PART characters, about a chapter,
because later steps keep or drop whole documents.

MMedLM: a book is scanned if letters and digits are less than half of its characters or fewer than 200 a page;
of books with 100 pages or more only the pages 0.018 N + 3 < p < N - 5 are kept (pdf_ocr in their code).
DIFFERS: OCR is decided page by page, and front and back matter are left out of scanned books too, as in the
paper; in the official code the whole book goes one way, and only text books lose front and back matter.
DIFFERS: OCRmyPDF with Tesseract instead of PaddleOCR: Debian packages, no GPU. For large collections give the
output of a faster engine instead.
DIFFERS: running heads, page numbers, hyphens and line ends are repaired; the official code keeps them.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.documents import Document, Funnel, normalise_text, shard_name
from data_prep.pipeline.shards import (
    add_shard_arguments,
    print_funnel,
    process_shards,
    shard_names,
    shard_options,
)
from data_prep.sources.book_layout import Line, clean, join_fragments, join_lines, remove_running_heads
from data_prep.sources.ocr_text import SUFFIXES as OCR_SUFFIXES
from data_prep.sources.ocr_text import read_ocr_text
from data_prep.sources.pdf_text import Page, read_pdf, save_pages
from data_prep.sources.saved_pages import write_list
from data_prep.sources.worker import Unreadable, Worker, keep_or_drop
from mmed.languages import get_language
from mmed.utils.errors import Parser, UserError, main_guard, require_extra

VERSION = 2  # raise it when the same book gives other text: finished books are then redone
SUFFIXES = (".pdf", *OCR_SUFFIXES)
LIST = ".jsonl"  # the page files of a book that is a folder
OCR_PAGES = 20  # about a minute
OCR_SECONDS = 180  # per page
OCR_DPI = 300
WHOLE_PAGES = 100  # shorter books keep all their pages
PART = 50_000  # characters


# ---- the paper's rules ----


def is_scanned(pages: list[Page]) -> bool:
    """Whether a book has too little text of its own.

    >>> is_scanned([Page([], 1500, 1200, True), Page([], 0, 0, True)])
    False
    >>> is_scanned([Page([], 300, 190, True)]), is_scanned([Page([], 3000, 1400, True)])
    (True, True)
    """
    characters, letters = sum(page.characters for page in pages), sum(page.letters for page in pages)
    return letters < 0.5 * characters or letters < 200 * len(pages)


def text_pages(count: int) -> range:
    """The pages, counted from 0, that are neither front nor back matter.

    >>> text_pages(99), text_pages(1000)
    (range(0, 99), range(22, 995))
    """
    return range(count) if count < WHOLE_PAGES else range(int(0.018 * count + 3) + 1, count - 5)


def needs_ocr(page: Page, scanned: bool) -> bool:
    """Whether a page holds pictures and too little text: in a text book, fewer than 20 letters."""
    return page.drawn and (is_scanned([page]) if scanned else page.letters < 20)


# ---- inputs ----


def find_books(inputs: list[str], out: Path) -> list[Path]:
    """Files as given; of folders, every PDF, and every folder of page files as a list below OUT/lists."""
    books: list[Path] = []
    folders: dict[Path, list[Path]] = {}
    for given in map(Path, inputs):
        if not given.exists():
            raise UserError(f"{given}: no such file or folder; give PDF files, OCR output or folders of them")
        files = sorted(given.rglob("*")) if given.is_dir() else [given]
        known = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not known:
            raise UserError(f"{given}: no book here; known are {', '.join(SUFFIXES)}")
        for path in known:
            if given.is_dir() and path.suffix.lower() != ".pdf":
                folders.setdefault(path.parent, []).append(path)
            else:
                books.append(path)
    for name, pages in zip(shard_names(list(folders)), folders.values()):
        target = out / "lists" / f"{name}{LIST}"
        books.append(write_list(target, sorted(pages, key=page_order), pages[0].parent))
    return books


def page_order(path: Path) -> list[str]:
    """Sorts page2 before page10."""
    return [part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def read_source(path: Path, worker: Worker) -> list[Page]:
    if path.suffix.lower() == ".pdf":
        return worker.call(read_pdf, path)
    paths = [path]
    if path.suffix == LIST:
        paths = [Path(json.loads(line)["path"]) for line in path.read_text(encoding="utf-8").splitlines()]
    return worker.call(read_ocr_text, paths)


# ---- OCR ----


def ocr_pages(path: Path, numbers: list[int], folder: Path, language: str, worker: Worker) -> dict[int, Page]:
    """What OCR reads on these pages. Groups of pages that an earlier start has finished are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, Page] = {}
    groups = [numbers[start:start + OCR_PAGES] for start in range(0, len(numbers), OCR_PAGES)]
    title = f"OCR {path.name[:30]}"
    with tqdm(total=len(numbers), desc=title, unit="page", leave=False, disable=None) as bar:
        while groups:
            group = groups.pop(0)
            done = folder / f"{group[0] + 1:05}-{len(group)}.ocr"  # not .pdf: OUT may lie within the inputs
            if not done.exists() and not run_ocrmypdf(path, group, done, language, worker):
                groups = [[number] for number in group] + groups if len(group) > 1 else groups
                continue
            found.update(zip(group, worker.call(read_pdf, done)))
            bar.update(len(group))
    return found


def run_ocrmypdf(path: Path, numbers: list[int], done: Path, language: str, worker: Worker) -> bool:
    """Writes `done`, a PDF of these pages with the text that OCR reads; False if OCRmyPDF fails on them."""
    pictures, unfinished = done.with_suffix(".in"), done.with_suffix(".part")
    worker.call(save_pages, path, numbers, pictures)
    command = [sys.executable, "-m", "ocrmypdf", "--quiet", "--jobs", "1", "--force-ocr",
               "--language", language, "--deskew", "--rotate-pages", "--rotate-pages-threshold", "2",
               "--oversample", str(OCR_DPI), "--tesseract-timeout", str(OCR_SECONDS),
               "--output-type", "pdf", "--optimize", "0", str(pictures), str(unfinished)]
    try:
        finished = subprocess.run(command, capture_output=True, timeout=2 * OCR_SECONDS * len(numbers),
                                  env={**os.environ, "OMP_THREAD_LIMIT": "1"})  # one core per book
    except subprocess.TimeoutExpired:
        return False
    if finished.returncode == 0:
        os.replace(unfinished, done)
    pictures.unlink()
    return finished.returncode == 0


def check_tesseract(language: str) -> None:
    """Raises `UserError` if Tesseract or its data for the language (such as eng+fra) is not installed."""
    hint = "or give --no_ocr to leave out pages without text"
    try:
        listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True).stdout.split()
    except FileNotFoundError:
        raise UserError(f"the program tesseract is missing: install tesseract-ocr (Debian), {hint}") from None
    missing = [part for part in language.split("+") if part not in listed]
    if missing:
        packages = " ".join(f"tesseract-ocr-{part.replace('_', '-')}" for part in missing)
        raise UserError(f"tesseract lacks data for {', '.join(missing)}: install {packages}, {hint}")


# ---- books ----


def read_book(path: Path, funnel: Funnel, options: dict[str, Any], work: Path) -> Iterator[Document]:
    """The documents of one book; one without text gives an empty document with `reason` in its meta."""
    name, language = shard_name(path), get_language(options["language"])
    meta: dict[str, Any] = {"file": path.name.removesuffix(LIST), "licence": options["licence"]}
    meta = {key: value for key, value in meta.items() if value}
    funnel.add("books")
    try:
        with Worker(options["book_seconds"]) as worker:
            lines, how = read_lines(path, work, options, worker)
    except Unreadable as error:
        print(f"{path}: dropped: {error}", file=sys.stderr)
        yield Document("", language.code, options["source"], name, {**meta, "reason": str(error)})
        return
    for kind, count in how.items():
        funnel.add(f"pages: {kind}", count)
    text_only = remove_running_heads(lines)
    removed = sum(len(line.text) for page in lines for line in page)
    funnel.add("characters of running heads and page numbers",
               removed - sum(len(line.text) for page in text_only for line in page))
    paragraphs = join_lines(text_only, language.spaced, language.spaced and not language.right_to_left)
    parts = split_parts(paragraphs, options["part_characters"])
    meta |= {"pages": sum(how.values()), "read": dict(how)}
    if not parts:
        yield Document("", language.code, options["source"], name, {**meta, "reason": "no text"})
    for number, part in enumerate(parts, 1):
        yield Document(normalise_text("\n".join(part)), language.code, options["source"], f"{name}:{number}",
                       {**meta, "part": number, "parts": len(parts)})


def read_lines(path: Path, work: Path, options: dict[str, Any],
               worker: Worker) -> tuple[list[list[Line]], Counter[str]]:
    """The lines of each inner page of a book, and how many pages were read how."""
    pages = read_source(path, worker)
    inner, scanned, how = text_pages(len(pages)), is_scanned(pages), Counter[str]()
    how["front or back matter"] = len(pages) - len(inner)
    wanted = [number for number in inner if needs_ocr(pages[number], scanned)]
    recognised: dict[int, Page] = {}
    if wanted and options["ocr"]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        code = get_language(options["language"]).ocr_code
        recognised = ocr_pages(path, wanted, work / f"{digest}-{code}", code, worker)
    lines = []
    for number in inner:
        page = recognised.get(number, pages[number])
        spoilt = number in wanted and number not in recognised and page.letters < 0.5 * page.characters
        cleaned = [line._replace(text=clean(line.text)) for line in page.lines if not spoilt]
        lines.append(join_fragments(line for line in cleaned if line.text))
        if lines[-1]:
            how["ocr" if number in recognised else "text"] += 1
        else:
            how["not read" if number in wanted and number not in recognised else "blank"] += 1
    return lines, +how


def split_parts(paragraphs: list[str], characters: int) -> list[list[str]]:
    """The paragraphs in parts of about equal length, of about so many characters (0: one part).

    >>> [len(part) for part in split_parts(["x" * 10] * 10, 40)]
    [5, 5]
    """
    total = sum(map(len, paragraphs))
    count = max(1, round(total / characters)) if characters else 1
    parts: list[list[str]] = [[]]
    done = 0
    for paragraph in paragraphs:
        if parts[-1] and done * count >= total * len(parts):
            parts.append([])
        parts[-1].append(paragraph)
        done += len(paragraph)
    return [part for part in parts if part]


# ---- command ----


def read_books(inputs: list[str], out: str | Path, options: dict[str, Any], workers: int = 1,
               **share: Any) -> Funnel:
    """All books; those that an earlier start has finished are not read again."""
    require_extra("pypdfium2", "books")
    if options["ocr"]:
        require_extra("ocrmypdf", "books")
        check_tesseract(get_language(options["language"]).ocr_code)
    out = Path(out)
    reader = functools.partial(read_book, work=out / "work")
    books = find_books(inputs, out)
    return process_shards(keep_or_drop, books, out, {**options, "version": VERSION}, workers, "books", reader,
                          SUFFIXES, **share)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.books",
                    description="Turn books in PDF, or the output of an OCR engine, into documents.")
    add_shard_arguments(parser, suffixes=SUFFIXES)
    parser.set_defaults(source="book")
    parser.add_argument("--language", required=True, help="code or name of the books' language")
    parser.add_argument("--no_ocr", action="store_true",
                        help="leave out pages without text; Tesseract is then not needed")
    parser.add_argument("--part_characters", type=int, default=PART,
                        help="length of the parts that a book is split into; 0: whole (default: %(default)s)")
    parser.add_argument("--book_seconds", type=int, default=900,
                        help="drop books whose text takes longer to read, OCR aside (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.part_characters < 0:
        raise UserError(f"--part_characters {given.part_characters}: must be 0 or more")
    if given.book_seconds < 1:
        raise UserError(f"--book_seconds {given.book_seconds}: must be 1 or more")
    options = {"language": get_language(given.language).code, "ocr": not given.no_ocr,
               "part_characters": given.part_characters, "book_seconds": given.book_seconds,
               **shard_options(given)}
    share = {"share": given.shard} if getattr(given, "shard", None) else {}
    funnel = read_books(given.inputs, given.out, options, given.workers, **share)
    print_funnel(funnel, f"books {options['language']}")
    for key, amount in sorted(funnel.details.items()):
        print(f"  {amount:>10,.0f}  {key}")
    return 0


if __name__ == "__main__":
    main_guard(main)
