"""Decontamination: planted questions are found in any case, spacing and width; ordinary text and common
phrases stay."""
import gzip
import random
import unicodedata
from pathlib import Path

import pytest
from corpus_files import join, make_words, read_folder, write

from data_prep.decontaminate import benchmark_ngrams, main, question_ngrams, read_items
from data_prep.filters import minhash
from mmed.utils.errors import UserError


def words(rng: random.Random, language: str, count: int) -> str:
    return join(make_words(rng, language, count), language)


def dropped_ids(tmp_path: Path, questions: list[str], texts: dict[str, str]) -> dict[str, list[str]]:
    """The documents that the command drops, and the questions it names."""
    write(tmp_path / "items.jsonl", *[{"question": question} for question in questions])
    write(tmp_path / "a.jsonl", *[{"id": name, "text": text} for name, text in texts.items()])
    main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out",
          str(tmp_path / "out")])
    return {record["id"]: record["items"] for record in read_folder(tmp_path / "out" / "dropped")}


def test_every_planted_question_is_found_and_clean_documents_stay(tmp_path):
    rng = random.Random(0)
    records = []
    for name, language, sizes in (("English", "en", [14, 30, 80]), ("Russian", "ru", [14, 30, 80]),
                                  ("Chinese", "zh", [24, 60, 150])):
        texts = [words(rng, language, size) + "?" for size in rng.choices(sizes, k=30) + [10] * 5]
        write(tmp_path / "test" / f"{name}.jsonl", *[{"question": text} for text in texts])
        for number, text in enumerate(texts, 1):
            copy = [text, text.upper(), text.replace(" ", "\u00a0\n "),
                    unicodedata.normalize("NFD", text)][number % 4]
            around = [words(rng, language, 200) + ".", words(rng, language, 100)]
            records.append({"id": f"{name}.jsonl:{number}",
                            "text": join([around[0], copy, around[1]], language)})
            records.append({"id": "clean", "text": around[0] + text[:8] + around[1]})
    write(tmp_path / "a.jsonl", *records)
    assert main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "test"), "--out",
                 str(tmp_path / "out")]) == 0
    dropped = read_folder(tmp_path / "out" / "dropped")
    assert len(dropped) == 105 and all(record["items"] == [record["id"]] for record in dropped)
    assert {record["id"] for record in read_folder(tmp_path / "out" / "kept")} == {"clean"}


def test_part_of_a_long_question_is_found_also_in_a_very_long_document(tmp_path):
    rng = random.Random(0)
    question = make_words(rng, "en", 60)
    before, after = (words(rng, "en", 2 * minhash.PIECE_CHARACTERS // 5) for _ in range(2))
    texts = {size: f"{before} {' '.join(question[20:20 + int(size)])} {after}" for size in ("13", "12")}
    assert dropped_ids(tmp_path, [" ".join(question)], texts) == {"13": ["items.jsonl:1"]}


def test_a_phrase_of_many_questions_drops_no_document():
    rng = random.Random(0)
    phrase = words(rng, "en", 13)
    wanted, short = benchmark_ngrams([(str(i), f"{words(rng, 'en', 20)} {phrase}") for i in range(10)])
    (size, common), = question_ngrams(phrase)
    assert common not in wanted[size] and not short
    assert {name for names in wanted[size].values() for name in names} == {str(i) for i in range(10)}


def test_items_are_read_from_packed_files(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Why?"}'))
    assert read_items(tmp_path) == [("b.jsonl.gz:1", "Why?")]


def test_another_benchmark_redoes_the_shards(tmp_path):
    rng = random.Random(0)
    one, two = words(rng, "en", 20), words(rng, "en", 20)
    assert list(dropped_ids(tmp_path, [one], {"1": one, "2": two})) == ["1"]
    assert list(dropped_ids(tmp_path, [two], {"1": one, "2": two})) == ["2"]


@pytest.mark.parametrize(("content", "message"), [
    ("no json", ":1: not valid JSON"),
    ("", "of 0 questions .* none is long enough"), ('{"answer": 1}\n', ":1: expected an exam item"),
    ('{"question": " "}\n', ":1: expected an exam item"),
    ('{"question": "Why?"}\n', "of 1 questions .* none is long enough")])
def test_a_bad_benchmark_is_one_line(tmp_path, content, message):
    write(tmp_path / "a.jsonl", {"text": "some text"})
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out",
              str(tmp_path / "out")])
