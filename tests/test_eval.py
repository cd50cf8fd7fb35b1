"""An evaluation from exam files to result folder: scores by hand, the same files after every kind of stop."""
import csv
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from json_lines import write_lines

import mmed.eval
import mmed.evaluation.results
from mmed.checkpoints.adapters import save_adapter
from mmed.checkpoints.pretrained import save_pretrained
from mmed.eval import main, parse_options
from mmed.evaluation.compare import main as main_of_compare
from mmed.evaluation.questions import build_questions, cut_at_answer, encoder_of, scored_choices
from mmed.evaluation.results import load_permutations, load_prompts, load_results, loglikelihood_row, text_row
from mmed.evaluation.summary import COLUMNS, summarise, summarise_permutations, table
from mmed.generate import load_model
from mmed.lora import apply_lora
from mmed.model import ModelConfig, Transformer
from mmed.prompts import ExamItem, build_messages, permuted, read_benchmark
from mmed.tokenization.chat_template import encode_chat
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import write_json
from mmed.utils.journal import Journal

LANGUAGES = ("English", "Japanese", "French")
FILES = {"predictions.jsonl", "results.json", "multi_choice_results.csv", "rationale_results.csv",
         "accuracy_metric.csv", *(f"samples_mmedbench_{language.lower()}.jsonl" for language in LANGUAGES)}
WORDS = "fever cough pain liver heart drug dose blood lung brain".split()


