"""Text <-> token ids behind one small interface, whatever file the tokenizer came in.

    tokenizer = load_tokenizer("models/some-model")
    tokenizer.encode("Fièvre et toux", bos=True)   ->  [1, 383, 29948, ...]
    tokenizer.decode(ids)                          ->  "Fièvre et toux"

In: a model folder or one file of it. Out: a `Tokenizer`. Order: files, the interface, loading, training,
command line; the encoding itself is in `mmed/bpe.py`. Nothing in a folder is run: JSON, protobuf and base64 are parsed, no more.

Rules that hold for every kind
- Text that looks like a special token ("</s>", "<|eot_id|>") is ordinary text to `encode`; ids of special tokens come from
  `tokenizer.special["<|eot_id|>"]`, or from `bos=True` and `eos=True`, which add exactly one each.
- Lone surrogates, which UTF-8 cannot carry, become U+FFFD; a surrogate pair becomes its character.
- `fingerprint` is the same for two files exactly when they give the same ids by the same rules.

    python -m mmed.tokenizer train corpus/*.jsonl.gz --out tokenizer --vocab_size 16000
    python -m mmed.tokenizer show tokenizer --text "Fièvre et toux"
    python -m mmed.tokenizer show tokenizer --documents corpus/*.jsonl.gz      tokens per character by language

References: sentencepiece's sentencepiece_model.proto; Kudo and Richardson 2018 (sentencepiece).
"""
from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmed.bpe import (
    BLOOM,
    BYTE,
    CHUNK,
    CONTROL,
    GPT2,
    LLAMA3,
    MAX_PIECES,
    NORMAL,
    PATTERNS,
    SPACE,
    UNKNOWN,
    ByteLevelCore,
    JsonPiecesCore,
    SentencePieceCore,
    SentencePieceModel,
    byte_alphabet,
    is_utf8,
    merge_ranks,
    one_line,
)
from mmed.errors import Parser, UsageError, UserError, main_guard
from mmed.files import atomic_write, read_json, read_jsonl

MAX_FILE_BYTES = 256 << 20  # the largest published tokenizer file is about 35 MB
# Ends of a turn in the formats of mmed/generate.py; a model that knows one of these stops there.
END_NAMES = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>", "<eoa>")


# --------------------------------------------------------------------------------------------------------------------
# Files


def _read_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError(f"{path}: {size:,} bytes is too large for a tokenizer (limit {MAX_FILE_BYTES:,})")
    return path.read_bytes()


