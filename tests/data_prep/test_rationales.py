"""Rationales, topics and their checking: every call once, every line kept."""
import csv
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from json_lines import read_lines, write_lines
from stub_server import Stub, prompt_of, reply

from data_prep.benchmark import rationale_checks as checks
from data_prep.rationales import (
    OTHER,
    TOPICS,
    main,
    read_entries,
    read_rationale,
    read_topic,
    solved_text,
    topic_prompt,
)
from mmed.prompts import read_benchmark
from mmed.utils.errors import UsageError, UserError


def model(answer) -> Stub:
    """A chat model that answers with `answer(prompt)`; `flags` are the options that name it."""
    def fault(body, tries):
        text = answer(prompt_of(body))
        return 200, reply(text, finish="length" if "CUT" in text else "stop"), {}

    stub = Stub(fault)
    stub.flags = ["--api", "strong-1", "--base-url", stub.url]
    return stub


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


def report_of(folder: Path, name: str = "rationales.json") -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


# ---- generate, topics ----------------------------------------------------------------------------

def test_rationales_go_to_the_items_without_one_and_all_else_stays(exams, tmp_path, capsys):
    stub = model(lambda prompt: f"###Rationale: because of {prompt.split('Question: ')[1][:7]}\n")
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), *stub.flags])
    before, after = lines(exams), lines(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        for i, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            assert new == (old if i == 3 else old | {"rationale": f"because of {old['question'][:7]}"})
            assert list(new) == list(old)
    report = report_of(tmp_path / "out")
    assert (report["items"], report["asked"], report["with"], report["problems"]) == (13, 11, 11, [])
    assert report["usage"] == {"calls": 11, "prompt_tokens": 33, "completion_tokens": 22,
                               "without_counts": 0, "finish_reasons": {"stop": 11},
                               "models": ["m-0613"]}
    assert report["facts"]["server"]["options"] == {"temperature": 0, "seed": 0}
    assert "this run: 11 of 11 calls, tokens in 33, out 22\n" in capsys.readouterr().out
    prompts = "\n".join(stub.tries)
    assert len(stub.tries) == 11
    assert all(solved_text(entry.item) in prompts for entry in read_entries(exams)[:3])
    assert all(f"Explain in {language}" in prompts for language in ("English", "Japanese"))


def test_samples_are_asked_for_until_the_letter_is_the_key(exams, tmp_path, capsys):
    """The model answers B,D first, then A, then B,D; and always C about one item."""
    asked: Counter = Counter()

    def answer(prompt):
        name, number = re.search(r"Question: (\w+) (\d)", prompt).groups()
        asked[name, number] += 1
        letters = "C" if (name, number) == ("English", "0") else "A" if asked[name, number] == 2 else "B,D"
        return f"###Rationale: reason {asked[name, number]}\n###Answer: OPTION {letters} IS CORRECT."

    stub = model(answer)
    arguments = ["generate", "--data", str(exams), *stub.flags, "--samples", "3"]
    main([*arguments, "--out", str(tmp_path / "out")])
    rows = lines(tmp_path / "out")
    for name, part in lines(exams).items():
        for i, (old, new) in enumerate(zip(part, rows[name], strict=True)):
            expected = "" if (name, i) == ("English.jsonl", 0) else \
                old["rationale"] or f"reason {1 if old['answer_idx'] == 'B,D' else 2}"
            assert new["rationale"] == expected
    report = report_of(tmp_path / "out")
    english, japanese = (report["accepted"][name] for name in ("English", "Japanese"))
    assert (english["items"], english["accepted"], english["rate"]) == (7, 6, 6 / 7)
    assert japanese["accepted"] == 4 == sum(japanese["by_sample"]) and report["facts"]["samples"] == 3
    assert [(problem["reason"]) for problem in report["problems"]] == [
        f"answered C; the key is {lines(exams)['English.jsonl'][0]['answer_idx']}"]
    assert "English: 6 of 7 accepted (85.7 %), by sample: " in capsys.readouterr().out
    assert not any("Right answer" in prompt for prompt in stub.tries) and max(stub.tries.values()) == 3
    assert {(body["temperature"], body["seed"]) for _, _, body in stub.seen} == {(0, 0), (0.8, 2), (0.8, 3)}
    main([*arguments, "--out", str(tmp_path / "again"), "--calls", str(tmp_path / "out.calls.jsonl")])
    assert len(stub.seen) == sum(asked.values()) and lines(tmp_path / "again") == rows
    with pytest.raises(UsageError, match="--samples: expected 0 or more"):
        main([*arguments, "--out", str(tmp_path / "x"), "--samples", "-1"])
    with pytest.raises(UsageError, match="needs a temperature and a seed"):
        main([*arguments, "--out", str(tmp_path / "x"), "--server-option", "seed=none"])


def test_stored_calls_are_used_again(exams, tmp_path, capsys):
    stub = model(lambda prompt: "because")
    arguments = ["generate", "--data", str(exams), *stub.flags]
    main([*arguments, "--out", str(tmp_path / "a"), "--limit", "2"])
    assert len(stub.seen) == 4
    main([*arguments, "--out", str(tmp_path / "b"), "--calls", str(tmp_path / "a.calls.jsonl")])
    assert set(stub.tries.values()) == {1} and len(stub.tries) == 11
    assert "this run: 7 of 11 calls" in capsys.readouterr().out
    with pytest.raises(UserError, match="b: already there; give another --out"):
        main([*arguments, "--out", str(tmp_path / "b")])
    again = ["generate", "--data", str(tmp_path / "b"), *stub.flags, "--out", str(tmp_path / "c")]
    with pytest.raises(UserError, match="every item has a rationale already; use --replace"):
        main(again)
    main([*again, "--replace", "--max-new-tokens", "50"])
    assert len(stub.seen) == 11 + 13
    assert not any(row["human_checked"] for rows in lines(tmp_path / "c").values() for row in rows)


def test_replies_that_cannot_be_used_are_listed_and_the_item_stays_as_it_was(exams, tmp_path, capsys):
    answers = {"English 0": "CUT short", "English 1": " \n", "English 2": "###Rationale:"}
    stub = model(lambda prompt: next((text for start, text in answers.items() if start in prompt), "fine"))
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "out"), *stub.flags])
    assert [problem["reason"].split(":")[0] for problem in report_of(tmp_path / "out")["problems"]] == [
        "truncated at --max_new_tokens", "no rationale in the reply", "no rationale in the reply"]
    assert lines(tmp_path / "out")["English.jsonl"][:3] == lines(exams)["English.jsonl"][:3]
    assert "8 of 11 items have a rationale now; 3 could not be used" in capsys.readouterr().out


