"""Telephone numbers in medical text: data_prep/filters/personal_data.py against the package phonenumbers.

    python benchmarks/data_prep/bench_phones.py [--data DIR] [--seed 0]

Recall: numbers that phonenumbers itself gives as examples for the countries of our languages, in national and
international form, inside a sentence. Precision: generated doses, dates, ranges, identifiers, codes and
tables, none of them a telephone number. DIR/<code>/medical.jsonl.gz, nonmedical.jsonl.gz: real texts, for
speed and for the matches (--show prints those on which the two disagree).
"""
from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import phonenumbers

from data_prep.filters.personal_data import find_personal

REGIONS = {"en": ("US", "GB"), "zh": ("CN",), "ja": ("JP",), "fr": ("FR",), "ru": ("RU",), "es": ("ES",),
           "de": ("DE",),
           "ar": ("SA", "EG", "AE", "MA", "JO")}
LENIENCIES = {"valid": phonenumbers.Leniency.VALID, "strict grouping": phonenumbers.Leniency.STRICT_GROUPING}
Finder = Callable[[str, str], list[str]]  # text, language code -> numbers found


def ours(text: str, code: str) -> list[str]:
    return [text[begin:end] for begin, end, kind in find_personal(text) if kind == "phone"]


def package(leniency: int) -> Finder:
    def find(text: str, code: str) -> list[str]:
        matches = [match for region in REGIONS[code]
                   for match in phonenumbers.PhoneNumberMatcher(text, region, leniency)]
        return list({(match.start, match.end): match.raw_string for match in matches}.values())

    return find


def numbers(code: str, rng: random.Random) -> list[str]:
    """Example numbers of the language's countries, their last digits changed, as far as they stay valid."""
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    forms = (phonenumbers.PhoneNumberFormat.NATIONAL, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    found = []
    for region in REGIONS[code]:
        for kind in kinds:
            for _ in range(30):
                number = phonenumbers.example_number_for_type(region, kind)
                number.national_number += rng.randrange(-3000, 3000)
                if phonenumbers.is_valid_number(number):
                    found += [phonenumbers.format_number(number, form) for form in forms]
    return found


def other_numbers(rng: random.Random) -> str:
    """Something with digits that medical text has and that is no telephone number."""
    n = rng.randrange
    makers = [
        lambda: f"{n(1, 999)} mg", lambda: f"{n(1, 9)} {n(100, 999)} 000 IU",
        lambda: f"{n(1, 28):02}.{n(1, 13):02}.{n(1950, 2026)}",
        lambda: f"{n(1950, 2026)}-{n(1, 13):02}-{n(1, 29):02} {n(24):02}:{n(60):02}",
        lambda: f"{n(1950, 2000)}-{n(2000, 2026)}",
        lambda: f"{n(1, 29):02}/{n(1, 13):02}/{n(1950, 2026)}", lambda: f"{n(90, 190)}/{n(50, 110)} mmHg",
        lambda: f"ICD-10 "
                f"{rng.choice('ABCDEFGIJ')}{n(10, 99)}.{n(10)}-{rng.choice('ABCDEFGIJ')}{n(10, 99)}.{n(10)}",
        lambda: f"doi:10.{n(1000, 9999)}/{n(100, 999)}-{n(100, 999)}-{n(1000, 9999)}",
        lambda: f"PMID {n(10**7, 4 * 10**7)}",
        lambda: f"NCT0{n(10**6, 10**7)}", lambda: f"ISBN 978-{n(10)}-{n(10, 99)}-{n(10**5, 10**6)}-{n(10)}",
        lambda: f"CAS {n(50, 9999)}-{n(10, 99)}-{n(10)}", lambda: f"{n(100, 200)}-{n(200, 300)} mmol/L",
        lambda: " ".join(f"{n(10, 100)}" for _ in range(n(3, 8))),
        lambda: " ".join(f"{n(100, 999)}" for _ in range(n(2, 5))),
        lambda: " ".join(f"{n(1, 99)}.{n(10)}" for _ in range(n(3, 7))),
        lambda: f"J Clin {n(1980, 2026)};{n(9, 400)}({n(1, 20)}):{n(100, 2000)}-{n(10, 99)}",
        lambda: f"{n(10**4, 10**5)} Paris", lambda: f"0{n(10)}.{n(10, 99)}-0.{n(10, 99)}",
        lambda: f"rs{n(10**6, 10**9)}",
        lambda: f"chr{n(1, 22)}:{n(10**6, 10**8)}-{n(10**6, 10**8)}",
        lambda: f"N = {n(10**3, 10**4)} ({n(10, 99)}.{n(10)}%)",
        lambda: f"{n(1, 9)}-{n(1, 9)}-{n(1, 9)} {n(1, 9)}-{n(1, 9)}-{n(1, 9)}",
        lambda: "0800 1200 1600 2000", lambda: f"lot {n(10**8, 10**9)}",
        lambda: f"EudraCT 20{n(10, 24)}-{n(10**5, 10**6):06}-{n(10, 99)}",
        lambda: f"GTIN 0{n(10**12, 10**13)}", lambda: f"{n(10**5, 10**6)}.{n(10)}",
        lambda: f"case {n(10**9, 10**10)}", lambda: f"{n(1, 100)},{n(100, 999)},{n(100, 999)} cells",
    ]
    return rng.choice(makers)()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    finders: dict[str, Finder] = {"patterns": ours,
                                  **{name: package(leniency) for name, leniency in LENIENCIES.items()}}
    rng = random.Random(given.seed)
    print("| language | numbers | " + " | ".join(f"found by {name}" for name in finders) + " |")
    for code in REGIONS:
        positives = numbers(code, rng)
        shares = [sum(bool(find(f"Contact: {number}, please.", code)) for number in positives)
                  for find in finders.values()]
        print(f"| {code} | {len(positives)} | "
              + " | ".join(f"{100 * share / len(positives):.0f} %" for share in shares) + " |")
    negatives = [other_numbers(rng) for _ in range(3000)]
    for name, find in finders.items():
        wrong = [text for i, text in enumerate(negatives)
                 if find(f"Value {text}, see below.", list(REGIONS)[i % len(REGIONS)])]
        print(f"{name}: {len(wrong)} of {len(negatives)} other numbers taken for telephone numbers, such as "
              f"{wrong[:6]}")
    for code in REGIONS if given.data else ():
        texts = [json.loads(line)["text"] for kind in ("medical", "nonmedical")
                 if (given.data / code).is_dir()
                 for line in gzip.open(given.data / code / f"{kind}.jsonl.gz", "rt", encoding="utf-8")]
        if not texts:
            continue
        size, results, cells = sum(len(text.encode()) for text in texts) / 1e6, {}, []
        for name, find in finders.items():
            start = time.process_time()
            results[name] = [(i, number) for i, text in enumerate(texts) for number in find(text, code)]
            rate = size / (time.process_time() - start)
            cells.append(f"{name} {rate:.1f} MB/s, {len(results[name])} found")
        print(f"{code}, {size:.1f} MB: " + "; ".join(cells), flush=True)
        if given.show:
            for name in list(finders)[1:]:
                only = sorted(set(results[name]) - set(results["patterns"]))
                print(f"  only {name}: {[number for _, number in only][:40]}")
            only = sorted(set(results["patterns"]) - set(results["valid"]))
            print(f"  only patterns: {[number for _, number in only][:60]}")


if __name__ == "__main__":
    main()
