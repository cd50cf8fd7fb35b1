"""The fetcher against a server on this machine that keeps count of what it is asked, and when."""
from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.robotparser
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep import fetch_site
from data_prep.fetch_site import Client, Settings, fetch, main, page_links
from data_prep.pipeline.shards import one_run
from data_prep.sources import frontier
from data_prep.sources.http_get import NoAnswer, clean_url, get
from data_prep.sources.page_files import Limits, read_pages
from data_prep.sources.robots import allowed, parse_robots
from data_prep.web_pages import extract_options, extract_pages
from mmed.utils.errors import UsageError, UserError

warcio = pytest.importorskip("warcio")

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Client("mmed/0 (contact: me@example.org)", "me@example.org", seconds=2.0, max_bytes=200_000, allow_private=True)


class Site:
    """A server whose pages are functions of (handler) or (status, headers, body); every request is counted with its time."""

    def __init__(self, pages: dict, robots: str | tuple | None = ""):
        self.pages = {"/robots.txt": (200, {"Content-Type": "text/plain"}, robots.encode()) if isinstance(robots, str) else robots, **pages}
        self.asked: list[tuple[float, str]] = []
        self.agents: set[str] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                site.asked.append((time.monotonic(), self.path))
                site.agents.add(self.headers["User-Agent"])
                page = site.pages.get(self.path) or (404, {"Content-Type": "text/html"}, b"<html>no")
                if callable(page):
                    page = page(self)
                if page is None:
                    self.close_connection = True
                    return
                if isinstance(page, str):
                    page = (200, {"Content-Type": "text/html; charset=utf-8"}, page.encode())
                status, headers, body = page
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value is not None:
                        self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):
                pass  # the other side went away, as it should

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def counts(self) -> Counter:
        return Counter(path for _, path in self.asked)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def page(*links: str, text: str = "", head: str = "") -> str:
    return f"<html><head>{head}</head><body><p>{text}</p>" + "".join(f'<a href="{link}">x</a>' for link in links) + "</body></html>"


def crawl(site: Site, out: Path, *seeds: str, parallel: int = 4, **more) -> dict:
    settings = Settings(CLIENT, **{"delay_seconds": 0.0, "retry_seconds": 0.02, "longest_wait": 3.0, **more})
    return fetch([f"{site.url}{seed}" for seed in seeds or ("/",)], out, settings, parallel)["127.0.0.1"]


def saved(out: Path) -> dict[str, bytes]:
    """Path -> body of the pages in the finished WARCs; none twice."""
    found: dict[str, bytes] = {}
    for path in sorted(out.rglob("*.warc.gz")):
        for page in read_pages(path, Limits(), Counter()):
            assert not page.reason and page.url not in found, page
            found[page.url] = page.body
    return {"/" + url.partition("//")[2].partition("/")[2]: body for url, body in found.items()}


def web(seed: int, size: int) -> dict[str, str]:
    """Random pages that link to one another in circles, to themselves, to what is not there."""
    rng = random.Random(seed)
    pages = {"/": page("/p0", "p1#part", "/missing", "/")}
    for number in range(size):
        links = [f"p{rng.randrange(size)}?utm_source=x" for _ in range(3)] + [f"/p{number + 1}", f"/p{number}", "mailto:a@b.c", "x.pdf"]
        pages[f"/p{number}"] = page(*links, text=f"This is page {number}.")
    return pages


# ---- pieces -----------------------------------------------------------------------------------------------------------


def test_robots_rules_agree_with_the_standard_library_where_that_can_read_them():
    """Random rules without wildcards, the longest first, which is where the two readings of the order are one."""
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    for _ in range(300):
        lines = []
        for agent in rng.sample(["*", "mmed", "other"], rng.randrange(1, 4)):
            rules = {"".join(rng.choices("ab/", k=rng.randrange(1, 5))).strip("/") for _ in range(5)} | {"ba"}
            rules = {rule for rule in rules if rule and "//" not in rule}  # which it would collapse
            lines += [f"User-agent: {agent}", *(f"{rng.choice(['Allow', 'Disallow'])}: /{rule}" for rule in sorted(rules, key=len, reverse=True)), ""]
        theirs = urllib.robotparser.RobotFileParser()
        theirs.parse(lines)
        ours = parse_robots("\n".join(lines), "mmed")
        for _ in range(10):
            path = "/" + "".join(rng.choices("/ab", k=rng.randrange(6)))
            if "//" not in path:
                assert allowed(ours, path) == theirs.can_fetch("mmed", f"http://h{path}"), (seed, lines, path)


