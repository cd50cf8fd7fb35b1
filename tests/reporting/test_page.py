"""Pages: all of them come from one function, so text from files stays text on each of them."""
import re

from repository import ROOT

from data_prep.documents import Funnel
from data_prep.pipeline.shards import print_funnel
from mmed.evaluation.results import text_row
from mmed.evaluation.summary import summarise, table
from mmed.prompts import ExamItem
from mmed.utils.errors import printable

TEMPLATES = sorted(path for part in ("mmed", "data_prep", "examples")
                   for path in (ROOT / part).rglob("*.html"))


def test_no_template_loads_anything_or_writes_markup():
    for template in TEMPLATES:
        text = template.read_text(encoding="utf-8")
        assert not re.search(
            r"<(?:link|base|iframe|object|embed|img)\b|https?://|@import|url\(|\son\w+=|\|\s*safe\b",
            text), template
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new "
            r"Function|fetch\(|XMLHttpRequest",
            text), template


def test_what_a_terminal_would_obey_is_in_no_line_that_a_command_prints(tmp_path, capsys):
    """Control codes, direction overrides and lone surrogates in names, topics, reasons and messages."""
    bad = "\x1b]0;owned\x07\x1b[2J\r\u202egnp.exe\u2066\ud800\x9b31m\x08"
    rows = [text_row(ExamItem(f"q{i}", {"A": "x", "B": "y"}, ("A",), "r", "English", str(i),
                              extra={"topic": bad + str(i), "source": bad + str(i)}), "answer", "0", "A",
                              "default")
            for i in range(4)]
    print(table(summarise(rows), "default"))
    funnel = Funnel()
    funnel.drop(bad, 3, bad)
    print_funnel(funnel, "step")
    shown = capsys.readouterr()
    assert "0;owned" in shown.out + shown.err
    assert shown.out + shown.err == printable(shown.out + shown.err)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown.out + shown.err)
