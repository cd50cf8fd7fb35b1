"""How far raters agree with each other, and each metric with them: the paper's fourth question.

For each item, people and every metric rank the models: m points for the best of m, 1 for the worst. Of each
model in each language, x is the mean over items by people, y by the metric. tau of x and y: do both rank
alike? Slope of y on x: how much of the people's differences does the metric see?

MMedLM: metrics are turned into the same ranking as people's; tau and slope over models x languages (36
points). Intervals: bootstrap over items, with the same resamples for all metrics.
References: Kendall 1938 (tau); Krippendorff 2011 (alpha).
"""
from __future__ import annotations

import math
import statistics
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
         "BERTScore": (0.538, 0.82), "judge": (0.660, 1.01)}


# ---- agreement among raters --------------------------------------------------------------------------------

def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float:
    """Krippendorff's ordinal alpha: 1 is perfect agreement, 0 is chance; nan where all values are the same.

    A unit has the values that its raters gave.

    >>> round(krippendorff_alpha([[1, 1], [2, 2], [3, 3], [1, 2]]), 2)
    0.79
    """
    units = [list(unit) for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    if len(values) < 2:
        return math.nan
    coincidences = np.zeros((len(values), len(values)))  # a pair of values in a unit of n counts 1 / (n - 1)
    for unit in units:
        counts = np.bincount([values.index(value) for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(1)
    ranks = np.cumsum(totals) - totals / 2
    distance = np.subtract.outer(ranks, ranks) ** 2
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def kendall_taus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of x with the same row of y, (rows, points); nan where one is constant."""
    left, right = np.triu_indices(x.shape[1], 1)
    # differences that come from rounding are ties
    a, b = (np.sign(np.round(side[:, right] - side[:, left], 9)) for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a ** 2).sum(1) * (b ** 2).sum(1))


def regression_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the least-squares line through (x, y); nan if x is constant."""
    try:
        return statistics.linear_regression(x, y).slope
    except statistics.StatisticsError:
        return math.nan


def rater_agreement(cases: Mapping[str, Mapping], models: Sequence[str]) -> dict[str, Any]:
    """Agreement among the raters who ranked all items of one language; `cases`: item -> its ratings."""
    names = sorted(set.intersection(*(set(case.get("raters", {})) for case in cases.values())))
    result: dict[str, Any] = {"raters": names, "items": len(cases), "krippendorff_alpha": None, "pairs": []}
    if len(names) > 1:
        rankings = np.array([[[case["raters"][name][model] for model in models] for name in names]
                             for case in cases.values()])  # (items, raters, models)
        result["krippendorff_alpha"] = krippendorff_alpha(rankings.swapaxes(1, 2).reshape(-1, len(names)))
        for a, b in combinations(range(len(names)), 2):
            tau = float(kendall_taus(rankings[:, a], rankings[:, b]).mean())
            result["pairs"].append({"raters": [names[a], names[b]], "kendall_tau": tau})
    return result


def one_against_others(people: Mapping, models: Sequence[str]) -> dict[str, Any] | None:
    """tau of one rater with the mean of the others, mean over raters: the most a metric can hope for."""
    shared = {language: [case["raters"] for case in part.values() if len(case.get("raters", {})) > 1]
              for language, part in people["cases"].items()}
    taus = []
    for rater in sorted({name for part in shared.values() for raters in part for name in raters}):
        points = []  # of each language and model: mean by this rater, mean by the others
        for part in shared.values():
            rated = [raters for raters in part if rater in raters]
            for model in models if rated else ():
                own = metrics.mean(raters[rater][model] for raters in rated)
                others = [metrics.mean(raters[name][model] for name in raters if name != rater)
                          for raters in rated]
                points.append((own, metrics.mean(others)))
        taus.append(float(kendall_taus(*(np.array([side]) for side in zip(*points)))[0]))
    defined = [tau for tau in taus if not math.isnan(tau)]
    return {"tau": metrics.mean(defined), "raters": len(defined)} if defined else None


# ---- the study ---------------------------------------------------------------------------------------------

@dataclass
class Measure:
    """A metric or a judge, with its points (items, models); nan for items that a judge did not rank."""

    name: str
    kind: str  # metric, judge
    definition: str
    points: np.ndarray


def points_of(values: Sequence) -> np.ndarray:
    """Values of models, shape (..., models), as points: the best of m gets m, the worst 1, ties their mean.

    >>> points_of([0.2, 0.9, 0.2]).tolist()
    [1.5, 3.0, 1.5]
    """
    own = np.asarray(values, dtype=float)[..., :, None]
    other = own.swapaxes(-1, -2)
    return (other < own).sum(-1) + (other == own).sum(-1) / 2 + 0.5


def metric_measures(texts: Sequence[Sequence[Mapping[str, float]]], languages: Sequence[str],
                    notes: list[str]) -> list[Measure]:
    """Every metric that all rated texts have, computed in one way; `notes` names the others.

    texts: (items, models) of scores by signature; languages: of the items.
    """
    names = dict.fromkeys(name for row in texts for scores in row for name in scores)
    measures = []
    for metric in dict.fromkeys(map(metric_name, names)):
        variants = [name for name in names if metric_name(name) == metric]
        used = [[[name for name in variants if name in scores] for scores in row] for row in texts]
        missing = sum(not own for row in used for own in row)
        ways = {(language, name) for language, row in zip(languages, used) for own in row for name in own}
        if missing:
            notes.append(f"{metric} is left out: {missing:,} of {sum(map(len, texts)):,} rated texts have no "
                         "such score")
        elif len(ways) > len(set(languages)):
            notes.append(f"{metric} is left out: it was computed in different ways")
        else:
            values = [[scores[own[0]] for scores, own in zip(row, names_of)]
                      for row, names_of in zip(texts, used)]
            name, _, definition = metric.partition("|")
            measures.append(Measure(name, "metric", definition, points_of(values)))
    return measures


def judge_measure(judge: Mapping, places: Sequence[tuple[str, str]], models: Sequence[str],
                  notes: list[str]) -> Measure:
    name = str(judge["by"].get("model") or "people")
    unranked = {"scores": dict.fromkeys(models, math.nan)}
    rated = [judge["cases"].get(language, {}).get(key, unranked)["scores"] for language, key in places]
    missing = sum(scores is unranked["scores"] for scores in rated)
    if missing:
        notes.append(f"the judge {name} ranked {len(places) - missing:,} of the {len(places):,} items that "
                     "people ranked; it is compared on those")
    points = np.array([[scores[model] for model in models] for scores in rated])
    return Measure(name, "judge", f"judge, prompt version {judge['by'].get('version', '?')}", points)


def check_ratings(name: str, ratings: Mapping, models: Sequence[str], found: Texts, complete: bool) -> None:
    """Ratings must be of these models and texts; `complete`: every rated item must be in the results."""
    if set(ratings["models"]) != set(models):
        raise UserError(f"{name}: rates {', '.join(ratings['models'])}, the results given are "
                        f"{', '.join(models)}; give NAME=FOLDER for each")
    for language, part in ratings["cases"].items():
        for key, case in part.items():
            rows = found.get((language, key), {})
            if complete and set(rows) != set(models):
                raise UserError(f"{name}: {language}, item {key}: not in every result folder given")
            if set(rows) == set(models) and case_of(rows).digest != case["digest"]:
                raise UserError(f"{name}: {language}, item {key}: the results have other texts than were "
                                "rated")


def study(people: Mapping, models: Sequence[str], found: Texts, judges: Sequence[Mapping] = (),
          names: Sequence[str] = ("people",), seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """The content of agreement.json. `found`: rows of read_texts; `names`: the files, for errors."""
    for name, ratings in zip([*names, *("judge" for _ in judges)], (people, *judges)):
        check_ratings(name, ratings, models, found, ratings is people)
    order = language_order(language for language, part in people["cases"].items() if part)
    if not order:
        raise UserError(f"{names[0]}: no ratings in it")
    people = {**people, "cases": {language: people["cases"][language] for language in order}}
    places = [(language, key) for language, part in people["cases"].items() for key in part]
    languages = np.array([language for language, _ in places])
    given = np.array([[case["scores"][model] for model in models]
                      for part in people["cases"].values() for case in part.values()])
    notes: list[str] = []
    texts = [[found[place][model]["scores"] for model in models] for place in places]
    measures = metric_measures(texts, languages.tolist(), notes)
    measures += [judge_measure(judge, places, models, notes) for judge in judges]
    rng = np.random.default_rng(seed)
    counts = [len(part) for part in people["cases"].values()]
    draws = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in counts], axis=1)
    compared = [(measure, compare(measure.points, given, languages, draws)) for measure in measures]
    compared.sort(key=lambda one: (one[1]["tau"] is None, -(one[1]["tau"] or 0), one[0].name))
    rows = []
    for measure, row in compared:
        paper = PAPER.get("judge" if measure.kind == "judge" else measure.name)
        rows.append({"name": measure.name, "kind": measure.kind, "definition": measure.definition, **row,
                     "paper": dict(zip(("tau", "slope"), paper)) if paper else None})
    points = [{"model": model, "language": language, "items": count,
               "people": _mean(given[languages == language, at]),
               "values": [_mean(measure.points[languages == language, at]) for measure, _ in compared]}
              for language, count in zip(order, counts) for at, model in enumerate(models)]
    raters = {language: rater_agreement(part, models) for language, part in people["cases"].items()}
    return {"format": "mmed agreement", "version": 1, "models": list(models), "languages": order,
            "items": dict(zip(order, counts)),
            "people": {"agreement": {name: part for name, part in raters.items() if part["raters"]},
                       "one_against_others": one_against_others(people, models)},
            "measures": rows, "points": points, "seed": seed, "resamples": resamples, "notes": notes}


def _mean(values: np.ndarray) -> float | None:
    """The mean of those that are not nan."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def compare(points: np.ndarray, given: np.ndarray, languages: np.ndarray,
            draws: np.ndarray) -> dict[str, Any]:
    """tau of a measure with people and its interval, the slope, tau within items, the number of points.

    points, given: of the measure and of people, (items, models); draws: item counts, (resamples, items).
    """
    ranked = ~np.isnan(points[:, 0])
    parts = [ranked & (languages == language) for language in dict.fromkeys(languages[ranked])]
    if not parts:
        return dict.fromkeys(("tau", "low", "high", "slope", "within_items")) | {"points": 0}
    sides = np.stack([given, points])  # (2, items, models)
    x, y = np.concatenate([sides[:, part].mean(1) for part in parts], axis=1)
    with np.errstate(invalid="ignore"):  # a resample without any ranked item of a language is nan
        means = [draws[:, part] @ sides[:, part] / draws[:, part].sum(1, keepdims=True) for part in parts]
    taus = kendall_taus(*np.concatenate(means, axis=2))
    low, high = (np.nan, np.nan) if np.isnan(taus).all() else np.nanquantile(taus, [0.025, 0.975])
    numbers = {"tau": kendall_taus(x[None], y[None])[0], "low": low, "high": high,
               "slope": regression_slope(x, y),
               "within_items": _mean(kendall_taus(given[ranked], points[ranked]))}
    return {name: None if value is None or np.isnan(value) else float(value)
            for name, value in numbers.items()} | {"points": len(x)}


def agreement_table(value: Mapping[str, Any]) -> str:
    """The measures as text, the best first."""
    lines = [["agreement with people", "tau", "95 %", "slope", "points", "paper's tau, slope"]]
    for row in value["measures"]:
        tau, low, high, slope = ("-" if row[name] is None else f"{row[name]:.3f}"
                                 for name in ("tau", "low", "high", "slope"))
        paper = f"{row['paper']['tau']:.3f}, {row['paper']['slope']:.2f}" if row["paper"] else ""
        lines.append([f"{row['name']} ({row['definition']})"[:60], tau, f"{low} to {high}", slope,
                      str(row["points"]), paper])
    others = value["people"]["one_against_others"]
    return aligned(lines) + (f"\none rater against the others: {others['tau']:.3f}" if others else "")
