"""User errors in one line, exit codes, and the option parser of all commands.

Unusable input, typed or in a file, raises `UserError`, which `main_guard` prints without a traceback. Exit
codes: 0 done, 1 failed, 2 wrong usage, 75 stopped by a signal and resumable.
"""
from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import re
import signal
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 75
LONGEST = 1600  # characters of a message
# Control characters except tab and newline, characters that change the direction of text, lone surrogates
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Bad input: the message names the file, line or option, what is wrong, and what to do.

    It may quote any text; it becomes one printable line of limited length.
    """

    exit_code = EXIT_FAILED
    everywhere = False  # True: all ranks of a run raise the same error, so printing it once is enough

    def __init__(self, message: object):
        super().__init__(one_line(str(message)))


class UsageError(UserError):
    """A wrong command line."""

    exit_code = EXIT_USAGE


def one_line(text: str) -> str:
    r"""
    >>> one_line("a\nb\x1b[31m é"), len(one_line("x" * 10 ** 6))
    ('a\\nb\\x1b[31m é', 1600)
    """
    if len(text) > LONGEST:  # the beginning says where, the end what to do
        text = text[: LONGEST - 400] + " ... " + text[-395:]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """Strip terminal control characters from text of a file, a model or a server.

    >>> printable("a\\x1b[31mred\\r"), printable("caf\\udce9")
    ('a[31mred', 'caf\\\\udce9')
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1] if found[0] >= "\ud800" else "", text)


class Parser(argparse.ArgumentParser):
    """The parser of every command: `--kebab-case` means `--snake_case`, unknown options get a suggestion.

    `example`: the command lines at the end of --help. Options are written out, never abbreviated.
    """

    def __init__(self, *arguments: Any, example: str = "", **settings: Any):
        if example:
            settings["epilog"] = "example:\n  " + example.replace("\n", "\n  ")
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **settings | {"allow_abbrev": False})

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        options = {option.replace("-", "_"): option for option in self._long_options()}
        for place, word in enumerate(words[:words.index("--")] if "--" in words else words):
            name, equals, value = word.partition("=")
            if name.startswith("--") and " " not in name:
                known = options.get(name.replace("-", "_"))
                if not known:
                    near = difflib.get_close_matches(name, options.values(), 1, 0.0)[0]
                    self.error(one_line(f"unknown option {name}; did you mean {near}? (--help lists all)"))
                words[place] = known + equals + value
        found, rest = self.parse_known_args(words, namespace)
        if rest:
            self.error(one_line(f"unrecognized arguments: {' '.join(rest)}"))
        return found

    def _long_options(self) -> list[str]:
        """All options that begin with two dashes, of the subcommands, too."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        subparsers = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        for action in subparsers:
            for parser in action.choices.values():
                options += parser._long_options()
        return options


def main_guard(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and exit with its code; bad input prints one line instead of a traceback.

    SIGTERM is handled like Ctrl-C, unless the command handles it itself.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    streams: tuple[Any, ...] = sys.stdin, sys.stdout
    for stream in streams:  # text in another encoding becomes escapes
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # not a file, or read from already
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # `| head` has closed the pipe
        sys.stderr.close()
        code = EXIT_FAILED
    except OSError as error:
        if error.filename is None:
            raise
        print(one_line(f"error: {error.filename}: {str(error.strerror).lower()}"), file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = EXIT_STOPPED
    sys.exit(code)


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package, or exit with code 2 and name the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this needs the package {module!r}; run pip install 'mmed[{extra}]'") from error
