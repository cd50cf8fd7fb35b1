"""How far raters agree with each other, and how far each metric agrees with them: the paper's fourth
question.

In: ratings by people and judges (rating_data.py), and the scores of the same rationales in result folders.
Out: agreement among raters (Krippendorff's alpha, Kendall's W, tau of pairs), the study that agreement.json
holds, and its table.

    for each item, people and every metric rank the models: m points for the best, 1 for the worst (ties: the
    mean) point = (model, language): mean points over its items          x: by people     y: by the metric
    tau of the points (do both rank alike?)  and the slope of y on x (how much of people's differences does
    the metric see?)

MMedLM: metrics are turned into the same ranking as people's; tau and slope over models x languages (36
points). Intervals: bootstrap over items, with the same resamples for all metrics.
References: Kendall 1938; Kendall and Babington Smith 1939 (W); Krippendorff 2011 (alpha).
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mmed import metrics
from mmed.evaluation.summary import aligned, language_order, metric_name
from mmed.human_eval.rating_data import Texts, case_of
from mmed.utils.errors import UserError

# As printed in the paper: tau with people, slope. DIFFERS: the paper names its ROUGE by letters only; its
# values are shown beside both of our definitions, because it is not known which one it used.
PAPER = {"BLEU-1": (0.464, 1.33), "BLEU-2": (0.516, 1.27), "BLEU-3": (0.466, 1.02), "BLEU-4": (0.436, 0.83),
         "ROUGE-1": (0.423, 0.81), "ROUGE-2": (0.456, 0.65), "ROUGE-L": (0.372, 0.67),
         "BERTScore": (0.538, 0.82),
         "judge": (0.660, 1.01)}


# ---- agreement among raters
# ----------------------------------------------------------------------------------------

def krippendorff_alpha(units: Sequence[Sequence[float]], level: str = "ordinal") -> float:
    """Krippendorff's alpha: 1 is perfect agreement, 0 what chance gives. A unit holds the values its raters
    gave.

    level: the distance of two values, "nominal", "ordinal" or "interval". nan where all values are the same.

    >>> round(krippendorff_alpha([[1, 1], [2, 2], [3, 3], [1, 2]], "nominal"), 4)
    0.6667
    """
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    if len(values) < 2:
        return math.nan
    coincidences = np.zeros((len(values), len(values)))  # a pair of values in a unit of n counts 1 / (n - 1)
    for unit in units:
        counts = np.bincount([values.index(value) for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(1)
    # ordinal: values ranked between two, each of the two counted half
    middle = np.cumsum(totals) - totals / 2
    distance = {"nominal": 1.0 - np.eye(len(values)), "interval": np.subtract.outer(values, values) ** 2.0,
                "ordinal": np.subtract.outer(middle, middle) ** 2}[level]
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def kendall_w(rankings: Sequence[Sequence[float]]) -> float:
    """Kendall's W of raters who each ranked the same things without ties: 1 they agree, 0 there is no common
    order.

    >>> kendall_w([[1, 2, 3], [1, 2, 3]]), kendall_w([[1, 2, 3], [3, 2, 1]])
    (1.0, 0.0)
    """
    raters, things = len(rankings), len(rankings[0])
    sums = np.sum(rankings, axis=0, dtype=float)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (raters ** 2 * (things ** 3 - things)))


def rater_agreement(raters: Mapping[str, Mapping[str, Mapping[str, float]]],
                    models: Sequence[str]) -> dict[str, Any]:
    """Agreement of raters (rater -> item -> model -> points) who ranked the same items; None for a single
    rater.
    """
    names, items = list(raters), list(next(iter(raters.values())))
    result: dict[str, Any] = {"raters": names, "items": len(items), "krippendorff_alpha": None,
                              "kendall_w": None,
                              "pairs": []}
    if len(names) > 1:
        rankings = {item: [[raters[name][item][model] for model in models] for name in names]
                    for item in items}
        units = [unit for ranking in rankings.values() for unit in zip(*ranking)]
        result["krippendorff_alpha"] = krippendorff_alpha(units)
        result["kendall_w"] = metrics.mean(map(kendall_w, rankings.values()))
        for a, b in combinations(range(len(names)), 2):
            taus = [metrics.kendall_tau(ranking[a], ranking[b]) for ranking in rankings.values()]
            result["pairs"].append({"raters": [names[a], names[b]], "kendall_tau": metrics.mean(taus)})
    return result


def one_against_others(people: Mapping, models: Sequence[str]) -> dict[str, Any] | None:
    """tau of one rater's points with the mean of the others', mean over raters: what a metric can hope
    for.
    """
    rated = [(language, case["raters"]) for language, part in people["cases"].items()
             for case in part.values()
             if len(case.get("raters", {})) > 1]
    taus = []
    for rater in sorted({rater for _, given in rated for rater in given}):
        points: dict[tuple, list] = {}
        for language, given in rated:
            for model in models if rater in given else ():
                others = metrics.mean(scores[model] for name, scores in given.items() if name != rater)
                points.setdefault((language, model), []).append((given[rater][model], others))
        means = [[metrics.mean(side) for side in zip(*pairs)] for pairs in points.values()]
        tau = metrics.kendall_tau(*zip(*means))
        if not math.isnan(tau):
            taus.append(tau)
    return {"tau": metrics.mean(taus), "raters": len(taus)} if taus else None


# ---- the study
# -----------------------------------------------------------------------------------------------------

@dataclass
class Measure:
    """A metric or a judge: its points, language -> (items, models), rows of nan for items that a judge did
    not rank.
    """

    name: str
    kind: str  # metric, judge
    definition: str
    points: dict[str, np.ndarray]


def points_of(values: Sequence[float]) -> list[float]:
    """Turns the models' values into a ranking: as many points as models for the best, 1 for the worst, ties
    their mean.

    >>> points_of([0.2, 0.9, 0.2])
    [1.5, 3.0, 1.5]
    """
    return [sum((other < value) + (other == value) / 2 for other in values) + 0.5 for value in values]


def metric_measures(found: Texts, people: Mapping, models: Sequence[str], notes: list[str]) -> list[Measure]:
    """Every metric that all rated texts have; the others are named in `notes`."""
    places = [(language, key) for language, part in people["cases"].items() for key in part]
    scores: dict[str, dict[tuple, float]] = {}  # metric -> (language, key, model) -> value
    signatures: dict[tuple[str, str], set[str]] = {}
    for language, key in places:
        for model in models:
            for signature, value in found[language, key][model]["scores"].items():
                name = metric_name(signature)
                scores.setdefault(name, {})[language, key, model] = value
                signatures.setdefault((name, language), set()).add(signature)
    result, total = [], len(places) * len(models)
    for name, values in scores.items():
        if len(values) < total:
            notes.append(f"{name} is left out: {total - len(values):,} of {total:,} rated texts have no "
                         f"such score"
                         + (" (mmed.evaluation.bertscore adds it to results)" if name.startswith("BERTScore")
                            else ""))
            continue
        mixed = [language for language in people["cases"] if len(signatures[name, language]) > 1]
        if mixed:
            notes.append(f"{name} is left out: the results computed it in different ways in "
                         f"{', '.join(mixed)}")
            continue
        points = {language: np.array([points_of([values[language, key, model] for model in models])
                                      for key in part]) for language, part in people["cases"].items()}
        short, _, definition = name.partition("|")
        result.append(Measure(short, "metric", definition, points))
    return result


def judge_measure(judge: Mapping, people: Mapping, models: Sequence[str], notes: list[str]) -> Measure:
    name = str(judge["by"].get("model") or "people")
    unranked = dict.fromkeys(models, math.nan)
    points, missing = {}, 0
    for language, part in people["cases"].items():
        given = judge["cases"].get(language, {})
        points[language] = np.array([[given.get(key, {"scores": unranked})["scores"][model]
                                      for model in models]
                                     for key in part])
        missing += sum(key not in given for key in part)
    if missing:
        total = sum(map(len, people["cases"].values()))
        notes.append(f"the judge {name} ranked {total - missing:,} of the {total:,} items that people "
                     f"ranked; "
                     "it is compared on those")
    return Measure(name, "judge", f"judge v{judge['by'].get('version', '?')}", points)


def check_ratings(name: str, ratings: Mapping, models: Sequence[str], found: Texts, complete: bool) -> None:
    """Ratings must be of these models and texts; `complete`: every rated item must be in the results."""
    if set(ratings["models"]) != set(models):
        raise UserError(f"{name}: rates {', '.join(ratings['models'])}, the results given are "
                        f"{', '.join(models)}; "
                        "give NAME=FOLDER for each")
    for language, part in ratings["cases"].items():
        for key, case in part.items():
            rows = found.get((language, key), {})
            if set(rows) != set(models):
                if complete:
                    raise UserError(f"{name}: {language}, item {key}: not in every result folder given")
            elif case_of(rows).digest != case["digest"]:
                raise UserError(f"{name}: {language}, item {key}: the results hold other texts than "
                                f"were rated")


def study(people: Mapping, models: Sequence[str], found: Texts, judges: Sequence[Mapping] = (),
          names: Sequence[str] = ("people",), seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """The value of agreement.json. `found`: rows of read_texts; `names`: file names of people and judges,
    for errors.
    """
    for name, ratings in zip([*names, *("judge" for _ in judges)], (people, *judges)):
        check_ratings(name, ratings, models, found, ratings is people)
    languages = language_order(language for language, part in people["cases"].items() if part)
    if not languages:
        raise UserError(f"{names[0]}: no ratings in it")
    people = {**people, "cases": {language: people["cases"][language] for language in languages}}
    notes: list[str] = []
    measures = metric_measures(found, people, models, notes)
    measures += [judge_measure(judge, people, models, notes) for judge in judges]
    given = {language: np.array([[case["scores"][model] for model in models] for case in part.values()])
             for language, part in people["cases"].items()}
    rng = np.random.default_rng(seed)
    draws = {language: rng.multinomial(len(part), np.full(len(part), 1 / len(part)),
                                       size=resamples).astype(float)
             for language, part in given.items()}
    compared = [compare(measure, given, draws) for measure in measures]
    first = first_shares([taus for _, taus in compared])
    rows = []
    for measure, (row, _), share in zip(measures, compared, first):
        paper = PAPER.get("judge" if measure.kind == "judge" else measure.name)
        rows.append({"name": measure.name, "kind": measure.kind, "definition": measure.definition, **row,
                     "first_share": share, "paper": dict(zip(("tau", "slope"), paper)) if paper else None})
    order = sorted(range(len(rows)), key=lambda i: (-(-2 if rows[i]["tau"] is None else rows[i]["tau"]),
                                                    rows[i]["name"]))
    points = [{"model": model, "language": language, "items": len(part),
               "people": float(part[:, place].mean()),
               "values": [_mean_points(measures[i].points[language], place) for i in order]}
              for language, part in given.items() for place, model in enumerate(models)]
    return {"format": "mmed agreement", "version": 1, "models": list(models), "languages": languages,
            "items": {language: len(part) for language, part in given.items()},
            "people": {"agreement": agreement_by_language(people, models),
                       "one_against_others": one_against_others(people, models)},
            "measures": [rows[i] for i in order], "points": points, "seed": seed, "resamples": resamples,
            "notes": notes}


def _mean_points(points: np.ndarray, model: int) -> float | None:
    ranked = points[~np.isnan(points).any(1), model]
    return float(ranked.mean()) if len(ranked) else None


def compare(measure: Measure, given: Mapping[str, np.ndarray],
            draws: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """(tau with interval, slope, tau within items, number of points; tau of each resample) of a measure with
    people.

    given: language -> people's points (items, models); draws: language -> item counts (resamples, items).
    """
    means, drawn, within = [], [], []
    for language, theirs in given.items():
        ranked = ~np.isnan(measure.points[language]).any(1)
        if ranked.any():
            x, y, weights = theirs[ranked], measure.points[language][ranked], draws[language][:, ranked]
            means.append((x.mean(0), y.mean(0)))
            # a resample without any ranked item is nan and left out below
            with np.errstate(invalid="ignore"):
                drawn.append([weights @ side / weights.sum(1, keepdims=True) for side in (x, y)])
            within += [metrics.kendall_tau(a, b) for a, b in zip(x, y)]
    if not means:
        empty = dict.fromkeys(("tau", "low", "high", "slope", "within_items"))
        return {**empty, "points": 0}, np.full(len(next(iter(draws.values()))), np.nan)
    x, y = (np.concatenate(side).tolist() for side in zip(*means))
    taus = tau_of_rows(*(np.concatenate(side, 1) for side in zip(*drawn)))
    defined = taus[~np.isnan(taus)]
    low, high = np.quantile(defined, [0.025, 0.975]).tolist() if len(defined) else (math.nan, math.nan)
    numbers = {"tau": metrics.kendall_tau(x, y), "low": low, "high": high,
               "slope": metrics.regression_slope(x, y),
               "within_items": metrics.mean(tau for tau in within if not math.isnan(tau))}
    return {name: None if math.isnan(value) else value for name,
            value in numbers.items()} | {"points": len(x)}, taus


def tau_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of x with the same row of y; nan where one is constant. Shapes (rows,
    points).
    """
    left, right = np.triu_indices(x.shape[1], 1)
    result = []
    for rows in zip(*(np.array_split(side, math.ceil(len(x) / 100)) for side in (x, y))):
        a, b = (np.sign(np.round(side[:, right] - side[:, left], 9))
                for side in rows)  # rounding errors are ties
        with np.errstate(invalid="ignore", divide="ignore"):
            result.append((a * b).sum(1) / np.sqrt((a ** 2).sum(1) * (b ** 2).sum(1)))
    return np.concatenate(result)


