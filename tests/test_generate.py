"""The command mmed.generate: files of prompts, streams, chat; killed runs continue, also on several ranks."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_start import run as warm_run

import mmed.utils.journal
from data_prep.mmedbench import main as make_benchmark
from mmed.checkpoints.pretrained import save_pretrained
from mmed.generate import generate, load_model, main, printable
from mmed.inference.work_sharing import run_rounds
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.chat_template import encode_chat
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.journal import Journal

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
REAL = ROOT.parent / "shared" / "data"
DEMO = Path(os.environ.get("MMED_DEMO", ROOT / "demo"))


def tiny_model(seed: int, **fields) -> Transformer:
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
                 num_key_value_heads=4, initializer_range=0.3)
    return Transformer(ModelConfig(**shape, **fields)).init_weights(seed).eval()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    texts = ["fever and cough in the lung, pain in the heart"] * 20
    tokenizer = train_sentencepiece(texts, root / "tokenizer", 310)
    model = tiny_model(13, vocab_size=tokenizer.vocab_size, max_position_embeddings=1000)
    save_pretrained(model, tokenizer, root / "model")
    return root / "model"


def write_prompts(path: Path, count: int) -> list[str]:
    """Lines of prompts; the options that name the file."""
    rows = [{"id": i, "prompt": "fever and cough"[:3 + i % 9]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--input", str(path)]


# ------------------------------------------------------------------------------------------- files of prompts

def test_a_killed_run_continues_and_writes_the_same_file(model_folder, tmp_path, monkeypatch):
    arguments = ["--model", str(model_folder), *write_prompts(tmp_path / "in.jsonl", 40),
                 "--max_new_tokens", "6", "--batch_size", "2", "--temperature", "1"]
    main([*arguments, "--out", str(tmp_path / "whole.jsonl")])
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == list(range(40))

    calls, add = [], mmed.utils.journal.Journal.add

    def add_then_die(self, number, rows):
        add(self, number, rows)
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mmed.utils.journal.Journal, "add", add_then_die)
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--out", str(tmp_path / "killed.jsonl")])
    with open(tmp_path / "killed.jsonl.partial", "ab") as file:
        file.write(b'{"round": 32, "ro')
    main([*arguments, "--out", str(tmp_path / "killed.jsonl")])
    assert (tmp_path / "killed.jsonl").read_bytes() == whole
    with pytest.raises(UserError, match="already there"):
        main([*arguments, "--out", str(tmp_path / "killed.jsonl")])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_empty_file_of_prompts_gives_an_empty_file(model_folder, tmp_path, dtype):
    source = write_prompts(tmp_path / "in.jsonl", 0)
    main(["--model", str(model_folder), *source, "--out", str(tmp_path / "out.jsonl"), "--dtype", dtype])
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_line_without_a_prompt_is_named(model_folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    files = ["--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"in\.jsonl:2: expected an object with a text 'prompt'"):
        main(["--model", str(model_folder), *files])


# ---------------------------------------------------------------------------------------------- several ranks

def test_two_ranks_write_the_file_that_one_writes(model_folder, tmp_path):
    """Also with the weights sharded over both, which decodes by the plain loop."""
    arguments = ["--model", str(model_folder), *write_prompts(tmp_path / "in.jsonl", 20),
                 "--max_new_tokens", "3", "--batch_size", "1"]
    for name, ranks, more in (("one", 1, []), ("two", 2, []), ("sharded", 2, ["--shard"])):
        warm_run([*arguments, "--out", str(tmp_path / name), *more], ranks=ranks, module="mmed.generate")
    one, two, sharded = ((tmp_path / name).read_bytes() for name in ("one", "two", "sharded"))
    assert one == two == sharded
    assert not list(tmp_path.rglob("*.partial"))


def test_an_evaluation_by_two_ranks_writes_the_files_of_one(model_folder, tmp_path):
    item = {"options": {"A": "fever", "B": "cough"}, "answer_idx": "A", "rationale": "pain"}
    lines = [json.dumps(item | {"question": "lung " * (i + 1)}) for i in range(20)]
    (tmp_path / "English.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--model", str(model_folder), "--data", str(tmp_path / "English.jsonl"),
                 "--max_new_tokens", "5", "--batch_size", "1", "--scoring", "both"]
    for name, ranks, more in (("one", 1, []), ("two", 2, []), ("sharded", 2, ["--shard"])):
        warm_run([*arguments, "--out", str(tmp_path / name), *more], ranks=ranks, module="mmed.eval")
    for file in ("predictions.jsonl", "results.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    one, sharded = ((tmp_path / name / "predictions.jsonl").read_text().splitlines()
                    for name in ("one", "sharded"))
    for line, other_line in zip(one, sharded, strict=True):
        # another engine: the last digits of scores may differ
        row, other = json.loads(line), json.loads(other_line)
        assert row.pop("logprobs", {}) == pytest.approx(other.pop("logprobs", {}), abs=1e-4) and row == other
    assert not list(tmp_path.rglob("*.partial"))


def test_torchrun_starts_the_command_on_two_ranks(model_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    files = [*write_prompts(tmp_path / "in.jsonl", 9), "--out", str(tmp_path / "out")]
    done = subprocess.run([*launch, "-m", "mmed.generate", "--model", str(model_folder), *files,
                           "--max_new_tokens", "2", "--batch_size", "1"],
                          capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "out").read_text().splitlines()) == 9


def test_rounds_that_other_ranks_left_are_taken_over(tmp_path):
    part = Journal(tmp_path / "x.jsonl.rank-3", {"a": 1})
    part.add(16, [{"n": 16}])
    part.file.close()
    calls = []

    def compute(number):
        calls.append(number)
        return [{"n": number}]

    journal = run_rounds(tmp_path / "x.jsonl", {"a": 1}, {0: 1, 8: 5, 16: 2}, compute)
    assert calls == [0, 8] and [row["n"] for row in journal.rows()] == [0, 8, 16]
    journal.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def gone_within(seconds: float, group: int) -> bool:
    """Whether no process of the group is left after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("grace", [30, 0.2])
