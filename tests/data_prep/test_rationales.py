"""Rationales, topics and their checking: every call once, every line kept."""
import csv
import itertools
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from json_lines import read_lines, write_lines
from killed_commands import check_restarts
from stub_server import Stub, prompt_of, reply

from data_prep.benchmark.rationale_checks import COLUMNS, CRITERIA, item_code
from data_prep.rationales import OTHER, TOPICS, main, read_rationale, read_topic, solved_text, topic_prompt
from mmed.prompts import ExamItem, read_benchmark
from mmed.utils.errors import UserError


def model(answer) -> Stub:
    """A chat model that answers with `answer(prompt)`."""
    def fault(body, tries):
        text = answer(prompt_of(body))
        ends = (end for mark, end in (("CUT", "length"), ("FILTER", "content_filter")) if mark in text)
        return 200, reply(text, finish=next(ends, "stop")), {}

    return Stub(fault)


def ask(stub: Stub, command: str, data: Path, out: Path, *options: str) -> dict:
    """Run `generate` or `topics` against a model and return the report."""
    main([command, "--data", str(data), "--out", str(out), "--api", "m", "--base-url", stub.url, *options])
    return json.loads(next(out.glob("*.json")).read_text(encoding="utf-8"))


@pytest.fixture
def exams(tmp_path) -> Path:
    folder, rng = tmp_path / "Test", random.Random(2)
    for language, count in (("English", 8), ("Japanese", 5)):
        rows = [{"question": f"{language} {i} 熱 fever?", "options": {c: f"{c.lower()}{i}" for c in "ABCD"},
                 "answer_idx": rng.choice(["A", "B,D"]), "rationale": "old reason" if i == 3 else "",
                 "human_checked": i == 3, "human_check_passed": i == 3, "meta": {"é": [1, None]}}
                for i in range(count)]
        write_lines(folder / f"{language}.jsonl", *rows, "")
    return folder


def lines(folder: Path) -> dict[str, list[dict]]:
    return {path.name: read_lines(path) for path in sorted(folder.glob("*.jsonl"))}


