"""The commands of docs/add_a_language.md as they stand, with each language's code in place of `de`."""
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
PAGE = (ROOT / "docs" / "add_a_language.md").read_text(encoding="utf-8")
every_code = pytest.mark.parametrize("code", sorted(path.name[:2] for path in DATA.glob("*.exam.jsonl")))


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line `python -m MODULE ...` or `python FILE.py ...` in this process."""
    words = shlex.split(line.replace("python -m ", "python "))[1:]
    module = words[0].removesuffix(".py").replace("/", ".")
    monkeypatch.setattr(sys, "argv", words)
    assert not importlib.import_module(f"{module}.__main__" if module == "mmed.reporting" else module).main()


@pytest.mark.slow
@every_code
def test_the_pages_commands_take_a_language_from_texts_to_report(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    language, out = get_language(code), tmp_path / "out" / code
    block = PAGE.split("<!-- run: all of it -->\n```\n")[1].split("\n```")[0].replace("\\\n", " ")
    for line in re.sub(r"\bGerman\b", language.name, re.sub(r"\bde\b", code, block)).splitlines():
        run(line, monkeypatch)
    printed = capsys.readouterr().out
    counts = [line for line in printed.splitlines() if re.match(r"clean \w|filter_medical|dedup:", line)]
    assert len(counts) == 3 and "\n".join(counts) in PAGE
    funnel = json.loads((out / "medical" / "funnel.json").read_text(encoding="utf-8"))
    medical = sum(row["medical"] for row in read_lines(DATA / f"{code}.jsonl"))
    assert 0.8 * medical <= funnel["documents"]["out"] <= medical
    rows = read_lines(out / "result" / "predictions.jsonl")
    assert {row["language"] for row in rows} == {language.name}
    assert {row["mode"] for row in rows} == {"rationale", "loglikelihood"}
    assert all(row["scores"] for row in rows if row["mode"] == "rationale")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f'lang="{code}"' in report and rows[0]["doc"]["question"] in report


@every_code
def test_the_pages_figures_are_those_of_the_check(code, capsys):
    assert check(code, [str(DATA / f"{code}.jsonl")]) == 0
    figures = [line for line in capsys.readouterr().out.splitlines()
               if line.startswith(("medical texts", "ordinary texts"))]
    assert len(figures) == 2 and "\n".join(figures) in PAGE


@every_code
def test_answers_to_its_exam_are_read_in_its_own_words_and_letters(code):
    language = get_language(code)
    items = read_items(DATA / f"{code}.exam.jsonl", language.name)
    assert len(items) == 20 and sum(len(item.answer) > 1 for item in items) >= 2
    own = dict(zip("ABCDEFGH", language.answers.letters))
    sentence = language.answers.stated[0].removesuffix(".")
    for item in items:
        for letter in item.answer:
            for tail in ("", f". {item.options[letter]}", f" ({item.options[letter]})"):
                for shown in {letter, own.get(letter, letter)}:
                    said = sentence.format(shown) + tail
                    assert parse_answer(said, item.options, language=language.name).letters == (letter,), said
