"""Plots as inline SVG, drawn with matplotlib (extra `report`).

Text stays text in the SVG, so the browser's fonts show names in any script. Legends are HTML beside the plot;
each model or language has one colour on the whole page.
"""
from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import Any

from mmed.evaluation.summary import BINS
from mmed.metrics import mean
from mmed.utils.errors import printable, require_extra

COLOURS = ("#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834",
           "#7fb2ec", "#8a5a2b", "#c7d93d", "#5d7a8c", "#b39ddb", "#7a1f1f", "#00a3a3", "#f2b8a0")
INK, MUTED, GREY, GRID = "#1d1f23", "#5c6168", "#9a9a96", "#dfddd6"
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


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in the order of their first appearance; grey when there are no more colours."""
    return dict(zip(dict.fromkeys(names), chain(COLOURS, repeat(GREY))))


def svg(draw: Callable[[Axes], None], height: float, label: str) -> Any:
    """Markup of what `draw` draws on a pair of axes. `height`: inches; `label`: for screen readers."""
    file = io.StringIO()
    with require_extra("matplotlib", "report").rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # only matplotlib's own font lacks it
        figure = require_extra("matplotlib.figure", "report").Figure((WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    markup = require_extra("jinja2.utils", "report").markupsafe
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg"):])  # several plots share one page
    label = f'<svg role="img" aria-label="{markup.escape(label)}" '
    return markup.Markup(text.replace("<svg ", label, 1))


def bars(groups: Sequence[tuple[str, float, Sequence[tuple]]], label: str) -> Any:
    """Horizontal bars in %; groups: (name, chance, [(colour, value, low or None, high or None)])."""
    def draw(axes: Axes) -> None:
        y, ticks = 0.0, []
        for _, chance, rows in groups:
            ticks.append(y + (len(rows) - 1) / 2)
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


def reliability(bins: Sequence[dict[str, Any]], label: str) -> Any:
    """Accuracy against confidence, with the number of answers in each bin; dashed: equal."""
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **DASHED)
        for part in bins:
            middle = (part["bin"] + 0.5) / BINS
            axes.bar(middle, part["accuracy"], 0.9 / BINS, color=COLOURS[0], alpha=0.35)
            axes.text(middle, 1.03, f"{part['n']:,}", size=6, color=MUTED, ha="center")
        axes.plot(*zip(*((part["confidence"], part["accuracy"]) for part in bins)), "o-", color=COLOURS[0])
        axes.set(xlim=(0, 1), ylim=(0, 1.1), xlabel="confidence", ylabel="accuracy")

    return svg(draw, 2.6, label)


def curves(training: Sequence[tuple[float, float]],
           validation: Sequence[tuple[str, Sequence[tuple[float, float]]]], label: str) -> Any:
    """Loss over target tokens: training in grey; validation: (colour, [(tokens, loss)])."""
    def draw(axes: Axes) -> None:
        size = math.ceil(len(training) / MOST_POINTS) or 1
        parts = [training[start:start + size] for start in range(0, len(training), size)]
        axes.plot([part[0][0] for part in parts], [mean(loss for _, loss in part) for part in parts],
                  color=GREY, lw=1)
        for shade, points in validation:
            axes.plot(*zip(*points), color=shade, marker=".")
        axes.set(xlabel="target tokens", ylabel="loss, nats per token")
        axes.xaxis.set_major_formatter(require_extra("matplotlib.ticker", "report").EngFormatter(sep=""))

    return svg(draw, 2.8, label)


def scatter(points: Sequence[tuple[str, float, float]], slope: float | None, most: int, label: str) -> Any:
    """(colour, points by people, by a metric), 1 to `most`; solid: least-squares line; dashed: equal."""
    def draw(axes: Axes) -> None:
        limits = 0.9, most + 0.1
        axes.plot(limits, limits, **DASHED)
        shades, xs, ys = zip(*points)
        axes.scatter(xs, ys, color=shades, alpha=0.85)
        if slope is not None:
            axes.axline((mean(xs), mean(ys)), slope=slope, color=INK)
        axes.set(xlim=limits, ylim=limits, xlabel="people", ylabel="metric", aspect="equal")

    return svg(draw, 3.2, label)
