"""The command mmed.tokenizer: training gives the same file every time, uses all text, rejects bad input."""
import gzip
import random
import subprocess
import sys

import pytest
from json_lines import write_lines
from repository import ROOT

from mmed.tokenizer import load_tokenizer, main, train_sentencepiece
from mmed.utils.errors import UserError


def test_training_twice_in_fresh_processes_gives_the_same_file(tmp_path, capsys):
    rng = random.Random(3)
    texts = ["".join(rng.choices("fièvre 发热 жар, ", k=60)) for _ in range(500)]
    plain = write_lines(tmp_path / "texts" / "a.jsonl", *({"text": text} for text in texts))
    (tmp_path / "texts" / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "texts" / "b.txt").write_text("\n".join(texts), encoding="utf-8")
    for name in ("one", "two"):
        command = ["train", tmp_path / "texts", "--out", tmp_path / name, "--vocab_size", "700"]
        done = subprocess.run([sys.executable, "-m", "mmed.tokenizer", *command], capture_output=True,
                              text=True, cwd=ROOT)
        assert done.returncode == 0 and "700 pieces" in done.stdout, done.stderr
    one, two = ((tmp_path / name / "tokenizer.model").read_bytes() for name in ("one", "two"))
    assert one == two
    main(["show", str(tmp_path / "one"), "--text", "fièvre"])
    pieces, shown = capsys.readouterr().out.splitlines()
    ids = load_tokenizer(tmp_path / "one").encode("fièvre")
    assert shown == " ".join(map(str, ids)) and len(pieces.split(" | ")) == len(ids) and "è" in pieces


def test_training_leaves_out_nothing_of_long_or_odd_lines(tmp_path):
    """The trainer drops lines over its limit, and lines with U+2585; ours are split, or the sign replaced."""
    lines = ["lorem ipsum " * 500 + "ж" * 200 + " \ud800", "dolor\u2585 ы ы ы ы"]
    ours = train_sentencepiece(lines, tmp_path, 300, character_coverage=1.0)
    assert {"ж", "ы"} <= {ours.piece(index) for index in range(ours.vocab_size)}
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 2, 3, 0)


@pytest.mark.parametrize("name, data, size, said", [
    ("bad.jsonl", b'{"text": "x"}\n{"text": \n', 700, "bad.jsonl:2"),
    ("odd.jsonl", b'{"text": "x"}\n{"text": 3}\n', 700, "odd.jsonl:2"),
    ("empty.jsonl", b'{"text": ""}\n', 700, "no text"), ("x.pdf", b"", 700, "expected a .jsonl"),
    ("good.txt", b"fever and cough", 90_000, "vocab_size=90000"),
    ("good.txt", b"fever and cough", 12, "--vocab_size=12"),
    ("cut.jsonl.gz", gzip.compress(b'{"text": "fever"}\n' * 99, mtime=0)[:-20], 700, "cut.jsonl.gz:"),
    ("", None, 700, "a folder without"),
    ("symbols.json", b'["mg of"]', 700, "'mg of'"), ("good.jsonl", None, 700, "no such file")])
def test_bad_training_input_is_one_line_and_leaves_nothing(tmp_path, name, data, size, said):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    symbols = ["--symbols", str(tmp_path / name)] if name == "symbols.json" else []
    with pytest.raises(UserError) as caught:
        main(["train", str(tmp_path / name), "--vocab_size", str(size), "--out", str(tmp_path / "out"),
              *symbols])
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
