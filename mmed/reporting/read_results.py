"""What a report is made of: result folders, run folders and corpus counts, read with suspicion, and the tables from them.

In: folders that `mmed.eval`, `mmed/train.py` and `data_prep` wrote, perhaps on another machine, perhaps by someone else. So each
number is checked before it is used, each text is cut to a stated length and loses its control characters, and a folder that does
not fit is refused in one line. Out, in this order: `Result`; the tallies and questions of one pass over all predictions; `Run`;
`Corpus`.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmed import metrics
from mmed.evaluation.results import FILE_LIMITS as RESULT_LIMITS
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import COLUMNS, language_order
from mmed.languages import get_language
from mmed.utils.errors import UsageError, UserError
from mmed.utils.files import read_json, read_jsonl
from mmed.utils.fingerprints import file_hash
from mmed.utils.untrusted import as_name, count, is_finite, number, plain, split_argument

SETTINGS = {"zero-shot": "Zero-shot", "few-shot": "Few-shot", "lora": "LoRA fine-tuning", "full": "Full fine-tuning"}
OPTION_LIMIT = 26  # options of a question that are shown
FILE_LIMITS = RESULT_LIMITS | {"run.json": 2 ** 22, "metrics.jsonl": 2 ** 30}  # bytes
CORPUS_FILES = 500  # funnels and streams looked at
SOURCES = 60  # of exam questions, as columns of a table


def _check_size(folder: Path, name: str) -> Path:
    path = folder / name
    if not folder.is_dir():
        raise UserError(f"{as_name(folder, 300)}: no such folder")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a plain file")
    if path.is_file() and path.stat().st_size > FILE_LIMITS[name]:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a file of this kind has at most {FILE_LIMITS[name]:,}")
    return path


# ------------------------------------------------------------------------------------------------------------- results

@dataclass
class Result:
    """One row of the tables: a result folder under a name and a setting."""

    name: str
    setting: str  # a key of SETTINGS
    folder: Path
    settings: dict[str, Any]
    facts: dict[str, Any]
    headline: str  # the accuracy that stands for the model: a key of COLUMNS
    summary: dict[str, Any]
    hashes: dict[str, str]
    tally: Tally = field(default_factory=lambda: Tally())


@dataclass
class Tally:
    """Counts over the predictions of one result, by the headline accuracy."""

    hits: dict[tuple[str, str], bool] = field(default_factory=dict)  # (language, item key) -> right
    letters: Counter = field(default_factory=Counter)  # (right letter, answered letter, "several" or "none")
    topics: Counter = field(default_factory=Counter)  # (topic, right) -> items
    options: Counter = field(default_factory=Counter)  # (number of options, right) -> items


def read_result(argument: str) -> Result:
    """A result folder of `mmed.eval`, every number of its summary checked."""
    setting, name, given = split_argument(argument, SETTINGS)
    folder = Path(given)
    where = _check_size(folder, "results.json")
    _check_size(folder, "predictions.jsonl")
    own, _ = load_results(folder)
    try:
        settings, facts, summary = dict(own["settings"]), dict(own["facts"]), _summary(own["summary"])
        headline = own["headline"]
        for part in (*summary["languages"].values(), summary["micro"], summary["macro"]):
            part["accuracy"][headline]  # a KeyError if one lacks it
    except UserError as error:
        raise UserError(f"{where}: {as_name(error, 300)}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: damaged or not written by `python -m mmed.eval` ({type(error).__name__}: {as_name(error)}); "
                        "evaluate again") from None
    if not setting:
        setting = settings.get("setting")
        if setting == "finetuned":
            setting = "lora" if settings.get("adapter") else "full"
        if not isinstance(setting, str) or setting not in SETTINGS:
            raise UserError(f"{where}: unknown setting {as_name(setting)!r}; give it on the command line as SETTING:NAME=FOLDER")
    hashes = {file: file_hash(folder / file) for file in ("results.json", "predictions.jsonl")}
    return Result(as_name(name or settings.get("name") or folder.resolve().name), setting, folder, settings, facts, headline, summary, hashes)


def _summary(value: dict) -> dict:
    """A copy of a summary that holds checked numbers only."""
    languages = {language: _part(part) for language, part in value["languages"].items()}
    if list(languages) != language_order(languages):
        languages = {language: languages[language] for language in language_order(languages)}
    if not languages:
        raise ValueError("no language in it")
    signatures = {as_name(key, 200): {as_name(k): plain(v, 300) for k, v in entry.items()} if isinstance(entry, dict) else plain(entry, 300)
                  for key, entry in value["signatures"].items()}
    return {"languages": languages, "macro": _part(value["macro"]), "micro": _part(value["micro"]), "signatures": signatures,
            "text_items": as_name(value["text_items"]), "source_mean": _accuracy(value["source_mean"])}


def _part(part: dict) -> dict:
    """The summary of one language, or of all."""
    sources = part.get("by", {}).get("source", {})
    if len(sources) > SOURCES:
        raise ValueError(f"{len(sources):,} sources")
    result = {"n": count(part["n"]), "chance": number(part["chance"], 0, 1), "accuracy": _accuracy(part["accuracy"]),
              "sources": {as_name(name): _accuracy(entries) for name, entries in sources.items()},
              "text": {as_name(metric, 200): _score(entry) for metric, entry in part["text"].items()},
              "parse": {mode: {status: number(shares[status], 0, 1) for status in ("strict", "lenient", "unparsed")}
                        for mode, shares in part.get("parse", {}).items() if mode in ("answer", "rationale")}}
    return result | {kind: _accuracy(part[kind]) for kind in ("single", "multiple", "text_only", "image_dependent") if kind in part}


def _score(entry: dict) -> dict:
    ends = {end: None if entry[end] is None else number(entry[end], 0, 1) for end in ("low", "high")}
    return {"value": number(entry["value"], 0, 1)} | ends | {key: count(entry[key]) for key in ("right", "n") if key in entry}


def _accuracy(entries: dict) -> dict:
    if unknown := set(entries) - set(COLUMNS):
        raise ValueError(f"unknown accuracy {as_name(sorted(unknown)[0])!r}")
    return {column: _score(entry) for column, entry in entries.items()}


def check_together(results: Sequence[Result]) -> None:
    """Rows of one table have the same items and names that tell them apart."""
    seen: dict[tuple[str, str], Result] = {}
    for result in results:
        first = results[0]
        if (result.setting, result.name) in seen:
            raise UsageError(f"{result.folder}: a second row {result.name!r} under {SETTINGS[result.setting]}; give it a name: NAME=FOLDER")
        seen[result.setting, result.name] = result
        sizes = [{name: part["n"] for name, part in one.summary["languages"].items()} for one in (first, result)]
        if first.facts.get("data") != result.facts.get("data") or sizes[0] != sizes[1]:
            raise UserError(f"{result.folder}: of other exam items than {first.folder} ({_items(result)} against {_items(first)}); "
                            "numbers on different items do not belong in one table: make a report of each")


def _items(result: Result) -> str:
    total = sum(part["n"] for part in result.summary["languages"].values())
    return f"{total:,} items of data {as_name(result.facts.get('data'))[:12]}"


# --------------------------------------------------------------------------------------------------------- predictions

@dataclass
class Questions:
    """The questions of the browser: those shown, and how many there are."""

    items: dict[tuple[str, str], dict] = field(default_factory=dict)  # (language, key) -> what is shown
    total: Counter = field(default_factory=Counter)  # by language


def read_predictions(results: Sequence[Result], per_language: int) -> Questions:
    """One pass over the predictions of each result: its tally, and the first questions of each language with all answers."""
    questions, known = Questions(), set()
    for index, result in enumerate(results):
        right: Counter = Counter()
        rows = 0
        try:
            for row in load_results(result.folder)[1]:
                rows += 1
                if row["mode"] == COLUMNS[result.headline][0]:
                    right[row["language"]] += _tally(result, row)
                if not index and (row["language"], row["key"]) not in known:
                    known.add((row["language"], row["key"]))
                    _add_question(questions, row, per_language, len(results))
                item = questions.items.get((row["language"], row["key"]))
                if item is not None:
                    item["answers"][index].append(_answer(row))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{result.folder / 'predictions.jsonl'}: row {rows} is not one of `python -m mmed.eval` "
                            f"({type(error).__name__}: {as_name(error)}); evaluate again") from None
        for language, part in result.summary["languages"].items():
            expected = part["accuracy"][result.headline].get("right")
            if expected is not None and right[language] != expected:
                raise UserError(f"{result.folder}: predictions.jsonl has {right[language]:,} right answers in {language}, results.json "
                                f"says {expected:,}: files of two runs; evaluate again")
        if result.tally.hits.keys() != results[0].tally.hits.keys():
            raise UserError(f"{result.folder}: predictions.jsonl holds other items than that of {results[0].folder}")
    return questions


def _tally(result: Result, row: dict) -> bool:
    tally, doc = result.tally, row["doc"]
    hit = row[COLUMNS[result.headline][1]]
    if not isinstance(hit, bool):
        raise TypeError("expected true or false")
    key = (row["language"], row["key"])
    if key in tally.hits:
        raise ValueError(f"the item {as_name(row['key'])} stands there twice")
    tally.hits[key] = hit
    answered = [letter for letter in str(row["parsed"]).split(",") if letter]
    if "," not in row["gold"]:
        letter = "none" if not answered else as_name(answered[0], 3) if len(answered) == 1 else "several"
        tally.letters[as_name(row["gold"], 3), letter] += 1
    if isinstance(topic := doc["extra"].get("topic"), str):
        tally.topics[as_name(topic), hit] += 1
    tally.options[len(doc["options"]), hit] += 1
    return hit


def _add_question(questions: Questions, row: dict, per_language: int, results: int) -> None:
    language, doc = row["language"], row["doc"]
    questions.total[language] += 1
    if questions.total[language] > per_language:
        return
    questions.items[language, row["key"]] = {
        "language": as_name(language), "code": get_language(language).code, "key": as_name(row["key"]), "gold": as_name(row["gold"]),
        "topic": as_name(doc["extra"].get("topic") or ""), "question": plain(doc["question"]), "rationale": plain(doc["rationale"]),
        "options": [[as_name(letter, 8), plain(text)] for letter, text in list(doc["options"].items())[:OPTION_LIMIT]],
        "answers": [[] for _ in range(results)]}


def _answer(row: dict) -> dict:
    entry = {"mode": as_name(row["mode"]), "letters": as_name(row["parsed"]), "right": row["correct"] is True, "status": as_name(row["status"])}
    text = plain(row.get("text", ""))
    return entry | ({"text": text} if row["mode"] == "rationale" or row["status"] != "strict" else {}) if text else entry


def differences(results: Sequence[Result]) -> list[tuple[Result, Result, metrics.Difference, float]]:
    """In each setting every row against the first: (first, other, macro difference with interval, p of McNemar's test)."""
    found = []
    for setting in SETTINGS:
        rows = [result for result in results if result.setting == setting]
        for other in rows[1:]:
            keys = list(rows[0].tally.hits)
            if rows[0].headline != other.headline:
                continue  # the tables show the two in different columns, too
            a, b = ([one.tally.hits[key] for key in keys] for one in (other, rows[0]))
            gap = metrics.paired_bootstrap(a, b, seed=0, groups=[language for language, _ in keys])
            found.append((rows[0], other, gap, metrics.mcnemar(a, b)))
    return found


# -------------------------------------------------------------------------------------------------------- runs, corpus

@dataclass
class Run:
    """A run folder: its facts, and its log as far as it is whole."""

    name: str
    facts: dict[str, Any]
    finished: bool
    loss: list[tuple[float, float]]  # (tokens, training loss)
    validation: dict[str, list[tuple[float, float]]]  # language -> (tokens, validation loss), the first before step 1
    tokens_per_second: float  # median over the log
    remarks: list[str]


def read_run(argument: str) -> Run:
    """A run folder of `mmed/train.py`; a last line that a kill cut off is left out and said so."""
    _, name, given = split_argument(argument)
    folder = Path(given)
    where = _check_size(folder, "run.json")
    facts, log = read_json(where), _check_size(folder, "metrics.jsonl")
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(f"{where}: not the run.json of a training run")
    run = Run(as_name(name or folder.resolve().name), facts, (folder / "done.json").is_file(), [], {}, 0.0, [])
    rates, bad, lines = [], 0, _lines(log, run.remarks)
    for at, line in lines:
        try:
            tokens, loss = number(line["tokens"], 0), line.get("loss")
            if line["step"] == 0:  # validation before the first step
                pass
            elif is_finite(loss):
                run.loss.append((tokens, loss))
            else:
                bad += 1
            for language, value in line.get("validation_loss", {}).items():
                if is_finite(value):
                    run.validation.setdefault(as_name(language), []).append((tokens, value))
                else:
                    bad += 1
            if line["step"]:
                rates.append(number(line["tokens_per_second"], 0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{log}:{at}: not a line of a training log ({type(error).__name__}: {as_name(error)})") from None
    if bad:
        run.remarks.append(f"{bad:,} losses that are not finite numbers are not drawn")
    if not run.loss:
        run.remarks.append("no step is logged yet")
    run.tokens_per_second = sorted(rates)[len(rates) // 2] if rates else 0.0
    return run


def _lines(log: Path, remarks: list[str]) -> Iterator[tuple[int, dict]]:
    lines = read_jsonl(log)
    held: tuple[int, dict] | None = None
    while True:
        try:
            following = next(lines)
        except StopIteration:
            break
        except ValueError:
            if not log.is_file():
                raise
            remarks.append(f"the log is whole up to line {held[0] if held else 0}")
            break
        if held:
            yield held
        held = following
    if held:
        yield held


@dataclass
class Corpus:
    """Counts of corpus steps and token streams: [(place, contents)], grouped by step as they follow one another."""

    steps: dict[str, list[tuple[str, dict]]] = field(default_factory=dict)
    streams: list[tuple[str, dict]] = field(default_factory=list)


def read_corpus(folders: Sequence[str]) -> Corpus:
    """Every funnel.json and every side file of a token stream under the folders; one that has neither is an error."""
    steps: dict[str, list[tuple[str, dict]]] = {}
    streams = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{as_name(folder, 300)}: no such folder")
        paths = sorted(path for path in folder.rglob("*.json") if path.name == "funnel.json" or path.with_suffix(".bin").is_file())
        if not paths:
            raise UserError(f"{folder}: no funnel.json and no token stream in it; give the folder that the steps of data_prep wrote to")
        if len(paths) > CORPUS_FILES:
            raise UserError(f"{folder}: {len(paths):,} funnels and streams; give folders with at most {CORPUS_FILES}")
        for path in paths:
            if path.stat().st_size > 2 ** 26:
                raise UserError(f"{path}: {path.stat().st_size:,} bytes; counts do not take that many")
            value = read_json(path)
            is_funnel = path.name == "funnel.json"
            parts = (path.parent if is_funnel else path.with_suffix("")).relative_to(folder).parts
            try:
                step = as_name(value.get("step") or "step") if is_funnel else ""
                # the place in the folder; the folder's own name says something only where there are several
                parts = (*((folder.resolve().name,) if len(folders) > 1 or not parts else ()), *parts[len(parts) > 1 and parts[0] == step:])
                place = as_name("/".join(parts))
                if is_funnel:
                    steps.setdefault(step, []).append((place, _funnel(value)))
                else:
                    streams.append((place, _stream(value)))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}: not counts that data_prep wrote ({type(error).__name__}: {as_name(error)})") from None
    # A later step takes in what an earlier one let through: the more documents come in, the earlier the step.
    order = sorted(steps, key=lambda step: -sum(funnel["in"] for _, funnel in steps[step]))
    return Corpus({step: steps[step] for step in order}, streams)


def _funnel(value: dict) -> dict:
    dropped = Counter({as_name(reason): count(entry["documents"]) for reason, entry in value["dropped"].items()})
    result = {"in": count(value["documents"]["in"]), "out": count(value["documents"]["out"]), "dropped": dropped}
    if result["out"] > result["in"]:
        raise ValueError("more documents out than in")
    return result


def _stream(value: dict) -> dict:
    counts = {as_name(language): {as_name(source): count(entry["tokens"]) for source, entry in by_source.items()}
              for language, by_source in value["counts"].items()}
    return {"tokens": count(value["tokens"]), "documents": count(value["documents"]), "counts": counts, "tokenizer": as_name(value["tokenizer"])}
