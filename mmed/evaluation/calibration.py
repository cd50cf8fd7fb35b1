"""Does confidence match accuracy? Calibration of option likelihoods (Guo et al., arXiv 1706.04599).

The softmax of the candidates' sums gives each a probability; that of the likeliest is the confidence.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmed.metrics import mean

BINS = 15  # of equal width; a bin holds its upper bound and not its lower one


def calibration(rows: Sequence[dict]) -> dict[str, Any]:
    """Expected calibration error (ECE), mean confidence, and the bins that are not empty."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in rows:
        top = max(row["logprobs"].values())
        sure = 1 / sum(math.exp(value - top) for value in row["logprobs"].values())
        bins.setdefault(math.ceil(sure * BINS) - 1, []).append((sure, row["correct"]))
    curve = [{"bin": place, "n": len(part), "confidence": mean(sure for sure, _ in part),
              "accuracy": mean(right for _, right in part)} for place, part in sorted(bins.items())]
    gaps = sum(part["n"] * abs(part["confidence"] - part["accuracy"]) for part in curve)
    return {"n": len(rows), "ece": gaps / len(rows), "bins": curve,
            "confidence": sum(part["n"] * part["confidence"] for part in curve) / len(rows)}
