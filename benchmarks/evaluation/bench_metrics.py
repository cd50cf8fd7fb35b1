"""BLEU and ROUGE of mmed against the packages they equal: same pairs, same process, in turn.

Pairs are synthetic and the same on every machine: 40 to 120 words from a Zipf-like vocabulary, the candidate
made of spans copied from the reference among words of its own. "rationale" pairs share about as much as a
fine-tuned model's rationale shares with its reference (BLEU-1 about 0.45 in the paper), "near copy" pairs
nearly everything, "unrelated" only common words. First all scores are compared (1e-12), then both sides are
timed round by round on one thread, by CPU time. Printed: microseconds a pair (medians), the median of the
rounds' ratios, and their range.

    python benchmarks/evaluation/bench_metrics.py [--pairs=200] [--rounds=7]
"""
import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable

from mmed import metrics
from mmed.languages import get_language

COPIED = {"rationale": 0.45, "near copy": 0.95, "unrelated": 0.0}  # share of spans taken from the reference


def make_pairs(kind: str, count: int, seed: int = 1) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(f"{kind} {seed}")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(3000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]

    def words(size: int) -> list[str]:
        drawn = rng.choices(vocabulary, weights, k=size)
        # a sentence has about 18 words
        return [word + " ." if rng.random() < 1 / 18 else word for word in drawn]

    pairs = []
    for _ in range(count):
        reference = " ".join(words(rng.randint(40, 120))).split()
        candidate, size = [], rng.randint(40, 120)
        while len(candidate) < size:
            span = rng.randint(2, 8)
            if rng.random() < COPIED[kind]:
                start = len(candidate) if kind == "near copy" else rng.randrange(len(reference))
                start %= len(reference)
                candidate += reference[start : start + span]
            else:
                candidate += " ".join(words(span)).split()
        pairs.append((candidate[:size], reference))
    return pairs


def close(ours, theirs) -> bool:
    if isinstance(ours, str):
        return ours == theirs
    if isinstance(ours, (int, float)):
        return abs(ours - theirs) <= 1e-12 * max(1.0, abs(theirs))
    return len(ours) == len(theirs) and all(map(close, ours, theirs))


def compare(ours: Callable, peer: Callable, items: list, rounds: int,
            pairs: int) -> tuple[float, float, list[float]]:
    """Equality of every score, then medians of seconds a pair of ours and of the peer, and the ratio of each
    round.
    """
    for item in items:
        mine, theirs = ours(*item), peer(*item)
        if not close(mine, theirs):
            raise SystemExit(f"scores differ: ours {mine}, peer {theirs} on {item}")
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, score in zip(seconds, (ours, peer)):
            start = time.process_time()
            for item in items:
                score(*item)
            side.append((time.process_time() - start) / pairs)
    return *map(statistics.median, seconds), [slow / fast for fast, slow in zip(*seconds)]


