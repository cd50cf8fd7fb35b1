"""Self-contained HTML pages from jinja2 templates: the report, the agreement study, the sheets for raters.

Autoescape is on, so text from files and models is never markup. The content security policy in page_head.html
keeps a page from loading anything and from running any script but the templates' own, by hash.
"""
from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from mmed.utils.errors import printable, require_extra
from mmed.utils.untrusted import plain

HERE = Path(__file__).parent


def number(value: float | None, form: str = ".1f") -> str:
    """
    >>> number(-0.25, ".2f"), number(None)
    ('−0.25', '–')
    """
    return "–" if value is None or value != value else format(value, form).replace("-", "−")


def fill_page(frame: str | Path, *, title: str, data: object = None, **values: object) -> str:
    """The page as text: page_head.html, then the template `frame`, where `data` is JSON for its script."""
    jinja2 = require_extra("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable)
    environment.filters |= {"number": number, "plain": plain, "zip": zip}
    source = (HERE / "page_head.html").read_text(encoding="utf-8") + Path(frame).read_text(encoding="utf-8")
    # Values are never inserted into scripts, so the template holds their final text
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    # htmlsafe_json_dumps escapes <, >, & and ', so the JSON cannot end its <script> element
    as_json = jinja2.utils.htmlsafe_json_dumps(data, dumps=json.dumps, ensure_ascii=False, allow_nan=False)
    page = environment.from_string(source).render(
        title=title, data=as_json, script_hashes=jinja2.utils.markupsafe.Markup(hashes), **values)
    return page.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written to a file


def _printable(value: object) -> object:
    """Control characters and direction overrides are removed from text; markup is left alone."""
    return printable(value) if type(value) is str else value
