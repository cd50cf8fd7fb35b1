"""A model behind an API: a loopback server that fails in every way it can."""
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from json_lines import write_lines
from stub_server import Stub, error, prompt_of, reply

from mmed.eval import main, parse_options
from mmed.evaluation import results
from mmed.evaluation.api_client import (
    CallStore,
    Server,
    answer_tokens,
    ask,
    parse_server_option,
    read_reply,
    request,
    request_key,
)
from mmed.evaluation.results import load_results
from mmed.prompts import build_few_shot, build_messages, build_target, read_benchmark
from mmed.utils.errors import UserError
from mmed.utils.files import write_json

pytest.importorskip("openai")


def asked(stub: Stub, tmp_path, prompts, **more) -> list[dict]:
    server = Server("m", stub.url, **({"retries": 2, "timeout": 5.0} | more))
    store = CallStore(tmp_path / "calls.jsonl")
    try:
        return ask(server, [request(server, prompt, 9) for prompt in prompts], store,
                   labels=[f"item {prompt}" for prompt in prompts])
    finally:
        store.file.close()


def test_replies_keep_their_order_and_no_request_is_paid_for_twice(tmp_path):
    stub, prompts = Stub(), ["a", "b", "a", "c"] + [str(i) for i in range(20)]
    replies = asked(stub, tmp_path, prompts)
    assert [one["text"] for one in replies] == [f"answer to {prompt}" for prompt in prompts]
    assert set(stub.tries.values()) == {1}
    assert asked(stub, tmp_path, ["c", "b", "new"])[1]["text"] == "answer to b"
    assert len(stub.seen) == 24 and replies[0]["completion_tokens"] == 2 and replies[0]["model"] == "m-0613"


@pytest.mark.parametrize("fault", [
    error(429, "slow down"), error(200, "overloaded", code=502),
    (200, {"choices": [{"finish_reason": "error", "error": {"code": 502}, "message": {"content": ""}}]}, {}),
    (200, ["no object"], {}), (200, reply(None), {}), (200, "<html>Bad gateway</html>", {}),
    (200, reply("", finish=None), {}), error(500, "busy"), (200, reply("A, be", finish="abort"), {}),
], ids=["429", "error", "error on the choice", "no object", "no text", "no JSON", "no end", "500", "abort"])
def test_a_temporary_fault_is_retried(tmp_path, fault):
    stub = Stub(lambda body, tries: fault if tries == 1 else None)
    assert asked(stub, tmp_path, ["q"])[0]["text"] == "answer to q"
    assert stub.tries["q"] == 2


def test_a_rate_limit_may_take_longer_than_the_retries_of_the_client(tmp_path):
    stub = Stub(lambda body, tries: error(429, "3 a minute") if tries < 9 else None)
    assert asked(stub, tmp_path, ["q"])[0]["text"] == "answer to q"  # 3 times 1 + 2 retries
    stub = Stub(lambda body, tries: error(429, "3 a minute"))
    with pytest.raises(UserError, match="429: 3 a minute; the quota is used up, or the rate limit"):
        asked(stub, tmp_path, ["other"])
    assert stub.tries["other"] == 9


@pytest.mark.parametrize("fault, tries, kind, reason", [
    (error(400, "filtered", code="content_filter"), 1, "content_filter", "400: filtered"),
    ((200, {"choices": [], "prompt_feedback": {"block_reason": "BAD"}}, {}), 1, "content_filter", "BAD"),
    ((200, {"choices": [{"error": {"message": "upstream failed"}}]}, {}), 3, "error", "upstream failed"),
    (error(503, "down"), 3, "rejected", "503: down"),
    (error(403, "your input was flagged"), 1, "rejected", "403: your input was flagged"),
    ((200, {"object": "error", "message": "too long"}, {}), 3, "error", "too long"),
], ids=["filtered", "blocked", "error in the reply", "503", "flagged by a moderator", "FastChat's errors"])
def test_one_question_without_an_answer_does_not_end_the_exam(tmp_path, fault, tries, kind, reason):
    stub = Stub(lambda body, n: fault if prompt_of(body) == "bad" else None)
    first, bad, last = asked(stub, tmp_path, ["a", "bad", "b"], concurrency=1)
    assert first["text"] == "answer to a" and last["text"] == "answer to b"
    assert bad["text"] == "" and bad["finish_reason"] == kind and reason in bad["error"]
    assert stub.tries["bad"] == tries
    stub.fault = lambda body, n: None  # a failure is no stored answer: the next start asks again
    assert asked(stub, tmp_path, ["a", "bad"])[1]["text"] == "answer to bad" and stub.tries["a"] == 1


