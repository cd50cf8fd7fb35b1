"""Fast attention for training: causal, within documents only. mmed/model.py has the plain form, its oracle.

    row     <s> Q Q Q R R R  <s> Q R R  <s> Q Q R  · ·      three documents and padding
    spans   └────── 0 ─────┘ └── 1 ───┘ └── 2 ──┘           (row, begin, end) of each; padding belongs to none

`fast_mask` describes the documents; `mask.attend(q, k, v, scale)` computes softmax(q kT * scale) v.
    CPU   Documents of similar length are computed together. The softmax of TILE queries at a time is
          written out, and recomputed in the backward pass: at the speed of matrix products, which takes
          half as long as `scaled_dot_product_attention`.
    GPU   FlexAttention skips blocks in which no two tokens share a document (arXiv 2412.05496).

Legend: B rows, T tokens of a row, H query heads, K key/value heads, G = H / K, E head size, N documents of a
group, L their padded length, S keys that a tile sees.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

TILE = 128             # queries whose scores exist at one time
CACHE_BYTES = 1 << 19  # for the scores of one tile: a group holds no more documents than fit
ROUND = 32             # documents whose lengths round up to the same multiple of this form a group


def fast_mask(document_ids: Tensor | None, batch: int, length: int, window: int | None,
              device: torch.device) -> FastMask | None:
    """The mask of rows with these documents (B, T), or None where plain causal attention is as fast.

    document_ids  negative numbers are padding; None: each row is one document
    window        a query sees itself and the window - 1 keys before it
    """
    if device.type == "cpu":
        rows = torch.arange(batch)
        spans = torch.stack((rows, 0 * rows, 0 * rows + length), 1)
        if document_ids is not None:
            spans = document_spans(document_ids)
        spans = F.pad(spans, (0, 0, 0, 2))  # two of no tokens: torch.compile would compile 0 and 1 anew
        torch._dynamo.maybe_mark_dynamic(spans, 0)
        return DocumentMask(spans, window)
    if device.type == "cuda" and (document_ids is not None or window is not None):
        return FlexMask(block_mask(document_ids, window, length, device))
    return None


def document_spans(document_ids: Tensor) -> Tensor:
    """(row, begin, end) of every run of equal numbers in `document_ids` (B, T), without negative numbers.

    >>> document_spans(torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])).tolist()
    [[0, 0, 2], [0, 2, 3], [1, 0, 4]]
    """
    edge = document_ids.new_full((len(document_ids), 1), -2)
    begins = (document_ids != torch.cat((edge, document_ids[:, :-1]), 1)).nonzero()
    ends = (document_ids != torch.cat((document_ids[:, 1:], edge), 1)).nonzero()
    spans = torch.cat((begins, ends[:, 1:] + 1), 1)
    return spans[document_ids[begins[:, 0], begins[:, 1]] >= 0]


# -------------------------------------------------------------------------------------------------------- CPU

@dataclass
class DocumentMask:
    spans: Tensor  # (documents, 3) int64: row, begin, end
    window: int | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return document_attention(q, k, v, self.spans, self.window, scale)


@dataclass
class Group:
    """Documents of similar length, padded on the right to L tokens. Causal queries never see that padding."""

    places: Tensor  # (N, L) index of each token in the flattened rows; padding repeats the last token
    real: Tensor    # (N, L) bool: no padding

    def take(self, x: Tensor, K: int) -> Tensor:
        """(B, heads, T, E) -> (N K, heads / K, L, E): the heads that share a key head are one batch entry."""
        tokens = x.transpose(1, 2).flatten(0, 1)[self.places]                               # (N, L, heads, E)
        return tokens.transpose(1, 2).unflatten(1, (K, -1)).flatten(0, 1)

    def put(self, x: Tensor, out: Tensor) -> None:
        """Write the real tokens of x (N K, heads / K, L, E) to their places in `out` (B, T, heads, E)."""
        tokens = x.unflatten(0, (len(self.places), -1)).flatten(1, 2).transpose(1, 2)       # (N, L, heads, E)
        out.flatten(0, 1)[self.places[self.real]] = tokens[self.real].to(out.dtype)


def document_groups(spans: Tensor, T: int, heads: int, element_size: int) -> Iterator[Group]:
    """All documents, in groups of similar length whose scores fit into the cache."""
    lengths = spans[:, 2] - spans[:, 1]
    begins = spans[:, 0] * T + spans[:, 1]
    rounded = (lengths + ROUND - 1) // ROUND
    for size in rounded[lengths > 0].unique().tolist():
        chosen = rounded == size
        L = int(lengths[chosen].max())
        at = torch.arange(L)
        count = max(1, CACHE_BYTES // (heads * min(L, TILE) * L * element_size))
        for length, begin in zip(lengths[chosen].split(count), begins[chosen].split(count), strict=True):
            yield Group(begin[:, None] + torch.minimum(at, length[:, None] - 1), at < length[:, None])


def tiles(L: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(queries, keys that they may see) of each tile of documents of length L."""
    for begin in range(0, L, TILE):
        end = min(begin + TILE, L)
        yield slice(begin, end), slice(0 if window is None else max(0, begin - window + 1), end)


