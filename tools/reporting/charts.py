"""Small SVG charts that take their colors from the page, so that they follow its light or dark scheme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from soma_det.evaluation.calibration import Calibration

WIDTH, HEIGHT = 300, 210  # pixels, and units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 34
COLORS = 7  # --c0 to --c6 in report.css
MOST_POINTS = 400  # of a line: more cannot be seen, but make the page large


@dataclass(frozen=True)
class Line:
    """A line of a chart; NaN in ``y`` leaves a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """The name and range of an axis."""

    label: str
    low: float
    high: float

    def ticks(self) -> list[float]:
        """Round numbers in the range, three to six of them."""
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(s for s in (step / 5, step / 2, step, 2 * step) if (self.high - self.low) / s <= 5.001)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def range_axis(label: str, values: Sequence[float], low: float | None = None) -> Axis:
    """An axis that holds all values that are numbers, from ``low`` or else the smallest on."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low = min(known) if low is None else low
    return Axis(label, low, max(known) if max(known) > low else low + 1.0)


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> Markup:
    """An SVG with lines; the pointer on a line shows its label."""
    content = [_frame(x, y)]
    for line in lines:
        for part in _segments(line):
            points = " ".join(f"{_place_x(x, a):.1f},{_place_y(y, b):.1f}" for a, b in part)
            content.append(
                Markup('<polyline class="line{}" style="stroke:var(--c{})" points="{}"><title>{}</title></polyline>')
                .format(" dashed" * line.dashed, line.color % COLORS, points, line.label)
            )  # fmt: skip
    return _svg(title, content)


def reliability_chart(title: str, result: Calibration) -> Markup:
    """Precision in bins of confidence as bars, with the diagonal on which both are equal."""
    x, y = Axis("confidence", 0, 1), Axis("precision", 0, 1)
    content = [_frame(x, y)]
    for low, high, count, confidence, precision in zip(
        result.edges, result.edges[1:], result.count, result.confidence, result.precision
    ):
        if count:
            left, right, top = _place_x(x, low) + 1, _place_x(x, high) - 1, _place_y(y, precision)
            text = f"{count:,} detections: mean confidence {confidence:.2f}, precision {precision:.2f}"
            content.append(
                Markup('<path class="bin" d="M{:.1f} {:.1f}H{:.1f}V{:.1f}H{:.1f}z"><title>{}</title></path>')
                .format(left, top, right, _place_y(y, 0), left, text)
            )  # fmt: skip
    diagonal = f"{_place_x(x, 0):.1f},{_place_y(y, 0):.1f} {_place_x(x, 1):.1f},{_place_y(y, 1):.1f}"
    content.append(Markup('<polyline class="diagonal" points="{}"/>').format(diagonal))
    return _svg(title, content)


def _svg(title: str, content: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">')
    return head.format(WIDTH, HEIGHT, WIDTH, HEIGHT, title) + Markup("").join(content) + Markup("</svg>")


def _frame(x: Axis, y: Axis) -> Markup:
    parts = []
    for tick in y.ticks():
        height = _place_y(y, tick)
        parts.append(
            Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
            .format(LEFT, height, WIDTH - RIGHT, LEFT - 5, height + 3.5, _number(tick))
        )  # fmt: skip
    for tick in x.ticks():
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
            .format(_place_x(x, tick), HEIGHT - BOTTOM + 13, _number(tick))
        )  # fmt: skip
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
        .format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x.label)
    )  # fmt: skip
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text transform="translate(10 {}) rotate(-90)" text-anchor="middle">{}</text>').format(middle, y.label)
    )
    return Markup("").join(parts)


def _segments(line: Line) -> list[list[tuple[float, float]]]:
    """The parts of a line between gaps, thinned out evenly where there are too many points."""
    step = math.ceil(len(line.x) / MOST_POINTS) or 1
    known = np.isfinite(np.asarray(line.y, dtype=float))
    parts: list[list[tuple[float, float]]] = [[]]
    for i in range(0, len(line.x), step):
        if known[i]:
            parts[-1].append((line.x[i], line.y[i]))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _place_x(axis: Axis, value: float) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _place_y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:.6g}" if abs(value) < 10_000 else f"{value / 1000:.6g}k"
