"""More vocabulary for a new language: BPE learning continues where the model's tokenizer stopped, and the
embedding grows.

    text of the new language --old tokenizer--> pieces --the most frequent neighbours are joined,
    repeatedly--> new pieces
    row of a new piece = mean of the rows of the old pieces that it replaces            (embedding, and head
    where there is one)

In: a model folder whose tokenizer is BPE (sentencepiece `tokenizer.model`, or byte-level `tokenizer.json`),
and documents. Out: a model folder with more pieces; every old piece keeps its id and its row. New merges come
after all old ones. A character that the old tokenizer spells in bytes becomes a piece first. Only runs of
letters are joined: digits, signs and spaces stay as they are. The new rows are a start only: continue
pre-training on the language.

    python -m mmed.checkpoints extend FOLDER OUT --texts corpus/de.jsonl.gz --pieces 8000

References: Sennrich et al. 2016 (BPE); Cui et al. 2023, arXiv 2304.08177 (Chinese LLaMA: pieces added to
Llama's); Hewitt 2021 (new rows at the mean).
"""
from __future__ import annotations

import dataclasses
import heapq
import itertools
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex
import torch

from mmed.model import Transformer
from mmed.tokenization.byte_level import BLOOM, LLAMA3, QWEN2, byte_alphabet
from mmed.tokenization.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    build_message,
    build_piece,
)
from mmed.tokenizer import Tokenizer, read_texts, write_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

LONGEST_PIECE = 16      # characters, as in sentencepiece; three times as many bytes for byte-level pieces
LONGEST_WORD = 64       # characters; text without spaces is split
ROUND_ROWS = 64         # embeddings grow to a multiple of it: even shards and fast matrix products

Word = list[str | None]  # pieces; no join crosses None


def count_words(texts: Iterable[str], pattern: str | None = None) -> Counter[str]:
    r"""Frequency of each run of letters, with the space before it. `pattern`: how a byte-level tokenizer
    finds words.

    >>> count_words(["0.5 mg of it, mg!"]).most_common(1)
    [(' mg', 2)]
    """
    most = f"{{1,{LONGEST_WORD}}}"
    if pattern is None or pattern == BLOOM:
        letters = regex.compile(rf" ?[\p{{L}}\p{{M}}]{most}")
    else:  # \p{L}+ has no combining characters; a word of Llama 3's may begin with one
        before = r"[ \p{M}]?" if pattern in (LLAMA3, QWEN2) else " ?"
        letters = regex.compile(rf"{before}\p{{L}}{most}| ?\p{{M}}{most}")
    words: Counter[str] = Counter()
    for text in texts:
        words.update(letters.findall(text))
    return words


# ------------------------------------------------------------------------------------------------------------
# Learning


def join_most_frequent(words: list[Word], counts: list[int], number: int, known: set[str],
                       longest: int) -> list[tuple[str, str]]:
    """The next `number` merges of BPE on words split into pieces; `words` is changed.

    >>> join_most_frequent([["l", "o", "w"], ["l", "o", "t"], ["n", "ew"]], [5, 3, 4], 2, set(), 16)
    [('l', 'o'), ('lo', 'w')]
    """
    known = set(known)
    totals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in _new_pairs(word, known, longest):
            totals[pair] += counts[index]
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < number:
        count, best = heapq.heappop(heap)
        # out of date; the present count is in the heap, too
        if -count != totals[best] or "".join(best) in known:
            continue
        if -count < 2:
            break
        merges.append(best)
        changed: set[tuple[str, str]] = set()
        for index in places.pop(best):
            before = list(_new_pairs(words[index], known, longest))
            words[index] = _joined(words[index], best)
            after = list(_new_pairs(words[index], known, longest))
            for pair in before:
                totals[pair] -= counts[index]
            for pair in after:
                totals[pair] += counts[index]
                places[pair].add(index)
            changed.update(before, after)
        known.add("".join(best))
        for pair in changed - {best}:
            if totals[pair] > 0:
                heapq.heappush(heap, (-totals[pair], pair))
    return merges


def _new_pairs(word: Word, known: set[str], longest: int) -> Iterator[tuple[str, str]]:
    """The neighbours in the word that may be joined: not to a known piece, nor to one that is too long."""
    for left, right in itertools.pairwise(word):
        if left is None or right is None:
            continue
        if len(left) + len(right) <= longest and left + right not in known:
            yield left, right


