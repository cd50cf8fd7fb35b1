"""Saved web pages: the main text without boilerplate; a bad page or archive costs only itself."""
import functools
import gzip
import io
import json
import os
import time
import zipfile
from pathlib import Path

import pytest
from corpus_files import run

from data_prep import web_pages
from data_prep.sources.worker import Unreadable, Worker
from mmed.languages import get_language
from mmed.utils.errors import UserError

pytest.importorskip("trafilatura", exc_type=ImportError)  # extra web
statusandheaders = pytest.importorskip("warcio.statusandheaders")
warcwriter = pytest.importorskip("warcio.warcwriter")

read = functools.partial(run, web_pages.main)
CHARSETS = {"en": "utf-8", "es": "iso-8859-1", "ru": "windows-1251", "zh": "gb2312", "ja": "shift_jis"}
PAGE = """<!DOCTYPE html><html lang="{code}"><head><meta charset="{charset}"><title>{title} | Site</title>
<meta property="article:published_time" content="2023-11-04T08:00:00+01:00">
<script>var layer = "secret tracking";</script></head><body>
<header><nav class="menu"><ul><li><a href="/az">{menu}</a></li><li><a href="/x">{menu}</a></li></ul></nav>
</header>
<main><article><h1>{title}</h1><p>{paragraph}</p></article></main>
<section id="comments" class="comments"><p>Posted by johnny</p></section>
<footer class="footer"><p>All rights reserved</p></footer></body></html>"""


def site_page(code: str = "en", paragraph: str = "") -> bytes:
    language = get_language(code)
    text = paragraph or language.medical_sentence
    return PAGE.format(code=code, charset=CHARSETS[code], title=language.medical_sentence[:20],
                       menu=language.ordinary_sentence[:20], paragraph=text).encode(CHARSETS[code])


SENTENCE = get_language("en").medical_sentence
PAGES = {f"page{n}.html": site_page("en", f"Paragraph {n}. {SENTENCE}") for n in range(3)}


def write_folder(path: Path, pages: dict[str, bytes]) -> None:
    path.mkdir(parents=True)
    for name, body in pages.items():
        (path / name).write_bytes(body)


def write_zip(path: Path, pages: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logo.png", b"\x89PNG")
        for name, body in pages.items():
            archive.writestr(f"../sub/{name}", body)  # harmless: nothing is unpacked to disk


def write_warc(path: Path, pages: dict[str, bytes], encoding: str = "") -> None:
    """The pages with their requests, a picture and a page that was not found."""
    more = {"Content-Encoding": encoding} if encoding else {}
    records = [(name, body, "200 OK", {"Content-Type": "text/html", **more}) for name, body in pages.items()]
    records += [("logo.png", b"\x89PNG", "200 OK", {"Content-Type": "image/png"}),
                ("no", site_page(), "404 no", {"Content-Type": "text/html"})]
    with open(path, "wb") as file:
        writer = warcwriter.WARCWriter(file, gzip=path.suffix == ".gz")
        for name, body, status, headers in reversed(records):
            url, asked = f"http://x.example/{name}", io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")
            writer.write_record(writer.create_warc_record(url, "request", payload=asked))
            fields = statusandheaders.StatusAndHeaders(status, list(headers.items()), protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body),
                                                          http_headers=fields))


def write_arc(path: Path, pages: dict[str, bytes]) -> None:
    arc = (b"filedesc://a.arc 0.0.0.0 20090101000000 text/plain 65\n1 0 mmed\n"
           b"URL IP-address Archive-date Content-type Archive-length\n\n")
    for name, body in pages.items():
        record = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
        arc += f"http://x.example/{name} 1.2.3.4 20090101000000 text/html {len(record)}\n".encode()
        arc += record + b"\n"
    path.write_bytes(gzip.compress(arc))


@pytest.mark.parametrize("code", CHARSETS)
def test_a_page_gives_its_text_without_boilerplate(code):
    """One paragraph is short: trafilatura's own threshold would add the menu in Chinese and Japanese."""
    language = get_language(code)
    found = web_pages.extract(site_page(code), "https://x.example/a")
    assert found["text"].count(language.medical_sentence) == 1
    unwanted = (language.ordinary_sentence[:20], "johnny", "All rights", "secret")
    assert not [piece for piece in unwanted if piece in found["text"]]
    assert (found["title"], found["date"]) == (language.medical_sentence[:20].strip(), "2023-11-04")
    assert found["url"] == "https://x.example/a"


def test_pages_in_a_folder_a_zip_and_a_warc_give_the_same_texts(tmp_path):
    packed = {name: gzip.compress(body) for name, body in PAGES.items()}
    write_folder(tmp_path / "site" / "sub", {**PAGES, "style.css": b"p {}"})
    write_zip(tmp_path / "site.zip", PAGES)
    write_warc(tmp_path / "site.warc.gz", packed, "gzip")
    write_warc(tmp_path / "site.warc", packed, "gzip")
    (tmp_path / "whole.warc.gz").write_bytes(gzip.compress((tmp_path / "site.warc").read_bytes()))
    write_arc(tmp_path / "site.arc.gz", PAGES)
    brotli = pytest.importorskip("brotli")
    write_warc(tmp_path / "brotli.warc", {name: brotli.compress(body) for name, body in PAGES.items()}, "br")

    kept, dropped = read(tmp_path / "out", tmp_path / "site")
    assert [document.meta["file"] for document in kept] == [f"sub/{name}" for name in PAGES]
    assert kept[0].source == "site"
    assert all(f"Paragraph {number}." in document.text for number, document in enumerate(kept))
    for name in ("site.zip", "site.arc.gz", "brotli.warc", "whole.warc.gz", "site.warc.gz", "site.warc"):
        same, dropped = read(tmp_path / f"out-{name}", tmp_path / name)
        assert not dropped
        assert sorted(document.text for document in same) == [document.text for document in kept], name
    assert same[1].meta["url"] == "http://x.example/page1.html"
    assert same[1].meta["fetched"].startswith("20")
    assert not list(tmp_path.parent.glob("sub"))


