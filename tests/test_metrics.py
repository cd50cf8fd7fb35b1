"""Every number equals that of the package which defines it in practice; MMED_TEST_SEED sets the inputs."""

import numpy as np
import pytest

from mmed import metrics
from mmed.metrics import bleu_orders, exact_match, rouge_l, rouge_n

EXACT = 1e-12
ALPHABETS = ["ab", "abcde", "the a of and in patient dose . , x-ray 3.5 mg".split(),
             "患者は 肺炎 の です 。".split(" "), "çéИЖ😀\u0301٣", [f"w{i}" for i in range(300)]]


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

def test_bleu_equals_nltk_for_every_order(rng):
    nltk_bleu = pytest.importorskip("nltk.translate.bleu_score")
    weights = [(1 / order,) * order for order in range(1, 5)]
    for candidate, reference in draw_pairs(rng, 400):
        expected = nltk_bleu.sentence_bleu([reference], candidate, weights,
                                           nltk_bleu.SmoothingFunction().method1)
        ours = bleu_orders(candidate, reference)
        assert ours == pytest.approx(expected, abs=EXACT, rel=0), (candidate, reference)


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


def test_pair_scores_are_the_single_scores_under_their_signatures(rng):
    for candidate, reference in draw_pairs(rng, 100):
        texts = "".join(candidate), ". ".join(reference)
        for raw, split, (one, other) in (((), "t", (candidate, reference)), (texts, "space", texts)):
            expected = {f"BLEU-{n}|nltk-method1|tok:t": value
                        for n, value in enumerate(bleu_orders(candidate, reference), 1)}
            for n in (1, 2):
                expected |= {f"ROUGE-{n}|rouge-score-f1|tok:t": rouge_n(candidate, reference, n).f1,
                             f"ROUGE-{n}|rouge-f1|tok:{split}": rouge_n(one, other, n, "set").f1}
            expected |= {"ROUGE-L|rouge-score-f1|tok:t": rouge_l(candidate, reference).f1,
                         f"ROUGE-L|rouge-f1|tok:{split}": rouge_l(one, other, "rouge").f1}
            assert metrics.pair_scores(candidate, reference, "t", *raw) == {
                f"{name}|avg:mean-of-items|v1": value for name, value in expected.items()}


# ---- accuracy and chance ----

OPTIONS = {"A": "aspirin", "B": "heparin", "C": " Heparin ", "D": "", "E": ""}
GENOTYPES = {"A": "GG.", "B": "gg.", "C": "Gg.", "D": "无法确定."}  # CMMLU, as published
ANTIGENS = {"A": "anti-C and e", "B": "anti-c and E", "C": "AaBb", "D": "AABb", "E": "Anti-C  and e"}
PHRASES = {"A": "As needed", "B": "as  needed", "C": "Ab", "D": "ab", "E": "Aa parents", "F": "aa parents",
           "G": "Ab gametes", "H": "ab gametes"}


@pytest.mark.parametrize(("prediction", "answer", "options", "right"), [
    ("A", "A", None, True), ("A", "B", None, False), ("A,C", "C,A", None, True),
    ("A, C", ["A", "C"], None, True), ("A", "A,C", None, False), ("A,B,C", "A,C", None, False),
    ((), "A", None, False), ("", "A", None, False), ("A,A", "A", None, True), ("AC", "A,C", None, False),
    ("C", "B", OPTIONS, True), ("C", "B", None, False), ("A,C", "A,B", OPTIONS, True),
    ("A,B,C", "A,B", OPTIONS, False), ("E", "D", OPTIONS, False),  # the pictures that are missing may differ
    ("B", "A", GENOTYPES, False), ("C", "A", GENOTYPES, False), ("A", "A", GENOTYPES, True),
    ("B", "A", ANTIGENS, False), ("D", "C", ANTIGENS, False), ("E", "A", ANTIGENS, True),
    ("B", "A", PHRASES, True), ("D", "C", PHRASES, False), ("F", "E", PHRASES, False),
    ("H", "G", PHRASES, False),
])
def test_exact_match_compares_sets_of_letters_and_equal_options(prediction, answer, options, right):
    assert exact_match(prediction, answer, options) is right


@pytest.mark.parametrize(("answer", "rule", "right", "of"), [
    ("A", "keyed", 1, 5), ("A,C", "keyed", 1, 26), ("A", "either", 1, 5), ("B", "either", 2, 5),
    ("A,B", "either", 2, 26), ("B,C", "either", 1, 26), ("D", "either", 1, 5),
])
def test_chance_counts_every_guess_that_would_be_right(answer, rule, right, of):
    assert metrics.chance_level([{"options": OPTIONS, "answer_idx": answer}], rule) == right / of


# ---- intervals ----

def test_wilson_interval_equals_scipy(rng):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in [1, 2, 5, 199, 3426, *(rng.randint(1, 9000) for _ in range(30))]:
        for k in {0, n, rng.randint(0, n)}:
            peer = binomtest(k, n).proportion_ci(0.95, method="wilson")
            assert metrics.wilson_interval(k, n) == pytest.approx((peer.low, peer.high), abs=EXACT), (k, n)
            assert metrics.macro_interval([(k, n)]) == pytest.approx((peer.low, peer.high), abs=EXACT)
    low, high = metrics.macro_interval([(5, 5), (0, 5)])
    assert low < 0.5 < high  # resampling would give 0.5 .. 0.5


def test_intervals_of_a_macro_average_cover_the_truth_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 300)
    rng = np.random.default_rng(11)
    truth = {"en": (0.6, 300), "ja": (0.5, 60), "ru": (0.97, 40)}
    macro = np.mean([share for share, _ in truth.values()])
    covered, trials = np.zeros(2), 200
    for trial in range(trials):
        draws = {name: rng.random(n) < share for name, (share, n) in truth.items()}
        counts = {name: (int(hits.sum()), len(hits)) for name, hits in draws.items()}
        low, high = metrics.macro_interval(list(counts.values()))
        covered[0] += low <= macro <= high
        values = np.concatenate(list(draws.values())).astype(float)
        groups = [name for name, hits in draws.items() for _ in hits]
        low, high = metrics.bootstrap_interval(values, trial, groups)
        covered[1] += low <= macro <= high
    assert all(0.89 <= share <= 0.99 for share in covered / trials), covered


def test_intervals_do_not_depend_on_the_order_of_items(rng):
    values = [rng.random() ** 3 for _ in range(101)]
    shuffled = rng.sample(values, len(values))
    assert metrics.mean(values) == metrics.mean(shuffled)
    assert metrics.bootstrap_interval(values, 7) == metrics.bootstrap_interval(shuffled, 7)
