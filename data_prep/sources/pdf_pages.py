"""The pages of one PDF, read in a process of its own: the only place that hands a stranger's bytes to a parser.

    with Pages(path, limits) as pages:          # starts the process
        pages.count
        pages.read(12)              # {"lines": [[text, left, right, base, size], ...], "characters", "letters", "drawn", "seconds"}
        pages.ocr(12, "eng", 300)               # {"lines": [...]} or {"failed": why}

Pages count from 0. Lines come in the order of the file's content, which is the reading order of nearly all PDFs, columns
included; left, right and base (the line it stands on, measured down from the top) and size are in points of 1/72 inch. A hyphen
that the setter put at a line's end is the last character of its line.

A PDF is a program for several old parsers, and some are made to break them. So the process limits itself: its memory by
setrlimit, the time of every request by setitimer(2), which ends it in the middle of C code too. Whatever a file does, the asker
sees an answer or the end of the process, as `BookError` with a short reason. Time is the processor's, so that a busy machine
drops no page that a quiet one reads; by the clock it may be PATIENCE times as long. The two speak JSON lines over pipes; each
answer is limited in size. If the asker dies, the process reads the end of its input and goes too.
"""
from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mmed.utils.errors import UserError, require_extra

PAGE_CHARACTERS, PAGE_LINES = 200_000, 5000  # more is no page of a book
BOOK_CHARACTERS = 100_000_000  # more is no book
PAGE_OBJECTS = 2000  # looked through for something other than text
PAGE_PIXELS = 30_000_000  # A4 at 300 dots an inch has 8.7 million; a larger page is drawn with fewer dots an inch
SIDE_PIXELS = 30_000  # Tesseract takes up to 32,767
OCR_TIMES = 4  # Tesseract may take so many times the limit of reading a page
PATIENCE = 10
SPECK_CONFIDENCE, LINE_CONFIDENCE = 60, 50  # of Tesseract, 0 to 100: below lie specks without a letter, and the scribble of figures
PAGE_CONFIDENCE = 70  # below, the page is tried again with its orientation looked for
TAKEN_FOR_BULLETS = re.compile(r"^[¢©®«](?= \w)")
HEADING = 1.6  # a scanned line so many times the page's usual height is large type; smaller differences are noise


class Limits(NamedTuple):
    """What one book may take; seconds of the processor."""

    pages: int = 10_000
    page_seconds: int = 30
    book_seconds: int = 900  # for reading its text, without OCR
    memory_mib: int = 2048  # address space, of the reader and of Tesseract each


class BookError(Exception):
    """Why a book cannot be read: a short fixed reason, and what else is known."""

    def __init__(self, reason: str, **more: Any):
        super().__init__(reason)
        self.reason, self.more = reason, more


# ---- the asking side --------------------------------------------------------------------------------------------------


class Pages:
    """A running reader of one PDF."""

    def __init__(self, path: Path, limits: Limits):
        root = Path(__file__).resolve().parents[2]  # so that the package is found, installed or not
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from data_prep.sources.pdf_pages import serve; serve()", os.path.abspath(path), json.dumps(limits._asdict())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root)
        try:
            self.count: int = self._answer("open")["pages"]
        except BaseException:
            self.close()
            raise

    def read(self, page: int) -> dict[str, Any]:
        return self._ask(["read", page])

    def ocr(self, page: int, language: str, dpi: int) -> dict[str, Any]:
        return self._ask(["ocr", page, language, dpi])

    def _ask(self, request: list) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(f"{request[0]} page {request[1] + 1}")

    def _answer(self, doing: str) -> dict[str, Any]:
        line = self._process.stdout.readline(64 << 20)
        if not line.endswith(b"\n"):
            if line:  # longer than any answer
                self._process.kill()
            code = self._process.wait()
            if code in (-signal.SIGPROF, -signal.SIGALRM):
                raise BookError("took too long", at=doing)
            raise BookError("crashed the reader, or needs too much memory", at=doing,
                            signal=signal.Signals(-code).name if code < 0 else f"exit code {code}")
        answer = json.loads(line)
        if "bug" in answer:
            raise RuntimeError(f"{doing}: {answer['bug']}")
        if "reason" in answer:
            raise BookError(answer["reason"], at=doing)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


# ---- the reading process ----------------------------------------------------------------------------------------------


