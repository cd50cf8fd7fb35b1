"""Turns the lines of a book's pages into paragraphs: removes running heads, rejoins broken words and lines.

In:  pages, each a list of `Line`s in reading order (book_pages.py). Out: paragraphs as strings.
"""
from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from statistics import median_high
from typing import NamedTuple


class Line(NamedTuple):
    """A line and its position in points; `base` is its baseline, measured down from the top of the page."""

    text: str
    left: float
    right: float
    base: float
    size: float  # height of its type


# ---- characters and lines ----

REPLACED = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xF0B7: "•", 0xF0A7: "•",
            0x2010: "-", 0xFEFF: None, 0x200B: None}  # of symbol fonts, hyphens, invisible
BROKEN = re.compile(r"(?<=\w)[\xad¬⸗][\s\xad¬⸗]*\Z")  # hyphens of OCR engines at the end of a line
INVALID = ("Cc", "Co", "Cs", "Cn")  # control, private, surrogate, unassigned
LEADERS = re.compile(r" ?(?:[.·…_] ?){5,}")  # the dots of a table of contents
CJK = r"[\u2e80-\u2fff\u3001-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60]"
SPACE_IN_CJK = re.compile(rf"(?<={CJK}) +(?={CJK})")
# TeX's old fonts set an accent as a character of its own before its letter.
ACCENTS = {"´": "\u0301", "`": "\u0300", "¨": "\u0308", "ˆ": "\u0302", "˜": "\u0303"}
ACCENTED = re.compile(r"(?<=\w)[´`¨ˆ˜][aeiouınAEIOUN]|[aeiouAEIOU][´`¨ˆ˜](?!\w)")


def clean(text: str) -> str:
    r"""A line as a reader sees it: ligatures expanded, control and private characters removed, single spaces.

    >>> clean("e\ufb03cient\u00a0 \uf0b7 ther\u00adapy \x07. . . . . . . 12"), clean("Mart´ınez Estape´ pa¬")
    ('efficient • therapy … 12', 'Martínez Estapé pa-')
    """
    text = "".join(c for c in text.translate(REPLACED)
                   if c == "\t" or unicodedata.category(c) not in INVALID)
    text = ACCENTED.sub(compose, BROKEN.sub("-", text).replace("\xad", ""))
    return SPACE_IN_CJK.sub("", LEADERS.sub(" … ", " ".join(text.split()))).strip()


def compose(found: re.Match[str]) -> str:
    letter, accent = sorted(found[0], key="".join(ACCENTS).find)  # the letter first, as it is not there
    return unicodedata.normalize("NFC", letter.replace("ı", "i") + ACCENTS[accent])


def tidy_lines(lines: list[Line]) -> list[Line]:
    """Cleans the lines, and joins pieces that follow one another on one line, such as subscripts."""
    tidy: list[Line] = []
    cleaned = [line._replace(text=clean(line.text)) for line in lines]
    for line in (line for line in cleaned if line.text):
        last = tidy[-1] if tidy else line
        gap = line.left - last.right
        larger = max(last, line, key=lambda piece: piece.size)
        beside = abs(line.base - last.base) < 0.6 * larger.size and -0.3 * last.size < gap < 1.2 * last.size
        if tidy and beside:
            space = " " if gap > 0.15 * last.size else ""
            tidy[-1] = Line(last.text + space + line.text, last.left, line.right, larger.base, larger.size)
        else:
            tidy.append(line)
    return tidy


def group(lines: Iterable[Line], begins: Callable[[list[Line], Line], bool]) -> list[list[Line]]:
    """Groups of successive lines: a line begins another group where `begins(group so far, line)`."""
    groups: list[list[Line]] = []
    for line in lines:
        if not groups or begins(groups[-1], line):
            groups.append([])
        groups[-1].append(line)
    return groups


# ---- running heads ----

EDGE_ROWS = 4  # rows looked at from the top and from the bottom
WINDOW = 10  # pages before and after: heads change with the chapter and differ between left and right pages
TIMES = 3  # a row on at least this many pages of the window is a running head or page number


def head_keys(row: list[Line], page: int) -> list[str]:
    """Keys that identify a recurring row: its text, and its text relative to a page number in it.

    Page 10: "12 Heart 3" -> "12 heart 3", "+2 heart 3", "12 heart -7".
    """
    text = " ".join(line.text for line in sorted(row, key=lambda line: line.left)).casefold()[:200]
    numbers = [number for number in re.finditer(r"\d+", text) if len(number[0]) < 6]
    keys = [text] + [f"{text[:number.start()]}{int(number[0]) - page:+d}{text[number.end():]}"
                     for number in numbers[:4]]
    return keys + (["roman number"] if re.fullmatch("[ivxlc]+", text.strip(" -–—")) else [])