@pytest.mark.parametrize("fault, message", [
    (error(401, "bad key"), "item q: .*401: bad key; check the key"),
    (error(429, "no quota", code="insufficient_quota"), "429: no quota; the quota"),
    (error(429, "no quota", code=429, type="insufficient_quota"), "429: no quota; the quota"),
    (error(400, "unknown field"), "no request was answered: 400: unknown field; --server_option NAME=none"),
    (None, "the connection failed"),
])
def test_a_fault_of_every_call_ends_the_run(tmp_path, fault, message):
    stub = Stub(lambda body, tries: fault)
    if not fault:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            stub.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=message):
        asked(stub, tmp_path, ["q"], retries=1)
    assert len(stub.seen) <= 2


def test_ten_failures_in_a_row_end_the_run_and_replies_are_kept(tmp_path):
    stub = Stub(lambda body, tries: error(400, "no") if prompt_of(body) != "0" else None)
    with pytest.raises(UserError, match="10 calls in a row failed, the last one because 400: no"):
        asked(stub, tmp_path, [str(i) for i in range(40)], concurrency=1)
    assert len(stub.seen) < 20 and len((tmp_path / "calls.jsonl").read_text().splitlines()) == 1


def test_a_server_that_filters_is_no_server_that_fails(tmp_path):
    filtered = error(400, "policy", code="content_filter")
    stub = Stub(lambda body, tries: filtered if 2 <= int(prompt_of(body)) < 20 else None)
    replies = asked(stub, tmp_path, [str(i) for i in range(24)], concurrency=1)
    assert sum(one["finish_reason"] == "content_filter" for one in replies) == 18
    assert replies[-1]["text"] == "answer to 23"


