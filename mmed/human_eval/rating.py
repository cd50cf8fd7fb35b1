r"""Rating of rationales by people and by a judge model, and which metric agrees with people.

    python -m mmed.human_eval.rating sheet  results/a results/b ... --out sheets                    a blind page a language, and sheets/key.json
    python -m mmed.human_eval.rating merge  sheets/key.json ratings-French-Ana.json ... --out people.json
    python -m mmed.human_eval.rating judge  results/a results/b ... --api MODEL --out judge.json     a strong model ranks the same items
    python -m mmed.human_eval.rating agreement people.json results/a results/b ... --judge judge.json --out agreement

In: result folders of `mmed.eval` (one a model, with rationales). Out, in this order: pages on which people rank the texts of all models
for each item without knowing whose they are; their files merged, with how far the raters agree; the same ranking by a judge
(mmed/human_eval/judge.py); a table and a page of how each metric agrees with people (mmed/human_eval/agreement.py).

The key alone says whose text is A: keep it from the raters. The same --seed and --items give people and judge the same items.
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
from mmed.evaluation.api_client import CallStore, add_api_options, ask, request, request_key, server_from, usage
from mmed.human_eval.agreement import agreement_table, rater_agreement, study
from mmed.human_eval.agreement_page import agreement_page
from mmed.human_eval.judge import JUDGE_VERSION, build_prompt, judge_cases
from mmed.human_eval.rating_data import read_cases, read_object, read_ratings, read_texts, shown, write_ratings
from mmed.languages import get_language
from mmed.reporting.page import fill_page
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, write_json
from mmed.utils.untrusted import as_name

SHEET_FORMAT, KEY_FORMAT = "mmed sheet ratings", "mmed rating key"


# --------------------------------------------------------------------------------------------------------------- sheets

def sheet_content(cases: Sequence, seed: int) -> dict[str, Any]:
    """What a page shows of the cases of one language, no model's name in it; `sheet` is its fingerprint."""
    language = cases[0].language
    items = [{"key": case.key, "question": shown(case.question), "options": [[letter, shown(text)] for letter, text in case.options.items()],
              "gold": case.gold.split(","), "reference": shown(case.reference),
              "texts": [[letter, shown(case.texts[model])] for letter, model in case.letters(seed).items()]} for case in cases]
    content = {"language": language, "code": get_language(language).code, "letters": list(cases[0].letters(seed)), "items": items}
    return {"sheet": hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()} | content


def sheet_page(content: Mapping[str, Any]) -> str:
    return fill_page(Path(__file__).with_name("rating_sheet.html"), title=f"Ranking explanations · {content['language']}", data=dict(content))


def write_sheets(folder: Path, models: Sequence[str], cases: Sequence, seed: int) -> list[Path]:
    """A page for each language, then key.json; none of it if a key is there already."""
    key = folder / "key.json"
    if key.exists():
        raise UserError(f"{key}: already there; pages that are out with raters fit this key only, so give another --out")
    sheets: dict[str, Any] = {}
    pages = []
    for language in dict.fromkeys(case.language for case in cases):
        part = [case for case in cases if case.language == language]
        content = sheet_content(part, seed)
        pages.append(folder / f"{language}.html")
        with atomic_write(pages[-1]) as file:
            file.write(sheet_page(content))
        sheets[language] = {"sheet": content["sheet"], "items": {case.key: {"digest": case.digest, "letters": case.letters(seed)} for case in part}}
    write_json(key, {"format": KEY_FORMAT, "version": 1, "seed": seed, "models": list(models), "sheets": sheets})
    return pages


# ---------------------------------------------------------------------------------------------------------------- merge

