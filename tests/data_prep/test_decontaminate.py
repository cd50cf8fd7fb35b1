"""Decontamination: planted questions are found in any case, spacing and width; ordinary text and common
phrases stay."""
import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

from data_prep.decontaminate import benchmark_ngrams, main, question_ngrams
from data_prep.filters import minhash
from mmed.utils.errors import UserError

SEED = 0


def words(rng: random.Random, language: str, count: int) -> str:
    if language == "zh":
        return "".join(chr(rng.randrange(0x4E00, 0x5800)) for _ in range(count))
    letters = {"en": "abcdefghijklm", "ru": "абвгдежзиклмн"}[language]
    return " ".join("".join(rng.choice(letters) for _ in range(rng.randint(3, 9))) for _ in range(count))


def read_folder(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.gz"))
            for line in gzip.open(path, "rt", encoding="utf-8")]


def write(path: Path, *records: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def dropped_ids(tmp_path: Path, questions: list[str], texts: dict[str, str]) -> dict[str, list[str]]:
    """The documents that the command drops, and the questions it names."""
    write(tmp_path / "items.jsonl", *[{"question": question} for question in questions])
    write(tmp_path / "a.jsonl", *[{"id": name, "text": text} for name, text in texts.items()])
    main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out",
          str(tmp_path / "out")])
    return {record["id"]: record["items"] for record in read_folder(tmp_path / "out" / "dropped")}


def test_every_planted_question_is_found_and_clean_documents_stay(tmp_path):
    rng = random.Random(SEED)
    records = []
    for name, language in (("English", "en"), ("Russian", "ru"), ("Chinese", "zh")):
        sizes = [rng.choice([24, 60, 150] if language == "zh" else [14, 30, 80])
                 for _ in range(30)] + [10] * 5
        texts = [words(rng, language, size) + "?" for size in sizes]
        write(tmp_path / "test" / f"{name}.jsonl", *[{"question": text} for text in texts])
        space = "" if language == "zh" else " "
        for number, text in enumerate(texts, 1):
            copy = [text, text.upper(), text.replace(" ", "\u00a0\n "),
                    unicodedata.normalize("NFD", text)][number % 4]
            records.append({"id": f"{name}.jsonl:{number}", "text": space.join(
                [words(rng, language, 200) + ".", copy, words(rng, language, 100)])})
            records.append({"id": "clean", "text": words(rng, language, 200) + text[:8]
                            + words(rng, language, 30)})
    write(tmp_path / "a.jsonl", *records)
    command = [str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "test"), "--out",
               str(tmp_path / "out")]
    assert main(command) == 0
    dropped = read_folder(tmp_path / "out" / "dropped")
    assert all(record["items"] == [record["id"]] and record["reason"] == "benchmark question"
               for record in dropped)
    assert len(dropped) == 105 and {record["id"]
                                    for record in read_folder(tmp_path / "out" / "kept")} == {"clean"}


def test_part_of_a_long_question_is_found_and_a_shorter_part_is_not(tmp_path):
    rng = random.Random(SEED)
    question = words(rng, "en", 60).split()
    texts = {size: f"{words(rng, 'en', 40)} {' '.join(question[20:20 + int(size)])} {words(rng, 'en', 40)}"
             for size in ("13", "12")}
    assert list(dropped_ids(tmp_path, [" ".join(question)], texts)) == ["13"]


def test_a_phrase_of_many_questions_drops_no_document():
    rng = random.Random(SEED)
    phrase = words(rng, "en", 13)
    wanted, short = benchmark_ngrams([(str(i), f"{words(rng, 'en', 20)} {phrase}") for i in range(10)])
    (size, common), = question_ngrams(phrase)
    assert common not in wanted[size] and not short
    assert {name for names in wanted[size].values() for name in names} == {str(i) for i in range(10)}


def test_a_question_in_a_very_long_document_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(minhash, "PIECE_CHARACTERS", 5000)
    rng = random.Random(SEED)
    question = words(rng, "en", 30)
    text = f"{words(rng, 'en', 3000)} {question} {words(rng, 'en', 3000)}"
    assert dropped_ids(tmp_path, [question],
                       {"long": text, "other": text.replace(question, "")}) == {"long": ["items.jsonl:1"]}


def test_another_benchmark_redoes_the_shards(tmp_path):
    rng = random.Random(SEED)
    one, two = words(rng, "en", 20), words(rng, "en", 20)
    assert list(dropped_ids(tmp_path, [one], {"1": one, "2": two})) == ["1"]
    assert list(dropped_ids(tmp_path, [two], {"1": one, "2": two})) == ["2"]


@pytest.mark.parametrize(("content", "message"), [
    ("", "no exam items"), ('{"answer": 1}\n', ":1: expected an exam item"),
    ('{"question": "Why?"}\n', "too short")])
def test_a_bad_benchmark_is_one_line(tmp_path, content, message):
    write(tmp_path / "a.jsonl", {"text": "some text"})
    (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out",
              str(tmp_path / "out")])
