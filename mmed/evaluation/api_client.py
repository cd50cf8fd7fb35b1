"""Ask a model behind an OpenAI-compatible API: prompts in, texts out. The only use of the network in mmed.

    replies = ask(server, [request(server, prompt, limit) for prompt in prompts], CallStore(path), labels=...)

The `openai` client retries failed calls. A question that the server rejects or blocks, or whose calls keep
failing, gets an empty text and the reason, and is asked again at the next start. Faults that affect every
call end the run: key, model, address, quota, or FAILURES_IN_A_ROW failures in a row. The key comes from the
environment only and is in no result.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmed.evaluation.summary import utf8
from mmed.utils.errors import UsageError, UserError, require_extra
from mmed.utils.files import atomic_write, leftovers
from mmed.utils.journal import SealedFile, sealed_line
from mmed.utils.untrusted import is_finite

API_VERSION = 2  # part of every request's hash; raise it when what is sent or stored changes its meaning
OPENAI_URL = "https://api.openai.com/v1"
FAILURES_IN_A_ROW = 10
# Status code that affects every call -> what to do
FATAL_STATUS = {401: "check the key (--api_key_env)",  # 403 may be OpenRouter's moderation of one question
                402: "the quota is used up",
                429: "the quota is used up, or the rate limit: lower --concurrency or raise --retries",
                404: "check --api, and --base_url, which usually ends in /v1"}
OMIT = "--server_option NAME=none omits an option that the server rejects"
KEPT = "the replies so far are kept, and the same command continues"
ECHOED = 64  # tokens kept from the end of an echoed prompt, where the answer is
CANNOT_SCORE = ("the server returns no log-probabilities of a given text (`echo` and `logprobs` of its "
                "/completions), so options cannot be scored; use --scoring generate, or --model FOLDER")
FAILED_ENDS = ("error", "abort", "insufficient_system_resource")  # finish reasons, the last one DeepSeek's
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # of a message
SERVER_URL = re.compile(r"https?://(\[[\da-f:]+\]|[^][\s@?/:]+)(:\d{1,5})?(/[^\s@?]*)?", re.IGNORECASE)
FIXED = ("model", "messages", "prompt", "stream", "n")  # of a request: not to be set by --server_option


# ---- server and requests -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Server:
    model: str
    base_url: str = OPENAI_URL
    completions: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # sent with each call
    concurrency: int = 4
    retries: int = 8
    timeout: float = 600.0  # seconds
    key: str = field(default="", repr=False)

    @property
    def endpoint(self) -> str:
        return "completions" if self.completions else "chat/completions"

    def facts(self) -> dict[str, Any]:
        return {"model": self.model, "base_url": self.base_url, "endpoint": self.endpoint,
                "options": dict(self.options)}


def add_api_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    add = parser.add_argument_group("a model behind an OpenAI-compatible API (needs mmed[api]); only with "
                                    "--api is the network used").add_argument
    add("--api", metavar="MODEL_NAME", required=required, help="name of the model on the server")
    add("--base_url", metavar="URL", default=OPENAI_URL,
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
    base_url = options.base_url.strip().rstrip("/")
    if not SERVER_URL.fullmatch(base_url):
        raise UsageError("--base_url: expected a URL such as http://localhost:8000/v1, without user name, "
                         "password or query; keys come from the environment only (--api_key_env NAME)")
    if options.concurrency < 1 or options.retries < 0 or not 0 < options.timeout < math.inf:
        raise UsageError("--concurrency must be 1 or more, --retries 0 or more, --timeout above 0")
    sent = {"temperature": 0, "seed": seed} | dict(map(parse_server_option, options.server_option))
    key_env = options.api_key_env or ("OPENAI_API_KEY" if base_url == OPENAI_URL else "")
    key = os.environ.get(key_env, "").strip()
    if key_env and not key:
        raise UsageError("--api_key_env: no such environment variable (default OPENAI_API_KEY); put "
                         "the key there, or give the --base_url of a server that needs none")
    if not (key.isascii() and key.isprintable()):
        raise UsageError("--api_key_env: the key there has characters that no key has; copy it again")
    return Server(options.api, base_url, options.completions, sent, options.concurrency, options.retries,
                  options.timeout, key)


def parse_server_option(given: str) -> tuple[str, Any]:
    name, _, text = given.partition("=")
    if not text or name in FIXED:
        raise UsageError(f"--server_option {given}: expected NAME=VALUE, such as top_p=0.9, or NAME=none, "
                         f"and a NAME other than {', '.join(FIXED)}")
    try:
        return name, None if text == "none" else json.loads(text)
    except ValueError:
        return name, text


def request(server: Server, prompt: str | Sequence[dict[str, str]], max_new_tokens: int) -> dict[str, Any]:
    """The body of one call: a text for completions, messages (or one user message) for chat."""
    asked: dict[str, Any] = {"prompt": prompt}
    if not server.completions:
        asked = {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
    asked = json.loads(utf8(json.dumps(asked, ensure_ascii=False)))
    # OpenAI's newer models reject max_tokens, which others require
    newest = server.base_url == OPENAI_URL and not server.completions
    limit = {"max_completion_tokens" if newest else "max_tokens": max_new_tokens}
    body = {"model": server.model, **asked, **limit, **server.options}
    return {name: value for name, value in body.items() if value is not None}


def request_key(server: Server, body: dict[str, Any]) -> str:
    whole = [API_VERSION, server.base_url, server.endpoint, body]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


# ---- replies -----------------------------------------------------------------------------------------------

class CallFailed(Exception):
    """A call without a usable reply; `kind`: its finish_reason."""

    def __init__(self, reason: str, kind: str = "error"):
        super().__init__(reason)
        self.kind = kind


def read_reply(value: Any) -> dict[str, Any]:
    """Text, reasoning, finish reason, model name and token counts of a reply. A refusal is an answer, and so
    is an empty text that the token limit, a filter or mere reasoning explains. An error in a reply is not.
    """
    if isinstance(value, str):  # JSON under another content type, or a page of a proxy
        try:
            value = json.loads(value)
        except ValueError:
            raise CallFailed(f"the reply is not JSON: {error_text(value)}") from None
    choice = (value.get("choices") or [{}])[0]
    ended, error = choice.get("finish_reason"), value.get("error") or choice.get("error")
    if error or ended in FAILED_ENDS:
        raise CallFailed(f"the reply is an error: {error_text(error or ended)}")
    if not value.get("choices"):
        blocked = (value.get("prompt_feedback") or {}).get("block_reason")
        raise CallFailed(f"the reply has no choices: {error_text(blocked or value)}",
                         "content_filter" if blocked else "error")
    message = choice.get("message") or {"content": choice.get("text")}
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers write them
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content
                          if part.get("type") not in ("reasoning", "thinking"))
    text = content or message.get("refusal") or ""
    reasoning = next(filter(None, map(message.get, REASONING)), None)
    complete = str(ended).startswith(("length", "content_filter")) or (content is not None and ended)
    if not (text or reasoning or complete):
        raise CallFailed("the reply has no text")
    usage = value.get("usage") or {}
    reply = {"text": utf8(text), "finish_reason": ended, "model": value.get("model"),
             "prompt_tokens": usage.get("prompt_tokens"), "completion_tokens": usage.get("completion_tokens")}
    return reply | ({"reasoning": utf8(str(reasoning))} if reasoning else {})


def echoed_tokens(value: Any) -> dict[str, Any]:
    """The last tokens of an echoed prompt with their log-probabilities."""
    logprobs = value["choices"][0].get("logprobs") or {}
    tokens, values = (list(logprobs.get(name) or []) for name in ("tokens", "token_logprobs"))
    if len(tokens) < 3 or len(tokens) != len(values) or not all(map(is_finite, values[1:])):
        raise UserError(CANNOT_SCORE)
    return {"tokens": [utf8(str(token)) for token in tokens[-ECHOED:]], "logprobs": values[-ECHOED:]}


def answer_tokens(reply: dict[str, Any], answer: str) -> tuple[list[str], list[float]]:
    """The tokens of an answer and their log-probabilities, from an echoed prompt. One that also holds the end
    of the prompt counts. Spaces are ignored: some servers drop them."""
    def squeezed(text: str) -> str:
        return "".join(text.replace("\u2581", " ").split())  # U+2581 is the space of sentencepiece

    tokens, wanted = list(map(squeezed, reply["tokens"])), squeezed(answer)
    start = "".join(tokens).rfind(wanted)
    if start < 0:
        raise UserError(f"the server echoes {''.join(tokens)[-60:]!r}, not the end of what was sent; "
                        f"{CANNOT_SCORE}")
    ends = list(accumulate(map(len, tokens)))
    found = [i for i, end in enumerate(ends) if end - len(tokens[i]) < start + len(wanted) and end > start]
    return [reply["tokens"][i] for i in found], [reply["logprobs"][i] for i in found]


def error_text(error: Any) -> str:
    """The server's own words in an error."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error
    return " ".join(str(error).split())[:300]