def read_key(path: str | Path) -> dict:
    key = read_object(path, KEY_FORMAT)
    models, sheets = key.get("models"), key.get("sheets")
    if not isinstance(models, list) or not all(isinstance(name, str) for name in models) or not isinstance(sheets, dict) or not sheets or "seed" not in key:
        raise UserError(f"{path}: expected 'models', 'sheets' and 'seed'; take the key.json that `sheet` wrote")
    for language, sheet in sheets.items():
        where = f"{path}: {as_name(language)}"
        if not isinstance(sheet, dict) or not isinstance(sheet.get("sheet"), str) or not isinstance(sheet.get("items"), dict) or not sheet["items"]:
            raise UserError(f"{where}: expected 'sheet' and 'items'; take the key.json that `sheet` wrote")
        for item, entry in sheet["items"].items():
            letters = entry.get("letters") if isinstance(entry, dict) else None
            if not isinstance(letters, dict) or sorted(map(str, letters.values())) != sorted(models) or not isinstance(entry.get("digest"), str):
                raise UserError(f"{where}, item {as_name(item)}: its letters do not name each model once, or its digest is missing")
    return key


def read_sheet_ratings(path: str | Path, key: Mapping[str, Any]) -> tuple[str, str, dict[str, dict[str, float]]]:
    """(language, rater, item -> model -> points) of one rater's file; anything missing, doubled or out of range is an error."""
    value = read_object(path, SHEET_FORMAT)
    language = next((name for name, sheet in key["sheets"].items() if sheet["sheet"] == value.get("sheet")), None)
    if language is None:
        raise UserError(f"{path}: its sheet ({as_name(value.get('sheet'), 13)}) is none of this key's; it rates other items or texts")
    rater = as_name(value.get("rater")).strip()
    if not rater or not isinstance(value.get("rater"), str):
        raise UserError(f"{path}: no name of a rater in it")
    scores, items = value.get("scores"), key["sheets"][language]["items"]
    if not isinstance(scores, dict):
        raise UserError(f"{path}: no 'scores' in it")
    for item in scores:
        if item not in items:
            raise UserError(f"{path}: item {as_name(item)} is not on this sheet")
    rated: dict[str, dict[str, float]] = {}
    for item, entry in items.items():
        where, letters, given = f"{path}: item {as_name(item)}", entry["letters"], scores.get(item)
        if not isinstance(given, dict) or not given:
            raise UserError(f"{where}: not ranked; open the file in its sheet and finish it")
        taken: dict[int, str] = {}
        for letter in [*letters, *(other for other in given if other not in letters)]:
            if letter not in letters:
                raise UserError(f"{where}: there is no explanation {as_name(letter)}")
            if letter not in given:
                raise UserError(f"{where}: no score for {letter}")
            score = given[letter]
            if not isinstance(score, int) or isinstance(score, bool) or not 1 <= score <= len(letters):
                raise UserError(f"{where}: the score of {letter} is {as_name(score, 20)}, expected a whole number from 1 to {len(letters)}")
            if score in taken:
                raise UserError(f"{where}: {taken[score]} and {letter} both have the score {score}; a ranking gives each once")
            taken[score] = letter
        rated[item] = {letters[letter]: float(given[letter]) for letter in letters}
    return language, rater, rated


