"""An evaluation from exam files to result folder: scores worked out by hand, files whole and the same after every kind of stop."""
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mmed.eval
import mmed.utils.files
from mmed.checkpoints.pretrained import save_pretrained
from mmed.eval import build_questions, candidates, cut_at_answer, encoder_of, main, parse_options
from mmed.evaluation.results import load_prompts, load_results, loglikelihood_row, text_row, write_results
from mmed.evaluation.summary import summarise, table
from mmed.generate import load_model
from mmed.model import ModelConfig, Transformer
from mmed.prompts import ExamItem, build_messages, build_target, read_benchmark
from mmed.tokenization.chat_template import encode_chat
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.journal import Journal, facts_that_differ

FILES = {"predictions.jsonl", "results.json", "multi_choice_results.csv", "rationale_results.csv", "accuracy_metric.csv",
         "rationale_similarity_metric.csv", *(f"samples_mmedbench_{language}.jsonl" for language in ("english", "japanese", "french"))}
WORDS = "fever cough pain liver heart drug dose blood lung brain".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny random model with a tokenizer, and exams in three languages."""
    root, rng = tmp_path_factory.mktemp("eval"), random.Random(1)
    for part in ("Test", "Train"):
        (root / part).mkdir()
        for language, count in (("English", 14), ("Japanese", 9), ("French", 6)):
            with open(root / part / f"{language}.jsonl", "w", encoding="utf-8") as file:
                for i in range(count):
                    letters = "ABCDE"[:rng.randint(3, 5)]
                    right = rng.sample(letters, 2 if language == "French" and i % 2 else 1)
                    file.write(json.dumps({
                        "question": " ".join(rng.choices(WORDS, k=rng.randint(3, 30))) + '?, "ça"\n熱',
                        "options": {letter: " ".join(rng.sample(WORDS, 2)) for letter in letters}, "answer_idx": ",".join(sorted(right)),
                        "rationale": " ".join(rng.choices(WORDS, k=9)), "human_checked": True, "human_check_passed": i % 3 > 0,
                        "topic": "Heart", "image_dependent": i == 0}) + "\n")
    texts = [line for path in sorted(root.glob("*/*.jsonl")) for line in open(path, encoding="utf-8")]
    tokenizer = train_sentencepiece([*texts, "###Answer: OPTION A IS CORRECT. ###Rationale:"] * 3, root / "tokenizer", 400)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                    num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, initializer_range=0.2)).init_weights(0)
    save_pretrained(model, tokenizer, root / "model")
    return root


def run(world: Path, out: Path, *more: str) -> None:
    main(["--model", str(world / "model"), "--data", str(world / "Test"), "--out", str(out), "--max_new_tokens", "12", "--slots", "1", *more])


@pytest.fixture(scope="module")
def finished(world):
    run(world, world / "finished", "--scoring", "both")
    return world / "finished"


def test_all_files_are_written_and_agree_with_each_other(world, finished):
    assert {path.name for path in finished.iterdir()} == FILES
    own, rows = load_results(finished)
    rows = list(rows)
    assert len(rows) == 29 * 3 and own["summary"]["micro"]["n"] == 29
    assert list(own["summary"]["languages"]) == ["English", "Japanese", "French"]
    for mode in ("answer", "rationale", "loglikelihood"):
        chosen = [row for row in rows if row["mode"] == mode and row["language"] == "French"]
        assert own["summary"]["languages"]["French"]["accuracy"][mode]["value"] == sum(row["correct"] for row in chosen) / 6
    for name, mode in (("multi_choice_results.csv", "answer"), ("rationale_results.csv", "rationale")):
        with open(finished / name, encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        assert header == ["Language", "ModelInput", "ModelOutput", "GT_Answer"]
        chosen = [row for row in rows if row["mode"] == mode and (mode == "answer" or row["doc"]["human_check_passed"])]  # as the leaderboard asks
        assert 0 < len(chosen) and [line[2] for line in lines] == [row["text"] for row in chosen]
        assert [line[3] for line in lines] == [row["gold"] if mode == "answer" else row["doc"]["rationale"] for row in chosen]
        assert all('?, "ça"\n熱' in line[1] and line[1].endswith("### Response:") for line in lines)
    with open(finished / "rationale_similarity_metric.csv", encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["Metric", "English", "Japanese", "French"]
    assert [line[0] for line in lines] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    with open(finished / "accuracy_metric.csv", encoding="utf-8", newline="") as file:
        header, line = csv.reader(file)
    assert header == ["English", "Japanese", "French"]
    assert line == [f"{100 * own['summary']['languages'][name]['accuracy']['answer']['value']:.2f}" for name in header]
    assert own["summary"]["text_items"] == "human_check_passed"
    assert own["summary"]["micro"]["text"]["BLEU-1|nltk-method1"]["n"] == sum(row["doc"]["human_check_passed"] for row in rows) // 3


def test_a_finished_folder_is_only_shown_again_and_two_runs_are_identical(world, finished, tmp_path, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    run(world, finished, "--scoring", "both")
    assert "nothing to do" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before
    run(world, tmp_path / "again", "--scoring", "both")
    assert same_files(finished, tmp_path / "again")


def same_files(one: Path, other: Path) -> bool:
    return {path.name for path in other.iterdir()} == FILES and all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_anywhere_goes_on_to_the_same_files(world, finished, tmp_path, seed, monkeypatch):
    """The journal of a run that was stopped is cut at a random byte, as a kill in the middle of a write leaves it."""
    out = tmp_path / "out"
    whole: list[bytes] = []
    discard = Journal.discard

    def keep(self):
        whole.append(self.partial.read_bytes())
        discard(self)

    monkeypatch.setattr(Journal, "discard", keep)
    run(world, out, "--scoring", "both")
    for name in FILES:
        (out / name).unlink()
    rounds = whole[0].count(b"\n") - 1
    cut = random.Random(seed).randrange(len(whole[0]))
    (out / "predictions.jsonl.partial").write_bytes(whole[0][:cut])
    done = whole[0][:cut].count(b"\n") - 1
    count = []
    run_round = mmed.eval.run_round
    monkeypatch.setattr(mmed.eval, "run_round", lambda *arguments: count.append(1) or run_round(*arguments))
    run(world, out, "--scoring", "both")
    assert same_files(finished, out) and rounds == 4
    assert len(count) == rounds - max(done, 0)  # what was done was not done again


def test_a_killed_process_goes_on_to_the_same_files(world, finished, tmp_path):
    """Killed as soon as its first round is kept; on a busy machine that may be later, as late as while it writes its last file."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmed.eval", "--model", str(world / "model"), "--data", str(world / "Test"), "--out", str(out),
               "--max_new_tokens", "12", "--slots", "1", "--scoring", "both"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and lines_of(out / "predictions.jsonl.partial") < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert same_files(finished, out)