class CallStore(SealedFile):
    """Replies in one JSONL file, {"key": hash of the request, "reply": ..., "crc32": ...} per line."""

    def __init__(self, path: str | Path):
        super().__init__(Path(path))
        for leftover in leftovers(self.path):  # of a run that was killed in `close`
            leftover.unlink(missing_ok=True)
        self.lock = threading.Lock()
        self.replies: dict[str, dict] = {}
        self.new: list[dict] = []
        self.asked: list[str] = []  # keys, in the order of the requests
        self.read(lambda line: self.replies.update({line["key"]: line["reply"]}),
                  "delete that line (its call is then repeated), or the file")

    def add(self, key: str, reply: dict) -> None:
        with self.lock:
            self.append({"key": key, "reply": reply})
            self.replies[key] = reply
            self.new.append(reply)

    def close(self) -> None:
        """Rewrite the file in the order of the requests instead of the order of arrival."""
        with self.lock, atomic_write(self.path, "wb") as file:
            for key in dict.fromkeys([*self.asked, *self.replies]):
                if key in self.replies:
                    file.write(sealed_line({"key": key, "reply": self.replies[key]}).encode())
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
            reply = json.loads(self.hide_key(json.dumps(self.call(body))))  # a server may repeat the request
        except UserError as error:
            self.ended = True
            raise UserError(self.hide_key(f"{label}: {self.server.base_url}: {error}")) from None
        if "error" not in reply:
            self.store.add(key, reply)
        failed = "error" in reply and reply["finish_reason"] != "content_filter"
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        return key, reply

    def hide_key(self, text: str) -> str:
        return text.replace(json.dumps(self.server.key)[1:-1], "[key]") if self.server.key else text

    def call(self, body: dict[str, Any]) -> dict[str, Any]:
        """One reply, or why there is none. The client retries failed calls, this loop error replies, and rate
        limits: many are per minute, and the client's retries are over after 40 seconds."""
        for attempt in range(self.server.retries + 1):
            try:
                value = self.client.post(f"/{self.server.endpoint}", body=body, cast_to=object)
                return read_reply(value) | (echoed_tokens(value) if "echo" in body else {})
            except self.openai.APIError as error:
                used_up = "insufficient_quota" in (error.code, error.type)
                limited = isinstance(error, self.openai.RateLimitError) and not used_up
                if not limited or attempt == self.server.retries:
                    failure = self.failure(error)
                    break
                failure = CallFailed("rate limit")
            except CallFailed as error:
                failure = error
            except UserError:
                raise
            except (AttributeError, TypeError, LookupError, ValueError):
                failure = CallFailed("the reply has not the form that the API prescribes")
            if failure.kind == "content_filter":
                break
            if attempt < self.server.retries:
                time.sleep(min(60.0, 0.5 * 2 ** attempt))
        if "echo" in body and "echo" in str(failure):
            raise UserError(f"{failure}; {CANNOT_SCORE}")
        if self.failures_in_a_row + 1 >= FAILURES_IN_A_ROW and failure.kind != "content_filter":
            raise UserError(f"{FAILURES_IN_A_ROW} calls in a row failed, the last one because {failure}; "
                            f"{OMIT}; {KEPT}")
        return {"text": "", "finish_reason": failure.kind, "error": str(failure), "model": None,
                "prompt_tokens": None, "completion_tokens": None}

    def failure(self, error: Any) -> CallFailed:
        """An error of the client as the failure of this call alone, unless it ends the run."""
        if isinstance(error, self.openai.APITimeoutError):
            return CallFailed(f"no reply within {self.server.timeout:g} seconds (--timeout)")
        if not isinstance(error, self.openai.APIStatusError):
            raise UserError(f"the connection failed ({error.__cause__ or error}); {KEPT}") from None
        reason = f"{error.status_code}: {error_text(error.body or error.message)}"
        if error.status_code in FATAL_STATUS:
            raise UserError(f"{reason}; {FATAL_STATUS[error.status_code]}; {KEPT}") from None
        filtered = "content_filter" in (error.code, error.type)
        return CallFailed(reason, "content_filter" if filtered else "rejected")


