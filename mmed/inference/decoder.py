"""A model laid out for decoding: the same numbers as `Transformer.forward`, from fused matrices and one cache, with few operations.

    decoder = decoder_for(model, slots)                    kept with the model until its weights change
    cache = decoder.make_cache(slots, length)              keys and values of `slots` sequences, allocated once
    decoder.extend(cache, [Segment(slot, 0, ids), ...])    many tokens of many sequences in one flat row: nothing is padded
    decoder.step(cache, tokens, lengths)                   one token of each of the first n slots -> logits (n, V)

    one pass of extend     [ prompt of slot 3 ........ | prompt of slot 0 ... | rest of the prompt of slot 5 ..... ]
                             matrices see one row of N tokens; attention goes segment by segment over its slot of the cache

What is laid out differently, and why:
    CPU, fp32    the matrices that read the same input are one, in the blocked layout of oneDNN: 1.2 to 2.4 times as fast as
                 F.linear from 2 to 64 rows; for one row W^T is read in order. Attention goes slot by slot where lengths differ.
    GPU          fused without a copy (the parameters become parts of the fused matrix); the step is compiled and replayed as
                 CUDA graphs (mmed/inference/cuda_graphs.py), for a few numbers of slots and of places to look at.
    sharded      (`fully_shard`) a block's weights are gathered when it is computed; all ranks pass in step (`Lockstep`).

Legend: N tokens of a pass, n slots in use, S places seen, H query heads, K key/value heads, G = H / K, E head size.
"""
from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmed.inference.cuda_graphs import StepGraphs
from mmed.inference.decoder_layer import DecoderLayer, KVCache, attend_many, attend_one, end_weights
from mmed.model import Transformer, alibi_slopes, rope_frequencies
from mmed.utils.errors import UserError

PASS_TOKENS = 1024       # tokens in one flat pass on a CPU; on a GPU GPU_PASS_TOKENS
GPU_PASS_TOKENS = 8192
GPU_LENGTH_STEP = 512    # a cache on a GPU has room for a multiple of so many tokens
SEEN_STEP = 16           # a step looks at a multiple of so many places
ROWS_STEP = 64           # rows of a pass are a multiple of so many, in short passes of a quarter
CALL_TOKENS = 48         # what one more attention call costs, in cached tokens of one slot (measured: about 12 microseconds)

# ------------------------------------------------------------------------------------------------------------- the model

@dataclass
class Segment:
    """Tokens that go on in a slot of the cache.

    start      the place in the slot where they are written: what stands before it is seen by all of them
    positions  their places in the text, where those are not start, start + 1, ... (branches of a tree)
    own        bool (t, t): which of the segment's own tokens each one sees; None: those before it and itself
    """

    slot: int
    start: int
    ids: Sequence[int]
    positions: Sequence[int] | None = None
    own: Tensor | None = None


