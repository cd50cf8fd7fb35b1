"""The medical filter: speed against the published rule, cost of more words, and quality on labelled texts.

    python benchmarks/data_prep/bench_filter.py [--data DIR] [--part speed|words|growth|quality] [--megabytes
    3]

DIR holds <code>/medical.jsonl.gz and <code>/nonmedical.jsonl.gz (text, id). Without it the texts of the speed
parts are made from each language's own words and sentences, and the quality part is left out, saying so.

Speed: MB of UTF-8 a second of CPU time on one thread, the published rule and ours in turn on the same
documents, the best of `ROUNDS`; 15 % of the documents are medical. Decisions must be equal on every document
before a figure is printed. Quality: thresholds of the default mode are chosen on one half (by a hash of the
id) and all is reported on the other.
"""
from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import official_words
from mmed.languages import Language, all_languages
from mmed.utils.errors import main_guard

ROUNDS = 3
MEDICAL_SHARE = 0.15
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
# for the choice of thresholds; 0.98 is the paper's check by hand
WANTED_PRECISION, WANTED_RECALL = 0.98, 0.94


def official_rule(texts: list[str], language: Language) -> list[bool]:
    """The published rule as published: a pass over the text for each word (Chinese and Japanese as was
    meant).
    """
    words = official_words(language)
    long = [
        word for word in words if not language.spaced or len(word) > 10 or (len(word) > 5 and " " in word)
    ]
    short = [word for word in words if word not in set(long)]
    verdicts = []
    for text in texts:
        text = text.lower()
        hits, covered = 0, 0

        for word in long:
            if word in text:
                hits += 1
                covered += text.count(word) * len(word)
        if short and not _enough(text, hits, covered, language):
            tokens = text.split()
            for word in short:
                if count := tokens.count(word):
                    hits += 1
                    covered += count * len(word)
        verdicts.append(_enough(text, hits, covered, language))
    return verdicts


def _enough(text: str, hits: int, covered: int, language: Language) -> bool:
    return bool(
        text) and hits >= language.official_min_hits and covered / len(text) >= language.official_min_density


