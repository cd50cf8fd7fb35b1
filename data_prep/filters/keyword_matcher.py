"""The keyword rule for many texts at once; decides exactly as the plain rule in
data_prep/filters/keyword_rule.py.

In:  texts; the words and thresholds of one language. Out: a `Decision` for each text, or the words found in
     one.

A block of texts becomes one array of letter classes (0 between words), by one table look-up a character. All
places where a term can begin then walk down a trie of the terms side by side, one letter a step. Most places
drop out after two or three letters, so the cost hardly depends on the number of terms. What reaches the end
of a term is rare and is decided in plain Python.
"""
from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from data_prep.filters.keyword_rule import (
    LATIN,
    Decision,
    Pattern,
    decide,
    default_patterns,
    dictionary_form,
    fold_letter,
    is_long,
    official_words,
    unfold_rare,
)
from mmed.languages import Language
from mmed.utils.errors import UsageError

MODES = ("default", "official")
BLOCK = 1 << 18  # characters looked at together: their arrays stay in the cache
# Classes. BLANK is the plain space, which the official rule tells from other white space.
BETWEEN, BLANK, FIRST_LETTER = 0, 1, 2
GAP = "\n\n"  # between two texts: no term has two separators in a row, so none matches across
PLANE = 1 << 16  # characters beyond the first plane count as the last of it, which is no letter


@functools.cache
def _folded_plane() -> list[str]:
    """`fold_letter` of every character of the first plane; Chinese characters and Hangul are their own folded
    form."""
    unchanged = (*range(0x4E00, 0x9FD0), *range(0xAC00, 0xD7A4))
    folded = list(map(chr, range(PLANE)))
    for code in set(range(PLANE)).difference(unchanged):
        folded[code] = fold_letter(chr(code))
    return folded


