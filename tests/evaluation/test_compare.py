"""Two results side by side: tests between models equal SciPy's, and what cannot be compared is named."""
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_folders import make_items, make_result

from mmed.evaluation import compare
from mmed.utils.errors import UserError
from mmed.utils.files import read_json


def test_mcnemar_equals_the_exact_binomial_test(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 10, 300, 3000]:
        for lean in (0.5, 0.55, 0.9):
            a, b = [rng.random() < lean for _ in range(n)], [rng.random() < 0.5 for _ in range(n)]
            only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(y > x for x, y in zip(a, b))
            expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            found = compare.mcnemar(a, b)
            assert found == compare.mcnemar(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [3, 8, 12])
def test_sign_flip_test_of_few_items_equals_scipy(rng, n):
    permutation_test = pytest.importorskip("scipy.stats").permutation_test
    gaps = [rng.choice([0.5, -0.25, rng.gauss(0.2, 1)]) for _ in range(n)]
    expected = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    p, test = compare.sign_flip_test(gaps, seed=0)
    assert p == pytest.approx(expected) and test == "sign flips, exact"


def test_equal_differences_on_few_items_prove_nothing():
    for n, p in ((1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)):
        found = compare.paired_bootstrap([1.0] * n, [0.0] * n, seed=0)
        assert found.p == p == compare.mcnemar([True] * n, [False] * n) and found.difference == 1
        assert math.isnan(found.low) and math.isnan(found.high)


def test_a_macro_difference_is_tested_as_a_macro_difference():
    # 100 small steady gains in one language, 3 large losses in another: the macro mean has the losses' sign
    gaps, groups = [0.1] * 100 + [-1.0] * 3, ["en"] * 100 + ["de"] * 3
    macro, micro = (compare.paired_bootstrap(gaps, [0.0] * 103, 0, by) for by in (groups, None))
    assert macro.difference == pytest.approx(-0.45)
    assert macro.p == pytest.approx(0.25, abs=0.05)  # 2 of the 2^3 flips of the losses
    assert micro.difference > 0 and micro.p < 0.01


def test_sign_flip_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hard = rng.random(300)  # items differ much more than models do: only pairing shows the difference
    steady = compare.paired_bootstrap(hard + 0.02 + rng.normal(0, 0.01, 300), hard, seed=0)
    assert steady.p == 1 / (compare.FLIPS + 1) and 0 < steady.low < steady.difference < steady.high
    ps = [compare.sign_flip_test(list(rng.random(40) - rng.random(40)), seed)[0] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11  # 5 %, give or take 3 standard errors


def exam(rng, checked=True, **sizes: int):
    """Items of languages; with `checked`, two of three rationales passed the human check."""
    items = [item for language, size in sizes.items() for item in make_items(rng, size, [language], None)]
    return [replace(item, human_check_passed=i % 3 > 0 if checked else None) for i, item in enumerate(items)]


def lines_of(a: Path, b: Path) -> tuple[dict, list[str]]:
    lines, left_out = compare.compare(compare.read(a), compare.read(b))
    return {(line.column, line.group): line for line in lines}, left_out


def test_every_line_is_the_test_of_its_items(tmp_path, rng, capsys):
    items = exam(rng, English=60, Japanese=20)
    a, b = (make_result(tmp_path / name, items, rng, skill, facts={"style": style}, style=style, shots=0)
            for name, skill, style in (("a", 0.8, "clean"), ("b", 0.4, "official")))
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    printed, (lines, _) = capsys.readouterr().out, lines_of(a, b)
    written = read_json(tmp_path / "out.json")["lines"]
    assert [(line["column"], line["group"], line["p"]) for line in written] == [
        (*place, line.p) for place, line in lines.items()]
    assert "B has style = official (A: clean)" in printed
    assert re.search(r"answer only, %\s+n\s+A\s+B", printed)
    assert {group for _, group in lines} == {"English", "Japanese", "macro average", "micro average"}
    rows = [compare.read(folder)[1] for folder in (a, b)]
    for mode in ("answer", "rationale", "loglikelihood"):
        both = [[side[mode, item.language, item.key]["correct"] for item in items] for side in rows]
        micro, macro, english = (lines[mode, name]
                                 for name in ("micro average", "macro average", "English"))
        assert (micro.p, micro.test, micro.n) == (compare.mcnemar(*both), "McNemar, exact", 80)
        assert micro.difference == pytest.approx(np.mean(both[0]) - np.mean(both[1]), abs=1e-12)
        gap = compare.paired_bootstrap(*both, seed=0, groups=[item.language for item in items])
        assert vars(gap).items() <= vars(macro).items()
        assert english.p == compare.mcnemar(*(side[:60] for side in both)) and english.n == 60
    bleu = lines["BLEU-1|nltk-method1", "micro average"]
    assert bleu.n == sum(item.human_check_passed for item in items) and bleu.test.startswith("sign flips")


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
    assert "logP, logP/token in English, Russian: only in A" in left_out
    assert any("BLEU-1|nltk-method1" in why and "in English, Russian: A is tok:mmed-words" in why
               for why in left_out)
    others = [replace(item, rationale=f"not {item.rationale}") for item in items]
    c = make_result(tmp_path / "c", others, rng, modes=("rationale", "loglikelihood"), equal_options="keyed")
    lines, left_out = lines_of(a, c)
    assert not lines and "parser" in left_out[0] and left_out[0].endswith("|equal_options:keyed")
    assert any("ROUGE-L|rouge-score-f1 in English" in why and "reference rationales differ" in why
               for why in left_out)
    other = make_result(tmp_path / "d", items, rng, modes=["answer"])
    with pytest.raises(UserError, match=r"no mode in common .*answer only, official scorer in English, R"):
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
