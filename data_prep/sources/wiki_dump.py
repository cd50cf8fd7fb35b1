"""Wikipedia-style dumps -> records of plain text: MediaWiki's XML export, and what Wikiextractor makes of it.

In:  the unpacked bytes of a dump (data_prep/documents.py opens .xml, .xml.gz, .xml.bz2, .xml.zst, and the parts that
     Wikipedia publishes as NAME.xml-p1p41242.bz2), or of a file of <doc id= url= title=> blocks.
Out: (line number, record) of each article: `text`, `id` of the page, `language` of the dump, `meta.title`, `meta.url`.

A dump is cut at <page> and </page> (inside a page these are escaped), and each page parsed by itself, so that a broken page
is one dropped document and not the end of the dump, no entity can be declared, and memory holds one page. Redirects and
pages that are no articles (namespace not 0) are counted as such. In a dump with histories the last revision counts.

`plain_text` takes markup away; it does not expand templates, tables, formulas or galleries: these fall out, but for the
templates in `SHOWN`, which stand for words in a sentence. Captions of pictures, references, categories and links to other
languages fall too, then brackets and headings that nothing is left in. Each pass is linear in the text, also where
brackets never close. (mwparserfromhell 0.7 needs 32 seconds for 90 kB of table openings, and leaves captions, categories
and tables in.)
"""
from __future__ import annotations

import bisect
import html
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import IO, Any

Count = Callable[[str, int, int], None]  # (reason, line, size)

MAX_PAGE_BYTES = 1 << 24  # MediaWiki's own limit for an article is 2 MiB
MAX_DEPTH = 40  # brackets in brackets; MediaWiki's own limit too. What lies deeper falls
BLOCK = 1 << 18

# Names of the file and category namespaces where a dump's head does not tell them.
HIDDEN_NAMESPACES = frozenset(
    "file image media category fichier catégorie archivo imagen categoría файл изображение категория ファイル 画像 カテゴリ "
    "文件 檔案 档案 图像 圖像 分类 分類 datei bild kategorie".split())
HIDDEN_TAGS = ("ref|references|math|chem|ce|gallery|timeline|score|syntaxhighlight|source|imagemap|templatestyles|style|script|"
               "hiero|graph|mapframe|maplink|table|inputbox|includeonly|indicator")
# Templates that stand for words: which of their unnamed values are shown ("last", or the first so many, with spaces between).
SHOWN: dict[str, Any] = {
    "lang": "last", "langue": "last", "lang-en": "last", "nowrap": 1, "nobr": 1, "formatnum": 1, "num": 1, "val": 2, "convert": 2, "cvt": 2,
    "unité": 2, "unidad": 2, "x10": 1, "abbr": 1, "abbréviation": 1, "sub": 1, "sup": 1, "s": 1, "siècle": 1, "仮リンク": 1, "le": 1, "lien": 1,
}


# ---- dumps ------------------------------------------------------------------------------------------------------------


def read_dump(file: IO[bytes], bad: Count, skip: Count) -> Iterator[tuple[int, dict[str, Any]]]:
    """Articles of an XML dump; `bad` counts what is broken, `skip` what is well-formed and no article."""
    language, base, hidden = "", "", HIDDEN_NAMESPACES
    found = False
    for line, kind, data in _pieces(file):
        if kind == "head":
            head = data.decode("utf-8", "replace")
            language = (re.search(r'<mediawiki\b[^>]*\bxml:lang="([^"]*)"', head) or [""] * 2)[1]
            base = html.unescape((re.search(r"<base>([^<]*)</base>", head) or [""] * 2)[1]).rpartition("/")[0]
            own = re.findall(r'<namespace key="(?:6|14)"[^>]*>([^<]*)</namespace>', head)
            hidden |= {html.unescape(name).lower().replace("_", " ") for name in own}
            continue
        found = True
        if kind != "page":
            bad(kind, line, len(data))
            continue
        try:
            page = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError):
            bad("page is not well-formed XML", line, len(data))
            continue
        revisions = page.findall("revision")
        markup = (revisions[-1].findtext("text") if revisions else "") or ""
        title = page.findtext("title") or ""
        if page.find("redirect") is not None:
            skip("redirect to another page", line, len(markup))
        elif (page.findtext("ns") or "0").strip() != "0":
            skip("page is no article", line, len(markup))
        else:
            record: dict[str, Any] = {"text": plain_text(markup, hidden), "meta": {"title": title}}
            if page.findtext("id"):
                record["id"] = page.findtext("id")
            if language:
                record["language"] = language.partition("-")[0]
            if base:
                record["meta"]["url"] = f"{base}/{title.replace(' ', '_')}"
            yield line, record
    if not found:
        bad("no <page> of a MediaWiki dump in this file", 1, 0)


