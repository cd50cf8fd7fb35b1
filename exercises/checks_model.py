"""The checks of exercises 5, 6 and 8 to 12: model, training, decoding, sharding; small, on one CPU thread."""
from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from student import Student, Wrong, compare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmed.config import TrainConfig
from mmed.generate import generate
from mmed.kernels.attention import document_attention, document_spans
from mmed.lora import LoRALinear
from mmed.loss import ChunkedCrossEntropy
from mmed.model import ModelConfig, RMSNorm, Transformer, rope_frequencies, rotate
from mmed.train import learning_rate


def norm_and_rope(student: Student, rng: random.Random) -> None:
    """Oracles: the project's RMSNorm and rotation; products of rotated vectors depend on their distance."""
    for shape in ((3, 8), (2, 5, 16), (4,)):
        x, eps = torch.randn(shape) * rng.choice([0.01, 1.0, 30.0]), rng.choice([1e-6, 1e-5])
        norm = RMSNorm(shape[-1], eps)
        torch.nn.init.normal_(norm.weight)
        student.expect(norm(x).detach(), "rms_norm", x, norm.weight.detach(), eps)
    for _ in range(5):
        E, T, theta = rng.choice([4, 8, 16]), rng.randint(1, 9), rng.choice([100.0, 10000.0])
        x, positions = torch.randn(T, E), torch.randint(0, 50, (T,))
        angles = positions[:, None].float() * rope_frequencies(ModelConfig(head_dim=E), theta, False,
                                                               torch.device("cpu"))
        angles = torch.cat((angles, angles), -1)
        student.expect(rotate(x, angles.cos(), angles.sin()), "rope", x, positions, theta, tolerance=1e-4)
    q, k = torch.randn(2, 1, 8)
    products = [student.call("rope", q, torch.tensor([p + 3]), 100.0)
                * student.call("rope", k, torch.tensor([p]), 100.0) for p in (0, 11)]
    compare(float(products[1].sum()), float(products[0].sum()),
            "the product of a query 3 places behind a key, moved by 11 places,", 1e-3)


def attention(student: Student, rng: random.Random) -> None:
    """Oracles: torch's attention with a mask, and the project's document_attention."""
    for _ in range(8):
        K, G, E = rng.choice([1, 2]), rng.choice([1, 2, 3]), 4
        lengths = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]
        documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        T = len(documents)
        q, k, v = torch.randn(K * G, T, E), torch.randn(K, T, E), torch.randn(K, T, E)
        mask = torch.ones(T, T, dtype=torch.bool).tril() & (documents[:, None] == documents)
        wanted = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)[0]
        own = document_attention(q[None], k[None], v[None], document_spans(documents[None]), None,
                                 E**-0.5)[0].transpose(0, 1)
        assert torch.allclose(wanted, own, atol=1e-5)
        student.expect(wanted, "attention", q, k, v, documents,
                       shown=f"q of {K * G} heads, k and v of {K}, documents {documents.tolist()}")


def lora(student: Student, rng: random.Random) -> None:
    """Oracle: the project's LoRALinear, before and after merging."""
    for _ in range(5):
        out, inside, rank = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 4)
        alpha = rng.choice([1.0, 16.0, 32.0])
        layer = LoRALinear(torch.nn.Linear(inside, out, bias=False), rank, alpha, 0.0)
        torch.nn.init.normal_(layer.lora_A)
        torch.nn.init.normal_(layer.lora_B)
        W, A, B = (w.detach().clone() for w in (layer.weight, layer.lora_A, layer.lora_B))
        x, kept = torch.randn(3, inside), W.clone()
        student.expect(layer(x).detach(), "lora_forward", x, W, A, B, alpha)
        student.expect(layer.merged().weight.detach(), "lora_merge", W, A, B, alpha)
        compare(W, kept, "W after your lora_merge, which must leave it as it was,", 0.0)


class Largest(TorchDispatchMode):
    """The shape of the largest tensor that anything in the block made."""

    def __init__(self):
        super().__init__()
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() > math.prod(self.shape):
                self.shape = tuple(tensor.shape)
        return result


