"""Reports what is missing or suspicious in a language's file.

    python -m data_prep.filters.language_check de --text labelled.jsonl

In: the language, and optionally documents with `medical: true|false` (default: false) to test words and
thresholds on. Out: one line per finding, "fix" (tests or the corpus would fail) or "look" (check it again),
then figures; exit code 1 if anything must be fixed.
"""
from __future__ import annotations

import inspect
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from data_prep.clean import identify_language
from data_prep.documents import find_inputs, read_documents
from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import default_patterns, dictionary_form
from mmed.evaluation.answer_parser import parse_answer
from mmed.languages import Language, get_language
from mmed.utils.errors import Parser, UserError, main_guard

TERMS = 200  # as in the paper
# An everyday word: in more ordinary texts than COMMON, and in less than FAVOURED times as many medical ones.
COMMON = 0.05
FAVOURED = 3
FEW = 20  # texts of a kind, below which rates say little
OCR_CODE = re.compile(r"[a-z]{3}(?:_[a-z]{3,4})?(?:\+[a-z]{3}(?:_[a-z]{3,4})?)*")

Finding = tuple[str, str]  # "fix" or "look", and the line


def check_words(language: Language) -> Iterator[Finding]:
    terms = language.medical_words
    if len(terms) != TERMS:
        yield "fix", f"medical_words: {len(terms)} terms; the paper's rule is made for {TERMS}"
    for form, count in Counter(map(dictionary_form, terms)).items():
        if count > 1:
            yield "fix", f"medical_words: {form!r} appears {count} times"
    for spelling in (spelling for term in terms for spelling in term.split("/")):
        inside = spelling.startswith("|")
        stem, bar, _ = spelling.removeprefix("|").partition("|")
        least = (5 if inside else 4 if bar else 3) if language.spaced else 2
        if spelling != spelling.lower().strip():
            yield "fix", f"medical_words: {spelling!r} is not in lower case"
        if spelling.count("|") > inside + 1 or ((bar or inside) and not language.spaced):
            yield "fix", f"medical_words: {spelling!r} has a bar too many"
        elif len(stem) < least:
            yield "fix", f"medical_words: {spelling!r} is too short; here it needs {least} letters"
    patterns = default_patterns(replace(language, prefixes=()))
    for begin in (pattern for pattern in patterns if pattern.stem and not pattern.anywhere):
        for other in patterns:
            if begin.word != other.word and other.letters.startswith(begin.letters):
                long, short = (dictionary_form(terms[pattern.word]) for pattern in (other, begin))
                yield "look", (f"medical_words: {long!r} is found by {short!r}, too; keep both only if "
                               "they mean different things")


def check_rule(language: Language) -> Iterator[Finding]:
    """Check the example sentences and the thresholds."""
    needs = f"min_hits {language.min_hits}, min_density {language.min_density}"
    if not (language.min_hits >= 2 and 0 < language.min_density < 0.2):
        yield "fix", f"{needs}: expected at least 2, and a share over 0 and below 0.2"
    matcher = Matcher(language)
    decision, found = matcher.explain(language.medical_sentence)
    if not decision.medical:
        yield "fix", (f"medical_sentence: dropped, with {decision.hits} terms and density "
                      f"{decision.density:.3f} ({needs}); found: {', '.join(found) or 'none'}")
    if found := matcher.explain(language.ordinary_sentence)[1]:
        yield "fix", f"ordinary_sentence: has medical words: {', '.join(found)}"


def check_answers(language: Language) -> Iterator[Finding]:
    """Check the word lists, and that the answer parser reads the test sentences as intended."""
    words = language.answers
    for name in ("answer", "is_", "choose", "correct", "wrong", "not_", "because_if", "and_or", "question"):
        listed = getattr(words, name)
        if not listed:
            yield "look", f"answers.{name}: empty, so answers in {language.name} are read without it"
        if signs := re.search(r"[\[\](){}?*+\\^$]", listed):
            yield "fix", f"answers.{name}: {signs[0]!r} in a list of ordinary words"
    if len(words.stated) < 3 or len(words.denied) < 2:
        yield "look", ("answers.stated, .denied: give at least three sentences that state an answer and two "
                       "that do not; the tests read them")
    letters = [*zip("BCD", "BCD"), *zip(words.letters[1:4], "BCD")]  # (as written, as read)
    for kind in ("stated", "denied"):
        for sentence in getattr(words, kind):
            if sentence.count("{}") != 1:
                yield "fix", f"answers.{kind}: {sentence!r} must have one {{}}, where the letter stands"
                continue
            for shown, letter in letters:
                parsed = parse_answer(sentence.format(shown), "ABCD", language=language.code).letters
                read = f"{sentence.format(shown)!r} is read as {', '.join(parsed) or 'no answer'}"
                if kind == "stated" and parsed != (letter,):
                    yield "fix", f"answers.stated: {read}, not {letter}"
                if kind == "denied" and parsed:
                    yield "fix", f"answers.denied: {read}"


