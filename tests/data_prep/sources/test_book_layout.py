"""Lines to paragraphs: running titles go and text stays, hyphens as the book writes them, and no letter is lost."""
import random
import string
import time
from collections import Counter

import pytest
from growth import grows_at_most

from data_prep.sources.book_layout import clean, count_words, hyphen_stays, join_fragments, join_lines
from data_prep.sources.book_margins import Line, margin_keys, roman_value, split_margins


def text_page(rng: random.Random, lines: int = 20) -> list[Line]:
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 9))) for _ in range(lines * 8)]
    return [Line(" ".join(words[8 * number:8 * number + 8]), 50, 300 - rng.randrange(20), 80 + 14 * number, 11) for number in range(lines)]


def book_of(rng: random.Random, pages: int) -> tuple[list[list[Line]], list[set[str]]]:
    """Pages under titles that change with the chapter and side, over two lines of foot with the page number."""
    book, margins = [], []
    for page in range(pages):
        chapter = page // 12
        head = f"{page + 7}   Diseases of system {chapter}" if page % 2 else f"Part {chapter + 1}   {page + 7}"
        feet = [Line("© The Publisher, all rights reserved", 50, 250, 570, 8), Line(f"- {page + 7} -", 160, 180, 585, 9)]
        lines = [Line(head, 50, 300, 40, 9), *text_page(rng), *feet]
        book.append(lines if page % 3 else [*lines[1:], lines[0]])  # in some files the title comes last
        margins.append({head, *(foot.text for foot in feet)})
    return book, margins


def test_running_titles_and_page_numbers_go_and_every_line_of_text_stays():
    rng = random.Random()
    book, margins = book_of(rng, 60)
    texts, removed = split_margins(book)
    for page, (lines, out) in enumerate(zip(texts, removed)):
        assert {line.text for line in out} == margins[page], page
        assert lines == [line for line in book[page] if line.text not in margins[page]]


def test_rows_at_the_edge_that_do_not_come_back_are_text():
    rng = random.Random()
    book = [text_page(rng) for _ in range(30)]
    book = [[line._replace(text=f"{line.text} {rng.randrange(999)}") for line in lines] for lines in book]  # chance numbers
    texts, removed = split_margins(book)
    assert texts == book and not any(removed)
    assert split_margins([book[0]])[0] == [book[0]] and split_margins([]) == ([], [])


def test_guide_words_go_with_their_page_number_and_examples_that_count_by_themselves_stay():
    rng = random.Random(1)
    words = ["".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(40)]
    guide = [[Line(f"{words[page]} {page + 101}", 50, 150, 40, 9), *text_page(rng)] for page in range(40)]
    assert all(len(out) == 1 for out in split_margins(guide)[1])
    examples = [[Line(f"Example {3 * page}", 50, 150, 66, 11), *text_page(rng)] for page in range(40)]
    assert not any(split_margins(examples)[1])


def test_roman_page_numbers_count_too():
    rng = random.Random(2)
    numerals = "i ii iii iv v vi vii viii ix x xi xii xiii xiv".split()
    assert [roman_value(numeral) for numeral in numerals] == list(range(1, 15))
    book = [[*text_page(rng), Line(numeral, 160, 170, 585, 9)] for numeral in numerals]
    assert [out[0].text for out in split_margins(book)[1]] == numerals
    assert not any(key.startswith("roman") for key, _ in margin_keys("mild", 3))


def test_a_hyphen_stays_where_the_book_writes_it():
    rng = random.Random()
    for _ in range(300):
        left, right = ("".join(rng.choices(string.ascii_lowercase, k=rng.randrange(2, 7))) for _ in range(2))
        joined, apart = rng.randrange(4), rng.randrange(4)
        words = Counter({left + right: joined, f"{left}-{right}": apart})
        expected = apart > joined  # at a tie, and where neither is known, a word cut by the setter
        assert hyphen_stays(f"some {left}-", f"{right} words", words) == expected
    assert hyphen_stays("of Covid-", "19", Counter()) and hyphen_stays("the T-", "cells", Counter())
    assert not hyphen_stays("Herz-", "insuffizienz", Counter({"herzinsuffizienz": 1, "herz": 9}))


