"""The pages keep their word: what is marked runnable runs, and every other command names modules, recipes, flags and files that exist.

A fenced block whose first line is "```bash run" is run, in the order of the page, in one empty folder a page; "```bash run slow" too,
under the mark `slow`. All other commands of README.md and docs/, in blocks and in `backticks`, are given to the commands' own parsers,
which stop there.
"""
from __future__ import annotations

import argparse
import doctest
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmed.config import RECIPES, TrainConfig, parse_command_line
from mmed.utils.errors import Parser, UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(.*)$")
SHELL = ("", "bash", "sh", "bash run", "bash run slow")
STARTS = ("python", "torchrun", "pip", "make", "examples/", "slurm/")  # how a line of a block begins that is a command
SHOWN = re.compile(r"`((?:python|torchrun|make|pip) [^`]+)`")


def blocks(text: str) -> list[tuple[str, str]]:
    """(info string, content) of every fenced block."""
    found, info, lines = [], None, []
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence and info is None:
            info, lines = fence[1].strip(), []
        elif fence:
            found.append((info, "\n".join(lines)))
            info = None
        elif info is not None:
            lines.append(line)
    assert info is None, f"a block that begins with {info!r} has no end"
    return found


def commands_in(block: str) -> list[list[str]]:
    """The commands of a block as words: comments away, continued lines joined, NAME=value in front and && taken apart."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        for part in line.split("&&"):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a lone quote: output, not a command
                assert not part.strip().startswith(STARTS), f"not a command line: {part}"
                continue
            words = [word for number, word in enumerate(words) if number or not re.match(r"^[A-Z_]+=", word)]
            if words and words[0].removeprefix(".venv/bin/").startswith(STARTS):
                found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


def all_commands(text: str) -> list[tuple[list[str], bool]]:
    """(words, whether it is a whole command line: in prose a command is often named without what it needs)."""
    found = [(command, True) for info, block in blocks(text) if info in SHELL for command in commands_in(block)]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return found + [(command, False) for shown in SHOWN.findall(prose) for command in commands_in(shown)]


# -------------------------------------------------------------------------------------------------- commands that are not run

class Stopped(BaseException):
    """A command has built its parser, and in a full check has read its arguments, and does nothing more."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def stopped_parser(module: str, arguments: list[str], monkeypatch, read: bool) -> argparse.ArgumentParser:
    """The parser of a command; with `read` it has to accept the arguments (else SystemExit or UsageError)."""
    original = Parser.parse_args

    def parse_args(self, given=None, namespace=None):
        if read:
            original(self, given, namespace)
        raise Stopped(self)

    with monkeypatch.context() as patched, pytest.raises(Stopped) as stop:
        for kind in (argparse.ArgumentParser, Parser):
            patched.setattr(kind, "parse_args", parse_args)
        patched.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(COMMANDS[module]).main()
    return stop.value.parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= {flag for part in action.choices.values() for flag in flags_of(part)}
    return flags


def check_module(module: str, arguments: list[str], whole: bool, monkeypatch) -> None:
    """A command of ours: in a block it must be accepted as it stands; in prose its flags must exist."""
    assert module in COMMANDS, f"there is no command {module}"
    whole = whole and not any("..." in word or "…" in word for word in arguments)
    if module == "mmed.train":
        recipes = [word for word in arguments[:1] if not word.startswith("-") and not word.isupper()]
        assert set(recipes) <= set(RECIPES), f"no recipe {recipes}"
        if whole and recipes:
            parse_command_line(arguments)
        known = {f"--{name}" for name in TrainConfig.__dataclass_fields__} | {"--help"}
        unknown = {word.partition("=")[0].replace("-", "_").replace("__", "--", 1) for word in arguments if word.startswith("--")} - known
        assert not unknown, f"mmed.train has no {unknown}"
    elif whole:
        stopped_parser(module, arguments, monkeypatch, read=True)
    elif given := {word.partition("=")[0] for word in arguments if word.startswith("--")} - {"--help"}:
        unknown = given - flags_of(stopped_parser(module, arguments, monkeypatch, read=False))
        assert not unknown, f"{module} has no {unknown}"


