"""What a person did wrong, said in one line.

Anything that a user typed or a file holds and that cannot be used raises `UserError`; `main_guard` turns it into one line
on stderr and the exit code of DESIGN: 1 failed, 2 wrong use, 75 stopped by a signal and resumable. Bugs keep their traceback.
"""
from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 75


LONGEST = 1600  # characters of a message


class UserError(ValueError):
    """Bad input: the message names the file, line or option, what was wrong and what to do.

    It may quote what a stranger wrote, so it is made one line, without characters that steer a terminal, and not endless.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""
    >>> one_line("a\nb\x1b[31m é"), len(one_line("x" * 10 ** 6))
    ('a\\nb\\x1b[31m é', 1600)
    """
    if len(text) > LONGEST:  # the beginning says where, the end what to do
        text = text[: LONGEST - 400] + " ... " + text[-395:]
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(UserError):
    """A command line that cannot be understood."""

    exit_code = EXIT_USAGE


def main_guard(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code; bad input prints one line, without a traceback."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except FileNotFoundError as error:
        print(f"error: {error.filename}: no such file or folder", file=sys.stderr)
        code = EXIT_FAILED
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        print(f"error: {error.filename}: {error.strerror.lower()}", file=sys.stderr)
        code = EXIT_FAILED
    except BrokenPipeError:  # `| head` went away
        sys.stderr.close()
        code = EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = EXIT_STOPPED
    sys.exit(code)


def require_extra(module: str, extra: str):
    """Import an optional package, or say which extra brings it (exit code 2)."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs the package {module!r}: pip install 'mmed[{extra}]'") from error
