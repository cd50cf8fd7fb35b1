"""Fuzzers of everything that reads strangers' files: inputs, time, findings by parser.   make fuzz ARGS='--seconds 60'

    python benchmarks/fuzz/fuzz.py [--only jsonl,sentencepiece] [--seconds 60] [--seed N] [--out fuzz-findings]

Each parser of fuzz_targets.py gets inputs made from its seeds: bits flipped, pieces cut out, doubled, moved and put in from a list of
awkward ones; JSON is also changed as a tree. Input k of a seed number is always the same. The parser runs in a process of its own
with RLIMIT_AS of MEMORY_MIB above what its libraries take and SECONDS of processor time an input, so that a crash, a hang and a
bomb are findings like any other.

A finding is any end other than success or one line of `UserError`. Its input goes to OUT/PARSER-N.bin, its traceback is printed; once
mended it becomes a case of tests/test_fuzz.py. Exit code 1 when there was one.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]  # the package of this checkout, whatever is installed

SECONDS, MEMORY_MIB = 10, 2048   # that one input may take
LONGEST_ERROR = 2000             # characters of a line that a person should read
KINDS = 40                       # of findings of one parser that are kept; more are counted

# ---------------------------------------------------------------------------------------------------------- making inputs

AWKWARD = [b"", b"\0", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028".encode(), "\u202e".encode(), "e\u0301".encode(), "\U0001f469\u200d\u2695\ufe0f".encode(),
           b"-1", b"0", b"1", b"255", b"65536", b"2147483648", b"4294967295", b"9223372036854775807", b"18446744073709551616", b"1e308", b"1e999",
           b"NaN", b"Infinity", b"-0.0", b"true", b"null", b"[]", b"{}", b'""', b'"', b"\\", b"\\u0000", b"\\ud800", b"'", b"<", b">", b"&", b"]]>",
           b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b"%00", b"$(id)", b"`id`", b"=1+1", b"a" * 1000, b"[" * 3000, b"{\"a\":" * 2000, b"9" * 5000, b" " * 5000]
ODD_VALUES = [None, True, False, 0, 1, -1, 2 ** 31, 2 ** 63, 2 ** 64, -2 ** 63, 1e308, 1e-320, -0.0, float("nan"), float("inf"), 0.5, "", "a", "A", "0", "-1", "\0", "\n", "\ud800", "\u2028", "é" * 3,
              "../x", "/etc/passwd", "x" * 2000, [], {}, [[]], [None], {"": None}, [0] * 50, 10 ** 400]


def mutate_bytes(rng: random.Random, data: bytes, others: list[bytes], words: list[bytes]) -> bytes:
    """1 to 6 changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):  # mostly one: several hide one another
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + min(rng.choice((1, 2, 4, 16, 64, 1024)), len(out)))
        kind = rng.randrange(10)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del out[at:end]
        elif kind == 3:
            out[at:at] = out[at:end] * rng.choice((1, 1, 2, 20))
        elif kind == 4:
            out[at:end] = rng.choice(words)
        elif kind == 5:
            out[at:at] = rng.choice(words)
        elif kind == 6:
            piece = out[at:end]
            del out[at:end]
            to = rng.randrange(len(out) + 1)
            out[to:to] = piece
        elif kind == 7:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at:end] = other[start:start + rng.choice((1, 8, 64, 1024))]
        elif kind == 8:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 32)))
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def mutate_tree(rng: random.Random, value: Any) -> Any:
    """A JSON value with one place changed: another value, a key gone, renamed or more, a list longer or shorter."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in (node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()):
            places.append((node, key))
            if len(places) < 3000:
                visit(node[key])

    value = json.loads(json.dumps(value))
    visit(value)
    if not places:
        return rng.choice(ODD_VALUES)
    # the upper places are few and matter most
    node, key = rng.choice(places[:30]) if rng.random() < 0.4 else rng.choice(places)
    kind = rng.randrange(8)
    if kind < 4:
        node[key] = rng.choice(ODD_VALUES)
    elif kind == 4:
        del node[key]
    elif kind == 5 and isinstance(node, dict):
        node[rng.choice(["", "x", "\ud800", "_x", key + " ", key.upper()])] = node[key] if rng.random() < 0.5 else node.pop(key)
    elif kind == 6:
        other, place = rng.choice(places)
        node[key] = json.loads(json.dumps(other[place]))
    elif isinstance(node, list):
        node[:] = rng.choice((node * 2, node[:key], node[::-1], [*node, rng.choice(ODD_VALUES)]))
    else:
        node[key] = [node[key]]
    return value


def make_input(name: str, seed: int, number: int, seeds: list[bytes], json_too: bool) -> bytes:
    """Input `number` of a parser."""
    rng = random.Random(f"{name} {seed} {number}")
    data = rng.choice(seeds)
    if number < len(seeds):
        return seeds[number]  # as they are: a seed that is refused tests nothing
    if json_too and rng.random() < 0.7:
        try:
            value = json.loads(data)
            for _ in range(rng.choice((1, 1, 2, 3))):
                value = mutate_tree(rng, value)
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            pass
    if json_too and rng.random() < 0.5 and b"\n" in data.strip():  # one line of many
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        try:
            lines[at] = json.dumps(mutate_tree(rng, json.loads(lines[at]))).encode()
            return b"\n".join(lines)
        except (ValueError, RecursionError):
            pass
    return mutate_bytes(rng, data, seeds, AWKWARD)


# ---------------------------------------------------------------------------------------------------------- one input

def fault_of(target: Any, folder: Path, data: bytes) -> tuple[str, str] | None:
    """(kind, what happened) when the parser does not end well; None when it read the input or refused it in one line."""
    from mmed.utils.errors import UserError

    try:
        target.run(folder, data)
    except UserError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST_ERROR:
            return f"a UserError of {len(text):,} characters and {text.count(chr(10)) + 1} lines: {text[:60]!r}", text[:3000]
    except target.allowed:
        pass
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/mmed/" in frame.filename or "/data_prep/" in frame.filename]
        place = own[-1] if own else last
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}", traceback.format_exc()[-3000:]
    return None


def serve(name: str, seed: int, first: int, seconds: float, work: Path) -> None:
    """The fuzzing process: inputs one after the other, a JSON line for each finding and a last one."""
    from fuzz_targets import TARGETS

    target = TARGETS[name]
    seeds = [path.read_bytes() for path in sorted((work / "seeds").glob(f"{name}-*"))]
    folder = work / f"{name}-{first}"
    folder.mkdir(parents=True, exist_ok=True)
    (work / "current").write_bytes(seeds[0])
    os.fsync = lambda descriptor: None  # the disk is not what is tried here
    fault = fault_of(target, folder, seeds[0])  # also what the libraries take is then not the input's doing
    assert not fault, fault
    size = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + (MEMORY_MIB << 20), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in C code too
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    number, longest, end = first, 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = make_input(name, seed, number, seeds, target.json)
        (work / "current").write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(SECONDS * 30)  # what sleeps
        clock = time.process_time()
        fault = fault_of(target, folder, data)
        longest = max(longest, time.process_time() - clock)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if fault:
            print(json.dumps({"number": number, "kind": fault[0], "text": fault[1]}), flush=True)
        number += 1
        (work / "number").write_text(str(number))
    print(json.dumps({"inputs": number - first, "longest": longest}), flush=True)


# ---------------------------------------------------------------------------------------------------------- the command

def fuzz(name: str, seed: int, seconds: float, out: Path, work: Path) -> tuple[int, float, dict[str, int], float]:
    """(inputs, seconds, kinds of findings with their numbers, processor seconds of the slowest input)."""
    from fuzz_targets import TARGETS

    target = TARGETS[name]
    (work / "seeds").mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (work / "seeds" / f"{name}-{number:03}").write_bytes(data)
    start, first, longest = time.monotonic(), 0, 0.0
    found: dict[str, int] = {}

    def keep(kind: str, text: str, data: bytes) -> None:
        found[kind] = found.get(kind, 0) + 1
        if found[kind] == 1 and len(found) <= KINDS:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{name}-{len(found)}.bin"
            path.write_bytes(data)
            print(f"\n{name}: {kind}\n  input: {path}\n" + "\n".join(f"  {line}" for line in text.splitlines()[-12:]), file=sys.stderr, flush=True)

    seeds = [path.read_bytes() for path in sorted((work / "seeds").glob(f"{name}-*"))]
    while time.monotonic() - start < seconds:
        (work / "number").write_text(str(first))
        left = seconds - (time.monotonic() - start)
        process = subprocess.Popen([sys.executable, str(HERE / "fuzz.py"), "--serve", name, str(seed), str(first), str(left), str(work)],
                                   stdout=subprocess.PIPE, stderr=open(work / "stderr", "wb"), text=True)
        for line in process.stdout:
            value = json.loads(line)
            if "kind" in value:
                keep(value["kind"], value["text"], make_input(name, seed, value["number"], seeds, target.json))
            else:
                longest = max(longest, value["longest"])
        code = process.wait()
        first = int((work / "number").read_text())
        if code:
            what = "took too long" if code in (-signal.SIGPROF, -signal.SIGALRM) else "crashed: " + (signal.Signals(-code).name if code < 0 else f"exit code {code}")
            keep(what, f"input {first} of seed {seed}\n" + (work / "stderr").read_bytes()[-2000:].decode("utf-8", "replace"), (work / "current").read_bytes())
            first += 1
    return first, time.monotonic() - start, found, longest


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        name, seed, first, seconds, work = sys.argv[2:]
        serve(name, int(seed), int(first), float(seconds), Path(work))
        return 0
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for each parser (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of every random choice; default: the time, printed")
    parser.add_argument("--out", default="fuzz-findings", help="folder for the inputs that were found (default: %(default)s)")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",") if name.strip()] or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"--only: unknown {unknown[0]!r}; known: {', '.join(TARGETS)}")
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"seed {seed}\n\n| parser | inputs | seconds | slowest input | findings |\n|---|---|---|---|---|", flush=True)
    total = 0
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            inputs, seconds, found, longest = fuzz(name, seed, options.seconds, Path(options.out), Path(work))
        total += len(found)
        told = "; ".join(f"{kind} ({count})" for kind, count in found.items()) or "none"
        print(f"| {name} | {inputs:,} | {seconds:.0f} | {longest:.2f} s | {told} |", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
