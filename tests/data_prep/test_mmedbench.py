"""The benchmark converter: every source's form in small files made here, and the real files where they are at hand."""
import hashlib
import json
import random
import stat
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep import mmedbench
from data_prep.benchmark.counts import PAPER, format_table
from data_prep.benchmark.mmedbench_sources import Raw, lettered, letters_in, option_texts, split_of
from data_prep.benchmark.release import checked_members, read_mmedbench
from mmed.prompts import read_benchmark
from mmed.utils.errors import UsageError, UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real exam files are not here")


def write(path: Path, value) -> Path:
    """A str as it is, a list as JSONL when the name says so, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


def run(out: Path, *options: str) -> dict[str, list[dict]]:
    """Run the command and read all it wrote."""
    assert mmedbench.main([*map(str, options), "--out", str(out)]) == 0
    return read_back(out)


def read_back(out: Path) -> dict[str, list[dict]]:
    return {p.relative_to(out).as_posix(): [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()]
            for p in sorted(out.rglob("*.jsonl"))}


def refused(*options: str) -> str:
    """The message of a command that must fail with a UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        mmedbench.main([*map(str, options)])
    message = str(caught.value)
    assert "\n" not in message
    return message


def medqa_item(question: str, right: str = "B", options: int = 4) -> dict:
    texts = {letter: f"{question} {letter}" for letter in "ABCDE"[:options]}
    return {"question": question, "answer": texts[right], "options": texts, "meta_info": "step1", "answer_idx": right,
            "metamap_phrases": ["pain"]}


def igakuqa_item(number: int, year: str = "117", **changes) -> dict:
    return {"problem_id": f"{year}A{number}", "problem_text": f"問題{number}はどれか。", "choices": [f"選択肢{number}{c}" for c in "あいうえお"],
            "text_only": number % 4 != 0, "answer": ["abcde"[number % 5]], "points": "1"} | changes


def french_item(number: int, **changes) -> dict:
    return {"id": hashlib.sha256(str(number).encode()).hexdigest(), "question": f"Parmi les propositions {number} ?", "answers": {c: f"réponse {number}{c}" for c in "abcde"},
            "correct_answers": ["a", "d"], "subject_name": "pharmacie", "type": "multiple", "nbr_correct_answers": 2} | changes


def headqa_file(language: str, exams: dict) -> dict:
    return {"version": "1.0", "language": language, "exams": {
        name: {"name": name, "year": "2013", "category": "medicine", "data": data} for name, data in exams.items()}}


def headqa_item(qid: int, ra: str = "2", options: int = 5, image: str = "", words: str = "pregunta") -> dict:
    return {"qid": str(qid), "qtext": f"{words} {qid}:", "ra": ra, "image": image,
            "answers": [{"aid": i + 1, "atext": f"{words} {qid} opción {i + 1}"} for i in range(options)]}


# --- one source after another -----------------------------------------------------------------------------------------------------

def test_medqa_takes_the_four_option_us_files_and_leaves_the_rest(tmp_path):
    questions = tmp_path / "data_clean" / "questions"
    write(questions / "US" / "4_options" / "phrases_no_exclude_train.jsonl", [medqa_item("q1"), medqa_item("q2", "D")])
    write(questions / "US" / "4_options" / "phrases_no_exclude_dev.jsonl", [medqa_item("q3")])
    write(questions / "US" / "4_options" / "phrases_no_exclude_test.jsonl", [medqa_item("q4", "A")])
    write(questions / "US" / "test.jsonl", [medqa_item("q4", "E", options=5)])
    write(questions / "US" / "US_qbank.jsonl", [medqa_item("q9")])
    write(questions / "Mainland" / "4_options" / "test.jsonl", [medqa_item("下列哪项")])
    got = run(tmp_path / "out", "--source", f"medqa={tmp_path / 'data_clean'}")
    assert [item["answer_idx"] for item in got["Train/English.jsonl"]] == ["B", "D"]
    assert len(got["Val/English.jsonl"]) == 1 and got["dropped.jsonl"] == []
    (item,) = got["Test/English.jsonl"]
    assert item == {"question": "q4", "options": {c: f"q4 {c}" for c in "ABCD"}, "answer_idx": "A", "rationale": "", "human_checked": False,
                    "human_check_passed": False, "id": item["id"], "source": "medqa", "licence": "MIT", "answer": "q4 A",
                    "meta_info": "step1", "metamap_phrases": ["pain"]}
    chinese = run(tmp_path / "zh", "--source", f"mcmle={tmp_path / 'data_clean'}")
    assert list(chinese) == ["Test/Chinese.jsonl", "dropped.jsonl"] and chinese["Test/Chinese.jsonl"][0]["source"] == "mcmle"


def test_a_part_of_medqa_in_another_language_is_refused(tmp_path):
    write(tmp_path / "in" / "test.jsonl", [medqa_item("下列哪项正确")])
    assert "mcmle: Mainland" in refused("--source", f"medqa={tmp_path / 'in'}", "--out", tmp_path / "out")


