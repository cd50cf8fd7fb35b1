"""A step of the corpus over many files: one input file is one unit of work, resumable, everything counted.

In:  files or folders, and a step's function, which keeps or drops each document of one file with a short
     fixed reason (data_prep/clean.py has a short one). Each file is a shard, named after the file.
Out: OUT/kept/SHARD.jsonl.gz; OUT/dropped/SHARD.jsonl.gz (id and reason of each dropped document, with
     --keep_dropped the whole document); OUT/shards/SHARD.json (fingerprint and counts; written last, it means
     that the shard is done); OUT/funnel.json (the counts of all shards).

`options` must hold all that the output depends on (thresholds, a word list, the step's own version). A shard
is redone when they or the size or modification time of its input change; finished shards are not read again.
On a cluster, tasks `--shard 0/n` to `n-1/n` do every n-th shard, and may be started twice; afterwards the
command without --shard adds up the counts.
"""
from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat, starmap
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import documents
from data_prep.documents import SUFFIXES, Document, Funnel, find_inputs, line_writer, shard_name
from data_prep.record_files import DAMAGED
from mmed.utils.errors import UsageError, UserError, printable
from mmed.utils.files import read_json, try_lock, write_json

READING = ("language", "source", "licence", "text_field", "paragraphs", "strict")  # options of read_documents
UNREADABLE = {documents.NO_TEXT, DAMAGED, "not JSON", "not an object", "not UTF-8", "text is not a string"}
LOG_SECONDS = 30  # between two lines of progress
LONGEST_NAME = 180  # bytes in a shard's name, before suffixes; file systems allow 255
PR_SET_PDEATHSIG = 1  # of Linux's prctl
Share = tuple[int, int]  # task i of n


class ShardWriter(contextlib.ExitStack):
    """Where a step's function puts the documents of one shard: `keep` them, or `drop` them with a reason."""

    def __init__(self, out: Path, name: str, options: dict[str, Any]):
        super().__init__()
        self.funnel, self.options = Funnel(), options
        self._kept, self._dropped = (self.enter_context(line_writer(out / folder / f"{name}.jsonl.gz"))
                                     for folder in ("kept", "dropped"))

    def keep(self, document: Document, characters_in: int | None = None) -> None:
        self.funnel.keep(len(document.text), characters_in)
        self._kept(document.to_dict())

    def drop(self, document: Document, reason: str, **more: Any) -> None:
        """Drop a document; the short fixed reason is counted, and `more` holds details of this document."""
        self.funnel.drop(reason, len(document.text), document.id)
        record = document.to_dict() if self.options.get("keep_dropped") else {"id": document.id}
        self._dropped({**record, "reason": reason, **more})


StepFunction = Callable[[Iterator[Document], ShardWriter, dict[str, Any]], None]
Reader = Callable[[Path, Funnel, dict[str, Any]], Iterator[Document]]  # another reader: PDF, HTML


def read_shard(path: Path, funnel: Funnel | None, options: dict[str, Any]) -> Iterator[Document]:
    """The reader of steps over documents; options as `shard_options` gives them."""
    given = {key: options[key] for key in (*READING, "name") if key in options}
    return documents.read_documents(path, funnel, **given)


def shard_names(inputs: list[Path]) -> list[str]:
    """A unique name for each input: with its folders where two files have one name, a long one shortened."""
    absolute = [Path(os.path.abspath(path)) for path in inputs]  # "." has no name
    names = [shard_name(path) for path in absolute]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in absolute])
        names = ["__".join(path.relative_to(common).parts) for path in absolute]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)}: given twice; name each input once")
    return [name if len(os.fsencode(name)) <= LONGEST_NAME else
            f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}" for name in names]


def fingerprint(path: Path, options: dict[str, Any]) -> str:
    """Hash of a file's size and modification time and of the options: equal while a shard is up to date."""
    facts = path.stat()
    # Paths do not count, so that a folder may be given as a relative or an absolute one.
    lasting = {key: value for key, value in options.items() if not isinstance(value, Path)}
    content = [documents.FORMAT_VERSION, facts.st_size, facts.st_mtime_ns, lasting]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def read_finished(done: Path, mark: str) -> dict[str, Any] | None:
    """Return the record of finished work if its fingerprint matches; delete any other record."""
    with contextlib.suppress(UserError):  # none
        record = read_json(done)
        if record.get("fingerprint") == mark:
            return record
    done.unlink(missing_ok=True)
    return None