class Decoder:
    """A `Transformer` laid out for decoding with up to `rows` sequences side by side."""

    def __init__(self, model: Transformer, kind: str):
        config = self.config = model.config
        self.kind = kind
        self.sharded = is_sharded(model)
        self.blocks = model.layers if self.sharded else None  # nothing else keeps the model alive: `decoder_for` forgets it with the model
        if self.sharded:
            model.unshard()  # embedding, last norm and head stay whole
        self.device, self.dtype = model.embed_tokens.weight.device, model.embed_tokens.weight.dtype
        self.pass_tokens = PASS_TOKENS if self.device.type == "cpu" else GPU_PASS_TOKENS
        self.fixed = None if self.sharded else [DecoderLayer(block, config, kind) for block in model.layers]
        self.embed, self.last_norm, self.head = end_weights(model, kind)
        self.slopes = alibi_slopes(config.num_attention_heads).to(self.device) if config.position_embedding == "alibi" else None
        self.rope_tables: dict[bool, tuple[Tensor, Tensor]] = {}
        self.kinds = sorted({config.slides(layer) for layer in range(config.num_hidden_layers)})
        self.graphs = self.kept_cache = None  # on a GPU: mmed/inference/cuda_graphs.py, made with the first step, and the cache it was made for
        self.lockstep = Lockstep(self) if self.sharded else None

    def gathered(self):
        """Each layer of a sharded model in turn; its weights are gathered here and go when the next one is asked for."""
        for block in self.blocks:
            with torch.inference_mode(False):  # its buffers are used in and outside of that mode
                block.unshard()
            yield DecoderLayer(block, self.config, "plain")
            block.reshard()

    # ---- positions

    def ropes(self, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor] | None]:
        """cos and signed sin (N, 1, E) of each kind of layer, from tables."""
        if self.config.position_embedding != "rope":
            return dict.fromkeys(self.kinds)
        return {slides: (cos[positions], sin[positions]) for slides, (cos, sin) in ((kind, self.rope_tables[kind]) for kind in self.kinds)}

    def prepare(self, length: int) -> None:
        """Rotation tables for positions below `length` (a power of two at least as large)."""
        config = self.config
        if config.position_embedding != "rope":
            return
        if length > config.max_position_embeddings and (config.rope_scaling or {}).get("rope_type") == "dynamic":
            raise UserError(f"{length} tokens in a row, but this model's rotation changes with the length beyond its "
                            f"{config.max_position_embeddings} positions (dynamic scaling), which is not supported")
        for slides in self.kinds:
            if slides in self.rope_tables and len(self.rope_tables[slides][0]) >= length:
                continue
            local = slides and config.rope_local_theta is not None
            speed = rope_frequencies(config, config.rope_local_theta if local else config.rope_theta, not local, self.device)
            angles = torch.arange(max(64, 1 << (length - 1).bit_length()), device=self.device, dtype=torch.float32)[:, None, None] * speed
            sin = angles.sin()
            self.rope_tables[slides] = (torch.cat((angles.cos(),) * 2, -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype))

    # ---- many tokens

    def make_cache(self, slots: int, length: int) -> KVCache:
        """Room for `slots` sequences of `length` tokens. On a GPU the last one is used again where it is large enough, for its graphs."""
        if self.device.type == "cpu":
            length = -(-length // SEEN_STEP) * SEEN_STEP
            self.prepare(length)
            return KVCache(self.config, slots, length, self.dtype, self.device)
        if not self.has_room(slots, length):
            self.kept_cache = self.graphs = None  # frees them before the new one is made; graphs hold on to cache and tables
            length = -(-length // GPU_LENGTH_STEP) * GPU_LENGTH_STEP
            self.prepare(length)
            self.kept_cache = KVCache(self.config, slots, length, self.dtype, self.device)
        return self.kept_cache

    def has_room(self, slots: int, length: int) -> bool:
        return self.kept_cache is not None and self.kept_cache.keys.shape[1] >= slots and self.kept_cache.length >= length

    def extend(self, cache: KVCache, segments: Sequence[Segment], wanted: Sequence[Sequence[int]]) -> list[Tensor]:
        """Compute the segments and keep their keys and values; logits (len(wanted[i]), V) behind the named tokens of each.

        Passes hold at most `pass_tokens` tokens: a long segment comes in pieces, one with `own` stays whole.
        """
        results: list[list[Tensor]] = [[] for _ in segments]
        for part in passes(segments, self.pass_tokens):
            rows, owners, flat = [], [], 0
            for i, offset, piece in part:
                here = [row - offset for row in wanted[i] if offset <= row < offset + len(piece.ids)]
                rows += [flat + row for row in here]
                owners.append((i, len(here)))
                flat += len(piece.ids)
            logits = self.flat_pass(cache, [piece for _, _, piece in part], rows)
            for (i, _), chunk in zip(owners, logits.split([count for _, count in owners]) if rows else ()):
                results[i].append(chunk)
        none = torch.empty(0, self.config.vocab_size, dtype=self.dtype, device=self.device)
        return [torch.cat(chunks) if len(chunks) > 1 else chunks[0] if chunks else none for chunks in results]

    def flat_pass(self, cache: KVCache, segments: Sequence[Segment], rows: list[int]) -> Tensor | None:
        if self.lockstep is not None:
            self.lockstep.working()
        device = self.device
        places = [list(segment.positions) if segment.positions is not None else list(range(segment.start, segment.start + len(segment.ids)))
                  for segment in segments]
        tokens = sum(map(len, places))
        # oneDNN keeps a program of its own for every number of rows it has met: without rounding memory grows with the prompts.
        rest = [0] * (-tokens % (ROWS_STEP if tokens > 2 * ROWS_STEP else ROWS_STEP // 4) if self.kind == "packed" else 0)
        ids = torch.tensor([token for segment in segments for token in segment.ids] + rest, device=device)
        positions = torch.tensor([place for part in places for place in part] + rest, device=device)
        x = self.embed(ids)                                                                                        # (N, D)
        ropes = self.ropes(positions)
        biases = {slides: [self.segment_bias(segment, part, slides) for segment, part in zip(segments, places)] for slides in self.kinds}
        spans, begin = [], 0
        for segment in segments:
            spans.append((segment.slot, segment.start, begin, begin + len(segment.ids)))
            begin += len(segment.ids)
        wanted = [[row - a for row in rows if a <= row < b] for _, _, a, b in spans]
        few = torch.tensor(rows + [0] * (-len(rows) % (ROWS_STEP // 4) if self.kind == "packed" else 0), dtype=torch.int64, device=device)
        H, E = self.config.num_attention_heads, self.config.head_dim
        out = torch.zeros((x.shape[0], H, E), dtype=x.dtype, device=device)  # rows that only round up stay zero
        for number, layer in enumerate(self.gathered() if self.sharded else self.fixed):
            q, k, v = layer.heads(x, ropes[layer.slides])
            keys, values = cache.keys[number], cache.values[number]                                           # (slots, K, S, E)
            for slot, start, a, b in spans:  # all are written before any is read: a tree reads the prompt before it
                keys[slot, :, start:start + b - a] = k[a:b].transpose(0, 1)
                values[slot, :, start:start + b - a] = v[a:b].transpose(0, 1)
            last = number == self.config.num_hidden_layers - 1  # behind it nobody asks for any rows but these
            for (slot, start, a, b), bias, asked in zip(spans, biases[layer.slides], wanted):
                queries, end = slice(a, b), start + b - a
                if last and not asked:
                    continue
                if last and bias is not None:
                    queries, bias = torch.tensor(asked, device=device) + a, bias[:, :, asked]
                elif last and asked == [b - a - 1]:  # it sees all keys, so it needs no bias
                    queries = slice(b - 1, b)
                out[queries] = attend_many(q[queries].transpose(0, 1)[None], keys[slot:slot + 1, :, :end], values[slot:slot + 1, :, :end], bias,
                                           layer.scale, self.config.attention_softcap)[0].transpose(0, 1)
            if last:
                x, out = x[few], out[few]
            if rows or not last:
                x = layer.rest(x, out.view(-1, H * E))
        return self.softcapped(self.head(self.last_norm(x[:len(rows)]))) if rows else None

    def softcapped(self, logits: Tensor) -> Tensor:
        cap = self.config.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def segment_bias(self, segment: Segment, places: list[int], slides: bool) -> Tensor | None:
        """What is added to the scores (1, 1 or H, t, S): None where every query sees all keys up to its own."""
        t, window = len(places), self.config.sliding_window if slides else None
        S = segment.start + t
        if self.slopes is None and segment.own is None and (window is None or window >= S) and (t == 1 or segment.start == 0):
            return None
        query = torch.tensor(places, device=self.device)
        key = torch.cat((torch.arange(segment.start, device=self.device), query))
        distance = query[:, None] - key                                                                        # (t, S)
        visible = distance >= 0
        if segment.own is not None:
            visible[:, segment.start:] &= segment.own.to(self.device)
        if window is not None:
            visible &= distance < window
        return self.additive(distance[None], visible[None])

    def additive(self, distance: Tensor, visible: Tensor) -> Tensor:
        """(n, t, S) -> (n, 1 or H, t, S): 0 or ALiBi's slope where visible, else minus infinity."""
        bias = torch.zeros((), dtype=self.dtype, device=self.device) if self.slopes is None else \
            (-self.slopes[:, None, None] * distance[:, None]).to(self.dtype)
        return torch.where(visible[:, None], bias, torch.tensor(-math.inf, dtype=self.dtype, device=self.device))

    # ---- one token a slot

    def step(self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Logits (n, V) behind one more token in each of the first n slots, which have `lengths` tokens so far."""
        if self.lockstep is not None:
            self.lockstep.working()
        if self.device.type == "cuda" and not self.sharded:
            if self.graphs is None or self.graphs.cache is not cache:
                self.graphs = StepGraphs(self, cache)
            return self.graphs.step(tokens, lengths)
        n, longest = len(lengths), max(lengths) + 1
        positions = torch.tensor(lengths, device=self.device)
        # One attention call for all slots looks at `seen` places of each; slot by slot it looks at what is there.
        if (self.device.type == "cpu" and n * longest - sum(lengths) > n * CALL_TOKENS) or n == 1:
            return self.one_token(cache, torch.tensor(tokens, device=self.device), positions, list(lengths), longest)
        seen = min(-(-longest // SEEN_STEP) * SEEN_STEP, cache.length)
        return self.one_token(cache, torch.tensor(tokens, device=self.device), positions, None, seen)

    def one_token(self, cache: KVCache, tokens: Tensor, positions: Tensor, lengths: list[int] | None, seen: int) -> Tensor:
        """`step` on tensors (n,). With `lengths` attention goes slot by slot, else over `seen` places of all."""
        config = self.config
        n, H, K, E, S = tokens.shape[0], config.num_attention_heads, config.num_key_value_heads, config.head_dim, cache.length
        x = self.embed(tokens)                                                                                     # (n, D)
        ropes = self.ropes(positions)
        place = ((torch.arange(n * K, device=tokens.device).view(n, K)) * S + positions[:, None]).flatten()   # rows of keys as (slots * K * S, E)
        biases = None if lengths is not None else {slides: self.step_bias(positions, seen, slides) for slides in self.kinds}
        for number, layer in enumerate(self.gathered() if self.sharded else self.fixed):
            q, k, v = layer.heads(x, ropes[layer.slides])
            keys, values = cache.keys[number], cache.values[number]                                           # (slots, K, S, E)
            keys.view(-1, E).index_copy_(0, place, k.reshape(n * K, E))
            values.view(-1, E).index_copy_(0, place, v.reshape(n * K, E))
            q = q.reshape(n, K, H // K, E)
            if lengths is None:
                out = attend_one(q, keys[:n, :, :seen], values[:n, :, :seen], biases[layer.slides], layer.scale, config.attention_softcap)
            else:
                window = config.sliding_window if layer.slides else None
                parts = []
                for slot, length in enumerate(lengths):
                    first = 0 if window is None else max(0, length + 1 - window)
                    parts.append(attend_one(q[slot:slot + 1], keys[slot:slot + 1, :, first:length + 1], values[slot:slot + 1, :, first:length + 1],
                                            self.own_bias(length + 1 - first), layer.scale, config.attention_softcap))
                out = parts[0] if n == 1 else torch.cat(parts)
            x = layer.rest(x, out.reshape(n, H * E))
        return self.softcapped(self.head(self.last_norm(x)))

    def step_bias(self, positions: Tensor, seen: int, slides: bool) -> Tensor:
        """(n, 1, 1, S) or with ALiBi (n, K, G, S)."""
        config = self.config
        distance = positions[:, None, None] - torch.arange(seen, device=positions.device)                     # (n, 1, S)
        visible = distance >= 0
        if slides:
            visible = visible & (distance < config.sliding_window)
        bias = self.additive(distance, visible)
        return bias if self.slopes is None else bias.view(len(positions), config.num_key_value_heads, -1, seen)

    def own_bias(self, seen: int) -> Tensor | None:
        """ALiBi for the newest token over the last `seen` places, (1, K, G, S)."""
        if self.slopes is None:
            return None
        distance = torch.arange(seen - 1, -1, -1, device=self.device)
        return (-self.slopes[:, None] * distance).to(self.dtype).view(1, self.config.num_key_value_heads, -1, seen)


def passes(segments: Sequence[Segment], limit: int) -> list[list[tuple[int, int, Segment]]]:
    """Segments in passes of at most `limit` tokens, in order: (number, tokens of it in earlier pieces, piece).

    >>> [[(i, offset, len(piece.ids)) for i, offset, piece in part] for part in passes([Segment(0, 0, [1] * 5), Segment(1, 0, [1] * 6)], 8)]
    [[(0, 0, 5), (1, 0, 3)], [(1, 3, 3)]]
    """
    done: list[list[tuple[int, int, Segment]]] = []
    room = 0
    for i, segment in enumerate(segments):
        offset = 0
        while offset < len(segment.ids):
            whole_one = segment.own is not None or segment.positions is not None
            if not room or (whole_one and room < len(segment.ids) and room < limit):
                done.append([])
                room = limit
            count = len(segment.ids) if whole_one else min(room, len(segment.ids) - offset)
            piece = segment if count == len(segment.ids) else Segment(segment.slot, segment.start + offset, segment.ids[offset:offset + count])
            done[-1].append((i, offset, piece))
            offset += count
            room = max(0, room - count)
    return done


class Lockstep:
    """Ranks that hold a part of every weight gather each layer together, so all make a pass when one does. A rank that has
    nothing to compute yet says so by `finish`, and gathers along until none has."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def anyone(self, mine: bool) -> bool:
        flag = torch.tensor(int(mine), device=self.decoder.device)
        torch.distributed.all_reduce(flag)
        return bool(flag)

    def working(self) -> None:
        self.anyone(True)

    def finish(self) -> None:
        while self.anyone(False):
            for _ in self.decoder.gathered():
                pass


# -------------------------------------------------------------------------------------------------- which layout, and when

_KEPT: weakref.WeakKeyDictionary[Transformer, tuple[list, Decoder]] = weakref.WeakKeyDictionary()


def is_sharded(model: Transformer) -> bool:
    return hasattr(model, "unshard")


def decoder_for(model: Transformer, rows: int) -> Decoder:
    """The model's decoder for `rows` sequences side by side: made once, and again when a parameter has changed."""
    kind = layout(model, rows)
    if kind == "plain" or any(parameter.is_inference() for parameter in model.parameters()):  # these count no changes
        with torch.inference_mode(False), torch.no_grad():
            return Decoder(model, kind)

    def state() -> list[tuple[int, int]]:
        return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]

    before, decoder = _KEPT.get(model, (None, None))
    if decoder is None or decoder.kind != kind or before != state():
        _KEPT.pop(model, None)  # one layout at a time: it is a copy of the weights
        with torch.inference_mode(False), torch.no_grad():  # what the layout makes of the parameters can still be trained on
            decoder = Decoder(model, kind)
        _KEPT[model] = (state(), decoder)  # now: "in place" has moved them
    return decoder


def layout(model: Transformer, rows: int) -> str:
    """"plain" (the parameters as they are) where a copy has no room or no use."""
    weight = model.embed_tokens.weight
    if is_sharded(model):
        return "plain"
    if getattr(model, "int8", False):
        return "int8"
    if weight.device.type == "cuda":
        return "in place"
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available() or size > free_bytes(weight.device) // 4:
        return "plain"
    return "one row" if rows == 1 else "packed"


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fit_slots(decoder: Decoder, slots: int, length: int) -> int:
    """At most `slots`, as many as fit into four fifths of the free memory; not one fits: an error."""
    config = decoder.config
    if decoder.has_room(slots, length):
        return slots
    decoder.kept_cache = decoder.graphs = None
    step = SEEN_STEP if decoder.device.type == "cpu" else GPU_LENGTH_STEP
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * decoder.dtype.itemsize * (length + step)
    free = free_bytes(decoder.device)
    fitting = int(0.8 * free) // each
    if not fitting:
        raise UserError(f"the KV cache of one sequence of {length:,} tokens needs {each / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                        "lower --max_new_tokens")
    return min(slots, fitting)
