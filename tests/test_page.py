"""Pages: all of them by one function, so that what came from a file is text on each of them."""
import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from mmed.page import fill_page, policy

ROOT = Path(__file__).resolve().parents[1]
FRAMES = sorted(path for part in ("mmed", "data_prep") for path in (ROOT / part).glob("*.html") if path.name != "page_head.html")


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
