"""The repository keeps its shape: imports that point down, core dependencies, commands that start fast, no
code run from data, true references.
"""
from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from repository import ENV, ROOT

from mmed.config import RECIPES

PACKAGES = ("mmed", "data_prep", "examples")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = {path: path.read_text(encoding="utf-8") for path in FILES}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"torch", "numpy", "sentencepiece", "tiktoken", "safetensors", "tqdm"}
# Modules that import an extra at the top; their command imports them only after require_extra.
LOADED_WITH_EXTRA = {"data_prep/sources/site_spider.py"}
# A module may import those of the lines above its own, and its own package.
LAYERS = """
    mmed.utils
    mmed.languages mmed.tokenization
    mmed.tokenizer mmed.prompts mmed.metrics
    mmed.kernels mmed.loss
    mmed.config mmed.model
    mmed.lora mmed.data
    mmed.training
    mmed.inference
    mmed.checkpoints
    mmed.train mmed.generate
    mmed.evaluation
    mmed.eval
    mmed.reporting
    mmed.human_eval
    data_prep
    examples
"""
LEVEL = {name: number for number, line in enumerate(LAYERS.split("\n")) for name in line.split()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


COMMANDS = sorted(module_name(path) for path, source in SOURCES.items()
                  if 'if __name__ == "__main__"' in source)
# Commands that compute with torch import it at the top; all others start in a fraction of a second.
NEED_TORCH = {
    "mmed.train", "mmed.generate", "mmed.eval", "mmed.checkpoints.__main__", "mmed.evaluation.bertscore",
    "mmed.evaluation.validation_loss", "mmed.training.inspect_batch"
}


def imports_of(tree: ast.Module) -> set[str]:
    """Full names of all that a file imports outside of functions; `from a import b` gives a.b."""
    found, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}".removesuffix(".__file__") for alias in node.names}
        elif not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)
    return found


def layer(module: str) -> str:
    """What stands in LAYERS for a module: mmed.training.loader -> mmed.training."""
    return ".".join(module.split(".")[:2]) if module.startswith("mmed.") else module.split(".")[0]


def test_imports_point_down():
    for path, tree in TREES.items():
        own = layer(module_name(path))
        wrong = [name for name in imports_of(tree) if name.startswith(("mmed.", "data_prep.", "examples."))
                 and layer(name) != own and LEVEL[layer(name)] >= LEVEL[own]]
        assert not wrong, f"{path} imports {wrong}"


def test_core_imports_only_its_six_packages_and_extras_name_theirs():
    assert {re.split(r"[<>=\[ ]", need)[0] for need in PROJECT["dependencies"]} == CORE
    allowed = CORE | {"regex"} | set(sys.stdlib_module_names) | set(PACKAGES)  # regex is required by tiktoken
    for path, tree in TREES.items():
        if str(path.relative_to(ROOT)) not in LOADED_WITH_EXTRA:
            wrong = {name.split(".")[0] for name in imports_of(tree)} - allowed
            assert not wrong, f"{path} imports {wrong} at the top"
        for package, extra in re.findall(r'require_extra\("([\w.]+)", "(\w+)"', SOURCES[path]):
            needs = PROJECT["optional-dependencies"].get(extra, [])
            name = package.split(".")[0].lower()
            found = any(need.lower().replace("-", "_").startswith(name) for need in needs)
            assert found, f"{path}: extra {extra!r} does not install {package}"


def test_no_module_hides_a_standard_one():
    names = {path.stem for path in FILES if path.parent == ROOT / "mmed"}
    assert not names & set(sys.stdlib_module_names)


