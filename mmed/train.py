"""One training loop: continued pre-training, full fine-tuning and LoRA, on one process or many.

    python mmed/train.py tiny
    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b --data=streams/en,streams/zh --out=runs/mmedlm2

In: a model folder and token streams (or exam items). Out: a run folder: `run.json` before step 0, one line a step in
`metrics.jsonl`, `checkpoints/step-N/`, and at the end `model/` (or `adapter/` for LoRA), which transformers and PEFT open.

    for each step:  rows of batch k  ->  micro-batches  ->  summed loss / target tokens of the global batch  ->  gradients
                    ->  clip  ->  AdamW  ->  metrics.jsonl  ->  (held-out loss)  ->  (checkpoint)

Batch k depends on the seed and k alone (mmed/data.py), so a resumed run equals one that was never stopped. The host never
waits for the device inside a step: what is logged of step k is read when step k + 1 has been given to it.
"""
from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

from mmed.config import SHAPES, TrainConfig, parse_command_line
from mmed.errors import EXIT_STOPPED, UsageError, UserError, main_guard
from mmed.files import read_json, write_json
from mmed.run_folder import StopSignal, check_resume, keep_lines, lock_folder, run_facts


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


# ------------------------------------------------------------------------------------------------------- held-out loss

EVAL_ROWS = 64  # rows of each validation stream, and items of each language, that the held-out loss is taken over


def held_out(config: TrainConfig, tokenizer) -> dict[str, list]:
    """language (or stream) -> its rows for the held-out loss, in file order."""
    from mmed.batches import make_rows
    from mmed.data import ExamRows
    from mmed.prompts import read_benchmark

    if not config.validation:
        return {}
    if config.task == "pretrain":
        rows = make_rows(config, config.validation, tokenizer)
        result: dict[str, list] = {}
        for s, stream in enumerate(rows.streams):
            result.setdefault(stream.language, []).extend(rows.packed(s, w) for w in range(min(EVAL_ROWS, max(1, rows.sizes[s]))))
        return result
    items = read_benchmark(config.validation)
    result = {}
    for language in dict.fromkeys(item.language for item in items):
        exam = ExamRows([i for i in items if i.language == language][:EVAL_ROWS], tokenizer, config.sequence_length, config.seed,
                        modes=(config.rationales != "without",), style=config.prompt_style)
        result[language] = exam.rows(exam.examples)
    return result


def held_out_loss(model, sets: dict[str, list], config: TrainConfig, device, autocast) -> dict[str, float]:
    """Mean cross-entropy per target token of each set, in nats; every rank computes a share."""
    import torch

    from mmed import distributed
    from mmed.batches import micro_batches
    from mmed.data import rank_share

    model.eval()
    losses = {}
    with torch.no_grad():
        for name, rows in sets.items():
            total = 0.0
            own = rank_share(len(rows), distributed.rank(), distributed.world_size(), config.micro_batch_size)
            batch = micro_batches(rows, own, device)
            count = float(batch.targets)
            for micro in batch.micro:
                with autocast():
                    total += float(model(**micro))
            total, count = distributed.all_sum([total, count], device)
            losses[name] = total / max(count, 1)
    model.train()
    return losses


# ---------------------------------------------------------------------------------------------------------------- model

def model_config(config: TrainConfig, tokenizer):
    """The `ModelConfig` of a model folder or a named shape, checked against the tokenizer."""
    from mmed import checkpoint
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
    from mmed import checkpoint, distributed
    from mmed.lora import adapted_layers, init_lora

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
        for block in model.layers:
            block.compile()
    return model.train()


def forward_backward(model, batch, scale, autocast):
    """Gradients of `scale` times the summed loss of all micro-batches; returns that sum (unscaled) on the device."""
    sync = getattr(model, "set_requires_gradient_sync", lambda _: None)
    total = 0.0
    for i, micro in enumerate(batch.micro):
        sync(i == len(batch.micro) - 1)  # gradients are reduced once, with the last micro-batch
        with autocast():
            loss = model(**micro)
        (loss * scale).backward()
        total = total + loss.detach()
    return total


# ----------------------------------------------------------------------------------------------------------------- loop

