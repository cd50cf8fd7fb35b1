"""One training loop: continued pre-training, full fine-tuning and LoRA, on one process or many.

    python mmed/train.py tiny
    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b --data=streams/en,streams/zh --out=runs/mmedlm2

In: a model folder and token streams (or exam items). Out: a run folder: `run.json` before step 0, one line a step in
`metrics.jsonl`, `checkpoints/step-N/`, and at the end `model/` (or `adapter/` for LoRA), which transformers and PEFT open.

    for each step:  rows of batch k  ->  micro-batches  ->  summed loss / target tokens of the global batch  ->  gradients
                    ->  clip  ->  AdamW  ->  metrics.jsonl  ->  (validation loss)  ->  (checkpoint)

Batch k depends on the seed and k alone (mmed/data.py), so a resumed run equals one that was never stopped; how it stops is
told in mmed/training/signals.py, and what a user does after a fault in docs/faults.md. The host never waits for the device inside a
step: what is logged of step k is read when step k + 1 has been given to it.
"""
from __future__ import annotations

import sys
from pathlib import Path

# `python mmed/train.py` puts mmed/ first on the path, where it would hide packages with the names of its files. The root of the
# repository takes its place, so that `mmed` is found whether or not it is installed.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import math
from collections.abc import Callable

from mmed.config import SHAPES, TrainConfig, parse_command_line
from mmed.training.run_folder import FolderLock, check_resume, keep_lines, not_identical, run_facts
from mmed.training.signals import StopSignal, explain
from mmed.utils.errors import EXIT_STOPPED, UsageError, UserError, main_guard
from mmed.utils.files import read_json, write_json


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to min_lr_ratio (or constant).  # MMedLM: cosine, warm-up ratio 0.01 / 0.03"""
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, steps - warmup)
    low = config.min_lr_ratio
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


# ---------------------------------------------------------------------------------------------------------------- model

def model_config(config: TrainConfig, tokenizer):
    """The `ModelConfig` of a model folder or a named shape, checked against the tokenizer."""
    from mmed.checkpoints import pretrained as checkpoint
    from mmed.model import ModelConfig

    if config.model.startswith("shape:"):
        shape = config.model.removeprefix("shape:")
        if shape not in SHAPES:
            raise UsageError(f"--model=shape:{shape}: known shapes are {', '.join(SHAPES)}")
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        return ModelConfig(vocab_size=tokenizer.vocab_size, extra={k: v for k, v in ids.items() if v is not None},
                           **{"rms_norm_eps": 1e-5, "max_position_embeddings": max(2048, config.sequence_length), **SHAPES[shape]})
    result = checkpoint.load_config(config.model)
    if tokenizer is not None and tokenizer.vocab_size > result.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the embedding of {config.model} only {result.vocab_size} rows")
    return result


def skeleton(config: TrainConfig, shape):
    """The model without memory (on the meta device), LoRA in place, every parameter of the dtype it will be kept in."""
    import torch

    from mmed.lora import apply_lora
    from mmed.model import Transformer

    with torch.device("meta"):
        model = Transformer(shape)
    if config.lora_rank:
        apply_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        if config.precision == "bf16":  # a frozen weight needs no more digits than it is computed with
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
    return model


def build_model(config: TrainConfig, shape, device, compiled: bool):
    """The model to train on this rank: from a folder or random, cut over the ranks; no rank ever holds it whole."""
    from mmed.checkpoints import pretrained as checkpoint
    from mmed.lora import adapted_layers, init_lora
    from mmed.training import distributed

    model = skeleton(config, shape)
    if distributed.world_size() > 1:
        distributed.shard(model, config.precision, config.shard_size)
    model.to_empty(device=device)
    if config.model.startswith("shape:"):
        model.init_weights(config.seed)
    else:
        checkpoint.load_weights(model, config.model)
    if config.lora_rank:
        init_lora(model, config.seed)
        if distributed.is_main():
            print(f"LoRA: {len(adapted_layers(model))} layers adapted, rank {config.lora_rank}, alpha {config.lora_alpha:g}", file=sys.stderr)
    model.activation_checkpointing = {"no": 0, "all": 1, "half": 2}[config.activation_checkpointing]
    if compiled:
        model.compile_blocks()
    return model.train()


def forward_backward(model, batch, scale, autocast, stop: Callable[[], bool] = lambda: False):
    """Gradients of `scale` times the summed loss of all micro-batches; returns that sum (unscaled) on the device, or None when
    told to stop between two of them."""
    sync = getattr(model, "set_requires_gradient_sync", lambda _: None)
    total = 0.0
    for i, micro in enumerate(batch.micro):
        if stop():
            return None
        sync(i == len(batch.micro) - 1)  # gradients are reduced once, with the last micro-batch
        with autocast():
            loss = model(**micro)
        (loss * scale).backward()
        total = total + loss.detach()
    return total


