"""Mutation check: small faults planted in the core, one at a time; how many do the tests catch?   make mutants

    python benchmarks/mutants/mutants.py [--only WORD,...] [--shard K/N] [--out FILE.jsonl] [--again]

Each fault (benchmarks/mutants/mutant_list.py) names a file, a text that stands there once, what stands there instead, and the tests whose
work it is to notice. A copy of the checkout gets the fault, those tests run on it, and the file is put right again; nothing is
written to the checkout itself. Caught: a test fails, or does not end in LIMIT seconds. A fault after which nothing can be imported,
or whose text is not there any more, is an error of the list and not a success of the tests. At the end every test that failed runs
once on the copy without a fault: one that fails there too has caught nothing.

Results go to --out line by line, by fault and by the state of all sources: a run that was stopped goes on, one on changed sources
begins anew (with --only: what was asked for is run again, the rest is kept). Exit code 1: survivors beyond ALLOWED, or errors.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from mutant_list import FAULTS, Fault
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("mmed", "data_prep", "tests", "tasks", "examples", "docs", "benchmarks", "pyproject.toml", "README.md", "Makefile")
LIMIT = 600  # seconds for the tests of one fault
ALLOWED = 2  # survivors in FAULTS: of 50 at least 48 are to be caught
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


def copy_checkout(target: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target / name)


def state_of(folder: Path) -> str:
    """A hash of all that decides whether a fault is caught."""
    files = sorted(path for part in ("mmed", "data_prep", "tests") for path in (folder / part).rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files).encode()).hexdigest()


def planted(text: str, fault: Fault) -> str:
    """The file with its fault; a `ValueError` if the place is not there, or not clear."""
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file}: {fault.old!r} stands there {text.count(fault.old)} times, expected once")
    changed = text.replace(fault.old, fault.new)
    if changed == text:
        raise ValueError(f"{fault.file}: the fault changes nothing")
    compile(changed, fault.file, "exec") if fault.file.endswith(".py") else None
    return changed


def preload() -> None:
    """Import what tests import besides the package: each fault's tests run in a fork of this process, which takes most of their time off."""
    for name in ("torch", "numpy", "scipy.stats", "sentencepiece", "tiktoken", "safetensors.torch", "tokenizers", "transformers", "peft", "nltk", "openai", "pytest",
                 "torch.distributed.checkpoint", "transformers.models.llama.modeling_llama", "transformers.models.gemma3.modeling_gemma3"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # tests that need it are skipped, and a fault that survives for it is shown
    assert "mmed" not in sys.modules and "data_prep" not in sys.modules, "expected the copy to be imported in the fork"


def run_tests(folder: Path, arguments: list[str], limit: float) -> tuple[int | None, str]:
    """(exit code of pytest or None if it did not end, output) of these tests in the copy; what they started ends with them."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            os.setsid()
            for number in (1, 2):
                os.dup2(output.fileno(), number)
            os.chdir(folder)
            os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
            sys.dont_write_bytecode, sys.path[0] = True, str(folder)
            code = 3
            try:
                import pytest

                import mmed

                assert mmed.__file__.startswith(str(folder)), f"expected the tests to import the copy, they import {mmed.__file__}"
                code = int(pytest.main(["-x", "-rfE", "--tb=line", "-p", "no:cacheprovider", *arguments]))
            except BaseException:  # as an import of a fault may raise anything
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end, code = time.monotonic() + limit, None
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.05)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if code is None:
            os.waitpid(child, 0)
        output.seek(0)
        return code, output.read()


def test_arguments(fault: Fault) -> list[str]:
    """"model lora -k scale" -> tests/test_model.py tests/test_lora.py -k scale; "mmed/x.py" stays: its doctests."""
    words = shlex.split(fault.tests)
    end = words.index("-k") if "-k" in words else len(words)
    return [word if "/" in word else str(next((ROOT / "tests").rglob(f"test_{word}.py")).relative_to(ROOT)) for word in words[:end]] + words[end:]


def try_fault(folder: Path, fault: Fault) -> dict:
    path, begin = folder / fault.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    try:
        path.write_text(planted(original, fault), encoding="utf-8")
        code, output = run_tests(folder, test_arguments(fault), LIMIT)
    except (ValueError, SyntaxError) as error:
        return {"fault": fault.name, "result": "error", "by": str(error), "seconds": 0.0}
    finally:
        path.write_text(original, encoding="utf-8")
    by = FAILED.findall(output)
    result = {None: "caught", 0: "survived", 1: "caught"}.get(code, "error")  # 1: a test failed; others: it could not be run
    told = "does not end" if code is None else by[0] if by else "" if code == 0 else output.strip()[-300:]
    return {"fault": fault.name, "result": result, "by": told, "seconds": round(time.monotonic() - begin, 1)}


def read_results(path: Path, state: str, again: set[str]) -> dict[str, dict]:
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {row["fault"]: row for row in rows if (again or row["state"] == state) and row["fault"] not in again}


def table(rows: list[tuple[Fault, dict]]) -> str:
    lines = ["| fault planted | in | result | by the test | s |", "|---|---|---|---|---|"]
    for fault, row in rows:
        by = row["by"].partition("::")[2].partition("[")[0] or row["by"].replace("\n", " ").replace("|", "/")
        lines.append(f"| {fault.name} | `{fault.file}` | {row['result']} | {by} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", default="", metavar="WORD,...", help="faults whose name or file holds one of these words; they are run again")
    parser.add_argument("--shard", default="1/1", metavar="K/N", help="each N-th fault, beginning with the K-th")
    parser.add_argument("--out", default="", metavar="FILE.jsonl", help="results so far (default: none kept); shards may share it")
    parser.add_argument("--again", action="store_true", help="run all again")
    parser.add_argument("--list", action="store_true", help="print the faults and whether each can be planted; run nothing")
    arguments = parser.parse_args()
    words = [word for word in arguments.only.split(",") if word]
    chosen = [fault for fault in FAULTS if not words or any(word in f"{fault.name} {fault.file}" for word in words)]
    number, _, shards = arguments.shard.partition("/")
    if not chosen or not (number.isdigit() and shards.isdigit() and 1 <= int(number) <= int(shards)):
        parser.error("--only matches no fault" if not chosen else "--shard: expected K/N, such as 1/2")
    chosen = chosen[int(number) - 1::int(shards)]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS), "two faults of one name"
    if arguments.list:
        for fault in chosen:
            try:
                planted((ROOT / fault.file).read_text(encoding="utf-8"), fault)
                print(f"ok     {fault.name}")
            except (ValueError, SyntaxError, FileNotFoundError) as error:
                print(f"ERROR  {fault.name}: {error}")
        return 0
    out = Path(arguments.out) if arguments.out else None
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        copy_checkout(folder)
        state = state_of(folder)
        preload()
        again = {fault.name for fault in chosen} if words or arguments.again else set()
        done = read_results(out, state, again) if out else {}
        tqdm.monitor_interval = 0  # no thread beside the one that forks
        for fault in tqdm(chosen, unit="fault", disable=None):
            if fault.name in done:
                continue
            done[fault.name] = row = try_fault(folder, fault) | {"state": state}
            if row["result"] != "caught":
                print(f"{row['result'].upper()}: {fault.name}: {row['by'][-300:]}", file=sys.stderr, flush=True)
            if out:
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        rows = [(fault, done[fault.name]) for fault in chosen]
        by = sorted({row["by"] for _, row in rows if row["result"] == "caught" and "::" in row["by"]})
        code, output = run_tests(folder, by, 4 * LIMIT) if by else (0, "")
    print(table(rows))
    counts = {kind: sum(row["result"] == kind for _, row in rows) for kind in ("caught", "survived", "error")}
    print(f"\n{len(rows)} faults: {counts['caught']} caught, {counts['survived']} survived, {counts['error']} errors of the list; "
          f"{sum(row['seconds'] for _, row in rows) / 60:.1f} minutes")
    if code != 0:
        print(f"error: of the {len(by)} tests that failed with a fault, these fail without one too:\n{output[-2000:]}", file=sys.stderr)
    return int(counts["survived"] > ALLOWED or counts["error"] > 0 or code != 0)


if __name__ == "__main__":
    sys.exit(main())
