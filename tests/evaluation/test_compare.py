"""Two results side by side: each number from the definitions, and results on other items refused in one line."""
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from mmed import metrics
from mmed.evaluation import compare
from mmed.evaluation.results import loglikelihood_row, text_row, write_results
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError


@pytest.fixture
def rng():
    seed = random.randrange(10 ** 9)
    print(f"seed {seed}")
    return random.Random(seed)


def make_items(rng, languages=("English", "Japanese"), sizes=(60, 20)) -> list[ExamItem]:
    return [ExamItem(f"question {i} {rng.random()}", dict(zip("ABCD", "wxyz")), (rng.choice("ABCD"),), "the cat sat down on a mat", language, f"{language}-{i}",
                     True, i % 3 > 0) for language, size in zip(languages, sizes) for i in range(size)]


def make_result(folder: Path, items, rng, skill: float, modes=("answer", "rationale", "loglikelihood"), **settings) -> Path:
    rows, prompts = [], {}
    for item in items:
        for mode in modes:
            letter = item.answer[0] if rng.random() < skill else rng.choice("ABCD")
            if mode == "loglikelihood":
                rows.append(loglikelihood_row(item, "0" * 16, list("ABCD"), [0.0 if one == letter else -1.0 for one in "ABCD"], [1, 1, 1, 1]))
            else:
                text = f"###Rationale: {' '.join(rng.choices('the cat sat down on a mat'.split(), k=5))}\n" if mode == "rationale" else ""
                rows.append(text_row(item, mode, "0" * 16, f"{text}###Answer: OPTION {letter} IS CORRECT.", "default"))
            prompts[item.key, mode] = "prompt"
    write_results(folder, rows, prompts, {"model": "m", "data": "d" * 64, "style": "clean"} | settings, {"words": "default", "shots": 0})
    return folder


def test_every_line_is_the_test_of_its_items(tmp_path, rng, capsys):
    items = make_items(rng)
    a, b = make_result(tmp_path / "a", items, rng, 0.8), make_result(tmp_path / "b", items, rng, 0.4, style="official")
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "B has style = official (A: clean)" in printed
    lines = {(line["column"], line["group"]): line for line in json.loads((tmp_path / "out.json").read_text())["lines"]}
    assert {group for _, group in lines} == {"English", "Japanese", "macro average", "micro average"}
    rows = [[json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()] for folder in (a, b)]
    for column, mode in (("answer", "answer"), ("rationale", "rationale"), ("loglikelihood", "loglikelihood")):
        hits = [{row["key"]: row["correct"] for row in side if row["mode"] == mode} for side in rows]
        languages = [item.language for item in items]
        both = [[side[item.key] for item in items] for side in hits]
        micro, macro, english = (lines[column, group] for group in ("micro average", "macro average", "English"))
        assert micro["p_mcnemar"] == metrics.mcnemar(*both) and micro["n"] == 80
        assert micro["only_a"] - micro["only_b"] == sum(both[0]) - sum(both[1])
        assert micro["difference"] == pytest.approx(np.mean(both[0]) - np.mean(both[1]), abs=1e-12)
        gap = metrics.paired_bootstrap(*both, seed=0, groups=languages)
        assert (macro["difference"], macro["low"], macro["high"], macro["p_bootstrap"]) == gap and macro["p_mcnemar"] is None
        assert macro["difference"] == pytest.approx(macro["a"] - macro["b"], abs=1e-12)
        part = [[hit for hit, language in zip(side, languages) if language == "English"] for side in both]
        assert english["p_mcnemar"] == metrics.mcnemar(*part) and english["n"] == 60
    bleu = lines["BLEU-1|nltk-method1", "micro average"]
    assert bleu["n"] == sum(item.human_check_passed for item in items) and bleu["p_mcnemar"] is None  # the checked items, as in the tables
    assert ("official", "English") in lines and re.search(r"answer, %\s+n\s+A\s+B", printed)


def test_a_result_equals_itself(tmp_path, rng, capsys):
    a = make_result(tmp_path / "a", make_items(rng), rng, 0.6)
    compare.main([str(a), str(a)])
    printed = capsys.readouterr().out
    assert "the same model and settings" in printed
    for line in printed.splitlines():
        if line.startswith(("English", "Japanese", "m")):
            assert "+0.00 [+0.00 to +0.00]" in line and "1.000" in line


def test_columns_that_only_one_has_are_left_out_and_none_in_common_is_said(tmp_path, rng):
    items = make_items(rng)
    a = make_result(tmp_path / "a", items, rng, 0.6, modes=("answer", "loglikelihood"))
    b = make_result(tmp_path / "b", items, rng, 0.6, modes=("answer",))
    c = make_result(tmp_path / "c", items, rng, 0.6, modes=("rationale",))
    lines = list(compare.compare([compare.read(a)[1], compare.read(b)[1]]))
    assert {line.column for line in lines} == {"answer", "official"}
    with pytest.raises(UserError, match="no mode in common"):
        compare.main([str(b), str(c)])


def test_results_on_other_items_are_refused_in_one_line(tmp_path, rng):
    items = make_items(rng)
    a = make_result(tmp_path / "a", items, rng, 0.6)
    fewer = make_result(tmp_path / "b", items[:-3], rng, 0.6)
    other = [ExamItem("another question", item.options, item.answer, item.rationale, item.language, item.key, True, True) for item in items[:2]] + items[2:]
    changed = make_result(tmp_path / "c", other, rng, 0.6)
    for folder, said in ((fewer, "3 are in one of them only, such as 'Japanese-1"), (changed, "2 of its items have another question")):
        with pytest.raises(UserError, match=re.escape(str(folder))) as caught:
            compare.main([str(a), str(folder)])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    (a / "predictions.jsonl").write_text('{"mode": "answer"}\n')
    with pytest.raises(UserError, match="evaluate again"):
        compare.main([str(a), str(fewer)])
    with pytest.raises(UserError, match="no such file"):
        compare.main([str(tmp_path / "nowhere"), str(fewer)])
