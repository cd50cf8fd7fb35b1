"""One training loop: continued pre-training, full fine-tuning and LoRA, on one process or many.

    python mmed/train.py tiny
    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b --data=streams/en

In: a model folder and token streams (or exam items). Out: a run folder: `run.json` before step 0, one line
per step in `metrics.jsonl`, `checkpoints/step-N/`, and at the end `model/` (or `adapter/`), which
transformers and PEFT open.

    for each step:  rows of batch k -> micro-batches -> summed loss / target tokens of the global batch
                    -> gradients -> clip -> AdamW -> metrics.jsonl -> (validation loss) -> (checkpoint)

Batch k depends on the seed and k alone (mmed/data.py), and dropout on the seed, the step and the rank, so a
run resumed on as many ranks equals one that was never stopped, bit for bit (a GPU: with --deterministic).
The host never waits for the device inside a step: what is logged of step k is read after step k + 1 was
queued. How a run stops is in mmed/training/signals.py, what to do after a fault in docs/faults.md.
"""
from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# `python mmed/train.py` puts mmed/ first on the path, where it would hide packages with the names of its
# files. The root of the repository takes its place, so that `mmed` is found whether or not it is installed.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # importing torch takes seconds: a stop signal exits as it does later in the start
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows of many lengths leave gaps

import contextlib
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmed.checkpoints import adapters, pretrained, training_state
from mmed.config import SHAPES, VOCABULARIES, TrainConfig, parse_command_line
from mmed.data import ExamRows, PretrainRows
from mmed.lora import adapted_layers, init_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.training import distributed, loader, memory_estimate, optimizer, run_folder, simulate, validation
from mmed.training.inspect_batch import batch_names
from mmed.training.logging import Log, Values
from mmed.training.signals import Stopped, StopSignal, end_failed_rank
from mmed.utils.errors import EXIT_STOPPED, UsageError, UserError, main_guard
from mmed.utils.files import read_json, write_json


