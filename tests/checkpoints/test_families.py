"""Every family against transformers' own model on random small configs; InternLM 1 and 2 against an
equivalent Llama.
"""
import dataclasses
import json
import random

import pytest
import torch

from mmed.checkpoints.families import FAMILIES, read_config, write_config
from mmed.generate import generate
from mmed.inference.decoder import Segment, decoder_for
from mmed.model import Transformer, published_name
from mmed.utils.errors import UserError

transformers = pytest.importorskip("transformers")
CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "bloom": "Bloom", "qwen2": "Qwen2", "qwen3": "Qwen3",
    "gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text"
}
MODELS = {"gemma3_text": "Gemma3ForCausalLM"}


def theirs_of(family: str, seed: int):
    """A random small model of transformers, eager attention (the one that applies soft caps), every parameter
    random.
    """
    rng = random.Random(f"{family} {seed}")
    heads = rng.choice([2, 3, 4, 6])
    layers, head_dim = rng.randint(2, 4), rng.choice([6, 8, 10])
    shape = dict(vocab_size=rng.randint(50, 200),
                 hidden_size=heads * rng.choice([8, 10]),
                 intermediate_size=rng.randint(17, 60),
                 num_hidden_layers=layers,
                 num_attention_heads=heads,
                 num_key_value_heads=rng.choice([k for k in (1, 2, 3) if heads % k == 0]),
                 max_position_embeddings=64,
                 rms_norm_eps=rng.choice([1e-5, 1e-6]),
                 tie_word_embeddings=rng.random() < 0.5,
                 head_dim=head_dim,
                 rope_parameters={"rope_type": "default", "rope_theta": rng.choice([10000.0, 5e5])})
    window = rng.randint(3, 9)
    if family == "llama" and seed % 2:
        shape["rope_parameters"] = {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32
        }
        shape |= {"attention_bias": True, "mlp_bias": True}
    elif family == "llama":
        shape["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    elif family == "mistral":
        shape["sliding_window"] = [window, None][seed % 2]
    elif family == "bloom":
        shape = {k: shape[k] for k in ("vocab_size", "tie_word_embeddings")} | dict(
            hidden_size=heads * rng.choice([7, 8]), n_layer=layers, n_head=heads, layer_norm_epsilon=1e-5)
    elif family in ("qwen2", "qwen3"):
        shape |= dict(use_sliding_window=seed % 2 == 1, sliding_window=window, max_window_layers=1)
        if family == "qwen2":
            shape.pop("head_dim")
        else:
            shape["attention_bias"] = rng.random() < 0.5
    elif family == "gemma2":
        shape |= dict(sliding_window=window,
                      query_pre_attn_scalar=rng.randint(5, 300),
                      attn_logit_softcapping=[3.0, None][seed % 2],
                      final_logit_softcapping=[None, 5.0][seed % 2])
    elif family == "gemma3_text":
        shape |= dict(sliding_window=window,
                      query_pre_attn_scalar=rng.randint(5, 300),
                      sliding_window_pattern=rng.randint(2, 3),
                      final_logit_softcapping=[None, 4.0][seed % 2],
                      rope_parameters={
                          "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                          "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}
                      })
    config = getattr(transformers, CLASSES[family] + "Config")(**shape,
                                                               initializer_range=0.1,
                                                               pad_token_id=None)
    torch.manual_seed(seed)
    model = getattr(transformers, MODELS.get(family, CLASSES[family] + "ForCausalLM"))._from_config(
        config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases, too
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours_of(config: dict, state: dict) -> Transformer:
    model = Transformer(read_config(config)).eval()
    model.load_state_dict({name: state[published_name(model.config, name)] for name in model.state_dict()})
    return model


def close(a, b, relative=1e-5):
    return bool((a - b).abs().max() <= relative * b.abs().max())


def cached_logits(model: Transformer, ids: torch.Tensor, split: int) -> torch.Tensor:
    """The decoder's logits behind every token: of row b the first split + b in one pass, the others one by
    one, all rows side by side.
    """
    B, T = ids.shape
    decoder = decoder_for(model)
    cache = decoder.make_cache(B, T)
    out = torch.empty(B, T, model.config.vocab_size)
    lengths = [split + b for b in range(B)]
    with torch.inference_mode():
        first = decoder.prefill(cache, [Segment(b, 0, ids[b, :n].tolist(), logits=n)
                                        for b, n in enumerate(lengths)])
        for b, n in enumerate(lengths):
            out[b, :n] = first[b]
        while lengths[0] < T:
            at = [n for n in lengths if n < T]  # those of the last rows are done first
            out[range(len(at)), at] = decoder.decode_step(cache, ids[range(len(at)), at].tolist(), at)
            lengths = [n + 1 for n in at]
    return out


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("seed", range(4))
def test_logits_equal_transformers_with_and_without_cache(family, seed):
    theirs = theirs_of(family, seed)
    ours = ours_of(theirs.config.to_dict(), theirs.state_dict())
    ids = torch.randint(0, ours.config.vocab_size, (8, 23))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert close(ours(ids), expected) and close(cached_logits(ours, ids, 5), expected) and close(
            cached_logits(ours, ids[:1], 5), expected[:1])


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_tokens_equal_transformers_full_forwards_alone_and_eight_side_by_side(family):
    theirs, rng = theirs_of(family, 5), random.Random(family)
    ours = ours_of(theirs.config.to_dict(), theirs.state_dict())
    prompts = [[rng.randrange(ours.config.vocab_size) for _ in range(rng.randint(1, 30))] for _ in range(12)]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 6:
                ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt):])
    assert generate(ours, prompts, 6, max_batch_size=8) == expected
    assert generate(ours, prompts, 6, max_batch_size=1) == expected