def check_command(words: list[str], whole: bool, monkeypatch) -> None:
    program, rest = words[0], list(words[1:])
    for mark in ("[", "]", "(", ")", "|"):  # a synopsis: what may be left out counts, alternatives are not parsed
        whole = whole and not any(word.startswith(mark) or word.endswith(mark) for word in rest)
    if program != "pip":
        rest = [word.strip("[]()") for word in rest]
    if program == "torchrun":
        while rest and rest[0].startswith("-"):
            rest = rest[1:] if "=" in rest[0] else rest[2:]
        program, rest = "python", rest
    if program.startswith("python"):
        if not rest or rest[0] in ("-c", "-V") or (not rest[0].startswith("-") and not rest[0].endswith(".py")):
            return
        if rest[0] == "-m" and rest[1].split(".")[0] in ("mmed", "data_prep", "examples"):
            check_module(rest[1], rest[2:], whole, monkeypatch)
        elif rest[0] == "-m" and rest[1] == "pytest":
            assert all((ROOT / word.split("::")[0]).exists() for word in rest[2:] if word.startswith("tests"))
        elif rest[0] == "mmed/train.py":
            check_module("mmed.train", rest[1:], whole, monkeypatch)
        elif rest[0] != "-m" and "/" in rest[0]:
            source = (ROOT / rest[0]).read_text(encoding="utf-8")
            unknown = [word for word in rest[1:] if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source]
            assert not unknown, f"{rest[0]} has no {unknown}"
    elif program == "make":
        targets = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in rest:
            if "=" not in word:
                assert any(word == target or (target.endswith("%") and word.startswith(target[:-1])) for target in targets), f"make has no target {word}"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        for word in rest:
            if found := re.match(r"\.\[(.*)\]$", word):
                assert set(found[1].split(",")) <= set(extras), f"pyproject.toml has not all extras of {word}"
    else:
        assert (ROOT / program).is_file(), f"{program} is not there"


# Command -> the module whose `main` does it; a package is run by its __main__.py.
COMMANDS = {name.removesuffix(".__main__"): name for folder in ("mmed", "data_prep", "examples") for path in (ROOT / folder).rglob("*.py")
            if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8") for name in [".".join(path.relative_to(ROOT).with_suffix("").parts)]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_as_it_is_written(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # where a command that did run would find nothing
    text = page.read_text(encoding="utf-8")
    wrong = []
    for words, whole in all_commands(text):
        try:
            check_command(words, whole, monkeypatch)
        except (AssertionError, SystemExit, UserError, OSError) as error:
            wrong.append(f"{page.name}: {shlex.join(words)}\n    {error} {capsys.readouterr().err.strip()[-200:]}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [
    "python -m mmed.evaluate --model m", "python -m mmed.eval --model m --data d", "python -m mmed.eval --model m --data d --out o --modus answer",
    "python mmed/train.py pretrain_mmedlm3 --model=m --data=d", "torchrun --nproc_per_node=8 mmed/train.py finetune_full --model=m --data=d --lr=1e-6",
    "python -m mmed.checkpoints inspekt m", "python benchmarks/training/bench_train.py --no-such-rows", "python benchmarks/bench_nothing.py", "make demmo",
    "pip install -e '.[bookz]'", "examples/no_run.sh DATA OUT", "python -m pytest tests/test_nothing.py", "python -m examples.demo --seed one"])
def test_a_wrong_command_is_noticed(line, monkeypatch, capsys):
    (words,) = commands_in(line)
    with pytest.raises((AssertionError, SystemExit, UserError, OSError)):
        check_command(words, True, monkeypatch)


def test_named_flags_are_looked_at_in_prose_too(monkeypatch):
    text = "Use `python -m mmed.eval --modell` or `python mmed/train.py --max_stepps`.\n```python\nmake nothing\n```\n```sh\nmake demo && make lint  # both\n```\n"
    found = all_commands(text)
    assert found == [(["make", "demo"], True), (["make", "lint"], True), (["python", "-m", "mmed.eval", "--modell"], False),
                     (["python", "mmed/train.py", "--max_stepps"], False)]
    for words, whole in found[2:]:
        with pytest.raises(AssertionError):
            check_command(words, whole, monkeypatch)


