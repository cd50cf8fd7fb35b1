"""Only the commands whose help says so may use the network, through four modules."""
import ast
import re
import subprocess
import sys

import pytest
from repository import ROOT

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for part in ("mmed", "data_prep") for path in sorted((ROOT / part).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
# What opens connections, and what fetches files when it is called.
OPENING = {"socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib",
           "xmlrpc", "asyncio", "requests", "httpx", "httpx2", "aiohttp", "urllib3", "openai", "websockets",
           "huggingface_hub", "ray", "scrapy"}
FETCHING = {"get_encoding", "encoding_for_model", "from_pretrained", "hf_hub_download", "snapshot_download",
            "load_dataset", "urlopen", "urlretrieve", "fetch_url", "download", "load_state_dict_from_url"}
ALLOWED = {"mmed.evaluation.api_client", "data_prep.fetch_site", "data_prep.sources.site_spider",
           "data_prep.pipeline.cluster"}
COMMANDS = {"mmed.eval", "mmed.human_eval.rating", "data_prep.rationales", "data_prep.fetch_site",
            "data_prep.pipeline.cluster"}
# A plan of commands: it imports what it starts, and uses nothing of it that opens a connection.
STARTS_OTHERS = {"data_prep.corpus"}


def called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def imports(tree: ast.AST):
    """Full names of all that is imported, also by name through `require_extra` and `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Call) and called_name(node) in ("require_extra", "import_module"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def reached(module: str) -> set[str]:
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in TREES and name not in seen:
            seen.add(name)
            todo += imports(TREES[name])
    return seen


def test_connections_are_opened_in_four_modules():
    opening = {name for name, tree in TREES.items() for imported in imports(tree)
               if any(f"{imported}.".startswith(f"{way}.") for way in OPENING)}
    assert opening == ALLOWED


def test_nothing_that_fetches_files_is_called():
    calls = {f"{name}:{node.lineno}": node for name, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.Call) and called_name(node) in FETCHING}
    assert not [place for place, call in calls.items()
                if "local_files_only=True" not in map(ast.unparse, call.keywords)]


def test_the_commands_that_may_use_the_network_are_these():
    commands = {name for name, path in FILES.items() if 'if __name__ == "__main__"' in path.read_text()}
    assert {name for name in commands if reached(name) & ALLOWED} - STARTS_OTHERS == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_that_may_use_the_network_says_so(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, text=True)
    assert re.search(r"\bnetwork\b", done.stdout), done.stdout
