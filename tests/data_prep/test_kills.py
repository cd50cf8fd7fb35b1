"""Commands killed at any write: the next start leaves what an uninterrupted run leaves."""
import importlib
import os
from pathlib import Path

import pytest
from corpus_files import tree, write
from killed_commands import check_restarts

from data_prep.benchmark.exam_files import write_folder
from mmed.tokenizer import train_sentencepiece

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux which folder is open")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    texts = [f"Pneumonia is treated with antibiotics {number:x} times in {number * 777:x} patients. " * 5
             for number in range(30)]
    for name, part in (("a", texts[:20]), ("b", texts[10:])):
        write(folder / "docs" / f"{name}.jsonl", *({"text": text, "language": "en"} for text in part))
    train_sentencepiece(texts, folder / "tokenizer", 290)
    items = [{"question": f"Is it {number}?", "options": {"A": "yes", "B": "no"}, "answer_idx": "A",
              "rationale": "so"} for number in range(9)]
    write(folder / "exam" / "train.jsonl", *items[2:])
    write(folder / "exam" / "test.jsonl", *items[:3])
    return folder


@pytest.mark.parametrize("command", [
    "clean --language en docs",
    "dedup docs",
    "tokenize_corpus --tokenizer tokenizer --held_out 0.1 docs",
    "mmedbench --source custom=exam --map question=question,options=options,answer=answer_idx --language en"])
def test_a_killed_command_is_finished_by_the_next_start(inputs, tmp_path, monkeypatch, rng, command):
    monkeypatch.chdir(inputs)
    name, *arguments = command.split()
    main = importlib.import_module(f"data_prep.{name}").main
    check_restarts(lambda folder: main([*arguments, "--out", str(folder / "out")]), tmp_path, rng, most=12)


def test_an_earlier_folder_is_deleted_only_once_the_new_one_is_complete(tmp_path, monkeypatch):
    out = tmp_path / "exam"
    replace, calls = os.replace, []

    def interrupt_first(source: Path, target: Path) -> None:
        if target == out and not calls:
            calls.append(source)
            raise KeyboardInterrupt
        replace(source, target)

    write_folder(out, {"a.jsonl": [{"n": 1}]}, "counts.json", {})
    before = tree(out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt_first)
        write_folder(out, {"a.jsonl": [{"n": 2}]}, "counts.json", {})
    assert tree(tmp_path) == {f"exam/{name}": data for name, data in before.items()}
    moved = out.rename(tmp_path / "exam.7.tmp")  # as by a run that was killed between the two renames
    with pytest.raises(ZeroDivisionError):
        write_folder(out, {"a.jsonl": ({"n": 1 / n} for n in (1, 0))}, "counts.json", {})
    assert tree(moved) == before and [*tmp_path.iterdir()] == [moved]
    write_folder(out, {"a.jsonl": [{"n": 1}]}, "counts.json", {})
    assert tree(out) == before and [*tmp_path.iterdir()] == [out]
