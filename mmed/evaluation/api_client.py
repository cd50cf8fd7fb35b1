"""Ask a model behind an OpenAI-compatible API: prompts in, texts out. The only use of the network in mmed.

    server = server_from(options)            options of `add_api_options` -> address, model, decoding
    store = CallStore(path)                  every reply by the hash of its request: none is paid for twice
    replies = ask(server, [request(server, prompt, limit) for prompt in prompts], store)

The `openai` client retries failed calls. A question that the server rejects or blocks, or whose calls keep
failing, does not end an exam: it gets an empty text and the reason. Neither is stored, so the next start asks
again. Faults that affect every call do end the run: key, model, address, quota, or FAILURES_IN_A_ROW failures
in a row. The key comes from the environment only and is in no result.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from mmed.evaluation.summary import utf8
from mmed.utils.errors import UsageError, UserError, require_extra
from mmed.utils.files import atomic_write
from mmed.utils.journal import SealedFile, sealed_line

API_VERSION = 2  # part of every request's hash; raise it when what is sent or stored changes its meaning
OPENAI_URL = "https://api.openai.com/v1"
FAILURES_IN_A_ROW = 10
# Status code that affects every call -> what to do
FATAL_STATUS = {401: "check the key (--api_key_env)",  # 403 may be OpenRouter's moderation of one question
                402: "the quota is used up", 429: "the quota or the rate limit is used up",
                404: "check --api, and --base_url, which usually ends in /v1"}
KEPT = "the replies so far are kept, and the same command continues"
ECHOED = 64  # tokens kept from the end of an echoed prompt, where the answer is
CANNOT_SCORE = ("the server returns no log-probabilities of a given text (`echo` and `logprobs` of its "
                "/completions), so options cannot be scored; use --scoring generate, or --model FOLDER")
FIXED = ("model", "messages", "prompt", "stream", "n")  # of a request: not to be set by --server_option


# ---- server and requests -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Server:
    """The server's address and model, and the options sent with each call."""

    model: str
    base_url: str = OPENAI_URL
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 4
    retries: int = 8
    timeout: float = 600.0  # seconds
    key: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        return "completions" if self.completions else "chat/completions"

    def facts(self) -> dict[str, Any]:
        """Everything that determines the answers, without secrets."""
        return {"model": self.model, "base_url": self.base_url, "endpoint": self.endpoint,
                "options": dict(self.options)}


def add_api_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    add = parser.add_argument_group("a model behind an OpenAI-compatible API (needs mmed[api]); only with "
                                    "--api is the network used").add_argument
    add("--api", metavar="MODEL_NAME", required=required, help="name of the model on the server")
    add("--base_url", metavar="URL",
        help=f"server address, usually ending in /v1 (default {OPENAI_URL})")
    add("--api_key_env", metavar="NAME",
        help="environment variable with the key (default OPENAI_API_KEY, or none with --base_url)")
    add("--completions", action="store_true", help="use plain completions, for base models (default: chat)")
    add("--concurrency", type=int, default=4, metavar="N", help="simultaneous calls (default 4)")
    add("--server_option", action="append", default=[], metavar="NAME=VALUE",
        help="option sent with each call (JSON value); NAME=none omits a default (temperature=0, seed)")
    add("--retries", type=int, default=8, metavar="N", help="how often to retry a failed call (default 8)")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="response timeout (default 600)")


def server_from(options: argparse.Namespace, seed: int = 0) -> Server:
    """The server that the options of `add_api_options` name, with its key from the environment."""
    base_url = (options.base_url or OPENAI_URL).strip().rstrip("/")
    if not base_url.startswith(("http://", "https://")) or "@" in base_url or "?" in base_url:
        raise UsageError("--base_url: expected a URL such as http://localhost:8000/v1, without user name or "
                         "password; keys come from the environment only (--api_key_env NAME)")
    if options.concurrency < 1 or options.retries < 0 or not 0 < options.timeout < math.inf:
        raise UsageError("--concurrency must be 1 or more, --retries 0 or more, --timeout above 0")
    sent = {"temperature": 0, "seed": seed} | dict(map(parse_server_option, options.server_option))
    key_env = options.api_key_env or ("OPENAI_API_KEY" if base_url == OPENAI_URL else "")
    key = os.environ.get(key_env, "").strip()
    if key_env and not key:
        raise UsageError("--api_key_env: no such environment variable (default OPENAI_API_KEY); put "
                         "the key there, or give the --base_url of a server that needs none")
    return Server(options.api, base_url, options.completions, sent, options.concurrency, options.retries,
                  options.timeout, key)


