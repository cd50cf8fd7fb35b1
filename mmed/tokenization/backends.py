"""One tokenizer file -> the backend that encodes as its reference does, with its special and added tokens."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmed.tokenization import sentencepiece_model as sp
from mmed.tokenization.byte_level import llama3_special_tokens, open_byte_level, open_tiktoken
from mmed.tokenization.hub import HubBackend
from mmed.tokenization.special_tokens import TokenizerSettings
from mmed.utils.errors import UserError

# (backend, special tokens, tokens found in text, role -> id)
Opened = tuple[Any, dict[str, int], dict[str, int], dict[str, int | None]]


def open_file(path: Path, settings: TokenizerSettings) -> Opened:
    """Open a tokenizer.json, a sentencepiece model or a tiktoken file."""
    special, added = settings.special, settings.ordinary
    if path.suffix == ".json":  # plain byte-level BPE through tiktoken, everything else by the reference
        entries = sorted(settings.added.values(), key=lambda entry: entry["id"])
        file = settings.json | {"added_tokens": entries}
        return open_byte_level(file) or HubBackend(file, str(path)), special, added, {}
    data = path.read_bytes()
    if not re.match(rb"\s*[A-Za-z0-9+/]+=* +[0-9]+\s", data[:4096]):
        return _open_sentencepiece(sp.SentencePieceModel(data), special, added, path)
    core = open_tiktoken(data)
    special = special or llama3_special_tokens(core.size)
    roles = {"bos": special.get("<|begin_of_text|>"), "eos": special.get("<|end_of_text|>")}
    return core, special, added, roles


def _open_sentencepiece(model: sp.SentencePieceModel, special: dict[str, int], added: dict[str, int],
                        path: Path) -> Opened:
    pieces = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    for text, index in (special | added).items():
        if pieces.get(text, index) != index:
            raise UserError(f"{path}: the added token {text!r} has id {index} outside this file and "
                            f"{pieces[text]} in it")
    # a piece that an added token renames goes by its new name (InternLM 2: [UNUSED_TOKEN_145], <|im_end|>)
    renamed = {*special.values(), *added.values()}
    special = {piece: index for index, (piece, _, kind) in enumerate(model.pieces)
               if kind in (sp.CONTROL, sp.UNKNOWN) and index not in renamed} | special
    added = {text: index for text, index in added.items() if text not in pieces}  # the library finds others
    core = sp.SentencePieceBackend(model, special.values())
    return core, special, added, core.roles
