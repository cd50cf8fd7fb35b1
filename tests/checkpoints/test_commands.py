"""`python -m mmed.checkpoints`: inspect, merge, export with its card, extend; transformers is the judge."""
import contextlib
import io
import itertools
import os
import random
from collections import Counter

import pytest
import sentencepiece
import tokenizers
import torch
import torch.distributed.checkpoint as dcp
from forked_runs import warm_run
from json_lines import write_lines
from safetensors.torch import save_file
from tiny_models import (
    WORDS,
    close,
    equivalent,
    make_folder,
    same_bits,
    tensors_of,
    text_of,
    theirs_of,
    transformers,
)
from tiny_world import finetune, make_world

from mmed.checkpoints.__main__ import main
from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.checkpoints.extend_vocabulary import join_most_frequent
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.checkpoints.training_state import Writer
from mmed.lora import apply_lora
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import main_guard
from mmed.utils.files import read_json, write_json

GERMAN = "Herz Lunge Knochen Zelle Fieber Dosis Pflaume Regen Stein Fluss Öl Übelkeit größer".split()
HINDI = "हृदय फेफड़ा हड्डी कोशिका बुखार खुराक दवा रोगी".split()


def command(*arguments, code=0) -> str:
    """What `python -m mmed.checkpoints` prints; run in this process, which is quicker."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as end:
        main_guard(lambda: main([str(argument) for argument in arguments]))
    assert end.value.code == code, text.getvalue()
    assert not code or text.getvalue().startswith(("error: ", "usage: "))
    return text.getvalue()


def test_inspect_says_what_a_folder_is(tmp_path):
    out = command("inspect", make_folder(tmp_path / "model"))
    for words in ("llama (LlamaForCausalLM)", "bfloat16", "sentencepiece, 320 ids (5 rows of padding)",
                  "64 positions"):
        assert words in out, out


@pytest.mark.parametrize("arguments, code, words", [
    (["inspect", "/no/such"], 1, "no such folder"), (["export", "/no/such", "OUT"], 1, "/no/such"),
    (["inspect", "MODEL", "--gpus", "0"], 2, "--gpus"), (["extend", "MODEL", "OUT"], 2, "--texts"),
    (["frobnicate"], 2, "invalid choice"), (["merge", "MODEL", "MODEL", "OUT"], 1, "adapter_config.json"),
    (["export", "MODEL", "MODEL"], 2, "already exists"), (["export", "MODEL", "."], 2, "name the output")])
def test_wrong_use_ends_in_one_line_with_its_exit_code(tmp_path, monkeypatch, arguments, code, words):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    places = {"MODEL": make_folder(tmp_path / "model"), "OUT": tmp_path / "out"}
    assert words in command(*(places.get(argument, argument) for argument in arguments), code=code)


@torch.no_grad()
def test_merge_writes_what_the_adapted_model_computes(tmp_path):
    base = make_folder(tmp_path / "base")
    model, _ = load_pretrained(base)
    apply_lora(model, rank=4, targets="all-linear")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter")
    merge = ("merge", base, tmp_path / "adapter")
    assert "14 adapted layers" in command(*merge, tmp_path / "merged", "--dtype", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.randint(0, 300, (1, 9))
    assert merged.dtype == torch.float32 and close(merged(ids).logits, model.eval()(ids), 2e-5)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "not medical advice" in card and "`base`" in card and str(tmp_path) not in card
    for name in ("generation_config.json", "tokenizer.model"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    command(*merge, tmp_path / "again")
    assert {value.dtype for value in tensors_of(tmp_path / "again").values()} == {torch.bfloat16}


@pytest.mark.slow
@torch.no_grad()
def test_the_adapter_of_a_run_on_two_processes_is_whole(tmp_path):
    folder, run = make_world(tmp_path) / "model", tmp_path / "run"
    warm_run(finetune(tmp_path, run, "--max_steps=3", "--learning_rate=1e-2"), ranks=2)
    command("merge", folder, run / "adapter", tmp_path / "out")
    ours, ids = load_pretrained(folder)[0], torch.arange(40)[None]
    before = ours(ids)
    load_adapter(ours, run / "adapter")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert close(merged(ids).logits, ours.eval()(ids), 2e-5) and not close(before, ours(ids), 1e-3)


def test_export_keeps_every_bit_and_the_llama_layout_opens_in_transformers(tmp_path):
    llama, config, tensors = equivalent("internlm2", 3, 2)
    write_json(tmp_path / "in" / "config.json", config)
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    command("export", tmp_path / "in", tmp_path / "out")
    assert same_bits(tensors, tensors_of(tmp_path / "out"))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    command("export", tmp_path / "in", tmp_path / "llama", "--layout", "llama")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert same_bits(again.state_dict(), llama.state_dict())
    written = read_json(tmp_path / "llama" / "config.json")
    assert all(written[f"{name}_token_id"] == config[f"{name}_token_id"] for name in ("bos", "eos", "pad"))
    theirs_of("bloom", 3).save_pretrained(tmp_path / "bloom")
    said = command("export", tmp_path / "bloom", tmp_path / "no", "--layout", "llama", code=1)
    assert "a llama model cannot have" in said


@pytest.mark.parametrize("rank", [0, 4])
@torch.no_grad()
def test_a_run_is_exported_as_its_result_or_as_the_model_of_a_step(tmp_path, rank):
    run, (model, tokenizer) = tmp_path / "run", load_pretrained(make_folder(tmp_path / "base"))
    if rank:
        apply_lora(model, rank=rank, alpha=8, targets="q_proj")
    trained = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for step in (2, 3):
        for value in trained.values():
            value.add_(torch.randn_like(value) * 0.1)
        dcp.save(trained, storage_writer=Writer(run, trained, step, {}, 2))
        if step == 2:
            ids = torch.arange(40)[None]
            expected = model.eval()(ids).clone()
    settings = {"model": str(tmp_path / "base"), "lora_rank": rank, "lora_alpha": 8, "lora_dropout": 0.1,
                "lora_targets": "q_proj", "learning_rate": 2e-5,
                "data": f"{tmp_path}/wiki=0.5,{tmp_path}/books"}
    write_json(run / "run.json",
               {"config": settings, "recipe": "pretrain_mmedlm2", "steps": 3, "commit": "abc"})
    command("export", run, tmp_path / "out", "--step", 2, "--dtype", "float32")
    exported, _ = load_pretrained(tmp_path / "out")
    assert close(exported(ids), expected) and not close(model(ids), expected, 1e-3)
    if rank:
        save_adapter(model, run / "adapter", str(tmp_path / "base"))
    else:
        save_pretrained(model, tokenizer, run / "model")
    command("export", run, tmp_path / "result", "--dtype", "float32")
    result, _ = load_pretrained(tmp_path / "result")
    assert close(result(ids), model(ids)) and not close(result(ids), expected, 1e-3)
    card = (tmp_path / "result" / "README.md").read_text()
    for words in ('base_model: "base"', "`base`", "| recipe | pretrain_mmedlm2 |",
                  "| data | wiki=0.5, books |", "| learning_rate | 2e-05 |", "| steps | 3 |",
                  "| code | abc |", "not medical advice"):
        assert words in card, card
    assert str(tmp_path) not in card
    assert "--step works only" in command("export", tmp_path / "base", tmp_path / "no", "--step", 7, code=2)
    assert "--resume=step-3" in command("export", run, tmp_path / "no", "--step", 7, code=1)


# ----------------------------------------------------------------------------------------------------- extend

@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_extend_shortens_the_new_language_and_leaves_the_rest_as_it_was(tmp_path, kind):
    folder, out, rng = make_folder(tmp_path / "model", kind), tmp_path / "out", random.Random(6)
    write_lines(tmp_path / "new.jsonl", *({"text": text_of(words, rng)} for words in (GERMAN, HINDI) * 30))
    said = command("extend", folder, out, "--texts", tmp_path / "new.jsonl", "--pieces", 100)
    assert "100 pieces added" in said
    (old_model, old), (model, new) = load_pretrained(folder), load_pretrained(out)
    assert new.vocab_size == old.vocab_size + 100 and model.config.vocab_size % 64 == 0
    assert new.special == old.special
    english = [text_of(WORDS, rng) for _ in range(20)]
    assert all(new.encode(text) == old.encode(text) for text in english)
    ids = torch.tensor([old.encode(english[0])[:30]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids)[..., :old.vocab_size], old_model(ids)[..., :old.vocab_size])
        assert close(theirs(ids).logits, model(ids))
    for words in (GERMAN, HINDI):
        text = text_of(words, rng, 400)
        assert new.decode(new.encode(text)) == text and len(new.encode(text)) < 0.7 * len(old.encode(text))
    # the reference library reads the file as we do
    hard = [*english, *(text_of(GERMAN + HINDI + WORDS, rng, 9) for _ in range(50)), "Öl 0.5 mg\n",
            "größergrößer", "हृदयHerz 12", "<|y|>"]
    if kind == "sentencepiece":
        reference = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
        assert all(reference.encode(text) == new.encode(text) for text in hard)
    else:
        reference = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
        assert all(reference.encode(text).ids == new.encode(text) for text in hard)
    # the row of a new piece is the mean of the old rows of its text
    texts = {index: new.piece(index).replace("▁", " ") for index in range(old.vocab_size, new.vocab_size)}
    whole = {index: text for index, text in texts.items() if "\\x" not in text}  # no part of a character
    assert len(whole) > 50
    for index, text in whole.items():
        assert new.encode(text, continued=True) == [index]
        parts = old.encode(text, continued=True)
        for name in ("embed_tokens.weight", "lm_head.weight"):
            own, before = model.get_parameter(name)[index], old_model.get_parameter(name)[parts]
            assert torch.allclose(own, before.mean(0), atol=2e-3)  # rounded to bfloat16


def test_each_join_is_the_most_frequent_pair_of_a_count_from_scratch():
    rng = random.Random(int(os.environ.get("MMED_TEST_SEED", "0")))
    for _ in range(60):
        words = {"".join(rng.sample("abcdefg", rng.randint(1, 7))): rng.randint(1, 5) for _ in range(12)}
        merges = join_most_frequent({word: list(word) for word in words}, Counter(words), 8, set())
        plain = {word: "".join(f" {letter} " for letter in word) for word in words}
        for left, right in [*merges, ("", "")]:
            totals: Counter = Counter()
            for word, text in plain.items():
                totals.update(dict.fromkeys(itertools.pairwise(text.split()), words[word]))
            most = max(totals.values(), default=0)
            if left:
                assert totals[left, right] == most >= 2
            plain = {word: text.replace(f" {left}  {right} ", f" {left}{right} ")
                     for word, text in plain.items()}
        assert len(merges) == 8 or most < 2


def test_a_tokenizer_that_cannot_be_extended_exactly_is_rejected(tmp_path):
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    unigram = tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)], 0, False)
    tokenizers.Tokenizer(unigram).save(str(folder / "tokenizer.json"))
    assert "cannot be extended" in command("extend", folder, tmp_path / "out", "--texts", "x.txt", code=1)


def test_tokens_added_beside_a_sentencepiece_file_keep_their_ids(tmp_path):
    folder = make_folder(tmp_path / "model")
    write_json(folder / "added_tokens.json", {"<pad2>": 321, "<extra>": 323})
    (tmp_path / "t.txt").write_text("Herz Lunge " * 50)
    command("extend", folder, tmp_path / "out", "--texts", tmp_path / "t.txt", "--pieces", "5")
    new = load_tokenizer(tmp_path / "out")
    assert new.special["<pad2>"] == 321 and new.special["<extra>"] == 323 and new.vocab_size == 324 + 5
    assert max(new.encode("Herz")) >= 324
