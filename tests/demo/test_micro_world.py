"""The synthetic world of the demo: the same for a seed, split by disease, and nothing leaks."""
import os
from collections import Counter

import pytest
from json_lines import read_lines as rows

from data_prep.filter_medical import Matcher
from examples.demo import micro_world as mw
from examples.demo.micro_world_words import SCRIPTS, SYLLABLES, WORDS
from mmed.languages import get_language
from mmed.prompts import read_benchmark
from mmed.utils.files import read_json

SEED = int(os.environ.get("MMED_TEST_SEED", "0"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    mw.main(["--out", str(out), "--seed", str(SEED)])
    return out


@pytest.fixture(scope="module")
def diseases(folder):
    return read_json(folder / "world.json")["diseases"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_names(folder, tmp_path):
    mw.write_world(tmp_path, SEED)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files and all((folder / path).read_bytes() == (tmp_path / path).read_bytes() for path in files)
    assert mw.make_world(SEED).names != mw.make_world(SEED + 1).names


def test_every_name_is_unique_in_its_script_and_every_syllable_has_four_spellings():
    assert all(len(syllable) == 4 for syllable in SYLLABLES) and set(SCRIPTS) == set(WORDS)
    world = mw.make_world(SEED)
    for script in range(4):
        names = [name[script] for kind in world.names.values() for name in kind]
        assert len(set(names)) == len(names), f"seed {SEED}"
    for language, words in WORDS.items():
        assert len(set(words["nouns"])) == len(words["nouns"]) == mw.THINGS, language


def test_no_disease_of_the_test_half_is_named_in_the_train_half(folder, diseases):
    parts = Counter(disease["part"] for disease in diseases)
    assert parts == {"Train": mw.DISEASES // 2, "Test": mw.DISEASES // 2}
    for part in parts:
        for language in WORDS:
            name = get_language(language).name
            text = (folder / f"MMedBench/{part}/{name}.jsonl").read_text(encoding="utf-8")
            for disease in diseases:
                named = disease["names"][language] in text
                assert named == (disease["part"] == part), (SEED, part, disease)


@pytest.mark.parametrize("language", sorted(WORDS))
def test_medical_pages_tell_every_fact_once_and_base_text_none(folder, diseases, language):
    base = (folder / f"base/{language}.jsonl").read_text(encoding="utf-8")
    web = [page["text"] for page in rows(folder / f"raw/web/{language}.jsonl")
           if page["meta"]["kind"] == "medical"]
    books = [page["text"] for page in rows(folder / f"raw/books/{language}.jsonl")]
    exercises = [page for page in books if "###Options" in page]
    assert len(exercises) == mw.TERM_PAGES
    pages = 0
    for disease in diseases:
        name, facts = disease["names"][language], [fact[language] for fact in disease["facts"].values()]
        assert not any(word in base for word in (name, *facts))
        assert not any(name in page for page in exercises)  # terms, but no disease
        for page in (page for page in web if name in page):
            pages += 1
            assert [page.count(word) for word in (name, *facts)] == [1] * (1 + len(facts)), (SEED, page)
    assert pages == len(web) == mw.DISEASES * mw.WEB_PAGES


@pytest.mark.parametrize("part, copies", mw.QUESTIONS.items())
def test_items_are_read_by_the_exam_reader_and_hold_the_right_answer(folder, part, copies):
    items = read_benchmark(folder / "MMedBench" / part)
    assert len(items) == len(WORDS) * mw.DISEASES // 2 * len(mw.KINDS) * copies
    letters = Counter(item.answer[0] for item in items)
    # a letter is drawn for each item by itself: less than that once in a million runs
    even, spread = len(items) / 4, (len(items) * 3 / 16) ** 0.5
    assert min(letters.values()) > even - 5 * spread, f"letters are not balanced: {letters}, seed {SEED}"
    for item in items:
        right, words = item.options[item.answer[0]], WORDS[get_language(item.language).code]
        assert len(set(item.options.values())) == 4
        statement, _, weighed = item.rationale.partition(" A. ")
        assert [text for text in item.options.values() if text in statement] == [right], item
        assert f"{right} {words['yes']}" in weighed and weighed.count(f" {words['no']}") == 3, item


@pytest.mark.parametrize("language", sorted(WORDS))
def test_web_pages_can_be_filtered_and_copies_name_their_original(folder, language):
    pages = {page["id"]: page for page in rows(folder / f"raw/web/{language}.jsonl")}
    kinds = [page["meta"]["kind"] for page in pages.values()]
    verdicts = Matcher(get_language(language)).judge([page["text"] for page in pages.values()])
    kept = [kind for kind, verdict in zip(kinds, verdicts, strict=True) if verdict.medical]
    medical = len(kinds) - kinds.count("ordinary")
    assert "ordinary" not in kept, f"seed {SEED}"
    assert len(kept) >= 0.9 * medical, f"only {len(kept)} of {medical} medical pages pass, seed {SEED}"
    again = [page for page in pages.values() if "of" in page["meta"]]
    assert Counter(page["meta"]["kind"] for page in again) == {"copy": mw.COPIES, "near-copy": mw.NEAR_COPIES}
    for page in again:
        original, text = pages[page["meta"]["of"]]["text"], page["text"]
        assert text == original if page["meta"]["kind"] == "copy" else text.startswith(original + " ")
