"""What is missing or suspicious in a language's file.

    python -m data_prep.filters.language_check de                        exit code 1: something must be fixed
    python -m data_prep.filters.language_check de --text labelled.jsonl  the same, with hit rates and
    thresholds on texts of yours

In: the language, and if given documents with `medical: true|false` (without it: ordinary). Out: a line for
each finding, "fix" (the tests or the corpus would fail) or "look" (read it again), then figures; exit code 1
if anything must be fixed. In order: words, sentences and thresholds, splitters, answers, the rest, and what
texts show.
"""
from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from data_prep.clean import identify_language
from data_prep.documents import find_inputs, read_documents
from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import default_patterns, dictionary_form
from mmed.evaluation.answer_parser import parse_answer
from mmed.languages import Language, get_language
from mmed.utils.errors import Parser, UserError, main_guard

TERMS = 200  # as in the paper
# a term in more ordinary texts than this, and in no more medical ones than FAVOURED times as many, tells
# little
COMMON = 0.05
FAVOURED = 3
FEW = 20  # texts of a kind, below which rates say little

Finding = tuple[str, str]  # "fix" or "look", and the line


def check_words(language: Language) -> Iterator[Finding]:
    terms = language.medical_words
    if len(terms) != TERMS:
        yield "fix", f"medical_words: {len(terms)} terms; the rule of the paper is made for {TERMS}"
    for form, count in Counter(map(dictionary_form, terms)).items():
        if count > 1:
            yield "fix", f"medical_words: {form!r} appears {count} times"
    for term in terms:
        if term != term.lower().strip():
            yield "fix", f"medical_words: {term!r} is not in lower case"
        for spelling in term.split("/"):
            yield from _check_spelling(spelling, language.spaced)
    if terms:
        yield from _check_overlaps(language)


def _check_spelling(spelling: str, spaced: bool) -> Iterator[Finding]:
    inside = spelling.startswith("|")
    stem, bar, _ = spelling.removeprefix("|").partition("|")
    least = (5 if inside else 4 if bar else 3) if spaced else 2
    if spelling.count("|") > inside + 1 or ((bar or inside) and not spaced):
        yield "fix", f"medical_words: {spelling!r} has a bar too many"
    elif len(stem) < least:
        yield "fix", f"medical_words: {spelling!r} is too short; here it needs {least} letters"


def _check_overlaps(language: Language) -> Iterator[Finding]:
    """Terms that another term's stem finds, too."""
    terms = language.medical_words
    patterns = default_patterns(replace(language, prefixes=()))
    for pattern in patterns:
        if not pattern.stem or pattern.anywhere:
            continue
        for other in patterns:
            if pattern.word != other.word and other.letters.startswith(pattern.letters):
                yield "look", (
                    f"medical_words: {dictionary_form(terms[other.word])!r} is found by "
                    f"{dictionary_form(terms[pattern.word])!r}, too; "
                    "wanted only where the two mean different things")


def check_rule(language: Language) -> Iterator[Finding]:
    """Sentences and thresholds."""
    if not (language.min_hits >= 2 and 0 < language.min_density < 0.2):
        yield "fix", (
            f"min_hits {language.min_hits}, min_density {language.min_density}: "
            "expected at least 2, and a share over 0 and below 0.2")
    if not language.medical_words:
        return
    matcher = Matcher(language)
    for name, wanted in (("medical_sentence", True), ("ordinary_sentence", False)):
        decision, found = matcher.explain(getattr(language, name))
        if wanted and not decision.medical:
            yield "fix", (
                f"{name}: dropped, with {decision.hits} terms and density {decision.density:.3f} (needs "
                f"{matcher.min_hits} and "
                f"{matcher.min_density}); found: {', '.join(found) or 'none'}")
        if not wanted and found:
            yield "fix", f"{name}: has medical words: {', '.join(found)}"


def check_splitters(language: Language, texts: Sequence[str]) -> Iterator[Finding]:
    samples = [
        language.medical_sentence, language.ordinary_sentence, language.disclaimer,
        " ".join(map(dictionary_form,
                     language.medical_words)), "(3.5 mg, 120/80) x-y, e\u0301 “a”: 10 %!", *texts[:500]
    ]
    for text in samples:
        got, expected = "".join(language.split_words(text)), "".join(text.split())
        if got != expected:
            place = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b),
                         min(len(got), len(expected)))
            yield "fix", f"split_words: loses or changes {expected[place:place + 10]!r} in {text[:60]!r}"
            break
    try:
        words = language.official_words(language.medical_sentence)
    except UserError as error:
        yield "look", f"official_words: not tried: {error}"
        return
    if re.sub(r"\s", "", "".join(words)) != re.sub(r"\s", "", language.medical_sentence):
        yield "fix", "official_words: the words of medical_sentence do not make it again"
    if len(words) < 5:
        yield "look", f"official_words: only {len(words)} words in medical_sentence"


