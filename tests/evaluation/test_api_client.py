"""A model behind an API: against a server on loopback that fails in every way it can, and against `transformers serve`."""
import argparse
import gzip
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mmed.eval import main
from mmed.evaluation import api_client
from mmed.evaluation.results import load_results
from mmed.prompts import build_few_shot, build_messages, build_target, pick_examples, read_benchmark
from mmed.utils.errors import UsageError, UserError

pytest.importorskip("openai")
KEY = "sk-canary-0123456789/abc+DEF=tail"
FILES = {"predictions.jsonl", "results.json", "multi_choice_results.csv", "rationale_results.csv", "accuracy_metric.csv",
         "rationale_similarity_metric.csv", "samples_mmedbench_english.jsonl", "samples_mmedbench_japanese.jsonl", "api_calls.jsonl"}


# ------------------------------------------------------------------------------------------------------------ the server

class Stub(ThreadingHTTPServer):
    """Answers a pure function of the request; `fault(body, time)` names what goes wrong at the time-th try of a request."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, fault=lambda body, tries: None, answer=None, delay: float = 0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.answer, self.delay = fault, answer or (lambda body: "answer to " + prompt_of(body)), delay
        self.lock = threading.Lock()
        self.tries, self.good = Counter(), Counter()
        self.seen: list[tuple[float, str, dict, dict]] = []  # time, path, headers, body
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *arguments):  # a client that was killed is nothing to tell
        pass


def prompt_of(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = json.dumps(body, sort_keys=True)
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, {name.lower(): text for name, text in self.headers.items()}, body))
            self.server.tries[name] += 1
            tries = self.server.tries[name]
        fault = self.server.fault(body, tries)
        time.sleep(self.server.delay)
        text = self.server.answer(body)
        choice = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        reply = {"id": f"x{random.random()}", "model": body["model"] + "-0613", "choices": [choice | {"index": 0, "finish_reason": "stop"}],
                 "usage": {"prompt_tokens": len(prompt_of(body)), "completion_tokens": len(text)}}
        try:
            if fault is None:
                self.send(200, reply)
                with self.server.lock:
                    self.server.good[name] += 1
            else:
                fault(self, reply)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, status: int, value, headers: dict | None = None, kind: str = "application/json", cut: int = 0):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for header, text in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(header, text)
        self.end_headers()
        self.wfile.write(data[:len(data) - cut])
        self.wfile.flush()

    def reset(self):
        """End the connection with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.close_connection = True
        self.connection.close()


def error(status: int, message: str = "no", headers: dict | None = None, **more):
    return lambda handler, reply: handler.send(status, {"error": {"message": message} | more}, headers)


def changed(**more):
    return lambda handler, reply: handler.send(200, reply | more)


def broken_off(handler, reply):
    handler.send(200, reply, cut=20)
    handler.reset()


def slow(handler, reply):
    data = json.dumps(reply).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)


