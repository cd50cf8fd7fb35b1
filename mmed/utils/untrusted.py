"""Values from files that may be anyone's: text that can be shown, numbers that are numbers, NAME=FOLDER
arguments.
"""
from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmed.utils.errors import UsageError, printable

NAME_LIMIT, TEXT_LIMIT = 80, 4000  # characters of a name and of a text that are shown


def plain(text: Any, limit: int = TEXT_LIMIT) -> str:
    """Text that a terminal or a page can show: no control characters, no marks that reverse it, not longer
    than `limit`.

    >>> plain("a\\x1b[31mred", 80), plain("x" * 9, 4), plain(None), plain(3)
    ('a[31mred', 'xxxx… [5 more characters]', '', '3')
    """
    text = "" if text is None else str(text)
    more = len(text) - limit
    return printable(text[:limit]) + (f"… [{more:,} more characters]" if more > 0 else "")


def as_name(text: Any, limit: int = NAME_LIMIT) -> str:
    """A name: one line of plain text."""
    text = " ".join(plain(text, 4 * limit).split())
    return text if len(text) <= limit else text[:limit - 1] + "…"


def number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from a file; anything else is a TypeError or ValueError, which the readers turn into
    one line.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    if not low - 1e-6 <= value <= high + 1e-6 or abs(value) > 1e300:
        raise ValueError(f"the number {value!r} is out of range")
    return min(max(value, low), high)  # rounding may carry a share a hair past its end


def is_finite(value: Any) -> bool:
    """
    >>> [is_finite(value) for value in (2.5, float("nan"), float("inf"), "2.5", None, 10 ** 400)]
    [True, False, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def count(value: Any) -> int:
    """A number of things."""
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {type(value).__name__}")
    return int(number(value, 0, 2 ** 62))


def split_argument(text: str, settings: Collection[str] = ()) -> tuple[str, str, str]:
    """(setting, name, folder) of FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER; what is not said is "".

    >>> split_argument("lora:base + corpus=results/x", ["lora", "full"]), split_argument("results/x")
    (('lora', 'base + corpus', 'results/x'), ('', '', 'results/x'))
    """
    if "=" not in text or Path(text).is_dir():
        return "", "", text
    cuts = [at for at, sign in enumerate(text) if sign == "="]
    cut = next((at for at in cuts if Path(text[at + 1:]).is_dir()), cuts[0])  # a name may hold "=", too
    name, folder = text[:cut], text[cut + 1:]
    setting = ""
    if settings and ":" in name:
        setting, name = name.split(":", 1)
        if setting not in settings:
            raise UsageError(
                f"{as_name(text)}: {as_name(setting)!r} is no setting; before the colon stands one of "
                f"{', '.join(settings)}"
            )
    return setting, name, folder
