"""Runs functions on untrusted files in a child process with limits on time and memory.

Parsers in C (PDFium, lxml) can hang or crash on a damaged file. Here this costs one page or one book: the
caller gets an `Unreadable` exception, and the next call starts a new child.

    with Worker(seconds=60) as worker:
        text = worker.call(read_page, body)
"""
from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data_prep.documents import Document
from data_prep.pipeline.shards import Reader, ShardWriter, print_funnel, process_shards, shard_options

MEMORY_BYTES = 4 << 30  # address space of the child


class Unreadable(Exception):
    """A page or book that cannot be used. The message is a short fixed reason, by which the funnel counts."""


class Worker(contextlib.AbstractContextManager):
    """A child process that runs one function call at a time, each for at most `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._process: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; `Unreadable` if it raises that, exceeds a limit or crashes the child."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # so that the end of the child is seen as the end of the pipe
        self._connection.send((function, arguments))
        reason = "took too long to read"
        if self._connection.poll(self.seconds):
            try:
                answer = self._connection.recv()
            except EOFError:
                reason = "crashed the reader"
            else:
                if isinstance(answer, Exception):
                    raise answer
                return answer
        self.close()
        raise Unreadable(reason)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def __exit__(self, *error: Any) -> None:
        self.close()


def _serve(connection: Connection) -> None:
    """The child: answers calls until the parent closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which then ends the child
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = function(*arguments)
        except Unreadable as error:
            answer = error
        except (MemoryError, RecursionError):
            answer = Unreadable("needs too much memory")
        except Exception:
            answer = RuntimeError(traceback.format_exc())
        connection.send(answer)


def keep_or_drop(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """The step function of readers, which put a `reason` into the meta of documents to drop."""
    for document in documents:
        if reason := document.meta.pop("reason", ""):
            shard.drop(document, reason)
        else:
            shard.keep(document)


def run_reader(read: Reader, step: str, units: list[Path], suffixes: tuple[str, ...],
               options: dict[str, Any], given: Any) -> int:
    """Like `run_step` for a step that makes documents out of something else; prints all counts."""
    funnel = process_shards(keep_or_drop, units, given.out, {**options, **shard_options(given)},
                            given.workers, step, read, suffixes, share=given.shard)
    print_funnel(funnel, f"{step} {options['language']}")
    for key, amount in sorted(funnel.details.items()):
        print(f"  {amount:>10,.0f}  {key}")
    return 0
