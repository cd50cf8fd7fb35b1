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
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmed.evaluation.summary import aligned, language_order, metric_name
from mmed.human_eval.rating_data import Case
from mmed.metrics import FEWEST_ITEMS
from mmed.reporting.page import number
from mmed.utils.errors import UserError

# As printed in the paper: tau with people, slope. DIFFERS: the paper names its ROUGE by letters only; its
# values are shown beside both of our definitions, because it is not known which one it used.
PAPER = {"BLEU-1": (0.464, 1.33), "BLEU-2": (0.516, 1.27), "BLEU-3": (0.466, 1.02), "BLEU-4": (0.436, 0.83),
         "ROUGE-1": (0.423, 0.81), "ROUGE-2": (0.456, 0.65), "ROUGE-L": (0.372, 0.67),
         "BERTScore": (0.538, 0.82), "judge": (0.660, 1.01)}
RESAMPLES, SEED = 1000, 0


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


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b; nan where x or y is constant."""
    a, b = (np.sign(np.subtract.outer(side, side)) for side in (x, y))
    with np.errstate(invalid="ignore"):
        return float((a * b).sum() / np.sqrt((a ** 2).sum() * (b ** 2).sum()))


def regression_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through (x, y); nan if x is constant."""
    return statistics.linear_regression(x, y).slope if len(set(x)) > 1 else math.nan


def points_of(values: Sequence) -> np.ndarray:
    """Values of models, shape (..., models), as points: the best of m gets m, the worst 1, ties their mean.

    >>> points_of([0.2, 0.9, 0.2]).tolist()
    [1.5, 3.0, 1.5]
    """
    own = np.asarray(values, dtype=float)[..., :, None]
    other = own.swapaxes(-1, -2)
    return (other < own).sum(-1) + (other == own).sum(-1) / 2 + 0.5


def rater_agreement(cases: Mapping[str, Mapping]) -> dict[str, Any]:
    """Agreement among the raters of one language; `cases`: item -> its ratings."""
    names = sorted({name for case in cases.values() for name in case["raters"]})
    units = [[points[model] for points in case["raters"].values()]
             for case in cases.values() for model in case["scores"]]
    alpha = krippendorff_alpha(units) if len(names) > 1 else None
    return {"raters": names, "items": len(cases), "krippendorff_alpha": alpha}


def check_ratings(name: str, kind: str, ratings: Mapping, models: Sequence[str],
                  found: Mapping[tuple[str, str], Case]) -> None:
    """Ratings must be by this kind, of these models, and of texts as the results have them."""
    if ratings["by"]["kind"] != kind or set(ratings["models"]) != set(models):
        raise UserError(f"{name}: ratings by {ratings['by']['kind']} of {', '.join(ratings['models'])}, "
                        f"expected ratings by {kind} of the results {', '.join(models)}; give NAME=FOLDER "
                        "for each result, and a judge's ratings after --judge")
    for language, part in ratings["cases"].items():
        for key, case in part.items():
            if (language, key) not in found or found[language, key].digest != case["digest"]:
                raise UserError(f"{name}: {language}, item {key}: the texts in the results are not those "
                                "that were rated")


def metric_points(texts: Sequence[Sequence[Mapping[str, float]]], languages: Sequence[str],
                  notes: list[str]) -> list[tuple[str, np.ndarray]]:
    """(metric, its points) where all rated texts of a language have one signature; `notes` names the others.
    texts: (items, models) of scores by signature."""
    named = [[{metric_name(name): (name, value) for name, value in scores.items()} for scores in row]
             for row in texts]
    found = []
    for metric in sorted({metric for row in named for scores in row for metric in scores}):
        cells = [[scores.get(metric, ("", 0.0)) for scores in row] for row in named]
        signatures = {(language, name) for language, row in zip(languages, cells) for name, _ in row}
        if all(name for _, name in signatures) and len(signatures) == len(set(languages)):
            found.append((metric, points_of([[value for _, value in row] for row in cells])))
        else:
            notes.append(f"{metric} is left out: not every rated text has it, computed in one way")
    return found


