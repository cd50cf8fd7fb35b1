"""Fetch the pages of a few sites, politely. This command uses the network; no other step of the corpus does.

In:  hosts or addresses to begin at, and a mail address under which the sites' owners can complain.
Out: OUT/HOST/HOST-NNNNN.warc.gz (read by data_prep/web_pages.py), OUT/HOST/frontier.jsonl (what is known and done), OUT/fetch.json.

    python -m data_prep.fetch_site www.example.org https://health.example.com/fr/ --out crawl --contact me@example.org

Polite: robots.txt is obeyed (data_prep/sources/robots.py; one that cannot be read forbids everything), with its Crawl-delay; one request at a
time to a host and `--delay` seconds between them; 429 and 503 are waited out as Retry-After says; `nofollow` and `noindex` are
obeyed, in pages, links and headers; the user agent names the project and the contact. Only pages of the hosts given are asked
for (with `--under` only those whose address begins like one given); a redirect to another host is not followed, nor an address inside
one's own network unless `--allow-private`. Every answer is bounded in time and bytes (data_prep/sources/http_get.py).

Order: each host's addresses in the order found (breadth first), hosts side by side, `--hosts` at a time. All that is decided and
written is decided in one thread; the others only wait for answers.

Resuming after a kill: data_prep/sources/frontier.py. What gave no answer is tried again at the next start, behind the others, MAX_STARTS times; a
host that asked to be left alone for longer than `--longest-wait` as often as one likes.

Memory: the addresses known, about 300 bytes each, at most MAX_KNOWN a host; one page a host.
"""
from __future__ import annotations

import email.utils
import html
import re
import signal
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.pipeline.shards import one_run
from data_prep.sources.frontier import Host
from data_prep.sources.http_get import Answer, Client, NoAnswer, clean_url, get, stop_all
from data_prep.sources.robots import MAX_BYTES, NOTHING, Rules, allowed, parse_robots
from mmed.utils.errors import Parser, UsageError, main_guard, require_extra
from mmed.utils.files import write_json

NAME = "mmed"  # what robots.txt files can call us
MAX_REDIRECTS = 5
MAX_TRIES = 4  # of one address in one run
MAX_SILENT = 5  # addresses in a row without an answer: the host is left alone
ROBOTS_SECONDS = 24 * 3600  # then robots.txt is read again
REDIRECTS = (301, 302, 303, 307, 308)
PAGE_TYPES = ("text/html", "application/xhtml+xml")
# By its name no page; asking would only cost the server.
_NO_PAGE = re.compile(r"\.(?:jpe?g|png|gif|webp|svg|ico|bmp|tiff?|css|js|json|xml|rss|atom|pdf|docx?|xlsx?|pptx?|odt|epub|zip|gz|tgz|rar|7z|tar|"
                      r"mp[34]|m4[av]|avi|mov|webm|og[gv]|wav|woff2?|ttf|eot|exe|dmg|apk|iso|csv|txt)$", re.IGNORECASE)


class Settings(NamedTuple):
    client: Client
    delay_seconds: float = 1.0
    max_pages: int = 10_000
    under: tuple[str, ...] = ()  # address beginnings; empty: the whole host
    retry_seconds: float = 5.0  # before the first repetition, doubled each time
    longest_wait: float = 600.0


# ---- what a page links to ---------------------------------------------------------------------------------------------

_SILENT = re.compile(r"<!--.*?(?:-->|$)|<(script|style|template)\b.*?(?:</\1\b|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<(a|area|base|meta)\b([^<>]{1,5000})>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""\b(href|rel|name|content)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""", re.IGNORECASE)


def page_links(text: str, url: str, robots_header: str = "") -> tuple[list[str], bool]:
    """(addresses that a page links to, in its order, none twice; whether the page may be kept).

    >>> page_links('<base href="/d/"><a href=x>1</a><!-- <a href=y> --><a rel="nofollow" href="z">2</a><a href="x#2">3</a>', "http://h/p")
    (['http://h/d/x'], True)
    >>> page_links('<meta content="noindex, nofollow" name=robots><a href=x>', "http://h/")
    ([], False)
    """
    found: dict[str, None] = {}
    base, orders = url, set(re.findall(r"[a-z]+", robots_header.lower()))
    for tag, inside in _TAG.findall(_SILENT.sub(" ", text)):
        values = {key.lower(): html.unescape(value.strip("\"'")) for key, value in reversed(_ATTRIBUTE.findall(inside))}
        tag = tag.lower()
        if tag == "meta":
            if values.get("name", "").lower() in ("robots", NAME):
                orders |= set(re.findall(r"[a-z]+", values.get("content", "").lower()))
        elif tag == "base":
            base = clean_url(url, values.get("href", "")) or base
        elif "href" in values and "nofollow" not in values.get("rel", "").lower().split():
            if (link := clean_url(base, values["href"])) and not _NO_PAGE.search(urlsplit(link).path):
                found.setdefault(link)
    follow = not orders & {"nofollow", "none"}
    return list(found) if follow else [], not orders & {"noindex", "none", "noarchive", "noai"}


