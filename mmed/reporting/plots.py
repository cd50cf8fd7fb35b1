"""Plots of the report as inline SVG, drawn with matplotlib (extra `report`).

In: numbers and names. Out: markup of one <svg>, which the page scales to its column. Text stays text in the
SVG, so the browser's fonts show names in any script. Legends are HTML, beside the plot; models and languages
keep their colour.
"""
from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmed.utils.errors import printable, require_extra

COLOURS = ("#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834")
INK, MUTED, GREY, GRID = "#1d1f23", "#5c6168", "#9a9a96", "#dfddd6"
WIDTH = 4.6  # inches; the page shows a plot at 330 to 460 pixels
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mmed", "text.parse_math": False, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "xtick.color": MUTED, "ytick.color": INK,
    "text.color": INK, "lines.linewidth": 1.6,
}


def colour(index: int) -> str:
    return COLOURS[index] if index < len(COLOURS) else GREY


class Plot:
    """A figure with one pair of axes. As a context manager it sets the style; afterwards `svg` is its
    markup.
    """

    def __init__(self, height: float, label: str, projection: str | None = None):
        self.label, self.svg = label, ""
        self._style = require_extra("matplotlib", "report").rc_context(STYLE)
        self._style.__enter__()
        self._figure = require_extra("matplotlib.figure", "report").Figure((WIDTH, height),
                                                                           layout="constrained")
        self.axes = self._figure.add_subplot(projection=projection)

    def __enter__(self) -> Any:
        return self.axes

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.svg = self._markup()
        self._style.__exit__(None, None, None)

    def _markup(self) -> Any:
        file = io.StringIO()
        with warnings.catch_warnings():  # matplotlib's own font lacks a script; the browser's fonts have it
            warnings.filterwarnings("ignore", message="Glyph")
            self._figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
        svg = re.sub(r'<g id="[^"]*">', "<g>", svg[svg.index("<svg"):])  # several plots share one page
        markup = require_extra("jinja2.utils", "report").markupsafe
        return markup.Markup(svg.replace("<svg ",
                                         f'<svg role="img" aria-label="{markup.escape(self.label)}" ', 1))


def bars(groups: Sequence[tuple[str, float | None, Sequence[tuple]]], label: str) -> Any:
    """Horizontal bars in %, with intervals; a dashed line is the chance level of a group.

    groups: (name, chance or None, [(colour, value, low or None, high or None)]).
    """
    lines = sum(len(rows) + 1 for _, _, rows in groups)
    plot = Plot(0.5 + 0.17 * lines, label)
    with plot as axes:
        y, ticks = 0.0, []
        for _, chance, rows in groups:
            ticks.append(y + (len(rows) - 1) / 2)
            if chance is not None:
                axes.plot([chance, chance], [y - 0.5, y + len(rows) - 0.5], color=INK, lw=1, ls=(0, (3, 3)),
                          zorder=3)
            for shade, value, low, high in rows:
                axes.barh(y, value, 0.8, color=shade)
                if low is not None and high is not None:
                    axes.plot([low, high], [y, y], color=INK, lw=1, zorder=4)
                end = value if high is None else max(value, high)
                axes.text(end + 1.5, y, f"{value:.1f}", va="center", size=8, color=MUTED, clip_on=False)
                y += 1
            y += 1
        axes.set_yticks(ticks, [printable(name) for name, *_ in groups])
        axes.set(ylim=(y - 1.2, -0.8), xlim=(0, 108), xticks=(0, 25, 50, 75, 100))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return plot.svg


def profile(axes_names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], chance: Sequence[float],
            label: str) -> Any:
    """A closed line per (colour, values) over at least three languages, 0 to 100 % outwards; dashed:
    chance.
    """
    plot = Plot(3.3, label, projection="polar")
    with plot as axes:
        angles = [2 * math.pi * place / len(axes_names) for place in range(len(axes_names) + 1)]
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        axes.plot(angles, [*chance, chance[0]], color=INK, lw=1, ls=(0, (3, 3)))
        for shade, values in series:
            axes.plot(angles, [*values, values[0]], color=shade, marker=".")
        axes.set_xticks(angles[:-1], [printable(name) for name in axes_names])
        axes.tick_params(axis="x", pad=8)
        axes.set_rlim(0, 100)
        axes.set_rticks((25, 50, 75, 100))
    return plot.svg


def curves(training: Sequence[tuple[float, float]],
           validation: Sequence[tuple[str, Sequence[tuple[float, float]], bool]], label: str) -> Any:
    """Training loss in grey, and the validation loss of each language: (colour, [(tokens, loss)], whether it
    rose).
    """
    plot = Plot(2.8, label)
    with plot as axes:
        if training:
            axes.plot(*zip(*thin(training)), color=GREY, lw=1)
        for shade, points, rose in validation:
            axes.plot(*zip(*points), color=shade, marker=".")
            if rose:
                axes.annotate("ROSE", points[-1], (0, 7), textcoords="offset points", ha="right", size=8,
                              weight="bold", color="#b3261e")
        axes.set(xlabel="target tokens", ylabel="loss, nats per token")
        axes.xaxis.set_major_formatter(require_extra("matplotlib.ticker", "report").EngFormatter(sep=""))
        axes.margins(y=0.12)
    return plot.svg


def thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most `most` points: the mean of each run of neighbours.

    >>> thin([(0, 1), (1, 3), (2, 5), (3, 5)], 2)
    [(0.5, 2.0), (2.5, 5.0)]
    """
    size = math.ceil(len(points) / most)
    parts = [points[start:start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def agreement_dots(rows: Sequence[tuple[str, float, float | None, float | None]],
                   reference: float | None) -> Any:
    """Kendall's tau of each metric, (name, tau, low, high), with its interval; dashed: one rater against the
    others.
    """
    plot = Plot(0.6 + 0.24 * len(rows), "Kendall's tau of each metric with people")
    with plot as axes:
        for y, (_, tau, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colour(0))
            axes.plot(tau, y, "o", color=colour(0))
        if reference is not None:
            axes.axvline(reference, color=INK, lw=1, ls=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), [printable(name) for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return plot.svg


def scatter(models: Sequence[str], points: Sequence[tuple[Mapping[str, Any], float]], slope: float | None,
            limits: tuple[float, float], label: str) -> Any:
    """Mean points by a metric (up) against people (across). Solid: least-squares line; dashed: equal
    points.
    """
    plot = Plot(3.2, label)
    with plot as axes:
        axes.plot(limits, limits, color=MUTED, lw=1, ls=(0, (3, 4)))
        for point, value in points:
            axes.plot(point["people"], value, "o", color=colour(models.index(point["model"])), alpha=0.85)
        if slope is not None and points:
            centre = [sum(values) / len(points)
                      for values in zip(*((point["people"], y) for point, y in points))]
            across = [min(point["people"] for point, _ in points),
                      max(point["people"] for point, _ in points)]
            axes.plot(across, [centre[1] + slope * (x - centre[0]) for x in across], color=INK)
        axes.set(xlim=limits, ylim=limits, xlabel="people", ylabel="metric", aspect="equal")
    return plot.svg
