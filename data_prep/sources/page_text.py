"""The main text of one web page, found in a process of its own: the only place that parses a stranger's HTML.

    with Extractor(Limits()) as extractor:      # starts the process
        extractor.read(page)                    # {"text", "title", "date", "licence", ...} or {"reason": why there is none}

Order: bytes -> `decode` (character set) -> `trafilatura.load_html` (tree) -> `page_facts` (what the page says of itself) and
trafilatura's main text, without comments, menus and other boilerplate, tables included.

Some pages are made to break a parser, and some do so by accident. So the process limits itself: its memory by setrlimit, the
time of each page by timers that end it in the middle of C code too. The asker sees an answer or the end of the process, drops
that page and starts a new process. The time is processor time, so that a busy machine drops no more than an idle one; only a
page within a hair of the limit can fall in one run and stay in the next. The two speak JSON lines over pipes.

Peer: datatrove's Trafilatura block, which runs in the worker itself and guards time by an exception, which C code does not see.
"""
from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

from data_prep.documents import normalise_text
from data_prep.sources.page_files import Page
from mmed.utils.errors import UsageError, require_extra

TOO_LONG = "page took too long"
CRASHED = "page crashed the reader, or needs too much memory"
NO_TEXT = "no main text"
EMPTY = "empty page"
UNKNOWN_CHARSET = "unknown character set"
ANSWER_BYTES = 1 << 28
BAD_SHARE = 0.002  # of a page's characters may be broken; they become U+FFFD
ODD_SHARE = 0.4  # of a page's letters may be accented Latin ones; no language has as many, mojibake has more
FEW_ACCENTS = 0.2  # as many bytes beyond ASCII to a letter of ASCII has no language in Latin letters
# Below its own MIN_EXTRACTED_SIZE, 250, trafilatura distrusts what it found and takes every paragraph of the page, footer and
# comments too, some twice. 250 characters are a long text in Chinese. With 50 no page of ours got worse, short ones much better.
SHORTEST = 50
WAITING = 60  # a page may take so many times its processor time on the clock: only what sleeps forever gets there


class Limits(NamedTuple):
    """What the reading of one page may take."""

    seconds: float = 5.0
    memory_mib: int = 1024


# ---- the asking side --------------------------------------------------------------------------------------------------


class Extractor:
    """A reading process, started anew when a page has ended it."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._process = self._start()

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", "from data_prep.sources.page_text import serve; serve()", json.dumps(self._limits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).resolve().parents[2])
        ready = process.stdout.readline()
        if not ready:
            raise RuntimeError(f"the process for reading pages does not start (exit code {process.wait()})")
        if "missing" in (told := json.loads(ready)):
            raise UsageError(told["missing"])
        return process

    def read(self, page: Page) -> dict[str, Any]:
        """What the page says, or {"reason": why nothing}."""
        head = {"bytes": len(page.body), "charset": page.charset, "url": page.url}
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(head).encode() + b"\n" + page.body)
            self._process.stdin.flush()
        answer = self._process.stdout.readline(ANSWER_BYTES)
        if answer.endswith(b"\n"):
            value = json.loads(answer)
            if "bug" in value:
                raise RuntimeError(f"{page.url or page.file}: {value['bug']}")
            return value
        self._process.kill()
        code = self._process.wait()
        self.close()
        self._process = self._start()
        return {"reason": TOO_LONG if -code in (signal.SIGPROF, signal.SIGALRM) else CRASHED}

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


# ---- the reading process ----------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer pages from stdin on stdout until the input ends."""
    limits = Limits(*json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the asker too, whose end is ours
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, signal.SIG_DFL)  # they end the process, wherever it is
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing a library prints gets between the answers

    def answer(value: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(value).encode() + b"\n")
        answers.flush()

    try:
        require_extra("trafilatura", "web")
    except UsageError as error:
        answer({"missing": str(error)})
        return
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = (limits.memory_mib << 20) + (_address_space("VmSize") or 1 << 29)  # beyond what the libraries have taken
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answer({"ready": True})
    for line in sys.stdin.buffer:
        head = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        signal.setitimer(signal.ITIMER_REAL, limits.seconds * WAITING)
        try:
            value = read_page(sys.stdin.buffer.read(head["bytes"]), head["charset"], head["url"])
        except MemoryError:
            return
        except RecursionError:
            value = {"reason": CRASHED}
        if _address_space("VmPeak") > memory - (limits.memory_mib << 20) // 10:
            return  # trafilatura swallows MemoryError: what it then found may be half of the page
        answer(value)


