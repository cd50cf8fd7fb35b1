"""How far raters agree with one another, and each metric with them: the paper's fourth question.

In: ratings of people and of judges (mmed/human_eval/rating_data.py), and the scores of the same rationales in result folders. Out, in this
order: agreement of raters (Krippendorff's alpha, Kendall's W, tau of pairs); the study, a plain value that agreement.json holds; its
table for the terminal. The page is drawn by mmed/human_eval/agreement_page.py.

    for each item, people and every metric put the models into an order: m points for the best, 1 for the worst (equal: the mean)
    point = (model, language): mean points over its items          x: by people     y: by the metric
    tau of the points (do both order them alike?)  and the slope of y on x (how much of people's differences does the metric show?)

MMedLM: metrics are turned into the same ranking as people's, tau and slope over models x languages (36 points). Intervals: bootstrap over
items, the same draws for all metrics.
References: Kendall 1938; Kendall and Babington Smith 1939 (W); Krippendorff 2011 (alpha).
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmed import metrics
from mmed.evaluation.summary import language_order, metric_name
from mmed.human_eval.rating_data import case_of
from mmed.utils.errors import UserError
from mmed.utils.untrusted import as_name

# As printed in the paper (page of the project): tau with people, slope. DIFFERS: the paper's ROUGE is named by letters only; its values are
# shown beside both of our definitions, because neither is known to be the one.
PAPER = {"BLEU-1": (0.464, 1.33), "BLEU-2": (0.516, 1.27), "BLEU-3": (0.466, 1.02), "BLEU-4": (0.436, 0.83), "ROUGE-1": (0.423, 0.81),
         "ROUGE-2": (0.456, 0.65), "ROUGE-L": (0.372, 0.67), "BERTScore": (0.538, 0.82), "judge": (0.660, 1.01)}
BLOCK = 100  # resamples compared at a time


# ------------------------------------------------------------------------------------------------------ raters among themselves

def krippendorff_alpha(units: Sequence[Sequence[float]], level: str = "ordinal") -> float:
    """Krippendorff's alpha: 1 is perfect agreement, 0 what chance gives. A unit holds the values that raters gave one thing.

    level: how far two values are apart, "nominal", "ordinal" or "interval". Units with one value say nothing; nan if none is left, or
    if all values are the same.

    >>> round(krippendorff_alpha([[1, 1], [2, 2], [3, 3], [1, 2]], "nominal"), 4)
    0.6667
    """
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    if len(values) < 2:
        return math.nan
    place = {value: i for i, value in enumerate(values)}
    together = np.zeros((len(values), len(values)))  # coincidences: each pair of values in a unit of n counts 1 / (n - 1)
    for unit in units:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        together += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = together.sum(1)
    if level == "nominal":
        apart = 1.0 - np.eye(len(values))
    elif level == "interval":
        apart = np.subtract.outer(values, values) ** 2
    elif level == "ordinal":
        middle = np.cumsum(totals) - totals / 2  # values between two of them, each of the two counted half
        apart = np.subtract.outer(middle, middle) ** 2
    else:
        raise ValueError(f"level {level!r}: expected 'nominal', 'ordinal' or 'interval'")
    seen, chance = (together * apart).sum(), (np.outer(totals, totals) * apart).sum() / (totals.sum() - 1)
    return float(1 - seen / chance)


def kendall_w(rankings: Sequence[Sequence[float]]) -> float:
    """Kendall's W of raters who each ranked the same things without ties: 1 they agree, 0 there is no common order.

    >>> kendall_w([[1, 2, 3], [1, 2, 3]]), kendall_w([[1, 2, 3], [3, 2, 1]])
    (1.0, 0.0)
    """
    raters, things = len(rankings), len(rankings[0])
    sums = np.sum(rankings, axis=0, dtype=float)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (raters ** 2 * (things ** 3 - things)))


def rater_agreement(raters: Mapping[str, Mapping[str, Mapping[str, float]]], models: Sequence[str]) -> dict[str, Any]:
    """Agreement of raters (rater -> item -> model -> points) who all ranked the same items; None where one rater is alone."""
    names = list(raters)
    items = list(raters[names[0]])
    result: dict[str, Any] = {"raters": names, "items": len(items), "krippendorff_alpha": None, "kendall_w": None, "pairs": []}
    if len(names) > 1:
        result["krippendorff_alpha"] = krippendorff_alpha([[raters[name][item][model] for name in names] for item in items for model in models])
        result["kendall_w"] = metrics.mean(kendall_w([[raters[name][item][model] for model in models] for name in names]) for item in items)
        for pair in combinations(names, 2):
            taus = [metrics.kendall_tau(*([raters[name][item][model] for model in models] for name in pair)) for item in items]
            result["pairs"].append({"raters": list(pair), "kendall_tau": metrics.mean(taus)})
    return result


# ------------------------------------------------------------------------------------------------------------ the study

def points_of(values: Sequence[float]) -> list[float]:
    """Values of the models as a ranking: the best gets as many points as there are, the worst 1, equal ones their mean.

    >>> points_of([0.2, 0.9, 0.2])
    [1.5, 3.0, 1.5]
    """
    return [sum((other < value) + (other == value) / 2 for other in values) + 0.5 for value in values]


def measures_of(found: Mapping, people: Mapping, models: Sequence[str], judges: Sequence[Mapping], remarks: list[str]) -> list[dict[str, Any]]:
    """Each metric and judge: name, definition and its points, language -> (items, models), rows of nan where a judge gave none."""
    places = [(language, key) for language, part in people["cases"].items() for key in part]
    signatures: dict[str, set] = {}
    counts: dict[str, int] = {}
    for place in places:
        for model in models:
            for signature in found[place][model]["scores"]:
                counts[metric_name(signature)] = counts.get(metric_name(signature), 0) + 1
                signatures.setdefault(metric_name(signature), set()).add(signature)
    result = []
    for name, count in counts.items():
        if count < len(places) * len(models):
            remarks.append(f"{name} is left out: {len(places) * len(models) - count:,} of {len(places) * len(models):,} rated texts have no such score"
                           + (" (python -m mmed.evaluation.bertscore gives it to all results)" if name.startswith("BERTScore") else ""))
            continue
        columns = {language: np.array([points_of([_score(found[language, key][model], name) for model in models]) for key in part])
                   for language, part in people["cases"].items()}
        short, definition = name.split("|")
        result.append({"name": short, "kind": "metric", "definition": definition, "signatures": sorted(signatures[name]), "columns": columns})
    for judge in judges:
        columns, missing = {}, 0
        for language, part in people["cases"].items():
            given = judge["cases"].get(language, {})
            columns[language] = np.array([[given[key]["scores"][model] for model in models] if key in given else [math.nan] * len(models) for key in part])
            missing += sum(key not in given for key in part)
        by = judge["by"]
        name = as_name(by.get("model") or "people")
        if missing:
            remarks.append(f"the judge {name} ranked {len(places) - missing:,} of the {len(places):,} items that people ranked; it is compared on those")
        if missing < len(places):
            result.append({"name": name, "kind": "judge", "definition": f"judge v{as_name(by.get('version', '?'), 9)}", "signatures": [], "columns": columns})
    return result


def _score(row: Mapping, name: str) -> float:
    return next(value for signature, value in row["scores"].items() if metric_name(signature) == name)


def study(people: Mapping, models: Sequence[str], found: Mapping[tuple[str, str], Mapping[str, Mapping]], judges: Sequence[Mapping] = (),
          names: Sequence[str] = ("people",), seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """The value of agreement.json. `found`: (language, key) -> model -> row; `names`: what the files of people and judges are called."""
    names = [*names, *("judge" for _ in judges)]
    for name, ratings in zip(names, (people, *judges)):
        if set(ratings["models"]) != set(models):
            raise UserError(f"{name}: rates {', '.join(map(as_name, ratings['models']))}, the results given are {', '.join(models)}; give NAME=FOLDER for each")
        for language, part in ratings["cases"].items():
            for key, case in part.items():
                rows = found.get((language, key), {})
                if set(rows) != set(models):
                    if ratings is people:
                        raise UserError(f"{name}: {as_name(language)}, item {as_name(key)}: not in every result folder given")
                elif case_of(rows).digest != case.get("digest"):
                    raise UserError(f"{name}: {as_name(language)}, item {as_name(key)}: the results hold other texts than were rated")
    languages = language_order(language for language, part in people["cases"].items() if part)
    if not languages:
        raise UserError(f"{names[0]}: no ratings in it")
    people = dict(people) | {"cases": {language: people["cases"][language] for language in languages}}
    remarks: list[str] = []
    measures = measures_of(found, people, models, judges, remarks)
    given = {language: np.array([[case["scores"][model] for model in models] for case in people["cases"][language].values()]) for language in languages}
    rng = np.random.default_rng(seed)
    draws = {language: rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=resamples).astype(float) for language, part in given.items()}
    rows, drawn = [], []
    for measure in measures:
        row, taus = compare(measure["columns"], given, draws)
        key = "judge" if measure["kind"] == "judge" else measure["name"]
        paper = dict(zip(("tau", "slope"), PAPER[key])) if key in PAPER else None
        rows.append({name: measure[name] for name in ("name", "kind", "definition", "signatures")} | row | {"paper": paper})
        drawn.append(taus)
    if rows:  # in how many resamples each is the first; where several are, they share it
        table = np.array(drawn)
        whole = ~np.isnan(table).any(0)
        first = table[:, whole] == table[:, whole].max(0) if whole.any() else np.zeros((len(rows), 0))
        for row, share in zip(rows, (first / np.maximum(first.sum(0), 1)).mean(1) if whole.any() else [None] * len(rows)):
            row["first_share"] = None if share is None else float(share)
    points = [{"model": model, "language": language, "items": len(given[language]), "people": float(given[language][:, i].mean()),
               "values": [_finite(measure["columns"][language], i) for measure in measures]} for language in languages for i, model in enumerate(models)]
    order = sorted(range(len(rows)), key=lambda i: (-(rows[i]["tau"] if rows[i]["tau"] is not None else -2), rows[i]["name"], rows[i]["definition"]))
    for point in points:
        point["values"] = [point["values"][i] for i in order]
    return {"format": "mmed agreement", "version": 1, "models": list(models), "languages": languages, "items": {language: len(part) for language, part in given.items()},
            "people": {"agreement": _agreements(people, models), "one_against_others": one_against_others(people, models)},
            "measures": [rows[i] for i in order], "points": points, "seed": seed, "resamples": resamples, "remarks": remarks}


def _finite(column: np.ndarray, model: int) -> float | None:
    kept = column[~np.isnan(column).any(1), model]
    return float(kept.mean()) if len(kept) else None


def compare(columns: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """(tau with its interval, slope, tau within items, number of points; tau of each resample) of one measure against people."""
    xs, ys, drawn_x, drawn_y, within = [], [], [], [], []
    for language, theirs in given.items():
        kept = ~np.isnan(columns[language]).any(1)
        if not kept.any():
            continue
        x, y, weights = theirs[kept], columns[language][kept], draws[language][:, kept]
        xs += x.mean(0).tolist()
        ys += y.mean(0).tolist()
        with np.errstate(invalid="ignore"):  # a resample that drew none of the kept items: nan, left out below
            drawn_x.append(weights @ x / weights.sum(1, keepdims=True))
            drawn_y.append(weights @ y / weights.sum(1, keepdims=True))
        within += [metrics.kendall_tau(a, b) for a, b in zip(x, y)]
    taus = _taus(np.concatenate(drawn_x, 1), np.concatenate(drawn_y, 1))
    low, high = np.quantile(taus[~np.isnan(taus)], [0.025, 0.975]).tolist() if (~np.isnan(taus)).any() else (math.nan, math.nan)
    within = [tau for tau in within if not math.isnan(tau)]
    numbers = {"tau": metrics.kendall_tau(xs, ys), "low": low, "high": high, "slope": metrics.regression_slope(xs, ys), "within_items": metrics.mean(within)}
    return {name: None if math.isnan(value) else float(value) for name, value in numbers.items()} | {"points": len(xs)}, taus


def _taus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of x with that of y."""
    left, right = np.triu_indices(x.shape[1], 1)
    result = []
    for start in range(0, len(x), BLOCK):
        # sums of whole and half points: what differs by less than rounding is equal
        signs = [np.sign(np.round(side[start:start + BLOCK, right] - side[start:start + BLOCK, left], 9)) for side in (x, y)]
        with np.errstate(invalid="ignore", divide="ignore"):
            result.append((signs[0] * signs[1]).sum(1) / np.sqrt((signs[0] ** 2).sum(1) * (signs[1] ** 2).sum(1)))
    return np.concatenate(result)


