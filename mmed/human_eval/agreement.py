"""How far raters agree with each other, and each metric with them: the paper's fourth question.

For each item, people and every metric rank the models: m points for the best of m, 1 for the worst. Of each
model in each language, x is the mean over items by people, y by the metric. tau of x and y: do both rank
alike? Slope of y on x: how much of the people's differences does the metric see?

MMedLM: metrics are turned into the same ranking as people's; tau and slope over models x languages (36
points). Intervals: bootstrap over items, with the same resamples for all metrics.
References: Kendall 1938 (tau); Krippendorff 2011 (alpha).
"""
from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmed.evaluation.summary import aligned, language_order, metric_name
from mmed.human_eval.rating_data import Texts, case_of
from mmed.utils.errors import UserError

# As printed in the paper: tau with people, slope. DIFFERS: the paper names its ROUGE by letters only; its
# values are shown beside both of our definitions, because it is not known which one it used.
PAPER = {"BLEU-1": (0.464, 1.33), "BLEU-2": (0.516, 1.27), "BLEU-3": (0.466, 1.02), "BLEU-4": (0.436, 0.83),
         "ROUGE-1": (0.423, 0.81), "ROUGE-2": (0.456, 0.65), "ROUGE-L": (0.372, 0.67),
         "BERTScore": (0.538, 0.82), "judge": (0.660, 1.01)}
RESAMPLES, SEED = 1000, 0


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


def rater_agreement(cases: Mapping[str, Mapping]) -> dict[str, Any]:
    """Agreement among the raters of one language; `cases`: item -> its ratings."""
    names = sorted({name for case in cases.values() for name in case["raters"]})
    units = [[points[model] for points in case["raters"].values()]
             for case in cases.values() for model in case["scores"]]
    alpha = krippendorff_alpha(units) if len(names) > 1 else None
    return {"raters": names, "items": len(cases), "krippendorff_alpha": alpha}


# ---- the study ---------------------------------------------------------------------------------------------

def points_of(values: Sequence) -> np.ndarray:
    """Values of models, shape (..., models), as points: the best of m gets m, the worst 1, ties their mean.

    >>> points_of([0.2, 0.9, 0.2]).tolist()
    [1.5, 3.0, 1.5]
    """
    own = np.asarray(values, dtype=float)[..., :, None]
    other = own.swapaxes(-1, -2)
    return (other < own).sum(-1) + (other == own).sum(-1) / 2 + 0.5


@dataclass
class Measure:
    """A metric or a judge, with its points (items, models)."""

    name: str
    definition: str
    points: np.ndarray


def metric_measures(texts: Sequence[Sequence[Mapping[str, float]]], languages: Sequence[str],
                    notes: list[str]) -> list[Measure]:
    """Every metric that all rated texts of a language have by one signature; `notes` names the others.

    texts: (items, models) of scores by signature; languages: of the items.
    """
    found = []
    signatures = sorted({(language, name) for language, row in zip(languages, texts) for scores in row
                         for name in scores})
    for metric in sorted({metric_name(name) for _, name in signatures}):
        name_in = {language: name for language, name in signatures if metric_name(name) == metric}
        if all(name_in.get(language) in scores for language, row in zip(languages, texts) for scores in row):
            values = [[scores[name_in[language]] for scores in row]
                      for language, row in zip(languages, texts)]
            name, _, definition = metric.partition("|")
            found.append(Measure(name, definition, points_of(values)))
        else:
            notes.append(f"{metric} is left out: not every rated text has it, computed in one way")
    return found


def check_ratings(name: str, kind: str, ratings: Mapping, models: Sequence[str], found: Texts) -> None:
    """Ratings must be by this kind, of these models, and of texts as the results have them."""
    if ratings["by"]["kind"] != kind:
        raise UserError(f"{name}: ratings by {ratings['by']['kind']}, expected those by {kind}; people's "
                        "ratings come first, each judge's after --judge")
    if set(ratings["models"]) != set(models):
        raise UserError(f"{name}: rates {', '.join(ratings['models'])}, but the results are "
                        f"{', '.join(models)}; give NAME=FOLDER for each")
    for language, part in ratings["cases"].items():
        for key, case in part.items():
            rows = found.get((language, key), {})
            if set(rows) != set(models):
                raise UserError(f"{name}: {language}, item {key}: missing from at least one result folder")
            if case_of(rows).digest != case["digest"]:
                raise UserError(f"{name}: {language}, item {key}: the texts in the results are not those "
                                "that were rated")