def _pieces(file: IO[bytes]) -> Iterator[tuple[int, str, bytes]]:
    """(line of its beginning, "head", "page" or what is wrong, bytes): the head once, then page after page."""
    buffer, line, inside, looked, headed = bytearray(), 1, False, 0, False
    while True:
        token = b"</page>" if inside else b"<page>"
        at = buffer.find(token, max(0, looked - len(token)))
        if at < 0:
            looked = len(buffer)
            block = file.read(BLOCK)
            if not block:
                break
            if inside and len(buffer) > MAX_PAGE_BYTES:  # go on looking for its end, without keeping it
                line += buffer.count(b"\n", 0, len(buffer) - 8)
                del buffer[:-8]
                looked = 0
                if inside is True:
                    yield line, f"page longer than {MAX_PAGE_BYTES >> 20} MiB", b""
                    inside = "too long"
            elif not inside and len(buffer) > BLOCK * 8:  # between pages there is nothing to keep, and no head is longer
                if not headed:
                    yield line, "head", bytes(buffer)
                    headed = True
                line += buffer.count(b"\n", 0, len(buffer) - 8)
                del buffer[:-8]
                looked = 0
            buffer += block
            continue
        end = at + len(token) if inside else at
        piece = bytes(buffer[:end])
        if inside is True:
            other = piece.find(b"<page>", 6)
            if other > 0:  # this page never ended
                yield line, "<page> is not closed", piece[:other]
                line += piece.count(b"\n", 0, other)
                piece = piece[other:]
            yield line, "page", piece
        elif not inside and not headed:
            yield line, "head", piece
            headed = True
        line += piece.count(b"\n")
        del buffer[:end]
        looked, inside = 0, not inside
    if inside is True:
        yield line, "<page> is not closed", bytes(buffer)


# ---- Wikiextractor's form ---------------------------------------------------------------------------------------------

WIKI_DOC = re.compile(rb'<doc\s+id="(?P<id>[^"]*)"\s+url="(?P<url>[^"]*)"\s+title="(?P<title>[^"]*)"[^>]*>\s*$')


def read_extracted(file: IO[bytes], first: re.Match[bytes], bad: Count) -> Iterator[tuple[int, dict[str, Any]]]:
    """Articles of a file of <doc> blocks, whose first line has been read already."""
    head: re.Match[bytes] | None = first
    start, lines = 1, []
    for number, line in enumerate(file, 2):
        if opened := WIKI_DOC.match(line):
            if head:
                bad("<doc> is not closed", start, sum(map(len, lines)))
            start, head, lines = number, opened, []
        elif line.strip() == b"</doc>" and head:
            yield from _extracted(head, lines, start, bad)
            head = None
        elif head:
            lines.append(line)
        elif line.strip():
            bad("text outside <doc>", number, len(line))
    if head:
        bad("<doc> is not closed", start, sum(map(len, lines)))


def _extracted(head: re.Match[bytes], lines: list[bytes], number: int, bad: Count) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        attributes = {key: html.unescape(value.decode("utf-8")) for key, value in head.groupdict().items()}
        text = b"".join(lines).decode("utf-8").strip()
    except UnicodeDecodeError:
        bad("not UTF-8", number, sum(map(len, lines)))
    else:
        yield number, {"text": text, "id": attributes.pop("id"), "meta": attributes}


# ---- markup -----------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)\b[^<>]*>")
_HIDDEN = re.compile(rf"<(?P<end>/?)(?P<name>{HIDDEN_TAGS})\b[^<>]*?(?P<alone>/?)>", re.IGNORECASE)
_BRACKETS = re.compile(r"\{\{|\}\}|^[ \t:*#]*\{\||^[ \t]*\|\}|\[\[|\]\]", re.MULTILINE)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]")
_CONVERSION = re.compile(r"-\{([^{}]*)\}-")
_EMPTY_BRACKETS = re.compile(r"[ \t]?[(（][\s,;:，；、：]*[)）]")
_MAGIC = re.compile(r"__[^\W_]+(?:_[^\W_]+)*__")
_CLOSES = {"}}": "{{", "|}": "{|", "]]": "[["}


def plain_text(markup: str, hidden_namespaces: frozenset[str] = HIDDEN_NAMESPACES) -> str:
    r"""The text of an article without its markup.

    >>> plain_text("'''Scurvy'''<ref>a</ref> ([[Latin]]: {{lang|la|scorbutus}}) is a [[disease|''rare'' one]] {{citation needed}}.\n"
    ...            "[[File:x.jpg|thumb|A [[gum]].]]\n{|\n| table\n|}\n== Signs ==\n* fatigue, 5&nbsp;mg\n== Notes ==\n[[Category:Diseases]]")
    'Scurvy (Latin: scorbutus) is a rare one.\n\nSigns\nfatigue, 5\xa0mg'
    """
    text = _without_hidden_tags(_without_comments(markup))
    text = _CONVERSION.sub(_converted, text)
    text = _without_brackets(text, hidden_namespaces)
    text = _EXTERNAL.sub(r"\1", text)
    text = re.sub("'{2,}", lambda run: "'" * (1 if len(run[0]) == 4 else max(0, len(run[0]) - 5)), text)
    text = _TAG.sub(lambda tag: "\n" if tag[1].lower() in ("br", "p", "div", "li", "tr") else "", text)
    text = html.unescape(_MAGIC.sub("", text))
    return _lines(_EMPTY_BRACKETS.sub("", text))