def train(recipe: str, config: TrainConfig) -> int:
    """Run `config` to its end (0) or until a signal (75)."""
    import contextlib

    import torch
    from tqdm import tqdm

    from mmed import budget, checkpoint, distributed
    from mmed.async_save import Saver
    from mmed.batches import Batches, make_rows, source_data
    from mmed.lora import save_adapter
    from mmed.optim import make_optimizer, update
    from mmed.progress import Late, Log, Profile
    from mmed.tokenizer import load_tokenizer

    device = distributed.start()
    main = distributed.is_main()
    out = Path(config.out)
    if config.data == "source":
        if main and not (out / "source.json").is_file():
            source_data(out)
        distributed.barrier()
        config_data = dataclasses.replace(config, data=str(out / "source"), tokenizer=str(out / "tokenizer"))
    else:
        config_data = config
    folder, spec = config_data.tokenizer or config.model, config_data.data
    tokenizer = load_tokenizer(folder) if checkpoint.has_tokenizer(folder) else None
    if tokenizer is None and (config.task == "finetune" or config.tokenizer or config.model.startswith("shape:")):
        raise UserError(f"{folder}: no tokenizer.model or tokenizer.json there; give --tokenizer=FOLDER")
    rows = make_rows(config, spec, tokenizer)
    validation = held_out(config, tokenizer)
    size = rows.rows_per_epoch if config.task == "pretrain" else len(rows.examples)
    steps = config.max_steps or max(1, math.ceil(config.epochs * size / config.global_batch_size))

    shape = model_config(config, tokenizer)
    if config.dry_run:
        if main:
            budget.show(config, skeleton(config, shape), steps, device)
        distributed.stop()
        return 0
    facts = run_facts(recipe, config, tokenizer, steps)
    state_folder = checkpoint.latest_state(out) if config.resume == "auto" else None
    if state_folder is not None:
        check_resume(read_json(out / "run.json"), facts)
    elif config.resume == "never" and (out / "run.json").is_file():
        raise UserError(f"{out}: holds a run already; give --resume=auto to go on with it, or another --out")
    finished = (out / "done.json").is_file()
    if finished and config.resume == "auto":
        if main:
            print(f"{out}: already done", file=sys.stderr)
        distributed.stop()
        return 0

    torch.manual_seed(config.seed)
    compiled = budget.worth_compiling(config, shape, steps, device)
    model = build_model(config, shape, device, compiled)
    optimizer = make_optimizer(model, config)
    first = 0
    if state_folder is not None:
        state = checkpoint.load_state(state_folder, model, optimizer)
        first, optimizer.last_norm = state["step"], state.get("grad_norm", 0.0)
    lock = lock_folder(out) if main else None
    if main:
        (out / "stopped").unlink(missing_ok=True)
        if state_folder is None:
            write_json(out / "run.json", facts)
        tokens = keep_lines(out / "metrics.jsonl", first)
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        what = f"{size:,} rows of {config.sequence_length}" if config.task == "pretrain" else f"{size:,} examples"
        print(f"{recipe}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained; {what}; steps {first}..{steps} on "
              f"{distributed.world_size()} x {facts['device']}", file=sys.stderr)
        if getattr(rows, "truncated", 0):
            print(f"warning: {rows.truncated} examples were longer than {config.sequence_length} tokens and lost the beginning of their prompt",
                  file=sys.stderr)
    else:
        tokens = 0

    use_autocast = config.precision == "bf16" and distributed.world_size() == 1
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16, cache_enabled=False)) if use_autocast else contextlib.nullcontext
    world = distributed.world_size()
    stop, batches, saver = StopSignal(), Batches(config, rows, device), Saver(out, config.keep_last, config.async_save)
    profile = Profile(config.profile if main else 0, out, device)
    metrics = open(out / "metrics.jsonl", "a", encoding="utf-8") if main else None
    step, halted, pending = first, False, None
    with tqdm(total=steps, initial=first, unit="step", disable=not main, file=sys.stderr, mininterval=0.5, dynamic_ncols=True) as bar:
        log = Log(metrics, bar, config, device, steps, first, tokens, budget.flops_per_token(shape, config),
                  budget.peak_flops(facts["device"]), world)
        for step, batch in enumerate(batches.ahead(first, steps), first + 1):  # step: how many are done when this one is
            lr = learning_rate(config, step - 1, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            # Loss per token of the whole global batch (DESIGN invariant 2): divide by the count over all ranks, not per micro-batch.
            counts = distributed.device_sum(torch.tensor([batch.targets, float(stop.requested)], dtype=torch.float64).to(device, non_blocking=True))
            # Dropout must not depend on how often the run was restarted.
            torch.manual_seed(config.seed * 1_000_003 + step * 64 + distributed.rank() % 64)
            scale = (world / counts[0].clamp(min=1)).float()  # x world: FSDP averages gradients over ranks
            loss_sum = distributed.device_sum(forward_backward(model, batch, scale, autocast).double())
            norm = update(model, optimizer, config.max_grad_norm, loss_sum)
            facts_of_step = step, lr, batch.positions, Late(torch.cat((counts, torch.stack((loss_sum, norm.double())))))
            profile.step()
            if pending is not None:
                line, halted = log.read(*pending)
                log.write(line)
            pending = facts_of_step
            bar.update()
            evaluate = bool(validation) and (step == steps or (config.eval_every > 0 and step % config.eval_every == 0))
            save = step % config.save_every == 0 and step < steps
            if not (evaluate or save or halted or step == steps):
                continue
            line, halted_now = log.read(*pending)  # what is evaluated or saved is known to be finite
            halted, pending = halted or halted_now, None
            if evaluate:
                line["held_out"] = held_out_loss(model, validation, config, device, autocast)
            log.write(line)
            if save or halted:
                saver.save(model, optimizer, step, {"world_size": world, "grad_norm": log.norm})
            log.pause()
            if halted:
                break
    profile.stop()
    if step < steps:
        saver.wait()
        if main:
            (out / "stopped").touch()  # for whoever queues jobs: torchrun does not hand on the exit code
            print(f"stopped by {stop.name} after step {step} of {steps}; go on with --resume=auto", file=sys.stderr)
        distributed.stop()
        return EXIT_STOPPED
    saver.save(model, optimizer, step, {"world_size": world, "grad_norm": log.norm})
    saver.wait()
    if config.lora_rank:
        tensors = {name: distributed.whole(p.detach()) for name, p in model.named_parameters() if ".lora_" in name}
        if main:
            save_adapter(model, out / "adapter", config.model, tensors)
    else:
        checkpoint.save_pretrained(model, tokenizer, out / "model")
    if main:
        write_json(out / "done.json", {"steps": steps, "tokens": log.tokens, "loss": log.loss})
        print(f"{out}: done, {log.tokens:,} target tokens; weights in {out / ('adapter' if config.lora_rank else 'model')}", file=sys.stderr)
    if lock:
        lock.close()
    distributed.barrier()
    distributed.stop()
    return 0


def main() -> int:
    return train(*parse_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main_guard(main)
