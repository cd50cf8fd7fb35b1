"""Describes a corpus and how it was made: reads the counts and streams that the steps wrote to OUT; writes
OUT/corpus.json and OUT/README.md (a dataset card)."""
from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from data_prep.pipeline.recipe import Recipe
from mmed.evaluation.summary import aligned
from mmed.utils.files import atomic_write, read_json, write_json

CARD = """---
language:
{codes}
tags:
- medical
---

# {title}

Made by `python -m data_prep.corpus`. Tokens by language and source:

```
{counts}
```

## Sources

| language | kind | name | licence |
|---|---|---|---|
{sources}

## Steps

{steps}

report.html shows how many documents each step kept, and why it dropped the others.

## Limits

- The corpus is medical by its words, not by a physician's judgement; it may contain errors, advertising and
  outdated advice.
- A model trained on it gives no medical advice.
- A source without a stated licence must not be passed on before its licence is known.
"""


def collect(recipe: Recipe, out: Path) -> dict[str, Any]:
    """{"counts": tokens and documents by language and source, "steps": the counts of each step by folder}."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for language in recipe.languages_used():
        counts[language] = defaultdict(Counter)
        for path in (out / "streams" / f"{language}.json", out / "streams" / f"{language}-held-out.json"):
            for by_source in read_json(path)["counts"].values() if path.is_file() else ():
                for source, count in by_source.items():
                    counts[language][source].update(count)
    steps = {path.parent.relative_to(out).as_posix(): read_json(path) for path in out.rglob("funnel.json")}
    return {"title": recipe.title, "counts": counts, "steps": steps}


def count_table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Tokens and documents by language and source."""
    rows = [[language or "-", source or "-", count["tokens"], count["documents"]]
            for language, by_source in counts.items() for source, count in sorted(by_source.items())]
    rows.append(["sum", "", sum(row[2] for row in rows), sum(row[3] for row in rows)])
    cells = [[*names, f"{tokens:,}", f"{documents:,}"] for *names, tokens, documents in rows]
    return aligned([["language", "source", "tokens", "documents"], *cells])


def card(recipe: Recipe, counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """The dataset card: what the corpus holds, under which licences, how it was made, its limits."""
    optional = {"language identification": recipe.language_id,
                "masking of e-mail addresses and telephone numbers": recipe.mask_personal,
                f"deduplication (Jaccard similarity from {recipe.near_duplicates:g})": recipe.deduplicate,
                "removal of documents with a benchmark question": recipe.benchmark}
    steps = [f"- keyword filter ({recipe.filter_mode} rule) on web pages",
             *(f"- {what if done else f'not done: {what}'}" for what, done in optional.items())]
    sources = []
    for source in recipe.source:
        cells = [source.language, source.kind, source.title, source.licence or "not stated"]
        sources.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return CARD.format(codes="\n".join(f"- {code}" for code in recipe.languages_used()), title=recipe.title,
                       counts=count_table(counts), sources="\n".join(sources), steps="\n".join(steps))


def finish(recipe: Recipe, out: Path) -> None:
    """Counts and dataset card of a corpus whose steps are all done."""
    result = collect(recipe, out)
    write_json(out / "corpus.json", result)
    with atomic_write(out / "README.md") as file:
        file.write(card(recipe, result["counts"]))
    print(f"\nTokens\n{count_table(result['counts'])}\n\n"
          f"{out}: streams/, README.md (dataset card), report.html")
