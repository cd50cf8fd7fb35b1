"""Which metric agrees with people: the agreement study as values for agreement_section.html.

In: the agreement.json that `python -m mmed.human_eval.rating agreement` wrote. Out: table rows and plots,
used by the report and by the study's own page.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmed.reporting import plots
from mmed.utils.errors import UserError
from mmed.utils.files import read_json


def read_agreement(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    path = path / "agreement.json" if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != "mmed agreement" or not value.get("points"):
        raise UserError(f"{path}: not a study of `python -m mmed.human_eval.rating agreement`")
    return value


def study_values(study: Mapping[str, Any]) -> dict[str, Any]:
    """The study with its plots, the label of each metric, and the mean points of each model by each
    metric.
    """
    measures, points, models = study["measures"], study["points"], study["models"]
    twins = [[row["name"] for row in measures].count(row["name"]) > 1 for row in measures]
    labels = [f"{row['name']} ({row['definition']})" if twin else row["name"] for row,
              twin in zip(measures, twins)]
    others = study["people"]["one_against_others"]
    rows = [(label, row["tau"], row["low"], row["high"]) for label, row in zip(labels, measures)
            if row["tau"] is not None]
    given = [value for point in points for value in (point["people"], *point["values"]) if value is not None]
    limits = math.floor(2 * min(given)) / 2 - 0.1, max(math.ceil(2 * max(given)) / 2, min(given) + 1) + 0.1
    panels = []
    for place, (label, row) in enumerate(zip(labels, measures)):
        drawn = [(point, point["values"][place]) for point in points if point["values"][place] is not None]
        panels.append((label, row, plots.scatter(models, drawn, row["slope"], limits,
                                                 f"{label} against people")))
    averages = []
    for place, label in enumerate(["People", *labels]):
        averages.append((label, [_mean([(point["people"], *point["values"])[place] for point in points
                                        if point["model"] == model]) for model in models]))
    return {**study, "rows": list(zip(labels, measures)), "panels": panels, "averages": averages,
            "others": others,
            "overview": plots.agreement_dots(rows, others["tau"] if others else None) if rows else "",
            "model_legend": [(plots.colour(index), model) for index, model in enumerate(models)]}


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None
