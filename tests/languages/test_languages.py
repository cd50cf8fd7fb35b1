"""Every language file is complete, and finding a language needs no list."""
import random
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from json_lines import read_lines, write_lines
from repository import ROOT

from data_prep.filters import language_check
from data_prep.filters.keyword_matcher import Matcher
from mmed.languages import AnswerWords, Language, all_languages, get_language, split_spaced
from mmed.languages.__main__ import main as command
from mmed.utils.errors import UserError

LANGUAGES = all_languages()
CODES = [language.code for language in LANGUAGES]
every_language = pytest.mark.parametrize("language", LANGUAGES, ids=CODES)


def test_the_papers_six_come_first_and_in_its_order():
    assert CODES[:6] == ["en", "zh", "ja", "fr", "ru", "es"]
    assert CODES[6:] == sorted(CODES[6:])


def test_a_new_file_is_all_that_a_new_language_takes(tmp_path):
    languages = tmp_path / "mmed" / "languages"
    for folder in ("languages", "utils"):
        shutil.copytree(ROOT / "mmed" / folder, tmp_path / "mmed" / folder)
    (languages / "hi.py").unlink(missing_ok=True)  # somebody may have added it
    assert command(["new", "hi", "--folder", str(languages)]) == 0
    source = (languages / "hi.py").read_text(encoding="utf-8")
    assert source.count("TODO") == 11 and all(f"{field.name}=" in source for field in fields(AnswerWords))
    with pytest.raises(UserError, match="already exists"):
        command(["new", "hi", "--folder", str(languages)])
    (languages / "hi.py").write_text(source.replace('name="TODO"', 'name="Hindi"', 1), encoding="utf-8")
    for code in ("German", "../de", "d", "de.py"):
        with pytest.raises(UserError, match="expected a code of ISO 639-1"):
            command(["new", code, "--folder", str(tmp_path)])
    code = "from mmed.languages import *; print(get_language('hindi').code)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                             env={"PYTHONPATH": str(tmp_path)}, check=True).stdout
    assert printed.split() == ["hi"]


@every_language
def test_a_language_is_found_by_code_name_and_native_name(language):
    for name in (language.code, language.code.upper(), language.name.lower(), language.native_name,
                 f" {language.name} "):
        assert get_language(name) is language


def test_an_unknown_language_names_the_known():
    with pytest.raises(UserError, match=r"'Japanes': known are en \(English\), zh .*; a new one is"):
        get_language("Japanes")


@every_language
def test_splitting_loses_no_character_but_white_space(language):
    rng = random.Random(language.code)
    pieces = [*language.medical_words, "don't", "l'eau", "3.5", "1,000", "(a)", "…", "--", "e\u0301",
              "\u3000", "\n", "ＡＢ", "x-y/z", "𠀀", "。"]
    for _ in range(50):
        text = "".join(rng.choice(pieces) + rng.choice(["", " ", ", "]) for _ in range(20))
        assert "".join(language.split_words(text)) == "".join(text.split())


def test_spaced_splitting_agrees_with_the_treebank_rules():
    treebank = pytest.importorskip("nltk.tokenize.destructive").NLTKWordTokenizer()
    for text in ("The patient's fever (39.5) didn't fall, so they've given 1,000 mg of X-12.",
                 "It's a well-known drug: 50% of users stop!"):
        assert split_spaced(text) == treebank.tokenize(text)


def checked(language: Language) -> list[tuple[str, str]]:
    return [finding for part in (language_check.check_words, language_check.check_rule,
                                 language_check.check_answers, language_check.check_rest)
            for finding in part(language)]


@every_language
def test_the_check_finds_nothing_to_fix(language):
    """200 terms, sentences, thresholds, splitters; `answers.stated` and `.denied` are read as meant."""
    assert language.answers.stated and language.answers.denied
    assert not [line for kind, line in checked(language) if kind == "fix"]


@pytest.mark.parametrize("code", CODES[6:])
def test_labelled_texts_of_a_language_are_told_apart(code):
    path = ROOT / f"tests/data/languages/{code}.jsonl"
    if not path.is_file():
        pytest.skip(f"no labelled texts in {path}")
    matcher, rows = Matcher(get_language(code)), read_lines(path)
    for wanted in (True, False):  # three paragraphs of a kind, as a page has
        texts = [row["text"] for row in rows if row["medical"] is wanted]
        pages = ["\n".join(texts[place:place + 3]) for place in range(len(texts) - 2)]
        assert {decision.medical for decision in matcher.judge(pages)} == {wanted}
    decisions = matcher.judge([row["text"] for row in rows])
    kept = [row["medical"] for row, decision in zip(rows, decisions) if decision.medical]
    assert all(kept) and len(kept) >= 0.8 * sum(row["medical"] for row in rows)


ENGLISH = get_language("en")


def answers(**change) -> dict:
    return {"answers": replace(ENGLISH.answers, **change)}


@pytest.mark.parametrize("change,said", [
    (dict(medical_words=ENGLISH.medical_words[:-1]), "199 terms"),
    (dict(medical_words=("fever|",) * 2 + ENGLISH.medical_words[:-2]), "'fever' appears"),
    (dict(medical_words=("Fever",)), "not in lower case"),
    (dict(medical_words=("flu|",)), "'flu|' is too short"),
    (dict(medical_words=("fe|v|er",)), "a bar too many"),
    (dict(min_hits=12), "medical_sentence: dropped"),
    (dict(ordinary_sentence="The train smells of insulin."), "ordinary_sentence: has medical words: insulin"),
    (answers(answer="answers?"), "answers.answer: '?' in a list of ordinary words"),
    (answers(stated=("It hurts.",)), "must have one {}"),
    (answers(stated=("Your guess: green {} house.",)), "is read as no answer, not B"),
    (answers(denied=("The answer is {}.",)), "answers.denied: 'The answer is B.' is read as B"),
    (dict(answers=AnswerWords()), "answers.answer: empty"),
    (dict(right_to_left=True), "written from the left"),
    (dict(ocr_code="german"), "'german' is not a Tesseract name"),
    (dict(code="de"), "disclaimer: in English"),
    (answers(denied=()), "at least three sentences"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_the_check_names_the_fault(change, said):
    assert any(said in line for _, line in checked(replace(ENGLISH, **change)))


@pytest.mark.parametrize(("change", "said"), [
    ({}, "'patients' is in 25 of 25 ordinary texts and in 25 of 25 medical ones"),
    ({}, "'hospital' is in 25 of 25"),
    (dict(min_hits=2, min_density=0.01), "100 % of the ordinary texts are kept"),
    (dict(min_density=0.9), "only 0 % of the medical texts are kept")])
def test_the_check_shows_everyday_words_and_wrong_thresholds(change, said, tmp_path):
    texts = {"The patient reader waits for train {} at the hospital bridge.": False,
             "Patient {} had fever, cough and dyspnea; pneumonia was treated with antibiotics.": True}
    rows = [{"text": text.format(number), "medical": medical}
            for text, medical in texts.items() for number in range(25)]
    file = write_lines(tmp_path / "texts.jsonl", *rows)
    assert said in str(list(language_check.check_texts(replace(ENGLISH, **change), [str(file)])))
