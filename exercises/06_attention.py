"""Exercise 6: causal attention with documents apart. (Tour, sections 5 and 6.)

A row of training holds several documents. A token may look at tokens of its own document only, at itself and
those before it:

    documents   0 0 0 1 1           may look at       1 . . . .
                                                      1 1 . . .
                                                      1 1 1 . .
                                                      . . . 1 .
                                                      . . . 1 1

    attention(q, k, v) = softmax(q k^T / sqrt(E), over the tokens it may look at) v

There are H query heads and K key/value heads; query head h uses key/value head h // (H / K) (grouped-query
attention). Write it yourself: no scaled_dot_product_attention.
"""
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """q (H, T, E), k and v (K, T, E), documents (T,) -> (H, T, E)"""
    ...
