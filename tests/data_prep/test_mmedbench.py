"""The benchmark converter: every source's form in small files made here, published forms of options, answers
and files, splits, and what is written."""
import dataclasses
import hashlib
import json
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_lines import read_lines, write_lines

from data_prep import mmedbench
from data_prep.benchmark.counts import PAPER
from data_prep.benchmark.mapping import Raw
from data_prep.benchmark.options import marked_options, option_texts, read_answer
from data_prep.benchmark.sources import SOURCES
from mmed.prompts import read_benchmark
from mmed.utils.errors import UserError

MAP = "question=question,options=options,answer=answer_idx"


def write(path: Path, value) -> Path:
    """A str as it is, a list as JSONL or parquet where the name says so, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(value), path)
    elif isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    elif path.suffix == ".jsonl":
        write_lines(path, *value)
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


def run(out: Path, *options) -> dict[str, list[dict]]:
    """Run the command and read all that it wrote."""
    assert mmedbench.main([*map(str, options), "--out", str(out)]) == 0
    return {p.relative_to(out).as_posix(): read_lines(p) for p in sorted(out.rglob("*.jsonl"))}


def convert(folder: Path, value, mapping: str, name: str = "exam.jsonl", language: str = "en") -> list[dict]:
    """The items of one file through --map; those that were dropped come last."""
    source = f"custom={write(folder / 'in' / name, value)}"
    got = run(folder / "out", "--source", source, "--map", mapping, "--language", language)
    return [item for items in got.values() for item in items]


def error_of(*options) -> str:
    """The one-line message of a command that must fail."""
    with pytest.raises(UserError) as caught:
        mmedbench.main([*map(str, options)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def medqa_item(question: str, right: str = "B", options: int = 4) -> dict:
    texts = {letter: f"{question} {letter}" for letter in "ABCDE"[:options]}
    return {"question": question, "answer": texts[right], "options": texts, "meta_info": "step1",
            "answer_idx": right}


def igakuqa_item(number: int, **changes) -> dict:
    return {"problem_id": f"117A{number}", "problem_text": f"問題{number}はどれか。",
            "text_only": number % 4 != 0, "choices": [f"選択肢{number}{c}" for c in "あいうえお"],
            "answer": ["abcde"[number % 5]], "points": "1"} | changes


def french_item(number: int, **changes) -> dict:
    return {"id": hashlib.sha256(str(number).encode()).hexdigest(), "subject_name": "pharmacie",
            "question": f"Parmi les propositions {number} ?", "correct_answers": ["a", "d"],
            "answers": {c: f"réponse {number}{c}" for c in "abcde"}} | changes


def headqa_item(qid: int, ra: str = "2", options: int = 5, image: str = "", words: str = "pregunta") -> dict:
    return {"qid": str(qid), "qtext": f"{words} {qid}:", "ra": ra, "image": image,
            "answers": [{"aid": i + 1, "atext": f"{words} {qid} opción {i + 1}"} for i in range(options)]}


def headqa_file(language: str, name: str, data: list) -> dict:
    return {"language": language, "exams": {name: {"name": name, "year": "2013", "category": "medicine",
                                                   "data": data}}}


# ---- presets: the layouts as published, with the keys that cards and evaluation code name -----------

ABCD = dict(zip("ABCD", "abcd"))
C = {"options": ABCD, "answer_idx": "C"}
HUB = {"id": "1", "data": {"Question": "q", "Options": ABCD, "Correct Option": "C", "Correct Answer": "c"}}
ENDINGS = {"sent1": "q", "label": 2} | {f"ending{i}": "abcd"[i] for i in range(4)}
PAIRS = medqa_item("q", "C") | {"options": [{"key": key, "value": text} for key, text in ABCD.items()]}
MMLU = {"question": "q", "subject": "anatomy", "choices": [*"abcd"], "answer": 2}
GLOBAL = {"question": "q", "subject": "anatomy", "answer": "C"} | {f"option_{c}": c for c in "abcd"}
PROX = {"question": "q", "answer": "C", "category": "health", "question_id": 7}
PROX |= {f"option_{i}": "abcd"[i] if i < 4 else None for i in range(10)}
PUBMED = {"pubid": 12, "question": "Help?", "context": {"contexts": ["We asked.", "We saw."]},
          "long_answer": "It may.", "final_decision": "maybe"}
HEADQA = headqa_item(1, ra=2) | {"qid": 1, "name": "E", "year": "2013", "category": "eye", "image": None}
PUBMED_ITEM = {"QUESTION": "Help?", "CONTEXTS": ["We asked.", "We saw."], "YEAR": "2011",
               "final_decision": "maybe", "LONG_ANSWER": "It may."}
FRENCH = {"id": "f", "question": "q", "correct_answers": [0, 4]} | {f"answer_{c}": c for c in "abcde"}
JMMLU = "tag,question,optionA,optionB,optionC,optionD,answer\nanatomy,q,a,b,c,d,C\n"
CARE = {"question": "q", "op1": "a", "op2": "b", "op3": "c", "op4": "d", "cop": 3, "unique_id": "u",
        "year": 9}
XPERT = {"id": "T-1", "question": "q? Answer Choices: (A) a (B) b (C) c (D) d", "options": ABCD, "label": "C",
         "body_system": "Skin", "medical_task": "x"}
WORLD = {"question": "q", "options": ABCD | {"E": None}, "answer": ["B", "D"], "idx": 5, "label": ["a", "b"]}
KOREAN = {"question": "q", **ABCD, "E": None, "answer": 3, "year": 2022}
JMLE = {"question_id": "120A-1", "question_text": "1　どれか。\n\n　a　手術\n\n　b　観察", "answer": ["b"],
        "requires_image": True, "serial_group": {"context_text": "60歳の男性。"}}
YAKU = [igakuqa_item(1) | {"answer": ["3", "5"], "comment": "解説"}, igakuqa_item(2) | {"choices": "IMAGES"}]
DANET = {"question": "Q?", "context": "C.", "answer": None, "pairID": "1"}  # as in its test part
PUBMED_PAIR = {"11": PUBMED_ITEM, "12": PUBMED_ITEM | {"final_decision": "no", "QUESTION": "Else?"}}
APOLLO = [{"question": q, "option": o, "anwer": a, "source": "cmexam"} for q, o, a in (
    ("药品", "(A) 甲 (B级).\n(B) 乙.\n(C) 丙.", "(AC)"), ("跳号", "(A) 甲.\n(C) 丙.", "(A)"),
    ("越界", "(A) 甲.\n(B) 丙.", "(E)"))]
EXAM = [headqa_item(1, "5", image="./img1.png"), headqa_item(3, "1"), headqa_item(4, "6")]
OUTSIDE = "answer outside the options"
# Source, its files, what the items of each written file have, reasons of what is dropped
PRESETS = [
    ("medqa", {"data/test-0.parquet": [HUB], "data/train-0.parquet": [ENDINGS]}, {
        "Test/English": [C], "Train/English": [C]}, []),
    ("medqa", {"default/test/0000.parquet": [PAIRS]}, {"Test/English": [C]}, []),
    ("mmlu", {"anatomy/test-0.parquet": [MMLU]}, {"Test/English": [C | {"subject": "anatomy"}]}, []),
    ("mmlu", {"anatomy_test.csv": '"Which, of these?",a,b,"c ""x""",d,C\n',
              "astronomy_test.csv": "Which star?,a,b,c,d,A\n",
              "more.jsonl": [MMLU | {"subject": "college_biology"}, MMLU | {"subject": "law"}],
              "auxiliary_train/train.jsonl": [{"train": MMLU}]}, {"Test/English": [  # as on the hub
                  C | {"question": "Which, of these?", "options": ABCD | {"C": 'c "x"'},
                       "subject": "anatomy"},
                  C | {"subject": "college_biology"}]}, []),
    # the hub has the items of all/ again subject by subject
    ("mmlu", {"all/test.jsonl": [MMLU], "anatomy/test.jsonl": [MMLU]}, {"Test/English": [C]}, []),
    ("pubmedqa", {"pqa_labeled/train-0.parquet": [PUBMED]}, {"Test/English": [{
        "question": "We asked.\nWe saw.\nHelp?", "answer_idx": "C", "rationale": "It may.",
        "id": "pubmedqa-12"}]}, []),
    ("pubmedqa", {"ori_pqal.json": PUBMED_PAIR, "test_ground_truth.json": {"12": "no"}}, {
        "Train/English": [{
            "question": "We asked.\nWe saw.\nHelp?", "options": {"A": "yes", "B": "no", "C": "maybe"},
            "answer_idx": "C", "rationale": "It may.", "id": "pubmedqa-11"}],
        "Test/English": [{"answer_idx": "B"}]}, []),
    ("frenchmedmcqa", {"train.json": [french_item(1), french_item(2, correct_answers=["e", "b"], answers={
        c: f"{c}?" for c in "acdeb"})]}, {"Train/French": [  # one published item has this order
            {"answer_idx": "A,D", "subject": "pharmacie"},
            {"answer_idx": "B,E", "options": {c.upper(): f"{c}?" for c in "abcde"}}]}, []),
    ("frenchmedmcqa", {"data/test-0.parquet": [FRENCH]}, {"Test/French": [{"answer_idx": "A,E"}]}, []),
    ("rumeddanet", {"train_v1.jsonl": [
        DANET | {"answer": "да"}, DANET | {"answer": "нет", "pairID": "2"}, DANET,
        DANET | {"answer": "может быть"}]}, {"Train/Russian": [
            {"question": "C.\nQ?", "options": {"A": "Да", "B": "Нет"}, "answer_idx": "A",
             "id": "rumeddanet-1"},
            {"answer_idx": "B", "id": "rumeddanet-2"}]}, ["no answer", OUTSIDE]),
    ("headqa", {"HEAD/train_HEAD.json": headqa_file("es", "E", EXAM),
                "HEAD/HEAD.json": headqa_file("es", "E", EXAM),
                "HEAD/dev_HEAD.json": headqa_file("es", "F", [headqa_item(1, "4", options=4)]),
                "HEAD_EN/train_HEAD_EN.json": headqa_file("en", "E", EXAM)}, {
        "Train/Spanish": [{"id": "headqa-es-E-1", "answer_idx": "E", "image_dependent": True},
                          {"id": "headqa-es-E-3", "answer_idx": "A", "image_dependent": False}],
        "Val/Spanish": [{"id": "headqa-es-F-1", "answer_idx": "D",
                         "options": {c: f"pregunta 1 opción {i}" for i, c in enumerate("ABCD", 1)}}]},
     [OUTSIDE]),
    ("headqa", {"es/train-0.parquet": [HEADQA], "es/test-0.parquet": [HEADQA | {
        "answers": {"aid": [1, 2], "atext": ["x", "y"]}, "image": {"bytes": None, "path": None}}]}, {
            "Train/Spanish": [{"id": "headqa-es-E-1-2", "answer_idx": "B", "subject": "eye"}],
            "Test/Spanish": [{"options": {"A": "x", "B": "y"}, "answer_idx": "B",
                              "image_dependent": False}]}, []),
    ("jmmlu-med", {"JMMLU-Med.csv": JMMLU}, {"Test/Japanese": [C | {"subject": "anatomy"}]}, []),
    ("careqa", {"CareQA_es.json": [CARE]}, {"Test/Spanish": [C | {"id": "careqa-u", "year": "9"}]}, []),
    ("medxpertqa", {"Text/test.jsonl": [XPERT], "MM/dev.jsonl": [XPERT | {"images": ["a.png"]}]}, {
        "Test/English": [C | {"question": "q?", "subject": "Skin", "medical_task": "x",
                              "image_dependent": False}],
        "Val/English": [{"image_dependent": True}]}, []),
    ("global-mmlu", {"fr/test-0.parquet": [GLOBAL, GLOBAL | {"subject": "law"}]}, {"Test/French": [C]}, []),
    ("mmlu-prox", {"fr/test/0000.parquet": [PROX, PROX | {"category": "law"}]}, {
        "Test/French": [C | {"id": "mmlu-prox-7"}]}, []),
    ("globalmedqa", {"data/Small.parquet": [WORLD | {"language": t} for t in ("FR", "PL")]}, {
        "Test/French": [{"options": ABCD, "answer_idx": "B,D", "subject": "a\nb",
                         "id": "globalmedqa-5"}]}, []),
    ("kormedmcqa", {"doctor/test-0.parquet": [KOREAN]}, {"Test/English": [C | {"year": "2022"}]}, []),
    ("igakuqa120", {"jmle2026_dataset.json": [JMLE]}, {"Test/Japanese": [{
        "question": "60歳の男性。\n1　どれか。", "options": {"A": "手術", "B": "観察"}, "answer_idx": "B",
        "image_dependent": True}]}, []),
    ("yakugakuqa", {"data.jsonl": YAKU}, {"Test/Japanese": [{
        "answer_idx": "C,E", "rationale": "解説", "image_dependent": False}]}, ["no readable options"]),
    ("apollo", {"cmexam.jsonl": APOLLO}, {"Test/Chinese": [{
        "options": {"A": "甲 (B级).", "B": "乙.", "C": "丙."}, "answer_idx": "A,C",
        "source": "apollo-cmexam"}]},
     ["option letters skip or exceed Z", OUTSIDE]),
]


