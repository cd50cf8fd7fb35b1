"""Positions beyond plain RoPE: ALiBi, and rotations stretched for long contexts (`rope_scaling`).

References: Llama 3.1 (arXiv 2407.21783), YaRN (2309.00071), ALiBi (2108.12409).
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from mmed.utils.errors import UserError


def check_length(scaling: dict | None, length: int, longest: int) -> None:
    """A `UserError` for a row that dynamic scaling would stretch."""
    if (scaling or {}).get("rope_type") == "dynamic" and length > longest:
        raise UserError(f"{length} tokens in a row: dynamic RoPE scaling, which begins beyond {longest} "
                        "positions, is not supported")


def scaled_frequencies(speed: Tensor, theta: float, scaling: dict) -> Tensor:
    """Angular speeds `speed` (E / 2) = theta^(-2i/E) of the rotated pairs, changed as `scaling` says."""
    kind = scaling["rope_type"]
    if kind == "dynamic":  # unscaled up to max_position_embeddings; `check_length` rejects longer rows
        return speed
    if kind == "linear":
        return speed / scaling["factor"]
    kept = _kept_by_yarn(speed, theta, scaling) if kind == "yarn" else _kept_by_llama3(speed, scaling)
    return speed / scaling["factor"] * (1 - kept) + speed * kept


def _kept_by_llama3(speed: Tensor, scaling: dict) -> Tensor:
    """Share of each speed that stays: wavelengths beyond the old context are stretched, short ones kept."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi / speed)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(speed: Tensor, theta: float, scaling: dict) -> Tensor:
    """Share of each speed that stays: pairs that turn more than `beta_fast` times within the old context are
    kept, those that turn less than `beta_slow` times are stretched, those between are blended."""
    size, old = 2 * len(speed), scaling["original_max_position_embeddings"]
    low, high = (size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))
                 for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    pairs = torch.arange(len(speed), device=speed.device)
    return 1 - ((pairs - low) / (high - low if high > low else 0.001)).clamp(0, 1)


def magnitude(scaling: dict) -> float:
    """The factor on cos and sin: with YaRN it keeps attention as sharp in longer contexts as before."""
    def of(weight: float) -> float:
        return 0.1 * weight * math.log(max(scaling["factor"], 1)) + 1

    if scaling["rope_type"] != "yarn":
        return 1.0
    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")  # DeepSeek
    return scaling.get("attention_factor", of(above) / of(below) if above and below else of(1))


def alibi_slopes(heads: int) -> Tensor:
    """One slope per head: a geometric series; beyond a power of two the odd members of the next one."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
