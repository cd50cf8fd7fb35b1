"""What a run will need before it starts: parameters, tokens per step, memory per rank, time (`--dry_run`).

    MFU = (6 x matmul weights + 6 x layers x heads x head size x context) x tokens/s of a GPU / its bf16 peak
          LoRA: 4 for the first 6 (the base's weights have no gradient); attention is causal

`training_memory` is the project's only model of training memory. What a block keeps for its backward pass is
counted, by running the model on fake tensors; everything else is a formula.
"""
from __future__ import annotations

import dataclasses
import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmed.config import TrainConfig
from mmed.lora import apply_lora
from mmed.loss import ChunkedCrossEntropy
from mmed.model import ModelConfig, Transformer
from mmed.training import distributed
from mmed.training.logging import peak_memory

# Dense bf16 FLOP/s by torch.cuda.get_device_name(), from NVIDIA's data sheets. Whole names, because variants
# of one product differ; a MIG slice or an unknown GPU has no MFU rather than a wrong one.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12, "NVIDIA A800-SXM4-80GB": 312e12, "NVIDIA A800 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
    "NVIDIA H800": 989e12, "NVIDIA H200": 989e12, "NVIDIA H200 NVL": 835e12, "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "NVIDIA A10G": 70e12, "NVIDIA GeForce RTX 4090": 165e12,
}
USEFUL = 0.5             # share of the speed of matrix products that a step reaches, for the estimate of time
FIRST_STEP_BYTES = 30_000_000  # code and tables that a CPU process loads in its first step


def peak_flops(device_name: str) -> float | None:
    return PEAK_FLOPS.get(device_name)


def matmul_weights(shape: ModelConfig) -> int:
    """Weights that take part in matrix products: all but the embedding look-up, norms and biases."""
    D, H, K, E = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    block = D * (H + 2 * K) * E + H * E * D + (3 if shape.gated_mlp else 2) * D * shape.intermediate_size
    return shape.num_hidden_layers * block + shape.vocab_size * D


def flops_per_token(shape: ModelConfig, config: TrainConfig) -> float:
    """The formula at the head of this file."""
    width = shape.num_attention_heads * shape.head_dim
    attention = 6 * shape.num_hidden_layers * width * config.sequence_length
    return (4 if config.lora_rank else 6) * matmul_weights(shape) + attention


def tokens_per_step(config: TrainConfig) -> int:
    """Rows x width; exam items count as half a row each."""
    return config.global_batch_size * config.sequence_length // (1 if config.task == "pretrain" else 2)


def worth_compiling(config: TrainConfig, shape: ModelConfig, device: torch.device) -> bool:
    """Whether to compile the blocks; auto: on a GPU from 50 M parameters on (a CPU gains a seventh)."""
    if config.compile == "auto":
        return device.type == "cuda" and matmul_weights(shape) >= 50e6
    return config.compile == "yes"


# ----------------------------------------------------------------------------------------------------- memory

def build(shape: ModelConfig, config: TrainConfig, world_size: int = 1) -> Transformer:
    """The model with its adapters, in the dtypes that a forward pass sees on one of `world_size` ranks."""
    model = Transformer(shape)
    if config.lora_rank:
        apply_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    for parameter in model.parameters():
        if config.precision == "bf16" and (world_size > 1 or not parameter.requires_grad):
            parameter.data = parameter.data.bfloat16()
    return model.train()


def saved_bytes(shape: ModelConfig, config: TrainConfig, world_size: int) -> int:
    """Bytes that a forward pass of one micro-batch saves for the backward pass, weights left out."""
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    use_autocast = config.precision == "bf16" and world_size == 1
    autocast = torch.autocast("cpu", torch.bfloat16, use_autocast, cache_enabled=False)
    with FakeTensorMode(), torch.device("cpu"), autocast:
        model = build(shape, config, world_size)
        ids = torch.zeros(config.micro_batch_size, config.sequence_length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids)
    weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in weights)


