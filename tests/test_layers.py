"""Imports point down: a module may import those of the lines above its own in LAYERS, and its own package."""
import ast
from pathlib import Path

from repository import ROOT

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


def part_of(module: str) -> str:
    """What stands in LAYERS for a module: mmed.training.loader -> mmed.training."""
    return ".".join(module.split(".")[:2]) if module.startswith("mmed.") else module.split(".")[0]


def imports_of(path: Path) -> list[str]:
    """Full names of all that a file imports from this repository outside of functions; `from a import b`
    gives a.b.
    """
    found = []
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return [name for name in found
            if name.startswith(("mmed.", "data_prep.", "examples.")) and not name.endswith(".__file__")]


def test_imports_point_down():
    wrong = []
    for path in (path for name in ("mmed", "data_prep", "examples") for path in (ROOT / name).rglob("*.py")):
        own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imports_of(path)
                  if part_of(name) != own and LEVEL[part_of(name)] >= LEVEL[own]]
    assert not wrong, "\n".join(wrong)
