"""The crawler against a server on this machine that records what it is asked, and when."""
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import pytest
from repository import ROOT
from stub_server import LocalHandler, LocalServer

from data_prep.documents import Funnel
from data_prep.fetch_site import main
from data_prep.web_pages import read_pages
from mmed.utils.errors import EXIT_FAILED, EXIT_STOPPED, UsageError

scrapy = pytest.importorskip("scrapy")  # extra crawl
pytest.importorskip("warcio")
site_spider = pytest.importorskip("data_prep.sources.site_spider")

HTML = {"Content-Type": "text/html; charset=utf-8"}


class Site(LocalServer):
    """A server of {path: HTML, (status, headers, body) or a function that returns one of them}."""

    def __init__(self, pages: dict, robots: object = ""):
        self.pages = {"/robots.txt": robots, **pages}
        self.asked: list[tuple[float, str]] = []
        self.answers: float = math.inf  # requests beyond this number wait
        super().__init__(SiteHandler)

    def counts(self) -> Counter:
        return Counter(path for _, path in self.asked)


class SiteHandler(LocalHandler):
    def do_GET(self):
        self.server.asked.append((time.monotonic(), self.path))
        while len(self.server.asked) > self.server.answers:
            time.sleep(0.01)
        page = self.server.pages.get(self.path, (404, HTML, b"<html>no"))
        page = page() if callable(page) else page
        self.respond(*((200, HTML, page.encode()) if isinstance(page, str) else page))


def page(*links: str, text: str = "", head: str = "") -> str:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return f"<html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>"


