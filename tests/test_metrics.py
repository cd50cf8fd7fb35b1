"""Oracles: the packages whose names people print beside their numbers. Every random test draws fresh texts and prints its seed."""
import functools
import math
import pickle
import random
import warnings

import numpy as np
import pytest

from mmed import metrics, overlap
from mmed.metrics import Score, bleu, bleu_orders, corpus_bleu, kendall_tau, rouge_l, rouge_n, rouge_package

EXACT = 1e-12
SEED = random.SystemRandom().randrange(2**32)
ALPHABETS = ["ab", "abcde", "the a of and in patient dose . , x-ray 3.5 mg".split(), "患者は 肺炎 の です 。".split(" "), "çéИЖ😀\u0301٣", [f"w{i}" for i in range(300)]]


@pytest.fixture
def rng():
    print(f"seed {SEED}")  # pytest shows it when the test fails
    return random.Random(SEED)


def draw_pairs(rng, count, longest=60):
    """Token lists of unequal lengths (empty and one token among them), with repeats and with spans copied from each other."""
    for _ in range(count):
        alphabet = rng.choice(ALPHABETS)
        sizes = [rng.choice([0, 1, 2, 3, 5, rng.randint(4, longest)]) for _ in range(2)]
        reference, candidate = ([rng.choice(alphabet) for _ in range(size)] for size in sizes)
        if reference and candidate and rng.random() < 0.6:
            for _ in range(rng.randint(1, 4)):
                at, start = rng.randrange(len(candidate)), rng.randrange(len(reference))
                candidate[at : at + 6] = reference[start : start + rng.randint(1, 8)] or candidate[at : at + 6]
        yield candidate, reference


def test_bleu_equals_nltk_for_every_order_and_smoothing(rng):
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    methods = {"method1": nltk_bleu.SmoothingFunction().method1, "none": None}
    for candidate, reference in draw_pairs(rng, 1500):
        for smoothing, method in methods.items():
            weights = [(1 / order,) * order for order in range(1, 6)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nltk warns at every order without a match
                expected = nltk_bleu.sentence_bleu([reference], candidate, weights, method)
            ours = bleu_orders(candidate, reference, 5, smoothing)
            assert ours == pytest.approx(expected, abs=EXACT, rel=0), (candidate, reference, smoothing)
            for order in (1, 2, 3, 4):
                assert bleu(candidate, reference, order, smoothing) == ours[order - 1]


def test_bleu_by_hand():
    # candidate 4 tokens, reference 5: penalty exp(1 - 5/4). "the" is clipped to 1 of 2, "cat" and "sat" match: 3/4; bigrams:
    # "cat sat" of 3: 1/3.
    candidate, reference = "the cat sat the".split(), "the dog saw cat sat".split()
    penalty = math.exp(1 - 5 / 4)
    assert bleu_orders(candidate, reference, 2) == pytest.approx([penalty * 3 / 4, penalty * math.sqrt(3 / 4 * 1 / 3)])
    # no trigram matches: method1 counts 0.1 of 2
    assert bleu(candidate, reference, 3) == pytest.approx(penalty * (3 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 3))
    assert bleu(candidate, reference, 3, smoothing="none") == 0


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [([], [], [0, 0]), ([], ["a"], [0, 0]), (["a"], [], [0, 0]), (["a"], ["b"], [0, 0]), (["a"], ["a"], [1, math.sqrt(0.1)])],
)
def test_bleu_of_empty_and_one_token_texts_is_defined(candidate, reference, expected):
    assert bleu_orders(candidate, reference, 2) == pytest.approx(expected)


def test_corpus_bleu_equals_sacrebleu(rng):
    sacrebleu = pytest.importorskip("sacrebleu")
    for _ in range(300):
        pairs = list(draw_pairs(rng, rng.choice([1, 2, 5, 20]), longest=rng.choice([5, 40])))
        candidates, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        texts = [" ".join(tokens) for tokens in candidates], [[" ".join(tokens) for tokens in references]]
        for smoothing in ("exp", "none"):
            for order in (1, 2, 4):
                peer = sacrebleu.BLEU(tokenize="none", smooth_method=smoothing, max_ngram_order=order, force=True)
                ours = corpus_bleu(candidates, references, order, smoothing)
                assert ours == pytest.approx(peer.corpus_score(*texts).score, abs=1e-10, rel=EXACT), (pairs, smoothing, order)
    assert corpus_bleu([], []) == 0