def ask(server: Server, requests: Sequence[dict[str, Any]], store: CallStore, *,
        labels: Sequence[str]) -> list[dict[str, Any]]:
    """Replies in the order of the requests; stored requests are not asked again, equal ones are asked once.
    `labels` name requests in errors."""
    keys = [request_key(server, body) for body in requests]
    store.asked += keys
    todo = {key: (key, label, body) for key, label, body in zip(keys, labels, requests, strict=True)
            if key not in store.replies}
    replies = {key: store.replies[key] for key in keys if key not in todo}
    if todo:
        caller, pause = Caller(server, store), 0.5 if sys.stderr.isatty() else 30.0
        with (ThreadPool(server.concurrency) as pool,
              tqdm(total=len(todo), unit=" calls", mininterval=pause) as bar):
            for key, reply in pool.imap_unordered(lambda task: caller.answer(*task), todo.values()):
                replies[key] = reply
                bar.update()
        if all("error" in reply for reply in replies.values()):
            why = replies[keys[0]]["error"]
            raise UserError(f"{server.base_url}: no request was answered: {why}; {OMIT}")
    return [replies[key] for key in keys]


def usage(replies: Sequence[dict]) -> dict[str, Any]:
    reasons = Counter(reply.get("finish_reason") or "not given" for reply in replies)
    return {"calls": len(replies),
            "prompt_tokens": sum(reply.get("prompt_tokens") or 0 for reply in replies),
            "completion_tokens": sum(reply.get("completion_tokens") or 0 for reply in replies),
            "failed": sum("error" in reply for reply in replies),
            "without_counts": sum(reply.get("completion_tokens") is None for reply in replies),
            "finish_reasons": dict(sorted(reasons.items())),
            "models": sorted({reply["model"] for reply in replies if reply.get("model")})}
