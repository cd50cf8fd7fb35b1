"""Applies the keyword rule to many texts at once, with exactly the same decisions as keyword_rule.py.

In:  texts; the words and thresholds of one language. Out: a `Decision` for each text.

All texts become one array of letter classes (0 between words). All places where a term can begin then walk
down a trie of the terms side by side, one letter a step; what reaches the end of a term is decided in Python.
"""
from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.filters import keyword_rule
from data_prep.filters.keyword_rule import Decision, Pattern, decide, fits
from mmed.languages import Language

BLOCK = 1 << 18  # characters processed together, so that their arrays stay in the cache
# Classes. BLANK is the plain space, which the official rule tells from other white space.
BETWEEN, BLANK = 0, 1
GAP = "\n\n"  # between two texts: no term has two separators in a row, so none matches across
PLANE = 1 << 16  # characters beyond the first plane count as its last one, which is not a letter


@functools.cache
def _plane(official: bool) -> list[str]:
    """Every character of the first plane as the rule sees it, in the official one white space as "\\n"."""
    plane = list(map(chr, range(PLANE)))
    if official:
        return ["\n" if character != " " and character.isspace() else character for character in plane]
    return list(map(keyword_rule.fold_character, plane))


class Matcher:
    """The rule for one language and mode ("default" or "official")."""

    def __init__(self, language: Language, mode: str = "default"):
        self.language, self.official = language, mode == "official"
        if self.official:
            self.min_hits, self.min_density = language.official_min_hits, language.official_min_density
            self.words = keyword_rule.official_words(language)
            self.patterns = tuple(Pattern(word, number, keyword_rule.is_long(word, language))
                                  for number, word in enumerate(self.words))
        else:
            self.min_hits, self.min_density = language.min_hits, language.min_density
            self.words = list(map(keyword_rule.dictionary_form, language.medical_words))
            self.patterns = keyword_rule.default_patterns(language)
        letters = keyword_rule.LATIN.union(*(pattern.letters for pattern in self.patterns)) - {" "}
        self._letters = [" ", " ", *sorted(letters), "\n"]  # by class; the last one is every other letter
        class_of = {letter: number for number, letter in enumerate(self._letters[:-1])}
        class_of |= {" ": BLANK if self.official else BETWEEN, "\n": BETWEEN}
        other = len(self._letters) - 1
        self._table = np.array([class_of.get(char, other) for char in _plane(self.official)], np.uint16)
        self._build_trie(class_of)

    def _build_trie(self, class_of: dict[str, int]) -> None:
        """_next[node * number of classes + class] is the next node; 0 is a dead end, 1 the root."""
        edges: dict[tuple[int, int], int] = {}
        self._ending: dict[int, list[Pattern]] = {}
        for pattern in self.patterns:
            node = 1
            for letter in pattern.letters:
                node = edges.setdefault((node, class_of[letter]), len(edges) + 2)
            self._ending.setdefault(node, []).append(pattern)
        table = np.zeros((len(edges) + 2, len(self._letters)), np.int32)
        for edge, node in edges.items():
            table[edge] = node
        self._next = table.ravel()
        self._ends = np.isin(np.arange(len(table)), list(self._ending))
        self._longest = max((len(pattern.letters) for pattern in self.patterns), default=0)

    def judge(self, texts: Sequence[str]) -> list[Decision]:
        return [decision for decision, _ in self._judge(texts)]

    def explain(self, text: str) -> tuple[Decision, Counter[str]]:
        """Return the decision on one text, and how often each term occurs."""
        (decision, found), = self._judge([text])
        return decision, Counter({self.words[word]: count for word, count in found.items()})

    def _judge(self, texts: Sequence[str]) -> Iterator[tuple[Decision, Counter[int]]]:
        texts = [text.lower() if self.official else keyword_rule.unfold_rare(text) for text in texts]
        begins = np.cumsum([len(GAP)] + [len(text) + len(GAP) for text in texts]).tolist()[:-1]
        classes = self._classes(GAP.join(["", *texts, "\n" * (self._longest + 1)]))
        found: list[Counter[int]] = [Counter() for _ in texts]
        covered = [0] * len(texts)
        # Terms never overlap (the first and longest counts); in the official rule, places of one word don't.
        free: dict[int, int] = {}
        for start, negative_length, pattern in sorted(self._candidates(classes)):
            key = pattern.word if self.official else 0
            if start >= free.get(key, 0):
                free[key] = start - negative_length
                row = bisect_right(begins, start) - 1
                found[row][pattern.word] += 1
                covered[row] += len(pattern.letters if self.official else pattern.letters.replace(" ", ""))
        for row, (text, begin) in enumerate(zip(texts, begins)):
            length = len(text) if self.official else int(np.count_nonzero(classes[begin:begin + len(text)]))
            yield decide(len(found[row]), covered[row], length, self.min_hits, self.min_density), found[row]

    def _classes(self, text: str) -> np.ndarray:
        """The class of each character, (characters,) uint16."""
        classes = np.empty(len(text), np.uint16)
        for begin in range(0, len(text), BLOCK):
            code_points = text[begin:begin + BLOCK].encode("utf-32-le", "surrogatepass")
            self._table.take(np.frombuffer(code_points, "<u4"), out=classes[begin:begin + BLOCK], mode="clip")
        return classes

    def _candidates(self, classes: np.ndarray) -> Iterator[tuple[int, int, Pattern]]:
        """(start, -length, pattern) of every pattern in the text with the right letters around it."""
        anywhere = any(pattern.anywhere for pattern in self.patterns)
        spaced = self.language.spaced or self.official
        for begin in range(1, len(classes) - self._longest, BLOCK):
            end = min(begin + BLOCK, len(classes) - self._longest)
            inside = classes[begin - 1:end] > BLANK
            starts = np.flatnonzero(inside[1:] if anywhere else inside[1:] & ~inside[:-1]) + begin
            nodes = np.ones(len(starts), np.int32)
            length = 0
            while len(starts):
                nodes = self._next.take(nodes * len(self._letters) + classes.take(starts + length))
                length += 1
                alive = np.flatnonzero(nodes)
                starts, nodes = starts.take(alive), nodes.take(alive)
                ended = np.flatnonzero(self._ends.take(nodes))
                places = starts.take(ended)
                columns = (places, nodes.take(ended), classes.take(places - 1), classes.take(places + length))
                for start, node, before, after in zip(*(column.tolist() for column in columns)):
                    for pattern in self._ending[node]:
                        if fits(pattern, self._letters[before], self._letters[after], spaced):
                            yield start, -length, pattern
