"""Books: what was set is what is read, in text PDFs and scans; hostile files cost themselves and nothing else."""
import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from data_prep.books import (
    book_names,
    book_options,
    find_books,
    is_scanned,
    main,
    read_books,
    read_journal,
    text_pages,
)
from data_prep.sources.pdf_pages import BookError, Limits, Pages, check_tesseract, tesseract
from mmed.languages import get_language
from mmed.utils.errors import UserError

fpdf = pytest.importorskip("fpdf")
pdfium = pytest.importorskip("pypdfium2")

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "pdf"
FONTS = {"latin": ("DejaVuSerif.ttf", "LiberationSerif-Regular.ttf"), "cjk": ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc")}
FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("/Library/Fonts"), Path("/System/Library/Fonts"))
LIMITS = Limits(page_seconds=10, memory_mib=700)
WIDTH, HEIGHT, LEADING, SIZE, INDENT = 380, 560, 15, 11, 22


def font_file(script: str) -> Path:
    for folder in FOLDERS:
        for name in FONTS[script]:
            for path in folder.rglob(name):
                return path
    pytest.skip(f"no font for {script} on this machine ({', '.join(FONTS[script])})")


def needs_tesseract(language: str) -> None:
    try:
        check_tesseract(get_language(language).ocr_code)
    except UserError as error:
        pytest.skip(str(error))


# ---- a small setter ---------------------------------------------------------------------------------------------------


