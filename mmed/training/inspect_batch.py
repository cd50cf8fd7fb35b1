"""What was in the batch of a step: names for messages and logs, and `python -m mmed.training.inspect_batch show`, which prints it as text.

    python -m mmed.training.inspect_batch show runs/mmedlm2 1234                  every row of step 1234: its documents and their text
    python -m mmed.training.inspect_batch show runs/mmedlm2 1234 --rows 0,5-7     some of them, counted within the batch

A line of text begins with "|" where it carries loss and with "." where it does not (a prompt, the jump to the next document).
"""
from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

from mmed.config import TrainConfig
from mmed.data import IGNORE, Row, pack
from mmed.tokenizer import load_tokenizer
from mmed.training.loader import make_rows
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import read_json


def batch_names(rows, config: TrainConfig, step: int) -> list[str]:
    """What step `step` (counted from 1, as in metrics.jsonl) trained on: "STREAM:3+17+18" (its documents) a row, or exam items' keys."""
    batch = rows.batch(step - 1, config.global_batch_size)
    if config.task == "finetune":
        return [example.key for example in batch]
    places = (rows.documents(i) for i in batch)
    return [f"{Path(stream.prefix).name}:{'+'.join(map(str, documents))}" for stream, documents in places]


def in_short(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def pieces(row: Row) -> list[tuple[int, bool, list[int]]]:
    """(document in the row, does it carry loss, ids to read) of the stretches of a row. A label is the token after its place."""
    result = []
    places = [(int(d), bool(label != IGNORE), int(i), int(label)) for d, label, i in zip(row.documents, row.labels, row.input_ids) if d >= 0]
    for document, members in itertools.groupby(places, key=lambda place: place[0]):
        members = list(members)
        ids, loss = [members[0][2]], [members[0][1]]  # nothing foretells the first token: shown with what follows it
        for before, now in itertools.pairwise(members):
            ids.append(now[2])
            loss.append(before[1])
        if members[-1][1]:
            ids.append(members[-1][3])
            loss.append(True)
        for trained, part in itertools.groupby(zip(loss, ids), key=lambda pair: pair[0]):
            result.append((document, trained, [i for _, i in part]))
    return result


def lines_of(row: Row, names: list[str], tokenizer) -> list[str]:
    lines: list[str] = []
    shown = -1
    for document, trained, ids in pieces(row):
        if document != shown:
            lines.append(f"  {names[document] if document < len(names) else ''}")
            shown = document
        text = "".join(c if c == "\n" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else f"\\x{ord(c):02x}" for c in tokenizer.decode(ids))
        lines += [f"    {'|' if trained else '.'} {line}" for line in text.split("\n")]
    return lines


def chosen(text: str, count: int) -> list[int]:
    """Row numbers of "0,5-7"; all when empty."""
    if not text:
        return list(range(count))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.partition("-")
            numbers += range(int(low), int(high or low) + 1)
    except ValueError:
        raise UsageError(f"--rows={text}: expected numbers such as 0,5-7") from None
    if not numbers or min(numbers) < 0 or max(numbers) >= count:
        raise UsageError(f"--rows={text}: the batch has rows 0 to {count - 1}")
    return numbers


def load_run(run: Path) -> tuple[TrainConfig, object, object]:
    """(config, rows, tokenizer) of a run folder, as the run had them."""
    facts = read_json(run / "run.json")
    try:
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        config = TrainConfig(**{key: value for key, value in facts["config"].items() if key in known})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / 'run.json'}: not what a run writes ({error})") from None
    source = config.data == "source"
    tokenizer = load_tokenizer(run / "tokenizer" if source else config.tokenizer or config.model, config.bos)
    return config, make_rows(config, str(run / "source") if source else config.data, tokenizer), tokenizer


def show(run: Path, step: int, wanted: str = "") -> None:
    config, rows, tokenizer = load_run(run)
    if step < 1:
        raise UsageError(f"STEP {step}: steps are counted from 1, as in metrics.jsonl")
    batch = rows.batch(step - 1, config.global_batch_size)
    if config.task == "pretrain":
        for number in chosen(wanted, len(batch)):
            stream, documents = rows.documents(batch[number])
            print(f"row {number} (row {batch[number]} of the run), {stream.prefix}, documents {', '.join(map(str, documents))}")
            print("\n".join(lines_of(rows.row(batch[number]), [f"document {d}" for d in documents], tokenizer)))
        return

    for number in chosen(wanted, len(batch)):
        print(f"example {number}, item {batch[number].key}")
        print("\n".join(lines_of(pack([batch[number]]), [""], tokenizer)))


def main() -> int:
    parser = Parser(prog="python -m mmed.training.inspect_batch", description="What a run trained on.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="print the batch of a step as text", allow_abbrev=False,
                                  description='Print the batch of a step. A line begins with "|" where it carries loss, with "." where it does not.')
    command.add_argument("run", type=Path, help="run folder of mmed/train.py")
    command.add_argument("step", type=int, help="as in metrics.jsonl, counted from 1")
    command.add_argument("--rows", default="", help="rows (examples) of the batch, counted from 0: 0,5-7; default: all")
    arguments = parser.parse_args()
    show(arguments.run, arguments.step, arguments.rows)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    main_guard(main)
