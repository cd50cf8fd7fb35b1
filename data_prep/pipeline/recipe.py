"""The recipe of a corpus, a TOML file (examples/corpus.toml explains every key), and its commands."""
from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.filters.language_codes import find_language
from data_prep.pipeline.plan import Step
from mmed.languages import get_language
from mmed.utils.errors import UserError

CHOICES = {"kind": ("web", "book", "site", "corpus"), "filter_mode": ("default", "official")}
TYPES = {"str": (str,), "float": (float, int), "bool": (bool,), "bool | None": (bool,), "list[str]": (list,)}


@dataclass
class Source:
    language: str
    kind: str  # web: filtered by keywords; book: PDF; site: saved pages; corpus: as it is
    inputs: list[str]
    licence: str = ""
    name: str = ""  # for the dataset card
    filter: bool | None = None  # keyword filter; None: for web only
    text_field: str = ""  # field of the records with the text
    paragraphs: bool = False  # split .txt files into documents at blank lines


@dataclass
class Recipe:
    tokenizer: str
    source: list[Source] = field(default_factory=list)
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

    def languages_used(self) -> list[str]:
        return list(dict.fromkeys(source.language for source in self.source))


def read_recipe(path: Path) -> Recipe:
    """The recipe in `path`, its paths resolved against its folder; an error names the wrong key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    entries = table.pop("source", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: each source begins with a line [[source]], in two pairs of brackets")
    recipe: Recipe = _checked(Recipe, table, str(path))
    wanted = [find_language(name).code for name in recipe.languages]
    for number, entry in enumerate(entries, 1):
        where = f"{path}: source {number}"
        source: Source = _checked(Source, entry, where)
        source.language = find_language(source.language).code
        if source.kind in ("book", "site") and (source.filter or source.text_field or source.paragraphs):
            raise UserError(f"{where}: filter, text_field and paragraphs do not apply to books and sites")
        source.inputs = [_existing(path, text, where) for text in source.inputs]
        if not wanted or source.language in wanted:
            recipe.source.append(source)
    if not recipe.source:
        raise UserError(f"{path}: no [[source]]" + f" in languages={recipe.languages}" * bool(wanted))
    recipe.tokenizer = _existing(path, recipe.tokenizer, f"{path}: tokenizer")
    recipe.benchmark = recipe.benchmark and _existing(path, recipe.benchmark, f"{path}: benchmark")
    return recipe


def _checked(kind: type, values: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass from a table, each key checked by the field's type."""
    known = {entry.name: entry for entry in fields(kind)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.0)[0]
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near}? (known: {', '.join(known)})")
        name = str(known[key].type)
        items = value if isinstance(value, list) else []
        if type(value) not in TYPES[name] or not all(isinstance(item, str) for item in items):
            raise UserError(f"{where}: {key}={value!r} is not a {name}")
        if name == "float" and not 0 <= value <= 1:
            raise UserError(f"{where}: {key}={value!r}: must be from 0 to 1")
        if value not in CHOICES.get(key, [value]):
            raise UserError(f"{where}: {key}={value!r}; known are {', '.join(CHOICES[key])}")
    for entry in known.values():
        if not values.get(entry.name) and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{where}: the key {entry.name} is missing or empty")
    return kind(**values)


def _existing(recipe: Path, text: str, where: str) -> str:
    path = os.path.normpath(recipe.parent / os.path.expanduser(text))
    if not os.path.exists(path):
        raise UserError(f"{where}: {path} does not exist")
    return path


def steps(recipe: Recipe, out: str, workers: int) -> list[Step]:
    """The recipe as a list of commands."""
    plan: list[Step] = []
    for language in recipe.languages_used():
        name, folders = get_language(language).name, []
        own = (source for source in recipe.source if source.language == language)
        for number, source in enumerate(own, 1):
            folders.append(f"{out}/sources/{language}-{number}")
            command = [*_source_command(recipe, source), "--out", folders[-1], "--workers", str(workers)]
            title = f"{name}: {source.name or source.kind}"
            plan.append(Step(f"source-{language}-{number}", title, [command], inputs=tuple(source.inputs)))
        needs = tuple(step.name for step in plan[-len(folders):])
        for stage, title, module, options in _stages(recipe, language):
            target = f"{out}/{stage}/{language}"
            kept = [f"{folder}/kept" for folder in folders]
            command = [module, *kept, *options, "--out", target, "--workers", str(workers)]
            inputs = {"streams": (recipe.tokenizer,), "uncontaminated": (recipe.benchmark,)}.get(stage, ())
            plan.append(Step(f"{stage}-{language}", f"{name}: {title}", [command], needs, inputs=inputs))
            folders, needs = [target], (plan[-1].name,)
    report = ["mmed.reporting", "--corpus", out, "--out", f"{out}/report.html", "--title", recipe.title]
    streams = tuple(step.name for step in plan if step.name.startswith("streams-"))
    return [*plan, Step("report", "a page with pictures", [report], streams)]


def _options(**values: Any) -> list[str]:
    """Options of a command; those that are empty or false are left out."""
    words = []
    for name, value in values.items():
        if value:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def _source_command(recipe: Recipe, source: Source) -> list[str]:
    command = [*source.inputs, *_options(language=source.language, licence=source.licence)]
    if source.kind == "book":
        return ["data_prep.books", *command, *_options(no_ocr=not recipe.ocr)]
    if source.kind == "site":
        return ["data_prep.web_pages", *command]
    command += _options(source=source.kind, text_field=source.text_field, paragraphs=source.paragraphs)
    if source.filter or (source.filter is None and source.kind == "web"):
        return ["data_prep.filter_medical", *command, "--mode", recipe.filter_mode]
    return ["data_prep.clean", *command]


def _stages(recipe: Recipe, language: str) -> list[tuple[str, str, str, list[str]]]:
    """(folder, title, module, options) of the steps over all documents of a language, in order."""
    cleaning = _options(language_id=recipe.language_id, mask_personal=recipe.mask_personal)
    stages = [
        (cleaning, "clean", "language and personal data", "data_prep.clean",
         ["--language", language, *cleaning]),
        (recipe.deduplicate, "unique", "deduplication", "data_prep.dedup",
         ["--threshold", str(recipe.near_duplicates)]),
        (recipe.benchmark, "uncontaminated", "decontamination", "data_prep.decontaminate",
         ["--benchmark", recipe.benchmark]),
        (True, "streams", "token stream", "data_prep.tokenize_corpus",
         _options(tokenizer=recipe.tokenizer, language=language, held_out=recipe.held_out))]
    return [stage[1:] for stage in stages if stage[0]]