@dataclass
class Run:
    """A run that is ready to train."""

    config: TrainConfig
    device: torch.device
    tokenizer: Tokenizer | None
    model: Transformer
    optimizer: torch.optim.Optimizer
    autocast: Callable[[], AbstractContextManager]
    batches: loader.Batches
    validation: dict[str, validation.ValidationSet]
    log: Log
    checkpoints: training_state.AsyncCheckpointer
    stop: StopSignal
    step: int   # steps done
    steps: int  # of the whole run


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to min_lr_ratio (or constant); `step` counts from 0."""
    # MMedLM: cosine, warm-up ratio 0.01 / 0.03
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, steps - warmup)
    low = config.min_lr_ratio
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


# ------------------------------------------------------------------------------------------------------ model

def model_config(config: TrainConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """The `ModelConfig` of a model folder or a named shape, checked against the tokenizer."""
    if not config.model.startswith("shape:"):
        result = pretrained.load_config(config.model)
        if tokenizer is not None and tokenizer.vocab_size > result.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the embedding of {config.model} "
                            f"only {result.vocab_size} rows")
        dynamic = (result.rope_scaling or {}).get("rope_type") == "dynamic"
        if dynamic and config.sequence_length > result.max_position_embeddings:
            raise UserError(f"--sequence_length={config.sequence_length}: {config.model} has dynamic RoPE "
                            f"scaling, which works up to {result.max_position_embeddings} tokens here")
        return result
    shape = config.model.removeprefix("shape:")
    if shape not in SHAPES:
        raise UsageError(f"--model=shape:{shape}: known shapes are {', '.join(SHAPES)}")
    defaults = {"rms_norm_eps": 1e-5, "max_position_embeddings": max(2048, config.sequence_length)}
    if tokenizer is None:  # only in a simulation: load_data requires a tokenizer for a named shape
        words = VOCABULARIES.get(shape.partition("-")[0], 8192)
        return ModelConfig(vocab_size=words, **(defaults | SHAPES[shape]))
    ids = [("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id)]
    extra = {f"{name}_token_id": number for name, number in ids if number is not None}
    return ModelConfig(vocab_size=tokenizer.vocab_size, extra=extra, **(defaults | SHAPES[shape]))


def skeleton(config: TrainConfig, shape: ModelConfig) -> Transformer:
    """The model without memory (meta device), LoRA in place, every parameter in the dtype it is kept in."""
    with torch.device("meta"):
        return memory_estimate.build(shape, config)


def sharded_skeleton(config: TrainConfig, shape: ModelConfig, device: torch.device) -> Transformer:
    """The skeleton as it runs: checkpointed, compiled, sharded over the ranks."""
    model = skeleton(config, shape)
    distributed.checkpoint_blocks(model, config.activation_checkpointing)
    if memory_estimate.worth_compiling(config, shape, device):
        distributed.compile_blocks(model)
    if distributed.world_size() > 1:
        distributed.shard(model, config.precision, config.shard_size, config.rank_timeout_seconds)
    return model


def build_model(config: TrainConfig, shape: ModelConfig, device: torch.device) -> Transformer:
    """The model to train, from a folder or random; no rank ever holds it whole."""
    model = sharded_skeleton(config, shape, device).to_empty(device=device)
    if config.model.startswith("shape:"):
        model.init_weights(config.seed)
    else:
        pretrained.copy_weights(model, config.model)
    if config.lora_rank:
        init_lora(model, config.seed)
    return model.train()


def simulated_step(config: TrainConfig, shape: ModelConfig, sizes: loader.BatchSizes | None = None,
                   kind: str = "cuda") -> tuple[dict[str, int], dict[str, int]]:
    """Simulate a step on ranks that do not exist; return (memory, traffic) in bytes by kind."""
    config = replace(config, compile="no")  # not with fake tensors
    build = functools.partial(sharded_skeleton, config, shape, torch.device("cpu"))
    return simulate.simulate(config, build, forward_backward, sizes, kind)


# ------------------------------------------------------------------------------------------- setup and resume

def train(recipe: str, config: TrainConfig) -> int:
    """Run `config` to its end (exit code 0) or until a signal (75)."""
    stop = StopSignal()
    if config.simulate_ranks and not config.dry_run:
        shape = model_config(config, None)
        memory_estimate.show_simulation(config, *simulated_step(config, shape))
        return 0
    try:
        if config.deterministic:
            distributed.make_deterministic()
        device = distributed.start(config.rank_timeout_seconds)
        writes = distributed.is_main() and not config.dry_run
        lock = run_folder.FolderLock(Path(config.out)) if writes else None
        stop.out = Path(config.out) if writes else None
        try:
            run = setup(recipe, config, device, stop, lock)
            code = 0 if run is None else run_to_end(run)
        finally:
            if lock:
                lock.release()
        distributed.stop()
        return code
    except BaseException as error:
        end_failed_rank(error, stop)
        raise


def setup(recipe: str, config: TrainConfig, device: torch.device, stop: StopSignal,
          lock: run_folder.FolderLock | None) -> Run | None:
    """Everything before the first step; None if there is nothing to train (finished, or a dry run)."""
    out = Path(config.out)
    if distributed.is_main() and config.data == "source" and not (out / "source.json").is_file():
        loader.write_source_data(out)
    distributed.barrier()  # rank 0 holds the lock: from here on the folder is this run's
    if not config.dry_run:
        training_state.wait_for_files(out, ["lock"])  # seen on every node, if all share the folder
        distributed.barrier()
    state_folder, old = find_checkpoint(config)
    if (out / "done.json").is_file() and config.resume == "auto" and not config.dry_run:
        if distributed.is_main():
            print(f"{out}: already done", file=sys.stderr)
        return None
    tokenizer, rows, shape = load_data(config)
    count = rows.rows_per_epoch if isinstance(rows, PretrainRows) else len(rows.examples)
    steps = config.max_steps or max(1, math.ceil(config.epochs * count / config.global_batch_size))
    if config.dry_run:
        if distributed.is_main():
            simulated = functools.partial(simulated_step, config, shape)
            memory_estimate.show(shape, config, rows, steps, device, simulated)
        return None
    facts = run_folder.run_facts(recipe, config, tokenizer, rows, steps)
    if old:
        run_folder.check_resume(old, facts)
    held_out = validation.validation_sets(config, tokenizer, shape.max_position_embeddings)
    if isinstance(rows, PretrainRows):
        loader.verify_streams(rows.streams, device)

    torch.manual_seed(config.seed)
    model = build_model(config, shape, device)
    adamw = optimizer.make_optimizer(model, config)
    state = training_state.load_state(state_folder, model, adamw) if state_folder else {}
    first = state.get("step", 0)
    if distributed.is_main():
        if state_folder:
            training_state.set_latest(state_folder)
        run_folder.start(out, facts, old, first)
        print_start(facts, rows, count, model, first)
    stop.join(config.rank_timeout_seconds)
    log = Log(config, device, first, steps, state, memory_estimate.flops_per_token(shape, config),
              memory_estimate.peak_flops(facts["device"]), functools.partial(batch_names, rows, config))
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext  # FSDP casts by itself
    if config.precision == "bf16" and distributed.world_size() == 1:
        autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, cache_enabled=False)
    return Run(config, device, tokenizer, model, adamw, autocast,
               loader.Batches(config, rows, device, shape.by_document), held_out, log,
               training_state.AsyncCheckpointer(out, facts, lock, config, first), stop, first, steps)


def find_checkpoint(config: TrainConfig) -> tuple[Path | None, dict | None]:
    """(checkpoint to resume from, run.json of the run it belongs to), both None for a new run."""
    run = Path(config.out)
    if config.resume == "never":
        if (run / "run.json").is_file() and not config.dry_run:
            raise UserError(f"{run}: holds a run already; give --resume=auto or another --out")
        return None, None
    folder = training_state.latest_state(run, "" if config.resume == "auto" else config.resume)
    if folder is None and not (run / "done.json").is_file():
        return None, None
    old = read_json(run / "run.json")
    run_folder.check_resume(old, {"config": vars(config)})  # data and model are compared once they are open
    return folder, old


def load_data(config: TrainConfig) -> tuple[Tokenizer | None, PretrainRows | ExamRows, ModelConfig]:
    """Tokenizer, rows and the model's configuration; opens the data without reading it all."""
    config = loader.with_source_data(config)
    folder = config.tokenizer or config.model
    tokenizer = load_tokenizer(folder, config.bos) if pretrained.has_tokenizer(folder) else None
    needed = (config.task != "pretrain" or config.tokenizer or config.model.startswith("shape:")
              or config.bos != "auto")
    if tokenizer is None and needed:
        raise UserError(f"{folder}: no tokenizer.model or tokenizer.json there; give --tokenizer=FOLDER")
    rows, shape = loader.make_rows(config, tokenizer), model_config(config, tokenizer)
    for stream in rows.streams if isinstance(rows, PretrainRows) else ():
        if stream.vocab_size > shape.vocab_size:
            raise UserError(f"{stream.prefix}: has ids up to {stream.vocab_size - 1}, the embedding of "
                            f"{config.model} only {shape.vocab_size} rows")
    return tokenizer, rows, shape