def parse_server_option(given: str) -> tuple[str, Any]:
    """One --server_option.

    >>> [parse_server_option(given) for given in ("top_p=0.9", "reasoning_effort=low", "seed=none")]
    [('top_p', 0.9), ('reasoning_effort', 'low'), ('seed', None)]
    """
    name, _, text = given.partition("=")
    if not text or name in FIXED:
        raise UsageError(f"--server_option {given}: expected NAME=VALUE, such as top_p=0.9, or NAME=none, "
                         f"and a NAME other than {', '.join(FIXED)}")
    try:
        return name, None if text == "none" else json.loads(text)
    except ValueError:
        return name, text


def request(server: Server, prompt: str | Sequence[dict[str, str]], max_new_tokens: int) -> dict[str, Any]:
    """The body of one call: a text for completions, messages (or one user message) for chat.

    >>> request(Server("m", "http://localhost/v1", options={"temperature": 0, "seed": None}), "Why?", 9)
    {'model': 'm', 'messages': [{'role': 'user', 'content': 'Why?'}], 'max_tokens': 9, 'temperature': 0}
    """
    limit_name = "max_tokens"
    asked: dict[str, Any] = {"prompt": utf8(str(prompt))}
    if not server.completions:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        asked = {"messages": [{name: utf8(text) for name, text in message.items()} for message in messages]}
        if server.base_url == OPENAI_URL:  # its newer models reject max_tokens, which others require
            limit_name = "max_completion_tokens"
    body = {"model": server.model, **asked, limit_name: max_new_tokens, **server.options}
    return {name: value for name, value in body.items() if value is not None}


def scoring_request(server: Server, prompt: str, answer: str) -> dict[str, Any]:
    """Build the body of a call that returns the likelihood of `answer` after `prompt`.

    As lm-evaluation-harness asks: the prompt is echoed with log-probabilities. Servers reject max_tokens=0.
    """
    return request(server, prompt + answer, 1) | {"echo": True, "logprobs": 1}


def request_key(server: Server, body: dict[str, Any]) -> str:
    """sha256 of everything that determines the answer."""
    whole = [API_VERSION, server.base_url, server.endpoint, body]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


# ---- replies -----------------------------------------------------------------------------------------------

class CallFailed(Exception):
    """A call without a usable reply. `retry`: whether asking again may help; `kind`: its finish_reason."""

    def __init__(self, reason: str, retry: bool = False, kind: str = "error"):
        super().__init__(reason)
        self.retry, self.kind = retry, kind


def read_reply(value: Any) -> dict[str, Any]:
    """Extract from a reply: text, reasoning, finish reason, model name, token counts.

    An error inside a 200 reply or its choice is not an answer. A refusal is, and so is an empty text caused
    by the token limit, a content filter, or a reply of reasoning alone.

    >>> read_reply({"choices": [{"message": {"content": "B"}, "finish_reason": "stop"}]})["text"]
    'B'
    """
    if isinstance(value, str):  # JSON under another content type, or a page of a proxy
        try:
            value = json.loads(value)
        except ValueError:
            raise CallFailed(f"the reply is not JSON: {error_text(value)}", retry=True) from None
    choice = (value.get("choices") or [{}])[0]
    ended = choice.get("finish_reason")
    error = value.get("error") or choice.get("error") or ("no reason given" if ended == "error" else None)
    if error:
        raise CallFailed(f"the reply is an error: {error_text(error)}", retry=True)
    if not value.get("choices"):
        blocked = (value.get("prompt_feedback") or {}).get("block_reason")
        reason = blocked or error_text(value.get("message") or "no reason given")
        raise CallFailed(f"the reply has no choices ({reason})", retry=not blocked,
                         kind="content_filter" if blocked else "error")
    message = choice.get("message") or {"content": choice.get("text")}
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers write them
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content
                          if part.get("type") not in ("reasoning", "thinking"))
    text = content or message.get("refusal") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if content is None and not text and not reasoning and ended not in ("length", "content_filter"):
        raise CallFailed("the reply has no text", retry=True)
    usage = value.get("usage") or {}
    reply = {"text": utf8(text), "finish_reason": ended, "model": value.get("model"),
             "prompt_tokens": usage.get("prompt_tokens"), "completion_tokens": usage.get("completion_tokens")}
    return reply | ({"reasoning": utf8(str(reasoning))} if reasoning else {})