def begin(site: Site, out: Path, *more: str, start: str = "/") -> subprocess.Popen:
    command = [sys.executable, "-m", "data_prep.fetch_site", f"{site.url}{start}", "--out", str(out),
               "--contact", "me@example.org", "--delay", "0", *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def crawl(site: Site, out: Path, *more: str, start: str = "/") -> int:
    running = begin(site, out, *more, start=start)
    running.communicate(timeout=240)
    return running.returncode


def saved(out: Path) -> dict[str, bytes]:
    """{path: body} of the pages in the WARC files; no complete page is there twice."""
    pages = [page for path in sorted(out.glob("*.warc.gz")) for page in read_pages(path, Funnel())
             if not page.problem]
    found = {urlsplit(page.meta["url"]).path: page.body for page in pages}
    assert len(found) == len(pages)
    return found


def test_reachable_pages_are_saved_once_and_rules_are_obeyed(tmp_path):
    pages = {"/": page("a", "/a#part", "/missing", "/private/x", "/x.pdf", "/moved", "/away",
                       "http://127.0.0.2:9/y"),
             "/a": page("/b", text="the text of a"),
             "/b": page("/", "/noindex") + '<a rel="nofollow" href="/unfollowed">x</a>',
             "/noindex": page("/behind", head='<meta name="robots" content="noindex">'),
             "/behind": page("/leaf", head='<meta name="ROBOTS" content="NoFollow">'),
             "/moved": (301, {"Location": "/target"}, b""), "/target": page(),
             "/away": (302, {"Location": "http://127.0.0.2:9/elsewhere"}, b""),
             "/leaf": page(), "/unfollowed": page(), "/private/x": page()}
    with Site(pages, robots="User-agent: mmed\nDisallow: /private\nCrawl-delay: 0.2\n") as site:
        running = begin(site, tmp_path)
        assert "5 pages saved" in running.communicate(timeout=240)[0] and running.returncode == 0
        assert set(saved(tmp_path)) == {"/", "/a", "/b", "/behind", "/target"}
        assert b"the text of a" in saved(tmp_path)["/a"]
        assert set(site.counts()) == {"/robots.txt", "/", "/a", "/b", "/missing", "/moved", "/target",
                                      "/away", "/noindex", "/behind"}
        assert max(site.counts().values()) == 1
        times = [moment for moment, path in site.asked if path != "/robots.txt"]
        assert times[-1] - times[1] > 0.15 * (len(times) - 2)  # a single request may arrive late


def test_a_stopped_or_killed_crawl_continues_without_asking_for_saved_pages(tmp_path):
    pages = {f"/{number}": page(f"/{number + 1}", f"/{number + 2}") for number in range(40)}
    with Site({"/": page("/0"), **pages}, robots="User-agent: *\nCrawl-delay: 0.05\n") as site:
        for site.answers, number in ((8, signal.SIGTERM), (20, signal.SIGKILL)):
            running = begin(site, tmp_path)
            while len(site.asked) <= site.answers:
                time.sleep(0.01)
                assert running.poll() is None
            running.send_signal(number)
            site.answers = math.inf
            printed = running.communicate(timeout=240)[0]
            if number == signal.SIGTERM:
                assert running.returncode == EXIT_STOPPED and "run the same command again" in printed
        opened = next(tmp_path.glob("*.open"))
        opened.write_bytes(opened.read_bytes()[:-30])  # as if killed while it wrote the last page
        assert crawl(site, tmp_path) == 0
        assert len(saved(tmp_path)) == 41 and not list(tmp_path.glob("*.open"))
        again = [path for path, count in site.counts().items() if count > 1 and path != "/robots.txt"]
        assert len(again) <= 4  # in flight or truncated at the two stops


def test_limits_on_pages_and_addresses(tmp_path):
    pages = {f"/fr/{number}": page(f"/fr/{number + 1}", f"/en/{number}") for number in range(9)}
    with Site({"/fr/": page("/fr/0"), **pages}) as site:
        for limit in (4, 6):
            crawl(site, tmp_path, "--under", "--max_pages", str(limit), start="/fr/")
            assert len(saved(tmp_path)) == limit
        assert not any("/en/" in path for path in site.counts())


def test_failing_answers_are_repeated_or_left_out(tmp_path):
    busy = iter([(503, {"Retry-After": "1"}, b""), (429, {"Retry-After": "1"}, b"")])
    pages = {"/": page("/busy", "/large", "/image", "/broken"),
             "/busy": lambda: next(busy, page(text="at last")),
             "/large": page(text="x" * (11 << 20)),
             "/image": (200, {"Content-Type": "image/png"}, b"\x89PNG"),
             "/broken": (200, {**HTML, "Content-Encoding": "gzip"}, b"not gzip")}
    with Site(pages, robots=(404, HTML, b"<html>no")) as site:  # a missing one forbids nothing
        assert crawl(site, tmp_path) == 0
        assert set(saved(tmp_path)) - {"/broken"} == {"/", "/busy"}
        times = [moment for moment, path in site.asked if path == "/busy"]
        assert len(times) == 3 and min(times[1] - times[0], times[2] - times[1]) > 0.9


def test_a_later_answer_does_not_end_a_retry_after():
    request, crawler = scrapy.Request("http://example.org/"), MagicMock()
    slot = crawler.engine.downloader.slots["example.org"]
    slot.lastseen = start = time.monotonic()
    for status, seconds in ((503, "7"), (200, ""), (429, "3")):
        response = scrapy.http.Response(request.url, status, {"Retry-After": seconds})
        site_spider.Politeness(crawler).process_response(request, response)
    assert start + 7 <= slot.lastseen <= time.monotonic() + 7


def test_a_warc_file_has_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(site_spider, "PART_BYTES", 0)
    spider = site_spider.SiteSpider([], (), 9, tmp_path)
    for name in ("a", "b", "c"):
        spider.save(scrapy.http.HtmlResponse(f"http://example.org/{name}", body=b"<html>"))
        if name == "b":
            (tmp_path / "pages-00000.warc.gz").unlink()  # moved to another disk
    assert len(list(tmp_path.glob("*.warc.gz"))) == 2 and set(saved(tmp_path)) == {"/b", "/c"}


def test_an_unreadable_robots_txt_forbids_everything(tmp_path):
    with Site({"/": page()}, robots=(503, {}, b"")) as site:
        assert crawl(site, tmp_path) == EXIT_FAILED
        assert set(site.counts()) == {"/robots.txt"}


@pytest.mark.parametrize(("site", "contact", "message"), [("example.org", "me", "mail address"),
                                                          ("ftp://example.org", "me@x.org", "http address")])
def test_wrong_options_are_one_line(tmp_path, site, contact, message):
    with pytest.raises(UsageError, match=message):
        main([site, "--contact", contact, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