def test_igakuqa_flags_image_questions_drops_those_without_choices_and_names_the_year(tmp_path):
    items = [igakuqa_item(i) for i in range(1, 41)]
    items[4] = igakuqa_item(5, choices=[], answer=["26"])
    items[6] = igakuqa_item(7, answer=["a", "c", "e"])
    items[7] = igakuqa_item(8, answer=["a or d"])
    write(tmp_path / "data" / "2023" / "117-A.jsonl", items)
    write(tmp_path / "data" / "2023" / "117-A_metadata.jsonl", [{"problem_id": "117A7", "category": "皮膚科"}])
    write(tmp_path / "data" / "2023" / "117-A_translate.jsonl", [igakuqa_item(1)])
    got = run(tmp_path / "out", "--source", f"igakuqa={tmp_path / 'data'}")
    everything = {item["id"]: item for name, lines in got.items() if "/" in name for item in lines}
    assert set(everything) == {f"igakuqa-117A{i}" for i in range(1, 41)} - {"igakuqa-117A5"}
    assert {key for key, item in everything.items() if item["image_dependent"]} == {f"igakuqa-117A{i}" for i in range(4, 41, 4)}
    assert everything["igakuqa-117A7"]["answer_idx"] == "A,C,E" and everything["igakuqa-117A7"]["subject"] == "皮膚科"
    assert everything["igakuqa-117A8"]["answer_idx"] == "A" and everything["igakuqa-117A8"]["answer_alternatives"] == ["A", "D"]
    assert everything["igakuqa-117A9"]["year"] == "2023"
    (lost,) = got["dropped.jsonl"]
    assert lost["reason"] == "no options" and lost["where"].endswith("117-A.jsonl:5")
    # 39 usable: 39 * 199 / 1988 = 3.9 -> 4 in test and in val
    assert {name: len(lines) for name, lines in got.items()} == {
        "Train/Japanese.jsonl": 31, "Val/Japanese.jsonl": 4, "Test/Japanese.jsonl": 4, "dropped.jsonl": 1}


def test_1988_igakuqa_questions_split_as_in_the_paper_and_another_seed_draws_others():
    items = [Raw("igakuqa", "Japanese", None, "f", "w", str(i), {"A": "x", "B": "y"}, ["A"], id=f"igakuqa-{i}") for i in range(1988)]
    draws = {}
    for seed in (0, 0, 1):
        random.shuffle(items)  # the order must not matter
        for item in items:
            item.split = None
        mmedbench.assign_splits("igakuqa", items, seed, None, [])
        assert Counter(item.split for item in items) == PAPER["Japanese"]
        test = {item.id for item in items if item.split == "Test"}
        assert draws.setdefault(seed, test) == test
    assert len(draws[0] & draws[1]) < 60  # by chance 199 * 199 / 1988 = 20


def test_frenchmedmcqa_keeps_all_right_letters_in_order(tmp_path):
    answers = {c: f"{c}?" for c in "acdeb"}  # one published item has its options in this order
    write(tmp_path / "in" / "corpus" / "train.json", [french_item(1), french_item(2, answers=answers, correct_answers=["e", "b"])])
    write(tmp_path / "in" / "corpus" / "test.json", [french_item(3, correct_answers=list("abcde"))])
    got = run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'in'}")
    first, second = got["Train/French.jsonl"]
    assert first["answer_idx"] == "A,D" and first["subject"] == "pharmacie"
    assert second["answer_idx"] == "B,E" and list(second["options"].items()) == [(c, f"{c.lower()}?") for c in "ABCDE"]
    assert got["Test/French.jsonl"][0]["answer_idx"] == "A,B,C,D,E"


def test_rumeddanet_puts_the_context_before_the_question_and_makes_two_choices(tmp_path):
    write(tmp_path / "in" / "train_v1.jsonl", [
        {"context": "Сердце бьётся.", "question": "Бьётся ли сердце?", "answer": "да", "pairID": "aa"},
        {"context": "Сердце бьётся.", "question": "Стоит ли сердце?", "answer": "нет", "pairID": "bb"},
        {"context": "Без ответа.", "question": "Да?", "pairID": "cc"},
        {"context": "Иное.", "question": "Что?", "answer": "может быть", "pairID": "dd"}])
    got = run(tmp_path / "out", "--source", f"rumeddanet={tmp_path / 'in'}")
    assert [(i["question"], i["options"], i["answer_idx"], i["id"]) for i in got["Train/Russian.jsonl"]] == [
        ("Сердце бьётся.\nБьётся ли сердце?", {"A": "Да", "B": "Нет"}, "A", "rumeddanet-aa"),
        ("Сердце бьётся.\nСтоит ли сердце?", {"A": "Да", "B": "Нет"}, "B", "rumeddanet-bb")]
    assert [line["reason"] for line in got["dropped.jsonl"]] == ["no answer", "answer outside the options"]


def test_headqa_reads_nested_exams_of_four_and_five_options_and_flags_images(tmp_path):
    write(tmp_path / "in" / "HEAD" / "train_HEAD.json", headqa_file("es", {"Cuaderno_2013_1_M": [
        headqa_item(1, "5", image="./data/img1.png"), headqa_item(3, "1"), headqa_item(4, "6")]}))
    write(tmp_path / "in" / "HEAD" / "dev_HEAD.json", headqa_file("es", {"Cuaderno_2015_1_M": [headqa_item(1, "4", options=4)]}))
    write(tmp_path / "in" / "HEAD" / "HEAD.json", headqa_file("es", {"Cuaderno_2013_1_M": [headqa_item(1, "5")]}))
    write(tmp_path / "in" / "HEAD_EN" / "train_HEAD_EN.json", headqa_file("en", {"Cuaderno_2013_1_M": [headqa_item(1, "5", words="question")]}))
    got = run(tmp_path / "es", "--source", f"headqa={tmp_path / 'in'}")
    assert [(i["id"], i["answer_idx"], i["image_dependent"], len(i["options"])) for i in got["Train/Spanish.jsonl"]] == [
        ("headqa-es-Cuaderno_2013_1_M-1", "E", True, 5), ("headqa-es-Cuaderno_2013_1_M-3", "A", False, 5)]
    assert got["Val/Spanish.jsonl"][0]["answer_idx"] == "D" and len(got["Val/Spanish.jsonl"][0]["options"]) == 4
    assert [line["reason"] for line in got["dropped.jsonl"]] == ["answer outside the options"]
    english = run(tmp_path / "en", "--source", f"headqa-en={tmp_path / 'in'}")
    assert [i["question"] for i in english["Train/English.jsonl"]] == ["question 1:"]


