"""Plots as hand-made inline SVG: bars with intervals, curves, stacked shares, a matrix of counts, a funnel, points.

In: numbers and names. Out: one <svg> as text, WIDTH units wide, which the page scales. Colours and fonts are the page's: shapes
carry class names only (c0..c7 are the series, mmed/reporting/report.html gives each its light and dark colour), so a plot holds no style
and no address, and every name in it is escaped. A shape has a <title>, which browsers show on hovering.
"""
from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 360  # units; the page shows a plot at about this many pixels, on a phone too, so that text keeps its size
COLOURS = 8  # classes c0..c7; what comes after is grey


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def colour(index: int) -> str:
    return f"c{index}" if index < COLOURS else "grey"


def svg(height: float, label: str, body: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">'
            + "".join(body) + "</svg>")


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(words)}</text>'


def fit(name: str, most: int) -> str:
    """A label that has room for `most` characters.

    >>> fit("Japanese", 8), fit("Japanese, answer only", 10)
    ('Japanese', 'Japanese,…')
    """
    return name if len(name) <= most else name[:most - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "", more: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{css}"{more}'
    return f"{shape}><title>{escape(title)}</title></rect>" if title else shape + "/>"


def bars(groups: Sequence[tuple[str, str, float | None, Sequence[tuple[int, str, float, float | None, float | None]]]], label: str) -> str:
    """Horizontal bars, 0 to 100 %, with their intervals; a dashed line is the chance level of a group.

    groups: (name, remark, chance or None, [(colour, name, value, low, high)]), all numbers in %.
    """
    bar, gap, head, right = 11, 4, 20, 318
    scale = right / 100
    body, y = [], 4.0
    top = y
    marks = []
    for name, remark, chance, rows in groups:
        body += [text(0, y + 13, name, "label"), text(WIDTH, y + 13, remark, "small", "end")]
        y += head
        start = y
        for index, series, value, low, high in rows:
            interval = "" if low is None or high is None else f" [{low:.1f} to {high:.1f}]"
            body.append(rect(0, y, value * scale, bar, f"bar {colour(index)}", f"{name}, {series}: {value:.1f} %{interval}"))
            end = value
            if interval:
                middle, end = y + bar / 2, max(value, high)
                marks += [line(low * scale, middle, high * scale, middle, "whisker"), line(low * scale, middle - 3, low * scale, middle + 3, "whisker"),
                          line(high * scale, middle - 3, high * scale, middle + 3, "whisker")]
            marks.append(text(end * scale + 5, y + bar - 2, f"{value:.1f}", "small"))
            y += bar + gap
        if chance is not None:
            marks.append(line(chance * scale, start - 3, chance * scale, y - gap + 3, "chance"))
        y += 6
    grid = []
    for share in (0, 25, 50, 75, 100):
        grid += [line(share * scale, top, share * scale, y, "grid"),
                 text(share * scale, y + 14, f"{share}" + (" %" if share == 100 else ""), "small", "start" if share == 0 else "middle")]
    return svg(y + 20, label, grid + body + marks)


def radar(axes: Sequence[str], series: Sequence[tuple[int, str, Sequence[float]]], chance: Sequence[float] | None, label: str) -> str:
    """A closed line for each series over at least three axes, 0 to 100 % from the middle outwards; the dashed one is the chance level."""
    middle, centre, radius = WIDTH / 2, 128.0, 96.0

    def at(axis: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        return middle + radius * value / 100 * math.cos(angle), centre + radius * value / 100 * math.sin(angle)

    def ring(values: Sequence[float], css: str, title: str = "") -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(axis, value) for axis, value in enumerate(values)))
        return f'<polygon points="{points}" class="{css}">' + (f"<title>{escape(title)}</title>" if title else "") + "</polygon>"

    body = [ring([share] * len(axes), "grid ring") for share in (25, 50, 75, 100)]
    for axis, name in enumerate(axes):
        (x, y), (end_x, end_y) = at(axis, 112), at(axis, 100)
        anchor = "middle" if abs(x - middle) < 8 else "start" if x > middle else "end"
        body += [line(middle, centre, end_x, end_y, "grid"), text(x, y + 4, fit(name, 14), "label", anchor)]
    body += [text(middle + 3, at(0, share)[1] + 10, share, "small") for share in (50, 100)]
    if chance is not None:
        body.append(ring(chance, "chance ring", "chance level: " + ", ".join(f"{name} {value:.1f} %" for name, value in zip(axes, chance))))
    for index, name, values in series:
        body.append(ring(values, f"curve ring {colour(index)}", f"{name}: " + ", ".join(f"{axis} {value:.1f} %" for axis, value in zip(axes, values))))
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" class="dot {colour(index)}"><title>{escape(f"{name}, {axes[axis]}: {value:.1f} %")}</title></circle>'
                 for axis, value in enumerate(values) for x, y in [at(axis, value)]]
    return svg(2 * centre, label, body)


