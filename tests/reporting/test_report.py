"""The report: numbers as in results.json, hostile text stays text, foreign folders are refused in one line."""
import csv
import io
import json
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmed import metrics
from mmed.evaluation.published import ENGLISH_SOURCES, LANGUAGES, published, published_english
from mmed.evaluation.results import load_results, loglikelihood_row, text_row, write_results
from mmed.prompts import ExamItem, item_key
from mmed.reporting import plots, report
from mmed.reporting.page import policy
from mmed.reporting.read_results import differences, read_predictions, read_result, read_run
from mmed.reporting.tables import summary_table, tables
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import write_json

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)", "<svg onload=alert(1)><a href='http://evil.example/'>x</a></svg>",
    "\x1b[31mred\x1b[0m\x07", "=HYPERLINK(\"http://evil.example\",\"x\")", "\u202ereversed\u2066", "</script><script>alert(1)</script><!--", "{{body}} {{csp}}",
    "' onmouseover='alert(1)", "\u2028\u2029\x00\ud800", "]]>&lt;b&gt;&#0;",
]


def make_items(rng: random.Random, per_language: int = 6, languages=LANGUAGES) -> list[ExamItem]:
    items = []
    for language in languages:
        for number in range(per_language):
            options = {letter: f"option {letter} {rng.random():.6f}" for letter in "ABCDE"[:rng.choice([2, 4, 5])]}
            answer = tuple(sorted(rng.sample(list(options), 1 if rng.random() < 0.7 else 2)))
            question = f"{language} question {number}?"
            items.append(ExamItem(question, options, answer, "because of this and that", language, item_key(language, question, options),
                                  True, True, {"topic": rng.choice(["Surgery", "Anatomy"])}))
    return items


def make_result(folder: Path, items: list[ExamItem], rng: random.Random, skill: float = 0.5, modes=("answer", "rationale", "loglikelihood"),
                data: str = "d" * 64, write=str, **settings) -> Path:
    """A result folder as mmed.eval leaves it, of a model that is right with probability `skill`; `write` spoils its texts."""
    rows, prompts = [], {}
    for item in items:
        for mode in modes:
            letters = ",".join(item.answer) if rng.random() < skill else rng.choice(list(item.options))
            if mode == "loglikelihood":
                candidates = [*item.options, *([",".join(item.answer)] if len(item.answer) > 1 else [])]
                rows.append(loglikelihood_row(item, "0" * 16, candidates, [-rng.random() for _ in candidates], [1] * len(candidates)))
            else:
                text = f"###Answer: OPTION {letters} IS CORRECT." if rng.random() < 0.8 else "no idea"
                rows.append(text_row(item, mode, "0" * 16, write("###Rationale: because of that " if mode == "rationale" else "") + text, "default"))
            prompts[item.key, mode] = "prompt"
    own = {"setting": "zero-shot", "adapter": None, "shots": 0, "words": "default", "model": "models/x", "limit": 0} | settings
    write_results(folder, rows, prompts, {"model": "m" * 64, "data": data, "versions": "results 1"}, own)
    return folder


