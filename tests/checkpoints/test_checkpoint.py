"""Model folders in and out: bit-equal round trips, transformers as the judge, hostile files, memory, the
commands.
"""
import contextlib
import importlib.util
import io
import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from warm_start import run as warm_run

from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.checkpoints.weights import stored_tensors
from mmed.generate import generate
from mmed.utils.errors import UserError

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("families_for_checkpoints",
                                               Path(__file__).with_name("test_families.py"))
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)
CLASSES, close, equivalent_llama, internlm2_folder, theirs_of = (families.CLASSES, families.close,
                                                                 families.equivalent_llama,
                                                                 families.internlm2_folder,
                                                                 families.theirs_of)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("sharded", [False, True])
def test_in_and_out_is_bit_equal_and_transformers_gives_the_same_logits_and_greedy_text(
        tmp_path, family, sharded):
    theirs = theirs_of(family, 2 + sharded)
    theirs.generation_config.eos_token_id = [7, 9]
    theirs.save_pretrained(tmp_path / "in", **({"max_shard_size": "20KB"} if sharded else {}))
    ours, tokenizer = load_pretrained(tmp_path / "in")
    assert tokenizer is None
    save_pretrained(ours, None, tmp_path / "out", shard_bytes=20_000 if sharded else 10 ** 9)
    assert same_bits(tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == sharded
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [7, 9]
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out",
                                                                    attn_implementation="eager",
                                                                    output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, ours.config.vocab_size, (1, 13))
    with torch.no_grad():
        assert close(ours(ids), again(ids).logits)
        new = again.generate(ids,
                             attention_mask=torch.ones_like(ids),
                             max_new_tokens=12,
                             do_sample=False,
                             eos_token_id=None,
                             pad_token_id=0)[0, 13:].tolist()
    assert generate(ours, [ids[0].tolist()], 12)[0] == new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_read_in_the_dtype_asked_for(tmp_path, dtype):
    theirs = theirs_of("llama", 4).to(dtype)
    theirs.save_pretrained(tmp_path)
    wide, _ = load_pretrained(tmp_path)
    same, _ = load_pretrained(tmp_path, dtype=dtype)
    for name, value in theirs.state_dict().items():
        own = wide.get_parameter(
            name.removeprefix("model.")) if name != "lm_head.weight" else wide.head_weight
        assert own.dtype == torch.float32 and torch.equal(own, value.float()), name
    save_pretrained(same, None, tmp_path / "out")
    save_pretrained(wide, None, tmp_path / "narrowed", dtype=dtype)
    assert same_bits(tensors_of(tmp_path), tensors_of(tmp_path / "out")) and same_bits(
        tensors_of(tmp_path), tensors_of(tmp_path / "narrowed"))
    assert json.loads(
        (tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


def write_internlm2(folder: Path, seed: int = 3) -> torch.nn.Module:
    llama = equivalent_llama(seed, 2, False)
    config, tensors = internlm2_folder(llama)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone()
               for k, v in tensors.items()},
              folder / "model.safetensors",
              metadata={"format": "pt"})
    return llama


def test_an_internlm2_folder_goes_in_and_out_with_its_own_names_and_bits(tmp_path):
    llama = write_internlm2(tmp_path / "in")
    ours, _ = load_pretrained(tmp_path / "in")
    ids = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        assert close(ours(ids), llama(ids).logits)
    save_pretrained(ours, None, tmp_path / "out")
    assert same_bits(tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out"))
    assert "model.layers.1.attention.wqkv.weight" in tensors_of(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == ["InternLM2ForCausalLM"]


@pytest.mark.parametrize("with_head", [False, True])
def test_bloom_weights_saved_without_the_transformer_prefix_and_with_or_without_the_tied_head(
        tmp_path, with_head):
    theirs = theirs_of("bloom", 6)
    theirs.config.tie_word_embeddings = True
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    tensors.pop("lm_head.weight", None)
    if with_head:
        tensors["lm_head.weight"] = tensors["word_embeddings.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, _ = load_pretrained(tmp_path)
    ids = torch.randint(0, ours.config.vocab_size, (1, 9))
    with torch.no_grad():
        assert close(ours(ids), theirs(ids).logits)


# ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("new_format", [False, True])
def test_legacy_bin_files_load_as_tensors_only(tmp_path, sharded, new_format):
    theirs = theirs_of("llama", 8)
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()
    half = len(state) // 2
    parts = {"pytorch_model.bin": state}
    if sharded:
        parts = {
            "pytorch_model-00001-of-00002.bin": dict(list(state.items())[:half]),
            "pytorch_model-00002-of-00002.bin": dict(list(state.items())[half:]),
        }
    for file, part in parts.items():
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=new_format)
    if sharded:
        (tmp_path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {n: f
                                       for f, p in parts.items()
                                       for n in p}}))
    ours, _ = load_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.randint(0, ours.config.vocab_size, (1, 9))
    with torch.no_grad():
        assert close(ours(ids), theirs.double()(ids).logits)