def echoed_tokens(value: Any) -> dict[str, Any]:
    """The last tokens of an echoed prompt with their log-probabilities; an error if the server has none."""
    logprobs = value["choices"][0].get("logprobs") or {}
    tokens, values = (list(logprobs.get(name) or []) for name in ("tokens", "token_logprobs"))
    if len(tokens) < 3 or len(tokens) != len(values) or None in values[1:]:
        raise UserError(CANNOT_SCORE)
    return {"tokens": [utf8(str(token)) for token in tokens[-ECHOED:]], "logprobs": values[-ECHOED:]}


def answer_tokens(reply: dict[str, Any], answer: str) -> tuple[list[str], list[float]]:
    """The tokens of an answer and their log-probabilities, from the reply to a `scoring_request`.

    A token that also holds the end of the prompt counts. Spaces are ignored in the search for the answer,
    because some servers write the tokens of sentencepiece without them.

    >>> reply = {"tokens": ["Why", ":#", "A", "!"], "logprobs": [None, -1.0, -2.0, -9.0]}
    >>> answer_tokens(reply, "# A")
    ([':#', 'A'], [-1.0, -2.0])
    """
    tokens, wanted = list(map(_squeezed, reply["tokens"])), _squeezed(answer)
    start = "".join(tokens).rfind(wanted)
    if start < 0:
        raise UserError(f"the server echoes {''.join(tokens)[-60:]!r}, not the end of what was sent; "
                        f"{CANNOT_SCORE}")
    place, found = 0, []
    for number, token in enumerate(tokens):
        if place < start + len(wanted) and place + len(token) > start:
            found.append(number)
        place += len(token)
    return [reply["tokens"][i] for i in found], [reply["logprobs"][i] for i in found]


def _squeezed(text: str) -> str:
    return "".join(text.replace("\u2581", " ").split())  # U+2581 is the space of sentencepiece


def error_text(error: Any) -> str:
    """The server's own words in an error, on one line of at most 300 characters."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error
    return " ".join(str(error).split())[:300]


class CallStore(SealedFile):
    """Replies in one JSONL file, {"key": hash of the request, "reply": ..., "crc32": ...} per line.

    A reply is on disk before it counts.
    """

    def __init__(self, path: str | Path):
        super().__init__(Path(path))
        self.lock = threading.Lock()
        self.replies: dict[str, dict] = {}
        self.new: list[dict] = []
        self.read(self._take, "delete that line (its call is then repeated), or the file")

    def _take(self, value: dict) -> None:
        self.replies[value["key"]] = value["reply"]

    def add(self, key: str, reply: dict) -> None:
        with self.lock:
            self.append({"key": key, "reply": reply})
            self.replies[key] = reply
            self.new.append(reply)

    def close(self, order: Sequence[str] = ()) -> None:
        """Rewrite the file in the order of these keys, not in that of the replies' arrival."""
        with self.lock, atomic_write(self.path, "wb") as file:
            keys = dict.fromkeys([*(key for key in order if key in self.replies), *self.replies])
            file.writelines(sealed_line({"key": key, "reply": self.replies[key]}).encode() for key in keys)
            self.file.close()


# ---- asking ------------------------------------------------------------------------------------------------

