"""Output matrix and cross-entropy in one: hidden states and labels in, the summed loss out.

    hidden (N, D) -- ROWS at a time --> logits (ROWS, V) -> loss, and at once its gradient (softmax - onehot)
                                                         -> gradients of hidden and of the matrix (V, D)

With a vocabulary of 92,544 and 2,048 tokens the logits alone are 0.76 GB in fp32, their softmax and gradient
as much again. Here one chunk of them exists at a time. References: Liger Kernel (arXiv 2410.10989), cut
cross-entropy (2411.09009).

Legend: N tokens with a label, D hidden size, V vocabulary.
"""
from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100  # label of a position that carries no loss


def summed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None,
                         loss_positions: Tensor | None = None) -> Tensor:
    """Sum of cross-entropies, a fp32 scalar, of hidden (B, T, D) against labels (B, T) that are not IGNORE.
    Only these positions reach the head. `loss_positions`: their indices in the flat batch, if known; finding
    them here would make the host wait for the GPU."""
    hidden, labels = hidden.flatten(0, 1), labels.flatten()
    if loss_positions is None:
        loss_positions = (labels != IGNORE).nonzero().squeeze(1)
    if len(loss_positions) != len(labels):
        hidden, labels = hidden.index_select(0, loss_positions), labels[loss_positions]
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return ChunkedCrossEntropy.apply(hidden, weight, labels, softcap)


def cross_entropies(logits: Tensor, target: Tensor, softcap: float | None) -> Tensor:
    """Summed cross-entropy in fp32 of logits (rows, V) against target (rows, 1). Overwrites logits with the
    gradient."""
    scores = logits.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    log_p = scores.log_softmax(-1)
    losses = -log_p.gather(1, target)
    p = log_p.exp_()
    p.scatter_(1, target, torch.expm1(-losses))  # p - 1, exact even if p is almost 1
    if softcap is not None:
        p *= 1 - (scores / softcap) ** 2
    logits.copy_(p)
    return losses.sum()


class ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward pass, while a chunk's logits exist: nothing is computed twice.
    Under autocast products are in bf16, and the gradient of the fp32 matrix is summed in fp32."""

    ROWS = {"cpu": 256, "cuda": 2048}  # rows per chunk

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows = ChunkedCrossEntropy.ROWS.get(hidden.device.type, 1024)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        # in bf16 the sum over chunks would round away the contributions of the last ones
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            for start in range(0, len(labels), rows):
                chunk, target = hidden[start:start + rows], labels[start:start + rows, None]
                logits = chunk @ matrix.t()  # (rows, V), soon their gradient
                total += cross_entropies(logits, target, softcap)
                if grad_hidden is not None:
                    torch.mm(logits, matrix, out=grad_hidden[start:start + rows])
                if grad_weight is not None:
                    grad_weight += logits.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (None if grad_hidden is None else grad_hidden * grad,
                None if grad_weight is None else grad_weight.mul_(grad).to(ctx.weight_dtype), None, None)
