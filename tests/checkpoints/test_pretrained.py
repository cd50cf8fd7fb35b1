"""Model folders in and out: bit-equal round trips with transformers as the judge, bad folders."""
import os
import pickle
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CLASSES,
    close,
    make_folder,
    same_bits,
    tensors_of,
    theirs_of,
    tiny_medgemma,
    transformers,
)

from mmed.checkpoints import pretrained
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained, stored_tensors
from mmed.generate import generate
from mmed.inference.decoder import Segment, decoder_for
from mmed.model import ModelConfig, Transformer
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small Llama as transformers saves it."""
    theirs_of("llama", 8).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def close_with_cache(model: Transformer, ids: torch.Tensor, expected: torch.Tensor) -> bool:
    """The decoder's logits: of row b the first 5 + b tokens in one pass, then ten more, all rows together."""
    decoder, rows, starts = decoder_for(model), range(len(ids)), [5 + b for b in range(len(ids))]
    cache = decoder.make_cache(*ids.shape)
    first = decoder.prefill(cache, [Segment(b, 0, ids[b, :n].tolist(), logits=n)
                                    for b, n in enumerate(starts)])
    equal = [close(logits, expected[b, :starts[b]]) for b, logits in enumerate(first)]
    for step in range(10):
        at = [n + step for n in starts]
        equal.append(close(decoder.decode_step(cache, ids[rows, at].tolist(), at), expected[rows, at]))
    return all(equal)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_every_family_computes_what_transformers_does_and_is_saved_as_it_was(tmp_path, monkeypatch, family,
                                                                             seed):
    theirs, sharded = theirs_of(family, seed), seed % 2 == 1
    theirs.generation_config.eos_token_id = [7, 9]
    theirs.save_pretrained(tmp_path / "in", **({"max_shard_size": "20KB"} if sharded else {}))
    ours, tokenizer = load_pretrained(tmp_path / "in")
    assert tokenizer is None
    monkeypatch.setattr(pretrained, "SHARD_BYTES", 20_000 if sharded else 10 ** 9)
    save_pretrained(ours, None, tmp_path / "out")
    assert same_bits(tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == sharded
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [7, 9]
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, ours.config.vocab_size, (8, 23))
    expected = theirs(ids).logits
    assert close(ours(ids), expected) and close(again(ids).logits, expected)
    with torch.inference_mode():
        assert close_with_cache(ours, ids, expected)
    new = again.generate(ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=12,
                         do_sample=False, eos_token_id=None, pad_token_id=0)[0, 23:].tolist()
    assert generate(ours, [ids[0].tolist()], 12)[0] == new  # by the engine, with a cache


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_read_and_written_in_the_requested_dtype(tmp_path, dtype):
    theirs_of("llama", 4).to(dtype).save_pretrained(tmp_path)
    wide, _ = load_pretrained(tmp_path)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    save_pretrained(load_pretrained(tmp_path, dtype=dtype)[0], None, tmp_path / "out")
    save_pretrained(wide, None, tmp_path / "narrowed", dtype=dtype)
    for out in ("out", "narrowed"):
        assert same_bits(tensors_of(tmp_path), tensors_of(tmp_path / out))
        config = read_json(tmp_path / out / "config.json")
        assert config["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("family, names", [
    ("gemma", ["lm_head.weight"]), ("bloom", ["word_embeddings.weight"]),
    ("bloom", ["word_embeddings.weight", "lm_head.weight"])])
@torch.no_grad()
def test_a_tied_tensor_may_have_the_name_of_the_head_and_bloom_no_prefix(tmp_path, family, names):
    theirs = theirs_of(family, 1)
    theirs.config.tie_word_embeddings = True
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): value for name, value in tensors_of(tmp_path).items()
               if "embed_tokens" not in name and name != "lm_head.weight"}
    embedding = theirs.get_input_embeddings().weight
    save_file(tensors | {name: embedding.clone() for name in names}, tmp_path / "model.safetensors")
    ids = torch.randint(0, theirs.config.vocab_size, (1, 9))
    assert close(load_pretrained(tmp_path)[0](ids), theirs(ids).logits)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@torch.no_grad()