def test_topics_are_given(exams, tmp_path):
    labels = dict(zip((f"{language} {i} " for language in ("English", "Japanese")
                       for i in range(8)), itertools.cycle(["Surgery.", "**pathology**", OTHER, "?"])))
    stub = model(lambda prompt: "why" if "Explain" in prompt
                else next(text for start, text in labels.items() if start in prompt))
    main(["generate", "--data", str(exams), "--out", str(tmp_path / "one"), *stub.flags])
    main(["topics", "--data", str(tmp_path / "one"), "--out", str(tmp_path / "two"), *stub.flags])
    topics = [row.get("topic") for row in lines(tmp_path / "two")["English.jsonl"]]
    assert topics == ["Surgery", "Pathology", OTHER, None] * 2
    report = report_of(tmp_path / "two", "topics.json")
    assert report["topics"]["Surgery"] == 4 and report["topics"][OTHER] == 3
    assert len(report["problems"]) == 3 and list(report["topics"]) == [*TOPICS, OTHER]
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
    ("rationale: a\n\nb ", "a\n\nb"), (" ", None), ("### Rationale:", None),
    ("Rationale therapy is not rational", "Rationale therapy is not rational"),
])
def test_rationales_are_read_without_their_marker(text, expected):
    assert read_rationale(text) == expected


# ---- sheet ---------------------------------------------------------------------------------------

def make_items(folder: Path, count: int = 5) -> Path:
    for language in ("English", "Japanese"):
        rows = [{"id": f"{language[:2]}{i}", "question": f"={language} {i} ?",
                 "options": {"A": f"{language} {i}", "B": "\u2028 2"}, "answer_idx": "B",
                 "rationale": f'=because "{language}",\n{i}'} for i in range(count)]
        write_lines(folder / f"{language}.jsonl", *rows)
    return folder


