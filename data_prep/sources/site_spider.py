"""The Scrapy spider behind data_prep/fetch_site.py: which links it follows, how it saves pages and resumes.

Scrapy does the rest: robots.txt, retries, redirects, limits on time and size.

The saved pages are the only record of progress: a new start follows the links of the pages in the WARC files.
(Scrapy's own JOBDIR resumes only after an orderly stop: after `kill -9` it has lost the queue.)
"""
from __future__ import annotations

import io
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy import signals
from scrapy.exceptions import IgnoreRequest
from scrapy.http import HtmlResponse, Request, Response, TextResponse
from scrapy.linkextractors import LinkExtractor
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_prep.documents import Funnel
from data_prep.sources.saved_pages import read_warc

PART_BYTES = 256 << 20  # then the next WARC file begins
LONGEST_DELAY = 600.0  # seconds between two requests, whatever a host asks for
RETRY_AFTER = 10.0  # seconds, if a busy host does not say
BODY_HEADERS = ("content-encoding", "transfer-encoding", "content-length")  # true before unpacking


class SiteSpider(scrapy.Spider):
    """Follows links within the given hosts, breadth first; saves HTML pages that do not object to it."""

    name = "site"
    links = LinkExtractor()

    def __init__(self, seeds: list[str], under: tuple[str, ...], max_pages: int, warcs: WarcFolder):
        super().__init__(allowed_domains=sorted(set(map(host_of, seeds))))
        self.seeds, self.under, self.max_pages, self.warcs = seeds, under, max_pages, warcs
        self.saved = Counter(map(host_of, warcs.saved))

    async def start(self) -> AsyncIterator[Request]:
        for response in self.warcs.responses():
            for request in self.follow(response):
                yield request
        for seed in self.seeds:
            if seed not in self.warcs.saved:
                yield Request(seed)

    def parse(self, response: Response) -> Iterator[Request]:
        if isinstance(response, HtmlResponse):
            if {"noindex", "none"}.isdisjoint(robots_orders(response)) and self.is_wanted(response.url):
                self.warcs.save(response)
                self.saved[host_of(response.url)] += 1
            yield from self.follow(response)

    def follow(self, response: HtmlResponse) -> Iterator[Request]:
        if {"nofollow", "none"}.isdisjoint(robots_orders(response)):
            for link in self.links.extract_links(response):
                if not link.nofollow and self.is_wanted(link.url):
                    yield response.follow(link)

    def is_wanted(self, url: str) -> bool:
        return url.startswith(self.under or "") and url.partition("#")[0] not in self.warcs.saved


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def robots_orders(response: HtmlResponse) -> list[str]:
    orders = response.css('meta[name="robots" i]::attr(content)').getall()
    orders.append(response.headers.get("X-Robots-Tag", b"").decode("latin-1"))
    return re.findall("[a-z]+", " ".join(orders).lower())


class Politeness:
    """Downloader middleware: Crawl-delay, Retry-After, limit on pages.

    An unreadable robots.txt forbids everything (RFC 9309, 2.3.1.4); Scrapy alone would allow everything.
    """

    def __init__(self, crawler: Any):
        self.crawler = crawler
        self.delays: dict[str, float] = {}  # host -> Crawl-delay
        self.not_before: dict[str, float] = {}  # host -> end of its Retry-After, time.monotonic()
        crawler.signals.connect(self.robots_parsed, signals.robots_parsed)

    @classmethod
    def from_crawler(cls, crawler: Any) -> Politeness:
        return cls(crawler)

    def robots_parsed(self, robotparser: Any, request: Request) -> None:
        seconds = robotparser.crawl_delay(self.crawler.settings["ROBOTSTXT_USER_AGENT"])
        self.delays[host_of(request.url)] = seconds or 0.0
        self.set_delay(request)

    def set_delay(self, request: Request) -> None:
        """Delay from the last request: --delay, the host's Crawl-delay or the rest of its Retry-After.

        The answer to a request that was sent just before a Retry-After arrived does not end it.
        """
        host, delay = host_of(request.url), self.crawler.settings.getfloat("DOWNLOAD_DELAY")
        if slot := self.crawler.engine.downloader.slots.get(host):
            rest = self.not_before.get(host, 0.0) - slot.lastseen
            slot.delay = min(max(delay, self.delays.get(host, 0.0), rest), LONGEST_DELAY)

    def process_request(self, request: Request) -> None:
        spider, host = self.crawler.spider, host_of(request.url)
        if spider.saved[host] >= spider.max_pages:
            raise IgnoreRequest(f"{spider.max_pages} pages of {host} are saved")

    def process_response(self, request: Request, response: Response) -> Response:
        if response.status in (429, 503):
            asked = response.headers.get("Retry-After", b"").strip()
            self.not_before[host_of(request.url)] = time.monotonic() + (
                float(asked) if asked.isdigit() else RETRY_AFTER)
        self.set_delay(request)
        return response if response.status < 500 else self.forbid_all(request) or response

    def process_exception(self, request: Request, exception: Exception) -> Response | None:
        return None if isinstance(exception, IgnoreRequest) else self.forbid_all(request)

    def forbid_all(self, request: Request) -> Response | None:
        """In place of a robots.txt that cannot be read, one that forbids everything."""
        if urlsplit(request.url).path != "/robots.txt":
            return None
        self.crawler.spider.logger.warning("%s cannot be read: this host is left out", request.url)
        return TextResponse(request.url, body=b"User-agent: *\nDisallow: /")


class WarcFolder:
    """The pages saved so far and the WARC file being written, which ends in `.open` until it is complete."""

    def __init__(self, folder: Path):
        self.folder = folder
        for path in folder.glob("*.warc.gz.open"):  # a killed run left it
            os.replace(path, path.with_suffix(""))
        self.saved = {response.url for response in self.responses()}
        self._file: Any = None

    def complete(self) -> list[Path]:
        return sorted(self.folder.glob("*.warc.gz"))

    def responses(self) -> Iterator[HtmlResponse]:
        """The saved pages; a killed run leaves a part of the last one, which is left out."""
        for path in self.complete():
            for page in read_warc(path, Funnel()):
                if not page.problem:
                    yield HtmlResponse(page.url, headers=page.headers, body=page.body)

    def save(self, response: Response) -> None:
        if self._file is None:
            self._path = self.folder / f"pages-{len(self.complete()):05}.warc.gz.open"
            self._file = open(self._path, "wb")
            self._writer = WARCWriter(self._file, gzip=True)
        headers = [(name, value) for name, value in response.headers.to_unicode_dict().items()
                   if name.lower() not in BODY_HEADERS]
        headers.append(("Content-Length", str(len(response.body))))
        status = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
        self._writer.write_record(self._writer.create_warc_record(
            response.url, "response", payload=io.BytesIO(response.body), http_headers=status))
        self._file.flush()
        self.saved.add(response.url)
        if self._file.tell() > PART_BYTES:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, self._path.with_suffix(""))
            self._file = None
