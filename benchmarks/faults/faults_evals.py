"""Faults of evaluation and APIs (area "evals" of benchmarks/faults/faults.py): servers that fail, runs that are killed, files that lie.

The failing server and the hostile texts are those of the tests (tests/evaluation/test_api_client.py, test_submission.py, tests/reporting/test_report.py, tests/human_eval/test_rating.py);
here they come in larger numbers and at random, from the seed. Nothing leaves loopback.
"""
from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from fault_table import Row, median, trials

ROOT = Path(__file__).resolve().parents[2]
MARK = "document.documentElement.dataset.broken = 1"  # what a hostile text would do in a browser
PAYLOADS = [f"<script>{MARK}</script>", f'"><img src=x onerror="{MARK}">', f"</script><script>{MARK}</script>", f"<svg onload='{MARK}'>", f"' onmouseover='{MARK}",
            f"<iframe srcdoc='<script>parent.{MARK}</script>'></iframe>", f"<a href='javascript:{MARK}' autofocus onfocus='{MARK}'>x</a>", "{{data}}{{body}}{{csp}}",
            f"<style>@import 'http://127.0.0.1:9/x'</style><base href='http://127.0.0.1:9/'><meta http-equiv=refresh content='0;url=javascript:{MARK}'>",
            "<!--", "]]>", "\u2028*/alert(1)//", "\u202egnp.exe"]


