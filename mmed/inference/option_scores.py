"""How likely a model finds given continuations: log P(option | prompt), each prompt computed once for all its options.

    score_many(model, prompts, options)     one list of sums a prompt

    prompt  p0 p1 ... pn ┬─ a b ┬─ c     The options of a prompt are a tree, in which what they begin with stands once. The tree
                         │      └─ d e   is written behind the prompt in one pass with it; a mask lets each token see the prompt,
                         └─ f            its own ancestors and itself, and nothing of other branches.

An option's score is the sum over its tokens of log P(token | prompt, tokens before it), natural logarithm, in fp32. What many prompts
begin with is computed once, as in decoding (`mmed.inference.engine.Beginnings`). Reference: tree attention (SpecInfer, Miao et al. 2023).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mmed.inference.decoder import Decoder, Segment, decoder_for, fit_slots, layout
from mmed.inference.engine import Beginnings
from mmed.model import Transformer
from mmed.utils.errors import UserError

GROUP = 32     # prompts in the cache at a time
COMPARED = 16  # prompts at most that `int8_difference` looks at


class Tree:
    """The tokens of some options, each shared beginning once.

    >>> tree = Tree([[5, 6], [5, 7, 8], [5, 6]])
    >>> tree.ids, tree.depth, tree.parent, tree.paths
    ([5, 6, 7, 8], [0, 1, 1, 2], [-1, 0, 0, 2], [[0, 1], [0, 2, 3], [0, 1]])
    """

    def __init__(self, options: Sequence[Sequence[int]]):
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.parent: list[int] = []  # -1: the prompt's last token
        self.paths: list[list[int]] = []
        nodes: dict[tuple[int, int], int] = {}
        for option in options:
            path: list[int] = []
            for token in option:
                key = (path[-1] if path else -1, token)
                if key not in nodes:
                    nodes[key] = len(self.ids)
                    self.ids.append(token)
                    self.depth.append(len(path))
                    self.parent.append(key[0])
                path.append(nodes[key])
            self.paths.append(path)

    def inner(self) -> Tree:
        """The tree without its leaves: nobody asks what comes behind them."""
        parents = set(self.parent)
        keep = [node for node in range(len(self.ids)) if node in parents]
        place = {node: i for i, node in enumerate(keep)} | {-1: -1}
        tree = Tree([])
        tree.ids, tree.depth = [self.ids[node] for node in keep], [self.depth[node] for node in keep]
        tree.parent = [place[self.parent[node]] for node in keep]
        return tree

    def visible(self) -> Tensor:
        """bool (nodes, nodes): itself and its ancestors."""
        rows = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                rows[node] |= rows[parent]
        return rows


def score_options(model: Transformer, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> list[float]:
    """log P(option | prompt) of each option."""
    return score_many(model, [prompt], [options])[0]


@torch.inference_mode()
def score_many(model: Transformer, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], *,
               on_done: Callable[[int], None] | None = None) -> list[list[float]]:
    """`score_options` of many prompts; `on_done` is called with the place of each prompt that is done."""
    room = model.config.max_position_embeddings
    for i, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
        if not len(prompt) or not all(map(len, choices)):
            raise UserError(f"prompt {i}: a prompt and each of its options need at least one token")
        if len(prompt) + max(map(len, choices), default=0) - 1 > room:
            raise UserError(f"prompt {i} has {len(prompt):,} tokens, with its longest option more than the {room:,} positions of this model "
                            "(max_position_embeddings); shorten it or give fewer examples")
    scores: list[list[float]] = [[] for _ in prompts]
    places = [i for i in range(len(prompts)) if options[i]]
    if not places:
        return scores
    trees = {i: Tree(options[i]) for i in places}
    need = max(len(prompts[i]) + len(trees[i].ids) for i in places)
    decoder = decoder_for(model, 2)
    slots = fit_slots(decoder, min(GROUP, len(places)), need)
    cache = decoder.make_cache(slots, need)
    beginnings = Beginnings(decoder, prompts, places)
    for start in range(0, len(places), slots):
        group = places[start:start + slots]
        segments, wanted = [], []
        for segment, i in zip(beginnings.into(cache, list(range(len(group))), group), group):
            inner, n = trees[i].inner(), len(prompts[i])
            segments += [segment, Segment(segment.slot, n, inner.ids, [n + depth for depth in inner.depth], inner.visible())]
            wanted += [(len(segment.ids) - 1,), range(len(inner.ids))]
        logits = decoder.extend(cache, segments, wanted)
        for number, i in enumerate(group):
            scores[i] = list(tree_scores(trees[i], torch.cat(logits[2 * number:2 * number + 2])))
            if on_done is not None:
                on_done(i)
    return scores


def tree_scores(tree: Tree, logits: Tensor) -> Iterator[float]:
    """The sum of each path, from the logits behind the prompt and behind each inner node (1 + inner nodes, V)."""
    behind = {-1: 0} | {node: row for row, node in enumerate(sorted(set(tree.parent) - {-1}), 1)}
    rows = torch.tensor([behind[parent] for parent in tree.parent], device=logits.device)
    logits = logits.float()
    values = (logits[rows, torch.tensor(tree.ids, device=logits.device)] - logits.logsumexp(-1)[rows]).double().tolist()
    return (sum(values[node] for node in path) for path in tree.paths)


def int8_difference(model: Transformer, prompts: Sequence[Sequence[int]]) -> str:
    """What int8 changes on these prompts, in words: how often the likeliest next token is the same, and how far probabilities move."""
    prompts = prompts[::-(-len(prompts) // COMPARED)]
    rows = []
    for int8 in (False, True):
        model.int8 = False
        decoder = Decoder(model, "int8" if int8 else layout(model, 2))
        cache = decoder.make_cache(1, max(map(len, prompts)))
        with torch.inference_mode():
            rows.append([torch.cat(decoder.extend(cache, [Segment(0, 0, prompt)], [range(len(prompt))])).float().log_softmax(-1) for prompt in prompts])
    model.int8 = True
    same = total = moved = 0.0
    for full, less in zip(*rows):
        top = full.argmax(-1)
        same += float((less.argmax(-1) == top).sum())
        moved += float((full - less).gather(1, top[:, None]).abs().sum())
        total += len(top)
    return (f"int8 weights: the likeliest next token is the same in {same / total:.1%} of {total:,.0f} places of {len(prompts)} prompts; "
            f"its log-probability moves by {moved / total:.4f} on average")