def make_run(folder: Path, steps: int = 30, **more) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"recipe": "tiny", "config": {"task": "pretrain", "seed": 1}, "steps": steps, "world_size": 1, "device": "cpu"} | more)
    lines = [{"step": i, "tokens": 100 * i, "loss": 5.0 - i / 10, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 1000.0} for i in range(1, steps + 1)]
    lines[-1]["validation_loss"] = {"English": 2.5, "Japanese": 2.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_corpus(folder: Path) -> Path:
    for language, kept in (("en", 40), ("ja", 25)):
        (folder / "filter" / language).mkdir(parents=True)
        write_json(folder / "filter" / language / "funnel.json", {
            "step": "filter_medical", "shards": 1, "documents": {"in": 100, "out": kept}, "characters": {"in": 900, "out": 300},
            "dropped": {"too few medical words": {"documents": 100 - kept, "characters": 600, "examples": ["a"]}}, "details": {}})
    (folder / "all.bin").write_bytes(b"12")
    write_json(folder / "all.json", {"format": 1, "tokens": 777, "documents": 65, "tokenizer": "f" * 64,
                                     "counts": {"en": {"web": {"tokens": 700, "documents": 60}}, "ja": {"book": {"tokens": 77, "documents": 5}}}})
    return folder


class Page(HTMLParser):
    """What a browser would see: elements, attributes, the texts of tables, scripts."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif data.strip() and (not self.open or self.open[-1] != "style"):
            self.texts.append(data)


def assert_no_active_content(text: str) -> Page:
    page = Page(text)
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]  # the data and our own
    frame = Path(report.__file__).with_name("report.html").read_text(encoding="utf-8")
    assert page.scripts[1] == Page(frame).scripts[1]
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "form", "base", "link", "audio", "video", "math", "foreignobject", "use", "image")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "src", "srcdoc", "action", "formaction", "xlink:href"), (tag, name)
            assert name != "href" or (tag == "a" and re.fullmatch(r"#\w+", value)), value
    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [policy(frame)] and policies[0].startswith("default-src 'none'") and "unsafe" not in policies[0]
    return page


def refused(*arguments: object, kind=UserError) -> str:
    with pytest.raises(kind) as caught:
        report.main([*map(str, arguments)])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(10 ** 9)
    print(f"seed {seed}")  # pytest shows it where a test fails
    return random.Random(seed)


def test_the_numbers_of_the_tables_are_those_of_results_json(tmp_path, rng, capsys):
    items = make_items(rng)
    folders = [make_result(tmp_path / name, items, rng, skill) for name, skill in (("a", 0.2), ("b", 0.9))]
    out = tmp_path / "report.html"
    report.main([*map(str, folders), "--out", str(out)])
    printed = capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    summaries = [json.loads((folder / "results.json").read_text())["mmed"]["summary"] for folder in folders]
    assert list(LANGUAGES) == list(summaries[0]["languages"])
    for table in tables([read_result(str(folder)) for folder in folders]):
        rows = [row for _, rows in table.groups for row in rows if row.kind == "ours"]
        assert [row.name for row in rows] == ["a", "b"]
        for row, summary in zip(rows, summaries):
            for cell, part in zip(row.cells, [*summary["languages"].values(), summary["macro"]], strict=True):
                scores = {**part["accuracy"], **part["text"]}.values()
                assert any(abs(cell.value - 100 * s["value"]) < 1e-9 and abs(cell.low - 100 * s["low"]) < 1e-4 for s in scores)
    for summary in summaries:
        for part in [*summary["languages"].values(), summary["macro"]]:
            for column in ("answer", "rationale", "loglikelihood", "official"):
                assert any(text.removeprefix("~\u200a") == f"{100 * part['accuracy'][column]['value']:.1f}" for text in page.texts)
            assert f"{100 * part['accuracy']['answer']['value']:.1f} [" in printed
            assert f"{100 * part['text']['BLEU-1|nltk-method1']['value']:.2f}" in " ".join(page.texts)
            assert f"{100 * part['chance']:.1f}" in printed


def test_the_best_of_a_column_is_marked_and_a_number_near_chance_too(tmp_path, rng):
    items = make_items(rng, 30, ("English", "Japanese"))
    results = [read_result(str(make_result(tmp_path / name, items, rng, skill, modes=("answer",)))) for name, skill in (("poor", 0.0), ("good", 1.0))]
    (table,) = [table for table in tables(results) if table.title == "Accuracy, answer only"]
    poor, good = table.groups[0][1]
    assert all(cell.best for cell in good.cells) and not any(cell.best for cell in poor.cells)
    for result, row in zip(results, (poor, good)):
        for cell, part in zip(row.cells, [*result.summary["languages"].values(), result.summary["macro"]]):
            assert cell.at_chance == (cell.low <= 100 * part["chance"] <= cell.high)
    assert not any(cell.at_chance for cell in good.cells)


def test_one_result_and_no_runs_make_a_page(tmp_path, rng):
    folder = make_result(tmp_path / "only", make_items(rng, 3, ("French",)), rng, modes=("loglikelihood",))
    report.main([str(folder), "--out", str(tmp_path / "r.html"), "--questions", "0"])
    page = assert_no_active_content((tmp_path / "r.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert "results" in ids and not {"training", "corpus", "questions", "differences"} & set(ids)
    assert not any("answer only" in text for text in page.texts)  # log-likelihood is never shown as a written answer


def test_the_same_input_gives_the_same_page(tmp_path, rng):
    folder = make_result(tmp_path / "a", make_items(rng, 3), rng)
    run, corpus = make_run(tmp_path / "run"), make_corpus(tmp_path / "corpus")
    for name in ("1.html", "2.html"):
        report.main([str(folder), "--runs", str(run), "--corpus", str(corpus), "--published", "--out", str(tmp_path / name)])
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    page = assert_no_active_content((tmp_path / "1.html").read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    for expected in ("100 → 40  (40.0 %)", "200 documents in, 65 kept", "too few medical words: 135", "777 tokens in 65 documents", "last loss 2.000",
                     "not finished", "MMedLM 2 7B", "67.30", "75.31", "not medical advice"):
        assert expected in text, expected


def test_hostile_text_everywhere_is_only_text(tmp_path, rng, capsys):
    languages = ("English", "Japanese")
    items = []
    for number, bad in enumerate(HOSTILE * 2):
        options = {"A": bad, "B": bad + "!", "C": f"{bad}{number}"}
        items.append(ExamItem(f"{bad} {number}", options, ("B",), bad, languages[number % 2], f"{number}{bad}", True, True, {"topic": bad, "meta": bad}))
    items.append(ExamItem("x" * 2 ** 20, {"A": "y" * 2 ** 20, "B": "z"}, ("A",), "w" * 2 ** 20, "English", "big", True, True, {"topic": "t" * 2 ** 20}))
    spoil = iter(HOSTILE * 20)
    name = "".join(HOSTILE[:2]).replace("/", "∕")
    folder = make_result(tmp_path / name, items, rng, write=lambda text: text + next(spoil), model=HOSTILE[0], adapter=HOSTILE[1], limit=HOSTILE[3])
    run = make_run(tmp_path / "run", recipe=HOSTILE[0], device=HOSTILE[1], commit=HOSTILE[2])
    with open(run / "metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 31, "tokens": 3100, "loss": 2.0, "tokens_per_second": 5, "validation_loss": dict.fromkeys(HOSTILE, 1.0)}) + "\n")
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / HOSTILE[1]).mkdir()
    write_json(corpus / HOSTILE[1] / "funnel.json", {"step": HOSTILE[0], "documents": {"in": 5, "out": 1},
                                                     "dropped": {bad: {"documents": 1} for bad in HOSTILE if "\ud800" not in bad}})
    out = tmp_path / "report.html"
    report.main([str(folder), "--runs", f"{HOSTILE[1]}={run}", "--corpus", str(corpus), "--title", HOSTILE[0], "--notice", HOSTILE[7], "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    page = assert_no_active_content(text)
    assert len(text) < 2 ** 20  # four cells of a megabyte each were cut
    assert "more characters]" in page.scripts[0]
    data = json.loads(page.scripts[0])
    assert not re.search("[<>&]", page.scripts[0])  # nothing in the data can end its element
    shown = {item["question"] for item in data["items"]}
    assert f"{HOSTILE[0]} 0" in shown and f"{HOSTILE[1]} 1" in shown  # it is shown as it is
    assert any(HOSTILE[0] in seen for seen in page.texts)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text + json.dumps(data, ensure_ascii=False))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", capsys.readouterr().out)


def test_the_browser_holds_the_first_questions_with_all_answers_and_says_what_it_left_out(tmp_path, rng):
    items = make_items(rng, 9)
    folders = [make_result(tmp_path / name, items, rng) for name in ("a", "b")]
    report.main([*map(str, folders), "--questions", "4", "--out", str(tmp_path / "r.html")])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    data = json.loads(page.scripts[0])
    assert [item["question"] for item in data["items"]] == [item.question for item in items if int(item.question.split()[-1][:-1]) < 4]
    assert "The first 4 questions of each language, 24 of 54 in all; the tables count all of them." in page.texts
    rows = [json.loads(line) for line in (folders[1] / "predictions.jsonl").read_text().splitlines()]
    for item in data["items"]:
        mine = {row["mode"]: row for row in rows if row["key"] == item["key"]}
        assert [answer["mode"] for answer in item["answers"][1]] == list(mine)
        for answer in item["answers"][1]:
            row = mine[answer["mode"]]
            assert (answer["letters"], answer["right"], answer["status"]) == (row["parsed"], row["correct"], row["status"])
            assert answer.get("text", row.get("text")) == row.get("text")


def test_tallies_count_each_item_once(tmp_path, rng):
    items = make_items(rng, 20)
    result = read_result(str(make_result(tmp_path / "a", items, rng)))
    read_predictions([result], 0)
    assert len(result.tally.hits) == len(items) == sum(result.tally.topics.values()) == sum(result.tally.options.values())
    assert sum(result.tally.hits.values()) == result.summary["micro"]["accuracy"]["answer"]["right"]
    assert sum(result.tally.letters.values()) == sum(len(item.answer) == 1 for item in items)


def test_differences_are_the_paired_tests_of_the_metrics(tmp_path, rng):
    items = make_items(rng, 12)
    results = [read_result(str(make_result(tmp_path / name, items, rng, skill))) for name, skill in (("a", 0.3), ("b", 0.7))]
    read_predictions(results, 0)
    ((first, other, gap, p),) = differences(results)
    by_key = [{(row["language"], row["key"]): row["correct"] for row in map(json.loads, open(result.folder / "predictions.jsonl"))
               if row["mode"] == "answer"} for result in results]
    a, b = ([hits[item.language, item.key] for item in items] for hits in by_key)
    assert (first.name, other.name) == ("a", "b") and p == metrics.mcnemar(b, a)
    assert abs(gap.difference - (results[1].summary["macro"]["accuracy"]["answer"]["value"] - results[0].summary["macro"]["accuracy"]["answer"]["value"])) < 1e-9


def test_names_and_settings_come_from_the_result_or_the_command_line(tmp_path, rng):
    items = make_items(rng, 2)
    plain = make_result(tmp_path / "plain", items, rng)
    tuned = make_result(tmp_path / "tuned", items, rng, setting="finetuned")
    lora = make_result(tmp_path / "lora", items, rng, setting="finetuned", adapter="adapters/x")
    found = [read_result(text) for text in (str(plain), str(tuned), str(lora), f"base={plain}", f"full:base: 2={plain}")]
    assert [(one.name, one.setting) for one in found] == [("plain", "zero-shot"), ("tuned", "full"), ("lora", "lora"), ("base", "zero-shot"), ("base: 2", "full")]
    headings = [line for line in summary_table(found[:3]).splitlines() if line in ("Zero-shot", "LoRA fine-tuning", "Full fine-tuning")]
    assert headings[:3] == ["Zero-shot", "LoRA fine-tuning", "Full fine-tuning"]
    assert "fulll" in refused(f"fulll:base={plain}", "--out", tmp_path / "r.html", kind=UsageError)
    assert "second row 'plain'" in refused(plain, plain, "--out", tmp_path / "r.html", kind=UsageError)


def test_bleu_with_other_words_is_another_table(tmp_path, rng):
    items = make_items(rng, 2)
    results = [read_result(str(make_result(tmp_path / "a", items, rng)))]
    other = read_result(str(make_result(tmp_path / "b", items, rng)))
    other.settings["words"] = "official"
    metric = "BLEU-1|nltk-method1"
    titles = [table.title for table in tables([*results, other])]
    assert metric in other.summary["micro"]["text"] and titles.count("BLEU-1 of rationales") == 2 and titles.count("Accuracy, answer only") == 1


def test_results_on_other_items_are_refused(tmp_path, rng):
    items = make_items(rng, 3)
    first = make_result(tmp_path / "a", items, rng)
    out = ("--out", tmp_path / "r.html")
    assert "other exam items" in refused(first, make_result(tmp_path / "b", items, rng, data="e" * 64), *out)
    assert "other exam items" in refused(first, make_result(tmp_path / "c", items[:-1], rng), *out)
    swapped = make_result(tmp_path / "d", items, rng)
    shutil.copy(make_result(tmp_path / "e", items, rng, skill=1.0) / "predictions.jsonl", swapped)
    assert "two runs" in refused(swapped, *out)
    assert not (tmp_path / "r.html").exists()


def test_missing_and_foreign_folders_are_refused_in_one_line(tmp_path, rng):
    out = ("--out", tmp_path / "r.html")
    good = make_result(tmp_path / "good", make_items(rng, 2), rng)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such folder" in refused(tmp_path / "absent", *out)
    assert "results.json" in refused(empty, *out)
    assert "no such folder" in refused(good, "--runs", tmp_path / "absent", *out)
    assert "run.json" in refused(good, "--runs", empty, *out)
    assert "no such folder" in refused(good, "--corpus", tmp_path / "absent", *out)
    assert "no funnel.json" in refused(good, "--corpus", empty, *out)
    assert "is a folder" in refused(good, "--out", empty, kind=UsageError)
    assert "--questions" in refused(good, "--questions", "-1", *out, kind=UsageError)
    (empty / "results.json").write_text(json.dumps({"results": {}, "configs": {}}))  # of another harness
    assert "not a result" in refused(empty, *out)
    done = subprocess.run([sys.executable, "-m", "mmed.reporting", str(tmp_path / "absent"), *map(str, out)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def spoil(value, rng: random.Random):
    """One random place of a JSON value replaced by something that does not belong there."""
    bad = rng.choice([None, "x", -1, 10 ** 400, float("nan"), [], {}, True, [[]], {"a": {"b": []}}, 1e308, "<b>"])
    if isinstance(value, dict) and value and rng.random() < 0.93:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: spoil(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.93:
        place = rng.randrange(len(value))
        return [*value[:place], spoil(value[place], rng), *value[place + 1:]]
    return bad


def test_damaged_files_give_a_page_or_one_line_and_never_a_traceback(tmp_path, rng):
    items = make_items(rng, 2, ("English", "Japanese"))
    good, run, corpus = make_result(tmp_path / "good", items, rng), make_run(tmp_path / "run", 5), make_corpus(tmp_path / "corpus")
    targets = [good / "results.json", good / "predictions.jsonl", run / "run.json", run / "metrics.jsonl", corpus / "filter/en/funnel.json", corpus / "all.json"]
    originals = {path: path.read_text(encoding="utf-8") for path in targets}
    refusals = 0
    for _ in range(150):
        path = rng.choice(targets)
        if path.suffix == ".jsonl":
            lines = originals[path].splitlines()
            place = rng.randrange(len(lines))
            lines[place] = json.dumps(spoil(json.loads(lines[place]), rng))
            text = "\n".join(lines)
        else:
            value = json.loads(originals[path])
            if path.name == "results.json":
                value["mmed"] = spoil(value["mmed"], rng)
            else:
                value = spoil(value, rng)
            text = json.dumps(value)
        text = text[:rng.randrange(len(text))] if rng.random() < 0.1 else text
        path.write_text(text, encoding="utf-8")
        try:
            report.main([str(good), "--runs", str(run), "--corpus", str(corpus), "--out", str(tmp_path / "r.html")])
            assert_no_active_content((tmp_path / "r.html").read_text(encoding="utf-8"))
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 1500
        path.write_text(originals[path], encoding="utf-8")
    assert refusals > 20


@pytest.mark.parametrize("change", [
    lambda row: row.pop("key"), lambda row: row.update(language=3), lambda row: row.update(mode="other"), lambda row: row.update(mode=["answer"]),
    lambda row: row.update(gold=""), lambda row: row.update(correct=1), lambda row: row.update(doc=None), lambda row: row["doc"].pop("extra"),
    lambda row: row["doc"].update(options={"A": 1}), lambda row: row["doc"].update(options={}), lambda row: row["doc"].update(human_check_passed="yes"),
    lambda row: row.update(parsed=None), lambda row: row.pop("official_match" if row["mode"] == "answer" else "scores" if row["mode"] == "rationale" else "logprobs"),
    lambda row: row.update(scores={"BLEU-1": "x"}), lambda row: row.update(scores={"BLEU-1": 10 ** 400}), lambda row: row.update(scores={"BLEU-1": float("nan")}),
    lambda row: row.update(scores={"BLEU-1": True}),
])
def test_a_row_of_another_kind_is_refused_by_its_line_whoever_reads_it(tmp_path, rng, change):
    folder = make_result(tmp_path / "r", make_items(rng, 2, ("English",)), rng)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert list(load_results(folder)[1]) == rows
    place = rng.randrange(len(rows))
    change(rows[place])
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=rf"predictions\.jsonl:{place + 1}: not a row of") as caught:
        list(load_results(folder)[1])
    assert "\n" not in str(caught.value)


def test_a_row_that_stands_twice_is_refused(tmp_path, rng):
    folder = make_result(tmp_path / "r", make_items(rng, 2, ("English",)), rng)
    text = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(text + text.splitlines()[3] + "\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl:7: item .* occurs twice"):
        list(load_results(folder)[1])


def test_a_log_cut_by_a_kill_is_read_to_its_last_whole_line(tmp_path):
    folder = make_run(tmp_path / "run", 10)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"step": 11, "tokens": 1100, "loss": NaN, "tokens_per_second": 1.0}\n{"step": 12, "tok')
    run = read_run(str(folder))
    assert len(run.loss) == 10 and run.validation == {"English": [(1000, 2.5)], "Japanese": [(1000, 2.75)]}
    assert run.remarks == ["the log is whole up to line 11", "1 losses that are not finite numbers are not drawn"]
    assert "no such" in refused_run(tmp_path / "absent")


def refused_run(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_run(str(folder))
    return str(caught.value)


def test_published_rows_are_the_means_of_their_cells_but_for_the_known_slips():
    known = {("accuracy", "GPT-4", 74.27): 1.04, ("accuracy", "GPT-3.5", 51.47): 0.02}
    for metric, rows in (("accuracy", 35), ("BLEU-1", 30), ("ROUGE-1", 30)):
        assert len(published(metric)) == rows
        for row in published(metric):
            gap = abs(sum(row.cells.values()) / 6 - row.average)
            assert gap < known.get((metric, row.name, row.average), 0.01) + 0.006, (metric, row)


def test_published_english_rows_are_the_means_of_their_cells_but_for_the_known_slip():
    rows = published_english()
    assert len(rows) == 12 and all(set(row.cells) <= set(ENGLISH_SOURCES) for row in rows)
    wrong = {row.name for row in rows if len(row.cells) == 9 and abs(sum(row.cells.values()) / 9 - row.average) > 0.0051}
    assert wrong == {"Mistral 7B"} and [row.name for row in rows if len(row.cells) < 9] == ["PMC-LLaMA 13B"]


def test_several_sources_of_a_language_have_a_table_with_their_mean_beside_the_papers(tmp_path, rng):
    items = make_items(rng, 27, ["English"])
    for number, item in enumerate(items):
        name = ENGLISH_SOURCES[number % 9]
        item.extra["source"], _, subject = name.partition(" ")
        if subject:
            item.extra["subject"] = subject
    result = read_result(str(make_result(tmp_path / "a", items, rng)))
    table = next(table for table in tables([result], with_published=True) if table.title == "Accuracy, answer only, by source")
    assert table.columns == [*ENGLISH_SOURCES, "Mean of sources"] and table.main and table.sizes == [3] * 9 + [None]
    (_, (own,)), (heading, published_rows) = table.groups
    assert heading == "As published, setting not stated" and len(published_rows) == 12
    hits = {}
    for line in (tmp_path / "a" / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["mode"] == "answer":
            extra = row["doc"]["extra"]
            hits.setdefault(f"mmlu {extra['subject']}" if extra["source"] == "mmlu" else extra["source"], []).append(row["correct"])
    assert [cell.value for cell in own.cells[:-1]] == pytest.approx([100 * sum(hits[name]) / 3 for name in ENGLISH_SOURCES])
    assert own.cells[-1].value == pytest.approx(sum(cell.value for cell in own.cells[:-1]) / 9)
    assert [cell and cell.value for cell in published_rows[-1].cells] == [65.4, 63.5, 80.1, 71.3, 85.0, 69.6, 77.6, 74.3, 66.5, 72.59]
    assert published_rows[5].cells[3:] == [None] * 7  # PMC-LLaMA 13B
    assert not any("by source" in table.title for table in tables([read_result(str(make_result(tmp_path / "b", make_items(rng), rng)))]))


def test_a_radar_has_a_point_for_every_value_where_it_belongs():
    drawing = plots.radar(["a", "b", "c", "<d>"], [(0, "one", [100, 0, 50, 25])], [25, 25, 25, 25], "x")
    points = re.search(r'<polygon points="([^"]*)" class="curve ring c0"', drawing)[1].split()
    assert points == ["180.0,32.0", "180.0,128.0", "180.0,176.0", "156.0,128.0"] and "&lt;d&gt;" in drawing and "<d>" not in drawing


def test_tables_of_rationales_show_the_published_rows_folded(tmp_path, rng):
    folder = make_result(tmp_path / "a", make_items(rng), rng, words="official")
    report.main([str(folder), "--published", "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<summary>BLEU-1 of rationales, with the published rows</summary>") == 1
    before, _, after = page.partition("<h3>BLEU-1 of rationales, %</h3>")
    shown = after.partition("</table>")[0]
    assert "published" not in shown and before.count("MMed-Llama 3.1 70B") == 1


def make_study(path: Path, **changes) -> Path:
    models, names = ["base", "base + corpus"], ["BLEU-1", "judge"]
    value = {"format": "mmed agreement", "version": 1, "models": models, "languages": ["French"], "items": {"French": 50},
             "people": {"agreement": {}, "one_against_others": {"tau": 0.7, "raters": 5}},
             "measures": [{"name": name, "kind": "metric", "definition": "nltk-method1", "tau": tau, "low": tau - 0.1, "high": tau + 0.1, "slope": 1.5}
                          for name, tau in zip(names, (0.5, 0.25))],
             "points": [{"model": model, "language": "French", "items": 50, "people": 1.25 + i, "values": [1.0 + i, 2.0 - i]} for i, model in enumerate(models)]}
    write_json(path, value | changes)
    return path


def test_the_study_of_agreement_has_a_dot_for_each_metric_and_model(tmp_path, rng):
    folder, study = make_result(tmp_path / "a", make_items(rng), rng), make_study(tmp_path / "agreement.json")
    report.main([str(folder), "--agreement", str(study), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert_no_active_content(page)
    part = page.partition('<section id="agreement">')[2].partition("</section>")[0]
    assert "BLEU-1 (nltk-method1): 0.500 [0.400 to 0.600]" in part
    assert part.count("<circle") == 2 + 2 * 2 and "base + corpus, French: people 2.25, BLEU-1 2.00 (50 items)" in part and "0.700" in part
    assert 'href="#agreement"' in page


@pytest.mark.parametrize("changes", [
    {"format": "x"}, {"models": None}, {"measures": []}, {"points": [{}]}, {"items": {"French": -1}}, {"people": 3},
    {"points": [{"model": "x", "language": "French", "items": 1, "people": 1, "values": [1, 1]}]},
    {"points": [{"model": "base", "language": "French", "items": 1, "people": 1, "values": [1]}]},
    {"measures": [{"name": "a", "kind": "b", "definition": "c", "tau": 7, "low": 0, "high": 0, "slope": 0}]}])
def test_a_damaged_study_is_refused_in_one_line(tmp_path, rng, changes):
    folder = make_result(tmp_path / "a", make_items(rng, 2), rng, modes=("answer",))
    assert "not a study of" in refused(folder, "--agreement", make_study(tmp_path / "x.json", **changes), "--out", tmp_path / "page.html")


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, mmed.reporting.report\ntry: mmed.reporting.report.main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_submission_tables_agree_with_the_page(tmp_path, rng):
    folder = make_result(tmp_path / "a", make_items(rng, 7), rng)
    result = read_result(str(folder))
    table = next(table for table in tables([result]) if table.title == "Accuracy, answer only")
    header, values = list(csv.reader(io.StringIO((folder / "accuracy_metric.csv").read_text())))
    assert header == table.columns[:-1]
    assert [f"{cell.value:.2f}" for cell in table.groups[0][1][0].cells[:-1]] == values
