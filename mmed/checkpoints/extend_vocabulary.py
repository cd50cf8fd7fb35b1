"""Extends a vocabulary for a new language: BPE learning continues where the model's tokenizer stopped.

    text of the new language --old tokenizer--> pieces --join the most frequent neighbours--> new pieces
    row of a new piece in embedding and head = mean of the rows of the old pieces that it replaces

In: a model folder with a BPE tokenizer. Out: one with more pieces; every old piece keeps its id and row. A
character that the old tokenizer spells in bytes becomes a piece first. Only runs of letters are joined.
References: Sennrich et al. 2016 (BPE); Cui et al. 2023, arXiv 2304.08177; Hewitt 2021 (rows at the mean).
"""
from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import regex

from mmed.checkpoints.pretrained import model_of
from mmed.model import Transformer
from mmed.tokenization import sentencepiece_model as sp
from mmed.tokenization.byte_level import byte_alphabet
from mmed.tokenization.texts import read_texts
from mmed.tokenizer import Tokenizer, write_sentencepiece
from mmed.utils.errors import UserError, require_extra
from mmed.utils.files import read_json, write_json

MAX_CHARACTERS = 20_000_000  # of a language: enough to rank thousands of pieces
LONGEST_PIECE = 16      # old pieces in a new one
LONGEST_WORD = 64       # characters; text without spaces is split
ROUND_ROWS = 64         # embeddings grow to a multiple of it: even shards and fast matrix products
WORDS = r" ?[\p{L}\p{M}]+"
LETTERS = regex.compile(r"[ \p{M}]?[\p{L}\p{M}]+")
FIRST_CHARACTER = 0x20000  # from here on they stand for old pieces in the trainer; none is a space
SPELLING = {byte: character for character, byte in byte_alphabet().items()}
OLD_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")  # they hold the old vocabulary

Word = list[str | None]  # pieces; no join crosses None
Parts = dict[str, list[int]]  # piece, as the tokenizer's file spells it -> old ids that stand for it
Merges = list[tuple[str, str]]


def first_documents(files: list[str]) -> Iterator[str]:
    """Texts of documents, until about MAX_CHARACTERS of a language have been read."""
    read: Counter[str] = Counter()
    for text, language in itertools.chain.from_iterable(map(read_texts, files)):
        if read[language] < MAX_CHARACTERS:
            read[language] += len(text)
            yield text


def count_words(texts: Iterable[str], pattern: str = WORDS) -> Counter[str]:
    r"""Frequency of each run of letters among the words that the `pattern` of a byte-level BPE finds.

    >>> count_words(["0.5 mg of it, mg!"]).most_common(1)
    [(' mg', 2)]
    """
    found = itertools.chain.from_iterable(map(regex.compile(pattern).findall, texts))
    words = filter(LETTERS.fullmatch, found)
    return Counter(word[start:start + LONGEST_WORD] for word in words
                   for start in range(0, len(word), LONGEST_WORD))