def _address_space(kind: str) -> int:
    """Bytes of address space that this process has now (VmSize) or had at most (VmPeak); 0 where there is no /proc."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return int(file.read().partition(f"{kind}:")[2].split()[0]) << 10
    return 0


def read_page(body: bytes, charset: str = "", url: str = "") -> dict[str, Any]:
    """What a page says of itself and its main text, or {"reason": why there is none}."""
    trafilatura = require_extra("trafilatura", "web")
    if not body.strip(b" \t\r\n\x00"):
        return {"reason": EMPTY}
    html = decode(body, charset)
    if html is None:
        return {"reason": UNKNOWN_CHARSET}
    more = {"replaced": True} if "\ufffd" in html else {}
    if "<html" not in html[:2000].lower():
        html = f"<html><body>{html}</body></html>"  # else it takes a fragment for something other than a page
    tree = trafilatura.load_html(html)
    if tree is None:
        return {"reason": NO_TEXT}
    facts = page_facts(tree, html, url)
    # No deduplication inside trafilatura: it remembers earlier pages, and a page's text must not depend on them.
    try:
        found = trafilatura.bare_extraction(tree, url=url or None, include_comments=False, include_tables=True, deduplicate=False,
                                            config=_settings())
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, AssertionError):  # its own slips on odd trees
        return {"reason": "trafilatura failed"}
    if found is not None and not isinstance(found, dict):
        found = found.as_dict()  # from version 2 on
    text = normalise_text((found or {}).get("text") or "").strip()
    return {"text": text, **facts, **more} if text else {"reason": NO_TEXT}


@functools.cache
def _settings() -> Any:
    settings = require_extra("trafilatura.settings", "web").use_config()
    settings.set("DEFAULT", "MIN_EXTRACTED_SIZE", str(SHORTEST))
    return settings


# ---- character sets ---------------------------------------------------------------------------------------------------

_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_XML = re.compile(rb"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})", re.IGNORECASE)
# What browsers read these names as: pages use the larger sets under the names of the smaller ones.
_BROWSER = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252",
            "iso-8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "shift_jis": "cp932",
            "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932", "x-euc-jp": "euc_jp",
            "big5": "big5hkscs", "ks_c_5601-1987": "cp949", "euc-kr": "cp949", "tis-620": "cp874", "unicode": "utf-8", "utf8": "utf-8",
            "x-user-defined": "cp1252", "utf-16": "utf-8", "utf-16le": "utf-8", "utf-16be": "utf-8"}  # a readable meta is no UTF-16


def decode(body: bytes, charset: str = "") -> str | None:
    r"""The text of a page's bytes; None if no character set makes sense of them.

    A byte order mark decides. Bytes that are valid UTF-8 are that, whatever the page says. Then what the server said, what the
    page says, and a guess from its words; each must decode with at most BAD_SHARE broken and not look like mojibake.

    >>> decode("<p>fièvre</p>".encode(), "iso-8859-1")                            # declared wrongly
    '<p>fièvre</p>'
    >>> decode('<meta charset="windows-1251"><p>боль</p>'.encode("cp1251"), "")
    '<meta charset="windows-1251"><p>боль</p>'
    >>> decode(b"<p>a\x00b</p>")
    '<p>ab</p>'
    """
    for mark, name in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if body.startswith(mark):
            return _cleaned(body[len(mark):].decode(name, "replace"))
    try:
        return _cleaned(body.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    declared = [found[1].decode("ascii") for pattern in (_XML, _META) if (found := pattern.search(body[:4096]))]
    for name in [charset, *declared, "utf-8"]:
        if (text := _try(body, _BROWSER.get(name.lower(), name))) is not None:
            return text
    words = _words(body)
    if len(words.translate(None, _ASCII)) < FEW_ACCENTS * len(words.translate(None, _NOT_LETTERS)):
        return _try(body, "cp1252")  # what browsers take for a page that says nothing; too few accents to guess better
    foreign = b" ".join(word for word in words.split() if not word.isascii())
    sample = foreign[:8000].rpartition(b" ")[0] or foreign[:8000]  # not cut within a character
    for name in require_extra("trafilatura.utils", "web").detect_encoding(sample):
        if (text := _try(body, name)) is not None:
            return text
    return None


def _try(body: bytes, name: str) -> str | None:
    try:
        text = _cleaned(body.decode(name, "replace"))
    except (LookupError, ValueError):  # no such character set
        return None
    if not isinstance(text, str) or text.count("\ufffd") > BAD_SHARE * len(text):
        return None
    letters = re.findall(r"[^\W\d_]", _TAGS.sub(" ", text[:200_000]))
    odd = sum("\x80" <= letter <= "\u024f" for letter in letters)
    return None if odd > max(10, ODD_SHARE * len(letters)) else text


_TAGS = re.compile(r"<[^<>]*>")


def _words(body: bytes) -> bytes:
    """What stands between the tags, of a page's first part: it tells the character set."""
    return re.sub(rb"<(script|style)\b.{0,20000}?</\1|<[^<>]*>", b" ", body[:500_000], flags=re.DOTALL | re.IGNORECASE)


