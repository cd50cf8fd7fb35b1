"""What makes training quick changes nothing else: attention by document, the loss in pieces."""
import random
import time

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from mmed.config import SHAPES
from mmed.data import Example, pack
from mmed.kernels.attention import TILE, Tiles, block_mask, document_attention, document_spans
from mmed.loss import IGNORE, summed_cross_entropy
from mmed.model import Linear, ModelConfig, Transformer
from mmed.training.loader import micro_batches


def random_documents(rng: random.Random, B: int, T: int) -> torch.Tensor:
    """Rows of documents of any length, some with padding at the end."""
    rows = []
    for _ in range(B):
        row: list[int] = []
        while len(row) < T:
            row += [len(set(row))] * rng.choice([1, 2, rng.randint(3, 40), rng.randint(40, 150)])
        end = rng.choice([T, rng.randint(T // 2, T)])
        rows.append(row[:end] + [-1] * (T - end))
    return torch.tensor(rows)


def dense(q, k, v, documents, window, scale):
    """The oracle: one softmax over everything, with a mask."""
    T = q.shape[2]
    age = torch.arange(T)[:, None] - torch.arange(T)
    visible = (age >= 0)[None, None]
    if window is not None:
        visible = visible & (age < window)
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return ((q @ k.transpose(2, 3) * scale).masked_fill(~visible, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_attention_by_document_and_its_gradients_equal_a_masked_softmax(seed, monkeypatch):
    rng = random.Random(seed + int(time.time()))
    torch.manual_seed(rng.randrange(2 ** 31))
    B, K, G, E, T = rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3), rng.choice([8, 16]), rng.choice([1, 33, TILE, 200, 3 * TILE + 5])
    documents = random_documents(rng, B, T) if rng.random() < 0.7 else None
    window = rng.choice([None, None, 1, 7, 100])
    if rng.random() < 0.3:
        monkeypatch.setattr("mmed.kernels.attention.KEEP_UP_TO", 0)  # as for long rows: probabilities are computed again
    q, k, v = (torch.randn(B, T, heads, E, dtype=torch.float64).transpose(1, 2).requires_grad_() for heads in (K * G, K, K))
    spans = document_spans(documents) if documents is not None else None
    out = document_attention(q, k, v, Tiles(spans, window, T), 0.3)
    expected = dense(q, k, v, documents, window, 0.3)
    real = (documents >= 0)[..., None, None] if documents is not None else torch.ones(B, T, 1, 1, dtype=torch.bool)
    case = f"B {B} K {K} G {G} T {T} window {window} documents {documents}"
    assert torch.allclose(out * real, expected * real, atol=1e-6), case
    grad = torch.randn_like(out) * real
    own = torch.autograd.grad(out, (q, k, v), grad)
    for a, b in zip(own, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5), case  # sums over tiles are in fp32


def test_the_gpu_mask_says_what_the_cpu_spans_say():
    rng = random.Random(3)
    documents = random_documents(rng, 2, 256)
    q, k, v = (torch.randn(2, heads, 256, 16) for heads in (4, 2, 2))
    for window in (None, 50):
        mask = block_mask(documents, window, 256, torch.device("cpu"))
        theirs = flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
        ours = document_attention(q, k, v, Tiles(document_spans(documents), window, 256), 0.3)
        real = (documents >= 0)[..., None, None]
        assert torch.allclose(theirs * real, ours * real, atol=1e-5)


def test_a_compiled_block_gives_the_gradients_of_an_eager_one():
    config = ModelConfig(vocab_size=97, **{**SHAPES["tiny"], "num_hidden_layers": 1})
    ids = torch.randint(0, 97, (2, 40))
    documents = random_documents(random.Random(1), 2, 40)
    grads = []
    for compiled in (False, True):
        model = Transformer(config).init_weights(0).train()
        if compiled:
            model.layers[0].compile(backend="aot_eager")
        model(ids, ids, documents=documents).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_the_quicker_linear_layer_has_the_gradients_of_the_plain_one(monkeypatch):
    torch.manual_seed(int(time.time()))
    layer, x = Linear(24, 40), torch.randn(2, 9, 24, requires_grad=True)
    grad, found = torch.randn(2, 9, 40), []
    for smallest in (1, 1000):
        monkeypatch.setattr(Linear, "ONEDNN_FROM", smallest)
        y = layer(x)
        assert ("onednn" in y.grad_fn.name()) == (smallest == 1 and torch.backends.mkldnn.is_available())
        found.append((y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_in_pieces_is_exact_also_for_sure_and_hopeless_rows(frozen):
    torch.manual_seed(int(time.time()))
    hidden = torch.randn(1, 600, 16, requires_grad=True)
    weight = (torch.randn(300, 16) * torch.logspace(-2, 1.3, 300)[:, None]).requires_grad_(not frozen)
    labels = torch.randint(0, 300, (1, 600))
    labels[0, ::7] = IGNORE
    loss = summed_cross_entropy(hidden, weight, labels)
    wanted = [hidden] if frozen else [hidden, weight]
    own = torch.autograd.grad(loss / 100, wanted)
    exact = F.cross_entropy((hidden @ weight.t())[0].double(), labels[0], ignore_index=IGNORE, reduction="sum")
    assert abs(float(loss - exact)) <= 1e-6 * float(exact)
    for a, b in zip(own, torch.autograd.grad(exact / 100, wanted), strict=True):
        assert float((a - b).norm()) <= 2e-6 * float(b.norm())


def test_exam_rows_end_to_end_give_the_loss_and_gradients_of_padded_ones(monkeypatch):
    """And that the last MLP leaves out what carries no loss changes neither."""
    rng = random.Random(int(time.time()))
    rows = [pack([Example("k", [rng.randrange(97) for _ in range(n)], rng.randint(1, n - 1)) for n in lengths])
            for lengths in ([5, 40, 9], [70], [2, 33])]
    model = Transformer(ModelConfig(vocab_size=97, **{**SHAPES["tiny"], "num_hidden_layers": 2})).init_weights(0).train()
    found = []
    for flat, narrow in ((False, 0), (True, 0), (True, 1), (False, 1)):
        monkeypatch.setattr("mmed.model.NARROW", narrow)
        batch = micro_batches(rows, [[0, 1, 2]], torch.device("cpu"), flat)
        loss = model(**batch.micro[0])
        found.append((batch.targets, loss.detach(), *torch.autograd.grad(loss / batch.targets, list(model.parameters()))))
        assert batch.positions == (192 if flat else 3 * 128)  # 154 tokens
    for other in found[1:]:
        assert other[0] == found[0][0] and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1:], other[1:], strict=True))
