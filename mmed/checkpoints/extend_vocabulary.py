"""Extends a vocabulary for a new language: BPE learning continues where the model's tokenizer stopped.

    text of the new language --old tokenizer--> pieces --join the most frequent neighbours--> new pieces
    row of a new piece in embedding and head = mean of the rows of the old pieces that it replaces

In: a model folder whose tokenizer is BPE (sentencepiece `tokenizer.model`, or byte-level `tokenizer.json`).
Out: one with more pieces; every old piece keeps its id and its row, and new merges come after all old ones. A
character that the old tokenizer spells in bytes becomes a piece first. Only runs of letters are joined.

References: Sennrich et al. 2016 (BPE); Cui et al. 2023, arXiv 2304.08177 (Chinese LLaMA: pieces added to
Llama's); Hewitt 2021 (new rows at the mean).
"""
from __future__ import annotations

import dataclasses
import heapq
import itertools
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import regex

from mmed.checkpoints.pretrained import model_of
from mmed.model import Transformer
from mmed.tokenization import sentencepiece_model as sp
from mmed.tokenization.byte_level import byte_alphabet
from mmed.tokenization.hub import added_token
from mmed.tokenization.texts import read_texts
from mmed.tokenizer import Tokenizer, write_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

MAX_CHARACTERS = 20_000_000  # of a language: enough to rank thousands of pieces
LONGEST_PIECE = 16      # characters, as in sentencepiece; three times as many bytes for byte-level pieces
LONGEST_WORD = 64       # characters; text without spaces is split
ROUND_ROWS = 64         # embeddings grow to a multiple of it: even shards and fast matrix products
WORDS = r" ?[\p{L}\p{M}]+"
SPELLING = {byte: character for character, byte in byte_alphabet().items()}
OLD_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")  # they hold the old vocabulary

Word = list[str | None]  # pieces; no join crosses None


@dataclasses.dataclass
class NewPieces:
    """New pieces of a tokenizer, in the order of their ids."""

    pieces: list[str]                       # as the tokenizer's file spells them
    merges: list[tuple[str, str]]           # merges for the pieces that are not single characters
    parts: dict[str | None, list[int]]      # piece -> the old ids that stand for it


def first_documents(files: list[str]) -> Iterator[tuple[str, str]]:
    """(text, language) of documents, until about MAX_CHARACTERS of a language have been read."""
    read: Counter[str] = Counter()
    for text, language in itertools.chain.from_iterable(read_texts(file) for file in files):
        if read[language] < MAX_CHARACTERS:
            read[language] += len(text)
            yield text, language


def count_words(texts: Iterable[str], pattern: str = WORDS) -> Counter[str]:
    r"""Frequency of each run of letters among the words that the `pattern` of a byte-level BPE finds.

    >>> count_words(["0.5 mg of it, mg!"]).most_common(1)
    [(' mg', 2)]
    """
    found, letters = regex.compile(pattern), regex.compile(r"[ \p{M}]?[\p{L}\p{M}]+")
    words: Counter[str] = Counter()
    for word in itertools.chain.from_iterable(map(found.findall, texts)):
        if letters.fullmatch(word):
            words.update(word[start:start + LONGEST_WORD] for start in range(0, len(word), LONGEST_WORD))
    return words


def join_most_frequent(words: list[Word], counts: list[int], number: int, known: set[str],
                       longest: int) -> list[tuple[str, str]]:
    """The next `number` BPE merges on words split into pieces; modifies `words`.

    >>> join_most_frequent([["l", "o", "w"], ["l", "o", "t"], ["n", "ew"]], [5, 3, 4], 2, set(), 16)
    [('l', 'o'), ('lo', 'w')]
    """
    totals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = defaultdict(set)

    def count(index: int, sign: int) -> set[tuple[str, str]]:
        """Add the pairs of a word that may be joined, or take them away."""
        pairs = [(left, right) for left, right in itertools.pairwise(words[index]) if left and right
                 and len(left) + len(right) <= longest and left + right not in known]
        for pair in pairs:
            totals[pair] += sign * counts[index]
            places[pair].add(index)
        return set(pairs)

    for index in range(len(words)):
        count(index, 1)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < number:
        total, best = heapq.heappop(heap)
        if -total != totals[best] or "".join(best) in known:
            continue  # stale entry; the current total is also in the heap
        if -total < 2:
            break
        merges.append(best)
        changed: set[tuple[str, str]] = set()
        for index in places.pop(best):
            changed |= count(index, -1)
            joined: Word = []
            for piece in words[index]:
                if joined and (joined[-1], piece) == best:
                    joined[-1] = "".join(best)
                else:
                    joined.append(piece)
            words[index] = joined
            changed |= count(index, 1)
        known.add("".join(best))
        for pair in changed:
            if totals[pair] > 0:
                heapq.heappush(heap, (-totals[pair], pair))
    return merges


def old_pieces(tokenizer: Tokenizer, folder: str) -> dict[int, tuple[str, int]]:
    """(text as the tokenizer's file spells it, sentencepiece's type) by id. UserError unless it is a plain
    BPE: new merges must come after the old ones without changing them."""
    main, model = tokenizer.files[0], cast(Any, getattr(tokenizer.core, "model", None))
    if tokenizer.kind == "byte-level BPE" and main.suffix == ".json":
        return {index: ("".join(SPELLING[byte] for byte in token), sp.NORMAL)
                for index, token in tokenizer.core.bytes_of.items()}
    if tokenizer.kind == "sentencepiece" and model.is_bpe and model.byte_fallback:
        return {index: (text, kind) for index, (text, _, kind) in enumerate(model.pieces)}
    raise UserError(f"{folder}: {main.name} cannot be extended; only BPE with byte fallback "
                    "(tokenizer.model) and byte-level BPE (tokenizer.json) can, without changing old text")