class Trie:
    """Patterns by their letter classes; node 0 is a dead end, node 1 the root."""

    def __init__(self, patterns: Sequence[tuple[int, list[int]]], width: int):
        """patterns: (index, letter classes); width: number of classes."""
        children: list[dict[int, int]] = [{}, {}]
        self.ending: dict[int, list[int]] = {}  # node -> indices of the patterns that end there
        for index, letters in patterns:
            node = 1
            for letter in letters:
                if letter not in children[node]:
                    children[node][letter] = len(children)
                    children.append({})
                node = children[node][letter]
            self.ending.setdefault(node, []).append(index)
        self.width = width
        self.next = np.zeros((len(children), width), np.int32)
        for node, edges in enumerate(children):
            self.next[node, list(edges)] = list(edges.values())
        self.next = self.next.ravel()
        self.ends = np.zeros(len(children), bool)
        self.ends[list(self.ending)] = True

    def walk(self, classes: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(start, length, index) of every pattern that begins at one of the starts; classes: (characters,)
        uint16."""
        nodes = np.ones(len(starts), np.int32)
        length = 0
        while len(starts):
            nodes = self.next.take(nodes * self.width + classes.take(starts + length))
            length += 1
            alive = np.flatnonzero(nodes)
            starts, nodes = starts.take(alive), nodes.take(alive)
            ended = np.flatnonzero(self.ends.take(nodes))
            for start, node in zip(starts[ended].tolist(), nodes[ended].tolist()):
                for index in self.ending[node]:
                    yield start, length, index


class Matcher:
    """The rule for one language and mode, with the language's thresholds or others."""

    def __init__(self, language: Language, mode: str = "default", min_hits: int | None = None,
                 min_density: float | None = None):
        if mode not in MODES:
            raise UsageError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
        self.language, self.official = language, mode == "official"
        hits = language.official_min_hits if self.official else language.min_hits
        density = language.official_min_density if self.official else language.min_density
        self.min_hits = hits if min_hits is None else min_hits
        self.min_density = density if min_density is None else min_density
        if self.official:
            self.words = official_words(language)
            self.patterns = [Pattern(word, n, is_long(word, language)) for n, word in enumerate(self.words)]
        else:
            self.words = [dictionary_form(term) for term in language.medical_words]
            self.patterns = default_patterns(language)
        self._build()

    def _build(self) -> None:
        letters = {letter for pattern in self.patterns for letter in pattern.letters} | LATIN
        class_of = {letter: number for number, letter in enumerate(sorted(letters - {" "}), FIRST_LETTER)}
        class_of[" "] = BLANK if self.official else BETWEEN
        other = len(class_of) + FIRST_LETTER
        if self.official:
            plane = [" " if char != " " and char.isspace() else char for char in map(chr, range(PLANE))]
            class_list = [BETWEEN if char == " " else class_of.get(char, other) for char in plane]
            class_list[ord(" ")] = BLANK
        else:
            class_list = [class_of.get(char, other) for char in _folded_plane()]
            class_list[PLANE - 1] = BETWEEN
        self._table = np.array(class_list, np.uint16)
        self._latin = {class_of[letter] for letter in LATIN}
        coded = [(i, [class_of[letter] for letter in pattern.letters])
                 for i, pattern in enumerate(self.patterns)]
        self._anywhere = Trie([pair for pair in coded if self.patterns[pair[0]].anywhere], other + 1)
        self._at_word_start = Trie([pair for pair in coded if not self.patterns[pair[0]].anywhere], other + 1)
        self._room = max(len(pattern.letters) for pattern in self.patterns) + 1
        self._counted = [len(p.letters if self.official else p.letters.replace(" ", ""))
                         for p in self.patterns]

    def judge(self, texts: Sequence[str]) -> list[Decision]:
        """One decision a text."""
        decisions: list[Decision] = []
        block: list[str] = []
        size = 0
        for text in texts:
            block.append(text)
            size += len(text)
            if size >= BLOCK:
                decisions += [decision for decision, _ in self._judge_block(block)]
                block, size = [], 0
        return decisions + [decision for decision, _ in self._judge_block(block)]

    def explain(self, text: str) -> tuple[Decision, Counter[str]]:
        """The decision on one text, and how often each term was found."""
        (decision, found), = self._judge_block([text])
        return decision, Counter({self.words[word]: count for word, count in found.items()})

    def _judge_block(self, texts: list[str]) -> list[tuple[Decision, Counter[int]]]:
        texts = [text.lower() if self.official else unfold_rare(text) for text in texts]
        begins = np.cumsum([len(GAP)] + [len(text) + len(GAP) for text in texts]).tolist()[:-1]
        classes = self._classes(GAP.join(["", *texts, "\n" * self._room]))
        found: list[Counter[int]] = [Counter() for _ in texts]
        covered = [0] * len(texts)
        for start, _, index in self._select(sorted(self._candidates(classes))):
            row = bisect_right(begins, start) - 1
            found[row][self.patterns[index].word] += 1
            covered[row] += self._counted[index]
        results = []
        for row, (text, begin) in enumerate(zip(texts, begins)):
            length = len(text) if self.official else np.count_nonzero(classes[begin:begin + len(text)])
            decision = decide(len(found[row]), covered[row], int(length), self.min_hits, self.min_density)
            results.append((decision, found[row]))
        return results

    def _classes(self, text: str) -> np.ndarray:
        """The class of each character, (characters,) uint16."""
        classes = np.empty(len(text), np.uint16)
        for begin in range(0, len(text), BLOCK):
            code_points = text[begin:begin + BLOCK].encode("utf-32-le", "surrogatepass")
            self._table.take(np.frombuffer(code_points, "<u4"), out=classes[begin:begin + BLOCK], mode="clip")
        return classes

    def _candidates(self, classes: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(start, -length, index) of every pattern that stands in the text with the right letters around
        it."""
        for begin in range(1, len(classes) - self._room, BLOCK):
            end = min(begin + BLOCK, len(classes) - self._room)
            inside = classes[begin - 1:end] > BLANK
            everywhere = np.flatnonzero(inside[1:]) + begin
            word_starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + begin
            for trie, starts in ((self._anywhere, everywhere), (self._at_word_start, word_starts)):
                for start, length, index in trie.walk(classes, starts) if trie.ending else ():
                    if self._ends_right(classes, start, length, index):
                        yield start, -length, index

    def _ends_right(self, classes: np.ndarray, start: int, length: int, index: int) -> bool:
        pattern = self.patterns[index]
        if not pattern.anywhere:
            return pattern.stem or classes[start + length] <= BLANK
        if self.official or self.language.spaced:
            return True
        before, after = int(classes[start - 1]), int(classes[start + length])
        return not (pattern.letters[0] in LATIN and before in self._latin) and not (
            pattern.letters[-1] in LATIN and after in self._latin)

    def _select(self, candidates: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """Official: occurrences of one word do not overlap. Default: no two terms do; the first and longest
        counts."""
        free: dict[int, int] = {}
        for start, negative_length, index in candidates:
            key = self.patterns[index].word if self.official else 0
            if start >= free.get(key, 0):
                free[key] = start - negative_length
                yield start, -negative_length, index
