"""Books in PDF, with text, scanned or mixed, and the output of OCR engines become documents."""
import functools
import os
import shutil
import subprocess
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from corpus_files import read_folder, run

from data_prep import books
from data_prep.documents import Document
from data_prep.sources.worker import Worker
from mmed.utils.errors import UserError

pdfium = pytest.importorskip("pypdfium2")  # extra books
pytest.importorskip("ocrmypdf")
fpdf = pytest.importorskip("fpdf")
needs_tesseract = pytest.mark.skipif(not shutil.which("tesseract"), reason="Tesseract is not installed")

read = functools.partial(run, books.main)
SENTENCES = ["Heart failure with reduced ejection fraction is treated with four classes of drugs",
             "Patients should be weighed every day, because a sudden gain of weight often means congestion",
             "The long-term outcome depends on the cause, on renal function and on adherence to therapy",
             "Beta blockers are begun at a low dose, which is doubled every two weeks if it is tolerated"]


def paragraph(number: int) -> str:
    """Of sentences that differ, because rows that recur on several pages are taken for running heads."""
    return "Paragraph " + " ".join(f"({number}p{place}) {SENTENCES[(number + place) % 4]} ({number}p{place})."
                                   for place in range(3))


def write_pdf(path: Path, pages: int, scanned: tuple[int, ...] = ()) -> None:
    """A running head and two paragraphs a page; the pages `scanned` are pictures."""
    book = fpdf.FPDF(format="A5")
    book.set_font("helvetica", size=11)
    for number in range(pages):
        page = fpdf.FPDF(format="A5") if number in scanned else book
        page.set_font("helvetica", size=11)
        page.add_page()
        page.cell(0, 8, f"Cardiology {number + 1}", new_x="LMARGIN", new_y="NEXT")
        for place in (2 * number, 2 * number + 1):
            page.multi_cell(0, 6, paragraph(place), align="L", new_x="LMARGIN", new_y="NEXT")
            page.ln(4)
        if number in scanned:
            picture = pdfium.PdfDocument(bytes(page.output()))[0].render(scale=3).to_pil().convert("L")
            book.add_page()
            book.image(picture, 0, 0, book.w, book.h)
    path.write_bytes(bytes(book.output()))


def test_a_long_book_loses_running_heads_front_and_back_matter_and_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr(books, "PART", 20_000)
    write_pdf(tmp_path / "book.PDF?sequence=1", 110)
    documents, _ = read(tmp_path / "out", tmp_path, "--no_ocr", "--licence", "CC0")
    text = "\n".join(document.text for document in documents)
    inner = range(2 * 5, 2 * 105)  # 0.018 * 110 + 3 < page < 105
    assert text.split("\n") == [paragraph(number) for number in inner]
    parts = round(len(text) / 20_000)
    assert len(documents) == parts
    meta = {"file": "book.PDF?sequence=1", "licence": "CC0", "pages": 110, "part": 1, "parts": parts,
            "read": {"text": 100, "front or back matter": 10}}
    assert documents[0] == Document(documents[0].text, "en", "book", "book.PDF?sequence=1:1", meta)


def test_a_book_is_scanned_if_it_has_too_little_text():
    def page(text: str) -> books.Page:
        return books.Page([books.Line(text, 0, 1, 0, 1)])

    few, more = page("a" * 190 + "-" * 100), page("a" * 380)
    assert books.is_scanned([few]) and not books.is_scanned([few, more])
    assert books.is_scanned([page("a" * 300 + "-" * 400)])


@needs_tesseract
def test_scanned_pages_are_read_and_finished_groups_are_not_read_again(tmp_path, monkeypatch):
    write_pdf(tmp_path / "scan.pdf", 3, scanned=(0, 1, 2))
    write_pdf(tmp_path / "mixed.pdf", 3, scanned=(1,))
    monkeypatch.setattr(books, "OCR_PAGES", 2)
    first, _ = read(tmp_path / "out", tmp_path)
    mixed, scan = first
    assert scan.meta["read"] == {"ocr": 3} and mixed.meta["read"] == {"text": 2, "ocr": 1}
    expected = " ".join(map(paragraph, range(6)))
    assert SequenceMatcher(None, scan.text.split(), expected.split(), autojunk=False).ratio() > 0.95
    assert f"{paragraph(0)}\n" in mixed.text and paragraph(4) in mixed.text

    monkeypatch.setattr(subprocess, "run", lambda command, **settings: pytest.fail(" ".join(command)))
    for done in (tmp_path / "out" / "shards").glob("*.json"):
        done.unlink()  # as if killed after the OCR
    assert [document.text for document in read(tmp_path / "out", tmp_path)[0]] == [mixed.text, scan.text]


