"""Renders jinja2 templates into self-contained HTML pages.

Every page of the project is made here: the report, the agreement study, the sheets for raters and checkers.
Autoescape is on, so text from files and models can only ever be text. The content security policy in
page_head.html keeps a page from loading anything and from running any script but the templates' own.
"""
from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

from mmed.utils.errors import printable, require_extra

HERE = Path(__file__).parent


def number(value: float | None, form: str = ".1f") -> str:
    """
    >>> number(-0.25, ".2f"), number(None)
    ('−0.25', '–')
    """
    return "–" if value is None or value != value else format(value, form).replace("-", "−")


def p_value(p: float | None) -> str:
    """
    >>> p_value(0.0004), p_value(0.25)
    ('< 0.001', '0.250')
    """
    return "< 0.001" if p is not None and p < 0.001 else number(p, ".3f")


def fill_page(frame: str | Path, *, title: str, data: object = None, **values: object) -> str:
    """Returns the page as text. `frame` continues page_head.html; `{{ data }}` in it becomes JSON for its
    script.
    """
    jinja2 = require_extra("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_printable)
    environment.filters |= {"number": number, "p_value": p_value, "zip": zip}
    source = (HERE / "page_head.html").read_text(encoding="utf-8") + Path(frame).read_text(encoding="utf-8")
    # No value is ever put into these scripts, so the template has their final text
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    hashes = " ".join(f"'sha256-{script_hash(script)}'" for script in scripts) or "'none'"
    # htmlsafe_json_dumps escapes <, >, & and ', so the JSON cannot end its <script> element
    as_json = jinja2.utils.htmlsafe_json_dumps(data, dumps=json.dumps, ensure_ascii=False, allow_nan=False)
    page = environment.from_string(source).render(
        title=title, data=as_json, script_hashes=jinja2.utils.markupsafe.Markup(hashes), **values)
    return page.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written to a file


def script_hash(script: str) -> str:
    """The hash by which a content security policy allows an inline script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _printable(value: object) -> object:
    """Removes control characters and direction overrides from plain text; markup is left alone."""
    return printable(value) if type(value) is str else value
