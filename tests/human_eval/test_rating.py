"""mmed/human_eval: sheets for raters, merging, the judge, agreement and its page."""
from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from result_folders import HOSTILE, UNPRINTABLE, Page, assert_inert, make_items, make_result

from mmed import metrics
from mmed.evaluation import api_client
from mmed.human_eval.agreement import PAPER, krippendorff_alpha, study
from mmed.human_eval.judge import build_prompt, parse_ranking
from mmed.human_eval.rating import main
from mmed.human_eval.rating_data import Case, draw_cases, read_cases, read_object, write_ratings
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json

SEED = int(os.environ.get("MMED_TEST_SEED", "0"))
MODELS = ["alpha", "beta", "gamma", "delta"]
LANGUAGES = ["English", "French"]


def make_results(folder: Path, models=MODELS, per_language: int = 6, **settings) -> list[str]:
    """NAME=FOLDER arguments; every model changes some words of the references."""
    items = make_items(random.Random(SEED), per_language, LANGUAGES, None)

    def results_of(model: str) -> str:
        rng = random.Random(f"{SEED} {model}")

        def changed(item):
            words = item.rationale.split()
            return " ".join(word if rng.random() < 0.6 else rng.choice(words) for word in words)

        settings_of = {"rationale_of": changed, "modes": ("answer", "rationale")} | settings
        return f"{model}={make_result(folder / str(models.index(model)), items, rng, **settings_of)}"

    return [results_of(model) for model in models]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[str]:
    return make_results(tmp_path_factory.mktemp("results"))


def drawn(results: list[str], items: int, seed: int = 0) -> list[Case]:
    return draw_cases(read_cases(results)[1].values(), items, seed)


def test_the_seed_fixes_the_items_and_the_order_of_the_texts(tmp_path, results):
    cases = drawn(results, 3, 5)
    assert [case.language for case in cases] == ["English"] * 3 + ["French"] * 3
    assert [(case.key, case.letters(5), case.digest) for case in cases] \
        == [(case.key, case.letters(5), case.digest) for case in drawn(results[::-1], 3, 5)]
    assert len({tuple(sorted(case.key for case in drawn(results, 3, seed))) for seed in range(10)}) > 1
    for name in "ab":
        main(["sheet", *results, "--items", "4", "--seed", "3", "--out", str(tmp_path / name)])
    assert (tmp_path / "a" / "key.json").read_bytes() == (tmp_path / "b" / "key.json").read_bytes()
    for case in cases:
        assert sorted(case.letters(0).values()) == sorted(MODELS) and list(case.letters(0)) == list("ABCD")


def test_where_people_checked_references_only_those_that_passed_are_rated(tmp_path):
    items = [replace(item, human_check_passed=item.language == "French" and "0" in item.question)
             for item in make_items(random.Random(SEED), 4, LANGUAGES, None)]
    folders = [str(make_result(tmp_path / name, items, random.Random(SEED))) for name in "ab"]
    assert [case.language for case in drawn(folders, 0)] == ["English"] * 4 + ["French"]


@pytest.mark.parametrize(("arguments", "message"), [
    (lambda r, other: r[:1], "a ranking needs 2 to 26"),
    (lambda r, other: [r[0], f"lora:{r[0]}"], "different names"),
    (lambda r, other: [r[0], other], "exam items differ")])
def test_results_that_cannot_be_ranked_are_rejected(tmp_path, results, arguments, message):
    other = make_results(tmp_path, ["other"], data="e" * 64)[0]
    with pytest.raises(UserError, match=message):
        read_cases(arguments(results, other))


