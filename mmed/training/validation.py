"""Loss on text and exam items that are not trained on, per language: which rows, and their mean loss over all ranks."""
from __future__ import annotations

from collections.abc import Callable

from mmed.config import TrainConfig

EVAL_ROWS = 64  # rows of each validation stream, and items of each language, that the held-out loss is taken over


def held_out(config: TrainConfig, tokenizer) -> dict[str, list]:
    """language (or stream) -> its rows for the held-out loss, in file order."""
    from mmed.data import ExamRows
    from mmed.prompts import read_benchmark
    from mmed.training.loader import make_rows

    if not config.validation:
        return {}
    if config.task == "pretrain":
        rows = make_rows(config, config.validation, tokenizer)
        result: dict[str, list] = {}
        for s, stream in enumerate(rows.streams):
            result.setdefault(stream.language, []).extend(rows.packed(s, [w]).part(0) for w in range(min(EVAL_ROWS, rows.sizes[s])))
        return result
    items = read_benchmark(config.validation)
    result = {}
    for language in dict.fromkeys(item.language for item in items):
        exam = ExamRows([i for i in items if i.language == language][:EVAL_ROWS], tokenizer, config.sequence_length, config.seed,
                        modes=(config.rationales != "without",), style=config.prompt_style)
        result[language] = exam.rows(exam.examples)
    return result


def held_out_loss(model, sets: dict[str, list], config: TrainConfig, device, autocast,
                  stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Mean cross-entropy per target token of each set, in nats; every rank computes a share. None when told to stop meanwhile."""
    import torch

    from mmed.data import rank_share
    from mmed.training import distributed
    from mmed.training.loader import micro_batches

    model.eval()
    losses = {}
    with torch.no_grad():
        for name, rows in sets.items():
            total = 0.0
            own = rank_share(len(rows), distributed.rank(), distributed.world_size(), config.micro_batch_size)
            batch = micro_batches(rows, own, device, config.task == "finetune" and model.config.by_document)
            count = float(batch.targets)
            for micro in batch.micro:
                if stop():
                    model.train()
                    return None
                with autocast():
                    total += float(model(**micro))
            total, count = distributed.all_sum([total, count], device)
            losses[name] = total / max(count, 1)
    model.train()
    return losses
