"""Any `tokenizer.json` through Hugging Face tokenizers (extra `hub`): Llama 2's and Gemma's, unigram models,
other patterns.
"""
from __future__ import annotations

import hashlib
import json

from mmed.utils.errors import UserError, require_extra


class HubBackend:
    """Ordinary text <-> ids through the reference library, which finds added tokens that are not special by
    itself.
    """

    kind = "Hugging Face tokenizers"

    def __init__(self, file: dict, special: dict[str, int], name: str):
        # Padding, truncation and BOS belong to the caller; text that looks like a special token is ordinary
        # text.
        file = file | {"truncation": None, "padding": None, "post_processor": None, "added_tokens": [
            entry | {"special": entry["content"] in special} for entry in file.get("added_tokens") or []]}
        self.tokenizer, bare = self._open(file, name), without_prefix(file)
        self.bare = self.tokenizer if bare == file else self._open(bare, name)
        self.digest = hashlib.sha256(json.dumps(file, sort_keys=True).encode()).hexdigest()
        self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def _open(self, file: dict, name: str):
        tokenizers = require_extra("tokenizers", "hub")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{name}: the tokenizers library rejects it: {error}") from None
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(self, text: str, continued: bool = False) -> list[int]:
        return (self.bare if continued else self.tokenizer).encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], continued: bool = False) -> str:
        return (self.bare if continued else self.tokenizer).decode(ids, skip_special_tokens=False)

    def piece(self, index: int) -> str:
        return self.tokenizer.id_to_token(index) or ""

    def facts(self) -> list:
        """What determines the ids, for the fingerprint."""
        return [self.digest]


def without_prefix(step):
    """The same tokenizer.json without the space before the first word, for text that continues after other
    tokens.

    >>> without_prefix({"type": "Metaspace", "prepend_scheme": "first"})
    {'type': 'Metaspace', 'prepend_scheme': 'never'}
    """
    if isinstance(step, list):
        return [without_prefix(one) for one in step if not _is_prefix(one)]
    if not isinstance(step, dict):
        return step
    never = {"prepend_scheme": "never"} if step.get("type") == "Metaspace" else {}
    never |= {"add_prefix_space": False} if step.get("type") == "ByteLevel" else {}
    parts = {
        key: without_prefix(step[key])
        for key in ("normalizers", "pretokenizers", "decoders") if key in step
    }
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        if key in step:
            parts[key] = None if _is_prefix(step[key]) else without_prefix(step[key])
    return step | never | parts


def _is_prefix(step) -> bool:
    """Whether all that a step does is to add that space, or to take it away again when decoding."""
    if not isinstance(step, dict):
        return False
    begins = (step.get("pattern") or {}).get("Regex",
                                             "").startswith(r"\A") if step.get("type") == "Replace" else False
    return begins or step.get("type") in ("Prepend", "Strip")