def _without_comments(text: str) -> str:
    parts, begin = [], 0
    while (start := text.find("<!--", begin)) >= 0:
        parts.append(text[begin:start])
        end = text.find("-->", start)
        if end < 0:  # an open comment hides the rest, as on the page
            return "".join(parts)
        begin = end + 3
    return "".join(parts) + text[begin:]


def _without_hidden_tags(text: str) -> str:
    """Without elements whose content is no running text; a tag that is never closed goes alone."""
    ends: dict[str, list[int]] = {}
    tags = list(_HIDDEN.finditer(text))
    for tag in tags:
        if tag["end"]:
            ends.setdefault(tag["name"].lower(), []).append(tag.start())
    parts, begin = [], 0
    for tag in tags:
        if tag.start() < begin or tag["end"]:
            continue
        closing = ends.get(tag["name"].lower(), [])
        place = bisect.bisect(closing, tag.start())
        parts.append(text[begin:tag.start()])
        begin = tag.end() if tag["alone"] or place == len(closing) else text.index(">", closing[place]) + 1
    return "".join(parts) + text[begin:]


def _converted(match: re.Match[str]) -> str:
    """Chinese -{zh-hans:a;zh-hant:b}-: one of the spellings."""
    flags, bar, body = match[1].rpartition("|")
    if bar and not set("HT-").isdisjoint(flags.split(";")):
        return ""
    spellings = dict(part.strip().split(":", 1) for part in body.split(";") if ":" in part)
    named = next((spellings[name] for name in ("zh-hans", "zh-cn", "zh", "zh-hant", "zh-tw", "zh-hk") if name in spellings), None)
    return body if named is None else named


def _without_brackets(text: str, hidden_namespaces: frozenset[str]) -> str:
    """Templates and tables fall (but for SHOWN), links give their words. One that is never closed leaves what it holds."""
    parts: list[str] = []
    opened: list[tuple[str, int]] = []  # what opened, and how many parts there were
    count = {"{{": 0, "{|": 0, "[[": 0}
    begin = 0
    for token in _BRACKETS.finditer(text):
        if token.start() > begin:
            parts.append(text[begin:token.start()])
        begin = token.end()
        kind = token[0].lstrip(" \t:*#")
        if kind in count:
            count[kind] += 1
            opened.append((kind, len(parts)))
        elif count[_CLOSES[kind]]:  # whatever opened after its partner and did not close goes with it
            while True:
                other, first = opened.pop()
                count[other] -= 1
                if other == _CLOSES[kind]:
                    break
            inside = "".join(parts[first:]) if len(opened) < MAX_DEPTH else ""
            del parts[first:]
            if other == "[[":
                inside = _link(inside, hidden_namespaces)
            else:
                inside = _template(inside) if other == "{{" else ""
            if inside:
                parts.append(inside)
        elif kind == "|}":
            begin = token.start()
    parts.append(text[begin:])
    return "".join(parts)


def _link(inside: str, hidden_namespaces: frozenset[str]) -> str:
    target, bar, shown = inside.partition("|")
    space, colon, _ = target.partition(":")
    if colon and (space.strip().lower().replace("_", " ") in hidden_namespaces or (not bar and re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", space))):
        return ""
    return shown.rpartition("|")[2] if bar else target.lstrip(":")


def _template(inside: str) -> str:
    name, _, rest = inside.partition("|")
    how = SHOWN.get(name.strip().lower())
    values = [value.strip() for value in rest.split("|") if value.strip() and not re.match(r"\s*[\w -]{1,40}=", value)] if how else []
    return "" if not values else values[-1] if how == "last" else " ".join(values[:how])


def _lines(text: str) -> str:
    """Lines without list signs and spaces at their ends, one blank line between paragraphs, headings that have something below."""
    out: list[str] = []
    headings: list[tuple[int, str]] = []  # waiting for text
    for line in text.split("\n"):
        line = line.strip(" \t")
        if line.startswith("=") and line.endswith("=") and line.strip("= \t"):
            level = len(line) - len(line.lstrip("="))
            headings = [heading for heading in headings if heading[0] < level] + [(level, line.strip("= \t"))]
            continue
        line = re.sub(" {2,}", " ", line.lstrip("*#:;").strip(" \t"))
        line = re.sub(r" ([.,])(?=\s|$)", r"\1", line)  # where a template stood
        if not line.strip(" \t-|!"):
            if out and out[-1] and not headings:
                out.append("")
            continue
        if headings:
            if out and out[-1]:
                out.append("")
            out += [title for _, title in headings]
            headings = []
        out.append(line)
    return "\n".join(out).strip("\n")