def clean_text(text: str) -> str:
    r"""Replace what UTF-8 cannot carry: a lone surrogate by U+FFFD, a surrogate pair by its character.

    >>> clean_text("a\ud800b"), clean_text("\ud83d\ude00")
    ('a\ufffdb', '😀')
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --------------------------------------------------------------------------------------------------------------------
# The interface


class Tokenizer:
    """Text <-> ids; made by `load_tokenizer`.

    `special` maps the text of each special token to its id. `end_ids` are the ids that end a generated text. `files` are
    the files a saved model needs beside its weights. `bos_id`, `eos_id`, `pad_id` and `unk_id` are None where there is none.
    """

    def __init__(self, core, *, special: dict[str, int], added: dict[str, int], bos_id: int | None, eos_id: int | None,
                 pad_id: int | None, unk_id: int | None, end_ids: Iterable[int], files: list[Path]):
        self.core, self.kind, self.special, self.added, self.files = core, core.kind, special, added, files
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos_id, eos_id, pad_id, unk_id
        self.end_ids = tuple(sorted({index for index in end_ids if index is not None}))
        self.vocab_size = max([core.size - 1, *special.values(), *added.values()]) + 1
        self._text_of = {index: text for text, index in (*added.items(), *special.items())}
        self._special_ids = frozenset(special.values())
        # Added tokens are found first, the longest first; those in `core.late` only after the text is normalised. Special ones
        # take their place in that search, so that the others are found where the reference finds them, but stay text.
        late = core.late & added.keys()
        early = sorted((added.keys() | special.keys()) - late, key=lambda text: (-len(text), text))
        self._early = re.compile("|".join(map(re.escape, early))) if added.keys() - late else None
        self._late = re.compile("|".join(map(re.escape, sorted(late, key=lambda text: (-len(text), text))))) if late else None
        facts = [self.kind, core.facts(), sorted(special.items()), sorted(added.items()), sorted(late), bos_id, eos_id]
        self.fingerprint = hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()

    def encode(self, text: str, bos: bool = False, eos: bool = False, *, continued: bool = False) -> list[int]:
        """Ids of ordinary text. `continued`: the text goes on after other tokens, so no space is put before its first word."""
        if self._early is None and self._late is None and len(text) <= CHUNK:
            ids = self.core.encode(self.core.normalize(clean_text(text)), continued)
        else:
            ids = list(itertools.chain.from_iterable(self.encode_chunks(text, continued=continued)))
        if bos:
            ids.insert(0, self._required("bos"))
        if eos:
            ids.append(self._required("eos"))
        return ids

    def encode_chunks(self, text: str, *, continued: bool = False) -> Iterator[list[int]]:
        """The ids of `encode` in parts: for texts whose ids should not all be in memory. Cuts are where no piece can be."""
        for part, index in self._parts(clean_text(text)):
            start = 0
            while start < len(part):
                stop = len(part) if len(part) - start <= CHUNK else self.core.cut(part, start + CHUNK)
                yield self.core.encode(part[start:stop], continued or start > 0)
                start = stop
            if index is not None:
                yield [index]
                continued = continued or self.core.prefix_once

    def _parts(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text, normalised and cut at its added tokens: (text before one, its id) ... (text after the last, None)."""
        for raw, index in self._split(self._early, text):
            parts = list(self._split(self._late, self.core.normalize(raw)))
            yield from parts[:-1]
            yield parts[-1][0], index

    def _split(self, pattern: re.Pattern | None, text: str) -> Iterator[tuple[str, int | None]]:
        done = 0
        for match in pattern.finditer(text) if pattern else ():
            if (index := self.added.get(match[0])) is not None:
                yield text[done : match.start()], index
                done = match.end()
        yield text[done:], None

    def encode_batch(self, texts: Iterable[str], bos: bool = False, eos: bool = False) -> list[list[int]]:
        return [self.encode(text, bos, eos) for text in texts]

    def decode(self, ids: Iterable[int], *, special: bool = False, continued: bool = False) -> str:
        """Text of ids, special tokens left out (or written as their text); bytes that are not UTF-8 become U+FFFD."""
        parts: list[str] = []
        run: list[int] = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size} ids")
            text = self._text_of.get(index)
            if text is None:
                run.append(index)
            elif special or index not in self._special_ids:
                parts += [self.core.decode(run, continued or bool(parts)), text]
                run = []
        parts.append(self.core.decode(run, continued or bool(parts)))
        return "".join(parts)

    def piece(self, index: int) -> str:
        """One id as people see it in a table of pieces."""
        return self._text_of.get(index) or self.core.piece(index)

    def _required(self, name: str) -> int:
        index = getattr(self, f"{name}_id")
        if index is None:
            raise UserError(f"this tokenizer has no {name} token; call encode without {name}=True")
        return index


# --------------------------------------------------------------------------------------------------------------------
# Loading


