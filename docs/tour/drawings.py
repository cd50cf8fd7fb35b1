"""The tour's drawings as SVG files: each small, with colours of its own for light and dark pages.

In: numbers and names. Out: one <svg> as text. An image in a page of Markdown has no style from
outside, so STYLE goes into each.
"""
from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence

from mmed.data import Row

STYLE = """<style>
svg { --ink: #1d1f23; --muted: #5c6168; --line: #d5d3cc; --tint: #2a78d6; --bg: #ffffff;
  --c0: #2a78d6; --c1: #1baf7a; --c2: #eda100; --c3: #4a3aa7; --c4: #e34948; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e9e8e4; --muted: #a6aab1; --line: #3b3f46; --tint: #6aa5f0; --bg: #16181c;
    --c0: #3987e5; --c1: #199e70; --c2: #c98500; --c3: #9085e9; --c4: #e66767; } }
.page { fill: var(--bg); }
text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
text.small { font-size: 10px; fill: var(--muted); } text.on { fill: #fff; }
.c0 { --s: var(--c0); } .c1 { --s: var(--c1); } .c2 { --s: var(--c2); }
.c3 { --s: var(--c3); } .c4 { --s: var(--c4); } .pale { --s: var(--line); }
.box, .dot { fill: var(--s); } .cell { fill: var(--tint); }
.frame { fill: none; stroke: var(--line); } .gap { fill: var(--ink); }
.curve { fill: none; stroke: var(--s); stroke-width: 1.8; }
.grid { stroke: var(--line); } .axis { stroke: var(--muted); }
</style>"""
COLOURS = 5
SHOWN = 0.02  # attention below this is left white


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{turned}>'
            f'{html.escape(str(words))}</text>')


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, title: str = "", more: str = "") -> str:
    size = f'width="{max(width, 0):.1f}" height="{height:.1f}"'
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{css}"{more}'
    return f"{shape}><title>{html.escape(title)}</title></rect>" if title else shape + "/>"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between low and high."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def image(width: float, height: float, label: str, body: Sequence[str]) -> str:
    """A whole file; lines are short, so that a change shows where it is."""
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{html.escape(label)}">')
    return "\n".join([head, STYLE, rect(0, 0, width, height, "page"), *body, "</svg>", ""])


def band(css: Sequence[str], x: float, y: float, width: float, height: float) -> list[str]:
    """Cells of `width` side by side; neighbours of one class are one shape."""
    shapes = []
    for name, run in itertools.groupby(css):
        size = len(list(run))
        shapes.append(rect(x, y, size * width - 1, height, name))
        x += size * width
    return shapes


