"""The report: the numbers of results.json, one definition per column, hostile text stays text, one error line
per bad file.
"""
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmed import metrics
from mmed.evaluation.published import ENGLISH_SOURCES, LANGUAGES
from mmed.evaluation.results import loglikelihood_row, text_row, write_results
from mmed.prompts import ExamItem, item_key
from mmed.reporting import plots, report
from mmed.reporting.read_results import differences, read_predictions, read_result, read_run
from mmed.reporting.tables import summary_table, tables
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import write_json

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)",
    "<svg onload=alert(1)><a href='http://evil.example/'>x</a></svg>",
    "\x1b[31mred\x1b[0m\x07", "=HYPERLINK(\"http://evil.example\",\"x\")", "\u202ereversed\u2066",
    "</script><script>alert(1)</script><!--", "{{body}} {{csp}}",
    "' onmouseover='alert(1)", "\u2028\u2029\x00\ud800", "]]>&lt;b&gt;&#0;",
]


def make_items(rng: random.Random, per_language: int = 6, languages=LANGUAGES) -> list[ExamItem]:
    items = []
    for language in languages:
        for number in range(per_language):
            options = {letter: f"option {letter} {rng.random():.6f}"
                       for letter in "ABCDE"[:rng.choice([2, 4, 5])]}
            answer = tuple(sorted(rng.sample(list(options), 1 if rng.random() < 0.7 else 2)))
            question = f"{language} question {number}?"
            items.append(ExamItem(question, options, answer, "because of this and that", language,
                                  item_key(language, question, options),
                                  True, True, {"topic": rng.choice(["Surgery", "Anatomy"])}))
    return items


def make_result(folder: Path, items: list[ExamItem], rng: random.Random, skill: float = 0.5,
                modes=("answer", "rationale", "loglikelihood"),
                data: str = "d" * 64, write=str, **settings) -> Path:
    """A result folder as mmed.eval leaves it, of a model that is right with probability `skill`; `write`
    spoils its texts.
    """
    rows, prompts = [], {}
    for item in items:
        for mode in modes:
            letters = ",".join(item.answer) if rng.random() < skill else rng.choice(list(item.options))
            if mode == "loglikelihood":
                candidates = [*item.options, *([",".join(item.answer)] if len(item.answer) > 1 else [])]
                rows.append(loglikelihood_row(item, "0" * 16, candidates, [-rng.random() for _ in candidates],
                                              [1] * len(candidates)))
            else:
                text = f"###Answer: OPTION {letters} IS CORRECT." if rng.random() < 0.8 else "no idea"
                rows.append(text_row(item, mode, "0" * 16,
                                     write("###Rationale: because of that " if mode == "rationale"
                                           else "") + text, "default"))
            prompts[item.key, mode] = "prompt"
    own = {"setting": "zero-shot", "adapter": None, "shots": 0, "words": "default", "model": "models/x",
           "limit": 0} | settings
    write_results(folder, rows, prompts, {"model": "m" * 64, "data": data, "versions": "results 1"}, own)
    return folder