CARRIED = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
           "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Open the tokenizer of a model folder, or one tokenizer file of it; what cannot give exactly the right ids is refused.

    `tokenizer.model` goes before `tokenizer.json`: where both are there, it is what the other was made from.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: no tokenizer.model or tokenizer.json in this folder")
        path = found[0]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    settings = _Settings(path.parent)
    data = _read_bytes(path)
    if path.suffix == ".json":
        core, special, added, ids = _open_json(read_json(path), settings, str(path))
    elif re.match(rb"\s*[A-Za-z0-9+/]+=* +[0-9]+\s", data[:4096]):
        core, special, added, ids = _open_tiktoken(data, settings, str(path))
    else:
        core, special, added, ids = _open_sentencepiece(data, settings, str(path))
    known = {**added, **special}
    for name in ("bos", "eos", "pad", "unk"):
        ids[name] = settings.token_id(name, known, ids.get(name), core.size)
    # an unknown piece stands for text that could not be spelt: it is no mark
    special = {text: index for text, index in special.items() if index != ids["unk"] or index in (ids["bos"], ids["eos"], ids["pad"])}
    files = [path] + [file for name in CARRIED if (file := path.parent / name).is_file() and file != path]
    return Tokenizer(core, special=special, added=added, files=files, **{f"{name}_id": index for name, index in ids.items()},
                     end_ids=[ids["eos"], *settings.end_ids, *(known.get(name) for name in END_NAMES)])