# what the server does at the first try -> what the reason says when it does nothing else
FAULTS = {
    "429": (error(429), "status 429"),
    "408": (error(408), "status 408"),
    "500": (error(500), "status 500"),
    "502 as HTML": (lambda handler, reply: handler.send(502, b"<html>Bad gateway</html>", kind="text/html"), "status 502"),
    "503 without a body": (lambda handler, reply: handler.send(503, b""), "status 503"),
    "504": (error(504), "status 504"),
    "reset before headers": (lambda handler, reply: handler.reset(), "the connection failed"),
    "reset in mid-body": (broken_off, "the connection failed"),
    "truncated JSON": (lambda handler, reply: handler.send(200, json.dumps(reply).encode()[:-20]), "not JSON"),
    "HTML instead of JSON": (lambda handler, reply: handler.send(200, b"<html>hello</html>", kind="text/html"), "not JSON"),
    "a list": (lambda handler, reply: handler.send(200, [1]), "not an object"),
    "100,000 brackets": (lambda handler, reply: handler.send(200, b"[" * 100_000), "not JSON"),
    "no choices": (changed(choices=[]), "no choices"),
    "null choices": (changed(choices=None), "no choices"),
    "200 with an error": (lambda handler, reply: handler.send(200, {"error": {"message": "overloaded", "code": 529}}), "overloaded"),
    "not gzip": (lambda handler, reply: handler.send(200, reply, {"Content-Encoding": "gzip"}), "the connection failed"),
    "a reply without end": (lambda handler, reply: handler.send(200, b" " * (api_client.MAX_REPLY_BYTES + 1)), "longer than"),
    "hang": (lambda handler, reply: time.sleep(1.2), "no reply in 0.4 seconds"),
    "one byte at a time": (slow, "no whole reply in 0.4 seconds"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(api_client, "FIRST_WAIT", 0.01)
    for name in list(os.environ):
        if name.startswith("OPENAI_"):
            monkeypatch.delenv(name)


def stub_server(stub: Stub, **more) -> api_client.Server:
    return api_client.Server("m", stub.url, **{"options": {"temperature": 0, "seed": 0}, "timeout": 20.0} | more)


def ask(stub: Stub, path: Path, prompts, **more) -> list[str]:
    server = stub_server(stub, **more)
    store = api_client.CallStore(path)
    try:
        return [reply["text"] for reply in api_client.ask(server, [api_client.request(server, prompt, 9) for prompt in prompts], store)]
    finally:
        store.close()


# ------------------------------------------------------------------------------------------------------------------- ask

def test_answers_come_in_order_equal_requests_are_asked_once_and_stored_ones_never_again(tmp_path):
    stub = Stub(delay=0.02)
    prompts = [f"question {i % 17} \u2028 é 熱" for i in range(40)]
    expected = ["answer to " + prompt for prompt in prompts]
    assert ask(stub, tmp_path / "calls", prompts, concurrency=8) == expected
    assert len(stub.seen) == 17 and set(stub.tries.values()) == {1}
    assert ask(stub, tmp_path / "calls", prompts + ["new"], concurrency=3) == [*expected, "answer to new"]
    assert len(stub.seen) == 18
    assert len((tmp_path / "calls").read_bytes().splitlines()) == 18


def test_calls_run_side_by_side_and_not_more_than_allowed(tmp_path):
    now, most, lock = [0], [0], threading.Lock()

    def fault(body, tries):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    ask(Stub(fault), tmp_path / "calls", [str(i) for i in range(20)], concurrency=5)
    assert most[0] == 5


def test_no_thread_asks_on_before_its_answer_is_on_the_disk(tmp_path, monkeypatch):
    """A slow disk: what a kill would lose is never more than the calls under way."""
    stub, lost = Stub(), []
    add = api_client.CallStore.add

    def slow(self, key, reply):
        time.sleep(0.02)
        lost.append(sum(stub.good.values()) - len(self.replies))
        add(self, key, reply)

    monkeypatch.setattr(api_client.CallStore, "add", slow)
    ask(stub, tmp_path / "calls", [str(i) for i in range(40)], concurrency=4)
    assert len(lost) == 40 and max(lost) <= 4


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_survived_and_one_that_stays_is_named(name, tmp_path):
    fault, reason = FAULTS[name]
    timeout = 0.4 if reason.endswith("0.4 seconds") else 20.0
    stub = Stub(lambda body, tries: fault if tries == 1 and prompt_of(body) != "first" else None)
    assert ask(stub, tmp_path / "calls", ["first", "second"], timeout=timeout, concurrency=1) == ["answer to first", "answer to second"]
    assert sorted(stub.tries.values()) == [1, 2]
    stub = Stub(lambda body, tries: fault)
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        ask(stub, tmp_path / "other", ["first"], timeout=timeout, retries=1)
    assert "(2 tries)" in str(caught.value) and "\n" not in str(caught.value)
    assert list(stub.tries.values()) == [2]


@pytest.mark.parametrize("after, least, most", [("1", 1.0, 2.5), ("date", 0.8, 4.0), (None, 0.0, 0.6), ("0", 0.0, 0.6), ("soon", 0.0, 0.6)])
def test_retry_after_is_honoured_by_all_callers(after, least, most, tmp_path):
    def fault(body, tries):
        value = formatdate(time.time() + 2, usegmt=True) if after == "date" else after
        return error(429, headers={"Retry-After": value} if value else {}) if len(stub.seen) == 1 else None

    stub = Stub(fault)
    ask(stub, tmp_path / "calls", [str(i) for i in range(3)], concurrency=1)
    assert least <= stub.seen[1][0] - stub.seen[0][0] <= most


def test_a_wait_longer_than_the_limit_ends_the_run_and_keeps_what_was_answered(tmp_path):
    stub = Stub(lambda body, tries: error(429, headers={"Retry-After": "86400"}) if prompt_of(body) == "3" else None)
    with pytest.raises(UserError, match="asks to wait 86,400 seconds"):
        ask(stub, tmp_path / "calls", [str(i) for i in range(6)], concurrency=1)
    stub.fault = lambda body, tries: None
    ask(stub, tmp_path / "calls", [str(i) for i in range(6)])
    assert set(stub.good.values()) == {1} and len(stub.good) == 6


def test_at_30_percent_failures_every_request_is_answered_and_none_twice(tmp_path):
    rng = random.Random(7)
    kinds = [fault for name, (fault, reason) in FAULTS.items() if not reason.endswith("seconds") and "longer" not in reason]
    stub = Stub(lambda body, tries: rng.choice(kinds) if rng.random() < 0.3 else None)
    prompts = [f"q{i}" for i in range(250)]
    assert ask(stub, tmp_path / "calls", prompts, concurrency=8, retries=20) == ["answer to " + prompt for prompt in prompts]
    assert set(stub.good.values()) == {1} and max(stub.tries.values()) <= 21 and len(stub.seen) > 300
    assert len((tmp_path / "calls").read_bytes().splitlines()) == 250


@pytest.mark.parametrize("fault, message", [
    (error(400, "Unsupported parameter: 'seed'"), r"\(400\) refuses the request: Unsupported parameter: 'seed'; leave out .* --server-option NAME=none"),
    (error(401, "bad key"), r"\(401\) refuses the key or the model: bad key; .*--api-key-env"),
    (error(403, "no"), r"\(403\) refuses the key or the model"),
    (error(404, "no such model"), r"\(404\) has no model 'm' or no /chat/completions: no such model; check --api, and --base-url, which usually ends in /v1"),
    (error(402, "pay"), r"\(402\) has no quota left: pay"),
    (error(422, "temperature"), r"\(422\) refuses the request: temperature"),
    (error(429, "You exceeded your quota", code="insufficient_quota"), r"\(429\) has no quota left: You exceeded"),
    (error(418, "a\nb\x1b[31m"), r"\(418\) refuses the request: a b \[31m"),
    (lambda handler, reply: handler.send(307, b"", {"Location": "http://127.0.0.1:9/v1"}), r"\(307\) wants to send us elsewhere"),
])
def test_what_asking_again_does_not_cure_is_one_line_at_once(fault, message, tmp_path):
    stub = Stub(lambda body, tries: fault)
    with pytest.raises(UserError, match=message) as caught:
        ask(stub, tmp_path / "calls", ["a", "b", "c"], concurrency=1)
    assert "\n" not in str(caught.value) and len(stub.seen) == 1


def test_a_server_that_is_not_there_is_said_after_three_tries(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    store = api_client.CallStore(tmp_path / "calls")
    server = api_client.Server("m", url)
    with pytest.raises(UserError, match=r"item 7: http.*/v1: the connection failed \(ConnectError: .*\) \(3 tries\)"):
        api_client.ask(server, [api_client.request(server, "x", 9)], store, labels=["item 7"])


def test_an_answer_may_be_empty_but_only_for_a_reason(tmp_path):
    def with_message(finish, **message):
        return changed(choices=[{"message": message, "finish_reason": finish}])

    for fault, text, reason, tries in (
            (with_message("length", content=None), "", "length", 1), (with_message("content_filter", content=None), "", "content_filter", 1),
            (with_message("stop", content=""), "", "stop", 1), (with_message("stop", content=None, refusal="I can't"), "I can't", "stop", 1),
            (with_message("stop", content=None), "", "no text", 3), (with_message(None, content=[{"type": "text", "text": "B"}]), "B", None, 1),
            (error(400, "filtered", code="content_filter"), "", "content_filter", 1)):
        stub = Stub(lambda body, tries, fault=fault: fault)
        server = stub_server(stub, retries=2)
        store = api_client.CallStore(tmp_path / f"calls{text}{reason}")
        reply = api_client.ask(server, [api_client.request(server, "x", 9)], store)[0]
        assert (reply["text"], reply["finish_reason"], len(stub.seen)) == (text, reason, tries)


def test_gzip_ten_megabytes_and_lone_surrogates_are_read(tmp_path):
    big = "word " * 2_000_000
    stub = Stub(lambda body, tries: lambda handler, reply: handler.send(200, gzip.compress(json.dumps(reply).encode()), {"Content-Encoding": "gzip"}),
                answer=lambda body: big if prompt_of(body) == "big" else "\ud800B")
    first = ask(stub, tmp_path / "calls", ["big", "small"])
    assert first == [big, "?B"] and ask(stub, tmp_path / "calls", ["big", "small"]) == first and len(stub.seen) == 2


def test_the_hash_of_a_request_changes_with_each_of_its_parts():
    base = {"model": "m", "base_url": "http://a/v1", "options": {"temperature": 0, "seed": 0}}
    servers = [api_client.Server(**base), api_client.Server(**base | {"model": "n"}), api_client.Server(**base | {"base_url": "http://b/v1"}),
               api_client.Server(**base | {"options": {"temperature": 0, "seed": 1}}), api_client.Server(**base | {"options": {"seed": 0}}),
               api_client.Server(**base | {"completions": True})]
    keys = [api_client.request_key(server, api_client.request(server, "x", 9)) for server in servers]
    keys += [api_client.request_key(servers[0], api_client.request(servers[0], *more)) for more in (("y", 9), ("x", 8), ([{"role": "system", "content": "x"}], 9))]
    assert len(set(keys)) == len(keys) == 9
    patient = api_client.Server(**base, concurrency=1, retries=1, timeout=1, key_env="X", key="secret-secret")
    assert api_client.request_key(patient, api_client.request(patient, "x", 9)) == keys[0]  # how long we wait does not change the answer


# ----------------------------------------------------------------------------------------------------------------- store

@pytest.mark.parametrize("seed", range(5))
def test_a_store_cut_anywhere_loses_only_its_last_line(tmp_path, seed):
    store = api_client.CallStore(tmp_path / "calls")
    for i in range(6):
        store.add(f"key{i}", {"text": "é\u2028\n" * i})
    store.close()
    whole = (tmp_path / "calls").read_bytes()
    cut = random.Random(seed).randrange(len(whole))
    (tmp_path / "calls").write_bytes(whole[:cut])
    store = api_client.CallStore(tmp_path / "calls")
    assert len(store.replies) == whole[:cut].count(b"\n")
    store.add("key9", {"text": "new"})
    store.file.close()  # killed again, before the file was put in order
    assert set(api_client.CallStore(tmp_path / "calls").replies) == {f"key{i}" for i in range(whole[:cut].count(b"\n"))} | {"key9"}


def test_an_answer_that_was_changed_on_the_disk_is_refused_by_its_line(tmp_path):
    """One bit anywhere: the line is named, or (a cut of the last line's end) its call is made again; no answer is taken that was not given."""
    store, rng = api_client.CallStore(tmp_path / "calls"), random.Random()
    given = {f"key{i}": {"text": f"Answer: {letter}", "finish_reason": "stop"} for i, letter in enumerate("ABCDABCD")}
    for key, reply in given.items():
        store.add(key, reply)
    store.close()
    whole = (tmp_path / "calls").read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        (tmp_path / "calls").write_bytes(data)
        try:
            store = api_client.CallStore(tmp_path / "calls")
            assert store.replies.items() <= given.items(), (place, bytes(data))
            store.close()
        except UserError as error:
            refused += 1
            # a line end that is none any more joins two lines, one that should not be there makes two of one
            assert re.search(rf"calls:({whole[:place].count(10) + 1}|{whole[:place].count(10) + 2}): damaged", str(error)), (place, error)
    assert refused > 200


def test_a_damaged_line_is_named_and_a_second_process_is_kept_out(tmp_path):
    (tmp_path / "calls").write_text('{"key": "a", "reply": {"text": "x"}}\n{"key": "b"}\n')
    with pytest.raises(UserError, match=r"calls:2: damaged"):
        api_client.CallStore(tmp_path / "calls")
    store = api_client.CallStore(tmp_path / "more")
    with pytest.raises(UserError, match="another process"):
        api_client.CallStore(tmp_path / "more")
    store.close()


# ------------------------------------------------------------------------------------------------------------------ keys

def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    api_client.add_api_options(parser)
    return parser.parse_args(["--api", "m", *arguments])


@pytest.mark.parametrize("arguments, environment, message", [
    ([], {}, "OPENAI_API_KEY is not set"),
    (["--api-key-env", "OTHER"], {"OPENAI_API_KEY": KEY}, "OTHER is not set"),
    (["--api-key-env", KEY], {}, "expected the name of an environment variable"),
    ([], {"OPENAI_API_KEY": KEY + "\nX: y"}, "does not hold a key"),
    ([], {"OPENAI_API_KEY": KEY + "’"}, "does not hold a key"),
    (["--base-url", f"https://user:{KEY.replace('/', '')}@host/v1"], {}, "keys come from the environment only"),
    (["--base-url", f"https://host/v1?api-key={KEY}"], {}, "keys come from the environment only"),
    (["--base-url", "ftp://host"], {}, "expected http"),
    (["--base-url", "http://[::1"], {}, "not a URL"),
    (["--base-url", "localhost:8000/v1"], {}, "expected http"),
    (["--base-url", "http://h/v1", "--server-option", "stream=true"], {}, "'stream' is set by this command"),
    (["--base-url", "http://h/v1", "--server-option", "seed"], {}, "expected NAME=VALUE"),
    (["--base-url", "http://h/v1", "--concurrency", "0"], {}, "--concurrency must be 1 or more"),
])
def test_flags_that_cannot_be_used_are_one_line_without_the_key(arguments, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as caught:
        api_client.server_from(options(*arguments))
    assert "canary" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_is_sent_its_own_key_and_no_other(tmp_path, monkeypatch, capsys):
    stub = Stub()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-canary-1")
    monkeypatch.setenv("MY_KEY", "local-canary-2")
    assert api_client.server_from(options()).key == KEY
    for arguments in ([], ["--api-key-env", "MY_KEY"]):
        server = api_client.server_from(options("--base-url", stub.url, *arguments))
        api_client.ask(server, [api_client.request(server, str(arguments), 9)], api_client.CallStore(tmp_path / str(len(arguments))))
    sent = [headers["authorization"] for _, _, headers, _ in stub.seen]
    assert sent == ["Bearer none", "Bearer local-canary-2"] and "admin" not in str(stub.seen) and KEY not in str(stub.seen)
    assert "canary" not in repr(server) and "canary" not in json.dumps(server.facts())
    api_client.server_from(options("--base-url", "http://far.example/v1", "--api-key-env", "MY_KEY"))
    assert "unencrypted" in capsys.readouterr().err


def echo(status: int, kind: str):
    """Answers that hold the key as the server got it."""
    def fault(handler, reply):
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        if kind == "html":
            handler.send(status, f"<p>{'x' * 20}{key}</p>".encode(), kind="text/html")
        else:
            handler.send(status, {"error": {"message": "y" * 280 + " " + key, "param": key, "code": key}, "detail": key}, {"X-Key": key})
    return fault


@pytest.mark.parametrize("fault", [echo(401, "json"), echo(400, "json"), echo(500, "json"), echo(500, "html"), echo(200, "html"), echo(200, "json"),
                                   echo(404, "html")])
def test_no_error_holds_any_part_of_a_key_that_the_server_sends_back(fault, tmp_path):
    stub = Stub(lambda body, tries: fault)
    with pytest.raises(UserError) as caught:
        ask(stub, tmp_path / "calls", ["x"], key=KEY, key_env="K", retries=1)
    shown = str(caught.value) + repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert "canary" not in shown and "sk-" not in shown and (tmp_path / "calls").read_bytes() == b""


def test_a_bug_keeps_its_traceback_but_not_the_key(tmp_path, monkeypatch):
    def bug(data, key):
        raise ZeroDivisionError(f"because of {key}")

    monkeypatch.setattr(api_client, "read_reply", bug)
    with pytest.raises(RuntimeError, match=r"(?s)in bug.*ZeroDivisionError: because of \[key\]") as caught:
        ask(Stub(), tmp_path / "calls", ["x"], key=KEY, key_env="K")
    assert "canary" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ evaluation

@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("exams"), random.Random(3)
    words = "fever cough pain liver heart drug dose blood lung brain".split()
    for part in ("Test", "Train"):
        (root / part).mkdir()
        for language, count in (("English", 9), ("Japanese", 7)):
            with open(root / part / f"{language}.jsonl", "w", encoding="utf-8") as file:
                for i in range(count):
                    file.write(json.dumps({"question": f"{part} {i} " + " ".join(rng.choices(words, k=9)) + "?\n熱",
                                           "options": {letter: f"{letter} " + " ".join(rng.sample(words, 2)) for letter in "ABCD"},
                                           "answer_idx": rng.choice(["A", "B", "C", "A,D"]), "rationale": " ".join(rng.choices(words, k=9))}) + "\n")
    return root


def evaluate(stub: Stub, exams: Path, out: Path, *more: str) -> None:
    main(["--api", "m", "--base-url", stub.url, "--data", str(exams / "Test"), "--out", str(out), *more])


def test_an_evaluation_asks_what_local_chat_asks_and_scores_what_comes_back(exams, tmp_path):
    items = {item.key: item for item in read_benchmark(exams / "Test")}
    train = read_benchmark(exams / "Train")
    targets = {}
    for item in items.values():
        for rationale in (False, True):
            targets[build_messages(item, rationale, "clean", pick_examples(train, item, 2, 5, rationale))[-1]["content"]] = build_target(item, rationale)
    stub = Stub(answer=lambda body: targets[prompt_of(body)] + " And some more.")
    evaluate(stub, exams, tmp_path / "out", "--shots", "2", "--train", str(exams / "Train"), "--seed", "5", "--server-option", "top_p=0.5")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    own, rows = load_results(tmp_path / "out")
    rows = list(rows)
    assert len(rows) == 32 and {row["status"] for row in rows} == {"strict"} and own["summary"]["macro"]["accuracy"]["answer"]["value"] == 1.0
    assert own["summary"]["macro"]["text"]["BLEU-4|nltk-method1"]["value"] == 1.0 and rows[0]["finish_reason"] == "stop"
    expected = [{"messages": build_messages(item, rationale, "clean", pick_examples(train, item, 2, 5, rationale)), "model": "m", "temperature": 0,
                 "seed": 5, "max_tokens": 512, "top_p": 0.5} for item in items.values() for rationale in (False, True)]
    assert sorted(map(str, (dict(sorted(body.items())) for *_, body in stub.seen))) == sorted(str(dict(sorted(body.items()))) for body in expected)
    told = own["settings"]["api"]
    assert told["options"] == {"temperature": 0, "seed": 5, "top_p": 0.5} and told["limit"] == "max_tokens" and told["models"] == ["m-0613"]
    assert told["calls"] == 32 and told["completion_tokens"] == sum(row["new_tokens"] for row in rows) and told["finish_reasons"] == {"stop": 32}
    assert "slots" not in own["settings"] and own["facts"]["model"]["base_url"] == stub.url


def test_completions_are_asked_with_the_prompts_of_local_decoding(exams, tmp_path):
    stub = Stub(answer=lambda body: "###Answer: OPTION B IS CORRECT.\n\n### Instruction: more")
    evaluate(stub, exams, tmp_path / "out", "--completions", "--style", "official", "--mode", "answer", "--stop", "answer", "--server-option", "seed=none")
    items = read_benchmark(exams / "Test")
    assert {body["prompt"] for *_, body in stub.seen} == {build_few_shot(item, [], False, "official") for item in items}
    assert {path for _, path, *_ in stub.seen} == {"/v1/completions"} and all(body["max_tokens"] == 1000 and "seed" not in body for *_, body in stub.seen)
    _, rows = load_results(tmp_path / "out")
    assert {row["text"] for row in rows} == {"###Answer: OPTION B IS CORRECT."}


def test_scoring_anew_costs_nothing_and_two_runs_are_identical(exams, tmp_path, capsys):
    stub = Stub(delay=0.01)
    evaluate(stub, exams, tmp_path / "a", "--concurrency", "8")
    assert len(stub.seen) == 32
    evaluate(stub, exams, tmp_path / "b", "--concurrency", "1")
    assert len(stub.seen) == 64
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} and set(files) == FILES
    evaluate(stub, exams, tmp_path / "a")
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"another run: .*stop = answer \(now end\)"):
        evaluate(stub, exams, tmp_path / "a", "--stop", "end")
    evaluate(stub, exams, tmp_path / "a", "--stop", "end", "--force")
    assert len(stub.seen) == 64
    assert "32 answers, 0 of them asked for now" in capsys.readouterr().err


def command(stub: Stub, exams: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "mmed.eval", "--api", "m", "--base-url", stub.url, "--data", str(exams / "Test"), "--out", str(out), *more]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_killed_asks_only_for_what_is_missing(exams, tmp_path, kill):
    stub = Stub(delay=0.05)
    process = subprocess.Popen(command(stub, exams, tmp_path / "out", "--concurrency", "3"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and len(stub.seen) < 12 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(kill)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (-9 if kill == signal.SIGKILL else 75), errors
    if kill != signal.SIGKILL:
        assert errors.strip() == "stopped"
    stub.delay = 0.0
    evaluate(stub, exams, tmp_path / "out")
    assert len(stub.tries) == 32 and sum(stub.good.values()) - 32 <= (3 if kill == signal.SIGKILL else 0)  # the calls under way at the kill
    evaluate(stub, exams, tmp_path / "clean")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == \
        {path.name: path.read_bytes() for path in (tmp_path / "clean").iterdir()}


def test_the_key_is_in_no_output_file_log_or_argument(exams, tmp_path):
    """A server that sends the key back in every text; the client's own log switched on; then one that refuses, key in the body."""
    stub = Stub(lambda body, tries: echo(500, "json") if tries == 1 else None)
    environment = {**os.environ, "OPENAI_API_KEY": "unused", "CANARY_KEY": KEY, "OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1"}
    stub.answer = lambda body: f"Answer: B. Your key is {KEY}"
    done = subprocess.run(command(stub, exams, tmp_path / "out", "--api-key-env", "CANARY_KEY", "--limit", "2"), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert stub.seen[0][2]["authorization"] == f"Bearer {KEY}"
    stub.fault = lambda body, tries: echo(401, "json")
    failed = subprocess.run(command(stub, exams, tmp_path / "out2", "--api-key-env", "CANARY_KEY"), capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and "[key]" not in failed.stdout
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Your key is [key]" in files
    for text in (done.stdout, done.stderr, failed.stdout, failed.stderr, files.decode()):
        assert "canary" not in text and "sk-" not in text


@pytest.mark.parametrize("arguments, message", [
    (["--api", "m", "--model", "x"], "give either --model FOLDER or --api MODEL_NAME"),
    ([], "give either --model FOLDER or --api MODEL_NAME"),
    (["--api", "m", "--base-url", "http://127.0.0.1:9/v1", "--scoring", "loglikelihood"], "an API does not tell how likely a given text is"),
    (["--api", "m", "--base-url", "http://127.0.0.1:9/v1", "--scoring", "both"], "an API does not tell how likely a given text is"),
    (["--api", "m", "--base-url", "http://127.0.0.1:9/v1", "--adapter", "x"], "--adapter: goes with --model"),
])
def test_flags_of_an_evaluation_that_do_not_go_together(exams, tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        main([*arguments, "--data", str(exams / "Test"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_help_says_when_the_network_is_used(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "The network is used only with --api." in " ".join(capsys.readouterr().out.split())


# -------------------------------------------------------------------------------------------------------- a real server

SERVE = """
import sys
from transformers.cli.transformers import main
sys.argv = ["transformers", "serve", sys.argv[1], "--host", "127.0.0.1", "--port", sys.argv[2], "--device", "cpu"]
main()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A random Llama with a byte-level tokenizer in a folder, and `transformers serve` before it: (folder, URL)."""
    for package in ("transformers", "fastapi", "uvicorn", "tokenizers"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("served")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(["###Answer: OPTION A IS CORRECT. ###Rationale: fever cough pain liver heart drug"] * 5, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                 num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, bos_token_id=0,
                                 eos_token_id=1)).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), str(port)], env={**os.environ, "HF_HUB_OFFLINE": "1"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 180
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, "transformers serve does not come up"
                time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def test_a_real_server_writes_what_local_decoding_of_the_same_folder_writes(served, exams, tmp_path):
    folder, url = served
    both = ["--data", str(exams / "Test"), "--max_new_tokens", "20", "--limit", "3", "--shots", "1", "--train", str(exams / "Train")]
    main(["--model", str(folder), "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path / "local"), *both])
    main(["--api", str(folder), "--base-url", url, "--completions", "--out", str(tmp_path / "api"), *both])
    local, remote = (list(load_results(tmp_path / name)[1]) for name in ("local", "api"))
    assert len(local) == 12 and len({row["text"] for row in local}) > 6
    for row, other in zip(local, remote, strict=True):
        assert other.pop("finish_reason") in ("length", "stop") and row.pop("new_tokens") == other.pop("new_tokens")
        assert row == other


def test_a_real_server_answers_chat_and_names_a_model_that_it_does_not_have(served, exams, tmp_path):
    folder, url = served
    main(["--api", str(folder), "--base-url", url, "--data", str(exams / "Test"), "--out", str(tmp_path / "out"), "--max_new_tokens", "8", "--limit", "2"])
    own, rows = load_results(tmp_path / "out")
    assert len(list(rows)) == 8 and own["settings"]["api"]["completion_tokens"] > 0 and str(folder) in own["settings"]["api"]["models"][0]
    with pytest.raises(UserError, match=r"\((400|404|422)\)|tries") as caught:
        main(["--api", "no/such-model", "--base-url", url, "--data", str(exams / "Test"), "--out", str(tmp_path / "none"), "--retries", "0"])
    assert "\n" not in str(caught.value)