def process_shard(function: StepFunction, path: Path, name: str, out: Path, options: dict[str, Any],
                  step: str, read: Reader = read_shard) -> dict[str, Any]:
    """Run a step over one input file unless already done; return the content of OUT/shards/NAME.json."""
    done, mark = out / "shards" / f"{name}.json", fingerprint(path, {**options, "step": step})
    record = read_finished(done, mark)
    if record and all((out / folder / f"{name}.jsonl.gz").exists() for folder in ("kept", "dropped")):
        return record
    with ShardWriter(out, name, options) as shard:
        found = tqdm(read(path, shard.funnel, {**options, "name": name}), path.name, unit=" documents",
                     delay=LOG_SECONDS, mininterval=LOG_SECONDS, leave=False)
        function(found, shard, options)
    record = {"fingerprint": mark, "input": path.name, **shard.funnel.to_dict()}
    write_json(done, record)
    return record


def process_shards(function: StepFunction, inputs: Iterable[str | Path], out: str | Path,
                   options: dict[str, Any], workers: int = 1, step: str = "", read: Reader = read_shard,
                   suffixes: tuple[str, ...] = SUFFIXES, share: Share | None = None) -> Funnel:
    """Run a step over all shards, or those of one `share`, that are not finished; returns their counts."""
    out, paths, step = Path(out), find_inputs(inputs, suffixes, out), step or function.__name__
    names = shard_names(paths)
    with one_run(out, share, names):
        jobs = [(function, path, name, out, options, step, read) for path, name in zip(paths, names)]
        records = run_jobs(process_shard, jobs, workers, step, paths, share)
        return add_up(records) if share else write_funnel(out, records, step)


def run_step(function: StepFunction, step: str, options: dict[str, Any], given: Any,
             title: str = "", **reading: Any) -> int:
    """`process_shards` with the arguments of `add_shard_arguments`; prints the counts and returns 0."""
    funnel = process_shards(function, given.inputs, given.out, {**shard_options(given), **options},
                            given.workers, step, share=given.shard, **reading)
    print_funnel(funnel, title or step)
    return 0


def add_up(records: Iterable[dict[str, Any]]) -> Funnel:
    funnel = Funnel()
    for record in records:
        funnel.merge(record)
    return funnel


def write_funnel(out: Path, records: list[dict[str, Any]], step: str, **more: Any) -> Funnel:
    """Add up the counts of all shards in OUT/funnel.json; UserError if no record at all could be read."""
    funnel = add_up(records)
    write_json(out / "funnel.json", {"step": step, "shards": len(records), **more, **funnel.to_dict()})
    reasons = [f"{entry['documents']:,} x {reason} (such as {entry['examples'][0]})"
               for reason, entry in funnel.dropped.items()]
    if reasons and not funnel.documents_out and set(funnel.dropped) <= UNREADABLE:
        raise UserError(f"none of {funnel.documents_in:,} records could be read: {', '.join(reasons)}")
    if funnel.details and not funnel.documents_in:
        found = ", ".join(f"{count:,} {what}" for what, count in funnel.details.items())
        raise UserError(f"no document found, only {found}")
    return funnel


def run_jobs(function: Callable[..., Any], jobs: list[tuple], workers: int, title: str,
             inputs: list[Path], share: Share | None = None) -> list[Any]:
    """Call `function(*job)` for every job, or those of a share; return the results in order.

    The first error names its job's input and ends all workers, as Ctrl-C and SIGTERM do.
    """
    if workers < 1:
        raise UsageError(f"--workers={workers}: must be at least 1")
    first, step = share or (0, 1)
    tasks = list(zip(repeat(function), jobs, inputs))[first::step]
    bar = functools.partial(tqdm, total=len(tasks), desc=title, unit=" files", delay=2,
                            mininterval=0.5 if sys.stderr.isatty() else LOG_SECONDS)
    if min(workers, len(tasks)) <= 1:
        return list(bar(starmap(_named, tasks)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), spawn, end_with_parent) as pool:
        try:
            futures = [pool.submit(_named, *task) for task in tasks]
            for future in bar(as_completed(futures)):
                future.result()
            return [future.result() for future in futures]
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError("a worker was killed (out of memory?); finished files are kept; start again "
                                "with fewer --workers") from None
            raise


