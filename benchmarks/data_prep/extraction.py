"""Compares the text that two checkouts extract from the same PDF files and web pages.

In:  two checkouts of this project; PDF files (as NAME.pdf, language in --language) and HTML files.
Out: a table, and OUT/old/NAME.txt and OUT/new/NAME.txt to read and compare by hand (diff, or a word diff).

    git worktree add /tmp/old COMMIT
    python benchmarks/data_prep/extraction.py /tmp/old . --pdf pdf/*.pdf --html html/*.html --out /tmp/compare

Columns, old -> new: characters; lines of output (paragraphs, headings, list items); lines that are only a
number (page numbers left in, or cells of tables); lines that end in a hyphen, or in a letter before a line in
lower case (words and paragraphs broken); characters that are in one text only (lost or added).
"""
from __future__ import annotations

import argparse
import difflib
import gzip
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path


def extract(checkout: Path, command: str, files: list[Path], language: str,
            out: Path) -> dict[str, list[str]]:
    """{file name: lines of its text}"""
    arguments = [sys.executable, "-m", f"data_prep.{command}", *map(str, files), "--language", language]
    subprocess.run([*arguments, "--out", str(out)], cwd=checkout, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "PYTHONPATH": str(checkout)})
    texts: dict[str, list[str]] = {}
    for path in sorted((out / "kept").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                document = json.loads(line)
                lines = [part for part in document["text"].split("\n") if part.strip()]
                texts.setdefault(Path(document["meta"]["file"]).name, []).extend(lines)
    return texts


def broken(lines: list[str]) -> int:
    """Lines that probably end within a paragraph."""
    return sum(before[-1] == "-" or (before[-1].isalpha() and after[0].islower() and len(before) > 40)
               for before, after in itertools.pairwise(lines))


def measures(lines: list[str]) -> list[int]:
    bare = sum(re.fullmatch(r"[-–—\s\d]+", line) is not None for line in lines)
    return [sum(map(len, lines)), len(lines), bare, broken(lines)]


def differing(old: list[str], new: list[str]) -> list[int]:
    """Characters of the words that only one of the texts has, in order."""
    one, other = " ".join(old).split(), " ".join(new).split()
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    lost = sum(len("".join(one[a:b])) for kind, a, b, _, _ in blocks if kind != "equal")
    added = sum(len("".join(other[c:d])) for kind, _, _, c, d in blocks if kind != "equal")
    return [lost, added]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pdf", nargs="*", type=Path, default=[])
    parser.add_argument("--html", nargs="*", type=Path, default=[])
    parser.add_argument("--language", default="en")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print("| file | characters | lines | only a number | broken | lost, added |\n|---|---|---|---|---|---|")
    for command, files in (("books", given.pdf), ("web_pages", given.html)):
        paths = [path.resolve() for path in files]
        if not paths:
            continue
        sides = [extract(checkout.resolve(), command, paths, given.language,
                         given.out.resolve() / f"{command}-{side}")
                 for side, checkout in (("old", given.old), ("new", given.new))]
        for name in sorted(set(sides[0]) | set(sides[1])):
            both = [side.get(name, []) for side in sides]
            for side, lines in zip(("old", "new"), both):
                target = given.out / side / f"{name}.txt"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text("\n".join(lines) + "\n", encoding="utf-8")
            cells = [f"{one:,} -> {other:,}" if one != other else f"{one:,}"
                     for one, other in zip(*map(measures, both))]
            print("|", " | ".join([name, *cells, ", ".join(f"{n:,}" for n in differing(*both))]), "|")


if __name__ == "__main__":
    main()