@pytest.mark.parametrize("value, text, reasoning", [
    (reply("", finish="length"), "", None), (reply("", finish="stop"), "", None),
    (reply(None, finish="content_filter: SAFETY"), "", None),
    (reply(None, reasoning_details=[{"text": "so A"}]), "", "[{'text': 'so A'}]"),
    (reply(None, refusal="I cannot."), "I cannot.", None),
    (reply([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", None),
    (reply([{"type": "thinking", "thinking": [{"type": "text", "text": "B?"}]},
            {"type": "reasoning", "text": "B?"}, {"type": "text", "text": "A"}]), "A", None),
    (reply(None, reasoning_content="so A"), "", "so A"),
    (reply("A", reasoning="so A"), "A", "so A"),
    (reply("lone \ud800"), "lone ?", None),
    (json.dumps(reply("A")), "A", None),  # JSON under another content type
    (reply([{"type": "thinking", "text": "B"}, {"text": "A"}, {"type": "refusal", "refusal": "!"}]), "A!",
     None),
])
def test_what_counts_as_an_answer(value, text, reasoning):
    found = read_reply(value)
    assert found["text"] == text and found.get("reasoning") == reasoning


def test_an_incomplete_last_line_is_dropped_and_other_damage_is_an_error(tmp_path):
    path = tmp_path / "calls.jsonl"
    store = CallStore(path)
    for key in "abc":
        store.add(key, {"text": key})
    with pytest.raises(UserError, match="another process"):
        CallStore(path)
    store.asked = ["c", "a"]
    store.close()
    lines = path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["key"] for line in lines] == ["c", "a", "b"]
    path.write_text("".join(lines)[:-5])
    assert set(CallStore(path).replies) == {"a", "c"}
    path.write_text(lines[0] + lines[1].replace('"text": "a"', '"text": "x"') + lines[2])
    with pytest.raises(UserError, match=r"calls\.jsonl:2: damaged"):
        CallStore(path)


def test_the_hash_of_a_request_changes_with_each_of_its_parts():
    base = {"model": "m", "base_url": "http://x/v1", "options": {"temperature": 0}}
    changes = [{}, {"model": "n"}, {"base_url": "http://y/v1"}, {"completions": True}, {"options": {"n": 1}}]
    keys = {request_key(server, request(server, text, limit))
            for server in (Server(**(base | change)) for change in changes)
            for text in ("p", "q") for limit in (8, 9)}
    assert len(keys) == 4 * len(changes)


def test_the_tokens_of_an_answer_may_begin_in_the_prompt():
    echoed = {"tokens": ["Why", ":#", "\u2581A", "!"], "logprobs": [None, -1.0, -2.0, -9.0]}
    assert answer_tokens(echoed, "# A") == ([":#", "\u2581A"], [-1.0, -2.0])


@pytest.mark.parametrize("given, value", [("top_p=0.9", 0.9), ("effort=low", "low"), ("seed=none", None)])
def test_options_of_a_server_are_json_or_texts(given, value):
    assert parse_server_option(given) == (given.partition("=")[0], value)


def test_a_server_is_sent_its_own_key_which_is_stored_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    monkeypatch.setenv("MINE", "sk-canary")
    stub = Stub(lambda body, tries: error(400, "sk-canary?") if "bad" in prompt_of(body) else None,
                lambda body: "Your key is sk-canary. The answer is B.")
    for more, sent in (([], "none"), (["--api_key_env", "MINE"], "sk-canary")):
        config = parse_options(["--api", "m", "--data", "x", "--out", "x", "--base_url", stub.url, *more])
        server, store = config.server, CallStore(tmp_path / "calls.jsonl")
        requests = [request(server, f"{word} {sent[:2]}", 9) for word in ("question", "bad")]
        replies = ask(server, requests, store, labels=["item", "item"])
        store.close()
        assert stub.seen[-1][1] == f"Bearer {sent}"
    assert [one["text"] for one in replies] == ["Your key is [key]. The answer is B.", ""]
    stored = (tmp_path / "calls.jsonl").read_text().splitlines()[0]
    assert "canary" not in f"{replies}{server.facts()}{server}{stored}"
    for wrong in ("sk-\u2026y", "sk\ny"):
        monkeypatch.setenv("MINE", wrong)
        with pytest.raises(UserError, match="characters that no key has"):
            parse_options(["--api", "m", "--data", "x", "--out", "x", "--api_key_env", "MINE"])


@pytest.fixture
def exam(tmp_path):
    for language in ("English", "Japanese"):
        lines = [{"question": f"{language} {i}?", "options": {"A": "x", "B": "y", "C": "z"},
                  "answer_idx": "ABC"[i % 3], "rationale": "the cat sat"} for i in range(4)]
        write_lines(tmp_path / "Test" / f"{language}.jsonl", *lines)
    return tmp_path / "Test"


def solver(exam):
    """Answers every prompt with its target."""
    targets = {build_messages(item, rationale)[0]["content"]: build_target(item, rationale)
               for item in read_benchmark(exam) for rationale in (False, True)}
    return lambda body: targets[prompt_of(body)]


def command(stub, exam, *more) -> list[str]:
    out = str(exam.parent / "out")
    return ["--api", "m", "--base_url", stub.url, "--data", str(exam), "--out", out, *more]


def test_an_evaluation_scores_what_comes_back_and_scoring_again_costs_nothing(exam, tmp_path, capsys,
                                                                              monkeypatch):
    def write_and_die(*arguments):
        write_json(*arguments)
        raise KeyboardInterrupt

    # the first reply arrives last, and the run is killed when its last file is written
    stub = Stub(lambda body, tries: time.sleep(0.3 * ("English 0?" in prompt_of(body))), solver(exam))
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(results, "write_json", write_and_die)
        main(command(stub, exam))
    main(command(stub, exam))
    own, rows = load_results(out)
    assert all(row["correct"] and row["finish_reason"] == "stop" for row in rows) and len(stub.seen) == 16
    assert own["summary"]["macro"]["text"]["BLEU-1|nltk-method1"]["value"] == 1.0
    assert own["settings"]["api"]["calls"] == 16 and "batch_size" not in own["settings"]
    assert "endpoint:chat/completions|server_options:" in own["summary"]["signatures"]["answer"]
    assert {body["max_tokens"] for _, _, body in stub.seen} == {512}  # a chat model may reason first
    before = (out / "predictions.jsonl").read_bytes(), (out / "api_calls.jsonl").read_bytes()
    (out / "api_calls.jsonl.7.tmp").touch()  # killed while it put them in order
    main(command(stub, exam, "--force"))
    assert len(stub.seen) == 16 and "0 of them new" in capsys.readouterr().err and not [*out.glob("*.tmp")]
    assert before == ((out / "predictions.jsonl").read_bytes(), (out / "api_calls.jsonl").read_bytes())


def test_reasoning_is_kept_and_unanswered_questions_count_as_wrong(exam, tmp_path, capsys):
    thought = (200, reply("A", reasoning_content="so A"), {})
    blocked = (200, {"choices": [], "prompt_feedback": {"block_reason": "SAFETY"}}, {})
    stub = Stub(lambda body, tries: blocked if "Japanese 2?" in prompt_of(body) else thought)
    main(command(stub, exam, "--mode", "answer", "--thinking_budget", "1000"))
    own, rows = load_results(tmp_path / "out")
    rows = {row["doc"]["question"]: row for row in rows}
    bad = rows.pop("Japanese 2?")
    assert not bad["correct"] and bad["status"] == "unparsed" and "SAFETY" in bad["error"]
    assert "1 questions have no answer and count as wrong" in capsys.readouterr().err
    assert {(row["text"], row["parsed"], row["reasoning"]) for row in rows.values()} == {("A", "A", "so A")}
    assert {body["max_tokens"] for _, _, body in stub.seen} == {1512}  # thought and answer
    assert "|thinking_budget:1000|" in own["summary"]["signatures"]["answer"]
    seen, stub.fault = len(stub.seen), lambda body, tries: thought
    main(command(stub, exam, "--mode", "answer", "--thinking_budget", "1000"))  # asks again what failed
    assert len(stub.seen) == seen + 1 and not any("error" in row for row in load_results(tmp_path / "out")[1])


def test_completions_are_sent_the_prompts_of_local_decoding(exam):
    stub = Stub(answer=lambda body: "###Answer: OPTION A IS CORRECT.")
    main(command(stub, exam, "--completions", "--mode", "answer"))
    expected = {build_few_shot(item, [], False) for item in read_benchmark(exam)}
    assert {body["prompt"] for _, _, body in stub.seen} == expected
    assert {(path, body["max_tokens"]) for path, _, body in stub.seen} == {("/v1/completions", 64)}


def scoring(body: dict) -> dict:
    """The echo of a prompt, whose last letter A is likelier than others, and all else as likely."""
    tokens = re.findall(r"\s*\S+", body["prompt"])
    value = reply(body["prompt"], True)
    logprobs = [None, *(-1.0 if token.strip() == "A" else -2.0 for token in tokens[1:])]
    value["choices"][0]["logprobs"] = {"tokens": tokens, "token_logprobs": logprobs}
    return value


def test_one_question_that_cannot_be_scored_does_not_end_the_exam(exam, tmp_path, capsys):
    def too_long(body, only_reordered):
        failed = "English 3?" in prompt_of(body) and not (only_reordered and "A. x B. y" in prompt_of(body))
        return error(400, "too long") if failed else (200, scoring(body), {})

    stub = Stub(lambda body, tries: too_long(body, False))
    asking = command(stub, exam, "--completions", "--scoring", "loglikelihood", "--permutations", "2")
    main(asking)
    own, rows = load_results(tmp_path / "out")
    statuses = {row["doc"]["question"]: (row["status"], row["parsed"], row["correct"]) for row in rows}
    assert statuses.pop("English 3?") == ("unparsed", "", False)
    assert {status for status, _, _ in statuses.values()} == {"scored"} and statuses["English 0?"][2]
    assert own["summary"]["languages"]["English"]["calibration"]["n"] == 3
    assert "2 questions have no answer and count as wrong; the first is item" in capsys.readouterr().err
    stub.fault = lambda body, tries: too_long(body, True)
    main(asking)  # asks again what failed
    own, rows = load_results(tmp_path / "out")
    assert {row["status"] for row in rows} == {"scored"}
    stub.fault = lambda body, tries: error(401, "expired")
    with pytest.raises(UserError, match="401: expired"):
        main(asking)  # asks again for the reordered copy alone
    assert load_results(tmp_path / "out")[0] == own


@pytest.mark.parametrize("fault, message", [
    (None, "item .*the server returns no log-probabilities .* use --scoring generate"),
    (error(400, "Only no echo is supported"), "Only no echo is supported; the server returns no log-prob"),
    *(((200, {"choices": [{"text": "x", "logprobs": {
        "tokens": [*"abc"], "token_logprobs": [None, -1.0, last]}}]}, {}), "item .*returns no log-prob")
      for last in (None, "-1", float("-inf"))),
])
def test_a_server_that_cannot_score_text_is_named_at_once(exam, fault, message):
    stub = Stub(lambda body, tries: fault, answer=lambda body: "x")
    with pytest.raises(UserError, match=message):
        main(command(stub, exam, "--completions", "--scoring", "loglikelihood", "--concurrency", "1"))
    assert len(stub.seen) == 1 and not (exam.parent / "out" / "api_calls.jsonl").read_bytes()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_run_asks_only_for_what_is_missing(exam, tmp_path, number, code):
    turn = itertools.count(1)
    stub = Stub(lambda body, tries: time.sleep(120 if next(turn) > 6 else 0.05), solver(exam))
    arguments = [sys.executable, "-m", "mmed.eval", *command(stub, exam, "--concurrency", "2")]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    calls = tmp_path / "out" / "api_calls.jsonl"
    while len(stub.seen) < 8 or calls.read_bytes().count(b"\n") < 6:  # two wait for their answers
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == code  # without those answers
    kept, before, stub.fault = calls.read_bytes().count(b"\n"), len(stub.seen), lambda body, tries: None
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    assert len(stub.seen) - before == 16 - kept
