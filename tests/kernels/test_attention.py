"""The fast attention kernels against the model's plain path: a dense mask."""
import random

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from mmed.config import SHAPES
from mmed.kernels.attention import TILE, block_mask, document_attention, fast_mask
from mmed.model import ModelConfig, Transformer, attend, dense_mask


def random_documents(rng: random.Random, B: int, T: int) -> torch.Tensor:
    """(B, T) numbers of documents of any length; some rows end with padding (-1)."""
    rows = []
    for _ in range(B):
        row: list[int] = []
        while len(row) < T:
            row += [len(set(row))] * rng.choice([1, 2, rng.randint(3, 40), rng.randint(40, 150)])
        end = rng.choice([T, rng.randint(T // 2, T)])
        rows.append(row[:end] + [-1] * (T - end))
    return torch.tensor(rows)


def plain(q, k, v, documents, window, scale):
    """The oracle, by the model's own dense path."""
    index = torch.arange(q.shape[2])
    config = ModelConfig(sliding_window=window)
    same = None if documents is None else documents[:, None, :, None] == documents[:, None, None, :]
    return attend(q, k, v, dense_mask(config, index[None], index, window, q.dtype, same), scale)


@pytest.mark.parametrize("seed", range(10))
def test_document_attention_and_its_gradients_equal_dense_attention(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    B, K, G, E = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3), rng.choice([8, 16])
    T = rng.choice([1, 33, TILE, 200, 2 * TILE + 5])
    documents = random_documents(rng, B, T) if rng.random() < 0.7 else None
    window = rng.choice([None, None, 1, 7, 100])
    q, k, v = (torch.randn(B, T, heads, E, dtype=torch.float64).transpose(1, 2).requires_grad_()
               for heads in (K * G, K, K))
    out = fast_mask(documents, B, T, window, q.device).attend(q, k, v, 0.3)
    expected = plain(q, k, v, documents, window, 0.3)
    real = torch.ones(B, T, 1, 1) if documents is None else (documents >= 0)[..., None, None].double()
    case = f"B {B} K {K} G {G} T {T} window {window} documents {documents}"
    assert torch.allclose(out * real, expected * real, atol=1e-6), case
    grad = torch.randn_like(out) * real
    ours, theirs = torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5), case  # sums over tiles are in fp32


@pytest.mark.parametrize("window", [None, 50])
def test_the_block_mask_of_a_gpu_equals_the_documents_of_a_cpu(window):
    documents = random_documents(random.Random(3), 2, 256)
    q, k, v = (torch.randn(2, heads, 256, 16) for heads in (4, 2, 2))
    mask = block_mask(documents, window, 256, torch.device("cpu"))
    theirs = flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    ours = fast_mask(documents, 2, 256, window, q.device).attend(q, k, v, 0.3)
    real = (documents >= 0)[..., None, None]
    assert torch.allclose(theirs * real, ours * real, atol=1e-5)


def test_the_operators_meet_the_requirements_of_torch_compile():
    q, k, v = (torch.randn(1, heads, 40, 8, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(document_attention, (q, k, v, torch.tensor([[0, 0, 40]]), None, 0.3))


def test_a_model_gives_the_same_loss_and_gradients_compiled_and_with_or_without_fast_kernels(monkeypatch):
    config = ModelConfig(vocab_size=97, **{**SHAPES["tiny"], "num_hidden_layers": 1})
    ids = torch.randint(0, 97, (2, 40))
    documents = random_documents(random.Random(1), 2, 40)
    labels = torch.where(documents < 0, -100, ids)
    found = []
    for fast, compiled in ((False, False), (True, False), (True, True)):
        model = Transformer(config).init_weights(0).train()
        if not fast:
            monkeypatch.setattr("mmed.model.fast_mask", lambda *_: None)
        if compiled:
            model.layers[0].compile(backend="aot_eager")
        loss = model(ids, labels, document_ids=documents)
        monkeypatch.undo()
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0], other, strict=True))