def test_a_held_out_headqa_question_is_on_the_same_side_in_both_languages(tmp_path):
    for code, folder in (("es", "HEAD"), ("en", "HEAD_EN")):
        write(tmp_path / "in" / folder / f"train_{folder}.json", headqa_file(code, {"E": [headqa_item(i, words=code) for i in range(60)]}))
    sides = {}
    for name, code, language in (("headqa", "es", "Spanish"), ("headqa-en", "en", "English")):
        got = run(tmp_path / code, "--source", f"{name}={tmp_path / 'in'}", "--holdout", "0.5")
        sides[code] = {item["id"].rsplit("-", 1)[1] for item in got[f"Test/{language}.jsonl"]}
    assert sides["es"] == sides["en"] and 10 < len(sides["es"]) < 50


def test_medmcqa_counts_options_from_where_the_file_does_and_refuses_to_guess(tmp_path):
    def item(cop, n):
        return {"id": f"u{n}", "question": f"q{n}", "opa": "a", "opb": "b", "opc": "c", "opd": f"d{n}", "cop": cop, "exp": "because",
                "choice_type": "single", "subject_name": "Anatomy", "topic_name": None}
    write(tmp_path / "one" / "train.json", "".join(json.dumps(item(cop, cop)) + "\n" for cop in (1, 4)))
    write(tmp_path / "zero" / "train.json", "".join(json.dumps(item(cop, cop)) + "\n" for cop in (0, 3, -1)))
    write(tmp_path / "both" / "train.json", json.dumps(item(2, 2)) + "\n")
    for form in ("one", "zero"):
        got = run(tmp_path / f"out-{form}", "--source", f"medmcqa={tmp_path / form}")
        assert [(i["answer_idx"], i["rationale"], i["subject"]) for i in got["Train/English.jsonl"]] == [
            ("A", "because", "Anatomy"), ("D", "because", "Anatomy")]
    assert [line["reason"] for line in got["dropped.jsonl"]] == ["no answer"]  # cop -1: the copy's way to hide test answers
    assert "from 0 or from 1" in refused("--source", f"medmcqa={tmp_path / 'both'}", "--out", tmp_path / "x")


def test_pubmedqa_joins_its_contexts_and_takes_the_test_half_from_its_key_file(tmp_path):
    item = {"QUESTION": "Does it help?", "CONTEXTS": ["We asked.", "We saw."], "LABELS": [], "MESHES": [], "YEAR": "2011",
            "final_decision": "maybe", "LONG_ANSWER": "It may."}
    write(tmp_path / "in" / "ori_pqal.json", {"11": item, "12": item | {"final_decision": "no", "QUESTION": "Else?"}})
    whole = run(tmp_path / "out1", "--source", f"pubmedqa={tmp_path / 'in'}")
    assert [i["answer_idx"] for i in whole["Test/English.jsonl"]] == ["C", "B"]
    write(tmp_path / "in" / "test_ground_truth.json", {"12": "no"})
    got = run(tmp_path / "out2", "--source", f"pubmedqa={tmp_path / 'in'}")
    (train,), (test,) = got["Train/English.jsonl"], got["Test/English.jsonl"]
    assert train["question"] == "We asked.\nWe saw.\nDoes it help?" and train["rationale"] == "It may." and train["year"] == "2011"
    assert train["options"] == {"A": "yes", "B": "no", "C": "maybe"} and test["id"] == "pubmedqa-12"


def test_mmlu_takes_the_six_medical_subjects_from_its_csv_without_header(tmp_path):
    write(tmp_path / "in" / "test" / "anatomy_test.csv", '"Which, of these?",a,b,"c ""x""",d,C\n')
    write(tmp_path / "in" / "test" / "astronomy_test.csv", "Which star?,a,b,c,d,A\n")
    write(tmp_path / "in" / "test" / "more.jsonl", [medqa_item("q") | {"subject": "college_biology"}, medqa_item("r") | {"subject": "virology"}])
    got = run(tmp_path / "out", "--source", f"mmlu={tmp_path / 'in'}")
    assert [(i["question"], i["answer_idx"], i["subject"]) for i in got["Test/English.jsonl"]] == [
        ("Which, of these?", "C", "anatomy"), ("q", "B", "college_biology")]
    assert got["Test/English.jsonl"][0]["options"]["C"] == 'c "x"'


