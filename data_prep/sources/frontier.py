"""What a fetcher knows of one host: addresses done and waiting, and the WARC file that its pages go to.

In and out: FOLDER/frontier.jsonl (a line for each address that is settled), FOLDER/NAME-NNNNN.warc.gz (`.open` while it is written).

A page is appended to the WARC, then one line of frontier.jsonl says so, with the new addresses found on it and where the WARC then
ends. After a kill the last line is cut off if it is half, and the WARC after the last page that has its line, and the work goes on
there: no page that was saved is asked for again; the one that was under way is. A part of the WARC gets its name when it is
full or the work is done. `Host` knows nothing of the network or of time; data_prep/fetch_site.py does.
"""
from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import IO, Any

from data_prep.sources.http_get import Answer, Client
from data_prep.sources.robots import Rules
from mmed.utils.errors import UserError, require_extra

PART_BYTES = 256 << 20
MAX_KNOWN = 1_000_000  # addresses of one host; sites with calendars have no end
MAX_STARTS = 3  # in which an address gives no answer


class Host:
    """One host's addresses, done and waiting, and the WARC being written."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.waiting: dict[str, int] = {}  # address -> redirects that led to it; in the order found
        self.known: set[str] = set()
        self.saved, self.outcomes = 0, Counter()
        self.postponed: Counter[str] = Counter()  # addresses without an answer, in how many starts
        self.ports: set[tuple[str, int]] = set()  # (scheme, port) that may be asked
        self.robots: dict[str, tuple[float, Rules]] = {}  # "https://host:port" -> when read, what it says
        self.ready, self.tries, self.silent = 0.0, 0, 0
        self.stopped = ""  # why nothing more is asked in this run
        self.busy = False
        self._part, self._end = 0, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = self._read_journal()
        self._warc: IO[bytes] | None = None

    def _read_journal(self) -> IO[bytes]:
        path = self.folder / "frontier.jsonl"
        good = 0
        while self._path(self._part).exists():
            self._part += 1
        if path.exists():
            with open(path, "rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the line that a kill cut
                    try:
                        self._replay(json.loads(line))
                    except (ValueError, KeyError, TypeError) as error:
                        raise UserError(f"{path}: damaged at byte {good} ({error}); delete what is behind it or the file") from None
                    good += len(line)
        journal = open(path, "ab")
        journal.truncate(good)
        return journal

    def _replay(self, record: dict[str, Any]) -> None:
        if url := record.get("later"):
            redirects = self.waiting.pop(url)
            self.postponed[url] += 1
            if self.postponed[url] < MAX_STARTS:
                self.waiting[url] = redirects  # behind the others
            else:
                self.outcomes[f"no answer in {MAX_STARTS} starts"] += 1
            return
        if url := record.get("url"):
            self.waiting.pop(url, None)
            self.outcomes[record["outcome"]] += 1
            if record["outcome"] == "saved":
                self.saved += 1
                if record["part"] == self._part:
                    self._end = record["end"]
        for link, redirects in record["links"]:
            self.known.add(link)
            self.waiting[link] = redirects

    def add(self, links: list[str], redirects: int = 0) -> list[tuple[str, int]]:
        """Put what is new among the links behind what is waiting; the caller writes it down."""
        fresh = []
        for link in links:
            if link in self.known:
                continue
            if len(self.known) >= MAX_KNOWN:
                self.outcomes["not followed: too many addresses"] += 1
                continue
            self.known.add(link)
            self.waiting[link] = redirects
            fresh.append((link, redirects))
        return fresh

    def begin(self, links: list[str]) -> None:
        if fresh := self.add(links):
            self._write({"links": fresh})

    def done(self, url: str, outcome: str, links: list[tuple[str, int]] = ()) -> None:
        """One address is settled: a single line, so that a kill leaves it done with its links, or not done."""
        self.waiting.pop(url, None)
        self.outcomes[outcome] += 1
        record: dict[str, Any] = {"url": url, "outcome": outcome, "links": links}
        if outcome == "saved":
            self.saved += 1
            record |= {"part": self._part, "end": self._end}
        self._write(record)
        if self._end >= PART_BYTES:
            self.finish_part()

    def postpone(self, url: str, reason: str) -> None:
        """Leave an address for the next start."""
        self.waiting.pop(url, None)
        self.outcomes[f"for the next start: {reason}"] += 1
        self._write({"later": url, "reason": reason})

    def _write(self, record: dict[str, Any]) -> None:
        self._journal.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _path(self, part: int) -> Path:
        return self.folder / f"{self.folder.name}-{part:05}.warc.gz"

    def save(self, url: str, answer: Answer, client: Client) -> None:
        """Append a page to the WARC; what was unpacked on the way is said as Common Crawl says it."""
        statusandheaders = require_extra("warcio.statusandheaders", "web")
        writer = require_extra("warcio.warcwriter", "web")
        if self._warc is None:
            opened = open(f"{self._path(self._part)}.open", "ab")
            opened.truncate(self._end)
            self._warc = opened
            if self._end == 0:
                warc = writer.WARCWriter(opened, gzip=True)
                about = {"software": "mmed data_prep.fetch_site", "http-header-user-agent": client.agent,
                         "operator": client.contact, "robots": "obey", "format": "WARC File Format 1.0"}
                warc.write_record(warc.create_warcinfo_record(self._path(self._part).name, about))
        headers = [(f"X-Crawler-{key}" if key.lower() in ("content-encoding", "transfer-encoding", "content-length") else key, value)
                   for key, value in answer.headers]
        headers.append(("Content-Length", str(len(answer.body))))
        warc = writer.WARCWriter(self._warc, gzip=True)
        warc.write_record(warc.create_warc_record(
            url, "response", payload=io.BytesIO(answer.body), length=len(answer.body), warc_headers_dict={"WARC-IP-Address": answer.address},
            http_headers=statusandheaders.StatusAndHeaders(f"{answer.status} {answer.reason}", headers, protocol="HTTP/1.1")))
        self._warc.flush()
        os.fsync(self._warc.fileno())
        self._end = self._warc.tell()

    def finish_part(self) -> None:
        """Give the WARC being written its name."""
        if self._warc:
            self._warc.close()
            self._warc = None
        opened = Path(f"{self._path(self._part)}.open")
        if not self._end:
            opened.unlink(missing_ok=True)  # a page that a kill left without its line
        else:
            os.truncate(opened, self._end)
            os.replace(opened, self._path(self._part))
            self._part, self._end = self._part + 1, 0

    def close(self) -> None:
        if self._warc:
            self._warc.close()
        self._journal.close()
