"""Any `tokenizer.json` through Hugging Face tokenizers (extra `hub`): Llama 2's, Gemma's, unigram models."""
from __future__ import annotations

import hashlib
import json

from mmed.utils.errors import require_extra

PARTS = {"normalizer", "pre_tokenizer", "decoder", "normalizers", "pretokenizers", "decoders"}


def added_token(index: int, text: str, special: bool, normalized: bool = False) -> dict:
    """An entry of `added_tokens` in tokenizer.json."""
    return {"id": index, "content": text, "special": special, "normalized": normalized, "single_word": False,
            "lstrip": False, "rstrip": False}


class HubBackend:
    """Ordinary text <-> ids through the reference library, which also finds the added tokens in a text."""

    kind = "Hugging Face tokenizers"

    def __init__(self, file: dict):
        # Padding, truncation and BOS belong to the caller; text that looks like a special token stays text.
        file = file | {"truncation": None, "padding": None, "post_processor": None}
        library = require_extra("tokenizers", "hub").Tokenizer
        self.tokenizer, self.bare = (library.from_str(json.dumps(f)) for f in (file, without_prefix(file)))
        self.tokenizer.encode_special_tokens = self.bare.encode_special_tokens = True
        for entry in file["added_tokens"]:
            found = self.tokenizer.token_to_id(entry["content"])
            if found != entry["id"]:
                raise ValueError(f"the added token {entry['content']!r} has id {entry['id']}, but the "
                                 f"tokenizers library gives it {found}; ids must have no gaps")
        self.digest = hashlib.sha256(json.dumps(file, sort_keys=True).encode()).hexdigest()
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, continued: bool = False) -> list[int]:
        return (self.bare if continued else self.tokenizer).encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return (self.bare if continued else self.tokenizer).decode(ids, skip_special_tokens=False)

    def piece(self, index: int) -> str:
        return self.tokenizer.id_to_token(index) or ""

    def facts(self) -> list:
        return [self.digest]


def without_prefix(step):
    """The same tokenizer.json without the space before the first word, for text that continues a text.

    >>> without_prefix({"type": "Metaspace", "prepend_scheme": "first"})
    {'type': 'Metaspace', 'prepend_scheme': 'never'}
    """
    if isinstance(step, list):
        return [without_prefix(one) for one in step if not _is_prefix(one)]
    if not isinstance(step, dict):
        return step
    changed = {key: None if _is_prefix(step[key]) else without_prefix(step[key])
               for key in PARTS & step.keys()}
    if step.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if step.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return step | changed


def _is_prefix(step) -> bool:
    """Whether all that a step does is to add that space, or to take it away again when decoding."""
    if not isinstance(step, dict):
        return False
    at_beginning = str((step.get("pattern") or {}).get("Regex", "")).startswith(r"\A")
    return step.get("type") in ("Prepend", "Strip") or (step.get("type") == "Replace" and at_beginning)
