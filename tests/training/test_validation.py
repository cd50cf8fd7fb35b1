"""Validation loss: every token of a document once, after its BOS, as in transformers; in runs and alone."""
import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from forked_runs import warm_run
from json_lines import write_lines
from tiny_world import lines, pretrain, write_stream

from mmed.config import TrainConfig
from mmed.data import IGNORE
from mmed.evaluation import validation_loss
from mmed.tokenizer import load_tokenizer
from mmed.training.validation import compare, document_sets, validation_sets, windows
from mmed.utils.errors import UserError

TEXTS = [("en", "heart lung bone cell fever dose " * 8), ("en", "plum rain"),
         ("ja", "stone river dose cell " * 5)]


@pytest.fixture(scope="module")
def world(world):
    write_lines(world / "texts.jsonl", *({"text": text, "language": language} for language, text in TEXTS))
    shutil.copytree(world / "model", world / "no_bos", ignore=shutil.ignore_patterns("tokenizer.json"))
    (world / "no_bos" / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    return world


@pytest.fixture
def measure(world, capsys):
    """Language -> what the command prints for a model and data of the world."""
    def run(model, *data, more=()):
        capsys.readouterr()
        names = [str(world / name) for name in data]
        assert validation_loss.main(["--model", str(world / model), "--data", *names, "--json", *more]) == 0
        return {row["language"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    return run


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
def test_it_equals_transformers_on_whole_documents(world, measure, model, bos):
    from transformers import AutoModelForCausalLM

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(world / "model"), load_tokenizer(world / model)
    found = measure(model, "texts.jsonl")
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


def test_a_token_stream_gives_the_loss_of_its_documents_unless_it_is_damaged(world, measure):
    tokenizer = load_tokenizer(world / "model")
    documents = [tokenizer.encode(text, bos=True, eos=True) for language, text in TEXTS if language == "en"]
    write_stream(world / "s", documents, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.fingerprint)
    assert measure("model", "s")["en"] == pytest.approx(measure("model", "texts.jsonl")["en"])
    with pytest.raises(UserError, match="s: named twice"):
        document_sets([str(world / "s")] * 2, tokenizer, 64, 0)
    (world / "s.bin").write_bytes((world / "s.bin").read_bytes()[::-1])
    with pytest.raises(UserError, match="its sha256 is not the one"):
        document_sets([str(world / "s")], tokenizer, 64, 0)


def test_bos_is_what_the_user_says_and_a_stream_made_otherwise_is_rejected(measure):
    auto, yes, no = (measure("no_bos", "texts.jsonl", more=["--bos", choice])["en"]
                     for choice in ("auto", "yes", "no"))
    assert auto == no and yes["tokens"] == no["tokens"] + 2 and yes == measure("model", "texts.jsonl")["en"]
    with pytest.raises(UserError, match="same --bos"):
        measure("no_bos", "en")
    measure("no_bos", "en", more=["--bos", "yes"])


def test_a_run_logs_the_loss_before_step_1_whatever_its_sequence_length(world, tmp_path, measure):
    both = f"--validation={world}/en,{world}/texts.jsonl"
    for length in (16, 64):
        arguments = [both, f"--sequence_length={length}", "--max_steps=3"]
        warm_run(pretrain(world, tmp_path / str(length), *arguments))
    short, long = (lines(tmp_path / name) for name in ("16", "64"))
    before, after = short[0]["validation_loss"], short[-1]["validation_loss"]
    assert short[0]["step"] == 0 and before == pytest.approx(long[0]["validation_loss"], abs=1e-6)
    assert short[-1]["validation_change"] == {name: after[name] - before[name] for name in ("en", "ja")}
    out = tmp_path / "deep" / "loss.json"
    by_command = measure("model", "en", "texts.jsonl", more=["--out", str(out)])  # 60 documents
    assert json.loads(out.read_text()) == list(by_command.values())
    for key, name in (("validation_loss", "nats_per_token"), ("bits_per_byte", "bits_per_byte")):
        expected = {language: row[name] for language, row in by_command.items()}
        assert short[0][key] == pytest.approx(expected, abs=1e-6)


def test_a_run_that_raises_the_loss_says_so_in_its_last_line_also_after_a_resume(world, tmp_path):
    # text that the training text makes less likely
    other = write_lines(tmp_path / "other.jsonl", {"text": "#@ 7531 ~^&* 8642 " * 9, "language": "en"})
    out = tmp_path / "run"
    arguments = pretrain(world, out, f"--validation={other}", "--learning_rate=2e-2", "--resume=auto")
    warm_run(arguments)
    done = warm_run([*arguments, "--resume=step-8"]).stderr.strip().splitlines()[-1]
    log = lines(out)
    before, after = log[0]["validation_loss"]["en"], log[-1]["validation_loss"]["en"]
    assert [line["step"] for line in log] == list(range(11)) and after > before
    assert f"en {before:.3f} -> {after:.3f} (ROSE)" in done
    (out / "done.json").unlink()  # as if it had been killed while it wrote the model
    assert warm_run(arguments).stderr.strip().splitlines()[-1] == done
    other_data = f"--validation={world}/texts.jsonl"  # whose loss before step 1 is not known
    last = warm_run([*arguments, "--resume=step-8", other_data]).stderr.strip().splitlines()[-1]
    assert not lines(out)[-1]["validation_change"] and " -> " not in last


def test_exam_items_without_a_rationale_are_validated_on_their_answers(tmp_path, world):
    item = {"question": "heart?", "options": {"A": "lung", "B": "bone"}, "answer_idx": "A"}
    write_lines(tmp_path / "English.jsonl", item)
    write_lines(tmp_path / "French.jsonl", item, item | {"rationale": "plum"})
    config = TrainConfig(task="finetune", validation=str(tmp_path))
    sets = validation_sets(config, load_tokenizer(world / "model"), 64)
    assert {name: one.documents for name, one in sets.items()} == {"English": 1, "French": 1}


def test_languages_of_documents_go_by_code_and_nan_is_no_gain(tmp_path, world):
    rows = [{"text": "plum rain", "language": name} for name in ("English", "en-US", "en", "tlh")]
    for name, kind in (("mixed.jsonl", ""), ("general-mixed.jsonl", "general ")):
        path = write_lines(tmp_path / name, *rows)
        sets = document_sets([str(path)], load_tokenizer(world / "model"), 64, 0)
        assert {name: one.documents for name, one in sets.items()} == {f"{kind}en": 3, f"{kind}tlh": 1}
    assert compare({"en": 3.0}, {"en": math.nan}).endswith("(ROSE); ")
