"""The medical filter: the vectorised matcher decides as the plain rule; what the rules find."""
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from corpus_files import read_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import json_line
from data_prep.filter_medical import main
from data_prep.filters.keyword_matcher import BLOCK, Matcher
from data_prep.filters.keyword_rule import judge_default, judge_official
from mmed.languages import all_languages, get_language
from mmed.utils.errors import UserError

LANGUAGES = all_languages()
PLAIN = {"official": judge_official, "default": judge_default}
JOINS = [" ", ", ", ".", "-", "\n", "\r\n", "\u3000", "\u2028", "\x1c", "_", "’", "", "  ", "\xa0",
         "\U0001f48a", "\xad", "\u200b"]
ODD = ["İstanbul", "ΟΔΟΣ", "K", "ﬁbrosis", "é", "e\u0301", "Ё", "dna", "journal", "ｱﾞ", "か\u3099",
       "\ud800", "\x00", "½", "ß", "œ", "\U00020000", "한국", "\u1112\u1161\u11ab", "أ", "नमस्ते"]


@st.composite
def texts(draw, language):
    """Medical words, changed words, ordinary words and awkward characters in any order."""
    words = [spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/")]
    parts = []
    for _ in range(draw(st.integers(0, 25))):
        word = draw(st.sampled_from(words) | st.sampled_from(ODD + language.ordinary_sentence.split()))
        change = draw(st.sampled_from(["", "", "upper", "end", "cut", "nfd", "front", "inside"]))
        place = len(word) // 2
        parts += [{"upper": word.upper(), "end": word + draw(st.sampled_from("seaы的の")), "cut": word[:-1],
                   "nfd": unicodedata.normalize("NFD", word), "front": draw(st.sampled_from("xжé一")) + word,
                   "inside": word[:place] + draw(st.sampled_from("\xad\u200b\u0301 "))
                   + word[place:]}.get(change, word),
                  draw(st.sampled_from(JOINS))]
    return "".join(parts)


@pytest.mark.parametrize("mode", PLAIN)
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_matcher_decides_as_the_plain_rule(language, mode):
    matcher = Matcher(language, mode)

    @settings(max_examples=15)
    @given(st.lists(texts(language), min_size=1, max_size=12))
    def check(made):
        assert matcher.judge(made) == [PLAIN[mode](text, language) for text in made]

    check()
    words = language.medical_words[0].replace("|", "").split("/")
    edge = ["", " ", "\n", "x", words[0], words[0] * 3, words[0] + words[0][1:], "\ufffe\uffff" + words[0]]
    assert matcher.judge(edge) == [PLAIN[mode](text, language) for text in edge]


HEART, GAS = ("heart", "heart failure", "failure"), ("dna", "インスリン", "ガス壊疽")


@pytest.mark.parametrize(("code", "mode", "words", "text", "found"), [
    ("en", "default", (), 'The "cancer", (pneumonia) and asthma.',
     {"cancer": 1, "pneumonia": 1, "asthma": 1}),
    ("en", "official", (), 'The "cancer", (pneumonia) and asthma.', {}),  # punctuation hides them
    ("ru", "default", (), "У ПАЦИЕНТОВ с опухолями печени", {"пациент": 1, "опухоль": 1, "печень": 1}),
    ("es", "default", (), "las infecciones bacterianas", {"infección": 1, "bacteria": 1}),
    ("en", "default", HEART, "heart failure and heart-failure, heart", {"heart failure": 2, "heart": 1}),
    ("en", "default", HEART, "heart  failure, heart \n   failure; heart\n\nfailure",
     {"heart failure": 2, "heart": 1, "failure": 1}),
    ("ja", "default", GAS, "ＤＮＡとｲﾝｽﾘﾝとｶﾞｽ壊疽", {"dna": 1, "インスリン": 1, "ガス壊疽": 1}),
    ("ja", "default", GAS, "ＤＮＡＳ", {}),  # Latin words stand alone
    ("de", "default", ("|gefäß|",), "BLUTGEFÄSSE, Gefäße, Gefässe", {"gefäß": 3}),
    ("ar", "default", ("علاج",), "ﻋﻼﺝ العِـــلاج", {"علاج": 2})])  # in forms that PDF files have
def test_words_that_the_rules_find(code, mode, words, text, found):
    language = get_language(code)
    language = replace(language, medical_words=words or language.medical_words)
    assert Matcher(language, mode).explain(text)[1] == found


def test_a_word_within_another_is_covered_once():
    assert judge_default("heart failure", replace(get_language("en"), medical_words=HEART)) == (False, 1, 1.0)


@pytest.mark.parametrize("code", ["fr", "es", "ja", "ru"])
def test_accents_in_any_form_and_invisible_characters_change_nothing(code):
    language = get_language(code)
    text = " ".join(spelling.replace("|", "") for term in language.medical_words
                    for spelling in term.split("/"))
    same = [text, unicodedata.normalize("NFD", text), unicodedata.normalize("NFKD", text),
            "\u200b".join(text)]
    assert len(set(Matcher(language).judge(same))) == 1


@pytest.mark.parametrize("mode", PLAIN)
def test_borders_of_texts_and_blocks_neither_make_nor_hide_words(mode):
    matcher = Matcher(replace(get_language("en"), medical_words=("heart failure", "insulin")), mode)
    assert [decision.hits for decision in matcher.judge(["heart", "failure", "insu", "lin"])] == [0] * 4
    for offset in range(-12, 4):
        assert matcher.judge([" " * (BLOCK + offset) + "insulin" + " " * 5000])[0].hits == 1


def write_corpus(folder: Path, count: int = 60) -> Path:
    english = get_language("en")
    lines = [{"text": english.medical_sentence if number % 3 else english.ordinary_sentence,
              "id": str(number)}
             for number in range(count)]
    lines.append({"text": english.medical_sentence + " of this and that" * 1000, "id": "thin"})
    bad = b'{"text": "truncated\n' + json_line({"text": "自由", "language": "zh", "id": "z"})
    (folder / "pages.jsonl").write_bytes(b"".join(map(json_line, lines)) + bad)
    return folder / "pages.jsonl"


def test_command_keeps_drops_and_counts(tmp_path):
    path, out = write_corpus(tmp_path), tmp_path / "out"
    arguments = [str(path), "--out", str(out), "--language", "English", "--source", "web"]
    assert main(arguments) == 0
    kept, dropped = read_folder(out / "kept"), read_folder(out / "dropped")
    assert len(kept) == 40 and len(dropped) == 22 and kept[0]["meta"]["medical"]["hits"] >= 5
    assert kept[0]["source"] == "web" and kept[0]["language"] == "en"
    assert {row["reason"] for row in dropped} == {"too few different medical words", "medical words too thin",
                                                  "language is not en"}
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["documents"] == {"in": 63, "out": 40}
    assert funnel["dropped"]["not JSON"]["examples"] == [f"{path}:62"]


def test_explain_prints_words_and_numbers_and_wrong_use_is_one_line(tmp_path, capsys):
    command = [str(write_corpus(tmp_path, 3)), "--language", "en"]
    assert main([*command, "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "kept  MKC" in printed and "dropped  MKC" in printed and "pneumonia 1" in printed
    (tmp_path / "body.jsonl").write_bytes(json_line({"body": get_language("en").medical_sentence}))
    assert main([str(tmp_path / "body.jsonl"), *command[1:], "--explain", "--text_field", "body"]) == 0
    assert "body:1: kept" in capsys.readouterr().out
    with pytest.raises(UserError, match="--out FOLDER is needed"):
        main(command)
    with pytest.raises(UserError, match="unknown language"):
        main([*command, "--language", "tlh", "--out", str(tmp_path / "x")])