def split_japanese(rounds: int) -> None:
    """Words of Japanese texts: ours keeps one janome tokenizer, the official script makes one for every text.
    """
    from janome.tokenizer import Tokenizer

    language, rng = get_language("ja"), random.Random(1)
    sentences = [language.medical_sentence, language.ordinary_sentence,
                 "患者は発熱と咳を訴えた。", "治療には薬を使う。"]
    texts = ["".join(rng.sample(sentences, 3)) for _ in range(8)]
    language.official_words(texts[0])  # the dictionary is loaded once by either side
    ours, theirs, ratios = compare(lambda text: language.official_words(text),
                                   lambda text: list(Tokenizer(wakati=True).tokenize(text)),
                                   [(text, ) for text in texts], rounds, len(texts))
    print(
        f"{'Japanese words':18} {'janome per text':19} {'':10} {ours * 1e6:8.1f} {theirs * 1e6:8.1f} "
        f"{statistics.median(ratios):6.1f}  "
        f"{f'{min(ratios):.1f}-{max(ratios):.1f}':13} 12")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge
    from rouge_score.rouge_scorer import RougeScorer

    warnings.simplefilter("ignore")
    method1 = SmoothingFunction().method1
    four_weights = [(1 / order,) * order for order in (1, 2, 3, 4)]
    rouge_l, rouge_all = Rouge(metrics=["rouge-l"]), Rouge()

    class Given:  # rouge-score with our tokens, so that its tokenizer is not timed
        tokenize = staticmethod(lambda tokens: tokens)

    google, google_l = (RougeScorer(types, tokenizer=Given())
                        for types in (["rouge1", "rouge2", "rougeL"], ["rougeL"]))

    def r_p_f(scores: dict, names: tuple[str, ...]) -> list[tuple[float, float, float]]:
        return [(scores[name]["p"], scores[name]["r"], scores[name]["f"]) for name in names]

    def ours_google(candidate, reference):
        one, two = (metrics.rouge_n(candidate, reference, n) for n in (1, 2))
        return one, two, metrics.rouge_l(candidate, reference)

    tokens_in, text_in = "tokens", "text"
    rows = [  # name, peer, input, ours, theirs, aim / moonshot
        ("BLEU-4", "nltk sentence_bleu", tokens_in, lambda c, r: metrics.bleu_orders(c, r)[-1],
         lambda c, r: sentence_bleu([r], c, smoothing_function=method1), "4 / 8"),
        ("BLEU-1..4 at once", "nltk, 4 weights", tokens_in, metrics.bleu_orders,
         lambda c, r: sentence_bleu([r], c, four_weights, method1), "4 / 8"),
        ("ROUGE-L", "rouge", text_in, lambda c, r: [metrics.rouge_l(c, r, variant="rouge")],
         lambda c, r: r_p_f(rouge_l.get_scores(c, r)[0], ("rouge-l", )), "12 / 25"),
        ("ROUGE-1/2/L", "rouge", text_in, lambda c, r:
         [*(metrics.rouge_n(c, r, n, "set") for n in
            (1, 2)), metrics.rouge_l(c, r, "rouge")],
         lambda c, r: r_p_f(rouge_all.get_scores(c, r)[0], ("rouge-1", "rouge-2", "rouge-l")), "12 / 25"),
        ("ROUGE-L", "rouge-score", tokens_in, metrics.rouge_l, lambda c, r: google_l.score(r, c)["rougeL"],
         ""),
        ("ROUGE-1/2/L", "rouge-score", tokens_in, ours_google, lambda c, r: list(google.score(r, c).values()),
         ""),
    ]
    print(
        f"{args.pairs} pairs, {args.rounds} rounds, one thread, CPU time; scores equal to 1e-12 before "
        f"timing\n"
    )
    print(
        f"{'score':18} {'peer':19} {'pairs':10} {'ours us':>8} {'peer us':>8} {'ratio':>6}  {'range':13} "
        f"aim / moonshot"
    )
    for kind in COPIED:
        pairs = make_pairs(kind, args.pairs)
        # `rouge` cuts sentences at every "."; without stops a text is one sentence, with the longest table
        texts = [(" ".join(candidate), " ".join(reference)) for candidate, reference in pairs]
        unstopped = [(candidate.replace(" .", ""), reference.replace(" .", ""))
                     for candidate, reference in texts]
        items = {tokens_in: pairs, text_in: texts}
        shared = metrics.mean(metrics.bleu_orders(*pair)[0] for pair in pairs)
        print(f"-- {kind}: mean BLEU-1 {shared:.2f}")
        for name, peer_name, form, ours, peer, aim in rows:
            variants = [("as it is", items[form])]
            # milliseconds a pair: a third of the pairs, so that the table comes in a minute
            if form == text_in:
                variants = [(label, data[:max(1,
                                              len(data) // 3)])
                            for label, data in (*variants, ("1 sentence", unstopped))]
            for label, data in variants:
                mine, theirs, ratios = compare(ours, peer, data, args.rounds, len(data))
                spread = f"{min(ratios):.1f}-{max(ratios):.1f}"
                print(f"{name:18} {peer_name:19} {label:10} {mine * 1e6:8.1f} {theirs * 1e6:8.1f} "
                      f"{statistics.median(ratios):6.1f}  {spread:13} {aim}", flush=True)
    split_japanese(args.rounds)


if __name__ == "__main__":
    main()
