"""The paper's item counts, and the table that compares ours with them and explains every difference.

In: for each source and language what was read, dropped, moved between splits and written. Out: rows (for
counts.json) and the table as text.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SPLITS = ("Train", "Val", "Test")
# MMedLM: items per language; train and test sum to the paper's 45,048 and 8,518. Val is not part of the
# release.
PAPER = {
    "English": {"Train": 10_178, "Val": 1_272, "Test": 1_273},
    "Chinese": {"Train": 27_400, "Val": 3_425, "Test": 3_426},
    "Japanese": {"Train": 1_590, "Val": 199, "Test": 199},
    "French": {"Train": 2_171, "Val": 312, "Test": 622},
    "Russian": {"Train": 1_052, "Val": 256, "Test": 256},
    "Spanish": {"Train": 2_657, "Val": 1_366, "Test": 2_742},
}
# What is counted of the written items, and how the table says it.
FLAGS = {"duplicate_of": "repeats kept (duplicate_of)", "leaks": "of them also in another split",
         "image_dependent": "need an image (image_dependent)",
         "blank_options": "with a blank option (blank_options)",
         "equal_options": "with two equal options (equal_options)"}


@dataclass
class Tally:
    """What became of one source's items in one language; a split None means that the file states none."""

    read: Counter = field(default_factory=Counter)  # split
    dropped: Counter = field(default_factory=Counter)  # (split, reason)
    moved: Counter = field(default_factory=Counter)  # (from split, to split)
    written: Counter = field(default_factory=Counter)  # split
    flags: Counter = field(default_factory=Counter)  # (split, key of FLAGS)


def table_row(language: str, name: str, split: str, tally: Tally, in_paper: bool) -> dict:
    """One line of the table; `why` accounts for the difference: read - dropped - moved away + moved here =
    items."""
    comparable = in_paper and not (name == "mmedbench" and split == "Val")
    paper = PAPER.get(language, {}).get(split) if comparable else None
    read, items = tally.read[split], tally.written[split]
    dropped = {reason: count for (where, reason), count in tally.dropped.most_common() if where == split}
    moved_in = sum(count for (_, target), count in tally.moved.items() if target == split)
    moved_out = sum(count for (origin, _), count in tally.moved.items() if origin == split)
    assert read - sum(dropped.values()) - moved_out + moved_in == items, "expected a table that adds up"
    why = []
    if paper is not None and not read and not moved_in:
        why.append(f"no {split.lower()} file among those given")
    elif read and read != paper:
        why.append(f"{read:,} in the files given")
    why += [f"-{count} {reason}" for reason, count in dropped.items()]
    if moved_out:
        why.append(f"-{moved_out:,} moved to other splits")
    if moved_in:
        why.append(f"+{moved_in:,} drawn by seed from other splits or from files without one")
    why += [f"{tally.flags[split, key]:,} {text}" for key, text in FLAGS.items() if tally.flags[split, key]]
    if not in_paper:
        why.append("not in MMedBench")
    elif items == paper and not why:
        why.append("as in the paper")
    return {"language": language, "source": name, "split": split, "items": items, "paper": paper,
            "read": read,
            "dropped": dropped, "moved_in": moved_in, "moved_out": moved_out,
            **{key: tally.flags[split, key] for key in FLAGS}, "why": "; ".join(why)}


def format_table(report: dict) -> str:
    """The table of counts as text, with the totals that the paper prints."""
    lines = [f"{'language':10} {'source':14} {'split':6} {'items':>7} {'paper':>7} {'diff':>7}  why"]
    for row in report["table"]:
        paper, diff = "-", ""
        if row["paper"] is not None:
            paper, diff = f"{row['paper']:,}", f"{row['items'] - row['paper']:+,}"
        split = "Val*" if row["split"] == "Val" else row["split"]
        lines.append(f"{row['language']:10} {row['source']:14} {split:6} {row['items']:>7,} {paper:>7} "
                     f"{'0' if diff == '+0' else diff:>7}  {row['why']}")
    compared = [row for row in report["table"] if row["paper"] is not None]
    missing = [language for language in PAPER if language not in {row["language"] for row in compared}]
    for split in ("Train", "Test") if compared else ():
        ours = sum(row["items"] for row in compared if row["split"] == split)
        paper = sum(counts[split] for counts in PAPER.values())
        lines.append(f"{'MMedBench':10} {'':14} {split:6} {ours:>7,} {paper:>7,} {ours - paper:>+7,}"
                     + (f"  no source given for {', '.join(missing)}" if missing else ""))
    if any(row["split"] == "Val" and row["items"] for row in report["table"]):
        lines.append("* Val is the sources' own validation part; the MMedBench release has none")
    lines += [f"{name}: {note}" for name, notes in report["notes"].items() for note in notes]
    if report["dropped"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items())
        lines.append(f"dropped (listed in dropped.jsonl): {reasons}")
    return "\n".join(lines)