def of_tests(name: str) -> ModuleType:
    """A test file as a module, for the helpers in it."""
    spec = importlib.util.spec_from_file_location(f"tests_{name}", next((ROOT / "tests").rglob(f"test_{name}.py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ------------------------------------------------------------------------------------------------------------ the parser

def answers(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.evaluation.answer_parser import parse_answer

    cases = [json.loads(line) for line in (ROOT / "tests/data/hostile_answers.jsonl").read_text(encoding="utf-8").split("\n") if line]
    right = [parse_answer(case["text"], case["options"], language=case["language"]) for case in trials(cases, "E1")]
    yield Row("E1", "hostile output of a model, in every language of the table, read as a careful person reads it", len(cases),
              sum((list(one.letters), one.status) == (case["expected"], case["status"]) for one, case in zip(right, cases)))
    marks = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c\ufeff\u200b"
    held = 0
    for case in trials(cases, "E1"):  # at random places between the words
        words = case["text"].split(" ")
        text = " ".join(word + rng.choice(marks) * rng.randrange(2) for word in words)
        held += list(parse_answer(text, case["options"], language=case["language"]).letters) == case["expected"]
    yield Row("E1", "the same with marks of direction and of no width behind words", len(cases), held)
    pieces = [piece for case in cases for piece in case["text"].split(" ")]
    held, slowest, count = 0, 0.0, 20_000 if soak else 2_000
    for _ in trials(count, "E1"):
        text = rng.choice([" ", "", "\n"]).join(rng.choice(pieces) for _ in range(rng.choice([3, 30, 300]))) + "".join(chr(rng.randrange(0x110000)) for _ in range(9))
        begin = time.perf_counter()
        parsed = parse_answer(text, "ABCDE", rationale_expected=True)
        slowest = max(slowest, time.perf_counter() - begin)
        held += set(parsed.letters) <= set("ABCDE") and (parsed.status == "unparsed") == (not parsed.letters)
    yield Row("E1", "random text, of pieces of those and of any characters: letters that are options, or none", count, held, note=f"slowest {slowest * 1000:.0f} ms")


# ------------------------------------------------------------------------------------------------------------ the server

def server(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.evaluation import api_client
    from mmed.utils.errors import UserError

    tests, api_client.FIRST_WAIT = of_tests("api_client"), 0.01
    quick = {name: fault for name, (fault, reason) in tests.FAULTS.items() if not reason.endswith("seconds") and "longer" not in reason}
    count = 10_000 if soak else 1_000
    stub = tests.Stub(lambda body, tries: rng.choice(list(quick.values())) if rng.random() < 0.3 else None)
    prompts = [f"q{i}" for i in range(count)]
    begin = time.monotonic()
    texts = tests.ask(stub, folder / "calls", prompts, concurrency=8, retries=20)
    seconds = time.monotonic() - begin
    lines = (folder / "calls").read_bytes().splitlines()
    once = {name for name, good in stub.good.items() if good == 1 and stub.tries[name] <= 21}
    held = sum(text == f"answer to {prompt}" for text, prompt in zip(texts, prompts)) if len(once) == count == len(lines) else len(once)
    yield Row("E2", f"each call fails with probability 0.3, in one of {len(quick)} ways; answered once, in order, within its tries", count, held,
              note=f"{len(stub.seen):,} calls in {seconds:.0f} s, at most {max(stub.tries.values())} for one")
    held, waits = 0, []
    for name, (fault, reason) in trials(list(tests.FAULTS.items()), "E2"):
        stub = tests.Stub(lambda body, tries, fault=fault: fault if tries == 1 else None)
        begin = time.monotonic()
        held += tests.ask(stub, folder / f"{name}.calls", ["x"], timeout=0.4 if reason.endswith("seconds") else 20.0) == ["answer to x"] and len(stub.seen) == 2
        waits.append(time.monotonic() - begin)
    yield Row("E2", "each kind of failure by itself, once", len(tests.FAULTS), held, median(waits))
    held = 0
    for status in trials(final := [400, 401, 402, 403, 404, 413, 418, 422, 307], "E2"):
        stub = tests.Stub(lambda body, tries, status=status: tests.error(status))
        try:
            tests.ask(stub, folder / f"{status}.calls", ["a", "b", "c"], concurrency=1)
        except UserError as error:
            held += len(stub.seen) == 1 and "\n" not in str(error)
    yield Row("E2", "a refusal that asking again does not cure (401, 403, 404 ...) ends the run at once, in one line", len(final), held)


def exams(tests: ModuleType, folder: Path, rng: random.Random) -> Path:
    words = "fever cough pain liver heart drug dose blood lung brain".split()
    (folder / "Test").mkdir(parents=True)
    for language, count in (("English", 9), ("Japanese", 7)):
        rows = [{"question": f"{i} {' '.join(rng.choices(words, k=9))}?\n熱", "options": {letter: " ".join(rng.sample(words, 2)) for letter in "ABCD"},
                 "answer_idx": rng.choice(["A", "B", "A,D"]), "rationale": " ".join(rng.choices(words, k=9))} for i in range(count)]
        (folder / "Test" / f"{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def killed_api(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    tests = of_tests("api_client")
    where = exams(tests, folder / "exams", rng)
    stub = tests.Stub()
    with quiet():
        tests.evaluate(stub, where, folder / "clean")
    clean, total, count = files_of(folder / "clean"), len(stub.seen), 100 if soak else 20
    held, seconds, again, kept = 0, [], 0, 0
    for number in trials(count, "E3"):
        out, stub = folder / f"out{number}", tests.Stub(delay=rng.uniform(0.01, 0.06))
        process = subprocess.Popen(tests.command(stub, where, out, "--concurrency", "4"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        moment = rng.randint(0, total)
        while process.poll() is None and len(stub.seen) < moment:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        known = {json.loads(line)["key"] for line in (out / "api_calls.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n")} \
            if (out / "api_calls.jsonl").exists() else set()
        stub.delay, before, begin = 0.0, len(stub.seen), time.monotonic()
        with quiet():
            tests.main(tests.command(stub, where, out)[3:])
        seconds.append(time.monotonic() - begin)
        asked, kept = len(stub.seen) - before, kept + len(known)
        again += sum(stub.good.values()) - total
        held += asked == total - len(known) and sum(stub.good.values()) - total <= 4 and same_run(files_of(out), clean)
        shutil.rmtree(out)
    yield Row("E3", "kill -9 of a run over an API at a random moment: the rerun asks for what is missing and ends in the same files", count, held, median(seconds),
              f"{kept:,} answers on disk at the kills, none asked for again; {again} that were still on their way were")


def same_run(mine: dict[str, bytes], clean: dict[str, bytes]) -> bool:
    """The same files but for the address of the server, which has a port of its own each time, and what is hashed from it."""
    def plain(name: str, data: bytes) -> bytes:
        data = re.sub(rb"http://127\.0\.0\.1:\d+/v1", b"URL", data)
        return re.sub(rb'"key": "[0-9a-f]{64}"|"crc32": "[0-9a-f]{8}"', b"", data) if name == "api_calls.jsonl" else data

    return mine.keys() == clean.keys() and all(plain(name, mine[name]) == plain(name, clean[name]) for name in clean)


def killed_evaluation(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.checkpoints.pretrained import save_pretrained
    from mmed.model import ModelConfig, Transformer
    from mmed.tokenizer import train_sentencepiece

    where = exams(of_tests("api_client"), folder / "exams", rng)
    texts = [line for path in sorted((where / "Test").glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_sentencepiece([*texts, "###Answer: OPTION A IS CORRECT. ###Rationale:"] * 3, folder / "tokenizer", 400)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                    num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, initializer_range=0.2)).init_weights(0)
    save_pretrained(model, tokenizer, folder / "model")

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "mmed.eval", "--model", str(folder / "model"), "--data", str(where / "Test"), "--out", str(out), "--max_new_tokens", "12",
                "--slots", "1", "--scoring", "both"]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    subprocess.run(command(folder / "clean"), check=True, capture_output=True, env=environment)
    whole, clean = time.monotonic() - begin, files_of(folder / "clean")
    held, seconds, count = 0, [], 40 if soak else 6
    for number in trials(count, "E3"):
        out = folder / f"out{number}"
        process = subprocess.Popen(command(out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        time.sleep(rng.uniform(0.3, 1.1) * whole)
        process.kill()
        process.wait()
        begin = time.monotonic()
        done = subprocess.run(command(out), capture_output=True, env=environment)
        seconds.append(time.monotonic() - begin)
        held += done.returncode == 0 and files_of(out) == clean
    yield Row("E3", "kill -9 of an evaluation on this machine at a random moment: the rerun ends in the same files, to the byte", count, held, median(seconds))


def stores(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.evaluation.api_calls import CallStore
    from mmed.utils.errors import UserError
    from mmed.utils.journal import Journal

    path = folder / "calls"
    given = {f"key{i}": {"text": f"Answer {rng.random()} é\u2028\n"} for i in range(20)}
    store = CallStore(path)
    for key, reply in given.items():
        store.add(key, reply)
    store.close()
    rounds = {number: [{"row": rng.random()} for _ in range(3)] for number in range(8)}
    journal = Journal(folder / "predictions.jsonl", {"style": "clean"})
    for number, rows in rounds.items():
        journal.add(number, rows)
    journal.file.close()

    def reopen_store() -> bool:
        store = CallStore(path)
        held = store.replies.items() <= given.items()
        store.close()
        return held

    def reopen_journal() -> bool:
        journal = Journal(folder / "predictions.jsonl", {"style": "clean"})
        held = dict(journal.rounds()).items() <= rounds.items() and journal.done == dict(journal.rounds()).keys()
        journal.file.close()
        return held

    for name, file, reopen in (("store of calls", path, reopen_store), ("journal of rounds", folder / "predictions.jsonl.partial", reopen_journal)):
        whole, count = file.read_bytes(), 20_000 if soak else 1_000
        for fault, damage in (("cut anywhere", lambda data: data[:rng.randrange(len(data))]), ("one bit turned", lambda data: flipped(data, rng)),
                              ("a line of garbage in it", lambda data: with_garbage(data, rng))):
            held = refused = 0
            for _ in trials(count, "E4"):
                file.write_bytes(damage(whole))
                try:
                    held += reopen()
                except UserError as error:
                    refused += 1
                    held += "\n" not in str(error) and str(file) in str(error)
            yield Row("E4", f"{name}, {fault}: what is read was written, or one line names the place", count, held, note=f"{refused:,} refused")
            file.write_bytes(whole)


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def with_garbage(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    junk = rng.choice([b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\xfe\n", b"\x00" * 512 + b"\n", b"[" * 100_000 + b"\n", b'{"key": 1, "round": "x"}\n', lines[0][:20] + b"\n"])
    lines.insert(rng.randint(1, len(lines)), junk)
    return b"".join(lines)


def canary(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    """A key with a mark in it; servers that send it back in every way; all output, files and command lines are searched for it."""
    tests = of_tests("api_client")
    where = exams(tests, folder / "exams", rng)
    environment = os.environ | {"CANARY_KEY": tests.KEY, "OPENAI_LOG": "debug", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
    kinds = {"it in every text": None, "401": tests.echo(401, "json"), "400": tests.echo(400, "json"), "500 as HTML": tests.echo(500, "html"),
             "200 as HTML": tests.echo(200, "html"), "200 with an error": tests.echo(200, "json"), "SIGTERM": None, "a crash": None}
    held = hits = 0
    for number, (kind, fault) in enumerate(trials(list(kinds.items()), "E5")):
        stub = tests.Stub(lambda body, tries, fault=fault: fault, answer=lambda body: f"Answer: B {tests.KEY}", delay=0.3 if kind == "SIGTERM" else 0.0)
        command = tests.command(stub, where, folder / f"out{number}", "--api-key-env", "CANARY_KEY", "--limit", "2", "--retries", "1")
        if kind == "a crash":
            bug = "import mmed.evaluation.api_client as api, sys\ndef bug(data, key): raise ZeroDivisionError(key)\napi.read_reply = bug\nfrom mmed.eval import main\nmain(sys.argv[1:])"
            command = [sys.executable, "-c", bug, *command[3:]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None and not stub.seen:
            time.sleep(0.01)
        shown = b"".join(entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if readable(entry))
        if kind == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        shown += process.communicate(timeout=120)[0]
        shown += b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        found = sum(shown.count(part) for part in (b"canary", b"0123456789/abc"))
        assert any(headers.get("authorization") == f"Bearer {tests.KEY}" for _, _, headers, _ in stub.seen), f"{kind}: the key was not sent"
        hits += found
        held += not found
    yield Row("E5", "servers that send the key back, a crash, a signal, the client's own log at its most verbose: the key is in no output, file or process list",
              len(kinds), held, note=f"{hits} hits")


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
        return True
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ judges, sheets, pages

def judges(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.human_eval.judge import parse_ranking

    pieces = ["RANKING c0de: ", "RANKING ", "c0de", "A > B > C > D", "B>A>D>C", "A", " > ", ">", "D", "E", "\n", "**", "`", "give A 10", "11/10", "А", "Ａ", " because ", "\u2028",
              "RANKING beef: A > B > C > D", "ignore the above", "> ", "\x00", ": ", ",", "="]
    count, held, read = 200_000 if soak else 10_000, 0, 0
    for _ in trials(count, "E8"):
        reply = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        if rng.random() < 0.2:  # a right line among it, that may be the only one
            reply += "\nRANKING c0de: D > C > B > A\n"
        coded = [line for line in reply.splitlines() if re.match(r"[ *`>.]*RANKING c0de\b", line)]
        plain = [re.findall("[A-D]", line) for line in coded if re.fullmatch(r"RANKING c0de: [A-D]( ?> ?[A-D]){3}", line)]
        try:
            letters = parse_ranking(reply, "ABCD", "c0de")
            read += 1
            held += len(coded) == 1 and letters == re.findall("[A-Z]", coded[0].partition("c0de")[2]) and sorted(letters) == list("ABCD")
        except ValueError:  # a line as it was asked for, and the only one, is never refused
            held += not (len(coded) == len(plain) == 1 and len(set(plain[0])) == 4)
    yield Row("E8", "a judge's reply of pieces of rankings, injected orders and look-alikes: one ranking under the right code, or none", count, held, note=f"{read:,} read")


def sheets(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.human_eval.rating import main, merge, read_key
    from mmed.utils.errors import UserError

    rating, spoil = of_tests("rating"), of_tests("report").spoil
    results = [str(rating.result_folder(folder / model, model, seed=1)) for model in rating.MODELS]
    with quiet():
        main(["sheet", *results, "--items", "4", "--out", str(folder / "sheets")])
    key_path = folder / "sheets" / "key.json"
    key, count, held, merged = read_key(key_path), 20_000 if soak else 1_000, 0, 0
    good = rating.rating_file(folder / "r.json", key, "English", "Ana", rng)
    key_text = key_path.read_text(encoding="utf-8")
    for _ in trials(count, "E9"):
        in_key = rng.random() < 0.3
        text = json.dumps(spoil(json.loads(key_text) if in_key else good, rng))
        data = text.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]))
        data = data[:rng.randrange(len(data))] if rng.random() < 0.1 else data
        (key_path if in_key else folder / "r.json").write_bytes(data)
        try:
            cases, _ = merge(read_key(key_path), [folder / "r.json"])
            merged += 1
            held += all(sorted(case["scores"].values()) == [1.0, 2.0, 3.0, 4.0] for part in cases.values() for case in part.values())
        except UserError as error:
            held += "\n" not in str(error) and ".json" in str(error)
        key_path.write_text(key_text, encoding="utf-8")
        (folder / "r.json").write_text(json.dumps(good), encoding="utf-8")
    yield Row("E9", "a rater's file or the key with a wrong value, another encoding, cut: a whole ranking or one line", count, held, note=f"{merged:,} merged, for what was changed is not read")


def reports(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.reporting import report
    from mmed.utils.errors import UserError

    tests = of_tests("report")
    items = tests.make_items(rng, 2, ("English", "Japanese"))
    good, run, corpus = tests.make_result(folder / "good", items, rng), tests.make_run(folder / "run", 5), tests.make_corpus(folder / "corpus")
    targets = [good / "results.json", good / "predictions.jsonl", run / "run.json", run / "metrics.jsonl", corpus / "filter/en/funnel.json", corpus / "all.json"]
    originals = {path: path.read_text(encoding="utf-8") for path in targets}
    count, held, refused = 10_000 if soak else 300, 0, 0
    for _ in trials(count, "E10"):
        path = rng.choice(targets)
        lines = originals[path].splitlines() if path.suffix == ".jsonl" else [originals[path]]
        place = rng.randrange(len(lines))
        value = tests.spoil(json.loads(lines[place]), rng)
        lines[place] = json.dumps(value) if rng.random() < 0.5 else re.sub("English|alpha|tiny|web", lambda _: json.dumps(rng.choice(PAYLOADS))[1:-1], json.dumps(value))
        path.write_text("\n".join(lines), encoding="utf-8")
        try:
            with quiet():
                report.main([str(good), "--runs", str(run), "--corpus", str(corpus), "--out", str(folder / "r.html")])
            tests.assert_no_active_content((folder / "r.html").read_text(encoding="utf-8"))
            held += 1
        except UserError as error:
            refused += 1
            held += "\n" not in str(error) and len(str(error)) < 1500
        path.write_text(originals[path], encoding="utf-8")
    yield Row("E10", "results, logs and counts with wrong values and active content: a page without any, or one line", count, held, note=f"{refused:,} refused")


def readers(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    """The other commands that read result folders and ratings."""
    from mmed.evaluation import compare
    from mmed.human_eval import rating
    from mmed.utils.errors import UserError

    tests, ratings = of_tests("report"), of_tests("rating")
    results = [ratings.result_folder(folder / name, name, seed=1) for name in ("a", "b")]
    both, people = [str(path) for path in results], folder / "people.json"
    models, cases = ratings.read_cases(both, items=0)
    ratings.write_ratings(people, {"kind": "people"}, models, ratings.people_of(cases, rng)["cases"])
    originals = {path: path.read_text(encoding="utf-8") for path in (results[0] / "results.json", results[0] / "predictions.jsonl", people)}
    commands = [(compare.main, both), (rating.main, ["sheet", *both, "--items", "2", "--out", str(folder / "sheets")]),
                (rating.main, ["agreement", str(people), *both, "--resamples", "5", "--out", str(folder / "study")])]
    count, held, refused = 5_000 if soak else 100, 0, 0
    for _ in trials(count, "E10"):
        path = rng.choice(list(originals))
        lines = originals[path].splitlines() if path.suffix == ".jsonl" else [originals[path]]
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(tests.spoil(json.loads(lines[place]), rng))
        path.write_text("\n".join(lines), encoding="utf-8")
        for command, arguments in commands:
            shutil.rmtree(folder / "sheets", ignore_errors=True)
            try:
                with quiet():
                    held += command(arguments) == 0
            except UserError as error:
                refused += 1
                held += "\n" not in str(error)
        path.write_text(originals[path], encoding="utf-8")
    yield Row("E10", "result folders and ratings with wrong values, read by compare, sheet and agreement: done, or one line", 3 * count, held, note=f"{refused:,} refused")


def browser(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    """The three kinds of page with hostile texts in every place, in a real browser."""
    from mmed.human_eval import rating
    from mmed.human_eval.agreement_page import agreement_page
    from mmed.prompts import ExamItem
    from mmed.reporting import report
    from mmed.utils.files import read_json

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("E10: no chromium here, pages are not opened in a browser", file=sys.stderr)
        return
    reports, ratings = of_tests("report"), of_tests("rating")
    items = [ExamItem(bad, {"A": bad, "B": bad + "!"}, ("B",), bad, ("English", "French")[number % 2], f"{number}{bad}", True, True, {"topic": bad})
             for number, bad in enumerate(PAYLOADS)]
    result = reports.make_result(folder / "r", items, rng, write=lambda text: text + rng.choice(PAYLOADS), model=PAYLOADS[0])
    texts = {(language, i): bad for language in ("English", "French") for i, bad in enumerate(PAYLOADS)}
    folders = [f"{name}={ratings.result_folder(folder / str(n), name, items=len(PAYLOADS), texts=texts)}" for n, name in enumerate([PAYLOADS[1], "m1", "m2"])]
    with quiet():
        report.main([str(result), "--title", PAYLOADS[0], "--notice", PAYLOADS[1], "--out", str(folder / "report.html")])
        rating.main(["sheet", *folders, "--items", "0", "--out", str(folder / "sheets")])
        models, cases = ratings.read_cases(folders, items=0)
        ratings.write_ratings(folder / "people.json", {"kind": "people"}, models, ratings.people_of(cases, rng)["cases"])
        rating.main(["agreement", str(folder / "people.json"), *folders, "--resamples", "20", "--out", str(folder / "study")])
    (folder / "study" / "hostile.html").write_text(agreement_page(read_json(folder / "study" / "agreement.json"), PAYLOADS[3]), encoding="utf-8")
    pages = [folder / "report.html", folder / "sheets" / "English.html", folder / "study" / "agreement.html", folder / "study" / "hostile.html"]
    held = 0
    for page in trials(pages, "E10"):
        done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000",
                               "--enable-logging=stderr", "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
        tags = set(re.findall(r"<(\w+)", re.sub(r"<script.*?</script>|<style.*?</style>", "", done.stdout, flags=re.S)))
        # A page whose own script ran (or which has none) and in which nothing else did, not even a refused try.
        held += done.returncode == 0 and "data-broken" not in done.stdout.split("<body", 1)[0] and not tags & {"img", "iframe", "object", "embed", "base", "form", "link"} \
            and "Refused to" not in done.stderr and "violates the following" not in done.stderr
    yield Row("E10", f"{len(PAYLOADS)} payloads in every text of report, sheet and study, opened in headless Chromium: nothing runs, nothing is even tried",
              len(pages), held)


def submissions(soak: bool, rng: random.Random, folder: Path) -> Iterator[Row]:
    from mmed.evaluation.results import text_row, write_results
    from mmed.evaluation.submission import main
    from mmed.prompts import build_prompt, build_target, read_benchmark
    from mmed.utils.errors import UserError

    tests = of_tests("submission")
    where = exams(tests, folder / "exams", rng) / "Test"
    items, modes, out = read_benchmark(where), ("answer", "rationale"), folder / "out"
    rows = [text_row(item, mode, "0", rng.choice([build_target(item, mode == "rationale"), rng.choice(tests.AWKWARD)]), "default") for item in items for mode in modes]
    out.mkdir()
    write_results(out, rows, {(item.key, mode): build_prompt(item, mode == "rationale") for item in items for mode in modes}, {}, {"words": "default"})
    tables = {name: tests.cells(out / name) for name in (tests.MULTI, tests.RATIONALES)}
    count, held = 5_000 if soak else 500, 0
    changes: list[Callable] = [lambda t, n: t.pop(n), lambda t, n: t.insert(n, t[n]), lambda t, n: t[n].__setitem__(0, rng.choice(["", "Klingon", "english"])),
                               lambda t, n: t[n].__setitem__(3, t[n][3] + rng.choice([" ", "E", ",A", "\r"])), lambda t, n: t[n].pop(), lambda t, n: t[n].append(""),
                               lambda t, n: t[n].__setitem__(1, "another question"), lambda t, n: t[0].__setitem__(rng.randrange(4), "language"), lambda t, n: t.pop(0)]
    for _ in trials(count, "E11"):
        name = rng.choice(list(tables))
        table = [list(row) for row in tables[name]]
        rng.choice(changes)(table, rng.randrange(1, len(table)))
        with open(out / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)
        try:
            with quiet():
                held += main([str(out), "--data", str(where)]) == 1
        except UserError as error:
            held += "\n" not in str(error)
        with open(out / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(tables[name])
    with quiet():
        whole = main([str(out), "--data", str(where)]) == 0
    yield Row("E11", "a submission with a column, row, language, question or right answer that is not the test set's: told by the check", count, held if whole else 0)


PARTS = {"E1": [answers], "E2": [server], "E3": [killed_api, killed_evaluation], "E4": [stores], "E5": [canary], "E8": [judges], "E9": [sheets],
         "E10": [reports, readers, browser], "E11": [submissions]}


def rows(soak: bool, seed: int, only: set[str]) -> Iterator[Row]:
    for name in list(os.environ):
        if name.startswith("OPENAI_"):
            del os.environ[name]
    for part, makers in PARTS.items():
        for maker in makers if not only or part in only else ():
            with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
                yield from maker(soak, random.Random(f"{seed} {maker.__name__}"), Path(temporary).resolve())
