"""What a run will need, before it starts: parameters, tokens a step, memory by part and rank, time to finish (`--dry-run`).

    MFU = (6 x matmul weights + 6 x layers x heads x head size x context) x tokens/s of a GPU / its dense bf16 peak
          LoRA: 4 for the first 6 (the base's weights have no gradient); attention counted causally; embedding look-ups not at all

Memory is a sum of parts, each a line below; what a block keeps for its backward pass is not guessed but counted, by running
one block on tensors without memory.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmed.config import TrainConfig
from mmed.lora import LoRALinear
from mmed.loss import ChunkedCrossEntropy
from mmed.model import Block
from mmed.training.logging import memory

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, for MFU
ASSUMED_MFU = 0.5          # GPUs, for the time left before anything was measured
COMPILE_SECONDS = 60.0     # what torch.compile of the blocks costs on a CPU, about
COMPILE_GAIN = 0.15        # what it saves of a step there (docs/benchmarks.md)
CPU_FLOPS = 1e11           # of one thread, for that decision alone
LATER_BYTES = 30_000_000   # code and tables of a CPU process that only the first step brings in


def peak_flops(device_name: str) -> float | None:
    return next((value for name, value in PEAK_FLOPS.items() if name in device_name), None)


def matmul_weights(shape) -> int:
    """Weights that take part in matrix products: all but the embedding look-up, norms and biases."""
    D, H, K, E = shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    block = D * (H + 2 * K) * E + H * E * D + (3 if shape.gated_mlp else 2) * D * shape.intermediate_size
    return shape.num_hidden_layers * block + shape.vocab_size * D


def flops_per_token(shape, config: TrainConfig) -> float:
    """The formula at the head of this file."""
    attention = 6 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * config.sequence_length
    return (4 if config.lora_rank else 6) * matmul_weights(shape) + attention


def tokens_per_step(config: TrainConfig) -> int:
    """Rows x width; exam items are counted as half a row each, before they have been read."""
    return config.global_batch_size * config.sequence_length // (1 if config.task == "pretrain" else 2)


def worth_compiling(config: TrainConfig, shape, steps: int, device) -> bool:
    """Whether torch.compile of the blocks pays: always on a GPU from 50 M parameters; on a CPU if the run is long enough."""
    if config.compile != "auto":
        return config.compile == "yes"
    if device.type == "cuda":
        return matmul_weights(shape) >= 50e6
    seconds = flops_per_token(shape, config) * tokens_per_step(config) * steps / CPU_FLOPS
    return COMPILE_GAIN * seconds > 2 * COMPILE_SECONDS and shutil.which(os.environ.get("CXX", "g++")) is not None


def block_memory(model, config: TrainConfig, device) -> tuple[int, int]:
    """(bytes a block keeps for its backward pass, bytes of its input), a micro-batch; counted on tensors without memory."""
    shape, B, T = model.config, config.micro_batch_size, config.sequence_length
    bf16 = config.precision == "bf16"
    whole = bf16 and (config.lora_rank or world() > 1)  # the residual stream is in bf16 then
    stored: dict[int, int] = {}
    usual = torch.get_default_dtype()
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16 if whole else torch.float32)
        try:
            with torch.device(device.type):
                block = Block(shape, 0).train()
                x = torch.zeros(B, T, shape.hidden_size, requires_grad=True)
                if config.lora_rank:
                    _adapt(block, config)
        finally:
            torch.set_default_dtype(usual)
        own = {p.untyped_storage()._cdata for p in block.parameters()} | {x.untyped_storage()._cdata}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own and tensor.dim() and tuple(tensor.shape) not in weights:
                stored[storage._cdata] = storage.nbytes()
            kept.append(tensor)  # so that no storage is freed and its number used again
            return tensor

        kept: list = []
        weights = {tuple(p.shape) for p in block.parameters()} | {tuple(p.shape)[::-1] for p in block.parameters()}
        context = torch.autocast(device.type, torch.bfloat16) if bf16 and world() == 1 else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), context:
            shared = model.attention_inputs(x, torch.arange(T, device=device)[None], None)
            block(x, shared)
    return sum(stored.values()), x.numel() * x.element_size()


def _adapt(block, config: TrainConfig) -> None:
    """LoRA in one block, as in the model."""
    wanted = ["qkv_proj"] if hasattr(block.self_attn, "qkv_proj") else ["q_proj", "v_proj"]
    names = wanted if config.lora_targets == "paper" else config.lora_targets.split(",")
    block.requires_grad_(False)
    for name, module in list(block.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, torch.nn.Linear) and (child in names or names == ["all-linear"]):
            setattr(block.get_submodule(parent), child, LoRALinear(module, config.lora_rank, config.lora_alpha, config.lora_dropout))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def memory_parts(model, config: TrainConfig, device) -> dict[str, int]:
    """Bytes of each part at the peak of a step on one rank."""
    shape = model.config
    ranks = config.shard_size or world()
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    count = sum(p.numel() for p in trained)
    bf16 = config.precision == "bf16"
    head = shape.vocab_size * shape.hidden_size
    head_trains = not config.lora_rank
    parts = {"weights": sum(p.numel() * p.element_size() for p in parameters) // ranks}
    parts["gradients"] = (max(p.numel() for p in trained) if config.step_in_backward else count) * 4 // ranks
    parts["moments"] = count * (8 if config.moments == "fp32" else 4) // ranks
    B, T, layers = config.micro_batch_size, config.sequence_length, shape.num_hidden_layers
    kept, entry = block_memory(model, config, device)
    if ranks > 1 or world() > 1:  # two blocks and the rest are gathered at a time, and one block's gradients in full
        width = 2 if bf16 else 4
        block = sum(p.numel() for p in model.layers[0].parameters())
        rest = sum(p.numel() for p in parameters) - layers * block
        parts["gathered weights"] = (2 * block + rest) * width + (block * 4 if head_trains else 0)
    elif bf16:  # autocast's copies of what trains; the blocks' are kept by the backward pass, or made again with checkpointing
        cast = sum(p.numel() for p in matrices) - (head if not shape.tie_word_embeddings else 0) - head
        parts["bf16 copies"] = max(0, cast) * 2 // (layers if config.activation_checkpointing == "all" else 1)
    again = {"no": 0, "all": layers, "half": (layers + 1) // 2}[config.activation_checkpointing]
    parts["activations"] = layers * entry + max(layers - again, 1) * kept
    parts["work space"] = (3 if bf16 else 2) * kept  # gradients on their way through a block, casts, holes between: measured on CPU
    rows = min(B * T, ChunkedCrossEntropy.ROWS.get(device.type, 1024))
    hidden = B * T * shape.hidden_size * (2 if bf16 else 4)
    few = ChunkedCrossEntropy.FEW if device.type == "cpu" else rows
    piece = (rows * (2 if bf16 else 4) + few * (8 if bf16 else 4)) * shape.vocab_size
    if head_trains and bf16:
        piece += head * 4  # the matrix in bf16, and a chunk's part of its gradient
    parts["loss"] = piece + 2 * hidden
    # The loss's pieces are gone when the backward pass frees the first block's activations and takes room for the last gradients.
    if not config.step_in_backward and ranks == 1:
        early = head * 4 if head_trains else 0
        late = parts["gradients"] - early
        backward = max(0, late - parts["activations"] - parts["loss"])
        parts["gradients"] = early + (late if config.global_batch_size > B else backward)
    if device.type == "cpu":
        parts["program"] = memory(device) + LATER_BYTES
    return parts


def show(config: TrainConfig, model, steps: int, device) -> None:
    """Print it all; no run is begun."""
    shape = model.config
    ranks = world()
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = tokens_per_step(config)
    flops = flops_per_token(shape, config) * tokens * steps
    parts = memory_parts(model, config, device)
    print(f"parameters      {total:,}, of which train {trained:,}")
    print(f"steps           {steps:,} of {config.global_batch_size} {'rows' if config.task == 'pretrain' else 'examples'}"
          f" = {tokens:,} tokens a step{'' if config.task == 'pretrain' else ' at most'}, {tokens * steps:,} in all")
    print(f"memory a rank   {sum(parts.values()) / 1e9:.3f} GB of {ranks} x {device}")
    for name, size in parts.items():
        print(f"  {name:20} {size / 1e9:9.3f} GB")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = peak_flops(gpu)
    if peak:
        rate, how = peak * ASSUMED_MFU * ranks, f"at an MFU of {ASSUMED_MFU:.0%}"
    else:
        rate, how = measured_rate(config, device) * ranks, "at the speed of this machine's matrix products now, and half as much again for the rest"
    seconds = flops / rate * (1 if peak else 1.5)
    print(f"time            {seconds / 3600:.2f} h {how} ({flops:.2e} FLOP)")
    sys.stdout.flush()


def measured_rate(config: TrainConfig, device) -> float:
    """FLOP/s of a matrix product of a training step's size, in its precision."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    a, b = (torch.randn(1024, 1024, device=device).to(dtype) for _ in range(2))
    a @ b
    begin, n = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.3:
        a @ b
        n += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return n * 2 * 1024 ** 3 / (time.perf_counter() - begin)
