"""Rationales, topics and their checking: every call once, every line kept, every page harmless, agreement as
the formulas say."""
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.benchmark import rationale_checks as checks
from data_prep.rationales import (
    OTHER,
    TOPICS,
    exam_text,
    main,
    read_entries,
    read_rationale,
    read_topic,
    topic_prompt,
)
from mmed.prompts import read_benchmark
from mmed.utils.errors import UsageError, UserError

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "\u2028 {{csp}} <!--'


class Stub(ThreadingHTTPServer):
    """A chat model that answers with `answer(prompt)`, a function of the prompt alone."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, answer, delay: float = 0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.delay, self.tries, self.lock = answer, delay, Counter(), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def flags(self) -> list[str]:
        return ["--api", "strong-1", "--base-url", f"http://127.0.0.1:{self.server_address[1]}/v1"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            self.server.tries[prompt] += 1
        time.sleep(self.server.delay)
        text = self.server.answer(prompt)
        data = json.dumps({"model": "strong-1-0613",
                           "choices": [{"message": {"content": text}, "finish_reason": "length"
                                        if "CUT" in text else "stop"}],
                           "usage": {"prompt_tokens": 100, "completion_tokens": 10}}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass


@pytest.fixture
def exams(tmp_path) -> Path:
    folder, rng = tmp_path / "Test", random.Random(2)
    folder.mkdir()
    for language, count in (("English", 8), ("Japanese", 5)):
        with open(folder / f"{language}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                file.write(json.dumps({"question": f"{language} {i} 熱 fever?",
                                       "options": {letter: f"{letter.lower()}{i}" for letter in "ABCD"},
                                       "answer_idx": rng.choice(["A", "B,D"]), "rationale": "old reason"
                                       if i == 3 else "", "human_checked": i == 3,
                                       "human_check_passed": i == 3, "meta": {"é": [1, None]}},
                                      ensure_ascii=False) + "\n\n")
    return folder


def lines(folder: Path) -> dict[str, list[dict]]:
    return {path.name: [json.loads(line) for line in open(path, encoding="utf-8") if line.strip()]
            for path in sorted(folder.glob("*.jsonl"))}


# ---- generate, topics ----------------------------------------------------------------------------

def test_rationales_go_to_the_items_without_one_and_all_else_stays(exams, tmp_path, capsys):
    stub = Stub(lambda prompt: f"###Rationale: because of {prompt.split('Question: ')[1][:7]}\n")
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), *stub.flags, "--price-in", "2.5",
          "--price-out", "10"])
    before, after = lines(exams), lines(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        for i, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            if i == 3:
                assert new == old
            else:
                assert new == old | {"rationale": f"because of {old['question'][:7]}",
                                     "human_checked": False, "human_check_passed": False}
                assert list(new) == list(old)
    report = json.loads((tmp_path / "out" / "rationales.json").read_text(encoding="utf-8"))
    assert (report["items"], report["asked"], report["with"], report["problems"]) == (13, 11, 11, [])
    assert report["usage"] == {"calls": 11, "prompt_tokens": 1100, "completion_tokens": 110,
                               "without_counts": 0, "finish_reasons": {"stop": 11},
                               "models": ["strong-1-0613"]}
    assert report["facts"]["server"]["options"] == {"temperature": 0, "seed": 0}
    said = capsys.readouterr().out
    assert "all calls: 11 calls, tokens in 1,100, out 110, 0.00 USD" in said and len(stub.tries) == 11
    assert {entry.item.key for entry in read_entries(exams)} == {item.key
                                                                 for item in read_benchmark(tmp_path / "out")}
    assert all(exam_text(entry.item) in prompts for entry in read_entries(exams)[:3]
               for prompts in ["\n".join(stub.tries)])
    assert all(f"Explain in {language}" in "\n".join(stub.tries) for language in ("English", "Japanese"))


def test_a_second_run_costs_nothing(exams, tmp_path, capsys):
    stub = Stub(lambda prompt: "because")
    arguments = ["generate", "--data", str(exams), *stub.flags]
    main([*arguments, "--out", str(tmp_path / "a"), "--limit", "2"])
    assert sum(stub.tries.values()) == 4
    main([*arguments, "--out", str(tmp_path / "a"), "--limit", "2"])
    assert "nothing to do" in capsys.readouterr().err
    main([*arguments, "--out", str(tmp_path / "b"), "--calls", str(tmp_path / "a.calls.jsonl"), "--estimate",
          "--price-in", "1", "--price-out", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows[1:]] == [["English", "7", "2", "5"], ["Japanese", "4", "2", "2"],
                                             ["all", "11", "4", "7"]]
    main([*arguments, "--out", str(tmp_path / "b"), "--calls", str(tmp_path / "a.calls.jsonl")])
    assert set(stub.tries.values()) == {1} and len(stub.tries) == 11
    assert "this run: 7 calls" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"b: already there, made with limit = 0 \(now 1\); give another "
                                        r"--out, and --calls"):
        main([*arguments, "--out", str(tmp_path / "b"), "--limit", "1"])
    with pytest.raises(UserError, match="every item has a rationale already; --replace"):
        main(["generate", "--data", str(tmp_path / "b"), *stub.flags, "--out", str(tmp_path / "c")])
    main(["generate", "--data", str(tmp_path / "b"), *stub.flags, "--out", str(tmp_path / "c"), "--replace",
          "--max-new-tokens", "50"])
    assert sum(stub.tries.values()) == 11 + 13 and not any(row["human_checked"]
                                                           for rows in lines(tmp_path / "c").values()
                                                           for row in rows)


def test_an_estimate_sends_nothing_and_needs_no_key(exams, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), "--api", "gpt-x", "--estimate",
          "--price-in", "1000000", "--price-out", "0"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-1][:4] == ["all", "11", "0", "11"] and rows[-1][5:7] == ["2,200", "11,264"]
    assert float(rows[-1][7].replace(",", "")) == float(rows[-1][4].replace(",", ""))  # a dollar a token
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Test"]
    with pytest.raises(UsageError, match=r"there is no such environment variable \(default OPENAI_API_KEY\)"):
        main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), "--api", "gpt-x"])


def test_a_killed_run_asks_only_for_what_is_missing_and_leaves_no_half_folder(exams, tmp_path):
    stub = Stub(lambda prompt: f"because {len(prompt)}",
                delay=0.25)  # on a busy machine the kill comes late, too
    command = [sys.executable, "-m", "data_prep.rationales", "generate", "--data", str(exams), "--out",
               str(tmp_path / "out"), *stub.flags,
               "--concurrency", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and sum(stub.tries.values()) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stub.delay = 0.0
    assert not (tmp_path / "out").exists()
    main(command[3:])
    assert len(stub.tries) == 11 and sum(stub.tries.values()) <= 13
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "clean"), *stub.flags])
    for name in ("English.jsonl", "Japanese.jsonl", "rationales.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert (tmp_path / "out.calls.jsonl").read_bytes() == (tmp_path / "clean.calls.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Test", "clean", "clean.calls.jsonl", "out",
                                                                "out.calls.jsonl"]


def test_replies_that_cannot_be_used_are_listed_and_the_item_stays_as_it_was(exams, tmp_path, capsys):
    answers = {"English 0": "CUT short", "English 1": " \n", "English 2": "###Rationale:"}
    stub = Stub(lambda prompt: next((text for start, text in answers.items() if start in prompt), "fine"))
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), *stub.flags])
    problems = json.loads((tmp_path / "out" / "rationales.json").read_text())["problems"]
    assert [problem["reason"].split(":")[0] for problem in problems] == ["truncated at --max_new_tokens",
                                                                         "no rationale in the reply",
                                                                         "no rationale in the reply"]
    assert lines(tmp_path / "out")["English.jsonl"][:3] == lines(exams)["English.jsonl"][:3]
    assert "8 of 11 items have a rationale now; 3 could not be used" in capsys.readouterr().out


def test_topics_are_given_and_what_earlier_steps_said_goes_on(exams, tmp_path):
    labels = dict(zip((f"{language} {i} " for language in ("English", "Japanese")
                       for i in range(8)), itertools.cycle(["Surgery.", "**pathology**", OTHER, "?"])))
    stub = Stub(lambda prompt: "why" if "Explain" in prompt
                else next(text for start, text in labels.items() if start in prompt))
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "one"), *stub.flags])
    main(["topics", "--data", str(tmp_path / "one"), "--out", str(tmp_path / "two"), *stub.flags])
    assert [row.get("topic") for row in lines(tmp_path / "two")["English.jsonl"]] == ["Surgery", "Pathology",
                                                                                      OTHER, None] * 2
    report = json.loads((tmp_path / "two" / "topics.json").read_text())
    assert report["topics"]["Surgery"] == 4 and report["topics"][OTHER] == 3
    assert len(report["problems"]) == 3 and list(report["topics"]) == [*TOPICS, OTHER]
    one, two = ((tmp_path / name / "rationales.json").read_bytes() for name in ("one", "two"))
    assert one == two
    assert read_benchmark(tmp_path / "two")[0].extra["topic"] == "Surgery"


def test_every_topic_is_read_back_from_its_own_name_and_listed_in_the_prompt(exams):
    prompt = topic_prompt(read_benchmark(exams)[0])
    assert len(set(TOPICS)) == 21
    for label in (*TOPICS, OTHER):
        assert f"\n{label}\n" in prompt
        for text in (label, f" {label.upper()}.\n", f"**{label}**", f"- {label}"):
            assert read_topic(text) == label
    for text in ("", "Cardiology", "Surgery, Anatomy", "None of the other subjects", "Neurosurgery"):
        assert read_topic(text) is None


@pytest.mark.parametrize("text, expected", [
    ("Because.", "Because."), ("###Rationale: Because.", "Because."), ("**Rationale:** x", "x"),
    ("rationale: a\n\nb ", "a\n\nb"),
    ("Rationale therapy is not rational", "Rationale therapy is not rational"), (" ", None),
    ("### Rationale:", None),
])
def test_rationales_are_read_without_their_marker(text, expected):
    assert read_rationale(text) == expected


@pytest.mark.parametrize("arguments, message", [
    (["generate", "--price-in", "1"], "--price-in and --price-out go together"),
    (["generate", "--limit", "-1"], "--limit and --max-new-tokens"),
    (["topics", "--completions"], "needs a chat model"),
])
def test_flags_that_do_not_go_together(arguments, message, exams, tmp_path):
    with pytest.raises(UsageError, match=message):
        main([*arguments, "--data", str(exams), "--out", str(tmp_path / "out"), "--api", "m", "--base-url",
              "http://127.0.0.1:9/v1"])


# ---- sheet ---------------------------------------------------------------------------------------

def make_items(folder: Path, count: int = 5, hostile: bool = False) -> Path:
    folder.mkdir()
    for language in ("English", "Japanese"):
        with open(folder / f"{language}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                text = HOSTILE if hostile else f"{language} {i}"
                file.write(json.dumps({"id": f"{language[:2]}{i}" if i or not hostile
                                       else f"__proto__{language}", "question": text + " ?",
                                       "options": {"A": text, "B": text + "2"}, "answer_idx": "B",
                                       "rationale": f"because {text} {i}",
                                       "image_dependent": i == 1}) + "\n")
    return folder


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page,
                                re.DOTALL)[1])


def test_a_sheet_holds_the_drawn_items_and_nothing_that_runs_or_loads(tmp_path):
    data = make_items(tmp_path / "data", hostile=True)
    main(["sheet", "--data", str(data), "--out", str(tmp_path / "sheet.html"), "--items", "3", "--title",
          HOSTILE])
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    held = data_of(page)
    assert held["title"] == HOSTILE and len(held["items"]) == 6 and all(HOSTILE in item["question"]
                                                                        for item in held["items"])
    assert page.count("<script") == 2 and "alert(1)</script>" not in page and "<img" not in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"']|https?://|@import|url\(", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", page)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'",
                     page)
    main(["sheet", "--data", str(data), "--out", str(tmp_path / "again.html"), "--items", "3", "--title",
          HOSTILE])
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "sheet.html").read_bytes()


def test_a_sheet_of_one_language_a_seed_and_all_items(tmp_path, capsys):
    data = make_items(tmp_path / "data", count=30)
    drawn = []
    for arguments in (["--language", "ja", "--items", "0"], ["--language", "Japanese", "--items", "9"],
                      ["--language", "ja", "--items", "9", "--seed", "1"]):
        main(["sheet", "--data", str(data), "--out", str(tmp_path / "s.html"), *arguments])
        drawn.append([item["key"]
                      for item in data_of((tmp_path / "s.html").read_text(encoding="utf-8"))["items"]])
    assert drawn[0] == [f"Ja{i}"
                        for i in range(30)] and len(drawn[1]) == len(drawn[2]) == 9 and drawn[1] != drawn[2]
    assert drawn[1] == [key for key in drawn[0] if key in drawn[1]]
    (data / "Japanese.jsonl").write_text('{"question": "?", "options": {"A": "a", "B": "b"}, "answer_idx": '
                                         '"A"}\n')
    with pytest.raises(UserError, match="no item in ja has a rationale to check"):
        main(["sheet", "--data", str(data), "--out", str(tmp_path / "s.html"), "--language", "ja"])


# ---- merge ---------------------------------------------------------------------------------------

YES, NO = dict.fromkeys(checks.CRITERIA, True), dict.fromkeys(checks.CRITERIA, True) | {"accurate": False}


def sheet(path: Path, data: Path, checker: str, entries: dict, **more) -> str:
    items = {item.key: checks.text_hash(item.rationale) for item in read_benchmark(data)
             if item.key in entries}
    value = {"format": checks.FORMAT, "version": 1, "sheet": "x", "checker": checker, "items": items,
             "entries": entries} | more
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def merge(data: Path, out: Path, *arguments: str) -> dict:
    main(["merge", *arguments, "--data", str(data), "--out", str(out)])
    return json.loads((out / "checks.json").read_text(encoding="utf-8"))


def test_checks_are_merged_with_agreement(tmp_path, capsys):
    data = make_items(tmp_path / "data")
    keys = [f"En{i}" for i in range(5)]
    one = sheet(tmp_path / "1.json", data, "Ann", dict(zip(keys, [YES, YES, NO, NO, YES])))
    two = sheet(tmp_path / "2.json", data, "Bo", dict(zip(keys, [YES, NO, NO, NO, YES | {"note": " late "}])))
    report = merge(data, tmp_path / "out", one, two)
    assert report["passed"] == dict(zip(keys,
                                        [True, False, False, False, True])) and report["all"]["passed"] == 2
    pair, = report["agreement"]["pairs"]
    chance = (3 * 2 + 2 * 3) / 25
    assert pair["passed"]["percent"] == 80
    assert pair["passed"]["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert pair["consistent"] == {"percent": 100,
                                  "kappa": None} and report["notes"] == [{"key": "En4", "checker": "Bo",
                                                                          "note": "late"}]
    rows = {row["id"]: row for part in lines(tmp_path / "out").values() for row in part}
    assert rows["En1"]["human_checked"] is True and rows["En1"]["human_check_passed"] is False
    assert "human_checked" not in rows["Ja0"]
    assert [item.human_check_passed for item in read_benchmark(tmp_path / "out")] == [True, False, False,
                                                                                      False,
                                                                                      True] + [None] * 5
    said = capsys.readouterr().out
    for part in ("English: 2 of 5 rationales passed, 40.0 %", "accurate 80.0 %, kappa 0.615",
                 "consistent 100.0 %, kappa not defined"):
        assert part in said
    three = sheet(tmp_path / "3.json", data, "Cy", dict(zip(keys, [YES, YES, NO, YES, NO])))
    report = merge(data, tmp_path / "majority", one, two, three, "--rule", "majority")
    assert report["passed"] == dict(zip(keys, [True, True, False, False,
                                               True])) and len(report["agreement"]["pairs"]) == 3
    everyone = report["agreement"]["all_checkers"]
    assert everyone["kappa_is"] == "Fleiss" and everyone["items"] == 5


def test_a_checker_may_save_in_parts_and_sheets_need_not_overlap(tmp_path, capsys):
    data = make_items(tmp_path / "data")
    paths = [sheet(tmp_path / "1.json", data, "Ann", {"En0": YES}),
             sheet(tmp_path / "2.json", data, "Ann", {"En0": YES, "En1": NO}),
             sheet(tmp_path / "3.json", data, "Bo", {"Ja0": YES})]
    report = merge(data, tmp_path / "out", *paths)
    assert report["checkers"] == {"Ann": 2, "Bo": 1} and report["agreement"]["pairs"][0]["items"] == 0
    assert "Ann and Bo: no item judged by both" in capsys.readouterr().out


BAD = {
    "conflict": ({"En0": NO}, {}, "'Ann' judged this item differently before"),
    "missing": ({"En1": {"consistent": True, "sound": True}}, {}, "'accurate' is missing"),
    "a number": ({"En1": YES | {"sound": 7}}, {}, "'sound' must be true or false, got 7"),
    "a word": ({"En1": YES | {"sound": "yes"}}, {}, "'sound' must be true or false, got 'yes'"),
    "no object": ({"En1": True}, {}, "expected an object"),
    "unknown criterion": ({"En1": YES | {"fluent": True}}, {}, "no criterion is called 'fluent'"),
    "unknown item": ({"Fr1": YES}, {"items": {"Fr1": "x"}}, "is not among the items of --data"),
    "not on the sheet": ({"En1": YES}, {"items": {}}, "is not on the sheet"),
    "changed": ({"En1": YES}, {"items": {"En1": "0" * 16}}, "its rationale has changed"),
    "not judged": ({}, {"items": {"En2": "x"}}, "item 'En2': not judged; finish the sheet"),
    "a note of another kind": ({"En1": YES | {"note": 3}}, {}, "'note' must be a text"),
}


@pytest.mark.parametrize("name", BAD)
def test_entries_that_cannot_be_used_are_one_line_each_and_nothing_is_written(name, tmp_path, capsys):
    entries, more, message = BAD[name]
    data = make_items(tmp_path / "data")
    good = sheet(tmp_path / "good.json", data, "Ann", {"En0": YES, "En3": YES})
    bad = sheet(tmp_path / "bad.json", data, "Ann", entries, **more)
    with pytest.raises(UserError, match=r"1 entry of the sheets cannot be used \(listed above\); nothing "
                                        r"was written"):
        merge(data, tmp_path / "out", good, bad)
    lines_said = capsys.readouterr().err.splitlines()
    assert len(lines_said) == 1 and message in lines_said[0] and not (tmp_path / "out").exists()
    assert lines_said[0].startswith(f"error: {bad}: item ")


@pytest.mark.parametrize("text, message", [
    ("[]", "not a file that a checker saved"), ("{", "not valid JSON"),
    ('{"format": "mmed-rationale-check", "version": 2}', "not a file that a checker saved"),
    ('{"format": "mmed-rationale-check", "version": 1, "items": {}, "entries": {}, "checker": " "}',
     "no name of a checker"),
    ('{"format": "mmed-rationale-check", "version": 1, "items": {}, "entries": {}, "checker": "a\\u001b[2J"}',
     "no name of a checker"),
    ('{"format": "mmed-rationale-check", "version": 1, "items": {}, "entries": {}, "checker": "Ann"}',
     "no item is judged in it"),
])
def test_files_that_are_no_saved_sheets(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        merge(make_items(tmp_path / "data"), tmp_path / "out", str(tmp_path / "x.json"))


def test_an_output_folder_that_is_there_is_left_alone(tmp_path):
    data = make_items(tmp_path / "data")
    path = sheet(tmp_path / "1.json", data, "Ann", {"En0": YES})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: already there; give another --out"):
        merge(data, tmp_path / "out", path)


# ---- agreement -----------------------------------------------------------------------------------

def test_cohen_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(5)
    for _ in range(200):
        first = [rng.random() < 0.7 for _ in range(rng.randint(2, 30))]
        second = [value if rng.random() < 0.6 else rng.random() < 0.5 for value in first]
        ours = checks.cohen_kappa(first, second)
        if ours is None:
            assert len({*first, *second}) == 1
        else:
            assert ours == pytest.approx(metrics.cohen_kappa_score(first, second), abs=1e-12)


def test_fleiss_is_that_of_his_own_worked_example():
    """Ten items, 14 raters, five categories: P = 0.378, P_e = 0.213, kappa = 0.210."""
    table = [(0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
             (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2),
             (6, 5, 2, 1, 0), (0, 2, 2, 3, 7)]
    ratings = [[category for category, n in enumerate(row) for _ in range(n)] for row in table]
    assert checks.percent_agreement(ratings) == pytest.approx(0.378, abs=5e-4)
    assert checks.fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)


def test_two_raters_without_bias_have_the_same_kappa_by_both_formulas():
    pairs = [(True, True)] * 5 + [(False, False)] * 3 + [(True, False), (False, True)] * 2
    assert checks.fleiss_kappa(pairs) == pytest.approx(checks.cohen_kappa(*zip(*pairs)), abs=1e-12)
    assert checks.fleiss_kappa([(True, True)] * 3) is None