def print_start(facts: dict, rows: PretrainRows | ExamRows, count: int, model: Transformer,
                first: int) -> None:
    total = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    unit = "rows" if isinstance(rows, PretrainRows) else "examples"
    print(f"{facts['recipe']}: {total:.2f} M parameters, {trained:.2f} M trained; {count:,} {unit} of up to "
          f"{rows.T} tokens; steps {first}..{facts['steps']} on {facts['world_size']} x {facts['device']}",
          file=sys.stderr)
    if layers := adapted_layers(model):
        config = facts["config"]
        print(f"LoRA: {len(layers)} layers, rank {config['lora_rank']}, alpha {config['lora_alpha']:g}",
              file=sys.stderr)
    warnings = list(rows.warnings) if isinstance(rows, ExamRows) else []
    if model.config.position_embedding == "rope" and rows.T > model.config.max_position_embeddings:
        warnings.append(f"--sequence_length={rows.T} exceeds the model's "
                        f"{model.config.max_position_embeddings} positions: longer documents are new to it")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------- loop

def run_to_end(run: Run) -> int:
    """Train, then export the result; or save and return 75 after a stop signal."""
    try:
        training_loop(run)
        save(run)
        run.stop.check()
        run.stop.check()  # with several ranks a call returns the request seen by the call before it
    except Stopped:
        save(run)
        run.checkpoints.wait()
        if distributed.is_main():
            (Path(run.config.out) / "stopped").touch()  # for batch scripts: torchrun hides exit codes
            print(f"stopped by {run.stop.name} after step {run.step} of {run.steps}; continue with "
                  "--resume=auto", file=sys.stderr)
        return EXIT_STOPPED
    run.checkpoints.wait()
    run.stop.nothing_to_save = True
    finish(run)
    return 0


