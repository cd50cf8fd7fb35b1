"""Commands in README.md and docs/ exist, and blocks that are marked as runnable run.

Blocks that begin with "```bash run" run in the order of the page, in one empty folder per page ("```bash run
slow": in a slow test). All other commands, in blocks and in `backticks`, are parsed by the command's own
parser and stop there.
"""
from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from repository import ENV, ROOT

from mmed.config import RECIPES, TrainConfig, parse_command_line
from mmed.utils.errors import Parser, UserError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SHELL = ("", "bash", "sh", "bash run", "bash run slow")
COMMAND = re.compile(r"\s*(?:[A-Z_]+=\S*\s+)*(?:\.venv/bin/)?"
                     r"((?:python|torchrun|pip|make) .*|(?:examples|slurm)/.*)")
IN_PROSE = re.compile(r"`((?:python|torchrun|make|pip) [^`]+)`")
TARGETS = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
EXTRAS = tomllib.loads(
    (ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
# Command -> module whose `main` it runs; a package is run by its __main__
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts)
           for folder in ("mmed", "data_prep", "examples", "benchmarks")
           for path in (ROOT / folder).rglob("*.py")
           if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]
COMMANDS = {module.removesuffix(".__main__"): module for module in MODULES}


def commands_in(block: str) -> list[list[str]]:
    """The commands of a block as words, without comments, assignments in front, and &&."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    found = [COMMAND.match(part) for line in lines for part in line.split("&&")]
    return [shlex.split(match[1], comments=True) for match in found if match]


class ParserReady(BaseException):
    """A command has built its parser and read its arguments, and goes no further."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(module: str, arguments: list[str], monkeypatch, read: bool) -> argparse.ArgumentParser:
    """The parser of a command; with `read` it must accept the arguments."""
    original = Parser.parse_args

    def parse_args(self, given=None):
        if read:
            original(self, given)
        raise ParserReady(self)

    with monkeypatch.context() as patched, pytest.raises(ParserReady) as ready:
        patched.setattr(Parser, "parse_args", parse_args)
        patched.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(COMMANDS[module]).main()
    return ready.value.parser


def check_module(module: str, arguments: list[str], complete: bool, monkeypatch) -> None:
    assert module in COMMANDS, f"there is no command {module}"
    given = {word.partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    if module == "mmed.train":
        recipes = [word for word in arguments[:1] if not word.startswith("-") and not word.isupper()]
        assert set(recipes) <= set(RECIPES), f"no recipe {recipes}"
        if complete and recipes:
            parse_command_line(arguments)
        known = {f"__{name}" for name in TrainConfig.__dataclass_fields__}
    elif complete or given:
        parser = parser_of(module, arguments, monkeypatch, read=complete)
        known = {option.replace("-", "_") for option in parser._long_options()}
    else:
        known = set()
    assert given <= known | {"__help"}, f"{module} has no {given - known}"


def check_command(words: list[str], complete: bool, monkeypatch) -> None:
    """complete: a whole command line; in prose, a command is often named without what it needs."""
    program, *rest = words
    complete = complete and not any(word[:1] in "[(|" or word[-1:] in "])|" or "..." in word
                                    for word in rest if word)  # a synopsis
    if program == "pip":
        named = ",".join(re.findall(r"\.\[(.*?)\]", " ".join(rest)))
        assert set(filter(None, named.split(","))) <= set(EXTRAS), f"no such extra: {named}"
    elif program == "make":
        known = re.compile("|".join(TARGETS).replace("%", ".+"))
        wrong = [word for word in rest if "=" not in word and not known.fullmatch(word)]
        assert not wrong, f"no target {wrong}"
    elif program not in ("python", "torchrun"):
        assert (ROOT / program).is_file(), f"no file {program}"
    else:
        rest = [word.strip("[]()") for word in rest if word != "-m"]
        while program == "torchrun" and rest[0].startswith("-"):
            rest = rest[1:] if "=" in rest[0] else rest[2:]
        name, *arguments = rest
        module = name.removesuffix(".py").replace("/", ".")
        if name == "pytest":
            assert all((ROOT / word.split("::")[0]).exists() for word in rest if word.startswith("tests"))
        elif module.split(".")[0] in ("mmed", "data_prep", "examples", "benchmarks"):
            check_module(module, arguments, complete, monkeypatch)
        elif name.endswith(".py"):
            assert (ROOT / name).is_file(), f"no file {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_on_a_page_exist(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    found = [(words, True) for info, block in BLOCK.findall(text) if info in SHELL
             for words in commands_in(block)]
    found += [(words, False) for shown in IN_PROSE.findall(BLOCK.sub("", text))
              for words in commands_in(shown)]
    wrong = []
    for words, complete in found:
        try:
            check_command(words, complete, monkeypatch)
        except (AssertionError, SystemExit, UserError, OSError) as error:
            wrong.append(f"{shlex.join(words)}\n    {error} {capsys.readouterr().err.strip()[-200:]}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir())


def test_every_table_of_figures_stands_below_its_command():
    sections = re.split(r"^#+ ", (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), flags=re.M)
    for section in sections:
        before, table, _ = section.partition("\n|")
        assert not table or re.search(r"`(python benchmarks/|make )", before), section


RUN = """
import json, sys
from pathlib import Path
import torch
from data_prep.pipeline.plan import Step, run_plan
from mmed.utils.errors import main_guard
commands = json.loads(sys.argv[1])
plan = [Step(str(i), "", [command], (str(i - 1),) if i else ()) for i, command in enumerate(commands)]
main_guard(lambda: int(run_plan(plan, Path(sys.argv[2]), 1, lambda: torch.set_num_threads(1)) < 0))
"""
RUNNABLE = [
    pytest.param(page, info, id=page.name, marks=[pytest.mark.slow] if "slow" in info else [])
    for page in PAGES for info in ("bash run", "bash run slow")
    if f"```{info}\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page, info", RUNNABLE)
def test_runnable_blocks_run(page, info, tmp_path):
    """The commands of a page's blocks, one after the other; torch is imported once for all."""
    commands = []
    for found, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for words in commands_in(block) if found == info else ():
            assert words[:2] in (["python", "-m"], ["python", "mmed/train.py"]), f"cannot run {words}"
            commands.append(words[2:] if words[1] == "-m" else ["mmed.train", *words[2:]])
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(commands), str(tmp_path / "log")],
                          cwd=tmp_path, capture_output=True, text=True, timeout=600, env=ENV)
    assert done.returncode == 0, done.stderr[-2000:]
