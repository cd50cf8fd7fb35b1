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
from data_prep.benchmark import exam_files
from data_prep.benchmark.leaks import anchors, translations
from data_prep.benchmark.mapping import Raw
from data_prep.benchmark.options import marked_options, option_texts, read_answer
from data_prep.benchmark.sources import SOURCES
from data_prep.mmedbench import PAPER
from mmed.prompts import read_benchmark
from mmed.utils.errors import UserError

MAP = "question=question,options=options,answer=answer_idx"


def write(path: Path, value) -> Path:
    """Bytes or a str as they are, a list as JSONL or parquet where the name says so, all else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(value), path)
    elif path.suffix == ".jsonl" and isinstance(value, list):
        write_lines(path, *value)
    else:
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def run(out: Path, *options) -> dict[str, list[dict]]:
    """Run the command and read all that it wrote; an item's file has a name such as Test/English."""
    assert mmedbench.main([*map(str, options), "--out", str(out)]) == 0
    return {p.relative_to(out).as_posix().removesuffix(".jsonl"): read_lines(p)
            for p in sorted(out.rglob("*.jsonl"))}


def custom(path: Path, value, mapping: str = MAP, language: str = "en") -> list[str]:
    """Write a file or take a folder (value None), and return the options that read it through --map."""
    path = path if value is None else write(path, value)
    return ["--source", f"custom={path}", "--map", mapping, "--language", language]


def error_of(tmp_path: Path, *options) -> str:
    """The one-line message of a command that must fail."""
    with pytest.raises(UserError) as caught:
        run(tmp_path / "none", *options)
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
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