class Caller:
    """Makes calls and stores their replies; used by several threads."""

    def __init__(self, server: Server, store: CallStore):
        self.openai = require_extra("openai", "api")
        self.server, self.store, self.failures_in_a_row = server, store, 0
        self.ended = False  # no call begins after a fatal error
        self.client = self.openai.OpenAI(api_key=server.key or "none", base_url=server.base_url,
                                         max_retries=server.retries, timeout=server.timeout)

    def answer(self, key: str, label: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(key, reply) of one request; an empty text with the reason where there is no reply."""
        if self.ended:
            raise UserError("not asked")
        try:
            return key, self.reply_to(key, body)
        except UserError as error:
            self.ended = True
            raise UserError(f"{label}{self.server.base_url}: {error}") from None

    def reply_to(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self.call(body)
        except CallFailed as failure:
            if "echo" in body and "echo" in str(failure):
                raise UserError(f"{failure}; {CANNOT_SCORE}") from None
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= FAILURES_IN_A_ROW:
                raise UserError(f"{FAILURES_IN_A_ROW} calls in a row failed, the last one because "
                                f"{failure}; {KEPT}") from None
            return {"text": "", "finish_reason": failure.kind, "error": str(failure), "model": None,
                    "prompt_tokens": None, "completion_tokens": None}
        reply = json.loads(self.hide_key(json.dumps(reply)))  # a server may repeat the request in its reply
        self.store.add(key, reply)
        self.failures_in_a_row = 0
        return reply

    def hide_key(self, text: str) -> str:
        return text.replace(json.dumps(self.server.key)[1:-1], "[key]") if self.server.key else text

    def call(self, body: dict[str, Any]) -> dict[str, Any]:
        """One call; a failure reported inside a 200 reply is repeated here, every other one by the client."""
        for attempt in range(self.server.retries + 1):
            try:
                value = self.client.post(f"/{self.server.endpoint}", body=body, cast_to=object)
                return read_reply(value) | (echoed_tokens(value) if "echo" in body else {})
            except self.openai.APIError as error:
                raise self.failure(error) from None
            except UserError:
                raise
            except CallFailed as error:
                failure = error
            except (AttributeError, TypeError, LookupError, ValueError):
                failure = CallFailed("the reply has not the form that the API prescribes", retry=True)
            if not failure.retry or attempt == self.server.retries:
                break
            time.sleep(min(60.0, 0.5 * 2 ** attempt))
        raise failure

    def failure(self, error: Any) -> Exception:
        """Turn a client error into the end of the run, or into the failure of this call alone."""
        if isinstance(error, self.openai.APITimeoutError):
            return CallFailed(f"no reply within {self.server.timeout:g} seconds (--timeout)")
        if not isinstance(error, self.openai.APIStatusError):
            return UserError(f"the connection failed ({error.__cause__ or error}); {KEPT}")
        reason = self.hide_key(f"{error.status_code}: {error_text(error.body or error.message)}")
        if error.status_code in FATAL_STATUS:
            return UserError(f"{reason}; {FATAL_STATUS[error.status_code]}; {KEPT}")
        filtered = "content_filter" in (error.code, error.type)
        return CallFailed(reason, kind="content_filter" if filtered else "rejected")


def ask(
    server: Server,
    requests: Sequence[dict[str, Any]],
    store: CallStore,
    *,
    labels: Sequence[str] = (),
    on_done: Callable[[int], object] = lambda place: None,
) -> list[dict[str, Any]]:
    """Replies in the order of the requests, `server.concurrency` calls at a time, each stored on arrival.

    Stored requests are not asked again, equal ones are asked once. `labels` name requests in errors. A
    fatal error, Ctrl-C or SIGTERM (exit code 75) ends the run at once, without the calls in progress.
    """
    places: dict[str, list[int]] = {}
    for place, body in enumerate(requests):
        places.setdefault(request_key(server, body), []).append(place)
    replies: dict[int, dict] = {}

    def keep(key: str, reply: dict) -> None:
        for place in places[key]:
            replies[place] = reply
            on_done(place)

    todo = []
    for key, (first, *_) in places.items():
        if key in store.replies:
            keep(key, store.replies[key])
        else:
            todo.append((key, f"{labels[first]}: " if labels else "", requests[first]))
    if todo:
        caller = Caller(server, store)
        with ThreadPool(server.concurrency) as pool:
            for key, reply in pool.imap_unordered(lambda task: caller.answer(*task), todo):
                keep(key, reply)
        if all("error" in reply for reply in replies.values()):
            raise UserError(f"{server.base_url}: no request was answered: {replies[0]['error']}")
    return [replies[place] for place in range(len(requests))]


def usage(replies: Sequence[dict]) -> dict[str, Any]:
    """Counts over replies: tokens as the server counted them, why texts ended, which models answered."""
    reasons = Counter(reply.get("finish_reason") or "not given" for reply in replies)
    return {"calls": len(replies),
            "prompt_tokens": sum(reply.get("prompt_tokens") or 0 for reply in replies),
            "completion_tokens": sum(reply.get("completion_tokens") or 0 for reply in replies),
            "without_counts": sum(reply.get("completion_tokens") is None for reply in replies),
            "finish_reasons": dict(sorted(reasons.items())),
            "models": sorted({reply["model"] for reply in replies if reply.get("model")})}
