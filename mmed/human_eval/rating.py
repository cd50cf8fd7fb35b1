"""Rating of rationales by people and by a judge model, and which metric agrees with people.

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

from mmed import metrics
from mmed.evaluation import api_client
from mmed.evaluation.summary import aligned, group_by
from mmed.human_eval.agreement import agreement_table, rater_agreement, study
from mmed.human_eval.judge import JUDGE_VERSION, judge_cases
from mmed.human_eval.rating_data import (
    Case,
    Ratings,
    draw_cases,
    read_cases,
    read_object,
    shown,
    write_ratings,
)
from mmed.languages import get_language
from mmed.reporting import report
from mmed.reporting.page import fill_page, number
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, write_json
from mmed.utils.untrusted import as_name, reading

EXAMPLES = """\
python -m mmed.human_eval.rating sheet results/a results/b --out sheets
python -m mmed.human_eval.rating merge sheets/key.json ratings-*.json --out people.json
python -m mmed.human_eval.rating judge results/a results/b --api MODEL --out judge.json
python -m mmed.human_eval.rating agreement people.json results/a results/b --judge judge.json --out study"""
SHEET_FORMAT, KEY_FORMAT = "mmed sheet ratings", "mmed rating key"


def sheet_content(cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """What a page shows of one language, without the models' names; `sheet` is its fingerprint."""
    items = [{"key": case.key, "question": shown(case.question), "gold": case.gold.split(","),
              "options": [[letter, shown(text)] for letter, text in case.options.items()],
              "reference": shown(case.reference),
              "texts": [[letter, shown(case.texts[model])] for letter, model in case.letters(seed).items()]}
             for case in cases]
    language = cases[0].language
    content = {"language": language, "code": get_language(language).code,
               "letters": list(cases[0].letters(seed)), "items": items}
    return {"sheet": hashlib.sha256(json.dumps(content).encode()).hexdigest(), **content}


def sheet_command(options: argparse.Namespace) -> None:
    """A page for each language, then key.json."""
    models, found = read_cases(options.results)
    cases = draw_cases(found.values(), options.items, options.seed)
    key = Path(options.out, "key.json")
    if key.exists():
        raise UserError(f"{key}: already exists, and raters' pages work only with it; give another --out")
    sheets: dict[str, Any] = {}
    for language, part in group_by(cases, lambda case: case.language).items():
        content = sheet_content(part, options.seed)
        items = {case.key: {"digest": case.digest, "letters": case.letters(options.seed)} for case in part}
        sheets[language] = {"sheet": content["sheet"], "items": items}
        with atomic_write(key.with_name(f"{language}.html")) as file:
            file.write(fill_page(Path(__file__).with_name("rating_sheet.html"), data=content,
                                 title=f"Ranking explanations · {language}"))
    write_json(key, {"format": KEY_FORMAT, "version": 1, "seed": options.seed, "models": models,
                     "sheets": sheets})
    print(f"{len(cases)} items, {len(models)} explanations each: {', '.join(sheets)}\n"
          f"{key} says who wrote which; keep it from the raters, `merge` needs it")


def merge(key: Mapping[str, Any], paths: Sequence[str]) -> Ratings:
    """Each rater's points and their mean, by language and item; a file must rank its whole sheet."""
    cases: Ratings = {}
    for path in paths:
        value = read_object(path, SHEET_FORMAT)
        languages = [name for name, sheet in key["sheets"].items() if sheet["sheet"] == value.get("sheet")]
        if not languages:
            raise UserError(f"{path}: its sheet does not match this key: it rates other items or texts")
        part, rater = cases.setdefault(languages[0], {}), as_name(value.get("rater"))
        if not rater:
            raise UserError(f"{path}: the rater gave no name; write one into the file's field 'rater'")
        for item, entry in key["sheets"][languages[0]]["items"].items():
            with reading(path):
                given, letters = value["scores"].get(item) or {}, entry["letters"]
                scores = sorted(score for score in given.values() if score is not True)  # which equals 1
                if set(given) != set(letters) or scores != list(range(1, len(letters) + 1)):
                    raise UserError(f"{path}: item {item}: expected each of the scores 1 to {len(letters)} "
                                    f"once, for {', '.join(letters)}, not {given!r:.200}; open the file in "
                                    "its page and finish it")
            case = part.setdefault(item, {"digest": entry["digest"], "scores": {}, "raters": {}})
            if rater in case["raters"]:
                raise UserError(f"{path}: a second file by {rater} for the {languages[0]} sheet; two raters "
                                "need two names")
            case["raters"][rater] = {model: float(given[letter]) for letter, model in letters.items()}
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
        print(f"{language}: {len(part['raters'])} raters, {part['items']} items, "
              f"alpha {number(part['krippendorff_alpha'], '.3f')}")
    if missing := key["sheets"].keys() - cases.keys():
        print(f"note: no file rates {', '.join(sorted(missing))}", file=sys.stderr)