def test_a_sheet_is_blind_and_inert(tmp_path):
    rng = random.Random(SEED)
    folders = make_results(tmp_path, ["<b>m0</b>", "m1", "m2", "m3"], len(HOSTILE),
                           rationale_of=lambda item: rng.choice(HOSTILE))
    main(["sheet", *folders, "--items", "0", "--out", str(tmp_path / "sheets")])
    for language in LANGUAGES:
        page = Page((tmp_path / "sheets" / f"{language}.html").read_text(encoding="utf-8"))
        assert_inert(page)
        scripts = [attributes for tag, attributes in page.elements if tag == "script"]
        assert scripts == [{"type": "application/json", "id": "data"}, {}] and "<" not in page.texts["data"]
        assert not re.search(r"\bm[0-3]\b", page.source), "a sheet must not name a model"
        items = json.loads(page.texts["data"])["items"]
        texts = {text for item in items for _, text in item["texts"]}
        assert len(items) == len(HOSTILE) and any("<script>" in text for text in texts)
        assert not any(UNPRINTABLE.search(text) for text in texts)
    assert read_json(tmp_path / "sheets" / "key.json")["models"][0] == "<b>m0</b>"
    with pytest.raises(UserError, match=r"key\.json: already exists"):
        main(["sheet", *folders, "--out", str(tmp_path / "sheets")])


