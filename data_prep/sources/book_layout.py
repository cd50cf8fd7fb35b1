"""Lines of a book's pages -> paragraphs of running text. Pure functions over places and letters; no PDF is opened here.

In:  pages, each a list of `Line`s in reading order (`data_prep.sources.pdf_pages`).
Out: `Paragraph`s, each with the page that it begins on.
Order: `clean` each line -> `join_fragments` (a raised 2 in CO2 is no line of its own) -> `split_margins` (running titles
and page numbers: data_prep/sources/book_margins.py) -> `join_lines` (hyphens at line ends, lines to paragraphs, over
columns and pages).

Two rules do most of the work. A line that leaves room for the next line's first word was ended on purpose, so a paragraph ends
there; else the setter only ran out of room. And a word cut at a line's end is put together as the same book writes it elsewhere.
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from data_prep.sources.book_margins import Line


class Paragraph(NamedTuple):
    page: int
    text: str
    apart: bool  # by space, indent or type from what stands before, and not only by the end of a short line


# ---- letters ----------------------------------------------------------------------------------------------------------

LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
# Bullets and dashes of old symbol fonts, soft hyphens, marks of direction at the head of text, spaces of other widths.
SIGNS = {0xF0B7: "•", 0xF0A7: "•", 0xF0D8: "•", 0xF02D: "-", 0x00AD: None, 0xFEFF: None, 0x200B: None,
         **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F], " ")}
LEADERS = re.compile(r" ?(?:[.·…_] ?){5,}")  # the dots of a list of contents
UNSPACED = r"[\u2e80-\u2fff\u3001-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff]"
BETWEEN_UNSPACED = re.compile(rf"(?<={UNSPACED}) +(?={UNSPACED})")


# Accents that old TeX fonts set as signs of their own, before their letter, or after it at a word's end.
ACCENTS = {"´": "\u0301", "`": "\u0300", "¨": "\u0308", "ˆ": "\u0302", "˜": "\u0303"}
ACCENT_LETTER = re.compile(r"(?:(?<![^\W\d_])[´¨ˆ˜]|(?<=[^\W\d_])[´`¨ˆ˜])([aeiouınAEIOUN])|([aeiouAEIOU])([´`¨ˆ˜])(?!\w)")


def clean(text: str) -> str:
    r"""A line's letters as a reader sees them: ligatures taken apart, control characters and private signs out, one space.

    >>> clean("e\ufb03cient\u00a0 \uf0b7 ther\u00adapy \x07. . . . . . . 12"), clean("Mart´ınez, ´etude, Estape´, voil`a")
    ('efficient • therapy … 12', 'Martínez, étude, Estapé, voilà')
    >>> clean("心 力 衰竭 BNP 测定")
    '心力衰竭 BNP 测定'
    """
    if not text.isascii():
        text = text.translate(LIGATURES).translate(SIGNS)
        text = ACCENT_LETTER.sub(lambda found: unicodedata.normalize("NFC", (found[1] or found[2]).replace("ı", "i")
                                                                     + ACCENTS[found[3] or found[0][0]]), text)
    text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Co", "Cs", "Cn") or letter == "\t")
    return BETWEEN_UNSPACED.sub("", LEADERS.sub(" … ", " ".join(text.split())).strip())


# ---- lines ------------------------------------------------------------------------------------------------------------


def join_fragments(lines: Iterable[Line]) -> list[Line]:
    """Pieces that follow one another on one line become that line: raised and lowered figures, changes of font.

    >>> join_fragments([Line("in CO", 0, 30, 100, 10), Line("2", 30, 33, 102, 6), Line("and O", 36, 60, 100, 10), Line("x", 90, 95, 100, 10)])
    [Line(text='in CO2 and O', left=0, right=60, base=100, size=10), Line(text='x', left=90, right=95, base=100, size=10)]
    """
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last and abs(line.base - last.base) < 0.6 * max(line.size, last.size) and -0.3 * last.size < line.left - last.right < 1.2 * last.size:
            space = " " if line.left - last.right > 0.15 * last.size else ""
            larger = last if last.size >= line.size else line
            joined[-1] = Line(last.text + space + line.text, last.left, line.right, larger.base, larger.size)
        else:
            joined.append(line)
    return joined


# ---- hyphens ----------------------------------------------------------------------------------------------------------

HYPHENS = "-\u2010"
WORD = re.compile(rf"[^\W_]+(?:[{HYPHENS}][^\W_]+)*")
LAST_PIECE = re.compile(rf"((?:[^\W_]+[{HYPHENS}])*[^\W_]+)[{HYPHENS}]$")
LONGEST_WORD = 100


def last_piece(text: str) -> str | None:
    """What stands before the hyphen at a line's end.

    >>> last_piece("a drug-ther-"), last_piece("of 10 -"), last_piece("therapy")
    ('drug-ther', None, None)
    """
    found = LAST_PIECE.search(text[-LONGEST_WORD:]) if text[-1:] in HYPHENS else None
    return found[1] if found else None


def count_words(pages: Iterable[Iterable[Line]]) -> Counter[str]:
    """Words of a book in lower case, whole and with their hyphens; those cut at line ends do not count.

    >>> sorted(count_words([[Line("long-term ther-", 0, 0, 0, 0), Line("apy of Pain", 0, 0, 0, 0)]]).items())
    [('long-term', 1), ('of', 1), ('pain', 1)]
    """
    words: Counter[str] = Counter()
    for lines in pages:
        cut = False
        for line in lines:
            found = WORD.findall(line.text.lower())
            goes_on = last_piece(line.text) is not None
            words.update(word.replace("\u2010", "-") for word in found[cut:len(found) - goes_on])
            cut = goes_on
    return words


def hyphen_stays(before: str, after: str, words: Counter[str]) -> bool:
    """A line that ends in a hyphen and the next: does the hyphen belong to the word, or only to the line's end?

    As the book writes the word elsewhere. If it nowhere stands in one line: the hyphen belongs to the word before a capital or
    a figure (COVID-19), after an abbreviation, a figure or a single letter (T-cell), and in a word that has one already.

    >>> words = Counter({"long-term": 3, "therapy": 2})
    >>> [hyphen_stays(*pair, words) for pair in (("a long-", "term plan"), ("COVID-", "19"), ("state-", "of-the-art"), ("(BNP)-", "guided"))]
    [True, True, True, True]
    >>> [hyphen_stays(*pair, words) for pair in (("ther-", "apy"), ("hyper-", "tension"), ("drug-ther-", "apy"))]
    [False, False, False]
    """
    left, right = last_piece(before), WORD.match(after)
    if not left or not right:
        return True
    piece, rest = (found.replace("\u2010", "-") for found in (left, right[0]))
    joined = piece.rpartition("-")[2] + rest.partition("-")[0]
    together, apart = words[joined.lower()], words[f"{piece}-{rest}".lower()]
    if together != apart:
        return apart > together
    return not rest[0].islower() or piece[-1].isdigit() or len(piece) == 1 or piece.isupper() or "-" in piece + rest


# ---- paragraphs -------------------------------------------------------------------------------------------------------

ENDS = ".!?:;。！？：；…‥．｡」』】）"  # what may stand at a paragraph's end
CLOSERS = "\"'”’»)]）」』】"
BULLET = re.compile(r"[•◦▪■●○‣⁃✓➢►–—−*・-]\s|[(（]?(?:\d{1,3}|[a-zA-Zа-яА-Я]|[ivx]{1,4})[.)）](?:\s|$)|\d{1,3}(?:\.\d{1,3})+\.?\s|[①-⑳]")
CONTENTS = re.compile(r" …(?: ?\w{1,6})?$")  # a line of a list of contents
INDENT = 0.8  # of the type's size
ROOM = 0.4  # of the type's size: how exactly a line must be full
WIDER = 1.4  # times the usual distance of lines begins a paragraph
OTHER_SIZE = 1.15  # times larger or smaller type begins a paragraph
SMALL = 0.94  # of the page's type, and standing first or last in its column: a note or the words of a figure or table
STRETCHED = 1.4  # times the usual width of a letter: a row of a table
FLOWING = 4  # lines: so many in a block show how wide it is, if most of them end near its edge,
SAME_LEFT = 6  # points
EVEN, RAGGED = 1.5, 4  # by so many times the type's size; the second if the next line begins with a small letter


class Run(NamedTuple):
    """Lines that stand under one another: a column, or a part of one."""

    page: int
    lines: list[Line]
    edges: list[float]  # for each line, how far to the right its block of text goes
    left: float
    leading: float  # usual distance of lines
    letter: float  # usual width of a letter


def letter_width(line: Line) -> float:
    """Its width a letter; letters of Chinese and Japanese count twice."""
    return (line.right - line.left) / (len(line.text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in line.text))


def runs_of(page: int, lines: list[Line]) -> Iterator[Run]:
    """Cut a page where the next line stands higher, or beside: there begins another column."""
    start, left, right = 0, lines[0].left, lines[0].right  # how far the run goes
    for number in range(1, len(lines) + 1):
        if number < len(lines):
            above, line = lines[number - 1], lines[number]
            if line.base <= above.base + 0.5 * line.size:  # no lower; under a short last line, the lines before show the column
                left, right = above.left, above.right
            if line.base > above.base - 0.5 * line.size and line.left < right and line.right > left:
                left, right = min(left, line.left), max(right, line.right)
                continue
            left, right = line.left, line.right
        part = lines[start:number]
        lefts, letters = sorted(line.left for line in part), sorted(map(letter_width, part))
        gaps = sorted(gap for one, other in pairwise(part) if 0 < (gap := other.base - one.base) < 3 * one.size)
        leading = gaps[len(gaps) // 2] if gaps else 0.0
        yield Run(page, part, edges_of(part, leading), lefts[len(lefts) // 10], leading, letters[len(letters) // 2])
        start = number


def edges_of(lines: list[Line], leading: float) -> list[float]:
    """How far to the right each line could have gone: in a block of running text as far as its longest, else as the column's.

    Chinese and Japanese have no small letters that show a wrong end of a line; there only lines with the same left edge count.
    """
    unspaced = re.search(UNSPACED, lines[0].text)
    alike: dict[int, list[float]] = defaultdict(list)
    for line in lines:
        alike[round(line.left / SAME_LEFT) if unspaced else 0].append(line.right)
    column = {key: sorted(rights)[-1 - len(rights) // 20] for key, rights in alike.items()}
    blocks: list[list[Line]] = [[lines[0]]]
    for above, line in pairwise(lines):
        if is_apart(above, line, leading):
            blocks.append([])
        blocks[-1].append(line)
    edges: list[float] = []
    for block in blocks:
        edge, left = max(line.right for line in block), min(line.left for line in block)
        full = sum(line.right > edge - line.size * (RAGGED if below.text[0].islower() else EVEN) for line, below in pairwise(block))
        if len(block) < FLOWING or full < 0.6 * (len(block) - 1):
            edge = max(edge, column[round(left / SAME_LEFT) if unspaced else 0])
        edges += [edge] * len(block)
    return edges


def is_apart(above: Line, line: Line, leading: float) -> bool:
    """By space or by type."""
    return bool(max(above.size, line.size) > OTHER_SIZE * min(above.size, line.size)
                or (leading and line.base - above.base > WIDER * leading))


def is_stretched(line: Line, run: Run) -> bool:
    return len(line.text) >= 10 and " " in line.text and letter_width(line) > STRETCHED * run.letter


def set_notes_apart(page: int, lines: list[Line]) -> list[tuple[Run, bool]]:
    """A page's columns, each in up to three: small type at its head and at its foot interrupts the text (True), and the text."""
    if not lines:
        return []
    sizes = sorted((line.size, len(line.text)) for line in lines)
    half, usual = sum(length for _, length in sizes) / 2, 0.0
    for size, length in sizes:
        half -= length
        if half <= 0:
            usual = size
            break
    parts: list[tuple[Run, bool]] = []
    for run in runs_of(page, lines):
        small = [line.size < SMALL * usual for line in run.lines]
        head = small.index(False) if False in small else 0
        foot = len(small) - small[::-1].index(False) if False in small else len(small)
        if False not in small:
            parts.append((run, True))
            continue
        for begin, end, note in ((0, head, True), (head, foot, False), (foot, len(small), True)):
            if begin < end:
                parts.append((run._replace(lines=run.lines[begin:end], edges=run.edges[begin:end]), note))
    return parts


