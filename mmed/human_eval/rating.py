"""Rating of rationales by people and by a judge model, and which metric agrees with people.

    python -m mmed.human_eval.rating sheet results/a results/b --out sheets
    python -m mmed.human_eval.rating merge sheets/key.json ratings-*.json --out people.json
    python -m mmed.human_eval.rating judge results/a results/b --api MODEL --out judge.json
    python -m mmed.human_eval.rating agreement people.json results/a results/b --judge judge.json --out study

In: result folders of `mmed.eval` with rationales, one per model. Out: `sheet`, a page per language on which
people rank the texts of all models, blind; `merge`, their files in one, with the agreement among raters;
`judge`, the same ranking by a model; `agreement`, a table and a page on how each metric agrees with people.

Only the key says who wrote text A: keep it from the raters. The same --seed and --items give people and judge
the same items.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmed import metrics
from mmed.evaluation import api_client
from mmed.evaluation.summary import aligned
from mmed.human_eval.agreement import agreement_table, rater_agreement, study
from mmed.human_eval.judge import JUDGE_VERSION, TRIES, Messages, judge_cases
from mmed.human_eval.rating_data import (
    Case,
    Ratings,
    read_cases,
    read_object,
    read_texts,
    shown,
    write_ratings,
)
from mmed.languages import get_language
from mmed.reporting.agreement import study_values
from mmed.reporting.page import fill_page
from mmed.reporting.report import page
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, write_json
from mmed.utils.untrusted import as_name, reading

SHEET_FORMAT, KEY_FORMAT = "mmed sheet ratings", "mmed rating key"
HERE = Path(__file__).parent


# ---- sheet -------------------------------------------------------------------------------------------------

def sheet_content(cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """What a page shows of one language, without the models' names; `sheet` is its fingerprint."""
    language = cases[0].language
    items = [{"key": case.key, "question": shown(case.question), "gold": case.gold.split(","),
              "options": [[letter, shown(text)] for letter, text in case.options.items()],
              "reference": shown(case.reference),
              "texts": [[letter, shown(case.texts[model])] for letter, model in case.letters(seed).items()]}
             for case in cases]
    content = {"language": language, "code": get_language(language).code,
               "letters": list(cases[0].letters(seed)), "items": items}
    return {"sheet": hashlib.sha256(json.dumps(content).encode()).hexdigest(), **content}


def sheet_command(options: argparse.Namespace) -> None:
    """A page for each language, then key.json."""
    models, cases = read_cases(options.results, options.items, options.seed)
    folder, seed = Path(options.out), options.seed
    if (folder / "key.json").exists():
        raise UserError(f"{folder / 'key.json'}: already exists, and raters' pages work only with it; give "
                        "another --out")
    sheets: dict[str, Any] = {}
    for language in dict.fromkeys(case.language for case in cases):
        part = [case for case in cases if case.language == language]
        content = sheet_content(part, seed)
        items = {case.key: {"digest": case.digest, "letters": case.letters(seed)} for case in part}
        sheets[language] = {"sheet": content["sheet"], "items": items}
        with atomic_write(folder / f"{language}.html") as file:
            file.write(fill_page(HERE / "rating_sheet.html", title=f"Ranking explanations · {language}",
                                 data=content))
    write_json(folder / "key.json", {"format": KEY_FORMAT, "version": 1, "seed": seed, "models": models,
                                     "sheets": sheets})
    print(f"{len(cases)} items, {len(models)} explanations each: {', '.join(sheets)}\n"
          f"{folder / 'key.json'} says who wrote which; keep it from the raters, `merge` needs it")


# ---- merge -------------------------------------------------------------------------------------------------