def test_clipped_rouge_equals_rouge_score(rng):
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

    class Given:
        tokenize = staticmethod(lambda tokens: tokens)

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rouge4", "rougeL"], tokenizer=Given())
    for candidate, reference in draw_pairs(rng, 1500):
        expected = scorer.score(reference, candidate)
        for n in (1, 2, 4):
            assert rouge_n(candidate, reference, n) == pytest.approx(expected[f"rouge{n}"], abs=EXACT), (candidate, reference)
        assert rouge_l(candidate, reference) == pytest.approx(expected["rougeL"], abs=EXACT), (candidate, reference)


def as_rouge(score):
    return score["p"], score["r"], score["f"]


def draw_texts(rng, count):
    """Text with sentences, blank sentences, runs of dots and odd spaces."""
    for candidate, reference in draw_pairs(rng, count):
        texts = []
        for tokens in (candidate, reference):
            glue = [rng.choice([" ", " ", " ", " ", "  ", ". ", " . ", "...", "\n", "\u3000"]) for _ in tokens]
            texts.append("".join(token + space for token, space in zip(tokens, glue)))
        yield tuple(texts)


def test_set_rouge_and_union_lcs_equal_the_rouge_package(rng):
    peer = pytest.importorskip("rouge").Rouge()
    scored = 0
    for candidate, reference in draw_texts(rng, 2500):
        ours = rouge_package(candidate, reference)
        if not candidate.replace(".", "") or not reference.replace(".", ""):
            with pytest.raises(ValueError):  # it has no score for an empty text; ours is 0
                peer.get_scores(candidate, reference)
            assert set(ours.values()) == {(0, 0, 0)}
            continue
        scored += 1
        expected = peer.get_scores(candidate, reference)[0]
        for n in (1, 2):
            assert ours[f"ROUGE-{n}"] == pytest.approx(as_rouge(expected[f"rouge-{n}"]), abs=EXACT), (candidate, reference)
            assert rouge_n(candidate, reference, n, counts="set") == ours[f"ROUGE-{n}"]
        assert ours["ROUGE-L"] == pytest.approx(as_rouge(expected["rouge-l"]), abs=EXACT), (candidate, reference)
        assert rouge_l(candidate, reference, variant="rouge") == ours["ROUGE-L"]
    assert scored > 1000


def test_tie_rule_of_the_rouge_package_token_by_token(rng):
    # Long repetitive sentences have many longest subsequences; the union of tokens shows which one was walked.
    rouge_score = pytest.importorskip("rouge.rouge_score")
    differs = 0
    for _ in range(400):
        alphabet = [f"t{i}" for i in range(rng.choice([2, 4, 9, 25]))]
        x, y = ([rng.choice(alphabet) for _ in range(rng.randint(1, 70))] for _ in range(2))
        expected = rouge_score._recon_lcs(x, y)._ngrams
        assert overlap._lcs_tokens(x, overlap._positions(y), len(y)) == expected, (x, y)
        differs += overlap._lcs_tokens(y, overlap._positions(x), len(x)) != expected  # another walk, other tokens
    assert differs > 20


def test_tokens_are_joined_by_spaces_for_the_rouge_package(rng):
    for candidate, reference in draw_pairs(rng, 100):
        assert rouge_package(candidate, reference) == rouge_package(" ".join(candidate), " ".join(reference))


def test_rouge_of_very_long_texts_is_found_where_the_package_recurses_too_deep(rng):
    rouge = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])
    text = " ".join(rng.choice("abcdefgh") for _ in range(1200))
    with pytest.raises(RecursionError):
        rouge.get_scores(text, text)
    assert rouge_l(text, text, variant="rouge").recall == 1
    assert rouge_l(text.split(), text.split()).f1 == 1
    assert bleu(text.split(), text.split()) == 1  # longer than the shared powers of two


