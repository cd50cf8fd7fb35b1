"""The fuzzers of benchmarks/fuzz/fuzz.py: a short turn of each with a fixed seed, and every kind of input that they ever found."""
from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz"))

import subprocess

import fuzz
import fuzz_targets
from fuzz_targets import ADAPTER, CONFIG, TARGETS, dumps

for extra in ("pyarrow", "trafilatura", "pypdfium2"):
    pytest.importorskip(extra)
SECONDS, INPUTS = 0.25, 100  # of each parser here; make fuzz takes a minute


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "pdf"])  # a process each input: tests/data_prep/test_books.py has its own
def test_a_short_turn_with_a_fixed_seed_finds_nothing(tmp_path, name):
    target, seeds = TARGETS[name], TARGETS[name].seeds()
    end = time.process_time() + SECONDS
    for number in range(INPUTS):
        if number >= len(seeds) and time.process_time() > end:
            break
        data = fuzz.make_input(name, 1, number, seeds, target.json)
        fault = fuzz.fault_of(target, tmp_path, data)
        assert not fault, f"input {number}: {data[:300]!r}\n{fault[0]}\n{fault[1]}"


@pytest.mark.parametrize("name", TARGETS)
def test_what_inputs_are_made_from_is_read(tmp_path, name):
    """A fuzzer that starts from files that are refused at once tries nothing."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(tmp_path, seed)


def side(**more) -> bytes:
    return dumps(json.loads(fuzz_targets.seeds_stream()[0]) | more)


def tokenizer(which: int, **more) -> bytes:
    return dumps(json.loads(fuzz_targets.seeds_tokenizer_json()[which]) | more)


def encoder(which: int, change) -> bytes:
    value = json.loads(fuzz_targets.seeds_encoder()[which])
    change(value)
    return dumps(value)


def funnel(**more) -> bytes:
    return dumps(json.loads(TARGETS["funnel"].seeds()[0]) | more)


def row(**more) -> bytes:
    rows = [json.loads(line) for line in fuzz_targets.result_files()["predictions.jsonl"].splitlines()]
    rows[1] |= more  # the first is of the mode "answer"
    return b"\n".join(json.dumps({key: value for key, value in one.items() if value != "gone"}).encode() for one in rows)


FOUND = {
    "recipe: nested": ("recipe", lambda: b"a = " + b"[" * 3000), "recipe: a long number": ("recipe", lambda: b"held_out = " + b"9" * 5000),
    "recipe: nobody's home": ("recipe", lambda: fuzz_targets.seeds_recipe()[1].replace(b'tokenizer = "."', b'tokenizer = "~nobody-of-this-name/x"')),
    "funnel: no characters": ("funnel", lambda: funnel(characters={})), "funnel: counts are texts": ("funnel", lambda: funnel(documents={"in": "a", "out": {}})),
    "funnel: a list": ("funnel", lambda: b"[]"), "funnel: reasons": ("funnel", lambda: funnel(dropped=[1])),
    "safetensors: dtype is a list": ("safetensors", lambda: dumps({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}})),
    "safetensors: line break in a shape": ("safetensors", lambda: dumps({"a": {"dtype": "F32", "shape": "\n", "data_offsets": [0, 4]}})),
    "index: a long name": ("index", lambda: dumps({"weight_map": {"one": "a" * 5000 + ".safetensors"}})),
    "config: a long value": ("config", lambda: dumps(CONFIG | {"vocab_size": "x" * 5000})), "config: rope_type is a list": ("config", lambda: dumps(CONFIG | {"rope_scaling": {"rope_type": ["llama3"]}})),
    "config: a number beyond all floats": ("config", lambda: dumps(CONFIG | {"rms_norm_eps": 10 ** 400})),
    "adapter: a number beyond all floats": ("adapter", lambda: dumps(ADAPTER | {"lora_alpha": 10 ** 400})), "adapter: NaN": ("adapter", lambda: dumps(ADAPTER | {"lora_alpha": float("nan")})),
    "adapter: targets of numbers": ("adapter", lambda: dumps(ADAPTER | {"target_modules": [None, 3]})), "adapter: a long target": ("adapter", lambda: dumps(ADAPTER | {"target_modules": ["x" * 5000]})),
    "stream: hashes are a list": ("stream", lambda: side(sha256=[])), "stream: a hash is missing": ("stream", lambda: side(sha256={"bin": "0"})),
    "stream: endless count": ("stream", lambda: side(tokens=10 ** 400)), "stream: infinite count": ("stream", lambda: side(documents=float("inf"))),
    "stream: a long dtype": ("stream", lambda: side(dtype="x" * 5000)),
    "stream-bytes: an id beyond the vocabulary": ("stream-bytes", lambda: fuzz_targets.seeds_index_file()[0][:-2] + b"\xff\xff"),
    "stream-bytes: an end beyond signed numbers": ("stream-bytes", lambda: (2 ** 64 - 8).to_bytes(8, "little") + fuzz_targets.seeds_index_file()[0][8:]),
    "tokenizer: added tokens are true": ("tokenizer-json", lambda: tokenizer(0, added_tokens=True)),
    "tokenizer: steps are a number": ("tokenizer-json", lambda: tokenizer(2, normalizer={"type": "Sequence", "normalizers": 5})),
    "tokenizer: a step is a text": ("tokenizer-json", lambda: tokenizer(2, pre_tokenizer="Whitespace")),
    "tokenizer: a pattern that is a list": ("tokenizer-json", lambda: tokenizer(0).replace(b'{"Regex": ', b'{"Regex": ["x"], "was": ')),
    "tokenizer: half a surrogate pair": ("tokenizer-json", lambda: tokenizer(2).replace(b'"th"', b'"\\ud800"', 1)),
    "settings: a gap before an added token": ("tokenizer-settings", lambda: dumps({"<x>": 5000})),
    "encoder: a mark is a list": ("encoder-tokenizer", lambda: encoder(0, lambda value: value["model"].update(unk_token=["[UNK]"]))),
    "encoder: added tokens are a number": ("encoder-tokenizer", lambda: encoder(1, lambda value: value.update(added_tokens=7))),
    "encoder: a score beyond all floats": ("encoder-tokenizer", lambda: encoder(1, lambda value: value["model"]["vocab"].append(["b", 10 ** 400]))),
    "csv: a long header": ("csv", lambda: b"a" * 5000 + b",b\nc,d\n"),
    "reply: a key that is a list": ("reply", lambda: b'{"key": ["k"], "reply": {"text": "B"}}\n'), "reply: nested": ("reply", lambda: b"[" * 3000),
    "reply: NaN": ("reply", lambda: b'{"key": "k", "reply": {"text": "B", "n": NaN}}\n'),
    "sheet: an entry without its sheet": ("sheet", lambda: json.dumps(json.loads(fuzz_targets.rating_files()["key"]) | {"sheets": {"English": {"items": {}}}}).encode()),
    "results: no rationale": ("results", lambda: row(rationale="gone")), "results: no language": ("results", lambda: row(language="gone")),
    "results: a key that is a list": ("results", lambda: row(key=["a"])), "results: doc is a number": ("results", lambda: row(doc=1.5)),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_refused_in_one_line_or_read(tmp_path, name):
    parser, make = FOUND[name]
    fault = fuzz.fault_of(TARGETS[parser], tmp_path, make())
    assert not fault, f"{fault[0]}\n{fault[1]}"


# -------------------------------------------------------------------------------------------------------- the fuzzer itself

def test_an_input_is_a_function_of_its_number_and_seeds_come_first():
    seeds = TARGETS["config"].seeds()
    made = [fuzz.make_input("config", 5, number, seeds, True) for number in range(200)]
    assert made[: len(seeds)] == seeds and made == [fuzz.make_input("config", 5, number, seeds, True) for number in range(200)]
    assert len(set(made)) > 150 and made != [fuzz.make_input("config", 6, number, seeds, True) for number in range(200)]


def test_a_changed_tree_is_another_tree_and_the_first_stays():
    rng = random.Random(3)
    before = json.dumps(CONFIG)
    changed = [fuzz.mutate_tree(rng, CONFIG) for _ in range(100)]
    assert json.dumps(CONFIG) == before and sum(value != CONFIG for value in changed) > 80


def test_crashes_hangs_and_tracebacks_are_found(tmp_path):
    """A made parser in the place of a real one: what the fuzzer is for must not pass it by."""
    made = tmp_path / "made.py"
    made.write_text(f"""import os, signal, sys
sys.path[:0] = {[str(Path(fuzz.__file__).parent), str(Path(fuzz.__file__).parents[2])]!r}
import fuzz, fuzz_targets
fuzz.SECONDS = 1
def run(folder, data):
    if data == b"seed": return
    kind = sum(data) % 4
    if kind == 0: os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 1: raise KeyError(data)
    if kind == 2: bytearray(8 << 30)
    if kind == 3 and len(data) > 30:
        while True: pass
fuzz_targets.TARGETS["robots"] = fuzz_targets.Target(lambda: [b"seed"], run)
fuzz.HERE = __import__("pathlib").Path({str(tmp_path)!r})
sys.argv[0] = {str(made)!r}
sys.exit(fuzz.main())
""")
    (tmp_path / "fuzz.py").symlink_to(made)

    done = subprocess.run([sys.executable, str(made), "--only", "robots", "--seconds", "8", "--seed", "1", "--out", str(tmp_path / "found")], capture_output=True, text=True)
    for kind in ("crashed: SIGSEGV", "KeyError at", "MemoryError at"):
        assert kind in done.stdout, done.stdout + done.stderr[-3000:]
    assert done.returncode == 1 and list((tmp_path / "found").glob("robots-*.bin"))
