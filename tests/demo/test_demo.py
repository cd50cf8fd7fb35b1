"""The plans of the examples, what rows of the demo and the ablations differ in, the ablations' tables."""
import re
from pathlib import Path

import pytest
from test_docs import parser_of

from examples.demo import __main__ as demo
from examples.demo import ablations, demo_steps
from examples.real_run.steps import PROFILES, real_run
from mmed.config import parse_command_line
from mmed.evaluation.published import LANGUAGES
from mmed.evaluation.results import text_row, write_results
from mmed.prompts import ExamItem
from mmed.utils.files import read_json

# of 10 items a language
RIGHT = dict(zip((row.name for row in ablations.ROWS), (2, 1, 4, 6, 8, 3, 5, 0), strict=True))


def commands(make_plan) -> dict[str, list[list[str]]]:
    return {step.name: step.commands for step in make_plan("o", 3)}


def configs(names):
    plan = commands(ablations.steps)
    return [parse_command_line(plan[name][0][1:])[1] for name in names]


def real_steps(out: str, seed: int) -> list:
    return real_run(Path("data"), Path(out), "model", PROFILES["night"])


@pytest.mark.parametrize("make_plan", [demo_steps.steps, ablations.steps, real_steps])
def test_every_step_needs_earlier_steps_and_every_command_is_understood(make_plan, monkeypatch):
    done = set()
    for step in make_plan("o", 0):
        assert step.name not in done and set(step.needs) <= done, step.name
        done.add(step.name)
        for module, *arguments in step.commands:
            if module == "mmed.train":
                _, config = parse_command_line(arguments)
                assert config.resume == "auto" and config.precision == "fp32"
            else:
                parser_of(module, arguments, monkeypatch, read=True)


def test_list_prints_every_command(capsys):
    assert demo.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("python -m mmed.train") == 8 and printed.count("python -m mmed.eval") == 6


def test_rows_of_the_demo_differ_in_the_corpus_alone():
    plan = commands(demo_steps.steps)
    for method in ("full", "lora"):
        pairs = zip(plan[f"{method}_base"][0], plan[f"{method}_corpus"][0], strict=True)
        assert [a for a, b in pairs if a != b] == [f"--out=o/runs/{method}_base", "--model=o/runs/base/model"]


def test_shared_steps_are_the_demos_to_the_letter_so_that_its_folder_can_be_used():
    own, plan = commands(demo_steps.steps), commands(ablations.steps)
    shared = own.keys() & plan.keys()
    assert {"world", "base", "corpus"} <= shared and all(own[name] == plan[name] for name in shared)
    assert parse_command_line(["demo_corpus", "--model=m", "--data=d"])[1].max_steps == ablations.CORPUS_STEPS


def test_rows_of_fine_tuning_differ_in_model_and_rationales_alone():
    runs = configs(row.name for row in ablations.ROWS)
    for row, config in zip(ablations.ROWS, runs, strict=True):
        steps, rationales = {"answers": (300, "without"), "both": (600, "both")}[row.data]
        assert (config.model, config.max_steps, config.rationales) == (
            f"o/runs/{row.model}/model", steps, rationales)
        changed = {name for name, value in vars(config).items() if value != getattr(runs[1], name)}
        assert changed <= {"model", "out", "rationales", "max_steps"}


def test_a_part_of_the_corpus_is_read_from_its_own_streams_in_the_share_of_the_whole():
    kinds = {"corpus": {"medical", "base"}, "english": {"medical", "base"}, "quality": {"books", "base"}}
    for (name, expected), config in zip(kinds.items(), configs(kinds), strict=True):
        weights = {stream: float(weight) for stream, _, weight in
                   (part.rpartition("=") for part in config.data.split(","))}
        assert {re.search(r"streams/(.*?)-", stream)[1] for stream in weights} == expected
        if name == "english":
            assert [stream for stream in weights if "medical" in stream] == ["o/streams/medical-en"]
        base = sum(weight for stream, weight in weights.items() if "base" in stream)
        assert base / sum(weights.values()) == pytest.approx(demo_steps.REPLAY)


@pytest.fixture
def folder(tmp_path):
    """Result folders as the exams leave them: row i has RIGHT[i] of 10 questions right in each language."""
    items = [ExamItem(f"question {i}", dict(zip("ABCD", "wxyz")), ("B",), "the cat sat on a mat", language,
                      f"{language}-{i}", True) for language in LANGUAGES for i in range(10)]
    for row in ablations.ROWS:
        rows, prompts = [], {}
        modes = ("answer",) if row.data == "answers" else ("answer", "rationale")
        for item, mode in ((item, mode) for item in items for mode in modes):
            right = mode == modes[-1] and int(item.key.split("-")[1]) < RIGHT[row.name]
            rationale = "###Rationale: the cat sat\n" if mode == "rationale" else ""
            text = f"{rationale}###Answer: OPTION {'B' if right else 'C'} IS CORRECT."
            rows.append(text_row(item, mode, "0" * 16, text, "default"))
            prompts[item.key, mode] = "prompt"
        write_results(tmp_path / "results" / row.name, rows, prompts, {"model": "m", "data": "d" * 64},
                      {"words": "default"})
    return tmp_path


def test_table_and_page_show_the_numbers_beside_the_papers(folder, monkeypatch, capsys):
    monkeypatch.setattr(demo_steps, "run_demo", lambda out, plan: 1.0)
    assert ablations.main(["--out", str(folder)]) == 0
    printed, page = capsys.readouterr().out, (folder / "ablations.html").read_text()
    for words in ("+70.0 [", "67.75 / 47.22 / 43.29", "+9.35", "books and filtered web", "fictional"):
        assert words in printed and words in page, words
    assert "Content-Security-Policy" in page and page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    found = read_json(folder / "ablations.json")
    assert found["questions"] == 60
    for row, measured in zip(ablations.ROWS, found["rows"], strict=True):
        share = 100 * RIGHT[row.name] / 10  # of the form that was taught
        assert measured["accuracy"]["value"] == pytest.approx(share)
        assert measured["languages"]["Russian"]["value"] == pytest.approx(share)
        assert measured["answer_only"]["value"] == pytest.approx(share if row.data == "answers" else 0)
        assert bool(measured["rationale"]) == (row.data == "both")
    gains = {gain["what"]: gain for gain in found["gains"]}
    whole = gains["whole corpus"]
    assert whole["points"] == pytest.approx(70) and whole["low"] <= 70 <= whole["high"]
    assert gains["filtered web on top of books"]["points"] == pytest.approx(20)
    assert gains["rationales in fine-tuning, no corpus"]["points"] == pytest.approx(-10)
    assert gains["English part of the corpus"]["paper"] == pytest.approx(
        {"InternLM 7B": 1.72, "InternLM 2 7B": -0.31, "Llama 3 8B": -1.40})
    assert gains["rationales in fine-tuning, whole corpus"]["paper"] == {}