def remove_running_heads(pages: list[list[Line]]) -> list[list[Line]]:
    """Remove the outermost rows that recur on nearby pages."""
    heads: list[set[Line]] = [set() for _ in pages]
    rows_by_page = [group(sorted(lines, key=lambda line: line.base),
                          lambda row, line: line.base - row[0].base >= 0.5 * line.size)
                    for lines in pages]
    for direction in (1, -1):
        edges = [rows[::direction][:EDGE_ROWS] for rows in rows_by_page]
        keys = [[head_keys(row, page) for row in rows] for page, rows in enumerate(edges)]
        where: dict[str, set[int]] = defaultdict(set)  # key -> pages
        for page, rows in enumerate(keys):
            for key in itertools.chain(*rows):
                where[key].add(page)
        for page, rows in enumerate(edges):
            nearby = set(range(page - WINDOW, page + WINDOW + 1))
            for row, row_keys in zip(rows, keys[page]):
                if max(len(where[key] & nearby) for key in row_keys) < TIMES:
                    break
                heads[page].update(row)
    return [[line for line in lines if line not in out] for lines, out in zip(pages, heads)]


# ---- hyphens ----

WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
LAST_PIECE = re.compile(r"((?:[^\W_]+-)*[^\W_]+)-$")


def keeps_hyphen(before: str, after: str, words: Counter[str]) -> bool:
    """Whether the hyphen at the end of the line `before` belongs to the word, as elsewhere in the book.

    In a word that appears nowhere else it stays in COVID-19, T-cell, BNP-guided and state-of-the-art.
    """
    left, right = LAST_PIECE.search(before[-100:]), WORD.match(after)
    if not left or not right:
        return True
    piece, rest = left[1], right[0]
    joined = words[(piece.rpartition("-")[2] + rest.partition("-")[0]).lower()]
    hyphenated = words[f"{piece}-{rest}".lower()]
    if joined != hyphenated:
        return hyphenated > joined
    short = len(piece) == 1 or piece.isupper() or piece[-1].isdigit()
    return short or not rest[0].islower() or "-" in piece + rest


# ---- paragraphs ----

SENTENCE_END = re.compile(r"[.!?:;。！？：；…][\"'”’»)\]）」』】]*$")
BULLET = re.compile(r"[•◦▪■●○‣–—−*・-]\s|[(（]?(?:\d{1,3}|[^\W\d_]|[ivx]{1,4})[.)）](?:\s|$)"
                    r"|\d{1,3}(?:\.\d{1,3})+\.?\s|[①-⑳]")
CONTENTS = re.compile(r" …(?: ?\w{1,6})?$")  # a line of a table of contents
# A paragraph begins at an indent of this many type sizes, after this many times the usual line spacing, and
# where type is this many times larger or smaller.
INDENT, WIDER, OTHER_SIZE = 0.8, 1.4, 1.15
BLOCK = 4  # lines: a block of this many has its own width if most of them end at its edge,
EVEN, RAGGED = 1.5, 4  # or within this many type sizes of it; the latter before a lower-case letter
SPREAD = 1.4  # times the usual width of a letter: a row of a table
NOTE_SIZE = 0.94  # times the page's usual type: a footnote, if it stands at the foot of its column
LATIN = re.compile(r"[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff]")


class Column(NamedTuple):
    """Lines that lie below one another, and their measures."""

    lines: list[Line]
    left: float
    right: dict[Line, float]  # where the text block of each line ends
    leading: float  # usual distance of its lines
    letter: float  # usual width of a letter


def leaves_column(column: list[Line], line: Line) -> bool:
    """Whether a line is higher than the line before, or beside the last lines."""
    recent = column[-5:]
    return (line.left >= max(other.right for other in recent)
            or line.right <= min(other.left for other in recent)
            or line.base <= recent[-1].base - 0.5 * line.size)