def training_memory(shape: ModelConfig, config: TrainConfig, world_size: int = 1,
                    device: str = "cuda") -> dict[str, int]:
    """Kind -> bytes on one of `world_size` ranks at the peak of a training step; no weights are allocated."""
    with torch.device("meta"):
        model = build(shape, config)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    B, T, L = config.micro_batch_size, config.sequence_length, shape.num_hidden_layers
    head, bf16, shards = shape.vocab_size * shape.hidden_size, config.precision == "bf16", config.shard_size
    shards = shards or world_size
    width = 2 if bf16 else 4
    # The residual stream is bf16 under FSDP and with LoRA's bf16 base, fp32 under autocast.
    stream = B * T * shape.hidden_size * (2 if bf16 and (world_size > 1 or config.lora_rank) else 4)
    one, two = (dataclasses.replace(shape, num_hidden_layers=layers) for layers in (1, 2))
    # What one block keeps for its backward pass.
    block = saved_bytes(two, config, world_size) - saved_bytes(one, config, world_size)
    recomputed = {"no": 0, "half": (L + 1) // 2, "all": L}[config.activation_checkpointing]
    logits = min(B * T, ChunkedCrossEntropy.ROWS.get(device, 1024)) * shape.vocab_size
    memory = {
        "weights": sum(p.numel() * p.element_size() for p in parameters) // shards,
        "gradients": 4 * trained // shards,
        "optimizer state": (8 if config.optimizer_state_dtype == "fp32" else 4) * trained // shards,
        "activations": L * stream + max(L - recomputed, 1) * block,
        "work space": (3 if bf16 else 2) * block,  # gradients in a block
        "loss": logits * (width + 4) + 2 * B * T * shape.hidden_size * width,
    }
    if not config.lora_rank:
        memory["loss"] += head * width  # the output matrix in the precision of the products
    if world_size > 1:  # FSDP gathers two blocks and the rest, and reduces one block's fp32 gradients
        block_weights = sum(p.numel() for p in model.layers[0].parameters())
        rest = sum(p.numel() for p in parameters) - L * block_weights
        memory["gathered weights"] = (2 * block_weights + rest) * width
        memory["gathered weights"] += 0 if config.lora_rank else 4 * block_weights
    elif config.global_batch_size <= B:  # gradients grow as the backward pass frees the activations
        memory["gradients"] = max(4 * head, memory["gradients"] - memory["activations"] - memory["loss"])
    return memory


# ---------------------------------------------------------------------------------------------------- dry run

def show(shape: ModelConfig, config: TrainConfig, steps: int, device: torch.device) -> None:
    """Print everything that `--dry_run` says; no run is begun."""
    ranks, tokens = distributed.world_size(), tokens_per_step(config)
    with torch.device("meta"):
        parameters = list(build(shape, config).parameters())
    memory = training_memory(shape, config, ranks, device.type)
    if device.type == "cpu":
        memory["program"] = peak_memory(device) + FIRST_STEP_BYTES
    unit, most = ("rows", "") if config.task == "pretrain" else ("examples", " at most")
    print(f"parameters      {sum(p.numel() for p in parameters):,}, trained "
          f"{sum(p.numel() for p in parameters if p.requires_grad):,}")
    print(f"steps           {steps:,} of {config.global_batch_size} {unit} = {tokens:,} tokens per "
          f"step{most}, {tokens * steps:,} in all")
    print(f"memory per rank {sum(memory.values()) / 1e9:.3f} GB of {ranks} x {device}")
    for name, size in memory.items():
        print(f"  {name:20} {size / 1e9:9.3f} GB")
    flops = flops_per_token(shape, config) * tokens * steps
    hours = flops / (USEFUL * measured_flops(config, device) * ranks) / 3600
    print(f"time            {hours:.2f} h at {USEFUL:.0%} of the measured speed of matrix products "
          f"({flops:.2e} FLOP)", flush=True)


def measured_flops(config: TrainConfig, device: torch.device) -> float:
    """FLOP/s of large matrix products in the precision of the run."""
    size, count = 8192 if device.type == "cuda" else 1024, 0
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    begin = time.perf_counter()
    while time.perf_counter() - begin < 0.3:
        (a @ b)[0, 0].item()  # waits for a GPU
        count += 1
    return count * 2 * size ** 3 / (time.perf_counter() - begin)
