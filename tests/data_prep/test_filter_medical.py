"""The medical filter: decisions equal to a plain reading of both rules, on made and on real texts."""
import functools
import gzip
import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from growth import grows_at_most

from data_prep import documents, filter_medical
from data_prep.documents import json_line
from data_prep.filter_medical import (
    BLOCK,
    Decision,
    Matcher,
    default_patterns,
    fold_character,
    is_word_character,
    main,
    official_words,
    unfold_rare,
)
from mmed.languages import Language, all_languages, get_language
from mmed.utils.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
LANGUAGES = all_languages()


def official_by_the_book(text: str, language: Language) -> Decision:
    """The published rule, word by word (METHOD: filtering), with Chinese and Japanese as was meant."""
    words = official_words(language)
    text = text.lower()
    counts = {}
    if language.spaced:
        long = [word for word in words if len(word) > 10 or (len(word) > 5 and " " in word)]
        for word in long:
            counts[word] = text.count(word)
        tokens = text.split()
        for word in set(words) - set(long):
            counts[word] = tokens.count(word)
    else:
        for word in words:
            counts[word] = text.count(word)
    mkc = sum(count > 0 for count in counts.values())
    covered = sum(count * len(word) for word, count in counts.items())
    density = covered / len(text) if text else 0.0
    return Decision(mkc >= language.official_min_hits and density >= language.official_min_density, mkc, density)


@functools.cache
def spellings(code: str) -> dict:
    """letters -> the patterns that are written so."""
    spelt: dict = {}
    for pattern in default_patterns(get_language(code)):
        spelt.setdefault(re.sub(r"[^\w]", " ", pattern.letters), []).append(pattern)
    return spelt


def default_by_the_book(text: str, language: Language) -> Decision:
    """The mended rule one character at a time: at each place the longest term, then on behind it."""
    text = unfold_rare(text) if any(unfold_rare(character) != character for character in text) or re.search(
        "[\u1100-\u11ff\u3099\u309a\uff9e\uff9f]", text) else text
    folded = [fold_character(character) if character <= "\uffff" else " " for character in text]
    text = "".join(letter if is_word_character(letter) else " " for letter in folded)
    latin = set("abcdefghijklmnopqrstuvwxyz0123456789")
    spelt = spellings(language.code)
    sizes = sorted({len(letters) for letters in spelt})
    found, covered, place = set(), 0, 0
    padded = text + " "
    while place < len(text):
        best = None
        at_word_start = text[place] != " " and (place == 0 or text[place - 1] == " ")
        for letters, pattern in ((text[place:place + size], pattern) for size in sizes for pattern in spelt.get(text[place:place + size], ())):
            after, before = padded[place + len(letters)], text[place - 1] if place else " "
            if language.spaced:
                good = pattern.anywhere or (at_word_start and (pattern.stem or after == " "))
            else:
                good = not (letters[0] in latin and before in latin) and not (letters[-1] in latin and after in latin)
            if good and (best is None or len(letters) > len(best[0])):
                best = (letters, pattern)
        if best:
            found.add(best[1].word)
            covered += len(best[0].replace(" ", ""))
            place += len(best[0])
        else:
            place += 1
    length = sum(character != " " for character in text)
    density = covered / length if length else 0.0
    return Decision(len(found) >= language.min_hits and density >= language.min_density, len(found), density)


def made_texts(language: Language, seed: int, count: int) -> list[str]:
    """Medical words, near misses, ordinary words and awkward characters in random order."""
    rng = random.Random(seed)
    words = [spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/")]
    joins = [" ", " ", " ", ", ", ".", "-", "\n", "\r\n", "\u3000", "\u2028", "\x1c", "_", "’", "", "  ", "\xa0", "“", "\U0001f48a", "\xad", "\u200b", "\t"]
    odd = ["İstanbul", "ΟΔΟΣ", "K", "ﬁbrosis", "ﬂu", "é", "e\u0301", "Ё", "dna", "journal", "ｱﾞ", "ﾊﾞ", "が", "か\u3099", "\ud800", "\x00", "123", "½", "ß", "œ",
           "\U00020000", "한국", "\u1112\u1161\u11ab", "أ", "नमस्ते"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 40)):
            word = rng.choice(words) if rng.random() < 0.5 else rng.choice(odd + language.ordinary_sentence.split())
            change = rng.random()
            if change < 0.15:
                word = word.upper()
            elif change < 0.25:
                word += rng.choice("seaыи的の")
            elif change < 0.35:
                word = word[:-1]
            elif change < 0.4:
                word = unicodedata.normalize("NFD", word)
            elif change < 0.43:
                word = rng.choice("xжé一") + word
            elif change < 0.46 and word:
                cut = rng.randrange(len(word))
                word = word[:cut] + rng.choice(["\xad", "\u200b", "\u0301", " "]) + word[cut:]
            parts += [word, rng.choice(joins)]
        texts.append("".join(parts))
    return texts + ["", " ", "\n", "x", words[0], words[0] * 3, words[0] + words[0][1:]]


