"""Every number equals that of the package which defines it in practice; MMED_TEST_SEED sets the inputs."""
import math
import os
import random
import warnings

import numpy as np
import pytest

from mmed import metrics
from mmed.metrics import bleu, bleu_orders, corpus_bleu, exact_match, kendall_tau, rouge_l, rouge_n

EXACT = 1e-12
SEED = int(os.environ.get("MMED_TEST_SEED", "0"))
ALPHABETS = ["ab", "abcde", "the a of and in patient dose . , x-ray 3.5 mg".split(),
             "患者は 肺炎 の です 。".split(" "), "çéИЖ😀\u0301٣", [f"w{i}" for i in range(300)]]


@pytest.fixture
def rng():
    print(f"seed {SEED}")  # pytest shows it when the test fails
    return random.Random(SEED)


def draw_pairs(rng, count, longest=60):
    """Token lists of unequal lengths, some empty or of one token, with repeats and with copied spans."""
    for _ in range(count):
        alphabet = rng.choice(ALPHABETS)
        sizes = [rng.choice([0, 1, 2, 3, 5, rng.randint(4, longest)]) for _ in range(2)]
        reference, candidate = ([rng.choice(alphabet) for _ in range(size)] for size in sizes)
        if reference and candidate and rng.random() < 0.6:
            for _ in range(rng.randint(1, 4)):
                at, start = rng.randrange(len(candidate)), rng.randrange(len(reference))
                candidate[at : at + 6] = reference[start : start + rng.randint(1, 8)]
        yield candidate, reference


# ---- BLEU and ROUGE ----

def test_bleu_equals_nltk_for_every_order_and_smoothing(rng):
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    methods = {"method1": nltk_bleu.SmoothingFunction().method1, "none": None}
    weights = [(1 / order,) * order for order in range(1, 6)]
    for candidate, reference in draw_pairs(rng, 400):
        for smoothing, method in methods.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nltk warns about every order without a match
                expected = nltk_bleu.sentence_bleu([reference], candidate, weights, method)
            ours = bleu_orders(candidate, reference, 5, smoothing)
            assert ours == pytest.approx(expected, abs=EXACT, rel=0), (candidate, reference, smoothing)
            assert ours[-1] == bleu(candidate, reference, 5, smoothing)


def test_corpus_bleu_equals_sacrebleu(rng):
    sacrebleu = pytest.importorskip("sacrebleu")
    for _ in range(100):
        pairs = list(draw_pairs(rng, rng.choice([1, 2, 5, 20]), longest=rng.choice([5, 40])))
        candidates, references = zip(*pairs)
        texts = [" ".join(tokens) for tokens in candidates], [[" ".join(tokens) for tokens in references]]
        for order in (1, 2, 4):
            expected = sacrebleu.BLEU(tokenize="none", max_ngram_order=order, force=True).corpus_score(*texts)
            ours = corpus_bleu(candidates, references, order)
            assert ours == pytest.approx(expected.score, abs=1e-10), (pairs, order)


def test_clipped_rouge_equals_rouge_score(rng):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

    class Given:
        tokenize = staticmethod(lambda tokens: tokens)

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rouge4", "rougeL"], tokenizer=Given())
    for candidate, reference in draw_pairs(rng, 600):
        expected = scorer.score(reference, candidate)
        for n in (1, 2, 4):
            assert rouge_n(candidate, reference, n) == pytest.approx(expected[f"rouge{n}"], abs=EXACT)
        assert rouge_l(candidate, reference) == pytest.approx(expected["rougeL"], abs=EXACT)


def test_set_rouge_and_union_lcs_equal_the_rouge_package(rng):
    peer = pytest.importorskip("rouge").Rouge()
    spaces = [" ", " ", "  ", ". ", " . ", "...", "\n", "\u3000"]
    for pair in draw_pairs(rng, 600):
        candidate, reference = ("".join(word + rng.choice(spaces) for word in side) for side in pair)
        ours = [rouge_n(candidate, reference, 1, "set"), rouge_n(candidate, reference, 2, "set"),
                rouge_l(candidate, reference, "rouge")]
        if not candidate.replace(".", "") or not reference.replace(".", ""):  # the package rejects these
            assert ours == [(0, 0, 0)] * 3
            continue
        expected = peer.get_scores(candidate, reference)[0]
        for score, name in zip(ours, ("rouge-1", "rouge-2", "rouge-l")):
            values = [expected[name][key] for key in "prf"]
            assert score == pytest.approx(values, abs=EXACT), (candidate, reference, name)


