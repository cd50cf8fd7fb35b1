"""The Scrapy spider behind data_prep/fetch_site.py: which links it follows, how it saves pages and resumes.

The saved pages are the only record of progress: a new start follows the links of the pages in the WARC files.
(Scrapy's own JOBDIR resumes only after an orderly stop: after `kill -9` it has lost the queue.)
"""
from __future__ import annotations

import io
import itertools
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
from data_prep.web_pages import read_pages

PART_BYTES = 256 << 20  # then the next WARC file begins
LONGEST_DELAY = 600.0  # seconds between two requests, whatever a host asks for
RETRY_AFTER = 10.0  # seconds, if a busy host does not say
BODY_HEADERS = ("content-encoding", "transfer-encoding", "content-length")  # true before unpacking


class SiteSpider(scrapy.Spider):
    """Follows links within the given hosts, breadth first; saves HTML pages unless they say noindex."""

    name = "site"
    links = LinkExtractor()

    def __init__(self, seeds: list[str], under: tuple[str, ...], max_pages: int, folder: Path):
        super().__init__(allowed_domains=sorted(set(map(host_of, seeds))))
        self.seeds, self.under, self.max_pages, self.folder = seeds, under, max_pages, folder
        for path in folder.glob("*.warc.gz.open"):  # a killed run left it
            path.rename(path.with_suffix(""))
        self.saved = {response.url for response in self.saved_responses()}
        self.counts = Counter(map(host_of, self.saved))
        self.file: Any = None  # which ends in .open until it is complete

    def saved_responses(self) -> Iterator[HtmlResponse]:
        """The pages saved so far; a killed run leaves a part of the last one, which is left out."""
        for path in sorted(self.folder.glob("*.warc.gz")):
            for page in read_pages(path, Funnel()):
                if not page.problem:
                    yield HtmlResponse(page.meta["url"], headers=page.headers, body=page.body)

    async def start(self) -> AsyncIterator[Request]:
        for response in self.saved_responses():
            for request in self.follow(response):
                yield request
        for seed in self.seeds:
            if seed not in self.saved:
                yield Request(seed)

    def parse(self, response: Response) -> Iterator[Request]:
        if isinstance(response, HtmlResponse):
            if {"noindex", "none"}.isdisjoint(robots_orders(response)) and self.is_wanted(response.url):
                self.save(response)
            yield from self.follow(response)

    def follow(self, response: HtmlResponse) -> Iterator[Request]:
        if {"nofollow", "none"}.isdisjoint(robots_orders(response)):
            for link in self.links.extract_links(response):
                if not link.nofollow and self.is_wanted(link.url):
                    yield response.follow(link)

    def is_wanted(self, url: str) -> bool:
        return url.startswith(self.under or "") and url.partition("#")[0] not in self.saved

    def save(self, response: HtmlResponse) -> None:
        if self.file is None:
            names = (self.folder / f"pages-{number:05}.warc.gz" for number in itertools.count())
            self.path = next(path for path in names if not path.exists())
            self.file = open(f"{self.path}.open", "wb")
            self.writer = WARCWriter(self.file, gzip=True)
        headers = [(name, value) for name, value in response.headers.to_unicode_dict().items()
                   if name.lower() not in BODY_HEADERS]
        headers.append(("Content-Length", str(len(response.body))))
        status = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
        self.writer.write_record(self.writer.create_warc_record(
            response.url, "response", payload=io.BytesIO(response.body), http_headers=status))
        self.file.flush()
        self.saved.add(response.url)
        self.counts[host_of(response.url)] += 1
        if self.file.tell() > PART_BYTES:
            self.closed()

    def closed(self, reason: str = "") -> None:
        """Complete the WARC file; Scrapy calls this at the end."""
        if self.file is not None:
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.file.name, self.path)
            self.file = None


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def robots_orders(response: HtmlResponse) -> list[str]:
    orders = response.css('meta[name="robots" i]::attr(content)').getall()
    orders.append(response.headers.get("X-Robots-Tag", b"").decode("latin-1"))
    return re.findall("[a-z]+", " ".join(orders).lower())


class Politeness:
    """Downloader middleware: Crawl-delay, Retry-After, limit on pages, unreadable robots.txt."""

    def __init__(self, crawler: Any):
        self.crawler = crawler
        crawler.signals.connect(self.robots_parsed, signals.robots_parsed)

    @classmethod
    def from_crawler(cls, crawler: Any) -> Politeness:
        return cls(crawler)

    def robots_parsed(self, robotparser: Any, request: Request) -> None:
        settings, downloader = self.crawler.settings, self.crawler.engine.downloader
        seconds = robotparser.crawl_delay(settings["ROBOTSTXT_USER_AGENT"]) or 0.0
        delay = min(max(seconds, settings.getfloat("DOWNLOAD_DELAY")), LONGEST_DELAY)
        downloader.slots[host_of(request.url)].delay = delay
        downloader.per_slot_settings[host_of(request.url)] = {"delay": delay}  # Scrapy deletes idle slots

    def process_request(self, request: Request) -> None:
        spider, host = self.crawler.spider, host_of(request.url)
        if spider.counts[host] >= spider.max_pages:
            raise IgnoreRequest(f"{spider.max_pages} pages of {host} are saved")

    def process_response(self, request: Request, response: Response) -> Response:
        if response.status in (429, 503):
            asked = response.headers.get("Retry-After", b"").strip()
            seconds = min(float(asked) if asked.isdigit() else RETRY_AFTER, LONGEST_DELAY)
            slot = self.crawler.engine.downloader.slots[host_of(request.url)]
            slot.lastseen = max(slot.lastseen, time.monotonic() + seconds)  # postpones the next request
        return response if response.status < 500 else self.forbid_all(request) or response

    def process_exception(self, request: Request, exception: Exception) -> Response | None:
        return None if isinstance(exception, IgnoreRequest) else self.forbid_all(request)

    def forbid_all(self, request: Request) -> Response | None:
        """In place of an unreadable robots.txt, one that forbids everything (RFC 9309, 2.3.1.4)."""
        if urlsplit(request.url).path != "/robots.txt":
            return None
        self.crawler.spider.logger.warning("%s cannot be read: this host is left out", request.url)
        return TextResponse(request.url, body=b"User-agent: *\nDisallow: /")
