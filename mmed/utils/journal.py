"""A journal of finished rounds of work: it survives being killed, and every line carries a checksum.

In: rounds of rows, and the facts that they depend on. Out: PATH.partial while the work goes on, PATH when it
is finished.
"""
from __future__ import annotations

import fcntl
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write


class Journal:
    """Rounds of rows in PATH.partial, one line a round, after a line with the facts that all of them depend
    on.

    Opening one that another run left goes on with it: a last line that was cut is dropped, other facts are
    refused by name.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], force: bool = False):
        self.path, self.partial = Path(path), Path(f"{path}.partial")
        if self.path.exists() and not force and not self.partial.exists():
            raise UserError(f"{self.path}: already there; give another --out, or --force to make it anew")
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.facts = json.loads(json.dumps(facts))
        self.done: set[int] = set()
        self.file = open(self.partial, "a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.partial}: another process is writing it; wait for it, or give another --out"
            ) from None
        self._read(force)

    def _read(self, force: bool) -> None:
        self.file.seek(0)
        good = 0
        for number, line in enumerate(self.file, 1):
            try:
                value = read_sealed(line)
                if number == 1:
                    found = value["facts"]
                else:
                    if not isinstance(value["round"], int) or not isinstance(value["rows"], list):
                        raise ValueError("no round")
                    self.done.add(value["round"])
            except (ValueError, KeyError, TypeError):
                if self.file.read(1) and not force:
                    raise UserError(
                        f"{self.partial}:{number}: damaged; delete this file to begin anew, or use --force"
                    ) from None
                break
            if number == 1 and (differs := facts_that_differ(found, self.facts)):
                if not force:
                    raise UserError(
                        f"{self.partial}: begun with {differs}; give another --out, or --force to begin anew")
                break
            good += len(line)
        self.file.truncate(good)
        if not good:
            self.done.clear()
            self._append({"facts": self.facts})

    def _append(self, value: Any) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(sealed_line(value).encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def has(self, number: int) -> bool:
        return number in self.done

    def add(self, number: int, rows: list[dict]) -> None:
        self._append({"round": number, "rows": rows})
        self.done.add(number)

    def rounds(self) -> Iterator[tuple[int, list[dict]]]:
        """(number, rows) by number, in whatever order they were finished."""
        self.file.seek(0)
        self.file.readline()
        places, place = {}, self.file.tell()
        for line in self.file:
            places[json.loads(line)["round"]] = place
            place += len(line)
        for number in sorted(places):
            self.file.seek(places[number])
            yield number, json.loads(self.file.readline())["rows"]

    def rows(self) -> Iterator[dict]:
        for _, rows in self.rounds():
            yield from rows

    def finish(self) -> None:
        """All rows into PATH, one a line; the journal goes away."""
        with atomic_write(self.path) as file:
            for row in self.rows():
                file.write(json_line(row))
        self.discard()

    def discard(self) -> None:
        self.partial.unlink()
        self.file.close()


def json_line(value: Any) -> str:
    """One line of JSON; lone surrogates, which UTF-8 cannot carry, become U+FFFD."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode() + "\n"


def sealed_line(value: dict) -> str:
    """`json_line` of an object, its last key a checksum of the rest: a line that was damaged later is told
    from one that was written.

    >>> sealed_line({"round": 0})
    '{"round": 0, "crc32": "5a34bd24"}\\n'
    """
    body = json_line(value)[:-2]
    return f'{body}, "crc32": "{zlib.crc32(body.encode()):08x}"}}\n'


_SEAL = re.compile(rb', "crc32": "([0-9a-f]{8})"}\n\Z')


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is no number of JSON")
    return value


def read_sealed(line: bytes) -> dict:
    """What `sealed_line` wrote; a ValueError for a line that is cut, no object, or not as it was written."""
    try:
        value = json.loads(line, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not line.endswith(b"\n") or not isinstance(value, dict):
        raise ValueError("cut short, or no object")
    if "crc32" in value:
        seal = _SEAL.search(line)
        if not seal or int(seal[1], 16) != zlib.crc32(line[:seal.start()]):
            raise ValueError("its checksum is another")
        del value["crc32"]
    return value


def facts_that_differ(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two sets of facts, in words; "" if nothing did.

    >>> facts_that_differ({"slots": 8, "style": "clean"}, {"slots": 16, "style": "clean"})
    'slots = 8 (now 16)'
    """
    changes = []
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        if old != new:
            show = [
                value[:12] + "…" if isinstance(value, str) and len(value) == 64 else value
                for value in (old, new)
            ]
            changes.append(f"{name} = {show[0]} (now {show[1]})")
    return ", ".join(changes)
