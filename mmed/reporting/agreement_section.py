"""Which metric agrees with people, as a section of a report: what `python -m mmed.human_eval.rating agreement` found.

In: an agreement.json, every number of it checked. Out: a section with tau of each metric and its interval, and a panel a metric of its
points against those of people. The study's own page (mmed/human_eval/agreement_page.py) has the tables and the raters among themselves.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mmed.reporting import plots
from mmed.reporting.plots import escape, scatter
from mmed.reporting.sections import figure, legend, note, section
from mmed.utils.errors import UserError
from mmed.utils.files import read_json
from mmed.utils.untrusted import as_name, count, number

MEASURES, POINTS, MODELS = 60, 5_000, 100  # of one study, at most


def read_agreement(path: str | Path) -> dict[str, Any]:
    """A copy of a study that holds checked numbers and plain names only."""
    path = Path(path)
    path = path / "agreement.json" if path.is_dir() else path
    if path.is_file() and path.stat().st_size > 2 ** 26:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a study of agreement does not take that many")
    value = read_json(path)

    def maybe(entry: Any, low: float = -math.inf, high: float = math.inf) -> float | None:
        return None if entry is None else number(entry, low, high)

    try:
        if value["format"] != "mmed agreement":
            raise ValueError(f"its format is {as_name(value['format'])!r}")
        models = [as_name(model) for model in value["models"]]
        measures = [{"name": as_name(row["name"]), "definition": as_name(row["definition"]), "kind": as_name(row["kind"]), "slope": maybe(row["slope"])}
                    | {key: maybe(row[key], -1, 1) for key in ("tau", "low", "high")} for row in value["measures"]]
        points = [{"model": models[models.index(as_name(point["model"]))], "language": as_name(point["language"]), "items": count(point["items"]),
                   "people": number(point["people"], 0), "values": [maybe(one, 0) for one in point["values"]]} for point in value["points"]]
        if not measures or not points or max(len(measures) / MEASURES, len(points) / POINTS, len(models) / MODELS) > 1:
            raise ValueError(f"{len(measures):,} metrics, {len(points):,} points, {len(models):,} models")
        if any(len(point["values"]) != len(measures) for point in points):
            raise ValueError("a point without a value for each metric")
        others = value["people"]["one_against_others"]
        return {"models": models, "measures": measures, "points": points, "items": sum(count(n) for n in value["items"].values()),
                "languages": [as_name(name) for name in value["languages"]], "others": number(others["tau"], -1, 1) if others else None}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: not a study of `python -m mmed.human_eval.rating agreement` ({type(error).__name__}: {as_name(error)})") from None


def agreement_section(study: dict[str, Any] | None) -> str:
    if study is None:
        return ""
    rows = [(f"{row['name']} ({row['definition']})", row["tau"], row["low"], row["high"]) for row in study["measures"] if row["tau"] is not None]
    numbers = [one for point in study["points"] for one in (point["people"], *point["values"]) if one is not None]
    low, high = math.floor(2 * min(numbers)) / 2, math.ceil(2 * max(numbers)) / 2
    panels = []
    for place, row in enumerate(study["measures"]):
        drawn = [(point, point["values"][place]) for point in study["points"] if point["values"][place] is not None]
        caption = "tau " + ("–" if row["tau"] is None else f"{row['tau']:.3f}") + ", slope " + ("–" if row["slope"] is None else f"{row['slope']:.2f}")
        panels.append(figure(f"{row['name']} ({row['definition']})", scatter(study["models"], drawn, row, low, max(high, low + 1)), escape(caption)))
    words = (f"{len(study['models'])} models, {study['items']:,} items in {', '.join(study['languages'])}, ranked by people without knowing whose text they "
             "read, and by each metric. Kendall's tau over models and languages, with its 95 % bootstrap interval.")
    if study["others"] is not None:
        words += f" Dashed: one rater against the others ({study['others']:.3f}), what a metric can hope for."
    panel_words = "Mean points by people (across) and by the metric (up), a dot for each model and language; solid: least-squares line, dashed: equal points."
    overview = plots.dots(rows, study["others"], "Kendall's tau of each metric with people") if rows else ""
    return section("agreement", "Which metric agrees with people?", note(words), f'<div class="plots">{figure("tau with people", overview)}</div>' if rows else "",
                   f"<h3>Point by point</h3>{note(panel_words)}", legend([(plots.colour(i), model) for i, model in enumerate(study["models"])]),
                   f'<div class="plots">{"".join(panels)}</div>')
