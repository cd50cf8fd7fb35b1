"""Builds a whole corpus with one command from web pages, books, health sites and existing corpora.

    python -m data_prep.corpus examples/corpus.toml --out mmedc --workers 16

In:  a recipe (TOML; `examples/corpus.toml` explains every key). Its paths are relative to the recipe file.
Out: OUT/sources/LANGUAGE-N      documents of each source: filtered (web), read (book, site), as is (corpus)
     OUT/clean, unique, uncontaminated/LANGUAGE    after each of the steps that the paper lacks
     OUT/streams/LANGUAGE        token streams, and LANGUAGE-held-out
     OUT/corpus.json, OUT/README.md, OUT/report.html    all counts, a dataset card, a page with pictures

Each step is a separate command (`--list` prints them). The same command, run again, continues where it
stopped, and does again what depends on inputs that have changed.
"""
from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from data_prep.pipeline.plan import print_commands, run_plan
from data_prep.pipeline.recipe import Recipe, read_recipe, steps
from data_prep.tokenize_corpus import count_table
from mmed.utils.errors import Parser, main_guard
from mmed.utils.files import atomic_write, read_json, write_json

STAGES = ("clean", "unique", "uncontaminated")  # over all documents of a language
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
    steps: dict[str, dict[str, Any]] = {}
    for language in recipe.languages_used():
        for step in (f"sources/{language}-*", *(f"{stage}/{language}" for stage in STAGES)):
            for path in sorted(out.glob(f"{step}/funnel.json")):
                steps[path.parent.relative_to(out).as_posix()] = read_json(path)
        counts[language] = defaultdict(Counter)
        for path in (out / "streams" / f"{language}.json", out / "streams" / f"{language}-held-out.json"):
            for by_source in read_json(path)["counts"].values() if path.is_file() else ():
                for source, count in by_source.items():
                    counts[language][source].update(count)
    return {"title": recipe.title, "counts": counts, "steps": steps}


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
        name = source.name or ", ".join(Path(text).name for text in source.inputs)
        cells = [text.replace("|", "\\|").replace("\n", " ")
                 for text in (source.language, source.kind, name, source.licence or "not stated")]
        sources.append(f"| {' | '.join(cells)} |")
    return CARD.format(codes="\n".join(f"- {code}" for code in recipe.languages_used()), title=recipe.title,
                       counts=count_table(counts), sources="\n".join(sources), steps="\n".join(steps))


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m data_prep.corpus",
                    description="Build token streams from raw pages, books, sites and corpora.")
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE.toml", help="TOML file; see examples/corpus.toml for its keys")
    add("--out", type=Path, required=True, help="folder for all output")
    add("--workers", type=int, default=1, help="processes; each handles one file at a time (default: 1)")
    add("--list", action="store_true", help="print the commands without running them")
    given = parser.parse_args(arguments)
    recipe = read_recipe(given.recipe)
    plan = steps(recipe, str(given.out), given.workers)
    if given.list:
        print_commands(plan)
        return
    run_plan(plan, given.out)
    result = collect(recipe, given.out)
    write_json(given.out / "corpus.json", result)
    with atomic_write(given.out / "README.md") as file:
        file.write(card(recipe, result["counts"]))
    print(f"\nTokens\n{count_table(result['counts'])}\n\n"
          f"{given.out}: streams/, README.md (dataset card), report.html")


if __name__ == "__main__":
    main_guard(main)
