"""A corpus by one command: several languages and origins to streams, stopped on the way; recipes, plans,
clusters."""
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from corpus_files import tree, write
from repository import ROOT

from data_prep.pipeline import cluster
from data_prep.pipeline.plan import Step, run_plan
from data_prep.pipeline.recipe import Recipe, Source, read_recipe, steps
from data_prep.tokenize_corpus import count_table
from mmed.languages import get_language
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UsageError, UserError

RECIPE = '''
title = "Three languages"
tokenizer = "tokenizer"
mask_personal = true
benchmark = "exam.jsonl"
held_out = 0.1
[[source]]
language = "eng"
kind = "web"
inputs = ["en.jsonl"]
licence = "CC0"
[[source]]
language = "ja"
kind = "web"
inputs = ["ja.txt"]
paragraphs = true
[[source]]
language = "es"
kind = "corpus"
name = "Wikipedia"
inputs = ["es.jsonl"]
filter = true
'''


def write_sources(root: Path) -> Path:
    """Documents in three languages, with damage, copies and an exam question; returns the recipe."""
    texts = {code: [f"{get_language(code).medical_sentence} {number:x} {number * 77777:x}. " * 3
                    + f"{number ** 9:x}" for number in range(1, 25)] for code in ("en", "ja", "es")}
    question = "".join(chr(0x3042 + i * 7 % 80) for i in range(60))
    for code in ("en", "es"):
        write(root / f"{code}.jsonl", *[{"text": text} for text in texts[code] + texts[code][:7]])
    with open(root / "en.jsonl", "a") as file:
        file.write('{"text": "truncated\n"no object"\n')
    paragraphs = [*texts["ja"], f"{question}。{texts['ja'][0]}"]
    (root / "ja.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    write(root / "exam.jsonl", {"question": question})
    train_sentencepiece([text for each in texts.values() for text in each], root / "tokenizer", 400)
    (root / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return root / "recipe.toml"


def outputs(folder: Path) -> list[tuple[str, bytes]]:
    """What every step kept and dropped, and the streams, whose parts have random names."""
    return sorted((re.sub(r"\.\d+", "", name), data) for name, data in tree(folder).items()
                  if {"kept", "dropped", "streams"} & set(Path(name).parts) and not name.endswith(".json"))


def heed_interrupts() -> None:
    """Jobs that a script starts in the background ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_when(done: Callable[[], bool], child: subprocess.Popen, sign: int) -> str:
    """Send a signal to a process and its children once `done`; return what it printed."""
    until = time.monotonic() + 120
    while not done() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(child.pid, sign)
    return child.communicate()[0]


@pytest.mark.slow
def test_a_corpus_stopped_on_the_way_is_that_of_an_uninterrupted_run(tmp_path):
    recipe = write_sources(tmp_path / "raw")

    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "data_prep.corpus", str(recipe), "--out", str(tmp_path / out)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, start_new_session=True,
                                preexec_fn=heed_interrupts)

    def steps_done() -> int:
        return len(list((tmp_path / "corpus").glob("done/*")))

    for sign, code in ((signal.SIGKILL, -9), (signal.SIGINT, 75), (signal.SIGTERM, 75)):
        before, child = steps_done(), start("corpus")
        printed = kill_when(lambda before=before: steps_done() >= before + 2, child, sign)
        assert child.returncode == code, printed[-3000:]
    for out in ("corpus", "whole"):
        printed = (child := start(out)).communicate()[0]
        assert child.returncode == 0, printed[-3000:]
    assert outputs(tmp_path / "corpus") == outputs(tmp_path / "whole") != []
    result = json.loads((tmp_path / "whole" / "corpus.json").read_text())
    assert set(result["counts"]["en"]) == {"web"} and set(result["counts"]["es"]) == {"corpus"}
    dropped = {step: {reason: entry["documents"] for reason, entry in funnel["dropped"].items()}
               for step, funnel in result["steps"].items()}
    assert [step for step in dropped if step.endswith("en")] == ["clean/en", "unique/en", "uncontaminated/en"]
    assert dropped["sources/en-1"] == {"not JSON": 1, "not an object": 1}
    assert dropped["unique/en"]["exact duplicate"] == 7
    assert dropped["uncontaminated/ja"] == {"benchmark question": 1}
    readme = (tmp_path / "whole" / "README.md").read_text()
    assert "| en | web | en.jsonl | CC0 |" in readme and "| es | corpus | Wikipedia | not stated |" in readme


GOOD = {"top": 'tokenizer = "tokenizer"', "head": "[[source]]",
        "source": 'language = "en"\nkind = "web"\ninputs = ["in"]'}


@pytest.mark.parametrize(("parts", "message"), [
    ({"top": "tokenizer = "}, "not TOML"),
    ({"top": GOOD["top"] + "\nheld_uot = 0.1"}, "held_uot.*did you mean held_out"),
    ({"top": ""}, "the key tokenizer is missing"),
    ({"top": GOOD["top"] + '\nheld_out = "much"'}, "held_out='much' is not a float"),
    ({"top": GOOD["top"] + "\nheld_out = true"}, "held_out=True is not a float"),
    ({"top": GOOD["top"] + '\nlanguages = ["fr"]'}, r"no \[\[source\]\] in languages=\['fr'\]"),
    ({"source": 'language = "en"\nkind = "webb"\ninputs = ["in"]'}, "source 1: kind='webb'"),
    ({"source": 'language = "en"\nkind = "web"\ninputs = ["nowhere"]'}, "nowhere does not exist"),
    ({"source": 'language = "en"\nkind = "web"\ninputs = "in"'}, r"is not a list\[str\]"),
    ({"source": 'language = "en"\nkind = "web"'}, "source 1: the key inputs is missing or empty"),
    ({"source": 'language = "en"\nkind = "web"\ninputs = []'}, "source 1: the key inputs is missing"),
    ({"source": 'language = "en"\nkind = "web"\ninputs = [1]'}, r"inputs=\[1\] is not a list\[str\]"),
    ({"source": GOOD["source"].replace("web", "book") + "\nparagraphs = true"}, "do not apply to books"),
    ({"top": GOOD["top"] + "\nlanguages = [3]"}, r"languages=\[3\] is not a list\[str\]"),
    ({"top": GOOD["top"] + "\nheld_out = nan"}, "held_out=nan: must be from 0 to 1"),
    ({"top": GOOD["top"] + "\nnear_duplicates = 80"}, "near_duplicates=80: must be from 0 to 1"),
    ({"top": GOOD["top"] + '\nfilter_mode = "offical"'}, "'offical'; known are default, official"),
    ({"head": "[source]"}, r"begins with a line \[\[source\]\]"),
    ({"source": 'language = "xx"\nkind = "web"\ninputs = ["in"]'}, "unknown language"),
])
def test_a_wrong_recipe_is_one_line_that_names_the_key(tmp_path, parts, message):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "recipe.toml").write_text("{top}\n{head}\n{source}\n".format(**GOOD | parts),
                                          encoding="utf-8-sig")
    with pytest.raises(UserError, match=message):
        read_recipe(tmp_path / "recipe.toml")


def test_the_example_recipe_explains_every_key():
    text = (ROOT / "examples" / "corpus.toml").read_text(encoding="utf-8")
    lines = (line.removeprefix("# ") if line.startswith("# ") and " = " in line[:20] else line
             for line in text.split("\n"))
    table = tomllib.loads("\n".join(lines))
    sources = table.pop("source")
    assert set(table) | {"source"} == {entry.name for entry in fields(Recipe)}
    assert {key for source in sources for key in source} <= {entry.name for entry in fields(Source)}
    for key, value in table.items():  # the values in comments are the defaults
        default = next(entry.default for entry in fields(Recipe) if entry.name == key)
        assert key in ("title", "tokenizer", "held_out", "languages") or default == value, key


def test_steps_come_in_order_and_only_those_asked_for():
    recipe = Recipe("t", [Source("en", "web", ["a"]), Source("en", "book", ["b"])], deduplicate=False)
    assert [step.name for step in steps(recipe, "out", 2)] == ["source-en-1", "source-en-2", "streams-en",
                                                               "report"]
    recipe.deduplicate, recipe.language_id, recipe.benchmark = True, True, "exam"
    plan = steps(recipe, "out", 2)[2:]
    stages = ["clean-en", "unique-en", "uncontaminated-en", "streams-en", "report"]
    assert [step.name for step in plan] == stages
    assert all(after.needs == (before.name,) for before, after in itertools.pairwise(plan))
    assert plan[1].commands[0][1] == "out/clean/en/kept"
    inputs = {step.name: step.inputs for step in steps(recipe, "out", 2)}
    assert inputs == dict.fromkeys(stages, ()) | {"source-en-1": ("a",), "source-en-2": ("b",),
                                                  "uncontaminated-en": ("exam",), "streams-en": ("t",)}


def test_a_failed_step_is_named_and_the_next_start_goes_on(tmp_path, capsys):
    source, out = str(write(tmp_path / "in.jsonl", {"text": "a"})), str(tmp_path / "out")
    clean = ["data_prep.clean", source, "--language", "en", "--out", f"{out}/clean"]
    dedup = ["data_prep.dedup", str(tmp_path / "late.jsonl"), "--out", f"{out}/unique"]
    plan = [Step("clean", "c", [clean], inputs=(source,)), Step("dedup", "d", [dedup], ("clean",))]
    message = r"step dedup failed \(1\).*late\.jsonl: no such file.*dedup\.log"
    for text in ("one", "another"):  # whose failure must not leave the finished steps of before
        write(tmp_path / "in.jsonl", {"text": text})
        with pytest.raises(UserError, match=message):
            run_plan(plan, tmp_path / "out")
        write(tmp_path / "late.jsonl", {"text": "a"})
        run_plan(plan, tmp_path / "out")
        assert "1 done already" in capsys.readouterr().err
        (tmp_path / "late.jsonl").unlink()
    assert json.loads((tmp_path / "out" / "unique" / "funnel.json").read_text())["shards"] == 1
    plan[0].commands[0] += ["--workers", "2"]  # fewer, when memory was short
    run_plan(plan, tmp_path / "out")
    plan[0].commands[0][3] = "fr"
    with pytest.raises(UserError, match=r"other commands \(en then, fr now\)"):
        run_plan(plan, tmp_path / "out")


PLAN = """
import os, signal
from pathlib import Path
from data_prep.pipeline.plan import Step, run_plan
from mmed.utils.errors import main_guard
{first}
main_guard(lambda: int(run_plan([Step("s", "s", [["step"]])], Path("out")) < 0))
"""


@pytest.mark.parametrize(("first", "step", "code", "message"), [
    ("os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))", "time.sleep(5)", 75,
     "start again with the same command"),
    ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "os.kill(os.getpid(), 2)", 0, "1 steps"),  # with & in sh
    ("", "tqdm.get_lock().acquire(), os.kill(os.getpid(), 9)", 1, "step s failed (-9)")])
def test_a_plan_heeds_a_stop_during_a_fork_and_survives_a_step_killed_while_it_reports(
        tmp_path, first, step, code, message):
    (tmp_path / "step.py").write_text(f"import os, time\nfrom tqdm import tqdm\ndef main():\n    {step}\n")
    done = subprocess.run([sys.executable, "-c", PLAN.format(first=first)], cwd=tmp_path, capture_output=True,
                          text=True, timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == code and message in done.stderr, done.stderr


def test_the_table_of_counts_has_totals_and_few_columns():
    counts = {"en": {"web": {"tokens": 5, "documents": 1}}, "ja": {"book": {"tokens": 7, "documents": 2}}}
    assert count_table(counts).split("\n")[-1].split() == ["sum", "7", "5", "12", "3"]
    counts = {"en": {f"journal {n}": {"tokens": n, "documents": 1} for n in range(1, 31)}}
    head, row, _ = count_table(counts).split("\n")
    assert "journal 30" in head and "journal 26" in head and "journal 25" not in head
    assert "other (25)" in head and row.split() == ["en", "30", "29", "28", "27", "26", "325", "465", "30"]


def test_tasks_of_a_cluster_do_the_shares_of_a_step(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / "in" / f"{number}.jsonl", {"text": "a"})
    shares = []

    def remote(function):
        return types.SimpleNamespace(remote=lambda *share: shares.append(share) or function(*share))

    ray = types.SimpleNamespace(init=lambda: None, remote=lambda num_cpus: remote, get=list)
    monkeypatch.setattr(cluster, "require_extra", lambda module, extra: ray)
    step = ["data_prep.clean", str(tmp_path / "in"), "--language", "en", "--out", str(tmp_path / "out")]
    cluster.main(["--tasks", "3", "--", *step])
    assert shares == [("--shard", f"{number}/3") for number in range(3)]
    assert json.loads((tmp_path / "out" / "funnel.json").read_text())["shards"] == 5
    with pytest.raises(UsageError, match="after -- comes a step"):
        cluster.main(["--tasks", "3"])


@pytest.mark.slow
def test_a_step_on_a_killed_ray_is_finished_by_the_next(tmp_path):
    pytest.importorskip("ray")
    for number in range(200):
        write(tmp_path / "in" / f"{number}.jsonl", *[{"text": f"text {number} {i}"} for i in range(50)])
    command = [sys.executable, "-m", "data_prep.pipeline.cluster", "--tasks", "20", "--", "data_prep.clean",
               str(tmp_path / "in"), "--language", "en", "--out", str(tmp_path / "out")]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    kill_when(lambda: len(list(tmp_path.glob("out/shards/*"))) >= 20, child, signal.SIGKILL)
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads((tmp_path / "out" / "funnel.json").read_text())["documents"]
    assert found == {"in": 10000, "out": 10000}


def test_a_slurm_step_is_an_array_and_a_last_job(tmp_path):
    (tmp_path / "sbatch").write_text('#!/bin/bash\necho "$@" >> "$LOG"\necho 17\n')
    (tmp_path / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"),
                   "TASKS": "3"}
    command = ["slurm/corpus_step.sh", "data_prep.dedup", "a b", "--out", "c"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    jobs = (tmp_path / "log").read_text().splitlines()
    assert done.stdout == "17\n" and len(jobs) == 6
    assert "--array=0-2" in jobs[0]
    assert r"dedup a\ b --out c --stage sign  --shard $SLURM_ARRAY_TASK_ID/" in jobs[0]
    assert "--dependency=afterok:17" in jobs[1] and "--array" not in jobs[1] and "--stage pair" in jobs[1]
