"""The medical filter: speed against the published rule, and quality on labelled texts.

    python benchmarks/data_prep/bench_filter.py [--data DATA/text] [--part speed|quality] [--megabytes 3]

DATA/text holds CODE/medical.jsonl.gz and CODE/nonmedical.jsonl.gz (text, id). Without it the texts of the
speed table are made from each language's own words and sentences, and quality is left out.

Speed: MB of UTF-8 a second of CPU time on one thread, in turn on the same documents, 15 % of them medical;
decisions must equal the published rule's on every document. Quality: thresholds of the default mode are
chosen on one half (by a hash of the id), and all is reported on the other.
"""
from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.timing import in_turn, machine, print_head, print_row, ratio
from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import official_words
from mmed.languages import Language, all_languages
from mmed.utils.errors import Parser
from mmed.utils.files import read_jsonl

ROUNDS = 3
MEDICAL_SHARE = 0.15
# For the choice of thresholds; 0.98 is the paper's check by hand.
WANTED_PRECISION, WANTED_RECALL = 0.98, 0.94


def official_rule(texts: list[str], language: Language) -> list[bool]:
    """The rule as published: a pass over the text for each word (Chinese and Japanese as was meant)."""
    words = official_words(language)
    long = [word for word in words
            if not language.spaced or len(word) > 10 or (len(word) > 5 and " " in word)]
    short = [word for word in words if word not in set(long)]

    def enough(text: str, hits: int, covered: int) -> bool:
        dense = bool(text) and covered / len(text) >= language.official_min_density
        return dense and hits >= language.official_min_hits

    verdicts = []
    for text in map(str.lower, texts):
        counts = [(word, text.count(word)) for word in long if word in text]
        hits, covered = len(counts), sum(count * len(word) for word, count in counts)
        if short and not enough(text, hits, covered):
            tokens = text.split()
            for word in short:
                if count := tokens.count(word):
                    hits += 1
                    covered += count * len(word)
        verdicts.append(enough(text, hits, covered))
    return verdicts


# ------------------------------------------------------------------------------------------------------ texts

def labelled(language: Language, data: Path | None) -> list[tuple[dict, bool]]:
    """(record, is medical) of the real texts, or nothing."""
    records: list[tuple[dict, bool]] = []
    for kind, medical in (("medical", True), ("nonmedical", False)):
        path = data / language.code / f"{kind}.jsonl.gz" if data else None
        if path and path.exists():
            records += [(record, medical) for _, record in read_jsonl(path)]
    return records


def made_documents(language: Language, rng: random.Random) -> list[tuple[dict, bool]]:
    """Medical and other documents from a language file's own words, for machines without the texts."""
    join = " " if language.spaced else ""
    ordinary = language.split_words(language.ordinary_sentence)
    words = [spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/")]

    def document(share: float) -> dict:
        size = rng.randrange(50, 600)
        return {"text": join.join(rng.choice(words if rng.random() < share else ordinary)
                                  for _ in range(size))}

    return [(document(0.15), True) for _ in range(150)] + [(document(0.005), False) for _ in range(850)]


def mixture(language: Language, data: Path | None, megabytes: float) -> list[str]:
    """Documents in random order, `MEDICAL_SHARE` of them medical, about so many megabytes."""
    rng = random.Random(7)
    records = labelled(language, data) or made_documents(language, rng)
    medical, other = ([record["text"] for record, label in records if label == wanted]
                      for wanted in (True, False))
    chosen, size = [], 0.0
    while size < megabytes * 1e6:
        chosen.append(rng.choice(medical if rng.random() < MEDICAL_SHARE else other))
        size += len(chosen[-1].encode())
    return chosen


# ------------------------------------------------------------------------------------------------------ parts

def speed(languages: list[Language], options: argparse.Namespace) -> None:
    print_head("MB/s", "published rule", "official mode", "ratio", "default mode")
    for language in languages:
        texts = mixture(language, options.data, options.megabytes)
        official = Matcher(language, "official")
        forms = {"official": partial(official.judge, texts),
                 "published": partial(official_rule, texts, language),
                 "default": partial(Matcher(language).judge, texts)}
        decisions = [decision.medical for decision in forms["official"]()]
        assert decisions == forms["published"](), f"{language.code}: decisions differ"
        times = in_turn(forms, ROUNDS)
        size = sum(len(text.encode()) for text in texts) / 1e6
        rate = {form: size / statistics.median(spent) for form, spent in times.items()}
        print_row(language.code, f"{rate['published']:.1f}", f"{rate['official']:.0f}",
                  ratio(times, "official", "published"), f"{rate['default']:.0f}")


def in_first_half(record: dict) -> bool:
    return hashlib.sha256(record["id"].encode()).digest()[0] % 2 == 0


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


def quality(languages: list[Language], options: argparse.Namespace) -> None:
    print("\nOn the half that chose nothing: precision / recall / wrongly kept. `chosen`: thresholds found "
          "on the first half; the language files hold them.\n")
    print_head("language", "medical, other", "official mode", "default, thresholds", "chosen")
    for language in languages:
        records = labelled(language, options.data)
        if not records:
            print_row(language.code, f"no texts under {options.data}: left out", "", "", "")
            continue
        truth = np.array([label for _, label in records])
        first = np.array([in_first_half(record) for record, _ in records])
        texts = [record["text"] for record, _ in records]
        cells = []
        for mode in ("official", "default"):
            decisions = Matcher(language, mode).judge(texts)
            kept = np.array([decision.medical for decision in decisions])
            cells.append("{:.3f} / {:.3f} / {}".format(*score(kept[~first], truth[~first])))
        hits = np.array([decision.hits for decision in decisions])
        density = np.array([decision.density for decision in decisions])
        words, share = choose(hits[first], density[first], truth[first])
        print_row(language.code, f"{truth[~first].sum()}, {(~truth[~first]).sum()}", cells[0],
                  f"{cells[1]} ({language.min_hits}, {language.min_density})", f"{words}, {share}")


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="labelled texts, a folder a language")
    parser.add_argument("--part", choices=("speed", "quality"), help="only this part")
    parser.add_argument("--megabytes", type=float, default=3.0, help="text of a language in the speed table")
    options = parser.parse_args()
    print(machine())
    for name, part in (("speed", speed), ("quality", quality)):
        if options.part in (None, name):
            part(list(all_languages()), options)


if __name__ == "__main__":
    main()
