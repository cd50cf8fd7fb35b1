"""The decoder against transformers' Llama on small random configs: logits, loss, gradients, cache."""
import random

import pytest
import torch
import torch.nn.functional as F
from tiny_models import close, ours_of, theirs_of, transformers

from mmed.data import Example, pack
from mmed.loss import IGNORE, ChunkedCrossEntropy, summed_cross_entropy
from mmed.model import KVCache, ModelConfig, Transformer, rope, rope_frequencies
from mmed.training.distributed import checkpoint_blocks, compile_blocks
from mmed.training.loader import micro_batches


def random_pair(seed: int):
    """A random small Llama of transformers and ours with the same weights."""
    theirs = theirs_of("llama", seed)
    return theirs, ours_of(theirs.config.to_dict(), theirs.state_dict())


def random_ids(model: Transformer, *shape: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, shape)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("scaling", [
    LLAMA3, LLAMA3 | {"factor": 32.0},
    LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 512},
    YARN, YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    YARN | {"factor": 40.0, "attention_factor": 1.5},
    YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.5, "original_max_position_embeddings": 4096},
    YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}])
def test_scaled_rope_has_the_frequencies_and_the_factor_of_transformers(scaling):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, max_position_embeddings=131072,
        rope_parameters={"rope_theta": 1e6, **scaling}), "cpu")
    config = ModelConfig(head_dim=128, rope_theta=1e6, rope_scaling=scaling)
    assert torch.allclose(rope_frequencies(config, 1e6, True, torch.device("cpu")), theirs, rtol=1e-6)
    cos, _ = rope(config, torch.zeros(1, 1), False, torch.float32)
    assert cos.unique().item() == pytest.approx(factor)


@pytest.mark.parametrize("seed", range(6))
def test_loss_gradients_and_logits_equal_transformers_in_bf16_to_its_rounding(seed):
    theirs, ours = random_pair(seed + 10)
    ids = random_ids(ours, 2, 23)
    labels = torch.cat((ids[:, 1:], torch.full((2, 1), IGNORE)), 1)
    labels[0, :7] = IGNORE  # a prompt
    loss, exact = ours(ids, labels), theirs(ids).logits
    loss.backward()
    expected = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    expected.backward()
    assert torch.isclose(loss, expected, rtol=1e-5)
    own = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert close(own[name.removeprefix("model.")].grad, parameter.grad, 1e-4), name
    with torch.no_grad():
        assert close(ours(ids), exact)
        error = (theirs.bfloat16()(ids).logits.float() - exact).abs().max()
        assert (ours.bfloat16()(ids).float() - exact).abs().max() <= 1.5 * error + 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_cached_decoding_equals_the_full_forward_for_sequences_of_different_length(seed):
    _, ours = random_pair(seed + 20)
    lengths, ids = torch.tensor([5, 11, 2]), random_ids(ours, 3, 14)
    with torch.inference_mode():
        full, cache = ours(ids), KVCache(ours.config, 3, 20, torch.float32)
        first = ours(ids[:, :11], cache=cache)  # right-padded prompts: what is beyond a length is overwritten
        for row, n in enumerate(lengths):
            assert close(first[row, :n], full[row, :n])
        for step in range(3):
            at = (lengths + step)[:, None]
            assert close(ours(ids.gather(1, at), positions=at, cache=cache)[:, 0], full[range(3), at[:, 0]])
        at = torch.tensor([8, 0, 4])
        assert close(ours(ids, logits_at=at), full[range(3), at])


def test_packed_documents_do_not_see_each_other_or_padding():
    _, ours = random_pair(32)
    ids = random_ids(ours, 1, 26)
    documents = torch.tensor([[0] * 8 + [1] * 12 + [-1] * 6])
    positions = torch.cat((torch.arange(8), torch.arange(18)))[None]
    with torch.no_grad():
        packed = ours(ids, positions=positions, document_ids=documents)
        assert close(packed[:, :8], ours(ids[:, :8])) and close(packed[:, 8:20], ours(ids[:, 8:20]))
        changed = ids.clone()
        changed[0, :8], changed[0, 20:] = random_ids(ours, 8), 0
        other = ours(changed, positions=positions, document_ids=documents)
        assert torch.equal(other[:, 8:20], packed[:, 8:20]) and torch.isfinite(packed).all()  # by exactly 0


@pytest.mark.parametrize("frozen, softcap", [(False, None), (True, None), (False, 3.0)])
def test_the_chunked_loss_is_exact_also_for_certain_and_hopeless_tokens(frozen, softcap, monkeypatch):
    monkeypatch.setattr(ChunkedCrossEntropy, "ROWS", {"cpu": 70})
    torch.manual_seed(4)
    hidden = torch.randn(1, 600, 16, requires_grad=True)
    weight = (torch.randn(300, 16) * torch.logspace(-2, 1.3, 300)[:, None]).requires_grad_(not frozen)
    labels = torch.randint(0, 300, (1, 600))
    labels[0, ::7] = IGNORE
    loss = summed_cross_entropy(hidden, weight, labels, softcap)
    wanted = [hidden] if frozen else [hidden, weight]
    own = torch.autograd.grad(loss / 100, wanted)
    logits = (hidden @ weight.t())[0].double()
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    exact = F.cross_entropy(logits, labels[0], ignore_index=IGNORE, reduction="sum")
    assert abs(float((loss - exact).detach())) <= 1e-6 * float(exact.detach())
    for a, b in zip(own, torch.autograd.grad(exact / 100, wanted), strict=True):
        assert float((a - b).norm()) <= 2e-6 * float(b.norm())


def test_a_row_without_targets_gives_zero_loss_and_zero_gradients():
    _, ours = random_pair(34)
    loss = ours(torch.zeros(1, 6, dtype=torch.long), torch.full((1, 6), IGNORE))
    loss.backward()
    assert loss == 0 and all(p.grad.abs().sum() == 0 for p in ours.parameters())


def gradients(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(ids, ids), list(model.parameters())))


def test_recomputed_blocks_give_the_same_gradients_and_are_compiled_with_what_they_recompute(monkeypatch):
    _, ours = random_pair(35)
    ids, operators = random_ids(ours, 2, 12), []

    def backend(module: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        operators.extend(str(node.target) for part in module.modules() for node in part.graph.nodes)
        return module

    plain = gradients(ours, ids)
    checkpoint_blocks(ours)
    assert all(map(torch.equal, plain, gradients(ours, ids)))
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: compiler(forward, backend=backend))
    compile_blocks(ours)
    assert all(map(close, plain, gradients(ours, ids)))
    assert "tag_activation_checkpoint" in operators and any("linear" in name for name in operators)


def test_rows_laid_end_to_end_give_the_loss_and_gradients_of_padded_ones():
    rng = random.Random(6)
    rows = [
        pack([Example("k", [rng.randrange(50) for _ in range(n)], rng.randint(1, n - 1)) for n in lengths])
        for lengths in ([5, 40, 9], [70], [2, 33])]
    _, ours = random_pair(36)
    found = []
    for flat in (False, True):
        batch = micro_batches(rows, [[0, 1, 2]], torch.device("cpu"), flat)
        loss = ours(**batch.micro[0])
        found.append((loss, *torch.autograd.grad(loss / batch.targets, list(ours.parameters()))))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