def ends_sentence(text: str) -> bool:
    """
    >>> ends_sentence('He said "no."'), ends_sentence("of the"), ends_sentence("结束。")
    (True, False, True)
    """
    return text.rstrip(CLOSERS)[-1:] in ENDS or text[-1:] in ENDS


def has_room(line: Line, following: Line, edge: float, spaced: bool) -> bool:
    """Would the next line's first word have fitted on this one?"""
    if spaced:
        needed = letter_width(following) * (len(following.text.split(" ", 1)[0]) + 1)
    else:
        needed = 1.5 * line.size  # a character, and another where punctuation may not begin a line
    return line.right + needed + ROOM * line.size < edge


def parting(run: Run, number: int, spaced: bool) -> str:
    """Before a line of a column: "" if the text runs on, "line" if the line above was ended, "apart" if a paragraph begins."""
    above, line = run.lines[number - 1:number + 1]
    bullet = BULLET.match(line.text)
    if above.text[-1] in HYPHENS and not bullet:
        return ""
    if is_apart(above, line, run.leading):
        return "apart"
    room = has_room(above, line, run.edges[number - 1], spaced)
    if bullet and (ends_sentence(above.text) or BULLET.match(above.text) or room):
        return "line"
    goes_on = spaced and line.text[0].islower() and not ends_sentence(above.text)
    if CONTENTS.search(above.text) or (not goes_on and (is_stretched(above, run) or is_stretched(line, run))):
        return "line"
    if line.left > max(run.left, above.left) + INDENT * line.size and not goes_on and (ends_sentence(above.text) or not spaced):
        return "apart"
    if room:
        full = above.right - run.left > 0.65 * (run.edges[number - 1] - run.left)  # text beside a picture has shorter lines
        return "" if goes_on and full else "line"
    return ""


