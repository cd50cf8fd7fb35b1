"""A step of the corpus over many files: one process a file at a time, resumable, everything counted.

In:  files or folders (`find_inputs`), and a step's function. Each file is a shard; its name without suffix is its name in OUT.
Out: OUT/kept/SHARD.jsonl.gz, OUT/dropped/SHARD.jsonl.gz (the document and its `reason`), OUT/shards/SHARD.json (fingerprint
     and counts; written last, so it says that the shard is done), OUT/funnel.json (all shards together).

How to write a step: a function of the module's own (it travels to other processes by name) that takes the documents of one
shard as they come, and keeps or drops each with a short fixed reason. It sees no path, no worker and no other shard:

    def shorten_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
        for document in documents:
            if len(document.text) < options["shortest"]:
                shard.drop(document, "too short", characters=len(document.text))   # the rest is free, one record a document
            else:
                shard.funnel.add("documents shortened")                            # any other sum; stands under `details`
                before, document.text = len(document.text), document.text[:options["longest"]]
                shard.keep(document, characters_in=before)

    process_shards(shorten_shard, inputs, out, {"shortest": 20, "longest": 9000, **shard_options(arguments)}, workers, "shorten")

`options` must hold all that the output depends on (also the step's own version number, a word list, the hash of a model):
it goes into the fingerprint with the input's bytes and the step's name, and a shard is redone when that changes.

A step that makes documents out of something else (PDF, HTML, WARC) gives its own `read(path, funnel, options)`, which yields
`Document`s and counts in the funnel, by `funnel.drop(reason, 0, where)`, what gives none; and its own `suffixes`. Then
`keep_all` may be all its function does. Work that has no kept and dropped documents (signatures, token ids) calls `run_jobs`
itself under `one_run`, and keeps its own fingerprint beside what it wrote.

On a cluster (data_prep/pipeline/cluster.py) many tasks run the same command, each within `only_share`; then it is run once more without, finds
the shards done and adds up. The bytes are those of one machine, since a shard's output depends on nothing but its input and
options. `one_run` locks one machine's folder; a scheduler that starts a task twice does no harm, as files appear whole.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.documents import (
    FORMAT_VERSION,
    FORMS,
    SUFFIXES,
    Document,
    Funnel,
    LineWriter,
    find_inputs,
    read_documents,
    shard_name,
)
from mmed.utils.errors import UserError, printable
from mmed.utils.files import read_json, write_json


class ShardWriter:
    """Where a step's function puts the documents of one shard: `keep` them or `drop` them with a reason."""

    def __init__(self, out: Path, name: str, suffix: str = ".jsonl.gz"):
        self.funnel = Funnel()
        self._stack = contextlib.ExitStack()
        self._kept = self._stack.enter_context(LineWriter(out / "kept" / f"{name}{suffix}"))
        self._dropped = self._stack.enter_context(LineWriter(out / "dropped" / f"{name}{suffix}"))

    def keep(self, document: Document, characters_in: int | None = None) -> None:
        self.funnel.keep(len(document.text), characters_in)
        self._kept.write(document.to_dict())

    def drop(self, document: Document, reason: str, **more: Any) -> None:
        """Drop with a short fixed reason (it is counted); what differs from document to document goes into `more`."""
        self.funnel.drop(reason, len(document.text), document.id)
        self._dropped.write({**document.to_dict(), "reason": reason, **more})

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stack.__exit__(*error)


StepFunction = Callable[[Iterator[Document], ShardWriter, dict[str, Any]], None]
Reader = Callable[[Path, Funnel, dict[str, Any]], Iterator[Document]]


def read_shard(path: Path, funnel: Funnel, options: dict[str, Any]) -> Iterator[Document]:
    """The reader of steps over documents, with what `shard_options` put into the options."""
    return read_documents(path, funnel, **{key: options[key] for key in READING if key in options})


READING = ("language", "source", "licence", "paragraphs", "strict")  # the options that say how a file is read