def check_answers(language: Language) -> Iterator[Finding]:
    words = language.answers
    for name in ("answer", "is_", "choose", "correct", "wrong", "not_", "because", "and_or", "question"):
        listed = getattr(words, name)
        if not listed:
            yield "look", f"answers.{name}: empty, so answers in {language.name} are read without it"
        if signs := re.search(r"[\[\](){}?*+\\^$]", listed):
            yield "fix", f"answers.{name}: {signs[0]!r} in a list of ordinary words"
    if len(words.stated) < 3 or len(words.denied) < 2:
        yield "look", (
            "answers.stated, .denied: give at least three sentences that state an answer and two that do "
            "not; the tests read them")
    yield from _check_statements(language)


def _check_statements(language: Language) -> Iterator[Finding]:
    """Whether the parser reads the sentences for the tests as they are meant."""
    words = language.answers
    for sentence in (*words.stated, *words.denied):
        if sentence.count("{}") != 1:
            yield "fix", f"answers: {sentence!r} must have one {{}}, where the letter stands"
            continue
        for shown, letter in [*zip("BCD", "BCD"), *zip(words.letters[1:4], "BCD")]:
            parsed = parse_answer(sentence.format(shown), "ABCD", language=language.code).letters
            if sentence in words.stated and parsed != (letter,):
                yield "fix", (
                    f"answers.stated: {sentence.format(shown)!r} is read as "
                    f"{', '.join(parsed) or 'no answer'}, not {letter}")
            if sentence in words.denied and parsed:
                yield "fix", f"answers.denied: {sentence.format(shown)!r} is read as {', '.join(parsed)}"


def check_rest(language: Language) -> Iterator[Finding]:
    source = Path(inspect.getsourcefile(sys.modules[f"mmed.languages.{language.code}"])
                  or "").read_text(encoding="utf-8")
    if gaps := [str(number) for number, line in enumerate(source.splitlines(), 1) if "TODO" in line]:
        yield "fix", f"TODO stands in line {', '.join(gaps)}"
    default = next(field.default for field in fields(Language) if field.name == "disclaimer")
    if language.disclaimer == default and language.code != "en":
        yield "look", "disclaimer: in English; it is what people read before a chat"
    written = unicodedata.bidirectional(language.native_name[0]) in ("R", "AL")
    if written != language.right_to_left:
        yield "fix", (
            f"right_to_left: {language.right_to_left}, but {language.native_name} is written from the "
            f"{'right' if written else 'left'}")
    if not re.fullmatch(r"[a-z]{3}(?:_[a-z]{3,4})?(?:\+[a-z]{3}(?:_[a-z]{3,4})?){0,3}", language.ocr_code):
        yield "fix", f"ocr_code: {language.ocr_code!r} is no name that Tesseract has, such as deu or chi_sim"
    elif shutil.which("tesseract"):
        listed = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True,
                                check=False).stdout.split()
        if missing := [part for part in language.ocr_code.split("+") if part not in listed]:
            yield "look", (
                f"ocr_code: Tesseract has no {missing[0]} here "
                f"(apt-get install tesseract-ocr-{missing[0].replace('_', '-')})")
    try:
        share, likeliest = identify_language(f"{language.medical_sentence} {language.ordinary_sentence}",
                                             language.code)
        if share < 0.5:
            yield "look", (
                f"language_id: language identification takes the two sentences for {likeliest!r}; if it "
                f"knows {language.name} by another "
                "code, give it in language_id, else leave --language-id out when cleaning")
    except UserError as error:
        yield "look", f"language_id: not tried: {error}"


