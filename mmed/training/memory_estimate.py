"""What a run will need before it starts: parameters, tokens per step, memory per rank, time (`--dry_run`).

    MFU = (6 x matmul weights + 6 x layers x heads x head size x context) x tokens/s of a GPU / its bf16 peak
          LoRA: 4 for the first 6 (the base's weights have no gradient); attention is causal

`training_memory` is the project's only model of training memory. What a block keeps and needs is counted, by
running one block on fake tensors; the rest is a formula. docs/scale.md compares it with simulated ranks.
"""
from __future__ import annotations

import dataclasses
import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from mmed.config import TrainConfig
from mmed.data import ExamRows, PretrainRows
from mmed.lora import apply_lora
from mmed.loss import ChunkedCrossEntropy
from mmed.model import ModelConfig, Transformer
from mmed.training import distributed
from mmed.training.loader import Batches, BatchSizes, full_rows
from mmed.training.logging import peak_memory
from mmed.training.simulate import Watch

# Dense bf16 FLOP/s by torch.cuda.get_device_name(), from NVIDIA's data sheets. Whole names, because variants
# of one product differ; a MIG slice or an unknown GPU has no MFU rather than a wrong one.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12, "NVIDIA A800-SXM4-80GB": 312e12, "NVIDIA A800 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12,
    "NVIDIA H800": 989e12, "NVIDIA H200": 989e12, "NVIDIA H200 NVL": 835e12, "NVIDIA B200": 2250e12,
    "NVIDIA L40S": 362e12, "NVIDIA L4": 121e12, "NVIDIA A10G": 70e12, "NVIDIA GeForce RTX 4090": 165e12,
}
ASSUMED_GPU = "NVIDIA H100 80GB HBM3"  # of simulated ranks
STATE_BYTES = {"fp32": 8, "bf16": 4}  # of AdamW, per trained parameter
SAMPLED = 20             # batches of exam items that a dry run makes
USEFUL = 0.5             # share of the speed of matrix products that a step reaches, for the estimate of time
# Not counted on a GPU, assumed: gaps of the allocator; CUDA, NCCL's buffers and kernels' work space.
RESERVE_SHARE, RESERVE_BYTES = 0.05, 2_000_000_000
# Of a CPU's backward pass, in units of what a block keeps: malloc returns little of what kernels used.
CPU_WORK = {"fp32": 2, "bf16": 3}
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


@dataclasses.dataclass
class Work:
    """What the batches of a run hold, on average."""

    positions: float  # tokens computed per step, by all ranks
    targets: float    # of these, tokens that carry loss
    context: float    # length of a document or exam item


def flops_per_step(shape: ModelConfig, config: TrainConfig, work: Work) -> float:
    """The same for real batches, in which only some tokens carry loss and reach the head."""
    per_token = flops_per_token(shape, dataclasses.replace(config, sequence_length=round(work.context)))
    head = (4 if config.lora_rank else 6) * shape.vocab_size * shape.hidden_size
    return per_token * work.positions - head * (work.positions - work.targets)


def worth_compiling(config: TrainConfig, shape: ModelConfig, device: torch.device) -> bool:
    """Whether to compile the blocks; auto: on a GPU from 50 M parameters on (a CPU gains a seventh)."""
    if config.compile == "auto":
        return device.type == "cuda" and matmul_weights(shape) >= 50e6
    return config.compile == "yes"


# ----------------------------------------------------------------------------------------------------- memory

def build(shape: ModelConfig, config: TrainConfig) -> Transformer:
    """The model with LoRA in place, every parameter in the dtype that it is kept in."""
    model = Transformer(shape)
    if config.lora_rank:
        apply_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        for parameter in model.parameters():  # frozen weights need no more precision than they compute in
            if config.precision == "bf16" and not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def reserve(memory: int) -> int:
    """Bytes of a GPU to leave free: gaps of the allocator, NCCL's buffers, kernels' work space."""
    return int(RESERVE_SHARE * memory + RESERVE_BYTES)


@dataclasses.dataclass
class BlockMemory:
    """Bytes of one block and one micro-batch."""

    output: int  # the residual stream
    inner: int   # kept for the backward pass besides
    work: int    # what the backward pass needs on top


