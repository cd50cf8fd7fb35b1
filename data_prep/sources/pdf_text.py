"""Reads the text of PDF pages with PDFium: lines in the file's order, nearly always the reading order.

Call these functions in a child process (worker.py): PDFium is C++, and the files are untrusted.
"""
from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.book_layout import Line, Page
from data_prep.sources.worker import Unreadable
from mmed.utils.errors import require_extra


def read_pdf(path: Path) -> list[Page]:
    """All pages; a damaged page is empty. Raises `Unreadable` for a file that cannot be opened."""
    pdfium, raw = require_extra("pypdfium2", "books"), require_extra("pypdfium2.raw", "books")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
        raise Unreadable("encrypted" if encrypted else "not a PDF, or damaged") from None
    pages: list[Page] = []
    for number in range(len(document)):
        try:
            page = document[number]
            kinds = {raw.FPDFPageObj_GetType(raw.FPDFPage_GetObject(page, index))
                     for index in range(raw.FPDFPage_CountObjects(page))}
            pages.append(Page(list(read_lines(page, raw)), drawn=not kinds <= {raw.FPDF_PAGEOBJ_TEXT}))
            page.close()
        except pdfium.PdfiumError:
            pages.append(Page([]))
    document.close()
    return pages


def read_lines(page: Any, raw: Any) -> Iterator[Line]:
    """The lines of a page, with a hyphen at the end of those whose last word is broken."""
    textpage = page.get_textpage()
    line: dict[int, str] = {}  # index in the page -> UTF-16 unit
    count = textpage.count_chars()
    for index in range(count + 1):
        unit = chr(raw.FPDFText_GetUnicode(textpage, index)) if index < count else "\n"
        hyphen = raw.FPDFText_IsHyphen(textpage, index) == 1
        ends = hyphen or unit in "\r\n"
        if hyphen or not ends:
            line[index] = "-" if hyphen else unit
        if ends:
            places = [place for place, unit in line.items() if unit.strip(" \xa0\0")]
            text = "".join(line.values()).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            if places:
                yield Line(text.strip(), *place_line(page, textpage, raw, places[0], places[-1]))
            line = {}


def place_line(page: Any, textpage: Any, raw: Any, first: int, last: int) -> tuple[float, ...]:
    """(left, right, base, size) of the line from its first to its last character, on the page as shown."""
    width, height = page.get_size()

    def upright(x: float, y: float) -> tuple[float, float]:
        turned = {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}
        return turned.get(page.get_rotation(), (x, y))

    points, sizes = [], []
    x, y = ctypes.c_double(), ctypes.c_double()
    for index in (first, last):
        raw.FPDFText_GetCharOrigin(textpage, index, x, y)
        left, bottom, right, top = textpage.get_charbox(index, loose=True)
        points += [upright(x.value, y.value), upright(left, bottom), upright(right, top)]
        sizes.append(abs(points[-1][1] - points[-2][1]))
    across = [point[0] for point in points]
    return tuple(round(value, 2) for value in (min(across), max(across), height - points[0][1], max(sizes)))


def save_pages(path: Path, numbers: list[int], target: Path) -> None:
    """Writes some pages of a PDF, counted from 0, into a PDF of their own."""
    pdfium = require_extra("pypdfium2", "books")
    with pdfium.PdfDocument(path) as document, pdfium.PdfDocument.new() as part:
        part.import_pages(document, numbers)
        part.save(target)