@pytest.mark.parametrize("family", CLASSES)
def test_config_written_in_version_4_spelling_means_the_same_to_transformers_and_to_us(family, tmp_path):
    for seed in range(2):
        theirs = theirs_of(family, seed)
        config = read_config(theirs.config.to_dict())
        written = json.loads(json.dumps(write_config(config, "float32")))
        assert read_config(
            written) == config and "rope_parameters" not in written and written["torch_dtype"] == "float32"
        (tmp_path / "config.json").write_text(json.dumps(written))
        again = transformers.AutoConfig.from_pretrained(tmp_path)
        assert read_config(again.to_dict()) == config
        model = type(theirs)._from_config(again, attn_implementation="eager").eval()
        model.load_state_dict(theirs.state_dict())
        ids = torch.randint(0, config.vocab_size, (1, 17))
        with torch.no_grad():
            assert torch.equal(model(ids).logits, theirs(ids).logits)


# ------------------------------------------------------------------------------------------ InternLM, from it

def equivalent_llama(seed: int, kv_heads: int, bias: bool):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=97,
                                      hidden_size=48,
                                      intermediate_size=33,
                                      num_hidden_layers=2,
                                      num_attention_heads=6,
                                      num_key_value_heads=kv_heads,
                                      head_dim=8,
                                      attention_bias=bias,
                                      max_position_embeddings=64,
                                      initializer_range=0.1,
                                      rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def internlm2_folder(llama) -> tuple[dict, dict]:
    """(config.json, tensors) of the InternLM 2 model that computes what `llama` computes."""
    c, state, out = llama.config, llama.state_dict(), {}
    names = {
        "model.embed_tokens.weight": "model.tok_embeddings.weight", "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "output.weight"
    }
    groups = c.num_attention_heads // c.num_key_value_heads
    for i in range(c.num_hidden_layers):
        a, b = f"model.layers.{i}.", f"model.layers.{i}."
        names |= {
            a + "input_layernorm.weight": b + "attention_norm.weight",
            a + "post_attention_layernorm.weight": b + "ffn_norm.weight",
            a + "mlp.gate_proj.weight": b + "feed_forward.w1.weight",
            a + "mlp.up_proj.weight": b + "feed_forward.w3.weight",
            a + "mlp.down_proj.weight": b + "feed_forward.w2.weight"
        }
        for kind in ("weight", "bias"):
            if a + "self_attn.q_proj." + kind not in state:
                continue
            q, k, v = (state[f"{a}self_attn.{n}_proj.{kind}"].split(c.head_dim) for n in "qkv")  # a head each
            rows = [
                part for g in range(c.num_key_value_heads)
                for part in (*q[g * groups:(g + 1) * groups], k[g], v[g])
            ]
            out[f"{b}attention.wqkv.{kind}"] = torch.cat(rows)
            names[f"{a}self_attn.o_proj.{kind}"] = f"{b}attention.wo.{kind}"
    out |= {new: state[old] for old, new in names.items()}
    return {
        "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config"
        }, "bias": c.attention_bias, "hidden_act": "silu", "vocab_size": 97, "hidden_size": 48,
        "intermediate_size": 33, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": c.num_key_value_heads, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "attn_implementation": "eager", "initializer_range": 0.1, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "bfloat16", "use_cache": True
    }, out