def block_memory(shape: ModelConfig, config: TrainConfig, world_size: int, sizes: BatchSizes) -> BlockMemory:
    """Counted on fake tensors, in one block of the model."""
    bf16 = config.precision == "bf16"
    one = dataclasses.replace(shape, num_hidden_layers=1, sliding_layers=shape.sliding_layers[:1])
    autocast = torch.autocast("cpu", torch.bfloat16, bf16 and world_size == 1, cache_enabled=False)
    with FakeTensorMode(), torch.device("cpu"), autocast:
        model = build(one, config).train()
        for parameter in model.parameters() if bf16 and world_size > 1 else ():  # as FSDP gathers it
            parameter.data = parameter.data.bfloat16()
        # The residual stream is bf16 under FSDP and with LoRA's bf16 base, fp32 under autocast.
        x = torch.zeros(sizes.rows, sizes.length, shape.hidden_size, dtype=model.embed_tokens.weight.dtype,
                        requires_grad=True)
        shared = model.attention_inputs(x, torch.arange(sizes.length)[None])
        watch = Watch(model)
        with watch:
            y = model.layers[0](x, shared)
            weights, forward = watch.held["weights"], watch.held["activations"]
            y.backward(torch.zeros_like(y))
    return BlockMemory(y.nbytes, forward - y.nbytes, sum(watch.peak.values()) - weights - forward)


def loss_bytes(shape: ModelConfig, config: TrainConfig, world_size: int, device: str,
               sizes: BatchSizes) -> int:
    """Bytes of the loss at the end of the forward pass, where its gradient is formed."""
    width = 2 if config.precision == "bf16" else 4
    head = shape.vocab_size * shape.hidden_size
    rows = min(sizes.targets, ChunkedCrossEntropy.ROWS.get(device, 1024))
    chunk = rows * shape.vocab_size * (10 if width == 2 else 8)  # logits and two fp32 copies of them
    hidden = 2 * sizes.targets * shape.hidden_size * width       # hidden states and their gradient
    matrix = 0 if config.lora_rank else 4 * head                 # gradient of the output matrix
    if width == 2 and world_size == 1 and not config.lora_rank:
        matrix += 2 * head                                       # the matrix itself, cast
    return chunk + hidden + matrix


