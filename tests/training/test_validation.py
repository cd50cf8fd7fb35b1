"""Validation loss: every token of a document once, after its BOS, as in transformers; in runs and alone."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from json_lines import write_lines
from tiny_world import lines, make_world, pretrain
from warm_start import run as warm_run

from mmed.config import TrainConfig
from mmed.data import IGNORE
from mmed.evaluation import validation_loss
from mmed.tokenization.texts import read_texts
from mmed.tokenization.token_streams import StreamWriter
from mmed.tokenizer import load_tokenizer
from mmed.training.validation import compare, document_sets, validation_sets, windows
from mmed.utils.errors import UserError

TEXTS = [("en", "heart lung bone cell fever dose " * 8), ("en", "plum rain"),
         ("ja", "stone river dose cell " * 5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("world"))
    write_lines(folder / "texts.jsonl", *({"text": text, "language": language} for language, text in TEXTS))
    shutil.copytree(folder / "model", folder / "no_bos")
    (folder / "no_bos" / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    return folder


def command(capsys, *arguments):
    capsys.readouterr()
    assert validation_loss.main([str(a) for a in arguments] + ["--json"]) == 0
    return {row["language"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}


@pytest.mark.parametrize("bos_id", [None, 1])
@pytest.mark.parametrize("count, context", [
    (0, 8), (1, 8), (7, 8), (8, 8), (9, 8), (50, 8), (23, 2), (200, 33)])
def test_windows_score_every_token_once_and_begin_with_bos(bos_id, count, context):
    ids = list(range(10, 10 + count))
    scored = []
    for row in windows(ids, bos_id, context):
        assert len(row) <= context and (bos_id is None or row.input_ids[0] == bos_id)
        places = row.labels != IGNORE
        scored += row.labels[places].tolist()
        body = row.input_ids[bos_id is not None :].tolist()
        assert body == list(range(body[0], body[0] + len(body))) if body else count
        assert (row.labels[places] == row.input_ids[places] + 1)[1:].all()
    assert scored == (ids if bos_id is not None else ids[1:])


@pytest.mark.parametrize("model, bos", [("model", True), ("no_bos", False)])
def test_it_equals_transformers_on_whole_documents(world, capsys, model, bos):
    from transformers import AutoModelForCausalLM

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(world / "model"), load_tokenizer(world / model)
    found = command(capsys, "--model", world / model, "--data", world / "texts.jsonl")
    for language in ("en", "ja"):
        total, tokens, size = 0.0, 0, 0
        for text in (text for name, text in TEXTS if name == language):
            ids = [1] * bos + tokenizer.encode(text)
            with torch.no_grad():
                logits = theirs(torch.tensor([ids])).logits[0, :-1]
                total += float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
            tokens += len(ids) - 1
            size += len(text.encode()) - (0 if bos else len(tokenizer.decode(ids[:1]).encode()))
        assert found[language]["tokens"] == tokens
        assert found[language]["nats_per_token"] == pytest.approx(total / tokens, abs=1e-5)
        assert found[language]["bits_per_byte"] == pytest.approx(total / math.log(2) / size, abs=1e-5)
    assert found["en"]["documents"] == 2


def test_a_token_stream_gives_the_loss_of_its_documents(world, capsys, tmp_path):
    tokenizer = load_tokenizer(world / "model")
    writer = StreamWriter(tmp_path / "s", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for text, language in read_texts(world / "texts.jsonl"):
        if language == "en":
            writer.add(tokenizer.encode(text, bos=True, eos=True), "en")
    writer.close()
    of_file = command(capsys, "--model", world / "model", "--data", world / "texts.jsonl")["en"]
    of_stream = command(capsys, "--model", world / "model", "--data", tmp_path / "s")["en"]
    assert of_stream == pytest.approx(of_file)


def test_bos_is_what_the_user_says_and_a_stream_made_otherwise_is_rejected(world, capsys):
    texts = ["--data", world / "texts.jsonl"]
    auto, yes, no = (command(capsys, "--model", world / "no_bos", *texts, "--bos", choice)["en"]
                     for choice in ("auto", "yes", "no"))
    assert auto == no and yes["tokens"] == no["tokens"] + 2
    assert yes == command(capsys, "--model", world / "model", "--data", world / "texts.jsonl")["en"]
    with pytest.raises(UserError, match="same --bos"):
        validation_loss.main(["--model", str(world / "no_bos"), "--data", str(world / "en")])
    command(capsys, "--model", world / "no_bos", "--data", world / "en", "--bos", "yes")
    assert load_tokenizer(world / "model").fingerprint != load_tokenizer(world / "model", "no").fingerprint


def test_a_run_logs_the_loss_before_step_1_whatever_its_sequence_length(world, tmp_path, capsys):
    both = f"{world}/en,{world}/texts.jsonl"
    for length in (16, 64):
        options = [f"--validation={both}", f"--sequence_length={length}", "--max_steps=3"]
        warm_run(pretrain(world, tmp_path / str(length), *options))
    short, long = (lines(tmp_path / name) for name in ("16", "64"))
    before = short[0]["validation_loss"]
    assert short[0]["step"] == 0 and before == pytest.approx(long[0]["validation_loss"], abs=1e-6)
    out = tmp_path / "deep" / "loss.json"
    by_command = command(capsys, "--model", world / "model", "--data", both, "--out", out)  # 60 documents
    assert json.loads(out.read_text()) == list(by_command.values())
    for key, name in (("validation_loss", "nats_per_token"), ("bits_per_byte", "bits_per_byte")):
        expected = {language: row[name] for language, row in by_command.items()}
        assert short[0][key] == pytest.approx(expected, abs=1e-6)
    after = short[-1]["validation_loss"]
    assert short[-1]["validation_change"] == {name: after[name] - before[name] for name in ("en", "ja")}


def test_a_run_that_raises_the_loss_says_so_in_its_last_line_also_after_a_resume(world, tmp_path):
    # text that the training text makes less likely
    other = write_lines(tmp_path / "other.jsonl", {"text": "#@ 7531 ~^&* 8642 " * 9, "language": "en"})
    arguments = pretrain(world, tmp_path / "run", f"--validation={other}", "--learning_rate=2e-2",
                         "--resume=auto")
    warm_run([*arguments, "--max_steps=10"])
    (tmp_path / "run" / "done.json").unlink()
    for path in (tmp_path / "run" / "checkpoints").glob("step-10"):
        shutil.rmtree(path)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-8")
    done = warm_run([*arguments, "--max_steps=10"])
    log = lines(tmp_path / "run")
    before, after = log[0]["validation_loss"], log[-1]["validation_loss"]
    assert [line["step"] for line in log] == list(range(11)) and after["en"] > before["en"]
    assert f"en {before['en']:.3f} -> {after['en']:.3f} (ROSE)" in done.stderr.strip().splitlines()[-1]
    (tmp_path / "run" / "done.json").unlink()  # as if it had been killed while it wrote the model
    again = warm_run([*arguments, "--max_steps=10"])
    assert again.stderr.strip().splitlines()[-1] == done.stderr.strip().splitlines()[-1]


def test_a_resume_with_other_validation_documents_does_not_compare_with_the_old_ones(world, tmp_path):
    arguments = pretrain(world, tmp_path / "run", "--max_steps=4", "--save_every=2")
    warm_run([*arguments, f"--validation={world}/en"])
    done = warm_run([*arguments, "--resume=step-2", f"--validation={world}/texts.jsonl"])
    assert not lines(tmp_path / "run")[-1]["validation_change"]
    assert " -> " not in done.stderr.strip().splitlines()[-1]


def test_exam_items_without_a_rationale_are_validated_on_their_answers(tmp_path, world):
    item = {"question": "heart?", "options": {"A": "lung", "B": "bone"}, "answer_idx": "A"}
    write_lines(tmp_path / "English.jsonl", item)
    write_lines(tmp_path / "French.jsonl", item, item | {"rationale": "plum"})
    config = TrainConfig(task="finetune", validation=str(tmp_path))
    sets = validation_sets(config, load_tokenizer(world / "model"), 64)
    assert {name: one.documents for name, one in sets.items()} == {"English": 1, "French": 1}


def test_languages_of_documents_go_by_code_and_nan_is_no_gain(tmp_path, world):
    rows = [{"text": "plum rain", "language": name} for name in ("English", "en-US", "en", "tlh")]
    path = write_lines(tmp_path / "mixed.jsonl", *rows)
    sets = document_sets([str(path)], load_tokenizer(world / "model"), 64, 0)
    assert {name: one.documents for name, one in sets.items()} == {"en": 3, "tlh": 1}
    general = path.rename(tmp_path / "general-mixed.jsonl")
    assert list(document_sets([str(general)], load_tokenizer(world / "model"), 64, 0)) == [
        "general en", "general tlh"]
    assert compare({"en": 3.0}, {"en": math.nan}).endswith("(ROSE); ")


def test_a_damaged_validation_stream_is_one_line(world, tmp_path):
    for ending in ("bin", "idx"):
        shutil.copy(world / f"en.{ending}", tmp_path)
    meta = json.loads((world / "en.json").read_text())
    (tmp_path / "en.json").write_text(json.dumps(meta | {"sha256": {"bin": "0" * 64, "idx": "0" * 64}}))
    with pytest.raises(UserError, match="its sha256 is not the one"):
        document_sets([str(tmp_path / "en")], load_tokenizer(world / "model"), 64, 0)
