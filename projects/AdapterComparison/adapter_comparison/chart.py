"""Draws a comparison: the scores of every configuration and its paired difference from the reference."""

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from adapter_comparison.statistics import LEVEL, Difference, Spread
from soma_det.evaluation.chart import GRID_COLOR, SOURCE_COLOR, TEXT_COLOR, UNSEEN_COLOR

BETTER_COLOR, WORSE_COLOR, UNDECIDED_COLOR = "#1b7f5c", "#c0392b", "#8a94a6"
BAND_COLOR = "#f4f6f9"


def draw_comparison_chart(
    rows: Sequence[dict],
    source: str,
    reference: str,
    path: str | os.PathLike,
    metric: str = "VOC AP50",
    headline: str = "unseen",
) -> None:
    """Save a chart with one row per configuration, sorted by the mean over unseen or target splits.

    Left: scores on the source and on those splits, a large dot for the mean over seeds and a small one for each seed.
    Right, if there are differences: the difference of that mean from the reference's, with its interval.

    Args:
        rows: "name", "source" and "headline" (:class:`Spread`) and "difference" (:class:`Difference` or None).
        source: the source split's label.
        reference: name of the reference; printed in bold.
        path: PNG file; overwritten.
        metric: label of the axis.
        headline: "unseen" or "target".
    """
    rows = sorted(rows, key=lambda row: (math.isnan(row["headline"].mean), -row["headline"].mean))
    paired = any(row["difference"] is not None for row in rows)
    # Not pyplot: it would keep every figure alive and change the caller's backend.
    figure = Figure(figsize=(10.4 if paired else 6.8, 1.7 + 0.36 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if paired else 1, sharey=True, squeeze=False, width_ratios=[1.25, 1][: 1 + paired])[0]
    _draw_scores(panels[0], rows)
    panels[0].set_xlabel(metric, color=TEXT_COLOR, fontsize=10)
    if paired:
        _draw_differences(panels[1], rows, reference)
        panels[1].set_xlabel(f"{headline}: difference from {reference}", color=TEXT_COLOR, fontsize=10)
    for axes in panels:
        _style(axes, len(rows))
    panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    for label, row in zip(panels[0].get_yticklabels(), rows):
        label.set_fontweight("bold" if row["name"] == reference else "normal")
    _add_legend(figure, source, paired, headline)
    figure.savefig(path, metadata={"Software": None})


def _draw_scores(axes: Axes, rows: Sequence[dict]) -> None:
    for y, row in enumerate(rows):
        means = [row["headline"].mean, row["source"].mean]
        axes.plot(means, [y, y], color=GRID_COLOR, linewidth=2.2, zorder=1, solid_capstyle="round")
        for key, color in (("source", SOURCE_COLOR), ("headline", UNSEEN_COLOR)):
            _draw_seeds(axes, row[key], y, color)
            axes.plot(row[key].mean, y, "o", color=color, markersize=7.5, markeredgecolor="white", zorder=3)
        first, last = sorted(means)
        _annotate(axes, y, f"{first:.1f}", first, left=True)
        _annotate(axes, y, f"{last:.1f}", last)
    values = [value for row in rows for key in ("source", "headline") for value in row[key].values.values()]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    margin = max(1.0, 0.16 * (highest - lowest))
    axes.set_xlim(max(-0.5 * margin, lowest - margin), highest + margin)


def _draw_differences(axes: Axes, rows: Sequence[dict], reference: str) -> None:
    axes.axvline(0, color=TEXT_COLOR, linewidth=1.0, zorder=1)
    for y, row in enumerate(rows):
        difference = row["difference"]
        if difference is None:
            if row["name"] == reference:
                axes.plot(0, y, "D", color=TEXT_COLOR, markersize=5.5, zorder=4)
            continue
        color = _verdict_color(difference)
        if not math.isnan(difference.interval[0]):
            axes.plot(difference.interval, [y, y], color=color, linewidth=2.4, zorder=2, solid_capstyle="round")
        _draw_seeds(axes, difference, y, color)
        axes.plot(difference.mean, y, "o", zorder=3, **_marker(color))
        _annotate(axes, y, f"{difference.mean:+.1f}".replace("-", "\N{MINUS SIGN}"))
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.14 * (high - low))  # room for the column of numbers


def _marker(color: str) -> dict:
    """Hollow where the interval includes 0, so that color is not the only sign of it."""
    hollow = color == UNDECIDED_COLOR
    edge = {"markeredgecolor": color, "markeredgewidth": 1.6} if hollow else {"markeredgecolor": "white"}
    return {"markersize": 6.5 if hollow else 7.5, "color": "white" if hollow else color, **edge}


def _draw_seeds(axes: Axes, spread: Spread, y: int, color: str) -> None:
    values = list(spread.values.values())
    if len(values) > 1:
        offsets = np.linspace(0.12, 0.30, len(values))  # below the row's line, apart where seeds agree
        axes.plot(values, y + offsets, ".", color=color, markersize=4.5, alpha=0.55, markeredgewidth=0, zorder=2)


def _annotate(axes: Axes, y: int, text: str, x: float | None = None, left: bool = False) -> None:
    """Write beside the point (x, y), or without x at the right edge."""
    if x is not None and math.isnan(x):
        return
    axes.annotate(
        text,
        (1 if x is None else x, y),
        xycoords=axes.get_yaxis_transform() if x is None else "data",
        xytext=(-8 if left or x is None else 8, 0),
        textcoords="offset points",
        ha="right" if left or x is None else "left",
        va="center",
        color=TEXT_COLOR,
        fontsize=8.5,
        zorder=5,
    )


def _verdict_color(difference: Difference) -> str:
    low, high = difference.interval
    if math.isnan(low) or low <= 0 <= high:
        return UNDECIDED_COLOR
    return BETTER_COLOR if low > 0 else WORSE_COLOR


def _style(axes: Axes, number: int) -> None:
    for y in range(0, number, 2):
        axes.axhspan(y - 0.5, y + 0.5, color=BAND_COLOR, zorder=0, linewidth=0)
    axes.set_ylim(number - 0.5, -0.5)
    axes.xaxis.grid(True, color=GRID_COLOR, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.tick_params(length=0, colors=TEXT_COLOR, labelsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(TEXT_COLOR)


def _add_legend(figure: Figure, source: str, paired: bool, headline: str) -> None:
    def dot(color: str, label: str) -> Line2D:
        return Line2D(
            [], [], color=color, marker="o", linestyle="", markersize=7.5, markeredgecolor="white", label=label
        )

    handles = [dot(SOURCE_COLOR, f"{source} (source)"), dot(UNSEEN_COLOR, f"mean of {headline}")]
    handles.append(Line2D([], [], color=UNSEEN_COLOR, marker=".", linestyle="", alpha=0.55, label="single seeds"))
    if paired:
        interval = f"{LEVEL} % interval"
        handles += [
            dot(BETTER_COLOR, f"better ({interval})"),
            Line2D([], [], marker="o", linestyle="", label="undecided", **_marker(UNDECIDED_COLOR)),
            dot(WORSE_COLOR, "worse"),
        ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if paired else 3,
        frameon=False,
        fontsize=9,
        labelcolor=TEXT_COLOR,
        handletextpad=0.3,
        columnspacing=1.4,
    )