@pytest.mark.parametrize(("name", "files", "written", "reasons"), PRESETS)
def test_presets_read_the_published_layouts(name, files, written, reasons, tmp_path, monkeypatch):
    if name == "kormedmcqa":  # as if its language had a file
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], language="en"))
    for file, content in files.items():
        write(tmp_path / "in" / file, content)
    language = ["--language", "French"] if name in ("global-mmlu", "mmlu-prox") else []
    got = run(tmp_path / "out", "--source", f"{name}={tmp_path / 'in'}", *language)
    assert [line["reason"] for line in got.pop("dropped.jsonl")] == reasons
    assert got.keys() == {f"{file}.jsonl" for file in written}
    for file, expected in written.items():
        for item, parts in zip(got[f"{file}.jsonl"], expected, strict=True):
            assert item.items() >= ({"source": name} | parts).items()
            assert list(item["options"]) == sorted(item["options"])


def test_languages_without_a_file_are_one_clear_line(tmp_path):
    korean = f"kormedmcqa={write(tmp_path / 'test.jsonl', [KOREAN])}"
    said = error_of("--source", korean, "--out", tmp_path / "x")
    assert said.startswith("unknown language 'ko'") and "mmed/languages/<code>.py" in said
    polish = f"globalmedqa={write(tmp_path / 'S.jsonl', [WORLD | {'language': 'PL'}])}"
    assert "no language file for PL 1" in error_of("--source", polish, "--out", tmp_path / "x")
    apollo = f"apollo={write(tmp_path / 'new.jsonl', [APOLLO[0] | {'source': 'new'}])}"
    assert "'apollo-new' is unknown" in error_of("--source", apollo, "--out", tmp_path / "x")
    assert "needs --language" in error_of("--source", "mmlu-prox=any", "--out", tmp_path / "x")
    write(tmp_path / "prox" / "ja" / "test-0.jsonl", [PROX])
    given = ["--source", f"mmlu-prox={tmp_path / 'prox'}", "--language", "fr", "--out", tmp_path / "x"]
    assert "prox: no folder fr/; it has ja" in error_of(*given)


