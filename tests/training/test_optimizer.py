"""One optimizer step: torch's AdamW behind a clipped norm, with the state in fp32 or bf16."""
import pytest
import torch

from mmed.config import TrainConfig
from mmed.training.optimizer import make_optimizer, stochastic_bf16, update

ZERO = torch.zeros(())


def small_model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.LayerNorm(30))


def random_gradients(model, size):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * size


@pytest.mark.parametrize("state_dtype, tolerance", [("fp32", 1e-6), ("bf16", 2e-3)])
def test_update_equals_adamw_behind_clipping_with_decay_on_matrices(state_dtype, tolerance, monkeypatch):
    """Gradients far below and far above the limit: AdamW notices later if the wrong ones were scaled."""
    monkeypatch.setattr("mmed.training.optimizer.CHUNK", 13)
    ours, theirs = small_model(2), small_model(2)
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.5, optimizer_state_dtype=state_dtype)
    optimizer = make_optimizer(ours, config)
    groups = [{"params": [p], "weight_decay": 0.5 if p.dim() >= 2 else 0.0} for p in theirs.parameters()]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, config.beta2))
    for size in (0.01, 50.0, 0.3, 3.0, 0.1):
        random_gradients(ours, size)
        for own, other in zip(ours.parameters(), theirs.parameters()):
            other.grad = own.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        plain.step()
        assert torch.allclose(update(ours, optimizer, 1.0, ZERO), norm)
        for own, other in zip(ours.parameters(), theirs.parameters()):
            assert torch.allclose(own, other, atol=tolerance), size


@pytest.mark.parametrize("state_dtype", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_changes_and_counts_nothing(state_dtype):
    model = small_model(0)
    optimizer = make_optimizer(model, TrainConfig(optimizer_state_dtype=state_dtype))

    def snapshot():
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in [*model.parameters(), *states]]

    random_gradients(model, 1.0)
    update(model, optimizer, 1.0, ZERO)
    before = snapshot()
    random_gradients(model, float("inf"))
    assert not torch.isfinite(update(model, optimizer, 1.0, ZERO))
    random_gradients(model, 1.0)
    update(model, optimizer, 1.0, torch.tensor(float("nan")))  # a finite gradient of a loss that is not
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True))
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_stochastic_rounding_keeps_the_mean_and_exact_values():
    x = torch.full((200_000,), 1.0 + 1 / 1024)
    noise = torch.randint(0, 65536, x.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    rounded = stochastic_bf16(x, noise).float()
    assert set(rounded.tolist()) == {1.0, 1.0078125} and abs(float(rounded.mean() - x.mean())) < 5e-5
    exact = torch.tensor([0.5, -3.0, 0.0])
    assert torch.equal(stochastic_bf16(exact, torch.full((3,), 65535, dtype=torch.int32)), exact.bfloat16())
