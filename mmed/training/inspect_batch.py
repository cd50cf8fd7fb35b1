"""Print what a run trained on in a step.

    python -m mmed.training.inspect_batch show runs/mmedlm2 1234               every row of step 1234, as text
    python -m mmed.training.inspect_batch show runs/mmedlm2 1234 --rows 0 5    some of them

A line of text begins with "|" where it carries loss and with "." where it does not (a prompt, a document's
first token). Special tokens are shown by name. A piece that begins without loss on its first words continues
a document of another row.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from mmed.config import TrainConfig
from mmed.data import IGNORE, ExamRows, PretrainRows, Row, pack
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.training.loader import make_rows, with_source_data
from mmed.training.run_folder import data_facts
from mmed.utils.errors import Parser, UsageError, UserError, main_guard, printable
from mmed.utils.files import read_json


def shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of some tokens, with the names of BOS, EOS and padding."""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    parts: list[str] = []
    for is_special, group in itertools.groupby(ids, key=special.__contains__):
        part = list(group)
        parts += map(tokenizer.piece, part) if is_special else [tokenizer.decode(part)]
    return printable("".join(parts))


def row_lines(row: Row, tokenizer: Tokenizer) -> list[str]:
    """The text of a row: the size of each document, then its stretches with and without loss."""
    lines = []
    for document in range(row.document_ids.max() + 1):
        here = row.document_ids == document
        ids, labels = row.input_ids[here].tolist(), row.labels[here].tolist()
        trained = [False, *(label != IGNORE for label in labels)]  # of each token: does it carry loss?
        tokens = zip(trained, [*ids, labels[-1]] if labels[-1] != IGNORE else ids)
        lines.append(f"  {len(ids)} tokens")
        for loss, part in itertools.groupby(tokens, key=lambda token: token[0]):
            text = shown(tokenizer, [token for _, token in part])
            lines += [f"    {'|' if loss else '.'} {line}" for line in text.split("\n")]
    return lines


def load_run(run: Path) -> tuple[TrainConfig, PretrainRows | ExamRows, Tokenizer]:
    """(config, rows, tokenizer) as the run in this folder had them."""
    facts = read_json(run / "run.json")
    try:
        config = with_source_data(TrainConfig(**facts["config"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / 'run.json'}: not written by this version ({error})") from None
    tokenizer = load_tokenizer(config.tokenizer or config.model, config.bos)
    rows = make_rows(config, tokenizer)
    if "data" in facts and facts["data"] != data_facts(config, rows):
        raise UserError(f"{config.data}: not the data that {run} was trained on")
    return config, rows, tokenizer


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.training.inspect_batch", description="Show what a run trained on.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "show", help="print a step's batch as text", description=__doc__.split("\n\n")[2])
    command.add_argument("run", type=Path, help="run folder of mmed/train.py")
    command.add_argument("step", type=int, help="training step as in metrics.jsonl, counted from 1")
    command.add_argument("--rows", type=int, nargs="+", metavar="N", help="rows of the batch (default: all)")
    options = parser.parse_args(arguments)
    config, rows, tokenizer = load_run(options.run)
    if options.step < 1:
        raise UsageError(f"STEP {options.step}: steps are counted from 1, as in metrics.jsonl")
    batch = rows.batch(options.step - 1, config.global_batch_size)
    names = rows.names(batch)
    for number in options.rows or range(len(batch)):
        if not 0 <= number < len(batch):
            raise UsageError(f"--rows {number}: the batch has rows 0 to {len(batch) - 1}")
        row = pack([batch[number]]) if isinstance(rows, ExamRows) else rows.row(batch[number])
        print(f"row {number}: {names[number]}", *row_lines(row, tokenizer), sep="\n")
    return 0


if __name__ == "__main__":
    main_guard(main)