@pytest.mark.parametrize(("rules", "path", "may"), [  # examples of RFC 9309 and of Google's published table
    ("Disallow: /fish", "/fish.html", False), ("Disallow: /fish", "/Fish", True), ("Disallow: /fish*.php", "/fishheads/catfish.php?id=1", False),
    ("Disallow: /*.php$", "/a.php?x", True), ("Disallow: /*.php$", "/a/b.php", False), ("Allow: /p\nDisallow: /", "/page", True),
    ("Allow: /folder\nDisallow: /folder", "/folder/page", True), ("Allow: /page\nDisallow: /*.htm", "/page.htm", False),
    ("Allow: /$\nDisallow: /", "/", True), ("Allow: /$\nDisallow: /", "/a", False), ("Disallow:", "/x", True), ("Disallow: /*?print=", "/a?print=1", False),
    ("Disallow: /ü", "/%C3%BC", False), ("Disallow: /%7Ejoe", "/~joe/x", False), ("Disallow: /a%2Fb", "/a/b", True), ("Disallow: /" + "*a" * 5000, "/" + "a" * 4000, True),
])
def test_the_longest_robots_rule_wins_and_wildcards_count(rules, path, may):
    assert allowed(parse_robots("User-agent: *\n" + rules, "mmed"), path) == may


def test_garbage_as_robots_txt_is_no_error():
    rng = random.Random(1)
    for _ in range(200):
        text = bytes(rng.randrange(256) for _ in range(200)).decode("latin-1") + "\nUser-agent: *\nCrawl-delay: x\nRequest-rate: 0/0\n: /\nDisallow"
        assert isinstance(allowed(parse_robots(text, "mmed"), "/x"), bool)


def test_links_of_hostile_pages_are_found_in_linear_time():
    for text in ("<a " * 300_000, "<a href=" * 300_000, "<!--" * 300_000, "<script>" * 200_000, '<a href="' + "x" * 2_000_000, "<" * 2_000_000):
        begun = time.process_time()
        page_links(text, "http://h/")
        assert time.process_time() - begun < 5, text[:10]
    assert page_links("<script>var a = '<a href=\"/no\">'</script><A HREF='/yes&amp;1'>", "http://h/") == (["http://h/yes&1"], True)


def test_cleaning_an_address_twice_changes_nothing():
    rng = random.Random(4)
    for _ in range(3000):
        link = "".join(rng.choices("/.?#&=%:;@aB2ü \\'[]()~+", k=rng.randrange(25)))
        once = clean_url("http://ex.org/a/b?c=d", link)
        assert once == "" or clean_url("http://other.org/", once) == once, link


def test_one_s_own_network_is_not_asked(tmp_path):
    with Site({"/": page()}) as site:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(NoAnswer, match=r"private address|no such host"):
                get(f"http://{host}:{site.port}/", CLIENT._replace(allow_private=False))
        told = fetch([site.url], tmp_path / "out", Settings(CLIENT._replace(allow_private=False)))
        assert "private address" in told["127.0.0.1"]["stopped"] and not site.asked


# ---- a whole site -----------------------------------------------------------------------------------------------------


def test_every_page_that_can_be_reached_is_saved_once(tmp_path):
    seed = random.randrange(10**9)
    pages = web(seed, 40)
    with Site(pages) as site:
        told = crawl(site, tmp_path)
        assert saved(tmp_path) == {path: text.encode() for path, text in pages.items()}, f"seed {seed}"
        assert site.counts() == Counter([*pages, "/missing", "/p40", "/robots.txt"]), f"seed {seed}"  # each once, also across circles
        assert told["pages"] == 41 and told["waiting"] == 0 and told["outcomes"] == {"saved": 41, "status 404": 2}
        assert site.agents == {CLIENT.agent}
    from warcio.archiveiterator import ArchiveIterator

    with open(next(tmp_path.rglob("*.warc.gz")), "rb") as file:  # another reader, with its checks of the digests
        records = [(record.rec_type, record.rec_headers["WARC-Target-URI"], record.content_stream().read(), record.digest_checker.passed)
                   for record in ArchiveIterator(file, check_digests=True)]
    assert records[0][0] == "warcinfo" and len(records) == 42 and all(passed is not False for *_, passed in records)


