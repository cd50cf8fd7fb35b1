"""The fast engine and the plain loop against full forward passes, for the mathematics of every family."""
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmed.generate import generate
from mmed.inference import decoder
from mmed.inference.cuda_graphs import graph_shape
from mmed.inference.decoder import PASS_TOKENS, Decoder, Segment, decoder_for
from mmed.inference.linears import Int8Linear, PackedLinear
from mmed.inference.option_scores import int8_difference, score_many
from mmed.inference.sampling import sample
from mmed.lora import adapted_layers, apply_lora
from mmed.model import ModelConfig, Transformer
from mmed.utils.errors import UserError

FAMILIES = {
    "llama": dict(),
    "grouped heads, tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "packed qkv with biases": dict(packed_qkv=True, attention_bias=True, attention_out_bias=True,
                                   num_key_value_heads=2),
    "bloom": dict(position_embedding="alibi", norm="layer", gated_mlp=False, activation="gelu_tanh",
                  mlp_bias=True, attention_bias=True, packed_qkv=True, embedding_norm=True),
    "mistral": dict(sliding_window=7, num_key_value_heads=1),
    "qwen": dict(qk_norm=True, attention_bias=True, num_key_value_heads=2),
    "gemma": dict(norm="rms_plus_one", post_norms=True, scale_embedding=True, attention_softcap=5.0,
                  final_softcap=3.0, qk_norm=True, sliding_window=9, sliding_layers=(True, False),
                  rope_local_theta=100.0, activation="gelu_tanh", tie_word_embeddings=True),
}


