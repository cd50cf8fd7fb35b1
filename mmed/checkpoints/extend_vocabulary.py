"""More vocabulary for a new language: BPE goes on learning where the model's tokenizer stopped, and the embedding grows with it.

    text of the new language --old tokenizer--> pieces --most frequent neighbours are joined, again and again--> new pieces
    row of a new piece = mean of the rows of the old pieces that it replaces            (embedding, and head where there is one)

In: a model folder whose tokenizer is BPE (sentencepiece `tokenizer.model`, or byte-level `tokenizer.json`), and documents.
Out: a model folder with more pieces; every old piece keeps its id and its row. New joins come after all old ones, so each new
piece is reachable, and it is learnt from what the old tokenizer makes of the text. A character that the old one spells in
bytes becomes a piece first. Words are joined inside runs of letters only: digits, signs and spaces stay as they are.
Printed: tokens per character by language, before and after. The new rows are a start only: continue pre-training on the language.

    python -m mmed.checkpoints extend FOLDER OUT --texts corpus/de.jsonl.gz --pieces 8000

References: Sennrich et al. 2016 (BPE); Cui et al. 2023, arXiv 2304.08177 (Chinese LLaMA: pieces added to Llama's); Hewitt 2021
(new rows at the mean).
"""
from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import re
import shutil
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from mmed.checkpoints.model_card import model_card
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained, stored_dtype
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
)
from mmed.tokenizer import Tokenizer, load_tokenizer, read_texts
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

LONGEST_PIECE = 16      # characters, as sentencepiece has it; of byte-level pieces 3 times as many bytes
LONGEST_WORD = 64       # characters; text without spaces is cut
ROUND_ROWS = 64         # embeddings grow to a multiple of it: even shards and fast matrix products


@functools.cache
def _word_pattern(pattern: str | None = None) -> re.Pattern[str]:
    """Runs of letters and their marks, with the one space before them; of a byte-level tokenizer, as its pattern cuts them."""
    marks = re.escape("".join(map(chr, filter(lambda c: unicodedata.category(chr(c))[0] == "M", range(0x20000)))))
    letter, most = r"[^\W\d_]", f"{{1,{LONGEST_WORD}}}"
    if pattern is None or pattern == BLOOM:
        return re.compile(rf" ?(?:{letter}|[{marks}]){most}")
    before = f"[ {marks}]?" if pattern in (LLAMA3, QWEN2) else " ?"  # \p{L}+ has no marks; Llama 3's may begin with one
    return re.compile(rf"{before}{letter}{most}| ?[{marks}]{most}")


