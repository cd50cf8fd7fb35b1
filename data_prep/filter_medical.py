"""Keep the medical documents of a corpus by their words: the filter behind 19 of MMedC's 25.5 billion tokens.

In:  documents (`data_prep.documents`), the words and thresholds of one language (`mmed/languages/<code>.py`).
Out: kept/ with `meta.medical` = {hits, density}, dropped/ with the reason, funnel.json.
Rule (the paper's, section "filtering"; METHOD.md 1.3):  MKC  = number of different medical words in the document
                                                         DENS = characters that lie in medical words / characters
     kept if and only if  MKC >= min_hits  and  DENS >= min_density.

    python -m data_prep.filter_medical shard*.parquet --out medical_en --language en --workers 8
    python -m data_prep.filter_medical page.txt --language en --explain        # the words found and both numbers

MMedLM: `--mode official` is the published rule: lower case; words of more than 10 characters, or of more than 5 with a space,
anywhere in the text; the others only where they equal a piece between white space ("cancer," is no hit); nested words count
twice. In Chinese and Japanese every word anywhere. The unit is the document.
DIFFERS: the official branch for Chinese and Japanese cannot run (it loops over a pair of lists, splits at white space and
does not lower the case of the text while the words are lower-cased); we give it its evident meaning.
DIFFERS: the default mode matches whole words at letter borders and stems (see `mmed.languages`), folds case, full width,
Latin and Greek accents, ё and the spellings of Arabic letters, skips soft hyphens and other invisible characters, takes the longest of nested words only,
wants Latin terms in Chinese and Japanese to stand alone ("rna" is not in "journal"), and DENS counts letters and digits, so
that white space and tables of dots do not thin a text. The official rule loses short words before punctuation and
inflected ones, and counts nested words twice.
DIFFERS: the official code takes only parquet files over 1 GiB, holds all kept texts of one in memory, and has its language
in three places of the source; here any corpus file, streamed, `--language`.

How one pass can do for any number of words: data_prep/filters/keyword_matcher.py.
"""
from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.documents import LOWERING_BORDER, PIECE_CHARACTERS, Document, find_inputs, read_documents, safe_pieces
from data_prep.filters.keyword_matcher import RARE, Table, fold_character, folded_plane, is_word_character, unfold_rare
from data_prep.pipeline.shards import ShardWriter, add_shard_arguments, print_funnel, process_shards, shard_options
from mmed.languages import Language, get_language
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, printable

MODES = ("default", "official")
BLOCK = 1 << 18  # characters looked at together: what numpy makes of them stays in the cache
SPACE, HARD = 1, 2  # classes: a plain space (official rule only); a character that one table look-up cannot treat
FIRST_LETTER = 3
WORD, LETTERS, COUNTED = range(3)  # FACTS of a pattern: its term, its length, what of it DENS counts (not its spaces)


class Decision(NamedTuple):
    medical: bool
    hits: int  # MKC
    density: float  # DENS


# ---- words as the rule sees them --------------------------------------------------------------------------------------


class Pattern(NamedTuple):
    """One spelling to look for. `letters` has already been folded or lower-cased."""

    letters: str
    word: int  # its term's place in the list
    anywhere: bool = False  # else it begins where a word begins
    stem: bool = False  # else it ends where a word ends (if not anywhere)


def default_patterns(language: Language) -> list[Pattern]:
    """The spellings of each term, also behind each of the language's prefixes; a vowel ligature is looked for as two letters, too."""
    patterns: dict[Pattern, None] = {}  # a prefix and a term may make the letters of another
    for number, term in enumerate(language.medical_words):
        for spelling in term.split("/"):
            anywhere = not language.spaced or spelling.startswith("|")
            stem, bar, _ = spelling.removeprefix("|").partition("|")
            for letters in (stem, stem.replace("œ", "oe").replace("æ", "ae")):
                for prefix in ("", *language.prefixes):
                    folded = "".join(map(fold_character, unfold_rare(prefix + letters)))
                    patterns[Pattern(folded, number, anywhere, stem=bool(bar))] = None
    return list(patterns)