class _Settings:
    """What the JSON files beside a tokenizer say about its special and added tokens."""

    def __init__(self, folder: Path):
        def read(name: str) -> dict:
            file = folder / name
            if not file.is_file():
                return {}
            _read_bytes(file)
            value = read_json(file)
            if not isinstance(value, dict):
                raise UserError(f"{file}: expected a JSON object, got {type(value).__name__}")
            return value

        self.folder = folder
        self.config, self.map = read("tokenizer_config.json"), read("special_tokens_map.json")
        self.models = [read("generation_config.json"), read("config.json")]
        self.added: dict[str, tuple[int, dict]] = {}
        for text, index in read("added_tokens.json").items():
            self._add(text, index, {}, "added_tokens.json")
        decoder = self.config.get("added_tokens_decoder")
        for index, entry in (decoder.items() if isinstance(decoder, dict) else ()):
            if not isinstance(entry, dict) or not str(index).isdecimal():
                raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder: {index!r} is not an id with its token")
            self._add(entry.get("content"), int(index), entry, "tokenizer_config.json")
        named = [entry for source in (self.config, self.map) for key, entry in source.items() if key.endswith("_token")]
        more = [source.get("additional_special_tokens") or [] for source in (self.config, self.map)]
        self.named = {_content(entry) for entry in itertools.chain(named, *(entries for entries in more if isinstance(entries, list)))}
        self.end_ids: list[int] = []
        ends = self.models[0].get("eos_token_id")
        for index in ends if isinstance(ends, list) else [ends]:
            if index is not None:
                if not _is_id(index):
                    raise UserError(f"{folder / 'generation_config.json'}: eos_token_id {index!r} is not a token id")
                self.end_ids.append(index)

    def _add(self, text: Any, index: Any, entry: dict, file: str) -> None:
        if not isinstance(text, str) or not text or not _is_id(index):
            raise UserError(f"{self.folder / file}: added token {text!r} with the id {index!r}: expected a text and an id")
        self.added[text] = (index, entry)

    def split_added(self, entries: dict[str, tuple[int, dict]], name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Added tokens as (special, found in ordinary text)."""
        special, added = {}, {}
        for text, (index, entry) in entries.items():
            # Without a flag (added_tokens.json), what is named as special or looks like a mark, <...> or [...], is special.
            mark = text in self.named or re.fullmatch(r"<.*>|\[.*\]", text, re.DOTALL) is not None
            if entry.get("special", mark) or text in self.named:
                special[text] = index
                continue
            for rule in ("lstrip", "rstrip", "single_word"):
                if entry.get(rule):
                    raise UserError(f"{name}: the added token {text!r} has {rule}=true, which is not supported")
            added[text] = index
        by_id: dict[int, str] = {}
        for text, index in (*special.items(), *added.items()):
            if by_id.setdefault(index, text) != text:
                raise UserError(f"{name}: the added tokens {by_id[index]!r} and {text!r} have the same id {index}")
        return special, added

    def token_id(self, role: str, known: dict[str, int], default: int | None, size: int) -> int | None:
        """Id of the bos, eos, pad or unk token: by the tokenizer's settings, else its own file, else the model's settings."""
        for source in (self.config, self.map):
            text = _content(source.get(f"{role}_token"))
            if text in known:
                return known[text]
        if default is not None or f"{role}_token" in self.config:
            return default  # null in tokenizer_config.json: there is none
        for source in self.models:
            index = source.get(f"{role}_token_id")
            index = index[0] if isinstance(index, list) and index else index
            if _is_id(index) and (index < size or index in known.values()):
                return index
        return None


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_PIECES


def _open_sentencepiece(data: bytes, settings: _Settings, name: str):
    model = SentencePieceModel(data, name)
    special = {piece: index for index, (piece, _, kind) in enumerate(model.pieces) if kind in (CONTROL, UNKNOWN)}
    more, added = settings.split_added(settings.added, name)
    pieces = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    for text, index in (*more.items(), *added.items()):
        if pieces.get(text, index) != index:
            raise UserError(f"{name}: the added token {text!r} has the id {index}, but the model has it at {pieces[text]}")
    # a piece that an added token renames ([UNUSED_TOKEN_145] is <|im_end|> in InternLM 2) goes by its new name
    renamed = {*more.values(), *added.values()}
    special = {text: index for text, index in special.items() if index not in renamed} | more
    core = SentencePieceCore(model, name, special.values())
    # a user-defined symbol that is listed again as an added token is already found by sentencepiece
    added = {text: index for text, index in added.items() if pieces.get(text) != index}
    known = {role: getattr(core.processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
    return core, special, added, {role: index if index >= 0 else None for role, index in known.items()}


def _open_tiktoken(data: bytes, settings: _Settings, name: str):
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True)
            index = int(rank)
        except ValueError as error:
            raise UserError(f"{name}:{number}: expected a token in base64 and its rank ({error})") from None
        if not token or token in ranks:
            raise UserError(f"{name}:{number}: the token {token!r} is {'there twice' if token else 'empty'}")
        if index != len(ranks):
            raise UserError(f"{name}:{number}: rank {index}, expected {len(ranks)}; ranks must count up without gaps")
        ranks[token] = index
    core = ByteLevelCore(ranks, ranks, LLAMA3, name)
    special, added = settings.split_added(settings.added, name)
    if not special:  # the 256 of Llama 3's own code, after the ordinary ones
        reserved = iter(range(256))
        names = ["<|begin_of_text|>", "<|end_of_text|>", 4, "<|start_header_id|>", "<|end_header_id|>", 1, "<|eot_id|>", 246]
        for entry in names:
            for text in [entry] if isinstance(entry, str) else [f"<|reserved_special_token_{next(reserved)}|>" for _ in range(entry)]:
                special[text] = len(ranks) + len(special)
    for text, index in (*special.items(), *added.items()):
        if index < len(ranks) and core.bytes_of[index] != text.encode():
            raise UserError(f"{name}: the added token {text!r} has the id {index} of another piece")
    return core, special, added, {"bos": special.get("<|begin_of_text|>"), "eos": special.get("<|end_of_text|>")}


def _open_json(file: Any, settings: _Settings, name: str):
    """A tokenizer.json with a BPE model: byte-level, or sentencepiece-style."""
    def refuse(reason: str) -> UserError:
        return UserError(f"{name}: {reason}")

    model = file.get("model") if isinstance(file, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        kind = model.get("type") if isinstance(model, dict) else None
        raise refuse(f"its model is {kind or 'missing'}; only BPE, with `vocab` and `merges`, is supported")
    if model.get("type", "BPE") != "BPE":
        raise refuse(f"its model is {model['type']}; only BPE is supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise refuse(f"model.{key}={model[key]!r} is not supported")
    vocabulary = model["vocab"]
    if len(vocabulary) > MAX_PIECES or not all(token and _is_id(index) for token, index in vocabulary.items()):
        raise refuse(f"model.vocab must map at most {MAX_PIECES:,} non-empty pieces to ids")
    if not is_utf8("".join(vocabulary)):
        raise refuse("a piece of model.vocab holds half a surrogate pair, which no text in UTF-8 has")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise refuse("two pieces of model.vocab have the same id")
    merges = []
    for index, merge in enumerate(model["merges"]):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise refuse(f"model.merges[{index}] is not a pair of pieces")
        merges.append((parts[0], parts[1]))
    entries = dict(settings.added)
    if not isinstance(listed := file.get("added_tokens") or [], list):
        raise refuse(f"added_tokens is {type(listed).__name__}, expected a list")
    for entry in listed:
        text, index = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or not text or not _is_id(index):
            raise refuse(f"the added token {entry!r} has no text or no id")
        if entries.get(text, (index,))[0] != index:
            raise refuse(f"the added token {text!r} has the id {index} here and {entries[text][0]} in another file of the folder")
        entries[text] = (index, entry)
    special, added = settings.split_added(entries, name)
    steps = _steps(file.get("pre_tokenizer"), "pretokenizers")
    open_core = _json_byte_level if any(step.get("type") == "ByteLevel" for step in steps) else _json_pieces
    core = open_core(file, vocabulary, merges, {**special, **added}, refuse)
    late = {text for text in added if entries[text][1].get("normalized")}
    if isinstance(core, JsonPiecesCore) and late and _steps(file.get("normalizer"), "normalizers"):
        raise refuse(f"the added token {min(late)!r} is looked for in normalised text (normalized=true), which is not supported")
    if any(core.normalize(text) != text for text in late):
        raise refuse(f"the added token {next(text for text in late if core.normalize(text) != text)!r} is not in the normal form of its own text")
    if isinstance(core, ByteLevelCore) and core.unicode_form:
        core.late = frozenset(late)
    unknown = model.get("unk_token")
    return core, special, added, {"unk": vocabulary.get(unknown) if isinstance(unknown, str) else None}


def _steps(step: Any, key: str) -> list[dict]:
    """The steps of a normaliser, pre-tokeniser or decoder: those of a Sequence, or the one; what is no step is one that nobody knows."""
    if step is None:
        return []
    if not isinstance(step, dict):
        return [{"type": str(step)[:40]}]
    inside = step.get(key) if step.get("type") == "Sequence" else None
    return [one for entry in inside for one in _steps(entry, key)] if isinstance(inside, list) else [step]


def _json_byte_level(file: dict, vocabulary: dict[str, int], merges: list[tuple[str, str]], marks: dict[str, int], refuse):
    steps = _steps(file["pre_tokenizer"], "pretokenizers")
    types = [step.get("type") for step in steps]
    last = steps[-1]
    if types == ["ByteLevel"] and last.get("use_regex", True):
        pattern = GPT2
    elif types == ["Split", "ByteLevel"] and not last.get("use_regex", True) and not last.get("add_prefix_space"):
        split = steps[0]
        pattern = split["pattern"].get("Regex") if isinstance(split.get("pattern"), dict) else None
        whole = split.get("behavior") == "Isolated" or (split.get("behavior") == "Removed" and split.get("invert") and pattern != BLOOM)
        if not whole or (split.get("behavior") == "Isolated" and split.get("invert")):
            raise refuse(f"the pre-tokeniser's Split with behavior={split.get('behavior')!r} is not supported")
    else:
        raise refuse(f"the pre-tokeniser {types} is not supported")
    if pattern not in PATTERNS:
        raise refuse(f"the pattern {pattern!r} is none of those known to cut the same words here (GPT-2, Llama 3, Qwen, BLOOM)")
    forms = [step.get("type") for step in _steps(file.get("normalizer"), "normalizers")]
    if len(forms) > 1 or (forms and forms[0] not in ("NFC", "NFD", "NFKC", "NFKD")):
        raise refuse(f"the normaliser {forms} is not supported")
    alphabet = byte_alphabet()
    plain = {token: index for token, index in vocabulary.items() if token not in marks and alphabet.keys() >= set(token)}
    ranks = merge_ranks(plain, merges, refuse("").args[0][:-2], bool(file["model"].get("ignore_merges")))
    known = {token: index for token, index in plain.items() if len(token) == 1 or token in ranks}
    spell = {token: bytes(alphabet[character] for character in token) for token in known}
    order = sorted(ranks, key=ranks.get)
    if all(known[low] < known[high] for low, high in itertools.pairwise(order)):
        table = {spell[token]: index for token, index in known.items()}
    else:  # single bytes are never the result of a join: any ranks do
        table = {spell[token]: place for place, token in enumerate([token for token in known if len(token) == 1] + order)}
    ids = {spell[token]: index for token, index in known.items()}
    core = ByteLevelCore(table, ids, pattern, refuse("").args[0][:-2],
                         prefix_space=bool(types == ["ByteLevel"] and last.get("add_prefix_space", True)),
                         unicode_form=forms[0] if forms else None)
    for token, index in vocabulary.items():  # never made from text, but a model may still write them
        core.bytes_of.setdefault(index, bytes(alphabet[c] for c in token) if alphabet.keys() >= set(token) else token.encode())
        core.size = max(core.size, index + 1)
    return core


def _json_pieces(file: dict, vocabulary: dict[str, int], merges: list[tuple[str, str]], marks: dict[str, int], refuse):
    model = file["model"]
    spaces, prefix, split = False, "", False
    for step in _steps(file.get("normalizer"), "normalizers"):
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Prepend" and step.get("prepend") == SPACE and not spaces:
            prefix = "prepend"
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == SPACE:
            spaces = True
        else:
            raise refuse(f"the normaliser step {json.dumps(step)[:200]} is not supported")
    for step in _steps(file.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "Metaspace" and step.get("replacement") == SPACE and not prefix:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            spaces, split, prefix = True, bool(step.get("split", True)), "" if scheme == "never" else scheme
        elif not (kind == "Split" and step.get("pattern") == {"String": " "} and spaces):  # no space is left to cut at
            raise refuse(f"the pre-tokeniser step {json.dumps(step)[:200]} is not supported")
    if model.get("ignore_merges"):
        raise refuse("ignore_merges=true is supported for byte-level BPE only")
    spelt = {f"<0x{byte:02X}>" for byte in range(256)}
    fallback = bool(model.get("byte_fallback"))
    if fallback and not spelt <= vocabulary.keys():
        raise refuse("byte fallback is on, but the 256 byte pieces are not all there")
    unknown = model.get("unk_token")
    if not fallback and not (unknown in vocabulary and model.get("fuse_unk")):
        raise refuse("without byte fallback, only a file with an unk_token and fuse_unk=true is supported")
    ranks = merge_ranks(vocabulary, merges, refuse("").args[0][:-2])
    size = max(vocabulary.values()) + 1
    if size > MAX_PIECES or size > 2 * len(vocabulary) + 1000:
        raise refuse(f"the ids of model.vocab have too many gaps ({len(vocabulary):,} pieces, largest id {size - 1:,})")
    pieces = [(f"<gap {index}>", 0.0, CONTROL) for index in range(size)]
    for token, index in vocabulary.items():
        kind = (UNKNOWN if token == unknown else BYTE if fallback and token in spelt
                else NORMAL if token in ranks or len(token) == 1 else CONTROL)  # what no merge makes is never found
        pieces[index] = (token, -float(ranks.get(token, 0)), kind)
    if unknown not in vocabulary:
        pieces.append(("<unk>" if "<unk>" not in vocabulary else "<no such piece>", 0.0, UNKNOWN))
    return JsonPiecesCore(pieces, refuse("").args[0][:-2], spaces=spaces, prefix=prefix, split=split)


# --------------------------------------------------------------------------------------------------------------------
# Training


def read_texts(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (text, language) of a document file: .jsonl or .jsonl.gz with a `text` field, or .txt, one document.

    The language is the field `language` (or `lang`), "?" without one.
    """
    path = Path(path)
    if path.suffix == ".txt":
        try:
            yield path.read_text(encoding="utf-8-sig"), "?"
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: expected a .jsonl, .jsonl.gz or .txt file")
    for number, value in _gzip_jsonl(path) if path.suffix == ".gz" else read_jsonl(path):
        if not isinstance(value.get("text"), str):
            raise UserError(f"{path}:{number}: a document needs a field 'text' that is a string")
        yield value["text"], str(value.get("language") or value.get("lang") or "?")


def _gzip_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise UserError(f"{path}:{number}: expected one JSON object a line, got {type(value).__name__}")
                    yield number, value
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not valid JSON ({error}); every line must be one JSON object") from None
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}:{number + 1}: cannot be read ({error})") from None


