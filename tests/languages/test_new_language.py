"""The commands of docs/add_a_language.md, in their order, for each language beyond the paper's six that has
texts and exam items here.

The page's block of commands is run as it stands, with the language's code in place of `de`; nothing else is
made for a language.
"""
from __future__ import annotations

import importlib
import json
import re
import shlex
import sys

import pytest
from json_lines import read_lines
from repository import ROOT

from data_prep.filters.language_check import check
from mmed.evaluation.answer_parser import parse_answer
from mmed.languages import get_language
from mmed.prompts import read_items

DATA = ROOT / "tests" / "data" / "languages"
CODES = sorted(path.name.split(".")[0] for path in DATA.glob("*.exam.jsonl"))


def commands(code: str) -> list[list[str]]:
    page = (ROOT / "docs" / "add_a_language.md").read_text(encoding="utf-8")
    block = page.split("<!-- run: all of it -->\n```\n")[1].split("```")[0]
    block = re.sub(r"\bGerman\b", get_language(code).name, re.sub(r"\bde\b", code, block))
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[0] == "python"
    if words[1] == "-m":
        module, arguments = words[2], words[3:]
    else:
        module, arguments = words[1].removesuffix(".py").replace("/", "."), words[2:]
    module += ".__main__" if module in ("mmed.languages", "mmed.reporting") else ""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    main = importlib.import_module(module).main
    assert not (main() if module == "mmed.train" else main(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_the_pages_commands_take_a_language_from_texts_to_report(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    for words in commands(code):
        run(words, monkeypatch)
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "add_a_language.md").read_text(encoding="utf-8")
    counts = [line for line in printed.splitlines() if re.match(r"clean \w|filter_medical|dedup:", line)]
    assert len(counts) == 3 and "\n".join(counts) in page
    language, out = get_language(code), tmp_path / "out" / code
    texts = read_lines(DATA / f"{code}.jsonl")
    funnel = json.loads((out / "medical" / "funnel.json").read_text(encoding="utf-8"))
    medical = sum(row["medical"] for row in texts)
    assert 0.8 * medical <= funnel["documents"]["out"] <= medical
    rows = read_lines(out / "result" / "predictions.jsonl")
    assert {row["language"] for row in rows} == {language.name}
    assert {row["mode"] for row in rows} == {"rationale", "loglikelihood"}
    assert all(row["scores"] for row in rows if row["mode"] == "rationale")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f'lang="{code}"' in report and rows[0]["doc"]["question"] in report


@pytest.mark.parametrize("code", CODES)
def test_the_pages_figures_are_those_of_the_check(code, capsys):
    page = (ROOT / "docs" / "add_a_language.md").read_text(encoding="utf-8")
    assert check(code, [str(DATA / f"{code}.jsonl")]) == 0
    figures = [line for line in capsys.readouterr().out.splitlines()
               if line.startswith(("medical texts", "ordinary texts"))]
    assert len(figures) == 2 and "\n".join(figures) in page


@pytest.mark.parametrize("code", CODES)
def test_answers_to_its_exam_are_read_in_its_own_words_and_letters(code):
    language = get_language(code)
    items = read_items(DATA / f"{code}.exam.jsonl", language.name)
    assert len(items) == 20 and sum(len(item.answer) > 1 for item in items) >= 2
    own = dict(zip("ABCDEFGH", language.answers.letters))
    sentence = language.answers.stated[0].removesuffix(".")
    for item in items:
        for letter in item.answer:
            text = item.options[letter]
            for shown in {letter, own.get(letter, letter)}:
                for tail in ("", f". {text}", f" ({text})"):
                    said = sentence.format(shown) + tail
                    assert parse_answer(said, item.options, language=language.name).letters == (letter,), said