def probabilities(q: Tensor, k: Tensor, queries: slice, keys: slice, window: int | None) -> Tensor:
    """The softmax of one tile. q (N K, G, L, E), already scaled, and k (N K, L, E) -> (N K, G tile, S)."""
    tile = q[:, :, queries]
    scores = torch.bmm(tile.flatten(1, 2), k[:, keys].contiguous().transpose(1, 2))
    by_query = scores.view(*tile.shape[:3], -1)                                            # (N K, G, tile, S)
    t = tile.shape[2]
    by_query[..., -t:] += torch.full((t, t), -torch.inf, dtype=q.dtype).triu(1)  # keys after the query
    if window is not None:
        age = torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.start, keys.stop)
        by_query.masked_fill_(age >= window, -torch.inf)
    return scores.softmax(-1)


@torch.library.custom_op("mmed::document_attention", mutates_args=())
def document_attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, window: int | None,
                       scale: float) -> Tensor:
    """softmax(q kT * scale) v within documents. q (B, H, T, E), k and v (B, K, T, E) -> (B, T, H, E)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    out = q.new_zeros(B, T, H, E)
    for group in document_groups(spans, T, H, q.element_size()):
        gq, gk, gv = (group.take(x, K) for x in (q, k, v))
        gq, gk, gv = gq * scale, gk.squeeze(1), gv.squeeze(1)
        result = torch.empty_like(gq)  # (N K, G, L, E)
        for queries, keys in tiles(gq.shape[2], window):
            p = probabilities(gq, gk, queries, keys, window)
            result[:, :, queries] = torch.bmm(p, gv[:, keys]).view_as(result[:, :, queries])
        group.put(result, out)
    return out


@torch.library.custom_op("mmed::document_attention_backward", mutates_args=())
def document_attention_backward(grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, spans: Tensor,
                                window: int | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (B, T, heads, E), from that of the output (B, T, H, E)."""
    B, H, T, E = q.shape
    K = k.shape[1]
    results = tuple(x.new_zeros(B, T, x.shape[1], E) for x in (q, k, v))
    # sum over E of grad * out = sum over keys of probability * its gradient (arXiv 2205.14135)
    delta = (grad * out).float().sum(-1, keepdim=True).to(q.dtype).transpose(1, 2)  # (B, H, T, 1)
    for group in document_groups(spans, T, H, q.element_size()):
        parts = (group.take(x, K) for x in (q, k, v, grad.transpose(1, 2), delta))
        for gradient, result in zip(group_backward(*parts, group.real, window, scale), results, strict=True):
            group.put(gradient, result)
    return results


def group_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, delta: Tensor, real: Tensor,
                   window: int | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a group's q (N K, G, L, E), k and v (N K, 1, L, E); grad like q, delta (N K, G, L, 1)."""
    q, k, v = q * scale, k.squeeze(1), v.squeeze(1)
    padding = ~real.repeat_interleave(len(k) // len(real), 0)[:, None, :, None]
    grad, delta = grad.masked_fill(padding, 0), delta.masked_fill(padding, 0)
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    for queries, keys in tiles(q.shape[2], window):
        p = probabilities(q, k, queries, keys, window)  # (N K, G tile, S)
        tile_q, tile_grad, tile_delta = (x[:, :, queries].flatten(1, 2) for x in (q, grad, delta))
        dv[:, keys] += torch.bmm(p.transpose(1, 2), tile_grad)
        dp = torch.bmm(tile_grad, v[:, keys].contiguous().transpose(1, 2))
        dscores = dp.sub_(tile_delta).mul_(p)
        dq[:, :, queries] = torch.bmm(dscores, k[:, keys]).view_as(dq[:, :, queries])
        dk[:, keys] += torch.bmm(dscores.transpose(1, 2), tile_q)
    return dq * scale, dk[:, None], dv[:, None]


@document_attention.register_fake
def _(q, k, v, spans, window, scale):
    B, H, T, E = q.shape
    return q.new_empty(B, T, H, E)


@document_attention_backward.register_fake
def _(grad, out, q, k, v, spans, window, scale):
    return tuple(x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(output, *tensors)


def _backward(ctx, grad):
    gradients = document_attention_backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale)
    return *(gradient.transpose(1, 2) for gradient in gradients), None, None, None


document_attention.register_autograd(_backward, setup_context=_setup_context)


# -------------------------------------------------------------------------------------------------------- GPU

@dataclass
class FlexMask:
    block_mask: BlockMask

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        # FlexAttention is fast only when compiled: together with its block, or by itself
        flex = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
        return flex(q, k, v, block_mask=self.block_mask, scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


FastMask = DocumentMask | FlexMask  # which keys each query sees, and how to compute attention with them


@functools.cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def block_mask(document_ids: Tensor | None, window: int | None, T: int, device: torch.device) -> BlockMask:
    def visible(b, h, query, key):
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        return seen if document_ids is None else seen & (document_ids[b, query] == document_ids[b, key])

    batch = None if document_ids is None else len(document_ids)
    return create_block_mask(visible, batch, None, T, T, device=device)