def test_rationales_go_to_the_items_without_one_and_all_else_stays(exams, tmp_path, capsys):
    stub = model(lambda prompt: f"###Rationale: because of {prompt.split('Question: ')[1][:7]}\n")
    report = ask(stub, "generate", exams, tmp_path / "out")
    before, after = lines(exams), lines(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        for i, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            assert new == (old if i == 3 else old | {"rationale": f"because of {old['question'][:7]}"})
            assert list(new) == list(old)
    assert (report["items"], report["asked"], report["problems"]) == (13, 11, [])
    assert report["usage"] == {"calls": 11, "prompt_tokens": 33, "completion_tokens": 22, "failed": 0,
                               "without_counts": 0, "finish_reasons": {"stop": 11}, "models": ["m-0613"]}
    assert len(stub.tries) == 11
    assert report["server"]["options"] == {"temperature": 0, "seed": 0}
    assert "this run: 11 of 11 calls, tokens in 33, out 22\n" in capsys.readouterr().out
    prompts = "\n".join(stub.tries)
    assert all(solved_text(item) in prompts for item in read_benchmark(exams)[:3])
    assert all(f"Explain in {language}" in prompts for language in ("English", "Japanese"))
    item = ExamItem("Why?", {"A": "this", "B": "that"}, ("B",), "", "English", "1")
    assert solved_text(item) == "###Question: Why?\n###Options:\nA. this\nB. that\n###Right answer: B. that"


def test_samples_are_asked_for_until_the_letter_is_the_key(exams, tmp_path, capsys):
    """The model answers B,D first, then A, then B,D; and always C about one item."""
    asked: Counter = Counter()

    def answer(prompt):
        name, number = re.search(r"Question: (\w+) (\d)", prompt).groups()
        asked[name, number] += 1
        letters = "C" if (name, number) == ("English", "0") else "A" if asked[name, number] == 2 else "B,D"
        return f"###Rationale: reason {asked[name, number]}\n###Answer: OPTION {letters} IS CORRECT."

    stub = model(answer)
    report = ask(stub, "generate", exams, tmp_path / "out", "--samples", "3")
    rows = lines(tmp_path / "out")
    for name, part in lines(exams).items():
        for i, (old, new) in enumerate(zip(part, rows[name], strict=True)):
            expected = "" if (name, i) == ("English.jsonl", 0) else \
                old["rationale"] or f"reason {1 if old['answer_idx'] == 'B,D' else 2}"
            assert new["rationale"] == expected
    english, japanese = (report["accepted"][name] for name in ("English", "Japanese"))
    assert (english["items"], english["accepted"], english["rate"]) == (7, 6, 6 / 7)
    assert japanese["accepted"] == 4 == sum(japanese["by_sample"]) and report["samples"] == 3
    key = lines(exams)["English.jsonl"][0]["answer_idx"]
    assert [problem["reason"] for problem in report["problems"]] == [f"answered C; the key is {key}"]
    assert "English: 6 of 7 accepted (85.7 %), by sample: " in capsys.readouterr().out
    assert not any("Right answer" in prompt for prompt in stub.tries) and max(stub.tries.values()) == 3
    assert {(body["temperature"], body["seed"]) for _, _, body in stub.seen} == {(0, 0), (0.8, 2), (0.8, 3)}
    again = ("--samples", "3", "--calls", str(tmp_path / "out.calls.jsonl"))
    ask(stub, "generate", exams, tmp_path / "again", *again)
    assert len(stub.seen) == sum(asked.values()) and lines(tmp_path / "again") == rows
    with pytest.raises(UserError, match="needs a temperature and a seed"):
        ask(stub, "generate", exams, tmp_path / "x", "--samples", "3", "--server-option", "seed=none")


def test_stored_calls_are_used_again(exams, tmp_path, capsys):
    stub, out = model(lambda prompt: "because"), tmp_path / "out"
    ask(stub, "generate", exams, out, "--limit", "2")
    assert len(stub.seen) == 4
    shutil.rmtree(out)
    ask(stub, "generate", exams, out)
    assert set(stub.tries.values()) == {1} and len(stub.tries) == 11
    assert "this run: 7 of 11 calls" in capsys.readouterr().out
    ask(stub, "generate", out, tmp_path / "b", "--replace", "--max-new-tokens", "50")
    assert len(stub.seen) == 11 + 13
    assert not any(row["human_checked"] for rows in lines(tmp_path / "b").values() for row in rows)
    for options, message in (((out, tmp_path / "c"), "every item has a rationale already; use --replace"),
                             ((exams, tmp_path / "c", "--completions"), "--completions: not supported"),
                             ((exams, tmp_path / "c", "--samples", "-1"), "--samples: expected 0 or more"),
                             ((exams, out), "already there; give another --out"),
                             ((exams, tmp_path / "c", "--limit", "-1"), "--limit: expected 0 or more")):
        with pytest.raises(UserError, match=message):
            ask(stub, "generate", *options)


def test_a_killed_run_is_finished_by_the_next_start(exams, tmp_path, rng):
    stub, kills = model(lambda prompt: f"because {prompt[:90]}"), tmp_path / "kills"
    kills.mkdir()

    def generate(folder: Path) -> None:
        if not (folder / "out").exists():  # or there is nothing to do
            ask(stub, "generate", exams, folder / "out", "--limit", "2")

    check_restarts(generate, kills, rng, most=12)


def test_replies_that_cannot_be_used_are_listed_and_the_item_stays_as_it_was(exams, tmp_path, capsys):
    answers = {"English 0": "CUT short", "English 1": " \n", "English 2": "###Rationale:",
               "English 4": "because FILTER"}
    stub = model(lambda prompt: next((text for start, text in answers.items() if start in prompt), "fine"))
    report = ask(stub, "generate", exams, tmp_path / "out")
    assert [problem["reason"].split(":")[0] for problem in report["problems"]] == [
        "truncated at --max_new_tokens", *["no rationale in the reply"] * 2, "truncated by a content filter"]
    assert lines(tmp_path / "out")["English.jsonl"][:5] == lines(exams)["English.jsonl"][:5]
    assert "7 of 11 items have a rationale now; 4 could not be used" in capsys.readouterr().out


def test_topics_are_given(exams, tmp_path):
    names = itertools.cycle(["Surgery.", "**pathology**", OTHER, "?"])
    labels = dict(zip((f"{language} {i} " for language in ("English", "Japanese") for i in range(8)), names))
    stub = model(lambda prompt: next(text for start, text in labels.items() if start in prompt))
    report = ask(stub, "topics", exams, tmp_path / "out")
    topics = [row.get("topic") for row in lines(tmp_path / "out")["English.jsonl"]]
    assert topics == ["Surgery", "Pathology", OTHER, None] * 2 and len(report["problems"]) == 3
    assert report["topics"]["Surgery"] == 4 and report["topics"][OTHER] == 3
    assert list(report["topics"]) == [*TOPICS, OTHER]
    assert read_benchmark(tmp_path / "out")[0].extra["topic"] == "Surgery"


def test_every_topic_is_read_back_from_its_own_name_and_listed_in_the_prompt(exams):
    prompt = topic_prompt(read_benchmark(exams)[0])
    assert len(set(TOPICS)) == 21
    for label in (*TOPICS, OTHER):
        assert f"\n{label}\n" in prompt
        for text in (label, f" {label.upper()}.\n", f"**{label}**", f"- {label}"):
            assert read_topic(text) == label
    assert read_topic("obstetrics & gynecology") == "Obstetrics and Gynecology"
    for text in ("", "Cardiology", "Surgery, Anatomy", "None of the other subjects", "Neurosurgery"):
        assert read_topic(text) is None


@pytest.mark.parametrize("text, expected", [
    ("Because.", "Because."), ("###Rationale: Because.", "Because."), ("**Rationale:** x", "x"),
    ("rationale: a\n\nb ", "a\n\nb"), (" ", None), ("### Rationale:", None),
    ("Rationale therapy is not rational", "Rationale therapy is not rational"),
])
def test_rationales_are_read_without_their_marker(text, expected):
    assert read_rationale(text) == expected


YES, NO = dict.fromkeys(CRITERIA, "yes"), dict.fromkeys(CRITERIA, "Y") | {"accurate": "no"}


@pytest.fixture
def data(tmp_path) -> Path:
    for language in ("English", "Japanese"):
        rows = [{"id": f"{language[:2]}{i}", "question": f"={language} {i} ?",
                 "options": {"A": f"{language} {i}", "B": "\u2028 2"}, "answer_idx": "B",
                 "rationale": f'=because "{language}",\n{i}'} for i in range(30)]
        write_lines(tmp_path / "data" / f"{language}.jsonl", *rows)
    return tmp_path / "data"


def made_sheet(data: Path, *arguments: str) -> list[dict]:
    path = data.with_name("s.csv")
    path.unlink(missing_ok=True)
    main(["sheet", "--data", str(data), "--out", str(path), *arguments])
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def sheet(path: Path, data: Path, cells: dict[str, dict], delimiter: str = ",") -> str:
    """The whole sheet of `data` as a checker saved it, with these cells in the rows of items."""
    codes = {item_code(item): item.key for item in read_benchmark(data)}
    rows = [row | cells.get(codes[row["item"]], {}) for row in made_sheet(data)]
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def merge(data: Path, *sheets: str) -> dict:
    out = data.parent / "out"
    main(["merge", *sheets, "--data", str(data), "--out", str(out)])
    return json.loads((out / "checks.json").read_text(encoding="utf-8"))


def test_a_sheet_holds_the_drawn_items_and_no_formula(data):
    every, some = (made_sheet(data, "--language", language, "--items", count)
                   for language, count in (("ja", "0"), ("Japanese", "9")))
    assert len(every) == 30 and len(some) == 9 and some == [row for row in every if row in some]
    assert every[3]["question"] == "Question: =Japanese 3 ?\nA. Japanese 3\nB (right). \u2028 2"
    assert every[3]["rationale"] == 'Rationale: =because "Japanese",\n3'
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in made_sheet(data) for cell in row.values())
    row = {"question": "?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
    write_lines(data / "Japanese.jsonl", row)
    with pytest.raises(UserError, match="no item in ja has a rationale to check"):
        made_sheet(data, "--language", "ja")


def test_checks_are_merged_with_agreement(data, tmp_path, capsys):
    keys = [f"En{i}" for i in range(5)]
    one = sheet(tmp_path / "Ann.csv", data,
                dict(zip(keys, [YES, YES, NO, NO, YES])) | {"Ja0": {"sound": "no"}})  # incomplete
    two = sheet(tmp_path / "Bo.csv", data, dict(zip(keys, [YES, NO, NO, NO, YES | {"note": " late "}])), ";")
    report = merge(data, one, two)
    assert report["passed"] == dict(zip(keys, [True, False, False, False, True]))
    assert report["all"]["passed"] == 2 and report["checkers"] == {"Ann": 5, "Bo": 5}
    assert report["notes"] == [{"key": "En4", "checker": "Bo", "note": "late"}]
    # alpha = 1 - D_o / D_e: 2 of 10 values in disagreement; 5 yes and 5 no of 10 disagree 50 in 90 times
    assert report["agreement"]["passed"] == {"percent": 80, "alpha": pytest.approx(1 - (2 / 10) / (50 / 90))}
    assert report["agreement"]["consistent"] == {"percent": 100, "alpha": None}
    rows = {row["id"]: row for part in lines(tmp_path / "out").values() for row in part}
    assert rows["En1"]["human_checked"] is True and rows["En1"]["human_check_passed"] is False
    assert "human_checked" not in rows["Ja0"]
    passed = [item.human_check_passed for item in read_benchmark(tmp_path / "out")]
    assert passed[:6] == [True, False, False, False, True, None]
    said = capsys.readouterr().out
    assert report["incomplete"] == 1 and "1 rows left out, which lack a verdict on some criterion" in said
    for part in ("English: 2 of 5 rationales passed, 40.0 % [11.8-76.9]", "accurate 80.0 %, alpha 0.640",
                 "consistent 100.0 %, alpha not defined"):
        assert part in said


@pytest.mark.parametrize(("cells", "message"), [
    ({"sound": "maybe"}, "'maybe' is neither yes nor no"),
    (YES | {"item": "item-0"}, "not an item of --data, or its rationale has changed")])
def test_rows_that_cannot_be_used_are_one_line_each_and_nothing_is_written(cells, message, data, tmp_path,
                                                                           capsys):
    good = sheet(tmp_path / "Ann.csv", data, {"En0": YES})
    bad = sheet(tmp_path / "Bo.csv", data, {"En1": cells, "Ja1": cells})
    with pytest.raises(UserError, match=r"2 of the sheets' rows cannot be used \(listed above\); nothing"):
        merge(data, good, bad)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith(f"error: {bad}:") and message in line for line in said)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_filled_in_sheets(data, tmp_path):
    with pytest.raises(UserError, match="no item has a verdict"):
        merge(data, sheet(tmp_path / "Ann.csv", data, {}))
    (tmp_path / "x.csv").write_text("language\n1\n")
    with pytest.raises(UserError, match=r"saved as CSV in UTF-8, with the columns item, language"):
        merge(data, str(tmp_path / "x.csv"))
    one, two = (sheet(tmp_path / name / "s.csv", data, {"En0": YES}) for name in ("Ann", "Bo"))
    with pytest.raises(UserError, match=r"Ann/s.csv, .*Bo/s.csv: two have the same name"):
        merge(data, one, two)
    with pytest.raises(UserError, match=r"s.csv: already there; give another --out"):
        main(["sheet", "--data", str(data), "--out", two])
