"""Corpus files and made-up texts for the tests of this folder."""
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

from json_lines import write_lines

from data_prep.documents import Document

LETTERS = {"en": "abcdefghijklm", "ru": "абвгдежзиклмн", "fr": "aàbcéçdeêfilo"}
write = write_lines


def read_folder(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.gz"))
            for line in gzip.open(path, "rt", encoding="utf-8")]


def run(main: Callable, out: Path, *arguments: object) -> tuple[list[Document], dict[str, int]]:
    """Run a command on English files: the documents that it kept, and the number dropped for each reason."""
    main([*map(str, arguments), "--out", str(out), "--language", "en"])
    dropped = json.loads((out / "funnel.json").read_text())["dropped"]
    return ([Document(**record) for record in read_folder(out / "kept")],
            {reason: entry["documents"] for reason, entry in dropped.items()})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def make_words(rng: random.Random, language: str, count: int) -> list[str]:
    if language in ("zh", "ja"):
        return [chr(rng.randrange(0x4E00, 0x5800)) for _ in range(count)]
    return ["".join(rng.choice(LETTERS[language]) for _ in range(rng.randint(2, 9))) for _ in range(count)]


def join(words: list[str], language: str) -> str:
    return ("" if language in ("zh", "ja") else " ").join(words)
