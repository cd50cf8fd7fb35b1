"""Describes a corpus and how it was made: reads the counts and streams that the steps wrote to OUT; writes
OUT/corpus.json, OUT/README.md (a dataset card), and tables on the terminal."""
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.pipeline.recipe import Recipe
from mmed.evaluation.summary import aligned
from mmed.utils.files import atomic_write, read_json, write_json

MOST_SOURCES = 6  # columns of a table; a corpus of articles may have a source for each journal
STAGES = {"clean": "language, personal data", "unique": "deduplication", "uncontaminated": "decontamination"}
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

## Documents kept and dropped

```
{funnel}
```

## Limits

- The corpus is medical by its words, not by a physician's judgement; it may contain errors, advertising and
  outdated advice.
- A model trained on it gives no medical advice.
{unlicensed}"""


def collect(recipe: Recipe, out: Path) -> dict[str, Any]:
    """{"counts": tokens and documents by language and source, "funnel": a row for each step, in order}."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    rows = []
    for language in recipe.languages_used():
        steps = [(source.name or source.kind, out / "sources" / folder)
                 for folder, source in recipe.sources_of(language)]
        steps += [(title, out / stage / language) for stage, title in STAGES.items()]
        for title, folder in steps:
            if (folder / "funnel.json").is_file():
                funnel = read_json(folder / "funnel.json")
                dropped = {reason: entry["documents"] for reason, entry in funnel["dropped"].items()}
                rows.append({"language": language, "step": title, "documents": funnel["documents"],
                             "characters": funnel["characters"], "dropped": dropped})
        for path in (out / "streams" / f"{language}.json", out / "streams" / f"{language}-held-out.json"):
            for by_source in read_json(path)["counts"].values() if path.is_file() else ():
                for source, count in by_source.items():
                    counts.setdefault(language, {}).setdefault(source, Counter()).update(count)
    return {"title": recipe.title, "counts": counts, "funnel": rows}


def funnel_table(rows: list[dict[str, Any]]) -> str:
    """Documents and characters at every step, with the reasons for dropping."""
    lines = [["language", "step", "documents in", "kept", "characters kept"]]
    reasons = ["dropped because"]
    for row in rows:
        counts = row["documents"]["in"], row["documents"]["out"], row["characters"]["out"]
        lines.append([row["language"], row["step"], *(f"{count:,}" for count in counts)])
        most_first = Counter(row["dropped"]).most_common()
        reasons.append("; ".join(f"{reason} {count:,}" for reason, count in most_first) or "-")
    return "\n".join(f"{line}  {reason}" for line, reason in zip(aligned(lines).split("\n"), reasons))


def count_table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Tokens by language and source, as the paper's table of MMedC (there in billions).

    Of more than MOST_SOURCES sources, the largest have a column; the others share one.
    """
    tokens: Counter[str] = Counter()
    for by_source in counts.values():
        tokens.update({source: count["tokens"] for source, count in by_source.items()})
    columns, other = sorted(tokens), ""
    if len(tokens) > MOST_SOURCES:
        other = f"other ({len(tokens) - MOST_SOURCES + 1})"
        columns = [*(source for source, _ in tokens.most_common(MOST_SOURCES - 1)), other]
    rows = [["language", *(column or "-" for column in columns), "tokens", "documents"]]
    for language in [*counts, "sum"]:
        cells, documents = Counter(), 0
        for part in counts.values() if language == "sum" else [counts[language]]:
            for source, count in part.items():
                cells[source if source in columns else other] += count["tokens"]
                documents += count["documents"]
        numbers = [*(cells[column] for column in columns), cells.total(), documents]
        rows.append([language or "-", *(f"{number:,}" for number in numbers)])
    return aligned(rows)


def card(recipe: Recipe, result: dict[str, Any]) -> str:
    """The dataset card: what the corpus holds, under which licences, how it was made, its limits."""
    optional = {"language identification": recipe.language_id,
                "masking of e-mail addresses and telephone numbers": recipe.mask_personal,
                f"deduplication (Jaccard similarity from {recipe.near_duplicates:g})": recipe.deduplicate,
                "removal of documents with a benchmark question": bool(recipe.benchmark)}
    steps = [f"keyword filter ({recipe.filter_mode} rule) on web pages",
             *(what for what, done in optional.items() if done)]
    steps += [f"not done: {what}" for what, done in optional.items() if not done]
    sources = [f"| {source.language} | {source.kind} | {_cell(source.title)} | "
               f"{_cell(source.licence or 'not stated')} |" for source in recipe.source]
    missing = "; ".join(_cell(source.title) for source in recipe.source if not source.licence)
    warning = f"- No licence is stated for {missing}: do not pass these parts on before it is known.\n"
    return CARD.format(codes="\n".join(f"- {code}" for code in recipe.languages_used()), title=recipe.title,
                       counts=count_table(result["counts"]), sources="\n".join(sources),
                       steps="\n".join(f"- {step}" for step in steps), funnel=funnel_table(result["funnel"]),
                       unlicensed=warning if missing else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def finish(recipe: Recipe, out: Path) -> None:
    """Counts and dataset card of a corpus whose steps are all done."""
    result = collect(recipe, out)
    write_json(out / "corpus.json", result)
    with atomic_write(out / "README.md") as file:
        file.write(card(recipe, result))
    print(f"\n{funnel_table(result['funnel'])}\n\nTokens\n{count_table(result['counts'])}\n\n"
          f"{out}: streams/, README.md (dataset card), report.html")
