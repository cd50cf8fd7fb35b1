"""Removes copies of the prompt from a model's text. Base models often repeat the question or the list of
options, before answering or instead. Such a list would be misread as the answer "A", or as all letters."""
from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

_SECTIONS = re.compile(r"\A\s*###\s*(?:Question|Options)\b.*?(?=###\s*(?:Answer|Response|Rationale)|\Z)",
                       re.S | re.I)  # at the beginning: after an answer they begin another item
_VISIBLE = re.compile(r"\S")
_LABEL = re.compile(r"(?:#+\s*)?(?:\boption\s+)?(?<![^\W_])([a-z])\s*[.:)、．：）]", re.I)


def remove_copies(text: str, options: Mapping[str, str]) -> str:
    r"""The text without sections of the prompt at its beginning and without copied lists of options.

    A list is a copy if it has all letters in order, or breaks off within an option's text, and at least half
    of its entries are texts of options.

    >>> remove_copies("A. salt\nB. iron\n\n### Answer: B", {"A": "salt", "B": "iron"}).split()
    ['###', 'Answer:', 'B']
    """
    text = _SECTIONS.sub("\n", text)
    labels = [label for label in _LABEL.finditer(text) if label[1].upper() in options]
    kept, end = [], 0
    for number, label in enumerate(labels):
        if label.start() >= end and label[1].upper() == next(iter(options)):
            stop = _copy_end(text, _in_order(labels, number, list(options)), options)
            if stop:
                kept.append(text[end:label.start()])
                end = stop
    return "\n".join([*kept, text[end:]])


def _in_order(labels: list[re.Match[str]], first: int, letters: list[str]) -> list[re.Match[str]]:
    """Starting at the label `first`, the first label of each further letter, up to a new list."""
    run = [labels[first]]
    for at in range(first + 1, len(labels)):
        letter = labels[at][1].upper()
        if letter == letters[0] or len(run) == len(letters):
            break
        if letter == letters[len(run)]:
            run.append(labels[at])
    return run


def _copy_end(text: str, run: list[re.Match[str]], options: Mapping[str, str]) -> int:
    """Where the list of these labels ends if it is a copy, else 0."""
    if len(run) < 2:
        return 0
    texts = {_plain(option) for option in options.values()} - {""}
    begin = run[-1].end()
    line_end = text.find("\n", begin)
    if line_end < 0:
        line_end = len(text)
    own = re.compile(r"\W*".join(map(re.escape, _plain(options[run[-1][1].upper()]))), re.I)
    found = own.search(text, begin, line_end)
    end = found.end() if found and found.group() else line_end
    entries = [_plain(text[one.end():other.start()]) for one, other in pairwise(run)]
    last = _plain(text[begin:end])
    breaks_off = (last not in texts and not _VISIBLE.search(text, end)
                  and any(option.startswith(last) for option in texts))
    if not breaks_off and len(run) < len(options):
        return 0
    copied = sum(entry in texts for entry in entries) + (breaks_off or last in texts)
    return end if 2 * copied >= len(run) else 0


def _plain(text: str) -> str:
    """Letters and digits only, in lower case."""
    return "".join(character for character in text.casefold() if character.isalnum())