def made_item(rng: random.Random, language: str, i: int) -> dict:
    letters = "ABCDE"[:rng.randint(3, 5)]
    right = rng.sample(letters, 2 if language == "French" and i % 2 else 1)
    return {"question": " ".join(rng.choices(WORDS, k=rng.randint(3, 30))) + '?, "ça"\n熱',
            "options": {letter: " ".join(rng.sample(WORDS, 2)) for letter in letters},
            "answer_idx": ",".join(sorted(right)), "rationale": " ".join(rng.choices(WORDS, k=9)),
            "human_check_passed": i % 3 > 0, "topic": "Heart", "image_dependent": i == 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny random model with a tokenizer, and exams in three languages."""
    root, rng = tmp_path_factory.mktemp("eval"), random.Random(1)
    for part in ("Test", "Train"):
        for language, count in zip(LANGUAGES, (14, 9, 6)):
            items = [made_item(rng, language, i) for i in range(count)]
            write_lines(root / part / f"{language}.jsonl", *items)
    texts = [line for path in sorted(root.glob("*/*.jsonl")) for line in open(path, encoding="utf-8")]
    texts = [*texts, "###Answer: OPTION A IS CORRECT. ###Rationale:"] * 3
    tokenizer = train_sentencepiece(texts, root / "tokenizer", 400)
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=2048,
        initializer_range=0.2)).init_weights(0)
    save_pretrained(model, tokenizer, root / "model")
    return root


def command(world: Path, out: Path | str, *more: str) -> list[str]:
    return ["--model", str(world / "model"), "--data", str(world / "Test"), "--out", str(out),
            "--max_new_tokens", "12", "--batch_size", "1", *more]


def run(world: Path, out: Path, *more: str) -> tuple[dict, list[dict]]:
    """Evaluate: (the "mmed" part of results.json, rows)."""
    main(command(world, out, *more))
    own, rows = load_results(out)
    return own, list(rows)


def few_shot(world: Path) -> list[str]:
    return ["--shots", "2", "--train", str(world / "Train"), "--limit", "1"]


@pytest.fixture(scope="module")
def finished(world):
    run(world, world / "finished", "--scoring", "both")
    return world / "finished"


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


# ---- files ----

def test_all_files_are_written_and_agree_with_each_other(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    own, rows = load_results(finished)
    assert own["settings"]["dtype"] == ("bfloat16" if torch.cuda.is_available() else "float32")  # not "auto"
    rows, languages = list(rows), own["summary"]["languages"]
    assert len(rows) == 29 * 3 and own["summary"]["micro"]["n"] == 29 and list(languages) == list(LANGUAGES)
    for mode in ("answer", "rationale", "loglikelihood"):
        hits = [row["correct"] for row in rows if row["mode"] == mode and row["language"] == "French"]
        assert languages["French"]["accuracy"][mode]["value"] == sum(hits) / 6
    for name, mode in (("multi_choice_results.csv", "answer"), ("rationale_results.csv", "rationale")):
        header, *lines = read_csv(finished / name)
        assert header == ["Language", "ModelInput", "ModelOutput", "GT_Answer"]
        chosen = [row for row in rows if row["mode"] == mode
                  and (mode == "answer" or row["doc"]["human_check_passed"])]
        gold = [row["gold"] if mode == "answer" else row["doc"]["rationale"] for row in chosen]
        assert [line[2:] for line in lines] == [[row["text"], right] for row, right in zip(chosen, gold)]
        assert all('?, "ça"\n熱' in line[1] and line[1].endswith("### Response:") for line in lines)
    shares = [f"{100 * part['accuracy']['official']['value']:.2f}" for part in languages.values()]
    assert read_csv(finished / "accuracy_metric.csv") == [list(LANGUAGES), shares]


def test_leaderboard_files_contain_only_what_they_are_for(world, tmp_path):
    for name in ("run.log", ".nfs1"):  # is there before the result
        (tmp_path / name).touch()
    run(world, tmp_path, "--words", "official", "--limit", "2", "--mode", "rationale")
    header, *lines = read_csv(tmp_path / "rationale_similarity_metric.csv")
    assert header == ["Metric", *LANGUAGES]
    names = [line[0] for line in lines]
    assert names == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert not (tmp_path / "accuracy_metric.csv").exists()  # accuracy means answer-only texts there
    run(world, tmp_path, "--limit", "2", "--scoring", "loglikelihood", "--force")
    assert not list(tmp_path.glob("*.csv"))  # those of the earlier run are gone, too


def test_a_finished_folder_is_only_shown_again(world, finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    run(world, finished, "--scoring", "both")
    assert "nothing to do" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_a_journal_cut_anywhere_continues_to_the_same_files(world, finished, tmp_path, monkeypatch, rng):
    whole: list[bytes] = []
    discard = Journal.discard
    monkeypatch.setattr(
        Journal, "discard", lambda self: whole.append(self.path.read_bytes()) or discard(self))
    run(world, tmp_path, "--scoring", "both")
    for name in FILES:  # as if killed while writing
        (tmp_path / name).rename(tmp_path / f"{name}.4194304.tmp")
    (tmp_path / "mine.tmp").write_text("not ours")
    cut = whole[0][:rng.randrange(len(whole[0]))]
    (tmp_path / "predictions.jsonl.partial").write_bytes(cut)
    computed = []
    run_round = mmed.eval.run_round
    monkeypatch.setattr(mmed.eval, "run_round", lambda *args: computed.append(1) or run_round(*args))

    def write_and_die(*arguments):
        write_json(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mmed.evaluation.results, "write_json", write_and_die)
        run(world, tmp_path, "--scoring", "both")
    run(world, tmp_path, "--scoring", "both")  # killed again, after its last file
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"mine.tmp"}
    assert all((finished / name).read_bytes() == (tmp_path / name).read_bytes() for name in FILES)
    assert len(computed) == whole[0].count(b"\n") - 1 - max(cut.count(b"\n") - 1, 0)  # only what was missing


def test_results_of_another_run_are_rejected_with_what_differs(world, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    with pytest.raises(UserError, match=r"max_new_tokens = 12 \(now 9\)"):
        run(world, out, "--scoring", "both", "--max_new_tokens", "9")
    with pytest.raises(UserError, match=r"another run: data = "):
        run(world, out, "--scoring", "both", "--data", str(world / "Train"))
    (out / "results.json").unlink()  # an unfinished run says the same
    (out / "predictions.jsonl.partial").write_text('{"facts": {"style": "official"}}\n')
    with pytest.raises(UserError, match=r"begun with .*style = official \(now clean\)"):
        run(world, out, "--scoring", "both")


# ---- prompts ----

@pytest.mark.parametrize("more, modes", [(["--scoring", "both"], {"answer", "rationale", "loglikelihood"}),
                                         (["--cot"], {"rationale"})])
def test_examples_have_rationales_only_in_a_rationale_run(world, tmp_path, more, modes):
    own, _ = run(world, tmp_path, *few_shot(world), *more)
    prompts, signature = load_prompts(tmp_path), own["summary"]["signatures"]["rationale"]
    ours = "rationales of train items; our prompt, no published number's"
    assert {mode for _, mode in prompts} == modes and len(prompts) == 3 * len(modes)
    assert f"|seed:0|examples:{own['facts']['train'][:12]}" in signature
    assert own["settings"]["setting"] == "few-shot"
    assert (ours in signature) == (more == ["--cot"])
    for (_, mode), prompt in prompts.items():
        assert prompt.count("### Response:") == 3 and prompt.count("###Answer: OPTION") == 2
        assert prompt.count("###Rationale: ") == (2 if mode == "rationale" else 0)


def test_an_instruct_model_gets_its_own_chat_template(world):
    config = parse_options(command(world, "x", "--chat_template", "mistral", "--style", "official"))
    model, tokenizer = load_model(config.model)
    item = read_benchmark(world / "Test")[0]
    question, = build_questions([item], "rationale", config, [], encoder_of(model, tokenizer, config), 2048)
    assert question.ids == encode_chat(tokenizer, build_messages(item, True, "official"), name="mistral")[1]
    assert question.ids[0] == tokenizer.bos_id and tokenizer.bos_id not in question.ids[1:]
    assert "best treatment" in question.prompt and "### Instruction" not in question.prompt


@pytest.mark.parametrize("bos_id", [None, 7])
def test_a_too_long_prompt_is_rejected_or_loses_its_beginning(world, bos_id):
    item, ids = read_benchmark(world / "Test")[0], list(range(7, 107))
    config = parse_options(command(world, "x", "--too_long", "truncate"))
    question, = build_questions([item], "answer", config, [], lambda *_: ("prompt", ids), 60, bos_id)
    expected = ids[-48:] if bos_id is None else [7, *ids[-47:]]
    assert question.ids == expected  # 12 of the 60 positions are for the answer
    config = parse_options(command(world, "x"))
    with pytest.raises(UserError, match=r"\(100 tokens\) plus 12 reserved .* context length of 60"):
        build_questions([item], "answer", config, [], lambda *_: ("prompt", ids), 60)


@pytest.mark.parametrize("arguments, message", [
    (["--shots", "2"], "few-shot needs both"), (["--setting", "few-shot"], "few-shot needs both"),
    (["--batch_size", "0"], "--batch_size"), (["--data", "nowhere"], "nowhere: no such file$"),
    (["--scoring", "generate,cloze"], "'cloze' is none of generate, loglikelihood, option_text, both"),
    (["--scoring", "option_text", "--permutations", "2"], "--permutations must be"),
    (["--cot"], "--cot needs --shots"), (["--model", "nowhere"], "nowhere: no such folder; .*hf download"),
    (["--model", "run"], "run: a training run, without config.json; its model is run/model"),
    (["--adapter", "run"], "run: a training run, .*; its model is run/model"),
    (["--adapter", "lora"], "lora: a training run, .*; its adapter is lora/adapter"),
    (["--adapter", "merged"], "merged: a training run, .*; its adapter is merged/adapter"),
    (["--data", "raw.json"], r"raw.json:1: .* JSON object.*; python -m data_prep.mmedbench"),
    (["--data", "Raw.jsonl"], "'answer_idx' must be .*; python -m data_prep.mmedbench"),
    (["--data", "lines.json"], "None; python -m data_prep.mmedbench converts an exam as published$"),
    (["--data", "lora"], "lora: no .*; python -m data_prep.mmedbench"),
    (["--out", "run"], "run: contains model, but no result"),
    (["--api", "m"], "either --model"), (["--data", "Klingon.jsonl"], "unknown language 'Klingon'"),
    *((["--model", "", "--api", "m", *more], message) for more, message in (
        ([], "no such environment variable"), (["--scoring", "both"], "needs --completions"),
        (["--base_url", "localhost:8000"], "--base_url"),
        *((["--base_url", f"http://{rest}"], "--base_url") for rest in (
            "user:pw@x/v1", "x:port/v1", "x/v1?api-version=1", "", "[::1/v1")),
        (["--base_url", "http://x/v1", "--server_option", "n=2"], "--server_option n=2"),
        (["--base_url", "http://x/v1", "--server_option", "top_p"], "expected NAME=VALUE"))),
])
def test_wrong_options_are_rejected(world, tmp_path, monkeypatch, arguments, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(world / "Test" / "English.jsonl", "Klingon.jsonl")
    shutil.copytree(world / "model", "run/model")
    for folder in ("lora/adapter", "merged/adapter", "merged/model"):
        Path(folder).mkdir(parents=True)
    Path("raw.json").write_text("[]")
    for name in ("Raw.jsonl", "lines.json"):
        write_lines(Path(name), {"question": "Why?", "options": {"A": "x", "B": "y"}, "answer": "A"})
    with pytest.raises(UserError, match=message) as caught:
        run(world, tmp_path / "out", *arguments)
    assert isinstance(caught.value, UsageError) or re.search("nowhere|Klingon|run|mmedbench", message)


# ---- scores by hand ----

def item(key: str, answer: str, language: str = "English", passed: bool | None = None, **extra) -> ExamItem:
    options = dict(zip("ABCD", ("aspirin", "heparin", "insulin", "iron")))
    return ExamItem("Why?", options, tuple(answer.split(",")), "the cat sat down", language, key,
                    passed, extra)


def answer(key, gold, text, **more):
    return text_row(item(key, gold, **more), "answer", "h", text, "default")


def rationale(key, text, **more):
    text = f"###Rationale: {text}\n###Answer: OPTION A IS CORRECT."
    return text_row(item(key, "A", **more), "rationale", "h", text, "default")


def test_accuracy_parse_shares_and_averages_by_hand():
    right = "###Answer: OPTION {} IS CORRECT.".format
    rows = [answer("1", "A", right("A")), answer("2", "B", right("C")), answer("3", "A,B", right("B,A")),
            answer("4", "D", "The answer is D."),
            answer("5", "A", "I do not know", language="Russian", image_dependent=True),
            answer("6", "A", right("A"), language="Russian")]
    summary = summarise(rows)
    english, russian = summary["languages"]["English"], summary["languages"]["Russian"]
    assert (english["accuracy"]["answer"]["right"], english["accuracy"]["answer"]["n"]) == (3, 4)
    assert summary["macro"]["accuracy"]["answer"]["value"] == (3 / 4 + 1 / 2) / 2
    assert summary["micro"]["accuracy"]["answer"]["value"] == 4 / 6
    assert english["parse"]["answer"] == {"strict": 3 / 4, "lenient": 1 / 4, "unparsed": 0}
    assert english["chance"] == (1 / 4 * 3 + 1 / 11) / 4  # several right: one of the 11 sets of two or more
    assert english["multiple"]["answer"]["n"] == 1 and english["single"]["answer"]["n"] == 3
    assert russian["image_dependent"]["answer"]["n"] == 1 and "image_dependent" not in english
    assert summary["micro"]["accuracy"]["official"]["value"] == 3 / 6  # it reads only its own form
    assert "50.0" in table(summary, "default")


def test_text_scores_count_checked_items_in_the_languages_that_have_any():
    # BLEU-1 of "the cat sat" against "the cat sat down": 3/3 words, brevity penalty exp(1 - 4/3) = 0.7165
    bleu, unchecked = "BLEU-1|nltk-method1", [rationale("1", "the cat sat"), rationale("2", "a dog")]
    summary = summarise(unchecked)
    assert summary["micro"]["text"][bleu]["value"] == pytest.approx(0.7165313 / 2)
    assert summary["text_items"] == "all with a reference rationale"
    checked = [rationale("3", "the cat sat", language="Russian", passed=True),
               rationale("4", "a dog", language="Russian", passed=False)]
    summary = summarise(unchecked + checked)
    counts = {name: part["text"][bleu]["n"] for name, part in summary["languages"].items()}
    assert counts == {"English": 2, "Russian": 1}
    assert summary["macro"]["text"][bleu]["value"] == pytest.approx(0.7165313 * 3 / 4)
    assert summary["text_items"].startswith("human_check_passed in Russian; all")
    assert summary["signatures"][bleu]["English"] == f"{bleu}|tok:mmed-words|avg:mean-of-items|v1"


def test_two_metrics_of_one_name_have_columns_of_their_own():
    row = rationale("1", "the cat sat")
    row["scores"] |= {f"BERTScore|f1-{layer}|tok:x|avg:mean-of-items|v1": 0.5 for layer in ("L9", "L9-idf")}
    assert "ROUGE-L  BERTScore|f1-L9  BERTScore|f1-L9-idf\n" in table(summarise([row]), "default")


def test_a_signature_names_every_setting_that_changes_a_score():
    settings = {"style": "clean", "shots": 2, "seed": 0, "examples": "0a", "stop": "answer",
                "max_new_tokens": 64, "equal_options": "either", "chat_template": "none", "bos": "auto",
                "endpoint": "completions", "server_options": {}, "batch_size": 8}
    rows, bleu = [answer("1", "A", "A"), rationale("1", "A")], "BLEU-1|nltk-method1"
    first = summarise(rows, settings)["signatures"]
    for name, value in (settings | {"cot": False}).items():
        changed = summarise(rows, settings | {name: f"not {value}"})["signatures"]
        assert (changed["answer"] != first["answer"]) == (name not in ("batch_size", "cot")), name
        assert (changed[bleu] != first[bleu]) == (name not in ("batch_size", "equal_options")), name


def test_equal_options_are_one_answer_unless_that_is_switched_off():
    same = item("1", "B")
    same.options["C"] = "Heparin "
    for rule, right in (("either", True), ("keyed", False)):
        row = text_row(same, "answer", "h", "###Answer: OPTION C IS CORRECT.", "default", rule)
        assert row["correct"] is right and row["official_match"] is False
        scored = loglikelihood_row(same, "h", list("ABCD"), [-4.0, -3.0, -2.0, -4.0], [4] * 4, rule)
        assert scored["correct"] is right and scored["parsed"] == "C"
        assert summarise([row], {"equal_options": rule})["macro"]["chance"] == (2 / 4 if right else 1 / 4)
        assert summarise([row], {"equal_options": rule})["macro"]["official_chance"] == 1 / 4
    assert parse_options(["--model", "m", "--data", "d", "--out", "o",
                          "--style", "official"]).equal_options == "keyed"


def test_candidates_are_ranked_by_sum_by_token_and_by_pmi():
    row = loglikelihood_row(item("1", "B"), "h", ["A", "B", "C"], [-4.0, -6.0, -4.0], [4, 12, 4])
    assert row["parsed"] == "A" and row["parsed_norm"] == "B" and not row["correct"] and row["correct_norm"]
    for sums, alone in (([math.nan, -6.0], []), ([-4.0, -6.0], [-math.inf, -1.0])):
        with pytest.raises(UserError, match=r"item 1 \(English\): a log-probability is not finite"):
            loglikelihood_row(item("1", "B"), "h", ["A", "B"], sums, [4, 12], unconditional=alone)
    row = loglikelihood_row(item("1", "C"), "h", ["A", "B", "C"], [-4.0, -6.0, -7.0], [1, 3, 2],
                            unconditional=[-5.0, -7.5, -9.5])
    assert row["mode"] == "option_text" and row["parsed"] == "B" and not row["correct"]  # -4, -2, -3.5
    assert row["parsed_pmi"] == "C" and row["correct_pmi"]  # 1, 1.5, 2.5
    settings = {"style": "clean", "chat_template": "none", "bos": "auto", "dtype": "auto", "stop": "answer"}
    signatures = summarise([row], settings)["signatures"]
    assert "'Question: {question}\\nAnswer:'), divided by the number of tokens" in signatures["option_text"]
    assert signatures["option_text_pmi"].endswith("minus that after 'Answer:' alone|bos:auto|dtype:auto")


def test_option_text_runs_with_shots_and_an_adapter(world, tmp_path):
    torch.manual_seed(0)
    model, _ = load_model(str(world / "model"))
    apply_lora(model, rank=2, alpha=64, targets="q_proj,down_proj")
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_adapter(model, tmp_path / "adapter")
    options = [*few_shot(world), "--scoring", "loglikelihood,option_text"]
    own, adapted = run(world, tmp_path / "out", "--adapter", str(tmp_path / "adapter"), *options)
    _, base = run(world, tmp_path / "base", *options)
    assert [row["logprobs"] for row in base] != [row["logprobs"] for row in adapted]
    assert list(own["summary"]["micro"]["accuracy"]) == ["loglikelihood", "loglikelihood_norm", "option_text",
                                                         "option_text_pmi"]
    first = read_benchmark(world / "Test")[0]
    prompt = load_prompts(tmp_path / "out")[first.key, "option_text"]
    assert prompt.count("Question: ") == 3 and prompt.endswith(f"\n\nQuestion: {first.question}\nAnswer:")
    assert main_of_compare([str(tmp_path / "base"), str(tmp_path / "out")]) == 0


def test_a_letters_likelihood_is_that_of_its_own_tokens(world):
    tokenizer = load_tokenizer(world / "model")
    for answer, count, after in (("B", 4, ""), ("A,C", 11, " IS CORRECT.")):
        start, choices = scored_choices(tokenizer, item("1", answer), "loglikelihood")
        assert len(choices) == count
        for letters, tokens in choices.items():
            whole = tokenizer.encode(f"###Answer: OPTION {letters} IS CORRECT.", continued=True)
            assert whole[:len(start) + len(tokens)] == start + tokens
            assert tokenizer.decode(tokens).strip() == letters + after
            rest = tokenizer.decode(whole[len(start) + len(tokens):], continued=True)
            assert rest.strip() in ("IS CORRECT.", "")


@pytest.mark.parametrize("text, rest", [
    ("x\n###Answer: OPTION A,C IS CORRECT.", " Then"),
    ("A", "\n\n### Instruction:\nNow"),
    ("no answer", ""),
    ("<think>###Answer: OPTION B IS CORRECT. Hm", ""),
    ("So [THINK]###Answer: OPTION B IS CORRECT.[/THINK]###Answer: OPTION A IS CORRECT.", " x"),
    ("###Answer: OPTION A IS CORRECT.", " <think>x</think> and"),
    ("<|channel|>analysis<|message|>###Answer: OPTION B IS CORRECT.<|end|><|channel|>final<|message|>C", ""),
])
def test_texts_end_with_the_first_complete_answer_outside_the_reasoning(text, rest):
    assert cut_at_answer(text + rest) == text


# ---- options in other orders ----

def test_only_the_published_order_enters_the_other_tables(world, finished, tmp_path):
    options = ["--scoring", "both", "--permutations", "3", "--seed", "5"]
    (own, rows), (plain, plain_rows) = run(world, tmp_path, *options), load_results(finished)
    assert own["summary"]["micro"]["accuracy"] == plain["summary"]["micro"]["accuracy"]
    assert [(row["doc"], row["parsed"]) for row in rows] == [
        (row["doc"], row["parsed"]) for row in plain_rows]
    copies = load_permutations(tmp_path)
    items = {(item.key, mode): item for item in read_benchmark(world / "Test")
             for mode in ("answer", "rationale", "loglikelihood")}
    expected = [copy.options for (key, mode) in items for copy in permuted(items[key, mode], 3, 5)[1:]]
    assert sorted(map(str, expected)) == sorted(str(row["doc"]["options"]) for row in copies)
    for column in ("answer", "loglikelihood", "loglikelihood_norm"):
        mode, name = COLUMNS[column]
        for language in LANGUAGES:
            hits = [row[name] for row in rows + copies if (row["mode"], row["language"]) == (mode, language)]
            found = own["summary"]["permutations"][language][column]
            assert found["accuracy"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert own["summary"]["permutations"]["all languages"]["answer"]["n"] == 29
    run(world, tmp_path, *options)  # shown from the file
    for language in LANGUAGES:  # a copy's row is that of a run on the reordered exam
        reordered = [permuted(item, 3, 5)[2] for item in read_benchmark(world / "Test" / f"{language}.jsonl")]
        write_lines(tmp_path / "exam" / f"{language}.jsonl", *(
            {"question": item.question, "options": item.options, "answer_idx": ",".join(item.answer),
             "id": item.key} for item in reordered))
    _, alone = run(world, tmp_path / "alone", "--data", str(tmp_path / "exam"), "--scoring", "loglikelihood")
    mine = {row["key"]: row["logprobs"] for row in copies
            if row["mode"] == "loglikelihood" and row["doc"]["extra"]["option_order"] == 2}
    assert mine == {row["key"]: pytest.approx(row["logprobs"], abs=1e-4) for row in alone}


def test_consistency_and_letter_bias_of_models_that_choose_letters_or_texts():
    copies = [copy for key in "123456" for copy in permuted(item(key, "B"), 4, seed=0)]

    def chosen(letter_of):
        rows = [text_row(copy, "answer", "h", f"###Answer: OPTION {letter_of(copy)} IS CORRECT.", "default")
                for copy in copies]
        return summarise_permutations(rows)["English"]["answer"]

    always_a = chosen(lambda copy: "A")
    assert always_a["accuracy"]["value"] == 0.25 and always_a["consistency"] == 0
    assert always_a["letters"] == {"A": [1, 0.25], "B": [0, 0.25], "C": [0, 0.25], "D": [0, 0.25]}
    by_text = chosen(lambda copy: next(letter for letter in "ABCD" if copy.options[letter] == "iron"))
    assert by_text["accuracy"]["value"] == 0 and by_text["consistency"] == 1
    assert by_text["letters"]["A"] == [0.25, 0.25]
    silent = chosen(lambda copy: "")
    assert silent["consistency"] == 0 and silent["letters"]["A"] == [0, 0.25]


def test_calibration_by_hand():
    sure, half = [0.0, -50.0, -50.0, -50.0], [0.0, 0.0, -50.0, -50.0]  # confidence 1 and 1/2
    answers = [("A", sure), ("A", sure), ("B", sure), ("A", half), ("B", half)]
    rows = [loglikelihood_row(item(str(i), gold), "h", list("ABCD"), sums, [1] * 4)
            for i, (gold, sums) in enumerate(answers)]
    found = summarise(rows)["languages"]["English"]["calibration"]
    assert found["ece"] == pytest.approx((3 * abs(1 - 2 / 3) + 2 * 0) / 5)
    bins = [(part["bin"], part["n"], part["accuracy"]) for part in found["bins"]]
    assert bins == [(7, 2, 0.5), (14, 3, 2 / 3)]
    assert found["confidence"] == pytest.approx((3 * 1 + 2 * 0.5) / 5)
