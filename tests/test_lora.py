"""LoRA against PEFT on the same random model: outputs, gradients, merged weights, files, every family."""
import copy
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CLASSES,
    close,
    equivalent,
    make_tokenizer,
    ours_of,
    theirs_of,
    tiny_medgemma,
    transformers,
)

from mmed import lora
from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.model import ModelConfig, Transformer, published_name
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

peft = pytest.importorskip("peft")
SHAPE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
IDS = torch.arange(22).view(2, 11) * 4
CAUSAL = {"r": 3, "lora_alpha": 7, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"],
          "task_type": "CAUSAL_LM"}


def our_model() -> Transformer:
    return Transformer(ModelConfig(**SHAPE)).init_weights(1).eval()


def pair(folder: Path, tied: bool = False, rows: int = 0):
    """A random Llama in transformers, with `rows` rows if given, and ours as it is without them."""
    torch.manual_seed(4)
    config = transformers.LlamaConfig(**SHAPE, initializer_range=0.1, tie_word_embeddings=tied)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    if rows:
        theirs.resize_token_embeddings(rows)
    return theirs.eval(), load_pretrained(folder)[0]


@torch.no_grad()
def change_what_trains(adapted, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


# -------------------------------------------------------------------------------------------------- the layer

def test_training_starts_from_the_unchanged_model_and_trains_only_the_adapter():
    ours = our_model()
    before = ours(IDS).detach()
    lora.apply_lora(ours, targets="all-linear")
    assert torch.equal(ours.eval()(IDS), before)
    trained = {name.rpartition(".")[2] for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"}


@pytest.mark.parametrize("family, spellings", [
    ("llama", ["gate_proj,up_proj", "mlp.gate_proj,mlp.up_proj"]),
    ("internlm2", ["w1,w3", "gate_proj,up_proj", "feed_forward.w1,feed_forward.w3"]),
    ("internlm2", ["paper", "wqkv", "qkv_proj", "attention.wqkv"]),
    ("bloom", ["paper", "query_key_value", "self_attention.query_key_value", "qkv_proj"])])
def test_every_spelling_of_a_target_selects_the_same_layers(family, spellings):
    """Our names and those of the weight files, with and without their module."""
    config = ModelConfig(**SHAPE, family=family, packed_qkv=family != "llama", gated_mlp=family != "bloom")
    found = [lora.target_names(config, targets) for targets in spellings]
    assert all(names == found[0] for names in found) and len(found[0]) in (2, 4)


@pytest.mark.parametrize("targets", ["q_porj", "", "query_key_value"])
def test_a_target_that_matches_nothing_is_an_error_that_names_the_layers_there_are(targets):
    with pytest.raises(UserError, match=f"target '{targets}' matches no layer; this model has q_proj"):
        lora.apply_lora(our_model(), targets=targets)


# ------------------------------------------------------------------------------------ PEFT's files, both ways

# name -> (settings, rows of a resized vocabulary, adapted layers)
PLAIN = {
    "two matrices": ({}, 0, 4), "all": ({"target_modules": "all-linear"}, 0, 14),
    "rslora": ({"target_modules": ["k_proj", "down_proj"], "use_rslora": True}, 0, 4),
    "pattern": ({"target_modules": r".*\.(q|v)_proj"}, 0, 4),
    "one layer": ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 0, 1),
    "patterns": ({"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 4},
                  "alpha_pattern": {r".*\.0\..*q_proj": 9}, "use_rslora": True}, 0, 4)}
WHOLE = {
    "whole embedding": ({"modules_to_save": ["embed_tokens"]}, 0, 4),
    "whole head": ({"modules_to_save": ["lm_head"]}, 0, 4),
    "both": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 0, 4),
    "embedding and tied head": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, 0, 4),
    "norms and an MLP": ({"modules_to_save": ["norm", "1.mlp"]}, 0, 4),
    "rows": ({"trainable_token_indices": [3, 50, 96]}, 0, 4),
    "rows of each": ({"trainable_token_indices": {"embed_tokens": [3, 50], "lm_head": [50]}}, 0, 4),
    "resized": ({}, 104, 4), "resized, new rows trained": ({"trainable_token_indices": [97, 99]}, 104, 4),
    "dora": ({"use_dora": True}, 0, 4),
    "dora with patterns": ({"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2},
                            "alpha_pattern": {"q_proj": 3}}, 0, 4),
    "resized and saved": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 104, 4),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, 0, 3),
    "head by pattern": ({"target_modules": r".*(q_proj|lm_head)", "use_dora": True}, 0, 3)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [*PLAIN, *WHOLE])