def test_lcs_words_follow_the_packages_walk_among_equally_long_ones(rng):
    rouge_score = pytest.importorskip("rouge.rouge_score")
    for _ in range(100):
        alphabet = [f"t{i}" for i in range(rng.choice([2, 4, 9, 25]))]
        x, y = ([rng.choice(alphabet) for _ in range(rng.randint(1, 70))] for _ in range(2))
        assert metrics.lcs_words(x, y) == rouge_score._recon_lcs(x, y)._ngrams, (x, y)


def test_pair_scores_are_the_single_scores_under_their_signatures(rng):
    for candidate, reference in draw_pairs(rng, 100):
        scores = metrics.pair_scores(candidate, reference, "t")
        expected = {("BLEU-4", "nltk-method1"): bleu(candidate, reference),
                    ("ROUGE-2", "rouge-score-f1"): rouge_n(candidate, reference, 2).f1,
                    ("ROUGE-1", "rouge-f1"): rouge_n(candidate, reference, 1, "set").f1,
                    ("ROUGE-L", "rouge-score-f1"): rouge_l(candidate, reference).f1,
                    ("ROUGE-L", "rouge-f1"): rouge_l(candidate, reference, "rouge").f1}
        found = {tuple(key.split("|")[:2]): value for key, value in scores.items()}
        assert len(found) == 10 and expected.items() <= found.items()
    of_raw_text = metrics.pair_scores(["a"], ["a"], "words", "a.", "a")
    assert "ROUGE-1|rouge-f1|tok:space|avg:mean-of-items|v1" in of_raw_text


def test_text_where_tokens_belong_is_an_error():
    for call in (bleu, rouge_l, lambda a, b: rouge_n(a, b, 1)):
        with pytest.raises(TypeError, match="expected a list of tokens"):
            call("text", "text")


# ---- accuracy and chance ----

OPTIONS = {"A": "aspirin", "B": "heparin", "C": " Heparin ", "D": "", "E": ""}


@pytest.mark.parametrize(("prediction", "answer", "options", "right"), [
    ("A", "A", None, True), ("A", "B", None, False), ("A,C", "C,A", None, True),
    ("A, C", ["A", "C"], None, True), ("A", "A,C", None, False), ("A,B,C", "A,C", None, False),
    (None, "A", None, False), ("", "A", None, False), ("A,A", "A", None, True), ("AC", "A,C", None, False),
    ("C", "B", OPTIONS, True), ("C", "B", None, False), ("A,C", "A,B", OPTIONS, True),
    ("A,B,C", "A,B", OPTIONS, False), ("E", "D", OPTIONS, False),  # the pictures that are missing may differ
])
def test_exact_match_compares_sets_of_letters_and_equal_options(prediction, answer, options, right):
    assert exact_match(prediction, answer, options) is right


def test_chance_level_by_hand():
    items = [
        {"options": dict.fromkeys("ABCD"), "answer_idx": "A"},  # 1 of 4
        {"options": dict.fromkeys("ABCDE"), "answer_idx": ["A", "C"]},  # 1 of the 26 sets of two or more
    ]
    assert metrics.chance_level(items) == pytest.approx((1 / 4 + 1 / 26) / 2)


# ---- intervals ----

def test_wilson_interval_equals_scipy(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 5, 199, 3426, *(rng.randint(1, 9000) for _ in range(30))]:
        for k in {0, n, rng.randint(0, n)}:
            peer = binomtest(k, n).proportion_ci(0.95, method="wilson")
            assert metrics.wilson_interval(k, n) == pytest.approx((peer.low, peer.high), abs=EXACT), (k, n)
            assert metrics.macro_interval({"ja": (k, n)}) == pytest.approx((peer.low, peer.high), abs=EXACT)
    low, high = metrics.macro_interval({"ja": (5, 5), "ru": (0, 5)})
    assert low < 0.5 < high and metrics.wilson_interval(0, 0) == (0, 1)  # resampling would give 0.5 .. 0.5