def count_words(texts: Iterable[str], pattern: str | None = None) -> Counter[str]:
    """How often each run of letters is there.

    >>> count_words(["0.5 mg of it, mg!"]).most_common(1)
    [(' mg', 2)]
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_word_pattern(pattern).findall(text))
    return words


def join_most_frequent(words: list[list[str | None]], counts: list[int], number: int, known: set[str], longest: int) -> list[tuple[str, str]]:
    """The next `number` joins of BPE on words cut into pieces (None: what no join crosses). `words` is changed.

    >>> join_most_frequent([["l", "o", "w"], ["l", "o", "t"], ["n", "ew"]], [5, 3, 4], 2, set(), 16)
    [('l', 'o'), ('lo', 'w')]
    """
    totals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = {}

    def pairs(word: list[str | None]) -> Iterator[tuple[str, str]]:
        for left, right in itertools.pairwise(word):
            if left is not None and right is not None and len(left) + len(right) <= longest and left + right not in known:
                yield left, right

    for index, word in enumerate(words):
        for pair in pairs(word):
            totals[pair] += counts[index]
            places.setdefault(pair, set()).add(index)
    heap = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(heap)
    joins: list[tuple[str, str]] = []
    known = set(known)
    while heap and len(joins) < number:
        count, pair = heapq.heappop(heap)
        if -count != totals[pair] or pair[0] + pair[1] in known:  # changed since it was put there; its new count is there, too
            continue
        if -count < 2:
            break
        joins.append(pair)
        joined = pair[0] + pair[1]
        changed: set[tuple[str, str]] = set()
        for index in places.pop(pair):
            word = words[index]
            for old in pairs(word):
                totals[old] -= counts[index]
                changed.add(old)
            new: list[str | None] = []
            at = 0
            while at < len(word):
                if at + 1 < len(word) and word[at] == pair[0] and word[at + 1] == pair[1]:
                    new.append(joined)
                    at += 2
                else:
                    new.append(word[at])
                    at += 1
            words[index] = new
            for fresh in pairs(new):
                totals[fresh] += counts[index]
                places.setdefault(fresh, set()).add(index)
                changed.add(fresh)
        known.add(joined)
        for other in changed - {pair}:
            if totals[other] > 0:
                heapq.heappush(heap, (-totals[other], other))
    return joins


# ------------------------------------------------------------------------------------------------------------- learning

@dataclasses.dataclass
class NewPieces:
    """What is added to a tokenizer, in order of its ids."""

    pieces: list[str]                       # as the tokenizer's file spells them
    joins: list[tuple[str, str]]            # the joins that make those that are no single character
    parts: dict[str, list[int]]             # piece -> the old ids that stand for it


def learn(tokenizer: Tokenizer, words: Counter[str], number: int) -> NewPieces:
    """The `number` pieces that shorten these words most, given what the tokenizer has already."""
    bytes_level = tokenizer.kind == "byte-level BPE"
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    segmented, counts, parts = [], [], {}
    characters: Counter[str] = Counter()
    for word, count in sorted(words.items()):
        pieces: list[str | None] = []
        pending = bytearray()
        for index in tokenizer.encode(word, continued=True):
            if bytes_level:
                pieces.append("".join(spelling[byte] for byte in tokenizer.core.bytes_of[index]))
                parts[pieces[-1]] = [index]
                continue
            piece, _, kind = tokenizer.core.model.pieces[index]
            if kind == BYTE:  # a character that is no piece yet
                pending.append(int(piece[3:5], 16))
                try:
                    character = pending.decode()
                except UnicodeDecodeError:
                    continue
                pieces.append(character)
                characters[character] += count
                pending.clear()
            else:
                pieces.append(piece if kind == NORMAL else None)
                parts[piece] = [index]
        segmented.append(pieces)
        counts.append(count)
    chosen = [c for c, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])) if count > 1][:number // 2]
    for character in chosen:
        parts[character] = tokenizer.encode(character, continued=True)
    rare = set(characters) - set(chosen)
    if rare:
        segmented = [[None if piece in rare else piece for piece in word] for word in segmented]
    joins = join_most_frequent(segmented, counts, number - len(chosen), _vocabulary(tokenizer), LONGEST_PIECE * (3 if bytes_level else 1))
    for left, right in joins:
        parts[left + right] = parts[left] + parts[right]
    pieces = chosen + [left + right for left, right in joins]
    return NewPieces(pieces, joins, {piece: parts[piece] for piece in pieces})


def _vocabulary(tokenizer: Tokenizer) -> set[str]:
    """Everything that is a piece already, as the file spells it."""
    if tokenizer.kind == "byte-level BPE":
        spelling = {byte: character for character, byte in byte_alphabet().items()}
        return {"".join(spelling[byte] for byte in token) for token in tokenizer.core.bytes_of.values()} | set(tokenizer.special) | set(tokenizer.added)
    return {piece for piece, _, _ in tokenizer.core.model.pieces} | set(tokenizer.special) | set(tokenizer.added)


# -------------------------------------------------------------------------------------------------------------- writing

def write_tokenizer(tokenizer: Tokenizer, new: NewPieces, special: list[str], folder: Path) -> list[str]:
    """Write the extended tokenizer and the files beside it; returns the names of those left out, which it makes untrue."""
    main = tokenizer.files[0]
    stale = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"} - {main.name}
    left = []
    for path in tokenizer.files:
        if path.name in stale:
            left.append(path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    first = tokenizer.vocab_size
    ids = {text: first + len(new.pieces) + place for place, text in enumerate(special)}
    if main.suffix == ".json":
        file = read_json(main)
        model = file["model"]
        for place, piece in enumerate(new.pieces):
            model["vocab"][piece] = first + place
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [f"{left} {right}" if as_text else [left, right] for left, right in new.joins]
        file.setdefault("added_tokens", [])
        file["added_tokens"] += [{"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                                  "special": True} for text, index in ids.items()]
        write_json(folder / main.name, file)
    else:
        model = SentencePieceModel(main.read_bytes(), str(main))
        named = {index: (text, CONTROL) for text, index in tokenizer.special.items()} | \
            {index: (text, USER_DEFINED) for text, index in tokenizer.added.items()}
        score = min((s for _, s, _ in model.pieces), default=0.0)
        entries = [named.get(index, (f"<unused {index}>", UNUSED)) for index in range(len(model.pieces), first)]  # added beside the file
        entries = [(text, 0.0, kind) for text, kind in entries]
        entries += [(piece, score - 1 - place, NORMAL) for place, piece in enumerate(new.pieces)]
        entries += [(text, 0.0, CONTROL) for text in special]
        more = b"".join(build_message((1, build_message((1, text.encode()), (2, value), (3, kind)))) for text, value, kind in entries)
        (folder / main.name).write_bytes(main.read_bytes() + more)  # in protobuf, what is appended goes on with the list
        if ids:
            path = folder / "added_tokens.json"
            write_json(path, (read_json(path) if path.is_file() else {}) | ids)
    return left


def _check_kind(tokenizer: Tokenizer, folder: str) -> None:
    main = tokenizer.files[0]
    if tokenizer.kind == "sentencepiece" and tokenizer.core.model.is_bpe and tokenizer.core.model.byte_fallback:
        return
    if tokenizer.kind == "byte-level BPE" and main.suffix == ".json":
        return
    why = {"sentencepiece": "it is a unigram model, or spells nothing in bytes; new pieces would change how old text is cut",
           "byte-level BPE": f"{main.name} has no room behind its ranks; use the model's tokenizer.json instead (move {main.name} away)"}
    raise UserError(f"{folder}: this tokenizer ({tokenizer.kind}) cannot be extended: {why.get(tokenizer.kind, 'use its tokenizer.model instead')}")


def grow(model, parts: dict[int, list[int]]):
    """The model with a row for each id in `parts`: the mean of the rows of its old ids; spare rows get the mean of all."""
    old = model.config.vocab_size
    need = max(parts) + 1 if parts else old
    rows = old if need <= old else -(-need // ROUND_ROWS) * ROUND_ROWS
    config = dataclasses.replace(model.config, vocab_size=rows)
    state = model.state_dict()
    for name in ("embed_tokens.weight", "lm_head.weight"):
        if name not in state:
            continue
        value = state[name]
        result = torch.empty(rows, value.shape[1], dtype=value.dtype)
        result[:old] = value
        result[old:] = value.float().mean(0).to(value.dtype)
        for index, pieces in parts.items():
            result[index] = value[pieces].float().mean(0).to(value.dtype)
        state[name] = result
    with torch.device("meta"):
        grown = Transformer(config)
    grown.load_state_dict(state, assign=True)
    return grown.eval()


def rates(tokenizer: Tokenizer, files: list[str], limit: int) -> dict[str, tuple[int, int]]:
    """language -> (characters, tokens) of documents, `limit` characters of each language at most."""
    counts: dict[str, list[int]] = {}
    for file in files:
        for text, language in read_texts(file):
            count = counts.setdefault(language, [0, 0])
            if count[0] < limit:
                count[0] += len(text)
                count[1] += len(tokenizer.encode(text))
    return {language: (characters, tokens) for language, (characters, tokens) in sorted(counts.items())}


def extend(folder: str, out: str, *, texts: list[str], pieces: int, special: list[str], report: list[str], max_characters: int,
           dtype: str = "auto") -> None:
    """Learn pieces from `texts`, write the grown model folder, print what was gained."""
    kept = stored_dtype(Path(folder)) if dtype == "auto" else getattr(torch, dtype)
    model, tokenizer = load_pretrained(folder, dtype=kept)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer to extend")
    _check_kind(tokenizer, folder)
    for text in special:
        if not text or text in tokenizer.special or text in tokenizer.added:
            raise UserError(f"--special {text!r}: is empty, or a token already")

    def limited() -> Iterator[str]:
        read = 0
        for file in texts:
            for text, _ in read_texts(file):
                yield text
                read += len(text)
                if read > max_characters:
                    print(f"note: pieces are learnt from the first {read:,} characters (--max_characters)", file=sys.stderr)
                    return

    new = learn(tokenizer, count_words(limited(), getattr(tokenizer.core, "pattern", None)), pieces)
    first = tokenizer.vocab_size
    with tempfile.TemporaryDirectory() as name:
        left = write_tokenizer(tokenizer, new, special, Path(name))
        larger = load_tokenizer(name)
        parts = {first + place: new.parts[piece] for place, piece in enumerate(new.pieces)}
        parts |= {first + len(new.pieces) + place: tokenizer.encode(text, continued=True) for place, text in enumerate(special)}
        assert larger.vocab_size == first + len(parts), f"expected {first + len(parts)} ids, got {larger.vocab_size}"
        grown = grow(model, parts)
        card = model_card(grown, title=Path(out).name, base=Path(folder).name, recipe={"new pieces": len(new.pieces), "new special tokens": len(special)})
        save_pretrained(grown, larger, out, dtype=kept, more={"README.md": card})
        print(f"{len(new.pieces):,} pieces and {len(special)} special tokens added: {larger.vocab_size:,} ids, {grown.config.vocab_size:,} rows, in {out}")
        if len(new.pieces) < pieces:
            print(f"note: the text holds no more pieces that occur twice; {pieces:,} were asked for")
        if left:
            print(f"note: {', '.join(left)} left out: it still held the old vocabulary")
        before, after = (rates(t, report or texts, max_characters) for t in (tokenizer, larger))
        if before:
            print(f"{'language':10}{'characters':>14}{'tokens/char':>13}{'now':>9}{'gain':>8}")
        for language, (characters, tokens) in before.items():
            now = after[language][1]
            print(f"{language:10}{characters:14,}{tokens / max(1, characters):13.3f}{now / max(1, characters):9.3f}{1 - now / max(1, tokens):8.1%}")
