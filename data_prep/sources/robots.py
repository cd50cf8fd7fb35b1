"""robots.txt as RFC 9309 has it: which paths of a site a crawler may ask for, and how long it shall wait between requests.

In:  the text of a robots.txt and the crawler's name. Out: `Rules`; `allowed(rules, path)`.

Not `urllib.robotparser`, because that takes the first rule that matches where the RFC takes the longest, and reads `*` and `$`
in a path as plain letters: under `Disallow: /*?print=` it would fetch every print view.
"""
from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote

MAX_BYTES = 500 * 1024  # what is read of a robots.txt (RFC 9309, 2.5)


class Rules(NamedTuple):
    """Of the group that is meant for us."""

    paths: tuple[tuple[bool, str], ...] = ()  # (may we, pattern)
    delay_seconds: float = 0.0  # Crawl-delay or Request-rate, which the RFC does not know but many sites write


NOTHING = Rules(((False, "/"),))


def parse_robots(text: str, name: str) -> Rules:
    """The rules of all groups for `name`, or else of those for `*`.

    >>> rules = parse_robots("User-agent: *\\nDisallow: /\\n\\nUser-agent: other\\nUser-agent: MMED\\nDisallow: /x # why\\nCrawl-delay: 2", "mmed")
    >>> rules
    Rules(paths=((False, '/x'),), delay_seconds=2.0)
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    names: list[str] = []
    in_rules = True
    for line in text.lstrip("\ufeff").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            names = [value.lower()] if in_rules else [*names, value.lower()]
            groups.setdefault(value.lower(), [])
            in_rules = False
        elif key in ("allow", "disallow", "crawl-delay", "request-rate"):
            in_rules = True
            for own in names:
                groups[own].append((key, value))
    paths, delay = [], 0.0
    for key, value in groups.get(name.lower(), groups.get("*", [])):
        if key in ("allow", "disallow"):
            if value:  # an empty one allows all
                paths.append((key == "allow", _plain(value)))
        elif key == "crawl-delay" and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", value):
            delay = max(delay, float(value))
        elif key == "request-rate" and (rate := re.match(r"(\d{1,6})/(\d{1,6})(?:\s|$)", value)) and int(rate[1]):
            delay = max(delay, int(rate[2]) / int(rate[1]))
    return Rules(tuple(paths), delay)


def allowed(rules: Rules, path: str) -> bool:
    """Whether a path (with its query) may be asked for: the longest pattern that matches decides, of equal ones the kinder.

    >>> rules = Rules(((False, "/a"), (True, "/a/b"), (False, "/*?print="), (False, "/*.pdf$")))
    >>> [allowed(rules, path) for path in ("/", "/a/c", "/a/b/c", "/x?print=1", "/y.pdf", "/y.pdf?z", "/%61")]
    [True, False, True, False, False, True, False]
    """
    path = _plain(path)
    best = max(((len(pattern), may) for may, pattern in rules.paths if _matches(pattern, path)), default=(0, True))
    return best[1]


def _matches(pattern: str, path: str) -> bool:
    """A prefix in which * stands for anything and a last $ for the end. No regular expression: many * would take it forever."""
    to_end = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    for number, piece in enumerate(rest):
        if to_end and number == len(rest) - 1:
            return len(path) - len(piece) >= at and path.endswith(piece)
        if (found := path.find(piece, at)) < 0:
            return False
        at = found + len(piece)
    return not to_end or at == len(path)


def _plain(path: str) -> str:
    """One spelling for each path: letters and digits as they are, other characters as %XX in capitals; %2F stays what it is."""
    path = quote(path, safe="/%?&=*$;,:@!'()+~#[]|\\\"<>^`{} ")
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda code: chr(int(code[1], 16)) if re.match(r"[\w.~-]", chr(int(code[1], 16)), re.ASCII)
                  else code[0].upper(), path)