def test_robots_txt_and_nofollow_and_noindex_are_obeyed(tmp_path):
    robots = "User-agent: *\nDisallow: /private/\nDisallow: /*?print=\n\nUser-agent: mmed\nDisallow: /secret\nDisallow: /*?print=\nCrawl-delay: 0.15\n"
    pages = {"/": page("/secret/a", "/private/b", "/c?print=1", "/d", "/e", "/f"), "/private/b": page(), "/d": page("/g", head='<meta name="robots" content="noindex">'),
             "/e": page("/h", head='<meta name="robots" content="nofollow">'), "/g": page('/i" rel="nofollow'), "/secret/a": page(), "/h": page(), "/i": page(),
             "/f": (200, {"Content-Type": "text/html", "X-Robots-Tag": "none"}, b'<a href="/h">')}
    with Site(pages, robots) as site:
        told = crawl(site, tmp_path)
        assert set(saved(tmp_path)) == {"/", "/private/b", "/e", "/g"}
        assert set(site.counts()) == {"/robots.txt", "/", "/private/b", "/d", "/e", "/f", "/g"}
        assert told["outcomes"] == {"saved": 4, "forbidden by robots.txt": 2, "asks not to be kept": 2}
        times = [when for when, _ in site.asked]
        assert min(b - a for a, b in itertools.pairwise(times)) > 0.14, "Crawl-delay is longer than --delay"