def join_most_frequent(words: dict[str, Word], counts: Counter[str], number: int, known: set[str]) -> Merges:
    """The next `number` BPE merges on words split into pieces, skipping results in `known`. The trainer of
    Hugging Face tokenizers sees each old piece as one character.

    >>> words = {"low": ["l", "o", "w"], "lot": ["l", "o", "t"], "new": ["n", "ew"]}
    >>> join_most_frequent(words, Counter(low=5, lot=3, new=4), 2, set())
    [('l', 'o'), ('lo', 'w')]
    >>> join_most_frequent(words, Counter(low=5, lot=3, new=4), 2, {"lo"})
    [('n', 'ew')]
    """
    library = require_extra("tokenizers", "hub")
    pieces = sorted({piece for word in words.values() for piece in word if piece})
    characters: dict[str | None, str] = {piece: chr(FIRST_CHARACTER + place)
                                         for place, piece in enumerate(pieces)}
    trainer = library.trainers.BpeTrainer(vocab_size=len(pieces) + 2 * number, min_frequency=2,
                                          max_token_length=LONGEST_PIECE, show_progress=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    texts = (itertools.repeat("".join(characters.get(piece, " ") for piece in word), counts[text])
             for text, word in words.items())
    tokenizer.train_from_iterator(itertools.chain.from_iterable(texts), trainer)
    merges: Merges = []
    skipped: set[str] = set()
    for merge in json.loads(tokenizer.to_str())["model"]["merges"]:
        left, right = ("".join(pieces[ord(character) - FIRST_CHARACTER] for character in side)
                       for side in merge)
        if {left, right} & skipped or left + right in known:
            skipped.add(left + right)
        else:
            merges.append((left, right))
            known.add(left + right)
    return merges[:number]


def old_pieces(tokenizer: Tokenizer) -> dict[int, tuple[str, bool]]:
    """Id -> (text as the file spells it, whether it may be joined). UserError unless the tokenizer is a plain
    BPE: new merges must come after the old ones without changing them."""
    main, model = tokenizer.files[0], cast(Any, getattr(tokenizer.core, "model", None))
    if tokenizer.kind == "byte-level BPE" and main.suffix == ".json":
        return {index: ("".join(SPELLING[byte] for byte in token), True)
                for index, token in tokenizer.core.bytes_of.items()}
    if tokenizer.kind == "sentencepiece" and model.is_bpe and model.byte_fallback:
        return {index: (text, kind == sp.NORMAL) for index, (text, _, kind) in enumerate(model.pieces)}
    raise UserError(f"{main}: cannot be extended; only BPE with byte fallback (tokenizer.model) and "
                    "byte-level BPE (tokenizer.json) can, without changing old text")


def learn(tokenizer: Tokenizer, files: list[str], number: int) -> tuple[Parts, Merges]:
    """The `number` new pieces that shorten the words of these documents most, in the order of their ids, and
    the merges for those that are not single characters."""
    pieces = old_pieces(tokenizer)
    parts: Parts = {text: [index] for index, (text, _) in pieces.items()}
    counts = count_words(first_documents(files), getattr(tokenizer.core, "pattern", WORDS))
    spelt: Counter[str] = Counter()  # characters that sentencepiece spells in bytes
    for text in counts if tokenizer.kind == "sentencepiece" else ():
        spelt.update({character: counts[text] for character in text
                      if character not in parts and character != " "})
    frequent = [character for character, count in spelt.most_common(number // 2) if count > 1]
    parts |= {character: tokenizer.encode(character, continued=True) for character in frequent}
    words: dict[str, Word] = {text: [] for text in sorted(counts)}
    for text, word in words.items():
        for in_bytes, run in itertools.groupby(text, spelt.__contains__):
            if in_bytes:
                word += [character if character in parts else None for character in run]
            else:
                found = [pieces[index] for index in tokenizer.encode("".join(run), continued=True)]
                word += [piece if joinable else None for piece, joinable in found]
    known = {*parts, *tokenizer.special, *tokenizer.added}
    merges = join_most_frequent(words, counts, number - len(frequent), known)
    for left, right in merges:
        parts[left + right] = parts[left] + parts[right]
    return {piece: parts[piece] for piece in [*frequent, *map("".join, merges)]}, merges


def write_tokenizer(tokenizer: Tokenizer, new: Parts, merges: Merges, folder: Path) -> None:
    """Write the extended tokenizer and the settings beside it."""
    main, first = tokenizer.files[0], tokenizer.vocab_size
    for path in tokenizer.files:
        if path.name not in OLD_FILES:
            shutil.copyfile(path, folder / path.name)
    if main.suffix == ".json":
        file = read_json(main)
        model = file["model"]
        model["vocab"] |= {piece: first + place for place, piece in enumerate(new)}
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [f"{left} {right}" if as_text else [left, right] for left, right in merges]
        write_json(folder / main.name, file)
        return
    settings, pieces = folder / "tokenizer_config.json", tokenizer.core.model.pieces
    old = read_json(settings) if settings.is_file() else {}
    # the places of tokens that are added by a file beside it
    entries = [(f"<unused {index}>", 0.0, sp.UNUSED) for index in range(len(pieces), first)]
    lowest = min(score for _, score, _ in pieces)
    entries += [(piece, lowest - 1 - place, sp.NORMAL) for place, piece in enumerate(new)]
    # in protobuf, what is appended continues the list
    more = sp.build_message(*(sp.build_piece(*entry) for entry in entries))
    write_sentencepiece(main.read_bytes() + more, folder)
    write_json(settings, read_json(settings) | old)


def grow(model: Transformer, first: int, new: Parts) -> Transformer:
    """The model with a row for each new piece, from row `first` on: the mean of its old ids' rows; padding is
    the mean of all."""
    old = model.config.vocab_size
    need = first + len(new)
    rows = old if need <= old else -(-need // ROUND_ROWS) * ROUND_ROWS
    state = model.state_dict()
    for name in {"embed_tokens.weight", "lm_head.weight"} & state.keys():
        value = state[name]
        result = value.float().mean(0).to(value.dtype).repeat(rows, 1)
        result[:old] = value
        for index, parts in enumerate(new.values(), first):
            result[index] = value[parts].float().mean(0).to(value.dtype)
        state[name] = result
    return model_of(dataclasses.replace(model.config, vocab_size=rows), state)