def stream_rows(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Each row as a band, a colour for each document; black where a token has no label, the BOS before a
    continuation.
    """
    left, width, tall = 40.0, 5.0, 20.0
    T = len(rows[0].input_ids)
    body = [text(left + at * width, 14, at, "small", "middle") for at in range(0, T + 1, 16)]
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = 22 + number * (tall + 8)
        css = ["box pale" if document < 0 else "gap" if label < 0
               else f"box c{(document + 2 * number) % COLOURS}"
               for document, label in zip(row.document_ids, row.labels)]
        body += [text(left - 6, y + 14, name, "", "end"), *band(css, left, y, width, tall)]
    return image(left + T * width + 14, 30 + len(rows) * (tall + 8),
                 "Rows of the two token streams, a colour a document", body)


def label_mask(row: Row) -> str:
    """The tokens of a packed row: the prompt pale, the target in colour, padding empty."""
    cell, per_line, left = 10.0, 64, 40.0
    css = [f"box c{document % COLOURS}" if label >= 0 else "box pale" if document >= 0 else "frame"
           for document, label in zip(row.document_ids, row.labels)]
    body = []
    for begin in range(0, len(css), per_line):
        y = 8 + begin // per_line * 16
        body += [text(left - 6, y + 9, begin, "small", "end"),
                 *band(css[begin:begin + per_line], left, y, cell, 12)]
    return image(left + per_line * cell + 10, 14 + math.ceil(len(css) / per_line) * 16,
                 "Label mask of a packed row: prompts pale, targets in colour", body)


def attention_map(p: Sequence[Sequence[float]], pieces: Sequence[str], label: str) -> str:
    """Row: the token that looks; column: the token looked at; the fuller the colour, the larger the weight.
    """
    size, left, top = 22.0, 84.0, 84.0
    T = len(pieces)
    body = []
    for i, piece in enumerate(pieces):
        body.append(text(left - 6, top + i * size + 15, piece, "", "end"))
        body.append(text(left + i * size + 14, top - 6, piece, turn=-60))
        body += [rect(left + j * size, top + i * size, size - 2, size - 2, "cell", "",
                      f' fill-opacity="{p[i][j]:.2f}"') for j in range(i + 1) if p[i][j] >= SHOWN]
    # right of it is the future
    body.append(line(left + size, top, left + T * size, top + (T - 1) * size, "axis"))
    return image(left + T * size + 40, top + T * size + 8, label, body)


def loss_bars(losses: Sequence[float], pieces: Sequence[str]) -> str:
    """A bar for each token to be predicted, as high as its loss in nats."""
    width, bottom, tall = 30.0, 130.0, 110.0
    most = max(losses)
    body = [line(30, bottom, 30 + len(losses) * width, bottom, "axis")]
    for i, (loss, piece) in enumerate(zip(losses, pieces, strict=True)):
        x, height = 33 + i * width, max(0.5, tall * loss / most)
        body += [rect(x, bottom - height, width - 6, height, "box c0", f"{piece}: {loss:.4f} nats"),
                 text(x + (width - 6) / 2, bottom - height - 3, f"{loss:.2f}", "small", "middle"),
                 text(x + 14, bottom + 12, piece, "", "end", -45)]
    return image(44 + len(losses) * width, bottom + 64, "Loss of each token of the two sentences", body)


def curve(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """One line over its axes."""
    left, right, top, bottom = 48.0, 350.0, 22.0, 196.0
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low, y_high = y_low - 0.05 * (y_high - y_low), y_high + 0.05 * (y_high - y_low)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    body = [text(0, 12, y_label, "small"), text(right, bottom + 30, x_label, "small", "end")]
    for value in ticks(y_low, y_high):
        y = at(x_low, value)[1]
        body += [line(left, y, right, y, "grid"), text(left - 5, y + 3.5, f"{value:.4g}", "small", "end")]
    for value in ticks(x_low, x_high, 4):
        x = at(value, y_low)[0]
        body += [line(x, bottom, x, bottom + 4, "axis"),
                 text(x, bottom + 15, f"{value:g}", "small", "middle")]
    body.append(line(left, bottom, right, bottom, "axis"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    body.append(f'<polyline points="{path}" class="curve c0"/>')
    return image(right + 10, bottom + 36, f"{y_label} by {x_label}", body)


def lora_boxes(out: int, inside: int, rank: int) -> str:
    """W beside B and A, to scale."""
    unit, top = 2.4, 34.0
    w, h, r = inside * unit, out * unit, rank * unit
    b_left = 20 + w + 50
    a_left = b_left + r + 30
    return image(a_left + w + 20, top + h + 26, "A LoRA layer to scale: W plus B times A", [
        rect(20, top, w, h, "box pale"),
        text(20 + w / 2, top - 10, f"W ({out}, {inside}), frozen", "", "middle"),
        text(20 + w + 25, top + h / 2 + 5, "+", "", "middle"),
        rect(b_left, top, r, h, "box c1"),
        text(b_left + r / 2, top - 10, f"B ({out}, {rank})", "", "middle"),
        text(b_left + r / 2, top + h + 16, "zero", "small", "middle"),
        text(a_left - 15, top + h / 2 + 5, "x", "", "middle"),
        rect(a_left, top + (h - r) / 2, w, r, "box c0"),
        text(a_left + w / 2, top + (h - r) / 2 - 10, f"A ({rank}, {inside})", "", "middle"),
        text(a_left + w / 2, top + (h + r) / 2 + 16, "random", "small", "middle")
    ])
