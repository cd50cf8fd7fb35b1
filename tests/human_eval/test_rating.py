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
from mmed.human_eval.rating import main, merge
from mmed.human_eval.rating_data import Case, read_cases, read_object, read_texts, write_ratings
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, write_json

SEED = int(os.environ.get("MMED_TEST_SEED", "0"))
MODELS = ["alpha", "beta", "gamma", "delta"]
LANGUAGES = ["English", "French"]


def make_results(folder: Path, models=MODELS, per_language: int = 6, checked=None, **settings) -> list[str]:
    """NAME=FOLDER arguments; every model changes some words of the references."""
    items = make_items(random.Random(SEED), per_language, LANGUAGES, checked)

    def results_of(number: int, model: str) -> str:
        rng = random.Random(f"{SEED} {model}")

        def changed(item):
            words = item.rationale.split()
            return " ".join(word if rng.random() < 0.6 else rng.choice(words) for word in words)

        settings_of = {"rationale_of": changed, "modes": ("answer", "rationale")} | settings
        return f"{model}={make_result(folder / str(number), items, rng, **settings_of)}"

    return [results_of(number, model) for number, model in enumerate(models)]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[str]:
    return make_results(tmp_path_factory.mktemp("results"))


def hostile_results(folder: Path) -> list[str]:
    rng = random.Random(SEED)
    return make_results(folder, ["<b>m0</b>", "m1", "m2", "m3"], len(HOSTILE),
                        rationale_of=lambda item: rng.choice(HOSTILE))


def make_case(rng: random.Random, texts: list[str] | None = None) -> Case:
    texts = texts or ["".join(rng.choices("abc \n>:-ABCD\"", k=60)) for _ in MODELS]
    return Case(f"k{rng.randrange(10 ** 9)}", "English", "What?", {"A": "x", "B": "y"}, "A", "because",
                dict(zip(MODELS, texts)))


# ---- cases -------------------------------------------------------------------------------------------------

def test_the_seed_fixes_the_items_and_the_order_of_the_texts(tmp_path, results):
    models, cases = read_cases(results, items=3, seed=5)
    assert models == MODELS and [case.language for case in cases] == ["English"] * 3 + ["French"] * 3
    again = read_cases(list(reversed(results)), items=3, seed=5)[1]
    assert [(case.key, case.letters(5), case.digest) for case in cases] \
        == [(case.key, case.letters(5), case.digest) for case in again]
    drawn = {tuple(sorted(case.key for case in read_cases(results, 3, seed)[1])) for seed in range(10)}
    assert len(drawn) > 1
    for name in "ab":
        main(["sheet", *results, "--items", "4", "--seed", "3", "--out", str(tmp_path / name)])
    assert (tmp_path / "a" / "key.json").read_bytes() == (tmp_path / "b" / "key.json").read_bytes()
    for case in cases:
        assert sorted(case.letters(0).values()) == sorted(MODELS) and list(case.letters(0)) == list("ABCD")


def test_where_people_checked_references_only_those_that_passed_are_rated(tmp_path):
    items = make_items(random.Random(SEED), 4, LANGUAGES, None)
    items = [replace(item, human_check_passed=item.language == "French" and "0" in item.question)
             for item in items]
    folders = [str(make_result(tmp_path / name, items, random.Random(SEED))) for name in "ab"]
    languages = [case.language for case in read_cases(folders, items=0)[1]]
    assert languages == ["English"] * 4 + ["French"]


@pytest.mark.parametrize(("arguments", "message"), [
    (lambda r, other: r[:1], "1 results; a ranking needs 2 to 26"),
    (lambda r, other: [r[0], r[0]], "duplicate row 'alpha"),
    (lambda r, other: [r[0], other], "exam items differ")])
def test_results_that_cannot_be_ranked_are_rejected(tmp_path, results, arguments, message):
    other = make_results(tmp_path, ["other"], data="e" * 64)[0]
    with pytest.raises(UserError, match=message):
        read_cases(arguments(results, other))


# ---- sheets ------------------------------------------------------------------------------------------------

def test_a_sheet_is_blind_and_inert(tmp_path):
    folders = hostile_results(tmp_path)
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


needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
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