def test_nothing_runs_code_from_data():
    """One torch.load, with weights_only=True; no pickle, eval, shell or remote code anywhere."""
    forbidden = {"eval", "exec", "compile", "__import__", "yaml.load", "os.system", "os.popen"}
    wrong = []
    for path, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
            unsafe = (name in forbidden or "allow_pickle" in keywords or "trust_remote_code" in keywords
                      or keywords.get("shell", "False") != "False"
                      or re.match(r"(c?pickle|dill|marshal|shelve)\.load", name)
                      or (name == "torch.load" and keywords.get("weights_only") != "True"))
            if unsafe:
                wrong.append(f"{path}:{call.lineno} {name}")
    assert not wrong, "\n".join(wrong)


# Run a command with --help, then with an unknown option; report exit codes, and what --help imported.
RUN = """
import runpy, sys
command, before = sys.argv[1], sys.argv[2:]
for arguments in (["--help"], [*before, "--no-such-flag=1"]):
    sys.argv[1:] = arguments
    try:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        print("\\nREPORT", stop.code or 0, *sorted({"torch", "transformers", "scipy"} & set(sys.modules)),
              file=sys.stderr)
"""
# What has to stand before an option: a recipe or a subcommand.
BEFORE = {"mmed.train": ["tiny"], "mmed.training.inspect_batch": ["show", "run", "1"],
          "mmed.checkpoints.__main__": ["export", "run", "folder"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_0_without_needless_imports_and_an_unknown_option_exits_2(command, tmp_path):
    done = subprocess.run([sys.executable, "-c", RUN, command, *BEFORE.get(command, [])], cwd=tmp_path,
                          capture_output=True, text=True, env=ENV, timeout=240)
    errors, reports = re.split(r"\nREPORT .*\n", done.stderr), re.findall(r"\nREPORT (.*)\n", done.stderr)
    assert len(reports) == 2 and "Traceback" not in done.stderr, done.stderr
    code, *heavy = reports[0].split()
    assert code == "0" and "usage" in done.stdout.lower() and not errors[0].strip()
    assert set(heavy) <= ({"torch"} if command in NEED_TORCH else set())
    assert reports[1].split()[0] == "2" and re.search(r"did you mean (--)?\w", errors[1])
    assert not list(tmp_path.iterdir())


# Folders of one machine and hosts of package registries, in pieces so that this file does not match itself.
MACHINE = re.compile(r"(?<![\w.])/(?:" + "home|Users|root|mnt|opt|workspace|work" + r")/\w"
                     r"|\b(?:" + "py" + r"pi|files\.python" + r"hosted|conda\.ana" + r"conda|registry\.np" +
                     r"mjs)\.(?:org|com|io)\b")


def test_no_path_of_a_machine_and_no_package_registry_is_named():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            text = (ROOT / name).read_bytes().decode("utf-8", errors="replace")
            found = MACHINE.search(text)
            assert not found, f"{name}: {found[0]}"


def test_the_page_of_tags_is_up_to_date():
    done = subprocess.run([sys.executable, "docs/tags.py", "--check"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


PLACE = re.compile(
    r"`((?:mmed|data_prep|tests|benchmarks|slurm|docs|examples)/[\w/.]+\.\w+)(?:: ([\w., ]+))?`")


@pytest.mark.parametrize("file, names", sorted(set(PLACE.findall(METHOD))))
def test_files_and_functions_named_in_method_md_exist(file, names):
    source = (ROOT / file).read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source))) if names else []
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert set(re.findall(r"\w+", names)) <= defined


def test_sections_cited_in_the_code_and_recipes_named_in_method_md_exist():
    known = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", METHOD, re.MULTILINE))
    known |= set(re.findall(r"^(\d\.\d)(?:[ :,]| and)", METHOD, re.MULTILINE))
    known |= set(re.findall(r"^\| (D\d+) \|", METHOD, re.MULTILINE))
    cited = re.compile(r"METHOD(?:\.md)?,? (D?\d+(?:\.\d+)?)|\b(D\d{1,2})\b")
    for path, source in SOURCES.items():
        for found in cited.finditer(source):
            assert (found[1] or found[2]) in known, f"{path} cites {found[0]}"
    assert set(re.findall(r"recipe `(\w+)`", METHOD)) <= set(RECIPES)
