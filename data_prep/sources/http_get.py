"""One GET request to a server that nobody vouches for: bounded in time and bytes, and never to an address inside one's own network.

In:  a URL as `clean_url` gives it. Out: `Answer`, or `NoAnswer` with a short reason and whether trying again may help.

Redirects are not followed; the caller decides about them. The host's address is looked up once, checked, and connected to, so
that a name which changes between check and connection (DNS rebinding) gains nothing. The whole request has one deadline, kept by
a timer that shuts the connection: a server that sends a byte a second would never meet a timeout between bytes.
"""
from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from data_prep.sources.page_files import unpack

MAX_URL = 2000
# Parameters that only follow the visitor: the page is the same without.
_TRACKING = re.compile(r"(?:^|(?<=&))(?:utm_\w+|fbclid|gclid|PHPSESSID|jsessionid)=[^&]*(?:&|$)", re.IGNORECASE)
_SESSION = re.compile(r";jsessionid=[^/?]*", re.IGNORECASE)


class Answer(NamedTuple):
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes  # unpacked; empty if it was not wanted
    address: str

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class NoAnswer(Exception):
    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.reason, self.again = reason, again


class Client(NamedTuple):
    """Who asks, and how much he takes."""

    agent: str
    contact: str = ""
    seconds: float = 30.0
    max_bytes: int = 10 << 20
    allow_private: bool = False


def clean_url(base: str, link: str) -> str:
    """One spelling for each address, without fragment; empty if it is no http address that could be asked for.

    >>> clean_url("http://Ex.org/a/b", "../ü?utm_source=x&q=1#top")
    'http://ex.org/%C3%BC?q=1'
    >>> [clean_url("http://ex.org/", link) for link in ("HTTP://ex.org:80", "mailto:a@b", "javascript:x", "http://me:pw@ex.org/", "http://[", "file:///x")]
    ['http://ex.org/', '', '', '', '', '']
    """
    try:
        parts = urlsplit(urljoin(base, link.strip()))
        host, port = (parts.hostname or "").rstrip("."), parts.port
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or re.search(r"[^\w.:-]", host):
        return ""
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port != (80 if parts.scheme == "http" else 443):
        host = f"{host}:{port}"
    path = quote(_SESSION.sub("", parts.path) or "/", safe="/%:@!$&'()*+,;=~")
    if "/." in path and not path.startswith("//"):
        path = urlsplit(urljoin("http://x/", path)).path
    query = quote(_TRACKING.sub("", parts.query).rstrip("&"), safe="/%:@!$&'()*+,;=~?[]")
    url = f"{parts.scheme}://{host}{path}" + (f"?{query}" if query else "")
    return url if len(url) <= MAX_URL else ""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open Internet, also where IPv6 wraps an IPv4 address.

    >>> [is_public(a) for a in ("93.184.216.34", "127.0.0.1", "10.1.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1")]
    [True, False, False, False, False, False, False]
    >>> [is_public(a) for a in ("2606:2800:220:1::1", "::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1")]
    [True, False, False, False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        number = int(ip)
        if ip.ipv4_mapped or number >> 32 in (0, 0x64FF9B << 64):  # ::ffff:a.b.c.d, ::a.b.c.d, 64:ff9b::a.b.c.d
            return number > 1 and is_public(str(ipaddress.IPv4Address(number & 0xFFFFFFFF)))
        if ip.sixtofour or ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast


_LIVE: set[socket.socket] = set()


def stop_all() -> None:
    """Shut all connections, so that threads which wait for them end."""
    for sock in list(_LIVE):
        _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, which would wait for the other side
    except OSError:
        pass


def get(url: str, client: Client, wanted: Callable[[int, str], bool] = lambda status, kind: True) -> Answer:
    """Ask for `url` once; the body is read if `wanted(status, content type)`."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address, sock = _connect(parts.hostname or "", port, client)
    expired = threading.Event()
    timer = threading.Timer(client.seconds, lambda: (expired.set(), _shut(sock)))
    timer.daemon = True
    timer.start()
    _LIVE.add(sock)
    try:
        if secure:
            context = ssl.create_default_context()
            _LIVE.discard(sock)
            sock = context.wrap_socket(sock, server_hostname=parts.hostname, do_handshake_on_connect=False)
            _LIVE.add(sock)  # from here on the timer and `stop_all` reach this one
            sock.do_handshake()
            connection = http.client.HTTPSConnection(parts.hostname or "", port, context=context)
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", port)
        connection.sock = sock
        headers = {"User-Agent": client.agent, "Accept": "text/html,application/xhtml+xml;q=0.9,text/plain;q=0.5", "Accept-Encoding": "gzip",
                   "Connection": "close", **({"From": client.contact} if client.contact else {})}
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        body = b""
        if wanted(answer.status, (answer.getheader("Content-Type") or "").lower()):
            body = _read(answer, client.max_bytes)
        if expired.is_set():
            raise NoAnswer("took too long", again=True)
        return Answer(answer.status, answer.reason, answer.getheaders(), body, address)
    except NoAnswer:
        raise
    except ssl.SSLCertVerificationError:
        raise NoAnswer("certificate not valid", again=False) from None
    except (OSError, ValueError, http.client.HTTPException, zlib.error) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise NoAnswer("took too long", again=True) from None
        if isinstance(error, http.client.IncompleteRead):
            raise NoAnswer("answer cut short", again=True) from None
        if isinstance(error, ssl.SSLError):
            raise NoAnswer("TLS failed", again=True) from None
        if isinstance(error, OSError | http.client.RemoteDisconnected):
            raise NoAnswer("connection lost", again=True) from None
        raise NoAnswer("not HTTP", again=False) from None
    finally:
        timer.cancel()
        _LIVE.discard(sock)
        sock.close()


def _connect(host: str, port: int, client: Client) -> tuple[str, socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NoAnswer("no such host", again=True) from None
    addresses = [where for *_, where in found if client.allow_private or is_public(where[0])]
    if not addresses:
        raise NoAnswer("private address", again=False)
    for where in addresses[:3]:
        try:
            return where[0], socket.create_connection(where[:2], timeout=client.seconds)
        except OSError:
            continue
    raise NoAnswer("no connection", again=True)


def _read(answer: http.client.HTTPResponse, limit: int) -> bytes:
    """The body, unpacked; at most `limit` bytes packed or unpacked."""
    parts, size = [], 0
    while part := answer.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise NoAnswer("answer too large", again=False)
    body = b"".join(parts)
    if answer.length:  # read(n) says nothing of what is missing
        raise http.client.IncompleteRead(body, answer.length)
    encoding = (answer.getheader("Content-Encoding") or "").lower()
    if encoding in ("gzip", "x-gzip", "deflate") and body:
        body = unpack(body, limit)
        if len(body) > limit:
            raise NoAnswer("answer too large", again=False)
    elif encoding not in ("", "identity"):
        raise NoAnswer("unknown content encoding", again=False)
    return body
