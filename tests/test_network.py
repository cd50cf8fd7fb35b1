"""Who may use the network: the commands whose help says so, by four modules; nobody else, and no library
behind anyone's back.
"""
import ast
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for part in ("mmed", "data_prep") for path in sorted((ROOT / part).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
# What opens connections, and what fetches files when it is called.
OPENING = {
    "socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib",
    "xmlrpc", "asyncio", "requests", "httpx", "httpx2", "aiohttp", "urllib3", "openai", "websockets",
    "huggingface_hub", "ray", "scrapy"
}
FETCHING = {
    "get_encoding", "encoding_for_model", "from_pretrained", "hf_hub_download", "snapshot_download",
    "load_dataset", "urlopen", "urlretrieve", "fetch_url", "download", "load_state_dict_from_url"
}
ALLOWED = {
    "mmed.evaluation.api_client": "openai", "data_prep.fetch_site": "scrapy",
    "data_prep.sources.site_spider": "scrapy"
}


def imports(tree: ast.AST):
    """Full names of all that is imported, also by name through `require_extra` and `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(
                node.func, "attr", "")) in ("require_extra", "import_module"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def opens(module: str) -> set[str]:
    return {
        name
        for name in imports(TREES[module])
        for way in OPENING if name == way or name.startswith(way + ".")
    }


def test_connections_are_opened_in_four_modules():
    assert {name
            for name in TREES
            if opens(name)} == set(ALLOWED), {name: opens(name)
                                              for name in TREES if opens(name)}


def test_nothing_that_fetches_files_is_called():
    local = {"local_files_only=True"}
    called = set()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id",
                                                                                 "")) in FETCHING:
                if not local & {ast.unparse(keyword) for keyword in node.keywords}:
                    called.add(f"{name}:{node.lineno} {ast.unparse(node.func)}")
    assert not called, called


def reached(module: str) -> set[str]:
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in TREES and name not in seen:
            seen.add(name)
            todo += imports(TREES[name])
    return seen


COMMANDS = sorted(name for name, path in FILES.items()
                  if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"))
# A plan of commands: it imports what it starts, and uses nothing of it that asks anyone.
STARTS_OTHERS = {"data_prep.corpus"}


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if reached(name) & set(ALLOWED) and name not in STARTS_OTHERS])
def test_the_help_of_a_command_that_may_use_the_network_says_so(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"],
                          capture_output=True,
                          text=True,
                          timeout=60)
    assert re.search(r"\bnetwork\b", done.stdout), done.stdout


def test_the_commands_that_may_use_the_network_are_these():
    found = {name for name in COMMANDS if reached(name) & set(ALLOWED)} - STARTS_OTHERS
    assert found == {"mmed.eval", "mmed.human_eval.rating", "data_prep.rationales", "data_prep.fetch_site"}


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0)])
def test_a_test_that_asks_for_the_network_fails(address):
    with socket.socket(socket.AF_INET if len(address) == 2 else socket.AF_INET6) as asking, pytest.raises(
            RuntimeError, match="no network but loopback"):
        asking.connect(address)
    with pytest.raises(RuntimeError, match="no network but loopback"):
        socket.getaddrinfo("example.org", 443)
