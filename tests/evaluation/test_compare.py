"""Two results side by side: each line is the test of its items, and what cannot be compared is named."""
import json
import math
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmed.evaluation import compare, significance
from mmed.evaluation.results import loglikelihood_row, text_row, write_results
from mmed.prompts import ExamItem
from mmed.utils.errors import UserError

SENTENCE = "the cat sat down on a mat"
MODES = ("answer", "rationale", "loglikelihood")


@pytest.fixture
def rng():
    return random.Random(int(os.environ.get("MMED_TEST_SEED", "0")))


def make_items(rng, sizes=(("English", 60), ("Japanese", 20)), checked=True) -> list[ExamItem]:
    options = dict(zip("ABCD", "wxyz"))
    return [ExamItem(f"question {i} {rng.random()}", options, (rng.choice("ABCD"),), SENTENCE, language,
                     f"{language}-{i}", checked, i % 3 > 0 if checked else None)
            for language, size in sizes for i in range(size)]


def make_result(folder: Path, items, rng, skill: float, modes=MODES, words="default", **facts) -> Path:
    rows, prompts = [], {}
    for item in items:
        for mode in modes:
            letter = item.answer[0] if rng.random() < skill else rng.choice("ABCD")
            if mode == "loglikelihood":
                sums = [0.0 if one == letter else -1.0 for one in "ABCD"]
                rows.append(loglikelihood_row(item, "0" * 16, list("ABCD"), sums, [1, 1, 1, 1]))
            else:
                text = f"###Rationale: {' '.join(rng.choices(SENTENCE.split(), k=5))}\n"
                text = (text if mode == "rationale" else "") + f"###Answer: OPTION {letter} IS CORRECT."
                rows.append(text_row(item, mode, "0" * 16, text, words))
            prompts[item.key, mode] = "prompt"
    facts = {"model": "m", "data": "d" * 64, "style": "clean"} | facts
    write_results(folder, rows, prompts, facts, {"words": words, "shots": 0})
    return folder


def lines_of(a: Path, b: Path) -> tuple[dict, list[str]]:
    lines, left_out = compare.compare(compare.read(a)[1], compare.read(b)[1])
    return {(line.column, line.group): line for line in lines}, left_out


def test_every_line_is_the_test_of_its_items(tmp_path, rng, capsys):
    items = make_items(rng)
    a = make_result(tmp_path / "a", items, rng, 0.8)
    b = make_result(tmp_path / "b", items, rng, 0.4, style="official")
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "B has style = official (A: clean)" in printed and re.search(r"answer, %\s+n\s+A\s+B", printed)
    lines = {(line["column"], line["group"]): line
             for line in json.loads((tmp_path / "out.json").read_text())["lines"]}
    assert {group for _, group in lines} == {"English", "Japanese", "macro average", "micro average"}
    rows = [compare.read(folder)[1] for folder in (a, b)]
    languages = [item.language for item in items]
    for mode in MODES:
        both = [[side[mode, item.language, item.key]["correct"] for item in items] for side in rows]
        micro, macro = lines[mode, "micro average"], lines[mode, "macro average"]
        assert micro["p"] == significance.mcnemar(*both)
        assert micro["test"] == "McNemar, exact" and micro["n"] == 80
        assert micro["only_a"] - micro["only_b"] == sum(both[0]) - sum(both[1])
        assert micro["difference"] == pytest.approx(np.mean(both[0]) - np.mean(both[1]), abs=1e-12)
        gap = significance.paired_bootstrap(*both, seed=0, groups=languages)
        assert tuple(macro[name] for name in ("difference", "low", "high", "p", "test")) == gap
        assert macro["difference"] == pytest.approx(macro["a"] - macro["b"], abs=1e-12)
        english = lines[mode, "English"]  # the first 60 items
        assert english["p"] == significance.mcnemar(*(side[:60] for side in both)) and english["n"] == 60
    bleu = lines["BLEU-1|nltk-method1", "micro average"]
    assert bleu["n"] == sum(item.human_check_passed for item in items)
    assert bleu["test"].startswith("sign flips")


