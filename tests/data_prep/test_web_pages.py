"""Saved web pages: the main text without boilerplate; a bad page or archive costs only itself."""
import gzip
import io
import os
import time
import zipfile
from pathlib import Path

import pytest
from corpus_files import run

from data_prep.documents import Document
from data_prep.sources import saved_pages
from data_prep.sources.worker import Unreadable, Worker
from data_prep.web_pages import extract, main
from mmed.utils.errors import UserError

pytest.importorskip("trafilatura", exc_type=ImportError)  # extra web
statusandheaders = pytest.importorskip("warcio.statusandheaders")
warcwriter = pytest.importorskip("warcio.warcwriter")

# charset, title, a paragraph, a menu entry
SITES = {
    "en": ("utf-8", "Type 2 diabetes: symptoms",
           "Type 2 diabetes is a condition in which the level of glucose in the blood becomes too high.",
           "Health A to Z"),
    "es": ("iso-8859-1", "Hipertensión arterial: causas",
           "La hipertensión arterial es una enfermedad crónica en la que la presión de la sangre es alta.",
           "Todas las enfermedades"),
    "ru": ("windows-1251", "Пневмония у взрослых: симптомы",
           "Пневмония — это острое инфекционное воспаление лёгких, при котором скапливается экссудат.",
           "Все болезни"),
    "zh": ("gb2312", "高血压的症状与治疗方法",
           "高血压是以体循环动脉血压持续升高为主要特征的慢性疾病，收缩压大于或等于一百四十毫米汞柱即可诊断。",
           "疾病大全"),
    "ja": ("shift_jis", "気管支ぜんそくの症状と治療",
           "気管支ぜんそくは、気道に慢性的な炎症が続くことで気道が狭くなり、咳や喘鳴、呼吸困難を繰り返す病気です。",
           "病気を調べる"),
}
PAGE = """<!DOCTYPE html><html lang="{code}"><head><meta charset="{charset}"><title>{title} | Site</title>
<meta property="article:published_time" content="2023-11-04T08:00:00+01:00">
<script>var layer = "secret tracking";</script></head><body>
<header><nav class="menu"><ul><li><a href="/az">{menu}</a></li><li><a href="/x">{menu}</a></li></ul></nav>
</header>
<main><article><h1>{title}</h1>{body}</article></main>
<section id="comments" class="comments"><p>Posted by johnny</p></section>
<footer class="footer"><p>All rights reserved</p></footer></body></html>"""


def site_page(code: str = "en", paragraph: str = "") -> bytes:
    charset, title, own, menu = SITES[code]
    body = f"<p>{paragraph or own}</p>"
    return PAGE.format(code=code, charset=charset, title=title, body=body, menu=menu).encode(charset)


def read(out: Path, *arguments: object) -> tuple[list[Document], dict[str, int]]:
    return run(main, out, *arguments, "--language", "en")


def write_warc(path: Path, *responses: tuple[str, bytes, dict[str, str]], status: str = "200 OK") -> None:
    """A WARC of (address, body, headers), with the requests."""
    with open(path, "ab") as file:
        writer = warcwriter.WARCWriter(file, gzip=path.suffix == ".gz")
        for url, body, headers in responses:
            asked = io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")
            writer.write_record(writer.create_warc_record(url, "request", payload=asked))
            fields = statusandheaders.StatusAndHeaders(status, list(headers.items()), protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body),
                                                          http_headers=fields))


HTML = {"Content-Type": "text/html"}


@pytest.mark.parametrize("code", SITES)
def test_a_page_gives_its_text_without_boilerplate(code):
    """One paragraph is short: trafilatura's own threshold would add the menu in Chinese and Japanese."""
    _, title, paragraph, menu = SITES[code]
    found = extract(site_page(code), "https://x.example/a")
    assert found["text"].count(paragraph) == 1
    assert not [piece for piece in (menu, "johnny", "All rights", "secret") if piece in found["text"]]
    assert (found["title"], found["date"], found["url"]) == (title, "2023-11-04", "https://x.example/a")


