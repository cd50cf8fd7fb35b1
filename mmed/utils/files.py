"""Files that are complete or absent (temporary name, fsync, rename), and JSON read with bounds."""
from __future__ import annotations

import fcntl
import gzip
import json
import math
import os
import re
import secrets
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError

MAX_JSON_BYTES = 1 << 29  # a value takes several times its bytes in memory
MAX_LINE_CHARACTERS = 1 << 27
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def write_error(error: OSError, path: str | Path, need: int = 0) -> UserError:
    """A failed write in one line: which path, how many bytes were needed there, and why."""
    needed = f" ({need:,} bytes needed)" if need else ""
    why = (error.strerror or str(error)).lower()
    return UserError(f"{error.filename or path}: could not be written{needed}: {why}")


@contextmanager
def writing(path: str | Path, need: int = 0) -> Iterator[None]:
    """Name `path` if a write in this block fails; Python's own error names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise write_error(error, path, need) from error


def sync_folder(folder: str | Path) -> None:
    """Make the file names in `folder` durable: otherwise a power failure may undo a rename."""
    with suppress(OSError):  # some systems cannot open or sync a folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses: process ids repeat across nodes and containers."""
    return path.with_name(f"{path.name}.{secrets.randbelow(10**18)}.tmp")


def leftovers(path: Path) -> list[Path]:
    """Temporary names of `path` that exist: of this process, and of those that were killed."""
    name = re.compile(rf"{re.escape(path.name)}\.\d+\.tmp")
    return [found for found in path.parent.glob("*.tmp") if name.fullmatch(found.name)]


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds the lock.

    Some file systems have no locks (Lustre mounted without `-o flock`): there it only warns.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"warning: {file.name}: this file system has no locks ({error.strerror}); "
              "make sure that only one run writes here", file=sys.stderr)
    return True


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that is renamed to `path` when the block ends without an error.

    A lone surrogate, which UTF-8 cannot carry, is written as the escape that JSON reads back.
    """
    path = Path(path)
    temporary = temporary_name(path)
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, **({} if "b" in mode else text)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; NaN and infinity become null."""
    with atomic_write(path) as file:
        json.dump(finite(value), file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinity, which are not JSON."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_file(path: str | Path, max_bytes: float = math.inf) -> None:
    """Reject a file that is missing, longer than `max_bytes`, or only a Git LFS pointer to the real one."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if (size := os.path.getsize(path)) > max_bytes:
        raise UserError(f"{path}: {size:,} bytes exceed the limit ({max_bytes:,})")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull`, "
                            "or download the file")


def read_json(path: str | Path, max_bytes: float | None = None) -> Any:
    """Read one JSON value; a file that is missing, broken or too large is a `UserError` naming it."""
    check_file(path, MAX_JSON_BYTES if max_bytes is None else max_bytes)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) of a JSONL file, also .gz; errors name file:line.

    Blank lines are skipped. Only \\n ends a line: U+2028 and a lone \\r may be part of a text.
    """
    unpack = gzip.open if str(path).endswith(".gz") else open
    number = 0
    try:
        with unpack(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            while line := file.readline(MAX_LINE_CHARACTERS):
                number += 1
                if line.strip():
                    yield number, _json_object(line, f"{path}:{number}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        where = f"{path}:{number + 1}"
        raise UserError(f"{where}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: cannot be decompressed ({error})") from None


def _json_object(line: str, where: str) -> dict:
    if len(line) >= MAX_LINE_CHARACTERS and not line.endswith("\n"):
        raise UserError(f"{where}: a line of more than {MAX_LINE_CHARACTERS:,} characters")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); every line must be one JSON object") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected one JSON object per line, got {type(value).__name__}")
    return value