def read_sheet_ratings(path: str | Path, key: Mapping[str, Any]) -> tuple[str, str, dict]:
    """(language, rater, item -> model -> points) of one rater's file, which must rank its whole sheet."""
    value = read_object(path, SHEET_FORMAT)
    languages = [name for name, sheet in key["sheets"].items() if sheet["sheet"] == value.get("sheet")]
    if not languages:
        raise UserError(f"{path}: its sheet does not match this key: it rates other items or texts")
    rated = {}
    rater = as_name(value.get("rater"))
    if not rater:
        raise UserError(f"{path}: the rater gave no name; write one into the file's field 'rater'")
    with reading(path):
        for item, entry in key["sheets"][languages[0]]["items"].items():
            letters, given = entry["letters"], value["scores"].get(item)
            if not given:
                raise UserError(f"{path}: item {item}: not ranked; open the file in its page and finish it")
            if set(given) != set(letters) or sorted(given.values()) != list(range(1, len(letters) + 1)):
                raise UserError(f"{path}: item {item}: expected each of the scores 1 to {len(letters)} once, "
                                f"for {', '.join(letters)}; got {given!r:.200}")
            rated[item] = {model: float(given[letter]) for letter, model in letters.items()}
    return languages[0], rater, rated


def merge(key: Mapping[str, Any], paths: Sequence[str | Path]) -> Ratings:
    """Each rater's points and their mean, by language and item."""
    cases: Ratings = {}
    for path in paths:
        language, rater, rated = read_sheet_ratings(path, key)
        items = key["sheets"][language]["items"]
        part = cases.setdefault(language, {item: {"digest": entry["digest"], "scores": {}, "raters": {}}
                                           for item, entry in items.items()})
        for item, points in rated.items():
            if rater in part[item]["raters"]:
                raise UserError(f"{path}: a second file by {rater} for the {language} sheet; two raters need "
                                "two names")
            part[item]["raters"][rater] = points
    for case in (case for part in cases.values() for case in part.values()):
        case["scores"] = {model: metrics.mean(points[model] for points in case["raters"].values())
                          for model in key["models"]}
    return cases


def merge_command(options: argparse.Namespace) -> None:
    key = read_object(options.key, KEY_FORMAT)
    with reading(options.key):
        cases = merge(key, options.ratings)
    agreement = {language: rater_agreement(part) for language, part in cases.items()}
    raters = sorted({rater for part in agreement.values() for rater in part["raters"]})
    value = write_ratings(options.out, {"kind": "people", "raters": raters}, key["models"], cases,
                          seed=key["seed"], agreement=agreement)
    print(ratings_table(value))
    for language, part in agreement.items():
        alpha = "" if part["krippendorff_alpha"] is None else f", alpha {part['krippendorff_alpha']:.3f}"
        print(f"{language}: {len(part['raters'])} raters, {part['items']} items{alpha}")
    if missing := [language for language in key["sheets"] if language not in cases]:
        print(f"note: no file rates {', '.join(missing)}", file=sys.stderr)


def ratings_table(value: Mapping[str, Any]) -> str:
    """Mean points by model and language, the best model first."""
    rows = sorted(value["average"].items(), key=lambda pair: -pair[1]["macro"])
    return aligned([["mean points", *rows[0][1]],
                    *([model, *(f"{mean:.2f}" for mean in row.values())] for model, row in rows)])


# ---- judge and agreement -----------------------------------------------------------------------------------