def end_with_parent() -> None:
    """SIGKILL for this process when its parent has ended, which may have been killed (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent and parent.pid != os.getppid():  # it ended before
        os._exit(1)


def _named(function: Callable[..., Any], job: tuple, path: Path) -> Any:
    try:
        return function(*job)
    except UserError:
        raise
    except Exception as error:
        kind = UserError if isinstance(error, OSError) else RuntimeError
        raise kind(f"{path}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def one_run(out: Path, share: Share | None = None, names: list[str] | None = None) -> Iterator[None]:
    """Allow one run per folder, with only the shards `names`; tasks with a share may run in parallel."""
    out.mkdir(parents=True, exist_ok=True)
    others = {path.name.removesuffix(".jsonl.gz") for path in (out / "kept").glob("*.gz")} - set(names or ())
    if names is not None and others:
        raise UserError(f"{out}: holds results for other inputs ({', '.join(sorted(others)[:3])}); "
                        "give another --out or empty the folder")
    if share:
        yield
        return
    with open(out / ".lock", "w") as lock:
        if not try_lock(lock):
            raise UserError(f"{out}: another run is writing here; wait for it or give another --out")
        for path in out.rglob("*.*.tmp"):  # what a killed run left
            if path.suffixes[-2][1:].isdigit():
                path.unlink(missing_ok=True)
        yield


def parse_share(text: str) -> Share:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text}: expected i/n with i from 0 to n-1, such as 0/8")
    return int(match[1]), int(match[2])


def add_shard_arguments(parser: Any, out_required: bool = True, suffixes: tuple[str, ...] = SUFFIXES,
                        out: str = "folder for kept/, dropped/, shards/ and funnel.json") -> None:
    """Add the options common to all steps over shards."""
    add, kinds = parser.add_argument, documents.list_suffixes(suffixes)
    add("inputs", nargs="+", metavar="IN", help=f"input files ({kinds}) or folders")
    add("--out", required=out_required, help=out)
    add("--workers", type=int, default=1, help="processes; each handles one file at a time (default: 1)")
    add("--shard", type=parse_share, metavar="i/n",
        help="process only files i, i + n, ... (from 0); when all n are done, run once without it")
    add("--source", default="", help="web, book, site or corpus (default: as in the documents)")
    add("--licence", "--license", default="", help="licence for documents without one (meta.licence)")
    if suffixes == SUFFIXES:
        add("--text_field", default="",
            help="field with the text (default: text, content or raw_content; a.b for a nested field)")
        add("--paragraphs", action="store_true", help="split .txt files into documents at blank lines")
    add("--keep_dropped", action="store_true", help="write dropped documents in full, not just id and reason")
    add("--strict", action="store_true", help="stop at the first unusable record")


def shard_options(arguments: Any) -> dict[str, Any]:
    """The arguments that a shard's output depends on."""
    return {name: getattr(arguments, name) for name in (*READING, "keep_dropped") if hasattr(arguments, name)}


def print_funnel(funnel: Funnel, title: str) -> None:
    print(f"{title}: {funnel.documents_in:,} documents in, {funnel.documents_out:,} kept; "
          f"{funnel.characters_in:,} characters in, {funnel.characters_out:,} kept")
    for reason, entry in sorted(funnel.dropped.items(), key=lambda item: -item[1]["documents"]):
        example = entry["examples"][0] if entry["examples"] else "-"
        print(printable(f"  {entry['documents']:>10,}  {reason}  (e.g. {example})"))
    for what, count in sorted(funnel.details.items()):
        print(f"  {count:>10,.0f}  {what}")
