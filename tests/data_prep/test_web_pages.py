"""Saved web pages: the main text without boilerplate; a bad page or archive costs only itself."""
import gzip
import io
import json
import os
import time
import zipfile
from pathlib import Path

import pytest

from data_prep.documents import read_documents
from data_prep.sources.worker import Unreadable, Worker
from data_prep.web_pages import extract, extract_pages
from mmed.utils.errors import UserError

pytest.importorskip("trafilatura", exc_type=ImportError)  # extra web
statusandheaders = pytest.importorskip("warcio.statusandheaders")
warcwriter = pytest.importorskip("warcio.warcwriter")

OPTIONS = {"language": "en", "source": "site", "licence": "", "strict": False, "suffix": ".jsonl.gz",
           "max_page_bytes": 100_000, "page_seconds": 20}
# charset, title, a paragraph, a menu entry
SITES = {
    "fr": ("utf-8", "Grippe saisonnière : symptômes",
           "La grippe est une infection respiratoire aiguë, très contagieuse, due à des virus influenza.",
           "Maladies de A à Z"),
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


def site_page(code: str = "en", *paragraphs: str) -> bytes:
    charset, title, own, menu = SITES[code]
    body = "".join(f"<p>{text}</p>" for text in paragraphs or [own])
    return PAGE.format(code=code, charset=charset, title=title, body=body, menu=menu).encode(charset)


def run(out: Path, *inputs: Path, **options) -> tuple[list, dict[str, int]]:
    """(documents kept, number dropped by reason)"""
    extract_pages([str(path) for path in inputs], out, {**OPTIONS, **options})
    kept = [document for path in sorted((out / "kept").glob("*.gz")) for document in read_documents(path)]
    dropped = json.loads((out / "funnel.json").read_text())["dropped"]
    return kept, {reason: entry["documents"] for reason, entry in dropped.items()}


def write_warc(path: Path, pages: list[tuple[str, int, str, bytes]], packed: bool = True) -> None:
    """A WARC of (address, status, content type, body)."""
    with open(path, "wb") as file:
        writer = warcwriter.WARCWriter(file, gzip=packed)
        for url, status, kind, body in pages:
            asked = io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")
            writer.write_record(writer.create_warc_record(url, "request", payload=asked))
            writer.write_record(response(writer, url, body, f"{status} x", [("Content-Type", kind)]))


def response(writer, url: str, body: bytes, status: str, fields: list[tuple[str, str]]):
    headers = statusandheaders.StatusAndHeaders(status, fields, protocol="HTTP/1.1")
    return writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)


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
    for name, body in pages.items():
        (tmp_path / "site" / "sub" / name).write_bytes(body)
    (tmp_path / "site" / "style.css").write_text("p {}")
    with zipfile.ZipFile(tmp_path / "site.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in pages.items():
            archive.writestr(f"../sub/{name}", body)  # harmless: nothing is unpacked to disk
        archive.writestr("logo.png", b"\x89PNG")
    records = [(f"http://x.example/{name}", 200, "text/html", body) for name, body in pages.items()]
    others = [("http://x.example/no", 404, "text/html", pages["page0.html"]),
              ("http://x.example/logo.png", 200, "image/png", b"\x89PNG")]
    write_warc(tmp_path / "site.warc.gz", records + others)
    write_warc(tmp_path / "site.warc", records + others, packed=False)

    kept, dropped = run(tmp_path / "out", tmp_path / "site")
    assert [document.meta["file"] for document in kept] == [f"sub/{name}" for name in pages]
    assert all(f"Paragraph {number}." in document.text for number, document in enumerate(kept))
    for name in ("site.zip", "site.warc.gz", "site.warc"):
        same, dropped = run(tmp_path / f"out-{name}", tmp_path / name)
        assert not dropped
        assert [document.text for document in same] == [document.text for document in kept], name
    assert same[1].meta["url"] == "http://x.example/page1.html"
    assert same[1].meta["fetched"].startswith("20")
    assert not list(tmp_path.parent.glob("sub"))


def test_packed_and_chunked_answers_are_decoded(tmp_path):
    """As servers send them and some crawlers keep them."""
    packed = gzip.compress(site_page())
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    with open(tmp_path / "a.warc.gz", "wb") as file:
        writer = warcwriter.WARCWriter(file, gzip=True)
        fields = [("Content-Type", "text/html"), ("Content-Encoding", "gzip"),
                  ("Transfer-Encoding", "chunked")]
        writer.write_record(response(writer, "http://x.example/", chunked, "200 OK", fields))
    document, = run(tmp_path / "out", tmp_path / "a.warc.gz")[0]
    assert SITES["en"][2] in document.text


def test_bad_pages_are_dropped_with_the_reason(tmp_path):
    (tmp_path / "site").mkdir()
    bodies = {"a.html": site_page(), "b.html": b" \n", "c.html": b"<html><body></body></html>",
              "d.html": site_page("en", "x" * 200_000)}
    for name, body in bodies.items():
        (tmp_path / "site" / name).write_bytes(body)
    kept, dropped = run(tmp_path / "out", tmp_path / "site")
    assert len(kept) == 1 and dropped == {"empty page": 1, "no main text": 1, "page too large": 1}
    with pytest.raises(UserError, match=r"page 2 \(b.html\): empty page; leave out --strict"):
        run(tmp_path / "strict", tmp_path / "site", strict=True)


@pytest.mark.parametrize("name", ["site.warc.gz", "site.warc", "site.zip"])
def test_a_truncated_archive_is_counted_and_keeps_what_comes_before(tmp_path, name):
    bodies = [site_page("en", SITES["en"][2] + os.urandom(2000).hex()) for _ in range(4)]
    pages = [(f"http://x.example/{number}", 200, "text/html", body) for number, body in enumerate(bodies)]
    write_warc(tmp_path / "site.warc.gz", pages)
    write_warc(tmp_path / "site.warc", pages, packed=False)
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        archive.writestr("a.html", bodies[0])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:len(whole) * 7 // 8])
    if name == "site.zip":  # nothing of it can be read
        with pytest.raises(UserError, match="1 x file truncated or damaged"):
            run(tmp_path / "out", tmp_path / name)
    else:
        kept, dropped = run(tmp_path / "out", tmp_path / name)
        assert dropped == {"file truncated or damaged": 1} and len(kept) == 3
    (tmp_path / name).write_bytes(os.urandom(5000))
    with pytest.raises(UserError, match="1 x file truncated or damaged"):
        run(tmp_path / "noise", tmp_path / name)


def test_a_finished_list_is_not_read_again_until_a_page_changes(tmp_path):
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "a.html"
    page.write_bytes(site_page())
    run(tmp_path / "out", tmp_path / "site")
    result = tmp_path / "out" / "kept" / "site-00000.jsonl.gz"
    before = result.stat().st_mtime_ns
    run(tmp_path / "out", tmp_path / "site")
    assert result.stat().st_mtime_ns == before
    page.write_bytes(site_page("en", "A paragraph on the treatment of diabetes with metformin and diet."))
    document, = run(tmp_path / "out", tmp_path / "site")[0]
    assert "metformin" in document.text


def test_inputs_without_pages_are_rejected_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "no such file"), ("empty", "no corpus file in this folder")):
        with pytest.raises(UserError, match=f"{name}: {message}") as error:
            extract_pages([str(tmp_path / name)], tmp_path / "out", OPTIONS)
        assert "\n" not in str(error.value)


def test_a_worker_outlives_calls_that_hang_crash_or_fail():
    with Worker(seconds=5) as worker:
        assert worker.call(abs, -3) == 3
        with pytest.raises(Unreadable, match="crashed"):
            worker.call(os._exit, 3)
        with pytest.raises(RuntimeError, match="ValueError"):
            worker.call(int, "x")
        assert worker.call(abs, -4) == 4  # a new child
        worker.seconds = 0.2
        with pytest.raises(Unreadable, match="too long"):
            worker.call(time.sleep, 60)
