"""Files of unknown origin are read, or rejected with one line: mutated copies of good files of every kind."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_lines import write_lines
from tiny_world import make_world

from data_prep.documents import read_documents
from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.checkpoints.pretrained import load_pretrained
from mmed.lora import apply_lora
from mmed.prompts import read_items
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UserError

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=20))


VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)), max_leaves=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    model, _ = load_pretrained(folder / "model")
    apply_lora(model, rank=4)
    save_adapter(model, folder / "adapter")
    write_lines(folder / "documents.jsonl", *(
        {"text": f"heart and lung {number}", "language": "en", "source": "web", "id": str(number)}
        for number in range(5)))
    return folder


def read_adapter(folder: Path) -> None:
    load_adapter(load_pretrained(folder.parent / "model")[0], folder)


def read_stream(path: Path) -> None:
    TokenStream(path).verify()


# file that is changed -> (what is opened, by which function)
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model/config.json": ("model", load_pretrained),
    "model/model.safetensors": ("model", load_pretrained),
    "model/tokenizer.model": ("model", load_tokenizer),
    "model/tokenizer_config.json": ("model", load_tokenizer),
    "adapter/adapter_config.json": ("adapter", read_adapter),
    "adapter/adapter_model.safetensors": ("adapter", read_adapter),
    "en.json": ("en", read_stream), "en.idx": ("en", read_stream), "en.bin": ("en", read_stream),
    "documents.jsonl": ("documents.jsonl", lambda path: list(read_documents(path))),
    "Train/English.jsonl": ("Train/English.jsonl", read_items)}


def changed(name: str, good: bytes) -> st.SearchStrategy[bytes]:
    """The file with other bytes in it; if it is JSON, also with another value of a key."""
    other_bytes = st.builds(lambda at, remove, insert: good[:at] + insert + good[at + remove:],
                            st.integers(0, len(good)), st.integers(0, 40), st.binary(max_size=40))
    if not name.endswith((".json", ".jsonl")):
        return other_bytes
    first, _, rest = good.partition(b"\n") if name.endswith("l") else (good, b"", b"")
    item = json.loads(first)
    return other_bytes | st.builds(lambda key, value: json.dumps(item | {key: value}).encode() + b"\n" + rest,
                                   st.sampled_from(sorted(item)), VALUES)


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_rejected_in_one_line(world, name):
    target, read = READERS[name]
    good = (world / name).read_bytes()

    @given(changed(name, good))
    def check(content: bytes) -> None:
        (world / name).write_bytes(content)
        try:
            read(world / target)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000

    try:
        check()
    finally:
        (world / name).write_bytes(good)