def made_sheet(data: Path, *arguments: str) -> list[dict]:
    (data.parent / "s.csv").unlink(missing_ok=True)
    main(["sheet", "--data", str(data), "--out", str(data.parent / "s.csv"), *arguments])
    with open(data.parent / "s.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sheet_holds_the_drawn_items_and_no_formula(tmp_path):
    data = make_items(tmp_path / "data", count=30)
    every, some = (made_sheet(data, *options) for options in (
        ["--language", "ja", "--items", "0"], ["--language", "Japanese", "--items", "9"]))
    assert len(every) == 30 and len(some) == 9 and some == [row for row in every if row in some]
    assert every[3]["question"] == "Question: =Japanese 3 ?\nA. Japanese 3\nB (right). \u2028 2"
    assert every[3]["rationale"] == 'Rationale: =because "Japanese",\n3'
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in made_sheet(data) for cell in row.values()
                   if cell)
    row = {"question": "?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
    (data / "Japanese.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="no item in ja has a rationale to check"):
        made_sheet(data, "--language", "ja")


# ---- merge ---------------------------------------------------------------------------------------

YES, NO = dict.fromkeys(checks.CRITERIA, "yes"), dict.fromkeys(checks.CRITERIA, "Y") | {"accurate": "no"}


def sheet(path: Path, data: Path, cells: dict[str, dict], delimiter: str = ",") -> str:
    """The whole sheet of `data` as a checker saved it, with these cells in the rows of items."""
    codes = {checks.item_code(item): item.key for item in read_benchmark(data)}
    rows = [row | cells.get(codes[row["item"]], {}) for row in made_sheet(data)]
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, checks.COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def merge(data: Path, out: Path, *arguments: str) -> dict:
    main(["merge", *arguments, "--data", str(data), "--out", str(out)])
    return report_of(out, "checks.json")


def test_checks_are_merged_with_agreement(tmp_path, capsys):
    data = make_items(tmp_path / "data")
    keys = [f"En{i}" for i in range(5)]
    one = sheet(tmp_path / "Ann.csv", data,
                dict(zip(keys, [YES, YES, NO, NO, YES])) | {"Ja0": {"sound": "no"}})  # incomplete
    two = sheet(tmp_path / "Bo.csv", data, dict(zip(keys, [YES, NO, NO, NO, YES | {"note": " late "}])))
    report = merge(data, tmp_path / "out", one, two)
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
    assert passed == [True, False, False, False, True] + [None] * 5
    said = capsys.readouterr().out
    assert report["incomplete"] == 1 and "1 rows left out, which lack a verdict on some criterion" in said
    for part in ("English: 2 of 5 rationales passed, 40.0 %", "accurate 80.0 %, alpha 0.640",
                 "consistent 100.0 %, alpha not defined"):
        assert part in said
    with pytest.raises(UserError, match="out: already there; give another --out"):
        merge(data, tmp_path / "out", one)


@pytest.mark.parametrize(("cells", "message"), [
    ({"sound": "maybe"}, "'maybe' is neither yes nor no"),
    (YES | {"item": "item-0"}, "not an item of --data, or its rationale has changed")])
def test_rows_that_cannot_be_used_are_one_line_each_and_nothing_is_written(cells, message, tmp_path, capsys):
    data = make_items(tmp_path / "data")
    good = sheet(tmp_path / "Ann.csv", data, {"En0": YES})
    bad = sheet(tmp_path / "Bo.csv", data, {"En1": cells})
    with pytest.raises(UserError, match=r"1 of the sheets' rows cannot be used \(listed above\); nothing"):
        merge(data, tmp_path / "out", good, bad)
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {bad}:") and message in said and not (tmp_path / "out").exists()


def test_files_that_are_no_filled_in_sheets(tmp_path):
    data = make_items(tmp_path / "data")
    with pytest.raises(UserError, match="no item has a verdict"):
        merge(data, tmp_path / "out", sheet(tmp_path / "Ann.csv", data, {}))
    (tmp_path / "x.csv").write_text("language\n1\n")
    with pytest.raises(UserError, match=r"no column 'item'.*saved as CSV in UTF-8"):
        merge(data, tmp_path / "out", str(tmp_path / "x.csv"))


def test_sheets_are_neither_overwritten_nor_merged_under_one_name(tmp_path):
    data = make_items(tmp_path / "data")
    one, two = (sheet(tmp_path / name / "s.csv", data, {"En0": cells}) for name, cells in
                (("Ann", YES), ("Bo", NO)))
    with pytest.raises(UserError, match=r"Bo/s.csv: another sheet has the same name"):
        merge(data, tmp_path / "out", one, two)
    with pytest.raises(UserError, match=r"s.csv: already there; give another --out"):
        main(["sheet", "--data", str(data), "--out", two])


def test_a_sheet_that_a_spreadsheet_saved_with_semicolons_is_read(tmp_path):
    data = make_items(tmp_path / "data")
    path = Path(sheet(tmp_path / "Ann.csv", data, {"En0": YES}, delimiter=";"))
    assert merge(data, tmp_path / "out", str(path))["passed"] == {"En0": True}