def chunked_loss(student: Student, rng: random.Random) -> None:
    """Oracle: autograd through torch's cross-entropy, in fp64."""
    N, D, V = 40, 3, 30
    for rows in (7, 1, N):
        hidden, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
        labels = torch.randint(0, V, (N,))
        labels[torch.rand(N) < 0.3] = -100
        ours, theirs = (tuple(w.clone().requires_grad_() for w in (hidden, weight)) for _ in range(2))
        loss = F.cross_entropy(ours[0] @ ours[1].T, labels, ignore_index=-100, reduction="sum")
        loss.backward()
        keep = labels >= 0
        own = ChunkedCrossEntropy.apply(theirs[0][keep], theirs[1], labels[keep], None)
        assert torch.allclose(own.double(), loss, rtol=1e-4)
        shown = f"hidden of {N} tokens, a vocabulary of {V}, {int((~keep).sum())} labels of -100, rows {rows}"
        with Largest() as largest:
            student.expect((float(loss.detach()), ours[0].grad, ours[1].grad), "loss_and_gradients", hidden,
                           weight, labels, rows, shown=shown)
        if math.prod(largest.shape) > max(rows * V, V * D, N * D):
            raise Wrong(f"your loss_and_gradients({shown}) is right, but holds a tensor of shape "
                        f"{largest.shape}; no more than {rows} x {V} logits are allowed")


def adamw(student: Student, rng: random.Random) -> None:
    """Oracles: the project's schedule; torch's AdamW over several steps."""
    for _ in range(4):
        steps, peak, ratio = rng.randint(1, 60), rng.choice([1e-5, 2e-3]), rng.choice([0.0, 0.03, 0.1])
        config = TrainConfig(learning_rate=peak, warmup_ratio=ratio, min_lr_ratio=0.0, schedule="cosine")
        for step in {0, 1, steps // 2, steps - 1}:
            wanted = learning_rate(config, step, steps)
            got = student.call("learning_rate", step, steps, peak, ratio)
            compare(float(got) / peak, wanted / peak,
                    f"your learning_rate({step}, {steps}, {peak}, {ratio}), as a share of the peak,", 1e-5)
    lr, beta2, decay = rng.choice([1e-2, 1e-3]), rng.choice([0.95, 0.999]), rng.choice([0.0, 0.1])
    p = torch.randn(5)
    theirs = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([theirs], lr=lr, betas=(0.9, beta2), eps=1e-8, weight_decay=decay)
    m = v = torch.zeros(5)
    for t in range(1, 5):
        g = torch.randn(5)
        theirs.grad = g.clone()
        optimizer.step()
        state = optimizer.state[theirs]
        wanted = (theirs.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone())
        kept = [x.clone() for x in (p, g, m, v)]
        arguments = (p, g, m, v, t, lr, beta2, decay)
        got = student.expect(wanted, "adamw_step", *arguments, tolerance=1e-6,
                             shown=f"p, g, m, v, {t}, {lr}, {beta2}, {decay}")
        for name, now, before in zip("pgmv", (p, g, m, v), kept):
            compare(now, before,
                    f"{name} after your adamw_step, which must leave its arguments as they were,", 0.0)
        p, m, v = got


def refill(student: Student, rng: random.Random) -> None:
    """Oracles: each prompt by itself, for the texts; batches that stay full, for the number of calls; the
    project's generate, with a real model."""
    for _ in range(6):
        max_batch_size, limit, salt = rng.randint(1, 4), rng.randint(2, 9), rng.randrange(1000)
        prompts = [[rng.randrange(1, 9) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 9))]

        def following(ids: list[int], salt: int = salt) -> int:
            return random.Random(f"{salt} {ids}").choice([0, 1, 2, 3, 4, 5])

        alone, costs = [], []
        for prompt in prompts:
            new: list[int] = []
            while len(new) < limit and (token := following(prompt + new)):
                new.append(token)
            alone.append(new)
            costs.append(min(limit, len(new) + 1))
        calls = 0

        def step(sequences: list[list[int]], most: int = max_batch_size, following=following) -> list[int]:
            nonlocal calls
            calls += 1
            if not 0 < len(sequences) <= most:
                raise Wrong(f"your decode gave the model {len(sequences)} sequences at once; it takes {most}")
            if calls > 500:
                raise Wrong("your decode calls the model without end: look at how a sequence is done")
            return [following(ids) for ids in sequences]

        free = [0] * max_batch_size
        for cost in costs:
            at = free.index(min(free))
            free[at] += cost
        student.expect(alone, "decode", step, prompts, max_batch_size, 0, limit,
                       shown=f"step, {prompts}, max_batch_size {max_batch_size}, end 0, limit {limit}")
        if calls > max(free):
            raise Wrong(f"your texts are right, but answers of {costs} tokens took {calls} calls in batches "
                        f"of {max_batch_size}; {max(free)} are enough if the batch stays full")
    shape = ModelConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2, head_dim=8, initializer_range=0.3)
    model = Transformer(shape).init_weights(rng.randrange(100)).eval()
    prompts = [[rng.randrange(40) for _ in range(rng.randint(1, 5))] for _ in range(5)]

    def model_step(sequences: list[list[int]]) -> list[int]:
        with torch.no_grad():
            return [int(model(torch.tensor([ids]))[0, -1].argmax()) for ids in sequences]

    student.expect(generate(model, prompts, 6, end_ids=[0]), "decode", model_step, prompts, 2, 0, 6,
                   shown="a small model, five prompts")


