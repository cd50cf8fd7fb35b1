"""Special and added tokens, as the JSON files beside a tokenizer name them.

In: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and
`config.json` of a folder. Out: `TokenizerSettings`. Special tokens are never found in ordinary text; other
added tokens are.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmed.tokenization.byte_level import steps_of
from mmed.utils.errors import UserError
from mmed.utils.files import read_json

MAX_TOKEN_ID = 1 << 24
# Lists or {role: token} of further special tokens; the first is transformers 4's, the others are transformers
# 5's
NAMED_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


class TokenizerSettings:
    """`added`: text of each added token -> (id, its entry with "special", "lstrip", ...); `named`: special by
    their role.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config, self.map = self._read("tokenizer_config.json"), self._read("special_tokens_map.json")
        self.models = [self._read("generation_config.json"), self._read("config.json")]
        self.added: dict[str, tuple[int, dict]] = {}
        for text, index in self._read("added_tokens.json").items():
            self.add(text, index, {}, "added_tokens.json")
        for index, entry in (self.config.get("added_tokens_decoder") or {}).items():
            self.add(_content(entry),
                     int(index) if str(index).isdecimal() else None, entry, "tokenizer_config.json")
        self.named: set[str] = set()
        for source in (self.config, self.map):
            self.named |= {_content(entry) for key, entry in source.items() if key.endswith("_token")}
            for key in NAMED_LISTS:
                entries = source.get(key) or []
                self.named |= {
                    _content(entry)
                    for entry in (entries.values() if isinstance(entries, dict) else entries)
                }

    def chat_template(self) -> str:
        """The text of the folder's chat template, "" without one; of several, the one called "default"."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
        template = self.config.get("chat_template") or self._read("chat_template.json").get(
            "chat_template") or ""
        if isinstance(template, list):
            template = next((entry.get("template") for entry in template if entry.get("name") == "default"),
                            "")
        return str(template)

    def _read(self, name: str) -> dict:
        value = read_json(self.folder / name) if (self.folder / name).is_file() else {}
        if not isinstance(value, dict):
            raise UserError(f"{self.folder / name}: expected a JSON object, got {type(value).__name__}")
        return value

    def add(self, text: Any, index: Any, entry: dict, file: str) -> None:
        """Take in one added token; the same text with another id, or the same id with another text, is an
        error.
        """
        where = self.folder / file
        if not isinstance(text, str) or not text or type(index) is not int or not 0 <= index < MAX_TOKEN_ID:
            raise UserError(f"{where}: added token {text!r} with id {index!r}: expected a text and an id")
        if self.added.get(text, (index,))[0] != index:
            raise UserError(
                f"{where}: the added token {text!r} has id {index} here and {self.added[text][0]} elsewhere "
                f"in this folder"
            )
        clash = next((other for other, (taken, _) in self.added.items() if taken == index and other != text),
                     None)
        if clash is not None:
            raise UserError(f"{where}: the added tokens {clash!r} and {text!r} have the same id {index}")
        self.added[text] = (index, entry)

    def is_special(self, text: str) -> bool:
        """By its flag or its role; without a flag (added_tokens.json), texts of the form <...> or [...] are
        special.
        """
        looks_special = re.fullmatch(r"<.*>|\[.*\]", text, re.DOTALL) is not None
        return text in self.named or self.added[text][1].get("special", looks_special)

    def split(self) -> tuple[dict[str, int], dict[str, int]]:
        """(special, found in ordinary text): text -> id."""
        special = {text: index for text, (index, _) in self.added.items() if self.is_special(text)}
        return special, {text: index for text, (index, _) in self.added.items() if text not in special}

    def token_id(self, role: str, known: dict[str, int], default: int | None, size: int) -> int | None:
        """Id of the bos, eos, pad or unk token: by the tokenizer's settings, else its own file, else the
        model's settings.
        """
        for source in (self.config, self.map):
            text = _content(source.get(f"{role}_token"))
            if text in known:
                return known[text]
        if default is not None or f"{role}_token" in self.config:
            return default  # null in tokenizer_config.json: there is none
        for source in self.models:
            index = source.get(f"{role}_token_id")
            index = index[0] if isinstance(index, list) and index else index
            if type(index) is int and (0 <= index < size or index in known.values()):
                return index
        return None

    def end_ids(self) -> list[int]:
        """The ids that end a generated text, as generation_config.json lists them."""
        ends = self.models[0].get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if not all(type(index) is int and index >= 0 for index in ends):
            raise UserError(
                f"{self.folder / 'generation_config.json'}: eos_token_id {ends!r} must be token ids")
        return ends

    def adds_bos(self, bos_id: int | None, known: dict[str, int]) -> bool:
        """Whether the reference puts BOS before a text: `add_bos_token`, else the post-processor of
        tokenizer.json.

        tokenizer.model and tiktoken files do not say; the models they belong to (Llama, InternLM, Gemma) add
        it.
        """
        choice = self.config.get("add_bos_token")
        if isinstance(choice, bool):
            return choice
        if not (self.folder / "tokenizer.json").is_file():
            return True
        for step in steps_of(self._read("tokenizer.json").get("post_processor"), "processors"):
            first = (step.get("single") or [{}])[0] if step.get("type") == "TemplateProcessing" else {}
            if bos_id is not None and known.get(first.get("SpecialToken", {}).get("id")) == bos_id:
                return True
        return False


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None