def _agreements(people: Mapping, models: Sequence[str]) -> dict[str, dict]:
    """`rater_agreement` of each language, of those who rated all of it."""
    result = {}
    for language, part in people["cases"].items():
        names = set.intersection(*(set(case.get("raters", {})) for case in part.values()))
        if names:
            result[language] = rater_agreement({name: {key: case["raters"][name] for key, case in part.items()} for name in sorted(names)}, models)
    return result


def one_against_others(people: Mapping, models: Sequence[str]) -> dict[str, Any] | None:
    """What a metric can hope for: tau of one rater's points with the mean of the others', mean over raters; None without several."""
    taus = []
    for rater in sorted({rater for part in people["cases"].values() for case in part.values() for rater in case.get("raters", {})}):
        mine, others = [], []
        for part in people["cases"].values():
            cases = [case["raters"] for case in part.values() if rater in case.get("raters", {}) and len(case["raters"]) > 1]
            for model in models if cases else ():
                mine.append(metrics.mean(case[rater][model] for case in cases))
                others.append(metrics.mean(metrics.mean(case[other][model] for other in case if other != rater) for case in cases))
        if mine and not math.isnan(tau := metrics.kendall_tau(mine, others)):
            taus.append(tau)
    return {"tau": metrics.mean(taus), "raters": len(taus)} if taus else None


# ------------------------------------------------------------------------------------------------------------ terminal

def agreement_table(value: Mapping[str, Any]) -> str:
    """The measures, the best first."""
    rows = [["tau with people [95 %]", "tau", "interval", "slope", "in items", "first in", "points", "paper's tau, slope"]]

    def cell(number: float | None, form: str = ".3f") -> str:
        return "-" if number is None else format(number, form)

    for row in value["measures"]:
        paper = f"{row['paper']['tau']:.3f}, {row['paper']['slope']:.2f}" if row["paper"] else ""
        rows.append([f"{row['name']} ({row['definition'].split('-L')[0][:34]})", cell(row["tau"]), f"{cell(row['low'])} to {cell(row['high'])}", cell(row["slope"], ".2f"),
                     cell(row["within_items"]), "-" if row["first_share"] is None else f"{100 * row['first_share']:.0f} %", str(row["points"]), paper])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    if others := value["people"]["one_against_others"]:
        lines.append(f"for comparison: one rater against the others {others['tau']:.3f} (mean of {others['raters']})")
    return "\n".join(lines)