def _text(answer: Answer) -> str:
    """Good enough to find links: what is not UTF-8 is read letter by letter."""
    try:
        return answer.body.decode("utf-8")
    except UnicodeDecodeError:
        return answer.body.decode("latin-1")


# ---- the order of work ------------------------------------------------------------------------------------------------


def origin(url: str) -> tuple[str, tuple[str, int]]:
    """
    >>> origin("https://h.org:8443/x"), origin("http://h.org/")
    (('h.org', ('https', 8443)), ('h.org', ('http', 80)))
    """
    parts = urlsplit(url)
    return parts.hostname or "", (parts.scheme, parts.port or (443 if parts.scheme == "https" else 80))


class Fetcher:
    """All hosts side by side. Threads wait for answers (`get`); everything else happens in `run`'s thread."""

    def __init__(self, hosts: dict[str, Host], settings: Settings):
        self.hosts, self.settings = hosts, settings

    def run(self, parallel: int) -> None:
        running: dict[Future, tuple[Host, str, str]] = {}
        with ThreadPoolExecutor(parallel) as pool, tqdm(desc="fetch_site", unit="page", disable=None) as bar:
            try:
                while True:
                    now = time.monotonic()
                    open_hosts = [host for host in self.hosts.values() if not host.busy and self._has_work(host)]
                    for host in sorted(open_hosts, key=lambda host: host.ready):
                        if host.ready <= now and len(running) < parallel and (task := self._next(host)):
                            kind, url = task
                            host.busy = True
                            running[pool.submit(self._ask, kind, url)] = (host, kind, url)
                    pauses = [host.ready - now for host in self.hosts.values() if not host.busy and self._has_work(host)]
                    if not running and not pauses:
                        return
                    if running:
                        pause = max(0.01, min(pauses)) if pauses and len(running) < parallel else None
                        finished = wait(running, timeout=pause, return_when=FIRST_COMPLETED).done
                    else:
                        time.sleep(max(0.0, min(pauses)))
                        finished = set()
                    for future in finished:
                        host, kind, url = running.pop(future)
                        host.busy = False
                        saved = host.saved
                        self._take(host, kind, url, future)
                        bar.update(host.saved - saved)
                    left = sum(len(host.waiting) for host in self.hosts.values())
                    bar.set_postfix_str(f"{left} addresses waiting, {sum(map(self._has_work, self.hosts.values()))} hosts at work")
            except BaseException:
                stop_all()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _has_work(self, host: Host) -> bool:
        return bool(host.waiting) and not host.stopped and host.saved < self.settings.max_pages

    def _next(self, host: Host) -> tuple[str, str] | None:
        """("robots" or "page", address) to ask for now; what robots.txt forbids is settled without a request."""
        while self._has_work(host):
            url = next(iter(host.waiting))
            parts = urlsplit(url)
            root = f"{parts.scheme}://{parts.netloc}"
            read, rules = host.robots.get(root, (-ROBOTS_SECONDS, NOTHING))
            if time.monotonic() - read >= ROBOTS_SECONDS:
                return "robots", f"{root}/robots.txt"
            if allowed(rules, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")):
                return "page", url
            host.done(url, "forbidden by robots.txt")
        return None

    def _ask(self, kind: str, url: str) -> Answer:
        client = self.settings.client
        if kind == "page":
            return get(url, client, lambda status, kind: status == 200 and kind.startswith(PAGE_TYPES))
        return self._ask_robots(url, client)

    def _ask_robots(self, url: str, client: Client) -> Answer:
        """robots.txt; it may lie behind redirects, which here are followed while they stay on the hosts given."""
        for _ in range(MAX_REDIRECTS + 1):
            answer = get(url, client, lambda status, kind: status == 200)
            target = redirect_target(url, answer)
            if not target:
                return answer
            if origin(target)[0] not in self.hosts:
                raise NoAnswer(f"robots.txt is on {origin(target)[0]}; give that host", again=False)
            url = target
        raise NoAnswer("robots.txt: too many redirects", again=False)

    def _take(self, host: Host, kind: str, url: str, future: Future) -> None:
        rules = self._rules(host, url)
        host.ready = time.monotonic() + max(self.settings.delay_seconds, rules.delay_seconds)
        try:
            answer = future.result()
        except NoAnswer as error:
            if error.again:
                self._again(host, kind, url, error.reason, 0.0)
            elif kind == "robots":
                host.stopped = error.reason if "robots.txt" in error.reason else f"robots.txt: {error.reason}"
            else:
                self._settled(host)
                host.done(url, error.reason)
            return
        if answer.status in (429, 500, 502, 503, 504):
            self._again(host, kind, url, f"status {answer.status}", retry_after(answer.header("Retry-After"), time.time()))
            return
        self._settled(host)
        if kind == "robots":
            parts = urlsplit(url)
            found = parse_robots(answer.body[:MAX_BYTES].decode("utf-8", "replace"), NAME) if answer.status == 200 else Rules()
            host.robots[f"{parts.scheme}://{parts.netloc}"] = (time.monotonic(), found)
            host.ready = time.monotonic() + max(self.settings.delay_seconds, found.delay_seconds)
        else:
            self._page(host, url, answer)

    def _rules(self, host: Host, url: str) -> Rules:
        parts = urlsplit(url)
        return host.robots.get(f"{parts.scheme}://{parts.netloc}", (0.0, Rules()))[1]

    def _settled(self, host: Host) -> None:
        host.tries = host.silent = 0

    def _again(self, host: Host, kind: str, url: str, reason: str, asked: float) -> None:
        """Wait and ask again; after MAX_TRIES leave the address, or the host, for the next start."""
        settings = self.settings
        host.tries += 1
        pause = max(asked, settings.retry_seconds * 2 ** (host.tries - 1), settings.delay_seconds)
        if pause > settings.longest_wait:
            host.stopped = f"{reason}, asks to wait {pause:.0f} s; start again then"
        elif host.tries < MAX_TRIES:
            host.ready = time.monotonic() + pause
        elif kind == "robots":
            host.stopped = f"robots.txt cannot be read ({reason}), so nothing may be fetched; start again later"
        elif reason in ("status 429", "status 503"):
            host.stopped = f"{reason}, {MAX_TRIES} times; start again later"
        else:
            host.postpone(url, reason)
            host.tries, host.silent = 0, host.silent + 1
            if host.silent >= MAX_SILENT:
                host.stopped = f"{reason}, {MAX_SILENT} addresses in a row; start again later"

    def _page(self, host: Host, url: str, answer: Answer) -> None:
        redirects = host.waiting.get(url, 0)
        if answer.status in REDIRECTS:
            target = redirect_target(url, answer)
            if not self._ours(host, target):
                host.done(url, f"redirect to {origin(target)[0] or 'nowhere'}"[:100])
            elif redirects >= MAX_REDIRECTS:
                host.done(url, "too many redirects")
            else:
                host.done(url, "redirect", host.add([target], redirects + 1))
        elif answer.status != 200:
            host.done(url, f"status {answer.status}")
        elif not answer.header("Content-Type").lower().startswith(PAGE_TYPES):
            host.done(url, "not HTML")
        else:
            links, keep = page_links(_text(answer), url, answer.header("X-Robots-Tag"))
            links = [link for link in links if self._ours(self.hosts.get(origin(link)[0]), link)]
            for other in {origin(link)[0] for link in links} - {host.name}:  # before `done`: a kill between repeats, but loses nothing
                self.hosts[other].begin([link for link in links if origin(link)[0] == other])
            if keep:
                host.save(url, answer, self.settings.client)
            fresh = host.add([link for link in links if origin(link)[0] == host.name])
            host.done(url, "saved" if keep else "asks not to be kept", fresh)

    def _ours(self, host: Host | None, url: str) -> bool:
        """Whether an address is one of a host given (and under an address given)."""
        if host is None or not url or origin(url)[0] != host.name or origin(url)[1] not in host.ports:
            return False
        return not self.settings.under or url.startswith(self.settings.under)


def redirect_target(url: str, answer: Answer) -> str:
    """Where an answer redirects to; empty if it does not, or to nothing that could be asked for."""
    where = answer.header("Location")
    return clean_url(url, where) if where and answer.status in REDIRECTS else ""


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After header asks for.

    >>> retry_after("120", 0), retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40), retry_after("soon", 0), retry_after("", 0)
    (120.0, 60.0, 0.0, 0.0)
    """
    if re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def fetch(seeds: list[str], out: str | Path, settings: Settings, parallel: int = 8) -> dict[str, Any]:
    """Fetch until there is nothing left to ask for, or `max_pages` of each host are saved; returns what OUT/fetch.json says."""
    require_extra("warcio", "web")
    out = Path(out)
    starts: dict[str, list[str]] = {}
    for seed in seeds:
        url = clean_url("", seed if "://" in seed else f"https://{seed}")
        if not url:
            raise UsageError(f"{seed}: neither a host nor an http address")
        starts.setdefault(origin(url)[0], []).append(url)
    with one_run(out):
        hosts = {name: Host(name, out / re.sub(r"[^\w.-]", "_", name)) for name in starts}
        try:
            for name, urls in starts.items():
                ports = {origin(url)[1] for url in urls}
                usual = {("http", 80), ("https", 443)}
                hosts[name].ports = ports | usual if ports & usual else ports
                hosts[name].begin(urls)
            Fetcher(hosts, settings).run(parallel)
            for host in hosts.values():
                host.finish_part()
        finally:
            for host in hosts.values():
                host.close()
        told = {name: {"pages": host.saved, "waiting": len(host.waiting), "outcomes": dict(sorted(host.outcomes.items())),
                       **({"stopped": host.stopped} if host.stopped else {})} for name, host in hosts.items()}
        write_json(out / "fetch.json", told)
    return told


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m data_prep.fetch_site",
        description="Fetch the pages of a few sites into WARC files, politely. This command uses the network.")
    parser.add_argument("sites", nargs="+", metavar="HOST_OR_URL", help="where to begin; only these hosts are asked")
    parser.add_argument("--out", required=True, help="folder for HOST/HOST-NNNNN.warc.gz, HOST/frontier.jsonl and fetch.json")
    parser.add_argument("--contact", required=True, help="mail address for the sites' owners; stands in the user agent")
    usual, client = Settings(Client("")), Client("")
    parser.add_argument("--delay", type=float, default=usual.delay_seconds, help="seconds between requests to a host (default: %(default)g); "
                        "a longer Crawl-delay is obeyed")
    parser.add_argument("--max-pages", type=int, default=usual.max_pages, help="pages saved of a host, earlier starts included (default: %(default)s)")
    parser.add_argument("--under", action="store_true", help="only pages whose address begins with one of those given")
    parser.add_argument("--hosts", type=int, default=8, help="hosts asked at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=client.seconds, help="an answer may take (default: %(default)g)")
    parser.add_argument("--max-mib", type=float, default=client.max_bytes / (1 << 20), help="an answer may hold (default: %(default)g)")
    parser.add_argument("--retry-wait", type=float, default=usual.retry_seconds, help="seconds before a repetition, doubled each time (default: %(default)g)")
    parser.add_argument("--longest-wait", type=float, default=usual.longest_wait, help="a host that asks for a longer pause is left (default: %(default)g)")
    parser.add_argument("--allow-private", action="store_true", help="also addresses inside one's own network, for tests and intranets")
    given = parser.parse_args(argv)
    if not re.fullmatch(r"[\x21-\x7e]+@[\x21-\x7e]+", given.contact):
        raise UsageError(f"--contact {given.contact}: must be a mail address, so that a site's owner can write to you")
    for option in ("max_pages", "hosts", "seconds", "max_mib", "retry_wait", "longest_wait"):
        if not getattr(given, option) > 0:
            raise UsageError(f"--{option.replace('_', '-')} {getattr(given, option)}: must be above 0")
    if not given.delay >= 0:
        raise UsageError(f"--delay {given.delay}: must not be below 0")

    try:
        release = version("mmed")
    except PackageNotFoundError:  # run from the folder, not installed
        release = "0"
    under = tuple(clean_url("", site if "://" in site else f"https://{site}") for site in given.sites) if given.under else ()
    settings = Settings(Client(f"{NAME}/{release} (medical text corpus; contact: {given.contact})", given.contact, given.seconds,
                               int(given.max_mib * (1 << 20)), given.allow_private),
                        given.delay, given.max_pages, under, given.retry_wait, given.longest_wait)

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        told = fetch(given.sites, given.out, settings, given.hosts)
    finally:
        signal.signal(signal.SIGTERM, before)
    for name, host in told.items():
        print(f"{name}: {host['pages']:,} pages saved, {host['waiting']:,} addresses waiting" + (f"; stopped: {host['stopped']}" if "stopped" in host else ""))
        for outcome, count in sorted(host["outcomes"].items(), key=lambda item: -item[1]):
            print(f"  {count:>8,}  {outcome}")
    return 1 if all(not host["pages"] for host in told.values()) else 0


if __name__ == "__main__":
    main_guard(main)
