"""How time and memory of each step of a corpus grow with its size: CPU seconds, peak memory of a process.

    python benchmarks/data_prep/bench_growth.py --data DATA [--megabytes 10 50 200]

In:  DATA/text/en/{medical,nonmedical}.jsonl.gz, DATA/medqa (as benchmark). A corpus of N MB is these
     documents over and over, each time with their sentences in another order, in files of 10 MB.
Out: a line for each step.
"""
from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from mmed.tokenizer import train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]
FILE_BYTES = 10_000_000
CHILD = ("import importlib, sys, time; module = importlib.import_module(sys.argv[1]); "
         "module.main(sys.argv[2:]); peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
         "print(time.process_time(), int(peak) / 1024)")


def write_corpus(folder: Path, texts: list[str], megabytes: int) -> None:
    """Files of JSON lines with this much text in UTF-8."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    size = number = 0
    while size < 1_000_000 * megabytes:
        with open(folder / f"{size // FILE_BYTES:05}.jsonl", "a", encoding="utf-8") as file:
            sentences = texts[number % len(texts)].split(". ")
            rng.shuffle(sentences)
            text = ". ".join(sentences)
            file.write(json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n")
        size += len(text.encode())
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 50, 200])
    options = parser.parse_args()
    if options.data is None:
        return print("left out: it needs real text, --data DATA")
    folder, texts = options.data / "text" / "en", []
    for name in ("medical", "nonmedical"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train_sentencepiece([text[:2000] for text in texts[::4]], work / "tokenizer", 16000)
        benchmark = str(options.data / "medqa" / "questions" / "US" / "test.part1.jsonl")
        steps = {"filter_medical": ["--language", "en"],
                 "clean": ["--language", "en", "--language_id", "--mask_personal"],
                 "dedup": [], "decontaminate": ["--benchmark", benchmark],
                 "tokenize_corpus": ["--tokenizer", str(work / "tokenizer")]}
        for megabytes in options.megabytes:
            write_corpus(work / str(megabytes), texts, megabytes)
            for step, more in steps.items():
                out = work / "out" / step / str(megabytes)
                command = [sys.executable, "-c", CHILD, f"data_prep.{step}", str(work / str(megabytes)),
                           *more, "--out", str(out)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                seconds, peak = map(float, done.stdout.split()[-2:])
                print(f"{step:16} {megabytes:4} MB {seconds:7.1f} s {megabytes / seconds:6.1f} MB/s "
                      f"{peak:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