def cpu_seconds(work: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# ---- texts
# ------------------------------------------------------------------------------------------------------------


def labelled(language: Language, data: Path) -> list[tuple[dict, bool]]:
    """(record, is medical) of the real texts, or nothing."""
    records = []
    for kind, medical in (("medical", True), ("nonmedical", False)):
        path = data / language.code / f"{kind}.jsonl.gz"
        if not path.exists():
            return []
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records += [(json.loads(line), medical) for line in file]
    return records


def made_documents(language: Language, rng: random.Random) -> tuple[list[str], list[str]]:
    """Medical and other documents from a language file's own words, for machines without the texts."""
    join = " " if language.spaced else ""
    ordinary = language.split_words(language.ordinary_sentence)
    words = [spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/")]

    def document(share: float) -> str:
        return join.join(
            rng.choice(words if rng.random() < share else ordinary) for _ in range(rng.randrange(50, 600)))

    return [document(0.15) for _ in range(150)], [document(0.005) for _ in range(850)]


def mixture(language: Language, data: Path, megabytes: float) -> list[str]:
    """Documents in random order, `MEDICAL_SHARE` of them medical, about so many megabytes."""
    rng = random.Random(7)
    records = labelled(language, data)
    if records:
        medical, other = ([record["text"] for record, label in records if label == wanted]
                          for wanted in (True, False))
    else:
        medical, other = made_documents(language, rng)
    chosen, size = [], 0.0
    while size < megabytes * 1e6:
        chosen.append(rng.choice(medical if rng.random() < MEDICAL_SHARE else other))
        size += len(chosen[-1].encode())
    return chosen


# ---- parts
# ------------------------------------------------------------------------------------------------------------


def speed(languages: list[Language], data: Path, megabytes: float) -> None:
    print(
        "\n| language | MB | published rule, MB/s | official mode, MB/s | ratio | default mode, MB/s "
        "|\n|---|---|---|---|---|---|"
    )
    for language in languages:
        texts = mixture(language, data, megabytes)
        size = sum(len(text.encode()) for text in texts) / 1e6
        official, default = Matcher(language, "official"), Matcher(language)
        works: dict[str, Callable[[], object]] = {
            "published": lambda texts=texts, language=language: official_rule(texts, language),
            "official": lambda texts=texts, official=official:
            [decision.medical for decision in official.judge(texts)],
            "default": lambda texts=texts, default=default: default.judge(texts)
        }
        best = dict.fromkeys(works, float("inf"))
        results = {}
        for _ in range(ROUNDS):
            for name, work in works.items():
                seconds, results[name] = cpu_seconds(work)
                best[name] = min(best[name], seconds)
        assert results["published"] == results["official"], f"{language.code}: decisions differ"
        rate = {name: size / seconds for name, seconds in best.items()}
        print(f"| {language.code} | {size:.1f} | {rate['published']:.1f} | {rate['official']:.0f} | "
              f"{rate['official'] / rate['published']:.1f}x | {rate['default']:.0f} |", flush=True)


def more_words(languages: list[Language], data: Path, megabytes: float) -> None:
    """Ten times the words: the language's own, and nine times as many made by changing letters of words of
    the texts.
    """
    print(
        "\n| language | words | official: time against 200 words | default | published rule "
        "|\n|---|---|---|---|---|"
    )
    for language in languages:
        texts = mixture(language, data, megabytes)
        rng = random.Random(3)
        plain = [word.replace("|", "").partition("/")[0] for word in language.medical_words]
        letters = sorted({letter for word in plain for letter in word if letter.isalpha()})
        more = list(language.medical_words)
        seen = set(plain)
        while len(more) < 10 * len(plain):
            word = list(rng.choice(plain))
            for _ in range(2 if language.spaced else 1):
                word[rng.randrange(len(word))] = rng.choice(letters)
            if (new := "".join(word)) not in seen:
                seen.add(new)
                more.append(new)
        large = replace(language, medical_words=tuple(more))
        ratios = []
        for mode in ("official", "default"):
            few, many = Matcher(language, mode), Matcher(large, mode)
            times = [
                min(
                    cpu_seconds(lambda matcher=matcher, texts=texts: matcher.judge(texts))[0]
                    for _ in range(ROUNDS)) for matcher in (few, many)
            ]
            ratios.append(times[1] / times[0])
        some = texts[:max(1, len(texts) // 5)]
        peer = [
            cpu_seconds(lambda which=which, some=some: official_rule(some, which))[0]
            for which in (language, large)
        ]
        print(
            f"| {language.code} | {len(more)} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | "
            f"{peer[1] / peer[0]:.1f}x |",
            flush=True)


def growth(languages: list[Language], data: Path, megabytes: float) -> None:
    """Time and resident memory at 1, 10 and 100 times the text, documents generated while they are read."""
    language = languages[0]
    texts = mixture(language, data, megabytes / 10)
    matcher = Matcher(language)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\n| {language.code}: MB | CPU seconds a MB | peak resident MB |\n|---|---|---|")
    for times in (1, 10, 100):
        seconds = sum(cpu_seconds(lambda: matcher.judge(texts))[0] for _ in range(times))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {size * times:.1f} | {seconds / (size * times):.5f} | {peak:.0f} |", flush=True)


def first_half(identifier: str) -> bool:
    return hashlib.sha256(identifier.encode()).digest()[0] & 1 == 0


def score(kept: np.ndarray, truth: np.ndarray) -> tuple[float, float, int]:
    """(precision, recall, wrongly kept)."""
    right = int((kept & truth).sum())
    return right / max(1, int(kept.sum())), right / max(1, int(truth.sum())), int((kept & ~truth).sum())


def choose(hits: np.ndarray, density: np.ndarray, truth: np.ndarray) -> tuple[int, float]:
    """The strictest thresholds (most words, then greatest density) that reach the wanted precision and
    recall; where none does, those of best recall at the wanted precision."""
    best, best_key = (2, 0.0), (-1.0,)
    for words in (2, 3, 4, 5):
        for share in np.arange(0.01, 0.1, 0.0025):
            precision, recall, _ = score((hits >= words) & (density >= share), truth)
            if precision >= WANTED_PRECISION:
                key = (1.0, words, share) if recall >= WANTED_RECALL else (0.0, recall, share)
                if key > best_key:
                    best, best_key = (words, round(float(share), 4)), key
    return best


def quality(languages: list[Language], data: Path) -> None:
    print(
        "\nOn the half that chose nothing: precision / recall / wrongly kept. `chosen`: thresholds found on "
        "the first half; the "
        "language files hold them.\n\n| language | medical, other | official mode | default, in the "
        "language file | chosen |\n|---|---|---|---|---|"
    )
    for language in languages:
        records = labelled(language, data)
        if not records:
            print(f"| {language.code} | no texts under {data}: left out | | | |")
            continue
        truth = np.array([label for _, label in records])
        first = np.array([first_half(record["id"]) for record, _ in records])
        texts = [record["text"] for record, _ in records]
        cells = []
        for mode in ("official", "default"):
            kept = np.array([decision.medical for decision in Matcher(language, mode).judge(texts)])
            cells.append("{:.3f} / {:.3f} / {}".format(*score(kept[~first], truth[~first])))
        decisions = Matcher(language).judge(texts)
        hits, density = np.array([d.hits for d in decisions]), np.array([d.density for d in decisions])
        words, share = choose(hits[first], density[first], truth[first])
        print(
            f"| {language.code} | {int(truth[~first].sum())}, {int((~truth[~first]).sum())} | {cells[0]} | "
            f"{cells[1]} "
            f"({language.min_hits}, {language.min_density}) | {words}, {share} |",
            flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="labelled texts, a folder a language")
    parser.add_argument("--part", choices=("speed", "words", "growth", "quality"), help="only this part")
    parser.add_argument("--megabytes",
                        type=float,
                        default=3.0,
                        help="text a language in the speed parts (default: %(default)s)")
    given = parser.parse_args()
    languages = list(all_languages())
    for name, part in (("speed", speed), ("words", more_words), ("growth", growth)):
        if given.part in (None, name):
            part(languages, given.data, given.megabytes)
    if given.part in (None, "quality"):
        quality(languages, given.data)
    return 0


if __name__ == "__main__":
    main_guard(main)
