"""Tests between two models equal SciPy's and err as often as they say; MMED_TEST_SEED sets the inputs."""
import math

import numpy as np
import pytest

from mmed.evaluation import significance


def test_mcnemar_equals_the_exact_binomial_test(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 10, 300, 3000]:
        for lean in (0.5, 0.55, 0.9):
            a, b = [rng.random() < lean for _ in range(n)], [rng.random() < 0.5 for _ in range(n)]
            only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(y > x for x, y in zip(a, b))
            expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            found = significance.mcnemar(a, b)
            assert found == significance.mcnemar(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [3, 8, 12])
def test_sign_flip_test_of_few_items_equals_scipy(rng, n):
    permutation_test = pytest.importorskip("scipy.stats").permutation_test
    gaps = [rng.choice([0.5, -0.25, rng.gauss(0.2, 1)]) for _ in range(n)]
    expected = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    p, test = significance.sign_flip_test(gaps, seed=0)
    assert p == pytest.approx(expected) and test == "sign flips, exact"


def test_equal_differences_on_few_items_prove_nothing():
    for n, p in ((1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)):
        found = significance.paired_bootstrap([1.0] * n, [0.0] * n, seed=0)
        assert found.p == p == significance.mcnemar([True] * n, [False] * n) and found.difference == 1
        assert math.isnan(found.low) and math.isnan(found.high)


def test_a_macro_difference_is_tested_as_a_macro_difference():
    # 100 small steady gains in one language, 3 large losses in another: the macro mean has the losses' sign
    gaps, groups = [0.1] * 100 + [-1.0] * 3, ["en"] * 100 + ["de"] * 3
    macro, micro = (significance.paired_bootstrap(gaps, [0.0] * 103, 0, by) for by in (groups, None))
    assert macro.difference == pytest.approx(-0.45)
    assert macro.p == pytest.approx(0.25, abs=0.05)  # 2 of the 2^3 flips of the losses
    assert micro.difference > 0 and micro.p < 0.01


def test_sign_flip_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hard = rng.random(300)  # items differ much more than models do: only pairing shows the difference
    steady = significance.paired_bootstrap(hard + 0.02 + rng.normal(0, 0.01, 300), hard, seed=0)
    assert steady.p == 1 / (significance.FLIPS + 1) and 0 < steady.low < steady.difference < steady.high
    ps = [significance.sign_flip_test(list(rng.random(40) - rng.random(40)), seed)[0] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11  # 5 %, give or take 3 standard errors
