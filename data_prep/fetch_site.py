"""Crawls a few health sites politely and saves their pages as WARC files. This command uses the network.

In: host names or start addresses. Out: OUT/pages-NNNNN.warc.gz, which data_prep/web_pages.py reads.

    python -m data_prep.fetch_site www.example.org https://health.example.com/fr/ --out crawl \
        --contact me@example.org

Scrapy (extra crawl) obeys robots.txt, sends one request at a time to a host, waits `--delay` seconds, the
host's Crawl-delay or its Retry-After in between, and repeats failed requests. Only the given hosts and their
subdomains are asked. To continue a stopped or killed crawl, run the same command again.
"""
from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.pipeline.shards import one_run
from data_prep.web_pages import MAX_PAGE_BYTES
from mmed.utils.errors import EXIT_FAILED, EXIT_STOPPED, Parser, UsageError, main_guard, require_extra


def crawl_settings(given: Any) -> dict[str, Any]:
    """Settings that differ from Scrapy's defaults."""
    return {
        "USER_AGENT": f"mmed/{version('mmed')} (medical text corpus; contact: {given.contact})",
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": "mmed",
        "DEFAULT_REQUEST_HEADERS": {"Accept": "text/html,application/xhtml+xml;q=0.9", "From": given.contact},
        "DOWNLOADER_MIDDLEWARES": {"data_prep.sources.site_spider.Politeness": 560},
        "CONCURRENT_REQUESTS_PER_DOMAIN": 1,
        "DOWNLOAD_DELAY": max(given.delay, 0.001),  # with 0, Scrapy would not look at the time at all
        "DOWNLOAD_DELAY_JITTER": 0,
        "COOKIES_ENABLED": False,
        "DOWNLOAD_TIMEOUT": 30,
        "DOWNLOAD_MAXSIZE": MAX_PAGE_BYTES,
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "DEPTH_PRIORITY": 1,  # with the queue below: breadth first
        "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
        "TELNETCONSOLE_ENABLED": False,
        "REMOTE_CONTROL_ENABLED": False,
        "LOG_LEVEL": "INFO",  # a line of progress a minute
    }


def fetch(given: Any, seeds: list[str]) -> int:
    """Crawl until no page is left to request; return the exit code."""
    require_extra("warcio", "web")
    process = require_extra("scrapy.crawler", "crawl").CrawlerProcess(crawl_settings(given))
    site_spider = importlib.import_module("data_prep.sources.site_spider")
    crawler = process.create_crawler(site_spider.SiteSpider)
    failures: list[Any] = []
    with one_run(Path(given.out)):
        process.crawl(crawler, seeds=seeds, under=tuple(seeds) * given.under, max_pages=given.max_pages,
                      folder=Path(given.out)).addErrback(failures.append)
        process.start()
    if failures:  # a file could not be read or written
        raise failures[0].value
    pages = crawler.spider.counts
    for host, count in sorted(pages.items()):
        print(f"{host}: {count:,} pages saved")
    if crawler.stats.get_value("finish_reason") == "shutdown":
        print("stopped; run the same command again to go on")
        return EXIT_STOPPED
    return 0 if pages else EXIT_FAILED


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.fetch_site",
                    description="Crawl a few sites politely into WARC files. This command uses the network.")
    add = parser.add_argument
    add("sites", nargs="+", metavar="HOST_OR_URL", help="hosts or start pages; no other host is crawled")
    add("--out", required=True, help="folder for the WARC files")
    add("--contact", required=True, help="your e-mail address, so that site owners can reach you")
    add("--delay", type=float, default=1.0, help="seconds between requests to a host (default: %(default)s)")
    add("--max_pages", type=int, default=10_000,
        help="pages to save per host, counting earlier starts (default: %(default)s)")
    add("--under", action="store_true", help="save only pages whose URL begins with a given one")
    given = parser.parse_args(arguments)
    seeds = [site if "://" in site else f"https://{site}/" for site in given.sites]
    if "@" not in given.contact or not given.contact.isprintable():
        raise UsageError(f"--contact {given.contact}: must be your e-mail address, for the site owners")
    if wrong := [seed for seed in seeds if not seed.startswith(("http://", "https://"))]:
        raise UsageError(f"{wrong[0]}: must be a host name or an http address")
    return fetch(given, seeds)


if __name__ == "__main__":
    main_guard(main)