def check_rest(language: Language) -> Iterator[Finding]:
    source = Path(inspect.getfile(sys.modules[f"mmed.languages.{language.code}"]))
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        if "TODO" in line:
            yield "fix", f"TODO remains in line {number}"
    if language.disclaimer == Language.disclaimer and language.code != "en":
        yield "look", "disclaimer: in English; it is what people read before a chat"
    written = unicodedata.bidirectional(language.native_name[0]) in ("R", "AL")
    if written != language.right_to_left:
        yield "fix", (f"right_to_left: {language.right_to_left}, but {language.native_name} is written from "
                      f"the {'right' if written else 'left'}")
    if not OCR_CODE.fullmatch(language.ocr_code):
        yield "fix", f"ocr_code: {language.ocr_code!r} is not a Tesseract name, such as deu or chi_sim"
    sentences = f"{language.medical_sentence} {language.ordinary_sentence}"
    try:
        share, likeliest = identify_language(sentences, language.code)
    except UserError as error:
        yield "look", f"language_id: not tried: {error}"
        return
    if share < 0.5:
        yield "look", (f"language_id: the two sentences are taken for {likeliest!r}; if py3langid knows "
                       f"{language.name} by another code, give it, else clean without --language_id")


def check_texts(language: Language, inputs: Sequence[str]) -> Iterator[Finding]:
    """Evaluate words and thresholds on texts, and print the figures."""
    matcher = Matcher(language)
    explained: dict[str, list] = {"medical": [], "ordinary": []}
    for document in (document for path in find_inputs(inputs) for document in read_documents(path)):
        kind = "medical" if document.meta.get("medical") is True else "ordinary"
        explained[kind].append(matcher.explain(document.text))
    kept: dict[str, float] = {}
    for kind, rows in explained.items():
        if len(rows) < FEW:
            yield "look", f"texts: only {len(rows)} {kind} ones; give at least {FEW} of each kind"
            return
        kept[kind], hits, density = map(fmean, zip(*(decision for decision, _ in rows)))
        print(f"{kind} texts: {len(rows)}, kept {100 * kept[kind]:.1f} %; terms in one: {hits:.1f}, "
              f"density {density:.3f}")
    if kept["medical"] < 0.5:
        yield "fix", (f"thresholds: only {100 * kept['medical']:.0f} % of the medical texts are kept; lower "
                      "them or find better words")
    if kept["ordinary"] > 0.1:
        yield "fix", f"thresholds: {100 * kept['ordinary']:.0f} % of the ordinary texts are kept; raise them"
    medical, ordinary = (Counter(word for _, found in rows for word in found) for rows in explained.values())
    texts = {kind: len(rows) for kind, rows in explained.items()}
    for word, count in ordinary.most_common():
        share = count / texts["ordinary"]
        if share > COMMON and medical[word] / texts["medical"] < FAVOURED * share:
            yield "look", (f"medical_words: {word!r} is in {count} of {texts['ordinary']} ordinary texts and "
                           f"in {medical[word]} of {texts['medical']} medical ones; an everyday word?")


def check(name: str, inputs: Sequence[str]) -> int:
    """Print all findings and return the exit code."""
    language = get_language(name)
    found = [*check_words(language), *check_rule(language), *check_answers(language), *check_rest(language),
             *check_texts(language, inputs)]
    for kind, line in found:
        print(f"{kind}  {line}")
    must = sum(kind == "fix" for kind, _ in found)
    print(f"{language.code} ({language.name}): {must} to fix, {len(found) - must} to look at")
    return 1 if must else 0


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.filters.language_check",
                    description="Report what is missing or suspicious in a language's file.")
    parser.add_argument("code", help="code or name of the language")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE",
                        help='documents labelled "medical": true or false, to test words and thresholds')
    given = parser.parse_args(arguments)
    return check(given.code, given.text)


if __name__ == "__main__":
    main_guard(main)
