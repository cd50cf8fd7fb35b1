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
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

TILE = 64        # queries at a time (twice as many in long documents): their scores stay in the cache of one core
CACHE = 1 << 19  # bytes of a tile's scores: more documents than that are not computed together
ROUND = 32       # documents whose lengths round up to the same multiple of this are computed together
KEEP_UP_TO = 1024  # documents up to this length keep their probabilities for the backward pass; rows with a longer one compute them again


@dataclass
class Tiles:
    """How to attend on a CPU: which documents there are (None: each row is one), and how far back a query sees."""

    spans: Tensor | None     # (documents, 3) int64: row, begin, end
    window: int | None       # a query sees itself and the window - 1 keys before it
    longest: int             # no document is longer


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


def document_tiles(documents: Tensor | None, T: int) -> Tiles:
    """`Tiles` of rows of T tokens of which `documents` (B, T) tells the borders; None: each row is one."""
    if documents is None:
        return Tiles(None, None, T)
    spans = document_spans(documents)
    longest = int((spans[:, 2] - spans[:, 1]).amax()) if len(spans) else 1
    return Tiles(spans, None, min(T, -(-longest // ROUND) * ROUND))


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


def _take(x: Tensor, places: Tensor | None, rows: slice) -> Tensor:
    """(B, heads, T, E) -> (N, heads, L, E): the documents of a part."""
    if places is None:
        return x[rows]
    return x.transpose(1, 2).flatten(0, 1)[places].transpose(1, 2)


def _put(out: Tensor, x: Tensor, places: Tensor | None, real: Tensor | None, rows: slice) -> None:
    """The reverse of `_take`: write the real tokens of x (N, heads, L, E) to their places in out (B, T, heads, E)."""
    if places is None:
        out[rows] = x.transpose(1, 2)
    else:
        out.flatten(0, 1)[places[real]] = x.transpose(1, 2)[real].to(out.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a bT of (N, t, E) and part of the rows of a tensor (N, S, E): bmm by itself would copy such a part element by element."""
    return torch.bmm(a, b.contiguous().transpose(1, 2))


def _probabilities(q: Tensor, k: Tensor, window: int | None, out: Tensor | None = None) -> Tensor:
    """softmax of scaled queries (N, G, t, E) against keys (N, S, E) that end with the last query's: (N, G * t, S)."""
    N, G, t, _ = q.shape
    S = k.shape[1]
    scores = _product(q.reshape(N, G * t, -1), k)
    view = scores.view(N, G, t, S)
    view[..., S - t:] += torch.full((t, t), -torch.inf, dtype=q.dtype).triu(1)
    if window is not None:
        age = torch.arange(S - t, S)[:, None] - torch.arange(S)
        view.masked_fill_(age >= window, -torch.inf)
    return scores.softmax(-1) if out is None else torch.softmax(scores, -1, out=out.view_as(scores))


def _tiles(L: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries and keys, first key) of each tile."""
    for begin in range(0, L, tile_size(L)):
        yield begin, min(begin + tile_size(L), L), 0 if window is None else max(0, begin - window + 1)


def tile_size(L: int) -> int:
    """Queries of a tile in documents of length L."""
    return TILE if L < 8 * TILE else 2 * TILE


def kept_size(B: int, H: int, T: int, longest: int) -> int:
    """Elements of the buffer for probabilities: enough for rows full of documents of length `longest`, or none."""
    return B * H * T * (longest + tile_size(longest)) // 2 if longest <= KEEP_UP_TO else 0


def _parts(spans: Tensor | None, B: int, T: int, heads: int, bytes_each: int) -> Iterator[tuple[int, Tensor | None, Tensor | None, slice]]:
    """What `_groups` gives, in parts whose scores of a tile stay in the cache: (L, places, which are real, rows without spans)."""
    for L, places, real in _groups(spans, T):
        n = max(1, CACHE // (heads * min(L, 2 * TILE) * L * bytes_each))
        count = B if places is None else len(places)
        for start in range(0, count, n):
            rows = slice(start, start + n)
            yield L, None if places is None else places[rows], None if real is None else real[rows], rows


@torch.library.custom_op("mmed::document_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor | None, window: int | None, longest: int,
               scale: float) -> tuple[Tensor, Tensor]:
    """(what is attended to (B, T, H, E), probabilities of the tiles one after the other)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    out = q.new_empty(B, T, H, E) if spans is None else q.new_zeros(B, T, H, E)
    kept = q.new_empty(kept_size(B, H, T, longest))
    used = 0
    for L, places, real, rows in _parts(spans, B, T, H, q.element_size()):
        gq = _take(q, places, rows).reshape(-1, H // K, L, E) * scale      # (N K, G, L, E)
        gk, gv = _take(k, places, rows).reshape(-1, L, E), _take(v, places, rows).reshape(-1, L, E)
        result = torch.empty_like(gq)
        for begin, end, first in _tiles(L, window):
            size = gq.shape[0] * (H // K) * (end - begin) * (end - first)
            room = kept[used:used + size] if used + size <= kept.numel() else None
            used += size if room is not None else 0
            p = _probabilities(gq[:, :, begin:end], gk[:, first:end], window, room)
            result[:, :, begin:end] = torch.bmm(p, gv[:, first:end]).view(-1, H // K, end - begin, E)
        _put(out, result.view(-1, H, L, E), places, real, rows)
    return out, kept


@torch.library.custom_op("mmed::document_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor | None, window: int | None,
                        scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (B, T, heads, E), from that of the output (B, T, H, E)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    grads = [x.new_empty(B, T, x.shape[1], E) if spans is None else x.new_zeros(B, T, x.shape[1], E) for x in (q, k, v)]
    used = 0
    for L, places, real, rows in _parts(spans, B, T, H, q.element_size()):
        gq, gd = (_take(x, places, rows).reshape(-1, H // K, L, E) for x in (q, grad.transpose(1, 2)))
        gq = gq * scale
        gk, gv = _take(k, places, rows).reshape(-1, L, E), _take(v, places, rows).reshape(-1, L, E)
        if real is not None:  # padding asks nothing of the keys before it
            gd = gd.view(-1, H, L, E).masked_fill(~real[:, None, :, None], 0).view(-1, H // K, L, E)
        dq, dk, dv = torch.empty_like(gq), gk.new_zeros(gk.shape, dtype=torch.float32), gv.new_zeros(gv.shape, dtype=torch.float32)
        for begin, end, first in _tiles(L, window):
            wide = (H // K) * (end - begin)
            size = gq.shape[0] * wide * (end - first)
            if used + size <= kept.numel():
                p = kept[used:used + size].view(-1, wide, end - first)
                used += size
            else:
                p = _probabilities(gq[:, :, begin:end], gk[:, first:end], window)
            tq, td = gq[:, :, begin:end].reshape(-1, wide, E), gd[:, :, begin:end].reshape(-1, wide, E)
            dv[:, first:end] += torch.bmm(p.transpose(1, 2), td)
            ds = torch._softmax_backward_data(_product(td, gv[:, first:end]), p, -1, p.dtype)  # of the scaled scores
            dq[:, :, begin:end] = torch.bmm(ds, gk[:, first:end]).view(-1, H // K, end - begin, E)
            dk[:, first:end] += torch.bmm(ds.transpose(1, 2), tq)
        dq *= scale
        for out, x in zip(grads, (dq.view(-1, H, L, E), dk.view(-1, K, L, E), dv.view(-1, K, L, E)), strict=True):
            _put(out, x, places, real, rows)
    return grads[0], grads[1], grads[2]


@_attention.register_fake
def _(q, k, v, spans, window, longest, scale):
    B, H, T, E = q.shape
    return q.new_empty(B, T, H, E), q.new_empty(kept_size(B, H, T, longest))


@_attention_backward.register_fake
def _(grad, q, k, v, kept, spans, window, scale):
    B, _, T, E = q.shape
    return tuple(x.new_empty(B, T, x.shape[1], E) for x in (q, k, v))


def _setup(ctx, inputs, output):
    q, k, v, ctx.spans, ctx.window, _, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, output[1])


def _backward(ctx, grad, _):
    q, k, v, kept = ctx.saved_tensors
    dq, dk, dv = _attention_backward(grad, q, k, v, kept, ctx.spans, ctx.window, ctx.scale)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None, None, None


_attention.register_autograd(_backward, setup_context=_setup)


def document_attention(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """softmax(q kT * scale) v within documents, on a CPU. q (B, H, T, E), k and v (B, K, T, E) -> (B, T, H, E)."""
    return _attention(q, k, v, tiles.spans, tiles.window, tiles.longest, scale)[0]


# ------------------------------------------------------------------------------------------------------------------- GPU

def block_mask(documents: Tensor | None, window: int | None, T: int, device: torch.device):
    """FlexAttention's mask of the same rule: which blocks of 128 x 128 to compute, and the rule inside them."""
    def visible(b, h, query, key):
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        return seen if documents is None else seen & (documents[b, query] == documents[b, key])

    return create_block_mask(visible, documents.shape[0] if documents is not None else None, None, T, T, device=device)


_COMPILED: list = []


def flex(q: Tensor, k: Tensor, v: Tensor, mask, scale: float) -> Tensor:
    """FlexAttention, which is only quick when compiled: with its block, or else by itself. -> (B, T, H, E)."""
    call = flex_attention
    if not torch.compiler.is_compiling():
        if not _COMPILED:
            _COMPILED.append(torch.compile(flex_attention, dynamic=False))
        call = _COMPILED[0]
    return call(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)