def check_texts(language: Language, inputs: Sequence[str]) -> Iterator[Finding]:
    """What the words and thresholds do on texts; prints figures."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for path in find_inputs(inputs):
        for document in read_documents(path):
            texts[document.meta.get("medical") is True].append(document.text)
    matcher = Matcher(language)
    explained = {kind: [matcher.explain(text) for text in found] for kind, found in texts.items()}
    number, rate = {}, {}
    for kind, rows in explained.items():
        number[kind] = Counter(word for _, found in rows for word in found)
        rate[kind] = sum(decision.medical for decision, _ in rows) / max(len(rows), 1)
        if 0 < len(rows) < FEW:
            yield "look", (
                f"texts: only {len(rows)} {'medical' if kind else 'ordinary'} ones; "
                "rates of so few say little")
        if rows:
            print(
                f"{'medical' if kind else 'ordinary'} texts: {len(rows)}, kept {100 * rate[kind]:.1f} %; "
                f"terms in one: "
                f"{sum(d.hits for d, _ in rows) / len(rows):.1f}, density "
                f"{sum(d.density for d, _ in rows) / len(rows):.3f}"
            )
    if explained[True] and rate[True] < 0.5:
        yield "fix", (
            f"thresholds: only {100 * rate[True]:.0f} % of the medical texts are kept; "
            "lower them or find better words")
    if explained[False] and rate[False] > 0.1:
        yield "fix", (
            f"thresholds: {100 * rate[False]:.0f} % of the ordinary texts are kept; "
            "raise them, or take out the words below")
    ordinary, medical = len(explained[False]), len(explained[True])
    if ordinary >= FEW:
        for word, count in number[False].most_common():
            share = number[True][word] / medical if medical else 0.0
            if count > 1 and count / ordinary > COMMON and share < FAVOURED * count / ordinary:
                yield "look", (
                    f"medical_words: {word!r} is in {count} of {ordinary} ordinary texts" +
                    (f" and in {number[True][word]} of {medical} medical ones" if medical else "") +
                    "; an everyday word?")
    if ordinary >= FEW and medical >= FEW:
        print(
            f"terms never found: {sum(not number[True][word] for word in matcher.words)} of "
            f"{len(matcher.words)} (in so many texts)"
        )
        yield from _best_thresholds(language, explained)


def _best_thresholds(language: Language, explained: dict[bool, list]) -> Iterator[Finding]:
    """The pair with the best F1; of equally good ones the one in the middle, which is farthest from both
    kinds of error.
    """
    densities = [step / 400 for step in range(4, 61)]
    rows = [(decision.hits, decision.density, kind) for kind, found in explained.items()
            for decision, _ in found]
    total = len(explained[True])

    def f1(hits: int, density: float) -> float:
        kept = [kind for h, d, kind in rows if h >= hits and d >= density]
        return 2 * sum(kept) / (len(kept) + total)

    scores = {(hits, density): f1(hits, density) for hits in range(2, 9) for density in densities}
    best = max(scores.values())
    good = [pair for pair, score in scores.items() if score > best - 1e-9]
    hits = good[len(good) // 2][0]
    density = (middle := [density for words, density in good if words == hits])[len(middle) // 2]
    now = f1(language.min_hits, language.min_density)
    print(
        f"thresholds in the file ({language.min_hits}, {language.min_density}): F1 {now:.3f}; best on these "
        f"texts ({hits}, {density:g}): F1 {best:.3f}, "
        f"as good at {len(good)} of {len(scores)} pairs")
    if now < best - 0.03:
        yield "look", f"min_hits, min_density: ({hits}, {density:g}) would do better on these texts"


def check(name: str, inputs: Sequence[str]) -> int:
    """Print all findings; the exit code."""
    language = get_language(name)
    found: list[Finding] = [*check_words(language), *check_rule(language)]
    texts = [document.text for path in find_inputs(inputs)
             for document in read_documents(path)] if inputs else []
    found += [*check_splitters(language, texts), *check_answers(language), *check_rest(language)]
    if inputs and language.medical_words:
        found += check_texts(language, inputs)
    for kind, line in found:
        print(f"{kind}  {line}")
    must = sum(kind == "fix" for kind, _ in found)
    print(f"{language.code} ({language.name}): {must} to fix, {len(found) - must} to look at" +
          ("" if inputs else "; no texts given (--text)"))
    return 1 if must else 0


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.filters.language_check",
                    description="What is missing or suspicious in a language's file.")
    parser.add_argument("code", help="code or name of the language")
    parser.add_argument("--text",
                        nargs="+",
                        default=[],
                        metavar="FILE",
                        help='documents with "medical": true or false, to judge words and '
                        "thresholds by; those without it are taken for ordinary text")
    given = parser.parse_args(arguments)
    return check(given.code, given.text)


if __name__ == "__main__":
    main_guard(main)
