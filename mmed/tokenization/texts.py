"""Texts that a tokenizer is trained on or encodes: documents in files, and what UTF-8 cannot carry."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed.utils.errors import UserError
from mmed.utils.files import read_jsonl

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt")
SENTENCE_CHARACTERS = 1024  # of at most 4 bytes: the trainer silently leaves out sentences over 4,096 bytes


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


def read_texts(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (text, language or "?") of documents: .jsonl or .jsonl.gz with the field `text`, one .txt, or a
    folder of such files."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise UserError(f"{path}: a folder without .jsonl, .jsonl.gz or .txt files")
        for file in files:
            yield from read_texts(file)
        return
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: expected a .jsonl, .jsonl.gz or .txt file")
    if path.suffix == ".txt":
        try:
            yield path.read_text(encoding="utf-8-sig"), "?"
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        return
    for number, value in read_jsonl(path):
        if not isinstance(value.get("text"), str):
            raise UserError(f"{path}:{number}: a document needs a field 'text' that is a string")
        yield value["text"], str(value.get("language") or value.get("lang") or "?")


def sentences_of(texts: Iterable[str]) -> Iterator[str]:
    """Split documents into the lines that the trainer counts; U+2585, which it reserves, becomes a space."""
    for text in texts:
        for line in clean_text(text).replace("\u2585", " ").split("\n"):
            for start in range(0, len(line), SENTENCE_CHARACTERS):
                if part := line[start:start + SENTENCE_CHARACTERS].strip("\r"):
                    yield part
