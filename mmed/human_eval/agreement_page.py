"""The page of a study of agreement: which metric agrees with people, as table and plots, in one file that loads nothing.

In: the value of agreement.json (mmed/human_eval/agreement.py). Out: HTML, by mmed/reporting/page.py. Names from files are escaped.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed.reporting.page import fill_page
from mmed.reporting.plots import WIDTH, colour, escape, fit, line, scatter, svg, text, ticks


def number(value: float | None, form: str = ".3f") -> str:
    """
    >>> number(-0.25), number(None)
    ('−0.250', '–')
    """
    return "–" if value is None else format(value, form).replace("-", "−")


def agreement_page(value: Mapping[str, Any], title: str) -> str:
    body = [f"<h1>{escape(title)}</h1>", _lead(value), _remarks(value), _overview(value), _table(value), _scatters(value), _averages(value), _raters(value),
            "<footer>Made by mmed.human_eval.rating. This page is complete in itself and loads nothing.</footer>"]
    return fill_page(Path(__file__).with_name("agreement.html"), title=title, body="\n".join(part for part in body if part))


def _lead(value: Mapping[str, Any]) -> str:
    measures, points = value["measures"], len(value["points"])
    sizes = value["items"]
    words = f"{len(value['models'])} models, {sum(sizes.values()):,} items in {', '.join(value['languages'])}: {points} points, one for each model and language."
    if measures and measures[0]["tau"] is not None:
        best = measures[0]
        words += f" Closest to people: {best['name']}, tau {number(best['tau'])} ({number(best['low'])} to {number(best['high'])})."
    how = ("For each item people ranked the explanations of all models, from " + str(len(value["models"])) + " points for the best to 1 for the worst, without knowing whose they "
           "were. Each metric is turned into the same ranking. A point is the mean over the items of a language.")
    return f'<p class="lead">{escape(words)}</p><p class="note">{escape(how)}</p>'


def _remarks(value: Mapping[str, Any]) -> str:
    return "".join(f'<p class="note"><strong>Note.</strong> {escape(remark)}</p>' for remark in value["remarks"])


def _overview(value: Mapping[str, Any]) -> str:
    """tau of each measure with its interval, the best on top."""
    rows = [row for row in value["measures"] if row["tau"] is not None]
    if not rows:
        return ""
    left, right, step = 146.0, WIDTH - 44.0, 20.0
    low = min(0.0, *(row["low"] if row["low"] is not None else row["tau"] for row in rows))
    low = max(-1.0, math.floor(low * 5) / 5)

    def at(tau: float) -> float:
        return left + (tau - low) / (1 - low) * (right - left)

    body, y = [], 8.0
    bottom = y + step * len(rows)
    for tick in ticks(low, 1.0, 5):
        body += [line(at(tick), y, at(tick), bottom, "axis" if tick == 0 and low < 0 else "grid"), text(at(tick), bottom + 15, number(tick, ".1f"), "small", "middle")]
    for row in rows:
        middle = y + step / 2
        words = f"{row['name']} ({row['definition']}): tau {row['tau']:.3f}"
        marks = []
        if row["low"] is not None:
            marks.append(line(at(max(row["low"], low)), middle, at(row["high"]), middle, "whisker"))
        marks.append(f'<circle cx="{at(row["tau"]):.1f}" cy="{middle:.1f}" r="4.5" class="mark"><title>{escape(words)}</title></circle>')
        body += [text(0, middle + 4, fit(row["name"] + _variant(row, rows), 21), "label"), f'<g class="{escape(row["kind"])}">{"".join(marks)}</g>',
                 text(WIDTH, middle + 4, number(row["tau"]), "small", "end")]
        y += step
    if others := value["people"]["one_against_others"]:
        body.append(line(at(others["tau"]), 8, at(others["tau"]), bottom, "same"))
    note = ("Dots: Kendall’s tau with people; lines: 95 % intervals (bootstrap over items; drawing again adds noise of its own, so with few items they "
            "lie low).")
    if others:
        note += f" Dashed: one rater against the others ({number(others['tau'])}), what a metric can hope for."
    return f'<h2>Agreement with people</h2><div class="plots one"><figure>{svg(bottom + 22, "Kendall tau of each metric with people", body)}</figure></div><p class="note">{escape(note)}</p>'


def _variant(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What tells two definitions of one metric apart."""
    twins = sum(other["name"] == row["name"] and other["kind"] == row["kind"] for other in rows) > 1
    if not twins:
        return ""
    return " (" + (row["definition"].removesuffix("-f1") if row["kind"] == "metric" else row["definition"]) + ")"


