"""What is kept of the calls to an API: the reply without the key, and a file of all that were answered.

In: the bytes that a server sent back. Out: text, why it ended, which model answered, tokens; and `CallStore`, which holds them by the hash
of their request and so lets no call be paid for twice. In order: replies, the store. Used by mmed/evaluation/api_client.py, which makes the calls.
"""
from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write
from mmed.utils.journal import read_sealed, sealed_line

SHORTEST_SECRET = 8  # characters; a shorter "key" ("none", "EMPTY") is a placeholder, and would be found in ordinary text


def utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # lone surrogates, which no request and no file can carry


# --------------------------------------------------------------------------------------------------------------- replies

class BadReply(Exception):
    """A reply that says nothing; `instead` is taken for it when asking again does not help either."""

    def __init__(self, reason: str, instead: dict | None = None):
        super().__init__(reason)
        self.instead = instead


def read_reply(data: bytes, key: str = "") -> dict[str, Any]:
    """What is kept of a reply: text, why it ended, which model answered, tokens; the key is taken out before anything is cut short.

    A refusal is a text. No text because the limit was reached or a filter struck is an answer too, an empty one.

    >>> read_reply(b'{"model": "m-1", "choices": [{"message": {"content": "B"}, "finish_reason": "stop"}]}')
    {'text': 'B', 'finish_reason': 'stop', 'model': 'm-1', 'prompt_tokens': None, 'completion_tokens': None}
    """
    try:
        value = without_key(json.loads(data.decode("utf-8-sig")), key)
    except (ValueError, RecursionError):
        raise BadReply(f"the reply is not JSON (it begins with {without_key(data.decode('utf-8', 'replace'), key)[:40]!r})") from None
    if not isinstance(value, dict):
        raise BadReply(f"the reply is not an object but {type(value).__name__}")
    if value.get("error"):
        raise BadReply(f"the reply is an error: {error_message(value)}")
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply("the reply has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {"content": choice.get("text")}
    text = message.get("content")
    if isinstance(text, list):  # parts, as some servers write them
        text = "".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    if text is None and isinstance(message.get("refusal"), str):
        text = message["refusal"]
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    counts = {name: count if isinstance(count := usage.get(name), int) and not isinstance(count, bool) and count >= 0 else None
              for name in ("prompt_tokens", "completion_tokens")}
    ended = choice.get("finish_reason")
    reply = {"text": utf8(text) if isinstance(text, str) else "", "finish_reason": ended[:40] if isinstance(ended, str) else None,
             "model": value["model"][:200] if isinstance(value.get("model"), str) else None, **counts}
    if isinstance(value.get("system_fingerprint"), str):
        reply["system_fingerprint"] = value["system_fingerprint"][:200]
    if not isinstance(text, str) and ended not in ("length", "content_filter"):
        raise BadReply("the reply has no text", reply | {"finish_reason": "no text"})
    return reply


def error_message(value: Any, longest: int = 300) -> str:
    """The server's own words in an error body, on one line."""
    if isinstance(value, dict) and "error" in value:
        value = value["error"]
    if isinstance(value, dict):
        value = next((value[name] for name in ("message", "detail", "error", "code") if value.get(name)), value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    text = "".join(c if c.isprintable() else " " for c in utf8(text))
    return " ".join(text.split())[:longest] or "no message"


def without_key(value: Any, key: str) -> Any:
    """A value with the key, also percent-encoded, taken out of every text in it."""
    if len(key) < SHORTEST_SECRET:
        return value
    if isinstance(value, str):
        for form in (key, quote(key, safe=""), quote(key)):
            value = value.replace(form, "[key]")
        return value
    if isinstance(value, dict):
        return {without_key(name, key): without_key(item, key) for name, item in value.items()}
    return [without_key(item, key) for item in value] if isinstance(value, list) else value


# ----------------------------------------------------------------------------------------------------------------- store

class CallStore:
    """Answered calls in one JSONL file, {"key": hash of the request, "reply": ..., "crc32": ...} a line, each on the disk before it counts.

    A last line that was cut is dropped, any other damage is refused by its line. One process at a time. Closing sorts the file, so that it does not tell who was first.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UserError(f"{self.path}: another process is writing it; wait for it, or give another --out") from None
        self.replies: dict[str, dict] = {}
        self.new: list[dict] = []
        self.file.seek(0)
        good = 0
        for number, line in enumerate(self.file, 1):
            try:
                value = read_sealed(line)
                if not isinstance(value["key"], str) or not isinstance(value["reply"]["text"], str):
                    raise ValueError
                self.replies[value["key"]] = value["reply"]
            except (ValueError, KeyError, TypeError):
                if self.file.read(1) or line.endswith(b"\n"):
                    raise UserError(f"{self.path}:{number}: damaged; take that line out (its call is made again), or delete the file") from None
                break
            good += len(line)
        self.file.truncate(good)

    def add(self, key: str, reply: dict) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(sealed_line({"key": key, "reply": reply}).encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.replies[key] = reply
        self.new.append(reply)

    def close(self, order: Sequence[str] = ()) -> None:
        """Write the file anew, these keys first and others by key, if it is not so already."""
        first = list(dict.fromkeys(key for key in order if key in self.replies))
        keys = first + sorted(set(self.replies) - set(first))
        lines = [sealed_line({"key": key, "reply": self.replies[key]}).encode() for key in keys]
        self.file.seek(0)
        if self.file.read() != b"".join(lines):
            with atomic_write(self.path, "wb") as file:
                file.writelines(lines)
        self.file.close()


def usage(replies: Sequence[dict]) -> dict[str, Any]:
    """Counts over replies: tokens as the server counted them, why texts ended, which models answered.

    >>> usage([{"text": "B", "finish_reason": "stop", "model": "m-1", "prompt_tokens": 7, "completion_tokens": 1}])
    {'calls': 1, 'prompt_tokens': 7, 'completion_tokens': 1, 'without_counts': 0, 'finish_reasons': {'stop': 1}, 'models': ['m-1']}
    """
    return {"calls": len(replies), **{name: sum(reply.get(name) or 0 for reply in replies) for name in ("prompt_tokens", "completion_tokens")},
            "without_counts": sum(None in (reply.get("prompt_tokens"), reply.get("completion_tokens")) for reply in replies),
            "finish_reasons": dict(sorted(Counter(reply.get("finish_reason") or "not given" for reply in replies).items())),
            "models": sorted({reply["model"] for reply in replies if reply.get("model")})}