def learn(tokenizer: Tokenizer, files: list[str], number: int, folder: str) -> NewPieces:
    """Learn the `number` pieces that shorten the words of these documents most, beyond existing pieces."""
    pieces = old_pieces(tokenizer, folder)
    known = {text for text, _ in pieces.values()} | {*tokenizer.special, *tokenizer.added}
    counted = count_words((text for text, _ in first_documents(files)),
                          getattr(tokenizer.core, "pattern", WORDS))
    words = sorted(counted)
    counts = [counted[word] for word in words]
    parts: dict[str | None, list[int]] = {}
    segmented = [split(tokenizer.encode(word, continued=True), pieces, parts) for word in words]
    characters: Counter[str] = Counter()  # those that the old tokenizer spells in bytes
    for word, count in zip(segmented, counts, strict=True):
        characters.update({piece: count for piece in word if piece is not None and piece not in known})
    frequent = [character for character, count in characters.items() if count > 1]
    frequent = sorted(frequent, key=lambda character: (-characters[character], character))[:number // 2]
    rare = set(characters) - set(frequent)
    segmented = [[None if piece in rare else piece for piece in word] for word in segmented]
    longest = LONGEST_PIECE * (3 if tokenizer.kind == "byte-level BPE" else 1)
    merges = join_most_frequent(segmented, counts, number - len(frequent), known, longest)
    for left, right in merges:
        parts[left + right] = parts[left] + parts[right]
    return NewPieces(frequent + [left + right for left, right in merges], merges, parts)


def split(ids: list[int], pieces: dict[int, tuple[str, int]], parts: dict[str | None, list[int]]) -> Word:
    """The pieces of a word; their ids go into `parts`. A character that sentencepiece spells in bytes comes
    as one piece, with the ids of its bytes."""
    word: Word = []
    spelt: list[int] = []  # ids of a still incomplete character
    for index in ids:
        text, kind = pieces[index]
        spelt.append(index)
        if kind == sp.BYTE:
            text = bytes(int(pieces[i][0][3:5], 16) for i in spelt).decode(errors="ignore")
        if text:
            word.append(text if kind in (sp.BYTE, sp.NORMAL) else None)
            parts[word[-1]] = spelt
            spelt = []
    return word


def write_tokenizer(tokenizer: Tokenizer, new: NewPieces, special: list[str], folder: Path) -> None:
    """Write the extended tokenizer and the settings beside it."""
    main, first = tokenizer.files[0], tokenizer.vocab_size
    for path in tokenizer.files:
        if path.name not in OLD_FILES:
            shutil.copyfile(path, folder / path.name)
    ids = {text: first + len(new.pieces) + place for place, text in enumerate(special)}
    if main.suffix == ".json":
        file = read_json(main)
        model = file["model"]
        model["vocab"] |= {piece: first + place for place, piece in enumerate(new.pieces)}
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [f"{left} {right}" if as_text else [left, right] for left, right in new.merges]
        file["added_tokens"] = (file.get("added_tokens") or []) + [
            added_token(index, text, special=True) for text, index in ids.items()]
        write_json(folder / main.name, file)
        return
    settings, added = folder / "tokenizer_config.json", folder / "added_tokens.json"
    old = read_json(settings) if settings.is_file() else {}
    write_sentencepiece(_grown_model(tokenizer, new, special), folder)
    write_json(settings, read_json(settings) | old)
    if ids:
        write_json(added, (read_json(added) if added.is_file() else {}) | ids)


def _grown_model(tokenizer: Tokenizer, new: NewPieces, special: list[str]) -> bytes:
    """The sentencepiece file with more pieces; in protobuf, what is appended continues the list."""
    pieces = tokenizer.core.model.pieces
    beside = {index: (text, 0.0, sp.CONTROL) for text, index in tokenizer.special.items()}
    beside |= {index: (text, 0.0, sp.USER_DEFINED) for text, index in tokenizer.added.items()}
    # ids of tokens added outside the file
    entries = [beside.get(index, (f"<unused {index}>", 0.0, sp.UNUSED))
               for index in range(len(pieces), tokenizer.vocab_size)]
    lowest = min(score for _, score, _ in pieces)
    entries += [(piece, lowest - 1 - place, sp.NORMAL) for place, piece in enumerate(new.pieces)]
    entries += [(text, 0.0, sp.CONTROL) for text in special]
    return tokenizer.files[0].read_bytes() + sp.build_message(*(sp.build_piece(*entry) for entry in entries))


def grow(model: Transformer, parts: dict[int, list[int]]) -> Transformer:
    """The model with a row for each id in `parts`: the mean of its old ids' rows; padding is the mean of all.
    """
    old = model.config.vocab_size
    need = max(parts, default=0) + 1
    rows = old if need <= old else -(-need // ROUND_ROWS) * ROUND_ROWS
    state = model.state_dict()
    for name in {"embed_tokens.weight", "lm_head.weight"} & state.keys():
        value = state[name]
        result = value.float().mean(0).to(value.dtype).repeat(rows, 1)
        result[:old] = value
        for index, pieces in parts.items():
            result[index] = value[pieces].float().mean(0).to(value.dtype)
        state[name] = result
    return model_of(dataclasses.replace(model.config, vocab_size=rows), state)
