"""Reads books that any OCR engine has turned into text: text files, hOCR or ALTO.

In:  .txt (a page per file, or pages separated by form feeds as in pdftotext and OCRmyPDF's --sidecar),
     .hocr (Tesseract, OCRopus, Kraken), .xml (ALTO: ABBYY, Transkribus, eScriptorium, national libraries).
Out: `Page`s of lines with their positions. Of plain text the positions are counted in characters.
"""
from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.book_layout import Line
from data_prep.sources.pdf_text import Page, page_of
from data_prep.sources.worker import Unreadable

SUFFIXES = (".txt", ".hocr", ".xml")
MAX_FILE_BYTES = 1 << 28
BOX = re.compile(r"\bbbox (-?\d+) (-?\d+) (-?\d+) (-?\d+)")
LINE_CLASSES = ("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat", "ocrx_line")


def read_ocr_text(paths: list[Path]) -> list[Page]:
    """All pages of a book, whose files are given in order. Raises `Unreadable`."""
    pages: list[Page] = []
    for path in paths:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Unreadable(f"file larger than {MAX_FILE_BYTES >> 20} MiB")
        body = path.read_bytes()
        if path.suffix.lower() == ".txt":
            pages += [page_of(text_lines(page)) for page in text_pages(body)]
        else:
            pages += [page_of(list(lines)) for lines in xml_pages(body)]
    return pages


def text_pages(body: bytes) -> list[str]:
    try:
        return body.decode("utf-8-sig").removesuffix("\f").split("\f")
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8") from None


def text_lines(text: str) -> list[Line]:
    """Lines of plain text as a typewriter would set them: an empty line makes the next one stand apart.

    >>> text_lines("  One\\n\\ntwo")
    [Line(text='One', left=2, right=5, base=1, size=1), Line(text='two', left=0, right=3, base=3, size=1)]
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        left, inner = len(line) - len(line.lstrip()), line.strip()
        if inner:
            lines.append(Line(inner, left, left + len(inner), number, 1))
    return lines


def xml_pages(body: bytes) -> Iterator[Iterator[Line]]:
    """The pages of an hOCR or ALTO file."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise Unreadable("not well-formed XML") from None
    if root.tag.rpartition("}")[2].lower() == "alto":
        yield from map(alto_lines, root.iterfind(".//{*}Page"))
        return
    pages = [element for element in root.iterfind(".//{*}div") if element.get("class") == "ocr_page"]
    if not pages:
        raise Unreadable("neither hOCR nor ALTO")
    yield from map(hocr_lines, pages)


def alto_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in page.iterfind(".//{*}TextLine"):
        words = [word.get("CONTENT", "") for word in line.iterfind("{*}String")]
        if line.find("{*}HYP") is not None:
            words[-1:] = [words[-1] + "-"] if words else []
        left, top, width, height = (float(line.get(key) or 0) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
        yield Line(" ".join(words), left, left + width, top + height, height)


def hocr_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in page.iterfind(".//{*}span"):
        box = BOX.search(line.get("title") or "")
        if line.get("class") in LINE_CLASSES and box:
            left, top, right, bottom = map(float, box.groups())
            size = re.search(r"\bx_size ([\d.]+)", line.get("title"))
            text = " ".join("".join(line.itertext()).split())
            yield Line(text, left, right, bottom, float(size[1]) if size else bottom - top)
