"""Turns the lines of a book's pages into paragraphs: removes running heads, rejoins broken words and lines.

In:  pages, each a list of `Line`s in reading order (book_pages.py). Out: paragraphs as strings.
"""
from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from statistics import median_high, median_low
from typing import NamedTuple


class Line(NamedTuple):
    """A line and its position in points; `base` is its lower edge, measured down from the top of the page."""

    text: str
    left: float
    right: float
    base: float
    size: float  # height of its type


# ---- characters and lines ----

REPLACED = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xF0B7: "•", 0xF0A7: "•",
            0x2010: "-", 0x00AD: None, 0xFEFF: None, 0x200B: None}  # of symbol fonts, hyphens, invisible
INVALID = ("Cc", "Co", "Cs", "Cn")  # control, private, surrogate, unassigned
LEADERS = re.compile(r" ?(?:[.·…_] ?){5,}")  # the dots of a table of contents
CJK = r"[\u2e80-\u2fff\u3001-\u30ff\u31f0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60]"
SPACE_IN_CJK = re.compile(rf"(?<={CJK}) +(?={CJK})")


def clean(text: str) -> str:
    r"""A line as a reader sees it: ligatures expanded, control and private characters removed, single spaces.

    >>> clean("e\ufb03cient\u00a0 \uf0b7 ther\u00adapy \x07. . . . . . . 12")
    'efficient • therapy … 12'
    """
    text = text.translate(REPLACED)
    text = "".join(c for c in text if c == "\t" or unicodedata.category(c) not in INVALID)
    return SPACE_IN_CJK.sub("", LEADERS.sub(" … ", " ".join(text.split()))).strip()


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


# ---- running heads ----

EDGE = 4  # lines looked at from the top and from the bottom
WINDOW = 10  # pages before and after: heads change with the chapter and differ between left and right pages
TIMES = 3  # a line on at least this many pages of the window is a running head or page number
NUMBER, ROMAN = re.compile(r"(?<!\d)\d{1,5}(?!\d)"), re.compile(r"^\W*[ivxlc]+\W*$")


def head_keys(line: Line, page: int) -> list[str]:
    """Keys of a recurring line. "12 Heart 3" on page 10 has "12 heart 3", "+2 heart 3" and "12 heart -7"."""
    text = ROMAN.sub("roman", line.text.casefold()[:200])
    return [text, *(f"{text[:number.start()]}{int(number[0]) - page:+d}{text[number.end():]}"
                    for number in itertools.islice(NUMBER.finditer(text), 4))]


def remove_running_heads(pages: list[list[Line]]) -> list[list[Line]]:
    """Remove the outermost lines that recur on nearby pages."""
    heads: list[set[Line]] = [set() for _ in pages]
    for down in (1, -1):
        edges = [sorted(lines, key=lambda line: down * line.base)[:EDGE] for lines in pages]
        where: dict[str, set[int]] = defaultdict(set)  # key -> pages
        for page, edge in enumerate(edges):
            for key in itertools.chain.from_iterable(head_keys(line, page) for line in edge):
                where[key].add(page)
        for page, edge in enumerate(edges):
            nearby = set(range(page - WINDOW, page + WINDOW + 1))
            for line in edge:
                if max(len(where[key] & nearby) for key in head_keys(line, page)) < TIMES:
                    break
                heads[page].add(line)
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
LATIN = re.compile(r"[0-9A-Za-z\u00c0-\u024f\u0370-\u04ff]")
NEAR, PAGE = 4, 30  # lines before and after that show where the text ends here, and on the page
EVEN = 3  # type sizes: where most lines end as near to each other as this, text has an edge; lists have none
# A paragraph begins at an indent of this many type sizes, after this many times the usual line spacing, and
# where type is this many times larger or smaller.
INDENT, WIDER, OTHER_SIZE = 0.8, 1.4, 1.15
NOTE_SIZE = 0.94  # times the page's usual type: a footnote, if it stands at the foot of its column