def test_adapters_of_peft_give_its_logits_and_merge_to_them(tmp_path, kind, tied):
    settings, rows, layers = (PLAIN | WHOLE)[kind]
    if (kind == "embedding and tied head" and not tied) or (kind.startswith("head") and tied):
        pytest.skip("a setting of tied models, or of others")
    theirs, ours = pair(tmp_path / "base", tied, rows)
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(**CAUSAL | settings)).eval()
    change_what_trains(wrapped, 6)
    wrapped.save_pretrained(tmp_path / "theirs")
    assert load_adapter(ours, tmp_path / "theirs") == layers
    out, expected = ours.eval()(IDS), wrapped(IDS).logits
    assert close(out, expected)
    if kind in PLAIN:
        save_adapter(ours, tmp_path / "ours")
        again, _ = pair(tmp_path / "base", tied)
        assert close(peft.PeftModel.from_pretrained(again, tmp_path / "ours").eval()(IDS).logits, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        grads = {name.replace("base_model.model.model.", "").replace(".default.weight", ""): parameter.grad
                 for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        trained = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
        assert trained.keys() == grads.keys()
        assert all(close(grad, grads[name], 1e-4) for name, grad in trained.items())
    lora.merge_lora(ours)
    save_pretrained(ours, None, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert expected.shape[-1] == (rows or 97) and close(merged(IDS).logits, expected)
    if kind in PLAIN:
        theirs = wrapped.merge_and_unload()
        assert all(torch.allclose(theirs.get_parameter(name), value, atol=1e-6)
                   for name, value in merged.named_parameters())


def published(model: Transformer) -> torch.nn.Module:
    """Copies of the linear layers under the names of the weight files: all that PEFT needs to adapt them."""
    root = torch.nn.Module()
    for name in lora.target_names(model.config, "all-linear"):
        *parents, leaf = published_name(model.config, name).split(".")
        module = root
        for parent in parents:
            module.add_module(parent, getattr(module, parent, torch.nn.Module()))
            module = getattr(module, parent)
        module.add_module(leaf, copy.deepcopy(model.get_submodule(name)))
    return root


def family_model(family: str) -> Transformer:
    if family in CLASSES:
        theirs = theirs_of(family, 21)
        return ours_of(theirs.config.to_dict(), theirs.state_dict())
    return ours_of(*equivalent(family, 21)[1:])


def same_weights(ours: Transformer, theirs: torch.nn.Module) -> bool:
    mine = published(ours).state_dict()
    return all(close(value, mine[name]) for name, value in theirs.merge_and_unload().state_dict().items())


@pytest.mark.parametrize("family", [*CLASSES, "internlm", "internlm2"])
@pytest.mark.parametrize("kind", ["paper", "all-linear"])
def test_adapters_of_every_family_go_both_ways_and_merge_to_the_same_weights(tmp_path, family, kind):
    ours, second = family_model(family), family_model(family)
    targets = [published_name(ours.config, name) for name in lora.target_names(ours.config, kind)]
    if kind == "paper":
        targets = sorted({name.rpartition(".")[2] for name in targets})
    wrapped = peft.get_peft_model(published(ours), peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    change_what_trains(wrapped, 22)
    wrapped.save_pretrained(tmp_path / "theirs")
    count = load_adapter(ours, tmp_path / "theirs")
    assert count == len([name for name, _ in wrapped.named_parameters() if "lora_A" in name])
    assert lora.merge_lora(ours) == count and same_weights(ours, wrapped)
    # and back: what we save, PEFT opens
    theirs = published(second)
    assert lora.apply_lora(second, rank=3, alpha=5, targets=kind) == count
    change_what_trains(second, 23)
    save_adapter(second, tmp_path / "ours")
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "ours"))
    config.task_type = None
    opened = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours"), config=config)
    assert lora.merge_lora(second) == count and same_weights(second, opened)


@pytest.mark.parametrize("first", ["model.language_model.layers.0.self_attn.q_proj",
                                   r".*language_model.*\.layers\.0\..*q_proj"])
def test_an_adapter_of_medgemma_opens_with_its_images_and_without(tmp_path, first):
    theirs = tiny_medgemma()
    theirs.save_pretrained(tmp_path / "base")
    save_pretrained(load_pretrained(tmp_path / "base")[0], None, tmp_path / "text")
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.(q|v)_proj", alpha_pattern={first: 30})).eval()
    change_what_trains(wrapped, 12)
    wrapped.save_pretrained(tmp_path / "theirs")
    expected = wrapped(input_ids=IDS).logits
    for base, adapter in itertools.product(("base", "text"), ("theirs", "ours")):
        ours, _ = load_pretrained(tmp_path / base)
        assert load_adapter(ours, tmp_path / adapter) == 6 and close(ours(IDS), expected)
        if (base, adapter) == ("base", "theirs"):
            save_adapter(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(tiny_medgemma(), tmp_path / "ours").eval()
    assert close(again(input_ids=IDS).logits, expected)
    images = peft.get_peft_model(tiny_medgemma(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    images.save_pretrained(tmp_path / "images")
    with pytest.raises(UserError, match=r"unexpected.*vision_tower"):
        load_adapter(ours, tmp_path / "images")


def test_initialisations_that_change_the_base_open_once_peft_has_converted_them(tmp_path):
    theirs, ours = pair(tmp_path / "base")
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(**CAUSAL, init_lora_weights="pissa")).eval()
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    change_what_trains(wrapped, 8)
    wrapped.save_pretrained(tmp_path / "raw")
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion"):
        load_adapter(ours, tmp_path / "raw")
    expected = wrapped(IDS).logits.detach()
    wrapped.save_pretrained(tmp_path / "plain",
                            path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert load_adapter(ours, tmp_path / "plain") == 4 and close(ours.eval()(IDS), expected)


# ----------------------------------------------------------------------------------------------- bad adapters

@pytest.fixture
def saved(tmp_path):
    """The folder of an adapter of `our_model`."""
    model = our_model()
    lora.apply_lora(model, rank=4)
    save_adapter(model, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, value, words", [
    ("stray", torch.zeros(1), "1 unexpected"), ("layers.0.self_attn.q_proj.lora_A", None, "1 missing"),
    ("layers.0.self_attn.q_proj.lora_A", torch.zeros(2, 2), "shape")])
def test_an_adapter_with_a_missing_or_stray_or_misshapen_tensor_is_rejected(saved, name, value, words):
    path = saved / "adapter_model.safetensors"
    changed = load_file(path) | {f"base_model.model.model.{name}.weight": value}
    save_file({name: value for name, value in changed.items() if value is not None}, path)
    with pytest.raises(UserError, match=words):
        load_adapter(our_model(), saved)


@pytest.mark.parametrize("change, word", [
    ({"r": 10**9}, "shape"), ({"r": 0}, "shape"), ({"r": "4"}, "r='4'"), ({"lora_alpha": None}, "lora_alpha"),
    ({"target_modules": ["q_proj", "v_proj", "gate"]}, "gate"),
    ({"target_modules": ["q_proj", "o_proj"]}, "missing"), ({"peft_type": "IA3"}, "IA3"),
    ({"rank_pattern": {"q_proj": 2}}, "another shape"), ({"alpha_pattern": {"(": 2}}, "alpha_pattern"),
    ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
    ({"use_dora": True}, "lora_magnitude_vector"), ({"modules_to_save": ["lm_head"]}, "lm_head"),
    ({"modules_to_save": "lm_head"}, "modules_to_save"), ({"trainable_token_indices": [3]}, "holds"),
    ({"trainable_token_indices": {"lm_head": 3}}, "trainable_token_indices"),
    ({"bias": "all"}, "bias"), ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"), ({"lora_bias": True}, "lora_bias"),
    ({"target_parameters": ["w"]}, "target_parameters"), ({"use_qalora": True}, "use_qalora"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"), ({"something_new": 1}, "something_new"),
    *(({"init_lora_weights": name}, "save it in PEFT as plain LoRA")
      for name in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "merge_and_unload")])
def test_an_adapter_config_that_does_not_fit_is_rejected_by_name(saved, change, word):
    path = saved / "adapter_config.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=word) as error:
        load_adapter(our_model(), saved)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_or_of_a_larger_vocabulary_is_rejected(saved):
    for family in ("bloom", "internlm2"):
        with pytest.raises(UserError, match=r"matches no layer|not an adapter of this model"):
            load_adapter(family_model(family), saved)
    make_tokenizer(saved, "sentencepiece")
    with pytest.raises(UserError, match="a tokenizer of 320 ids, more than this model has"):
        load_adapter(our_model(), saved)