def test_gemma_3_with_images_opens_as_its_language_model_and_is_exported_as_that(tmp_path, capsys, prefix):
    theirs, path = tiny_medgemma(), tmp_path / "model.safetensors"
    theirs.save_pretrained(tmp_path)
    stored = load_file(path)
    save_file({name.replace("language_model.model.", prefix): value for name, value in stored.items()}, path)
    capsys.readouterr()
    ours, _ = load_pretrained(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "vision_tower and multi_modal_projector" in said
    ids = torch.randint(0, 90, (2, 19))
    expected = theirs(input_ids=ids).logits
    assert close(ours(ids), expected)
    save_pretrained(ours, None, tmp_path / "text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(again).__name__ == "Gemma3ForCausalLM" and close(again(ids).logits, expected)
    assert torch.equal(load_pretrained(tmp_path / "text")[0](ids), ours(ids))
    assert "vision_tower" not in capsys.readouterr().err


@pytest.mark.parametrize("family, name, value, words", [
    ("medgemma", "audio_tower.weight", torch.zeros(2), r"1 unexpected.*audio_tower\.weight"),
    ("medgemma", "language_model.model.layers.0.x", torch.zeros(2), r"1 unexpected.*model\.layers\.0\.x"),
    ("apertus", "model.layers.1.mlp.act_fn.beta", torch.tensor(0.6), r"1\.mlp\.act_fn\.beta is not 0\.5"),
    ("gemma", "lm_head.weight", None, r"lm_head\.weight differs from model\.embed_tokens\.weight")])
def test_a_tensor_that_the_model_lacks_is_rejected_by_name(tmp_path, family, name, value, words):
    path = tmp_path / "model.safetensors"
    (tiny_medgemma() if family == "medgemma" else theirs_of(family, 1)).save_pretrained(tmp_path)
    tensors = load_file(path)
    if family == "gemma":
        config = tmp_path / "config.json"
        write_json(config, read_json(config) | {"tie_word_embeddings": True})
        value = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors | {name: value}, path)
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("new_format", [False, True])
def test_legacy_bin_files_load_as_tensors_only(folder, sharded, new_format):
    state = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{number % 2}.bin" if sharded else "pytorch_model.bin"
             for number, name in enumerate(state)}
    for file in set(files.values()):
        part = {name: value for name, value in state.items() if files[name] == file}
        torch.save(part, folder / file, _use_new_zipfile_serialization=new_format)
    if sharded:
        write_json(folder / "pytorch_model.bin.index.json", {"weight_map": files})
    save_pretrained(load_pretrained(folder)[0], None, folder.parent / "out")
    assert same_bits(state, tensors_of(folder.parent / "out"))


class Runs:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("how", ["alone", "in a state dict", "plain pickle"])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_that_would_run_code_is_rejected_and_does_not_run(folder, how, file):
    bomb, canary, state = Runs(folder / "canary"), folder / "canary", tensors_of(folder)
    (folder / "model.safetensors").unlink()
    if how == "plain pickle":
        (folder / file).write_bytes(pickle.dumps({"x": bomb}))
    else:
        torch.save(bomb if how == "alone" else state | {"model.bomb": bomb}, folder / file)
    with pytest.raises(UserError, match=re.escape(file)) as error:
        load_pretrained(folder)
    assert not canary.exists() and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ bad folders

