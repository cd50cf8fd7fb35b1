"""Commands write below the folder given to them and nowhere else, as seen by an audit hook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from json_lines import write_lines
from repository import ROOT

from mmed.tokenizer import train_sentencepiece

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux which folder is open")

WATCH = """
import os, runpy, sys
from killed_commands import changed_paths
allowed, command, sys.argv[1:] = os.path.realpath(sys.argv[1]), sys.argv[2], sys.argv[3:]
outside = []
def watch(event, arguments):
    outside.extend(f"{event} {path}" for path in changed_paths(event, arguments)
                   if not (path + "/").startswith(allowed + "/"))
sys.addaudithook(watch)
try:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("REPORT", end.code or 0, outside)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    text = "Pneumonia is treated with antibiotics; the patient had a fever and a cough for days. "
    write_lines(folder / "a.jsonl", *({"text": text * n, "language": "en"} for n in range(1, 30)))
    train_sentencepiece([text] * 50, folder / "tokenizer", 290)
    write_lines(folder / "exam.jsonl",
                {"question": "What is the treatment of pneumonia in a patient with fever and cough?"})
    (folder / "page.html").write_text(f"<html><body><article><p>{text * 4}</p></article></body></html>")
    return folder


@pytest.mark.parametrize("command", [
    "filter_medical --language en a.jsonl",
    "clean --language en --mask_personal a.jsonl",
    "dedup a.jsonl",
    "decontaminate --benchmark exam.jsonl a.jsonl",
    "tokenize_corpus --tokenizer tokenizer a.jsonl",
    "web_pages --language en page.html"])
def test_a_step_writes_into_its_folder_and_nowhere_else(inputs, tmp_path, command):
    name, *arguments = command.split()
    if name == "web_pages":
        pytest.importorskip("trafilatura")
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = out / "s" if name == "tokenize_corpus" else out
    paths = [str(inputs / word) if (inputs / word).exists() else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(out), f"data_prep.{name}", *paths, "--out", str(target)],
        capture_output=True, text=True, cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "HOME": str(elsewhere),
                          "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stdout.splitlines()[-1] == "REPORT 0 []", done.stdout + done.stderr
    assert list(out.rglob("*")) and not list(elsewhere.iterdir())
