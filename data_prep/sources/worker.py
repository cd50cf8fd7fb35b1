"""Runs functions on untrusted files in a child process with limits on time and memory.

Parsers in C (PDFium, lxml) can hang or crash on a damaged file. Here this costs one page or one book.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from data_prep.documents import Document
from data_prep.pipeline.shards import ShardWriter, end_with_parent
from mmed.utils.errors import UserError

MEMORY_BYTES = 4 << 30  # address space of the child


class Unreadable(Exception):
    """A page or book that cannot be used. The message is a short fixed reason; the funnel counts by it."""


def keep_readable(found: Iterator[tuple[Document, str]], shard: ShardWriter, options: dict[str, Any]) -> None:
    """The function of a step: keeps documents, drops those with a reason or, with --strict, stops there."""
    for document, reason in found:
        if reason and options["strict"]:
            where = document.meta.get("file") or document.meta.get("url", "")
            raise UserError(f"{document.id} ({where}): {reason}; omit --strict to drop and count it")
        if reason:
            shard.drop(document, reason)
        else:
            shard.keep(document)


class Worker(contextlib.AbstractContextManager):
    """A child process that runs one function call at a time, each for at most `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self._pool = seconds, _new_pool()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; `Unreadable` if it raises that, exceeds a limit or crashes the child."""
        try:
            return self._pool.submit(function, *arguments).result(self.seconds)
        except (MemoryError, RecursionError, TimeoutError, BrokenExecutor) as error:
            self.__exit__()
            self._pool = _new_pool()
            raise Unreadable(f"cannot be read ({type(error).__name__})") from None

    def __exit__(self, *error: Any) -> None:
        for process in multiprocessing.active_children():
            process.kill()
        self._pool.shutdown()


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _limit)


def _limit() -> None:
    """In the child: it may use so much memory, ends with its parent, and leaves Ctrl-C to it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