def runs_on(run: Run, following: Run, spaced: bool) -> bool:
    """Does the last paragraph of a column or page go on in the next?"""
    line, first = run.lines[-1], following.lines[0]
    if max(line.size, first.size) > OTHER_SIZE * min(line.size, first.size) or BULLET.match(first.text) or ends_sentence(line.text):
        return False
    if line.text[-1] in HYPHENS or (spaced and first.text[0].islower()):
        return first.text[0].isalnum()
    full = not has_room(line, first, max(run.edges), spaced)
    return full and len(run.lines) > 1 and first.left < following.left + INDENT * first.size


def join_lines(pages: list[tuple[int, list[Line]]], spaced: bool, hyphenated: bool) -> list[Paragraph]:
    """The paragraphs of (page, lines) in order. `spaced`: words are parted by spaces; `hyphenated`: words are cut at line ends.

    Notes and the words of figures wait until the paragraph that they interrupt has come to its end.
    """
    words = count_words(lines for _, lines in pages) if hyphenated else None
    paragraphs: list[Paragraph] = []
    text: list[str] = []  # of the paragraph at work, in pieces
    begun = (0, True)
    waiting: list[Run] = []
    last: Run | None = None

    def finish() -> None:
        if text:
            paragraphs.append(Paragraph(begun[0], "".join(text), begun[1]))
            text.clear()

    def take(run: Run, between: str, number: int) -> None:
        nonlocal begun
        line = run.lines[number]
        if between or not text:
            finish()
            text.append(line.text)
            begun = (run.page, between != "line")
            return
        before = text.pop()
        cut, glue = seam(before, line.text, spaced, words)
        text.extend([before[:-1] if cut else before, glue, line.text])

    def take_waiting() -> None:
        for run in waiting:
            finish()
            for number in range(len(run.lines)):
                take(run, parting(run, number, spaced) if number else "apart", number)
        waiting.clear()

    for page, lines in pages:
        for run, note in set_notes_apart(page, lines):
            if note:
                waiting.append(run)
                continue
            for number in range(len(run.lines)):
                between = parting(run, number, spaced) if number else "" if last and runs_on(last, run, spaced) else "apart"
                if between and waiting:
                    finish()
                    take_waiting()
                    between = "apart"
                take(run, between, number)
            last = run
    take_waiting()
    finish()
    return paragraphs


LATIN = re.compile(r"[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff]")


def seam(before: str, after: str, spaced: bool, words: Counter[str] | None) -> tuple[bool, str]:
    """(does the last character of the first line go, what comes between the lines); without `words` every hyphen stays.

    >>> seam("ther-", "apy", True, Counter()), seam("the", "end", True, Counter()), seam("10–", "20", True, Counter())
    ((True, ''), (False, ' '), (False, ''))
    >>> seam("高血压患者", "的治疗", False, None), seam("用 ACE", "inhibitors", False, None)
    ((False, ''), (False, ' '))
    """
    if before[-1] in HYPHENS + "–—/" and before[-2:-1].strip():
        return before[-1] in HYPHENS and words is not None and not hyphen_stays(before, after, words), ""
    return False, " " if spaced or (LATIN.match(before[-1]) and LATIN.match(after[0])) else ""