@pytest.mark.parametrize(("robots", "outcome"), [
    (None, "all"), ((403, {}, b""), "all"), ((500, {}, b""), "nothing"), ((503, {}, b""), "nothing"), ((301, {"Location": "/r2"}, b""), "some"),
    ((301, {"Location": "/robots.txt"}, b""), "nothing"), ((302, {"Location": "http://example.com/robots.txt"}, b""), "nothing"),
    ("User-agent: *\nDisallow: /b\n" + "# long\n" * 20_000, "some"), ("<html>not found</html>", "all"),
])
def test_what_is_not_there_allows_all_and_what_cannot_be_read_forbids_all(tmp_path, robots, outcome):
    r2 = (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /b")
    with Site({"/": page("/b"), "/b": page(), "/r2": r2}, robots) as site:
        told = crawl(site, tmp_path)
        assert set(saved(tmp_path)) == {"all": {"/", "/b"}, "some": {"/"}, "nothing": set()}[outcome]
        assert ("robots.txt" in told.get("stopped", "")) == (outcome == "nothing")


def test_redirects_stay_on_the_host_and_end(tmp_path):
    def to(target: str) -> tuple:
        return 301, {"Location": target}, b""

    with Site({"/other": page()}) as elsewhere:
        pages = {"/": page("/loop", "/one", "/chain0", "/off", "/file", "/meta", "/none", "/bad"), "/loop": to("/loop2"), "/loop2": to("/loop"), "/one": to("/target"),
                 "/target": page(), **{f"/chain{n}": to(f"/chain{n + 1}") for n in range(20)}, "/off": to(f"{elsewhere.url}/other"), "/file": to("file:///etc/passwd"),
                 "/meta": to("http://169.254.169.254/latest/"), "/none": (302, {}, b""), "/bad": to("http://[")}
        with Site(pages) as site:
            told = crawl(site, tmp_path)
            assert set(saved(tmp_path)) == {"/", "/target"}
            assert not elsewhere.asked, "another port is another server"
            assert told["outcomes"]["too many redirects"] == 1 and "/chain6" not in site.counts() and max(site.counts().values()) == 1
            assert told["outcomes"]["redirect to 169.254.169.254"] == 1 and told["outcomes"]["redirect to nowhere"] == 3


def test_only_hosts_given_are_asked_and_links_between_them_are_followed(tmp_path):
    with Site({}) as other:
        site = Site({})
        site.pages |= {"/": page(f"http://localhost:{site.port}/l", f"{other.url}/no", "http://example.com/"), "/l": page("/l2"), "/l2": page(f"{site.url}/back"), "/back": page()}
        with site:
            settings = Settings(CLIENT, delay_seconds=0.0)
            told = fetch([site.url, f"http://localhost:{site.port}/l2"], tmp_path, settings)
            assert {path.name for path in tmp_path.rglob("*.warc.gz")} == {"127.0.0.1-00000.warc.gz", "localhost-00000.warc.gz"}
            assert (told["127.0.0.1"]["pages"], told["localhost"]["pages"]) == (2, 2) and not other.asked
            assert site.counts() == {"/robots.txt": 2, "/": 1, "/l": 1, "/l2": 1, "/back": 1}


def test_under_keeps_to_the_part_of_a_site_given(tmp_path):
    with Site({"/fr/": page("/fr/a", "/en/a", "/"), "/fr/a": page("../en/b"), "/en/a": page(), "/": page(), "/en/b": page()}) as site:
        crawl(site, tmp_path, "/fr/", under=(f"{site.url}/fr/",))
        assert set(site.counts()) == {"/robots.txt", "/fr/", "/fr/a"}


def test_requests_to_one_host_are_apart_and_one_at_a_time_and_hosts_go_side_by_side(tmp_path):
    with Site(web(1, 5)) as one, Site(web(2, 5)) as two:
        two_url = f"http://localhost:{two.port}/"
        fetch([one.url, two_url], tmp_path, Settings(CLIENT, delay_seconds=0.2))
        for site in (one, two):
            times = [when for when, _ in site.asked]
            assert min(b - a for a, b in itertools.pairwise(times)) > 0.19
        assert one.asked[0][0] < two.asked[-1][0] and two.asked[0][0] < one.asked[-1][0], "side by side"


def test_bad_answers_fall_alone_within_their_limits(tmp_path):
    bomb = gzip.compress(b"<html>" + bytes(20_000_000))

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    def drip_headers(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.1)

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        for _ in range(1000):
            handler.wfile.write(b"x" * 65536)

    def raw(data: bytes):
        return lambda handler: handler.wfile.write(data) and None

    html = {"Content-Type": "text/html"}
    bad = {"/drip": (drip, "took too long"), "/headers": (drip_headers, "took too long"), "/endless": (endless, "answer too large"),
           "/big": ((200, html, b"x" * 300_000), "answer too large"), "/bomb": ((200, {**html, "Content-Encoding": "gzip"}, bomb), "answer too large"),
           "/cut": ((200, {**html, "Content-Length": "500"}, b"<html>"), "answer cut short"), "/reset": (lambda handler: None, "connection lost"),
           "/nothttp": (raw(b"SSH-2.0-OpenSSH\r\n"), "not HTTP"), "/notgzip": ((200, {**html, "Content-Encoding": "gzip"}, b"<plain"), "saved"),
           "/br": ((200, {**html, "Content-Encoding": "br"}, b"\x8b\x00"), "unknown content encoding"), "/pic": ((200, {"Content-Type": "image/png"}, b"x"), "not HTML"),
           "/lines": (raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"), "not HTTP"), "/chunks": (raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n<html>"), "answer cut short")}
    with Site({"/": page(*bad), **{path: what for path, (what, _) in bad.items()}}) as site:
        begun = time.monotonic()
        settings = Settings(CLIENT._replace(seconds=1.5), delay_seconds=0.0, retry_seconds=0.01)
        old, fetch_site.MAX_TRIES, silent, fetch_site.MAX_SILENT = fetch_site.MAX_TRIES, 1, fetch_site.MAX_SILENT, 50
        try:
            told = fetch([site.url], tmp_path, settings)["127.0.0.1"]
        finally:
            fetch_site.MAX_TRIES, fetch_site.MAX_SILENT = old, silent
        assert time.monotonic() - begun < 60
        assert told["outcomes"].pop("saved") == 2 and set(saved(tmp_path)) == {"/", "/notgzip"}
        expected = Counter(reason for _, reason in bad.values() if reason != "saved")
        assert {outcome.removeprefix("for the next start: "): count for outcome, count in told["outcomes"].items()} == expected
        assert max(site.counts().values()) == 1