SENTENCE_BYTES = 4096  # the trainer leaves out longer sentences without a word, so none is longer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut documents into the lines the trainer counts; U+2585, which it reserves, becomes a space."""
    for text in texts:
        for line in clean_text(text).replace("\u2585", " ").split("\n"):
            for start in range(0, len(line), SENTENCE_BYTES // 4):  # a character has at most 4 bytes
                if part := line[start : start + SENTENCE_BYTES // 4].strip("\r"):
                    yield part


def train_sentencepiece(
    texts: Iterable[str] | str | Path,
    folder: str | Path,
    vocab_size: int,
    *,
    model_type: str = "bpe",  # or "unigram"
    normalizer: str = "identity",  # or "nmt_nfkc"
    character_coverage: float = 0.9995,  # rarer characters are spelt in bytes
    split_digits: bool = True,  # a piece a digit, as in Llama: doses and laboratory values keep their place values
    user_defined_symbols: Iterable[str] = (),
) -> Tokenizer:
    """Train a tokenizer on texts (or the files named) and write `folder/tokenizer.model`; the same text gives the same file.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then the user-defined symbols, the 256 bytes and the learnt pieces.
    The normaliser is the identity, as in the bases of MMedLM: NFKC turns 10⁵ into 105 and ㎍ into μg, which in a medical
    text is another number or another word, and decode(encode(text)) would no longer be the text.
    """
    import sentencepiece

    if isinstance(texts, str | Path):
        texts = (text for text, _ in read_texts(texts))
    elif isinstance(texts, list | tuple) and texts and all(isinstance(item, Path) for item in texts):
        texts = (text for path in texts for text, _ in read_texts(path))
    symbols = list(user_defined_symbols)
    for symbol in symbols:
        if not symbol or any(map(str.isspace, symbol)):
            raise UserError(f"user-defined symbol {symbol!r}: it is empty or holds a space; write spaces as {SPACE!r}")
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise UserError("no text to train a tokenizer on: the files hold no non-empty document")

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences), model_writer=out, vocab_size=vocab_size, model_type=model_type,
            byte_fallback=True, normalization_rule_name=normalizer, remove_extra_whitespaces=normalizer != "identity",
            character_coverage=character_coverage, split_digits=split_digits, allow_whitespace_only_pieces=True,
            user_defined_symbols=symbols, max_sentence_length=SENTENCE_BYTES, minloglevel=2,
            unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1,  # threads change the order in which sums are rounded
        )
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"vocab_size={vocab_size}: sentencepiece refuses it: {one_line(error)}") from None
    path = Path(folder) / "tokenizer.model"
    with atomic_write(path, "wb") as file:
        file.write(out.getvalue())
    return load_tokenizer(path)


