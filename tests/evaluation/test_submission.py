"""The files of a submission: what `mmed.eval` writes fits, and every change that breaks one is named."""
import csv
import json
import os
import random

import pytest

from mmed.evaluation.results import text_row, write_results
from mmed.evaluation.submission import main
from mmed.prompts import build_prompt, build_target, read_benchmark
from mmed.utils.errors import UserError

SEED = int(os.environ.get("MMED_TEST_SEED", "0"))
AWKWARD = ['"a", b', "c\rd", "e\nf\r\ng", "=HYPERLINK(1)", "\u2028 \x00x", "'", "\t ", "熱", ";", "\\n"]
MULTI, RATIONALES = "multi_choice_results.csv", "rationale_results.csv"
ACCURACY, SCORES = "accuracy_metric.csv", "rationale_similarity_metric.csv"


@pytest.fixture
def sent(tmp_path):
    """(arguments of the command, result folder, rows) with texts that a careless CSV writer breaks on."""
    rng, data = random.Random(SEED), tmp_path / "Test"
    data.mkdir()
    for language in ("English", "Japanese"):
        items = []
        for i in range(12):
            bad = rng.choice(AWKWARD)
            items.append({"question": f"{bad} question {i}?", "options": {"A": "x" + bad, "B": "y", "C": "z"},
                          "rationale": f"as {bad} is {i}", "answer_idx": rng.choice(["A", "B", "A,C"]),
                          "human_check_passed": i % 3 > 0 and language == "English"})
        (data / f"{language}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows, prompts = [], {}
    for i, item in enumerate(read_benchmark(data)):
        for mode in ("answer", "rationale"):
            target = rng.choice([build_target(item, mode == "rationale"), "The answer is B."])
            text = target if i % 2 else AWKWARD[i // 2 % len(AWKWARD)]
            rows.append(text_row(item, mode, "0", text, "official"))
            prompts[item.key, mode] = build_prompt(item, mode == "rationale")
    write_results(tmp_path / "out", rows, prompts, {}, {"words": "official"})
    return [str(tmp_path / "out"), "--data", str(data)], tmp_path / "out", rows


def cells(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_what_an_evaluation_writes_fits_and_every_text_can_be_read_back(sent, capsys):
    arguments, out, rows = sent
    assert main(arguments) == 0
    printed = capsys.readouterr().out  # of the rationales, the checked ones, and all where none was checked
    assert "fits" in printed and f"{MULTI}: 24 rows" in printed and f"{RATIONALES}: 20 rows" in printed
    texts = [row["text"] for row in rows if row["mode"] == "answer"]
    assert [line[2] for line in cells(out / MULTI)[1:]] == texts


@pytest.mark.parametrize("name, change, message", [
    (MULTI, lambda t: [row.pop(3) for row in t], "its columns are Language, ModelInput, ModelOutput; exp"),
    (MULTI, lambda t: t.clear(), "its columns are ; expected"),
    (MULTI, lambda t: t.pop(), "23 rows, expected 24"),
    (MULTI, lambda t: t[3].__setitem__(0, "Klingon"), "row 4: language 'Klingon', expected English"),
    (MULTI, lambda t: t[3].__setitem__(3, "D"), "row 4: GT_Answer 'D' is not the test set's"),
    (MULTI, lambda t: t[3].pop(), "row 4: 3 cells, expected 4"),
    (MULTI, lambda t: t.insert(2, t.pop(4)), "row 3: its input does not contain the question"),
    (RATIONALES, lambda t: t[2].__setitem__(3, "other"), "row 3: GT_Answer 'other' is not the test set's"),
    (ACCURACY, lambda t: t[0].reverse(), "its columns are Japanese, English; expected English"),
    (ACCURACY, lambda t: t[1].__setitem__(0, "99.99"), "that is what the outputs give"),
    (SCORES, lambda t: t.pop(), "expected one row for each of BLEU-1"),
    (SCORES, lambda t: t[1].__setitem__(1, "101"), "row 2: expected a number from 0 to 100"),
])
def test_a_change_that_breaks_a_submission_is_named_with_its_row(sent, name, change, message, capsys):
    arguments, out, _ = sent
    table = cells(out / name)
    change(table)
    with open(out / name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    try:
        assert main(arguments) == 1
        printed = capsys.readouterr().err
    except UserError as error:
        printed = str(error)
    assert message in printed and name in printed, printed


@pytest.mark.parametrize("content", [b'Language,ModelInput,ModelOutput,GT_Answer\n"English', b"\xff\xfe"])
def test_a_file_that_is_no_csv_is_rejected(sent, content):
    (sent[1] / MULTI).write_bytes(content)
    with pytest.raises(UserError, match="not a CSV file"):
        main(sent[0])
