"""Removes copies of the prompt from a model's text. Base models often repeat the question or the list of
options, which would be misread as the answer "A", or as all letters."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

_SECTIONS = re.compile(r"\A\s*###\s*(?:Question|Options)\b.*?(?=###\s*(?:Answer|Response|Rationale)|\Z)",
                       re.S | re.I)  # at the beginning: after an answer they begin another item
_WORD = re.compile(r"\w")
# "Option B:", "(b)"; at the beginning of a line, also "B " and, where the text ends, "B"
_LABEL = re.compile(r"(?:#+\s*)?(?:\boption\s+)?(?<![^\W_])([^\W_])(?:\s*[.:),]|(?<=^.)(?:\s|\Z))",
                    re.I | re.M)
ALPHABETS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "АБВГДЕЖЗ", "АВСDЕ", "123456789")  # of labels; АВСЕ is Cyrillic


def remove_copies(text: str, options: Sequence[str], letters: Iterable[str] = ()) -> str:
    """The folded text without sections of the prompt at its beginning and without copied lists of options.

    A list is a copy if it has all labels in order, or the text ends in it (within an option, or after the
    third one or a later one), and at least half of its entries, one of them whole, are texts of options.
    `letters` are those of the item's script.
    """
    text = _SECTIONS.sub("\n", text)
    labels = list(_LABEL.finditer(text))
    texts = list(map(_plain, options))
    kept, end = [], 0
    for number, label in enumerate(labels):
        if label.start() >= end:
            runs = [_in_order(labels, number, alphabet[:len(texts)])
                    for alphabet in (*ALPHABETS, "".join(letters)) if alphabet[:1] == label[1].upper()]
            stop = max((_copy_end(text, run, texts) for run in runs), default=0)
            if stop:
                kept.append(text[end:label.start()])
                end = stop
    return "\n".join([*kept, text[end:]])


def _in_order(labels: list[re.Match[str]], first: int, alphabet: str) -> list[re.Match[str]]:
    """Starting at the label `first`, the first label of each further letter, up to a new list."""
    run = [labels[first]]
    for at in range(first + 1, len(labels)):
        letter = labels[at][1].upper()
        if letter == alphabet[0] or len(run) == len(alphabet):
            break
        if letter == alphabet[len(run)]:
            run.append(labels[at])
    return run


def _copy_end(text: str, run: list[re.Match[str]], texts: Sequence[str]) -> int:
    """Where the list of these labels ends if it is a copy, else 0."""
    if len(run) < 2:
        return 0
    begin = run[-1].end()
    line_end = f"{text}\n".index("\n", begin)
    own = re.compile(r"\W*".join(map(re.escape, texts[len(run) - 1])), re.I)
    found = own.search(text, begin, line_end)
    end = found.end() if found and found.group() else line_end
    entries = [_plain(text[one.end():other.start()]) for one, other in pairwise(run)]
    last = _plain(text[begin:end])
    whole = sum(entry in texts for entry in [*entries, last] if entry)
    breaks_off = ((len(run) > 2 or last not in texts) and not _WORD.search(text, end)
                  and (whole > 1 or any(option.startswith(last) for option in texts if option)))
    if not breaks_off and len(run) < len(texts):
        return 0
    copied = whole + (breaks_off and last not in texts)
    return end if whole and 2 * copied >= len(run) else 0


def _plain(text: str) -> str:
    """Letters, digits and pictures such as ✅ only, in lower case."""
    return "".join(character for character in text.casefold()
                   if character.isalnum() or unicodedata.category(character) == "So")
