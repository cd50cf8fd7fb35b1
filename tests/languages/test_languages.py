"""Every language file is complete, and finding a language needs no list."""
import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

import mmed.languages
from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import dictionary_form
from data_prep.filters.language_check import (
    check_answers,
    check_rest,
    check_rule,
    check_texts,
    check_words,
)
from mmed.evaluation.answer_words import patterns_of
from mmed.languages import AnswerWords, Language, all_languages, get_language, split_characters, split_spaced
from mmed.languages.__main__ import main as command
from mmed.utils.errors import UserError

LANGUAGES = all_languages()
CODES = [language.code for language in LANGUAGES]
ROOT = Path(__file__).resolve().parents[2]


def test_the_papers_six_come_first_and_in_its_order():
    assert CODES[:6] == ["en", "zh", "ja", "fr", "ru", "es"]
    assert CODES[6:] == sorted(CODES[6:])


def test_a_new_file_is_all_that_a_new_language_takes(tmp_path):
    """A file in the package's folder is found by itself: by code, by name, and by the filter."""
    package = tmp_path / "mmed"
    for name in ("languages", "utils"):
        (package / name).mkdir(parents=True)
    for name in ("__init__.py", "utils/__init__.py", "utils/errors.py"):
        (package / name).write_bytes((ROOT / "mmed" / name).read_bytes())
    for file in (ROOT / "mmed" / "languages").glob("*.py"):
        (package / "languages" / file.name).write_bytes(file.read_bytes())
    source = (package / "languages" / "en.py").read_text(encoding="utf-8")
    (package / "languages" / "xx.py").write_text(source.replace('"en", name="English", native_name="English"',
                                                                '"xx", name="Testish", native_name="Test"'),
                                                 encoding="utf-8")
    told = subprocess.run([
        sys.executable, "-c",
        "from mmed.languages import *; print(get_language('testish').code, [l.code for l in all_languages()])"
    ],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True,
                          env={"PYTHONPATH": str(tmp_path)},
                          check=True).stdout
    assert told.split()[0] == "xx" and "'xx'" in told


@pytest.mark.parametrize("code", CODES)
def test_a_language_is_found_by_code_name_and_native_name(code):
    language = get_language(code)
    for name in (code, code.upper(), language.name, language.name.lower(), language.native_name,
                 f" {language.name} "):
        assert get_language(name) is language


def test_an_unknown_language_names_the_nearest_and_the_known():
    with pytest.raises(UserError, match=r"did you mean 'Japanese'\?.*en \(English\), zh \(Chinese\)"):
        get_language("Japanes")
    with pytest.raises(UserError, match="unknown language 'jp'"):
        get_language("jp")


@pytest.mark.parametrize("code", CODES)
def test_each_language_has_200_different_terms_in_the_agreed_form(code):
    language = get_language(code)
    assert len(language.medical_words) == 200
    assert len({dictionary_form(term) for term in language.medical_words}) == 200
    for term in language.medical_words:
        assert term == term.lower().strip() and "  " not in term, term
        for spelling in term.split("/"):
            inside = spelling.startswith("|")
            stem, bar, _ = spelling.removeprefix("|").partition("|")
            assert spelling.count("|") <= inside + 1, term
            assert len(stem) >= ((5 if inside else 4 if bar else 3) if language.spaced else 2), term
            assert language.spaced or not (bar or inside), term


@pytest.mark.parametrize("code", CODES)
def test_thresholds_and_the_published_ones_are_in_range(code):
    language = get_language(code)
    assert language.min_hits >= 2 and 0 < language.min_density < 0.2
    published = {
        "en": (5, 0.04), "zh": (5, 0.05), "ja": (5, 0.05), "fr": (4, 0.04), "ru": (4, 0.02), "es": (4, 0.04)
    }
    assert code not in published or (language.official_min_hits,
                                     language.official_min_density) == published[code]


@pytest.mark.parametrize("code", CODES)
def test_the_medical_sentence_is_kept_and_the_ordinary_one_is_not(code):
    language = get_language(code)
    medical, ordinary = Matcher(language).judge([language.medical_sentence, language.ordinary_sentence])
    assert medical.medical and not ordinary.medical and ordinary.hits == 0


