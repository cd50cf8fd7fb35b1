"""Train items that leak a test item: the same one, a long piece of it, or its translation.

In: items. Out: for each train item that leaks, the rule (docs/exams.md) and the test item's key.
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from data_prep.decontaminate import COMMON, benchmark_ngrams, contained_items, question_ngrams
from data_prep.filters.minhash import token_hashes
from mmed.prompts import ExamItem

PART = 0.1  # of the n-grams of a test item: one alone is often a stock phrase of case reports
STEM = 4  # letters of a word that are compared
SHARED, SIMILAR = 4, 0.3  # anchors that translations have in common, and their share of all anchors of both
MARK = re.compile(rf"\d+[.,]\d+|\d{{2,}}|[a-z]{{{STEM},}}", re.ASCII)


def item_text(item: ExamItem) -> str:
    return "\n".join([item.question, *item.options.values()])


def exact_hashes(item: ExamItem, asked: Counter[int]) -> list[int]:
    """Hashes shared only by copies of an item, with its options in any order; `asked` counts the items per
    question hash. A long question in few items is enough by itself."""
    question = token_hashes(item.question).exact
    whole = token_hashes("\n".join([item.question, *sorted(item.options.values())])).exact
    alone = asked[question] <= COMMON and question_ngrams(item.question)
    return [question, whole] if alone else [whole]


def anchors(item: ExamItem) -> set[tuple[str, str]]:
    """Numbers and the first letters of Latin words, which survive translation, each with its option."""
    found = set()
    for letter, text in item.options.items():
        letters = unicodedata.normalize("NFKD", text.casefold())
        plain = "".join(character for character in letters if not unicodedata.combining(character))
        words = (word.replace(",", ".") for word in MARK.findall(plain))
        found |= {(letter, word if word[0].isdigit() else word[:STEM]) for word in words}
    return found


def translations(train: Sequence[ExamItem], test: Sequence[ExamItem]) -> dict[int, str]:
    """{position in `train`: key of the test item that it translates}."""
    anchored = [anchors(item) for item in test]
    with_mark: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, found in enumerate(anchored):
        for mark in found:
            with_mark[mark].append(place)
    result: dict[int, str] = {}
    for place, item in enumerate(train):
        own = anchors(item)
        shared = Counter(twin for mark in own for twin in with_mark.get(mark, ())
                         if test[twin].language != item.language)
        for twin, count in sorted(shared.items(), key=lambda pair: (-pair[1], pair[0])):
            if count < SHARED:
                break
            same_key = len(item.options) == len(test[twin].options) and {*item.answer} == {*test[twin].answer}
            if same_key and count >= SIMILAR * len(own | anchored[twin]):
                result[place] = test[twin].key
                break
    return result


def find_leaks(train: Sequence[ExamItem], test: Sequence[ExamItem]) -> dict[int, dict[str, str]]:
    """{position in `train`: {"rule": the first rule that holds, "item": key of the test item}}."""
    asked = Counter(token_hashes(item.question).exact for item in [*train, *test])
    copies = {value: item.key for item in test for value in exact_hashes(item, asked)}
    ngrams, _ = benchmark_ngrams([(item.key, item_text(item)) for item in test])
    sizes = Counter(name for by_hash in ngrams.values() for names in by_hash.values() for name in names)
    leaks = {place: {"rule": "translation", "item": key} for place, key in translations(train, test).items()}
    for place, item in enumerate(train):
        contained = contained_items(item_text(item), ngrams)
        if exact := [value for value in exact_hashes(item, asked) if value in copies]:
            leaks[place] = {"rule": "exact", "item": copies[exact[0]]}
        elif parts := [name for name, count in contained.items() if count >= PART * sizes[name]]:
            leaks[place] = {"rule": "n-gram", "item": min(parts)}
    return leaks
