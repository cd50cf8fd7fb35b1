"""What each task of a corpus on a cluster reads, writes and holds open, counted.

    python benchmarks/data_prep/count_io.py [--shards 2000] [--tasks 40] [--documents 5]

The steps filter, deduplicate, decontaminate and tokenize run over made-up English shards, each in `--tasks`
tasks with `--shard i/n`, and once more without it where the counts are added up. Every task is a process of
its own. The system counts its bytes (/proc/self/io), an audit hook the files that it opens.

Out: for each step, of its tasks the largest number of bytes read and written, inputs opened and files open at
     once; and the bytes that the step's inputs have in all.
"""
from __future__ import annotations

import importlib
import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.timing import print_head, print_row
from data_prep import dedup
from data_prep.documents import find_inputs, json_line
from mmed.languages import get_language
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import Parser

# Imported before any task is forked, so that no task counts the reading of modules.
MODULES = {name: importlib.import_module(f"data_prep.{name}")
           for name in ("filter_medical", "dedup", "decontaminate", "tokenize_corpus")}
importlib.import_module("numpy.ma")  # which numpy imports late


@dataclass
class Task:
    """What one process did."""

    step: str
    shard: int  # i of --shard i/n; -1 without
    input_bytes: int  # size of all inputs of the step
    read: int = 0  # bytes
    written: int = 0
    open_at_once: int = 0  # beyond the three standard ones
    inputs: tuple[str, ...] = ()  # inputs opened, by name
    again: int = 0  # the most often that one file was opened for reading


def write_corpus(folder: Path, shards: int, documents: int) -> None:
    """FOLDER/raw: shards of JSON lines, near duplicates among them; FOLDER/exam.jsonl; FOLDER/tokenizer."""
    rng, sentence = random.Random(0), get_language("en").medical_sentence
    words = sorted({"".join(rng.choices("abcdefghijklm", k=rng.randint(3, 9))) for _ in range(4000)})
    (folder / "raw").mkdir(parents=True)
    earlier: list[str] = []
    for shard in range(shards):
        texts = [f"{sentence} {' '.join(rng.choices(words, k=120))}." for _ in range(documents - 1)]
        near = rng.choice(earlier or texts).split(" ")
        near[-rng.randint(5, 60)] = "changed"
        texts.append(" ".join(near))
        earlier = [*earlier[-200:], texts[0]]
        lines = [json_line({"text": text, "id": f"{shard}-{number}"}) for number, text in enumerate(texts)]
        (folder / "raw" / f"{shard:05}.jsonl").write_bytes(b"".join(lines))
    (folder / "exam.jsonl").write_bytes(json_line({"question": " ".join(rng.choices(words, k=20))}))
    train_sentencepiece(earlier, folder / "tokenizer", 400)


def run_task(module: str, arguments: list[str], task: Task, inputs: set[str]) -> Task:
    """Run a command in a fork and count."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        os._exit(_counted(module, arguments, task, inputs, send))
    os.close(send)
    with open(receive, encoding="utf-8") as file:
        answer = file.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{task.step} {task.shard}: {answer}")
    return Task(**json.loads(answer))


def _counted(module: str, arguments: list[str], task: Task, inputs: set[str], send: int) -> int:
    opened: Counter[str] = Counter()

    def watch(event: str, details: tuple) -> None:
        if event == "open" and isinstance(details[1], str) and "/proc" not in str(details[0]):
            if not set(details[1]) & set("wax"):
                opened[str(details[0])] += 1
            task.open_at_once = max(task.open_at_once, len(os.listdir("/proc/self/fd")) - already)

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        already = len(os.listdir("/proc/self/fd"))
        sys.addaudithook(watch)
        os.fsync = lambda number: None  # waiting for the disk changes no count
        read, written = io_counts()
        MODULES[module].main(arguments)
        end = io_counts()
        task.read, task.written = end[0] - read, end[1] - written
        task.inputs = tuple(sorted(Path(name).name for name in opened if name in inputs))
        task.again = max(opened.values(), default=0)
        os.write(send, json.dumps(vars(task)).encode())
        return 0
    except BaseException:
        os.write(send, traceback.format_exc().encode())
        return 1


def io_counts() -> tuple[int, int]:
    """Bytes that this process has read and written so far, through read() and write() of any kind."""
    lines = Path("/proc/self/io").read_text().split()
    return int(lines[1]), int(lines[3])


def stages(work: Path) -> list[tuple[str, str, list[Path], list[str], bool]]:
    """(step, module, inputs, options, whether tasks share it) in order."""
    raw, medical, unique, clean = (work / name for name in ("raw", "medical", "unique", "clean"))
    found = [("filter", "filter_medical", raw, ["--language", "en", "--out", str(medical)], True)]
    for stage in dedup.STAGES:
        options = ["--out", str(unique), "--stage", stage]
        found.append((f"dedup, {stage}", "dedup", medical, options, stage in dedup.SHARED))
    found += [("decontaminate", "decontaminate", unique,
               ["--benchmark", str(work / "exam.jsonl"), "--out", str(clean)], True),
              ("tokenize", "tokenize_corpus", clean,
               ["--tokenizer", str(work / "tokenizer"), "--out", str(work / "stream")], True)]
    return found


def count(work: Path, tasks: int) -> list[Task]:
    """Run all steps below `work`, which `write_corpus` has filled."""
    counted = []
    for step, module, folder, options, shared in stages(work):
        files = {str(path) for path in find_inputs([folder])}
        size = sum(os.path.getsize(path) for path in files)
        for shard in range(tasks) if shared else ():
            share = [str(folder), *options, "--shard", f"{shard}/{tasks}"]
            counted.append(run_task(module, share, Task(step, shard, size), files))
        if step not in ("dedup, sign", "dedup, compare"):
            counted.append(run_task(module, [str(folder), *options], Task(step, -1, size), files))
    return counted


def print_table(counted: list[Task]) -> None:
    """A line for the tasks of a step, and one for its last task without --shard."""
    print_head("step", "tasks", "MB of inputs", "MB read", "MB written", "inputs opened", "open at once")
    for step in dict.fromkeys(task.step for task in counted):
        for title, last in ((step, False), (f"{step}, all together", True)):
            group = [task for task in counted if task.step == step and (task.shard < 0) == last]
            if group:
                print_row(title, len(group), f"{group[0].input_bytes / 1e6:.2f}",
                          f"{max(task.read for task in group) / 1e6:.3f}",
                          f"{max(task.written for task in group) / 1e6:.3f}",
                          max(len(task.inputs) for task in group), max(task.open_at_once for task in group))


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--documents", type=int, default=5, help="in a shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), options.shards, options.documents)
        print_table(count(Path(folder), options.tasks))


if __name__ == "__main__":
    main()
