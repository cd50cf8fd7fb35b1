"""Exercise 5: RMSNorm and rotary positions. (Tour, section 6; Su et al., arXiv 2104.09864.)

RMSNorm divides a token's D numbers by the root of their mean square and multiplies each by a learnt weight:

    y = x / sqrt(mean(x^2) + eps) * weight

Rotary positions turn pairs of numbers of a head of size E. Number i and number i + E/2 are a pair; at
position p they are turned by the angle p * theta^(-2i/E):

    y[i]       = x[i] cos - x[i + E/2] sin
    y[i + E/2] = x[i + E/2] cos + x[i] sin

So the product of a query at p and a key at q depends on p - q alone, which the check looks at too.
"""
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)"""
    ...


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (T, E), positions (T,) -> (T, E)"""
    ...
