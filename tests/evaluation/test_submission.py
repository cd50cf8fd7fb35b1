"""The files of a submission: what `mmed.eval` writes fits, every change that would make it another submission is named."""
import csv
import json
import random

import pytest

from mmed.evaluation.results import text_row, write_results
from mmed.evaluation.submission import main
from mmed.prompts import build_prompt, build_target, read_benchmark
from mmed.utils.errors import UserError

SEED = random.randrange(10 ** 6)
AWKWARD = ['"a", b', "c\rd", "e\nf\r\ng", "=HYPERLINK(1)", "\u2028 \x00x", "'", "\t ", "熱 \ud800", ";", "\\n"]
MULTI, RATIONALES, ACCURACY, SCORES = "multi_choice_results.csv", "rationale_results.csv", "accuracy_metric.csv", "rationale_similarity_metric.csv"


@pytest.fixture
def sent(tmp_path):
    """(test set, result folder) with texts that a careless CSV writer breaks on."""
    rng, data = random.Random(SEED), tmp_path / "Test"
    data.mkdir()
    for language in ("English", "Japanese"):
        with open(data / f"{language}.jsonl", "w", encoding="utf-8") as file:
            for i in range(12):
                bad = rng.choice(AWKWARD).replace("\ud800", "?")
                file.write(json.dumps({"question": f"{bad} question {i}?", "options": {"A": "x" + bad, "B": "y", "C": "z"}, "rationale": f"as {bad} is {i}",
                                       "answer_idx": rng.choice(["A", "B", "A,C"]), "human_check_passed": i % 3 > 0}) + "\n")
    items = read_benchmark(data)
    rows = [text_row(item, mode, "0", rng.choice([build_target(item, mode == "rationale"), "The answer is B."]) if i % 2 else AWKWARD[i // 2 % len(AWKWARD)],
                     "default") for i, item in enumerate(items) for mode in ("answer", "rationale")]
    prompts = {(item.key, mode): build_prompt(item, mode == "rationale") for item in items for mode in ("answer", "rationale")}
    (tmp_path / "out").mkdir()
    write_results(tmp_path / "out", rows, prompts, {}, {"words": "default"})
    return data, tmp_path / "out", rows


def cells(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_what_an_evaluation_writes_fits_and_every_text_comes_back_from_its_file(sent, capsys):
    data, out, rows = sent
    print("seed", SEED)
    assert main([str(out), "--data", str(data)]) == 0
    told = capsys.readouterr().out
    assert "fits" in told and f"{MULTI}: 24 rows" in told and f"{RATIONALES}: 16 rows" in told
    for name, mode in ((MULTI, "answer"), (RATIONALES, "rationale")):
        chosen = [row for row in rows if row["mode"] == mode and (mode == "answer" or row["doc"]["human_check_passed"])]
        assert [line[2] for line in cells(out / name)[1:]] == [row["text"].replace("\ud800", "?") for row in chosen]


def drop_row(table):
    table.pop(5)


@pytest.mark.parametrize("name, change, message", [
    (MULTI, lambda t: [row.pop(3) for row in t], "its columns are Language, ModelInput, ModelOutput; expected Language, ModelInput, ModelOutput, GT_Answer"),
    (MULTI, lambda t: t[0].reverse(), "its columns are GT_Answer"),
    (MULTI, lambda t: t.pop(0), "its columns are English"),
    (MULTI, lambda t: t.clear(), "its columns are missing"),
    (MULTI, drop_row, "rows in English, expected 12"),
    (MULTI, lambda t: t.append(t[-1]), "13 rows in Japanese, expected 12"),
    (MULTI, lambda t: t[3].__setitem__(0, "Klingon"), "row 4: language 'Klingon'; the test set has English, Japanese"),
    (MULTI, lambda t: t[3].__setitem__(3, "D"), "row 4: GT_Answer 'D' is not the test set's"),
    (MULTI, lambda t: t[3].pop(), "row 4: 3 cells, expected 4"),
    (MULTI, lambda t: t.insert(2, t.pop(4)), "its input does not hold question 2 of English; rows stand in the order of the test files"),
    (RATIONALES, lambda t: t[2].__setitem__(3, "another reason"), "row 3: GT_Answer 'another reason' is not the test set's"),
    (RATIONALES, drop_row, "rows in English, expected 8"),
    (ACCURACY, lambda t: t[0].reverse(), "its columns are Japanese, English; expected English, Japanese"),
    (ACCURACY, lambda t: t[1].__setitem__(0, "99.99"), "but the outputs give"),
    (ACCURACY, lambda t: t[1].__setitem__(0, "nan"), "expected a number from 0 to 100"),
    (ACCURACY, lambda t: t.pop(), "no row"),
    (SCORES, lambda t: t.pop(), "no row ROUGE-L"),
    (SCORES, lambda t: t[1].__setitem__(0, "BLEU-9"), "'BLEU-9' stands there twice or is none of BLEU-1"),
    (SCORES, lambda t: t[1].__setitem__(1, "101"), "expected a number from 0 to 100"),
])
def test_a_change_that_makes_it_another_submission_is_told_with_its_row(sent, name, change, message, capsys):
    data, out, _ = sent
    table = cells(out / name)
    change(table)
    with open(out / name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    try:
        assert main([str(out), "--data", str(data)]) == 1
        told = capsys.readouterr().err
    except UserError as error:
        told = str(error)
        assert "\n" not in told
    assert message in told and name in told, told


@pytest.mark.parametrize("content, message", [
    (b'Language,ModelInput,ModelOutput,GT_Answer\n"English', "no CSV"), (b"Language,ModelInput,ModelOutput,GT_Answer\n\xff\xfe", "not UTF-8"),
    (b"Language,ModelInput,ModelOutput,GT_Answer\n" + b"x" * (2 ** 24 + 2), "field larger than"), (None, "no such file"),
])
def test_what_is_no_csv_is_one_line(sent, content, message):
    data, out, _ = sent
    (out / MULTI).unlink()
    if content is not None:
        (out / MULTI).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        main([str(out), "--data", str(data)])
    assert "\n" not in str(caught.value)