def test_a_rank_whose_launcher_was_killed_ends_and_unlocks_its_journal(tmp_path, grace):
    """By SIGTERM; one that ignores it (grace 0.2) by SIGKILL."""
    source = f"""
import os, signal, time
from pathlib import Path
from mmed.training import distributed
from mmed.utils.journal import Journal
distributed.GRACE_SECONDS = {grace}
if os.fork() == 0:
    if {grace} < 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal = Journal(Path({str(tmp_path / "x.jsonl")!r}), {{}})
    distributed.end_with_launcher()
    print("working", flush=True)
time.sleep(600)
"""
    launcher = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=ROOT,
                                start_new_session=True)
    assert launcher.stdout.readline() == b"working\n"
    with pytest.raises(UserError):
        Journal(tmp_path / "x.jsonl", {})
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert gone_within(20, launcher.pid)
    Journal(tmp_path / "x.jsonl", {}).file.close()


class KilledEvaluation:
    """An evaluation in processes of its own that are killed with SIGKILL: of torchrun only the launcher."""

    def __init__(self, folder: Path, *options: object):
        self.folder, self.options = folder, [str(option) for option in options]

    def start(self, name: str, ranks: int = 1) -> subprocess.Popen:
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        command = [sys.executable, "-m", *(launch if ranks > 1 else []), "mmed.eval", *self.options]
        command += ["--out", str(self.folder / name)]
        return subprocess.Popen(command, start_new_session=True, env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL,
                                stderr=open(self.folder / "errors", "w"))

    def finish(self, name: str) -> None:
        assert self.start(name).wait() == 0, (self.folder / "errors").read_text()[-1000:]

    def rounds_done(self, name: str) -> int:
        journals = (self.folder / name).glob("*.partial")
        return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in journals)

    def kill_after(self, name: str, ranks: int, rounds: int) -> None:
        process = self.start(name, ranks)
        while self.rounds_done(name) < rounds:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert gone_within(20, process.pid)

    def assert_equal(self, one: str, other: str) -> None:
        files = sorted(path.name for path in (self.folder / one).iterdir())
        assert files == sorted(path.name for path in (self.folder / other).iterdir())
        assert "predictions.jsonl" in files
        for name in files:
            assert (self.folder / one / name).read_bytes() == (self.folder / other / name).read_bytes(), name


def killed_twice(run: KilledEvaluation, rounds: tuple[int, int]) -> None:
    """The second time on another number of ranks."""
    run.kill_after("killed", 1, rounds[0])
    run.kill_after("killed", 2, rounds[1])
    run.finish("killed")
    run.finish("whole")
    run.assert_equal("killed", "whole")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "headqa").is_dir(), reason="the real exam files are not here")
def test_an_exam_of_a_thousand_real_items_killed_twice_gives_the_same_files(tmp_path):
    make_benchmark(["--source", f"headqa={REAL / 'headqa'}", "--out", str(tmp_path / "exam")])
    exam = tmp_path / "exam" / "Val"
    lines = (exam / "Spanish.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    tokenizer = train_sentencepiece(lines, tmp_path / "tokenizer", 2000)
    model = tiny_model(16, vocab_size=tokenizer.vocab_size, max_position_embeddings=2048)
    save_pretrained(model, tokenizer, tmp_path / "model")
    killed_twice(KilledEvaluation(tmp_path, "--model", tmp_path / "model", "--data", exam, "--limit", 1000,
                                  "--scoring", "both", "--max_new_tokens", 6, "--batch_size", 8), (3, 8))


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "runs" / "full_corpus" / "model").is_dir(), reason="no demo: run make demo")
def test_the_demos_exam_killed_twice_gives_the_same_files(tmp_path):
    model, exam = DEMO / "runs" / "full_corpus" / "model", DEMO / "world" / "MMedBench" / "Test"
    killed_twice(KilledEvaluation(tmp_path, "--model", model, "--data", exam, "--setting", "finetuned",
                                  "--mode", "rationale", "--scoring", "both", "--max_new_tokens", 64,
                                  "--batch_size", 4), (1, 3))


# --------------------------------------------------------------------------------------------------- terminal

def test_chat_begins_with_the_disclaimer_in_the_chosen_language(model_folder, capsys, monkeypatch):
    answers = iter(["J'ai de la fièvre.", ""])

    def typed(_):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
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
        ids = encode_chat(tokenizer, [{"role": "user", "content": "fever"}], name=template)
    new = generate(model, [ids], 8, end_ids=tokenizer.end_ids)[0]
    assert capsys.readouterr().out == "fever" + printable(tokenizer.decode(new, continued=True)) + "\n"


@pytest.mark.parametrize("arguments, message", [
    (["--input", "x.jsonl"], "--input and --out go together"),
    (["--prompt", "x", "--max_new_tokens", "0"], "--max_new_tokens"),
    (["--prompt", "x", "--top_p", "0"], "top_p"),
    (["--prompt", "x", "--adapter", "nowhere"], "nowhere")])
def test_wrong_options_are_an_error_of_one_line(model_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--model", str(model_folder), *arguments])