def dots(rows: Sequence[tuple[str, float, float | None, float | None]], mark: float | None, label: str) -> str:
    """A dot with its interval for each row, up to 1; a dashed line at `mark`. rows: (name, value, low, high), all within -1..1."""
    ends = [end for _, value, low, high in rows for end in (value, low, high) if end is not None] + ([] if mark is None else [mark])
    low_end, right = max(-1.0, math.floor(5 * min(0.0, *ends)) / 5), WIDTH - 8.0

    def at(value: float) -> float:
        return 8 + (value - low_end) / (1 - low_end) * (right - 8)

    body, marks, y = [], [], 4.0
    for name, value, low, high in rows:
        interval = "" if low is None or high is None else f" [{low:.3f} to {high:.3f}]"
        body += [text(14, y + 12, fit(name, 44), "label"), text(WIDTH, y + 12, f"{value:.3f}", "small", "end")]
        if interval:
            marks.append(line(at(low), y + 23, at(high), y + 23, "whisker"))
        marks.append(f'<circle cx="{at(value):.1f}" cy="{y + 23:.1f}" r="4" class="dot c0"><title>{escape(f"{name}: {value:.3f}{interval}")}</title></circle>')
        y += 34
    grid = []
    for tick in ticks(low_end, 1.0, 5):
        grid += [line(at(tick), 4, at(tick), y, "axis" if tick == 0 else "grid"), text(at(tick), y + 14, f"{tick:g}", "small", "middle")]
    if mark is not None:
        marks.append(line(at(mark), 4, at(mark), y, "chance"))
    return svg(y + 20, label, grid + body + marks)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between low and high.

    >>> ticks(0, 10), ticks(1.2, 3.1), ticks(0, 2_400_000, 4)
    ([0, 2, 4, 6, 8, 10], [1.5, 2.0, 2.5, 3.0], [0, 1000000, 2000000])
    """
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """
    >>> short(2_400_000), short(15_000), short(0), short(25.5e9), short(1.5)
    ('2.4M', '15k', '0', '25.5B', '1.5')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most `most` points: the mean of each run of neighbours.

    >>> thin([(0, 1), (1, 3), (2, 5), (3, 5)], 2)
    [(0.5, 2.0), (2.5, 5.0)]
    """
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    parts = [points[start:start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def curves(series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], x_label: str, y_label: str, label: str) -> str:
    """Lines with their names at the right end. series: (css class, name, [(x, y)]); "dots" in the class marks the points."""
    points = [point for _, _, part in series for point in part]
    left, right, top, bottom = 34.0, WIDTH - 66.0, 22.0, 196.0
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    x_low = 0.0 if x_low < x_high / 4 else x_low
    margin = (y_high - y_low) * 0.05 or max(abs(y_high), 1) * 0.1
    y_low, y_high = y_low - margin, y_high + margin

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x_low) / ((x_high - x_low) or 1) * (right - left), bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    body = [text(0, 12, y_label, "small"), text(right, bottom + 30, x_label, "small", "end")]
    for value in ticks(y_low, y_high):
        y = at(x_low, value)[1]
        body += [line(left, y, right, y, "grid"), text(left - 5, y + 3.5, short(value), "small", "end")]
    for value in ticks(x_low, x_high, 4):
        x = at(value, y_low)[0]
        body += [line(x, bottom, x, bottom + 4, "axis"), text(x, bottom + 15, short(value), "small", "middle")]
    body.append(line(left, bottom, right, bottom, "axis"))
    names = []
    for css, name, part in series:
        places = [at(x, y) for x, y in part]
        body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" class="curve {css}"/>')
        if "dots" in css or len(places) == 1:
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" class="dot {css}"><title>{escape(f"{name}: {value:.3f} at {short(where)}")}'
                     "</title></circle>" for (x, y), (where, value) in zip(places, part)]
        names.append((places[-1][1], css, name))
    y = top - 11.0
    placed = []
    for wanted, css, name in sorted(names):  # from the top; names that would lie on each other move down ...
        y = max(wanted, y + 11)
        placed.append([y, css, name])
    low = bottom + 11.0
    for entry in reversed(placed):  # ... and those pushed out below move up again
        entry[0] = low = min(entry[0], low - 11)
    for y, css, name in placed:
        body += [f'<circle cx="{right + 7:.1f}" cy="{y:.1f}" r="3" class="dot {css}"/>',
                 text(right + 13, y + 3.5, fit(name, 10), "small")]
    return svg(bottom + 36, label, body)


def shares(rows: Sequence[tuple[str, Mapping[str, float]]], classes: Mapping[str, str], label: str) -> str:
    """Stacked bars that fill the width: (name, {part: share of 1}); the share is written in a part that has room for it."""
    body, y = [], 0.0
    for name, parts in rows:
        body.append(text(0, y + 13, fit(name, 54), "label"))
        y += 19
        x = 0.0
        for part, share in parts.items():
            width = WIDTH * share
            if width > 0:
                body.append(rect(x, y, max(width - 1, 0.5), 15, f"share {classes[part]}", f"{name}: {part} {100 * share:.1f} %"))
                if width > 40:
                    body.append(text(x + 5, y + 11.5, f"{100 * share:.1f} %", f"small on {classes[part]}"))
            x += width
        y += 25
    return svg(y, label, body)


def matrix(rows: Sequence[str], columns: Sequence[str], counts: Mapping[tuple[str, str], int], label: str, corner: str) -> str:
    """Counts by row and column; the darker a cell, the larger its share of its row. Where row = column it is framed."""
    left, top = 34.0, 34.0
    size = min(52.0, (WIDTH - left) / max(len(columns), 1))
    tall = min(size, 30.0)
    body = [text(0, 12, corner, "small")]
    body += [text(left + size * (i + 0.5), top - 6, name, "small", "middle") for i, name in enumerate(columns)]
    for j, row in enumerate(rows):
        y = top + j * tall
        total = sum(counts.get((row, column), 0) for column in columns) or 1
        body.append(text(left - 12, y + tall / 2 + 4, row, "label", "end"))
        for i, column in enumerate(columns):
            found = counts.get((row, column), 0)
            title = f"right: {row}, answered: {column}: {found:,} ({100 * found / total:.0f} % of {total:,})"
            body.append(rect(left + i * size, y, size - 1.5, tall - 1.5, "cell right" if row == column else "cell", title,
                             f' fill-opacity="{0.04 + 0.66 * found / total:.2f}"'))
            if found:
                body.append(text(left + (i + 0.5) * size, y + tall / 2 + 3.5, short(found), "small ink", "middle"))
    return svg(top + len(rows) * tall + 4, label, body)


def funnel(rows: Sequence[tuple[str, int, int]], label: str) -> str:
    """(place, documents in, documents kept): a pale bar as long as what came in, a full one in it for what was kept."""
    most = max((came for _, came, _ in rows), default=0) or 1
    body, y = [], 0.0
    for name, came, kept in rows:
        body += [text(0, y + 13, name if len(name) <= 33 else "…" + name[-32:], "label"),
                 text(WIDTH, y + 13, f"{came:,} → {kept:,}  ({100 * kept / came:.1f} %)" if came else "empty", "small", "end")]
        body += [rect(0, y + 19, WIDTH * came / most, 12, "came", f"{name}: {came:,} in"),
                 rect(0, y + 19, WIDTH * kept / most, 12, "bar c0", f"{name}: {kept:,} kept")]
        y += 40
    return svg(y, label, body)


def amounts(rows: Sequence[tuple[str, Mapping[str, int]]], classes: Mapping[str, str], label: str) -> str:
    """Stacked bars on one scale: (name, {part: amount})."""
    most = max((sum(parts.values()) for _, parts in rows), default=0) or 1
    body, y = [], 0.0
    for name, parts in rows:
        body += [text(0, y + 13, fit(name, 40), "label"), text(WIDTH, y + 13, f"{sum(parts.values()):,}", "small", "end")]
        x = 0.0
        for part, amount in parts.items():
            width = WIDTH * amount / most
            body.append(rect(x, y + 19, max(width - 1, 0.5), 12, f"bar {classes[part]}", f"{name}, {part}: {amount:,}"))
            x += width
        y += 40
    return svg(y, label, body)


def scatter(models: Sequence[str], drawn: Sequence[tuple[Mapping[str, Any], float]], row: Mapping[str, Any], low: float, high: float) -> str:
    """One panel; all panels have the same axes, so that slopes can be compared by eye."""
    left, right, top, bottom = 26.0, WIDTH - 8.0, 8.0, 300.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * (right - left), bottom - (y - low) / (high - low) * (bottom - top)

    body = []
    for tick in ticks(low, high, 6):
        x, y = at(tick, tick)
        body += [line(x, top, x, bottom, "grid"), line(left, y, right, y, "grid"), text(x, bottom + 15, f"{tick:g}", "small", "middle"), text(left - 6, y + 4, f"{tick:g}", "small", "end")]
    body.append(line(*at(low, low), *at(high, high), "same"))
    if row["slope"] is not None and drawn:
        x_mean, y_mean = sum(point["people"] for point, _ in drawn) / len(drawn), sum(y for _, y in drawn) / len(drawn)
        ends = [min(point["people"] for point, _ in drawn), max(point["people"] for point, _ in drawn)]
        ends = [_inside(x, x_mean, y_mean, row["slope"], low, high) for x in ends]
        body.append(line(*at(*ends[0]), *at(*ends[1]), "fit"))
    for point, y in drawn:
        x_at, y_at = at(point["people"], y)
        words = f"{point['model']}, {point['language']}: people {point['people']:.2f}, {row['name']} {y:.2f} ({point['items']} items)"
        body.append(f'<circle cx="{x_at:.1f}" cy="{y_at:.1f}" r="5" class="dot {colour(models.index(point["model"]))}"><title>{escape(words)}</title></circle>')
    return svg(bottom + 22, f"{row['name']} against people", body)


def _inside(x: float, x_mean: float, y_mean: float, slope: float, low: float, high: float) -> tuple[float, float]:
    """The point of the line at x, moved along it to where it is still in the panel."""
    y = y_mean + slope * (x - x_mean)
    if slope and not low <= y <= high:
        y = min(max(y, low), high)
        x = x_mean + (y - y_mean) / slope
    return x, y
