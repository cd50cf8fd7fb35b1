"""Pages: all of them by one function, so that what came from a file is text on each of them."""
import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from data_prep.documents import Funnel
from data_prep.pipeline.shards import print_funnel
from mmed.evaluation.results import text_row
from mmed.evaluation.summary import summarise, table
from mmed.prompts import ExamItem
from mmed.reporting.page import fill_page, policy
from mmed.utils.errors import UserError, main_guard, printable

ROOT = Path(__file__).resolve().parents[2]
FRAMES = sorted(path for part in ("mmed", "data_prep") for path in (ROOT / part).rglob("*.html") if path.name != "page_head.html")


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.name)
def test_a_page_allows_its_own_style_and_script_and_nothing_else(frame):
    hostile = "</script><img src=x onerror=alert(1)>{{title}}\u2028\ud800"
    page = fill_page(frame, title="<b>{{data}}", body="<p>{{csp}}</p>", data={"a": hostile})
    own = [re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script")]
    hashes = ["'none'" if found is None else f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'" for found in own]
    allowed = f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}; base-uri 'none'; form-action 'none'"
    assert re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page) == [allowed] == [policy(frame.read_text(encoding="utf-8"))]
    assert page.index("Content-Security-Policy") < page.index("<title>") < page.index("<style>")  # it holds for all that follows
    assert "<title>&lt;b&gt;{{data}}</title>" in page and "<img" not in page
    if "application/json" in page:  # what is put in is not looked at again, and comes back as it was
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
        assert json.loads(data) == {"a": hostile.replace("\ud800", "?")} and not re.search("[<>&\u2028]", data)


def test_no_frame_has_a_head_of_its_own_or_loads_anything():
    assert len(FRAMES) == 4
    for frame in FRAMES:
        text = frame.read_text(encoding="utf-8")
        assert text.startswith("<style>\n") and not re.search(r"<(?:meta|link|base|iframe|object|embed|img)\b|https?://(?!www\.w3\.org/)|@import|url\(|\son\w+=", text), frame
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", text), frame


def test_what_a_terminal_would_obey_is_in_no_line_that_a_command_prints(tmp_path, capsys):
    """Control codes, marks of direction and lone surrogates in names, topics, reasons and messages."""
    bad = "\x1b]0;owned\x07\x1b[2J\r\u202egnp.exe\u2066\ud800\x9b31m\x08"
    rows = [text_row(ExamItem(f"q{i}", {"A": "x", "B": "y"}, ("A",), "r", "English", str(i), extra={"topic": bad + str(i), "source": bad + str(i)}), "answer", "0", "A", "default")
            for i in range(4)]
    print(table(summarise(rows), "default"))
    funnel = Funnel()
    funnel.drop(bad, 3, bad)
    print_funnel(funnel, "step")

    def fails():
        raise UserError(f"{bad}: no such thing")

    with pytest.raises(SystemExit):
        main_guard(fails)
    shown = capsys.readouterr()
    assert "0;owned" in shown.out and "0;owned" in shown.err and shown.err.count("\n") == 1
    assert shown.out + shown.err == printable(shown.out + shown.err)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown.out + shown.err)
