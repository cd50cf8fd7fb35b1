"""The paper's counts, and the table that holds ours against them with a reason for every difference.

In: for each source and language what was read, dropped, moved between splits and written. Out: rows (counts.json holds them) and text.
"""
from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

SPLITS = ("Train", "Val", "Test")
# MMedLM: items per language (METHOD.md 2.1); train and test sum to the paper's 45,048 and 8,518. Val was left out of the release.
PAPER = {
    "English": {"Train": 10_178, "Val": 1_272, "Test": 1_273},
    "Chinese": {"Train": 27_400, "Val": 3_425, "Test": 3_426},
    "Japanese": {"Train": 1_590, "Val": 199, "Test": 199},
    "French": {"Train": 2_171, "Val": 312, "Test": 622},
    "Russian": {"Train": 1_052, "Val": 256, "Test": 256},
    "Spanish": {"Train": 2_657, "Val": 1_366, "Test": 2_742},
}


def by_split_and_reason() -> defaultdict[str | None, Counter]:
    return defaultdict(Counter)


@dataclass
class Tally:
    """What became of one source's items in one language; keys are splits (None: the file states none), as read or as written."""

    read: Counter = field(default_factory=Counter)
    dropped: defaultdict = field(default_factory=by_split_and_reason)  # split -> reason -> count
    files: defaultdict = field(default_factory=lambda: defaultdict(dict))  # split -> file names, in order
    moved_in: Counter = field(default_factory=Counter)
    moved_out: Counter = field(default_factory=Counter)
    written: Counter = field(default_factory=Counter)
    repeats: Counter = field(default_factory=Counter)
    leaks: Counter = field(default_factory=Counter)  # repeats whose first copy is in another split
    images: Counter = field(default_factory=Counter)
    multiple: Counter = field(default_factory=Counter)
    blank_options: Counter = field(default_factory=Counter)
    equal_options: Counter = field(default_factory=Counter)
    options: defaultdict = field(default_factory=by_split_and_reason)  # split -> number of options -> count


def table_row(language: str, name: str, split: str, tally: Tally, in_paper: bool, seed: int, holdout: float | None) -> dict:
    """One line of the table. `why` accounts for the whole difference: read - dropped - moved away + moved here = items."""
    paper = PAPER.get(language, {}).get(split) if in_paper and not (name == "mmedbench" and split == "Val") else None
    got, items, lost = tally.read[split], tally.written[split], tally.dropped[split]
    files = ", ".join(tally.files[split])
    assert got - lost.total() - tally.moved_out[split] + tally.moved_in[split] == items, "expected a table that adds up"
    why = []
    if name == "igakuqa":
        usable, total = tally.written.total(), sum(PAPER["Japanese"].values())
        unusable = ", ".join(f"{count} {reason}" for lost in tally.dropped.values() for reason, count in lost.items())
        if split == "Train":
            why.append(f"{tally.read.total():,} read, dropped: {unusable or 'none'}; {usable:,} of the paper's {total:,} usable questions")
        why.append(f"drawn by seed {seed}" + ("" if usable == total else ", in the paper's proportion"))
    else:
        if paper is not None and not got:
            why.append(f"no {split.lower()} file among those given")
        elif paper is not None and got != paper:
            why.append(f"{got:,} of {paper:,} are in {files}")
        elif got and paper is None:
            why.append(f"{got:,} in {files}")
        why += [f"-{count} {reason}" for reason, count in lost.most_common()]
        if tally.moved_out[split]:
            why.append(f"-{tally.moved_out[split]:,} held out for Test")
        if tally.moved_in[split]:
            unsplit = tally.read[None]
            why.append(f"+{tally.moved_in[split]:,} " + (f"from the {unsplit:,} of files that state no split" if unsplit else "held out of Train")
                       + (f" (--holdout {holdout:g}, seed {seed})" if holdout is not None else ""))
    for counts, text in ((tally.repeats, "repeats kept (duplicate_of)"), (tally.leaks, "of them also in another split"),
                      (tally.images, "need an image (image_dependent)"), (tally.blank_options, "with a blank option (blank_options)"),
                      (tally.equal_options, "with equal options (equal_options)")):
        if counts[split]:
            why.append(f"{counts[split]:,} {text}")
    if not in_paper:
        why.append("not in MMedBench")
    elif items == paper and len(why) == 0:
        why.append("as in the paper")
    return {"language": language, "source": name, "split": split, "items": items, "paper": paper, "read": got,
            "dropped": dict(lost), "moved_in": tally.moved_in[split], "moved_out": tally.moved_out[split], "repeats": tally.repeats[split],
            "also_in_another_split": tally.leaks[split], "image_dependent": tally.images[split], "multiple_answers": tally.multiple[split],
            "options": {str(size): count for size, count in sorted(tally.options[split].items())}, "why": "; ".join(why)}


def format_table(report: dict) -> str:
    """The table of counts as text, with the totals the paper prints."""
    lines = [f"{'language':10} {'source':14} {'split':6} {'items':>7} {'paper':>7} {'diff':>7}  why"]
    for row in report["table"]:
        paper, split = row["paper"], "Val*" if row["split"] == "Val" else row["split"]
        diff = "" if paper is None else f"{row['items'] - paper:+,}" if row["items"] != paper else "0"
        lines.append(f"{row['language']:10} {row['source']:14} {split:6} {row['items']:>7,} {'-' if paper is None else f'{paper:,}':>7} "
                     f"{diff:>7}  {row['why']}")
    for split in ("Train", "Test"):
        ours = sum(row["items"] for row in report["table"] if row["split"] == split and row["paper"] is not None)
        paper, there = sum(counts[split] for counts in PAPER.values()), {r["language"] for r in report["table"] if r["paper"] is not None}
        missing = [language for language in PAPER if language not in there]
        if there:
            lines.append(f"{'MMedBench':10} {'':14} {split:6} {ours:>7,} {paper:>7,} {ours - paper:>+7,}"
                         + (f"  no source given for {', '.join(missing)}" if missing else ""))
    if any(row["split"] == "Val" and row["items"] for row in report["table"]):
        lines.append("* Val is the sources' own validation part; the MMedBench release has none")
    lines += [f"{name}: {note}" for name, notes in report["notes"].items() for note in notes]
    if report["dropped"]:
        lines.append("dropped (listed in dropped.jsonl): " + ", ".join(f"{reason} {count:,}" for reason, count in report["dropped"].items()))
    return "\n".join(lines)