def split(lines: list[Line], begins: Callable[[list[Line], int], bool]) -> list[list[Line]]:
    """Parts of successive lines; `begins(lines, place)` says whether another part begins at a place."""
    starts = [place for place in range(len(lines)) if place == 0 or begins(lines, place)]
    return [lines[start:end] for start, end in itertools.pairwise([*starts, len(lines)])]


def leaves_column(lines: list[Line], place: int) -> bool:
    """Whether a line is higher than the line before it, or beside it."""
    above, line = lines[place - 1], lines[place]
    return (line.left >= above.right or line.right <= above.left
            or line.base <= above.base - 0.5 * line.size)


def lines_around(lines: list[Line], place: int, count: int) -> list[Line]:
    """Up to `count` lines before a place and after it, if they stand above or below the line before it."""
    above = lines[place - 1]
    return [line for line in lines[max(0, place - count):place + count]
            if line is above or (line.left < above.right and above.left < line.right)]


def begins_paragraph(lines: list[Line], place: int, spaced: bool) -> bool:
    """Whether a paragraph, heading or list item begins at a place."""
    above, line = lines[place - 1], lines[place]
    bullet = BULLET.match(line.text) is not None
    if above.text[-1] == "-" and not bullet:
        return False
    near, page = lines_around(lines, place, NEAR), lines_around(lines, place, PAGE)
    distances = [below.base - other.base for other, below in itertools.pairwise(page)]
    spacing = median_low([distance for distance in distances if distance > 0] or [0])
    across = leaves_column(lines, place)
    apart = not across and line.base - above.base > WIDER * spacing
    contents = " … " in above.text + " "  # a line of a table of contents
    if apart or contents or max(above.size, line.size) > OTHER_SIZE * min(above.size, line.size):
        return True
    left, right = min(other.left for other in near), max(other.right for other in near)
    if sum(other.right > right - EVEN * line.size for other in near) < 0.6 * len(near):
        right = max(other.right for other in page)
    letter = (line.right - line.left) / len(line.text)
    word = letter * (len(line.text.split(" ", 1)[0]) + 1) if spaced else 1.5 * line.size
    short = above.right + word + 0.4 * line.size < right  # the first word would have fitted there
    ended = SENTENCE_END.search(above.text) is not None
    if bullet:
        return short or ended or across or BULLET.match(above.text) is not None
    if spaced and line.text[0].islower() and not ended:
        return short and not across and above.right - left < 0.65 * (right - left)
    indented = line.left > max(left, above.left) + INDENT * line.size
    return short or (ended if across else indented and (ended or not spaced))


def join_lines(pages: list[list[Line]], spaced: bool) -> list[str]:
    """The paragraphs of pages. Footnotes follow the paragraph that they interrupt."""
    body: list[Line] = []
    notes: dict[int, list[Line]] = defaultdict(list)  # how many lines of the body come before -> lines
    for page in pages:
        sizes = [line.size for line in page for _ in range(len(line.text) // 10 + 1)]
        for column in split(page, leaves_column):
            end = len(column)
            while end and column[end - 1].size < NOTE_SIZE * median_high(sizes):
                end -= 1
            body += column[:end]
            notes[len(body)] += column[end:]
    begins = functools.partial(begins_paragraph, spaced=spaced)
    paragraphs, done = split(notes[0], begins), 0
    for paragraph in split(body, begins):
        paragraphs.append(paragraph)
        done += len(paragraph)
        for place in range(done - len(paragraph), done):
            paragraphs += split(notes[place + 1], begins)
    words = Counter(word for page in pages for line in page for word in WORD.findall(line.text.lower()))
    join = functools.partial(append, spaced=spaced, words=words)
    return [functools.reduce(join, [line.text for line in lines]) for lines in paragraphs]


def append(text: str, line: str, spaced: bool, words: Counter[str]) -> str:
    """A paragraph and its next line."""
    if text[-1] in "-–—/" and text[-2:-1].strip():
        drop = text[-1] == "-" and not keeps_hyphen(text, line, words)
        return (text[:-1] if drop else text) + line
    space = " " if spaced or (LATIN.match(text[-1]) and LATIN.match(line[0])) else ""
    return text + space + line
