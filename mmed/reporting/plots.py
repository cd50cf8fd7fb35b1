"""Plots as inline SVG, drawn with matplotlib (extra `report`).

Text stays text in the SVG, so the browser's fonts show names in any script. Legends are HTML beside the plot;
each model or language has one colour on the whole page.
"""
from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mmed.utils.errors import printable, require_extra

COLOURS = ("#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834")
INK, MUTED, GREY, GRID, BAD = "#1d1f23", "#5c6168", "#9a9a96", "#dfddd6", "#b3261e"
WIDTH = 4.6  # inches; the page shows a plot at 330 to 460 pixels
MOST_POINTS = 240  # of a training curve
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "mmed", "text.parse_math": False, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "xtick.color": MUTED, "ytick.color": INK,
    "text.color": INK, "lines.linewidth": 1.6,
}
DASHED = {"color": INK, "lw": 1, "ls": (0, (3, 3))}
Axes = Any


def colour(index: int) -> str:
    return COLOURS[index] if index < len(COLOURS) else GREY


def svg(draw: Callable[[Axes], None], height: float, label: str, projection: str | None = None) -> Any:
    """Markup of what `draw` draws on a pair of axes. `height`: inches; `label`: for screen readers."""
    file = io.StringIO()
    with require_extra("matplotlib", "report").rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # only matplotlib's own font lacks it
        figure = require_extra("matplotlib.figure", "report").Figure((WIDTH, height), layout="constrained")
        draw(figure.add_subplot(projection=projection))
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    markup = require_extra("jinja2.utils", "report").markupsafe
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg"):])  # several plots share one page
    label = f'<svg role="img" aria-label="{markup.escape(label)}" '
    return markup.Markup(text.replace("<svg ", label, 1))


def bars(groups: Sequence[tuple[str, float | None, Sequence[tuple]]], label: str) -> Any:
    """Horizontal bars in %, with intervals; a dashed line is the chance level of a group.

    groups: (name, chance or None, [(colour, value, low or None, high or None)]).
    """
    def draw(axes: Axes) -> None:
        y, ticks = 0.0, []
        for _, chance, rows in groups:
            ticks.append(y + (len(rows) - 1) / 2)
            if chance is not None:
                axes.plot([chance, chance], [y - 0.5, y + len(rows) - 0.5], zorder=3, **DASHED)
            for shade, value, low, high in rows:
                axes.barh(y, value, 0.8, color=shade)
                if low is not None and high is not None:
                    axes.plot([low, high], [y, y], color=INK, lw=1, zorder=4)
                axes.text(max(value, high or 0) + 1.5, y, f"{value:.1f}", va="center", size=8, color=MUTED)
                y += 1
            y += 1
        axes.set_yticks(ticks, [printable(name) for name, *_ in groups])
        axes.set(ylim=(y - 1.2, -0.8), xlim=(0, 112), xticks=(0, 25, 50, 75, 100))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    return svg(draw, 0.5 + 0.17 * sum(len(rows) + 1 for _, _, rows in groups), label)


def curves(training: Sequence[tuple[float, float]],
           validation: Sequence[tuple[str, Sequence[tuple[float, float]], bool]], label: str) -> Any:
    """Loss over target tokens: training in grey; validation: (colour, [(tokens, loss)], whether it rose)."""
    def draw(axes: Axes) -> None:
        size = math.ceil(len(training) / MOST_POINTS)
        parts = [training[start:start + size] for start in range(0, len(training), size or 1)]
        means = [[sum(values) / len(values) for values in zip(*part)] for part in parts]
        axes.plot(*(zip(*means) if means else ([], [])), color=GREY, lw=1)
        for shade, points, rose in validation:
            axes.plot(*zip(*points), color=shade, marker=".")
            if rose:
                axes.annotate("ROSE", points[-1], (0, 7), textcoords="offset points", ha="right", size=8,
                              weight="bold", color=BAD)
        axes.set(xlabel="target tokens", ylabel="loss, nats per token")
        axes.xaxis.set_major_formatter(require_extra("matplotlib.ticker", "report").EngFormatter(sep=""))
        axes.margins(y=0.12)

    return svg(draw, 2.8, label)


def agreement_dots(rows: Sequence[tuple[str, float, float, float]], reference: float | None) -> Any:
    """(name, tau, low, high) of each metric; dashed: one rater against the others."""
    def draw(axes: Axes) -> None:
        for y, (_, tau, low, high) in enumerate(rows):
            axes.plot([low, high], [y, y], color=COLOURS[0])
            axes.plot(tau, y, "o", color=COLOURS[0])
        if reference is not None:
            axes.axvline(reference, **DASHED)
        axes.set_yticks(range(len(rows)), [printable(name) for name, *_ in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="tau")

    return svg(draw, 0.6 + 0.24 * len(rows), "Kendall's tau of each metric with people")


def scatter(points: Sequence[tuple[str, float, float]], slope: float | None, limits: tuple[float, float],
            label: str) -> Any:
    """(colour, points by people, points by a metric); solid: least-squares line; dashed: equal points."""
    def draw(axes: Axes) -> None:
        axes.plot(limits, limits, **DASHED)
        for shade, x, y in points:
            axes.plot(x, y, "o", color=shade, alpha=0.85)
        if slope is not None:
            _, xs, ys = zip(*points)
            centre_x, centre_y = sum(xs) / len(xs), sum(ys) / len(ys)
            ends = min(xs), max(xs)
            axes.plot(ends, [centre_y + slope * (x - centre_x) for x in ends], color=INK)
        axes.set(xlim=limits, ylim=limits, xlabel="people", ylabel="metric", aspect="equal")

    return svg(draw, 3.2, label)