# ------------------------------------------------------------------------------------------------------ commands that are run

RUN = """
import json, os, sys
from pathlib import Path
import torch
from data_prep.pipeline.plan import Step, run_plan
from mmed.utils.errors import main_guard
blocks = json.loads(sys.argv[1])
plan = [Step(f"block-{i}", "", commands, (f"block-{i - 1}",) if i else ()) for i, commands in enumerate(blocks)]
main_guard(lambda: int(run_plan(plan, Path(sys.argv[2]), 1, lambda: torch.set_num_threads(1)) < 0))
"""


def run_blocks(text: str, info: str, folder: Path) -> subprocess.CompletedProcess | None:
    """Run the blocks with this info string one after the other in `folder`; torch is imported once for all of them."""
    plans = []
    for block in (block for found, block in blocks(text) if found == info):
        lines = [line for line in re.sub(r"\\\n\s*", " ", block).splitlines() if line.split("#")[0].strip()]
        commands = commands_in(block)
        assert len(commands) == len(lines), f"only plain lines with one command each can be run:\n{block}"
        plans.append([])
        for words in commands:
            assert words[:2] == ["python", "-m"] or words[:2] == ["python", "mmed/train.py"], f"cannot be run here: {words}"
            plans[-1].append(words[2:] if words[1] == "-m" else ["mmed.train", *words[2:]])
    if not plans:
        return None
    return subprocess.run([sys.executable, "-c", RUN, json.dumps(plans), str(folder / "log")], cwd=folder, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


MARKED = [page for page in PAGES if any(info.startswith("bash run") for info, _ in blocks(page.read_text(encoding="utf-8")))]


def test_some_pages_have_marked_blocks_and_no_mark_is_mistyped():
    assert {"README.md", "corpus.md"} <= {page.name for page in MARKED}
    for page in PAGES:
        for info, _ in blocks(page.read_text(encoding="utf-8")):
            assert info in (*SHELL, "python", "text", "json", "toml", "csv"), f"{page.name}: ```{info}"


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_what_is_marked_runnable_runs(page, tmp_path):
    done = run_blocks(page.read_text(encoding="utf-8"), "bash run", tmp_path)
    assert done is None or done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_what_is_marked_runnable_and_slow_runs(page, tmp_path):
    done = run_blocks(page.read_text(encoding="utf-8"), "bash run slow", tmp_path)
    assert done is None or done.returncode == 0, done.stderr[-2000:]


def test_a_block_that_fails_is_noticed(tmp_path):
    done = run_blocks("```bash run\npython -m data_prep.dedup nowhere --out there\n```\n", "bash run", tmp_path)
    assert done.returncode == 1 and "nowhere" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_pages_linked_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}"


# ------------------------------------------------------------------------------------------------------------- the API pages

@pytest.fixture
def api_pages():
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "api_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_are_put_into_markdown(api_pages):
    result = doctest.testmod(api_pages)
    assert result.attempted and not result.failed
    for text in ("One.\n\n    python -m a  # MMedLM: b\n\nTwo.", "Ends\n\n>>> f(1)\n2"):
        assert api_pages.as_markdown(text) == text


def test_an_api_page_has_no_heading_made_of_a_tag(api_pages, tmp_path, capsys):
    pytest.importorskip("pdoc", exc_type=ImportError)
    api_pages.main(tmp_path, ("data_prep.tokenize_corpus",))
    page = (tmp_path / "data_prep" / "tokenize_corpus.html").read_text(encoding="utf-8")
    assert "<strong>DIFFERS</strong>" in page and not re.search(r"<h[1-6][^>]*>[^<]*(MMedLM|DIFFERS|trained positions)", page)
    assert api_pages.CSS in page and capsys.readouterr().out.strip().endswith("index.html")
