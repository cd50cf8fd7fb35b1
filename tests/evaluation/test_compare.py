"""Two results side by side: each line is the test of its items, and what cannot be compared is named."""
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_folders import make_items, make_result

from mmed.evaluation import compare, significance
from mmed.utils.errors import UserError


def exam(rng, checked=True, **sizes: int):
    """Items of languages; with `checked`, two of three rationales passed the human check."""
    items = [item for language, size in sizes.items() for item in make_items(rng, size, [language], None)]
    return [replace(item, human_check_passed=i % 3 > 0 if checked else None) for i, item in enumerate(items)]


def lines_of(a: Path, b: Path) -> tuple[dict, list[str]]:
    lines, left_out = compare.compare(compare.read(a)[1], compare.read(b)[1])
    return {(line.column, line.group): line for line in lines}, left_out


def test_every_line_is_the_test_of_its_items(tmp_path, rng, capsys):
    items = exam(rng, English=60, Japanese=20)
    a = make_result(tmp_path / "a", items, rng, 0.8, facts={"style": "clean"})
    b = make_result(tmp_path / "b", items, rng, 0.4, facts={"style": "official"})
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "B has style = official (A: clean)" in printed and re.search(r"answer, %\s+n\s+A\s+B", printed)
    lines = {(line["column"], line["group"]): line
             for line in json.loads((tmp_path / "out.json").read_text())["lines"]}
    assert {group for _, group in lines} == {"English", "Japanese", "macro average", "micro average"}
    rows = [compare.read(folder)[1] for folder in (a, b)]
    for mode in ("answer", "rationale", "loglikelihood"):
        both = [[side[mode, item.language, item.key]["correct"] for item in items] for side in rows]
        micro, macro = lines[mode, "micro average"], lines[mode, "macro average"]
        assert micro["p"] == significance.mcnemar(*both)
        assert micro["test"] == "McNemar, exact" and micro["n"] == 80
        assert micro["difference"] == pytest.approx(np.mean(both[0]) - np.mean(both[1]), abs=1e-12)
        gap = significance.paired_bootstrap(*both, seed=0, groups=[item.language for item in items])
        assert tuple(macro[name] for name in ("difference", "low", "high", "p", "test")) == gap
        english = lines[mode, "English"]  # the first 60 items
        assert english["p"] == significance.mcnemar(*(side[:60] for side in both)) and english["n"] == 60
    bleu = lines["BLEU-1|nltk-method1", "micro average"]
    assert bleu["n"] == sum(item.human_check_passed for item in items)
    assert bleu["test"].startswith("sign flips")


def test_a_result_equals_itself(tmp_path, rng, capsys):
    a = make_result(tmp_path / "a", exam(rng, English=12, Japanese=9), rng, 0.6)
    compare.main([str(a), str(a)])
    printed = capsys.readouterr().out
    assert "the same model and settings" in printed and "left out" not in printed
    lines = [line for line in printed.splitlines() if line.startswith(("English", "Japanese", "m"))]
    assert lines and all("+0.00 [-]" in line and "1.000" in line for line in lines)


def test_what_cannot_be_compared_is_named(tmp_path, rng):
    items = exam(rng, False, English=9, Russian=9)
    a = make_result(tmp_path / "a", items, rng, modes=("rationale", "loglikelihood"))
    b = make_result(tmp_path / "b", items, rng, modes=["rationale"], words="official")
    lines, left_out = lines_of(a, b)
    assert {column for column, _ in lines} == {"rationale", "ROUGE-1|rouge-f1", "ROUGE-2|rouge-f1",
                                               "ROUGE-L|rouge-f1"}  # of raw text in both
    assert "loglikelihood, loglikelihood_norm in English, Russian: only in A" in left_out
    assert any("BLEU-1|nltk-method1" in why and "in English, Russian: A is tok:mmed-words" in why
               for why in left_out)
    other = make_result(tmp_path / "c", items, rng, modes=["answer"])
    with pytest.raises(UserError, match="no mode in common"):
        compare.main([str(b), str(other)])


def test_a_language_without_checked_rationales_keeps_its_lines(tmp_path, rng):
    items = exam(rng, English=9) + exam(rng, False, Arabic=6)
    lines, _ = lines_of(*(make_result(tmp_path / name, items, rng) for name in "ab"))
    bleu = {group: line.n for (column, group), line in lines.items() if column == "BLEU-1|nltk-method1"}
    assert bleu == {"English": 6, "Arabic": 6, "macro average": 12, "micro average": 12}


def test_results_on_other_items_are_rejected(tmp_path, rng):
    items = exam(rng, English=9)
    a = make_result(tmp_path / "a", items, rng)
    fewer = make_result(tmp_path / "b", items[:-3], rng)
    changed = make_result(
        tmp_path / "c", [replace(item, question="other") for item in items[:2]] + items[2:], rng)
    for folder, count in ((fewer, 3), (changed, 2)):
        with pytest.raises(UserError, match=f"{folder}: has other exam items .* {count} differ"):
            compare.main([str(a), str(folder)])
    (a / "predictions.jsonl").write_text('{"mode": "answer"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl:1: not a row .*evaluate again"):
        compare.main([str(a), str(fewer)])
