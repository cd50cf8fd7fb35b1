"""How fast each step of a corpus is: MB/s of one core by CPU time, on real text, with reading, writing and
packing.

    python benchmarks/data_prep/bench_corpus.py --data DATA [--languages en zh]

In:  DATA/text/LANGUAGE/{medical,nonmedical}.jsonl.gz, DATA/medqa (as benchmark), DATA/html/*/source.html,
     DATA/pdf/{text,scan}_*.pdf.
Out: a table, MB of UTF-8 text that goes in (HTML for pages) a second of CPU time of this process and its
children; for books, pages a second.
     Kept and dropped documents are both written and packed. About half of the text is medical, of the web a
     few in a thousand, so the filter is also measured on ordinary text alone. Each step is started once on
     one document first, for what is loaded only once.
"""
from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

from mmed.tokenizer import train_sentencepiece


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def timed(module: str, *arguments: object) -> float:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        begun = cpu_seconds()
        importlib.import_module(f"data_prep.{module}").main([str(word) for word in arguments])
        return cpu_seconds() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--languages", nargs="+", default=["en", "zh", "ja", "fr", "ru", "es"])
    options = parser.parse_args()
    if options.data is None:
        return print("left out: it needs real text, --data DATA")
    work = Path(tempfile.mkdtemp(prefix="bench_corpus-"))
    texts, one, size, ordinary = {}, {}, {}, {}
    for language in options.languages:
        lines = []
        (work / language).mkdir()
        for name in ("medical", "nonmedical"):
            part = gzip.open(options.data / "text" / language / f"{name}.jsonl.gz", "rb").read().splitlines()
            with gzip.open(work / language / f"{name}.jsonl.gz", "wb", 6) as file:
                file.write(b"\n".join(part))
            lines += part
            ordinary[language] = sum(len(json.loads(line)["text"].encode()) for line in part)
        texts[language] = [json.loads(line)["text"] for line in lines]
        size[language] = sum(len(text.encode()) for text in texts[language])
        one[language] = work / f"one-{language}.jsonl"
        one[language].write_bytes(lines[0] + b"\n")
    train_sentencepiece([text[:2000] for each in texts.values()
                         for text in each[::max(1,
                                                len(each) // 300)]], work / "tokenizer", 16000)
    benchmark = options.data / "medqa" / "questions" / "US" / "test.part1.jsonl"
    steps = {
        "filter_medical": ("filter_medical", "--language", "{}"),
        "filter_medical, ordinary text": ("filter_medical", "--language", "{}"),
        "clean, language and personal data": ("clean", "--language", "{}", "--language_id",
                                              "--mask_personal"), "dedup": ("dedup", ),
        "decontaminate": ("decontaminate", "--benchmark", str(benchmark)),
        "tokenize_corpus": ("tokenize_corpus", "--tokenizer", str(work / "tokenizer"), "--language", "{}")
    }
    print(f"{'MB/s of one core':36}" + "".join(f"{language:>8}" for language in options.languages))
    print(f"{'MB of text':36}" + "".join(f"{size[language] / 1e6:8.1f}" for language in options.languages),
          flush=True)
    for title, (module, *more) in steps.items():
        row = []
        for language in options.languages:
            arguments = [word.format(language) for word in more]
            timed(module, one[language], *arguments, "--out", work / "out" / "warm")
            plain = title.endswith("ordinary text")
            source = work / language / "nonmedical.jsonl.gz" if plain else work / language
            row.append((ordinary if plain else size)[language] / 1e6 /
                       timed(module, source, *arguments, "--out", work / "out" / "x"))
            shutil.rmtree(work / "out")
        print(f"{title:36}" + "".join(f"{value:8.1f}" for value in row), flush=True)
    pages = list((options.data / "html").glob("*/source.html"))
    (work / "html").mkdir()
    for path in pages:
        shutil.copyfile(path, work / "html" / f"{path.parent.name}.html")
    (work / "warm.html").write_text("<html><body><p>warm</p></body></html>")
    timed("web_pages", work / "warm.html", "--language", "en", "--out", work / "warm")
    seconds = timed("web_pages", work / "html", "--language", "en", "--out", work / "pages")
    print(
        f"web_pages: {sum(path.stat().st_size for path in pages) / 1e6 / seconds:.1f} MB of HTML a second, "
        f"{len(pages) / seconds:.1f} pages a second"
    )
    import pypdfium2

    for kind in ("text", "scan"):
        books = sorted((options.data / "pdf").glob(f"{kind}_en_*.pdf"))
        count = sum(len(pypdfium2.PdfDocument(path)) for path in books)
        seconds = timed("books", *books, "--language", "en", "--out", work / f"books-{kind}")
        print(f"books, {kind}: {count / seconds:.2f} pages a second ({count} pages)")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
