"""A model behind an OpenAI-compatible HTTP API: prompts in, texts out as they finish, as local decoding does it.

    server = server_from(options)                     flags of `add_api_options` -> where, which model, what is sent
    store = CallStore(path)                           every answered call by the hash of its request: none is paid for twice
    replies = ask(server, [request(server, prompt, limit) for prompt in prompts], store)

In order: the server and its flags, requests, errors and waiting, `ask`. Replies and the store: mmed/evaluation/api_calls.py.

Closed models (OpenAI and whoever speaks the same protocol) and local servers (vLLM, Ollama, `transformers serve`) alike. The
client is the `openai` package; when a call is repeated is decided here, in the open. Keys come from the environment only, and
whatever a server sends back is searched for them before it is kept, shown or raised.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import queue
import random
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mmed.evaluation.api_calls import BadReply, CallStore, error_message, read_reply, usage, utf8, without_key
from mmed.utils.errors import UsageError, UserError, require_extra

__all__ = ["CallStore", "Server", "add_api_options", "ask", "request", "request_key", "server_from", "usage"]

API_VERSION = 1  # part of every request's hash: raise it when what is sent or kept of a reply changes its meaning
OPENAI_URL = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first repeat, doubled up to the second
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more ends the run, which the same command goes on with later
FIRST_CONTACT = 3  # tries to reach a server that has not answered once in this run: a wrong address is said soon
CONNECT_SECONDS = 10.0
GRACE = 10.0  # seconds for calls under way when a run is stopped: they are paid for
MAX_REPLY_BYTES = 16 * 2 ** 20
REPEAT_STATUS = {408, 409, 425, 429}  # and every 5xx
FIXED = ("model", "messages", "prompt", "stream", "n")  # of a request: not to be set by --server-option


# --------------------------------------------------------------------------------------------------------------- server

@dataclass(frozen=True)
class Server:
    """Where the model is, what is sent with each call, and how patient we are."""

    model: str
    base_url: str = OPENAI_URL
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 4
    retries: int = 8
    timeout: float = 600.0  # seconds for a whole reply
    key_env: str = ""
    key: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        return "completions" if self.completions else "chat/completions"

    @property
    def limit_name(self) -> str:
        # newer chat models of OpenAI refuse max_tokens; other servers may not know its successor
        return "max_completion_tokens" if self.base_url == OPENAI_URL and not self.completions else "max_tokens"

    def facts(self) -> dict[str, Any]:
        """What decides the answers, for results: nothing secret is among it."""
        return {"model": self.model, "base_url": self.base_url, "endpoint": self.endpoint, "options": dict(self.options), "limit": self.limit_name}


def add_api_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    group = parser.add_argument_group("a model behind an OpenAI-compatible API (needs mmed[api]); only with --api is the network used")
    group.add_argument("--api", metavar="MODEL_NAME", required=required, help="the server's name of the model")
    group.add_argument("--base-url", metavar="URL", help=f"of the server, usually ending in /v1 (default {OPENAI_URL})")
    group.add_argument("--api-key-env", metavar="NAME", help="environment variable with the server's key (default OPENAI_API_KEY for OpenAI, none for "
                       "another --base-url: no server is sent the key of another)")
    group.add_argument("--completions", action="store_true", help="plain completions, for base models served by vLLM (default: chat)")
    group.add_argument("--concurrency", type=int, default=4, metavar="N", help="calls under way at a time (default 4)")
    group.add_argument("--server-option", action="append", default=[], metavar="NAME=VALUE", help="sent with each call, VALUE as JSON; NAME=none leaves "
                       "one out that is sent otherwise (temperature=0, seed)")
    group.add_argument("--retries", type=int, default=8, metavar="N", help="repeats of a call after 429, 5xx, a time-out or a broken reply (default 8)")
    group.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one whole reply (default 600)")


def server_from(options: argparse.Namespace, seed: int = 0, need_key: bool = True) -> Server:
    """The server that the flags of `add_api_options` name, its key read from the environment (unless nothing will be sent)."""
    base_url = (options.base_url or OPENAI_URL).strip().rstrip("/")
    _check_url(base_url)
    if not options.api.strip():
        raise UsageError("--api: the model's name is empty")
    if options.concurrency < 1 or options.retries < 0 or not 0 < options.timeout < math.inf:
        raise UsageError("--concurrency must be 1 or more, --retries 0 or more, --timeout over 0")
    sent = {"temperature": 0, "seed": seed}
    for given in options.server_option:
        name, value = parse_server_option(given)
        sent[name] = value
    key_env = options.api_key_env or ("OPENAI_API_KEY" if base_url == OPENAI_URL else "")
    key = read_key(key_env) if key_env and need_key else ""
    parts = urlsplit(base_url)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        print(f"warning: --base-url {base_url}: the key travels unencrypted; use https where the server offers it", file=sys.stderr)
    return Server(options.api, base_url, options.completions, sent, options.concurrency, options.retries, options.timeout, key_env, key)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--base-url: not a URL; expected something like http://localhost:8000/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:  # not repeated in the message: it may hold a key
        raise UsageError("--base-url: must not hold a user, a password or a query; keys come from the environment only (--api-key-env NAME)")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"--base-url {url!r}: expected http:// or https:// and a host, as in http://localhost:8000/v1")


def read_key(name: str) -> str:
    """The key in an environment variable; never shown, not even where it is wrong."""
    if not name.replace("_", "").isalnum() or not name.isascii() or name[0].isdigit():  # a key given for the name of its variable is not repeated
        raise UsageError("--api-key-env: expected the name of an environment variable, such as OPENAI_API_KEY")
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"the environment variable {name} is not set: put the server's key there (or give --base-url of a server that needs none)")
    if not key.isascii() or not key.isprintable() or " " in key:  # the HTTP library would quote it in its complaint
        raise UsageError(f"the environment variable {name} does not hold a key: there are spaces or special characters in it")
    return key


def parse_server_option(given: str) -> tuple[str, Any]:
    """One --server-option.

    >>> parse_server_option("top_p=0.9"), parse_server_option("reasoning_effort=low"), parse_server_option("seed=none")
    (('top_p', 0.9), ('reasoning_effort', 'low'), ('seed', None))
    """
    name, equals, text = given.partition("=")
    if not equals or not name.isidentifier() or not text:
        raise UsageError(f"--server-option {given}: expected NAME=VALUE, such as top_p=0.9, or NAME=none")
    if name in FIXED:
        raise UsageError(f"--server-option {given}: {name!r} is set by this command")
    if text == "none":
        return name, None
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except ValueError:
        value = text
    return name, value


# -------------------------------------------------------------------------------------------------------------- requests

def request(server: Server, prompt: str | Sequence[dict[str, str]], max_new_tokens: int) -> dict[str, Any]:
    """The body of one call: a text for completions, messages (or one text as the user's) for chat.

    >>> request(Server("m", "http://localhost/v1", options={"temperature": 0, "seed": None}), "Why?", 9)
    {'model': 'm', 'messages': [{'role': 'user', 'content': 'Why?'}], 'max_tokens': 9, 'temperature': 0}
    """
    if server.completions:
        assert isinstance(prompt, str), "expected a text, got messages"
        body: dict[str, Any] = {"model": server.model, "prompt": utf8(prompt)}
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = {"model": server.model, "messages": [{name: utf8(text) for name, text in message.items()} for message in messages]}
    body |= {server.limit_name: max_new_tokens} | server.options
    return {name: value for name, value in body.items() if value is not None}


def request_key(server: Server, body: dict[str, Any]) -> str:
    """sha256 of all that decides the answer: address, endpoint, body (model, messages, decoding) and version."""
    whole = [API_VERSION, server.base_url, server.endpoint, body]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- errors and waiting

class _Again(Exception):
    """A call that is worth repeating; `after`: seconds that the server asked for."""

    def __init__(self, reason: str, after: float | None = None, instead: dict | None = None, contact: bool = True):
        super().__init__(reason)
        self.after, self.instead, self.contact = after, instead, contact


def retry_after(headers: Any, now: float) -> float | None:
    """Seconds that a server asks to wait: Retry-After as seconds or as a date, or OpenAI's retry-after-ms.

    >>> retry_after({"retry-after": "2.5"}, 0.0), retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:09 GMT"}, 4.0), retry_after({}, 0.0)
    (2.5, 5.0, None)
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = (headers.get(name) or "").strip()
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - now
            except (ValueError, TypeError, IndexError, OverflowError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None


def pause(attempt: int, draw: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before repeat number `attempt` (from 0): doubled each time, of which a random half, so that callers spread.

    >>> [pause(attempt, lambda low, high: high) for attempt in (0, 1, 2, 20)]
    [1.0, 2.0, 4.0, 60.0]
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 30))
    return draw(longest / 2, longest)


def refused(server: Server, status: int, message: str) -> UserError:
    """What to do about a status that asking again does not change."""
    place = f"{server.base_url} ({status})"
    if status in (401, 403):
        have = f"check the key in the environment variable {server.key_env}" if server.key else "it wants a key: name its variable with --api-key-env"
        return UserError(f"{place} refuses the key or the model: {message}; {have}")
    if status == 404:
        return UserError(f"{place} has no model {server.model!r} or no /{server.endpoint}: {message}; check --api, and --base-url, which usually ends in /v1")
    if 300 <= status < 400:
        return UserError(f"{place} wants to send us elsewhere; give that address as --base-url")
    if status in (402, 429):
        return UserError(f"{place} has no quota left: {message}; what was answered is kept, the same command goes on from there")
    if status in (400, 413, 422):
        return UserError(f"{place} refuses the request: {message}; leave out or change what it names with --server-option NAME=none or NAME=VALUE, or send "
                         "shorter prompts")
    return UserError(f"{place} refuses the request: {message}")


class _Caller:
    """What the threads of one `ask` share: the client, the end, and until when a server that is too busy is left alone."""

    def __init__(self, server: Server):
        openai = require_extra("openai", "api")
        self.server, self.openai = server, openai
        # Our own client so that no redirect is followed: prompts and key go to the address that was given.
        self.http = openai.DefaultHttpxClient(follow_redirects=False)
        # The error base of httpx or httpx2, whichever this release of `openai` stands on: a body that breaks off raises it bare.
        self.broken = importlib.import_module(type(self.http).__mro__[1].__module__.split(".")[0]).HTTPError
        self.client = openai.OpenAI(api_key=server.key or "none", base_url=server.base_url, max_retries=0, http_client=self.http,
                                    timeout=openai.Timeout(server.timeout, connect=min(server.timeout, CONNECT_SECONDS)))
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.not_before, self.heard = 0.0, False

    def wait(self, seconds: float) -> None:
        """Sleep, and as long as any call was told to keep away; ends at once when the run is stopped."""
        until = time.monotonic() + seconds
        while not self.stop.is_set() and (left := max(until, self.not_before) - time.monotonic()) > 0:
            self.stop.wait(left)

    def answer(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to one request, repeated as often as allowed; None if the run was stopped meanwhile."""
        attempt = 0
        while True:
            self.wait(0.0)
            if self.stop.is_set():
                return None
            try:
                return self.call(body)
            except _Again as trouble:
                attempt += 1
                allowed = self.server.retries if self.heard or trouble.contact else min(self.server.retries, FIRST_CONTACT - 1)
                if attempt > allowed:
                    if trouble.instead is not None:
                        return trouble.instead
                    raise UserError(f"{self.server.base_url}: {trouble} ({attempt} tries); what was answered is "
                                    "kept, the same command goes on from there") from None
                if trouble.after is None:
                    self.wait(pause(attempt - 1))
                elif trouble.after > LONGEST_RETRY_AFTER:
                    raise UserError(f"{self.server.base_url}: asks to wait {trouble.after:,.0f} seconds; what was answered is kept, the same command "
                                    "goes on from there") from None
                else:
                    with self.lock:
                        self.not_before = max(self.not_before, time.monotonic() + trouble.after)
                    self.wait(random.uniform(0.0, 0.2))  # not all at the same moment

    def call(self, body: dict[str, Any]) -> dict[str, Any]:
        """One try."""
        openai, server = self.openai, self.server
        resource = self.client.completions if server.completions else self.client.chat.completions
        named = {name: body[name] for name in ("model", "prompt", "messages") if name in body}
        deadline = time.monotonic() + server.timeout
        try:
            with resource.with_streaming_response.create(**named, extra_body={name: body[name] for name in body if name not in named}) as response:
                self.heard = True
                data = bytearray()
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > MAX_REPLY_BYTES:
                        raise _Again(f"the reply is longer than {MAX_REPLY_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise _Again(f"no whole reply in {server.timeout:g} seconds")
            return read_reply(bytes(data), server.key)
        except BadReply as trouble:
            raise _Again(str(trouble), instead=trouble.instead) from None
        except openai.APITimeoutError:
            raise _Again(f"no reply in {server.timeout:g} seconds (--timeout)", contact=False) from None
        except openai.APIStatusError as error:
            self.heard = True
            raise_for_status(server, error)
        except (openai.APIConnectionError, self.broken) as error:
            cause = error.__cause__ or error
            raise _Again(f"the connection failed ({type(cause).__name__}: {error_message(without_key(str(cause), server.key), 120)})", contact=False) from None
        raise AssertionError("unreachable")


def raise_for_status(server: Server, error: Any) -> None:
    """An error status of the server as `_Again`, an empty answer (a filter struck) or an end of the run."""
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error") if isinstance(body.get("error"), dict) else body
    codes = {str(inner.get(name)) for name in ("code", "type")}
    message = error_message(without_key(error.body or error.response.reason_phrase or "no message", server.key))
    if status == 400 and "content_filter" in codes:  # of the prompt: an answer of its kind, which is counted
        raise _Filtered()
    if status == 429 and codes & {"insufficient_quota", "billing_hard_limit_reached"}:
        raise refused(server, status, message)
    if status in REPEAT_STATUS or status >= 500:
        raise _Again(f"status {status}: {message}", after=retry_after(error.response.headers, time.time())) from None
    raise refused(server, status, message) from None


class _Filtered(Exception):
    """The server's filter refused the prompt."""


FILTERED = {"text": "", "finish_reason": "content_filter", "model": None, "prompt_tokens": None, "completion_tokens": None}


# ------------------------------------------------------------------------------------------------------------------- ask

STOPPED = object()  # what a signal puts among the replies


def ask(server: Server, requests: Sequence[dict[str, Any]], store: CallStore, *, labels: Sequence[str] | None = None,
        on_done: Callable[[int], object] | None = None) -> list[dict[str, Any]]:
    """Replies in the order of the requests, `server.concurrency` calls under way at a time; each is stored as it comes.

    Stored requests are not asked again, equal ones are asked once. `labels` name requests in errors. An error that repeating does
    not cure ends the run after the calls under way; so do Ctrl-C and SIGTERM (KeyboardInterrupt: the command goes with code 75).
    """
    keys = [request_key(server, body) for body in requests]
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    todo = deque(key for key in places if key not in store.replies)
    for key in places:
        if key in store.replies and on_done:
            for place in places[key]:
                on_done(place)
    if todo:
        caller = _Caller(server)
        done: queue.SimpleQueue = queue.SimpleQueue()

        def work() -> None:
            while not caller.stop.is_set():
                try:
                    key = todo.popleft()
                except IndexError:
                    break
                stored = threading.Event()
                try:
                    done.put((key, caller.answer(requests[places[key][0]]), stored))
                except _Filtered:
                    done.put((key, dict(FILTERED), stored))
                except BaseException as error:  # goes to the main thread, which raises it
                    caller.stop.set()
                    done.put((key, error, stored))
                # The next call waits until this answer is on the disk: a kill costs what is under way, and no queue of paid answers.
                while not stored.wait(0.05) and not caller.stop.is_set():
                    pass
            done.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(server.concurrency, len(todo)))]
        before = {}
        try:
            if threading.current_thread() is threading.main_thread():  # a signal waits its turn, so that it never falls between answer and disk
                before = {number: signal.signal(number, lambda *_: done.put(STOPPED)) for number in (signal.SIGINT, signal.SIGTERM)}
            for thread in threads:
                thread.start()
            _collect(done, len(threads), store, places, labels, on_done, caller)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            caller.http.close()
    missing = [place for place, key in enumerate(keys) if key not in store.replies]
    if missing:
        raise AssertionError(f"expected {len(keys)} replies, {len(missing)} are missing")
    return [store.replies[key] for key in keys]