@pytest.mark.parametrize("code", CODES)
def test_splitting_loses_no_character_but_white_space(code):
    language = get_language(code)
    rng = random.Random(code)
    pieces = [
        *language.medical_words, "don't", "l'eau", "3.5", "1,000", "(a)", "…", "--", "e\u0301", "\u3000",
        "\n", "ＡＢ", "x-y/z", "𠀀", "。"
    ]
    for _ in range(50):
        text = "".join(rng.choice(pieces) + rng.choice(["", " ", ", "]) for _ in range(20))
        assert "".join(language.split_words(text)) == "".join(text.split())
    assert language.split_words("") == []


def test_spaced_splitting_agrees_with_the_treebank_rules():
    treebank = pytest.importorskip("nltk.tokenize.destructive").NLTKWordTokenizer()
    for text in ("The patient's fever (39.5) didn't fall, so they've given 1,000 mg of X-12.",
                 "It's a well-known drug: 50% of users stop!"):
        assert split_spaced(text) == treebank.tokenize(text)


def test_characters_keep_latin_and_digit_runs_whole():
    assert split_characters("SpO2は98.5％、ＨＩＶ陰性") == [
        "SpO2", "は", "98.5", "％", "、", "ＨＩＶ", "陰", "性"
    ]


@pytest.mark.parametrize("code", CODES)
def test_official_words_keep_the_text_and_cut_it(code):
    language = get_language(code)
    pytest.importorskip(language.official_package)
    words = language.official_words(language.medical_sentence)
    assert "".join(words).replace(" ", "") == language.medical_sentence.replace(" ", "")
    assert len(words) > 10
    assert words == language.official_words(language.medical_sentence)


@pytest.mark.parametrize("code", CODES)
def test_the_check_finds_nothing_to_fix_and_reads_the_languages_own_statements(code):
    """Terms, sentences, splitters; the sentences under `stated` are read as the letter in them, those under
    `denied` are not.
    """
    language = get_language(code)
    assert language.answers.stated and language.answers.denied
    found = [
        line for part in (check_words(language), check_rule(language), check_answers(language),
                          check_rest(language)) for kind, line in part
        if kind == "fix"
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path",
                         sorted((ROOT / "tests" / "data" / "languages").glob("??.jsonl")),
                         ids=lambda path: path.stem)
def test_labelled_texts_of_a_language_are_told_apart(path):
    if path.stem not in CODES:
        pytest.skip("no file for this language")
    matcher = Matcher(get_language(path.stem))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for wanted in (True, False):  # three paragraphs of a kind, as a page has
        texts = [row["text"] for row in rows if row["medical"] is wanted]
        assert {
            decision.medical
            for decision in matcher.judge(
                ["\n".join(texts[place:place + 3]) for place in range(len(texts) - 2)])
        } == {wanted}
    kept = [decision.medical for decision in matcher.judge([row["text"] for row in rows])]
    medical = [row["medical"] for row in rows]
    assert sum(
        k and m
        for k, m in zip(kept, medical)) >= 0.8 * sum(medical) and not any(k and not m
                                                                          for k, m in zip(kept, medical))


ENGLISH = get_language("en")
FAULTS = [
    (check_words, dict(medical_words=ENGLISH.medical_words[:-1]), "199 terms"),
    (check_words, dict(medical_words=("fever|", ) * 2 + ENGLISH.medical_words[:-2]), "'fever' appears"),
    (check_words, dict(medical_words=("Fever", )), "not in lower case"),
    (check_words, dict(medical_words=("flu|", )), "'flu|' is too short"),
    (check_words, dict(medical_words=("|flue|", )), "needs 5 letters"),
    (check_words, dict(medical_words=("fe|v|er", )), "a bar too many"),
    (check_rule, dict(min_density=0.0), "min_density 0.0"),
    (check_rule, dict(min_hits=12), "medical_sentence: dropped"),
    (check_rule, dict(ordinary_sentence="The train smells of insulin."),
     "ordinary_sentence: has medical words: insulin"),
    (check_answers, dict(answers=replace(ENGLISH.answers, cue="answer|(")),
     "answers.cue: not a regular expression"),
    (check_answers, dict(answers=replace(ENGLISH.answers, cue="answer.*")), "a repeat without a bound"),
    (check_answers, dict(answers=replace(ENGLISH.answers, cue="answer|")), "an empty alternative"),
    (check_answers, dict(answers=replace(ENGLISH.answers, stated=("It hurts.", ))), "must have one {}"),
    (check_answers, dict(answers=replace(ENGLISH.answers, stated=("Anything but {}, never {}.", ))),
     "must have one {}"),
    (check_answers, dict(answers=replace(ENGLISH.answers, stated=("Your guess: green {} house.", ))),
     "is read as no answer, not B"),
    (check_answers, dict(answers=replace(ENGLISH.answers, denied=("The answer is {}.", ))),
     "answers.denied: 'The answer is B.' is read as B"),
    (check_answers, dict(answers=AnswerWords()), "answers.cue: empty"),
    (check_rest, dict(right_to_left=True), "written from the left"),
    (check_rest, dict(ocr_code="English"), "no name that Tesseract has"),
]


