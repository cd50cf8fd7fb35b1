"""Tokenizer files -> what a `Tokenizer` is made of: a core (mmed/tokenization/bpe.py), special and added tokens, ids of bos, eos, pad, unk.

In: the bytes of `tokenizer.model` (sentencepiece, or tiktoken's lines) or the JSON of `tokenizer.json`, and the settings beside them. What
cannot give exactly the ids of its reference library is refused with the reason. Order: settings, sentencepiece, tiktoken, JSON.
"""
from __future__ import annotations

import base64
import itertools
import json
import re
from pathlib import Path
from typing import Any

from mmed.tokenization.bpe import (
    BLOOM,
    GPT2,
    LLAMA3,
    PATTERNS,
    SPACE,
    ByteLevelCore,
    JsonPiecesCore,
    SentencePieceCore,
    byte_alphabet,
    is_utf8,
    merge_ranks,
)
from mmed.tokenization.sentencepiece_model import BYTE, CONTROL, MAX_PIECES, NORMAL, UNKNOWN, SentencePieceModel
from mmed.utils.errors import UserError
from mmed.utils.files import read_json

MAX_FILE_BYTES = 256 << 20  # the largest published tokenizer file is about 35 MB


def read_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError(f"{path}: {size:,} bytes is too large for a tokenizer (limit {MAX_FILE_BYTES:,})")
    return path.read_bytes()


class Settings:
    """What the JSON files beside a tokenizer say about its special and added tokens."""

    def __init__(self, folder: Path):
        def read(name: str) -> dict:
            file = folder / name
            if not file.is_file():
                return {}
            read_bytes(file)
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

    def adds_bos(self, bos_id: int | None, known: dict[str, int]) -> bool:
        """Whether the reference puts BOS before a text: `add_bos_token` says so, else the post-processor of tokenizer.json.

        tokenizer.model and tiktoken files say nothing themselves; the models they belong to (Llama, InternLM, Gemma) add it.
        """
        if isinstance(said := self.config.get("add_bos_token"), bool):
            return said
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            return True
        whole = read_json(file)
        post = whole.get("post_processor") if isinstance(whole, dict) else None
        for step in _steps(post, "processors"):
            template = step.get("single") if step.get("type") == "TemplateProcessing" else None
            first = template[0] if isinstance(template, list) and template else None
            special = first.get("SpecialToken") if isinstance(first, dict) else None
            if isinstance(special, dict) and bos_id is not None and known.get(str(special.get("id"))) == bos_id:
                return True
        return False


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_PIECES


def open_sentencepiece(data: bytes, settings: Settings, name: str):
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


def open_tiktoken(data: bytes, settings: Settings, name: str):
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
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{name}: no piece for byte 0x{missing[0]:02X}; download the file again")
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


def open_json(file: Any, settings: Settings, name: str):
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
    if not isinstance(pattern, str) or pattern not in PATTERNS:
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