def medmcqa_item(cop: int | None) -> dict:
    """With the right answer `cop` as the authors or the copies on hubs count it; None: hidden."""
    return {"id": f"u{cop}", "question": f"q{cop}", "opa": "a", "opb": "b", "opc": "c", "opd": f"d{cop}",
            "exp": "because", "subject_name": "Anatomy"} | ({} if cop is None else {"cop": cop})


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
XPERT = {"id": "T-1", "question": "q? Answer Choices: (A) a (B) b (C) c (D) d",
         "options": ABCD | {"A": "A "}, "label": "C",
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
MEDQA = {"q/US/4_options/phrases_no_exclude_train.jsonl": [medqa_item("q1"), medqa_item("q2", "D")],
         "q/US/4_options/phrases_no_exclude_test.jsonl": [medqa_item("q4", "A")],
         "q/US/test.jsonl": [medqa_item("q4", "E", options=5)], "q/US/US_qbank.jsonl": [medqa_item("q9")],
         "q/Mainland/4_options/test.jsonl": [medqa_item("下列哪项")]}
OUTSIDE = "answer outside the options"
# Source, its files, what the items of each written file have, reasons of what is dropped
PRESETS = [
    ("medqa", MEDQA, {"Train/English": [{"answer_idx": "B"}, {"answer_idx": "D"}], "Test/English": [
        {"question": "q4", "options": {c: f"q4 {c}" for c in "ABCD"}, "answer_idx": "A", "rationale": "",
         "human_checked": False, "human_check_passed": False, "licence": "MIT", "answer": "q4 A",
         "meta_info": "step1"}]}, []),
    ("mcmle", MEDQA, {"Test/Chinese": [{"question": "下列哪项"}]}, []),
    ("medqa", {"data/test-0.parquet": [HUB], "data/train-0.parquet": [ENDINGS]}, {
        "Test/English": [C], "Train/English": [C]}, []),
    ("medqa", {"default/test/0000.parquet": [PAIRS]}, {"Test/English": [C]}, []),
    ("medqa", {f"med_qa_{name}/test/0000.parquet": [PAIRS | {"meta_info": name}] for name in (
        "en_source", "en_4options_source", "en_bigbio_qa", "zh_4options_source", "tw_source")},
     {"Test/English": [C | {"meta_info": "en_4options_source"}]}, []),
    ("mmlu", {"anatomy/test-0.parquet": [MMLU]}, {"Test/English": [C | {"subject": "anatomy"}]}, []),
    ("mmlu", {"anatomy_test.csv": '"Which, of these?",a,b,"c ""x""",d,C\n',
              "astronomy_test.csv": "Which star?,a,b,c,d,A\n",
              "dev/more.jsonl": [MMLU | {"subject": "college_biology"}, MMLU | {"subject": "law"}],
              "auxiliary_train/train.jsonl": [{"train": MMLU}]}, {"Test/English": [  # as on the hub
                  C | {"question": "Which, of these?", "options": ABCD | {"C": 'c "x"'},
                       "subject": "anatomy"}],
        "Val/English": [C | {"subject": "college_biology"}]}, []),
    # the hub has the items of all/ again subject by subject
    ("mmlu", {"all/test.part1.jsonl": [MMLU], "anatomy/test.jsonl": [MMLU]}, {"Test/English": [C]}, []),
    ("pubmedqa", {"pqa_labeled/train-0.parquet": [PUBMED]}, {"Test/English": [{
        "question": "We asked.\nWe saw.\nHelp?", "answer_idx": "C", "rationale": "It may.",
        "id": "pubmedqa-12"}]}, []),
    ("pubmedqa", {"ori_pqal.json": PUBMED_PAIR, "test_ground_truth.json": {"12": "no"}}, {
        "Train/English": [{
            "question": "We asked.\nWe saw.\nHelp?", "options": {"A": "yes", "B": "no", "C": "maybe"},
            "answer_idx": "C", "rationale": "It may.", "id": "pubmedqa-11"}],
        "Test/English": [{"answer_idx": "B"}]}, []),
    ("igakuqa", {"2023/117-A.jsonl": [
        igakuqa_item(1, choices=[], answer=["26"]), igakuqa_item(4), igakuqa_item(7, answer=["a", "c", "e"]),
        igakuqa_item(8, answer=["a or d"], text_only=True)],
        "2023/117-A_metadata.jsonl": [{"problem_id": "117A7", "category": "皮膚科"}],
        "2023/117-A_translate.jsonl": [igakuqa_item(1)]}, {"Train/Japanese": [
            {"id": "igakuqa-117A4", "image_dependent": True, "year": "2023"},
            {"answer_idx": "A,C,E", "image_dependent": False, "subject": "皮膚科"},
            {"answer_idx": "A", "answer_alternatives": ["A", "D"]}]}, ["no readable options"]),
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
    # the authors hide answers by leaving cop out, the copy on hubs by -1
    ("medmcqa", {"train.json": "\n".join(json.dumps(medmcqa_item(n)) for n in (1, 4)),
                 "test.json": medmcqa_item(None)}, {"Train/English": [
                     {"answer_idx": "A", "rationale": "because", "subject": "Anatomy", "id": "medmcqa-u1"},
                     {"answer_idx": "D"}]}, ["no answer"]),
    ("medmcqa", {"train.jsonl": [medmcqa_item(n) for n in (0, 3, -1)]}, {
        "Train/English": [{"answer_idx": "A"}, {"answer_idx": "D"}]}, ["no answer"]),
    ("jmmlu", {"JMMLU/clinical_knowledge.csv": "\ufeffq,a,b,c,d,C\n", "JMMLU/law.csv": "q,a,b,c,d,C\n"}, {
        "Test/Japanese": [C | {"question": "q", "subject": "clinical_knowledge"}]}, []),
    ("jmmlu-med", {"JMMLU-Med.csv": JMMLU}, {"Test/Japanese": [C | {"subject": "anatomy"}]}, []),
    ("careqa", {"CareQA_es.json": [CARE]}, {"Test/Spanish": [C | {"id": "careqa-u", "year": "9"}]}, []),
    ("medxpertqa", {"Text/test.jsonl": [XPERT], "MM/dev.jsonl": [XPERT | {"images": ["a.png"]}]}, {
        "Test/English": [{"question": "q?", "answer_idx": "C", "subject": "Skin", "medical_task": "x",
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
    dropped = got.pop("dropped")
    assert [line["reason"] for line in dropped] == reasons
    assert all(line["where"].startswith(str(tmp_path / "in")) and ":" in line["where"] for line in dropped)
    assert got.keys() == written.keys()
    for file, expected in written.items():
        for item, parts in zip(got[file], expected, strict=True):
            assert item.items() >= ({"source": name} | parts).items()
            assert list(item["options"]) == sorted(item["options"])


def test_all_igakuqa_questions_split_as_in_the_paper_and_by_seed():
    items = [Raw(str(i), {"A": "x", "B": "y"}, ("A",), "", "Japanese", f"igakuqa-{i}") for i in range(1988)]
    draws = {}
    for seed in (0, 0, 1):
        random.Random(seed).shuffle(items)  # the order must not matter
        mmedbench.assign_splits("igakuqa", items, seed, None, [])
        assert Counter(item.split for item in items) == PAPER["Japanese"]
        test = {item.key for item in items if item.split == "Test"}
        assert draws.setdefault(seed, test) == test
    assert len(draws[0] & draws[1]) < 60  # by chance 199 * 199 / 1988 = 20
    mmedbench.assign_splits("igakuqa", items[:39], 0, None, [])  # 39 * 199 / 1988 = 3.9
    assert Counter(item.split for item in items[:39]) == {"Train": 31, "Val": 4, "Test": 4}


def test_headqa_holds_out_the_same_questions_in_both_languages(tmp_path):
    sides = {}
    for name, code, language in (("headqa", "es", "Spanish"), ("headqa-en", "en", "English")):
        exam = headqa_file(code, "E", [headqa_item(i, words=code) for i in range(60)])
        path = write(tmp_path / code / f"train_{code}.json", exam)
        got = run(tmp_path / f"out-{code}", "--source", f"{name}={path}", "--holdout", "0.5")
        sides[code] = {item["id"].rsplit("-", 1)[1] for item in got[f"Test/{language}"]}
    assert sides["es"] == sides["en"] and 10 < len(sides["es"]) < 50


def test_a_map_changes_single_entries_of_a_preset(tmp_path):
    both = ["--source", f"medmcqa={write(tmp_path / 'train.json', [medmcqa_item(2)])}"]
    assert "from 0 or from 1; add --map kind=0 or kind=1" in error_of(tmp_path, *both)
    for kind, letter in (("0", "C"), ("1", "B")):
        item, = run(tmp_path / kind, *both, "--map", f"kind={kind}")["Train/English"]
        assert item["answer_idx"] == letter


def test_a_fold_of_pubmedqa_is_what_its_name_says(tmp_path):
    fold = write(tmp_path / "pqal_fold0" / "train_set.json", {"11": PUBMED_ITEM})
    assert "Train/English" in run(tmp_path / "fold", "--source", f"pubmedqa={fold}")


RELEASED = {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "rationale": "r ",
            "human_checked": True, "human_check_passed": True, "meta_info": "step1"}


def test_the_release_is_read_as_it_is_from_zip_and_folder(tmp_path):
    lines = "".join(json.dumps(RELEASED | {"question": f"q{i}", "answer_idx": answer}) + "\n"
                    for i, answer in enumerate(("B", ["B", "A"], "A,B")))
    release = tmp_path / "MMedBench.zip"
    with zipfile.ZipFile(release, "w") as archive:
        for name in ("MMedBench/Train/English.jsonl", "MMedBench/Test/Japanese.jsonl"):
            archive.writestr(name, lines)
        archive.writestr("__MACOSX/MMedBench/Test/._Japanese.jsonl", b"\x00\x05")
    got = run(tmp_path / "out", "--source", f"mmedbench={release}")
    assert list(got) == ["Test/Japanese", "Train/English", "dropped"]
    assert [item["answer_idx"] for item in got["Train/English"]] == ["B", "A,B", "A,B"]
    first = got["Test/Japanese"][0]
    assert (first["rationale"], first["human_check_passed"], first["meta_info"]) == ("r ", True, "step1")
    assert run(tmp_path / "again", "--source", f"mmedbench={tmp_path / 'out'}") == got
    deep = write(tmp_path / "snapshots/x/MMedBench/Test/English.jsonl",
                 [RELEASED | {"meta_info": float("nan"), "rationale": float("nan"), "leaks": "of before"}])
    snapshots = ["--source", f"mmedbench={tmp_path / 'snapshots'}"]
    item, = run(tmp_path / "deep", *snapshots)["Test/English"]
    assert item["rationale"] == "" and not {"meta_info", "leaks"} & item.keys()
    for line in (b'{"question": "\xff"}', b"5", b"[" * 99_999):
        write(deep, line)
        assert "English.jsonl:1: not MMedBench's form" in error_of(tmp_path, *snapshots)
    write(deep, b'{"question": "q"}')
    assert "English.jsonl:1: no readable options" in error_of(tmp_path, *snapshots)
    deep.rename(deep.with_name("more.jsonl"))
    assert "no Train/English.jsonl, Test/English.jsonl" in error_of(tmp_path, *snapshots)
    data = release.read_bytes()
    release.write_bytes(data[:len(data) // 2])
    assert "not a readable zip" in error_of(tmp_path, "--source", f"mmedbench={release}")


AB = {"A": "x", "B": "y"}


@pytest.mark.parametrize(("value", "options"), [
    *((value, AB) for value in (
        AB, ["x", "y"], "(A) x\n(B) y", [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}],
        [{"label": "b", "text": "y"}, {"label": "a", "text": "x"}], {"text": ["x", "y"], "label": ["A", "B"]},
        '{"option1": "x", "option2": "y", "option3": NaN}', "['x', 'y', None]", {"Ｂ": "y", "Ａ": "x"},
        "['x' 'y' nan]", "['x'\n 'y']", "[{'key': 'A', 'value': 'x'}\n {'key': 'B', 'value': 'y'}]",
        "{'label': array(['A', 'B'], dtype=object), 'text': array(['x', 'y'])}", [["A", "x"], ["B", "y"]],
        "[np.str_('x'), np.str_('y')]",
        {"option1": "x", "option2": "y", "option3": "n/a"},
        [{"letter": "A", "option": "x"}, {"letter": "B", "option": "y"}],
        {"А": "x", "Б": "y"}, "Ａ．x\nＢ．y", "（A）x（B）y", ["x", "y", None, ""])),
    ({"A": "x", "B": None, "C": 2, "D": " ", "E": None}, {"A": "x", "B": "", "C": "2"}),
    ({"2": "y", "10": "z", "1": "x"}, {"A": "x", "B": "y", "C": "z"}), (["x", None, ""], {"A": "x"}),
    ("['x', None, 'y']", {"A": "x", "B": "", "C": "y"}),
    ("['x y' \"z' w\"]", {"A": "x y", "B": "z' w"}),
    ("[array(['A', 'urea ([BUN])'], dtype=object)]", {"A": "urea ([BUN])"}),
    ({"C": "y", "B": "x"}, {"B": "x", "C": "y"}),
    *((value, {}) for value in (
        "x or y", [["x"]], {"A": "x", "a": "y"}, None, {"A": {"x": 1}}, "[x", "(A) x (B) y (B) z"))])
def test_options_are_read_in_published_forms(value, options):
    assert option_texts(value)[0] == options


@pytest.mark.parametrize(("text", "stem", "options"), [
    ("Why (A) so? (A) x (B) y", "Why (A) so?", AB), ("Why?\nA. x\nB) y", "Why?", AB),
    ("A man.\na 甲\nb 乙", "A man.", {"A": "甲", "B": "乙"}),
    ("どれか。\n\na　甲\n\nb　乙", "どれか。", {"A": "甲", "B": "乙"}),
    ("Hepatitis A. or B. is", "Hepatitis A. or B. is", {}), ("", "", {}),
    ("Vitamin (C) is? (A) x (B) y", "Vitamin (C) is?", AB), ("(a man\n(b ill", "(a man\n(b ill", {}),
])
def test_options_are_found_inside_the_question(text, stem, options):
    assert marked_options(text) == (stem, options)


@pytest.mark.parametrize("written", [
    "A,C", "AC", "CA", "(AC)", ["a", "c"], "A、C", "Ａ，Ｃ", ["A.", "(c)"], "['A', 'C']", "x,y",
    ["A. Aspirin", "heparin"], "A and C", "a & c", "A C", "A,C,", "A、C。", ["A and C"], "A\nC", "[0 2]",
    ["aspirin", " HEPARIN\u00a0"], "(ａ)．, Ｃ．", "0、②"])
def test_answers_are_read_as_they_are_written(written):
    options, names = {"A": "aspirin", "B": "1", "C": "Heparin"}, {"X": "A", "Y": "C", "0": "A", "2": "C"}
    assert sorted(read_answer(written, options, names)) == ["A", "C"]


@pytest.mark.parametrize(("written", "kind", "read"), [
    ("AB", "", ["B"]), ("AB", "text", ["B"]), ("1", "text", ["A"]), ("１", "", ["1"]), (-1, "", []),
    (2.0, "", ["2"]), (None, "", []), ("⓵", "", ["⓵"]),
    ("AB  z", "", ["D"]), ("1, 2", "", ["E"]), ("2, 1", "", ["2", "1"]),
    *((written, "", [written]) for written in ("yes", "CAF", "cab", "a or b", "A/B", "2", "B?"))])
def test_other_answers_stay_as_they_are(written, kind, read):
    assert read_answer("1,B", {"A": "x", "B": "y"}, {"1": "B"}) == ["1", "B"]  # not mixed
    assert read_answer(written, dict(zip("ABCDE", ["1", "AB", "z", "ab z", "1, 2"])), {}, kind) == read
    assert read_answer("5", {"A": "x", "B": "y"}, {"0": "A", "1": "B"}) == ["no option 5"]


NESTED = {"data": {"stem": "Q", "why": "r"}, "o1": "x", "o2": "y", "o3": "z", "key": 3, "part": "dev",
          "tag": "eye"}
PATHS = "question=data.stem,options=o1+o2+o3,answer=key"


@pytest.mark.parametrize(("changes", "mapping", "expected"), [
    ({}, f"{PATHS},rationale=data.why", {"question": "Q", "answer_idx": "C", "rationale": "r"}),
    ({"key": "y", "y": 2, "x": 1}, f"{PATHS},options=x+y",
     {"options": {"A": "1", "B": "2"}, "answer_idx": "B"}),
    ({"key": 1, "y": 2, "x": 1}, f"{PATHS},options=y+x,kind=1,keep=data.why",
     {"options": {"A": "2", "B": "1"}, "answer_idx": "A", "data.why": "r"}),
    ({"o1": "A. x"}, PATHS, {"options": {"A": "A. x", "B": "y", "C": "z"}}),
    ({"key": "o2"}, PATHS, {"answer_idx": "B"}), ({"key": [0, 2]}, PATHS, {"answer_idx": "A,C"}),
    ({"o1": "GG", "o2": "gg", "key": "gg"}, PATHS, {"answer_idx": "B"}),
    ({"key": 1, "o3": None}, f"{PATHS},kind=0", {"options": {"A": "x", "B": "y"}, "answer_idx": "B"}),
    ({"key": ["y", "Z"]}, f"{PATHS},kind=text", {"answer_idx": "B,C"}),
    ({"key": "MAYBE"}, f"{PATHS},options=yes/no/maybe,kind=text", {"answer_idx": "C"}),
    ({"key": "B", "data": {"stem": "Q (A) x (B) y"}}, f"{PATHS},options=data.stem",
     {"question": "Q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}),
    ({}, f"{PATHS},context=tag,image=tag,subject=tag,year=y?,split=part,id=tag+key,"
     "keep=part,filter=tag=x|eye",
     {"question": "eye\nQ", "image_dependent": True, "subject": "eye", "id": "exam-eye-3", "part": "dev"}),
    *(({"flag": flag}, f"{PATHS},question=title|data.stem,image=!flag", {"image_dependent": True})
      for flag in ("False", "[]", [None], " nan", "{'bytes': None}")),
    ({"flag": "['a.png']"}, f"{PATHS},image=flag", {"image_dependent": True}),
    ({"key": "o3, o1", "o3": float("nan"), "o4": "w"}, f"{PATHS},options=o1+o2+o3+o4,subject=o3",
     {"options": {"A": "x", "B": "y", "C": "", "D": "w"}, "answer_idx": "A,C"}),
    ({"key": "o3"}, f"{PATHS},options=o1+o2+o3?+o4?", {"answer_idx": "C"}),
    ({"o1": "A. x", "o2": "(B) y", "o3": "Ｃ：z", "key": "b) Y"}, PATHS,
     {"options": {"A": "x", "B": "y", "C": "z"}, "answer_idx": "B"}),
    ({"o1": "3", "o2": "2", "o3": "1"}, PATHS, {"answer_idx": "C"}),
    ({"o1": "3", "o2": "2", "o3": "1"}, f"{PATHS},kind=text", {"answer_idx": "A"}),
])
def test_a_mapping_reads(changes, mapping, expected, tmp_path):
    got = run(tmp_path / "out", *custom(tmp_path / "exam.jsonl", [NESTED | changes], mapping))
    item, = got["Val/English" if "split=" in mapping else "Test/English"]
    assert item.items() >= expected.items()


@pytest.mark.parametrize(("answers", "read"), [
    (["4", "z", "B"], ["B", "C", "B"]),  # a text among texts and letters
    (["4", "30"], ["B", "C"]),  # 30 is no position, so 4 is none
    (["4", "7", "A", "B"], ["B", "A", "B"]), (["4", "z", 1, 2], ["D", "C", "A", "B"]), (["4", 1], ["D", "A"]),
    (["4", 5, 1], ["D", "A"]), (["4", "⓵", 1], ["D", "A"]), (["4", "9" * 5000], ["D"])])
def test_a_number_is_a_text_where_other_answers_are(answers, read, tmp_path):
    texts = [["2", "4", "6", "8"], ["10", "20", "30", "40"] if "30" in answers else [*"xyzw"]]
    texts += [[*"xyzw"]] * 2
    items = [{"question": f"q{i}", "options": options, "answer_idx": answer}
             for i, (options, answer) in enumerate(zip(texts, answers))]
    got = run(tmp_path / "out", *custom(tmp_path / "exam.json", items))
    assert [item["answer_idx"] for item in got["Test/English"]] == read
    assert len(got["dropped"]) == len(answers) - len(read)


ROW = {"q": "Qé", "a": "x", "b": "y", "key": "B"}
SEMICOLONS = "q;a;b;key\r\nQé;x;y;B;;\r\n"


@pytest.mark.parametrize(("name", "data"), [
    ("e.csv", "\ufeffq, a, b, key\r\nQé,x,y,B,,\r\n"), ("e.CSV", SEMICOLONS),
    ("e.tsv", SEMICOLONS.replace(";", "\t")), ("e.csv", SEMICOLONS.replace(";", "\t").encode("utf-16")),
    ("e.json", "\ufeff" + json.dumps([ROW], indent=1)),
    ("e.json", json.dumps([ROW], indent=1, ensure_ascii=False).encode("utf-16")),
    ("e.json", '{"7": {\n' + json.dumps(ROW)[1:] + "}"),
    ("e.json", json.dumps({"7": ROW}).encode("utf-16")),
    ("e.csv", "\r\nq,a,b,key\r\n,,,\r\nQé,x,y,B\r\n  \r\n"), ("e.csv", "\r\n" + SEMICOLONS),
    ("e.csv", ",q,a,b,key\n0,Qé,x,y,B\n"),  # with the index of pandas
    ("e.json", json.dumps({key: {"0": value} for key, value in ROW.items()})),
    ("e.json", json.dumps({key: [value] for key, value in ROW.items()})),
    ("e.json", json.dumps({"version": "1", "data": [ROW]})),
    ("e.json", json.dumps({"features": [{"name": "q"}], "num_rows_total": 1,  # the dataset viewer's
                           "rows": [{"row_idx": 0, "row": ROW, "truncated_cells": []}]})),
    ("e.jsonl", "\ufeff" + json.dumps(ROW) + "\r\n")])
def test_files_of_spreadsheets_and_other_systems_are_read(name, data, tmp_path):
    write(tmp_path / "in" / name, data)
    write(tmp_path / "in" / "dataset_infos.json", {"default": {}})  # beside the exams of a model hub
    write(tmp_path / "in" / "._e.json", "\0")
    got = run(tmp_path / "out", *custom(tmp_path / "in", None, "question=q,options=a+b,answer=key", "fr"))
    item, = got["Test/French"]
    assert (item["question"], item["options"], item["answer_idx"]) == ("Qé", {"A": "x", "B": "y"}, "B")
    assert not item["rationale"]


def test_rows_of_a_table_are_items_or_dropped_with_their_line(tmp_path):
    rows = 'n,stem,a,b,c,key,why\n1,"Q\n1",x,y,,2,r\n2,Q2,x,y,z,3,\n3,,x,y,z,1,\n'
    mapping = "question=stem,options=a+b+c,answer=key,kind=1,id=n,rationale=why"
    got = run(tmp_path / "out", *custom(tmp_path / "exam.csv", rows, mapping, "es"))
    assert [(item["id"], item["answer_idx"], len(item["options"]), item["rationale"])
            for item in got["Test/Spanish"]] == [("exam-1", "B", 2, "r"), ("exam-2", "C", 3, "")]
    lost, = got["dropped"]
    assert lost["reason"] == "empty question" and lost["where"].endswith("exam.csv:5")


def exam_item(question: str, right: str = "A", **options: str | None) -> dict:
    return {"question": question, "options": options, "answer_idx": right}


def test_blank_and_equal_options_are_flagged_and_counted(tmp_path, capsys):
    items = [exam_item("Q", "B", A="aspirin", B="Heparin", C=" heparin "),
             exam_item("R", "C", A="", B="", C="GG", D="gg"), exam_item("S\ud800", A="a", B="b")]
    equal, blank = run(tmp_path / "out", *custom(tmp_path / "exam.json", items))["Test/English"]
    assert equal["equal_options"] == ["B", "C"] and "equal_options" not in blank
    assert blank["blank_options"] == ["A", "B"] and "blank_options" not in equal
    row, = json.loads((tmp_path / "out" / "counts.json").read_text())["table"]
    assert row["equal_options"] == row["blank_options"] == 1 and (row["items"], row["paper"]) == (2, None)
    said = capsys.readouterr().out
    assert "blank_options 1; equal_options 1\n" in said
    assert "dropped (listed in dropped.jsonl): broken Unicode, NaN or endless nesting 1\n" in said


def test_counts_stand_beside_the_papers_and_name_what_is_missing(tmp_path, capsys):
    write(tmp_path / "in" / "train.json", [french_item(1), french_item(2, correct_answers=[])])
    write(tmp_path / "in" / "all.json", [french_item(3)])
    run(tmp_path / "out", "--source", f"frenchmedmcqa={tmp_path / 'in'}")
    missing = "  no source given for English, Chinese, Japanese, Russian, Spanish"
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "French     frenchmedmcqa  Train         2       1   2,171  -1 no answer",
        "French     frenchmedmcqa  Val           0       0     312",
        "French     frenchmedmcqa  Test          0       0     622",
        "MMedBench                 Train                 1  45,048" + missing,
        "MMedBench                 Test                  0   8,518" + missing,
        "frenchmedmcqa: skipped, no train, dev or test in the name: all.json",
        "dropped (listed in dropped.jsonl): no answer 1"]


def test_a_hold_out_moves_only_what_states_no_split(tmp_path):
    for name in ("training", "other"):
        write(tmp_path / "in" / f"{name}.jsonl", [medqa_item(f"{name} {i}") for i in range(30)])
    got = run(tmp_path / "out", *custom(tmp_path / "in", None), "--holdout", "0.5")
    assert all(item["question"].startswith("other") for item in got["Test/English"])
    assert 5 < len(got["Test/English"]) < 25
    train, test = json.loads((tmp_path / "out" / "counts.json").read_text())["table"]
    assert train["read"] + test["read"] == 60 and test["read"] == len(got["Test/English"])


def test_repeats_are_marked_and_stay_on_one_side(tmp_path):
    items = [medqa_item("same"), medqa_item(" same "), *[medqa_item(f"q{i}") for i in range(30)],
             medqa_item("same")]
    got = run(tmp_path / "out", *custom(tmp_path / "exam.jsonl", items), "--holdout", "0.5")
    splits = {name for name in got for item in got[name] if item["question"].strip() == "same"}
    assert len(splits) == 1 and sum("duplicate_of" in item for item in got[splits.pop()]) in (1, 2)


LONG = " ".join(f"word{i}" for i in range(20))
SPANISH = {"A": "Amoxicilina 500 mg", "B": "Penicilina, 2,5 g", "C": "Vancomicina"}
TEST = [exam_item("Which drug lowers blood pressure most?", A="a", B="b"),
        exam_item("Why?", A="Aspirin", B="Heparin"), exam_item(LONG, A="a", B="b"),
        exam_item("Which?", "B", A="Amoxicillin 500 mg", B="Penicillin, 2.5 g", C="Vancomycin"),
        *[exam_item("Which of these statements is true?", A=f"a{i}", B="b") for i in range(5)]]


@pytest.mark.parametrize(("item", "rule"), [
    (exam_item("Which  Drug lowers blood PRESSURE most?", A="x", B="y"), "exact"),
    (exam_item("Why?", A="heparin", B="aspirin"), "exact"),
    (exam_item(f"Before. {LONG[:100]} and another end", A="x", B="y"), "n-gram"),
    (exam_item("¿Cuál?", "B", **SPANISH), "translation"), (exam_item("¿Cuál?", "C", **SPANISH), ""),
    (exam_item("Which of these statements is true?", A="new", B="other"), "")])
def test_train_items_that_leak_test_items_are_marked_or_dropped(item, rule, tmp_path, capsys):
    run(tmp_path / "english", *custom(tmp_path / "exam" / "test.jsonl", TEST))
    code, language = ("es", "Spanish") if item["question"] == "¿Cuál?" else ("en", "English")
    train = [item, exam_item("Something else?", A="1", B="2")]
    given = [*custom(tmp_path / "train.jsonl", train, MAP, code), "--benchmark", tmp_path / "english/Test"]
    first, second = run(tmp_path / "marked", *given)[f"Train/{language}"]
    assert first.get("leaks", {}).get("rule", "") == rule and "leaks" not in second
    if rule:
        assert f"leak a test item, by rule: {rule} 1" in capsys.readouterr().out
        got = run(tmp_path / "dropped", *given, "--drop_leaks")
        assert len(got[f"Train/{language}"]) == 1
        lost, = got["dropped"]
        assert lost["reason"] == f"leaks a test item ({rule})" and lost["leaks"] == first["leaks"]


def test_anchors_are_numbers_and_the_beginnings_of_latin_words():
    item = Raw("?", {"A": "Diarrea, 2,5 mg", "B": "Déficit de B12"}, ("A",), "", "Spanish", "1")
    assert anchors(item) == {("A", "2.5"), ("A", "diar"), ("B", "12"), ("B", "defi")}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["English", "Spanish"]), st.sets(st.integers(10, 22), max_size=9),
                          st.sampled_from("AB")), min_size=1, max_size=12), st.integers(0, 12))
def test_translations_are_those_that_a_search_of_all_pairs_finds(items, cut):
    made = [Raw("?", {"A": " ".join(map(str, numbers)), "B": "x"}, (right,), "", language, str(place))
            for place, (language, numbers, right) in enumerate(items)]
    train, test = made[:cut], made[cut:]
    expected = {}
    for place, item in enumerate(train):
        own = anchors(item)
        found = [(-len(own & anchors(twin)), number) for number, twin in enumerate(test)
                 if item.language != twin.language and item.answer == twin.answer
                 and len(own & anchors(twin)) >= max(4, 0.3 * len(own | anchors(twin)))]
        if found:
            expected[place] = test[min(found)[1]].key
    assert translations(train, test) == expected


def test_translations_with_one_id_stay_apart_in_a_benchmark(tmp_path):
    items = [exam_item("Q", A="x", B="y") | {"id": 5, "lang": language} for language in ("fr", "en", "es")]
    got = run(tmp_path / "out", *custom(tmp_path / "exam.json", items, f"{MAP},id=id,language=lang", ""))
    assert got["Test/French"][0]["id"] == "exam-5" and "duplicate_of" not in got["Test/Spanish"][0]
    assert len({item.key for item in read_benchmark(tmp_path / "out" / "Test")}) == 3


def test_several_sources_of_a_language_need_mix(tmp_path):
    one = write(tmp_path / "a.jsonl", [medqa_item("q") | {"subject": "anatomy"}])
    sources = ["--source", f"medqa={one}", "--source", f"mmlu={one}"]
    assert "add --mix" in error_of(tmp_path, *sources)
    got = run(tmp_path / "out", *sources, "--mix")["Test/English"]
    assert [item["source"] for item in got] == ["medqa", "mmlu"]
    assert len(read_benchmark(tmp_path / "out" / "Test")) == 2


@settings(max_examples=25)
@given(st.lists(st.fixed_dictionaries({
    "question": st.sampled_from(["", " ", "a", "痛", "\u2028", "x\ny", "\ud800"]),
    "correct_answers": st.lists(st.sampled_from("abcdefg")),
    "answers": st.dictionaries(st.sampled_from("abcdef"),
                               st.sampled_from(["", "a", "(A) b", "\ud800", "é" * 50]))}), max_size=8))
def test_items_are_written_or_dropped_but_never_lost(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("items")
    items = [french_item(i, **change) for i, change in enumerate(changes)] + [french_item(999)]
    got = run(folder / "out", "--source", f"frenchmedmcqa={write(folder / 'train.json', items)}")
    assert len(got["Train/French"]) + len(got["dropped"]) == len(items)
    for item in got["Train/French"]:
        assert item["question"].strip() and set(item["answer_idx"].split(",")) <= set(item["options"])
        assert list(item["options"]) == list("ABCDEF")[:len(item["options"])]


def test_only_an_own_folder_is_replaced_and_a_failure_leaves_it(tmp_path, monkeypatch):
    source = ["--source", f"frenchmedmcqa={write(tmp_path / 'in' / 'train.json', [french_item(1)])}"]
    before = run(tmp_path / "out", *source)
    assert run(tmp_path / "out", *source) == before
    monkeypatch.setattr(exam_files, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out", *source)
    assert (tmp_path / "out" / "counts.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    with pytest.raises(UserError, match="not a folder that this command wrote"):
        run(tmp_path / "in", *source)
    with pytest.raises(UserError, match="not a folder that this command wrote"):
        run(tmp_path / "in" / "train.json", *source)


def with_map(content: object, name: str = "e.jsonl", mapping: str = MAP) -> tuple[dict, str]:
    return {name: content}, f"--source custom={{}}/{name} --language en --map {mapping}"


@pytest.mark.parametrize(("given", "message"), [
    (({}, "--source igakuka=x"), "expected NAME=PATH, and a name of medqa, mcmle, igakuqa"),
    (({}, "--source medqa"), "expected NAME=PATH"), (({}, "--source medqa={}/x"), "x: no such file"),
    (({}, "--source custom=x"), "'question' is missing"),
    (with_map("", mapping="question=q"), "'options' is missing"),
    (with_map("", mapping="qestion=q"), "one of the keys question, options"),
    (with_map("", mapping=f"{MAP},kind=2"), "expected letter, text, 0 or 1"),
    (({}, f"--source custom=x --map {MAP}"), "needs --language"),
    (({}, "--source medqa=x --holdout 2"), "between 0 and 1"),
    (({"test.jsonl": [KOREAN]}, "--source kormedmcqa={}"), "unknown language 'ko'"),
    (({"x.jsonl": [WORLD | {"language": "PL"}]}, "--source globalmedqa={}"),
     "reasons: no language file for PL 1"),
    (({"x.jsonl": [APOLLO[0] | {"source": "new"}]}, "--source apollo={}"),
     "x.jsonl:1: the language of 'apollo' is unknown; give it with --language"),
    (({"ja/x.jsonl": [PROX]}, "--source mmlu-prox={} --language fr"), "in: no folder fr/; it has ja"),
    (({"x.jsonl": [CARE]}, "--source careqa={}"),
     "in: no file below this folder matches CareQA_es (it has x.jsonl); give"),
    (({"x.jsonl": [french_item(1)]}, "--source frenchmedmcqa={}"),
     "with train, dev or test in its name (it has x.jsonl)"),
    (with_map("", mapping=f"{MAP},filter=health"), "expected filter=KEY=VALUE"),
    (with_map("question,options,answer_idx\n1\n", "e.csv"), "e.csv:2: 1 columns, expected 3"),
    (with_map('question\n"2', "e.csv"), "e.csv:2: not valid CSV"),
    (with_map([{"q": 1}]), "e.jsonl:1: no key 'question', which the mapping names; it has q"),
    (with_map([exam_item({"x": 1}, A="a")]), "e.jsonl:1: 'question' is a dict, expected a text"),
    (with_map([exam_item("q", 1, A="a", B="b", C="c")]), "e.jsonl:1: the answers are 1, so it is unclear "
     "whether options are counted from 0 or from 1; add --map kind=0 or kind=1"),
    (with_map("[{},\n", "e.json"), "e.json: not valid JSON ("),
    (with_map("q,a\né,x\n".encode("latin-1"), "e.csv"), "e.csv: not in utf-8-sig; convert the"),
    (with_map({"rows": [{"row_idx": 0, "row": C, "truncated_cells": ["question"]}]}, "e.json"),
     "e.json: item 1: the dataset viewer shortened ['question']; download"),
    (with_map([], "e.json"), "none of the 0 items read as custom can be used (the files are empty)"),
])
def test_wrong_use_and_files_of_another_form_are_one_line(tmp_path, given, message):
    files, options = given
    for name, content in files.items():
        write(tmp_path / "in" / name, content)
    assert message in error_of(tmp_path, *options.format(tmp_path / "in").split())