def study(people: Mapping, models: Sequence[str], found: Mapping[tuple[str, str], Case],
          judges: Sequence[Mapping] = (), names: Sequence[str] = ()) -> dict[str, Any]:
    """The content of agreement.json. `found`: cases of the results; `names`: the files, for errors."""
    kinds = ["people", *("judge" for _ in judges)]
    for name, kind, ratings in zip(names or kinds, kinds, (people, *judges)):
        check_ratings(name, kind, ratings, models, found)
    ranked = [(language, key) for language in language_order(people["cases"])
              for key in people["cases"][language]]
    places = [(language, key) for language, key in ranked
              if all(key in judge["cases"].get(language, {}) for judge in judges)]
    if not places:
        raise UserError("no item was ranked by both people and every judge")
    notes = []
    if len(places) < len(ranked):
        notes.append(f"a judge did not rank {len(ranked) - len(places):,} of the {len(ranked):,} items; they "
                     "are left out")

    def points_given(ratings: Mapping) -> np.ndarray:
        cases = [ratings["cases"][language][key] for language, key in places]
        return np.array([[case["scores"][model] for model in models] for case in cases])

    texts = [[found[place].scores[model] for model in models] for place in places]
    languages = [language for language, _ in places]
    measures = metric_points(texts, languages, notes)
    measures += [(f"{judge['by'].get('model')}|judge, prompt version {judge['by'].get('version')}",
                  points_given(judge)) for judge in judges]
    raters = {language: rater_agreement(people["cases"][language]) for language in dict.fromkeys(languages)}
    return {"format": "mmed agreement", "version": 1, "models": list(models), "seed": SEED,
            "resamples": RESAMPLES, "notes": notes, "people": {"agreement": raters},
            **compare(measures, points_given(people), languages, models)}


def compare(measures: Sequence[tuple[str, np.ndarray]], given: np.ndarray, languages: Sequence[str],
            models: Sequence[str]) -> dict[str, Any]:
    """The measures, the best first: tau with people, its interval (nan where a language has fewer than
    FEWEST_ITEMS items), the slope; and the points behind them.

    measures, given (by people): points of shape (items, models); languages: of the items.
    """
    rng = np.random.default_rng(SEED)
    weights, counts = {}, dict(Counter(languages))
    for language, n in counts.items():
        drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)  # how often each item is in a sample
        weights[language] = np.concatenate([np.ones((1, n)), drawn]) / n

    def means(points: np.ndarray) -> np.ndarray:
        """(1 + RESAMPLES, languages x models): of all items, then of each bootstrap sample."""
        parts = [own @ points[np.array(languages) == language] for language, own in weights.items()]
        return np.concatenate(parts, axis=1).round(9)  # so that equal ones are ties

    x = means(given)
    rows: list[tuple[dict[str, Any], list[float]]] = []
    for measure, points in measures:
        y = means(points)
        taus = [kendall_tau(*pair) for pair in zip(x, y)]
        known = [tau for tau in taus[1:] if not math.isnan(tau) and min(counts.values()) >= FEWEST_ITEMS]
        low, high = np.quantile(known or [math.nan], [0.025, 0.975])
        name, _, definition = measure.partition("|")
        paper = PAPER.get("judge" if definition.startswith("judge") else name)
        rows.append(({"name": name, "definition": definition, "points": len(y[0]),
                      "paper": dict(zip(("tau", "slope"), paper)) if paper else None, "tau": taus[0],
                      "low": float(low), "high": float(high), "slope": regression_slope(x[0], y[0])},
                     y[0].tolist()))
    rows.sort(key=lambda pair: (math.isnan(pair[0]["tau"]), -pair[0]["tau"], pair[0]["name"]))
    columns = zip(itertools.product(counts, models), x[0].tolist(), *(values for _, values in rows))
    places = [{"model": model, "language": language, "items": counts[language], "people": own,
               "values": values} for (language, model), own, *values in columns]
    return {"languages": list(counts), "items": counts, "measures": [row for row, _ in rows],
            "points": places}


def agreement_table(value: Mapping[str, Any]) -> str:
    """The measures as text, the best first."""
    lines = [["agreement with people", "tau", "95 %", "slope", "points", "paper's tau, slope"]]
    for row in value["measures"]:
        tau, low, high, slope = (number(row[name], ".3f") for name in ("tau", "low", "high", "slope"))
        paper = f"{row['paper']['tau']:.3f}, {row['paper']['slope']:.2f}" if row["paper"] else ""
        lines.append([f"{row['name']} ({row['definition']})"[:60], tau, f"{low} to {high}", slope,
                      str(row["points"]), paper])
    return aligned(lines)