def ratings_table(value: Mapping[str, Any]) -> str:
    """Mean points by model and language, the best model first."""
    rows = sorted(value["average"].items(), key=lambda pair: -pair[1]["macro"])
    return aligned([["mean points", *rows[0][1]],
                    *([model, *(f"{mean:.2f}" for mean in row.values())] for model, row in rows)])


def judge_command(options: argparse.Namespace) -> None:
    """Answered calls are stored at once, so a stopped command continues."""
    models, found = read_cases(options.results)
    cases = draw_cases(found.values(), options.items, options.seed)
    server = api_client.server_from(options, options.seed)
    store = api_client.CallStore(f"{options.out}.calls.jsonl")
    rated, failed, usage = judge_cases(cases, server, store, options.seed, options.max_new_tokens)
    if len(failed) == len(cases):
        raise UserError(f"{server.model}: no reply was a ranking ({failed[0]['reason']}); see {store.path}, "
                        "or try another judge")
    by = {"kind": "judge", "model": server.model, "version": JUDGE_VERSION, "server": server.facts()}
    value = write_ratings(options.out, by, models, rated, seed=options.seed, failed=failed, usage=usage)
    print(f"{ratings_table(value)}\n{options.out}: {len(cases) - len(failed)} of {len(cases)} items ranked")
    for one in failed:
        print(f"note: {one['language']}, item {one['item']} is left out: {one['reason']}", file=sys.stderr)


def agreement_command(options: argparse.Namespace) -> None:
    models, found = read_cases(options.results)
    names = [options.people, *options.judge]
    people, *judges = map(read_object, names)
    with reading(", ".join(names)):
        value = study(people, models, found, judges, names)
    out = Path(options.out)
    write_json(out / "agreement.json", value)
    print("\n".join([agreement_table(value), *(f"note: {note}" for note in value["notes"])]))
    report.main(["--agreement", str(out), "--out", str(out / "agreement.html"),
                 "--title", "Which metric agrees with people?"])


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.human_eval.rating", example=EXAMPLES,
                    description="Have people and judges rate rationales. Only `judge` uses the network.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        name = run.__name__.removesuffix("_command")
        example = next(line for line in EXAMPLES.splitlines() if line.startswith(f"{parser.prog} {name} "))
        made = subparsers.add_parser(name, help=text, description=text, example=example)
        made.set_defaults(run=run)
        made.add_argument("--out", required=True, help="output file or folder")
        return made

    sheet = command(sheet_command, "write pages on which people rank the texts of all models, blind")
    merged = command(merge_command, "merge the files of raters, with the agreement among them")
    judge = command(judge_command, "ask a model behind an API to rank the texts of all models, blind")
    agreement = command(agreement_command, "measure how each metric agrees with people")
    merged.add_argument("key", metavar="KEY", help="the key.json that `sheet` wrote")
    merged.add_argument("ratings", nargs="+", metavar="RATINGS", help="files saved by the raters")
    agreement.add_argument("people", metavar="PEOPLE", help="ratings written by `merge`")
    agreement.add_argument("--judge", action="append", default=[], metavar="FILE",
                           help="a judge's ratings (repeatable)")
    for one in (sheet, judge, agreement):
        one.add_argument("results", nargs="+", metavar="RESULT",
                         help="one result folder per model: FOLDER or NAME=FOLDER")
    for one in (sheet, judge):
        # MMedLM: 50 random test items of each language
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