def serve() -> None:
    """Open the file named in argv, answer requests until the input ends."""
    path, limits = Path(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the asker too, whose end is ours
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # which ends the process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing a library prints gets between the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_mib << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def begin(seconds: int, elsewhere: int = 0) -> None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(PATIENCE * (seconds + elsewhere) + 1)

    def answer(value: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    try:
        begin(limits.page_seconds * 2)  # a broken index of a large file is built anew
        document = open_document(path, limits)
        answer({"pages": len(document)})
        for line in sys.stdin.buffer:
            kind, page, *settings = json.loads(line)
            if kind == "read":
                begin(limits.page_seconds)
                answer({**read_page(document, page), "seconds": time.process_time()})
            else:
                begin(limits.page_seconds * 2, elsewhere=limits.page_seconds * OCR_TIMES * 3)
                answer(ocr_page(document, page, *settings, seconds=limits.page_seconds * OCR_TIMES))
    except BookError as error:
        answer({"reason": error.reason})
    except MemoryError:
        answer({"reason": "crashed the reader, or needs too much memory"})
    except Exception as error:
        answer({"bug": f"{type(error).__name__}: {error}"})


def open_document(path: Path, limits: Limits) -> Any:
    """The opened PDF, or `BookError`."""
    pdfium = require_extra("pypdfium2", "books")
    raw = require_extra("pypdfium2.raw", "books")
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        known = {raw.FPDF_ERR_PASSWORD: "encrypted", raw.FPDF_ERR_SECURITY: "encrypted", raw.FPDF_ERR_SUCCESS: "no pages"}
        raise BookError(known.get(error.err_code, "not a PDF, or damaged")) from None
    if len(document) > limits.pages:
        raise BookError("too many pages")
    return document


def read_page(document: Any, number: int) -> dict[str, Any]:
    """The lines of text of one page, how many of its characters are letters or digits, and whether it holds anything but text."""
    pdfium = require_extra("pypdfium2", "books")
    raw = require_extra("pypdfium2.raw", "books")
    empty: dict[str, Any] = {"lines": [], "characters": 0, "letters": 0, "drawn": False}
    try:
        page = document[number]
        drawn = any(raw.FPDFPageObj_GetType(raw.FPDFPage_GetObject(page, place)) != raw.FPDF_PAGEOBJ_TEXT
                    for place in range(min(raw.FPDFPage_CountObjects(page), PAGE_OBJECTS)))
        textpage = page.get_textpage()
    except pdfium.PdfiumError:
        return {**empty, "failed": "damaged page"}
    count = textpage.count_chars()
    if count > PAGE_CHARACTERS:
        return {**empty, "failed": f"more than {PAGE_CHARACTERS} characters on a page"}
    text = textpage.get_text_range() if count > 0 else ""
    lines = _lines(page, textpage, text) if text.strip() else []
    page.close()
    if len(lines) > PAGE_LINES:
        return {**empty, "failed": f"more than {PAGE_LINES} lines on a page"}
    return {"lines": lines, "drawn": drawn, "characters": len(text), "letters": sum(map(str.isalnum, text))}


Place = tuple[float, float]


def _lines(page: Any, textpage: Any, text: str) -> list[tuple[str, float, float, float, float]]:
    """Cut PDFium's text into lines and ask where the first and the last character of each stand."""
    raw = require_extra("pypdfium2.raw", "books")
    width, height = page.get_size()
    turned = page.get_rotation()
    box, x, y = raw.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
    found: list[tuple[str, list[Place]]] = []  # the origin, the lower left and the upper right corner of both characters
    pieces = re.split("(\r\n|[\r\n\x02\ufffe])", text)  # the last two stand for a hyphen at a line's end
    units = 0  # PDFium counts UTF-16
    for piece, end in zip(pieces[::2], [*pieces[1::2], ""]):
        start, after, units = units, units + _units(piece), units + _units(piece) + len(end)
        inner = piece.strip()
        if not inner:
            continue
        start += len(piece) - len(piece.lstrip())  # white space is one unit a character
        points: list[Place] = []
        for place in (start, start + _units(inner) - 1):
            index = raw.FPDFText_GetCharIndexFromTextIndex(textpage, place)
            if index >= 0 and raw.FPDFText_GetLooseCharBox(textpage, index, box) and raw.FPDFText_GetCharOrigin(textpage, index, x, y):
                points += [upright(*point, width, height, turned)
                           for point in ((x.value, y.value), (box.left, box.bottom), (box.right, box.top))]
        if all(math.isfinite(number) for point in points for number in point):
            hyphen = end in ("\x02", "\ufffe") and raw.FPDFText_IsHyphen(textpage, raw.FPDFText_GetCharIndexFromTextIndex(textpage, after)) == 1
            found.append((inner + ("-" if hyphen else ""), points or [(0.0, height)] * 3))
    return place_lines(found, width, height)


def place_lines(found: list[tuple[str, list[Place]]], width: float, height: float) -> list[tuple[str, float, float, float, float]]:
    """(text, left, right, base, size) of each line; where most run up or down the page, it is turned so that they run across.

    >>> place_lines([("ab", [(10, 90), (10, 88), (15, 98), (15, 90), (15, 88), (20, 98)])], 200, 100)
    [('ab', 10, 20, 10, 10)]
    >>> place_lines([("ab", [(90, 10), (88, 10), (98, 15), (90, 25), (88, 25), (98, 30)])], 100, 200)  # upwards, to be read from the right
    [('ab', 10, 30, 90, 10)]
    """
    steps = [(points[3][0] - points[0][0], points[3][1] - points[0][1]) for _, points in found if len(points) > 3]
    sideways = sum(abs(up) for _, up in steps) > 2 * sum(abs(along) for along, _ in steps)
    if sideways:
        turn = 90 if sum(up for _, up in steps) > 0 else 270
        width, height = height, width
        found = [(text, [upright(*point, width, height, turn) for point in points]) for text, points in found]
    lines = []
    for text, points in found:
        across = [point[0] for point in points]
        size = max(abs(top[1] - bottom[1]) for bottom, top in zip(points[1::3], points[2::3]))
        lines.append((text, *(round(value, 2) for value in (min(across), max(across), height - points[0][1], size))))
    return sorted(lines, key=lambda line: line[3]) if sideways else lines  # PDFium then gives them from left to right


def _units(text: str) -> int:
    return len(text) + sum(letter > "\uffff" for letter in text)


def upright(x: float, y: float, width: float, height: float, turned: int) -> tuple[float, float]:
    """A point of the page as it lies in the file, on the page as it is shown: turned clockwise, now `width` by `height`.

    >>> upright(10, 20, 200, 100, 90)  # the lower left corner of the file's page is the upper left of the one shown
    (20, 90)
    """
    return {90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}.get(turned, (x, y))


# ---- pages without text -----------------------------------------------------------------------------------------------


def ocr_page(document: Any, number: int, language: str, dpi: int, seconds: int) -> dict[str, Any]:
    """Draw a page in shades of grey and let Tesseract read it; a page it fails on is no reason to give up the book."""
    pdfium = require_extra("pypdfium2", "books")
    try:
        page = document[number]
        width, height = page.get_size()
        if not (1 <= width < math.inf and 1 <= height < math.inf):
            return {"failed": "page of impossible size"}
        scale = min(dpi / 72, math.sqrt(PAGE_PIXELS / (width * height)), SIDE_PIXELS / max(width, height))
        picture = draw(page, scale, 0)
        lines, confidence, why = tesseract(picture, language, scale, seconds)
        if not why and confidence < PAGE_CONFIDENCE:  # it may lie on its side or head
            turned, better, failed = tesseract(picture, language, scale, seconds, "1")
            if not failed and better > confidence:
                lines, confidence = turned, better
        if not why and (turn := how_turned(lines)):  # read, but the places of its lines are those of the turned page
            upright_lines, better, failed = tesseract(draw(page, scale, turn), language, scale, seconds)
            if not failed and better > confidence - 5:
                lines = upright_lines
        page.close()
    except pdfium.PdfiumError:
        return {"failed": "page cannot be drawn"}
    return {"failed": why} if why else {"lines": lines}


def draw(page: Any, scale: float, turn: int) -> bytes:
    """A page turned clockwise, as a PGM picture."""
    bitmap = page.render(scale=scale, grayscale=True, rotation=turn)
    rows = memoryview(bitmap.buffer).cast("B")
    return b"P5\n%d %d\n255\n" % (bitmap.width, bitmap.height) + b"".join(
        rows[row * bitmap.stride:row * bitmap.stride + bitmap.width] for row in range(bitmap.height))


def how_turned(lines: list[list]) -> int:
    """How far clockwise a page must be turned for its lines, in reading order, to run across and down.

    >>> how_turned([["one", 10, 90, 20, 9], ["two", 10, 90, 32, 9]]), how_turned([["one", 10, 90, 80, 9], ["two", 10, 90, 68, 9]])
    (0, 180)
    >>> how_turned([["one", 80, 90, 99, 70], ["two", 68, 78, 99, 70]]), how_turned([["one", 10, 20, 99, 70], ["two", 22, 32, 99, 70]])
    (270, 90)
    """
    if sum(line[4] for line in lines) > sum(line[2] - line[1] for line in lines):
        return 270 if sum((after[1] > line[1]) - (after[1] < line[1]) for line, after in pairwise(lines)) < 0 else 90
    return 180 if sum((after[3] > line[3]) - (after[3] < line[3]) for line, after in pairwise(lines)) < 0 else 0


def tesseract(picture: bytes, language: str, scale: float, seconds: int, layout: str = "3") -> tuple[list, float, str]:
    """(lines, confidence of their words from 0 to 100, why there are none) of a picture with `scale` dots to the point."""
    command = ["tesseract", "stdin", "stdout", "-l", language, "--psm", layout, "--dpi", str(max(70, round(scale * 72))), "tsv"]
    try:
        done = subprocess.run(command, input=picture, capture_output=True, timeout=PATIENCE * seconds,
                              env={**os.environ, "OMP_THREAD_LIMIT": "1"},  # a process a book uses the cores better
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds)))
    except subprocess.TimeoutExpired:
        return [], 0.0, "OCR took too long"
    if done.returncode:
        return [], 0.0, "OCR took too long" if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else "OCR failed"
    return read_tsv(done.stdout.decode("utf-8", errors="replace"), scale)