def test_apollo_splits_its_one_option_string_and_reads_the_key_spelt_anwer(tmp_path):
    write(tmp_path / "in" / "cmexam.jsonl", [
        {"question": "药品", "option": "(A) 甲 (B级).\n(B) 乙.\n(C) 丙.\n(D) 丁.", "anwer": "(ACD)", "source": "cmexam"},
        {"question": "跳号", "option": "(A) 甲.\n(C) 丙.", "anwer": "(A)", "source": "cmexam"},
        {"question": "越界", "option": "(A) 甲.\n(B) 丙.", "anwer": "(E)", "source": "cmexam"}])
    got = run(tmp_path / "out", "--source", f"apollo={tmp_path / 'in'}")
    (item,) = got["Test/Chinese.jsonl"]
    assert item["options"] == {"A": "甲 (B级).", "B": "乙.", "C": "丙.", "D": "丁."} and item["answer_idx"] == "A,C,D"
    assert [line["reason"] for line in got["dropped.jsonl"]] == ["option letters skip or exceed Z", "answer outside the options"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
def test_jmmlu_is_read_in_the_encodings_it_is_met_in(tmp_path, encoding):
    text = 'tag,question,optionA,optionB,optionC,optionD,answer\r\nanatomy,"胃は、\r\nどれか",上,下,左,右,D\r\n'
    write(tmp_path / "in" / "JMMLU-Med.csv", "").write_bytes(text.encode(encoding))
    got = run(tmp_path / "out", "--source", f"jmmlu-med={tmp_path / 'in'}")
    (item,) = got["Test/Japanese.jsonl"]
    assert item["question"] == "胃は、\r\nどれか" and item["answer_idx"] == "D" and item["subject"] == "anatomy"


def test_rumedtest_is_refused_because_it_has_no_answers(tmp_path):
    write(tmp_path / "in" / "private_test_v1.jsonl", [{"idx": "a", "question": "?", "1": "x", "2": "y"}])
    assert "without answers" in refused("--source", f"rumedtest={tmp_path / 'in'}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["es", "Spanish", "ESPAÑOL", "spanish"])
def test_the_language_of_a_file_is_named_by_code_or_name(tmp_path, name):
    csv = write(tmp_path / "x.csv", "q,a,b,k\nw,x,y,A\n")
    got = run(tmp_path / "out", "--source", f"custom={csv}", "--language", name, "--map", "question=q,options=a+b,answer=k")
    assert list(got) == ["Test/Spanish.jsonl", "dropped.jsonl"]


def test_a_blank_option_stays_and_is_flagged_but_an_item_without_any_option_text_is_dropped(tmp_path):
    lines = [{"q": "one", "o": {"A": "x", "B": "\u3000", "C": ""}, "k": "B"}, {"q": "two", "o": {"A": " ", "B": ""}, "k": "A"}]
    source = write(tmp_path / "mine.jsonl", lines)
    got = run(tmp_path / "out", "--source", f"custom={source}", "--language", "ja", "--map", "question=q,options=o,answer=k")
    assert [item["blank_options"] for item in got["Test/Japanese.jsonl"]] == [["B", "C"]]
    assert [line["reason"] for line in got["dropped.jsonl"]] == ["no option has a text"]
    assert read_benchmark(tmp_path / "out" / "Test")[0].answer == ("B",)



@pytest.mark.parametrize("kind, answers", [("letter", ["B", "a"]), ("text", ["dos", "uno"]), ("0", [1, "0"]), ("1", ["2", 1])])
def test_any_jsonl_is_read_through_a_mapping_with_answers_of_every_kind(tmp_path, kind, answers):
    write(tmp_path / "mine.jsonl", [{"stem": f"q{i}", "a": "uno", "b": "dos", "c": None, "key": key, "n": i, "text": "Caso."}
                                    for i, key in enumerate(answers)])
    got = run(tmp_path / "out", "--source", f"custom={tmp_path / 'mine.jsonl'}", "--language", "es", "--map",
              f"question=stem,options=a+b+c,answer=key,kind={kind},id=n,context=text")
    assert [(i["question"], i["options"], i["answer_idx"], i["id"]) for i in got["Test/Spanish.jsonl"]] == [
        ("Caso.\nq0", {"A": "uno", "B": "dos"}, "B", "mine-0"), ("Caso.\nq1", {"A": "uno", "B": "dos"}, "A", "mine-1")]


def test_what_is_written_is_read_back_as_a_release_without_a_change(tmp_path):
    write(tmp_path / "in" / "train.json", [french_item(i) for i in range(5)] + [french_item(4)])
    first = run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'in'}")
    again = run(tmp_path / "again", "--source", f"mmedbench={tmp_path / 'out'}")
    assert again == first and first["Train/French.jsonl"][5]["duplicate_of"] == first["Train/French.jsonl"][4]["id"]


# --- counts, splits, repeats ------------------------------------------------------------------------------------------------------

def test_the_table_accounts_for_every_difference_to_the_paper(tmp_path):
    items = [french_item(i) for i in range(30)]
    items += [french_item(90, question=" "), french_item(91, correct_answers=[]), french_item(92, correct_answers=["f"]), french_item(3)]
    write(tmp_path / "in" / "train.json", items)
    for number, options in enumerate(([], ["--holdout", "0.3"], ["--duplicates", "drop"], ["--holdout", "0.3", "--duplicates", "drop"])):
        out = tmp_path / str(number)
        got = run(out, "--source", f"frenchmedmcqa={tmp_path / 'in'}", *options)
        counts = json.loads((out / "counts.json").read_text(encoding="utf-8"))
        rows = {row["split"]: row for row in counts["table"]}
        for split, row in rows.items():
            assert row["items"] == len(got.get(f"{split}/French.jsonl", []))
            assert row["read"] - sum(row["dropped"].values()) - row["moved_out"] + row["moved_in"] == row["items"]
            assert row["paper"] == PAPER["French"][split] and row["why"]
        assert sum(row["items"] for row in rows.values()) + len(got["dropped.jsonl"]) == len(items)
        assert Counter(line["reason"] for line in got["dropped.jsonl"]) == counts["dropped"]
        assert "no val file among those given" in rows["Val"]["why"] and "the MMedBench release has none" not in format_table(counts)


def test_papers_counts_sum_to_its_totals():
    assert sum(counts["Train"] for counts in PAPER.values()) == 45_048 and sum(counts["Test"] for counts in PAPER.values()) == 8_518


def test_holdout_is_fixed_by_the_seed_and_by_nothing_else(tmp_path):
    items = [french_item(i) for i in range(200)]
    def test_ids(name, chosen, seed=0):
        random.shuffle(chosen)
        write(tmp_path / name / "train.json", chosen)
        got = run(tmp_path / f"out-{name}", "--source", f"frenchmedmcqa={tmp_path / name}", "--holdout", "0.25", "--seed", seed)
        return {i["id"] for i in got["Test/French.jsonl"]}
    whole, half, other = test_ids("whole", list(items)), test_ids("half", items[:100]), test_ids("other", list(items), seed=5)
    assert half == whole & {f"frenchmedmcqa-{i['id'][:16]}" for i in items[:100]}  # an item's side does not depend on the others
    assert 25 < len(whole) < 75 and whole != other  # 200 * 0.25 = 50, sd 6


def test_holdout_leaves_an_official_test_set_alone(tmp_path):
    write(tmp_path / "a" / "test.json", [french_item(i) for i in range(20)])
    got = run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'a'}", "--holdout", "0.5")
    assert len(got["Test/French.jsonl"]) == 20 and "Train/French.jsonl" not in got