def _table(value: Mapping[str, Any]) -> str:
    head = ["Metric", "tau", "95 %", "slope", "tau in items", "first in", "points", "paper: tau", "slope"]
    rows = []
    for row in value["measures"]:
        paper = row["paper"] or {}
        cells = [f"<strong>{number(row['tau'])}</strong>" if row is value["measures"][0] else number(row["tau"]), f"{number(row['low'])} to {number(row['high'])}",
                 number(row["slope"], ".2f"), number(row["within_items"]), "–" if row["first_share"] is None else f"{100 * row['first_share']:.0f} %", str(row["points"])]
        label = "judge" if row["kind"] == "judge" else row["definition"]
        rows.append(f'<tr><th scope="row"><bdi>{escape(row["name"])}</bdi><small>{escape(label)}</small></th>' + "".join(f"<td>{cell}</td>" for cell in cells)
                    + "".join(f'<td class="paper">{number(paper.get(name), form)}</td>' for name, form in (("tau", ".3f"), ("slope", ".2f"))) + "</tr>")
    if others := value["people"]["one_against_others"]:
        rows.append(f'<tr class="aside"><th scope="row">One rater against the others<small>mean of {others["raters"]}</small></th><td>{number(others["tau"])}</td>'
                    + "<td></td>" * 7 + "</tr>")
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    note = ("tau: over the points; slope: of the metric’s points on people’s; tau in items: mean over items of tau between the two rankings of the models; first in: share of "
            "resamples in which no metric agrees better. The paper’s values are of its own six models and raters, its judge was GPT-4.")
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Agreement"><table><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f'<p class="note">{escape(note)}</p>')


def _scatters(value: Mapping[str, Any]) -> str:
    numbers = [point["people"] for point in value["points"]] + [y for point in value["points"] for y in point["values"] if y is not None]
    low, high = math.floor(2 * min(numbers)) / 2, math.ceil(2 * max(numbers)) / 2
    high = high if high > low else low + 1
    figures = []
    for place, row in enumerate(value["measures"]):
        drawn = [(point, point["values"][place]) for point in value["points"] if point["values"][place] is not None]
        head = f'<h3><bdi>{escape(row["name"])}</bdi> <small>{escape(_variant(row, value["measures"]).strip())}</small></h3>'
        caption = f"tau {number(row['tau'])}, slope {number(row['slope'], '.2f')}"
        figures.append(f"<figure>{head}{scatter(value['models'], drawn, row, low, high)}<figcaption>{caption}</figcaption></figure>")
    legend = "".join(f'<li><span class="swatch {colour(i)}"></span><bdi>{escape(model)}</bdi></li>' for i, model in enumerate(value["models"]))
    note = "Mean points by people (across) and by the metric (up), a dot for each model and language. Solid: least-squares line; dashed: equal points."
    return f'<h2>Point by point</h2><ul class="legend">{legend}</ul><p class="note">{note}</p><div class="plots">{"".join(figures)}</div>'


def _averages(value: Mapping[str, Any]) -> str:
    """Mean points of each model, mean of the languages, by people and by each measure."""
    def mean(values: Sequence[float | None]) -> float | None:
        kept = [one for one in values if one is not None]
        return sum(kept) / len(kept) if kept else None

    names = ["People", *(row["name"] + _variant(row, value["measures"]) for row in value["measures"])]
    columns = {model: [[point["people"], *point["values"]] for point in value["points"] if point["model"] == model] for model in value["models"]}
    means = {model: [mean([point[i] for point in points]) for i in range(len(names))] for model, points in columns.items()}
    order = sorted(means, key=lambda model: -means[model][0])
    rows = "".join(f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th>' + "".join(f"<td>{number(means[model][i], '.2f')}</td>" for model in order) + "</tr>"
                   for i, name in enumerate(names))
    head = '<th scope="col">By</th>' + "".join(f'<th scope="col"><bdi>{escape(model)}</bdi></th>' for model in order)
    return (f'<h2>Mean points of each model</h2><div class="scroll" tabindex="0" role="region" aria-label="Mean points"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
            '<p class="note">Mean of the languages.</p>')


def _raters(value: Mapping[str, Any]) -> str:
    agreement = value["people"]["agreement"]
    if not agreement:
        return ""
    rows = []
    for language, part in agreement.items():
        pairs = [pair["kendall_tau"] for pair in part["pairs"]]
        spread = f"{number(min(pairs))} to {number(max(pairs))}" if pairs else "–"
        rows.append(f'<tr><th scope="row">{escape(language)}</th><td>{len(part["raters"])}</td><td>{part["items"]}</td><td>{number(part["krippendorff_alpha"])}</td>'
                    f'<td>{number(part["kendall_w"])}</td><td>{spread}</td></tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Language", "raters", "items", "Krippendorff’s alpha", "Kendall’s W", "tau of two raters"))
    return (f'<h2>Raters among themselves</h2><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            '<p class="note">Alpha is ordinal, over all items and models; W and tau are means over items of the agreement on the order of the models.</p>')