# ---- sources that need code ----------------------------------------------------------------------


def test_medqa_takes_the_four_option_us_files(tmp_path):
    questions = tmp_path / "data_clean" / "questions"
    write(questions / "US" / "4_options" / "phrases_no_exclude_train.jsonl",
          [medqa_item("q1"), medqa_item("q2", "D")])
    write(questions / "US" / "4_options" / "phrases_no_exclude_test.jsonl", [medqa_item("q4", "A")])
    write(questions / "US" / "test.jsonl", [medqa_item("q4", "E", options=5)])
    write(questions / "US" / "US_qbank.jsonl", [medqa_item("q9")])
    write(questions / "Mainland" / "4_options" / "test.jsonl", [medqa_item("下列哪项")])
    got = run(tmp_path / "out", "--source", f"medqa={tmp_path / 'data_clean'}")
    assert [item["answer_idx"] for item in got["Train/English.jsonl"]] == ["B", "D"]
    item, = got["Test/English.jsonl"]
    assert item == {"question": "q4", "options": {c: f"q4 {c}" for c in "ABCD"}, "answer_idx": "A",
                    "rationale": "", "human_checked": False, "human_check_passed": False, "id": item["id"],
                    "source": "medqa", "licence": "MIT", "answer": "q4 A", "meta_info": "step1"}
    chinese = run(tmp_path / "zh", "--source", f"mcmle={tmp_path / 'data_clean'}")
    assert list(chinese) == ["Test/Chinese.jsonl", "dropped.jsonl"]
    assert "no file below this folder matches" in error_of("--source", f"medqa={questions / 'Mainland'}",
                                                           "--out", tmp_path / "x")