def first_shares(taus: Sequence[np.ndarray]) -> list[float | None]:
    """Share of resamples in which each measure has the highest tau; measures that tie for it split the
    resample.
    """
    table = np.array(taus)
    table = table[:, ~np.isnan(table).any(0)] if len(taus) else table
    if not table.size:
        return [None] * len(taus)
    first = table == table.max(0)
    return (first / first.sum(0)).mean(1).tolist()


def agreement_by_language(people: Mapping, models: Sequence[str]) -> dict[str, dict]:
    """`rater_agreement` of each language, among the raters who ranked all of it."""
    result = {}
    for language, part in people["cases"].items():
        names = set.intersection(*(set(case.get("raters", {})) for case in part.values()))
        if names:
            raters = {name: {key: case["raters"][name] for key, case in part.items()}
                      for name in sorted(names)}
            result[language] = rater_agreement(raters, models)
    return result


def agreement_table(value: Mapping[str, Any]) -> str:
    """The measures as text, the best first."""
    def cell(number: float | None, form: str = ".3f") -> str:
        return "-" if number is None else format(number, form)

    lines = [["agreement with people", "tau", "95 %", "slope", "in items", "first in", "points",
              "paper's tau, slope"]]
    for row in value["measures"]:
        share = None if row["first_share"] is None else 100 * row["first_share"]
        lines.append([f"{row['name']} ({row['definition']})"[:60], cell(row["tau"]),
                      f"{cell(row['low'])} to {cell(row['high'])}", cell(row["slope"], ".2f"),
                      cell(row["within_items"]), f"{cell(share, '.0f')} %", str(row["points"]),
                      f"{row['paper']['tau']:.3f}, {row['paper']['slope']:.2f}" if row["paper"] else ""])
    others = value["people"]["one_against_others"]
    reference = (f"\none rater against the others: {others['tau']:.3f} (mean of "
                 f"{others['raters']})" if others else "")
    return aligned(lines) + reference
