"""Draws the scores of all splits as a bar chart."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

SOURCE_COLOR, UNSEEN_COLOR, MEAN_COLOR, TARGET_COLOR = "#8a94a6", "#0072b2", "#d55e00", "#009e73"
# Okabe and Ito's colors, which the color-blind can tell apart; their yellow is too light for lines.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
TEXT_COLOR, GRID_COLOR = "#2b2f36", "#e3e6ea"
MEAN_LINE: dict[str, Any] = dict(color=MEAN_COLOR, linewidth=1.6, linestyle=(0, (4, 2)))


def draw_domain_chart(
    scores: Mapping[str, float], source: str | None, path: str | os.PathLike, targets: Sequence[str] = ()
) -> None:
    """Save one bar per split, the source's in another color, and a line at the mean of the others.

    Args:
        scores: label -> VOC AP50, 0 to 100; NaN draws no bar.
        source: the label of the source split, or None.
        path: PNG file; overwritten.
        targets: labels of splits whose domain training has seen without labels; the line leaves them out.
    """
    # Figure and canvas are used directly, because pyplot would keep every figure alive and change the caller's backend.
    figure = Figure(figsize=(max(4.8, 1.6 + 1.15 * len(scores)), 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The source first, then targets, then the others in their order.
    labels = sorted(scores, key=lambda label: (label != source, label not in targets))
    _draw_bars(axes, {label: scores[label] for label in labels}, source, targets)
    seen = {source, *targets}
    unseen = [i for i, label in enumerate(labels) if label not in seen and not math.isnan(scores[label])]
    mean = sum(scores[labels[i]] for i in unseen) / len(unseen) if len(unseen) > 1 else None
    if mean is not None:
        axes.hlines(mean, unseen[0] - 0.42, len(labels) - 0.58, **MEAN_LINE)
    _style(axes, max([s for s in scores.values() if not math.isnan(s)], default=0.0))
    _add_legend(figure, source in scores, mean, bool(unseen), bool(targets))
    figure.savefig(path, metadata={"Software": None})


def draw_curves(
    x: Sequence[float], curves: Mapping[str, Sequence[float]], source: str | None, path: str | os.PathLike, xlabel: str
) -> None:
    """Save one line per split over a setting, the source's in another color, and the others' mean as a dashed one.

    Args:
        x: the setting's values.
        curves: label -> VOC AP50 at each value, 0 to 100; NaN leaves a gap.
        source: the label of the source split, or None.
        path: PNG file; overwritten.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unseen = [label for label in curves if label != source]
    for number, label in enumerate(unseen):
        shade = 1 - 0.6 * number / max(len(unseen) - 1, 1)
        axes.plot(x, curves[label], "o-", color=UNSEEN_COLOR, alpha=shade, linewidth=1.4, markersize=4, label=label)
    if source is not None and source in curves:
        axes.plot(x, curves[source], "o-", color=SOURCE_COLOR, linewidth=2, markersize=5, label=source)
    if len(unseen) > 1:
        mean = np.mean([curves[label] for label in unseen], axis=0)
        axes.plot(x, mean, **MEAN_LINE | {"linewidth": 2.2}, label="mean of unseen")
    _style(axes, max([s for curve in curves.values() for s in curve if not math.isnan(s)], default=0.0))
    axes.set_xlabel(xlabel, color=TEXT_COLOR, fontsize=10)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
    figure.savefig(path, metadata={"Software": None})


def draw_panels(
    x: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike, xlabel: str
) -> None:
    """Save panels side by side on one scale, each with a line per label over a setting.

    Args:
        x: the setting's values.
        panels: title -> label -> VOC AP50 at each value, 0 to 100; NaN leaves a gap. At most six labels in a panel.
        path: PNG file; overwritten.
    """
    figure = Figure(figsize=(max(4.2, 3.1 * len(panels)), 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    every = [score for curves in panels.values() for curve in curves.values() for score in curve]
    highest = max([score for score in every if not math.isnan(score)], default=0.0)
    for number, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for color, (label, curve) in zip(LINE_COLORS[: len(curves)], curves.items(), strict=True):
            axes.plot(x, curve, "o-", color=color, linewidth=1.6, markersize=4, label=label)
        _style(axes, highest)
        axes.set_title(title, color=TEXT_COLOR, fontsize=11)
        axes.set_xlabel(xlabel, color=TEXT_COLOR, fontsize=9.5)
        axes.legend(loc="lower left", frameon=False, fontsize=8.5, labelcolor=TEXT_COLOR)
        if number:
            axes.set_ylabel("")
    figure.savefig(path, metadata={"Software": None})


def _draw_bars(axes: Axes, scores: Mapping[str, float], source: str | None, targets: Sequence[str]) -> None:
    special: dict[str | None, str] = {source: SOURCE_COLOR} | dict.fromkeys(targets, TARGET_COLOR)
    colors = [special.get(label, UNSEEN_COLOR) for label in scores]
    values = list(scores.values())
    bars = axes.bar(range(len(values)), np.nan_to_num(values), width=0.62, color=colors, zorder=2)
    texts = ["no boxes" if math.isnan(value) else f"{value:.1f}" for value in values]
    # A white edge keeps the number readable where the line of the mean runs through it.
    edge = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.bar_label(bars, texts, padding=3, color=TEXT_COLOR, fontsize=10, fontweight="bold", zorder=4, bbox=edge)
    axes.set_xticks(range(len(scores)), [label.replace(" ", "\n") if len(label) > 8 else label for label in scores])
    margin = max(0.6, (4 - len(scores)) / 2)  # keeps the only bar of a single split from filling the chart
    axes.set_xlim(-margin, len(scores) - 1 + margin)


def _style(axes: Axes, highest: float) -> None:
    axes.set_ylim(0, min(108, max(10, 1.18 * highest)))
    axes.set_ylabel("VOC AP50", color=TEXT_COLOR, fontsize=10)
    axes.yaxis.grid(True, color=GRID_COLOR, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=TEXT_COLOR, labelsize=9.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(TEXT_COLOR)


def _add_legend(figure: Figure, has_source: bool, mean: float | None, has_unseen: bool, has_targets: bool) -> None:
    handles: list[Artist] = [Patch(color=SOURCE_COLOR, label="source (seen in training)")] if has_source else []
    if has_targets:
        handles.append(Patch(color=TARGET_COLOR, label="target (seen without labels)"))
    if has_unseen:
        handles.append(Patch(color=UNSEEN_COLOR, label="unseen"))
    if mean is not None:
        handles.append(Line2D([], [], label=f"mean of unseen: {mean:.1f}", **MEAN_LINE))
    style: dict[str, Any] = dict(
        frameon=False, fontsize=9.5, labelcolor=TEXT_COLOR, handlelength=1.6, columnspacing=1.6
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), **style)
