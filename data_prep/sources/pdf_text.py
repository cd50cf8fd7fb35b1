"""Reads the text of PDF pages with PDFium: lines in the file's order, nearly always the reading order.

In:  the path of a PDF file.
Out: `Page`s. Call these functions in a child process (worker.py): PDFium is C++, and the files are untrusted.
"""
from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.sources.book_layout import Line
from data_prep.sources.worker import Unreadable
from mmed.utils.errors import require_extra

MAX_PAGES, MAX_PAGE_CHARACTERS, MAX_CHARACTERS = 10_000, 200_000, 100_000_000
MAX_OBJECTS = 2000  # objects of a page looked through for a picture


class Page(NamedTuple):
    lines: list[Line]
    characters: int
    letters: int  # letters and digits among the characters
    drawn: bool  # holds pictures or drawings


def page_of(lines: list[Line], drawn: bool = False) -> Page:
    text = "".join(line.text for line in lines)
    return Page(lines, len(text), sum(map(str.isalnum, text)), drawn)


def open_pdf(path: Path) -> Any:
    pdfium = require_extra("pypdfium2", "books")
    raw = require_extra("pypdfium2.raw", "books")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
        raise Unreadable("encrypted" if encrypted else "not a PDF, or damaged") from None
    if not 0 < len(document) <= MAX_PAGES:
        raise Unreadable("no pages" if not len(document) else f"more than {MAX_PAGES} pages")
    return document


def read_pdf(path: Path) -> list[Page]:
    """All pages; a damaged page is empty. Raises `Unreadable` for a file that is no PDF or too large."""
    pdfium = require_extra("pypdfium2", "books")
    pages: list[Page] = []
    characters = 0
    with open_pdf(path) as document:
        for number in range(len(document)):
            try:
                pages.append(read_page(document[number]))
            except pdfium.PdfiumError:
                pages.append(page_of([]))
            characters += pages[-1].characters
            if characters > MAX_CHARACTERS:
                raise Unreadable(f"more than {MAX_CHARACTERS} characters")
    return pages


def read_page(page: Any) -> Page:
    raw = require_extra("pypdfium2.raw", "books")
    count = min(raw.FPDFPage_CountObjects(page), MAX_OBJECTS)
    objects = (raw.FPDFPage_GetObject(page, number) for number in range(count))
    drawn = any(raw.FPDFPageObj_GetType(item) != raw.FPDF_PAGEOBJ_TEXT for item in objects)
    textpage = page.get_textpage()
    if textpage.count_chars() > MAX_PAGE_CHARACTERS:
        return page_of([], drawn)
    found = page_of(list(read_lines(page, textpage)), drawn)
    page.close()
    return found


def read_lines(page: Any, textpage: Any) -> Iterator[Line]:
    """The lines of a page, with a hyphen at the end of those whose last word is broken."""
    raw = require_extra("pypdfium2.raw", "books")
    count = textpage.count_chars()
    units: list[int] = []  # UTF-16
    places: list[int] = []  # indices of the characters that are not white space
    for index in range(count + 1):
        unit = raw.FPDFText_GetUnicode(textpage, index) if index < count else ord("\n")
        hyphen = index < count and raw.FPDFText_IsHyphen(textpage, index) == 1
        if hyphen:
            unit = ord("-")
        if unit not in (ord("\n"), ord("\r")):
            units.append(unit)
            if unit not in (ord(" "), 0xA0, 0):
                places.append(index)
        if places and (hyphen or unit in (ord("\n"), ord("\r"))):
            encoded = b"".join(min(unit, 0xFFFF).to_bytes(2, "little") for unit in units)
            text = encoded.decode("utf-16-le", "replace").strip()
            yield place_line(page, textpage, text, places[0], places[-1])
        if hyphen or unit in (ord("\n"), ord("\r")):
            units, places = [], []


def place_line(page: Any, textpage: Any, text: str, first: int, last: int) -> Line:
    """A line with the position of its first and last character, on the page as it is shown."""
    raw = require_extra("pypdfium2.raw", "books")
    width, height = page.get_size()
    turned = page.get_rotation()
    points = []
    x, y = ctypes.c_double(), ctypes.c_double()
    for index in (first, last):
        left, bottom, right, top = textpage.get_charbox(index, loose=True)
        raw.FPDFText_GetCharOrigin(textpage, index, x, y)
        for point in ((x.value, y.value), (left, bottom), (right, top)):
            points.append(upright(*point, width, height, turned))
    across = [point[0] for point in points]
    size = max(abs(points[2][1] - points[1][1]), abs(points[5][1] - points[4][1]))
    return Line(text, *(round(value, 2) for value in (min(across), max(across), height - points[0][1], size)))


def upright(x: float, y: float, width: float, height: float, turned: int) -> tuple[float, float]:
    """A point of the page in the file, on the page as shown: turned clockwise, then `width` by `height`.

    >>> upright(10, 20, 200, 100, 90)
    (20, 90)
    """
    return {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}.get(turned, (x, y))


def save_pages(path: Path, numbers: list[int], target: Path) -> None:
    """Writes some pages of a PDF, counted from 0, into a PDF of their own."""
    pdfium = require_extra("pypdfium2", "books")
    with open_pdf(path) as document, pdfium.PdfDocument.new() as part:
        part.import_pages(document, numbers)
        part.save(target)