def test_intervals_of_a_macro_average_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(11)
    truth = {"en": (0.6, 300), "ja": (0.5, 60), "ru": (0.97, 40)}
    macro = np.mean([share for share, _ in truth.values()])
    covered, trials = np.zeros(2), 200
    for trial in range(trials):
        draws = {name: rng.random(n) < share for name, (share, n) in truth.items()}
        counts = {name: (int(hits.sum()), len(hits)) for name, hits in draws.items()}
        low, high = metrics.macro_interval(counts)
        covered[0] += low <= macro <= high
        values = np.concatenate(list(draws.values())).astype(float)
        groups = [name for name, hits in draws.items() for _ in hits]
        low, high = metrics.bootstrap_interval(values, trial, groups, resamples=300)
        covered[1] += low <= macro <= high
    assert all(0.89 <= share <= 0.99 for share in covered / trials), covered


def test_intervals_do_not_depend_on_the_order_of_items(rng):
    values = [rng.random() ** 3 for _ in range(101)]
    shuffled = rng.sample(values, len(values))
    assert metrics.mean(values) == metrics.mean(shuffled)
    assert metrics.bootstrap_interval(values, 7) == metrics.bootstrap_interval(shuffled, 7)


# ---- two models ----

def test_mcnemar_equals_the_exact_binomial_test(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 10, 300, 3000]:
        for lean in (0.5, 0.55, 0.9):
            a, b = [rng.random() < lean for _ in range(n)], [rng.random() < 0.5 for _ in range(n)]
            only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(y > x for x, y in zip(a, b))
            expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            assert metrics.mcnemar(a, b) == metrics.mcnemar(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [3, 8, 12])
def test_sign_flip_test_of_few_items_equals_scipy(rng, n):
    permutation_test = pytest.importorskip("scipy.stats").permutation_test
    gaps = [rng.choice([0.5, -0.25, rng.gauss(0.2, 1)]) for _ in range(n)]
    expected = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    p, test = metrics.sign_flip_test(gaps, seed=0)
    assert p == pytest.approx(expected) and test == "sign flips, exact"


def test_equal_differences_on_few_items_prove_nothing():
    for n, p in ((1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)):
        found = metrics.paired_bootstrap([1.0] * n, [0.0] * n, seed=0)
        assert found.p == p == metrics.mcnemar([True] * n, [False] * n) and found.difference == 1
        assert math.isnan(found.low) and math.isnan(found.high)


def test_a_macro_difference_is_tested_as_a_macro_difference():
    # 100 small steady gains in one language, 3 large losses in another: the macro mean has the losses' sign
    gaps, groups = [0.1] * 100 + [-1.0] * 3, ["en"] * 100 + ["de"] * 3
    macro, micro = (metrics.paired_bootstrap(gaps, [0.0] * 103, 0, by) for by in (groups, None))
    assert macro.difference == pytest.approx(-0.45)
    assert macro.p == pytest.approx(0.25, abs=0.05)  # 2 of the 2^3 flips of the losses
    assert micro.difference > 0 and micro.p < 0.01


def test_sign_flip_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hard = rng.random(300)  # items differ much more than models do: only pairing shows the difference
    steady = metrics.paired_bootstrap(hard + 0.02 + rng.normal(0, 0.01, 300), hard, seed=0)
    assert steady.p == 1 / (metrics.RESAMPLES + 1) and 0 < steady.low < steady.difference < steady.high
    ps = [metrics.sign_flip_test(list(rng.random(40) - rng.random(40)), seed)[0] for seed in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11  # 5 %, give or take 3 standard errors


# ---- agreement with people ----

def test_kendall_tau_and_slope_equal_scipy_with_ties(rng):
    stats = pytest.importorskip("scipy.stats")
    for _ in range(100):
        n, levels = rng.randint(2, 60), rng.choice([1, 2, 5, 1000])
        x, y = ([rng.randint(1, levels) / 3 for _ in range(n)] for _ in range(2))
        assert kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=EXACT, nan_ok=True)
        if len(set(x)) > 1:
            assert metrics.regression_slope(x, y) == pytest.approx(stats.linregress(x, y).slope, abs=1e-9)
    for x, y in (([1], [2]), ([1, math.nan], [1, 2]), ([2, 2], [1, 3])):
        assert math.isnan(kendall_tau(x, y))
    assert math.isnan(metrics.regression_slope([2, 2], [1, 3]))
