"""The agreement study (agreement.json of `mmed.human_eval.rating`) as values for agreement_section.html."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed.reporting import plots
from mmed.utils.errors import UserError
from mmed.utils.files import read_json


def read_agreement(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    path = path / "agreement.json" if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != "mmed agreement":
        raise UserError(f"{path}: not a study of `python -m mmed.human_eval.rating agreement`")
    return value


def study_values(study: Mapping[str, Any]) -> dict[str, Any]:
    """The study with its plots, labels of its metrics, and the mean points of each model by each of them."""
    measures, points, models = study["measures"], study["points"], study["models"]
    names = [row["name"] for row in measures]
    labels = [row["name"] if names.count(row["name"]) == 1 else f"{row['name']} ({row['definition']})"
              for row in measures]
    others = study["people"]["one_against_others"]
    dots = [(label, row["tau"], row["low"], row["high"]) for label, row in zip(labels, measures)
            if None not in (row["tau"], row["low"])]
    columns = [[point["people"] for point in points], *zip(*(point["values"] for point in points))]
    given = [value for column in columns for value in column if value is not None]
    limits = math.floor(min(given)) - 0.1, math.ceil(max(given)) + 0.1
    shades = [plots.colour(models.index(point["model"])) for point in points]
    panels = []
    for label, row, column in zip(labels, measures, columns[1:]):
        drawn = [(shade, x, y) for shade, x, y in zip(shades, columns[0], column) if y is not None]
        panels.append((label, row, plots.scatter(drawn, row["slope"], limits, f"{label} against people")))
    averages = [(label, [_mean([value for point, value in zip(points, column) if point["model"] == model])
                         for model in models]) for label, column in zip(["People", *labels], columns)]
    return {**study, "rows": list(zip(labels, measures)), "panels": panels, "averages": averages,
            "overview": plots.agreement_dots(dots, others and others["tau"]) if dots else "",
            "others": others,
            "model_legend": [(plots.colour(index), model) for index, model in enumerate(models)]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
