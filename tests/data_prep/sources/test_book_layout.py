"""Running heads go, broken words and paragraphs are joined, nothing else is lost."""
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources.book_layout import (
    Line,
    clean,
    join_lines,
    keeps_hyphen,
    remove_running_heads,
    tidy_lines,
)

WORDS = "heart failure is treated with diuretics and rest while patients are seen monthly by a doctor".split()


def column(*texts: str, top: float = 100, left: float = 50, size: float = 10) -> list[Line]:
    """Lines of 5 points a letter, 12 points apart."""
    return [Line(text, left, left + 5 * len(text), top + 12 * number, size)
            for number, text in enumerate(texts)]


def test_running_heads_and_page_numbers_go_and_text_stays():
    pages, texts = [], []
    for number in range(1, 30):
        head = f"{number + 12} Cardiology" if number % 2 else f"Chapter {number // 10} {number + 12}"
        text = [f"Text {number * 37 % 101} of its own in this line", f"and table {number} follows",
                f"at the end of {WORDS[number % 16]}."]
        pages.append(column(head, top=20) + column(*text) + column(f"- {number} -", top=700))
        texts.append(text)
    assert [[line.text for line in page] for page in remove_running_heads(pages)] == texts


@pytest.mark.parametrize(("before", "after", "stays"), [
    ("ther-", "apy", False), ("a long-", "term plan", True), ("COVID-", "19", True), ("T-", "cell", True),
    ("hyper-", "tension", False), ("BNP-", "guided", True), ("state-of-", "the-art", True),
    ("Ärzte-", "kammer", False), ("كتاب-", "جديد", True)])
def test_a_hyphen_stays_where_the_word_has_one(before, after, stays):
    assert keeps_hyphen(before, after, Counter({"long-term": 2})) is stays


CHINESE = [Line("高血压是以体循环动脉血压持续升高为", 50, 220, 100, 10),
           Line("主要特征的慢性疾病。", 50, 150, 112, 10)]


@pytest.mark.parametrize(("pages", "spaced", "paragraphs"), [
    ([column("Heart failure is a common disease of the el-", "derly, and treatment begins at a low dose",
             "of a diuretic.", "The second paragraph begins in its own line", "and it goes on here.")], True,
     ["Heart failure is a common disease of the elderly, and treatment begins at a low dose of a diuretic.",
      "The second paragraph begins in its own line and it goes on here."]),
    # over columns and pages, with a footnote in between
    ([column("The first column ends in the mid-", "dle of a long sentence that goes")
      + column("on in the second column and then", "on the next page without any", left=300)
      + column("1 A note in small type.", top=600, left=300, size=8),
      column("break between the words of it.", "A new paragraph begins here.")], True,
     ["The first column ends in the middle of a long sentence that goes on in the second column and then on "
      "the next page without any break between the words of it. A new paragraph begins here.",
      "1 A note in small type."]),
    ([tidy_lines(column("The ther\xad", "apy of el¬", "derly men"))], True, ["The therapy of elderly men"]),
    ([column("The plan is long-", "term, and long-term plans are common here.")], True,
     ["The plan is long-term, and long-term plans are common here."]),
    ([CHINESE], False, ["高血压是以体循环动脉血压持续升高为主要特征的慢性疾病。"])])
def test_lines_become_paragraphs(pages, spaced, paragraphs):
    assert join_lines(pages, spaced) == paragraphs


def test_subscripts_join_their_line():
    pieces = [Line("in CO", 0, 30, 100, 10), Line("2", 30, 33, 102, 6), Line("a", 36, 60, 100, 10)]
    assert tidy_lines(pieces) == [Line("in CO2 a", 0, 60, 100, 10)]


@given(st.lists(st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 400), st.integers(0, 700),
                                   st.integers(6, 20)), max_size=12), max_size=4))
def test_no_letter_is_lost_whatever_the_geometry(pages):
    lines = [[Line(word, x, x + 5 * len(word), y, size) for word, x, y, size in page] for page in pages]
    text = "".join(join_lines(lines, True)).replace(" ", "")
    assert Counter(text) == Counter("".join(word for page in pages for word, *_ in page))


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    once = clean(text)
    assert clean(once) == once
