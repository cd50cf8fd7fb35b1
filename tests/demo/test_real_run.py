"""examples/real_run: who learns and is examined on what, and the numbers of its tables."""
import json
import random
import re
import subprocess
import sys

import pytest
from json_lines import read_lines, write_lines
from repository import ROOT

from examples.real_run.__main__ import main as real_run
from examples.real_run.prepare import main as prepare
from examples.real_run.steps import CORPUS_STEPS, KINDS, METHODS
from examples.real_run.tables import main as tables
from mmed.evaluation.results import load_results
from mmed.utils.errors import UserError
from tests.result_folders import make_items, make_result


def item(question, answer="A", **more):
    return {"question": question, "options": {"A": "x", "B": "y"}, "answer_idx": answer} | more


def test_exam_parts_never_overlap_and_larger_ones_contain_smaller(tmp_path):
    rows = [item(f"question {i}") for i in range(40)] + [item("picture", image_dependent=True),
                                                         item("two keys", ["A", "B"])]
    for split in ("Train", "Test"):
        write_lines(tmp_path / "benchmark" / split / "English.jsonl", *rows[split == "Test":])
    parts = {}
    for items in (8, 16):
        out = tmp_path / str(items)
        prepare(["exams", str(tmp_path / "benchmark"), "--out", str(out), "--items", str(items),
                 "--development", "10"])
        parts[items] = {split: [row["question"] for row in read_lines(out / split / "English.jsonl")]
                        for split in ("Dev", "Train", "Test")}
    assert {split: len(part) for split, part in parts[16].items()} == {"Dev": 10, "Train": 16, "Test": 39}
    assert not set(parts[16]["Dev"]) & set(parts[16]["Train"])
    assert parts[16]["Train"][:8] == parts[8]["Train"] and parts[16]["Dev"] == parts[8]["Dev"]
    with pytest.raises(UserError, match="Train: no such file"):
        prepare(["exams", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not {"picture", "two keys"} & {question for part in parts[16].values() for question in part}


def test_validation_documents_are_not_trained_on(tmp_path):
    texts = [f"document {i} " * (5 if i % 3 else 40) for i in range(30)]
    source = write_lines(tmp_path / "kept.jsonl", *(
        {"text": text, "language": "fr", "source": "corpus", "id": str(i)} for i, text in enumerate(texts)))
    prepare(["documents", str(source), "--language", "fr", "--documents", "4", "--out", str(tmp_path / "fr")])
    train, validation = ([row["text"] for row in read_lines(tmp_path / f"fr.{part}.jsonl")]
                         for part in ("train", "validation"))
    assert len(validation) == 4 and min(map(len, validation)) >= 200
    assert sorted(train + validation) == sorted(texts)


def test_settings_are_tried_on_development_items_only(tmp_path, capsys):
    for split, other in (("Dev", "Test"), ("Test", "Dev")):
        assert real_run(["--data", str(tmp_path), "--out", "o", "--split", split, "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        exams = [line for line in lines if line.startswith("python -m mmed.eval ")]
        assert len(exams) == 9 and all(f"exams/{split} " in line and f"exams/{other}" not in line
                                       for line in exams)
        assert lines[1] == ("python -m mmed.checkpoints import-gguf o/gemma-3-270m-q4_k_m.gguf "
                            "o/gemma3-270m")


def test_tables_show_the_accuracies_and_losses_of_the_folders(tmp_path, capsys):
    rng = random.Random(0)
    items = [one for one in make_items(rng, 12, ("English", "French")) if len(one.answer) == 1]
    skill = {"base": 0.1, "corpus": 0.9, "control": 0.5}
    for row, share in skill.items():
        for method in METHODS:
            make_result(tmp_path / "results" / f"{method}_{row}", items, rng, share,
                        ("answer", "loglikelihood", "option_text"))
    losses = {"base": 3.0, "corpus": 2.5, "replay": 2.6, "control": 3.1}
    (tmp_path / "loss").mkdir()
    for row in ("base", *CORPUS_STEPS):
        for kind in KINDS:
            (tmp_path / "loss" / f"{row}-{kind}.json").write_text(json.dumps(
                [{"language": "en", "documents": 3, "tokens": 99, "nats_per_token": losses[row]}]))
    tables([str(tmp_path)])
    text = capsys.readouterr().out
    assert text == (tmp_path / "tables.md").read_text() + "\n"
    assert "| en | 3 | 99 | 3.000 | 2.500 (-0.500) | 2.600 (-0.400) | 3.100 (+0.100) |" in text
    micro = load_results(tmp_path / "results" / "lora_corpus")[0]["summary"]["micro"]
    line = re.search(r"\| all languages: base \+ medical text \|.*", text).group()
    assert f"| {len(items)} |" in line and f"| {100 * micro['accuracy']['answer']['value']:.1f} [" in line
    assert re.search(r"\| LoRA: base \+ medical text - base \| .* \| \+\d+\.\d \[\+?-?\d", text)


def test_choosing_the_precision_leaves_torch_to_the_forked_steps():
    code = "from examples.real_run.__main__ import *; bf16_is_fast(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"
