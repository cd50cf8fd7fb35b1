"""The ablations: the plan shares the demo's steps, each gain takes the right two rows, tables and page say
what was measured.
"""
import re

import pytest

from examples.demo import ablations, demo_steps
from mmed.config import parse_command_line
from mmed.evaluation.published import LANGUAGES, published_ablation
from mmed.evaluation.results import text_row, write_results
from mmed.metrics import macro_mean
from mmed.prompts import ExamItem
from mmed.utils.files import read_json

# of 10 items a language
RIGHT = dict(zip((row.name for row in ablations.ROWS), (2, 1, 4, 6, 8, 3, 5, 0), strict=True))


def test_shared_steps_are_the_demos_to_the_letter_so_that_its_folder_can_be_used():
    demo = {step.name: step.commands for step in demo_steps.steps("demo", 3)}
    plan = ablations.steps("demo", 3)
    assert len({step.name for step in plan}) == len(plan)
    done = set()
    for step in plan:
        assert step.commands == demo.get(step.name, step.commands) and set(step.needs) <= done, step.name
        done.add(step.name)
    assert set(ablations.SHARED) <= done & set(demo)
    assert parse_command_line(["demo_corpus", "--model=m", "--data=d"])[1].max_steps == ablations.CORPUS_STEPS


def test_rows_of_fine_tuning_differ_in_model_and_rationales_alone():
    runs = {
        step.name: parse_command_line(step.commands[0][1:])[1]
        for step in ablations.steps("o", 0) if step.name.startswith("ablation")
    }
    assert len(runs) == len(ablations.ROWS) == 8
    for row in ablations.ROWS:
        config = runs[row.name]
        assert config.model == f"o/runs/{row.model}/model" and config.max_steps == {
            "answers": 300, "both": 600
        }[row.data]
        assert config.rationales == {"answers": "without", "both": "both"}[row.data]
        assert {
            name
            for name, value in vars(config).items() if value != getattr(runs[ablations.ROWS[1].name], name)
        } <= {"model", "out", "rationales", "max_steps"}


def test_a_part_of_the_corpus_is_read_from_its_own_streams_in_the_share_of_the_whole():
    data = {
        step.name: dict(
            part.rsplit("=", 1) for part in parse_command_line(step.commands[0][1:])[1].data.split(","))
        for step in ablations.steps("o", 0) if step.name in ("corpus", "english", "quality")
    }
    kinds = {
        name: {re.search(r"streams/(.*?)-", stream)[1]
               for stream in streams}
        for name, streams in data.items()
    }
    assert kinds == {
        "corpus": {"medical", "base"}, "english": {"medical", "base"}, "quality": {"books", "base"}
    }
    assert [stream for stream in data["english"] if "medical" in stream] == ["o/streams/medical-en"]
    for streams in data.values():
        base = sum(float(weight) for stream, weight in streams.items() if "base" in stream)
        assert base / sum(map(float, streams.values())) == pytest.approx(demo_steps.REPLAY)


def test_each_gain_adds_one_thing_and_has_the_papers_where_it_has_both_rows():
    paper = published_ablation()
    assert [(row.corpus, row.data) for row in ablations.ROWS if row.printed] == list(paper)
    for title, with_it, without in ablations.GAINS:
        one, other = ablations.ROWS[with_it], ablations.ROWS[without]
        assert (one.corpus == other.corpus) != (one.data == other.data), title


@pytest.fixture
def folder(tmp_path):
    """Result folders as the exams leave them: row i has RIGHT[i] of 10 questions right in each language."""
    items = [
        ExamItem(f"question {i}", dict(zip("ABCD", "wxyz")), ("B", ), "the cat sat on a mat", language,
                 f"{language}-{i}", True, True) for language in LANGUAGES for i in range(10)
    ]
    for row in ablations.ROWS:
        rows, prompts = [], {}
        for item in items:
            for mode in ("answer", "rationale")[:1 if row.data == "answers" else 2]:
                right = int(item.key.split("-")[1]) < RIGHT[row.name] and (mode == "rationale"
                                                                           or row.data == "answers")
                text = f"###Answer: OPTION {'B' if right else 'C'} IS CORRECT."
                rows.append(
                    text_row(item, mode, "0" * 16,
                             ("###Rationale: the cat sat\n" if mode == "rationale" else "") + text,
                             "default"))
                prompts[item.key, mode] = "prompt"
        write_results(tmp_path / "results" / row.name, rows, prompts, {"model": "m", "data": "d" * 64},
                      {"words": "default"})
    return tmp_path


def test_accuracy_is_of_the_form_that_was_taught_and_gains_are_its_differences(folder):
    found = ablations.measure(folder)
    assert found["questions"] == 60
    for row, measured in zip(ablations.ROWS, found["rows"], strict=True):
        share = RIGHT[row.name] / 10
        assert measured["accuracy"]["value"] == pytest.approx(100 * macro_mean([share] * 6, list(LANGUAGES)))
        assert measured["answer_only"]["value"] == pytest.approx(100 * share if row.data == "answers" else 0)
        assert bool(measured["rationale"]) == (
            row.data == "both") and measured["languages"]["Russian"]["value"] == pytest.approx(100 * share)
    gains = {gain["what"]: gain for gain in found["gains"]}
    assert gains["whole corpus"]["points"] == pytest.approx(
        70) and gains["whole corpus"]["low"] <= 70 <= gains["whole corpus"]["high"]
    assert gains["filtered web on top of books"]["points"] == pytest.approx(20)
    assert gains["rationales in fine-tuning, no corpus"]["points"] == pytest.approx(-10)
    assert gains["English part of the corpus"]["paper"] == pytest.approx(
        {"InternLM 7B": 1.72, "InternLM 2 7B": -0.31, "Llama 3 8B": -1.40})
    assert gains["rationales in fine-tuning, whole corpus"]["paper"] == {}


def test_table_and_page_show_the_numbers_beside_the_papers(folder, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "run_demo", lambda out, plan: 1.0)
    assert ablations.main(["--out", str(folder)]) == 0
    printed, page = capsys.readouterr().out, (folder / "ablations.html").read_text()
    found = read_json(folder / "ablations.json")
    assert found["gains"][4]["what"] == "whole corpus" and found["gains"][4]["paper"][
        "Llama 3 8B"] == pytest.approx(4.96)
    for words in ("+70.0 [", "67.75 / 47.22 / 43.29", "+9.35", "books and filtered web", "fictional"):
        assert words in printed and words in page, words
    assert "Content-Security-Policy" in page and page.count("<svg") == 3 and "http" not in page.replace(
        "http-equiv", "").replace("http://www.w3.org", "")
