"""Exercise 9: cross-entropy and its gradients, a few rows at a time. (Tour, section 7.)

The logits of N tokens are hidden (N, D) times weight (V, D) transposed: an (N, V) table, by far the largest
thing in a training step. It never has to be there as a whole. Take `rows` tokens at a time, compute their
logits, their losses and at once the gradients, and let the logits go. For a token with the label y and p =
softmax(logits):

    loss           = -log p[y]
    gradient of the logits           g = p - onehot(y)
    gradient of hidden               g weight
    gradient of weight               the sum of g^T hidden over all pieces

The label -100 means "no loss": the token adds nothing to the loss and nothing to a gradient.
Write the gradients yourself (no autograd), and hold no more than rows x V logits; the check looks at both.
"""
from torch import Tensor


def loss_and_gradients(hidden: Tensor, weight: Tensor, labels: Tensor,
                       rows: int) -> tuple[float, Tensor, Tensor]:
    """(sum of the losses, gradient of hidden (N, D), gradient of weight (V, D))"""
    ...
