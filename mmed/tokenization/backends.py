"""One tokenizer file -> the backend that encodes as its reference does, with its special and added tokens."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmed.tokenization.byte_level import llama3_special_tokens, open_byte_level, open_tiktoken
from mmed.tokenization.hub import HubBackend, added_token
from mmed.tokenization.sentencepiece_model import (
    CONTROL,
    UNKNOWN,
    SentencePieceBackend,
    SentencePieceModel,
)
from mmed.tokenization.special_tokens import TokenizerSettings
from mmed.utils.errors import UserError

# (backend, special tokens, tokens found in text, role -> id)
Opened = tuple[Any, dict[str, int], dict[str, int], dict[str, int | None]]


def open_file(path: Path, settings: TokenizerSettings) -> Opened:
    """Open a tokenizer.json, a sentencepiece model or a tiktoken file."""
    if path.suffix == ".json":
        return _open_json(settings, path)
    data = path.read_bytes()
    if not re.match(rb"\s*[A-Za-z0-9+/]+=* +[0-9]+\s", data[:4096]):
        return _open_sentencepiece(SentencePieceModel(data), settings, path)
    core = open_tiktoken(data)
    special, added = settings.split()
    special = special or llama3_special_tokens(core.size)
    ids = {"bos": special.get("<|begin_of_text|>"), "eos": special.get("<|end_of_text|>")}
    return core, special, added, ids


def _open_json(settings: TokenizerSettings, path: Path) -> Opened:
    """Plain byte-level BPE through tiktoken, everything else through Hugging Face tokenizers."""
    special, added = settings.split()
    entries = [added_token(index, text, False) | entry | {"content": text, "special": text in special}
               for text, (index, entry) in settings.added.items()]
    file = settings.json | {"added_tokens": sorted(entries, key=lambda entry: entry["id"])}
    core = open_byte_level(file) or HubBackend(file, str(path))
    vocabulary = file["model"]["vocab"]
    unknown = file["model"].get("unk_token")
    return core, special, added, {"unk": vocabulary.get(unknown) if isinstance(vocabulary, dict) else None}


def _open_sentencepiece(model: SentencePieceModel, settings: TokenizerSettings, path: Path) -> Opened:
    pieces = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    more, added = settings.split()
    for text, index in (more | added).items():
        if pieces.get(text, index) != index:
            raise UserError(f"{path}: the added token {text!r} has id {index} outside this file and "
                            f"{pieces[text]} in it")
    # a piece that an added token renames goes by its new name (InternLM 2: [UNUSED_TOKEN_145], <|im_end|>)
    renamed = {*more.values(), *added.values()}
    special = {piece: index for index, (piece, _, kind) in enumerate(model.pieces)
               if kind in (CONTROL, UNKNOWN) and index not in renamed} | more
    core = SentencePieceBackend(model, special.values())
    # the library finds the others
    added = {text: index for text, index in added.items() if text not in pieces}
    return core, special, added, core.roles()
