"""One optimizer step: gradients in, weights changed, without the host waiting for the device.

    gradients -> joint norm -> a divisor, max(1, norm / limit), that AdamW applies as it reads them -> weights
    loss or norm not finite -> `found_inf`, with which AdamW leaves everything as it was

`make_optimizer` gives torch's fused AdamW, or `AdamWBf16`, whose state takes 4 bytes per parameter less.
References: AdamW (arXiv 1711.05101), stochastic rounding (2010.06192).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from mmed.config import TrainConfig
from mmed.training import distributed

BETA1, EPSILON = 0.9, 1e-8
CHUNK = 1 << 21  # elements per update of AdamWBf16: bounds its fp32 temporaries


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what trains; no decay on norms and biases, as in HF Trainer.  # MMedLM: adamw_torch"""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer_state_dtype == "bf16":
        return AdamWBf16(groups, config.learning_rate, config.beta2)
    betas = (BETA1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=EPSILON, fused=True)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, limit: float, loss: Tensor) -> Tensor:
    """Clip to `limit`, step, drop the gradients; returns their joint norm, the same on every rank. Nothing
    changes if the norm or `loss` is not finite; the optimizer's kernel reads both on the device."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = distributed.whole(torch.nn.utils.get_total_norm(gradients, foreach=True))
    optimizer.grad_scale = (norm / limit).clamp(min=1.0).float()
    optimizer.found_inf = (~torch.isfinite(norm + loss)).float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def stochastic_bf16(x: Tensor, noise: Tensor) -> Tensor:
    """fp32 `x` as bf16, rounded up or down with probabilities that keep the mean; noise: int32 in [0, 65536).
    Rounded to nearest, AdamW's second moment, which changes by 0.1 % per step, would never change."""
    return ((x.contiguous().view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)


class AdamWBf16(torch.optim.Optimizer):
    """AdamW whose two moments are bf16, rounded stochastically from torch's default random generator. Like
    torch's fused AdamW it is given `grad_scale` (the gradient's divisor) and `found_inf` before each step."""

    def __init__(self, groups: list[dict], lr: float, beta2: float):
        super().__init__(groups, {"lr": lr})
        self.beta2 = beta2
        self.grad_scale = self.found_inf = torch.zeros(())
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"step": torch.zeros((), device=p.device),
                                 "exp_avg": torch.zeros_like(p, dtype=torch.bfloat16),
                                 "exp_avg_sq": torch.zeros_like(p, dtype=torch.bfloat16)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] += 1 - self.found_inf  # a skipped step does not count
                flat = [distributed.local(x).view(-1)
                        for x in (p, p.grad, state["exp_avg"], state["exp_avg_sq"])]
                for part in zip(*(x.split(CHUNK) for x in flat), strict=True):
                    self.update_part(*part, state["step"].clamp(min=1), group["lr"], group["weight_decay"])

    def update_part(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor, lr: float,
                    decay: float) -> None:
        """Step `t` on a flat part of a parameter, its gradient and moments; all in place, all (N,)."""
        g = g.float() / self.grad_scale
        new_m = torch.lerp(m.float(), g, 1 - BETA1)
        new_v = v.float() * self.beta2 + g * g * (1 - self.beta2)
        denominator = (new_v / (1 - self.beta2 ** t)).sqrt() + EPSILON
        new_p = p * (1 - lr * decay) - lr / (1 - BETA1 ** t) * new_m / denominator
        noise = torch.randint(-2 ** 31, 2 ** 31, p.shape, dtype=torch.int32, device=p.device)
        keep = self.found_inf > 0
        p.copy_(torch.where(keep, p, new_p))
        m.copy_(torch.where(keep, m, stochastic_bf16(new_m, noise & 0xFFFF)))
        v.copy_(torch.where(keep, v, stochastic_bf16(new_v, noise >> 16 & 0xFFFF)))
