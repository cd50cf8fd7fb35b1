"""Every language file is complete, and finding a language needs no list."""
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import mmed.languages
from data_prep.filter_medical import Matcher, dictionary_form
from mmed.errors import UserError
from mmed.languages import all_languages, get_language, split_characters, split_spaced

LANGUAGES = all_languages()
CODES = [language.code for language in LANGUAGES]
ROOT = Path(__file__).resolve().parents[1]


def test_the_papers_six_come_first_and_in_its_order():
    assert CODES[:6] == ["en", "zh", "ja", "fr", "ru", "es"]
    assert CODES[6:] == sorted(CODES[6:])


def test_a_new_file_is_all_that_a_new_language_takes(tmp_path):
    """A file in the package's folder is found by itself: by code, by name, and by the filter."""
    package = tmp_path / "mmed"
    (package / "languages").mkdir(parents=True)
    for name in ("__init__.py", "errors.py"):
        (package / name).write_bytes((ROOT / "mmed" / name).read_bytes())
    for file in (ROOT / "mmed" / "languages").glob("*.py"):
        (package / "languages" / file.name).write_bytes(file.read_bytes())
    source = (package / "languages" / "en.py").read_text(encoding="utf-8")
    (package / "languages" / "xx.py").write_text(source.replace('"en", name="English", native_name="English"', '"xx", name="Testish", native_name="Test"'),
                                                 encoding="utf-8")
    told = subprocess.run([sys.executable, "-c", "from mmed.languages import *; print(get_language('testish').code, [l.code for l in all_languages()])"],
                          cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=True).stdout
    assert told.split()[0] == "xx" and "'xx'" in told


@pytest.mark.parametrize("code", CODES)
def test_a_language_is_found_by_code_name_and_native_name(code):
    language = get_language(code)
    for name in (code, code.upper(), language.name, language.name.lower(), language.native_name, f" {language.name} "):
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
    published = {"en": (5, 0.04), "zh": (5, 0.05), "ja": (5, 0.05), "fr": (4, 0.04), "ru": (4, 0.02), "es": (4, 0.04)}
    assert code not in published or (language.official_min_hits, language.official_min_density) == published[code]


@pytest.mark.parametrize("code", CODES)
def test_the_medical_sentence_is_kept_and_the_ordinary_one_is_not(code):
    language = get_language(code)
    medical, ordinary = Matcher(language).judge([language.medical_sentence, language.ordinary_sentence])
    assert medical.medical and not ordinary.medical and ordinary.hits == 0


@pytest.mark.parametrize("code", CODES)
def test_splitting_loses_no_character_but_white_space(code):
    language = get_language(code)
    rng = random.Random(code)
    pieces = [*language.medical_words, "don't", "l'eau", "3.5", "1,000", "(a)", "…", "--", "e\u0301", "\u3000", "\n", "ＡＢ", "x-y/z", "𠀀", "。"]
    for _ in range(50):
        text = "".join(rng.choice(pieces) + rng.choice(["", " ", ", "]) for _ in range(20))
        assert "".join(language.split_words(text)) == "".join(text.split())
    assert language.split_words("") == []


def test_spaced_splitting_agrees_with_the_treebank_rules():
    treebank = pytest.importorskip("nltk.tokenize.destructive").NLTKWordTokenizer()
    for text in ("The patient's fever (39.5) didn't fall, so they've given 1,000 mg of X-12.", "It's a well-known drug: 50% of users stop!"):
        assert split_spaced(text) == treebank.tokenize(text)


def test_characters_keep_latin_and_digit_runs_whole():
    assert split_characters("SpO2は98.5％、ＨＩＶ陰性") == ["SpO2", "は", "98.5", "％", "、", "ＨＩＶ", "陰", "性"]


@pytest.mark.parametrize("code", CODES)
def test_official_words_keep_the_text_and_cut_it(code):
    language = get_language(code)
    pytest.importorskip(language.official_package)
    words = language.official_words(language.medical_sentence)
    assert "".join(words).replace(" ", "") == language.medical_sentence.replace(" ", "")
    assert len(words) > 10
    assert words == language.official_words(language.medical_sentence)


def test_importing_the_languages_is_light():
    """Only the standard library: every command's --help imports them."""
    code = "import sys, mmed.languages as l; l.all_languages(); print([m for m in ('torch','numpy','nltk','jieba','janome') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_language_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        get_language("en").code = "de"
    assert mmed.languages.PAPER_ORDER == tuple(CODES[:6])
