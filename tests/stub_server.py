"""An OpenAI-compatible server on the loopback interface, whose replies and faults a test decides."""
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(ThreadingHTTPServer):
    """Replies `answer(body)`; `fault(body, tries)` may return (status, object, headers) instead."""

    daemon_threads = True

    def __init__(self, fault=lambda body, tries: None, answer=lambda body: "answer to " + prompt_of(body)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.answer, self.lock = fault, answer, threading.Lock()
        self.tries: Counter = Counter()
        self.seen: list[tuple[str, str, dict]] = []  # path, authorization, body
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *arguments):  # a client that was killed
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, self.headers["Authorization"], body))
            self.server.tries[prompt_of(body)] += 1
            tries = self.server.tries[prompt_of(body)]
        fault = self.server.fault(body, tries)
        status, value, headers = fault or (200, reply(self.server.answer(body), "prompt" in body), {})
        data = json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(data)} | headers
        for name, text in headers.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(data)


def prompt_of(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def reply(text, completions=False, finish="stop", **message) -> dict:
    choice = {"text": text} if completions else {"message": {"role": "assistant", "content": text} | message}
    return {"model": "m-0613", "choices": [choice | {"index": 0, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def error(status, message, **more):
    return status, {"error": {"message": message} | more}, {"retry-after": "0.01"}
