"""Predicts what a run will need: parameters, tokens per step, memory per rank, time (`--dry_run`).

Memory is that of a simulated step (mmed/training/simulate.py), time follows from the number of operations:

    MFU = (6 x matmul weights + 12 x heads x head size x keys) x tokens/s of a GPU / its bf16 peak
          LoRA: 4 for 6 (no gradient of the base's weights); keys: seen on average, summed over the layers
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.benchmark import Timer

from mmed.config import TrainConfig
from mmed.data import ExamRows, PretrainRows
from mmed.model import ModelConfig, Transformer
from mmed.training import distributed
from mmed.training.loader import Batches, BatchSizes, full_rows
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
peak_flops = PEAK_FLOPS.get
ASSUMED_GPU = "NVIDIA H100 80GB HBM3"  # of simulated ranks
ASSUMED_FP32 = 494e12                  # its FLOP/s in TF32
RECOMPUTED = {"no": 0.0, "half": 0.5, "all": 1.0}  # share of the blocks that activation checkpointing repeats
SAMPLED = 20  # batches of exam items that a dry run makes
USEFUL = 0.5  # fraction of matrix-product speed that a step reaches, for the time estimate
# Assumed, on top of the simulated bytes (share, bytes): on a GPU gaps of the allocator; CUDA, NCCL's buffers
# and kernels' work space; on a CPU what malloc does not return; what the first step loads.
RESERVE = {"cuda": (0.05, 2_000_000_000), "cpu": (0.2, 80_000_000)}
Memory = dict[str, int]  # kind -> bytes


def matmul_weights(shape: ModelConfig) -> int:
    """Weights that take part in matrix products: all but the embedding look-up, norms and biases."""
    D, H, K, E = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    block = D * (H + 2 * K) * E + H * E * D + (3 if shape.gated_mlp else 2) * D * shape.intermediate_size
    return shape.num_hidden_layers * block + shape.vocab_size * D


def flops_per_token(shape: ModelConfig, config: TrainConfig) -> float:
    """The formula at the head of this file."""
    context, layers = config.sequence_length, range(shape.num_hidden_layers)
    windows = [min(context, (shape.slides(layer) and shape.sliding_window) or context) for layer in layers]
    keys = sum(window - window ** 2 / (2 * context) for window in windows)  # the first tokens see fewer
    attention = 12 * shape.num_attention_heads * shape.head_dim * keys
    return (4 if config.lora_rank else 6) * matmul_weights(shape) + attention


def flops_per_step(shape: ModelConfig, config: TrainConfig, sizes: BatchSizes) -> float:
    """The same for real batches, in which only some tokens carry loss and reach the head, with what
    activation checkpointing computes again."""
    config = replace(config, sequence_length=round(sizes.context))
    per_token, head = flops_per_token(shape, config), shape.vocab_size * shape.hidden_size
    blocks = flops_per_token(shape, replace(config, lora_rank=0)) / 3 - 2 * head  # forward pass
    again = RECOMPUTED[config.activation_checkpointing] * blocks
    unused = (4 if config.lora_rank else 6) * head * (sizes.positions - sizes.targets)
    return (per_token + again) * sizes.positions - unused


def worth_compiling(config: TrainConfig, shape: ModelConfig, device: torch.device) -> bool:
    """Whether to compile the blocks; auto: on a GPU from 50 M parameters on (a CPU gains a seventh)."""
    if config.compile == "auto":
        return device.type == "cuda" and matmul_weights(shape) >= 50e6
    return config.compile == "yes"


# ---------------------------------------------------------------------------------------------------- dry run

def look_at_batches(rows: PretrainRows | ExamRows, config: TrainConfig, world_size: int, steps: int,
                    flat: bool) -> BatchSizes:
    """Rows of token streams are full; of exam items SAMPLED batches are made as in training."""
    if not isinstance(rows, ExamRows):
        return full_rows(config, world_size)
    make = Batches(config, rows, torch.device("cpu"), flat)
    chosen = range(0, steps, -(-steps // SAMPLED))
    batches = [make.of_ranks(step, range(world_size), world_size) for step in chosen]
    largest = max((micro for batch in batches for micro in batch.micro),
                  key=lambda micro: (micro["input_ids"].numel(), len(micro["loss_positions"])))
    lengths = [len(item.ids) for step in chosen for item in rows.batch(step, config.global_batch_size)]
    return BatchSizes(*largest["input_ids"].shape, len(largest["loss_positions"]),
                      max(len(batch.micro) // world_size for batch in batches),
                      sum(batch.positions for batch in batches) / len(chosen),
                      sum(batch.targets for batch in batches) / len(chosen), sum(lengths) / len(lengths))


def show_sizes(sizes: Memory) -> None:
    for name, size in sizes.items():
        print(f"  {name:20} {size / 1e9:9.3f} GB")


def show_memory(memory: Memory, ranks: int, kind: str, program: int = 0) -> None:
    """Print bytes by kind. `program`: what the process holds beforehand, on a CPU."""
    share, size = RESERVE[kind]
    memory = memory | {"reserve": int(share * sum(memory.values())) + size}
    memory |= {"program": program} if program else {}
    print(f"memory per rank {sum(memory.values()) / 1e9:.3f} GB of {ranks} x {kind}")
    show_sizes(memory)


def show_simulation(config: TrainConfig, memory: Memory, traffic: Memory) -> None:
    """Print what mmed/training/simulate.py found for GPUs."""
    show_memory(memory, config.simulate_ranks, "cuda")
    print("received per rank and optimizer step")
    show_sizes(traffic)
    print("host waits      none", flush=True)


def show(model: Transformer, config: TrainConfig, rows: PretrainRows | ExamRows, steps: int,
         device: torch.device, simulated_step: Callable[[BatchSizes, str], tuple[Memory, Memory]]) -> None:
    """Print the whole `--dry_run` report; no run starts. Simulated ranks are assumed to be GPUs."""
    ranks = config.simulate_ranks or distributed.world_size()
    kind = "cuda" if config.simulate_ranks else device.type
    sizes = look_at_batches(rows, config, ranks, steps, kind == "cpu" and model.config.by_document)
    parameters, unit = list(model.parameters()), "rows" if config.task == "pretrain" else "examples"
    trained, tokens = [p for p in parameters if p.requires_grad], round(sizes.positions)
    print(f"parameters      {sum(p.numel() for p in parameters):,}, "
          f"trained {sum(p.numel() for p in trained):,}")
    print(f"steps           {steps:,} of {config.global_batch_size} {unit} = {tokens:,} tokens per step, "
          f"{round(sizes.targets):,} with loss; {tokens * steps:,} in all")
    memory = simulated_step(sizes, kind)[0]
    copy = sum(p.nbytes for p in trained) // (config.shard_size or ranks) + memory["optimizer state"]
    if kind == "cpu" and config.async_save and 0 < config.save_every < steps:
        memory["checkpoint copy"] = copy
    show_memory(memory, ranks, kind, peak_memory(device) if kind == "cpu" else 0)
    if kind == "cuda" and config.async_save:
        print(f"host memory     {copy / 1e9:.3f} GB per rank for the copy of a checkpoint")
    flops, source = flops_per_step(model.config, config, sizes) * steps, ASSUMED_GPU
    speed = PEAK_FLOPS[ASSUMED_GPU] if config.precision == "bf16" else ASSUMED_FP32
    if not config.simulate_ranks:
        speed, source = measured_flops(config, device), "measured"
    hours = flops / (USEFUL * speed * ranks) / 3600
    print(f"time            {hours:.2f} h at {USEFUL:.0%} of the speed of matrix products, "
          f"{speed / 1e12:.3g} TFLOP/s ({source}); {flops:.2e} FLOP", flush=True)


def measured_flops(config: TrainConfig, device: torch.device) -> float:
    """FLOP/s of large matrix products in the precision of the run."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    matrix = torch.randn(size, size, device=device).to(dtype)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads())
    return 2 * size ** 3 / timer.blocked_autorange(min_run_time=0.3).median