def test_copies_of_a_question_are_never_held_out_apart(tmp_path):
    items = [french_item(i) for i in range(60)]
    items += [french_item(1000 + i, question=f"  Parmi  les propositions {i} ?", answers=items[i]["answers"]) for i in range(60)]
    write(tmp_path / "in" / "train.json", items)
    got = run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'in'}", "--holdout", "0.5")
    words = {split: {" ".join(i["question"].split()) for i in got[f"{split}/French.jsonl"]} for split in ("Train", "Test")}
    assert not words["Train"] & words["Test"] and len(words["Train"] | words["Test"]) == 60


def test_a_train_question_that_is_also_in_test_is_pointed_out_and_can_be_dropped(tmp_path):
    write(tmp_path / "in" / "train.json", [french_item(1), french_item(2)])
    write(tmp_path / "in" / "test.json", [french_item(2)])
    kept = run(tmp_path / "keep", "--source", f"frenchmedmcqa={tmp_path / 'in'}")
    (test,), (_, copy) = kept["Test/French.jsonl"], kept["Train/French.jsonl"]
    assert "duplicate_of" not in test and copy["duplicate_of"] == test["id"] != copy["id"]
    rows = {r["split"]: r for r in json.loads((tmp_path / "keep" / "counts.json").read_text(encoding="utf-8"))["table"]}
    assert rows["Train"]["also_in_another_split"] == 1 and "also in another split" in rows["Train"]["why"]
    dropped = run(tmp_path / "drop", "--source", f"frenchmedmcqa={tmp_path / 'in'}", "--duplicates", "drop")
    assert len(dropped["Test/French.jsonl"]) == 1 and len(dropped["Train/French.jsonl"]) == 1
    assert dropped["dropped.jsonl"][0]["reason"] == "repeated question"


def test_every_id_is_its_own_even_when_the_source_repeats_one(tmp_path):
    write(tmp_path / "in" / "train.json", [french_item(1), french_item(1, question="autre ?"), french_item(1, question="encore ?")])
    got = run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'in'}")
    assert len({i["id"] for i in got["Train/French.jsonl"]}) == 3


