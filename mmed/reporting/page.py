"""A page of ours: a frame with style and script, in which what came from files can only ever be text.

    fill_page(frame, title=..., body=..., data=...)     frame: an HTML file that goes on where mmed/reporting/page_head.html ends

In: the frame, markup made by us (its texts escaped with `mmed.reporting.plots.escape`), and data for the frame's script. Out: one HTML text that
loads nothing. Its policy allows the frame's own style and script alone, by the hashes of their texts, so markup that slipped through
would still not run. All pages are made here: the report, the study of agreement, the sheets for raters and checkers.
"""
from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from mmed.reporting.plots import escape


def fill_page(frame: str | Path, *, title: str, body: str = "", data: object = None) -> str:
    """The page as text; the same input gives the same bytes."""
    page = Path(__file__).with_name("page_head.html").read_text(encoding="utf-8") + Path(frame).read_text(encoding="utf-8")
    values = {"csp": policy(page), "title": escape(title), "body": body, "data": json_in_html(data)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)  # one pass: what is put in is not looked at again
    return page.encode("utf-8", "replace").decode()  # lone surrogates, which no file can carry


def policy(page: str) -> str:
    """The content security policy: nothing but the frame's own style and script (the one without attributes)."""
    def source(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'" if found else "'none'"

    return f"default-src 'none'; style-src {source('style')}; script-src {source('script')}; base-uri 'none'; form-action 'none'"


def json_in_html(value: object) -> str:
    """JSON that cannot end its <script> element nor begin anything in it.

    >>> print(json_in_html("</script><!-- &"))
    "\\u003c/script\\u003e\\u003c!-- \\u0026"
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)
