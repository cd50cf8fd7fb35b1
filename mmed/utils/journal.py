"""A journal of finished rounds of work: it survives being killed, and every line carries a checksum."""
from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, finite, try_lock


class SealedFile:
    """Lines with checksums, appended by one process; a line is on disk when `append` returns."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a+b")
        if not try_lock(self.file):
            raise UserError(f"{path}: another process is writing it; wait for it, or give another --out")

    def lines(self) -> list[bytes]:
        self.file.seek(0)
        return self.file.readlines()

    def read(self, take: Callable[[dict], object], repair: str) -> None:
        """Pass every line to `take`; an incomplete last line is dropped, any other damage is an error."""
        lines = self.lines()
        if lines and not lines[-1].endswith(b"\n"):
            self.file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                take(read_sealed(line))
            except (ValueError, KeyError):
                raise UserError(f"{self.path}:{number}: damaged; {repair}") from None

    def append(self, value: dict) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(sealed_line(value).encode())
        self.file.flush()
        os.fsync(self.file.fileno())


class Journal(SealedFile):
    """Rounds of rows in PATH.partial, one line per round, after a first line with the facts of the run; once
    the work is finished, PATH has one row per line.

    Opening the journal of an earlier run continues it; `force` starts it again.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], force: bool = False):
        self.finished = Path(path)
        partial = Path(f"{path}.partial")
        if self.finished.exists() and not force and not partial.exists():
            raise UserError(f"{path}: already there; give another --out, or --force to replace it")
        super().__init__(partial)
        if force:
            self.file.truncate(0)
        self.done: set[int] = set()
        self.facts: dict | None = None
        self.read(self._take, "--force starts again")
        facts = json.loads(json.dumps(facts))
        if self.facts is None:
            self.append({"facts": facts})
        elif differs := facts_that_differ(self.facts, facts):
            raise UserError(f"{partial}: begun with {differs}; give another --out, or --force to start again")

    def _take(self, value: dict) -> None:
        if self.facts is None:  # the first line
            self.facts = value["facts"]
        else:
            self.done.add(int(value["round"]))

    def add(self, number: int, rows: list[dict]) -> None:
        self.append({"round": number, "rows": rows})
        self.done.add(number)

    def rounds(self) -> list[tuple[int, list[dict]]]:
        """(number, rows) by number, regardless of the order in which rounds finished."""
        rounds = [json.loads(line) for line in self.lines()[1:]]
        return sorted((value["round"], value["rows"]) for value in rounds)

    def rows(self) -> Iterator[dict]:
        return chain.from_iterable(rows for _, rows in self.rounds())

    def finish(self) -> None:
        """Write all rows to PATH, one per line, and delete the journal."""
        with atomic_write(self.finished) as file:
            file.writelines(map(json_line, self.rows()))
        self.discard()

    def discard(self) -> None:
        self.path.unlink()
        self.file.close()


def json_line(value: Any) -> str:
    """One line of JSON. Lone surrogates, which UTF-8 cannot carry, become "?"; NaN and infinity, null."""
    text = json.dumps(finite(value), ensure_ascii=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def sealed_line(value: dict) -> str:
    """`json_line` of an object whose last key is a checksum of the rest, to detect damage.

    >>> sealed_line({"round": 0})
    '{"round": 0, "crc32": "5a34bd24"}\\n'
    """
    body = json_line(value)[:-2]
    return f'{body}, "crc32": "{zlib.crc32(body.encode()):08x}"}}\n'


def read_sealed(line: bytes) -> dict:
    """What `sealed_line` wrote; a ValueError for a line that is incomplete, no object, or damaged."""
    value = json.loads(line)
    if not line.endswith(b"\n") or not isinstance(value, dict):
        raise ValueError("incomplete, or not an object")
    body = line.rpartition(b', "crc32": ')[0]
    if "crc32" in value and value.pop("crc32") != f"{zlib.crc32(body):08x}":
        raise ValueError("its checksum does not match")
    return value


def facts_that_differ(then: Mapping[str, Any], now: Mapping[str, Any], label: str = "now") -> str:
    """What changed between two sets of facts, in words; "" if nothing did.

    >>> facts_that_differ({"shots": 8, "style": "clean"}, {"shots": 16, "style": "clean"})
    'shots = 8 (now 16)'
    """
    def shown(value: Any) -> Any:
        return value[:12] + "…" if isinstance(value, str) and len(value) == 64 else value

    return ", ".join(f"{name} = {shown(then.get(name))} ({label} {shown(now.get(name))})"
                     for name in sorted({*then, *now}) if then.get(name) != now.get(name))