def column_of(lines: list[Line]) -> Column:
    lefts, rights = sorted(line.left for line in lines), sorted(line.right for line in lines)
    distances = [below.base - above.base for above, below in itertools.pairwise(lines)
                 if 0 < below.base - above.base < 3 * above.size]
    leading = median_high(distances) if distances else 0.0
    right = {}
    for block in group(lines, lambda block, line: is_apart(block[-1], line, leading)):
        # An abstract is narrower than the column; a list of short items is not a text block.
        edge = max(line.right for line in block)
        even = sum(line.right > edge - line.size * (RAGGED if below.text[0].islower() else EVEN)
                   for line, below in itertools.pairwise(block))
        if len(block) < BLOCK or even < 0.6 * (len(block) - 1):
            edge = max(edge, rights[-1 - len(rights) // 20])
        right |= dict.fromkeys(block, edge)
    return Column(lines, lefts[len(lefts) // 10], right, leading, median_high(map(letter_width, lines)))


def letter_width(line: Line) -> float:
    """Width per letter; wide letters (Chinese, Japanese) count twice."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in line.text)
    return (line.right - line.left) / (len(line.text) + wide)


def is_apart(above: Line, line: Line, leading: float = 0) -> bool:
    """Whether two lines differ in type size, or are further apart than this column's leading allows."""
    other_size = max(above.size, line.size) > OTHER_SIZE * min(above.size, line.size)
    return other_size or 0 < WIDER * leading < line.base - above.base


def is_short(line: Line, following: Line, column: Column, spaced: bool) -> bool:
    """Whether the first word of the following line would have fitted at the end of this one."""
    word = following.text.split(" ", 1)[0]
    needed = letter_width(following) * (len(word) + 1) if spaced else 1.5 * line.size
    return line.right + needed + 0.4 * line.size < column.right[line]


def begins_paragraph(above: Line, line: Line, column: Column, spaced: bool) -> bool:
    """Whether a paragraph, heading or list item begins with this line; `above` is the line before it."""
    bullet = BULLET.match(line.text) is not None
    hyphen = above.text[-1] == "-" and not bullet
    if hyphen or is_apart(above, line, column.leading) or CONTENTS.search(above.text):
        return not hyphen
    short = is_short(above, line, column, spaced)
    ended = SENTENCE_END.search(above.text) is not None
    if bullet:
        return short or ended or BULLET.match(above.text) is not None
    if spaced and line.text[0].islower() and not ended:
        far_short = above.right - column.left < 0.65 * (column.right[above] - column.left)
        return short and far_short
    table = any(len(row.text) >= 10 and letter_width(row) > SPREAD * column.letter for row in (above, line))
    indented = line.left > max(column.left, above.left) + INDENT * line.size
    return short or table or (indented and (ended or not spaced))


def continues_across(above: Line, line: Line, column: Column, spaced: bool) -> bool:
    """Whether the last paragraph of `column` continues in the first line of the next column or page."""
    ended = SENTENCE_END.search(above.text) or CONTENTS.search(above.text)
    if ended or is_apart(above, line) or BULLET.match(line.text):
        return False
    if above.text[-1] == "-" or (spaced and line.text[0].islower()):
        return True
    return len(column.lines) > 1 and not is_short(above, line, column, spaced)


def append(text: str, line: str, spaced: bool, words: Counter[str]) -> str:
    """A paragraph and its next line."""
    if text[-1] in "-–—/" and text[-2:-1].strip():
        drop = text[-1] == "-" and not keeps_hyphen(text, line, words)
        return (text[:-1] if drop else text) + line
    space = " " if spaced or (LATIN.match(text[-1]) and LATIN.match(line[0])) else ""
    return text + space + line


def join_lines(pages: list[list[Line]], spaced: bool) -> list[str]:
    """The paragraphs of the pages. Footnotes follow the paragraph that they interrupt."""
    paragraphs: list[list[Line]] = []
    notes: list[list[Line]] = []
    before: Column | None = None
    for page in pages:
        sizes = [line.size for line in page for _ in range(len(line.text) // 10 + 1)]
        for column in map(column_of, group(page, leaves_column)):
            body = list(column.lines)
            while body and body[-1].size < NOTE_SIZE * median_high(sizes):
                body.pop()
            for number, line in enumerate(body):
                if number:
                    begins = begins_paragraph(body[number - 1], line, column, spaced)
                else:
                    begins = before is None or not continues_across(before.lines[-1], line, before, spaced)
                if begins:
                    paragraphs += [*notes, []]
                    notes = []
                paragraphs[-1].append(line)
            notes += group(column.lines[len(body):],
                           lambda note, line, column=column: begins_paragraph(note[-1], line, column, spaced))
            before = column._replace(lines=body) if body else before
    words = Counter(word for page in pages for line in page for word in WORD.findall(line.text.lower()))
    join = functools.partial(append, spaced=spaced, words=words)
    return [functools.reduce(join, [line.text for line in group]) for group in paragraphs + notes]
