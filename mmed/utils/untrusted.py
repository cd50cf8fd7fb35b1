"""Values from files of unknown origin: damaged JSON, text that can be shown, numbers, NAME=FOLDER."""
from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmed.utils.errors import UsageError, UserError, printable

NAME_LIMIT, TEXT_LIMIT = 80, 4000  # characters of a name and of a text that are shown


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Errors from JSON of unexpected structure in this block become a `UserError` that names `path`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def plain(text: Any, limit: int = TEXT_LIMIT) -> str:
    """`printable` text of at most `limit` characters.

    >>> plain("a\\x1b[31mred", 80), plain("x" * 9, 4), plain(None), plain(3)
    ('a[31mred', 'xxxx… [5 more characters]', '', '3')
    """
    text = "" if text is None else str(text)
    more = len(text) - limit
    return printable(text[:limit]) + (f"… [{more:,} more characters]" if more > 0 else "")


def as_name(text: Any) -> str:
    """A name: one line of plain text."""
    text = " ".join(plain(text, 4 * NAME_LIMIT).split())
    return text if len(text) <= NAME_LIMIT else text[:NAME_LIMIT - 1] + "…"


def is_finite(value: Any) -> bool:
    """
    >>> [is_finite(value) for value in (2.5, float("nan"), float("inf"), "2.5", None, 10 ** 400)]
    [True, False, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def split_argument(text: str, settings: Collection[str] = ()) -> tuple[str, str, str]:
    """(setting, name, folder) of FOLDER, NAME=FOLDER or SETTING:NAME=FOLDER; missing parts are "".

    >>> split_argument("lora:base + corpus=results/x", ["lora", "full"]), split_argument("results/x")
    (('lora', 'base + corpus', 'results/x'), ('', '', 'results/x'))
    """
    if "=" not in text or Path(text).is_dir():
        return "", "", text
    splits = [(text[:at], text[at + 1:]) for at, sign in enumerate(text) if sign == "="]
    name, folder = next((split for split in splits if Path(split[1]).is_dir()), splits[0])
    setting, colon, rest = name.partition(":")
    if not settings or not colon:
        return "", name, folder
    if setting not in settings:
        raise UsageError(f"{text}: {setting!r} is not a setting; the part before the colon must be one of "
                         f"{', '.join(settings)}")
    return setting, rest, folder