def test_tls_errors_are_told(tmp_path):
    with Site({}) as site:
        with pytest.raises(NoAnswer, match="TLS failed"):
            get(f"https://127.0.0.1:{site.port}/", CLIENT)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(NoAnswer, match="no connection"):
            get(f"http://127.0.0.1:{closed.getsockname()[1]}/", CLIENT)


def test_429_and_503_are_waited_out_as_asked(tmp_path):
    left = Counter({"/a": 2, "/b": 1, "/robots.txt": 1})

    def busy(status: int, after: dict):
        def answer(handler):
            if left[handler.path]:
                left[handler.path] -= 1
                return status, after, b"later"
            return page() if handler.path != "/robots.txt" else (200, {"Content-Type": "text/plain"}, b"")
        return answer

    with Site({"/": page("/a", "/b"), "/a": busy(429, {"Retry-After": "1"}), "/b": busy(503, {})}, busy(503, {"Retry-After": "soon"})) as site:
        told = crawl(site, tmp_path)
        assert set(saved(tmp_path)) == {"/", "/a", "/b"} and told["outcomes"] == {"saved": 3}
        times = [when for when, path in site.asked if path == "/a"]
        assert len(times) == 3 and min(b - a for a, b in itertools.pairwise(times)) > 0.99
        between = [path for when, path in site.asked if times[0] < when < times[-1]]
        assert between == ["/a"], "the whole host is left alone meanwhile"


def test_a_host_that_asks_for_a_long_pause_is_left_and_finished_at_a_later_start(tmp_path):
    closed = [True]
    with Site({"/": page("/a"), "/a": lambda handler: (429, {"Retry-After": "7200"}, b"") if closed[0] else page()}) as site:
        told = crawl(site, tmp_path)
        assert told["pages"] == 1 and told["waiting"] == 1 and "asks to wait 7200 s" in told["stopped"]
        closed[0] = False
        assert crawl(site, tmp_path)["pages"] == 2 and set(saved(tmp_path)) == {"/", "/a"}
        assert site.counts()["/"] == 1


def test_an_address_without_an_answer_is_put_behind_and_given_up_in_the_end(tmp_path):
    with Site({"/": page("/dead", "/a"), "/dead": lambda handler: None, "/a": page()}) as site:
        for start in range(1, 5):
            told = crawl(site, tmp_path)
            assert site.counts()["/dead"] == min(start, frontier.MAX_STARTS) * fetch_site.MAX_TRIES
        assert told["outcomes"] == {"saved": 2, f"no answer in {frontier.MAX_STARTS} starts": 1} and told["waiting"] == 0


def test_max_pages_counts_over_all_starts_and_parts_are_closed_when_full(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "PART_BYTES", 1500)
    pages = web(3, 30)
    with Site(pages) as site:
        assert crawl(site, tmp_path, max_pages=5)["pages"] == 5
        assert len(saved(tmp_path)) == 5
        asked = len(site.asked)
        assert crawl(site, tmp_path, max_pages=5)["pages"] == 5 and len(site.asked) == asked, "nothing to do, nothing asked"
        assert crawl(site, tmp_path, max_pages=100)["pages"] == 31
        assert saved(tmp_path) == {path: text.encode() for path, text in pages.items()}
        assert len(list(tmp_path.rglob("*.warc.gz"))) > 5 and not list(tmp_path.rglob("*.open"))
        assert all(site.counts()[path] == 1 for path in pages)


def test_killed_again_and_again_it_ends_with_every_page_once_and_asks_for_none_that_was_saved(tmp_path):
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    pages = web(seed, 60)
    with Site(pages) as site:
        command = [sys.executable, "-m", "data_prep.fetch_site", site.url, "--out", str(tmp_path), "--contact", "me@example.org", "--delay", "0", "--allow-private"]
        kills = 0
        for _number in range(40):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            asked = len(site.asked)
            deadline = time.monotonic() + 20
            stop_at = asked + rng.randrange(2, 25)
            while process.poll() is None and len(site.asked) < stop_at and time.monotonic() < deadline and kills < 4:
                time.sleep(0.002)
            if process.poll() is None and kills < 4:
                process.send_signal(signal.SIGKILL)
                kills += 1
                process.wait()
            else:
                assert process.wait(60) == 0, process.stderr.read()
                break
        assert kills >= 3, f"seed {seed}"
        assert saved(tmp_path) == {path: text.encode() for path, text in pages.items()}, f"seed {seed}"
        more = {path: count - 1 for path, count in site.counts().items() if path in pages and count > 1}
        assert sum(more.values()) <= kills, f"seed {seed}: only what was under way at a kill may be asked for again: {more}"


