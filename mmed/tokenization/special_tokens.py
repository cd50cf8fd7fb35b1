"""Special and added tokens, as the JSON files beside a tokenizer name them.

In: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
`generation_config.json` and `config.json` of a folder. Out: `TokenizerSettings`. Special tokens are never
found in ordinary text; other added tokens are.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmed.tokenization.byte_level import steps_of
from mmed.tokenization.hub import added_token
from mmed.utils.files import read_json

# Lists or {role: token} of special tokens; the first is transformers 4's, the others transformers 5's
NAMED_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


class TokenizerSettings:
    """`json`: the content of tokenizer.json, {} without one; `added`: the entry of each added token as that
    file has it, by its text; `special` and `ordinary`: their ids by text."""

    def __init__(self, path: Path):
        self.folder = path.parent
        self.json = self._read(path.name if path.suffix == ".json" else "tokenizer.json")
        self.config, self.map = self._read("tokenizer_config.json"), self._read("special_tokens_map.json")
        self.generation, self.model = self._read("generation_config.json"), self._read("config.json")
        entries = [{"content": text, "id": index} for text, index in self._read("added_tokens.json").items()]
        # transformers 5 names them here only, also where a tokenizer.model goes first
        entries += self.json.get("added_tokens") or []
        entries += [entry | {"id": int(index)}  # last: its flags count
                    for index, entry in (self.config.get("added_tokens_decoder") or {}).items()]
        self.added: dict[str, dict] = {}
        named = self._named()
        for entry in entries:
            text, index = entry["content"], entry["id"]
            if self.added.get(text, entry)["id"] != index:
                raise ValueError(f"the added token {text!r} has the ids {self.added[text]['id']} and {index}")
            # without a flag (added_tokens.json), what looks like <...> or [...] is special
            looks_special = re.fullmatch(r"<.*>|\[.*\]", text, re.DOTALL) is not None
            special = text in named or entry.get("special", looks_special)
            self.added[text] = added_token(index, text, special) | entry | {"special": special}
        self.special = {text: entry["id"] for text, entry in self.added.items() if entry["special"]}
        self.ordinary = {text: entry["id"] for text, entry in self.added.items() if not entry["special"]}

    def pattern(self, text: str) -> str:
        """A regular expression for a token in text; an ordinary one may swallow the spaces around it."""
        rules, found = self.added[text] if text in self.ordinary else {}, re.escape(text)
        if rules.get("single_word"):
            found = rf"(?<!\w){found}(?!\w)"
        return r"\s*" * rules.get("lstrip", False) + found + r"\s*" * rules.get("rstrip", False)

    def _read(self, name: str) -> dict:
        return read_json(self.folder / name) if (self.folder / name).is_file() else {}

    def _named(self) -> set[str | None]:
        """The tokens that have a role, which makes them special."""
        entries = []
        for source in (self.config, self.map):
            entries += [entry for key, entry in source.items() if key.endswith("_token")]
            for key in NAMED_LISTS:
                more = source.get(key) or []
                entries += more.values() if isinstance(more, dict) else more
        return set(map(_text_of, entries))

    def chat_template(self) -> str:
        """The text of the folder's chat template, "" without one; of several, the one called "default"."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
        template = self.config.get("chat_template") or self._read("chat_template.json").get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return str(template or "")

    def token_id(self, role: str, known: dict[str, int], default: int | None, size: int) -> int | None:
        """Id of the bos, eos, pad or unk token: by the tokenizer's settings, its file, or the model's."""
        for source in (self.config, self.map):
            text = _text_of(source.get(f"{role}_token"))
            if text in known:
                return known[text]
        if default is not None or f"{role}_token" in self.config:
            return default  # null in tokenizer_config.json: there is none
        for source in (self.generation, self.model):
            index = source.get(f"{role}_token_id")
            index = index[0] if isinstance(index, list) and index else index
            if type(index) is int and (0 <= index < size or index in known.values()):
                return index
        return None

    def end_ids(self) -> list[int]:
        """The ids that end a generated text, as generation_config.json or else config.json lists them."""
        ends = self.generation.get("eos_token_id", self.model.get("eos_token_id"))
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def adds_bos(self, bos_id: int | None, known: dict[str, int]) -> bool:
        """Whether the reference puts BOS before a text: by tokenizer.json, or without one by `add_bos_token`,
        which may be missing where it does (Llama, InternLM, Gemma)."""
        if not self.json:
            return self.config.get("add_bos_token") is not False
        for step in steps_of(self.json.get("post_processor"), "processors"):
            first = (step.get("single") or [{}])[0].get("SpecialToken", {}).get("id")
            text = (step.get("cls") or [first])[0]  # RobertaProcessing, BertProcessing: {"cls": [text, id]}
            if bos_id is not None and known.get(text) == bos_id:
                return True
        return False


def _text_of(entry: Any) -> str | None:
    """A token is named by its text or by an object with the text."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None
