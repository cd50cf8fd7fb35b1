"""The recipe of a corpus: what is in it and what is done to it, as a TOML file; and the commands that follow from it.

`examples/corpus.toml` explains every key. Used by data_prep/corpus.py (one machine) and data_prep/pipeline/cluster.py (many).
"""
from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.pipeline.plan import Step
from mmed.languages import get_language
from mmed.utils.errors import UserError

KINDS = ("web", "book", "site", "corpus")
MAX_BYTES = 1 << 20


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
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes are too many for a recipe (limit {MAX_BYTES:,})")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; examples/corpus.toml is one to start from") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML, a number of thousands of digits
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
    path = os.path.normpath(recipe.parent / os.path.expanduser(text))
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
                command = ["data_prep.books", *common, *(["--licence", source.licence] if source.licence else []), *([] if recipe.ocr else ["--no_ocr"])]
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
    plan.append(Step("report", "a page with pictures", [["mmed.reporting", "--corpus", out, "--out", f"{out}/report.html", "--title", recipe.title]],
                     tuple(f"streams-{language}" for language in languages_of(recipe))))
    return plan