# ----------------------------------------------------------------------------------------------------------------- loop

def train(recipe: str, config: TrainConfig, stop: StopSignal | None = None) -> int:
    """Run `config` to its end (0) or until a signal (75)."""
    stop = stop or StopSignal()
    lock: list[FolderLock] = []
    try:
        return _train(recipe, config, stop, lock)
    except BaseException as error:
        explain(error, stop)
        raise
    finally:
        for held in lock:
            held.release()


def _train(recipe: str, config: TrainConfig, stop: StopSignal, lock: list[FolderLock]) -> int:
    import contextlib

    import torch
    from tqdm import tqdm

    from mmed.checkpoints import pretrained as checkpoint
    from mmed.checkpoints import training_state
    from mmed.checkpoints.adapters import save_adapter
    from mmed.checkpoints.async_save import AsyncCheckpointer
    from mmed.tokenizer import load_tokenizer
    from mmed.training import distributed
    from mmed.training import memory_estimate as budget
    from mmed.training.inspect_batch import batch_names
    from mmed.training.loader import Batches, make_rows, source_data
    from mmed.training.logging import Late, Log, Profile
    from mmed.training.optimizer import make_optimizer, update
    from mmed.training.validation import compare, validation_loss, validation_sets

    if config.deterministic:
        distributed.same_bits()
    device = distributed.start(config.rank_timeout_seconds)
    main, world, out = distributed.is_main(), distributed.world_size(), Path(config.out)
    if main and not config.dry_run:
        lock.append(FolderLock(out))
        stop.out = out
    if config.data == "source":
        if main and not (out / "source.json").is_file():
            source_data(out)
        distributed.barrier()
        config_data = dataclasses.replace(config, data=str(out / "source"), tokenizer=str(out / "tokenizer"))
    else:
        config_data = config
    folder, spec = config_data.tokenizer or config.model, config_data.data
    tokenizer = load_tokenizer(folder, config.bos) if checkpoint.has_tokenizer(folder) else None
    if tokenizer is None and (config.task == "finetune" or config.tokenizer or config.model.startswith("shape:")):
        raise UserError(f"{folder}: no tokenizer.model or tokenizer.json there; give --tokenizer=FOLDER")
    rows = make_rows(config, spec, tokenizer)
    size = rows.rows_per_epoch if config.task == "pretrain" else len(rows.examples)
    steps = config.max_steps or max(1, math.ceil(config.epochs * size / config.global_batch_size))

    shape = model_config(config, tokenizer)
    validation = {} if config.dry_run else validation_sets(config, tokenizer, shape.max_position_embeddings)
    if config.dry_run:
        if main:
            budget.show(config, skeleton(config, shape), steps, device)
        distributed.stop()
        return 0
    distributed.barrier()  # rank 0 holds the lock: from here on what the folder says is this run's
    facts = run_facts(recipe, config, tokenizer, rows, steps)
    if config.resume == "never" and (out / "run.json").is_file():
        raise UserError(f"{out}: holds a run already; give --resume=auto to go on with it, or another --out")
    name = "" if config.resume in ("auto", "never") else config.resume
    state_folder = training_state.latest_state(out, name) if config.resume != "never" else None
    old = read_json(out / "run.json") if state_folder is not None else None
    allowed = check_resume(old, facts) if old else {}
    if (out / "done.json").is_file() and config.resume == "auto":
        if main:
            print(f"{out}: already done", file=sys.stderr)
        distributed.stop()
        return 0

    torch.manual_seed(config.seed)
    compiled = budget.worth_compiling(config, shape, steps, device)
    model = build_model(config, shape, device, compiled)
    optimizer = make_optimizer(model, config)
    state = training_state.load_state(state_folder, model, optimizer) if state_folder is not None else {}
    first, optimizer.last_norm = state.get("step", 0), state.get("grad_norm", 0.0)
    if main:
        (out / "stopped").unlink(missing_ok=True)
        (out / "done.json").unlink(missing_ok=True)  # --resume=step-N of a finished run
        if old is None:
            write_json(out / "run.json", facts)
        elif (differs := not_identical(old, facts)) or allowed:
            note = {"step": first, "not_identical": differs, "allowed": {k: {"from": a, "to": b} for k, (a, b) in allowed.items()}}
            facts = facts | {"resumed": [*old.get("resumed", []), note]}
            write_json(out / "run.json", facts)
            for text in [differs, *(f"allowed to differ: {k}, {a} -> {b}" for k, (a, b) in allowed.items())]:
                print(f"resumed after step {first}: {text}" if text else "", file=sys.stderr)
        keep_lines(out / "metrics.jsonl", first or -1)
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        what = f"{size:,} rows of {config.sequence_length}" if config.task == "pretrain" else f"{size:,} examples"
        print(f"{recipe}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained; {what}; steps {first}..{steps} on "
              f"{world} x {facts['device']}", file=sys.stderr)
        if getattr(rows, "truncated", 0):
            print(f"warning: {rows.truncated} examples were longer than {config.sequence_length} tokens and lost the beginning of their prompt",
                  file=sys.stderr)

    use_autocast = config.precision == "bf16" and world == 1
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=False)) if use_autocast else contextlib.nullcontext
    batches, saver = Batches(config, rows, device, shape.by_document), AsyncCheckpointer(out, facts, lock, config, first)
    stop.join()
    profile = Profile(config.profile if main else 0, out, device)
    done, halted, pending = first, False, None
    owed = state.get("owed")  # the line of a step whose evaluation was broken off by a signal
    with tqdm(total=steps, initial=first, unit="step", disable=not main, file=sys.stderr, mininterval=0.5, dynamic_ncols=True) as bar:
        log = Log(out / "metrics.jsonl" if main else None, bar, config, device, steps, first, state, budget.flops_per_token(shape, config),
                  budget.peak_flops(facts["device"]), world, lambda step: batch_names(rows, config, step))

        def evaluate(line: dict) -> dict | None:
            """Write the line with the validation loss; the line itself is still owed when a signal came first."""
            losses = validation_loss(model, validation, config.micro_batch_size * config.sequence_length, device, autocast, stop.agreed)
            if losses is None:
                return line
            log.validated(line, losses)
            log.pause()
            return None

        if not first and validation:
            halted = evaluate({"step": 0, "tokens": 0}) is not None
        if owed:
            owed = evaluate(owed)
            halted = owed is not None
        for step, batch in enumerate(batches.ahead(first, steps), first + 1):  # step: how many are done when this one is
            if halted := halted or stop.agreed():
                break
            saver.check()
            lr = learning_rate(config, step - 1, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            # Loss per token of the whole global batch (DESIGN invariant 2): divide by the count over all ranks, not per micro-batch.
            targets = distributed.device_sum(torch.tensor([batch.targets], dtype=torch.float64).to(device, non_blocking=True))
            # Dropout must not depend on how often the run was restarted.
            torch.manual_seed(config.seed * 1_000_003 + step * 64 + distributed.rank() % 64)
            scale = (world / targets[0].clamp(min=1)).float()  # x world: FSDP averages gradients over ranks
            loss_sum = forward_backward(model, batch, scale, autocast, stop.agreed)
            if halted := loss_sum is None:
                break
            loss_sum = distributed.device_sum(loss_sum.double())
            norm = update(model, optimizer, config.max_grad_norm, loss_sum)
            if pending is not None:
                log.write(log.read(*pending))
            done, pending = step, (step, lr, batch.positions, Late(torch.cat((targets, torch.stack((loss_sum, norm.double()))))))
            stop.nothing_to_lose = False
            profile.step()
            bar.update()
            due = bool(validation) and (step == steps or (config.eval_every > 0 and step % config.eval_every == 0))
            save = step % config.save_every == 0 and step < steps
            if due or save or step == steps:  # what is evaluated or saved is known to be finite
                line, pending = log.read(*pending), None
                if due:
                    owed = evaluate(line)
                    halted = owed is not None
                else:
                    log.write(line)
                if save and not halted:
                    saver.save(model, optimizer, step, log)
                    log.pause()
                if halted:
                    break
        if pending is not None:
            log.write(log.read(*pending))
    profile.stop()
    saver.save(model, optimizer, done, log, owed)
    saver.wait()
    distributed.barrier()
    stop.agreed()
    if halted := stop.agreed() or halted:  # twice: the second call answers what the first asked
        if main:
            (out / "stopped").touch()  # for whoever queues jobs: torchrun does not hand on the exit code
            print(f"stopped by {stop.name} after step {done} of {steps}; go on with --resume=auto", file=sys.stderr)
        distributed.stop()
        return EXIT_STOPPED
    stop.nothing_to_lose = True  # all of it is in the last checkpoint
    if config.lora_rank:
        tensors = {name: distributed.whole(p.detach()) for name, p in model.named_parameters() if ".lora_" in name}
        if main:
            save_adapter(model, out / "adapter", config.model, tensors)
    else:
        checkpoint.save_pretrained(model, tokenizer, out / "model")
    if main:
        write_json(out / "done.json", {"steps": steps, "tokens": log.tokens, "loss": log.loss})
        change = f"{compare(log.before, log.after)}; " if log.before and log.after else ""
        print(f"{out}: done, {log.tokens:,} target tokens; {change}weights in {out / ('adapter' if config.lora_rank else 'model')}", file=sys.stderr)
    distributed.barrier()
    distributed.stop()
    return 0


def main() -> int:
    stop = StopSignal()  # before torch is imported, which takes seconds
    return train(*parse_command_line(sys.argv[1:]), stop)


if __name__ == "__main__":
    main_guard(main)