def make_run(folder: Path, steps: int = 30, **more) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"recipe": "tiny", "config": {"task": "pretrain", "seed": 1},
                                     "steps": steps, "world_size": 1, "device": "cpu"} | more)
    lines = [{"step": i, "tokens": 100 * i, "loss": 5.0 - i / 10, "lr": 1e-3, "grad_norm": 1.0,
              "tokens_per_second": 1000.0} for i in range(1, steps + 1)]
    lines[-1]["validation_loss"] = {"English": 2.5, "Japanese": 2.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_corpus(folder: Path) -> Path:
    for language, kept in (("en", 40), ("ja", 25)):
        (folder / "filter" / language).mkdir(parents=True)
        write_json(folder / "filter" / language / "funnel.json", {
            "step": "filter_medical", "shards": 1, "documents": {"in": 100, "out": kept},
            "characters": {"in": 900, "out": 300},
            "dropped": {"too few medical words": {"documents": 100 - kept, "characters": 600,
                                                  "examples": ["a"]}}, "details": {}})
    (folder / "all.bin").write_bytes(b"12")
    write_json(folder / "all.json", {"format": 1, "tokens": 777, "documents": 65, "tokenizer": "f" * 64,
                                     "counts": {"en": {"web": {"tokens": 700, "documents": 60}},
                                                "ja": {"book": {"tokens": 77, "documents": 5}}}})
    return folder


def make_study(path: Path) -> Path:
    models = ["base", "base + corpus"]
    measures = [{"name": name, "kind": "metric", "definition": "nltk-method1", "tau": tau, "low": tau - 0.1,
                 "high": tau + 0.1,
                 "slope": 1.5, "within_items": 0.3, "first_share": 0.5, "points": 2, "paper": None}
                for name, tau in (("BLEU-1", 0.5), ("judge", 0.25))]
    points = [{"model": model, "language": "French", "items": 50, "people": 1.25 + i,
               "values": [1.0 + i, 2.0 - i]}
              for i, model in enumerate(models)]
    write_json(path, {"format": "mmed agreement", "version": 1, "models": models, "languages": ["French"],
                      "items": {"French": 50},
                      "people": {"agreement": {}, "one_against_others": {"tau": 0.7, "raters": 5}},
                      "measures": measures,
                      "points": points, "notes": []})
    return path


class Page(HTMLParser):
    """Elements with their attributes, and texts by section, as a browser finds them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.section = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("section", "script") or not self.section:
            self.section = dict(attributes).get("id", tag)

    def handle_data(self, data):
        if data.strip():
            self.texts[self.section] = f"{self.texts.get(self.section, '')} {' '.join(data.split())}".strip()


def make_page(path: Path, *arguments: object) -> Page:
    report.main([*map(str, arguments), "--out", str(path)])
    return Page(path.read_text(encoding="utf-8"))


def assert_inert(page: Page) -> None:
    """Nothing is loaded, no script but our own, no handler and no link that leaves the page."""
    assert [tag for tag, _ in page.elements].count("script") <= 1
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "form", "base", "link", "audio", "video",
                           "foreignobject", "image")
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcdoc", "action", "formaction"), (tag,
                                                                                                         name)
            assert name not in ("href", "xlink:href") or value.startswith("#"), value
    policies = [one["content"] for _, one in page.elements
                if one.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(10 ** 9)
    print(f"seed {seed}")  # pytest shows it where a test fails
    return random.Random(seed)


def test_the_numbers_of_the_tables_are_those_of_results_json(tmp_path, rng, capsys):
    items = make_items(rng)
    folders = [make_result(tmp_path / name, items, rng, skill) for name, skill in (("a", 0.2), ("b", 0.9))]
    page = make_page(tmp_path / "r.html", *folders)
    printed, shown = capsys.readouterr().out, page.texts["results"]
    for folder in folders:
        summary = json.loads((folder / "results.json").read_text())["mmed"]["summary"]
        for part in [*summary["languages"].values(), summary["macro"]]:
            for column in ("answer", "rationale", "loglikelihood", "official"):
                assert f"{100 * part['accuracy'][column]['value']:.1f}" in shown
            assert f"{100 * part['accuracy']['answer']['value']:.1f} [" in printed
            assert f"{100 * part['text']['BLEU-1|nltk-method1']['value']:.2f}" in shown
            assert f"{100 * part['chance']:.1f}" in printed


def test_the_best_of_a_column_and_scores_near_chance_are_marked(tmp_path, rng):
    items = make_items(rng, 30, ("English", "Japanese"))
    results = [read_result(str(make_result(tmp_path / name, items, rng, skill, modes=("answer",))))
               for name, skill in (("poor", 0.0), ("good", 1.0))]
    table = next(table for table in tables(results) if table.title == "Accuracy, answer only")
    poor, good = table.groups[0][1]
    for result, row in zip(results, (poor, good)):
        for cell, part in zip(row.cells, [*result.summary["languages"].values(), result.summary["macro"]]):
            assert cell.at_chance == (cell.low <= 100 * part["chance"] <= cell.high)
    for one, other in zip(poor.cells, good.cells):
        assert one.best == (one.value >= other.value) and other.best == (other.value >= one.value)


def test_a_metric_of_any_sign_and_size_is_shown(tmp_path, rng):
    folder = make_result(tmp_path / "a", make_items(rng, 2, ("English",)), rng)
    value = json.loads((folder / "results.json").read_text())
    summary = value["mmed"]["summary"]
    for part in (*summary["languages"].values(), summary["macro"], summary["micro"]):
        part["text"]["BERTScore|f1"] = {"value": -7.25, "low": -900.0, "high": None, "n": 2}
    write_json(folder / "results.json", value)
    assert "−725.00" in make_page(tmp_path / "r.html", folder).texts["results"]


def test_published_numbers_share_a_table_only_with_their_own_definition(tmp_path, rng, capsys):
    items = make_items(rng)
    folders = {words: make_result(tmp_path / words, items, rng, words=words)
               for words in ("default", "official")}
    own = json.loads((folders["official"] / "results.json").read_text())
    for part in (*own["mmed"]["summary"]["languages"].values(), own["mmed"]["summary"]["macro"],
                 own["mmed"]["summary"]["micro"]):
        part["text"] = {name.replace("rouge-score-f1", "rouge-f1"): score for name,
                        score in part["text"].items()}
    write_json(folders["official"] / "results.json", own)
    for words, folder in folders.items():
        found = tables([read_result(str(folder))], with_published=True)
        joined = {table.title for table in found
                  if {row.kind for _, rows in table.groups for row in rows} >= {"ours", "published"}}
        texts = {"BLEU-1 of rationales", "ROUGE-1 of rationales"} if words == "official" else set()
        assert joined == {"Accuracy, official scorer"} | texts
        alone = {table.title for table in found if table.title.startswith("Published")}
        assert alone == (set() if words == "official" else {"Published BLEU-1", "Published ROUGE-1"})
    table = next(one for one in tables([read_result(str(folder))], True)
                 if one.title == "Accuracy, official scorer")
    row = next(row for _, rows in table.groups for row in rows if row.name == "MMedLM 2 7B")
    assert [cell.value for cell in row.cells] == [58.13, 70.43, 54.27, 38.26, 71.88, 64.95, 59.65]


def test_results_with_different_signatures_get_different_tables_and_no_test(tmp_path, rng):
    items = make_items(rng, 3)
    results = [read_result(str(make_result(tmp_path / name, items, rng))) for name in "ab"]
    results[1].summary["signatures"]["answer"] += "|equal-options:either"
    results[1].summary["signatures"]["BLEU-1|nltk-method1"]["English"] += "|other"
    read_predictions(results, 0)
    titles = [table.title for table in tables(results)]
    assert titles.count("Accuracy, answer only") == 2 and titles.count("BLEU-1 of rationales") == 2
    assert titles.count("Accuracy, official scorer") == 1
    assert report.comparisons(results)[0] == [] and "b" in report.comparisons(results)[1][0]


def test_a_language_without_a_score_keeps_its_column_and_is_named(tmp_path, rng):
    result = read_result(str(make_result(tmp_path / "a", make_items(rng, 2, ("English", "German")), rng)))
    result.summary["languages"]["German"]["text"] = {}
    table = next(table for table in tables([result]) if table.title == "BLEU-1 of rationales")
    assert table.columns == ["English", "German", "Macro average"] and table.groups[0][1][0].cells[1] is None
    assert "No rationale was scored in German" in table.note


def test_each_p_value_tests_the_difference_beside_it(tmp_path, rng):
    items = make_items(rng, 40, ("English", "French"))
    results = [read_result(str(make_result(tmp_path / name, items, rng, skill))) for name,
               skill in (("a", 0.3), ("b", 0.6))]
    read_predictions(results, 0)
    lines = {line.group: line for line in differences(*results)}
    assert list(lines) == ["English", "French", "Macro average", "All questions"]
    for group, line in lines.items():
        chosen = [key for key in results[0].hits if group not in ("English", "French") or key[0] == group]
        a, b = ([result.hits[key] for key in chosen] for result in reversed(results))
        assert line.difference == pytest.approx((sum(a) - sum(b)) / len(a))
        if group == "Macro average":
            gap = metrics.paired_bootstrap(a, b, 0, [language for language, _ in chosen])
            assert (line.test, line.p, line.low) == ("bootstrap", gap.p, gap.low)
        else:
            assert (line.test, line.p) == ("McNemar", metrics.mcnemar(a, b))


def test_several_sources_have_a_table_with_their_mean(tmp_path, rng):
    items = make_items(rng, 27, ["English"])
    for number, item in enumerate(items):
        item.extra["source"], _, subject = ENGLISH_SOURCES[number % 9].partition(" ")
        item.extra["subject"] = subject
    result = read_result(str(make_result(tmp_path / "a", items, rng)))
    found = {table.title: table for table in tables([result], with_published=True)}
    table = found["Accuracy, answer only, by source"]
    assert table.columns == [*ENGLISH_SOURCES, "Mean of sources"] and table.sizes == [3] * 9 + [None]
    (_, (own,)), = table.groups
    assert own.cells[-1].value == pytest.approx(sum(cell.value for cell in own.cells[:-1]) / 9)
    rows = found["Published accuracy on the English benchmarks"].groups[0][1]
    assert [cell and cell.value for cell in rows[-1].cells] == [65.4, 63.5, 80.1, 71.3, 85.0, 69.6, 77.6,
                                                                74.3, 66.5, 72.59]
    assert rows[5].cells[3:] == [None] * 7  # PMC-LLaMA 13B


def test_all_inputs_make_one_reproducible_page(tmp_path, rng):
    folder = make_result(tmp_path / "a", make_items(rng, 3), rng)
    run, corpus = make_run(tmp_path / "run"), make_corpus(tmp_path / "corpus")
    arguments = (folder, "--runs", run, "--corpus", corpus, "--agreement",
                 make_study(tmp_path / "agreement.json"), "--published")
    page = make_page(tmp_path / "1.html", *arguments)
    make_page(tmp_path / "2.html", *arguments)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert_inert(page)
    for section, words in (("corpus", "200 documents in, 65 kept"), ("corpus", "too few medical words 135"),
                           ("corpus", "777 tokens in 65 documents"),
                           ("training", "last loss 2.000"), ("training", "not finished"),
                           ("agreement", "0.400 to 0.600"),
                           ("agreement", "0.700"), ("results", "67.30"), ("results", "75.31"),
                           ("html", "not medical advice")):
        assert words in page.texts[section], words


def test_one_result_alone_makes_a_page(tmp_path, rng):
    folder = make_result(tmp_path / "only", make_items(rng, 3, ("French",)), rng, modes=("loglikelihood",))
    page = make_page(tmp_path / "r.html", folder, "--questions", "0")
    assert_inert(page)
    assert not {"training", "corpus", "questions", "differences"} & set(page.texts)
    assert "answer only" not in page.texts["results"]  # log-likelihood is never shown as a written answer


def test_hostile_text_everywhere_is_only_text(tmp_path, rng, capsys):
    items = []
    for number, bad in enumerate(HOSTILE * 2):
        options = {"A": bad, "B": bad + "!", "C": f"{bad}{number}"}
        items.append(ExamItem(f"{bad} {number}", options, ("B",), bad, ("English", "Japanese")[number % 2],
                              f"{number}{bad}", True, True,
                              {"topic": bad, "meta": bad}))
    items.append(ExamItem("x" * 2 ** 20, {"A": "y" * 2 ** 20, "B": "z"}, ("A",), "w" * 2 ** 20, "English",
                          "big", True, True, {}))
    spoil = iter(HOSTILE * 20)
    folder = make_result(tmp_path / "a", items, rng, write=lambda text: text + next(spoil), model=HOSTILE[0],
                         adapter=HOSTILE[1])
    run = make_run(tmp_path / "run", recipe=HOSTILE[0], device=HOSTILE[1], commit=HOSTILE[2])
    with open(run / "metrics.jsonl", "a") as log:
        log.write(json.dumps({"step": 31, "tokens": 3100, "loss": 2.0, "tokens_per_second": 5,
                              "validation_loss": dict.fromkeys(HOSTILE, 1.0)}) + "\n")
    corpus = make_corpus(tmp_path / "corpus")
    dropped = {bad: {"documents": 1} for bad in HOSTILE if "\ud800" not in bad}
    write_json(corpus / "funnel.json", {"step": HOSTILE[0], "documents": {"in": 5, "out": 1},
                                        "dropped": dropped})
    page = make_page(tmp_path / "r.html", f"{HOSTILE[1]}={folder}", "--runs", f"{HOSTILE[7]}={run}",
                     "--corpus", corpus,
                     "--title", HOSTILE[0], "--notice", HOSTILE[7])
    assert_inert(page)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(text) < 2 ** 20 and "more characters]" in text  # four texts of a megabyte were truncated
    # shown as it is
    assert f"{HOSTILE[0]} 0" in page.texts["questions"] and HOSTILE[1] in page.texts["results"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
                         text + capsys.readouterr().out)


def test_the_first_questions_are_shown_with_all_answers(tmp_path, rng):
    items = make_items(rng, 9)
    folders = [make_result(tmp_path / name, items, rng) for name in ("a", "b")]
    page = make_page(tmp_path / "r.html", *folders, "--questions", "4")
    shown = [one["data-language"] for tag, one in page.elements if "data-language" in one]
    assert shown == [language for language in LANGUAGES for _ in range(4)]
    assert "24 of 54" in page.texts["questions"]
    results = [read_result(str(folder)) for folder in folders]
    for question in read_predictions(results, 4):
        assert [len(answers) for answers in question["answers"]] == [3, 3]
        for result, right, answers in zip(results, question["right"], question["answers"]):
            assert answers[0]["right"] == right == result.hits[question["language"], question["key"]]


def test_settings_and_names_come_from_the_command_line_or_the_result(tmp_path, rng):
    items = make_items(rng, 2)
    plain, tuned = make_result(tmp_path / "plain", items, rng), make_result(tmp_path / "tuned", items, rng,
                                                                            setting="finetuned")
    lora = make_result(tmp_path / "lora", items, rng, setting="finetuned", adapter="adapters/x")
    found = [read_result(text) for text in (str(plain), str(tuned), str(lora), f"base={plain}",
                                            f"full:base: 2={plain}")]
    assert [(one.name, one.setting) for one in found] == [("plain", "zero-shot"), ("tuned", "full"),
                                                          ("lora", "lora"),
                                                          ("base", "zero-shot"), ("base: 2", "full")]
    printed = summary_table(found[:3])
    assert printed.index("Zero-shot") < printed.index("LoRA fine-tuning") < printed.index("Full fine-tuning")


def test_bad_input_gives_one_line_and_no_page(tmp_path, rng):
    items = make_items(rng, 3)
    good, empty = make_result(tmp_path / "good", items, rng), tmp_path / "empty"
    empty.mkdir()
    damaged = make_result(tmp_path / "damaged", items, rng)
    value = json.loads((damaged / "results.json").read_text())
    value["mmed"]["summary"]["macro"]["accuracy"]["answer"]["value"] = "high"
    write_json(damaged / "results.json", value)
    for arguments, words, kind in (
            ([good, good], "second row 'good'", UsageError), ([f"fulll:base={good}"], "fulll", UsageError),
            ([good, make_result(tmp_path / "b", items, rng, data="e" * 64)], "other exam items", UserError),
            ([good, make_result(tmp_path / "c", items[:-1], rng)], "other exam items", UserError),
            ([tmp_path / "absent"], "no such folder", UserError), ([empty], "results.json", UserError),
            ([damaged], "results.json: damaged", UserError),
            ([good, "--corpus", empty], "no funnel.json", UserError),
            ([good, "--runs", tmp_path / "absent"], "no such folder", UserError),
            ([], "nothing to report", UsageError),
            ([good, "--agreement", good / "results.json"], "not a study", UserError)):
        with pytest.raises(kind, match=re.escape(words)) as caught:
            report.main([*map(str, arguments), "--out", str(tmp_path / "r.html")])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.html").exists()
    done = subprocess.run([sys.executable, "-m", "mmed.reporting", str(empty), "--out",
                           str(tmp_path / "r.html")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_missing_extra_is_named(tmp_path, rng, monkeypatch):
    folder = make_result(tmp_path / "a", make_items(rng, 2), rng)
    for package in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=re.escape("mmed[report]")):
            report.main([str(folder), "--out", str(tmp_path / "r.html")])
        monkeypatch.undo()


def test_a_rising_validation_loss_is_marked(tmp_path):
    run = make_run(tmp_path / "run", 5)
    first = {"step": 0, "tokens": 0, "validation_loss": {"English": 2.25, "Japanese": 3.0}}
    (run / "metrics.jsonl").write_text(json.dumps(first) + "\n" + (run / "metrics.jsonl").read_text())
    page = make_page(tmp_path / "r.html", "--runs", run)
    assert "English 2.250 2.500 +0.250 ROSE Japanese 3.000 2.750 −0.250" in page.texts["training"]


def test_a_log_with_a_torn_last_line_is_read_to_its_last_complete_line(tmp_path):
    folder = make_run(tmp_path / "run", 10)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"step": 11, "tokens": 1100, "loss": NaN, "tokens_per_second": 1.0}\n{"step": 12, "tok')
    run = read_run(str(folder))
    assert len(run.loss) == 10 and run.validation == {"English": [(1000, 2.5)], "Japanese": [(1000, 2.75)]}
    assert run.notes == ["the log is complete up to line 11",
                         "1 losses that are not finite numbers are not drawn"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of a training log"):
        read_run(str(folder))


def test_names_in_plots_are_escaped_and_not_read_as_formulas():
    svg = plots.bars([("<d> $x$ 模型", 25.0, [("#2a78d6", 50.0, 40.0, 60.0)])], 'a "label"')
    assert "&lt;d&gt; $x$ 模型" in svg and "<d>" not in svg and 'aria-label="a &#34;label&#34;"' in svg


def test_help_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, mmed.reporting.report\ntry: mmed.reporting.report.main(['--help'])\nexcept SystemExit: "
        "pass\n"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