_ASCII = bytes(range(128))
_NOT_LETTERS = bytes(byte for byte in range(256) if not chr(byte).isalpha() or byte >= 128)


def _cleaned(text: str) -> str:
    return text.replace("\x00", "")


# ---- what a page says of itself ---------------------------------------------------------------------------------------

_DATES = ("article:published_time", "datepublished", "citation_publication_date", "citation_date", "dcterms.issued", "dc.date.issued",
          "dcterms.date", "dc.date", "date", "article:modified_time", "dcterms.modified", "last-modified")
_LICENCES = ("dcterms.license", "dc.rights.license", "license", "dcterms.rights", "dc.rights")
_CREATIVE_COMMONS = "creativecommons.org/"


def page_facts(tree: Any, html: str, url: str = "") -> dict[str, str]:
    """title, url, date, licence and language, as far as the page states them."""
    base = url
    metas: dict[str, str] = {}
    for meta in tree.iter("meta"):
        for key in ("name", "property", "itemprop", "http-equiv"):
            if (name := meta.get(key)) and (value := _line(meta.get("content"))):
                metas.setdefault(name.lower(), value)
    links: dict[str, str] = {}
    for link in tree.iter("link", "a"):
        href, relations = (link.get("href") or "").strip(), (link.get("rel") or "").lower().split()
        for relation in relations:
            links.setdefault(relation, href)
        if _CREATIVE_COMMONS in href and ("/licenses/" in href or "/publicdomain/" in href):
            links.setdefault("creative commons", href)
    heads = [text for head in tree.iter("h1") if (text := _line(head.text_content()))]
    titles = [text for title in tree.iter("title") if (text := _line(title.text_content()))]
    own = next((link for link in (links.get("canonical"), metas.get("og:url")) if link and re.match(r"https?://", link)), "")
    linked = dict(_json_ld(html))
    licence = links.get("license") or linked.get("license") or next((metas[name] for name in _LICENCES if name in metas), "") \
        or links.get("creative commons", "")
    if links.get("license") == licence or links.get("creative commons") == licence:
        licence = _joined(base or own, licence)
    dates = [linked.get("datePublished", ""), *(metas.get(name, "") for name in _DATES), linked.get("dateModified", "")]
    dates += [time.get("datetime") or "" for time in tree.iter("time") if time.get("pubdate") is not None or time.get("itemprop")]
    facts = {"title": heads[0] if len(heads) == 1 else metas.get("og:title") or (titles or heads or [""])[0], "url": url or own,
             "date": next((date for told in dates if (date := iso_date(told))), ""), "licence": licence,
             "html_language": (tree.get("lang") or tree.get("xml:lang") or "").strip()[:20]}
    return {key: normalise_text(value)[:2000] for key, value in facts.items() if value}


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _joined(base: str, link: str) -> str:
    try:
        return urljoin(base, link)
    except ValueError:
        return link


def _json_ld(html: str) -> list[tuple[str, str]]:
    """The strings of a page's linked data that are wanted; the blocks are often not quite JSON, so they are not parsed."""
    found = []
    for block in re.findall(r"<script[^<>]{0,500}application/ld\+json[^<>]{0,500}>([^<]{0,200000})", html, re.IGNORECASE):
        found += re.findall(r'"(datePublished|dateModified|license)"\s*:\s*"([^"\\]{1,300})"', block)
    return found[::-1]  # the first of each wins when made into a dict


def iso_date(text: str) -> str:
    """The date at the beginning of a text, if it is written as ISO 8601 and can be.

    >>> iso_date("2021-03-05T10:00:00Z"), iso_date("2021/3/5"), iso_date("20210305"), iso_date("2021-13-01"), iso_date("March 2021")
    ('2021-03-05', '2021-03-05', '2021-03-05', '', '')
    """
    found = re.match(r"((?:19|20)\d\d)([-/.]?)(\d{1,2})\2(\d{1,2})(?!\d)", text.strip(), re.ASCII)
    try:
        return datetime.date(int(found[1]), int(found[3]), int(found[4])).isoformat() if found else ""
    except ValueError:
        return ""
