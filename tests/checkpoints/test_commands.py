"""`python -m mmed.checkpoints`: inspect, merge, export with its card, extend; transformers is the judge."""
import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import torch
from forked_runs import warm_run
from json_lines import write_lines
from safetensors.torch import save_file
from tiny_models import (
    WORDS,
    close,
    equivalent_llama,
    internlm2_of,
    make_folder,
    same_bits,
    tensors_of,
    text_of,
    theirs_of,
    transformers,
)
from tiny_world import finetune, make_world

from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.checkpoints.commands import main
from mmed.checkpoints.extend_vocabulary import join_most_frequent
from mmed.checkpoints.families import read_config
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.config import RECIPES
from mmed.lora import apply_lora
from mmed.model import Transformer
from mmed.tokenization.token_streams import StreamWriter
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import main_guard

GERMAN = "Herz Lunge Knochen Zelle Fieber Dosis Pflaume Regen Stein Fluss Öl Übelkeit größer".split()
HINDI = "हृदय फेफड़ा हड्डी कोशिका बुखार खुराक दवा रोगी".split()
SEED = int(os.environ.get("MMED_TEST_SEED", "0"))


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
                  "64 positions", "to decode", "chat template"):
        assert words in out, out


@pytest.mark.parametrize("arguments, code, words", [
    (["inspect", "/no/such"], 1, "config.json"),
    (["export", "/no/such", "OUT"], 1, "neither a run folder"),
    (["inspect", "MODEL", "--gpus", "0"], 2, "--gpus"),
    (["extend", "MODEL", "OUT"], 2, "--texts"),
    (["extend", "MODEL", "OUT", "--special", "</s>"], 1, "already a token"),
    (["frobnicate"], 2, "invalid choice"),
    (["merge", "MODEL", "MODEL", "OUT"], 1, "adapter_config.json"),
    (["export", "MODEL", "MODEL"], 2, "--force"), (["export", "MODEL", ".", "--force"], 2, "name the output"),
    (["export", "MODEL", "MODEL", "--force"], 2, "contains the input"),
    (["merge", "MODEL", "OUT", "ABOVE", "--force"], 2, "contains the input"),
    (["export", "MODEL", "OUT", "--step", "3"], 2, "a model folder")])
def test_wrong_use_ends_in_one_line_with_its_exit_code(tmp_path, arguments, code, words):
    folder = make_folder(tmp_path / "model")
    places = {"MODEL": folder, "OUT": tmp_path / "out", "ABOVE": tmp_path}
    assert words in command(*(places.get(argument, argument) for argument in arguments), code=code)
    assert (folder / "config.json").is_file()


