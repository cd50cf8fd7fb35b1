"""Files of unknown origin are read, or rejected with one line: mutated copies of good files of every kind.

`HYPOTHESIS_PROFILE=long pytest tests/test_untrusted_files.py` tries a hundred times as many.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
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

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
TRIES = settings(max_examples=5000 if LONG else 50, deadline=None, print_blob=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=20))


def containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner))


VALUES = st.recursive(SCALARS, containers, max_leaves=5)


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
    model, _ = load_pretrained(folder.parent / "model")
    load_adapter(model, folder)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model/config.json": ("model", load_pretrained),
    "model/model.safetensors": ("model", load_pretrained),
    "model/tokenizer.model": ("model", load_tokenizer),
    "model/tokenizer_config.json": ("model", load_tokenizer),
    "adapter/adapter_config.json": ("adapter", read_adapter),
    "adapter/adapter_model.safetensors": ("adapter", read_adapter),
    "en.json": ("en", lambda path: TokenStream(path).verify()),
    "en.idx": ("en", lambda path: TokenStream(path).verify()),
    "en.bin": ("en", lambda path: TokenStream(path).verify()),
    "documents.jsonl": ("documents.jsonl", lambda path: list(read_documents(path))),
    "Train/English.jsonl": ("Train/English.jsonl", read_items),
}


def read_mutated(world: Path, name: str, data: bytes) -> None:
    """Reading either succeeds or raises a UserError of one line."""
    target, read = READERS[name]
    path, kept = world / name, world / (name + ".kept")
    if not kept.exists():
        shutil.copyfile(path, kept)
    path.write_bytes(data)
    try:
        read(world / target)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000
    finally:
        shutil.copyfile(kept, path)


@pytest.mark.parametrize("name", READERS)
def test_changed_bytes_are_read_or_rejected(world, name):
    good = (world / name).read_bytes()

    @TRIES
    @given(at=st.integers(0, len(good)), remove=st.integers(0, 40), insert=st.binary(max_size=40))
    def check(at: int, remove: int, insert: bytes) -> None:
        read_mutated(world, name, good[:at] + insert + good[at + remove:])

    torch.manual_seed(0)
    check()


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith((".json", ".jsonl"))])
def test_changed_json_values_are_read_or_rejected(world, name):
    text = (world / name).read_text()
    first, _, rest = text.partition("\n") if name.endswith("l") else (text, "", "")
    good = json.loads(first)

    @TRIES
    @given(key=st.sampled_from(sorted(good)), value=VALUES)
    def check(key: str, value: object) -> None:
        read_mutated(world, name, (json.dumps(good | {key: value}) + "\n" + rest).encode())

    check()
