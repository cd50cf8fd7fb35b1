"""Reads books that any OCR engine has turned into text: text files, hOCR or ALTO.

In:  .txt (a page per file, or pages separated by form feeds as in pdftotext and OCRmyPDF's --sidecar),
     .hocr (Tesseract, OCRopus, Kraken), .xml (ALTO: ABBYY, Transkribus, eScriptorium, national libraries).
Out: `Page`s of lines with their positions. In plain text, positions are counted in characters.
"""
from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.book_layout import Line, Page
from data_prep.sources.worker import Unreadable

SUFFIXES = (".hocr", ".xml", ".txt")  # of one page, the first of them
BOX = re.compile(r"\bbbox (-?\d+) (-?\d+) (-?\d+) (-?\d+)")
LINE_CLASSES = ("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat", "ocrx_line")


def read_ocr_text(paths: list[Path]) -> list[Page]:
    """All pages of a book, whose files are given in order. Raises `Unreadable`."""
    pages: list[Page] = []
    for path in paths:
        try:
            if path.suffix.lower() == ".txt":
                texts = path.read_bytes().decode("utf-8-sig").removesuffix("\f").split("\f")
                pages += [Page(list(text_lines(text))) for text in texts]
            else:
                pages += read_xml(ElementTree.parse(path).getroot())
        except UnicodeDecodeError:
            raise Unreadable("not UTF-8") from None
        except ElementTree.ParseError:
            raise Unreadable("not well-formed XML") from None
    return pages


def text_lines(text: str) -> Iterator[Line]:
    """Lines of plain text as a typewriter would set them: an empty line makes the next one stand apart."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Line(line.strip(), len(line) - len(line.lstrip()), len(line.rstrip()), number, 1)


def read_xml(root: ElementTree.Element) -> list[Page]:
    kind = root.tag.rpartition("}")[2].lower()
    if kind == "mets":  # the table of contents beside ALTO files
        return []
    if kind == "alto":
        return [Page(list(alto_lines(page))) for page in root.iterfind(".//{*}Page")]
    pages = [element for element in root.iterfind(".//{*}div") if element.get("class") == "ocr_page"]
    if not pages:
        raise Unreadable("neither hOCR nor ALTO")
    return [Page(list(hocr_lines(page))) for page in pages]


def alto_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in page.iterfind(".//{*}TextLine"):
        text = " ".join(word.get("CONTENT", "") for word in line.iterfind("{*}String"))
        hyphen = "-" if text and line.find("{*}HYP") is not None else ""
        left, top, width, height = (float(line.get(key) or 0) for key in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
        yield Line(text + hyphen, left, left + width, top + height, height)


def hocr_lines(page: ElementTree.Element) -> Iterator[Line]:
    for line in page.iterfind(".//{*}span"):
        title = line.get("title") or ""
        box = BOX.search(title)
        if line.get("class") in LINE_CLASSES and box:
            left, top, right, bottom = map(float, box.groups())
            size = re.search(r"\bx_size ([\d.]+)", title)
            text = " ".join("".join(line.itertext()).split())
            yield Line(text, left, right, bottom, float(size[1]) if size else bottom - top)