# --------------------------------------------------------------------------------------------------------------------
# Command line


def _train_command(options: argparse.Namespace) -> None:
    tokenizer = train_sentencepiece(
        _text_files(options.files), options.out, options.vocab_size, model_type=options.model_type,
        normalizer=options.normalizer, character_coverage=options.character_coverage,
        user_defined_symbols=_symbols(options))
    print(f"{tokenizer.files[0]}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint[:16]}")


def _text_files(names: list[str]) -> list[Path]:
    """The files named, and those in the folders named, in order."""
    paths: list[Path] = []
    for path in map(Path, names):
        inside = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".txt"))) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: a folder without .jsonl, .jsonl.gz or .txt files")
        paths += inside
    return paths


def _symbols(options: argparse.Namespace) -> list[str]:
    symbols = list(options.symbol)
    if options.symbols:
        listed = read_json(options.symbols)
        if not isinstance(listed, list) or not all(isinstance(symbol, str) for symbol in listed):
            raise UserError(f"{options.symbols}: expected a JSON list of texts")
        symbols += listed
    return symbols


def _show_command(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    print(f"{tokenizer.kind}, {tokenizer.vocab_size} ids, bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, "
          f"pad {tokenizer.pad_id}, end {list(tokenizer.end_ids)}, fingerprint {tokenizer.fingerprint[:16]}")
    for text in options.text:
        ids = tokenizer.encode(text)
        print(" | ".join(tokenizer.piece(index) for index in ids))
        print(*ids)
    counts: dict[str, list[int]] = {}
    for path in options.documents:
        for text, language in read_texts(path):
            count = counts.setdefault(language, [0, 0, 0, 0])
            for place, value in enumerate((1, len(text), len(clean_text(text).encode()), len(tokenizer.encode(text)))):
                count[place] += value
    if counts:
        print(f"{'language':10}{'documents':>12}{'characters':>14}{'tokens':>14}{'tokens/char':>13}{'bytes/token':>13}")
    for language, (documents, characters, size, tokens) in sorted(counts.items()):
        print(f"{language:10}{documents:12,}{characters:14,}{tokens:14,}{tokens / max(characters, 1):13.3f}{size / max(tokens, 1):13.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m mmed.tokenizer", description="Train a tokenizer, or look into one.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a sentencepiece tokenizer on documents")
    train.add_argument("files", nargs="+", help="documents: .jsonl, .jsonl.gz (field `text`) or .txt, or folders of them")
    train.add_argument("--out", required=True, help="folder for tokenizer.model")
    train.add_argument("--vocab_size", type=int, required=True, help="number of ids, the 260 special and byte ones included")
    train.add_argument("--model_type", choices=("bpe", "unigram"), default="bpe")
    train.add_argument("--normalizer", choices=("identity", "nmt_nfkc"), default="identity")
    train.add_argument("--character_coverage", type=float, default=0.9995)
    train.add_argument("--symbol", action="append", default=[], help="a text that is always one piece; may be repeated")
    train.add_argument("--symbols", metavar="FILE.json", help="a JSON list of such texts; spaces are written \u2581")
    show = commands.add_parser("show", help="pieces and ids of a text; tokens per character by language")
    show.add_argument("tokenizer", help="model folder or tokenizer file")
    show.add_argument("--text", action="append", default=[])
    show.add_argument("--documents", nargs="+", default=[], help="documents to count tokens of, by language")
    options = parser.parse_args(arguments)
    if options.command == "train" and not 261 <= options.vocab_size <= MAX_PIECES:
        raise UsageError(f"--vocab_size={options.vocab_size}: expected 261 to {MAX_PIECES}")
    (_train_command if options.command == "train" else _show_command)(options)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    main_guard(main)
