"""The layout: the core needs six packages, --help is quick, nothing runs a stranger's code, and the audit
page (docs/method.md) and the tags in the code say the same.

Everything here is read from the sources with `ast`, or tried in fresh processes.
"""
from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from mmed.config import RECIPES
from mmed.languages import Language

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mmed", "data_prep", "examples")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
METHOD = ROOT / "docs" / "method.md"

CORE = {"torch", "numpy", "sentencepiece", "tiktoken", "safetensors", "tqdm"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}
COMMANDS = sorted(name for name, path in MODULES.items() if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"))
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, full name) of everything a piece of source imports, at any depth; `from a import b` gives a.b if that is a module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write `from mmed.model import ...`"
            found += [(node.lineno, full if (full := f"{node.module}.{alias.name}") in MODULES else node.module or "")
                      for alias in node.names]
    return found


def test_no_module_has_the_name_of_a_standard_one():
    names = {name.split(".")[-1] for name in MODULES if name.count(".") < 2}
    assert not names & set(sys.stdlib_module_names), "torchrun puts mmed/ first on the path until train.py takes it off: such a file hides the standard module"


def test_core_needs_nothing_but_its_six_packages():
    """Others only beside `require_extra` of the same package in the same function, which names the extra that brings it."""
    allowed = CORE | set(sys.stdlib_module_names) | set(PACKAGES)
    wrong = []
    for name, tree in TREES.items():
        excused: set[tuple[int, str]] = set()
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                extras = {str(call.args[0].value).split(".")[0] for call in ast.walk(function)
                          if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require_extra"}
                excused |= {(line, module) for line, module in imports_of(function) if module.split(".")[0] in extras}
        wrong += [f"{MODULES[name].relative_to(ROOT)}:{line} imports {module}" for line, module in imports_of(tree)
                  if module.split(".")[0] not in allowed and (line, module) not in excused]
    assert not wrong, "\n".join(wrong)


def test_packages_asked_for_by_name_belong_to_an_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"[<>=\[ ]", need)[0] for need in project["dependencies"]} == CORE
    for name, tree in TREES.items():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "require_extra":
                package, extra = (argument.value for argument in call.args)
                bringing = project["optional-dependencies"].get(extra, [])
                assert any(need.startswith(package.split(".")[0]) for need in bringing), f"{name}: extra {extra!r} has no {package}"


# ------------------------------------------------------------------------------------------------------------- no code from files

