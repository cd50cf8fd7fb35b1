"""One training loop: continued pre-training, full fine-tuning and LoRA, on one process or many.

    python mmed/train.py tiny
    torchrun --nproc_per_node=8 mmed/train.py pretrain_mmedlm2 --model=internlm2-7b --data=streams/en

In: a model folder and token streams (or exam items). Out: a run folder: `run.json` before step 0, one line
per step in `metrics.jsonl` (fields: mmed/training/logging.py), `checkpoints/step-N/`, and at the end `model/`
(or `adapter/`), which transformers and PEFT open.

    for each step:  rows of batch k -> micro-batches -> summed loss / target tokens of the global batch
                    -> gradients -> clip -> AdamW -> metrics.jsonl -> (validation loss) -> (checkpoint)

Batch k depends on the seed and k alone (mmed/data.py), dropout on seed, step and rank, so a run resumed on as
many ranks equals an uninterrupted one, bit for bit (a GPU: with --deterministic). Weights, gradients and
AdamW's state are fp32 and products bf16 by default; LoRA's frozen weights are bf16. Stops: docs/faults.md.
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
if __name__ == "__main__":  # a stop signal in the seconds of importing torch must exit with 75, too
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows of many lengths leave gaps

import contextlib
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from mmed.checkpoints import adapters, pretrained, training_state
from mmed.config import SHAPES, VOCABULARIES, TrainConfig, parse_command_line
from mmed.data import ExamRows, PretrainRows
from mmed.kernels.positions import check_length
from mmed.lora import adapted_layers, apply_lora, init_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.training import distributed, loader, memory_estimate, optimizer, run_folder, simulate, validation
from mmed.training.logging import Log
from mmed.training.signals import Stopped, StopSignal, end_failed_rank
from mmed.utils.errors import EXIT_STOPPED, UsageError, UserError, main_guard
from mmed.utils.files import read_json, write_json


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
    """The `ModelConfig` of a model folder or a named shape."""
    if not config.model.startswith("shape:"):
        return pretrained.load_config(config.model)
    shape = config.model.removeprefix("shape:")
    if shape not in SHAPES:
        raise UsageError(f"--model=shape:{shape}: known shapes are {', '.join(SHAPES)}")
    defaults = {"rms_norm_eps": 1e-5, "max_position_embeddings": max(2048, config.sequence_length)}
    settings: dict = defaults | SHAPES[shape]
    if tokenizer is None:  # only in a simulation: load_data requires a tokenizer for a named shape
        return ModelConfig(vocab_size=VOCABULARIES.get(shape.partition("-")[0], 8192), **settings)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    extra = {f"{name}_token_id": number for name, number in ids.items() if number is not None}
    return ModelConfig(vocab_size=tokenizer.vocab_size, extra=extra, **settings)


def skeleton(config: TrainConfig, shape: ModelConfig, place: str = "meta") -> Transformer:
    """The model without values, LoRA in place, every parameter in the dtype in which it is stored."""
    with torch.device(place):
        model = Transformer(shape)
        if config.lora_rank:
            apply_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
            for parameter in model.parameters():  # frozen weights need only the precision of the products
                if config.precision == "bf16" and not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
    return model


def sharded_skeleton(config: TrainConfig, shape: ModelConfig, device: torch.device,
                     place: str = "meta") -> Transformer:
    """The skeleton as it runs: checkpointed, compiled, sharded over the ranks."""
    model = skeleton(config, shape, place)
    distributed.checkpoint_blocks(model, config.activation_checkpointing)
    if memory_estimate.worth_compiling(config, shape, device):
        distributed.compile_blocks(model)
    if distributed.world_size() > 1 or config.shard_size > 1:
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
    build = functools.partial(sharded_skeleton, config, shape, torch.device("cpu"), "cpu")
    return simulate.simulate(config, build, forward_backward, sizes, kind)


# ------------------------------------------------------------------------------------------- setup and resume

def train(recipe: str, config: TrainConfig) -> int:
    """Run `config` to its end (exit code 0) or until a signal (75)."""
    stop, out = StopSignal(), Path(config.out)
    if config.simulate_ranks and not config.dry_run:
        shape = model_config(config, load_tokenizer(config.tokenizer) if config.tokenizer else None)
        memory_estimate.show_simulation(config, *simulated_step(config, shape))
        return 0
    try:
        device = distributed.start(config.rank_timeout_seconds, config.deterministic)
        writes = distributed.is_main() and not config.dry_run
        with run_folder.FolderLock(out) if writes else contextlib.nullcontext() as lock:
            stop.out = out if writes else None
            if distributed.is_main() and config.data == "source" and not (out / "source.json").is_file():
                loader.write_source_data(out)
            distributed.barrier()  # rank 0 holds the lock: from here on the folder is this run's
            code = 0
            if config.dry_run:
                _, rows, shape, steps = load_data(config)
                if distributed.is_main():
                    memory_estimate.show(skeleton(config, shape), config, rows, steps, device,
                                         functools.partial(simulated_step, config, shape))
            else:
                training_state.wait_for_files(out, ["lock"])  # fails on a node that does not share it
                distributed.barrier()
                folder, old = find_checkpoint(config)
                done = config.resume == "auto" and (out / "done.json").is_file()
                if done and distributed.is_main():
                    print(f"{out}: already done", file=sys.stderr)
                if not done:
                    code = Run(recipe, config, device, stop, lock, folder, old).to_end()
        distributed.stop()
        return code
    except BaseException as error:
        end_failed_rank(error, stop)
        raise


def find_checkpoint(config: TrainConfig) -> tuple[Path | None, dict | None]:
    """(checkpoint to resume from, run.json of the run it belongs to), both None for a new run."""
    run = Path(config.out)
    if config.resume == "never":
        if (run / "run.json").is_file():
            raise UserError(f"{run}: holds a run already; give --resume=auto or another --out")
        return None, None
    folder = training_state.latest_state(run, "" if config.resume == "auto" else config.resume)
    if folder is None and not (run / "done.json").is_file():
        return None, None
    old = read_json(run / "run.json")
    run_folder.check_resume(old, {"config": vars(config)})  # data and model are compared once they are open
    return folder, old


def load_data(config: TrainConfig) -> tuple[Tokenizer | None, PretrainRows | ExamRows, ModelConfig, int]:
    """Tokenizer, rows, the model's configuration, the run's steps; opens the data without reading it all."""
    config = loader.with_source_data(config)
    if not config.model.startswith("shape:"):
        pretrained.config_in(config.model)  # before its tokenizer is missed
    folder = config.tokenizer or config.model
    tokenizer = load_tokenizer(folder, config.bos) if pretrained.has_tokenizer(folder) else None
    needed = (config.task != "pretrain" or config.tokenizer or config.model.startswith("shape:")
              or config.bos != "auto")
    if tokenizer is None and needed:
        known = Path(folder).exists() or folder.startswith("shape:")
        raise UserError(f"{folder}: " + ("no tokenizer.model or tokenizer.json there; give --tokenizer=FOLDER"
                                         if known else "no such folder"))
    rows, shape = loader.make_rows(config, tokenizer), model_config(config, tokenizer)
    sizes = {stream.prefix: stream.vocab_size for stream in rows.streams}
    for name, size in ({folder: tokenizer.rows} if tokenizer else sizes).items():  # streams are of its ids
        if size > shape.vocab_size:
            raise UserError(f"{name}: has ids up to {size - 1}, but the embedding of {config.model} "
                            f"has only {shape.vocab_size} rows")
    check_length(shape.rope_scaling, config.sequence_length, shape.max_position_embeddings)
    steps = config.max_steps or max(1, math.ceil(config.epochs * rows.size / config.global_batch_size))
    return tokenizer, rows, shape, steps


class Run:
    """A run that is ready to train, and its loop. `step` counts the steps done, of `steps` in all."""

    def __init__(self, recipe: str, config: TrainConfig, device: torch.device, stop: StopSignal,
                 lock: run_folder.FolderLock | None, folder: Path | None, old: dict | None):
        """`folder`, `old`: what `find_checkpoint` found."""
        self.config, self.device, self.stop, self.out = config, device, stop, Path(config.out)
        self.tokenizer, rows, shape, self.steps = load_data(config)
        facts = run_folder.run_facts(recipe, config, self.tokenizer, rows, self.steps)
        if old:
            run_folder.check_resume(old, facts)
        torch.manual_seed(config.seed)
        self.model = build_model(config, shape, device)
        self.optimizer = optimizer.make_optimizer(self.model, config)
        state = training_state.load_state(folder, self.model, self.optimizer) if folder else {}
        self.step = state.get("step", 0)
        # all data is read last: what is wrong with options, model or checkpoint is known by now
        self.validation = validation.validation_sets(config, self.tokenizer, shape.max_position_embeddings)
        loader.verify_streams(rows.streams)
        if distributed.is_main():
            (self.out / "done.json").unlink(missing_ok=True)  # with --resume=step-N of a finished run
            if folder:
                training_state.set_latest(folder)
            run_folder.start(self.out, facts, old, self.step)
            print_start(facts, rows, self.model, self.step)
        stop.group = distributed.host_group(config.rank_timeout_seconds)  # of its own: no wait for the GPU
        self.log = Log(config, device, self.step, self.steps, state,
                       memory_estimate.flops_per_token(shape, config),
                       memory_estimate.peak_flops(facts["device"]), rows)
        self.checkpoints = training_state.AsyncCheckpointer(self.out, facts, lock, config, self.step)
        self.batches = loader.Batches(config, rows, device, shape.by_document)
        self.autocast = distributed.autocast(config.precision, device.type)

    def to_end(self) -> int:
        """Train, then export the result; or save and return 75 after a stop signal."""
        try:
            self.loop()
            self.save()
            self.stop.check()
            self.stop.check()  # with several ranks, a check acts on what the previous check saw
        except Stopped:
            self.save()
            self.checkpoints.wait()
            if distributed.is_main():
                (self.out / "stopped").touch()  # for batch scripts: torchrun hides exit codes
                print(f"stopped by {self.stop.name} after step {self.step} of {self.steps}; continue with "
                      "--resume=auto", file=sys.stderr)
            return EXIT_STOPPED
        self.checkpoints.wait()
        self.stop.nothing_to_save = True
        self.finish()
        return 0

    def loop(self) -> None:
        config = self.config
        if self.step == 0:
            self.evaluate()
        for batch in self.batches.ahead(self.step, self.steps):
            self.stop.check()
            self.checkpoints.check()
            self.train_step(batch)
            last = self.step == self.steps
            if last or (config.eval_every and self.step % config.eval_every == 0):
                self.evaluate()
            if not last and config.save_every and self.step % config.save_every == 0:
                self.save()

    def train_step(self, batch: loader.Batch) -> None:
        """One optimizer step on global batch number `step`."""
        config, world = self.config, distributed.world_size()
        lr = learning_rate(config, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The loss per token of the global batch: the divisor counts over all ranks and micro-batches.
        own_counts = torch.tensor([batch.targets, batch.tokens], dtype=torch.float64)
        counts = distributed.device_sum(own_counts.to(self.device, non_blocking=True))
        scale = (world / counts[0].clamp(min=1)).float()  # x world: FSDP averages gradients over ranks
        # Dropout must not depend on restarts, nor the rounding of bf16 moments on the copy of a shard.
        seed, shards = config.seed * 1_000_003 + self.step + 1, config.shard_size or world
        torch.manual_seed(seed * world + distributed.rank())
        loss_sum = forward_backward(self.model, batch, scale, self.autocast, self.stop.check)
        loss_sum = distributed.device_sum(loss_sum.double())
        torch.manual_seed(-(seed * shards + distributed.rank() % shards))
        # nothing is updated where no token carries loss: 0 / 0 is not finite
        norm = optimizer.update(self.model, self.optimizer, config.max_grad_norm, loss_sum / counts[0])
        self.step += 1
        self.stop.nothing_to_save = False
        self.log.add(self.step, lr, torch.cat((counts, torch.stack((loss_sum, norm.double())))))

    def evaluate(self) -> None:
        """Measure the validation loss, if there are validation sets; log it with the last step."""
        if self.validation:
            line = self.log.take()
            tokens = self.config.micro_batch_size * self.config.sequence_length
            losses = validation.validation_loss(self.model, self.validation, tokens, self.device,
                                                self.autocast)
            self.log.validated(line, losses)

    def save(self) -> None:
        """Write a checkpoint unless this step has one; flushing the log first raises if it is not finite."""
        self.log.flush()
        self.checkpoints.save(self.model, self.optimizer, self.step, self.log)
        self.log.pause()

    def finish(self) -> None:
        """Export the model or adapter, and mark the run as done."""
        config, log = self.config, self.log
        result = self.out / ("adapter" if config.lora_rank else "model")
        if config.lora_rank:
            adapters.save_adapter(self.model, result, config.model)
        else:
            pretrained.save_pretrained(self.model, self.tokenizer, result)
        log.bar.close()
        if distributed.is_main():  # a kill after the last save may have left more checkpoints
            training_state.remove_others(self.out / "checkpoints" / f"step-{self.step}", config.keep_last)
            write_json(self.out / "done.json", {"steps": self.steps, "tokens": log.tokens,
                                                "targets": log.targets, "loss": log.loss})
            change = validation.compare(log.validation_before, log.validation_after)
            print(f"{self.out}: done, {log.targets:,} target tokens; {change}weights in {result}",
                  file=sys.stderr)
        distributed.barrier()


def forward_backward(model: Transformer, batch: loader.Batch, scale: Tensor | float,
                     autocast: Callable[[], AbstractContextManager],
                     check_stop: Callable[[], object] = lambda: None) -> Tensor:
    """Add the gradients of `scale` times the summed loss; returns the sum itself, unscaled, on the device.

    Under FSDP every micro-batch's gradients are reduced at once to the ranks that own them; holding them
    unsharded would cost 4 bytes per parameter on every rank. With hybrid sharding, nodes exchange gradients
    only once, after the last micro-batch.
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


def print_start(facts: dict, rows: PretrainRows | ExamRows, model: Transformer, first: int) -> None:
    total = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    unit = "rows" if isinstance(rows, PretrainRows) else "examples"
    layers, settings = len(adapted_layers(model)), facts["config"]
    how = f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']:g}"
    lora = f" (LoRA: {layers} layers, {how})" if layers else ""
    print(f"{facts['recipe']}: {total:.2f} M parameters, {trained:.2f} M trained{lora}; {rows.size:,} {unit} "
          f"of up to {rows.T} tokens; steps {first}..{facts['steps']} on {facts['world_size']} x "
          f"{facts['device']}", file=sys.stderr)
    warnings, longest = list(rows.warnings), model.config.max_position_embeddings
    if model.config.position_embedding == "rope" and rows.T > longest:
        warnings.append(f"--sequence_length={rows.T} exceeds the model's context of {longest}: it was "
                        "not trained on longer documents")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def main() -> int:
    return train(*parse_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main_guard(main)
