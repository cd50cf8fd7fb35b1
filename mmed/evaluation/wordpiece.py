r"""Tokenizers of encoders: WordPiece (BERT) and the sentencepiece unigram model of XLM-R, text -> ids.

    tokenizer = load_encoder_tokenizer("models/bert-base-multilingual-cased")
    tokenizer.encode("Fièvre et toux")   ->  [cls_id, 143, 7731, ..., sep_id]

In: a model folder. Out: ids with the two marks that an encoder wants around a text, cut at `max_length`. Order: what a word is to
BERT, WordPiece, unigram models, opening the files.

    "Fièvre à 39,5°C" --clean, (NFD, no accents), (lower case)--> words and single marks --longest piece first--> Fi ##èv ##re à 39 , 5 °C

Text that looks like a mark ("[SEP]", "</s>") is ordinary text here, as everywhere in this project. Ids equal those of
transformers for every character that Unicode 8 knows (its tables of punctuation are that old); for sentencepiece they are those of
the sentencepiece library, which the models were trained with. Hugging Face's copy of it normalises by what looks like one character,
so it differs on some piles of combining marks, and takes other ones of equally likely pieces (s ss for ss s).

References: Devlin et al. 2019 and its tokenization.py (BERT); Conneau et al. 2020 and fairseq's dictionary (XLM-R).
"""
from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from pathlib import Path
from typing import Any

import sentencepiece

from mmed.tokenization.sentencepiece_model import (
    CONTROL,
    MAX_PIECES,
    NORMAL,
    UNKNOWN,
    SentencePieceModel,
    build_message,
)
from mmed.tokenizer import MAX_FILE_BYTES, clean_text
from mmed.utils.errors import UserError
from mmed.utils.files import read_json

MAX_CACHED_WORDS = 1 << 18  # words remembered with their pieces; when they are too many, all are forgotten

# -------------------------------------------------------------------------------------------------- characters and words

CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
       (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # BERT's list: ideographs are words of their own; kana and Hangul are not


class _Table(dict):
    """For `str.translate`: a character -> what it becomes, worked out when it is met first."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = result = self.rule(chr(code))
        return result


def _clean(character: str) -> str:
    r"""Nothing for control characters, a space for what separates words; ideographs stay.

    >>> [_clean(c) for c in "a\t\u3000\u200b\x85"]
    ['a', ' ', ' ', '', '']
    """
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    if character in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return " " if category[0] == "Z" else character


def _apart(character: str) -> str:
    """
    >>> _apart("发"), _apart("か")
    (' 发 ', 'か')
    """
    return f" {character} " if any(low <= ord(character) <= high for low, high in CJK) else character


def _mark(character: str) -> str:
    """Punctuation gets spaces around it; all that ASCII has besides letters and digits counts.

    >>> _mark("、"), _mark("+"), _mark("°")
    (' 、 ', ' + ', '°')
    """
    mark = (32 < ord(character) < 127 and not character.isalnum()) or unicodedata.category(character)[0] == "P"
    return f" {character} " if mark else character


def _no_accent(character: str) -> str:
    return "" if unicodedata.category(character) == "Mn" else character


CLEAN, APART, MARKS, ACCENTS = _Table(_clean), _Table(_apart), _Table(_mark), _Table(_no_accent)
LOWER = _Table(str.lower)  # character by character: no final sigma
SPACES = dict.fromkeys(map(ord, "\x85\u1680"), " ")  # white space that sentencepiece's own map leaves; transformers cuts there


# ------------------------------------------------------------------------------------------------------------- WordPiece

class WordPiece:
    """Text -> ids by BERT's rules; made by `load_encoder_tokenizer`."""

    kind = "wordpiece"

    def __init__(self, vocabulary: dict[str, int], *, unknown: str, cls_id: int, sep_id: int, pad_id: int, max_length: int | None, clean: bool = True,
                 apart: bool = True, accents: bool = False, lower: bool = False, prefix: str = "##", longest_word: int = 100):
        """`accents`: take accents away; `longest_word` in characters: a longer one is unknown."""
        self.vocabulary, self.unknown_id, self.prefix, self.longest_word = vocabulary, vocabulary[unknown], prefix, longest_word
        self.cls_id, self.sep_id, self.pad_id, self.max_length = cls_id, sep_id, pad_id, max_length
        self.clean, self.apart, self.accents, self.lower = clean, apart, accents, lower
        self.longest_piece = max(map(len, vocabulary))
        self.size = max(vocabulary.values()) + 1
        self._known: dict[str, list[int]] = {}

    def words(self, text: str) -> list[str]:
        """What is cut into pieces on its own: words, ideographs, punctuation marks."""
        text = clean_text(text)
        if self.clean:
            text = text.translate(CLEAN)
        if self.apart:
            text = text.translate(APART)
        if self.accents:
            text = unicodedata.normalize("NFD", text).translate(ACCENTS)
        if self.lower:
            text = text.translate(LOWER)
        return text.translate(MARKS).split()

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, of any length."""
        ids: list[int] = []
        for word in self.words(text):
            found = self._known.get(word)
            if found is None:
                if len(self._known) >= MAX_CACHED_WORDS:
                    self._known.clear()
                found = self._known[word] = self._cut(word)
            ids += found
        return ids

    def _cut(self, word: str) -> list[int]:
        """The longest piece that the rest of the word begins with, again and again; a rest that begins with none makes the word unknown."""
        if len(word) > self.longest_word:
            return [self.unknown_id]
        ids, start = [], 0
        while start < len(word):
            prefix = self.prefix if start else ""
            for stop in range(min(len(word), start + self.longest_piece), start, -1):
                index = self.vocabulary.get(prefix + word[start:stop])
                if index is not None:
                    break
            else:
                return [self.unknown_id]
            ids.append(index)
            start = stop
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids with the marks at both ends, at most `max_length`: what is too long loses its end."""
        return _with_marks(self, self.pieces(text))


def _with_marks(tokenizer: WordPiece | Unigram, ids: list[int]) -> list[int]:
    room = len(ids) if tokenizer.max_length is None else tokenizer.max_length - 2
    return [tokenizer.cls_id, *ids[:room], tokenizer.sep_id]


# --------------------------------------------------------------------------------------------------------------- unigram

class Unigram:
    """Text -> ids through the sentencepiece library; `id_of` renumbers its pieces where the model counts otherwise."""

    kind = "unigram"

    def __init__(self, model: SentencePieceModel, name: str, *, id_of: list[int], cls_id: int, sep_id: int, pad_id: int, size: int,
                 max_length: int | None):
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model.proto())
        except RuntimeError as error:
            raise UserError(f"{name}: sentencepiece refuses it ({str(error)[:100]}); get the file again") from None
        self.id_of, self.cls_id, self.sep_id, self.pad_id, self.size, self.max_length = id_of, cls_id, sep_id, pad_id, size, max_length

    def pieces(self, text: str) -> list[int]:
        """Ids of the text alone, of any length."""
        return [self.id_of[index] for index in self.processor.encode(clean_text(text).translate(SPACES))]

    def encode(self, text: str) -> list[int]:
        """Ids with the marks at both ends, at most `max_length`: what is too long loses its end."""
        return _with_marks(self, self.pieces(text))


# --------------------------------------------------------------------------------------------------------------- opening

def load_encoder_tokenizer(folder: str | Path) -> WordPiece | Unigram:
    """The tokenizer of an encoder's folder: `sentencepiece.bpe.model`, else `tokenizer.json`, else `vocab.txt`."""
    folder = Path(folder)
    settings = _settings(folder / "tokenizer_config.json")
    length = settings.get("model_max_length")
    # transformers writes 10^30 where nothing was said
    longest = int(length) if isinstance(length, int | float) and not isinstance(length, bool) and 3 <= length < 2 ** 31 else None
    for name, read in (("sentencepiece.bpe.model", _open_xlmr), ("tokenizer.json", _open_json), ("vocab.txt", _open_vocabulary)):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a tokenizer (limit {MAX_FILE_BYTES:,})")
            return read(path, settings, longest)
    raise UserError(f"{folder}: no sentencepiece.bpe.model, tokenizer.json or vocab.txt; an encoder's folder holds its tokenizer in one of them")


def _settings(path: Path) -> dict:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _open_xlmr(path: Path, settings: dict, longest: int | None) -> Unigram:
    """XLM-R's own numbering: <s> <pad> </s> <unk>, then the pieces from the third on, and <mask> at the end.

        sentencepiece   <unk> <s> </s>   ,   .   ▁de   ...
                          0    1    2    3   4    5
        model             3    0    2    4   5    6         (1 is <pad>)
    """
    model = SentencePieceModel(path.read_bytes(), str(path))
    first = [(piece, kind) for piece, _, kind in model.pieces[:3]]
    if first != [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)] or model.byte_fallback or model.is_bpe:
        raise UserError(f"{path}: not a unigram model that begins with <unk>, <s>, </s> as XLM-R's does; XLM-R's numbering does not fit it")
    count = len(model.pieces)
    return Unigram(model, str(path), id_of=[3, 0, 2, *range(4, count + 1)], cls_id=0, sep_id=2, pad_id=1, size=count + 2, max_length=longest)


