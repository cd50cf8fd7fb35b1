"""What stands over and under a book's text on page after page: running titles and page numbers, told from the text and set apart.

In: pages, each a list of `Line`s. Out: `split_margins`: the text of each page, and what was taken away. Used by data_prep/books.py.
"""
from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import NamedTuple


class Line(NamedTuple):
    """One line and its place in points; `base` is what it stands on, measured down from the top of the page."""

    text: str
    left: float
    right: float
    base: float
    size: float  # height of its type


DEPTH = 4  # rows looked at from the top and from the bottom
WINDOW = 10  # pages before and after; running titles change with the chapter, and left pages have others than right ones
LONGEST_MARGIN = 200  # letters
TIMES = 3  # a row that stands in the same place on so many pages of the window is no text
NUMBER_TIMES = 2  # the same for a row that is a number alone and counts with the pages
EDGE_TIMES = 5  # the same for a row that begins or ends with the page number and whose words change
NUMBERS = re.compile(r"\d+")
ROMAN = re.compile(r"(?=[ivxlc])(?:x[cl]|l?x{0,3})(?:i[xv]|v?i{0,3})", re.IGNORECASE)


def roman_value(text: str) -> int:
    """
    >>> roman_value("xiv"), roman_value("IX")
    (14, 9)
    """
    values = [dict(i=1, v=5, x=10, l=50, c=100)[letter] for letter in text.lower()]
    return sum(-value if value < max(values[place:]) else value for place, value in enumerate(values))


def margin_keys(row: str, page: int) -> list[tuple[str, int]]:
    """Under which names a row may come back on other pages, and how often it must: as it is, or with one number that counts.

    >>> margin_keys("Page 12 of 300", page=10)
    [('page 12 of 300', 3), ('page +2 of 300', 3), ('page 12 of +290', 3), ('edge +290', 5)]
    >>> margin_keys("- 12 -", page=10), margin_keys("xiv", page=10)
    ([('- 12 -', 3), ('- +2 -', 2), ('edge +2', 5)], [('xiv', 3), ('roman +4', 2)])
    """
    text = " ".join(row.casefold().split())
    if len(text) > LONGEST_MARGIN:
        return []
    keys = [(text, TIMES)]
    numbers = list(NUMBERS.finditer(text))[:6]
    for number in (number for number in numbers if len(number[0]) < 6):
        counting = f"{text[:number.start()]}{int(number[0]) - page:+d}{text[number.end():]}"
        keys.append((counting, TIMES if any(letter.isalpha() for letter in text) else NUMBER_TIMES))
    edges = {f"edge {int(number[0]) - page:+d}" for number in numbers if len(number[0]) < 6 and
             (not text[:number.start()].strip(" -–—|·•[(") or not text[number.end():].strip(" -–—|·•])."))}
    keys += [(edge, EDGE_TIMES) for edge in sorted(edges)]
    bare = text.strip(" -–—|·•[]()")
    if ROMAN.fullmatch(bare):
        keys.append((f"roman {roman_value(bare) - page:+d}", NUMBER_TIMES))
    return keys


def rows_of(lines: list[Line]) -> list[list[int]]:
    """Which lines stand side by side, from the top of the page to its bottom.

    >>> rows_of([Line("text", 0, 9, 50, 10), Line("7", 90, 95, 21, 10), Line("Title", 0, 30, 20, 10)])
    [[2, 1], [0]]
    """
    rows: list[list[int]] = []
    for number in sorted(range(len(lines)), key=lambda number: lines[number].base):
        if rows and lines[number].base - lines[rows[-1][0]].base < 0.5 * lines[number].size:
            rows[-1].append(number)
        else:
            rows.append([number])
    return [sorted(row, key=lambda number: lines[number].left) for row in rows]


def split_margins(pages: list[list[Line]]) -> tuple[list[list[Line]], list[list[Line]]]:
    """(the text of each page, the running titles and page numbers of each page).

    From the top and from the bottom rows are taken away until one does not come back on the pages around.
    """
    rows = [rows_of(lines) for lines in pages]
    margins: list[set[int]] = [set() for _ in pages]
    for step in (1, -1):  # from the top, from the bottom
        outer = [page[::step][:DEPTH] for page in rows]
        keys = [[margin_keys(" ".join(lines[number].text for number in row), page) for row in outer[page]]
                for page, lines in enumerate(pages)]
        where: dict[str, list[int]] = defaultdict(list)
        for page, of_page in enumerate(keys):
            for key in sorted({key for of_row in of_page for key, _ in of_row}):
                where[key].append(page)
        for page, of_page in enumerate(keys):
            for row, of_row in zip(outer[page], of_page):
                if not any(_near(where[key], page) >= times for key, times in of_row):
                    break
                margins[page].update(row)
    return ([[line for number, line in enumerate(lines) if number not in out] for lines, out in zip(pages, margins)],
            [[line for number, line in enumerate(lines) if number in out] for lines, out in zip(pages, margins)])


def _near(places: list[int], page: int) -> int:
    return bisect_right(places, page + WINDOW) - bisect_left(places, page - WINDOW)