DRIVER = """<script>
const press = (key, more) =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, ...more}));
URL.createObjectURL = blob => { blob.text().then(text => { document.body.dataset.saved = text; }); };
HTMLAnchorElement.prototype.click = () => {};  // a download would leave the page
press("s", {ctrlKey: true});
document.body.dataset.rejected = document.getElementById("state").textContent;
document.getElementById("rater").value = "Ana <b>Ω</b>";
press("d"); press("a"); press("x"); press("a"); press("Backspace");
press("в", {code: "KeyB"}); press("C"); press("a");
press("Enter"); press("ArrowLeft"); press("ArrowRight");
for (const key of "abd") press(key);
press("s", {ctrlKey: true});
document.body.dataset.state = document.getElementById("state").textContent;
</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_ranking_made_with_the_keyboard_is_saved_and_merged(tmp_path, results):
    main(["sheet", *results, "--items", "2", "--out", str(tmp_path)])
    page = (tmp_path / "English.html").read_text(encoding="utf-8")
    driven = re.sub(r"<meta http-equiv=[^>]*>", "", page).replace("</body>", DRIVER)  # lets the driver in
    (tmp_path / "driven.html").write_text(driven, encoding="utf-8")
    dump = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "driven.html").as_uri()],
        capture_output=True, text=True, timeout=100, check=True)
    body = next(attributes for tag, attributes in Page(dump.stdout).elements if tag == "body")
    assert body["data-rejected"] == "Enter your name first." and body["data-state"] == "saved, complete"
    first, second = (item["key"] for item in json.loads(Page(page).texts["data"])["items"])
    saved = json.loads(body["data-saved"])
    assert saved["scores"] == {first: {"B": 4, "C": 3, "A": 2, "D": 1},
                               second: {"A": 4, "B": 3, "D": 2, "C": 1}}
    write_json(tmp_path / "ana.json", saved)
    main(["merge", str(tmp_path / "key.json"), str(tmp_path / "ana.json"), "--out", str(tmp_path / "p.json")])
    letters = read_json(tmp_path / "key.json")["sheets"]["English"]["items"][first]["letters"]
    assert read_object(tmp_path / "p.json")["cases"]["English"][first]["scores"][letters["B"]] == 4


@pytest.fixture
def key(tmp_path, results) -> dict:
    main(["sheet", *results, "--items", "3", "--out", str(tmp_path)])
    return read_object(tmp_path / "key.json", "mmed rating key")


def rating_file(folder: Path, key: dict, language: str, rater: str, rng: random.Random) -> dict:
    sheet = key["sheets"][language]
    scores = {item: dict(zip(entry["letters"], rng.sample(range(1, 5), 4)))
              for item, entry in sheet["items"].items()}
    value = {"format": "mmed sheet ratings", "version": 1, "sheet": sheet["sheet"], "language": language,
             "rater": rater, "scores": scores}
    write_json(folder / f"{language}-{rater}.json", value)
    return value


def test_merging_takes_the_mean_of_the_raters_under_the_models_names(tmp_path, key):
    rng = random.Random(SEED)
    ana, ben, _ = (rating_file(tmp_path, key, language, rater, rng)["scores"] for language, rater in
                   (("English", "Ana"), ("English", "Ben"), ("French", "Ana")))
    paths = list(map(str, sorted(tmp_path.glob("*-*.json"))))
    main(["merge", str(tmp_path / "key.json"), *paths, "--out", str(tmp_path / "p.json")])
    with pytest.raises(UserError, match=r"a second file by Ana for the English sheet"):
        main(["merge", str(tmp_path / "key.json"), paths[0], paths[0], "--out", str(tmp_path / "p.json")])
    people = read_object(tmp_path / "p.json")
    for item, entry in key["sheets"]["English"]["items"].items():
        for letter, model in entry["letters"].items():
            wanted = (ana[item][letter] + ben[item][letter]) / 2
            assert people["cases"]["English"][item]["scores"][model] == wanted
    french = people["cases"]["French"]
    assert people["average"]["beta"]["French"] == pytest.approx(
        sum(case["scores"]["beta"] for case in french.values()) / 3)
    assert people["agreement"]["French"]["krippendorff_alpha"] is None
    assert people["agreement"]["English"]["raters"] == ["Ana", "Ben"]
    assert people["by"] == {"kind": "people", "raters": ["Ana", "Ben"]}


@pytest.mark.parametrize(("change", "message"), [
    (lambda v, i: v["scores"].pop(i), "item {i}: expected each of the scores 1 to 4 once"),
    (lambda v, i: v["scores"][i].pop("C"), "item {i}: expected each of the scores 1 to 4 once"),
    (lambda v, i: v["scores"].update({i: dict(zip("ABCD", (2, 3, True, 4)))}),
     "item {i}: expected each of the scores"),
    (lambda v, i: v["scores"][i].update(A=2, B=2), "item {i}: expected each of the scores"),
    (lambda v, i: v.update(scores=3), "damaged"),
    (lambda v, i: v.update(sheet="0" * 64), "does not match this key"),
    (lambda v, i: v.update(rater=" "), "the rater gave no name"),
    (lambda v, i: v.update(format="x"), "not a file of format 'mmed sheet ratings'")])
def test_a_faulty_rating_file_is_rejected_with_file_and_item(tmp_path, key, change, message):
    value = rating_file(tmp_path, key, "English", "Ana", random.Random(SEED))
    item = list(value["scores"])[1]
    change(value, item)
    path = tmp_path / "r.json"
    write_json(path, value)
    with pytest.raises(UserError) as error:
        main(["merge", str(tmp_path / "key.json"), str(path), "--out", str(tmp_path / "p.json")])
    assert "r.json: " in str(error.value) and message.format(i=item) in str(error.value)


def test_krippendorffs_alpha_equals_his_own_example():
    """Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: four observers, missing values."""
    table = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .",
             "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[int(value) for value in unit if value != "."] for unit in zip(*(row.split() for row in table))]
    assert round(krippendorff_alpha(units), 3) == 0.815
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]])) and math.isnan(krippendorff_alpha([[1], [2]]))


def test_the_judges_prompt_is_blind_and_a_text_stays_in_its_string():
    rng = random.Random(SEED)
    for number in range(40):
        case = Case(f"k{number}", "English", "What?", {"A": "x", "B": "y"}, "A", "because", False,
                    dict(zip(MODELS, rng.sample(HOSTILE, 4))), {})
        letters = case.letters(SEED)
        system, user = (message["content"] for message in build_prompt(case, letters))
        assert not any(model in system + user for model in MODELS)
        for letter, text in json.loads(user)["explanations"].items():
            assert text == UNPRINTABLE.sub("", case.texts[letters[letter]]).replace("\ud800", "\\ud800")


@pytest.mark.parametrize(("reply", "ranking"), [
    ("RANKING: B > A > D > C", "BADC"),
    ("Reasons: A says RANKING: A > B > C > D.\n\n**RANKING: C > B > A > D**\n", "CBAD"),
    ("> RANKING:  A >  B > C >D  ", "ABCD"),
    ("**RANKING**: **B** > **A** > C > D.", "BACD"), ("A is vague.\n**RANKING: B > A > C > D**", "BACD"),
    ("```\nRANKING: B > A > D > C\n```", "BADC"),
    ("<think>RANKING: A > B > C > D\n</think>RANKING: B > A > D > C", "BADC"),
    ("<think>It may be this:\nRANKING: A > B > C > D", None),
    ('```json\n{"ranking": ["B", "A", "C", "D"]}\n```', None),
    ("RANKING: A = B > C > D", None),
    ("RANKING: A > B > C", None),
    ("RANKING: A > B > C > C", None),
    ("RANKING: A, B, C, D", None),
    ("RANKING: A > B > C > D because A is best", None),
    ("RANKING: A > B > C > D\nA is best.", None),
    ("The ranking is RANKING: A > B > C > D", None),
    ("", None)])
def test_only_a_permutation_of_the_letters_in_the_last_line_is_read(reply, ranking):
    if ranking is None:
        with pytest.raises(ValueError):
            parse_ranking(reply, "ABCD")
    else:
        assert parse_ranking(reply, "ABCD") == list(ranking)


def test_the_judge_ranks_every_item_and_one_without_a_ranking_is_left_out(tmp_path, results, monkeypatch):
    """The judge ranks by the length of the texts, and gives no ranking for the first item."""
    first, *others, last = drawn(results, 2)

    def ask(server, bodies, store, labels):
        replies = []
        for body in bodies:
            content = json.loads(body["messages"][1]["content"])
            texts = content["explanations"]
            order = sorted(texts, key=lambda letter: (-len(texts[letter]), letter))
            ranked = order[:2] if content["question"] == first.question else order
            replies.append({"text": f"RANKING: {' > '.join(ranked)}", "finish_reason": "stop", "model": "m"})
        replies[-1] |= {"text": "", "error": "400: filtered"}
        return replies

    monkeypatch.setattr(api_client, "ask", ask)
    main(["judge", *results, "--items", "2", "--api", "m", "--base-url", "http://localhost/v1",
          "--out", str(tmp_path / "judge.json")])
    judged = read_object(tmp_path / "judge.json")
    assert [failed["item"] for failed in judged["failed"]] == [first.key, last.key]
    assert judged["failed"][1]["reason"] == "400: filtered" and judged["usage"]["calls"] == 4
    assert first.key not in judged["cases"]["English"]
    for case in others:
        lengths = {letter: len(case.texts[model]) for letter, model in case.letters(0).items()}
        longest = min(lengths, key=lambda letter: (-lengths[letter], letter))
        assert judged["cases"][case.language][case.key]["scores"][case.letters(0)[longest]] == 4


def ratings_of(cases: list[Case], raters: int = 2, **by) -> dict:
    rng = random.Random(f"{SEED} {by}")
    found: dict[str, dict] = {}
    for case in cases:
        given = {f"r{n}": {model: float(points) for model, points in zip(MODELS, rng.sample(range(1, 5), 4))}
                 for n in range(raters)}
        mean = {model: metrics.mean(scores[model] for scores in given.values()) for model in MODELS}
        part = found.setdefault(case.language, {})
        part[case.key] = {"digest": case.digest, "scores": mean, "raters": given}
    return {"by": {"kind": "people"} | by, "models": MODELS, "cases": found}


def test_tau_and_slope_equal_scipy(results):
    stats = pytest.importorskip("scipy.stats")
    cases = drawn(results, 4)
    people, judge = ratings_of(cases), ratings_of(cases[1:], 1, kind="judge", model="judge <b>x</b>")
    value = study(people, *read_cases(results), [judge])

    def given(ratings: dict, case: Case) -> list[float]:
        return [ratings["cases"][case.language][case.key]["scores"][model] for model in MODELS]

    def ranks(case: Case, row: dict) -> list[float]:
        if row["name"].startswith("judge"):
            return given(judge, case)
        start = f"{row['name']}|{row['definition']}|"
        return stats.rankdata([next(score for name, score in case.scores[model].items()
                                    if name.startswith(start)) for model in MODELS])

    parts = [[case for case in cases[1:] if case.language == language] for language in LANGUAGES]
    xs = np.concatenate([np.mean([given(people, case) for case in part], axis=0) for part in parts]).round(9)
    for row in value["measures"]:
        ys = np.concatenate([np.mean([ranks(case, row) for case in part], axis=0) for part in parts]).round(9)
        tau = stats.kendalltau(xs, ys).statistic
        assert row["tau"] == pytest.approx(tau, abs=1e-12), f"seed {SEED}"
        assert row["slope"] == pytest.approx(stats.linregress(xs, ys).slope, abs=1e-9)
        assert row["points"] == 8 and math.isnan(row["low"]) and math.isnan(row["high"])  # of three items
    for row in study(ratings_of(drawn(results, 0)), *read_cases(results))["measures"]:
        assert -1 <= row["low"] < row["high"] <= 1
    taus = [row["tau"] for row in value["measures"]]
    assert len(taus) == 11 and taus == sorted(taus, reverse=True)
    assert value["notes"] == ["a judge did not rank 1 of the 8 items; they are left out"]


def test_a_metric_that_is_missing_or_mixed_is_left_out_with_a_note(results):
    models, found = read_cases(results)
    cases = draw_cases(found.values(), 2, 0)
    scores = cases[0].scores["alpha"]
    bleu = next(name for name in scores if name.startswith("BLEU-1"))
    scores |= {bleu.replace("tok:", "tok:other-"): scores.pop(bleu), "BERTScore|f1|tok:x|v1": 0.5}
    value = study(ratings_of(cases), models, found)
    assert not {"BERTScore", "BLEU-1"} & {row["name"] for row in value["measures"]}
    assert [note.partition("|")[0] for note in value["notes"]] == ["BERTScore", "BLEU-1"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda v, english: v["models"].remove("beta"), "results alpha, beta, gamma, delta; give NAME=FOLDER"),
    (lambda v, english: v["by"].update(kind="judge"), "ratings by judge of .* expected ratings by people"),
    (lambda v, english: next(iter(english.values())).update(digest="0"), "the texts in the results"),
    (lambda v, english: english.update(elsewhere={}), "item elsewhere: the texts in the results")])
def test_ratings_of_other_models_texts_or_items_are_rejected(results, change, message):
    people = ratings_of(drawn(results, 2)) | {"models": list(MODELS)}
    change(people, people["cases"]["English"])
    with pytest.raises(UserError, match=message):
        study(people, *read_cases(results))


def test_ratings_by_people_are_no_judges(results):
    people = ratings_of(drawn(results, 2))
    with pytest.raises(UserError, match=r"ratings by people of .* expected ratings by judge"):
        study(people, *read_cases(results), [people])


def test_the_agreement_command_writes_page_and_data(tmp_path, results, capsys):
    for name, by in (("people", {}), ("judge", {"kind": "judge", "model": "j", "version": 1})):
        value = ratings_of(drawn(results, 3), **by)
        write_ratings(tmp_path / f"{name}.json", value["by"], MODELS, value["cases"])
    for out in "ab":
        main(["agreement", str(tmp_path / "people.json"), *results, "--judge", str(tmp_path / "judge.json"),
              "--out", str(tmp_path / out)])
    assert "paper's tau, slope" in capsys.readouterr().out
    for name in ("agreement.json", "agreement.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    value = read_json(tmp_path / "a" / "agreement.json")
    assert (tmp_path / "a" / "agreement.html").read_text().count("<figure>") == len(value["measures"])
    assert value["format"] == "mmed agreement" and len(value["points"]) == 8
    assert len(value["points"][0]["values"]) == len(value["measures"])
    paper = {row["name"]: row["paper"] for row in value["measures"]}
    assert tuple(paper["BLEU-1"].values()) == PAPER["BLEU-1"] and tuple(paper["j"].values()) == PAPER["judge"]
    write_json(tmp_path / "people.json", read_json(tmp_path / "people.json") | {"cases": []})
    with pytest.raises(UserError, match=r"people\.json: damaged"):
        main(["agreement", str(tmp_path / "people.json"), *results, "--out", str(tmp_path)])
    with pytest.raises(UsageError):
        main(["sheet", *results, "--out", str(tmp_path), "--items", "-1"])