@pytest.mark.parametrize("content, words", [
    (b"x" * 100, "damaged"), (None, "damaged"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5135149760\n", "Git LFS pointer")])
def test_a_damaged_weight_file_is_named(folder, content, words):
    path = folder / "model.safetensors"
    path.write_bytes(content or path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"model.safetensors: .*{words}"):
        load_pretrained(folder)


@pytest.mark.parametrize("files, words", [
    ({"a": "../secret.safetensors"}, "does not name files in this folder"), ({"a": 3}, "damaged"),
    ({"a": "three.safetensors"}, "no such file"), ({"a": "two.safetensors"}, "lacks a"),
    ({}, "does not name files"), ([], "damaged")])
def test_an_index_that_does_not_match_its_files_is_rejected(tmp_path, files, words):
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": files})
    with pytest.raises(UserError, match=words):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_two_sets_of_weights_are_rejected(folder, name):
    state = tensors_of(folder)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (torch.save if name.endswith(".bin") else save_file)(state, folder / name)
    write_json(folder / f"{name}.index.json", {"weight_map": dict.fromkeys(state, "part.safetensors")})
    with pytest.raises(UserError, match=f"two sets of weights, {name}"):
        load_pretrained(folder)


def test_tensors_that_do_not_fit_are_listed_and_no_memory_is_taken(folder, monkeypatch):
    tensors = tensors_of(folder)
    first, second, third = sorted(n for n in tensors if "q_proj.weight" in n or "norm.weight" in n)[:3]
    tensors["model.more.weight"] = tensors.pop(first)
    tensors[second] = tensors[second][:1].clone()
    tensors[third] = tensors[third].to(torch.int32)
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr(torch.Tensor, "to", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(UserError) as error:
        load_pretrained(folder)
    for words in (f"1 missing ({first})", "1 unexpected (model.more.weight)", f"1 of another shape ({second}",
                  f"1 not floating-point ({third}"):
        assert words in str(error.value)


@pytest.mark.parametrize("file, content, words", [
    *(("config.json", {key: None}, f"/config.json: .*{key}")
      for key in ("vocab_size", "num_hidden_layers", "model_type", "intermediate_size")),
    ("config.json", {"vocab_size": 2**24, "hidden_size": 2**18}, "of another shape"),
    ("config.json", [], "expected a JSON object"),
    ("adapter_config.json", {}, "contains an adapter")])  # transformers would apply it
def test_a_config_that_does_not_fit_is_named(folder, file, content, words):
    write_json(folder / file, read_json(folder / file) | content if content else content)
    with pytest.raises(UserError, match=f"{folder}.*{words}"):
        load_pretrained(folder)


@pytest.mark.parametrize("token, template, fits", [
    ("<image_soft_token>", "", True), ("<image_soft_token>", "<image_soft_token>{{ message }}", False),
    ("<|im_end|>", "", False), ("fever", "", False)])
def test_a_token_needs_a_row_if_anything_can_make_it(tmp_path, token, template, fits):
    """Gemma 3's text models have none for <image_soft_token>."""
    folder = make_folder(tmp_path / "model")  # of 325 rows
    write_json(folder / "added_tokens.json", {token: 325})
    (folder / "chat_template.jinja").write_text(template)
    with nullcontext() if fits else pytest.raises(UserError, match="326 ids, the embedding only"):
        assert load_pretrained(folder)[1].vocab_size == 326


def peak_memory() -> int:
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own count of memory")
def test_the_peak_of_memory_is_the_model_and_one_tensor(folder, tmp_path):
    config = ModelConfig(vocab_size=20_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=16,
                         num_attention_heads=8, num_key_value_heads=4, head_dim=64)
    with torch.device("meta"):
        model = Transformer(config)
    save_pretrained(model.to_empty(device="cpu"), None, tmp_path / "model", dtype=torch.bfloat16)
    del model
    load_pretrained(folder)  # what the first load of any model imports is not counted
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_memory()
    size = sum(parameter.nbytes for parameter in load_pretrained(tmp_path / "model")[0].parameters())
    peak = peak_memory() - before
    # mapped: the system may drop its pages at any time
    file = (tmp_path / "model" / "model.safetensors").stat().st_size
    largest = max(tensor.nbytes for tensor in tensors_of(tmp_path / "model").values())
    assert size // 2 < peak < size + file + largest + (16 << 20), f"peak {peak:,} for a model of {size:,}"
