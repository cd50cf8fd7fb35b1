"""Output matrix and cross-entropy in one: hidden states and labels in, the summed loss out, without the logits of a whole batch.

    hidden (N, D) --- ROWS at a time ---> logits (ROWS, V) -> loss, and at once its gradient (softmax - onehot)
                                                           -> hidden's gradient (ROWS, D) and the matrix's (V, D), summed up

Of a vocabulary of 92,544 and 2,048 tokens the logits alone are 0.76 GB in fp32, three times over with their softmax and
gradient. Here one piece exists at a time. References: Liger Kernel (arXiv 2410.10989), cut cross-entropy (2411.09009).

Legend: N supervised tokens, D hidden size, V vocabulary.
"""
from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100  # label of a position that carries no loss


def summed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None,
                         supervised: Tensor | None = None) -> Tensor:
    """Sum of cross-entropies, fp32 scalar, of hidden (B, T, D) against labels (B, T); IGNORE carries none.

    Only supervised rows reach the head: a fine-tuning batch is mostly prompt, and its logits would be thrown away.
    `supervised`: their places in the flat batch, from whoever made the batch: finding them here waits for the GPU.
    """
    hidden, labels = hidden.flatten(0, 1), labels.flatten()
    if supervised is None:
        supervised = (labels != IGNORE).nonzero().squeeze(1)
    if len(supervised) != len(labels):
        hidden, labels = hidden.index_select(0, supervised), labels[supervised]
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return ChunkedCrossEntropy.apply(hidden, weight, labels, softcap)


def cross_entropies(logits: Tensor, target: Tensor, softcap: float | None, gradient: bool) -> Tensor:
    """Cross-entropies (rows, 1) in fp32 of logits (rows, V) against target (rows, 1); with `gradient` the logits become softmax - onehot."""
    wide = logits.float()
    if softcap is not None:
        wide = torch.tanh(wide / softcap) * softcap
    p = wide.softmax(-1)
    # log of the norm by way of the largest: one quick pass over each where logsumexp takes several
    losses = wide.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log() - wide.gather(1, target)
    if gradient:
        p.scatter_(1, target, torch.expm1(-losses))
        if softcap is not None:
            p *= 1 - (wide / softcap) ** 2
        logits.copy_(p)
    return losses


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward pass while a piece's logits are at hand: nothing is computed twice.

    The matrix may be in fp32 while hidden states are in bf16 (autocast): then products are in bf16, and the matrix's
    gradient is summed up and handed over in fp32.
    """

    ROWS = {"cpu": 256, "cuda": 2048}  # rows at a time: what stays in a CPU's cache; what fills a GPU
    FEW, WORDS = 32, 1024              # on a CPU: rows of a softmax, and words of the matrix's gradient, at a time

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # One fp32 buffer for the sum over pieces: in bf16 the small contributions of late ones would round away.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_weight else None
        rows = ChunkedCrossEntropy.ROWS.get(hidden.device.type, 1024)
        few, words = (ChunkedCrossEntropy.FEW, ChunkedCrossEntropy.WORDS) if hidden.device.type == "cpu" else (rows, len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            for start in range(0, len(labels), rows):
                part, target = hidden[start:start + rows], labels[start:start + rows, None]
                logits = part @ matrix.t()                                                # (rows, V), soon their gradient
                total += torch.cat([cross_entropies(*pair, softcap, needs_hidden or needs_weight)
                                    for pair in zip(logits.split(few), target.split(few))]).sum()
                if needs_hidden:
                    torch.mm(logits, matrix, out=grad_hidden[start:start + rows])
                if needs_weight:
                    if hidden.dtype == torch.float32:
                        grad_weight.addmm_(logits.t(), part)
                    else:
                        for sums, columns in zip(grad_weight.split(words), logits.split(words, dim=1)):
                            sums += columns.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.spent = weight.dtype, False
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        assert not ctx.spent, "this loss can be propagated once: its gradients are scaled in place"
        ctx.spent = True
        return (None if grad_hidden is None else grad_hidden.mul_(grad),
                None if grad_weight is None else grad_weight.mul_(grad).to(ctx.weight_dtype), None, None)