def merge(key: Mapping[str, Any], paths: Sequence[str | Path]) -> tuple[dict[str, dict[str, dict]], dict[str, Any]]:
    """(language -> item -> digest, mean points by model and each rater's; agreement by language) of raters' files."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    source: dict[tuple[str, str], str] = {}
    for path in paths:
        language, rater, rated = read_sheet_ratings(path, key)
        if (language, rater) in source:
            raise UserError(f"{path}: {rater} rated the {language} sheet in {source[language, rater]} already; two raters need two names")
        source[language, rater] = str(path)
        found.setdefault(language, {})[rater] = rated
    cases, agreement = {}, {}
    for language in (name for name in key["sheets"] if name in found):
        raters = dict(sorted(found[language].items()))
        cases[language] = {item: {"digest": entry["digest"], "scores": {model: metrics.mean(rated[item][model] for rated in raters.values()) for model in key["models"]},
                                  "raters": {rater: rated[item] for rater, rated in raters.items()}}
                           for item, entry in key["sheets"][language]["items"].items()}
        agreement[language] = rater_agreement(raters, key["models"])
    return cases, agreement


# ----------------------------------------------------------------------------------------------------- the four commands

def sheet_command(options: argparse.Namespace) -> None:
    models, cases = read_cases(options.results, options.items, options.seed, options.language)
    pages = write_sheets(Path(options.out), models, cases, options.seed)
    for page in pages:
        print(f"{page}: {sum(case.language == page.stem for case in cases)} items, {len(models)} explanations each")
    print(f"{Path(options.out) / 'key.json'}: whose explanation is which; keep it from the raters, `merge` needs it")


def merge_command(options: argparse.Namespace) -> None:
    key = read_key(options.key)
    cases, agreement = merge(key, options.ratings)
    value = write_ratings(options.out, {"kind": "people", "raters": sorted({rater for part in agreement.values() for rater in part["raters"]})}, key["models"],
                          cases, seed=key["seed"], agreement=agreement)
    print(ratings_table(value))
    for language, part in agreement.items():
        numbers = ", ".join(f"{name} {'-' if part[name] is None else format(part[name], '.3f')}" for name in ("krippendorff_alpha", "kendall_w"))
        pairs = ", ".join(f"{' and '.join(pair['raters'])} {pair['kendall_tau']:.3f}" for pair in part["pairs"])
        print(f"{language}: {len(part['raters'])} raters, {part['items']} items; {numbers}" + (f"; Kendall tau of {pairs}" if pairs else ""))
    if missing := [language for language in key["sheets"] if language not in cases]:
        print(f"note: no file rates {', '.join(missing)}", file=sys.stderr)


def judge_command(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if options.tries < 1 or options.max_new_tokens < 1:
        raise UsageError("--tries and --max_new_tokens must be 1 or more")
    models, cases = read_cases(options.results, options.items, options.seed, options.language)
    if options.estimate:
        sent = sum(len(message["content"]) for case in cases for message in build_prompt(case, case.letters(options.seed), options.seed))
        print(f"{len(cases):,} calls, {sent:,} characters sent (some {sent // 4:,} to {sent:,} tokens, by language), at most "
              f"{len(cases) * options.max_new_tokens:,} tokens written; repeats of unreadable replies come on top")
        return
    server = server_from(options, options.seed)
    store = CallStore(out.with_name(out.name + ".calls.jsonl"))
    used: list[dict] = []
    keys: list[str] = []
    bar = _bar(len(cases))

    def ask_all(chats: list, labels: list[str]) -> list[str]:
        prompts = ["\n\n".join(message["content"] for message in chat) + "\n" for chat in chats] if server.completions else chats
        requests = [request(server, prompt, options.max_new_tokens) for prompt in prompts]
        keys.extend(request_key(server, body) for body in requests)
        replies = ask(server, requests, store, labels=labels, on_done=lambda _: bar.update())
        used.extend(replies)
        return [reply["text"] for reply in replies]

    try:
        rated, facts = judge_cases(cases, ask_all, options.seed, options.tries)
    finally:
        bar.close()
        store.close(keys)
    if not any(rated.values()):
        raise UserError(f"{server.model}: no reply of {facts['calls']} was a ranking ({facts['failed'][0]['reasons'][-1]}); see {store.path}, try another judge")
    by = {"kind": "judge", "model": server.model, "version": JUDGE_VERSION, "server": server.facts(), "tries": options.tries}
    value = write_ratings(out, by, models, rated, seed=options.seed, replies=facts, usage=usage(used))
    print(ratings_table(value))
    print(f"mean points by place in the prompt ({(len(models) + 1) / 2:g} each, if the place does not matter): "
          + ", ".join(f"{letter} {mean:.2f}" for letter, mean in facts["mean_by_place"].items()))
    print(f"{out}: {sum(map(len, rated.values()))} of {len(cases)} items ranked, {facts['calls']} calls, {facts['unreadable_replies']} replies were no ranking")
    for failed in facts["failed"]:
        print(f"note: {failed['language']}, item {failed['item']}: no ranking in {options.tries} tries ({failed['reasons'][-1]}); left out", file=sys.stderr)


def agreement_command(options: argparse.Namespace) -> None:
    people = read_ratings(options.people)
    judges = [read_ratings(path) for path in options.judge]
    models, found = read_texts(options.results)
    value = study(people, models, found, judges, names=[options.people, *options.judge], seed=options.seed, resamples=options.resamples)
    out = Path(options.out)
    write_json(out / "agreement.json", value)
    with atomic_write(out / "agreement.html") as file:
        file.write(agreement_page(value, options.title))
    print(agreement_table(value))
    for remark in value["remarks"]:
        print(f"note: {remark}", file=sys.stderr)
    print(f"\n{out / 'agreement.html'}, {out / 'agreement.json'}")


def ratings_table(value: Mapping[str, Any]) -> str:
    """Mean points by model and language."""
    languages = [language for language, part in value["cases"].items() if part]
    width = max(len(as_name(model)) for model in value["models"])
    lines = [f"{'mean points':{width}}  " + "  ".join(f"{name[:8]:>8}" for name in [*languages, "macro"])]
    for model in sorted(value["models"], key=lambda model: -value["average"][model]["macro"]):
        lines.append(f"{as_name(model):{width}}  " + "  ".join(f"{value['average'][model][name]:8.2f}" for name in [*languages, "macro"]))
    return "\n".join(lines)


def _bar(total: int):
    return tqdm(total=total, desc="judge", unit=" replies", disable=not sys.stderr.isatty())


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed.human_eval.rating", description="Rate rationales, by people and by a judge model. "
                                     "Only `judge` uses the network.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run, words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, allow_abbrev=False, help=words, description=words)
        made.set_defaults(run=run)
        return made

    def results(made: argparse.ArgumentParser, several: bool = True) -> None:
        made.add_argument("results", nargs="+", metavar="RESULT", help="result folders of mmed.eval, one a model: FOLDER or NAME=FOLDER")
        if several:
            made.add_argument("--items", type=int, default=50, metavar="N", help="items of each language (default 50, as in the paper; 0: all)")
            made.add_argument("--seed", type=int, default=0, help="of the choice of items and the order of texts (default 0); the same for people and judge")
            made.add_argument("--language", action="append", default=[], metavar="NAME", help="only this one, as the results call it; may be repeated")

    sheet = command("sheet", sheet_command, "pages on which people rank the texts of all models, blind")
    results(sheet)
    sheet.add_argument("--out", required=True, metavar="FOLDER", help="for LANGUAGE.html and key.json")
    merging = command("merge", merge_command, "raters' files to one file of ratings, with the raters' agreement")
    merging.add_argument("key", metavar="KEY", help="key.json of `sheet`")
    merging.add_argument("ratings", nargs="+", metavar="RATINGS", help="files that raters saved from the pages")
    merging.add_argument("--out", required=True, metavar="FILE.json")
    judge = command("judge", judge_command, "a model behind an API ranks the texts of all models, blind")
    results(judge)
    judge.add_argument("--out", required=True, metavar="FILE.json", help="ratings; answered calls are kept beside it, so a stopped run goes on")
    judge.add_argument("--tries", type=int, default=3, metavar="N", help="calls for an item until its reply is a ranking (default 3)")
    judge.add_argument("--max_new_tokens", type=int, default=1024, metavar="N", help="of a reply (default 1024)")
    judge.add_argument("--estimate", action="store_true", help="only say how much would be sent; no network")
    add_api_options(judge, required=True)
    agreement = command("agreement", agreement_command, "how each metric and the judge agree with people")
    agreement.add_argument("people", metavar="PEOPLE", help="ratings that `merge` wrote")
    results(agreement, several=False)
    agreement.add_argument("--judge", action="append", default=[], metavar="FILE.json", help="ratings that `judge` wrote; may be repeated")
    agreement.add_argument("--out", required=True, metavar="FOLDER", help="for agreement.html and agreement.json")
    agreement.add_argument("--title", default="Which metric agrees with people?")
    agreement.add_argument("--resamples", type=int, default=1000, metavar="N", help="for the intervals (default 1000)")
    agreement.add_argument("--seed", type=int, default=0, help="of the resamples")
    options = parser.parse_args(arguments)
    if getattr(options, "items", 0) < 0 or getattr(options, "resamples", 1) < 1:
        raise UsageError("--items must be 0 or more, --resamples 1 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    main_guard(main)