def test_merge_writes_what_the_adapted_model_computes(tmp_path):
    base = make_folder(tmp_path / "base")
    model, _ = load_pretrained(base)
    apply_lora(model, rank=4, targets="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    save_adapter(model, tmp_path / "adapter")
    merge = ("merge", base, tmp_path / "adapter", tmp_path / "merged")
    assert "14 adapted layers" in command(*merge, "--dtype", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        assert merged.dtype == torch.float32 and close(merged(ids).logits, model.eval()(ids), 2e-5)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "not medical advice" in card and "`base`" in card and str(tmp_path) not in card
    for name in ("generation_config.json", "tokenizer.model"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    command(*merge, "--force")
    assert {value.dtype for value in tensors_of(tmp_path / "merged").values()} == {torch.bfloat16}


# ----------------------------------------------------------------------------------------------------- export

def test_export_keeps_every_bit_and_the_llama_layout_opens_in_transformers(tmp_path):
    llama = equivalent_llama(3, 2, False)
    config, tensors = internlm2_of(llama)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    command("export", tmp_path / "in", tmp_path / "out")
    assert same_bits(tensors, tensors_of(tmp_path / "out"))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    assert "--layout" in (tmp_path / "out" / "README.md").read_text()
    command("export", tmp_path / "in", tmp_path / "llama", "--layout", "llama")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert same_bits(again.state_dict(), llama.state_dict())
    theirs_of("bloom", 3).save_pretrained(tmp_path / "bloom")
    said = command("export", tmp_path / "bloom", tmp_path / "no", "--layout", "llama", code=1)
    assert "a llama model cannot have" in said


def test_the_card_of_a_full_run_names_data_and_recipe_and_no_path(tmp_path):
    base, run = make_folder(tmp_path / "base"), tmp_path / "run"
    model, tokenizer = load_pretrained(base)
    writer = StreamWriter(tmp_path / "wiki", tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
    for language, source in (("en", "web"), ("en", "book"), ("ja", "web")):
        writer.add(tokenizer.encode("heart lung", bos=True, eos=True), language, source)
    tokens = writer.close()["tokens"]
    settings = dataclasses.replace(RECIPES["pretrain_mmedlm2"][1], model=str(base), out=str(run),
                                   data=f"{tmp_path}/wiki=0.5")
    with torch.no_grad():
        model.norm.weight.mul_(1.5)
    save_pretrained(model, tokenizer, run / "model")
    (run / "run.json").write_text(json.dumps({
        "recipe": "pretrain_mmedlm2", "config": dataclasses.asdict(settings), "steps": 9, "commit": "abc",
        "world_size": 2}))
    (run / "done.json").write_text(json.dumps({"steps": 9, "tokens": 1234, "targets": 987, "loss": 2.5}))
    command("export", run, tmp_path / "out", "--license", "apache-2.0")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (f"wiki, weight 0.5: {tokens:,} tokens (en ", "| recipe | pretrain_mmedlm2 |",
                  "| learning_rate | 2e-05 |", "| tokens | 1234 |", "| targets | 987 |",
                  'license: "apache-2.0"', 'base_model: "base"', "not medical advice"):
        assert words in card, card
    assert str(tmp_path) not in card
    exported, _ = load_pretrained(tmp_path / "out")
    assert torch.equal(exported.norm.weight, model.norm.weight.bfloat16().float())  # in the base's dtype


@pytest.mark.slow
def test_a_lora_run_on_two_processes_is_exported_and_so_is_its_checkpoint(tmp_path):
    tokenizer = load_tokenizer(make_world(tmp_path) / "tokenizer")
    config = read_config({"model_type": "internlm2", "vocab_size": tokenizer.vocab_size, "hidden_size": 32,
                          "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1})
    save_pretrained(Transformer(config).init_weights(1), tokenizer, tmp_path / "model")
    done = warm_run(finetune(tmp_path, tmp_path / "run", "--max_steps=3", "--lora_rank=16", "--save_every=2",
                             "--lora_targets=paper", "--learning_rate=1e-2"), ranks=2)
    assert "2 layers, rank 16" in done.stderr
    command("export", tmp_path / "run", tmp_path / "out", "--layout", "llama")
    command("export", tmp_path / "run", tmp_path / "step", "--step", "2")
    ids = torch.randint(0, tokenizer.vocab_size, (2, 60))
    between, ours = (load_pretrained(tmp_path / name)[0] for name in ("step", "model"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        before = ours(ids)
        assert load_adapter(ours, tmp_path / "run" / "adapter") == 2
        expected = ours.eval()(ids)
        assert close(theirs(ids).logits, expected, 2e-5) and not close(before, expected, 1e-3)
        # a checkpoint in between is another model
        assert not close(between(ids), expected, 1e-4) and not close(between(ids), before, 1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "finetune_lora" in card and "| lora_rank | 16 |" in card and str(tmp_path) not in card


# ----------------------------------------------------------------------------------------------------- extend

@pytest.fixture(params=["sentencepiece", "byte-level"])
def extended(request, tmp_path):
    """(kind, output, old folder, new folder) of a model to which 100 German and Hindi pieces were added."""
    old, out, rng = make_folder(tmp_path / "model", request.param), tmp_path / "out", random.Random(6)
    texts = [(language, text_of(words, rng)) for language, words in (("de", GERMAN), ("hi", HINDI)) * 30]
    write_lines(tmp_path / "new.jsonl", *({"text": text, "language": language} for language, text in texts))
    said = command("extend", old, out, "--texts", tmp_path / "new.jsonl", "--pieces", 100,
                   "--special", "<|x|>")
    return request.param, said, old, out


def test_extend_shortens_the_new_language_and_leaves_the_rest_as_it_was(extended):
    kind, said, folder, out = extended
    assert "100 pieces and 1 special tokens added" in said
    assert {line[:2] for line in said.splitlines()[1:]} == {"de", "hi"}
    (old_model, old), (model, new) = load_pretrained(folder), load_pretrained(out)
    assert new.vocab_size == old.vocab_size + 101 and model.config.vocab_size % 64 == 0
    assert new.special == old.special | {"<|x|>": new.vocab_size - 1}
    rng = random.Random(8)
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
            "größergrößer", "हृदयHerz 12"]
    if kind == "sentencepiece":
        reference = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
        assert all(reference.encode(text) == new.encode(text) for text in hard)
    else:
        reference = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
        assert all(reference.encode(text).ids == new.encode(text) for text in [*hard, "<|y|>"])
        assert reference.encode("<|x|>").ids == [new.special["<|x|>"]]
    # the row of a new piece is the mean of the old rows of its text
    texts = {index: new.piece(index).replace("▁", " ") for index in range(old.vocab_size, new.vocab_size - 1)}
    whole = {index: text for index, text in texts.items() if "\\x" not in text}  # no part of a character
    assert len(whole) > 50
    for index, text in whole.items():
        assert new.encode(text, continued=True) == [index]
        parts = old.encode(text, continued=True)
        for name in ("embed_tokens.weight", "lm_head.weight"):
            own, before = model.get_parameter(name)[index], old_model.get_parameter(name)[parts]
            assert torch.allclose(own, before.mean(0), atol=2e-3)  # rounded to bfloat16


def test_joins_are_those_of_a_plain_bpe_that_counts_everything_anew():
    rng = random.Random(SEED)
    for _ in range(60):
        words = ["".join(rng.choices("abcd", [4, 3, 2, 1], k=rng.randint(1, 9)))
                 for _ in range(rng.randint(1, 12))]
        counts = [rng.randint(1, 5) for _ in words]
        plain, expected, known = [list(word) for word in words], [], set()
        while len(expected) < 8:
            totals: Counter = Counter()
            for word, count in zip(plain, counts):
                for pair in itertools.pairwise(word):
                    if len("".join(pair)) <= 5 and "".join(pair) not in known:
                        totals[pair] += count
            best = min(totals, key=lambda pair: (-totals[pair], pair), default=None)
            if totals[best] < 2:
                break
            expected.append(best)
            known.add("".join(best))
            for number, word in enumerate(plain):
                merged = []
                while word:
                    step = 2 if tuple(word[:2]) == best else 1
                    merged.append("".join(word[:step]))
                    word = word[step:]
                plain[number] = merged
        assert join_most_frequent([list(word) for word in words], counts, 8, set(), 5) == expected


def test_a_tokenizer_that_cannot_be_extended_exactly_is_rejected(tmp_path):
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    unigram = tokenizers.models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)], 0, False)
    tokenizers.Tokenizer(unigram).save(str(folder / "tokenizer.json"))
    said = command("extend", folder, tmp_path / "out", "--special", "<x>", code=1)
    assert "cannot be extended" in said


def test_tokens_added_beside_a_sentencepiece_file_keep_their_ids(tmp_path):
    folder: Path = make_folder(tmp_path / "model")
    (folder / "added_tokens.json").write_text(json.dumps({"<pad2>": 321, "<extra>": 323}))
    (tmp_path / "t.txt").write_text("Herz Lunge " * 50)
    command("extend", folder, tmp_path / "out", "--texts", tmp_path / "t.txt", "--pieces", "5")
    new = load_tokenizer(tmp_path / "out")
    assert new.special["<pad2>"] == 321 and new.special["<extra>"] == 323 and new.vocab_size == 324 + 5
    assert max(new.encode("Herz")) >= 324
