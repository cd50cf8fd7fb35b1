"""LoRA against PEFT on the same random model: outputs, gradients, merged weights, files, every family."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmed import lora
from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.model import ModelConfig, Transformer
from mmed.utils.errors import UserError

transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
SHAPE = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
)


_spec = importlib.util.spec_from_file_location(
    "families_for_lora", Path(__file__).with_name("checkpoints") / "test_families.py"
)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)


def pair(seed: int):
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, initializer_range=0.1)).eval()
    ours = Transformer(ModelConfig(**SHAPE)).eval()
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()})
    return theirs, ours


def randomise(adapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(
    "targets, rslora", [("q_proj,v_proj", False), ("all-linear", False), ("k_proj,down_proj", True)]
)
def test_an_adapter_from_peft_gives_the_same_outputs_gradients_and_merged_weights(tmp_path, targets, rslora):
    theirs, ours = pair(1)
    config = peft.LoraConfig(
        r=5,
        lora_alpha=7,
        lora_dropout=0.05,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        use_rslora=rslora,
        task_type="CAUSAL_LM",
    )
    wrapped = peft.get_peft_model(theirs, config).eval()
    randomise(wrapped, 2)
    wrapped.save_pretrained(tmp_path)
    count = load_adapter(ours, tmp_path)
    assert count == {"q_proj,v_proj": 4, "all-linear": 14, "k_proj,down_proj": 4}[targets]
    ours.eval()
    ids = torch.randint(0, 97, (2, 13))
    out, expected = ours(ids), wrapped(ids).logits
    assert torch.allclose(out, expected, atol=1e-5, rtol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    grads = {
        n.replace("base_model.model.model.", "").replace(".default.weight", ""): p.grad
        for n, p in wrapped.named_parameters()
        if p.requires_grad
    }
    trained = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() == grads.keys()
    for name, grad in trained.items():
        assert (grad - grads[name]).abs().max() <= 1e-4 * grads[name].abs().max(), name
    lora.merge_lora(ours)
    merged = {n.removeprefix("model."): p for n, p in wrapped.merge_and_unload().state_dict().items()}
    for name, parameter in ours.state_dict().items():
        assert torch.allclose(parameter, merged[name], atol=1e-6), name


def test_our_adapter_opens_in_peft_with_equal_outputs(tmp_path):
    theirs, ours = pair(3)
    assert lora.apply_lora(ours, rank=4, alpha=9, dropout=0.05) == 4
    randomise(ours, 4)
    save_adapter(ours, tmp_path)
    wrapped = peft.PeftModel.from_pretrained(theirs, str(tmp_path)).eval()
    ids = torch.randint(0, 97, (2, 11))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids), wrapped(ids).logits, atol=1e-5, rtol=1e-5)


def test_training_starts_from_the_unchanged_model_and_trains_only_the_adapter():
    _, ours = pair(5)
    ids = torch.randint(0, 97, (1, 9))
    before = ours(ids).detach()
    lora.apply_lora(ours, targets="all-linear")
    assert torch.equal(ours.eval()(ids), before)
    assert {n.rpartition(".")[2] for n, p in ours.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_a_merged_layer_computes_what_the_adapted_one_did():
    _, ours = pair(6)
    lora.apply_lora(ours, rank=3)
    randomise(ours, 7)
    ids = torch.randint(0, 97, (1, 9))
    before = ours.eval()(ids).detach()
    weights = {name: layer.weight.clone() for name, layer in lora.adapted_layers(ours).items()}
    assert lora.merge_lora(ours) == len(weights) and not lora.adapted_layers(ours)
    assert torch.allclose(ours(ids), before, atol=1e-5)
    assert not any(torch.equal(ours.get_submodule(name).weight, weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    "family, spellings",
    [
        ("llama", ["gate_proj,up_proj", "mlp.gate_proj,mlp.up_proj"]),
        ("internlm2", ["w1,w3", "gate_proj,up_proj", "feed_forward.w1,feed_forward.w3"]),
        ("internlm2", ["paper", "wqkv", "qkv_proj", "attention.wqkv"]),
        ("bloom", ["paper", "query_key_value", "self_attention.query_key_value", "qkv_proj"]),
    ],
)
def test_every_spelling_of_a_target_selects_the_same_layers(family, spellings):
    """Our names and those of the weight files, with and without their module."""
    config = ModelConfig(**SHAPE, family=family, packed_qkv=family != "llama", gated_mlp=family != "bloom")
    names = {
        name for name, module in Transformer(config).named_modules() if isinstance(module, torch.nn.Linear)
    }
    assert names - {"lm_head"} == set(lora.target_names(config, "all-linear"))
    found = [lora.target_names(config, targets) for targets in spellings]
    assert all(names == found[0] for names in found) and len(found[0]) in (2, 4)


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    _, ours = pair(8)
    lora.apply_lora(ours, dropout=0.5)
    randomise(ours, 9)
    ids = torch.randint(0, 97, (1, 9))
    ours.train()
    assert not torch.equal(ours(ids), ours(ids))
    ours.eval()
    assert torch.equal(ours(ids), ours(ids))


@pytest.mark.parametrize(
    "targets, word", [("q_porj", "q_porj"), ("", "matches no layer"), ("query_key_value", "query_key_value")]
)
def test_a_target_that_matches_nothing_is_an_error_that_names_the_layers_there_are(targets, word):
    _, ours = pair(10)
    with pytest.raises(UserError, match=word) as error:
        lora.apply_lora(ours, targets=targets)
    assert "q_proj" in str(error.value)


def test_an_adapter_with_a_missing_or_stray_or_misshapen_tensor_is_refused(tmp_path):
    from safetensors.torch import save_file

    _, ours = pair(11)
    lora.apply_lora(ours, rank=4)
    save_adapter(ours, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    for change, word in (
        (lambda t: t.pop(name), "missing"),
        (lambda t: t.update(stray=torch.zeros(1)), "unexpected"),
        (lambda t: t.update({name: torch.zeros(2, 2)}), "shape"),
    ):
        wrong = dict(tensors)
        change(wrong)
        save_file(wrong, path)
        with pytest.raises(UserError, match=word):
            load_adapter(pair(11)[1], tmp_path)


def test_adapter_options_that_would_change_the_mathematics_are_refused(tmp_path):
    _, ours = pair(12)
    lora.apply_lora(ours, rank=4)
    save_adapter(ours, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        load_adapter(pair(12)[1], tmp_path)


# ---------------------------------------------------------------------------------------------- every family


class InternLM2(torch.nn.Module):
    """InternLM 2 in its published layout, as PEFT sees it."""

    def __init__(self, llama):
        super().__init__()
        config, tensors = families.internlm2_folder(llama)
        self.published = {k: v for k, v in config.items() if k != "rope_scaling"}
        for name, value in tensors.items():
            *parents, leaf, kind = name.split(".")
            module = self
            for part in parents:
                if part not in dict(module.named_children()):
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            if leaf not in dict(module.named_children()):
                module.add_module(
                    leaf,
                    torch.nn.Linear(value.shape[-1], value.shape[0], bias=False)
                    if value.dim() == 2
                    else torch.nn.Module(),
                )
            module.get_submodule(leaf).register_parameter(kind, torch.nn.Parameter(value.clone()))
        self.shape = llama.config

    def forward(self, ids):
        c, m = self.shape, self.model
        G, K, E = c.num_attention_heads // c.num_key_value_heads, c.num_key_value_heads, c.head_dim

        def norm(x, module):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c.rms_norm_eps) * module.weight

        x = torch.nn.functional.embedding(ids, m.tok_embeddings.weight)
        B, T, _ = x.shape
        angle = torch.arange(T)[:, None] / 1e6 ** (torch.arange(0, E, 2) / E)
        cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()

        def turn(y):
            return y * cos + torch.cat((-y[..., E // 2 :], y[..., : E // 2]), -1) * sin

        for layer in m.layers.children():
            qkv = layer.attention.wqkv(norm(x, layer.attention_norm)).view(B, T, K, G + 2, E)
            q, k, v = (
                qkv[..., :G, :].reshape(B, T, K * G, E),
                qkv[..., G, :].repeat_interleave(G, 2),
                qkv[..., G + 1, :].repeat_interleave(G, 2),
            )
            q, k, v = turn(q.transpose(1, 2)), turn(k.transpose(1, 2)), v.transpose(1, 2)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + layer.attention.wo(out.transpose(1, 2).reshape(B, T, -1))
            h, f = norm(x, layer.ffn_norm), layer.feed_forward
            x = x + f.w2(torch.nn.functional.silu(f.w1(h)) * f.w3(h))
        return torch.nn.functional.linear(norm(x, m.norm), self.output.weight)


def family_pair(family: str, seed: int):
    """(their model, ours, how theirs is called)."""
    if family == "internlm2":
        theirs = InternLM2(families.equivalent_llama(seed, 2, False)).eval()
        return theirs, families.ours_of(theirs.published, theirs.state_dict()), theirs
    if family == "internlm":  # its names and mathematics are those of a Llama with biases
        theirs = families.equivalent_llama(seed, 6, True)
        config = {
            k: v
            for k, v in families.internlm2_folder(theirs)[0].items()
            if k not in ("rope_theta", "rope_scaling")
        }
        ours = families.ours_of(
            config | {"model_type": "internlm", "rotary": {"base": 1e6, "type": "origin"}},
            theirs.state_dict(),
        )
    else:
        theirs = families.theirs_of(family, seed)
        ours = families.ours_of(theirs.config.to_dict(), theirs.state_dict())
    return theirs, ours, lambda ids: theirs(ids).logits


PAPER = {"bloom": ["query_key_value"], "internlm2": ["wqkv"]}
ALL = {"internlm2": ["wqkv", "wo", "w1", "w2", "w3"]}
FAMILIES = [*families.CLASSES, "internlm", "internlm2"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["paper", "all-linear", "rslora"])
def test_adapters_of_every_family_go_both_ways_with_equal_outputs_and_merge(tmp_path, family, kind):
    theirs, ours, call = family_pair(family, 21)
    _, second, _ = family_pair(family, 21)
    targets = (
        PAPER.get(family, ["q_proj", "v_proj"]) if kind != "all-linear" else ALL.get(family, "all-linear")
    )
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=kind == "rslora")
    ).eval()
    randomise(wrapped, 22)
    wrapped.save_pretrained(tmp_path / "theirs")
    count = load_adapter(ours, tmp_path / "theirs")
    assert count == len([n for n, _ in wrapped.named_parameters() if "lora_A" in n])
    ids = torch.randint(0, ours.config.vocab_size, (2, 11))
    with torch.no_grad():
        expected = call(ids)
        assert families.close(ours.eval()(ids), expected)
    # and back: what we save, PEFT opens
    names = {
        "paper": "paper",
        "all-linear": "all-linear",
        "rslora": ",".join(PAPER.get(family, ["q_proj", "v_proj"])),
    }[kind]
    assert lora.apply_lora(second, rank=3, alpha=5, targets=names, rslora=kind == "rslora") == count
    randomise(second, 23)
    save_adapter(second, tmp_path / "ours")
    theirs, _, call = family_pair(family, 21)
    config = peft.LoraConfig.from_pretrained(str(tmp_path / "ours"))
    config.task_type = None
    opened = peft.get_peft_model(theirs, config).eval()
    result = peft.set_peft_model_state_dict(
        opened, load_file(tmp_path / "ours" / "adapter_model.safetensors")
    )
    assert not result.unexpected_keys and not [k for k in result.missing_keys if "lora_" in k]
    with torch.no_grad():
        expected = call(ids)
        assert families.close(second.eval()(ids), expected)
        assert lora.merge_lora(second) == count and not lora.adapted_layers(second)
        assert families.close(second(ids), expected, 2e-5)


def test_an_adapter_of_some_layers_only_is_loaded_and_saved_with_whole_names(tmp_path):
    theirs, ours = pair(31)
    wrapped = peft.get_peft_model(
        theirs, peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1])
    ).eval()
    randomise(wrapped, 32)
    wrapped.save_pretrained(tmp_path / "theirs")
    assert load_adapter(ours, tmp_path / "theirs") == 1
    save_adapter(ours, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    opened = peft.PeftModel.from_pretrained(pair(31)[0], str(tmp_path / "ours")).eval()
    ids = torch.randint(0, 97, (1, 7))
    with torch.no_grad():
        assert families.close(opened(ids).logits, wrapped(ids).logits) and families.close(
            ours.eval()(ids), wrapped(ids).logits
        )


def test_a_target_as_a_pattern_follows_the_tensors(tmp_path):
    theirs, ours = pair(33)
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=r".*\.(q|v)_proj")).eval()
    randomise(wrapped, 34)
    wrapped.save_pretrained(tmp_path)
    assert load_adapter(ours, tmp_path) == 4


@pytest.mark.parametrize(
    "change, word",
    [
        ({"r": 10**9}, "shape"),
        ({"r": 0}, "r=0"),
        ({"r": "4"}, "r='4'"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"target_modules": ["q_proj", "v_proj", "gate"]}, "gate"),
        ({"target_modules": ["q_proj", "o_proj"]}, "missing"),
        ({"lora_dropout": 2}, "lora_dropout"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern"),
    ],
)
def test_an_adapter_config_that_does_not_fit_is_refused_before_memory_is_taken(tmp_path, change, word):
    _, ours = pair(35)
    lora.apply_lora(ours, rank=4)
    save_adapter(ours, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=word) as error:
        load_adapter(pair(35)[1], tmp_path)
    assert "\n" not in str(error.value)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    _, ours = pair(36)
    lora.apply_lora(ours, rank=4)
    save_adapter(ours, tmp_path)
    for family in ("bloom", "internlm2"):
        with pytest.raises(UserError, match=r"matches no layer|not an adapter of this model"):
            load_adapter(family_pair(family, 37)[1], tmp_path)
