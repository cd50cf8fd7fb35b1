"""Compares our item counts with the paper's, as rows (for counts.json) and as a text table."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_prep.benchmark.mapping import Raw

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
# Key of the written items' counts -> its heading in the table.
FLAGS = {"duplicate_of": "repeats kept (duplicate_of)", "leaks": "leak a test item (leaks)",
         "image_dependent": "need an image (image_dependent)",
         "blank_options": "with a blank option (blank_options)",
         "equal_options": "with two equal options (equal_options)"}


def table_row(language: str, name: str, split: str, items: Sequence[Raw], in_paper: bool) -> dict[str, Any]:
    """One line of the table. Read minus dropped equals the number of items, except for what a random
    split moved."""
    comparable = in_paper and not (name == "mmedbench" and split == "Val")
    read = [raw for raw in items if raw.stated == split]
    written = [raw for raw in items if not raw.reason and raw.split == split]
    return {"language": language, "source": name, "split": split, "read": len(read), "items": len(written),
            "paper": PAPER.get(language, {}).get(split) if comparable else None,
            "dropped": dict(Counter(raw.reason for raw in read if raw.reason).most_common()),
            **{key: sum(bool(raw.line.get(key)) for raw in written) for key in FLAGS}}


def format_table(report: dict[str, Any]) -> str:
    """Format the counts as text, with the totals that the paper prints."""
    lines = [f"{'language':10} {'source':14} {'split':6} {'in files':>8} {'items':>7} {'paper':>7}"]
    for row in report["table"]:
        paper = "-" if row["paper"] is None else f"{row['paper']:,}"
        split = "Val*" if row["split"] == "Val" else row["split"]
        notes = [f"-{count} {reason}" for reason, count in row["dropped"].items()]
        notes += [f"{row[key]:,} {text}" for key, text in FLAGS.items() if row[key]]
        lines.append(f"{row['language']:10} {row['source']:14} {split:6} {row['read']:>8,} "
                     f"{row['items']:>7,} {paper:>7}  {'; '.join(notes)}".rstrip())
    compared = [row for row in report["table"] if row["paper"] is not None]
    missing = [language for language in PAPER if language not in {row["language"] for row in compared}]
    for split in ("Train", "Test") if compared else ():
        ours = sum(row["items"] for row in compared if row["split"] == split)
        paper = sum(counts[split] for counts in PAPER.values())
        lines.append(f"{'MMedBench':10} {'':14} {split:6} {'':8} {ours:>7,} {paper:>7,}"
                     + (f"  no source given for {', '.join(missing)}" if missing else ""))
    if any(row["split"] == "Val" and row["items"] for row in report["table"]):
        lines.append("* Val is the sources' own validation part; the MMedBench release has none")
    lines += [f"{name}: {note}" for name, notes in report["notes"].items() for note in notes]
    if report["leaks"]:
        rules = ", ".join(f"{rule} {count:,}" for rule, count in report["leaks"].items())
        lines.append(f"train items that leak a test item, by rule: {rules}")
    if report["dropped"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items())
        lines.append(f"dropped (listed in dropped.jsonl): {reasons}")
    return "\n".join(lines)