@pytest.mark.parametrize("kv_heads, bias", [(6, False), (2, False), (1, True), (3, True)])
def test_internlm2_equals_the_llama_that_its_packed_weights_stand_for(kv_heads, bias):
    llama = equivalent_llama(kv_heads, kv_heads, bias)
    config, tensors = internlm2_folder(llama)
    ours = ours_of(config, tensors)
    ids = torch.randint(0, 97, (2, 19))
    with torch.no_grad():
        expected = llama(ids).logits
        assert close(ours(ids), expected) and close(cached_logits(ours, ids, 7), expected)
    written = write_config(ours.config, "float32")
    assert written["rope_scaling"] == {"type": "dynamic", "factor": 2.0
                                       } and written["bias"] is bias and "head_dim" not in written
    # beyond them the rotation would depend on the length
    with pytest.raises(ValueError, match="64 positions"):
        ours(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize("bias", [True, False])
def test_internlm_equals_a_llama_with_biases_on_q_k_v_and_o(bias):
    llama = equivalent_llama(9, 6, bias)
    dropped = ("rope_theta", "rope_scaling", "attn_implementation")
    config = {k: v for k, v in internlm2_folder(llama)[0].items() if k not in dropped}
    config |= {"model_type": "internlm", "rotary": {"base": 1000000, "type": "dynamic"}}
    ours = ours_of(config, llama.state_dict())
    ids = torch.randint(0, 97, (2, 19))
    with torch.no_grad():
        assert close(ours(ids), llama(ids).logits)
    assert write_config(ours.config, "bfloat16")["rotary"] == {"base": 1e6, "type": "dynamic"}
    # as its own code has it
    assert read_config({k: v for k, v in config.items() if k not in ("rotary", "bias")}).attention_bias


# -------------------------------------------------------------------------------------------------------- pub

LLAMA1 = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 2048, "max_sequence_length": 2048, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.28.0", "use_cache": True, "vocab_size": 32000,
    "_name_or_path": "x"
}
PUBLISHED = {
    "llama 1": (LLAMA1, dict(num_key_value_heads=32, head_dim=128, rope_theta=10000.0,
                             rope_scaling=None)), "llama 3.1": (LLAMA1 | {
                                 "vocab_size": 128256, "num_key_value_heads": 8, "rope_theta": 500000.0,
                                 "eos_token_id": [128001, 128008, 128009], "rope_scaling": {
                                     "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                     "original_max_position_embeddings": 8192, "rope_type": "llama3"
                                 }
                             }, dict(num_key_value_heads=8, rope_theta=5e5)),
    "mistral 0.1": (LLAMA1 | {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096},
                    dict(sliding_window=4096)),
    "mistral 0.3": (LLAMA1 | {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": None},
                    dict(sliding_window=None)),
    "bloomz": ({
        "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 4096,
        "n_inner": None, "n_layer": 30, "num_attention_heads": 32, "offset_alibi": 100, "pretraining_tp": 4,
        "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False, "use_cache": True,
        "vocab_size": 250880
    },
               dict(hidden_size=4096,
                    intermediate_size=16384,
                    num_attention_heads=32,
                    num_hidden_layers=30,
                    tie_word_embeddings=True)),
    "llama unpacked from GGUF": (LLAMA1 | {"quantization_config": {"quant_method": "gguf"}},
                                 dict(num_key_value_heads=32)), "qwen 2.5": (LLAMA1 | {
                                     "model_type": "qwen2", "num_key_value_heads": 4, "max_window_layers": 28,
                                     "sliding_window": 131072, "use_sliding_window": False
                                 }, dict(attention_bias=True, attention_out_bias=False, sliding_window=None)),
    "gemma 3 1b": (LLAMA1 | {
        "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 256, "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "cache_implementation": "hybrid", "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "attention_bias": False
    }, dict(rope_local_theta=10000.0, rope_theta=1e6, sliding_window=512, attention_scale=1 / 16)),
}


@pytest.mark.parametrize("family", CLASSES)
def test_a_config_that_is_silent_means_what_transformers_takes_it_for(family):
    """Published folders leave out what is the family's default: Gemma says nothing of its tied head."""
    plain = getattr(transformers, CLASSES[family] + "Config")
    kept = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim", "n_layer",
            "n_head", "hidden_activation", "sliding_window", "layer_types", "query_pre_attn_scalar",
            "rope_parameters")
    silent = {key: value for key, value in plain().to_dict().items() if key in kept}
    theirs, ours = plain(**silent), read_config(silent)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.rms_norm_eps == getattr(theirs, "rms_norm_eps", None) or ours.rms_norm_eps == getattr(
        theirs, "layer_norm_epsilon", None)
    assert ours.num_key_value_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    if family != "qwen2":  # its class has the bias without a key for it
        assert ours.attention_bias == getattr(theirs, "attention_bias", family == "bloom")


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_they_are_published_are_read_and_written_back(name):
    source, expected = PUBLISHED[name]
    config = read_config(source)
    for key, value in expected.items():
        assert getattr(config, key) == value, key
    written = write_config(config, source.get("torch_dtype", "bfloat16"))
    assert read_config(written) == config
    spelling = {"n_embed": "hidden_size", "num_attention_heads": "n_head"} if name == "bloomz" else {}
    for key, value in written.items():
        original = {spelling.get(k, k): v for k, v in source.items()}
        if key != "architectures" and key in original and original[key] is not None and not (
                config.sliding_window is None and "window" in key):
            assert original[key] == value, key