@pytest.mark.parametrize("part,change,said",
                         FAULTS,
                         ids=lambda value: value if isinstance(value, str) else "")
def test_the_check_names_the_fault(part, change, said):
    assert not any(said in line for _, line in part(ENGLISH))
    assert any(said in line for _, line in part(replace(ENGLISH, **change)))


def test_the_check_shows_everyday_words_and_thresholds_that_keep_too_much_or_too_little(tmp_path, capsys):
    ordinary = [
        f"The patient reader waits for train number {number} at the hospital bridge." for number in range(25)
    ]
    medical = [
        f"Patient {number} had fever, cough and dyspnea; pneumonia was treated with antibiotics."
        for number in range(25)
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(
        json.dumps({"text": text, "medical": text in medical}) + "\n" for text in ordinary + medical),
                    encoding="utf-8")
    shown = "\n".join(line for _, line in check_texts(ENGLISH, [str(file)]))
    assert "'patients' is in 25 of 25 ordinary texts and in 25 of 25 medical ones" in shown
    assert "'hospital' is in 25 of 25" in shown
    assert "medical texts: 25, kept 100.0 %" in capsys.readouterr().out
    assert "100 % of the ordinary texts are kept" in "\n".join(
        line for _, line in check_texts(replace(ENGLISH, min_hits=2, min_density=0.01), [str(file)]))
    assert "only 0 % of the medical texts are kept" in "\n".join(
        line for _, line in check_texts(replace(ENGLISH, min_density=0.9), [str(file)]))


@pytest.mark.parametrize("code", ["de", "ar", "hi", "th", "ur", "xx"])
def test_a_new_file_is_a_language_that_only_wants_filling_in(code, tmp_path):
    assert command(["new", code, "--folder", str(tmp_path)]) == 0
    source = (tmp_path / f"{code}.py").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"made_{code}", tmp_path / f"{code}.py")
    spec.loader.exec_module(made := importlib.util.module_from_spec(spec))
    language = made.LANGUAGE
    assert isinstance(language, Language) and language.code == code and "TODO" in source
    assert language.right_to_left == (code in ("ar", "ur")) and language.spaced == (code != "th")
    assert {"ar": "أبجدهوزح", "hi": "कखगघङ"}.get(code, "") == language.answers.letters
    assert language.ordinary_sentence.endswith({"hi": "।", "ur": "۔", "th": "sea"}.get(code, "."))
    assert all(f"{field.name}=" in source for field in fields(AnswerWords)
               if field.name not in ("letters", "and_attached", "negation_after"))
    with pytest.raises(UserError, match="is there already"):
        command(["new", code, "--folder", str(tmp_path)])
    assert not list(tmp_path.glob("*.tmp"))


def test_a_code_that_is_none_is_refused(tmp_path):
    for code in ("German", "../de", "d", "de.py"):
        with pytest.raises(UserError, match="expected a code of ISO 639-1"):
            command(["new", code, "--folder", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_further_language_cannot_change_how_another_is_read():
    """The paper's six share their words; any other adds its own to its own items only."""
    six = patterns_of(None)
    assert all(patterns_of(code) is six for code in CODES[:6])
    for code in CODES[6:]:
        own = patterns_of(code)
        assert own is not six and [language.code for language in own.languages] == [*CODES[:6], code]


def test_importing_the_languages_is_light():
    """Only the standard library: every command's --help imports them."""
    code = ("import sys, mmed.languages as l; l.all_languages(); "
            "print([m for m in ('torch','numpy','nltk','jieba','janome') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"


def test_a_language_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        get_language("en").code = "de"
    assert mmed.languages.PAPER_ORDER == tuple(CODES[:6])