def read_tsv(table: str, scale: float) -> tuple[list, float, str]:
    r"""Tesseract's table of words as lines in points; specks and lines it hardly believes in are left out.

    >>> head = "level page_num block_num par_num line_num word_num left top width height conf text".replace(" ", "\t")
    >>> words = ["5 1 1 1 1 1 100 200 60 20 96.1 Heart", "5 1 1 1 1 2 170 200 90 20 90.2 failure", "5 1 2 1 1 1 5 5 9 2 12.0 |"]
    >>> read_tsv("\n".join([head, *(word.replace(" ", "\t") for word in words)]), scale=2)
    ([['Heart failure', 50.0, 130.0, 110.0, 10.0]], 93.15, '')
    """
    found: dict[tuple[str, ...], list[tuple[float, float, float, float, float, str]]] = {}
    for row in table.splitlines()[1:]:
        cells = row.split("\t")
        if len(cells) == 12 and cells[0] == "5" and cells[11].strip():
            left, top, width, height, confidence = map(float, cells[6:11])
            if confidence >= SPECK_CONFIDENCE or any(map(str.isalnum, cells[11])):
                found.setdefault(tuple(cells[2:5]), []).append((left, left + width, top, top + height, confidence, cells[11].strip()))
    lines = [words for words in found.values() if sum(word[4] for word in words) >= LINE_CONFIDENCE * len(words)]
    if not lines:
        return [], 0.0, ""
    sizes = [(max(word[3] for word in words) - min(word[2] for word in words)) / scale for words in lines]
    usual = sorted(sizes)[len(sizes) // 2]
    believed = [word[4] for words in lines for word in words]
    return ([[TAKEN_FOR_BULLETS.sub("•", " ".join(word[5] for word in words)),
              *(round(value, 2) for value in (min(word[0] for word in words) / scale, max(word[1] for word in words) / scale,
                                              max(word[3] for word in words) / scale, size if size > HEADING * usual else usual))]
             for words, size in zip(lines, sizes)], round(sum(believed) / len(believed), 2), "")


# ---- what must be installed -------------------------------------------------------------------------------------------


def check_tesseract(language: str) -> None:
    """A missing program or language is found before the first book, in one line that says what to install."""
    package = f"tesseract-ocr-{language.replace('_', '-')}"
    without = "or give --no-ocr to leave out pages without text"
    try:
        listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, timeout=60).stdout.split()
    except FileNotFoundError:
        raise UserError(f"the program tesseract is missing: install tesseract-ocr and {package} (Debian packages), {without}") from None
    missing = [part for part in language.split("+") if part not in listed]
    if missing:
        packages = " ".join(f"tesseract-ocr-{part.replace('_', '-')}" for part in missing)
        raise UserError(f"tesseract has no data for {', '.join(map(repr, missing))}: install {packages} (Debian), {without}")