def tiny(seed: int, **fixed) -> Transformer:
    shape = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=4, head_dim=8, max_position_embeddings=128,
                 initializer_range=0.3)
    model = Transformer(ModelConfig(**shape | fixed)).init_weights(seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, or a lost one would not show
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def random_prompts(rng: random.Random, count: int, longest: int = 40) -> list[list[int]]:
    return [[rng.randrange(97) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def naive(model: Transformer, prompt: list[int], limit: int, ends=()) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt):]


@torch.no_grad()
def exact_score(model: Transformer, prompt: list[int], option: list[int]) -> float:
    log_p = model(torch.tensor([prompt + option]))[0, len(prompt) - 1:-1].double().log_softmax(-1)
    return float(log_p.gather(1, torch.tensor(option)[:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_give_the_tokens_of_full_forwards_for_any_batch_size(family, monkeypatch):
    rng = random.Random(family)
    model = tiny(rng.randrange(1000), **FAMILIES[family])
    prompts = random_prompts(rng, 9)
    prompts += [[*prompts[0], *prompts[1], 5], [*prompts[0], *prompts[1], 6]]  # with a shared prefix
    limits = [rng.randint(0, 20) for _ in prompts]
    ends = [rng.randrange(97) for _ in range(4)]
    expected = [naive(model, prompt, limit, ends) for prompt, limit in zip(prompts, limits)]
    assert len({len(ids) for ids in expected}) > 2  # sequences end at different times, so rows are refilled
    for name, size, tokens in (("plain", 1, 0), ("plain", 4, 0), ("fast", 1, 1024), ("fast", 3, 16),
                               ("fast", 32, 1024)):
        monkeypatch.setitem(PASS_TOKENS, "cpu", tokens)  # 16: prompts longer than a pass
        new = generate(model, prompts, limits, end_ids=ends, max_batch_size=size, engine_name=name)
        assert new == expected, (name, size)


@pytest.mark.parametrize("layout", ["plain", "packed", "in place"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_has_the_logits_of_a_full_forward(family, layout):
    """Also the step as a GPU captures it (traced whole)."""
    number = list(FAMILIES).index(family)
    model, rng = tiny(number, **FAMILIES[family]), random.Random(number)
    lengths = [3, 21, 12]
    rows = [[rng.randrange(97) for _ in range(n + 1)] for n in lengths]
    with torch.no_grad():
        full = [model(torch.tensor([row]))[0] for row in rows]
    expected = torch.stack([logits[-1] for logits in full])
    decoder = Decoder(model, layout)
    tokens, at = [row[-1] for row in rows], torch.tensor(lengths)
    with torch.inference_mode():
        cache = decoder.make_cache(3, 32)
        segments = [Segment(row, 0, ids[:-1], logits=len(ids) - 1) for row, ids in enumerate(rows)]
        for got, logits in zip(decoder.prefill(cache, segments), full):
            assert torch.allclose(got, logits[:-1], atol=2e-4)
        assert torch.allclose(decoder.decode_step(cache, tokens, lengths), expected, atol=2e-4)
        one_token = decoder.one_token
        if layout == "plain":
            one_token = torch.compile(one_token, fullgraph=True, backend="eager")
        assert torch.allclose(one_token(cache, torch.tensor(tokens), at, 32), expected, atol=2e-4)
    torch._dynamo.reset()
    with torch.no_grad():  # the model itself still computes the same
        assert torch.allclose(model(torch.tensor([rows[0]]))[0], full[0], atol=1e-5)


def test_logits_of_many_tokens_exist_for_one_pass_at_a_time(monkeypatch):
    """Scoring options needs logits at every token: with 262,144 words a megabyte each."""
    monkeypatch.setitem(PASS_TOKENS, "cpu", 16)
    model, computed = tiny(1), []
    decoder = decoder_for(model)
    monkeypatch.setattr(decoder, "flat_pass", lambda cache, part: computed.append(part) or [
        torch.zeros(segment.logits, 97) for segment in part])
    logits = decoder.prefill(None, [Segment(row, 0, [1] * 10, logits=10) for row in range(5)])
    assert [len(computed) for _ in logits] == [1, 2, 3, 4, 5]


def test_a_layout_is_kept_until_a_weight_changes_or_an_adapter_is_added():
    model, prompts = tiny(3), random_prompts(random.Random(5), 4)
    first = decoder_for(model)
    assert decoder_for(model) is first and isinstance(first.layers[0].qkv, PackedLinear)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.mul_(1.5)
    assert generate(model, prompts, 12) == [naive(model, prompt, 12) for prompt in prompts]
    apply_lora(model, rank=2, alpha=4, dropout=0.5, targets="q_proj,down_proj")
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
    expected = [naive(model.eval(), prompt, 10) for prompt in prompts]
    assert generate(model, prompts, 10, max_batch_size=2) == expected


@pytest.mark.parametrize("engine_name", ["plain", "fast"])
def test_in_bf16_every_token_is_within_rounding_of_the_likeliest(engine_name):
    model, rng = tiny(14).bfloat16(), random.Random(14)
    prompts = random_prompts(rng, 9)
    for prompt, new in zip(prompts, generate(model, prompts, 12, max_batch_size=8, engine_name=engine_name)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].float()
        chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen <= 2 ** -4 * logits.abs().max(-1).values).all()


@pytest.mark.parametrize("engine_name", ["plain", "fast"])
def test_rows_of_the_embedding_beyond_the_vocabulary_are_never_chosen(engine_name):
    model = tiny(2)
    with torch.no_grad():
        model.lm_head.weight[95] = 5 * model.lm_head.weight[:90].abs().sum(0)
        model.lm_head.weight[96] = -model.lm_head.weight[95]
    prompts = random_prompts(random.Random(2), 4)
    assert max(map(max, generate(model, prompts, 8, engine_name=engine_name))) >= 90
    for temperature in (0.0, 1.5):
        new = generate(model, prompts, 8, engine_name=engine_name, vocab_size=90, temperature=temperature)
        assert max(map(max, new)) < 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_int8_weight_is_off_by_more_than_half_its_scale(dtype):
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 64), (40,)))
    layer = Int8Linear(weight, bias)
    scale = layer.scale[:, None]
    assert ((weight.float() - layer.weight * scale).abs() <= 0.5001 * scale).all()
    for rows in (1, 30):  # of few rows the inputs and sums are rounded to bf16
        x = torch.randn(rows, 64, generator=generator).to(dtype)
        rounding = 2 ** -7 * (x.abs() @ weight.abs().t() + 1)
        bound = x.float().abs().sum(1, keepdim=True) * layer.scale / 2 + rounding.float()
        assert ((layer(x) - F.linear(x, weight, bias)).float().abs() <= bound + 1e-4).all()
    odd = Int8Linear(weight[:, :17].contiguous(), bias)  # torch's int8 product would read beyond its rows
    assert torch.allclose(odd(x[:1, :17]), F.linear(x[:1, :17], weight[:, :17], bias), atol=0.2)


def test_int8_decoding_says_what_it_changes():
    model, prompts = tiny(15), random_prompts(random.Random(15), 40)
    words = int8_difference(model, prompts)
    assert "14 prompts" in words and float(words.split("same at ")[1].split("%")[0]) > 80
    generate(model, prompts, 5)
    assert model.int8 and decoder_for(model).layout == "int8"
    assert "no prompts" in int8_difference(model, [])


def test_what_prompts_share_is_computed_once(monkeypatch):
    rng, model = random.Random(4), tiny(4)
    stem = [rng.randrange(97) for _ in range(48)]
    prompts = [stem + [rng.randrange(97) for _ in range(rng.randint(1, 6))] for _ in range(10)]
    prompts += random_prompts(rng, 3)
    computed, flat_pass = [], Decoder.flat_pass

    def counted(self, cache, segments):
        computed.append(sum(len(segment.ids) for segment in segments))
        return flat_pass(self, cache, segments)

    monkeypatch.setattr(Decoder, "flat_pass", counted)
    new = generate(model, prompts, 6, max_batch_size=4)
    assert sum(computed) == sum(map(len, prompts)) - 9 * 48
    computed.clear()
    options = [[1, 2, 3], [1, 2, 4, 6], [1, 2, 5]]
    scores = score_many(model, prompts, [options] * len(prompts))
    assert sum(computed) == sum(map(len, prompts)) - 9 * 48 + 7 * len(prompts)  # all but an option's last
    assert new == [naive(model, prompt, 6) for prompt in prompts]
    exact = [exact_score(model, prompts[3], option) for option in options]
    assert scores[3] == pytest.approx(exact, abs=1e-4)


def test_sampling_depends_on_seed_and_number_only():
    model, rng = tiny(7), random.Random(7)
    prompts = [*random_prompts(rng, 6), [1, 2, 3], [1, 2, 3]]
    how = dict(temperature=1.3, top_k=30, top_p=0.95)
    first = generate(model, prompts, 12, seed=5, max_batch_size=8, **how)
    assert first == generate(model, prompts, 12, seed=5, max_batch_size=3, **how)
    assert first == generate(model, prompts, 12, seed=5, engine_name="plain", **how)
    assert first[3:5] == generate(model, prompts[3:5], 12, seed=5, numbers=[3, 4], max_batch_size=1, **how)
    assert first != generate(model, prompts, 12, seed=6, max_batch_size=8, **how)
    assert first[-1] != first[-2]  # the same prompt twice is drawn twice


@pytest.mark.parametrize("temperature, top_k, top_p", [
    (0.7, 0, 1.0), (1.0, 2, 1.0), (1.0, 0, 0.5), (1.0, 0, 0.8), (1.0, 2, 0.7), (1.0, 3, 0.9), (1.3, 5, 0.4),
    (1.0, 7, 0.8), (1e-320, 0, 1.0)])
def test_sampling_follows_the_distribution_of_transformers(temperature, top_k, top_p):
    transformers = pytest.importorskip("transformers")
    logits = 2 * torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    kept = (logits.double() - logits.max()) / temperature
    if top_k:
        kept = transformers.TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1:
        kept = transformers.TopPLogitsWarper(top_p)(None, kept)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = sample(logits.expand(4000, 8), temperature, top_k, top_p, uniform)
    share = torch.bincount(drawn, minlength=8).double() / 4000
    assert torch.allclose(share, kept.softmax(-1)[0], atol=1e-3)


@pytest.mark.parametrize("engine_name", ["plain", "fast"])
def test_stop_and_callbacks_see_every_sequence(engine_name):
    model = tiny(9)
    prompts = random_prompts(random.Random(9), 5)
    done, tokens = {}, {i: [] for i in range(5)}
    result = generate(model, prompts, 20, max_batch_size=2, engine_name=engine_name,
                      stop=lambda ids: len(ids) >= 16,
                      on_done=lambda i, ids: done.setdefault(i, list(ids)),
                      on_token=lambda i, token: tokens[i].append(token))
    assert [done[i] for i in range(5)] == result == [tokens[i] for i in range(5)]
    assert {len(ids) for ids in result} == {16}


@pytest.mark.parametrize("engine_name", ["plain", "fast"])
def test_a_sequence_ends_at_the_last_position_and_a_longer_prompt_is_an_error(engine_name):
    model = tiny(10, max_position_embeddings=20)
    assert len(generate(model, [[1] * 17], 50, engine_name=engine_name)[0]) == 3
    for prompts, message in (([[1], [1] * 20], "prompt 1 has 20 tokens"), ([[]], "prompt 0 is empty")):
        with pytest.raises(UserError, match=message):
            generate(model, prompts, 5, engine_name=engine_name)
    assert generate(model, [], 5, engine_name=engine_name) == []


def test_logits_that_are_not_finite_are_an_error():
    model = tiny(11)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    for decode in (lambda: generate(model, [[1, 2]], 5, engine_name="plain"),
                   lambda: generate(model, [[1, 2]], 5), lambda: score_many(model, [[1, 2]], [[[3], [4]]])):
        with pytest.raises(UserError, match="not finite"):
            decode()


@pytest.mark.parametrize("family", FAMILIES)
def test_option_scores_equal_full_forwards(family):
    rng = random.Random(family + "!")
    model = tiny(rng.randrange(1000), **FAMILIES[family])
    prompts = random_prompts(rng, 9)
    options = [random_prompts(rng, rng.randint(0, 5), 9) for _ in prompts]
    options[2] = [[4, 5, 6], [4, 5], [4, 5, 6]]  # one the beginning of another, one twice
    for prompt, choices, row in zip(prompts, options, score_many(model, prompts, options), strict=True):
        assert row == pytest.approx([exact_score(model, prompt, ids) for ids in choices], abs=1e-3)
    with pytest.raises(UserError, match="context length of 128"):
        score_many(model, [[1] * 128], [[[1, 2]]])


@pytest.mark.parametrize("fitting, rows", [(3, 2), (40, 6)])
def test_a_batch_is_as_large_as_the_free_memory_allows(monkeypatch, fitting, rows):
    model, prompts = tiny(12), random_prompts(random.Random(12), 6, 20)
    options = [[[3], [4, 5]]] * 6
    longest = max(map(len, prompts)) + 6
    each = 2 * 2 * 4 * 8 * 4 * (longest + decoder.LENGTH_STEP)  # k and v, layers, heads, head size, fp32
    monkeypatch.setattr(decoder, "free_bytes", lambda device: fitting * each)
    assert generate(model, prompts, 6) == [naive(model, prompt, 6) for prompt in prompts]
    assert decoder_for(model).cache.keys.shape[1] == rows
    exact = [[exact_score(model, prompt, option) for option in options[0]] for prompt in prompts]
    assert np.allclose(score_many(model, prompts, options), exact, atol=1e-3)
    monkeypatch.setattr(decoder, "free_bytes", lambda device: 0)
    decoder_for(model).cache = None
    with pytest.raises(UserError, match=r"KV cache of one sequence of .* lower --max_new_tokens"):
        generate(model, prompts, 6)


def test_the_graphs_of_a_gpu_cover_every_step():
    for n, used in ((1, 1), (7, 256), (40, 257), (33, 1000)):
        rows, places = graph_shape(n, used, 40, 1000)
        assert n <= rows <= 40 and used <= places <= 1000
