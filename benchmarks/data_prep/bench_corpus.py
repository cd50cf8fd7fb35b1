"""How fast each step of a corpus is on real text: MB/s of one core by CPU time, reading and writing included.

    python benchmarks/data_prep/bench_corpus.py --data DATA [--languages en zh]
    python benchmarks/data_prep/bench_corpus.py --data DATA --megabytes 10 50 200     growth

In:  DATA/text/LANGUAGE/{medical,nonmedical}.jsonl.gz, DATA/medqa (as benchmark); of pages and books, where
     they are, DATA/html/*/source.html and DATA/pdf/{text,scan}_en_*.pdf.
Out: MB of UTF-8 text (pages: of HTML) a second of CPU time. Each step runs in a process of its own on all
     text of a language; about half of it is medical, of the web a few in a thousand, so the filter also runs
     on ordinary text alone. What a step loads once is measured on one document, and taken off.
     --megabytes: seconds and peak memory of each step for English corpora of these sizes, made of the same
     documents over and over, each time with their sentences in another order, in files of 10 MB.
"""
from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.timing import machine, print_head, print_row
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import Parser
from mmed.utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
FILE_BYTES = 10_000_000
# A step in a process of its own: CPU seconds of it and its children, peak MiB of it.
CHILD = """
import importlib, os, sys
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(sum(os.times()[:4]), int(peak) / 1024)
"""


def run_step(module: str, *arguments: object) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of a command of data_prep."""
    command = [sys.executable, "-c", CHILD, f"data_prep.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    spent, peak = done.stdout.split()[-2:]
    return float(spent), float(peak)


def steps(data: Path, tokenizer: Path, language: str) -> dict[str, list[object]]:
    """Title -> module and options, without input and --out."""
    benchmark = data / "medqa" / "questions" / "US" / "test.part1.jsonl"
    filtered = ["filter_medical", "--language", language]
    return {"filter, ordinary text": filtered, "filter, half of it medical": filtered,
            "clean": ["clean", "--language", language, "--language_id", "--mask_personal"],
            "deduplicate": ["dedup"],
            "decontaminate": ["decontaminate", "--benchmark", benchmark],
            "tokenize": ["tokenize_corpus", "--tokenizer", tokenizer, "--language", language]}


def read_texts(folder: Path) -> dict[str, list[str]]:
    return {kind: [record["text"] for _, record in read_jsonl(folder / f"{kind}.jsonl.gz")]
            for kind in ("medical", "nonmedical")}


def megabytes(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def speed(data: Path, work: Path, tokenizer: Path, texts: dict[str, dict[str, list[str]]]) -> None:
    print_head("MB/s of one core", *texts)
    for title in steps(data, tokenizer, "en"):
        rates = []
        for language, parts in texts.items():
            module, *options = steps(data, tokenizer, language)[title]
            kinds = ["nonmedical"] if "ordinary" in title else list(parts)
            source = [data / "text" / language / f"{kind}.jsonl.gz" for kind in kinds]
            one = work / "one.jsonl"
            one.write_text(json.dumps({"text": parts["medical"][0], "id": "0"}) + "\n", encoding="utf-8")
            start, _ = run_step(module, one, *options, "--out", work / "out" / "one")
            spent, _ = run_step(module, *source, *options, "--out", work / "out" / "all")
            shutil.rmtree(work / "out")
            size = sum(megabytes(parts[kind]) for kind in kinds)
            rates.append(f"{size / (spent - start):.1f}")
        print_row(title, *rates)


def pages_and_books(data: Path, work: Path) -> None:
    import pypdfium2

    pages = list((data / "html").glob("*/source.html"))
    if pages:
        (work / "html").mkdir()
        for path in pages:
            shutil.copyfile(path, work / "html" / f"{path.parent.name}.html")
        spent, _ = run_step("web_pages", work / "html", "--language", "en", "--out", work / "pages")
        size = sum(path.stat().st_size for path in pages) / 1e6
        print(f"web_pages: {size / spent:.1f} MB of HTML a second, {len(pages) / spent:.1f} pages a second")
    for kind in ("text", "scan"):
        books = sorted((data / "pdf").glob(f"{kind}_en_*.pdf"))
        if books:
            count = sum(len(pypdfium2.PdfDocument(path)) for path in books)
            spent, _ = run_step("books", *books, "--language", "en", "--out", work / f"books-{kind}")
            print(f"books, {kind}: {count / spent:.2f} pages a second ({count} pages)")


def write_corpus(folder: Path, texts: list[str], size: int) -> None:
    """Files of JSON lines with `size` megabytes of text."""
    rng, done, number = random.Random(0), 0, 0
    folder.mkdir()
    while done < 1_000_000 * size:
        sentences = texts[number % len(texts)].split(". ")
        rng.shuffle(sentences)
        text = ". ".join(sentences)
        with open(folder / f"{done // FILE_BYTES:05}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n")
        done += len(text.encode())
        number += 1


def growth(data: Path, work: Path, tokenizer: Path, texts: list[str], sizes: list[int]) -> None:
    table = steps(data, tokenizer, "en")
    del table["filter, ordinary text"]
    print_head("MB", *table)
    for size in sizes:
        write_corpus(work / str(size), texts, size)
        cells = []
        for module, *options in table.values():
            out = work / "out" / str(module) / str(size)
            spent, peak = run_step(str(module), work / str(size), *options, "--out", out)
            cells.append(f"{spent:.1f} s, {peak:.0f} MiB")
        print_row(size, *cells)


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--languages", nargs="+", default=["en", "zh", "ja", "fr", "ru", "es"])
    parser.add_argument("--megabytes", type=int, nargs="+", help="measure growth at these sizes instead")
    options = parser.parse_args()
    if options.data is None:
        return print("left out: it needs real text, --data DATA")
    languages = ["en"] if options.megabytes else options.languages
    texts = {language: read_texts(options.data / "text" / language) for language in languages}
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        some = [text[:2000] for parts in texts.values() for each in parts.values()
                for text in each[::max(1, len(each) // 150)]]
        train_sentencepiece(some, work / "tokenizer", 16000)
        if options.megabytes:
            english = [*texts["en"]["medical"], *texts["en"]["nonmedical"]]
            growth(options.data, work, work / "tokenizer", english, options.megabytes)
            return None
        speed(options.data, work, work / "tokenizer", texts)
        pages_and_books(options.data, work)


if __name__ == "__main__":
    main()