def test_pages_in_a_folder_a_zip_and_a_warc_give_the_same_texts(tmp_path):
    pages = {f"page{number}.html": site_page("en", f"Paragraph {number}. {SITES['en'][2]}")
             for number in range(3)}
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "style.css").write_text("p {}")
    with zipfile.ZipFile(tmp_path / "site.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logo.png", b"\x89PNG")
        for name, body in pages.items():
            (tmp_path / "site" / "sub" / name).write_bytes(body)
            archive.writestr(f"../sub/{name}", body)  # harmless: nothing is unpacked to disk
    for warc in (tmp_path / "site.warc.gz", tmp_path / "site.warc"):
        packed = {"Content-Encoding": "gzip", **HTML}
        write_warc(warc, *((f"http://x.example/{name}", gzip.compress(body), packed)
                           for name, body in pages.items()),
                   ("http://x.example/logo.png", b"\x89PNG", {"Content-Type": "image/png"}))
        write_warc(warc, ("http://x.example/no", pages["page0.html"], HTML), status="404 no")
    (tmp_path / "whole.warc.gz").write_bytes(gzip.compress((tmp_path / "site.warc").read_bytes()))
    arc = (b"filedesc://a.arc 0.0.0.0 20090101000000 text/plain 65\n1 0 mmed\n"
           b"URL IP-address Archive-date Content-type Archive-length\n\n")
    for name, body in pages.items():
        record = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
        arc += f"http://x.example/{name} 1.2.3.4 20090101000000 text/html {len(record)}\n".encode()
        arc += record + b"\n"
    (tmp_path / "site.arc.gz").write_bytes(gzip.compress(arc))
    brotli = pytest.importorskip("brotli")
    packed = {"Content-Encoding": "br", **HTML}
    write_warc(tmp_path / "brotli.warc", *((f"http://x.example/{name}", brotli.compress(body), packed)
                                           for name, body in pages.items()))

    kept, dropped = read(tmp_path / "out", tmp_path / "site")
    assert [document.meta["file"] for document in kept] == [f"sub/{name}" for name in pages]
    assert kept[0].source == "site"
    assert all(f"Paragraph {number}." in document.text for number, document in enumerate(kept))
    for name in ("site.zip", "site.arc.gz", "brotli.warc", "whole.warc.gz", "site.warc.gz", "site.warc"):
        same, dropped = read(tmp_path / f"out-{name}", tmp_path / name)
        assert not dropped
        assert [document.text for document in same] == [document.text for document in kept], name
    assert same[1].meta["url"] == "http://x.example/page1.html"
    assert same[1].meta["fetched"].startswith("20")
    assert not list(tmp_path.parent.glob("sub"))


def test_bad_pages_are_dropped_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_pages, "MAX_PAGE_BYTES", 100_000)
    (tmp_path / "site").mkdir()
    bodies = {"a.html": site_page(), "b.html": b" \n", "c.html": b"<html><body></body></html>",
              "d.html": site_page("en", "x" * 200_000)}
    for name, body in bodies.items():
        (tmp_path / "site" / name).write_bytes(body)
    kept, dropped = read(tmp_path / "out", tmp_path / "site")
    assert len(kept) == 1 and dropped == {"empty page": 1, "no main text": 1, "page too large": 1}
    with pytest.raises(UserError, match=r"site-00000:2 \(b.html\): empty page; omit --strict"):
        read(tmp_path / "strict", tmp_path / "site", "--strict")


@pytest.mark.parametrize("name", ["site.warc.gz", "site.warc", "site.zip"])
def test_a_truncated_archive_keeps_what_comes_before(tmp_path, name):
    bodies = [site_page("en", SITES["en"][2] + os.urandom(2000).hex()) for _ in range(4)]
    if name == "site.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.html", bodies[0])
    else:
        write_warc(tmp_path / name, *((f"http://x.example/{number}", body, HTML)
                                      for number, body in enumerate(bodies)))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:len(whole) * 7 // 8])
    if name != "site.zip":  # of which nothing can be read
        kept, dropped = read(tmp_path / "out", tmp_path / name)
        assert dropped == {"file truncated or damaged": 1} and len(kept) == 3
        (tmp_path / name).write_bytes(os.urandom(5000))
    with pytest.raises(UserError, match="1 x file truncated or damaged"):
        read(tmp_path / "noise", tmp_path / name)


def test_a_finished_list_is_not_read_again_until_a_page_changes(tmp_path):
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "a.html"
    page.write_bytes(site_page())
    result = tmp_path / "out" / "kept" / "site-00000.jsonl.gz"
    times = set()
    for _ in range(2):
        read(tmp_path / "out", tmp_path / "site")
        times.add(result.stat().st_mtime_ns)
    assert len(times) == 1
    page.write_bytes(site_page("en", "A paragraph on the treatment of diabetes with metformin and diet."))
    document, = read(tmp_path / "out", tmp_path / "site")[0]
    assert "metformin" in document.text


def test_a_worker_outlives_calls_that_hang_crash_or_fail():
    with Worker(seconds=30) as worker:
        assert worker.call(abs, -3) == 3
        with pytest.raises(Unreadable, match="crashed"):
            worker.call(os._exit, 3)
        with pytest.raises(ValueError, match="invalid literal"):
            worker.call(int, "x")
        assert worker.call(abs, -4) == 4  # a new child
        with pytest.raises(Unreadable, match="too much memory"):
            worker.call(bytearray, 8 << 30)
        worker.seconds = 0.2
        with pytest.raises(Unreadable, match="too long"):
            worker.call(time.sleep, 60)