def test_two_runs_write_the_same_bytes(tmp_path):
    write(tmp_path / "in" / "2022" / "116-A.jsonl", [igakuqa_item(i, "116") for i in range(50)])
    write(tmp_path / "in" / "2020" / "114-A.jsonl", [igakuqa_item(i, "114", problem_text=f"別{i}") for i in range(50)])
    for out in ("a", "b"):
        run(tmp_path / out, "--source", f"igakuqa={tmp_path / 'in'}", "--seed", "3")
    a, b = ({p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*.json*")} for out in ("a", "b"))
    assert a == b and len(a) == 5


# --- bad input --------------------------------------------------------------------------------------------------------------------

def test_bad_command_lines_are_said_in_one_line_with_exit_code_2(tmp_path):
    there = write(tmp_path / "train.json", [french_item(1)])
    csv = write(tmp_path / "x.csv", "q,a,b,k\nw,x,y,A\n")
    out = tmp_path / "out"
    for options, said in [
        (["--source", "frenchmcqa=x"], "did you mean 'frenchmedmcqa'"),
        (["--source", "frenchmedmcqa"], "expected NAME=PATH"),
        (["--source", f"frenchmedmcqa={there}", "--source", f"frenchmedmcqa={there}"], "twice"),
        (["--source", f"frenchmedmcqa={tmp_path}"], "lies inside"),
        (["--source", f"frenchmedmcqa={there}", "--holdout", "1.5"], "between 0 and 1"),
        (["--source", f"custom={csv}"], "needs --map"),
        (["--source", f"frenchmedmcqa={there}", "--map", "question=q,options=a+b,answer=k"], "belongs to --source custom"),
        (["--source", f"custom={csv}", "--language", "../es", "--map", "question=q,options=a+b,answer=k"], "--language: unknown language '../es'"),
        (["--source", f"custom={csv}", "--language", "es", "--map", "question=q,options=a+b,anser=k"], "did you mean 'answer'"),
        (["--source", f"custom={csv}", "--language", "es", "--map", "question=q,options=a+b"], "'answer' is missing"),
        (["--source", f"custom={csv}", "--language", "fr", "--map", "question=q,options=a+b,answer=k",
          "--source", f"frenchmedmcqa={there}"], "--mix"),
    ]:
        with pytest.raises(UsageError) as caught:
            mmedbench.main([*map(str, options), "--out", str(out)])
        assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("name, source, content, said", [
    ("train.jsonl", "rumeddanet", '{"context": "a"\n', "train.jsonl:1: not valid JSON"),
    ("train.jsonl", "rumeddanet", '\n[1]\n', "train.jsonl:2: expected one JSON object"),
    ("train.jsonl", "rumeddanet", '{"text": "a"}\n', "no key 'context'"),
    ("train.jsonl", "medqa", '{"question": 3, "options": {"A": "x", "B": "y"}, "answer_idx": "A"}\n', "'question' is a int"),
    ("train.jsonl", "medqa", '{"question": "q", "options": {"A": "x", "a": "y"}, "answer_idx": "A"}\n', "same letter"),
    ("train.json", "frenchmedmcqa", '{"a": 1}', "expected a JSON array"),
    ("train.json", "frenchmedmcqa", '[3]', "item 1"),
    ("train.json", "frenchmedmcqa", '[', "train.json: not valid JSON"),
    ("train.json", "frenchmedmcqa", '[]', "none of the 0 items"),
    ("train_HEAD.json", "headqa", '{"language": "es", "exams": {"E": {"data": [{"qtext": "x"}]}}}', "no key 'qid'"),
    ("train_HEAD.json", "headqa", '{"language": "en", "exams": {}}', "no HEAD-QA file in the language 'es'"),
    ("cmexam.jsonl", "apollo", '{"question": "q", "option": "甲 乙", "anwer": "(A)", "source": "cmexam"}\n', "does not begin with (A)"),
    ("x.jsonl", "apollo", '{"question": "q", "option": "(A) x\\n(B) y", "anwer": "(A)", "source": "new"}\n', "--language"),
    ("JMMLU-Med.csv", "jmmlu-med", "tag,question\na,b,c\n", "3 columns, the header has 2"),
    ("JMMLU-Med.csv", "jmmlu-med", "tag,question\na,b\n", "no key 'answer'"),
    ("JMMLU-Med.csv", "jmmlu-med", 'tag,question\n"a,b\n', "not valid CSV"),
    ("anatomy_test.csv", "mmlu", "q,a,b\n", "3 columns; MMLU has 6"),
    ("112-A.txt", "igakuqa", "", "no file ending in .jsonl"),
    ("ori_pqal.json", "pubmedqa", "[]", "keyed by PMID"),
])
def test_a_file_in_the_wrong_form_is_named_with_its_line(tmp_path, name, source, content, said):
    write(tmp_path / "in" / name, content)
    assert said in refused("--source", f"{source}={tmp_path / 'in'}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_a_missing_path_and_a_source_without_one_usable_item_are_refused(tmp_path):
    assert "no such file or folder" in refused("--source", f"igakuqa={tmp_path / 'gone'}", "--out", tmp_path / "out")
    write(tmp_path / "in" / "train.json", [french_item(i, correct_answers=[]) for i in range(3)])
    message = refused("--source", f"frenchmedmcqa={tmp_path / 'in'}", "--out", tmp_path / "out")
    assert "none of the 3 items" in message and "no answer 3" in message


def test_strict_stops_at_the_first_answer_that_is_not_among_the_options(tmp_path):
    write(tmp_path / "in" / "test.jsonl", [medqa_item("q1"), medqa_item("q2") | {"answer_idx": "G"}])
    message = refused("--source", f"medqa={tmp_path / 'in'}", "--strict", "--out", tmp_path / "out")
    assert "test.jsonl:2: answer outside the options (answer G, options A,B,C,D)" in message


def test_half_characters_and_nan_are_dropped_and_never_stop_the_run(tmp_path):
    bad = r'{"question": "q\ud83d", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}' + "\n"
    nan = '{"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "A", "meta_info": NaN}\n'
    write(tmp_path / "in" / "test.jsonl", bad + nan + json.dumps(medqa_item("fine")) + "\n")
    got = run(tmp_path / "out", "--source", f"medqa={tmp_path / 'in'}")
    assert [line["reason"].split(",")[0] for line in got["dropped.jsonl"]] == ["broken Unicode", "NaN"]
    assert len(got["Test/English.jsonl"]) == 1


def test_a_result_that_was_changed_by_hand_is_not_overwritten(tmp_path):
    source, out = f"frenchmedmcqa={write(tmp_path / 'in' / 'train.json', [french_item(1)])}", tmp_path / "out"
    run(out, "--source", source)
    run(out, "--source", source)  # unchanged: replaced without a word
    with open(out / "Train" / "French.jsonl", "a", encoding="utf-8") as file:
        file.write("\n")
    assert "was changed" in refused("--source", source, "--out", out)
    run(out, "--source", source, "--overwrite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]  # no temporary folder is left
    write(tmp_path / "mine" / "notes.txt", "precious")
    assert "not a folder that this command wrote" in refused("--source", source, "--out", tmp_path / "mine")


def test_a_failure_while_writing_leaves_the_earlier_result(tmp_path, monkeypatch):
    source, out = f"frenchmedmcqa={write(tmp_path / 'in' / 'train.json', [french_item(1)])}", tmp_path / "out"
    before = run(out, "--source", source)
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(mmedbench, "write_json", full)
    with pytest.raises(OSError):
        mmedbench.main(["--source", source, "--out", str(out)])
    assert read_back(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_a_failure_of_the_last_rename_brings_the_earlier_result_back(tmp_path, monkeypatch):
    source, out = f"frenchmedmcqa={write(tmp_path / 'in' / 'train.json', [french_item(1)])}", tmp_path / "out"
    before, replace = run(out, "--source", source), mmedbench.os.replace
    def fails_for_the_new_folder(old, new):
        if ".new." in Path(old).name:
            raise OSError(5, "Input/output error")
        replace(old, new)
    with monkeypatch.context() as patch:
        patch.setattr(mmedbench.os, "replace", fails_for_the_new_folder)
        with pytest.raises(OSError):
            mmedbench.main(["--source", source, "--out", str(out)])
    assert read_back(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_random_items_survive_conversion_or_are_dropped_but_never_lost(tmp_path):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    words = ["", " ", "a", "痛", "\u2028", "x\ny", "(A) b", '"', "\ud800", "é" * 50]
    for trial in range(30):
        items = []
        for i in range(rng.randint(1, 12)):
            options = {c: rng.choice(words) for c in rng.sample("abcdef", rng.randint(0, 6))}
            items.append(french_item(i, question=rng.choice(words), answers=options, correct_answers=rng.choices("abcdefg", k=rng.randint(0, 3))))
        items.append(french_item(999))
        source = write(tmp_path / str(trial) / "train.json", items)
        got = run(tmp_path / f"out{trial}", "--source", f"frenchmedmcqa={source}")
        assert len(got["Train/French.jsonl"]) + len(got["dropped.jsonl"]) == len(items), f"seed {seed}"
        for item in got["Train/French.jsonl"]:
            assert item["question"].strip() and set(item["answer_idx"].split(",")) <= set(item["options"]), f"seed {seed}"
            assert list(item["options"]) == list("ABCDEF")[:len(item["options"])], f"seed {seed}"


# --- the released zip -------------------------------------------------------------------------------------------------------------

RELEASED = {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "rationale": "r ", "human_checked": True,
            "human_check_passed": True, "meta_info": "step1"}


def zipped(path: Path, members: dict[str, str | bytes], **changes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, text)
    return path


def test_the_released_zip_is_read_as_it_is_with_both_forms_of_the_answer(tmp_path):
    lines = "".join(json.dumps(RELEASED | {"question": f"q{i}", "answer_idx": answer}) + "\n" for i, answer in enumerate(("B", ["B", "A"], "A,B")))
    path = zipped(tmp_path / "MMedBench.zip", {"MMedBench/Train/English.jsonl": lines, "MMedBench/Test/Japanese.jsonl": lines,
                                               "MMedBench/README.md": "hello", "__MACOSX/MMedBench/Test/._Japanese.jsonl": b"\x00\x05"})
    got = run(tmp_path / "out", "--source", f"mmedbench={path}")
    assert list(got) == ["Test/Japanese.jsonl", "Train/English.jsonl", "dropped.jsonl"]
    assert [i["answer_idx"] for i in got["Train/English.jsonl"]] == ["B", "A,B", "A,B"]
    first = got["Test/Japanese.jsonl"][0]
    assert first["rationale"] == "r " and first["human_checked"] is True and first["human_check_passed"] is True
    assert first["meta_info"] == "step1" and first["source"] == "mmedbench-japanese"


@pytest.mark.parametrize("name", ["../Train/English.jsonl", "/etc/Train/English.jsonl", "C:/Train/English.jsonl", "a/../../x",
                                  "..\\x", "Train/a\nb.jsonl", "x\x1b[2J"])
def test_an_archive_with_a_name_that_leaves_its_folder_is_refused_whole(tmp_path, name):
    path = zipped(tmp_path / "bad.zip", {"Test/English.jsonl": json.dumps(RELEASED) + "\n", name: "x"})
    assert "archive refused" in refused("--source", f"mmedbench={path}", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_links_duplicates_bombs_and_encrypted_members_are_refused(tmp_path):
    def why(path, **options):
        with pytest.raises(UserError, match="archive refused") as caught:
            checked_members(path, **options)
        return str(caught.value)
    line = json.dumps(RELEASED) + "\n"
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        assert "link or device" in why(zipped(tmp_path / "a.zip", {"Test/English.jsonl": line}, external_attr=(kind | 0o644) << 16))
    assert "two cases" in why(zipped(tmp_path / "b.zip", {"Test/English.jsonl": line, "test/english.JSONL": line}))
    assert "grows more than" in why(zipped(tmp_path / "c.zip", {"Test/English.jsonl": b"\0" * 30_000_000}))
    assert "--max-archive-gb" in why(zipped(tmp_path / "d.zip", {f"Test/{i}": bytes(random.randbytes(20_000)) for i in range(6)}), max_gb=1e-4)
    crypt = bytearray(zipped(tmp_path / "e.zip", {"Test/English.jsonl": line}).read_bytes())
    crypt[crypt.rfind(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "e.zip").write_bytes(crypt)
    assert "encrypted" in why(tmp_path / "e.zip")
    many = bytearray(zipped(tmp_path / "f.zip", {"Test/English.jsonl": line}).read_bytes())
    struct.pack_into("<I", many, many.rfind(b"PK\x05\x06") + 12, 300_000 * 46)  # states a directory of 300,000 entries
    (tmp_path / "f.zip").write_bytes(many)
    assert "entries" in why(tmp_path / "f.zip")


def test_a_damaged_archive_ends_in_one_line_wherever_the_damage_is(tmp_path):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    whole = zipped(tmp_path / "whole.zip", {"Test/English.jsonl": "".join(json.dumps(RELEASED | {"question": f"q{i}"}) + "\n"
                                                                          for i in range(200))}).read_bytes()
    path, refusals = tmp_path / "cut.zip", 0
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            data = data[:rng.randrange(len(data))]
        path.write_bytes(data)
        try:
            items = list(read_mmedbench(path, []))
        except UserError as error:
            refusals += 1
            assert "\n" not in str(error) and "cut.zip" in str(error), f"seed {seed} trial {trial}"
        else:  # a flip in a date or a comment does no harm
            assert len(items) == 200, f"seed {seed} trial {trial}"
    assert refusals > 200, f"seed {seed}"


def test_something_else_than_a_benchmark_is_not_taken_for_one(tmp_path):
    path = zipped(tmp_path / "other.zip", {"readme.txt": "x"})
    assert "is this MMedBench?" in refused("--source", f"mmedbench={path}", "--out", tmp_path / "out")
    two = zipped(tmp_path / "two.zip", {f"{top}/Test/English.jsonl": json.dumps(RELEASED) for top in "ab"})
    assert "two benchmarks" in refused("--source", f"mmedbench={two}", "--out", tmp_path / "out")
    plain = write(tmp_path / "plain.zip", "no zip")
    assert "not a zip archive" in refused("--source", f"mmedbench={plain}", "--out", tmp_path / "out")


# --- small parts ------------------------------------------------------------------------------------------------------------------

def test_letters_options_and_splits_are_read_as_they_are_met():
    assert letters_in("A,C") == letters_in("AC") == letters_in("(AC)") == letters_in(["a", "c"]) == letters_in("A、C") == ["A", "C"]
    assert letters_in("yes") == ["yes"] and letters_in("CAB") == ["CAB"] and letters_in(2) == ["2"] and letters_in([]) == []
    assert option_texts(["x", "y"], "", "") == lettered(["x", "y"]) == {"A": "x", "B": "y"}
    assert len(lettered(["x"] * 30)) == 30  # beyond Z they keep a number, and the checks drop the item
    assert split_of("train_v1.jsonl") == "Train" and split_of("latest.jsonl") is None and split_of("validation-00.json") == "Val"


def test_help_is_quick_and_an_error_is_one_line_with_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "data_prep.mmedbench"]
    root = Path(__file__).resolve().parents[2]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=root, check=True)
    assert "igakuqa" in shown.stdout and "--holdout" in shown.stdout
    wrong = subprocess.run([*command, "--source", "igakuqa=gone", "--out", str(tmp_path / "o")], capture_output=True, text=True, cwd=root)
    assert (wrong.returncode, wrong.stderr) == (1, "error: gone: no such file or folder\n")
    wrong = subprocess.run([*command, "--source", "igakuka=gone", "--out", str(tmp_path / "o")], capture_output=True, text=True, cwd=root)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


# --- the real files ---------------------------------------------------------------------------------------------------------------

@real
def test_the_papers_sources_have_the_counts_their_real_files_have(tmp_path):
    paths = {"medqa": "medqa", "igakuqa": "igakuqa", "frenchmedmcqa": "frenchmedmcqa", "rumeddanet": "rumedbench/RuMedDaNet", "headqa": "headqa"}
    got = run(tmp_path / "out", *(part for name, path in paths.items() for part in ("--source", f"{name}={REAL / path}")))
    assert {name: len(lines) for name, lines in got.items()} == {
        "Test/English.jsonl": 637, "Train/Japanese.jsonl": 954, "Val/Japanese.jsonl": 119, "Test/Japanese.jsonl": 119,
        "Train/French.jsonl": 2171, "Train/Russian.jsonl": 1052, "Train/Spanish.jsonl": 2657, "Val/Spanish.jsonl": 1366, "dropped.jsonl": 8}
    japanese = [item for name, lines in got.items() if "Japanese" in name for item in lines]
    assert len(japanese) + 8 == 1200 and sum(item["image_dependent"] for item in japanese) == 326
    assert {line["reason"] for line in got["dropped.jsonl"]} == {"no options"}
    assert sum(item["image_dependent"] for item in got["Train/Spanish.jsonl"] + got["Val/Spanish.jsonl"]) == 98
    assert Counter(item["answer_idx"] for item in got["Train/Russian.jsonl"]) == {"A": 526, "B": 526}
    assert Counter(item["answer_idx"].count(",") + 1 for item in got["Train/French.jsonl"]) == {1: 595, 2: 528, 3: 718, 4: 296, 5: 34}
    assert sum("duplicate_of" in item for item in got["Train/French.jsonl"]) == 3
    for lines in got.values():
        ids = [item["id"] for item in lines]
        assert len(set(ids)) == len(ids)
    gold = {}  # HEAD-QA brings its answers a second time, in a table an exam
    for path in (REAL / "headqa" / "HEAD").glob("*.gold"):
        gold |= {f"headqa-es-{path.stem}-{qid}": "ABCDE"[int(aid) - 1] for qid, aid in (line.split() for line in path.read_text().splitlines())}
    assert all(gold[item["id"]] == item["answer_idx"] for item in got["Train/Spanish.jsonl"] + got["Val/Spanish.jsonl"])


@real
def test_every_real_item_that_is_written_can_be_read_for_an_exam(tmp_path):
    """Among them a question of IgakuQA whose options are blank but for one: it stays, as in the paper's counts, and is flagged."""
    got = run(tmp_path / "out", "--source", f"igakuqa={REAL / 'igakuqa'}", "--source", f"rumeddanet={REAL / 'rumedbench' / 'RuMedDaNet'}")
    flagged = [item for lines in got.values() for item in lines if "blank_options" in item]
    assert [(item["id"], item["blank_options"]) for item in flagged] == [("igakuqa-114C11", ["A", "B", "C", "D"])]
    for split in ("Train", "Val", "Test"):
        assert len(read_benchmark(tmp_path / "out" / split)) == sum(len(lines) for name, lines in got.items() if name.startswith(split))
    table = json.loads((tmp_path / "out" / "counts.json").read_text(encoding="utf-8"))["table"]
    assert "1 with a blank option" in next(row["why"] for row in table if row["language"] == "Japanese" and row["split"] == "Train")


@real
@pytest.mark.parametrize("source, path, counts", [
    ("headqa-en", "headqa", {"Train/English.jsonl": 2657, "Val/English.jsonl": 1366}),
    ("medmcqa", "medmcqa", {"Test/English.jsonl": 1408}),
    ("pubmedqa", "pubmedqa", {"Test/English.jsonl": 500}),
    ("mmlu", "mmlu", {"Test/English.jsonl": 544}),
    ("jmmlu-med", "jmed_llm", {"Test/Japanese.jsonl": 340}),
    ("apollo", "apollo_zh", {"Test/Chinese.jsonl": 1000 + 1000 + 666 + 1713}),
])
def test_the_other_real_sources_are_read_whole(tmp_path, source, path, counts):
    got = run(tmp_path / "out", "--source", f"{source}={REAL / path}")
    assert {name: len(lines) for name, lines in got.items()} == counts | {"dropped.jsonl": 0}


@real
def test_real_chinese_questions_can_be_split_into_train_and_test(tmp_path):
    got = run(tmp_path / "out", "--source", f"apollo={REAL / 'apollo_zh' / 'medqa-mcmle.part1.jsonl'}", "--holdout", "0.2", "--seed", "1")
    assert len(got["Train/Chinese.jsonl"]) + len(got["Test/Chinese.jsonl"]) == 1713
    assert 270 < len(got["Test/Chinese.jsonl"]) < 420  # 343, sd 17