class Runs:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("how", ["alone", "in a state dict", "plain pickle"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_that_would_run_code_is_rejected_and_does_not_run(tmp_path, how, file):
    theirs = theirs_of("llama", 8)
    theirs.config.save_pretrained(tmp_path)
    bomb, canary = Runs(tmp_path / "canary"), tmp_path / "canary"
    if how == "plain pickle":
        (tmp_path / file).write_bytes(pickle.dumps({"x": bomb}))
    else:
        torch.save(bomb if how == "alone" else theirs.state_dict() | {"model.bomb": bomb}, tmp_path / file)
    with pytest.raises(UserError, match=re.escape(file)) as error:
        load_pretrained(tmp_path)
    assert not canary.exists() and "\n" not in str(error.value)


def test_pickles_are_opened_in_one_place_only():
    for path in (*ROOT.glob("mmed/**/*.py"), *ROOT.glob("data_prep/**/*.py")):
        code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        for word in ("torch.load(", "import pickle", "allow_pickle=True", "shell=True", "yaml.load("):
            assert word not in code or path.name == "weights.py", f"{path}: {word}"
    assert all("weights_only=True" in line
               for line in (ROOT / "mmed/checkpoints/weights.py").read_text().splitlines()
               if "torch.load(" in line)


# --------------------------------------------------------------------------------------------------- weight f

@pytest.mark.parametrize("content, words", [
    (b"", "damaged"), (b"x" * 100, "damaged"), ("truncated", "damaged"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5135149760\n", "Git LFS pointer")])
def test_a_damaged_weight_file_is_named(tmp_path, content, words):
    theirs_of("llama", 8).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content == "truncated" else content)
    with pytest.raises(UserError, match=f"model.safetensors: .*{words}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("files, words", [({"a": "../secret.safetensors"}, "not the name of a file"),
                                          ({"a": "/etc/passwd"}, "not the name"), ({"a": 3}, "not the name"),
                                          ({"a": "three.safetensors"}, "no such file"),
                                          ({"a": "two.safetensors"}, "lacks a"), ({}, "no weight_map"),
                                          ([], "no weight_map")])
def test_an_index_that_does_not_match_its_files_is_rejected(tmp_path, files, words):
    for file, key in (("one", "a"), ("two", "b")):
        save_file({key: torch.ones(2)}, tmp_path / f"{file}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(UserError, match=words):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_two_sets_of_weights_are_rejected(tmp_path, name):
    theirs = theirs_of("llama", 8)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    if name.endswith(".bin"):
        (tmp_path / "model.safetensors.index.json").unlink()
        torch.save(theirs.state_dict(), tmp_path / "part.bin")
        torch.save(theirs.state_dict(), tmp_path / name)
        (tmp_path / f"{name}.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(theirs.state_dict(), "part.bin")}))
    else:
        save_file({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(UserError, match=f"two sets of weights, {name}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_differs_from_the_tied_embedding_is_rejected(tmp_path, same):
    theirs = theirs_of("gemma", 8)
    theirs.config.tie_word_embeddings = True
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if same else 1)
    save_file(tensors, tmp_path / "model.safetensors")
    if same:
        load_pretrained(tmp_path)
        return
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_pretrained(tmp_path)


def test_a_folder_that_transformers_unpacked_from_gguf_opens(tmp_path):
    theirs = theirs_of("llama", 8)
    theirs.save_pretrained(tmp_path)
    config = json.loads(
        (tmp_path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gguf"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, _ = load_pretrained(tmp_path)
    save_pretrained(ours, None, tmp_path / "out")
    assert same_bits(tensors_of(tmp_path), tensors_of(tmp_path / "out"))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


# --------------------------------------------------------------------------------------------------- folders

def test_missing_unexpected_and_misshapen_tensors_are_listed_and_no_memory_is_taken(tmp_path, monkeypatch):
    theirs = theirs_of("llama", 8)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    first, second, third = sorted(n for n in tensors if "q_proj.weight" in n or "norm.weight" in n)[:3]
    tensors["model.more.weight"] = tensors.pop(first)
    tensors[second] = tensors[second][:1].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(UserError) as error:
        load_pretrained(tmp_path)
    for word in ("1 missing", first, "1 unexpected", "model.more.weight", "1 of another shape", second):
        assert word in str(error.value)
    assert third not in str(error.value)


def test_a_config_larger_than_its_weights_is_rejected_before_memory_is_taken(tmp_path):
    theirs_of("llama", 8).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 2**24, "hidden_size": 2**18}))
    with pytest.raises(UserError, match="of another shape"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(tmp_path)


def test_a_config_without_a_key_names_the_key_and_the_folder(tmp_path):
    theirs_of("llama", 8).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("vocab_size", "num_hidden_layers", "model_type", "intermediate_size"):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        with pytest.raises(UserError, match=f"{tmp_path}/config.json: .*{key}"):
            load_pretrained(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_rejected(tmp_path):
    from mmed.tokenizer import train_sentencepiece

    theirs_of("llama", 8).save_pretrained(tmp_path)
    train_sentencepiece(["heart lung bone fever dose " * 50], tmp_path, 280)
    with pytest.raises(UserError, match="280 ids, the embedding only"):
        load_pretrained(tmp_path)


def test_loading_runs_nothing_from_the_folder(tmp_path):
    theirs_of("llama", 8).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    (tmp_path / "config.json").write_text(
        json.dumps(
            config | {
                "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.C"},
                "_attn_implementation_internal": "evil/kernel", "_attn_implementation": "evil/kernel"
            }))
    before = set(sys.modules)
    load_pretrained(tmp_path)
    assert not (tmp_path / "canary").exists() and not any("evil" in name
                                                          for name in set(sys.modules) - before)


# ------------------------------------------------------------------------------------------------------------

PEAK = """
import sys, torch
from mmed.checkpoints import pretrained as checkpoint
from mmed.training import distributed
from mmed import model, tokenizer
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
checkpoint.load_pretrained(sys.argv[3])  # what the first load of any model imports is not counted
before = peak()
result, _ = checkpoint.load_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(peak() - before, sum(p.numel() * p.element_size() for p in result.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of memory")
@pytest.mark.parametrize("stored, dtype", [("bfloat16", "bfloat16"), ("bfloat16", "float32"),
                                           ("float32", "bfloat16")])
def test_the_peak_of_memory_is_the_model_in_its_dtype_and_one_buffer(tmp_path, stored, dtype):
    from mmed.model import ModelConfig, Transformer

    with torch.device("meta"):
        model = Transformer(
            ModelConfig(vocab_size=20_000,
                        hidden_size=512,
                        intermediate_size=2048,
                        num_hidden_layers=16,
                        num_attention_heads=8,
                        num_key_value_heads=4,
                        head_dim=64))
    model.to_empty(device="cpu")
    save_pretrained(model, None, tmp_path / "model", dtype=getattr(torch, stored))
    theirs_of("llama", 4).save_pretrained(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-c", PEAK,
         str(tmp_path / "model"), dtype,
         str(tmp_path / "tiny")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT)
    peak, size = map(int, done.stdout.split())
    # mapped: the system may drop its pages at any time
    file = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert peak < size + file + (40 << 20), f"peak {peak:,} for a model of {size:,}"


# --------------------------------------------------------------------------------------------------------- th

WORDS = "heart lung bone cell fever dose plum rain stone river".split()
GERMAN = "Herz Lunge Knochen Zelle Fieber Dosis Pflaume Regen Stein Fluss Öl Übelkeit größer".split()
HINDI = "हृदय फेफड़ा हड्डी कोशिका बुखार खुराक दवा रोगी".split()


def text_of(words, rng, n=40):
    return " ".join(rng.choices(words, k=n)) + f" {rng.randint(0, 99)} mg."


def command(*arguments, code=0) -> str:
    """What `python -m mmed.checkpoints` prints; run in this process, which is quicker."""
    from mmed.checkpoints.commands import main
    from mmed.utils.errors import main_guard

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as end:
        main_guard(lambda: main([str(a) for a in arguments]))
    assert end.value.code == code, text.getvalue()
    if code:
        assert text.getvalue().startswith(("error: ", "usage: "))
    return text.getvalue()


def make_tokenizer(folder: Path, kind: str):
    """A small English tokenizer: sentencepiece, or byte-level BPE with special tokens after its pieces."""
    rng = random.Random(5)
    texts = [text_of(WORDS, rng) for _ in range(60)]
    if kind == "sentencepiece":
        from mmed.tokenizer import train_sentencepiece

        return train_sentencepiece(texts, folder, 320)
    import tokenizers

    from mmed.tokenizer import load_tokenizer

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(vocab_size=300,
                                       show_progress=False,
                                       initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    model.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return load_tokenizer(folder)


def make_folder(folder: Path, kind: str = "sentencepiece", **more) -> Path:
    from mmed.model import ModelConfig, Transformer

    tokenizer = make_tokenizer(folder.parent / f"{folder.name}-tokenizer", kind)
    config = ModelConfig(
        **{
            **dict(vocab_size=tokenizer.vocab_size + 5,
                   hidden_size=32,
                   intermediate_size=48,
                   num_hidden_layers=2,
                   num_attention_heads=4,
                   num_key_value_heads=2,
                   head_dim=8,
                   initializer_range=0.1,
                   max_position_embeddings=64,
                   extra={"generation_config": {"eos_token_id": [2, 3], "temperature": 0.6}}), **more
        })
    save_pretrained(Transformer(config).init_weights(3), tokenizer, folder, dtype=torch.bfloat16)
    return folder


def test_help_of_every_command_is_there():
    code = ("import mmed.checkpoints.commands\n"
            "for c in ('inspect', 'export', 'merge', 'extend'):\n"
            "    try: mmed.checkpoints.commands.main([c, '--help'])\n"
            "    except SystemExit as e: assert e.code == 0\n")
    assert "--layout" in subprocess.run([sys.executable, "-c", code],
                                        capture_output=True,
                                        text=True,
                                        check=True,
                                        cwd=ROOT).stdout
    done = subprocess.run([sys.executable, "-m", "mmed.checkpoints", "inspect", "/no/such"],
                          capture_output=True,
                          text=True,
                          cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith(
        "error: /no/such/config.json") and "Traceback" not in done.stderr


def test_inspect_says_what_a_folder_is(tmp_path):
    out = command("inspect", make_folder(tmp_path / "model"))
    for words in ("llama (LlamaForCausalLM)", "bfloat16", "sentencepiece, 320 ids (5 rows of padding)",
                  "64 positions", "to decode"):
        assert words in out, out


def test_merge_writes_the_model_that_peft_would_merge_with_its_settings_and_card(tmp_path):
    from mmed.checkpoints.adapters import save_adapter
    from mmed.lora import apply_lora

    base = make_folder(tmp_path / "base")
    model, _ = load_pretrained(base)
    apply_lora(model, rank=4, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter")
    out = command("merge", base, tmp_path / "adapter", tmp_path / "merged", "--dtype", "float32")
    assert "14 adapted layers" in out
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        assert close(merged(ids).logits, model.eval()(ids), 2e-5)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "no medical advice" in card and "`base`" in card and str(tmp_path) not in card
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == {
        "eos_token_id": [2, 3], "temperature": 0.6
    }
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    assert "--force" in command("merge", base, tmp_path / "adapter", tmp_path / "merged", code=2)
    assert tensors_of_dtype(tmp_path / "merged") == {torch.float32}
    command("merge", base, tmp_path / "adapter", tmp_path / "merged", "--force")
    assert tensors_of_dtype(tmp_path / "merged") == {torch.bfloat16}


def tensors_of_dtype(folder: Path) -> set:
    return {value.dtype for value in tensors_of(folder).values()}


def test_export_of_a_folder_keeps_every_bit_and_the_llama_layout_opens_in_transformers(tmp_path):
    llama = write_internlm2(tmp_path / "in")
    command("export", tmp_path / "in", tmp_path / "out")
    assert same_bits(tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out"))
    assert "--layout" in (tmp_path / "out" / "README.md").read_text()
    command("export", tmp_path / "in", tmp_path / "llama", "--layout", "llama")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama",
                                                                    output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in llama.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    ids = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        assert close(again(ids).logits, llama(ids).logits)
    theirs_of("bloom", 3).save_pretrained(tmp_path / "bloom")
    assert "a llama model cannot have" in command("export",
                                                  tmp_path / "bloom",
                                                  tmp_path / "no",
                                                  "--layout",
                                                  "llama",
                                                  code=1)


@pytest.mark.parametrize("arguments, code, words",
                         [(["inspect", "/no/such"], 1, "config.json"),
                          (["export", "/no/such", "OUT"], 1, "neither a run folder"),
                          (["inspect", "MODEL", "--gpus", "0"], 2, "--gpus"),
                          (["extend", "MODEL", "OUT"], 2, "--texts"),
                          (["extend", "MODEL", "OUT", "--special", "</s>"], 1, "already a token"),
                          (["frobnicate"], 2, "invalid choice"),
                          (["merge", "MODEL", "MODEL", "OUT"], 1, "adapter_config.json"),
                          (["export", "MODEL", "OUT", "--step", "3"], 2, "no steps")])
def test_wrong_use_ends_in_one_line_with_its_exit_code(tmp_path, arguments, code, words):
    folder = make_folder(tmp_path / "model")
    arguments = [{"MODEL": folder, "OUT": tmp_path / "out"}.get(a, a) for a in arguments]
    assert words in command(*arguments, code=code)


# -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_extend_learns_a_language_and_leaves_the_rest_as_it_was(tmp_path, kind):
    from mmed.tokenizer import load_tokenizer

    folder = make_folder(tmp_path / "model", kind)
    rng = random.Random(6)
    with open(tmp_path / "new.jsonl", "w", encoding="utf-8") as file:
        for language, words in (("de", GERMAN), ("hi", HINDI)) * 30:
            file.write(
                json.dumps({"text": text_of(words, rng), "language": language}, ensure_ascii=False) + "\n")
    with open(tmp_path / "all.jsonl", "w", encoding="utf-8") as file:
        file.write((tmp_path / "new.jsonl").read_text() +
                   json.dumps({"text": text_of(WORDS, rng), "language": "en"}) + "\n")
    out = command("extend", folder, tmp_path / "out", "--texts", tmp_path / "new.jsonl", "--pieces", 100,
                  "--special", "<|x|>", "--report", tmp_path / "all.jsonl")
    assert "100 pieces and 1 special tokens added" in out, out
    old_model, old = load_pretrained(folder)
    model, new = load_pretrained(tmp_path / "out")
    assert new.vocab_size == old.vocab_size + 101 and model.config.vocab_size % 64 == 0
    assert new.special["<|x|>"] == new.vocab_size - 1 and {
        k: v
        for k, v in new.special.items() if k != "<|x|>"
    } == old.special
    # text of the old language is cut as before, and the model says the same about it
    english = [text_of(WORDS, rng) for _ in range(20)]
    assert all(new.encode(t) == old.encode(t) for t in english)
    ids = torch.tensor([old.encode(english[0])[:30]])
    with torch.no_grad():
        assert torch.equal(model(ids)[..., :old.vocab_size], old_model(ids)[..., :old.vocab_size])
    # the new ones are cut into fewer tokens, which spell the same text
    for words in (GERMAN, HINDI):
        text = text_of(words, rng)
        assert new.decode(new.encode(text)) == text and len(new.encode(text)) < 0.7 * len(old.encode(text))
    for table in ("de", "hi", "en"):
        assert any(line.startswith(table) for line in out.splitlines())
    # each new row is the mean of the old rows that stood for its text
    checked = 0
    for index in range(old.vocab_size, new.vocab_size - 1):
        text = new.piece(index).replace("▁", " ")
        if "\\x" not in text:
            assert new.encode(text, continued=True) == [index]
            parts = old.encode(text, continued=True)
            for own, before in ((model.embed_tokens.weight, old_model.embed_tokens.weight),
                                (model.lm_head.weight, old_model.lm_head.weight)):
                assert torch.allclose(own[index], before[parts].mean(0), atol=2e-3)  # rounded to bfloat16
            checked += 1
    assert checked > 50
    # the reference library reads the file as we do
    hostile = [
        *english, *(text_of(GERMAN + HINDI + WORDS, rng, 9) for _ in range(50)), "Öl 0.5 mg\n",
        "größergrößer", "हृदयHerz 12"
    ]
    if kind == "sentencepiece":
        import sentencepiece

        reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
        assert reference.get_piece_size() == new.vocab_size and all(
            reference.encode(t) == new.encode(t) for t in hostile)
    else:
        import tokenizers

        reference = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
        assert all(reference.encode(t).ids == new.encode(t) for t in hostile)
        assert reference.encode("<|x|>").ids == [new.special["<|x|>"]]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert close(again(ids).logits, model(ids))
    assert load_tokenizer(tmp_path / "out").fingerprint == new.fingerprint


def test_joins_are_those_of_a_plain_bpe_that_counts_everything_anew():
    from collections import Counter

    from mmed.checkpoints.extend_vocabulary import join_most_frequent

    rng = random.Random(time.time())
    for _ in range(60):
        words = [
            "".join(rng.choices("abcd", [4, 3, 2, 1], k=rng.randint(1, 9))) for _ in range(rng.randint(1, 12))
        ]
        counts = [rng.randint(1, 5) for _ in words]
        plain, expected = [list(w) for w in words], []
        known: set[str] = set()
        while len(expected) < 8:
            totals: Counter = Counter()
            for word, count in zip(plain, counts):
                for left, right in itertools.pairwise(word):
                    if len(left + right) <= 5 and left + right not in known:
                        totals[left, right] += count
            best = min(totals.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
            if best[1] < 2:
                break
            expected.append(best[0])
            known.add("".join(best[0]))
            for i, word in enumerate(plain):
                merged, at = [], 0
                while at < len(word):
                    step = 2 if tuple(word[at:at + 2]) == best[0] else 1
                    merged.append("".join(word[at:at + step]))
                    at += step
                plain[i] = merged
        assert join_most_frequent([list(w) for w in words], counts, 8, set(), 5) == expected


def test_a_tokenizer_that_cannot_be_extended_exactly_is_rejected(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    unigram = tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)], 0, False)
    tokenizers.Tokenizer(unigram).save(str(folder / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("Herz " * 50)
    assert "cannot be extended" in command("extend",
                                           folder,
                                           tmp_path / "out",
                                           "--texts",
                                           tmp_path / "t.txt",
                                           code=1)


def test_added_tokens_beside_a_sentencepiece_file_keep_their_ids(tmp_path):
    folder = make_folder(tmp_path / "model")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad2>": 321, "<extra>": 323}))
    (tmp_path / "t.txt").write_text("Herz Lunge " * 50)
    command("extend", folder, tmp_path / "out", "--texts", tmp_path / "t.txt", "--pieces", "5")
    _, new = load_pretrained(tmp_path / "out")
    assert new.special["<pad2>"] == 321 and new.special["<extra>"] == 323 and new.vocab_size == 324 + 5
    assert max(new.encode("Herz")) >= 324


# --------------------------------------------------------------------------------------- every family, from t

def family_config(family: str, vocab_size: int):
    """A tiny config of a family, as it would be read from its config.json."""
    from mmed.checkpoints.families import read_config

    if family == "bloom":
        return read_config({
            "model_type": family, "vocab_size": vocab_size, "hidden_size": 32, "n_layer": 2, "n_head": 4,
            "seq_length": 512, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2
        })
    keys = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2
    }
    window = {"sliding_window": 40} if family in ("mistral", "gemma2", "gemma3_text") else {}
    return read_config(keys | window | {"model_type": family})


@pytest.mark.slow
@pytest.mark.parametrize("family", [*CLASSES, "internlm", "internlm2"])
def test_the_papers_lora_settings_train_on_two_processes_and_export(tmp_path, family):
    from mmed.checkpoints.adapters import load_adapter
    from mmed.model import Transformer

    tokenizer = make_tokenizer(tmp_path / "tokenizer", "sentencepiece")
    config = family_config(family, tokenizer.vocab_size)
    save_pretrained(Transformer(config).init_weights(1), tokenizer, tmp_path / "base")
    rng = random.Random(7)
    (tmp_path / "Train").mkdir()
    with open(tmp_path / "Train" / "English.jsonl", "w") as file:
        for _ in range(16):
            options = dict(zip("ABCD", rng.sample(WORDS, 4), strict=True))
            file.write(
                json.dumps({
                    "question": rng.choice(WORDS), "options": options, "answer_idx": "B",
                    "rationale": " ".join(rng.choices(WORDS, k=5))
                }) + "\n")
    done = warm_run([
        "finetune_lora", f"--model={tmp_path}/base", f"--data={tmp_path}/Train", f"--out={tmp_path}/run",
        "--max_steps=3", "--sequence_length=400", "--global_batch_size=4", "--micro_batch_size=1",
        "--precision=fp32", "--lora_targets=paper", "--learning_rate=1e-2", "--save_every=2"
    ],
                    ranks=2)
    layers = 2 if config.packed_qkv else 4
    assert f"{layers} layers, rank 16" in done.stderr
    command("export", tmp_path / "run", tmp_path / "out")
    exported, _ = load_pretrained(tmp_path / "out")
    ours, _ = load_pretrained(tmp_path / "base")
    ids = torch.randint(0, tokenizer.vocab_size, (2, 60))
    with torch.no_grad():
        before = ours(ids)
        assert load_adapter(ours, tmp_path / "run" / "adapter") == layers
        expected = ours.eval()(ids)
        assert close(exported(ids), expected, 2e-5) and not close(before, expected, 1e-3)
        if family in CLASSES:
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out",
                                                                       attn_implementation="eager")
            assert close(theirs(ids).logits, expected, 2e-5)
            peft = pytest.importorskip("peft")
            base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base",
                                                                     attn_implementation="eager")
            assert close(
                peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()(ids).logits,
                expected, 2e-5)
        elif family.startswith("internlm"):
            command("export", tmp_path / "run", tmp_path / "llama", "--layout", "llama")
            theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
            assert close(theirs(ids).logits, expected, 2e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "finetune_lora" in card and "| lora_rank | 16 |" in card and "no medical advice" in card and str(
        tmp_path) not in card
    # a checkpoint in between is another model, and can be exported, too
    command("export", tmp_path / "run", tmp_path / "step", "--step", "2")
    between, _ = load_pretrained(tmp_path / "step")
    with torch.no_grad():
        assert not close(between(ids), expected, 1e-4) and not close(between(ids), before, 1e-4)


def test_the_card_of_a_full_run_names_data_recipe_and_scores_and_no_path_of_the_machine(tmp_path):
    import dataclasses

    from mmed.config import RECIPES
    from mmed.data import StreamWriter
    from mmed.evaluation.results import RESULTS_VERSION

    base = make_folder(tmp_path / "base")
    _, tokenizer = load_pretrained(base)
    writer = StreamWriter(tmp_path / "wiki", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for language, source in (("en", "web"), ("en", "book"), ("ja", "web")):
        writer.add(tokenizer.encode("heart lung", bos=True, eos=True), language, source)
    tokens = writer.close()["tokens"]
    run = tmp_path / "run"
    run.mkdir()
    settings = dataclasses.replace(RECIPES["pretrain_mmedlm2"][1],
                                   model=str(base),
                                   data=f"{tmp_path}/wiki=0.5",
                                   out=str(run))
    (run / "run.json").write_text(
        json.dumps({
            "recipe": "pretrain_mmedlm2", "config": dataclasses.asdict(settings), "steps": 9, "commit": "abc",
            "world_size": 2
        }))
    (run / "done.json").write_text(json.dumps({"steps": 9, "tokens": 1234, "loss": 2.5}))
    model, tokenizer = load_pretrained(base)
    with torch.no_grad():
        model.norm.weight.mul_(1.5)
    save_pretrained(model, tokenizer, run / "model")
    score = {
        "n": 3, "chance": 0.25,
        "accuracy": {"answer": {"value": 0.5, "low": 0.3, "high": 0.7, "right": 1,
                                "n": 3}}, "parse": {}, "text": {}, "by": {}
    }
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "predictions.jsonl").write_text("")
    (tmp_path / "zero" / "results.json").write_text(
        json.dumps({
            "mmed": {
                "version": RESULTS_VERSION, "settings": {"words": "mmed"}, "facts": {}, "headline": "answer",
                "summary": {
                    "languages": {"Japanese": score}, "macro": score, "micro": score, "signatures": {},
                    "text_items": "x"
                }
            }
        }))
    command("export", run, tmp_path / "out", "--results", tmp_path / "zero", "--license", "apache-2.0")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("wiki, weight 0.5", f"{tokens:,} tokens", "en ", "ja ", "| recipe | pretrain_mmedlm2 |",
                  "| learning_rate | 2e-05 |", "| tokens | 1234 |", "Japanese", "50.0 [30-70]",
                  'license: "apache-2.0"', 'base_model: "base"', "no medical advice"):
        assert words in card, card
    assert str(tmp_path) not in card
    exported, _ = load_pretrained(tmp_path / "out")
    assert torch.equal(exported.norm.weight, model.norm.weight.bfloat16().float())  # in the base's dtype
    assert "--force" in command("export", run, tmp_path / "out", code=2)