def judge_command(options: argparse.Namespace) -> None:
    """Answered calls are stored at once, so a stopped command continues."""
    models, cases = read_cases(options.results, options.items, options.seed)
    server = api_client.server_from(options, options.seed)
    store = api_client.CallStore(f"{options.out}.calls.jsonl")
    used: list[dict] = []
    keys: list[str] = []
    bar = tqdm(total=len(cases), desc="judge", unit=" replies", mininterval=1)

    def ask_all(chats: list[Messages], labels: list[str]) -> list[str]:
        prompts = ["\n\n".join(message["content"] for message in chat) + "\n" if server.completions else chat
                   for chat in chats]
        bodies = [api_client.request(server, prompt, options.max_new_tokens) for prompt in prompts]
        keys.extend(api_client.request_key(server, body) for body in bodies)
        used.extend(api_client.ask(server, bodies, store, labels=labels, on_done=lambda _: bar.update()))
        return [reply["text"] for reply in used[-len(chats):]]

    try:
        rated, facts = judge_cases(cases, ask_all, options.seed)
    finally:
        store.close(keys)
        bar.close()
    if not any(rated.values()):
        raise UserError(f"{server.model}: none of {facts['calls']} replies was a ranking "
                        f"({facts['failed'][0]['reasons'][-1]}); see {store.path}, or try another judge")
    by = {"kind": "judge", "model": server.model, "version": JUDGE_VERSION, "server": server.facts()}
    value = write_ratings(options.out, by, models, rated, seed=options.seed, replies=facts,
                          usage=api_client.usage(used))
    places = ", ".join(f"{letter} {mean:.2f}" for letter, mean in facts["mean_by_place"].items())
    print(f"{ratings_table(value)}\nmean points by place in the prompt (all equal if it has no effect): "
          f"{places}\n{options.out}: {sum(map(len, rated.values()))} of {len(cases)} items ranked, "
          f"{facts['calls']} calls, {facts['unreadable_replies']} replies without a ranking")
    for failed in facts["failed"]:
        print(f"note: {failed['language']}, item {failed['item']} is left out: no ranking in {TRIES} tries "
              f"({failed['reasons'][-1]})", file=sys.stderr)


def agreement_command(options: argparse.Namespace) -> None:
    models, found = read_texts(options.results)
    names = [options.people, *options.judge]
    people, *judges = map(read_object, names)
    with reading(", ".join(names)):
        value = study(people, models, found, judges, names)
    out = Path(options.out)
    write_json(out / "agreement.json", value)
    with atomic_write(out / "agreement.html") as file:
        file.write(page(title="Which metric agrees with people?", study=study_values(value)))
    print("\n".join([agreement_table(value), *(f"note: {note}" for note in value["notes"]),
                     f"\n{out / 'agreement.html'}, {out / 'agreement.json'}"]))


# ---- command line ------------------------------------------------------------------------------------------

def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.human_eval.rating",
                    description="Have people and judges rate rationales. Only `judge` uses the network.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str, example: str) -> Parser:
        name = run.__name__.removesuffix("_command")
        made = subparsers.add_parser(name, help=text, description=text,
                                     example=f"{parser.prog} {name} {example}")
        made.set_defaults(run=run)
        made.add_argument("--out", required=True, help="output file or folder")
        return made

    sheet = command(sheet_command, "write pages on which people rank the texts of all models, blind",
                    "results/a results/b --out sheets")
    merged = command(merge_command, "merge the files of raters, with the agreement among them",
                     "sheets/key.json ratings-*.json --out people.json")
    judge = command(judge_command, "ask a model behind an API to rank the texts of all models, blind",
                    "results/a results/b --api gpt-4 --out judge.json")
    agreement = command(agreement_command, "measure how each metric agrees with people",
                        "people.json results/a results/b --judge judge.json --out study")
    merged.add_argument("key", metavar="KEY", help="the key.json that `sheet` wrote")
    merged.add_argument("ratings", nargs="+", metavar="RATINGS", help="files saved by the raters")
    agreement.add_argument("people", metavar="PEOPLE", help="ratings written by `merge`")
    agreement.add_argument("--judge", action="append", default=[], metavar="FILE",
                           help="a judge's ratings (repeatable)")
    for one in (sheet, judge, agreement):
        one.add_argument("results", nargs="+", metavar="RESULT",
                         help="one result folder per model: FOLDER or NAME=FOLDER")
    for one in (sheet, judge):
        one.add_argument("--items", type=int, default=50, help="items per language (default 50; 0: all)")
        one.add_argument("--seed", type=int, default=0, help="random seed for items and order (default 0)")
    judge.add_argument("--max_new_tokens", type=int, default=1024,
                       help="maximum tokens per reply (default 1024)")
    api_client.add_api_options(judge, required=True)
    options = parser.parse_args(arguments)
    if getattr(options, "items", 0) < 0:
        raise UsageError("--items must be 0 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    main_guard(main)