def test_properties_hold_on_ten_thousand_random_pairs(rng):
    for candidate, reference in draw_pairs(rng, 10_000, longest=20):
        scores = metrics.pair_scores(candidate, reference, "given").values()
        assert len(scores) == 10 and all(0 <= score <= 1 for score in scores), (candidate, reference)
        if not candidate or not reference:
            assert not any(scores)
        elif len(reference) >= 4:
            same = metrics.pair_scores(reference, reference, "given").values()
            assert list(same) == pytest.approx([1] * 10, abs=1e-8)  # the `rouge` package's best f1 is 1 - 5e-9
        swapped = rouge_l(reference, candidate)
        assert rouge_l(candidate, reference)[:2] == (swapped.recall, swapped.precision)


def test_pair_scores_are_the_single_scores_under_different_signatures(rng):
    for candidate, reference in draw_pairs(rng, 200):
        if not candidate or not reference:
            continue
        by_name = {tuple(key.split("|")[:2]): value for key, value in metrics.pair_scores(candidate, reference, "t").items()}
        for n in (1, 2, 3, 4):
            assert by_name[f"BLEU-{n}", "nltk-method1"] == bleu(candidate, reference, n)
        for n in (1, 2):
            assert by_name[f"ROUGE-{n}", "rouge-score-f1"] == rouge_n(candidate, reference, n).f1
            assert by_name[f"ROUGE-{n}", "rouge-f1"] == rouge_n(candidate, reference, n, counts="set").f1
        assert by_name["ROUGE-L", "rouge-score-f1"] == rouge_l(candidate, reference).f1
        assert by_name["ROUGE-L", "rouge-f1"] == rouge_l(candidate, reference, variant="rouge").f1
    with_text = metrics.pair_scores(["a", "b"], ["a"], "words", "a b.", "a.")
    assert "ROUGE-1|rouge-f1|tok:space|avg:mean-of-items|v1" in with_text


def test_means_and_intervals_do_not_depend_on_the_order_of_items(rng):
    values = [rng.random() ** 3 * 10 ** rng.randint(-8, 8) for _ in range(301)]
    groups = [rng.choice("abc") for _ in values]
    order = rng.sample(range(301), 301)
    shuffled, shuffled_groups = [values[i] for i in order], [groups[i] for i in order]
    assert metrics.mean(values) == metrics.mean(shuffled)
    one, other = (metrics.summarize(v, "s", 7, g) for v, g in ((values, groups), (shuffled, shuffled_groups)))
    assert (one, one.low, one.high) == (other, other.low, other.high)
    assert metrics.bootstrap_interval(values, 7) == metrics.bootstrap_interval(shuffled, 7)
    assert metrics.bootstrap_interval(values, 7) != metrics.bootstrap_interval(values, 8)


def test_kendall_tau_equals_scipy_with_ties(rng):
    kendalltau = pytest.importorskip("scipy.stats").kendalltau
    for _ in range(300):
        n, levels = rng.randint(2, 60), rng.choice([1, 2, 5, 1000])
        x, y = ([rng.randint(1, levels) / 3 for _ in range(n)] for _ in range(2))
        if rng.random() < 0.2:
            x[0] = math.inf
        assert kendall_tau(x, y) == pytest.approx(kendalltau(x, y).statistic, abs=EXACT, nan_ok=True), (x, y)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1, math.nan], [1, 2])])
def test_kendall_tau_of_nothing_to_order_is_nan(x, y):
    assert math.isnan(kendall_tau(x, y))