def dump(page: Path, folder: Path) -> Page:
    """What a real browser makes of a page."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
               "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    return Page(subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout)


@needs_chromium
def test_a_ranking_made_with_the_keyboard_is_saved_and_merged(tmp_path, results):
    main(["sheet", *results, "--items", "2", "--out", str(tmp_path)])
    page = (tmp_path / "English.html").read_text(encoding="utf-8")
    driven = re.sub(r"<meta http-equiv=[^>]*>", "", page).replace("</body>", DRIVER)  # lets the driver in
    (tmp_path / "driven.html").write_text(driven, encoding="utf-8")
    elements = dump(tmp_path / "driven.html", tmp_path / "profile").elements
    body = next(attributes for tag, attributes in elements if tag == "body")
    assert body["data-rejected"] == "Enter your name first." and body["data-state"] == "saved, complete"
    first, second = (item["key"] for item in json.loads(Page(page).texts["data"])["items"])
    saved = json.loads(body["data-saved"])
    assert saved["scores"] == {first: {"B": 4, "C": 3, "A": 2, "D": 1},
                               second: {"A": 4, "B": 3, "D": 2, "C": 1}}
    write_json(tmp_path / "ana.json", saved)
    main(["merge", str(tmp_path / "key.json"), str(tmp_path / "ana.json"), "--out", str(tmp_path / "p.json")])
    letters = read_json(tmp_path / "key.json")["sheets"]["English"]["items"][first]["letters"]
    assert read_object(tmp_path / "p.json")["cases"]["English"][first]["scores"][letters["B"]] == 4


# ---- merge -------------------------------------------------------------------------------------------------

@pytest.fixture
def key(tmp_path, results) -> dict:
    main(["sheet", *results, "--items", "3", "--out", str(tmp_path / "sheets")])
    return read_object(tmp_path / "sheets" / "key.json", "mmed rating key")


def rating_file(path: Path, key: dict, language: str, rater: str, rng: random.Random) -> dict:
    sheet = key["sheets"][language]
    scores = {item: dict(zip(entry["letters"], rng.sample(range(1, 5), 4)))
              for item, entry in sheet["items"].items()}
    value = {"format": "mmed sheet ratings", "version": 1, "sheet": sheet["sheet"], "language": language,
             "rater": rater, "scores": scores}
    write_json(path, value)
    return value


def test_merging_takes_the_mean_of_the_raters_under_the_models_names(tmp_path, key):
    rng, given = random.Random(SEED), {}
    for language, rater in (("English", "Ana"), ("English", "Ben"), ("French", "Ana")):
        path = tmp_path / f"{language}-{rater}.json"
        given[path] = rating_file(path, key, language, rater, rng)["scores"]
    key_file = str(tmp_path / "sheets" / "key.json")
    main(["merge", key_file, *map(str, given), "--out", str(tmp_path / "p.json")])
    with pytest.raises(UserError, match=r"a second file by Ana for the English sheet"):
        merge(key, [next(iter(given)), next(iter(given))])
    people = read_object(tmp_path / "p.json")
    ana, ben, _ = given.values()
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
    (lambda v, i: v["scores"].pop(i), "item {i}: not ranked; open the file in its page"),
    (lambda v, i: v["scores"][i].pop("C"), "item {i}: expected each of the scores 1 to 4 once"),
    (lambda v, i: v["scores"][i].update(C=True), "item {i}: expected each of the scores"),
    (lambda v, i: v["scores"][i].update(A=2, B=2), "item {i}: expected each of the scores"),
    (lambda v, i: v.update(scores=3), "damaged"),
    (lambda v, i: v.update(sheet="0" * 64), "does not match this key"),
    (lambda v, i: v.update(rater=" "), "the rater gave no name"),
    (lambda v, i: v.update(format="x"), "not a file of format 'mmed sheet ratings'")])
def test_a_faulty_rating_file_is_rejected_with_file_and_item(tmp_path, key, change, message):
    value = rating_file(tmp_path / "r.json", key, "English", "Ana", random.Random(SEED))
    item = list(value["scores"])[1]
    change(value, item)
    write_json(tmp_path / "r.json", value)
    with pytest.raises(UserError) as error:
        merge(key, [tmp_path / "r.json"])
    assert "r.json: " in str(error.value) and message.format(i=item) in str(error.value)


# ---- agreement among raters --------------------------------------------------------------------------------

def test_krippendorffs_alpha_equals_his_own_example():
    """Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: four observers, missing values."""
    table = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .",
             "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[int(value) for value in unit if value != "."] for unit in zip(*(row.split() for row in table))]
    assert round(krippendorff_alpha(units), 3) == 0.815
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]])) and math.isnan(krippendorff_alpha([[1], [2]]))


# ---- the judge ---------------------------------------------------------------------------------------------

def test_the_judges_prompt_is_blind_and_a_text_stays_in_its_string():
    rng = random.Random(SEED)
    for _ in range(40):
        case = make_case(rng, rng.sample(HOSTILE, 4))
        letters = case.letters(SEED)
        system, user = (message["content"] for message in build_prompt(case, letters))
        assert not any(model in system + user for model in MODELS)
        for letter, text in json.loads(user)["explanations"].items():
            assert text == UNPRINTABLE.sub("", case.texts[letters[letter]]).replace("\ud800", "\\ud800")


@pytest.mark.parametrize(("reply", "ranking"), [
    ("RANKING: B > A > D > C", "BADC"),
    ("Reasons: A says RANKING: A > B > C > D.\n\n**RANKING: C > B > A > D**\n", "CBAD"),
    ("> RANKING:  A >  B > C >D  ", "ABCD"),
    ("**RANKING**: **B** > **A** > C > D.", "BACD"),
    ("```\nRANKING: B > A > D > C\n```", "BADC"),
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


def test_the_judge_ranks_every_item_and_is_asked_again_without_a_ranking(tmp_path, results, monkeypatch):
    """The judge ranks by the length of the texts, and never answers for the first item."""
    cases = read_cases(results, items=2)[1]
    asked = []

    def ask(server, bodies, store, labels, on_done):
        replies = []
        for body in bodies:
            asked.append(body["messages"][1]["content"])
            content = json.JSONDecoder().raw_decode(asked[-1])[0]
            texts = content["explanations"]
            order = sorted(texts, key=lambda letter: (-len(texts[letter]), letter))
            text = "A text says\nRANKING: A > B" if content["question"] == cases[0].question else (
                "RANKING: " + " > ".join(order))
            replies.append({"text": text, "finish_reason": "stop", "model": "m"})
        return replies

    monkeypatch.setattr(api_client, "ask", ask)
    out = tmp_path / "judge.json"
    main(["judge", *results, "--items", "2", "--api", "m", "--base-url", "http://localhost/v1",
          "--out", str(out)])
    judged = read_object(out)
    facts = judged["replies"]
    assert (facts["unreadable_replies"], facts["calls"], len(asked)) == (3, 6, 6)
    assert ["An earlier reply (number" in text for text in asked] == [False] * 4 + [True] * 2
    assert [(failed["item"], len(failed["reasons"])) for failed in facts["failed"]] == [(cases[0].key, 3)]
    assert sum(facts["mean_by_place"].values()) == pytest.approx(10)
    for case in cases[1:]:
        lengths = {letter: len(case.texts[model]) for letter, model in case.letters(0).items()}
        longest = min(lengths, key=lambda letter: (-lengths[letter], letter))
        assert judged["cases"][case.language][case.key]["scores"][case.letters(0)[longest]] == 4


# ---- agreement with people ---------------------------------------------------------------------------------

def ratings_of(cases: list[Case], rng: random.Random, raters: int = 2, **by) -> dict:
    found: dict[str, dict] = {}
    for case in cases:
        given = {f"r{n}": {model: float(points) for model, points in zip(MODELS, rng.sample(range(1, 5), 4))}
                 for n in range(raters)}
        mean = {model: metrics.mean(scores[model] for scores in given.values()) for model in MODELS}
        part = found.setdefault(case.language, {})
        part[case.key] = {"digest": case.digest, "scores": mean, "raters": given}
    return {"by": {"kind": "people"} | by, "models": MODELS, "cases": found}


@pytest.fixture(scope="module")
def studied(results) -> tuple[dict, dict, list[Case], dict]:
    rng = random.Random(SEED)
    models, cases = read_cases(results, items=4)
    people = ratings_of(cases, rng)
    judge = ratings_of(cases[1:], rng, 1, kind="judge", model="judge <b>x</b>")
    return people, judge, cases, study(people, models, read_texts(results)[1], [judge])


def test_tau_and_slope_equal_scipy(studied, results):
    stats = pytest.importorskip("scipy.stats")
    people, judge, cases, value = studied
    found = read_texts(results)[1]
    for row in value["measures"]:
        xs, ys = [], []
        for language in LANGUAGES:
            x, y = [], []
            for case in (case for case in cases[1:] if case.language == language):  # those that the judge has
                if row["name"].startswith("judge"):
                    y.append([judge["cases"][language][case.key]["scores"][model] for model in MODELS])
                else:
                    start = f"{row['name']}|{row['definition']}|"
                    scores = [next(score for name, score in found[language, case.key][model]["scores"].items()
                                   if name.startswith(start)) for model in MODELS]
                    y.append(stats.rankdata(scores))
                x.append([people["cases"][language][case.key]["scores"][model] for model in MODELS])
            xs += np.mean(x, axis=0).tolist()
            ys += np.mean(y, axis=0).tolist()
        tau = stats.kendalltau(np.round(xs, 9), np.round(ys, 9)).statistic
        assert row["tau"] == pytest.approx(tau, abs=1e-12), f"seed {SEED}"
        assert row["slope"] == pytest.approx(stats.linregress(xs, ys).slope, abs=1e-9)
        assert row["points"] == 8 and -1 <= row["low"] <= row["high"] <= 1
    taus = [row["tau"] for row in value["measures"]]
    assert len(taus) == 11 and taus == sorted(taus, reverse=True)
    assert value["notes"] == ["a judge did not rank 1 of the 8 items; they are left out"]


def test_a_metric_that_is_missing_or_mixed_is_left_out_with_a_note(results):
    models, cases = read_cases(results, items=2)
    found = read_texts(results)[1]
    scores = found[cases[0].language, cases[0].key]["alpha"]["scores"]
    changed = {name.replace("tok:", "tok:other-") if name.startswith("BLEU-1") else name: value
               for name, value in scores.items()} | {"BERTScore|f1|tok:x|v1": 0.5}
    found[cases[0].language, cases[0].key]["alpha"]["scores"] = changed
    value = study(ratings_of(cases, random.Random(SEED)), models, found)
    assert not {"BERTScore", "BLEU-1"} & {row["name"] for row in value["measures"]}
    assert [note.partition("|")[0] for note in value["notes"]] == ["BERTScore", "BLEU-1"]


@pytest.mark.parametrize(("change", "count", "message"), [
    (lambda cases: None, 2, "rates alpha, beta, gamma, delta, but the results are alpha, beta; give NAME"),
    (lambda cases: next(iter(cases.values())).update(digest="0"), 4, "the texts in the results"),
    (lambda cases: cases.update(elsewhere={}), 4, "item elsewhere: missing from at least one")])
def test_ratings_of_other_models_texts_or_items_are_rejected(results, change, count, message):
    models, cases = read_cases(results, items=2)
    people = ratings_of(cases, random.Random(SEED))
    change(people["cases"]["English"])
    with pytest.raises(UserError, match=message):
        study(people, models[:count], read_texts(results)[1])


def test_ratings_by_people_are_no_judges(results):
    models, cases = read_cases(results, items=2)
    people = ratings_of(cases, random.Random(SEED))
    with pytest.raises(UserError, match="ratings by people, expected those by judge"):
        study(people, models, read_texts(results)[1], [people])


def test_the_agreement_command_writes_page_and_data(tmp_path, results, capsys):
    rng = random.Random(SEED)
    models, cases = read_cases(results, items=3)
    for name, kind in (("people", {}), ("judge", {"kind": "judge", "model": "j", "version": 1})):
        value = ratings_of(cases, rng, **kind)
        write_ratings(tmp_path / f"{name}.json", value["by"], models, value["cases"])
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


def test_damaged_ratings_and_a_negative_number_of_items_are_errors(results, tmp_path):
    write_json(tmp_path / "people.json",
               {"format": "mmed ratings", "version": 1, "models": MODELS, "cases": []})
    with pytest.raises(UserError, match=r"people\.json: damaged"):
        main(["agreement", str(tmp_path / "people.json"), *results, "--out", str(tmp_path)])
    with pytest.raises(UsageError):
        main(["sheet", *results, "--out", str(tmp_path), "--items", "-1"])
