"""Reads the pages of books: PDF files with PDFium, and what any OCR engine has made of scans.

In:  .pdf; .txt (a page per file, or pages separated by form feeds as in pdftotext and OCRmyPDF's --sidecar);
     .hocr (Tesseract, OCRopus, Kraken); .xml (ALTO: ABBYY, Transkribus, eScriptorium, national libraries).
Out: `Page`s of lines with their positions, in the file's order, which nearly always is the reading order.

Call these functions in a child process (worker.py): PDFium is C++, and the files are untrusted.
"""
from __future__ import annotations

import ctypes
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.documents import has_suffix
from data_prep.sources.book_layout import Line
from data_prep.sources.worker import Unreadable
from mmed.utils.errors import require_extra

OCR_SUFFIXES = (".hocr", ".xml", ".txt")  # of one page, the first of them
HOCR_LINES = ("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat", "ocrx_line")
NEITHER = "neither UTF-8 text, hOCR nor ALTO"
BOX = re.compile(r"\bbbox (-?\d+) (-?\d+) (-?\d+) (-?\d+)")


class Page(NamedTuple):
    lines: list[Line]
    drawn: bool = False  # holds pictures or drawings

    @property
    def text(self) -> str:
        return "".join(line.text for line in self.lines)

    @property
    def letters(self) -> int:
        """How many letters and digits its text has."""
        return sum(map(str.isalnum, self.text))


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
            drawn = any(item.type != raw.FPDF_PAGEOBJ_TEXT for item in page.get_objects(max_depth=1))
            pages.append(Page(list(pdf_lines(page, raw)), drawn))
            page.close()
        except pdfium.PdfiumError:
            pages.append(Page([]))
    document.close()
    return pages


def pdf_lines(page: Any, raw: Any) -> Iterator[Line]:
    """The lines of a page, with a hyphen at the end of those whose last word is broken."""
    textpage = page.get_textpage()
    line: dict[int, str] = {}  # index in the page -> UTF-16 unit
    count = textpage.count_chars()
    for index in range(count + 1):
        unit = chr(raw.FPDFText_GetUnicode(textpage, index)) if index < count else "\n"
        hyphen = raw.FPDFText_IsHyphen(textpage, index) == 1
        if hyphen or unit not in "\r\n":
            line[index] = "-" if hyphen else unit
        if hyphen or unit in "\r\n":
            places = [place for place, unit in line.items() if unit.strip(" \xa0\0")]
            text = "".join(line.values()).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            if places:
                yield Line(text.strip(), *place_line(page, textpage, raw, places[0], places[-1]))
            line = {}


def place_line(page: Any, textpage: Any, raw: Any, first: int, last: int) -> tuple[float, ...]:
    """(left, right, base, size) of the line from its first to its last character, on the page as shown."""
    width, height = page.get_size()
    origin_x, origin_y = ctypes.c_double(), ctypes.c_double()
    points: list[tuple[float, float]] = []
    for index in (first, last):
        raw.FPDFText_GetCharOrigin(textpage, index, origin_x, origin_y)
        left, bottom, right, top = textpage.get_charbox(index, loose=True)
        for x, y in ((origin_x.value, origin_y.value), (left, bottom), (right, top)):
            turned = {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}
            points.append(turned.get(page.get_rotation(), (x, y)))
    across, heights = zip(*points)
    size = max(abs(heights[2] - heights[1]), abs(heights[5] - heights[4]))
    top, bottom, base = height - max(heights), height - min(heights), height - heights[0]
    downwards = first < last and heights[3] < heights[0]
    placed = place_box(min(across), top, max(across), bottom if downwards else top, size, base)
    return tuple(round(value, 2) for value in placed)


def save_pages(path: Path, numbers: list[int], target: Path) -> bool:
    """Writes some pages of a PDF, counted from 0, into a PDF of their own; False if PDFium fails on them."""
    pdfium = require_extra("pypdfium2", "books")
    try:
        with pdfium.PdfDocument(path) as document, pdfium.PdfDocument.new() as part:
            part.import_pages(document, numbers)
            part.save(target)
    except pdfium.PdfiumError:
        return False
    return True


def read_ocr_text(paths: list[Path]) -> list[Page]:
    """All pages of a book, whose files are given in order. Raises `Unreadable`."""
    pages: list[Page] = []
    for path in paths:
        try:
            if has_suffix(path.name, (".txt",)):
                found = map(text_lines, path.read_text(encoding="utf-8-sig").removesuffix("\f").split("\f"))
            else:
                found = read_xml(parse(path))
            pages += [Page(list(lines)) for lines in found]
        except (ValueError, SyntaxError):  # not UTF-8; a position that is no number; not XML
            raise Unreadable(NEITHER) from None
    return pages


def parse(path: Path) -> Any:
    """The root of an XML file; hOCR is also written as HTML, which lxml reads."""
    try:
        return ElementTree.parse(path).getroot()
    except ElementTree.ParseError:
        html = require_extra("lxml.html", "books")
        return html.fromstring("<html>" + path.read_text(encoding="utf-8-sig"))


def text_lines(text: str) -> Iterator[Line]:
    """Lines placed as a typewriter would, in characters: an empty line separates the next one."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Line(line.strip(), len(line) - len(line.lstrip()), len(line.rstrip()), number, 1)


def read_xml(root: Any) -> list[Iterable[Line]]:
    kind, hocr = root.tag.rpartition("}")[2].lower(), list(of_class(root, ("ocr_page",)))
    if not hocr and kind not in ("alto", "mets"):  # mets: the table of contents beside ALTO files
        raise Unreadable(NEITHER)
    return [*map(alto_lines, root.iterfind(".//{*}Page")), *map(hocr_lines, hocr)]


def alto_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in page.iterfind(".//{*}TextLine"):
        text = " ".join(word.get("CONTENT", "") for word in line.iterfind("{*}String"))
        hyphen = "-" if text and line.find("{*}HYP") is not None else ""
        left, top, width, height = (float(line.get(key) or 0) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
        yield Line(text + hyphen, *place_box(left, top, left + width, top + height))


def hocr_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in of_class(page, HOCR_LINES):
        title = line.get("title") or ""
        if box := BOX.search(title):
            words = [*of_class(line, ("ocrx_word",))] or [line]  # some files have no blanks
            text = " ".join(" ".join("".join(word.itertext()) for word in words).split())
            size = re.search(r"\bx_size ([\d.]+)", title)
            yield Line(text, *place_box(*map(float, box.groups()), float(size[1]) if size else 0.0))


def of_class(root: Any, names: tuple[str, ...]) -> Iterator[Any]:
    return (part for part in root.iter() if not {*names}.isdisjoint((part.get("class") or "").split()))


def place_box(left: float, top: float, right: float, bottom: float, size: float = 0,
              base: float | None = None) -> tuple[float, ...]:
    """(left, right, base, size) of a line; of one written downwards as if the page were turned."""
    if bottom - top > 5 * (right - left):
        return top, bottom, -left, right - left
    return left, right, bottom if base is None else base, size or bottom - top
