"""Causal attention for training: rows of packed documents in, each token seeing its own document only; a CPU and a GPU way.

    row        <s> Q Q Q R R R  <s> Q R R  <s> Q Q R  · ·        three documents and padding
    spans      └────── 0 ─────┘ └── 1 ───┘ └── 2 ──┘             (row, begin, end) of each; padding belongs to none

On a CPU (`document_attention`) documents of about one length are laid side by side, and the softmax is written out TILE
queries at a time against the keys up to the tile's end: work grows with the length of the documents and not of the rows,
and the backward pass runs at the speed of matrix products (that of `scaled_dot_product_attention` runs at a fifth of it).
On a GPU (`block_mask`) FlexAttention skips the blocks in which no document is shared (arXiv 2412.05496).

Legend: B rows, T tokens of a row, H query heads, K key/value heads, G = H / K, E head size, N pieces computed together.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 64        # queries at a time: their scores stay in the cache of one core
ROUND = 32       # documents whose lengths round up to the same multiple of this are computed together
KEEP_UP_TO = 1024  # rows up to this length keep their probabilities for the backward pass; longer ones compute them again


@dataclass
class Tiles:
    """How to attend on a CPU: which documents there are (None: each row is one), and how far back a query sees."""

    spans: Tensor | None     # (documents, 3) int64: row, begin, end
    window: int | None       # a query sees itself and the window - 1 keys before it


def document_spans(documents: Tensor) -> Tensor:
    """(row, begin, end) of every run of equal numbers in `documents` (B, T); negative numbers are padding and left out.

    >>> document_spans(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [[0, 0, 2], [0, 2, 3], [1, 0, 4]]
    """
    B = len(documents)
    edge = documents.new_full((B, 1), -2)
    begins = (documents != torch.cat((edge, documents[:, :-1]), 1)).nonzero()
    ends = (documents != torch.cat((documents[:, 1:], edge), 1)).nonzero()
    spans = torch.cat((begins, ends[:, 1:] + 1), 1)
    return spans[documents[begins[:, 0], begins[:, 1]] >= 0]


# ------------------------------------------------------------------------------------------------------------------- CPU

def _groups(spans: Tensor | None, T: int) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
    """(length L, places of its tokens in the flat rows (N, L), which of them are real); all rows as they are, without spans.

    Documents are padded on the right to the longest of their group. No query sees the padding, which is in its future.
    """
    if spans is None:
        yield T, None, None
        return
    lengths = spans[:, 2] - spans[:, 1]
    rounded = (lengths + ROUND - 1) // ROUND
    for size in rounded.unique().tolist():
        chosen = rounded == size
        n, begin = lengths[chosen], (spans[:, 0] * T + spans[:, 1])[chosen]
        L = int(n.max())
        at = torch.arange(L)
        yield L, begin[:, None] + torch.minimum(at, n[:, None] - 1), at < n[:, None]


def _take(x: Tensor, places: Tensor | None) -> Tensor:
    """(B, heads, T, E) -> (N, heads, L, E): the documents of a group."""
    if places is None:
        return x
    return x.transpose(1, 2).flatten(0, 1)[places].transpose(1, 2)


def _put(out: Tensor, x: Tensor, places: Tensor, real: Tensor) -> None:
    """The reverse of `_take`: write the real tokens of x (N, heads, L, E) to their places in out (B, T, heads, E)."""
    out.flatten(0, 1)[places[real]] = x.transpose(1, 2)[real]


def _probabilities(q: Tensor, k: Tensor, window: int | None, scale: float, out: Tensor | None = None) -> Tensor:
    """softmax of queries (N, G, t, E) against keys (N, S, E) that end with the last query's: (N, G * t, S)."""
    N, G, t, _ = q.shape
    S = k.shape[1]
    scores = torch.bmm(q.reshape(N, G * t, -1), k.transpose(1, 2)).mul_(scale)
    view = scores.view(N, G, t, S)
    view[..., S - t:].masked_fill_(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
    if window is not None:
        age = torch.arange(S - t, S)[:, None] - torch.arange(S)
        view.masked_fill_(age >= window, -torch.inf)
    return scores.softmax(-1) if out is None else torch.softmax(scores, -1, out=out.view_as(scores))


def _tiles(L: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries and keys, first key) of each tile."""
    for begin in range(0, L, TILE):
        yield begin, min(begin + TILE, L), 0 if window is None else max(0, begin - window + 1)


def kept_size(B: int, H: int, T: int) -> int:
    """Elements of the buffer for probabilities: one causal row of T, which no packing of documents into it exceeds by much."""
    return B * H * sum((end - begin) * end for begin, end, _ in _tiles(T, None)) if T <= KEEP_UP_TO else 0


@torch.library.custom_op("mmed::document_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor | None, window: int | None, scale: float) -> tuple[Tensor, Tensor]:
    """(what is attended to (B, T, H, E), probabilities of the tiles one after the other)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    out = q.new_empty(B, T, H, E) if spans is None else q.new_zeros(B, T, H, E)
    kept = q.new_empty(kept_size(B, H, T))
    used = 0
    for L, places, real in _groups(spans, T):
        gq = _take(q, places).reshape(-1, H // K, L, E)              # (N K, G, L, E)
        gk, gv = _take(k, places).reshape(-1, L, E), _take(v, places).reshape(-1, L, E)
        result = torch.empty_like(gq) if real is not None else None
        for begin, end, first in _tiles(L, window):
            size = gq.shape[0] * (H // K) * (end - begin) * (end - first)
            room = kept[used:used + size] if used + size <= kept.numel() else None
            used += size if room is not None else 0
            p = _probabilities(gq[:, :, begin:end], gk[:, first:end], window, scale, room)
            piece = torch.bmm(p, gv[:, first:end]).view(-1, H // K, end - begin, E)
            if result is None:
                out[:, begin:end] = piece.view(B, H, end - begin, E).transpose(1, 2)
            else:
                result[:, :, begin:end] = piece
        if result is not None:
            _put(out, result.view(-1, H, L, E), places, real)
    return out, kept


@torch.library.custom_op("mmed::document_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor | None, window: int | None,
                        scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (B, T, heads, E), from that of the output (B, T, H, E)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    grads = [x.new_empty(B, T, x.shape[1], E) if spans is None else x.new_zeros(B, T, x.shape[1], E) for x in (q, k, v)]
    used = 0
    for L, places, real in _groups(spans, T):
        gq, gd = (_take(x, places).reshape(-1, H // K, L, E) for x in (q, grad.transpose(1, 2)))
        gk, gv = _take(k, places).reshape(-1, L, E), _take(v, places).reshape(-1, L, E)
        if real is not None:  # padding asks nothing of the keys before it
            gd = gd.view(-1, H, L, E).masked_fill(~real[:, None, :, None], 0).view(-1, H // K, L, E)
        dq, dk, dv = torch.empty_like(gq), gk.new_zeros(gk.shape, dtype=torch.float32), gv.new_zeros(gv.shape, dtype=torch.float32)
        for begin, end, first in _tiles(L, window):
            rows = (H // K) * (end - begin)
            size = gq.shape[0] * rows * (end - first)
            if used + size <= kept.numel():
                p = kept[used:used + size].view(-1, rows, end - first)
                used += size
            else:
                p = _probabilities(gq[:, :, begin:end], gk[:, first:end], window, scale)
            tq, td = gq[:, :, begin:end].reshape(-1, rows, E), gd[:, :, begin:end].reshape(-1, rows, E)
            dv[:, first:end] += torch.bmm(p.transpose(1, 2), td)
            dp = torch.bmm(td, gv[:, first:end].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            dq[:, :, begin:end] = torch.bmm(ds, gk[:, first:end]).view(-1, H // K, end - begin, E)
            dk[:, first:end] += torch.bmm(ds.transpose(1, 2), tq)
        for out, x in zip(grads, (dq.view(-1, H, L, E), dk.view(-1, K, L, E), dv.view(-1, K, L, E)), strict=True):
            if places is None:
                out.copy_(x.transpose(1, 2))
            else:
                _put(out, x.to(out.dtype), places, real)
    return grads[0], grads[1], grads[2]


@_attention.register_fake
def _(q, k, v, spans, window, scale):
    B, H, T, E = q.shape
    return q.new_empty(B, T, H, E), q.new_empty(kept_size(B, H, T))


@_attention_backward.register_fake
def _(grad, q, k, v, kept, spans, window, scale):
    B, _, T, E = q.shape
    return tuple(x.new_empty(B, T, x.shape[1], E) for x in (q, k, v))


def _setup(ctx, inputs, output):
    q, k, v, ctx.spans, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, output[1])


def _backward(ctx, grad, _):
    q, k, v, kept = ctx.saved_tensors
    dq, dk, dv = _attention_backward(grad, q, k, v, kept, ctx.spans, ctx.window, ctx.scale)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None, None


_attention.register_autograd(_backward, setup_context=_setup)


def document_attention(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """softmax(q kT * scale) v within documents, on a CPU. q (B, H, T, E), k and v (B, K, T, E) -> (B, T, H, E)."""
    return _attention(q, k, v, tiles.spans, tiles.window, scale)[0]


# ------------------------------------------------------------------------------------------------------------------- GPU

def block_mask(documents: Tensor | None, window: int | None, T: int, device: torch.device):
    """FlexAttention's mask of the same rule: which blocks of 128 x 128 to compute, and the rule inside them."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b, h, query, key):
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        return seen if documents is None else seen & (documents[b, query] == documents[b, key])

    return create_block_mask(visible, documents.shape[0] if documents is not None else None, None, T, T, device=device)


_COMPILED: list = []


def flex(q: Tensor, k: Tensor, v: Tensor, mask, scale: float) -> Tensor:
    """FlexAttention, which is only quick when compiled: with its block, or else by itself. -> (B, T, H, E)."""
    from torch.nn.attention.flex_attention import flex_attention

    call = flex_attention
    if not torch.compiler.is_compiling():
        if not _COMPILED:
            _COMPILED.append(torch.compile(flex_attention, dynamic=False))
        call = _COMPILED[0]
    return call(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)
