"""One optimizer step: gradients in, weights changed, without the host waiting for the device; and lean forms of AdamW.

    gradients -> joint norm -> one divisor (max(1, norm / limit)) that AdamW applies as it reads them -> weights
    loss or norm not finite -> `found_inf`, with which AdamW leaves everything as it was

`make_optimizer` gives torch's fused AdamW, or `LeanAdamW`: moments in bf16 (4 bytes a parameter less), and the step inside the
backward pass (no gradients kept). References: AdamW (arXiv 1711.05101), stochastic rounding (2010.06192), LOMO (2306.09782).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from mmed.config import TrainConfig
from mmed.training import distributed
from mmed.utils.errors import UsageError

BETA1, EPSILON = 0.9, 1e-8
PIECE = 1 << 24      # elements that LeanAdamW updates at a time: its fp32 temporaries are of one piece
CPU_PIECE = 1 << 20  # and on a CPU, where that is also quicker: they stay in its cache


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over what trains; no decay on norms and biases, as HF Trainer has it.  # MMedLM: adamw_torch"""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if config.moments == "fp32" and not config.step_in_backward:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(BETA1, config.beta2), eps=EPSILON, fused=True)
    if config.step_in_backward and distributed.world_size() > 1:
        raise UsageError("--step_in_backward=true: for one process only; several ranks cut the gradients among them already")
    optimizer = LeanAdamW(groups, config)
    if config.step_in_backward:
        optimizer.hook()
    return optimizer


def total_norm(model: nn.Module) -> Tensor:
    """Joint norm of all gradients, on the device, the same on every rank."""
    return distributed.whole(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None], foreach=True))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, limit: float, loss: Tensor) -> Tensor:
    """Clip to `limit`, step, drop the gradients; returns the norm before clipping. Nothing changes if it or `loss` is not finite."""
    if isinstance(optimizer, LeanAdamW) and optimizer.in_backward:
        return optimizer.finish()
    norm = total_norm(model)
    # Both are read by the fused kernel itself: no pass over the gradients to scale them, no look at them by the host.
    optimizer.grad_scale = (norm / limit).clamp(min=1.0).float()
    optimizer.found_inf = (~torch.isfinite(norm + loss)).float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def stochastic_bf16(x: Tensor, noise: Tensor) -> Tensor:
    """fp32 `x` as bf16, up or down with the odds of its distance to both: the mean is x itself. noise: int32 in [0, 65536).

    AdamW's second moment changes by a thousandth a step; bf16 has steps of a 256th, so plain rounding would leave it as it is.
    """
    return ((x.contiguous().view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, noise: Tensor | None, facts: Tensor, decay: float, beta2: float) -> None:
    """AdamW on flat fp32 `p` with moments of any dtype. facts: lr, 1 - beta1^t, 1 - beta2^t, divisor of g, 1 to change nothing."""
    lr, correction1, correction2, divisor, skip = facts.unbind()
    g = g.float() / divisor
    new_m = torch.lerp(m.float(), g, 1 - BETA1)
    new_v = v.float() * beta2 + g * g * (1 - beta2)
    new_p = p * (1 - lr * decay) - lr / correction1 * new_m / ((new_v / correction2).sqrt() + EPSILON)
    if noise is not None:
        new_m, new_v = stochastic_bf16(new_m, noise & 0xFFFF), stochastic_bf16(new_v, noise >> 16 & 0xFFFF)
    keep = skip > 0
    p.copy_(torch.where(keep, p, new_p))
    m.copy_(torch.where(keep, m, new_m.to(m.dtype)))
    v.copy_(torch.where(keep, v, new_v.to(v.dtype)))


class LeanAdamW(torch.optim.Optimizer):
    """AdamW with moments in bf16 or fp32, as one step at the end or parameter by parameter inside the backward pass.

    In the backward pass the joint norm is not known yet when a weight is updated, so gradients are divided by what the norm
    of the step before asks for.  The rounding's random numbers depend on (seed, step, parameter) alone.
    """

    def __init__(self, groups: list[dict], config: TrainConfig):
        super().__init__(groups, {"lr": config.learning_rate})
        self.seed, self.beta2, self.limit = config.seed, config.beta2, config.max_grad_norm
        self.dtype = torch.bfloat16 if config.moments == "bf16" else torch.float32
        self.in_backward, self.last_norm, self.squares = False, 0.0, []
        self.order = [(p, group) for group in self.param_groups for p in group["params"]]
        for p, _ in self.order:
            self.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p, dtype=self.dtype),
                             "exp_avg_sq": torch.zeros_like(p, dtype=self.dtype)}
        first = self.order[0][0]
        self.kernel = torch.compile(adamw) if first.is_cuda else adamw
        self.grad_scale = self.found_inf = None

    @torch.no_grad()
    def step_one(self, number: int, divisor: Tensor, skip: Tensor) -> None:
        p, group = self.order[number]
        state = self.state[p]
        state["step"] += 1
        t = int(state["step"])
        local = [distributed.local(x).view(-1) for x in (p.data, p.grad, state["exp_avg"], state["exp_avg_sq"])]
        device = local[0].device
        constants = torch.tensor([group["lr"], 1 - BETA1 ** t, 1 - self.beta2 ** t], dtype=torch.float32)
        if device.type == "cuda":
            constants = constants.pin_memory().to(device, non_blocking=True)
        facts = torch.cat((constants, torch.stack((divisor, skip)).to(device, torch.float32)))
        generator = None
        if self.dtype == torch.bfloat16:
            generator = torch.Generator(device).manual_seed((self.seed * 1_000_003 + t) * 100_003 + number)
        size = min(PIECE, CPU_PIECE) if device.type == "cpu" else PIECE
        for begin in range(0, len(local[0]), size):
            pieces = [x[begin:begin + size] for x in local]
            noise = torch.randint(-2 ** 31, 2 ** 31, pieces[0].shape, dtype=torch.int32, device=device, generator=generator) if generator else None
            self.kernel(*pieces, noise, facts, group["weight_decay"], self.beta2)

    def step(self, closure=None) -> None:
        for number, (p, _) in enumerate(self.order):
            if p.grad is not None:
                self.step_one(number, self.grad_scale, self.found_inf)

    def hook(self) -> None:
        """Update each parameter as soon as its gradient is whole, and drop the gradient."""
        self.in_backward = True

        def updater(number: int):
            def now(p: Tensor) -> None:
                square = p.grad.float().pow(2).sum()
                self.squares.append(square)
                divisor = torch.tensor(max(1.0, self.last_norm / self.limit), device=p.device)
                self.step_one(number, divisor, (~torch.isfinite(square)).float())
                p.grad = None
            return now

        for number, (p, _) in enumerate(self.order):
            p.register_post_accumulate_grad_hook(updater(number))

    def finish(self) -> Tensor:
        """The joint norm of the gradients of a step that the backward pass has made already."""
        norm = torch.stack(self.squares).sum().sqrt()
        self.squares.clear()
        self.last_norm = float(norm)
        return norm
