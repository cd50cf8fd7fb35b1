"""Servers on the loopback interface; an OpenAI-compatible one, whose replies and faults a test decides."""
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *arguments):  # a client that was killed
        pass

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class LocalHandler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def respond(self, status: int, headers: dict, data: bytes):
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


class Stub(LocalServer):
    """Replies `answer(body)`; `fault(body, tries)` may return (status, object, headers) instead."""

    def __init__(self, fault=lambda body, tries: None, answer=lambda body: "answer to " + prompt_of(body)):
        self.fault, self.answer, self.lock = fault, answer, threading.Lock()
        self.tries: Counter = Counter()
        self.seen: list[tuple[str, str, dict]] = []  # path, authorization, body
        super().__init__(StubHandler)
        self.url += "/v1"


class StubHandler(LocalHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, self.headers["Authorization"], body))
            self.server.tries[prompt_of(body)] += 1
            tries = self.server.tries[prompt_of(body)]
        fault = self.server.fault(body, tries)
        status, value, headers = fault or (200, reply(self.server.answer(body), "prompt" in body), {})
        self.respond(status, {"Content-Type": "application/json"} | headers, json.dumps(value).encode())


def prompt_of(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def reply(text, completions=False, finish="stop", **message) -> dict:
    choice = {"text": text} if completions else {"message": {"role": "assistant", "content": text} | message}
    return {"model": "m-0613", "choices": [choice | {"index": 0, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def error(status, message, **more):
    return status, {"error": {"message": message} | more}, {"retry-after": "0.01"}
