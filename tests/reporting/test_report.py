"""mmed/reporting: the numbers of results.json, one definition per column, inert pages, errors of one line."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from json_lines import read_lines, write_lines
from repository import ROOT
from result_folders import HOSTILE, UNPRINTABLE, Page, assert_inert, make_items, make_result

from data_prep.documents import Funnel
from data_prep.pipeline.shards import print_funnel
from mmed.evaluation import compare
from mmed.evaluation.published import ENGLISH_SOURCES, LANGUAGES
from mmed.evaluation.results import text_row
from mmed.evaluation.summary import summarise, table
from mmed.prompts import ExamItem
from mmed.reporting import plots, report
from mmed.reporting.read_results import read_questions, read_result, read_run
from mmed.reporting.tables import summary_table, tables
from mmed.utils.errors import UsageError, UserError, printable
from mmed.utils.files import read_json, write_json


def make_run(folder: Path, steps: int = 30, **more) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"recipe": "tiny", "config": {"task": "pretrain", "seed": 1},
                                     "steps": steps, "world_size": 1, "device": "cpu"} | more)
    lines = [{"step": 0, "targets": 0, "validation_loss": {"English": 2.25, "Japanese": 3.0}}]
    lines += [{"step": i, "tokens": 150 * i, "targets": 100 * i, "loss": 5.0 - i / 10,
               "tokens_per_second": 1000.0} for i in range(1, steps + 1)]
    lines[-1]["validation_loss"] = {"English": 2.5, "Japanese": 2.75}
    write_lines(folder / "metrics.jsonl", *lines)
    return folder


def make_corpus(folder: Path, step: str = "filter_medical", reason: str = "too few medical words") -> Path:
    for language, kept in (("en", 40), ("ja", 25)):
        write_json(folder / "filter" / language / "funnel.json", {
            "step": step, "documents": {"in": 100, "out": kept},
            "dropped": {reason: {"documents": 100 - kept}}})
    (folder / "all.idx").write_bytes(b"12")
    write_json(folder / "all.json", {"tokens": 777, "documents": 65, "tokenizer": "f" * 64,
                                     "counts": {"en": {"web": {"tokens": 700, "documents": 60}},
                                                "ja": {"book": {"tokens": 77, "documents": 5}}}})
    return folder


def make_study(path: Path, models=("base", "corpus")) -> Path:
    measures = [{"name": name, "definition": "nltk-method1", "tau": tau, "low": tau - 0.1, "high": tau + 0.1,
                 "slope": 1.5, "points": 2, "paper": None}
                for name, tau in (("BLEU-1", 0.5), ("judge", 0.25))]
    points = [{"model": model, "language": "French", "items": 50, "people": 1.25 + i,
               "values": [1.0 + i, 2.0 - i]} for i, model in enumerate(models)]
    write_json(path, {"format": "mmed agreement", "version": 1, "models": models,
                      "languages": ["French"], "items": {"French": 50}, "people": {"agreement": {}},
                      "measures": measures, "points": points, "notes": []})
    return path


def make_page(path: Path, *arguments: object) -> Page:
    report.main([*map(str, arguments), "--out", str(path)])
    return Page(path.read_text(encoding="utf-8"))


def make_read(folder: Path, *arguments, **settings):
    """A result as the report reads it."""
    return read_result(str(make_result(folder, *arguments, **settings)))


def by_title(results, with_published: bool = False) -> dict:
    return {table.title: table for table in tables(results, with_published)}


def test_the_numbers_of_the_tables_are_those_of_results_json(tmp_path, rng, capsys):
    items = make_items(rng, 4, ("English", "Chinese"))
    folders = [make_result(tmp_path / name, items, rng, skill) for name, skill in (("a", 0.2), ("b", 0.9))]
    value = read_json(folders[0] / "results.json")
    for part in (*value["mmed"]["summary"]["languages"].values(), value["mmed"]["summary"]["macro"],
                 value["mmed"]["summary"]["micro"]):  # a metric may have any sign and size
        part["text"]["BERTScore|f1"] = {"value": -7.25, "low": -900.0, "high": None, "n": 2}
        part["official_chance"] = 0.9876
    write_json(folders[0] / "results.json", value)
    page = make_page(tmp_path / "r.html", *folders)
    printed, shown = capsys.readouterr().out, page.texts["results"]
    for folder in folders:
        summary = read_json(folder / "results.json")["mmed"]["summary"]
        for part in [*summary["languages"].values(), summary["macro"]]:
            for column in ("answer", "rationale", "loglikelihood", "official"):
                assert f"{100 * part['accuracy'][column]['value']:.1f}" in shown
            assert f"{100 * part['accuracy']['answer']['value']:.1f} [" in printed
            assert f"{100 * part['text']['BLEU-1|nltk-method1']['value']:.2f}" in shown
            assert f"{100 * part['chance']:.1f}" in printed
    assert "Chance level 98.8" in shown and "98.8" not in printed  # a table that is not a main one
    assert "−725.00" in shown and "b minus a" in page.texts["differences"]
    assert "McNemar, exact" in page.texts["differences"] and "micro average" in page.texts["differences"]


ALL, NONE = {"Accuracy, official scorer", "BLEU-1 of rationales", "ROUGE-1 of rationales"}, set()
MMEDLM_2 = dict(zip((*LANGUAGES, "Macro average"), (58.13, 70.43, 54.27, 38.26, 71.88, 64.95, 59.65)))


@pytest.mark.parametrize(("settings", "languages", "options", "joined"), [
    ({}, LANGUAGES, 4, ALL), ({}, ["English"], 4, ALL), ({}, ["English", "German"], 4, ALL),
    ({"words": "default"}, LANGUAGES, 4, {"Accuracy, official scorer"}),
    ({"checked": None}, LANGUAGES, 4, {"Accuracy, official scorer"}), ({"n": 3}, LANGUAGES, 4, NONE),
    ({"style": "clean"}, ["English"], 4, NONE), ({"shots": 3}, ["English"], 4, NONE),
    ({"chat_template": "auto"}, ["English"], 4, NONE), ({"stop": "answer"}, ["English"], 4, NONE),
    ({}, ["English"], 5, NONE), ({}, ["German"], 4, NONE),
    ({"modes": ("loglikelihood",)}, ["English"], 4, NONE),
])
def test_published_numbers_share_a_table_only_with_their_own_definition_prompt_and_items(
        tmp_path, rng, monkeypatch, settings, languages, options, joined):
    monkeypatch.setattr("mmed.reporting.tables.TEST_ITEMS", dict.fromkeys(LANGUAGES, 2))
    items = [replace(item, options=dict(zip("ABCDE"[:options], "vwxyz")), answer=("A",))
             for item in make_items(rng, settings.get("n", 2), languages, settings.get("checked", True))]
    result = make_read(tmp_path / "a", items, rng, **{"style": "official", "words": "official"} | settings)
    if result.settings["words"] == "official":  # as this setting names it
        for part in (*result.parts.values(), result.summary["micro"]):
            part["text"] = {name.replace("rouge-score-f1", "rouge-f1"): score
                            for name, score in part["text"].items()}
    found = by_title([result], True)
    theirs = {title: [row for row in own.rows if row.kind == "published"] for title, own in found.items()}
    assert {title for title in ALL if theirs.get(title)} == joined
    assert {title for title in ALL if f"{title}, published" in found} == ALL - joined
    assert all(found[f"{title}, published"].rows == theirs[f"{title}, published"] for title in ALL - joined)
    title = f"Accuracy, official scorer{'' if joined else ', published'}"
    row = next(row for row in theirs[title] if row.name == "MMedLM 2 7B")
    shown = {name: score["value"] for name, score in zip(found[title].columns, row.scores) if score}
    assert shown == (MMEDLM_2 if len(found[title].columns) == 7 else {"English": 58.13})
    assert theirs[title][0].heading == "Zero-shot"


def test_results_with_different_signatures_get_different_tables_and_no_test(tmp_path, rng):
    items = make_items(rng, 3, ("English", "French"))
    styles = [make_read(tmp_path / style, items, rng, style=style) for style in ("clean", "official")]
    found = by_title(styles)
    for style in ("clean", "official"):
        for title in ("BLEU-1 of rationales", "Accuracy, answer only"):
            assert f"|style:{style}|" in found[f"{title} (style:{style})"].note
    results = [make_read(tmp_path / name, items, rng) for name in "ab"]
    results[1].summary["signatures"]["answer"] += "|equal-options:either"
    results[1].summary["signatures"]["BLEU-1|nltk-method1"]["English"] += "|other"
    titles = [table.title for table in tables(results)]
    assert "Accuracy, answer only" in titles and titles.count("BLEU-1 of rationales") == 2
    assert "Accuracy, answer only (equal-options:either)" in titles
    assert titles.count("Accuracy, official scorer") == 1
    (pair,) = report.comparisons(results)
    assert pair["lines"] == [] and pair["other"] == "b"


def test_a_language_without_a_score_keeps_its_column_and_is_named(tmp_path, rng):
    result = make_read(tmp_path / "a", make_items(rng, 2, ("English", "German")), rng)
    result.summary["languages"]["German"]["text"] = {}
    table = by_title([result])["BLEU-1 of rationales"]
    assert table.columns == ["English", "German", "Macro average"]
    assert table.rows[0].scores[1] is None
    assert "No rationale was scored in German" in table.note


def test_differences_are_those_of_the_compare_command_and_scores_near_chance_are_marked(tmp_path, rng):
    items = make_items(rng, 40, ("English", "French"))
    results = [make_read(tmp_path / name, items, rng, skill, modes=("answer",))
               for name, skill in (("a", 0.3), ("b", 0.6))]
    first, other = results
    lines, _ = compare.compare(*(compare.read(result.folder) for result in (other, first)))
    assert report.differences(first, other) == [line for line in lines if line.column == "answer"]
    (pair,) = report.comparisons(results)
    assert [line.group for line in pair["lines"]] == ["English", "French", "macro average", "micro average"]
    for result, row in zip(results, by_title(results)["Accuracy, answer only"].rows):
        for score, part in zip(row.scores, result.parts.values(), strict=True):
            assert score["at_chance"] == (score["low"] <= 100 * part["chance"] <= score["high"])


def test_several_sources_have_a_table_with_their_mean(tmp_path, rng):
    items = make_items(rng, 27, ["English"])
    for number, item in enumerate(items):
        item.extra["source"], _, item.extra["subject"] = ENGLISH_SOURCES[number % 9].partition(" ")
    found = by_title([make_read(tmp_path / "a", items, rng, modes=("answer",))], True)
    table = found["Accuracy, answer only, by source"]
    assert table.columns == [*ENGLISH_SOURCES, "Mean of sources"] and table.sizes == [3] * 9 + [None]
    (own,) = table.rows
    *values, mean = [score["value"] for score in own.scores]
    assert mean == pytest.approx(sum(values) / 9)
    rows = found["Published accuracy on the English benchmarks"].rows
    assert [score["value"] for score in rows[-1].scores] == [65.4, 63.5, 80.1, 71.3, 85.0, 69.6, 77.6, 74.3,
                                                             66.5, 72.59]
    assert rows[5].scores[3:] == [None] * 7  # PMC-LLaMA 13B


def test_settings_and_names_come_from_the_command_line_or_the_result(tmp_path, rng):
    items = make_items(rng, 2, ("English",))
    plain = make_result(tmp_path / "plain", items, rng)
    tuned = make_result(tmp_path / "tuned", items, rng, setting="finetuned")
    lora = make_result(tmp_path / "lora", items, rng, setting="finetuned", adapter="adapters/x")
    found = [read_result(text) for text in (str(plain), str(tuned), str(lora), f"base={plain}",
                                            f"full:base: 2={plain}")]
    names = [f"{one.setting}: {one.name}" for one in found]
    assert names == ["zero-shot: plain", "full: tuned", "lora: lora", "zero-shot: base", "full: base: 2"]
    printed = summary_table(tables(found[:3]))
    assert printed.index("Zero-shot") < printed.index("LoRA fine-tuning") < printed.index("Full fine-tuning")


def test_all_inputs_make_one_reproducible_page(tmp_path, rng):
    arguments = (make_result(tmp_path / "a", make_items(rng, 3), rng), "--runs", make_run(tmp_path / "run"),
                 "--corpus", make_corpus(tmp_path / "corpus"), tmp_path / "corpus" / "filter",
                 "--agreement", make_study(tmp_path / "agreement.json"), "--published")
    page = make_page(tmp_path / "1.html", *arguments)
    make_page(tmp_path / "2.html", *arguments)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert_inert(page)
    for section, words in (
            ("corpus", "200 documents in, 65 kept"), ("corpus", "too few medical words 135"),
            ("corpus", "777 tokens in 65 documents"), ("training", "last loss 2.000"),
            ("training", "not finished"), ("agreement", "0.400 to 0.600"),
            ("training", "English 2.250 2.500 +0.250 ROSE Japanese 3.000 2.750 −0.250"),
            ("results", "67.30"), ("results", "75.31"), ("html", "not medical advice")):
        assert words in page.texts[section], words


def test_likelihoods_alone_make_a_page_with_their_calibration(tmp_path, rng, capsys):
    folder = make_result(tmp_path / "a", make_items(rng, 3, ("French",)), rng,
                         modes=("loglikelihood", "option_text"))
    page = make_page(tmp_path / "r.html", folder)
    printed = capsys.readouterr().out
    assert_inert(page)
    assert not {"training", "corpus", "differences"} & set(page.texts)
    ece = read_json(folder / "results.json")["mmed"]["summary"]["languages"]["French"]["calibration"]["ece"]
    assert f"ECE {100 * ece:.1f} %, n = 3" in page.texts["answers"]
    labels = [attributes.get("aria-label", "") for _, attributes in page.elements]
    assert any(label.endswith("reliability in French") for label in labels)
    assert "answer only" not in page.texts["results"]  # log-likelihood is never shown as a written answer
    for title in ("Accuracy, option text/token", "Accuracy, option text PMI"):
        assert title in page.texts["results"] and title in printed
    assert "Likelihood of the options' texts:" in page.texts["questions"]
    assert "questions" not in make_page(tmp_path / "r.html", folder, "--questions", "0").texts


def test_hostile_text_everywhere_is_only_text(tmp_path, rng, capsys):
    items = [ExamItem(f"{bad} {number}", {"A": bad or "?", "B": bad + "!"}, ("B",), bad,
                      ("English", "Japanese")[number % 2], f"{number}{bad}", True,
                      {"topic": bad, "meta": bad}) for number, bad in enumerate(HOSTILE)]
    items.append(ExamItem("x" * 2 ** 19, {"A": "y" * 2 ** 16, "B": "z"}, ("A",), "w" * 2 ** 19, "English",
                          "big", True, {}))
    folder = make_result(tmp_path / "a", items, rng, write=lambda text: text + rng.choice(HOSTILE),
                         model=HOSTILE[0], adapter=HOSTILE[1])
    run = make_run(tmp_path / "run", recipe=HOSTILE[0], device=HOSTILE[1], commit=HOSTILE[2])
    with open(run / "metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 31, "targets": 3100, "loss": 2.0, "tokens_per_second": 5,
                              "validation_loss": dict.fromkeys(HOSTILE, 1.0)}) + "\n")
    corpus = make_corpus(tmp_path / "corpus", HOSTILE[0], HOSTILE[1])
    page = make_page(tmp_path / "r.html", f"{HOSTILE[1]}={folder}", "--runs", f"{HOSTILE[7]}={run}",
                     "--corpus", corpus, "--title", HOSTILE[0], "--notice", HOSTILE[7],
                     "--agreement", make_study(tmp_path / "study.json", HOSTILE[:2]))
    assert_inert(page)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert len(page.source) < 2 ** 19 and "more characters]" in page.source
    assert f"{HOSTILE[0]} 0" in page.texts["questions"] and HOSTILE[1] in page.texts["results"]
    assert not UNPRINTABLE.search(capsys.readouterr().out)
    svg = plots.bars([("<d> $x$ 模型", 25.0, [("#2a78d6", 50.0, 40.0, 60.0)])], 'a "label"')
    assert "&lt;d&gt; $x$ 模型" in svg and "<d>" not in svg and 'aria-label="a &#34;label&#34;"' in svg


@pytest.mark.parametrize("template", sorted(
    path for part in ("mmed", "data_prep", "examples") for path in (ROOT / part).rglob("*.html")),
    ids=lambda path: path.name)
def test_no_template_loads_anything_or_writes_markup(template):
    assert not re.search(
        r"<(?:link|base|iframe|object|embed|img)\b|https?://|@import|url\(|\son\w+=|\|\s*safe\b|innerHTML|"
        r"outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttpRequest",
        template.read_text(encoding="utf-8"))


def test_what_a_terminal_would_obey_is_in_no_line_that_a_command_prints(capsys):
    """Control codes, direction overrides and lone surrogates in names, topics, reasons and messages."""
    bad = "\x1b]0;owned\x07\x1b[2J\r\u202egnp.exe\u2066\ud800\x9b31m\x08"
    rows = [text_row(ExamItem(f"q{i}", {"A": "x", "B": "y"}, ("A",), "r", "English", str(i),
                              extra={"topic": bad + str(i), "source": bad + str(i)}), "answer", "0", "A",
                     "default") for i in range(4)]
    print(table(summarise(rows), "default"))
    funnel = Funnel()
    funnel.drop(bad, 3, bad)
    print_funnel(funnel, "step")
    shown = "".join(capsys.readouterr())
    assert "0;owned" in shown and shown == printable(shown) and not UNPRINTABLE.search(shown)


def test_the_first_questions_are_shown_with_all_answers(tmp_path, rng):
    items = make_items(rng, 5)
    folders = [make_result(tmp_path / name, items, rng) for name in ("a", "b")]
    page = make_page(tmp_path / "r.html", *folders, "--questions", "2")
    shown = [one["data-language"] for tag, one in page.elements if "data-language" in one]
    assert shown == [language for language in LANGUAGES for _ in range(2)]
    assert "12 of 30" in page.texts["questions"]
    results = [read_result(str(folder)) for folder in folders]
    for question in read_questions(results, 2):
        assert [len(answers) for answers in question["answers"]] == [3, 3]
        for result, right, answers in zip(results, question["right"], question["answers"]):
            assert answers[0]["correct"] == right == result.hits[question["language"], question["key"]]


def test_a_log_with_an_incomplete_last_line_is_read_up_to_it(tmp_path):
    folder = make_run(tmp_path / "run", 10)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"step": 11, "targets": 1100, "loss": NaN, "tokens_per_second": 1.0}\n{"step": 12, "tok')
    run = read_run(str(folder))
    assert len(run.loss) == 10
    assert run.validation == {"English": [(0, 2.25), (1000, 2.5)], "Japanese": [(0, 3.0), (1000, 2.75)]}
    assert run.not_finite == 1
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged"):
        read_run(str(folder))


def test_sixteen_curves_of_one_run_are_told_apart():
    """Eight languages, each with a medical and a general stream."""
    colours = plots.colours(map(str, range(17)))
    assert len(set(colours.values())) == 17 and colours["16"] == plots.GREY


def test_forgetting_is_the_change_of_general_accuracy_and_loss_against_the_base_model(tmp_path, rng):
    items = make_items(rng, 41, ("English", "French"))  # no share of 41 is rounded both ways
    skills = {"base": 1.0, "medical": 0.5, "other": 0.5}
    exams = [make_result(tmp_path / name, items, rng, skill, modes=("answer",), scoring="generate")
             for name, skill in skills.items()]
    losses = {"medical": (2.0, 2.25), "replay": (2.0, 1.75)}
    runs = []
    for name, (before, after) in losses.items():
        folder = make_run(tmp_path / "runs" / name)
        log = read_lines(folder / "metrics.jsonl")
        log[0]["validation_loss"] |= {"general en": before, "general fr": before + 1}
        log[-1]["validation_loss"] |= {"general en": after, "general fr": after + 1}
        write_lines(folder / "metrics.jsonl", *log)
        runs.append(f"{name}={folder}")
    page = make_page(tmp_path / "r.html", "--general", *exams, "--runs", *runs)
    base, medical = (read_json(tmp_path / name / "results.json")["mmed"]["summary"]["macro"]["accuracy"]
                     ["answer"]["value"] for name in ("base", "medical"))
    shown, change = page.texts["forgetting"], f"{100 * (medical - base):+.1f}".replace("-", "−")
    assert f"medical : general accuracy {change} points, general loss +0.250 nats per token." in shown
    assert "replay : general loss −0.250 nats per token." in shown and f"{100 * base:.1f}" in shown
    rows = shown[shown.index("change base"):]
    for words in ("– 2.500 –", f"{change} ", " 2.750 +0.250 other", "replay – – 2.250 −0.250"):
        assert words in rows, words
    before = log[0] | {"targets": 50}  # validated only from some step on: the base model's loss is unknown
    write_lines(folder / "metrics.jsonl", before, *log[1:])
    shown = make_page(tmp_path / "r.html", "--general", *exams, "--runs", runs[1]).texts["forgetting"]
    assert "replay – – 2.250 –" in shown and "nats per token." not in shown.partition("Each model")[0]
    log[0]["validation_loss"] = {"general de": 2.0}
    write_lines(folder / "metrics.jsonl", *log)
    fewer = make_result(tmp_path / "x", items[1:], rng, modes=("answer",))
    scored = make_result(tmp_path / "y", items, rng, modes=("loglikelihood",), scoring="loglikelihood")
    for arguments, message in ((["--general", *exams, fewer], "exam items differ"),
                               (["--general", *exams, scored],
                                r"defined differently .* scoring = loglikelihood \(there generate\); eval"),
                               (["--runs", *runs], "run replay: validated on general de, general en")):
        with pytest.raises(UserError, match=message):
            make_page(tmp_path / "x.html", *arguments)


def test_bad_input_gives_one_line_and_no_page(tmp_path, rng):
    items = make_items(rng, 2, ("English", "French"))
    good, empty = make_result(tmp_path / "good", items, rng), tmp_path / "empty"
    foreign, cut = tmp_path / "foreign", make_result(tmp_path / "cut", items, rng)
    rows = (cut / "predictions.jsonl").read_text().splitlines(keepends=True)
    (cut / "predictions.jsonl").write_text("".join(rows[3:]))  # without one item
    empty.mkdir()
    write_json(foreign / "funnel.json", {"step": "x"})
    for arguments, words, kind in (
            ([good, good], "duplicate row 'good", UsageError), ([f"fulll:base={good}"], "fulll", UsageError),
            ([good, make_result(tmp_path / "b", items, rng, data="e" * 64)], "exam items differ", UserError),
            ([good, make_result(tmp_path / "c", items[:-1], rng)], "exam items differ", UserError),
            ([good, cut], "cut: its exam items differ", UserError),
            ([tmp_path / "absent"], "no such file", UserError), ([empty], "results.json", UserError),
            ([good, "--corpus", empty], "no funnel.json", UserError),
            (["--corpus", foreign], "funnel.json: damaged", UserError),
            ([good, "--runs", tmp_path / "absent"], "no such file", UserError),
            (["--runs", run := make_run(tmp_path / "run"), run], "two runs have one name (run, ", UsageError),
            ([], "nothing to report", UsageError),
            ([good, "--agreement", good / "results.json"], "not a study", UserError)):
        with pytest.raises(kind, match=re.escape(words)) as caught:
            report.main([*map(str, arguments), "--out", str(tmp_path / "r.html")])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=re.escape("mmed[report]")):
        report.main(["--runs", str(make_run(tmp_path / package)), "--out", str(tmp_path / "r.html")])