def shard(student: Student, rng: random.Random) -> None:
    """Oracle: autograd through the whole layer. Two threads are the ranks; collectives exchange values."""
    world, inside, out, B = 2, rng.randint(2, 5), 2 * rng.randint(1, 4), rng.randint(1, 4)
    W = torch.randn(out, inside, requires_grad=True)
    xs = [torch.randn(B, inside, requires_grad=True) for _ in range(world)]
    grads = [torch.randn(B, out) for _ in range(world)]
    ys = [x @ W.T for x in xs]
    sum((y * g).sum() for y, g in zip(ys, grads)).backward()
    barrier, given = threading.Barrier(world, timeout=10), [torch.empty(0)] * world

    def exchange(rank: int, tensor: Tensor) -> list[Tensor]:
        given[rank] = tensor.detach().clone()
        barrier.wait()
        everything = list(given)
        barrier.wait()
        return everything

    def one_rank(rank: int) -> None:
        rows = slice(rank * out // world, (rank + 1) * out // world)

        def all_gather(part: Tensor) -> Tensor:
            return torch.cat(exchange(rank, part))

        def reduce_scatter(whole: Tensor) -> Tensor:
            if len(whole) != out:
                raise Wrong(f"your backward gave reduce_scatter a tensor of {len(whole)} rows; the whole "
                            f"weight has {out}")
            return sum(exchange(rank, whole))[rows]

        y, kept = student.call("forward", xs[rank].detach(), W.detach()[rows].clone(), all_gather,
                               shown=f"x, own rows of rank {rank}, all_gather")
        compare(y, ys[rank].detach(), f"y of rank {rank}", 1e-5)
        for tensor in kept:
            if isinstance(tensor, Tensor) and tensor.shape == W.shape and tensor.shape != xs[rank].shape:
                raise Wrong(f"your forward keeps the whole weight {tuple(W.shape)} for the backward pass; "
                            "keep your own rows and gather it again")
        grad_x, grad_own = student.call("backward", grads[rank], kept, all_gather, reduce_scatter,
                                        shown="grad_y, kept, all_gather, reduce_scatter")
        compare(grad_x, xs[rank].grad, f"the gradient of x on rank {rank}", 1e-5)
        compare(grad_own, W.grad[rows], f"the gradient of rank {rank}'s own rows", 1e-5)

    with ThreadPoolExecutor(world) as pool:
        problems = [done.exception() for done in [pool.submit(one_rank, rank) for rank in range(world)]]
    for problem in problems:
        if isinstance(problem, Wrong):
            raise problem
    if any(problems):
        raise Wrong(f"a rank stopped: {next(filter(None, problems))!r}")


CHECKS: dict[int, Callable[[Student, random.Random], None]] = {
    5: norm_and_rope, 6: attention, 8: lora, 9: chunked_loss, 10: adamw, 11: refill, 12: shard}