def test_words_cut_at_line_ends_do_not_vote():
    pages = [[Line("a thera-", 0, 9, 0, 9), Line("peutic thera-peutic", 0, 9, 9, 9)]]
    assert count_words(pages) == {"a": 1, "thera-peutic": 1}


def test_paragraphs_end_where_the_next_word_had_room():
    lines = [Line("The heart is a muscle that pumps the", 50, 250, 20, 10), Line("blood.", 50, 80, 32, 10),
             Line("The liver stores sugar and makes the", 50, 249, 44, 10), Line("bile, and it is the largest gland of", 50, 250, 56, 10),
             Line("man.", 50, 75, 68, 10), Line("1. Anatomy", 50, 100, 100, 10)]
    paragraphs = join_lines([(0, lines)], spaced=True, hyphenated=True)
    assert [paragraph.text for paragraph in paragraphs] == [
        "The heart is a muscle that pumps the blood.", "The liver stores sugar and makes the bile, and it is the largest gland of man.",
        "1. Anatomy"]
    assert [paragraph.apart for paragraph in paragraphs] == [True, False, True]


def test_a_note_waits_for_the_end_of_the_paragraph_that_it_interrupts():
    first = [Line("The heart is a muscle that pumps the", 50, 250, 20, 10), Line("blood through all the vessels of the", 50, 250, 32, 10),
             Line("1 See chapter two.", 50, 120, 60, 7)]
    second = [Line("body of man.", 50, 110, 20, 10), Line("Its four chambers beat in one rhythm.", 62, 250, 32, 10),
              Line("And so they do for a lifetime of man.", 50, 250, 44, 10)]
    texts = [paragraph.text for paragraph in join_lines([(0, first), (1, second)], spaced=True, hyphenated=True)]
    assert texts[:2] == ["The heart is a muscle that pumps the blood through all the vessels of the body of man.", "1 See chapter two."]
    assert texts[2].startswith("Its four chambers")


@pytest.mark.parametrize("spaced", [True, False])
def test_no_letter_is_lost_or_moved_into_another_word_whatever_the_geometry(spaced):
    rng = random.Random()
    for _ in range(60):
        pages = []
        for page in range(rng.randrange(1, 4)):
            lines = [Line("".join(rng.choices("abcDE1.。心 血-•ß", k=rng.randrange(1, 12))).strip() or "x", left := rng.uniform(-50, 400),
                          left + rng.uniform(0, 300), rng.uniform(-20, 700), rng.choice([0, 0.1, 7, 10, 10, 10, 40])) for _ in range(rng.randrange(30))]
            pages.append((page, lines))
        fragments = [(page, join_fragments(lines)) for page, lines in pages]
        before = Counter("".join(line.text for _, lines in pages for line in lines))
        after = Counter("".join(paragraph.text for paragraph in join_lines(fragments, spaced, hyphenated=spaced)))
        for rest in (before, after):
            del rest[" "], rest["-"]
        assert before == after


def test_time_grows_with_the_page_and_not_with_its_square():
    rng = random.Random(1)

    def seconds(lines: int) -> float:
        page = [Line("word " * 5 + "end", 50 + rng.uniform(0, 5), 250, 12.0 * number, 10) for number in range(lines)]
        start = time.process_time()
        join_lines([(0, page)], spaced=True, hyphenated=True)
        split_margins([page])
        return time.process_time() - start

    assert grows_at_most(seconds, 1_000, 4_000, 10)
    start = time.process_time()
    for text in ("a-" * 50_000, " ." * 50_000, " " * 50_000 + "x", "´a" * 50_000, "1" * 100_000):
        join_lines([(0, [Line(clean(text), 0, 9, 0, 9), Line(clean(text), 0, 9, 20, 9)])], spaced=True, hyphenated=True)
        margin_keys(text, 3)
    assert time.process_time() - start < 10


def test_cleaning_again_changes_nothing():
    rng = random.Random()
    letters = "aeıxE ﬁ\u00ad\u00a0\x07\uf0b7.…_·\t心血，-\u0301\ud800\U00020000"
    for _ in range(5000):
        text = clean("".join(rng.choices(letters, k=rng.randrange(12))))
        again = clean(text)
        assert again == text, (text, again)