@pytest.mark.parametrize(
    "change, words",
    [({"model_type": "mamba"}, "model_type 'mamba'"), ({"model_type": ["llama"]}, "not supported"),
     ({"hidden_size": None}, "hidden_size"), ({"hidden_size": 0}, "hidden_size = 0"),
     ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
     ({"num_attention_heads": 33}, "not a multiple"), ({"num_key_value_heads": 5}, "num_key_value_heads = 5"),
     ({"vocab_size": True}, "vocab_size"), ({"vocab_size": 2**40}, "vocab_size"),
     ({"rope_theta": float("nan")}, "rope_theta"), ({"rms_norm_eps": -1}, "rms_norm_eps"),
     ({"rope_scaling": {"type": "yarn", "factor": 2}}, "yarn"),
     ({"rope_scaling": {"type": "linear"}}, "factor"), ({"rope_scaling": 3}, "rope_scaling"),
     ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 3}}, "beta"),
     ({"hidden_act": "gelu"}, "hidden_act"), ({"head_dim": 7}, "odd"),
     ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
     ({"logit_scale": 0.5}, "logit_scale"), ({"attention_dropout": 0.1}, "attention_dropout"),
     ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
     ({"model_type": "bloom", "n_layer": 32, "n_head": 32, "num_attention_heads": 16
       }, "num_attention_heads = 16"),
     ({"model_type": "mistral", "num_key_value_heads": 8, "layer_types": ["full_attention"] * 32
       }, "layer_types"),
     ({
         "model_type": "gemma2", "num_key_value_heads": 8, "hidden_act": None,
         "layer_types": ["full_attention"]
     }, "layer_types"),
     ({
         "model_type": "bloom", "n_layer": 2, "n_head": 32, "num_hidden_layers": 2, "num_attention_heads": 32,
         "apply_residual_connection_post_layernorm": True
     }, "apply_residual_connection_post_layernorm"),
     ({"model_type": "internlm", "rotary": {"base": 10000, "type": "yarn"}}, "rotary")])
def test_a_config_that_means_other_mathematics_or_nonsense_is_refused_by_name(change, words):
    config = {k: v for k, v in (LLAMA1 | change).items() if v is not None}
    with pytest.raises(UserError, match=words) as error:
        read_config(config)
    assert "\n" not in str(error.value)


def test_a_model_that_its_family_cannot_say_is_not_written():
    config = read_config(LLAMA1)
    for change in ({"qk_norm": True}, {"sliding_window": 8}, {"attention_out_bias": True}, {"norm": "layer"},
                   {"rope_local_theta": 1e4}):
        with pytest.raises(UserError, match=next(iter(change))):
            write_config(dataclasses.replace(config, **change), "float32")


def test_every_tensor_name_of_a_family_is_its_own():
    for family in FAMILIES:
        base = {k: v for k, v in LLAMA1.items() if k not in ("hidden_act", "max_sequence_length")}
        base |= {
            "model_type": family, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 32,
            "num_key_value_heads": 8, "n_layer": 2, "n_head": 32, "vocab_size": 9
        }
        if family == "bloom":
            base = {
                k: v
                for k, v in base.items()
                if k in ("model_type", "vocab_size", "hidden_size", "n_layer", "n_head")
            }
        else:
            base = {k: v for k, v in base.items() if k not in ("n_layer", "n_head")}
        config = read_config(base)
        with torch.device("meta"):
            names = [published_name(config, name) for name, _ in Transformer(config).named_parameters()]
        assert len(set(names)) == len(names)