def test_regression_slope_equals_scipy(rng):
    linregress = pytest.importorskip("scipy.stats").linregress
    for _ in range(100):
        n = rng.randint(2, 40)
        x, y = ([rng.gauss(3, 2) for _ in range(n)] for _ in range(2))
        assert metrics.regression_slope(x, y) == pytest.approx(linregress(x, y).slope, rel=1e-9)
    assert math.isnan(metrics.regression_slope([2, 2], [1, 3])) and math.isnan(metrics.regression_slope([1], [1]))


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("A", "A", True), ("A", "B", False), ("A,C", "C,A", True), ("A, C", ["A", "C"], True), (["C", "A"], "A,C", True),
        ("A", "A,C", False), ("A,B,C", "A,C", False), (None, "A", False), ("", "A", False), ([], "A,B", False),
        ("A,A", "A", True), (" A ", "A", True), ({"B"}, "B", True), ("AC", "A,C", False),
    ],
)
def test_exact_match_of_answer_sets(prediction, answer, right):
    assert metrics.exact_match(prediction, answer) is right


def test_accuracy_counts_unanswered_items_and_refuses_items_without_answer():
    score = metrics.accuracy(["A", None, "B", "C"], ["A", "A", "B", "B"])
    assert score == 0.5 and score.n == 4 and (score.low, score.high) == metrics.wilson_interval(2, 4)
    assert math.isnan(metrics.accuracy([], []))
    with pytest.raises(ValueError, match="without a right answer"):
        metrics.accuracy(["A"], [""])
    with pytest.raises(ValueError, match="2 predictions but 1 answers"):
        metrics.accuracy(["A", "B"], ["A"])


def test_a_score_is_a_float_that_survives_pickling():
    score = Score(0.25, (0.1, 0.4), 8, "x|v1")
    assert f"{100 * score:.1f}" == "25.0" and isinstance(score, float)
    back = pickle.loads(pickle.dumps(score))
    assert (back, back.low, back.high, back.n, back.signature) == (0.25, 0.1, 0.4, 8, "x|v1")


def test_wilson_interval_equals_scipy(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 5, 199, 3426, *(rng.randint(1, 9000) for _ in range(50))]:
        for k in {0, n, rng.randint(0, n)}:
            peer = binomtest(k, n).proportion_ci(0.95, method="wilson")
            assert metrics.wilson_interval(k, n) == pytest.approx((peer.low, peer.high), abs=EXACT), (k, n)
    assert metrics.wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="k=3, n=2"):
        metrics.wilson_interval(3, 2)


def test_mcnemar_equals_the_exact_binomial_test(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 10, 300, 5000]:
        for lean in (0.5, 0.55, 0.9):
            a = [rng.random() < lean for _ in range(n)]
            b = [rng.random() < 0.5 for _ in range(n)]
            only_a, only_b = sum(x > y for x, y in zip(a, b)), sum(y > x for x, y in zip(a, b))
            expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
            assert metrics.mcnemar(a, b) == pytest.approx(expected, rel=1e-9), (n, lean)
            assert metrics.mcnemar(a, b) == metrics.mcnemar(b, a)


def test_bootstrap_interval_is_near_the_normal_one_and_equals_a_plain_loop():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = metrics.bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    # the definition, a resample at a time: the same draws, for the generator hands out row after row
    rng, ordered = np.random.default_rng(1), np.sort(values)
    means = [ordered[rng.integers(0, 400, 400)].mean() for _ in range(metrics.RESAMPLES)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=EXACT)


def test_intervals_of_a_macro_average_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    truth = {"en": (0.6, 300), "ja": (0.5, 60), "ru": (0.97, 40)}
    macro = np.mean([share for share, _ in truth.values()])
    covered, trials = [0, 0], 300
    for trial in range(trials):
        draws = {name: rng.random(n) < share for name, (share, n) in truth.items()}
        low, high = metrics.macro_interval({name: (int(draw.sum()), len(draw)) for name, draw in draws.items()})
        covered[0] += low <= macro <= high
        values = np.concatenate(list(draws.values())).astype(float)
        groups = [name for name, draw in draws.items() for _ in draw]
        low, high = metrics.bootstrap_interval(values, trial, groups, resamples=400)
        covered[1] += low <= macro <= high
        assert low <= metrics.macro_mean(values, groups) <= high
    assert all(0.90 <= count / trials <= 0.99 for count in covered), covered