def keep_all(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    """The function of a step whose work is done by its reader."""
    for document in documents:
        shard.keep(document)


# ---- one shard --------------------------------------------------------------------------------------------------------


def shard_names(inputs: list[Path]) -> list[str]:
    """A name for each input, none twice: files of one name in two folders carry the folders that tell them apart."""
    if len({path.resolve() for path in inputs}) < len(inputs):
        twice = next(path for path in inputs if sum(path.resolve() == other.resolve() for other in inputs) > 1)
        raise UserError(f"{twice}: given twice; name each input once")
    names = [shard_name(path) for path in inputs]
    if len(set(names)) == len(names):
        return names
    absolute = [path.absolute() for path in inputs]
    common = os.path.commonpath([path.parent for path in absolute])
    names = ["__".join(path.relative_to(common).parts) for path in absolute]
    if len(set(names)) < len(names):
        raise UserError(f"two inputs would write the same shard {max(names, key=names.count)!r}; rename one")
    return names


def fingerprint(path: Path, options: dict[str, Any]) -> str:
    """Hash of a file's bytes and of the options: the same again means that the shard need not be done again."""
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    told = json.dumps([FORMAT_VERSION, content, options], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def process_shard(function: StepFunction, path: Path, name: str, out: Path, options: dict[str, Any], step: str = "",
                  read: Reader = read_shard) -> dict[str, Any]:
    """Run a step over one input file unless it is done; returns its funnel. The unit of work, here and on a cluster.

    `step` is the name in the fingerprint: not the function's module, which is another when the module is run as a command.
    """
    done, mark = out / "shards" / f"{name}.json", fingerprint(path, {**options, "step": step or function.__name__})
    suffix = options.get("suffix", ".jsonl.gz")
    if done.exists():
        record = read_json(done)
        if record.get("fingerprint") == mark and all((out / folder / f"{name}{suffix}").exists() for folder in ("kept", "dropped")):
            return record
        done.unlink()
    with ShardWriter(out, name, suffix) as shard:
        function(read(path, shard.funnel, options), shard, options)
    record = {"fingerprint": mark, "input": path.name, **shard.funnel.to_dict()}
    write_json(done, record)
    return record


# ---- many shards ------------------------------------------------------------------------------------------------------


def process_shards(function: StepFunction, inputs: Iterable[str | Path], out: str | Path, options: dict[str, Any], workers: int = 1,
                   step: str = "", read: Reader = read_shard, suffixes: tuple[str, ...] = SUFFIXES) -> Funnel:
    """Run a step's function over shards on `workers` processes; finished shards are passed over on the next start.

    The first error stops the run and names its input; what was finished stays. The bytes written do not depend on `workers`.
    """
    out, paths, step = Path(out), find_inputs(inputs, suffixes), step or function.__name__
    names = shard_names(paths)
    with one_run(out):
        refuse_strangers(out, names)
        jobs = [(function, path, name, out, options, step, read) for path, name in zip(paths, names)]
        run_jobs(process_shard, jobs, workers, step, [str(path) for path in paths])
        return gather_funnel(out, names, step)


def refuse_strangers(out: Path, names: list[str]) -> None:
    """A folder that holds shards of other inputs would mix two corpora."""
    strangers = sorted({path.stem for path in (out / "shards").glob("*.json")} - set(names))
    if strangers:
        raise UserError(f"{out}: holds shards of other inputs ({', '.join(strangers[:3])}...); give another --out or empty the folder")


def gather_funnel(out: Path, names: list[str], step: str, **more: Any) -> Funnel:
    """When all shards are done: add up their counts, in the order of the names, and write OUT/funnel.json."""
    funnel = Funnel()
    for name in names:
        funnel.merge(read_json(out / "shards" / f"{name}.json"))
    remove_leftovers(out)
    write_json(out / "funnel.json", {"step": step, "shards": len(names), **more, **funnel.to_dict()})
    return funnel


def run_jobs(function: Callable[..., Any], jobs: list[tuple], workers: int, title: str, inputs: list[str]) -> list[Any]:
    """`function(*job)` for each job, the results in the order of the jobs; each worker does one job at a time.

    inputs: what each job is about, which an error of that job names.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    if _share:
        rank, world_size = _share
        for number in range(rank, len(jobs), world_size):
            _named(function, jobs[number], inputs[number])
        raise ShareDone
    assert len(inputs) == len(jobs), f"expected a name for each of {len(jobs)} jobs, got {len(inputs)}"
    results: list[Any] = [None] * len(jobs)
    with tqdm(total=len(jobs), desc=title, unit="shard", disable=None) as bar:
        for number, result in _finished(function, jobs, min(workers, len(jobs)), inputs):
            results[number] = result
            bar.update()
    return results


def _finished(function: Callable[..., Any], jobs: list[tuple], workers: int, inputs: list[str]) -> Iterator[tuple[int, Any]]:
    """(number, result) of each job as soon as it is there, so that the first failure stops the run at once."""
    if workers <= 1:
        for number, job in enumerate(jobs):
            yield number, _named(function, job, inputs[number])
        return

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting, running = iter(range(len(jobs))), {}
        try:
            while True:
                while len(running) < workers and (number := next(waiting, None)) is not None:
                    running[pool.submit(_named, function, jobs[number], inputs[number])] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            raise UserError(f"a worker was killed (out of memory?) while on one of: {', '.join(inputs[number] for number in running.values())}; "
                            "finished shards are kept, start again with fewer --workers") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _named(function: Callable[..., Any], job: tuple, name: str) -> Any:
    """Do one job; whatever goes wrong carries the input's name."""
    try:
        return function(*job)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")) from error
    except Exception as error:
        raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error


_share: tuple[int, int] | None = None  # this process is a task of data_prep/pipeline/cluster.py: (rank, number of tasks)


class ShareDone(Exception):
    """A task has done its share of a command's first phase; the rest of the command is not its business."""


@contextlib.contextmanager
def only_share(rank: int, world_size: int) -> Iterator[None]:
    """Within, a step does the jobs rank, rank + world_size, ... of its first `run_jobs` and then raises ShareDone.

    Other tasks write into the same folder meanwhile, so `one_run` locks nothing and clears nothing away.
    """
    global _share
    _share = (rank, world_size)
    try:
        yield
    finally:
        _share = None


@contextlib.contextmanager
def one_run(out: Path) -> Iterator[None]:
    """Only one run at a time writes into a folder; the lock goes with the process, also when it is killed."""
    out.mkdir(parents=True, exist_ok=True)
    if _share:
        yield
        return
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another run is writing here; wait for it or give another --out") from None
        remove_leftovers(out)
        yield


def remove_leftovers(out: Path) -> None:
    """Half-written files of a killed run (mmed.utils.files.atomic_write names them); only while nobody writes."""
    for path in out.rglob("*.tmp"):
        if path.suffixes[-2:-1] and path.suffixes[-2][1:].isdigit():
            path.unlink(missing_ok=True)


# ---- on the command line ----------------------------------------------------------------------------------------------


def add_shard_arguments(parser: Any, out_required: bool = True, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """The options that every step over shards has."""
    kinds = FORMS if suffixes == SUFFIXES else ", ".join(suffixes)
    parser.add_argument("inputs", nargs="+", metavar="IN", help=f"files ({kinds}) or folders of them")
    parser.add_argument("--out", required=out_required, help="folder for kept/, dropped/, shards/ and funnel.json")
    parser.add_argument("--workers", type=int, default=1, help="processes, one shard each at a time (default: %(default)s)")
    parser.add_argument("--source", default="", help="source to write where a document names none (web, book, site, corpus)")
    parser.add_argument("--licence", default="", help="licence to write (meta.licence) where a document names none")
    if suffixes == SUFFIXES:
        parser.add_argument("--paragraphs", action="store_true", help="in .txt files a document ends at a blank line, not at the file's end")
    parser.add_argument("--suffix", default=".jsonl.gz", choices=(".jsonl", ".jsonl.gz", ".jsonl.zst"), help="form of the output")
    parser.add_argument("--strict", action="store_true", help="stop at the first line that cannot be used")


def shard_options(arguments: Any) -> dict[str, Any]:
    """Of these arguments, what a shard's output depends on."""
    names = ("source", "licence", "paragraphs", "suffix", "strict")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def print_funnel(funnel: Funnel, title: str) -> None:
    """A step's counts as a few lines."""
    print(f"{title}: {funnel.documents_in:,} documents in, {funnel.documents_out:,} kept; "
          f"{funnel.characters_in:,} characters in, {funnel.characters_out:,} kept")
    for reason, entry in sorted(funnel.dropped.items(), key=lambda item: -item[1]["documents"]):
        print(printable(f"  {entry['documents']:>10,}  {reason}  (e.g. {entry['examples'][0] if entry['examples'] else '-'})"))