@pytest.mark.parametrize("code", [language.code for language in LANGUAGES])
@pytest.mark.parametrize("mode", ["official", "default"])
def test_decisions_equal_the_plain_rule_on_made_texts(code, mode):
    language = get_language(code)
    seed = random.randrange(10**9)
    texts = made_texts(language, seed, 400)
    plain = official_by_the_book if mode == "official" else default_by_the_book
    for text, decision in zip(texts, Matcher(language, mode).judge(texts), strict=True):
        assert decision == plain(text, language), f"seed {seed}: {text!r}"


def real_texts(code: str) -> list[str]:
    if not (REAL / code).is_dir():
        pytest.skip(f"no texts under {REAL}")
    texts = []
    for kind in ("medical", "nonmedical"):
        with gzip.open(REAL / code / f"{kind}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for _, line in zip(range(60), file)]
    return texts


@pytest.mark.parametrize("code", [language.code for language in LANGUAGES])
def test_decisions_equal_the_plain_rule_on_real_texts(code):
    language, texts = get_language(code), real_texts(code)
    assert Matcher(language, "official").judge(texts) == [official_by_the_book(text, language) for text in texts]
    shorter = [text[:4000] for text in texts]
    assert Matcher(language).judge(shorter) == [default_by_the_book(text, language) for text in shorter]


# ---- what the default mode mends, by name -----------------------------------------------------------------------------


def hits(code: str, text: str, mode: str = "default") -> dict[str, int]:
    return dict(Matcher(get_language(code), mode).explain(text)[1])


def test_punctuation_at_a_words_edge_hides_nothing():
    assert hits("en", 'The "cancer", (pneumonia) and asthma.') == {"cancer": 1, "pneumonia": 1, "asthma": 1}
    assert hits("en", 'The "cancer", (pneumonia) and asthma.', "official") == {}  # the published rule sees none of them


def test_inflected_forms_count_as_their_word():
    assert hits("ru", "у пациентов с опухолями печени")["пациент"] == 1
    assert {"пациент", "опухоль", "печень"} <= set(hits("ru", "У ПАЦИЕНТОВ с опухолями печени"))
    assert hits("es", "las infecciones bacterianas") == {"infección": 1, "bacteria": 1}


def test_nested_words_count_once():
    english = replace(get_language("en"), medical_words=("heart", "heart failure", "failure"))
    assert dict(Matcher(english).explain("heart failure and heart-failure, heart")[1]) == {"heart failure": 2, "heart": 1}
    assert Matcher(english).judge(["heart failure"])[0].density == 1.0


def test_composed_and_decomposed_accents_and_invisible_characters_give_equal_hits():
    for code in ("fr", "es", "ja", "ru"):
        language = get_language(code)
        text = " ".join(spelling.replace("|", "") for term in language.medical_words for spelling in term.split("/"))
        plain = Matcher(language).judge([text])[0]
        for form in ("NFD", "NFKD", "NFC"):
            assert Matcher(language).judge([unicodedata.normalize(form, text)])[0] == plain, (code, form)
        assert Matcher(language).judge(["\u200b".join(text)])[0] == plain


def test_full_width_and_half_width_forms_are_folded_in_japanese():
    japanese = replace(get_language("ja"), medical_words=("dna", "インスリン", "ガス壊疽"))
    assert Matcher(japanese).judge(["ＤＮＡとｲﾝｽﾘﾝとｶﾞｽ壊疽"])[0].hits == 3
    assert Matcher(japanese).judge(["ＤＮＡＳ"])[0].hits == 0  # a Latin term stands alone


def test_documents_do_not_touch_each_other():
    """A phrase, or a word, cut between two documents of one block is found in neither."""
    english = replace(get_language("en"), medical_words=("heart failure", "insulin"))
    for mode in ("default", "official"):
        assert [decision.hits for decision in Matcher(english, mode).judge(["heart", "failure", "insu", "lin"])] == [0, 0, 0, 0]


def test_decisions_do_not_depend_on_how_documents_are_grouped():
    language = get_language("fr")
    texts = made_texts(language, 5, 200) * 5
    matcher = Matcher(language)
    assert matcher.judge(texts) == [matcher.judge([text])[0] for text in texts[:207]] * 5


def test_a_text_longer_than_a_block_is_judged_as_a_whole():
    """Words at every offset around the border of a block are found, in both modes."""
    for code, word in (("en", "insulin"), ("ja", "インスリン"), ("ru", "инсулин")):
        language = replace(get_language(code), medical_words=(word, "x" * 12 if code != "ja" else "症状"))
        filler = " " if language.spaced else "の"
        for mode in ("official", "default"):
            matcher = Matcher(language, mode)
            for offset in range(-60, 3):  # before the text lies room for the longest word, so the border is somewhere here
                found = matcher.judge([filler * (BLOCK + offset) + word + filler * 5000])[0]
                assert found.hits == 1 and (mode == "default" or round(found.density * (BLOCK + offset + len(word) + 5000)) == len(word))


@pytest.mark.parametrize("mode", ["official", "default"])
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_a_text_judged_in_pieces_gives_what_it_gives_in_one(language, mode, monkeypatch):
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    matcher = Matcher(language, mode)
    for round_ in range(10):
        text = "".join(rng.sample(made_texts(language, seed + round_, 8), 8))
        pieces = rng.choice([3, 7, 20, 60, 500])
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", pieces)
        monkeypatch.setattr(filter_medical, "PIECE_CHARACTERS", pieces)
        decision, _ = matcher._judge_long(text)
        assert decision == matcher._judge_block([text])[0], (seed, round_, pieces)
        if len(text) > pieces:
            assert matcher.judge(["", text, "x"])[1] == decision


def test_memory_for_a_huge_document_is_a_few_times_its_size(tmp_path):
    """One document of 20 MB in ASCII: the line, the text, and what a piece takes (FAULTS D7: 200 MB within 2 GB)."""
    code = ("import sys\nfrom data_prep.filter_medical import main\n"
            "main([sys.argv[1], '--out', sys.argv[2], '--language', 'en'])\nprint(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))")
    peaks = []
    for size in (1, 20):
        path = tmp_path / f"{size}.jsonl"
        path.write_bytes(json_line({"text": "The patient had a fever and a cough, insulin lowers glucose. " * (size * 1_000_000 // 61), "id": "1"}))
        told = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / f"out{size}")], cwd=Path(__file__).parents[2],
                              capture_output=True, text=True, check=True)
        peaks.append(int(told.stdout.split()[-1]) / 1024)
        kept = gzip.decompress((tmp_path / f"out{size}" / "kept" / f"{size}.jsonl.gz").read_bytes())
        assert json.loads(kept)["text"] == json.loads(path.read_bytes())["text"]
    assert peaks[1] - peaks[0] <= 5 * 20, peaks


def test_a_huge_document_takes_time_in_proportion():
    """A text twice as long takes at most 2.5 times as long: spaces, one endless word, one repeated medical word."""
    matcher = Matcher(get_language("en"))
    matcher.judge(["warm up"])
    for text in ("a" * 4_000_000, "insulin " * 500_000, "." * 4_000_000):
        def seconds(times: int, text=text) -> float:
            piece = text * times
            start = time.process_time()
            matcher.judge([piece])
            return time.process_time() - start

        assert grows_at_most(seconds, 1, 2, 2.5, slack=0.02), text[:10]


def test_a_term_too_short_to_be_safe_is_refused():
    with pytest.raises(UserError, match="too short"):
        Matcher(replace(get_language("en"), medical_words=("flu|", "ct")))


# ---- the command ------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, count: int = 60) -> Path:
    english = get_language("en")
    path = folder / "pages.jsonl"
    lines = [{"text": english.medical_sentence if number % 3 else english.ordinary_sentence, "id": str(number)} for number in range(count)]
    path.write_bytes(b"".join(map(json_line, lines)) + b'{"text": "cut off\n' + json_line({"text": "自由", "language": "zh", "id": "z"}))
    return path


def test_the_command_keeps_drops_and_counts(tmp_path, capsys):
    path = write_corpus(tmp_path)
    out = tmp_path / "out"
    assert main([str(path), "--out", str(out), "--language", "English", "--source", "web"]) == 0
    kept = [json.loads(line) for line in gzip.open(out / "kept" / "pages.jsonl.gz", "rt", encoding="utf-8")]
    dropped = [json.loads(line) for line in gzip.open(out / "dropped" / "pages.jsonl.gz", "rt", encoding="utf-8")]
    assert len(kept) == 40 and len(dropped) == 21
    assert kept[0]["meta"]["medical"]["hits"] >= 5 and kept[0]["source"] == "web"
    assert {row["reason"] for row in dropped} == {"too few different medical words", "language is not en"}
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["documents"] == {"in": 62, "out": 40}
    assert funnel["dropped"]["not JSON"]["examples"] == [f"{path}:61"]
    assert "62 documents in, 40 kept" in capsys.readouterr().out


def test_other_thresholds_redo_the_shards_and_the_same_ones_do_not(tmp_path):
    path, out = write_corpus(tmp_path), tmp_path / "out"
    arguments = [str(path), "--out", str(out), "--language", "en"]
    main(arguments)
    before = (out / "kept" / "pages.jsonl.gz").stat().st_ino
    main(arguments)
    assert (out / "kept" / "pages.jsonl.gz").stat().st_ino == before
    main([*arguments, "--min-hits", "100"])
    assert json.loads((out / "funnel.json").read_text())["documents"]["out"] == 0


def test_explain_prints_the_words_and_both_numbers(tmp_path, capsys):
    page = tmp_path / "page.txt"
    page.write_text("Insulin lowers glucose; insulin is a hormone.", encoding="utf-8")
    assert main([str(page), "--language", "en", "--explain"]) == 0
    told = capsys.readouterr().out
    assert "MKC 3 (needs 3)" in told and "DENS 0.7297" in told and "insulin 2, glucose 1, hormone 1" in told