def training_memory(shape: ModelConfig, config: TrainConfig, world_size: int = 1, device: str = "cuda",
                    sizes: BatchSizes | None = None) -> dict[str, int]:
    """Kind -> bytes on one of `world_size` ranks at the peak of a training step; no weights are allocated.

    The peak is at the end of the forward pass (the loss), at the first blocks of the backward pass, or at
    its end, when FSDP reduces the gradients of embedding and head.
    """
    def count(parameters: list[Parameter], trained: bool = False) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad or not trained)

    with torch.device("meta"):
        model = build(shape, config)
    every, one, L = list(model.parameters()), list(model.layers[0].parameters()), shape.num_hidden_layers
    sizes = sizes or full_rows(config, world_size)
    block = block_memory(shape, config, world_size, sizes)
    shards, width = config.shard_size or world_size, 2 if config.precision == "bf16" else 4
    head = 0 if config.lora_rank else shape.vocab_size * shape.hidden_size
    recomputed = {"no": 0, "half": (L + 1) // 2, "all": L}[config.activation_checkpointing]
    base = {"weights": sum(p.numel() * p.element_size() for p in every) // shards,
            "optimizer state": STATE_BYTES[config.optimizer_state_dtype] * count(every, True) // shards}
    sharded_gradients = 4 * count(every, True) // shards
    earlier = sharded_gradients if sizes.micro_batches > 1 else 0  # of the micro-batches before
    kept = L * block.output + (L - recomputed) * block.inner
    work = block.work if device == "cuda" else CPU_WORK[config.precision] * block.inner
    forward = base | {"gradients": earlier, "activations": kept,
                      "loss": loss_bytes(shape, config, world_size, device, sizes)}
    backward = base | {"gradients": earlier + head * (width if world_size > 1 else 4), "temporaries": work,
                       "activations": kept + (block.inner if recomputed == L else 0)}
    end = base | {"gradients": sharded_gradients}
    if world_size > 1:  # what FSDP gathers and reduces
        rest, rest_trained = (count(every, trained) - L * count(one, trained) for trained in (False, True))
        forward["gathered weights"] = (rest + count(one)) * width       # the last block's buffer still exists
        backward["gathered weights"] = (rest + 2 * count(one)) * width  # a block and the next one
        backward["gradients"] += 4 * count(one, True)                   # the block before, in fp32
        end["gradients"] += (width + 4) * rest_trained                  # of the rest, copied to fp32
    return max(forward, backward, end, key=lambda phase: sum(phase.values()))


# ---------------------------------------------------------------------------------------------------- dry run

def look_at_batches(rows: PretrainRows | ExamRows, config: TrainConfig, world_size: int, steps: int,
                    end_to_end: bool) -> tuple[Work, BatchSizes]:
    """Rows of token streams are full; of exam items SAMPLED batches are made as in training."""
    if not isinstance(rows, ExamRows):
        positions = config.global_batch_size * config.sequence_length
        return Work(positions, positions, config.sequence_length), full_rows(config, world_size)
    make = Batches(config, rows, torch.device("cpu"), end_to_end)
    chosen = range(0, steps, -(-steps // SAMPLED))
    batches = [make.of_rank(step, rank, world_size) for step in chosen for rank in range(world_size)]
    largest = max((micro for batch in batches for micro in batch.micro),
                  key=lambda micro: (micro["input_ids"].numel(), len(micro["loss_positions"])))
    sizes = BatchSizes(*largest["input_ids"].shape, len(largest["loss_positions"]),
                       max(len(batch.micro) for batch in batches))
    positions, targets = (sum(getattr(batch, name) for batch in batches) / len(chosen)
                          for name in ("positions", "targets"))
    lengths = [len(item.ids) for step in chosen for item in rows.batch(step, config.global_batch_size)]
    return Work(positions, targets, sum(lengths) / len(lengths)), sizes


def show(shape: ModelConfig, config: TrainConfig, rows: PretrainRows | ExamRows, steps: int,
         device: torch.device) -> None:
    """Print everything that `--dry_run` says; no run is begun. Simulated ranks are taken to be GPUs."""
    ranks = config.simulate_ranks or distributed.world_size()
    kind = "cuda" if config.simulate_ranks else device.type
    work, sizes = look_at_batches(rows, config, ranks, steps, kind == "cpu" and shape.by_document)
    with torch.device("meta"):
        parameters = list(build(shape, config).parameters())
    memory = training_memory(shape, config, ranks, kind, sizes)
    if kind == "cpu":
        memory["program"] = peak_memory(device) + FIRST_STEP_BYTES
    else:
        memory["reserve"] = reserve(sum(memory.values()))
    unit, tokens = "rows" if config.task == "pretrain" else "examples", round(work.positions)
    print(f"parameters      {sum(p.numel() for p in parameters):,}, trained "
          f"{sum(p.numel() for p in parameters if p.requires_grad):,}")
    print(f"steps           {steps:,} of {config.global_batch_size} {unit} = {tokens:,} tokens per step, "
          f"{round(work.targets):,} with loss; {tokens * steps:,} in all")
    print(f"memory per rank {sum(memory.values()) / 1e9:.3f} GB of {ranks} x {kind}")
    for name, size in memory.items():
        print(f"  {name:20} {size / 1e9:9.3f} GB")
    flops, speed, source = flops_per_step(shape, config, work) * steps, PEAK_FLOPS[ASSUMED_GPU], ASSUMED_GPU
    if not config.simulate_ranks:
        speed, source = measured_flops(config, device), "measured"
    hours = flops / (USEFUL * speed * ranks) / 3600
    print(f"time            {hours:.2f} h at {USEFUL:.0%} of the speed of matrix products, "
          f"{speed / 1e12:.3g} TFLOP/s ({source}); {flops:.2e} FLOP", flush=True)


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


def show_simulation(shape: ModelConfig, config: TrainConfig, memory: dict[str, int],
                    traffic: dict[str, int]) -> None:
    """Print what mmed/training/simulate.py found beside what `--dry_run` computes."""
    predicted = training_memory(shape, config, config.simulate_ranks)
    total, expected = sum(memory.values()), sum(predicted.values())
    kinds = [(kind, memory.get(kind, 0), predicted.get(kind, 0)) for kind in sorted({*memory, *predicted})]
    kinds += [("sum", total, expected),
              ("with the reserve", total + reserve(total), expected + reserve(expected))]
    print(f"{'memory per rank, GB':24}{'simulated':>10}{'dry run':>10}")
    for kind, simulated, computed in kinds:
        print(f"  {kind:22}{simulated / 1e9:10.3f}{computed / 1e9:10.3f}")
    print(f"dry run / simulated     {expected / total:10.3f}")
    print("received per rank and optimizer step, GB")
    print(*(f"  {kind:22}{size / 1e9:10.3f}" for kind, size in traffic.items()), sep="\n")
    print("host waits                none", flush=True)