def training_loop(run: Run) -> None:
    config, steps = run.config, run.steps
    if run.step == 0:
        evaluate(run)
    for batch in run.batches.ahead(run.step, steps):
        run.stop.check()
        run.checkpoints.check()
        train_step(run, batch)
        if run.step == steps or (config.eval_every and run.step % config.eval_every == 0):
            evaluate(run)
        if run.step < steps and run.step % config.save_every == 0:
            save(run)


def train_step(run: Run, batch: loader.Batch) -> None:
    """One optimizer step on global batch number `run.step`."""
    config, world = run.config, distributed.world_size()
    lr = learning_rate(config, run.step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    # The loss per token of the whole global batch: the divisor is the count over all ranks and micro-batches.
    own_targets = torch.tensor([batch.targets], dtype=torch.float64).to(run.device, non_blocking=True)
    targets = distributed.device_sum(own_targets)
    scale = (world / targets[0].clamp(min=1)).float()  # x world: FSDP averages gradients over ranks
    # Dropout must not depend on how often the run was restarted.
    torch.manual_seed((config.seed * 1_000_003 + run.step + 1) * world + distributed.rank())
    loss_sum = forward_backward(run.model, batch, scale, run.autocast, run.stop.check)
    loss_sum = distributed.device_sum(loss_sum.double())
    norm = optimizer.update(run.model, run.optimizer, config.max_grad_norm, loss_sum)
    run.step += 1
    run.stop.nothing_to_save = False
    values = torch.cat((targets, torch.stack((loss_sum, norm.double()))))
    run.log.add(run.step, lr, batch.positions, Values(values))


def forward_backward(model: Transformer, batch: loader.Batch, scale: Tensor | float,
                     autocast: Callable[[], AbstractContextManager],
                     check_stop: Callable[[], object] = lambda: None) -> Tensor:
    """Add the gradients of `scale` times the summed loss; returns the sum itself, unscaled, on the device.

    Under FSDP every micro-batch's gradients are reduced at once to the ranks that own them; holding them
    unsharded would cost 4 bytes per parameter on every rank. With hybrid sharding only the last one crosses
    between nodes.
    """
    defer_all_reduce = getattr(model, "set_requires_all_reduce", lambda _: None)
    total = torch.zeros(())
    for number, micro in enumerate(batch.micro):
        check_stop()
        defer_all_reduce(number == len(batch.micro) - 1)
        with autocast():
            loss = model(**micro)
        (loss * scale).backward()
        total = loss.detach() + total.to(loss.device)
    return total


def evaluate(run: Run) -> None:
    """Measure the validation loss, if there is any, and write it with the line of the last step."""
    if run.validation:
        line = run.log.take()
        tokens = run.config.micro_batch_size * run.config.sequence_length
        losses = validation.validation_loss(run.model, run.validation, tokens, run.device, run.autocast)
        run.log.validated(line, losses)


def save(run: Run) -> None:
    """Write a checkpoint, unless the last one is of this step. What is saved is known to be finite."""
    run.log.flush()
    run.checkpoints.save(run.model, run.optimizer, run.step, run.log)
    run.log.pause()


def finish(run: Run) -> None:
    """Export the model or adapter, and mark the run as done."""
    config, log, out = run.config, run.log, Path(run.config.out)
    result = out / ("adapter" if config.lora_rank else "model")
    if config.lora_rank:
        adapters.save_adapter(run.model, result, config.model)
    else:
        pretrained.save_pretrained(run.model, run.tokenizer, result)
    log.bar.close()
    if distributed.is_main():
        write_json(out / "done.json", {"steps": run.steps, "tokens": log.tokens, "loss": log.loss})
        change = validation.compare(log.validation_before, log.validation_after)
        print(f"{out}: done, {log.tokens:,} target tokens; {change}weights in {result}", file=sys.stderr)
    distributed.barrier()


def main() -> int:
    return train(*parse_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main_guard(main)