def test_bad_pages_are_dropped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(web_pages, "MAX_PAGE_BYTES", 100_000)
    write_folder(tmp_path / "site", {"a.html": site_page(), "b.html": b" \n", "c.html": b"<html></html>",
                                     "d.html": site_page("en", "x" * 200_000)})
    (tmp_path / "site" / os.fsdecode(b"\xe9.html")).write_bytes(site_page())  # a name that is not UTF-8
    kept, dropped = read(tmp_path / "out", tmp_path / "site")
    assert len(kept) == 2 and dropped == {"no main text": 2, "page too large": 1}
    with pytest.raises(UserError, match=r"site-00000:2 \(b.html\): no main text; omit --strict"):
        read(tmp_path / "strict", tmp_path / "site", "--strict")


def test_pages_are_known_by_what_they_hold_where_their_names_do_not_say(tmp_path):
    names = ("a.html?id=3", "b.php@id=3", "topic", "note", "._c.html")
    pages = dict(zip(names, [*PAGES.values(), b"no page", b"\0\5\x16\7"]))
    write_folder(tmp_path / "site", pages)
    write_zip(tmp_path / "site.zip", pages)
    for name in ("site", "site.zip"):
        assert len(read(tmp_path / f"out-{name}", tmp_path / name)[0]) == 3, name
    (tmp_path / "text").write_bytes(b"no page")
    with pytest.raises(UserError, match="no document found, only 1 records that are not HTML pages"):
        read(tmp_path / "none", tmp_path / "text")


def test_the_text_of_commoncrawl_is_taken_as_it_is(tmp_path):
    with open(tmp_path / "CC-MAIN-00000.warc.wet.gz", "wb") as file:
        writer = warcwriter.WARCWriter(file, gzip=True)
        for url, text in (("http://a.example/", "Fièvre\r\nMenu"), ("http://b.example/", " ")):
            payload = io.BytesIO(text.encode())
            writer.write_record(writer.create_warc_record(url, "conversion", payload=payload))
    (document,), dropped = read(tmp_path / "out", tmp_path)
    assert (document.text, document.meta["url"]) == ("Fièvre\nMenu", "http://a.example/")
    assert dropped == {"no main text": 1}


@pytest.mark.parametrize("name", ["site.warc.gz", "site.warc", "site.zip"])
def test_a_truncated_archive_keeps_what_comes_before(tmp_path, name):
    pages = {f"{n}.html": site_page("en", SENTENCE + os.urandom(2000).hex()) for n in range(4)}
    path = tmp_path / name
    (write_zip if name == "site.zip" else write_warc)(path, pages)
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 7 // 8])
    contents = [os.urandom(5000), b""]
    if name == "site.zip":  # of which nothing can be read
        contents.append(path.read_bytes())
    else:
        kept, dropped = read(tmp_path / "out", path)
        assert dropped == {"file truncated or damaged": 1} and len(kept) == 3
    for damaged in contents:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="1 x file truncated or damaged"):
            read(tmp_path / "noise", path)


def test_a_damaged_entry_of_a_zip_costs_only_itself(tmp_path):
    path = tmp_path / "site.zip"
    write_zip(path, {"a.html?page=1": os.urandom(500), "b.html?page=2": site_page()})  # as wget names them
    data = bytearray(path.read_bytes())
    place = data.index(b"a.html?page=1") + 100
    data[place:place + 20] = bytes(20)
    path.write_bytes(data)
    kept, dropped = read(tmp_path / "out", path)
    assert dropped == {"archive entry damaged or encrypted": 1} and len(kept) == 1
    assert kept[0].meta["file"] == "../sub/b.html?page=2"
    details = json.loads((tmp_path / "out" / "funnel.json").read_text())["details"]
    assert details == {"records that are not HTML pages": 1}


def test_a_finished_list_is_not_read_again_until_a_page_changes(tmp_path):
    write_folder(tmp_path / "site", {"a.html": site_page()})
    result = tmp_path / "out" / "kept" / "site-00000.jsonl.gz"
    read(tmp_path / "out", tmp_path / "site")
    written = result.stat().st_mtime_ns
    read(tmp_path / "out", tmp_path / "site")
    assert result.stat().st_mtime_ns == written
    (tmp_path / "out" / "lists" / "site-00000.jsonl").unlink()  # as if two tasks had written it
    read(tmp_path / "out", tmp_path / "site")
    assert result.stat().st_mtime_ns == written
    (tmp_path / "site" / "a.html").write_bytes(site_page("en", "Diabetes is treated with metformin."))
    document, = read(tmp_path / "out", tmp_path / "site")[0]
    assert "metformin" in document.text


def test_a_worker_outlives_calls_that_hang_crash_or_fail():
    with Worker(seconds=30) as worker:
        assert worker.call(abs, -3) == 3
        for function, argument, error, message in ((os._exit, 3, Unreadable, "BrokenProcessPool"),
                                                   (int, "x", ValueError, "invalid literal"),
                                                   (bytearray, 8 << 30, Unreadable, "MemoryError")):
            with pytest.raises(error, match=message):
                worker.call(function, argument)
            assert worker.call(abs, -4) == 4  # a new child, if the last one crashed
        worker.seconds = 0.2
        with pytest.raises(Unreadable, match="TimeoutError"):
            worker.call(time.sleep, 60)
