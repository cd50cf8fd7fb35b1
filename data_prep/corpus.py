"""A whole corpus by one command: web pages, books, health sites and existing corpora, as one recipe file lists them, to token streams.

    python -m data_prep.corpus examples/corpus.toml --out mmedc --workers 16

In:  a recipe (TOML; `examples/corpus.toml` explains every key). Its paths are relative to the recipe file.
Out: OUT/sources/LANGUAGE-N      documents of source N of that language: filtered (web), read (book, site) or as they are (corpus)
     OUT/clean|unique|uncontaminated/LANGUAGE    after language identification and masking, deduplication, decontamination
     OUT/streams/LANGUAGE        token streams, and LANGUAGE-held-out
     OUT/corpus.json, OUT/README.md, OUT/report.html    the table of MMedC for this corpus, its funnel, a dataset card, a page with pictures

Each step is a command of its own (`--list` prints them), done once; stopped at any moment, the same command goes on (data_prep/plan.py).
The order is the paper's: take in, then what the paper lacks (METHOD 1): language, personal data, duplicates, benchmark questions.
"""
from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.plan import Step, as_typed, run_plan
from data_prep.tokenize_corpus import count_table
from mmed.errors import EXIT_STOPPED, UsageError, UserError, main_guard
from mmed.files import atomic_write, read_json, write_json
from mmed.languages import get_language

KINDS = ("web", "book", "site", "corpus")


@dataclass
class Source:
    language: str
    kind: str  # web: filtered by keywords; book: PDF; site: saved pages; corpus: taken in as it is
    inputs: list[str]
    licence: str = ""
    name: str = ""  # for the dataset card
    filter: bool | None = None  # keyword filter; None: for web only
    paragraphs: bool = False  # documents of .txt files end at blank lines


@dataclass
class Recipe:
    tokenizer: str
    source: list[Source]
    title: str = "A medical corpus"
    held_out: float = 0.0  # share of the documents for the validation loss
    filter_mode: str = "default"
    language_id: bool = False
    mask_personal: bool = False
    deduplicate: bool = True
    near_duplicates: float = 0.8  # Jaccard similarity
    benchmark: str = ""  # exam items whose questions must not be in the corpus
    ocr: bool = True
    languages: list[str] = field(default_factory=list)  # only these; empty: all that have a source


