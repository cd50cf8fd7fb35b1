"""The agreement study (agreement.json of `mmed.human_eval.rating`) as values for agreement_section.html."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmed.metrics import mean
from mmed.reporting import plots
from mmed.utils.errors import UserError
from mmed.utils.files import read_json
from mmed.utils.untrusted import reading


def read_study(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    path = path / "agreement.json" if path.is_dir() else path
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != "mmed agreement":
        raise UserError(f"{path}: not a study of `python -m mmed.human_eval.rating agreement`")
    with reading(path):
        return study_values(value)


def study_values(study: Mapping[str, Any]) -> dict[str, Any]:
    """The study with a plot for each measure, and the mean points of each model by people and measures."""
    points, models = study["points"], study["models"]
    labels = ["People", *(f"{row['name']} ({row['definition']})" for row in study["measures"])]
    columns = [[point["people"] for point in points], *zip(*(point["values"] for point in points))]
    shades = [plots.colour(models.index(point["model"])) for point in points]
    panels = [(label, row, plots.scatter(list(zip(shades, columns[0], column)), row["slope"], len(models),
                                         f"{label} against people"))
              for label, row, column in zip(labels[1:], study["measures"], columns[1:])]
    averages = [(label, [mean(value for point, value in zip(points, column) if point["model"] == model)
                         for model in models]) for label, column in zip(labels, columns)]
    return {**study, "panels": panels, "averages": averages,
            "model_legend": [(plots.colour(index), model) for index, model in enumerate(models)]}
