"""The command mmed.generate: files of prompts, streams, chat; killed runs continue, also on several ranks."""
import io
import math
import shutil
from pathlib import Path

import pytest
from forked_runs import warm_run
from json_lines import read_lines, write_lines

from mmed.checkpoints.adapters import save_adapter
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.generate import generate, load_model, main, printable
from mmed.inference.work_sharing import run_rounds
from mmed.lora import apply_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.chat_template import encode_chat
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.fingerprints import model_fingerprint
from mmed.utils.journal import Journal


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    texts = ["fever and cough in the lung, pain in the heart"] * 20
    tokenizer = train_sentencepiece(texts, root / "tokenizer", 310)
    model = Transformer(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        head_dim=8, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3,
        max_position_embeddings=1000))
    save_pretrained(model.init_weights(13), tokenizer, root / "model")
    return root / "model"


def test_an_adapter_that_brings_a_tokenizer_is_read_with_it(model_folder, tmp_path):
    model, own = load_pretrained(model_folder)
    apply_lora(model, rank=2)
    save_adapter(model, tmp_path / "adapter")
    assert load_model(str(model_folder), str(tmp_path / "adapter"))[1].fingerprint == own.fingerprint
    other = train_sentencepiece(["rain and stone, river and plum"] * 20, tmp_path / "adapter", 300)
    found = load_model(str(model_folder), str(tmp_path / "adapter"))[1]
    assert found.fingerprint == other.fingerprint != own.fingerprint


def test_the_fingerprint_of_a_model_covers_what_decides_its_texts(model_folder, tmp_path):
    folder, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(model_folder, folder)
    adapter.mkdir()
    found = {model_fingerprint(folder)}
    for path in (adapter / "adapter_config.json", adapter / "tokenizer.json", folder / "chat_template.jinja",
                 folder / "pytorch_model-00001-of-00002.bin", folder / "pytorch_model.bin.index.json"):
        path.write_text("{}")
        found |= {model_fingerprint(folder, adapter)}
    assert len(found) == 6


def complete(model_folder: Path, source: Path, out: Path, *options: str) -> list[dict]:
    """The lines that the command writes."""
    main(["--model", str(model_folder), "--input", str(source), "--out", str(out), *options])
    return read_lines(out)


def test_a_killed_run_continues_and_writes_the_same_file_which_is_never_replaced(model_folder, tmp_path,
                                                                                 monkeypatch):
    rows = [{"id": i, "prompt": "fever and cough"[:3 + i % 9], "odd": [math.nan, math.inf, 1]}
            for i in range(40)]
    files = model_folder, write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    options = "--max_new_tokens", "6", "--batch_size", "2", "--temperature", "1"
    found = complete(*files, *options)
    assert [row | {"odd": rows[0]["odd"]} for row in found] == [
        row | {"text": new["text"]} for row, new in zip(rows, found, strict=True)]
    assert all(row["odd"] == [None, None, 1] for row in found)  # what JSON cannot carry
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Journal, "finish", lambda self: 1 / 0)
        complete(*files[:2], tmp_path / "killed.jsonl", *options)
    partial = tmp_path / "killed.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-100])
    complete(*files[:2], tmp_path / "killed.jsonl", *options)
    assert (tmp_path / "killed.jsonl").read_bytes() == files[2].read_bytes()
    with pytest.raises(UserError, match="already there"):
        complete(*files, *options)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_empty_file_of_prompts_gives_an_empty_file(model_folder, tmp_path, dtype):
    assert not complete(model_folder, write_lines(tmp_path / "in"), tmp_path / "out", "--dtype", dtype)


@pytest.mark.parametrize("line, message", [
    ({"text": "b"}, "expected an object with a text 'prompt', got keys text"),
    ({"prompt": None}, "expected an object with a text 'prompt', got None"),
    ({"prompt": "fever " * 1000}, "the prompt has 1,002 tokens and the model a context length of 1,000")])
def test_a_line_without_a_usable_prompt_is_named_before_the_first_is_decoded(model_folder, tmp_path, line,
                                                                             message):
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "a"}, line)
    with pytest.raises(UserError, match=rf"in\.jsonl:2: {message}"):
        complete(model_folder, source, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_an_evaluation_by_two_ranks_writes_the_files_of_one(model_folder, tmp_path):
    item = {"options": {"A": "fever", "B": "cough"}, "answer_idx": "A", "rationale": "pain"}
    exam = write_lines(tmp_path / "English.jsonl",
                       *(item | {"question": "lung " * (i % 20 + 1) + str(i)} for i in range(21)))
    arguments = ["--model", str(model_folder), "--data", str(exam), "--max_new_tokens", "5",
                 "--batch_size", "1", "--scoring", "both"]
    for name, ranks in (("one", 1), ("two", 2)):
        warm_run([*arguments, "--out", str(tmp_path / name)], ranks=ranks, module="mmed.eval")
    for file in ("predictions.jsonl", "results.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_rounds_that_other_ranks_left_are_taken_over(tmp_path):
    part = Journal(tmp_path / "x.jsonl.rank-3", {"a": 1})
    part.add(16, [{"n": 16}])
    part.file.close()
    calls = []
    journal = run_rounds(tmp_path / "x.jsonl", {"a": 1}, {0: 1, 8: 5, 16: 2},
                         lambda number: calls.append(number) or [{"n": number}])
    assert calls == [0, 8] and [row["n"] for row in journal.rows()] == [0, 8, 16]
    journal.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_chat_begins_with_the_disclaimer_in_the_chosen_language(model_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("J'ai de la fièvre.\n\n"))
    main(["--model", str(model_folder), "--chat", "--language", "fr", "--max_new_tokens", "5"])
    assert "avis médical" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("template", ["none", "llama2", "mistral"])
@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_streamed_text_is_the_decoded_answer_to_the_prompt(model_folder, capsys, template, engine):
    model, tokenizer = load_model(str(model_folder))
    main(["--model", str(model_folder), "--prompt", "fever", "--max_new_tokens", "8",
          "--chat_template", template, "--engine", engine])
    ids = tokenizer.encode("fever", bos=True)
    if template != "none":
        ids = encode_chat(tokenizer, [{"role": "user", "content": "fever"}], name=template)[1]
    new = generate(model, [ids], 8, end_ids=tokenizer.end_ids)[0]
    assert capsys.readouterr().out == "fever" + printable(tokenizer.decode(new, continued=True)) + "\n"


@pytest.mark.parametrize("arguments, message", [
    (["--input", "x.jsonl"], "--input and --out go together"),
    (["--prompt", "x", "--max_new_tokens", "0"], "--max_new_tokens"),
    (["--prompt", "x", "--top_p", "0"], "top_p"), (["--prompt", "x", "--top_k", "-1"], "top_k"),
    (["--prompt", "x", "--temperature", "nan"], "temperature nan"),
    (["--prompt", "x", "--device", "gpu"], "--device gpu: no such device"),
    (["--prompt", "x", "--adapter", "nowhere"], "nowhere")])
def test_wrong_options_are_an_error_of_one_line(model_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--model", str(model_folder), *arguments])
