"""Decontamination: planted questions are found in any case, spacing and width; ordinary text and common phrases stay."""
import gzip
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_prep import decontaminate
from data_prep.decontaminate import Runs, benchmark_runs, held_items, main, question_runs
from data_prep.filters import minhash
from data_prep.pipeline.shards import one_run
from mmed.utils.errors import UserError

SEED = random.SystemRandom().randrange(1 << 32)
print(f"seed {SEED}")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def words(rng: random.Random, language: str, count: int) -> str:
    if language in ("zh", "ja"):
        return "".join(chr(rng.randrange(0x4E00, 0x5800)) for _ in range(count))
    letters = {"en": "abcdefghijklm", "ru": "абвгдежзиклмн"}[language]
    return " ".join("".join(rng.choice(letters) for _ in range(rng.randint(3, 9))) for _ in range(count))


def read_folder(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("*.gz")) for line in gzip.open(path, "rt", encoding="utf-8")]


@pytest.fixture
def planted(tmp_path):
    """Ids of documents with a question planted and of clean ones; the benchmark and the corpus written to files."""
    rng = random.Random(SEED)
    dirty, clean = [], []
    (tmp_path / "test").mkdir()
    for name, language in (("English", "en"), ("Russian", "ru"), ("Chinese", "zh")):
        texts = [words(rng, language, rng.choice([14, 30, 80] if language != "zh" else [24, 60, 150])) + "?" for _ in range(60)]
        texts += [words(rng, language, 10) + "?" for _ in range(10)]  # shorter than a run, long enough to look for
        (tmp_path / "test" / f"{name}.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
        for number, text in enumerate(texts, 1):
            key = f"{name}.jsonl:{number}"
            copy = [text, text.upper(), text.replace(" ", "\u00a0\n "), unicodedata.normalize("NFD", text)][number % 4]
            space = "" if language == "zh" else " "
            dirty.append({"id": key, "text": words(rng, language, 200) + "." + space + copy + space + words(rng, language, 100)})
            clean.append({"id": f"clean {key}", "text": words(rng, language, 200) + text[:8] + words(rng, language, 30)})
    both = dirty + clean
    rng.shuffle(both)
    for shard in range(2):
        (tmp_path / f"part{shard}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in both[shard::2]))
    return {record["id"] for record in dirty}, {record["id"] for record in clean}


def test_every_planted_question_is_found_and_listed_and_clean_documents_stay(planted, tmp_path):
    dirty, clean = planted
    command = [str(tmp_path / "part0.jsonl"), str(tmp_path / "part1.jsonl"), "--benchmark", str(tmp_path / "test")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    dropped = read_folder(tmp_path / "out" / "dropped")
    assert {record["id"] for record in dropped} == dirty
    assert {record["id"] for record in read_folder(tmp_path / "out" / "kept")} == clean
    assert all(record["items"] == [record["id"]] and record["reason"] == "benchmark question" for record in dropped)
    assert main([*command, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    for path in (tmp_path / "out" / "kept").glob("*"):
        assert path.read_bytes() == (tmp_path / "two" / "kept" / path.name).read_bytes()


def test_a_part_of_a_long_question_is_found_and_a_shorter_part_is_not(tmp_path):
    rng = random.Random(SEED)
    question = words(rng, "en", 60).split()
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": " ".join(question)}) + "\n")
    parts = {"13": question[20:33], "12": question[20:32]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(
        {"id": name, "text": f"{words(rng, 'en', 40)} {' '.join(part)} {words(rng, 'en', 40)}"}) + "\n" for name, part in parts.items()))
    main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out", str(tmp_path / "out")])
    assert [record["id"] for record in read_folder(tmp_path / "out" / "dropped")] == ["13"]


def test_a_phrase_of_many_questions_drops_no_document():
    rng = random.Random(SEED)
    phrase = words(rng, "en", 13)
    runs, short = benchmark_runs([(str(i), f"{words(rng, 'en', 20)} {phrase}") for i in range(10)])
    (_, common), = question_runs(phrase)
    assert common not in runs["hashes"] and not short
    assert all(str(i) in {name for names in runs["items"] for name in names} for i in range(10))


def test_a_question_in_a_very_long_document_is_found(tmp_path, monkeypatch):
    rng = random.Random(SEED)
    monkeypatch.setattr(minhash, "PIECE_CHARACTERS", 5000)
    question = words(rng, "en", 30)
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": question}) + "\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"{words(rng, 'en', 3000)} {question} {words(rng, 'en', 3000)}"}) + "\n")
    main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out", str(tmp_path / "out")])
    assert len(read_folder(tmp_path / "out" / "dropped")) == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_question_is_found_wherever_the_pieces_of_a_long_document_end(language, monkeypatch):
    """The shortest question that is one run, at every place around the end of a piece."""
    rng = random.Random(SEED)
    monkeypatch.setattr(minhash, "PIECE_CHARACTERS", 5000)
    question = words(rng, language, 13 if language == "en" else 20)
    runs, _ = benchmark_runs([("q", question)])
    hashes = np.array(runs["hashes"], np.uint64)
    runs = Runs(runs["sizes"], hashes, runs["items"], np.ones(1 << 20, bool))
    before, after = words(rng, language, 3000)[:5000], words(rng, language, 1500)
    for offset in range(0, 2 * len(question), 3):
        text = f"{before[:5000 - offset]} {question} {after}" + ("x" * 9 if offset % 2 else "")
        assert held_items([text], runs) == [["q"]], (SEED, offset)
        assert held_items([text.replace(question, question[:-4])], runs) == [[]]


def test_a_second_run_with_another_benchmark_does_not_change_what_the_first_looks_for(planted, tmp_path):
    """While a run holds the folder, a second one is refused before it writes; what was changed by hand is noticed."""
    command = [str(tmp_path / "part0.jsonl"), "--benchmark", str(tmp_path / "test"), "--out", str(tmp_path / "out")]
    main(command)
    runs = (tmp_path / "out" / "benchmark_runs.json").read_bytes()
    (tmp_path / "items.jsonl").write_text(json.dumps({"question": words(random.Random(SEED), "en", 20)}) + "\n")
    with one_run(tmp_path / "out"), pytest.raises(UserError, match="another run is writing here"):
        main([*command[:2], str(tmp_path / "items.jsonl"), *command[3:]])
    assert (tmp_path / "out" / "benchmark_runs.json").read_bytes() == runs
    with pytest.raises(UserError, match="changed while this run reads it"):
        decontaminate._load(str(tmp_path / "out" / "benchmark_runs.json"), "another digest")


def test_bad_benchmarks_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n')
    for content, message in (("", "no exam items"), ('{"answer": 1}\n', r":1: expected an exam item"), ('{"question": "Why?"}\n', "too short")):
        (tmp_path / "items.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out", str(tmp_path / "out")])


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared real data")
def test_real_questions_do_not_drop_ordinary_texts(tmp_path):
    questions = [json.loads(line)["question"] for line in open(DATA / "medqa/questions/US/4_options/test.part1.jsonl", encoding="utf-8")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    with gzip.open(DATA / "text/en/medical.jsonl.gz", "rt", encoding="utf-8") as file:
        (tmp_path / "a.jsonl").write_text("".join(line for line, _ in zip(file, range(1500))) + json.dumps({"text": questions[7]}) + "\n")
    main([str(tmp_path / "a.jsonl"), "--benchmark", str(tmp_path / "items.jsonl"), "--out", str(tmp_path / "out")])
    dropped = read_folder(tmp_path / "out" / "dropped")
    assert "items.jsonl:8" in {name for record in dropped for name in record["items"]}
    assert len(dropped) <= 3, [record["text"][:200] for record in dropped]