def lines_of(path: Path) -> int:
    """0 also if the file goes away between a look and the next."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_a_run_killed_while_it_writes_its_files_leaves_no_half_file_behind(finished, tmp_path, monkeypatch):
    """The process dies inside one of the writes of the end: its temporary file stays until the next run, and no longer."""
    own, rows = load_results(finished)
    rows, prompts, replace = list(rows), load_prompts(finished), mmed.utils.files.os.replace
    for name in sorted(FILES):
        out = tmp_path / name
        out.mkdir()

        def die(source, target, name=name, out=out):
            if Path(target).name == name:  # as a kill leaves it, under the number of a process that is gone
                shutil.copy(source, out / f"{name}.4194304.tmp")
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(mmed.utils.files.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_results(out, rows, prompts, own["facts"], own["settings"])
        assert not (out / "results.json").exists() and list(out.glob("*.tmp"))
        monkeypatch.setattr(mmed.utils.files.os, "replace", replace)
        (out / "mine.tmp").write_text("not ours")
        write_results(out, rows, prompts, own["facts"], own["settings"])
        (out / "mine.tmp").unlink()  # what others put there stays
        assert same_files(finished, out)


def test_results_of_another_run_are_refused_by_naming_what_differs(world, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with pytest.raises(UserError, match=r"max_new_tokens = 12 \(now 9\)"):
        run(world, out, "--scoring", "both", "--max_new_tokens", "9")
    shutil.copytree(world / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match=r"another run: model = .*…"):
        run(world, out, "--scoring", "both", "--model", str(tmp_path / "model"))
    (tmp_path / "Test").mkdir()
    (tmp_path / "Test" / "English.jsonl").write_text((world / "Test" / "English.jsonl").read_text())
    with pytest.raises(UserError, match=r"another run: data = "):
        run(world, out, "--scoring", "both", "--data", str(tmp_path / "Test"))
    (out / "results.json").unlink()  # a run that was stopped says the same
    (out / "predictions.jsonl.partial").write_text('{"facts": {"style": "official"}}\n')
    with pytest.raises(UserError, match=r"begun with .*style = official \(now clean\)"):
        run(world, out, "--scoring", "both")
    run(world, out, "--scoring", "both", "--force")
    assert same_files(finished, out)


def test_few_shot_limit_and_one_mode(world, tmp_path):
    run(world, tmp_path / "out", "--shots", "1", "--train", str(world / "Train"), "--limit", "2", "--mode", "answer")
    own, rows = load_results(tmp_path / "out")
    rows = list(rows)
    assert len(rows) == 6 and {row["mode"] for row in rows} == {"answer"} and own["settings"]["setting"] == "few-shot"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {"rationale_results.csv", "rationale_similarity_metric.csv"}
    assert len(load_prompts(tmp_path / "out")) == 6
    with open(tmp_path / "out" / "multi_choice_results.csv", encoding="utf-8", newline="") as file:
        assert all(line["ModelInput"].count("### Response:") == 2 for line in csv.DictReader(file))


def test_examples_of_a_rationale_run_have_their_rationales_and_those_of_an_answer_run_have_none(world, tmp_path):
    run(world, tmp_path / "out", "--shots", "2", "--train", str(world / "Train"), "--limit", "1", "--scoring", "both")
    prompts = load_prompts(tmp_path / "out")
    assert len(prompts) == 9
    for (_, mode), prompt in prompts.items():
        assert prompt.count("###Answer: OPTION") == 2 and prompt.count("###Rationale: ") == (2 if mode == "rationale" else 0)


def test_an_instruct_model_gets_the_questions_in_its_own_turns(world, tmp_path):
    run(world, tmp_path / "out", "--turns", "auto", "--limit", "2", "--scoring", "both", "--shots", "1", "--train", str(world / "Train"))
    own, rows = load_results(tmp_path / "out")
    assert own["settings"]["turns"] == "auto" and len(list(rows)) == 18
    for prompt in load_prompts(tmp_path / "out").values():  # Llama 2's turns: sentencepiece without special tokens for them
        assert prompt.count("[INST]") == prompt.count("[/INST]") == 2 and prompt.endswith("IS CORRECT. [/INST]") and "### Instruction" not in prompt
    options = parse_options(["--model", str(world / "model"), "--data", str(world / "Test"), "--out", "x", "--turns", "mistral", "--style", "official"])
    model, tokenizer = load_model(options.model)
    item = read_benchmark(world / "Test")[0]
    question, = build_questions([item], "rationale", options, [], encoder_of(model, tokenizer, options), 2048)
    assert question.ids == encode_chat(tokenizer, build_messages(item, True, "official"), name="mistral") and question.ids[0] == tokenizer.bos_id
    assert tokenizer.bos_id not in question.ids[1:] and "best treatment" in question.prompt


def test_prompts_that_are_too_long_are_named_or_cut(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    with pytest.raises(UserError, match=r"item \w+ \(English\): its prompt has .* the model has 64 positions"):
        run(world, tmp_path / "out", "--model", str(tmp_path / "model"))
    run(world, tmp_path / "out", "--model", str(tmp_path / "model"), "--too_long", "cut", "--force")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.parametrize("arguments, message", [
    (["--shots", "2"], "few-shot needs both"),
    (["--setting", "few-shot"], "few-shot needs both"),
    (["--slots", "0"], "--slots"),
    (["--turns", "lama3"], "--turns lama3: expected none, auto or one of"),
    (["--data", "nowhere"], "nowhere"),
    (["--model", "nowhere"], "nowhere: no such model folder"),
])
def test_bad_input_is_said_in_one_line(world, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        run(world, tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value)


def test_an_exam_in_an_unknown_language_is_refused_before_any_work(world, tmp_path):
    (tmp_path / "Klingon.jsonl").write_text((world / "Test" / "English.jsonl").read_text())
    with pytest.raises(UserError, match="unknown language 'Klingon'"):
        run(world, tmp_path / "out", "--data", str(tmp_path / "Klingon.jsonl"))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ scores by hand

def item(key: str, answer: str, language: str = "English", passed: bool | None = None, **extra) -> ExamItem:
    return ExamItem("Why?", dict.fromkeys("ABCD", "x"), tuple(answer.split(",")), "the cat sat down", language, key, passed is not None, passed, extra)


def test_accuracy_parse_shares_and_averages_are_the_ones_worked_out_by_hand():
    def answer(key, gold, text, **more):
        return text_row(item(key, gold, **more), "answer", "h", text, "default")

    right = "###Answer: OPTION {} IS CORRECT.".format
    rows = [answer("1", "A", right("A")), answer("2", "B", right("C")), answer("3", "A,B", right("B,A")), answer("4", "D", "The answer is D."),
            answer("5", "A", "I do not know", language="Russian", image_dependent=True), answer("6", "A", right("A"), language="Russian")]
    summary = summarise(rows)
    english, russian = summary["languages"]["English"], summary["languages"]["Russian"]
    assert (english["accuracy"]["answer"]["right"], english["accuracy"]["answer"]["n"]) == (3, 4)
    assert (russian["accuracy"]["answer"]["right"], russian["accuracy"]["answer"]["n"]) == (1, 2)
    assert summary["macro"]["accuracy"]["answer"]["value"] == (3 / 4 + 1 / 2) / 2
    assert summary["micro"]["accuracy"]["answer"]["value"] == 4 / 6
    assert english["parse"]["answer"] == {"strict": 3 / 4, "lenient": 1 / 4, "unparsed": 0}
    assert russian["parse"]["answer"] == {"strict": 1 / 2, "lenient": 0, "unparsed": 1 / 2}
    assert english["chance"] == (1 / 4 * 3 + 1 / 15) / 4                    # several right: one of 2^4 - 1 sets
    assert english["multiple"]["answer"]["n"] == 1 and english["single"]["answer"]["n"] == 3
    assert russian["image_dependent"]["answer"]["n"] == 1 and "image_dependent" not in english
    assert summary["micro"]["accuracy"]["official"]["value"] == 3 / 6       # the published scorer reads only its own form
    assert "50.0" in table(summary, "default")


def test_text_metrics_take_the_checked_items_where_any_was_checked():
    def rationale(key, text, **more):
        return text_row(item(key, "A", **more), "rationale", "h", f"###Rationale: {text}\n###Answer: OPTION A IS CORRECT.", "default")

    # BLEU-1 of "the cat sat" against "the cat sat down": 3/3 words, brevity penalty exp(1 - 4/3) = 0.7165
    rows = [rationale("1", "the cat sat"), rationale("2", "a dog")]
    summary = summarise(rows)
    assert summary["micro"]["text"]["BLEU-1|nltk-method1"]["value"] == pytest.approx(0.7165313 / 2)
    assert summary["text_items"].startswith("all")
    rows = [rationale("1", "the cat sat", passed=True), rationale("2", "a dog", passed=False), rationale("3", "a dog")]
    summary = summarise(rows)
    assert summary["micro"]["text"]["BLEU-1|nltk-method1"] | {"low": 0, "high": 0} == {"value": pytest.approx(0.7165313), "low": 0, "high": 0, "n": 1}
    assert summary["signatures"]["BLEU-1|nltk-method1"]["English"] == "BLEU-1|nltk-method1|tok:mmed-words|avg:mean-of-items|v1"


def test_loglikelihood_takes_the_likeliest_and_the_likeliest_per_token():
    row = loglikelihood_row(item("1", "B"), "h", ["A", "B", "C"], [-4.0, -6.0, -4.0], [4, 12, 4])
    assert row["parsed"] == "A" and row["parsed_norm"] == "B" and not row["correct"] and row["correct_norm"]


def test_candidates_are_what_the_chance_level_counts():
    assert candidates(item("1", "A")) == ["A", "B", "C", "D"]
    several = candidates(item("1", "A,B"))
    assert len(several) == len(set(several)) == 15 and "A,B" in several and "A,B,C,D" in several


@pytest.mark.parametrize("text, expected", [
    ("###Rationale: x\n###Answer: OPTION A,C IS CORRECT. Then", "###Rationale: x\n###Answer: OPTION A,C IS CORRECT."),
    ("A\n\n### Instruction:\nNow", "A"),
    ("A\n\nBelow is an instruction that", "A"),
    ("no answer", "no answer"),
])
def test_texts_are_cut_behind_the_first_complete_answer(text, expected):
    assert cut_at_answer(text) == expected


def test_a_model_that_answers_is_scored_right(world, tmp_path, monkeypatch):
    """Decoding replaced by the reference texts: everything behind it must then give 100 %."""
    tokenizer = load_tokenizer(world / "model")
    by_prompt = {}
    build = mmed.eval.build_questions

    def remember(items, mode, *rest):
        questions = build(items, mode, *rest)
        for question in questions:
            by_prompt[tuple(question.ids)] = tokenizer.encode(build_target(question.item, mode == "rationale"), continued=True)
        return questions

    monkeypatch.setattr(mmed.eval, "build_questions", remember)
    monkeypatch.setattr(mmed.eval, "generate", lambda model, prompts, limits, **more: [by_prompt[tuple(ids)] for ids in prompts])
    run(world, tmp_path / "out", "--words", "default")
    own, rows = load_results(tmp_path / "out")
    assert {row["status"] for row in rows} == {"strict"}
    for column in ("answer", "rationale", "official"):
        assert own["summary"]["macro"]["accuracy"][column]["value"] == 1.0
    assert own["summary"]["macro"]["text"]["BLEU-4|nltk-method1"]["value"] == 1.0
    assert len(read_benchmark(world / "Test")) == own["summary"]["micro"]["n"]


# ------------------------------------------------------------------------------------------------------------- journal

def test_a_journal_is_written_by_one_process_only(tmp_path):
    journal = Journal(tmp_path / "x", {})
    with pytest.raises(UserError, match="another process"):
        Journal(tmp_path / "x", {})
    journal.add(0, [{"text": "lone \ud800 surrogate\u2028"}])
    journal.finish()
    assert [json.loads(line) for line in (tmp_path / "x").read_bytes().split(b"\n") if line] == [{"text": "lone ? surrogate\u2028"}]


def test_damage_in_the_middle_of_a_journal_is_refused(tmp_path):
    for line in ('{"round": 0, "rows": [', '{"round": "x", "rows": []}', '{"round": 0}', "[]", "[" * 100_000,
                 '{"round": 0, "rows": [{"correct": true}], "crc32": "00000000"}'):
        (tmp_path / "x.partial").write_text('{"facts": {}}\n' + line + '\n{"round": 1, "rows": []}\n')
        with pytest.raises(UserError, match=r"x\.partial:2: damaged"):
            Journal(tmp_path / "x", {})


def test_facts_that_differ_are_named():
    assert facts_that_differ({"a": 1, "b": "x" * 64}, {"a": 1, "b": "y" * 64, "c": None}) == "b = xxxxxxxxxxxx… (now yyyyyyyyyyyy…)"
