"""Saved web pages out of whatever they were saved in: loose HTML files, WARC, zip and tar. Nothing is written to disk.

In:  .html .htm .xhtml; .warc .warc.gz; .zip; .tar .tar.gz .tgz; a .pages list (loose files taken together, see
     data_prep/web_pages.py).
Out: `Page`s in the order of the file (`read_pages`): undecoded bytes, and where they are from. What should have been a page and
     cannot be used comes as a `Page` with a `reason`; what never was one (pictures, requests, answers other than 200) is
     counted in `passed_over`.

The files are strangers' work, so everything read is bounded: the unpacked size of a page, of an archive against its packed size
(`Limits.ratio`), the number of entries, the length of a header line. Names inside archives only become a page's `file`; one that
is absolute, climbs by `..` or holds control characters is dropped all the same, as are links and devices: no honest tool
writes them. Damage ends a gzip, zip or tar where it stands, with all before it given; a WARC goes on at the next record.

The WARC reader is our own and not warcio's, because that one reads a header line of any length into memory and says nothing of
a file that was cut.
"""
from __future__ import annotations

import gzip
import io
import json
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_prep.record_files import DAMAGED

LOOSE = (".html", ".htm", ".xhtml")
ARCHIVES = (".warc", ".warc.gz", ".zip", ".tar", ".tar.gz", ".tgz")
LIST = ".pages"
LINE_BYTES, HEADER_LINES = 1 << 16, 1000  # of one WARC or HTTP header
DIRECTORY_BYTES = 1 << 25  # of a zip's list of entries, which is read at once
TAR_HEADER_BYTES = 1 << 20  # of a tar's extended headers, which are read at once
CHUNK = 1 << 18

TOO_LARGE = "page too large"
BOMB = "archive unpacks to too many times its size"
TOO_MANY = "archive has too many entries"
LINK = "link or device in archive"
UNSAFE = "unsafe name in archive"
NO_LENGTH = "record without a length"


class Limits(NamedTuple):
    """What one page and one archive may unpack to."""

    page_bytes: int = 10 << 20
    ratio: int = 200
    entries: int = 1_000_000


@dataclass(slots=True)
class Page:
    body: bytes = b""
    file: str = ""  # its path in a folder or archive
    url: str = ""
    charset: str = ""  # as the HTTP header says
    fetched: str = ""  # when, as the WARC says
    reason: str = ""  # why there is nothing to read


def read_pages(path: Path, limits: Limits, passed_over: Counter[str]) -> Iterator[Page]:
    """Yield the pages of one file; `passed_over` counts by kind what is no page."""
    name = path.name.lower()
    if name.endswith(LIST):
        yield from _read_list(path, limits)
    elif name.endswith((".warc", ".warc.gz")):
        yield from _read_warc(path, limits, passed_over)
    elif name.endswith(".zip"):
        yield from _read_zip(path, limits, passed_over)
    else:
        yield from _read_tar(path, limits, passed_over)