def test_pages_that_ocr_fails_on_are_counted(tmp_path, monkeypatch):
    write_pdf(tmp_path / "mixed.pdf", 4, scanned=(1, 2))
    fail, files = functools.partial(subprocess.run, ["false"], check=True), []
    monkeypatch.setattr(subprocess, "run", lambda command, **settings: files.extend(command[-2:]) or fail())
    document, = read(tmp_path / "out", tmp_path / "mixed.pdf")[0]
    assert document.meta["read"] == {"text": 2, "not read": 2}
    for _ in range(2):  # two tasks at the same pages
        with Worker(60) as worker:
            books.run_ocrmypdf(tmp_path / "mixed.pdf", [1], tmp_path / "a.ocr", "eng", worker)
    assert len(set(files)) == len(files) == 10
    assert not books.save_pages(tmp_path / "mixed.pdf", [9], tmp_path / "page.pdf")  # an error of PDFium


def test_a_folder_of_page_files_of_another_ocr_engine_is_a_book(tmp_path):
    folder, expected = tmp_path / "shelf" / "Cardiology", []
    folder.mkdir(parents=True)
    for number in (9, 10, 11):
        begin, end = SENTENCES[number % 4][:40], SENTENCES[number % 3][:40]
        lines = [f"CARDIOLOGY {number}", "", f"{begin} in the mid-", f"dle of {end}"]
        (folder / f"page{number}.txt").write_text("\n".join(lines))
        expected += f"{begin} in the middle of {end}".split()
    alto = "".join(f'<TextLine HPOS="0" VPOS="{20 * place}" WIDTH="{10 * len(line)}" HEIGHT="20">'
                   f'<String CONTENT="{line}"/></TextLine>' for place, line in enumerate(lines))
    (folder / "page11.xml").write_text(f"<alto><Layout><Page>{alto}</Page></Layout></alto>")  # read once
    (folder / "METS.xml").write_text('<mets xmlns="http://www.loc.gov/METS/"/>')
    document, = read(tmp_path / "out", tmp_path / "shelf")[0]
    assert document.text.split() == expected and document.meta["file"] == "Cardiology"


def test_damaged_books_are_dropped_with_the_reason(tmp_path):
    write_pdf(tmp_path / "good.pdf", 2)
    (tmp_path / "truncated.pdf").write_bytes((tmp_path / "good.pdf").read_bytes()[:200])
    (tmp_path / "noise.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(3000))
    write_pdf(tmp_path / "scan.pdf", 1, scanned=(0,))
    locked = fpdf.FPDF()
    locked.set_encryption(owner_password="a", user_password="b")
    locked.add_page()
    (tmp_path / "locked.pdf").write_bytes(bytes(locked.output()))
    documents, dropped = read(tmp_path / "out", tmp_path, "--no_ocr")
    assert len(documents) == 1 and dropped == {"not a PDF, or damaged": 2, "encrypted": 1, "no text": 1}
    assert {"id": "locked.pdf", "reason": "encrypted"} in read_folder(tmp_path / "out" / "dropped")
    with pytest.raises(UserError, match=r"locked.pdf \(locked.pdf\): encrypted; omit --strict"):
        read(tmp_path / "strict", tmp_path / "locked.pdf", "--strict")


def test_a_missing_tesseract_is_one_line(tmp_path, monkeypatch):
    write_pdf(tmp_path / "scan.pdf", 1, scanned=(0,))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="OCR needs Tesseract and its data for eng"):
        read(tmp_path / "out", tmp_path / "scan.pdf")