def calls(tree: ast.AST) -> list[tuple[int, str, ast.Call]]:
    return [(node.lineno, ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_that_runs_code_from_data_is_called():
    """torch.load with weights_only=True in mmed/checkpoints/safe.py alone; pickle there for the name of its error."""
    wrong = []
    for name, tree in TREES.items():
        path = MODULES[name].relative_to(ROOT)
        for line, function, call in calls(tree):
            keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if function in ("eval", "exec", "compile", "__import__", "yaml.load", "marshal.loads", "os.system", "os.popen"):
                wrong.append(f"{path}:{line} calls {function}")
            if "allow_pickle" in keywords or keywords.get("shell", "False") != "False":
                wrong.append(f"{path}:{line} {function}({keywords})")
            if function == "torch.load" and (name != "mmed.checkpoints.safe" or keywords.get("weights_only") != "True"):
                wrong.append(f"{path}:{line} torch.load outside of mmed/checkpoints/safe.py or without weights_only=True")
            if function.startswith(("pickle.", "cPickle.", "dill.", "joblib.", "shelve.", "marshal.")):
                wrong.append(f"{path}:{line} calls {function}")
            if "trust_remote_code" in keywords:
                wrong.append(f"{path}:{line} trust_remote_code")
        wrong += [f"{path}:{line} imports {module}" for line, module in imports_of(tree)
                  if module.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal", "yaml") and name != "mmed.checkpoints.safe"]
    assert not wrong, "\n".join(wrong)


def test_the_words_themselves_stand_nowhere_else():
    """Also what no call shows: strings, getattr. `model.eval()` is a method and harmless."""
    words = re.compile(r"\bpickle\.loads?\b|torch\.load\b|\ballow_pickle\b|(?<![.\w])(?:eval|exec)\(|shell\s*=\s*True|yaml\.load\b")
    found = {str(path.relative_to(ROOT)) for path in FILES for line in path.read_text(encoding="utf-8").splitlines() if words.search(line)}
    assert found <= {"mmed/checkpoints/safe.py"}, found


# --------------------------------------------------------------------------------------------------------------- commands

RUN = """
import runpy, sys
command, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
    code = 0
except SystemExit as stop:
    code = stop.code or 0
heavy = sorted({"torch", "transformers", "scipy"} & set(sys.modules))
print("\\nREPORT" + repr((code, heavy)), file=sys.stderr)
"""


def run_command(command: str, *arguments: str, cwd: Path) -> tuple[int, list[str], str, str]:
    done = subprocess.run([sys.executable, "-c", RUN, command, *arguments], capture_output=True, text=True, cwd=cwd, env=ENV, timeout=120)
    assert "\nREPORT" in done.stderr, done.stderr
    errors, _, report = done.stderr.rpartition("\nREPORT")
    code, heavy = ast.literal_eval(report)
    return code, heavy, done.stdout, errors


def test_the_commands_are_found():
    assert {"mmed.train", "mmed.generate", "mmed.eval", "mmed.tokenizer", "mmed.checkpoints.__main__", "mmed.reporting.__main__", "data_prep.filter_medical",
            "data_prep.dedup", "data_prep.tokenize_corpus", "data_prep.mmedbench"} <= set(COMMANDS)


# These compute with it; all others start in a fraction of a second.
NEEDS_TORCH = {"mmed.generate", "mmed.eval", "mmed.checkpoints.__main__", "mmed.evaluation.bertscore", "mmed.evaluation.validation_loss",
               "mmed.training.inspect_batch", "mmed.train"}


def allowed_to(command: str) -> set[str]:
    return {"torch"} if command in NEEDS_TORCH else set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_0_and_imports_torch_only_where_it_computes(command, tmp_path):
    code, heavy, out, err = run_command(command, "--help", cwd=tmp_path)
    assert code == 0 and "usage" in out.lower() and not err.strip()
    assert set(heavy) <= allowed_to(command), f"{command} --help imports {heavy}"
    assert not list(tmp_path.iterdir())


# Where an unknown flag can stand: the recipe or subcommand before it is a right one.
BEFORE = {"mmed.train": ["tiny"], "mmed.training.inspect_batch": ["show", "run", "1"], "mmed.checkpoints.__main__": ["inspect", "folder"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_exits_2_and_says_so(command, tmp_path):
    code, heavy, _, err = run_command(command, *BEFORE.get(command, []), "--no-such-flag=1", cwd=tmp_path)
    assert code == 2 and re.search(r"did you mean (--)?\w", err) and "Traceback" not in err
    assert set(heavy) <= allowed_to(command), f"{command} imports {heavy} before it has read its flags"
    assert not list(tmp_path.iterdir())


def test_importing_says_nothing_and_writes_nothing(tmp_path):
    source = "import importlib, json, sys\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", source, json.dumps(sorted(MODULES))], capture_output=True, text=True, cwd=tmp_path, env=ENV, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------- what stands in the repository

def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# Folders of one machine, hosts where packages come from. Made of pieces, so that this file does not find itself.
MACHINE = re.compile(r"(?<![\w.])/(?:" + "home|Users|root|mnt|opt|workspace|work" + r")/\w"
                     r"|\b(?:" + r"py" + r"pi|files\.python" + r"hosted|conda\.ana" + r"conda|registry\.np" + r"mjs)\.(?:org|com|io)\b", re.IGNORECASE)


def test_no_path_of_a_machine_and_no_package_host_is_named():
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}" for number, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------------------------------ the audit page

# A tag stands at the beginning of a comment or docstring line, or behind "#", "(" or the end of a sentence; "as in MMedLM: ..." is prose.
TAG = re.compile(r'(?:^\s*(?:r?""")?|[#(.]\s*)(MMedLM|DIFFERS):\s*')
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (MMedLM|DIFFERS) \| (.+?) \| (.+?) \|$")
WORDS = 6  # of a tag stand in its row, which is how the two are held together


def first_words(text: str) -> str:
    """A row's quotation as `tags_of` gives it."""
    return " ".join(text.replace("`", "").split())


def tags_of(path: Path) -> list[tuple[str, str]]:
    """(kind, first words) of every tag in a file, the same wherever the comment or docstring is wrapped."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        for match in TAG.finditer(line):
            text = [line[match.end():]]
            comment = "#" in line[:match.end()]
            for after in lines[number + 1:]:  # a comment runs on over lines with "#", a docstring to a blank line or its end
                if '"""' in text[-1] or not (after.strip().startswith("#") if comment else after.strip()):
                    break
                text.append(after.strip().removeprefix("# "))
            words = re.split(r'"""|(?:MMedLM|DIFFERS):', " ".join(text))[0].replace("|", " ")
            found.append((match[1], " ".join(first_words(words).split()[:WORDS])))
    return found


def tags_against_rows(tags: list[tuple[str, str, str]], page: str) -> list[str]:
    """What is wrong between the tags of the code, (file, kind, first words), and the rows of the page."""
    rows = [(row[1], row[2], first_words(row[3])) for line in page.splitlines() if (row := ROW.match(line))]
    missing = [f"no row in docs/method.md for: | `{file}` | {kind} | {words} | ... |" for file, kind, words in tags if (file, kind, words) not in rows]
    stale = [f"docs/method.md has a row without a tag: {row}" for row in rows if row not in tags]
    twice = [f"twice: {one}" for one in sorted({*tags, *rows}) if tags.count(one) > 1 or rows.count(one) > 1]
    return missing + stale + twice


def all_tags() -> list[tuple[str, str, str]]:
    return [(str(path.relative_to(ROOT)), kind, words) for path in FILES for kind, words in tags_of(path)]


def test_every_tag_has_its_row_and_every_row_its_tag():
    wrong = tags_against_rows(all_tags(), METHOD.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)
    assert len(all_tags()) > 40


def test_a_tag_without_a_row_and_a_row_without_a_tag_are_noticed():
    tags, page = all_tags(), METHOD.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if ROW.match(line)]
    assert len(rows) > 40
    for row in rows:  # each of them, taken out of the page, is missed; and each tag taken out of the code
        (problem,) = tags_against_rows(tags, page.replace(row + "\n", ""))
        assert problem.startswith("no row")
    for tag in tags:
        (problem,) = tags_against_rows([other for other in tags if other != tag], page)
        assert "without a tag" in problem
    assert len(tags_against_rows([("mmed/model.py", "MMedLM", "some other words"), *tags[1:]], page)) == 2
    assert tags_against_rows([*tags, tags[0]], page) == [f"twice: {tags[0]}"]


def test_a_tag_is_found_however_its_lines_are_broken(tmp_path):
    file = tmp_path / "some.py"
    file.write_text('"""As in MMedLM: prose.\n\nMMedLM: a b `c` d\ne f g h\n"""\nx = 1  # DIFFERS: one two. DIFFERS: three\ny = 2\n'
                    '# MMedLM: p q\n# r s t u v\ndef f():\n    """MMedLM: all."""\n    """Mean (MMedLM: of\n    groups)"""\n', encoding="utf-8")
    assert tags_of(file) == [("MMedLM", "a b c d e f"), ("DIFFERS", "one two."), ("DIFFERS", "three"), ("MMedLM", "p q r s t u"),
                             ("MMedLM", "all."), ("MMedLM", "of groups)")]


PLACE = re.compile(r"`((?:mmed|data_prep|tests|benchmarks|slurm|docs|examples)/[\w/.]+\.\w+|[\w/]+\.(?:toml|txt)|LICENSE)(?:: ([\w., ]+))?`")


def names_defined(source: str) -> set[str]:
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return defined | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def places_against_code(page: str, read) -> list[str]:
    """What the page names and is not there. `mmed/data.py: PretrainRows` must be a name defined in that file, anywhere in it.

    read: path in the repository -> text, or None if there is no such file.
    """
    named: dict[str, set[str]] = {}
    for file, names in PLACE.findall(page):
        named.setdefault(file, set()).update(filter(None, re.split(r"[., ]+", names)))
    wrong = []
    for file, names in named.items():
        source = read(file)
        if source is None:
            wrong.append(f"docs/method.md names {file}, which is not there")
        elif names and (gone := names - names_defined(source)):
            wrong.append(f"docs/method.md names what {file} does not define: {sorted(gone)}")
    return wrong


def read_tracked(file: str) -> str | None:
    return (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else None


def where_cells(page: str) -> list[tuple[str, str]]:
    """(first cell, "where" cell) of every row of a table that has such a column."""
    found, place = [], None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else None
        if cells is None:
            place = None
        elif "where" in (names := [cell.strip("| ") for cell in cells]):
            place = names.index("where")
        elif place is not None and not set(line) <= set("|- "):
            found.append((cells[0], cells[place] if place < len(cells) else ""))
    return found


def test_what_the_audit_page_names_is_there():
    page = METHOD.read_text(encoding="utf-8")
    assert len(PLACE.findall(page)) > 150
    wrong = places_against_code(page, read_tracked)
    assert not wrong, "\n".join(wrong)


def test_every_row_of_the_audit_page_says_where():
    cells = where_cells(METHOD.read_text(encoding="utf-8"))
    assert len(cells) > 110
    wrong = [first for first, where in cells if not PLACE.search(where)]
    assert not wrong, "docs/method.md has rows whose `where` names no file:\n" + "\n".join(wrong)


def test_a_function_that_is_gone_and_a_row_without_a_place_are_noticed():
    page = METHOD.read_text(encoding="utf-8")
    places = sorted({(file, names) for file, names in PLACE.findall(page) if names})
    for file, names in places[::12]:  # the file as it would be if none of the names that the page gives it were in it
        source = re.sub(rf"\b({'|'.join(map(re.escape, re.split(r'[., ]+', names)))})\b", "other", read_tracked(file))
        assert places_against_code(f"`{file}: {names}`", lambda path, source=source: source), (file, names)
    assert places_against_code("`mmed/nothing.py`", read_tracked) == ["docs/method.md names mmed/nothing.py, which is not there"]
    table = "| paper | mmed | where | why |\n|---|---|---|---|\n| a | b | `mmed/data.py` | c |\n| d | e | | |\n\n| f | g |\n"
    assert [PLACE.search(where) is not None for _, where in where_cells(table)] == [True, False]


def sections_and_numbers(page: str) -> set[str]:
    """What a comment may cite: "3", "3.1", "D17"."""
    return set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", page, re.MULTILINE)) | set(re.findall(r"^(\d\.\d)(?:[ :,]| and)", page, re.MULTILINE)) \
        | set(re.findall(r"^\| (D\d+) \|", page, re.MULTILINE))


CITED = re.compile(r"METHOD(?:\.md)?,? (D?\d+(?:\.\d+)?)(?:(?:,| and| to) (\d+\.\d+))?|\b(D\d{1,2})\b")


def test_every_section_and_number_cited_in_the_code_is_in_the_audit_page():
    known = sections_and_numbers(METHOD.read_text(encoding="utf-8"))
    assert {"0", "1.1", "3.1", "4.4", "5.3", "D1", "D30", "9", "10"} <= known and "D31" not in known and "3.4" not in known
    cited = [(path.relative_to(ROOT), name) for path in FILES for found in CITED.finditer(path.read_text(encoding="utf-8")) for name in found.groups() if name]
    assert len(cited) > 25
    wrong = [f"{path} cites {name}, which docs/method.md has not" for path, name in cited if name not in known]
    assert not wrong, "\n".join(wrong)
    assert [found.group(0) for found in CITED.finditer("as METHOD.md 3.4 and 3.5, METHOD D31 or (D32)")] == ["METHOD.md 3.4 and 3.5", "METHOD D31", "D32"]


def test_every_discrepancy_has_its_row_in_the_audit_page():
    text = METHOD.read_text(encoding="utf-8")
    for number in range(1, 31):
        assert re.search(rf"^\| D{number} \|", text, re.MULTILINE), f"docs/method.md has no row for D{number}"


def test_recipes_named_in_the_audit_page_are_those_of_the_code():
    named = set(re.findall(r"recipe `(\w+)`", METHOD.read_text(encoding="utf-8")))
    assert named and named <= set(RECIPES)


def test_functions_named_in_rows_of_tags_are_in_their_file():
    for line in METHOD.read_text(encoding="utf-8").splitlines():
        if row := ROW.match(line):
            source = (ROOT / row[1]).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", row[4]):
                assert re.search(rf"\b{name}\b", source), f"docs/method.md: {row[1]} has no {name}"


# -------------------------------------------------------------------------------------------------------------- a new language

def test_the_page_on_languages_explains_every_field():
    page = (ROOT / "docs" / "add_a_language.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(Language) if f"`{field.name}`" not in page]
    assert not missing