def test_igakuqa_flags_images_and_splits_in_the_papers_proportion(tmp_path):
    items = [igakuqa_item(i) for i in range(1, 41)]
    items[4] = igakuqa_item(5, choices=[], answer=["26"])
    items[6] = igakuqa_item(7, answer=["a", "c", "e"])
    items[7] = igakuqa_item(8, answer=["a or d"])
    write(tmp_path / "data" / "2023" / "117-A.jsonl", items)
    write(tmp_path / "data/2023/117-A_metadata.jsonl", [{"problem_id": "117A7", "category": "皮膚科"}])
    write(tmp_path / "data" / "2023" / "117-A_translate.jsonl", [igakuqa_item(1)])
    got = run(tmp_path / "out", "--source", f"igakuqa={tmp_path / 'data'}")
    found = {item["id"].removeprefix("igakuqa-117A"): item for name in got if "/" in name
             for item in got[name]}
    assert {int(key) for key in found} == set(range(1, 41)) - {5}
    assert {key for key, item in found.items() if item["image_dependent"]} == set(map(str, range(4, 41, 4)))
    assert found["7"]["answer_idx"] == "A,C,E" and found["7"]["subject"] == "皮膚科"
    assert found["9"]["year"] == "2023" and found["8"]["answer_idx"] == "A"
    assert found["8"]["answer_alternatives"] == ["A", "D"]
    lost, = got["dropped.jsonl"]
    assert lost["reason"] == "no readable options" and lost["where"].endswith("117-A.jsonl:5")
    # 39 usable: 39 * 199 / 1988 = 3.9, so 4 in test and in val
    assert [len(got[f"{split}/Japanese.jsonl"]) for split in ("Train", "Val", "Test")] == [31, 4, 4]


def test_all_igakuqa_questions_split_as_in_the_paper_and_by_seed():
    items = [Raw("igakuqa", "Japanese", None, "w", str(i), {"A": "x", "B": "y"}, ["A"], id=f"igakuqa-{i}")
             for i in range(1988)]
    draws = {}
    for seed in (0, 0, 1):
        random.Random(seed).shuffle(items)  # the order must not matter
        mmedbench.assign_splits("igakuqa", items, seed, None, [])
        assert Counter(item.split for item in items) == PAPER["Japanese"]
        test = {item.id for item in items if item.split == "Test"}
        assert draws.setdefault(seed, test) == test
    assert len(draws[0] & draws[1]) < 60  # by chance 199 * 199 / 1988 = 20


def test_headqa_holds_out_the_same_questions_in_both_languages(tmp_path):
    sides = {}
    for name, code, language in (("headqa", "es", "Spanish"), ("headqa-en", "en", "English")):
        exam = [headqa_item(i, words=code) for i in range(60)]
        write(tmp_path / f"in-{code}" / f"train_{code}.json", headqa_file(code, "E", exam))
        source = f"{name}={tmp_path / f'in-{code}'}"
        got = run(tmp_path / f"out-{code}", "--source", source, "--holdout", "0.5")
        sides[code] = {item["id"].rsplit("-", 1)[1] for item in got[f"Test/{language}.jsonl"]}
    assert sides["es"] == sides["en"] and 10 < len(sides["es"]) < 50


def test_medmcqa_counts_options_from_where_the_file_does(tmp_path):
    def items(*numbers):
        return [{"id": f"u{n}", "question": f"q{n}", "opa": "a", "opb": "b", "opc": "c", "opd": f"d{n}",
                 "cop": n, "exp": "because", "subject_name": "Anatomy"} for n in numbers]

    for name, numbers in (("one", (1, 4)), ("zero", (0, 3, -1)), ("both", (2,))):
        write(tmp_path / name / "train.json", "".join(json.dumps(item) + "\n" for item in items(*numbers)))
    hidden, = items(9)
    del hidden["cop"]
    write(tmp_path / "one" / "test.json", [hidden])
    for name in ("one", "zero"):
        got = run(tmp_path / f"out-{name}", "--source", f"medmcqa={tmp_path / name}")
        assert [(i["answer_idx"], i["rationale"], i["subject"]) for i in got["Train/English.jsonl"]] == [
            ("A", "because", "Anatomy"), ("D", "because", "Anatomy")]
        # the authors' way to hide answers is to leave cop out, the copy's is -1
        assert [line["reason"] for line in got["dropped.jsonl"]] == ["no answer"]
    both = ["--source", f"medmcqa={tmp_path / 'both'}"]
    assert "from 0 or from 1; add --map kind=0 or kind=1" in error_of(*both, "--out", tmp_path / "x")
    for kind, letter in (("0", "C"), ("1", "B")):
        item, = run(tmp_path / kind, *both, "--map", f"kind={kind}")["Train/English.jsonl"]
        assert item["answer_idx"] == letter