def _joined(word: Word, pair: tuple[str, str]) -> Word:
    """The word with each occurrence of `pair` as one piece."""
    result: Word = []
    at = 0
    while at < len(word):
        found = (word[at], word[at + 1] if at + 1 < len(word) else None) == pair
        result.append("".join(pair) if found else word[at])
        at += 2 if found else 1
    return result


@dataclasses.dataclass
class NewPieces:
    """What is added to a tokenizer, in the order of its ids."""

    pieces: list[str]                       # as the tokenizer's file spells them
    merges: list[tuple[str, str]]           # those of the pieces that are not single characters
    parts: dict[str, list[int]]             # piece -> the old ids that stand for it


def learn(tokenizer: Tokenizer, words: Counter[str], number: int) -> NewPieces:
    """The `number` pieces that shorten these words most, given what the tokenizer has already."""
    byte_level = tokenizer.kind == "byte-level BPE"
    split = _split_byte_level if byte_level else _split_sentencepiece
    parts: dict[str, list[int]] = {}
    segmented = [split(tokenizer, word, parts) for word in sorted(words)]
    counts = [words[word] for word in sorted(words)]
    known = _vocabulary(tokenizer)

    characters: Counter[str] = Counter()  # those that the old tokenizer spells in bytes
    for word, count in zip(segmented, counts, strict=True):
        characters.update({piece: count for piece in word if piece is not None and piece not in known})
    frequent = sorted((c for c, count in characters.items() if count > 1), key=lambda c:
                      (-characters[c], c))[:number // 2]
    rare = set(characters) - set(frequent)
    segmented = [[None if piece in rare else piece for piece in word] for word in segmented]
    longest = LONGEST_PIECE * (3 if byte_level else 1)
    merges = join_most_frequent(segmented, counts, number - len(frequent), known, longest)
    for left, right in merges:
        parts[left + right] = parts[left] + parts[right]
    pieces = frequent + [left + right for left, right in merges]
    return NewPieces(pieces, merges, {piece: parts[piece] for piece in pieces})


def _split_byte_level(tokenizer: Tokenizer, word: str, parts: dict[str, list[int]]) -> Word:
    """The pieces of a word, as tokenizer.json spells them; their ids go into `parts`."""
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    pieces: Word = []
    for index in tokenizer.encode(word, continued=True):
        piece = "".join(spelling[byte] for byte in tokenizer.core.bytes_of[index])
        parts[piece] = [index]
        pieces.append(piece)
    return pieces


def _split_sentencepiece(tokenizer: Tokenizer, word: str, parts: dict[str, list[int]]) -> Word:
    """The same for sentencepiece; a character that is spelt in bytes comes as one piece, with the ids of its
    bytes.
    """
    pieces: Word = []
    pending: list[int] = []
    for index in tokenizer.encode(word, continued=True):
        piece, _, kind = tokenizer.core.model.pieces[index]
        if kind != BYTE:
            pieces.append(piece if kind == NORMAL else None)
            parts[piece] = [index]
            continue
        pending.append(index)
        try:
            character = bytes(int(tokenizer.core.model.pieces[i][0][3:5], 16) for i in pending).decode()
        except UnicodeDecodeError:
            continue
        pieces.append(character)
        parts[character] = pending
        pending = []
    return pieces


def _vocabulary(tokenizer: Tokenizer) -> set[str]:
    """Everything that is a piece already, as the file spells it."""
    named = {*tokenizer.special, *tokenizer.added}
    if tokenizer.kind == "byte-level BPE":
        spelling = {byte: character for character, byte in byte_alphabet().items()}
        return named | {
            "".join(spelling[byte] for byte in token)
            for token in tokenizer.core.bytes_of.values()
        }
    return named | {piece for piece, _, _ in tokenizer.core.model.pieces}


# ------------------------------------------------------------------------------------------------------------
# Writing


def check_extensible(tokenizer: Tokenizer, folder: str) -> None:
    """New merges must come after the old ones without changing them: plain BPE only."""
    main = tokenizer.files[0]
    if tokenizer.kind == "sentencepiece":
        model = tokenizer.core.model
        if model.is_bpe and model.byte_fallback:
            return
    if tokenizer.kind == "byte-level BPE" and main.suffix == ".json":
        return
    raise UserError(
        f"{folder}: {main.name} cannot be extended; only BPE with byte fallback (tokenizer.model) and "
        f"byte-level BPE "
        "(tokenizer.json) can, without changing how old text is encoded")


def write_tokenizer(tokenizer: Tokenizer, new: NewPieces, special: list[str], folder: Path) -> None:
    """Write the extended tokenizer and the settings beside it."""
    main = tokenizer.files[0]
    for path in tokenizer.files:
        # these hold the old vocabulary
        if path.name not in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"):
            shutil.copyfile(path, folder / path.name)
    first = tokenizer.vocab_size
    ids = {text: first + len(new.pieces) + place for place, text in enumerate(special)}
    if main.suffix == ".json":
        file = read_json(main)
        model = file["model"]
        model["vocab"] |= {piece: first + place for place, piece in enumerate(new.pieces)}
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [f"{left} {right}" if as_text else [left, right] for left, right in new.merges]
        file["added_tokens"] = (file.get("added_tokens") or []) + [{
            "id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True
        } for text, index in ids.items()]
        write_json(folder / main.name, file)
        return
    settings = read_json(folder / "tokenizer_config.json") if (folder /
                                                               "tokenizer_config.json").is_file() else {}
    write_sentencepiece(_grown_model(tokenizer, new, special), folder)
    if settings:
        write_json(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") | settings)
    if ids:
        path = folder / "added_tokens.json"
        write_json(path, (read_json(path) if path.is_file() else {}) | ids)


def _grown_model(tokenizer: Tokenizer, new: NewPieces, special: list[str]) -> bytes:
    """The sentencepiece file with more pieces; in protobuf, what is appended continues the list."""
    data = tokenizer.files[0].read_bytes()
    model = SentencePieceModel(data, str(tokenizer.files[0]))
    beside = {index: (text, CONTROL) for text, index in tokenizer.special.items()}
    beside |= {index: (text, USER_DEFINED) for text, index in tokenizer.added.items()}
    lowest = min(score for _, score, _ in model.pieces)
    entries = []
    # ids of tokens that were added beside the file
    for index in range(len(model.pieces), tokenizer.vocab_size):
        text, kind = beside.get(index, (f"<unused {index}>", UNUSED))
        entries.append((text, 0.0, kind))
    entries += [(piece, lowest - 1 - place, NORMAL) for place, piece in enumerate(new.pieces)]
    entries += [(text, 0.0, CONTROL) for text in special]
    return data + build_message(*(build_piece(*entry) for entry in entries))


def grow(model: Transformer, parts: dict[int, list[int]]) -> Transformer:
    """The model with a row for each id in `parts`: the mean of the rows of its old ids. Padding rows get the
    mean of all.
    """
    old = model.config.vocab_size
    need = max(parts) + 1 if parts else old
    rows = old if need <= old else -(-need // ROUND_ROWS) * ROUND_ROWS
    state = model.state_dict()
    for name in {"embed_tokens.weight", "lm_head.weight"} & state.keys():
        value = state[name]
        result = value.float().mean(0).to(value.dtype).repeat(rows, 1)
        result[:old] = value
        for index, pieces in parts.items():
            result[index] = value[pieces].float().mean(0).to(value.dtype)
        state[name] = result
    with torch.device("meta"):
        grown = Transformer(dataclasses.replace(model.config, vocab_size=rows))
    grown.load_state_dict(state, assign=True)
    return grown.eval()


def first_characters(files: list[str], limit: int) -> Iterator[str]:
    """Texts of documents until `limit` characters have been read."""
    read = 0
    for text, _ in itertools.chain.from_iterable(read_texts(file) for file in files):
        yield text
        read += len(text)
        if read > limit:
            print(f"note: pieces are learnt from the first {read:,} characters (--max_characters)",
                  file=sys.stderr)
            return


def tokens_per_character(tokenizer: Tokenizer, files: list[str], limit: int) -> dict[str, tuple[int, int]]:
    """Language -> (characters, tokens) of documents, at most about `limit` characters of each language."""
    counts: dict[str, list[int]] = {}
    for text, language in itertools.chain.from_iterable(read_texts(file) for file in files):
        count = counts.setdefault(language, [0, 0])
        if count[0] < limit:
            count[0] += len(text)
            count[1] += len(tokenizer.encode(text))
    return {language: (characters, tokens) for language, (characters, tokens) in sorted(counts.items())}
