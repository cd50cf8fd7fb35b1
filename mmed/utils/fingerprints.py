"""Fingerprints of files and models, which show a run or result that its inputs are unchanged."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.model", "tokenizer.json",
               "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
               "chat_template.json", "*.safetensors", "*.bin", "*.index.json", "adapter_config.json")


def file_hash(path: str | Path) -> str:
    """sha256 of a file, or of the *.jsonl files of a folder with their names."""
    path = Path(path)
    if path.is_dir():
        return _hash_of_files(sorted(path.glob("*.jsonl")))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_files(paths: Iterable[Path]) -> str:
    return hashlib.sha256("\n".join(f"{path.name} {file_hash(path)}" for path in paths).encode()).hexdigest()


def model_fingerprint(folder: str | Path, adapter: str | Path | None = None) -> str:
    """sha256 of what decides a model's output: config, weights and tokenizer, the adapter's too."""
    files: list[Path] = []
    for place in (folder, adapter) if adapter else (folder,):
        files += sorted(path for pattern in MODEL_FILES for path in Path(place).glob(pattern))
    return _hash_of_files(files)
