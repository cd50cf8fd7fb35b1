"""Files that are either whole or not there: write to a temporary name, fsync, rename."""
from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import secrets
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmed.utils.errors import UserError

# Failures of a write that only a person can fix.
ADVICE = {
    errno.ENOSPC: "no space left; free some space",
    errno.EDQUOT: "the quota is used up; free some space or have it raised",
    errno.EFBIG: "larger than the limit for one file (ulimit -f)",
    errno.EROFS: "the file system is read-only", errno.EIO: "the disk reports an error; see the kernel's log",
    errno.ESTALE: "the file is gone on the file server", errno.EACCES: "permission denied",
    errno.EPERM: "not permitted"
}
NAMELESS = ADVICE.keys() - {errno.EACCES, errno.EPERM}


def write_error(error: OSError, path: str | Path, need: int = 0) -> UserError:
    """A failed write in one line: which path, how many bytes were needed there, what to do."""
    why = ADVICE.get(error.errno or 0, (error.strerror or str(error)).lower())
    return UserError(f"{error.filename or path}: could not be written" +
                     (f" ({need:,} bytes needed)" if need else "") + f": {why}")


@contextmanager
def writing(path: str | Path, need: int = 0) -> Iterator[None]:
    """What is written in this block goes to `path`: a write that fails says so (Python's own error names no
    file).
    """
    try:
        yield
    except OSError as error:
        # another file was opened here: its own error is plain enough
        if error.filename is not None and error.errno not in NAMELESS:
            raise
        raise write_error(error, path, need) from error


def sync_folder(folder: str | Path) -> None:
    """Make the names in `folder` as durable as the files: after a loss of power a rename may be undone
    otherwise.
    """
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(number)
    except OSError:  # a file system that syncs no folders
        pass
    finally:
        os.close(number)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses: process ids repeat across nodes and containers."""
    return path.with_name(f"{path.name}.{secrets.randbelow(10**18)}.tmp")


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds the lock.

    Some file systems have no locks (Lustre mounted without `-o flock`). There we warn and go on.
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
    """Open `path` for writing under a temporary name; it gets its own name only when the block ends without
    an error.

    What UTF-8 cannot carry in a text (a file name of other bytes, half a surrogate pair) is written as the
    escape that JSON reads back.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(
                    temporary, mode,
                    **({} if "b" in mode else
                       {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"})) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; NaN and infinity become null (they are not JSON)."""
    with atomic_write(path) as file:
        json.dump(_finite(value), file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


MAX_JSON_BYTES = 1 << 29        # a value takes several times its bytes in memory
MAX_LINE_CHARACTERS = 1 << 27


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_file(path: str | Path, max_bytes: int | None = None) -> None:
    """Reject a file that is missing, longer than `max_bytes`, or only a Git LFS pointer to the real one."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    size = os.path.getsize(path)
    if max_bytes is not None and size > max_bytes:
        raise UserError(f"{path}: {size:,} bytes are too many (limit {max_bytes:,})")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull`, or download the file")


def read_json(path: str | Path) -> Any:
    """Read one JSON value; a file that is missing, broken or too large is a `UserError` naming it."""
    check_file(path, MAX_JSON_BYTES)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) of a JSONL file, also .gz; blank lines are passed over, a bad line
    is a `UserError` naming file:line.
    """
    unpack = gzip.open if str(path).endswith(".gz") else open
    try:
        # newline: U+2028 and lone \r never split a line
        file = unpack(path, "rt", encoding="utf-8-sig", newline="\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    with file:
        number = 0
        try:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""), 1):
                if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
                    raise UserError(
                        f"{path}:{number}: a line of more than {MAX_LINE_CHARACTERS:,} characters")
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise UserError(
                        f"{path}:{number}: expected one JSON object a line, got {type(value).__name__}")
                yield number, value
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number + 1}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}:{number + 1}: cannot be unpacked ({error})") from None
        except UserError:
            raise
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            raise UserError(
                f"{path}:{number}: not valid JSON ({error}); every line must be one JSON object") from None
