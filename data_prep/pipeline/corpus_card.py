"""What a corpus holds and how it came about: the table of MMedC for it (METHOD 1.1), the funnel of its steps, a dataset card.

In:  the funnels and streams that the steps of a recipe wrote below OUT. Out: OUT/corpus.json, OUT/README.md, and the tables in the terminal.
"""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_prep.pipeline.recipe import Recipe, Source, languages_of, sources_of
from mmed.evaluation.summary import aligned
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, write_json

STAGES = {"clean": "language, personal data", "unique": "deduplication", "uncontaminated": "decontamination"}


def collect(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Counts of all steps: {"counts": tokens and documents by language and source, "funnel": rows in the order of the steps}."""
    counts: dict[str, dict] = {}
    rows = []
    for language in languages_of(recipe):
        for folder, source in sources_of(recipe, language):
            rows.append(_row(language, source.name or source.kind, out / "sources" / folder / "funnel.json"))
        rows += [_row(language, title, out / stage / language / "funnel.json")
                 for stage, title in STAGES.items() if (out / stage / language / "funnel.json").is_file()]
        for suffix in ("", "-held-out"):
            path = out / "streams" / f"{language}{suffix}.json"
            try:
                for by_source in read_json(path)["counts"].values() if path.is_file() else ():
                    for source, count in by_source.items():
                        total = counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
                        for key in total:
                            total[key] += whole(count[key])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise error if isinstance(error, UserError) else UserError(f"{path}: not the side file of a token stream; tokenize again") from None
    return {"title": recipe.title, "counts": counts, "funnel": rows}


def _row(language: str, step: str, path: Path) -> dict[str, Any]:
    funnel = read_json(path)
    try:
        sides = {unit: {side: whole(funnel[unit][side]) for side in ("in", "out")} for unit in ("documents", "characters")}
        return {"language": language, "step": step, **sides, "dropped": {reason: whole(value["documents"]) for reason, value in funnel["dropped"].items()}}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not the counts of a step of data_prep; delete it and start again") from None


def whole(value: Any) -> int:
    """A count, or an error: other things in its place come from no step of ours."""
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a count, got {value!r:.40}")
    return value


def funnel_table(rows: list[dict[str, Any]]) -> str:
    """Documents and characters at every step, with the reasons of dropping."""
    lines = [["language", "step", "documents in", "kept", "characters kept", "dropped because"]]
    for row in rows:
        reasons = sorted(row["dropped"].items(), key=lambda pair: -pair[1])
        lines.append([row["language"], row["step"], f"{row['documents']['in']:,}", f"{row['documents']['out']:,}", f"{row['characters']['out']:,}",
                      "; ".join(f"{reason} {count:,}" for reason, count in reasons) or "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([*(cell.rjust(width) if i > 1 else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths))), line[5]])
                     for line in lines)


def card(recipe: Recipe, result: dict[str, Any]) -> str:
    """The dataset card: what is in the corpus, under which licences, how it was made, what it is not fit for."""
    missing = [_called(source) for source in recipe.source if not source.licence]
    steps_done = [f"keyword filter ({recipe.filter_mode} rule) on web pages", *(["language identification"] if recipe.language_id else []),
                  *(["e-mail addresses and telephone numbers masked"] if recipe.mask_personal else []),
                  *([f"exact and near duplicates out (Jaccard similarity from {recipe.near_duplicates:g})"] if recipe.deduplicate else []),
                  *(["documents that hold a benchmark question out"] if recipe.benchmark else [])]
    left_out = [what for what, done in (("language identification", recipe.language_id), ("masking of personal data", recipe.mask_personal),
                                        ("deduplication", recipe.deduplicate), ("benchmark decontamination", bool(recipe.benchmark))) if not done]
    lines = ["---", "language:", *(f"- {code}" for code in languages_of(recipe)), "tags:", "- medical", "---", "", f"# {recipe.title}", "",
             "Made by `python -m data_prep.corpus`. Tokens by language and source:", "", "```", count_table(result["counts"]), "```", "", "## Sources", "",
             "| language | kind | name | licence |", "|---|---|---|---|",
             *(f"| {s.language} | {s.kind} | {_cell(_called(s))} | {_cell(s.licence or 'not stated')} |"
               for s in recipe.source), "", "## Steps", "", *(f"- {step}" for step in steps_done),
             *([f"- not done: {', '.join(left_out)}"] if left_out else []), "", "## Funnel", "", "```", funnel_table(result["funnel"]), "```", "", "## Limits", "",
             "- The corpus is medical by its words, not by a physician's judgement; it may hold errors, advertising and outdated advice.",
             "- A model trained on it gives no medical advice.",
             *([f"- No licence is stated for {'; '.join(map(_cell, missing))}: do not pass these parts on before it is known."] if missing else [])]
    return "\n".join(lines) + "\n"


def _called(source: Source) -> str:
    return source.name or ", ".join(Path(text).name for text in source.inputs)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def count_table(counts: dict) -> str:
    """Tokens by language and source, as METHOD 1.1 prints MMedC (there in billions)."""
    sources = sorted({source for by_source in counts.values() for source in by_source})
    rows = [["language", *(source or "-" for source in sources), "tokens", "documents"]]
    for language in [*counts, "sum"]:
        parts = counts.values() if language == "sum" else [counts[language]]
        cells = [sum(part.get(source, {}).get("tokens", 0) for part in parts) for source in sources]
        documents = sum(count["documents"] for part in parts for count in part.values())
        rows.append([language or "-", *(f"{cell:,}" for cell in cells), f"{sum(cells):,}", f"{documents:,}"])
    return aligned(rows)


def finish(recipe: Recipe, out: Path, begun: float) -> None:
    """Counts and dataset card of a corpus whose steps are all done."""
    result = collect(recipe, out)
    write_json(out / "corpus.json", result)
    with atomic_write(out / "README.md") as file:
        file.write(card(recipe, result))
    print(f"\n{funnel_table(result['funnel'])}\n\nTokens\n{count_table(result['counts'])}\n\n"
          f"{out}: streams/, README.md (dataset card), report.html; {time.time() - begun:.0f} s")