def test_a_fold_of_pubmedqa_is_what_its_name_says(tmp_path):
    fold = write(tmp_path / "pqal_fold0" / "train_set.json", {"11": PUBMED_ITEM})
    assert "Train/English.jsonl" in run(tmp_path / "fold", "--source", f"pubmedqa={fold}")


RELEASED = {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "rationale": "r ",
            "human_checked": True, "human_check_passed": True, "meta_info": "step1"}


def test_the_release_is_read_as_it_is_from_zip_and_folder(tmp_path):
    answers = ("B", ["B", "A"], "A,B")
    lines = "".join(json.dumps(RELEASED | {"question": f"q{i}", "answer_idx": a}) + "\n"
                    for i, a in enumerate(answers))
    with zipfile.ZipFile(tmp_path / "MMedBench.zip", "w") as archive:
        for name in ("MMedBench/Train/English.jsonl", "MMedBench/Test/Japanese.jsonl"):
            archive.writestr(name, lines)
        archive.writestr("__MACOSX/MMedBench/Test/._Japanese.jsonl", b"\x00\x05")
    got = run(tmp_path / "out", "--source", f"mmedbench={tmp_path / 'MMedBench.zip'}")
    assert list(got) == ["Test/Japanese.jsonl", "Train/English.jsonl", "dropped.jsonl"]
    assert [i["answer_idx"] for i in got["Train/English.jsonl"]] == ["B", "A,B", "A,B"]
    first = got["Test/Japanese.jsonl"][0]
    assert (first["rationale"], first["human_check_passed"], first["meta_info"]) == ("r ", True, "step1")
    assert run(tmp_path / "again", "--source", f"mmedbench={tmp_path / 'out'}") == got
    deep = tmp_path / "snapshots" / "x" / "MMedBench" / "Test" / "English.jsonl"
    write(deep, json.dumps(RELEASED | {"meta_info": float("nan"), "rationale": float("nan")}))
    item, = run(tmp_path / "deep", "--source", f"mmedbench={tmp_path / 'snapshots'}")["Test/English.jsonl"]
    assert item["rationale"] == "" and "meta_info" not in item
    deep.write_bytes(b'{"question": "\xff"}')
    assert "English.jsonl:1: not MMedBench's form" in error_of(
        "--source", f"mmedbench={tmp_path / 'snapshots'}", "--out", tmp_path / "x")
    data = (tmp_path / "MMedBench.zip").read_bytes()
    (tmp_path / "truncated.zip").write_bytes(data[:len(data) // 2])
    assert "not a readable zip" in error_of("--source", f"mmedbench={tmp_path / 'truncated.zip'}", "--out",
                                            tmp_path / "x")


# ---- any file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "options"), [
    ({"A": "x", "B": "y"}, {"A": "x", "B": "y"}), (["x", "y"], {"A": "x", "B": "y"}),
    ("(A) x\n(B) y", {"A": "x", "B": "y"}),
    ([{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], {"A": "x", "B": "y"}),
    ([{"label": "b", "text": "y"}, {"label": "a", "text": "x"}], {"A": "x", "B": "y"}),
    ({"text": ["x", "y"], "label": ["A", "B"]}, {"A": "x", "B": "y"}),
    ({"A": "x", "B": None, "C": 2, "D": " ", "E": None}, {"A": "x", "B": "", "C": "2"}),
    (["x", None, ""], {"A": "x"}), ({"2": "y", "10": "z", "1": "x"}, {"A": "x", "B": "y", "C": "z"}),
    ('{"option1": "x", "option2": "y", "option3": NaN}', {"A": "x", "B": "y"}),
    ("['x', None, 'y']", {"A": "x", "B": "", "C": "y"}),
    ({"Ｂ": "y", "Ａ": "x"}, {"A": "x", "B": "y"}), ({"А": "x", "Б": "y"}, {"A": "x", "B": "y"}),
    ("Ａ．甲\nＢ．乙", {"A": "甲", "B": "乙"}), ("（A）甲（B）乙", {"A": "甲", "B": "乙"}),
    ("x or y", {}), ([["x"]], {}), ({"A": "x", "a": "y"}, {}), (None, {}), ({"A": {"x": 1}}, {}), ("[x", {}),
])
def test_options_are_read_in_published_forms(value, options):
    assert option_texts(value)[0] == options


@pytest.mark.parametrize(("text", "stem", "options"), [
    ("Why (A) so? (A) x (B) y z", "Why (A) so?", {"A": "x", "B": "y z"}),
    ("Why?\nA. x\nB) y", "Why?", {"A": "x", "B": "y"}),
    ("A man.\na 甲\nb 乙", "A man.", {"A": "甲", "B": "乙"}),
    ("どれか。\n\na　甲\n\nb　乙", "どれか。", {"A": "甲", "B": "乙"}),
    ("Hepatitis A. or B. is", "Hepatitis A. or B. is", {}), ("", "", {}),
])
def test_options_are_found_inside_the_question(text, stem, options):
    assert marked_options(text) == (stem, list(options.items()))


@pytest.mark.parametrize("written", [
    "A,C", "AC", "CA", "(AC)", ["a", "c"], "A、C", "Ａ，Ｃ", ["A.", "(c)"], "['A', 'C']", "x,y",
    ["A. Aspirin", "heparin"]])
def test_answers_are_read_as_they_are_written(written):
    options = {"A": "aspirin", "B": "1", "C": "Heparin"}
    assert sorted(read_answer(written, options, {"X": "A", "Y": "C"})) == ["A", "C"]


def test_other_answers_stay_as_they_are():
    options = dict(zip("ABC", ["1", "AB", "z"]))
    assert read_answer("AB", options, {}) == ["B"]
    for written in ("yes", "CAD", "cab", "a or b", "2"):
        assert read_answer(written, options, {}) == [written]
    assert read_answer("１", options, {}) == ["1"] and read_answer(-1, options, {}) == []
    assert read_answer("AB", options, {}, "text") == ["B"] and read_answer("1", options, {}, "text") == ["A"]


NESTED = {"data": {"stem": "Q", "why": "r"}, "o1": "x", "o2": "y", "o3": "z", "key": 3, "part": "dev",
          "tag": "eye"}
PATHS = "question=data.stem,options=o1+o2+o3,answer=key"


@pytest.mark.parametrize(("changes", "mapping", "expected"), [
    ({}, f"{PATHS},rationale=data.why", {"question": "Q", "answer_idx": "C", "rationale": "r"}),
    ({"key": "o2"}, PATHS, {"answer_idx": "B"}), ({"key": [0, 2]}, PATHS, {"answer_idx": "A,C"}),
    ({"key": 1, "o3": None}, f"{PATHS},kind=0", {"options": {"A": "x", "B": "y"}, "answer_idx": "B"}),
    ({"key": ["y", "Z"]}, f"{PATHS},kind=text", {"answer_idx": "B,C"}),
    ({"key": "MAYBE"}, f"{PATHS},options=yes/no/maybe,kind=text", {"answer_idx": "C"}),
    ({"key": "B", "data": {"stem": "Q (A) x (B) y"}}, f"{PATHS},options=data.stem",
     {"question": "Q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}),
    ({}, f"{PATHS},context=tag,image=tag,subject=tag,year=y?,split=part,id=tag+key,"
     "keep=part,filter=tag=x|eye",
     {"question": "eye\nQ", "image_dependent": True, "subject": "eye", "id": "exam-eye-3", "part": "dev"}),
    ({"flag": "False"}, f"{PATHS},question=title|data.stem,image=!flag", {"image_dependent": True}),
    ({"key": "o3, o1", "o3": float("nan"), "o4": "w"}, f"{PATHS},options=o1+o2+o3+o4,subject=o3",
     {"options": {"A": "x", "B": "y", "C": "", "D": "w"}, "answer_idx": "A,C"}),
    ({"key": "o3"}, f"{PATHS},options=o1+o2+o3?+o4?", {"answer_idx": "C"}),
    ({"o1": "A. x", "o2": "(B) y", "o3": "Ｃ：z", "key": "b) Y"}, PATHS,
     {"options": {"A": "x", "B": "y", "C": "z"}, "answer_idx": "B"}),
    ({"o1": "3", "o2": "2", "o3": "1"}, PATHS, {"answer_idx": "C"}),
    ({"o1": "3", "o2": "2", "o3": "1"}, f"{PATHS},kind=text", {"answer_idx": "A"}),
])
def test_a_mapping_reads(changes, mapping, expected, tmp_path):
    item, = convert(tmp_path, [NESTED | changes], mapping)
    assert item.items() >= expected.items()


def test_csv_and_parquet_are_read_through_a_mapping(tmp_path):
    got = convert(tmp_path / "csv", "n,stem,a,b,c,key,why\n1,Q1,x,y,,2,r\n2,Q2,x,y,z,3,\n3,,x,y,z,1,\n",
                  "question=stem,options=a+b+c,answer=key,kind=1,id=n,rationale=why", "exam.csv", "es")
    assert [(i["id"], i["answer_idx"], len(i["options"]), i["rationale"]) for i in got[:2]] == [
        ("exam-1", "B", 2, "r"), ("exam-2", "C", 3, "")]
    assert [line["reason"] for line in got[2:]] == ["empty question"]
    got = convert(tmp_path / "parquet", [
        {"question": "Which drug?", "options": {"A": "x", "B": "y", "C": None}, "answer_idx": "A"},
        {"question": "And?", "options": {"A": "x", "B": "y", "C": "z"}, "answer_idx": "C"}], MAP, "t.parquet")
    assert [len(item["options"]) for item in got] == [2, 3]
    (tmp_path / "latin.csv").write_bytes("q,a\né,x\n".encode("latin-1"))
    assert "convert the file to UTF-8" in error_of(
        "--source", f"custom={tmp_path / 'latin.csv'}", "--language", "fr", "--map", MAP, "--out",
        tmp_path / "x")


ROW = {"q": "Qé", "a": "x", "b": "y", "key": "B"}
SEMICOLONS = "q;a;b;key\r\nQé;x;y;B;;\r\n"


@pytest.mark.parametrize(("name", "data"), [
    ("e.csv", "\ufeffq, a, b, key\r\nQé,x,y,B,,\r\n".encode()), ("e.CSV", SEMICOLONS.encode()),
    ("e.tsv", SEMICOLONS.replace(";", "\t").encode()),
    ("e.csv", SEMICOLONS.replace(";", "\t").encode("utf-16")),
    ("e.json", ("\ufeff" + json.dumps([ROW], indent=1)).encode()),
    ("e.json", json.dumps([ROW], indent=1, ensure_ascii=False).encode("utf-16")),
    ("e.jsonl", ("\ufeff" + json.dumps(ROW) + "\r\n").encode())])
def test_files_of_spreadsheets_and_other_systems_are_read(name, data, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    write(tmp_path / "in" / "dataset_infos.json", {"default": {}})  # beside the exams of a model hub
    write(tmp_path / "in" / "._e.json", "\0")
    got = run(tmp_path / "out", "--source", f"custom={tmp_path / 'in'}", "--language", "fr", "--map",
              "question=q,options=a+b,answer=key")
    item, = got["Test/French.jsonl"]
    assert (item["question"], item["options"], item["answer_idx"]) == ("Qé", {"A": "x", "B": "y"}, "B")


def test_a_folder_states_the_split_of_files_that_state_none(tmp_path):
    for folder in ("dev", "test"):  # as in CMMLU
        write(tmp_path / "in" / folder / "anatomy.jsonl", [medqa_item(folder)])
    got = run(tmp_path / "out", "--source", f"custom={tmp_path / 'in'}", "--language", "en", "--map", MAP)
    assert {name: [item["question"] for item in got[name]] for name in got} == {
        "Test/English.jsonl": ["test"], "Val/English.jsonl": ["dev"], "dropped.jsonl": []}


def test_broken_and_empty_json_is_one_line(tmp_path):
    given = ["--source", f"custom={write(tmp_path / 'e.json', '[{},' + chr(10))}", "--language", "en"]
    assert "e.json: not valid JSON (" in error_of(*given, "--map", MAP, "--out", tmp_path / "x")
    write(tmp_path / "e.json", [])
    assert "0 items read as custom can be used (the files are empty)" in error_of(
        *given, "--map", MAP, "--out", tmp_path / "x")


def test_blank_and_equal_options_are_flagged_and_counted(tmp_path, capsys):
    items = [{"question": "Q", "options": {"A": "aspirin", "B": "Heparin", "C": " heparin "},
              "answer_idx": "B"},
             {"question": "R", "options": {"A": "", "B": "", "C": "z"}, "answer_idx": "C"}]
    equal, blank = convert(tmp_path, items, MAP)
    assert equal["equal_options"] == ["B", "C"] and "equal_options" not in blank
    assert blank["blank_options"] == ["A", "B"]
    row, = json.loads((tmp_path / "out" / "counts.json").read_text())["table"]
    assert row["equal_options"] == row["blank_options"] == 1
    assert "1 with two equal options" in capsys.readouterr().out


def test_repeats_are_marked_and_stay_on_one_side(tmp_path):
    items = [medqa_item("same"), medqa_item(" same "), *[medqa_item(f"q{i}") for i in range(30)],
             medqa_item("same")]
    source = write(tmp_path / "in" / "exam.jsonl", items)
    got = run(tmp_path / "out", "--source", f"custom={source}", "--language", "en", "--map", MAP,
              "--holdout", "0.5")
    splits = {name for name in got for item in got[name] if item.get("question", "").strip() == "same"}
    assert len(splits) == 1 and sum("duplicate_of" in item for item in got[splits.pop()]) in (1, 2)


def exam_item(question: str, *options: str, right: str = "A") -> dict:
    return {"question": question, "options": list(options), "answer_idx": right}


LONG = " ".join(f"word{i}" for i in range(20))
LEAKS = {  # a train item, and the rule by which it leaks one of the test items below
    "exact": exam_item("Which  Drug lowers blood PRESSURE most?", "x", "y"),
    "shuffled": exam_item("Why?", "heparin", "aspirin"),
    "n-gram": exam_item(f"Before. {LONG[:100]} and another end", "x", "y"),
    "translation": exam_item("¿Cuál?", "Amoxicilina 500 mg", "Penicilina, 2,5 g", "Vancomicina", right="B"),
    "another key": exam_item("¿Cuál?", "Amoxicilina 500 mg", "Penicilina, 2,5 g", "Vancomicina", right="C"),
    "generic": exam_item("Which of these statements is true?", "new", "other")}
TEST = [exam_item("Which drug lowers blood pressure most?", "a", "b"),
        exam_item("Why?", "Aspirin", "Heparin"),
        exam_item(LONG, "a", "b"),
        exam_item("Which?", "Amoxicillin 500 mg", "Penicillin, 2.5 g", "Vancomycin", right="B"),
        *[exam_item("Which of these statements is true?", f"a{i}", "b") for i in range(5)]]


@pytest.mark.parametrize(("name", "rule"), [
    ("exact", "exact"), ("shuffled", "exact"), ("n-gram", "n-gram"), ("translation", "translation"),
    ("another key", ""), ("generic", "")])
def test_train_items_that_leak_test_items_are_marked_or_dropped(name, rule, tmp_path, capsys):
    test = write(tmp_path / "exam" / "test.jsonl", TEST)
    english = ["--source", f"custom={test}", "--language", "en", "--map", MAP, "--out", tmp_path / "english"]
    assert mmedbench.main([*map(str, english)]) == 0
    spanish = name in ("translation", "another key")
    train = write(tmp_path / "train.jsonl", [LEAKS[name], exam_item("Something else?", "1", "2")])
    given = ["--source", f"custom={train}", "--language", "es" if spanish else "en", "--map", MAP,
             "--benchmark", tmp_path / "english" / "Test"]
    file = "Train/Spanish.jsonl" if spanish else "Train/English.jsonl"
    first, second = run(tmp_path / "marked", *given)[file]
    assert first.get("leaks", {}).get("rule", "") == rule and "leaks" not in second
    if rule:
        assert f"leak a test item, by rule: {rule} 1" in capsys.readouterr().out
        got = run(tmp_path / "dropped", *given, "--drop_leaks")
        assert len(got[file]) == 1
        lost, = got["dropped.jsonl"]
        assert lost["reason"] == f"leaks a test item ({rule})" and lost["leaks"] == first["leaks"]


def test_several_sources_of_a_language_need_mix(tmp_path):
    one = write(tmp_path / "a.jsonl", [medqa_item("q") | {"subject": "anatomy"}])
    sources = ["--source", f"medqa={one}", "--source", f"mmlu={one}"]
    assert "add --mix" in error_of(*sources, "--out", tmp_path / "x")
    got = run(tmp_path / "out", *sources, "--mix")["Test/English.jsonl"]
    assert [item["source"] for item in got] == ["medqa", "mmlu"]
    assert len(read_benchmark(tmp_path / "out" / "Test")) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.fixed_dictionaries({
    "question": st.sampled_from(["", " ", "a", "痛", "\u2028", "x\ny", "\ud800"]),
    "correct_answers": st.lists(st.sampled_from("abcdefg")),
    "answers": st.dictionaries(st.sampled_from("abcdef"),
                               st.sampled_from(["", "a", "(A) b", "\ud800", "é" * 50]))}), max_size=8))
def test_items_are_written_or_dropped_but_never_lost(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("items")
    items = [french_item(i, **change) for i, change in enumerate(changes)] + [french_item(999)]
    got = run(folder / "out", "--source", f"frenchmedmcqa={write(folder / 'train.json', items)}")
    assert len(got["Train/French.jsonl"]) + len(got["dropped.jsonl"]) == len(items)
    for item in got["Train/French.jsonl"]:
        assert item["question"].strip() and set(item["answer_idx"].split(",")) <= set(item["options"])
        assert list(item["options"]) == list("ABCDEF")[:len(item["options"])]


def test_only_an_own_folder_is_replaced_and_a_failure_leaves_it(tmp_path, monkeypatch):
    source = f"frenchmedmcqa={write(tmp_path / 'in' / 'train.json', [french_item(1)])}"
    before = run(tmp_path / "out", "--source", source)
    assert run(tmp_path / "out", "--source", source) == before
    monkeypatch.setattr(mmedbench, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmedbench.main(["--source", source, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "counts.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    write(tmp_path / "mine" / "notes.txt", "precious")
    assert "not a folder that this command wrote" in error_of("--source", source, "--out", tmp_path / "mine")


CUSTOM = ["--source", "custom=x", "--language", "en", "--map"]


@pytest.mark.parametrize(("options", "message"), [
    (["--source", "igakuka=x"], "no source 'igakuka'; did you mean 'igakuqa'"),
    (["--source", "medqa"], "expected NAME=PATH"),
    (["--source", "custom=x"], "needs --map"), (["--source", "medqa=gone"], "gone: no such file or folder"),
    ([*CUSTOM, "question=q"], "'options' is missing"), ([*CUSTOM, "qestion=q"], "did you mean 'question'?"),
    ([*CUSTOM, f"{MAP},kind=2"], "expected letter, text, 0 or 1"),
    ([*CUSTOM, f"{MAP},filter=health"], "expected filter=KEY=VALUE"),
    (["--source", "medqa=x", "--holdout", "2"], "between 0 and 1"),
])
def test_wrong_use_is_one_line(tmp_path, options, message):
    assert message in error_of(*options, "--out", tmp_path / "o")


@pytest.mark.parametrize(("record", "message"), [
    ({"q": 1}, "no key 'question', which the mapping names; it has q"),
    ({"question": {"x": 1}, "options": ["a"], "answer_idx": "A"}, "'question' is a dict, expected a text"),
    ({"question": "q", "options": ["a", "b", "c"], "answer_idx": 1}, "are 1, so it is unclear"),
])
def test_records_of_another_form_are_one_line(tmp_path, record, message):
    path = write(tmp_path / "e.jsonl", [record])
    said = error_of("--source", f"custom={path}", "--language", "en", "--map", MAP, "--out", tmp_path / "o")
    assert message in said and said.startswith(str(path))