def _collect(done: queue.SimpleQueue, running: int, store: CallStore, places: dict[str, list[int]], labels: Sequence[str] | None,
             on_done: Callable[[int], object] | None, caller: _Caller) -> None:
    """Store what the threads bring; after an error or a signal only what is under way, for a few seconds. A second signal ends at once."""
    failure: BaseException | None = None
    deadline = math.inf
    while running and (left := deadline - time.monotonic()) > 0:
        try:
            found = done.get(timeout=None if failure is None else left)
        except queue.Empty:
            break
        if found is STOPPED:
            if isinstance(failure, KeyboardInterrupt):
                break
            failure, deadline = KeyboardInterrupt(), time.monotonic() + GRACE
            caller.stop.set()
            continue
        if found is None:
            running -= 1
            continue
        key, reply, stored = found
        if isinstance(reply, dict):
            store.add(key, reply)
            stored.set()
            if on_done:
                for place in places[key]:
                    on_done(place)
        elif isinstance(reply, BaseException) and failure is None:
            failure, deadline = _labelled(reply, places[key][0], labels, caller.server.key), time.monotonic() + GRACE
            caller.stop.set()
    if failure is not None:
        raise failure


def _labelled(error: BaseException, place: int, labels: Sequence[str] | None, key: str) -> BaseException:
    """An error with the name of its request in front; one that nobody foresaw keeps its traceback, unless the key is in it."""
    if isinstance(error, UserError):
        return type(error)(f"{labels[place]}: {error}" if labels else str(error))  # a new one: behind the old stands the server's own text
    trace = "".join(traceback.format_exception(error))
    clean = without_key(trace, key)
    return error if clean == trace else RuntimeError(f"in a call:\n{clean}")