def rated_by_all(people: Mapping, judges: Sequence[Mapping], notes: list[str]) -> list[tuple[str, str]]:
    """(language, key) of the items that people and every judge ranked, language by language."""
    ranked = [(language, key) for language in language_order(people["cases"])
              for key in people["cases"][language]]
    places = [(language, key) for language, key in ranked
              if all(key in judge["cases"].get(language, {}) for judge in judges)]
    if not places:
        raise UserError("no item was ranked by both people and every judge")
    if len(places) < len(ranked):
        notes.append(f"a judge did not rank {len(ranked) - len(places):,} of the {len(ranked):,} items; they "
                     "are left out")
    return places


def points_given(ratings: Mapping, places: Sequence[tuple[str, str]], models: Sequence[str]) -> np.ndarray:
    cases = [ratings["cases"][language][key] for language, key in places]
    return np.array([[case["scores"][model] for model in models] for case in cases])


def study(people: Mapping, models: Sequence[str], found: Texts, judges: Sequence[Mapping] = (),
          names: Sequence[str] = ()) -> dict[str, Any]:
    """The content of agreement.json. `found`: rows of read_texts; `names`: the files, for errors."""
    kinds = ["people", *("judge" for _ in judges)]
    for name, kind, ratings in zip(names or kinds, kinds, (people, *judges)):
        check_ratings(name, kind, ratings, models, found)
    notes: list[str] = []
    places = rated_by_all(people, judges, notes)
    languages = np.array([language for language, _ in places])
    order = list(dict.fromkeys(languages.tolist()))
    texts = [[found[place][model]["scores"] for model in models] for place in places]
    measures = metric_measures(texts, languages.tolist(), notes)
    measures += [Measure(str(judge["by"].get("model")), f"judge, prompt version {judge['by'].get('version')}",
                         points_given(judge, places, models)) for judge in judges]
    rng = np.random.default_rng(SEED)
    draws = np.concatenate([rng.choice(np.flatnonzero(part), (RESAMPLES, part.sum()))
                            for part in (languages == language for language in order)], axis=1)
    given = points_given(people, places, models)
    compared = [(measure, compare(measure, given, languages, draws)) for measure in measures]
    compared.sort(key=lambda pair: (pair[1]["tau"] is None, -(pair[1]["tau"] or 0), pair[0].name))
    columns = [language_means(points, languages)
               for points in (given, *(measure.points for measure, _ in compared))]
    counts = {language: int((languages == language).sum()) for language in order}
    points = [{"model": model, "language": language, "items": counts[language], "people": own,
               "values": values}
              for (language, model), (own, *values) in zip(itertools.product(order, models), zip(*columns))]
    raters = {language: rater_agreement(people["cases"][language]) for language in order}
    return {"format": "mmed agreement", "version": 1, "models": list(models), "languages": order,
            "items": counts, "people": {"agreement": raters}, "measures": [row for _, row in compared],
            "points": points, "seed": SEED, "resamples": RESAMPLES, "notes": notes}


def language_means(points: np.ndarray, languages: np.ndarray) -> list[float]:
    """Mean points of each language and model of (items, models), rounded so that equal ones are ties."""
    means = [points[languages == language].mean(0) for language in dict.fromkeys(languages)]
    return np.concatenate(means).round(9).tolist()


def compare(measure: Measure, given: np.ndarray, languages: np.ndarray,
            draws: np.ndarray) -> dict[str, Any]:
    """A row of the study: tau of a measure with people, its interval, the slope, and the number of points.

    given: points by people, (items, models); draws: bootstrap items, (resamples, items).
    """
    def tau(items: Any) -> float:
        x, y = (np.array([language_means(points[items], languages)]) for points in (given, measure.points))
        return float(kendall_taus(x, y)[0])

    taus = [tau(items) for items in draws]
    low, high = (math.nan, math.nan) if np.isnan(taus).all() else np.nanquantile(taus, [0.025, 0.975])
    x, y = language_means(given, languages), language_means(measure.points, languages)
    numbers = {"tau": tau(slice(None)), "low": low, "high": high, "slope": regression_slope(x, y)}
    paper = PAPER.get("judge" if measure.definition.startswith("judge") else measure.name)
    return {"name": measure.name, "definition": measure.definition, "points": len(x),
            "paper": dict(zip(("tau", "slope"), paper)) if paper else None,
            **{name: None if math.isnan(value) else float(value) for name, value in numbers.items()}}


def agreement_table(value: Mapping[str, Any]) -> str:
    """The measures as text, the best first."""
    lines = [["agreement with people", "tau", "95 %", "slope", "points", "paper's tau, slope"]]
    for row in value["measures"]:
        tau, low, high, slope = ("-" if row[name] is None else f"{row[name]:.3f}"
                                 for name in ("tau", "low", "high", "slope"))
        paper = f"{row['paper']['tau']:.3f}, {row['paper']['slope']:.2f}" if row["paper"] else ""
        lines.append([f"{row['name']} ({row['definition']})"[:60], tau, f"{low} to {high}", slope,
                      str(row["points"]), paper])
    return aligned(lines)
