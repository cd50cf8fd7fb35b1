"""Simulated ranks: memory and traffic follow FSDP's formulas and the settings of the run."""

import dataclasses

import pytest
import torch

from mmed.config import RECIPES
from mmed.train import model_config, simulated_step
from mmed.training import memory_estimate
from mmed.training.loader import BatchSizes
from mmed.utils.errors import UsageError, UserError

FULL = dataclasses.replace(
    RECIPES["pretrain_mmedlm2"][1], model="shape:tiny", sequence_length=256, simulate_ranks=8,
    global_batch_size=32, micro_batch_size=4)


def run(config, sizes=None):
    return simulated_step(config, model_config(config, None), sizes)


def sizes(config):
    """(parameters of a block, of the rest)"""
    with torch.device("meta"):
        model = memory_estimate.build(model_config(config, None), config)
    block = sum(p.numel() for p in model.layers[0].parameters())
    return block, sum(p.numel() for p in model.parameters()) - len(model.layers) * block


def test_traffic_and_states_are_those_of_fsdp():
    block, rest = sizes(FULL)
    parameters = 4 * block + rest
    memory, traffic = run(FULL)
    assert traffic["gathered"] == pytest.approx(7 / 8 * 2 * (2 * 4 * block + rest), rel=0.02)
    assert traffic["reduced"] == pytest.approx(7 / 8 * 4 * parameters, rel=0.02)
    assert memory["weights"] == pytest.approx(4 * parameters / 8, rel=0.02)
    assert memory["optimizer state"] == pytest.approx(8 * parameters / 8, rel=0.02)
    _, three = run(dataclasses.replace(FULL, global_batch_size=96))  # three micro-batches
    assert three["gathered"] == 3 * traffic["gathered"] and three["reduced"] == 3 * traffic["reduced"]


def test_hybrid_sharding_crosses_between_copies_once_a_step():
    block, rest = sizes(FULL)
    hybrid = dataclasses.replace(FULL, shard_size=4, global_batch_size=96)
    memory, traffic = run(hybrid)
    parameters = 4 * block + rest
    assert traffic["between copies"] == pytest.approx(2 * 1 / 2 * 4 * parameters / 4, rel=0.02)
    assert traffic["reduced"] == pytest.approx(3 * 3 / 4 * 4 * parameters, rel=0.02)
    assert memory["weights"] == pytest.approx(4 * parameters / 4, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 8])
def test_memory_follows_the_settings_of_the_run(ranks):
    def held(kind: str, sizes=None, **changes) -> int:
        return run(dataclasses.replace(every, **changes), sizes=sizes)[0].get(kind, 0)

    every = dataclasses.replace(FULL, simulate_ranks=ranks, activation_checkpointing="no")
    half, none = (held("activations", activation_checkpointing=which) for which in ("half", "all"))
    assert held("activations") > 1.5 * half > 2 * none
    assert held("activations", sizes=BatchSizes(4, 128, 128, 1)) < 0.6 * held("activations")
    parameters = held("weights") / 4
    state = held("optimizer state", compile="yes", optimizer_state_dtype="bf16")
    assert state == pytest.approx(4 * parameters, rel=0.02)
    assert held("gradients", lora_rank=16) < 0.2 * held("weights")
    assert held("weights", lora_rank=16) == pytest.approx(2 * parameters, rel=0.1)


def test_a_host_wait_is_reported_with_its_place(monkeypatch):
    def waits(model, batch, *_, **__):
        return model(**batch.micro[0]).item()

    monkeypatch.setattr("mmed.train.forward_backward", waits)
    with pytest.raises(UserError, match=r"the host waits for the device at .*test_simulate.py:\d+: .*item"):
        run(FULL)


def test_wrong_numbers_of_ranks_are_rejected():
    with pytest.raises(UsageError, match="shard_size=3: must divide the number of ranks, 8"):
        run(dataclasses.replace(FULL, shard_size=3))
