"""Rating of rationales by people and by a judge model, and which metric agrees with people.

    python -m mmed.human_eval.rating sheet  results/a results/b ... \
        --out sheets             blind pages, sheets/key.json
    python -m mmed.human_eval.rating merge  sheets/key.json ratings-*.json --out people.json
    python -m mmed.human_eval.rating judge  results/a results/b ... --api MODEL --out judge.json
    python -m mmed.human_eval.rating agreement people.json results/a results/b ... --judge judge.json \
        --out agreement

In: result folders of `mmed.eval` with rationales, one per model. Out: one page per language on which people
rank the texts of all models without knowing who wrote them; their files merged, with the agreement among
raters; the same ranking by a judge model (judge.py); a table and a page on how each metric agrees with people
(agreement.py).

Only the key says who wrote text A: keep it from the raters. The same --seed and --items give people and judge
the same items.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmed import metrics
from mmed.evaluation.api_client import (
    CallStore,
    add_api_options,
    ask,
    request,
    request_key,
    server_from,
    usage,
)
from mmed.evaluation.summary import aligned
from mmed.human_eval.agreement import agreement_table, rater_agreement, study
from mmed.human_eval.judge import JUDGE_VERSION, Messages, build_prompt, judge_cases
from mmed.human_eval.rating_data import (
    Case,
    read_cases,
    read_object,
    read_ratings,
    read_texts,
    shown,
    write_ratings,
)
from mmed.languages import get_language
from mmed.reporting.agreement import study_values
from mmed.reporting.page import fill_page
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, write_json
from mmed.utils.untrusted import as_name

SHEET_FORMAT, KEY_FORMAT = "mmed sheet ratings", "mmed rating key"
HERE = Path(__file__).parent


# ---- sheets
# --------------------------------------------------------------------------------------------------------

def sheet_content(cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """What a page shows of the cases of one language, without the models' names; `sheet` is its
    fingerprint.
    """
    language = cases[0].language
    items = [{"key": case.key, "question": shown(case.question), "gold": case.gold.split(","),
              "options": [[letter, shown(text)] for letter, text in case.options.items()],
              "reference": shown(case.reference),
              "texts": [[letter, shown(case.texts[model])] for letter, model in case.letters(seed).items()]}
             for case in cases]
    content = {"language": language, "code": get_language(language).code,
               "letters": list(cases[0].letters(seed)),
               "items": items}
    return {"sheet": hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest(), **content}


def write_sheets(folder: Path, models: Sequence[str], cases: Sequence[Case], seed: int) -> list[Path]:
    """Writes a page for each language, then key.json."""
    key = folder / "key.json"
    if key.exists():
        raise UserError(f"{key}: already exists, and pages that raters have work only with it; give "
                        f"another --out")
    sheets: dict[str, Any] = {}
    pages = []
    for language in dict.fromkeys(case.language for case in cases):
        part = [case for case in cases if case.language == language]
        content = sheet_content(part, seed)
        pages.append(folder / f"{language}.html")
        with atomic_write(pages[-1]) as file:
            title = f"Ranking explanations · {language}"
            file.write(fill_page(HERE / "rating_sheet.html", title=title, data=content))
        sheets[language] = {"sheet": content["sheet"],
                            "items": {case.key: {"digest": case.digest, "letters": case.letters(seed)}
                                      for case in part}}
    write_json(key, {"format": KEY_FORMAT, "version": 1, "seed": seed, "models": list(models),
                     "sheets": sheets})
    return pages


# ---- merge
# ---------------------------------------------------------------------------------------------------------

def read_key(path: str | Path) -> dict:
    key = read_object(path, KEY_FORMAT)
    try:
        for sheet in key["sheets"].values():
            for entry in sheet["items"].values():
                if sorted(entry["letters"].values()) != sorted(key["models"]) or not entry["digest"]:
                    raise ValueError("an item's letters do not name each model once")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); take the key.json that "
                        f"`sheet` wrote") from None
    return key


def read_sheet_ratings(path: str | Path, key: Mapping[str, Any]) -> tuple[str, str,
                                                                          dict[str, dict[str, float]]]:
    """(language, rater, item -> model -> points) of one rater's file, which must rank every item of its
    sheet.
    """
    value = read_object(path, SHEET_FORMAT)
    sheets = {sheet["sheet"]: language for language, sheet in key["sheets"].items()}
    language, scores = sheets.get(value.get("sheet")), value.get("scores")
    rater = as_name(value.get("rater")).strip()
    if language is None:
        raise UserError(f"{path}: its sheet does not belong to this key; it rates other items or texts")
    if not rater or not isinstance(scores, dict):
        raise UserError(f"{path}: it has no rater's name or no scores")
    items = key["sheets"][language]["items"]
    for item in scores:
        if item not in items:
            raise UserError(f"{path}: item {item} is not on this sheet")
    rated = {}
    for item, entry in items.items():
        letters, given = entry["letters"], scores.get(item)
        if not given:
            raise UserError(f"{path}: item {item}: not ranked; open the file in its sheet and finish it")
        if not isinstance(given, dict) or set(given) != set(letters) \
                or sorted(map(repr, given.values())) != sorted(map(repr, range(1, len(letters) + 1))):
            raise UserError(f"{path}: item {item}: expected each of the scores 1 to {len(letters)} once, for "
                            f"{', '.join(letters)}; got {given!r:.200}")
        rated[item] = {model: float(given[letter]) for letter, model in letters.items()}
    return language, rater, rated


def merge(key: Mapping[str, Any], paths: Sequence[str | Path]) -> tuple[dict[str, dict[str, dict]],
                                                                        dict[str, Any]]:
    """(language -> item -> digest, mean points by model, each rater's points; agreement by language)."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for path in paths:
        language, rater, rated = read_sheet_ratings(path, key)
        if rater in found.setdefault(language, {}):
            raise UserError(f"{path}: a second file by {rater} for the {language} sheet; two raters "
                            f"need two names")
        found[language][rater] = rated
    cases, agreement = {}, {}
    for language in (name for name in key["sheets"] if name in found):
        raters = dict(sorted(found[language].items()))
        agreement[language] = rater_agreement(raters, key["models"])
        cases[language] = {}
        for item, entry in key["sheets"][language]["items"].items():
            scores = {model: metrics.mean(rated[item][model] for rated in raters.values())
                      for model in key["models"]}
            own = {rater: rated[item] for rater, rated in raters.items()}
            cases[language][item] = {"digest": entry["digest"], "scores": scores, "raters": own}
    return cases, agreement


# ---- the four commands
# ---------------------------------------------------------------------------------------------

def sheet_command(options: argparse.Namespace) -> None:
    models, cases = read_cases(options.results, options.items, options.seed, options.language)
    for page in write_sheets(Path(options.out), models, cases, options.seed):
        count = sum(case.language == page.stem for case in cases)
        print(f"{page}: {count} items, {len(models)} explanations each")
    print(f"{Path(options.out) / 'key.json'}: who wrote which explanation; keep it from the raters, "
          f"`merge` needs it")


def merge_command(options: argparse.Namespace) -> None:
    key = read_key(options.key)
    cases, agreement = merge(key, options.ratings)
    raters = sorted({rater for part in agreement.values() for rater in part["raters"]})
    value = write_ratings(options.out, {"kind": "people", "raters": raters}, key["models"], cases,
                          seed=key["seed"],
                          agreement=agreement)
    print(ratings_table(value))
    for language, part in agreement.items():
        numbers = [f"{name} {'-' if part[name] is None else format(part[name], '.3f')}"
                   for name in ("krippendorff_alpha", "kendall_w")]
        numbers += [f"tau of {' and '.join(pair['raters'])} {pair['kendall_tau']:.3f}"
                    for pair in part["pairs"]]
        print(f"{language}: {len(part['raters'])} raters, {part['items']} items; {', '.join(numbers)}")
    missing = [language for language in key["sheets"] if language not in cases]
    if missing:
        print(f"note: no file rates {', '.join(missing)}", file=sys.stderr)


def judge_command(options: argparse.Namespace) -> None:
    models, cases = read_cases(options.results, options.items, options.seed, options.language)
    if options.estimate:
        sent = sum(len(message["content"]) for case in cases
                   for message in build_prompt(case, case.letters(options.seed), options.seed))
        print(f"{len(cases):,} calls, {sent:,} characters sent (about {sent // 4:,} to {sent:,} tokens, "
              f"depending on the "
              f"language), at most {len(cases) * options.max_new_tokens:,} tokens written; repeated "
              f"calls come on top")
        return
    rated, facts, by, used = ask_judge(cases, options)
    value = write_ratings(options.out, by, models, rated, seed=options.seed, replies=facts, usage=used)
    print(ratings_table(value))
    places = ", ".join(f"{letter} {mean:.2f}" for letter, mean in facts["mean_by_place"].items())
    print(f"mean points by place in the prompt ({(len(models) + 1) / 2:g} each if the place has no "
          f"effect): {places}")
    print(f"{options.out}: {sum(map(len, rated.values()))} of {len(cases)} items ranked, "
          f"{facts['calls']} calls, "
          f"{facts['unreadable_replies']} replies without a ranking")
    for failed in facts["failed"]:
        print(f"note: {failed['language']}, item {failed['item']} is left out: no ranking in "
              f"{options.tries} tries "
              f"({failed['reasons'][-1]})", file=sys.stderr)


def ask_judge(cases: Sequence[Case], options: argparse.Namespace) -> tuple[dict, dict, dict, dict]:
    """(ratings and facts of judge_cases, who judged, tokens used). Answered calls are stored, so a stopped
    run resumes.
    """
    server = server_from(options, options.seed)
    store = CallStore(Path(f"{options.out}.calls.jsonl"))
    used: list[dict] = []
    keys: list[str] = []

    with tqdm(total=len(cases), desc="judge", unit=" replies", mininterval=1) as bar:
        def ask_all(chats: list[Messages], labels: list[str]) -> list[str]:
            prompts: list = chats
            if server.completions:
                prompts = ["\n\n".join(message["content"] for message in chat) + "\n" for chat in chats]
            requests = [request(server, prompt, options.max_new_tokens) for prompt in prompts]
            keys.extend(request_key(server, body) for body in requests)
            replies = ask(server, requests, store, labels=labels, on_done=lambda _: bar.update())
            used.extend(replies)
            return [reply["text"] for reply in replies]

        try:
            rated, facts = judge_cases(cases, ask_all, options.seed, options.tries)
        finally:
            store.close(keys)
    if not any(rated.values()):
        raise UserError(f"{server.model}: none of {facts['calls']} replies was a ranking "
                        f"({facts['failed'][0]['reasons'][-1]}); see {store.path}, try another judge")
    by = {"kind": "judge", "model": server.model, "version": JUDGE_VERSION, "server": server.facts(),
          "tries": options.tries}
    return rated, facts, by, usage(used)


def agreement_command(options: argparse.Namespace) -> None:
    people = read_ratings(options.people)
    judges = [read_ratings(path) for path in options.judge]
    models, found = read_texts(options.results)
    value = study(people, models, found, judges, names=[options.people, *options.judge], seed=options.seed,
                  resamples=options.resamples)
    out = Path(options.out)
    write_json(out / "agreement.json", value)
    with atomic_write(out / "agreement.html") as file:
        file.write(fill_page(HERE / "agreement.html", title=options.title, study=study_values(value)))
    print(agreement_table(value))
    for note in value["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"\n{out / 'agreement.html'}, {out / 'agreement.json'}")


def ratings_table(value: Mapping[str, Any]) -> str:
    """Mean points by model and language, the best model first."""
    columns = [*(language for language, part in value["cases"].items() if part), "macro"]
    rows = sorted(value["average"].items(), key=lambda pair: -pair[1]["macro"])
    return aligned([["mean points", *columns],
                    *([model, *(f"{row[name]:.2f}" for name in columns)] for model, row in rows)])


# ---- command line
# --------------------------------------------------------------------------------------------------

def add_results(command: argparse.ArgumentParser, with_items: bool = True) -> None:
    command.add_argument("results", nargs="+", metavar="RESULT",
                         help="result folders of mmed.eval, one per model: FOLDER or NAME=FOLDER")
    if with_items:
        command.add_argument("--items", type=int, default=50, metavar="N",
                             help="items of each language (default 50, as in the paper; 0: all)")
        command.add_argument("--seed", type=int, default=0,
                             help="chooses items and the order of texts (default 0); the same for "
                                  "people and judge")
        command.add_argument("--language", action="append", default=[], metavar="NAME",
                             help="only this language, as named in the results; may be repeated")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.human_eval.rating",
                    description="Rates rationales, by people and by a judge model. Only `judge` uses "
                                "the network.")
    commands = parser.add_subparsers(dest="command", required=True)
    words = "writes pages on which people rank the texts of all models, blind"
    sheet = commands.add_parser("sheet", help=words, description=words)
    add_results(sheet)
    sheet.add_argument("--out", required=True, metavar="FOLDER", help="for LANGUAGE.html and key.json")
    sheet.set_defaults(run=sheet_command)
    words = "merges raters' files, with the agreement among raters"
    merging = commands.add_parser("merge", help=words, description=words)
    merging.add_argument("key", metavar="KEY", help="key.json of `sheet`")
    merging.add_argument("ratings", nargs="+", metavar="RATINGS",
                         help="files that raters saved from the pages")
    merging.add_argument("--out", required=True, metavar="FILE.json")
    merging.set_defaults(run=merge_command)
    words = "asks a model behind an API to rank the texts of all models, blind"
    judge = commands.add_parser("judge", help=words, description=words)
    add_results(judge)
    judge.add_argument("--out", required=True, metavar="FILE.json", help="ratings; calls are kept beside it")
    judge.add_argument("--tries", type=int, default=3, metavar="N",
                       help="calls per item until a reply is a ranking (default 3)")
    judge.add_argument("--max_new_tokens", type=int, default=1024, metavar="N",
                       help="per reply (default 1024)")
    judge.add_argument("--estimate", action="store_true",
                       help="only print how much would be sent; no network")
    add_api_options(judge, required=True)
    judge.set_defaults(run=judge_command)
    words = "measures how each metric and the judge agree with people"
    agreement = commands.add_parser("agreement", help=words, description=words)
    agreement.add_argument("people", metavar="PEOPLE", help="ratings that `merge` wrote")
    add_results(agreement, with_items=False)
    agreement.add_argument("--judge", action="append", default=[], metavar="FILE.json",
                           help="ratings that `judge` wrote; may be repeated")
    agreement.add_argument("--out", required=True, metavar="FOLDER",
                           help="for agreement.html and agreement.json")
    agreement.add_argument("--title", default="Which metric agrees with people?")
    agreement.add_argument("--resamples", type=int, default=1000, metavar="N",
                           help="for the intervals (default 1000)")
    agreement.add_argument("--seed", type=int, default=0, help="of the resamples")
    agreement.set_defaults(run=agreement_command)
    options = parser.parse_args(arguments)
    for name, least in (("items", 0), ("resamples", 1), ("tries", 1), ("max_new_tokens", 1)):
        if getattr(options, name, least) < least:
            raise UsageError(f"--{name} must be {least} or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    main_guard(main)