def read_recipe(path: Path) -> Recipe:
    """The recipe in `path`, its paths made relative to where it is.

    Raises UserError naming the key: not TOML, unknown or missing keys, values of another type, an unknown language or kind, missing inputs.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; examples/corpus.toml is one to start from") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    sources = table.pop("source", [])
    if not isinstance(sources, list) or not sources:
        raise UserError(f"{path}: no [[source]]; give at least one, with language, kind and inputs")
    recipe = _fill(Recipe, {**table, "source": []}, f"{path}")
    for number, entry in enumerate(sources, 1):
        where = f"{path}: source {number}"
        source = _fill(Source, entry, where)
        source.language = get_language(source.language).code
        if source.kind not in KINDS:
            raise UserError(f"{where}: kind={source.kind!r}; known are {', '.join(KINDS)}")
        if source.filter and source.kind in ("book", "site"):
            raise UserError(f"{where}: filter is for web and corpus; books and sites are chosen by hand")
        source.inputs = [_place(path, text, where) for text in source.inputs]
        if not source.inputs:
            raise UserError(f"{where}: inputs is empty; name files or folders")
        recipe.source.append(source)
    recipe.tokenizer = _place(path, recipe.tokenizer, f"{path}: tokenizer")
    if recipe.benchmark:
        recipe.benchmark = _place(path, recipe.benchmark, f"{path}: benchmark")
    wanted = [get_language(name).code for name in recipe.languages]
    recipe.source = [source for source in recipe.source if not wanted or source.language in wanted]
    if not recipe.source:
        raise UserError(f"{path}: languages={recipe.languages}: no source is in one of them")
    return recipe


def _fill(kind: type, values: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass from a table, each key checked by the field's type."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a table of keys")
    known = {entry.name: entry for entry in fields(kind)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.0)[0]
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near}? (known: {', '.join(known)})")
        wanted = str(known[key].type).split("[")[0].split(" ")[0]
        if wanted == "float" and type(value) is int:
            values[key] = value = float(value)
        if type(value).__name__ != wanted or (wanted == "list" and key != "source" and not all(isinstance(item, str) for item in value)):
            raise UserError(f"{where}: {key}={value!r} is not a {'list of strings' if wanted == 'list' else wanted}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).rpartition('missing ')[2].replace('positional arguments', 'keys').replace('positional argument', 'key')} missing") from None


def _place(recipe: Path, text: str, where: str) -> str:
    path = os.path.normpath(recipe.parent / Path(text).expanduser())
    if not os.path.exists(path):
        raise UserError(f"{where}: {path} does not exist")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# The steps


def sources_of(recipe: Recipe, language: str) -> list[tuple[str, Source]]:
    """Folder name and source of each source of a language."""
    return [(f"{language}-{number}", source) for number, source in enumerate((s for s in recipe.source if s.language == language), 1)]


def languages_of(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(source.language for source in recipe.source))


def steps(recipe: Recipe, out: str, workers: int) -> list[Step]:
    """The recipe as a list of commands."""
    several = ["--workers", str(workers)]
    plan = []
    for language in languages_of(recipe):
        name = get_language(language).name
        folders = []
        for folder, source in sources_of(recipe, language):
            target = f"{out}/sources/{folder}"
            common = [*source.inputs, "--language", language, "--out", target, *several]
            marks = ["--source", source.kind, *(["--licence", source.licence] if source.licence else []),
                     *(["--paragraphs"] if source.paragraphs and source.kind in ("web", "corpus") else [])]
            filtered = source.kind == "web" if source.filter is None else source.filter
            if source.kind == "book":
                command = ["data_prep.pdf_text", *common, *([] if recipe.ocr else ["--no-ocr"])]
            elif source.kind == "site":
                command = ["data_prep.web_pages", *common, *marks]
            elif filtered:
                command = ["data_prep.filter_medical", *common, *marks, "--mode", recipe.filter_mode]
            else:
                command = ["data_prep.clean", *common, *marks]
            plan.append(Step(f"source-{folder}", f"{name}: {source.name or source.kind}", [command]))
            folders.append(f"{target}/kept")
        needs = tuple(f"source-{folder}" for folder, _ in sources_of(recipe, language))
        if recipe.language_id or recipe.mask_personal:
            flags = (["--language-id"] if recipe.language_id else []) + (["--mask-personal"] if recipe.mask_personal else [])
            plan.append(Step(f"clean-{language}", f"{name}: language and personal data",
                             [["data_prep.clean", *folders, "--language", language, "--out", f"{out}/clean/{language}", *flags, *several]], needs))
            folders, needs = [f"{out}/clean/{language}/kept"], (f"clean-{language}",)
        if recipe.deduplicate:
            plan.append(Step(f"unique-{language}", f"{name}: duplicates out",
                             [["data_prep.dedup", *folders, "--out", f"{out}/unique/{language}", "--threshold", f"{recipe.near_duplicates:g}", *several]], needs))
            folders, needs = [f"{out}/unique/{language}/kept"], (f"unique-{language}",)
        if recipe.benchmark:
            plan.append(Step(f"uncontaminated-{language}", f"{name}: documents with exam questions out",
                             [["data_prep.decontaminate", *folders, "--benchmark", recipe.benchmark, "--out", f"{out}/uncontaminated/{language}", *several]],
                             needs))
            folders, needs = [f"{out}/uncontaminated/{language}/kept"], (f"uncontaminated-{language}",)
        plan.append(Step(f"streams-{language}", f"{name}: token stream",
                         [["data_prep.tokenize_corpus", *folders, "--tokenizer", recipe.tokenizer, "--language", language, "--out", f"{out}/streams/{language}",
                           *(["--held-out", f"{recipe.held_out:g}"] if recipe.held_out else []), *several]], needs))
    return plan


# ---------------------------------------------------------------------------------------------------------------------
# What came out

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
            for by_source in read_json(path)["counts"].values() if path.is_file() else ():
                for source, count in by_source.items():
                    total = counts.setdefault(language, {}).setdefault(source, {"tokens": 0, "documents": 0})
                    for key in total:
                        total[key] += count[key]
    return {"title": recipe.title, "counts": counts, "funnel": rows}


def _row(language: str, step: str, path: Path) -> dict[str, Any]:
    funnel = read_json(path)
    return {"language": language, "step": step, "documents": funnel["documents"], "characters": funnel["characters"],
            "dropped": {reason: value["documents"] for reason, value in funnel["dropped"].items()}}


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


def finish(recipe: Recipe, out: Path, begun: float) -> None:
    """Counts, dataset card and report of a corpus whose steps are all done."""
    result = collect(recipe, out)
    write_json(out / "corpus.json", result)
    with atomic_write(out / "README.md") as file:
        file.write(card(recipe, result))
    from mmed import report

    report.main(["--corpus", str(out), "--out", str(out / "report.html"), "--title", recipe.title])
    print(f"\n{funnel_table(result['funnel'])}\n\nTokens\n{count_table(result['counts'])}\n\n"
          f"{out}: streams/, README.md (dataset card), report.html; {time.time() - begun:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_prep.corpus",
                                     description="From raw pages, books, sites and corpora to token streams, as a recipe file says.")
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="examples/corpus.toml explains the keys")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--workers", type=int, default=1, help="processes, one shard each at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the commands and do nothing")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise UsageError(f"--workers={options.workers}: at least 1")
    recipe = read_recipe(options.recipe)
    plan = steps(recipe, str(options.out), options.workers)
    if options.list:
        for step in plan:
            print(f"# {step.name}: {step.title}", *map(as_typed, step.commands), sep="\n")
        return 0
    begun = time.time()
    try:
        run_plan(plan, options.out)
    except KeyboardInterrupt:
        print("\nstopped; start again with the same command to go on", file=sys.stderr)
        return EXIT_STOPPED
    finish(recipe, options.out, begun)
    return 0


if __name__ == "__main__":
    main_guard(main)