def test_a_half_written_record_and_journal_line_are_cut_off(tmp_path):
    pages = web(9, 12)
    with Site(pages) as site:
        crawl(site, tmp_path, max_pages=6)
        folder = tmp_path / "127.0.0.1"
        part = folder / "127.0.0.1-00000.warc.gz"
        os.rename(part, f"{part}.open")  # as a kill before the end would have left it
        with open(f"{part}.open", "ab") as file:
            file.write(b"\x1f\x8b half of a record")
        with open(folder / "frontier.jsonl", "ab") as file:
            file.write(b'{"url": "http://127.0.0.1')
        crawl(site, tmp_path)
        assert saved(tmp_path) == {path: text.encode() for path, text in pages.items()}
        assert len(list(folder.glob("*.warc.gz"))) == 1 and all(site.counts()[path] == 1 for path in pages)
        lines = (folder / "frontier.jsonl").read_bytes().splitlines()
        assert all(json.loads(line) for line in lines), "the half line is gone, not continued"
        lines[2] = b"garbage"
        (folder / "frontier.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(UserError, match=r"frontier\.jsonl: damaged at byte"):
            crawl(site, tmp_path)


def test_a_signal_ends_it_soon_and_resumable(tmp_path):
    def slow(handler):
        time.sleep(30)

    with Site({"/": page("/slow", "/a"), "/slow": slow, "/a": page()}) as site:
        command = [sys.executable, "-m", "data_prep.fetch_site", site.url, "--out", str(tmp_path), "--contact", "me@example.org", "--delay", "0", "--allow-private"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while "/slow" not in site.counts() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75 and process.stderr.read().splitlines()[-1] == "stopped"
        site.pages["/slow"] = page()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert set(saved(tmp_path)) == {"/", "/slow", "/a"} and site.counts()["/"] == 1


def test_a_second_run_on_the_folder_refuses(tmp_path):
    with Site({"/": page()}) as site, one_run(tmp_path):
        with pytest.raises(UserError, match="another run is writing here"):
            crawl(site, tmp_path)


def test_wrong_use_is_told_and_help_says_that_it_uses_the_network(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    for arguments, said in ((["x.org", *out, "--contact", "me"], "mail address"), (["ftp://x.org", *out, "--contact", "a@b"], "neither a host"),
                            (["x.org", *out, "--contact", "a@b", "--delay", "-1"], "--delay"), (["x.org", *out, "--contact", "a@b", "--max-pages", "0"], "--max-pages")):
        with pytest.raises(UsageError, match=said):
            main(arguments)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "uses the network" in " ".join(capsys.readouterr().out.split())


def test_what_was_fetched_becomes_documents(tmp_path):
    pytest.importorskip("trafilatura", exc_type=ImportError)

    texts = [f"Patient {number} was admitted with fever and cough, was given antibiotics and left the hospital after a week." for number in range(6)]
    with Site({"/": page(*(f"/{number}" for number in range(6)), text="Welcome to our pages about the health of the lungs and of the heart."),
               **{f"/{number}": page(text=text) for number, text in enumerate(texts)}}) as site:
        crawl(site, tmp_path / "crawl")
        funnel = extract_pages([tmp_path / "crawl"], tmp_path / "out", extract_options("en"))
        found = [json.loads(line) for path in (tmp_path / "out" / "kept").iterdir() for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert funnel.documents_out == 7 and set(texts) <= {document["text"].split("\n")[0] for document in found}
        assert {document["meta"]["url"] for document in found} == {f"{site.url}/", *(f"{site.url}/{number}" for number in range(6))}
        assert all(document["meta"]["fetched"].startswith("20") for document in found)