def test_macro_interval_of_one_language_is_its_wilson_interval():
    assert metrics.macro_interval({"ja": (123, 199)}) == pytest.approx(metrics.wilson_interval(123, 199), abs=EXACT)
    low, high = metrics.macro_interval({"ja": (5, 5), "ru": (0, 5)})
    assert low < 0.5 < high  # resampling would give 0.5 .. 0.5


def test_paired_bootstrap_sees_a_small_steady_difference_and_no_difference():
    rng = np.random.default_rng(5)
    hard = rng.random(300)  # items differ much more than models do: only pairing shows the difference
    steady = metrics.paired_bootstrap(hard + 0.02 + rng.normal(0, 0.01, 300), hard, seed=0)
    assert steady.p == 1 / (metrics.RESAMPLES + 1) and 0 < steady.low < steady.difference < steady.high
    same = metrics.paired_bootstrap(hard, hard, seed=0)
    assert same == (0, 0, 0, 1)
    ps = [metrics.paired_bootstrap(rng.random(60), rng.random(60), seed, resamples=400).p for seed in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.11  # the test errs as often as it says: 5 %, give or take 3 sigma
    one, other = metrics.paired_bootstrap([1, 0, 1, 1], [0, 0, 1, 0], 3), metrics.paired_bootstrap([0, 0, 1, 0], [1, 0, 1, 1], 3)
    assert one.difference == -other.difference == 0.5


def test_chance_level_by_hand():
    items = [
        {"options": dict.fromkeys("ABCD"), "answer_idx": "A"},  # 1/4
        {"options": dict.fromkeys("ABCDE"), "answer_idx": ["A", "C"]},  # 1/31
        {"options": dict.fromkeys("AB"), "answer_idx": ["B"]},  # 1/2
    ]
    assert metrics.chance_level(items) == pytest.approx((1 / 4 + 1 / 31 + 1 / 2) / 3)
    assert math.isnan(metrics.chance_level([]))
    with pytest.raises(ValueError, match="without options"):
        metrics.chance_level([{"options": {}, "answer_idx": "A"}])


def test_signatures_differ_whenever_the_definition_does():
    parts = [("BLEU-1", "nltk-method1", "char"), ("BLEU-2", "nltk-method1", "char"), ("BLEU-1", "none", "char"), ("BLEU-1", "nltk-method1", "jieba")]
    assert len({metrics.signature(*part) for part in parts} | {metrics.signature(*parts[0], average="macro")}) == 5
    assert metrics.signature(*parts[0]).endswith(f"|v{metrics.METRICS_VERSION}")


@pytest.mark.parametrize(
    "call",
    [
        functools.partial(bleu, "text", ["text"]),
        functools.partial(rouge_n, ["text"], "text", 1),
        functools.partial(rouge_l, "text", "text"),
    ],
)
def test_text_where_tokens_belong_is_refused_and_not_read_as_letters(call):
    with pytest.raises(TypeError, match="expected lists of tokens"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bleu(["a"], ["a"], smoothing="exp"), "expected 'method1' or 'none'"),
        (lambda: bleu(["a"], ["a"], max_order=0), "expected 1 or more"),
        (lambda: corpus_bleu([["a"]], [["a"]], smoothing="method1"), "expected 'exp' or 'none'"),
        (lambda: corpus_bleu([["a"]], []), "1 candidates but 0 references"),
        (lambda: rouge_n(["a"], ["a"], 0), "expected 1 or more"),
        (lambda: rouge_n(["a"], ["a"], 1, counts="sets"), "expected 'clipped' or 'set'"),
        (lambda: rouge_l(["a"], ["a"], variant="google"), "expected 'rouge-score' or 'rouge'"),
        (lambda: kendall_tau([1, 2], [1]), "2 and 1 items"),
        (lambda: metrics.mcnemar([True], []), "same order"),
        (lambda: metrics.bootstrap_interval([1.0], 0, groups=["a", "b"]), "1 values but 2 group names"),
    ],
)
def test_wrong_use_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