def made_paragraphs(rng: random.Random, code: str, count: int) -> list[str]:
    """Sentences of the language's medical words; words with hyphens of their own among them."""
    language = get_language(code)
    words = [spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/")[:1] if " " not in spelling]
    words = rng.sample([word for word in words if word.isalpha() and (language.spaced or not word.isascii())], 60)
    if not language.spaced:
        return ["".join(rng.choice(words) for _ in range(rng.randrange(20, 60))) + "。" for _ in range(count)]
    words += ["long-term", "beta-blocker", "follow-up"] if code == "en" else []
    return [" ".join(rng.choice(words) for _ in range(rng.randrange(20, 60))).capitalize() + "." for _ in range(count)]


def set_lines(paragraph: str, column: float, width_of, spaced: bool, rng: random.Random) -> list[str]:
    """Greedy lines, the first indented; words that do not fit are often cut with a hyphen, at their own if they have one."""
    lines, line, room = [], "", column - INDENT
    if not spaced:
        for letter in paragraph:
            if width_of(line + letter) > room and letter != "。":
                lines, line, room = [*lines, line], "", column - SIZE
            line += letter
        return [*lines, line]
    words = paragraph.split(" ")
    while words:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if width_of(longer) <= room:
            line = longer
            continue
        places = [word.index("-")] if "-" in word else list(range(3, len(word) - 3)) if word.isalpha() else []
        rng.shuffle(places)
        for place in places:
            cut = f"{line} {word[:place]}-".strip()
            if width_of(cut) <= room and rng.random() < 0.8:
                line, word = cut, word[place:].lstrip("-")
                break
        lines, line, room = [*lines, line], "", column
        words.insert(0, word)
    return [*lines, line]


def make_book(path: Path, paragraphs: list[str], code: str, rng: random.Random, head: str = "", columns: int = 1) -> int:
    """Set a book with running titles and page numbers, paragraphs indented; returns its number of pages."""
    spaced = get_language(code).spaced
    book = fpdf.FPDF(unit="pt", format=(WIDTH, HEIGHT))
    book.set_auto_page_break(False)
    book.add_font("f", fname=font_file("latin" if spaced else "cjk"))
    book.set_font("f", size=SIZE)
    column = (WIDTH - 80 - 20 * (columns - 1)) / columns
    places = iter(())
    for paragraph in paragraphs:
        for number, line in enumerate(set_lines(paragraph, column, book.get_string_width, spaced, rng)):
            place = next(places, None)
            if place is None:
                book.add_page()
                if head:
                    title = f"{book.page + 40}   {head}" if book.page % 2 else f"Chapter 3   {book.page + 40}"
                    book.text(40, 30, title)
                    book.text(WIDTH / 2 - 20, HEIGHT - 20, f"- {book.page} -")
                places = iter([(40 + place * (column + 20), y) for place in range(columns) for y in range(60, HEIGHT - 50, LEADING)])
                place = next(places)
            book.text(place[0] + (0 if number else INDENT), place[1], line)
    book.output(str(path))
    return book.page


def scan(source: Path, target: Path, keep_text: tuple[int, ...] = (), dpi: int = 200) -> None:
    """The same pages as pictures, but for some."""
    document = pdfium.PdfDocument(source)
    pictures = fpdf.FPDF(unit="pt", format=(WIDTH, HEIGHT))
    for number in range(len(document)):
        pictures.add_page()
        pictures.image(document[number].render(scale=dpi / 72, grayscale=True).to_pil(), x=0, y=0, w=WIDTH, h=HEIGHT)
    pictures.output(str(target))
    if keep_text:
        mixed = pdfium.PdfDocument(target)
        for number in keep_text:
            mixed.del_page(number)
            mixed.import_pages(document, [number], number)
        mixed.save(target.with_suffix(".mixed"))
        mixed.close()
        target.with_suffix(".mixed").replace(target)
    document.close()


def read(out: Path, folder: str = "kept") -> list[dict]:
    return [json.loads(line) for path in sorted((out / folder).glob("*.gz")) for line in gzip.open(path, "rt", encoding="utf-8")]


def paragraphs_of(documents: list[dict]) -> list[str]:
    return [part for document in documents for part in document["text"].split("\n") if part]


def hashes(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"}


def processor_seconds() -> float:
    """Of this process and its ended children; a busy machine does not change it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in used)


def error_rate(read_text: str, truth: str) -> float:
    """Levenshtein distance by letter over the length of the truth, white space aside."""
    read_text, truth = "".join(read_text.split()), "".join(truth.split())
    row = list(range(len(truth) + 1))
    for place, letter in enumerate(read_text, 1):
        before, row[0] = row[0], place
        for other, right in enumerate(truth, 1):
            before, row[other] = row[other], min(row[other] + 1, row[other - 1] + 1, before + (letter != right))
    return row[-1] / len(truth)


# ---- what was set is what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "columns"), [("en", 1), ("en", 2), ("fr", 1), ("ru", 2), ("es", 1), ("zh", 1), ("ja", 2)])
def test_a_text_book_gives_its_paragraphs_without_running_titles_and_hyphens(code, columns, tmp_path):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    paragraphs = made_paragraphs(rng, code, 30 if get_language(code).spaced else 50)
    head = {"zh": "心血管系统疾病", "ja": "循環器の病気"}.get(code, "Diseases of the heart")
    pages = make_book(tmp_path / "book.pdf", paragraphs, code, rng, head, columns)
    assert pages >= 5  # running titles of left and of right pages come three times within the window
    funnel = read_books([tmp_path / "book.pdf"], tmp_path / "out", book_options(code, ocr=False, limits=LIMITS))
    documents = read(tmp_path / "out")
    assert paragraphs_of(documents) == paragraphs
    assert funnel.documents_out == 1 and funnel.details["pages: text"] == pages
    (document,) = documents
    assert (document["language"], document["source"], document["id"]) == (code, "book", "book:1")
    assert document["meta"] == {"file": "book.pdf", "sha256": hashlib.sha256((tmp_path / "book.pdf").read_bytes()).hexdigest(),
                                "pages": pages, "part": 1, "parts": 1, "read": {"text": f"1-{pages}"}}


def test_front_and_back_matter_of_a_long_book_are_dropped_with_the_reason(tmp_path):
    book = fpdf.FPDF(unit="pt", format=(WIDTH, HEIGHT))
    book.set_font("helvetica", size=SIZE)
    rng = random.Random(9)
    for page in range(120):
        book.add_page()
        for line in range(10):
            words = " ".join(rng.sample("heart kidney liver lung brain bone skin blood nerve muscle stomach eye ear tooth".split(), 9))
            book.text(40, 60 + LEADING * line, f"{words} {f'page {page} ends.' if line == 9 else ''}")
    book.output(str(tmp_path / "long.pdf"))
    funnel = read_books([tmp_path / "long.pdf"], tmp_path / "out", book_options("en", ocr=False, part_characters=20_000, limits=LIMITS))
    kept, dropped = read(tmp_path / "out"), read(tmp_path / "out", "dropped")
    assert text_pages(120) == range(6, 115)  # 0.018 * 120 + 3 = 5.16 < p < 115
    text = "".join(document["text"] for document in kept)
    assert "page 6 " in text and "page 114 " in text and "page 5 " not in text and "page 115 " not in text
    assert [document["reason"] for document in dropped] == ["front or back matter"]
    assert "page 0 " in dropped[0]["text"] and "page 119 " in dropped[0]["text"]
    assert [document["meta"]["part"] for document in kept] == [1, 2, 3] and kept[0]["meta"]["read"] == {"text": "7-43"}
    assert abs(len(kept[0]["text"]) - len(kept[1]["text"])) < 1000
    assert funnel.details["pages: front or back matter"] == 11 and funnel.details["pages: text"] == 109


def test_the_rule_for_scans_is_the_papers():
    rng = random.Random(7)
    for _ in range(1000):
        pages = [{"characters": (characters := rng.randrange(600)), "letters": rng.randrange(characters + 1)} for _ in range(rng.randrange(1, 9))]
        characters, letters = sum(page["characters"] for page in pages), sum(page["letters"] for page in pages)
        assert is_scanned(pages) == (not characters or letters / characters < 0.5 or letters < 200 * len(pages))
    for count in (1, 99, 100, 101, 250, 1000, 4321):
        expected = [page for page in range(count) if count < 100 or 0.018 * count + 3 < page < count - 5]
        assert list(text_pages(count)) == expected


# ---- pages without text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "most"), [("en", 0.02), ("ru", 0.02), ("zh", 0.08)])
def test_a_scanned_book_is_read_with_few_wrong_letters(code, most, tmp_path):
    needs_tesseract(code)
    rng = random.Random(11)
    paragraphs = made_paragraphs(rng, code, 3)
    pages = make_book(tmp_path / "text.pdf", paragraphs, code, rng)
    scan(tmp_path / "text.pdf", tmp_path / "scan.pdf")
    read_books([tmp_path / "scan.pdf"], tmp_path / "out", book_options(code))
    (document,) = read(tmp_path / "out")
    rate = error_rate(document["text"], "".join(paragraphs))
    print(f"character error rate {rate:.4f}")
    assert rate <= most and document["meta"]["read"] == {"ocr": f"1-{pages}" if pages > 1 else "1"}


SLOW_TESSERACT = r"""#!/bin/sh
# Stands for Tesseract: a table with words made of the picture's check sum, and a line in a log for every page.
if [ "$1" = --list-langs ]; then printf 'List\neng\n'; exit 0; fi
sum=$(cksum | cut -d ' ' -f 1)
echo "$sum" >> "$TESSERACT_LOG"
sleep "${TESSERACT_SECONDS:-0}"
[ -z "$TESSERACT_FAILS" ] || exit 1
printf 'level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n'
printf '5\t1\t1\t1\t1\t1\t100\t100\t300\t40\t95.0\tpage\n5\t1\t1\t1\t1\t2\t420\t100\t300\t40\t95.0\t%s.\n' "$sum"
"""


@pytest.fixture
def slow_tesseract(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tesseract").write_text(SLOW_TESSERACT)
    (folder / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TESSERACT_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def picture_book(path: Path, pages: int) -> None:
    """Pages with nothing but a picture, each another one."""
    from PIL import Image

    book = fpdf.FPDF(unit="pt", format=(WIDTH, HEIGHT))
    for page in range(pages):
        book.add_page()
        book.image(Image.new("L", (40, 60), 20 * page), x=20, y=20, w=200, h=300)
    book.output(str(path))


def test_a_mixed_book_reads_each_page_the_way_it_needs(tmp_path, slow_tesseract):
    rng = random.Random(3)
    paragraphs = made_paragraphs(rng, "en", 40)
    pages = make_book(tmp_path / "text.pdf", paragraphs, "en", rng)
    scan(tmp_path / "text.pdf", tmp_path / "mixed.pdf", keep_text=tuple(page for page in range(pages) if page != 1), dpi=30)
    document = pdfium.PdfDocument(tmp_path / "mixed.pdf")
    document.new_page(WIDTH, HEIGHT)
    document.save(tmp_path / "book.pdf")
    funnel = read_books([tmp_path / "book.pdf"], tmp_path / "out", book_options("en", limits=LIMITS))
    (found,) = read(tmp_path / "out")
    text = f"1,3-{pages}" if pages > 3 else "1,3"
    assert found["meta"]["read"] == {"blank": str(pages + 1), "ocr": "2", "text": text}
    assert len(slow_tesseract.read_text().split()) == 1 and funnel.details["pages: ocr"] == 1
    assert found["text"].count("\n\npage ") == 1
    read_books([tmp_path / "book.pdf"], tmp_path / "without", book_options("en", ocr=False, limits=LIMITS))
    (without,) = read(tmp_path / "without")
    assert without["meta"]["read"] == {"blank": str(pages + 1), "text": text, "unread": "2"}


def command(*arguments: object, **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "data_prep.books", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2], **more)


def test_killed_at_any_moment_and_started_again_gives_the_same_bytes_and_reads_no_page_twice(tmp_path, slow_tesseract, monkeypatch):
    (tmp_path / "shelf").mkdir()
    picture_book(tmp_path / "shelf" / "scan.pdf", 8)
    make_book(tmp_path / "shelf" / "text.pdf", made_paragraphs(random.Random(1), "en", 5), "en", random.Random(1))
    arguments = (tmp_path / "shelf", "--language", "en", "--out")
    done = command(*arguments, tmp_path / "whole")
    assert done.wait(300) == 0, done.stderr.read()
    slow_tesseract.unlink()
    monkeypatch.setenv("TESSERACT_SECONDS", "0.1")
    rng = random.Random()
    kills = 0
    for _ in range(3):
        run = command(*arguments, tmp_path / "killed", start_new_session=True)
        pages = len(slow_tesseract.read_text().split()) if slow_tesseract.exists() else 0
        while run.poll() is None and (len(slow_tesseract.read_text().split()) if slow_tesseract.exists() else 0) < pages + 2:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            kills += 1
        run.communicate()
    monkeypatch.setenv("TESSERACT_SECONDS", "0")
    with open(tmp_path / "killed" / "work" / "scan.jsonl", "ab") as file:  # and a line that a power cut left half
        file.write(b'{"page": 11, "li')
    done = command(*arguments, tmp_path / "killed")
    assert done.wait(300) == 0, done.stderr.read()
    assert kills >= 2 and hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert len(slow_tesseract.read_text().split()) <= 8 + kills  # the page at work when the kill came
    again = command(*arguments, tmp_path / "killed")
    assert again.wait(300) == 0 and len(slow_tesseract.read_text().split()) <= 8 + kills
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, slow_tesseract):
    (tmp_path / "shelf").mkdir()
    for number in range(2):
        make_book(tmp_path / "shelf" / f"{number}.pdf", made_paragraphs(random.Random(number), "en", 4), "en", random.Random(number))
    picture_book(tmp_path / "shelf" / "scan.pdf", 2)
    (tmp_path / "shelf" / "bad.pdf").write_bytes(b"no PDF")
    for workers in (1, 2):
        read_books([tmp_path / "shelf"], tmp_path / str(workers), book_options("en", limits=LIMITS), workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_a_page_that_ocr_fails_on_is_counted_and_a_book_of_them_given_up(tmp_path, slow_tesseract, monkeypatch):
    monkeypatch.setenv("TESSERACT_FAILS", "1")
    picture_book(tmp_path / "few.pdf", 2)
    picture_book(tmp_path / "many.pdf", 12)
    funnel = read_books([tmp_path / "few.pdf", tmp_path / "many.pdf"], tmp_path / "out", book_options("en", limits=LIMITS))
    assert funnel.details["pages: unread"] == 2
    assert {name: entry["documents"] for name, entry in funnel.dropped.items()} == {"no text": 1, "OCR fails on many pages": 1}


def test_a_missing_program_or_language_is_one_line_that_names_the_package(tmp_path, monkeypatch, capsys, slow_tesseract):
    picture_book(tmp_path / "book.pdf", 1)
    make_book(tmp_path / "text.pdf", made_paragraphs(random.Random(1), "ru", 5), "ru", random.Random(1))
    with pytest.raises(UserError, match="tesseract has no data for 'chi_sim': install tesseract-ocr-chi-sim"):
        main([str(tmp_path / "book.pdf"), "--language", "zh", "--out", str(tmp_path / "out")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install tesseract-ocr and tesseract-ocr-rus"):
        main([str(tmp_path / "book.pdf"), "--language", "ru", "--out", str(tmp_path / "out")])
    books = [str(tmp_path / "book.pdf"), str(tmp_path / "text.pdf")]
    assert main([*books, "--language", "ru", "--out", str(tmp_path / "out"), "--no-ocr", "--licence", "CC BY 4.0"]) == 0
    assert "scanned, and OCR is off" in capsys.readouterr().out
    assert read(tmp_path / "out")[0]["meta"]["licence"] == "CC BY 4.0"


def test_a_journal_of_other_settings_begins_anew_and_a_broken_line_ends_it(tmp_path):
    journal = tmp_path / "work" / "book.jsonl"
    assert read_journal(journal, {"dpi": 300}) == {}
    with open(journal, "ab") as file:
        file.write(b'{"page": 4, "lines": []}\n{"page": 5, "lines": [["x", 0, 1, 2, 3]]}\n{"page": 6,')
    assert read_journal(journal, {"dpi": 300}) == {4: {"lines": []}, 5: {"lines": [["x", 0, 1, 2, 3]]}}
    assert journal.read_bytes().endswith(b"3]]}\n")
    assert read_journal(journal, {"dpi": 200}) == {} and journal.read_bytes() == b'{"dpi": 200}\n'


# ---- hostile files ----------------------------------------------------------------------------------------------------


def raw_pdf(*objects: bytes, root: int = 1) -> bytes:
    """A PDF of these objects, numbered from 1."""
    out, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root %d 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        len(places) + 1, table, len(places) + 1, root, len(out))


def stream(content: bytes, more: bytes = b"", packed: bool = False) -> bytes:
    return b"<</Length %d%s%s>>\nstream\n%s\nendstream" % (len(content), more, b"/Filter/FlateDecode" if packed else b"", content)


def one_page(content: bytes, box: bytes = b"0 0 400 600", resources: bytes = b"", *more: bytes) -> bytes:
    return raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
                   b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>%s>>>>" % (box, resources), content,
                   b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>", *more)


def packed_zeros(size: int, head: bytes) -> bytes:
    """A zlib stream of a head and many zeros, put together from one packed block."""
    block = 1 << 24
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    sums = zlib.adler32(head)
    low, high = sums & 0xFFFF, sums >> 16
    high = (high + size // block * block * low) % 65521
    return b"\x78\xda" + first + zeros * (size // block) + packer.flush() + (high << 16 | low).to_bytes(4, "big")


def nested_forms(depth: int, width: int, drawn: bytes = b"BT /F 9 Tf (x) Tj ET") -> bytes:
    """Each form draws the next many times over."""
    forms = [stream(b"/X Do " * width, b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>" % (7 + level))
             for level in range(depth)]
    last = stream(drawn, b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F 5 0 R>>>>")
    return one_page(stream(b"/X Do"), b"0 0 400 600", b"/XObject<</X 6 0 R>>", *forms, last)


def encrypted(owner_only: bool) -> bytes:
    book = fpdf.FPDF()
    book.set_encryption(owner_password="o" * 9, user_password="" if owner_only else "u" * 9)
    book.add_page()
    book.set_font("helvetica", size=12)
    book.multi_cell(0, 10, "The patient has pneumonia and a fever. " * 12)
    return bytes(book.output())


TEXT = stream(b"BT /F 12 Tf 40 500 Td (" + b"Heart failure is treated. " * 20 + b") Tj ET")
HOSTILE = {
    "encrypted": (encrypted(False), "encrypted"),
    "empty": (b"", "not a PDF, or damaged"),
    "garbage": (random.Random(5).randbytes(100_000), "not a PDF, or damaged"),
    "garbage_after_head": (b"%PDF-1.7\n" + random.Random(6).randbytes(100_000), "not a PDF, or damaged"),
    "zero_pages": (raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"), "no pages"),
    "page_tree_loop": (raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"), None),
    "endless_pages": (raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 2000000000>>",
                              b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"), None),
    "stream_bomb": (one_page(stream(packed_zeros(1 << 30, b"BT /F 9 Tf (x) Tj ET "), packed=True)), None),
    "forms_of_forms": (nested_forms(20, 10), None),
    "huge_page": (one_page(TEXT, b"0 0 100000000 100000000"), ""),
    "upside_down_box": (one_page(TEXT, b"400 600 0 0"), ""),
    "no_box": (one_page(TEXT, b""), ""),
    "nan_box": (one_page(TEXT, b"0 0 nan 1e999"), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_itself_within_its_limits(name, tmp_path, slow_tesseract):
    content, reason = HOSTILE[name]
    (tmp_path / "bad.pdf").write_bytes(content)
    make_book(tmp_path / "good.pdf", made_paragraphs(random.Random(2), "en", 5), "en", random.Random(2))
    before = processor_seconds()
    funnel = read_books([tmp_path / "bad.pdf", tmp_path / "good.pdf"], tmp_path / "out", book_options("en", limits=LIMITS))
    assert processor_seconds() - before < 20
    dropped = read(tmp_path / "out", "dropped")
    if reason == "":  # odd, but its text is there
        assert not dropped and "Heart failure is treated." in read(tmp_path / "out")[0]["text"]
        return
    assert [document["id"] for document in read(tmp_path / "out")] == ["good:1"]
    assert [document["id"] for document in dropped] == ["bad"] and funnel.documents_in == 2
    print(dropped[0]["reason"], dropped[0]["meta"])
    assert dropped[0]["reason"] == reason or reason is None
    assert dropped[0]["meta"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_book_locked_for_its_owner_alone_is_open_to_readers(tmp_path):
    (tmp_path / "book.pdf").write_bytes(encrypted(True))
    read_books([tmp_path / "book.pdf"], tmp_path / "out", book_options("en", ocr=False, limits=LIMITS))
    assert "pneumonia and a fever" in read(tmp_path / "out")[0]["text"]


def test_truncated_and_flipped_files_never_stop_the_run(tmp_path):
    make_book(tmp_path / "whole.pdf", made_paragraphs(random.Random(4), "en", 8), "en", random.Random(4))
    content = (tmp_path / "whole.pdf").read_bytes()
    rng = random.Random()
    (tmp_path / "shelf").mkdir()
    for number in range(8):
        part = bytearray(content[:rng.randrange(len(content))] if number % 2 else content)
        for _ in range(0 if number % 2 else 40):
            part[rng.randrange(len(part))] = rng.randrange(256)
        (tmp_path / "shelf" / f"{number}.pdf").write_bytes(part)
    funnel = read_books([tmp_path / "shelf"], tmp_path / "out", book_options("en", ocr=False, limits=LIMITS))
    assert funnel.details["books"] == 8 and funnel.documents_in == 8
    assert set(funnel.dropped) <= {"not a PDF, or damaged", "no pages", "no text", "scanned, and OCR is off",
                                   "crashed the reader, or needs too much memory", "took too long"}


def test_too_many_pages_and_time_for_the_whole_book_are_limits_too(tmp_path):
    picture_book(tmp_path / "book.pdf", 5)
    with pytest.raises(BookError, match="too many pages"), Pages(tmp_path / "book.pdf", LIMITS._replace(pages=4)):
        pass
    with Pages(tmp_path / "book.pdf", LIMITS) as pages:
        assert pages.count == 5 and pages.read(4)["drawn"] and pages.read(4)["letters"] == 0
        process = pages._process
    assert process.poll() is not None


def test_tesseract_that_hangs_costs_its_page(tmp_path, slow_tesseract, monkeypatch):
    monkeypatch.setattr("data_prep.sources.pdf_pages.PATIENCE", 1)
    for busy in (True, False):
        (tmp_path / "bin" / "tesseract").write_text("#!/bin/sh\n" + ("while :; do :; done" if busy else "exec sleep 60"))
        before = processor_seconds()
        assert tesseract(b"", "eng", 1.0, seconds=1) == ([], 0.0, "OCR took too long")
        assert processor_seconds() - before < 3


def test_a_reader_that_hangs_is_ended_by_its_own_clock(tmp_path):
    """Even in the middle of C code: a billion drawings of nothing."""
    (tmp_path / "book.pdf").write_bytes(nested_forms(9, 10, b"q Q"))
    before = processor_seconds()
    with Pages(tmp_path / "book.pdf", LIMITS._replace(page_seconds=1)) as pages, pytest.raises(BookError, match="took too long"):
        pages.read(0)
    assert processor_seconds() - before < 5


def test_a_reader_goes_when_the_one_that_asks_is_killed(tmp_path):
    picture_book(tmp_path / "book.pdf", 1)
    source = ("import sys, time; from pathlib import Path; from data_prep.sources.pdf_pages import *\n"
              "pages = Pages(Path(sys.argv[1]), Limits()); print(pages._process.pid, flush=True); time.sleep(60)")
    asker = subprocess.Popen([sys.executable, "-c", source, str(tmp_path / "book.pdf")], stdout=subprocess.PIPE, text=True,
                             cwd=Path(__file__).resolve().parents[2])
    reader = int(asker.stdout.readline())
    asker.kill()
    asker.wait()
    for _ in range(100):
        if not Path(f"/proc/{reader}").exists() and shutil.which("ps") is None:
            break
        try:
            os.kill(reader, 0)
        except ProcessLookupError:
            break
        state = Path(f"/proc/{reader}/stat")
        if state.exists() and state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the reader still runs")


# ---- names and links --------------------------------------------------------------------------------------------------


def test_odd_names_and_links_are_read_once_each(tmp_path, capsys):
    content = one_page(TEXT)
    shelf = tmp_path / "shelf"
    (shelf / "a").mkdir(parents=True)
    (shelf / "b").mkdir()
    names = ["сердце (1).PDF", "心[血]管*.pdf", "line\nbreak.pdf", os.fsdecode(b"latin\xe9.pdf"), ".pdf", "x" * 250 + ".pdf", "-rf.pdf", "a b\u202e.pdf"]
    for name in names:
        (shelf / name).write_bytes(content)
    for folder in ("a", "b"):
        (shelf / folder / "Same.pdf").write_bytes(content)
    (shelf / "a" / "again.pdf").symlink_to(shelf / "b" / "Same.pdf")
    (shelf / "gone.pdf").symlink_to(shelf / "nothing")
    (shelf / "loop.pdf").symlink_to(shelf / "loop.pdf")
    os.mkfifo(shelf / "pipe.pdf")
    (shelf / "folder.pdf").mkdir()
    (shelf / "note.txt").write_text("no book")
    funnel = read_books([shelf], tmp_path / "out", book_options("en", ocr=False, limits=LIMITS))
    assert funnel.documents_out == len(names) + 2 and funnel.details["books"] == len(names) + 5
    assert {reason: entry["documents"] for reason, entry in funnel.dropped.items()} == {"no such file": 2, "not a file": 1}
    kept = read(tmp_path / "out")
    assert "latin\ufffd.pdf" in {document["meta"]["file"] for document in kept}  # a name that is no UTF-8
    assert len({document["id"] for document in kept}) == len(kept)
    assert "1 of 14 files are others of them once more" in capsys.readouterr().err
    (shelf / "gone.pdf").unlink()
    (shelf / "gone.pdf").write_bytes(content)  # what could not be opened is tried again
    assert read_books([shelf], tmp_path / "out", book_options("en", ocr=False, limits=LIMITS)).documents_out == len(names) + 3


def test_names_are_whole_where_they_can_be():
    paths = [Path("Heart.pdf"), Path("b/Heart.PDF"), Path("b/heart.pdf"), Path("Ä" * 60 + ".pdf"), Path("plain")]
    names = book_names(paths)
    assert len({name.casefold() for name in names}) == len(names) and max(len(name.encode()) for name in names) < 100
    assert all(name.startswith(("Heart-", "heart-")) for name in names[:3])
    assert book_names([Path("a/Grey's Anatomy 41.pdf")])[0].startswith("Grey_s Anatomy 41-")


def test_a_path_without_books_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no \.pdf file in this folder"):
        find_books([tmp_path])
    with pytest.raises(UserError, match="no such file"):
        find_books([tmp_path / "none.pdf"])
    with pytest.raises(UserError, match="--dpi 20"):
        book_options("en", dpi=20)


# ---- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="no real PDFs here")
def test_a_real_article_in_two_columns_reads_in_order_with_its_words_whole(tmp_path):
    read_books([REAL / "text_en_2col_biomedical_embeddings_spanish.pdf"], tmp_path / "out", book_options("en", ocr=False))
    text = read(tmp_path / "out")[0]["text"]
    for sentence in ("Sentences were produced using the sentence tokenizer from the NLTK package.",
                     "propose to develop embeddings based on the state-of-the-art FastText model with in-domain data.",
                     "consisting of pairs of UMLS (Unified Medical Language System) concepts manually annotated for similarity and relatedness.",
                     "Also, Villegas et al. (2018) collected a census of Spanish texts"):
        assert sentence in text


@pytest.mark.skipif(not REAL.is_dir(), reason="no real PDFs here")
def test_a_real_scan_is_read_with_few_wrong_letters(tmp_path):
    needs_tesseract("fr")
    read_books([REAL / "scan_fr_francais.pdf"], tmp_path / "out", book_options("fr"))
    truth = ("Portez ce vieux whisky au juge blond qui fume sur son île intérieure, à côté de l'alcôve ovoïde, où les bûches se consument "
             "dans l'âtre, ce qui lui permet de penser à la cænogénèse de l'être dont il est question dans la cause ambiguë entendue à "
             "Moÿ, dans un capharnaüm qui, pense-t-il, diminue çà et là la qualité de son œuvre.")
    assert error_rate(read(tmp_path / "out")[0]["text"], truth) <= 0.02