def test_a_result_equals_itself(tmp_path, rng, capsys):
    a = make_result(tmp_path / "a", make_items(rng, (("English", 12), ("Japanese", 9))), rng, 0.6)
    compare.main([str(a), str(a)])
    printed = capsys.readouterr().out
    assert "the same model and settings" in printed and "left out" not in printed
    lines = [line for line in printed.splitlines() if line.startswith(("English", "Japanese", "m"))]
    assert lines and all("+0.00 [-]" in line and "1.000" in line for line in lines)


def test_few_items_give_no_small_p_and_no_interval(tmp_path, rng):
    items = make_items(rng, (("English", 3),), checked=False)
    right = compare.read(make_result(tmp_path / "a", items, rng, 1.0, ("answer",)))[1]
    wrong = {place: row | {"correct": False} for place, row in right.items()}
    line = compare.compare(right, wrong)[0][0]
    assert line.p == 0.25 and math.isnan(line.low) and line.difference == 1


def test_what_cannot_be_compared_is_named(tmp_path, rng):
    items = make_items(rng, (("English", 9), ("Russian", 9)), checked=False)
    a = make_result(tmp_path / "a", items, rng, 0.6, ("rationale", "loglikelihood"))
    b = make_result(tmp_path / "b", items, rng, 0.6, ("rationale",), words="official")
    lines, left_out = lines_of(a, b)
    assert {column for column, _ in lines} == {"rationale", "ROUGE-1|rouge-f1", "ROUGE-2|rouge-f1",
                                               "ROUGE-L|rouge-f1"}  # of raw text in both
    assert "loglikelihood, loglikelihood_norm in English, Russian: only in A" in left_out
    assert any("BLEU-1|nltk-method1" in why and "in English, Russian: A is tok:mmed-words" in why
               for why in left_out)
    rows_a, rows_b = compare.read(a)[1], compare.read(b)[1]
    for (mode, _, _), row in rows_a.items():
        if mode == "rationale":
            row["scores"]["BERTScore|f1-x|tok:t|avg:mean-of-items|v1"] = 0.5
    left_out = compare.compare(rows_a, rows_b)[1]
    assert any("BERTScore|f1-x" in why and why.endswith("only in A") for why in left_out)
    other = make_result(tmp_path / "c", items, rng, 0.6, ("answer",))
    with pytest.raises(UserError, match="no mode in common"):
        compare.main([str(b), str(other)])


def test_a_language_without_checked_rationales_keeps_its_lines(tmp_path, rng):
    items = make_items(rng, (("English", 9),)) + make_items(rng, (("Arabic", 6),), checked=False)
    lines, _ = lines_of(*(make_result(tmp_path / name, items, rng, 0.6) for name in "ab"))
    bleu = {group: line.n for (column, group), line in lines.items() if column == "BLEU-1|nltk-method1"}
    assert bleu == {"English": 6, "Arabic": 6, "macro average": 12, "micro average": 12}


def test_results_on_other_items_are_rejected(tmp_path, rng):
    items = make_items(rng, (("English", 9),))
    a = make_result(tmp_path / "a", items, rng, 0.6)
    fewer = make_result(tmp_path / "b", items[:-3], rng, 0.6)
    other = [replace(item, question="other") for item in items[:2]] + items[2:]
    changed = make_result(tmp_path / "c", other, rng, 0.6)
    for folder, count in ((fewer, 3), (changed, 2)):
        with pytest.raises(UserError, match=f"{folder}: has other exam items .* {count} differ"):
            compare.main([str(a), str(folder)])
    (a / "predictions.jsonl").write_text('{"mode": "answer"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl:1: not a row .*evaluate again"):
        compare.main([str(a), str(fewer)])
