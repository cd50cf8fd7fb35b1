"""What a person did wrong, said in one line.

Anything that a user typed or a file holds and that cannot be used raises `UserError`; `main_guard` turns it
into one line on stderr and the exit code of DESIGN: 1 failed, 2 wrong use, 75 stopped by a signal and
resumable. Bugs keep their traceback.
"""
from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 75


LONGEST = 1600  # characters of a message


class UserError(ValueError):
    """Bad input: the message names the file, line or option, what was wrong and what to do.

    It may quote what a stranger wrote, so it is made one line, without characters that steer a terminal, and
    not endless.
    """

    exit_code = EXIT_FAILED
    everywhere = False  # True: all ranks of a run raise the same, one of them is enough to be seen

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""
    >>> one_line("a\nb\x1b[31m é"), len(one_line("x" * 10 ** 6))
    ('a\\nb\\x1b[31m é', 1600)
    """
    if len(text) > LONGEST:  # the beginning says where, the end what to do
        text = text[: LONGEST - 400] + " ... " + text[-395:]
    return text if text.isprintable() else "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(UserError):
    """A command line that cannot be understood."""

    exit_code = EXIT_USAGE


class Parser(argparse.ArgumentParser):
    """The command lines of this package: options are written out, and of an unknown one the nearest known one
    is named.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(rest[0], self._flags(found)))
        return found

    def error(self, message: str) -> NoReturn:
        if "required" in message:  # what is missing may be there, misspelt
            flags = self._flags()
            wrong = [
                word for word in self._given
                if word.startswith("--") and word.partition("=")[0] not in (*flags, "--", "--help")
            ]
            message = self._unknown(wrong[0], flags) if wrong else message
        super().error(one_line(message))

    def _unknown(self, word: str, flags: list[str]) -> str:
        flag = word.partition("=")[0]
        near = difflib.get_close_matches(flag, flags, 1, 0.0) if flag.startswith("-") else []
        if near:
            return f"unknown option {flag}; did you mean {near[0]}? (--help lists all)"
        return f"unexpected argument {word!r}"

    def _flags(self, found: argparse.Namespace | None = None) -> list[str]:
        """Long options of this parser and of the subcommand that was given (of all, while none is known)."""
        flags = [
            flag for action in self._actions for flag in action.option_strings
            if flag.startswith("--") and flag != "--help"
        ]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = getattr(found, action.dest, None)
                flags += [
                    flag for name, parser in action.choices.items() if chosen in (name, None)
                    for flag in parser._flags(found)
                ]
        return flags


# Controls (but not tab and newline), marks that turn the direction of what follows, and lone surrogates,
# which no output can carry.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text from a file, a model or a server (of any length, on any number of lines) without what a terminal
    would obey.

    >>> printable("a\\x1b[31mred\\r"), printable("caf\\udce9")
    ('a[31mred', 'caf\\\\udce9')
    """
    return _CONTROL.sub(
        lambda found: found[0].encode("unicode_escape").decode() if found[0] >= "\ud800" else "", text)


def main_guard(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code; bad input prints one line, without a
    traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file name of other bytes than UTF-8 is printed as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except FileNotFoundError as error:
        print(one_line(f"error: {error.filename}: no such file or folder"), file=sys.stderr)
        code = EXIT_FAILED
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        print(one_line(f"error: {error.filename}: {error.strerror.lower()}"), file=sys.stderr)
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
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs the package {module!r}: pip install 'mmed[{extra}]'") from error