def dictionary_form(term: str) -> str:
    """The first spelling, without its bars.

    >>> dictionary_form("tumor|/tumour|"), dictionary_form("infectio|n"), dictionary_form("|krebs|")
    ('tumor', 'infection', 'krebs')
    """
    return term.partition("/")[0].replace("|", "")


def official_words(language: Language) -> list[str]:
    """The dictionary forms, lower-cased, none twice: the list as the published rule would have it."""
    return list(dict.fromkeys(dictionary_form(term).lower() for term in language.medical_words))


def official_patterns(language: Language) -> list[Pattern]:
    """MMedLM: long words anywhere, short ones between white space; in Chinese and Japanese every word anywhere."""
    patterns = []
    for number, word in enumerate(official_words(language)):
        anywhere = not language.spaced or len(word) > 10 or (len(word) > 5 and " " in word)
        if anywhere or " " not in word:  # a short term with a space never equals a piece between spaces
            patterns.append(Pattern(word, number, anywhere))
    return patterns


class Matcher:
    """The rule for one language and mode. `judge(texts)` gives a Decision for each; `explain(text)` shows why."""

    def __init__(self, language: Language, mode: str = "default", min_hits: int | None = None, min_density: float | None = None):
        if mode not in MODES:
            raise UsageError(f"unknown mode {mode!r}; known are {', '.join(MODES)}")
        self.language, self.official = language, mode == "official"
        hits = language.official_min_hits if self.official else language.min_hits
        density = language.official_min_density if self.official else language.min_density
        self.min_hits = hits if min_hits is None else min_hits
        self.min_density = density if min_density is None else min_density
        patterns = official_patterns(language) if self.official else default_patterns(language)
        self.words = official_words(language) if self.official else [dictionary_form(term) for term in language.medical_words]
        self._classes = self._class_table({letter for pattern in patterns for letter in pattern.letters},
                                          {pattern.letters[0] for pattern in patterns})
        self._build(patterns)

    def _class_table(self, letters: set[str], first: set[str]) -> Any:
        """One class for each UTF-16 unit: 0 between words, or the letter's own, or one for all other letters.

        Letters that begin a word come first, so that one comparison finds them.
        """
        for letter in letters:
            if letter > "\uffff":
                raise UserError(f"{self.language.code}: medical words with {letter!r} (outside the first Unicode plane) are not supported")
        if self.official:
            letters -= {" "}
        else:
            letters = {letter for letter in letters if is_word_character(letter)} | set("abcdefghijklmnopqrstuvwxyz0123456789")
        self._class_of = {letter: number for number, letter in
                          enumerate(sorted(letters & first) + sorted(letters - first), FIRST_LETTER)}
        self._beginners = len(letters & first)
        small = self.language.spaced and len(letters) < 0xff - FIRST_LETTER
        kind = np.uint8 if small else np.uint16
        other = np.iinfo(kind).max
        if self.official:
            lowered = (chr(unit).lower() for unit in range(0x10000))
            classes = [0 if letter.isspace() else self._class_of.get(letter, other) for letter in lowered]
            classes[ord(" ")] = self._class_of[" "] = SPACE
            classes[ord("Σ")] = classes[ord("İ")] = HARD  # lower case that looks at the neighbour, or is two characters
        else:
            folded, inside = folded_plane()
            classes = [self._class_of.get(letter, other) if word else 0 for letter, word in zip(folded, inside)]
            for unit in range(0x10000):
                if RARE.match(chr(unit)):
                    classes[unit] = HARD
        self._plain = np.array([other if number == HARD else number for number in classes], kind)  # for texts made plain
        latin = [self._class_of[letter] for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if letter in self._class_of]
        self._latin = np.zeros(other + 1, bool)
        self._latin[latin] = True
        return np.array(classes, kind)

    def _build(self, patterns: list[Pattern]) -> None:
        kind = self._classes.dtype
        size = kind.itemsize

        def as_bytes(letters: str) -> bytes:
            return np.array([self._class_of.get(letter, 0) for letter in letters], kind).tobytes()

        starting, floating = [], []
        floats = [pattern for pattern in patterns if pattern.anywhere]
        key_letters = 4 // size
        shortest = min((len(pattern.letters) for pattern in floats), default=0)
        self._stride = max(1, shortest - key_letters + 1)
        for pattern in patterns:
            body, letters = as_bytes(pattern.letters), pattern.letters
            counted = len(letters) if self.official else sum(map(is_word_character, letters))
            facts = (pattern.word, len(letters), counted)
            ends = [0, SPACE] if self.official else [0]
            closings = [b""] if pattern.anywhere or pattern.stem else [np.array([end], kind).tobytes() for end in ends]
            if len(body + closings[0]) < 4:
                raise UserError(f"mmed/languages/{self.language.code}.py: the medical word {pattern.letters!r} is too short to be safe")
            if pattern.anywhere:  # a key at each offset: one of them lies on a multiple of the stride
                for offset in range(self._stride):
                    floating.append((body[offset * size:offset * size + 4], body, offset, facts))
            else:
                for closing in closings:
                    starting.append(((body + closing)[:4], body + closing, 0, facts))
        self._starting = Table(starting, size) if starting else None
        self._floating = Table(floating, size) if floating else None
        longest = max(len(pattern.letters) for pattern in patterns)
        self._pad = longest + 16
        # words that can overlap themselves ("анана" in "ананана"): str.count takes them one after the other
        count = max(pattern.word for pattern in patterns) + 1
        self._overlaps_itself = np.zeros(count, bool)
        self._latin_edge = np.zeros((2, count), bool)
        for pattern in patterns:
            letters = pattern.letters
            self._overlaps_itself[pattern.word] |= any(letters.startswith(letters[n:]) for n in range(1, len(letters)))
            if pattern.anywhere and not self.official:
                self._latin_edge[0, pattern.word] = letters[0].isascii() and letters[0].isalnum()
                self._latin_edge[1, pattern.word] = letters[-1].isascii() and letters[-1].isalnum()

    # -- a block of texts

    def judge(self, texts: list[str]) -> list[Decision]:
        """One decision a text. Cost does not depend on the number of medical words."""
        decisions: list[Decision] = []
        block: list[str] = []
        size = 0
        for text in texts:
            if len(text) > PIECE_CHARACTERS:
                decisions += self._judge_block(block) if block else []
                decisions.append(self._judge_long(text)[0])
                block, size = [], 0
                continue
            block.append(text)
            size += len(text)
            if size >= BLOCK:
                decisions += self._judge_block(block)
                block, size = [], 0
        return decisions + (self._judge_block(block) if block else [])

    def _judge_block(self, texts: list[str]) -> list[Decision]:
        offsets, lengths, starts, facts = self._matches(texts)
        documents = np.searchsorted(offsets, starts, side="right") - 1
        words, counted = facts[:, WORD], facts[:, COUNTED]
        pairs = np.unique(documents * len(self.words) + words)
        hits = np.bincount(pairs // len(self.words), minlength=len(texts)).tolist()
        inside = np.bincount(documents, weights=counted, minlength=len(texts)).tolist()
        return [self._decide(*numbers) for numbers in zip(hits, inside, lengths)]

    def _decide(self, hits: int, covered: float, length: int) -> Decision:
        density = covered / length if length else 0.0
        return Decision(hits >= self.min_hits and density >= self.min_density, hits, density)

    def _judge_long(self, text: str) -> tuple[Decision, Counter[int]]:
        """(decision, how often each word was found), as `_judge_block`, with memory for a piece of the text.

        A window slides over the classes. It begins and ends with `pad` of them, more than any word has, in which no match
        begins that counts: those of the beginning were counted before, those of the end will be.
        """
        pad = self._pad
        found: Counter[int] = Counter()  # in the order of the text
        covered = length = base = 0  # base: place in the text of the window's beginning
        free: Any = {} if self.official else 0
        edge = np.zeros(pad, self._classes.dtype)
        window = edge
        for classes, size in itertools.chain(self._class_pieces(text), [(np.zeros(2 * pad, edge.dtype), 0)]):
            length += size
            window = np.concatenate([window, classes, edge])
            end = max(pad, len(window) - 2 * pad)
            starts, facts = self._scan(window)
            inside = (starts >= pad) & (starts < end)
            starts, facts = starts[inside], facts[inside]
            if not self.official:
                alone = self._latin_alone(window, starts, facts)
                starts, facts = starts[alone], facts[alone]
            keep, free = (self._without_own_overlap if self.official else self._longest_only)(starts + base, facts, free)
            found.update(facts[keep, WORD].tolist())
            covered += int(facts[keep, COUNTED].sum())
            base += end - pad
            window = window[end - pad:-pad]
        return self._decide(len(found), covered, length), found

    def _matches(self, texts: list[str]) -> tuple[Any, ...]:
        """(where each text begins, its length as DENS counts it, where each match begins, its FACTS)."""
        offsets, classes = self._encode(texts, self._classes)
        hard = classes == HARD
        if hard.any():
            texts = list(texts)
            for number in np.unique(np.searchsorted(offsets, np.flatnonzero(hard), side="right") - 1):
                texts[number] = texts[number].lower() if self.official else unfold_rare(texts[number])
            offsets, classes = self._encode(texts, self._plain)
        if self.official:
            lengths = [len(text) for text in texts]
        else:
            inside = (classes != 0).view(np.uint8)
            lengths = np.add.reduceat(inside, offsets, dtype=np.int64).tolist()
        starts, facts = self._scan(classes)
        if self.official:
            keep, _ = self._without_own_overlap(starts, facts, {})
        else:
            alone = self._latin_alone(classes, starts, facts)
            starts, facts = starts[alone], facts[alone]
            keep, _ = self._longest_only(starts, facts, 0)
        return offsets, lengths, starts[keep], facts[keep]

    def _encode(self, texts: list[str], table: Any) -> tuple[Any, Any]:
        """(where each text begins, classes): texts with two line ends between them, so that nothing matches across, and
        room at both ends for the longest word."""
        coded = [text.encode("utf-16-le", "surrogatepass") for text in texts]
        gap = "\n\n".encode("utf-16-le")
        edge = gap * (self._pad // 2)
        sizes = np.array([len(code) for code in coded], np.int64) // 2
        offsets = (len(edge) + len(gap)) // 2 + np.concatenate(([0], np.cumsum(sizes[:-1] + 2)))
        units = np.frombuffer(gap.join([edge, *coded, edge]), "<u2")
        del coded
        classes = np.empty(len(units), table.dtype)
        for begin in range(0, len(units), BLOCK):
            classes[begin:begin + BLOCK] = table.take(units[begin:begin + BLOCK])
        return offsets, classes

    def _class_pieces(self, text: str) -> Iterator[tuple[Any, int]]:
        """(classes, length as DENS counts it) of the pieces of a text. Only where a rare character stands does the cut matter."""
        pieces = (text[start:start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))
        table = self._classes
        if any((self._class_array(piece, table) == HARD).any() for piece in pieces):
            pieces = (piece.lower() for piece in safe_pieces(text, LOWERING_BORDER)) if self.official else map(unfold_rare, safe_pieces(text))
            table = self._plain
        else:
            pieces = (text[start:start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))
        for piece in pieces:
            classes = self._class_array(piece, table)
            yield classes, len(piece) if self.official else int(np.count_nonzero(classes))

    def _class_array(self, text: str, table: Any) -> Any:
        return table.take(np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2"))

    def _scan(self, classes: Any) -> tuple[Any, Any]:
        """(beginnings, FACTS) of every pattern that stands somewhere, ordered by place, the longest first."""
        size = classes.itemsize
        room = len(classes) - 8 // size + 1
        fours = np.lib.stride_tricks.as_strided(classes[:4 // size].view("<u4"), (room,), (size,))
        eights = np.lib.stride_tricks.as_strided(classes[:8 // size].view("<u8"), (room,), (size,))
        found: list[tuple[Any, Any]] = []
        gap = SPACE if self.official else 0
        for begin in range(0, room, BLOCK):
            end = min(begin + BLOCK, room)
            if self._starting:
                inside = classes[begin:end] > gap
                places = np.flatnonzero(inside[1:] > inside[:-1]) + (begin + 1)
                if begin and classes[begin] > gap and classes[begin - 1] <= gap:
                    places = np.concatenate(([begin], places))
                keys = fours[begin:end].take(places - begin)
                near = self._starting.near(keys)
                keys, places = keys[near], places[near]
                found += [(starts, self._starting.facts[entries])
                          for starts, entries in self._starting.find(keys, places, eights)]
            if self._floating:
                if self._stride > 1:
                    first = -(-begin // self._stride) * self._stride
                    keys = fours[first:end:self._stride].copy()
                    near = self._floating.near(keys)
                    keys, places = keys[near], first + near * self._stride
                else:  # every place that holds a word's first letter; classes below FIRST_LETTER wrap round to large numbers
                    places = np.flatnonzero(classes[begin:end] - classes.dtype.type(FIRST_LETTER) < self._beginners) + begin
                    keys = fours[places]
                    near = self._floating.near(keys)
                    keys, places = keys[near], places[near]
                found += [(starts, self._floating.facts[entries])
                          for starts, entries in self._floating.find(keys, places, eights)]
        if not found:
            return np.zeros(0, np.int64), np.zeros((0, 3), np.int32)
        starts, facts = (np.concatenate(column) for column in zip(*found))
        order = np.lexsort((facts[:, WORD], -facts[:, LETTERS], starts))
        starts, facts = starts[order], facts[order]
        # a pattern that lies on the stride at two of its offsets is found twice
        fresh = np.ones(len(starts), bool)
        fresh[1:] = (starts[1:] != starts[:-1]) | (facts[1:] != facts[:-1]).any(axis=1)
        return starts[fresh], facts[fresh]

    # -- what the bytes alone do not decide

    def _without_own_overlap(self, starts: Any, facts: Any, free: dict[int, int]) -> tuple[Any, dict[int, int]]:
        """str.count: occurrences of one word do not overlap; those of different words may. `free`: where each word may begin."""
        keep = np.ones(len(starts), bool)
        for place in np.flatnonzero(self._overlaps_itself[facts[:, WORD]]).tolist():
            word, start = int(facts[place, WORD]), int(starts[place])
            if start < free.get(word, 0):
                keep[place] = False
            else:
                free[word] = start + int(facts[place, LETTERS])
        return keep, free

    def _latin_alone(self, classes: Any, starts: Any, facts: Any) -> Any:
        """In languages without spaces a Latin term must not be part of a longer Latin run."""
        if self.language.spaced or not self._latin_edge.any():
            return slice(None)
        words = facts[:, WORD]
        bad = self._latin_edge[0][words] & self._latin[classes[starts - 1]]
        bad |= self._latin_edge[1][words] & self._latin[classes[starts + facts[:, LETTERS]]]
        return ~bad

    def _longest_only(self, starts: Any, facts: Any, free: int) -> tuple[Any, int]:
        """From left to right, the longest where several begin, and nothing inside what is taken. `free`: the first place free."""
        ends = starts + facts[:, LETTERS]
        keep = np.ones(len(starts), bool)
        keep[1:] = starts[1:] >= ends[:-1]
        keep[:1] = starts[:1] >= free
        if keep.all():
            return keep, int(ends[-1]) if len(ends) else free
        starts_list, ends_list = starts.tolist(), ends.tolist()
        taken = []
        for place, start in enumerate(starts_list):
            if start >= free:
                taken.append(place)
                free = ends_list[place]
        keep[:] = False
        keep[taken] = True
        return keep, free

    def explain(self, text: str) -> tuple[Decision, Counter[str]]:
        """The decision on one text and how often each term was found."""
        decision, found = self._judge_long(text)
        return decision, Counter({self.words[number]: count for number, count in found.items()})


# ---- the step over shards ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _matcher(language: str, mode: str, min_hits: int | None, min_density: float | None) -> Matcher:
    return Matcher(get_language(language), mode, min_hits, min_density)


def batches(documents: Iterable[Document], characters: int = BLOCK) -> Iterator[list[Document]]:
    """Documents in groups of about so many characters."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def filter_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """Keep or drop the documents of one shard; options: language, mode, min_hits, min_density, words (for the fingerprint)."""
    matcher = _matcher(options["language"], options.get("mode", "default"), options.get("min_hits"), options.get("min_density"))
    code = matcher.language.code
    for group in batches(documents):
        for document, decision in zip(group, matcher.judge([document.text for document in group])):
            numbers = {"hits": decision.hits, "density": round(decision.density, 5)}
            if document.language not in ("", code):
                shard.drop(document, f"language is not {code}")
            elif decision.medical:
                document.meta["medical"] = numbers
                shard.keep(document)
            elif decision.hits < matcher.min_hits:
                shard.drop(document, "too few different medical words", **numbers)
            else:
                shard.drop(document, "medical words too thin", **numbers)


def filter_options(language: Language, mode: str, min_hits: int | None = None, min_density: float | None = None) -> dict[str, Any]:
    """All that the decisions depend on, so that a change of words or thresholds redoes finished shards."""
    official = mode == "official"
    default_hits = language.official_min_hits if official else language.min_hits
    default_density = language.official_min_density if official else language.min_density
    prefixes = {"prefixes": list(language.prefixes)} if language.prefixes else {}
    return {"language": language.code, "mode": mode, "words": list(language.medical_words), **prefixes,
            "min_hits": default_hits if min_hits is None else min_hits,
            "min_density": default_density if min_density is None else min_density}


def print_explanations(inputs: list[Path], matcher: Matcher) -> None:
    """For each document both numbers and the words they come from."""
    apart = "\u2068{}\u2069" if matcher.language.right_to_left else "{}"  # isolates: the numbers stay behind their own words
    for path in inputs:
        for document in read_documents(path):
            decision, found = matcher.explain(document.text)
            print(f"{printable(document.id)}: {'kept' if decision.medical else 'dropped'}  MKC {decision.hits} (needs {matcher.min_hits})  "
                  f"DENS {decision.density:.4f} (needs {matcher.min_density})")
            print("  " + (", ".join(f"{apart.format(word)} {count}" for word, count in found.most_common()) or "no medical word"))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.filter_medical", description="Keep the medical documents of a corpus.")
    add_shard_arguments(parser, out_required=False)
    parser.add_argument("--language", required=True, help="code or name; documents that name another language are dropped")
    parser.add_argument("--mode", choices=MODES, default="default", help="default: the mended rule; official: as published")
    parser.add_argument("--min-hits", type=int, help="different medical words needed (default: the language's)")
    parser.add_argument("--min-density", type=float, help="share of the text in medical words needed (default: the language's)")
    parser.add_argument("--explain", action="store_true", help="print each document's words and numbers; write nothing")
    given = parser.parse_args(arguments)
    language = get_language(given.language)
    options = filter_options(language, given.mode, given.min_hits, given.min_density)
    if given.explain:
        print_explanations(find_inputs(given.inputs), Matcher(language, given.mode, given.min_hits, given.min_density))
        return 0
    if not given.out:
        raise UsageError("--out FOLDER is needed (or --explain to look only)")
    funnel = process_shards(filter_shard, given.inputs, given.out, {**options, **shard_options(given)}, given.workers, "filter_medical")
    print_funnel(funnel, f"filter_medical {language.code} ({given.mode})")
    return 0


if __name__ == "__main__":
    main_guard(main)