def _open_vocabulary(path: Path, settings: dict, longest: int | None) -> WordPiece:
    """BERT's first format: a piece a line, numbered from 0."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    lines = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocabulary: dict[str, int] = {}
    for number, piece in enumerate(lines, 1):
        if not piece or vocabulary.setdefault(piece, number - 1) != number - 1:
            raise UserError(f"{path}:{number}: {'an empty piece' if not piece else f'{piece!r} is there twice'}; a piece a line is expected")
    lower = settings.get("do_lower_case")
    if lower is None:
        if any(piece != piece.lower() for piece in vocabulary if not re.fullmatch(r"\[.*\]|<.*>", piece)):
            raise UserError(f"{path}: has capital letters, and no tokenizer_config.json beside it says do_lower_case; write it with "
                            '{"do_lower_case": false} (cased models) or true')
        lower = True
    return _wordpiece(path, vocabulary, settings, longest, lower=lower, apart=settings.get("tokenize_chinese_chars", True),
                      accents=settings.get("strip_accents"))


def _wordpiece(path: Path, vocabulary: dict[str, int], settings: dict, longest: int | None, *, lower: Any, accents: Any, apart: Any,
               unknown: Any = "[UNK]", **more: Any) -> WordPiece:
    for name, value in (("lower case", lower), ("Chinese characters apart", apart), ("accents", lower if accents is None else accents)):
        if not isinstance(value, bool):
            raise UserError(f"{path}: its setting for {name} is {value!r}, expected true or false")
    ids = {}
    for role, usual in (("unk", unknown), ("cls", "[CLS]"), ("sep", "[SEP]"), ("pad", "[PAD]")):
        entry = settings.get(f"{role}_token", usual)
        piece = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(piece, str) or piece not in vocabulary:
            raise UserError(f"{path}: no piece {piece!r} ({role}); a BERT vocabulary holds [UNK], [CLS], [SEP] and [PAD], or "
                            "tokenizer_config.json names others")
        ids[role] = piece
    # accents go with the case unless the folder says otherwise, as in BERT's own code
    return WordPiece(vocabulary, unknown=ids["unk"], cls_id=vocabulary[ids["cls"]], sep_id=vocabulary[ids["sep"]], pad_id=vocabulary[ids["pad"]],
                     max_length=longest, apart=apart, lower=lower, accents=lower if accents is None else accents, **more)


def _open_json(path: Path, settings: dict, longest: int | None) -> WordPiece | Unigram:
    file = read_json(path)
    model = file.get("model") if isinstance(file, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == "WordPiece":
        return _open_json_wordpiece(path, file, model, settings, longest)
    if kind == "Unigram":
        return _open_json_unigram(path, file, model, settings, longest)
    raise UserError(f"{path}: its model is {str(kind)[:40]}; encoders with WordPiece or Unigram are supported")


def _added(path: Path, file: dict) -> dict[str, int]:
    """The marks of a tokenizer.json; a word that was added to be found in text is refused."""
    marks = {}
    listed = file.get("added_tokens") or []
    if not isinstance(listed, list):
        raise UserError(f"{path}: added_tokens is {type(listed).__name__}, expected a list")
    for entry in listed:
        text, index = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or not text or not isinstance(index, int) or not 0 <= index < MAX_PIECES:
            raise UserError(f"{path}: the added token {str(entry)[:100]} has no text or no id")
        if not entry.get("special"):
            raise UserError(f"{path}: the added token {text[:60]!r} is no special one; words added to an encoder's tokenizer are not supported")
        marks[text] = index
    return marks


def _open_json_wordpiece(path: Path, file: dict, model: dict, settings: dict, longest: int | None) -> WordPiece:
    vocabulary, normalizer, words = model.get("vocab"), file.get("normalizer"), file.get("pre_tokenizer")
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_PIECES \
            or not all(isinstance(index, int) and not isinstance(index, bool) and 0 <= index < MAX_PIECES for index in vocabulary.values()):
        raise UserError(f"{path}: model.vocab must map pieces to ids below {MAX_PIECES:,}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise UserError(f"{path}: two pieces of model.vocab have the same id")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer" or not isinstance(words, dict) or words.get("type") != "BertPreTokenizer":
        raise UserError(f"{path}: only BertNormalizer with BertPreTokenizer is supported before WordPiece")
    for text, index in _added(path, file).items():
        if vocabulary.get(text, index) != index:
            raise UserError(f"{path}: the added token {text!r} has the id {index}, but the vocabulary has it at {vocabulary[text]}")
        vocabulary = vocabulary | {text: index}
    lower = normalizer.get("lowercase", True)
    if isinstance(settings.get("do_lower_case"), bool) and settings["do_lower_case"] != lower:
        raise UserError(f"{path}: lowercase = {lower}, but do_lower_case = {settings['do_lower_case']} in tokenizer_config.json; make the two agree")
    prefix, most = model.get("continuing_subword_prefix", "##"), model.get("max_input_chars_per_word", 100)
    if not isinstance(prefix, str) or not isinstance(most, int):
        raise UserError(f"{path}: continuing_subword_prefix = {prefix!r}, max_input_chars_per_word = {most!r}: expected a text and a number")
    return _wordpiece(path, vocabulary, settings, longest, lower=lower, accents=normalizer.get("strip_accents"),
                      apart=normalizer.get("handle_chinese_chars", True), unknown=model.get("unk_token", "[UNK]"), prefix=prefix,
                      longest_word=most, clean=normalizer.get("clean_text", True) is True)


def _open_json_unigram(path: Path, file: dict, model: dict, settings: dict, longest: int | None) -> Unigram:
    """The same model without its sentencepiece file: its pieces, scores and character map make that file again."""
    vocabulary, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocabulary, list) or not 0 < len(vocabulary) <= MAX_PIECES or not all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], int | float) and abs(entry[1]) < 1e30
            for entry in vocabulary):
        raise UserError(f"{path}: model.vocab must be a list of pieces with their scores")
    if model.get("byte_fallback") or not isinstance(unknown, int) or not 0 <= unknown < len(vocabulary):
        raise UserError(f"{path}: a Unigram model with an unk_id and without byte fallback is expected")
    marks = _added(path, file)
    for text, index in marks.items():
        if index > len(vocabulary) or (index < len(vocabulary) and vocabulary[index][0] != text):
            raise UserError(f"{path}: the added token {text!r} has the id {index} of another piece")
    charsmap = _charsmap(path, file.get("normalizer"))
    _check_spaces(path, file.get("pre_tokenizer"))
    entries = [(1, build_message((1, piece.encode()), (2, float(score)), (3, UNKNOWN if index == unknown else CONTROL if piece in marks else NORMAL)))
               for index, (piece, score) in enumerate(vocabulary)]
    proto = build_message(*entries, (2, build_message((3, 1))), (3, build_message((2, charsmap), (3, 1), (4, 1), (5, 1))))
    parsed = SentencePieceModel(proto, str(path))
    names = {role: entry.get("content") if isinstance(entry := settings.get(f"{role}_token", usual), dict) else entry
             for role, usual in (("cls", "<s>"), ("sep", "</s>"), ("pad", "<pad>"))}
    for role, text in names.items():
        if not isinstance(text, str) or text not in marks:
            raise UserError(f"{path}: no added token {text!r} ({role})")
    return Unigram(parsed, str(path), id_of=list(range(len(vocabulary))), cls_id=marks[names["cls"]], sep_id=marks[names["sep"]],
                   pad_id=marks[names["pad"]], size=max(len(vocabulary), max(marks.values()) + 1), max_length=longest)


def _charsmap(path: Path, normalizer: Any) -> bytes:
    """The compiled character map of a normaliser: Precompiled, alone or before a step that takes away repeated spaces."""
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" else [normalizer]
    charsmap = b""
    for step in steps if isinstance(steps, list) else [steps]:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Precompiled" and not charsmap:
            try:
                charsmap = base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise UserError(f"{path}: precompiled_charsmap is not base64") from None
        elif kind == "Strip" or (kind == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", "▁")):
            pass  # sentencepiece does so by itself
        elif step is not None:
            raise UserError(f"{path}: the normaliser step {str(step)[:100]} is not supported before a Unigram model")
    return charsmap


def _check_spaces(path: Path, step: Any) -> None:
    """Only words that begin with U+2581, the first one too, are what sentencepiece makes."""
    steps = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    kinds = [(one.get("type"), one.get("replacement", "▁"), one.get("prepend_scheme", "always"), one.get("add_prefix_space", True))
             for one in steps if isinstance(one, dict)] if isinstance(steps, list) else []
    if [kind for kind in kinds if kind[0] != "WhitespaceSplit"] != [("Metaspace", "▁", "always", True)]:
        raise UserError(f"{path}: the pre-tokeniser {str(step)[:120]} is not supported before a Unigram model; Metaspace with a space "
                        "before the first word is expected")