class _Unpacked(io.RawIOBase):
    """A gzip or plain file that ends where it is damaged or grows beyond all reason; `trouble` then says why."""

    def __init__(self, path: Path, limits: Limits):
        self._raw = open(path, "rb")
        self._file: Any = self._raw
        if self._raw.peek(2)[:2] == b"\x1f\x8b":  # whatever the name says
            self._file = gzip.GzipFile(fileobj=self._raw)
        self._left = path.stat().st_size * limits.ratio + limits.page_bytes
        self.trouble = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        if not self.trouble:
            try:
                data = self._file.read1(len(buffer))
            except (EOFError, gzip.BadGzipFile, zlib.error):
                self.trouble = DAMAGED
        self._left -= len(data)
        if self._left < 0:
            self.trouble, data = BOMB, b""
        buffer[:len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read_up_to(file: Any, limit: int) -> bytes:
    """The bytes of a page, or one more than the limit."""
    parts, left = [], limit + 1
    while left > 0 and (part := file.read(min(CHUNK, left))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _page(body: bytes, limits: Limits, **more: str) -> Page:
    return Page(reason=TOO_LARGE, **more) if len(body) > limits.page_bytes else Page(body, **more)


# ---- loose files ------------------------------------------------------------------------------------------------------


def _read_list(path: Path, limits: Limits) -> Iterator[Page]:
    """A .pages file: JSON lines with `path` and `file` (the name to give it)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        with open(entry["path"], "rb") as file:
            yield _page(_read_up_to(file, limits.page_bytes), limits, file=entry["file"])


# ---- zip and tar ------------------------------------------------------------------------------------------------------

_PAGE_NAME = re.compile(r"\.x?html?(?:[?@].*)?$", re.IGNORECASE)  # wget writes the query into the name
_UNSAFE_NAME = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f\x7f]")


def is_unsafe(name: str) -> bool:
    r"""Whether unpacking under this name could write outside of the folder unpacked into.

    >>> [is_unsafe(name) for name in ("a/b.html", "a..b/c.html", "../b.html", "a/../../b", "/etc/x", "C:\\x", "a\nb")]
    [False, False, True, True, True, True, True]
    """
    return bool(_UNSAFE_NAME.search(name))


def _kind(name: str) -> str:
    """What to count an entry under that is no page."""
    suffix = re.search(r"\.([A-Za-z0-9]{1,8})$", name)
    return f"archive entries .{suffix[1].lower()}" if suffix else "archive entries without a suffix"


def _read_zip(path: Path, limits: Limits, passed_over: Counter[str]) -> Iterator[Page]:
    try:
        if _zip_directory_bytes(path) > DIRECTORY_BYTES:
            yield Page(reason=TOO_MANY)
            return
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error, OSError):
        yield Page(reason=DAMAGED)
        return
    left = path.stat().st_size * limits.ratio + limits.page_bytes
    with archive:
        for number, info in enumerate(archive.infolist()):
            if number == limits.entries:
                yield Page(reason=TOO_MANY)
                return
            page = _zip_entry(archive, info, limits, passed_over)
            if page:
                left -= min(info.file_size, limits.page_bytes)
                if left < 0:
                    yield Page(reason=BOMB)
                    return
                yield page


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits, passed_over: Counter[str]) -> Page | None:
    name = info.orig_filename  # `filename` is cut at a NUL
    kind = stat.S_IFMT(info.external_attr >> 16)
    if is_unsafe(name):
        return Page(file=name, reason=UNSAFE)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return Page(file=name, reason=LINK)
    if info.is_dir():
        return None
    if not _PAGE_NAME.search(name):
        passed_over[_kind(name)] += 1
        return None
    if info.flag_bits & 1:
        return Page(file=name, reason="encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
        return Page(file=name, reason="compression not supported")
    try:
        with archive.open(info) as file:
            return _page(_read_up_to(file, limits.page_bytes), limits, file=name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        return Page(file=name, reason=DAMAGED)


def _zip_directory_bytes(path: Path) -> int:
    """How long a zip's list of entries says that it is, from the record at the file's end."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 100))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    length = int.from_bytes(tail[end + 12:end + 16], "little") if end >= 0 else 0
    big = tail.rfind(b"PK\x06\x06")  # zip64
    return max(length if length != 0xFFFFFFFF else 0, int.from_bytes(tail[big + 40:big + 48], "little") if big >= 0 else 0)


class _TarHeader(tarfile.TarInfo):
    """Refuses extended headers that would fill the memory, and tells a broken header from the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # the hook that tarfile keeps for subclasses
        if not self.isreg() and self.size > TAR_HEADER_BYTES:
            raise tarfile.ReadError("extended header too long")
        return super()._proc_member(archive)


def _read_tar(path: Path, limits: Limits, passed_over: Counter[str]) -> Iterator[Page]:
    with _Unpacked(path, limits) as unpacked:
        number = 0
        try:
            with tarfile.open(fileobj=io.BufferedReader(unpacked, CHUNK), mode="r|", tarinfo=_TarHeader) as archive:
                for number, info in enumerate(archive):
                    if number == limits.entries:
                        yield Page(reason=TOO_MANY)
                        return
                    archive.members.clear()  # else it remembers them all
                    archive.pax_headers.clear()
                    name = info.name
                    if is_unsafe(name):
                        yield Page(file=name, reason=UNSAFE)
                    elif info.isdir():
                        continue
                    elif not info.isreg():
                        yield Page(file=name, reason=LINK)
                    elif not _PAGE_NAME.search(name):
                        passed_over[_kind(name)] += 1
                    elif info.issparse():
                        yield Page(file=name, reason="sparse file in archive")
                    else:
                        body = _read_up_to(archive.extractfile(info), limits.page_bytes)
                        if len(body) < min(info.size, limits.page_bytes):
                            raise tarfile.ReadError("cut")
                        yield _page(body, limits, file=name)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError):
            yield Page(reason=unpacked.trouble or DAMAGED)


# ---- WARC -------------------------------------------------------------------------------------------------------------


class _BadRecord(ValueError):
    """What is wrong with a record; the message is the reason it is counted under."""


def _read_warc(path: Path, limits: Limits, passed_over: Counter[str]) -> Iterator[Page]:
    with _Unpacked(path, limits) as unpacked:
        file = io.BufferedReader(unpacked, CHUNK)
        version = b""
        while version or (version := _next_version(file)):
            if not version.startswith(b"WARC/"):
                yield Page(reason=DAMAGED)
                while version and not version.startswith(b"WARC/"):
                    version = file.readline(LINE_BYTES)
                continue
            version = b""
            try:
                if page := _read_record(file, limits, passed_over):
                    yield page
            except _BadRecord as error:
                yield Page(reason=str(error))
            if unpacked.trouble:
                break
        if unpacked.trouble:
            yield Page(reason=unpacked.trouble)


def _next_version(file: IO[bytes]) -> bytes:
    """The next line that is not blank: a record's first."""
    while (line := file.readline(LINE_BYTES)) and not line.strip():
        pass
    return line


def _read_headers(file: IO[bytes]) -> dict[str, str]:
    """Header lines up to a blank one; names in lower case, the first of each counts."""
    headers: dict[str, str] = {}
    for _ in range(HEADER_LINES):
        line = file.readline(LINE_BYTES)
        if not line.strip():
            return headers
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    raise _BadRecord(DAMAGED)


def _read_record(file: IO[bytes], limits: Limits, passed_over: Counter[str]) -> Page | None:
    """One record behind its version line; the file then stands behind its block."""
    headers = _read_headers(file)
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise _BadRecord(NO_LENGTH)
    kind, size = headers.get("warc-type", ""), int(length)
    wanted = kind in ("response", "resource")
    block = _read_exactly(file, min(size, limits.page_bytes + LINE_BYTES)) if wanted else b""
    left = size - len(block)
    while left > 0 and (part := file.read(min(CHUNK, left))):
        left -= len(part)
    if left > 0:
        raise _BadRecord(DAMAGED)
    if not wanted:
        passed_over[f"WARC records: {kind if kind.isalpha() and len(kind) < 20 else 'unknown'}"] += 1
        return None
    url = headers.get("warc-target-uri", "").strip("<>")
    about = {"url": url, "fetched": headers.get("warc-date", "")}
    if size > len(block):
        return Page(reason=TOO_LARGE, **about)
    if kind == "response" and url.startswith(("http:", "https:")):
        return _http_page(block, limits, passed_over, about)
    if "html" not in headers.get("content-type", ""):
        passed_over["WARC records: not HTML"] += 1
        return None
    return _page(block, limits, charset=_charset(headers.get("content-type", "")), **about)


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _BadRecord(DAMAGED)
    return data


def _charset(content_type: str) -> str:
    """
    >>> _charset('text/html; charset="Shift_JIS"; x=1')
    'Shift_JIS'
    """
    found = re.search(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", content_type, re.IGNORECASE | re.ASCII)
    return found[1] if found else ""


def _http_page(block: bytes, limits: Limits, passed_over: Counter[str], about: dict[str, str]) -> Page | None:
    """The page of an HTTP answer."""
    file = io.BytesIO(block)
    status = re.match(rb"HTTP/\d(?:\.\d)? (\d{3})\b", file.readline(LINE_BYTES))
    if not status:
        return Page(reason="not an HTTP answer", **about)
    if status[1] != b"200":
        passed_over[f"answers with status {status[1].decode()}"] += 1
        return None
    headers = _read_headers(file)
    body = block[file.tell():]
    content_type = headers.get("content-type", "")
    if "html" not in content_type.lower() and (content_type or not body.lstrip().startswith(b"<")):
        passed_over["answers that are not HTML"] += 1
        return None
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _without_chunks(body)
    encoding = headers.get("content-encoding", "").lower()
    if encoding in ("gzip", "x-gzip", "deflate"):
        try:
            body = unpack(body, limits.page_bytes)
        except zlib.error:
            return Page(reason=DAMAGED, **about)
    elif encoding not in ("", "identity", "none") and not body.lstrip().startswith(b"<"):  # some writers unpack and say nothing
        return Page(reason="unknown content encoding", **about)
    return _page(body, limits, charset=_charset(content_type), **about)


def unpack(body: bytes, limit: int) -> bytes:
    """gzip or deflate, up to one byte more than the limit; what is already unpacked comes back as it is.

    >>> unpack(gzip.compress(b"<p>"), 9), unpack(zlib.compress(b"<p>")[2:-4], 9), unpack(b"<html>", 9), len(unpack(gzip.compress(bytes(99)), 9))
    (b'<p>', b'<p>', b'<html>', 10)
    """
    if body.lstrip().startswith(b"<"):
        return body
    try:
        return _inflate(body, zlib.MAX_WBITS | 32, limit)  # gzip and zlib headers
    except zlib.error:
        if body.startswith(b"\x1f\x8b"):
            raise
        return _inflate(body, -zlib.MAX_WBITS, limit)  # "deflate" as some servers understand it


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(wbits)
    data = inflater.decompress(body, limit + 1)
    if not inflater.eof and len(data) <= limit:
        raise zlib.error("cut short")
    return data


def _without_chunks(body: bytes) -> bytes:
    """The data of a chunked transfer; many writers take the chunks out and leave the header, so other bytes stay as they are.

    >>> _without_chunks(b"4;x\\r\\n<htm\\r\\n2\\r\\nl>\\r\\n0\\r\\n\\r\\n"), _without_chunks(b"<html>"), _without_chunks(b"5\\r\\n<p>")
    (b'<html>', b'<html>', b'5\\r\\n<p>')
    """
    parts, at = [], 0
    while head := re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]{0,200}\r?\n").match(body, at):
        size, start = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(parts)
        if start + size > len(body):
            return body
        parts.append(body[start:start + size])
        at = start + size
        at += 2 if body[at:at + 2] == b"\r\n" else 1
    return body
